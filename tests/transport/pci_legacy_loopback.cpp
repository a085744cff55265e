// SPDX-License-Identifier: BSD-3-Clause
// The balloon over the legacy interface of a transitional device, its driver a few lines: queues
// that lie as the device says, in one piece, and have the device's size.
#include <ballast/transport/pci_device.hpp>
#include <ballast/transport/pci_legacy_driver.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/pci_function.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/negotiation.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace {

using namespace ballast;
using ballast_test::test_host;

constexpr feature_set known{balloon::feature::must_tell_host, feature::event_idx};

template <std::uint32_t QueueSize, std::uint32_t Pages> struct machine {
  using ram_type = array_memory<Pages * 4096>;
  using device_type = balloon::device<ram_type, test_host, QueueSize>;
  using function_type = pci_device<device_type, ram_type>;
  using region = ballast_test::pci_bar_region<function_type>;
  using transport_type = pci_legacy_driver<region>;
  static constexpr guest_address pfns_at = 0x800;

  ram_type ram;
  test_host host;
  device_type device{host, {.offered = known}};
  function_type function{device, ram, {.is_transitional = true}};
  actions due;
  transport_type transport;
  std::array<driver_slot, QueueSize> slots[2]{};
  split_driver<ram_type> queues[2]{split_driver<ram_type>(slots[0]),
                                   split_driver<ram_type>(slots[1])};
  std::uint32_t interrupts = 0;

  constexpr explicit machine(bool has_msix)
      : transport({&function, &due, 0, 0}, 5,
                  {.bar_bytes = static_cast<std::uint32_t>(function.bar_size(0)),
                   .is_msix_enabled = has_msix}) {
    if (!has_msix) return;
    ballast_test::enable_msix(function, 3);
    transport.use_config_vector(0);
    transport.use_queue_vector(0, 1);
    transport.use_queue_vector(1, 2);
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  constexpr error start() {
    const auto accepted =
        negotiate(transport, {.device_id = 5, .supported = known, .required = {}});
    if (!accepted) return accepted.error();
    if (*accepted != known) return error::feature_not_offered;
    guest_address at = 4096;
    for (std::uint16_t queue = 0; queue < 2; ++queue) {
      const auto place =
          split::place_legacy(at, transport.queue_size_max(queue), transport_type::queue_alignment);
      if (!place) return place.error();
      at = place->end;
      if (const auto ok = queues[queue].start(ram, place->layout, known); !ok) return ok.error();
      if (const auto ok = transport.set_up_queue(queue, place->layout); !ok) return ok.error();
    }
    return set_driver_ok(transport).error();
  }

  /// What a VMM does for what the driver asked for, up to the interrupt; whether it was raised.
  constexpr bool serve() {
    for (std::uint16_t queue = 0; queue < 2; ++queue)
      if ((due.more_work >> queue & 1) != 0) due |= function.process(queue, 4);
    const pci_interrupts raised = function.interrupts(due);
    due.notify_queues = due.more_work = 0;
    due.config_changed = false;
    const bool is_raised = raised.line ? transport.take_isr() != 0 && !function.is_interrupting()
                                       : raised.vectors != 0;
    interrupts += is_raised;
    return is_raised;
  }
  constexpr std::uint32_t field(std::uint32_t offset) {
    std::array<std::byte, 4> raw{};
    if (!transport.read_config(offset, raw)) return ~0u;
    return std::bit_cast<le32>(raw);
  }
  constexpr void set_field(std::uint32_t offset, std::uint32_t value) {
    (void)transport.write_config(offset, std::bit_cast<std::array<std::byte, 4>>(le32(value)));
  }

  /// The configuration changed: PFNs 0x1000 on go in or come out, one request, until it is so.
  constexpr bool follow_target() {
    const std::uint32_t target = field(0), actual = field(4);
    if (target == actual) return false;
    const bool is_inflating = target > actual;
    const std::uint32_t first = is_inflating ? actual : target;
    const std::uint32_t count = is_inflating ? target - actual : actual - target;
    for (std::uint32_t i = 0; i < count; ++i)
      (void)ram.write(pfns_at + 4 * i, std::bit_cast<std::array<std::byte, 4>>(le32(first + i)));
    auto& queue = queues[is_inflating ? 0 : 1];
    const buffer data{pfns_at, 4 * count};
    if (!queue.add({&data, 1}, {}, 7)) return false;
    queue.publish();
    if (queue.should_notify()) transport.notify(is_inflating ? 0 : 1);
    (void)queue.enable_notifications();
    if (!serve()) return false;
    const auto used = queue.pop_used();
    set_field(4, target);
    return used && used->token == 7;
  }
  constexpr bool set_target(std::uint32_t to) {
    due |= function.carry_out(device.set_target(to));
    return serve() && follow_target() && device.actual() == to && due.failure == error::none;
  }
};

template <std::uint32_t QueueSize, std::uint32_t Pages>
constexpr void life(auto check, bool has_msix, int rounds) {
  machine<QueueSize, Pages> m(has_msix);
  check(m.start() == error::none && m.transport.status() == 7);
  check(m.device.negotiated_features() == known);
  check(m.function.queues()[1].descriptor_area % 4096 == 0);
  for (int round = 0; round < rounds; ++round) {
    check(m.set_target(5) && m.host.discarded == 0x1f);
    check(m.set_target(2) && m.host.discarded == 0x03);
    check(m.set_target(0) && m.host.discarded == 0);
  }
  check(m.interrupts == static_cast<std::uint32_t>(6 * rounds)); // each by itself
  m.transport.set_status(0);
  check(m.transport.status() == 0 && !m.function.is_live() && m.due.failure == error::none);
  check(m.start() == error::none && m.set_target(1));
}

constexpr auto by_line = [](auto check) { life<4, 8>(check, false, 1); };
constexpr auto by_messages = [](auto check) { life<4, 8>(check, true, 1); };
BOTH("BLEG-1: a balloon over legacy virtio-pci, by INTx", by_line)
BOTH("... by MSI-X", by_messages)

TEST_CASE("a balloon over legacy virtio-pci, thousands of times and with larger queues") {
  const auto check = [](bool ok) { REQUIRE(ok); };
  for (const bool has_msix : {false, true}) {
    life<4, 8>(check, has_msix, 5000);
    life<256, 16>(check, has_msix, 5000);
  }
}

} // namespace
