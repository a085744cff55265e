// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/virtqueue.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include <array>

namespace {

using namespace ballast;

using ram_type = array_memory<4096>;
constexpr guest_address base = 0x1000;
constexpr feature_set split_features{feature::version_1, feature::event_idx};
constexpr feature_set packed_features = split_features.with(feature::ring_packed);

static_assert(driver_queue<virtqueue_driver<ram_type>, ram_type>);
static_assert(device_queue<virtqueue_device<ram_type>, ram_type>);
static_assert(!driver_queue<virtqueue_device<ram_type>, ram_type>);
static_assert(!device_queue<virtqueue_driver<ram_type>, ram_type>);

/// Both sides of a queue that has either format.
struct pair {
  ram_type ram{base};
  std::array<driver_slot, 8> slots{};
  device_queue_storage<8> storage{};
  virtqueue_driver<ram_type> driver{slots};
  virtqueue_device<ram_type> device{storage};

  constexpr bool start(const feature_set& features, std::uint32_t size = 8) {
    const queue_layout at = place_queue(base, size, features).layout;
    return driver.start(ram, at, features) && device.start(ram, at, features);
  }
  constexpr bool offer(std::uint64_t token) {
    const buffer b{0x1800 + token, 16};
    return driver.add({}, std::span(&b, 1), token).has_value();
  }
};

constexpr auto both_formats = [](auto check) {
  pair p;
  // The same object holds one format after the other.
  for (const feature_set& features : {split_features, packed_features, split_features}) {
    const bool is_packed = features.test(feature::ring_packed);
    check(p.start(features));
    check(p.driver.is_packed() == is_packed && p.device.is_packed() == is_packed);
    check(p.driver.size() == 8 && p.device.size() == 8 && p.driver.free_descriptors() == 8);
    for (std::uint64_t round = 0; round < 20; ++round) {
      check(p.offer(round));
      const auto one = [&] { return single_buffer{{0x1800, 4}, false, 100 + round}; };
      check(*p.driver.add_each(2, one) == 2 && p.driver.in_flight() == 3);
      check(p.driver.publish_and_ask());
      const auto popped = p.device.pop_available();
      check(popped && popped->writable()[0].address == 0x1800 + round);
      check(p.device.consume_one([](const chain&) { return used(); })->has_more);
      check(p.device.consume(9, [](const chain&) { return used(); })->chains == 1);
      check(p.device.in_flight() == 1 && p.device.held_chain(popped->id().head));
      check(p.device.push_used(popped->id(), 7).has_value());
      check(!p.device.enable_notifications());
      check(p.device.publish_and_ask());
      std::uint32_t sum = 0;
      check(*p.driver.reclaim(2, [&](const used_buffer& u) { sum += u.length; }) == 2);
      const auto last = p.driver.pop_used();
      check(last && last->token == round && last->length == 7 && sum == 0);
      check(!p.driver.enable_notifications());
    }
  }
};
BOTH("the negotiated features choose the format of a queue", both_formats)

constexpr auto sizes = [](auto check) {
  pair p;
  check(!p.start(split_features, 7)); // no power of two: packed only
  check(p.driver.cause() == error::none && !p.driver.is_attached());
  check(p.start(packed_features, 7));
  check(place_queue(base, 7, packed_features).end == base + 7 * 16 + 8);
  check(place_queue(base, 8, split_features).end == split::place(base, 8).end);
};
BOTH("PK-1 a queue of seven entries is a packed one", sizes)

constexpr auto stale = [](auto check) {
  pair p;
  chain_id before[6]{};
  for (int life = 0; life < 6; ++life) {
    check(p.start(life % 3 != 0 ? packed_features : split_features) && p.offer(1));
    p.driver.publish();
    const auto popped = p.device.pop_available();
    check(popped.has_value());
    before[life] = popped->id();
    for (int i = 0; i < life; ++i)
      check(p.device.push_used(before[i], 0).error() == error::stale_chain);
    check(p.device.in_flight() == 1);
  }
};
BOTH("RT-60 a device's chain of a life in either format is stale in the next", stale)

constexpr auto moved = [](auto check) {
  for (const feature_set& features : {split_features, packed_features}) {
    const feature_set& others =
        features.test(feature::ring_packed) ? split_features : packed_features;
    pair p;
    check(p.start(features) && p.offer(1) && p.offer(2));
    p.driver.publish();
    const auto popped = p.device.pop_available();
    check(popped.has_value());
    std::array<driver_slot, 8> slots{};
    std::array<held_head, 8> held{};
    const auto of_driver = p.driver.save(slots);
    const auto of_device = p.device.save(held);
    check(of_driver && of_driver->is_packed == features.test(feature::ring_packed));
    check(of_device && of_device->is_packed == features.test(feature::ring_packed));
    const queue_layout at = place_queue(base, 8, features).layout;
    const auto heads = std::span<const held_head>(held).first(1);

    // The other format's state is refused, and nothing changes.
    check(p.device.restore(p.ram, at, others, *of_device, heads).error() == error::state_invalid);
    check(p.device.is_packed() == features.test(feature::ring_packed));
    check(p.device.in_flight() == 1 && p.device.held_chain(popped->id().head));
    check(p.driver.restore(p.ram, at, others, *of_driver, slots).error() ==
          error::already_attached);
    p.driver.detach();
    check(p.driver.restore(p.ram, at, others, *of_driver, slots).error() == error::state_invalid);
    check(p.driver.is_packed() == features.test(feature::ring_packed));

    // Objects that had the other format before take it up.
    pair q;
    check(q.start(others));
    q.driver.detach();
    check(q.driver.restore(p.ram, at, features, *of_driver, slots).has_value());
    check(q.device.restore(p.ram, at, features, *of_device, heads).has_value());
    check(q.device.push_used(*q.device.held_chain(heads[0].head), 3).has_value());
    check(q.device.consume(8, [](const chain&) { return used(4); })->chains == 1);
    q.device.publish();
    check(q.driver.pop_used()->length == 3 && q.driver.pop_used()->length == 4);
    check(q.driver.in_flight() == 0);
  }
};
BOTH("RT-36 a state is taken up in its own format only, on both sides", moved)

constexpr auto forgotten = [](auto check) {
  // Slots that a life in the other format wrote are not taken for those of an older one.
  for (const feature_set& features : {split_features, packed_features}) {
    const feature_set& others =
        features.test(feature::ring_packed) ? split_features : packed_features;
    pair p;
    check(p.start(features, 4) && p.offer(1));
    check(p.start(others) && p.offer(2));
    const queue_layout old = place_queue(base, 4, features).layout;
    queue_layout bad = old;
    bad.descriptor_area += 8;
    check(p.driver.start(p.ram, bad, features).error() == error::misaligned);
    check(p.driver.attach(p.ram, old, features).error() == error::invalid_queue_size);
    check(p.driver.in_flight() == 0 && p.driver.free_descriptors() == 0);
    check(p.device.start(p.ram, bad, features).error() == error::misaligned);
    check(p.device.attach(p.ram, old, features).error() == error::invalid_queue_size);
  }
};
BOTH("RT-26 a start that fails leaves nothing of an older life, on both sides in either format",
     forgotten)

constexpr auto lost = [](auto check) {
  for (const feature_set& features : {split_features, packed_features}) {
    pair p;
    check(p.start(features) && p.offer(5));
    check(p.driver.notification_data(3) == (features.test(feature::ring_packed) ? 0x8000'0003 : 3));
    p.device.fail(error::not_guest_memory);
    check(p.device.cause() == error::not_guest_memory);
    p.driver.disable_notifications();
    p.device.disable_notifications();
    p.device.detach();
    check(p.device.attach(p.ram, place_queue(base, 8, features).layout, features).has_value());
    check(p.device.unpop(1).error() == error::chain_not_in_flight);
    p.driver.detach();
    check(p.driver.attach(p.ram, place_queue(base, 8, features).layout, features).has_value());
    check(p.driver.is_attached() && p.driver.cause() == error::none);
    std::uint64_t token = 0;
    p.driver.drain([&](std::uint64_t t) { token = t; });
    check(token == 5 && p.driver.in_flight() == 0);
    p.device.reset();
    check(p.device.size() == 0 && !p.device.is_attached());
  }
};
BOTH("the members of a queue go to the engine of its format", lost)

} // namespace
