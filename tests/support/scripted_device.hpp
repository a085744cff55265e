// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/raw_words.hpp"

#include <cstdint>

namespace ballast_test {

/// The device's side of a split virtqueue, one word at a time and without a rule: what a test says
/// is written, right or wrong. Every offset is a number from the specification's figures.
class scripted_device {
 public:
  constexpr scripted_device(raw_words ram, ring_places at, std::uint16_t first_index = 0) noexcept
      : ram_(ram), at_(at), next_(first_index) {}

  constexpr void used_flags(std::uint16_t v) noexcept { ram_.put(at_.used, 2, v); }
  constexpr void used_index(std::uint16_t v) noexcept { ram_.put(at_.used + 2, 2, v); }
  constexpr void used_element(std::uint32_t position, std::uint32_t id,
                              std::uint32_t length) noexcept {
    ram_.put(at_.used + 4 + 8 * position, 4, id);
    ram_.put(at_.used + 8 + 8 * position, 4, length);
  }
  constexpr void available_event(std::uint16_t v) noexcept {
    ram_.put(at_.used + 4 + 8 * at_.size, 2, v);
  }

  /// Puts an element in the next entry; seen by the driver with the next `make_used`.
  constexpr void stage(std::uint32_t id, std::uint32_t length) noexcept {
    used_element(next_++ % at_.size, id, length);
  }
  constexpr void make_used() noexcept { used_index(next_); }
  constexpr void give_back(std::uint32_t id, std::uint32_t length) noexcept {
    stage(id, length);
    make_used();
  }

  [[nodiscard]] constexpr std::uint16_t next() const noexcept { return next_; }
  [[nodiscard]] constexpr std::uint64_t available_flags() const noexcept {
    return ram_.get(at_.available, 2);
  }
  [[nodiscard]] constexpr std::uint64_t available_index() const noexcept {
    return ram_.get(at_.available + 2, 2);
  }
  [[nodiscard]] constexpr std::uint64_t available_entry(std::uint32_t position) const noexcept {
    return ram_.get(at_.available + 4 + 2 * position, 2);
  }
  [[nodiscard]] constexpr std::uint64_t used_event() const noexcept {
    return ram_.get(at_.available + 4 + 2 * at_.size, 2);
  }
  [[nodiscard]] constexpr raw_descriptor descriptor(std::uint64_t i) const noexcept {
    return {ram_.get(at_.table + 16 * i, 8),
            static_cast<std::uint32_t>(ram_.get(at_.table + 16 * i + 8, 4)),
            static_cast<std::uint16_t>(ram_.get(at_.table + 16 * i + 12, 2)),
            static_cast<std::uint16_t>(ram_.get(at_.table + 16 * i + 14, 2))};
  }

 private:
  raw_words ram_;
  ring_places at_;
  std::uint16_t next_;
};

} // namespace ballast_test
