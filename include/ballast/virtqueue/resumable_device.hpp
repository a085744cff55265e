// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <concepts>
#include <cstdint>
#include <span>

namespace ballast {

/// A device whose rings can go on where others left them: after its memory map changed, after its
/// transport stopped them, and in another process after its own has died.
///
/// - `queue_state(queue)`: where a queue is, as if the chains that the device holds had not been
///   popped (`next_available` is `next_used`): whoever goes on from there pops them again, so that
///   each is returned once. Also while detached. Errors: `invalid_queue_index` (not one that is
///   enabled).
/// - `detach()`: lets go of the memory and keeps everything else. `attach(queues, memory)`: goes on
///   with what `detach` kept; `queues` lie where they lie now, of the same sizes.
/// - `resume(features, queues, memory, positions)`: `activate`, but queue i begins at
///   `positions[i]`; at its start where there is no such position, or its size is 0. Also for a
///   device that is detached: then it goes on without the queues that are not set up. Where the
///   driver may not have been told of what was published last, `unasked` says so.
template <class D, class M>
concept resumable_device_model =
    device_model<D, M> &&
    requires(D& d, const D& c, const feature_set& f, std::span<const queue_layout> queues, M& m,
             std::uint16_t queue, std::span<const device_queue_state> positions) {
      { c.queue_state(queue) } noexcept -> std::same_as<result<device_queue_state>>;
      { d.detach() } noexcept -> std::same_as<void>;
      { d.attach(queues, m) } noexcept -> std::same_as<actions>;
      { d.resume(f, queues, m, positions) } noexcept -> std::same_as<actions>;
    };

} // namespace ballast
