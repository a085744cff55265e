// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device_host.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/tiny_segments.hpp"

#include <ballast/memory/array_memory.hpp>

#include <cstdint>

namespace {

using namespace ballast;
using ballast_test::full_host;
using ballast_test::test_host;
using balloon::page_host;

// What a host is, and what is none.

struct least_host {
  bool discard(guest_address, std::uint64_t) noexcept { return true; }
};
static_assert(page_host<least_host> && page_host<test_host> && page_host<full_host>);

struct no_discard {};
struct discard_without_answer {
  void discard(guest_address, std::uint64_t) noexcept {}
};
struct discard_that_throws {
  bool discard(guest_address, std::uint64_t);
};
static_assert(!page_host<no_discard> && !page_host<discard_without_answer> &&
              !page_host<discard_that_throws>);

// What a host may have besides is there only if it can be used.
static_assert(balloon::provides_pages<test_host> && !balloon::provides_pages<least_host>);
static_assert(balloon::takes_hints<full_host> && !balloon::takes_hints<test_host>);
static_assert(balloon::fills_pages<full_host> && !balloon::fills_pages<test_host>);
static_assert(balloon::inhibits_discards<full_host> && !balloon::inhibits_discards<test_host>);

// ... and a mistake in it is no host that lacks it.
struct hint_without_answer : least_host {
  void hint(guest_address, std::uint64_t) noexcept {}
};
struct hint_that_throws : least_host {
  bool hint(guest_address, std::uint64_t);
};
struct fill_without_answer : least_host {
  void fill(guest_address, std::uint64_t, std::uint32_t) noexcept {}
};
struct provide_that_throws : least_host {
  void provide(guest_address, std::uint64_t);
};
struct answer_of_another_kind : least_host {
  int discard_allowed() noexcept { return 1; }
};
static_assert(!page_host<hint_without_answer> && !page_host<hint_that_throws> &&
              !page_host<fill_without_answer> && !page_host<provide_that_throws> &&
              !page_host<answer_of_another_kind>);

constexpr auto pieces = [](auto check) {
  using ram_type = array_memory<6 * 4096>;
  ram_type ram(2 * 4096); // pages 2 to 7
  check(balloon::page_piece(ram, 2 * 4096, 4096) == 4096);
  check(balloon::page_piece(ram, 2 * 4096, 4 * 4096) == 4 * 4096);
  check(balloon::page_piece(ram, 6 * 4096, 4 * 4096) == 2 * 4096); // as far as there is memory
  check(balloon::page_piece(ram, 0, 4 * 4096) == 0 &&
        balloon::page_piece(ram, 8 * 4096, 4096) == 0);
  using tiny = ballast_test::tiny_segments<ram_type>;
  tiny small(ram, 2048); // as many as make up one page
  check(balloon::page_piece(small, 2 * 4096, 4 * 4096) == 4096);
  tiny odd(ram, 4095);
  check(balloon::page_piece(odd, 2 * 4096, 4 * 4096) == 4 * 4096); // none ends with a page
  check(balloon::page_piece(odd, 7 * 4096, 2 * 4096) == 4096);
};
BOTH("a piece is whole pages of guest memory that lie together", pieces)

constexpr auto half_a_page = [](auto check) {
  array_memory<4096 + 2048> ram; // ends within page 1
  check(balloon::page_piece(ram, 0, 2 * 4096) == 4096);
  check(balloon::page_piece(ram, 4096, 4096) == 0);
};
BOTH("a page that memory ends in is none", half_a_page)

} // namespace
