// SPDX-License-Identifier: BSD-3-Clause
// The bound again, with queues of a library: two of atomic_queue's for one producer and one
// consumer, 8 bytes each way.

#include "peer.h"

#include <atomic>

#include <atomic_queue/atomic_queue.h>

#include <cstdint>

namespace {

// Not 0, which is no element; contention minimised and throughput maximised as by default.
using queue = atomic_queue::AtomicQueue<std::uint64_t, peer_queue_size, 0, true, true, false, true>;

queue out, back;

struct alignas(128) side {
  std::uint64_t sum = 0; // of what was taken, so that it is looked at
  unsigned in_flight = 0, next = 0;
  unsigned long failures = 0;
};
side driver, device;

char buffers[peer_queue_size][peer_buffer_bytes];

} // namespace

int driver_start() { return 0; }
int device_start() { return 0; }
unsigned driver_room() { return peer_queue_size - driver.in_flight; }

void driver_add(unsigned batch, int) {
  for (unsigned i = 0; i < batch; ++i) {
    const auto buffer = reinterpret_cast<std::uintptr_t>(buffers[driver.next++ % peer_queue_size]);
    if (!out.try_push(std::uint64_t{buffer})) ++driver.failures;
  }
  driver.in_flight += batch;
}

unsigned device_consume(unsigned batch, int) {
  unsigned taken = 0;
  for (std::uint64_t buffer = 0; taken < batch && out.try_pop(buffer); ++taken) {
    device.sum += buffer;
    if (!back.try_push(std::uint64_t{buffer})) ++device.failures;
  }
  return taken;
}

unsigned driver_reclaim(unsigned batch) {
  unsigned taken = 0;
  for (std::uint64_t buffer = 0; taken < batch && back.try_pop(buffer); ++taken)
    driver.sum += buffer;
  driver.in_flight -= taken;
  return taken;
}

unsigned long driver_failures() { return driver.failures; }
unsigned long device_failures() { return device.failures; }
