// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/driver.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/open_device.hpp"
#include "support/watched_pages.hpp"

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
  bench b({}, {.accepted = {balloon::feature::stats_vq, feature::ring_reset,
                            balloon::feature::page_reporting, feature::event_idx}});
  check(b.settle(b.driver.start()));
  check(b.driver.negotiated_features() ==
        feature_set{balloon::feature::stats_vq, feature::event_idx, feature::version_1});
  check(!bench::driver_type::supported.test(feature::ring_reset));
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

// ---- with a device that does only what a test says ----

/// A guest that has all there is: statistics, free blocks of 2 MiB to report, of 4 MiB to hint.
struct rich_guest {
  static constexpr std::uint32_t report_bytes = 2u << 20;
  std::array<balloon::hint_block, 4> remembered{};
  std::uint32_t reportable = 0, isolated = 0, reported = 0, drained = 0;
  std::uint32_t hintable = 0, hinted = 0;
  std::uint64_t asked = 0;

  template <std::endian E> constexpr void write(balloon::statistics_writer<E>& to) noexcept {
    (void)to.add(balloon::statistic_tag::free_memory, ++asked);
  }
  constexpr std::size_t take_reportable(std::span<buffer> to) noexcept {
    std::size_t n = 0;
    for (; n < to.size() && reportable != 0; ++n, --reportable)
      to[n] = {(1ull << 30) + isolated++ * std::uint64_t{report_bytes}, report_bytes};
    return n;
  }
  constexpr void return_reportable(std::span<const buffer> ranges, bool is_reported) noexcept {
    isolated -= static_cast<std::uint32_t>(ranges.size());
    (is_reported ? reported : drained) += static_cast<std::uint32_t>(ranges.size());
  }
  constexpr result<guest_address> take(unsigned) noexcept {
    if (hintable == 0) return error::queue_empty;
    --hintable;
    return (2ull << 30) + hinted++ * (4ull << 20);
  }
  constexpr void release(guest_address, unsigned) noexcept { --hinted; }
  constexpr std::span<balloon::hint_block> hint_blocks() noexcept { return remembered; }
};

constexpr std::uint32_t offset_actual = 4, offset_command = 8, offset_poison = 12;
namespace bits = balloon::feature;

template <class Guest = rich_guest, class Pages = ballast_test::watched_pages<16>>
struct open_bench {
  using open_ram = array_memory<3 * 4096>;
  using device_type = ballast_test::open_device<open_ram>;
  using event = device_type::event;
  using what = device_type::what;
  using driver_type = balloon::driver<open_ram, device_type, Pages, Guest, 4>;

  open_ram ram;
  device_type device{ram};
  Pages pages{16, 12};
  Guest guest{};
  driver_type driver;

  constexpr explicit open_bench(const feature_set& offered,
                                const balloon::driver_options& options = {})
      : driver(ram, device, pages, guest, 0, options) {
    device.offered = offered.with(feature::version_1);
    device.sizes = {64, 64, 0, 0, 0, 0}; // by what is offered, as most devices do it
    for (std::uint16_t i = 2; i < balloon::queue_kind_count; ++i) {
      const auto at = queue_index(static_cast<balloon::queue_kind>(i),
                                  balloon::queue_numbering::by_offered, offered, offered);
      if (at) device.sizes[*at] = 64;
    }
  }
  constexpr bool starts(std::uint32_t target = 0) {
    device.set_field(0, target);
    return driver.start().failure == error::none;
  }
  /// Serves the inflateq and the deflateq until the driver rests.
  constexpr bool settle() {
    for (int i = 0; i < 16; ++i) {
      const bool has_served = device.serve_pages();
      if (driver.step().failure != error::none) return false;
      if (!has_served) return true;
    }
    return false;
  }
  constexpr bool set_target(std::uint32_t pages_wanted) {
    device.set_field(0, pages_wanted);
    return driver.on_config_change().failure == error::none && settle();
  }
};

