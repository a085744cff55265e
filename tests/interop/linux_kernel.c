// SPDX-License-Identifier: BSD-3-Clause
// Compiled by linux_mmio.sh; linux_stubs/kernel_parts.h comes first.

#include <linux/scatterlist.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "linux_kernel.h"

void *__kmalloc_fake, *__kfree_ignore_start, *__kfree_ignore_end;
void *__user_addr_min, *__user_addr_max;

static const struct linux_hardware* hardware;

static void stop(const char* why) {
  printf("FAIL Linux in process: %s\n", why);
  fflush(stdout);
  abort();
}

// --- memory

enum { block_pages = 1 << MAX_PAGE_ORDER, slab_smallest = 32, slab_classes = 7 };
char* linux_ram;
struct page* linux_pages;
static size_t page_count, free_count;
static void* slabs[slab_classes]; // free objects of 32 to 2048 bytes
static bool is_poisoned, is_zeroed;

static bool is_free_run(size_t from, size_t count) {
  size_t i;
  for (i = from; i < from + count; ++i)
    if (linux_pages[i].references) return false;
  return true;
}

static struct page* take_pages(size_t count, size_t alignment) {
  size_t at, i;
  if (count > free_count) return NULL;
  for (at = 0; at + count <= page_count; at += alignment)
    if (is_free_run(at, count)) break;
  if (at + count > page_count) return NULL;
  for (i = at; i < at + count; ++i) linux_pages[i].references = 1;
  linux_pages[at].allocated = count;
  linux_pages[at].slab = 0;
  free_count -= count;
  return &linux_pages[at];
}

struct page* linux_alloc_pages(unsigned order) { return take_pages(1ul << order, 1ul << order); }

void linux_free_pages(struct page* page) {
  const unsigned count = page->allocated;
  unsigned i;
  if (!count) stop("a page is freed that was not allocated");
  page->allocated = 0;
  for (i = 0; i < count; ++i) page[i].references = 0;
  free_count += count;
}

void put_page(struct page* page) {
  if (page->references == 1) linux_free_pages(page);
  else --page->references;
}

static unsigned slab_class(size_t size) {
  unsigned class = 0;
  while ((size_t)slab_smallest << class < size) ++class;
  return class;
}

void* linux_alloc(size_t size) {
  const unsigned class = slab_class(size);
  void** object;
  if (class >= slab_classes) {
    struct page* page = take_pages((size + PAGE_SIZE - 1) / PAGE_SIZE, 1);
    if (page) memset(page_address(page), 0, size);
    return page ? page_address(page) : NULL;
  }
  if (!slabs[class]) {
    struct page* page = take_pages(1, 1);
    const size_t step = (size_t)slab_smallest << class;
    size_t at;
    if (!page) return NULL;
    page->slab = step;
    for (at = 0; at < PAGE_SIZE; at += step) {
      object = (void**)((char*)page_address(page) + at);
      *object = slabs[class];
      slabs[class] = object;
    }
  }
  object = slabs[class];
  slabs[class] = *object;
  return memset(object, 0, (size_t)slab_smallest << class);
}

void linux_free(const void* pointer) {
  struct page* page;
  unsigned class;
  if (!pointer) return;
  page = virt_to_page(pointer);
  if (!page->slab) {
    linux_free_pages(page);
    return;
  }
  class = slab_class(page->slab);
  *(void**)pointer = slabs[class];
  slabs[class] = (void*)pointer;
}

void adjust_managed_page_count(struct page* page, long count) {
  (void)page;
  (void)count;
}
bool want_init_on_free(void) { return is_zeroed; }
bool page_poisoning_enabled_static(void) { return is_poisoned; }
void linux_set_poison(int poisoned, int zeroed) {
  is_poisoned = poisoned;
  is_zeroed = zeroed;
}

static LIST_HEAD(taken);

size_t linux_take_pages(size_t count) {
  size_t i;
  for (i = 0; i < count; ++i) {
    struct page* page = linux_alloc_pages(0);
    if (!page) break;
    list_add(&page->lru, &taken);
  }
  return i;
}

void linux_give_pages(void) {
  struct page *page, *next;
  list_for_each_entry_safe(page, next, &taken, lru) {
    list_del(&page->lru);
    put_page(page);
  }
}

// --- statistics: no two alike

uint64_t linux_event(unsigned item) { return 1000 + 17 * item; }
uint64_t linux_free_bytes(void) { return free_count * PAGE_SIZE; }
uint64_t linux_total_bytes(void) { return page_count * PAGE_SIZE; }
uint64_t linux_cached_bytes(void) { return 321 * PAGE_SIZE; }

