// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/recording_memory.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <cstddef>

namespace {

using namespace ballast;
using ballast_test::full_host;
using ballast_test::page_bits;
using ballast_test::test_host;
using balloon::statistic_tag;

using ram_type = array_memory<16 * 4096>;

static_assert(device_model<balloon::device<ram_type, test_host>, ram_type>);
static_assert(device_model<balloon::device<ram_type, full_host>, ram_type>);
static_assert(!device_model<balloon::device<ram_type, test_host>, array_memory<8>>);
static_assert(!std::is_copy_constructible_v<balloon::device<ram_type, test_host>>);

/// A device, and the bare driver's side of its queues to send it anything.
/// Rings at 0x0000, buffers from 0x2000 on; the balloon's pages lie from page 4 on.
template <std::endian E = std::endian::little, class Ram = ram_type, class Host = test_host>
struct bench {
  using device_type = balloon::device<Ram, Host, 8, E>;
  static constexpr guest_address data = 0x2000;

  Ram ram;
  Host host;
  device_type device;
  std::array<std::array<driver_slot, 8>, 5> slots{};
  std::array<split_driver<Ram, E>, 5> queues{
      split_driver<Ram, E>(slots[0]), split_driver<Ram, E>(slots[1]),
      split_driver<Ram, E>(slots[2]), split_driver<Ram, E>(slots[3]),
      split_driver<Ram, E>(slots[4])};
  std::array<queue_layout, 5> layouts{};
  feature_set features{balloon::feature::stats_vq, feature::version_1};

  constexpr explicit bench(const balloon::device_options& options = {}) : device(host, options) {
    start_queues();
  }

  constexpr void start_queues() {
    for (std::size_t i = 0; i < device.queue_count(); ++i) {
      layouts[i] = split::place(i * 0x200, 8).layout;
      (void)queues[i].start(ram, layouts[i], features);
    }
  }
  constexpr actions activate() { return device.activate(features, layouts, ram); }

  /// Makes one chain of readable buffers available.
  constexpr bool send(std::size_t queue, std::initializer_list<buffer> readable,
                      std::initializer_list<buffer> writable = {}) {
    const bool is_added = queues[queue]
                              .add(std::span(readable.begin(), readable.size()),
                                   std::span(writable.begin(), writable.size()), 0)
                              .has_value();
    queues[queue].publish();
    return is_added;
  }

  template <class T> constexpr void put(guest_address at, T value) {
    const auto raw = std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
    (void)ram.write(at, raw);
  }
  constexpr void put_pfns(std::initializer_list<std::uint32_t> pfns, guest_address at = data) {
    for (const std::uint32_t pfn : pfns) {
      put(at, word<std::uint32_t, E>(pfn));
      at += 4;
    }
  }
  /// A buffer with one statistic.
  constexpr void put_statistic(statistic_tag tag, std::uint64_t value, guest_address at = data) {
    put(at, balloon::statistic<E>{static_cast<std::uint16_t>(tag), value});
  }
};

template <std::endian E> constexpr void inflate_and_deflate(auto check) {
  bench<E> b;
  check(b.activate() == actions{});
  b.put_pfns({7, 6, 5, 9});
  check(b.send(0, {{b.data, 16}}));
  const actions done = b.device.process(0, 8);
  check(done == actions{.notify_queues = 1});
  check(b.host.discarded == page_bits({5, 6, 7, 9}));
  check(b.host.calls == 2); // 5..7 in one
  check(b.device.counters().inflated_pages == 4);
  const auto used = b.queues[0].pop_used();
  check(used && used->length == 0);

  b.put_pfns({6});
  check(b.send(1, {{b.data, 4}}));
  check(b.device.process(1, 8) == actions{.notify_queues = 2});
  check(b.host.provided == page_bits({6}));
  check(b.host.discarded == page_bits({5, 7, 9}));
  check(b.device.counters().deflated_pages == 1);
  check(b.queues[1].pop_used().has_value());
}
constexpr auto pages_little = [](auto check) { inflate_and_deflate<std::endian::little>(check); };
constexpr auto pages_big = [](auto check) { inflate_and_deflate<std::endian::big>(check); };
BOTH("RT-44: pages are discarded and provided, the used length is 0", pages_little)
BOTH("... in big-endian rings too", pages_big)

constexpr auto framing = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_pfns({4, 6, 8}); // cut into 1 + 0 + 2 + 6 + 3 bytes, each PFN over two buffers or more
  const guest_address at = b.data;
  check(b.send(0, {{at, 1}, {at, 0}, {at + 1, 2}, {at + 3, 6}, {at + 9, 3}}));
  check(b.device.process(0, 1).notify_queues == 1);
  check(b.host.discarded == page_bits({4, 6, 8}));
  check(b.device.counters().trailing_bytes == 0);
  check(b.queues[0].pop_used().has_value());
};
BOTH("RT-17: a PFN array may be cut anywhere, within a PFN too", framing)

constexpr auto tail = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_pfns({4, 5});
  check(b.send(0, {{b.data, 7}}, {{b.data + 0x100, 64}}));
  check(b.device.process(0, 1).notify_queues == 1);
  check(b.host.discarded == page_bits({4}));
  check(b.device.counters().trailing_bytes == 3);
  check(b.queues[0].pop_used()->length == 0); // nothing was written to the writable tail
};
BOTH("a partial PFN and a writable tail are ignored", tail)

