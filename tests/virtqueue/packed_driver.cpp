// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/packed_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/dirty_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "support/failing_memory.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_packed_device.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <vector>

using ballast::buffer;
using ballast::error;
using ballast::feature_set;
using ballast_test::scripted_packed_device;
using descriptor = scripted_packed_device::descriptor;
using event = scripted_packed_device::event;
using ring_place = scripted_packed_device::place;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;

constexpr ballast::guest_address base = 0x9'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set in_order{ballast::feature::in_order};

constexpr unsigned next = 1, write = 2, available = 0x80, used = 0x8000;

// The event structures are 4-aligned and not 8-aligned; the ring is 16-aligned and not 32-aligned.
constexpr ballast::queue_layout layout_of(std::uint32_t size) {
  return {size, base + 0x30, base + 0x0c, base + 0x14};
}
constexpr std::size_t ram_size(std::uint32_t size) { return 0x40 + 16 * std::size_t{size}; }

/// A driver's queue on memory full of junk, and a scripted device opposite.
template <std::uint32_t N, std::endian E = little> struct fixture {
  using memory_type = ballast::array_memory<ram_size(N)>;

  memory_type ram{base};
  ballast::queue_layout at = layout_of(N);
  ballast_test::raw_words words{ram.bytes(), base, E};
  scripted_packed_device device;
  std::array<ballast::driver_slot, N> slots{};
  ballast::packed_driver<memory_type, E> queue{slots};

  constexpr explicit fixture(const feature_set& features = no_features, std::uint16_t first = 0)
      : device(words, at, first) {
    for (std::byte& b : ram.bytes()) b = std::byte{0xa5};
    started = queue.start(ram, at, features, first).has_value();
  }
  fixture(const fixture&) = delete;

  /// Adds a chain of `count` writable buffers.
  constexpr error add(std::uint64_t token, std::uint32_t length = 64, std::uint32_t count = 1) {
    std::array<buffer, N> all{};
    for (buffer& b : all) b = {token << 12, length};
    return queue.add({}, std::span<const buffer>(all).first(count), token).error();
  }
  /// Adds and publishes.
  constexpr bool offer(std::uint64_t token, std::uint32_t length = 64, std::uint32_t count = 1) {
    const bool is_added = add(token, length, count) == error::none;
    queue.publish();
    return is_added;
  }
  /// What the device got next goes straight back.
  constexpr void turn_around(std::uint32_t length = 0) { device.give_back(device.take(), length); }

  constexpr bool pops(std::uint64_t token, std::uint32_t length) {
    const auto got = queue.pop_used();
    return got && got->token == token && got->length == length;
  }
  constexpr bool pops(std::uint64_t token) {
    const auto got = queue.pop_used();
    return got && got->token == token;
  }

  bool started = false;
};

/// The flags of a descriptor that is available, or used, in a round with that wrap counter.
constexpr unsigned available_in(bool wrap) { return wrap ? available : used; }
constexpr unsigned used_in(bool wrap) { return wrap ? available | used : 0; }

struct random_numbers {
  std::uint64_t state = 1;

  constexpr std::uint32_t below(std::uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>((state >> 33) % n);
  }
};

// ---- start, attach, detach

template <std::uint32_t N, std::endian E> constexpr void starts_at(auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{N},
                              std::uint16_t{N + 2}, std::uint16_t{0xfffe}})
    for (const bool has_events : {false, true}) {
      fixture<N, E> f(has_events ? event_index : no_features, first);
      check(f.started && f.queue.is_attached() && f.queue.size() == N);
      check(f.queue.free_descriptors() == N && f.queue.in_flight() == 0);
      check(f.queue.cause() == error::none);
      const bool wrap = first / N % 2 == 0; // both counters begin at 1
      check(f.device.driver_event() == event{first % N, wrap, has_events ? 2u : 0u});
      check(f.device.device_event() == event{0, false, 0});
      // Each descriptor looks used in the round before the one it is next used in.
      for (std::uint32_t i = 0; i < N; ++i) {
        const bool in_this_round = i >= first % N;
        check((f.device.at(i).flags & used_in(true)) == used_in(wrap != in_this_round));
      }
      check(!f.device.is_available(f.device.next_available()));
      check(f.queue.pop_used().error() == error::queue_empty);
      std::size_t untouched = 0;
      for (std::byte b : f.ram.bytes()) untouched += b == std::byte{0xa5};
      check(untouched == f.ram.size() - 8 - 8 * N); // both events, half of each descriptor
    }
}
constexpr auto starts = [](auto check) {
  starts_at<3, little>(check);
  starts_at<7, big>(check);
  starts_at<1, little>(check);
};
BOTH("PK-2 RT-19 start writes each descriptor's flags and both event structures, and nothing else",
     starts)

template <std::uint32_t N> constexpr error start_with(const ballast::queue_layout& layout) {
  fixture<N> f;
  const auto done = f.queue.start(f.ram, layout, no_features);
  // Detached, whatever it was before, and nothing works.
  if (!done && (f.queue.is_attached() || f.add(0) != error::not_attached)) return error::none;
  return done.error();
}

constexpr auto refuses = [](auto check) {
  const auto with = [&](std::uint32_t size) {
    ballast::queue_layout l = layout_of(4);
    l.size = size;
    return start_with<4>(l);
  };
  for (std::uint32_t size : {1u, 2u, 3u, 4u}) check(with(size) == error::none);
  for (std::uint32_t size : {0u, 32769u, 65536u, 0x8000'0000u, 0xffff'ffffu})
    check(with(size) == error::invalid_queue_size);
  for (std::uint32_t size : {5u, 8u, 100u, 32767u, 32768u})
    check(with(size) == error::storage_too_small);

  for (int part = 0; part < 3; ++part) {
    const auto at_address = [&](ballast::guest_address a) {
      ballast::queue_layout l = layout_of(4);
      (part == 0 ? l.descriptor_area : part == 1 ? l.driver_area : l.device_area) = a;
      return start_with<4>(l);
    };
    const std::uint32_t bytes = part == 0 ? 64 : 4;
    const std::uint32_t alignment = part == 0 ? 16 : 4;
    for (std::uint64_t a : {std::uint64_t{0}, base - 16, base + ram_size(4), ~std::uint64_t{15}})
      check(at_address(a) == error::not_guest_memory);
    // RT-20: all but the end is memory.
    const std::uint64_t last = ram_size(4) - bytes;
    check(at_address(base + last) == error::none);
    check(at_address(base + last + alignment) == error::not_guest_memory);
    for (std::uint32_t off = 1; off < alignment; off *= 2)
      check(at_address(base + 0x10 + off) == error::misaligned);
  }
};
BOTH("PK-1 PK-3 RT-5 RT-14 RT-20 start refuses wrong sizes and parts that lie wrong, and is then "
     "detached",
     refuses)

TEST_CASE("RT-20 start refuses a part of the ring in memory that can't be written") {
  alignas(4096) static std::array<std::byte, 3 * 4096> host{};
  for (std::size_t read_only = 0; read_only < 4; ++read_only) {
    std::array<ballast::memory_region, 3> regions{};
    for (std::size_t i = 0; i < 3; ++i)
      regions[i] = {base + 0x10000 * i, host.data() + 4096 * i, 4096, i != read_only};
    auto ram = ballast::mapped_memory::over(regions);
    REQUIRE(ram.has_value());
    std::array<ballast::driver_slot, 15> slots{};
    ballast::packed_driver<ballast::mapped_memory> queue(slots);
    // The driver writes all three: the device's event structure only here, to initialise it.
    const auto done = queue.start(*ram, {15, base, base + 0x10000, base + 0x20000}, no_features);
    CHECK(done.error() == (read_only == 3 ? error::none : error::access_not_allowed));
    CHECK(queue.is_attached() == (read_only == 3));
    if (read_only == 2) {
      // Taken up again, it never writes there.
      std::array<ballast::driver_slot, 15> saved{};
      fixture<15> f;
      const auto state = f.queue.save(saved);
      REQUIRE(state.has_value());
      CHECK(
          queue
              .restore(*ram, {15, base, base + 0x10000, base + 0x20000}, no_features, *state, saved)
              .has_value());
    }
    if (read_only != 3) continue;
    // RT-20: an event structure, or the last descriptor, would lie in the hole behind the region.
    CHECK(
        queue.start(*ram, {15, base, base + 0x10000 + 4096, base + 0x20000}, no_features).error() ==
        error::not_guest_memory);
    CHECK(
        queue.start(*ram, {15, base, base + 0x10000, base + 0x20000 + 4096}, no_features).error() ==
        error::not_guest_memory);
    CHECK(queue.start(*ram, {15, base + 4096 - 224, base + 0x10000, base + 0x20000}, no_features)
              .error() == error::not_guest_memory);
  }
}

