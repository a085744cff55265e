// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/virtio/features.hpp>

#include <cstdint>

namespace ballast::balloon {

/// The used length of a buffer of free page reporting, whose memory nothing is written to.
enum class reported_length : std::uint8_t {
  zero,  ///< what was written: QEMU, Firecracker, crosvm
  bytes, ///< the size of the ranges, at most 2^32 - 1: Cloud Hypervisor
};

struct device_options {
  /// Balloon features to offer; with those of the ring. VERSION_1 is always offered.
  feature_set offered{feature::stats_vq, ballast::feature::event_idx};
  queue_numbering numbering = queue_numbering::by_offered;
  /// The most pages that a target may have: the guest's memory, in pages of 4096 bytes.
  std::uint32_t target_pages_max = balloon_pages_max;
  /// The host's page size in bytes, rounded up to a power of two of at least 4096. Where it is
  /// larger than that, MUST_TELL_HOST is offered too, and guest and host addresses must be the same
  /// modulo it.
  std::uint32_t host_page_size = page_size;
  /// Joins pages that come in any order and over several buffers into whole host pages: with
  /// MUST_TELL_HOST over all the buffers, without it over those that are handled at once. Its host
  /// page size is the device's then. Null: pages that follow each other in what is handled at once.
  host_page_tracker* tracker = nullptr;
  /// Refuse a driver that does not accept MUST_TELL_HOST. Spec: "Feature bits" (device, MAY).
  bool requires_must_tell_host = false;
  /// PFNs looked at in one buffer; more than Linux (256) and Windows (1024) send. The rest of a
  /// larger buffer is counted and passed over, the buffer is returned all the same.
  std::uint32_t buffer_pfns_max = 2048;
  /// Pages of a guest up to this size, in bytes: a target that is none of theirs is reached with
  /// their next multiple. See `is_target_reached`.
  std::uint32_t guest_page_size_max = 64u << 10;
  reported_length reporting_used_length = reported_length::zero;
  hint_device_options hinting = {};
  /// Where the ring indices begin at activation: 0 for every real driver. For tests near the wrap.
  std::uint16_t first_index = 0;
};

/// What the device did since it was constructed. What Firecracker calls the same is named as there;
/// of its others, stats_updates_count is `statistics_buffers`.
struct device_counters {
  // inflateq and deflateq
  std::uint64_t inflate_count = 0;     ///< buffers
  std::uint64_t deflate_count = 0;     ///< buffers
  std::uint64_t inflated_pages = 0;    ///< given to `discard`, whether it worked or not
  std::uint64_t deflated_pages = 0;    ///< taken back by the driver
  std::uint64_t bad_pages = 0;         ///< PFNs outside writable guest memory
  std::uint64_t partial_pages = 0;     ///< lost to the host: inflated, but not a whole host page
  std::uint64_t discard_failures = 0;  ///< of `discard` for inflated pages, and of `flush`
  std::uint64_t trailing_bytes = 0;    ///< of PFN arrays, less than a PFN
  std::uint64_t oversized_buffers = 0; ///< beyond `buffer_pfns_max`

  // statsq
  std::uint64_t statistics_buffers = 0;   ///< parsed
  std::uint64_t duplicate_statistics = 0; ///< a second buffer before the first was returned
  std::uint64_t stats_update_fails = 0;   ///< buffers that could not be read

  // reporting_vq
  std::uint64_t free_page_report_count = 0; ///< ranges
  std::uint64_t free_page_report_freed = 0; ///< bytes given to `discard` or `fill`
  std::uint64_t free_page_report_fails = 0; ///< ranges not of guest memory, and failed discards
  std::uint64_t poisoned_ranges = 0;        ///< left alone: free pages have to keep their contents

  // free_page_vq
  std::uint64_t free_page_hint_count = 0; ///< ranges under the current id
  std::uint64_t free_page_hint_freed = 0; ///< bytes that `hint` took
  std::uint64_t free_page_hint_fails = 0; ///< ranges not of guest memory, and failed hints
  std::uint64_t ignored_hints = 0;        ///< ranges under another id, or none

  // all of them
  std::uint64_t inhibited_buffers = 0; ///< whose pages were left alone: `discard_allowed`
  std::uint64_t misplaced_buffers = 0; ///< readable ones of the reporting_vq
  std::uint64_t event_fails = 0;       ///< faults for which the device needs a reset
  std::uint64_t activate_fails = 0;    ///< of them, activations
};

/// What changed since the caller looked last. Nothing is called back: who acts on them looks after
/// each call of the device, or from a thread of its own.
struct device_events {
  bool actual_changed = false;     ///< the driver wrote another size of the balloon
  bool target_reached = false;     ///< ... and it is what the target asks for; or the target moved
  bool statistics_arrived = false; ///< `take_statistics` has them
  bool hinting_changed = false;    ///< another `hint_state`

  friend constexpr bool operator==(const device_events&, const device_events&) noexcept = default;
};

} // namespace ballast::balloon
