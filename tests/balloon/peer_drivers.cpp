// SPDX-License-Identifier: BSD-3-Clause
// The device with drivers that do what those of Linux and Windows do, right or wrong.
#include <ballast/balloon/device.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/linux_driver.hpp"
#include "support/windows_driver.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/in_process_transport.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace {

using namespace ballast;
using ballast_test::linux_driver;
using ballast_test::windows_driver;
using balloon::statistic_tag;
namespace bits = balloon::feature;

/// Counts calls and pages, of each kind.
struct counting_host {
  std::uint64_t discarded = 0, provided = 0; ///< pages
  std::uint32_t discards = 0, provides = 0;  ///< calls
  guest_address lowest = UINT64_MAX;

  constexpr bool discard(guest_address address, std::uint64_t size) noexcept {
    ++discards;
    discarded += size >> 12;
    if (address < lowest) lowest = address;
    return true;
  }
  constexpr void provide(guest_address, std::uint64_t size) noexcept {
    ++provides;
    provided += size >> 12;
  }
};

/// A device whose driver's notifications, and whose interrupts, wait until a test says so.
template <std::uint32_t Pages> struct machine {
  using ram_type = array_memory<std::size_t{Pages} * 4096>;
  using device_type = balloon::device<ram_type, counting_host, 16>;
  using transport_type = in_process_transport<device_type, ram_type>;
  using linux_type = linux_driver<ram_type, transport_type>;
  using windows_type = windows_driver<ram_type, transport_type>;

  ram_type ram;
  counting_host host;
  device_type device;
  transport_type transport{device, ram};

  constexpr explicit machine(const balloon::device_options& options = {}, guest_address base = 0)
      : ram(base), device(host, options) {}

  /// The device handles what was notified; what it asks for.
  constexpr actions serve() {
    actions due = transport.take_actions();
    for (std::uint64_t queues = transport.take_notified() | due.more_work, q = 0; queues != 0;
         queues >>= 1, ++q)
      if ((queues & 1) != 0) due |= transport.process(static_cast<std::uint16_t>(q), 64);
    return due;
  }
  /// Both go on until neither asks for more; whether nothing failed.
  constexpr bool settle(linux_type& driver, actions due = {}) {
    for (int i = 0; i < 64; ++i) {
      if (due.config_changed) driver.config_changed();
      if (due.notify_queues != 0) driver.interrupt();
      due = serve();
      if (due.failure != error::none) return false;
      if (due.notify_queues == 0 && !due.config_changed) return driver.is_idle();
    }
    return false;
  }
};

// ---- Linux ----

constexpr auto linux_statistics = [](auto check) {
  for (const bool has_event_index : {false, true}) {
    feature_set offered{bits::stats_vq};
    if (has_event_index) offered.set(feature::event_idx);
    machine<12> m({.offered = offered});
    machine<12>::linux_type driver(m.ram, m.transport, {.first_pfn = 4, .pages = 8});
    check(driver.probe());
    check(driver.early_notifications() == 4);
    check(m.device.counters().statistics_buffers == 1); // looked at with DRIVER_OK
    const auto first = m.device.take_statistics(1);
    check(first && !first->is_solicited && first->value(statistic_tag::swap_out) == 4097);
    check(m.settle(driver));
    check(m.device.counters().statistics_buffers == 1); // the early notification is no second one
    check(m.settle(driver, m.device.request_statistics()));
    const auto second = m.device.take_statistics(2);
    check(second && second->is_solicited && second->value(statistic_tag::swap_out) == 8193);
    check(m.device.counters().duplicate_statistics == 0);
  }
};
BOTH("a device uses the statistics that Linux notifies before DRIVER_OK", linux_statistics)

