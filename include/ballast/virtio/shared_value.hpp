// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <concepts>
#include <type_traits>

namespace ballast {

/// An integer that any thread may read or write, usable in constant expressions.
///
/// For what the threads share outside guest memory: configuration fields, the device status.
/// The builtins rather than `<atomic>`: that header alone doubles what a user compiles.
/// Ordering: sequentially consistent. One who stores a target and then sees no driver, and a driver
/// that goes live and then reads the target, can't both miss each other.
template <std::unsigned_integral T> class shared_value {
 public:
  constexpr shared_value(T value = 0) noexcept : value_(value) {}

  [[nodiscard]] constexpr T load() const noexcept {
    if (std::is_constant_evaluated()) return value_;
    return __atomic_load_n(&value_, __ATOMIC_SEQ_CST);
  }

  constexpr void store(T value) noexcept {
    if (std::is_constant_evaluated())
      value_ = value;
    else
      __atomic_store_n(&value_, value, __ATOMIC_SEQ_CST);
  }

  /// Replaces the bits of `mask` by those of `value`, leaving the others as they are.
  constexpr void merge(T value, T mask) noexcept {
    T old = load();
    while (!compare_exchange(old, static_cast<T>((old & ~mask) | (value & mask)))) {
    }
  }

  constexpr T fetch_or(T bits) noexcept {
    if (!std::is_constant_evaluated()) return __atomic_fetch_or(&value_, bits, __ATOMIC_SEQ_CST);
    const T old = value_;
    value_ = static_cast<T>(value_ | bits);
    return old;
  }

  constexpr T fetch_add(T n) noexcept {
    if (!std::is_constant_evaluated()) return __atomic_fetch_add(&value_, n, __ATOMIC_SEQ_CST);
    const T old = value_;
    value_ = static_cast<T>(value_ + n);
    return old;
  }

  constexpr T exchange(T value) noexcept {
    if (!std::is_constant_evaluated()) return __atomic_exchange_n(&value_, value, __ATOMIC_SEQ_CST);
    const T old = value_;
    value_ = value;
    return old;
  }

 private:
  constexpr bool compare_exchange(T& expected, T desired) noexcept {
    if (!std::is_constant_evaluated())
      return __atomic_compare_exchange_n(&value_, &expected, desired, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST);
    value_ = desired;
    return true;
  }

  T value_;
};

} // namespace ballast