/// Has neither a poison nor a way to move pages.
struct plain_pages : test_pages<64> {
  constexpr plain_pages(std::uint32_t first, std::uint32_t count) noexcept
      : test_pages<64>(first, first + count) {}
};

using rich_driver = open_bench<>::driver_type;
using poor_driver = open_bench<balloon::no_sources, plain_pages>::driver_type;
static_assert(rich_driver::supported == feature_set{bits::must_tell_host, bits::stats_vq,
                                                    bits::deflate_on_oom, bits::free_page_hint,
                                                    bits::page_poison, bits::page_reporting,
                                                    feature::event_idx, feature::in_order,
                                                    feature::ring_packed, feature::version_1});
static_assert(poor_driver::supported == feature_set{bits::must_tell_host, bits::deflate_on_oom,
                                                    feature::event_idx, feature::in_order,
                                                    feature::ring_packed, feature::version_1});
static_assert(poor_driver::memory_bytes < bench::driver_type::memory_bytes);
static_assert(bench::driver_type::memory_bytes < rich_driver::memory_bytes);
static_assert(sizeof(poor_driver) < sizeof(bench::driver_type));
struct offers_nothing {};
static_assert(balloon::driver_sources<balloon::no_sources, std::endian::little>);
static_assert(!balloon::driver_sources<offers_nothing, std::endian::little>);
struct half_a_guest : test_statistics {
  static std::uint32_t take_reportable(std::span<buffer>) noexcept { return 0; } // not a size_t
};
static_assert(!balloon::driver_sources<half_a_guest, std::endian::little>);
struct writes_in_one_order {
  static void write(balloon::statistics_writer<std::endian::little>&) noexcept {}
};
static_assert(balloon::driver_sources<writes_in_one_order, std::endian::little>);
static_assert(!balloon::driver_sources<writes_in_one_order, std::endian::big>);
static_assert(!balloon::driver_sources<write_that_throws, std::endian::little>);

constexpr auto poor = [](auto check) {
  open_bench<balloon::no_sources, plain_pages> b(
      {bits::stats_vq, bits::page_reporting, bits::free_page_hint, bits::page_poison});
  check(b.starts(4) && b.settle());
  check(b.driver.negotiated_features() == feature_set{feature::version_1});
  check(b.driver.actual() == 4 && b.device.layout(2).size == 0);
};
BOTH("FT-3: a driver accepts no feature that its guest has nothing for", poor)

constexpr auto poison_written = [](auto check) {
  using event = open_bench<>::event;
  using what = open_bench<>::what;
  open_bench<> b({bits::page_poison, bits::stats_vq},
                 {.has_poison = true, .poison_value = 0xaaaaaaaa});
  b.pages.wants_poison = true;
  b.pages.poison_value = 0xaaaaaaaa;
  for (int life = 0; life < 2; ++life) {
    b.device.forget_events();
    check(b.starts(4));
    const std::size_t written = b.device.place_of({what::config, offset_poison, 0xaaaaaaaa});
    check(written > b.device.place_of(b.device.features_ok));
    check(written < b.device.place_of(b.device.driver_ok));
    check(b.settle() && b.set_target(0)); // BDRV-34: watched_pages checks each block
    check(b.set_target(7));
    check(b.device.writes_of(offset_poison) == 1 && b.device.field(offset_poison) == 0xaaaaaaaa);
    for (const event& e : b.device.events()) // RT-50: and nothing that is the device's
      check(e.kind != what::config || e.at == offset_actual || e.at == offset_poison);
  }
  check(b.pages.wrong() == 0);
};
BOTH("BDRV-34, BDRV-35, BDRV-36, RT-50, RT-56: poison_val is written before DRIVER_OK of every "
     "start",
     poison_written)

