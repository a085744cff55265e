// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/pressure_levels.hpp>
#include <ballast/balloon/statistic_table.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

/// The rules: their ids, the two tables, and how a table is read.
namespace ballast::balloon {

enum class severity : std::uint8_t { none, low, medium, high, critical };

/// A short stable text; never null.
[[nodiscard]] constexpr const char* name(severity s) noexcept {
  constexpr const char* texts[] = {"none", "low", "medium", "high", "critical"};
  return texts[static_cast<std::size_t>(s)];
}

/// What decided. The numbers, and the texts of `id` and `name`, are stable: alerts depend on them.
enum class rule_id : std::uint16_t {
  // Nothing is known. The severity is none, but that means nothing: ask `is_unknown`.
  unknown = 0,          ///< what is missing could have decided
  no_baseline = 1,      ///< the snapshots are of different epochs: the newer one is a baseline
  window_too_short = 2, ///< keep the older snapshot and the levels, and try again

  // Strict mode: the five published rules, and what they don't speak of.
  strict_oom = 11,
  strict_cgroup_stall = 12,
  strict_direct_effective = 13,
  strict_thrash = 14,
  strict_reclaim_struggling = 15,
  strict_unclassified = 16,

  // Total mode.
  oom_deflate = 20,
  oom_local = 21,
  oom = 22,
  thrash = 23,
  direct_effective = 24,
  stall_local = 25,
  thrash_onset = 26,
  direct_effective_rare_stalls = 27,
  direct_mild = 28,
  stall_rare = 29,
  direct_no_stall = 30,
  direct_trace = 31,
  reclaim_struggling = 32,
  background_effective = 33,
  background_light = 34,
  idle = 35,
  reclaim_without_scan = 36,

  // Total mode where the counters do not decide: by what is available, and by paging.
  degraded_none = 40,
  degraded_low = 41,
  degraded_medium = 42,
  degraded_high = 43,
  degraded_critical = 44,
};

/// One rule under its names.
struct rule_info {
  rule_id rule;
  const char* id;   ///< unique
  const char* name; ///< of the finding: the same in both modes where it is the same
};

inline constexpr rule_info rule_table[] = {
    {rule_id::unknown, "U0", "unknown"},
    {rule_id::no_baseline, "U1", "no_baseline"},
    {rule_id::window_too_short, "U2", "window_too_short"},
    {rule_id::strict_oom, "R1", "oom"},
    {rule_id::strict_cgroup_stall, "R2", "cgroup_stall"},
    {rule_id::strict_direct_effective, "R3", "direct_effective"},
    {rule_id::strict_thrash, "R4", "thrash"},
    {rule_id::strict_reclaim_struggling, "R5", "reclaim_struggling"},
    {rule_id::strict_unclassified, "R-", "unclassified"},
    {rule_id::oom_deflate, "R0", "oom_deflate"},
    {rule_id::oom_local, "T1b", "oom_local"},
    {rule_id::oom, "T1", "oom"},
    {rule_id::thrash, "T2", "thrash"},
    {rule_id::direct_effective, "T3", "direct_effective"},
    {rule_id::stall_local, "T4", "stall_local"},
    {rule_id::thrash_onset, "T5", "thrash_onset"},
    {rule_id::direct_effective_rare_stalls, "T6", "direct_effective"},
    {rule_id::direct_mild, "T7", "direct_mild"},
    {rule_id::stall_rare, "T8", "stall_rare"},
    {rule_id::direct_no_stall, "T9", "direct_no_stall"},
    {rule_id::direct_trace, "T10", "direct_trace"},
    {rule_id::reclaim_struggling, "T11", "reclaim_struggling"},
    {rule_id::background_effective, "T12", "background_effective"},
    {rule_id::background_light, "T13", "background_light"},
    {rule_id::idle, "T14", "none"},
    {rule_id::reclaim_without_scan, "T15", "reclaim_without_scan"},
    {rule_id::degraded_none, "D0", "degraded_none"},
    {rule_id::degraded_low, "D1", "degraded_low"},
    {rule_id::degraded_medium, "D2", "degraded_medium"},
    {rule_id::degraded_high, "D3", "degraded_high"},
    {rule_id::degraded_critical, "D4", "degraded_critical"},
};

/// The row of a rule; the one of `unknown` for a number that is none.
[[nodiscard]] constexpr const rule_info& find_rule(rule_id r) noexcept {
  for (const rule_info& row : rule_table)
    if (row.rule == r) return row;
  return rule_table[0];
}
[[nodiscard]] constexpr const char* id(rule_id r) noexcept { return find_rule(r).id; }
[[nodiscard]] constexpr const char* name(rule_id r) noexcept { return find_rule(r).name; }

/// Whether the severity means nothing: no rule spoke.
[[nodiscard]] constexpr bool is_unknown(rule_id r) noexcept {
  return r <= rule_id::window_too_short || r == rule_id::strict_unclassified;
}

/// The one input that a finding rests on.
struct cause {
  enum class kind : std::uint8_t {
    nothing,   ///< no input alone
    actual,    ///< the size of the balloon, which is no statistic
    statistic, ///< `tag`
  };
  kind what = kind::nothing;
  statistic_tag tag{}; ///< only for `statistic`

