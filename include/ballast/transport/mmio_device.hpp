// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/device_registers.hpp>
#include <ballast/transport/mmio.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstdint>
#include <span>

namespace ballast {

/// What the registers hold, for whoever saves a device or goes on after its process has died.
struct mmio_device_state {
  device_registers_state registers;
  std::uint32_t guest_page_size = 0; ///< bytes; legacy

  friend constexpr bool operator==(const mmio_device_state&,
                                   const mmio_device_state&) noexcept = default;
};

/// A device behind virtio-mmio registers, version 2 or the legacy version 1.
///
///     mmio_device bus(device, ram);                  // both outlive it
///     value = bus.read(offset, width);               // the guest's accesses, as they come:
///     due = bus.write(offset, width, value);         // due.more_work: a notification
///     due = bus.process(queue, budget);              // for each queue in due.more_work
///     due = bus.carry_out(device.set_target(pages)); // what was called on the device itself
///     set_line(bus.is_interrupting());               // after each of these but `read`
///
/// Whatever a guest accesses, nothing breaks. A read that is not one of a register that can be
/// read, with 4 bytes at a multiple of 4, gives 0; such a write is refused with `register_access`
/// and does nothing, as is a value that the register has no use for. The configuration, from 0x100
/// on, is accessed with 1, 2, 4 or 8 bytes at any offset; what passes its end reads all ones, and
/// is refused to be written. There is no shared memory: its length and base read all ones, whatever
/// the version.
///
/// Features that mmio does not carry out are not offered; a legacy device offers the first 32, and
/// so neither VERSION_1 nor packed rings. Its rings are in the byte order that the device was made
/// for. GuestPageSize survives a reset: Linux writes it once, before the first.
/// Ordering: `is_interrupting` and reads of the configuration may come from any thread, as far as
/// the device allows; the caller serialises the rest. Spec: "Virtio Over MMIO".
template <class Device, guest_memory M>
  requires device_model<Device, M>
class mmio_device {
 public:
  /// What VendorID reads.
  static constexpr std::uint32_t vendor_id = 0x54534c42; // "BLST"

  constexpr mmio_device(Device& device, M& memory,
                        mmio_version version = mmio_version::modern) noexcept
      : version_(version), registers_(device, memory, unsupported_by(version)) {}

  /// `width`: in bytes. All but the value of a configuration field is in the lower 32 bits.
  [[nodiscard]] constexpr std::uint64_t read(std::uint64_t offset, unsigned width) const noexcept {
    if (offset >= mmio_register::config)
      return registers_.read_config(offset - mmio_register::config, width);
    if (width != 4) return 0;
    switch (offset) {
    case mmio_register::magic_value: return mmio_magic;
    case mmio_register::version: return static_cast<std::uint32_t>(version_);
    case mmio_register::device_id: return registers_.device_id();
    case mmio_register::vendor_id: return vendor_id;
    case mmio_register::device_features: return registers_.device_features();
    case mmio_register::queue_size_max: return registers_.queue_size_max();
    case mmio_register::interrupt_status: return registers_.interrupt_status();
    case mmio_register::status: return registers_.status();
    // Of a legacy device too: Linux asks without a look at the version, and takes 0 for a region.
    case mmio_register::shm_length_low:
    case mmio_register::shm_length_high:
    case mmio_register::shm_base_low:
    case mmio_register::shm_base_high: return lower;
    default: return is_legacy() ? read_legacy(offset) : read_modern(offset);
    }
  }

  /// Does what a write of a register does; `failure` says why one was refused. `more_work`: queues
  /// to process now, because the driver notified or is ready.
  /// Refused: `register_access`, `config_out_of_range`, and what `device_registers` says.
  constexpr actions write(std::uint64_t offset, unsigned width, std::uint64_t value) noexcept {
    if (offset >= mmio_register::config)
      return registers_.write_config(offset - mmio_register::config, width, value);
    if (width != 4) return refused(error::register_access);
    const auto word = static_cast<std::uint32_t>(value);
    switch (offset) {
    case mmio_register::device_features_select: registers_.select_device_features(word); break;
    case mmio_register::driver_features_select: registers_.select_driver_features(word); break;
    case mmio_register::queue_select: registers_.select_queue(word); break;
    case mmio_register::interrupt_acknowledge: registers_.acknowledge(word); break;
    case mmio_register::shm_select: break; // there is none to select
    case mmio_register::driver_features: return registers_.write_driver_features(word);
    case mmio_register::queue_size: return registers_.stage_size(word);
    case mmio_register::queue_notify: return registers_.notify(word);
    case mmio_register::status:
      if (word > UINT8_MAX) return refused(error::register_access);
      return registers_.write_status(static_cast<std::uint8_t>(word));
    default: return is_legacy() ? write_legacy(offset, word) : write_modern(offset, word);
    }
    return {};
  }