constexpr auto poison_features = [](auto check) {
  for (unsigned i = 0; i < 8; ++i) {
    const bool has_poison = (i & 1) != 0, offers = (i & 2) != 0, reports = (i & 4) != 0;
    feature_set offered;
    if (offers) offered.set(bits::page_poison);
    if (reports) offered.set(bits::page_reporting);
    open_bench<> b(offered, {.has_poison = has_poison});
    b.pages.wants_poison = has_poison && offers;
    check(b.starts());
    const feature_set& has = b.driver.negotiated_features();
    check(has.test(bits::page_poison) == (has_poison && offers));
    check(has.test(bits::page_reporting) == (reports && (offers || !has_poison)));
    check((b.device.writes_of(offset_poison) == 1) == (has_poison && offers));
    const actions due = b.driver.report();
    check(due.failure == (has.test(bits::page_reporting) ? error::none : error::not_negotiated));
  }
};
BOTH("BDRV-2, BDRV-3: no poison without a value, and no reporting that would lose the poison",
     poison_features)

constexpr auto poison_refused = [](auto check) {
  open_bench<> b({bits::page_poison}, {.has_poison = true});
  b.device.refuses_config = true;
  check(b.driver.start().failure == error::config_out_of_range);
  check((b.device.status() & status::failed) != 0);
  check((b.device.status() & status::driver_ok) == 0);
};
BOTH("a poison value that can't be written ends the start", poison_refused)

constexpr auto actual_writes = [](auto check) {
  using where = ballast_test::watched_pages<16>::place;
  open_bench<> b({bits::deflate_on_oom}, {.accepted = {bits::deflate_on_oom}});
  check(b.starts());
  check(b.device.writes_of(offset_actual) == 1);
  b.device.forget_events();
  check(b.set_target(5) && b.device.field(offset_actual) == 5);
  check(b.device.writes_of(offset_actual) == 1);
  check(b.set_target(2) && b.device.field(offset_actual) == 2);
  check(b.device.writes_of(offset_actual) == 2);
  check(b.driver.deflate_on_oom(1).failure == error::none && b.settle());
  check(b.device.writes_of(offset_actual) == 3 && b.device.field(offset_actual) == 1);
  // The size stays what it is while a page moves, and is not written.
  std::uint32_t old_page = 16;
  while (b.pages.place_of(old_page) != where::stored) ++old_page;
  const std::uint32_t new_page = b.pages.take_one();
  b.device.set_field(0, 1);
  check(b.driver.on_config_change().failure == error::none && b.driver.is_idle());
  const actions due = b.driver.migrate(old_page, new_page);
  check(due.notify_queues == 1 && !b.driver.is_idle());
  check(b.driver.migrate(old_page, new_page).failure == error::queue_full);
  check(b.driver.deflate_on_oom(1).failure == error::queue_full);
  check(b.settle() && b.driver.is_idle());
  check(b.pages.place_of(new_page) == where::stored);
  check(b.pages.place_of(old_page) == where::free);
  check(b.device.writes_of(offset_actual) == 3 && b.driver.actual() == 1);
  check(b.pages.wrong() == 0);
};
BOTH("BDRV-14, BDRV-15: actual is written once for each buffer, and not for a page that moves",
     actual_writes)

constexpr auto reports = [](auto check) {
  open_bench<> b({bits::page_reporting, bits::stats_vq});
  check(b.driver.report().failure == error::wrong_state); // BDRV-40
  check(b.starts());
  check(b.driver.report() == actions{});
  b.guest.reportable = 40;
  const actions due = b.driver.report();
  check(due.notify_queues == 1u << 3 && due.failure == error::none);
  check(b.driver.report().failure == error::queue_full);
  const auto taken = b.device.take(3);
  check(taken.readable == 0 && taken.writable == 32);
  check(taken.buffers[31].length == rich_guest::report_bytes); // BDRV-41
  check(b.driver.step() == actions{} && b.guest.isolated == 32 && b.guest.reported == 0);
  check(b.device.give_back(3, taken));
  check(b.driver.step() == actions{} && b.guest.isolated == 0 && b.guest.reported == 32);
  check(b.driver.report().notify_queues == 1u << 3);
  check(b.starts()); // what the device did not return comes back unreported
  check(b.guest.isolated == 0 && b.guest.drained == 8 && b.guest.reported == 32);
};
BOTH("BDRV-39, BDRV-40, BDRV-41: free pages are reported, one report at a time", reports)