  constexpr cause() noexcept = default;
  constexpr cause(kind k) noexcept : what(k) {}
  constexpr cause(statistic_tag t) noexcept : what(kind::statistic), tag(t) {}
  friend constexpr bool operator==(const cause&, const cause&) noexcept = default;
};

/// "none", "actual" or the name of the statistic; never null.
[[nodiscard]] constexpr const char* name(const cause& c) noexcept {
  if (c.what == cause::kind::actual) return "actual";
  const statistic_info* row = find_statistic(c.tag);
  return c.what == cause::kind::nothing || row == nullptr ? "none" : row->name;
}

/// Which levels, or answers, of one input a rule allows, in one letter.
struct allowed {
  std::uint8_t bits = 0; ///< by the numbers of `activity` or `answer`; 0: no such letter

  /// n, l and h are levels, n and y are answers; - is n or l, + is l or h, * is any.
  constexpr allowed(char letter = '*') noexcept
      : bits(letter == 'n'                    ? 1
             : letter == 'l' || letter == 'y' ? 2
             : letter == '-'                  ? 3
             : letter == 'h'                  ? 4
             : letter == '+'                  ? 6
             : letter == '*'                  ? 7
                                              : 0) {}

  /// unknown: the input is not known, and would decide.
  template <class T> [[nodiscard]] constexpr answer test(T input) const noexcept {
    if (bits == 7) return answer::yes;
    if (input == T::unknown) return answer::unknown;
    return ((bits >> static_cast<unsigned>(input)) & 1) != 0 ? answer::yes : answer::no;
  }
};

/// A rule: it holds where every input is one of those it allows.
struct pressure_rule {
  rule_id rule;
  severity level;
  cause because; ///< the input that tells the rule from its neighbours
  allowed oom_kills;
  allowed alloc_stalls;
  allowed async_scans;
  allowed direct_scans;
  allowed async_reclaims;
  allowed direct_reclaims;
  allowed deflated_unasked{};
  allowed has_headroom{};