constexpr auto bad_pages = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_pfns({14, 15, 16, 17, 0xffff'ffff, 5}); // memory ends behind page 15
  check(b.send(0, {{b.data, 24}}));
  const actions done = b.device.process(0, 1);
  check(done.failure == error::none && done.notify_queues == 1);
  check(b.host.discarded == page_bits({14, 15, 5}));
  check(b.device.counters().bad_pages == 3);
  check(b.queues[0].pop_used().has_value());
};
BOTH("RT-30: pages outside guest memory are skipped and counted, the buffer is returned", bad_pages)

TEST_CASE("RT-58: a buffer of 4096 bytes with zeros in between is accepted") {
  bench<> b;
  (void)b.activate();
  for (std::uint32_t i = 0; i < 512; ++i) {
    b.put(b.data + 8 * i, le32(i < 6 ? 5 + i : 5));
    b.put(b.data + 8 * i + 4, le32(0));
  }
  CHECK(b.send(0, {{b.data, 4096}}));
  CHECK(b.device.process(0, 1).notify_queues == 1);
  CHECK(b.host.discarded == page_bits({0, 5, 6, 7, 8, 9, 10}));
  CHECK(b.queues[0].pop_used().has_value());
}

constexpr auto oversized = [](auto check) {
  bench<> b({.buffer_pfns_max = 2});
  (void)b.activate();
  b.put_pfns({4, 5, 6});
  check(b.send(0, {{b.data, 8}}));
  check(b.send(0, {{b.data + 4, 8}, {b.data, 4}}));
  check(b.device.process(0, 8).notify_queues == 1);
  check(b.host.discarded == page_bits({4, 5, 6}));
  check(b.device.counters().oversized_buffers == 1);
  check(b.queues[0].pop_used().has_value() && b.queues[0].pop_used().has_value());
};
BOTH("RT-34, RT-38: a buffer beyond the bound is counted, used up to it, and returned", oversized)

constexpr auto payload_outside = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_pfns({4});
  check(b.send(0, {{b.data, 4}}));
  check(b.send(0, {{0x1'0000, 4}})); // behind the end of memory
  const actions done = b.device.process(0, 8);
  check(done.needs_reset && done.failure == error::not_guest_memory);
  check(b.host.discarded == page_bits({4}));
  // Both buffers came back, and the queue stays broken with its cause.
  check(b.queues[0].pop_used().has_value() && b.queues[0].pop_used().has_value());
  check(b.device.process(0, 8).failure == error::not_guest_memory);
  b.device.reset();
  b.start_queues();
  check(b.activate() == actions{});
};
BOTH("RT-8, RT-46: an array outside memory breaks the queue; its buffer is returned",
     payload_outside)

constexpr auto broken_ring = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_pfns({4});
  check(b.send(0, {{b.data, 4}}));
  b.put(b.layouts[0].driver_area + 4, le16(8)); // head 8 of 8
  const actions done = b.device.process(0, 8);
  check(done.needs_reset && done.failure == error::head_out_of_range);
  check(b.host.calls == 0);
};
BOTH("a broken ring asks for a reset and names the bound", broken_ring)

constexpr auto budget = [](auto check) {
  bench<> b;
  (void)b.activate();
  for (std::uint32_t i = 0; i < 5; ++i) {
    b.put_pfns({4 + i}, b.data + 4 * i);
    check(b.send(0, {{b.data + 4 * i, 4}}));
  }
  check(b.device.process(0, 2).more_work == 1);
  check(b.host.discarded == page_bits({4, 5}));
  check(b.device.process(0, 3).more_work == 0); // exactly what was left
  check(b.host.discarded == page_bits({4, 5, 6, 7, 8}));
  check(b.device.process(0, 0).more_work == 1); // nothing may be done, nothing is known
};
BOTH("RT-9: a budget bounds the work and the rest is announced", budget)

constexpr auto discard_failure = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.host.fails = true;
  b.put_pfns({4});
  check(b.send(0, {{b.data, 4}}));
  check(b.device.process(0, 1).failure == error::none);
  check(b.device.counters().discard_failures == 1);
  check(b.queues[0].pop_used().has_value());
};
BOTH("a failed discard is counted and the buffer returned", discard_failure)

constexpr auto large_host_pages = [](auto check) {
  bench<> b({.host_page_size = 4 * 4096});
  check(b.device.offered_features().test(balloon::feature::must_tell_host));
  (void)b.activate();
  b.put_pfns({5, 4, 7, 6, 9, 10}); // 4 and 5, 6 and 7: descending within, one range
  check(b.send(0, {{b.data, 24}}));
  (void)b.device.process(0, 1);
  check(b.host.discarded == 0); // 4,5 | 7,6 do not join: 7 follows neither 4 nor 5
  b.put_pfns({4, 5, 6, 7});
  check(b.send(0, {{b.data, 8}}));
  check(b.send(0, {{b.data + 8, 8}}));
  (void)b.device.process(0, 2); // both buffers are still the device's: one host page
  check(b.host.discarded == page_bits({4, 5, 6, 7}));
  check(b.device.counters().inflated_pages == 4);
  check(b.device.counters().partial_pages == 6);
};
BOTH("of larger host pages only whole ones are discarded, over the buffers of one batch",
     large_host_pages)

// RT-51, and the whole order on memory: nothing of a page may happen after its buffer is returned.
struct ordered_host {
  ballast_test::event_log<256>* log;
  constexpr bool discard(guest_address address, std::uint64_t) noexcept {
    log->mark(address);
    return true;
  }
};
constexpr auto discard_first = [](auto check) {
  using recorded = ballast_test::recording_memory<ram_type, 256>;
  ram_type ram;
  ballast_test::event_log<256> log;
  recorded memory(ram, log);
  ordered_host host{&log};
  balloon::device<recorded, ordered_host, 8> device(host);
  std::array<driver_slot, 8> slots{};
  split_driver<ram_type> queue(slots);
  const feature_set features{feature::version_1};
  const queue_layout layouts[] = {split::place(0, 8).layout};
  check(queue.start(ram, layouts[0], features).has_value());
  check(device.activate(features, layouts, memory) == actions{});
  const auto pfns = std::bit_cast<std::array<std::byte, 8>>(std::array<le32, 2>{4u, 9u});
  check(ram.write(0x2000, pfns));
  for (const guest_address at : {0x2000u, 0x2004u}) {
    const buffer one{at, 4};
    check(queue.add({&one, 1}, {}, 0).has_value());
  }
  queue.publish();
  log.clear();
  check(device.process(0, 8).notify_queues == 1);
  using ballast_test::event_kind;
  const auto published = log.find(event_kind::store, layouts[0].device_area + split::used_index);
  check(log.lost() == 0 && published != log.npos);
  check(log[published].order == order::release && log[published].value == 2);
  check(log.find(event_kind::mark, 4 * 4096) < published);
  check(log.find(event_kind::mark, 9 * 4096) < published);
  check(log.count(event_kind::mark) == 2);
  // One release for the batch.
  check(log.find(event_kind::store, layouts[0].device_area + split::used_index, published + 1) ==
        log.npos);
};
BOTH("RT-51: every discard comes before the buffers are published, at once", discard_first)

// Statistics.

constexpr auto statistics_cycle = [](auto check) {
  bench<> b;
  (void)b.activate();
  check(b.device.request_statistics().failure == error::no_statistics_buffer);
  b.put_statistic(statistic_tag::free_memory, 100);
  check(b.send(2, {{b.data, 10}}));
  check(b.device.process(2, 8) == actions{}); // kept: nothing to notify
  check(b.queues[2].pop_used().error() == error::queue_empty);
  auto first = b.device.take_statistics(11);
  check(first && first->value(statistic_tag::free_memory) == 100 && first->received_at == 11);
  check(!first->is_solicited); // nobody asked
  check(b.device.take_statistics(12).error() == error::queue_empty);

  check(b.device.request_statistics() == actions{.notify_queues = 4});
  check(b.device.is_statistics_pending());
  check(b.device.request_statistics().failure == error::no_statistics_buffer);
  check(b.queues[2].pop_used()->length == 0);
  (void)b.device.set_target(3);
  b.put_statistic(statistic_tag::available_memory, 50);
  check(b.send(2, {{b.data, 10}}));
  check(b.device.process(2, 8).failure == error::none);
  check(!b.device.is_statistics_pending());
  const auto reply = b.device.take_statistics(13);
  check(reply && reply->is_solicited && reply->target_pages == 3);
  check(reply->value(statistic_tag::available_memory) == 50);
  check(!reply->has(statistic_tag::free_memory)); // RT-41: what is missing now is unset
};
BOTH("a statistics buffer is kept, and returned only to ask for the next", statistics_cycle)

constexpr auto duplicate = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::free_memory, 1);
  b.put_statistic(statistic_tag::free_memory, 2, b.data + 16);
  check(b.send(2, {{b.data, 10}}));
  check(b.send(2, {{b.data + 16, 10}}));
  check(b.device.process(2, 8) == actions{.notify_queues = 4});
  check(b.queues[2].pop_used().has_value()); // the first came back, published
  check(b.queues[2].pop_used().error() == error::queue_empty);
  check(b.device.take_statistics(0)->value(statistic_tag::free_memory) == 2);
  check(b.device.counters().duplicate_statistics == 1);
  check(b.device.request_statistics().notify_queues == 4);
  check(b.queues[2].pop_used().has_value());
};
BOTH("RT-35: a second buffer sends the first one back", duplicate)

