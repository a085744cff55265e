// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/queue_state.hpp>

#include "support/check.hpp"

#include <initializer_list>

namespace {

using namespace ballast;

constexpr auto saturates = [](auto check) {
  for (const std::uint32_t steps : {0u, 1u, 65535u, 65536u}) check(unasked(steps) == steps);
  for (const std::uint32_t steps : {65537u, 0x8000'0000u, 0xffff'ffffu})
    check(unasked(steps) == unasked_max);
};
BOTH("what was not asked about is counted up to a whole round of the index", saturates)

constexpr auto causes = [](auto check) {
  check(is_cause(error::none) && is_cause(error::chain_loops) && is_cause(error::not_guest_memory));
  // No queue breaks because it is empty or full, nor for a reason that is none.
  check(!is_cause(error::queue_empty) && !is_cause(error::queue_full));
  check(!is_cause(static_cast<error>(3)) && !is_cause(static_cast<error>(0xffff)));
};
BOTH("RT-6 only a known error can have broken a saved queue, on both sides of both formats", causes)

} // namespace
