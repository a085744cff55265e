// SPDX-License-Identifier: BSD-3-Clause
// Both sides of a split virtqueue, each in a thread of its own, on mapped memory.
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/fence.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <span>
#include <thread>
#include <vector>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
using ballast::error;
using ballast::feature_set;
using ballast::mapped_memory;

namespace {

constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set indirect{ballast::feature::indirect_desc};
constexpr feature_set in_order{ballast::feature::in_order};
constexpr feature_set everything{ballast::feature::event_idx, ballast::feature::indirect_desc,
                                 ballast::feature::in_order};

constexpr std::uint32_t queue_size = 64;
constexpr std::uint32_t area_bytes = 64;
constexpr ballast::guest_address base = 0x1'0000'0000;
constexpr auto place = ballast::split::place(base, queue_size);
constexpr ballast::guest_address areas = (place.end + 63) / 64 * 64;
constexpr ballast::indirect_tables tables{areas + queue_size * area_bytes, 2};

/// A side's sleep: woken by `ring` alone, and once for any number of rings before. It spins, since
/// then both sides fall asleep and wake so fast that a notification lost to a missing fence shows.
/// Nothing else ends a sleep but the deadline, which is long after a notification must have been
/// lost: then the test is called off and fails.
class doorbell {
 public:
  void ring() { is_rung_.store(true, std::memory_order_release); }

  /// False if it was not rung.
  [[nodiscard]] bool wait() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (std::uint32_t spins = 1; !is_rung_.load(std::memory_order_relaxed); ++spins) {
      if (spins % 256 != 0) continue;
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    is_rung_.exchange(false, std::memory_order_acquire); // a ring that comes now is answered too
    return true;
  }

 private:
  alignas(64) std::atomic<bool> is_rung_{false};
};

/// A pause of 0 to about 300 ns, so that the two sides meet at every point.
class jitter {
 public:
  void pause() {
    state_ = state_ * 1664525 + 1013904223;
    for (std::uint32_t i = state_ >> 24; i != 0; --i)
      std::atomic_signal_fence(std::memory_order_seq_cst);
  }

 private:
  std::uint32_t state_ = 1;
};

enum class waiting { by_polling, by_sleeping };

/// What both threads share besides guest memory. The bells are used by sleepers only: otherwise
/// nothing but the ring orders one thread's payload before the other's.
struct shared_state {
  doorbell driver_bell;
  doorbell device_bell;
  std::atomic<bool> is_called_off{false}; // relaxed: it must order nothing
  std::atomic<bool> is_done{false};

