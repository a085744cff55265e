// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device_options.hpp>

#include "support/check.hpp"

#include <cstddef>

namespace {

using namespace ballast;

constexpr auto defaults = [](auto check) {
  const balloon::device_options o;
  check(o.offered == feature_set{balloon::feature::stats_vq, feature::event_idx});
  check(!o.offered.test(balloon::feature::deflate_on_oom) && !o.requires_must_tell_host);
  check(o.numbering == balloon::queue_numbering::by_offered);
  check(o.host_page_size == 4096 && o.tracker == nullptr);
  check(o.buffer_pfns_max >= 1024); // 4096 bytes: what Windows sends, RT-58
  check(o.reporting_used_length == balloon::reported_length::zero);
  check(!o.hinting.hides_started_id && o.first_index == 0);
};
BOTH("what is not asked for is off, and the used length 0", defaults)

constexpr auto nothing_yet = [](auto check) {
  check(balloon::device_events{} == balloon::device_events{});
  check(!(balloon::device_events{.hinting_changed = true} == balloon::device_events{}));
  // Plain values: a caller keeps a copy and takes the difference.
  balloon::device_counters before, after;
  after.free_page_report_freed += 4096;
  check(after.free_page_report_freed - before.free_page_report_freed == 4096);
};
BOTH("events and counters are plain values that begin at nothing", nothing_yet)

} // namespace
