// SPDX-License-Identifier: BSD-3-Clause
//
// What free page hints are for: a pre-copy migration, simulated, that does not send the pages which
// the guest does not use. --help explains the options; the parts are in migration/.

#include "migration/options.hpp"
#include "migration/report.hpp"
#include "migration/run.hpp"

#include <cstdio>
#include <string>
#include <vector>

using namespace migration;
using ballast::balloon::hint_release;

int main(int count, char** arguments) {
  const options chosen = parse_options(count, arguments);
  const method methods[] = {{"none"},
                            {"held", true, hint_release::when_used, 0},
                            {"released early", true, hint_release::early, 0},
                            {"DONE delayed", true, hint_release::when_used, 200}};
  std::vector<outcome> outcomes;
  int status = 0;
  for (const method& how : methods) {
    outcomes.push_back(run(how, chosen.memory, chosen.dirty_rate, chosen.seed).migrate());
    const outcome& o = outcomes.back();
    std::string wrong = o.failure;
    if (o.pages_lost != 0) wrong = std::to_string(o.pages_lost) + " pages differ";
    if (wrong.empty()) continue;
    std::fprintf(stderr, "migration: hints %s: %s\n", how.name, wrong.c_str());
    status = 1;
  }
  chosen.is_json ? print_json(chosen, methods, outcomes) : print_table(chosen, methods, outcomes);
  if (!chosen.svg.empty()) {
    if (const std::string wrong = draw(chosen.svg, methods, outcomes); !wrong.empty()) {
      std::fprintf(stderr, "migration: %s\n", wrong.c_str());
      status = 1;
    }
  }
  return std::fflush(stdout) == 0 ? status : 1;
}
