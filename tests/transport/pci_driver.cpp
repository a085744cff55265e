// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_driver.hpp>

#include <support/byte_region.hpp>
#include <support/check.hpp>
#include <support/pci_function.hpp>
#include <support/witness_device.hpp>

#include <ballast/memory/array_memory.hpp>
#include <ballast/transport/pci_device.hpp>
#include <ballast/virtio/negotiation.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace {

using ballast::actions;
using ballast::error;
using ballast::feature_set;
using ballast::pci_driver;
using ballast::pci_regions;
using ballast::queue_layout;
namespace common = ballast::pci::common_cfg;
namespace feature = ballast::feature;
namespace pci = ballast::pci;

using ram_type = ballast::array_memory<16>;
using device_type = ballast_test::witness_device<ram_type>;
using function_type = ballast::pci_device<device_type, ram_type>;
using driver_type = pci_driver<ballast_test::pci_bar_region<function_type>>;
static_assert(ballast::driver_transport<driver_type>);

constexpr queue_layout layout(std::uint32_t size) {
  return {size, 0x1'2000'0100, 0x2'2000'0600, 0x3'2000'0800};
}
constexpr feature_set modern{1, feature::version_1};

/// A device of this process and its driver.
struct machine {
  device_type device;
  ram_type ram;
  function_type function{device, ram};
  actions due;
  driver_type driver{ballast_test::find_regions(function, due), 77};

  machine() = default;
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  constexpr bool negotiate(const feature_set& accepted = modern) {
    const auto done =
        ballast::negotiate(driver, {.device_id = 77, .supported = accepted, .required = {}});
    return done && *done == accepted;
  }
};

constexpr auto whole_way = [](auto check) {
  machine m;
  check(m.driver.device_id() == 77);
  check(m.driver.device_features() == m.device.offered);
  check(m.negotiate() && m.driver.status() == 11);
  check(m.driver.queue_size_max(0) == 128 && m.driver.queue_size_max(1) == 0);
  check(m.driver.set_up_queue(0, layout(128)).has_value());
  check(m.driver.set_up_queue(2, layout(16)).has_value());
  check(ballast::set_driver_ok(m.driver).has_value());
  check(m.device.queues[0] == layout(128) && m.device.queues[2] == layout(16));
  check(m.device.features == modern && m.due.failure == error::none);
  m.driver.notify(2);
  check(m.due.more_work == 4);
  m.driver.notify(0);
  check(m.due.more_work == 5 && m.due.failure == error::none && m.device.wrongs == 0);
  m.driver.set_status(0);
  check(m.driver.status() == 0 && m.device.resets == 2);
};
BOTH("PCI-5: a driver sets a device up, its accesses all as they must be", whole_way)

constexpr auto refusals = [](auto check) {
  machine m;
  check(m.driver.set_up_queue(0, layout(16)).error() == error::wrong_state); // not negotiated
  m.due = {};
  check(m.negotiate());
  check(m.driver.set_up_queue(1, layout(16)).error() == error::queue_unavailable);
  check(m.driver.set_up_queue(3, layout(16)).error() == error::queue_unavailable);
  for (const std::uint16_t queue : {std::uint16_t{64}, std::uint16_t{0xffff}})
    check(m.driver.set_up_queue(queue, layout(16)).error() == error::invalid_queue_index);
  for (const std::uint32_t size : {0u, 129u, 65536u, 65552u})
    check(m.driver.set_up_queue(0, layout(size)).error() == error::invalid_queue_size);
  check(m.driver.set_up_queue(0, layout(16)).has_value());
  check(m.driver.set_up_queue(0, layout(16)).error() == error::wrong_state); // RT-12
  check(m.due.failure == error::none); // it has made no access that was refused
  m.driver.notify(64);
  check(m.due.failure == error::none);
};
BOTH("what can't be set up is refused before the device is asked", refusals)

