// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// How a driver reaches registers: mapped, through ports, over a socket, or a device of the same
/// process.
///
/// - `load<T>(offset)`, `store<T>(offset, value)`: one access of `sizeof(T)` bytes, none merged,
///   split or left out. The registers are little-endian; the values are numbers.
///
/// Ordering: accesses happen in the order of the program, and a store is seen after every earlier
/// write of memory that the device reads: a notification must not overtake the ring.
/// Spec: "PCI Device Layout" (driver requirements), "MMIO Device Register Layout" (driver
/// requirements).
template <class R>
concept register_region =
    requires(R& r, std::uint64_t offset, std::uint8_t v8, std::uint16_t v16, std::uint32_t v32) {
      { r.template load<std::uint8_t>(offset) } noexcept -> std::same_as<std::uint8_t>;
      { r.template load<std::uint16_t>(offset) } noexcept -> std::same_as<std::uint16_t>;
      { r.template load<std::uint32_t>(offset) } noexcept -> std::same_as<std::uint32_t>;
      { r.template store<std::uint8_t>(offset, v8) } noexcept;
      { r.template store<std::uint16_t>(offset, v16) } noexcept;
      { r.template store<std::uint32_t>(offset, v32) } noexcept;
    };

/// The widest access, in bytes, that is aligned at `offset` and takes no more than `size` bytes:
/// whole fields are accessed at their own width, 64-bit ones as two halves.
[[nodiscard]] constexpr unsigned access_width(std::uint64_t offset, std::size_t size) noexcept {
  if (offset % 4 == 0 && size >= 4) return 4;
  return offset % 2 == 0 && size >= 2 ? 2 : 1;
}

/// Reads the bytes of configuration fields that begin at `base` + `offset`, each at its width.
template <register_region R>
constexpr void read_fields(R& region, std::uint64_t base, std::uint32_t offset,
                           std::span<std::byte> to) noexcept {
  for (std::size_t i = 0; i < to.size();) {
    const std::uint64_t at = base + offset + i;
    const unsigned width = access_width(offset + i, to.size() - i);
    std::uint32_t value = 0;
    switch (width) {
    case 4: value = region.template load<std::uint32_t>(at); break;
    case 2: value = region.template load<std::uint16_t>(at); break;
    default: value = region.template load<std::uint8_t>(at); break;
    }
    for (unsigned byte = 0; byte < width; ++byte)
      to[i++] = static_cast<std::byte>(value >> (8 * byte));
  }
}

/// Reads them again and again until they are the same twice in a row: what stands for a generation
/// where there is none. One field needs no second read. Errors: `config_unstable`.
template <register_region R>
[[nodiscard]] constexpr result<void> read_stable_fields(R& region, std::uint64_t base,
                                                        std::uint32_t offset,
                                                        std::span<std::byte> to) noexcept {
  read_fields(region, base, offset, to);
  if (to.empty() || access_width(offset, to.size()) == to.size()) return {};
  for (unsigned attempts = 16; attempts > 0; --attempts) {
    bool is_other = false;
    for (std::uint32_t i = 0; i < to.size();) {
      std::byte now[4]{};
      const std::span one(now, access_width(offset + i, to.size() - i));
      read_fields(region, base, offset + i, one);
      for (const std::byte byte : one) {
        is_other = is_other || to[i] != byte;
        to[i++] = byte;
      }
    }
    if (!is_other) return {};
  }
  return error::config_unstable;
}

/// Writes the bytes of configuration fields that begin at `base` + `offset`, each at its width.
template <register_region R>
constexpr void write_fields(R& region, std::uint64_t base, std::uint32_t offset,
                            std::span<const std::byte> from) noexcept {
  for (std::size_t i = 0; i < from.size();) {
    const std::uint64_t at = base + offset + i;
    const unsigned width = access_width(offset + i, from.size() - i);
    std::uint32_t value = 0;
    for (unsigned byte = 0; byte < width; ++byte)
      value |= std::to_integer<std::uint32_t>(from[i++]) << (8 * byte);
    switch (width) {
    case 4: region.template store<std::uint32_t>(at, value); break;
    case 2: region.template store<std::uint16_t>(at, static_cast<std::uint16_t>(value)); break;
    default: region.template store<std::uint8_t>(at, static_cast<std::uint8_t>(value)); break;
    }
  }
}

} // namespace ballast
