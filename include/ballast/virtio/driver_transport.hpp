// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// How a driver reaches its device, whatever the bus: what mmio and pci implement on the driver's
/// side, and what a driver is written against.
///
/// - `status()`, `set_status(bits)`: the device status byte; writing 0 resets the device.
/// - `queue_size_max(queue)`: entries, 0 where the queue is not available.
/// - `set_up_queue(queue, layout)`: size and addresses, then enabled. Before DRIVER_OK, or after
///   `reset_queue`.
/// - `reset_queue(queue)`: takes a queue from the live device; when it returns without an error the
///   device touches it no more (RING_RESET).
/// - `read_config`, `write_config`: bytes at an offset; fields are read and written at their width.
/// - `notify(queue)`: an available buffer notification. Drivers never call it: they return
///   `actions`, and whoever runs the driver rings.
template <class T>
concept driver_transport =
    requires(T& t, const feature_set& f, std::uint16_t queue, const queue_layout& layout,
             std::uint32_t offset, std::uint8_t bits, std::span<std::byte> to,
             std::span<const std::byte> from) {
      { t.device_id() } noexcept -> std::same_as<std::uint32_t>;
      { t.device_features() } noexcept -> std::same_as<feature_set>;
      { t.set_driver_features(f) } noexcept;
      { t.status() } noexcept -> std::same_as<std::uint8_t>;
      { t.set_status(bits) } noexcept;
      { t.queue_size_max(queue) } noexcept -> std::same_as<std::uint32_t>;
      { t.set_up_queue(queue, layout) } noexcept -> std::same_as<result<void>>;
      { t.reset_queue(queue) } noexcept -> std::same_as<result<void>>;
      { t.config_generation() } noexcept -> std::same_as<std::uint32_t>;
      { t.read_config(offset, to) } noexcept -> std::same_as<result<void>>;
      { t.write_config(offset, from) } noexcept -> std::same_as<result<void>>;
      { t.notify(queue) } noexcept;
    };

} // namespace ballast
