// SPDX-License-Identifier: BSD-3-Clause

// How the published rules of the strict mode map to the findings of the total mode, over all 486
// combinations of levels: OOM kills or none, and five inputs that are none, low or high.

#include <ballast/balloon/pressure.hpp>

#include <cstdio>

using namespace ballast::balloon;

namespace {

/// Calls with each of the 486 combinations.
template <class F> void for_each_combination(answer deflated, answer headroom, F f) {
  constexpr activity all[] = {activity::none, activity::low, activity::high};
  for (const answer oom : {answer::no, answer::yes})
    for (const activity stall : all)
      for (const activity async_scan : all)
        for (const activity direct_scan : all)
          for (const activity async_reclaim : all)
            for (const activity direct_reclaim : all)
              f(levels{deflated, oom, headroom, stall, async_scan, direct_scan, async_reclaim,
                       direct_reclaim});
}

/// The column of a finding of the strict mode: R1 to R5, and the last one for all else.
std::size_t column_of(rule_id strict) {
  std::size_t i = 0;
  while (i < std::size(strict_rules) && strict_rules[i].rule != strict) ++i;
  return i;
}
constexpr std::size_t columns = std::size(strict_rules) + 1;

/// Prints one map; how many combinations it is about.
unsigned print(const char* title, answer deflated, answer headroom) {
  unsigned counts[std::size(rule_table)][columns] = {};
  unsigned all = 0;
  for_each_combination(deflated, headroom, [&](const levels& l) {
    const rule_id total = decide_total(l).rule;
    const auto row = static_cast<std::size_t>(&find_rule(total) - rule_table);
    ++counts[row][column_of(decide_strict(l).rule)];
    ++all;
  });

  std::printf("%s\n%-5s%-22s%-10s", title, "", "total \\ strict", "severity");
  for (const pressure_rule& r : strict_rules) std::printf("%5s", id(r.rule));
  std::printf("%5s\n", id(rule_id::strict_unclassified));
  for (const pressure_rule& r : total_rules) {
    const rule_info& info = find_rule(r.rule);
    unsigned(&row)[columns] = counts[&info - rule_table];
    unsigned sum = 0;
    for (const unsigned n : row) sum += n;
    if (sum == 0) continue;
    std::printf("%-5s%-22s%-10s", info.id, info.name, name(r.level));
    for (unsigned& n : row) {
      if (n == 0)
        std::printf("%5s", ".");
      else
        std::printf("%5u", n);
      n = 0; // a rule of two rows is printed once
    }
    std::printf("\n");
  }
  std::printf("\n");
  return all;
}

} // namespace

int main() {
  std::printf(
      "The five rules: R1 %s, R2 %s, R3 %s, R4 %s, R5 %s; R- is everything else.\n"
      "T15 is met on raw levels only: classify() takes a reclaim above its scan for equal.\n"
      "\n",
      name(strict_rules[0].rule), name(strict_rules[1].rule), name(strict_rules[2].rule),
      name(strict_rules[3].rule), name(strict_rules[4].rule));
  unsigned all = print("All combinations:", answer::no, answer::no);
  all += print("The exception T1b, where more than a tenth of memory is available:", answer::no,
               answer::yes);
  all +=
      print("The exception R0, where the balloon shrank without having been asked to:", answer::yes,
            answer::no);
  return all == 3 * 486 ? 0 : 1;
}
