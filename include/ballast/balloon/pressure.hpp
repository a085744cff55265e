// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/pressure_degraded.hpp>
#include <ballast/balloon/pressure_levels.hpp>
#include <ballast/balloon/pressure_rules.hpp>
#include <ballast/balloon/statistics.hpp>

#include <cstdint>

/// From two snapshots to a verdict on the memory pressure in a guest, with its reason.
namespace ballast::balloon {

/// Which rules judge.
enum class rule_set : std::uint8_t {
  strict, ///< the five published rules, literally; everything else is unclassified
  total,  ///< a verdict for everything, and a degraded one where counters are missing
};

/// Strict mode: the published rules on levels as they are.
[[nodiscard]] constexpr finding decide_strict(const levels& l) noexcept {
  finding f = first_match(strict_rules, l);
  if (f.rule == rule_id::unknown && !f.is_partial) f.rule = rule_id::strict_unclassified;
  return f;
}

/// Total mode: on levels that are `clamped`, or as they are: then `reclaim_without_scan` is met.
/// Where all levels are known it always speaks.
[[nodiscard]] constexpr finding decide_total(const levels& l, const memory_state& m = {}) noexcept {
  const finding f = first_match(total_rules, l);
  return f.rule == rule_id::unknown ? decide_degraded(l, m) : f;
}

/// What a pair of snapshots says about the guest, and why.
struct verdict {
  rule_id rule = rule_id::unknown;
  severity level = severity::none; ///< none as well where `is_unknown(rule)`
  cause because{};

  levels observed{};            ///< give these to the next call as the previous ones
  counter_changes rates{};      ///< of every counter, amount and per second
  quantity direct_efficiency{}; ///< reclaimed by scanned, parts of 10 000
  quantity async_efficiency{};

  /// The balloon was growing, or was to grow: the pressure may be the host's own doing.
  bool is_self_inflicted = false;
  bool is_degraded = false;  ///< the counters did not decide: a verdict of the degraded mode
  bool is_partial = false;   ///< a rule before this one could not be tested; it might have held too
  bool is_oom_local = false; ///< processes were killed without global pressure; in strict mode too
  bool has_reset = false;    ///< a counter went back: its change in this window is not known

  friend constexpr bool operator==(const verdict&, const verdict&) noexcept = default;
};

/// Judges the window between two snapshots. A pure function: it keeps nothing.
///
///     const std::uint64_t elapsed = after.received_at - before.received_at;
///     const verdict v = classify(rule_set::total, before, after, elapsed, limits, previous);
///     previous = v.observed;
///     if (v.rule != rule_id::window_too_short)
///       before = after;
///
/// `elapsed` is in nanoseconds, of the host's clock. `previous` are the levels of the last verdict:
/// they hold a level between its exit and its entry. Snapshots of different epochs have nothing in
/// common: the newer one is the next baseline. An unasked deflation precedes a suspend too: drop
/// such a verdict if the next snapshot has another epoch.
[[nodiscard]] constexpr verdict classify(rule_set rules, const snapshot& before,
                                         const snapshot& after, std::uint64_t elapsed,
                                         const thresholds& limits = {},
                                         const levels& previous = {}) noexcept {
  using tag = statistic_tag;
  verdict v;
  v.is_self_inflicted = after.target_pages > after.actual_pages;
  if (before.epoch != after.epoch) {
    v.rule = rule_id::no_baseline;
    return v;
  }
  v.is_self_inflicted = v.is_self_inflicted || after.actual_pages > before.actual_pages;
  if (elapsed < limits.window_min) {
    v.rule = rule_id::window_too_short;
    v.observed = previous;
    return v;
  }

  v.rates = counter_changes(before, after, elapsed);
  v.has_reset = v.rates.has_reset();
  v.direct_efficiency =
      efficiency(v.rates[tag::direct_scans], v.rates[tag::direct_reclaims], limits);
  v.async_efficiency = efficiency(v.rates[tag::async_scans], v.rates[tag::async_reclaims], limits);
  v.observed = find_levels(before, after, v.rates, limits, previous);
  v.is_oom_local = is_oom_local(v.observed);

  finding f;
  if (rules == rule_set::strict) {
    f = decide_strict(v.observed);
  } else {
    f = decide_total(clamped(v.observed), find_memory_state(after, v.rates, limits));
    v.is_degraded = f.rule >= rule_id::degraded_none;
  }
  v.rule = f.rule;
  v.level = f.level;
  v.because = f.because;
  v.is_partial = f.is_partial;
  return v;
}

} // namespace ballast::balloon
