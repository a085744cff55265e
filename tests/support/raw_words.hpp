// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// Bytes of guest memory, read and written byte by byte: shares no code with the engines, so that a
/// wrong offset or byte order there can't cancel out here.
class raw_words {
 public:
  constexpr raw_words(std::span<std::byte> bytes, ballast::guest_address base,
                      std::endian order) noexcept
      : bytes_(bytes), base_(base), order_(order) {}

  /// The `width` bytes at `address` as a number.
  [[nodiscard]] constexpr std::uint64_t get(ballast::guest_address address,
                                            unsigned width) const noexcept {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < width; ++i)
      value |= static_cast<std::uint64_t>(bytes_[address - base_ + i]) << shift(i, width);
    return value;
  }

  constexpr void put(ballast::guest_address address, unsigned width, std::uint64_t value) noexcept {
    for (unsigned i = 0; i < width; ++i)
      bytes_[address - base_ + i] = static_cast<std::byte>(value >> shift(i, width) & 0xff);
  }

 private:
  [[nodiscard]] constexpr unsigned shift(unsigned i, unsigned width) const noexcept {
    return 8 * (order_ == std::endian::little ? i : width - 1 - i);
  }

  std::span<std::byte> bytes_;
  ballast::guest_address base_;
  std::endian order_;
};

/// Where a test put the parts of a split virtqueue.
struct ring_places {
  std::uint32_t size = 0;
  ballast::guest_address table = 0;
  ballast::guest_address available = 0;
  ballast::guest_address used = 0;
};

/// One descriptor of a split virtqueue.
struct raw_descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0; ///< 1 NEXT, 2 WRITE, 4 INDIRECT
  std::uint16_t next = 0;

  friend constexpr bool operator==(const raw_descriptor&, const raw_descriptor&) noexcept = default;
};

} // namespace ballast_test
