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

/// What a device's queue of up to `N` entries needs, owned by the caller; the contents are the
/// queue's.
template <std::uint32_t N> struct device_queue_storage {
  buffer buffers[N]{};                      ///< of the chain popped last
  std::uint16_t popped[N]{};                ///< by ring entry: the head popped there and kept
  std::uint16_t descriptors[N]{};           ///< packed: by id, of the ring that the chain takes
  std::uint32_t in_flight[(N + 31) / 32]{}; ///< one bit per head that is kept
  std::uint32_t lives = 0;                  ///< begun so far, in either format
};

/// What a handler answers about a chain it was given.
struct disposition {
  bool is_used = false;
  std::uint32_t length = 0; ///< bytes written to the chain
};
/// Return the chain now; the device wrote `length` bytes to it.
[[nodiscard]] constexpr disposition used(std::uint32_t length = 0) noexcept {
  return {true, length};
}
/// The handler keeps the chain's id and returns it later with `push_used`.
[[nodiscard]] constexpr disposition keep() noexcept { return {}; }

/// What `consume` did.
struct consumed {
  std::uint32_t chains = 0;
  bool has_more = false; ///< the budget ran out first
};

/// What was read of a chain so far.
struct chain_progress {
  std::uint32_t buffers = 0;
  std::uint32_t readable = 0;
  std::uint64_t bytes = 0;

  /// Adds a buffer to `to`, which holds `limit`. Errors: `chain_loops` (it is full),
  /// `readable_after_writable`.
  [[gnu::always_inline]] constexpr error append(const buffer& b, bool is_writable, buffer* to,
                                                std::uint32_t limit) noexcept {
    if (buffers == limit) return error::chain_loops;
    if (!is_writable && readable++ != buffers) return error::readable_after_writable;
    to[buffers++] = b;
    bytes += b.length;
    return error::none;
  }

  /// Spec: "The Virtqueue Descriptor Table" bounds a chain to 2^32 bytes.
  [[nodiscard]] constexpr bool is_too_long() const noexcept { return bytes > 1ull << 32; }
  [[nodiscard]] constexpr chain finish(chain_id id, const buffer* first) const noexcept {
    return {id, first, readable, buffers - readable};
  }
};

/// A device's queue at rest, beside the chains it holds: plain values, for `save` and `restore`. A
/// place in the ring is an index modulo 2^16 (split), or an entry with the wrap counter in bit 15
/// (packed).
struct device_queue_state {
  static constexpr std::uint32_t current_version = 1;
  std::uint32_t version = current_version;
  bool is_packed = false;
  std::uint32_t size = 0;           ///< entries
  std::uint16_t next_available = 0; ///< place of the next chain to pop
  std::uint16_t next_used = 0;      ///< place of the next used element or descriptor
  /// Index steps (split) or descriptors (packed) published since the driver was last asked whether
  /// to notify; 65536 for all above.
  std::uint32_t unasked = 0;
  error cause = error::none; ///< of a broken queue
};

/// A chain that a saved queue held, as `save` gives it and `restore` takes it.
struct held_head {
  std::uint16_t head = 0;        ///< or buffer id
  std::uint16_t descriptors = 0; ///< packed: of the ring that it takes; split: 1

  friend constexpr bool operator==(const held_head&, const held_head&) noexcept = default;
};

/// Whether all heads of a saved state are below `size`, and none is there twice.
[[nodiscard]] constexpr bool are_distinct_heads(std::span<const held_head> held,
                                                std::uint32_t size) noexcept {
  std::uint32_t seen[max_queue_size / 32]{};
  for (const held_head& h : held) {
    const std::uint32_t bit = 1u << (h.head % 32);
    if (h.head >= size || h.head >= max_queue_size || (seen[h.head / 32] & bit) != 0) return false;
    seen[h.head / 32] |= bit;
  }
  return true;
}

/// The device's side of a virtqueue of either format: what a device needs of it.
template <class Q, class M>
concept device_queue =
    guest_memory<M> &&
    requires(Q& q, const Q& c, M& memory, const queue_layout& layout, const feature_set& features,
             std::uint16_t first_index, std::uint32_t budget, chain_id id, std::uint32_t length,
             error why, std::span<held_head> held, std::span<const held_head> saved_held,
             const device_queue_state& state, disposition (*handle)(const chain&)) {
      { q.start(memory, layout, features, first_index) } noexcept -> std::same_as<result<void>>;
      { q.reset() } noexcept;
      { q.attach(memory, layout, features) } noexcept -> std::same_as<result<void>>;
      { q.detach() } noexcept;
      { c.is_attached() } noexcept -> std::same_as<bool>;
      { c.size() } noexcept -> std::same_as<std::uint32_t>;
      { c.in_flight() } noexcept -> std::same_as<std::uint32_t>;
      { c.cause() } noexcept -> std::same_as<error>;
      { q.pop_available() } noexcept -> std::same_as<result<chain>>;
      { q.consume(budget, handle) } noexcept -> std::same_as<result<consumed>>;
      { q.consume_one(handle) } noexcept -> std::same_as<result<consumed>>;
      { q.push_used(id, length) } noexcept -> std::same_as<result<void>>;
      { q.unpop(budget) } noexcept -> std::same_as<result<void>>;
      { c.held_chain(std::uint16_t{}) } noexcept -> std::same_as<result<chain_id>>;
      { q.fail(why) } noexcept;
      { q.publish() } noexcept;
      { q.should_notify() } noexcept -> std::same_as<bool>;
      { q.publish_and_ask() } noexcept -> std::same_as<bool>;
      { q.enable_notifications() } noexcept -> std::same_as<bool>;
      { q.disable_notifications() } noexcept;
      { c.save(held) } noexcept -> std::same_as<result<device_queue_state>>;
      {
        q.restore(memory, layout, features, state, saved_held)
      } noexcept -> std::same_as<result<void>>;
    };

} // namespace ballast
