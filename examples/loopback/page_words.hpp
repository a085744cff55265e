// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"

#include <ballast/balloon/protocol.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace loopback {

/// What the guest writes to its pages, in words of 8 bytes, and looks for in them.
class page_words {
 public:
  explicit page_words(const guest_ram& ram) noexcept : ram_(&ram) {}

  void fill(std::uint32_t pfn, std::uint64_t word) const noexcept {
    std::ranges::fill(words(pfn), word);
  }
  [[nodiscard]] bool hold(std::uint32_t pfn, std::uint64_t word) const noexcept {
    return std::ranges::all_of(words(pfn), [word](std::uint64_t w) { return w == word; });
  }

  /// A word that only this page has. Never 0: the factor is odd.
  [[nodiscard]] static std::uint64_t own(std::uint32_t pfn) noexcept {
    return (std::uint64_t{pfn} + 1) * 0x9e37'79b9'7f4a'7c15;
  }
  /// What a page is full of that is poisoned with `value`.
  [[nodiscard]] static std::uint64_t poison(std::uint32_t value) noexcept {
    return std::uint64_t{value} << 32 | value;
  }

 private:
  [[nodiscard]] std::span<std::uint64_t> words(std::uint32_t pfn) const noexcept {
    std::byte* page = ram_->data() + ballast::balloon::address_of(pfn);
    return {reinterpret_cast<std::uint64_t*>(page), ballast::balloon::page_size / 8};
  }

  const guest_ram* ram_;
};

/// What the guest found out about its pages, in the end.
struct page_check {
  std::uint64_t damaged = 0;    ///< never given to the host, but the contents changed
  std::uint64_t kept = 0;       ///< given to the host, which did not take the memory away
  std::uint64_t unpoisoned = 0; ///< free, but without the guest's poison
  std::uint64_t unusable = 0;   ///< came back, but don't hold what is written to them
  std::uint64_t missing = 0;    ///< went to the driver and did not come back
  std::uint64_t misplaced = 0;  ///< came back without having been taken, or twice

  page_check& operator+=(const page_check& other) noexcept {
    damaged += other.damaged;
    kept += other.kept;
    unpoisoned += other.unpoisoned;
    unusable += other.unusable;
    missing += other.missing;
    misplaced += other.misplaced;
    return *this;
  }
};

} // namespace loopback