  /// Handles at most `budget` buffers of a queue; nothing unless the device is live.
  /// Refused: `invalid_queue_index`: no such queue, or not one that is ready.
  constexpr actions process(std::uint16_t queue, std::uint32_t budget) noexcept {
    return registers_.process(queue, budget);
  }
  /// For what the owner of the device called on it directly.
  constexpr actions carry_out(const actions& due) noexcept { return registers_.carry_out(due); }

  /// The level of the interrupt line: high until the driver has acknowledged every reason.
  [[nodiscard]] constexpr bool is_interrupting() const noexcept {
    return registers_.interrupt_status() != 0;
  }

  [[nodiscard]] constexpr bool is_legacy() const noexcept {
    return version_ == mmio_version::legacy;
  }
  [[nodiscard]] constexpr bool is_live() const noexcept { return registers_.is_live(); }
  /// What the driver has accepted so far.
  [[nodiscard]] constexpr const feature_set& accepted() const noexcept {
    return registers_.accepted();
  }
  /// Where the queues are; size 0: not ready.
  [[nodiscard]] constexpr std::span<const queue_layout> queues() const noexcept {
    return registers_.queues();
  }

  [[nodiscard]] constexpr mmio_device_state state() const noexcept {
    return {registers_.state(), guest_page_size_};
  }
  /// Goes on from a state that was this device's. The device itself is not touched: whoever calls
  /// this lets it go on too.
  constexpr void restore(const mmio_device_state& saved) noexcept {
    registers_.restore(saved.registers);
    guest_page_size_ = saved.guest_page_size;
  }

 private:
  static constexpr std::uint64_t lower = 0xffff'ffff;

  [[nodiscard]] static constexpr feature_set unsupported_by(mmio_version version) noexcept {
    feature_set without{feature::sr_iov, feature::notif_config_data, feature::admin_vq,
                        feature::suspend};
    if (version == mmio_version::legacy)
      for (unsigned bit = 32; bit < feature_set::capacity; ++bit) without.set(bit);
    return without;
  }

  [[nodiscard]] constexpr std::uint64_t read_modern(std::uint64_t offset) const noexcept {
    switch (offset) {
    case mmio_register::queue_ready: return registers_.is_queue_enabled() ? 1 : 0;
    case mmio_register::config_generation: return registers_.config_generation();
    default: return 0; // QueueReset too: a reset is over before the write is
    }
  }

  constexpr actions write_modern(std::uint64_t offset, std::uint32_t word) noexcept {
    switch (offset) {
    case mmio_register::queue_ready:
      if (word > 1) return refused(error::register_access);
      return word == 1 ? registers_.enable_queue() : registers_.disable_queue();
    case mmio_register::queue_reset:
      return word == 1 ? registers_.reset_queue() : refused(error::register_access);
    case mmio_register::queue_descriptor_low: return stage(queue_area::descriptor, word);
    case mmio_register::queue_descriptor_high: return stage_high(queue_area::descriptor, word);
    case mmio_register::queue_driver_low: return stage(queue_area::driver, word);
    case mmio_register::queue_driver_high: return stage_high(queue_area::driver, word);
    case mmio_register::queue_device_low: return stage(queue_area::device, word);
    case mmio_register::queue_device_high: return stage_high(queue_area::device, word);
    default: return refused(error::register_access);
    }
  }
  constexpr actions stage(queue_area area, std::uint32_t word) noexcept {
    return registers_.stage_area(area, word, lower);
  }
  constexpr actions stage_high(queue_area area, std::uint32_t word) noexcept {
    return registers_.stage_area(area, std::uint64_t{word} << 32, ~lower);
  }

  // A legacy queue's page number and alignment are kept where the addresses of its descriptor and
  // device area would be.

  [[nodiscard]] constexpr std::uint64_t read_legacy(std::uint64_t offset) const noexcept {
    if (offset != mmio_register::queue_pfn || !registers_.is_queue_enabled()) return 0;
    return registers_.area(queue_area::descriptor);
  }

  constexpr actions write_legacy(std::uint64_t offset, std::uint32_t word) noexcept {
    switch (offset) {
    case mmio_register::guest_page_size:
      if (!std::has_single_bit(word)) return refused(error::register_access);
      guest_page_size_ = word;
      return {};
    case mmio_register::queue_align: return registers_.stage_area(queue_area::device, word, lower);
    case mmio_register::queue_pfn:
      return word == 0 ? registers_.disable_queue() : enable_legacy(word);
    default: return refused(error::register_access);
    }
  }

  constexpr actions enable_legacy(std::uint32_t pfn) noexcept {
    if (const actions kept = stage(queue_area::descriptor, pfn); kept.failure != error::none)
      return kept;
    if (guest_page_size_ == 0) return refused(error::wrong_state);
    const queue_layout staged = registers_.staged();
    const std::uint64_t base = std::uint64_t{pfn} * guest_page_size_;
    const auto layout = mmio_legacy_layout(base, staged.size, staged.device_area);
    if (!layout) return refused(layout.error());
    return registers_.enable_queue(*layout);
  }

  mmio_version version_;
  std::uint32_t guest_page_size_ = 0;
  device_registers<Device, M> registers_;
};

} // namespace ballast
