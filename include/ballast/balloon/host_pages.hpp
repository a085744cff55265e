// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/page_ranges.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/result.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// The host's page sizes that Linux knows on the usual machines, in bytes; any power of two from
/// 4096 to 2^31 does.
inline constexpr std::uint32_t host_page_sizes[] = {4u << 10, 16u << 10, 64u << 10, 2u << 20,
                                                    1u << 30};

/// `bytes` as a page size of the host: rounded up to a power of two of 4096 to 2^31.
[[nodiscard]] constexpr std::uint32_t host_page_size_of(std::uint32_t bytes) noexcept {
  if (bytes > 1u << 31) return 1u << 31;
  return std::bit_ceil(bytes < page_size ? page_size : bytes);
}

/// Which pages of 4096 bytes are inflated, and which host pages are so altogether.
///
///     std::vector<std::uint32_t> storage(host_page_tracker::storage_size(guest, 2u << 20));
///     auto tracker = *host_page_tracker::over(storage, guest, 2u << 20);
///     if (tracker.insert(pfn)) ...;  // the last of its host page, which can go as a whole
///     if (tracker.erase(pfn)) ...;   // the first: a host page that was whole is in use again
///
/// The pages come in any order and over any number of buffers. There is one bit for each page of
/// the guest and a count for each host page, in the caller's storage: nothing can overflow. A host
/// page that lies only in part in the guest's pages never becomes whole. What one page costs does
/// not depend on the size of anything, and `forget` costs as much as what was inserted before.
///
/// A device may touch a page only until it returns the inflate buffer, unless MUST_TELL_HOST is
/// negotiated: without it the driver may use the page again silently, so whoever feeds the tracker
/// forgets a buffer's pages when the buffer is published. What then comes back of a Linux guest,
/// which sends 256 pages and waits for that buffer:
///
///     host page         4 KiB    16 and 64 KiB                               2 MiB, 1 GiB
///     MUST_TELL_HOST    all      every one that is inflated altogether       the same
///     without           all      pages in order: all, but for up to one      nothing
///                                where a buffer ends; at random: hardly any
///
/// Spec: "Traditional Memory Balloon Device / Device Operation".
class host_page_tracker {
 public:
  /// Tracks nothing.
  constexpr host_page_tracker() noexcept = default;

  /// How many 32-bit words `over` needs.
  [[nodiscard]] static constexpr std::uint64_t storage_size(page_range guest,
                                                            std::uint32_t host_page_size) noexcept {
    const host_page_tracker t(guest, host_page_size);
    return 2 * t.words() + t.host_pages();
  }

  /// Tracks `guest`, the pages from the guest's first to its last, holes included. The storage
  /// stays the tracker's, and only one tracker's.
  /// Errors: `storage_too_small`, `page_out_of_range` (beyond the last PFN).
  [[nodiscard]] static constexpr result<host_page_tracker>
  over(std::span<std::uint32_t> storage, page_range guest, std::uint32_t host_page_size) noexcept {
    if (guest.first + guest.count > pfn_count) return error::page_out_of_range;
    host_page_tracker t(guest, host_page_size);
    const std::uint64_t words = t.words(), host_pages = t.host_pages();
    if (storage.size() < 2 * words + host_pages) return error::storage_too_small;
    for (std::uint32_t& word : storage) word = 0;
    const auto n = static_cast<std::size_t>(words);
    t.bits_ = storage.first(n);
    t.next_ = storage.subspan(n, n);
    t.counts_ = storage.subspan(2 * n, static_cast<std::size_t>(host_pages));
    return t;
  }

  [[nodiscard]] constexpr std::uint32_t host_page_size() const noexcept {
    return page_size << shift_;
  }
  /// The number of the host page that a page lies in.
  [[nodiscard]] constexpr std::uint32_t host_page_of(std::uint32_t pfn) const noexcept {
    return pfn >> shift_;
  }
  /// The pages of host pages that follow each other.
  [[nodiscard]] constexpr page_range pages_of(page_range host_pages) const noexcept {
    return {host_pages.first << shift_, host_pages.count << shift_};
  }

  /// Whether the page is one of the guest's.
  [[nodiscard]] constexpr bool covers(std::uint32_t pfn) const noexcept {
    return pfn >= guest_.first && pfn - guest_.first < guest_.count && !bits_.empty();
  }
  [[nodiscard]] constexpr bool contains(std::uint32_t pfn) const noexcept {
    return covers(pfn) && (bits_[index_of(pfn) / 32] & mask_of(pfn)) != 0;
  }