void all_vm_events(unsigned long* events) {
  unsigned i;
  _Static_assert(NR_VM_EVENT_ITEMS == linux_events, "every event has a value");
  for (i = 0; i < NR_VM_EVENT_ITEMS; ++i) events[i] = linux_event(i);
}
void si_meminfo(struct sysinfo* info) {
  info->totalram = page_count;
  info->freeram = free_count;
}
long si_mem_available(void) { return free_count + linux_cached_bytes() / PAGE_SIZE; }
unsigned long global_node_page_state(int item) {
  (void)item;
  return linux_cached_bytes() / PAGE_SIZE;
}

// --- work and waiting

static struct workqueue_struct work_queue;
struct workqueue_struct* system_freezable_wq = &work_queue;
static struct work_struct *first_work, **last_work = &first_work;

bool queue_work(struct workqueue_struct* queue, struct work_struct* work) {
  (void)queue;
  if (work->is_queued) return false;
  work->is_queued = true;
  work->next = NULL;
  *last_work = work;
  last_work = &work->next;
  return true;
}

bool cancel_work_sync(struct work_struct* work) {
  struct work_struct** at;
  for (at = &first_work; *at; at = &(*at)->next)
    if (*at == work) {
      *at = work->next;
      if (last_work == &work->next) last_work = at;
      work->is_queued = false;
      return true;
    }
  return false;
}

int linux_work(void) {
  struct work_struct* work = first_work;
  if (!work) return 0;
  cancel_work_sync(work);
  work->run(work);
  return 1;
}

void linux_wait(void) {
  if (!hardware->wait(hardware->context)) stop("a driver waits for ever");
}
void msleep(unsigned milliseconds) { (void)milliseconds; }

// --- who gives memory back

static struct notifier_block* oom_notifier;
static struct shrinker* the_shrinker;
static struct page_reporting_dev_info* reporting;
static struct balloon_dev_info* balloon;

int register_oom_notifier(struct notifier_block* block) {
  oom_notifier = block;
  return 0;
}
int unregister_oom_notifier(struct notifier_block* block) {
  (void)block;
  oom_notifier = NULL;
  return 0;
}
unsigned long linux_out_of_memory(void) {
  unsigned long freed = 0;
  if (oom_notifier) oom_notifier->notifier_call(oom_notifier, 0, &freed);
  return freed;
}

struct shrinker* shrinker_alloc(unsigned flags, const char* name) {
  (void)flags;
  (void)name;
  return linux_alloc(sizeof(struct shrinker));
}
void shrinker_register(struct shrinker* shrinker) { the_shrinker = shrinker; }
void shrinker_free(struct shrinker* shrinker) {
  the_shrinker = NULL;
  linux_free(shrinker);
}
unsigned long linux_shrinkable(void) {
  struct shrink_control control = {0};
  return the_shrinker ? the_shrinker->count_objects(the_shrinker, &control) : 0;
}
unsigned long linux_shrink(unsigned long pages) {
  struct shrink_control control = {pages};
  return the_shrinker ? the_shrinker->scan_objects(the_shrinker, &control) : 0;
}

int page_reporting_register(struct page_reporting_dev_info* info) {
  reporting = info;
  return 0;
}
void page_reporting_unregister(struct page_reporting_dev_info* info) {
  (void)info;
  reporting = NULL;
}
int linux_report(unsigned blocks, uint64_t* addresses) {
  struct scatterlist list[PAGE_REPORTING_CAPACITY];
  struct page* pages[PAGE_REPORTING_CAPACITY];
  unsigned i, count = 0;
  int done;
  if (!reporting || blocks > PAGE_REPORTING_CAPACITY) return -ENODEV;
  sg_init_table(list, blocks);
  for (; count < blocks; ++count) {
    pages[count] = linux_alloc_pages(pageblock_order);
    if (!pages[count]) break;
    sg_set_page(&list[count], pages[count], PAGE_SIZE << pageblock_order, 0);
    addresses[count] = page_to_phys(pages[count]);
  }
  done = count == blocks ? reporting->report(reporting, list, count) : -ENOMEM;
  for (i = 0; i < count; ++i) linux_free_pages(pages[i]);
  return done;
}

