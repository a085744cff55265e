// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "free_blocks.hpp"
#include "guest_ram.hpp"
#include "page_words.hpp"

#include <ballast/balloon/protocol.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace loopback {

/// The guest's page allocator, as far as the balloon needs one: the driver's `page_source`.
class guest_pages {
 public:
  /// All pages of `ram` from `first` on are free, but for `others`. `poison`: what they hold when
  /// they come back; else they are empty.
  guest_pages(const guest_ram& ram, std::uint32_t first, const free_blocks& others,
              std::optional<std::uint32_t> poison)
      : words_(ram), first_(first),
        states_(static_cast<std::size_t>(ram.size() >> ballast::balloon::pfn_shift) - first,
                state::untouched),
        poison_(poison) {
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
  void fill(std::size_t i) noexcept { words_.fill(pfn_at(i), page_words::own(pfn_at(i))); }

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

  /// What the driver has poisoned.
  [[nodiscard]] std::uint64_t poisoned_bytes() const noexcept {
    return poisoned_ * ballast::balloon::page_size;
  }

  /// Looks at every page: untouched ones are as they were; returned ones are empty, or poisoned,
  /// and then hold what is written to them.
  [[nodiscard]] page_check check() noexcept {
    page_check found{.misplaced = misplaced_};
    for (std::size_t i = 0; i < count(); ++i) {
      const std::uint32_t pfn = pfn_at(i);
      if (states_[i] == state::untouched) found.damaged += !words_.hold(pfn, page_words::own(pfn));
      if (states_[i] == state::taken) ++found.missing;
      if (states_[i] != state::returned) continue;
      if (poison_)
        found.unpoisoned += !words_.hold(pfn, page_words::poison(*poison_));
      else
        found.kept += !words_.hold(pfn, 0);
      fill(i);
    }
    // All are written before the first is read back: no two of them are the same memory.
    for (std::size_t i = 0; i < count(); ++i)
      if (states_[i] == state::returned)
        found.unusable += !words_.hold(pfn_at(i), page_words::own(pfn_at(i)));
    return found;
  }

 private:
  enum class state : std::uint8_t {
    elsewhere, ///< not the balloon's
    untouched, ///< was never in the balloon
    taken,     ///< handed to the driver
    returned,
  };

  static std::size_t take(std::vector<std::uint32_t>& from, std::span<std::uint32_t> to) noexcept {
    const std::size_t n = std::min(from.size(), to.size());
    for (std::uint32_t& pfn : to.first(n)) {
      pfn = from.back();
      from.pop_back();
    }
    return n;
  }

  [[nodiscard]] std::uint32_t pfn_at(std::size_t i) const noexcept {
    return first_ + static_cast<std::uint32_t>(i);
  }
  [[nodiscard]] state& state_of(std::uint32_t pfn) noexcept { return states_[pfn - first_]; }

  page_words words_;
  std::uint32_t first_;
  std::vector<state> states_;
  std::vector<std::uint32_t> free_;   // the last is handed out first
  std::vector<std::uint32_t> stored_; // in the balloon; the last comes back first
  std::optional<std::uint32_t> poison_;
  std::uint64_t poisoned_ = 0;
  std::uint64_t misplaced_ = 0;
};

} // namespace loopback
