// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

namespace ballast {

/// Windows over the three parts of a packed virtqueue, each checked once.
template <guest_memory M> struct packed_rings {
  window_of<M> table;        ///< descriptor ring
  window_of<M> driver_event; ///< driver event suppression structure
  window_of<M> device_event; ///< device event suppression structure
};

/// The windows as one side may use them; both write the descriptor ring. `driver_event` and
/// `device_event` each are written by the side they are named after.
/// Errors: `invalid_queue_size`, `storage_too_small` (fewer entries than the queue has), the
/// memory's.
template <guest_memory M>
[[nodiscard]] constexpr result<packed_rings<M>>
map_packed_rings(M& memory, const queue_layout& layout, queue_side side,
                 std::size_t storage) noexcept {
  if (!packed::is_valid_size(layout.size)) return error::invalid_queue_size;
  if (layout.size > storage) return error::storage_too_small;
  const access drivers = side == queue_side::driver ? access::write : access::read;
  const access devices = side == queue_side::device ? access::write : access::read;
  const auto table =
      memory.window(layout.descriptor_area, packed::descriptor_ring_bytes(layout.size),
                    packed::descriptor_ring_alignment, access::write);
  if (!table) return table.error();
  const auto driver_event =
      memory.window(layout.driver_area, packed::event_size, packed::event_alignment, drivers);
  if (!driver_event) return driver_event.error();
  const auto device_event =
      memory.window(layout.device_area, packed::event_size, packed::event_alignment, devices);
  if (!device_event) return device_event.error();
  return packed_rings<M>{*table, *driver_event, *device_event};
}

/// A place in a packed ring: an entry, and the wrap counter of the side that is there, as the flags
/// of a descriptor that is used in this round (`packed::in_pair`).
/// Spec: "Driver and Device Ring Wrap Counters".
struct ring_place {
  static constexpr std::uint32_t used = packed::in_pair(packed::flag_used);
  static constexpr std::uint32_t both = packed::in_pair(packed::flag_available) | used;

  std::uint32_t index = 0;
  std::uint32_t used_flags = both; ///< `both` or none

  /// The flags of a descriptor that is available in this round.
  [[nodiscard]] [[gnu::always_inline]] constexpr std::uint32_t available_flags() const noexcept {
    return used_flags ^ used;
  }

  /// Whether the descriptor there is available, or used, in this round; of its id and flags.
  [[nodiscard]] [[gnu::always_inline]] constexpr bool
  is_available(std::uint32_t pair) const noexcept {
    return ((pair ^ used_flags) & both) == used;
  }
  [[nodiscard]] [[gnu::always_inline]] constexpr bool is_used(std::uint32_t pair) const noexcept {
    return ((pair ^ used_flags) & both) == 0;
  }

  /// Goes on by up to `size` entries.
  [[gnu::always_inline]] constexpr void advance(std::uint32_t entries,
                                                std::uint32_t size) noexcept {
    index += entries;
    if (index < size) [[likely]]
      return;
    index -= size;
    used_flags ^= both;
  }

  /// Goes back by up to `size` entries.
  constexpr void retreat(std::uint32_t entries, std::uint32_t size) noexcept {
    if (index < entries) {
      index += size;
      used_flags ^= both;
    }
    index -= entries;
  }

  /// The entry with the wrap counter in bit 15, as event suppression structures and saved states
  /// have it.
  [[nodiscard]] constexpr std::uint16_t word() const noexcept {
    return static_cast<std::uint16_t>(index | (used_flags == 0 ? 0u : 0x8000u));
  }
  [[nodiscard]] static constexpr ring_place of(std::uint16_t word) noexcept {
    return {word & 0x7fffu, (word & 0x8000) != 0 ? both : 0};
  }

  /// Behind `steps` entries of a life that began at entry 0 with the wrap counters at 1.
  [[nodiscard]] static constexpr ring_place behind(std::uint32_t steps,
                                                   std::uint32_t size) noexcept {
    return {steps % size, steps / size % 2 == 0 ? both : 0};
  }

  friend constexpr bool operator==(const ring_place&, const ring_place&) noexcept = default;
};

/// The entries from `from` to `to`, which is at most a round ahead.
[[nodiscard]] constexpr std::uint32_t entries_between(ring_place from, ring_place to,
                                                      std::uint32_t size) noexcept {
  return to.index - from.index + (from.used_flags == to.used_flags ? 0 : size);
}

/// Whether the other side is due a notification, now that this one has gone on by `steps` entries
/// to `now` since it last asked. One that waits for its place is at most a round behind, so the
/// place says which entry is meant. Spec: "Event Suppression Structure Format"; Linux:
/// virtqueue_kick_prepare_packed().
template <std::endian E>
[[nodiscard]] constexpr bool is_event_due(std::uint32_t raw, bool has_event_index, ring_place now,
                                          std::uint32_t steps, std::uint32_t size) noexcept {
  const auto event = packed::unpack_event<E>(raw);
  if (event.flags != packed::event_descriptor || !has_event_index)
    return event.flags != packed::event_disable; // reserved flags: better once too often
  return entries_between(ring_place::of(event.place), now, size) - 1 < steps;
}

} // namespace ballast
