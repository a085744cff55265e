// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/transport/interrupt_reason.hpp>
#include <ballast/transport/pci.hpp>
#include <ballast/transport/pci_capabilities.hpp>
#include <ballast/transport/register_region.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// The structures of a device as a driver reaches them: each a region that begins where the
/// structure begins, and what `find_pci_structures` said of them.
template <register_region R> struct pci_regions {
  R common, notify, isr, device;
  pci_structures found;
};

/// The driver's side of virtio-pci, without the bus: models `driver_transport`.
///
///     auto found = find_pci_structures(space);                  // which BARs to map
///     pci_driver transport(pci_regions<my_registers>{...}, type); // `find_pci_device_type`
///     transport.use_queue_vector(0, 1);                         // with MSI-X enabled
///     balloon::driver driver(ram, transport, pages, ...);       // or: negotiate(transport, {...})
///     // INTx: take_isr() gives bits of `interrupt_reason`, both it may be, by one interrupt.
///
/// Ordering: the regions'. One thread at a time, but for `notify`, `take_isr` and `status`.
/// Spec: "Virtio Over PCI Bus". Linux: drivers/virtio/virtio_pci_modern_dev.c.
template <register_region R> class pci_driver {
 public:
  static constexpr std::uint16_t max_queues = 64;
  /// Features that change how the two sides talk and that this transport does not carry out.
  static constexpr feature_set unsupported_features{feature::sr_iov, feature::notif_config_data,
                                                    feature::admin_vq, feature::suspend};

  /// `attempts`: reads of a register until a queue is to be reset.
  constexpr pci_driver(const pci_regions<R>& regions, std::uint32_t device_id,
                       std::uint32_t attempts = 1'000'000) noexcept
      : regions_(regions), device_id_(device_id), attempts_(attempts) {
    for (std::uint16_t& vector : queue_vectors_) vector = pci::no_vector;
  }

  // MSI-X: once the capability is enabled. `set_up_queue` writes these; a reset of the device does
  // not forget them here.

  constexpr void use_config_vector(std::uint16_t vector) noexcept { config_vector_ = vector; }
  constexpr void use_queue_vector(std::uint16_t queue, std::uint16_t vector) noexcept {
    if (queue < max_queues) queue_vectors_[queue] = vector;
  }

  // driver_transport

  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return device_id_; }

  [[nodiscard]] constexpr feature_set device_features() noexcept {
    feature_set offered;
    for (std::uint32_t word = 0; word < feature_words; ++word) {
      common<std::uint32_t>(pci::common_cfg::device_feature_select, word);
      offered.set_word32(word, common<std::uint32_t>(pci::common_cfg::device_feature));
    }
    return offered - unsupported_features;
  }
  constexpr void set_driver_features(const feature_set& accepted) noexcept {
    for (std::uint32_t word = 0; word < feature_words; ++word) {
      common<std::uint32_t>(pci::common_cfg::driver_feature_select, word);
      common<std::uint32_t>(pci::common_cfg::driver_feature, accepted.word32(word));
    }
    has_ring_reset_ = accepted.test(feature::ring_reset);
    notify_width_ = accepted.test(feature::notification_data) ? 4 : 2;
  }

  [[nodiscard]] constexpr std::uint8_t status() noexcept {
    return common<std::uint8_t>(pci::common_cfg::device_status);
  }
  constexpr void set_status(std::uint8_t bits) noexcept {
    common<std::uint8_t>(pci::common_cfg::device_status, bits);
  }

  /// Of a queue that was set up, the size it was given.
  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) noexcept {
    common<std::uint16_t>(pci::common_cfg::queue_select, queue);
    return common<std::uint16_t>(pci::common_cfg::queue_size);
  }

  /// Errors: `invalid_queue_index`, `queue_unavailable`, `invalid_queue_size`, `wrong_state` (in
  /// use already, or the device has not taken it), `vector_unavailable`, `register_access` (its
  /// notifications would pass the end of their structure).
  [[nodiscard]] constexpr result<void> set_up_queue(std::uint16_t queue,
                                                    const queue_layout& layout) noexcept {
    namespace c = pci::common_cfg;
    if (queue >= max_queues) return error::invalid_queue_index;
    const std::uint32_t size_max = queue_size_max(queue);
    if (size_max == 0) return error::queue_unavailable;
    if (layout.size == 0 || layout.size > size_max) return error::invalid_queue_size;
    if (common<std::uint16_t>(c::queue_enable) != 0) return error::wrong_state;
    const std::uint64_t notify_at = std::uint64_t{common<std::uint16_t>(c::queue_notify_off)} *
                                    regions_.found.notify_off_multiplier;
    if (notify_at + notify_width_ > regions_.found.notify.length || notify_at % notify_width_ != 0)
      return error::register_access;
    if (!map_vector(c::config_msix_vector, config_vector_) ||
        !map_vector(c::queue_msix_vector, queue_vectors_[queue]))
      return error::vector_unavailable;

    common<std::uint16_t>(c::queue_size, static_cast<std::uint16_t>(layout.size));
    store_address(c::queue_desc, layout.descriptor_area);
    store_address(c::queue_driver, layout.driver_area);
    store_address(c::queue_device, layout.device_area);
    common<std::uint16_t>(c::queue_enable, 1);
    if (common<std::uint16_t>(c::queue_enable) != 1) return error::wrong_state;
    notify_at_[queue] = static_cast<std::uint32_t>(notify_at);
    return {};
  }

  /// Errors: `not_negotiated` (RING_RESET), `invalid_queue_index`, `reset_incomplete`: the device
  /// still has the queue, call again, later if need be. Spec: "Virtqueue Reset".
  [[nodiscard]] constexpr result<void> reset_queue(std::uint16_t queue) noexcept {
    namespace c = pci::common_cfg;
    if (!has_ring_reset_) return error::not_negotiated;
    if (queue >= max_queues) return error::invalid_queue_index;
    common<std::uint16_t>(c::queue_select, queue);
    common<std::uint16_t>(c::queue_reset, 1);
    for (std::uint32_t n = attempts_; n > 0; --n)
      if (common<std::uint16_t>(c::queue_reset) == 0 && common<std::uint16_t>(c::queue_enable) == 0)
        return {};
    return error::reset_incomplete;
  }

  [[nodiscard]] constexpr std::uint32_t config_generation() noexcept {
    return common<std::uint8_t>(pci::common_cfg::config_generation);
  }

  /// In words of 4 bytes, and of 2 and 1 where the offset or the rest is none: a field by itself is
  /// accessed at its width. Errors: `config_out_of_range`.
  [[nodiscard]] constexpr result<void> read_config(std::uint32_t offset,
                                                   std::span<std::byte> to) noexcept {
    if (!is_config(offset, to.size())) return error::config_out_of_range;
    read_fields(regions_.device, 0, offset, to);
    return {};
  }
  /// As `read_config`. Errors: `config_out_of_range`.
  [[nodiscard]] constexpr result<void> write_config(std::uint32_t offset,
                                                    std::span<const std::byte> from) noexcept {
    if (!is_config(offset, from.size())) return error::config_out_of_range;
    write_fields(regions_.device, 0, offset, from);
    return {};
  }

  /// Of a queue that was set up.
  constexpr void notify(std::uint16_t queue) noexcept {
    if (queue < max_queues) regions_.notify.template store<std::uint16_t>(notify_at_[queue], queue);
  }
  /// The same under NOTIFICATION_DATA; `data` is what the driver's ring says
  /// (`notification_data(queue)`). Spec: "Available Buffer Notifications".
  constexpr void notify(std::uint16_t queue, std::uint32_t data) noexcept {
    if (queue < max_queues) regions_.notify.template store<std::uint32_t>(notify_at_[queue], data);
  }

  // Interrupts.

  /// Why the device interrupts: the bits of `interrupt_reason`. It clears them and lowers the line.
  [[nodiscard]] constexpr std::uint8_t take_isr() noexcept {
    return regions_.isr.template load<std::uint8_t>(0);
  }

 private:
  static constexpr std::uint32_t feature_words = 2; // no transport feature is beyond bit 63

  template <class T> [[nodiscard]] constexpr T common(std::uint32_t offset) noexcept {
    return regions_.common.template load<T>(offset);
  }
  template <class T, class V> constexpr void common(std::uint32_t offset, V value) noexcept {
    regions_.common.template store<T>(offset, static_cast<T>(value));
  }
  constexpr void store_address(std::uint32_t offset, guest_address address) noexcept {
    common<std::uint32_t>(offset, address & 0xffff'ffff);
    common<std::uint32_t>(offset + 4, address >> 32);
  }
  /// Nothing is written where there is no vector to use, as without MSI-X.
  constexpr bool map_vector(std::uint32_t offset, std::uint16_t vector) noexcept {
    if (vector == pci::no_vector) return true;
    common<std::uint16_t>(offset, vector);
    return common<std::uint16_t>(offset) == vector;
  }
  [[nodiscard]] constexpr bool is_config(std::uint32_t offset, std::size_t size) const noexcept {
    const std::uint32_t end = regions_.found.device.length;
    return offset <= end && size <= end - offset;
  }

  pci_regions<R> regions_;
  std::uint32_t device_id_;
  std::uint32_t attempts_;
  bool has_ring_reset_ = false;
  std::uint8_t notify_width_ = 2;
  std::uint16_t config_vector_ = pci::no_vector;
  std::uint16_t queue_vectors_[max_queues]{};
  std::uint32_t notify_at_[max_queues]{}; ///< offsets in the notification structure
};

} // namespace ballast
