// SPDX-License-Identifier: BSD-3-Clause
// What Linux's virtio code wants from the rest of the kernel and tools/virtio does not have: own
// declarations, done by linux_kernel.c in one thread. Included before everything else, and instead
// of the kernel's headers that declare such things.
#pragma once

// A page's descriptor is not in the page: what a device discards must not be what the kernel
// keeps of it.
#define page page_of_tools_virtio
#include <linux/kernel.h>
#undef page
#include <linux/bug.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/irqreturn.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#define might_sleep() ((void)0)
#define panic(...) abort()
#define dev_info_ratelimited(...) ((void)0)
#define pr_info(...) ((void)0)
#define typecheck(type, value) ((void)0)
#define BIT_ULL(n) (1ULL << (n))
#define ALIGN(n, to) (((n) + (to) - 1) / (to) * (to))
#define __init
#define __exit
#define __initconst
#define THIS_MODULE NULL
#define KBUILD_MODNAME "in process"
struct module;

// --- modules: linux_kernel.c calls what they register
#define module_init(function) int linux_init_##function(void) { return function(); }
#define core_initcall(function) module_init(function)
#define module_exit(function) void linux_exit_##function(void) { function(); }
#define module_driver(driver, add, remove)                                                         \
  int linux_init_##driver(void) { return add(&driver); }                                           \
  void linux_exit_##driver(void) { remove(&driver); }
#define MODULE_DEVICE_TABLE(type, table) _Static_assert(1, "")
#define MODULE_AUTHOR(text) _Static_assert(1, "")

// --- memory: a guest's, whose physical addresses begin at linux_ram_base
#undef PAGE_SIZE
#undef PAGE_MASK
#define PAGE_SHIFT 12
#define PAGE_SIZE (1ul << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define MAX_PAGE_ORDER 10
#define pageblock_order 9
#undef virt_to_phys
#undef phys_to_virt
#undef page_to_phys
#undef virt_to_page
enum { linux_ram_base = 0x140000000 }; // above 4 GiB: addresses have two halves
struct page {
  struct list_head lru;
  unsigned references;
  unsigned allocated; // pages of the block that begins here; 0: none does
  unsigned slab;      // bytes of an object, where the page has such
};
extern char *linux_ram;
extern struct page *linux_pages;
#define virt_to_phys(pointer) ((unsigned long)((char *)(pointer) - linux_ram) + linux_ram_base)
#define page_to_pfn(page) ((unsigned long)((page) - linux_pages) + (linux_ram_base >> PAGE_SHIFT))
#define page_address(page) ((void *)(linux_ram + ((unsigned long)((page) - linux_pages) << PAGE_SHIFT)))
#define page_to_phys(page) ((dma_addr_t)page_to_pfn(page) << PAGE_SHIFT)
#define virt_to_page(pointer) (&linux_pages[((char *)(pointer) - linux_ram) >> PAGE_SHIFT])
#define page_zone(page) ((page), 0)
struct page *linux_alloc_pages(unsigned order);
void linux_free_pages(struct page *page);
void *linux_alloc(size_t size); // zeroed
void linux_free(const void *pointer);
#define kmalloc(size, how) linux_alloc(size)
#define kzalloc(size, how) linux_alloc(size)
#define kcalloc(count, size, how) linux_alloc((size_t)(count) * (size))
#define kmalloc_array(count, size, how) linux_alloc((size_t)(count) * (size))
#define kfree(pointer) linux_free(pointer)
#define alloc_pages_exact(size, how) linux_alloc(size < PAGE_SIZE ? PAGE_SIZE : size)
#define free_pages_exact(pointer, size) linux_free(pointer)
#define alloc_pages(how, order) linux_alloc_pages(order)
#define free_pages(address, order) linux_free_pages(virt_to_page(address))
void put_page(struct page *page);
#define get_page(page) ((void)++(page)->references)
void adjust_managed_page_count(struct page *page, long count);
#define __GFP_NORETRY 0
#define __GFP_NOMEMALLOC 0
#define GFP_NOWAIT 0
#define PAGE_POISON 0xaa
bool want_init_on_free(void);
bool page_poisoning_enabled_static(void);
#define round_up(n, to) ALIGN(n, to)

// --- statistics
enum vm_event_item {
  PSWPIN, PSWPOUT, PGMAJFAULT, PGFAULT, OOM_KILL, ALLOCSTALL_NORMAL, ALLOCSTALL_MOVABLE,
  PGSCAN_KSWAPD, PGSCAN_DIRECT, PGSTEAL_KSWAPD, PGSTEAL_DIRECT, HTLB_BUDDY_PGALLOC,
  HTLB_BUDDY_PGALLOC_FAIL, BALLOON_MIGRATE, NR_VM_EVENT_ITEMS
};
enum { ZONE_NORMAL, ZONE_MOVABLE, MAX_NR_ZONES };
enum { NR_FILE_PAGES };
struct sysinfo {
  unsigned long totalram, freeram;
};
void all_vm_events(unsigned long *events);
#define __count_vm_event(item) ((void)0)
void si_meminfo(struct sysinfo *info);
long si_mem_available(void);
unsigned long global_node_page_state(int item);

