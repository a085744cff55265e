// SPDX-License-Identifier: BSD-3-Clause
// Usage: ring_two_threads [--quick]
//
// What does a buffer cost that goes to another CPU and back? Three questions: throughput and round
// trip with both sides polling and nobody notified, and the time of one buffer where both sides
// sleep on an eventfd. The unit of the first two is one cache line there and back by
// compare-and-swap, taken just before and just after each sample: what a host does with its CPUs
// changes both.

#include "round_trip.hpp"
#include "two_cpus.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

using namespace bench;
namespace feature = ballast::feature;

constexpr ballast::feature_set plain{feature::version_1};
constexpr ballast::feature_set in_order{feature::version_1, feature::in_order};

struct settings {
  int passes = 15;
  std::int64_t nanoseconds = 15'000'000; // of a sample
  std::uint64_t buffers = 10'000;        // of a sample of tails
};

/// Both sides of a ring, new for every sample.
template <class Format> struct pair {
  explicit pair(const ballast::feature_set& features)
      : driver(guest, features), device(guest, features) {}
  [[nodiscard]] bool is_good() const { return driver.failures + device.failures == 0; }

  two_regions guest;
  driver_side<Format> driver;
  device_side<Format, access_by::address> device;
};

constexpr double went_wrong = -1;

/// Nanoseconds per buffer where the driver keeps the ring as full as it can, `batch` at a time, and
/// takes buffers back only to make room. `asks`: each side asks whether to notify.
template <class Format>
double throughput(const two_cpus& cpus, const settings& of, const ballast::feature_set& features,
                  std::uint32_t batch, bool asks) {
  const auto ring = std::make_unique<pair<Format>>(features);
  auto* const driver = &ring->driver;
  auto* const device = &ring->device;
  double per_batch = 0;
  {
    const loop_on_cpu other(cpus.second(), [=] {
      if (device->consume_chains(batch) == 0)
        relax();
      else if (asks)
        device->ask_whether_to_notify();
      else
        device->publish();
    });
    per_batch = time_of(of.nanoseconds, 32, [=] {
      while (driver->room() < batch)
        if (driver->reclaim(queue_size) == 0) relax();
      driver->add(batch);
      if (asks)
        driver->ask_whether_to_notify();
      else
        driver->publish();
    });
    while (driver->room() < queue_size) driver->reclaim(queue_size);
  }
  return ring->is_good() ? per_batch / batch : went_wrong;
}

/// Nanoseconds from one buffer to the next where only one is on its way.
template <class Format> double round_trip_of_one(const two_cpus& cpus, const settings& of) {
  const auto ring = std::make_unique<pair<Format>>(plain);
  auto* const driver = &ring->driver;
  auto* const device = &ring->device;
  double each = 0;
  {
    const loop_on_cpu other(cpus.second(), [=] {
      if (device->consume(1) == 0)
        relax();
      else
        device->publish();
    });
    each = time_of(of.nanoseconds, 64, [=] {
      driver->add(1);
      driver->publish();
      while (driver->reclaim(1) == 0) relax();
    });
  }
  return ring->is_good() ? each : went_wrong;
}

/// An eventfd that one side sleeps on.
class bell {
 public:
  bell() : file_(eventfd(0, 0)) {}
  ~bell() { close(file_); }
  bell(const bell&) = delete;
  bell& operator=(const bell&) = delete;

  void ring() {
    const std::uint64_t one = 1;
    if (write(file_, &one, sizeof one) != sizeof one) std::perror("eventfd");
  }
  void sleep() {
    std::uint64_t rings;
    if (read(file_, &rings, sizeof rings) != sizeof rings) std::perror("eventfd");
  }

 private:
  int file_;
};

/// Of many buffers, from `add` to their return.
struct tails {
  std::vector<double> nanoseconds;
  std::uint64_t to_device = 0, to_driver = 0; ///< notifications
};

/// The driver keeps `outstanding` buffers on their way; each side sleeps when it finds nothing.
template <class Format>
bool sleep_and_wake(const two_cpus& cpus, const settings& of, std::uint32_t outstanding,
                    tails& to) {
  using clock = std::chrono::steady_clock;
  const auto ring = std::make_unique<pair<Format>>(usual_features);
  auto& driver = ring->driver;
  auto& device = ring->device;
  bell for_device, for_driver;
  std::atomic<bool> should_end = false;
  std::uint64_t to_driver = 0;
  std::thread other([&] {
    two_cpus::pin(cpus.second());
    while (!should_end.load(std::memory_order_relaxed)) {
      if (device.consume_chains(outstanding) == 0) {
        if (device.may_sleep()) for_device.sleep();
      } else if (device.should_notify()) {
        ++to_driver;
        for_driver.ring();
      }
    }
  });
  std::vector<clock::time_point> added(of.buffers);
  std::uint64_t sent = 0, back = 0;
  while (back < of.buffers) {
    while (sent < of.buffers && sent - back < outstanding) {
      added[sent++] = clock::now();
      driver.add(1);
    }
    if (driver.should_notify()) {
      ++to.to_device;
      for_device.ring();
    }
    std::uint32_t came = 0;
    do {
      came = driver.reclaim_each([&](std::uint64_t token) {
        const std::chrono::duration<double, std::nano> took = clock::now() - added[token];
        to.nanoseconds.push_back(took.count());
      });
      if (came == 0 && driver.may_sleep()) for_driver.sleep();
    } while (came == 0);
    back += came;
  }
  should_end.store(true, std::memory_order_relaxed);
  for_device.ring();
  other.join();
  to.to_driver += to_driver;
  return ring->is_good();
}

