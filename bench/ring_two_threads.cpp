// SPDX-License-Identifier: BSD-3-Clause
// What does a buffer cost that goes to another CPU and back? Both sides poll; nobody is notified.
// The unit that explains it: one cache line there and back.

#include "round_trip.hpp"

#include <benchmark/benchmark.h>

#include <atomic>
#include <cstdint>
#include <sched.h>
#include <thread>

namespace {

using namespace bench;

/// Two CPUs that this process may use; the caller stays on the first one while it lives.
class two_cpus {
 public:
  two_cpus() {
    if (sched_getaffinity(0, sizeof(all_), &all_) != 0) return;
    int found = 0;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE && found < 2; ++cpu)
      if (CPU_ISSET(cpu, &all_)) cpus_[found++] = cpu;
    has_both_ = found == 2;
    if (has_both_) pin(cpus_[0]);
  }
  ~two_cpus() {
    if (has_both_) sched_setaffinity(0, sizeof(all_), &all_);
  }
  two_cpus(const two_cpus&) = delete;
  two_cpus& operator=(const two_cpus&) = delete;

  [[nodiscard]] bool has_both() const { return has_both_; }
  [[nodiscard]] unsigned second() const { return cpus_[1]; }

  static void pin(unsigned cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof(one), &one);
  }

 private:
  cpu_set_t all_{};
  unsigned cpus_[2]{};
  bool has_both_ = false;
};

/// Runs `step` over and over on `cpu` until it is destroyed.
template <class Step> class loop_on_cpu {
 public:
  loop_on_cpu(unsigned cpu, Step step)
      : thread_([this, cpu, step] {
          two_cpus::pin(cpu);
          while (!should_end_.load(std::memory_order_relaxed)) step();
        }) {}
  ~loop_on_cpu() {
    should_end_.store(true, std::memory_order_relaxed);
    thread_.join();
  }
  loop_on_cpu(const loop_on_cpu&) = delete;
  loop_on_cpu& operator=(const loop_on_cpu&) = delete;

 private:
  alignas(128) std::atomic<bool> should_end_ = false;
  alignas(128) std::thread thread_;
};

void compare_and_swap(benchmark::State& state) {
  const two_cpus cpus;
  if (!cpus.has_both()) return state.SkipWithError("needs two CPUs");
  alignas(128) std::atomic<std::uint32_t> line = 0;
  const loop_on_cpu other(cpus.second(), [&line] {
    std::uint32_t there = 1;
    line.compare_exchange_strong(there, 0);
  });
  for ([[maybe_unused]] auto _ : state) {
    // Has the other one put it back? Then there once more.
    for (std::uint32_t back = 0; !line.compare_exchange_strong(back, 1);) back = 0;
  }
  state.SetItemsProcessed(state.iterations());
  state.SetLabel("round trip");
}

void two_threads(benchmark::State& state) {
  const two_cpus cpus;
  if (!cpus.has_both()) return state.SkipWithError("needs two CPUs");
  static two_regions guest;
  static driver_side driver(guest);
  static device_side<access_by::address> device(guest);
  const auto batch = static_cast<std::uint32_t>(state.range(0));
  {
    const loop_on_cpu other(cpus.second(), [batch] {
      if (device.consume(batch) != 0) device.publish();
    });
    for ([[maybe_unused]] auto _ : state) {
      while (driver.room() < batch) driver.reclaim(queue_size);
      driver.add(batch);
      driver.publish();
    }
    while (driver.room() < queue_size) driver.reclaim(queue_size);
  }
  if (driver.failures + device.failures != 0) state.SkipWithError("a round went wrong");
  state.SetItemsProcessed(state.iterations() * state.range(0));
  state.SetLabel("buffer");
}

BENCHMARK(compare_and_swap)->Name("two CPUs, one cache line there and back")->UseRealTime();
BENCHMARK(two_threads)
    ->Name("two CPUs, to the device and back, batch")
    ->Arg(1)
    ->Arg(32)
    ->Arg(64)
    ->UseRealTime();

} // namespace
