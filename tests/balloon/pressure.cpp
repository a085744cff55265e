// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/pressure.hpp>

#include <support/check.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

using namespace ballast::balloon;
using tag = statistic_tag;

namespace {

constexpr std::uint64_t mib = 1024 * 1024, gib = 1024 * mib;
constexpr std::uint64_t second = 1'000'000'000;

// ---- all combinations of levels ----

/// Combination i of 486: OOM n or y, then each of the five levels.
constexpr levels combination(unsigned i, answer deflated = answer::no,
                             answer headroom = answer::no) {
  const auto next = [&i] {
    const auto a = static_cast<activity>(i % 3);
    i /= 3;
    return a;
  };
  levels l;
  l.deflated_unasked = deflated;
  l.has_headroom = headroom;
  l.alloc_stalls = next();
  l.async_scans = next();
  l.direct_scans = next();
  l.async_reclaims = next();
  l.direct_reclaims = next();
  l.oom_kills = static_cast<answer>(i);
  return l;
}

constexpr bool is_plausible(const levels& l) {
  return l.direct_reclaims <= l.direct_scans && l.async_reclaims <= l.async_scans;
}

struct tally {
  std::array<unsigned, 64> all{}, plausible{};
  constexpr void add(const levels& l, rule_id r) {
    ++all[static_cast<std::size_t>(r)];
    plausible[static_cast<std::size_t>(r)] += is_plausible(l);
  }
  constexpr bool has(rule_id r, unsigned in_all, unsigned in_plausible) const {
    return all[static_cast<std::size_t>(r)] == in_all &&
           plausible[static_cast<std::size_t>(r)] == in_plausible;
  }
};

constexpr auto strict_coverage = [](auto check) {
  tally t;
  unsigned plausible = 0, overlaps = 0;
  for (unsigned i = 0; i < 486; ++i) {
    const levels l = combination(i);
    plausible += is_plausible(l);
    unsigned holding = 0;
    for (const pressure_rule& r : strict_rules) holding += r.test(l) == answer::yes;
    overlaps += holding > 1;
    const finding f = decide_strict(l);
    check((f.rule == rule_id::strict_unclassified) == (holding == 0));
    t.add(l, f.rule);
  }
  check(plausible == 216);
  check(overlaps == 0);
  check(t.has(rule_id::strict_oom, 243, 108));
  check(t.has(rule_id::strict_cgroup_stall, 9, 6));
  check(t.has(rule_id::strict_direct_effective, 9, 6));
  check(t.has(rule_id::strict_thrash, 9, 6));
  check(t.has(rule_id::strict_reclaim_struggling, 1, 1));
  check(t.has(rule_id::strict_unclassified, 215, 89));
};
BOTH("strict mode covers 271 of 486 combinations, none twice, and leaves 215", strict_coverage)

constexpr tally total_of(answer headroom, unsigned from, unsigned to) {
  tally t;
  for (unsigned i = from; i < to; ++i) {
    const levels l = combination(i, answer::no, headroom);
    t.add(l, decide_total(l).rule);
  }
  return t;
}

constexpr auto total_without_oom = [](auto check) {
  const tally t = total_of(answer::no, 0, 243);
  check(t.has(rule_id::thrash, 18, 12));
  check(t.has(rule_id::direct_effective, 9, 6));
  check(t.has(rule_id::stall_local, 54, 18));
  check(t.has(rule_id::thrash_onset, 18, 12));
  check(t.has(rule_id::direct_effective_rare_stalls, 9, 6)); // 12 with the rule above
  check(t.has(rule_id::direct_mild, 27, 12));
  check(t.has(rule_id::stall_rare, 27, 6));
  check(t.has(rule_id::direct_no_stall, 27, 18));
  check(t.has(rule_id::direct_trace, 27, 12));
  check(t.has(rule_id::reclaim_struggling, 6, 2));
  check(t.has(rule_id::background_effective, 3, 1));
  check(t.has(rule_id::background_light, 9, 2));
  check(t.has(rule_id::idle, 1, 1));
  check(t.has(rule_id::reclaim_without_scan, 8, 0)); // no reclaim without a scan is plausible
  unsigned all = 0, plausible = 0;
  for (const unsigned n : t.all) all += n;
  for (const unsigned n : t.plausible) plausible += n;
  check(all == 243);
  check(plausible == 108);
};
BOTH("total mode speaks on all 243 combinations without an OOM kill", total_without_oom)

constexpr auto total_with_oom = [](auto check) {
  const tally t = total_of(answer::no, 243, 486);
  check(t.has(rule_id::oom, 243, 108));
  const tally roomy = total_of(answer::yes, 243, 486);
  check(roomy.has(rule_id::oom, 216, 102));
  check(roomy.has(rule_id::oom_local, 27, 6));
};
BOTH("with headroom 27 of the 243 combinations with an OOM kill are local", total_with_oom)

constexpr auto oom_deflate_first = [](auto check) {
  for (unsigned i = 0; i < 486; ++i)
    check(decide_total(combination(i, answer::yes, answer::yes)).rule == rule_id::oom_deflate);
};
BOTH("an unasked deflation comes before everything", oom_deflate_first)

/// What a verdict of the strict mode becomes.
constexpr rule_id in_total_mode(rule_id strict) {
  switch (strict) {
  case rule_id::strict_oom: return rule_id::oom;
  case rule_id::strict_cgroup_stall: return rule_id::stall_local;
  case rule_id::strict_direct_effective: return rule_id::direct_effective;
  case rule_id::strict_thrash: return rule_id::thrash;
  case rule_id::strict_reclaim_struggling: return rule_id::reclaim_struggling;
  default: return rule_id::unknown;
  }
}

template <class Check> constexpr void agree(Check check, answer deflated, answer headroom) {
  for (unsigned i = 0; i < 486; ++i) {
    const levels l = combination(i, deflated, headroom);
    const finding strict = decide_strict(l);
    if (strict.rule == rule_id::strict_unclassified) continue;
    const finding total = decide_total(clamped(l));
    const bool is_exception = total.rule == rule_id::oom_deflate
                                  ? deflated == answer::yes
                                  : total.rule == rule_id::oom_local &&
                                        strict.rule == rule_id::strict_oom && is_oom_local(l);
    check(is_exception || total.rule == in_total_mode(strict.rule));
    check(is_exception || (total.level == strict.level && total.because == strict.because));
  }
}
constexpr auto agreement = [](auto check) { agree(check, answer::no, answer::no); };
BOTH("total mode agrees with strict mode wherever that speaks", agreement)
constexpr auto agreement_but_local = [](auto check) { agree(check, answer::no, answer::yes); };
BOTH("total mode agrees with strict mode but for local OOM kills", agreement_but_local)
constexpr auto agreement_but_deflated = [](auto check) { agree(check, answer::yes, answer::no); };
BOTH("total mode agrees with strict mode but for unasked deflations", agreement_but_deflated)

/// Where in the table of the total mode a rule stands.
std::size_t row_of(rule_id r) {
  std::size_t i = 0;
  while (total_rules[i].rule != r) ++i;
  return i;
}

TEST_CASE("no two rules behind the OOM rules hold at once, but for two rows of one rule") {
  for (unsigned i = 0; i < 243; ++i) {
    const levels l = combination(i);
    rule_id holding = rule_id::unknown;
    unsigned rules = 0;
    for (std::size_t r = row_of(rule_id::oom) + 1; r < std::size(total_rules); ++r)
      if (total_rules[r].test(l) == answer::yes && total_rules[r].rule != holding) {
        holding = total_rules[r].rule;
        ++rules;
      }
    CHECK(rules == 1);
  }
}

TEST_CASE("another level of the cause alone can make another rule") {
  for (const answer headroom : {answer::no, answer::yes})
    for (unsigned i = 0; i < 486; ++i) {
      const levels l = combination(i, answer::no, headroom);
      const finding f = decide_total(l);
      if (f.because == cause{}) {
        CHECK(f.rule == rule_id::idle);
        continue;
      }
      // Two reclaims without a scan: either is enough, and the first is named.
      if (f.rule == rule_id::reclaim_without_scan) {
        CHECK((f.because == cause(tag::async_reclaims)) == (l.async_reclaims != activity::none));
        continue;
      }
      bool is_decisive = false;
      for (unsigned k = 0; k < 3; ++k) {
        levels other = l;
        const auto a = static_cast<activity>(k);
        REQUIRE(f.because.what == cause::kind::statistic);
        switch (f.because.tag) {
        case tag::oom_kills: other.oom_kills = answer::no; break;
        case tag::alloc_stalls: other.alloc_stalls = a; break;
        case tag::async_scans: other.async_scans = a; break;
        case tag::direct_scans: other.direct_scans = a; break;
        case tag::async_reclaims: other.async_reclaims = a; break;
        case tag::direct_reclaims: other.direct_reclaims = a; break;
        default: FAIL("no such cause");
        }
        is_decisive = is_decisive || decide_total(other).rule != f.rule;
      }
      CHECK(is_decisive);
    }
}

// ---- missing inputs ----

/// Assignment i of 3^3 * 4^5, where each input may be unknown as well.
constexpr unsigned assignments = 27 * 1024;
levels assignment(unsigned i) {
  const auto next = [&i](unsigned values) {
    const unsigned v = i % values;
    i /= values;
    return v;
  };
  levels l;
  l.deflated_unasked = static_cast<answer>(next(3));
  l.oom_kills = static_cast<answer>(next(3));
  l.has_headroom = static_cast<answer>(next(3));
  l.alloc_stalls = static_cast<activity>(next(4));
  l.async_scans = static_cast<activity>(next(4));
  l.direct_scans = static_cast<activity>(next(4));
  l.async_reclaims = static_cast<activity>(next(4));
  l.direct_reclaims = static_cast<activity>(next(4));
  return l;
}

/// Calls with every way to fill in what is unknown.
template <class F> void for_each_completion(levels l, F f) {
  for (answer levels::* const input :
       {&levels::deflated_unasked, &levels::oom_kills, &levels::has_headroom})
    if (l.*input == answer::unknown) {
      for (const answer a : {answer::no, answer::yes}) {
        l.*input = a;
        for_each_completion(l, f);
      }
      return;
    }
  for (activity levels::* const input :
       {&levels::alloc_stalls, &levels::async_scans, &levels::direct_scans, &levels::async_reclaims,
        &levels::direct_reclaims})
    if (l.*input == activity::unknown) {
      for (const activity a : {activity::none, activity::low, activity::high}) {
        l.*input = a;
        for_each_completion(l, f);
      }
      return;
    }
  f(l);
}

/// What all completions of an assignment have in common.
struct consensus {
  rule_id rule = rule_id::unknown; ///< the one of the last completion
  bool is_one_rule = true;
  severity least = severity::critical;
  unsigned count = 0;
  void add(const finding& f) {
    is_one_rule = is_one_rule && (count == 0 || f.rule == rule);
    rule = f.rule;
    if (f.level < least) least = f.level;
    ++count;
  }
};

TEST_CASE("strict mode gives a rule exactly where all completions of the unknown give it") {
  unsigned wrong = 0, decided = 0, open = 0;
  for (unsigned i = 0; i < assignments; ++i) {
    const levels l = assignment(i);
    consensus c;
    for_each_completion(l, [&c](const levels& full) { c.add(decide_strict(full)); });
    const finding f = decide_strict(l);
    ++(c.is_one_rule ? decided : open);
    wrong += f.rule != (c.is_one_rule ? c.rule : rule_id::unknown);
  }
  CHECK(wrong == 0);
  CHECK(decided > 9 * 486);
  CHECK(open > 0);
}

TEST_CASE("total mode: what known inputs decide is said, whatever is unknown") {
  unsigned undecided_but_should = 0, contradicted = 0, partial_wrong = 0, floor_wrong = 0;
  unsigned falsely_quiet = 0;
  unsigned degraded = 0, partial = 0, complete = 0;
  for (unsigned i = 0; i < assignments; ++i) {
    const levels l = assignment(i);
    const finding f = decide_total(l);
    const bool is_degraded = f.rule == rule_id::unknown || f.rule >= rule_id::degraded_none;
    const std::size_t end = is_degraded ? std::size(total_rules) : row_of(f.rule);
    bool has_skipped = false;
    for (std::size_t r = 0; r < end; ++r)
      has_skipped = has_skipped || total_rules[r].test(l) == answer::unknown;
    partial_wrong += f.is_partial != has_skipped;
    // That there is no pressure is said only where nothing worse is possible.
    falsely_quiet += !is_degraded && f.level == severity::none && has_skipped;

    consensus c;
    for_each_completion(l, [&](const levels& full) {
      const finding whole = decide_total(full);
      c.add(whole);
      // A completion has this rule, or one in front of it that was skipped for an unknown input.
      if (!is_degraded && whole.rule != f.rule)
        contradicted += row_of(whole.rule) > row_of(f.rule) ||
                        total_rules[row_of(whole.rule)].test(l) != answer::unknown;
    });
    // All ways to fill in the unknown agree: then so does the finding, and it is not degraded.
    undecided_but_should += c.is_one_rule && f.rule != c.rule;
    // Otherwise it is no less than the least of them, and there it is exactly that.
    floor_wrong += is_degraded && f.level != c.least;
    complete += c.count == 1 && !is_degraded && !f.is_partial;
    degraded += is_degraded;
    partial += f.is_partial && !is_degraded;
  }
  CHECK(undecided_but_should == 0);
  CHECK(contradicted == 0);
  CHECK(partial_wrong == 0);
  CHECK(falsely_quiet == 0);
  CHECK(floor_wrong == 0);
  CHECK(complete == 8 * 243); // nothing unknown: never degraded, never partial
  CHECK(degraded > 0);
  CHECK(partial > 0);
}

TEST_CASE("total mode on clamped levels: the same, where levels are clamped before or after") {
  unsigned undecided_but_should = 0;
  for (unsigned i = 0; i < assignments; ++i) {
    const levels l = assignment(i);
    consensus c;
    for_each_completion(l, [&c](const levels& full) { c.add(decide_total(clamped(full))); });
    undecided_but_should += c.is_one_rule && decide_total(clamped(l)).rule != c.rule;
  }
  CHECK(undecided_but_should == 0);
}

constexpr auto skipped = [](auto check) {
  const auto rule = [](const levels& l) { return decide_total(l).rule; };
  constexpr activity none = activity::none, low = activity::low, high = activity::high;
  levels l = combination(0);
  check(rule(l) == rule_id::idle);
  l.oom_kills = answer::unknown; // not a no: nothing else says so either
  check(rule(l) == rule_id::unknown);

  l = {.deflated_unasked = answer::no, .oom_kills = answer::yes};
  check(rule(l) == rule_id::oom); // perhaps local; not for certain
  check(decide_total(l).is_partial);
  l.alloc_stalls = low; // and now for certain not
  check(!decide_total(l).is_partial);

  l = {.deflated_unasked = answer::no,
       .oom_kills = answer::no,
       .alloc_stalls = high,
       .direct_scans = low};
  check(rule(l) == rule_id::stall_local); // nothing else matters to it
  check(!decide_total(l).is_partial);
  l.direct_scans = high; // here the reclaim does
  check(decide_total(l) ==
        finding{rule_id::degraded_high, severity::high, tag::alloc_stalls, true});
  l.direct_reclaims = none;
  check(rule(l) == rule_id::thrash);
  l.oom_kills = answer::unknown;
  check(decide_total(l) ==
        finding{rule_id::thrash, severity::critical, tag::direct_reclaims, true});
};
BOTH("a rule is skipped only for an unknown input that could still decide it", skipped)

// ---- the windows of the decision table ----

/// A guest of 4 GiB and a window of two seconds in which nothing happens.
struct window {
  snapshot before, after;
  std::uint64_t elapsed = 2 * second;
  thresholds limits{};
  levels previous{};

