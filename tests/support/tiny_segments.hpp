// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// Another accessor whose segments are at most so many bytes long, and which can keep the pointers
/// to itself (as memory behind a socket does): everything must then go through `read` and `write`.
/// Refers to the inner accessor.
template <ballast::guest_memory M> class tiny_segments {
 public:
  using window_type = ballast::window_of<M>;

  constexpr tiny_segments(M& inner, std::uint64_t longest, bool hides_pointers = false) noexcept
      : inner_(&inner), longest_(longest), hides_pointers_(hides_pointers) {}

  [[nodiscard]] constexpr auto window(ballast::guest_address address, std::uint64_t size,
                                      std::size_t alignment, ballast::access kind) noexcept {
    return inner_->window(address, size, alignment, kind);
  }

  [[nodiscard]] constexpr ballast::memory_segment
  segment(ballast::guest_address address, std::uint64_t size, ballast::access kind) noexcept {
    auto found = inner_->segment(address, size < longest_ ? size : longest_, kind);
    if (hides_pointers_) found.data = nullptr;
    return found;
  }

  [[nodiscard]] constexpr bool read(ballast::guest_address address,
                                    std::span<std::byte> to) noexcept {
    return inner_->read(address, to);
  }

  [[nodiscard]] constexpr bool write(ballast::guest_address address,
                                     std::span<const std::byte> from) noexcept {
    return inner_->write(address, from);
  }

  [[nodiscard]] constexpr bool good() noexcept { return inner_->good(); }
  constexpr void fence() noexcept { inner_->fence(); }

 private:
  M* inner_;
  std::uint64_t longest_;
  bool hides_pointers_;
};

} // namespace ballast_test
