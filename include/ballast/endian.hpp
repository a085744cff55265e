// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace ballast {

static_assert(std::endian::native == std::endian::little || std::endian::native == std::endian::big,
              "mixed-endian targets are not supported");

/// The unsigned integers that appear on the wire.
template <class T>
concept wire_integer = std::same_as<T, std::uint8_t> || std::same_as<T, std::uint16_t> ||
                       std::same_as<T, std::uint32_t> || std::same_as<T, std::uint64_t>;

/// `value` with its bytes in reverse order.
template <wire_integer T> [[nodiscard]] constexpr T byte_swap(T value) noexcept {
  // The builtins fold into one instruction on g++ and clang; a loop over bytes does not on g++ 12.
  if constexpr (sizeof(T) == 8)
    return __builtin_bswap64(value);
  else if constexpr (sizeof(T) == 4)
    return __builtin_bswap32(value);
  else if constexpr (sizeof(T) == 2)
    return __builtin_bswap16(value);
  else
    return value;
}

/// Converts between the byte order of this machine and `E`; its own inverse.
template <std::endian E, wire_integer T>
[[nodiscard]] [[gnu::always_inline]] constexpr T to_order(T value) noexcept {
  if constexpr (E == std::endian::native)
    return value;
  else
    return byte_swap(value);
}

/// An integer as it lies on the wire: `sizeof(T)` bytes in the order `E`, alignment 1.
///
///     struct element { le32 id; le32 length; };  // 8 bytes, no padding, no attribute
///
/// Reading, comparing and assigning convert. A read is one load and an assignment one store on g++
/// and clang at -O2 (and one byte swap for the foreign order).
/// Spec: "Structure Specifications" (le16, le32, le64, be16, ...).
template <wire_integer T, std::endian E> class word {
 public:
  using value_type = T;
  static constexpr std::endian order = E;

  constexpr word() noexcept = default;
  constexpr word(T value) noexcept : bytes_(std::bit_cast<bytes>(to_order<E>(value))) {}

  constexpr operator T() const noexcept { return to_order<E>(std::bit_cast<T>(bytes_)); }

 private:
  struct bytes {
    unsigned char at[sizeof(T)];
  };
  bytes bytes_{};
};

using le16 = word<std::uint16_t, std::endian::little>;
using le32 = word<std::uint32_t, std::endian::little>;
using le64 = word<std::uint64_t, std::endian::little>;
using be16 = word<std::uint16_t, std::endian::big>;
using be32 = word<std::uint32_t, std::endian::big>;
using be64 = word<std::uint64_t, std::endian::big>;

static_assert(sizeof(le64) == 8 && alignof(le64) == 1);

} // namespace ballast
