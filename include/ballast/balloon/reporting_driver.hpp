// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/request_queue.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/driver_queue.hpp>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// Where a driver gets free memory from that it reports: the guest's allocator.
///
/// - `take_reportable(ranges)`: fills in ranges of whole, free pages and keeps them from other use;
///   how many (0: none worth it now). Large ones: a host gives back whole pages of its own, often
///   of 2 MiB; and not those that were reported and not used since. What is more than 2^32 - 1
///   bytes in all comes back unreported. With PAGE_POISON all of each range holds the poison
///   already, and holds it when it comes back (BDRV-38); without, what comes back is to be taken as
///   uninitialised (BDRV-37). Best left alone for long: the first touch takes memory again
///   (BDRV-42).
/// - `return_reportable(ranges, is_reported)`: these may be used again, whether the device has seen
///   them or not.
/// Spec: "Free Page Reporting" (driver requirements); Linux: page_reporting_dev_info.
template <class S>
concept reporting_source =
    requires(S& s, std::span<buffer> to, std::span<const buffer> from, bool is_reported) {
      { s.take_reportable(to) } noexcept -> std::same_as<std::size_t>;
      { s.return_reportable(from, is_reported) } noexcept;
    };

/// The most ranges of one report. Linux: PAGE_REPORTING_CAPACITY.
inline constexpr std::uint32_t report_ranges_max = queue_size_min(queue_kind::reporting);

/// Free page reporting, driver side: chains of up to 32 device-writable ranges, to which nothing is
/// ever written, one at a time. A range is not used before the device returned it.
/// Spec: "Free Page Reporting"; Linux: virtballoon_free_page_report().
template <guest_memory M, std::endian E> class reporting_driver {
 public:
  constexpr reporting_driver() noexcept = default;
  reporting_driver(const reporting_driver&) = delete;
  reporting_driver& operator=(const reporting_driver&) = delete;

  [[nodiscard]] constexpr request_queue<M, E>& queue() noexcept { return queue_; }
  [[nodiscard]] constexpr const request_queue<M, E>& queue() const noexcept { return queue_; }

  /// Reports what the source has; whether it had anything. None is to be under way.
  template <reporting_source S>
  constexpr bool report(S& source, std::uint64_t now, actions& due) noexcept {
    const std::size_t taken = source.take_reportable(ranges_);
    count_ = within_a_chain(taken < report_ranges_max ? taken : report_ranges_max);
    if (count_ < taken && taken <= report_ranges_max)
      source.return_reportable(std::span<const buffer>(ranges_).subspan(count_, taken - count_),
                               false);
    if (count_ == 0 || !queue_.send({}, std::span(ranges_).first(count_), now, due)) return false;
    queue_.notify_if_due(due);
    return true;
  }

  /// Hands back what the device returned; whether there was anything.
  template <reporting_source S> constexpr bool take_up(S& source, actions& due) noexcept {
    if (!queue_.has_returned(due)) return false;
    hand_back(source, true);
    return true;
  }

  /// The device is reset or gone.
  template <reporting_source S> constexpr void drain(S& source) noexcept {
    queue_.detach();
    if (count_ != 0) hand_back(source, false);
  }

 private:
  /// How many of the first `count` ranges fit in one chain, which describes less than 2^32 bytes.
  [[nodiscard]] constexpr std::size_t within_a_chain(std::size_t count) const noexcept {
    std::uint64_t bytes = 0;
    std::size_t fit = 0;
    for (; fit != count; ++fit) {
      bytes += ranges_[fit].length;
      if (bytes > 0xffff'ffff) break;
    }
    return fit;
  }

  template <reporting_source S> constexpr void hand_back(S& source, bool is_reported) noexcept {
    const std::span<const buffer> ranges = std::span(ranges_).first(count_);
    count_ = 0;
    source.return_reportable(ranges, is_reported);
  }

  driver_slot slots_[report_ranges_max]{};
  request_queue<M, E> queue_{slots_};
  buffer ranges_[report_ranges_max]{};
  std::size_t count_ = 0;
};

} // namespace ballast::balloon
