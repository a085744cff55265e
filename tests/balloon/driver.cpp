// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/driver.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/in_process_transport.hpp>

#include <array>
#include <cstddef>

namespace {

using namespace ballast;
using ballast_test::test_host;
using ballast_test::test_pages;
using ballast_test::test_statistics;

using ram_type = array_memory<32 * 4096>;
using pages_type = test_pages<64>;

static_assert(balloon::page_source<pages_type>);
static_assert(balloon::statistics_source<test_statistics, std::endian::little>);
struct no_store {
  std::size_t take_free(std::span<std::uint32_t>) noexcept { return 0; }
  std::size_t take_stored(std::span<std::uint32_t>) noexcept { return 0; }
  void release(std::span<const std::uint32_t>) noexcept {}
};
struct take_without_count : no_store {
  void store(std::span<const std::uint32_t>) noexcept {}
  void take_free(std::span<std::uint32_t>) noexcept {}
};
static_assert(!balloon::page_source<no_store>);
static_assert(!balloon::page_source<take_without_count>);
struct no_write {};
struct write_that_throws {
  void write(balloon::statistics_writer<std::endian::little>&) {}
};
static_assert(!balloon::statistics_source<no_write, std::endian::little>);
static_assert(!balloon::statistics_source<write_that_throws, std::endian::little>);

/// A driver with a real device behind it that works only when a test lets it.
struct bench {
  using device_type = balloon::device<ram_type, test_host, 8>;
  using transport_type = in_process_transport<device_type, ram_type>;
  using driver_type = balloon::driver<ram_type, transport_type, pages_type, test_statistics, 4>;

  ram_type ram;
  test_host host;
  device_type device;
  transport_type transport{device, ram};
  pages_type pages{4, 24};
  test_statistics statistics;
  driver_type driver;

  constexpr explicit bench(const balloon::device_options& offers = {},
                           const balloon::driver_options& accepts = {})
      : device(host, offers), driver(ram, transport, pages, statistics, 0, accepts) {}

  /// The device serves one queue; what it asks for.
  constexpr actions serve(std::uint16_t queue) { return transport.process(queue, 8); }

