// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/device_registers.hpp>
#include <ballast/transport/msix.hpp>
#include <ballast/transport/pci.hpp>
#include <ballast/transport/pci_function_space.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// What the registers and the MSI-X table hold, for whoever saves a device.
struct pci_registers_state {
  device_registers_state device;
  msix_state msix;
  std::uint16_t config_msix_vector = pci::no_vector;
  std::uint16_t queue_msix_vectors[transport_queues_max]{};
  std::uint8_t config_generation = 0;

  friend constexpr bool operator==(const pci_registers_state&,
                                   const pci_registers_state&) noexcept = default;
};

/// The structures of a virtio-pci device and its legacy interface, wherever they are mapped, with
/// the vectors of its events; `pci_device` maps them.
///
/// A register is accessed at its own width, a 64-bit one by halves too, device configuration at any
/// width. Any other access reads all ones and writes nothing (`register_access`). A queue's size
/// and addresses, once it is enabled, are frozen until it is reset.
/// Ordering: as `device_registers`. Spec: "PCI Device Layout".
template <class Device, guest_memory M>
  requires device_model<Device, M>
class pci_registers {
 public:
  static constexpr std::uint32_t notify_off_multiplier = pci_layout::notify_off_multiplier;
  static constexpr feature_set unsupported_features{feature::sr_iov, feature::notif_config_data,
                                                    feature::admin_vq, feature::suspend};

  /// `vectors`: of MSI-X; 0: the device has none.
  constexpr pci_registers(Device& device, M& memory, unsigned vectors) noexcept
      : registers_(device, memory, unsupported_features), msix_(vectors) {
    unmap_vectors();
  }

  [[nodiscard]] constexpr std::uint16_t queue_count() const noexcept {
    const std::uint16_t n = registers_.queue_count();
    return n < transport_queues_max ? n : transport_queues_max;
  }
  [[nodiscard]] constexpr const device_registers<Device, M>& device() const noexcept {
    return registers_;
  }
  [[nodiscard]] constexpr msix_table& msix() noexcept { return msix_; }
  [[nodiscard]] constexpr const msix_table& msix() const noexcept { return msix_; }

  /// Common configuration. Spec: "Common configuration structure layout".
  constexpr std::uint64_t read_common(std::uint64_t offset, unsigned width) noexcept {
    namespace c = pci::common_cfg;
    if (!c::is_access(offset, width)) return registers::all_ones(width);
    switch (offset) {
    case c::device_feature_select: return registers_.device_feature_select();
    case c::device_feature: return registers_.device_features();
    case c::driver_feature_select: return registers_.driver_feature_select();
    case c::driver_feature: return registers_.driver_features();
    case c::config_msix_vector: return config_msix_vector_;
    case c::num_queues: return queue_count();
    case c::device_status: return registers_.status();
    case c::config_generation: return config_generation();
    case c::queue_select: return registers_.queue_select();
    case c::queue_size: return queue_size();
    case c::queue_msix_vector: return queue_msix_vector();
    case c::queue_enable: return registers_.is_queue_enabled() ? 1 : 0;
    case c::queue_notify_off: return has_queue() ? registers_.queue_select() : 0;
    default: break;
    }
    if (offset < c::queue_desc || offset >= c::queue_notify_data) return 0;
    return registers_.area(area_at(offset)) >> (8 * (offset % 8)) & registers::all_ones(width);
  }

  /// Refused: `register_access` (read-only ones too), `invalid_queue_index`, `invalid_queue_size`,
  /// `wrong_state` (anything but 1 to queue_enable and queue_reset), what `device_registers` says.
  constexpr actions write_common(std::uint64_t offset, unsigned width,
                                 std::uint64_t value) noexcept {
    namespace c = pci::common_cfg;
    if (!c::is_access(offset, width)) return refused(error::register_access);
    const auto number = static_cast<std::uint32_t>(value);
    switch (offset) {
    case c::device_feature_select: registers_.select_device_features(number); return {};
    case c::driver_feature_select: registers_.select_driver_features(number); return {};
    case c::driver_feature: return registers_.write_driver_features(number);
    case c::config_msix_vector: config_msix_vector_ = known(number); return {};
    case c::device_status: return write_status(static_cast<std::uint8_t>(number));
    case c::queue_select: registers_.select_queue(number); return {};
    case c::queue_size: return write_queue_size(number);
    case c::queue_msix_vector: return write_queue_msix_vector(number);
    case c::queue_enable: return number == 1 ? enable_queue() : refused(error::wrong_state);
    case c::queue_reset: return number == 1 ? reset_queue() : refused(error::wrong_state);
    default: break;
    }
    if (offset < c::queue_desc || offset >= c::queue_notify_data)
      return refused(error::register_access);
    const auto shift = static_cast<unsigned>(8 * (offset % 8));
    return registers_.stage_area(area_at(offset), value << shift,
                                 registers::all_ones(width) << shift);
  }

