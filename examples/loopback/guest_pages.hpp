// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "free_blocks.hpp"
#include "guest_ram.hpp"
#include "page_words.hpp"

#include <ballast/balloon/protocol.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace loopback {

/// The guest's page allocator, as far as the balloon needs one: the driver's `page_source`.
class guest_pages {
 public:
  /// All pages of `ram` from `first` on are to be had, but for `others`. `is_poisoned`: those that
  /// come back are poisoned.
  guest_pages(const guest_ram& ram, std::uint32_t first, const free_blocks& others,
              bool is_poisoned)
      : words_(ram), first_(first),
        states_(static_cast<std::size_t>(ram.size() >> ballast::balloon::pfn_shift) - first,
                state::untouched),
        is_poisoned_(is_poisoned) {
    // All room there will be need of: from here on nothing can fail.
    free_.reserve(states_.size());
    stored_.reserve(states_.size());
    for (std::size_t i = states_.size(); i-- > 0;) {
      if (others.contains(pfn_at(i)))
        states_[i] = state::elsewhere;
      else
        free_.push_back(pfn_at(i));
    }
  }

  [[nodiscard]] std::size_t count() const noexcept { return states_.size(); }

  /// Touches the `i`-th page: fills it with words that only this page has.
  void fill(std::size_t i) noexcept { words_.fill(pfn_at(i), own(i)); }

  // page_source

  std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    const std::size_t n = take(free_, to);
    for (const std::uint32_t pfn : to.first(n)) state_of(pfn) = state::taken;
    return n;
  }
  void store(std::span<const std::uint32_t> from) noexcept {
    stored_.insert(stored_.end(), from.begin(), from.end());
  }
  std::size_t take_stored(std::span<std::uint32_t> to) noexcept { return take(stored_, to); }
  void poison(std::span<const std::uint32_t> pages, std::uint32_t value) noexcept {
    for (const std::uint32_t pfn : pages) words_.fill(pfn, page_words::poison(value));
    poison_value_ = value;
    poisoned_ += pages.size();
  }
  void release(std::span<const std::uint32_t> from) noexcept {
    for (const std::uint32_t pfn : from) {
      if (state_of(pfn) != state::taken) {
        ++misplaced_;
        continue;
      }
      state_of(pfn) = state::returned;
      free_.push_back(pfn);
    }
  }

  /// What the driver has poisoned; once the guest has ended.
  [[nodiscard]] std::uint64_t poisoned_bytes() const noexcept {
    return ballast::balloon::page_size * poisoned_;
  }

  /// Whether `is(pfn)` for every page that is not for the balloon alone... 
  [[nodiscard]] page_check check() noexcept {
    page_check found{.misplaced = misplaced_};
    return found;
  }
};

} // namespace loopback
