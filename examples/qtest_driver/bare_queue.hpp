// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest.hpp"
#include "interrupts.hpp"
#include "options.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/request_queue.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/device_registers.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/negotiation.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

namespace qtest_driver {

namespace balloon = ballast::balloon;

/// A device of which the inflateq is used and nothing else, without a balloon driver: for what a
/// driver never does.
template <ballast::guest_memory M, ballast::driver_transport T> class bare_queue {
 public:
  static constexpr std::uint32_t size_max = 128; ///< of QEMU's inflateq

  bare_queue(M& memory, T& device, interrupts<T>& inbox, const options& chosen)
      : memory_(&memory), device_(&device), inbox_(&inbox), chosen_(&chosen) {}
  bare_queue(const bare_queue&) = delete;
  bare_queue& operator=(const bare_queue&) = delete;

  /// Resets the device and brings it to DRIVER_OK, with a queue of up to `size` entries.
  [[nodiscard]] ballast::result<void> start(std::uint32_t size, bool wants_ring_reset = false) {
    ballast::feature_set required, supported;
    if (chosen_->is_packed) required.set(ballast::feature::ring_packed);
    if (chosen_->has_event_idx) supported.set(ballast::feature::event_idx);
    if (wants_ring_reset) required.set(ballast::feature::ring_reset);
    const auto agreed = negotiate(
        *device_,
        {.device_id = balloon::device_id, .supported = supported | required, .required = required});
    if (!agreed) return agreed.error();
    features_ = *agreed;
    if (const auto ready = set_up(size); !ready) return ready;
    if (const auto ok = set_driver_ok(*device_); !ok) return ok;
    (void)inbox_->wait(qemu::milliseconds(0)); // what was before is over
    return {};
  }

  /// Gives the queue a place and to the device. Before DRIVER_OK, or after a reset of the queue.
  [[nodiscard]] ballast::result<void> set_up(std::uint32_t size) {
    const std::uint32_t most = device_->queue_size_max(0);
    const std::uint32_t entries = most < size ? most : size;
    if constexpr (requires { T::queue_alignment; }) { // and the size is the device's, too
      const auto legacy = ballast::split::place_legacy(place::raw_queue, most, T::queue_alignment);
      if (!legacy) return legacy.error();
      at_ = legacy->layout;
    } else {
      at_ = ballast::place_queue(place::raw_queue, entries, features_).layout;
    }
    ring_.detach();
    if (const auto started = ring_.start(*memory_, at_, features_); !started) return started;
    return device_->set_up_queue(0, at_);
  }

  /// Whether a page goes into the balloon; `notifies`: or whether it would without a notification.
  bool inflate_one(bool notifies = true) {
    const ballast::guest_address pfn_at = place::raw_queue + (64 << 10);
    const ballast::le32 pfn = static_cast<std::uint32_t>(place::reported >> balloon::pfn_shift);
    const ballast::buffer data{pfn_at, sizeof(pfn)};
    if (!memory_->write(pfn_at, std::as_bytes(std::span(&pfn, 1))) || !ring_.add({&data, 1}, {}, 0))
      return false;
    ring_.publish();
    if (notifies && ring_.should_notify()) device_->notify(0);
    return is_used(notifies ? std::chrono::seconds(2) : std::chrono::milliseconds(20));
  }

  /// Whether the device returns a buffer in time, and one that it was given: see `cause`.
  [[nodiscard]] bool is_used(qemu::milliseconds time) {
    const auto until = qemu::clock::now() + time;
    do {
      const auto used = ring_.pop_used();
      if (used || used.error() != ballast::error::queue_empty) return used.has_value();
    } while (qemu::clock::now() < until);
    return false;
  }
  /// Why the ring is broken, by what the device did.
  [[nodiscard]] ballast::error cause() const noexcept { return ring_.cause(); }

  [[nodiscard]] const ballast::queue_layout& layout() const noexcept { return at_; }
  [[nodiscard]] T& device() noexcept { return *device_; }
  [[nodiscard]] interrupts<T>& inbox() noexcept { return *inbox_; }

  // What a driver would write.

  void store_descriptor(std::uint32_t i, ballast::split::descriptor_fields what) {
    namespace f = ballast::split;
    store(at_.descriptor_area + f::descriptor_address(i), little(std::uint64_t{place::reported}));
    store(at_.descriptor_area + f::descriptor_rest(i), f::pack<std::endian::little>(what));
  }
  void store_descriptor(std::uint32_t i, ballast::packed::descriptor_fields what) {
    namespace f = ballast::packed;
    store(at_.descriptor_area + f::descriptor_address(i), little(std::uint64_t{place::reported}));
    store(at_.descriptor_area + f::descriptor_rest(i), f::pack<std::endian::little>(what));
  }
  void store_available(std::uint16_t head, std::uint16_t index) {
    store(at_.driver_area + ballast::split::available_entry(0), little(head));
    store(at_.driver_area + ballast::split::available_index, little(index));
  }

 private:
  template <class V> [[nodiscard]] static V little(V value) noexcept {
    return ballast::to_order<std::endian::little>(value);
  }
  /// `value` as it is to lie in memory.
  template <class V> void store(ballast::guest_address address, V value) {
    (void)memory_->write(address, std::as_bytes(std::span(&value, 1)));
  }

  M* memory_;
  T* device_;
  interrupts<T>* inbox_;
  const options* chosen_;
  ballast::feature_set features_;
  ballast::queue_layout at_;
  ballast::driver_slot slots_[size_max]{};
  ballast::virtqueue_driver<M> ring_{slots_};
};

} // namespace qtest_driver
