// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/reporting_driver.hpp>

#include "support/check.hpp"
#include "support/open_device.hpp"

#include <ballast/memory/array_memory.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
using ram_type = array_memory<2 * 4096>;

constexpr std::uint32_t large = 2u << 20;

/// Blocks of 2 MiB from 1 GiB on; each is free, isolated or reported.
struct free_blocks {
  std::size_t left = 0;
  std::size_t isolated = 0;
  std::size_t reported = 0;
  std::size_t drained = 0;
  guest_address next = 1ull << 30;

  constexpr std::size_t take_reportable(std::span<buffer> to) noexcept {
    std::size_t n = 0;
    for (; n < to.size() && left != 0; ++n, --left, next += large) to[n] = {next, large};
    isolated += n;
    return n;
  }
  constexpr void return_reportable(std::span<const buffer> ranges, bool is_reported) noexcept {
    isolated -= ranges.size();
    (is_reported ? reported : drained) += ranges.size();
  }
};
static_assert(balloon::reporting_source<free_blocks>);
struct no_return {
  static std::size_t take_reportable(std::span<buffer>) noexcept { return 0; }
};
static_assert(!balloon::reporting_source<no_return>);
static_assert(balloon::report_ranges_max == 32);

struct bench {
  ram_type ram;
  ballast_test::open_device<ram_type> device{ram};
  balloon::reporting_driver<ram_type, std::endian::little> driver;
  free_blocks from;

  constexpr bench() {
    guest_address at = 0;
    (void)driver.queue().start(ram, device, 4, 32, at, 0, {}, 0);
  }
};

constexpr auto full = [](auto check) {
  bench b;
  b.from.left = 40;
  actions due;
  check(b.driver.report(b.from, 3, due));
  check(due.notify_queues == 1u << 4 && b.driver.queue().is_under_way());
  const auto taken = b.device.take(4);
  check(taken.readable == 0 && taken.writable == 32);
  for (std::size_t i = 0; i < 32; ++i)
    check(taken.buffers[i] == buffer{(1ull << 30) + i * large, large});
  check(!b.driver.take_up(b.from, due));
  check(b.from.isolated == 32 && b.from.reported == 0); // not before the ack
  check(b.device.give_back(4, taken));
  check(b.driver.take_up(b.from, due));
  check(b.from.isolated == 0 && b.from.reported == 32 && !b.driver.queue().is_under_way());
  check(!b.driver.take_up(b.from, due) && b.from.reported == 32); // once
};
BOTH("BDRV-39: a report is up to 32 writable ranges, which come back with its ack", full)

constexpr auto rest = [](auto check) {
  bench b;
  actions due;
  check(!b.driver.report(b.from, 3, due) && due == actions{});
  check(!b.driver.queue().is_under_way());
  b.from.left = 1;
  check(b.driver.report(b.from, 3, due));
  check(b.device.take(4).writable == 1);
};
BOTH("a report is as long as what is free; nothing free is no report", rest)

/// Gigantic blocks: more than a chain may describe. Or one that says it gave more than there is
/// room.
struct gigantic_blocks {
  std::size_t answer = 8;
  std::size_t isolated = 0;
  std::size_t unreported = 0;

  constexpr std::size_t take_reportable(std::span<buffer> to) noexcept {
    for (std::size_t i = 0; i < answer && i < to.size(); ++i)
      to[i] = {std::uint64_t{i} << 30, 1u << 30};
    isolated += answer < to.size() ? answer : to.size();
    return answer;
  }
  constexpr void return_reportable(std::span<const buffer> from, bool is_reported) noexcept {
    isolated -= from.size();
    if (!is_reported) unreported += from.size();
  }
};

constexpr auto gigantic = [](auto check) {
  bench b;
  gigantic_blocks source;
  actions due;
  check(b.driver.report(source, 3, due) && due.failure == error::none);
  check(source.unreported == 5 && source.isolated == 3); // 3 GiB fit
  const auto taken = b.device.take(4);
  check(taken.writable == 3 && b.device.give_back(4, taken));
  check(b.driver.take_up(source, due) && source.isolated == 0 && source.unreported == 5);

  bench more;
  gigantic_blocks liar{.answer = 100};
  check(more.driver.report(liar, 3, due) && due.failure == error::none);
  check(more.device.take(4).writable == 3);
};
BOTH("a report describes less than 2^32 bytes, the rest comes back unreported", gigantic)

constexpr auto drains = [](auto check) {
  bench b;
  b.driver.drain(b.from);
  check(b.from.drained == 0);
  b.from.left = 5;
  guest_address at = 0;
  check(b.driver.queue().start(b.ram, b.device, 4, 32, at, 0, {}, 0).has_value());
  actions due;
  check(b.driver.report(b.from, 3, due));
  b.driver.drain(b.from);
  check(b.from.isolated == 0 && b.from.drained == 5 && b.from.reported == 0);
  check(!b.driver.queue().is_under_way());
  b.driver.drain(b.from);
  check(b.from.drained == 5);
};
BOTH("what was under way comes back unreported when the device is gone", drains)

constexpr auto in_order = [](auto check) {
  bench b;
  guest_address at = 0;
  check(b.driver.queue()
            .start(b.ram, b.device, 4, 32, at, 0, {feature::event_idx}, 65530)
            .has_value());
  // The rings of the device begin at 0; only what the driver makes of a bad index is looked at.
  actions due;
  const auto bad = std::bit_cast<std::array<std::byte, 2>>(le16(std::uint16_t{65531}));
  (void)b.ram.write(b.device.layout(4).device_area + split::used_index, bad);
  check(!b.driver.take_up(b.from, due) && due.failure == error::used_index_jump);
};
BOTH("an ack of no report breaks the queue", in_order)

} // namespace
