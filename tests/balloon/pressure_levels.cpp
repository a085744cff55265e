// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/pressure_levels.hpp>

#include <support/check.hpp>

#include <cstdint>

using namespace ballast::balloon;
using tag = statistic_tag;

namespace {

constexpr std::uint64_t kib = 1024, mib = 1024 * kib, gib = 1024 * mib;
constexpr std::uint64_t second = 1'000'000'000;
constexpr std::uint64_t maximum = UINT64_MAX;

constexpr change moved(std::uint64_t amount, std::uint64_t nanoseconds = second) {
  return {change::outcome::known, amount, per_second(amount, nanoseconds)};
}

struct pair {
  snapshot before, after;
  constexpr void set(tag t, std::uint64_t from, std::uint64_t to) {
    before.set(t, from);
    after.set(t, to);
  }
  constexpr levels find(std::uint64_t elapsed, const thresholds& t = {},
                        const levels& previous = {}) const {
    return find_levels(before, after, counter_changes(before, after, elapsed), t, previous);
  }
};

constexpr auto rates = [](auto check) {
  check(per_second(40, 2 * second) == 20);
  check(per_second(1, 2 * second) == 0);
  check(per_second(0, second) == 0);
  check(per_second(3, second / 2) == 6);
  check(per_second(40 * mib, 2 * second) == 20 * mib);
  // The largest values neither wrap nor trap.
  check(per_second(maximum, second) == maximum);
  check(per_second(maximum, second / 5) == maximum);
  check(per_second(maximum, 2 * second) == maximum / 2);
  check(per_second(maximum, 0) == maximum);
  check(per_second(7, 0) == 7'000'000); // a window of nothing counts as one microsecond
  check(per_second(maximum, maximum) == maximum / (maximum / second));
};
BOTH("a rate is per second, rounded down, and saturates", rates)

constexpr auto shares = [](auto check) {
  check(share(4 * gib, 10) == 4'294'967); // 0.1 % of 4 GiB
  check(share(9'999, 1) == 0);
  check(share(10'000, 1) == 1);
  check(share(maximum, 10'000) == maximum);
  check(share(maximum, 20'000) == maximum);
  check(share(maximum, UINT32_MAX) == maximum);
  check(share(maximum, 0) == 0);
  check(saturating_add(maximum, 1) == maximum);
  check(saturating_add(1, 2) == 3);
};
BOTH("a share is in parts of 10 000 and saturates", shares)

constexpr auto counters = [](auto check) {
  constexpr auto events = statistic_unit::events;
  constexpr auto bytes = statistic_unit::bytes;
  constexpr auto known = [](std::uint64_t n) { return change{change::outcome::known, n, 0}; };
  constexpr change reset{change::outcome::reset, 0, 0};
  check(counter_change(events, 5, 5) == known(0));
  check(counter_change(events, 5, 7) == known(2));
  check(counter_change(events, 0, maximum - 1) == known(maximum - 1));
  check(counter_change(events, maximum, 7) == change{});
  check(counter_change(events, 7, maximum) == change{});

  // No epoch changed, and yet the counter went back.
  check(counter_change(events, 41, 12) == reset);

  // A 32-bit guest wraps events at 2^32.
  const std::uint64_t e = std::uint64_t{1} << 32;
  check(counter_change(events, e - 3, 4) == known(7));
  check(counter_change(events, e - 1, 0) == known(1));
  check(counter_change(events, e - 1, e / 16 - 2) == known(e / 16 - 1));
  check(counter_change(events, e - 1, e / 16 - 1) == reset); // a sixteenth: too far to believe
  check(counter_change(events, e, 4) == reset);              // was never below 2^32
  check(counter_change(events, 16 * e - 3, 4) == reset);     // wraps as bytes, but is no bytes

  // And bytes at 2^32 pages of 4 KiB, or of 64 KiB.
  const std::uint64_t small = std::uint64_t{1} << 44, large = std::uint64_t{1} << 48;
  check(counter_change(bytes, small - 4096, 8192) == known(12288));
  check(counter_change(bytes, large - 65536, 65536) == known(131072));
  check(counter_change(bytes, small, 8192) == reset);
  check(counter_change(bytes, large, 65536) == reset);
  check(counter_change(bytes, e - 3, 4) == reset);
};
BOTH("a counter that goes back was reset, or wrapped on a 32-bit guest", counters)

constexpr auto windows = [](auto check) {
  pair p;
  p.set(tag::alloc_stalls, 10, 50);
  p.set(tag::direct_scans, 0, 40 * mib);
  p.set(tag::available_memory, 5, 9);
  p.before.set(tag::swap_in, 7);
  p.after.set(tag::swap_out, 7);
  const counter_changes c(p.before, p.after, 2 * second);
  check(c[tag::alloc_stalls] == change{change::outcome::known, 40, 20});
  check(c[tag::direct_scans] == change{change::outcome::known, 40 * mib, 20 * mib});
  check(!c[tag::available_memory].is_known()); // a gauge has no rate
  check(!c[tag::swap_in].is_known());          // only before
  check(!c[tag::swap_out].is_known());         // only after
  check(!c[tag::count].is_known());
  check(!c[static_cast<tag>(65535)].is_known());
  check(!c.has_reset());

  p.set(tag::oom_kills, 2, 1);
  const counter_changes r(p.before, p.after, 2 * second);
  check(r.has_reset());
  check(r[tag::oom_kills].state == change::outcome::reset);
  check(r[tag::alloc_stalls].is_known()); // the others still say at least so much
};
BOTH("changes are of counters that both snapshots have", windows)

constexpr auto capacities = [](auto check) {
  snapshot s;
  s.actual_pages = 262'144; // 1 GiB
  check(capacity(s, {}) == 0);
  check(capacity(s, {.host_memory = 4 * gib}) == 4 * gib);
  s.set(tag::total_memory, 3 * gib);
  check(capacity(s, {.host_memory = 8 * gib}) == 4 * gib); // the guest's word, and the balloon
  s.deflate_on_oom = true;
  check(capacity(s, {}) == 3 * gib); // then Linux leaves the balloon in the total
  s.set(tag::total_memory, 0);
  check(capacity(s, {.host_memory = 4 * gib}) == 4 * gib);
  s.deflate_on_oom = false;
  s.set(tag::total_memory, maximum - 1);
  check(capacity(s, {}) == maximum);
};
BOTH("the capacity is the guest's total with an empty balloon", capacities)

constexpr auto efficiencies = [](auto check) {
  check(efficiency(moved(40 * mib), moved(4 * mib), {}) == quantity{true, 1000});
  check(efficiency(moved(40 * mib), moved(36 * mib), {}) == quantity{true, 9000});
  check(efficiency(moved(40 * mib), moved(0), {}) == quantity{true, 0});
  check(efficiency(moved(40 * mib), moved(41 * mib), {}) == quantity{true, 10'000});
  check(efficiency(moved(mib), moved(mib / 2), {}) == quantity{true, 5000});
  check(efficiency(moved(mib - 1), moved(mib / 2), {}) == quantity{});
  check(efficiency({}, moved(mib), {}) == quantity{});
  check(efficiency(moved(mib), {}, {}) == quantity{});
  check(efficiency(moved(0), moved(0), {.efficiency_scan_min = 0}) == quantity{});
  check(efficiency(moved(maximum), moved(maximum / 2), {}).value == 5000);
  check(efficiency(moved(maximum), moved(maximum), {}).value == 10'000);
};
BOTH("the efficiency is at most one, and not known where little was scanned", efficiencies)

constexpr auto rate_levels = [](auto check) {
  constexpr auto none = activity::none, low = activity::low, high = activity::high;
  constexpr auto unknown = activity::unknown;
  for (const activity previous : {none, low, high, unknown}) {
    const bool was_high = previous == high;
    check(rate_level({}, 0, 10, 5, previous) == unknown);
    check(rate_level({change::outcome::reset, 0, 0}, 0, 10, 5, previous) == unknown);
    check(rate_level(moved(0), 0, 10, 5, previous) == none);
    check(rate_level(moved(1), 0, 10, 5, previous) == low);
    check(rate_level(moved(4), 0, 10, 5, previous) == low);
    check(rate_level(moved(5), 0, 10, 5, previous) == (was_high ? high : low));
    check(rate_level(moved(9), 0, 10, 5, previous) == (was_high ? high : low));
    check(rate_level(moved(10), 0, 10, 5, previous) == high);
    check(rate_level(moved(2), 3, 10, 5, previous) == none);
    check(rate_level(moved(3), 3, 10, 5, previous) == low);
  }
  // One event in two seconds is no event per second, and still not none.
  check(rate_level(moved(1, 2 * second), 0, 10, 5, unknown) == low);
};
BOTH("a rate is high from the entry on, and stays high down to the exit", rate_levels)

constexpr auto reclaim_levels = [](auto check) {
  constexpr auto none = activity::none, low = activity::low, high = activity::high;
  constexpr auto unknown = activity::unknown;
  const auto of = [](std::uint64_t percent, activity previous) {
    return reclaim_level(moved(100 * mib), moved(percent * mib), activity::high, {}, previous);
  };
  for (const activity previous : {none, low, high, unknown}) {
    check(of(0, previous) == none);
    check(of(29, previous) == low);
    check(of(60, previous) == high);
    check(of(120, previous) == high);
  }
  for (const std::uint64_t between : {30u, 44u, 45u, 59u}) {
    check(of(between, low) == low);
    check(of(between, high) == high);
    check(of(between, unknown) == (between < 45 ? low : high));
    check(of(between, none) == (between < 45 ? low : high)); // nothing to hold either
  }
  // Too little scanned for a ratio: the level of the scan.
  for (const activity scan : {none, low, high, unknown}) {
    check(reclaim_level(moved(mib - 1), moved(1), scan, {}, low) == scan);
    check(reclaim_level(moved(mib - 1), moved(0), scan, {}, high) == none);
    check(reclaim_level(moved(mib), {}, scan, {}, high) == unknown);
  }
  check(reclaim_level({}, moved(9), unknown, {}, high) == unknown);
  check(reclaim_level({}, moved(0), unknown, {}, high) == none); // whatever was scanned
};
BOTH("a reclaim is high by its efficiency, which holds its level between the bounds",
     reclaim_levels)

constexpr auto bounds = [](auto check) {
  // 10 GiB: direct scans are high from 0.1 %, background ones from 0.5 % per second on.
  pair p;
  p.after.set(tag::total_memory, 10'000 * mib);
  const auto scans = [&p](tag t, std::uint64_t amount, const levels& previous = {}) {
    pair q = p;
    q.set(t, 0, amount);
    const levels l = q.find(second, {}, previous);
    return t == tag::direct_scans ? l.direct_scans : l.async_scans;
  };
  const levels high{.async_scans = activity::high, .direct_scans = activity::high};
  check(scans(tag::direct_scans, 0) == activity::none);
  check(scans(tag::direct_scans, 1) == activity::low);
  check(scans(tag::direct_scans, 10 * mib - 1) == activity::low);
  check(scans(tag::direct_scans, 10 * mib) == activity::high);
  check(scans(tag::direct_scans, 5 * mib, high) == activity::high);
  check(scans(tag::direct_scans, 5 * mib - 1, high) == activity::low);
  check(scans(tag::async_scans, mib - 1) == activity::none); // below 0.01 %
  check(scans(tag::async_scans, mib) == activity::low);
  check(scans(tag::async_scans, 50 * mib - 1) == activity::low);
  check(scans(tag::async_scans, 50 * mib) == activity::high);
  check(scans(tag::async_scans, 25 * mib, high) == activity::high);
  check(scans(tag::async_scans, 25 * mib - 1, high) == activity::low);

  // A small guest, and one whose size nobody knows: the absolute floors.
  for (const std::uint64_t total : {64 * mib, maximum}) {
    p.after.set(tag::total_memory, total);
    check(scans(tag::direct_scans, mib - 1) == activity::low);
    check(scans(tag::direct_scans, mib) == activity::high);
    check(scans(tag::async_scans, 4 * mib - 1) == activity::low);
    check(scans(tag::async_scans, 4 * mib) == activity::high);
  }
  check(scans(tag::async_scans, 1) == activity::low);

  p.set(tag::alloc_stalls, 0, 9);
  check(p.find(second).alloc_stalls == activity::low);
  check(p.find(second, {}, {.alloc_stalls = activity::high}).alloc_stalls == activity::high);
  check(p.find(second, {.stall_high = 9}).alloc_stalls == activity::high);
  check(p.find(second).oom_kills == answer::unknown);
  p.set(tag::oom_kills, 3, 3);
  check(p.find(second).oom_kills == answer::no);
  p.set(tag::oom_kills, 3, 4);
  check(p.find(second).oom_kills == answer::yes);
};
BOTH("bounds are shares of the capacity with absolute floors", bounds)

constexpr auto headroom = [](auto check) {
  pair p;
  p.after.set(tag::available_memory, 101 * mib);
  check(p.find(second).has_headroom == answer::unknown); // of how much
  p.after.set(tag::total_memory, 1000 * mib);
  check(p.find(second).has_headroom == answer::yes);
  p.after.set(tag::available_memory, 100 * mib); // it wants more than 10 %
  check(p.find(second).has_headroom == answer::no);
  p.after.set(tag::available_memory, not_reported);
  check(p.find(second).has_headroom == answer::unknown);
};
BOTH("headroom is more than a tenth available", headroom)

constexpr auto deflations = [](auto check) {
  const auto fell = [](std::uint32_t from, std::uint32_t to, std::uint32_t target_before,
                       std::uint32_t target, bool deflate_on_oom = true) {
    pair p;
    p.before.actual_pages = from;
    p.after.actual_pages = to;
    p.before.target_pages = target_before;
    p.after.target_pages = target;
    p.before.deflate_on_oom = p.after.deflate_on_oom = deflate_on_oom;
    return p.find(second).deflated_unasked;
  };
  check(fell(1000, 744, 1000, 1000) == answer::yes);
  check(fell(1000, 744, 1000, 2000) == answer::yes); // was even asked for more
  check(fell(1000, 744, 1000, 1000, false) == answer::no);
  check(fell(1000, 1000, 1000, 1000) == answer::no);
  check(fell(1000, 744, 1000, 744) == answer::no);
  check(fell(1000, 744, 500, 500) == answer::no); // on its way down
  check(fell(1000, 744, 744, 744) == answer::no);
  check(fell(1000, 744, 1000, 500) == answer::no);
  check(fell(1000, 744, 1000, 800) == answer::no); // a lower target, overshot
  check(fell(744, 1000, 2000, 2000) == answer::no);
};
BOTH("an unasked deflation is a fall below a target that was not lowered", deflations)

constexpr auto clamping = [](auto check) {
  constexpr activity all[] = {activity::none, activity::low, activity::high, activity::unknown};
  for (const activity scan : all)
    for (const activity reclaim : all) {
      const activity want = scan == activity::none                               ? scan
                            : scan == activity::low && reclaim == activity::high ? scan
                                                                                 : reclaim;
      levels l{.direct_scans = scan, .direct_reclaims = reclaim};
      check(clamped(l).direct_reclaims == want);
      check(clamped(l).direct_scans == scan);
      check(clamped(l).async_reclaims == activity::unknown);
      l = {.async_scans = scan, .async_reclaims = reclaim};
      check(clamped(l).async_reclaims == want);
      check(clamped(clamped(l)) == clamped(l));
    }
};
BOTH("clamped levels have no reclaim above its scan", clamping)

constexpr auto staleness = [](auto check) {
  snapshot s;
  s.received_at = 100 * second;
  check(!is_stale(s, 100 * second, {}));
  check(!is_stale(s, 99 * second, {})); // a clock that went back proves nothing
  check(!is_stale(s, 106 * second, {}));
  check(is_stale(s, 106 * second + 1, {}));
  check(is_stale(s, 107 * second, {}));
  check(!is_stale(s, 130 * second, {.poll_period = 10 * second}));
  check(is_stale(s, 131 * second, {.poll_period = 10 * second}));
  check(is_stale(s, maximum, {.poll_period = 1}));
  check(!is_stale(s, maximum, {.poll_period = 0})); // nobody polls
};
BOTH("a snapshot older than three poll periods is stale", staleness)

TEST_CASE("levels and answers have names") {
  CHECK(doctest::String(name(activity::none)) == "none");
  CHECK(doctest::String(name(activity::low)) == "low");
  CHECK(doctest::String(name(activity::high)) == "high");
  CHECK(doctest::String(name(activity::unknown)) == "unknown");
  CHECK(doctest::String(name(answer::no)) == "no");
  CHECK(doctest::String(name(answer::yes)) == "yes");
  CHECK(doctest::String(name(answer::unknown)) == "unknown");
}

} // namespace
