// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/memory/fence.hpp>

#include "support/check.hpp"

#include <atomic>
#include <thread>

namespace {

#if defined(__SANITIZE_THREAD__)
static_assert(ballast::is_race_checked);
#endif

// Two sides each store their own word and then look at the other's, as the driver (available index,
// then the event word) and the device (event word, then the available index) do. Without the fence
// both loads can pass both stores, and a notification is lost.
TEST_CASE("with a fence between them a store is never passed by a later load") {
  constexpr int rounds = 20000;
  // Words of different cache lines: in one line the stores could not be overtaken.
  struct alignas(128) word {
    std::atomic<int> value{0};
  };
  word mine, yours, start, done;
  int seen = 0;

  std::thread other([&] {
    for (int i = 1; i <= rounds; ++i) {
      while (start.value.load(std::memory_order_acquire) != i) std::this_thread::yield();
      yours.value.store(i, std::memory_order_relaxed);
      ballast::full_fence();
      seen = mine.value.load(std::memory_order_relaxed);
      done.value.store(i, std::memory_order_release);
    }
  });
  int both_missed = 0;
  for (int i = 1; i <= rounds; ++i) {
    start.value.store(i, std::memory_order_release);
    for (volatile int delay = i % 64; delay > 0;) delay = delay - 1;
    mine.value.store(i, std::memory_order_relaxed);
    ballast::full_fence();
    const int saw = yours.value.load(std::memory_order_relaxed);
    while (done.value.load(std::memory_order_acquire) != i) std::this_thread::yield();
    both_missed += saw != i && seen != i;
  }
  other.join();
  CHECK(both_missed == 0);
}

} // namespace
