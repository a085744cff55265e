// SPDX-License-Identifier: BSD-3-Clause
// Indirect tables of a packed virtqueue: the driver that writes them, and both sides together.
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "support/failing_memory.hpp"
#include "support/queue_life.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_packed_device.hpp"

#include <array>
#include <initializer_list>

using ballast::buffer;
using ballast::chain;
using ballast::error;
using ballast::feature_set;
using ballast::guest_address;
using ballast_test::scripted_packed_device;
using descriptor = scripted_packed_device::descriptor;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr guest_address base = 0x9'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set indirect{ballast::feature::indirect_desc};
constexpr feature_set indirect_in_order{ballast::feature::indirect_desc,
                                        ballast::feature::in_order};

constexpr unsigned flag_write = 2, flag_indirect = 4;

constexpr std::uint32_t size = 7;
constexpr ballast::queue_layout layout{size, base + 0x30, base + 0x0c, base + 0x14};
constexpr std::size_t ram_bytes = 0x400;
using ram_type = ballast::array_memory<ram_bytes>;
constexpr guest_address spare = base + 0x200; ///< behind the ring
constexpr std::uint32_t entries = 3;
constexpr ballast::indirect_tables tables{spare, entries};

template <std::endian E = little> struct driver_bench {
  ram_type ram{base};
  ballast_test::raw_words words{ram.bytes(), base, E};
  scripted_packed_device device;
  std::array<ballast::driver_slot, size> slots{};
  ballast::packed_driver<ram_type, E> queue{slots};

  constexpr explicit driver_bench(const feature_set& features = indirect,
                                  const ballast::indirect_tables& with = tables,
                                  std::uint16_t first = 0)
      : device(words, layout, first) {
    for (std::byte& b : ram.bytes()) b = std::byte{0xa5};
    started = queue.start(ram, layout, features, first, with).has_value();
  }
  driver_bench(const driver_bench&) = delete;

  constexpr error add(std::uint32_t readable, std::uint32_t writable, std::uint64_t token = 1) {
    std::array<buffer, 32> all{};
    for (std::uint32_t i = 0; i < 32; ++i)
      all[i] = {0x1122'3344'0000'0000u + 0x100 * token + i, 0x0102'0300 + i};
    const auto span = std::span<const buffer>(all);
    return queue.add(span.first(readable), span.subspan(readable, writable), token).error();
  }
  [[nodiscard]] constexpr descriptor entry(guest_address table, std::uint32_t i) const {
    return {words.get(table + 16 * i, 8),
            static_cast<std::uint32_t>(words.get(table + 16 * i + 8, 4)),
            static_cast<std::uint16_t>(words.get(table + 16 * i + 12, 2)),
            static_cast<std::uint16_t>(words.get(table + 16 * i + 14, 2))};
  }

  bool started = false;
};

template <std::endian E>
constexpr void writes_tables(auto check, const feature_set& features,
                             std::initializer_list<std::uint16_t> places) {
  for (const std::uint16_t first : places)
    for (std::uint32_t count = 1; count <= 4; ++count)
      for (std::uint32_t readable = 0; readable <= count; ++readable) {
        driver_bench<E> b(features, tables, first);
        check(b.started && b.add(readable, count - readable, 2) == error::none);
        check(b.device.take().descriptors == 0);
        b.queue.publish();
        const auto taken = b.device.take();
        const descriptor d = b.device.at(taken.start.entry);
        const bool is_indirect = count >= 2 && count <= entries;
        check(((d.flags & flag_indirect) != 0) == is_indirect);
        check(taken.descriptors == (is_indirect ? 1 : count));
        check(b.queue.free_descriptors() == size - taken.descriptors && b.queue.in_flight() == 1);
        std::size_t touched = 0; // words
        for (std::size_t i = spare - base; i < ram_bytes; i += 8)
          touched += b.ram.bytes()[i] != std::byte{0xa5};
        if (!is_indirect) {
          check(touched == 0);
          continue;
        }
        // Not mixed with direct ones: neither NEXT nor WRITE beside INDIRECT.
        check(d.flags == (flag_indirect | (taken.start.wrap ? 0x80u : 0x8000u)));
        check(d.length == 16 * count && d.address == spare + 16 * entries * d.id);
        for (std::uint32_t i = 0; i < count; ++i) {
          const descriptor inner = b.entry(d.address, i);
          check(inner.address == 0x1122'3344'0000'0200u + i && inner.length == 0x0102'0300 + i);
          check(inner.flags == (i < readable ? 0 : flag_write)); // no flag but WRITE in a table
          check(inner.id == 0);
        }
        check(touched == 2 * count);
      }
}
constexpr auto writes = [](auto check) { writes_tables<little>(check, indirect, {0}); };
BOTH("PK-9 PK-10 the driver writes tables from 2 buffers to `entries`, one descriptor each", writes)
constexpr auto writes_in_order = [](auto check) {
  writes_tables<little>(check, indirect_in_order, {6});
};
BOTH("PK-9 PK-10 the driver's tables in order, at the end of the ring", writes_in_order)
constexpr auto writes_big = [](auto check) { writes_tables<big>(check, indirect, {13}); };
BOTH("PK-9 PK-10 the driver's tables in a big-endian ring", writes_big)

