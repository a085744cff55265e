// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// What scripted drivers do to registers and memory; shares nothing with the library's negotiation.
/// Rings lie at `base` and in steps of 0x400 behind it, buffers from 0x1000 behind it on: 3 pages.
template <class T> class driver_registers {
 public:
  static constexpr std::uint32_t queue_size = 16;

  constexpr driver_registers(T& transport, ballast::guest_address base) noexcept
      : transport_(&transport), base_(base) {}

  [[nodiscard]] constexpr ballast::guest_address data() const noexcept { return base_ + 0x1000; }
  template <std::size_t N>
  [[nodiscard]] static constexpr std::span<ballast::driver_slot>
  slots(std::array<ballast::driver_slot, N>& all, std::size_t queue) noexcept {
    return std::span(all).subspan(queue * queue_size, queue_size);
  }

  /// Resets the device; what it offers of `known`, and VERSION_1.
  constexpr ballast::feature_set begin(const ballast::feature_set& known) noexcept {
    transport_->set_status(0);
    transport_->set_status(1);
    transport_->set_status(3);
    return transport_->device_features() & known.with(ballast::feature::version_1);
  }
  constexpr bool accept(const ballast::feature_set& accepted) noexcept {
    features_ = accepted;
    transport_->set_driver_features(accepted);
    transport_->set_status(11);
    return (transport_->status() & 8) != 0;
  }
  template <ballast::guest_memory M>
  constexpr bool find_queue(M& memory, ballast::split_driver<M>& ring,
                            std::uint16_t index) noexcept {
    const std::uint32_t max = transport_->queue_size_max(index);
    if (max == 0) return false;
    const auto at =
        ballast::split::place(base_ + index * 0x400u, max < queue_size ? max : queue_size).layout;
    return ring.start(memory, at, features_).has_value() &&
           transport_->set_up_queue(index, at).has_value();
  }
  /// virtqueue_get_buf(): asks for the next notification too, whenever it looks.
  template <ballast::guest_memory M>
  static constexpr bool get_buf(ballast::split_driver<M>& ring) noexcept {
    const bool came = ring.pop_used().has_value();
    (void)ring.enable_notifications();
    return came;
  }
  constexpr void driver_ok() noexcept { transport_->set_status(15); }

  [[nodiscard]] constexpr std::uint32_t read_field(std::uint32_t offset) noexcept {
    std::array<std::byte, 4> raw{};
    (void)transport_->read_config(offset, raw);
    return std::bit_cast<ballast::le32>(raw);
  }
  constexpr void write_field(std::uint32_t offset, std::uint32_t value) noexcept {
    const auto raw = std::bit_cast<std::array<std::byte, 4>>(ballast::le32(value));
    (void)transport_->write_config(offset, raw);
  }

  /// Writes a number into the buffer.
  template <class W, ballast::guest_memory M>
  constexpr void put(M& memory, std::uint64_t offset, W value) noexcept {
    const auto raw = std::bit_cast<std::array<std::byte, sizeof(W)>>(
        ballast::word<W, std::endian::little>(value));
    (void)memory.write(data() + offset, raw);
  }

 private:
  T* transport_;
  ballast::guest_address base_;
  ballast::feature_set features_;
};

} // namespace ballast_test
