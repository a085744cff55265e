// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// A virtio device without its transport: what mmio, pci, vhost-user and the in-process transport
/// drive, and what a device's author implements.
///
/// - `device_id()`, `offered_features()`, `queue_count()`, `queue_size_max(queue)` (entries; 0:
///   not available) stay the same between resets.
/// - `check_features(f)`: whether the device can work with the subset `f` the driver accepted;
///   dependencies and "only offered ones" were checked before (`check_accepted`).
/// - `config_size()` in bytes; `read_config` may come from any thread; `write_config` answers with
///   what to do. An access that passes the end is `config_out_of_range`.
/// - `activate(features, queues, memory)`: the driver set DRIVER_OK. `queues[i].size` is 0 for a
///   queue that was not set up. The device looks at every queue once (a driver may have made
///   buffers available, and even notified, before DRIVER_OK).
/// - `process(queue, budget)`: handles at most `budget` buffers of one queue.
/// - `reset_queue(queue)`, `enable_queue(queue, layout)`: one queue is taken from the device and
///   given to it again, maybe elsewhere and of another size, while the others go on (RING_RESET).
/// - `reset()`: back to the state after construction, except what belongs to the host (the target).
template <class D, class M>
concept device_model =
    guest_memory<M> &&
    requires(D& d, const D& c, const feature_set& f, std::span<const queue_layout> queues,
             const queue_layout& layout, M& m, std::uint16_t queue, std::uint32_t n,
             std::span<std::byte> to, std::span<const std::byte> from) {
      { c.device_id() } noexcept -> std::same_as<std::uint32_t>;
      { c.offered_features() } noexcept -> std::same_as<feature_set>;
      { c.check_features(f) } noexcept -> std::same_as<result<void>>;
      { c.queue_count() } noexcept -> std::same_as<std::uint16_t>;
      { c.queue_size_max(queue) } noexcept -> std::same_as<std::uint32_t>;
      { c.config_size() } noexcept -> std::same_as<std::uint32_t>;
      { c.read_config(n, to) } noexcept -> std::same_as<result<void>>;
      { c.config_generation() } noexcept -> std::same_as<std::uint32_t>;
      { d.write_config(n, from) } noexcept -> std::same_as<actions>;
      { d.activate(f, queues, m) } noexcept -> std::same_as<actions>;
      { d.process(queue, n) } noexcept -> std::same_as<actions>;
      { d.reset_queue(queue) } noexcept -> std::same_as<actions>;
      { d.enable_queue(queue, layout) } noexcept -> std::same_as<actions>;
      { d.reset() } noexcept -> std::same_as<void>;
    };

} // namespace ballast
