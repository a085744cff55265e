// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/page_ranges.hpp>

#include "support/check.hpp"

#include <array>
#include <random>
#include <set>
#include <vector>

namespace {

using ballast::balloon::page_range;
using ballast::balloon::page_range_builder;
using ballast::balloon::whole_host_pages;

struct collected {
  std::array<page_range, 16> ranges{};
  std::size_t count = 0;

  constexpr bool is(std::initializer_list<page_range> expected) const {
    if (expected.size() != count) return false;
    std::size_t i = 0;
    for (const page_range& r : expected)
      if (!(ranges[i++] == r)) return false;
    return true;
  }
};

constexpr collected collect(std::initializer_list<std::uint32_t> pfns) {
  collected c;
  page_range_builder builder;
  const auto sink = [&](page_range r) { c.ranges[c.count++] = r; };
  for (const std::uint32_t pfn : pfns) builder.add(pfn, sink);
  builder.finish(sink);
  builder.finish(sink); // once only
  return c;
}

constexpr auto joins = [](auto check) {
  check(collect({}).is({}));
  check(collect({7}).is({{7, 1}}));
  check(collect({1, 2, 3}).is({{1, 3}}));
  check(collect({3, 2, 1}).is({{1, 3}}));
  check(collect({5, 6, 4, 7, 3}).is({{3, 5}})); // grows at both ends
  check(collect({1, 2, 9, 8, 1}).is({{1, 2}, {8, 2}, {1, 1}}));
  check(collect({1, 2, 2, 1, 3}).is({{1, 3}})); // twice the same page
};
BOTH("pages join ascending, descending and at both ends", joins)

constexpr auto edges = [](auto check) {
  check(collect({2, 1, 0}).is({{0, 3}}));
  check(collect({0, 1}).is({{0, 2}}));
  check(collect({0, 0xffff'ffff}).is({{0, 1}, {0xffff'ffff, 1}}));
  check(collect({0xffff'ffff, 0}).is({{0xffff'ffff, 1}, {0, 1}}));
  check(collect({0xffff'fffe, 0xffff'ffff}).is({{0xffff'fffe, 2}}));
};
BOTH("RT-53: a run down to PFN 0 does not underflow, nor does one wrap", edges)

constexpr auto zeros = [](auto check) {
  check(collect({5, 0, 6, 0, 7}).is({{5, 1}, {0, 1}, {6, 1}, {0, 1}, {7, 1}}));
};
BOTH("RT-58: zeros between the pages are pages too", zeros)

constexpr auto host_pages = [](auto check) {
  check(whole_host_pages({3, 5}, 1) == page_range{3, 5});
  check(whole_host_pages({3, 5}, 4) == page_range{4, 4});
  check(whole_host_pages({4, 4}, 4) == page_range{4, 4});
  check(whole_host_pages({4, 3}, 4) == page_range{});
  check(whole_host_pages({5, 7}, 4) == page_range{8, 4});
  check(whole_host_pages({1, 512}, 512) == page_range{});
  check(whole_host_pages({0, 1024}, 512) == page_range{0, 1024});
  check(whole_host_pages({0xffff'fffd, 3}, 4) == page_range{});
  check(whole_host_pages({0xffff'fffc, 4}, 4) == page_range{0xffff'fffc, 4});
  check(whole_host_pages({}, 4) == page_range{});
};
BOTH("only whole host pages are left", host_pages)

constexpr auto addresses = [](auto check) {
  using ballast::balloon::address_range;
  using ballast::balloon::whole_pages;
  check(whole_pages({0x3000, 0x2000}, 0x1000) == address_range{0x3000, 0x2000});
  check(whole_pages({0x3001, 0x2000}, 0x1000) == address_range{0x4000, 0x1000});
  check(whole_pages({0x2fff, 0x2002}, 0x1000) == address_range{0x3000, 0x2000});
  check(whole_pages({0x3000, 0xfff}, 0x1000) == address_range{});
  check(whole_pages({0x3000, 0}, 0x1000) == address_range{});
  check(whole_pages({0x1ff000, 0x402000}, 0x200000) == address_range{0x200000, 0x400000});
  check(whole_pages({0x1ff000, 0x200fff}, 0x200000) == address_range{});
  const std::uint64_t last = ~std::uint64_t{0};
  check(whole_pages({last - 0x1fff, 0x1000}, 0x1000) == address_range{last - 0x1fff, 0x1000});
  check(whole_pages({last - 0xfff, 0x2000}, 0x1000) == address_range{}); // wraps
  check(whole_pages({last, 1}, 0x1000) == address_range{});
  check(whole_pages({0, last}, 0x40000000) == address_range{0, last - 0x3fffffff});
  check(whole_pages({last - 0x3ffffffe, 0x1000}, 0x40000000) == address_range{});
};
BOTH("RT-45: a range of addresses is rounded inward, and one beyond the end is none", addresses)

TEST_CASE("any sequence gives ranges that hold exactly its pages") {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    std::vector<std::uint32_t> pfns(below(40));
    std::uint32_t at = below(64);
    for (auto& pfn : pfns) pfn = at = below(4) == 0 ? below(64) : at + below(3) - 1;
    std::set<std::uint32_t> held;
    page_range_builder builder;
    const auto sink = [&](page_range r) {
      REQUIRE(r.count != 0);
      for (std::uint64_t i = 0; i < r.count; ++i)
        held.insert(static_cast<std::uint32_t>(r.first + i));
    };
    for (const std::uint32_t pfn : pfns) builder.add(pfn, sink);
    builder.finish(sink);
    CHECK(held == std::set<std::uint32_t>(pfns.begin(), pfns.end()));
  }
}

} // namespace
