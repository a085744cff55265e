// SPDX-License-Identifier: BSD-3-Clause
// Linux's device of a split ring, drivers/vhost/vringh.c, with its functions for rings in kernel
// memory. Compiled against the headers of Linux's tools/virtio.

#include <linux/uaccess.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/vringh.h>

#include "peer.h"

static struct vringh ring;
static struct vringh_kiov readable, writable;
static unsigned long notifications, failures;

int device_start(void) {
  unsigned long long areas[3];
  peer_areas(areas);
  vringh_kiov_init(&readable, NULL, 0);
  vringh_kiov_init(&writable, NULL, 0);
  return vringh_init_kern(&ring, 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX,
                          peer_queue_size, true, (struct vring_desc*)(uintptr_t)areas[0],
                          (struct vring_avail*)(uintptr_t)areas[1],
                          (struct vring_used*)(uintptr_t)areas[2]);
}

unsigned device_consume(unsigned batch, int asks) {
  unsigned taken = 0;
  u16 head;
  for (; taken < batch; ++taken) {
    const int found = vringh_getdesc_kern(&ring, &readable, &writable, &head, GFP_ATOMIC);
    if (found == 0) break;
    if (found < 0 || readable.used != 1 || vringh_complete_kern(&ring, head, 0) != 0) {
      ++failures;
      break;
    }
  }
  if (asks && taken != 0) notifications += vringh_need_notify_kern(&ring) > 0;
  return taken;
}

unsigned long device_failures(void) { return failures; }