constexpr auto linux_pages = [](auto check) {
  machine<16> m({.offered = {bits::must_tell_host, bits::deflate_on_oom, feature::event_idx}});
  machine<16>::linux_type driver(m.ram, m.transport, {.first_pfn = 4, .pages = 12});
  check(driver.probe() && driver.features().test(bits::must_tell_host));
  check(m.settle(driver, m.device.set_target(7)));
  check(m.device.actual() == 7 && m.host.discarded == 7 && m.host.discards == 1);
  check(m.settle(driver, m.device.set_target(3)));
  check(m.device.actual() == 3 && m.host.provided == 4 && m.host.provides == 1); // descending
  driver.out_of_memory();
  check(m.settle(driver));
  check(m.device.actual() == 0 && m.device.target() == 3); // and it stays there
  check(m.settle(driver, m.device.set_target(4)));
  check(m.device.actual() == 4);
  // A page moves: one in, one out, and the size is what it was.
  const std::uint64_t in = m.host.discarded, out = m.host.provided;
  check(driver.migrate_page());
  check(m.settle(driver) && m.device.actual() == 4);
  check(m.host.discarded == in + 1 && m.host.provided == out + 1);
  check(m.device.counters().bad_pages == 0);
};
BOTH("a device and Linux: targets, out of memory, a page that moves", linux_pages)

constexpr auto linux_large = [](auto check) {
  machine<52> m({.offered = {}});
  machine<52>::linux_type driver(m.ram, m.transport,
                                 {.page_size = 65536, .first_pfn = 4, .pages = 3});
  check(driver.probe());
  check(m.settle(driver, m.device.set_target(17)));
  check(m.device.actual() == 32 && m.host.discarded == 32);
  const std::uint32_t calls = m.host.discards + m.host.provides;
  check(m.settle(driver));
  check(m.host.discards + m.host.provides == calls); // no inflating and deflating for ever
  check(m.settle(driver, m.device.set_target(16)) && m.device.actual() == 16);
};
BOTH("RT-55: a device and Linux with pages of 64 KiB rest above the target", linux_large)

TEST_CASE("a device joins what Linux sends in chunks of 256, ascending and descending") {
  const auto m = std::make_unique<machine<1300>>();
  const auto driver = std::make_unique<machine<1300>::linux_type>(
      m->ram, m->transport, machine<1300>::linux_type::setting{.first_pfn = 4, .pages = 1200});
  REQUIRE(driver->probe());
  CHECK(m->settle(*driver, m->device.set_target(600)));
  CHECK(m->device.actual() == 600);
  CHECK(m->device.counters().inflated_pages == 600);
  CHECK(m->host.discards == 3); // 256, 256, 88: a range each
  CHECK(m->settle(*driver, m->device.set_target(0)));
  CHECK(m->device.counters().deflated_pages == 600);
  CHECK(m->host.provides == 3);
  CHECK(m->settle(*driver, m->device.set_target(1)));
  CHECK(m->host.lowest == 4 * 4096);
}

constexpr auto linux_restart = [](auto check) {
  machine<16> m;
  {
    machine<16>::linux_type driver(m.ram, m.transport, {.first_pfn = 4, .pages = 12});
    check(driver.probe() && m.settle(driver, m.device.set_target(5)));
  }
  // A kernel that is booted anew: the balloon begins at 0, the target is still there.
  machine<16>::linux_type again(m.ram, m.transport, {.first_pfn = 4, .pages = 12});
  check(again.probe());
  check(m.settle(again));
  check(m.device.target() == 5 && m.device.actual() == 5 && again.num_pages() == 5);
};
BOTH("RT-54: a device's target survives the reset of a Linux that boots anew", linux_restart)

// ---- Windows ----

/// 0xff in all of the first buffer.
constexpr auto windows_filler = [](auto check) {
  machine<8> m;
  machine<8>::windows_type driver(m.ram, m.transport, 0, 4);
  check(driver.start());
  check(m.serve().failure == error::none);
  const auto first = m.device.take_statistics(1);
  check(first && first->unknown().empty() && first->unknown_dropped() == 0);
  for (std::uint16_t tag = 0; tag < 16; ++tag) check(!first->has(static_cast<statistic_tag>(tag)));
  driver.set_statistic(4, 1 << 20);
  check(m.device.request_statistics().notify_queues == 4);
  check(driver.answer() && m.serve().failure == error::none);
  const auto second = m.device.take_statistics(2);
  check(second && second->is_solicited && second->value(statistic_tag::free_memory) == 1 << 20);
  check(second->unknown().empty());
};
BOTH("RT-50: a device takes no value from the statistics that Windows fills with ones",
     windows_filler)

