// SPDX-License-Identifier: BSD-3-Clause
//
// Both halves of free page hinting over a real queue, as the comments of the two classes say.
#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/hint_driver.hpp>

#include <ballast/endian.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "support/check.hpp"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

using namespace ballast;
using namespace ballast::balloon;

namespace {

constexpr guest_address id_place = 0x800, stop_place = 0x804, raw_place = 0x900;
constexpr std::uint32_t block_bytes = page_size;

/// Blocks at 1 MiB and on, each of one page.
struct blocks_left {
  std::uint32_t free = 0;
  std::uint32_t released = 0;
  guest_address next = 0x100000;

  constexpr result<guest_address> take(unsigned) noexcept {
    if (free == 0) return error::queue_empty;
    --free;
    next += block_bytes;
    return next - block_bytes;
  }
  constexpr void release(guest_address, unsigned) noexcept { ++released; }
};

template <std::uint32_t QueueSize = 8> struct bench {
  using memory = array_memory<4096>;

  constexpr explicit bench(std::uint32_t blocks_free = 0, hint_device_options options = {})
      : source{.free = blocks_free}, device(options) {
    start_queue();
  }
  bench(const bench&) = delete;

  constexpr void start_queue() {
    const auto where = split::place(0, QueueSize).layout;
    const feature_set features{ballast::feature::version_1, ballast::feature::event_idx};
    is_sound &= driver_ring.start(ram, where, features).has_value();
    is_sound &= device_ring.start(ram, where, features).has_value();
  }

  // The driver.

  constexpr void drive(std::uint32_t budget = 100) {
    while (const auto used = driver_ring.pop_used()) {
      is_sound &= used->length == 0;
      if (used->token <= UINT32_MAX) driver.on_used(static_cast<std::uint32_t>(used->token));
    }
    for (; budget != 0; --budget) {
      const hint_step next = driver.step(driver_ring.free_descriptors());
      if (next.duty == hint_duty::none) break;
      if (next.duty == hint_duty::command) send(next.id, next.token);
      if (next.duty == hint_duty::block) {
        const buffer block{next.address, next.bytes};
        is_sound &= driver_ring.add({}, {&block, 1}, next.token).has_value();
      }
    }
    driver_ring.publish();
  }
  constexpr void send(std::uint32_t id, std::uint64_t token) {
    struct wire {
      std::byte at[4];
    };
    const guest_address at = id == command_id::stop ? stop_place : id_place;
    is_sound &= ram.write(at, std::bit_cast<wire>(le32(id)).at);
    const buffer command{at, hint_device::command_bytes};
    is_sound &= driver_ring.add({&command, 1}, {}, token).has_value();
  }
  constexpr void read_config() { driver.on_config(device.command_id()); }

  /// A chain that `driver` would not send.
  constexpr void send_raw(std::initializer_list<buffer> readable,
                          std::initializer_list<buffer> writable = {}) {
    is_sound &= driver_ring
                    .add({readable.begin(), readable.size()}, {writable.begin(), writable.size()},
                         UINT64_MAX)
                    .has_value();
    driver_ring.publish();
  }
  constexpr void write_raw(std::initializer_list<unsigned> bytes) {
    guest_address at = raw_place;
    for (const unsigned value : bytes) {
      const auto byte = static_cast<std::byte>(value);
      is_sound &= ram.write(at++, {&byte, 1});
    }
  }

  // The device.

  constexpr void serve(std::uint32_t budget = 100) {
    const auto done = device_ring.consume(budget, [&](const chain& c) {
      if (!c.readable().empty()) read_command(c);
      if (device.is_accepting())
        hints += static_cast<std::uint32_t>(c.writable().size());
      else
        ignored += static_cast<std::uint32_t>(c.writable().size());
      return used(0);
    });
    is_sound &= done.has_value();
    device_ring.publish();
  }
  constexpr void read_command(const chain& c) {
    struct wire {
      std::byte at[4];
    } raw{};
    const auto read = buffer_reader(ram, c.readable()).read(raw.at);
    if (*read == 4 && total_bytes(c.readable()) == 4)
      last = device.on_command(std::bit_cast<le32>(raw));
    else
      needs_reset |= device.on_malformed();
  }

  constexpr void reset() {
    device.reset();
    driver.reset();
    start_queue();
  }

  memory ram;
  std::array<driver_slot, QueueSize> slots{};
  device_queue_storage<QueueSize> storage;
  split_driver<memory> driver_ring{slots};
  split_device<memory> device_ring{storage};
  blocks_left source;
  std::array<hint_block, 16> blocks{};
  hint_driver<blocks_left> driver{source, blocks, {.order = 0, .order_min = 0}};
  hint_device device;
  std::uint32_t hints = 0;
  std::uint32_t ignored = 0;
  hint_command last;
  bool needs_reset = false;
  bool is_sound = true; ///< no call failed that must not
};

constexpr auto migration = [](auto check) {
  bench<> b(10);
  check(b.device.start().has_value());
  b.read_config();
  b.drive(4);
  b.serve(2);
  check(b.device.is_accepting() && b.hints == 1);
  check(b.device.stop()); // of the bitmap, there is a sync to come
  b.serve();
  check(b.hints == 1 && b.ignored == 2);
  b.drive(2); // the driver has not read that yet
  b.serve();
  check(b.hints == 1 && b.ignored == 4 && b.source.released == 0);
  check(b.device.start().has_value());
  b.read_config();
  b.drive();
  b.serve();
  b.drive();
  b.serve();
  check(b.last.event == hint_event::ended); // the driver has no more
  check(b.hints == 6 && b.ignored == 4 && b.source.free == 0);
  check(b.driver.held_blocks() == 10 && b.source.released == 0);
  check(b.device.done());
  b.read_config();
  b.drive();
  check(b.driver.held_blocks() == 0 && b.source.released == 10 && b.driver.in_flight() == 0);
  check(b.device.counters().rounds == 2 && b.device.counters().duplicate_commands == 0);
  check(b.device.counters().stale_commands == 1); // the STOP of the first round
  check(b.is_sound);
};
BOTH("two rounds of a migration: what is added after the device's STOP does not count, blocks are "
     "kept until DONE",
     migration)

constexpr auto smallest = [](auto check) {
  bench<2> b(5);
  check(b.device.start().has_value());
  b.read_config();
  for (int i = 0; i < 10; ++i) {
    b.drive();
    b.serve();
  }
  check(b.hints == 5 && b.ignored == 0 && b.last.event == hint_event::ended);
  check(b.driver.held_blocks() == 5);
  check(b.device.done());
  b.read_config();
  b.drive();
  check(b.source.released == 5 && b.is_sound);
};
BOTH("BDRV-29 a round over a queue of two entries", smallest)

constexpr auto sizes = [](auto check) {
  for (const std::uint32_t bytes : {0u, 1u, 3u, 5u, 8u}) {
    for (const bool is_strict : {false, true}) {
      bench<> b(0, {.needs_reset_if_malformed = is_strict});
      check(b.device.start().has_value());
      b.write_raw({2, 0, 0, 0, 0, 0, 0, 0});
      b.send_raw({{raw_place, bytes}}, {{0x100000, block_bytes}});
      b.serve();
      check(b.needs_reset == is_strict && b.device.counters().malformed_commands == 1);
      check(b.device.state() == hint_state::requested && b.hints == 0 && b.ignored == 1);
      check(b.driver_ring.pop_used().has_value() && b.is_sound); // returned all the same
    }
  }
};
BOTH("BDRV-24 a command of 0, 1, 3, 5 or 8 bytes starts nothing, and its buffer is returned", sizes)

constexpr auto split_up = [](auto check) {
  bench<> b;
  check(b.device.start().has_value());
  b.write_raw({2, 0, 0, 0});
  b.send_raw({{raw_place, 1}, {raw_place + 1, 3}});
  b.serve();
  check(b.device.is_accepting());
  b.write_raw({0, 0, 0, 0});
  b.send_raw({{raw_place, 2}, {raw_place, 0}, {raw_place + 2, 2}});
  b.serve();
  check(b.last.event == hint_event::ended && b.device.counters().malformed_commands == 0);
  check(b.is_sound);
};
BOTH("BDRV-24 a command may be split over several descriptors", split_up)

constexpr auto together = [](auto check) {
  bench<> b;
  check(b.device.start().has_value());
  b.write_raw({2, 0, 0, 0});
  b.send_raw({{raw_place, 4}}, {{0x100000, block_bytes}, {0x200000, block_bytes}});
  b.serve();
  check(b.hints == 2 && b.device.is_accepting());
  b.write_raw({0, 0, 0, 0});
  b.send_raw({{raw_place, 4}}, {{0x300000, block_bytes}});
  b.serve();
  check(b.hints == 2 && b.ignored == 1 && b.is_sound);
};
BOTH("a command and pages in one chain: the command counts first", together)

constexpr auto no_command = [](auto check) {
  bench<> b;
  // A block of 4 bytes is a block: what is written to is no command.
  b.write_raw({2, 0, 0, 0});
  check(b.device.start().has_value());
  b.send_raw({}, {{raw_place, 4}});
  b.serve();
  check(b.device.state() == hint_state::requested && b.ignored == 1);
  check(b.device.counters().malformed_commands == 0 && b.is_sound);
};
BOTH("RT-39 a writable buffer of 4 bytes is no command; hints before any id do not count",
     no_command)

constexpr auto unasked = [](auto check) {
  bench<> b;
  b.write_raw({2, 0, 0, 0});
  b.send_raw({{raw_place, 4}}, {{0x100000, block_bytes}});
  b.serve();
  check(b.last == hint_command{} && b.ignored == 1 && b.hints == 0);
  check(b.device.state() == hint_state::stop && b.is_sound);
};
BOTH("RT-31 a driver that starts a round unasked, or after a reset, gives no hints", unasked)

constexpr auto reset = [](auto check) {
  bench<> b(10);
  check(b.device.start().has_value());
  b.read_config();
  b.drive(4);
  b.serve(2);
  b.reset();
  check(b.source.released == 3 && b.driver.held_blocks() == 0);
  check(b.device.start().has_value() && b.device.command_id() == 3);
  b.read_config();
  b.drive(3);
  b.serve();
  check(b.device.is_accepting() && b.hints == 3);
  check(b.device.counters().stale_commands == 0 && b.is_sound);
};
BOTH("RT-31 a device reset in a round: blocks are released, the next id starts a round", reset)

constexpr auto restored = [](auto check) {
  bench<> b(10);
  check(b.device.start().has_value());
  b.read_config();
  b.drive(4);
  b.serve(2);
  const hint_device_state saved = b.device.save();
  b.device = hint_device();
  check(b.device.restore(saved).has_value());
  b.serve();
  check(b.hints == 1 && b.ignored == 2); // they were for the migration that is over
  b.read_config();
  b.drive();
  check(b.source.released == 3 && b.driver.held_blocks() == 0);
  b.serve();
  check(b.device.counters().stale_commands == 1); // the STOP
  check(b.device.start().has_value());
  b.read_config();
  b.drive(4);
  b.serve();
  check(b.device.is_accepting() && b.is_sound);
};
BOTH("RT-36 restored in a round: DONE releases the blocks, the next id starts a round", restored)

constexpr auto written_since = [](auto check) {
  // A page per block, a round of a migration each time: when the guest writes to the page that it
  // hinted, which it took back early, before or behind the device's look at the hint or at the log.
  enum class moment { before_look, after_look, before_late_look, never };
  for (const moment when :
       {moment::before_look, moment::after_look, moment::before_late_look, moment::never}) {
    bench<> b(1);
    bool is_needed = true, is_logged = false; // the page, in the bitmap and in the log
    const auto write = [&] { is_logged = true; };
    const auto look = [&] {
      const std::uint32_t before = b.hints;
      b.serve();
      if (b.hints != before) is_needed = false;
    };
    check(b.device.start().has_value());
    b.read_config();
    b.drive();
    if (when == moment::before_look || when == moment::before_late_look) write();
    if (when != moment::before_late_look) look();
    if (when == moment::after_look) write();
    // The next round.
    check(b.device.stop() || when != moment::before_late_look); // else the driver has ended it
    is_needed |= is_logged;
    is_logged = false;
    check(b.device.start().has_value());
    look();
    check(is_needed == (when != moment::never));
    check(b.hints == (when == moment::before_late_look ? 0u : 1u) && b.is_sound);
  }
};
BOTH("BDEV-9 a page that the guest wrote to since the id was issued is not skipped", written_since)

constexpr auto interrupts = [](auto check) {
  for (const bool hides : {false, true}) {
    bench<> b(3, {.hides_started_id = hides});
    check(b.device.start().has_value());
    b.read_config();
    b.drive(2);
    b.serve();
    check(b.hints == 1);
    b.read_config(); // for another reason: the balloon's target, say
    b.drive();
    b.serve();
    // As QEMU shows it, the driver sees STOP.
    check(b.hints == (hides ? 1u : 3u));
    check(b.device.state() == hint_state::stop && b.is_sound);
  }
};
BOTH("a configuration change in a round does not end it, unless the id is hidden", interrupts)

} // namespace
