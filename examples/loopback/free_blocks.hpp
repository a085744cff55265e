// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"
#include "page_words.hpp"

#include <ballast/balloon/hint_driver.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace loopback {

/// Free memory that the guest has beside what goes into the balloon: every other block of 2 MiB,
/// with one that is in use between any two. The driver's `reporting_source` and `hinting_source`.
class free_blocks {
 public:
  static constexpr std::uint64_t block_bytes = huge_page_size;
  static constexpr std::uint32_t block_pages = block_bytes / ballast::balloon::page_size;

  /// How many there are from `begin` to `end`.
  [[nodiscard]] static constexpr std::uint64_t count(std::uint64_t begin,
                                                     std::uint64_t end) noexcept {
    const std::uint64_t first = round_up(begin, block_bytes);
    return end < first ? 0 : ((end - first) / block_bytes + 1) / 2;
  }

  /// Those behind `begin`. `poison`: what free pages hold, if they have to hold something.
  free_blocks(const guest_ram& ram, std::uint64_t begin, std::optional<std::uint32_t> poison)
      : words_(ram), first_(round_up(begin, block_bytes)),
        states_(static_cast<std::size_t>(count(begin, ram.size()))), remembered_(states_.size()),
        poison_(poison) {}

  [[nodiscard]] std::uint64_t bytes() const noexcept { return states_.size() * block_bytes; }
  [[nodiscard]] bool contains(std::uint32_t pfn) const noexcept {
    const ballast::guest_address at = ballast::balloon::address_of(pfn);
    return at >= first_ && (at - first_) / block_bytes % 2 == 0 && index_of(at) < states_.size();
  }

  /// What a guest does that frees memory.
  void poison() const noexcept {
    for (std::size_t i = 0; i < states_.size(); ++i) poison(i);
  }

  // reporting_source

  std::size_t take_reportable(std::span<ballast::buffer> to) noexcept {
    std::size_t n = 0;
    for (; n < to.size() && has_reportable(); ++n) {
      states_[next_report_] = state::taken;
      to[n] = {address_of(next_report_++), static_cast<std::uint32_t>(block_bytes)};
    }
    reported_ += n;
    return n;
  }
  void return_reportable(std::span<const ballast::buffer> from, bool is_reported) noexcept {
    for (const ballast::buffer& range : from)
      give_back(range.address, is_reported ? state::reported : state::free);
    returned_ += from.size();
  }

  [[nodiscard]] bool has_reportable() const noexcept { return next_report_ != states_.size(); }
  /// Some are with the driver, or further.
  [[nodiscard]] bool is_report_under_way() const noexcept { return reported_ != returned_; }
  /// What the device has seen.
  [[nodiscard]] std::uint64_t reported_bytes() const noexcept { return returned_ * block_bytes; }

  // hinting_source

  std::span<ballast::balloon::hint_block> hint_blocks() noexcept { return remembered_; }
  [[nodiscard]] static ballast::balloon::hint_driver_options hint_options() noexcept {
    return {.order = block_order, .order_min = block_order};
  }
  ballast::result<ballast::guest_address> take(unsigned) noexcept {
    if (next_hint_ == states_.size()) return ballast::error::queue_empty;
    states_[next_hint_] = state::taken;
    return address_of(next_hint_++);
  }
  void release(ballast::guest_address address, unsigned) noexcept {
    give_back(address, state::free);
    poison(index_of(address)); // the contents are undefined
  }

  /// Looks at every block: the poison is there, or reported ones are empty; and then they hold what
  /// is written to them.
  [[nodiscard]] page_check check() noexcept {
    page_check found{.misplaced = misplaced_};
    for (std::size_t i = 0; i < states_.size(); ++i) {
      if (states_[i] == state::taken) found.missing += block_pages;
      for_each_page(i, [&](std::uint32_t pfn) {
        if (poison_)
          found.unpoisoned += !words_.hold(pfn, page_words::poison(*poison_));
        else if (states_[i] == state::reported)
          found.kept += !words_.hold(pfn, 0);
        words_.fill(pfn, page_words::own(pfn));
      });
    }
    // All are written before the first is read back: no two of them are the same memory.
    for (std::size_t i = 0; i < states_.size(); ++i)
      for_each_page(
          i, [&](std::uint32_t pfn) { found.unusable += !words_.hold(pfn, page_words::own(pfn)); });
    return found;
  }

 private:
  enum class state : std::uint8_t { free, taken, reported };

  static constexpr unsigned block_order = 9; // 2^9 pages
  static_assert(1u << block_order == block_pages);

  [[nodiscard]] ballast::guest_address address_of(std::size_t i) const noexcept {
    return first_ + i * 2 * block_bytes;
  }
  [[nodiscard]] std::size_t index_of(ballast::guest_address address) const noexcept {
    return static_cast<std::size_t>((address - first_) / (2 * block_bytes));
  }

  void give_back(ballast::guest_address address, state now) noexcept {
    state& of = states_[index_of(address)];
    misplaced_ += of == state::taken ? 0 : block_pages;
    of = now;
  }

  template <class Do> void for_each_page(std::size_t i, Do what) const noexcept {
    const auto first = static_cast<std::uint32_t>(address_of(i) >> ballast::balloon::pfn_shift);
    for (std::uint32_t page = 0; page < block_pages; ++page) what(first + page);
  }

  void poison(std::size_t i) const noexcept {
    if (!poison_) return;
    for_each_page(i, [&](std::uint32_t pfn) { words_.fill(pfn, page_words::poison(*poison_)); });
  }

  page_words words_;
  ballast::guest_address first_;
  std::vector<state> states_;
  std::vector<ballast::balloon::hint_block> remembered_;
  std::optional<std::uint32_t> poison_;
  std::size_t next_report_ = 0; ///< those below were reported
  std::size_t next_hint_ = 0;   ///< those below were hinted
  std::uint64_t reported_ = 0;
  std::uint64_t returned_ = 0;
  std::uint64_t misplaced_ = 0;
};

} // namespace loopback
