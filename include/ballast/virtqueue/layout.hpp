// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

namespace ballast {

/// The largest queue size of either format. Spec: "Split Virtqueues", "Packed Virtqueues".
inline constexpr std::uint32_t max_queue_size = 32768;

/// Where the three parts of a virtqueue lie, in the words of the transports.
struct queue_layout {
  std::uint32_t size = 0;            ///< entries
  guest_address descriptor_area = 0; ///< split: descriptor table; packed: descriptor ring
  guest_address driver_area = 0;     ///< split: available ring; packed: driver event suppression
  guest_address device_area = 0;     ///< split: used ring; packed: device event suppression

  friend constexpr bool operator==(const queue_layout&, const queue_layout&) noexcept = default;
};

/// The parts of a queue laid out one after the other, each aligned; `end` is the first address
/// behind them.
struct placement {
  queue_layout layout;
  guest_address end = 0;
};

enum class queue_side : std::uint8_t { driver, device };

/// The width of a ring word, and whether both sides touch it at any time.
struct word_class {
  std::uint8_t width = 0; ///< bytes; 0: no word starts here
  bool is_atomic = false;

  friend constexpr bool operator==(const word_class&, const word_class&) noexcept = default;
};

/// Every offset, width and access class of the split format, in bytes from the start of each part.
/// Spec: "Split Virtqueues".
namespace split {

enum class part : std::uint8_t { descriptor_table, available_ring, used_ring };

inline constexpr std::uint32_t descriptor_table_alignment = 16;
inline constexpr std::uint32_t available_ring_alignment = 2;
inline constexpr std::uint32_t used_ring_alignment = 4;

// A descriptor is two plain 64-bit words: the address; and length, flags, next together. One load
// each: what was checked is what is used, and what one store wrote one load can forward.
inline constexpr std::uint32_t descriptor_size = 16;
[[nodiscard]] constexpr std::size_t descriptor_address(std::size_t i) noexcept { return 16 * i; }
[[nodiscard]] constexpr std::size_t descriptor_rest(std::size_t i) noexcept { return 16 * i + 8; }

inline constexpr std::uint16_t flag_next = 1;
inline constexpr std::uint16_t flag_write = 2;
inline constexpr std::uint16_t flag_indirect = 4;

/// The second word of a descriptor.
struct descriptor_fields {
  std::uint32_t length = 0; ///< bytes
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};

/// The second word of a descriptor as it lies in memory, for rings in the byte order `E`.
template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr std::uint64_t pack(descriptor_fields f) noexcept {
  const std::uint64_t length = f.length, flags = f.flags, next = f.next;
  if constexpr (E == std::endian::little)
    return to_order<E>(length | flags << 32 | next << 48);
  else
    return to_order<E>(length << 32 | flags << 16 | next);
}

template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr descriptor_fields
unpack(std::uint64_t raw) noexcept {
  const std::uint64_t word = to_order<E>(raw);
  if constexpr (E == std::endian::little)
    return {static_cast<std::uint32_t>(word), static_cast<std::uint16_t>(word >> 32),
            static_cast<std::uint16_t>(word >> 48)};
  else
    return {static_cast<std::uint32_t>(word >> 32), static_cast<std::uint16_t>(word >> 16),
            static_cast<std::uint16_t>(word)};
}

// Flags, index and event word are 16-bit atomics; ring entries are plain.
inline constexpr std::uint32_t available_flags = 0;
inline constexpr std::uint32_t available_index = 2;
[[nodiscard]] constexpr std::size_t available_entry(std::size_t i) noexcept { return 4 + 2 * i; }
[[nodiscard]] constexpr std::size_t used_event(std::size_t size) noexcept { return 4 + 2 * size; }
inline constexpr std::uint16_t no_interrupt = 1; ///< in available_flags

inline constexpr std::uint32_t used_flags = 0;
inline constexpr std::uint32_t used_index = 2;
// A used element is two plain 32-bit words: the used ring is only 4-aligned.
[[nodiscard]] constexpr std::size_t used_id(std::size_t i) noexcept { return 4 + 8 * i; }
[[nodiscard]] constexpr std::size_t used_length(std::size_t i) noexcept { return 8 + 8 * i; }
[[nodiscard]] constexpr std::size_t available_event(std::size_t size) noexcept {
  return 4 + 8 * size;
}
inline constexpr std::uint16_t no_notify = 1; ///< in used_flags

[[nodiscard]] constexpr std::uint32_t descriptor_table_bytes(std::uint32_t size) noexcept {
  return 16 * size;
}
[[nodiscard]] constexpr std::uint32_t available_ring_bytes(std::uint32_t size) noexcept {
  return 6 + 2 * size;
}
[[nodiscard]] constexpr std::uint32_t used_ring_bytes(std::uint32_t size) noexcept {
  return 6 + 8 * size;
}

[[nodiscard]] constexpr bool is_valid_size(std::uint32_t size) noexcept {
  return size != 0 && (size & (size - 1)) == 0 && size <= max_queue_size; // no libgcc call
}

/// The word that starts at `offset` of a part, for accessors that check every access.
[[nodiscard]] constexpr word_class word_at(part p, std::uint32_t size,
                                           std::uint32_t offset) noexcept {
  switch (p) {
  case part::descriptor_table:
    if (offset < descriptor_table_bytes(size) && offset % 8 == 0) return {8, false};
    break;
  case part::available_ring:
    if (offset == available_flags || offset == available_index || offset == used_event(size))
      return {2, true};
    if (offset < used_event(size) && offset % 2 == 0) return {2, false};
    break;
  case part::used_ring:
    if (offset == used_flags || offset == used_index || offset == available_event(size))
      return {2, true};
    if (offset < available_event(size) && offset % 4 == 0) return {4, false};
    break;
  }
  return {};
}

/// The places of a queue of `size` entries from the first 16-aligned address not below `base`. Not
/// checked: `start` checks size and memory.
[[nodiscard]] constexpr placement place(guest_address base, std::uint32_t size) noexcept {
  const auto align = [](guest_address a, std::uint32_t to) { return (a + to - 1) & ~(to - 1ull); };
  queue_layout at{.size = size};
  at.descriptor_area = align(base, descriptor_table_alignment);
  at.driver_area =
      align(at.descriptor_area + descriptor_table_bytes(size), available_ring_alignment);
  at.device_area = align(at.driver_area + available_ring_bytes(size), used_ring_alignment);
  return {at, at.device_area + used_ring_bytes(size)};
}

/// The contiguous layout of the legacy interface: the used ring begins at the next multiple of
/// `alignment`, all of it is a multiple long. `base` is where the driver put it (page frame number
/// times page size). Errors: `invalid_queue_size`, `misaligned` (`alignment` or `base`).
/// Spec: "Legacy Interfaces: A Note on Virtqueue Layout".
[[nodiscard]] constexpr result<placement> place_legacy(guest_address base, std::uint32_t size,
                                                       std::uint32_t alignment) noexcept {
  if (!is_valid_size(size)) return error::invalid_queue_size;
  if (!std::has_single_bit(alignment) || alignment < descriptor_table_alignment ||
      base % alignment != 0)
    return error::misaligned;
  const auto align = [&](guest_address a) { return (a + alignment - 1) & ~(alignment - 1ull); };
  queue_layout at{.size = size, .descriptor_area = base};
  at.driver_area = base + descriptor_table_bytes(size);
  at.device_area = align(at.driver_area + available_ring_bytes(size));
  return placement{at, align(at.device_area + used_ring_bytes(size))};
}

} // namespace split

/// Every offset, width and access class of the packed format, in bytes from the start of each part.
/// Spec: "Packed Virtqueues".
namespace packed {

enum class part : std::uint8_t { descriptor_ring, driver_event, device_event };

inline constexpr std::uint32_t descriptor_ring_alignment = 16;
inline constexpr std::uint32_t event_alignment = 4;

// A descriptor is a plain 64-bit word, the address, and an atomic one: length, buffer id and flags
// together. Both sides write it; its flags say whose the descriptor is.
inline constexpr std::uint32_t descriptor_size = 16;
[[nodiscard]] constexpr std::size_t descriptor_address(std::size_t i) noexcept { return 16 * i; }
[[nodiscard]] constexpr std::size_t descriptor_rest(std::size_t i) noexcept { return 16 * i + 8; }

inline constexpr std::uint16_t flag_next = 1;
inline constexpr std::uint16_t flag_write = 2;
inline constexpr std::uint16_t flag_indirect = 4;
inline constexpr std::uint16_t flag_available = 1 << 7;
inline constexpr std::uint16_t flag_used = 1 << 15;

/// The second word of a descriptor.
struct descriptor_fields {
  std::uint32_t length = 0; ///< bytes
  std::uint16_t id = 0;     ///< buffer id
  std::uint16_t flags = 0;
};

/// Buffer id and flags as one value, the flags from bit 16 on: so they are told apart and put
/// together with the fewest steps.
[[nodiscard]] constexpr std::uint32_t in_pair(unsigned flags) noexcept { return flags << 16; }

/// The second word of a descriptor as it lies in memory, for rings in the byte order `E`.
template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr std::uint64_t pack(std::uint32_t length,
                                                                  std::uint32_t pair) noexcept {
  if constexpr (E == std::endian::little)
    return to_order<E>(length | std::uint64_t{pair} << 32);
  else
    return to_order<E>(std::uint64_t{length} << 32 | std::rotl(pair, 16));
}
template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr std::uint64_t pack(descriptor_fields f) noexcept {
  return pack<E>(f.length, f.id | in_pair(f.flags));
}

/// The length of a descriptor's second word.
template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr std::uint32_t length_of(std::uint64_t raw) noexcept {
  return static_cast<std::uint32_t>(to_order<E>(raw) >> (E == std::endian::little ? 0 : 32));
}
/// Its id and flags as one value.
template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr std::uint32_t pair_of(std::uint64_t raw) noexcept {
  if constexpr (E == std::endian::little)
    return static_cast<std::uint32_t>(to_order<E>(raw) >> 32);
  else
    return std::rotl(static_cast<std::uint32_t>(to_order<E>(raw)), 16);
}
template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr descriptor_fields
unpack(std::uint64_t raw) noexcept {
  const std::uint32_t pair = pair_of<E>(raw);
  return {length_of<E>(raw), static_cast<std::uint16_t>(pair),
          static_cast<std::uint16_t>(pair >> 16)};
}

// An event suppression structure is one atomic 32-bit word: a place in the ring, and flags.
inline constexpr std::uint32_t event_size = 4;
inline constexpr std::uint16_t event_enable = 0;
inline constexpr std::uint16_t event_disable = 1;
inline constexpr std::uint16_t event_descriptor = 2; ///< at that place; with EVENT_IDX only

/// An event suppression structure.
struct event_fields {
  std::uint16_t place = 0; ///< entry; bit 15: wrap counter
  std::uint16_t flags = 0;
};

template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr std::uint32_t pack_event(event_fields f) noexcept {
  const std::uint32_t place = f.place, flags = f.flags;
  return to_order<E>(E == std::endian::little ? place | flags << 16 : place << 16 | flags);
}
template <std::endian E>
[[nodiscard]] [[gnu::always_inline]] constexpr event_fields
unpack_event(std::uint32_t raw) noexcept {
  const std::uint32_t word = to_order<E>(raw);
  const auto low = static_cast<std::uint16_t>(word), high = static_cast<std::uint16_t>(word >> 16);
  if constexpr (E == std::endian::little)
    return {low, high};
  else
    return {high, low};
}

[[nodiscard]] constexpr std::uint32_t descriptor_ring_bytes(std::uint32_t size) noexcept {
  return 16 * size;
}

/// Unlike in the split format, no power of two is needed.
[[nodiscard]] constexpr bool is_valid_size(std::uint32_t size) noexcept {
  return size != 0 && size <= max_queue_size;
}

/// The word that starts at `offset` of a part, for accessors that check every access.
[[nodiscard]] constexpr word_class word_at(part p, std::uint32_t size,
                                           std::uint32_t offset) noexcept {
  if (p != part::descriptor_ring) return offset == 0 ? word_class{4, true} : word_class{};
  if (offset >= descriptor_ring_bytes(size) || offset % 8 != 0) return {};
  return {8, offset % 16 != 0};
}

/// The places of a queue of `size` entries from the first 16-aligned address not below `base`. Not
/// checked: `start` checks size and memory.
[[nodiscard]] constexpr placement place(guest_address base, std::uint32_t size) noexcept {
  queue_layout at{.size = size, .descriptor_area = (base + 15) & ~guest_address{15}};
  at.driver_area = at.descriptor_area + descriptor_ring_bytes(size);
  at.device_area = at.driver_area + event_size;
  return {at, at.device_area + event_size};
}

} // namespace packed

/// Whether a side that asked to be told at `event` is due a notification, now that the other side's
/// index went from `old` to `now`. Modulo 2^16; true for exactly one index of each round.
/// Spec: "Available Buffer Notification Suppression"; Linux: vring_need_event().
[[nodiscard]] constexpr bool need_event(std::uint16_t event, std::uint16_t now,
                                        std::uint16_t old) noexcept {
  return static_cast<std::uint16_t>(now - event - 1) < static_cast<std::uint16_t>(now - old);
}

/// The same for indices that count on through 32 bits: whole rounds between two checks are not
/// missed, since their difference is not cut to 16 bits.
[[nodiscard]] constexpr bool need_event_since(std::uint16_t event, std::uint32_t now,
                                              std::uint32_t old) noexcept {
  return static_cast<std::uint16_t>(now - event - 1) < now - old;
}

} // namespace ballast