constexpr auto small_queues = [](auto check) {
  open_bench<> b({bits::page_reporting, bits::stats_vq});
  b.device.sizes[3] = 31;
  check(b.driver.start().failure == error::queue_too_small);
  check((b.device.status() & status::failed) != 0);
  open_bench<> one({bits::free_page_hint});
  one.device.sizes[2] = 1;
  check(one.driver.start().failure == error::queue_too_small);
  open_bench<> none({});
  none.device.sizes[1] = 0;
  check(none.driver.start().failure == error::queue_unavailable);
};
BOTH("a driver starts only where reports have room for 32 ranges, hints for 2", small_queues)

constexpr auto numbers = [](auto check) {
  // STATS_VQ is not offered, or not accepted: the queues behind it move, or not.
  for (const bool is_fixed : {false, true}) {
    open_bench<> b({bits::free_page_hint, bits::page_reporting});
    if (is_fixed) b.device.sizes = {64, 64, 0, 64, 64, 0};
    check(b.starts());
    const std::uint16_t reporting = is_fixed ? 4 : 3;
    check(b.device.layout(reporting).size == 32);
    check(b.device.layout(static_cast<std::uint16_t>(reporting - 1)).size == 4);
    b.guest.reportable = 1;
    check(b.driver.report().notifies(reporting));
  }
  open_bench<> forced({bits::free_page_hint, bits::page_reporting},
                      {.numbering = balloon::queue_numbering::fixed, .finds_numbering = false});
  check(forced.driver.start().failure == error::queue_unavailable);
};
BOTH("RT-48: a driver takes the numbering that the device's queues have", numbers)

constexpr auto hints = [](auto check) {
  open_bench<> b({bits::free_page_hint, bits::stats_vq});
  b.device.set_field(offset_command, balloon::command_id::stop);
  check(b.starts());
  b.guest.hintable = 2;
  check(b.device.take(3).readable == 0);
  b.device.set_field(offset_command, 0x80000001);
  actions due = b.driver.on_config_change();
  check(due.notify_queues == 1u << 3);
  const auto id = b.device.take(3);
  check(id.readable == 1 && b.device.number(id.buffers[0], 0) == 0x80000001);
  const auto first = b.device.take(3), second = b.device.take(3);
  check(first.writable == 1 && first.buffers[0].length == 4u << 20 && second.writable == 1);
  check(b.device.take(3).readable == 0); // a queue of 4: the last place is the STOP's
  check(b.device.give_back(3, id) && b.device.give_back(3, first));
  due = b.driver.step();
  const auto stop = b.device.take(3);
  check(stop.readable == 1 && b.device.number(stop.buffers[0], 0) == balloon::command_id::stop);
  check(b.device.give_back(3, second) && b.device.give_back(3, stop));
  (void)b.driver.step();
  check(b.guest.hinted == 2);
  check(b.driver.reclaim_hinted(1) == 1 && b.guest.hinted == 1); // BDRV-30
  b.device.set_field(offset_command, balloon::command_id::done);
  (void)b.driver.on_config_change();
  check(b.guest.hinted == 0);
  b.guest.hintable = 1;
  b.device.set_field(offset_command, 0x80000002);
  (void)b.driver.on_config_change();
  check(b.guest.hinted == 1);
  b.driver.remove();
  check(b.guest.hinted == 0);
};
BOTH("BDRV-25, BDRV-27, BDRV-28, BDRV-30, BDRV-33: hints go out while the device wants them", hints)

