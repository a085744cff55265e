// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "options.hpp"
#include "run.hpp"

#include <cinttypes>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

namespace migration {

[[nodiscard]] inline double mebibytes(std::uint64_t pages) {
  return static_cast<double>(pages * page_size) / (1 << 20);
}

inline void print_table(const options& chosen, std::span<const method> methods,
                        std::span<const outcome> outcomes) {
  std::printf("%" PRIu64 " MiB of memory, written to at %" PRIu64 " MiB/s, seed %" PRIu64 "\n\n",
              chosen.memory >> 20, chosen.dirty_rate >> 20, chosen.seed);
  std::printf("%-14s %8s %7s %7s %9s %9s %9s %10s %8s %9s %6s\n", "", "sent", "rounds", "time",
              "downtime", "not sent", "too late", "reclaimed", "of them", "held", "lost");
  std::printf("%-14s %8s %7s %7s %9s %9s %9s %10s %8s %9s %6s\n", "hints", "MiB", "", "ms", "ms",
              "MiB", "hints", "blocks", "early", "ms after", "pages");
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const outcome& o = outcomes[i];
    std::printf("%-14s %8.1f %7" PRIu64 " %7" PRIu64 " %9" PRIu64 " %9.1f %9" PRIu64 " %10" PRIu64
                " %8" PRIu64 " %9" PRIu64 " %6" PRIu64 "\n",
                methods[i].name, mebibytes(o.pages_sent), o.rounds, o.ticks, o.downtime_ticks,
                mebibytes(o.pages_hinted), o.ignored_hints, o.reclaimed, o.reclaimed_early,
                o.held_ticks, o.pages_lost);
  }
}

inline void print_json(const options& chosen, std::span<const method> methods,
                       std::span<const outcome> outcomes) {
  std::printf("{\"memory_bytes\": %" PRIu64 ", \"dirty_bytes_per_second\": %" PRIu64
              ", \"seed\": %" PRIu64 ", \"runs\": [",
              chosen.memory, chosen.dirty_rate, chosen.seed);
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const outcome& o = outcomes[i];
    const auto member = [](const char* name, std::uint64_t value) {
      std::printf(", \"%s\": %" PRIu64, name, value);
    };
    std::printf("%s{\"name\": \"%s\"", i == 0 ? "" : ", ", methods[i].name);
    member("bytes_sent", o.pages_sent * page_size);
    member("rounds", o.rounds);
    member("milliseconds", o.ticks);
    member("downtime_milliseconds", o.downtime_ticks);
    member("bytes_hinted", o.pages_hinted * page_size);
    member("ignored_hints", o.ignored_hints);
    member("blocks_reclaimed", o.reclaimed);
    member("blocks_reclaimed_early", o.reclaimed_early);
    member("blocks_denied", o.denied);
    member("held_milliseconds", o.held_ticks);
    member("pages_lost", o.pages_lost);
    std::printf("}");
  }
  std::printf("]}\n");
}

/// Two charts as gnuplot wants them: what there is to send, and what the guest does without.
inline void write_plot(std::FILE* to, const std::string& file, std::span<const method> methods,
                       std::span<const outcome> outcomes) {
  std::string quoted;
  for (const char c : file) quoted += c == '\'' ? std::string("''") : std::string(1, c);
  std::fprintf(to,
               "set terminal svg size 800,640 background 'white'\nset output '%s'\n"
               "set multiplot layout 2,1\nset grid\nset xlabel 'ms'\nset yrange [0:]\n"
               "set key outside title 'hints'\n",
               quoted.c_str());
  const auto chart = [&](const char* label, std::vector<std::size_t> outcome::* pages) {
    std::fprintf(to, "set ylabel '%s'\nplot", label);
    for (std::size_t i = 0; i < methods.size(); ++i) // dashed: some lie upon each other
      std::fprintf(to, "%s '-' with lines lw 2 dt %zu title '%s'", i == 0 ? "" : ",", i + 1,
                   methods[i].name);
    std::fprintf(to, "\n");
    for (const outcome& o : outcomes) {
      for (std::size_t i = 0; i < (o.*pages).size(); ++i)
        std::fprintf(to, "%zu %.3f\n", i, mebibytes((o.*pages)[i]));
      std::fprintf(to, "e\n");
    }
  };
  chart("MiB to send", &outcome::pending);
  chart("MiB hinted and not back", &outcome::hinted);
  std::fprintf(to, "unset multiplot\n");
}

/// Draws the charts with gnuplot; what went wrong, or nothing.
[[nodiscard]] inline std::string draw(const std::string& file, std::span<const method> methods,
                                      std::span<const outcome> outcomes) {
  if (std::system("command -v gnuplot > /dev/null 2>&1") != 0)
    return "--svg needs gnuplot: apt-get install gnuplot-nox";
  if (std::FILE* const to = std::fopen(file.c_str(), "w"))
    (void)std::fclose(to);
  else
    return file + ": can't be written";
  (void)std::signal(SIGPIPE, SIG_IGN); // gnuplot may give up first: pclose says so
  std::FILE* const gnuplot = popen("gnuplot", "w");
  if (gnuplot == nullptr) return "gnuplot does not start";
  write_plot(gnuplot, file, methods, outcomes);
  return pclose(gnuplot) == 0 ? std::string() : "gnuplot failed";
}

} // namespace migration
