// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/packed_device.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "support/changing_memory.hpp"
#include "support/checked_memory.hpp"
#include "support/failing_memory.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_packed_driver.hpp"
#include "support/tiny_segments.hpp"

#include <array>
#include <initializer_list>
#include <memory>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
using ballast::error;
using ballast::feature_set;
using ballast_test::packed_part;
using ballast_test::packed_places;
using ballast_test::raw_packed_descriptor;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;

constexpr ballast::guest_address base = 0x9'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set indirect{ballast::feature::indirect_desc};

constexpr std::uint16_t flag_next = 1, flag_write = 2, flag_indirect = 4;

/// Numbers to go through, without a cast each.
template <std::uint16_t... n> constexpr std::array<std::uint16_t, sizeof...(n)> u16{n...};

// The event structures are 4-aligned and not 8-aligned, the ring 16-aligned and not 32-aligned.
constexpr packed_places places(std::uint32_t size) {
  return {size, base + 0x10, base + 16 * size + 0x14, base + 0x04};
}
/// Behind the parts there is room for indirect tables, from `tables` on.
constexpr std::size_t ram_size(std::uint32_t size) { return 16 * size + 0x100; }
constexpr ballast::guest_address tables(std::uint32_t size) { return base + 16 * size + 0x18; }
constexpr ballast::queue_layout layout_of(const packed_places& at) {
  return {at.size, at.ring, at.driver_event, at.device_event};
}

/// The buffer that `fixture::offer` makes available as `id`.
constexpr packed_part part_of(std::uint32_t id, std::uint16_t flags = 0) {
  return {0x1000ull * id, 16 * id, flags};
}

/// A device's queue and a scripted driver opposite.
template <std::uint32_t N, std::endian E = little> struct fixture {
  using memory_type = ballast::array_memory<ram_size(N)>;
  static constexpr std::endian byte_order = E;

  memory_type ram{base};
  packed_places at = places(N);
  ballast_test::raw_words words{ram.bytes(), base, E};
  ballast_test::scripted_packed_driver driver;
  ballast::device_queue_storage<N> storage;
  ballast::packed_device<memory_type, E> queue{storage};

  constexpr explicit fixture(const feature_set& features = no_features, std::uint16_t first = 0)
      : driver(words, at, first) {
    started = queue.start(ram, layout_of(at), features, first).has_value();
  }
  fixture(const fixture&) = delete;

  /// Makes a readable buffer available for each id: 16 * id bytes at 0x1000 * id.
  constexpr void offer(std::initializer_list<std::uint16_t> ids) {
    for (const std::uint16_t id : ids) driver.offer(part_of(id), id);
  }
  constexpr bool pops(std::uint16_t id) {
    const auto popped = queue.pop_available();
    return popped && popped->id().head == id && popped->writable().empty() &&
           popped->readable().size() == 1 &&
           popped->readable()[0] == buffer{0x1000u * id, 16u * id};
  }
  constexpr error push(std::uint16_t id, std::uint32_t length = 0) {
    const auto held = queue.held_chain(id);
    return held ? queue.push_used(*held, length).error() : held.error();
  }
  /// Writes an indirect table of such parts, in the words of a descriptor of the ring.
  constexpr void table(ballast::guest_address address, std::initializer_list<packed_part> parts,
                       std::uint16_t id = 0) {
    for (const packed_part& p : parts) {
      words.put(address, 8, p.address);
      words.put(address + 8, 4, p.length);
      words.put(address + 12, 2, id);
      words.put(address + 14, 2, p.flags);
      address += 16;
    }
  }

  bool started = false;
};

constexpr auto use_all = [](const chain&) { return ballast::used(); };

// ---- start, attach, detach, reset

constexpr auto starts = [](auto check) {
  for (std::uint16_t first : u16<0, 1, 2, 3, 4, 0xa5a5>) {
    fixture<3> f;
    for (std::byte& b : f.ram.bytes()) b = std::byte{0xa5};
    // Whose a descriptor is depends on the wrap counter: none of these is the device's.
    const bool wrap = first / 3 % 2 == 0;
    f.driver.descriptor(first % 3, {0, 0, 0, wrap ? std::uint16_t{0x8000} : std::uint16_t{0x80}});
    const auto before = f.ram;
    check(f.queue.start(f.ram, layout_of(f.at), event_index, first).has_value());
    check(f.queue.is_attached() && f.queue.size() == 3 && f.queue.in_flight() == 0);
    check(f.queue.cause() == error::none);
    check(f.queue.pop_available().error() == error::queue_empty);
    f.queue.publish(); // nothing to publish, nothing written
    check(!f.queue.should_notify());
    auto copy = before;
    for (std::size_t i = 0; i < f.ram.size(); ++i) check(copy.bytes()[i] == f.ram.bytes()[i]);
  }
};
BOTH("a packed device's start writes nothing", starts)

constexpr auto ownership = [](auto check) {
  // PK-2: available is AVAIL = wrap counter and USED its inverse, and nothing else is.
  for (std::uint16_t first : u16<0, 2, 3, 5, 6>)
    for (std::uint16_t flags : u16<0, 0x80, 0x8000, 0x8080>) {
      fixture<3> f(no_features, first);
      f.driver.descriptor(first % 3, {7, 8, 2, flags});
      const bool is_there = flags == (first / 3 % 2 == 0 ? 0x80 : 0x8000);
      check(f.queue.enable_notifications() == is_there);
      check(f.queue.pop_available().error() == (is_there ? error::none : error::queue_empty));
    }
};
BOTH("PK-2 PK-5 a descriptor is the device's where AVAIL is the wrap counter and USED is not",
     ownership)

template <std::uint32_t N> constexpr error start_with(const ballast::queue_layout& layout) {
  fixture<N> f;
  const auto done = f.queue.start(f.ram, layout, no_features);
  if (!done && (f.queue.is_attached() || f.queue.size() != 0 ||
                f.queue.pop_available().error() != error::not_attached))
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
  for (std::uint32_t size : {1u, 2u, 3u, 4u}) check(with(size) == error::none);
  for (std::uint32_t size : {0u, 32769u, 65536u, 0x8000'0000u, 0xffff'ffffu})
    check(with(size) == error::invalid_queue_size);
  for (std::uint32_t size : {5u, 7u, 8u, 100u, 32768u})
    check(with(size) == error::storage_too_small);

  for (int part = 0; part < 3; ++part) {
    const auto at_address = [&](ballast::guest_address a) {
      ballast::queue_layout l = good;
      (part == 0 ? l.descriptor_area : part == 1 ? l.driver_area : l.device_area) = a;
      return start_with<4>(l);
    };
    const std::uint32_t bytes = part == 0 ? 64 : 4;
    const std::uint32_t alignment = part == 0 ? 16 : 4;
    for (std::uint64_t a : {std::uint64_t{0}, base - 16, base + ram_size(4), ~std::uint64_t{15}})
      check(at_address(a) == error::not_guest_memory);
    // RT-20: all but the end is memory.
    const std::uint64_t last = (ram_size(4) - bytes) & ~std::uint64_t{alignment - 1};
    check(at_address(base + last) == error::none);
    check(at_address(base + last + alignment) == error::not_guest_memory);
    for (std::uint32_t off = 1; off < alignment; off *= 2)
      check(at_address(base + 0x40 + off) == error::misaligned);
  }
};
BOTH("RT-5 RT-14 RT-20 a packed device's start refuses wrong sizes and parts that lie wrong, and "
     "is then detached",
     refuses)

TEST_CASE("RT-20 PK-3 a packed ring or device event structure in read-only memory is refused") {
  alignas(4096) static std::array<std::byte, 3 * 4096> host{};
  for (std::size_t read_only = 0; read_only < 4; ++read_only) {
    std::array<ballast::memory_region, 3> regions{};
    for (std::size_t i = 0; i < 3; ++i)
      regions[i] = {base + 0x10000 * i, host.data() + 4096 * i, 4096, i != read_only};
    auto ram = ballast::mapped_memory::over(regions);
    REQUIRE(ram.has_value());
    ballast::device_queue_storage<100> storage;
    ballast::packed_device<ballast::mapped_memory> queue(storage);
    const auto done = queue.start(*ram, {100, base, base + 0x10000, base + 0x20000}, no_features);
    const bool is_refused = read_only == 0 || read_only == 2;
    CHECK(done.error() == (is_refused ? error::access_not_allowed : error::none));
    CHECK(queue.is_attached() == !is_refused);
    if (read_only != 3) continue;
    // RT-20: only the last descriptor crosses into the hole behind the region.
    CHECK(queue.start(*ram, {100, base + 4096 - 1584, base + 0x10000, base + 0x20000}, no_features)
              .error() == error::not_guest_memory);
    CHECK(queue.start(*ram, {100, base, base + 0x10000 + 4096, base + 0x20000}, no_features)
              .error() == error::not_guest_memory);
    CHECK(queue.start(*ram, {100, base + 4096 - 1600, base + 0x10ffc, base + 0x20ffc}, no_features)
              .has_value());
  }
}

constexpr auto attaches = [](auto check) {
  fixture<3> f(event_index, 5); // wrap counters at 0, the last entry
  using memory_type = fixture<3>::memory_type;
  check(f.queue.attach(f.ram, layout_of(f.at), event_index).error() == error::already_attached);
  f.offer({2, 0, 1});
  const auto kept = f.queue.pop_available();
  check(kept.has_value());
  const chain_id kept_id = kept->id();
  const auto staged = f.queue.pop_available();
  check(staged.has_value());
  check(f.queue.push_used(staged->id(), 5).has_value());

  f.queue.detach();
  check(!f.queue.is_attached() && f.queue.size() == 3 && f.queue.in_flight() == 1);
  check(f.queue.pop_available().error() == error::not_attached);
  check(f.queue.consume(4, use_all).error() == error::not_attached);
  check(f.queue.consume_one(use_all).error() == error::not_attached);
  check(f.queue.push_used(kept_id, 0).error() == error::not_attached);
  check(f.queue.held_chain(2).has_value() && *f.queue.held_chain(2) == kept_id);
  f.queue.publish();
  check(!f.driver.is_used(5));
  check(!f.queue.should_notify() && !f.queue.enable_notifications());
  f.queue.disable_notifications();

  for (std::uint32_t size : {1u, 2u, 4u, 0u}) {
    ballast::queue_layout other = layout_of(f.at);
    other.size = size;
    check(f.queue.attach(f.ram, other, event_index).error() == error::invalid_queue_size);
  }
  ballast::queue_layout bad = layout_of(f.at);
  bad.device_area += 2;
  check(f.queue.attach(f.ram, bad, event_index).error() == error::misaligned);
  check(!f.queue.is_attached() && f.queue.in_flight() == 1);

  memory_type moved(base + 0x100000);
  for (std::size_t i = 0; i < moved.size(); ++i) moved.bytes()[i] = f.ram.bytes()[i];
  packed_places at = f.at;
  at.ring += 0x100000;
  at.driver_event += 0x100000;
  at.device_event += 0x100000;
  check(f.queue.attach(moved, layout_of(at), event_index).has_value());
  const ballast_test::scripted_packed_driver driver({moved.bytes(), base + 0x100000, little}, at);
  f.queue.publish();
  check(driver.has_used(5, 0, 5) && !driver.is_used(6));
  check(!f.driver.is_used(5)); // and the old memory is left alone
  check(f.queue.push_used(kept_id, 9).has_value());
  check(f.pops(1));
  f.queue.publish();
  check(driver.has_used(6, 2, 9) && !driver.is_used(7) && f.queue.in_flight() == 1);
};
BOTH("a packed device's detach and attach keep places, what is staged and what is in flight",
     attaches)