constexpr auto vectors = [](auto check) {
  machine m;
  ballast_test::enable_msix(m.function, 4);
  check(m.negotiate());
  m.driver.use_config_vector(0);
  m.driver.use_queue_vector(0, 3);
  m.driver.use_queue_vector(64, 1); // there is no such queue
  check(m.driver.set_up_queue(0, layout(16)).has_value());
  check(m.driver.set_up_queue(2, layout(16)).has_value()); // without a vector of its own
  check(ballast::set_driver_ok(m.driver).has_value());
  check(m.function.interrupts({.notify_queues = 1}).vectors == 8);
  check(m.function.interrupts({.notify_queues = 4}).vectors == 0);
  check(m.function.interrupts({.config_changed = true}).vectors == 1);

  machine few;
  check(few.negotiate());
  few.driver.use_queue_vector(0, 4);
  check(few.driver.set_up_queue(0, layout(16)).error() == error::vector_unavailable);
  few.driver.use_queue_vector(0, 3);
  few.driver.use_config_vector(0x7ff);
  check(few.driver.set_up_queue(0, layout(16)).error() == error::vector_unavailable);
  few.driver.use_config_vector(pci::no_vector);
  check(few.driver.set_up_queue(0, layout(16)).has_value());
};
BOTH("the vectors are written with the queue, and read back", vectors)

constexpr auto isr = [](auto check) {
  machine m;
  check(m.negotiate() && m.driver.set_up_queue(0, layout(16)).has_value());
  (void)m.function.carry_out({.notify_queues = 1, .config_changed = true});
  check(!m.function.is_interrupting()); // not before DRIVER_OK
  check(ballast::set_driver_ok(m.driver).has_value());
  (void)m.function.carry_out({.notify_queues = 1, .config_changed = true});
  check(m.function.is_interrupting());
  check(m.driver.take_isr() ==
        (ballast::interrupt_reason::used_buffer | ballast::interrupt_reason::config_change));
  check(!m.function.is_interrupting() && m.driver.take_isr() == 0);
};
BOTH("PCI-8: one interrupt may mean both, and taking the ISR ends it", isr)

constexpr auto queue_reset = [](auto check) {
  machine m;
  check(m.negotiate(modern.with(feature::ring_reset)));
  check(m.driver.set_up_queue(0, layout(16)).has_value());
  check(ballast::set_driver_ok(m.driver).has_value());
  check(m.driver.reset_queue(0).has_value() && m.device.queue_resets == 1);
  check(m.driver.set_up_queue(0, layout(64)).has_value() && m.device.queues[0] == layout(64));
  check(m.driver.reset_queue(64).error() == error::invalid_queue_index);
  machine without;
  check(without.negotiate() && without.driver.reset_queue(0).error() == error::not_negotiated);
  check(m.device.wrongs == 0 && m.due.failure == error::none);
};
BOTH("VR-3: with RING_RESET a queue is taken back and given again", queue_reset)

constexpr auto generation = [](auto check) {
  machine m;
  const std::uint32_t before = m.driver.config_generation();
  for (std::uint32_t i = 1; i <= 256; ++i) (void)m.device.config.set32(0, i);
  check(m.driver.config_generation() != before);
  std::array<std::byte, 12> all{};
  check(ballast::read_config_consistent(m.driver, 0, all).has_value());
  check(all[0] == std::byte{0} && all[1] == std::byte{1});
};
BOTH("PCI-1: the driver sees that the configuration changed 256 times", generation)

