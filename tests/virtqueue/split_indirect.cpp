// SPDX-License-Identifier: BSD-3-Clause
// Indirect tables: the device that reads them, the driver that writes them, both together.
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "support/changing_memory.hpp"
#include "support/failing_memory.hpp"
#include "support/queue_life.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_device.hpp"
#include "support/scripted_driver.hpp"

#include <array>
#include <initializer_list>

using ballast::buffer;
using ballast::chain;
using ballast::error;
using ballast::feature_set;
using ballast::guest_address;
using ballast_test::event_kind;
using ballast_test::raw_descriptor;
using ballast_test::ring_places;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr guest_address base = 0x9'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set indirect{ballast::feature::indirect_desc};

constexpr std::uint16_t flag_next = 1, flag_write = 2, flag_indirect = 4;

constexpr ring_places places{8, base + 0x100, base + 0xa2, base + 0x0c};
constexpr ballast::queue_layout layout{8, places.table, places.available, places.used};
constexpr std::size_t ram_bytes = 0x400;
using ram_type = ballast::array_memory<ram_bytes>;
constexpr guest_address spare = base + 0x200; ///< behind the rings

// ---- device

/// One entry of an indirect table, byte by byte.
constexpr void put_entry(ballast_test::raw_words& words, guest_address table, std::uint32_t i,
                         const raw_descriptor& d) {
  words.put(table + 16 * i, 8, d.address);
  words.put(table + 16 * i + 8, 4, d.length);
  words.put(table + 16 * i + 12, 2, d.flags);
  words.put(table + 16 * i + 14, 2, d.next);
}

template <std::endian E = little> struct device_bench {
  ram_type ram{base};
  ballast_test::raw_words words{ram.bytes(), base, E};
  ballast_test::scripted_driver driver{words, places};
  ballast::device_queue_storage<8> storage;
  ballast::split_device<ram_type, E> queue{storage};

  constexpr explicit device_bench(const feature_set& features = indirect) {
    started = queue.start(ram, layout, features).has_value();
  }
  device_bench(const device_bench&) = delete;

  /// A table of `entries` entries, one behind the other: entry i is 10 + i bytes at 0x1000 * i, the
  /// last `writable` of them are writable.
  constexpr void table(guest_address at, std::uint32_t entries, std::uint32_t writable = 0) {
    for (std::uint32_t i = 0; i < entries; ++i)
      put_entry(words, at, i,
                {0x1000 * i, 10 + i,
                 static_cast<std::uint16_t>((i + 1 < entries ? flag_next : 0) |
                                            (i >= entries - writable ? flag_write : 0)),
                 static_cast<std::uint16_t>(i + 1)});
  }
  /// Descriptor `head` refers to a table.
  constexpr void refer(std::uint32_t head, guest_address at, std::uint32_t bytes,
                       std::uint16_t flags = flag_indirect) {
    driver.descriptor(head, {at, bytes, flags, 0});
  }

  bool started = false;
};

enum class way { pop, consume, consume_one };

/// What comes of the next chain; `check(chain)` sees it.
template <class Q, class Check> constexpr error take(Q& queue, way how, Check&& see) {
  const auto handle = [&](const chain& c) {
    see(c);
    return ballast::used();
  };
  switch (how) {
  case way::pop: {
    const auto popped = queue.pop_available();
    if (popped) see(*popped);
    return popped.error();
  }
  case way::consume: return queue.consume(8, handle).error();
  case way::consume_one: return queue.consume_one(handle).error();
  }
  return error::wrong_state;
}
constexpr way ways[] = {way::pop, way::consume, way::consume_one};

