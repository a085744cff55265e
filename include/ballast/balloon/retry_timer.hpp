// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace ballast::balloon {

/// How long to wait after a failure before the next attempt, in the caller's ticks: `first`, then
/// twice as long each time, up to `longest`. With 0 there is no waiting.
struct retry_delays {
  std::uint64_t first = 0;
  std::uint64_t longest = 0;
};

/// When to try again. It has no clock: every call is told the time.
/// Linux sleeps 200 ms between two attempts, for ever: fill_balloon().
class retry_timer {
 public:
  /// Whether an attempt may be made at `now`. Ticks may begin anywhere, and wrap.
  [[nodiscard]] constexpr bool is_due(std::uint64_t now) const noexcept {
    return delay_ == 0 || static_cast<std::int64_t>(now - next_) >= 0;
  }

  /// An attempt failed at `now`.
  constexpr void failed(std::uint64_t now, const retry_delays& delays) noexcept {
    const std::uint64_t doubled = delay_ <= delays.longest / 2 ? 2 * delay_ : delays.longest;
    delay_ = delay_ == 0 ? delays.first : doubled > delays.first ? doubled : delays.first;
    next_ = now + delay_;
  }

  /// An attempt worked, or is to be made whatever the time is.
  constexpr void reset() noexcept { delay_ = 0; }

  [[nodiscard]] constexpr bool is_waiting() const noexcept { return delay_ != 0; }
  /// When the next attempt is due, while `is_waiting`.
  [[nodiscard]] constexpr std::uint64_t next() const noexcept { return next_; }

 private:
  std::uint64_t delay_ = 0; ///< 0: no attempt failed
  std::uint64_t next_ = 0;
};

} // namespace ballast::balloon
