// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/device_queue.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>

using namespace ballast;

namespace {

using ram_type = array_memory<0x400>;

// ---- the concept

static_assert(device_queue<split_device<ram_type>, ram_type>);
static_assert(device_queue<packed_device<ram_type>, ram_type>);
static_assert(device_queue<split_device<ram_type, std::endian::big>, ram_type>);
static_assert(device_queue<packed_device<ram_type, std::endian::big>, ram_type>);
static_assert(!device_queue<split_driver<ram_type>, ram_type>);
static_assert(!device_queue<packed_driver<ram_type>, ram_type>);
static_assert(!device_queue<const packed_device<ram_type>, ram_type>);
static_assert(!device_queue<packed_device<ram_type>, array_memory<16>>); // another memory
static_assert(!device_queue<packed_device<ram_type>, const ram_type>);
static_assert(!device_queue<packed_device<ram_type>, int>);
static_assert(!device_queue<int, ram_type>);

/// All members that a device's queue has, but one. In its place there is none, or one that is
/// nearly the same.
template <int Lacks, bool HasAnother> struct incomplete {
  using features = const feature_set&;
  using layout = const queue_layout&;
  using state = const device_queue_state&;
  using saved = std::span<const held_head>;

  // clang-format off
  result<void> start(ram_type&, layout, features, std::uint16_t) noexcept requires (Lacks != 1);
  void reset() noexcept requires (Lacks != 2);
  result<void> attach(ram_type&, layout, features) noexcept requires (Lacks != 3);
  void detach() noexcept requires (Lacks != 4);
  bool is_attached() const noexcept requires (Lacks != 5);
  std::uint32_t size() const noexcept requires (Lacks != 6);
  std::uint32_t in_flight() const noexcept requires (Lacks != 7);
  error cause() const noexcept requires (Lacks != 8);
  result<chain> pop_available() noexcept requires (Lacks != 9);
  template <class H> result<consumed> consume(std::uint32_t, H&&) noexcept requires (Lacks != 10);
  template <class H> result<consumed> consume_one(H&&) noexcept requires (Lacks != 11);
  result<void> push_used(chain_id, std::uint32_t) noexcept requires (Lacks != 12);
  result<void> unpop(std::uint32_t) noexcept requires (Lacks != 13);
  result<chain_id> held_chain(std::uint16_t) const noexcept requires (Lacks != 14);
  void fail(error) noexcept requires (Lacks != 15);
  void publish() noexcept requires (Lacks != 16);
  bool should_notify() noexcept requires (Lacks != 17);
  bool publish_and_ask() noexcept requires (Lacks != 18);
  bool enable_notifications() noexcept requires (Lacks != 19);
  void disable_notifications() noexcept requires (Lacks != 20);
  result<device_queue_state> save(std::span<held_head>) const noexcept requires (Lacks != 21);
  result<void> restore(ram_type&, layout, features, state, saved) noexcept requires (Lacks != 22);

  void start(ram_type&, layout, features, std::uint16_t) noexcept requires (HasAnother && Lacks == 1);
  void reset() requires (HasAnother && Lacks == 2);
  result<void> attach(ram_type&, layout, features) requires (HasAnother && Lacks == 3);
  void detach() requires (HasAnother && Lacks == 4);
  bool is_attached() noexcept requires (HasAnother && Lacks == 5); // not const
  std::uint64_t size() const noexcept requires (HasAnother && Lacks == 6);
  int in_flight() const noexcept requires (HasAnother && Lacks == 7);
  int cause() const noexcept requires (HasAnother && Lacks == 8);
  chain pop_available() noexcept requires (HasAnother && Lacks == 9);
  template <class H> result<consumed> consume(std::uint32_t, H&&) requires (HasAnother && Lacks == 10);
  template <class H> consumed consume_one(H&&) noexcept requires (HasAnother && Lacks == 11);
  void push_used(chain_id, std::uint32_t) noexcept requires (HasAnother && Lacks == 12);
  bool unpop(std::uint32_t) noexcept requires (HasAnother && Lacks == 13);
  chain_id held_chain(std::uint16_t) const noexcept requires (HasAnother && Lacks == 14);
  void fail() noexcept requires (HasAnother && Lacks == 15);
  void publish() requires (HasAnother && Lacks == 16);
  void should_notify() noexcept requires (HasAnother && Lacks == 17);
  int publish_and_ask() noexcept requires (HasAnother && Lacks == 18);
  void enable_notifications() noexcept requires (HasAnother && Lacks == 19);
  void disable_notifications(int) noexcept requires (HasAnother && Lacks == 20);
  result<device_queue_state> save(std::span<held_head>) noexcept requires (HasAnother && Lacks == 21);
  result<void> restore(ram_type&, layout, features, state) noexcept requires (HasAnother && Lacks == 22);
  // clang-format on
};

template <bool HasAnother, int... N> constexpr int complete_ones(std::integer_sequence<int, N...>) {
  return (0 + ... + int{device_queue<incomplete<N + 1, HasAnother>, ram_type>});
}
static_assert(complete_ones<false>(std::make_integer_sequence<int, 22>{}) == 0);
static_assert(complete_ones<true>(std::make_integer_sequence<int, 22>{}) == 0);
static_assert(complete_ones<false>(std::make_integer_sequence<int, 23>{}) == 1); // lacks nothing

// ---- a device written against the concept

/// Pops, keeps, gives back, returns: the same for every format.
template <class Device, class Driver> constexpr void serves(auto check, const queue_layout& at) {
  ram_type ram;
  std::array<driver_slot, 4> slots{};
  device_queue_storage<4> storage;
  Driver driver(slots);
  Device device(storage);
  static_assert(device_queue<Device, ram_type>);
  const feature_set features{};
  check(driver.start(ram, at, features).has_value());
  check(device.start(ram, at, features).has_value());
  std::uint64_t sent = 0, taken = 0;
  for (int round = 0; round < 4; ++round) {
    const buffer parts[] = {{0x100, 1}, {0x200, 2}, {0x300, 3}};
    const std::span<const buffer> all(parts);
    check(driver.add(all.first(1), all.subspan(1), sent++).has_value());
    check(driver.add({}, all.first(1), sent++).has_value());
    driver.publish();
    check(device.pop_available()->readable().size() == 1);
    check(device.pop_available()->writable().size() == 1);
    check(device.pop_available().error() == error::queue_empty);
    check(device.in_flight() == 2);
    check(device.unpop(2).has_value() && device.in_flight() == 0);
    chain_id kept;
    const auto done = device.consume(9, [&](const chain& c) {
      if (c.readable().empty()) return used(1);
      kept = c.id();
      return keep();
    });
    check(done && done->chains == 2 && !done->has_more && device.in_flight() == 1);
    check(*device.held_chain(kept.head) == kept);
    check(driver.pop_used().error() == error::queue_empty); // staged
    check(device.publish_and_ask());
    check(driver.pop_used()->token == 2u * static_cast<unsigned>(round) + 1);
    check(device.push_used(kept, 4).has_value());
    check(device.push_used(kept, 4).error() == error::chain_not_in_flight);
    device.publish();
    const auto last = driver.pop_used();
    check(last && last->token == 2u * static_cast<unsigned>(round) && last->length == 4);
    taken += 2;
  }
  check(sent == taken && device.cause() == error::none && driver.cause() == error::none);
}
constexpr auto serves_split = [](auto check) {
  serves<split_device<ram_type>, split_driver<ram_type>>(check, split::place(0, 4).layout);
};
constexpr auto serves_packed = [](auto check) {
  serves<packed_device<ram_type>, packed_driver<ram_type>>(check, packed::place(0, 4).layout);
};
BOTH("a device that is written against device_queue serves a split queue", serves_split)
BOTH("a device that is written against device_queue serves a packed queue", serves_packed)

// ---- what both formats share

constexpr auto progress = [](auto check) {
  std::array<buffer, 3> to{};
  chain_progress p;
  check(p.append({1, 10}, false, to.data(), 3) == error::none);
  check(p.append({2, 20}, true, to.data(), 3) == error::none);
  check(p.append({3, 30}, false, to.data(), 3) == error::readable_after_writable);
  check(p.append({4, 40}, true, to.data(), 2) == error::chain_loops);
  check(p.append({4, 40}, true, to.data(), 3) == error::none);
  check(p.append({5, 50}, true, to.data(), 3) == error::chain_loops);
  check(to[0] == buffer{1, 10} && to[1] == buffer{2, 20} && to[2] == buffer{4, 40});
  check(p.bytes == 70 && !p.is_too_long());
  const chain c = chain_progress{.buffers = 3, .readable = 1}.finish({7, 9}, to.data());
  check(c.id() == chain_id{7, 9} && c.readable().size() == 1 && c.writable().size() == 2);
  check(c.readable()[0] == to[0] && c.writable()[1] == to[2]);

  check(!chain_progress{.bytes = 0x1'0000'0000}.is_too_long());
  check(chain_progress{.bytes = 0x1'0000'0001}.is_too_long());
  chain_progress none;
  check(none.append({1, 1}, false, to.data(), 0) == error::chain_loops && none.buffers == 0);
};
BOTH("RT-24 what a device read of a split or packed chain is bounded, and ordered", progress)

constexpr auto answers = [](auto check) {
  check(used().is_used && used().length == 0 && used(7).is_used && used(7).length == 7);
  check(!keep().is_used && keep().length == 0);
  check(!disposition{}.is_used);
};
BOTH("a handler's answer is used, of no bytes by default, or kept", answers)

constexpr auto owed = [](auto check) {
  check(unasked(0) == 0 && unasked(65535) == 65535 && unasked(65536) == 65536);
  check(unasked(65537) == 65536 && unasked(0xffff'ffff) == 65536);
  check(is_cause(error::none) && is_cause(error::head_out_of_range));
  check(!is_cause(error::queue_empty) && !is_cause(error::queue_full));
  check(!is_cause(static_cast<error>(3)) && !is_cause(static_cast<error>(0xffff)));
  const device_queue_state state;
  check(state.version == 1 && !state.is_packed && state.cause == error::none);
};
BOTH("what a saved state may say", owed)

} // namespace
