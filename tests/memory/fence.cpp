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
  constexpr int rounds = 2000;
  constexpr int slots = 64; // passed without meeting, so that the two drift against each other
  // Words of different cache lines: in one line the stores could not be overtaken.
  struct alignas(128) word {
    std::atomic<int> value{0};
  };
  static word mine[slots], yours[slots], start, done;
  static int i_saw[slots], you_saw[slots];

  std::thread other([] {
    for (int i = 1; i <= rounds; ++i) {
      while (start.value.load(std::memory_order_acquire) != i) std::this_thread::yield();
      for (int k = 0; k < slots; ++k) {
        yours[k].value.store(i, std::memory_order_relaxed);
        ballast::full_fence();
        you_saw[k] = mine[k].value.load(std::memory_order_relaxed);
      }
      done.value.store(i, std::memory_order_release);
    }
  });
  int both_missed = 0;
  for (int i = 1; i <= rounds; ++i) {
    start.value.store(i, std::memory_order_release);
    for (volatile int delay = i % 256; delay > 0;) delay = delay - 1;
    for (int k = 0; k < slots; ++k) {
      mine[k].value.store(i, std::memory_order_relaxed);
      ballast::full_fence();
      i_saw[k] = yours[k].value.load(std::memory_order_relaxed);
    }
    while (done.value.load(std::memory_order_acquire) != i) std::this_thread::yield();
    for (int k = 0; k < slots; ++k) both_missed += i_saw[k] != i && you_saw[k] != i;
  }
  other.join();
  CHECK(both_missed == 0);
}

} // namespace
