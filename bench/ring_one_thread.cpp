// SPDX-License-Identifier: BSD-3-Clause
// What does a buffer cost that goes to the device and back, both sides in one thread?

#include "round_trip.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>

namespace {

using namespace bench;

template <class Format, access_by By> void one_thread(benchmark::State& state) {
  static two_regions guest;
  static driver_side<Format> driver(guest);
  static device_side<Format, By> device(guest);
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  for ([[maybe_unused]] auto _ : state) round_trip(driver, device, batch);
  if (driver.failures + device.failures != 0) state.SkipWithError("a round went wrong");
  state.SetItemsProcessed(state.iterations() * state.range(0));
  state.SetLabel("buffer");
}

BENCHMARK(one_thread<split_format, access_by::address>)
    ->Name("one thread, to the device and back, batch")
    ->Arg(1)
    ->Arg(32)
    ->Arg(256);
BENCHMARK(one_thread<split_format, access_by::pointer>)
    ->Name("one thread, each buffer resolved, batch")
    ->Arg(1)
    ->Arg(32)
    ->Arg(256);
BENCHMARK(one_thread<packed_format, access_by::address>)
    ->Name("one thread, packed, to the device and back, batch")
    ->Arg(1)
    ->Arg(32)
    ->Arg(256);

} // namespace
