// SPDX-License-Identifier: BSD-3-Clause
// What does a verdict on two snapshots cost?

#include <ballast/balloon/pressure.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>

namespace {

using namespace ballast::balloon;

constexpr std::uint64_t gib = std::uint64_t{1} << 30;
constexpr std::uint64_t second = 1'000'000'000;

/// A guest of 4 GiB after `seconds` in which it did nothing, or in which it reclaimed.
snapshot after(std::uint64_t seconds, bool is_busy) {
  snapshot s;
  s.received_at = seconds * second;
  for (std::uint16_t tag = 0; tag < statistic_count; ++tag)
    s.set(static_cast<statistic_tag>(tag), is_busy ? seconds * 100'000'000 : 0);
  s.set(statistic_tag::total_memory, 4 * gib);
  s.set(statistic_tag::free_memory, gib);
  s.set(statistic_tag::available_memory, 2 * gib);
  s.set(statistic_tag::disk_caches, gib);
  s.set(statistic_tag::oom_kills, 0);
  return s;
}

void judge(benchmark::State& state, rule_set rules, bool is_busy) {
  snapshot before = after(1, is_busy), now = after(3, is_busy);
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(before);
    benchmark::DoNotOptimize(now);
    verdict v = classify(rules, before, now, now.received_at - before.received_at);
    benchmark::DoNotOptimize(v);
  }
  const verdict v = classify(rules, before, now, now.received_at - before.received_at);
  if (rules == rule_set::total && is_unknown(v.rule)) state.SkipWithError("no verdict");
  state.SetItemsProcessed(state.iterations());
  state.SetLabel("verdict");
}

BENCHMARK_CAPTURE(judge, total_idle, rule_set::total, false)
    ->Name("classify, all rules, idle guest");
BENCHMARK_CAPTURE(judge, total_busy, rule_set::total, true)
    ->Name("classify, all rules, busy guest");
BENCHMARK_CAPTURE(judge, strict_busy, rule_set::strict, true)
    ->Name("classify, published rules, busy guest");

} // namespace
