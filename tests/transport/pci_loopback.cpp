// SPDX-License-Identifier: BSD-3-Clause
// The balloon over virtio-pci: the driver finds its way by the capabilities.
#include <ballast/transport/pci_device.hpp>
#include <ballast/transport/pci_driver.hpp>

#include "support/check.hpp"
#include "support/pci_machine.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace {

using namespace ballast;
using ballast_test::by_event;
using ballast_test::by_flags;
using ballast_test::exchange;
using ballast_test::interrupt_kind;
using ballast_test::packed_ring;
using ballast_test::pci_machine;

constexpr auto split_flags = [](auto check) {
  exchange<4, false>(check, interrupt_kind::line, by_flags, 1);
};
constexpr auto split_events = [](auto check) {
  exchange<4, false>(check, interrupt_kind::msix, by_event, 1);
};
constexpr auto packed_line = [](auto check) {
  exchange<4, false>(check, interrupt_kind::line, packed_ring, 1);
};
constexpr auto packed_shared = [](auto check) {
  exchange<4, false>(check, interrupt_kind::msix_shared, packed_ring, 1);
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
      exchange<4, false>(check, kind, features, 2000);
      exchange<128, false>(check, kind, features, 2000);
    }
}

constexpr auto broken = [](auto check) {
  pci_machine<4, false> m(interrupt_kind::msix, by_event);
  check(m.settle(m.driver.start()));
  // The driver's available ring says more than there is room for.
  (void)m.ram.write(m.function.queues()[0].driver_area + 2,
                    std::array{std::byte{99}, std::byte{0}});
  m.transport.notify(0);
  const actions due = m.function.process(0, 4);
  check(due.failure == error::available_index_jump && due.config_changed);
  check(m.function.interrupts(due).vectors == 1 && m.transport.status() == 79);
  check(m.transport.take_isr() == interrupt_reason::config_change); // PCI-7, with MSI-X too
  check(m.function.process(0, 4) == actions{});
  m.due = {};
  check(m.settle(m.driver.start()) && m.set_target(3) && m.device.actual() == 3);
};
BOTH("a device that needs a reset says so in device_status and interrupts, and works after one "
     "(ST-7)",
     broken)

constexpr auto taken_over = [](auto check) {
  pci_machine<4, false> m(interrupt_kind::msix, by_event);
  check(m.settle(m.driver.start()) && m.set_target(3));
  // A second function takes over in the middle, on the same device and memory.
  pci_machine<4, false>::function_type other(m.device, m.ram);
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
