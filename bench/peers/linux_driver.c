// SPDX-License-Identifier: BSD-3-Clause
// Linux's driver, drivers/virtio/virtio_ring.c: split, or packed with PEER_PACKED. Compiled against
// the headers of Linux's tools/virtio. Callbacks are off, which is the cheaper way.

#include <stdlib.h>

#include <linux/scatterlist.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "peer.h"

// What the headers of tools/virtio want from the program.
void *__kmalloc_fake, *__kfree_ignore_start, *__kfree_ignore_end;
void *__user_addr_min, *__user_addr_max;

// Exported by virtio_ring.c; the header of tools/virtio leaves them out.
bool virtqueue_kick_prepare(struct virtqueue* queue);
dma_addr_t virtqueue_get_desc_addr(const struct virtqueue* queue);
dma_addr_t virtqueue_get_avail_addr(const struct virtqueue* queue);
dma_addr_t virtqueue_get_used_addr(const struct virtqueue* queue);
struct virtqueue* vring_create_virtqueue(unsigned int index, unsigned int num,
                                         unsigned int vring_align, struct virtio_device* vdev,
                                         bool weak_barriers, bool may_reduce_num, bool ctx,
                                         bool (*notify)(struct virtqueue* vq),
                                         void (*callback)(struct virtqueue* vq), const char* name);

static struct virtio_device device;
static struct virtqueue* queue;
static char buffers[peer_queue_size][peer_buffer_bytes];
static unsigned next;
static unsigned long notifications, failures;

static bool count_notification(struct virtqueue* of) {
  (void)of;
  ++notifications;
  return true;
}

int driver_start(void) {
  device.features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX;
#ifdef PEER_PACKED
  device.features |= 1ull << VIRTIO_F_RING_PACKED;
#endif
  INIT_LIST_HEAD(&device.vqs);
  spin_lock_init(&device.vqs_list_lock);
  queue = vring_create_virtqueue(0, peer_queue_size, 4096, &device, true, false, false,
                                 count_notification, NULL, "peer");
  return queue == NULL;
}

void peer_areas(unsigned long long areas[3]) {
  areas[0] = virtqueue_get_desc_addr(queue);
  areas[1] = virtqueue_get_avail_addr(queue);
  areas[2] = virtqueue_get_used_addr(queue);
}

unsigned driver_room(void) { return queue->num_free; }

void driver_add(unsigned batch, int asks) {
  for (unsigned i = 0; i < batch; ++i) {
    struct scatterlist one;
    char* buffer = buffers[next++ % peer_queue_size];
    sg_init_one(&one, buffer, peer_buffer_bytes);
    if (virtqueue_add_outbuf(queue, &one, 1, buffer, GFP_ATOMIC) != 0) ++failures;
  }
  if (asks) notifications += virtqueue_kick_prepare(queue);
}

unsigned driver_reclaim(unsigned batch) {
  unsigned taken = 0, length;
  while (taken < batch && virtqueue_get_buf(queue, &length) != NULL) ++taken;
  return taken;
}

unsigned long driver_failures(void) { return failures; }
