// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// Which access fails, and how many there were. Counting starts at 1; 0 is never.
///
///     for (std::uint64_t n = 1;; ++n) {   // every access that can fail fails once
///       failure_plan plan{.fail_at = n};
///       scenario(failing_memory(ram, plan));
///       if (plan.fallible < n)
///         break;
///     }
struct failure_plan {
  std::uint64_t fail_at = 0;    ///< this call of window, segment, read or write fails
  bool fails_from_then = false; ///< and all of these calls after it
  std::uint64_t lose_at = 0;    ///< from this access of any kind on (words too) memory is lost
  std::uint64_t garbage = 0;    ///< what loads give then
  ballast::error window_error = ballast::error::not_guest_memory; ///< what a failing window gives

  std::uint64_t fallible = 0; ///< calls of window, segment, read and write so far
  std::uint64_t accesses = 0; ///< those, loads and stores so far
  bool is_lost = false;

  /// Counts a word access; false once memory is lost.
  constexpr bool touch() noexcept {
    ++accesses;
    is_lost = is_lost || (lose_at != 0 && accesses >= lose_at);
    return !is_lost;
  }

  /// Counts a call that can fail; false if it does.
  constexpr bool call() noexcept {
    const bool is_there = touch();
    ++fallible;
    return is_there &&
           (fail_at == 0 || (fails_from_then ? fallible < fail_at : fallible != fail_at));
  }
};

/// Another accessor whose n-th fallible access fails, or that is lost from the n-th access on:
/// then `good()` is false, loads give garbage, and stores go nowhere. A failed access does nothing.
/// Refers to the inner accessor and the plan; copies share them.
template <ballast::guest_memory M> class failing_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(ballast::window_of<M> inner, failure_plan* plan) noexcept
        : inner_(inner), plan_(plan) {}

    template <ballast::wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, ballast::order o) const noexcept {
      if (!plan_->touch()) return static_cast<T>(plan_->garbage);
      return inner_.template load<T>(offset, o);
    }

    template <ballast::wire_integer T>
    constexpr void store(std::size_t offset, T value, ballast::order o) noexcept {
      if (plan_->touch()) inner_.template store<T>(offset, value, o);
    }

   private:
    ballast::window_of<M> inner_{};
    failure_plan* plan_ = nullptr;
  };

  constexpr failing_memory(M& inner, failure_plan& plan) noexcept : inner_(&inner), plan_(&plan) {}

  [[nodiscard]] constexpr ballast::result<window_type> window(ballast::guest_address address,
                                                              std::uint64_t size,
                                                              std::size_t alignment,
                                                              ballast::access kind) noexcept {
    if (!plan_->call()) return plan_->is_lost ? ballast::error::memory_lost : plan_->window_error;
    const auto inner = inner_->window(address, size, alignment, kind);
    if (!inner) return inner.error();
    return window_type(*inner, plan_);
  }

  [[nodiscard]] constexpr ballast::memory_segment
  segment(ballast::guest_address address, std::uint64_t size, ballast::access kind) noexcept {
    return plan_->call() ? inner_->segment(address, size, kind) : ballast::memory_segment{};
  }

  [[nodiscard]] constexpr bool read(ballast::guest_address address,
                                    std::span<std::byte> to) noexcept {
    return plan_->call() && inner_->read(address, to);
  }

  [[nodiscard]] constexpr bool write(ballast::guest_address address,
                                     std::span<const std::byte> from) noexcept {
    return plan_->call() && inner_->write(address, from);
  }

  [[nodiscard]] constexpr bool good() noexcept { return !plan_->is_lost && inner_->good(); }
  constexpr void fence() noexcept { inner_->fence(); }

 private:
  M* inner_;
  failure_plan* plan_;
};

} // namespace ballast_test
