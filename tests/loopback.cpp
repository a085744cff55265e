// SPDX-License-Identifier: BSD-3-Clause
// The whole library in one expression: a device and a driver negotiate, inflate, report statistics
// and deflate, in a constant expression and at run time, with the ring indices over their wrap.
#include <ballast/ballast.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/checked_memory.hpp"

#include <cstdint>

namespace {

using namespace ballast;
using ballast_test::statistic_tag;
using ballast_test::test_host;
using ballast_test::test_pages;
using ballast_test::test_statistics;

template <class M, std::endian E> struct machine {
  using device_type = balloon::device<M, test_host, 4, E>;
  using transport_type = in_process_transport<device_type, M>;
  using pages_type = test_pages<32>;

  test_host host;
  device_type device;
  transport_type transport;
  pages_type pages{8, 16};
  test_statistics statistics;
  balloon::driver<M, transport_type, pages_type, test_statistics, 4, E> driver;

  constexpr machine(M& memory, const balloon::device_options& offers,
                    const balloon::driver_options& accepts)
      : device(host, offers), transport(device, memory),
        driver(memory, transport, pages, statistics, 0, accepts) {}

  /// Carries out what each side asks for until neither asks; how many notifications it took.
  constexpr int settle(actions of_driver, actions of_device = {}) {
    int notifications = 0;
    while (of_driver.notify_queues != 0 || of_device.notify_queues != 0 ||
           of_device.config_changed) {
      if (of_driver.failure != error::none || of_device.failure != error::none) return -1;
      ++notifications;
      if (of_driver.notify_queues != 0) {
        for (std::uint16_t q = 0; q < 3; ++q)
          if (of_driver.notifies(q)) transport.notify(q);
        of_driver = {};
        const std::uint64_t queues = transport.take_notified();
        for (std::uint16_t q = 0; q < 3; ++q)
          if (((queues >> q) & 1) != 0) of_device |= transport.process(q, 4);
      } else {
        of_driver = of_device.config_changed ? driver.on_config_change() : driver.step();
        of_device = {};
      }
    }
    return notifications;
  }
};

constexpr feature_set by_flags{balloon::feature::must_tell_host, balloon::feature::stats_vq};
constexpr feature_set by_event = by_flags.with(feature::event_idx);
constexpr feature_set packed_ring = by_event.with(feature::ring_packed);

template <std::endian E>
constexpr void exchange(auto check, const feature_set& features, std::uint16_t first_index,
                        int rounds) {
  array_memory<16 * 4096> ram;
  machine<array_memory<16 * 4096>, E> m(ram, {.offered = features, .first_index = first_index},
                                        {.accepted = features, .first_index = first_index});
  check(m.settle(m.driver.start()) >= 0);
  check(m.driver.negotiated_features() == features.with(feature::version_1));
  check(m.device.take_statistics(1)->value(statistic_tag::minor_faults) == 1);
  for (int round = 0; round < rounds; ++round) {
    check(m.settle({}, m.device.set_target(5)) > 0);
    check(m.device.actual() == 5 && m.driver.actual() == 5);
    check(m.host.discarded == 0x1f00);
    check(m.settle({}, m.device.request_statistics()) > 0);
    const auto reply = m.device.take_statistics(2);
    check(reply && reply->is_solicited && reply->actual_pages == 5);
    check(m.settle({}, m.device.set_target(0)) > 0);
    check(m.device.actual() == 0 && m.host.discarded == 0);
    check(m.pages.free() == 8 && m.pages.stored() == 0);
  }
}

constexpr auto flags = [](auto check) { exchange<std::endian::little>(check, by_flags, 0, 1); };
constexpr auto events = [](auto check) {
  exchange<std::endian::little>(check, by_event, 65534, 3);
};
constexpr auto flags_wrap = [](auto check) {
  exchange<std::endian::little>(check, by_flags, 65530, 8);
};
constexpr auto events_wrap = [](auto check) {
  exchange<std::endian::little>(check, by_event, 65530, 8);
};
constexpr auto big_endian = [](auto check) {
  exchange<std::endian::big>(check, by_event, 65535, 2);
};
BOTH("a whole loopback, suppression by flags", flags)
BOTH("a whole loopback, suppression by event index", events)
BOTH("... over the 16-bit wrap, by flags", flags_wrap)
BOTH("... over the 16-bit wrap, by event index", events_wrap)
BOTH("... with big-endian rings", big_endian)

constexpr auto packed_events = [](auto check) {
  exchange<std::endian::little>(check, packed_ring, 0, 5); // ten chains: two rounds of four
};
constexpr auto packed_flags = [](auto check) {
  exchange<std::endian::little>(check, by_flags.with(feature::ring_packed), 7, 5);
};
constexpr auto packed_in_order = [](auto check) {
  exchange<std::endian::little>(check, packed_ring.with(feature::in_order), 3, 5);
};
constexpr auto packed_big_endian = [](auto check) {
  exchange<std::endian::big>(check, packed_ring, 6, 5);
};
BOTH("a whole loopback over packed rings, suppression by event index", packed_events)
BOTH("... by flags, over both wraps", packed_flags)
BOTH("... with IN_ORDER", packed_in_order)
BOTH("... big-endian", packed_big_endian)

TEST_CASE("a loopback all round the 16-bit index, and once more") {
  for (const feature_set& features : {by_event, packed_ring})
    exchange<std::endian::little>([](bool ok) { REQUIRE(ok); }, features, 65530, 66000);
}

} // namespace
