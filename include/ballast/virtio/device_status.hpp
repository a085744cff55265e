// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/shared_value.hpp>

#include <cstdint>

namespace ballast {

/// The bits of the device status byte. Spec: "Device Status Field".
namespace status {

inline constexpr std::uint8_t acknowledge = 1;
inline constexpr std::uint8_t driver = 2;
inline constexpr std::uint8_t driver_ok = 4;
inline constexpr std::uint8_t features_ok = 8;
inline constexpr std::uint8_t suspend = 16;
inline constexpr std::uint8_t needs_reset = 64;
inline constexpr std::uint8_t failed = 128;

} // namespace status

/// What a transport must do for a status write, before `device_status::confirm` makes it visible.
enum class status_step : std::uint8_t {
  none,           ///< nothing: the bits are in the status already
  reset,          ///< reset the device; forget features, queues and notifications
  check_features, ///< check what the driver accepted; don't confirm where the device can't
  activate        ///< the device is live from here on
};

/// The device's side of the status byte, one object for each device whatever the transport.
///
///     const auto step = status.write(bits, accepted);  // an error: refused, nothing changed
///     if (step && *step == status_step::activate) { start(); status.confirm(*step); }
///
/// Keeps the driver to the order of the initialisation, so that no device sees buffers before its
/// features, or is activated twice. A driver that has not accepted VERSION_1 is a legacy one and
/// leaves FEATURES_OK out; its features are then to be checked when it activates.
/// Undefined bits are ignored, and so is SUSPEND: no transport here offers that feature.
/// Ordering: `read`, the `is_` members and `set_needs_reset` may come from any thread; the caller
/// serialises `write` and `confirm`. Spec: "Device Status Field", "Device Initialization".
class device_status {
 public:
  /// The status byte as the driver reads it.
  [[nodiscard]] constexpr std::uint8_t read() const noexcept { return bits_.load(); }

  /// The driver wrote `bits`. What needs no step of the transport is visible at once; the bit of a
  /// step only when it is confirmed, and 0 only after the reset.
  /// Errors: a write that is refused changes nothing. `status_bit_cleared`, `status_out_of_order`
  /// (DRIVER_OK in the same write as FEATURES_OK too: the driver has not read it back),
  /// `status_after_failed`, `status_bit_of_device` (NEEDS_RESET), `device_needs_reset`.
  [[nodiscard]] constexpr result<status_step> write(std::uint8_t bits,
                                                    const feature_set& accepted) noexcept {
    if (bits == 0) return status_step::reset;
    const std::uint8_t now = read();
    const auto wants = [bits](std::uint8_t bit) { return (bits & bit) != 0; };
    const auto adds = [bits, now](std::uint8_t bit) { return (bits & ~now & bit) != 0; };
    if ((now & status::failed) != 0) return error::status_after_failed;
    if (adds(status::needs_reset)) return error::status_bit_of_device;
    // A driver that read the status before the device set NEEDS_RESET does not clear it.
    if ((now & ~bits & ~status::needs_reset) != 0) return error::status_bit_cleared;
    if (wants(status::failed)) {
      bits_.fetch_or(status::failed);
      return status_step::none;
    }
    if (adds(status::driver) && !wants(status::acknowledge)) return error::status_out_of_order;
    if (adds(status::features_ok) && (!wants(status::driver) || wants(status::driver_ok)))
      return error::status_out_of_order;
    if (adds(status::driver_ok) &&
        (!wants(status::driver) || (!is_legacy(accepted) && (now & status::features_ok) == 0)))
      return error::status_out_of_order;
    if ((now & status::needs_reset) != 0 && adds(status::features_ok | status::driver_ok))
      return error::device_needs_reset;
    bits_.fetch_or(static_cast<std::uint8_t>(bits & (status::acknowledge | status::driver)));
    if (adds(status::features_ok)) return status_step::check_features;
    if (adds(status::driver_ok)) return status_step::activate;
    return status_step::none;
  }

  /// The transport has done what `write` asked for: makes it visible.
  constexpr void confirm(status_step step) noexcept {
    switch (step) {
    case status_step::none: break;
    case status_step::reset: bits_.store(0); break;
    case status_step::check_features: bits_.fetch_or(status::features_ok); break;
    case status_step::activate: bits_.fetch_or(status::driver_ok); break;
    }
  }

  /// Goes on from what `read` said once.
  constexpr void restore(std::uint8_t bits) noexcept { bits_.store(bits); }

  /// The device can't go on. Whether a configuration change notification is due now: once, and
  /// only where DRIVER_OK is set. After a reset there is nothing to reset.
  [[nodiscard]] constexpr bool set_needs_reset() noexcept {
    if (read() == 0) return false;
    const std::uint8_t before = bits_.fetch_or(status::needs_reset);
    return (before & (status::needs_reset | status::driver_ok)) == status::driver_ok;
  }

  /// Whether the device may touch its queues and send notifications.
  [[nodiscard]] constexpr bool is_live() const noexcept {
    return (read() & (status::driver_ok | status::needs_reset | status::failed)) ==
           status::driver_ok;
  }

  /// Whether the driver may still write the features it accepts: only before FEATURES_OK.
  [[nodiscard]] constexpr bool is_accepting_features() const noexcept {
    return (read() & (status::features_ok | status::driver_ok | status::failed)) == 0;
  }

  /// Whether the driver may set up queues: negotiation is over and the device is not live.
  [[nodiscard]] constexpr bool is_accepting_queues(const feature_set& accepted) const noexcept {
    const std::uint8_t now = read();
    return (now & status::driver) != 0 && (now & (status::driver_ok | status::failed)) == 0 &&
           (is_legacy(accepted) || (now & status::features_ok) != 0);
  }

  /// Whether the driver may write the configuration: not during negotiation. A legacy driver may
  /// at any time, and one that has accepted nothing yet can't be told from it.
  /// Spec: "Legacy Interface: Device Initialization".
  [[nodiscard]] constexpr bool is_accepting_config(const feature_set& accepted) const noexcept {
    const std::uint8_t now = read();
    return (now & status::failed) == 0 && (is_legacy(accepted) || (now & status::features_ok) != 0);
  }

  [[nodiscard]] static constexpr bool is_legacy(const feature_set& accepted) noexcept {
    return !accepted.test(feature::version_1);
  }

 private:
  shared_value<std::uint8_t> bits_;
};

} // namespace ballast
