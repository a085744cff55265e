// SPDX-License-Identifier: BSD-3-Clause
// Linux's balloon driver on Linux's virtio-mmio transport, virtio core and rings, against our
// balloon device behind our registers: in one process and thread, with RAM that both sides share
// and an interrupt line that one side reads. Version 2 with split and packed rings, and version 1.

#include <ballast/balloon/device.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/transport/mmio_device.hpp>

#include "linux_kernel.h"
#include "linux_machine.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using balloon::statistic_tag;
namespace bits = balloon::feature;

/// A host that takes pages back by zeroing them, and remembers which.
struct host_pages {
  std::byte* ram = nullptr;
  std::set<std::uint64_t> discarded{}, hinted{};
  std::uint64_t filled_bytes = 0;
  std::uint32_t pattern = 0;

  bool discard(guest_address address, std::uint64_t size) noexcept {
    std::memset(ram + (address - linux_ram_begin), 0, size);
    for (std::uint64_t i = 0; i < size; i += 4096) discarded.insert(address + i);
    return true;
  }
  void provide(guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t i = 0; i < size; i += 4096) discarded.erase(address + i);
  }
  bool hint(guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t i = 0; i < size; i += 4096) hinted.insert(address + i);
    return true;
  }
  bool fill(guest_address, std::uint64_t size, std::uint32_t with) noexcept {
    filled_bytes += size;
    pattern = with;
    return true;
  }
};

/// The balloon with a feature of the transport, which Linux's mmio carries out. Its target changes
/// while Linux reads the configuration, so many times as a test says.
struct device_type : balloon::device<mapped_memory, host_pages> {
  host_pages& host;
  bool offers_data = false;
  std::uint32_t changes = 0, next_target = 0;

  device_type(host_pages& pages, const balloon::device_options& options, bool data)
      : device(pages, options), host(pages), offers_data(data) {}
  [[nodiscard]] feature_set offered_features() const noexcept {
    const feature_set offered = device::offered_features();
    return offers_data ? offered.with(feature::notification_data) : offered;
  }
  template <class Machine> void before_read(Machine& machine, std::uint64_t offset) {
    if (changes == 0 || offset != mmio_register::config + 1) return;
    --changes;
    machine.carry_out(set_target(++next_target << 8));
  }
};

struct configuration {
  const char* name;
  mmio_version version;
  bool is_packed = false;
  bool has_event_index = true;
  bool has_notification_data = false;
  bool is_poisoned = false;
};

class machine {
 public:
  explicit machine(const configuration& how)
      : how_(how), m_(how.name, how.version, [&](std::byte* ram) {
          host_.ram = ram;
          return std::make_unique<device_type>(host_, offers(how), how.has_notification_data);
        }) {
    linux_set_poison(how.is_poisoned, 0);
  }

  bool run(); ///< whether every check held

 private:
  static balloon::device_options offers(const configuration& how) {
    balloon::device_options options;
    options.offered = {bits::must_tell_host,   bits::stats_vq,    bits::deflate_on_oom,
                       bits::free_page_hint,   bits::page_poison, bits::page_reporting,
                       feature::indirect_desc, feature::in_order, feature::ring_reset};
    if (how.has_event_index) options.offered.set(feature::event_idx);
    if (how.is_packed) options.offered.set(feature::ring_packed);
    return options;
  }

  void check(bool holds, const char* what) { m_.check(holds, what); }
  void settle() { m_.settle(); }
  void set_target(std::uint32_t pages) {
    m_.carry_out(device_.set_target(pages));
    settle();
  }
  [[nodiscard]] bool is_legacy() const { return bus_.is_legacy(); }

  void probe();
  void statistics();
  void inflation();
  void consistent_configuration();
  void oom();
  void compaction();
  void hinting();
  void reporting();
  void cycles();
  void suspend();
  void removal();

  configuration how_;
  host_pages host_;
  interop::linux_machine<device_type> m_;
  device_type& device_ = *m_.device;
  interop::linux_machine<device_type>::bus_type& bus_ = m_.bus;
};

