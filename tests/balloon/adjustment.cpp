// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/adjustment.hpp>

#include "support/check.hpp"

namespace {

using namespace ballast;
using balloon::adjustment;
using balloon::adjustment_state;
using balloon::is_target_reached;

constexpr auto rounding = [](auto check) {
  check(is_target_reached(0, 0) && is_target_reached(100, 100));
  check(is_target_reached(112, 100)); // a guest of 64 KiB pages: seven of them
  check(is_target_reached(100, 97));  // one of 16 KiB pages
  check(!is_target_reached(99, 100) && !is_target_reached(96, 100)); // rounded up, never down
  check(!is_target_reached(101, 100) && !is_target_reached(111, 100));
  check(!is_target_reached(113, 100) && !is_target_reached(128, 100));
  check(is_target_reached(96, 96) && !is_target_reached(112, 96)); // a multiple needs no rounding
};
BOTH("RT-55: a target is reached by the next multiple of the guest's page size, and by no other",
     rounding)

constexpr auto bounded_rounding = [](auto check) {
  check(!is_target_reached(112, 100, 4096) && is_target_reached(100, 100, 4096));
  check(is_target_reached(100, 97, 16384) && !is_target_reached(112, 97, 16384));
  check(is_target_reached(256, 100, 1u << 20)); // pages of 1 MiB
  check(is_target_reached(100, 100, 0));        // smaller than a page: exactly
};
BOTH("how large the guest's pages may be is the caller's knowledge", bounded_rounding)

constexpr auto end_of_range = [](auto check) {
  check(is_target_reached(UINT32_MAX, UINT32_MAX));
  check(!is_target_reached(0, UINT32_MAX)); // the next multiple is 2^32, not 0
  check(is_target_reached(0xffff'fff0, 0xffff'ffe1));
};
BOTH("RT-55: a target near 2^32 does not wrap to an empty balloon", end_of_range)

constexpr auto reaches = [](auto check) {
  adjustment change({.without_progress = 10, .altogether = 100});
  check(change.state() == adjustment_state::none);
  check(change.update(5, 1) == adjustment_state::none); // nothing was asked for
  check(change.begin(1000, 0, 50) == adjustment_state::under_way);
  check(change.target() == 1000 && change.missing_pages() == 1000);
  check(change.update(256, 55) == adjustment_state::under_way && change.missing_pages() == 744);
  check(change.update(1000, 60) == adjustment_state::reached && change.missing_pages() == 0);
  check(change.update(10, 500) == adjustment_state::reached); // what comes later is another story
  check(change.begin(1000, 1000, 600) == adjustment_state::reached); // there already
};
BOTH("an adjustment is reached once and for all", reaches)

constexpr auto stalls = [](auto check) {
  adjustment change({.without_progress = 10});
  (void)change.begin(1000, 0, 0);
  check(change.update(100, 9) == adjustment_state::under_way);
  check(change.update(100, 18) == adjustment_state::under_way); // 9 since the last page
  check(change.update(90, 18) == adjustment_state::under_way);
  // Back to where it was is no progress: a guest that takes pages back as it gives them.
  check(change.update(100, 19) == adjustment_state::given_up);
  check(change.missing_pages() == 900);
  check(change.update(1000, 20) == adjustment_state::given_up); // too late
  check(change.begin(100, 100, 21) == adjustment_state::reached);
};
BOTH("an adjustment without progress is given up when the caller's time is over", stalls)

constexpr auto takes_too_long = [](auto check) {
  adjustment change({.altogether = 100});
  (void)change.begin(0, 100, 7); // deflation
  std::uint32_t actual = 100;
  for (std::uint64_t now = 8; now < 107; ++now)
    check(change.update(--actual + 1, now) == adjustment_state::under_way);
  check(change.update(1, 107) == adjustment_state::given_up);
};
BOTH("an adjustment that goes on for too long is given up, however well it goes", takes_too_long)

constexpr auto last_moment = [](auto check) {
  adjustment change({.without_progress = 10, .altogether = 10});
  (void)change.begin(8, 0, 0);
  check(change.update(8, 1000) == adjustment_state::reached); // late, but looked at late too
  (void)change.begin(8, 0, 100);
  check(change.update(0, 99) == adjustment_state::under_way); // a clock that went back is no age
  check(change.update(0, 110) == adjustment_state::given_up);
};
BOTH("what was reached is not given up, and time does not run backward", last_moment)

constexpr auto patient = [](auto check) {
  adjustment change;
  (void)change.begin(8, 0, 0);
  check(change.update(0, UINT64_MAX) == adjustment_state::under_way);
};
BOTH("without limits an adjustment goes on for ever", patient)

} // namespace
