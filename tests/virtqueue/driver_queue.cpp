// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/driver_queue.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

using ballast::buffer;
using ballast::driver_queue;
using ballast::driver_queue_state;
using ballast::driver_slot;
using ballast::error;
using ballast::feature_set;
using ballast::indirect_tables;
using ballast::queue_layout;
using ballast::result;
using ballast::single_buffer;
using ballast::used_buffer;

namespace {

using ram_type = ballast::array_memory<64>;
using other_ram = ballast::array_memory<128>;

// ---- the queues of the library

template <class M> constexpr bool both_formats_are() {
  return driver_queue<ballast::split_driver<M>, M> &&
         driver_queue<ballast::split_driver<M, std::endian::big>, M> &&
         driver_queue<ballast::packed_driver<M>, M> &&
         driver_queue<ballast::packed_driver<M, std::endian::big>, M>;
}
static_assert(both_formats_are<ram_type>());
static_assert(both_formats_are<ballast::mapped_memory>());

// Not over another memory, not over what is no memory, not the device's side, nothing else.
static_assert(!driver_queue<ballast::split_driver<ram_type>, other_ram>);
static_assert(!driver_queue<ballast::packed_driver<ram_type>, other_ram>);
static_assert(!driver_queue<ballast::packed_driver<ram_type>, int>);
static_assert(!driver_queue<ballast::split_device<ram_type>, ram_type>);
static_assert(!driver_queue<ballast::packed_device<ram_type>, ram_type>);
static_assert(!driver_queue<ram_type, ram_type>);
static_assert(!driver_queue<int, ram_type>);
static_assert(!driver_queue<const ballast::packed_driver<ram_type>, ram_type>);

// ---- a type that lacks one member, or has another one of that name

enum class member : std::uint8_t {
  start,
  attach,
  detach,
  is_attached,
  size,
  free_descriptors,
  in_flight,
  cause,
  add,
  add_each,
  publish,
  should_notify,
  publish_and_ask,
  notification_data,
  pop_used,
  reclaim,
  drain,
  enable_notifications,
  disable_notifications,
  save,
  restore,
  none,
};

/// A queue that has all members but `Missing`, none of which does anything. `Throwing` is not
/// noexcept, and `Flawed` answers something else.
template <member Missing, member Throwing = member::none, member Flawed = member::none>
struct a_queue {
  template <member m> static constexpr bool has = Missing != m;
  template <member m> static constexpr bool is_safe = Throwing != m;
  template <class T, member m> using answers = std::conditional_t<Flawed == m, const char*, T>;

