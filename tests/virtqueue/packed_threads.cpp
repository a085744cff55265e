// SPDX-License-Identifier: BSD-3-Clause
// Both sides of a packed virtqueue, each in a thread of its own, on mapped memory.
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>

#include "support/check.hpp"
#include "support/two_threads.hpp"

#include <cstdlib>

using ballast::feature_set;
using ballast_test::waiting;

namespace {

constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set indirect{ballast::feature::indirect_desc};
constexpr feature_set in_order{ballast::feature::in_order};
constexpr feature_set everything{ballast::feature::event_idx, ballast::feature::indirect_desc,
                                 ballast::feature::in_order};

// 61: no power of two, and nearly every second chain of two goes over the end of the ring in some
// round.
template <std::uint32_t N> using packed = ballast_test::two_threads<ballast_test::packed_format, N>;

constexpr std::uint32_t chains = 200'000;

/// Of the tests that poll: more where races are looked for, or what the environment asks for.
std::uint32_t polled_chains() {
  const char* const asked = std::getenv("BALLAST_TEST_BUFFERS");
  if (asked == nullptr) return ballast::is_race_checked ? 5 * chains : chains;
  return static_cast<std::uint32_t>(std::strtoul(asked, nullptr, 10) / 2);
}

TEST_CASE("RT-18 packed, two threads that poll, every payload checked") {
  packed<61>::run(no_features, waiting::by_polling, 30, polled_chains());
}
TEST_CASE("RT-18 packed, two threads that poll: a ring of three, full or empty at every moment") {
  packed<3>::run(no_features, waiting::by_polling, 1, chains / 4);
  packed<3>::run(indirect, waiting::by_polling, 3, chains / 4);
}
TEST_CASE("RT-18 packed, two threads that poll: tables, as many chains as the ring has entries") {
  packed<61>::run(indirect, waiting::by_polling, 61, polled_chains() / 4);
}
TEST_CASE("RT-18 packed, two threads that poll: IN_ORDER, a used descriptor stands for a batch") {
  packed<61>::run(in_order, waiting::by_polling, 30, polled_chains() / 4);
}
TEST_CASE("RT-18 RT-25 packed, two threads that sleep and are woken by flags") {
  packed<61>::run(no_features, waiting::by_sleeping, 30, chains);
  packed<7>::run(no_features, waiting::by_sleeping, 1, chains / 4);
}
TEST_CASE("RT-18 RT-25 packed, two threads that sleep and are woken by EVENT_IDX") {
  packed<61>::run(event_index, waiting::by_sleeping, 30, chains);
  packed<7>::run(event_index, waiting::by_sleeping, 1, chains / 4);
  packed<7>::run(event_index, waiting::by_sleeping, 3, chains / 4);
}
TEST_CASE("RT-18 RT-25 packed, two threads that sleep: EVENT_IDX, IN_ORDER and tables together") {
  packed<61>::run(everything, waiting::by_sleeping, 61, chains / 4);
  packed<7>::run(everything, waiting::by_sleeping, 1, chains / 4);
}

} // namespace
