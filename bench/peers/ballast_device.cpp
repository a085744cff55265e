// SPDX-License-Identifier: BSD-3-Clause
// Our device of PEER_FORMAT for the driver of somebody else, whose addresses are pointers.

#include "../round_trip.hpp"
#include "peer.h"

#include <ballast/memory/direct_memory.hpp>

#include <cstdint>

namespace {

using namespace bench;

ballast::direct_memory memory;
ballast::device_queue_storage<queue_size> storage;
bench::PEER_FORMAT::device<ballast::direct_memory> queue(storage);
std::uint64_t sum = 0; // of what was taken, so that it is looked at
unsigned long failures = 0;

} // namespace

int device_start() {
  unsigned long long areas[3];
  peer_areas(areas);
  return !queue.start(memory, {queue_size, areas[0], areas[1], areas[2]}, usual_features);
}

unsigned device_consume(unsigned batch, int asks) {
  const auto done = queue.consume(batch, [](const ballast::chain& c) {
    for (const ballast::buffer& b : c.readable()) sum += b.address + b.length;
    return ballast::used();
  });
  if (!done) {
    ++failures;
    return 0;
  }
  if (done->chains == 0) return 0;
  if (asks != 0)
    sum += queue.publish_and_ask();
  else
    queue.publish();
  return done->chains;
}

unsigned long device_failures() { return failures; }
