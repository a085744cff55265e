// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// `Size` bytes of RAM at guest address `base()`, usable in constant expressions.
///
///     array_memory<65536> ram;         // both sides of a queue run on it, in one thread
///     static_assert(exchange(ram));    // the compiler proves that no access leaves it
///
/// For tests, simulators and small machines. One thread: its words are not atomic.
template <std::size_t Size> class array_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr explicit window_type(std::byte* start) noexcept : start_(start) {}

    template <wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, order) const noexcept {
      bytes<T> copy;
      for (std::size_t i = 0; i < sizeof(T); ++i) copy.at[i] = start_[offset + i];
      return std::bit_cast<T>(copy);
    }

    template <wire_integer T> constexpr void store(std::size_t offset, T value, order) noexcept {
      const auto copy = std::bit_cast<bytes<T>>(value);
      for (std::size_t i = 0; i < sizeof(T); ++i) start_[offset + i] = copy.at[i];
    }

   private:
    template <class T> struct bytes {
      std::byte at[sizeof(T)]{};
    };
    std::byte* start_ = nullptr;
  };

  constexpr explicit array_memory(guest_address base = 0) noexcept : base_(base) {}

  [[nodiscard]] constexpr guest_address base() const noexcept { return base_; }
  [[nodiscard]] static constexpr std::size_t size() noexcept { return Size; }
  [[nodiscard]] constexpr std::span<std::byte, Size> bytes() noexcept { return bytes_; }

  /// Errors: `not_guest_memory`, `misaligned`.
  [[nodiscard]] constexpr result<window_type> window(guest_address address, std::uint64_t size,
                                                     std::size_t alignment, access) noexcept {
    if (!contains(address, size)) return error::not_guest_memory;
    if (address % alignment != 0) return error::misaligned;
    return window_type(bytes_ + (address - base_));
  }

  [[nodiscard]] constexpr memory_segment segment(guest_address address, std::uint64_t size,
                                                 access) noexcept {
    if (!contains(address, 0)) return {};
    const std::uint64_t offset = address - base_;
    return {bytes_ + offset, size < Size - offset ? size : Size - offset};
  }

  [[nodiscard]] constexpr bool read(guest_address address, std::span<std::byte> to) noexcept {
    if (to.empty()) return true;
    if (!contains(address, to.size())) return false;
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = bytes_[address - base_ + i];
    return true;
  }

  [[nodiscard]] constexpr bool write(guest_address address,
                                     std::span<const std::byte> from) noexcept {
    if (from.empty()) return true;
    if (!contains(address, from.size())) return false;
    for (std::size_t i = 0; i < from.size(); ++i) bytes_[address - base_ + i] = from[i];
    return true;
  }

  [[nodiscard]] static constexpr bool good() noexcept { return true; }
  static constexpr void fence() noexcept {}

 private:
  [[nodiscard]] constexpr bool contains(guest_address address, std::uint64_t size) const noexcept {
    return address >= base_ && address - base_ <= Size && size <= Size - (address - base_);
  }

  guest_address base_;
  std::byte bytes_[Size]{};
};

} // namespace ballast