constexpr auto config = [](auto check) {
  machine m;
  check(m.negotiate());
  check(m.driver.write_config(4, std::array{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}})
            .has_value());
  check(m.device.config.get32(4) == 0x0403'0201 && m.due.failure == error::none);
  std::array<std::byte, 16> to{};
  for (std::uint32_t offset = 0; offset < 15; ++offset)
    for (std::size_t size = 0; size <= to.size(); ++size) {
      const bool is_inside = offset + size <= 12;
      const error expected = is_inside ? error::none : error::config_out_of_range;
      check(m.driver.read_config(offset, std::span(to).first(size)).error() == expected);
      if (!is_inside)
        check(m.driver.write_config(offset, std::span(to).first(size)).error() == expected);
    }
  for (const std::uint32_t offset : {~0u, ~0u - 3, 0x8000'0000u})
    check(m.driver.read_config(offset, std::span(to).first(4)).error() ==
          error::config_out_of_range);
  check(m.due.failure == error::none);
};
BOTH("RT-11: configuration that passes the structure is not accessed", config)

// Devices that a test makes up.

using fake_region = ballast_test::byte_region<64>;
struct fake {
  ballast_test::byte_registers<64> common_bytes, notify_bytes, isr_bytes, device_bytes;
  ballast::pci_structures found;

  constexpr fake() {
    found.common.length = found.notify.length = 64;
    found.notify_off_multiplier = 4;
    common_bytes.put(common::queue_size, 2, 128);
    common_bytes.put(common::queue_notify_off, 2, 5);
  }
  fake(const fake&) = delete;
  constexpr pci_driver<fake_region> driver() {
    return {pci_regions<fake_region>{
                {&common_bytes}, {&notify_bytes}, {&isr_bytes}, {&device_bytes}, found},
            5, 10};
  }
};

constexpr auto places = [](auto check) {
  fake f;
  auto driver = f.driver();
  check(driver.set_up_queue(3, layout(7)).has_value());
  const std::uint32_t order[] = {
      common::queue_select,   common::queue_size,       common::queue_desc,
      common::queue_desc + 4, common::queue_driver,     common::queue_driver + 4,
      common::queue_device,   common::queue_device + 4, common::queue_enable};
  check(f.common_bytes.store_count == 9);
  for (std::size_t i = 0; i < 9; ++i) check(f.common_bytes.stores[i].offset == order[i]);
  check(f.common_bytes.stores[3].value == 1 && f.common_bytes.stores[8].value == 1);
  driver.notify(3);
  using access = ballast_test::byte_registers<64>::access;
  check(f.notify_bytes.stores[0] == access{20, 2, 3});
  driver.notify(3, 0x8005'0003); // NOTIFICATION_DATA
  check(f.notify_bytes.stores[1] == access{20, 4, 0x8005'0003});
  check(f.common_bytes.outside == 0);

  fake far;
  far.found.notify_off_multiplier = 0xffff'fffe;
  check(far.driver().set_up_queue(0, layout(7)).error() == error::register_access);
  far.found.notify_off_multiplier = 12; // 60: two bytes are left
  far.found.notify.length = 61;
  check(far.driver().set_up_queue(0, layout(7)).error() == error::register_access);
  far.found.notify.length = 62;
  check(far.driver().set_up_queue(0, layout(7)).has_value());
  fake wide; // with NOTIFICATION_DATA it takes four
  wide.found.notify.length = 23;
  auto with_data = wide.driver();
  with_data.set_driver_features({feature::version_1, feature::notification_data});
  check(with_data.set_up_queue(0, layout(7)).error() == error::register_access);
};
BOTH("RT-11: a queue is notified where the device says, inside of the structure", places)

constexpr auto stubborn = [](auto check) {
  fake f;
  f.common_bytes.is_fixed[common::queue_enable] = true;
  auto driver = f.driver();
  check(driver.set_up_queue(0, layout(8)).error() == error::wrong_state); // stays 0
  f.common_bytes.put(common::queue_enable, 2, 1);
  check(driver.set_up_queue(0, layout(8)).error() == error::wrong_state); // is 1 already
  driver.set_driver_features({feature::version_1, feature::ring_reset});
  check(driver.reset_queue(0).error() == error::reset_incomplete); // queue_reset stays 1
  f.common_bytes.put(common::queue_enable, 2, 0);
  check(driver.reset_queue(0).error() == error::reset_incomplete);
  f.common_bytes.put(common::queue_enable, 2, 1);
  f.common_bytes.put(common::queue_reset, 2, 0);
  f.common_bytes.is_fixed[common::queue_reset] = true;
  check(driver.reset_queue(0).error() == error::reset_incomplete); // still enabled
  f.common_bytes.put(common::queue_enable, 2, 0);
  check(driver.reset_queue(0).has_value());
  f.common_bytes.put(common::device_feature, 4, 0xffff'ffff); // in both words
  check(!driver.device_features().test(feature::admin_vq) &&
        !driver.device_features().test(feature::suspend) && driver.device_features().count() == 60);
};
BOTH("a device that does not do what it is told is waited for so long and no longer", stubborn)

} // namespace
