// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/device_rings.hpp>

#include <doctest/doctest.h>
#include <support/vhost_user_front_end.hpp>

#include <ballast/virtqueue/virtqueue.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace {

using namespace ballast;
using ballast_test::front_end;
namespace vu = ballast::vhost_user;
using memory_type = vu::device_memory<16>;

/// A device that says how it was called. It returns every chain at once.
struct plain_device {
  std::uint32_t activations = 0, resets = 0;
  feature_set features;
  std::array<bool, 3> has{};
  device_queue_storage<16> storage[3];
  virtqueue_device<memory_type> queues[3]{virtqueue_device<memory_type>(storage[0]),
                                          virtqueue_device<memory_type>(storage[1]),
                                          virtqueue_device<memory_type>(storage[2])};
  memory_type* memory = nullptr;

  static std::uint32_t device_id() noexcept { return 5; }
  static feature_set offered_features() noexcept { return {}; }
  static result<void> check_features(const feature_set&) noexcept { return {}; }
  static std::uint16_t queue_count() noexcept { return 3; }
  static std::uint32_t queue_size_max(std::uint16_t) noexcept { return 16; }
  static std::uint32_t config_size() noexcept { return 0; }
  static result<void> read_config(std::uint32_t, std::span<std::byte>) noexcept { return {}; }
  static std::uint32_t config_generation() noexcept { return 0; }
  static actions write_config(std::uint32_t, std::span<const std::byte>) noexcept { return {}; }
  actions activate(const feature_set& f, std::span<const queue_layout> layouts,
                   memory_type& m) noexcept {
    ++activations;
    features = f;
    memory = &m;
    for (std::size_t i = 0; i < 3; ++i)
      if (layouts[i].size != 0 && !queues[i].start(m, layouts[i], f))
        return refused(error::wrong_state);
    return {};
  }
  actions process(std::uint16_t i, std::uint32_t budget) noexcept {
    if (!queues[i].is_attached()) return refused(error::invalid_queue_index);
    (void)queues[i].consume(budget, [](const chain&) { return used(); });
    queues[i].publish();
    return {};
  }
  actions reset_queue(std::uint16_t i) noexcept {
    queues[i].reset();
    return {};
  }
  actions enable_queue(std::uint16_t i, const queue_layout& at) noexcept {
    return refused(queues[i].start(*memory, at, features).error());
  }
  void reset() noexcept {
    ++resets;
    for (auto& q : queues) q.reset();
  }
};

struct going_device : plain_device {
  std::uint32_t resumptions = 0, attachments = 0;
  std::array<device_queue_state, 3> positions{};
  error resume_answer = error::none;

  result<device_queue_state> queue_state(std::uint16_t i) const noexcept {
    held_head held[16];
    if (queues[i].size() == 0) return error::invalid_queue_index;
    return queues[i].save(held);
  }
  void detach() noexcept {
    for (auto& q : queues) q.detach();
  }
  actions attach(std::span<const queue_layout> layouts, memory_type& m) noexcept {
    ++attachments;
    for (std::size_t i = 0; i < 3; ++i)
      if (layouts[i].size != 0 && !queues[i].attach(m, layouts[i], features))
        return refused(error::not_guest_memory);
    return {};
  }
  actions resume(const feature_set& f, std::span<const queue_layout> layouts, memory_type& m,
                 std::span<const device_queue_state> at) noexcept {
    ++resumptions;
    if (resume_answer != error::none) return refused(resume_answer);
    features = f;
    memory = &m;
    for (std::size_t i = 0; i < 3; ++i) {
      positions[i] = at[i];
      queues[i].reset();
      if (layouts[i].size == 0) continue;
      const auto begun = at[i].size == 0 ? queues[i].start(m, layouts[i], f)
                                         : queues[i].restore(m, layouts[i], f, at[i], {});
      if (!begun) return refused(begun.error());
    }
    return {};
  }
};

template <class Device> struct scene {
  explicit scene(bool is_packed) {
    features = {feature::version_1};
    if (is_packed) features.set(feature::ring_packed);
    guest.features = features;
    REQUIRE(guest.make_queues());
    share();
    for (std::uint16_t i = 0; i < 3; ++i) {
      const queue_layout& at = guest.queues[i]->layout;
      described[i].size = at.size;
      described[i].has_addresses = true;
      described[i].addresses = {i,
                                0,
                                front_end::user_of(at.descriptor_area),
                                front_end::user_of(at.device_area),
                                front_end::user_of(at.driver_area),
                                0};
    }
  }
  void share() {
    table.clear();
    REQUIRE(table.add({front_end::ram_at, front_end::ram_bytes, front_end::user_at, 0},
                      vu::file(dup(guest.ram_file().get()))));
  }
  /// The driver makes chains available, and they come back.
  [[nodiscard]] bool works(std::uint16_t q, int times = 1) {
    for (int n = 0; n < times; ++n) {
      const buffer data{front_end::ram_at + 0x20000, 4};
      if (!guest.queues[q]->driver.add({&data, 1}, {}, 9)) return false;
      guest.queues[q]->driver.publish();
      (void)device.process(q, 4);
      if (!guest.queues[q]->driver.pop_used()) return false;
    }
    return true;
  }
  [[nodiscard]] error start(std::uint64_t which) {
    return rings.start(which, features, described).error();
  }

  feature_set features;
  front_end guest;
  vu::memory_table table;
  Device device;
  vu::device_rings<Device, 16, 3, std::endian::little> rings{device, table};
  std::array<vu::ring_description, 3> described{};
};