void machine::probe() {
  check(linux_plug() == 0, "virtio_mmio_probe() takes the device");
  settle();
  check(linux_has_driver() != 0, "virtio_balloon takes the device");
  check(bus_.read(mmio_register::status, 4) == (is_legacy() ? 7 : 15), "the device is live");
  check(bus_.is_live() && device_.negotiated_features() == bus_.accepted(), "... and knows it");
  std::uint64_t accepted = bus_.accepted().word32(0);
  accepted |= std::uint64_t{bus_.accepted().word32(1)} << 32;
  check(linux_features() == accepted, "both sides have the same features");
  // What Linux has of what we offer: mmio keeps its own, and virtio_balloon gives indirect ones up.
  feature_set expected{bits::must_tell_host, bits::stats_vq, bits::deflate_on_oom,
                       bits::free_page_hint, bits::page_reporting};
  if (how_.is_poisoned) expected.set(bits::page_poison);
  if (how_.has_event_index) expected.set(feature::event_idx);
  if (!is_legacy()) expected.set(feature::version_1);
  if (how_.is_packed) expected.set(feature::ring_packed);
  if (how_.has_notification_data) expected.set(feature::notification_data);
  check(bus_.accepted() == expected, "they are what Linux has of what is offered");
  check(std::ranges::all_of(bus_.queues(), [](const queue_layout& q) { return q.size == 128; }),
        "all five queues are ready, with 128 entries");
  if (is_legacy())
    for (const queue_layout& q : bus_.queues())
      check(split::place_legacy(q.descriptor_area, 128, 4096)->layout == q, "they are contiguous");
  check(linux_has_shared_memory(0) == 0, "there is no shared memory");
  const auto first = device_.take_statistics(1);
  check(first && !first->is_solicited && first->has(statistic_tag::disk_caches),
        "the first statistics came unasked");
  check(device_.poison() == (how_.is_poisoned ? 0xaaaaaaaa : 0), "the poison is known");
}

void machine::statistics() {
  (void)device_.take_statistics(1);
  m_.carry_out(device_.request_statistics());
  const std::uint64_t free = linux_free_bytes();
  settle();
  const auto reply = device_.take_statistics(2);
  check(reply && reply->is_solicited, "statistics come when asked for");
  if (!reply) return;
  const auto is = [&](statistic_tag tag, std::uint64_t value) {
    check(reply->has(tag) && reply->value(tag) == value, "each statistic is what Linux says");
  };
  is(statistic_tag::swap_in, linux_event(0) * 4096);
  is(statistic_tag::swap_out, linux_event(1) * 4096);
  is(statistic_tag::major_faults, linux_event(2));
  is(statistic_tag::minor_faults, linux_event(3));
  is(statistic_tag::oom_kills, linux_event(4));
  is(statistic_tag::alloc_stalls, linux_event(5) + linux_event(6));
  is(statistic_tag::async_scans, linux_event(7) * 4096);
  is(statistic_tag::direct_scans, linux_event(8) * 4096);
  is(statistic_tag::async_reclaims, linux_event(9) * 4096);
  is(statistic_tag::direct_reclaims, linux_event(10) * 4096);
  is(statistic_tag::hugetlb_allocations, linux_event(11));
  is(statistic_tag::hugetlb_failures, linux_event(12));
  is(statistic_tag::free_memory, free);
  is(statistic_tag::total_memory, linux_total_bytes());
  is(statistic_tag::available_memory, free + linux_cached_bytes());
  is(statistic_tag::disk_caches, linux_cached_bytes());
}