constexpr auto attaches = [](auto check) {
  // A ring of 5 that is at its last entry but one, in a round whose wrap counter is 0.
  fixture<5> f(event_index, 8);
  using memory_type = fixture<5>::memory_type;
  check(f.queue.attach(f.ram, f.at, event_index).error() == error::already_attached);
  check(f.offer(1));
  check(f.queue.should_notify());
  check(f.offer(2, 10));
  check(f.add(3, 30, 2) == error::none);
  const auto one = f.device.take(), two = f.device.take();
  check(one.descriptors == 1 && two.descriptors == 1 && f.device.take().descriptors == 0);
  f.device.give_back(two, 7);

  f.queue.detach();
  check(!f.queue.is_attached() && f.queue.size() == 5);
  check(f.add(4) == error::not_attached && f.add(4, 1, 2) == error::not_attached);
  check(f.queue.pop_used().error() == error::not_attached);
  f.queue.publish();
  check(f.device.take().descriptors == 0);
  check(!f.queue.should_notify() && !f.queue.enable_notifications());
  f.queue.disable_notifications();
  check(f.queue.add_each(1, [] { return ballast::single_buffer{}; }).error() ==
        error::not_attached);

  for (std::uint32_t size : {1u, 4u, 6u, 0u, 65541u}) {
    ballast::queue_layout other = f.at;
    other.size = size;
    check(f.queue.attach(f.ram, other, event_index).error() == error::invalid_queue_size);
  }
  ballast::queue_layout bad = f.at;
  bad.device_area += 2;
  check(f.queue.attach(f.ram, bad, event_index).error() == error::misaligned);
  check(!f.queue.is_attached());

  // The memory moved elsewhere with all that was in it.
  constexpr std::uint64_t up = 0x100000;
  memory_type moved(base + up);
  for (std::size_t i = 0; i < moved.size(); ++i) moved.bytes()[i] = f.ram.bytes()[i];
  const ballast::queue_layout at{5, f.at.descriptor_area + up, f.at.driver_area + up,
                                 f.at.device_area + up};
  check(f.queue.attach(moved, at, event_index).has_value());
  scripted_packed_device device({moved.bytes(), base + up, little}, at, 10);
  check(f.queue.in_flight() == 3 && f.queue.free_descriptors() == 1);
  check(f.pops(2, 7));
  check(device.take().descriptors == 0);
  f.queue.publish();
  const auto three = device.take();
  check(three.start == ring_place{0, true} && three.descriptors == 2);
  device.device_event({4, false, 2}); // passed by what was published before the detach
  check(f.queue.should_notify());
  // The device goes on behind what it returned before: one descriptor.
  scripted_packed_device rest({moved.bytes(), base + up, little}, at, 9);
  rest.give_back(one, 0);
  rest.give_back(three, 60);
  check(f.pops(1, 0) && f.pops(3, 60));
  check(f.queue.free_descriptors() == 5 && f.queue.in_flight() == 0);
};
BOTH("detach and attach keep places, wrap counters, staged chains, tokens and what is to notify",
     attaches)

constexpr auto never_started = [](auto check) {
  fixture<4> f;
  std::array<ballast::driver_slot, 4> slots{};
  ballast::packed_driver<fixture<4>::memory_type> queue(slots);
  const buffer b[] = {{0, 1}, {0, 1}};
  const std::span<const buffer> all(b);
  check(!queue.is_attached() && queue.size() == 0 && queue.cause() == error::none);
  check(queue.attach(f.ram, f.at, no_features).error() == error::invalid_queue_size);
  check(queue.attach(f.ram, {}, no_features).error() == error::invalid_queue_size);
  check(queue.add(all, {}, 0).error() == error::not_attached);
  check(queue.add(all.first(1), {}, 0).error() == error::not_attached);
  check(queue.pop_used().error() == error::not_attached);
  check(queue.reclaim(3, [](const ballast::used_buffer&) {}).error() == error::not_attached);
  check(!queue.should_notify() && !queue.enable_notifications() && !queue.publish_and_ask());
  queue.publish();
  queue.disable_notifications();
};
BOTH("RT-22 a queue that was never started does nothing", never_started)

constexpr auto new_life = [](auto check) {
  fixture<5> f;
  check(f.offer(1) && f.offer(2) && f.add(3, 8, 2) == error::none); // 3 is staged
  f.device.give_back(9, 0);
  check(f.queue.pop_used().error() == error::used_id_out_of_range);
  check(f.queue.cause() == error::used_id_out_of_range);
  f.queue.detach();
  check(f.queue.attach(f.ram, f.at, no_features).has_value());
  check(f.queue.cause() == error::used_id_out_of_range); // detaching heals nothing
  check(f.add(4) == error::used_id_out_of_range);

  check(f.queue.start(f.ram, f.at, no_features).has_value());
  check(f.queue.cause() == error::none && f.queue.in_flight() == 0);
  check(f.queue.free_descriptors() == 5);
  check(!f.queue.should_notify());
  check(f.queue.pop_used().error() == error::queue_empty);
  f.device = scripted_packed_device(f.words, f.at);
  f.queue.publish(); // nothing is staged any more
  check(f.device.take().descriptors == 0);
  check(f.offer(7, 16, 5));
  const auto whole = f.device.take();
  check(whole.descriptors == 5);
  f.device.give_back(whole, 0);
  check(f.pops(7));
  check(f.queue.pop_used().error() == error::queue_empty);
};
BOTH("RT-26 start heals a broken queue and forgets what was in flight or staged", new_life)

// ---- add, publish