template <std::endian E> constexpr void direct_then_table(auto check) {
  for (const way how : ways)
    for (std::uint32_t direct = 0; direct < 4; ++direct) {
      device_bench<E> b;
      check(b.started);
      const std::uint32_t order[] = {3, 5, 1, 6};
      for (std::uint32_t i = 0; i < direct; ++i)
        b.driver.descriptor(order[i], {0x1122'3344'0000'0000u + i, 100 + i, flag_next,
                                       static_cast<std::uint16_t>(order[i + 1])});
      b.refer(order[direct], spare, 64);
      put_entry(b.words, spare, 0, {0x1122'3344'5566'7788, 0x0102'0304, flag_next, 2});
      put_entry(b.words, spare, 2, {~0ull, 0, flag_next | flag_write, 1});
      put_entry(b.words, spare, 1, {3, 0x0a0b'0c0d, flag_write, 0xffff});
      b.driver.offer(3);
      std::uint32_t seen = 0;
      check(take(b.queue, how, [&](const chain& c) {
              ++seen;
              check(c.id().head == 3);
              check(c.readable().size() == direct + 1 && c.writable().size() == 2);
              for (std::uint32_t i = 0; i < direct; ++i)
                check(c.readable()[i] == buffer{0x1122'3344'0000'0000u + i, 100 + i});
              check(c.readable()[direct] == buffer{0x1122'3344'5566'7788, 0x0102'0304});
              check(c.writable()[0] == buffer{~0ull, 0});
              check(c.writable()[1] == buffer{3, 0x0a0b'0c0d});
            }) == error::none);
      check(seen == 1);
      if (how == way::pop) check(b.queue.push_used(*b.queue.held_chain(3), 7).has_value());
      b.queue.publish();
      check(b.driver.used_index() == 1 && b.driver.used_id(0) == 3);
    }
}
constexpr auto mixed = [](auto check) {
  direct_then_table<little>(check);
  direct_then_table<big>(check);
};
BOTH("SP-11 SP-4 a chain may be direct descriptors followed by one table", mixed)

constexpr auto unaligned = [](auto check) {
  for (std::uint32_t off = 0; off < 16; ++off) {
    device_bench<> b;
    b.table(spare + off, 3, 1);
    b.refer(0, spare + off, 48);
    b.driver.offer(0);
    check(take(b.queue, ways[off % 3], [&](const chain& c) {
            check(c.readable().size() == 2 && c.writable().size() == 1);
            for (std::uint32_t i = 0; i < 3; ++i)
              check((i < 2 ? c.readable()[i] : c.writable()[0]) == buffer{0x1000 * i, 10 + i});
          }) == error::none);
  }
};
BOTH("RT-23 a device's indirect table needs no alignment", unaligned)

constexpr auto referring_write = [](auto check) {
  // SP-10: the flag says nothing about the entries, nor about the order.
  for (std::uint16_t more : {std::uint16_t{0}, flag_write, std::uint16_t{0xfff8}}) {
    device_bench<> b;
    b.table(spare, 2, 1);
    b.driver.descriptor(0, {7, 8, flag_next, 1});
    b.refer(1, spare, 32, static_cast<std::uint16_t>(flag_indirect | more));
    b.driver.offer(0);
    check(take(b.queue, way::pop, [&](const chain& c) {
            check(c.readable().size() == 2 && c.writable().size() == 1);
          }) == error::none);
  }
  // A direct writable buffer before a readable entry is out of order, before a writable one not.
  for (std::uint32_t writable : {1u, 2u}) {
    device_bench<> b;
    b.table(spare, 2, writable);
    b.driver.descriptor(0, {7, 8, flag_next | flag_write, 1});
    b.refer(1, spare, 32);
    b.driver.offer(0);
    check(take(b.queue, way::pop, [](const chain&) {}) ==
          (writable == 2 ? error::none : error::readable_after_writable));
  }
};
BOTH("SP-10 WRITE on the descriptor that refers to a table is ignored", referring_write)

/// What a chain breaks the queue with, the same in all ways; `none` if it does not, or not for
/// good, or hands something out.
template <class Set> constexpr error breaks(Set&& set, const feature_set& features = indirect) {
  error first = error::none;
  for (const way how : ways) {
    device_bench<> b(features);
    b.table(spare, 8, 2);
    set(b);
    b.driver.offer(0);
    std::uint32_t seen = 0;
    const auto see = [&](const chain&) { ++seen; };
    const error why = take(b.queue, how, see);
    if (seen != 0 || b.queue.cause() != why || b.queue.in_flight() != 0) return error::none;
    b.refer(0, spare, 128); // even if the driver thinks better of it
    for (const way again : ways)
      if (take(b.queue, again, see) != why || seen != 0) return error::none;
    if (how != way::pop && why != first) return error::none;
    first = why;
    if (!b.queue.start(b.ram, layout, features)) return error::none;
    if (b.queue.cause() != error::none) return error::none;
  }
  return first;
}

constexpr auto hostile = [](auto check) {
  using bench = device_bench<>;
  const auto refers = [](guest_address at, std::uint32_t bytes,
                         std::uint16_t flags = flag_indirect) {
    return [=](bench& b) { b.refer(0, at, bytes, flags); };
  };
  check(breaks(refers(spare, 128)) == error::none);
  for (std::uint32_t bytes : {0u, 1u, 8u, 15u, 17u, 127u, 0x8000'0001u, 0xffff'ffffu})
    check(breaks(refers(spare, bytes)) == error::indirect_length);
  for (std::uint16_t more : {std::uint16_t{0}, flag_write}) {
    const auto both = static_cast<std::uint16_t>(flag_indirect | flag_next | more);
    check(breaks(refers(spare, 128, both)) == error::indirect_with_next);
    check(breaks(refers(spare, 128, both), no_features) == error::indirect_not_negotiated);
    check(breaks(refers(spare, 128, static_cast<std::uint16_t>(flag_indirect | more)),
                 feature_set{ballast::feature::event_idx, ballast::feature::in_order}) ==
          error::indirect_not_negotiated);
  }
  // Behind direct descriptors too.
  check(breaks(
            [](bench& b) {
              b.driver.descriptor(0, {1, 1, flag_next, 1});
              b.refer(1, spare, 128);
            },
            no_features) == error::indirect_not_negotiated);

  // Nested, with whatever else is wrong about it.
  for (std::uint32_t at : {0u, 3u})
    for (std::uint16_t flags :
         {flag_indirect, static_cast<std::uint16_t>(flag_indirect | flag_next),
          static_cast<std::uint16_t>(flag_indirect | flag_write)})
      check(breaks([&](bench& b) {
              b.refer(0, spare, 128);
              put_entry(b.words, spare, at, {spare, 128, flags, 1});
            }) == error::indirect_nested);

  // A next beyond the table, though the queue has such a descriptor.
  for (std::uint16_t next : {std::uint16_t{3}, std::uint16_t{7}, std::uint16_t{0xffff}})
    check(breaks([&](bench& b) {
            b.table(spare, 3);
            b.refer(0, spare, 48);
            put_entry(b.words, spare, 1, {0, 0, flag_next, next});
          }) == error::next_out_of_range);
  check(breaks([&](bench& b) { b.refer(0, spare, 112); }) == error::next_out_of_range);

  // Loops: of one, of two, over all.
  for (std::uint16_t to : {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{6}})
    check(breaks([&](bench& b) {
            b.refer(0, spare, 128);
            put_entry(b.words, spare, 1, {0, 0, flag_next, to});
            put_entry(b.words, spare, 6, {0, 0, flag_next, 0});
          }) == error::chain_loops);
  // A loop of readable entries behind writable ones is found as what it is first.
  check(breaks([&](bench& b) {
          b.refer(0, spare, 128);
          put_entry(b.words, spare, 1, {0, 0, flag_next | flag_write, 0});
        }) == error::readable_after_writable);
};
BOTH("RT-4 SP-9 a device refuses every table that breaks a rule, and the queue is broken", hostile)

constexpr auto outside = [](auto check) {
  const guest_address addresses[] = {
      0,       16,         base - 16, base - 8, base + ram_bytes - 15, base + ram_bytes,
      0 - 16u, ~0ull - 15, ~0ull - 7, ~0ull,    base + 0x1'0000'0000};
  for (const guest_address at : addresses)
    check(breaks([&](device_bench<>& b) { b.refer(0, at, 16); }) == error::indirect_outside);
  // The first entry lies in memory, the second not, or half.
  for (const std::uint32_t inside : {16u, 17u, 24u, 31u})
    check(breaks([&](device_bench<>& b) {
            const guest_address at = base + ram_bytes - inside;
            put_entry(b.words, at, 0, {0, 1, flag_next, 1});
            b.refer(0, at, 32);
          }) == error::indirect_outside);
  // One that ends with the last byte of memory is all right, and of the address space not memory.
  device_bench<> b;
  b.table(base + ram_bytes - 32, 2);
  b.refer(0, base + ram_bytes - 32, 32);
  b.driver.offer(0);
  check(take(b.queue, way::pop, [](const chain&) {}) == error::none);
};
BOTH("RT-14 a device's table outside of memory, over its end, or round the address space", outside)

/// Memory at both ends of the address space: an address that wraps is memory again.
struct both_ends {
  ram_type* ram = nullptr;

  static constexpr guest_address folded(guest_address a) { return base + a % ram_bytes; }
  constexpr auto window(guest_address a, std::uint64_t n, std::size_t alignment,
                        ballast::access k) noexcept {
    return ram->window(folded(a), n, alignment, k);
  }
  constexpr auto segment(guest_address a, std::uint64_t n, ballast::access k) noexcept {
    return ram->segment(folded(a), n, k);
  }
  constexpr bool read(guest_address a, std::span<std::byte> to) noexcept {
    return ram->read(folded(a), to);
  }
  constexpr bool write(guest_address a, std::span<const std::byte> from) noexcept {
    return ram->write(folded(a), from);
  }
  static constexpr bool good() noexcept { return true; }
  static constexpr void fence() noexcept {}
};

constexpr auto wraps = [](auto check) {
  for (const std::uint32_t length : {16u, 32u, 48u, 64u}) {
    ram_type ram(base);
    both_ends memory{&ram};
    ballast_test::raw_words words(ram.bytes(), base, little);
    ballast_test::scripted_driver driver(words, places);
    ballast::device_queue_storage<8> storage;
    ballast::split_device<both_ends> queue(storage);
    check(queue.start(memory, layout, indirect).has_value());
    put_entry(words, base + ram_bytes - 32, 0, {0x1000, 10, 0, 0});
    driver.descriptor(0, {0 - std::uint64_t{32}, length, flag_indirect, 0});
    driver.offer(0);
    // Up to the last address there is, and not beyond.
    check(queue.pop_available().error() == (length <= 32 ? error::none : error::indirect_outside));
  }
};
BOTH("RT-14 a device's table goes up to the last address and not round to the first", wraps)

constexpr auto too_long = [](auto check) {
  // A table may have more entries than the queue; a chain may not.
  for (const std::uint32_t entries : {8u, 9u, 20u}) {
    device_bench<> b;
    b.table(spare, 20);
    put_entry(b.words, spare, 7, {0x7000, 17, 0, 0});
    b.refer(0, spare, 16 * entries);
    b.driver.offer(0);
    check(take(b.queue, way::pop, [&](const chain& c) { check(c.readable().size() == 8); }) ==
          error::none);
  }
  check(breaks([](device_bench<>& b) {
          b.table(spare, 9);
          b.refer(0, spare, 144);
        }) == error::chain_loops);
  // Direct ones count: 3 + 5 is the size of the queue, 3 + 6 is more, so is 8 + 1.
  for (std::uint32_t more : {5u, 6u}) {
    device_bench<> b;
    for (std::uint32_t i = 0; i < 3; ++i)
      b.driver.descriptor(i, {i, 1, flag_next, static_cast<std::uint16_t>(i + 1)});
    b.table(spare, more);
    b.refer(3, spare, 16 * more);
    b.driver.offer(0);
    check(take(b.queue, way::pop, [&](const chain& c) { check(c.readable().size() == 8); }) ==
          (more == 5 ? error::none : error::chain_loops));
  }
  check(breaks([](device_bench<>& b) {
          for (std::uint32_t i = 0; i < 7; ++i)
            b.driver.descriptor(i, {i, 1, flag_next, static_cast<std::uint16_t>(i + 1)});
          b.table(spare, 2);
          b.refer(7, spare, 32);
        }) == error::chain_loops);
};
BOTH("RT-4 RT-9 SP-9 a device's table may be longer than the queue, a chain may not", too_long)

constexpr auto bytes = [](auto check) {
  // Direct and indirect ones count together: 2^32 is allowed, one more is not.
  for (std::uint32_t more : {1u, 2u}) {
    device_bench<> b;
    b.driver.descriptor(0, {0, 0x8000'0000, flag_next, 1});
    b.refer(1, spare, 32);
    put_entry(b.words, spare, 0, {0, 0x7fff'ffff, flag_next, 1});
    put_entry(b.words, spare, 1, {0, more, flag_write, 0});
    b.driver.offer(0);
    check(take(b.queue, way::pop, [](const chain&) {}) ==
          (more == 1 ? error::none : error::chain_bytes_overflow));
    check(b.queue.cause() == (more == 1 ? error::none : error::chain_bytes_overflow));
  }
};
BOTH("RT-24 a device's chain with a table may describe 2^32 bytes and no more", bytes)

TEST_CASE("RT-14 RT-23 a device's table in another region, over two regions, or into a hole") {
  alignas(4096) static std::array<std::byte, 3 * 4096> host{};
  // The second and third follow one another in the guest and not in the host.
  const std::array<ballast::memory_region, 3> regions{
      {{base, host.data(), 4096, true},
       {base + 0x10000, host.data() + 8192, 4096, false},
       {base + 0x11000, host.data() + 4096, 4096, true}}};
  auto ram = ballast::mapped_memory::over(regions);
  REQUIRE(ram.has_value());
  const auto write = [&](guest_address at, std::uint32_t i, const raw_descriptor& d) {
    std::array<std::byte, 16> raw{};
    ballast_test::raw_words words(raw, 0, little);
    put_entry(words, 0, 0, d);
    for (std::uint32_t k = 0; k < 16; ++k) {
      const guest_address to = at + 16 * i + k;
      if (to >= base + 0x12000) continue;
      host[to >= base + 0x11000   ? 4096 + (to - base - 0x11000)
           : to >= base + 0x10000 ? 8192 + (to - base - 0x10000)
                                  : to - base] = raw[k];
    }
  };
  ballast_test::scripted_driver driver({std::span(host).first(4096), base, little}, places);
  ballast::device_queue_storage<8> storage;
  ballast::split_device<ballast::mapped_memory> queue(storage);
  struct place {
    guest_address at;
    error expected;
  };
  for (const place& p : {place{base + 0x800, error::none},
                         {base + 0x10000, error::none},
                         {base + 0x11000 - 8, error::none},
                         {base + 0x11000 - 33, error::none},
                         {base + 0x11000 - 16, error::none},
                         {base + 0x12000 - 48, error::none},
                         {base + 0x12000 - 40, error::indirect_outside},
                         {base + 0x1000 - 8, error::indirect_outside},
                         {base + 0x10000 - 8, error::indirect_outside}}) {
    CAPTURE(p.at - base);
    driver = ballast_test::scripted_driver({std::span(host).first(4096), base, little}, places);
    driver.make_available();
    REQUIRE(queue.start(*ram, layout, indirect).has_value());
    if (p.at != base + 0x1000 - 8 && p.at != base + 0x10000 - 8)
      for (std::uint32_t i = 0; i < 3; ++i)
        write(p.at, i,
              {0x10 + i, i, static_cast<std::uint16_t>(i < 2 ? flag_next : 0),
               static_cast<std::uint16_t>(i + 1)});
    driver.descriptor(4, {p.at, 48, flag_indirect, 0});
    driver.offer(4);
    const auto popped = queue.pop_available();
    CHECK(popped.error() == p.expected);
    if (!popped) continue;
    REQUIRE(popped->readable().size() == 3);
    for (std::uint32_t i = 0; i < 3; ++i) CHECK(popped->readable()[i] == buffer{0x10 + i, i});
  }
}

// ---- device: each entry is read once

template <class Wrap>
constexpr error read_chain(ram_type& ram, Wrap& memory, chain& out,
                           ballast::device_queue_storage<8>& storage) {
  ballast_test::raw_words words(ram.bytes(), base, little);
  ballast_test::scripted_driver driver(words, places);
  driver.make_available();
  ballast::split_device<Wrap> queue(storage);
  if (!queue.start(memory, layout, indirect)) return error::wrong_state;
  driver.descriptor(2, {5, 6, flag_next, 6});
  driver.descriptor(6, {spare + 1, 64, flag_indirect, 0});
  for (std::uint32_t i = 0; i < 4; ++i)
    put_entry(words, spare + 1, i,
              {0x1000 * i, 16 + i,
               static_cast<std::uint16_t>((i < 3 ? flag_next : 0) | (i < 2 ? 0 : flag_write)),
               static_cast<std::uint16_t>(i + 1)});
  driver.offer(2);
  const auto popped = queue.pop_available();
  if (popped) out = *popped;
  return popped.error();
}
constexpr bool is_honest(const chain& c) {
  if (c.readable().size() != 3 || c.writable().size() != 2) return false;
  for (std::uint32_t i = 0; i < 4; ++i)
    if ((i < 2 ? c.readable()[i + 1] : c.writable()[i - 2]) != buffer{0x1000 * i, 16 + i})
      return false;
  return c.readable()[0] == buffer{5, 6};
}

constexpr auto fetched_once = [](auto check) {
  {
    ram_type ram(base);
    ballast_test::event_log<100> log;
    ballast_test::recording_memory<ram_type, 100> memory(ram, log);
    ballast::device_queue_storage<8> storage;
    chain c;
    check(read_chain(ram, memory, c, storage) == error::none && is_honest(c));
    check(log.lost() == 0 && log.count(event_kind::read) == 4);
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::size_t at = log.find(event_kind::read, spare + 1 + 16 * i);
      check(at != log.npos && log[at].size == 16);
    }
  }
  for (const std::uint64_t mask : {std::uint64_t{1}, ~std::uint64_t{0}, std::uint64_t{7} << 32}) {
    ram_type ram(base);
    ballast_test::change_plan plan{
        .mask = mask, .read_offset = 8, .rewrites_words = true, .rewrites_payload = true};
    ballast_test::changing_memory<ram_type> memory(ram, plan);
    ballast::device_queue_storage<8> storage;
    chain c;
    check(read_chain(ram, memory, c, storage) == error::none && is_honest(c));
  }
};
BOTH("RT-15 a device reads each table entry once: one that is overwritten at once changes nothing",
     fetched_once)

constexpr auto changes = [](auto check) {
  // Every copy sees every bit of its second half changed: an error, or what was copied then.
  for (std::uint64_t k = 1; k <= 4; ++k)
    for (std::uint32_t bit = 0; bit < 64; bit += (bit < 32 || bit > 51 ? 5u : 1u)) {
      ram_type ram(base);
      ballast_test::change_plan plan{
          .change_read = k, .mask = std::uint64_t{1} << bit, .read_offset = 8};
      ballast_test::changing_memory<ram_type> memory(ram, plan);
      ballast::device_queue_storage<8> storage;
      chain c;
      const error e = read_chain(ram, memory, c, storage);
      const std::size_t count = c.readable().size() + c.writable().size();
      if (bit < 32) {
        const std::size_t i = k; // behind the direct one
        const buffer changed = i < 3 ? c.readable()[i] : c.writable()[i - 3];
        check(e == error::none && count == 5);
        check(changed.length == ((15 + k) ^ (1ull << bit)));
      } else if (bit == 32) { // NEXT
        check(e == (k == 4 ? error::next_out_of_range : error::none) && (k == 4 || count == k + 1));
      } else if (bit == 33) { // WRITE, so far clear in the first two entries and set in the others
        check(e == (k == 1 || k == 4 ? error::readable_after_writable : error::none));
      } else if (bit == 34) {
        check(e == error::indirect_nested);
      } else if (bit < 48) {
        check(e == error::none && count == 5); // flags nobody knows
      } else {
        check(count <= 8);
      }
    }
};
BOTH("RT-15 a device's table entry that changes gives what was copied, or an error", changes)

constexpr auto fails = [](auto check) {
  for (std::uint64_t n = 1;; ++n) {
    ram_type ram(base);
    ballast_test::failure_plan plan{.lose_at = n, .garbage = 0xffff'ffff'ffff'ffff};
    ballast_test::failing_memory<ram_type> memory(ram, plan);
    ballast::device_queue_storage<8> storage;
    chain c;
    const error e = read_chain(ram, memory, c, storage);
    if (plan.accesses < n) {
      check(e == error::none && is_honest(c));
      break;
    }
    check(n <= 3 ? e == error::wrong_state : e == error::memory_lost);
  }
  // Not lost, but one copy fails: the table is not memory.
  for (std::uint64_t n = 4; n <= 7; ++n) {
    ram_type ram(base);
    ballast_test::failure_plan plan{.fail_at = n};
    ballast_test::failing_memory<ram_type> memory(ram, plan);
    ballast::device_queue_storage<8> storage;
    chain c;
    check(read_chain(ram, memory, c, storage) == error::indirect_outside);
  }
};
BOTH("RT-14 a device's table that can't be read is an error whichever entry it is", fails)

// ---- driver

constexpr std::uint32_t entries = 3;
constexpr ballast::indirect_tables tables{spare, entries};

template <std::endian E = little> struct driver_bench {
  ram_type ram{base};
  ballast_test::raw_words words{ram.bytes(), base, E};
  ballast_test::scripted_device device{words, places};
  std::array<ballast::driver_slot, 8> slots{};
  ballast::split_driver<ram_type, E> queue{slots};

  constexpr explicit driver_bench(const feature_set& features = indirect,
                                  const ballast::indirect_tables& with = tables) {
    for (std::byte& b : ram.bytes()) b = std::byte{0xa5};
    started = queue.start(ram, layout, features, 0, with).has_value();
  }
  driver_bench(const driver_bench&) = delete;

  constexpr error add(std::uint32_t readable, std::uint32_t writable, std::uint64_t token = 1) {
    std::array<buffer, 32> all{};
    for (std::uint32_t i = 0; i < 32; ++i)
      all[i] = {0x1122'3344'0000'0000u + 0x100 * token + i, 0x0102'0300 + i};
    const auto span = std::span<const buffer>(all);
    return queue.add(span.first(readable), span.subspan(readable, writable), token).error();
  }
  [[nodiscard]] constexpr raw_descriptor entry(guest_address table, std::uint32_t i) const {
    return {words.get(table + 16 * i, 8),
            static_cast<std::uint32_t>(words.get(table + 16 * i + 8, 4)),
            static_cast<std::uint16_t>(words.get(table + 16 * i + 12, 2)),
            static_cast<std::uint16_t>(words.get(table + 16 * i + 14, 2))};
  }

  bool started = false;
};

template <std::endian E> constexpr void writes_tables(auto check) {
  for (std::uint32_t count = 1; count <= 6; ++count)
    for (std::uint32_t readable = 0; readable <= count; ++readable) {
      driver_bench<E> b;
      check(b.started && b.add(readable, count - readable, 2) == error::none);
      b.queue.publish();
      const std::uint64_t head = b.device.available_entry(0);
      const raw_descriptor first = b.device.descriptor(head);
      const bool is_indirect = count >= 2 && count <= entries;
      check(((first.flags & flag_indirect) != 0) == is_indirect);
      check(b.queue.free_descriptors() == (is_indirect ? 7 : 8 - count));
      check(b.queue.in_flight() == 1);
      std::size_t touched = 0; // words
      for (std::size_t i = spare - base; i < ram_bytes; i += 8)
        touched += b.ram.bytes()[i] != std::byte{0xa5};
      if (!is_indirect) {
        check(touched == 0);
        continue;
      }
      check(first.flags == flag_indirect && first.next == 0 && first.length == 16 * count);
      check(first.address == spare + 16 * entries * head);
      for (std::uint32_t i = 0; i < count; ++i) {
        const raw_descriptor d = b.entry(first.address, i);
        const bool is_last = i + 1 == count;
        check(d.address == 0x1122'3344'0000'0200u + i && d.length == 0x0102'0300 + i);
        check(d.flags == ((is_last ? 0 : flag_next) | (i < readable ? 0 : flag_write)));
        check(is_last || d.next == i + 1); // sequential, as IN_ORDER wants
      }
      check(touched == 2 * count);
    }
}
constexpr auto writes = [](auto check) { writes_tables<little>(check); };
BOTH("SP-9 the driver writes tables from 2 buffers to `entries`, one descriptor of the ring each",
     writes)
constexpr auto writes_big = [](auto check) { writes_tables<big>(check); };
BOTH("SP-9 the driver's tables in a big-endian ring", writes_big)

constexpr auto only_negotiated = [](auto check) {
  for (const feature_set& features :
       {no_features, feature_set{ballast::feature::event_idx, ballast::feature::in_order}}) {
    driver_bench<> b(features);
    check(b.started && b.add(2, 1) == error::none && b.queue.free_descriptors() == 5);
    b.queue.publish();
    check((b.device.descriptor(b.device.available_entry(0)).flags & flag_indirect) == 0);
  }
  driver_bench<> none(indirect, {});
  check(none.started && none.add(2, 1) == error::none && none.queue.free_descriptors() == 5);
};
BOTH("SP-9 the driver uses tables only where INDIRECT_DESC was negotiated and it has some",
     only_negotiated)

constexpr auto fills = [](auto check) {
  driver_bench<> b;
  for (std::uint64_t token = 0; token < 8; ++token) check(b.add(2, 1, token) == error::none);
  check(b.queue.free_descriptors() == 0 && b.queue.in_flight() == 8);
  check(b.add(2, 1) == error::queue_full && b.add(1, 0) == error::queue_full);
  b.queue.publish();
  // Eight tables that do not overlap, each with its own chain.
  std::uint32_t seen = 0;
  for (std::uint32_t n = 0; n < 8; ++n) {
    const raw_descriptor d = b.device.descriptor(b.device.available_entry(n));
    check(d.address >= spare && (d.address - spare) % 48 == 0 && d.address < spare + 8 * 48);
    seen |= 1u << (d.address - spare) / 48;
    for (std::uint32_t i = 0; i < 3; ++i)
      check(b.entry(d.address, i).address == 0x1122'3344'0000'0000u + 0x100 * n + i);
  }
  check(seen == 0xff);
  for (const std::uint32_t n : {5u, 0u, 7u, 3u, 1u, 2u, 6u, 4u}) {
    b.device.give_back(static_cast<std::uint32_t>(b.device.available_entry(n)), 9);
    const auto used = b.queue.pop_used();
    check(used && used->token == n && used->length == 9);
  }
  check(b.queue.free_descriptors() == 8);
  check(b.add(8, 0) == error::none && b.queue.free_descriptors() == 0); // direct, all of them
};
BOTH("RT-8 the driver has one table for each descriptor, and all come back", fills)

constexpr auto room = [](auto check) {
  driver_bench<> b;
  check(b.add(5, 0) == error::none); // direct: longer than a table
  check(b.queue.free_descriptors() == 3);
  check(b.add(4, 0) == error::queue_full && b.add(2, 1) == error::none);
  check(b.add(1, 2) == error::none && b.queue.free_descriptors() == 1);
  check(b.add(2, 0) == error::none && b.queue.free_descriptors() == 0);
  check(b.add(2, 0) == error::queue_full);
  check(b.add(0, 0) == error::empty_chain);
  check(b.add(9, 0) == error::chain_too_long);
  // A table that is longer than the queue makes no longer chains.
  driver_bench<> long_ones(indirect, {base + 0x180, 4});
  check(long_ones.add(3, 1) == error::none && long_ones.queue.free_descriptors() == 7);
  ballast::array_memory<0x400> ram(base);
  std::array<ballast::driver_slot, 2> slots{};
  ballast::split_driver<ballast::array_memory<0x400>> two(slots);
  check(two.start(ram, {2, base + 0x100, base + 0xa2, base + 0x0c}, indirect, 0, {spare, 16})
            .has_value());
  const buffer three[] = {{0, 1}, {1, 1}, {2, 1}};
  const std::span<const buffer> all(three);
  check(two.add(all, {}, 0).error() == error::chain_too_long);
  check(two.add(all.first(2), {}, 0).has_value() && two.add(all.first(1), all.first(1), 1));
  check(two.free_descriptors() == 0);
  // And of bytes.
  driver_bench<> heavy;
  const buffer much[] = {{0, 0xffff'ffff}, {0, 1}};
  check(heavy.queue.add(much, {}, 0).error() == error::chain_bytes_overflow);
  check(heavy.queue.free_descriptors() == 8 && heavy.queue.in_flight() == 0);
};
BOTH("SP-9 RT-10 RT-4 the driver's free count, and chains that do not fit with tables", room)

constexpr auto windows = [](auto check) {
  const auto start = [](const ballast::indirect_tables& with, const feature_set& features) {
    driver_bench<> b(no_features);
    const auto done = b.queue.start(b.ram, layout, features, 0, with);
    if (!done && (b.queue.is_attached() || b.add(1, 0) != error::not_attached)) return error::none;
    // Attaching asks the same.
    driver_bench<> c(features, {});
    c.queue.detach();
    if (c.queue.attach(c.ram, layout, features, with).error() != done.error()) return error::none;
    if (c.queue.is_attached() != done.has_value()) return error::none;
    return done ? error::wrong_state : done.error(); // wrong_state: it worked
  };
  check(start(tables, indirect) == error::wrong_state);
  check(start({base + ram_bytes - 384, 3}, indirect) == error::wrong_state);
  for (const std::uint64_t off : {1u, 2u, 4u, 8u})
    check(start({spare + off, 3}, indirect) == error::misaligned);
  for (const guest_address at : {std::uint64_t{0}, base - 16, base + ram_bytes - 384 + 16,
                                 base + ram_bytes, 0 - std::uint64_t{384}, 0 - std::uint64_t{16}})
    check(start({at, 3}, indirect) == error::not_guest_memory);
  check(start({spare, 5}, indirect) == error::not_guest_memory);
  check(start({spare, 0xffff'ffff}, indirect) == error::not_guest_memory);
  check(start({0, 0}, indirect) == error::wrong_state);             // none
  check(start({spare + 1, 0xffff'ffff}, {}) == error::wrong_state); // not negotiated: not looked at
};
BOTH("RT-14 the driver refuses tables that are misaligned or not all memory", windows)

TEST_CASE("RT-14 the driver refuses tables in memory that it can't write") {
  alignas(4096) static std::array<std::byte, 2 * 4096> host{};
  for (const bool is_writable : {false, true}) {
    const std::array<ballast::memory_region, 2> regions{
        {{base, host.data(), 4096, true}, {base + 0x10000, host.data() + 4096, 4096, is_writable}}};
    auto ram = ballast::mapped_memory::over(regions);
    REQUIRE(ram.has_value());
    std::array<ballast::driver_slot, 8> slots{};
    ballast::split_driver<ballast::mapped_memory> queue(slots);
    const auto done = queue.start(*ram, layout, indirect, 0, {base + 0x10000, 4});
    CHECK(done.error() == (is_writable ? error::none : error::access_not_allowed));
    CHECK(queue.is_attached() == is_writable);
  }
}

constexpr auto attaches = [](auto check) {
  driver_bench<> b;
  check(b.add(1, 1, 7) == error::none);
  b.queue.publish();
  b.queue.detach();
  check(b.queue.attach(b.ram, layout, indirect, tables).has_value());
  check(b.queue.free_descriptors() == 7 && b.queue.in_flight() == 1);
  check(b.add(1, 2, 8) == error::none);
  b.queue.publish();
  for (std::uint32_t n = 0; n < 2; ++n) {
    const raw_descriptor d = b.device.descriptor(b.device.available_entry(n));
    check(d.flags == flag_indirect && d.length == 32 + 16 * n);
    check(b.entry(d.address, 0).address == 0x1122'3344'0000'0700u + 0x100 * n);
  }
  // Attached without tables it goes on with direct ones, and the two still come back.
  b.queue.detach();
  check(b.queue.attach(b.ram, layout, indirect).has_value());
  check(b.add(1, 2, 9) == error::none && b.queue.free_descriptors() == 3);
  b.queue.publish();
  for (std::uint32_t n = 0; n < 3; ++n) {
    b.device.give_back(static_cast<std::uint32_t>(b.device.available_entry(n)), 0);
    check(b.queue.pop_used()->token == 7 + n);
  }
  check(b.queue.free_descriptors() == 8);
};
BOTH("the driver attaches with its tables, and without", attaches)

constexpr auto reads_nothing_back = [](auto check) {
  // A device that overwrites the tables and the ring while it has them.
  driver_bench<> b;
  check(b.add(1, 2, 5) == error::none && b.add(3, 2, 6) == error::none);
  b.queue.publish();
  const auto first = static_cast<std::uint32_t>(b.device.available_entry(0));
  const auto second = static_cast<std::uint32_t>(b.device.available_entry(1));
  for (std::size_t i = spare - base; i < ram_bytes; ++i) b.ram.bytes()[i] = std::byte{0xff};
  for (std::size_t i = 0x100; i < 0x180; ++i) b.ram.bytes()[i] = std::byte{0xff};
  b.device.give_back(first, 0xffff'ffff);
  b.device.give_back(second, 1);
  const auto used = b.queue.pop_used();
  check(used && used->token == 5 && used->length == 0x0102'0301 + 0x0102'0302);
  check(b.queue.pop_used()->token == 6 && b.queue.free_descriptors() == 8);
  check(b.add(8, 0) == error::none);
};
BOTH("RT-15 the driver never reads a table back", reads_nothing_back)

// ---- both together

template <std::uint32_t N> using life_ram = ballast::array_memory<64 * N + 128 + N * 4 * 16>;

template <std::uint32_t N, std::endian E = little>
constexpr void lives(auto check, std::uint32_t steps, const feature_set& features,
                     std::uint32_t table_entries, std::uint64_t seed) {
  life_ram<N> ram(base);
  const auto at = ballast::split::place(base, N);
  const ballast_test::life_plan plan{.features = features,
                                     .layout = at.layout,
                                     .tables = {(at.end + 15) & ~std::uint64_t{15}, table_entries},
                                     .first_index = static_cast<std::uint16_t>(0xfff0 + seed),
                                     .seed = seed};
  ballast_test::queue_life<N, E, life_ram<N>, life_ram<N>> life(ram, ram, plan);
  for (std::uint32_t i = 0; i < steps; ++i) life.step();
  life.finish();
  check(life.wrong() == 0);
  check(life.returned() > steps / 100);
}

constexpr auto short_lives = [](auto check) {
  const feature_set with_events{ballast::feature::indirect_desc, ballast::feature::event_idx};
  lives<4>(check, 80, indirect, 3, 1);
  lives<4>(check, 80, with_events, 2, 2);
  lives<4>(check, 80, with_events, 4, 3);
  lives<4, big>(check, 80, indirect, 3, 4);
  lives<2>(check, 80, indirect, 4, 5);
};
BOTH("SP-11 a whole exchange with chains and tables, both sides, in a constant expression",
     short_lives)

TEST_CASE(
    "RT-8 RT-19 long random lives of driver and device with tables, as a naive model has them") {
  const ballast_test::run_time_check check;
  for (std::uint64_t seed = 1; seed < 20; ++seed)
    for (std::uint32_t table_entries = 0; table_entries <= 4; ++table_entries) {
      lives<1>(check, 500, indirect, table_entries, seed);
      lives<2>(check, 500, indirect, table_entries, seed);
      lives<8>(check, 2000, indirect, table_entries, seed);
      lives<8, big>(check, 2000, indirect, table_entries, seed);
      lives<64>(check, 3000, indirect, table_entries, seed);
    }
}

} // namespace
