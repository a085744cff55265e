// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/pressure_degraded.hpp>

#include <support/check.hpp>

#include <cstdint>

using namespace ballast::balloon;
using tag = statistic_tag;

namespace {

constexpr std::uint64_t mib = 1024 * 1024;
constexpr std::uint64_t second = 1'000'000'000;

constexpr memory_state state_of(const snapshot& s, const thresholds& t = {}) {
  return find_memory_state(s, {}, t);
}

constexpr auto shares = [](auto check) {
  snapshot s;
  check(state_of(s) == memory_state{.source = tag::free_memory});
  s.set(tag::available_memory, 500 * mib);
  check(!state_of(s).is_available_known); // of how much
  check(state_of(s, {.host_memory = 1000 * mib}).is_available_known);
  s.set(tag::total_memory, 1000 * mib);
  const auto with = [&s](std::uint64_t available) {
    s.set(tag::available_memory, available);
    const memory_state m = state_of(s);
    return m.is_available_known && m.source == tag::available_memory ? m.available : severity{255};
  };
  check(with(0) == severity::critical);
  check(with(20 * mib - 1) == severity::critical);
  check(with(20 * mib) == severity::high);
  check(with(50 * mib - 1) == severity::high);
  check(with(50 * mib) == severity::medium);
  check(with(100 * mib - 1) == severity::medium);
  check(with(100 * mib) == severity::low);
  check(with(200 * mib - 1) == severity::low);
  check(with(200 * mib) == severity::none);
  check(with(UINT64_MAX - 1) == severity::none);
};
BOTH("less than 2, 5, 10, 20 % available is critical, high, medium, low", shares)

constexpr auto estimates = [](auto check) {
  snapshot s;
  s.set(tag::total_memory, 1000 * mib);
  s.set(tag::disk_caches, 900 * mib);
  check(!state_of(s).is_available_known);
  s.set(tag::free_memory, 10 * mib);
  check(state_of(s) ==
        memory_state{.is_available_known = true, .source = tag::free_memory}); // 460 MiB
  s.set(tag::disk_caches, 60 * mib);
  check(state_of(s).available == severity::high); // 40 MiB
  check(state_of(s, {.cache_share = 10'000}).available == severity::medium);
  s.set(tag::disk_caches, not_reported);
  check(!state_of(s).is_available_known); // little is free; who knows what is cached
  s.set(tag::free_memory, 200 * mib);
  check(state_of(s).is_available_known); // enough is free whatever is cached
  check(state_of(s).available == severity::none);
  s.set(tag::free_memory, UINT64_MAX - 1);
  s.set(tag::disk_caches, UINT64_MAX - 1);
  check(state_of(s).available == severity::none);
};
BOTH("what is available is estimated from free memory and half of the caches", estimates)

constexpr auto paging = [](auto check) {
  const auto raise = [](tag t, std::uint64_t amount) {
    snapshot before, after;
    before.set(t, 0);
    after.set(t, amount);
    const memory_state m = find_memory_state(after, counter_changes(before, after, second), {});
    return m.swap_in_raise * 10 + m.major_faults_raise;
  };
  check(raise(tag::swap_in, mib - 1) == 0);
  check(raise(tag::swap_in, mib) == 10);
  check(raise(tag::swap_in, 10 * mib - 1) == 10);
  check(raise(tag::swap_in, 10 * mib) == 20);
  check(raise(tag::major_faults, 99) == 0);
  check(raise(tag::major_faults, 100) == 1);
  check(raise(tag::swap_out, 100 * mib) == 0);
  check(raise(tag::minor_faults, 1'000'000) == 0);
};
BOTH("swapping in and major faults raise, swapping out and minor faults do not", paging)

constexpr auto decisions = [](auto check) {
  const levels nothing;
  const auto decide = [&nothing](severity available, unsigned swap_in, unsigned faults) {
    return decide_degraded(nothing, {.is_available_known = true,
                                     .available = available,
                                     .swap_in_raise = static_cast<std::uint8_t>(swap_in),
                                     .major_faults_raise = static_cast<std::uint8_t>(faults)});
  };
  check(decide_degraded(nothing, {}) == finding{rule_id::unknown, severity::none, {}, true});
  check(decide(severity::none, 0, 0) ==
        finding{rule_id::degraded_none, severity::none, tag::available_memory, true});
  check(decide(severity::low, 0, 0) ==
        finding{rule_id::degraded_low, severity::low, tag::available_memory, true});
  check(decide(severity::low, 0, 1) ==
        finding{rule_id::degraded_medium, severity::medium, tag::major_faults, true});
  check(decide(severity::low, 1, 1) ==
        finding{rule_id::degraded_high, severity::high, tag::swap_in, true});
  check(decide(severity::low, 2, 1) ==
        finding{rule_id::degraded_critical, severity::critical, tag::swap_in, true});
  check(decide(severity::critical, 2, 1).rule == rule_id::degraded_critical);
  check(decide_degraded(
            nothing,
            {.is_available_known = true, .available = severity::high, .source = tag::free_memory})
            .because == cause(tag::free_memory));
  // Nothing says how much is available, but paging is certain.
  check(decide_degraded(nothing, {.swap_in_raise = 2}) ==
        finding{rule_id::degraded_medium, severity::medium, tag::swap_in, true});
};
BOTH("the degraded mode raises what is available by paging", decisions)

constexpr auto floors = [](auto check) {
  const memory_state plenty{.is_available_known = true};
  const auto floor = [&plenty](const levels& l, severity s, tag t) {
    const finding f = decide_degraded(l, plenty);
    const finding without = decide_degraded(l, {});
    return f.level == s && f.because == cause(t) && f == without && f == at_least(l);
  };
  constexpr activity low = activity::low, high = activity::high;
  check(floor({.alloc_stalls = high, .direct_scans = high}, severity::high, tag::alloc_stalls));
  check(floor({.alloc_stalls = high}, severity::medium, tag::alloc_stalls));
  check(floor({.direct_scans = high}, severity::medium, tag::direct_scans));
  check(floor({.alloc_stalls = low}, severity::low, tag::alloc_stalls));
  check(floor({.direct_scans = low}, severity::low, tag::direct_scans));
  check(floor({.async_scans = high}, severity::low, tag::async_scans));

  const levels stalling{.alloc_stalls = high};
  const memory_state little{.is_available_known = true, .available = severity::critical};
  check(decide_degraded(stalling, little) ==
        finding{rule_id::degraded_critical, severity::critical, tag::available_memory, true});
};
BOTH("the degraded mode says no less than the known levels leave", floors)

} // namespace
