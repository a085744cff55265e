// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/split_rings.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

namespace {

using namespace ballast;

constexpr auto bounds = [](auto check) {
  array_memory<4096> ram(0x1000);
  const queue_layout good = split::place(0x1000, 8).layout;
  const auto refuses = [&](queue_layout l, std::size_t storage = 8) {
    return map_rings(ram, l, queue_side::driver, storage).error();
  };
  check(refuses(good) == error::none);
  check(refuses(good, 7) == error::storage_too_small);
  queue_layout bad = good;
  bad.size = 6;
  check(refuses(bad) == error::invalid_queue_size);
  bad.size = 0;
  check(refuses(bad) == error::invalid_queue_size);
  bad = good;
  bad.descriptor_area += 8;
  check(refuses(bad) == error::misaligned);
  bad = good;
  bad.driver_area = 0x1fff;
  check(refuses(bad) == error::not_guest_memory);
  bad = good;
  bad.device_area = 0x2000 - split::used_ring_bytes(8);
  check(refuses(bad) == error::misaligned);
  bad.device_area -= 2; // ends with the memory's last byte but one
  check(refuses(bad) == error::none);
};
BOTH("RT-5 RT-20 the rings are mapped only where they fit whole and aligned", bounds)

TEST_CASE("each side needs to write only its own parts") {
  alignas(16) static std::byte drivers[4096], devices[4096];
  const memory_region for_device[] = {{0x1000, drivers, 4096, false},
                                      {0x4000, devices, 4096, true}};
  const memory_region for_driver[] = {{0x1000, drivers, 4096, true},
                                      {0x4000, devices, 4096, false}};
  queue_layout l = split::place(0x1000, 8).layout;
  l.device_area = 0x4000;
  mapped_memory of_device = *mapped_memory::over(for_device);
  mapped_memory of_driver = *mapped_memory::over(for_driver);
  CHECK(map_rings(of_device, l, queue_side::device, 8));
  CHECK(map_rings(of_driver, l, queue_side::driver, 8));
  CHECK(map_rings(of_driver, l, queue_side::device, 8).error() == error::access_not_allowed);
  CHECK(map_rings(of_device, l, queue_side::driver, 8).error() == error::access_not_allowed);
}

} // namespace
