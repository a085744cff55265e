// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/hint_driver.hpp>

#include "support/check.hpp"

#include <array>
#include <cstdint>
#include <span>

using namespace ballast;
using namespace ballast::balloon;

namespace {

/// Memory of four blocks of order 2, each of which may also go out as four of order 0.
class allocator {
 public:
  constexpr result<guest_address> take(unsigned order) noexcept {
    ++takes;
    for (std::uint32_t first = 0; first < pages; first += 1u << order) {
      if (first >= limit) break;
      bool is_all_free = true;
      for (std::uint32_t i = 0; i < 1u << order; ++i) is_all_free &= !is_out[first + i];
      if (!is_all_free) continue;
      for (std::uint32_t i = 0; i < 1u << order; ++i) is_out[first + i] = true;
      return guest_address{first} * page_size;
    }
    return error::queue_empty;
  }
  constexpr void release(guest_address address, unsigned order) noexcept {
    const auto first = static_cast<std::uint32_t>(address / page_size);
    for (std::uint32_t i = 0; i < 1u << order; ++i) {
      is_wrong |= !is_out[first + i];
      is_out[first + i] = false;
    }
  }
  [[nodiscard]] constexpr std::uint32_t out() const {
    std::uint32_t n = 0;
    for (const bool is : is_out) n += is;
    return n;
  }

  static constexpr std::uint32_t pages = 16;
  bool is_out[pages]{};
  bool is_wrong = false; ///< released what was not taken
  std::uint32_t limit = pages;
  std::uint32_t takes = 0;
};
static_assert(hint_source<allocator>);

struct bench {
  constexpr explicit bench(hint_driver_options options = {.order = 2, .order_min = 2})
      : hints(source, blocks, options) {}
  allocator source;
  std::array<hint_block, 5> blocks{};
  hint_driver<allocator> hints;