/// The value that `part` of the values lie below; they are sorted.
double quantile(const std::vector<double>& values, double part) {
  return values[static_cast<std::size_t>(part * static_cast<double>(values.size() - 1))];
}

struct figure {
  const char* name;
  double goal, aim; ///< in units; 0: none
  std::function<double()> sample;
  std::vector<double> nanoseconds{}, units{};
};

/// One sample of each in turn, over and over. False if one went wrong.
bool measure(const two_cpus& cpus, const settings& of, std::vector<figure>& figures,
             std::vector<double>& unit) {
  for (int pass = 0; pass < of.passes; ++pass) {
    std::fprintf(stderr, "pass %d of %d ...\n", pass + 1, of.passes);
    for (figure& f : figures) {
      const sample_and_unit took = beside_unit(cpus, of.nanoseconds, f.sample);
      if (took.nanoseconds == went_wrong) {
        std::fprintf(stderr, "%s: a round went wrong\n", f.name);
        return false;
      }
      unit.push_back(took.unit);
      f.nanoseconds.push_back(took.nanoseconds);
      f.units.push_back(took.nanoseconds / took.unit);
    }
  }
  return true;
}

void print(const char* name, std::vector<double> values) {
  std::sort(values.begin(), values.end());
  std::printf("%-46s %7.1f %7.1f-%-7.1f", name, quantile(values, 0.5), quantile(values, 0.25),
              quantile(values, 0.75));
}

void print(figure& f) {
  print(f.name, f.nanoseconds);
  std::sort(f.units.begin(), f.units.end());
  std::printf(" %7.3f %6.3f-%-6.3f", quantile(f.units, 0.5), quantile(f.units, 0.25),
              quantile(f.units, 0.75));
  if (f.goal != 0) std::printf(" %6.2f %6.2f", f.goal, f.aim);
  std::printf("\n");
}

void print(const char* name, std::uint32_t outstanding, tails& of) {
  std::sort(of.nanoseconds.begin(), of.nanoseconds.end());
  const auto per_thousand = [&](std::uint64_t count) {
    return 1000 * static_cast<double>(count) / static_cast<double>(of.nanoseconds.size());
  };
  std::printf("%-34s %11u %8.2f %8.2f %8.2f %10.0f %10.0f\n", name, outstanding,
              quantile(of.nanoseconds, 0.5) / 1000, quantile(of.nanoseconds, 0.99) / 1000,
              quantile(of.nanoseconds, 0.999) / 1000, per_thousand(of.to_device),
              per_thousand(of.to_driver));
}

} // namespace

int main(int count, char** arguments) {
  settings of;
  if (count == 2 && std::strcmp(arguments[1], "--quick") == 0) {
    of = {1, 1'000'000, 1000};
  } else if (count != 1) {
    std::fputs("usage: ring_two_threads [--quick]\n", stderr);
    return 2;
  }
  const two_cpus cpus;
  if (!cpus.has_both()) {
    std::puts("two CPUs: needs two CPUs");
    return 0;
  }

  std::vector<double> unit;
  std::vector<figure> figures{
      {"split, batch 32", 0.12, 0.09,
       [&] { return throughput<split_format>(cpus, of, plain, 32, false); }},
      {"split, batch 32, EVENT_IDX, both ask", 0.14, 0.11,
       [&] { return throughput<split_format>(cpus, of, usual_features, 32, true); }},
      {"split, batch 32, IN_ORDER", 0.10, 0.08,
       [&] { return throughput<split_format>(cpus, of, in_order, 32, false); }},
      {"packed, batch 32", 0, 0,
       [&] { return throughput<packed_format>(cpus, of, plain, 32, false); }},
      {"packed, batch 64, IN_ORDER", 0.08, 0.06,
       [&] { return throughput<packed_format>(cpus, of, in_order, 64, false); }},
      {"packed, round trip of one", 1.7, 1.4,
       [&] { return round_trip_of_one<packed_format>(cpus, of); }},
      {"split, round trip of one", 6, 5.4,
       [&] { return round_trip_of_one<split_format>(cpus, of); }},
  };
  if (!measure(cpus, of, figures, unit)) return 1;

  std::printf("%-46s %7s %-15s %7s %-13s %6s %6s\n", "two CPUs, both poll; per buffer", "ns",
              " quartiles", "units", " quartiles", "goal", "aim");
  std::printf("%s\n", std::string(106, '-').c_str());
  print("the unit: a cache line there and back", unit);
  std::printf("\n");
  for (figure& f : figures) print(f);

  struct {
    const char* name;
    std::uint32_t outstanding;
    bool (*sample)(const two_cpus&, const settings&, std::uint32_t, tails&);
    tails of{};
  } sleepers[] = {
      {"split, EVENT_IDX", 1, sleep_and_wake<split_format>},
      {"split, EVENT_IDX", 32, sleep_and_wake<split_format>},
      {"packed, EVENT_IDX", 1, sleep_and_wake<packed_format>},
      {"packed, EVENT_IDX", 32, sleep_and_wake<packed_format>},
  };
  for (int pass = 0; pass < of.passes; ++pass)
    for (auto& s : sleepers)
      if (!s.sample(cpus, of, s.outstanding, s.of)) return 1;
  std::printf("\n%-34s %11s %8s %8s %8s %10s %10s\n", "two CPUs, both sleep on an eventfd", "", "",
              "add to", "used, us", "per 1000", "buffers");
  std::printf("%-34s %11s %8s %8s %8s %10s %10s\n", "", "outstanding", "p50", "p99", "p99.9",
              "to device", "to driver");
  std::printf("%s\n", std::string(95, '-').c_str());
  for (auto& s : sleepers) print(s.name, s.outstanding, s.of);
}
