// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/statistic_table.hpp>
#include <ballast/balloon/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

/// From two snapshots to levels: what the counters did, how fast, and whether that is much.
namespace ballast::balloon {

/// How much a counter moved. The published rules write n, l and h; a missing one is not n.
enum class activity : std::uint8_t { none, low, high, unknown };
/// A question to the snapshots; one they don't answer is not a no.
enum class answer : std::uint8_t { no, yes, unknown };

/// A short stable text; never null.
[[nodiscard]] constexpr const char* name(activity a) noexcept {
  return a == activity::none   ? "none"
         : a == activity::low  ? "low"
         : a == activity::high ? "high"
                               : "unknown";
}
[[nodiscard]] constexpr const char* name(answer a) noexcept {
  return a == answer::no ? "no" : a == answer::yes ? "yes" : "unknown";
}

/// Where much begins. The defaults are proposals, not measurements: calibrate them on real guests.
///
/// Shares are parts of 10 000 of the guest's capacity (see `capacity`). A level of `high` that was
/// reached is kept until the rate falls below the exit: half of the entry, except for stalls.
struct thresholds {
  std::uint64_t window_min = 200'000'000;    ///< nanoseconds; a shorter window says nothing
  std::uint64_t poll_period = 2'000'000'000; ///< nanoseconds
  std::uint64_t stale_periods = 3;           ///< a snapshot older than this many periods is stale

  /// Bytes of RAM the host gave the guest, used where it reports no total; 0: not known.
  std::uint64_t host_memory = 0;

  std::uint64_t stall_high = 10; ///< stalls per second; or five times the number of CPUs
  std::uint64_t stall_exit = 5;

  std::uint32_t direct_scan_high = 10;              ///< share per second
  std::uint64_t direct_scan_floor = 1024 * 1024;    ///< bytes per second: never high below it
  std::uint32_t async_scan_quiet = 1;               ///< share per second: less is `none`
  std::uint32_t async_scan_high = 50;               ///< share per second
  std::uint64_t async_scan_floor = 4 * 1024 * 1024; ///< bytes per second: never high below it
  std::uint64_t efficiency_scan_min = 1024 * 1024;  ///< bytes scanned: with less there is no ratio
  std::uint32_t efficiency_low = 3000;              ///< parts of 10 000: less is `low`
  std::uint32_t efficiency_split = 4500;            ///< between the two, where none is to be kept
  std::uint32_t efficiency_high = 6000;             ///< from here on `high`

  std::uint32_t headroom = 1000;          ///< share available above which an OOM kill is local
  std::uint32_t available_critical = 200; ///< shares available below which the degraded mode
  std::uint32_t available_high = 500;     ///< gives this level
  std::uint32_t available_medium = 1000;
  std::uint32_t available_low = 2000;
  std::uint32_t cache_share = 5000; ///< of the disk caches, where available is estimated
  std::uint64_t swap_in_raise_one = 1024 * 1024; ///< bytes per second that raise by one level
  std::uint64_t swap_in_raise_two = 10 * 1024 * 1024;
  std::uint64_t major_faults_raise = 100; ///< faults per second that raise by one level
};

/// A number that may be missing.
struct quantity {
  bool is_known = false;
  std::uint64_t value = 0;

  friend constexpr bool operator==(const quantity&, const quantity&) noexcept = default;
};

/// What one counter did in a window.
struct change {
  enum class outcome : std::uint8_t {
    missing, ///< not in both snapshots, or no counter
    known,
    reset, ///< it went back and did not wrap: the newer value is a new baseline
  };
  outcome state = outcome::missing;
  std::uint64_t amount = 0;     ///< bytes or events
  std::uint64_t per_second = 0; ///< rounded down: below one per second only `amount` shows it

