// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <bit>
#include <cstdint>
#include <span>

namespace ballast {

/// The parts of a queue of the format that `features` say, one after the other.
[[nodiscard]] constexpr placement place_queue(guest_address base, std::uint32_t size,
                                              const feature_set& features) noexcept {
  return features.test(feature::ring_packed) ? packed::place(base, size) : split::place(base, size);
}

/// The driver's side of a virtqueue whose format the negotiated features choose at `start` or
/// `restore` (RING_PACKED); a `driver_queue`. The members are those of `split_driver` and
/// `packed_driver`, after one branch; where the format is known beforehand, use one of these.
template <guest_memory M, std::endian E = std::endian::little> class virtqueue_driver {
 public:
  /// `slots` must outlive the queue; its size bounds the queue size.
  constexpr explicit virtqueue_driver(std::span<driver_slot> slots) noexcept
      : split_(slots), packed_(slots) {}

  [[nodiscard]] constexpr bool is_packed() const noexcept { return is_packed_; }

  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0,
                               const indirect_tables& tables = {}) noexcept {
    detach();
    is_packed_ = features.test(feature::ring_packed);
    return visit([&](auto& q) { return q.start(memory, layout, features, first_index, tables); });
  }
  constexpr result<void> attach(M& memory, const queue_layout& layout, const feature_set& features,
                                const indirect_tables& tables = {}) noexcept {
    return visit([&](auto& q) { return q.attach(memory, layout, features, tables); });
  }
  constexpr void detach() noexcept {
    visit([](auto& q) { q.detach(); });
  }

  [[nodiscard]] constexpr bool is_attached() const noexcept {
    return visit([](auto& q) { return q.is_attached(); });
  }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept {
    return visit([](auto& q) { return q.size(); });
  }
  [[nodiscard]] constexpr std::uint32_t free_descriptors() const noexcept {
    return visit([](auto& q) { return q.free_descriptors(); });
  }
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept {
    return visit([](auto& q) { return q.in_flight(); });
  }
  [[nodiscard]] constexpr error cause() const noexcept {
    return visit([](auto& q) { return q.cause(); });
  }

  constexpr result<void> add(std::span<const buffer> readable, std::span<const buffer> writable,
                             std::uint64_t token) noexcept {
    return visit([&](auto& q) { return q.add(readable, writable, token); });
  }
  template <class Next>
  constexpr result<std::uint32_t> add_each(std::uint32_t count, Next&& next) noexcept {
    return visit([&](auto& q) { return q.add_each(count, next); });
  }
  constexpr void publish() noexcept {
    visit([](auto& q) { q.publish(); });
  }
  [[nodiscard]] constexpr bool should_notify() noexcept {
    return visit([](auto& q) { return q.should_notify(); });
  }
  [[nodiscard]] constexpr bool publish_and_ask() noexcept {
    return visit([](auto& q) { return q.publish_and_ask(); });
  }
  [[nodiscard]] constexpr std::uint32_t notification_data(std::uint16_t id) const noexcept {
    return visit([&](auto& q) { return q.notification_data(id); });
  }

  [[nodiscard]] constexpr result<used_buffer> pop_used() noexcept {
    return visit([](auto& q) { return q.pop_used(); });
  }
  template <class Handler>
  constexpr result<std::uint32_t> reclaim(std::uint32_t budget, Handler&& handle) noexcept {
    return visit([&](auto& q) { return q.reclaim(budget, handle); });
  }
  template <class Handler> constexpr void drain(Handler&& handle) noexcept {
    visit([&](auto& q) { q.drain(handle); });
  }

  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    return visit([](auto& q) { return q.enable_notifications(); });
  }
  constexpr void disable_notifications() noexcept {
    visit([](auto& q) { q.disable_notifications(); });
  }

  [[nodiscard]] constexpr result<driver_queue_state>
  save(std::span<driver_slot> slots) const noexcept {
    return visit([&](auto& q) { return q.save(slots); });
  }
  /// Errors: also `state_invalid` where the state is of the other format than `features` say.
  constexpr result<void> restore(M& memory, const queue_layout& layout, const feature_set& features,
                                 const driver_queue_state& state,
                                 std::span<const driver_slot> slots,
                                 const indirect_tables& tables = {}) noexcept {
    if (is_attached()) return error::already_attached;
    const bool was_packed = is_packed_;
    is_packed_ = features.test(feature::ring_packed);
    const auto restored =
        visit([&](auto& q) { return q.restore(memory, layout, features, state, slots, tables); });
    if (!restored) is_packed_ = was_packed;
    return restored;
  }

 private:
  template <class Use> [[gnu::always_inline]] constexpr decltype(auto) visit(Use&& use) noexcept {
    return is_packed_ ? use(packed_) : use(split_);
  }
  template <class Use>
  [[gnu::always_inline]] constexpr decltype(auto) visit(Use&& use) const noexcept {
    return is_packed_ ? use(packed_) : use(split_);
  }

  split_driver<M, E> split_;
  packed_driver<M, E> packed_;
  bool is_packed_ = false;
};

