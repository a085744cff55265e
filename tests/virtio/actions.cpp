// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/actions.hpp>

#include <support/check.hpp>

namespace {

using ballast::actions;
using ballast::error;

constexpr auto nothing = [](auto check) {
  const actions none;
  check(none.notify_queues == 0 && none.more_work == 0);
  check(!none.config_changed && !none.needs_reset && none.failure == error::none);
  for (unsigned queue = 0; queue < 64; ++queue) check(!none.notifies(queue));
};
BOTH("by default there is nothing to do", nothing)

constexpr auto notifies = [](auto check) {
  const actions due{.notify_queues = 1 | std::uint64_t{1} << 63};
  check(due.notifies(0) && due.notifies(63) && !due.notifies(1) && !due.notifies(62));
};
BOTH("bit n stands for queue n", notifies)

constexpr auto collects = [](auto check) {
  actions all{.notify_queues = 1, .more_work = 4};
  all |= {.notify_queues = 3, .more_work = 8, .config_changed = true};
  check(all == actions{.notify_queues = 3, .more_work = 12, .config_changed = true});
  all |= {.needs_reset = true, .failure = error::chain_loops};
  check(all.notify_queues == 3 && all.more_work == 12 && all.config_changed && all.needs_reset);
  check(all.failure == error::chain_loops);
  all |= actions{}; // takes nothing away
  check(all.config_changed && all.needs_reset && all.failure == error::chain_loops);
};
BOTH("actions of several calls add up", collects)

constexpr auto first_failure = [](auto check) {
  actions all;
  all |= ballast::refused(error::head_in_flight);
  all |= ballast::refused(error::chain_loops);
  check(all.failure == error::head_in_flight);
};
BOTH("the first failure stays", first_failure)

constexpr auto refusal = [](auto check) {
  const actions none = ballast::refused(error::wrong_state);
  check(none.failure == error::wrong_state);
  check(none.notify_queues == 0 && none.more_work == 0);
  check(!none.config_changed && !none.needs_reset);
  check(none != actions{});
};
BOTH("a refused call asks for nothing", refusal)

} // namespace
