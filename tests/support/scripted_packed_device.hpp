// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/raw_words.hpp"

#include <ballast/virtqueue/layout.hpp>

#include <cstdint>

namespace ballast_test {

/// The device's side of a packed virtqueue, one word at a time and without a rule: what a test says
/// is written, right or wrong. Every offset and flag is a number from the specification's figures.
class scripted_packed_device {
 public:
  struct descriptor {
    std::uint64_t address = 0;
    std::uint32_t length = 0;
    std::uint16_t id = 0;
    std::uint16_t flags = 0; ///< 1 NEXT, 2 WRITE, 4 INDIRECT, 0x80 AVAIL, 0x8000 USED

    friend constexpr bool operator==(const descriptor&, const descriptor&) noexcept = default;
  };
  struct event {
    std::uint32_t entry = 0;
    bool wrap = false;
    std::uint32_t flags = 0; ///< 0 enable, 1 disable, 2 at that descriptor

    friend constexpr bool operator==(const event&, const event&) noexcept = default;
  };
  /// An entry and the wrap counter there.
  struct place {
    std::uint32_t entry = 0;
    bool wrap = true;

    constexpr void skip(std::uint32_t descriptors, std::uint32_t size) noexcept {
      for (; descriptors != 0; --descriptors)
        if (++entry == size) {
          entry = 0;
          wrap = !wrap;
        }
    }
    friend constexpr bool operator==(const place&, const place&) noexcept = default;
  };
  /// A chain that was made available: where it starts and how many descriptors it takes.
  struct taken {
    place start;
    std::uint32_t descriptors = 0;
    std::uint32_t id = 0; ///< of the last descriptor
  };

  /// `first` descriptors after the beginning of the ring's life.
  constexpr scripted_packed_device(raw_words ram, const ballast::queue_layout& at,
                                   std::uint32_t first = 0) noexcept
      : ram_(ram), at_(at) {
    available_ = used_ = {first % at.size, first / at.size % 2 == 0};
  }

  [[nodiscard]] constexpr descriptor at(std::uint32_t entry) const noexcept {
    const auto d = at_.descriptor_area + 16 * entry;
    return {ram_.get(d, 8), static_cast<std::uint32_t>(ram_.get(d + 8, 4)),
            static_cast<std::uint16_t>(ram_.get(d + 12, 2)),
            static_cast<std::uint16_t>(ram_.get(d + 14, 2))};
  }
  constexpr void put(std::uint32_t entry, const descriptor& d) noexcept {
    const auto to = at_.descriptor_area + 16 * entry;
    ram_.put(to, 8, d.address);
    ram_.put(to + 8, 4, d.length);
    ram_.put(to + 12, 2, d.id);
    ram_.put(to + 14, 2, d.flags);
  }

  /// Whether the descriptor at `p` is available, or used, in that round.
  [[nodiscard]] constexpr bool is_available(place p) const noexcept {
    const unsigned flags = at(p.entry).flags;
    return ((flags & 0x80) != 0) == p.wrap && ((flags & 0x8000) != 0) != p.wrap;
  }
  [[nodiscard]] constexpr bool is_used(place p) const noexcept {
    const unsigned flags = at(p.entry).flags;
    return ((flags & 0x80) != 0) == p.wrap && ((flags & 0x8000) != 0) == p.wrap;
  }

  /// The next chain, if one is available; otherwise one of no descriptors.
  constexpr taken take() noexcept {
    taken chain{available_};
    if (!is_available(available_)) return chain;
    for (bool has_next = true; has_next && chain.descriptors != at_.size; ++chain.descriptors) {
      has_next = (at(available_.entry).flags & 1) != 0;
      chain.id = at(available_.entry).id;
      available_.skip(1, at_.size);
    }
    return chain;
  }

  /// Writes a used descriptor at the next place, for a chain (or, in order, for chains) of that
  /// many descriptors. WRITE is set where `length` is not 0.
  constexpr void give_back(std::uint32_t id, std::uint32_t length,
                           std::uint32_t descriptors = 1) noexcept {
    put_used(id, length, length != 0 ? 2u : 0u);
    skip(descriptors);
  }
  constexpr void give_back(const taken& chain, std::uint32_t length) noexcept {
    give_back(chain.id, length, chain.descriptors);
  }
  /// The same with any further flags, without going on.
  constexpr void put_used(std::uint32_t id, std::uint32_t length, unsigned flags) noexcept {
    const auto to = at_.descriptor_area + 16 * used_.entry;
    ram_.put(to + 8, 4, length);
    ram_.put(to + 12, 2, id);
    ram_.put(to + 14, 2, flags | (used_.wrap ? 0x8080u : 0u));
  }
  constexpr void skip(std::uint32_t descriptors) noexcept { used_.skip(descriptors, at_.size); }

  [[nodiscard]] constexpr place next_available() const noexcept { return available_; }
  [[nodiscard]] constexpr place next_used() const noexcept { return used_; }

  constexpr void device_event(const event& e) noexcept {
    ram_.put(at_.device_area, 2, e.entry | (e.wrap ? 0x8000u : 0u));
    ram_.put(at_.device_area + 2, 2, e.flags);
  }
  [[nodiscard]] constexpr event device_event() const noexcept { return event_at(at_.device_area); }
  [[nodiscard]] constexpr event driver_event() const noexcept { return event_at(at_.driver_area); }

 private:
  [[nodiscard]] constexpr event event_at(ballast::guest_address a) const noexcept {
    const auto word = static_cast<std::uint32_t>(ram_.get(a, 2));
    return {word & 0x7fff, (word & 0x8000) != 0, static_cast<std::uint32_t>(ram_.get(a + 2, 2))};
  }

  raw_words ram_;
  ballast::queue_layout at_;
  place available_, used_;
};

} // namespace ballast_test
