// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// Linux's virtio core, its virtio-mmio transport and its balloon driver in this process: the code is
// Linux's, what it wants of the rest of a kernel is in linux_kernel.c. One machine, one thread. What
// the build of the tests makes of it contains code of Linux and stays in the build directory.

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What the kernel runs on.
struct linux_hardware {
  void* context;
  uint64_t (*read)(void* context, uint64_t offset, unsigned width); // registers, width in bytes
  void (*write)(void* context, uint64_t offset, unsigned width, uint64_t value);
  int (*wait)(void* context); // the kernel sleeps: the device may run and interrupt; 0: it did not
};

// Guest-physical addresses begin there; RAM is a whole number of blocks of 4 MiB.
enum { linux_ram_begin = 0x140000000 };

void linux_boot(const struct linux_hardware* on, void* ram, size_t bytes);
// virtio_mmio_probe() and all that follows from it: 0 or a negative errno.
int linux_plug(void);
void linux_unplug(void);
// rmmod and insmod of virtio_balloon.
void linux_remove_balloon(void);
void linux_insert_balloon(void);
int linux_suspend(void);
int linux_resume(void);
// vm_interrupt(): whether it was the device's.
int linux_interrupt(void);
// One piece of work that was queued: whether there was any.
int linux_work(void);

// Whether a driver has the device; the features that were agreed on.
int linux_has_driver(void);
uint64_t linux_features(void);
// Fields of a byte each, read together: as often as the generation changes meanwhile.
void linux_read_config(unsigned offset, void* to, size_t size);
// vm_get_shm_region(): whether there is one.
int linux_has_shared_memory(unsigned id);

// What the driver can ask the kernel, and does of itself.
enum { linux_events = 14 };
uint64_t linux_event(unsigned item); // all_vm_events()
uint64_t linux_free_bytes(void);
uint64_t linux_total_bytes(void);
uint64_t linux_cached_bytes(void);
void linux_set_poison(int is_poisoned, int is_zeroed); // page_poison=1, init_on_free=1
// Takes so many pages away, as a process does; gives them back.
size_t linux_take_pages(size_t count);
void linux_give_pages(void);
// The out of memory notifier: how many pages it freed.
unsigned long linux_out_of_memory(void);
// The shrinker: how many pages there are to free, and frees them.
unsigned long linux_shrinkable(void);
unsigned long linux_shrink(unsigned long pages);
// Moves so many pages of the balloon to other places; how many were moved.
unsigned linux_compact(unsigned count);
// Reports so many free blocks of 2 MiB and gives them back; 0, or a negative errno. The addresses
// of what was reported are guest-physical.
int linux_report(unsigned blocks, uint64_t* addresses);

// A driver of another device, of two queues, whose chains are the test's. At most 64 buffers, the
// readable ones first, in memory that linux_memory() gave (whole pages, until the next boot).
enum { linux_chain_device = 63, linux_chain_queues = 2 };
struct linux_chain_buffer {
  void* address;
  uint32_t length;
};
void* linux_memory(size_t bytes);
int linux_chain_add(unsigned queue, const struct linux_chain_buffer* buffers, unsigned readable,
                    unsigned writable, void* token); // 0 or a negative errno: -ENOSPC
void linux_chain_kick(unsigned queue);               // and vm_notify(), where that is due
void* linux_chain_get(unsigned queue, uint32_t* length);
int linux_chain_was_called(unsigned queue); // by vm_interrupt(), since the last time this was asked
void linux_chain_disable_cb(unsigned queue);
int linux_chain_enable_cb(unsigned queue); // 0: chains are waiting
int linux_chain_enable_cb_delayed(unsigned queue);
unsigned linux_chain_size(unsigned queue);
unsigned linux_chain_free_descriptors(unsigned queue);
int linux_chain_is_broken(unsigned queue);

#ifdef __cplusplus
}
#endif
