// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace ballast_test {

/// Registers that are bytes, and what was done to them: for devices that do what a test says.
template <std::size_t Size> struct byte_registers {
  struct access {
    std::uint64_t offset = 0;
    unsigned width = 0;
    std::uint64_t value = 0;

    friend constexpr bool operator==(const access&, const access&) = default;
  };

  std::array<std::uint8_t, Size> bytes{};
  std::array<bool, Size> is_fixed{}; ///< a store changes nothing there
  std::array<access, 32> loads{}, stores{};
  std::size_t load_count = 0, store_count = 0;
  std::size_t outside = 0;           ///< accesses that are not all inside, or not aligned
  std::uint8_t added_after_load = 0; ///< to the byte read first, each time: it never stands still

  constexpr void put(std::uint32_t offset, unsigned width, std::uint64_t value) {
    for (unsigned i = 0; i < width; ++i)
      bytes[offset + i] = static_cast<std::uint8_t>(value >> (8 * i));
  }
};

/// A `register_region` over them.
template <std::size_t Size> struct byte_region {
  byte_registers<Size>* registers = nullptr;

  template <ballast::wire_integer T> constexpr T load(std::uint64_t offset) noexcept {
    auto& r = *registers;
    if (!is_inside(offset, sizeof(T))) return 0;
    std::uint64_t value = 0;
    for (unsigned i = 0; i < sizeof(T); ++i)
      value |= static_cast<std::uint64_t>(r.bytes[offset + i]) << (8 * i);
    if (r.load_count < r.loads.size()) r.loads[r.load_count] = {offset, sizeof(T), value};
    ++r.load_count;
    r.bytes[offset] = static_cast<std::uint8_t>(r.bytes[offset] + r.added_after_load);
    return static_cast<T>(value);
  }
  template <ballast::wire_integer T> constexpr void store(std::uint64_t offset, T value) noexcept {
    auto& r = *registers;
    if (!is_inside(offset, sizeof(T))) return;
    if (r.store_count < r.stores.size()) r.stores[r.store_count] = {offset, sizeof(T), value};
    ++r.store_count;
    for (unsigned i = 0; i < sizeof(T); ++i)
      if (!r.is_fixed[offset + i])
        r.bytes[offset + i] = static_cast<std::uint8_t>(std::uint64_t{value} >> (8 * i));
  }

 private:
  constexpr bool is_inside(std::uint64_t offset, std::size_t width) noexcept {
    const bool is = offset < Size && width <= Size - offset && offset % width == 0;
    registers->outside += !is;
    return is;
  }
};

} // namespace ballast_test
