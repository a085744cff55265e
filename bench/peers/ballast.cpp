// SPDX-License-Identifier: BSD-3-Clause
// Both sides are ours. PEER_FORMAT names the format; with PEER_IN_ORDER buffers come back in order.

#include "../round_trip.hpp"
#include "peer.h"

#include <cstdint>

namespace {

using namespace bench;
namespace feature = ballast::feature;

static_assert(queue_size == peer_queue_size && buffer_bytes == peer_buffer_bytes);

#ifdef PEER_IN_ORDER
constexpr ballast::feature_set features{feature::version_1, feature::event_idx, feature::in_order};
#else
constexpr ballast::feature_set features = usual_features;
#endif

two_regions guest;
driver_side<PEER_FORMAT> driver(guest, features);
device_side<PEER_FORMAT, access_by::address> device(guest, features);

} // namespace

int driver_start() { return driver.failures != 0; }
int device_start() { return device.failures != 0; }
unsigned driver_room() { return driver.room(); }
unsigned long driver_failures() { return driver.failures; }
unsigned long device_failures() { return device.failures; }

void driver_add(unsigned batch, int asks) {
  driver.add(batch);
  if (asks != 0)
    driver.ask_whether_to_notify();
  else
    driver.publish();
}

unsigned device_consume(unsigned batch, int asks) {
#ifdef PEER_IN_ORDER
  const std::uint32_t taken = device.consume_chains(batch);
#else
  const std::uint32_t taken = device.consume(batch);
#endif
  if (taken == 0) return 0;
  if (asks != 0)
    device.ask_whether_to_notify();
  else
    device.publish();
  return taken;
}

unsigned driver_reclaim(unsigned batch) { return driver.reclaim(batch); }