  /// Both sides until neither has anything to do.
  constexpr bool settle(actions due) {
    for (int round = 0; round < 64; ++round) {
      if (due.failure != error::none) return false;
      if (due.notify_queues == 0 && due.more_work == 0) return true;
      for (std::uint16_t q = 0; q < 3; ++q)
        if (due.notifies(q) && serve(q).failure != error::none) return false;
      due = driver.step();
    }
    return false;
  }
};
static_assert(!std::is_copy_constructible_v<bench::driver_type>);
static_assert(bench::driver_type::memory_bytes < 4 * 4096);

constexpr auto starts = [](auto check) {
  bench b;
  const actions due = b.driver.start();
  check(due.failure == error::none);
  check(b.driver.negotiated_features() ==
        feature_set{balloon::feature::stats_vq, feature::event_idx, feature::version_1});
  check((b.transport.status() & status::driver_ok) != 0);
  check(b.statistics.asked == 1); // BDRV-17: one buffer is there from the start
  // BDRV-16: and it stays the only one; the device looked at it when it became live.
  check(b.device.take_statistics(0)->value(ballast_test::statistic_tag::minor_faults) == 1);
  check(b.driver.step() == actions{});
  check(b.statistics.asked == 1);
};
BOTH("BDRV-16, BDRV-17: a driver starts with one statistics buffer", starts)

constexpr auto inflates = [](auto check) {
  bench b;
  check(b.settle(b.driver.start()));
  (void)b.device.set_target(6);
  actions due = b.driver.on_config_change();
  check(due.notify_queues == 1);
  check(b.driver.actual() == 0 && b.device.actual() == 0); // BDRV-12: not before the ack
  check(b.pages.free() == 14 && b.pages.stored() == 0);
  check(!b.driver.is_idle());
  check(b.driver.step() == actions{}); // nothing came back
  check(b.serve(0).notifies(0));
  check(b.host.discarded == 0x3f0);
  check(b.driver.step() == actions{});
  check(b.driver.actual() == 6 && b.device.actual() == 6); // BDRV-14
  check(b.pages.stored() == 6 && b.driver.is_idle());
};
BOTH("BDRV-4, BDRV-12, BDRV-14: pages count once the device returned them", inflates)

constexpr auto deflates = [](auto check) {
  bench b;
  (void)b.device.set_target(6);
  check(b.settle(b.driver.start()));
  check(b.driver.actual() == 6);
  (void)b.device.set_target(2);
  const actions due = b.driver.on_config_change();
  check(due.notify_queues == 2);                        // BDRV-9
  check(b.pages.free() == 14 && b.pages.stored() == 2); // taken, not usable yet
  check(b.driver.actual() == 6);
  check(b.serve(1).notifies(1));
  check(b.driver.step() == actions{});
  check(b.driver.actual() == 2 && b.device.actual() == 2);
  check(b.pages.free() == 18);
  check(b.host.discarded == 0x30 && b.host.provided == 0x3c0);
};
BOTH("BDRV-5, BDRV-9: pages come back through the deflateq", deflates)

constexpr auto early_release = [](auto check) {
  const balloon::driver_options eager{.reuses_before_acknowledged = true};
  bench b({}, eager);
  (void)b.device.set_target(6);
  check(b.settle(b.driver.start()));
  (void)b.device.set_target(2);
  (void)b.driver.on_config_change();
  check(b.pages.free() == 18); // BDRV-11
  check(b.settle(b.driver.step()));

  bench told({.offered = {balloon::feature::must_tell_host}}, eager);
  (void)told.device.set_target(6);
  check(told.settle(told.driver.start()));
  check(told.driver.negotiated_features().test(balloon::feature::must_tell_host)); // BDRV-1
  (void)told.device.set_target(2);
  (void)told.driver.on_config_change();
  check(told.pages.free() == 14); // BDRV-10
  check(told.serve(1).notifies(1));
  check(told.driver.step() == actions{});
  check(told.pages.free() == 18);
};
BOTH("BDRV-1, BDRV-10, BDRV-11: with MUST_TELL_HOST no page is used before the ack", early_release)

constexpr auto out_of_memory = [](auto check) {
  bench off;
  (void)off.device.set_target(6);
  check(off.settle(off.driver.start()));
  check(off.driver.deflate_on_oom(4).failure == error::not_negotiated); // BDRV-7
  check(off.pages.stored() == 6);

  const feature_set with{balloon::feature::deflate_on_oom};
  bench b({.offered = with}, {.accepted = with});
  check(b.settle(b.driver.start()));
  check(b.driver.deflate_on_oom(4).failure == error::queue_empty);
  (void)b.device.set_target(6);
  check(b.settle(b.driver.on_config_change()));
  const actions due = b.driver.deflate_on_oom(4); // BDRV-8
  check(due.notify_queues == 2 && due.failure == error::none);
  check(b.driver.deflate_on_oom(1).failure == error::queue_full);
  check(b.serve(1).notifies(1));
  check(b.driver.step() == actions{});
  check(b.driver.actual() == 2 && b.device.actual() == 2 && b.driver.target() == 6);
  check(b.driver.step() == actions{}); // no inflating again by itself
  check(b.settle(b.driver.on_config_change()));
  check(b.driver.actual() == 6);
};
BOTH("BDRV-7, BDRV-8: pages are taken back when out of memory only if that was negotiated",
     out_of_memory)

constexpr auto no_pages = [](auto check) {
  bench b; // 20 pages to be had
  (void)b.device.set_target(30);
  check(b.settle(b.driver.start()));
  check(b.driver.actual() == 20 && b.driver.is_idle());
  check(b.driver.step() == actions{}); // no busy loop: the caller's clock says when
  const std::array<std::uint32_t, 2> more{24, 25};
  b.pages.release(more);
  check(b.settle(b.driver.step()));
  check(b.driver.actual() == 22);
};
BOTH("where no page is to be had the driver waits for the caller's next step", no_pages)

constexpr auto statistics = [](auto check) {
  bench b;
  check(b.settle(b.driver.start()));
  (void)b.device.take_statistics(0);
  const actions asked = b.device.request_statistics();
  check(asked.notify_queues == 4);
  const actions refilled = b.driver.step(); // BDRV-18, BDRV-19
  check(refilled.notify_queues == 4 && b.statistics.asked == 2);
  check(b.serve(2).failure == error::none);
  const auto reply = b.device.take_statistics(1);
  check(reply && reply->is_solicited);
  check(reply->value(ballast_test::statistic_tag::minor_faults) == 2);
  check(!reply->has(ballast_test::statistic_tag::oom_kills)); // BDRV-22
};
BOTH("BDRV-18, BDRV-19: a returned statistics buffer is filled anew", statistics)

constexpr auto empty_statistics = [](auto check) {
  bench b;
  b.statistics.is_empty = true;
  check(b.settle(b.driver.start()));
  const auto s = b.device.take_statistics(0);
  check(s && s->unknown().empty() && !s->has(ballast_test::statistic_tag::minor_faults));
  check(b.device.request_statistics().failure == error::none);
};
BOTH("a source without statistics still has a buffer to be asked through", empty_statistics)

constexpr auto restart = [](auto check) {
  bench b;
  (void)b.device.set_target(6);
  check(b.settle(b.driver.start()));
  (void)b.device.set_target(9);
  (void)b.driver.on_config_change(); // three pages are under way
  check(b.pages.stored() == 6);
  (void)b.device.set_target(0);
  check(b.settle(b.driver.start()));
  check(b.pages.free() == 20 && b.pages.stored() == 0); // none lost
  check(b.driver.actual() == 0 && b.device.actual() == 0);
  (void)b.device.set_target(20);
  check(b.settle(b.driver.on_config_change()));
  check(b.driver.actual() == 20);
};
BOTH("a restart releases every page, those under way too", restart)

constexpr auto needs_reset = [](auto check) {
  bench b;
  check(b.settle(b.driver.start()));
  (void)b.transport.carry_out({.needs_reset = true, .failure = error::memory_lost});
  check(b.driver.on_config_change().failure == error::device_needs_reset);
  check(b.settle(b.driver.start()));
};
BOTH("ST-4: a device that needs a reset is not used on", needs_reset)

constexpr auto hostile_device = [](auto check) {
  bench b;
  check(b.settle(b.driver.start()));
  (void)b.device.set_target(2);
  (void)b.driver.on_config_change();
  const auto used = split::place(0, 4).layout.device_area; // of the inflateq
  const auto put = [&](std::uint64_t at, auto value) {
    const auto raw = std::bit_cast<std::array<std::byte, sizeof(value)>>(value);
    (void)b.ram.write(used + at, raw);
  };
  put(split::used_id(0), le32(3)); // a descriptor that heads no chain
  put(split::used_index, le16(1));
  const actions due = b.driver.step();
  check(due.needs_reset && due.failure == error::used_id_not_in_flight);
  check(b.driver.actual() == 0);
  check(b.pages.free() + 2 == 20); // the two stay out of use until the restart
  check(b.settle(b.driver.start()));
  check(b.driver.actual() == 2);
};
BOTH("a device that breaks a ring stops the driver until it starts again", hostile_device)

constexpr auto spurious = [](auto check) {
  for (std::uint16_t queue = 0; queue < 2; ++queue) {
    bench b;
    check(b.settle(b.driver.start()));
    // The driver's rings: each 4 entries, then its array; the device returns what it never got.
    const auto first = split::place(0, 4);
    const guest_address array = (first.end + 15) & ~15ull;
    const guest_address base =
        queue == 0 ? 0 : (array + bench::driver_type::array_bytes + 15) & ~15ull;
    const auto one = std::bit_cast<std::array<std::byte, 2>>(le16(std::uint16_t{1}));
    (void)b.ram.write(split::place(base, 4).layout.device_area + split::used_index, one);
    const actions due = b.driver.step();
    check(due.needs_reset && due.failure == error::used_index_jump);
    check(due.more_work == 0); // and does not keep the driver awake for ever
  }
};
BOTH("a used index that moves on an idle queue breaks it", spurious)

constexpr auto lower_target = [](auto check) {
  const feature_set with{balloon::feature::deflate_on_oom};
  bench b({.offered = with}, {.accepted = with});
  (void)b.device.set_target(10);
  check(b.settle(b.driver.start()));
  (void)b.device.set_target(4); // announced, and before the driver is told:
  check(b.settle(b.driver.deflate_on_oom(1)));
  check(b.driver.actual() == 9);
  check(b.settle(b.driver.on_config_change()));
  check(b.driver.actual() == 4);
  check(b.driver.deflate_on_oom(0).failure == error::queue_empty); // did nothing ...
  (void)b.device.set_target(6);
  check(b.settle(b.driver.on_config_change()));
  check(b.driver.actual() == 6);
};
BOTH("an out-of-memory deflation does not hold up a lower target", lower_target)

constexpr auto refused_oom = [](auto check) {
  const feature_set with{balloon::feature::deflate_on_oom};
  bench b({.offered = with}, {.accepted = with});
  check(b.settle(b.driver.start()));
  const std::array<std::uint32_t, 1> extra{30};
  (void)b.device.set_target(21); // one more than there is
  check(b.settle(b.driver.on_config_change()));
  check(b.driver.actual() == 20);
  (void)b.device.set_target(0);
  check(b.settle(b.driver.on_config_change()));
  (void)b.device.set_target(21);
  check(b.driver.deflate_on_oom(1).failure == error::queue_empty);
  check(b.settle(b.driver.on_config_change()));
  b.pages.release(extra);
  check(b.settle(b.driver.step())); // still inflating: what was refused changed nothing
  check(b.driver.actual() == 21);
};
BOTH("an out-of-memory deflation that is refused changes nothing", refused_oom)

constexpr auto not_live = [](auto check) {
  bench b({.requires_must_tell_host = true}, {.accepted = {balloon::feature::stats_vq}});
  check(b.driver.step().failure == error::wrong_state); // before any start
  check(b.driver.start().failure == error::features_rejected);
  (void)b.device.set_target(5);
  check(b.driver.on_config_change().failure == error::wrong_state);
  check(b.driver.step().failure == error::wrong_state);
  check(b.pages.free() == 20);
};
BOTH("IN-4: a driver whose start failed does nothing until the next", not_live)

constexpr auto unknown_features = [](auto check) {
  bench b({}, {.accepted = {balloon::feature::stats_vq, feature::ring_packed,
                            balloon::feature::page_reporting, feature::event_idx}});
  check(b.settle(b.driver.start()));
  check(b.driver.negotiated_features() ==
        feature_set{balloon::feature::stats_vq, feature::event_idx, feature::version_1});
  check(!bench::driver_type::supported.test(feature::ring_packed));
};
BOTH("FT-3: a driver accepts only what it can do, whatever the options say", unknown_features)

constexpr auto scribble = [](auto check) {
  bench b;
  check(b.settle(b.driver.start()));
  (void)b.device.set_target(2);
  (void)b.driver.on_config_change();
  const auto place = split::place(0, 4);
  const std::array<std::byte, 8> junk{};
  (void)b.ram.write((place.end + 15) & ~15ull, junk); // the device writes over the PFN array
  (void)b.serve(0);
  check(b.driver.step() == actions{});
  std::array<std::uint32_t, 4> back{};
  check(b.pages.take_stored(back) == 2 && back[0] == 5 && back[1] == 4);
};
BOTH("the driver keeps its own list of the pages it sent", scribble)

constexpr auto failed_start = [](auto check) {
  bench b({.requires_must_tell_host = true}, {.accepted = {balloon::feature::stats_vq}});
  const actions due = b.driver.start();
  check(due.failure == error::features_rejected && due.notify_queues == 0);
  check((b.transport.status() & status::failed) != 0);

  ram_type ram;
  test_host host;
  bench::device_type device(host);
  bench::transport_type transport(device, ram);
  pages_type pages(4, 24);
  test_statistics source;
  bench::driver_type outside(ram, transport, pages, source, 32 * 4096 - 2048);
  check(outside.start().failure == error::not_guest_memory);
  bench::driver_type crooked(ram, transport, pages, source, 8);
  check(crooked.start().failure == error::misaligned);
  check(transport.status() == 0); // the device was not touched
};
BOTH("IN-4: a start that fails says why and sets FAILED", failed_start)

TEST_CASE("a large target goes out in buffers of 256 pages") {
  using big_ram = array_memory<1024 * 4096>;
  using device_type = balloon::device<big_ram, test_host, 8>;
  using transport_type = in_process_transport<device_type, big_ram>;
  using many_pages = test_pages<1024>;
  static big_ram ram;
  static test_host host;
  static device_type device(host);
  static transport_type transport(device, ram);
  static many_pages pages(8, 1008);
  static test_statistics source;
  static balloon::driver<big_ram, transport_type, many_pages, test_statistics> driver(
      ram, transport, pages, source, 0);
  (void)device.set_target(1000);
  actions due = driver.start();
  int buffers = 0;
  for (; due.notifies(0); ++buffers) {
    CHECK(transport.process(0, 8).notifies(0));
    due = driver.step();
    CHECK(due.failure == error::none);
  }
  CHECK(buffers == 4);
  CHECK(driver.actual() == 1000);
  CHECK(device.counters().inflated_pages == 1000);
  CHECK(host.calls == 4); // each buffer is one range
}

} // namespace
