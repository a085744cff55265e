// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/driver.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/in_process_transport.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace ballast_test {

using ballast::balloon::statistic_tag;

/// A host that remembers which of the first 64 pages it discarded.
struct test_host {
  std::uint64_t discarded = 0; ///< bit n: page n
  std::uint64_t provided = 0;
  std::uint32_t calls = 0;
  bool fails = false;

  constexpr bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    discarded |= bits(address, size);
    ++calls;
    return !fails;
  }
  constexpr void provide(ballast::guest_address address, std::uint64_t size) noexcept {
    discarded &= ~bits(address, size);
    provided |= bits(address, size);
  }

 private:
  static constexpr std::uint64_t bits(ballast::guest_address address, std::uint64_t size) noexcept {
    std::uint64_t mask = 0;
    for (std::uint64_t page = address >> 12; page < (address + size) >> 12; ++page)
      mask |= std::uint64_t{1} << (page % 64);
    return mask;
  }
};

/// The bits of these pages, each of them below 64.
constexpr std::uint64_t page_bits(std::initializer_list<unsigned> pages) noexcept {
  std::uint64_t bits = 0;
  for (const unsigned page : pages) bits |= std::uint64_t{1} << page;
  return bits;
}

/// A host with all that a host may have, which remembers what it was asked to do to the first 64
/// pages.
struct full_host {
  std::uint64_t discarded = 0; ///< bit n: page n
  std::uint64_t provided = 0;
  std::uint64_t filled = 0;
  std::uint64_t hinted = 0;
  std::uint32_t pattern = 0;
  std::uint32_t calls = 0;
  std::uint32_t asked = 0; ///< `discard_allowed`
  bool is_inhibited = false;
  bool fails = false;

  constexpr bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    return mark(discarded, address, size);
  }
  constexpr void provide(ballast::guest_address address, std::uint64_t size) noexcept {
    (void)mark(provided, address, size);
  }
  constexpr bool fill(ballast::guest_address address, std::uint64_t size,
                      std::uint32_t with) noexcept {
    pattern = with;
    return mark(filled, address, size);
  }
  constexpr bool hint(ballast::guest_address address, std::uint64_t size) noexcept {
    return mark(hinted, address, size);
  }
  constexpr bool discard_allowed() noexcept {
    ++asked;
    return !is_inhibited;
  }

 private:
  constexpr bool mark(std::uint64_t& pages, ballast::guest_address address,
                      std::uint64_t size) noexcept {
    for (std::uint64_t page = address >> 12; page < (address + size) >> 12; ++page)
      pages |= std::uint64_t{1} << (page % 64);
    ++calls;
    return !fails;
  }
};

/// A guest's allocator: hands out the PFNs [first, end) as a stack, lowest first.
template <std::uint32_t Capacity> class test_pages {
 public:
  constexpr test_pages(std::uint32_t first, std::uint32_t end) noexcept {
    for (std::uint32_t pfn = end; pfn-- > first;) free_[free_count_++] = pfn;
  }

  constexpr std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    return take(free_, free_count_, to);
  }
  constexpr void store(std::span<const std::uint32_t> from) noexcept {
    put(stored_, stored_count_, from);
  }
  constexpr std::size_t take_stored(std::span<std::uint32_t> to) noexcept {
    return take(stored_, stored_count_, to);
  }
  constexpr void release(std::span<const std::uint32_t> from) noexcept {
    put(free_, free_count_, from);
  }

  [[nodiscard]] constexpr std::size_t free() const noexcept { return free_count_; }
  [[nodiscard]] constexpr std::size_t stored() const noexcept { return stored_count_; }

 private:
  static constexpr std::size_t take(std::uint32_t* from, std::size_t& count,
                                    std::span<std::uint32_t> to) noexcept {
    std::size_t n = 0;
    while (n < to.size() && count != 0) to[n++] = from[--count];
    return n;
  }
  static constexpr void put(std::uint32_t* to, std::size_t& count,
                            std::span<const std::uint32_t> from) noexcept {
    for (const std::uint32_t pfn : from) to[count++] = pfn;
  }

  std::uint32_t free_[Capacity]{};
  std::uint32_t stored_[Capacity]{};
  std::size_t free_count_ = 0;
  std::size_t stored_count_ = 0;
};

/// Two statistics, one of which counts how often it was asked.
struct test_statistics {
  std::uint64_t asked = 0;
  bool is_empty = false;

  template <std::endian E>
  constexpr void write(ballast::balloon::statistics_writer<E>& to) noexcept {
    ++asked;
    if (is_empty) return;
    (void)to.add(statistic_tag::minor_faults, asked);
    (void)to.add(statistic_tag::total_memory, 1u << 20);
  }
};

} // namespace ballast_test
