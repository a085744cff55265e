// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/host_pages.hpp>

#include "support/check.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

namespace {

using namespace ballast;
using balloon::host_page_storage;
using balloon::host_page_tracker;
using balloon::page_range;

constexpr std::uint32_t kib = 1u << 10, mib = 1u << 20, gib = 1u << 30;

constexpr auto sizes = [](auto check) {
  check(balloon::host_page_size_of(0) == 4 * kib);
  check(balloon::host_page_size_of(4 * kib) == 4 * kib);
  check(balloon::host_page_size_of(4 * kib + 1) == 8 * kib);
  check(balloon::host_page_size_of(gib) == gib);
  check(balloon::host_page_size_of(UINT32_MAX) == 1u << 31); // the next one has no 32 bits
  for (const std::uint32_t size : balloon::host_page_sizes)
    check(balloon::host_page_size_of(size) == size);
};
BOTH("a host page is a power of two of at least 4096 bytes", sizes)

constexpr auto completes = [](auto check) {
  host_page_storage<16, 16 * kib> storage;
  auto made = host_page_tracker::over(storage, {0, 16}, 16 * kib);
  check(made.has_value());
  host_page_tracker& t = *made;
  check(t.host_page_size() == 16 * kib && t.host_page_of(7) == 1);
  check((t.pages_of({1, 2}) == page_range{4, 8}));
  // Two host pages at once, in no order.
  check(!t.insert(6) && !t.insert(1) && !t.insert(4) && !t.insert(3) && !t.insert(7));
  check(t.held_pages() == 5 && t.partial_pages() == 5);
  check(t.insert(5)); // 4 to 7
  check(t.held_pages() == 6 && t.partial_pages() == 2);
  check(!t.insert(5)); // once
  check(!t.insert(0) && t.insert(2));
  check(t.partial_pages() == 0 && t.held_pages() == 8);
  check(t.contains(5) && !t.contains(8));
};
BOTH("pages in any order make a host page whole, once", completes)

constexpr auto deflated = [](auto check) {
  host_page_storage<16, 16 * kib> storage;
  host_page_tracker t = *host_page_tracker::over(storage, {0, 16}, 16 * kib);
  for (const std::uint32_t pfn : {8u, 9u, 10u}) check(!t.insert(pfn));
  check(!t.erase(9)); // was not whole
  check(t.contains(8) && !t.contains(9) && t.contains(10));
  check(!t.insert(11)); // three of four
  check(t.insert(9));
  check(t.erase(8) && !t.erase(8)); // the first makes the difference, and only one can be it
  check(!t.erase(10));
  check(!t.insert(10) && t.insert(8));
  check(!t.erase(0) && !t.erase(99)); // never inflated; not the guest's
  check(t.held_pages() == 4);
};
BOTH("RT-33: a deflated page is forgotten, and only that one", deflated)

constexpr auto forgets = [](auto check) {
  host_page_storage<64, 16 * kib> storage;
  host_page_tracker t = *host_page_tracker::over(storage, {0, 64}, 16 * kib);
  for (const std::uint32_t pfn : {0u, 1u, 2u, 40u, 41u, 42u, 43u, 63u}) (void)t.insert(pfn);
  (void)t.erase(63); // its word is listed still
  t.forget();
  check(t.held_pages() == 0 && t.partial_pages() == 0);
  for (std::uint32_t pfn = 0; pfn < 64; ++pfn) check(!t.contains(pfn));
  for (const std::uint32_t word : storage.words) check(word == 0);
  check(!t.insert(3)); // 0 to 2 are not known any more
  check(!t.insert(40) && !t.insert(41) && !t.insert(42) && t.insert(43));
  t.forget();
  t.forget();
  check(t.held_pages() == 0);
};
BOTH("all is forgotten at once, the counts too", forgets)

constexpr auto misaligned = [](auto check) {
  // Pages 6 to 17: host pages 2 and 3 lie in them wholly, 1 and 4 in part.
  host_page_storage<12, 16 * kib> storage;
  host_page_tracker t = *host_page_tracker::over(storage, {6, 12}, 16 * kib);
  std::uint32_t whole = 0;
  for (std::uint32_t pfn = 0; pfn < 24; ++pfn) whole += t.insert(pfn);
  check(whole == 2 && t.held_pages() == 12 && t.partial_pages() == 4);
  check(!t.covers(5) && t.covers(6) && t.covers(17) && !t.covers(18));
  check(!t.contains(4) && !t.contains(18));
};
BOTH("of a guest that begins and ends within a host page only the whole ones count", misaligned)

constexpr auto small = [](auto check) {
  host_page_storage<3, 16 * kib> storage; // a guest smaller than a host page
  host_page_tracker t = *host_page_tracker::over(storage, {0, 3}, 16 * kib);
  for (std::uint32_t pfn = 0; pfn < 8; ++pfn) check(!t.insert(pfn));
  check(t.held_pages() == 3);
  const host_page_tracker none;
  check(!none.covers(0) && !none.contains(0) && none.held_pages() == 0);
  host_page_tracker empty = *host_page_tracker::over({}, {5, 0}, 16 * kib);
  check(!empty.insert(5));
  empty.forget();
};
BOTH("a guest smaller than a host page never gives one", small)

constexpr auto refused = [](auto check) {
  std::array<std::uint32_t, 64> words{};
  const auto needed = static_cast<std::size_t>(host_page_tracker::storage_size({0, 64}, 64 * kib));
  check(needed == 2 + 2 + 4); // a bit and a link for each page, a count for each host page
  const auto short_by_one =
      host_page_tracker::over(std::span(words).first(needed - 1), {0, 64}, 64 * kib);
  check(short_by_one.error() == error::storage_too_small);
  check(host_page_tracker::over(std::span(words).first(needed), {0, 64}, 64 * kib).has_value());
  check(host_page_tracker::over(words, {UINT32_MAX, 2}, 64 * kib).error() ==
        error::page_out_of_range);
  check(host_page_tracker::over(words, {UINT32_MAX, 1}, 64 * kib).has_value()); // the last page
  check(host_page_tracker::storage_size({0, 256u << 10}, 2 * mib) == 8192 * 2 + 512);
};
BOTH("storage that is too small is refused, and pages without a PFN", refused)

constexpr auto last_pages = [](auto check) {
  host_page_storage<16, 64 * kib> storage;
  host_page_tracker t = *host_page_tracker::over(storage, {UINT32_MAX - 15, 16}, 64 * kib);
  for (std::uint32_t pfn = UINT32_MAX; pfn > UINT32_MAX - 15; --pfn) check(!t.insert(pfn));
  check(t.insert(UINT32_MAX - 15));
  check((t.pages_of({t.host_page_of(UINT32_MAX), 1}) == page_range{UINT32_MAX - 15, 16}));
};
BOTH("the host page at the end of 16 TiB is one like any other", last_pages)

// From 256 KiB on a host page has more pages than a word has bits, from 64 KiB * 64 more than two.
template <std::uint32_t HostPage> constexpr void one_of_each(auto check) {
  constexpr std::uint32_t pages = HostPage / 4096;
  host_page_storage<2 * pages, HostPage> storage;
  host_page_tracker t = *host_page_tracker::over(storage, {pages, 2 * pages}, HostPage);
  std::uint32_t whole = 0;
  for (std::uint32_t i = 0; i < 2 * pages; ++i) whole += t.insert(pages + (2 * pages - 1 - i));
  check(whole == 2 && t.partial_pages() == 0);
  check(t.erase(2 * pages) && t.partial_pages() == pages - 1);
  check(t.insert(2 * pages));
  t.forget();
  check(t.held_pages() == 0 && !t.contains(pages));
}
constexpr auto wide = [](auto check) {
  one_of_each<128 * kib>(check);
  one_of_each<256 * kib>(check);
  one_of_each<512 * kib>(check);
};
BOTH("RT-33: host pages of 32, 64 and 128 pages: nothing depends on the width of a word", wide)

TEST_CASE("RT-33: host pages of 2 MiB and 1 GiB are whole with their last page") {
  for (const std::uint32_t size : balloon::host_page_sizes) {
    CAPTURE(size);
    const std::uint32_t pages = size / 4096;
    const page_range guest{3 * pages, 2 * std::uint64_t{pages}};
    std::vector<std::uint32_t> storage(
        static_cast<std::size_t>(host_page_tracker::storage_size(guest, size)));
    auto t = *host_page_tracker::over(storage, guest, size);
    CHECK(t.host_page_size() == size);
    for (std::uint32_t i = 1; i < pages; ++i) REQUIRE(!t.insert(3 * pages + i));
    CHECK(t.insert(3 * pages));
    CHECK(t.host_page_of(3 * pages) == 3);
    CHECK(t.partial_pages() == 0);
    CHECK(t.erase(4 * pages - 1));
    CHECK(t.insert(4 * pages - 1));
    t.forget();
    CHECK(std::count(storage.begin(), storage.end(), 0u) ==
          static_cast<std::ptrdiff_t>(storage.size()));
  }
}

/// The same, by looking at every page again each time.
class naive_tracker {
 public:
  naive_tracker(page_range guest, std::uint32_t host_page_size)
      : guest_(guest), pages_(host_page_size / 4096) {}

