// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/raw_words.hpp"

#include <cstdint>

namespace ballast_test {

/// The driver's side of a split virtqueue, one word at a time and without a rule: what a test says
/// is written, right or wrong. Every offset is a number from the specification's figures.
class scripted_driver {
 public:
  constexpr scripted_driver(raw_words ram, ring_places at, std::uint16_t first_index = 0) noexcept
      : ram_(ram), at_(at), next_(first_index) {}

  constexpr void descriptor(std::uint32_t i, const raw_descriptor& d) noexcept {
    ram_.put(at_.table + 16 * i, 8, d.address);
    ram_.put(at_.table + 16 * i + 8, 4, d.length);
    ram_.put(at_.table + 16 * i + 12, 2, d.flags);
    ram_.put(at_.table + 16 * i + 14, 2, d.next);
  }

  constexpr void available_flags(std::uint16_t v) noexcept { ram_.put(at_.available, 2, v); }
  constexpr void available_index(std::uint16_t v) noexcept { ram_.put(at_.available + 2, 2, v); }
  constexpr void available_entry(std::uint32_t position, std::uint16_t head) noexcept {
    ram_.put(at_.available + 4 + 2 * position, 2, head);
  }
  constexpr void used_event(std::uint16_t v) noexcept {
    ram_.put(at_.available + 4 + 2 * at_.size, 2, v);
  }

  /// Puts `head` in the next entry; seen by the device with the next `make_available`.
  constexpr void stage(std::uint16_t head) noexcept { available_entry(next_++ % at_.size, head); }
  constexpr void make_available() noexcept { available_index(next_); }
  constexpr void offer(std::uint16_t head) noexcept {
    stage(head);
    make_available();
  }

  [[nodiscard]] constexpr std::uint16_t next() const noexcept { return next_; }
  [[nodiscard]] constexpr std::uint64_t used_flags() const noexcept {
    return ram_.get(at_.used, 2);
  }
  [[nodiscard]] constexpr std::uint64_t used_index() const noexcept {
    return ram_.get(at_.used + 2, 2);
  }
  [[nodiscard]] constexpr std::uint64_t used_id(std::uint32_t position) const noexcept {
    return ram_.get(at_.used + 4 + 8 * position, 4);
  }
  [[nodiscard]] constexpr std::uint64_t used_length(std::uint32_t position) const noexcept {
    return ram_.get(at_.used + 8 + 8 * position, 4);
  }
  [[nodiscard]] constexpr std::uint64_t available_event() const noexcept {
    return ram_.get(at_.used + 4 + 8 * at_.size, 2);
  }

 private:
  raw_words ram_;
  ring_places at_;
  std::uint16_t next_;
};

} // namespace ballast_test
