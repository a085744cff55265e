// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/raw_words.hpp"

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace ballast_test {

/// Where a test put the parts of a packed virtqueue.
struct packed_places {
  std::uint32_t size = 0;
  ballast::guest_address ring = 0;
  ballast::guest_address driver_event = 0;
  ballast::guest_address device_event = 0;
};

/// One descriptor of a packed virtqueue.
struct raw_packed_descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t id = 0;
  std::uint16_t flags = 0; ///< 1 NEXT, 2 WRITE, 4 INDIRECT, 0x80 AVAIL, 0x8000 USED

  friend constexpr bool operator==(const raw_packed_descriptor&,
                                   const raw_packed_descriptor&) noexcept = default;
};

/// One descriptor of a chain that is to be made available.
struct packed_part {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0; ///< beside NEXT, AVAIL and USED
};

/// The driver's side of a packed virtqueue, without a rule: what a test says is written, right or
/// wrong. Every offset is a number from the specification's figures. Places are counted as steps
/// from the beginning of the ring's life, where both wrap counters are 1.
class scripted_packed_driver {
 public:
  /// Leaves the ring as a life of `first` single buffers, all of them used, would have.
  constexpr scripted_packed_driver(raw_words ram, packed_places at,
                                   std::uint64_t first = 0) noexcept
      : ram_(ram), at_(at), next_(first) {
    for (std::uint64_t s = first < at.size ? 0 : first - at.size; s != first; ++s)
      ram_.put(at_.ring + 16 * entry(s) + 14, 2, wrap(s) ? 0x8080u : 0u);
  }

  [[nodiscard]] constexpr std::uint32_t entry(std::uint64_t step) const noexcept {
    return static_cast<std::uint32_t>(step % at_.size);
  }
  [[nodiscard]] constexpr bool wrap(std::uint64_t step) const noexcept {
    return step / at_.size % 2 == 0;
  }
  /// As event suppression structures have it: the wrap counter in bit 15.
  [[nodiscard]] constexpr std::uint16_t word(std::uint64_t step) const noexcept {
    return static_cast<std::uint16_t>(entry(step) | (wrap(step) ? 0x8000u : 0u));
  }
  /// AVAIL and USED of a descriptor that is available there.
  [[nodiscard]] constexpr std::uint16_t available_flags(std::uint64_t step) const noexcept {
    return wrap(step) ? 0x80 : 0x8000;
  }

  constexpr void descriptor(std::uint32_t i, const raw_packed_descriptor& d) noexcept {
    ram_.put(at_.ring + 16 * i, 8, d.address);
    ram_.put(at_.ring + 16 * i + 8, 4, d.length);
    ram_.put(at_.ring + 16 * i + 12, 2, d.id);
    ram_.put(at_.ring + 16 * i + 14, 2, d.flags);
  }
  [[nodiscard]] constexpr raw_packed_descriptor descriptor(std::uint32_t i) const noexcept {
    return {ram_.get(at_.ring + 16 * i, 8),
            static_cast<std::uint32_t>(ram_.get(at_.ring + 16 * i + 8, 4)),
            static_cast<std::uint16_t>(ram_.get(at_.ring + 16 * i + 12, 2)),
            static_cast<std::uint16_t>(ram_.get(at_.ring + 16 * i + 14, 2))};
  }

  /// Writes a chain behind the last; only its last descriptor has the id. Seen by the device with
  /// the next `make_available`: until then the flags of the first that was staged are old.
  constexpr void stage(std::span<const packed_part> parts, std::uint16_t id) noexcept {
    for (std::size_t i = 0; i < parts.size(); ++i, ++next_) {
      const bool is_last = i + 1 == parts.size();
      const unsigned flags = parts[i].flags | available_flags(next_) | (is_last ? 0u : 1u);
      const bool is_first = !is_staged_;
      const raw_packed_descriptor now{parts[i].address, parts[i].length,
                                      is_last ? id : std::uint16_t{0xfffe},
                                      static_cast<std::uint16_t>(flags)};
      if (is_first) {
        is_staged_ = true;
        first_ = entry(next_);
        first_flags_ = now.flags;
      }
      raw_packed_descriptor written = now;
      if (is_first) written.flags = descriptor(first_).flags;
      descriptor(entry(next_), written);
    }
  }
  constexpr void make_available() noexcept {
    if (is_staged_) ram_.put(at_.ring + 16 * first_ + 14, 2, first_flags_);
    is_staged_ = false;
  }
  constexpr void offer(std::span<const packed_part> parts, std::uint16_t id) noexcept {
    stage(parts, id);
    make_available();
  }
  constexpr void offer(std::initializer_list<packed_part> parts, std::uint16_t id) noexcept {
    offer(std::span<const packed_part>(parts.begin(), parts.size()), id);
  }
  constexpr void offer(const packed_part& part, std::uint16_t id) noexcept {
    offer(std::span<const packed_part>(&part, 1), id);
  }

  /// The step of the next chain.
  [[nodiscard]] constexpr std::uint64_t next() const noexcept { return next_; }

  /// Whether the device used the descriptor there, in that round.
  [[nodiscard]] constexpr bool is_used(std::uint64_t step) const noexcept {
    return (descriptor(entry(step)).flags & 0x8080) == (wrap(step) ? 0x8080 : 0);
  }
  /// Whether that is what the device wrote there, in that round: no other flag but WRITE, and that
  /// only where it says that it wrote bytes.
  [[nodiscard]] constexpr bool has_used(std::uint64_t step, std::uint32_t id,
                                        std::uint32_t length) const noexcept {
    const auto d = descriptor(entry(step));
    const int others = d.flags & ~0x8080;
    return is_used(step) && d.id == id && d.length == length &&
           (others == 0 || (others == 2 && length != 0));
  }

  constexpr void driver_event(std::uint16_t place, std::uint16_t flags) noexcept {
    ram_.put(at_.driver_event, 2, place);
    ram_.put(at_.driver_event + 2, 2, flags);
  }
  [[nodiscard]] constexpr std::uint64_t device_event_place() const noexcept {
    return ram_.get(at_.device_event, 2);
  }
  [[nodiscard]] constexpr std::uint64_t device_event_flags() const noexcept {
    return ram_.get(at_.device_event + 2, 2);
  }

 private:
  raw_words ram_;
  packed_places at_;
  std::uint64_t next_;
  std::uint32_t first_ = 0;
  std::uint16_t first_flags_ = 0;
  bool is_staged_ = false;
};

} // namespace ballast_test
