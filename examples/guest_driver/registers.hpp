// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace guest_driver {

/// What a kernel has: registers at an address.
struct mmio {
  std::uintptr_t base = 0;

  [[nodiscard]] std::uint32_t read(std::uint32_t at) const noexcept {
    return *reinterpret_cast<const volatile std::uint32_t*>(base + at);
  }
  void write(std::uint32_t at, std::uint32_t value) noexcept {
    *reinterpret_cast<volatile std::uint32_t*>(base + at) = value;
  }
};

/// The registers of virtio-mmio, version 2, as a ballast::driver_transport.
/// Spec: "Virtio Over MMIO / MMIO Device Register Layout".
template <class Bus> class registers {
 public:
  explicit registers(Bus& bus) noexcept : bus_(&bus) {}

  [[nodiscard]] std::uint32_t device_id() noexcept { return bus_->read(0x008); }
  [[nodiscard]] ballast::feature_set device_features() noexcept {
    ballast::feature_set offered;
    for (std::uint32_t word = 0; word < 2; ++word) {
      bus_->write(0x014, word);
      offered.set_word32(word, bus_->read(0x010));
    }
    return offered;
  }
  void set_driver_features(const ballast::feature_set& accepted) noexcept {
    for (std::uint32_t word = 0; word < 2; ++word) {
      bus_->write(0x024, word);
      bus_->write(0x020, accepted.word32(word));
    }
  }
  [[nodiscard]] std::uint8_t status() noexcept {
    return static_cast<std::uint8_t>(bus_->read(0x070));
  }
  void set_status(std::uint8_t bits) noexcept { bus_->write(0x070, bits); }

  [[nodiscard]] std::uint32_t queue_size_max(std::uint16_t queue) noexcept {
    bus_->write(0x030, queue);
    return bus_->read(0x034);
  }
  [[nodiscard]] ballast::result<void> set_up_queue(std::uint16_t queue,
                                                   const ballast::queue_layout& at) noexcept {
    bus_->write(0x030, queue);
    bus_->write(0x038, at.size);
    write_address(0x080, at.descriptor_area);
    write_address(0x090, at.driver_area);
    write_address(0x0a0, at.device_area);
    bus_->write(0x044, 1);
    return {};
  }
  [[nodiscard]] ballast::result<void> reset_queue(std::uint16_t) noexcept {
    return ballast::error::not_negotiated; // RING_RESET is never accepted
  }
  void notify(std::uint16_t queue) noexcept { bus_->write(0x050, queue); }

  [[nodiscard]] std::uint32_t config_generation() noexcept { return bus_->read(0x0fc); }
  /// The fields of a balloon are words.
  [[nodiscard]] ballast::result<void> read_config(std::uint32_t offset,
                                                  std::span<std::byte> to) noexcept {
    for (std::uint32_t i = 0; i < to.size(); ++i)
      to[i] = static_cast<std::byte>(bus_->read(0x100 + offset + i / 4 * 4) >> (8 * (i % 4)));
    return {};
  }
  [[nodiscard]] ballast::result<void> write_config(std::uint32_t offset,
                                                   std::span<const std::byte> from) noexcept {
    for (std::uint32_t i = 0; i + 4 <= from.size(); i += 4) {
      std::uint32_t word = 0;
      for (std::uint32_t k = 4; k-- > 0;)
        word = word << 8 | std::to_integer<std::uint32_t>(from[i + k]);
      bus_->write(0x100 + offset + i, word);
    }
    return {};
  }

  /// Why the interrupt came: bit 0, a buffer was used; bit 1, the configuration changed.
  [[nodiscard]] std::uint32_t acknowledge_interrupt() noexcept {
    const std::uint32_t why = bus_->read(0x060);
    bus_->write(0x064, why);
    return why;
  }

 private:
  void write_address(std::uint32_t at, std::uint64_t address) noexcept {
    bus_->write(at, static_cast<std::uint32_t>(address));
    bus_->write(at + 4, static_cast<std::uint32_t>(address >> 32));
  }

  Bus* bus_;
};

} // namespace guest_driver
