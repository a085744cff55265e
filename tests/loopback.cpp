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

template <std::endian E>
constexpr void exchange(auto check, bool has_event_index, std::uint16_t first_index, int rounds) {
  array_memory<16 * 4096> ram;
  feature_set features{balloon::feature::must_tell_host, balloon::feature::stats_vq};
  if (has_event_index) features.set(feature::event_idx);
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

constexpr auto flags = [](auto check) { exchange<std::endian::little>(check, false, 0, 1); };
constexpr auto events = [](auto check) { exchange<std::endian::little>(check, true, 65534, 3); };
constexpr auto flags_wrap = [](auto check) {
  exchange<std::endian::little>(check, false, 65530, 8);
};
constexpr auto events_wrap = [](auto check) {
  exchange<std::endian::little>(check, true, 65530, 8);
};
constexpr auto big_endian = [](auto check) { exchange<std::endian::big>(check, true, 65535, 2); };
BOTH("a whole loopback, suppression by flags", flags)
BOTH("a whole loopback, suppression by event index", events)
BOTH("... over the 16-bit wrap, by flags", flags_wrap)
BOTH("... over the 16-bit wrap, by event index", events_wrap)
BOTH("... with big-endian rings", big_endian)

TEST_CASE("a loopback all round the 16-bit index, and once more") {
  exchange<std::endian::little>([](bool ok) { REQUIRE(ok); }, true, 65530, 66000);
}

} // namespace
