// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/retry_timer.hpp>

#include "support/check.hpp"

#include <cstdint>
#include <initializer_list>

namespace {

using ballast::balloon::retry_delays;
using ballast::balloon::retry_timer;

constexpr auto doubles = [](auto check) {
  const retry_delays delays{.first = 200, .longest = 1000};
  retry_timer t;
  check(t.is_due(0) && !t.is_waiting());
  std::uint64_t now = 5000;
  for (const std::uint64_t delay : {200u, 400u, 800u, 1000u, 1000u}) {
    t.failed(now, delays);
    check(t.is_waiting() && t.next() == now + delay);
    check(!t.is_due(now) && !t.is_due(now + delay - 1));
    now += delay;
    check(t.is_due(now) && t.is_due(now + 1));
  }
  t.reset();
  check(t.is_due(0) && !t.is_waiting());
  t.failed(now, delays);
  check(t.next() == now + 200); // from the beginning
};
BOTH("a retry waits twice as long each time, up to the longest delay", doubles)

constexpr auto none = [](auto check) {
  retry_timer t;
  t.failed(7, {});
  check(t.is_due(7) && !t.is_waiting());
};
BOTH("without delays every attempt is due", none)

constexpr auto edges = [](auto check) {
  retry_timer steady;
  for (const std::uint64_t at : {0u, 50u, 100u}) {
    steady.failed(at, {.first = 50});
    check(steady.next() == at + 50);
  }
  // Ticks that wrap, and delays that would.
  retry_timer late;
  late.failed(UINT64_MAX - 1, {.first = 10, .longest = 10});
  check(!late.is_due(UINT64_MAX) && !late.is_due(7) && late.is_due(8));
  retry_timer huge;
  for (int i = 0; i < 3; ++i) huge.failed(0, {.first = 1ull << 62, .longest = 1ull << 62});
  check(huge.next() == 1ull << 62);
};
BOTH("a first delay alone does not grow, and ticks may wrap", edges)

} // namespace