void machine::inflation() {
  const std::uint64_t free = linux_free_bytes();
  set_target(5000);
  check(device_.actual() == 5000 && device_.is_target_reached(), "a target is reached");
  check(host_.discarded.size() == 5000, "as many pages were discarded");
  check(linux_free_bytes() == free - 5000 * 4096, "as much memory is missing in Linux");
  for (std::uint32_t target = 1; target <= 50; ++target)
    m_.carry_out(device_.set_target(target * 37 % 5000));
  settle();
  check(device_.actual() == 50 * 37 && host_.discarded.size() == 50 * 37,
        "of 50 targets at once the last one is reached");
  for (int round = 0; round < 10; ++round) {
    set_target(10'000);
    check(device_.actual() == 10'000 && host_.discarded.size() == 10'000, "10 000 pages");
    set_target(0);
    check(device_.actual() == 0 && host_.discarded.empty(), "... and none, ten times");
  }
  check(linux_free_bytes() == free, "Linux has all of its memory again");
}

void machine::consistent_configuration() {
  set_target(0);
  std::array<std::uint8_t, 16> raw{};
  device_.next_target = 0x1000;
  device_.changes = is_legacy() ? 0 : 3;
  linux_read_config(0, raw.data(), raw.size());
  check(device_.changes == 0, "Linux reads again where the generation changed");
  if (!is_legacy())
    check(raw[0] == 0 && raw[1] == 3 && raw[2] == 0x10 && raw[3] == 0, "what it has is consistent");
  set_target(0);
}

void machine::oom() {
  set_target(1000);
  const std::uint64_t free = linux_free_bytes();
  check(linux_out_of_memory() == 256, "the notifier frees 256 pages");
  check(device_.actual() == 744 && host_.discarded.size() == 744, "the device has them back");
  check(linux_free_bytes() == free + 256 * 4096, "... and so has Linux");
  const std::size_t taken = linux_take_pages(SIZE_MAX); // nothing is left
  m_.carry_out(device_.set_target(2000));
  for (int i = 0; i < 20; ++i) {
    (void)m_.step();
    (void)linux_work();
  }
  check(taken > 0 && device_.actual() == 744, "without memory there is no inflating");
  linux_give_pages();
  settle();
  check(device_.actual() == 2000, "it goes on where there is some again");
}

void machine::compaction() {
  set_target(600);
  const std::set<std::uint64_t> before = host_.discarded;
  check(linux_compact(300) == 300, "Linux moves pages of the balloon");
  settle();
  check(host_.discarded.size() == 600 && host_.discarded != before && device_.actual() == 600,
        "as many are in it as before, others");
  set_target(0);
  check(host_.discarded.empty(), "all come out again");
}

void machine::hinting() {
  const std::uint64_t free = linux_free_bytes();
  m_.carry_out(device_.start_hinting());
  settle();
  check(!host_.hinted.empty() && host_.hinted.size() % 1024 == 0, "blocks of 4 MiB are hinted");
  check(linux_shrinkable() == host_.hinted.size(), "Linux holds what it hinted");
  check(linux_free_bytes() == free - host_.hinted.size() * 4096, "... and can't use it");
  check(linux_shrink(1024) == 1024, "but for what it takes back");
  const std::uint64_t first = host_.hinted.size();
  m_.carry_out(device_.start_hinting());
  settle();
  check(host_.hinted.size() >= first && device_.hinting().counters().rounds == 2, "a second round");
  m_.carry_out(device_.finish_hinting());
  settle();
  check(linux_shrinkable() == 0 && linux_free_bytes() == free, "all of it comes back when done");
  check(device_.hinting().counters().malformed_commands == 0, "every command was in order");
  host_.hinted.clear();
}

void machine::reporting() {
  std::array<std::uint64_t, 32> at{};
  const std::uint64_t poisoned = device_.counters().poisoned_ranges;
  for (const unsigned blocks : {1u, 5u, 16u}) {
    const auto before = device_.counters();
    check(linux_report(blocks, at.data()) == 0, "free blocks are reported");
    const auto& now = device_.counters();
    check(now.free_page_report_count == before.free_page_report_count + blocks &&
              now.free_page_report_freed ==
                  before.free_page_report_freed + blocks * std::uint64_t{2u << 20},
          "each one is taken back, all of it");
    if (how_.is_poisoned)
      check(host_.pattern == 0xaaaaaaaa, "they are filled with the poison");
    else
      for (unsigned i = 0; i < blocks; ++i)
        check(host_.discarded.contains(at[i]) &&
                  host_.discarded.contains(at[i] + (2u << 20) - 4096),
              "from its first page to its last");
  }
  check(device_.counters().poisoned_ranges == poisoned, "none was left alone");
  host_.discarded.clear();
}

void machine::cycles() {
  set_target(0);
  const std::uint64_t free = linux_free_bytes();
  for (int round = 0; round < 20; ++round) {
    set_target(700);
    check(device_.actual() == 700, "a target is reached after a reset");
    linux_remove_balloon();
    // The core leaves ACKNOWLEDGE behind.
    check(bus_.read(mmio_register::status, 4) == 1 && !bus_.is_live(), "rmmod resets the device");
    check(std::ranges::all_of(bus_.queues(), [](const queue_layout& q) { return q.size == 0; }),
          "no queue is ready then");
    check(host_.discarded.empty() && device_.target() == 700,
          "the pages are back, the target stays");
    linux_insert_balloon();
    settle();
    check(linux_has_driver() != 0 && device_.actual() == 700, "insmod finds the target");
  }
  set_target(0);
  check(linux_free_bytes() == free, "nothing is lost in 20 cycles");
}

void machine::suspend() {
  set_target(300);
  check(linux_suspend() == 0 && !bus_.is_live(), "suspending resets the device");
  check(device_.set_target(400).failure == error::none, "a target that changes meanwhile");
  check(linux_resume() == 0, "Linux resumes");
  settle();
  check(device_.actual() == 400 && host_.discarded.size() == 400, "is reached afterwards");
}

void machine::removal() {
  set_target(100);
  linux_unplug();
  check(!bus_.is_live() && host_.discarded.empty(), "without the device its pages are back");
  check(linux_interrupt() == 0, "nobody has the interrupt");
  probe();
  set_target(100);
  check(device_.actual() == 100, "it can be found again");
  linux_unplug();
}

bool machine::run() {
  const struct {
    const char* name;
    void (machine::*test)();
  } scenarios[] = {{"probe", &machine::probe},
                   {"statistics", &machine::statistics},
                   {"inflate and deflate", &machine::inflation},
                   {"configuration", &machine::consistent_configuration},
                   {"out of memory", &machine::oom},
                   {"compaction", &machine::compaction},
                   {"hinting", &machine::hinting},
                   {"reporting", &machine::reporting},
                   {"statistics again", &machine::statistics},
                   {"rmmod and insmod", &machine::cycles},
                   {"suspend and resume", &machine::suspend},
                   {"unplug and plug", &machine::removal}};
  bool is_right = true;
  for (const auto& scenario : scenarios) {
    m_.is_right = true;
    (this->*scenario.test)();
    check(m_.refusals == 0, "no write of a register is refused, no queue breaks");
    check(m_.lost_interrupts == 0, "every interrupt is the device's");
    check(m_.rules.wrongs == 0, "Linux keeps to the register layout");
    m_.refusals = m_.lost_interrupts = m_.rules.wrongs = 0;
    if (m_.is_right) std::printf("ok   Linux's mmio, %s: %s\n", how_.name, scenario.name);
    is_right = is_right && m_.is_right;
  }
  std::fprintf(stderr, "%s: %u accesses, %llu notifications, %llu interrupts\n", how_.name,
               m_.rules.accesses, static_cast<unsigned long long>(m_.notifications),
               static_cast<unsigned long long>(m_.interrupts));
  return is_right;
}

} // namespace

int main() {
  const configuration all[] = {
      {.name = "version 2, split", .version = mmio_version::modern},
      {.name = "version 2, split, flags",
       .version = mmio_version::modern,
       .has_event_index = false},
      {.name = "version 2, packed", .version = mmio_version::modern, .is_packed = true},
      {.name = "version 2, packed, flags",
       .version = mmio_version::modern,
       .is_packed = true,
       .has_event_index = false},
      {.name = "version 2, split, notification data",
       .version = mmio_version::modern,
       .has_notification_data = true},
      {.name = "version 2, packed, notification data, poison",
       .version = mmio_version::modern,
       .is_packed = true,
       .has_notification_data = true,
       .is_poisoned = true},
      {.name = "version 1", .version = mmio_version::legacy},
      {.name = "version 1, flags, poison",
       .version = mmio_version::legacy,
       .has_event_index = false,
       .is_poisoned = true},
  };
  bool is_right = true;
  for (const configuration& how : all) {
    machine m(how);
    is_right = m.run() && is_right;
    std::fflush(stdout);
  }
  return is_right ? 0 : 1;
}
