// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// A guest's allocator that knows where each block is and counts what a driver does wrong: blocks
/// that change hands out of turn, free ones that are asked for while a buffer is under way, and
/// ones that come back without their poison. The free ones are a stack, lowest first.
template <std::uint32_t Capacity, std::uint32_t BlockPages = 1> class watched_pages {
 public:
  static constexpr std::uint32_t block_pages = BlockPages;
  enum class place : std::uint8_t { elsewhere, free, inflating, stored, deflating };

  /// `count` blocks are free, from the PFN `first` on.
  constexpr watched_pages(std::uint32_t first, std::uint32_t count) noexcept : first_(first) {
    for (std::uint32_t i = count; i-- > 0;) put_free(i);
  }

  bool wants_poison = false;
  std::uint32_t poison_value = 0;
  std::uint32_t free_calls = 0; ///< of `take_free`

  constexpr std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    ++free_calls;
    wrong_ += count(place::inflating) != 0 || count(place::deflating) != 0;
    std::size_t n = 0;
    for (; n < to.size() && free_count_ != 0; ++n)
      to[n] = move(free_[--free_count_], place::free, place::inflating);
    return n;
  }
  constexpr void store(std::span<const std::uint32_t> from) noexcept {
    for (const std::uint32_t pfn : from) (void)move(index(pfn), place::inflating, place::stored);
  }
  constexpr std::size_t take_stored(std::span<std::uint32_t> to) noexcept {
    std::size_t n = 0;
    for (std::uint32_t i = 0; n < to.size() && i < Capacity; ++i)
      if (places_[i] == place::stored) to[n++] = move(i, place::stored, place::deflating);
    return n;
  }
  constexpr void release(std::span<const std::uint32_t> from) noexcept {
    for (const std::uint32_t pfn : from) {
      const std::uint32_t i = index(pfn);
      wrong_ += places_[i] != place::deflating && places_[i] != place::inflating;
      wrong_ += is_poisoned_[i] != wants_poison;
      is_poisoned_[i] = false;
      put_free(i);
    }
  }
  constexpr void poison(std::span<const std::uint32_t> from, std::uint32_t value) noexcept {
    wrong_ += value != poison_value;
    for (const std::uint32_t pfn : from) is_poisoned_[index(pfn)] = true;
  }
  constexpr void replace(std::uint32_t from, std::uint32_t to) noexcept {
    (void)move(index(from), place::stored, place::deflating);
    (void)move(index(to), place::inflating, place::stored);
  }

  /// Takes a free block for `migrate`.
  constexpr std::uint32_t take_one() noexcept {
    return move(free_[--free_count_], place::free, place::inflating);
  }
  /// Another part of the guest has the free blocks; and gives them back.
  constexpr void use_up() noexcept {
    while (free_count_ != 0) (void)move(free_[--free_count_], place::free, place::elsewhere);
  }
  constexpr void give_up(std::uint32_t blocks) noexcept {
    for (std::uint32_t i = 0; i < Capacity && blocks != 0; ++i)
      if (places_[i] == place::elsewhere) {
        put_free(i);
        --blocks;
      }
  }

  [[nodiscard]] constexpr std::uint32_t count(place where) const noexcept {
    std::uint32_t n = 0;
    for (const place p : places_) n += p == where;
    return n;
  }
  [[nodiscard]] constexpr place place_of(std::uint32_t pfn) const noexcept {
    return places_[(pfn - first_) / BlockPages];
  }
  [[nodiscard]] constexpr std::uint32_t free() const noexcept { return count(place::free); }
  [[nodiscard]] constexpr std::uint32_t stored() const noexcept { return count(place::stored); }
  /// Things that must not happen.
  [[nodiscard]] constexpr std::uint32_t wrong() const noexcept { return wrong_; }

 private:
  constexpr std::uint32_t index(std::uint32_t pfn) noexcept {
    const std::uint32_t i = (pfn - first_) / BlockPages;
    const bool is_block = pfn >= first_ && i < Capacity && (pfn - first_) % BlockPages == 0;
    wrong_ += !is_block;
    return is_block ? i : 0;
  }
  constexpr std::uint32_t move(std::uint32_t i, place from, place to) noexcept {
    wrong_ += places_[i] != from;
    places_[i] = to;
    return first_ + i * BlockPages;
  }
  constexpr void put_free(std::uint32_t i) noexcept {
    places_[i] = place::free;
    free_[free_count_++] = i;
  }

  std::uint32_t first_;
  std::array<place, Capacity> places_{};
  std::array<bool, Capacity> is_poisoned_{};
  std::array<std::uint32_t, Capacity + 1> free_{};
  std::uint32_t free_count_ = 0;
  std::uint32_t wrong_ = 0;
};

} // namespace ballast_test
