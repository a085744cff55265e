// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/split_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "support/failing_memory.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_device.hpp"

#include <array>
#include <memory>
#include <vector>

using ballast::buffer;
using ballast::error;
using ballast::feature_set;
using ballast_test::raw_descriptor;
using ballast_test::ring_places;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;

constexpr ballast::guest_address base = 0x9'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};

// The used ring is 4-aligned and not 8-aligned, the available ring 2-aligned and not 4-aligned.
constexpr ring_places places(std::uint32_t size) {
  if (size <= 16) return {size, base + 0x100, base + 0xa2, base + 0x0c};
  if (size <= 256) return {size, base + 0x1000, base + 0x902, base + 0x0c};
  return {size, base + 0x80000, base + 0x60002, base + 0x0c};
}
constexpr std::size_t ram_size(std::uint32_t size) {
  return size <= 16 ? 0x200 : size <= 256 ? 0x2000 : 0x100000;
}
constexpr ballast::queue_layout layout_of(const ring_places& at) {
  return {at.size, at.table, at.available, at.used};
}

/// A driver's queue on memory full of junk, and a scripted device opposite.
template <std::uint32_t N, std::endian E = little> struct fixture {
  using memory_type = ballast::array_memory<ram_size(N)>;

  memory_type ram{base};
  ring_places at = places(N);
  ballast_test::raw_words words{ram.bytes(), base, E};
  ballast_test::scripted_device device;
  std::array<ballast::driver_slot, N> slots{};
  ballast::split_driver<memory_type, E> queue{slots};

  constexpr explicit fixture(const feature_set& features = no_features, std::uint16_t first = 0)
      : device(words, at, first) {
    for (std::byte& b : ram.bytes()) b = std::byte{0xa5};
    started = queue.start(ram, layout_of(at), features, first).has_value();
  }
  fixture(const fixture&) = delete;

  /// Adds and publishes a chain of one writable buffer.
  constexpr bool offer(std::uint64_t token, std::uint32_t length = 64) {
    const buffer b[] = {{token << 12, length}};
    const bool added = queue.add({}, b, token).has_value();
    queue.publish();
    return added;
  }
  /// The head of the chain the driver made available as the n-th, counted from 0 by index.
  [[nodiscard]] constexpr std::uint32_t head(std::uint16_t n) const {
    return static_cast<std::uint32_t>(device.available_entry(n % N));
  }

  bool started = false;
};

struct random_numbers {
  std::uint64_t state = 1;

  constexpr std::uint32_t below(std::uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>((state >> 33) % n);
  }
};

// ---- start, attach, detach

template <std::endian E> constexpr void starts_at(auto check, std::uint16_t first) {
  fixture<4, E> f(event_index, first);
  check(f.started && f.queue.is_attached() && f.queue.size() == 4);
  check(f.queue.free_descriptors() == 4 && f.queue.in_flight() == 0);
  check(f.queue.cause() == error::none);
  check(f.device.available_flags() == 0 && f.device.available_index() == first);
  check(f.device.used_event() == first);
  check(f.words.get(f.at.used, 2) == 0 && f.words.get(f.at.used + 2, 2) == first);
  check(f.words.get(f.at.used + 4 + 8 * 4, 2) == first);
  std::size_t untouched = 0;
  for (std::byte b : f.ram.bytes()) untouched += b == std::byte{0xa5};
  check(untouched == f.ram.size() - 12);
}
constexpr auto starts = [](auto check) {
  starts_at<little>(check, 0x1234);
  starts_at<big>(check, 0x1234);
};
BOTH("SP-19 start writes flags 0 and both indices and events, and nothing else", starts)

template <std::uint32_t N> constexpr error start_with(const ballast::queue_layout& layout) {
  fixture<N> f;
  const auto done = f.queue.start(f.ram, layout, no_features);
  // Detached, whatever it was before, and nothing works.
  const buffer b[] = {{0, 1}};
  if (!done && (f.queue.is_attached() || f.queue.add(b, {}, 0).error() != error::not_attached))
    return error::none;
  return done.error();
}

constexpr auto refuses = [](auto check) {
  const ring_places at = places(4);
  const ballast::queue_layout good = layout_of(at);
  const auto with = [&](std::uint32_t size) {
    ballast::queue_layout l = good;
    l.size = size;
    return start_with<4>(l);
  };
  check(with(4) == error::none);
  for (std::uint32_t size : {0u, 3u, 5u, 6u, 65536u, 0x8000'0000u, 0xffff'ffffu})
    check(with(size) == error::invalid_queue_size);
  for (std::uint32_t size : {8u, 32768u}) check(with(size) == error::storage_too_small);
  check(with(1) == error::none && with(2) == error::none);

  for (int part = 0; part < 3; ++part) {
    const auto at_address = [&](ballast::guest_address a) {
      ballast::queue_layout l = good;
      (part == 0 ? l.descriptor_area : part == 1 ? l.driver_area : l.device_area) = a;
      return start_with<4>(l);
    };
    const std::uint32_t bytes = part == 0 ? 64 : part == 1 ? 14 : 38;
    const std::uint32_t alignment = part == 0 ? 16 : part == 1 ? 2 : 4;
    for (std::uint64_t a : {std::uint64_t{0}, base - 16, base + ram_size(4), ~std::uint64_t{15}})
      check(at_address(a) == error::not_guest_memory);
    // RT-20: all but the end (the event word) is memory.
    const std::uint64_t last = (ram_size(4) - bytes) & ~std::uint64_t{alignment - 1};
    check(at_address(base + last) == error::none);
    check(at_address(base + last + alignment) == error::not_guest_memory);
    for (std::uint32_t off = 1; off < alignment; off *= 2)
      check(at_address(base + 0x40 + off) == error::misaligned);
  }
};
BOTH("RT-5 RT-14 RT-20 start refuses wrong sizes and parts that lie wrong, and is then detached",
     refuses)

