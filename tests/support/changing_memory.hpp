// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// What the peer changes behind the engine's back. Counting starts at 1; 0 is never.
///
///     for (std::uint64_t k = 1;; ++k) {   // every load sees a change once
///       change_plan plan{.change_load = k, .mask = 0x8001};
///       scenario(changing_memory(ram, plan));
///       if (plan.loads < k)
///         break;
///     }
struct change_plan {
  std::uint64_t change_load = 0; ///< this word load gives a changed value; memory stays as it is
  std::uint64_t change_read = 0; ///< this `read` gives changed bytes; memory stays as it is
  std::uint64_t mask = 1;   ///< bits that flip: of the word as a little-endian ring has it, or of 8
                            ///< bytes (low byte first)
  bool is_replaced = false; ///< the word becomes `replacement` instead
  std::uint64_t replacement = 0;
  std::size_t read_offset = 0; ///< where in the copy the 8 bytes start

  bool rewrites_words = false; ///< after each plain load memory holds the changed word
  /// Atomic words of so many bytes are overwritten as well; 8: the descriptors of a packed ring.
  std::size_t rewrites_atomics = 0;
  bool rewrites_payload = false; ///< after each `read` memory holds the changed bytes

  std::uint64_t loads = 0; ///< word loads so far
  std::uint64_t reads = 0; ///< calls of `read` so far

  template <ballast::wire_integer T> [[nodiscard]] constexpr T changed(T value) const noexcept {
    const auto as_stored = [](std::uint64_t n) {
      return ballast::to_order<std::endian::little>(static_cast<T>(n));
    };
    return is_replaced ? as_stored(replacement) : static_cast<T>(value ^ as_stored(mask));
  }

  constexpr void change(std::span<std::byte> bytes) const noexcept {
    for (std::size_t i = 0; i < 8 && read_offset + i < bytes.size(); ++i)
      bytes[read_offset + i] ^= static_cast<std::byte>(mask >> (8 * i) & 0xff);
  }
};

/// Another accessor in front of a peer that writes between two reads.
///
/// With `change_load` one load differs and all others are true, so an engine that loads each word
/// once must give the result of an honest run, with either value, or an error. With
/// `rewrites_words` every plain word is overwritten as soon as it was loaded (`rewrites_payload`:
/// every payload as soon as it was copied): a second fetch sees something else, a single one
/// nothing. Atomic words are polled by right and stay, unless `rewrites_atomics` names their width.
/// Refers to the inner accessor and the plan.
template <ballast::guest_memory M> class changing_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(ballast::window_of<M> inner, change_plan* plan) noexcept
        : inner_(inner), plan_(plan) {}

    template <ballast::wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, ballast::order o) const noexcept {
      const T value = inner_.template load<T>(offset, o);
      const bool is_atomic = o != ballast::order::plain;
      if (is_atomic ? plan_->rewrites_atomics == sizeof(T) : plan_->rewrites_words) {
        auto peer = inner_;
        peer.template store<T>(offset, plan_->changed(value),
                               is_atomic ? ballast::order::relaxed : o);
      }
      return ++plan_->loads == plan_->change_load ? plan_->changed(value) : value;
    }

    template <ballast::wire_integer T>
    constexpr void store(std::size_t offset, T value, ballast::order o) noexcept {
      inner_.template store<T>(offset, value, o);
    }

   private:
    ballast::window_of<M> inner_{};
    change_plan* plan_ = nullptr;
  };

  constexpr changing_memory(M& inner, change_plan& plan) noexcept : inner_(&inner), plan_(&plan) {}

  [[nodiscard]] constexpr ballast::result<window_type> window(ballast::guest_address address,
                                                              std::uint64_t size,
                                                              std::size_t alignment,
                                                              ballast::access kind) noexcept {
    const auto inner = inner_->window(address, size, alignment, kind);
    if (!inner) return inner.error();
    return window_type(*inner, plan_);
  }

  [[nodiscard]] constexpr ballast::memory_segment
  segment(ballast::guest_address address, std::uint64_t size, ballast::access kind) noexcept {
    return inner_->segment(address, size, kind);
  }

  [[nodiscard]] constexpr bool read(ballast::guest_address address,
                                    std::span<std::byte> to) noexcept {
    if (!inner_->read(address, to)) return false;
    if (plan_->rewrites_payload) {
      plan_->change(to);
      const bool is_rewritten = inner_->write(address, to);
      plan_->change(to); // twice is as it was
      if (!is_rewritten) return false;
    }
    if (++plan_->reads == plan_->change_read) plan_->change(to);
    return true;
  }

  [[nodiscard]] constexpr bool write(ballast::guest_address address,
                                     std::span<const std::byte> from) noexcept {
    return inner_->write(address, from);
  }

  [[nodiscard]] constexpr bool good() noexcept { return inner_->good(); }
  constexpr void fence() noexcept { inner_->fence(); }

 private:
  M* inner_;
  change_plan* plan_;
};

} // namespace ballast_test
