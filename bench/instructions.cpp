// SPDX-License-Identifier: BSD-3-Clause
// Usage: instructions MODE ROUNDS BATCH
//
// Runs ROUNDS rounds of BATCH buffers for an instruction counter; the difference of two runs of
// different length is free of start and end. MODE:
//
//   split             driver and device
//   split-resolved    the same, the device looks up where each buffer lies
//   device            the device alone on a filled ring: the harness only moves the available index
//   device-resolved

#include "round_trip.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

using namespace bench;

template <access_by By> bool run_split(std::uint64_t rounds, std::uint32_t batch) {
  static two_regions guest;
  static driver_side driver(guest);
  static device_side<By> device(guest);
  if (batch == 1)
    for (std::uint64_t i = 0; i < rounds; ++i) round_trip(driver, device, 1u);
  else
    for (std::uint64_t i = 0; i < rounds; ++i) round_trip(driver, device, batch);
  return driver.failures == 0 && device.failures == 0;
}

template <access_by By> bool run_device(std::uint64_t rounds, std::uint32_t batch) {
  static two_regions guest;
  static driver_side driver(guest);
  static device_side<By> device(guest);
  // The driver fills the ring with every descriptor once and gets none back.
  driver.add(queue_size);
  driver.ask_whether_to_notify();
  if (device.consume(queue_size) != queue_size) return false;
  auto memory = *ballast::mapped_memory::over(guest.regions);
  auto available = *memory.window(two_regions::layout().driver_area, 4, 2, ballast::access::write);
  std::uint16_t index = queue_size;
  for (std::uint64_t i = 0; i < rounds; ++i) {
    index = static_cast<std::uint16_t>(index + batch);
    available.store<std::uint16_t>(ballast::split::available_index,
                                   ballast::to_order<std::endian::little>(index),
                                   ballast::order::release);
    keep(guest);
    if (device.consume(batch) != batch) ++device.failures;
    device.ask_whether_to_notify();
    keep(device);
  }
  return driver.failures == 0 && device.failures == 0;
}

} // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fputs("usage: instructions MODE ROUNDS BATCH\n", stderr);
    return 2;
  }
  const char* mode = arguments[1];
  const std::uint64_t rounds = std::strtoull(arguments[2], nullptr, 10);
  const auto batch = static_cast<std::uint32_t>(std::strtoul(arguments[3], nullptr, 10));
  bool is_good = false;
  const bool is_batch = batch >= 1 && batch <= queue_size;
  if (is_batch && std::strcmp(mode, "split") == 0)
    is_good = run_split<access_by::address>(rounds, batch);
  else if (is_batch && std::strcmp(mode, "split-resolved") == 0)
    is_good = run_split<access_by::pointer>(rounds, batch);
  else if (is_batch && std::strcmp(mode, "device") == 0)
    is_good = run_device<access_by::address>(rounds, batch);
  else if (is_batch && std::strcmp(mode, "device-resolved") == 0)
    is_good = run_device<access_by::pointer>(rounds, batch);
  if (!is_good) std::fputs("a round went wrong, or there is no such MODE or BATCH\n", stderr);
  return is_good ? 0 : 1;
}