TEST_CASE("a device begins with its first queues, and gets the others later") {
  for (const bool is_packed : {false, true}) {
    scene<plain_device> s(is_packed);
    CHECK(!s.rings.is_resumable);
    CHECK(s.start(5) == error::none);
    CHECK(s.rings.given() == 5);
    CHECK(s.device.resets == 1);
    CHECK(s.works(0, 20));
    CHECK(s.works(2));
    CHECK(s.start(2) == error::none);
    CHECK(s.rings.given() == 7);
    CHECK(s.works(1));
    CHECK(s.device.activations == 1);
    actions due;
    s.rings.take(0, due);
    CHECK(s.rings.given() == 6);
    s.rings.reset();
    CHECK(s.rings.given() == 0);
    CHECK(s.device.resets == 2);
  }
}

TEST_CASE("a device that cannot go on begins anew, or says that it cannot") {
  scene<plain_device> s(false);
  REQUIRE(s.start(7) == error::none);
  REQUIRE(s.works(0, 3));
  actions due;
  const auto base = s.rings.stop(0, due); // a split queue that holds nothing: the ring says it
  REQUIRE(base);
  CHECK(*base == 3);
  s.described[0].base = 3;
  CHECK(s.start(1) == error::wrong_state);
  CHECK(s.rings.given() == 0);

  scene<plain_device> packed(true);
  REQUIRE(packed.start(7) == error::none);
  CHECK(packed.rings.stop(0, due).error() == error::wrong_state);
}