  /// Reading the ISR clears it, and so lowers the line. Spec: "ISR status capability".
  constexpr std::uint64_t read_isr(std::uint64_t offset, unsigned width) noexcept {
    return offset == 0 && width == 1 ? registers_.take_interrupt_status()
                                     : registers::all_ones(width);
  }

  /// Device-specific configuration.
  [[nodiscard]] constexpr std::uint64_t read_config(std::uint64_t offset,
                                                    unsigned width) const noexcept {
    return registers_.read_config(offset, width);
  }
  constexpr actions write_config(std::uint64_t offset, unsigned width,
                                 std::uint64_t value) noexcept {
    return registers_.write_config(offset, width, value);
  }

  /// The driver writes the queue where that queue's notifications belong: 2 bytes, or 4 under
  /// NOTIFICATION_DATA (or with the upper ones 0).
  constexpr actions notify(std::uint64_t offset, unsigned width, std::uint64_t value) noexcept {
    if ((width != 2 && width != 4) || offset % notify_off_multiplier != 0 ||
        offset / notify_off_multiplier >= queue_count())
      return refused(error::register_access);
    if ((value & 0xffff) != offset / notify_off_multiplier)
      return refused(error::invalid_queue_index);
    return registers_.notify(static_cast<std::uint32_t>(value));
  }

  /// BAR 0 of a transitional device. Spec: "Legacy Interfaces: A Note on PCI Device Layout".
  constexpr std::uint64_t read_legacy(std::uint64_t offset, unsigned width) noexcept {
    namespace l = pci::legacy;
    const std::uint32_t config = l::config(msix_.is_enabled());
    if (offset >= config) return registers_.read_config(offset - config, width);
    if (l::width_at(offset, msix_.is_enabled()) != width) return registers::all_ones(width);
    switch (offset) {
    case l::device_features: return device_features_low();
    case l::driver_features: return registers_.accepted().word32(0);
    case l::queue_address:
      return registers_.is_queue_enabled()
                 ? registers_.queues()[registers_.queue_select()].descriptor_area /
                       l::queue_alignment
                 : 0;
    case l::queue_size: return std::bit_floor(queue_size_max());
    case l::queue_select: return registers_.queue_select();
    case l::device_status: return registers_.status();
    case l::isr_status: return registers_.take_interrupt_status();
    case l::config_msix_vector: return config_msix_vector_;
    case l::queue_msix_vector: return queue_msix_vector();
    default: return 0; // queue_notify
    }
  }

  constexpr actions write_legacy(std::uint64_t offset, unsigned width,
                                 std::uint64_t value) noexcept {
    namespace l = pci::legacy;
    const std::uint32_t config = l::config(msix_.is_enabled());
    if (offset >= config) return registers_.write_config(offset - config, width, value);
    if (l::width_at(offset, msix_.is_enabled()) != width) return refused(error::register_access);
    const auto number = static_cast<std::uint32_t>(value);
    switch (offset) {
    case l::driver_features: return write_driver_features_low(number);
    case l::queue_address: return write_queue_address(number);
    case l::queue_select: registers_.select_queue(number); return {};
    case l::queue_notify: return registers_.notify(number);
    case l::device_status: return write_status(static_cast<std::uint8_t>(number));
    case l::config_msix_vector: config_msix_vector_ = known(number); return {};
    case l::queue_msix_vector: return write_queue_msix_vector(number);
    default: return refused(error::register_access);
    }
  }

  // The device's side.

  constexpr actions process(std::uint16_t queue, std::uint32_t budget) noexcept {
    return registers_.process(queue, budget);
  }
  constexpr actions carry_out(const actions& due) noexcept { return registers_.carry_out(due); }

  /// The MSI-X messages to send for `due`, and those that were pending and have been unmasked; bit
  /// n: message n. None where MSI-X is not enabled: the ISR says it.
  constexpr std::uint64_t take_messages(const actions& due) noexcept {
    if (!msix_.is_enabled()) return 0;
    for (unsigned queue = 0; queue < transport_queues_max; ++queue)
      if (due.notifies(queue)) msix_.raise(queue_msix_vectors_[queue]);
    if (due.config_changed) msix_.raise(config_msix_vector_);
    // Messages say it; left set, it would raise the line when MSI-X is turned off.
    registers_.acknowledge(interrupt_reason::used_buffer);
    return msix_.take_due();
  }

  /// 0 resets the device, and no event has a vector.
  constexpr actions write_status(std::uint8_t bits) noexcept {
    const actions done = registers_.write_status(bits);
    if (bits == 0) unmap_vectors();
    return done;
  }

  [[nodiscard]] constexpr pci_registers_state state() const noexcept {
    pci_registers_state now{.device = registers_.state(),
                            .msix = msix_.state(),
                            .config_msix_vector = config_msix_vector_,
                            .config_generation = config_generation_};
    for (unsigned i = 0; i < transport_queues_max; ++i)
      now.queue_msix_vectors[i] = queue_msix_vectors_[i];
    return now;
  }
  /// Message control is the caller's to set, before. The device is not touched.
  constexpr void restore(const pci_registers_state& saved) noexcept {
    registers_.restore(saved.device);
    registers_.select_queue(saved.device.queue_select & 0xffff); // as wide as its register
    msix_.restore(saved.msix);
    config_msix_vector_ = known(saved.config_msix_vector);
    for (unsigned i = 0; i < transport_queues_max; ++i)
      queue_msix_vectors_[i] = known(saved.queue_msix_vectors[i]);
    config_generation_ = saved.config_generation;
    // The device may count on from another number: the next look sees a change.
    has_seen_generation_ = false;
  }

