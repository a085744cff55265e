// SPDX-License-Identifier: BSD-3-Clause
// Usage: instructions MODE ROUNDS BATCH
//
// Runs ROUNDS rounds of BATCH chains for an instruction counter; the difference of two runs of
// different length is free of start and end. MODE:
//
//   split: driver and device, chains of one buffer
//
//   split-resolved: the same, the device looks up where each buffer lies
//
//   device: the device alone on a filled ring; the harness only moves the available index
//
//   device-resolved: the same, looking up where each buffer lies
//
//   in-order: as split, with IN_ORDER negotiated: one used element for a batch
//
//   packed, packed-in-order: as split and in-order, on a packed ring
//   either-split, either-packed: as split and packed, by the types that hold either format
//
//   chain-resolved: chains of one buffer to read and two to write
//
//   indirect-resolved: the same in indirect tables

#include "round_trip.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

using namespace bench;
namespace feature = ballast::feature;

constexpr ballast::feature_set in_order_features{feature::version_1, feature::event_idx,
                                                 feature::in_order};
constexpr ballast::feature_set indirect_features{feature::version_1, feature::event_idx,
                                                 feature::indirect_desc};

// What is counted is a function of its own: the code around it takes no registers from it.
template <class Round> [[gnu::noinline]] void repeat(std::uint64_t rounds, Round round) {
  for (; rounds != 0; --rounds) round();
}

template <class Format, access_by By>
bool run_single(std::uint64_t rounds, std::uint32_t batch,
                const ballast::feature_set& features = usual_features) {
  static two_regions guest;
  static driver_side<Format> driver(guest, features);
  static device_side<Format, By> device(guest, features);
  if (batch == 1)
    repeat(rounds, []() __attribute__((always_inline)) { round_trip(driver, device, 1u); });
  else
    repeat(rounds, [=]() __attribute__((always_inline)) { round_trip(driver, device, batch); });
  return driver.failures == 0 && device.failures == 0;
}

template <class Format, access_by By>
bool run_chains(std::uint64_t rounds, std::uint32_t batch, const ballast::feature_set& features,
                bool is_single) {
  static two_regions guest;
  static driver_side<Format> driver(guest, features);
  static device_side<Format, By> device(guest, features);
  const auto serve = [=]() __attribute__((always_inline)) {
    driver.ask_whether_to_notify();
    keep(driver);
    if (device.consume_chains(batch) != batch) ++device.failures;
    device.ask_whether_to_notify();
    keep(device);
    if (driver.reclaim(batch) != batch) ++driver.failures;
    keep(driver);
  };
  if (is_single)
    repeat(rounds, [=]() __attribute__((always_inline)) {
      driver.add(batch);
      serve();
    });
  else
    repeat(rounds, [=]() __attribute__((always_inline)) {
      driver.add_chains(batch);
      serve();
    });
  return driver.failures == 0 && device.failures == 0;
}

// The split ring only: there a single word makes chains available.
template <access_by By> bool run_device(std::uint64_t rounds, std::uint32_t batch) {
  static two_regions guest;
  static driver_side<split_format> driver(guest);
  static device_side<split_format, By> device(guest);
  // The driver fills the ring with every descriptor once and gets none back.
  driver.add(queue_size);
  driver.ask_whether_to_notify();
  if (device.consume(queue_size) != queue_size) return false;
  auto memory = *ballast::mapped_memory::over(guest.regions);
  static auto available =
      *memory.window(split_format::layout().driver_area, 4, 2, ballast::access::write);
  static std::uint16_t index = queue_size;
  repeat(rounds, [=]() __attribute__((always_inline)) {
    index = static_cast<std::uint16_t>(index + batch);
    available.store<std::uint16_t>(ballast::split::available_index,
                                   ballast::to_order<std::endian::little>(index),
                                   ballast::order::release);
    keep(guest);
    if (device.consume(batch) != batch) ++device.failures;
    device.ask_whether_to_notify();
    keep(device);
  });
  return driver.failures == 0 && device.failures == 0;
}

} // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fputs("usage: instructions MODE ROUNDS BATCH\n", stderr);
    return 2;
  }
  const auto is_mode = [&](const char* mode) { return std::strcmp(arguments[1], mode) == 0; };
  const std::uint64_t rounds = std::strtoull(arguments[2], nullptr, 10);
  const auto batch = static_cast<std::uint32_t>(std::strtoul(arguments[3], nullptr, 10));
  bool is_good = false;
  if (batch == 0 || batch > queue_size)
    is_good = false;
  else if (is_mode("split"))
    is_good = run_single<split_format, access_by::address>(rounds, batch);
  else if (is_mode("split-resolved"))
    is_good = run_single<split_format, access_by::pointer>(rounds, batch);
  else if (is_mode("device"))
    is_good = run_device<access_by::address>(rounds, batch);
  else if (is_mode("device-resolved"))
    is_good = run_device<access_by::pointer>(rounds, batch);
  else if (is_mode("in-order"))
    is_good = run_chains<split_format, access_by::address>(rounds, batch, in_order_features, true);
  else if (is_mode("packed"))
    is_good = run_single<packed_format, access_by::address>(rounds, batch);
  else if (is_mode("packed-in-order"))
    is_good = run_chains<packed_format, access_by::address>(rounds, batch, in_order_features, true);
  else if (is_mode("either-split"))
    is_good = run_single<either_format<split_format>, access_by::address>(rounds, batch);
  else if (is_mode("either-packed"))
    is_good = run_single<either_format<packed_format>, access_by::address>(
        rounds, batch, usual_features.with(feature::ring_packed));
  else if (is_mode("chain-resolved"))
    is_good = run_chains<split_format, access_by::pointer>(rounds, batch, usual_features, false);
  else if (is_mode("indirect-resolved"))
    is_good = run_chains<split_format, access_by::pointer>(rounds, batch, indirect_features, false);
  if (!is_good) std::fputs("a round went wrong, or there is no such MODE or BATCH\n", stderr);
  return is_good ? 0 : 1;
}
