// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/balloon_parts.hpp"
#include "support/pci_function.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/driver.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/pci_device.hpp>
#include <ballast/transport/pci_driver.hpp>
#include <ballast/transport/pci_legacy_driver.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>

#include <cstdint>
#include <type_traits>

namespace ballast_test {

enum class interrupt_kind { line, msix, msix_shared };

/// The balloon over virtio-pci: the driver's every access goes through configuration space and
/// BARs, the device has nothing else to go by, and between them is what a VMM and a guest would do.
template <std::uint32_t QueueSize, bool IsLegacy> struct pci_machine {
  using ram_type = ballast::array_memory<(IsLegacy ? 32u : 16u) * 4096>;
  using device_type = ballast::balloon::device<ram_type, test_host, QueueSize>;
  using function_type = ballast::pci_device<device_type, ram_type>;
  using region = pci_bar_region<function_type>;
  using transport_type =
      std::conditional_t<IsLegacy, ballast::pci_legacy_driver<region>, ballast::pci_driver<region>>;
  using pages_type = test_pages<32>;

  interrupt_kind kind;
  ram_type ram;
  test_host host;
  device_type device;
  function_type function;
  ballast::actions due;
  transport_type transport;
  pages_type pages{8, 16};
  test_statistics statistics;
  ballast::balloon::driver<ram_type, transport_type, pages_type, test_statistics, QueueSize> driver;
  bool has_interrupted = false;

  constexpr pci_machine(interrupt_kind how, const ballast::feature_set& features)
      : kind(how), device(host, {.offered = features}),
        function(device, ram, {.is_transitional = IsLegacy}), transport(make_transport()),
        driver(ram, transport, pages, statistics, IsLegacy ? 0x10000 : 0x1000,
               {.accepted = features}) {
    if (kind == interrupt_kind::line) return;
    enable_msix(function, 4);
    const bool is_shared = kind == interrupt_kind::msix_shared;
    transport.use_config_vector(0);
    for (std::uint16_t queue = 0; queue < 3; ++queue)
      transport.use_queue_vector(queue, is_shared ? 0 : static_cast<std::uint16_t>(queue + 1));
  }
  pci_machine(const pci_machine&) = delete;
  pci_machine& operator=(const pci_machine&) = delete;

  /// The guest's interrupt handler.
  constexpr ballast::actions interrupt(const ballast::pci_interrupts& raised) {
    ballast::actions of_driver;
    has_interrupted = has_interrupted || raised.line || raised.vectors != 0;
    if (raised.line) {
      const std::uint8_t why = transport.take_isr();
      if ((why & ballast::interrupt_reason::config_change) != 0)
        of_driver |= driver.on_config_change();
      if ((why & ballast::interrupt_reason::used_buffer) != 0) of_driver |= driver.step();
    }
    if ((raised.vectors & 1) != 0) of_driver |= driver.on_config_change();
    if ((raised.vectors & 0xe) != 0 || (kind == interrupt_kind::msix_shared && raised.vectors != 0))
      of_driver |= driver.step();
    return of_driver;
  }
  /// The guest's notifications and the device's interrupts, until there are none; false: something
  /// failed, or it does not end.
  constexpr bool settle(ballast::actions of_driver) {
    for (int round = 0; round < 200; ++round) {
      if (of_driver.failure != ballast::error::none || due.failure != ballast::error::none)
        return false;
      for (std::uint16_t queue = 0; queue < 3; ++queue)
        if (of_driver.notifies(queue)) transport.notify(queue);
      const std::uint64_t queues = due.more_work;
      due.more_work = 0;
      for (std::uint16_t queue = 0; queue < 3; ++queue)
        if ((queues >> queue & 1) != 0) due |= function.process(queue, 4);
      const ballast::pci_interrupts raised = function.interrupts(due);
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

 private:
  constexpr transport_type make_transport() {
    if constexpr (IsLegacy)
      return {region{&function, &due, function_type::legacy_bar, 0},
              5,
              {.bar_bytes = static_cast<std::uint32_t>(function.bar_size(0)),
               .is_msix_enabled = kind != interrupt_kind::line}};
    else
      return {find_regions(function, due), 5};
  }
};

inline constexpr ballast::feature_set by_flags{ballast::balloon::feature::must_tell_host,
                                               ballast::balloon::feature::stats_vq};
inline constexpr ballast::feature_set by_event = by_flags.with(ballast::feature::event_idx);
inline constexpr ballast::feature_set packed_ring = by_event.with(ballast::feature::ring_packed);

/// Pages go in and out, and statistics come, so many times; then the driver stops.
template <std::uint32_t QueueSize, bool IsLegacy>
constexpr void exchange(auto check, interrupt_kind kind, const ballast::feature_set& features,
                        int rounds) {
  pci_machine<QueueSize, IsLegacy> m(kind, features);
  check(m.settle(m.driver.start()));
  check(m.driver.negotiated_features() ==
        (IsLegacy ? features : features.with(ballast::feature::version_1)));
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
  check(m.due.failure ==
        ballast::error::none); // the driver never made an access that it must not make
}

} // namespace ballast_test