TEST_CASE("RT-20 start refuses a ring part in memory that can't be written") {
  alignas(4096) static std::array<std::byte, 3 * 4096> host{};
  for (std::size_t read_only = 0; read_only < 4; ++read_only) {
    std::array<ballast::memory_region, 3> regions{};
    for (std::size_t i = 0; i < 3; ++i)
      regions[i] = {base + 0x10000 * i, host.data() + 4096 * i, 4096, i != read_only};
    auto ram = ballast::mapped_memory::over(regions);
    REQUIRE(ram.has_value());
    std::array<ballast::driver_slot, 16> slots{};
    ballast::split_driver<ballast::mapped_memory> queue(slots);
    // The driver writes all three: the used ring only here, to initialise it.
    const auto done = queue.start(*ram, {16, base, base + 0x10000, base + 0x20000}, no_features);
    CHECK(done.error() == (read_only == 3 ? error::none : error::access_not_allowed));
    CHECK(queue.is_attached() == (read_only == 3));
    if (read_only != 3) continue;
    // RT-20: only the event word crosses into the hole behind the region.
    CHECK(queue.start(*ram, {16, base, base + 0x10000 + 4096 - 36, base + 0x20000}, no_features)
              .error() == error::not_guest_memory);
    CHECK(queue.start(*ram, {16, base, base + 0x10000, base + 0x20000 + 4096 - 132}, no_features)
              .error() == error::not_guest_memory);
  }
}

constexpr auto attaches = [](auto check) {
  fixture<4> f(event_index, 0xfffe);
  using memory_type = fixture<4>::memory_type;
  check(f.queue.attach(f.ram, layout_of(f.at), event_index).error() == error::already_attached);
  check(f.offer(1));
  check(f.queue.should_notify());
  check(f.offer(2, 10));
  const buffer staged[] = {{0x3000, 30}};
  check(f.queue.add({}, staged, 3).has_value());
  f.device.give_back(f.head(0xffff), 7);

  f.queue.detach();
  check(!f.queue.is_attached() && f.queue.size() == 4);
  check(f.queue.add({}, staged, 4).error() == error::not_attached);
  check(f.queue.pop_used().error() == error::not_attached);
  f.queue.publish();
  check(f.device.available_index() == 0);
  check(!f.queue.should_notify() && !f.queue.enable_notifications());
  f.queue.disable_notifications();

  for (std::uint32_t size : {1u, 2u, 8u, 0u}) {
    ballast::queue_layout other = layout_of(f.at);
    other.size = size;
    check(f.queue.attach(f.ram, other, event_index).error() == error::invalid_queue_size);
  }
  ballast::queue_layout bad = layout_of(f.at);
  bad.device_area += 2;
  check(f.queue.attach(f.ram, bad, event_index).error() == error::misaligned);
  check(!f.queue.is_attached());

  // The memory moved elsewhere with all that was in it.
  memory_type moved(base + 0x100000);
  for (std::size_t i = 0; i < moved.size(); ++i) moved.bytes()[i] = f.ram.bytes()[i];
  ring_places at = f.at;
  at.table += 0x100000;
  at.available += 0x100000;
  at.used += 0x100000;
  check(f.queue.attach(moved, layout_of(at), event_index).has_value());
  ballast_test::scripted_device device({moved.bytes(), base + 0x100000, little}, at, 0xffff);
  check(f.queue.in_flight() == 3 && f.queue.free_descriptors() == 1);
  const auto used = f.queue.pop_used();
  check(used.has_value() && used->token == 2 && used->length == 7);
  check(device.available_index() == 0);
  f.queue.publish();
  check(device.available_index() == 1);
  device.available_event(0xffff); // passed by what was published before the detach
  check(f.queue.should_notify());
  device.give_back(static_cast<std::uint32_t>(device.available_entry(2)), 0);
  check(f.queue.pop_used()->token == 1);
  device.give_back(static_cast<std::uint32_t>(device.available_entry(0)), 0);
  check(f.queue.pop_used()->token == 3);
  check(f.queue.free_descriptors() == 4 && f.queue.in_flight() == 0);
};
BOTH("detach and attach keep indices, staged chains, tokens and pending notifications", attaches)

constexpr auto never_started = [](auto check) {
  fixture<4> f;
  std::array<ballast::driver_slot, 4> slots{};
  ballast::split_driver<fixture<4>::memory_type> queue(slots);
  const buffer b[] = {{0, 1}};
  check(!queue.is_attached() && queue.size() == 0 && queue.cause() == error::none);
  check(queue.attach(f.ram, layout_of(f.at), no_features).error() == error::invalid_queue_size);
  check(queue.attach(f.ram, {}, no_features).error() == error::invalid_queue_size);
  check(queue.add(b, {}, 0).error() == error::not_attached);
  check(queue.pop_used().error() == error::not_attached);
  check(!queue.should_notify() && !queue.enable_notifications());
  queue.publish();
  queue.disable_notifications();
};
BOTH("RT-22 a queue that was never started does nothing", never_started)

