// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/statistics_driver.hpp>

#include "support/check.hpp"
#include "support/open_device.hpp"

#include <ballast/balloon/statistics.hpp>
#include <ballast/memory/array_memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
using balloon::statistic_tag;
using ram_type = array_memory<4096>;

/// Answers with `tags` in that order, the n-th time with n thousands.
struct source {
  std::array<std::uint16_t, 4> tags{7, 1, 300, 4};
  std::size_t count = 4;
  std::uint64_t asked = 0;

  template <std::endian E> constexpr void write(balloon::statistics_writer<E>& to) noexcept {
    ++asked;
    for (const std::uint16_t tag : std::span(tags).first(count))
      (void)to.add(static_cast<statistic_tag>(tag), 1000 * asked + tag);
  }
};
static_assert(balloon::statistics_source<source, std::endian::little>);
static_assert(balloon::statistics_source<source, std::endian::big>);
static_assert(!balloon::statistics_source<int, std::endian::little>);

struct bench {
  ram_type ram;
  ballast_test::open_device<ram_type> device{ram};
  balloon::statistics_driver<ram_type, 4, std::endian::little> driver;
  source from;

  constexpr bench() {
    guest_address at = 0;
    (void)driver.queue().start(ram, device, 2, 1, at,
                               balloon::statistics_buffer_bytes<std::endian::little>, {}, 0);
  }
};

constexpr auto round = [](auto check) {
  bench b;
  actions due;
  b.driver.send(b.from, 0, due);
  check(due == actions{}); // no notification yet
  const auto first = b.device.take(2);
  check(first.readable == 1 && first.buffers[0].length == 40);
  check(b.device.take(2).readable == 0); // no second one, whatever is asked
  check(!b.driver.take_up(b.from, 1, due) && b.from.asked == 1);
  check(b.device.take(2).readable == 0);
  check(b.device.give_back(2, first));
  check(b.driver.take_up(b.from, 2, due));
  check(b.from.asked == 2 && due.notify_queues == 4);
  const auto second = b.device.take(2);
  check(second.readable == 1 && b.device.take(2).readable == 0);
  // The same tags, in the source's order, with new values.
  for (std::uint32_t i = 0; i < 4; ++i) {
    const buffer entry{second.buffers[0].address + 10 * i, 10};
    check(b.device.number<std::uint16_t>(entry, 0) == b.from.tags[i]);
    const buffer value{entry.address + 2, 8};
    check(b.device.number<std::uint64_t>(value, 0) == 2000u + b.from.tags[i]);
  }
};
BOTH("BDRV-16, BDRV-18, BDRV-19, BDRV-21, BDRV-23: one buffer, filled anew each time", round)

constexpr auto sizes = [](auto check) {
  for (std::size_t count = 0; count <= 4; ++count) {
    bench b;
    b.from.count = count;
    actions due;
    b.driver.send(b.from, 0, due);
    const auto taken = b.device.take(2);
    check(taken.buffers[0].length == 10 * (count == 0 ? 1 : count));
    if (count != 0) continue;
    check(b.device.number<std::uint16_t>(taken.buffers[0], 0) == 0xffff); // what Windows sends
  }
};
BOTH("BDRV-20, BDRV-22, RT-50: a driver sends whole entries of 10 bytes; none is a filler", sizes)

constexpr auto backward = [](auto check) {
  bench b;
  b.from.tags = {0, 1, 2, 3};
  b.from.asked = UINT64_MAX / 1000 - 1; // the source's counters are about to wrap
  actions due;
  b.driver.send(b.from, 0, due);
  const auto taken = b.device.take(2);
  check(b.device.number<std::uint64_t>({taken.buffers[0].address + 2, 8}, 0) ==
        1000 * (UINT64_MAX / 1000));
};
BOTH("RT-57: a driver sends totals of 64 bits as its source has them", backward)

} // namespace
