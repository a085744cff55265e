// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/split_device.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "support/changing_memory.hpp"
#include "support/failing_memory.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_driver.hpp"

#include <array>
#include <memory>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
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

constexpr std::uint16_t flag_next = 1, flag_write = 2, flag_indirect = 4;

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

/// A device's queue, and a scripted driver opposite that has written descriptor i as one buffer of
/// 16 * i readable bytes at 0x1000 * i.
template <std::uint32_t N, std::endian E = little> struct fixture {
  using memory_type = ballast::array_memory<ram_size(N)>;

  memory_type ram{base};
  ring_places at = places(N);
  ballast_test::raw_words words{ram.bytes(), base, E};
  ballast_test::scripted_driver driver;
  ballast::device_queue_storage<N> storage;
  ballast::split_device<memory_type, E> queue{storage};

  constexpr explicit fixture(const feature_set& features = no_features, std::uint16_t first = 0)
      : driver(words, at, first) {
    driver.make_available();
    words.put(at.used + 2, 2, first);
    if (N <= 256)
      for (std::uint32_t i = 0; i < N; ++i) driver.descriptor(i, {0x1000 * i, 16 * i, 0, 0});
    started = queue.start(ram, layout_of(at), features, first).has_value();
  }
  fixture(const fixture&) = delete;

  bool started = false;
};

// ---- start, attach, detach, reset

constexpr auto starts = [](auto check) {
  fixture<4> f;
  for (std::byte& b : f.ram.bytes()) b = std::byte{0xa5};
  check(f.queue.start(f.ram, layout_of(f.at), event_index, 0xa5a5).has_value());
  check(f.queue.is_attached() && f.queue.size() == 4 && f.queue.in_flight() == 0);
  check(f.queue.cause() == error::none);
  check(f.queue.pop_available().error() == error::queue_empty);
  f.queue.publish(); // nothing to publish, nothing written
  check(!f.queue.should_notify());
  for (std::byte b : f.ram.bytes()) check(b == std::byte{0xa5});
};
BOTH("a device's start writes nothing", starts)

template <std::uint32_t N> constexpr error start_with(const ballast::queue_layout& layout) {
  fixture<N> f;
  const auto done = f.queue.start(f.ram, layout, no_features);
  if (!done && (f.queue.is_attached() || f.queue.pop_available().error() != error::not_attached))
    return error::none;
  return done.error();
}

