// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/page_source.hpp>

#include "support/check.hpp"

namespace {

using namespace ballast;
using balloon::round_target;

struct pages {
  static std::size_t take_free(std::span<std::uint32_t>) noexcept { return 0; }
  static void store(std::span<const std::uint32_t>) noexcept {}
  static std::size_t take_stored(std::span<std::uint32_t>) noexcept { return 0; }
  static void release(std::span<const std::uint32_t>) noexcept {}
};
struct large_pages : pages {
  static constexpr std::uint32_t block_pages = 16;
};
struct poisoned_pages : pages {
  static void poison(std::span<const std::uint32_t>, std::uint32_t) noexcept {}
};
struct moving_pages : pages {
  static void replace(std::uint32_t, std::uint32_t) noexcept {}
};
static_assert(balloon::page_source<pages>);
static_assert(!balloon::poisons_pages<pages>);
static_assert(!balloon::moves_pages<pages>);
static_assert(balloon::page_source<poisoned_pages> && balloon::poisons_pages<poisoned_pages>);
static_assert(balloon::page_source<moving_pages> && balloon::moves_pages<moving_pages>);
static_assert(balloon::block_pages_of<pages>() == 1);
static_assert(balloon::block_pages_of<large_pages>() == 16);

struct throwing_release : pages {
  static void release(std::span<const std::uint32_t>) {}
};
struct throwing_poison : pages {
  static void poison(std::span<const std::uint32_t>, std::uint32_t) {}
};
struct poison_alone {
  static void poison(std::span<const std::uint32_t>, std::uint32_t) noexcept {}
};
struct other_replace : pages {
  static void replace(std::uint32_t, const char*) noexcept {}
  static void replace(std::uint32_t, std::uint32_t) {}
};
struct one_at_a_time {
  static std::uint32_t take_free() noexcept { return 0; }
};
static_assert(!balloon::page_source<throwing_release>);
static_assert(!balloon::page_source<one_at_a_time>);
static_assert(!balloon::page_source<throwing_poison>);
static_assert(balloon::poisons_pages<poison_alone> && !balloon::page_source<poison_alone>);
static_assert(!balloon::page_source<other_replace>);

constexpr auto small_pages = [](auto check) {
  for (const std::uint32_t target : {0u, 1u, 17u, 0xfffffff1u, 0xffffffffu})
    check(round_target(target, 1) == target);
};
BOTH("a guest with pages of 4096 bytes moves to the target itself", small_pages)

constexpr auto rounding = [](auto check) {
  check(round_target(0, 16) == 0);
  check(round_target(1, 16) == 16);
  check(round_target(16, 16) == 16);
  check(round_target(17, 16) == 32);
  check(round_target(257, 256) == 512);
  for (std::uint32_t target = 0; target < 300; ++target) {
    const std::uint32_t rounded = round_target(target, 16);
    check(rounded % 16 == 0 && rounded >= target && rounded - target < 16);
    check(round_target(rounded, 16) == rounded); // where it is left alone
  }
};
BOTH("RT-55: a driver's target is rounded up to whole pages of the guest", rounding)

constexpr auto wrap = [](auto check) {
  check(round_target(0xffff'ffe1, 16) == 0xffff'fff0);
  check(round_target(0xffff'fff0, 16) == 0xffff'fff0);
  for (std::uint64_t target = 0xffff'fff1; target <= 0xffff'ffff; ++target)
    check(round_target(static_cast<std::uint32_t>(target), 16) == 0xffff'fff0); // not 0
  check(round_target(0xffff'ffff, 256) == 0xffff'ff00);
  check(round_target(0xffff'ffff, 2) == 0xffff'fffe);
};
BOTH("RT-55: a driver's target above 0xfffffff0 does not become 0", wrap)

} // namespace
