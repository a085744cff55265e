// SPDX-License-Identifier: BSD-3-Clause
// What does it cost to join the PFNs of an inflate buffer into ranges? 256 of them, as Linux sends.

#include <ballast/balloon/page_ranges.hpp>

#include <benchmark/benchmark.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace {

using namespace ballast::balloon;

constexpr std::size_t count = 256;
using pfns = std::array<std::uint32_t, count>;

pfns ascending() {
  pfns made{};
  for (std::size_t i = 0; i < count; ++i) made[i] = static_cast<std::uint32_t>(0x10'0000 + i);
  return made;
}
pfns descending() {
  pfns made{};
  for (std::size_t i = 0; i < count; ++i) made[i] = static_cast<std::uint32_t>(0x10'0000 - i);
  return made;
}
/// Anywhere in 4 GiB, the same in every run.
pfns random() {
  pfns made{};
  std::uint32_t x = 1;
  for (std::uint32_t& pfn : made) {
    x = x * 1664525 + 1013904223;
    pfn = x >> 12;
  }
  return made;
}

void join(benchmark::State& state, pfns (*make)()) {
  pfns given = make();
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(given);
    std::uint64_t ranges = 0, pages = 0;
    const auto sink = [&](page_range r) {
      ++ranges;
      pages += r.count;
    };
    page_range_builder builder;
    for (const std::uint32_t pfn : given) builder.add(pfn, sink);
    builder.finish(sink);
    benchmark::DoNotOptimize(ranges);
    if (pages != count) state.SkipWithError("pages were lost");
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(count));
  state.SetLabel("PFN");
}

BENCHMARK_CAPTURE(join, ascending, ascending)->Name("PFNs to ranges, ascending");
BENCHMARK_CAPTURE(join, descending, descending)->Name("PFNs to ranges, descending");
BENCHMARK_CAPTURE(join, random, random)->Name("PFNs to ranges, random");

} // namespace
