// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/transport/interrupt_reason.hpp>
#include <ballast/transport/pci.hpp>
#include <ballast/transport/register_region.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

struct pci_legacy_driver_options {
  std::uint32_t bar_bytes = 0;  ///< size of BAR 0
  bool is_msix_enabled = false; ///< in the MSI-X capability, before the driver is used
};

/// The driver's side of legacy virtio-pci: models `driver_transport` over BAR 0, in I/O space.
///
/// A queue lies as `split::place_legacy` with 4096 says, below 16 TiB, and has as many entries as
/// the device gives it: neither can be negotiated. There are no FEATURES_OK, no VERSION_1, no
/// generation and no reset of a single queue.
/// Ordering: the region's. One thread at a time, but for `notify`, `take_isr` and `status`.
/// Spec: "Legacy Interfaces: A Note on PCI Device Layout". Linux:
/// drivers/virtio/virtio_pci_legacy_dev.c.
template <register_region R> class pci_legacy_driver {
 public:
  static constexpr std::uint16_t max_queues = 64;
  /// What `set_up_queue` needs of a layout.
  static constexpr std::uint32_t queue_alignment = pci::legacy::queue_alignment;

  constexpr pci_legacy_driver(R bar, std::uint32_t device_id,
                              const pci_legacy_driver_options& options) noexcept
      : bar_(bar), device_id_(device_id), options_(options) {
    for (std::uint16_t& vector : queue_vectors_) vector = pci::no_vector;
  }

  /// With MSI-X enabled; `set_up_queue` writes these.
  constexpr void use_config_vector(std::uint16_t vector) noexcept { config_vector_ = vector; }
  constexpr void use_queue_vector(std::uint16_t queue, std::uint16_t vector) noexcept {
    if (queue < max_queues) queue_vectors_[queue] = vector;
  }

  // driver_transport

  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return device_id_; }

  [[nodiscard]] constexpr feature_set device_features() noexcept {
    feature_set offered;
    offered.set_word32(0, bar_.template load<std::uint32_t>(pci::legacy::device_features));
    return offered;
  }
  constexpr void set_driver_features(const feature_set& accepted) noexcept {
    bar_.template store<std::uint32_t>(pci::legacy::driver_features, accepted.word32(0));
  }

  [[nodiscard]] constexpr std::uint8_t status() noexcept {
    return bar_.template load<std::uint8_t>(pci::legacy::device_status);
  }
  constexpr void set_status(std::uint8_t bits) noexcept {
    bar_.template store<std::uint8_t>(pci::legacy::device_status, bits);
  }

  /// The queue has just as many entries.
  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) noexcept {
    bar_.template store<std::uint16_t>(pci::legacy::queue_select, queue);
    return bar_.template load<std::uint16_t>(pci::legacy::queue_size);
  }

  /// Errors: `invalid_queue_index`, `queue_unavailable`, `invalid_queue_size` (not the device's),
  /// `misaligned` (not the legacy layout), `page_out_of_range` (at page 0, or 16 TiB and more),
  /// `wrong_state` (in use already, or the device has not taken it), `vector_unavailable`.
  [[nodiscard]] constexpr result<void> set_up_queue(std::uint16_t queue,
                                                    const queue_layout& layout) noexcept {
    namespace l = pci::legacy;
    if (queue >= max_queues) return error::invalid_queue_index;
    const std::uint32_t size = queue_size_max(queue);
    if (size == 0) return error::queue_unavailable;
    if (layout.size != size) return error::invalid_queue_size;
    const auto place = split::place_legacy(layout.descriptor_area, size, queue_alignment);
    if (!place) return place.error();
    if (place->layout != layout) return error::misaligned;
    const guest_address page = layout.descriptor_area / queue_alignment;
    if (page == 0 || page > UINT32_MAX) return error::page_out_of_range;
    if (bar_.template load<std::uint32_t>(l::queue_address) != 0) return error::wrong_state;
    if (options_.is_msix_enabled && (!map_vector(l::config_msix_vector, config_vector_) ||
                                     !map_vector(l::queue_msix_vector, queue_vectors_[queue])))
      return error::vector_unavailable;
    bar_.template store<std::uint32_t>(l::queue_address, static_cast<std::uint32_t>(page));
    if (bar_.template load<std::uint32_t>(l::queue_address) != page) return error::wrong_state;
    return {};
  }

  /// Errors: `not_negotiated`, always.
  [[nodiscard]] constexpr result<void> reset_queue(std::uint16_t) noexcept {
    return error::not_negotiated;
  }

  [[nodiscard]] constexpr std::uint32_t config_generation() const noexcept { return 0; }

  /// A field by itself is accessed at its width. What takes several accesses is read until it reads
  /// the same twice. Errors: `config_out_of_range`, `config_unstable`.
  /// Spec: "Legacy Interface: Device Configuration Space".
  [[nodiscard]] constexpr result<void> read_config(std::uint32_t offset,
                                                   std::span<std::byte> to) noexcept {
    if (!is_config(offset, to.size())) return error::config_out_of_range;
    return read_stable_fields(bar_, config(), offset, to);
  }
  /// As `read_config`. Errors: `config_out_of_range`.
  [[nodiscard]] constexpr result<void> write_config(std::uint32_t offset,
                                                    std::span<const std::byte> from) noexcept {
    if (!is_config(offset, from.size())) return error::config_out_of_range;
    write_fields(bar_, config(), offset, from);
    return {};
  }

  constexpr void notify(std::uint16_t queue) noexcept {
    bar_.template store<std::uint16_t>(pci::legacy::queue_notify, queue);
  }

  // Interrupts.

  /// Why the device interrupts: the bits of `interrupt_reason`. It clears them and lowers the line.
  [[nodiscard]] constexpr std::uint8_t take_isr() noexcept {
    return bar_.template load<std::uint8_t>(pci::legacy::isr_status);
  }

 private:
  [[nodiscard]] constexpr std::uint32_t config() const noexcept {
    return pci::legacy::config(options_.is_msix_enabled);
  }
  constexpr bool map_vector(std::uint32_t offset, std::uint16_t vector) noexcept {
    if (vector == pci::no_vector) return true;
    bar_.template store<std::uint16_t>(offset, vector);
    return bar_.template load<std::uint16_t>(offset) == vector;
  }
  [[nodiscard]] constexpr bool is_config(std::uint32_t offset, std::size_t size) const noexcept {
    const std::uint32_t end = options_.bar_bytes < config() ? 0 : options_.bar_bytes - config();
    return offset <= end && size <= end - offset;
  }

  R bar_;
  std::uint32_t device_id_;
  pci_legacy_driver_options options_;
  std::uint16_t config_vector_ = pci::no_vector;
  std::uint16_t queue_vectors_[max_queues]{};
};

} // namespace ballast