constexpr auto stale = [](auto check) {
  bench<> b;
  (void)b.activate();
  check(b.device.abandon_statistics().error() == error::no_request_pending);
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  (void)b.device.take_statistics(0);
  (void)b.device.request_statistics();
  check(b.device.abandon_statistics().has_value()); // the caller's clock ran out
  check(!b.device.is_statistics_pending());
  check(b.queues[2].pop_used().has_value());
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  check(!b.device.take_statistics(9)->is_solicited);
  check(b.device.request_statistics().notify_queues == 4); // and the buffer serves again
};
BOTH("RT-49: a reply after the caller gave up is marked as stale", stale)

constexpr auto odd_statistics = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(static_cast<statistic_tag>(0x1234), 77);
  b.put_statistic(statistic_tag::oom_kills, 5, b.data + 10);
  const guest_address at = b.data; // 10 + 10 + 3 bytes, cut within the second entry
  check(b.send(2, {{at, 13}, {at + 13, 1}, {at + 14, 9}}));
  check(b.device.process(2, 8) == actions{});
  const auto s = b.device.take_statistics(0);
  check(s && s->value(statistic_tag::oom_kills) == 5);
  check(s->unknown().size() == 1 && s->unknown()[0].tag == 0x1234 && s->unknown()[0].value == 77);
};
BOTH("RT-37, RT-42, BDEV-4: an unknown tag is kept as it is, a partial entry at the end ignored",
     odd_statistics)

