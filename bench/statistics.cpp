// SPDX-License-Identifier: BSD-3-Clause
// What does it cost to read a statistics buffer: 160 bytes, all 16 tags?

#include <ballast/balloon/statistics.hpp>

#include <benchmark/benchmark.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast::balloon;

void parse(benchmark::State& state) {
  std::byte bytes[160]{};
  statistics_writer<std::endian::little> writer(bytes);
  for (std::uint16_t tag = 0; tag < 16; ++tag)
    if (!writer.add(static_cast<statistic_tag>(tag), 4096u * tag)) state.SkipWithError("no room");
  snapshot read;
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(bytes);
    const auto report = parse_statistics<std::endian::little>(std::span(bytes), read);
    if (report.entries != 16) state.SkipWithError("not all entries were read");
    benchmark::DoNotOptimize(read);
  }
  state.SetItemsProcessed(state.iterations());
  state.SetLabel("buffer");
}

BENCHMARK(parse)->Name("statistics, read 160 bytes");

} // namespace
