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
using ballast_test::test_host;
using balloon::statistic_tag;

using ram_type = array_memory<16 * 4096>;

static_assert(balloon::page_host<test_host>);
struct no_discard {};
struct discard_without_answer {
  void discard(guest_address, std::uint64_t) noexcept {}
};
struct discard_that_throws {
  bool discard(guest_address, std::uint64_t);
};
static_assert(!balloon::page_host<no_discard>);
static_assert(!balloon::page_host<discard_without_answer>);
static_assert(!balloon::page_host<discard_that_throws>);

static_assert(device_model<balloon::device<ram_type, test_host>, ram_type>);
static_assert(!device_model<balloon::device<ram_type, test_host>, array_memory<8>>);
static_assert(!std::is_copy_constructible_v<balloon::device<ram_type, test_host>>);

/// A device, and the bare driver's side of its queues to send it anything.
/// Rings at 0x0000, buffers from 0x2000 on; the balloon's pages lie from page 4 on.
template <std::endian E = std::endian::little, class Ram = ram_type> struct bench {
  using device_type = balloon::device<Ram, test_host, 8, E>;
  static constexpr guest_address data = 0x2000;

  Ram ram;
  test_host host;
  device_type device;
  std::array<std::array<driver_slot, 8>, 3> slots{};
  std::array<split_driver<Ram, E>, 3> queues{split_driver<Ram, E>(slots[0]),
                                             split_driver<Ram, E>(slots[1]),
                                             split_driver<Ram, E>(slots[2])};
  std::array<queue_layout, 3> layouts{};
  feature_set features{balloon::feature::stats_vq, feature::version_1};

  constexpr explicit bench(const balloon::device_options& options = {}) : device(host, options) {
    start_queues();
  }

  constexpr void start_queues() {
    for (std::size_t i = 0; i < 3; ++i) {
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

constexpr std::uint64_t page_bits(std::initializer_list<unsigned> pages) {
  std::uint64_t bits = 0;
  for (const unsigned p : pages) bits |= std::uint64_t{1} << p;
  return bits;
}

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
BOTH("RT-38: a buffer beyond the bound is counted, used up to it, and returned", oversized)

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
BOTH("RT-37, RT-42: an unknown tag is kept as it is, a partial entry at the end is ignored",
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
                               feature::ring_packed, feature::access_platform, 6}});
  check(b.device.offered_features() == feature_set{balloon::feature::stats_vq, feature::version_1});
  check(b.device.queue_count() == 3 && b.device.config_size() == 8);
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
  check(b.device.attach(b.layouts, other).has_value());
  check(b.device.request_statistics() == actions{.notify_queues = 4}); // still held
  check(b.queues[2].pop_used().error() == error::queue_empty);         // went to the other memory
  bench<> idle;
  check(idle.device.attach(idle.layouts, idle.ram).error() == error::wrong_state);
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
BOTH("DEFLATE_ON_OOM and MUST_TELL_HOST are off unless asked for", offers)

constexpr auto bad_queues = [](auto check) {
  bench<> b;
  b.layouts[1].device_area = 0xf'0000;
  const actions done = b.activate();
  check(done.needs_reset && done.failure == error::not_guest_memory);
  check(b.device.process(0, 1).failure == error::wrong_state);
};
BOTH("a ring outside memory keeps the device from starting", bad_queues)

} // namespace