  [[nodiscard]] constexpr bool is_known() const noexcept { return state == outcome::known; }
  friend constexpr bool operator==(const change&, const change&) noexcept = default;
};

/// `amount` per second, rounded down; UINT64_MAX where it would be more.
[[nodiscard]] constexpr std::uint64_t per_second(std::uint64_t amount,
                                                 std::uint64_t nanoseconds) noexcept {
  constexpr std::uint64_t million = 1'000'000;
  const std::uint64_t us = nanoseconds < 1000 ? 1 : nanoseconds / 1000;
  if (us > UINT64_MAX / million) // half a year and more
    return amount / (us / million);
  const std::uint64_t rest = amount % us * million / us;
  return amount / us > (UINT64_MAX - rest) / million ? UINT64_MAX : amount / us * million + rest;
}

/// So many parts of 10 000 of `whole`, rounded down.
[[nodiscard]] constexpr std::uint64_t share(std::uint64_t whole, std::uint32_t parts) noexcept {
  const std::uint64_t rest = whole % 10'000 * parts / 10'000;
  return parts != 0 && whole / 10'000 > (UINT64_MAX - rest) / parts ? UINT64_MAX
                                                                    : whole / 10'000 * parts + rest;
}

[[nodiscard]] constexpr std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) noexcept {
  return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/// How far a counter came from `before` to `after`.
///
/// One that goes back was reset, except where a 32-bit guest's would have wrapped: those count
/// events modulo 2^32, and pages, of 4 or 64 KiB, before they become bytes.
[[nodiscard]] constexpr change counter_change(statistic_unit unit, std::uint64_t before,
                                              std::uint64_t after) noexcept {
  if (before == not_reported || after == not_reported) return {};
  if (after >= before) return {change::outcome::known, after - before, 0};
  constexpr unsigned event_bits[] = {32};
  constexpr unsigned byte_bits[] = {32 + 12, 32 + 16};
  for (const unsigned bits :
       unit == statistic_unit::events ? std::span<const unsigned>(event_bits) : byte_bits) {
    const std::uint64_t modulus = std::uint64_t{1} << bits;
    const std::uint64_t wrapped = modulus - before + after;
    if (before < modulus && wrapped < modulus / 16) return {change::outcome::known, wrapped, 0};
  }
  return {change::outcome::reset, 0, 0};
}

/// What every counter did; gauges are missing.
class counter_changes {
 public:
  constexpr counter_changes() noexcept = default;
  /// `elapsed` is in nanoseconds. The snapshots are of one epoch: the caller saw to it.
  constexpr counter_changes(const snapshot& before, const snapshot& after,
                            std::uint64_t elapsed) noexcept {
    for (const statistic_info& row : statistic_table) {
      if (row.kind != statistic_kind::counter) continue;
      change& c = at_[static_cast<std::size_t>(row.tag)];
      c = counter_change(row.unit, before.value_or(row.tag, not_reported),
                         after.value_or(row.tag, not_reported));
      c.per_second = per_second(c.amount, elapsed);
      has_reset_ = has_reset_ || c.state == change::outcome::reset;
    }
  }

  /// Missing for a tag beyond the table.
  [[nodiscard]] constexpr change operator[](statistic_tag tag) const noexcept {
    return find_statistic(tag) == nullptr ? change{} : at_[static_cast<std::size_t>(tag)];
  }
  /// Whether any counter was reset.
  [[nodiscard]] constexpr bool has_reset() const noexcept { return has_reset_; }

  friend constexpr bool operator==(const counter_changes&,
                                   const counter_changes&) noexcept = default;

 private:
  change at_[statistic_count]{};
  bool has_reset_ = false;
};

/// Bytes of memory the guest would have with an empty balloon; 0: not known.
///
/// Linux takes the balloon off its total unless DEFLATE_ON_OOM was negotiated.
[[nodiscard]] constexpr std::uint64_t capacity(const snapshot& s, const thresholds& t) noexcept {
  if (s.value(statistic_tag::total_memory) == 0) return t.host_memory;
  const std::uint64_t balloon = s.deflate_on_oom ? 0 : std::uint64_t{4096} * s.actual_pages;
  return saturating_add(s.value(statistic_tag::total_memory), balloon);
}

/// Reclaimed by scanned, parts of 10 000, at most 10 000. Not known where too little was scanned.
[[nodiscard]] constexpr quantity efficiency(const change& scanned, const change& reclaimed,
                                            const thresholds& t) noexcept {
  if (!scanned.is_known() || !reclaimed.is_known() || scanned.amount == 0 ||
      scanned.amount < t.efficiency_scan_min)
    return {};
  if (reclaimed.amount >= scanned.amount) return {true, 10'000};
  if (scanned.amount > UINT64_MAX / 10'000)
    return {true, reclaimed.amount / (scanned.amount / 10'000)};
  return {true, reclaimed.amount * 10'000 / scanned.amount};
}

/// All that the rules ask for. A default one knows nothing: the `previous` of a first window.
struct levels {
  /// `actual` fell below the target without having been asked to, with DEFLATE_ON_OOM: the driver
  /// gave pages back to escape the OOM killer, which then kills nobody and counts nothing.
  answer deflated_unasked = answer::unknown;
  answer oom_kills = answer::unknown;
  answer has_headroom = answer::unknown; ///< so much is available that an OOM kill was local
  activity alloc_stalls = activity::unknown;
  activity async_scans = activity::unknown;
  activity direct_scans = activity::unknown;
  activity async_reclaims = activity::unknown;
  activity direct_reclaims = activity::unknown;

  friend constexpr bool operator==(const levels&, const levels&) noexcept = default;
};

/// The level of a rate; `previous` decides between exit and entry.
[[nodiscard]] constexpr activity rate_level(const change& c, std::uint64_t quiet,
                                            std::uint64_t enter, std::uint64_t exit,
                                            activity previous) noexcept {
  if (!c.is_known()) return activity::unknown;
  if (c.amount == 0 || c.per_second < quiet) return activity::none;
  const std::uint64_t bound = previous == activity::high ? exit : enter;
  return c.per_second >= bound ? activity::high : activity::low;
}

/// The level of a reclaim: its efficiency, or where there is none the level of its scan.
[[nodiscard]] constexpr activity reclaim_level(const change& scanned, const change& reclaimed,
                                               activity scan_level, const thresholds& t,
                                               activity previous) noexcept {
  if (!reclaimed.is_known()) return activity::unknown;
  if (reclaimed.amount == 0) return activity::none;
  const quantity ratio = efficiency(scanned, reclaimed, t);
  if (!ratio.is_known) return scan_level;
  if (ratio.value < t.efficiency_low) return activity::low;
  if (ratio.value >= t.efficiency_high) return activity::high;
  if (previous == activity::low || previous == activity::high) return previous;
  return ratio.value >= t.efficiency_split ? activity::high : activity::low;
}

/// The levels of a window: of these changes, between these snapshots of one epoch.
[[nodiscard]] constexpr levels find_levels(const snapshot& before, const snapshot& after,
                                           const counter_changes& changes, const thresholds& t,
                                           const levels& previous) noexcept {
  using tag = statistic_tag;
  const auto either = [](bool yes) { return yes ? answer::yes : answer::no; };
  const auto higher = [](std::uint64_t a, std::uint64_t b) { return a > b ? a : b; };
  const std::uint64_t memory = capacity(after, t);
  const std::uint64_t direct_high = higher(share(memory, t.direct_scan_high), t.direct_scan_floor);
  const std::uint64_t async_high = higher(share(memory, t.async_scan_high), t.async_scan_floor);

  levels l;
  // A lower target explains the fall; an equal or higher one does not.
  l.deflated_unasked =
      either(after.deflate_on_oom && after.actual_pages < before.actual_pages &&
             after.actual_pages < after.target_pages && after.target_pages >= before.target_pages);
  if (changes[tag::oom_kills].is_known()) l.oom_kills = either(changes[tag::oom_kills].amount != 0);
  if (memory != 0 && after.has(tag::available_memory))
    l.has_headroom = either(after.value(tag::available_memory) > share(memory, t.headroom));

  l.alloc_stalls =
      rate_level(changes[tag::alloc_stalls], 0, t.stall_high, t.stall_exit, previous.alloc_stalls);
  l.direct_scans = rate_level(changes[tag::direct_scans], 0, direct_high, direct_high / 2,
                              previous.direct_scans);
  l.async_scans = rate_level(changes[tag::async_scans], share(memory, t.async_scan_quiet),
                             async_high, async_high / 2, previous.async_scans);
  l.direct_reclaims = reclaim_level(changes[tag::direct_scans], changes[tag::direct_reclaims],
                                    l.direct_scans, t, previous.direct_reclaims);
  l.async_reclaims = reclaim_level(changes[tag::async_scans], changes[tag::async_reclaims],
                                   l.async_scans, t, previous.async_reclaims);
  return l;
}

/// The levels with no reclaim above its scan: where one is, the counters were read at different
/// moments. A reclaim that is not known is none where nothing was scanned.
[[nodiscard]] constexpr levels clamped(levels l) noexcept {
  const auto clamp = [](activity scan, activity& reclaim) {
    if (scan != activity::unknown && reclaim > scan &&
        (reclaim != activity::unknown || scan == activity::none))
      reclaim = scan;
  };
  clamp(l.direct_scans, l.direct_reclaims);
  clamp(l.async_scans, l.async_reclaims);
  return l;
}

/// Whether a snapshot is too old to judge by; `now` is on the clock of its `received_at`.
[[nodiscard]] constexpr bool is_stale(const snapshot& s, std::uint64_t now,
                                      const thresholds& t) noexcept {
  return now > s.received_at && t.poll_period != 0 &&
         (now - s.received_at) / t.poll_period >= t.stale_periods &&
         now - s.received_at != t.poll_period * t.stale_periods;
}

} // namespace ballast::balloon