  [[nodiscard]] bool is_over() const { return is_called_off.load(std::memory_order_relaxed); }
  void call_off() {
    is_called_off.store(true, std::memory_order_relaxed);
    driver_bell.ring();
    device_bell.ring();
  }
};

constexpr std::uint32_t request_word(std::uint32_t number, std::uint32_t i) {
  return number * 2654435761u + i * 40503u;
}
constexpr std::uint32_t reply_word(std::uint32_t number, std::uint32_t i) {
  return ~request_word(number, i) + 7;
}

struct tally {
  std::uint32_t wrong = 0;
  std::uint32_t sleeps = 0;
  std::uint32_t rings = 0; ///< notifications sent
  error why = error::none;
  bool was_lost = false; ///< slept and was not woken
};

/// Adds `chains` chains of 2 buffers, at most `depth` at a time: a number and four words of
/// request, four words of reply.
void drive(mapped_memory ram, ballast::split_driver<mapped_memory>& queue, bool is_in_order,
           std::uint32_t chains, std::uint32_t depth, waiting how, shared_state& shared, tally& t) {
  jitter delay;
  std::array<std::uint32_t, queue_size> numbers{}; // of the request in each area
  std::vector<std::uint32_t> free_areas;
  for (std::uint32_t i = 0; i < depth; ++i) free_areas.push_back(i);
  std::uint32_t added = 0, returned = 0;
  std::uint32_t batch = 1;
  while (returned != chains && !shared.is_over()) {
    std::uint32_t done = 0;
    batch = batch * 5 % 37; // publishes of 1 to 36
    while (added != chains && !free_areas.empty() && done < batch) {
      const std::uint32_t area = free_areas.back();
      const ballast::guest_address at = areas + area * area_bytes;
      std::array<std::uint32_t, 5> request{added};
      for (std::uint32_t i = 0; i < 4; ++i) request[i + 1] = request_word(added, i);
      t.wrong += !ram.write(at, std::as_bytes(std::span(request)));
      const buffer readable[] = {{at, 20}}, writable[] = {{at + 32, 16}};
      if (const auto e = queue.add(readable, writable, area); !e) {
        t.why = e.error();
        return shared.call_off();
      }
      free_areas.pop_back();
      numbers[area] = added++;
      ++done;
    }
    queue.publish();
    if (how == waiting::by_sleeping && queue.should_notify()) {
      ++t.rings;
      shared.device_bell.ring();
    }
    std::uint32_t popped = 0;
    while (const auto used = queue.pop_used()) {
      const auto area = static_cast<std::uint32_t>(used->token);
      std::array<std::uint32_t, 4> reply{};
      t.wrong += used->length != 16;
      t.wrong += is_in_order && numbers[area] != returned;
      t.wrong +=
          !ram.read(areas + area * area_bytes + 32, std::as_writable_bytes(std::span(reply)));
      for (std::uint32_t i = 0; i < 4; ++i) t.wrong += reply[i] != reply_word(numbers[area], i);
      free_areas.push_back(area);
      ++returned;
      ++popped;
    }
    if (queue.cause() != error::none) {
      t.why = queue.cause();
      return shared.call_off();
    }
    const bool is_stuck = popped == 0 && (added == chains || free_areas.empty());
    if (!is_stuck || returned == chains) continue;
    if (how == waiting::by_polling) {
      std::this_thread::yield();
      continue;
    }
    delay.pause();
    if (!queue.enable_notifications()) {
      ++t.sleeps;
      if (!shared.driver_bell.wait()) {
        t.was_lost = true;
        return shared.call_off();
      }
    }
    queue.disable_notifications();
  }
  t.wrong += queue.in_flight() != 0 || queue.free_descriptors() != queue_size;
  shared.is_done.store(true, std::memory_order_relaxed);
  shared.device_bell.ring();
}

/// Answers until the driver is done. Every seventh chain is kept for a while, IN_ORDER those behind
/// it as well; without, the last one kept is returned first.
void serve(mapped_memory ram, ballast::split_device<mapped_memory>& queue, bool is_in_order,
           waiting how, shared_state& shared, tally& t) {
  jitter delay;
  std::vector<chain_id> kept;
  std::uint32_t handled = 0;
  const auto handle = [&](const chain& c) {
    std::array<std::uint32_t, 5> request{};
    ballast::buffer_reader reader(ram, c.readable());
    const auto length = reader.read(std::as_writable_bytes(std::span(request)));
    t.wrong += !length || *length != 20;
    std::array<std::uint32_t, 4> reply{};
    for (std::uint32_t i = 0; i < 4; ++i) {
      t.wrong += request[i + 1] != request_word(request[0], i);
      reply[i] = reply_word(request[0], i);
    }
    t.wrong += !ram.write(c.writable()[0].address, std::as_bytes(std::span(reply)));
    const bool must_wait = is_in_order && !kept.empty();
    if (++handled % 7 != 0 && !must_wait) return ballast::used(16);
    kept.push_back(c.id());
    return ballast::keep();
  };
  while (!shared.is_done.load(std::memory_order_relaxed) && !shared.is_over()) {
    const auto done = queue.consume(24, handle);
    if (!done) {
      t.why = done.error();
      return shared.call_off();
    }
    if (!done->has_more) {
      for (std::size_t i = 0; i < kept.size(); ++i)
        t.wrong += !queue.push_used(kept[is_in_order ? i : kept.size() - 1 - i], 16);
      kept.clear();
    }
    queue.publish();
    if (how == waiting::by_polling) {
      if (done->chains == 0) std::this_thread::yield();
      continue;
    }
    if (queue.should_notify()) {
      ++t.rings;
      shared.driver_bell.ring();
    }
    if (done->has_more) continue;
    delay.pause();
    if (!queue.enable_notifications() && !shared.is_done.load(std::memory_order_relaxed)) {
      ++t.sleeps;
      if (!shared.device_bell.wait()) {
        t.was_lost = true;
        return shared.call_off();
      }
    }
    queue.disable_notifications();
  }
}

void two_threads(const feature_set& features, waiting how, std::uint32_t depth,
                 std::uint32_t chains) {
  const auto bytes = tables.address + tables.bytes(queue_size) - base;
  const std::size_t lines = (bytes + 63) / 64;
  struct alignas(64) line {
    std::array<std::byte, 64> bytes;
  };
  const auto host = std::make_unique<line[]>(lines);
  const ballast::memory_region regions[] = {{base, host[0].bytes.data(), lines * 64}};
  auto ram = mapped_memory::over(regions);
  REQUIRE(ram.has_value());
  // One object a thread: a mapped_memory serves one.
  mapped_memory of_driver = *ram, of_device = *ram;

  std::array<ballast::driver_slot, queue_size> slots{};
  ballast::device_queue_storage<queue_size> storage;
  ballast::split_driver<mapped_memory> driver(slots);
  ballast::split_device<mapped_memory> device(storage);
  REQUIRE(driver.start(of_driver, place.layout, features, 60000, tables).has_value());
  REQUIRE(device.start(of_device, place.layout, features, 60000).has_value());

  shared_state shared;
  tally a, b;
  const bool is_in_order = features.test(ballast::feature::in_order);
  std::thread other([&] { serve(*ram, device, is_in_order, how, shared, b); });
  drive(*ram, driver, is_in_order, chains, depth, how, shared, a);
  other.join();
  CHECK(a.wrong == 0);
  CHECK(b.wrong == 0);
  CHECK(a.why == error::none);
  CHECK(b.why == error::none);
  CHECK(!a.was_lost);
  CHECK(!b.was_lost);
  if (how == waiting::by_sleeping) {
    CHECK(a.sleeps + b.sleeps > 0); // otherwise nothing was tried
    CHECK(a.rings > 0);
    CHECK(b.rings > 0);
  }
}

// A million buffers: half as many chains of two.
constexpr std::uint32_t chains = 500'000;

/// Of the tests that poll: ten times as many where races are looked for, or what the environment
/// asks for.
std::uint32_t polled_chains() {
  const char* const asked = std::getenv("BALLAST_TEST_BUFFERS");
  if (asked == nullptr) return ballast::is_race_checked ? 10 * chains : chains;
  return static_cast<std::uint32_t>(std::strtoul(asked, nullptr, 10) / 2);
}

TEST_CASE("RT-18 two threads that poll: a million buffers (TSan: ten), every payload checked") {
  two_threads(no_features, waiting::by_polling, 32, polled_chains());
}
TEST_CASE("RT-18 two threads that poll: indirect tables, as many chains as the ring has entries") {
  two_threads(indirect, waiting::by_polling, queue_size, polled_chains() / 4);
}
TEST_CASE("RT-18 two threads that poll: IN_ORDER, a used element stands for a batch") {
  two_threads(in_order, waiting::by_polling, 32, polled_chains() / 4);
}
TEST_CASE("RT-18 RT-25 two threads that sleep and are woken by flags: no notification is lost") {
  two_threads(no_features, waiting::by_sleeping, 32, chains);
  two_threads(no_features, waiting::by_sleeping, 1, chains / 4);
}
TEST_CASE(
    "RT-18 RT-25 two threads that sleep and are woken by EVENT_IDX: no notification is lost") {
  two_threads(event_index, waiting::by_sleeping, 32, chains);
  two_threads(event_index, waiting::by_sleeping, 1, chains / 4);
}
TEST_CASE("RT-18 RT-25 two threads that sleep: EVENT_IDX, IN_ORDER and indirect tables together") {
  two_threads(everything, waiting::by_sleeping, queue_size, chains / 4);
  two_threads(everything, waiting::by_sleeping, 1, chains / 4);
}

} // namespace
