// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// Where writes to guest memory are noted: `mark(address, size)`, of bytes that were written.
template <class L>
concept dirty_log = requires(L& log, guest_address address, std::uint64_t size) {
  { log.mark(address, size) } noexcept;
};

/// Another memory policy that notes in a log what is written: for migration and snapshots.
///
///     dirty_memory<mapped_memory, my_bitmap> memory(ram, log);
///
/// Ring words count, the used ring's too. A word is marked after it was written; an index that
/// publishes others is written after those were marked, so whoever sees it finds them in the log.
/// What is written through the pointer of a `segment` is the caller's to mark.
template <guest_memory M, dirty_log Log> class dirty_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(window_of<M> window, Log& log, guest_address start) noexcept
        : window_(window), log_(&log), start_(start) {}

    template <wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, order o) const noexcept {
      return window_.template load<T>(offset, o);
    }
    template <wire_integer T> constexpr void store(std::size_t offset, T value, order o) noexcept {
      window_.template store<T>(offset, value, o);
      log_->mark(start_ + offset, sizeof(T));
    }

   private:
    window_of<M> window_;
    Log* log_ = nullptr;
    guest_address start_ = 0;
  };

  constexpr dirty_memory(M& memory, Log& log) noexcept : memory_(&memory), log_(&log) {}

  [[nodiscard]] constexpr result<window_type> window(guest_address address, std::uint64_t size,
                                                     std::size_t alignment, access k) noexcept {
    const auto window = memory_->window(address, size, alignment, k);
    if (!window) return window.error();
    return window_type(*window, *log_, address);
  }
  [[nodiscard]] constexpr memory_segment segment(guest_address address, std::uint64_t size,
                                                 access k) noexcept {
    return memory_->segment(address, size, k);
  }
  [[nodiscard]] constexpr bool read(guest_address address, std::span<std::byte> to) noexcept {
    return memory_->read(address, to);
  }
  [[nodiscard]] constexpr bool write(guest_address address,
                                     std::span<const std::byte> from) noexcept {
    const bool is_written = memory_->write(address, from);
    if (is_written && !from.empty()) log_->mark(address, from.size());
    return is_written;
  }
  [[nodiscard]] constexpr bool good() noexcept { return memory_->good(); }
  constexpr void fence() noexcept { memory_->fence(); }

 private:
  M* memory_;
  Log* log_;
};

} // namespace ballast
