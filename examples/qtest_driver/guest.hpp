// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "page_contents.hpp"

#include <ballast/balloon/hint_driver.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

namespace qtest_driver {

/// Where things are in guest memory. Below: what the driver keeps, and what is in use.
namespace place {
inline constexpr ballast::guest_address queues = 1 << 20;    ///< of the driver
inline constexpr ballast::guest_address raw_queue = 3 << 20; ///< of `broken_rings`
inline constexpr ballast::guest_address in_use = 4 << 20;    ///< memory that a migration sends
inline constexpr std::uint64_t in_use_bytes = 12 << 20;
inline constexpr ballast::guest_address pages = 16 << 20; ///< that may go into the balloon
inline constexpr std::uint32_t page_count = 4096;
inline constexpr ballast::guest_address reported = 32 << 20; ///< three ranges of 2 MiB
inline constexpr std::uint32_t report_bytes = 2 << 20;
inline constexpr ballast::guest_address hinted = 40 << 20; ///< four blocks of 4 MiB
inline constexpr std::uint32_t hint_bytes = 4 << 20;
inline constexpr std::size_t hint_count = 4;
} // namespace place

/// The pages that may go into the balloon: the driver's `page_source`. Every eighth is in use by
/// somebody else, so that each that goes has a neighbour that must not.
template <ballast::guest_memory M> class guest_pages {
 public:
  explicit guest_pages(M& memory) : contents_(memory) {
    for (std::uint32_t i = place::page_count; i-- > 0;) {
      const std::uint32_t pfn = first + i;
      states_[pfn] = i % 8 == 7 ? state::in_use : state::free;
      if (i % 8 != 7) free_.push_back(pfn); // the last is handed out first
    }
  }

  // page_source

  std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    const std::size_t n = take(free_, to);
    for (const std::uint32_t pfn : to.first(n)) states_[pfn] = state::taken;
    return n;
  }
  void store(std::span<const std::uint32_t> from) noexcept {
    stored_.insert(stored_.end(), from.begin(), from.end());
    for (const std::uint32_t pfn : from) states_[pfn] = state::stored;
  }
  std::size_t take_stored(std::span<std::uint32_t> to) noexcept {
    const std::size_t n = take(stored_, to);
    for (const std::uint32_t pfn : to.first(n)) states_[pfn] = state::taken;
    return n;
  }
  void poison(std::span<const std::uint32_t> pages, std::uint32_t value) noexcept {
    for (const std::uint32_t pfn : pages) (void)contents_.write(pfn, contents_.repeated(value));
  }
  void release(std::span<const std::uint32_t> from) noexcept {
    for (const std::uint32_t pfn : from) {
      misplaced_ += states_[pfn] != state::taken;
      states_[pfn] = state::free;
      released_.push_back(pfn);
      free_.push_back(pfn);
    }
  }

  /// Each of `count` pages from the first on that is not in the balloon gets words of its own.
  void touch(std::uint32_t count) {
    for (std::uint32_t pfn = first; pfn < first + count; ++pfn)
      if (states_[pfn] != state::stored) (void)contents_.write(pfn, contents_.own(pfn));
  }

  [[nodiscard]] std::size_t stored() const noexcept { return stored_.size(); }
  /// Pages in the balloon that are not empty.
  [[nodiscard]] std::size_t not_empty() {
    std::size_t wrong = 0;
    for (const std::uint32_t pfn : stored_) wrong += !contents_.holds(pfn, contents_.repeated(0));
    return wrong;
  }
  /// How many of the first `count` pages are not in the balloon; `wrong`: of these, those that are
  /// not as they were.
  [[nodiscard]] std::size_t neighbours(std::uint32_t count, std::size_t& wrong) {
    std::size_t found = 0;
    for (std::uint32_t pfn = first; pfn < first + count; ++pfn) {
      if (states_[pfn] == state::stored) continue;
      ++found;
      wrong += !contents_.holds(pfn, contents_.own(pfn));
    }
    return found;
  }
  /// Pages that came back since this was asked last; `wrong`: those that do not hold four bytes
  /// over and over, and those that do not hold what is written to them now.
  [[nodiscard]] std::size_t released(bool has_poison, std::uint32_t value, std::size_t& wrong) {
    for (const std::uint32_t pfn : released_) {
      wrong += has_poison && !contents_.holds(pfn, contents_.repeated(value));
      (void)contents_.write(pfn, contents_.own(pfn));
    }
    for (const std::uint32_t pfn : released_) wrong += !contents_.holds(pfn, contents_.own(pfn));
    return forget_released();
  }
  /// How many came back, where nobody looks at them.
  std::size_t forget_released() noexcept {
    const std::size_t count = released_.size();
    released_.clear();
    return count;
  }
  /// Pages that the driver has not given back, or that it gave back and did not have.
  [[nodiscard]] std::size_t lost() const noexcept {
    std::size_t found = misplaced_;
    for (const auto& [pfn, s] : states_) found += s == state::taken;
    return found;
  }

