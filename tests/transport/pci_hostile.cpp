// SPDX-License-Identifier: BSD-3-Clause
// A guest that accesses anything anywhere, in any order and width: the device behind the function
// is called as it must be, an enabled queue keeps its geometry, interrupts are those that the
// tables ask for, and a reset cures everything.
#include <ballast/transport/pci_device.hpp>

#include <support/check.hpp>
#include <support/watched_function.hpp>

#include <cstdint>
#include <initializer_list>

namespace {

using ballast_test::watched_function;

struct random_source {
  std::uint64_t state;
  constexpr std::uint32_t below(std::uint32_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<std::uint32_t>(state >> 16) % n;
  }
};

constexpr auto short_run = [](auto check) {
  for (const bool is_transitional : {false, true}) {
    watched_function f({.is_transitional = is_transitional});
    check(f.start());
    random_source random{88172645463325252};
    for (int i = 0; i < 12; ++i) f.do_something(random);
    check(f.start() && f.wrongs == 0);
  }
};
BOTH("some accesses that make no sense, in a constant expression too (RT-3, RT-12)", short_run)

TEST_CASE("RT-3, RT-11: every BAR, offset and width, and every overflow, breaks nothing") {
  constexpr unsigned widths[] = {0, 1, 2, 3, 4, 5, 8, 9, 16, 64, ~0u};
  for (const bool is_transitional : {false, true}) {
    watched_function f({.is_transitional = is_transitional});
    REQUIRE(f.start());
    for (const std::uint64_t value : {0ull, ~0ull})
      for (unsigned bar = 0; bar < 8; ++bar)
        for (const std::uint64_t page : {0x0000ull, 0x1000ull, 0x2000ull, 0x3000ull, 0x4000ull,
                                         0x800ull, 1ull << 32, 1ull << 63, ~0ull - 31})
          for (std::uint64_t at = 0; at < 72; ++at)
            for (const unsigned width : widths) {
              f.read(bar, page + at, width);
              f.write(bar, page + at, width, value);
            }
    for (std::uint32_t at = 0; at < 264; ++at)
      for (const unsigned width : widths)
        for (const std::uint32_t high : {0u, 0x100u, 0x8000'0000u, ~0u - 263}) {
          f.read_config_space(high + at, width);
          f.write_config_space(high + at, width, ~0u);
          f.write_config_space(high + at, width, 0);
        }
    CHECK(f.wrongs == 0);
    CHECK(f.start());
  }
}

TEST_CASE("hundreds of thousands of accesses of a guest that almost knows what it does break "
          "nothing") {
  std::uint32_t activations = 0, taken = 0, processed = 0, raised = 0;
  for (const bool is_transitional : {false, true})
    for (std::uint64_t seed = 1; seed <= 30; ++seed) {
      watched_function f({.is_transitional = is_transitional});
      random_source random{seed * 0x2545f4914f6cdd1d};
      for (int i = 0; i < 5'000; ++i) {
        if (random.below(100) == 0) REQUIRE(f.start());
        f.do_something(random);
      }
      INFO("seed ", seed);
      REQUIRE(f.start());
      REQUIRE(f.wrongs == 0);
      activations += f.device.activations;
      taken += f.device.queue_resets;
      processed += f.device.processed;
      raised += f.raised;
    }
  CHECK(activations > 1000); // it was not all refused
  CHECK(taken > 100);
  CHECK(processed > 1000);
  CHECK(raised > 1000);
}

} // namespace
