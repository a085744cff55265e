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
  constexpr int rounds = 5000;
  constexpr int slots = 16; // passed without meeting, so that the two drift against each other
  // Words of different cache lines: in one line the stores could not be overtaken.
  struct alignas(128) word {
    std::atomic<int> value{0};
  };
  static word mine[slots], yours[slots], ready, start, done;
  static int i_saw[slots], you_saw[slots];
  const auto wait = [](const word& w, int i) {
    for (int spins = 0; w.value.load(std::memory_order_acquire) != i; ++spins)
      if (spins > 10000) std::this_thread::yield();
  };
  const auto delay = [](int n) {
    for (volatile int left = n; left > 0;) left = left - 1;
  };

  std::thread other([&] {
    for (int i = 1; i <= rounds; ++i) {
      ready.value.store(i, std::memory_order_release);
      wait(start, i);
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
    wait(ready, i);
    start.value.store(i, std::memory_order_release);
    delay(i % 256); // about as long as the other side needs to see it
    for (int k = 0; k < slots; ++k) {
      mine[k].value.store(i, std::memory_order_relaxed);
      ballast::full_fence();
      i_saw[k] = yours[k].value.load(std::memory_order_relaxed);
    }
    wait(done, i);
    for (int k = 0; k < slots; ++k) both_missed += i_saw[k] != i && you_saw[k] != i;
  }
  other.join();
  CHECK(both_missed == 0);
}

} // namespace
