// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/device.hpp>
#include <ballast/memory/direct_memory.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/in_process_transport.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace guest_driver {

/// Stands in for the machine: a balloon device behind the registers of virtio-mmio, in the same
/// address space. A VMM has its guest's memory elsewhere, and checks what leads there.
class machine {
 public:
  explicit machine(std::uint32_t pages) noexcept : device_(host_, {.target_pages_max = pages}) {}

  [[nodiscard]] std::uint32_t read(std::uint32_t at) noexcept {
    switch (at) {
    case 0x000: return 0x74726976; // "virt"
    case 0x004: return 2;
    case 0x008: return transport_.device_id();
    case 0x010: return transport_.device_features().word32(features_word_);
    case 0x034: return transport_.queue_size_max(queue_);
    case 0x060: return interrupt_;
    case 0x070: return transport_.status();
    case 0x0fc: return transport_.config_generation();
    default: break;
    }
    std::byte raw[4]{};
    if (at < 0x100 || !transport_.read_config(at - 0x100, raw)) return 0;
    std::uint32_t word = 0;
    for (std::size_t k = 4; k-- > 0;) word = word << 8 | std::to_integer<std::uint32_t>(raw[k]);
    return word;
  }

  void write(std::uint32_t at, std::uint32_t value) noexcept {
    switch (at) {
    case 0x014: features_word_ = value; break;
    case 0x020:
      accepted_.set_word32(accepted_word_, value);
      transport_.set_driver_features(accepted_);
      break;
    case 0x024: accepted_word_ = value; break;
    case 0x030: queue_ = static_cast<std::uint16_t>(value); break;
    case 0x038: layout_.size = value; break;
    case 0x044: (void)transport_.set_up_queue(queue_, layout_); break;
    case 0x050: transport_.notify(static_cast<std::uint16_t>(value)); break;
    case 0x064: interrupt_ &= ~value; break;
    case 0x070: transport_.set_status(static_cast<std::uint8_t>(value)); break;
    case 0x080: set_low(layout_.descriptor_area, value); break;
    case 0x084: set_high(layout_.descriptor_area, value); break;
    case 0x090: set_low(layout_.driver_area, value); break;
    case 0x094: set_high(layout_.driver_area, value); break;
    case 0x0a0: set_low(layout_.device_area, value); break;
    case 0x0a4: set_high(layout_.device_area, value); break;
    default: {
      std::byte raw[4]{};
      for (std::size_t k = 0; k < 4; ++k) raw[k] = static_cast<std::byte>(value >> (8 * k));
      if (at >= 0x100) (void)transport_.write_config(at - 0x100, raw);
    }
    }
  }

  void set_target(std::uint32_t pages) noexcept { raise(device_.set_target(pages)); }

  /// The device works; whether its interrupt line is up then.
  [[nodiscard]] bool run() noexcept {
    ballast::actions due = transport_.take_actions();
    for (std::uint64_t queues = due.more_work | transport_.take_notified(); queues != 0;) {
      const ballast::actions done =
          transport_.process(static_cast<std::uint16_t>(std::countr_zero(queues)), 64);
      queues = (queues & (queues - 1)) | done.more_work;
      due |= done;
    }
    raise(due);
    return interrupt_ != 0;
  }

  [[nodiscard]] std::uint32_t actual() const noexcept { return device_.actual(); }
  [[nodiscard]] std::uint64_t bytes_taken() const noexcept { return host_.bytes_taken; }

 private:
  struct host {
    std::uint64_t bytes_taken = 0;
    bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
      bytes_taken += size;
      // What madvise leaves behind.
      __builtin_memset(reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)), 0, size);
      return true;
    }
    void provide(ballast::guest_address, std::uint64_t size) noexcept { bytes_taken -= size; }
  };

  void raise(const ballast::actions& due) noexcept {
    interrupt_ |= (due.notify_queues != 0 ? 1u : 0u) | (due.config_changed ? 2u : 0u);
  }
  static void set_low(std::uint64_t& address, std::uint32_t value) noexcept {
    address = (address >> 32 << 32) | value;
  }
  static void set_high(std::uint64_t& address, std::uint32_t value) noexcept {
    address = (address & 0xffff'ffff) | std::uint64_t{value} << 32;
  }

  ballast::direct_memory memory_;
  host host_;
  ballast::balloon::device<ballast::direct_memory, host> device_;
  ballast::in_process_transport<decltype(device_), ballast::direct_memory> transport_{device_,
                                                                                      memory_};
  ballast::queue_layout layout_;
  ballast::feature_set accepted_;
  std::uint32_t features_word_ = 0, accepted_word_ = 0, interrupt_ = 0;
  std::uint16_t queue_ = 0;
};

} // namespace guest_driver