TEST_CASE("a device that can goes on at the position it is given") {
  for (const bool is_packed : {false, true}) {
    scene<going_device> s(is_packed);
    CHECK(s.rings.is_resumable);
    REQUIRE(s.start(7) == error::none);
    REQUIRE(s.works(0, 19));
    actions due;
    for (std::uint16_t i = 0; i < 3; ++i) {
      const auto base = s.rings.stop(i, due);
      REQUIRE(base);
      s.described[i].base = *base;
      s.described[i].is_own_base = true;
    }
    CHECK(s.described[0].base == (is_packed ? 0x0003'0003 : 19));
    CHECK(s.rings.given() == 0);
    REQUIRE(s.start(7) == error::none);
    CHECK(s.device.resumptions == 1);
    CHECK(s.device.activations == 1);
    CHECK(s.device.positions[0].unasked == unasked_max);
    CHECK(s.works(0, 20));
    CHECK(s.works(1));
    // One of them alone: the others go on where they are.
    const auto base = s.rings.stop(0, due);
    REQUIRE(base);
    s.described[0].base = *base;
    CHECK(s.works(1, 3));
    REQUIRE(s.start(1) == error::none);
    CHECK(s.works(0));
    CHECK(s.works(1));
  }
}

TEST_CASE("a base of 0 is where a packed queue begins, unless it is where it was stopped") {
  scene<going_device> s(true);
  REQUIRE(s.start(1) == error::none);
  REQUIRE(s.works(0, 32)); // two rounds: the wrap counters are as at first
  actions due;
  REQUIRE(s.rings.stop(0, due));
  REQUIRE(s.start(1) == error::none);
  REQUIRE(s.device.activations == 2);
  scene<going_device> t(true);
  REQUIRE(t.start(1) == error::none);
  REQUIRE(t.works(0, 16)); // one round: both wrap counters are 0
  const auto base = t.rings.stop(0, due);
  CHECK(*base == 0);
  t.described[0].is_own_base = true;
  REQUIRE(t.start(1) == error::none);
  CHECK(t.device.resumptions == 1);
  CHECK(t.works(0, 3));
}

TEST_CASE("positions that cannot be are refused") {
  for (const std::uint32_t base : {0x0010'0000u, 0x8000'0010u, 0x8001'8000u + (1u << 30)}) {
    scene<going_device> s(true);
    s.described[0].base = base;
    CHECK(s.start(1) == error::state_invalid);
    CHECK(s.rings.given() == 0);
  }
  scene<going_device> s(false);
  s.described[0].base = 17; // of 16 entries
  CHECK(s.start(1) == error::state_invalid);
  s.described[0].base = 16;
  CHECK(s.start(1) == error::none);
}

TEST_CASE("rings that cannot be there are refused before the device sees them") {
  scene<going_device> s(false);
  const auto with = [&](auto change) {
    const auto before = s.described[0];
    change(s.described[0]);
    const error e = s.start(1);
    s.described[0] = before;
    return e;
  };
  CHECK(with([](auto& r) { r.addresses.driver_area = 5; }) == error::not_guest_memory);
  CHECK(with([](auto& r) {
          r.addresses.device_area = front_end::user_at + front_end::ram_bytes - 4;
        }) == error::not_guest_memory);
  CHECK(with([](auto& r) { r.addresses.descriptor_area += 8; }) == error::misaligned);
  CHECK(with([](auto& r) { r.size = 12; }) == error::invalid_queue_size);
  CHECK(with([](auto& r) { r.size = 32; }) == error::storage_too_small);
  CHECK(s.device.activations == 0);
  s.described[0].base = 1;
  s.device.resume_answer = error::state_version;
  CHECK(s.start(1) == error::state_version);
  CHECK(s.rings.given() == 0);
}

TEST_CASE("the memory moves while the device is paused") {
  scene<going_device> s(true);
  REQUIRE(s.start(3) == error::none);
  REQUIRE(s.works(0, 5));
  s.rings.pause();
  CHECK(!s.rings.is_attached());
  s.share();
  CHECK(s.rings.move(s.described, false));
  CHECK(!s.rings.is_attached());
  CHECK(s.device.attachments == 0);
  CHECK(s.rings.move(s.described, true));
  CHECK(s.rings.is_attached());
  CHECK(s.works(0, 20));
  s.rings.pause();
  s.table.clear();
  CHECK(s.rings.move(s.described, true).error() == error::not_guest_memory);
  CHECK(s.rings.given() == 0);
}

TEST_CASE("a log of chains in flight needs room for each queue") {
  alignas(64) std::array<std::byte, 2048> area{};
  for (const bool is_packed : {false, true}) {
    const std::size_t bytes = vu::in_flight::region_bytes(16, is_packed);
    scene<going_device> s(is_packed);
    area = {};
    s.rings.set_in_flight(std::span(area).first(2 * bytes), 3, 16);
    CHECK(s.start(4) == error::in_flight_invalid); // the third
    s.rings.set_in_flight(area, 2, 16);
    CHECK(s.start(4) == error::in_flight_invalid);
    s.rings.set_in_flight(area, 3, 8);
    CHECK(s.start(1) == error::in_flight_invalid); // of 16 entries
    s.rings.set_in_flight(area, 3, 16);
    REQUIRE(s.start(7) == error::none);
    CHECK(s.works(0, 20));
    s.rings.disconnect();
    // The log says where it was, whatever the front end thinks.
    REQUIRE(s.start(7) == error::none);
    CHECK(s.device.resumptions == 1);
    CHECK(s.works(0, 20));
    // A queue that was stopped needs nothing but its base, and begins a new log.
    actions due;
    const auto base = s.rings.stop(0, due);
    REQUIRE(base);
    s.described[0].base = *base;
    s.described[0].is_own_base = true;
    REQUIRE(s.start(1) == error::none);
    CHECK(s.works(0, 20));
  }
}

/// Has 8 bytes of configuration, which a reset clears.
struct configured_device : plain_device {
  std::array<std::byte, 8> config{}, config_at_start{};

  actions write_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    if (offset > 8 || from.size() > 8 - offset) return refused(error::config_out_of_range);
    for (const std::byte b : from) config[offset++] = b;
    return {};
  }
  actions activate(const feature_set& f, std::span<const queue_layout> layouts,
                   memory_type& m) noexcept {
    config_at_start = config;
    return plain_device::activate(f, layouts, m);
  }
  void reset() noexcept {
    plain_device::reset();
    config = {};
  }
};

TEST_CASE("what a driver writes before its queues begin is there when they do, once") {
  scene<configured_device> s(false);
  const std::array some{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  for (const std::uint32_t offset : {2u, 6u, 254u, 0xffff'ffffu}) s.rings.note_config(offset, some);
  REQUIRE(s.start(3) == error::none);
  const std::array expected{std::byte{},  std::byte{},  std::byte{1}, std::byte{2},
                            std::byte{3}, std::byte{4}, std::byte{1}, std::byte{2}};
  CHECK(s.device.config_at_start == expected);
  s.rings.note_config(0, some); // while it lives: this is for the device alone
  actions due;
  for (std::uint16_t i = 0; i < 2; ++i) s.rings.take(i, due);
  REQUIRE(s.start(7) == error::none);
  CHECK(s.device.config_at_start == std::array<std::byte, 8>{});
  s.rings.reset();
  s.rings.note_config(0, some);
  s.rings.reset(); // that driver went before it began
  REQUIRE(s.start(7) == error::none);
  CHECK(s.device.config_at_start == std::array<std::byte, 8>{});
}

} // namespace