/// The device's side of a virtqueue whose format the negotiated features choose at `start` or
/// `restore` (RING_PACKED); a `device_queue`. The members are those of `split_device` and
/// `packed_device`, after one branch; where the format is known beforehand, use one of these.
template <guest_memory M, std::endian E = std::endian::little> class virtqueue_device {
 public:
  /// `storage` must outlive the queue and stay where it is.
  template <std::uint32_t N>
  constexpr explicit virtqueue_device(device_queue_storage<N>& storage) noexcept
      : split_(storage), packed_(storage) {}

  [[nodiscard]] constexpr bool is_packed() const noexcept { return is_packed_; }

  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0) noexcept {
    detach();
    is_packed_ = features.test(feature::ring_packed);
    return visit([&](auto& q) { return q.start(memory, layout, features, first_index); });
  }
  constexpr void reset() noexcept {
    visit([](auto& q) { q.reset(); });
  }
  constexpr result<void> attach(M& memory, const queue_layout& layout,
                                const feature_set& features) noexcept {
    return visit([&](auto& q) { return q.attach(memory, layout, features); });
  }
  constexpr void detach() noexcept {
    visit([](auto& q) { q.detach(); });
  }

  [[nodiscard]] constexpr bool is_attached() const noexcept {
    return visit([](auto& q) { return q.is_attached(); });
  }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept {
    return visit([](auto& q) { return q.size(); });
  }
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept {
    return visit([](auto& q) { return q.in_flight(); });
  }
  [[nodiscard]] constexpr error cause() const noexcept {
    return visit([](auto& q) { return q.cause(); });
  }

  [[nodiscard]] constexpr result<chain> pop_available() noexcept {
    return visit([](auto& q) { return q.pop_available(); });
  }
  template <class Handler>
  constexpr result<consumed> consume(std::uint32_t budget, Handler&& handle) noexcept {
    return visit([&](auto& q) { return q.consume(budget, handle); });
  }
  template <class Handler> constexpr result<consumed> consume_one(Handler&& handle) noexcept {
    return visit([&](auto& q) { return q.consume_one(handle); });
  }
  constexpr result<void> push_used(chain_id id, std::uint32_t length) noexcept {
    return visit([&](auto& q) { return q.push_used(id, length); });
  }
  constexpr result<void> unpop(std::uint32_t count) noexcept {
    return visit([&](auto& q) { return q.unpop(count); });
  }
  [[nodiscard]] constexpr result<chain_id> held_chain(std::uint16_t head) const noexcept {
    return visit([&](auto& q) { return q.held_chain(head); });
  }
  constexpr void fail(error why) noexcept {
    visit([&](auto& q) { q.fail(why); });
  }

  constexpr void publish() noexcept {
    visit([](auto& q) { q.publish(); });
  }
  [[nodiscard]] constexpr bool should_notify() noexcept {
    return visit([](auto& q) { return q.should_notify(); });
  }
  [[nodiscard]] constexpr bool publish_and_ask() noexcept {
    return visit([](auto& q) { return q.publish_and_ask(); });
  }
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    return visit([](auto& q) { return q.enable_notifications(); });
  }
  constexpr void disable_notifications() noexcept {
    visit([](auto& q) { q.disable_notifications(); });
  }

  [[nodiscard]] constexpr result<device_queue_state>
  save(std::span<held_head> held) const noexcept {
    return visit([&](auto& q) { return q.save(held); });
  }
  /// Errors: also `state_invalid` where the state is of the other format than `features` say.
  constexpr result<void> restore(M& memory, const queue_layout& layout, const feature_set& features,
                                 const device_queue_state& state,
                                 std::span<const held_head> held) noexcept {
    const bool was_packed = is_packed_;
    is_packed_ = features.test(feature::ring_packed);
    const auto restored =
        visit([&](auto& q) { return q.restore(memory, layout, features, state, held); });
    if (!restored)
      is_packed_ = was_packed;
    else if (was_packed != is_packed_)
      was_packed ? packed_.detach() : split_.detach();
    return restored;
  }

 private:
  template <class Use> [[gnu::always_inline]] constexpr decltype(auto) visit(Use&& use) noexcept {
    return is_packed_ ? use(packed_) : use(split_);
  }
  template <class Use>
  [[gnu::always_inline]] constexpr decltype(auto) visit(Use&& use) const noexcept {
    return is_packed_ ? use(packed_) : use(split_);
  }

  split_device<M, E> split_;
  packed_device<M, E> packed_;
  bool is_packed_ = false;
};

} // namespace ballast