// --- work, waiting, time
struct work_struct {
  void (*run)(struct work_struct *work);
  struct work_struct *next;
  bool is_queued;
};
struct workqueue_struct {
  int unused;
};
extern struct workqueue_struct *system_freezable_wq;
#define INIT_WORK(work, function) ((work)->run = (function), (work)->is_queued = false)
bool queue_work(struct workqueue_struct *queue, struct work_struct *work);
bool cancel_work_sync(struct work_struct *work);
#define WQ_FREEZABLE 0
#define WQ_CPU_INTENSIVE 0
#define alloc_workqueue(...) system_freezable_wq
#define destroy_workqueue(queue) ((void)(queue))
typedef struct {
  int unused;
} wait_queue_head_t;
#define init_waitqueue_head(head) ((void)(head))
#define wake_up(head) ((void)(head))
void linux_wait(void); // lets the device run
#define wait_event(head, condition)                                                                \
  do {                                                                                             \
    while (!(condition)) linux_wait();                                                             \
  } while (0)
void msleep(unsigned milliseconds);
struct completion {
  int unused;
};
struct mutex {
  bool is_locked;
};
#define mutex_init(mutex) ((mutex)->is_locked = false)
#define mutex_lock(mutex) (assert(!(mutex)->is_locked), (mutex)->is_locked = true)
#define mutex_trylock(mutex) ((mutex)->is_locked ? 0 : ((mutex)->is_locked = true))
#define mutex_unlock(mutex) ((mutex)->is_locked = false)
#define test_and_set_bit(n, bits)                                                                  \
  ((__atomic_fetch_or(bits, 1ul << (n), __ATOMIC_SEQ_CST) >> (n)) & 1)
#define test_and_clear_bit(n, bits)                                                                \
  ((__atomic_fetch_and(bits, ~(1ul << (n)), __ATOMIC_SEQ_CST) >> (n)) & 1)
#define synchronize_rcu() ((void)0)

// --- who gives memory back
struct notifier_block {
  int (*notifier_call)(struct notifier_block *block, unsigned long action, void *data);
  int priority;
};
#define NOTIFY_OK 1
int register_oom_notifier(struct notifier_block *block);
int unregister_oom_notifier(struct notifier_block *block);
struct shrink_control {
  unsigned long nr_to_scan;
};
struct shrinker {
  unsigned long (*scan_objects)(struct shrinker *, struct shrink_control *);
  unsigned long (*count_objects)(struct shrinker *, struct shrink_control *);
  void *private_data;
};
struct shrinker *shrinker_alloc(unsigned flags, const char *name);
void shrinker_register(struct shrinker *shrinker);
void shrinker_free(struct shrinker *shrinker);
struct scatterlist;
#define PAGE_REPORTING_CAPACITY 32
struct page_reporting_dev_info {
  int (*report)(struct page_reporting_dev_info *info, struct scatterlist *list, unsigned count);
  unsigned order;
};
int page_reporting_register(struct page_reporting_dev_info *info);
void page_reporting_unregister(struct page_reporting_dev_info *info);
enum migrate_mode { MIGRATE_SYNC };
#define MIGRATEPAGE_SUCCESS 0
struct balloon_dev_info {
  unsigned long isolated_pages;
  spinlock_t pages_lock;
  struct list_head pages;
  int (*migratepage)(struct balloon_dev_info *, struct page *to, struct page *from,
                     enum migrate_mode mode);
};
void balloon_devinfo_init(struct balloon_dev_info *info);
struct page *balloon_page_alloc(void);
void balloon_page_enqueue(struct balloon_dev_info *info, struct page *page);
struct page *balloon_page_dequeue(struct balloon_dev_info *info);
void balloon_page_push(struct list_head *pages, struct page *page);
struct page *balloon_page_pop(struct list_head *pages);
#define balloon_page_insert(info, page) list_add(&(page)->lru, &(info)->pages)
#define balloon_page_finalize(page) ((void)(page))

// --- the driver model
struct device_node;
struct kobj_uevent_env;
#define add_uevent_var(...) 0
struct attribute {
  const char *name;
};
struct attribute_group {
  struct attribute **attributes;
};
struct device;
struct device_driver;
struct device_attribute {
  struct attribute attr;
  ssize_t (*show)(struct device *, struct device_attribute *, char *);
};
#define DEVICE_ATTR_RO(name) struct device_attribute dev_attr_##name = {{#name}, name##_show}
#define ATTRIBUTE_GROUPS(name)                                                                     \
  static const struct attribute_group name##_group = {name##_attrs};                               \
  static const struct attribute_group *name##_groups[] = {&name##_group, NULL}