constexpr auto statistics_outside = [](auto check) {
  bench<> b;
  (void)b.activate();
  check(b.send(2, {{0xffff'ffff'ffff'fff0, 10}}));
  const actions done = b.device.process(2, 8);
  check(done.needs_reset && done.failure == error::not_guest_memory);
  check(!b.device.take_statistics(0));
};
BOTH("statistics outside memory break the queue and give no snapshot", statistics_outside)

constexpr auto failed_read = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8); // a snapshot that nobody has taken yet
  b.put_statistic(statistic_tag::free_memory, 2);
  check(b.send(2, {{b.data, 10}, {0xffff'ffff'ffff'fff0, 10}}));
  check(b.device.process(2, 8).failure == error::not_guest_memory);
  const auto s = b.device.take_statistics(0);
  check(s && s->value(statistic_tag::free_memory) == 1); // of the buffer that was read whole
  check(!b.device.take_statistics(0));
};
BOTH("statistics that can't be read whole change no snapshot", failed_read)

constexpr auto answered_twice = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  (void)b.device.take_statistics(0);
  (void)b.device.request_statistics();
  check(b.queues[2].pop_used().has_value());
  b.put_statistic(statistic_tag::free_memory, 2);
  check(b.send(2, {{b.data, 10}}));
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  check(b.device.take_statistics(0)->is_solicited);
};
BOTH("RT-35: a duplicate does not take the answer away from one who waits", answered_twice)

constexpr auto old_actual = [](auto check) {
  bench<> b;
  (void)b.activate();
  const auto twenty = std::bit_cast<std::array<std::byte, 4>>(le32(20u));
  check(b.device.write_config(4, twenty) == actions{});
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  check(b.device.take_statistics(0)->actual_pages == 20);
  b.device.reset(); // the guest reboots; its driver has written nothing yet
  b.start_queues();
  check(b.send(2, {{b.data, 10}}));
  (void)b.activate();
  check(b.device.actual() == 20);                        // as last written
  check(b.device.take_statistics(0)->actual_pages == 0); // but no balloon of this guest
};
BOTH("a snapshot knows no balloon size of before a reset", old_actual)

constexpr auto masked = [](auto check) {
  const bench<> b({.offered = {balloon::feature::stats_vq, balloon::feature::free_page_hint,
                               balloon::feature::page_poison, balloon::feature::page_reporting,
                               feature::sr_iov, feature::access_platform, 6}});
  // test_host has no `hint`.
  check(b.device.offered_features() ==
        feature_set{balloon::feature::stats_vq, balloon::feature::page_poison,
                    balloon::feature::page_reporting, feature::version_1});
  check(b.device.queue_count() == 4 && b.device.config_size() == 16);
};
BOTH("FT-8: what the device can't do is not offered, whatever the options say", masked)

constexpr auto much_at_once = [](auto check) {
  bench<> b({.buffer_pfns_max = 1});
  for (std::uint32_t i = 0; i < 8; ++i) {
    b.put_pfns({4 + i}, b.data + 4 * i);
    check(b.send(0, {{b.data + 4 * i, 4}}));
  }
  check(b.activate() == actions{.notify_queues = 1, .more_work = 1});
  check(b.device.counters().inflated_pages == 4);
  check(b.device.process(0, 8).more_work == 0);
  check(b.device.counters().inflated_pages == 8);
};
BOTH("RT-9: an activation does a bounded amount of work", much_at_once)

constexpr auto moved = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  b.device.detach();
  check(b.device.process(0, 8).failure == error::invalid_queue_index);
  ram_type other = b.ram; // the same contents, mapped elsewhere
  check(b.device.attach(b.layouts, other).failure == error::none);
  check(b.device.request_statistics() == actions{.notify_queues = 4}); // still held
  check(b.queues[2].pop_used().error() == error::queue_empty);         // went to the other memory
  bench<> idle;
  check(idle.device.attach(idle.layouts, idle.ram).failure == error::wrong_state);

  // What came meanwhile is looked at; a queue that was reset stays without memory until it is
  // enabled, which takes memory too.
  bench<> c;
  (void)c.activate();
  check(c.device.reset_queue(1).failure == error::none);
  c.device.detach();
  check(c.device.enable_queue(1, c.layouts[1]).failure == error::not_attached);
  check(c.send(0, {{c.data, 4}}));
  const actions due = c.device.attach(c.layouts, c.ram);
  check(due.failure == error::none && due.more_work == 0b101);
  ram_type another;
  check(c.device.attach(c.layouts, another).failure == error::already_attached);
  check(c.device.process(0, 8).notify_queues == 1 && c.device.counters().inflate_count == 1);
  check(c.device.process(1, 8).failure == error::invalid_queue_index);
  check(c.device.enable_queue(1, c.layouts[1]).failure == error::none);
};
BOTH("detach and attach keep what the device holds while the memory map changes", moved)

constexpr auto no_statistics = [](auto check) {
  bench<> b;
  b.features = {feature::version_1};
  b.layouts[2] = {};
  (void)b.activate();
  check(b.device.request_statistics().failure == error::not_negotiated);
  check(b.device.process(2, 8).failure == error::invalid_queue_index);
};
BOTH("without STATS_VQ there is no statsq", no_statistics)

// Configuration and life cycle.

constexpr auto target = [](auto check) {
  bench<> b({.target_pages_max = 16});
  check(b.device.set_target(17).failure == error::target_too_large);
  check(b.device.target() == 0);
  const auto generation = b.device.config_generation();
  check(b.device.set_target(16) == actions{}); // RS-2: nobody to notify yet
  check(b.device.config_generation() != generation);
  (void)b.activate();
  check(b.device.set_target(16) == actions{}); // no change
  check(b.device.set_target(5) == actions{.config_changed = true});
  std::array<std::byte, 4> raw{};
  check(b.device.read_config(0, raw).has_value() && raw[0] == std::byte{5});
  b.device.reset();
  check(b.device.target() == 5);
};
BOTH("RT-54: the target is bounded, announced once live, and survives a reset", target)

constexpr auto config_writes = [](auto check) {
  bench<> b;
  (void)b.device.set_target(9);
  const std::array<std::byte, 8> raw{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                                     std::byte{5}, std::byte{6}, std::byte{7}, std::byte{8}};
  check(b.device.write_config(0, raw).failure == error::none);
  check(b.device.target() == 9 && b.device.actual() == 0x0807'0605);
  check(b.device.write_config(7, std::span(raw).first(1)).failure == error::none);
  check(b.device.actual() == 0x0107'0605); // bytewise
  check(b.device.write_config(4, raw).failure == error::config_out_of_range);
  check(b.device.write_config(0xffff'ffff, std::span(raw).first(2)).failure ==
        error::config_out_of_range);
  check(b.device.actual() == 0x0107'0605);
  check(b.device.config_size() == 8);
};
BOTH("RT-11, RT-40: a driver writes actual and nothing else", config_writes)

constexpr auto early = [](auto check) {
  bench<> b;
  b.put_pfns({4});
  check(b.send(0, {{b.data, 4}}));
  b.put_statistic(statistic_tag::free_memory, 1, b.data + 16);
  check(b.send(2, {{b.data + 16, 10}}));
  check(b.device.process(0, 8).failure == error::wrong_state); // ST-5
  check(b.host.calls == 0);
  check(b.activate() == actions{.notify_queues = 1});
  check(b.host.discarded == page_bits({4}));
  check(b.device.take_statistics(0).has_value());
  check(b.activate().failure == error::wrong_state); // RT-27: not twice
};
BOTH("RT-56, ST-5: what was made available before DRIVER_OK is used at DRIVER_OK", early)

constexpr auto resets = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  const auto before = b.device.take_statistics(0)->epoch;
  b.device.reset();
  check(b.device.process(0, 1).failure == error::wrong_state);
  check(b.device.request_statistics().failure == error::not_negotiated);
  b.start_queues();
  check(b.activate() == actions{});
  check(b.device.request_statistics().failure == error::no_statistics_buffer);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  check(b.device.take_statistics(0)->epoch == before + 1);
};
BOTH("RT-26: a reset forgets the queues, the held buffer and the epoch", resets)

constexpr auto queue_resets = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(2, {{b.data, 10}}));
  (void)b.device.process(2, 8);
  check(b.device.reset_queue(2).failure == error::none);
  check(b.device.request_statistics().failure == error::no_statistics_buffer); // RT-60
  check(b.device.process(2, 8).failure == error::invalid_queue_index);
  check(b.device.reset_queue(7).failure == error::invalid_queue_index);
  // The others go on.
  b.put_pfns({4}, b.data + 64);
  check(b.send(0, {{b.data + 64, 4}}));
  check(b.device.process(0, 8).notify_queues == 1);
  // Given back, smaller, with a buffer in it already.
  b.layouts[2] = split::place(0x400, 4).layout;
  check(b.queues[2].start(b.ram, b.layouts[2], b.features).has_value());
  check(b.send(2, {{b.data, 10}}));
  check(b.device.enable_queue(2, b.layouts[2]).failure == error::none);
  check(b.device.take_statistics(0).has_value());
  check(b.device.request_statistics().notify_queues == 4);
  queue_layout outside = b.layouts[2];
  outside.device_area = 0xf'0000;
  check(b.device.enable_queue(2, outside).failure == error::not_guest_memory);
  bench<> idle;
  check(idle.device.enable_queue(0, idle.layouts[0]).failure == error::wrong_state);
};
BOTH("VR-2, RT-60: a queue that is reset is forgotten, and taken up again elsewhere", queue_resets)

constexpr auto offers = [](auto check) {
  const bench<> plain;
  check(plain.device.offered_features() ==
        feature_set{balloon::feature::stats_vq, feature::event_idx, feature::version_1});
  check(plain.device.device_id() == 5);
  check(plain.device.queue_count() == 3);
  check(plain.device.queue_size_max(2) == 8 && plain.device.queue_size_max(3) == 0);
  check(plain.device.check_features({feature::version_1}).has_value());
  const bench<> strict(
      {.offered = {balloon::feature::must_tell_host}, .requires_must_tell_host = true});
  check(strict.device.queue_count() == 2 && strict.device.queue_size_max(2) == 0);
  check(strict.device.check_features({feature::version_1}).error() == error::features_rejected);
  check(strict.device.check_features({balloon::feature::must_tell_host, feature::version_1})
            .has_value());
};
BOTH("BDEV-1: DEFLATE_ON_OOM and MUST_TELL_HOST are off unless asked for, and may be insisted on",
     offers)

constexpr auto bad_queues = [](auto check) {
  bench<> b;
  b.layouts[1].device_area = 0xf'0000;
  const actions done = b.activate();
  check(done.needs_reset && done.failure == error::not_guest_memory);
  check(b.device.process(0, 1).failure == error::wrong_state);
};
BOTH("a ring outside memory keeps the device from starting", bad_queues)

// All five queues.

constexpr feature_set everything{balloon::feature::must_tell_host,
                                 balloon::feature::stats_vq,
                                 balloon::feature::free_page_hint,
                                 balloon::feature::page_poison,
                                 balloon::feature::page_reporting,
                                 feature::ring_reset,
                                 feature::version_1};
constexpr std::size_t inflateq = 0, deflateq = 1, statsq = 2, free_page_vq = 3, reporting_vq = 4;
constexpr guest_address page_4 = 4 * 4096;

/// A device that offers everything, and a driver that accepted it.
template <std::endian E = std::endian::little, class Host = full_host>
struct full_bench : bench<E, ram_type, Host> {
  using base = bench<E, ram_type, Host>;
  using base::data, base::send, base::put, base::device, base::queues;

  constexpr explicit full_bench(balloon::device_options options = {},
                                const feature_set& accepted = everything)
      : base(with_everything(options)) {
    base::features = accepted;
  }
  constexpr bool put_config(std::uint32_t offset, std::uint32_t value) {
    const auto raw = std::bit_cast<std::array<std::byte, 4>>(le32(value));
    return device.write_config(offset, raw).failure == error::none;
  }
  [[nodiscard]] constexpr std::uint32_t get_config(std::uint32_t offset) const {
    std::array<std::byte, 4> raw{};
    (void)device.read_config(offset, raw);
    return std::bit_cast<le32>(raw);
  }
  [[nodiscard]] constexpr std::uint32_t shown_id() const { return get_config(8); }
  /// A command in the free_page_vq, cut into two buffers.
  constexpr bool command(std::uint32_t id, guest_address at = data) {
    put(at, word<std::uint32_t, E>(id));
    return send(free_page_vq, {{at, 3}, {at + 3, 1}});
  }
  constexpr bool hint(unsigned first_page, unsigned count = 1) {
    return send(free_page_vq, {}, {{std::uint64_t{first_page} * 4096, count * 4096}});
  }
  /// How many buffers came back, all with a used length of 0.
  constexpr std::uint32_t returned(std::size_t queue) {
    std::uint32_t n = 0;
    for (auto used = queues[queue].pop_used(); used; used = queues[queue].pop_used())
      n += used->length == 0 ? 1u : 1000u;
    return n;
  }

 private:
  static constexpr balloon::device_options with_everything(balloon::device_options options) {
    options.offered = everything;
    return options;
  }
};

constexpr auto all_queues = [](auto check) {
  const full_bench<> b;
  check(b.device.offered_features() == everything);
  check(b.device.queue_count() == 5 && b.device.config_size() == 16);
  check(b.device.queue_size_max(inflateq) == 8 && b.device.queue_size_max(statsq) == 8);
  check(b.device.queue_size_max(free_page_vq) == 8);
  check(b.device.queue_size_max(reporting_vq) == 32); // Linux takes no less
  full_host host;
  const balloon::device<ram_type, full_host, 1> small(host, {.offered = everything});
  check(small.queue_size_max(free_page_vq) == 2 && small.queue_size_max(reporting_vq) == 32);
  check(small.queue_size_max(inflateq) == 1);
};
BOTH("RT-48: with all features there are five queues, as large as Linux needs them", all_queues)

template <std::endian E> constexpr void hint_round(auto check) {
  full_bench<E> b;
  check(b.device.start_hinting().failure == error::not_negotiated); // RT-49: nobody is there
  (void)b.activate();
  check(b.hint(4) && b.device.process(free_page_vq, 8) == actions{.notify_queues = 8});
  check(b.host.hinted == 0 && b.device.counters().ignored_hints == 1);
  check(b.device.start_hinting() == actions{.config_changed = true});
  const std::uint32_t id = b.shown_id();
  check(id >= 2 && id == b.device.hinting().command_id());
  check(b.device.take_events() == balloon::device_events{.hinting_changed = true});
  check(b.hint(4)); // before the id
  check(b.command(id) && b.hint(5, 2));
  check(b.device.process(free_page_vq, 8) == actions{.notify_queues = 8}); // the id stays shown
  check(b.shown_id() == id && b.host.hinted == page_bits({5, 6}));
  check(b.device.take_events().hinting_changed);
  check(b.command(0) && b.hint(7));
  check(b.device.process(free_page_vq, 8) == actions{.notify_queues = 8, .config_changed = true});
  check(b.shown_id() == 0 && b.host.hinted == page_bits({5, 6}));
  check(b.device.finish_hinting() == actions{.config_changed = true});
  check(b.shown_id() == 1 && b.device.finish_hinting() == actions{});
  check(b.returned(free_page_vq) == 6);
  check(b.hint(8) && b.device.process(free_page_vq, 8).failure == error::none); // BDEV-10
  check(b.host.hinted == page_bits({5, 6}) && b.host.discarded == 0);
  check(b.returned(free_page_vq) == 1);
  check(b.device.counters().ignored_hints == 4 && b.device.hinting().counters().rounds == 1);
}
constexpr auto hints_little = [](auto check) { hint_round<std::endian::little>(check); };
constexpr auto hints_big = [](auto check) { hint_round<std::endian::big>(check); };
BOTH("RT-31 BDEV-8 BDEV-10 BDEV-11: hints count from the id to STOP, and every buffer comes back",
     hints_little)
BOTH("... in big-endian rings too", hints_big)

constexpr auto hint_stop = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  (void)b.device.start_hinting();
  const std::uint32_t first = b.shown_id();
  check(b.command(first));
  (void)b.device.process(free_page_vq, 8);
  check(b.device.stop_hinting() == actions{.config_changed = true}); // before a bitmap sync
  check(b.shown_id() == 0 && b.device.stop_hinting() == actions{});
  check(b.hint(5));
  (void)b.device.process(free_page_vq, 8);
  check(b.host.hinted == 0);
  check(b.device.start_hinting() == actions{.config_changed = true});
  check(b.shown_id() != first && b.shown_id() >= 2); // BDEV-7
  check(b.hint(5));                                  // still of the first round
  (void)b.device.process(free_page_vq, 8);
  check(b.host.hinted == 0);
};
BOTH("BDEV-6 BDEV-7: while hints can't be used STOP is shown, and the next round has another id",
     hint_stop)

constexpr auto hint_commands = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  (void)b.device.start_hinting();
  const std::uint32_t id = b.shown_id();
  b.put(b.data, le32(id));
  b.put(b.data + 4, le32(0u));
  // A buffer to write to is a range, of 4 bytes too.
  check(b.send(free_page_vq, {}, {{b.data, 4}}));
  for (const std::uint32_t size : {0u, 3u, 5u, 8u}) check(b.send(free_page_vq, {{b.data, size}}));
  check(b.device.process(free_page_vq, 8).failure == error::none);
  check(b.device.hinting().counters().malformed_commands == 4);
  check(b.device.hinting().state() == balloon::hint_state::requested);
  check(b.returned(free_page_vq) == 5);
  check(b.send(free_page_vq, {{0x10'0000, 4}}));                // nowhere
  check(b.send(free_page_vq, {{b.data, 4}}, {{page_4, 4096}})); // a command, then a page
  check(b.device.process(free_page_vq, 8).failure == error::none);
  check(b.device.hinting().counters().malformed_commands == 5);
  check(b.host.hinted == page_bits({4}) && b.returned(free_page_vq) == 2);
  // In a round it ends that: nobody knows under which id the next pages come.
  check(b.send(free_page_vq, {{b.data, 3}}) && b.hint(5));
  check(b.device.process(free_page_vq, 8) == actions{.notify_queues = 8, .config_changed = true});
  check(b.shown_id() == 0 && b.host.hinted == page_bits({4}));
};
BOTH("RT-39: only 4 readable bytes are a command, however they are cut; others end the round",
     hint_commands)

constexpr auto strict_commands = [](auto check) {
  full_bench<> b({.hinting = {.needs_reset_if_malformed = true}});
  (void)b.activate();
  (void)b.device.start_hinting();
  check(b.command(b.shown_id()) && b.hint(4));
  check(b.send(free_page_vq, {{b.data, 3}}) && b.hint(5));
  const actions done = b.device.process(free_page_vq, 8);
  check(done.needs_reset && done.failure == error::hint_command_malformed);
  check(done.notifies(free_page_vq));
  check(b.host.hinted == page_bits({4})); // what came before counts, what comes after does not
  check(b.returned(free_page_vq) == 4);
  check(b.device.process(free_page_vq, 8).failure == error::hint_command_malformed);
  check(b.device.counters().event_fails == 2);
};
BOTH("RT-43: a malformed command may break its queue; all buffers are published all the same",
     strict_commands)

constexpr auto compatible_id = [](auto check) {
  full_bench<> b({.hinting = {.first_id = 0x8000'0000, .hides_started_id = true}});
  (void)b.activate();
  (void)b.device.start_hinting();
  check(b.shown_id() == 0x8000'0000);
  check(b.command(0x8000'0000) && b.hint(4));
  check(b.device.process(free_page_vq, 8) == actions{.notify_queues = 8}); // and no interrupt
  check(b.shown_id() == 0 && b.host.hinted == page_bits({4}));
};
BOTH("a device can hide the id that was taken up, as QEMU does", compatible_id)

constexpr auto reports = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  check(b.send(reporting_vq, {}, {{page_4, 8192}, {0x10'0000, 4096}, {9 * 4096, 4096}}));
  check(b.device.process(reporting_vq, 8) == actions{.notify_queues = 16});
  check(b.host.discarded == page_bits({4, 5, 9}) && b.returned(reporting_vq) == 1);
  const auto& did = b.device.counters();
  check(did.free_page_report_count == 3 && did.free_page_report_fails == 1);
  check(did.free_page_report_freed == 3 * 4096 && did.inflated_pages == 0);
};
BOTH("RT-45 RT-47: reports are ranges; a bad one is counted and its buffer returned", reports)

constexpr auto report_length = [](auto check) {
  full_bench<> b({.reporting_used_length = balloon::reported_length::bytes});
  (void)b.activate();
  check(b.send(reporting_vq, {}, {{page_4, 8192}, {9 * 4096, 4096}}));
  (void)b.device.process(reporting_vq, 8);
  check(b.queues[reporting_vq].pop_used()->length == 3 * 4096);
};
BOTH("RT-44: what a report is returned with is a policy, 0 unless asked for", report_length)

constexpr auto poison_once = [](auto check) {
  full_bench<> b;
  check(b.put_config(12, 0x5555'5555) && b.put_config(12, 0xaaaa'aaaa));
  check(b.device.poison() == 0xaaaa'aaaa);
  (void)b.activate();
  check(b.put_config(12, 0)); // BDRV-36: ignored
  check(b.device.poison() == 0xaaaa'aaaa && b.get_config(12) == 0xaaaa'aaaa);
  check(b.send(reporting_vq, {}, {{page_4, 4096}}));
  (void)b.device.process(reporting_vq, 8);
  check(b.host.filled == page_bits({4}) && b.host.pattern == 0xaaaa'aaaa);
  b.device.reset();
  check(b.device.poison() == 0);
  b.start_queues();
  (void)b.activate(); // RT-56: a driver that forgets to say it again has none
  check(b.send(reporting_vq, {}, {{page_4, 4096}}));
  (void)b.device.process(reporting_vq, 8);
  check(b.host.discarded == page_bits({4}));
};
BOTH("BDRV-35 BDRV-36 BDEV-12: the poison is the driver's until DRIVER_OK, and 0 after a reset",
     poison_once)

constexpr auto no_poison = [](auto check) {
  feature_set accepted = everything;
  accepted.clear(balloon::feature::page_poison);
  full_bench<> b({}, accepted);
  check(b.put_config(12, 0xaaaa'aaaa));
  (void)b.activate();
  check(b.device.poison() == 0 && b.get_config(12) == 0);
  check(b.put_config(12, 0xaaaa'aaaa) && b.get_config(12) == 0);
  check(b.send(reporting_vq, {}, {{page_4, 4096}}));
  (void)b.device.process(reporting_vq, 8);
  check(b.host.discarded == page_bits({4})); // BDEV-13
};
BOTH("BDRV-35 BDEV-13: without PAGE_POISON there is no poison, whatever was written", no_poison)

// RT-51 for ranges, and the whole order on memory.
struct marking_host {
  ballast_test::event_log<512>* log;
  constexpr bool discard(guest_address address, std::uint64_t) noexcept {
    log->mark(address);
    return true;
  }
  constexpr bool hint(guest_address address, std::uint64_t) noexcept {
    log->mark(address);
    return true;
  }
};
constexpr auto ranges_first = [](auto check) {
  using recorded = ballast_test::recording_memory<ram_type, 512>;
  using ballast_test::event_kind;
  ram_type ram;
  ballast_test::event_log<512> log;
  recorded memory(ram, log);
  marking_host host{&log};
  const feature_set accepted{balloon::feature::free_page_hint, balloon::feature::page_reporting,
                             feature::version_1};
  balloon::device<recorded, marking_host, 8> device(host, {.offered = accepted});
  std::array<driver_slot, 8> slots[2]{};
  split_driver<ram_type> queues[2]{split_driver<ram_type>(slots[0]),
                                   split_driver<ram_type>(slots[1])};
  queue_layout layouts[4]{};
  for (std::size_t i = 0; i < 2; ++i) { // 2: free_page_vq, 3: reporting_vq
    layouts[2 + i] = split::place(i * 0x200, 8).layout;
    check(queues[i].start(ram, layouts[2 + i], accepted).has_value());
  }
  check(device.activate(accepted, layouts, memory) == actions{});
  (void)device.start_hinting();
  const auto id = std::bit_cast<std::array<std::byte, 4>>(le32(device.hinting().command_id()));
  check(ram.write(0x2000, id));
  const buffer command{0x2000, 4}, page{page_4, 4096};
  check(queues[0].add({&command, 1}, {&page, 1}, 0).has_value());
  check(queues[1].add({}, {&page, 1}, 0).has_value());
  for (std::uint16_t i = 0; i < 2; ++i) {
    queues[i].publish();
    log.clear();
    check(device.process(static_cast<std::uint16_t>(2 + i), 8).failure == error::none);
    const auto used = log.find(event_kind::store, layouts[2 + i].device_area + split::used_index);
    check(log.lost() == 0 && used != log.npos && log[used].order == order::release);
    check(log.count(event_kind::mark) == 1 && log.find(event_kind::mark, page_4) < used);
  }
};
BOTH("RT-51 BDEV-9: hinted and reported pages are dealt with before their buffers are published",
     ranges_first)

// Events, and adjustments.

constexpr auto events = [](auto check) {
  full_bench<> b;
  check(b.device.set_target(32) == actions{});
  check(b.device.take_events() == balloon::device_events{});
  (void)b.activate();
  check(b.put_config(4, 10));
  check(b.device.take_events() == balloon::device_events{.actual_changed = true});
  check(b.put_config(4, 10)); // the same
  check(b.device.take_events() == balloon::device_events{});
  check(b.put_config(0, 10)); // RT-50: what the driver takes for the target is none of ours
  check(b.device.take_events() == balloon::device_events{} && !b.device.is_target_reached());
  check(b.put_config(4, 32));
  check(b.device.take_events() ==
        balloon::device_events{.actual_changed = true, .target_reached = true});
  check(b.device.is_target_reached());
  check(b.device.set_target(20).config_changed);
  check(b.device.take_events() == balloon::device_events{.target_reached = true}); // 64 KiB pages
  check(b.device.set_target(8).config_changed && !b.device.take_events().target_reached);
  b.put_statistic(statistic_tag::free_memory, 1);
  check(b.send(statsq, {{b.data, 10}}));
  (void)b.device.process(statsq, 8);
  check(b.device.take_events() == balloon::device_events{.statistics_arrived = true});
};
BOTH("RT-50 RT-55: what changed is told once to who looks: size, target, statistics", events)

constexpr auto given_up = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  balloon::adjustment change({.without_progress = 5});
  check(b.device.set_target(100).config_changed);
  check(change.begin(100, b.device.actual(), 0) == balloon::adjustment_state::under_way);
  check(b.put_config(4, 60)); // "Out of puff!"
  check(change.update(b.device.actual(), 2) == balloon::adjustment_state::under_way);
  check(change.update(b.device.actual(), 7) == balloon::adjustment_state::given_up);
  check(b.device.set_target(b.device.actual()).config_changed);
  check(b.device.is_target_reached() && b.device.take_events().target_reached);
};
BOTH("a target that a guest can't reach is given up by the caller's time", given_up)

// Host pages, resets and errors.

/// As `full_bench`, with a tracker of 16 KiB pages.
struct tracked_bench {
  balloon::host_page_storage<16, 16384> storage;
  balloon::host_page_tracker tracker = *balloon::host_page_tracker::over(storage, {0, 16}, 16384);
  full_bench<> b{{.tracker = &tracker}};

  constexpr actions inflate(std::initializer_list<std::uint32_t> pfns, std::size_t queue = 0) {
    b.put_pfns(pfns);
    (void)b.send(queue, {{b.data, static_cast<std::uint32_t>(4 * pfns.size())}});
    const actions done = b.device.process(static_cast<std::uint16_t>(queue), 8);
    (void)b.returned(queue);
    return done;
  }
};

constexpr auto tracked_device = [](auto check) {
  tracked_bench t;
  auto& b = t.b;
  (void)b.activate();
  (void)t.inflate({4, 5});
  check(t.inflate({7, 6}).notify_queues == 1 && b.host.discarded == page_bits({4, 5, 6, 7}));
  (void)t.inflate({6}, deflateq);
  check(b.host.provided == page_bits({4, 5, 6, 7}));
  check(b.device.counters().inflate_count == 2 && b.device.counters().deflate_count == 1);
  feature_set accepted = everything;
  accepted.clear(balloon::feature::must_tell_host);
  tracked_bench silent;
  silent.b.features = accepted;
  silent.b.start_queues();
  (void)silent.b.activate();
  (void)silent.inflate({4, 5});
  (void)silent.inflate({7, 6});
  check(silent.b.host.discarded == 0 && silent.tracker.held_pages() == 0);
};
BOTH("RT-59 BDEV-3: a tracker reaches beyond a buffer if the driver accepted MUST_TELL_HOST",
     tracked_device)

constexpr auto tracker_forgets = [](auto check) {
  for (int what = 0; what < 5; ++what) {
    tracked_bench t;
    auto& b = t.b;
    (void)b.activate();
    (void)t.inflate({4, 5, 6});
    check(t.tracker.held_pages() == 3);
    if (what == 0) b.device.reset();
    if (what == 1) (void)b.device.reset_queue(inflateq);
    if (what == 2) (void)b.device.reset_queue(deflateq);
    if (what == 3) b.device.detach();
    if (what == 4) (void)b.device.reset_queue(reporting_vq);
    check(t.tracker.held_pages() == (what == 4 ? 3 : 0)); // that one has nothing to do with it
    if (what == 0) {
      b.start_queues();
      (void)b.activate();
    }
    if (what == 1) {
      (void)b.queues[inflateq].start(b.ram, b.layouts[inflateq], b.features);
      check(b.device.enable_queue(inflateq, b.layouts[inflateq]).failure == error::none);
    }
    if (what == 3) check(b.device.attach(b.layouts, b.ram).failure == error::none);
    (void)t.inflate({7});
    check(b.host.discarded == (what == 4 ? page_bits({4, 5, 6, 7}) : 0));
  }
};
BOTH("RT-33 RT-60: reset, queue reset and a new mapping forget what is inflated in part",
     tracker_forgets)

constexpr auto under_load = [](auto check) {
  for (std::uint16_t queue = 0; queue < 5; ++queue) {
    full_bench<> b;
    (void)b.activate();
    (void)b.device.set_target(9);
    (void)b.device.start_hinting();
    b.put_pfns({4}, b.data + 64);
    b.put_statistic(statistic_tag::free_memory, 1, b.data + 128);
    const auto load = [&](std::size_t q) {
      if (q == free_page_vq) return b.command(b.shown_id()) && b.hint(4);
      if (q == reporting_vq) return b.send(q, {}, {{page_4, 4096}});
      return b.send(q, {{q == statsq ? b.data + 128 : b.data + 64, q == statsq ? 10u : 4u}});
    };
    for (std::size_t q = 0; q < 5; ++q) check(load(q));
    (void)b.device.process(statsq, 8); // held
    const actions away = b.device.reset_queue(queue);
    check(away.failure == error::none && away.config_changed == (queue == free_page_vq));
    check(b.device.process(queue, 8).failure == error::invalid_queue_index);
    for (std::uint16_t q = 0; q < 5; ++q) // the others go on with what was there
      if (q != queue) check(b.device.process(q, 8).failure == error::none);
    check((b.host.hinted == 0) == (queue == free_page_vq));
    check(b.device.request_statistics().failure ==
          (queue == statsq ? error::no_statistics_buffer : error::none));
    check(b.host.calls == (queue == statsq ? 4u : 3u));
    // Given back, empty, and used again.
    check(b.queues[queue].start(b.ram, b.layouts[queue], b.features).has_value());
    check(b.device.enable_queue(queue, b.layouts[queue]).failure == error::none);
    if (queue == free_page_vq) check(b.device.start_hinting().config_changed);
    check(load(queue) && b.device.process(queue, 8).failure == error::none);
    check(b.returned(queue) == (queue == statsq ? 0u : queue == free_page_vq ? 2u : 1u));
    check(b.host.calls == 4 && b.device.target() == 9);
  }
};
BOTH("RT-60: each of the five queues can be reset under load; the others go on", under_load)

constexpr auto reset_in_round = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  (void)b.device.set_target(9);
  (void)b.device.start_hinting();
  const std::uint32_t id = b.shown_id();
  check(b.command(id) && b.hint(4));
  check(b.send(reporting_vq, {}, {{page_4, 4096}}));
  b.put_statistic(statistic_tag::free_memory, 1, b.data + 128);
  check(b.send(statsq, {{b.data + 128, 10}}));
  (void)b.device.process(statsq, 8);
  b.device.reset();
  check(b.shown_id() == 0 && b.device.target() == 9);
  for (std::uint16_t q = 0; q < 5; ++q) check(b.device.process(q, 8).failure == error::wrong_state);
  check(b.device.stop_hinting().failure == error::not_negotiated);
  check(b.device.finish_hinting().failure == error::not_negotiated);
  check(!b.device.take_statistics(0));
  b.start_queues();
  check(b.activate() == actions{});
  check(b.command(id, b.data) && b.hint(5)); // the driver's cached id is of no round any more
  (void)b.device.process(free_page_vq, 8);
  check(b.host.calls == 0);
  (void)b.device.start_hinting();
  check(b.shown_id() != id && b.shown_id() >= 2);
};
BOTH("RT-26 RT-54 RT-36: a reset in a round ends it, keeps the target, and ids go on",
     reset_in_round)

constexpr auto broken_one = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  b.put(b.layouts[reporting_vq].driver_area + 2, le16(9)); // the index jumps
  const actions done = b.device.process(reporting_vq, 8);
  check(done.needs_reset && done.failure == error::available_index_jump);
  check(b.device.counters().event_fails == 1);
  b.put_pfns({4});
  check(b.send(inflateq, {{b.data, 4}}));
  check(b.device.process(inflateq, 8).notify_queues == 1); // until the driver resets the device
  check(b.host.discarded == page_bits({4}));
  // A queue reset mends it too.
  (void)b.device.reset_queue(reporting_vq);
  check(b.queues[reporting_vq].start(b.ram, b.layouts[reporting_vq], b.features).has_value());
  check(b.device.enable_queue(reporting_vq, b.layouts[reporting_vq]) == actions{});
  check(b.send(reporting_vq, {}, {{page_4, 4096}}));
  check(b.device.process(reporting_vq, 8).failure == error::none);
};
BOTH("RT-46: a broken queue asks for a reset; the others and its next life work", broken_one)

constexpr auto inhibited = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  (void)b.device.start_hinting();
  b.host.is_inhibited = true;
  b.put_pfns({4}, b.data + 64);
  check(b.send(inflateq, {{b.data + 64, 4}}) && b.command(b.shown_id()) && b.hint(5));
  check(b.send(reporting_vq, {}, {{page_4, 4096}}));
  for (const std::size_t q : {inflateq, free_page_vq, reporting_vq})
    check(b.device.process(static_cast<std::uint16_t>(q), 8).notifies(static_cast<unsigned>(q)));
  check(b.host.calls == 0 && b.device.counters().inhibited_buffers == 3);
  check(b.returned(inflateq) == 1 && b.returned(free_page_vq) == 2);
  check(b.returned(reporting_vq) == 1);
  check(b.device.hinting().is_accepting()); // the command was read
  b.host.is_inhibited = false;
  check(b.hint(5));
  (void)b.device.process(free_page_vq, 8);
  check(b.host.hinted == page_bits({5}));
};
BOTH("while discards are inhibited every buffer comes back and nothing is done with its pages",
     inhibited)

constexpr auto budgets = [](auto check) {
  full_bench<> b;
  for (std::uint32_t i = 0; i < 8; ++i) check(b.send(reporting_vq, {}, {{page_4, 4096}}));
  check(b.activate() == actions{.notify_queues = 16, .more_work = 16});
  check(b.device.counters().free_page_report_count == 4);
  check(b.device.process(reporting_vq, 2).more_work == 16);
  check(b.device.counters().free_page_report_count == 6);
  check(b.device.process(reporting_vq, 8).more_work == 0);
  for (std::uint32_t i = 0; i < 3; ++i) check(b.hint(4));
  check(b.device.process(free_page_vq, 2).more_work == 8);
  check(b.device.counters().ignored_hints == 2);
};
BOTH("RT-9: reports and hints are bounded by a budget too", budgets)

constexpr auto failed_activation = [](auto check) {
  full_bench<> b;
  b.layouts[reporting_vq].device_area = 0xf'0000;
  check(b.activate().failure == error::not_guest_memory);
  check(b.device.counters().activate_fails == 1 && b.device.counters().event_fails == 1);
  check(b.device.set_target(3) == actions{});
  check(b.device.request_statistics().failure != error::none); // RT-49: no driver to ask
};
BOTH("RT-49: without a live driver requests are refused, and a failed activation is counted",
     failed_activation)

constexpr auto unreadable_statistics = [](auto check) {
  full_bench<> b;
  (void)b.activate();
  check(b.send(statsq, {{0x10'0000, 10}}));
  check(b.device.process(statsq, 8).failure == error::not_guest_memory);
  check(b.device.counters().stats_update_fails == 1);
  check(b.device.counters().statistics_buffers == 0);
  check(!b.device.take_events().statistics_arrived);
};
BOTH("statistics that can't be read are counted and no event", unreadable_statistics)

constexpr auto long_statistics = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::free_memory, 7);
  b.put_statistic(statistic_tag::oom_kills, 9, b.data + 256 * 10); // the 257th entry
  check(b.send(2, {{b.data, 0x4000}, {b.data, 0x4000}, {b.data, 0x4000}}));
  check(b.device.process(2, 8).failure == error::none);
  const auto s = b.device.take_statistics(0);
  check(s && s->has(statistic_tag::swap_in)); // the zeros between
  check(!s->has(statistic_tag::oom_kills));
};
BOTH("RT-34: a statistics buffer is read up to a bound, however long it is", long_statistics)

constexpr auto any_order = [](auto check) {
  bench<> b;
  (void)b.activate();
  b.put_statistic(statistic_tag::oom_kills, 3);
  b.put_statistic(statistic_tag::swap_in, 1, b.data + 10);
  b.put_statistic(statistic_tag::free_memory, 2, b.data + 20);
  check(b.send(2, {{b.data, 30}}));
  (void)b.device.process(2, 8);
  const auto s = b.device.take_statistics(0);
  check(s->value(statistic_tag::oom_kills) == 3 && s->value(statistic_tag::swap_in) == 1);
  check(s->value(statistic_tag::free_memory) == 2);
};
BOTH("BDEV-5: statistics come in any order", any_order)

} // namespace