constexpr auto only_negotiated = [](auto check) {
  for (const feature_set& features :
       {no_features, feature_set{ballast::feature::event_idx, ballast::feature::in_order}}) {
    driver_bench<> b(features);
    check(b.started && b.add(2, 1) == error::none && b.queue.free_descriptors() == size - 3);
    b.queue.publish();
    check((b.device.at(0).flags & flag_indirect) == 0);
  }
  driver_bench<> none(indirect, {});
  check(none.started && none.add(2, 1) == error::none);
  check(none.queue.free_descriptors() == size - 3);
};
BOTH("PK-9 the driver uses tables only where INDIRECT_DESC was negotiated and it has some",
     only_negotiated)

constexpr auto fills = [](auto check) {
  for (const feature_set& features : {indirect, indirect_in_order})
    for (std::uint16_t first = 0; first < 2 * size; ++first) {
      driver_bench<> b(features, tables, first);
      for (std::uint64_t token = 0; token < size; ++token) check(b.add(2, 1, token) == error::none);
      check(b.queue.free_descriptors() == 0 && b.queue.in_flight() == size);
      check(b.add(2, 1) == error::queue_full && b.add(1, 0) == error::queue_full);
      b.queue.publish();
      // As many tables that do not overlap, each with its own chain.
      std::uint32_t seen = 0;
      std::array<scripted_packed_device::taken, size> taken{};
      for (std::uint32_t n = 0; n < size; ++n) {
        taken[n] = b.device.take();
        const descriptor d = b.device.at(taken[n].start.entry);
        check(taken[n].descriptors == 1 && d.address >= spare && (d.address - spare) % 48 == 0);
        check(d.address < spare + size * 48);
        seen |= 1u << (d.address - spare) / 48;
        for (std::uint32_t i = 0; i < 3; ++i)
          check(b.entry(d.address, i).address == 0x1122'3344'0000'0000u + 0x100 * n + i);
      }
      check(seen == (1u << size) - 1);
      const bool is_in_order = features.test(ballast::feature::in_order);
      std::uint32_t expected = 0;
      for (std::uint32_t n : {5u, 0u, 3u, 1u, 2u, 6u, 4u}) {
        if (is_in_order) n = expected++;
        b.device.give_back(taken[n], 9);
        const auto used = b.queue.pop_used();
        check(used && used->token == n && used->length == 9);
      }
      check(b.queue.free_descriptors() == size);
      check(b.add(size, 0) == error::none && b.queue.free_descriptors() == 0); // direct, all
    }
};
BOTH("RT-8 the driver has one table for each buffer id, and all come back", fills)

constexpr auto room = [](auto check) {
  driver_bench<> b;
  check(b.add(4, 0) == error::none); // direct: longer than a table
  check(b.queue.free_descriptors() == 3);
  check(b.add(4, 0) == error::queue_full && b.add(2, 1) == error::none);
  check(b.add(1, 2) == error::none && b.queue.free_descriptors() == 1);
  check(b.add(2, 0) == error::none && b.queue.free_descriptors() == 0);
  check(b.add(2, 0) == error::queue_full);
  check(b.add(0, 0) == error::empty_chain);
  check(b.add(8, 0) == error::chain_too_long);
  b.queue.publish(); // direct and indirect chains side by side, in one batch
  for (const std::uint32_t descriptors : {4u, 1u, 1u, 1u})
    check(b.device.take().descriptors == descriptors);
  // A table that is longer than the queue makes no longer chains.
  ram_type ram(base);
  std::array<ballast::driver_slot, 2> slots{};
  ballast::packed_driver<ram_type> two(slots);
  check(two.start(ram, {2, base + 0x30, base + 0x0c, base + 0x14}, indirect, 0, {spare, 16})
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
  check(heavy.queue.free_descriptors() == size && heavy.queue.in_flight() == 0);
};
BOTH("PK-9 RT-10 RT-4 the driver's free count, and chains that do not fit with tables", room)

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
  constexpr std::uint32_t bytes = 16 * size * 3;
  check(start(tables, indirect) == error::wrong_state);
  check(start({base + ram_bytes - bytes, 3}, indirect) == error::wrong_state);
  for (const std::uint64_t off : {1u, 2u, 4u, 8u})
    check(start({spare + off, 3}, indirect) == error::misaligned);
  for (const guest_address at : {std::uint64_t{0}, base - 16, base + ram_bytes - bytes + 16,
                                 base + ram_bytes, 0 - std::uint64_t{bytes}, 0 - std::uint64_t{16}})
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
    std::array<ballast::driver_slot, size> slots{};
    ballast::packed_driver<ballast::mapped_memory> queue(slots);
    const auto done = queue.start(*ram, layout, indirect, 0, {base + 0x10000, 4});
    CHECK(done.error() == (is_writable ? error::none : error::access_not_allowed));
    CHECK(queue.is_attached() == is_writable);
  }
}

