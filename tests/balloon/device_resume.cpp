// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtqueue/resumable_device.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

// A device goes on where another one, or this one before, was: rings, statistics, hints, config.
namespace {

using namespace ballast;
using ballast_test::full_host;
using balloon::device_state;
using balloon::hint_state;
using balloon::statistic_tag;

using ram_type = array_memory<16 * 4096>;
using device_type = balloon::device<ram_type, full_host, 8>;

static_assert(resumable_device_model<device_type, ram_type>);
static_assert(std::is_trivially_copyable_v<device_state>);

constexpr std::uint16_t inflateq = 0, statsq = 2, free_page_vq = 3;
constexpr guest_address data = 0x8000;

constexpr balloon::device_options options() {
  balloon::device_options o;
  o.offered = {balloon::feature::stats_vq, balloon::feature::free_page_hint,
               balloon::feature::page_poison, feature::event_idx, feature::ring_packed};
  o.target_pages_max = 10'000;
  return o;
}

/// The guest: what outlives a device.
struct guest {
  ram_type ram;
  std::array<std::array<driver_slot, 8>, 4> slots{};
  std::array<virtqueue_driver<ram_type>, 4> queues{
      virtqueue_driver<ram_type>(slots[0]), virtqueue_driver<ram_type>(slots[1]),
      virtqueue_driver<ram_type>(slots[2]), virtqueue_driver<ram_type>(slots[3])};
  std::array<queue_layout, 4> layouts{};
  feature_set features;

  constexpr explicit guest(bool is_packed)
      : features{balloon::feature::stats_vq, balloon::feature::free_page_hint,
                 balloon::feature::page_poison, feature::version_1} {
    if (is_packed) features.set(feature::ring_packed);
    for (std::size_t i = 0; i < queues.size(); ++i) {
      layouts[i] = place_queue(i * 0x400, 8, features).layout;
      (void)queues[i].start(ram, layouts[i], features);
    }
  }
  guest(const guest&) = delete;
  guest& operator=(const guest&) = delete;

