// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// Linux's own ends of a virtqueue, in this process: addresses are pointers. What the build of
// the tests makes of it contains code of Linux and stays in the build directory.

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct linux_buffer {
  void* address;
  uint32_t length;
};

// --- drivers/virtio/virtio_ring.c: the driver

struct linux_driver;

// `ring` is zeroed, aligned to 4096 and of linux_driver_ring_bytes(size); the caller keeps it.
size_t linux_driver_ring_bytes(unsigned size);
struct linux_driver* linux_driver_create(unsigned size, int has_event_index, int has_indirect,
                                         void* ring);
// A packed ring, which Linux allocates itself.
struct linux_driver* linux_driver_create_packed(unsigned size, int has_event_index,
                                                int has_indirect);
void linux_driver_destroy(struct linux_driver* driver);
// Descriptor, driver and device area.
void linux_driver_areas(const struct linux_driver* driver, uint64_t areas[3]);
// The readable buffers, then the writable ones; at most 64. 0 or a negative errno: -ENOSPC where
// the ring is full.
int linux_driver_add(struct linux_driver* driver, const struct linux_buffer* buffers,
                     unsigned readable, unsigned writable, void* token);
int linux_driver_kick_prepare(struct linux_driver* driver);
void* linux_driver_get_buf(struct linux_driver* driver, uint32_t* length);
void linux_driver_disable_cb(struct linux_driver* driver);
// 0: chains are waiting.
int linux_driver_enable_cb(struct linux_driver* driver);
int linux_driver_enable_cb_delayed(struct linux_driver* driver);
// vring_interrupt(); whether it called the driver.
int linux_driver_interrupt(struct linux_driver* driver);
int linux_driver_is_broken(const struct linux_driver* driver);
unsigned linux_driver_free_descriptors(const struct linux_driver* driver);

// --- drivers/vhost/vringh.c: the device, with its functions for rings in kernel memory

struct linux_device;

struct linux_device* linux_device_create(unsigned size, int has_event_index, int has_indirect,
                                         const uint64_t areas[3]);
void linux_device_destroy(struct linux_device* device);
// 1: a chain, whose first `limit` buffers are in `buffers`; 0: none; or a negative errno.
int linux_device_getdesc(struct linux_device* device, uint16_t* head, struct linux_buffer* buffers,
                         unsigned limit, unsigned* readable, unsigned* writable);
// The payload of the chain fetched last: how many bytes were copied, or a negative errno.
ptrdiff_t linux_device_pull(struct linux_device* device, void* to, size_t size);
ptrdiff_t linux_device_push(struct linux_device* device, const void* from, size_t size);
int linux_device_complete(struct linux_device* device, uint16_t head, uint32_t length);
int linux_device_need_notify(struct linux_device* device);
// 0: chains are waiting.
int linux_device_notify_enable(struct linux_device* device);
void linux_device_notify_disable(struct linux_device* device);

#ifdef __cplusplus
}
#endif