  /// Whether it holds. An input known not to be allowed decides, whatever the unknown ones are.
  [[nodiscard]] constexpr answer test(const levels& l) const noexcept {
    const answer tests[] = {
        oom_kills.test(l.oom_kills),
        alloc_stalls.test(l.alloc_stalls),
        async_scans.test(l.async_scans),
        direct_scans.test(l.direct_scans),
        async_reclaims.test(l.async_reclaims),
        direct_reclaims.test(l.direct_reclaims),
        deflated_unasked.test(l.deflated_unasked),
        has_headroom.test(l.has_headroom),
    };
    answer all = answer::yes;
    for (const answer a : tests) {
      if (a == answer::no) return a;
      if (a == answer::unknown) all = a;
    }
    return all;
  }
};

// clang-format off

/// The five published rules, literally. No two hold at once.
/// Linux: the message of "virtio_balloon: introduce memory scan/reclaim info".
inline constexpr pressure_rule strict_rules[] = {
  //                                                                                              OOM STALL ASCAN DSCAN ARCLM DRCLM
  {rule_id::strict_oom,                severity::critical, statistic_tag::oom_kills,              'y', '*', '*', '*', '*', '*'},
  {rule_id::strict_cgroup_stall,       severity::medium,   statistic_tag::alloc_stalls,           'n', 'h', '*', 'l', '*', 'l'},
  {rule_id::strict_direct_effective,   severity::high,     statistic_tag::direct_reclaims,        'n', 'h', '*', 'h', '*', 'h'},
  {rule_id::strict_thrash,             severity::critical, statistic_tag::direct_reclaims,        'n', 'h', '*', 'h', '*', 'l'},
  {rule_id::strict_reclaim_struggling, severity::medium,   statistic_tag::async_reclaims,         'n', 'n', 'h', 'n', 'l', 'n'},
};

/// The first that holds decides; one always does where all inputs are known. Behind the OOM rules
/// no two hold at once. The rules without severity want every event ruled out.
///
/// An OOM kill with headroom and no stall or direct scan was local (a memory limit of a container).
/// Stalls with little or no direct scan are large or zone-bound allocations, or khugepaged; memory
/// limits, which the published rule names, move none of these counters in Linux 6.12.
inline constexpr pressure_rule total_rules[] = {
  //                                                                                              OOM STALL ASCAN DSCAN ARCLM DRCLM  deflated, headroom
  {rule_id::oom_deflate,               severity::critical, cause::kind::actual,                   '*', '*', '*', '*', '*', '*', 'y', '*'},
  {rule_id::oom_local,                 severity::high,     statistic_tag::oom_kills,              'y', 'n', '*', 'n', '*', '*', '*', 'y'},
  {rule_id::oom,                       severity::critical, statistic_tag::oom_kills,              'y', '*', '*', '*', '*', '*', '*', '*'},
  {rule_id::thrash,                    severity::critical, statistic_tag::direct_reclaims,        '*', 'h', '*', 'h', '*', '-', '*', '*'},
  {rule_id::direct_effective,          severity::high,     statistic_tag::direct_reclaims,        '*', 'h', '*', 'h', '*', 'h', '*', '*'},
  {rule_id::stall_local,               severity::medium,   statistic_tag::alloc_stalls,           '*', 'h', '*', '-', '*', '*', '*', '*'},
  {rule_id::thrash_onset,              severity::high,     statistic_tag::direct_reclaims,        '*', 'l', '*', 'h', '*', '-', '*', '*'},
  {rule_id::direct_effective_rare_stalls, severity::medium, statistic_tag::direct_reclaims,       '*', 'l', '*', 'h', '*', 'h', '*', '*'},
  {rule_id::direct_mild,               severity::low,      statistic_tag::direct_scans,           '*', 'l', '*', 'l', '*', '*', '*', '*'},
  {rule_id::stall_rare,                severity::low,      statistic_tag::alloc_stalls,           '*', 'l', '*', 'n', '*', '*', '*', '*'},
  {rule_id::direct_no_stall,           severity::medium,   statistic_tag::direct_scans,           '*', 'n', '*', 'h', '*', '*', '*', '*'},
  {rule_id::direct_trace,              severity::low,      statistic_tag::direct_scans,           '*', 'n', '*', 'l', '*', '*', '*', '*'},
  {rule_id::reclaim_struggling,        severity::medium,   statistic_tag::async_reclaims,         '*', 'n', 'h', 'n', '-', '*', '*', '*'},
  {rule_id::background_effective,      severity::low,      statistic_tag::async_reclaims,         '*', 'n', 'h', 'n', 'h', '*', '*', '*'},
  {rule_id::background_light,          severity::none,     statistic_tag::async_scans,            'n', 'n', 'l', 'n', '*', '*', 'n', '*'},
  {rule_id::idle,                      severity::none,     cause::kind::nothing,                  'n', 'n', 'n', 'n', 'n', 'n', 'n', '*'},
  {rule_id::reclaim_without_scan,      severity::none,     statistic_tag::async_reclaims,         'n', 'n', 'n', 'n', '+', '*', 'n', '*'},
  {rule_id::reclaim_without_scan,      severity::none,     statistic_tag::direct_reclaims,        'n', 'n', 'n', 'n', '*', '+', 'n', '*'},
};

// clang-format on

/// What a table found.
struct finding {
  rule_id rule = rule_id::unknown;
  severity level = severity::none;
  cause because{};
  /// A rule before this one was skipped, for want of an input: it might have held too.
  bool is_partial = false;

  friend constexpr bool operator==(const finding&, const finding&) noexcept = default;
};

/// The first rule that holds; where none does, `unknown`, partial if one was skipped.
///
/// A rule is skipped if an input it needs is unknown and no known one decides it already.
[[nodiscard]] constexpr finding first_match(std::span<const pressure_rule> rules,
                                            const levels& l) noexcept {
  rule_id skipped = rule_id::unknown; // the first one; two rows of one rule stand together
  for (const pressure_rule& rule : rules) {
    const answer holds = rule.test(l);
    if (holds == answer::yes)
      return {rule.rule, rule.level, rule.because,
              skipped != rule_id::unknown && skipped != rule.rule};
    if (holds == answer::unknown && skipped == rule_id::unknown) skipped = rule.rule;
  }
  return {rule_id::unknown, severity::none, {}, skipped != rule_id::unknown};
}

/// Whether processes were killed without any sign of global pressure: the condition of
/// `rule_id::oom_local`.
[[nodiscard]] constexpr bool is_oom_local(const levels& l) noexcept {
  return l.oom_kills == answer::yes && l.alloc_stalls == activity::none &&
         l.direct_scans == activity::none && l.has_headroom == answer::yes;
}

} // namespace ballast::balloon
