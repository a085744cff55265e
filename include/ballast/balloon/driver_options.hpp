// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/retry_timer.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>

#include <cstdint>
#include <span>

namespace ballast::balloon {

struct driver_options {
  /// Features to accept where they are offered and the guest has what they need; VERSION_1 always
  /// is. DEFLATE_ON_OOM is for those who call `deflate_on_oom`.
  feature_set accepted{feature::must_tell_host, feature::stats_vq,
                       feature::free_page_hint, feature::page_poison,
                       feature::page_reporting, ballast::feature::event_idx};
  /// How the device numbers its queues, where it can't be found out.
  queue_numbering numbering = queue_numbering::by_offered;
  /// Without MUST_TELL_HOST: let pages be used before the device returned the deflate buffer.
  bool reuses_before_acknowledged = false;
  /// Where the ring indices begin: 0 for every real device. For tests near the wrap.
  std::uint16_t first_index = 0;
  /// The guest's free pages hold `poison_value` and must go on doing so. Without it PAGE_POISON is
  /// not accepted; with it, but without a device that knows of it, PAGE_REPORTING is not.
  bool has_poison = false;
  std::uint32_t poison_value = 0; ///< 0: free pages are zeroed
  /// How long a driver that got no page waits before it asks for one again.
  retry_delays retry{};
  /// Find out how the device numbers its queues: see `find_numbering`.
  bool finds_numbering = true;
};

/// The dependencies among features for a guest with poison: pages are not reported to a device that
/// may change them. Spec: "Feature bits" (driver requirements).
struct poison_dependencies {
  feature_dependency lines[sizeof(ring_feature_dependencies) / sizeof(feature_dependency) + 1]{};

  constexpr poison_dependencies() noexcept {
    feature_dependency* to = lines;
    for (const feature_dependency& line : ring_feature_dependencies) *to++ = line;
    *to = {feature::page_reporting, feature::page_poison};
  }
};
inline constexpr poison_dependencies poison_feature_dependencies;

/// What a driver accepts of `possible`, before it is known what the device offers.
/// Spec: "Feature bits" (driver requirements).
[[nodiscard]] constexpr feature_set accepted_features(const driver_options& options,
                                                      const feature_set& possible) noexcept {
  const feature_set accepted = options.accepted & possible;
  return options.has_poison ? accepted : accepted.without(feature::page_poison);
}

/// What that depends on beside what the device offers.
[[nodiscard]] constexpr std::span<const feature_dependency>
dependencies_of(const driver_options& options) noexcept {
  if (options.has_poison) return poison_feature_dependencies.lines;
  return ring_feature_dependencies;
}

/// Finds out how a device numbers its queues, which is not agreed upon, by asking where there are
/// any: the numbering under which exactly those exist; `otherwise` where none fits, as for a device
/// with queues that are not the specification's. A device that shows a queue only once its feature
/// is negotiated is told from one that shows all that it offers.
/// Spec: "Virtqueues", and the transports' rule that the size of a missing queue reads 0.
template <driver_transport T>
[[nodiscard]] constexpr queue_numbering find_numbering(T& transport, queue_numbering otherwise,
                                                       const feature_set& offered,
                                                       const feature_set& negotiated) noexcept {
  std::uint32_t there = 0;
  for (std::uint16_t i = 0; i < queue_kind_count; ++i)
    if (transport.queue_size_max(i) != 0) there |= 1u << i;
  const queue_numbering candidates[] = {queue_numbering::by_offered, queue_numbering::fixed,
                                        queue_numbering::by_negotiated};
  for (const queue_numbering numbering : candidates) {
    const bool shows_all = numbering != queue_numbering::by_negotiated;
    std::uint32_t expected = 0;
    for (std::uint16_t i = 0; i < queue_kind_count; ++i) {
      const auto at = queue_index(static_cast<queue_kind>(i), numbering, offered,
                                  shows_all ? offered : negotiated);
      if (at) expected |= 1u << *at;
    }
    if (expected == there) return numbering;
  }
  return otherwise;
}

} // namespace ballast::balloon
