// SPDX-License-Identifier: BSD-3-Clause
// The balloon over virtio-pci: the driver finds its way by the capabilities, its every access goes
// through the BARs, and between them is what a VMM and a guest would do.
#include <ballast/transport/pci_device.hpp>
#include <ballast/transport/pci_driver.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/pci_function.hpp"

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

using ram_type = array_memory<16 * 4096>;

enum class interrupt_kind { line, msix, msix_shared };

template <std::uint32_t QueueSize> struct machine {
  using device_type = balloon::device<ram_type, test_host, QueueSize>;
  using function_type = pci_device<device_type, ram_type>;
  using region = ballast_test::pci_bar_region<function_type>;
  using transport_type = pci_driver<region>;
  using pages_type = test_pages<32>;

  interrupt_kind kind;
  ram_type ram;
  test_host host;
  device_type device;
  function_type function;
  actions due;
  transport_type transport;
  pages_type pages{8, 16};
  test_statistics statistics;
  balloon::driver<ram_type, transport_type, pages_type, test_statistics, QueueSize> driver;
  bool has_interrupted = false;

  constexpr machine(interrupt_kind how, const feature_set& features)
      : kind(how), device(host, {.offered = features}), function(device, ram),
        transport(ballast_test::find_regions(function, due), 5),
        driver(ram, transport, pages, statistics, 0x1000, {.accepted = features}) {
    if (kind == interrupt_kind::line) return;
    ballast_test::enable_msix(function, 4);
    const bool is_shared = kind == interrupt_kind::msix_shared;
    transport.use_config_vector(0);
    for (std::uint16_t queue = 0; queue < 3; ++queue)
      transport.use_queue_vector(queue, is_shared ? 0 : static_cast<std::uint16_t>(queue + 1));
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  /// The guest's interrupt handler.
  constexpr actions interrupt(const pci_interrupts& raised) {
    actions of_driver;
    has_interrupted = has_interrupted || raised.line || raised.vectors != 0;
    if (raised.line) {
      const std::uint8_t why = transport.take_isr();
      if ((why & interrupt::config_change) != 0) of_driver |= driver.on_config_change();
      if ((why & interrupt::used_buffer) != 0) of_driver |= driver.step();
    }
    if ((raised.vectors & 1) != 0) of_driver |= driver.on_config_change();
    if ((raised.vectors & 0xe) != 0 || (kind == interrupt_kind::msix_shared && raised.vectors != 0))
      of_driver |= driver.step();
    return of_driver;
  }
  /// The guest's notifications and the device's interrupts, until there are none; false: something
  /// failed, or it does not end.
  constexpr bool settle(actions of_driver) {
    for (int round = 0; round < 200; ++round) {
      if (of_driver.failure != error::none || due.failure != error::none) return false;
      for (std::uint16_t queue = 0; queue < 3; ++queue)
        if (of_driver.notifies(queue)) transport.notify(queue);
      const std::uint64_t queues = due.more_work;
      due.more_work = 0;
      for (std::uint16_t queue = 0; queue < 3; ++queue)
        if ((queues >> queue & 1) != 0) due |= function.process(queue, 4);
      const pci_interrupts raised = function.interrupts(due);
      due.notify_queues = 0;
      due.config_changed = false;
      if (!raised.line && raised.vectors == 0 && due.more_work == 0) return true;
      of_driver = interrupt(raised);
    }
    return false;
  }
  constexpr bool set_target(std::uint32_t to) {
    due |= function.carry_out(device.set_target(to));
    return settle({});
  }
};

constexpr feature_set by_flags{balloon::feature::must_tell_host, balloon::feature::stats_vq};
constexpr feature_set by_event = by_flags.with(feature::event_idx);
constexpr feature_set packed_ring = by_event.with(feature::ring_packed);

template <std::uint32_t QueueSize>
constexpr void exchange(auto check, interrupt_kind kind, const feature_set& features, int rounds) {
  machine<QueueSize> m(kind, features);
  check(m.settle(m.driver.start()));
  check(m.driver.negotiated_features() == features.with(feature::version_1));
  check(m.device.take_statistics(1)->value(statistic_tag::minor_faults) == 1);
  for (int round = 0; round < rounds; ++round) {
    check(m.set_target(5));
    check(m.device.actual() == 5 && m.driver.actual() == 5 && m.host.discarded == 0x1f00);
    m.due |= m.function.carry_out(m.device.request_statistics());
    check(m.settle({}));
    const auto reply = m.device.take_statistics(2);
    check(reply && reply->is_solicited && reply->actual_pages == 5);
    check(m.set_target(0));
    check(m.device.actual() == 0 && m.host.discarded == 0 && m.pages.free() == 8);
  }
  check(m.has_interrupted && m.function.is_msix_enabled() == (kind != interrupt_kind::line));
  check(m.driver.stop().has_value() && !m.function.is_live() && !m.function.is_interrupting());
  check(m.due.failure == error::none); // the driver never made an access that it must not make
}

constexpr auto split_flags = [](auto check) {
  exchange<4>(check, interrupt_kind::line, by_flags, 1);
};
constexpr auto split_events = [](auto check) {
  exchange<4>(check, interrupt_kind::msix, by_event, 1);
};
constexpr auto packed_line = [](auto check) {
  exchange<4>(check, interrupt_kind::line, packed_ring, 1);
};
constexpr auto packed_shared = [](auto check) {
  exchange<4>(check, interrupt_kind::msix_shared, packed_ring, 1);
};
BOTH("a balloon over virtio-pci, by INTx", split_flags)
BOTH("... by MSI-X, a vector for each queue", split_events)
BOTH("... over packed rings, by INTx", packed_line)
BOTH("PCI-8: ... by one MSI-X vector for everything", packed_shared)

TEST_CASE("a balloon over virtio-pci, thousands of times and with larger queues") {
  for (const feature_set& features :
       {by_flags, by_event, packed_ring, packed_ring.with(feature::in_order)})
    for (const interrupt_kind kind :
         {interrupt_kind::line, interrupt_kind::msix, interrupt_kind::msix_shared}) {
      const auto check = [](bool ok) { REQUIRE(ok); };
      exchange<4>(check, kind, features, 2000);
      exchange<128>(check, kind, features, 2000);
    }
}

constexpr auto broken = [](auto check) {
  machine<4> m(interrupt_kind::msix, by_event);
  check(m.settle(m.driver.start()));
  // The driver's available ring says more than there is room for.
  (void)m.ram.write(m.function.queues()[0].driver_area + 2,
                    std::array{std::byte{99}, std::byte{0}});
  m.transport.notify(0);
  const actions due = m.function.process(0, 4);
  check(due.failure == error::available_index_jump && due.config_changed);
  check(m.function.interrupts(due).vectors == 1 && m.transport.status() == 79);
  check(m.transport.take_isr() == interrupt::config_change); // PCI-7, with MSI-X too
  check(m.function.process(0, 4) == actions{});
  m.due = {};
  check(m.settle(m.driver.start()) && m.set_target(3) && m.device.actual() == 3);
};
BOTH("a device that needs a reset says so in device_status and interrupts, and works after one "
     "(ST-7)",
     broken)

constexpr auto taken_over = [](auto check) {
  machine<4> m(interrupt_kind::msix, by_event);
  check(m.settle(m.driver.start()) && m.set_target(3));
  // A second function takes over in the middle, on the same device and memory.
  machine<4>::function_type other(m.device, m.ram);
  other.restore(m.function.state());
  check(other.state() == m.function.state() && other.is_live() && other.is_msix_enabled());
  const actions changed = other.carry_out(m.device.set_target(6));
  check(other.interrupts(changed).vectors == 1);
  const actions of_driver = m.driver.on_config_change();
  check(of_driver.notifies(0));
  const actions served = other.process(0, 4);
  check(served.notifies(0) && other.interrupts(served).vectors == 2);
  check(other.message(1) == m.function.message(1));
  check(m.driver.step().failure == error::none && m.device.actual() == 6);
  check(m.host.discarded == 0x3f00);
};
BOTH("a function is saved in the middle and another goes on, which the driver does not notice",
     taken_over)

} // namespace
