// SPDX-License-Identifier: BSD-3-Clause
//
// What two snapshots of a guest's statistics say about it.

#include <ballast/ballast.hpp>

#include <cstdint>
#include <cstdio>

using namespace ballast;
using balloon::statistic_tag;

namespace {

/// Stands in for device.request_statistics(), the guest's answer, device.take_statistics(now).
balloon::snapshot poll_guest(std::uint64_t now, std::uint64_t stalls, std::uint64_t scanned,
                             std::uint64_t reclaimed) {
  balloon::snapshot s;
  s.received_at = now;
  s.set(statistic_tag::total_memory, 4ull << 30);
  s.set(statistic_tag::available_memory, 200ull << 20);
  s.set(statistic_tag::oom_kills, 0);
  s.set(statistic_tag::alloc_stalls, stalls);
  s.set(statistic_tag::async_scans, 0);
  s.set(statistic_tag::async_reclaims, 0);
  s.set(statistic_tag::direct_scans, scanned);
  s.set(statistic_tag::direct_reclaims, reclaimed);
  return s;
}

} // namespace

int main() {
  // README
  balloon::levels previous;
  balloon::snapshot before = poll_guest(0, 100, 0, 0);
  const balloon::snapshot after = poll_guest(2'000'000'000, 140, 40 << 20, 4 << 20);
  const std::uint64_t elapsed = after.received_at - before.received_at; // nanoseconds
  const balloon::verdict v =
      balloon::classify(balloon::rule_set::total, before, after, elapsed, {}, previous);
  std::printf("%s: %s, because of %s\n", name(v.level), name(v.rule), name(v.because));
  previous = v.observed; // for the next window
  before = after;
  // end
  return v.rule == balloon::rule_id::thrash ? 0 : 1;
}
