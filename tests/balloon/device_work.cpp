// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device_work.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace {

using namespace ballast;
using ballast_test::full_host;
using ballast_test::page_bits;
using balloon::queue_kind;

using ram_type = array_memory<16 * 4096>;
constexpr feature_set all{balloon::feature::stats_vq, balloon::feature::free_page_hint,
                          balloon::feature::page_reporting, feature::version_1};

/// The work alone, by kinds of queues: their numbers are a matter of `device`.
struct bench {
  ram_type ram;
  full_host host;
  balloon::device_options options{.offered = all};
  balloon::device_config config{options};
  balloon::device_counters counters;
  balloon::device_work<ram_type, full_host, 8, std::endian::little> work{host, options, config,
                                                                         counters};
  std::array<driver_slot, 8> slots{};
  split_driver<ram_type> driver{slots};
  std::array<queue_layout, 5> layouts{};

  /// Only the queue of `kind` is set up.
  constexpr explicit bench(queue_kind kind) {
    queue_layout& mine = layouts[static_cast<std::size_t>(kind)];
    mine = split::place(0, 8).layout;
    (void)driver.start(ram, mine, all);
    (void)work.start(ram, layouts, all);
  }
  constexpr void send(std::initializer_list<buffer> readable,
                      std::initializer_list<buffer> writable) {
    (void)driver.add(std::span(readable.begin(), readable.size()),
                     std::span(writable.begin(), writable.size()), 0);
    driver.publish();
  }
  constexpr void command(std::uint32_t id) {
    const auto raw = std::bit_cast<std::array<std::byte, 4>>(le32(id));
    (void)ram.write(0x2000, raw);
    send({{0x2000, 4}}, {});
  }
};

constexpr auto one_queue = [](auto check) {
  bench b(queue_kind::reporting);
  check(b.work.has(balloon::feature::page_reporting));
  check(!b.work.has(balloon::feature::must_tell_host));
  check(b.work.process(queue_kind::inflate, 8).failure == error::invalid_queue_index);
  b.send({}, {{4 * 4096, 4096}});
  check(b.work.process(queue_kind::reporting, 8) == actions{.notify_queues = 16});
  check(b.host.discarded == page_bits({4}) && b.driver.pop_used().has_value());
  b.work.detach();
  check(b.work.process(queue_kind::reporting, 8).failure == error::invalid_queue_index);
  check(b.work.attach(b.ram, b.layouts).failure == error::none);
  check(b.work.process(queue_kind::reporting, 8) == actions{});
};
BOTH("a queue is worked on while it is attached", one_queue)

constexpr auto failed_start = [](auto check) {
  bench b(queue_kind::inflate);
  b.work.reset();
  b.layouts[4] = split::place(0xf'0000, 8).layout;
  check(b.work.start(b.ram, b.layouts, all).error() == error::not_guest_memory);
  check(!b.work.has(balloon::feature::stats_vq)); // none of it
  check(b.work.process(queue_kind::inflate, 8).failure == error::invalid_queue_index);
};
BOTH("a start that fails leaves nothing begun", failed_start)

constexpr auto queue_away = [](auto check) {
  bench b(queue_kind::free_page);
  const queue_layout& at = b.layouts[3];
  (void)b.work.start_hinting();
  const std::uint32_t first = b.work.hinting().command_id();
  check(b.work.reset_queue(queue_kind::free_page).config_changed); // BDEV-6
  check(b.work.hinting().state() == balloon::hint_state::stop);
  // A round that is asked for while the queue is away begins in the new one.
  (void)b.work.start_hinting();
  const std::uint32_t second = b.work.hinting().command_id();
  check(second != first);
  (void)b.driver.start(b.ram, at, all);
  check(b.work.enable_queue(queue_kind::free_page, at, 8) == actions{});
  check(b.work.hinting().state() == balloon::hint_state::requested);
  b.command(second);
  b.send({}, {{5 * 4096, 4096}});
  check(b.work.process(queue_kind::free_page, 8).failure == error::none);
  check(b.host.hinted == page_bits({5}));
  // Given again without having been taken: what comes there is of no round.
  (void)b.driver.start(b.ram, at, all);
  check(b.work.enable_queue(queue_kind::free_page, at, 8) == actions{.config_changed = true});
  b.send({}, {{6 * 4096, 4096}});
  (void)b.work.process(queue_kind::free_page, 8);
  check(b.host.hinted == page_bits({5}));
};
BOTH("RT-60 BDEV-6: a free_page_vq that is taken away ends the round, not the next one", queue_away)

constexpr auto counted = [](auto check) {
  bench b(queue_kind::statistics);
  check(b.work.request_statistics().failure == error::no_statistics_buffer);
  b.send({{0xffff'ffff'ffff'fff0, 10}}, {});
  check(b.work.process(queue_kind::statistics, 8).needs_reset);
  check(b.counters.event_fails == 1 && b.counters.stats_update_fails == 1);
  check(b.work.failed(error::memory_lost) ==
        actions{.needs_reset = true, .failure = error::memory_lost});
  check(b.counters.event_fails == 2);
};
BOTH("RT-46: every need for a reset is counted; a refusal is none", counted)

constexpr auto resumed = [](auto check) {
  bench b(queue_kind::statistics);
  check(b.work.resume(b.ram, b.layouts, all, {}).has_value()); // while attached too: its owner asks
  check(!b.work.is_detached());
  b.work.detach();
  check(b.work.is_detached());
  check(b.work.process(queue_kind::statistics, 1).failure == error::invalid_queue_index);
  std::array<queue_layout, 5> bad{};
  bad[0] = split::place(0, 16).layout; // of 8 entries
  check(b.work.resume(b.ram, bad, all, {}).error() == error::storage_too_small);
  check(b.work.queues().negotiated() == feature_set{});
  b.work.reset();
  balloon::hint_device_state hints{.id = balloon::command_id::first};
  check(b.work.restore(hints, true, 7).has_value());
  check(b.work.epoch() == 7 && b.work.statistics().is_pending());
  hints.version = 2;
  check(b.work.restore(hints, false, 8).error() == error::state_version);
  check(b.work.epoch() == 7 && b.work.statistics().is_pending());
};
BOTH("work goes on where other work was, or not at all", resumed)

} // namespace
