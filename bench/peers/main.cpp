// SPDX-License-Identifier: BSD-3-Clause
// Usage: peer NAME MILLISECONDS
//
// One sample of each figure of one ring, as a line of JSON: nanoseconds per buffer.

#include "../two_cpus.hpp"
#include "peer.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

using namespace bench;

constexpr std::uint32_t wide = 32; // buffers in a batch

std::uint64_t lost = 0; // buffers that did not come through

/// Both sides in one thread, each of which asks whether to notify.
double one_thread(std::int64_t nanoseconds, std::uint32_t batch) {
  return time_of(nanoseconds, 64,
                 [=] {
                   driver_add(batch, 1);
                   lost += device_consume(batch, 1) != batch;
                   lost += driver_reclaim(batch) != batch;
                 }) /
         batch;
}

/// Each side on a CPU of its own; both poll, nobody asks.
double two_threads(const two_cpus& cpus, std::int64_t nanoseconds, std::uint32_t batch) {
  double per_batch = 0;
  {
    const loop_on_cpu other(cpus.second(), [=] {
      if (device_consume(batch, 0) == 0) relax();
    });
    per_batch = time_of(nanoseconds, 32, [=] {
      while (driver_room() < batch)
        if (driver_reclaim(peer_queue_size) == 0) relax();
      driver_add(batch, 0);
    });
    while (driver_room() < peer_queue_size) driver_reclaim(peer_queue_size);
  }
  return per_batch / batch;
}

} // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fputs("usage: peer NAME MILLISECONDS\n", stderr);
    return 2;
  }
  const std::int64_t nanoseconds = std::strtoll(arguments[2], nullptr, 10) * 1'000'000;
  const two_cpus cpus;
  if (!cpus.has_both() || driver_start() != 0 || device_start() != 0) {
    std::fprintf(stderr, "%s does not start, or there are no two CPUs\n", arguments[1]);
    return 1;
  }
  const double one_1 = undisturbed([=] { return one_thread(nanoseconds, 1); });
  const double one_32 = undisturbed([=] { return one_thread(nanoseconds, wide); });
  const sample_and_unit two_32 =
      beside_unit(cpus, nanoseconds, [&] { return two_threads(cpus, nanoseconds, wide); });
  if (lost + driver_failures() + device_failures() != 0) {
    std::fprintf(stderr, "%s: a round went wrong\n", arguments[1]);
    return 1;
  }
  std::printf("{\"ring\": \"%s\", \"one_1\": %.3f, \"one_32\": %.3f, \"two_32\": %.3f, "
              "\"unit\": %.3f}\n",
              arguments[1], one_1, one_32, two_32.nanoseconds, two_32.unit);
}
