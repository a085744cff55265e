// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// What a driver brings to the negotiation.
struct driver_requirements {
  std::uint32_t device_id = 0;
  feature_set supported; ///< what the driver can work with; undefined bits are never accepted
  feature_set required;  ///< what it can't do without
  std::span<const feature_dependency> dependencies = ring_feature_dependencies;
  std::uint32_t reset_attempts = 1'000'000; ///< reads of the status until it is to be 0
};

/// Sets FAILED: the driver gives the device up until it resets it. Spec: "Device Status Field".
template <driver_transport T> constexpr void set_failed(T& transport) noexcept {
  transport.set_status(static_cast<std::uint8_t>(transport.status() | status::failed));
}

/// Resets the device and reads its status until that is 0, at most `attempts` times.
/// Errors: `reset_incomplete`: nothing may be freed yet; call again, later if need be.
/// Spec: "Device Reset".
template <driver_transport T>
[[nodiscard]] constexpr result<void> reset_device(T& transport, std::uint32_t attempts) noexcept {
  transport.set_status(0);
  for (; attempts > 0; --attempts)
    if (transport.status() == 0) return {};
  return error::reset_incomplete;
}

/// The initialisation of a device up to where its queues can be set up: resets it, agrees on
/// features and gives the accepted ones; `set_driver_ok` ends it.
///
/// Accepts what is offered and supported, less what lacks a dependency; VERSION_1 whenever it is
/// offered. Where it isn't the device is a legacy one (the result lacks VERSION_1) and there is no
/// FEATURES_OK.
/// Errors: `wrong_device_id` (the device was not touched), `reset_incomplete`; and with FAILED set:
/// `not_negotiated` (a required feature is missing), `features_rejected`, `device_needs_reset`.
/// Spec: "Device Initialization", "Feature Bits", "Legacy Interface: Device Initialization".
template <driver_transport T>
[[nodiscard]] constexpr result<feature_set> negotiate(T& transport,
                                                      const driver_requirements& wants) noexcept {
  if (transport.device_id() != wants.device_id) return error::wrong_device_id;
  if (const auto reset = reset_device(transport, wants.reset_attempts); !reset)
    return reset.error();
  transport.set_status(status::acknowledge);
  transport.set_status(status::acknowledge | status::driver);

  feature_set accepted = transport.device_features() & wants.supported.with(feature::version_1);
  for (unsigned bit = 0; bit < feature_set::capacity; ++bit)
    if (!feature::is_defined(bit)) accepted.clear(bit);
  accepted = drop_unmet_dependencies(accepted, wants.dependencies);
  if (!wants.required.is_subset_of(accepted)) {
    set_failed(transport);
    return error::not_negotiated;
  }
  transport.set_driver_features(accepted);

  const bool is_modern = accepted.test(feature::version_1);
  if (is_modern) transport.set_status(status::acknowledge | status::driver | status::features_ok);
  const std::uint8_t now = transport.status();
  if ((now & status::needs_reset) != 0) {
    set_failed(transport);
    return error::device_needs_reset;
  }
  if (is_modern && (now & status::features_ok) == 0) {
    set_failed(transport);
    return error::features_rejected;
  }
  return accepted;
}

/// The queues are set up and the configuration is read: the device is live from here on.
/// Errors, with FAILED set: `device_needs_reset`, `wrong_state` (the device did not take it).
template <driver_transport T>
[[nodiscard]] constexpr result<void> set_driver_ok(T& transport) noexcept {
  transport.set_status(static_cast<std::uint8_t>(transport.status() | status::driver_ok));
  const std::uint8_t now = transport.status();
  if ((now & (status::driver_ok | status::needs_reset)) == status::driver_ok) return {};
  set_failed(transport);
  return (now & status::needs_reset) != 0 ? error::device_needs_reset : error::wrong_state;
}

/// Reads configuration fields that belong together: again until the generation stood still.
///
/// A legacy device has no generation; there a single field of up to 32 bits is consistent by
/// itself, and more than that is not.
/// Errors: `config_unstable` after `attempts` tries; what the transport says.
/// Spec: "Device Configuration Space" (driver requirements).
template <driver_transport T>
[[nodiscard]] constexpr result<void> read_config_consistent(T& transport, std::uint32_t offset,
                                                            std::span<std::byte> to,
                                                            unsigned attempts = 16) noexcept {
  for (; attempts > 0; --attempts) {
    const std::uint32_t before = transport.config_generation();
    if (const auto read = transport.read_config(offset, to); !read) return read;
    if (transport.config_generation() == before) return {};
  }
  return error::config_unstable;
}

} // namespace ballast
