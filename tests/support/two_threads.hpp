// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/check.hpp"
#include "support/queue_life.hpp"

#include <ballast/memory/fence.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <thread>
#include <vector>

namespace ballast_test {

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

[[nodiscard]] constexpr std::uint32_t request_word(std::uint32_t number, std::uint32_t i) {
  return number * 2654435761u + i * 40503u;
}
[[nodiscard]] constexpr std::uint32_t reply_word(std::uint32_t number, std::uint32_t i) {
  return ~request_word(number, i) + 7;
}

struct tally {
  std::uint32_t wrong = 0;
  std::uint32_t sleeps = 0;
  std::uint32_t rings = 0; ///< notifications sent
  ballast::error why = ballast::error::none;
  bool was_lost = false; ///< slept and was not woken
};

/// Both sides of a virtqueue of `N` entries, each in a thread of its own, on mapped memory: every
/// payload is checked.
template <class Format, std::uint32_t N> class two_threads {
  using mapped_memory = ballast::mapped_memory;
  using driver_type = typename Format::template driver<mapped_memory, std::endian::little>;
  using device_type = typename Format::template device<mapped_memory, std::endian::little>;

  static constexpr std::uint32_t area_bytes = 64;
  static constexpr ballast::guest_address base = 0x1'0000'0000;
  static constexpr ballast::placement place = Format::place(base, N);
  static constexpr ballast::guest_address areas = (place.end + 63) / 64 * 64;
  static constexpr ballast::indirect_tables tables{areas + N * area_bytes, 2};

 public:
  /// Sends `chains` chains through, at most `depth` at a time.
  static void run(const ballast::feature_set& features, waiting how, std::uint32_t depth,
                  std::uint32_t chains) {
    const auto bytes = tables.address + tables.bytes(N) - base;
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

    std::array<ballast::driver_slot, N> slots{};
    ballast::device_queue_storage<N> storage;
    driver_type driver(slots);
    device_type device(storage);
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
    CHECK(a.why == ballast::error::none);
    CHECK(b.why == ballast::error::none);
    CHECK(!a.was_lost);
    CHECK(!b.was_lost);
    if (how == waiting::by_sleeping) {
      CHECK(a.sleeps + b.sleeps > 0); // otherwise nothing was tried
      CHECK(a.rings > 0);
      CHECK(b.rings > 0);
    }
  }

 private:
  /// Adds `chains` chains of 2 buffers, at most `depth` at a time: a number and four words of
  /// request, four words of reply.
  static void drive(mapped_memory ram, driver_type& queue, bool is_in_order, std::uint32_t chains,
                    std::uint32_t depth, waiting how, shared_state& shared, tally& t) {
    jitter delay;
    std::array<std::uint32_t, N> numbers{}; // of the request in each area
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
        const ballast::buffer readable[] = {{at, 20}}, writable[] = {{at + 32, 16}};
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
      if (queue.cause() != ballast::error::none) {
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
    t.wrong += queue.in_flight() != 0 || queue.free_descriptors() != N;
    shared.is_done.store(true, std::memory_order_relaxed);
    shared.device_bell.ring();
  }

  /// Answers until the driver is done. Every seventh chain is kept for a while, IN_ORDER those
  /// behind it as well; without, the last one kept is returned first.
  static void serve(mapped_memory ram, device_type& queue, bool is_in_order, waiting how,
                    shared_state& shared, tally& t) {
    jitter delay;
    std::vector<ballast::chain_id> kept;
    std::uint32_t handled = 0;
    const auto handle = [&](const ballast::chain& c) {
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
};

} // namespace ballast_test
