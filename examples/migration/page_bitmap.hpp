// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/guest_memory.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace migration {

using ballast::guest_address;
using ballast::balloon::page_size;

/// A bit for each page of the guest. Models `ballast::dirty_log`.
class page_bitmap {
 public:
  explicit page_bitmap(std::size_t pages) : words_((pages + 63) / 64), pages_(pages) {}

  void mark(guest_address address, std::uint64_t size) noexcept {
    for (auto page = address / page_size; page <= (address + size - 1) / page_size; ++page)
      words_[page / 64] |= bit(page);
  }
  void mark_all() noexcept { mark(0, pages_ * page_size); }

  /// Whether it was set.
  bool clear(std::size_t page) noexcept {
    const bool was_set = (words_[page / 64] & bit(page)) != 0;
    words_[page / 64] &= ~bit(page);
    return was_set;
  }

  /// Adds what is set in `from`, which is all clear then.
  void take_over(page_bitmap& from) noexcept {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      words_[i] |= from.words_[i];
      from.words_[i] = 0;
    }
  }

  [[nodiscard]] std::size_t count() const noexcept {
    std::size_t n = 0;
    for (const std::uint64_t word : words_) n += static_cast<std::size_t>(std::popcount(word));
    return n;
  }

  /// The first page from `page` on whose bit is set; the number of pages where there is none.
  [[nodiscard]] std::size_t next(std::size_t page) const noexcept {
    for (; page < pages_; page = (page / 64 + 1) * 64)
      if (const std::uint64_t word = words_[page / 64] >> page % 64; word != 0)
        return page + static_cast<std::size_t>(std::countr_zero(word));
    return pages_;
  }

 private:
  [[nodiscard]] static std::uint64_t bit(std::size_t page) noexcept {
    return std::uint64_t{1} << page % 64;
  }

  std::vector<std::uint64_t> words_;
  std::size_t pages_;
};

} // namespace migration
