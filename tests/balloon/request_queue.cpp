// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/request_queue.hpp>

#include "support/check.hpp"
#include "support/open_device.hpp"

#include <ballast/memory/array_memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace {

using namespace ballast;
using ram_type = array_memory<4 * 4096>;
using device_type = ballast_test::open_device<ram_type>;
using queue_type = balloon::request_queue<ram_type, std::endian::little>;

constexpr feature_set packed_ring{feature::ring_packed};

constexpr auto places = [](auto check) {
  const auto p = balloon::place_request_queue(32, 8, 100, {});
  check(p.layout.descriptor_area == 32 && p.layout.size == 8);
  check(p.data % 16 == 0 && p.data >= p.layout.device_area + split::used_ring_bytes(8));
  check(p.end % 16 == 0 && p.end - p.data == 112);
  check(p.end - 32 == balloon::request_queue_bytes(8, 100));
  check(balloon::request_queue_bytes(4, 0) < balloon::request_queue_bytes(8, 0));
  const auto q = balloon::place_request_queue(32, 7, 100, packed_ring);
  check(q.layout == packed::place(32, 7).layout && q.data == 160 && q.end - q.data == 112);
  // Of seven entries a split queue takes four; of 65 the packed one takes more room.
  check(balloon::place_request_queue(32, 7, 0, {}).layout.size == 4);
  for (std::uint32_t entries = 1; entries <= 300; ++entries)
    for (const feature_set& features : {feature_set{}, packed_ring})
      check(balloon::place_request_queue(0, entries, 100, features).end <=
            balloon::request_queue_bytes(entries, 100));
};
BOTH("a queue lies in one piece: its rings, then its buffer", places)

constexpr auto places_legacy = [](auto check) {
  constexpr std::uint32_t alignment = 64;
  for (const guest_address at : {16u, 48u, 64u, 80u, 4096u}) {
    const auto p = balloon::place_request_queue(at, 8, 100, {}, alignment);
    const guest_address begin = (at + 63) / 64 * 64;
    const auto rings = split::place_legacy(begin, 8, alignment);
    check(rings.has_value() && p.layout == rings->layout && p.data == rings->end);
    check(p.layout.descriptor_area == begin && p.layout.device_area % alignment == 0);
    check(p.end % 16 == 0 && p.end >= p.data + 100);
    check(p.end - at <= balloon::request_queue_bytes(8, 100, alignment));
  }
  check(balloon::place_request_queue(16, 8, 100, {}, alignment).end - 16 ==
        balloon::request_queue_bytes(8, 100, alignment));
  check(balloon::request_queue_bytes(9, 100, alignment) ==
        balloon::request_queue_bytes(8, 100, alignment));
};
BOTH("a queue of a legacy transport lies aligned, as its layout says", places_legacy)

struct bench {
  ram_type ram;
  device_type device{ram};
  std::array<driver_slot, 8> slots{};
  queue_type queue{slots};
  guest_address at = 64;

  constexpr result<void> start(std::uint32_t entries_min = 1, const feature_set& features = {}) {
    return queue.start(ram, device, 2, entries_min, at, 100, features, 0);
  }
};

constexpr auto starts = [](auto check) {
  bench b;
  check(b.start().has_value());
  check(b.at == 64 + balloon::request_queue_bytes(8, 100));
  check(b.device.layout(2).size == 8 && b.device.layout(2).descriptor_area == 64);
  bench small;
  small.device.sizes[2] = 7; // a split ring's size is a power of two
  check(small.start().has_value() && small.device.layout(2).size == 4);
  bench odd;
  odd.device.sizes[2] = 7;
  odd.device.set_driver_features(packed_ring);
  check(odd.start(1, packed_ring).has_value() && odd.device.layout(2).size == 7);
  bench none;
  none.device.sizes[2] = 0;
  check(none.start().error() == error::queue_unavailable);
  bench few;
  few.device.sizes[2] = 31;
  check(few.start(32).error() == error::queue_too_small);
  check(few.device.events().empty());
  bench outside;
  outside.at = 4 * 4096 - 16;
  check(outside.start().error() == error::not_guest_memory);
};
BOTH("a queue takes what the device has, and says what it lacks", starts)

/// A transport that leaves the driver no choice of size and place.
struct legacy_device : device_type {
  using device_type::device_type;
  static constexpr std::uint32_t queue_alignment = 64;
};
static_assert(balloon::queue_alignment_of<device_type>() == 0 &&
              balloon::queue_alignment_of<legacy_device>() == 64);

constexpr auto starts_legacy = [](auto check) {
  const auto start = [](std::uint32_t size_max, guest_address& at, queue_layout& got) {
    ram_type ram;
    legacy_device device(ram);
    device.sizes[2] = size_max;
    std::array<driver_slot, 8> slots{};
    queue_type queue(slots);
    const auto done = queue.start(ram, device, 2, 1, at, 100, {}, 0);
    got = device.layout(2);
    return done.error();
  };
  guest_address at = 80;
  queue_layout got;
  check(start(4, at, got) == error::none); // all that the device gives, though there are more slots
  check(got == split::place_legacy(128, 4, 64)->layout);
  check(at - 80 <= balloon::request_queue_bytes(4, 100, 64));
  check(start(16, at, got) == error::storage_too_small &&
        start(7, at, got) == error::invalid_queue_size);
};
BOTH("a queue of a legacy transport has as many entries as the device gives it", starts_legacy)

constexpr auto round_trip = [](auto check) {
  bench b;
  check(b.start().has_value());
  const std::array<std::byte, 3> bytes{std::byte{7}, std::byte{8}, std::byte{9}};
  actions due;
  check(!b.queue.has_returned(due) && !b.queue.is_under_way());
  check(b.queue.send_copy(bytes, 500, due));
  check(b.queue.is_under_way() && b.queue.sent_at() == 500);
  b.queue.notify_if_due(due);
  check(due.notify_queues == 4);
  const auto taken = b.device.take(2);
  check(taken.readable == 1 && taken.writable == 0);
  check(taken.buffers[0] == buffer{b.queue.data(), 3});
  check(b.device.number<std::uint16_t>(taken.buffers[0], 0) == 0x807);
  check(!b.queue.has_returned(due) && b.queue.is_under_way());
  check(b.device.give_back(2, taken));
  check(b.queue.enable_notifications()); // it came meanwhile
  check(b.queue.has_returned(due) && !b.queue.is_under_way());
  check(due.failure == error::none);

  const std::array<buffer, 2> ranges{{{4096, 4096}, {8192, 4096}}};
  check(b.queue.send({}, ranges, 501, due));
  const auto writable = b.device.take(2);
  check(writable.readable == 0 && writable.writable == 2 && writable.buffers[1] == ranges[1]);
};
BOTH("a request is under way until the device returned it", round_trip)

constexpr auto faults = [](auto check) {
  bench b;
  check(b.start().has_value());
  actions due;
  check(!b.queue.send({}, {}, 0, due));
  check(due.needs_reset && due.failure == error::empty_chain && !b.queue.is_under_way());
  // The device returns what it never had.
  const auto one = std::bit_cast<std::array<std::byte, 2>>(le16(std::uint16_t{1}));
  (void)b.ram.write(b.device.layout(2).device_area + split::used_index, one);
  due = {};
  check(!b.queue.has_returned(due) && due.failure == error::used_index_jump && due.needs_reset);
  b.queue.detach();
  due = {};
  check(!b.queue.has_returned(due) && due.failure == error::not_attached);
};
BOTH("a queue that the device broke asks for a reset", faults)

} // namespace
