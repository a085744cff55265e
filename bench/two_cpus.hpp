// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <sched.h>
#include <sys/resource.h>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

/// What the benches across two CPUs share: where their threads run, how long, and the unit that
/// explains their figures.
namespace bench {

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

/// Tells the CPU that this loop waits.
inline void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

/// Repeats `round` in chunks of `chunk` for about `nanoseconds`, after a quarter of that to warm
/// up. Nanoseconds per round.
template <class Round>
[[nodiscard]] double time_of(std::int64_t nanoseconds, std::uint32_t chunk, Round&& round) {
  using clock = std::chrono::steady_clock;
  const auto since = [](clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(clock::now() - start).count();
  };
  const auto repeat = [&](std::int64_t until) {
    const auto start = clock::now();
    std::uint64_t rounds = 0;
    std::int64_t now = 0;
    for (; now < until; now = since(start), rounds += chunk)
      for (std::uint32_t i = 0; i < chunk; ++i) round();
    return static_cast<double>(now) / static_cast<double>(rounds);
  };
  (void)repeat(nanoseconds / 4);
  return repeat(nanoseconds);
}

/// The unit: one cache line to the other CPU and back, each way by a compare-and-swap.
[[nodiscard]] inline double compare_and_swap(const two_cpus& cpus, std::int64_t nanoseconds) {
  alignas(128) std::atomic<std::uint32_t> line = 0;
  const loop_on_cpu other(cpus.second(), [&line] {
    std::uint32_t there = 1;
    line.compare_exchange_strong(there, 0);
  });
  return time_of(nanoseconds, 64, [&line] {
    // Has the other one put it back? Then there once more.
    for (std::uint32_t back = 0; !line.compare_exchange_strong(back, 1);) back = 0;
  });
}

/// How often something else took a CPU from this process.
[[nodiscard]] inline long interruptions() noexcept {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_nivcsw;
}

/// The value of `sample()` that was interrupted least, of up to ten; the first that was not at all,
/// or once in a while.
template <class Sample> [[nodiscard]] auto undisturbed(Sample&& sample) {
  long before = interruptions();
  auto best = sample();
  long least = interruptions() - before;
  for (int tries = 1; least > 1 && tries < 10; ++tries) {
    before = interruptions();
    const auto again = sample();
    const long now = interruptions() - before;
    if (now >= least) continue;
    best = again;
    least = now;
  }
  return best;
}

/// A sample of something across both CPUs, and of the unit around it.
struct sample_and_unit {
  double nanoseconds = 0, unit = 0;
};

/// Takes one between two of the unit. Where these differ the host moved a CPU, and the sample would
/// say nothing: it is taken again, a few times.
template <class Sample>
[[nodiscard]] sample_and_unit beside_unit(const two_cpus& cpus, std::int64_t nanoseconds,
                                          Sample&& sample) {
  for (int tries = 0;; ++tries) {
    const double before = undisturbed([&] { return compare_and_swap(cpus, nanoseconds / 4); });
    const double value = undisturbed(sample);
    const double after = undisturbed([&] { return compare_and_swap(cpus, nanoseconds / 4); });
    const double least = before < after ? before : after, most = before < after ? after : before;
    if (most < 1.25 * least || tries == 8) return {value, (before + after) / 2};
  }
}

} // namespace bench