constexpr auto new_life = [](auto check) {
  fixture<4> f;
  check(f.offer(1) && f.offer(2));
  const buffer three[] = {{0x1000, 1}, {0x2000, 2}};
  check(f.queue.add(three, {}, 3).has_value());
  f.device.give_back(9, 0);
  check(f.queue.pop_used().error() == error::used_id_out_of_range);
  check(f.queue.cause() == error::used_id_out_of_range);
  f.queue.detach();
  check(f.queue.attach(f.ram, layout_of(f.at), no_features).has_value());
  check(f.queue.cause() == error::used_id_out_of_range); // detaching heals nothing

  check(f.queue.start(f.ram, layout_of(f.at), no_features).has_value());
  check(f.queue.cause() == error::none && f.queue.in_flight() == 0);
  check(f.queue.free_descriptors() == 4);
  check(f.device.available_index() == 0 && f.words.get(f.at.used + 2, 2) == 0);
  check(!f.queue.should_notify());
  check(f.queue.pop_used().error() == error::queue_empty);
  f.device = ballast_test::scripted_device(f.words, f.at);
  const buffer four[] = {{0, 1}, {0, 1}, {0, 1}, {0, 1}};
  check(f.queue.add(four, {}, 7).has_value());
  f.queue.publish();
  f.device.give_back(f.head(0), 0);
  check(f.queue.pop_used()->token == 7);
  check(f.queue.pop_used().error() == error::queue_empty);
};
BOTH("RT-26 start heals a broken queue and forgets what was in flight", new_life)

// ---- add, publish

