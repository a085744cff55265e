// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/page_queue.hpp>

#include "support/check.hpp"
#include "support/open_device.hpp"

#include <ballast/memory/array_memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace {

using namespace ballast;
using ram_type = array_memory<2 * 4096>;

template <std::uint32_t BlockPages, std::endian E = std::endian::little> struct bench {
  ram_type ram;
  ballast_test::open_device<ram_type, E> device{ram};
  std::array<driver_slot, 4> slots{};
  balloon::page_queue<ram_type, E, BlockPages> queue{slots};

  constexpr bench() {
    guest_address at = 0;
    (void)queue.start(ram, device, 0, 1, at, queue.array_bytes, {}, 0);
  }
};

constexpr auto small = [](auto check) {
  bench<1> b;
  check(b.queue.room(3).size() == 3 && b.queue.room(0).empty());
  check(b.queue.room(256).size() == 256 && b.queue.room(257).size() == 256);
  check(b.queue.room(UINT32_MAX).size() == 256);
  const auto to = b.queue.room(3);
  to[0] = 0x12345678;
  to[1] = 0; // PFN 0 is a page like any other
  to[2] = 0xffffffff;
  actions due;
  check(b.queue.send_blocks(3, 9, due) && due.notify_queues == 1);
  check(b.queue.pages() == 3 && b.queue.blocks().size() == 3);
  const auto taken = b.device.take(0);
  check(taken.readable == 1 && taken.buffers[0].length == 12);
  check(b.device.number(taken.buffers[0], 0) == 0x12345678);
  check(b.device.template number<std::uint16_t>(taken.buffers[0], 0) == 0x5678);
  check(b.device.number(taken.buffers[0], 1) == 0);
  check(b.device.number(taken.buffers[0], 2) == 0xffffffff);
  b.queue.forget();
  check(b.queue.pages() == 0 && b.queue.blocks().empty());
};
BOTH("RT-52, RT-53: a driver sends PFNs of four bytes, and 0 is one of them", small)

constexpr auto large = [](auto check) {
  bench<16> b;
  check(b.queue.room(1).size() == 1 && b.queue.room(16).size() == 1);
  check(b.queue.room(17).size() == 2);
  check(b.queue.room(UINT32_MAX).size() == 16);
  const auto to = b.queue.room(32);
  to[0] = 0x100;
  to[1] = 0xfffffff0; // the last there is
  actions due;
  check(b.queue.send_blocks(2, 9, due));
  check(b.queue.pages() == 32 && b.queue.blocks()[1] == 0xfffffff0);
  const auto taken = b.device.take(0);
  check(taken.buffers[0].length == 128);
  for (std::uint32_t i = 0; i < 16; ++i) {
    check(b.device.number(taken.buffers[0], i) == 0x100 + i);
    check(b.device.number(taken.buffers[0], 16 + i) == 0xfffffff0 + i);
  }
};
BOTH("RT-55: a page of the guest of 64 KiB is 16 PFNs in a row", large)

constexpr auto largest = [](auto check) {
  bench<256, std::endian::big> b;
  check(b.queue.room(1000).size() == 1);
  b.queue.room(1)[0] = 0x100;
  actions due;
  check(b.queue.send_blocks(1, 9, due) && b.queue.pages() == 256);
  const auto taken = b.device.take(0);
  check(taken.buffers[0].length == 1024);
  check(b.device.number(taken.buffers[0], 255) == 0x1ff);
};
BOTH("the largest block fills a buffer, in the ring's byte order", largest)

} // namespace
