// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"

#include <ballast/balloon/protocol.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace loopback {

/// What the guest found out about its pages, in the end.
struct page_check {
  std::uint64_t damaged = 0;   ///< never in the balloon, but the contents changed
  std::uint64_t kept = 0;      ///< were in the balloon, but the host did not take the memory away
  std::uint64_t unusable = 0;  ///< came back, but don't hold what is written to them
  std::uint64_t missing = 0;   ///< went into the balloon and did not come back
  std::uint64_t misplaced = 0; ///< released without having been taken, or twice
};

/// The guest's page allocator, as far as the balloon needs one: the driver's `page_source`.
class guest_pages {
 public:
  /// All pages of `ram` from `first` on are free.
  guest_pages(const guest_ram& ram, std::uint32_t first)
      : ram_(&ram), first_(first),
        states_(static_cast<std::size_t>(ram.size() >> ballast::balloon::pfn_shift) - first,
                state::untouched) {
    // All room there will be need of: from here on nothing can fail.
    free_.reserve(states_.size());
    stored_.reserve(states_.size());
    for (std::size_t i = states_.size(); i-- > 0;) free_.push_back(pfn_at(i));
  }

  [[nodiscard]] std::size_t count() const noexcept { return states_.size(); }

  /// Touches the `i`-th page: fills it with words that only this page has.
  void fill(std::size_t i) noexcept { std::ranges::fill(words(i), pattern(i)); }

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

  /// Looks at every page: untouched ones are as they were; returned ones are empty, and then hold
  /// what is written to them.
  [[nodiscard]] page_check check() noexcept {
    page_check found{.misplaced = misplaced_};
    for (std::size_t i = 0; i < count(); ++i) {
      if (states_[i] == state::untouched) found.damaged += !holds(i, pattern(i));
      if (states_[i] == state::taken) ++found.missing;
      if (states_[i] != state::returned) continue;
      found.kept += !holds(i, 0);
      fill(i);
    }
    // All are written before the first is read back: no two of them are the same memory.
    for (std::size_t i = 0; i < count(); ++i)
      if (states_[i] == state::returned) found.unusable += !holds(i, pattern(i));
    return found;
  }

 private:
  enum class state : std::uint8_t {
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

  /// Never 0: the factor is odd.
  [[nodiscard]] std::uint64_t pattern(std::size_t i) const noexcept {
    return (std::uint64_t{pfn_at(i)} + 1) * 0x9e37'79b9'7f4a'7c15;
  }
  [[nodiscard]] std::span<std::uint64_t> words(std::size_t i) const noexcept {
    std::byte* page = ram_->data() + ballast::balloon::address_of(pfn_at(i));
    return {reinterpret_cast<std::uint64_t*>(page), ballast::balloon::page_size / 8};
  }
  [[nodiscard]] bool holds(std::size_t i, std::uint64_t word) const noexcept {
    return std::ranges::all_of(words(i), [word](std::uint64_t w) { return w == word; });
  }

  const guest_ram* ram_;
  std::uint32_t first_;
  std::vector<state> states_;
  std::vector<std::uint32_t> free_;   // the last is handed out first
  std::vector<std::uint32_t> stored_; // in the balloon; the last comes back first
  std::uint64_t misplaced_ = 0;
};

} // namespace loopback