template <std::endian E> constexpr void writes_chain(auto check) {
  const buffer readable[] = {{0x1122'3344'5566'7788, 0x0102'0304}, {2, 0}};
  const buffer writable[] = {{~0ull, 3}, {4, 0x0a0b'0c0d}};
  const buffer expected[] = {readable[0], readable[1], writable[0], writable[1]};
  const unsigned flags[] = {next, next, next | write, write};
  // In one piece, over the end of the ring at each place, and with the wrap counter at 0.
  for (std::uint16_t first = 0; first < 14; ++first) {
    fixture<7, E> f(no_features, first);
    check(f.queue.add(readable, writable, 42).has_value());
    check(f.queue.free_descriptors() == 3 && f.queue.in_flight() == 1);
    check(!f.device.is_available(f.device.next_available()));
    f.queue.publish();
    ring_place at = f.device.next_available();
    const std::uint16_t id = f.device.at(at.entry).id;
    check(id < 7);
    for (std::size_t i = 0; i < 4; ++i) {
      check(f.device.at(at.entry) ==
            descriptor{expected[i].address, expected[i].length, id,
                       static_cast<std::uint16_t>(flags[i] | available_in(at.wrap))});
      check(f.device.is_available(at));
      at.skip(1, 7);
    }
    check(at.wrap == ((first + 4) / 7 % 2 == 0)); // the counter toggles behind the last entry
    check(!f.device.is_available(at));
  }
}
constexpr auto writes_chains = [](auto check) { writes_chain<little>(check); };
constexpr auto writes_big = [](auto check) { writes_chain<big>(check); };
BOTH("PK-2 PK-7 PK-14 a chain is the readable buffers, then the writable ones, in ring order, over "
     "its end too",
     writes_chains)
BOTH("PK-2 PK-7 PK-14 the same in a big-endian ring", writes_big)

constexpr auto stages = [](auto check) {
  for (const feature_set& features : {no_features, in_order})
    for (std::uint16_t first = 0; first < 10; ++first) {
      fixture<5> f(features, first);
      const buffer b[] = {{0x1000, 1}};
      check(f.queue.add(b, {}, 0).has_value());
      check(f.device.take().descriptors == 0);
      check(f.add(1, 4, 2) == error::none);
      check(f.device.take().descriptors == 0);
      check(*f.queue.add_each(9, [] { return ballast::single_buffer{{0x2000, 2}, true, 2}; }) == 2);
      check(f.device.take().descriptors == 0);
      f.queue.publish(); // all of it in one step
      const std::uint32_t counts[] = {1, 2, 1, 1};
      std::uint32_t seen = 0;
      for (const std::uint32_t count : counts) {
        const auto chain = f.device.take();
        check(chain.descriptors == count && chain.id < 5 && (seen >> chain.id & 1) == 0);
        seen |= 1u << chain.id;
        f.device.give_back(chain, 0);
      }
      check(f.device.take().descriptors == 0);
      for (const std::uint64_t token : {0u, 1u, 2u, 2u}) check(f.pops(token));
      check(f.add(3) == error::none && f.device.take().descriptors == 0);
      f.queue.publish();
      f.queue.publish();
      check(f.device.take().descriptors == 1 && f.device.take().descriptors == 0);
    }
};
BOTH("PK-7 PK-11 RT-19 what is staged is invisible until publish makes all of it available", stages)

constexpr auto one_store = [](auto check) {
  // The store of publish is the first that the device can see of the batch: one step before it,
  // nothing at all.
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 64>;
  for (std::uint16_t first = 0; first < 14; ++first) {
    inner_type ram(base);
    ballast_test::event_log<64> log;
    memory_type memory(ram, log);
    std::array<ballast::driver_slot, 7> slots{};
    ballast::packed_driver<memory_type> queue(slots);
    check(queue.start(memory, layout_of(7), no_features, first).has_value());
    scripted_packed_device device({ram.bytes(), base, little}, layout_of(7), first);
    const ring_place start = device.next_available();
    const buffer b[] = {{0x1000, 1}, {0x2000, 2}, {0x3000, 3}};
    check(queue.add(b, {}, 1).has_value() && queue.add({}, b, 2).has_value());
    log.clear();
    const auto before = device.at(start.entry).flags;
    check(!device.is_available(start) && !device.is_used(start));
    queue.publish();
    check(log.size() == 1 && log[0].kind == ballast_test::event_kind::store);
    check(log[0].address == base + 0x30 + 16 * start.entry + 8 && log[0].size == 8);
    check(log[0].order == ballast::order::release);
    check(device.is_available(start) && device.at(start.entry).flags != before);
    check(device.take().descriptors == 3 && device.take().descriptors == 3);
  }
};
BOTH("PK-7 PK-11 a batch is made available by one release store of its first flags", one_store)

constexpr auto refused_adds = [](auto check) {
  fixture<5> f;
  const buffer six[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 1}};
  const std::span<const buffer> all(six);
  check(f.queue.add(all.first(1), all.first(2), 1).has_value()); // two are left
  const auto before = f.ram;
  const auto is_unchanged = [&] {
    auto copy = before;
    for (std::size_t i = 0; i < f.ram.size(); ++i)
      if (copy.bytes()[i] != f.ram.bytes()[i]) return false;
    return f.queue.free_descriptors() == 2 && f.queue.in_flight() == 1 &&
           f.queue.cause() == error::none;
  };
  check(f.queue.add({}, {}, 2).error() == error::empty_chain);
  check(is_unchanged());
  check(f.queue.add(all, {}, 2).error() == error::chain_too_long);
  check(f.queue.add({}, all, 2).error() == error::chain_too_long);
  check(f.queue.add(all.first(3), all.first(3), 2).error() == error::chain_too_long);
  check(is_unchanged());
  check(f.queue.add(all.first(3), {}, 2).error() == error::queue_full);
  check(f.queue.add(all.first(3), all.first(2), 2).error() == error::queue_full);
  check(is_unchanged());
  const buffer long_one[] = {{0, 0xffff'ffff}};
  check(f.queue.add(long_one, all.first(1), 2).error() == error::chain_bytes_overflow);
  check(f.queue.add(all.first(1), long_one, 2).error() == error::chain_bytes_overflow);
  const buffer halves[] = {{0, 0x8000'0000}, {0, 0x8000'0000}};
  check(f.queue.add({}, halves, 2).error() == error::chain_bytes_overflow);
  check(f.queue.add(halves, {}, 2).error() == error::chain_bytes_overflow);
  check(*f.queue.add_each(0, [] { return ballast::single_buffer{}; }) == 0);
  check(is_unchanged());
  check(f.queue.add({}, long_one, 2).has_value());
  check(f.queue.add(all.first(1), {}, 3).has_value());
  check(f.queue.add(all.first(1), {}, 4).error() == error::queue_full);
  check(*f.queue.add_each(3, [] { return ballast::single_buffer{}; }) == 0);
  check(f.queue.free_descriptors() == 0);
  f.queue.publish();
  for (const std::uint32_t count : {3u, 1u, 1u}) check(f.device.take().descriptors == count);
};
BOTH("PK-7 RT-10 RT-24 an add that is refused changes nothing", refused_adds)

template <std::uint32_t N> constexpr void whole_ring(auto check, std::uint16_t first) {
  fixture<N> f(no_features, first);
  std::array<buffer, N> buffers{};
  for (std::uint32_t i = 0; i < N; ++i) buffers[i] = {i, i};
  std::uint32_t writable = 0;
  for (std::uint32_t i = N / 2; i < N; ++i) writable += i;
  for (std::uint64_t round = 0; round < 5; ++round) {
    check(f.queue.add(std::span(buffers).first(N / 2), std::span(buffers).subspan(N / 2), round)
              .has_value());
    check(f.queue.free_descriptors() == 0);
    f.queue.publish();
    const auto chain = f.device.take();
    check(chain.descriptors == N);
    ring_place at = chain.start;
    for (std::uint32_t i = 0; i < N; ++i, at.skip(1, N)) {
      const auto d = f.device.at(at.entry);
      check(d.address == i && d.length == i && d.id == chain.id);
      check(d.flags == (i + 1 < N ? next : 0) + (i >= N / 2 ? write : 0) + available_in(at.wrap));
    }
    f.device.give_back(chain, 0xffff'ffff);
    check(f.pops(round, writable));
    check(f.queue.free_descriptors() == N);
  }
}
constexpr auto sizes_of = [](auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{0xffff}}) {
    whole_ring<1>(check, first);
    whole_ring<2>(check, first);
    whole_ring<3>(check, first);
    whole_ring<7>(check, first);
    whole_ring<16>(check, first);
  }
};
BOTH("RT-1b RT-19 PK-7 a chain may be as long as the queue, of every size", sizes_of)

TEST_CASE("RT-1b RT-19 a chain as long as a queue of 100, from every entry") {
  for (std::uint16_t first = 0; first < 200; ++first)
    whole_ring<100>(ballast_test::run_time_check{}, first);
}

constexpr auto mixtures = [](auto check) {
  // Chains by add and by add_each in turn, within batches that go over the end of the ring.
  for (const feature_set& features : {no_features, in_order})
    for (std::uint16_t first = 0; first < 6; ++first) {
      fixture<3> f(features, first);
      std::uint64_t token = 0, returned = 0;
      const auto single = [&] {
        const std::uint64_t t = token++;
        return ballast::single_buffer{{t << 12, static_cast<std::uint32_t>(t + 1)}, t % 2 == 0, t};
      };
      for (std::uint32_t round = 0; round < 8; ++round) {
        std::uint32_t chains = 0, left = 3;
        switch (round % 4) {
        case 0: chains = *f.queue.add_each(2, single), left = 1; break;
        case 1:
          check(f.add(token++, 5, 2) == error::none);
          chains = 1 + *f.queue.add_each(7, single), left = 0;
          break;
        case 2:
          chains = 1 + *f.queue.add_each(1, single), left = 0;
          check(f.add(token++, 5, 2) == error::none);
          break;
        default:
          chains = 2 + *f.queue.add_each(1, single), left = 0;
          check(f.add(token++) == error::none && f.add(token++) == error::none);
          break;
        }
        check(f.queue.free_descriptors() == left);
        f.queue.publish();
        std::uint32_t taken = 0;
        for (auto chain = f.device.take(); chain.descriptors != 0; chain = f.device.take()) {
          const auto d = f.device.at(chain.start.entry);
          check(d.address == (returned + taken) << 12);
          f.device.give_back(chain, 1);
          ++taken;
        }
        check(taken == chains && token == returned + taken);
        const auto done = f.queue.reclaim(
            9, [&](const ballast::used_buffer& got) { check(got.token == returned++); });
        check(done && *done == chains && f.queue.free_descriptors() == 3);
      }
    }
};
BOTH("RT-19 add and add_each mix in a batch, over the end of the ring", mixtures)

// ---- pop_used

template <std::endian E> constexpr void returns(auto check) {
  for (std::uint16_t first = 0; first < 8; ++first) {
    fixture<4, E> f(no_features, first);
    check(f.queue.pop_used().error() == error::queue_empty);
    std::array<scripted_packed_device::taken, 5> chains{};
    for (std::uint64_t token = 1; token <= 4; ++token) {
      check(f.offer(token | 0xfedc'ba98'0000'0000));
      chains[token] = f.device.take();
    }
    check(f.queue.pop_used().error() == error::queue_empty);
    for (std::uint32_t n : {3u, 1u, 4u, 2u}) f.device.give_back(chains[n], n == 4 ? 64 : 0x21);
    for (std::uint64_t token : {3u, 1u, 4u, 2u})
      check(f.pops(token | 0xfedc'ba98'0000'0000, token == 4 ? 64 : 0x21));
    check(f.queue.pop_used().error() == error::queue_empty);
    check(f.queue.free_descriptors() == 4 && f.queue.in_flight() == 0);
  }
}
constexpr auto returns_in_any_order = [](auto check) {
  returns<little>(check);
  returns<big>(check);
};
BOTH("PK-4 pop_used gives tokens and lengths in the order in which the device returned them",
     returns_in_any_order)

constexpr auto skips = [](auto check) {
  // One used descriptor per chain; the next lies behind as many descriptors as the chain had, in
  // the order of return. What lies between still looks available and is not looked at.
  for (std::uint16_t first = 0; first < 14; ++first) {
    fixture<7> f(no_features, first);
    check(f.add(1, 10, 3) == error::none && f.add(2, 20, 1) == error::none);
    check(f.add(3, 30, 2) == error::none && f.add(4, 40, 1) == error::none);
    f.queue.publish();
    const auto one = f.device.take(), two = f.device.take(), three = f.device.take(),
               four = f.device.take();
    f.device.give_back(three, 33);
    check(f.pops(3, 33) && f.queue.free_descriptors() == 2);
    check(f.queue.pop_used().error() == error::queue_empty);
    check(f.add(5, 50, 3) == error::queue_full && f.offer(5, 50, 2)); // where three's place was
    const auto five = f.device.take();
    check(five.descriptors == 2);
    f.device.give_back(one, 11);
    f.device.give_back(five, 55);
    check(f.pops(1, 11) && f.pops(5, 55));
    check(f.queue.pop_used().error() == error::queue_empty);
    f.device.give_back(four, 4);
    f.device.give_back(two, 2);
    check(f.pops(4, 4) && f.pops(2, 2));
    check(f.queue.free_descriptors() == 7 && f.queue.in_flight() == 0);
    check(f.device.next_used() == f.device.next_available());
  }
};
BOTH("PK-14 RT-19 one used descriptor stands for a chain, and the driver skips its length", skips)

constexpr auto clamps = [](auto check) {
  const buffer readable[] = {{0, 100}};
  const buffer writable[] = {{0, 7}, {0, 0}, {0, 5}};
  for (std::uint32_t claimed : {0u, 1u, 11u, 12u, 13u, 100u, 112u, 0x8000'0000u, 0xffff'ffffu})
    for (bool is_writable : {false, true}) {
      fixture<4> f;
      check(
          f.queue.add(readable, is_writable ? writable : std::span<const buffer>{}, 5).has_value());
      f.queue.publish();
      f.device.give_back(f.device.take(), claimed);
      const std::uint32_t bound = is_writable ? 12 : 0;
      check(f.pops(5, claimed < bound ? claimed : bound));
    }
};
BOTH("a used length is never more than the writable bytes of its chain", clamps)

// A run-time test, so that the rest can be seen while it fails.
TEST_CASE("PK-13 a length without WRITE counts as far as the device may have written") {
  // To the letter it means nothing then. But QEMU never sets WRITE (virtqueue_packed_fill_desc),
  // and Linux does not ask for it: without this, what such a device wrote would be lost.
  for (const feature_set& features : {no_features, in_order})
    for (const std::uint32_t claimed : {0u, 1u, 64u, 0xffff'ffffu})
      for (const std::uint32_t writable : {0u, 64u}) {
        fixture<4> f(features);
        const buffer b{0x1000, 64};
        const std::span<const buffer> all(&b, 1);
        REQUIRE(f.queue.add(all.first(writable == 0), all.first(writable != 0), 5));
        f.queue.publish();
        f.device.put_used(f.device.take().id, claimed, 0);
        const auto got = f.queue.pop_used();
        REQUIRE(got.has_value());
        CHECK(got->length == std::min(claimed, writable));
      }
}

constexpr auto reserved_flags = [](auto check) {
  // NEXT, INDIRECT and the reserved bits mean nothing in a used descriptor.
  for (const feature_set& features : {no_features, in_order})
    for (const unsigned flags : {1u, 4u, 5u, 0x7f78u, 0x7f7du}) {
      fixture<4> f(features);
      check(f.add(5, 64, 2) == error::none && f.add(6) == error::none);
      f.queue.publish();
      for (const std::uint64_t token : {5u, 6u}) {
        const auto chain = f.device.take();
        f.device.put_used(chain.id, 9, 2 | flags);
        f.device.skip(chain.descriptors);
        check(f.pops(token, 9));
      }
      check(f.queue.free_descriptors() == 4);
    }
};
BOTH("PK-14 the driver ignores NEXT and whatever is reserved in a used descriptor", reserved_flags)

/// What pop_used says, twice, and whether the queue is then broken in every respect.
template <class F> constexpr error breaks(F& f) {
  const error why = f.queue.pop_used().error();
  const std::uint32_t free = f.queue.free_descriptors(), in_flight = f.queue.in_flight();
  const bool is_broken =
      f.queue.cause() == why && f.queue.pop_used().error() == why && f.add(9) == why &&
      f.add(9, 1, 2) == why &&
      f.queue.add_each(1, [] { return ballast::single_buffer{}; }).error() == why;
  // Even if the device thinks better of it.
  f.device.put(f.device.next_used().entry, {});
  f.device.put_used(0, 0, 0);
  const bool stays = f.queue.pop_used().error() == why && f.queue.cause() == why;
  const bool is_kept = f.queue.free_descriptors() == free && f.queue.in_flight() == in_flight;
  return is_broken && stays && is_kept && f.queue.is_attached() ? why : error::none;
}

constexpr auto wrong_ids = [](auto check) {
  for (const feature_set& features : {no_features, in_order})
    for (std::uint32_t id : {3u, 4u, 5u, 0x7fffu, 0x8000u, 0x8001u, 0xfffeu, 0xffffu}) {
      fixture<3> f(features, 4);
      for (std::uint64_t token = 0; token < 3; ++token) check(f.offer(token));
      f.device.put_used(id, 0, 0);
      check(breaks(f) == error::used_id_out_of_range);
    }
};
BOTH("RT-16 a used id beyond the queue breaks it", wrong_ids)

constexpr auto wrong_chains = [](auto check) {
  for (const feature_set& features : {no_features, in_order}) {
    // Every id but the two in flight; one of them has descriptors 1 and 2 besides.
    for (std::uint32_t id = 0; id < 7; ++id) {
      fixture<7> f(features);
      check(f.add(1, 8, 3) == error::none && f.add(2, 8, 2) == error::none);
      f.queue.publish();
      if (id == f.device.take().id || id == f.device.take().id) continue;
      f.device.put_used(id, 0, 0);
      check(breaks(f) == error::used_id_not_in_flight);
    }
    for (const std::uint32_t descriptors : {1u, 2u}) { // the same chain twice
      fixture<7> f(features, 6);
      check(f.add(1, 8, descriptors) == error::none && f.add(2) == error::none);
      f.queue.publish();
      const auto one = f.device.take();
      f.device.give_back(one, 0);
      f.device.give_back(one, 0);
      check(f.pops(1));
      check(breaks(f) == error::used_id_not_in_flight);
    }
    for (std::uint32_t id = 0; id < 3; ++id) { // nothing is in flight
      fixture<3> f(features);
      f.device.put_used(id, 0, 0);
      check(breaks(f) == error::used_id_not_in_flight);
      fixture<3> g(features, 2);
      for (int n = 0; n < 4; ++n) {
        check(g.offer(1));
        g.turn_around();
        check(g.pops(1));
      }
      g.device.put_used(id, 0, 0);
      check(breaks(g) == error::used_id_not_in_flight);
    }
  }
};
BOTH("RT-13 a used id that is not that of a chain in flight breaks the queue", wrong_chains)

constexpr auto twice_as_another = [](auto check) {
  // An id that went back and is in use again stands for the new chain; a second return is too much.
  fixture<3> f;
  check(f.offer(1, 8) && f.offer(2, 8));
  const auto one = f.device.take();
  f.device.give_back(one, 1);
  check(f.pops(1, 1));
  check(f.offer(3, 8, 2));
  check(f.queue.free_descriptors() == 0);
  const auto two = f.device.take(), three = f.device.take();
  f.device.give_back(three, 16);
  f.device.give_back(two, 2);
  check(f.pops(3, 16) && f.pops(2, 2));
  f.device.put_used(two.id, 2, write);
  check(breaks(f) == error::used_id_not_in_flight);
};
BOTH("RT-13 a chain that is returned twice breaks the queue, whatever came between",
     twice_as_another)

constexpr auto staged_ids = [](auto check) {
  // A device can't have used what it was not given yet: with nothing published, with one before it
  // in flight, and with a first chain staged behind a whole round.
  for (const feature_set& features : {no_features, in_order})
    for (std::uint32_t published = 0; published < 3; ++published)
      for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{4}, std::uint16_t{8}}) {
        fixture<5> f(features, first);
        for (std::uint64_t token = 0; token < published; ++token) check(f.offer(token));
        check(f.add(7) == error::none && f.add(8) == error::none);
        std::uint32_t in_flight = 0; // ids
        for (std::uint32_t n = 0; n < published; ++n) {
          const auto chain = f.device.take();
          in_flight |= 1u << chain.id;
          f.device.give_back(chain, 0);
          check(f.pops(n));
        }
        for (std::uint32_t id = 0; id < 5; ++id) {
          if ((in_flight >> id & 1) != 0) continue;
          fixture<5> g(features, first);
          for (std::uint64_t token = 0; token < published; ++token) check(g.offer(token));
          check(g.add(7) == error::none && g.add(8) == error::none);
          g.device.put_used(id, 16, write);
          check(breaks(g) == error::used_id_not_in_flight);
          check(g.queue.in_flight() == published + 2);
        }
        f.queue.publish(); // published they are as good as any
        for (const std::uint64_t token : {7u, 8u}) {
          f.turn_around();
          check(f.pops(token));
        }
      }
};
BOTH("RT-13 a used id that is staged but not published breaks the queue", staged_ids)

TEST_CASE("a chain that the device holds while 65536 others go round is in flight all the time") {
  for (std::uint32_t others : {1u, 2u, 3u, 32766u, 32767u, 32768u, 65535u, 65536u, 100000u}) {
    fixture<3> f(no_features, 0x1235);
    REQUIRE(f.offer(7));
    const auto held = f.device.take();
    std::uint32_t wrong = 0;
    for (std::uint32_t n = 0; n < others; ++n) {
      wrong += !f.offer(n + 100);
      f.turn_around(1);
      wrong += !f.pops(n + 100, 1);
    }
    CHECK(wrong == 0);
    REQUIRE(f.add(9) == error::none);
    f.device.give_back(held, 1);
    CHECK(f.pops(7, 1));
    CHECK(f.queue.cause() == error::none);
  }
}

constexpr auto own_words_only = [](auto check) {
  // The device scribbles over all that the driver wrote: every descriptor and the driver's event
  // structure. Nothing of it is read back.
  for (const feature_set& features : {no_features, in_order}) {
    fixture<5> f(features);
    const buffer b[] = {{0x1000, 4}, {0x2000, 5}};
    check(f.queue.add(b, {}, 1).has_value() && f.queue.add({}, b, 2).has_value());
    f.queue.publish();
    const auto one = f.device.take(), two = f.device.take();
    for (std::uint32_t i = 0; i < 5; ++i) f.device.put(i, {~0ull, 0xffff'ffff, 0xffff, 0x7f7f});
    f.words.put(f.at.driver_area, 4, 0xffff'ffff);
    f.device.give_back(one, 99);
    f.device.give_back(two, 99);
    check(f.pops(1, 0) && f.pops(2, 9));
    check(f.queue.free_descriptors() == 5);
    const buffer five[] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}};
    check(f.queue.add(five, {}, 3).has_value());
    f.queue.publish();
    const auto whole = f.device.take();
    check(whole.descriptors == 5);
    ring_place at = whole.start;
    for (std::uint32_t i = 0; i < 5; ++i, at.skip(1, 5))
      check(f.device.at(at.entry).address == i + 1);
  }
};
BOTH("RT-15 a device that overwrites the driver's own words changes nothing", own_words_only)

constexpr auto read_once = [](auto check) {
  // One load of one word for each chain: what is checked is what is used.
  using inner_type = fixture<5>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 64>;
  for (const feature_set& features : {no_features, in_order}) {
    inner_type ram(base);
    ballast_test::event_log<64> log;
    memory_type memory(ram, log);
    std::array<ballast::driver_slot, 5> slots{};
    ballast::packed_driver<memory_type> queue(slots);
    check(queue.start(memory, layout_of(5), features).has_value());
    scripted_packed_device device({ram.bytes(), base, little}, layout_of(5));
    const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
    for (std::uint64_t token = 0; token < 2; ++token) check(queue.add(b, {}, token).has_value());
    queue.publish();
    for (int n = 0; n < 2; ++n) device.give_back(device.take(), 0);
    log.clear();
    check(*queue.reclaim(2, [](const ballast::used_buffer&) {}) == 2);
    check(log.size() == 2 && log.count(ballast_test::event_kind::load) == 2);
    for (std::uint32_t n = 0; n < 2; ++n)
      check(log[n].address == base + 0x30 + 32 * n + 8 && log[n].size == 8);
  }
};
BOTH("RT-15 RT-18 a used descriptor is read by a single load", read_once)

constexpr auto no_bytes = [](auto check) {
  fixture<8> f;
  const buffer none[] = {{0, 0}, {~0ull, 0}, {7, 0}};
  const std::span<const buffer> all(none);
  check(f.queue.add(all.first(1), {}, 1).has_value());
  check(f.queue.add({}, all.first(1), 2).has_value());
  check(f.queue.add(all.first(1), all.subspan(1), 3).has_value());
  check(f.queue.free_descriptors() == 3);
  f.queue.publish();
  for (std::uint64_t token = 1; token <= 3; ++token) {
    f.turn_around(99);
    check(f.pops(token, 0));
  }
  check(f.queue.free_descriptors() == 8);
};
BOTH("RT-1 buffers of no bytes come back, with no bytes whatever was said", no_bytes)

constexpr auto never_more = [](auto check) {
  for (const feature_set& features : {no_features, in_order}) {
    fixture<3> f(features);
    for (std::uint32_t n = 0; n < 20; ++n) {
      const error e = f.add(n);
      check(e == (n < 3 ? error::none : error::queue_full));
      if (n % 2 == 0) f.queue.publish();
      check(f.queue.in_flight() <= 3 && f.queue.in_flight() + f.queue.free_descriptors() == 3);
    }
    f.queue.publish();
    std::uint32_t seen = 0;
    for (int n = 0; n < 3; ++n) seen |= 1u << f.device.take().id;
    check(seen == 7 && f.device.take().descriptors == 0);
  }
};
BOTH("RT-2 there are never more chains in flight than the queue has descriptors", never_more)

constexpr auto reclaims = [](auto check) {
  fixture<7> f(no_features, 5);
  for (std::uint64_t token = 0; token < 5; ++token) check(f.offer(token));
  for (int n = 0; n < 4; ++n) f.turn_around();
  std::uint64_t seen = 0;
  const auto take = [&](const ballast::used_buffer& got) { check(got.token == seen++); };
  check(*f.queue.reclaim(0, take) == 0 && seen == 0);
  check(*f.queue.reclaim(1, take) == 1 && seen == 1);
  check(*f.queue.reclaim(2, take) == 2 && seen == 3);
  check(f.queue.in_flight() == 2 && f.queue.free_descriptors() == 5);
  check(*f.queue.reclaim(100, take) == 1 && seen == 4);
  check(*f.queue.reclaim(100, take) == 0);
  // What was handed out before a fault stays so.
  check(f.offer(5) && f.offer(6));
  f.turn_around();
  f.device.put_used(0x1234, 0, 0);
  check(f.queue.reclaim(100, take).error() == error::used_id_out_of_range && seen == 5);
  check(f.queue.in_flight() == 2 && f.queue.free_descriptors() == 5);
  check(f.queue.reclaim(100, take).error() == error::used_id_out_of_range);
};
BOTH("RT-9 reclaim takes no more than its budget, and says how many", reclaims)

// ---- a long life against a model

/// What the model knows of a chain in flight.
struct modelled_chain {
  std::uint64_t token = 0;
  std::uint32_t readable = 0;
  std::uint32_t writable = 0;
  std::uint32_t length = 0; ///< that comes back
  scripted_packed_device::taken at{};
};

template <std::uint32_t N, std::endian E>
constexpr bool lives_long(std::uint64_t seed, std::uint16_t first, int steps) {
  fixture<N, E> f(no_features, first);
  random_numbers random{seed};
  std::array<modelled_chain, N> staged{}, there{}, back{}; // where every chain is
  std::uint32_t staged_count = 0, there_count = 0, back_count = 0, descriptors = 0;
  std::array<bool, N> is_taken{}; // ids
  std::uint64_t token = seed << 32;
  const auto buffer_of = [](std::uint64_t t, std::uint32_t i) {
    return buffer{t * 31 + i, static_cast<std::uint32_t>((t * 7 + i) % 1000)};
  };
  for (int step = 0; step < steps; ++step) {
    switch (random.below(8)) {
    case 0:
    case 1: {
      std::array<buffer, N> buffers{};
      const std::uint32_t limit = random.below(4) == 0 ? N : N < 3 ? N : 3;
      const std::uint32_t count = 1 + random.below(limit);
      const std::uint32_t readable = random.below(count + 1);
      ++token;
      for (std::uint32_t i = 0; i < count; ++i) buffers[i] = buffer_of(token, i);
      const auto all = std::span<const buffer>(buffers).first(count);
      const auto added = f.queue.add(all.first(readable), all.subspan(readable), token);
      if (added.error() != (count > N - descriptors ? error::queue_full : error::none))
        return false;
      if (!added) break;
      descriptors += count;
      staged[staged_count++] = {token, readable, count - readable};
      break;
    }
    case 2: {
      const std::uint32_t wanted = random.below(4);
      const std::uint32_t room = N - descriptors < wanted ? N - descriptors : wanted;
      const auto added = f.queue.add_each(wanted, [&] {
        ++token;
        const bool is_writable = random.below(2) == 0;
        staged[staged_count++] = {token, is_writable ? 0u : 1u, is_writable ? 1u : 0u};
        return ballast::single_buffer{buffer_of(token, 0), is_writable, token};
      });
      if (!added || *added != room) return false;
      descriptors += room;
      break;
    }
    case 3: {
      if (f.device.is_available(f.device.next_available())) return false;
      f.queue.publish();
      // The device looks at what it got.
      for (std::uint32_t n = 0; n < staged_count; ++n) {
        modelled_chain c = staged[n];
        c.at = f.device.take();
        if (c.at.descriptors != c.readable + c.writable || c.at.id >= N || is_taken[c.at.id])
          return false; // every id belongs to one chain
        is_taken[c.at.id] = true;
        ring_place at = c.at.start;
        for (std::uint32_t i = 0; i < c.at.descriptors; ++i, at.skip(1, N)) {
          const auto d = f.device.at(at.entry);
          const buffer b = buffer_of(c.token, i);
          const unsigned flags = (i + 1 == c.at.descriptors ? 0 : next) +
                                 (i < c.readable ? 0 : write) + available_in(at.wrap);
          if (d.address != b.address || d.length != b.length || d.flags != flags || d.id != c.at.id)
            return false;
        }
        there[there_count++] = c;
      }
      staged_count = 0;
      if (f.device.take().descriptors != 0) return false;
      break;
    }
    case 4:
    case 5: { // the device returns any one of them
      if (there_count == 0) break;
      const std::uint32_t n = random.below(there_count);
      modelled_chain c = there[n];
      there[n] = there[--there_count];
      std::uint32_t bytes = 0;
      for (std::uint32_t i = 0; i < c.writable; ++i)
        bytes += buffer_of(c.token, c.readable + i).length;
      const std::uint32_t claimed = random.below(2 * bytes + 2);
      f.device.give_back(c.at, claimed);
      c.length = claimed < bytes ? claimed : bytes;
      back[back_count++] = c;
      break;
    }
    default: {
      const auto got = f.queue.pop_used();
      if (back_count == 0) {
        if (got.error() != error::queue_empty) return false;
        break;
      }
      if (!got || got->token != back[0].token || got->length != back[0].length) return false;
      is_taken[back[0].at.id] = false;
      descriptors -= back[0].at.descriptors;
      for (std::uint32_t i = 1; i < back_count; ++i) back[i - 1] = back[i];
      --back_count;
      break;
    }
    }
    if (f.queue.free_descriptors() != N - descriptors) return false;
    if (f.queue.in_flight() != staged_count + there_count + back_count) return false;
    if (f.queue.cause() != error::none) return false;
  }
  return true;
}

constexpr auto short_life = [](auto check) {
  check(lives_long<3, little>(3, 4, 120));
  check(lives_long<5, big>(4, 0xffff, 120));
};
BOTH("free and in flight always sum to the queue size, in a constant expression too", short_life)

TEST_CASE("RT-19 ids, tokens and lengths over long random lives, as a naive model has them") {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    const auto first = static_cast<std::uint16_t>(0u - seed * 50);
    CHECK(lives_long<1, little>(seed, first, 20000));
    CHECK(lives_long<2, big>(seed, first, 20000));
    CHECK(lives_long<3, little>(seed, first, 20000));
    CHECK(lives_long<5, big>(seed, first, 20000));
    CHECK(lives_long<7, little>(seed, first, 20000));
    CHECK(lives_long<16, big>(seed, first, 20000));
    CHECK(lives_long<100, little>(seed, first, 10000));
    CHECK(lives_long<256, big>(seed, first, 10000));
  }
  CHECK(lives_long<7, little>(77, 0, 400000));
}

TEST_CASE("RT-19 a queue of 32768") {
  for (const std::uint16_t first : {std::uint16_t{40000}, std::uint16_t{32767}}) {
    const auto f = std::make_unique<fixture<32768>>(no_features, first);
    REQUIRE(f->started);
    const std::vector<buffer> all(32768, {0x5000, 3});
    CHECK(f->queue.add({}, all, 1).has_value());
    const buffer b[] = {{0x1000, 8}};
    CHECK(f->queue.add(b, {}, 2).error() == error::queue_full);
    f->queue.publish();
    const auto whole = f->device.take();
    CHECK(whole.descriptors == 32768);
    std::size_t wrong = 0;
    ring_place at = whole.start;
    for (std::uint32_t i = 0; i < 32768; ++i, at.skip(1, 32768)) {
      const auto d = f->device.at(at.entry);
      wrong += d.address != 0x5000 || d.length != 3 || d.id != whole.id ||
               d.flags != (i == 32767 ? write : write | next) + available_in(at.wrap);
    }
    CHECK(wrong == 0);
    f->device.give_back(whole, 0xffff'ffff);
    CHECK(f->pops(1, 3 * 32768));
    CHECK(f->queue.free_descriptors() == 32768);

    for (std::uint32_t i = 0; i < 32768; ++i)
      REQUIRE(f->queue.add(b, b, i).has_value() == (i < 16384));
    const std::uint32_t place = (first & 0x7fffu) | (first < 32768 ? 0u : 0x8000u);
    CHECK((f->queue.notification_data(0) >> 16) == place);
    f->queue.publish();
    std::vector<scripted_packed_device::taken> chains;
    for (std::uint32_t i = 0; i < 16384; ++i) chains.push_back(f->device.take());
    CHECK(f->device.take().descriptors == 0);
    while (!chains.empty()) { // the last first, one by one
      f->device.give_back(chains.back(), 1);
      chains.pop_back();
      const auto got = f->queue.pop_used();
      REQUIRE((got.has_value() && got->token == chains.size() && got->length == 1));
    }
    for (std::uint32_t i = 0; i < 32768; ++i) REQUIRE(f->queue.add({}, b, i).has_value());
    CHECK(f->queue.add({}, b, 0).error() == error::queue_full);
    f->queue.publish();
    f->device.put_used(32768, 0, 0);
    CHECK(f->queue.pop_used().error() == error::used_id_out_of_range);
  }
}

// ---- notifications

constexpr auto flags = [](auto check) {
  for (const feature_set& features : {no_features, event_index}) {
    fixture<3> f(features);
    check(!f.queue.should_notify()); // nothing was published
    std::uint64_t token = 0;
    const auto is_due = [&](std::uint32_t flag) {
      f.device.device_event({0x7abc, true, flag}); // the place is not looked at
      check(f.offer(++token));
      const bool was_due = f.queue.should_notify();
      check(!f.queue.should_notify()); // once
      f.turn_around();
      check(f.pops(token));
      return was_due;
    };
    check(is_due(0) && !is_due(1) && is_due(3)); // 3 is reserved: better once too often
    if (!features.test(ballast::feature::event_idx)) check(is_due(2)); // reserved as well
    for (std::uint32_t reserved : {4u, 0x8001u, 0xfffcu, 0xffffu}) check(is_due(reserved));
    check(!is_due(1));
    f.device.device_event({0, true, 0}); // what was not to be notified then is not now
    check(!f.queue.should_notify());
  }
};
BOTH("PK-16 PK-12 the device's flags decide: enable, disable, and whatever is reserved enables",
     flags)

template <std::uint32_t N, std::endian E>
constexpr void events(auto check, std::uint32_t chains, std::uint32_t descriptors) {
  const std::uint32_t batch = chains * descriptors;
  for (std::uint32_t first = 2 * N; first < 4 * N; ++first)
    for (std::uint32_t asked = first - N; asked < first + N; ++asked) {
      fixture<N, E> f(event_index, static_cast<std::uint16_t>(first));
      f.device.device_event({asked % N, asked / N % 2 == 0, 2});
      for (std::uint32_t i = 0; i < chains; ++i) check(f.offer(i, 8, descriptors));
      check(f.queue.should_notify() == (asked >= first && asked < first + batch));
      check(!f.queue.should_notify());
    }
}
constexpr auto events_little = [](auto check) {
  events<3, little>(check, 1, 1);
  events<3, little>(check, 1, 2);
  events<3, little>(check, 3, 1);
  events<3, little>(check, 1, 3);
  events<1, little>(check, 1, 1);
};
constexpr auto events_big = [](auto check) {
  events<3, big>(check, 2, 1);
  events<4, big>(check, 2, 2);
};
BOTH("PK-16 RT-25 with EVENT_IDX all descriptors since the last check are compared, over the wrap",
     events_little)
BOTH("PK-16 RT-25 the same in a big-endian ring", events_big)

TEST_CASE("PK-16 RT-25 with EVENT_IDX, every place in larger rings") {
  const ballast_test::run_time_check check;
  for (const std::uint32_t chains : {1u, 2u, 5u, 7u}) events<7, little>(check, chains, 1);
  for (const std::uint32_t chains : {1u, 3u}) events<7, big>(check, chains, 2);
  for (const std::uint32_t chains : {1u, 9u, 25u}) events<25, little>(check, chains, 1);
}

constexpr auto both_in_one = [](auto check) {
  // publish_and_ask is publish and should_notify, whatever was published before and not asked for.
  for (const std::uint32_t asked : {0u, 1u, 2u, 4u, 6u})
    for (std::uint32_t batch = 0; batch < 3; ++batch)
      for (std::uint32_t before = 0; before < 3; ++before)
        for (const std::uint32_t flag : {1u, 2u}) {
          fixture<5> f(event_index, 1), g(event_index, 1);
          f.device.device_event({asked % 5, asked < 5, flag});
          g.device.device_event({asked % 5, asked < 5, flag});
          for (std::uint32_t i = 0; i < before; ++i) check(f.offer(i) && g.offer(i));
          for (std::uint32_t i = 0; i < batch; ++i)
            check(f.add(i) == error::none && g.add(i) == error::none);
          f.queue.publish();
          const bool is_due = f.queue.should_notify();
          check(g.queue.publish_and_ask() == is_due);
          check(!g.queue.publish_and_ask() && !g.queue.should_notify());
          check(g.queue.notification_data(0) == f.queue.notification_data(0));
          for (std::uint32_t i = 0; i < before + batch; ++i)
            check(g.device.take().descriptors == 1);
          check(g.offer(9) &&
                g.queue.should_notify() == (flag == 2 && asked == 1 + before + batch));
        }
};
BOTH("PK-12 RT-25 publish_and_ask is publish and should_notify", both_in_one)

constexpr auto hostile_events = [](auto check) {
  // Places beyond the ring: some answer, the same for the same place, and nothing else.
  for (std::uint32_t entry : {3u, 4u, 5u, 6u, 7u, 0x4000u, 0x7ffeu, 0x7fffu})
    for (const bool wrap : {false, true})
      for (std::uint16_t first = 0; first < 6; ++first) {
        fixture<3> f(event_index, first);
        f.device.device_event({entry, wrap, 2});
        check(f.offer(1));
        (void)f.queue.should_notify();
        check(!f.queue.should_notify() && f.queue.cause() == error::none);
        f.turn_around();
        check(f.pops(1));
      }
};
BOTH("RT-16 PK-16 a place of the device's event beyond the ring breaks nothing", hostile_events)

constexpr auto first_notification = [](auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{4}}) {
    fixture<3> f(event_index, first);
    check(f.offer(1)); // the device has armed nothing yet
    check(f.queue.should_notify());
  }
};
BOTH("the first chain of a life is notified", first_notification)

TEST_CASE("PK-16 RT-25 after any number of rounds without a check nobody who waits is missed") {
  for (std::uint32_t count : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 65535u, 65536u, 65537u, 200000u})
    for (std::uint32_t entry = 0; entry < 3; ++entry)
      for (const bool wrap : {false, true}) {
        CAPTURE(count);
        CAPTURE(entry);
        CAPTURE(wrap);
        fixture<3> f(event_index);
        f.device.device_event({entry, wrap, 2});
        std::uint32_t wrong = 0;
        for (std::uint32_t i = 0; i < count; ++i) {
          wrong += !f.offer(i);
          f.turn_around();
          wrong += !f.pops(i);
        }
        CHECK(wrong == 0);
        // A device that waits is at most a round behind; a place before that was left.
        bool is_due = false;
        for (std::uint32_t at = count < 3 ? 0 : count - 3; at != count; ++at)
          is_due = is_due || (at % 3 == entry && (at / 3 % 2 == 0) == wrap);
        const bool is_notified = f.queue.should_notify();
        CHECK((is_notified || !is_due)); // once too often is allowed
        if (count <= 3) CHECK(is_notified == is_due);
        CHECK(!f.queue.should_notify());
      }
}

constexpr auto asks = [](auto check) {
  { // by flags
    fixture<3> f(no_features, 5);
    check(f.device.driver_event() == event{2, false, 0});
    f.queue.disable_notifications();
    check(f.device.driver_event().flags == 1);
    check(f.offer(1));
    check(!f.queue.enable_notifications());
    check(f.device.driver_event().flags == 0);
    f.queue.disable_notifications();
    f.turn_around();
    check(f.queue.enable_notifications()); // one came meanwhile
    check(f.device.driver_event().flags == 0);
    check(f.pops(1));
    check(!f.queue.enable_notifications());
  }
  { // by a place: the next used descriptor, with its wrap counter
    fixture<3> f(event_index, 5);
    const event at_start{2, false, 2};
    f.queue.disable_notifications();
    check(f.device.driver_event() == at_start);
    check(f.offer(1) && f.offer(2, 8, 2));
    f.turn_around();
    check(f.queue.enable_notifications());
    check(f.device.driver_event() == at_start);
    check(f.pops(1));
    f.queue.disable_notifications();
    check(f.device.driver_event() == at_start); // left behind
    check(!f.queue.enable_notifications());
    check(f.device.driver_event() == event{0, true, 2});
    f.turn_around();
    check(f.pops(2) && !f.queue.enable_notifications());
    check(f.device.driver_event() == event{2, true, 2}); // behind both descriptors
  }
  { // in the other byte order
    fixture<7, big> f(event_index, 0x1234);
    check(!f.queue.enable_notifications());
    check(f.device.driver_event() == event{0x1234 % 7, 0x1234 / 7 % 2 == 0, 2});
    fixture<4, big> g;
    g.queue.disable_notifications();
    check(g.device.driver_event().flags == 1);
  }
};
BOTH("PK-16 notifications are asked for by a flag, or under EVENT_IDX by a place and its wrap bit",
     asks)

// A caller loops `while (enable_notifications()) while (pop_used()) ...`: with a queue that is
// broken for good it would loop for good.
TEST_CASE("a broken queue, or one whose memory is lost, has nothing to look at again") {
  fixture<4> f;
  REQUIRE(f.offer(1));
  f.device.put_used(77, 0, 0);
  CHECK(f.queue.enable_notifications());
  REQUIRE(f.queue.pop_used().error() == error::used_id_out_of_range);
  CHECK(!f.queue.enable_notifications());

  fixture<4>::memory_type ram(base);
  // Garbage that looks like a used descriptor.
  ballast_test::failure_plan plan{.garbage = 0x8080'0000'0000'0000};
  ballast_test::failing_memory<fixture<4>::memory_type> memory(ram, plan);
  std::array<ballast::driver_slot, 4> slots{};
  ballast::packed_driver<decltype(memory)> lost(slots);
  REQUIRE(lost.start(memory, layout_of(4), no_features).has_value());
  plan.lose_at = plan.accesses + 1;
  REQUIRE(lost.pop_used().error() == error::memory_lost);
  CHECK(!lost.enable_notifications());
}

constexpr auto notification_data = [](auto check) {
  fixture<3> f(no_features, 1);
  // The place behind what was published, with the wrap counter there in bit 31.
  const auto is_at = [&](std::uint32_t entry, bool wrap) {
    const std::uint32_t place = entry | (wrap ? 0x8000u : 0u);
    return f.queue.notification_data(0x1234) == (place << 16 | 0x1234) &&
           f.queue.notification_data(0xffff) == (place << 16 | 0xffff) &&
           f.queue.notification_data(0) == place << 16;
  };
  check(is_at(1, true));
  check(f.add(1) == error::none && is_at(1, true)); // staged: not there yet
  f.queue.publish();
  check(is_at(2, true));
  check(f.offer(2, 8, 2) && is_at(1, false)); // over the end
  f.turn_around();
  f.turn_around();
  check(f.pops(1) && f.pops(2) && is_at(1, false)); // not moved by what comes back
  check(f.offer(3, 8, 3) && is_at(1, true));        // a whole round
  f.turn_around();
  check(f.pops(3));
  check(f.add(4) == error::none && f.add(5) == error::none);
  (void)f.queue.publish_and_ask();
  check(is_at(0, false)); // exactly to the end
  f.queue.detach();
  check(is_at(0, false));

  fixture<1> one;
  check(one.queue.notification_data(7) == 0x8000'0007);
  check(one.offer(1) && one.queue.notification_data(7) == 7);
};
BOTH("PK-6 RT-19 notification_data is the next place to be available with its wrap bit, above the "
     "queue's id",
     notification_data)

// ---- memory that goes away

constexpr auto loses = [](auto check) {
  using inner_type = fixture<5>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (const feature_set& features : {no_features, in_order})
    // Nothing; used in this round with id 0, and with an id beyond the queue; in the next round.
    for (std::uint64_t garbage : {std::uint64_t{0}, std::uint64_t{0x8080'0000'0000'0000},
                                  ~std::uint64_t{0}, std::uint64_t{0x0080'0000'0000'0000}})
      for (std::uint64_t n = 1;; ++n) {
        inner_type ram(base);
        scripted_packed_device device({ram.bytes(), base, little}, layout_of(5), 4);
        ballast_test::failure_plan plan{.lose_at = n, .garbage = garbage};
        memory_type memory(ram, plan);
        std::array<ballast::driver_slot, 5> slots{};
        ballast::packed_driver<memory_type> queue(slots);
        const auto started = queue.start(memory, layout_of(5), features, 4);
        check(started.has_value() || started.error() == error::memory_lost);
        check(queue.is_attached() == started.has_value());
        const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
        const auto added = queue.add(b, b, 1);
        const auto single = queue.add({}, std::span<const buffer>(b).first(1), 2);
        queue.publish();
        (void)queue.should_notify();
        const auto chain = device.take();
        if (chain.descriptors != 0) device.give_back(chain, 2);
        const auto got = queue.pop_used();
        // Either all of it went right or the queue says why not; garbage is never taken for a
        // device that broke a rule.
        if (got)
          check(added.has_value() && got->token == 1 && got->length == 2);
        else
          check(got.error() == (started ? error::memory_lost : error::not_attached));
        check(queue.cause() == error::none);
        check(queue.in_flight() ==
              std::uint32_t{added.has_value()} + single.has_value() - got.has_value());
        if (plan.is_lost && started) {
          if (!added) check(queue.add(b, {}, 2).error() == error::memory_lost);
          check(queue.pop_used().error() == error::memory_lost);
          check(!queue.enable_notifications());
        }
        if (!plan.is_lost) break;
      }
};
BOTH("RT-14 whenever memory is lost, calls say memory_lost and the queue is not broken", loses)

// The device would find a ring that nobody initialised.
TEST_CASE("a start that loses its memory while it writes the ring is memory_lost, and detached") {
  using inner_type = fixture<4>::memory_type;
  for (std::uint64_t n = 1; n <= 16; ++n) {
    inner_type ram(base);
    ballast_test::failure_plan plan{.lose_at = n};
    ballast_test::failing_memory<inner_type> memory(ram, plan);
    std::array<ballast::driver_slot, 4> slots{};
    ballast::packed_driver<ballast_test::failing_memory<inner_type>> queue(slots);
    const auto started = queue.start(memory, layout_of(4), no_features);
    CHECK(started.error() == (plan.is_lost ? error::memory_lost : error::none));
    CHECK(queue.is_attached() == !plan.is_lost);
  }
}

constexpr auto no_windows = [](auto check) {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (std::uint64_t n = 1;; ++n) {
    inner_type ram(base);
    ballast_test::failure_plan plan{.fail_at = n, .window_error = error::access_not_allowed};
    memory_type memory(ram, plan);
    std::array<ballast::driver_slot, 4> slots{};
    ballast::packed_driver<memory_type> queue(slots);
    const auto started = queue.start(memory, layout_of(4), no_features);
    if (plan.fallible < n) {
      check(started.has_value() && n > 3);
      break;
    }
    check(started.error() == error::access_not_allowed && !queue.is_attached());
    check(plan.accesses == plan.fallible); // no word was touched
  }
};
BOTH("a start that any window refuses gives the memory's error and writes nothing", no_windows)

// ---- what it writes

constexpr auto marks = [](auto check) {
  using inner_type = fixture<3>::memory_type;
  struct word_log {
    std::array<std::uint8_t, ram_size(3) / 4> marks{}; // of each 4 bytes
    std::uint32_t wrong = 0;

    constexpr void mark(ballast::guest_address address, std::uint64_t size) noexcept {
      wrong += address % 4 != 0 || size % 4 != 0;
      for (std::uint64_t i = 0; i < size / 4; ++i) ++marks[(address - base) / 4 + i];
    }
    /// Whether just these bytes, from these addresses on, were marked since the last call.
    constexpr bool took(std::initializer_list<ballast::guest_address> words, std::uint32_t size) {
      std::uint32_t expected = 0, is = 0, count = 0;
      for (const ballast::guest_address a : words)
        for (std::uint32_t i = 0; i < size / 4; ++i, ++expected)
          is += marks[(a - base) / 4 + i] != 0;
      for (std::uint8_t& m : marks) {
        count += m != 0;
        m = 0;
      }
      return is == expected && count == expected && wrong == 0;
    }
  };
  using memory_type = ballast::dirty_memory<inner_type, word_log>;
  inner_type ram(base);
  word_log log;
  memory_type memory(ram, log);
  std::array<ballast::driver_slot, 3> slots{};
  ballast::packed_driver<memory_type> queue(slots);
  const auto at = layout_of(3);
  const auto address = [&](std::uint32_t i) { return at.descriptor_area + 16 * i; };
  check(queue.start(memory, at, no_features, 2).has_value());
  check(log.marks[(at.driver_area - base) / 4] != 0);
  check(log.marks[(at.device_area - base) / 4] != 0);
  std::uint32_t marked = 0;
  for (std::uint8_t& m : log.marks) {
    marked += m != 0;
    m = 0;
  }
  check(marked == 2 + 3 * 2 && log.wrong == 0);

  const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
  check(queue.add(b, {}, 1).has_value()); // entries 2 and 0; the first flags come with publish
  check(log.took({address(2), address(0), address(0) + 8}, 8));
  queue.publish();
  check(log.took({address(2) + 8}, 8));
  (void)queue.should_notify();
  scripted_packed_device device({ram.bytes(), base, little}, at, 2);
  device.give_back(device.take(), 0);
  check(queue.pop_used().has_value());
  check(log.took({}, 8));
  (void)queue.enable_notifications();
  check(log.took({at.driver_area}, 4));
  queue.disable_notifications();
  check(log.took({at.driver_area}, 4));
  queue.detach();
  check(queue.attach(memory, at, no_features).has_value());
  check(log.took({}, 8));
};
BOTH("every word the driver writes is marked dirty, and no other", marks)

// ---- orders

constexpr auto orders = [](auto check) {
  using enum ballast_test::event_kind;
  using ballast::order;
  using inner_type = fixture<5>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 64>;
  const auto at = layout_of(5);
  inner_type ram(base);
  ballast_test::event_log<64> log;
  memory_type memory(ram, log);
  scripted_packed_device device({ram.bytes(), base, little}, at);
  std::array<ballast::driver_slot, 5> slots{};
  ballast::packed_driver<memory_type> queue(slots);
  check(queue.start(memory, at, event_index).has_value());
  const auto rest = [&](std::uint32_t i) { return at.descriptor_area + 16 * i + 8; };

  log.clear(); // P1
  const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
  check(queue.add(b, {}, 1).has_value() && queue.add({}, b, 2).has_value());
  check(log.size() == 7 && log.lost() == 0 && log.count(fence) == 0);
  for (std::size_t i = 0; i < log.size(); ++i) {
    const bool is_address = log[i].address % 16 == 0;
    check(log[i].kind == store && log[i].size == 8 && log[i].address != rest(0));
    check(log[i].order == (is_address ? order::plain : order::relaxed));
  }

  log.clear();                              // P2
  const std::uint64_t id = device.at(1).id; // as in the other descriptor of the chain
  queue.publish();
  check(log.size() == 1);
  check(log[0] == ballast_test::memory_event{store, order::release, rest(0), 8,
                                             1 | id << 32 | std::uint64_t{next | available} << 48});
  log.clear();
  queue.publish();
  check(log.size() == 0);

  // P3, P4
  (void)queue.should_notify();
  check(log.size() == 2 && log[0].kind == fence);
  check(log[1].kind == load && log[1].order == order::relaxed);
  check(log[1].address == at.device_area && log[1].size == 4);
  log.clear();
  (void)queue.should_notify(); // nothing new: no fence is paid
  check(log.size() == 0);

  device.give_back(device.take(), 0);
  check(queue.pop_used().has_value()); // P10
  check(log.size() == 1 && log[0].kind == load && log[0].order == order::acquire);
  check(log[0].address == rest(0) && log[0].size == 8);
  log.clear();
  check(queue.pop_used().error() == error::queue_empty);
  check(log.size() == 1 && log[0].order == order::acquire && log[0].address == rest(2));

  log.clear(); // P11: place and flags are one word
  (void)queue.enable_notifications();
  check(log.size() == 3);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.driver_area, 4, 0x2'8002});
  check(log[1].kind == fence);
  check(log[2].kind == load && log[2].order != order::plain && log[2].address == rest(2));
  log.clear();
  queue.disable_notifications();
  check(log.size() == 0);

  check(queue.start(memory, at, no_features).has_value());
  check(*queue.add_each(1, [] { return ballast::single_buffer{}; }) == 1);
  log.clear();
  queue.publish();
  check(log.size() == 1 && log[0].order == order::release && log[0].address == rest(0));
  log.clear();
  (void)queue.should_notify();
  check(log.size() == 2 && log[0].kind == fence);
  check(log[1].kind == load && log[1].order == order::relaxed);
  check(log[1].address == at.device_area);
  log.clear();
  queue.disable_notifications();
  check(log.size() == 1);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.driver_area, 4, 0x1'0000});
  log.clear();
  (void)queue.enable_notifications();
  check(log.size() == 3 && log[0].kind == store && log[0].value >> 16 == 0);
  check(log[1].kind == fence && log[2].kind == load && log[2].address == rest(0));
};
BOTH(
    "PK-11 PK-12 RT-18 every access of the driver has the order that P1 to P4, P10 and P11 ask for",
    orders)

} // namespace
