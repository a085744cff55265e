// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>

#include <cstdint>

namespace ballast::balloon {

/// `count` consecutive pages of 4096 bytes, from the page frame number `first` on.
struct page_range {
  std::uint32_t first = 0;
  std::uint64_t count = 0; ///< up to 2^32

  friend constexpr bool operator==(const page_range&, const page_range&) noexcept = default;
};

/// Joins page frame numbers into ranges, whichever way they run.
///
///     page_range_builder ranges;
///     for (each pfn) ranges.add(pfn, sink);   // sink(page_range)
///     ranges.finish(sink);
///
/// A driver that takes its pages off a list hands them out descending as often as ascending, so a
/// range grows at both ends. A page that is already in the current range is passed over; PFN 0 is a
/// page like any other.
class page_range_builder {
 public:
  /// Adds a page; `sink` gets the range before it where the page does not join on.
  template <class Sink> constexpr void add(std::uint32_t pfn, Sink&& sink) noexcept {
    if (range_.count != 0) {
      const std::uint64_t end = range_.first + range_.count;
      if (pfn == end) {
        ++range_.count;
        return;
      }
      if (pfn + std::uint64_t{1} == range_.first) {
        --range_.first;
        ++range_.count;
        return;
      }
      if (pfn >= range_.first && pfn < end) return;
      sink(range_);
    }
    range_ = {pfn, 1};
  }

  /// Hands out the last range.
  template <class Sink> constexpr void finish(Sink&& sink) noexcept {
    if (range_.count != 0) sink(range_);
    range_ = {};
  }

 private:
  page_range range_;
};

/// The pages of host pages of `host_page_pages` pages (a power of two) that lie wholly in `range`:
/// only whole host pages can be given back.
[[nodiscard]] constexpr page_range whole_host_pages(page_range range,
                                                    std::uint32_t host_page_pages) noexcept {
  const std::uint64_t mask = host_page_pages - 1;
  const std::uint64_t begin = (range.first + mask) & ~mask;
  const std::uint64_t end = (range.first + range.count) & ~mask;
  if (begin >= end) return {};
  return {static_cast<std::uint32_t>(begin), end - begin};
}

/// `size` bytes of guest memory at `address`.
struct address_range {
  guest_address address = 0;
  std::uint64_t size = 0;

  friend constexpr bool operator==(const address_range&, const address_range&) noexcept = default;
};

/// The pages of `alignment` bytes (a power of two) that lie wholly in `range`; none where the range
/// passes the end of the address space.
[[nodiscard]] constexpr address_range whole_pages(address_range range,
                                                  std::uint64_t alignment) noexcept {
  const std::uint64_t mask = alignment - 1;
  if (range.size > UINT64_MAX - range.address || range.address > UINT64_MAX - mask) return {};
  const guest_address begin = (range.address + mask) & ~mask;
  const guest_address end = (range.address + range.size) & ~mask;
  if (begin >= end) return {};
  return {begin, end - begin};
}

} // namespace ballast::balloon
