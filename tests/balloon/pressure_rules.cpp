// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/pressure_rules.hpp>

#include <support/check.hpp>

#include <string_view>

using namespace ballast::balloon;
using tag = statistic_tag;
using std::string_view;

namespace {

struct stable {
  unsigned number;
  string_view id, name;
};
/// What alerts may depend on. Rows are only ever added.
constexpr stable published[] = {
    {0, "U0", "unknown"},
    {1, "U1", "no_baseline"},
    {2, "U2", "window_too_short"},
    {11, "R1", "oom"},
    {12, "R2", "cgroup_stall"},
    {13, "R3", "direct_effective"},
    {14, "R4", "thrash"},
    {15, "R5", "reclaim_struggling"},
    {16, "R-", "unclassified"},
    {20, "R0", "oom_deflate"},
    {21, "T1b", "oom_local"},
    {22, "T1", "oom"},
    {23, "T2", "thrash"},
    {24, "T3", "direct_effective"},
    {25, "T4", "stall_local"},
    {26, "T5", "thrash_onset"},
    {27, "T6", "direct_effective"},
    {28, "T7", "direct_mild"},
    {29, "T8", "stall_rare"},
    {30, "T9", "direct_no_stall"},
    {31, "T10", "direct_trace"},
    {32, "T11", "reclaim_struggling"},
    {33, "T12", "background_effective"},
    {34, "T13", "background_light"},
    {35, "T14", "none"},
    {36, "T15", "reclaim_without_scan"},
    {40, "D0", "degraded_none"},
    {41, "D1", "degraded_low"},
    {42, "D2", "degraded_medium"},
    {43, "D3", "degraded_high"},
    {44, "D4", "degraded_critical"},
};

constexpr auto ids = [](auto check) {
  check(std::size(published) == std::size(rule_table));
  for (const stable& s : published) {
    const auto r = static_cast<rule_id>(s.number);
    check(find_rule(r).rule == r);
    check(id(r) == s.id);
    check(name(r) == s.name);
    for (const stable& other : published) check((other.id == s.id) == (other.number == s.number));
  }
  check(string_view(id(static_cast<rule_id>(999))) == "U0");
  check(string_view(name(static_cast<rule_id>(999))) == "unknown");
};
BOTH("numbers, ids and names of rules are stable, and ids are unique", ids)

constexpr auto unknowns = [](auto check) {
  for (const rule_info& row : rule_table) {
    const char first = row.id[0], second = row.id[1];
    check(is_unknown(row.rule) == (first == 'U' || second == '-'));
  }
};
BOTH("is_unknown tells the rules whose severity means nothing", unknowns)

constexpr auto texts = [](auto check) {
  check(string_view(name(cause{})) == "none");
  check(string_view(name(cause(cause::kind::actual))) == "actual");
  check(string_view(name(cause(tag::oom_kills))) == "oom-kills");
  check(string_view(name(cause(tag::swap_in))) == "swap-in");
  check(string_view(name(cause(static_cast<tag>(999)))) == "none");
  check(!(cause{} == cause(tag::swap_in)));
  check(string_view(name(severity::none)) == "none");
  check(string_view(name(severity::low)) == "low");
  check(string_view(name(severity::medium)) == "medium");
  check(string_view(name(severity::high)) == "high");
  check(string_view(name(severity::critical)) == "critical");
};
BOTH("causes and severities have names", texts)

constexpr auto letters = [](auto check) {
  const auto allows = [](char letter) {
    const allowed a(letter);
    return (a.test(activity::none) == answer::yes ? 1 : 0) +
           (a.test(activity::low) == answer::yes ? 2 : 0) +
           (a.test(activity::high) == answer::yes ? 4 : 0);
  };
  check(allows('n') == 1);
  check(allows('l') == 2);
  check(allows('-') == 3);
  check(allows('h') == 4);
  check(allows('+') == 6);
  check(allows('*') == 7);
  check(allowed('n').test(answer::no) == answer::yes);
  check(allowed('n').test(answer::yes) == answer::no);
  check(allowed('y').test(answer::yes) == answer::yes);
  check(allowed('y').test(answer::no) == answer::no);
  for (const char letter : {'n', 'l', '-', 'h', '+', 'y'}) {
    check(allowed(letter).test(activity::unknown) == answer::unknown);
    check(allowed(letter).test(answer::unknown) == answer::unknown);
  }
  check(allowed('*').test(activity::unknown) == answer::yes);
  check(allowed('*').test(answer::unknown) == answer::yes);
  check(allowed('x').bits == 0);

  const auto is_spelled = [](const pressure_rule& r) {
    return r.oom_kills.bits != 0 && r.alloc_stalls.bits != 0 && r.async_scans.bits != 0 &&
           r.direct_scans.bits != 0 && r.async_reclaims.bits != 0 && r.direct_reclaims.bits != 0 &&
           r.deflated_unasked.bits != 0 && r.has_headroom.bits != 0;
  };
  for (const pressure_rule& r : strict_rules) check(is_spelled(r));
  for (const pressure_rule& r : total_rules) check(is_spelled(r));
};
BOTH("letters say which levels a rule allows, and the tables use no others", letters)

constexpr auto three_values = [](auto check) {
  constexpr pressure_rule r{
      rule_id::strict_cgroup_stall, severity::medium, {}, 'n', 'h', '*', 'l', '*', 'l'};
  levels l;
  check(r.test(l) == answer::unknown);
  l.alloc_stalls = activity::low;
  check(r.test(l) == answer::no); // decided, though all else is unknown
  l.alloc_stalls = activity::high;
  l.direct_scans = l.direct_reclaims = activity::low;
  check(r.test(l) == answer::unknown);
  l.oom_kills = answer::no;
  check(r.test(l) == answer::yes); // the rest does not matter to it
  l.oom_kills = answer::yes;
  check(r.test(l) == answer::no);
};
BOTH("a rule asks for no more than it needs, and a known input decides", three_values)

constexpr auto first = [](auto check) {
  const pressure_rule rules[] = {
      {rule_id::oom, severity::critical, tag::oom_kills, 'y', '*', '*', '*', '*', '*'},
      {rule_id::thrash, severity::high, tag::alloc_stalls, '*', 'h', '*', '*', '*', '*'},
      {rule_id::idle, severity::low, {}, '*', 'n', '*', '*', '*', '*'},
  };
  levels l{.oom_kills = answer::yes};
  check(first_match(rules, l) == finding{rule_id::oom, severity::critical, tag::oom_kills, false});
  l.alloc_stalls = activity::high;
  check(first_match(rules, l).rule == rule_id::oom);
  l.oom_kills = answer::no;
  check(first_match(rules, l) ==
        finding{rule_id::thrash, severity::high, tag::alloc_stalls, false});
  l.oom_kills = answer::unknown; // the first one is skipped, and that is said
  check(first_match(rules, l) == finding{rule_id::thrash, severity::high, tag::alloc_stalls, true});
  l.alloc_stalls = activity::low;
  check(first_match(rules, l) == finding{rule_id::unknown, severity::none, {}, true});
  l.oom_kills = answer::no;
  check(first_match(rules, l) == finding{rule_id::unknown, severity::none, {}, false});
  check(first_match({}, l) == finding{});
};
BOTH("the first rule that holds decides, and a skipped one is noted", first)

constexpr auto local = [](auto check) {
  const levels yes{.oom_kills = answer::yes,
                   .has_headroom = answer::yes,
                   .alloc_stalls = activity::none,
                   .direct_scans = activity::none};
  const auto row = [](const levels& l) {
    for (const pressure_rule& r : total_rules)
      if (r.rule == rule_id::oom_local) return r.test(l) == answer::yes;
    return false;
  };
  check(is_oom_local(yes) && row(yes));
  for (unsigned i = 0; i < 8; ++i) {
    levels l = yes;
    const activity a = i % 2 == 0 ? activity::low : activity::unknown;
    const answer b = i % 2 == 0 ? answer::no : answer::unknown;
    if (i / 2 == 0) l.oom_kills = b;
    if (i / 2 == 1) l.has_headroom = b;
    if (i / 2 == 2) l.alloc_stalls = a;
    if (i / 2 == 3) l.direct_scans = a;
    check(!is_oom_local(l) && !row(l));
  }
};
BOTH("is_oom_local is the condition of its rule", local)

} // namespace