constexpr auto waits = [](auto check) {
  open_bench<> b({bits::page_reporting, bits::stats_vq});
  b.driver.set_time(100);
  check(b.starts());
  check(b.driver.waiting_since().error() == error::queue_empty); // statistics are the device's
  b.driver.set_time(200);
  b.guest.reportable = 1;
  (void)b.driver.report();
  b.driver.set_time(300);
  b.device.set_field(0, 6);
  (void)b.driver.on_config_change();
  check(*b.driver.waiting_since() == 200);
  const auto report = b.device.take(3);
  check(b.device.give_back(3, report));
  (void)b.driver.step();
  check(*b.driver.waiting_since() == 300);
  // However late it gets: the buffer and its pages are the device's, and nothing else is sent.
  const auto inflated = b.device.take(0);
  const std::uint32_t pfn = b.device.number(inflated.buffers[0], 5);
  b.device.set_field(0, 9);
  for (std::uint64_t now = 1000; now < 1'000'000'000; now *= 100) {
    b.driver.set_time(now);
    check(b.driver.on_config_change() == actions{});
    check(b.driver.deflate_on_oom(1).failure == error::not_negotiated);
    check(b.device.take(0).readable == 0 && b.device.take(1).readable == 0);
    check(b.pages.free() == 6 && b.pages.stored() == 0);
    check(b.device.number(inflated.buffers[0], 5) == pfn);
  }
  check(*b.driver.waiting_since() == 300);
  check(b.device.give_back(0, inflated));
  (void)b.driver.step();
  check(b.driver.actual() == 6 && b.pages.stored() == 6);
  check(b.pages.wrong() == 0);
};
BOTH("RT-49, RT-58: a driver says since when it waits, and reuses no buffer before its ack", waits)

constexpr auto retries = [](auto check) {
  open_bench<> b({}, {.retry = {.first = 10, .longest = 100}});
  b.pages.use_up();
  check(b.starts(3));
  check(*b.driver.next_attempt() == 10);
  const std::uint32_t calls = b.pages.free_calls;
  b.pages.give_up(3);
  b.driver.set_time(9);
  check(b.driver.step() == actions{} && b.pages.free_calls == calls);
  b.driver.set_time(10);
  check(b.driver.step().notify_queues == 1);
  check(b.driver.next_attempt().error() == error::queue_empty);
  check(b.settle() && b.driver.actual() == 3);
};
BOTH("a driver that got no page asks again when the caller's clock says so", retries)

constexpr auto stops = [](auto check) {
  open_bench<> b({});
  check(b.starts(6) && b.settle());
  b.device.set_field(0, 9);
  (void)b.driver.on_config_change(); // three are under way
  b.device.is_reset_stuck = true;
  check(b.driver.stop(10).error() == error::reset_incomplete);
  check(b.pages.stored() == 6 && b.pages.free() == 3); // the device may still have them
  check(b.driver.step().failure == error::wrong_state);
  b.device.is_reset_stuck = false;
  check(b.driver.stop().has_value());
  check(b.pages.free() == 12 && b.device.status() == 0 && b.driver.is_idle());
  check(b.starts(6) && b.settle()); // RT-54: the target is the device's, and still there
  check(b.driver.actual() == 6 && b.device.field(offset_actual) == 6 && b.pages.wrong() == 0);
};
BOTH("RT-54: pages come back once the reset is complete; the next start goes to the target", stops)

constexpr auto removed = [](auto check) {
  open_bench<> b({bits::page_reporting});
  check(b.starts(6) && b.settle());
  b.device.set_field(0, 2);
  (void)b.driver.on_config_change();
  b.guest.reportable = 2;
  (void)b.driver.report();
  b.device.is_gone = true;
  b.driver.remove();
  check(b.pages.free() == 12 && b.pages.wrong() == 0 && b.guest.drained == 2);
  for (int i = 0; i < 2; ++i) {
    check(b.driver.step().failure == error::wrong_state);
    check(b.driver.on_config_change().failure == error::wrong_state);
    check(b.driver.migrate(16, 17).failure == error::wrong_state);
    check(b.driver.report().failure == error::wrong_state);
  }
  check(b.device.accesses_when_gone == 0);
  b.driver.remove();
  check(b.pages.free() == 12 && b.pages.wrong() == 0);
};
BOTH("surprise removal: every page comes back, and nothing of the device is touched", removed)

