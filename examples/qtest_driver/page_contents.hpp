// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/guest_memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

namespace qtest_driver {

/// Writes and checks whole pages, through an accessor of guest memory.
template <ballast::guest_memory M> class page_contents {
 public:
  using page = std::array<std::uint64_t, ballast::balloon::page_size / sizeof(std::uint64_t)>;

  explicit page_contents(M& memory) noexcept : memory_(&memory) {}

  /// Words that only this page has.
  [[nodiscard]] static page own(std::uint32_t pfn) noexcept {
    page words;
    for (std::size_t i = 0; i < words.size(); ++i)
      words[i] = 0x9e37'79b9'7f4a'7c15 * (std::uint64_t{pfn} * words.size() + i + 1);
    return words;
  }
  /// Four bytes over and over.
  [[nodiscard]] static page repeated(std::uint32_t value) noexcept {
    page words;
    words.fill(value * 0x1'0000'0001u);
    return words;
  }

  bool write(std::uint32_t pfn, const page& words) noexcept {
    return memory_->write(ballast::balloon::address_of(pfn), std::as_bytes(std::span(words)));
  }
  [[nodiscard]] bool holds(std::uint32_t pfn, const page& words) noexcept {
    page found;
    return memory_->read(ballast::balloon::address_of(pfn),
                         std::as_writable_bytes(std::span(found))) &&
           found == words;
  }

  /// Fills memory with what does not compress; whole pages.
  bool randomise(ballast::guest_address begin, std::uint64_t size) {
    std::mt19937_64 numbers(begin);
    std::vector<std::uint64_t> words(static_cast<std::size_t>(size / sizeof(std::uint64_t)));
    for (std::uint64_t& word : words) word = numbers();
    return memory_->write(begin, std::as_bytes(std::span(words)));
  }

  /// How many pages of [begin, end) are not empty.
  [[nodiscard]] std::uint64_t count_used(ballast::guest_address begin, ballast::guest_address end) {
    std::vector<page> found(static_cast<std::size_t>((end - begin) / sizeof(page)));
    if (!memory_->read(begin, std::as_writable_bytes(std::span(found)))) return 0;
    std::uint64_t used = 0;
    for (const page& one : found) used += one != page{};
    return used;
  }

 private:
  M* memory_;
};

} // namespace qtest_driver
