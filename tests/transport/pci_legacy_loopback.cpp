// SPDX-License-Identifier: BSD-3-Clause
// The balloon over the legacy interface of a transitional device: queues that lie as that interface
// says and have all the entries that the device gives them.
#include <ballast/transport/pci_device.hpp>
#include <ballast/transport/pci_legacy_driver.hpp>

#include "support/check.hpp"
#include "support/pci_machine.hpp"

#include <cstdint>
#include <initializer_list>

namespace {

using ballast_test::by_event;
using ballast_test::by_flags;
using ballast_test::exchange;
using ballast_test::interrupt_kind;
using ballast_test::pci_machine;

constexpr auto by_line = [](auto check) {
  exchange<4, true>(check, interrupt_kind::line, by_flags, 1);
};
constexpr auto by_messages = [](auto check) {
  exchange<4, true>(check, interrupt_kind::msix, by_event, 1);
};
BOTH("BLEG-1: a balloon over legacy virtio-pci, by INTx", by_line)
BOTH("... by MSI-X, which moves the configuration", by_messages)

constexpr auto places = [](auto check) {
  pci_machine<4, true> m(interrupt_kind::line, by_flags);
  check(m.settle(m.driver.start()) && m.transport.status() == 7); // IN-6: no FEATURES_OK
  for (const ballast::queue_layout& queue : m.function.queues()) {
    check(queue.size == 4 && queue.descriptor_area % 4096 == 0);
    check(queue.driver_area == queue.descriptor_area + 64);
    check(queue.device_area == queue.descriptor_area + 4096);
  }
};
BOTH("... whose queues are in one piece each, the used ring on a page of its own", places)

constexpr auto taken_over = [](auto check) {
  pci_machine<4, true> m(interrupt_kind::msix, by_event);
  check(m.settle(m.driver.start()) && m.set_target(3));
  const auto saved = m.function.state();
  m.function.restore({}); // as in a process that has just begun
  check(!m.function.is_live() && m.transport.status() == 0);
  m.function.restore(saved);
  check(m.set_target(6) && m.device.actual() == 6 && m.set_target(0) && m.driver.actual() == 0);
};
BOTH("a legacy function goes on from what was saved, under a driver that does not notice",
     taken_over)

TEST_CASE("a balloon over legacy virtio-pci, thousands of times and with larger queues") {
  const auto check = [](bool ok) { REQUIRE(ok); };
  for (const interrupt_kind kind :
       {interrupt_kind::line, interrupt_kind::msix, interrupt_kind::msix_shared}) {
    exchange<4, true>(check, kind, by_flags, 2000);
    exchange<256, true>(check, kind, by_event, 2000);
  }
}

} // namespace