  constexpr window() {
    for (const tag t : {tag::oom_kills, tag::alloc_stalls, tag::async_scans, tag::direct_scans,
                        tag::async_reclaims, tag::direct_reclaims})
      set(t, gib, gib);
    before.set(tag::total_memory, 4 * gib);
    after.set(tag::total_memory, 4 * gib);
  }
  constexpr window& set(tag t, std::uint64_t from, std::uint64_t to) {
    before.set(t, from);
    after.set(t, to);
    return *this;
  }
  constexpr window& add(tag t, std::uint64_t amount) {
    return set(t, before.value(t), before.value(t) + amount);
  }
  constexpr window& available(std::uint64_t bytes) {
    return set(tag::available_memory, bytes, bytes);
  }
  constexpr window& balloon(std::uint32_t from, std::uint32_t to, std::uint32_t target) {
    before.actual_pages = from;
    after.actual_pages = to;
    before.target_pages = after.target_pages = target;
    before.deflate_on_oom = after.deflate_on_oom = true;
    return *this;
  }
  constexpr verdict total() const {
    return classify(rule_set::total, before, after, elapsed, limits, previous);
  }
  constexpr verdict strict() const {
    return classify(rule_set::strict, before, after, elapsed, limits, previous);
  }
};

constexpr bool says(const verdict& v, std::string_view name_, severity level, cause because) {
  return name(v.rule) == name_ && v.level == level && v.because == because;
}

constexpr auto oom_vectors = [](auto check) {
  // Two readings of "OOM+1": without a figure for what is available the kill can't be called
  // local, so it is global; with more than a tenth available and no stall or scan it is local.
  const window w = window().add(tag::oom_kills, 1);
  check(says(w.total(), "oom", severity::critical, tag::oom_kills));
  check(w.total().is_partial && !w.total().is_oom_local);
  check(says(window(w).available(gib).total(), "oom_local", severity::high, tag::oom_kills));
  check(says(window(w).available(gib / 10).total(), "oom", severity::critical, tag::oom_kills));
  check(!window(w).available(gib / 10).total().is_partial);
  check(says(window(w).available(gib).add(tag::alloc_stalls, 1).total(), "oom", severity::critical,
             tag::oom_kills));
  // Strict mode knows one rule for all of them, and says as a flag that this one was local.
  check(says(w.strict(), "oom", severity::critical, tag::oom_kills));
  check(w.strict().rule == rule_id::strict_oom && !w.strict().is_oom_local);
  check(window(w).available(gib).strict().rule == rule_id::strict_oom);
  check(window(w).available(gib).strict().is_oom_local);
  check(window(w).available(gib).total().is_oom_local);
};
BOTH("OOM+1 is oom, and oom_local with headroom", oom_vectors)

constexpr auto thrash_vectors = [](auto check) {
  window w;
  w.add(tag::alloc_stalls, 40).add(tag::direct_scans, 40 * mib).add(tag::direct_reclaims, 4 * mib);
  check(says(w.total(), "thrash", severity::critical, tag::direct_reclaims));
  check(w.total().direct_efficiency == quantity{true, 1000});
  check(!w.total().async_efficiency.is_known);
  check(w.total().rates[tag::alloc_stalls] == change{change::outcome::known, 40, 20});
  check(w.total().rates[tag::direct_scans].per_second == 20 * mib);
  check(w.strict().rule == rule_id::strict_thrash);
  // Nothing reclaimed at all is worse, and the published rules don't speak of it.
  w.set(tag::direct_reclaims, 0, 0);
  check(says(w.total(), "thrash", severity::critical, tag::direct_reclaims));
  check(w.strict().rule == rule_id::strict_unclassified);

  w = {};
  w.add(tag::alloc_stalls, 3).add(tag::direct_scans, 40 * mib);
  check(says(w.total(), "thrash_onset", severity::high, tag::direct_reclaims));
  check(w.strict().rule == rule_id::strict_unclassified);
};
BOTH("STALL 40, DSCAN 40 MiB, DRCLM 4 MiB is thrash; STALL 3, DRCLM 0 its onset", thrash_vectors)

constexpr auto effective_vectors = [](auto check) {
  window w;
  w.add(tag::alloc_stalls, 40).add(tag::direct_scans, 40 * mib).add(tag::direct_reclaims, 36 * mib);
  check(says(w.total(), "direct_effective", severity::high, tag::direct_reclaims));
  check(w.total().rule == rule_id::direct_effective);
  check(w.total().direct_efficiency == quantity{true, 9000});
  check(w.strict().rule == rule_id::strict_direct_effective);
  const levels thrashing = window(w).set(tag::direct_reclaims, 0, 4 * mib).total().observed;
  const levels effective = w.total().observed;

  // Half is between the bounds: it holds what was, and without that is split at 0.45.
  w.set(tag::direct_reclaims, 0, 20 * mib);
  check(w.total().direct_efficiency == quantity{true, 5000});
  check(says(w.total(), "direct_effective", severity::high, tag::direct_reclaims));
  w.previous = thrashing;
  check(says(w.total(), "thrash", severity::critical, tag::direct_reclaims));
  check(w.strict().rule == rule_id::strict_thrash);
  w.previous = effective;
  check(says(w.total(), "direct_effective", severity::high, tag::direct_reclaims));

  // More reclaimed than scanned: the counters were read at different moments.
  w.set(tag::direct_reclaims, 0, 50 * mib);
  check(w.total().direct_efficiency == quantity{true, 10'000});
  check(w.total().rule == rule_id::direct_effective);

  w = {};
  w.add(tag::alloc_stalls, 3).add(tag::direct_scans, 40 * mib).add(tag::direct_reclaims, 36 * mib);
  check(says(w.total(), "direct_effective", severity::medium, tag::direct_reclaims));
  check(w.total().rule == rule_id::direct_effective_rare_stalls);
};
BOTH("DRCLM 36 of 40 MiB is direct_effective, 20 holds what was", effective_vectors)

constexpr auto stall_vectors = [](auto check) {
  window w;
  w.add(tag::alloc_stalls, 40);
  check(says(w.total(), "stall_local", severity::medium, tag::alloc_stalls));
  check(w.strict().rule == rule_id::strict_unclassified);
  // With a little direct scan and reclaim it is what the second published rule calls a cgroup.
  w.add(tag::direct_scans, mib / 2).add(tag::direct_reclaims, mib / 4);
  check(says(w.total(), "stall_local", severity::medium, tag::alloc_stalls));
  check(says(w.strict(), "cgroup_stall", severity::medium, tag::alloc_stalls));
  // Strict mode takes raw levels: an effective reclaim of a small scan is none of its rules.
  w.set(tag::direct_scans, 0, 2 * mib).set(tag::direct_reclaims, 0, 2 * mib);
  check(w.strict().observed.direct_reclaims == activity::high);
  check(w.strict().rule == rule_id::strict_unclassified);
  check(says(w.total(), "stall_local", severity::medium, tag::alloc_stalls));

  w = {};
  w.add(tag::alloc_stalls, 3);
  check(says(w.total(), "stall_rare", severity::low, tag::alloc_stalls));
};
BOTH("STALL 40, DSCAN 0 is stall_local; STALL 3 is stall_rare", stall_vectors)

constexpr auto background_vectors = [](auto check) {
  window w;
  w.add(tag::async_scans, 80 * mib).add(tag::async_reclaims, 8 * mib);
  check(says(w.total(), "reclaim_struggling", severity::medium, tag::async_reclaims));
  check(w.total().async_efficiency == quantity{true, 1000});
  check(w.strict().rule == rule_id::strict_reclaim_struggling);
  w.set(tag::async_reclaims, 0, 76 * mib);
  check(says(w.total(), "background_effective", severity::low, tag::async_reclaims));
  check(w.strict().rule == rule_id::strict_unclassified);
  w.set(tag::async_scans, 0, 8 * mib).set(tag::async_reclaims, 0, 8 * mib);
  check(says(w.total(), "background_light", severity::none, tag::async_scans));

  w = {};
  check(says(w.total(), "none", severity::none, {}));
  check(w.total().rule == rule_id::idle && !is_unknown(w.total().rule));
  check(!w.total().is_degraded && !w.total().is_partial && !w.total().has_reset);
  check(w.strict().rule == rule_id::strict_unclassified && is_unknown(w.strict().rule));

  // A large guest: 2 MiB scanned are none, and then half of them reclaimed is none too.
  w.set(tag::total_memory, 0, 64 * gib);
  w.add(tag::async_scans, 2 * mib).add(tag::async_reclaims, 2 * mib);
  check(w.total().observed.async_scans == activity::none);
  check(w.total().observed.async_reclaims == activity::high);
  check(w.total().rule == rule_id::idle);
  check(decide_total(w.total().observed).rule == rule_id::reclaim_without_scan);
};
BOTH("ASCAN 80 MiB is reclaim_struggling or background_effective; nothing is none",
     background_vectors)

constexpr auto missing_vectors = [](auto check) {
  // Two readings of "DSCAN missing -> unknown or degraded": unknown where nothing else says how
  // the guest is, degraded where the gauges do.
  window w;
  w.set(tag::direct_scans, gib, UINT64_MAX);
  check(says(w.total(), "unknown", severity::none, {}));
  check(is_unknown(w.total().rule) && w.total().is_partial && !w.total().is_degraded);
  check(w.strict().rule == rule_id::strict_unclassified); // no rule holds without a stall or scan
  check(window(w).add(tag::alloc_stalls, 40).add(tag::direct_reclaims, mib).strict().rule ==
        rule_id::unknown); // and now three may
  check(says(window(w).available(gib).total(), "degraded_none", severity::none,
             tag::available_memory));
  check(says(window(w).available(mib).total(), "degraded_critical", severity::critical,
             tag::available_memory));
  check(window(w).available(mib).total().is_degraded);
  // What is known for certain is not talked down by the gauges.
  w.add(tag::alloc_stalls, 40).available(gib);
  check(says(w.total(), "degraded_medium", severity::medium, tag::alloc_stalls));
  w.add(tag::oom_kills, 1);
  check(says(w.total(), "oom", severity::critical, tag::oom_kills));
};
BOTH("DSCAN missing is unknown, or degraded where gauges are known", missing_vectors)

constexpr auto reset_vectors = [](auto check) {
  // Two readings of "STALL 41 -> 12 -> unknown": all counters are void, or this one is. This one:
  // what the others gained since can only be too little, and an OOM kill is not to be lost.
  window w;
  w.set(tag::alloc_stalls, 41, 12);
  check(says(w.total(), "unknown", severity::none, {}));
  check(w.total().has_reset && w.strict().has_reset);
  check(w.strict().rule == rule_id::strict_unclassified); // none holds without a scan
  check(window(w).add(tag::async_scans, 80 * mib).add(tag::async_reclaims, mib).strict().rule ==
        rule_id::unknown);
  check(w.total().rates[tag::alloc_stalls].state == change::outcome::reset);
  check(w.total().observed.alloc_stalls == activity::unknown);
  w.available(gib);
  check(says(w.total(), "degraded_none", severity::none, tag::available_memory));
  w.add(tag::oom_kills, 1);
  check(says(w.total(), "oom", severity::critical, tag::oom_kills));
  check(w.total().has_reset);
};
BOTH("STALL 41 to 12 without a new epoch is a reset, and unknown", reset_vectors)

constexpr auto deflate_vectors = [](auto check) {
  window w;
  w.balloon(1000, 744, 1000);
  check(says(w.total(), "oom_deflate", severity::critical, cause::kind::actual));
  check(w.total().is_self_inflicted); // the target still asks for more
  check(w.strict().rule == rule_id::strict_unclassified);
  // A host sees it without any statistics.
  w.before.clear_values();
  w.after.clear_values();
  check(says(w.total(), "oom_deflate", severity::critical, cause::kind::actual));
  check(!w.total().is_partial);
  // Suspending empties the balloon too; then comes a reset, and a new epoch.
  ++w.after.epoch;
  check(w.total().rule == rule_id::no_baseline);
};
BOTH("actual 1000 to 744 with target 1000 and DEFLATE_ON_OOM is oom_deflate", deflate_vectors)

constexpr auto self_inflicted = [](auto check) {
  const auto is = [](std::uint32_t from, std::uint32_t to, std::uint32_t target) {
    return window().balloon(from, to, target).total().is_self_inflicted;
  };
  check(!is(1000, 1000, 1000));
  check(is(1000, 1000, 1001)); // wanted
  check(is(999, 1000, 1000));  // growing
  check(is(999, 1000, 900));
  check(!is(1000, 900, 500));
  check(!is(1000, 1000, 500));
};
BOTH("a balloon that grows or is to grow makes pressure of its own", self_inflicted)

constexpr auto no_window = [](auto check) {
  window w;
  w.add(tag::oom_kills, 1);
  w.previous = combination(7);
  w.elapsed = second / 5 - 1;
  for (const verdict& v : {w.total(), w.strict()}) {
    check(says(v, "window_too_short", severity::none, {}));
    check(is_unknown(v.rule));
    check(v.observed == w.previous); // to be kept for the next try
    check(!v.rates[tag::oom_kills].is_known());
  }
  w.elapsed = 0;
  check(w.total().rule == rule_id::window_too_short);
  w.elapsed = second / 5;
  check(w.total().rule == rule_id::oom);

  // Another epoch: nothing to compare with, and the levels start anew.
  w.after.epoch = w.before.epoch + 1;
  w.available(mib);
  for (const std::uint64_t elapsed : {std::uint64_t{0}, 2 * second}) {
    w.elapsed = elapsed;
    check(says(w.total(), "no_baseline", severity::none, {}));
    check(w.total().observed == levels{});
    check(w.strict().rule == rule_id::no_baseline);
  }
};
BOTH("a window below 0.2 s or over two epochs is refused, and says so", no_window)

constexpr auto old_guests = [](auto check) {
  // Before Linux 6.12, and other systems: tags 0 to 7.
  window w;
  w.before.clear_values();
  w.after.clear_values();
  check(w.total().rule == rule_id::unknown);
  w.set(tag::total_memory, 4 * gib, 4 * gib).available(600 * mib);
  check(says(w.total(), "degraded_low", severity::low, tag::available_memory));
  w.set(tag::major_faults, 0, 200);
  check(says(w.total(), "degraded_medium", severity::medium, tag::major_faults));
  w.set(tag::swap_in, 0, 2 * mib);
  check(says(w.total(), "degraded_high", severity::high, tag::swap_in));
  w.set(tag::swap_in, 0, 20 * mib);
  check(says(w.total(), "degraded_critical", severity::critical, tag::swap_in));
  check(w.total().is_degraded && w.total().is_partial);
  check(w.strict().rule == rule_id::unknown);
};
BOTH("a guest with older statistics gets degraded verdicts", old_guests)

constexpr auto own_size = [](auto check) {
  // The guest does not say how large it is: the host does, or the absolute floors hold.
  window w;
  w.add(tag::alloc_stalls, 40).add(tag::direct_scans, 4 * mib).add(tag::direct_reclaims, mib);
  check(w.total().rule == rule_id::stall_local);
  w.set(tag::total_memory, UINT64_MAX, UINT64_MAX);
  check(w.total().rule == rule_id::thrash);
  w.limits.host_memory = 4 * gib;
  check(w.total().rule == rule_id::stall_local);
};
BOTH("without a total the host's figure counts, and without that absolute floors", own_size)

TEST_CASE("values a guest makes up don't trap") {
  constexpr std::uint64_t values[] = {
      0, 1, 4096, std::uint64_t{1} << 32, std::uint64_t{1} << 44, UINT64_MAX - 1, UINT64_MAX};
  unsigned known = 0;
  for (const std::uint64_t from : values)
    for (const std::uint64_t to : values)
      for (const std::uint64_t elapsed : {second / 5, 2 * second, UINT64_MAX}) {
        window w;
        w.elapsed = elapsed;
        for (const statistic_info& row : statistic_table) w.set(row.tag, from, to);
        w.after.actual_pages = UINT32_MAX;
        const verdict v = w.total();
        known += !is_unknown(v.rule);
        CHECK(v.level <= severity::critical);
        CHECK(v.direct_efficiency.value <= 10'000);
      }
  CHECK(known > 0);
}

} // namespace