constexpr auto given_up = [](auto check) {
  open_bench<> b({bits::deflate_on_oom}, {.accepted = {bits::deflate_on_oom}});
  check(b.starts(6) && b.settle());
  b.device.set_field(0, 9);
  (void)b.driver.on_config_change();
  b.device.set_needs_reset();
  check(b.driver.on_config_change().failure == error::device_needs_reset);
  check(b.pages.stored() == 6 && b.pages.free() == 3); // the device may still touch the others
  b.device.is_gone = true; // from here on the driver is to leave it alone
  const actions again = b.driver.step();
  check(again.failure == error::device_needs_reset && again.needs_reset);
  check(b.driver.deflate_on_oom(1).failure == error::device_needs_reset);
  check(b.driver.on_config_change().failure == error::device_needs_reset);
  check(b.device.accesses_when_gone == 0);
  b.device.is_gone = false;
  check(b.driver.stop().has_value() && b.pages.free() == 12 && b.pages.wrong() == 0);
};
BOTH("ST-4: a driver lets go of a device that needs a reset, and gets its pages with the reset",
     given_up)

constexpr auto too_early = [](auto check) {
  open_bench<> b({bits::stats_vq});
  b.device.is_gone = true;
  check(b.driver.step().failure == error::wrong_state); // an interrupt from before the start
  check(b.driver.on_config_change().failure == error::wrong_state);
  check(b.device.accesses_when_gone == 0 && b.guest.asked == 0);
  b.device.is_gone = false;
  // RT-56: the statistics buffer is there before DRIVER_OK, its notification is not.
  b.device.set_field(0, 0);
  const actions due = b.driver.start();
  check(due.notify_queues == 1u << 2 && b.guest.asked == 1);
  check(b.device.place_of(b.device.driver_ok) < b.device.events().size());
};
BOTH("RT-56, RT-57: an interrupt before the start does nothing, and none is sent before DRIVER_OK",
     too_early)

constexpr auto acks_first = [](auto check) {
  open_bench<> b({bits::must_tell_host});
  check(b.starts(4));
  check(b.driver.negotiated_features().test(bits::must_tell_host)); // BDRV-1
  check(b.device.take(1).readable == 0);
  b.device.set_field(0, 1); // lowered before the pages are in
  check(b.driver.on_config_change() == actions{});
  check(b.device.take(1).readable == 0 && b.pages.free() == 8);
  check(b.device.serve(0));
  check(b.driver.step().notify_queues == 2); // only now, and only these
  const auto taken = b.device.take(1);
  check(taken.buffers[0].length == 3 * 4);
  check(b.pages.free() == 8 && b.pages.stored() == 1);
  check(b.device.give_back(1, taken) && b.settle());
  check(b.pages.free() == 11 && b.driver.actual() == 1 && b.pages.wrong() == 0);
};
BOTH("BDRV-9, BDRV-10, BDRV-13, RT-51: nothing is deflated before its inflation is acknowledged",
     acks_first)

