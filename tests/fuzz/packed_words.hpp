// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>

// What the words of a packed ring mean, worked out from a count of the descriptors since the ring's
// life began: the engine's own helpers take no part.

namespace ballast_fuzz {

/// Steps begin at an even round, so that one can count two rounds back.
[[nodiscard]] inline std::uint32_t packed_first_step(std::uint32_t size) noexcept {
  return 4 * size;
}
[[nodiscard]] inline bool packed_wrap(std::uint32_t step, std::uint32_t size) noexcept {
  return step / size % 2 == 0;
}
[[nodiscard]] inline unsigned packed_available_flags(std::uint32_t step,
                                                     std::uint32_t size) noexcept {
  return packed_wrap(step, size) ? 0x80 : 0x8000;
}
[[nodiscard]] inline unsigned packed_used_flags(std::uint32_t step, std::uint32_t size) noexcept {
  return packed_wrap(step, size) ? 0x8080 : 0;
}
[[nodiscard]] inline std::uint16_t packed_place(std::uint32_t step, std::uint32_t size) noexcept {
  return static_cast<std::uint16_t>(step % size | (packed_wrap(step, size) ? 0x8000u : 0u));
}
/// The first step that has this place; the place of none for an entry that the ring has not.
[[nodiscard]] inline std::uint32_t packed_step(std::uint16_t place, std::uint32_t size) noexcept {
  return packed_first_step(size) + (place & 0x7fffu) + ((place & 0x8000) != 0 ? 0 : size);
}
[[nodiscard]] inline std::uint16_t corrupt_place(input& in, std::uint16_t place,
                                                 std::uint32_t size) {
  const std::uint8_t how = in.byte();
  if (how >= 0xf0 || size == 0) return in.number<std::uint16_t>();
  return packed_place(packed_step(place, size) + how % 16u, size);
}

/// Whether places in a saved state are places of its ring.
template <class State> [[nodiscard]] bool is_packed_state(const State& state) {
  return state.size != 0 && (state.next_available & 0x7fffu) < state.size &&
         (state.next_used & 0x7fffu) < state.size;
}

/// Whether an event suppression structure was written so.
template <std::endian E>
[[nodiscard]] bool is_event(const stored_word& s, guest_address at, std::uint16_t place,
                            std::uint16_t flags) noexcept {
  return s.address == at && s.width == 4 &&
         s.value == ballast::packed::pack_event<E>({place, flags});
}

/// Checks the answer of `should_notify` after the descriptors from `old` to `now` were published.
template <std::endian E>
void check_due(std::uint32_t raw, bool has_event_index, bool answer, std::uint32_t old,
               std::uint32_t now, std::uint32_t size) {
  const auto event = ballast::packed::unpack_event<E>(raw);
  if (event.flags != ballast::packed::event_descriptor || !has_event_index)
    return require(answer == (event.flags != ballast::packed::event_disable),
                   "the other side is notified as flags say");
  if ((event.place & 0x7fffu) >= size) return; // of no descriptor
  // One that waits is at most a round behind; a place further back was left there.
  const std::uint32_t steps = std::min(now - old, 2 * size);
  for (std::uint32_t back = 1; back <= steps; ++back) {
    if (packed_place(now - back, size) != event.place) continue;
    return require(answer || back > size, "the other side is notified where its place is reached");
  }
  require(!answer, "nobody is notified who waits for another place");
}

} // namespace ballast_fuzz