 private:
  enum class state : std::uint8_t { free, in_use, taken, stored };
  static constexpr auto first =
      static_cast<std::uint32_t>(place::pages >> ballast::balloon::pfn_shift);

  static std::size_t take(std::vector<std::uint32_t>& from, std::span<std::uint32_t> to) noexcept {
    const std::size_t n = from.size() < to.size() ? from.size() : to.size();
    for (std::uint32_t& pfn : to.first(n)) {
      pfn = from.back();
      from.pop_back();
    }
    return n;
  }

  page_contents<M> contents_;
  std::map<std::uint32_t, state> states_;
  std::vector<std::uint32_t> free_, stored_, released_;
  std::size_t misplaced_ = 0;
};

/// What the guest gives beside pages: statistics that grow from one buffer to the next, blocks to
/// hint, ranges to report.
class guest_sources {
 public:
  /// Not known to this guest.
  static constexpr auto missing = ballast::balloon::statistic_tag::swap_out;

  [[nodiscard]] static constexpr std::uint64_t value_of(ballast::balloon::statistic_tag tag,
                                                        std::uint32_t round) noexcept {
    return 1'000'000u * std::uint64_t{round} + 1000u + static_cast<std::uint64_t>(tag);
  }
  /// How many buffers of statistics were filled.
  [[nodiscard]] std::uint32_t rounds() const noexcept { return rounds_; }

  // statistics_source
  void write(ballast::balloon::statistics_writer<std::endian::little>& to) noexcept {
    ++rounds_;
    for (std::size_t i = 0; i < ballast::balloon::statistic_count; ++i) {
      const auto tag = static_cast<ballast::balloon::statistic_tag>(i);
      if (tag != missing) (void)to.add(tag, value_of(tag, rounds_));
    }
  }

  // reporting_source
  std::size_t take_reportable(std::span<ballast::buffer> to) noexcept {
    std::size_t n = 0;
    for (; n < 3 && n < to.size(); ++n)
      to[n] = {place::reported + n * place::report_bytes, place::report_bytes};
    return n;
  }
  void return_reportable(std::span<const ballast::buffer> from, bool is_reported) noexcept {
    if (is_reported) reported_ += from.size();
  }
  /// Ranges that came back as reported since this was asked last.
  [[nodiscard]] std::size_t take_reported() noexcept { return std::exchange(reported_, 0); }

  // hinting_source
  std::span<ballast::balloon::hint_block> hint_blocks() noexcept { return blocks_; }
  ballast::result<ballast::guest_address> take(unsigned) noexcept {
    if (hinted_ == place::hint_count) return ballast::error::queue_empty;
    return place::hinted + place::hint_bytes * hinted_++;
  }
  void release(ballast::guest_address, unsigned) noexcept { ++released_; }
  [[nodiscard]] std::size_t hinted() const noexcept { return hinted_; }
  /// Whether the device has seen all that were hinted.
  [[nodiscard]] bool is_hint_over() const noexcept {
    bool is_over = hinted_ == place::hint_count;
    for (const ballast::balloon::hint_block& block : blocks_)
      is_over = is_over && !block.is_in_flight;
    return is_over;
  }
  /// Hinted blocks that the guest has back.
  [[nodiscard]] std::size_t released() const noexcept { return released_; }

 private:
  ballast::balloon::hint_block blocks_[place::hint_count];
  std::size_t hinted_ = 0, released_ = 0, reported_ = 0;
  std::uint32_t rounds_ = 0;
};

} // namespace qtest_driver