  constexpr bool sends(std::uint32_t id, std::uint32_t free = 8) {
    const hint_step s = hints.step(free);
    return s.duty == hint_duty::command && s.id == id &&
           s.token == (id == command_id::stop ? hints.stop_token : hints.id_token);
  }
  constexpr bool adds(guest_address address, std::uint32_t bytes, std::uint32_t free = 8) {
    const hint_step s = hints.step(free);
    return s.duty == hint_duty::block && s.address == address && s.bytes == bytes;
  }
  constexpr bool rests(std::uint32_t free = 8) { return hints.step(free).duty == hint_duty::none; }
  constexpr bool goes_on(std::uint32_t free = 8) {
    return hints.step(free).duty == hint_duty::again;
  }
  constexpr void release_all() {
    while (goes_on()) continue;
  }
  /// The device returned all that a round of `n` blocks put into the queue.
  constexpr void all_used(std::uint32_t n) {
    hints.on_used(hints.id_token);
    for (std::uint32_t i = 0; i < n; ++i) hints.on_used(i);
    hints.on_used(hints.stop_token);
  }
};
constexpr std::uint32_t block_bytes = 4 * page_size;

constexpr auto a_round = [](auto check) {
  bench b;
  check(b.rests() && b.source.takes == 0);
  b.hints.on_config(command_id::stop);
  check(b.rests() && b.source.takes == 0); // BDRV-28
  b.hints.on_config(7);
  check(b.sends(7)); // BDRV-25
  check(b.hints.is_hinting() && b.hints.active_id() == 7);
  for (guest_address i = 0; i < 4; ++i) check(b.adds(i * block_bytes, block_bytes)); // BDRV-27
  check(b.goes_on()); // no more to be had
  check(!b.hints.is_hinting());
  check(b.sends(command_id::stop)); // BDRV-29
  check(b.rests() && b.hints.in_flight() == 6 && b.hints.held_blocks() == 4);
  b.all_used(4);
  check(b.hints.in_flight() == 0 && b.hints.held_blocks() == 4 && b.source.out() == 16);
  check(b.rests());
};
BOTH("BDRV-25 BDRV-27 BDRV-29 a round: the id, blocks until there are none, STOP", a_round)

constexpr auto same_id = [](auto check) {
  bench b;
  b.source.limit = 4;
  b.hints.on_config(7);
  check(b.sends(7));
  b.hints.on_config(7); // a balloon resize, say
  check(b.adds(0, block_bytes));
  b.hints.on_config(7);
  check(b.goes_on() && b.sends(command_id::stop));
  b.hints.on_config(7);
  check(b.rests());
  b.all_used(1);
  b.source.limit = allocator::pages;
  b.hints.on_config(7);
  check(b.rests() && b.hints.held_blocks() == 1);
  b.hints.on_config(command_id::stop);
  b.hints.on_config(7);
  check(b.rests()); // as Linux does
  b.hints.on_config(8);
  check(b.sends(8));
};
BOTH("BDRV-26 an id is sent once, however often the configuration shows it", same_id)

constexpr auto stops = [](auto check) {
  bench b;
  b.hints.on_config(7);
  check(b.sends(7) && b.adds(0, block_bytes));
  b.hints.on_config(command_id::stop);
  check(!b.hints.is_hinting());
  check(b.sends(command_id::stop) && b.rests());
  b.all_used(1);
  check(b.rests() && b.hints.held_blocks() == 1 && b.source.out() == 4);
  b.hints.on_config(8); // the next round of the same migration
  check(b.sends(8) && b.adds(block_bytes, block_bytes));
  check(b.hints.held_blocks() == 2);
};
BOTH("BDRV-28 STOP in a round ends it, and keeps the blocks for the next id", stops)

constexpr auto ends = [](auto check) {
  for (const hint_release release : {hint_release::when_used, hint_release::early}) {
    bench b({.order = 2, .order_min = 2, .release = release});
    b.hints.on_config(7);
    check(b.sends(7) && b.adds(0, block_bytes) && b.adds(block_bytes, block_bytes));
    b.hints.on_config(command_id::done);
    check(b.sends(command_id::stop)); // BDRV-28
    if (release == hint_release::when_used) {
      check(b.rests() && b.source.out() == 8); // both are with the device
      b.hints.on_used(0);
      check(b.goes_on() && b.rests() && b.source.out() == 4);
      b.hints.on_used(1);
    }
    b.release_all();
    check(b.rests() && b.source.out() == 0 && b.hints.held_blocks() == 0);
    check(!b.source.is_wrong);
  }
};
BOTH("BDRV-28 BDRV-33 DONE releases all blocks; those in the queue, as the mode says", ends)

constexpr auto done_then_id = [](auto check) {
  bench b;
  b.hints.on_config(7);
  check(b.sends(7) && b.adds(0, block_bytes));
  b.hints.on_config(command_id::done);
  b.hints.on_config(command_id::stop);
  b.hints.on_config(8); // before there was time for either
  check(b.sends(command_id::stop));
  b.hints.on_used(b.hints.id_token);
  b.hints.on_used(b.hints.stop_token);
  check(b.rests()); // what is hinted now would have to stay when that comes back
  b.hints.on_used(0);
  check(b.goes_on() && b.source.out() == 0); // BDRV-33
  check(b.sends(8) && b.adds(0, block_bytes) && b.hints.held_blocks() == 1);
};
BOTH("BDRV-33 a DONE that is followed at once by STOP and a new id is not lost", done_then_id)

constexpr auto new_id = [](auto check) {
  bench b;
  b.hints.on_config(7);
  check(b.sends(7) && b.adds(0, block_bytes));
  b.hints.on_config(8);                          // the device asked again, without STOP between
  check(b.sends(command_id::stop) && b.rests()); // the place of the id is taken
  b.hints.on_used(b.hints.id_token);
  check(b.sends(8) && b.hints.held_blocks() == 1 && b.adds(block_bytes, block_bytes));
  b.hints.on_config(9);
  check(b.rests()); // neither command came back
  b.hints.on_used(b.hints.id_token);
  check(b.rests()); // STOP first
  b.hints.on_used(b.hints.stop_token);
  check(b.sends(command_id::stop) && b.sends(9));
  check(!b.source.is_wrong);
};
BOTH("a new id in a round: STOP first, and no command's memory is used twice", new_id)

constexpr auto small_queue = [](auto check) {
  bench b;
  b.source.limit = 4;
  b.hints.on_config(7);
  check(b.rests(0));
  check(b.sends(7, 2));
  check(b.rests(1) && b.source.takes == 0); // BDRV-29: one is kept for STOP
  b.hints.on_used(b.hints.id_token);
  check(b.adds(0, block_bytes, 2));
  check(b.rests(1));
  b.hints.on_config(command_id::stop);
  check(b.rests(0));
  check(b.sends(command_id::stop, 1));
  b.hints.on_config(8);
  check(b.rests(0));
  check(b.sends(8, 1));
};
BOTH("a queue of two is large enough: the last descriptor waits for the STOP", small_queue)

constexpr auto early = [](auto check) {
  bench b({.order = 2, .order_min = 2, .release = hint_release::early});
  b.hints.on_config(7);
  check(b.hints.reclaim(5) == 0);
  check(b.sends(7) && b.adds(0, block_bytes) && b.adds(block_bytes, block_bytes));
  check(b.hints.reclaim(1) == 1 && b.source.out() == 4); // the device has not looked at it
  check(b.hints.held_blocks() == 1 && b.hints.in_flight() == 3);
  check(b.adds(block_bytes, block_bytes)); // the same memory once more, with another token
  for (std::uint32_t token = 0; token < 3; ++token) b.hints.on_used(token);
  check(b.hints.in_flight() == 1 && b.hints.held_blocks() == 2);
  check(b.hints.reclaim(5) == 2 && b.source.out() == 0 && !b.source.is_wrong);
  b.hints.on_used(0); // a token that is not in flight changes nothing
  b.hints.on_used(4);
  b.hints.on_used(77);
  check(b.hints.in_flight() == 1);
  for (std::uint32_t i = 0; i < 10; ++i) { // the places for blocks are used again
    const hint_step s = b.hints.step(8);
    check(s.duty == hint_duty::block && s.address == 0 && b.hints.reclaim(1) == 1);
    b.hints.on_used(s.token);
  }
  for (guest_address i = 0; i < 4; ++i) check(b.adds(i * block_bytes, block_bytes));
};
BOTH("BDRV-30 released early: hinted blocks go back before the device looked at them", early)

constexpr auto held = [](auto check) {
  bench b;
  b.hints.on_config(7);
  check(b.sends(7) && b.adds(0, block_bytes) && b.adds(block_bytes, block_bytes));
  check(b.hints.reclaim(5) == 0 && b.source.out() == 8);
  b.hints.on_used(1);
  check(b.hints.reclaim(5) == 1 && b.source.out() == 4 && b.hints.held_blocks() == 1);
  check(b.source.is_out[0] && !b.source.is_out[4]);
  b.hints.on_used(0);
  check(b.hints.reclaim(0) == 0 && b.hints.reclaim(5) == 1);
  check(b.hints.is_hinting() && b.source.out() == 0 && !b.source.is_wrong);
};
BOTH("BDRV-30 held until used: a block is not released before the device returned its buffer", held)

constexpr auto no_room = [](auto check) {
  bench b({.order = 0, .order_min = 0});
  b.hints.on_config(7);
  check(b.sends(7));
  for (guest_address i = 0; i < 5; ++i) check(b.adds(i * page_size, page_size));
  check(b.goes_on() && b.sends(command_id::stop) && b.source.out() == 5); // `blocks` is full
  b.all_used(5);
  check(b.hints.reclaim(2) == 2);
  b.hints.on_config(8);
  check(b.sends(8) && b.adds(3 * page_size, page_size) && b.adds(4 * page_size, page_size));
  check(b.goes_on() && b.sends(command_id::stop) && !b.source.is_wrong);
};
BOTH("a round ends where there is no room to remember another block", no_room)

constexpr auto orders = [](auto check) {
  bench b({.order = 2, .order_min = 0});
  b.source.is_out[1] = b.source.is_out[5] = b.source.is_out[8] = b.source.is_out[12] = true;
  b.hints.on_config(7);
  check(b.sends(7));
  check(b.adds(2 * page_size, 2 * page_size)); // no four in a row are free
  check(b.adds(6 * page_size, 2 * page_size));
  check(b.adds(10 * page_size, 2 * page_size));
  check(b.adds(14 * page_size, 2 * page_size));
  check(b.adds(0, page_size)); // nor two
  b.hints.on_config(command_id::done);
  check(b.sends(command_id::stop));
  b.all_used(5);
  b.release_all();
  check(b.source.out() == 4 && !b.source.is_wrong);
  b.source = {};
  b.hints.on_config(8);
  check(b.sends(8) && b.adds(0, 4 * page_size)); // each round begins with the large ones
};
BOTH("where there are no blocks of the order wanted, smaller ones are hinted", orders)

/// Has one block of whatever order is asked for.
struct any_order {
  unsigned asked = 0;
  constexpr result<guest_address> take(unsigned order) noexcept {
    asked = order;
    return guest_address{0};
  }
  constexpr void release(guest_address, unsigned) noexcept {}
};

constexpr auto clamped = [](auto check) {
  any_order source;
  std::array<hint_block, 1> blocks{};
  hint_driver<any_order> hints(source, blocks, {.order = 40, .order_min = 30});
  hints.on_config(2);
  check(hints.step(4).duty == hint_duty::command);
  const hint_step s = hints.step(4);
  check(s.duty == hint_duty::block && s.bytes == 0x80000000 && source.asked == 19);
};
BOTH("a block fits into the 32 bits of a buffer's length", clamped)

constexpr auto resets = [](auto check) {
  for (const hint_release release : {hint_release::when_used, hint_release::early}) {
    bench b({.order = 2, .order_min = 2, .release = release});
    b.hints.on_config(7);
    check(b.sends(7) && b.adds(0, block_bytes) && b.adds(block_bytes, block_bytes));
    b.hints.on_used(0);
    if (release == hint_release::early) check(b.hints.reclaim(1) == 1);
    b.hints.reset();
    check(b.source.out() == 0 && !b.source.is_wrong && b.hints.in_flight() == 0);
    check(b.hints.held_blocks() == 0 && !b.hints.is_hinting() && b.rests());
    for (const hint_block& block : b.blocks) check(!block.is_held && !block.is_in_flight);
    b.hints.on_used(1); // of the queue that is gone
    b.hints.on_used(b.hints.id_token);
    check(b.hints.in_flight() == 0);
    b.hints.on_config(7); // another life: the id may be one of before
    check(b.sends(7));
    for (guest_address i = 0; i < 4; ++i) check(b.adds(i * block_bytes, block_bytes));
  }
};
BOTH("RT-36 a device reset in a round releases every block and starts afresh", resets)

} // namespace