constexpr auto large_pages = [](auto check) {
  open_bench<balloon::no_sources, ballast_test::watched_pages<16, 16>> b({});
  check(b.starts(20) && b.settle());
  check(b.driver.target() == 32 && b.driver.actual() == 32);
  check(b.device.field(offset_actual) == 32 && b.pages.stored() == 2);
  b.device.forget_events();
  check(b.driver.step() == actions{} && b.settle());
  check(b.device.writes_of(offset_actual) == 0); // it rests
  check(b.set_target(0xffff'fff8) && b.driver.actual() == 12 * 16);
};
BOTH("RT-55: a driver with pages of 64 KiB rests above a target that is no multiple", large_pages)

/// Pages 40 to 43 are free to report, 44 to 47 to hint, one page each.
struct small_guest {
  std::array<balloon::hint_block, 4> remembered{};
  std::uint32_t reported = 0, to_report = 4, to_hint = 4, hinted = 0;

  constexpr std::size_t take_reportable(std::span<buffer> to) noexcept {
    std::size_t n = 0;
    for (; to_report != 0; ++n) to[n] = {(44 - to_report--) * 4096ull, 4096};
    return n;
  }
  constexpr void return_reportable(std::span<const buffer> ranges, bool is_reported) noexcept {
    if (is_reported) reported += static_cast<std::uint32_t>(ranges.size());
  }
  constexpr result<guest_address> take(unsigned) noexcept {
    if (to_hint == 0) return error::queue_empty;
    ++hinted;
    return (48 - to_hint--) * 4096ull;
  }
  constexpr void release(guest_address, unsigned) noexcept { --hinted; }
  constexpr std::span<balloon::hint_block> hint_blocks() noexcept { return remembered; }
  static constexpr balloon::hint_driver_options hint_options() noexcept {
    return {.order = 0, .order_min = 0};
  }
};

constexpr void all_features(auto check, std::uint32_t poison) {
  using device_type = balloon::device<array_memory<48 * 4096>, ballast_test::full_host, 32>;
  using transport_type = in_process_transport<device_type, array_memory<48 * 4096>>;
  const feature_set all{bits::free_page_hint, bits::page_poison, bits::page_reporting,
                        bits::must_tell_host};
  array_memory<48 * 4096> ram;
  ballast_test::full_host host;
  device_type device(host, {.offered = all});
  transport_type transport(device, ram);
  ballast_test::watched_pages<16> pages(16, 16);
  pages.wants_poison = true;
  pages.poison_value = poison;
  small_guest guest;
  balloon::driver<array_memory<48 * 4096>, transport_type, ballast_test::watched_pages<16>,
                  small_guest, 8>
      driver(ram, transport, pages, guest, 0, {.has_poison = true, .poison_value = poison});
  bool has_failed = false;
  const auto settle = [&](actions due) {
    while (due.notify_queues != 0 || due.config_changed) {
      has_failed |= due.failure != error::none;
      actions of_device;
      for (std::uint16_t q = 0; q < 5; ++q)
        if (due.notifies(q)) of_device |= transport.process(q, 64);
      of_device |= transport.take_actions();
      has_failed |= of_device.failure != error::none;
      due = of_device.config_changed ? driver.on_config_change() : driver.step();
    }
  };
  settle(driver.start());
  check(driver.negotiated_features() == all.with(feature::version_1));
  check(device.poison() == poison);
  settle(device.set_target(5).config_changed ? driver.on_config_change() : actions{});
  check(driver.actual() == 5 && device.actual() == 5 && host.discarded == 0x1f0000);
  settle(driver.report());
  check(guest.reported == 4);
  check((poison == 0 ? host.discarded : host.filled) >> 40 == 0xf);
  check(poison == 0 || host.pattern == poison);
  check(device.start_hinting().config_changed);
  settle(driver.on_config_change());
  check(host.hinted >> 44 == 0xf && guest.hinted == 4);
  check(device.finish_hinting().config_changed);
  settle(driver.on_config_change());
  check(guest.hinted == 0);
  check(device.set_target(0).config_changed);
  settle(driver.on_config_change());
  check(pages.free() == 16 && pages.wrong() == 0 && !has_failed);
}
constexpr auto with_the_device = [](auto check) {
  all_features(check, 0);
  all_features(check, 0xaaaaaaaa);
};
BOTH("BDRV-35, BDRV-40: driver and device with hints, reports and poison", with_the_device)

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
