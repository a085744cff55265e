// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/config_space.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// A device that watches its transport: whatever a guest does, the device is called as
/// `device_model` says, and `wrongs` stays 0. It answers what it is told to, and touches no memory.
template <ballast::guest_memory M> class witness_device {
 public:
  static constexpr std::uint16_t count = 3; ///< queues; 1 is not available
  static constexpr std::uint32_t size_max = 128, config_bytes = 12;

  // What a test sets.
  ballast::feature_set offered{1,
                               ballast::feature::event_idx,
                               ballast::feature::version_1,
                               ballast::feature::ring_packed,
                               ballast::feature::notification_data,
                               ballast::feature::ring_reset};
  ballast::actions activate_answer{}, process_answer{}, enable_answer{}, write_answer{};
  ballast::config_space<config_bytes> config{{4, 4}}; ///< bytes 4 to 7 are the driver's

  // What came.
  std::uint32_t wrongs = 0; ///< calls that the transport may not make
  std::uint32_t activations = 0, resets = 0, queue_resets = 0, processed = 0;
  std::uint16_t last_queue = 0xffff;
  std::uint32_t last_budget = 0;
  ballast::feature_set features{};
  std::array<ballast::queue_layout, count> queues{}; ///< size 0: the device may not touch it
  bool is_active = false;

  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return 77; }
  [[nodiscard]] constexpr ballast::feature_set offered_features() const noexcept { return offered; }
  [[nodiscard]] constexpr ballast::result<void>
  check_features(const ballast::feature_set&) const noexcept {
    return {};
  }
  [[nodiscard]] constexpr std::uint16_t queue_count() const noexcept { return count; }
  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) const noexcept {
    return queue == 1 ? 0 : size_max;
  }
  [[nodiscard]] constexpr std::uint32_t config_size() const noexcept { return config_bytes; }
  [[nodiscard]] constexpr ballast::result<void>
  read_config(std::uint32_t offset, std::span<std::byte> to) const noexcept {
    return config.read(offset, to);
  }
  [[nodiscard]] constexpr std::uint32_t config_generation() const noexcept {
    return config.generation();
  }
  constexpr ballast::actions write_config(std::uint32_t offset,
                                          std::span<const std::byte> from) noexcept {
    expect(offset <= config_bytes && from.size() <= config_bytes - offset);
    if (const auto written = config.write(offset, from); !written)
      return ballast::refused(written.error());
    return write_answer;
  }
  constexpr ballast::actions activate(const ballast::feature_set& negotiated,
                                      std::span<const ballast::queue_layout> layouts, M&) noexcept {
    expect(!is_active && layouts.size() == count && negotiated.is_subset_of(offered));
    features = negotiated;
    for (std::uint16_t i = 0; i < layouts.size(); ++i) {
      expect(layouts[i].size == 0 || is_queue(i, layouts[i]));
      queues[i] = layouts[i];
    }
    ++activations;
    is_active = activate_answer.failure == ballast::error::none || activate_answer.needs_reset;
    if (!is_active) queues = {};
    return activate_answer;
  }
  constexpr ballast::actions process(std::uint16_t queue, std::uint32_t budget) noexcept {
    expect(is_active && queue < count && queues[queue].size != 0);
    ++processed;
    last_queue = queue;
    last_budget = budget;
    return process_answer;
  }
  constexpr ballast::actions reset_queue(std::uint16_t queue) noexcept {
    expect(is_active && queue < count && queues[queue].size != 0);
    if (queue < count) queues[queue] = {};
    ++queue_resets;
    last_queue = queue;
    return {};
  }
  constexpr ballast::actions enable_queue(std::uint16_t queue,
                                          const ballast::queue_layout& layout) noexcept {
    expect(is_active && queue < count && queues[queue].size == 0 && is_queue(queue, layout));
    if (queue < count && enable_answer.failure == ballast::error::none) queues[queue] = layout;
    return enable_answer;
  }
  constexpr void reset() noexcept {
    is_active = false;
    features = {};
    queues = {};
    ++resets;
  }

 private:
  constexpr void expect(bool is_right) noexcept { wrongs += !is_right; }
  [[nodiscard]] static constexpr bool is_queue(std::uint16_t index,
                                               const ballast::queue_layout& at) noexcept {
    return index != 1 && at.size != 0 && at.size <= size_max;
  }
};

} // namespace ballast_test