void balloon_devinfo_init(struct balloon_dev_info* info) {
  info->isolated_pages = 0;
  spin_lock_init(&info->pages_lock);
  INIT_LIST_HEAD(&info->pages);
  balloon = info;
}
struct page* balloon_page_alloc(void) { return linux_alloc_pages(0); }
void balloon_page_push(struct list_head* pages, struct page* page) { list_add(&page->lru, pages); }
struct page* balloon_page_pop(struct list_head* pages) {
  struct page* page;
  if (list_empty(pages)) return NULL;
  page = list_first_entry(pages, struct page, lru);
  list_del(&page->lru);
  return page;
}
void balloon_page_enqueue(struct balloon_dev_info* info, struct page* page) {
  list_add(&page->lru, &info->pages);
}
struct page* balloon_page_dequeue(struct balloon_dev_info* info) {
  return balloon_page_pop(&info->pages);
}
unsigned linux_compact(unsigned count) {
  unsigned done = 0;
  for (; done < count && balloon && !list_empty(&balloon->pages); ++done) {
    struct page* from = list_entry(balloon->pages.prev, struct page, lru);
    struct page* to = linux_alloc_pages(0);
    if (!to) break;
    list_del(&from->lru); // isolated
    ++balloon->isolated_pages;
    if (balloon->migratepage(balloon, to, from, MIGRATE_SYNC) != MIGRATEPAGE_SUCCESS)
      stop("a page of the balloon could not be moved");
    put_page(to); // the one who moved it
  }
  return done;
}

// --- the driver model

static struct device* the_device; // on the virtio bus
static struct device_driver* drivers[2];
enum { most_drivers = sizeof drivers / sizeof drivers[0] };
static struct platform_driver* the_platform_driver;
static struct platform_device platform;
static irq_handler_t handler;
static void* handler_of;
enum { the_irq = 7 };

static void bind(struct device_driver* driver) {
  if (!driver || !the_device || the_device->driver) return;
  if (!driver->bus->match(the_device, driver)) return;
  the_device->driver = driver;
  if (driver->bus->probe(the_device) != 0) the_device->driver = NULL;
}
static void unbind(void) {
  if (!the_device || !the_device->driver) return;
  the_device->driver->bus->remove(the_device);
  the_device->driver = NULL;
}

int bus_register(const struct bus_type* bus) {
  (void)bus;
  return 0;
}
void bus_unregister(const struct bus_type* bus) { (void)bus; }
int device_add(struct device* device) {
  unsigned i;
  the_device = device;
  for (i = 0; i < most_drivers; ++i) bind(drivers[i]);
  return 0;
}
void device_unregister(struct device* device) {
  unbind();
  the_device = NULL;
  device->release(device);
}
int driver_register(struct device_driver* driver) {
  unsigned i = 0;
  while (drivers[i]) ++i;
  drivers[i] = driver;
  bind(driver);
  return 0;
}
void driver_unregister(struct device_driver* driver) {
  unsigned i = 0;
  if (the_device && the_device->driver == driver) unbind();
  while (drivers[i] != driver) ++i;
  drivers[i] = NULL;
}
int platform_driver_register(struct platform_driver* driver) {
  the_platform_driver = driver;
  return 0;
}
void platform_driver_unregister(struct platform_driver* driver) {
  (void)driver;
  the_platform_driver = NULL;
}
int platform_get_irq(struct platform_device* device, unsigned index) {
  (void)device;
  return index == 0 ? the_irq : -ENXIO;
}
int request_irq(int irq, irq_handler_t function, unsigned long flags, const char* name, void* of) {
  (void)flags;
  (void)name;
  if (irq != the_irq || handler) return -EBUSY;
  handler = function;
  handler_of = of;
  return 0;
}
const void* free_irq(int irq, void* of) {
  if (irq != the_irq || of != handler_of) stop("an interrupt is freed that was not requested");
  handler = NULL;
  return NULL;
}

int linux_interrupt(void) { return handler && handler(the_irq, handler_of) == IRQ_HANDLED; }

// Registers are at no address that can be accessed: every access goes through the functions.
static char* const registers = (char*)0x10000;

void* devm_platform_ioremap_resource(struct platform_device* device, unsigned index) {
  (void)device;
  return index == 0 ? registers : ERR_PTR(-EINVAL);
}
u64 linux_register_read(const void* at, unsigned width) {
  return hardware->read(hardware->context, (const char*)at - registers, width);
}
void linux_register_write(void* at, unsigned width, u64 value) {
  hardware->write(hardware->context, (char*)at - registers, width, value);
}

// --- a driver whose chains are the test's

enum { most_buffers = 64 };
static struct virtqueue* chain_queues[linux_chain_queues];
static bool was_called[linux_chain_queues];

