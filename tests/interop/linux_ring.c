// SPDX-License-Identifier: BSD-3-Clause
// Compiled by linux_rings.sh against the headers of Linux's tools/virtio.

#include <stdlib.h>

#include <linux/scatterlist.h>
#include <linux/uaccess.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/vringh.h>

#include "linux_ring.h"

// What the headers of tools/virtio want from the program.
void *__kmalloc_fake, *__kfree_ignore_start, *__kfree_ignore_end;
void *__user_addr_min, *__user_addr_max;

// Exported by virtio_ring.c; the header of tools/virtio leaves them out.
bool virtqueue_kick_prepare(struct virtqueue* queue);
bool virtqueue_is_broken(const struct virtqueue* queue);
const struct vring* virtqueue_get_vring(const struct virtqueue* queue);
u64 virtqueue_get_desc_addr(const struct virtqueue* queue);
u64 virtqueue_get_avail_addr(const struct virtqueue* queue);
u64 virtqueue_get_used_addr(const struct virtqueue* queue);

enum { ring_alignment = 4096, most_buffers = 64 };

static u64 feature_bits(int has_event_index, int has_indirect) {
  u64 bits = 1ull << VIRTIO_F_VERSION_1;
  if (has_event_index) bits |= 1ull << VIRTIO_RING_F_EVENT_IDX;
  if (has_indirect) bits |= 1ull << VIRTIO_RING_F_INDIRECT_DESC;
  return bits;
}

// --- the driver

struct linux_driver {
  struct virtio_device device;
  struct virtqueue* queue;
  unsigned long calls;
};

static bool refuse_to_notify(struct virtqueue* queue) {
  (void)queue;
  return false; // notifications are the tests' business
}

static void count_call(struct virtqueue* queue) {
  struct linux_driver* driver = container_of(queue->vdev, struct linux_driver, device);
  ++driver->calls;
}

size_t linux_driver_ring_bytes(unsigned size) { return vring_size(size, ring_alignment); }

static struct linux_driver* create(u64 features) {
  struct linux_driver* driver = calloc(1, sizeof *driver);
  if (!driver) return NULL;
  driver->device.features = features;
  INIT_LIST_HEAD(&driver->device.vqs);
  spin_lock_init(&driver->device.vqs_list_lock);
  return driver;
}

static struct linux_driver* with(struct linux_driver* driver, struct virtqueue* queue) {
  driver->queue = queue;
  if (queue) return driver;
  free(driver);
  return NULL;
}

struct linux_driver* linux_driver_create(unsigned size, int has_event_index, int has_indirect,
                                         void* ring) {
  struct linux_driver* driver = create(feature_bits(has_event_index, has_indirect));
  if (!driver) return NULL;
  return with(driver, vring_new_virtqueue(0, size, ring_alignment, &driver->device, true, false,
                                          ring, refuse_to_notify, count_call, "interop"));
}

struct linux_driver* linux_driver_create_packed(unsigned size, int has_event_index,
                                                int has_indirect) {
  struct linux_driver* driver =
      create(feature_bits(has_event_index, has_indirect) | 1ull << VIRTIO_F_RING_PACKED);
  if (!driver) return NULL;
  return with(driver, vring_create_virtqueue(0, size, ring_alignment, &driver->device, true, false,
                                             false, refuse_to_notify, count_call, "interop"));
}

void linux_driver_destroy(struct linux_driver* driver) {
  vring_del_virtqueue(driver->queue);
  free(driver);
}

void linux_driver_areas(const struct linux_driver* driver, uint64_t areas[3]) {
  if (virtio_has_feature(&driver->device, VIRTIO_F_RING_PACKED)) {
    areas[0] = virtqueue_get_desc_addr(driver->queue);
    areas[1] = virtqueue_get_avail_addr(driver->queue);
    areas[2] = virtqueue_get_used_addr(driver->queue);
  } else {
    // Those functions want a ring that Linux allocated.
    const struct vring* ring = virtqueue_get_vring(driver->queue);
    areas[0] = (uintptr_t)ring->desc;
    areas[1] = (uintptr_t)ring->avail;
    areas[2] = (uintptr_t)ring->used;
  }
}