  bool insert(std::uint32_t pfn) {
    if (pfn < guest_.first || pfn >= guest_.first + guest_.count) return false;
    return held_.insert(pfn).second && is_whole(pfn);
  }
  bool erase(std::uint32_t pfn) {
    const bool was_whole = is_whole(pfn);
    return held_.erase(pfn) != 0 && was_whole;
  }
  void forget() { held_.clear(); }
  bool contains(std::uint32_t pfn) const { return held_.count(pfn) != 0; }
  std::uint64_t held_pages() const { return held_.size(); }
  std::uint64_t partial_pages() const {
    return static_cast<std::uint64_t>(
        std::count_if(held_.begin(), held_.end(), [&](std::uint32_t p) { return !is_whole(p); }));
  }

 private:
  bool is_whole(std::uint32_t pfn) const {
    for (std::uint32_t i = 0; i < pages_; ++i)
      if (!contains(pfn / pages_ * pages_ + i)) return false;
    return true;
  }

  page_range guest_;
  std::uint32_t pages_;
  std::set<std::uint32_t> held_;
};

TEST_CASE("RT-33: every sequence of five steps on two small host pages is as in a naive model") {
  // Pages 2 to 9 of host pages 0 to 2, of which only 1 is whole; 11 things to do each time.
  for (const std::uint32_t size : {4 * kib, 16 * kib}) {
    host_page_storage<8, 4 * kib> storage; // more than enough
    const page_range guest{2, 8};
    std::uint64_t sequences = 0;
    for (std::uint32_t sequence = 0; sequence < 11 * 11 * 11 * 11 * 11; ++sequence) {
      auto t = *host_page_tracker::over(storage, guest, size);
      naive_tracker naive(guest, size);
      // Three of four are there, so that the steps lead over the border and back.
      for (const std::uint32_t pfn : {4u, 5u, 7u}) (void)(t.insert(pfn), naive.insert(pfn));
      bool is_same = true;
      for (std::uint32_t rest = sequence, step = 0; step < 5; ++step, rest /= 11) {
        const std::uint32_t what = rest % 11;
        if (what < 5)
          is_same &= t.insert(3 + what) == naive.insert(3 + what);
        else if (what < 10)
          is_same &= t.erase(what - 2) == naive.erase(what - 2);
        else
          t.forget(), naive.forget();
      }
      is_same &= t.held_pages() == naive.held_pages();
      for (std::uint32_t pfn = 0; pfn < 12; ++pfn)
        is_same &= t.contains(pfn) == naive.contains(pfn);
      if (!is_same) FAIL("sequence ", sequence);
      ++sequences;
    }
    CHECK(sequences == 161051);
  }
}

TEST_CASE("RT-33: random pages, deflated and forgotten at random, are as in a naive model") {
  std::mt19937 random(5);
  const auto below = [&](std::uint64_t n) { return static_cast<std::uint32_t>(random() % n); };
  std::uint32_t whole = 0;
  for (int round = 0; round < 400; ++round) {
    const std::uint32_t size = (4u << below(8)) * kib; // to 512 KiB
    const page_range guest{below(200), 1 + below(600)};
    std::vector<std::uint32_t> storage(
        static_cast<std::size_t>(host_page_tracker::storage_size(guest, size)));
    auto t = *host_page_tracker::over(storage, guest, size);
    naive_tracker naive(guest, size);
    for (std::uint32_t pfn = 0; pfn < 820; ++pfn) // most of them, so that host pages become whole
      if (below(30) != 0) whole += t.insert(pfn), (void)naive.insert(pfn);
    for (int step = 0; step < 300; ++step) {
      const std::uint32_t pfn = below(820);
      if (below(300) == 0) t.forget(), naive.forget();
      if (below(2) != 0) {
        const bool is_whole = t.insert(pfn);
        whole += is_whole;
        REQUIRE(is_whole == naive.insert(pfn));
      } else {
        REQUIRE(t.erase(pfn) == naive.erase(pfn));
      }
      REQUIRE(t.contains(pfn) == naive.contains(pfn));
    }
    REQUIRE(t.held_pages() == naive.held_pages());
    REQUIRE(t.partial_pages() == naive.partial_pages());
  }
  CHECK(whole > 10000);
}

} // namespace