static void chain_callback(struct virtqueue* queue) { was_called[queue->index] = true; }

static int chain_probe(struct virtio_device* device) {
  struct virtqueue_info info[linux_chain_queues] = {{"first", chain_callback},
                                                    {"second", chain_callback}};
  memset(was_called, 0, sizeof was_called);
  return virtio_find_vqs(device, linux_chain_queues, chain_queues, info, NULL);
}
static void chain_remove(struct virtio_device* device) {
  virtio_reset_device(device);
  device->config->del_vqs(device);
}
static const struct virtio_device_id chain_ids[] = {{linux_chain_device, VIRTIO_DEV_ANY_ID}, {0, 0}};
static struct virtio_driver chain_driver = {
    .id_table = chain_ids, .probe = chain_probe, .remove = chain_remove};

void* linux_memory(size_t bytes) { return linux_alloc(bytes < PAGE_SIZE ? PAGE_SIZE : bytes); }

int linux_chain_add(unsigned queue, const struct linux_chain_buffer* buffers, unsigned readable,
                    unsigned writable, void* token) {
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
  return virtqueue_add_sgs(chain_queues[queue], lists, readable != 0, writable != 0, token,
                           GFP_KERNEL);
}
void linux_chain_kick(unsigned queue) { virtqueue_kick(chain_queues[queue]); }
void* linux_chain_get(unsigned queue, uint32_t* length) {
  unsigned written = 0;
  void* token = virtqueue_get_buf(chain_queues[queue], &written);
  *length = written;
  return token;
}
int linux_chain_was_called(unsigned queue) {
  const bool was = was_called[queue];
  was_called[queue] = false;
  return was;
}
void linux_chain_disable_cb(unsigned queue) { virtqueue_disable_cb(chain_queues[queue]); }
int linux_chain_enable_cb(unsigned queue) { return virtqueue_enable_cb(chain_queues[queue]); }
int linux_chain_enable_cb_delayed(unsigned queue) {
  return virtqueue_enable_cb_delayed(chain_queues[queue]);
}
unsigned linux_chain_size(unsigned queue) { return virtqueue_get_vring_size(chain_queues[queue]); }
unsigned linux_chain_free_descriptors(unsigned queue) { return chain_queues[queue]->num_free; }
int linux_chain_is_broken(unsigned queue) { return virtqueue_is_broken(chain_queues[queue]); }

// --- what the tests call

int linux_init_virtio_init(void);
int linux_init_virtio_mmio_init(void);
int linux_init_virtio_balloon_driver(void);
void linux_exit_virtio_balloon_driver(void);

void linux_boot(const struct linux_hardware* on, void* ram, size_t bytes) {
  static bool is_up;
  _Static_assert(linux_ram_begin == linux_ram_base, "one place for RAM");
  if (is_up) free(linux_pages);
  hardware = on;
  linux_ram = ram;
  page_count = free_count = bytes / PAGE_SIZE;
  linux_pages = calloc(page_count, sizeof *linux_pages);
  memset(slabs, 0, sizeof slabs);
  first_work = NULL;
  last_work = &first_work;
  INIT_LIST_HEAD(&taken);
  balloon = NULL;
  is_poisoned = is_zeroed = false;
  if (is_up) return;
  is_up = true;
  linux_init_virtio_init();
  linux_init_virtio_mmio_init();
  linux_init_virtio_balloon_driver();
  register_virtio_driver(&chain_driver);
}
int linux_plug(void) {
  platform.name = "virtio-mmio";
  return the_platform_driver->probe(&platform);
}
void linux_unplug(void) { the_platform_driver->remove_new(&platform); }
void linux_remove_balloon(void) { linux_exit_virtio_balloon_driver(); }
void linux_insert_balloon(void) { linux_init_virtio_balloon_driver(); }
int linux_suspend(void) { return the_platform_driver->driver.pm->freeze(&platform.dev); }
int linux_resume(void) { return the_platform_driver->driver.pm->restore(&platform.dev); }

int linux_has_driver(void) { return the_device && the_device->driver; }
uint64_t linux_features(void) {
  return the_device ? container_of(the_device, struct virtio_device, dev)->features : 0;
}
void linux_read_config(unsigned offset, void* to, size_t size) {
  virtio_cread_bytes(container_of(the_device, struct virtio_device, dev), offset, to, size);
}
int linux_has_shared_memory(unsigned id) {
  struct virtio_shm_region region;
  return virtio_get_shm_region(container_of(the_device, struct virtio_device, dev), &region, id);
}
