// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "qtest.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace qemu {

/// RAM of a machine that runs in another process, reached over a socket: each word of a ring is a
/// request of its own. Nothing of it can be pointed at.
///
///     qtest_memory ram(cpu, 1 << 20, 64 << 20);   // from 1 MiB to 64 MiB
///
/// Requests are carried out one after the other, so that no order needs any work and a fence is
/// nothing. `good` is false for ever once the socket is lost, and loads give 0 then.
class qtest_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(qtest& cpu, ballast::guest_address start) noexcept
        : cpu_(&cpu), start_(start) {}

    template <ballast::wire_integer T>
    [[nodiscard]] T load(std::size_t offset, ballast::order) const noexcept {
      return cpu_->read<T>(start_ + offset);
    }
    template <ballast::wire_integer T>
    void store(std::size_t offset, T value, ballast::order) noexcept {
      cpu_->write<T>(start_ + offset, value);
    }

   private:
    qtest* cpu_ = nullptr;
    ballast::guest_address start_ = 0;
  };

  /// The RAM [begin, end).
  constexpr qtest_memory(qtest& cpu, ballast::guest_address begin,
                         ballast::guest_address end) noexcept
      : cpu_(&cpu), begin_(begin), end_(end) {}

  /// Errors: `not_guest_memory`, `misaligned`, `memory_lost`.
  [[nodiscard]] ballast::result<window_type> window(ballast::guest_address address,
                                                    std::uint64_t size, std::size_t alignment,
                                                    ballast::access) noexcept {
    if (!good()) return ballast::error::memory_lost;
    if (!contains(address, size)) return ballast::error::not_guest_memory;
    if (address % alignment != 0) return ballast::error::misaligned;
    return window_type(*cpu_, address);
  }

  [[nodiscard]] ballast::memory_segment segment(ballast::guest_address address, std::uint64_t size,
                                                ballast::access) noexcept {
    if (!contains(address, 0)) return {};
    return {nullptr, size < end_ - address ? size : end_ - address};
  }

  [[nodiscard]] bool read(ballast::guest_address address, std::span<std::byte> to) noexcept {
    return to.empty() || (contains(address, to.size()) && cpu_->read(address, to));
  }
  [[nodiscard]] bool write(ballast::guest_address address,
                           std::span<const std::byte> from) noexcept {
    return from.empty() || (contains(address, from.size()) && cpu_->write(address, from));
  }

  [[nodiscard]] bool good() const noexcept { return cpu_->is_open(); }
  static constexpr void fence() noexcept {}

 private:
  [[nodiscard]] constexpr bool contains(ballast::guest_address address,
                                        std::uint64_t size) const noexcept {
    return address >= begin_ && address <= end_ && size <= end_ - address;
  }

  qtest* cpu_;
  ballast::guest_address begin_;
  ballast::guest_address end_;
};
static_assert(ballast::guest_memory<qtest_memory>);

} // namespace qemu