  answers<result<void>, member::start>
  start(ram_type&, const queue_layout&, const feature_set&, std::uint16_t,
        const indirect_tables&) noexcept(is_safe<member::start>)
    requires(has<member::start>);
  answers<result<void>, member::attach>
  attach(ram_type&, const queue_layout&, const feature_set&,
         const indirect_tables&) noexcept(is_safe<member::attach>)
    requires(has<member::attach>);
  answers<void, member::detach> detach() noexcept(is_safe<member::detach>)
    requires(has<member::detach>);
  answers<bool, member::is_attached> is_attached() const noexcept(is_safe<member::is_attached>)
    requires(has<member::is_attached>);
  answers<std::uint32_t, member::size> size() const noexcept(is_safe<member::size>)
    requires(has<member::size>);
  answers<std::uint32_t, member::free_descriptors> free_descriptors() const
      noexcept(is_safe<member::free_descriptors>)
    requires(has<member::free_descriptors>);
  answers<std::uint32_t, member::in_flight> in_flight() const noexcept(is_safe<member::in_flight>)
    requires(has<member::in_flight>);
  answers<error, member::cause> cause() const noexcept(is_safe<member::cause>)
    requires(has<member::cause>);
  answers<result<void>, member::add> add(std::span<const buffer>, std::span<const buffer>,
                                         std::uint64_t) noexcept(is_safe<member::add>)
    requires(has<member::add>);
  answers<result<std::uint32_t>, member::add_each>
  add_each(std::uint32_t, single_buffer (*)()) noexcept(is_safe<member::add_each>)
    requires(has<member::add_each>);
  answers<void, member::publish> publish() noexcept(is_safe<member::publish>)
    requires(has<member::publish>);
  answers<bool, member::should_notify> should_notify() noexcept(is_safe<member::should_notify>)
    requires(has<member::should_notify>);
  answers<bool, member::publish_and_ask>
  publish_and_ask() noexcept(is_safe<member::publish_and_ask>)
    requires(has<member::publish_and_ask>);
  answers<std::uint32_t, member::notification_data> notification_data(std::uint16_t) const
      noexcept(is_safe<member::notification_data>)
    requires(has<member::notification_data>);
  answers<result<used_buffer>, member::pop_used> pop_used() noexcept(is_safe<member::pop_used>)
    requires(has<member::pop_used>);
  answers<result<std::uint32_t>, member::reclaim>
  reclaim(std::uint32_t, void (*)(const used_buffer&)) noexcept(is_safe<member::reclaim>)
    requires(has<member::reclaim>);
  answers<void, member::drain> drain(void (*)(std::uint64_t)) noexcept(is_safe<member::drain>)
    requires(has<member::drain>);
  answers<bool, member::enable_notifications>
  enable_notifications() noexcept(is_safe<member::enable_notifications>)
    requires(has<member::enable_notifications>);
  answers<void, member::disable_notifications>
  disable_notifications() noexcept(is_safe<member::disable_notifications>)
    requires(has<member::disable_notifications>);
  answers<result<driver_queue_state>, member::save> save(std::span<driver_slot>) const
      noexcept(is_safe<member::save>)
    requires(has<member::save>);
  answers<result<void>, member::restore>
  restore(ram_type&, const queue_layout&, const feature_set&, const driver_queue_state&,
          std::span<const driver_slot>, const indirect_tables&) noexcept(is_safe<member::restore>)
    requires(has<member::restore>);
};

static_assert(driver_queue<a_queue<member::none>, ram_type>);

/// The number of members.
constexpr auto count = static_cast<std::uint8_t>(member::none);

template <std::uint8_t... i>
constexpr bool none_may_be_missing(std::integer_sequence<std::uint8_t, i...>) {
  return (!driver_queue<a_queue<static_cast<member>(i)>, ram_type> && ...);
}
static_assert(none_may_be_missing(std::make_integer_sequence<std::uint8_t, count>()));

template <std::uint8_t... i>
constexpr bool none_may_throw(std::integer_sequence<std::uint8_t, i...>) {
  return (!driver_queue<a_queue<member::none, static_cast<member>(i)>, ram_type> && ...);
}
static_assert(none_may_throw(std::make_integer_sequence<std::uint8_t, count>()));

/// Of the members that answer nothing, the concept does not care what they return.
constexpr bool answers_nothing(member m) {
  return m == member::detach || m == member::publish || m == member::drain ||
         m == member::disable_notifications;
}
template <std::uint8_t... i>
constexpr bool all_answers_count(std::integer_sequence<std::uint8_t, i...>) {
  return ((driver_queue<a_queue<member::none, member::none, static_cast<member>(i)>, ram_type> ==
           answers_nothing(static_cast<member>(i))) &&
          ...);
}
static_assert(all_answers_count(std::make_integer_sequence<std::uint8_t, count>()));

// ---- the values

constexpr auto table_bytes = [](auto check) {
  check(indirect_tables{}.bytes(32768) == 0);
  check(indirect_tables{0, 3}.bytes(7) == 7 * 3 * 16);
  check(indirect_tables{0, 0xffff'ffff}.bytes(32768) == 0x7'ffff'fff8'0000); // more than 32 bits
};
BOTH("the bytes of indirect tables are one table for each entry of the queue", table_bytes)

constexpr auto defaults = [](auto check) {
  const driver_queue_state state;
  check(state.version == 1 && driver_queue_state::current_version == 1 && !state.is_packed);
  check(state.size == 0 && state.cause == error::none && state.unasked == 0);
  const driver_slot slot;
  check(slot.descriptors == 0 && slot.token == 0); // not in flight
};
BOTH("a state and a slot begin as those of a queue that never lived", defaults)

/// Over either format: a chain out and back through a scripted exchange that needs the concept
/// only.
template <class Q, class D, class M>
  requires driver_queue<Q, M>
constexpr bool round_trip(Q& driver, D& device, M& memory, const queue_layout& layout) {
  if (!driver.start(memory, layout, {}) || !device.start(memory, layout, {})) return false;
  const buffer b[] = {{0x1000, 8}};
  if (!driver.add({}, b, 42) || driver.in_flight() != 1) return false;
  if (!driver.publish_and_ask()) return false;
  const auto done = device.consume(9, [](const ballast::chain&) { return ballast::used(5); });
  if (!done || done->chains != 1) return false;
  device.publish();
  const auto used = driver.pop_used();
  return used && used->token == 42 && used->length == 5 && driver.free_descriptors() == layout.size;
}

constexpr auto either = [](auto check) {
  using memory_type = ballast::array_memory<512>;
  std::array<driver_slot, 4> slots{};
  ballast::device_queue_storage<4> storage;
  memory_type memory;
  ballast::split_driver<memory_type> split_driver(slots);
  ballast::split_device<memory_type> split_device(storage);
  check(round_trip(split_driver, split_device, memory, ballast::split::place(0, 4).layout));
  ballast::packed_driver<memory_type> packed_driver(slots);
  ballast::packed_device<memory_type> packed_device(storage);
  check(round_trip(packed_driver, packed_device, memory, ballast::packed::place(0, 4).layout));
};
BOTH("code that needs a driver_queue runs over either format, on the same slots", either)

constexpr auto states_are_told_apart = [](auto check) {
  // The state of one format is refused by the other.
  using memory_type = ballast::array_memory<512>;
  std::array<driver_slot, 4> slots{}, saved{};
  memory_type memory;
  ballast::split_driver<memory_type> split(slots);
  ballast::packed_driver<memory_type> packed(slots);
  const auto split_at = ballast::split::place(0, 4).layout;
  const auto packed_at = ballast::packed::place(0, 4).layout;
  check(split.start(memory, split_at, {}).has_value());
  const auto of_split = split.save(saved);
  check(of_split && !of_split->is_packed);
  check(packed.restore(memory, packed_at, {}, *of_split, saved).error() == error::state_invalid);
  split.detach();
  check(packed.start(memory, packed_at, {}).has_value());
  const auto of_packed = packed.save(saved);
  check(of_packed && of_packed->is_packed);
  check(split.restore(memory, split_at, {}, *of_packed, saved).error() == error::state_invalid);
};
BOTH("RT-6 a driver of one format refuses the state of the other", states_are_told_apart)

} // namespace