constexpr auto stale = [](auto check) {
  fixture<4> f;
  f.offer({1});
  const auto old = f.queue.pop_available();
  check(old.has_value());
  const chain_id id = old->id();
  check(f.queue.start(f.ram, layout_of(f.at), no_features).has_value());
  check(f.queue.in_flight() == 0);
  const auto again = f.queue.pop_available(); // the same id, in the new life
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
  f.queue.publish(); // what was staged is forgotten
  check(!f.driver.is_used(0));
  check(f.queue.attach(f.ram, layout_of(f.at), no_features).error() == error::invalid_queue_size);
  check(f.queue.push_used(again->id(), 7).error() == error::not_attached);
  check(f.queue.start(f.ram, layout_of(f.at), no_features).has_value());
  f.queue.publish();
  check(!f.driver.is_used(0));
  check(f.queue.push_used(again->id(), 7).error() == error::stale_chain);
};
BOTH("RT-26 RT-60 a packed device's chain of an earlier life is stale, and returning it touches "
     "nothing",
     stale)

constexpr auto twice = [](auto check) {
  fixture<4> f;
  f.offer({1});
  const auto popped = f.queue.pop_available();
  const chain_id id = popped->id();
  check(f.queue.push_used(id, 0).has_value());
  check(f.queue.push_used(id, 0).error() == error::chain_not_in_flight);
  for (std::uint16_t head : u16<0, 3, 4, 31, 32, 0x7fff, 0x8000, 0xffff>)
    check(f.queue.push_used({head, id.epoch}, 0).error() == error::chain_not_in_flight);
  f.queue.publish();
  check(f.driver.has_used(0, 1, 0) && !f.driver.is_used(1));
  check(f.queue.cause() == error::none); // the device's own mistake breaks nothing

  f.offer({1}); // what consume returned can't be returned again either
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
BOTH("RT-8 a packed device's chain is returned once: again, or never popped, is an error", twice)

constexpr auto never_started = [](auto check) {
  fixture<4> f;
  ballast::device_queue_storage<4> storage;
  ballast::packed_device<fixture<4>::memory_type> queue(storage);
  check(!queue.is_attached() && queue.size() == 0 && queue.cause() == error::none);
  check(queue.attach(f.ram, layout_of(f.at), no_features).error() == error::invalid_queue_size);
  check(queue.attach(f.ram, {}, no_features).error() == error::invalid_queue_size);
  check(queue.pop_available().error() == error::not_attached);
  check(queue.consume(1, use_all).error() == error::not_attached);
  check(queue.push_used({}, 0).error() == error::not_attached);
  check(queue.held_chain(0).error() == error::chain_not_in_flight);
  check(queue.unpop(1).error() == error::chain_not_in_flight && queue.unpop(0).has_value());
  check(!queue.should_notify() && !queue.enable_notifications());
  queue.publish();
  queue.disable_notifications();
  queue.reset();
};
BOTH("RT-22 a packed device's queue that was never started does nothing", never_started)

TEST_CASE("an id is in flight in no packed queue that was never started, or was reset") {
  // Bits behind the storage must not be looked at.
  struct {
    ballast::device_queue_storage<4> storage;
    std::array<std::uint32_t, 2048> behind{};
  } memory;
  memory.behind.fill(0xffff'ffff);
  fixture<4> f;
  ballast::packed_device<fixture<4>::memory_type> queue(memory.storage);
  for (int life = 0; life < 2; ++life) {
    for (std::uint32_t head : {0u, 3u, 4u, 31u, 32u, 63u, 1000u, 0xffffu})
      CHECK(queue.held_chain(static_cast<std::uint16_t>(head)).error() ==
            error::chain_not_in_flight);
    REQUIRE(queue.start(f.ram, layout_of(f.at), no_features).has_value());
    CHECK(queue.held_chain(4).error() == error::chain_not_in_flight);
    queue.reset();
  }
}

// ---- pop_available

template <std::endian E> constexpr void pops(auto check) {
  // From the last entry of a round on, where both wrap counters are 0.
  fixture<7, E> f(no_features, 13);
  check(f.started);
  check(f.queue.pop_available().error() == error::queue_empty);
  const packed_part parts[] = {{0x1122'3344'5566'7788, 0x0102'0304, 0},
                               {2, 0, 0},
                               {~0ull, 3, flag_write},
                               // Flags that nobody knows mean nothing.
                               {4, 0x0a0b'0c0d, flag_write | 0x7f78}};
  f.driver.stage(parts, 6);
  const packed_part single{0x1000, 16, 0}, writable{5, 6, flag_write | 0x7f78};
  f.driver.stage({&single, 1}, 1);
  f.driver.stage({&writable, 1}, 0);
  check(f.queue.pop_available().error() == error::queue_empty); // the first one's flags are old
  f.driver.make_available();
  auto popped = f.queue.pop_available();
  check(popped.has_value() && popped->id().head == 6); // of its last descriptor
  check(popped->readable().size() == 2 && popped->writable().size() == 2);
  check(popped->readable()[0] == buffer{0x1122'3344'5566'7788, 0x0102'0304});
  check(popped->readable()[1] == buffer{2, 0});
  check(popped->writable()[0] == buffer{~0ull, 3});
  check(popped->writable()[1] == buffer{4, 0x0a0b'0c0d});
  check(f.pops(1));
  popped = f.queue.pop_available();
  check(popped.has_value() && popped->id().head == 0);
  check(popped->readable().empty() && popped->writable().size() == 1);
  check(popped->writable()[0] == buffer{5, 6});
  check(f.queue.pop_available().error() == error::queue_empty);
  check(f.queue.in_flight() == 3);
}
constexpr auto pops_both = [](auto check) {
  pops<little>(check);
  pops<big>(check);
};
BOTH("PK-4 PK-8 PK-14 a packed device pops chains in ring order, over its end, with the last id",
     pops_both)

template <std::endian E> constexpr void pushes(auto check) {
  // Chains of 2, 1 and 3 descriptors over the ring's end, in every order of return.
  constexpr std::uint32_t lengths[] = {2, 1, 3};
  constexpr std::uint32_t orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                         {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (std::uint16_t first : u16<0, 5, 6, 9, 13>)
    for (const auto& order : orders) {
      fixture<7, E> f(no_features, first);
      for (std::uint16_t id = 0; id < 3; ++id) {
        std::array<packed_part, 3> parts{};
        for (packed_part& p : parts) p = part_of(id);
        f.driver.offer(std::span<const packed_part>(parts).first(lengths[id]), id);
      }
      for (int i = 0; i < 3; ++i) check(f.queue.pop_available().has_value());
      std::uint64_t at = first;
      for (std::uint32_t id : order) {
        check(f.push(static_cast<std::uint16_t>(id), 0x0102'0300 + id) == error::none);
        check(!f.driver.is_used(first)); // staged
      }
      f.queue.publish();
      for (std::uint32_t id : order) {
        // One used descriptor, then as many are skipped as the chain took.
        check(f.driver.has_used(at, id, 0x0102'0300 + id));
        for (std::uint32_t i = 1; i < lengths[id]; ++i) check(!f.driver.is_used(at + i));
        at += lengths[id];
      }
      check(f.queue.in_flight() == 0 && !f.driver.is_used(at));
      f.driver.offer(part_of(5), 5); // and the next goes behind them
      check(f.pops(5) && f.push(5, 0xffff'ffff) == error::none);
      f.queue.publish();
      check(f.driver.has_used(at, 5, 0xffff'ffff));
    }
}
constexpr auto pushes_little = [](auto check) { pushes<little>(check); };
constexpr auto pushes_big = [](auto check) { pushes<big>(check); };
BOTH("PK-4 PK-14 chains go back to a packed ring in any order: one descriptor each, the rest "
     "skipped",
     pushes_little)
BOTH("PK-4 PK-14 the same in a big-endian packed ring", pushes_big)

constexpr auto write_flags = [](auto check) {
  // By push_used and by consume, of a writable buffer and of a chain.
  for (int way = 0; way < 4; ++way) {
    fixture<7> f;
    for (std::uint16_t id = 0; id < 3; ++id) {
      const packed_part parts[] = {part_of(id, way < 2 ? flag_write : std::uint16_t{0}),
                                   part_of(id, flag_write)};
      f.driver.offer(std::span(parts).first(way < 2 ? 1 : 2), id);
    }
    for (std::uint16_t id = 0; id < 3; ++id) {
      if (way % 2 == 0)
        check(f.queue.pop_available()->id().head == id && f.push(id, id) == error::none);
      else
        check(f.queue.consume_one([&](const chain& c) { return ballast::used(c.id().head); })
                  ->chains == 1);
      const std::uint32_t at = id * (way < 2 ? 1u : 2u);
      check(!f.driver.is_used(at));
      f.queue.publish();
      const auto d = f.driver.descriptor(at);
      check(d.id == id && d.length == id && d.flags == (id == 0 ? 0x8080 : 0x8082));
      f.queue.publish();
      check(!f.driver.is_used(at + 1));
    }
  }
};
BOTH("PK-13 PK-14 a packed used descriptor has WRITE where bytes were written, and no other flag "
     "of a chain",
     write_flags)

template <std::uint32_t N> constexpr void whole_chains(auto check, std::uint32_t rounds) {
  for (std::uint16_t first : {std::uint16_t{0}, static_cast<std::uint16_t>(2 * N - 1)}) {
    fixture<N> f(no_features, first);
    std::uint64_t at = first;
    for (std::uint32_t round = 1; round <= rounds; ++round) {
      std::array<packed_part, N> parts{};
      for (std::uint32_t i = 0; i < N; ++i)
        parts[i] = {i, i, i >= N / 2 ? flag_write : std::uint16_t{0}};
      f.driver.offer(parts, static_cast<std::uint16_t>(round % N));
      const auto popped = f.queue.pop_available();
      check(popped.has_value() && popped->id().head == round % N);
      check(popped->readable().size() == N / 2 && popped->writable().size() == N - N / 2);
      for (std::uint32_t i = 0; i < N / 2; ++i) check(popped->readable()[i] == buffer{i, i});
      for (std::uint32_t i = N / 2; i < N; ++i)
        check(popped->writable()[i - N / 2] == buffer{i, i});
      check(f.queue.pop_available().error() == error::queue_empty);
      check(f.queue.push_used(popped->id(), round).has_value());
      f.queue.publish();
      check(f.driver.has_used(at, round % N, round));
      at += N;
      f.driver.offer(part_of(0), 0); // so that the next begins elsewhere
      check(f.queue.consume(2, use_all)->chains == 1);
      f.queue.publish();
      check(f.driver.has_used(at++, 0, 0));
    }
  }
}
constexpr auto sizes = [](auto check) {
  whole_chains<1>(check, 5);
  whole_chains<2>(check, 5);
  whole_chains<3>(check, 5);
  whole_chains<7>(check, 3);
};
BOTH("RT-1b RT-19 PK-1 PK-2 a packed chain may be as long as the queue, over several rounds", sizes)
TEST_CASE("RT-19 packed chains as long as the queue, at every place of it") {
  const ballast_test::run_time_check check;
  whole_chains<7>(check, 20);
  whole_chains<100>(check, 210);
}

constexpr auto single_rounds = [](auto check) {
  const auto rounds = [&]<std::uint32_t N>() {
    fixture<N> f;
    for (std::uint32_t i = 0; i < 5 * N + 2; ++i) {
      const auto id = static_cast<std::uint16_t>(i * 5 % N);
      f.driver.offer(part_of(id), id);
      check(f.pops(id) && f.push(id, i) == error::none);
      f.queue.publish();
      check(f.driver.has_used(i, id, i));
    }
  };
  rounds.template operator()<1>();
  rounds.template operator()<3>();
  rounds.template operator()<7>();
};
BOTH("RT-19 PK-2 the packed device's wrap counters toggle behind the last entry of each round",
     single_rounds)

constexpr auto zero_lengths = [](auto check) {
  fixture<4> f;
  f.driver.offer({{0, 0, 0}, {~0ull, 0, 0}, {7, 0, flag_write}, {8, 0, flag_write}}, 3);
  const auto popped = f.queue.pop_available();
  check(popped.has_value());
  check(popped->readable().size() == 2 && popped->writable().size() == 2);
  check(f.queue.push_used(popped->id(), 0).has_value());
  f.queue.publish();
  for (const packed_part& none : {packed_part{0, 0, 0}, packed_part{5, 0, flag_write}}) {
    f.driver.offer(none, 1);
    const auto done = f.queue.consume(5, [&](const chain& c) {
      check(c.readable().size() + c.writable().size() == 1);
      return ballast::used();
    });
    check(done && done->chains == 1);
    f.queue.publish();
  }
};
BOTH("RT-1 a packed device takes buffers of no bytes as buffers", zero_lengths)

// ---- indirect tables

template <std::endian E> constexpr void indirect_pops(auto check) {
  const auto table = tables(4);
  for (std::uint32_t off : {0u, 1u, 7u, 8u, 13u}) // RT-23
    for (std::uint16_t referring : u16<0, flag_write>) {
      fixture<4, E> f(indirect, 7); // the last entry, wrap counters at 0
      // NEXT, INDIRECT, AVAIL, USED and the id mean nothing in a table.
      f.table(table + off,
              {{0x1122'3344'5566'7788, 0x0102'0304, 0},
               {2, 3, flag_next},
               {4, 5, flag_write | flag_indirect | flag_next | 0x8080},
               {6, 0xffff'ffff - 0x0102'0304 - 8, flag_write}},
              0xffff);
      const auto flags = static_cast<std::uint16_t>(flag_indirect | referring);
      f.driver.offer({table + off, 64, flags}, 2);
      f.offer({1});
      const auto popped = f.queue.pop_available();
      check(popped.has_value() && popped->id().head == 2);
      check(popped->readable().size() == 2 && popped->writable().size() == 2);
      check(popped->readable()[0] == buffer{0x1122'3344'5566'7788, 0x0102'0304});
      check(popped->readable()[1] == buffer{2, 3});
      check(popped->writable()[0] == buffer{4, 5});
      check(popped->writable()[1] == buffer{6, 0xffff'ffff - 0x0102'0304 - 8});
      check(f.queue.push_used(popped->id(), 77).has_value());
      check(f.pops(1) && f.push(1) == error::none); // one descriptor of the ring was taken
      f.queue.publish();
      check(f.driver.has_used(7, 2, 77) && f.driver.has_used(8, 1, 0));
    }
}
constexpr auto indirect_pops_both = [](auto check) {
  indirect_pops<little>(check);
  indirect_pops<big>(check);
};
BOTH("RT-23 PK-10 a packed device's indirect table needs no alignment, and only WRITE counts in it",
     indirect_pops_both)

constexpr auto indirect_full = [](auto check) {
  fixture<4> f(indirect);
  for (std::uint16_t id : u16<3, 1, 0, 2>) {
    f.table(tables(4) + 32u * id, {{id, 1, 0}, {id, 2, flag_write}});
    f.driver.offer({tables(4) + 32u * id, 32, flag_indirect}, id);
  }
  std::uint32_t ids = 0;
  const auto done = f.queue.consume(9, [&](const chain& c) {
    ids = ids * 10 + c.id().head;
    check(c.readable()[0] == buffer{c.id().head, 1} && c.writable()[0] == buffer{c.id().head, 2});
    return ballast::used(c.id().head);
  });
  check(done && done->chains == 4 && ids == 3102);
  f.queue.publish();
  check(f.driver.has_used(0, 3, 3) && f.driver.has_used(1, 1, 1) && f.driver.has_used(2, 0, 0) &&
        f.driver.has_used(3, 2, 2));
};
BOTH("a packed device takes as many tables as the queue has entries", indirect_full)

TEST_CASE("RT-14 RT-23 a packed device's table in another region, over two regions, or a hole") {
  alignas(4096) static std::array<std::byte, 3 * 4096> host{};
  host.fill(std::byte{0});
  const ballast::memory_region regions[] = {{base, host.data(), 4096, true},
                                            {base + 0x8000, host.data() + 4096, 4096, false},
                                            {base + 0x9000, host.data() + 8192, 4096, true}};
  auto ram = ballast::mapped_memory::over(regions);
  REQUIRE(ram.has_value());
  const packed_places at{4, base + 0x10, base + 0x60, base + 0x64};
  for (std::uint64_t table : {base + 0x8000, base + 0x8ff0, base + 0x8ff7, base + 0x9fe0,
                              base + 0x9fe1, base + 0xff0, base + 0x7ff8, base + 0x2000}) {
    host.fill(std::byte{0});
    ballast_test::raw_words words({host.data(), 4096}, base, little);
    ballast_test::scripted_packed_driver driver(words, at);
    driver.offer({table, 32, flag_indirect}, 1);
    ballast::device_queue_storage<4> storage;
    ballast::packed_device<ballast::mapped_memory> queue(storage);
    REQUIRE(queue.start(*ram, layout_of(at), indirect).has_value());
    const auto popped = queue.pop_available();
    const bool is_memory = table >= base + 0x8000 && table + 32 <= base + 0xa000;
    CHECK(popped.error() == (is_memory ? error::none : error::indirect_outside));
    if (popped) CHECK(popped->readable().size() == 2);
  }
}

// ---- a driver that breaks a rule

/// What pop_available says once it fails, and whether the queue is then broken in every respect.
template <class F> constexpr error breaks(F& f) {
  const error why = f.queue.pop_available().error();
  const bool is_broken = f.queue.cause() == why && f.queue.pop_available().error() == why &&
                         f.queue.consume(9, use_all).error() == why &&
                         f.queue.consume(0, use_all).error() == why &&
                         !f.queue.enable_notifications();
  // Even if the driver thinks better of it.
  for (std::uint32_t i = 0; i < f.queue.size(); ++i)
    f.driver.descriptor(i, {0, 0, 0, f.driver.available_flags(0)});
  const bool stays = f.queue.pop_available().error() == why && f.queue.cause() == why;
  f.queue.detach();
  const bool is_kept = f.queue.pop_available().error() == error::not_attached &&
                       f.queue.attach(f.ram, layout_of(f.at), no_features).has_value() &&
                       f.queue.cause() == why && f.queue.pop_available().error() == why;
  return is_broken && stays && is_kept ? why : error::none;
}
/// The same where consume is what finds it, after `good` single buffers before it.
template <class F> constexpr error consume_breaks(F& f, std::uint32_t good = 0) {
  std::uint32_t count = 0;
  const auto handle = [&](const chain&) {
    ++count;
    return ballast::used(1);
  };
  const error why = f.queue.consume(100, handle).error();
  f.queue.publish(); // those before it go back
  bool returned = f.queue.in_flight() == 0 && !f.driver.is_used(good);
  for (std::uint32_t i = 0; i < good; ++i) returned = returned && f.driver.is_used(i);
  return count == good && returned && f.queue.cause() == why ? why : error::none;
}
/// Both, for what `script` has the driver do behind one good chain; `none` if they differ.
template <std::uint32_t N, std::endian E = little, class Script>
constexpr error broken_by(Script script, const feature_set& features = no_features) {
  fixture<N, E> f(features);
  script(f);
  const error why = breaks(f);
  fixture<N, E> g(features);
  if (N > 4) g.offer({4});
  script(g);
  return consume_breaks(g, N > 4 ? 1 : 0) == why ? why : error::none;
}

constexpr auto bad_ids = [](auto check) {
  for (std::uint16_t id : u16<8, 9, 0x100, 0x8000, 0xffff>) {
    const auto single = [&](auto& f) { f.driver.offer(part_of(1), id); };
    check(broken_by<8>(single) == error::head_out_of_range);
    check(broken_by<3>(single) == error::head_out_of_range);
    check(broken_by<8>([&](auto& f) { f.driver.offer(part_of(1, flag_write), id); }) ==
          error::head_out_of_range);
    check(broken_by<8>([&](auto& f) { f.driver.offer({part_of(1), part_of(2)}, id); }) ==
          error::head_out_of_range);
    check(broken_by<8>(
              [&](auto& f) {
                f.table(tables(8), {part_of(1)});
                f.driver.offer({tables(8), 16, flag_indirect}, id);
              },
              indirect) == error::head_out_of_range);
  }
  check(broken_by<3, big>([](auto& f) { f.driver.offer(part_of(1), 0x0100); }) ==
        error::head_out_of_range);
  fixture<1> one;
  one.driver.offer(part_of(0), 1);
  check(breaks(one) == error::head_out_of_range);
};
BOTH("RT-16 a buffer id that is not below the size breaks the packed queue", bad_ids)

constexpr auto same_ids = [](auto check) {
  fixture<4> f;
  f.offer({2});
  check(f.pops(2));
  f.offer({2});
  check(breaks(f) == error::head_in_flight);
  check(f.queue.in_flight() == 1);

  for (int kind = 0; kind < 3; ++kind) {
    fixture<7> g(indirect); // kept by a handler
    g.table(tables(7), {part_of(1)});
    const auto offer = [&] {
      if (kind == 0) g.offer({2});
      if (kind == 1) g.driver.offer({part_of(1), part_of(2)}, 2);
      if (kind == 2) g.driver.offer({tables(7), 16, flag_indirect}, 2);
    };
    offer();
    check(g.queue.consume(1, [](const chain&) { return ballast::keep(); }).has_value());
    g.offer({1});
    offer();
    std::uint32_t count = 0;
    check(g.queue
              .consume(9,
                       [&](const chain&) {
                         ++count;
                         return ballast::used();
                       })
              .error() == error::head_in_flight);
    check(count == 1 && g.queue.in_flight() == 1 && g.queue.cause() == error::head_in_flight);
  }

  fixture<4> h; // within one batch
  h.offer({2, 2});
  check(h.queue.consume(9, [](const chain&) { return ballast::keep(); }).error() ==
        error::head_in_flight);
  check(h.queue.in_flight() == 1);

  fixture<4> once; // returned and made available again is right
  for (int i = 0; i < 10; ++i) {
    once.offer({3});
    check(once.pops(3) && once.push(3) == error::none);
    once.queue.publish();
  }
};
BOTH("RT-13 RT-2 a buffer id that is in flight already breaks the packed queue", same_ids)

constexpr auto overruns = [](auto check) {
  // `held` descriptors in chains that were popped and not returned, then a chain of `next`.
  const auto with = [](std::uint32_t held_chains, std::uint32_t each, std::uint32_t next) {
    fixture<7> f;
    std::array<packed_part, 7> parts{};
    const std::span<const packed_part> all(parts);
    for (std::uint32_t i = 0; i < held_chains; ++i) {
      f.driver.offer(all.first(each), static_cast<std::uint16_t>(i));
      if (!f.queue.pop_available()) return error::queue_full;
    }
    f.driver.offer(all.first(next), 6);
    const auto popped = f.queue.pop_available();
    if (popped) return f.queue.cause();
    return f.queue.in_flight() == held_chains && f.queue.cause() == popped.error() &&
                   f.queue.unpop(held_chains).has_value() && f.queue.in_flight() == 0
               ? popped.error()
               : error::queue_full;
  };
  check(with(1, 1, 6) == error::none && with(1, 1, 7) == error::descriptors_overrun);
  check(with(1, 4, 3) == error::none && with(1, 4, 4) == error::descriptors_overrun);
  check(with(3, 2, 1) == error::none && with(3, 2, 2) == error::descriptors_overrun);
  check(with(6, 1, 1) == error::none && with(6, 1, 2) == error::descriptors_overrun);
  check(with(1, 7, 1) == error::descriptors_overrun);

  fixture<3> f; // all are in flight, and yet another descriptor is available
  f.offer({0, 1});
  check(f.pops(0) && f.pops(1));
  f.offer({2});
  check(f.pops(2));
  f.driver.offer(part_of(0), 0);
  check(breaks(f) == error::descriptors_overrun);

  fixture<3> g; // consume finds it too
  g.offer({0});
  check(g.pops(0));
  g.driver.offer({part_of(0), part_of(1), part_of(2)}, 1);
  check(g.queue.consume(9, use_all).error() == error::descriptors_overrun);
  check(g.queue.in_flight() == 1 && g.push(0) == error::none);
};
BOTH("RT-21 RT-2 more descriptors available than the packed queue has break it: nothing can jump",
     overruns)

constexpr auto loops = [](auto check) {
  const auto all_next = [](auto& f) {
    // From the next place on, in ring order.
    const std::uint64_t from = f.driver.next();
    for (std::uint64_t s = from; s != from + f.at.size; ++s)
      f.driver.descriptor(f.driver.entry(s),
                          {1, 1, 0, static_cast<std::uint16_t>(f.driver.available_flags(s) | 1)});
  };
  check(broken_by<1>(all_next) == error::chain_loops);
  check(broken_by<2>(all_next) == error::chain_loops);
  check(broken_by<3>(all_next) == error::chain_loops);
  for (std::uint16_t first : u16<0, 3, 6, 7, 13>) {
    fixture<7> f(no_features, first);
    all_next(f);
    check(f.queue.pop_available().error() == error::chain_loops);
  }
  fixture<7> g; // behind a good one, all of the rest and that one again
  g.offer({1});
  check(g.queue.consume(1, use_all)->chains == 1);
  all_next(g);
  check(g.queue.pop_available().error() == error::chain_loops);
};
BOTH("RT-1 RT-9 a packed chain that never ends loops, and breaks the queue", loops)

constexpr auto bad_order = [](auto check) {
  check(broken_by<7>([](auto& f) {
          f.driver.offer({part_of(1), part_of(2, flag_write), part_of(3)}, 1);
        }) == error::readable_after_writable);
  check(broken_by<2>([](auto& f) { // of no bytes too
          f.driver.offer({{1, 0, flag_write}, {1, 0, 0}}, 1);
        }) == error::readable_after_writable);
  check(broken_by<7>(
            [](auto& f) {
              f.table(tables(7), {{1, 0, 0}, {1, 0, flag_write}, {1, 0, 0}});
              f.driver.offer({tables(7), 48, flag_indirect}, 1);
            },
            indirect) == error::readable_after_writable);
};
BOTH("PK-7 a readable buffer behind a writable one breaks the packed queue", bad_order)

constexpr auto indirect_rules = [](auto check) {
  // Without the feature, with a table that would be right.
  for (std::uint16_t flags :
       u16<flag_indirect, flag_indirect | flag_write, flag_indirect | flag_next>) {
    const auto refer = [&](auto& f) {
      f.table(tables(7), {part_of(1)});
      f.driver.offer({tables(7), 16, flags}, 1);
    };
    check(broken_by<7>(refer) == error::indirect_not_negotiated);
    check(broken_by<7, big>(refer) == error::indirect_not_negotiated);
    if ((flags & flag_next) != 0) check(broken_by<7>(refer, indirect) == error::indirect_with_next);
  }
  for (const feature_set& features : {no_features, indirect})
    for (std::uint16_t flags :
         u16<flag_indirect, flag_indirect | flag_write, flag_indirect | flag_next>)
      for (std::uint32_t before = 1; before <= 2; ++before)
        check(broken_by<7>(
                  [&](auto& f) {
                    f.table(tables(7), {part_of(1)});
                    std::array<packed_part, 3> parts{part_of(1), part_of(2), part_of(3)};
                    parts[before] = {tables(7), 16, flags};
                    f.driver.offer(std::span<const packed_part>(parts).first(before + 1), 1);
                  },
                  features) == error::indirect_in_chain);
};
BOTH("RT-4 PK-9 PK-10 INDIRECT without the feature, with NEXT, or in a chain breaks the packed "
     "queue",
     indirect_rules)

constexpr auto indirect_tables = [](auto check) {
  const auto refer = [](std::uint64_t table, std::uint32_t length) {
    return broken_by<7>([&](auto& f) { f.driver.offer({table, length, flag_indirect}, 1); },
                        indirect);
  };
  for (std::uint32_t length : {0u, 1u, 8u, 15u, 17u, 24u, 0x8000'0001u, 0xffff'ffffu})
    check(refer(tables(7), length) == error::indirect_length);
  const std::uint64_t end = base + ram_size(7);
  for (std::uint64_t table : {std::uint64_t{0}, base - 16, base - 1, end, end - 1, end - 15,
                              ~std::uint64_t{0}, ~std::uint64_t{15}, ~std::uint64_t{31}})
    check(refer(table, 16) == error::indirect_outside);
  check(refer(end - 16, 16) == error::none);
  check(refer(end - 32, 48) == error::indirect_outside);
  check(refer(~std::uint64_t{15}, 32) == error::indirect_outside); // round the address space
  check(refer(16, 0xffff'fff0) == error::indirect_outside);

  // A table as long as the queue is right, a longer one is not, whatever is behind.
  const auto long_table = [](std::uint32_t length) {
    return broken_by<2>(
        [&](auto& f) {
          f.table(tables(2), {part_of(1), part_of(1), part_of(1)});
          f.driver.offer({tables(2), length, flag_indirect}, 1);
        },
        indirect);
  };
  check(long_table(32) == error::none);
  check(long_table(48) == error::chain_loops);
  check(long_table(0xffff'fff0) == error::chain_loops);
};
BOTH("RT-4 RT-9 RT-14 a packed device's table of a wrong length, outside of memory, or longer than "
     "the queue",
     indirect_tables)

/// Memory of 16 bytes at the very end of the address space, beside another.
template <ballast::guest_memory M> struct memory_at_the_end {
  using window_type = ballast::window_of<M>;
  M* inner;
  constexpr auto window(ballast::guest_address a, std::uint64_t n, std::size_t alignment,
                        ballast::access k) noexcept {
    return inner->window(a, n, alignment, k);
  }
  constexpr ballast::memory_segment segment(ballast::guest_address a, std::uint64_t n,
                                            ballast::access k) noexcept {
    return inner->segment(a, n, k);
  }
  constexpr bool read(ballast::guest_address a, std::span<std::byte> to) noexcept {
    if (a < ~std::uint64_t{31}) return inner->read(a, to);
    for (std::byte& b : to) b = std::byte{0};
    return a + (to.size() - 1) >= a;
  }
  constexpr bool write(ballast::guest_address a, std::span<const std::byte> from) noexcept {
    return inner->write(a, from);
  }
  constexpr bool good() noexcept { return true; }
  constexpr void fence() noexcept {}
};

constexpr auto last_table = [](auto check) {
  using inner_type = fixture<7>::memory_type;
  using memory_type = memory_at_the_end<inner_type>;
  for (std::uint32_t length : {16u, 32u, 48u}) {
    inner_type ram(base);
    memory_type memory{&ram};
    ballast_test::scripted_packed_driver driver({ram.bytes(), base, little}, places(7));
    driver.offer({~std::uint64_t{31}, length, flag_indirect}, 1);
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<memory_type> queue(storage);
    check(queue.start(memory, layout_of(places(7)), indirect).has_value());
    const auto popped = queue.pop_available();
    check(popped.error() == (length == 48 ? error::indirect_outside : error::none));
    if (popped) check(popped->readable().size() == length / 16);
  }
};
BOTH("RT-14 a packed device's table goes up to the last address and not round to the first",
     last_table)

constexpr auto too_many_bytes = [](auto check) {
  for (bool is_table : {false, true}) {
    const auto with = [&](std::uint32_t a, std::uint32_t b, std::uint32_t c) {
      return broken_by<7>(
          [&](auto& f) {
            const packed_part parts[] = {{0, a, 0}, {0, b, flag_write}, {0, c, flag_write}};
            if (is_table) {
              f.table(tables(7), {parts[0], parts[1], parts[2]});
              f.driver.offer({tables(7), 48, flag_indirect}, 1);
            } else {
              f.driver.offer(parts, 1);
            }
          },
          indirect);
    };
    check(with(0xffff'ffff, 0, 0) == error::none);
    check(with(0xffff'ffff, 1, 0) == error::none); // 2^32 is the most
    check(with(0xffff'ffff, 1, 1) == error::chain_bytes_overflow);
    check(with(0, 0x8000'0000, 0x8000'0001) == error::chain_bytes_overflow);
    check(with(0xffff'ffff, 0xffff'ffff, 2) == error::chain_bytes_overflow); // 2^33: wraps to 0
  }
};
BOTH("RT-24 a packed chain of more than 2^32 bytes breaks the queue, in a table too",
     too_many_bytes)

constexpr auto broken_returns = [](auto check) {
  fixture<4> f;
  f.offer({0, 1});
  f.driver.offer(part_of(2), 9);
  check(f.pops(0) && f.pops(1));
  check(f.push(0, 1) == error::none);
  check(f.queue.pop_available().error() == error::head_out_of_range);
  check(f.queue.in_flight() == 1);
  const chain_id second = *f.queue.held_chain(1);
  check(f.queue.push_used(second, 2).has_value());
  check(f.queue.push_used(second, 2).error() == error::chain_not_in_flight);
  f.queue.publish();
  check(f.queue.should_notify());
  check(f.driver.has_used(0, 0, 1) && f.driver.has_used(1, 1, 2) && !f.driver.is_used(2));
  check(f.queue.cause() == error::head_out_of_range && f.queue.in_flight() == 0);

  check(f.queue.start(f.ram, layout_of(f.at), no_features, 2).has_value()); // heals
  check(f.queue.cause() == error::none);
  f.driver.descriptor(2, {0x3000, 48, 3, f.driver.available_flags(2)});
  check(f.pops(3));
};
BOTH("RT-8 what was popped before a packed queue broke is still returned, and start heals it",
     broken_returns)

constexpr auto fails = [](auto check) {
  fixture<4> f;
  f.offer({0, 1});
  check(f.pops(0));
  f.queue.fail(error::not_guest_memory);
  f.queue.fail(error::page_out_of_range); // the first cause stays
  check(f.queue.cause() == error::not_guest_memory);
  check(f.queue.pop_available().error() == error::not_guest_memory);
  check(f.push(0) == error::none);
  f.queue.detach();
  check(f.queue.pop_available().error() == error::not_attached);
  check(f.queue.attach(f.ram, layout_of(f.at), no_features).has_value());
  check(f.queue.pop_available().error() == error::not_guest_memory);
  f.queue.reset();
  check(f.queue.cause() == error::none);

  fixture<4> g; // while it is detached
  g.offer({0});
  g.queue.detach();
  g.queue.fail(error::not_guest_memory);
  check(g.queue.pop_available().error() == error::not_attached);
  check(g.queue.attach(g.ram, layout_of(g.at), no_features).has_value());
  check(g.queue.pop_available().error() == error::not_guest_memory);
};
BOTH("fail breaks the packed queue for the device's own reason", fails)

TEST_CASE("a packed queue that is broken, or whose memory is lost, has nothing to look at again") {
  fixture<4> f;
  f.driver.offer(part_of(0), 77);
  f.offer({1});
  REQUIRE(f.queue.pop_available().error() == error::head_out_of_range);
  CHECK(!f.queue.enable_notifications());

  fixture<4>::memory_type ram(base);
  ballast_test::failure_plan plan{.garbage = 0x0080'0000'0000'0000}; // available, by the look
  ballast_test::failing_memory<fixture<4>::memory_type> memory(ram, plan);
  ballast::device_queue_storage<4> storage;
  ballast::packed_device<decltype(memory)> lost(storage);
  REQUIRE(lost.start(memory, layout_of(places(4)), no_features).has_value());
  plan.lose_at = plan.accesses + 1;
  CHECK(!lost.enable_notifications());
  REQUIRE(lost.pop_available().error() == error::memory_lost);
  CHECK(lost.consume(0, use_all).error() == error::memory_lost);
}

// ---- consume

constexpr auto consumes = [](auto check) {
  for (std::uint32_t budget : {0u, 1u, 2u, 3u, 4u, 1000u}) {
    fixture<4> f(no_features, 7);
    f.offer({0, 1, 2});
    std::uint32_t count = 0;
    const auto handle = [&](const chain& c) {
      check(c.id().head == count && c.readable()[0].address == 0x1000 * count);
      return ballast::used(count++ + 1);
    };
    const std::uint32_t expected = budget < 3 ? budget : 3;
    const auto done = f.queue.consume(budget, handle);
    check(done.has_value() && done->chains == expected && count == expected);
    check(done->has_more == (budget < 3));
    check(!f.driver.is_used(7)); // staged
    f.queue.publish();
    for (std::uint16_t i = 0; i < 3; ++i)
      check(i < expected ? f.driver.has_used(7u + i, i, i + 1u) : !f.driver.is_used(7u + i));
    check(f.queue.in_flight() == 0);
    const auto rest = f.queue.consume(100, handle); // and goes on where it stopped
    check(rest.has_value() && rest->chains == 3 - expected && !rest->has_more && count == 3);
    const auto none = f.queue.consume(100, handle);
    check(none.has_value() && none->chains == 0 && !none->has_more);
  }
};
BOTH("RT-9 a packed device's consume hands out no more than its budget and says whether more is "
     "there",
     consumes)

constexpr auto mixes = [](auto check) {
  fixture<7> f;
  f.offer({0, 1});
  f.driver.offer({part_of(2), part_of(2)}, 2);
  f.offer({3});
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
  check(f.pops(3)); // sees what consume saw
  check(f.queue.push_used(kept[1], 12).has_value());
  check(f.push(3, 13) == error::none);
  check(f.queue.push_used(kept[0], 14).has_value());
  f.queue.publish();
  check(f.queue.in_flight() == 0);
  // The second chain's descriptor first, then the third's two, the fourth's, the first's.
  check(f.driver.has_used(0, 1, 11) && f.driver.has_used(1, 2, 12) && !f.driver.is_used(2));
  check(f.driver.has_used(3, 3, 13) && f.driver.has_used(4, 0, 14) && !f.driver.is_used(5));
};
BOTH("a packed device's handler keeps chains and they go back later, in any order", mixes)

constexpr auto grows = [](auto check) {
  // A packed driver has no index that was read once: what it adds meanwhile is served as well, but
  // never more than the budget.
  fixture<4> f;
  f.offer({0});
  std::uint32_t count = 0;
  const auto handle = [&](const chain&) {
    f.driver.offer(part_of(0), static_cast<std::uint16_t>(++count % 4));
    return ballast::used();
  };
  for (std::uint32_t i = 1; i <= 4; ++i) {
    const auto done = f.queue.consume(3, handle);
    check(done.has_value() && done->chains == 3 && done->has_more && count == 3 * i);
    f.queue.publish();
  }
};
BOTH("RT-9 a packed driver that refills while it is served can't hold consume beyond its budget",
     grows)

TEST_CASE("RT-19 PK-1 a packed queue of 32768") {
  // The last entry, wrap counters at 0.
  const auto f = std::make_unique<fixture<32768>>(no_features, std::uint16_t{65535});
  REQUIRE(f->started);
  const auto parts = std::make_unique<std::array<packed_part, 32768>>();
  for (std::uint32_t i = 0; i < 32768; ++i)
    (*parts)[i] = {i, 1, i < 100 ? std::uint16_t{0} : flag_write};
  f->driver.offer(*parts, 32767);
  {
    const auto popped = f->queue.pop_available();
    REQUIRE(popped.has_value());
    CHECK(popped->readable().size() == 100);
    CHECK(popped->writable().size() == 32668);
    CHECK(popped->writable()[32667] == buffer{32767, 1});
    CHECK(f->queue.push_used(popped->id(), 5).has_value());
    f->queue.publish();
    CHECK(f->driver.has_used(65535, 32767, 5));
  }
  for (std::uint32_t i = 0; i < 32768; ++i)
    f->driver.offer({i, i, 0}, static_cast<std::uint16_t>(32767 - i));
  std::uint32_t count = 0, wrong = 0;
  const auto done = f->queue.consume(40000, [&](const chain& c) {
    wrong += c.id().head != 32767 - count;
    wrong += c.readable()[0] != buffer{count, count};
    ++count;
    return ballast::keep();
  });
  REQUIRE(done.has_value());
  CHECK(done->chains == 32768);
  CHECK(wrong == 0);
  CHECK(f->queue.in_flight() == 32768);
  f->driver.offer({1, 1, 0}, 5);
  CHECK(f->queue.pop_available().error() == error::descriptors_overrun);
  for (std::uint32_t i = 0; i < 32768; ++i)
    REQUIRE(f->push(static_cast<std::uint16_t>(i * 5 % 32768), i) == error::none);
  f->queue.publish();
  for (std::uint32_t i = 0; i < 32768; ++i)
    wrong += !f->driver.has_used(65535 + 32768 + i, i * 5 % 32768, i);
  CHECK(wrong == 0);
}

// ---- notifications

constexpr auto flags = [](auto check) {
  for (const feature_set& features : {no_features, event_index}) {
    fixture<3> f(features);
    const auto serve = [&](std::uint16_t place, std::uint16_t event_flags) {
      f.driver.driver_event(place, event_flags);
      f.driver.offer(part_of(0), 0);
      check(f.queue.consume(9, use_all)->chains == 1);
      check(!f.queue.should_notify()); // staged is nothing to tell
      f.queue.publish();
      const bool is_due = f.queue.should_notify();
      check(!f.queue.should_notify()); // once
      return is_due;
    };
    check(!f.queue.should_notify());
    check(serve(0, 0));
    check(!serve(0, 1));
    check(serve(0xffff, 0)); // the place means nothing with these
    check(!serve(0x8000, 1));
    for (std::uint16_t reserved : u16<3, 4, 0x8001, 0xfffe>) check(serve(0, reserved));
    const bool has_event_index = features.test(ballast::feature::event_idx);
    check(serve(5, 2) == !has_event_index); // 2 without EVENT_IDX is reserved too
  }
  fixture<2, big> g;
  g.driver.driver_event(0, 1);
  g.offer({1});
  check(g.queue.consume(1, use_all)->chains == 1);
  check(!g.queue.publish_and_ask());
  g.driver.driver_event(0, 0);
  g.offer({0});
  check(g.queue.consume(1, use_all)->chains == 1);
  check(g.queue.publish_and_ask());
};
BOTH("PK-16 the driver's flags enable, disable and reserved as a packed device sees them", flags)

template <std::uint32_t N, std::endian E> constexpr void events(auto check) {
  for (std::uint16_t first = 0; first < 2 * N; ++first)
    for (std::uint16_t batch = 1; batch <= N; ++batch)
      for (std::uint64_t event = 0; event < 2 * N; ++event) {
        fixture<N, E> f(event_index, first);
        f.driver.driver_event(f.driver.word(event), 2);
        for (std::uint16_t i = 0; i < batch; ++i) {
          f.driver.offer(part_of(i), i);
          check(f.queue.consume_one(use_all)->chains == 1);
          f.queue.publish();
        }
        bool is_passed = false;
        for (std::uint64_t s = first; s < first + batch; ++s)
          is_passed = is_passed || f.driver.word(s) == f.driver.word(event);
        check(f.queue.should_notify() == is_passed);
        check(!f.queue.should_notify());
      }
}
constexpr auto events_little = [](auto check) {
  events<1, little>(check);
  events<2, little>(check);
  events<3, little>(check);
};
constexpr auto events_big = [](auto check) { events<2, big>(check); };
BOTH("RT-25 PK-16 a packed device with EVENT_IDX compares the whole batch, at every place and wrap",
     events_little)
BOTH("RT-25 PK-16 the same in a big-endian packed ring of a device", events_big)
TEST_CASE("RT-25 PK-16 the same in larger packed rings of a device") {
  const ballast_test::run_time_check check;
  events<5, little>(check);
  events<7, big>(check);
}

constexpr auto chain_events = [](auto check) {
  // A chain passes all of its descriptors, though only one is written.
  for (std::uint64_t event = 0; event < 14; ++event)
    for (std::uint16_t first : u16<0, 5, 9>) {
      fixture<7> f(event_index, first);
      f.driver.driver_event(f.driver.word(event), 2);
      f.driver.offer({part_of(1), part_of(2), part_of(3)}, 1);
      f.driver.offer({part_of(1), part_of(2)}, 2);
      check(f.queue.consume(9, use_all)->chains == 2);
      f.queue.publish();
      bool is_passed = false;
      for (std::uint64_t s = first; s < first + 5u; ++s)
        is_passed = is_passed || f.driver.word(s) == f.driver.word(event);
      check(f.queue.should_notify() == is_passed);
    }
};
BOTH("RT-25 a packed device's chain passes an event at each of its descriptors", chain_events)

TEST_CASE("RT-25 a packed device misses no event however much lies between two checks") {
  for (std::uint32_t count : {1u, 6u, 7u, 8u, 14u, 15u, 65535u, 65536u, 65537u, 131'078u, 200'000u})
    for (std::uint32_t event = 0; event < 14; ++event) {
      fixture<7> f(event_index, 3);
      f.driver.driver_event(f.driver.word(event), 2);
      std::uint32_t wrong = 0;
      for (std::uint32_t i = 0; i < count; ++i) {
        f.driver.offer(part_of(0), static_cast<std::uint16_t>(i % 7));
        const auto done = f.queue.consume(1, use_all);
        wrong += !done || done->chains != 1;
        f.queue.publish();
      }
      CHECK(wrong == 0);
      // Who waits for a place waits for one of the last round, or for the next.
      bool is_passed = false;
      for (std::uint32_t i = 1; i <= 7 && i <= count; ++i)
        is_passed = is_passed || f.driver.word(3 + count - i) == f.driver.word(event);
      const bool is_due = f.queue.should_notify();
      if (is_passed) CHECK(is_due);
      if (!is_passed && count <= 7) CHECK(!is_due);
      if (f.driver.word(event) == f.driver.word(3 + count)) CHECK(!is_due);
      CHECK(!f.queue.should_notify());
    }
}

constexpr auto asks = [](auto check) {
  { // by flags
    fixture<3> f(no_features, 2);
    f.queue.disable_notifications();
    check(f.driver.device_event_flags() == 1);
    check(!f.queue.enable_notifications());
    check(f.driver.device_event_flags() == 0);
    f.queue.disable_notifications();
    f.offer({2});
    check(f.queue.enable_notifications()); // one came meanwhile
    check(f.driver.device_event_flags() == 0);
    check(f.pops(2));
    check(!f.queue.enable_notifications());
  }
  { // by the place
    fixture<3> f(event_index, 2);
    f.queue.disable_notifications();
    check(f.driver.device_event_flags() == 0 && f.driver.device_event_place() == 0);
    f.offer({0, 1});
    check(f.queue.enable_notifications());
    check(f.driver.device_event_flags() == 2 && f.driver.device_event_place() == 0x8002);
    const auto done = f.queue.consume(1, use_all);
    check(done.has_value() && done->has_more);
    check(f.queue.enable_notifications()); // seen and not served
    check(f.driver.device_event_flags() == 2 && f.driver.device_event_place() == 0);
    check(f.pops(1));
    f.queue.disable_notifications();
    check(f.driver.device_event_place() == 0); // left behind
    check(!f.queue.enable_notifications());
    check(f.driver.device_event_flags() == 2 && f.driver.device_event_place() == 1);
  }
  { // both in the other byte order
    fixture<7, big> f(event_index, 6);
    check(!f.queue.enable_notifications());
    check(f.driver.device_event_place() == 0x8006 && f.driver.device_event_flags() == 2);
    fixture<7, big> g;
    g.queue.disable_notifications();
    check(g.driver.device_event_flags() == 1);
  }
};
BOTH("PK-16 a packed device asks for notifications by flags, or by the place of the next chain",
     asks)

// ---- hostile memory

/// Three chains for the tests below: two buffers (id 2), a table (id 0), one buffer (id 3).
constexpr void offer_three(ballast_test::raw_words words,
                           ballast_test::scripted_packed_driver& driver) {
  words.put(tables(7), 8, 0x5000);
  words.put(tables(7) + 8, 4, 50);
  words.put(tables(7) + 16, 8, 0x6000);
  words.put(tables(7) + 24, 4, 60);
  words.put(tables(7) + 30, 2, flag_write);
  driver.offer({{0x1000, 10, 0}, {0x2000, 20, flag_write}}, 2);
  driver.offer({tables(7), 32, flag_indirect}, 0);
  driver.offer({0x3000, 30, 0}, 3);
}

constexpr auto loses = [](auto check) {
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  constexpr std::array<std::uint16_t, 3> ids{2, 0, 3};
  constexpr std::array<std::uint32_t, 3> lengths{10, 50, 30};
  for (std::uint64_t garbage :
       {std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{0x0080'0001'0000'0010},
        std::uint64_t{0x0081'0001'0000'0010}, std::uint64_t{0x0084'0001'0000'0010}})
    for (bool pops : {false, true})
      for (std::uint64_t n = 1;; ++n) {
        inner_type ram(base);
        const ballast_test::raw_words words(ram.bytes(), base, little);
        ballast_test::scripted_packed_driver driver(words, places(7));
        offer_three(words, driver);
        ballast_test::failure_plan plan{.lose_at = n, .garbage = garbage};
        memory_type memory(ram, plan);
        ballast::device_queue_storage<7> storage;
        ballast::packed_device<memory_type> queue(storage);
        const auto started = queue.start(memory, layout_of(places(7)), indirect);
        check(started.has_value() || started.error() == error::memory_lost);
        std::uint32_t handed = 0;
        const auto handle = [&](const chain& c) {
          check(c.id().head == ids[handed]); // never a chain made of garbage
          check(c.readable()[0].length == lengths[handed]);
          return ++handed, ballast::keep();
        };
        error why = error::none;
        if (pops) {
          for (auto popped = queue.pop_available();; popped = queue.pop_available()) {
            why = popped.error();
            if (!popped) break;
            (void)handle(*popped);
          }
          if (why == error::queue_empty) why = error::none;
        } else {
          why = queue.consume(9, handle).error();
        }
        if (why == error::none)
          check(handed == 3);
        else
          check(why == (started ? error::memory_lost : error::not_attached));
        check(queue.cause() == error::none && queue.in_flight() == handed);
        const auto pushed = queue.push_used({2, 1}, 1);
        if (pushed)
          check(handed != 0 && queue.in_flight() == handed - 1);
        else if (started)
          check(pushed.error() == (handed == 0 ? error::chain_not_in_flight : error::memory_lost));
        check(queue.in_flight() == handed - (pushed ? 1u : 0u));
        queue.publish();
        (void)queue.should_notify();
        (void)queue.enable_notifications();
        if (!plan.is_lost) {
          check(driver.has_used(0, 2, 1));
          break;
        }
        check(!queue.pop_available().has_value());
      }
};
BOTH("RT-14 whenever memory is lost a packed device says memory_lost, and no chain is lost or made "
     "up",
     loses)

constexpr auto no_windows = [](auto check) {
  using inner_type = fixture<4>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (std::uint64_t n = 1;; ++n) {
    inner_type ram(base);
    ballast_test::failure_plan plan{.fail_at = n, .window_error = error::access_not_allowed};
    memory_type memory(ram, plan);
    ballast::device_queue_storage<4> storage;
    ballast::packed_device<memory_type> queue(storage);
    const auto started = queue.start(memory, layout_of(places(4)), no_features);
    if (plan.fallible < n) {
      check(started.has_value() && n == 4);
      break;
    }
    check(started.error() == error::access_not_allowed && !queue.is_attached());
    check(queue.attach(memory, layout_of(places(4)), no_features).error() ==
          error::invalid_queue_size);
  }
  for (std::uint64_t n = 1; n <= 3; ++n) { // attach
    inner_type ram(base);
    ballast_test::failure_plan plan{.window_error = error::misaligned};
    memory_type memory(ram, plan);
    ballast::device_queue_storage<4> storage;
    ballast::packed_device<memory_type> queue(storage);
    check(queue.start(memory, layout_of(places(4)), no_features).has_value());
    queue.detach();
    plan.fail_at = plan.fallible + n;
    check(queue.attach(memory, layout_of(places(4)), no_features).error() == error::misaligned);
    check(!queue.is_attached() && queue.size() == 4);
    check(queue.attach(memory, layout_of(places(4)), no_features).has_value());
  }
};
BOTH("RT-14 a packed device's start that any window refuses gives the memory's error", no_windows)

constexpr auto unreadable = [](auto check) {
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::failing_memory<inner_type>;
  for (std::uint64_t n = 1; n <= 3; ++n) {
    inner_type ram(base);
    const ballast_test::raw_words words(ram.bytes(), base, little);
    ballast_test::scripted_packed_driver driver(words, places(7));
    offer_three(words, driver);
    ballast_test::failure_plan plan{.fail_at = 3 + n}; // behind the windows
    memory_type memory(ram, plan);
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<memory_type> queue(storage);
    check(queue.start(memory, layout_of(places(7)), indirect).has_value());
    std::uint32_t handed = 0;
    const auto done = queue.consume(9, [&](const chain&) { return ++handed, ballast::used(1); });
    check(done.error() == (n <= 2 ? error::indirect_outside : error::none));
    check(handed == (n <= 2 ? 1u : 3u) && queue.cause() == done.error());
    queue.publish();
    check(driver.has_used(0, 2, 1) && driver.has_used(2, 0, 1) == (n > 2));
  }
};
BOTH("RT-14 a packed device's table that can't be read is an error whichever entry it is",
     unreadable)

constexpr auto tiny = [](auto check) {
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::tiny_segments<inner_type>;
  inner_type ram(base);
  const ballast_test::raw_words words(ram.bytes(), base, little);
  ballast_test::scripted_packed_driver driver(words, places(7));
  offer_three(words, driver);
  memory_type memory(ram, 1, true); // nothing can be pointed at
  ballast::device_queue_storage<7> storage;
  ballast::packed_device<memory_type> queue(storage);
  check(queue.start(memory, layout_of(places(7)), indirect).has_value());
  check(queue.consume(9, use_all)->chains == 3);
  queue.publish();
  check(driver.has_used(0, 2, 0) && driver.has_used(2, 0, 0) && driver.has_used(3, 3, 0));
};
BOTH("a packed device works in memory that can't be pointed at", tiny)

/// What a device saw of its chains, in a form that can be compared.
struct seen {
  error why = error::none;
  std::uint32_t chains = 0;
  std::array<std::uint64_t, 40> facts{};
  std::uint32_t count = 0;
  bool has_overrun = false;

  constexpr void fact(std::uint64_t v) {
    if (count < facts.size())
      facts[count++] = v;
    else
      has_overrun = true;
  }
  friend constexpr bool operator==(const seen&, const seen&) noexcept = default;
};

struct seen_plan {
  ballast_test::change_plan change;
  ballast_test::memory_event word{}; ///< this word is changed from the start of time
  feature_set features = no_features;
};

/// A device serves two chains of two and one single buffer in a ring of 7; the peer changes what
/// the plan says.
constexpr seen serve(seen_plan plan) {
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::changing_memory<inner_type>;
  inner_type ram(base);
  ballast_test::raw_words words({ram.bytes(), base, little});
  ballast_test::scripted_packed_driver driver(words, places(7));
  driver.offer({{0x1000, 10, 0}, {0x2000, 20, flag_write}}, 2);
  driver.offer({{0x3000, 30, 0}, {0x4000, 40, 0}}, 1);
  driver.offer({0x5000, 50, flag_write}, 3);
  const auto width = static_cast<unsigned>(plan.word.size);
  if (width != 0)
    words.put(plan.word.address, width, words.get(plan.word.address, width) ^ plan.change.mask);
  memory_type memory(ram, plan.change);
  ballast::device_queue_storage<7> storage;
  ballast::packed_device<memory_type> queue(storage);
  seen s;
  if (!queue.start(memory, layout_of(places(7)), plan.features)) return s;
  std::uint64_t step = 0;
  std::array<std::uint64_t, 8> steps{};
  const auto done = queue.consume(9, [&](const chain& c) {
    s.fact(c.id().head);
    s.fact(c.readable().size());
    s.fact(c.writable().size());
    for (const buffer& b : c.readable()) s.fact(b.address), s.fact(b.length);
    for (const buffer& b : c.writable()) s.fact(b.address), s.fact(b.length);
    if (s.chains < steps.size()) steps[s.chains] = step;
    ++s.chains;
    step += c.readable().size() + c.writable().size();
    return ballast::used(7);
  });
  s.why = done.error();
  queue.publish();
  for (std::uint32_t i = 0; i < s.chains && i < steps.size(); ++i) {
    const auto d = driver.descriptor(driver.entry(steps[i]));
    s.fact(driver.is_used(steps[i]));
    s.fact(d.id);
    s.fact(d.length);
    s.fact(d.flags);
  }
  return s;
}

/// Which word the k-th load of the honest run reads.
constexpr ballast_test::memory_event load_of(std::uint64_t k) {
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 64>;
  inner_type ram(base);
  ballast_test::scripted_packed_driver driver({ram.bytes(), base, little}, places(7));
  driver.offer({{0x1000, 10, 0}, {0x2000, 20, flag_write}}, 2);
  driver.offer({{0x3000, 30, 0}, {0x4000, 40, 0}}, 1);
  driver.offer({0x5000, 50, flag_write}, 3);
  ballast_test::event_log<64> log;
  memory_type memory(ram, log);
  ballast::device_queue_storage<7> storage;
  ballast::packed_device<memory_type> queue(storage);
  if (!queue.start(memory, layout_of(places(7)), no_features)) return {};
  (void)queue.consume(9, [](const chain&) { return ballast::used(7); });
  for (std::size_t i = 0; i < log.size(); ++i)
    if (log[i].kind == ballast_test::event_kind::load && --k == 0) return log[i];
  return {};
}

constexpr void changes_with(auto check, std::span<const std::uint64_t> masks) {
  for (const feature_set& features : {no_features, indirect}) {
    const seen honest = serve({.change = {}, .features = features});
    check(honest.why == error::none && honest.chains == 3 && !honest.has_overrun);
    std::uint64_t loads = 0;
    for (std::uint64_t k = 1;; ++k) {
      const auto word = load_of(k);
      if (word.size == 0) break;
      check(word.size == 8);
      ++loads;
      for (std::uint64_t mask : masks) {
        const seen got = serve({.change = {.change_load = k, .mask = mask}, .features = features});
        const seen changed = serve({.change = {.mask = mask}, .word = word, .features = features});
        check(got == honest || got == changed);
      }
    }
    check(loads == 5 * 2 + 1); // two words of each descriptor, and one that shows the end: no more
  }
}
// A bit of the length, of the id, NEXT, WRITE, INDIRECT, AVAIL, both wrap flags, all.
constexpr std::uint64_t change_masks[] = {0x1,
                                          0x8000'0000,
                                          0x1'0000'0000,
                                          0x8000'0000'0000,
                                          0x1'0000'0000'0000,
                                          0x2'0000'0000'0000,
                                          0x4'0000'0000'0000,
                                          0x80'0000'0000'0000,
                                          0x8080'0000'0000'0000,
                                          0x81'0000'0000'0000,
                                          0xffff'ffff'ffff'ffff};
constexpr auto changes = [](auto check) {
  changes_with(check, std::span<const std::uint64_t>(change_masks).subspan(4, 3));
};
BOTH("RT-15 a packed word that changes after a device read it gives the result of one of two "
     "honest runs",
     changes)
TEST_CASE("RT-15 a packed word that changes after a device read it, with several masks") {
  changes_with(ballast_test::run_time_check{}, change_masks);
}

constexpr auto rewrites = [](auto check) {
  const seen honest = serve({.change = {}});
  for (std::uint64_t mask : change_masks) {
    // The word behind the last chain is loaded as well, to find that it is empty.
    const seen got =
        serve({.change = {.mask = mask, .rewrites_words = true, .rewrites_atomics = 8}});
    check(got == honest);
  }
};
BOTH("RT-15 a packed driver that overwrites each word once a device read it changes nothing",
     rewrites)

constexpr auto table_changes = [](auto check) {
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::changing_memory<inner_type>;
  for (std::size_t offset : {0u, 8u}) // of the entry: its address; length, id and flags
    for (std::uint64_t read = 0; read <= 3; ++read)
      for (std::uint64_t mask : {0x1ull, 0x2'0000'0000'0000ull, 0xffff'ffff'ffff'ffffull}) {
        inner_type ram(base);
        const ballast_test::raw_words words(ram.bytes(), base, little);
        ballast_test::scripted_packed_driver driver(words, places(7));
        offer_three(words, driver);
        ballast_test::change_plan plan{.change_read = read,
                                       .mask = mask,
                                       .read_offset = offset,
                                       .rewrites_payload = read == 3};
        memory_type memory(ram, plan);
        ballast::device_queue_storage<7> storage;
        ballast::packed_device<memory_type> queue(storage);
        check(queue.start(memory, layout_of(places(7)), indirect).has_value());
        check(queue.pop_available()->id().head == 2);
        const auto popped = queue.pop_available();
        check(plan.reads <= 2); // each entry once
        if (!popped) {
          check(popped.error() == error::readable_after_writable ||
                popped.error() == error::chain_bytes_overflow);
          continue;
        }
        std::array<buffer, 2> got{};
        std::size_t n = 0;
        for (const buffer& b : popped->readable()) got[n++] = b;
        for (const buffer& b : popped->writable()) got[n++] = b;
        check(n == 2 && plan.reads == 2);
        for (std::uint64_t i = 0; i < 2; ++i) {
          const std::uint64_t flip = read == i + 1 ? mask : 0;
          const buffer expected{
              (0x5000 + 0x1000 * i) ^ (offset == 0 ? flip : 0),
              static_cast<std::uint32_t>((50 + 10 * i) ^ (offset == 8 ? flip : 0))};
          check(got[i] == expected);
        }
      }
};
BOTH("RT-15 a packed device copies each table entry once: what changes is used as copied, or an "
     "error",
     table_changes)

// ---- widths, classes and orders

constexpr auto classes = [](auto check) {
  using inner_type = fixture<7>::memory_type;
  using record_type = ballast_test::access_record<ram_size(7)>;
  using memory_type = ballast_test::checked_memory<inner_type, ram_size(7)>;
  for (const feature_set& features :
       {indirect, feature_set{ballast::feature::indirect_desc, ballast::feature::event_idx,
                              ballast::feature::in_order}}) {
    inner_type ram(base);
    record_type record(base);
    memory_type memory(ram, record);
    const ballast_test::raw_words words(ram.bytes(), base, little);
    ballast_test::scripted_packed_driver driver(words, places(7));
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<memory_type> queue(storage);
    const ballast::queue_layout at[] = {layout_of(places(7))};
    check(queue.start(memory, at[0], features).has_value());
    for (int round = 0; round < 4; ++round) {
      if (driver.next() != 0) queue.disable_notifications();
      offer_three(words, driver);
      check(queue.consume(9, [](const chain&) { return ballast::used(1); })->chains == 3);
      (void)queue.publish_and_ask();
      (void)queue.enable_notifications();
    }
    check(!record.fault());
    check(!record.compare(ballast_test::packed_words(at)));
    check(record.words() == 2 * 7 - 0u + 2); // two of each descriptor, two event structures
  }
};
BOTH("PK-1 RT-15 a packed device uses every word with the width and class of the layout", classes)

constexpr auto orders = [](auto check) {
  using enum ballast_test::event_kind;
  using ballast::order;
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 64>;
  const packed_places at = places(7);
  const auto address_of = [&](std::uint64_t i) { return at.ring + 16 * i; };
  const auto rest_of = [&](std::uint64_t i) { return at.ring + 16 * i + 8; };
  inner_type ram(base);
  ballast_test::event_log<64> log;
  memory_type memory(ram, log);
  const ballast_test::raw_words words(ram.bytes(), base, little);
  ballast_test::scripted_packed_driver driver(words, at);
  ballast::device_queue_storage<7> storage;
  ballast::packed_device<memory_type> queue(storage);
  check(queue.start(memory, layout_of(at), event_index).has_value());
  driver.offer({{0x1000, 10, 0}, {0x2000, 20, flag_write}}, 2);
  driver.offer({0x3000, 30, 0}, 0);
  driver.offer({0x4000, 40, flag_write}, 1);

  log.clear(); // P5, P6
  const auto popped = queue.pop_available();
  check(popped.has_value() && log.size() == 4);
  check(log[0].kind == load && log[0].order == order::acquire && log[0].address == rest_of(0));
  check(log[1].kind == load && log[1].order == order::plain && log[1].address == address_of(0));
  for (std::size_t i = 0; i < 4; ++i) {
    check(log[i].kind == load && log[i].size == 8);
    check((log[i].order == order::plain) == (log[i].address % 16 == at.ring % 16));
  }
  check(log.find(load, rest_of(1)) != log.npos && log.find(load, address_of(1)) != log.npos);

  log.clear(); // P7, P8: nothing of the first is written before publish
  check(queue.push_used(popped->id(), 20).has_value() && log.size() == 0);
  check(queue
            .consume(9,
                     [&](const chain& c) {
                       log.mark(c.id().head);
                       return ballast::used(c.id().head);
                     })
            .has_value());
  // Each chain by an acquire of its own; the used descriptors behind the first, relaxed.
  check(log.count(fence) == 0 && log.count(store) == 2 && log.lost() == 0);
  for (std::uint64_t i : {2u, 3u}) {
    const std::size_t loaded = log.find(load, rest_of(i)), stored = log.find(store, rest_of(i));
    check(loaded != log.npos && stored != log.npos && log[loaded].order == order::acquire);
    check(log.find(load, address_of(i)) > loaded && log.find(mark, i - 2) < stored);
    check(log[stored].order == order::relaxed && log[stored].size == 8);
    check(log.find(load, rest_of(i), loaded + 1) == log.npos);
  }
  check(log.find(store, rest_of(0)) == log.npos);

  log.clear();
  queue.publish(); // one release store, of the first
  check(log.size() == 1 && log[0].kind == store && log[0].order == order::release);
  check(log[0].address == rest_of(0) && log[0].size == 8);
  check(driver.has_used(0, 2, 20) && driver.has_used(2, 0, 0) && driver.has_used(3, 1, 1));
  log.clear();
  queue.publish();
  check(log.size() == 0);

  (void)queue.should_notify(); // P9
  check(log.size() == 2 && log[0].kind == fence);
  check(log[1].kind == load && log[1].order == order::relaxed && log[1].size == 4 &&
        log[1].address == at.driver_event);
  log.clear();
  (void)queue.should_notify(); // nothing new: no fence is paid
  check(log.size() == 0);

  (void)queue.enable_notifications(); // P11, as one store
  check(log.size() == 3);
  check(log[0].kind == store && log[0].order == order::relaxed && log[0].size == 4 &&
        log[0].address == at.device_event);
  check(driver.device_event_place() == 0x8004 && driver.device_event_flags() == 2);
  check(log[1].kind == fence);
  check(log[2].kind == load && log[2].order != order::plain && log[2].address == rest_of(4) &&
        log[2].size == 8);
  log.clear();
  queue.disable_notifications();
  check(log.size() == 0);

  // Staged by push_used alone: the same.
  driver.offer({0x3000, 30, 0}, 0);
  driver.offer({0x4000, 40, flag_write}, 1);
  const chain_id a = queue.pop_available()->id(), b = queue.pop_available()->id();
  log.clear();
  check(queue.push_used(b, 4).has_value() && log.size() == 0);
  check(queue.push_used(a, 0).has_value() && log.size() == 1);
  check(log[0].kind == store && log[0].order == order::relaxed && log[0].address == rest_of(5));
  queue.publish();
  check(log.size() == 2 && log[1].kind == store && log[1].order == order::release &&
        log[1].address == rest_of(4));

  check(queue.start(memory, layout_of(at), no_features, 6).has_value());
  log.clear();
  queue.disable_notifications();
  check(log.size() == 1 && log[0].kind == store && log[0].size == 4 &&
        log[0].order == order::relaxed && log[0].address == at.device_event);
  log.clear();
  (void)queue.enable_notifications();
  check(log.size() == 3 && log[0].kind == store && log[0].size == 4 && log[1].kind == fence &&
        log[2].kind == load && log[2].address == rest_of(6));
};
BOTH("RT-18 every access of the packed device has the order that P5 to P11 ask for", orders)

constexpr auto once = [](auto check) {
  using enum ballast_test::event_kind;
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 128>;
  for (bool pops : {false, true}) {
    inner_type ram(base);
    ballast_test::event_log<128> log;
    memory_type memory(ram, log);
    const ballast_test::raw_words words(ram.bytes(), base, little);
    ballast_test::scripted_packed_driver driver(words, places(7));
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<memory_type> queue(storage);
    check(queue.start(memory, layout_of(places(7)), indirect).has_value());
    offer_three(words, driver);
    driver.offer({{1, 1, 0}, {2, 2, 0}, {3, 3, flag_write}}, 1);
    log.clear();
    if (pops)
      for (int i = 0; i < 4; ++i) check(queue.pop_available().has_value());
    else
      check(queue.consume(4, use_all)->chains == 4);
    check(log.lost() == 0);
    std::size_t looks = 0;
    for (std::size_t i = 0; i < log.size(); ++i) {
      if (log[i].kind != load && log[i].kind != read) continue;
      const bool is_again = log.find(log[i].kind, log[i].address, i + 1) != log.npos;
      looks += is_again;
    }
    // All seven descriptors were there, so whether more came is asked of the first once more.
    check(looks == (pops ? 0u : 1u));
    check(pops || log.find(load, places(7).ring + 8) == 0);
  }
};
BOTH("RT-15 a packed device reads no word and no table entry twice", once)

// A driver that loops: the descriptor where the chain came round to was read already.
TEST_CASE("RT-15 a packed device reads no word twice where a chain loops either") {
  using inner_type = fixture<7>::memory_type;
  using memory_type = ballast_test::recording_memory<inner_type, 128>;
  using enum ballast_test::event_kind;
  for (std::uint32_t size : {1u, 3u, 7u}) {
    inner_type ram(base);
    ballast_test::event_log<128> log;
    memory_type memory(ram, log);
    packed_places at = places(7);
    at.size = size;
    ballast_test::scripted_packed_driver driver({ram.bytes(), base, little}, at);
    for (std::uint32_t i = 0; i < size; ++i) driver.descriptor(i, {1, 1, 0, 0x81});
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<memory_type> queue(storage);
    REQUIRE(queue.start(memory, layout_of(at), no_features).has_value());
    log.clear();
    CHECK(queue.pop_available().error() == error::chain_loops);
    CHECK(log.count(load) == 2 * size);
  }
}

} // namespace