  template <std::size_t N>
  constexpr void offer(std::uint16_t q, const std::array<std::byte, N>& bytes,
                       std::uint64_t token) {
    const guest_address at = data + 64 * token;
    (void)ram.write(at, bytes);
    const buffer b{at, N};
    (void)queues[q].add({&b, 1}, {}, token);
    queues[q].publish();
  }
  constexpr void offer_page(std::uint8_t pfn, std::uint64_t token) {
    offer(inflateq, std::array{std::byte{pfn}, std::byte{}, std::byte{}, std::byte{}}, token);
  }
  constexpr void offer_statistics(std::uint8_t free, std::uint64_t token) {
    std::array<std::byte, 10> bytes{std::byte{4}, std::byte{}, std::byte{free}};
    offer(statsq, bytes, token);
  }
  [[nodiscard]] constexpr bool comes_back(std::uint16_t q, std::uint64_t token) {
    const auto used = queues[q].pop_used();
    return used && used->token == token;
  }
};

constexpr std::array<std::byte, 4> word(std::uint32_t v) {
  return std::bit_cast<std::array<std::byte, 4>>(le32(v));
}

using positions_type = std::array<device_queue_state, 4>;
constexpr bool find_positions(const device_type& device, positions_type& to) {
  for (std::uint16_t i = 0; i < to.size(); ++i) {
    const auto at = device.queue_state(i);
    if (!at || at->next_available != at->next_used) return false;
    to[i] = *at;
  }
  return true;
}

constexpr auto goes_on = [](auto check) {
  for (const bool is_packed : {false, true}) {
    guest g(is_packed);
    full_host host;
    device_state saved;
    positions_type at{};
    {
      device_type first(host, options());
      check(first.activate(g.features, g.layouts, g.ram).failure == error::none);
      (void)first.set_target(700);
      (void)first.write_config(4, word(123));
      for (std::uint8_t n = 0; n < 11; ++n) { // more than a round
        g.offer_page(n % 4 + 10, n);
        (void)first.process(inflateq, 4);
        check(g.comes_back(inflateq, n));
      }
      g.offer_statistics(1, 20);
      (void)first.process(statsq, 4);
      (void)first.request_statistics();
      check(g.comes_back(statsq, 20));
      g.offer_statistics(2, 21);
      (void)first.process(statsq, 4);
      check(find_positions(first, at));
      saved = first.save();
      check(at[inflateq].is_packed == is_packed && at[inflateq].size == 8);
      check(saved.target == 700 && saved.actual == 123 && saved.has_actual);
      check(!saved.is_statistics_pending);
    }
    g.offer_page(20, 5); // while nobody is there
    device_type second(host, options());
    check(second.restore(saved).has_value());
    check(second.save() == saved);
    const actions due = second.resume(g.features, g.layouts, g.ram, at);
    check(due.failure == error::none && due.config_changed);
    check(g.comes_back(inflateq, 5) && due.notifies(inflateq));
    check(second.target() == 700 && second.actual() == 123);
    check(second.config_generation() >= saved.config_generation);
    // The held buffer was popped again: what it says is old, and it is still held.
    const auto old = second.take_statistics(0);
    check(old && old->value(statistic_tag::free_memory) == 2 && !old->is_solicited);
    check(old && old->epoch == saved.epoch && old->actual_pages == 123);
    check(!g.comes_back(statsq, 21));
    check(second.request_statistics().notifies(statsq) && g.comes_back(statsq, 21));
    g.offer_statistics(3, 22);
    (void)second.process(statsq, 4);
    const auto fresh = second.take_statistics(0);
    check(fresh && fresh->is_solicited);
  }
};
BOTH("RT-26 another device goes on: no buffer is lost, none comes back twice", goes_on)

constexpr auto pending = [](auto check) {
  // Asked for, and the answer came while nobody was there.
  guest g(false);
  full_host host;
  device_type first(host, options());
  (void)first.activate(g.features, g.layouts, g.ram);
  g.offer_statistics(1, 0);
  (void)first.process(statsq, 4);
  (void)first.request_statistics();
  positions_type at{};
  check(find_positions(first, at) && first.save().is_statistics_pending);
  (void)g.queues[statsq].pop_used();
  g.offer_statistics(9, 1);
  device_type second(host, options());
  check(second.restore(first.save()).has_value());
  (void)second.resume(g.features, g.layouts, g.ram, at);
  const auto got = second.take_statistics(0);
  check(got && got->is_solicited && got->value(statistic_tag::free_memory) == 9);
};
BOTH("an answer that came in between is one that was asked for", pending)

constexpr auto hints = [](auto check) {
  guest g(true);
  full_host host;
  device_type first(host, options());
  (void)first.activate(g.features, g.layouts, g.ram);
  check(first.start_hinting().config_changed);
  const std::uint32_t id = first.hinting().command_id();
  g.offer(free_page_vq, word(id), 0);
  (void)first.process(free_page_vq, 4);
  check(first.hinting().state() == hint_state::start);
  positions_type at{};
  check(find_positions(first, at));
  device_type second(host, options());
  check(second.restore(first.save()).has_value());
  // The driver is told that nobody wants its hints any more; the next round has another id.
  check(second.resume(g.features, g.layouts, g.ram, at).config_changed);
  check(second.hinting().state() == hint_state::done);
  std::array<std::byte, 4> shown{};
  check(second.read_config(8, shown).has_value() && shown == word(balloon::command_id::done));
  check(second.start_hinting().config_changed && second.hinting().command_id() == id + 1);
};
BOTH("a round of hints ends with the device that asked for them, and ids go on", hints)

constexpr auto poison = [](auto check) {
  guest g(false);
  full_host host;
  device_type first(host, options());
  (void)first.write_config(12, word(0xaaaaaaaa));
  (void)first.activate(g.features, g.layouts, g.ram);
  positions_type at{};
  check(find_positions(first, at));
  device_type second(host, options());
  check(second.restore(first.save()).has_value());
  (void)second.resume(g.features, g.layouts, g.ram, at);
  check(second.poison() == 0xaaaaaaaa);
  (void)second.write_config(12, word(1));
  check(second.poison() == 0xaaaaaaaa); // the driver is live
};
BOTH("the poison goes on, and stays fixed", poison)

constexpr auto unknown_poison = [](auto check) {
  for (const bool has_poison : {false, true})
    for (const bool is_saved : {false, true}) {
      guest g(false);
      g.features = {balloon::feature::stats_vq, balloon::feature::page_reporting,
                    feature::version_1};
      if (has_poison) g.features.set(balloon::feature::page_poison);
      auto chosen = options();
      chosen.offered.clear(balloon::feature::free_page_hint);
      chosen.offered.set(balloon::feature::page_reporting); // queue 3 then
      full_host host;
      device_type first(host, chosen);
      (void)first.write_config(12, word(0xaaaaaaaa));
      check(first.activate(g.features, g.layouts, g.ram).failure == error::none);
      positions_type at{};
      check(find_positions(first, at));
      device_type second(host, chosen);
      if (is_saved) check(second.restore(first.save()).has_value());
      check(second.resume(g.features, g.layouts, g.ram, at).failure == error::none);
      const buffer page{14 * 4096, 4096};
      check(g.queues[3].add({}, {&page, 1}, 7).has_value());
      g.queues[3].publish();
      (void)second.process(3, 4);
      check(g.comes_back(3, 7));
      const bool is_known = !has_poison || is_saved;
      check(second.counters().poisoned_ranges == (is_known ? 0u : 1u));
      check(host.filled == (has_poison && is_saved ? 1u << 14 : 0u));
      check(host.discarded == (has_poison ? 0u : 1u << 14));
    }
};
BOTH("BDEV-14: a device that goes on without what was saved keeps reported pages that may be "
     "poisoned",
     unknown_poison)

constexpr auto detached = [](auto check) {
  // One device: its queues begin anew where it was, without one that is not wanted any more.
  for (const bool is_packed : {false, true}) {
    guest g(is_packed);
    full_host host;
    device_type device(host, options());
    (void)device.activate(g.features, g.layouts, g.ram);
    g.offer_statistics(1, 0);
    (void)device.process(statsq, 4);
    g.offer_page(10, 1);
    (void)device.process(inflateq, 4);
    positions_type at{};
    check(device.resume(g.features, g.layouts, g.ram, at).failure == error::wrong_state);
    device.detach();
    check(find_positions(device, at)); // also without memory
    check(device.request_statistics().failure == error::not_attached);
    auto fewer = g.layouts;
    fewer[1].size = 0;
    const actions due = device.resume(g.features, fewer, g.ram, at);
    check(due.failure == error::none && !due.needs_reset);
    check(device.queue_state(1).error() == error::invalid_queue_index);
    check(g.comes_back(inflateq, 1));
    g.offer_page(11, 2);
    (void)device.process(inflateq, 4);
    check(g.comes_back(inflateq, 2));
    check(device.request_statistics().notifies(statsq) && g.comes_back(statsq, 0));
  }
};
BOTH("a detached device begins anew where its queues were", detached)

constexpr auto refusals = [](auto check) {
  guest g(false);
  full_host host;
  device_type device(host, options());
  const device_state fine = device.save();
  const auto changed = [&](auto change) {
    device_state s = fine;
    change(s);
    return device.restore(s).error();
  };
  check(changed([](device_state& s) { s.version = 2; }) == error::state_version);
  check(changed([](device_state& s) { s.target = 10'001; }) == error::state_invalid);
  check(changed([](device_state& s) { s.hinting.open_ids = 1; }) == error::state_invalid);
  check(changed([](device_state& s) { s.hinting.version = 9; }) == error::state_version);
  balloon::device_options plain = options();
  plain.offered.clear(balloon::feature::page_poison);
  device_type without(host, plain);
  device_state poisoned = fine;
  poisoned.poison = 1;
  check(without.restore(poisoned).error() == error::state_invalid);
  check(device.save() == fine);

  // A position that does not fit its queue: nothing begins.
  positions_type at{};
  at[inflateq] = {};
  at[inflateq].size = 4;
  const actions due = device.resume(g.features, g.layouts, g.ram, at);
  check(due.needs_reset && due.failure == error::state_invalid);
  check(device.process(inflateq, 1).failure == error::wrong_state);
  check(device.queue_state(inflateq).error() == error::invalid_queue_index);
  check(device.activate(g.features, g.layouts, g.ram).failure == error::none);
  check(device.restore(fine).error() == error::wrong_state);
};
BOTH("a state that cannot be is refused and changes nothing", refusals)

} // namespace
