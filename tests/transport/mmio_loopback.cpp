// SPDX-License-Identifier: BSD-3-Clause
// The balloon over virtio-mmio: the driver's every access goes through the registers, the device
// has nothing else to go by, and between them is what a VMM and a guest would do.
#include <ballast/transport/mmio_device.hpp>
#include <ballast/transport/mmio_driver.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/mmio_rules.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/driver.hpp>
#include <ballast/memory/array_memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace {

using namespace ballast;
using ballast_test::statistic_tag;
using ballast_test::test_host;
using ballast_test::test_pages;
using ballast_test::test_statistics;

constexpr std::uint32_t ram_pages = 16;
using memory = array_memory<ram_pages * 4096>;

template <std::uint32_t QueueSize> struct machine {
  using device_type = balloon::device<memory, test_host, QueueSize>;
  using bus_type = mmio_device<device_type, memory>;
  using rules_type = ballast_test::mmio_rules<bus_type>;
  using transport_type = mmio_driver<typename rules_type::region>;
  using pages_type = test_pages<32>;

  memory ram;
  test_host host;
  device_type device;
  bus_type bus;
  rules_type rules{bus};
  transport_type transport{rules.access()};
  pages_type pages{8, 16};
  test_statistics statistics;
  balloon::driver<memory, transport_type, pages_type, test_statistics, QueueSize> driver;

  constexpr machine(mmio_version version, const feature_set& features)
      : device(host, {.offered = features}), bus(device, ram, version),
        driver(ram, transport, pages, statistics, 0x1000, {.accepted = features}) {}
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  /// The guest's notifications and the device's interrupts, until there are none; false: something
  /// failed, or it does not end.
  constexpr bool settle(actions of_driver) {
    for (int round = 0; round < 200; ++round) {
      if (of_driver.failure != error::none || rules.due.failure != error::none) return false;
      for (std::uint16_t queue = 0; queue < 3; ++queue)
        if (of_driver.notifies(queue)) transport.notify(queue);
      of_driver = {};
      const std::uint64_t queues = rules.due.more_work;
      rules.due = {};
      for (std::uint16_t queue = 0; queue < 3; ++queue)
        if ((queues >> queue & 1) != 0) rules.due |= bus.process(queue, 4);
      if (bus.is_interrupting()) {
        const std::uint32_t why = transport.interrupt_status();
        transport.acknowledge(why);
        of_driver = (why & interrupt_reason::config_change) != 0 ? driver.on_config_change()
                                                                 : driver.step();
      } else if (rules.due.more_work == 0) {
        return true;
      }
    }
    return false;
  }
  constexpr bool set_target(std::uint32_t to) {
    rules.due |= bus.carry_out(device.set_target(to));
    return settle({});
  }
};

constexpr feature_set by_flags{balloon::feature::must_tell_host, balloon::feature::stats_vq};
constexpr feature_set by_event = by_flags.with(feature::event_idx);
constexpr feature_set packed_ring = by_event.with(feature::ring_packed);

template <std::uint32_t QueueSize>
constexpr void exchange(auto check, mmio_version version, const feature_set& features, int rounds) {
  machine<QueueSize> m(version, features);
  const bool is_legacy = version == mmio_version::legacy;
  check(m.settle(m.driver.start()));
  check(m.driver.negotiated_features() ==
        (is_legacy ? features : features.with(feature::version_1)));
  check(m.device.take_statistics(1)->value(statistic_tag::minor_faults) == 1);
  for (int round = 0; round < rounds; ++round) {
    check(m.set_target(5));
    check(m.device.actual() == 5 && m.driver.actual() == 5 && m.host.discarded == 0x1f00);
    m.rules.due |= m.bus.carry_out(m.device.request_statistics());
    check(m.settle({}));
    const auto reply = m.device.take_statistics(2);
    check(reply && reply->is_solicited && reply->actual_pages == 5);
    check(m.set_target(0));
    check(m.device.actual() == 0 && m.host.discarded == 0 && m.pages.free() == 8);
  }
  check(m.driver.stop().has_value() && !m.bus.is_live() && !m.bus.is_interrupting());
  check(m.rules.wrongs == 0);
}

constexpr auto split_flags = [](auto check) {
  exchange<4>(check, mmio_version::modern, by_flags, 1);
};
constexpr auto split_events = [](auto check) {
  exchange<4>(check, mmio_version::modern, by_event, 2);
};
constexpr auto packed_events = [](auto check) {
  exchange<4>(check, mmio_version::modern, packed_ring, 2);
};
constexpr auto legacy_flags = [](auto check) {
  exchange<4>(check, mmio_version::legacy, by_flags, 1);
};
constexpr auto legacy_events = [](auto check) {
  exchange<4>(check, mmio_version::legacy, by_event, 2);
};
BOTH("a balloon over virtio-mmio, suppression by flags (MM-6)", split_flags)
BOTH("... suppression by event index", split_events)
BOTH("... over packed rings", packed_events)
BOTH("a balloon over legacy virtio-mmio (BLEG-1)", legacy_flags)
BOTH("... legacy, by event index", legacy_events)

TEST_CASE("a balloon over virtio-mmio, thousands of times and with larger queues") {
  for (const feature_set& features :
       {by_flags, by_event, packed_ring, packed_ring.with(feature::in_order)})
    for (const mmio_version version : {mmio_version::modern, mmio_version::legacy}) {
      if (version == mmio_version::legacy && features.test(feature::ring_packed)) continue;
      const auto check = [](bool ok) { REQUIRE(ok); };
      exchange<4>(check, version, features, 3000);
      exchange<128>(check, version, features, 3000);
    }
}

constexpr auto broken = [](auto check) {
  machine<4> m(mmio_version::modern, by_event);
  check(m.settle(m.driver.start()));
  // The driver's available ring says more than there is room for.
  (void)m.ram.write(m.bus.queues()[0].driver_area + 2, std::array{std::byte{99}, std::byte{0}});
  m.transport.notify(0);
  const actions due = m.bus.process(0, 4);
  check(due.failure == error::available_index_jump && due.config_changed);
  check(m.bus.is_interrupting() &&
        m.transport.interrupt_status() == interrupt_reason::config_change);
  check(m.transport.status() == 79 && m.bus.process(0, 4) == actions{});
  m.transport.acknowledge(3);
  m.rules.due = {};
  check(m.driver.on_config_change().failure == error::device_needs_reset);
  check(m.settle(m.driver.start()) && m.set_target(3) && m.device.actual() == 3);
};
BOTH("a device that needs a reset says so in Status and interrupts, and works after one (ST-7)",
     broken)

constexpr auto taken_over = [](auto check) {
  machine<4> m(mmio_version::modern, by_event);
  check(m.settle(m.driver.start()) && m.set_target(4));
  const auto saved = m.bus.state();
  m.bus.restore({}); // as in a process that has just begun
  check(!m.bus.is_live() && m.transport.status() == 0);
  m.bus.restore(saved);
  check(m.set_target(7) && m.device.actual() == 7 && m.set_target(0) && m.driver.actual() == 0);
  check(m.rules.wrongs == 0);
};
BOTH("the registers are saved and go on under a driver that does not notice", taken_over)

} // namespace
