// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <cstdint>

namespace ballast {

/// What the caller must now do: the one return type of every entry point of a device or a driver.
///
/// The library owns no interrupt, register or eventfd, so it says what is due and the caller does
/// it. Bit n of a mask stands for queue n. Of a device: `notify_queues` are used buffer
/// notifications and `config_changed` is a configuration change notification. Of a driver:
/// `notify_queues` are available buffer notifications.
struct [[nodiscard]] actions {
  std::uint64_t notify_queues = 0;
  /// Queues whose budget ran out: process them again. Of a driver, not 0: call `step` again.
  std::uint64_t more_work = 0;
  bool config_changed = false;
  /// The device can't go on: DEVICE_NEEDS_RESET is to be set, which is a configuration change too.
  /// The transports here do that, in `carry_out` for what was called on the device itself. Of a
  /// driver: it can't go on with this device; `start` it again, which resets the device.
  bool needs_reset = false;
  /// Why `needs_reset` is set, or why the call was refused and did nothing. Of a guest's write of a
  /// register it is the guest's mistake; the other members say what is due all the same.
  error failure = error::none;

  /// Collects what several calls asked for; the first failure stays.
  constexpr actions& operator|=(const actions& other) noexcept {
    notify_queues |= other.notify_queues;
    more_work |= other.more_work;
    config_changed |= other.config_changed;
    needs_reset |= other.needs_reset;
    if (failure == error::none) failure = other.failure;
    return *this;
  }

  [[nodiscard]] constexpr bool notifies(unsigned queue) const noexcept {
    return ((notify_queues >> queue) & 1) != 0;
  }

  friend constexpr bool operator==(const actions&, const actions&) noexcept = default;
};

/// A call that was refused and did nothing.
[[nodiscard]] constexpr actions refused(error why) noexcept { return {.failure = why}; }

} // namespace ballast
