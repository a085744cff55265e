// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/shared_value.hpp>

#include <support/check.hpp>

#include <cstdint>
#include <thread>

namespace {

using ballast::shared_value;

static_assert(sizeof(shared_value<std::uint8_t>) == 1 && sizeof(shared_value<std::uint64_t>) == 8);

template <class T> constexpr void every_member(auto check) {
  constexpr T top = static_cast<T>(T{1} << (8 * sizeof(T) - 1));
  shared_value<T> value;
  check(value.load() == 0);
  value.store(static_cast<T>(top | 5));
  check(value.load() == static_cast<T>(top | 5));
  check(value.fetch_or(2) == static_cast<T>(top | 5) && value.load() == static_cast<T>(top | 7));
  check(value.exchange(9) == static_cast<T>(top | 7) && value.load() == 9);
  check(value.fetch_add(3) == 9 && value.load() == 12);
  value.store(static_cast<T>(~T{0}));
  check(value.fetch_add(2) == static_cast<T>(~T{0}) && value.load() == 1); // wraps
  value.store(0x5a);
  value.merge(0x3c, 0x0f);
  check(value.load() == 0x5c);
  value.merge(static_cast<T>(~T{0}), 0);
  check(value.load() == 0x5c);
  value.merge(top, static_cast<T>(~T{0}));
  check(value.load() == top);
  const shared_value<T> given(42);
  check(given.load() == 42);
}

constexpr auto members = [](auto check) {
  every_member<std::uint8_t>(check);
  every_member<std::uint16_t>(check);
  every_member<std::uint32_t>(check);
  every_member<std::uint64_t>(check);
};
BOTH("every member does what it says, at every width", members)

template <class F> void in_two_threads(F work) {
  std::thread a(work, 0u);
  std::thread b(work, 1u);
  a.join();
  b.join();
}

constexpr std::uint32_t rounds = 20'000;

TEST_CASE("additions of two threads are all counted") {
  shared_value<std::uint32_t> value;
  in_two_threads([&value](unsigned) {
    for (std::uint32_t i = 0; i < rounds; ++i) value.fetch_add(1);
  });
  CHECK(value.load() == 2 * rounds);
}

TEST_CASE("merges of two threads into different bytes lose nothing") {
  shared_value<std::uint32_t> value;
  bool is_lost[2]{};
  in_two_threads([&](unsigned thread) {
    const unsigned shift = 16 * thread;
    for (std::uint32_t i = 0; i < rounds; ++i) {
      value.merge(i << shift, 0xffffu << shift);
      is_lost[thread] |= (value.load() >> shift & 0xffff) != (i & 0xffff);
    }
  });
  CHECK(!is_lost[0]);
  CHECK(!is_lost[1]);
}

TEST_CASE("a bit is handed over to exactly one of two threads that exchange") {
  shared_value<std::uint32_t> value;
  std::uint32_t taken[2]{};
  std::uint32_t set[2]{};
  in_two_threads([&](unsigned thread) {
    for (std::uint32_t i = 0; i < rounds; ++i) {
      set[thread] += (value.fetch_or(1) & 1) == 0;
      taken[thread] += value.exchange(0) & 1;
    }
  });
  CHECK(set[0] + set[1] == taken[0] + taken[1] + value.load());
}

TEST_CASE("what was written before a release is seen after the acquire") {
  shared_value<std::uint32_t> ready;
  std::uint32_t data = 0; // plain: a missing order is a race that thread sanitizers report
  std::uint32_t seen = 0;
  std::thread reader([&] {
    while (ready.load() == 0) std::this_thread::yield();
    seen = data;
  });
  data = 7;
  ready.store(1);
  reader.join();
  CHECK(seen == 7);
}

} // namespace