  /// Remembers an inflated page; whether it made its host page whole. False for a page that is
  /// known already, or not the guest's.
  constexpr bool insert(std::uint32_t pfn) noexcept {
    if (!covers(pfn) || contains(pfn)) return false;
    const std::size_t word = index_of(pfn) / 32;
    bits_[word] |= mask_of(pfn);
    list(word);
    ++held_;
    const bool is_whole = ++counts_[place_of(pfn)] == 1u << shift_;
    whole_ += is_whole;
    return is_whole;
  }

  /// Forgets a deflated page, and no other; whether its host page was whole until now.
  constexpr bool erase(std::uint32_t pfn) noexcept {
    if (!contains(pfn)) return false;
    bits_[index_of(pfn) / 32] &= ~mask_of(pfn);
    --held_;
    const bool was_whole = counts_[place_of(pfn)]-- == 1u << shift_;
    whole_ -= was_whole;
    return was_whole;
  }

  /// Forgets every page.
  constexpr void forget() noexcept {
    while (listed_ != 0) {
      const std::size_t word = listed_ - 1;
      listed_ = next_[word] == last ? 0 : next_[word];
      next_[word] = 0;
      bits_[word] = 0;
      const std::uint64_t end = (word * std::uint64_t{32} + 31) >> shift_;
      for (std::uint64_t i = (word * std::uint64_t{32}) >> shift_; i <= end; ++i)
        if (i < counts_.size()) counts_[static_cast<std::size_t>(i)] = 0;
    }
    held_ = whole_ = 0;
  }

  /// Pages that are inflated, as far as is remembered.
  [[nodiscard]] constexpr std::uint64_t held_pages() const noexcept { return held_; }
  /// Those of them whose host page is not whole.
  [[nodiscard]] constexpr std::uint64_t partial_pages() const noexcept {
    return held_ - (whole_ << shift_);
  }

 private:
  static constexpr std::uint64_t pfn_count = std::uint64_t{1} << 32;
  static constexpr std::uint32_t last = UINT32_MAX; ///< ends the list

  constexpr host_page_tracker(page_range guest, std::uint32_t host_page_size) noexcept
      : guest_(guest),
        shift_(static_cast<unsigned>(std::countr_zero(host_page_size_of(host_page_size))) -
               pfn_shift),
        base_(guest.first >> shift_ << shift_) {}

  [[nodiscard]] constexpr std::uint64_t host_pages() const noexcept {
    const std::uint64_t pages = guest_.first - base_ + guest_.count;
    return (pages + (std::uint64_t{1} << shift_) - 1) >> shift_;
  }
  [[nodiscard]] constexpr std::uint64_t words() const noexcept {
    return (guest_.first - base_ + guest_.count + 31) / 32;
  }

  // Counted from the start of the first host page.
  [[nodiscard]] constexpr std::size_t index_of(std::uint32_t pfn) const noexcept {
    return pfn - base_;
  }
  [[nodiscard]] constexpr std::size_t place_of(std::uint32_t pfn) const noexcept {
    return index_of(pfn) >> shift_;
  }
  [[nodiscard]] constexpr std::uint32_t mask_of(std::uint32_t pfn) const noexcept {
    return 1u << (index_of(pfn) % 32);
  }

  /// Puts a word on the list of those that `forget` has to look at.
  constexpr void list(std::size_t word) noexcept {
    if (next_[word] != 0) return;
    next_[word] = listed_ == 0 ? last : listed_;
    listed_ = static_cast<std::uint32_t>(word + 1);
  }

  page_range guest_;
  unsigned shift_ = 0;     ///< of the pages in a host page
  std::uint32_t base_ = 0; ///< the first page of the first host page
  std::uint32_t listed_ = 0;
  std::uint64_t held_ = 0;
  std::uint64_t whole_ = 0;
  std::span<std::uint32_t> bits_;   ///< one for each page
  std::span<std::uint32_t> next_;   ///< of a listed word: the number of the next, from 1; 0: not
  std::span<std::uint32_t> counts_; ///< of each host page
};

/// What a tracker of `Pages` pages of a guest needs, where both are known to the compiler; the
/// guest may begin anywhere.
template <std::uint64_t Pages, std::uint32_t HostPageSize> struct host_page_storage {
  static constexpr std::uint64_t size =
      host_page_tracker::storage_size({HostPageSize / page_size - 1, Pages}, HostPageSize);
  std::uint32_t words[static_cast<std::size_t>(size)]{};

  constexpr operator std::span<std::uint32_t>() noexcept { return words; }
};

} // namespace ballast::balloon