int linux_driver_add(struct linux_driver* driver, const struct linux_buffer* buffers,
                     unsigned readable, unsigned writable, void* token) {
  struct scatterlist entries[most_buffers];
  struct scatterlist* lists[2];
  unsigned count = 0, i;

  if (readable + writable == 0 || readable + writable > most_buffers) return -EINVAL;
  if (readable) {
    sg_init_table(entries, readable);
    lists[count++] = entries;
  }
  if (writable) {
    sg_init_table(entries + readable, writable);
    lists[count++] = entries + readable;
  }
  for (i = 0; i < readable + writable; ++i)
    sg_set_buf(&entries[i], buffers[i].address, buffers[i].length);
  return virtqueue_add_sgs(driver->queue, lists, readable != 0, writable != 0, token, GFP_KERNEL);
}

int linux_driver_kick_prepare(struct linux_driver* driver) {
  return virtqueue_kick_prepare(driver->queue);
}

void* linux_driver_get_buf(struct linux_driver* driver, uint32_t* length) {
  unsigned written = 0;
  void* token = virtqueue_get_buf(driver->queue, &written);
  *length = written;
  return token;
}

void linux_driver_disable_cb(struct linux_driver* driver) { virtqueue_disable_cb(driver->queue); }

int linux_driver_enable_cb(struct linux_driver* driver) {
  return virtqueue_enable_cb(driver->queue);
}

int linux_driver_enable_cb_delayed(struct linux_driver* driver) {
  return virtqueue_enable_cb_delayed(driver->queue);
}

int linux_driver_interrupt(struct linux_driver* driver) {
  const unsigned long calls = driver->calls;
  vring_interrupt(0, driver->queue);
  return driver->calls != calls;
}

int linux_driver_is_broken(const struct linux_driver* driver) {
  return virtqueue_is_broken(driver->queue);
}

unsigned linux_driver_free_descriptors(const struct linux_driver* driver) {
  return driver->queue->num_free;
}

// --- the device

struct linux_device {
  struct vringh ring;
  struct vringh_kiov readable, writable;
};

struct linux_device* linux_device_create(unsigned size, int has_event_index, int has_indirect,
                                         const uint64_t areas[3]) {
  struct linux_device* device = calloc(1, sizeof *device);
  if (!device) return NULL;
  vringh_kiov_init(&device->readable, NULL, 0);
  vringh_kiov_init(&device->writable, NULL, 0);
  if (vringh_init_kern(&device->ring, feature_bits(has_event_index, has_indirect), size, true,
                       (struct vring_desc*)(uintptr_t)areas[0],
                       (struct vring_avail*)(uintptr_t)areas[1],
                       (struct vring_used*)(uintptr_t)areas[2]) == 0)
    return device;
  free(device);
  return NULL;
}

void linux_device_destroy(struct linux_device* device) {
  vringh_kiov_cleanup(&device->readable);
  vringh_kiov_cleanup(&device->writable);
  free(device);
}

static unsigned list(const struct vringh_kiov* from, struct linux_buffer* to, unsigned limit) {
  unsigned i;
  for (i = 0; i < from->used && i < limit; ++i) {
    to[i].address = from->iov[i].iov_base;
    to[i].length = from->iov[i].iov_len;
  }
  return i;
}

int linux_device_getdesc(struct linux_device* device, uint16_t* head, struct linux_buffer* buffers,
                         unsigned limit, unsigned* readable, unsigned* writable) {
  const int found =
      vringh_getdesc_kern(&device->ring, &device->readable, &device->writable, head, GFP_KERNEL);
  unsigned listed;

  if (found != 1) return found;
  listed = list(&device->readable, buffers, limit);
  list(&device->writable, buffers + listed, limit - listed);
  *readable = device->readable.used;
  *writable = device->writable.used;
  return 1;
}

ptrdiff_t linux_device_pull(struct linux_device* device, void* to, size_t size) {
  return vringh_iov_pull_kern(&device->readable, to, size);
}

ptrdiff_t linux_device_push(struct linux_device* device, const void* from, size_t size) {
  return vringh_iov_push_kern(&device->writable, from, size);
}

int linux_device_complete(struct linux_device* device, uint16_t head, uint32_t length) {
  return vringh_complete_kern(&device->ring, head, length);
}

int linux_device_need_notify(struct linux_device* device) {
  return vringh_need_notify_kern(&device->ring);
}

int linux_device_notify_enable(struct linux_device* device) {
  return vringh_notify_enable_kern(&device->ring);
}

void linux_device_notify_disable(struct linux_device* device) {
  vringh_notify_disable_kern(&device->ring);
}