#define sysfs_emit(to, ...) sprintf(to, __VA_ARGS__)
#define sysfs_emit_at(to, at, ...) sprintf((to) + (at), __VA_ARGS__)
struct bus_type {
  const char *name;
  int (*match)(struct device *, const struct device_driver *);
  int (*uevent)(const struct device *, struct kobj_uevent_env *);
  int (*probe)(struct device *);
  void (*remove)(struct device *);
  void (*shutdown)(struct device *);
  const struct attribute_group **dev_groups;
};
struct dev_pm_ops {
  int (*freeze)(struct device *);
  int (*restore)(struct device *);
};
#define SET_SYSTEM_SLEEP_PM_OPS(suspend, resume) .freeze = suspend, .restore = resume
struct of_device_id {
  const char *compatible;
};
struct acpi_device_id {
  const char *id;
};
#define ACPI_PTR(table) NULL
struct device_driver {
  const char *name;
  const struct bus_type *bus;
  struct module *owner;
  const struct of_device_id *of_match_table;
  const struct acpi_device_id *acpi_match_table;
  const struct dev_pm_ops *pm;
};
struct device {
  struct device *parent;
  const struct bus_type *bus;
  struct device_driver *driver;
  struct device_node *of_node;
  void *driver_data;
  void (*release)(struct device *);
  char name[16];
};
#define container_of_const(pointer, type, member) container_of((void *)(pointer), type, member)
#define device_initialize(device) ((void)(device))
#define dev_set_name(device, ...) (snprintf((device)->name, sizeof (device)->name, __VA_ARGS__), 0)
#define dev_name(device) ((device)->name)
#define dev_get_drvdata(device) ((device)->driver_data)
#define dev_of_node(device) ((device)->of_node)
#define of_get_available_child_count(node) 0
#define of_get_next_available_child(node, previous) ((struct device_node *)NULL)
#define of_device_is_compatible(node, name) 0
#define of_node_put(node) ((void)(node))
#define of_property_read_bool(node, name) 0
#define device_set_wakeup_capable(device, is_capable) ((void)(device))
#define pm_stay_awake(device) ((void)(device))
#define pm_relax(device) ((void)(device))
int bus_register(const struct bus_type *bus);
void bus_unregister(const struct bus_type *bus);
int device_add(struct device *device);
void device_unregister(struct device *device);
#define put_device(device) (device)->release(device)
int driver_register(struct device_driver *driver);
void driver_unregister(struct device_driver *driver);
struct ida {
  int next;
};
#define DEFINE_IDA(name) struct ida name
#define ida_alloc(ida, how) ((ida)->next++)
#define ida_free(ida, id) ((void)(id))
#define ida_destroy(ida) ((void)(ida))
struct virtio_device_id {
  __u32 device, vendor;
};
#define VIRTIO_DEV_ANY_ID 0xffffffff
struct virtio_device;
static inline bool virtio_check_mem_acc_cb(struct virtio_device *device) {
  (void)device;
  return false;
}

// --- platform devices, their registers and interrupt
struct platform_device {
  const char *name;
  struct device dev;
};
struct platform_driver {
  int (*probe)(struct platform_device *);
  void (*remove_new)(struct platform_device *);
  struct device_driver driver;
};
int platform_driver_register(struct platform_driver *driver);
void platform_driver_unregister(struct platform_driver *driver);
#define platform_set_drvdata(device, data) ((device)->dev.driver_data = (data))
#define platform_get_drvdata(device) ((device)->dev.driver_data)
#define to_platform_device(device) container_of(device, struct platform_device, dev)
int platform_get_irq(struct platform_device *device, unsigned index);
void *devm_platform_ioremap_resource(struct platform_device *device, unsigned index);
#define __iomem
#define IRQF_SHARED 0
typedef irqreturn_t (*irq_handler_t)(int, void *);
int request_irq(int irq, irq_handler_t handler, unsigned long flags, const char *name, void *of);
const void *free_irq(int irq, void *of);
#define synchronize_irq(irq) ((void)(irq))
#define enable_irq_wake(irq) 0
#define disable_irq_wake(irq) ((void)(irq))
u64 linux_register_read(const void *at, unsigned width);
void linux_register_write(void *at, unsigned width, u64 value);
#define readb(at) ((u8)linux_register_read(at, 1))
#define readw(at) ((u16)linux_register_read(at, 2))
#define readl(at) ((u32)linux_register_read(at, 4))
#define ioread32(at) readl(at)
#define writeb(value, at) linux_register_write(at, 1, value)
#define writew(value, at) linux_register_write(at, 2, value)
#define writel(value, at) linux_register_write(at, 4, value)
#define DMA_BIT_MASK(n) (~0ull >> (64 - (n)))
#define dma_set_mask(device, mask) 0
#define dma_set_coherent_mask(device, mask) 0
#define dma_set_mask_and_coherent(device, mask) 0