 private:
  using registers = device_registers<Device, M>;

  [[nodiscard]] constexpr std::uint32_t device_features_low() noexcept {
    const std::uint32_t selected = registers_.device_feature_select();
    registers_.select_device_features(0);
    const std::uint32_t low = registers_.device_features();
    registers_.select_device_features(selected);
    return low;
  }
  constexpr actions write_driver_features_low(std::uint32_t bits) noexcept {
    const std::uint32_t selected = registers_.driver_feature_select();
    registers_.select_driver_features(0);
    const actions done = registers_.write_driver_features(bits);
    registers_.select_driver_features(selected);
    return done;
  }
  constexpr actions write_queue_address(std::uint32_t page) noexcept {
    if (page == 0) return registers_.disable_queue();
    if (!has_queue()) return refused(error::invalid_queue_index);
    const std::uint32_t entries = std::bit_floor(queue_size_max());
    if (entries == 0) return refused(error::queue_unavailable);
    const guest_address base = guest_address{page} * pci::legacy::queue_alignment;
    const auto at = split::place_legacy(base, entries, pci::legacy::queue_alignment);
    return at ? registers_.enable_queue(at->layout) : refused(at.error());
  }

  [[nodiscard]] constexpr bool has_queue() const noexcept {
    return registers_.queue_select() < queue_count();
  }
  [[nodiscard]] constexpr std::uint32_t queue_size_max() const noexcept {
    const std::uint32_t n = registers_.queue_size_max();
    return n < max_queue_size ? n : max_queue_size;
  }
  /// A power of two or 0 until RING_PACKED is accepted, whatever was written before.
  [[nodiscard]] constexpr std::uint32_t queue_size() const noexcept {
    const std::uint32_t written = registers_.staged().size;
    const std::uint32_t n = written != 0 ? written : queue_size_max();
    return registers_.accepted().test(feature::ring_packed) ? n : std::bit_floor(n);
  }
  constexpr actions write_queue_size(std::uint32_t entries) noexcept {
    const bool is_packed = registers_.accepted().test(feature::ring_packed);
    if (has_queue() && (entries == 0 || entries > queue_size_max() ||
                        (!is_packed && !std::has_single_bit(entries))))
      return refused(error::invalid_queue_size);
    return registers_.stage_size(entries);
  }
  constexpr actions enable_queue() noexcept {
    queue_layout layout = registers_.staged();
    layout.size = queue_size();
    return registers_.enable_queue(layout);
  }
  constexpr actions reset_queue() noexcept {
    const actions done = registers_.reset_queue();
    if (done.failure == error::none) (void)write_queue_msix_vector(pci::no_vector);
    return done;
  }
  /// A vector that the device has, or no_vector.
  [[nodiscard]] constexpr std::uint16_t known(std::uint32_t vector) const noexcept {
    return vector < msix_.vectors() ? static_cast<std::uint16_t>(vector) : pci::no_vector;
  }
  constexpr void unmap_vectors() noexcept {
    config_msix_vector_ = pci::no_vector;
    for (std::uint16_t& vector : queue_msix_vectors_) vector = pci::no_vector;
    msix_.clear_pending();
  }
  [[nodiscard]] constexpr std::uint16_t queue_msix_vector() const noexcept {
    return has_queue() ? queue_msix_vectors_[registers_.queue_select()] : pci::no_vector;
  }
  constexpr actions write_queue_msix_vector(std::uint32_t vector) noexcept {
    if (!has_queue()) return refused(error::invalid_queue_index);
    queue_msix_vectors_[registers_.queue_select()] = known(vector);
    return {};
  }

  /// Moves on only when it is read, so that 8 bits tell any number of changes from none.
  constexpr std::uint8_t config_generation() noexcept {
    const std::uint32_t now = registers_.config_generation();
    if (!has_seen_generation_ || now != seen_generation_) ++config_generation_;
    has_seen_generation_ = true;
    seen_generation_ = now;
    return config_generation_;
  }

  [[nodiscard]] static constexpr queue_area area_at(std::uint64_t offset) noexcept {
    if (offset < pci::common_cfg::queue_driver) return queue_area::descriptor;
    return offset < pci::common_cfg::queue_device ? queue_area::driver : queue_area::device;
  }

  registers registers_;
  msix_table msix_;
  bool has_seen_generation_ = false;
  std::uint8_t config_generation_ = 0;
  std::uint16_t config_msix_vector_ = pci::no_vector;
  std::uint16_t queue_msix_vectors_[transport_queues_max]{};
  std::uint32_t seen_generation_ = 0;
};

} // namespace ballast
