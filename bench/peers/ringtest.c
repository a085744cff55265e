// SPDX-License-Identifier: BSD-3-Clause
// A ring of Linux's tools/virtio/ringtest: PEER_RING is its file. It has EVENT_IDX, and checks
// nothing of what the other side writes.

#include PEER_RING

#include "peer.h"

// What ringtest's rings want from the program.
unsigned ring_size = peer_queue_size;
int param;
bool do_exit, do_sleep, do_relax;

static unsigned long notifications, failures;
void kick(void) { ++notifications; }
void call(void) { ++notifications; }

static char buffers[peer_queue_size][peer_buffer_bytes];
static unsigned next;

int driver_start(void) {
  alloc_ring();
  return 0;
}
int device_start(void) { return 0; }

unsigned driver_room(void) { return guest.num_free; }

void driver_add(unsigned batch, int asks) {
  for (unsigned i = 0; i < batch; ++i) {
    char* buffer = buffers[next++ % peer_queue_size];
    if (add_inbuf(peer_buffer_bytes, buffer, buffer) != 0) ++failures;
  }
  if (asks) kick_available();
}

unsigned device_consume(unsigned batch, int asks) {
  unsigned taken = 0, length;
  void* buffer;
  while (taken < batch && use_buf(&length, &buffer)) ++taken;
  if (asks && taken != 0) call_used();
  return taken;
}

unsigned driver_reclaim(unsigned batch) {
  unsigned taken = 0, length;
  void* buffer;
  while (taken < batch && get_buf(&length, &buffer) != NULL) ++taken;
  return taken;
}

unsigned long driver_failures(void) { return failures; }
unsigned long device_failures(void) { return 0; }
