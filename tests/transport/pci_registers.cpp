// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_registers.hpp>

#include <support/check.hpp>
#include <support/witness_device.hpp>

#include <ballast/memory/array_memory.hpp>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace {

using ballast::actions;
using ballast::error;
using ballast::feature_set;
using ballast::queue_layout;
using ballast::refused;
namespace at = ballast::pci::common_cfg;
namespace feature = ballast::feature;
namespace legacy = ballast::pci::legacy;
namespace pci = ballast::pci;

using ram_type = ballast::array_memory<4096>;

/// Queues of a size that is no power of two.
struct device_type : ballast_test::witness_device<ram_type> {
  std::uint32_t entries = 100;
  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) const noexcept {
    return queue == 1 ? 0 : entries;
  }
};
using registers_type = ballast::pci_registers<device_type, ram_type>;
static_assert(std::is_trivially_copyable_v<ballast::pci_registers_state>);

struct machine {
  device_type device;
  ram_type ram;
  registers_type registers{device, ram, 4};

  machine() = default;
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  static constexpr unsigned width(std::uint64_t offset) {
    const unsigned natural = at::width_at(offset);
    return natural == 0 || natural == 8 ? 4 : natural; // halves
  }
  constexpr std::uint64_t get(std::uint64_t offset) {
    return registers.read_common(offset, width(offset));
  }
  constexpr actions put(std::uint64_t offset, std::uint64_t value) {
    return registers.write_common(offset, width(offset), value);
  }
  constexpr void negotiate(const feature_set& accepted) {
    (void)put(at::device_status, 1);
    (void)put(at::device_status, 3);
    for (std::uint32_t word = 0; word < 2; ++word) {
      (void)put(at::driver_feature_select, word);
      (void)put(at::driver_feature, accepted.word32(word));
    }
    (void)put(at::device_status, 11);
  }
  constexpr actions set_up(std::uint32_t queue, std::uint32_t size = 64) {
    actions due = put(at::queue_select, queue);
    due |= put(at::queue_size, size);
    due |= put(at::queue_desc, 0x2000'0100);
    due |= put(at::queue_desc + 4, 1);
    due |= registers.write_common(at::queue_driver, 8, 0x2'2000'0600);
    due |= put(at::queue_device, 0x2000'0800);
    due |= put(at::queue_device + 4, 3);
    due |= put(at::queue_enable, 1);
    return due;
  }
  constexpr actions start(const feature_set& accepted = {feature::version_1}) {
    negotiate(accepted);
    (void)set_up(0);
    return put(at::device_status, 15);
  }
};

constexpr auto whole_way = [](auto check) {
  machine m;
  check(m.get(at::num_queues) == 3 && m.get(at::device_status) == 0);
  m.negotiate({1, feature::version_1});
  check(m.get(at::device_status) == 11);
  check(m.set_up(2).failure == error::none && m.get(at::queue_enable) == 1);
  check(m.get(at::queue_notify_off) == 2 && m.get(at::queue_size) == 64);
  check(m.registers.read_common(at::queue_desc, 8) == 0x1'2000'0100);
  check(m.get(at::queue_driver) == 0x2000'0600 && m.get(at::queue_driver + 4) == 2);
  check(m.registers.read_common(at::queue_device, 8) == 0x3'2000'0800);
  m.device.activate_answer.notify_queues = 4;
  check(m.put(at::device_status, 15).notify_queues == 4 && m.device.activations == 1);
  const queue_layout expected{64, 0x1'2000'0100, 0x2'2000'0600, 0x3'2000'0800};
  check(m.device.queues[2] == expected && m.device.queues[0].size == 0);
  check(m.device.features == feature_set{1, feature::version_1} && m.device.wrongs == 0);
};
BOTH("a driver brings the device up by its registers", whole_way)

constexpr auto generation = [](auto check) {
  machine m;
  std::uint64_t before = m.get(at::config_generation);
  check(m.get(at::config_generation) == before); // nothing changed
  for (const unsigned changes : {1u, 2u, 255u, 256u, 257u, 512u}) {
    for (unsigned i = 0; i < changes; ++i)
      (void)m.device.config.set32(0, m.device.config.get32(0) + 1);
    (void)m.registers.read_config(0, 4);
    check(m.get(at::config_generation) != before);
    before = m.get(at::config_generation);
  }
};
BOTH("PCI-1: the generation changes with the configuration, after 256 changes too", generation)

constexpr auto reset = [](auto check) {
  machine m;
  (void)m.start();
  (void)m.put(at::config_msix_vector, 1);
  (void)m.put(at::queue_msix_vector, 2);
  check(m.get(at::config_msix_vector) == 1 && m.get(at::queue_msix_vector) == 2);
  check(m.put(at::device_status, 0) == actions{});
  check(m.device.resets == 1 && m.get(at::device_status) == 0);
  check(m.get(at::queue_enable) == 0 && m.get(at::queue_size) == 64);
  check(m.get(at::queue_desc) == 0 && m.get(at::queue_device + 4) == 0);
  check(m.get(at::config_msix_vector) == pci::no_vector);
  check(m.get(at::queue_msix_vector) == pci::no_vector);
  check(m.get(at::driver_feature_select) == 0 && m.get(at::driver_feature) == 0);
  check(m.start().failure == error::none && m.device.activations == 2 && m.device.wrongs == 0);
};
BOTH("PCI-2, PCI-3: 0 to the status resets, and no queue is enabled then", reset)

constexpr auto queue_reset = [](auto check) {
  machine m;
  (void)m.start({feature::version_1, feature::ring_reset});
  (void)m.put(at::queue_msix_vector, 3);
  check(m.get(at::queue_reset) == 0);
  check(m.put(at::queue_reset, 0) == refused(error::wrong_state) && m.device.queue_resets == 0);
  check(m.put(at::queue_reset, 1) == actions{} && m.device.queue_resets == 1);
  check(m.get(at::queue_reset) == 0 && m.get(at::queue_enable) == 0);
  check(m.get(at::queue_msix_vector) == pci::no_vector && m.get(at::queue_desc) == 0);
  check(m.put(at::queue_reset, 1) == refused(error::invalid_queue_index)); // not enabled
  check(m.set_up(0, 32).failure == error::none && m.get(at::queue_enable) == 1);
  check(m.device.queues[0].size == 32);
  machine without;
  (void)without.start();
  check(without.put(at::queue_reset, 1) == refused(error::not_negotiated));
  check(without.get(at::queue_enable) == 1 && m.device.wrongs + without.device.wrongs == 0);
};
BOTH("PCI-3: with RING_RESET a queue is reset and enabled anew", queue_reset)

constexpr auto sizes = [](auto check) {
  machine m;
  check(m.get(at::queue_size) == 64); // of 100: a power of two
  (void)m.put(at::queue_select, 1);
  check(m.get(at::queue_size) == 0);
  (void)m.put(at::queue_select, 0);
  for (const std::uint32_t size : {0u, 3u, 100u, 128u, 65535u})
    check(m.put(at::queue_size, size) == refused(error::invalid_queue_size));
  check(m.get(at::queue_size) == 64 && m.put(at::queue_size, 16) == actions{});
  check(m.get(at::queue_size) == 16);

  machine packed;
  packed.negotiate({feature::version_1, feature::ring_packed});
  check(packed.get(at::queue_size) == 100);
  for (const std::uint32_t size : {0u, 101u, 65535u})
    check(packed.put(at::queue_size, size) == refused(error::invalid_queue_size));
  check(packed.put(at::queue_size, 7) == actions{} && packed.get(at::queue_size) == 7);
  // What was written under RING_PACKED, and RING_PACKED is taken back.
  machine fickle;
  (void)fickle.put(at::device_status, 3);
  (void)fickle.put(at::driver_feature_select, 1);
  (void)fickle.put(at::driver_feature, 5);
  (void)fickle.put(at::queue_size, 7);
  (void)fickle.put(at::driver_feature, 1);
  check(fickle.get(at::queue_size) == 4);
  machine large;
  large.device.entries = 1u << 20;
  check(large.get(at::queue_size) == 32768);
};
BOTH("PCI-4, PCI-5: queue_size is 0, a power of two, or with RING_PACKED any number", sizes)

constexpr auto enabling = [](auto check) {
  machine m;
  check(m.put(at::queue_enable, 1) == refused(error::wrong_state)); // before FEATURES_OK
  m.negotiate({feature::version_1});
  for (const std::uint32_t value : {0u, 2u, 0xffffu})
    check(m.put(at::queue_enable, value) == refused(error::wrong_state));
  check(m.get(at::queue_enable) == 0);
  check(m.put(at::queue_enable, 1) == actions{}); // its size is what queue_size showed
  check(m.put(at::queue_enable, 0) == refused(error::wrong_state) && m.get(at::queue_enable) == 1);
  check(m.put(at::device_status, 15) == actions{} && m.device.queues[0].size == 64);
  check(m.set_up(2) == refused(error::wrong_state)); // the device is live
  (void)m.put(at::queue_select, 1);
  check(m.put(at::queue_enable, 1).failure != error::none && m.device.wrongs == 0);
};
BOTH("PCI-5: queue_enable takes 1, at its time, and never 0", enabling)

constexpr auto feature_words = [](auto check) {
  machine m;
  check(m.get(at::device_feature) == (1u << 29 | 2));
  (void)m.put(at::device_feature_select, 1);
  check(m.get(at::device_feature) == (1u << 0 | 1u << 2 | 1u << 6 | 1u << 8));
  for (const std::uint32_t word : {2u, 7u, 8u, 0x0800'0000u, 0x8000'0000u, ~0u}) {
    (void)m.put(at::device_feature_select, word);
    (void)m.put(at::driver_feature_select, word);
    check(m.get(at::device_feature_select) == word && m.get(at::device_feature) == 0);
    check(m.get(at::driver_feature) == 0);
    if (word >= 8) {
      (void)m.put(at::driver_feature, ~0u);
      check(m.get(at::driver_feature) == 0);
    }
  }
};
BOTH("PCI-6: feature words beyond the set read 0, whatever is written", feature_words)

constexpr auto frozen = [](auto check) {
  machine m;
  (void)m.start();
  for (const std::uint64_t offset : {24u, 32u, 36u, 40u, 44u, 48u, 52u}) {
    const std::uint64_t before = m.get(offset);
    check(m.put(offset, 16) == refused(error::wrong_state) && m.get(offset) == before);
  }
  check(m.registers.write_common(at::queue_desc, 8, 16) == refused(error::wrong_state));
  check(m.put(at::queue_enable, 1) == refused(error::wrong_state));
  check(m.put(at::driver_feature, 0) == refused(error::wrong_state));
  const queue_layout expected{64, 0x1'2000'0100, 0x2'2000'0600, 0x3'2000'0800};
  check(m.device.queues[0] == expected && m.device.wrongs == 0);
};
BOTH("RT-12: a queue's size and addresses are frozen once it is enabled", frozen)

constexpr auto no_queue = [](auto check) {
  machine m;
  (void)m.start();
  const auto before = m.registers.state();
  for (const std::uint32_t queue : {3u, 63u, 64u, 65u, 0x7fffu, 0xffffu}) {
    (void)m.put(at::queue_select, queue);
    check(m.get(at::queue_select) == queue && m.get(at::queue_size) == 0);
    check(m.get(at::queue_enable) == 0 && m.get(at::queue_notify_off) == 0);
    check(m.get(at::queue_msix_vector) == pci::no_vector && m.get(at::queue_desc) == 0);
    for (const std::uint64_t offset : {24u, 26u, 28u, 32u, 36u, 40u, 48u, 52u})
      check(m.put(offset, 1) == refused(error::invalid_queue_index));
    check(m.put(at::queue_reset, 1).failure != error::none);
    check(m.registers.notify(4ull * queue, 2, queue) == refused(error::register_access));
    check(m.registers.notify(0, 2, queue) == refused(error::invalid_queue_index));
  }
  (void)m.put(at::queue_select, 0);
  check(m.registers.state() == before && m.device.wrongs == 0);
};
BOTH("RT-3: a queue that does not exist has no registers and no notifications", no_queue)

constexpr auto notifications = [](auto check) {
  machine m;
  check(m.registers.notify(0, 2, 0) == actions{}); // not live: looked at later
  (void)m.start();
  check(m.registers.notify(0, 2, 0).more_work == 1);
  check(m.registers.notify(8, 4, 2).more_work == 4);
  check(m.registers.notify(8, 2, 0) == refused(error::invalid_queue_index)); // not its place
  check(m.registers.notify(0, 4, 0x8001'0000) == refused(error::invalid_queue_index));
  for (std::uint64_t offset = 0; offset < 16; ++offset)
    for (const unsigned width : {1u, 2u, 4u, 8u}) {
      const bool is_there = offset % 4 == 0 && offset < 12 && (width == 2 || width == 4);
      check(m.registers.notify(offset, width, offset / 4).failure ==
            (is_there ? error::none : error::register_access));
    }
  check(m.registers.notify(~0ull - 3, 4, 0) == refused(error::register_access));
  machine with_data;
  (void)with_data.start({feature::version_1, feature::notification_data});
  check(with_data.registers.notify(8, 4, 0xffff'0002).more_work == 4);
  check(with_data.registers.notify(0, 4, 0x1234'0003) == refused(error::invalid_queue_index));
};
BOTH("NT-1: each queue is notified at a place of its own, with NOTIFICATION_DATA too",
     notifications)

constexpr auto read_only = [](auto check) {
  machine m;
  for (const std::uint64_t offset : {4u, 18u, 21u, 30u, 56u, 60u, 62u}) {
    const std::uint64_t before = m.get(offset);
    check(m.put(offset, ~0u) == refused(error::register_access) && m.get(offset) == before);
  }
  check(m.get(at::queue_notify_data) == 0 && m.get(at::admin_queue_num) == 0);
};
BOTH("registers that are the device's are not written", read_only)

constexpr auto vectors = [](auto check) {
  machine m;
  for (const std::uint32_t vector : {0u, 3u}) {
    check(m.put(at::config_msix_vector, vector) == actions{});
    check(m.put(at::queue_msix_vector, vector) == actions{});
    check(m.get(at::config_msix_vector) == vector && m.get(at::queue_msix_vector) == vector);
  }
  for (const std::uint32_t vector : {4u, 63u, 64u, 0x7ffu, 0xfffeu, 0xffffu}) {
    (void)m.put(at::config_msix_vector, 1);
    (void)m.put(at::queue_msix_vector, 1);
    (void)m.put(at::config_msix_vector, vector);
    (void)m.put(at::queue_msix_vector, vector);
    check(m.get(at::config_msix_vector) == 0xffff && m.get(at::queue_msix_vector) == 0xffff);
  }
  (void)m.put(at::queue_select, 2);
  (void)m.put(at::queue_msix_vector, 2);
  (void)m.put(at::queue_select, 0);
  check(m.get(at::queue_msix_vector) == 0xffff); // each queue has its own
};
BOTH("a vector that the table does not have reads back as NO_VECTOR", vectors)

constexpr auto goes_on = [](auto check) {
  machine a, b;
  (void)a.start();
  (void)a.put(at::config_msix_vector, 1);
  (void)a.get(at::config_generation);
  (void)b.get(at::config_generation);
  b.registers.restore(a.registers.state());
  check(b.registers.state() == a.registers.state() && b.get(at::queue_enable) == 1);
  check(b.get(at::config_generation) != a.get(at::config_generation)); // maybe another number
  auto strange = a.registers.state();
  strange.config_msix_vector = 4;
  strange.device.queue_select = 0xffff'0001;
  for (std::uint16_t& vector : strange.queue_msix_vectors) vector = 0xfffe;
  b.registers.restore(strange);
  check(b.get(at::config_msix_vector) == 0xffff && b.get(at::queue_msix_vector) == 0xffff);
  check(b.get(at::queue_select) == 1);
};
BOTH("registers go on from what was saved, and the generation moves", goes_on)

} // namespace