constexpr auto attaches = [](auto check) {
  driver_bench<> b(indirect, tables, 5);
  check(b.add(1, 1, 7) == error::none);
  b.queue.publish();
  b.queue.detach();
  check(b.queue.attach(b.ram, layout, indirect, tables).has_value());
  check(b.queue.free_descriptors() == size - 1 && b.queue.in_flight() == 1);
  check(b.add(1, 2, 8) == error::none);
  b.queue.publish();
  std::array<scripted_packed_device::taken, 3> taken{};
  for (std::uint32_t n = 0; n < 2; ++n) {
    taken[n] = b.device.take();
    const descriptor d = b.device.at(taken[n].start.entry);
    check((d.flags & 7) == flag_indirect && d.length == 32 + 16 * n);
    check(b.entry(d.address, 0).address == 0x1122'3344'0000'0700u + 0x100 * n);
  }
  // Attached without tables it goes on with direct ones, and the others still come back.
  b.queue.detach();
  check(b.queue.attach(b.ram, layout, indirect).has_value());
  check(b.add(1, 2, 9) == error::none && b.queue.free_descriptors() == size - 5);
  b.queue.publish();
  taken[2] = b.device.take();
  check(taken[2].descriptors == 3);
  for (const std::uint32_t n : {1u, 2u, 0u}) {
    b.device.give_back(taken[n], 0);
    check(b.queue.pop_used()->token == 7 + n);
  }
  check(b.queue.free_descriptors() == size);
};
BOTH("the driver attaches with its tables, and without", attaches)

constexpr auto reads_nothing_back = [](auto check) {
  // A device that overwrites the tables and the ring while it has them.
  driver_bench<> b;
  check(b.add(1, 2, 5) == error::none && b.add(3, 2, 6) == error::none);
  b.queue.publish();
  const auto first = b.device.take(), second = b.device.take();
  for (std::size_t i = spare - base; i < ram_bytes; ++i) b.ram.bytes()[i] = std::byte{0xff};
  for (std::uint32_t i = 0; i < size; ++i) b.device.put(i, {~0ull, 0xffff'ffff, 0xffff, 0x7f7f});
  b.device.give_back(first, 0xffff'ffff);
  b.device.give_back(second, 1);
  const auto used = b.queue.pop_used();
  check(used && used->token == 5 && used->length == 0x0102'0301 + 0x0102'0302);
  check(b.queue.pop_used()->token == 6 && b.queue.free_descriptors() == size);
  check(b.add(7, 0) == error::none);
};
BOTH("RT-15 the driver never reads a table back", reads_nothing_back)

constexpr auto before_release = [](auto check) {
  // Tables are written before the release store of the flags that publish them, in plain words.
  using ballast::order;
  using ballast_test::event_kind;
  using memory_type = ballast_test::recording_memory<ram_type, 64>;
  ram_type ram(base);
  ballast_test::event_log<64> log;
  memory_type memory(ram, log);
  std::array<ballast::driver_slot, size> slots{};
  ballast::packed_driver<memory_type> queue(slots);
  check(queue.start(memory, layout, indirect, 0, tables).has_value());
  log.clear();
  const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
  check(queue.add(b, {}, 1).has_value());
  check(log.size() == 5); // two entries and the address of one descriptor
  for (std::size_t i = 0; i < log.size(); ++i)
    check(log[i].kind == event_kind::store && log[i].order == order::plain);
  queue.publish();
  check(log.size() == 6 && log[5].order == order::release);
};
BOTH("PK-11 RT-18 the driver's tables are written before the flags that publish them",
     before_release)

constexpr auto loses = [](auto check) {
  using memory_type = ballast_test::failing_memory<ram_type>;
  for (std::uint64_t n = 1;; ++n) {
    ram_type ram(base);
    scripted_packed_device device({ram.bytes(), base, little}, layout);
    ballast_test::failure_plan plan{.lose_at = n, .garbage = ~0ull};
    memory_type memory(ram, plan);
    std::array<ballast::driver_slot, size> slots{};
    ballast::packed_driver<memory_type> queue(slots);
    const auto started = queue.start(memory, layout, indirect, 0, tables);
    check(started.has_value() || started.error() == error::memory_lost);
    const buffer b[] = {{0x1000, 1}, {0x2000, 2}};
    const auto added = queue.add(b, {}, 1);
    queue.publish();
    const auto taken = device.take();
    if (taken.descriptors != 0) device.give_back(taken, 0);
    const auto used = queue.pop_used();
    if (used)
      check(added.has_value() && used->token == 1);
    else
      check(used.error() == (started ? error::memory_lost : error::not_attached));
    check(queue.cause() == error::none);
    if (!plan.is_lost) break;
  }
};
BOTH("RT-14 the driver's memory is lost at every access of a chain with a table", loses)

constexpr auto saves = [](auto check) {
  driver_bench<> b(indirect, tables, 6);
  check(b.add(1, 1, 7) == error::none && b.add(4, 0, 8) == error::none);
  b.queue.publish();
  const auto seven = b.device.take(), eight = b.device.take();
  b.device.give_back(eight, 0);
  check(b.queue.pop_used()->token == 8);
  std::array<ballast::driver_slot, size> saved{}, slots{};
  const auto state = b.queue.save(saved);
  check(state.has_value());
  ballast::packed_driver<ram_type> fresh(slots);
  check(fresh.restore(b.ram, layout, indirect, *state, saved, {spare + 8, entries}).error() ==
        error::misaligned);
  check(fresh.restore(b.ram, layout, indirect, *state, saved, tables).has_value());
  // The table of the chain that is out is not given to another.
  const auto before = b.device.at(seven.start.entry).address;
  const buffer two[] = {{1, 1}, {2, 2}};
  for (std::uint32_t n = 0; n < size - 1; ++n) check(fresh.add(two, {}, n).has_value());
  check(fresh.add(two, {}, 9).error() == error::queue_full);
  fresh.publish();
  check(b.entry(before, 0).address == 0x1122'3344'0000'0700u);
  for (std::uint32_t n = 0; n < size - 1; ++n)
    check(b.device.at(b.device.take().start.entry).address != before);
  b.device.give_back(seven, 3);
  const auto used = fresh.pop_used();
  check(used && used->token == 7 && used->length == 3);
};
BOTH("RT-6 a driver with tables is saved and taken up", saves)

// ---- both together

template <std::uint32_t N> using life_ram = ballast::array_memory<64 * N + 128 + N * 4 * 16>;

template <std::uint32_t N, std::endian E = little>
constexpr void lives(auto check, std::uint32_t steps, const feature_set& features,
                     std::uint32_t table_entries, std::uint64_t seed) {
  life_ram<N> ram(base);
  const auto at = ballast::packed::place(base, N);
  const ballast_test::life_plan plan{.features = features,
                                     .layout = at.layout,
                                     .tables = {(at.end + 15) & ~std::uint64_t{15}, table_entries},
                                     .first_index = static_cast<std::uint16_t>(2 * N - 2 + seed),
                                     .seed = seed};
  ballast_test::queue_life<N, E, life_ram<N>, life_ram<N>, ballast_test::packed_format> life(
      ram, ram, plan);
  for (std::uint32_t i = 0; i < steps; ++i) life.step();
  life.finish();
  check(life.wrong() == 0);
  check(life.returned() > steps / 100);
}

constexpr auto short_lives = [](auto check) {
  const feature_set with_events{ballast::feature::indirect_desc, ballast::feature::event_idx};
  lives<3>(check, 60, indirect, 3, 1);
  lives<5>(check, 60, with_events, 2, 2);
  lives<5>(check, 60, indirect_in_order, 4, 3);
  lives<3, big>(check, 60, indirect, 3, 4);
  lives<2>(check, 60, indirect, 4, 5);
};
BOTH("PK-10 a whole exchange with chains and tables, both sides, in a constant expression",
     short_lives)

TEST_CASE(
    "RT-8 RT-19 long random lives of driver and device with tables, as a naive model has them") {
  const ballast_test::run_time_check check;
  for (const feature_set& features : {indirect, indirect_in_order})
    for (std::uint64_t seed = 1; seed < 12; ++seed)
      for (std::uint32_t table_entries = 0; table_entries <= 4; ++table_entries) {
        lives<1>(check, 500, features, table_entries, seed);
        lives<2>(check, 500, features, table_entries, seed);
        lives<7>(check, 2000, features, table_entries, seed);
        lives<7, big>(check, 2000, features, table_entries, seed);
        lives<100>(check, 3000, features, table_entries, seed);
      }
}

} // namespace
