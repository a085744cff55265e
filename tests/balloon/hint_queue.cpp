// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/hint_queue.hpp>

#include "support/check.hpp"
#include "support/failing_memory.hpp"
#include "support/open_device.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/result.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
namespace command_id = balloon::command_id;
using ram_type = array_memory<2 * 4096>;

constexpr std::uint32_t large = 4u << 20;

/// Free blocks of 4 MiB from 1 GiB on.
struct free_blocks {
  std::array<balloon::hint_block, 8> remembered{};
  std::uint32_t left = 3;
  std::uint32_t released = 0;
  guest_address next = 1ull << 30;

  constexpr result<guest_address> take(unsigned order) noexcept {
    if (left == 0 || order != 10) return error::queue_empty;
    --left;
    next += large;
    return next - large;
  }
  constexpr void release(guest_address, unsigned) noexcept { ++released; }
  constexpr std::span<balloon::hint_block> hint_blocks() noexcept { return remembered; }
};
static_assert(balloon::hint_source<free_blocks> && balloon::hinting_source<free_blocks>);

struct eager_blocks : free_blocks {
  static constexpr balloon::hint_driver_options hint_options() noexcept {
    return {.release = balloon::hint_release::early};
  }
};
static_assert(balloon::hinting_source<eager_blocks>);
struct without_room {
  static result<guest_address> take(unsigned) noexcept { return error::queue_empty; }
  static void release(guest_address, unsigned) noexcept {}
};
static_assert(balloon::hint_source<without_room> && !balloon::hinting_source<without_room>);

template <class Source, std::uint32_t Size, std::endian E = std::endian::little> struct bench {
  ram_type ram;
  ballast_test::open_device<ram_type, E> device{ram};
  Source from;
  balloon::hint_queue<ram_type, Source, Size, E> queue{from};
  actions due{};

  constexpr bench() {
    guest_address at = 0;
    (void)queue.queue().start(ram, device, 3, 2, at, balloon::hint_queue_bytes, {}, 0);
  }
  constexpr void show(std::uint32_t id) {
    queue.hints().on_config(id);
    while (queue.step(ram, due)) {
    }
  }
  /// What the next chain is: the id of a command, or the address of a block; 0: none.
  constexpr std::uint64_t next() {
    const auto taken = device.take(3);
    if (taken.readable + taken.writable != 1) return 0;
    const buffer& b = taken.buffers[0];
    const std::uint64_t is = taken.readable == 0 ? b.address : 0x1'0000'0000 + device.number(b, 0);
    if (b.length != (taken.readable == 0 ? large : 4u)) return 1;
    return device.give_back(3, taken) ? is : 1;
  }
};
constexpr std::uint64_t command(std::uint32_t id) { return 0x1'0000'0000 + id; }
constexpr std::uint64_t block(std::uint64_t n) { return (1ull << 30) + n * large; }

constexpr auto round = [](auto check) {
  bench<free_blocks, 16> b;
  check(!b.queue.step(b.ram, b.due) && b.next() == 0);
  b.show(0x80000000);
  check(b.due.notify_queues == 8 && b.from.left == 0);
  check(b.next() == command(0x80000000));
  for (std::uint64_t i = 0; i < 3; ++i) check(b.next() == block(i));
  check(b.next() == command(command_id::stop) && b.next() == 0);
  check(b.queue.step(b.ram, b.due) && b.from.released == 0); // kept for another round
  b.from.left = 1;
  b.show(0x80000000); // the same id once more is nothing
  check(b.next() == 0);
  b.show(0x80000001);
  check(b.next() == command(0x80000001) && b.next() == block(3));
  check(b.next() == command(command_id::stop));
  while (b.queue.step(b.ram, b.due)) {
  }
  b.show(command_id::done);
  check(b.from.released == 4 && b.due.failure == error::none);
};
BOTH("BDRV-24, BDRV-25, BDRV-26, BDRV-27, BDRV-29, BDRV-33: rounds over a queue, and DONE", round)

constexpr auto small = [](auto check) {
  bench<free_blocks, 2> b;
  b.show(7);
  check(b.device.layout(3).size == 2);
  check(b.next() == command(7) && b.next() == 0); // one descriptor waits for the STOP
  for (std::uint64_t i = 0; i < 3; ++i) {
    while (b.queue.step(b.ram, b.due)) {
    }
    check(b.next() == block(i));
  }
  while (b.queue.step(b.ram, b.due)) {
  }
  check(b.next() == command(command_id::stop) && b.next() == 0);
};
BOTH("a hint queue of two entries is enough", small)

constexpr auto stopped = [](auto check) {
  bench<eager_blocks, 4, std::endian::big> b;
  b.from.left = 8;
  b.show(5);
  check(b.next() == command(5) && b.next() == block(0));
  b.show(command_id::stop);
  std::uint64_t last = 0;
  for (std::uint64_t at = b.next(); at != 0; at = b.next()) last = at;
  check(last == command(command_id::stop));
  check(b.queue.hints().reclaim(2) == 2 && b.from.released == 2);
  b.queue.drain();
  check(b.from.released == 8 - b.from.left && !b.queue.hints().is_hinting());
};
BOTH("BDRV-28, BDRV-30: a device's STOP ends the round, and a guest may take blocks back", stopped)

constexpr auto many = [](auto check) {
  bench<free_blocks, 16> b;
  b.from.left = 100; // more than can be remembered
  b.show(5);
  std::uint32_t blocks = 0;
  for (std::uint64_t at = b.next(); at != 0; at = b.next()) blocks += at < command(0);
  check(blocks == 8 && b.from.left == 92);
};
BOTH("a round ends where there is no room to remember another block", many)

constexpr auto lost = [](auto check) {
  using memory_type = ballast_test::failing_memory<ram_type>;
  ram_type ram;
  ballast_test::failure_plan plan;
  memory_type memory(ram, plan);
  ballast_test::open_device<memory_type> device(memory);
  free_blocks from;
  balloon::hint_queue<memory_type, free_blocks, 4, std::endian::little> queue(from);
  guest_address at = 0;
  check(
      queue.queue().start(memory, device, 3, 2, at, balloon::hint_queue_bytes, {}, 0).has_value());
  plan.lose_at = plan.accesses + 1;
  queue.hints().on_config(9);
  actions due;
  (void)queue.step(memory, due);
  check(due.needs_reset && due.failure == error::memory_lost);
};
BOTH("a hint queue that loses its memory asks for a reset", lost)

constexpr auto broken = [](auto check) {
  bench<free_blocks, 16> b;
  const auto one = std::bit_cast<std::array<std::byte, 2>>(le16(std::uint16_t{1}));
  (void)b.ram.write(b.device.layout(3).device_area + split::used_index, one);
  check(!b.queue.step(b.ram, b.due));
  check(b.due.needs_reset && b.due.failure == error::used_index_jump);
};
BOTH("a hint queue that the device broke asks for a reset", broken)

} // namespace
