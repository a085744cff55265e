// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>

#include <cstdint>

namespace ballast::balloon {

/// Whether a balloon of `actual` pages is what `target` asks for, in pages of 4096 bytes.
///
/// A guest with larger pages rounds the target up to a multiple of them. Which pages it has nobody
/// says, so each of 4, 16, 64 KiB ... up to `guest_page_size_max` may be the size: a guest of
/// smaller pages that passes through such a multiple seems to be there a few pages early.
/// Linux: update_balloon_size_func().
[[nodiscard]] constexpr bool is_target_reached(std::uint32_t actual, std::uint32_t target,
                                               std::uint32_t guest_page_size_max = 64u
                                                                                   << 10) noexcept {
  const std::uint64_t pages_max = guest_page_size_max / page_size;
  for (std::uint64_t pages = 1; pages == 1 || pages <= pages_max; pages *= 4)
    if ((target + pages - 1) / pages * pages == actual) return true;
  return false;
}

/// How a change of the balloon's size goes.
enum class adjustment_state : std::uint8_t {
  none,      ///< nothing was asked for yet
  under_way, ///< the driver is at it, or has not begun
  reached,   ///< the balloon has the size
  given_up,  ///< too slow for the caller's limits
};

/// How long a driver may take, in the caller's ticks, whatever they are; 0: as long as it wants.
struct adjustment_limits {
  std::uint64_t without_progress = 0; ///< since it last came nearer than ever before
  std::uint64_t altogether = 0;       ///< since the target was set
};

/// An adjustment of the balloon that can fail: a driver that finds no free page goes on trying for
/// ever and says nothing, so when it is enough is the caller's to decide.
///
///     balloon::adjustment change({.without_progress = 30});
///     device.set_target(pages);
///     change.begin(pages, device.actual(), now);
///     ... each second, and whenever `actual_changed`:
///     if (change.update(device.actual(), now) == adjustment_state::given_up)
///       device.set_target(device.actual());       // what it got is what it keeps
///
/// What was reached or given up stays so until the next `begin`, whatever the driver does after.
class adjustment {
 public:
  constexpr explicit adjustment(const adjustment_limits& limits = {},
                                std::uint32_t guest_page_size_max = 64u << 10) noexcept
      : limits_(limits), guest_page_size_max_(guest_page_size_max) {}

  /// A target was set, at the caller's time `now`.
  constexpr adjustment_state begin(std::uint32_t target, std::uint32_t actual,
                                   std::uint64_t now) noexcept {
    target_ = target;
    nearest_ = distance(actual);
    begun_at_ = progress_at_ = now;
    state_ = adjustment_state::under_way;
    return update(actual, now);
  }

  /// Looks where the driver is at the time `now`, which does not go backward.
  constexpr adjustment_state update(std::uint32_t actual, std::uint64_t now) noexcept {
    if (state_ != adjustment_state::under_way) return state_;
    if (distance(actual) < nearest_) {
      nearest_ = distance(actual);
      progress_at_ = now;
    }
    if (is_target_reached(actual, target_, guest_page_size_max_))
      state_ = adjustment_state::reached;
    else if (is_over(limits_.without_progress, progress_at_, now) ||
             is_over(limits_.altogether, begun_at_, now))
      state_ = adjustment_state::given_up;
    return state_;
  }

  [[nodiscard]] constexpr adjustment_state state() const noexcept { return state_; }
  [[nodiscard]] constexpr std::uint32_t target() const noexcept { return target_; }
  /// Pages of 4096 bytes that were missing, or too many, when the driver was nearest.
  [[nodiscard]] constexpr std::uint32_t missing_pages() const noexcept { return nearest_; }

 private:
  [[nodiscard]] constexpr std::uint32_t distance(std::uint32_t actual) const noexcept {
    return actual < target_ ? target_ - actual : actual - target_;
  }
  [[nodiscard]] static constexpr bool is_over(std::uint64_t limit, std::uint64_t since,
                                              std::uint64_t now) noexcept {
    return limit != 0 && now > since && now - since >= limit;
  }

  adjustment_limits limits_;
  std::uint32_t guest_page_size_max_;
  std::uint32_t target_ = 0;
  std::uint32_t nearest_ = 0; ///< to the target
  std::uint64_t begun_at_ = 0;
  std::uint64_t progress_at_ = 0;
  adjustment_state state_ = adjustment_state::none;
};

} // namespace ballast::balloon