constexpr auto refuses = [](auto check) {
  const ballast::queue_layout good = layout_of(places(4));
  const auto with = [&](std::uint32_t size) {
    ballast::queue_layout l = good;
    l.size = size;
    return start_with<4>(l);
  };
  for (std::uint32_t size : {1u, 2u, 4u}) check(with(size) == error::none);
  for (std::uint32_t size : {0u, 3u, 5u, 6u, 65536u, 0x8000'0000u, 0xffff'ffffu})
    check(with(size) == error::invalid_queue_size);
  for (std::uint32_t size : {8u, 32768u}) check(with(size) == error::storage_too_small);

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

TEST_CASE("RT-20 start refuses a used ring in read-only memory; the rest may be read-only") {
  alignas(4096) static std::array<std::byte, 3 * 4096> host{};
  for (std::size_t read_only = 0; read_only < 4; ++read_only) {
    std::array<ballast::memory_region, 3> regions{};
    for (std::size_t i = 0; i < 3; ++i)
      regions[i] = {base + 0x10000 * i, host.data() + 4096 * i, 4096, i != read_only};
    auto ram = ballast::mapped_memory::over(regions);
    REQUIRE(ram.has_value());
    ballast::device_queue_storage<16> storage;
    ballast::split_device<ballast::mapped_memory> queue(storage);
    const auto done = queue.start(*ram, {16, base, base + 0x10000, base + 0x20000}, no_features);
    CHECK(done.error() == (read_only == 2 ? error::access_not_allowed : error::none));
    CHECK(queue.is_attached() == (read_only != 2));
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
  for (std::uint16_t head : {std::uint16_t{2}, std::uint16_t{0}, std::uint16_t{3}})
    f.driver.offer(head);
  const auto kept = f.queue.pop_available();
  const auto staged = f.queue.pop_available();
  check(kept.has_value() && staged.has_value());
  check(f.queue.push_used(staged->id(), 5).has_value());

  f.queue.detach();
  check(!f.queue.is_attached() && f.queue.size() == 4 && f.queue.in_flight() == 1);
  check(f.queue.pop_available().error() == error::not_attached);
  check(f.queue.consume(4, [](const chain&) { return ballast::used(); }).error() ==
        error::not_attached);
  check(f.queue.push_used(kept->id(), 0).error() == error::not_attached);
  f.queue.publish();
  check(f.driver.used_index() == 0xfffe);
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

  memory_type moved(base + 0x100000);
  for (std::size_t i = 0; i < moved.size(); ++i) moved.bytes()[i] = f.ram.bytes()[i];
  ring_places at = f.at;
  at.table += 0x100000;
  at.available += 0x100000;
  at.used += 0x100000;
  check(f.queue.attach(moved, layout_of(at), event_index).has_value());
  const ballast_test::scripted_driver driver({moved.bytes(), base + 0x100000, little}, at);
  f.queue.publish();
  check(driver.used_index() == 0xffff && driver.used_id(2) == 0 && driver.used_length(2) == 5);
  check(f.queue.push_used(kept->id(), 9).has_value());
  const auto last = f.queue.pop_available();
  check(last.has_value() && last->id().head == 3);
  check(last->readable()[0] == buffer{0x3000, 48});
  f.queue.publish();
  check(driver.used_index() == 0 && driver.used_id(3) == 2 && driver.used_length(3) == 9);
  check(f.queue.in_flight() == 1);
};
BOTH("detach and attach keep indices, staged elements and what is in flight", attaches)

constexpr auto stale = [](auto check) {
  fixture<4> f;
  f.driver.offer(1);
  const auto old = f.queue.pop_available();
  check(old.has_value());
  const chain_id id = old->id();
  check(f.queue.start(f.ram, layout_of(f.at), no_features).has_value());
  check(f.queue.in_flight() == 0);
  const auto again = f.queue.pop_available(); // the same head, in the new life
  check(again.has_value() && again->id().head == id.head && again->id() != id);
  const auto before = f.ram;
  check(f.queue.push_used(id, 7).error() == error::stale_chain);
  f.queue.publish();
  auto copy = before;
  for (std::size_t i = 0; i < f.ram.size(); ++i) check(copy.bytes()[i] == f.ram.bytes()[i]);
  check(f.queue.in_flight() == 1);
  check(f.queue.push_used(again->id(), 7).has_value());

  f.queue.reset();
  check(!f.queue.is_attached() && f.queue.size() == 0 && f.queue.in_flight() == 0);
  check(f.queue.attach(f.ram, layout_of(f.at), no_features).error() == error::invalid_queue_size);
  check(f.queue.push_used(again->id(), 7).error() == error::not_attached);
  check(f.queue.start(f.ram, layout_of(f.at), no_features).has_value());
  check(f.queue.push_used(again->id(), 7).error() == error::stale_chain);
};
BOTH("RT-26 a chain of an earlier life is stale, and returning it touches nothing", stale)

constexpr auto twice = [](auto check) {
  fixture<4> f;
  f.driver.offer(1);
  const auto popped = f.queue.pop_available();
  const chain_id id = popped->id();
  check(f.queue.push_used(id, 0).has_value());
  check(f.queue.push_used(id, 0).error() == error::chain_not_in_flight);
  for (std::uint16_t head : {std::uint16_t{0}, std::uint16_t{3}, std::uint16_t{4},
                             std::uint16_t{31}, std::uint16_t{32}, std::uint16_t{0xffff}})
    check(f.queue.push_used({head, id.epoch}, 0).error() == error::chain_not_in_flight);
  f.queue.publish();
  check(f.driver.used_index() == 1);
  check(f.queue.cause() == error::none); // the device's own mistake breaks nothing

  f.driver.offer(1); // what consume returned can't be returned again either
  chain_id consumed{};
  check(f.queue
            .consume(1,
                     [&](const chain& c) {
                       consumed = c.id();
                       return ballast::used(3);
                     })
            .has_value());
  check(f.queue.push_used(consumed, 3).error() == error::chain_not_in_flight);
};
BOTH("a chain is returned once: again, or never popped, is chain_not_in_flight", twice)

constexpr auto never_started = [](auto check) {
  fixture<4> f;
  ballast::device_queue_storage<4> storage;
  ballast::split_device<fixture<4>::memory_type> queue(storage);
  check(!queue.is_attached() && queue.size() == 0 && queue.cause() == error::none);
  check(queue.attach(f.ram, layout_of(f.at), no_features).error() == error::invalid_queue_size);
  check(queue.attach(f.ram, {}, no_features).error() == error::invalid_queue_size);
  check(queue.pop_available().error() == error::not_attached);
  check(queue.push_used({}, 0).error() == error::not_attached);
  check(!queue.should_notify() && !queue.enable_notifications());
  queue.publish();
  queue.disable_notifications();
  queue.reset();
};
BOTH("RT-22 a queue that was never started does nothing", never_started)

// ---- pop_available

template <std::endian E> constexpr void pops(auto check) {
  fixture<8, E> f(no_features, 0xfffe);
  check(f.started);
  f.driver.descriptor(6, {0x1122'3344'5566'7788, 0x0102'0304, flag_next, 2});
  f.driver.descriptor(2, {2, 0, flag_next, 7});
  f.driver.descriptor(7, {~0ull, 3, flag_next | flag_write, 1});
  f.driver.descriptor(1,
                      {4, 0x0a0b'0c0d, flag_write, 0xffff}); // next means nothing without its flag
  f.driver.descriptor(5, {5, 6, flag_write | 0xfff8, 0});    // flags nobody knows mean nothing
  f.driver.stage(6);
  f.driver.stage(0);
  f.driver.stage(5);
  check(f.queue.pop_available().error() == error::queue_empty);
  f.driver.make_available();
  auto popped = f.queue.pop_available();
  check(popped.has_value() && popped->id().head == 6);
  check(popped->readable().size() == 2 && popped->writable().size() == 2);
  check(popped->readable()[0] == buffer{0x1122'3344'5566'7788, 0x0102'0304});
  check(popped->readable()[1] == buffer{2, 0});
  check(popped->writable()[0] == buffer{~0ull, 3});
  check(popped->writable()[1] == buffer{4, 0x0a0b'0c0d});
  popped = f.queue.pop_available();
  check(popped.has_value() && popped->id().head == 0);
  check(popped->readable().size() == 1 && popped->writable().empty());
  popped = f.queue.pop_available();
  check(popped.has_value() && popped->id().head == 5);
  check(popped->readable().empty() && popped->writable().size() == 1);
  check(f.queue.pop_available().error() == error::queue_empty);
  check(f.queue.in_flight() == 3);
}
constexpr auto pops_both = [](auto check) {
  pops<little>(check);
  pops<big>(check);
};
BOTH("SP-4 pop_available gives chains as the driver wrote them, in its order, over the wrap",
     pops_both)

template <std::endian E> constexpr void pushes(auto check) {
  fixture<4, E> f(no_features, 0xffff);
  for (std::uint16_t head = 0; head < 4; ++head) f.driver.offer(head);
  std::array<chain_id, 4> ids{};
  for (chain_id& id : ids) id = f.queue.pop_available()->id();
  for (std::uint32_t head : {2u, 0u, 3u}) {
    check(f.queue.push_used(ids[head], 0x0102'0300 + head).has_value());
    check(f.driver.used_index() == 0xffff); // staged
  }
  f.queue.publish();
  check(f.driver.used_index() == 2);
  check(f.driver.used_id(3) == 2 && f.driver.used_length(3) == 0x0102'0302);
  check(f.driver.used_id(0) == 0 && f.driver.used_length(0) == 0x0102'0300);
  check(f.driver.used_id(1) == 3 && f.driver.used_length(1) == 0x0102'0303);
  check(f.queue.in_flight() == 1);
  check(f.queue.push_used(ids[1], 0xffff'ffff).has_value());
  f.queue.publish();
  check(f.driver.used_index() == 3);
  check(f.driver.used_id(2) == 1 && f.driver.used_length(2) == 0xffff'ffff);
  check(f.driver.used_flags() == 0);
}
constexpr auto pushes_both = [](auto check) {
  pushes<little>(check);
  pushes<big>(check);
};
BOTH("SP-16 chains go back in any order, invisible until publish", pushes_both)

constexpr auto sizes = [](auto check) {
  const auto whole = [&]<std::uint32_t N>() {
    fixture<N> f(no_features, 0xfffd);
    for (std::uint32_t round = 0; round < 5; ++round) {
      // From descriptor `round` on, round the table: the length of the queue.
      for (std::uint32_t i = 0; i < N; ++i) {
        const std::uint16_t flags = i + 1 < N ? flag_next : 0;
        const std::uint16_t more = i >= N / 2 ? flag_write : 0;
        f.driver.descriptor((round + i) % N, {i, i, static_cast<std::uint16_t>(flags | more),
                                              static_cast<std::uint16_t>((round + i + 1) % N)});
      }
      f.driver.offer(static_cast<std::uint16_t>(round % N));
      const auto popped = f.queue.pop_available();
      check(popped.has_value());
      check(popped->readable().size() == N / 2 && popped->writable().size() == N - N / 2);
      for (std::uint32_t i = 0; i < N / 2; ++i) check(popped->readable()[i] == buffer{i, i});
      for (std::uint32_t i = N / 2; i < N; ++i)
        check(popped->writable()[i - N / 2] == buffer{i, i});
      check(f.queue.push_used(popped->id(), round).has_value());
      f.queue.publish();
      check(f.driver.used_index() == static_cast<std::uint16_t>(0xfffe + round));
      check(f.driver.used_id((0xfffd + round) % N) == round % N);
    }
  };
  whole.template operator()<1>();
  whole.template operator()<2>();
  whole.template operator()<4>();
  whole.template operator()<16>();
};
BOTH("RT-1b RT-19 a chain may be as long as the queue, of every size", sizes)

constexpr auto zero_lengths = [](auto check) {
  fixture<4> f;
  f.driver.descriptor(0, {0, 0, flag_next, 1});
  f.driver.descriptor(1, {~0ull, 0, flag_next, 2});
  f.driver.descriptor(2, {7, 0, flag_write | flag_next, 3});
  f.driver.descriptor(3, {8, 0, flag_write, 0});
  f.driver.offer(0);
  const auto popped = f.queue.pop_available();
  check(popped.has_value());
  check(popped->readable().size() == 2 && popped->writable().size() == 2);
  check(f.queue.push_used(popped->id(), 0).has_value());
};
BOTH("RT-1 buffers of no bytes are buffers", zero_lengths)

// ---- a driver that breaks a rule

/// What pop_available says once it fails, and whether the queue is then broken in every respect.
template <class F> constexpr error breaks(F& f) {
  const error why = f.queue.pop_available().error();
  const bool is_broken =
      f.queue.cause() == why && f.queue.pop_available().error() == why &&
      f.queue.consume(9, [](const chain&) { return ballast::used(); }).error() == why;
  f.driver.available_index(0); // even if the driver thinks better of it
  for (std::uint32_t i = 0; i < f.queue.size(); ++i) f.driver.descriptor(i, {});
  const bool stays = f.queue.pop_available().error() == why && f.queue.cause() == why;
  f.queue.detach();
  const bool is_kept =
      f.queue.attach(f.ram, layout_of(f.at), no_features).has_value() && f.queue.cause() == why;
  return is_broken && stays && is_kept ? why : error::none;
}
/// The same where consume is what finds it, after `good` chains before it.
template <class F> constexpr error consume_breaks(F& f, std::uint32_t good) {
  std::uint32_t count = 0;
  const auto handle = [&](const chain&) {
    ++count;
    return ballast::used(1);
  };
  const error why = f.queue.consume(100, handle).error();
  f.queue.publish(); // those before it go back
  const bool returned = f.driver.used_index() == good && f.queue.in_flight() == 0;
  return count == good && returned && f.queue.cause() == why ? why : error::none;
}

constexpr auto index_jumps = [](auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{0xfffe}})
    for (std::uint16_t step : {std::uint16_t{5}, std::uint16_t{6}, std::uint16_t{0x7fff},
                               std::uint16_t{0x8000}, std::uint16_t{0xffff}}) {
      fixture<4> f(no_features, first);
      f.driver.available_index(static_cast<std::uint16_t>(first + step));
      check(breaks(f) == error::available_index_jump);
      fixture<4> g;
      g.driver.available_index(step);
      check(consume_breaks(g, 0) == error::available_index_jump);
    }
  fixture<4> f; // exactly the queue size is right
  for (std::uint16_t head = 0; head < 4; ++head) f.driver.offer(head);
  for (std::uint16_t head = 0; head < 4; ++head) check(f.queue.pop_available().has_value());
  f.driver.available_index(3); // back
  check(f.queue.pop_available().error() == error::available_index_jump);
};
BOTH("RT-21 an available index that jumps, or goes back, breaks the queue", index_jumps)

constexpr auto bad_heads = [](auto check) {
  for (std::uint16_t head : {std::uint16_t{4}, std::uint16_t{5}, std::uint16_t{0x100},
                             std::uint16_t{0x8000}, std::uint16_t{0xffff}}) {
    fixture<4> f;
    f.driver.offer(head);
    check(breaks(f) == error::head_out_of_range);
    fixture<4> g;
    g.driver.offer(2);
    g.driver.offer(head);
    g.driver.offer(1);
    check(consume_breaks(g, 1) == error::head_out_of_range);
  }
};
BOTH("RT-16 a head beyond the queue breaks it", bad_heads)

constexpr auto same_heads = [](auto check) {
  fixture<4> f;
  f.driver.offer(2);
  check(f.queue.pop_available().has_value());
  f.driver.offer(2);
  check(breaks(f) == error::head_in_flight);
  check(f.queue.in_flight() == 1);

  fixture<4> g; // kept by a handler
  g.driver.offer(2);
  check(g.queue.consume(1, [](const chain&) { return ballast::keep(); }).has_value());
  g.driver.offer(1);
  g.driver.offer(2);
  check(g.queue.consume(9, [](const chain&) { return ballast::used(); }).error() ==
        error::head_in_flight);

  fixture<4> h; // within one batch
  h.driver.offer(2);
  h.driver.offer(2);
  check(h.queue.consume(9, [](const chain&) { return ballast::keep(); }).error() ==
        error::head_in_flight);
  check(h.queue.in_flight() == 1);

  fixture<4> once; // returned and made available again is right
  for (int i = 0; i < 6; ++i) {
    once.driver.offer(3);
    check(once.queue.push_used(once.queue.pop_available()->id(), 0).has_value());
  }
};
BOTH("RT-13 RT-2 a head that is in flight already breaks the queue", same_heads)

constexpr auto bad_next = [](auto check) {
  for (std::uint16_t n :
       {std::uint16_t{4}, std::uint16_t{5}, std::uint16_t{0x8001}, std::uint16_t{0xffff}}) {
    fixture<4> f;
    f.driver.descriptor(0, {1, 1, flag_next, n});
    f.driver.offer(0);
    check(breaks(f) == error::next_out_of_range);
    fixture<4> g;
    g.driver.descriptor(0, {1, 1, flag_next, 1});
    g.driver.descriptor(1, {1, 1, flag_next | flag_write, n});
    g.driver.offer(3);
    g.driver.offer(0);
    check(consume_breaks(g, 1) == error::next_out_of_range);
  }
};
BOTH("RT-14 a next beyond the queue breaks it", bad_next)

constexpr auto loops = [](auto check) {
  { // to itself
    fixture<4> f;
    f.driver.descriptor(2, {1, 0, flag_next, 2});
    f.driver.offer(2);
    check(breaks(f) == error::chain_loops);
  }
  { // all round; and one that never comes back to its head
    for (std::uint16_t last : {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{2}}) {
      fixture<4> f;
      for (std::uint16_t i = 0; i < 4; ++i)
        f.driver.descriptor(i,
                            {1, 1, flag_next, i == 3 ? last : static_cast<std::uint16_t>(i + 1)});
      f.driver.offer(0);
      check(consume_breaks(f, 0) == error::chain_loops);
    }
  }
  { // the shortest queue
    fixture<1> f;
    f.driver.descriptor(0, {1, 1, flag_next, 0});
    f.driver.offer(0);
    check(breaks(f) == error::chain_loops);
  }
};
BOTH("RT-1 RT-9 a chain longer than the queue loops, and breaks it", loops)

constexpr auto bad_order = [](auto check) {
  fixture<4> f;
  f.driver.descriptor(0, {1, 1, flag_next, 1});
  f.driver.descriptor(1, {1, 1, flag_next | flag_write, 2});
  f.driver.descriptor(2, {1, 1, 0, 0});
  f.driver.offer(0);
  check(breaks(f) == error::readable_after_writable);
  fixture<2> g; // of no bytes too
  g.driver.descriptor(0, {1, 0, flag_next | flag_write, 1});
  g.driver.descriptor(1, {1, 0, 0, 0});
  g.driver.offer(0);
  check(consume_breaks(g, 0) == error::readable_after_writable);
};
BOTH("SP-5 a readable buffer behind a writable one breaks the queue", bad_order)

constexpr auto indirects = [](auto check) {
  for (std::uint16_t flags : {flag_indirect, static_cast<std::uint16_t>(flag_indirect | flag_write),
                              static_cast<std::uint16_t>(flag_indirect | flag_next)}) {
    fixture<4> f;
    f.driver.descriptor(1, {0x1000, 16, flags, 0});
    f.driver.offer(1);
    check(breaks(f) == error::indirect_not_negotiated);
    fixture<4> g;
    g.driver.descriptor(0, {0x1000, 16, flag_next, 1});
    g.driver.descriptor(1, {0x1000, 16, flags, 0});
    g.driver.offer(0);
    check(consume_breaks(g, 0) == error::indirect_not_negotiated);
  }
};
BOTH("SP-9 INDIRECT without the feature breaks the queue", indirects)

constexpr auto too_many_bytes = [](auto check) {
  const auto with = [](std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    fixture<4> f;
    f.driver.descriptor(0, {0, a, flag_next, 1});
    f.driver.descriptor(1, {0, b, flag_next | flag_write, 2});
    f.driver.descriptor(2, {0, c, flag_write, 0});
    f.driver.offer(0);
    return f.queue.pop_available().error();
  };
  check(with(0xffff'ffff, 0, 0) == error::none);
  check(with(0xffff'ffff, 1, 0) == error::none); // 2^32 is the most
  check(with(0xffff'ffff, 1, 1) == error::chain_bytes_overflow);
  check(with(0, 0x8000'0000, 0x8000'0001) == error::chain_bytes_overflow);
  check(with(0xffff'ffff, 0xffff'ffff, 2) == error::chain_bytes_overflow); // 2^33: wraps to 0
  fixture<4> f;
  for (std::uint16_t i = 0; i < 2; ++i)
    f.driver.descriptor(i, {0, 0xffff'ffff, i == 0 ? flag_next : std::uint16_t{0}, 1});
  f.driver.offer(0);
  check(breaks(f) == error::chain_bytes_overflow);
};
BOTH("RT-24 a chain of more than 2^32 bytes breaks the queue", too_many_bytes)

constexpr auto broken_returns = [](auto check) {
  fixture<4> f;
  f.driver.offer(0);
  f.driver.offer(1);
  f.driver.offer(9);
  const auto a = f.queue.pop_available();
  const chain_id first = a->id();
  const auto b = f.queue.pop_available();
  const chain_id second = b->id();
  check(f.queue.push_used(first, 1).has_value());
  check(f.queue.pop_available().error() == error::head_out_of_range);
  check(f.queue.in_flight() == 1);
  check(f.queue.push_used(second, 2).has_value());
  check(f.queue.push_used(second, 2).error() == error::chain_not_in_flight);
  f.queue.publish();
  check(f.queue.should_notify());
  check(f.driver.used_index() == 2 && f.driver.used_id(1) == 1 && f.driver.used_length(1) == 2);
  check(f.queue.cause() == error::head_out_of_range && f.queue.in_flight() == 0);

  check(f.queue.start(f.ram, layout_of(f.at), no_features, 2).has_value()); // heals
  check(f.queue.cause() == error::none);
  f.driver.available_entry(2, 3);
  check(f.queue.pop_available()->id().head == 3);
};
BOTH("RT-8 what was popped before a queue broke is still returned, and start heals it",
     broken_returns)

constexpr auto fails = [](auto check) {
  fixture<4> f;
  f.driver.offer(0);
  f.driver.offer(1);
  const auto popped = f.queue.pop_available();
  const chain_id id = popped->id();
  f.queue.fail(error::not_guest_memory);
  f.queue.fail(error::page_out_of_range); // the first cause stays
  check(f.queue.cause() == error::not_guest_memory);
  check(f.queue.pop_available().error() == error::not_guest_memory);
  check(f.queue.push_used(id, 0).has_value());
  f.queue.reset();
  check(f.queue.cause() == error::none);
};
BOTH("fail breaks the queue for the device's own reason", fails)

// ---- consume

constexpr auto consumes = [](auto check) {
  for (std::uint32_t budget : {0u, 1u, 2u, 3u, 4u, 1000u}) {
    fixture<4> f(no_features, 0xffff);
    for (std::uint16_t head = 0; head < 3; ++head) f.driver.offer(head);
    std::uint32_t count = 0;
    const auto handle = [&](const chain& c) {
      check(c.id().head == count && c.readable()[0].address == 0x1000 * count);
      return ballast::used(count++ + 1);
    };
    const std::uint32_t expected = budget < 3 ? budget : 3;
    const auto done = f.queue.consume(budget, handle);
    check(done.has_value() && done->chains == expected && count == expected);
    check(done->has_more == (budget < 3));
    check(f.driver.used_index() == 0xffff); // staged
    f.queue.publish();
    check(f.driver.used_index() == static_cast<std::uint16_t>(0xffff + expected));
    for (std::uint16_t i = 0; i < expected; ++i)
      check(f.driver.used_id((0xffffu + i) % 4) == i &&
            f.driver.used_length((0xffffu + i) % 4) == i + 1u);
    check(f.queue.in_flight() == 0);
    const auto rest = f.queue.consume(100, handle); // and goes on where it stopped
    check(rest.has_value() && rest->chains == 3 - expected && !rest->has_more && count == 3);
    const auto none = f.queue.consume(100, handle);
    check(none.has_value() && none->chains == 0 && !none->has_more);
  }
};
BOTH("RT-9 consume hands out no more than its budget and says whether more is there", consumes)

constexpr auto mixes = [](auto check) {
  fixture<4> f;
  for (std::uint16_t head = 0; head < 4; ++head) f.driver.offer(head);
  std::array<chain_id, 2> kept{};
  std::uint32_t count = 0;
  const auto done = f.queue.consume(3, [&](const chain& c) {
    const std::uint32_t n = count++;
    if (n == 1) return ballast::used(11);
    kept[n / 2] = c.id();
    return ballast::keep();
  });
  check(done.has_value() && done->chains == 3 && done->has_more);
  check(f.queue.in_flight() == 2);
  const auto last = f.queue.pop_available(); // sees what consume saw
  check(last.has_value() && last->id().head == 3);
  check(f.queue.push_used(kept[1], 12).has_value());
  check(f.queue.push_used(last->id(), 13).has_value());
  check(f.queue.push_used(kept[0], 14).has_value());
  f.queue.publish();
  check(f.driver.used_index() == 4 && f.queue.in_flight() == 0);
  const std::uint32_t ids[] = {1, 2, 3, 0};
  for (std::uint32_t i = 0; i < 4; ++i)
    check(f.driver.used_id(i) == ids[i] && f.driver.used_length(i) == 11 + i);
};
BOTH("a handler keeps chains and they go back later, in any order", mixes)

constexpr auto grows = [](auto check) {
  // What the driver adds while a batch is handled is for the next call.
  fixture<4> f;
  f.driver.offer(0);
  std::uint32_t count = 0;
  const auto handle = [&](const chain&) {
    if (++count < 4) f.driver.offer(static_cast<std::uint16_t>(count));
    return ballast::used();
  };
  for (std::uint32_t i = 1; i <= 4; ++i) {
    const auto done = f.queue.consume(100, handle);
    check(done.has_value() && done->chains == 1 && count == i);
  }
};
BOTH("RT-9 a driver that refills while it is served can't hold consume", grows)

TEST_CASE("RT-19 a queue of 32768") {
  const auto f = std::make_unique<fixture<32768>>(no_features, std::uint16_t{40000});
  REQUIRE(f->started);
  for (std::uint32_t i = 0; i < 32768; ++i)
    f->driver.descriptor(i, {i, 1,
                             static_cast<std::uint16_t>(i == 32767 ? 2
                                                        : i < 100  ? 1
                                                                   : 3),
                             static_cast<std::uint16_t>(i + 1)});
  f->driver.offer(0);
  {
    const auto popped = f->queue.pop_available();
    REQUIRE(popped.has_value());
    CHECK(popped->readable().size() == 100);
    CHECK(popped->writable().size() == 32668);
    CHECK(popped->writable()[32667] == buffer{32767, 1});
    CHECK(f->queue.push_used(popped->id(), 5).has_value());
  }
  for (std::uint32_t i = 0; i < 32768; ++i) f->driver.descriptor(i, {i, i, 0, 0});
  for (std::uint32_t i = 0; i < 32768; ++i) f->driver.stage(static_cast<std::uint16_t>(32767 - i));
  f->driver.make_available();
  std::uint32_t count = 0, wrong = 0;
  const auto done = f->queue.consume(40000, [&](const chain& c) {
    wrong += c.id().head != 32767 - count;
    wrong += c.readable()[0] != buffer{32767 - count, 32767 - count};
    ++count;
    return ballast::keep();
  });
  CHECK(done.has_value());
  CHECK(done->chains == 32768);
  CHECK(wrong == 0);
  CHECK(f->queue.in_flight() == 32768);
  const std::uint32_t epoch = 1; // of the first life
  for (std::uint32_t i = 0; i < 32768; ++i) {
    const chain_id id{static_cast<std::uint16_t>(i * 5 % 32768), epoch};
    REQUIRE(f->queue.push_used(id, i).has_value());
  }
  f->queue.publish();
  CHECK(f->driver.used_index() == static_cast<std::uint16_t>(40001 + 32768));
  for (std::uint32_t i = 0; i < 32768; ++i)
    wrong += f->driver.used_id((40001 + i) % 32768) != i * 5 % 32768;
  CHECK(wrong == 0);
  f->driver.available_index(static_cast<std::uint16_t>(f->driver.next() + 32769));
  CHECK(f->queue.pop_available().error() == error::available_index_jump);
}

// ---- a long life against a model

template <std::uint32_t N, std::endian E>
bool lives_long(std::uint64_t seed, std::uint16_t first, int steps) {
  const auto owner = std::make_unique<fixture<N, E>>(no_features, first);
  fixture<N, E>& f = *owner;
  std::uint64_t state = seed;
  const auto below = [&](std::uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>((state >> 33) % n);
  };
  enum class where { free, staged, there, held };
  std::array<where, N> heads{};
  std::array<std::uint16_t, N> staged{}, there{};
  std::array<chain_id, N> held{};
  std::uint32_t staged_count = 0, there_count = 0, held_count = 0;
  std::uint16_t used_index = first, used_next = first;
  for (int step = 0; step < steps; ++step) {
    const std::uint32_t action = below(7);
    if (action <= 1) { // the driver stages a free head
      const auto head = static_cast<std::uint16_t>(below(N));
      if (heads[head] != where::free) continue;
      heads[head] = where::staged;
      f.driver.descriptor(head,
                          {seed + head, head, below(2) != 0 ? flag_write : std::uint16_t{0}, 0});
      f.driver.stage(head);
      staged[staged_count++] = head;
    } else if (action == 2) {
      f.driver.make_available();
      for (std::uint32_t i = 0; i < staged_count; ++i) {
        there[there_count++] = staged[i];
        heads[staged[i]] = where::there;
      }
      staged_count = 0;
    } else if (action <= 4) { // the device pops one, or some
      const std::uint32_t budget = below(4);
      std::uint32_t got = 0;
      bool is_right = true;
      const auto handle = [&](const chain& c) {
        const std::uint16_t head = c.id().head;
        is_right &= got < there_count && there[got] == head;
        const auto all = c.readable().size() + c.writable().size();
        const buffer b = c.readable().empty() ? c.writable()[0] : c.readable()[0];
        is_right &= all == 1 && b == buffer{seed + head, head};
        ++got;
        if (below(2) == 0) {
          held[held_count++] = c.id();
          heads[head] = where::held;
          return ballast::keep();
        }
        heads[head] = where::free; // once published, below
        ++used_next;
        return ballast::used(head + 1u);
      };
      const std::uint32_t was_there = there_count;
      if (action == 3) {
        const auto done = f.queue.consume(budget, handle);
        if (!done || done->chains != (budget < was_there ? budget : was_there)) return false;
        if (done->has_more != (budget < was_there)) return false;
      } else {
        const auto popped = f.queue.pop_available();
        if (popped.has_value() != (was_there != 0)) return false;
        if (popped) {
          is_right &= popped->id().head == there[0];
          held[held_count++] = popped->id();
          heads[there[0]] = where::held;
          got = 1;
        }
      }
      if (!is_right) return false;
      for (std::uint32_t i = got; i < there_count; ++i) there[i - got] = there[i];
      there_count -= got;
      f.queue.publish(); // now the driver may have those that are free
      used_index = used_next;
    } else if (action == 5) {
      if (held_count == 0) continue;
      const std::uint32_t n = below(held_count);
      const chain_id id = held[n];
      if (!f.queue.push_used(id, id.head + 1u)) return false;
      if (f.queue.push_used(id, 0).error() != error::chain_not_in_flight) return false;
      held[n] = held[--held_count];
      if (f.driver.used_id(used_next % N) != id.head) return false;
      if (f.driver.used_length(used_next % N) != id.head + 1u) return false;
      ++used_next;
      if (f.driver.used_index() != used_index) return false; // staged
      f.queue.publish();
      used_index = used_next;
      heads[id.head] = where::free;
    } else if (below(16) == 0) {
      f.queue.detach();
      if (!f.queue.attach(f.ram, layout_of(f.at), no_features)) return false;
    }
    if (f.queue.in_flight() != held_count || f.queue.cause() != error::none) return false;
    if (f.driver.used_index() != used_index) return false;
  }
  return true;
}

TEST_CASE("RT-8 RT-19 long random lives, as a naive model has them") {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    const auto first = static_cast<std::uint16_t>(0u - seed * 50);
    CHECK(lives_long<1, little>(seed, first, 20000));
    CHECK(lives_long<2, big>(seed, first, 20000));
    CHECK(lives_long<4, little>(seed, first, 20000));
    CHECK(lives_long<8, big>(seed, first, 20000));
    CHECK(lives_long<16, little>(seed, first, 20000));
    CHECK(lives_long<32, big>(seed, first, 20000));
    CHECK(lives_long<64, little>(seed, first, 20000));
    CHECK(lives_long<128, big>(seed, first, 20000));
    CHECK(lives_long<256, little>(seed, first, 20000));
  }
  CHECK(lives_long<16, little>(77, 0, 800000)); // its index goes round
}

// ---- notifications

constexpr auto flags = [](auto check) {
  fixture<4> f;
  const auto serve = [&](std::uint16_t head) {
    f.driver.offer(head);
    check(f.queue.consume(9, [](const chain&) { return ballast::used(); }).has_value());
    f.queue.publish();
    return f.queue.should_notify();
  };
  check(!f.queue.should_notify());
  check(serve(0));
  check(!f.queue.should_notify()); // once
  f.driver.available_flags(1);
  check(!serve(1));
  f.driver.available_flags(0xfffe); // the other bits mean nothing
  check(serve(2));
  f.driver.available_flags(0xffff);
  f.driver.used_event(3); // ignored
  check(!serve(3));
  f.driver.available_flags(0);
  check(!f.queue.should_notify());

  fixture<2, big> g;
  g.driver.available_flags(1);
  g.driver.offer(1);
  check(g.queue.push_used(g.queue.pop_available()->id(), 0).has_value());
  check(!g.queue.should_notify()); // staged is nothing to tell
  g.queue.publish();
  check(!g.queue.should_notify());
};
BOTH("SP-14 without EVENT_IDX the driver's flag decides, and used_event is not looked at", flags)

template <std::endian E> constexpr void events(auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{0xfffd}, std::uint16_t{0x01fe}})
    for (std::uint16_t batch = 1; batch <= 4; ++batch)
      for (int event = -2; event <= 6; ++event) {
        fixture<4, E> f(event_index, first);
        f.driver.available_flags(1); // ignored
        f.driver.used_event(static_cast<std::uint16_t>(first + event));
        for (std::uint16_t i = 0; i < batch; ++i) {
          f.driver.offer(i);
          check(f.queue.push_used(f.queue.pop_available()->id(), 0).has_value());
          f.queue.publish();
        }
        check(f.queue.should_notify() == (event >= 0 && event < batch));
        check(!f.queue.should_notify());
      }
}
constexpr auto events_little = [](auto check) { events<little>(check); };
constexpr auto events_big = [](auto check) { events<big>(check); };
BOTH("SP-15 RT-25 with EVENT_IDX the whole batch since the last check is compared, over the wrap",
     events_little)
BOTH("SP-15 RT-25 the same in a big-endian ring", events_big)

TEST_CASE("SP-15 RT-25 more than 65535 chains between two checks are never missed") {
  for (std::uint32_t count : {65534u, 65535u, 65536u, 65537u, 131072u, 200000u})
    for (std::uint32_t event : {0u, 1u, 65533u, 65534u, 65535u}) {
      fixture<8> f(event_index, 0x1234);
      f.driver.used_event(static_cast<std::uint16_t>(0x1234 + event));
      std::uint32_t wrong = 0;
      for (std::uint32_t i = 0; i < count; ++i) {
        f.driver.offer(i % 8);
        const auto done = f.queue.consume(1, [](const chain&) { return ballast::used(); });
        wrong += !done || done->chains != 1;
        f.queue.publish();
      }
      CHECK(wrong == 0);
      CHECK(f.queue.should_notify() == (event < count));
      CHECK(!f.queue.should_notify());
    }
}

constexpr auto asks = [](auto check) {
  { // by flags
    fixture<4> f(no_features, 0xffff);
    f.words.put(f.at.used + 36, 2, 0x7777);
    f.queue.disable_notifications();
    check(f.driver.used_flags() == 1);
    check(!f.queue.enable_notifications());
    check(f.driver.used_flags() == 0);
    f.queue.disable_notifications();
    f.driver.offer(2);
    check(f.queue.enable_notifications()); // one came meanwhile
    check(f.driver.used_flags() == 0 && f.driver.available_event() == 0x7777);
    check(f.queue.pop_available().has_value());
    check(!f.queue.enable_notifications());
  }
  { // by the event word
    fixture<4> f(event_index, 0xffff);
    f.queue.disable_notifications();
    check(f.driver.used_flags() == 0 && f.driver.available_event() == 0);
    f.driver.offer(0);
    f.driver.offer(1);
    check(f.queue.enable_notifications());
    check(f.driver.used_flags() == 0 && f.driver.available_event() == 0xffff);
    const auto done = f.queue.consume(1, [](const chain&) { return ballast::used(); });
    check(done.has_value() && done->has_more);
    check(f.queue.enable_notifications()); // seen and not served
    check(f.driver.available_event() == 0);
    check(f.queue.pop_available().has_value());
    f.queue.disable_notifications();
    check(f.driver.available_event() == 0); // left behind
    check(!f.queue.enable_notifications());
    check(f.driver.used_flags() == 0 && f.driver.available_event() == 1);
  }
  { // both in the other byte order
    fixture<4, big> f(event_index, 0x1234);
    check(!f.queue.enable_notifications());
    check(f.driver.available_event() == 0x1234);
    fixture<4, big> g;
    g.queue.disable_notifications();
    check(g.driver.used_flags() == 1);
  }
};
BOTH("SP-20 notifications are asked for by the flag or by the event word, never by both", asks)

// A caller loops `do consume(...) while (enable_notifications())`: with a queue that is broken for
// good it would loop for good.
TEST_CASE("a broken queue, or one whose memory is lost, has nothing to look at again") {
  fixture<4> f;
  f.driver.available_index(77);
  REQUIRE(f.queue.pop_available().error() == error::available_index_jump);
  CHECK(!f.queue.enable_notifications());

  fixture<4>::memory_type ram(base);
  ballast_test::failure_plan plan{.garbage = 0x4242};
  ballast_test::failing_memory<fixture<4>::memory_type> memory(ram, plan);
  ballast::device_queue_storage<4> storage;
  ballast::split_device<decltype(memory)> lost(storage);
  REQUIRE(lost.start(memory, layout_of(places(4)), no_features).has_value());
  plan.lose_at = plan.accesses + 1;
  REQUIRE(lost.pop_available().error() == error::memory_lost);
  CHECK(!lost.enable_notifications());
}

// ---- restore

TEST_CASE("a head is in flight in no queue that was never started, or was reset") {
  // Bits behind the storage must not be looked at.
  struct {
    ballast::device_queue_storage<4> storage;
    std::array<std::uint32_t, 2048> behind{};
  } memory;
  memory.behind.fill(0xffff'ffff);
  fixture<4> f;
  ballast::split_device<fixture<4>::memory_type> queue(memory.storage);
  for (int life = 0; life < 2; ++life) {
    for (std::uint32_t head : {0u, 3u, 4u, 31u, 32u, 63u, 1000u, 0xffffu})
      CHECK(queue.held_chain(static_cast<std::uint16_t>(head)).error() ==
            error::chain_not_in_flight);
    REQUIRE(queue.start(f.ram, layout_of(f.at), no_features).has_value());
    queue.reset();
  }
}

TEST_CASE("a restore that any window refuses is an error, and the queue goes on as it was") {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (std::uint64_t n = 1;; ++n) {
    fixture<4> f;
    f.driver.offer(2);
    ballast_test::failure_plan plan{.window_error = error::access_not_allowed};
    memory_type memory(f.ram, plan);
    ballast::device_queue_storage<4> storage;
    ballast::split_device<memory_type> queue(storage);
    REQUIRE(queue.start(memory, layout_of(f.at), no_features).has_value());
    const chain_id id = queue.pop_available()->id();
    plan.fail_at = plan.fallible + n;
    const ballast::held_head held[] = {{1, 1}};
    const auto done =
        queue.restore(memory, layout_of(f.at), no_features, {.size = 4, .next_available = 1}, held);
    CHECK(queue.is_attached());
    CHECK(queue.in_flight() == 1);
    if (plan.fallible < plan.fail_at) {
      CHECK(done.has_value());
      CHECK(queue.held_chain(1).has_value());
      break;
    }
    CHECK(done.error() == error::access_not_allowed);
    CHECK(queue.push_used(id, 0).error() == error::none);
  }
}

// ---- hostile memory

constexpr auto loses = [](auto check) {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (std::uint64_t garbage : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}})
    for (std::uint64_t n = 1;; ++n) {
      inner_type ram(base);
      ballast_test::scripted_driver driver({ram.bytes(), base, little}, places(4));
      driver.descriptor(2, {0x1000, 10, flag_next, 3});
      driver.descriptor(3, {0x2000, 20, flag_write, 0});
      driver.descriptor(0, {0x3000, 30, 0, 0});
      driver.offer(2);
      driver.offer(0);
      ballast_test::failure_plan plan{.lose_at = n, .garbage = garbage};
      memory_type memory(ram, plan);
      ballast::device_queue_storage<4> storage;
      ballast::split_device<memory_type> queue(storage);
      const auto started = queue.start(memory, layout_of(places(4)), no_features);
      check(started.has_value() || started.error() == error::memory_lost);
      std::uint32_t handed = 0, kept = 0;
      const auto handle = [&](const chain& c) {
        check(c.id().head == (handed == 0 ? 2 : 0)); // never a chain made of garbage
        check(c.readable()[0].length == (handed == 0 ? 10 : 30));
        return ++handed, ++kept, ballast::keep();
      };
      const auto done = queue.consume(9, handle);
      if (done)
        check(done->chains == 2 && handed == 2);
      else
        check(done.error() == (started ? error::memory_lost : error::not_attached));
      check(queue.cause() == error::none && queue.in_flight() == handed);
      const auto pushed = queue.push_used({2, 1}, 1);
      if (pushed)
        check(handed != 0 && queue.in_flight() == handed - 1);
      else if (started)
        check(pushed.error() == (handed == 0 ? error::chain_not_in_flight : error::memory_lost));
      queue.publish();
      (void)queue.should_notify();
      (void)queue.enable_notifications();
      if (!plan.is_lost) {
        check(driver.used_index() == 1);
        break;
      }
      check(!queue.pop_available().has_value());
    }
};
BOTH("RT-14 whenever memory is lost, calls say memory_lost and no chain is lost or made up", loses)

constexpr auto no_windows = [](auto check) {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (std::uint64_t n = 1;; ++n) {
    inner_type ram(base);
    ballast_test::failure_plan plan{.fail_at = n, .window_error = error::access_not_allowed};
    memory_type memory(ram, plan);
    ballast::device_queue_storage<4> storage;
    ballast::split_device<memory_type> queue(storage);
    const auto started = queue.start(memory, layout_of(places(4)), no_features);
    if (plan.fallible < n) {
      check(started.has_value() && n == 4);
      break;
    }
    check(started.error() == error::access_not_allowed && !queue.is_attached());
    check(queue.attach(memory, layout_of(places(4)), no_features).error() ==
          error::invalid_queue_size);
  }
};
BOTH("a start that any window refuses gives the memory's error", no_windows)

/// What a device saw of two chains, in a form that can be compared.
struct seen {
  error why = error::none;
  std::uint32_t chains = 0;
  std::array<std::uint64_t, 32> facts{};
  std::uint32_t count = 0;
  std::uint64_t used_index = 0;
  bool has_overrun = false;

  constexpr void fact(std::uint64_t v) {
    if (count < facts.size())
      facts[count++] = v;
    else
      has_overrun = true;
  }
  friend constexpr bool operator==(const seen&, const seen&) noexcept = default;
};

/// A device serves two chains (no mask below makes a chain visit the changed descriptor twice: each
/// visit would be a load of its own, by right); the word its k-th load gives is `changed` by the
/// peer: for that load only, or from the start of time (`from_start`, by address).
constexpr seen serve(std::uint64_t k, std::uint64_t mask, bool rewrites, bool is_prepared,
                     std::uint64_t address, std::uint64_t width) {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::changing_memory<inner_type>;
  inner_type ram(base);
  ballast_test::raw_words words({ram.bytes(), base, little});
  ballast_test::scripted_driver driver(words, places(4));
  driver.descriptor(2, {0x1000, 10, flag_next, 3});
  driver.descriptor(3, {0x2000, 20, flag_write, 0});
  driver.descriptor(0, {0x3000, 30, flag_next, 1});
  driver.descriptor(1, {0x4000, 40, 0, 2});
  driver.offer(2);
  driver.offer(0);
  const auto w = static_cast<unsigned>(width);
  if (is_prepared) words.put(address, w, words.get(address, w) ^ mask);
  ballast_test::change_plan plan{.change_load = k, .mask = mask, .rewrites_words = rewrites};
  memory_type memory(ram, plan);
  ballast::device_queue_storage<4> storage;
  ballast::split_device<memory_type> queue(storage);
  seen s;
  if (!queue.start(memory, layout_of(places(4)), no_features)) return s;
  const auto done = queue.consume(9, [&](const chain& c) {
    s.fact(c.id().head);
    s.fact(c.readable().size());
    s.fact(c.writable().size());
    for (const buffer& b : c.readable()) s.fact(b.address), s.fact(b.length);
    for (const buffer& b : c.writable()) s.fact(b.address), s.fact(b.length);
    ++s.chains;
    return ballast::used(7);
  });
  s.why = done.error();
  queue.publish();
  s.used_index = driver.used_index();
  return s;
}

/// Which word the k-th load of the honest run reads.
constexpr ballast_test::memory_event load_of(std::uint64_t k) {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 64>;
  inner_type ram(base);
  ballast_test::scripted_driver driver({ram.bytes(), base, little}, places(4));
  driver.descriptor(2, {0x1000, 10, flag_next, 3});
  driver.descriptor(3, {0x2000, 20, flag_write, 0});
  driver.descriptor(0, {0x3000, 30, flag_next, 1});
  driver.descriptor(1, {0x4000, 40, 0, 2});
  driver.offer(2);
  driver.offer(0);
  ballast_test::event_log<64> log;
  memory_type memory(ram, log);
  ballast::device_queue_storage<4> storage;
  ballast::split_device<memory_type> queue(storage);
  if (!queue.start(memory, layout_of(places(4)), no_features)) return {};
  (void)queue.consume(9, [](const chain&) { return ballast::used(7); });
  for (std::size_t i = 0; i < log.size(); ++i)
    if (log[i].kind == ballast_test::event_kind::load && --k == 0) return log[i];
  return {};
}

constexpr auto changes = [](auto check) {
  const seen honest = serve(0, 0, false, false, 0, 0);
  check(honest.why == error::none && honest.chains == 2 && honest.used_index == 2);
  check(!honest.has_overrun);
  std::uint64_t loads = 0;
  for (std::uint64_t k = 1;; ++k) {
    const auto word = load_of(k);
    if (word.size == 0) break;
    ++loads;
    for (std::uint64_t mask : {0x1ull, 0x2ull, 0x8000ull, 0x3'0000'0000ull, 0x4'0000'0000ull,
                               0x2'0000'0000'0000ull, 0xffff'ffff'ffff'ffffull}) {
      const std::uint64_t fits = word.size == 8 ? mask : mask & ((1ull << (8 * word.size)) - 1);
      if (fits == 0) continue;
      const seen got = serve(k, fits, false, false, 0, 0);
      const seen changed = serve(0, fits, false, true, word.address, word.size);
      check(got == honest || got == changed);
    }
  }
  check(loads == 1 + 2 + 4 * 2); // the index, two entries, two words of each descriptor: no more
};
BOTH("RT-15 a word that changes after it was read gives the result of one of two honest runs",
     changes)

constexpr auto rewrites = [](auto check) {
  const seen honest = serve(0, 0, false, false, 0, 0);
  for (std::uint64_t mask : {0x1ull, 0x8000ull, 0x7'0000'0000ull, 0xffff'ffff'ffff'ffffull})
    check(serve(0, mask, true, false, 0, 0) == honest);
};
BOTH("RT-15 a driver that overwrites each word once it was read changes nothing", rewrites)

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
  ballast_test::scripted_driver driver({ram.bytes(), base, little}, at);
  ballast::device_queue_storage<4> storage;
  ballast::split_device<memory_type> queue(storage);
  check(queue.start(memory, layout_of(at), event_index).has_value());
  driver.descriptor(2, {0x1000, 10, flag_next, 3});
  driver.descriptor(3, {0x2000, 20, flag_write, 0});
  driver.offer(2);
  driver.offer(0);

  log.clear(); // V1, V2
  const auto popped = queue.pop_available();
  check(popped.has_value() && log.size() == 6);
  check(log[0].kind == load && log[0].order == order::acquire &&
        log[0].address == at.available + 2);
  for (std::size_t i = 1; i < 6; ++i) check(log[i].kind == load && log[i].order == order::plain);
  check(log[1].address == at.available + 4 && log[1].size == 2);
  for (std::size_t i = 2; i < 6; ++i) check(log[i].size == 8);

  log.clear(); // V4
  check(queue.push_used(popped->id(), 20).has_value());
  check(log.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) check(log[i].kind == store && log[i].order == order::plain);
  check(log[0].address + log[1].address == at.used + 4 + at.used + 8);

  log.clear(); // V5
  queue.publish();
  check(log.size() == 1);
  check(log[0] == ballast_test::memory_event{store, order::release, at.used + 2, 2, 1});
  log.clear();
  queue.publish();
  check(log.size() == 0);

  (void)queue.should_notify(); // V6, V7
  check(log.size() == 2 && log[0].kind == fence);
  check(log[1].kind == load && log[1].order == order::relaxed &&
        log[1].address == at.available + 12);
  log.clear();
  (void)queue.should_notify(); // nothing new: no fence is paid
  check(log.size() == 0);

  // A batch: the index is loaded first, by acquire, and no used index is stored before publish.
  check(queue
            .consume(9,
                     [&](const chain& c) {
                       log.mark(c.id().head);
                       return ballast::used(1);
                     })
            .has_value());
  check(log[0].kind == load && log[0].order == order::acquire &&
        log[0].address == at.available + 2);
  check(log.find(store, at.used + 2) == log.npos && log.count(fence) == 0);
  check(log.find(mark, 0) < log.find(store, at.used + 12));
  check(log.find(store, at.used + 12) != log.npos && log.find(store, at.used + 16) != log.npos);

  log.clear(); // V8, V9, V10
  (void)queue.enable_notifications();
  check(log.size() == 3);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.used + 36, 2, 2});
  check(log[1].kind == fence);
  check(log[2].kind == load && log[2].order != order::plain && log[2].address == at.available + 2);
  log.clear();
  queue.disable_notifications();
  check(log.size() == 0);

  check(queue.start(memory, layout_of(at), no_features).has_value());
  check(queue.consume(9, [](const chain&) { return ballast::used(1); }).has_value());
  queue.publish();
  log.clear();
  (void)queue.should_notify();
  check(log.size() == 2 && log[0].kind == fence);
  check(log[1].kind == load && log[1].order == order::relaxed && log[1].address == at.available);
  log.clear();
  queue.disable_notifications();
  check(log.size() == 1);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.used, 2, 1});
  log.clear();
  (void)queue.enable_notifications();
  check(log.size() == 3);
  check(log[0] == ballast_test::memory_event{store, order::relaxed, at.used, 2, 0});
  check(log[1].kind == fence);
  check(log[2].kind == load && log[2].address == at.available + 2);
};
BOTH("RT-18 every access of the device has the order that V1 to V10 ask for", orders)

} // namespace