template <std::endian E> constexpr void writes_chain(auto check) {
  fixture<8, E> f;
  const buffer readable[] = {{0x1122'3344'5566'7788, 0x0102'0304}, {2, 0}};
  const buffer writable[] = {{~0ull, 3}, {4, 0x0a0b'0c0d}};
  check(f.queue.add(readable, writable, 42).has_value());
  check(f.queue.free_descriptors() == 4 && f.queue.in_flight() == 1);
  std::uint64_t at = f.device.available_entry(0);
  const std::uint16_t flags[] = {1, 1, 3, 2};
  const buffer expected[] = {readable[0], readable[1], writable[0], writable[1]};
  bool is_seen[8] = {};
  for (std::size_t i = 0; i < 4; ++i) {
    check(at < 8 && !is_seen[at]);
    is_seen[at] = true;
    const raw_descriptor d = f.device.descriptor(at);
    check(d.address == expected[i].address && d.length == expected[i].length);
    check(d.flags == flags[i]);
    at = d.next;
  }
  check(f.device.available_index() == 0);
  f.queue.publish();
  check(f.device.available_index() == 1);
  check(f.device.available_flags() == 0);
}
constexpr auto writes_chains = [](auto check) {
  writes_chain<little>(check);
  writes_chain<big>(check);
};
BOTH("SP-5 add writes the readable buffers, then the writable ones, linked by next", writes_chains)

constexpr auto stages = [](auto check) {
  fixture<4> f(no_features, 0xfffe);
  const buffer b[] = {{0x1000, 1}};
  for (std::uint64_t token = 0; token < 3; ++token) {
    check(f.queue.add(b, {}, token).has_value());
    check(f.device.available_index() == 0xfffe);
  }
  f.queue.publish();
  check(f.device.available_index() == 1); // three in one step, over the wrap
  check(f.head(0xfffe) != f.head(0xffff) && f.head(0xffff) != f.head(0));
  check(f.queue.add(b, {}, 3).has_value());
  check(f.device.available_index() == 1);
  f.queue.publish();
  f.queue.publish();
  check(f.device.available_index() == 2);
};
BOTH("SP-12 RT-19 what is staged is invisible until publish makes all of it available", stages)

constexpr auto refused_adds = [](auto check) {
  fixture<4> f;
  const buffer five[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}};
  const std::span<const buffer> all(five);
  check(f.queue.add(all.first(1), all.first(1), 1).has_value()); // two are left
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
  check(f.queue.add(all.first(2), all.first(3), 2).error() == error::chain_too_long);
  check(is_unchanged());
  check(f.queue.add(all.first(3), {}, 2).error() == error::queue_full);
  check(f.queue.add(all.first(2), all.first(2), 2).error() == error::queue_full);
  check(is_unchanged());
  const buffer long_one[] = {{0, 0xffff'ffff}};
  check(f.queue.add(long_one, all.first(1), 2).error() == error::chain_bytes_overflow);
  check(f.queue.add(all.first(1), long_one, 2).error() == error::chain_bytes_overflow);
  const buffer halves[] = {{0, 0x8000'0000}, {0, 0x8000'0000}};
  check(f.queue.add({}, halves, 2).error() == error::chain_bytes_overflow);
  check(f.queue.add(halves, {}, 2).error() == error::chain_bytes_overflow);
  check(is_unchanged());
  check(f.queue.add({}, long_one, 2).has_value());
  check(f.queue.add(all.first(1), {}, 3).has_value());
  check(f.queue.add(all.first(1), {}, 4).error() == error::queue_full);
  check(f.queue.free_descriptors() == 0);
};
BOTH("SP-7 SP-9 RT-10 RT-24 an add that is refused changes nothing", refused_adds)

constexpr auto sizes_of = [](auto check) {
  const auto whole = [&]<std::uint32_t N>() {
    fixture<N> f;
    std::array<buffer, N> buffers{};
    for (std::uint32_t i = 0; i < N; ++i) buffers[i] = {i, i};
    for (std::uint64_t round = 0; round < 3; ++round) {
      check(f.queue.add(std::span(buffers).first(N / 2), std::span(buffers).subspan(N / 2), round)
                .has_value());
      check(f.queue.free_descriptors() == 0);
      f.queue.publish();
      std::uint64_t at = f.head(static_cast<std::uint16_t>(round));
      for (std::uint32_t i = 0; i < N; ++i) {
        const raw_descriptor d = f.device.descriptor(at);
        check(d.address == i && d.length == i);
        check(d.flags == (i + 1 < N ? 1 : 0) + (i >= N / 2 ? 2 : 0));
        at = d.next;
      }
      f.device.give_back(f.head(static_cast<std::uint16_t>(round)), 0xffff'ffff);
      const auto used = f.queue.pop_used();
      std::uint32_t writable = 0;
      for (std::uint32_t i = N / 2; i < N; ++i) writable += i;
      check(used.has_value() && used->token == round && used->length == writable);
      check(f.queue.free_descriptors() == N);
    }
  };
  whole.template operator()<1>();
  whole.template operator()<2>();
  whole.template operator()<4>();
  whole.template operator()<16>();
};
BOTH("RT-1b RT-19 a chain may be as long as the queue, of every size", sizes_of)

// ---- pop_used

template <std::endian E> constexpr void returns(auto check) {
  fixture<4, E> f(no_features, 0xffff);
  check(f.queue.pop_used().error() == error::queue_empty);
  for (std::uint64_t token = 1; token <= 4; ++token) check(f.offer(token | 0xfedc'ba98'0000'0000));
  check(f.queue.pop_used().error() == error::queue_empty);
  for (std::uint16_t n :
       {std::uint16_t{1}, std::uint16_t{0xffff}, std::uint16_t{2}, std::uint16_t{0}})
    f.device.stage(f.head(n), n == 2 ? 64 : 0x21);
  check(f.queue.pop_used().error() == error::queue_empty);
  f.device.make_used();
  for (std::uint64_t token : {3u, 1u, 4u, 2u}) {
    const auto used = f.queue.pop_used();
    check(used.has_value() && used->token == (token | 0xfedc'ba98'0000'0000));
    check(used->length == (token == 4 ? 64 : 0x21));
  }
  check(f.queue.pop_used().error() == error::queue_empty);
  check(f.queue.free_descriptors() == 4 && f.queue.in_flight() == 0);
}
constexpr auto returns_in_any_order = [](auto check) {
  returns<little>(check);
  returns<big>(check);
};
BOTH("pop_used gives tokens and lengths in the order in which the device returned them",
     returns_in_any_order)

constexpr auto clamps = [](auto check) {
  const buffer readable[] = {{0, 100}};
  const buffer writable[] = {{0, 7}, {0, 0}, {0, 5}};
  for (std::uint32_t claimed : {0u, 1u, 11u, 12u, 13u, 100u, 112u, 0x8000'0000u, 0xffff'ffffu})
    for (bool is_writable : {false, true}) {
      fixture<4> f;
      check(
          f.queue.add(readable, is_writable ? writable : std::span<const buffer>{}, 5).has_value());
      f.queue.publish();
      f.device.give_back(f.head(0), claimed);
      const std::uint32_t bound = is_writable ? 12 : 0;
      check(f.queue.pop_used()->length == (claimed < bound ? claimed : bound));
    }
};
BOTH("SP-17 a used length is never more than the writable bytes of its chain", clamps)

/// What pop_used says, twice, and whether the queue is then broken in every respect.
template <class F> constexpr error breaks(F& f) {
  const error why = f.queue.pop_used().error();
  const buffer b[] = {{0, 1}};
  const std::uint32_t free = f.queue.free_descriptors(), in_flight = f.queue.in_flight();
  const bool is_broken = f.queue.cause() == why && f.queue.pop_used().error() == why &&
                         f.queue.add(b, {}, 9).error() == why;
  f.device.used_index(0); // even if the device thinks better of it
  const bool stays = f.queue.pop_used().error() == why && f.queue.cause() == why;
  const bool is_kept = f.queue.free_descriptors() == free && f.queue.in_flight() == in_flight;
  return is_broken && stays && is_kept && f.queue.is_attached() ? why : error::none;
}

constexpr auto index_jumps = [](auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{0xfffe}})
    for (std::uint16_t published = 0; published <= 4; ++published)
      for (std::uint32_t step :
           {std::uint32_t{published}, published + 1u, 4u, 5u, 0x7fffu, 0x8000u, 0xffffu}) {
        fixture<4> f(no_features, first);
        for (std::uint16_t i = 0; i < published; ++i) check(f.offer(i));
        const buffer b[] = {{0, 1}};
        if (published < 4)
          check(f.queue.add(b, {}, 7).has_value()); // staged is not in flight there
        f.device.used_element(first % 4, f.head(first), 0);
        f.device.used_index(static_cast<std::uint16_t>(first + step));
        if (step > published)
          check(breaks(f) == error::used_index_jump);
        else
          check(f.queue.pop_used().error() == (step == 0 ? error::queue_empty : error::none));
      }
};
BOTH("RT-21 a used index beyond what is in flight breaks the queue", index_jumps)

constexpr auto wrong_ids = [](auto check) {
  for (std::uint32_t id : {4u, 5u, 0xffffu, 0x1'0000u, 0x1'0001u, 0x8000'0000u, 0xffff'ffffu}) {
    fixture<4> f;
    for (std::uint64_t token = 0; token < 4; ++token) check(f.offer(token));
    f.device.give_back(id, 0);
    check(breaks(f) == error::used_id_out_of_range);
  }
};
BOTH("RT-16 a used id beyond the queue, in any width, breaks it", wrong_ids)

constexpr auto wrong_heads = [](auto check) {
  const buffer b[] = {{0, 1}, {0, 1}, {0, 1}};
  { // a descriptor inside of a chain; and one that is free
    for (std::uint32_t id = 0; id < 8; ++id) {
      fixture<8> f;
      check(f.queue.add(b, {}, 1).has_value() && f.queue.add({}, b, 2).has_value());
      f.queue.publish();
      if (id == f.head(0) || id == f.head(1)) continue;
      f.device.give_back(id, 0);
      check(breaks(f) == error::used_id_not_in_flight);
    }
  }
  { // the same chain twice
    fixture<4> f;
    check(f.offer(1) && f.offer(2));
    f.device.give_back(f.head(0), 0);
    f.device.give_back(f.head(0), 0);
    check(f.queue.pop_used()->token == 1);
    check(breaks(f) == error::used_id_not_in_flight);
  }
  { // a head of an earlier time that is inside of another chain now
    fixture<4> f;
    for (std::uint64_t token = 0; token < 4; ++token) check(f.offer(token));
    for (std::uint16_t n = 0; n < 4; ++n) f.device.give_back(f.head(n), 0);
    for (std::uint64_t token = 0; token < 4; ++token) check(f.queue.pop_used()->token == token);
    check(f.queue.add(b, {}, 9).has_value());
    f.queue.publish();
    const raw_descriptor d = f.device.descriptor(f.head(4));
    f.device.give_back(d.next, 0);
    check(breaks(f) == error::used_id_not_in_flight);
  }
};
BOTH("RT-13 a used id that is not a head in flight breaks the queue", wrong_heads)

// A device can't have used what it was not given yet.
TEST_CASE("a used id that is a head staged but not published breaks the queue") {
  fixture<4> f;
  REQUIRE(f.offer(1));
  const buffer b[] = {{0x2000, 16}};
  REQUIRE(f.queue.add({}, b, 2).has_value());
  f.device.give_back(f.head(1), 16);
  const auto used = f.queue.pop_used();
  CHECK(used.error() == error::used_id_not_in_flight);
  CHECK(f.queue.in_flight() == 2);
}

TEST_CASE("a chain that the device holds while 65536 others go round is in flight all the time") {
  for (std::uint32_t others : {1u, 32766u, 32767u, 32768u, 40000u, 65535u, 65536u, 100000u}) {
    fixture<4> f(no_features, 0x1234);
    REQUIRE(f.offer(7));
    const std::uint32_t held = f.head(0x1234);
    std::uint32_t wrong = 0;
    const auto give_back = [&](std::uint32_t n, std::uint32_t head) {
      const auto position = static_cast<std::uint16_t>(0x1234 + n);
      f.device.used_element(position % 4, head, 1);
      f.device.used_index(static_cast<std::uint16_t>(position + 1));
      const auto used = f.queue.pop_used();
      return used ? used->token : ~std::uint64_t{0};
    };
    for (std::uint32_t n = 0; n < others; ++n) {
      wrong += !f.offer(n + 100);
      wrong += give_back(n, f.head(static_cast<std::uint16_t>(0x1234 + n + 1))) != n + 100;
    }
    CHECK(wrong == 0);
    CHECK(give_back(others, held) == 7);
    CHECK(f.queue.cause() == error::none);
  }
}

TEST_CASE("a queue is saved and restored while an early chain is held and later ones came back") {
  fixture<4> f(no_features, 0xfffe);
  REQUIRE((f.offer(1) && f.offer(2)));
  f.device.give_back(f.head(0xffff), 3); // the second; the first is still there
  REQUIRE(f.queue.pop_used()->token == 2);
  std::array<ballast::driver_slot, 4> saved{};
  const auto state = f.queue.save(saved);
  REQUIRE(state.has_value());
  std::array<ballast::driver_slot, 4> slots{};
  ballast::split_driver<fixture<4>::memory_type> queue(slots);
  CHECK(queue.restore(f.ram, layout_of(f.at), no_features, *state, saved).error() == error::none);
  f.device.give_back(f.head(0xfffe), 4);
  const auto used = queue.pop_used();
  CHECK(used.has_value());
  CHECK(used->token == 1);
  CHECK(queue.free_descriptors() == 4);
}

constexpr auto own_words_only = [](auto check) {
  // The device scribbles over all that the driver wrote: the descriptor table and the available
  // ring. Nothing of it is read back.
  fixture<4> f;
  const buffer b[] = {{0x1000, 4}, {0x2000, 5}};
  check(f.queue.add(b, {}, 1).has_value() && f.queue.add({}, b, 2).has_value());
  f.queue.publish();
  const std::uint32_t heads[] = {f.head(0), f.head(1)};
  for (std::uint32_t i = 0; i < 8; ++i) f.words.put(f.at.table + 8 * i, 8, ~std::uint64_t{0});
  for (std::uint32_t i = 0; i < 14; i += 2) f.words.put(f.at.available + i, 2, 0xffff);
  f.device.give_back(heads[1], 99);
  f.device.give_back(heads[0], 99);
  const auto second = f.queue.pop_used();
  check(second.has_value() && second->token == 2 && second->length == 9);
  const auto first = f.queue.pop_used();
  check(first.has_value() && first->token == 1 && first->length == 0);
  check(f.queue.free_descriptors() == 4);
  const buffer four[] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}};
  check(f.queue.add(four, {}, 3).has_value());
  f.queue.publish();
  check(f.device.available_index() == 3);
  std::uint64_t at = f.head(2);
  for (std::uint32_t i = 0; i < 4; ++i) {
    check(at < 4);
    check(f.device.descriptor(at).address == i + 1);
    at = f.device.descriptor(at).next;
  }
};
BOTH("RT-15 a device that overwrites the driver's own words changes nothing", own_words_only)

// ---- a long life against a model

/// What the model knows of a chain in flight.
struct modelled_chain {
  std::uint64_t token = 0;
  std::uint32_t first = 0; ///< into the pool of buffers
  std::uint32_t readable = 0;
  std::uint32_t writable = 0;
  std::uint32_t head = 0;
};

template <std::uint32_t N, std::endian E>
constexpr bool lives_long(std::uint64_t seed, std::uint16_t first, int steps) {
  fixture<N, E> f(no_features, first);
  random_numbers random{seed};
  std::array<modelled_chain, N> staged{}, there{}, back{}; // where every chain is
  std::uint32_t staged_count = 0, there_count = 0, back_count = 0, descriptors = 0;
  std::array<bool, N> is_taken{};
  std::uint64_t token = seed << 32;
  std::uint16_t seen = first;
  const auto buffer_of = [](std::uint64_t t, std::uint32_t i) {
    return buffer{t * 31 + i, static_cast<std::uint32_t>((t * 7 + i) % 1000)};
  };
  for (int step = 0; step < steps; ++step) {
    switch (random.below(8)) {
    case 0:
    case 1:
    case 2: {
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
      staged[staged_count++] = {token, 0, readable, count - readable, 0};
      break;
    }
    case 3: {
      f.queue.publish();
      // The device looks at what it got.
      for (std::uint32_t n = 0; n < staged_count; ++n, ++seen) {
        modelled_chain c = staged[n];
        std::uint64_t at = c.head = f.head(seen);
        for (std::uint32_t i = 0; i < c.readable + c.writable; ++i) {
          const bool is_last = i + 1 == c.readable + c.writable;
          if (at >= N || is_taken[at]) return false; // every descriptor belongs to one chain
          is_taken[at] = true;
          const raw_descriptor d = f.device.descriptor(at);
          const buffer b = buffer_of(c.token, i);
          const int flags = (is_last ? 0 : 1) + (i < c.readable ? 0 : 2);
          if (d.address != b.address || d.length != b.length || d.flags != flags) return false;
          at = d.next;
        }
        there[there_count++] = c;
      }
      staged_count = 0;
      if (f.device.available_index() != seen) return false;
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
      f.device.give_back(c.head, claimed);
      c.first = claimed < bytes ? claimed : bytes;
      back[back_count++] = c;
      break;
    }
    default: {
      const auto used = f.queue.pop_used();
      if (back_count == 0) {
        if (used.error() != error::queue_empty) return false;
        break;
      }
      if (!used || used->token != back[0].token || used->length != back[0].first) return false;
      // Its descriptors are free: found again by walking, as the table still holds the chain.
      std::uint64_t at = back[0].head;
      for (std::uint32_t i = 0; i < back[0].readable + back[0].writable; ++i) {
        is_taken[at] = false;
        at = f.device.descriptor(at).next;
      }
      descriptors -= back[0].readable + back[0].writable;
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

constexpr auto short_life = [](auto check) { check(lives_long<4, little>(3, 0xfffa, 150)); };
BOTH("free and in flight always sum to the queue size, in a constant expression too", short_life)

TEST_CASE("RT-19 free list, tokens and lengths over long random lives, as a naive model has them") {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    const auto first = static_cast<std::uint16_t>(0u - seed * 50);
    CHECK(lives_long<1, little>(seed, first, 20000));
    CHECK(lives_long<2, big>(seed, first, 20000));
    CHECK(lives_long<4, little>(seed, first, 20000));
    CHECK(lives_long<8, big>(seed, first, 20000));
    CHECK(lives_long<16, little>(seed, first, 20000));
    CHECK(lives_long<32, little>(seed, first, 10000));
    CHECK(lives_long<64, big>(seed, first, 10000));
    CHECK(lives_long<128, little>(seed, first, 10000));
    CHECK(lives_long<256, big>(seed, first, 10000));
  }
  CHECK(lives_long<8, little>(77, 0, 400000)); // its index goes round
}

TEST_CASE("RT-19 a queue of 32768") {
  const auto f = std::make_unique<fixture<32768>>(no_features, std::uint16_t{40000});
  REQUIRE(f->started);
  const std::vector<buffer> all(32768, {0x5000, 3});
  CHECK(f->queue.add({}, all, 1).has_value());
  const buffer b[] = {{0x1000, 8}};
  CHECK(f->queue.add(b, {}, 2).error() == error::queue_full);
  f->queue.publish();
  std::uint64_t at = f->head(40000);
  std::vector<bool> is_seen(32768);
  std::size_t wrong = 0;
  for (std::uint32_t i = 0; i < 32768; ++i) {
    REQUIRE(at < 32768);
    wrong += is_seen[at];
    is_seen[at] = true;
    const raw_descriptor d = f->device.descriptor(at);
    wrong += d.address != 0x5000 || d.length != 3 || d.flags != (i == 32767 ? 2 : 3);
    at = d.next;
  }
  CHECK(wrong == 0);
  f->device.give_back(f->head(40000), 0xffff'ffff);
  const auto whole = f->queue.pop_used();
  CHECK(whole.has_value());
  CHECK(whole->length == 3 * 32768);
  CHECK(f->queue.free_descriptors() == 32768);

  for (std::uint32_t i = 0; i < 32768; ++i)
    REQUIRE(f->queue.add(b, b, i).has_value() == (i < 16384));
  f->queue.publish();
  CHECK(f->device.available_index() == static_cast<std::uint16_t>(40001 + 16384));
  while (f->queue.in_flight() != 0) { // the last first, one by one
    f->device.give_back(f->head(static_cast<std::uint16_t>(40000 + f->queue.in_flight())), 1);
    const std::uint64_t expected = f->queue.in_flight() - 1;
    const auto used = f->queue.pop_used();
    REQUIRE((used.has_value() && used->token == expected && used->length == 1));
  }
  for (std::uint32_t i = 0; i < 32768; ++i) REQUIRE(f->queue.add({}, b, i).has_value());
  f->queue.publish();
  f->device.used_index(static_cast<std::uint16_t>(f->device.next() + 32769));
  CHECK(f->queue.pop_used().error() == error::used_index_jump);
}

// ---- notifications

constexpr auto flags = [](auto check) {
  fixture<4> f;
  check(!f.queue.should_notify()); // nothing was published
  check(f.offer(1));
  check(f.queue.should_notify());
  check(!f.queue.should_notify()); // once
  f.device.used_flags(1);
  check(f.offer(2));
  check(!f.queue.should_notify());
  f.device.used_flags(0xfffe); // the other bits mean nothing
  check(f.offer(3));
  check(f.queue.should_notify());
  f.device.used_flags(0xffff);
  check(f.offer(4));
  check(!f.queue.should_notify());
  f.device.used_flags(0); // what was not to be notified then is not now
  check(!f.queue.should_notify());
};
BOTH("SP-19 without EVENT_IDX the device's flag decides, and avail_event is not looked at", flags)

constexpr auto flags_big = [](auto check) {
  fixture<2, big> f;
  f.device.available_event(1); // ignored
  check(f.offer(1));
  check(f.queue.should_notify());
  f.device.used_flags(1);
  check(f.offer(2));
  check(!f.queue.should_notify());
};
BOTH("SP-19 the device's flag in a big-endian ring", flags_big)

template <std::endian E> constexpr void events(auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{0xfffd}, std::uint16_t{0x01fe}})
    for (std::uint16_t batch = 1; batch <= 4; ++batch)
      for (int event = -2; event <= 6; ++event) {
        fixture<4, E> f(event_index, first);
        f.device.used_flags(1); // ignored
        f.device.available_event(static_cast<std::uint16_t>(first + event));
        for (std::uint16_t i = 0; i < batch; ++i) check(f.offer(i)); // one publish each
        check(f.queue.should_notify() == (event >= 0 && event < batch));
        check(!f.queue.should_notify());
      }
}
constexpr auto events_little = [](auto check) { events<little>(check); };
constexpr auto events_big = [](auto check) { events<big>(check); };
BOTH("SP-19 RT-25 with EVENT_IDX the whole batch since the last check is compared, over the wrap",
     events_little)
BOTH("SP-19 RT-25 the same in a big-endian ring", events_big)

constexpr auto first_notification = [](auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{0xffff}}) {
    fixture<4> f(event_index, first);
    check(f.offer(1)); // the device has armed nothing yet
    check(f.queue.should_notify());
    check(f.offer(2));
    check(!f.queue.should_notify());
  }
};
BOTH("the first chain of a life is notified", first_notification)

TEST_CASE("SP-19 RT-25 more than 65535 chains between two checks are never missed") {
  for (std::uint32_t count : {65534u, 65535u, 65536u, 65537u, 131072u, 200000u})
    for (std::uint32_t event : {0u, 1u, 65533u, 65534u, 65535u}) {
      fixture<8> f(event_index, 0x1234);
      REQUIRE(f.queue.should_notify() == false);
      f.device.available_event(static_cast<std::uint16_t>(0x1234 + event));
      std::uint32_t wrong = 0;
      for (std::uint32_t i = 0; i < count; ++i) {
        const auto position = static_cast<std::uint16_t>(0x1234 + i);
        wrong += !f.offer(i);
        // The elements of a fixture begin at index 0; here the ring began at 0x1234.
        f.words.put(f.at.used + 4 + 8 * (position % 8), 4, f.head(position));
        f.device.used_index(static_cast<std::uint16_t>(position + 1));
        wrong += f.queue.pop_used()->token != i;
      }
      CHECK(wrong == 0);
      CHECK(f.queue.should_notify() == (event < count));
      CHECK(!f.queue.should_notify());
    }
}

constexpr auto asks = [](auto check) {
  { // by flags
    fixture<4> f(no_features, 0xffff);
    f.queue.disable_notifications();
    check(f.device.available_flags() == 1);
    check(f.offer(1));
    check(!f.queue.enable_notifications());
    check(f.device.available_flags() == 0);
    check(f.device.used_event() == 0xffff); // as start left it
    f.queue.disable_notifications();
    f.device.give_back(f.head(0xffff), 0);
    check(f.queue.enable_notifications()); // one came meanwhile
    check(f.device.available_flags() == 0);
    check(f.queue.pop_used()->token == 1);
    check(!f.queue.enable_notifications());
  }
  { // by the event word
    fixture<4> f(event_index, 0xffff);
    f.queue.disable_notifications();
    check(f.device.available_flags() == 0 && f.device.used_event() == 0xffff);
    check(f.offer(1) && f.offer(2));
    f.device.give_back(f.head(0xffff), 0);
    check(f.queue.enable_notifications());
    check(f.device.available_flags() == 0 && f.device.used_event() == 0xffff);
    check(f.queue.pop_used()->token == 1);
    f.queue.disable_notifications();
    check(f.device.used_event() == 0xffff); // left behind
    check(!f.queue.enable_notifications());
    check(f.device.available_flags() == 0 && f.device.used_event() == 0);
  }
  { // both in the other byte order
    fixture<4, big> f(event_index, 0x1234);
    check(!f.queue.enable_notifications());
    check(f.device.used_event() == 0x1234);
    fixture<4, big> g;
    g.queue.disable_notifications();
    check(g.device.available_flags() == 1);
  }
};
BOTH("SP-13 SP-23 notifications are asked for by the flag or by the event word, never by both",
     asks)

// A caller loops `while (enable_notifications()) while (pop_used()) ...`: with a queue that is
// broken for good it would loop for good.
TEST_CASE("a broken queue, or one whose memory is lost, has nothing to look at again") {
  fixture<4> f;
  REQUIRE(f.offer(1));
  f.device.used_index(77);
  REQUIRE(f.queue.pop_used().error() == error::used_index_jump);
  CHECK(!f.queue.enable_notifications());

  fixture<4>::memory_type ram(base);
  ballast_test::failure_plan plan{.garbage = 0x4242};
  ballast_test::failing_memory<fixture<4>::memory_type> memory(ram, plan);
  std::array<ballast::driver_slot, 4> slots{};
  ballast::split_driver<decltype(memory)> lost(slots);
  REQUIRE(lost.start(memory, layout_of(places(4)), no_features).has_value());
  plan.lose_at = plan.accesses + 1;
  REQUIRE(lost.pop_used().error() == error::memory_lost);
  CHECK(!lost.enable_notifications());
}

// ---- memory that goes away

constexpr auto loses = [](auto check) {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (std::uint64_t garbage : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}})
    for (std::uint64_t n = 1;; ++n) {
      inner_type ram(base);
      ballast_test::scripted_device device({ram.bytes(), base, little}, places(4));
      ballast_test::failure_plan plan{.lose_at = n, .garbage = garbage};
      memory_type memory(ram, plan);
      std::array<ballast::driver_slot, 4> slots{};
      ballast::split_driver<memory_type> queue(slots);
      const auto started = queue.start(memory, layout_of(places(4)), no_features);
      check(started.has_value() || started.error() == error::memory_lost);
      check(queue.is_attached() == started.has_value());
      const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
      const auto added = queue.add(b, b, 1);
      queue.publish();
      (void)queue.should_notify();
      device.give_back(static_cast<std::uint32_t>(device.available_entry(0)), 2);
      const auto used = queue.pop_used();
      // Either all of it went right or the queue says why not; garbage is never taken for a device
      // that broke a rule.
      if (used)
        check(added.has_value() && used->token == 1 && used->length == 2);
      else
        check(used.error() == (started ? error::memory_lost : error::not_attached));
      check(queue.cause() == error::none);
      check(queue.in_flight() == (added.has_value() && !used ? 1 : 0));
      if (plan.is_lost && started) {
        if (!added) check(queue.add(b, {}, 2).error() == error::memory_lost);
        check(queue.pop_used().error() == error::memory_lost);
      }
      if (!plan.is_lost) break;
    }
};
BOTH("RT-14 whenever memory is lost, calls say memory_lost and the queue is not broken", loses)

// The device would find rings that nobody initialised.
TEST_CASE("a start that loses its memory while it writes the rings is memory_lost, and detached") {
  using inner_type = fixture<4>::memory_type;
  for (std::uint64_t n = 1; n <= 16; ++n) {
    inner_type ram(base);
    ballast_test::failure_plan plan{.lose_at = n};
    ballast_test::failing_memory<inner_type> memory(ram, plan);
    std::array<ballast::driver_slot, 4> slots{};
    ballast::split_driver<ballast_test::failing_memory<inner_type>> queue(slots);
    const auto started = queue.start(memory, layout_of(places(4)), no_features);
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
    ballast::split_driver<memory_type> queue(slots);
    const auto started = queue.start(memory, layout_of(places(4)), no_features);
    if (plan.fallible < n) {
      check(started.has_value() && n > 3);
      break;
    }
    check(started.error() == error::access_not_allowed && !queue.is_attached());
    check(plan.accesses == plan.fallible); // no word was touched
  }
};
BOTH("a start that any window refuses gives the memory's error and writes nothing", no_windows)

// ---- orders

constexpr auto orders = [](auto check) {
  using enum ballast_test::event_kind;
  using ballast::order;
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 64>;
  const ring_places at = places(4);
  inner_type ram(base);
  ballast_test::event_log<64> log;
  memory_type memory(ram, log);
  ballast_test::scripted_device device({ram.bytes(), base, little}, at);
  std::array<ballast::driver_slot, 4> slots{};
  ballast::split_driver<memory_type> queue(slots);
  check(queue.start(memory, layout_of(at), event_index).has_value());

  log.clear(); // D1, D2
  const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
  check(queue.add(b, {}, 1).has_value() && queue.add({}, b, 2).has_value());
  check(log.size() == 10 && log.lost() == 0);
  for (std::size_t i = 0; i < log.size(); ++i)
    check(log[i].kind == store && log[i].order == order::plain &&
          log[i].address != at.available + 2);

  log.clear(); // D3
  queue.publish();
  check(log.size() == 1);
  check(log[0] == ballast_test::memory_event{store, order::release, at.available + 2, 2, 2});
  log.clear();
  queue.publish();
  check(log.size() == 0);

  // D4, D5
  (void)queue.should_notify();
  check(log.size() == 2 && log[0].kind == fence);
  check(log[1].kind == load && log[1].order == order::relaxed && log[1].address == at.used + 36);
  log.clear();
  (void)queue.should_notify(); // nothing new: no fence is paid
  check(log.size() == 0);

  device.give_back(static_cast<std::uint32_t>(device.available_entry(0)), 0);
  check(queue.pop_used().has_value()); // D7, D8
  check(log.size() == 3 && log.count(fence) == 0);
  check(log[0].kind == load && log[0].order == order::acquire && log[0].address == at.used + 2);
  for (std::size_t i = 1; i < 3; ++i) check(log[i].kind == load && log[i].order == order::plain);
  check(log[1].address + log[2].address == at.used + 4 + at.used + 8);
  log.clear();
  check(queue.pop_used().error() == error::queue_empty);
  check(log.size() == 1 && log[0].order == order::acquire);

  log.clear(); // D10, D11, D12
  (void)queue.enable_notifications();
  check(log.size() == 3);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.available + 12, 2, 1});
  check(log[1].kind == fence);
  check(log[2].kind == load && log[2].order != order::plain && log[2].address == at.used + 2);
  log.clear(); // D13
  queue.disable_notifications();
  check(log.size() == 0);

  check(queue.start(memory, layout_of(at), no_features).has_value());
  check(queue.add(b, {}, 1).has_value());
  queue.publish();
  log.clear();
  (void)queue.should_notify();
  check(log.size() == 2 && log[0].kind == fence);
  check(log[1].kind == load && log[1].order == order::relaxed && log[1].address == at.used);
  log.clear();
  queue.disable_notifications();
  check(log.size() == 1);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.available, 2, 1});
  log.clear();
  (void)queue.enable_notifications();
  check(log.size() == 3);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.available, 2, 0});
  check(log[1].kind == fence);
  check(log[2].kind == load && log[2].address == at.used + 2);
};
BOTH("SP-21 SP-22 RT-18 every access of the driver has the order that D1 to D13 ask for", orders)

} // namespace
