// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/queue_set.hpp>

#include <doctest/doctest.h>
#include <support/vhost_user_front_end.hpp>

#include <ballast/balloon/device.hpp>

#include <sys/eventfd.h>

#include <cstdint>

namespace {

using namespace ballast;
using ballast_test::front_end;
namespace vu = ballast::vhost_user;

struct host {
  bool discard(guest_address, std::uint64_t) noexcept { return true; }
};
using device_type = balloon::device<vu::device_memory<16>, host, 16>;

struct scene {
  scene() {
    guest.features = {feature::version_1, balloon::feature::stats_vq};
    REQUIRE(guest.make_queues());
    REQUIRE(table.add({front_end::ram_at, front_end::ram_bytes, front_end::user_at, 0},
                      vu::file(dup(guest.ram_file().get()))));
    CHECK(queues.set_features(guest.features, true) == actions{});
  }
  void set_up(std::uint16_t i) {
    const queue_layout& at = guest.queues[i]->layout;
    queues[i].ring.size = at.size;
    queues[i].ring.has_addresses = true;
    queues[i].ring.addresses = {i,
                                0,
                                front_end::user_of(at.descriptor_area),
                                front_end::user_of(at.device_area),
                                front_end::user_of(at.driver_area),
                                0};
  }
  [[nodiscard]] bool starts(bool is_complete = false) {
    return queues.start_ready(is_complete).has_value();
  }

  front_end guest;
  vu::memory_table table;
  host back;
  device_type device{back, {.offered = {balloon::feature::stats_vq}}};
  vu::queue_set<device_type, 16, 3, std::endian::little> queues{device, table};
};

TEST_CASE("a queue begins when it is set up, enabled, and could be notified") {
  scene s;
  CHECK(s.starts());
  CHECK(s.queues.running() == 0); // nothing is set up
  s.set_up(0);
  CHECK(s.starts());
  CHECK(s.queues.running() == 0);
  s.queues[0].is_enabled = true;
  CHECK(s.starts());
  CHECK(s.queues.running() == 0); // by whom?
  s.queues[0].available = vu::file(eventfd(0, EFD_NONBLOCK));
  CHECK(s.starts());
  CHECK(s.queues.running() == 1);
  CHECK(s.queues.activations() == 1);
  CHECK(s.queues.polled() == 0);
}

TEST_CASE("one that is polled has no file and is to be looked at all the time") {
  scene s;
  s.set_up(1);
  s.queues[1].is_polled = true;
  REQUIRE(s.queues.enable(1, true, 4));
  CHECK(s.queues.running() == 2);
  CHECK(s.queues.polled() == 2);
  REQUIRE(s.queues.enable(1, false, 4));
  CHECK(s.queues.polled() == 0);
}

TEST_CASE("a notification begins what is enabled; what is not stays notified") {
  scene s;
  s.set_up(0);
  s.set_up(1);
  s.queues[1].is_enabled = true;
  REQUIRE(s.queues.take_notification(0, 4));
  CHECK(s.queues.running() == 0);
  CHECK(s.queues[0].is_notified);
  REQUIRE(s.queues.take_notification(1, 4));
  CHECK(s.queues.running() == 2); // the other one is not enabled
  REQUIRE(s.queues.enable(0, true, 4));
  CHECK(s.queues.running() == 3);
  CHECK(!s.queues[0].is_notified);
  CHECK(s.queues.activations() == 1);
}

TEST_CASE("in-band, a queue that is enabled could be notified") {
  scene s;
  s.queues.set_in_band(true);
  s.set_up(0);
  REQUIRE(s.queues.enable(0, true, 4));
  CHECK(s.queues.running() == 1);
  // ... but without enabling nobody knows, until it is notified or all is said.
  scene t;
  t.queues.set_in_band(true);
  CHECK(t.queues.set_features(t.guest.features, false) == actions{});
  t.set_up(0);
  CHECK(t.starts());
  CHECK(t.queues.running() == 0);
  t.set_up(2);
  REQUIRE(t.queues.take_notification(2, 4));
  CHECK(t.queues.running() == 5);
  t.set_up(1);
  CHECK(t.starts(true));
  CHECK(t.queues.running() == 7);
}

TEST_CASE("a queue that was stopped waits until it is set up or notified again") {
  scene s;
  s.set_up(0);
  s.queues[0].is_enabled = s.queues[0].is_polled = true;
  CHECK(s.starts());
  REQUIRE(s.queues.stop(0));
  CHECK(s.queues.running() == 0);
  CHECK(s.queues[0].ring.is_own_base);
  s.queues[0].is_polled = true;
  CHECK(s.starts());
  CHECK(s.queues.running() == 0);
  REQUIRE(s.queues.take_notification(0, 4));
  CHECK(s.queues.running() == 1);
  CHECK(!s.queues[0].ring.is_own_base);
}

TEST_CASE("another driver's features take all queues; a paused one goes on when notified") {
  scene s;
  s.set_up(0);
  s.queues[0].available = vu::file(eventfd(0, EFD_NONBLOCK));
  REQUIRE(s.queues.enable(0, true, 4));
  s.queues.pause();
  CHECK(!s.queues.rings().is_attached());
  CHECK(s.queues.process(0, 4) == actions{});
  REQUIRE(s.queues.take_notification(0, 4));
  CHECK(s.queues.rings().is_attached());
  CHECK(s.queues.set_features(s.guest.features, true).failure == error::none);
  CHECK(s.queues.running() == 0);
  CHECK(!s.queues[0].available.is_open());
}

TEST_CASE("a change of the memory that fails leaves the queues running") {
  scene s;
  s.set_up(0);
  s.queues[0].is_polled = true;
  REQUIRE(s.queues.enable(0, true, 4));
  bool was_attached = true;
  const auto due = s.queues.while_detached([&] {
    was_attached = s.queues.rings().is_attached();
    return error::region_unknown;
  });
  REQUIRE(due);
  CHECK(due->failure == error::region_unknown);
  CHECK(!was_attached);
  CHECK(s.queues.rings().is_attached());
  s.queues.reset_device();
  CHECK(s.queues.running() == 0);
  CHECK(s.queues.while_detached([] { return error::file_too_small; }).error() ==
        error::file_too_small);
}

} // namespace
