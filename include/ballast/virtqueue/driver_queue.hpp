// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/queue_state.hpp>

#include <concepts>
#include <cstdint>
#include <span>

namespace ballast {

/// What a driver remembers of one descriptor (split) or buffer id (packed); never shared with the
/// device.
struct driver_slot {
  std::uint64_t token = 0;       ///< of the chain that starts here or has this id
  std::uint32_t position = 0;    ///< of that chain among all that were added
  std::uint32_t writable = 0;    ///< bytes the device may write to that chain
  std::uint32_t descriptors = 0; ///< of the ring that the chain takes; 0: none is in flight
  std::uint16_t next = 0;        ///< in the free list; split: and along a chain
  std::uint16_t last = 0;        ///< split: the last descriptor of that chain, if it has several
};

/// A chain the device returned.
struct used_buffer {
  std::uint64_t token = 0;
  /// Bytes the device says it wrote, at most what it was allowed to write.
  std::uint32_t length = 0;
};

/// A chain of a single buffer, for `add_each`.
struct single_buffer {
  buffer data;
  bool is_writable = false;
  std::uint64_t token = 0;
};

/// Guest memory for indirect tables: one of `entries` descriptors for each descriptor of the ring.
struct indirect_tables {
  guest_address address = 0; ///< 16-aligned
  std::uint32_t entries = 0; ///< 0: none are used, every chain takes descriptors of the ring

  [[nodiscard]] constexpr std::uint64_t bytes(std::uint32_t queue_size) const noexcept {
    return std::uint64_t{queue_size} * entries * split::descriptor_size;
  }
};

/// A driver's queue at rest, beside its slots: plain values, for `save` and `restore`. A place in
/// the ring is an index modulo 2^16 (split), or an entry with the wrap counter in bit 15 (packed).
struct driver_queue_state {
  static constexpr std::uint32_t current_version = 1;
  std::uint32_t version = current_version;
  bool is_packed = false;
  std::uint32_t size = 0;           ///< entries
  std::uint16_t next_available = 0; ///< place of the next chain
  std::uint16_t next_used = 0;      ///< place of the next used element or descriptor
  /// Index steps (split) or descriptors (packed) published since the device was last asked whether
  /// to notify; 65536 for all above.
  std::uint32_t unasked = 0;
  /// IN_ORDER: what the used element read last stands for. Split: behind its last chain; packed:
  /// the id of that chain, 0xffff if all were taken.
  std::uint16_t run_end = 0;
  std::uint32_t run_length = 0; ///< bytes written to that chain
  std::uint16_t first_free = 0;
  std::uint16_t oldest = 0; ///< split IN_ORDER: the head that comes back next
  error cause = error::none;
};

/// The driver's side of a virtqueue of either format: what a driver of a device needs of it.
template <class Q, class M>
concept driver_queue =
    guest_memory<M> &&
    requires(Q& q, const Q& c, M& memory, const queue_layout& layout, const feature_set& features,
             std::uint16_t first_index, const indirect_tables& tables,
             std::span<const buffer> buffers, std::uint64_t token, std::uint32_t budget,
             std::uint16_t id, std::span<driver_slot> slots,
             std::span<const driver_slot> saved_slots, const driver_queue_state& state,
             void (*take_used)(const used_buffer&), void (*take_token)(std::uint64_t),
             single_buffer (*next)()) {
      {
        q.start(memory, layout, features, first_index, tables)
      } noexcept -> std::same_as<result<void>>;
      { q.attach(memory, layout, features, tables) } noexcept -> std::same_as<result<void>>;
      { q.detach() } noexcept;
      { c.is_attached() } noexcept -> std::same_as<bool>;
      { c.size() } noexcept -> std::same_as<std::uint32_t>;
      { c.free_descriptors() } noexcept -> std::same_as<std::uint32_t>;
      { c.in_flight() } noexcept -> std::same_as<std::uint32_t>;
      { c.cause() } noexcept -> std::same_as<error>;
      { q.add(buffers, buffers, token) } noexcept -> std::same_as<result<void>>;
      { q.add_each(budget, next) } noexcept -> std::same_as<result<std::uint32_t>>;
      { q.publish() } noexcept;
      { q.should_notify() } noexcept -> std::same_as<bool>;
      { q.publish_and_ask() } noexcept -> std::same_as<bool>;
      { c.notification_data(id) } noexcept -> std::same_as<std::uint32_t>;
      { q.pop_used() } noexcept -> std::same_as<result<used_buffer>>;
      { q.reclaim(budget, take_used) } noexcept -> std::same_as<result<std::uint32_t>>;
      { q.drain(take_token) } noexcept;
      { q.enable_notifications() } noexcept -> std::same_as<bool>;
      { q.disable_notifications() } noexcept;
      { c.save(slots) } noexcept -> std::same_as<result<driver_queue_state>>;
      {
        q.restore(memory, layout, features, state, saved_slots, tables)
      } noexcept -> std::same_as<result<void>>;
    };

} // namespace ballast
