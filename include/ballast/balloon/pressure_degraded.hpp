// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/pressure_levels.hpp>
#include <ballast/balloon/pressure_rules.hpp>
#include <ballast/balloon/statistic_table.hpp>
#include <ballast/balloon/statistics.hpp>

#include <cstdint>

/// What can be said where counters are missing: older guests, and other systems than Linux.
namespace ballast::balloon {

/// What the degraded mode asks for. A default one knows nothing.
struct memory_state {
  bool is_available_known = false;
  severity available = severity::none; ///< by the share that is available
  statistic_tag source = statistic_tag::available_memory;
  std::uint8_t swap_in_raise = 0; ///< levels
  std::uint8_t major_faults_raise = 0;

  friend constexpr bool operator==(const memory_state&, const memory_state&) noexcept = default;
};

/// What is available, and how much is paged in. Without a figure for what is available it is free
/// memory and a share of the caches; shared memory counts as cache, hence not all of them.
[[nodiscard]] constexpr memory_state
find_memory_state(const snapshot& s, const counter_changes& changes, const thresholds& t) noexcept {
  using tag = statistic_tag;
  memory_state m;
  const std::uint64_t memory = capacity(s, t);
  const std::uint64_t plenty = share(memory, t.available_low);
  std::uint64_t available = s.value(tag::available_memory);
  m.is_available_known = memory != 0 && s.has(tag::available_memory);
  if (!s.has(tag::available_memory)) {
    m.source = tag::free_memory;
    available =
        saturating_add(s.value(tag::free_memory), share(s.value(tag::disk_caches), t.cache_share));
    m.is_available_known =
        memory != 0 && s.has(tag::free_memory) && (s.has(tag::disk_caches) || available >= plenty);
  }
  if (m.is_available_known)
    m.available = available < share(memory, t.available_critical) ? severity::critical
                  : available < share(memory, t.available_high)   ? severity::high
                  : available < share(memory, t.available_medium) ? severity::medium
                  : available < plenty                            ? severity::low
                                                                  : severity::none;
  const change swap_in = changes[tag::swap_in];
  const change faults = changes[tag::major_faults];
  if (swap_in.is_known() && swap_in.per_second >= t.swap_in_raise_one)
    m.swap_in_raise = swap_in.per_second >= t.swap_in_raise_two ? 2 : 1;
  if (faults.is_known() && faults.per_second >= t.major_faults_raise) m.major_faults_raise = 1;
  return m;
}

/// The least severity that known levels leave, of those where no rule of the total mode is certain.
[[nodiscard]] constexpr finding at_least(const levels& l) noexcept {
  using tag = statistic_tag;
  const bool is_stalling = l.alloc_stalls == activity::high;
  const bool is_scanning = l.direct_scans == activity::high;
  if (is_stalling && is_scanning)
    return {rule_id::degraded_high, severity::high, tag::alloc_stalls, true};
  if (is_stalling || is_scanning)
    return {rule_id::degraded_medium, severity::medium,
            is_stalling ? tag::alloc_stalls : tag::direct_scans, true};
  if (l.alloc_stalls == activity::low)
    return {rule_id::degraded_low, severity::low, tag::alloc_stalls, true};
  if (l.direct_scans == activity::low)
    return {rule_id::degraded_low, severity::low, tag::direct_scans, true};
  if (l.async_scans == activity::high)
    return {rule_id::degraded_low, severity::low, tag::async_scans, true};
  return {rule_id::unknown, severity::none, {}, true};
}

/// Degraded mode: where the counters do not decide. Never less than what they leave for certain.
[[nodiscard]] constexpr finding decide_degraded(const levels& l, const memory_state& m) noexcept {
  const finding floor = at_least(l);
  const unsigned raise = unsigned{m.swap_in_raise} + m.major_faults_raise;
  const unsigned raised = static_cast<unsigned>(m.available) + raise;
  const unsigned top = static_cast<unsigned>(severity::critical);
  const auto level = static_cast<severity>(raised < top ? raised : top);
  if (level < floor.level || (!m.is_available_known && raise == 0)) return floor;
  const auto rule = static_cast<rule_id>(static_cast<unsigned>(rule_id::degraded_none) +
                                         static_cast<unsigned>(level));
  const cause because = m.swap_in_raise != 0        ? cause(statistic_tag::swap_in)
                        : m.major_faults_raise != 0 ? cause(statistic_tag::major_faults)
                                                    : cause(m.source);
  return {rule, level, because, true};
}

} // namespace ballast::balloon