/// Numbers of 8 bytes: every second PFN is 0, which may be a page or no memory.
constexpr void wide_numbers(auto check, auto& m, guest_address base, std::uint32_t pages) {
  using driver_type = typename std::remove_reference_t<decltype(m)>::windows_type;
  driver_type driver(m.ram, m.transport, base, (base >> 12) + 4);
  check(driver.start());
  check(m.device.set_target(pages).config_changed);
  std::uint32_t buffers = 0;
  for (; driver.work(); ++buffers) {
    const actions due = m.serve();
    check(due.notifies(0) && due.failure == error::none);
    driver.end_wait();
    check(driver.timeouts == 0 && driver.buffers_out() == 0); // none is lost
  }
  check(buffers == (pages + 511) / 512);
  const auto& done = m.device.counters();
  check(m.device.actual() == pages && driver.num_pages() == pages);
  check(done.oversized_buffers == 0 && done.trailing_bytes == 0);
  check(done.inflated_pages == (base == 0 ? 2 * pages : pages));
  check(done.bad_pages == (base == 0 ? 0 : pages));
  check(m.host.lowest == (base == 0 ? 0 : base + 4 * 4096));
  check(m.device.set_target(0).config_changed);
  for (; driver.work(); driver.end_wait()) check(m.serve().notifies(1));
  check(m.device.actual() == 0 && driver.timeouts == 0 && driver.buffers_out() == 0);
}
constexpr auto few_wide_numbers = [](auto check) {
  machine<16> at_zero;
  wide_numbers(check, at_zero, 0, 4);
  machine<16> above({}, 0x10000);
  wide_numbers(check, above, 0x10000, 4);
};
BOTH("RT-52, RT-58: a device returns what Windows sends in 8 bytes, and takes it for PFNs",
     few_wide_numbers)

TEST_CASE("RT-34, RT-58: a device takes all of the 4096 bytes that Windows sends at once") {
  const auto at_zero = std::make_unique<machine<1200>>();
  wide_numbers(ballast_test::run_time_check{}, *at_zero, 0, 1100);
  const auto above =
      std::make_unique<machine<1200>>(balloon::device_options{}, guest_address{1} << 32);
  wide_numbers(ballast_test::run_time_check{}, *above, guest_address{1} << 32, 1100);
}

constexpr auto reused = [](auto check) {
  machine<16> m({}, 0x10000);
  machine<16>::windows_type driver(m.ram, m.transport, 0x10000, 20);
  check(driver.start() && m.serve().failure == error::none);
  check(m.device.set_target(3).config_changed);
  check(driver.work());
  driver.end_wait(); // a second passed, and the device was busy
  check(driver.timeouts == 1 && driver.buffers_out() == 1);
  check(m.device.set_target(7).config_changed);
  check(driver.work()); // over the same bytes, while the device may read them
  check(driver.buffers_out() == 2);
  const actions due = m.serve();
  check(due.notify_queues == 1 && due.failure == error::none);
  driver.end_wait();
  check(driver.stray == 1 && driver.buffers_out() == 0); // both came back, once each
  // The first three pages were overwritten before they were read; the next four were read twice,
  // as far as the first buffer is long.
  check(m.host.lowest == 23 * 4096 && m.device.counters().inflate_count == 2);
  check(m.device.counters().inflated_pages == 3 + 4);
  check(m.device.actual() == 7);
  // And on: nothing is broken.
  check(m.device.set_target(0).config_changed && driver.work());
  check(m.serve().notify_queues == 2);
  driver.end_wait();
  check(driver.stray == 1 && m.device.actual() == 0);
};
BOTH("RT-58: a device returns a buffer that Windows did not wait for, and one over it, once each",
     reused)

} // namespace
