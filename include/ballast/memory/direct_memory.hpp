// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/fence.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// Memory whose guest addresses are pointers: a guest driver that runs identity-mapped.
///
///     direct_memory ram;  // stateless; the driver places its rings and buffers itself
///
/// Freestanding. It trusts the addresses, which come from the driver itself: only null, ranges that
/// wrap and misaligned windows are refused. Not for a device: its addresses come from the peer.
class direct_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    explicit window_type(std::byte* start) noexcept : start_(start) {}

    template <wire_integer T>
    [[nodiscard]] [[gnu::always_inline, gnu::flatten]] T load(std::size_t offset,
                                                              order o) const noexcept {
      const auto& at = *reinterpret_cast<const cell<T>*>(start_ + offset);
      if (o == order::acquire) return __atomic_load_n(&at.value, __ATOMIC_ACQUIRE);
      if (is_race_checked && o == order::plain) return at.value;
      return __atomic_load_n(&at.value, __ATOMIC_RELAXED);
    }

    template <wire_integer T>
    [[gnu::always_inline, gnu::flatten]] void store(std::size_t offset, T value, order o) noexcept {
      auto& at = *reinterpret_cast<cell<T>*>(start_ + offset);
      if (o == order::release)
        __atomic_store_n(&at.value, value, __ATOMIC_RELEASE);
      else if (is_race_checked && o == order::plain)
        at.value = value;
      else
        __atomic_store_n(&at.value, value, __ATOMIC_RELAXED);
    }

   private:
    static_assert(__atomic_always_lock_free(8, nullptr),
                  "ring words need lock-free 64-bit atomics");

    // Pages that were something else a moment ago become rings; and a 64-bit integer of a 32-bit
    // target is aligned to 4 only, where the window's is to 8.
    template <class T> struct [[gnu::may_alias]] cell {
      alignas(sizeof(T)) T value;
    };

    std::byte* start_ = nullptr;
  };

  /// Errors: `not_guest_memory` (null, or the range wraps), `misaligned`. `alignment` is a power
  /// of two.
  [[nodiscard]] static result<window_type> window(guest_address address, std::uint64_t size,
                                                  std::size_t alignment, access) noexcept {
    if (!is_addressable(address, size)) return error::not_guest_memory;
    if ((address & (alignment - 1)) != 0) return error::misaligned;
    return window_type(pointer(address));
  }

  [[nodiscard]] static memory_segment segment(guest_address address, std::uint64_t size,
                                              access) noexcept {
    if (!is_addressable(address, size)) return {};
    return {pointer(address), size};
  }

  /// Zero bytes need no memory: true.
  [[nodiscard]] static bool read(guest_address address, std::span<std::byte> to) noexcept {
    if (to.empty()) return true;
    if (!is_addressable(address, to.size())) return false;
    __builtin_memcpy(to.data(), pointer(address), to.size());
    return true;
  }

  /// Zero bytes need no memory: true.
  [[nodiscard]] static bool write(guest_address address, std::span<const std::byte> from) noexcept {
    if (from.empty()) return true;
    if (!is_addressable(address, from.size())) return false;
    __builtin_memcpy(pointer(address), from.data(), from.size());
    return true;
  }

  [[nodiscard]] static constexpr bool good() noexcept { return true; }
  static void fence() noexcept { full_fence(); }

 private:
  // Ends are exclusive and must be representable, so the last byte of the address space is not
  // addressable.
  [[nodiscard]] static constexpr bool is_addressable(guest_address address,
                                                     std::uint64_t size) noexcept {
    return address != 0 && address <= UINTPTR_MAX && size <= UINTPTR_MAX - address;
  }

  [[nodiscard]] static std::byte* pointer(guest_address address) noexcept {
    return reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(address));
  }
};

} // namespace ballast
