// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/packed_rings.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

namespace {

using namespace ballast;

constexpr auto bounds = [](auto check) {
  array_memory<4096> ram(0x1000);
  const queue_layout good = packed::place(0x1000, 7).layout;
  const auto refuses = [&](queue_layout l, std::size_t storage = 7) {
    return map_packed_rings(ram, l, queue_side::driver, storage).error();
  };
  check(refuses(good) == error::none && refuses(good, 8) == error::none);
  check(refuses(good, 6) == error::storage_too_small);
  check(refuses(good, 0) == error::storage_too_small);
  for (std::uint32_t size : {0u, 32769u, 0xffff'ffffu}) {
    queue_layout bad = good;
    bad.size = size;
    check(refuses(bad, 100'000) == error::invalid_queue_size);
  }
  queue_layout bad = good;
  bad.descriptor_area += 8;
  check(refuses(bad) == error::misaligned);
  bad.descriptor_area = 0x2000 - 16 * 7; // ends with memory's last byte
  check(refuses(bad) == error::none);
  bad.descriptor_area += 16;
  check(refuses(bad) == error::not_guest_memory);
  for (int part = 0; part < 2; ++part)
    for (std::uint64_t address :
         {0x0ffcull, 0x1000ull, 0x1001ull, 0x1002ull, 0x1ffcull, 0x1ffeull, 0x2000ull, ~3ull}) {
      bad = good;
      (part == 0 ? bad.driver_area : bad.device_area) = address;
      const error expected = address < 0x1000 || address > 0x1ffc ? error::not_guest_memory
                             : address % 4 != 0                   ? error::misaligned
                                                                  : error::none;
      check(refuses(bad) == expected);
    }
};
BOTH("RT-5 RT-20 PK-3 packed rings are mapped by driver and device only where they fit whole and "
     "aligned",
     bounds)

TEST_CASE("PK-3 driver and device need to write the packed ring and their own event structure") {
  alignas(16) static std::byte rings[4096], drivers[4096], devices[4096];
  for (unsigned writable = 0; writable < 8; ++writable) {
    const memory_region regions[] = {{0x1000, rings, 4096, (writable & 1) != 0},
                                     {0x4000, drivers, 4096, (writable & 2) != 0},
                                     {0x8000, devices, 4096, (writable & 4) != 0}};
    auto ram = *mapped_memory::over(regions);
    const queue_layout l{100, 0x1000, 0x4000, 0x8000};
    CHECK(map_packed_rings(ram, l, queue_side::driver, 100).error() ==
          ((writable & 3) == 3 ? error::none : error::access_not_allowed));
    CHECK(map_packed_rings(ram, l, queue_side::device, 100).error() ==
          ((writable & 5) == 5 ? error::none : error::access_not_allowed));
  }
}

constexpr auto windows = [](auto check) {
  array_memory<256> ram(0x1000);
  for (std::size_t i = 0; i < 256; ++i) ram.bytes()[i] = static_cast<std::byte>(i);
  const auto rings = map_packed_rings(ram, {3, 0x1010, 0x1084, 0x1048}, queue_side::device, 3);
  check(rings.has_value());
  check(rings->table.load<std::uint16_t>(0, order::plain) ==
        to_order<std::endian::little, std::uint16_t>(0x1110));
  check(rings->driver_event.load<std::uint16_t>(0, order::relaxed) ==
        to_order<std::endian::little, std::uint16_t>(0x8584));
  check(rings->device_event.load<std::uint16_t>(0, order::relaxed) ==
        to_order<std::endian::little, std::uint16_t>(0x4948));
};
BOTH("each packed window lies over its own part", windows)

// ---- places, against steps counted one by one

/// A naive place: an entry and a wrap counter, moved by one.
struct naive_place {
  std::uint32_t entry = 0;
  bool wrap = true;

  constexpr void step(std::uint32_t size) {
    if (++entry != size) return;
    entry = 0;
    wrap = !wrap;
  }
  [[nodiscard]] constexpr std::uint16_t word() const {
    return static_cast<std::uint16_t>(entry + (wrap ? 0x8000u : 0u));
  }
};

constexpr auto places = [](auto check) {
  for (std::uint32_t size : {1u, 2u, 3u, 5u}) {
    naive_place at;
    for (std::uint32_t steps = 0; steps <= 5 * size; ++steps, at.step(size)) {
      const auto place = ring_place::behind(steps, size);
      check(place.index == at.entry && place.word() == at.word());
      check(place.used_flags == (at.wrap ? 0x8080'0000 : 0));
      check(place.available_flags() == (at.wrap ? 0x0080'0000 : 0x8000'0000));
      for (std::uint32_t pair : {0x7f7f'ffffu, 0xffff'0000u, 0x0080'1234u, 0x8000'ffffu}) {
        const bool available = (pair & 0x0080'0000) != 0, used = (pair & 0x8000'0000) != 0;
        check(place.is_available(pair) == (available == at.wrap && used != at.wrap));
        check(place.is_used(pair) == (available == at.wrap && used == at.wrap));
      }
      check(ring_place::of(at.word()) == place);
      naive_place to = at;
      for (std::uint32_t n = 0; n <= size; ++n, to.step(size)) {
        auto there = place;
        there.advance(n, size);
        check(there.word() == to.word() && there == ring_place::of(to.word()));
        check(entries_between(place, there, size) == n);
        there.retreat(n, size);
        check(there == place);
      }
    }
  }
};
BOTH("RT-19 PK-2 places of driver and device go on and back over the packed ring's end, as counted "
     "one by one",
     places)

constexpr auto first_place = [](auto check) {
  const ring_place start = ring_place::behind(0, 7);
  check(start.index == 0 && start.used_flags == 0x8080'0000 && start.word() == 0x8000);
  check(ring_place::behind(0xffff, 32768).word() == 0x7fff);
  check(ring_place::behind(0x8000, 32768).word() == 0);
  check(ring_place::behind(0x7fff, 32768).word() == 0xffff);
  check(ring_place::of(0xffff).index == 0x7fff && ring_place::of(0x7fff).used_flags == 0);
};
BOTH("PK-2 both wrap counters start at 1, and a place takes 15 bits", first_place)

TEST_CASE("RT-19 packed places of driver and device, larger rings") {
  for (std::uint32_t size : {7u, 100u, 32767u, 32768u}) {
    std::uint32_t wrong = 0;
    naive_place at;
    ring_place walked = ring_place::behind(0, size), big_steps = walked;
    std::uint32_t steps = 0;
    for (std::uint32_t round = 0; round < 3 * size; ++round) {
      wrong += ring_place::behind(steps, size).word() != at.word() || walked.word() != at.word();
      at.step(size);
      walked.advance(1, size);
      ++steps;
      const std::uint32_t n = round * 7919u % (size + 1);
      auto to = big_steps;
      to.advance(n, size);
      wrong += entries_between(big_steps, to, size) != n;
      auto back = to;
      back.retreat(n, size);
      wrong += back != big_steps;
      big_steps = to;
    }
    CHECK(wrong == 0);
  }
}

// ---- is_event_due

/// What it is short for: whether one of the last `steps` places before `now` is the one asked for.
constexpr bool passes(std::uint16_t event, std::uint32_t now_steps, std::uint32_t steps,
                      std::uint32_t size) {
  for (std::uint32_t s = now_steps - steps; s != now_steps; ++s)
    if (ring_place::behind(s, size).word() == event) return true;
  return false;
}

template <std::endian E> constexpr std::uint32_t wrong_events(std::uint32_t size) {
  std::uint32_t wrong = 0;
  for (std::uint32_t from = 0; from < 2 * size; ++from)
    for (std::uint32_t steps = 1; steps <= 3 * size + 2; ++steps)
      for (std::uint32_t event = 0; event < 2 * size; ++event) {
        const std::uint32_t now = from + steps;
        const std::uint16_t word = ring_place::behind(event, size).word();
        const bool is_due = is_event_due<E>(packed::pack_event<E>({word, 2}), true,
                                            ring_place::behind(now, size), steps, size);
        // Behind more than a round, whoever waits for a place waits for one of the last round.
        if (steps <= size)
          wrong += is_due != passes(word, now, steps, size);
        else if (passes(word, now, size, size))
          wrong += !is_due;
        else if (word == ring_place::behind(now, size).word())
          wrong += is_due;
      }
  return wrong;
}
constexpr auto events = [](auto check) {
  for (std::uint32_t size = 1; size <= 4; ++size)
    check(wrong_events<std::endian::little>(size) == 0);
  check(wrong_events<std::endian::big>(3) == 0);
};
BOTH("RT-25 PK-16 a descriptor event of driver or device is due where the packed ring's place "
     "passed it: every place, wrap and step count",
     events)

TEST_CASE("RT-25 PK-16 the same for driver and device of larger packed rings") {
  for (std::uint32_t size = 5; size <= 33; ++size) {
    CHECK(wrong_events<std::endian::little>(size) == 0);
    CHECK(wrong_events<std::endian::big>(size) == 0);
  }
  for (std::uint32_t size : {100u, 32767u, 32768u}) {
    std::uint32_t wrong = 0;
    for (std::uint32_t from : {0u, 1u, size - 1, size, size + 1, 2 * size - 1})
      for (std::uint32_t steps : {1u, 2u, size / 2, size - 1, size})
        for (std::uint32_t event = from; event < from + 2 * size; ++event) {
          const std::uint32_t now = from + steps;
          const std::uint16_t word = ring_place::behind(event, size).word();
          const bool is_due =
              is_event_due<std::endian::little>(packed::pack_event<std::endian::little>({word, 2}),
                                                true, ring_place::behind(now, size), steps, size);
          wrong += is_due != (event < now);
        }
    CHECK(wrong == 0);
  }
}

constexpr auto event_flags = [](auto check) {
  constexpr auto E = std::endian::little;
  for (std::uint32_t place : {0u, 1u, 5u, 6u, 7u, 0x7fffu, 0x8000u, 0x8004u, 0x8005u, 0xffffu}) {
    const auto due = [&](std::uint16_t flags, bool has_event_index, std::uint32_t steps) {
      return is_event_due<E>(packed::pack_event<E>({static_cast<std::uint16_t>(place), flags}),
                             has_event_index, ring_place::behind(5, 7), steps, 7);
    };
    for (bool has_event_index : {false, true}) {
      check(due(0, has_event_index, 1));
      check(!due(1, has_event_index, 1) && !due(1, has_event_index, 70000));
      for (std::uint16_t reserved : {std::uint16_t{3}, std::uint16_t{4}, std::uint16_t{6},
                                     std::uint16_t{0x8002}, std::uint16_t{0xffff}})
        check(due(reserved, has_event_index, 1)); // better once too often
    }
    check(due(2, false, 1)); // not negotiated, so reserved
  }
};
BOTH("PK-16 flags: enable, disable, descriptor with EVENT_IDX only, and reserved ones tell",
     event_flags)

} // namespace
