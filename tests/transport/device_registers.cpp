// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/device_registers.hpp>

#include <support/check.hpp>
#include <support/witness_device.hpp>

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/device_status.hpp>

#include <cstdint>

namespace {

using ballast::actions;
using ballast::error;
using ballast::feature_set;
using ballast::queue_area;
using ballast::queue_layout;
using ballast::refused;
namespace feature = ballast::feature;
namespace interrupt_reason = ballast::interrupt_reason;

using memory = ballast::array_memory<4096>;
using device_type = ballast_test::witness_device<memory>;
using registers_type = ballast::device_registers<device_type, memory>;

constexpr std::uint64_t lower = 0xffff'ffff;

struct machine {
  device_type device;
  memory ram;
  registers_type registers{device, ram, {feature::sr_iov}};

  machine() = default;
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  /// To where queues can be set up.
  constexpr void negotiate(const feature_set& accepted = {feature::version_1}) {
    (void)registers.write_status(1);
    (void)registers.write_status(3);
    for (std::uint32_t word = 0; word < 2; ++word) {
      registers.select_driver_features(word);
      (void)registers.write_driver_features(accepted.word32(word));
    }
    (void)registers.write_status(11);
  }
  constexpr actions set_up(std::uint32_t queue, std::uint32_t size = 64) {
    registers.select_queue(queue);
    actions due = registers.stage_size(size);
    due |= registers.stage_area(queue_area::descriptor, 0x100, ~std::uint64_t{0});
    due |= registers.stage_area(queue_area::driver, 0x600, ~std::uint64_t{0});
    due |= registers.stage_area(queue_area::device, 0x800, ~std::uint64_t{0});
    due |= registers.enable_queue();
    return due;
  }
  constexpr actions start(const feature_set& accepted = {feature::version_1}) {
    negotiate(accepted);
    (void)set_up(0);
    return registers.write_status(15);
  }
};

constexpr auto feature_words = [](auto check) {
  machine m;
  m.device.offered = {0, 31, feature::version_1, feature::sr_iov, 255};
  auto& r = m.registers;
  const auto offered = [&r](std::uint32_t word) {
    r.select_device_features(word);
    return r.device_features();
  };
  check(offered(0) == 0x80000001 && offered(1) == 1); // not what the transport can't do
  check(offered(7) == 0x80000000 && r.device_feature_select() == 7);
  for (const std::uint32_t word : {8u, 9u, 0x80000000u, ~0u}) check(offered(word) == 0);

  (void)r.write_status(3);
  r.select_driver_features(1);
  check(r.write_driver_features(1) == actions{} && r.driver_features() == 1);
  r.select_driver_features(0);
  check(r.driver_features() == 0 && r.driver_feature_select() == 0);
  check(r.accepted() == feature_set{feature::version_1});
  for (const std::uint32_t word : {8u, ~0u}) {
    r.select_driver_features(word);
    check(r.write_driver_features(~0u) == actions{} && r.driver_features() == 0);
  }
  check(r.accepted() == feature_set{feature::version_1});
  check(r.write_status(11) == actions{} && r.status() == 11);
  r.select_driver_features(0);
  check(r.write_driver_features(1) == refused(error::wrong_state));
  check(r.accepted() == feature_set{feature::version_1});
};
BOTH("features are read and written 32 at a time, and not beyond the set (PCI-6)", feature_words)

constexpr auto refused_features = [](auto check) {
  machine m;
  m.negotiate({feature::version_1, feature::in_order});
  check(m.registers.status() == 3); // it was not offered
  check(m.device.wrongs == 0);
};
BOTH("FEATURES_OK stays clear where a feature was not offered", refused_features)

constexpr auto staging = [](auto check) {
  machine m;
  auto& r = m.registers;
  r.select_queue(2);
  check(r.queue_select() == 2 && r.queue_size_max() == 128);
  check(r.staged() == queue_layout{} && !r.is_queue_enabled());
  check(r.stage_size(32) == actions{});
  check(r.stage_area(queue_area::descriptor, 0x1'2345'6780, lower) == actions{});
  check(r.area(queue_area::descriptor) == 0x2345'6780);
  check(r.stage_area(queue_area::descriptor, 0xabull << 32, ~lower) == actions{});
  check(r.area(queue_area::descriptor) == 0xab'2345'6780);
  check(r.stage_area(queue_area::driver, 7, lower) == actions{} && r.area(queue_area::driver) == 7);
  check(r.stage_area(queue_area::device, 9, lower) == actions{} && r.area(queue_area::device) == 9);
  check(r.staged() == queue_layout{32, 0xab'2345'6780, 7, 9});
  r.select_queue(0);
  check(r.staged() == queue_layout{}); // each has its own
};
BOTH("what is written to a queue's registers waits there, for each queue", staging)

constexpr auto queue_index = [](auto check) {
  machine m;
  m.negotiate();
  auto& r = m.registers;
  for (const std::uint32_t queue : {3u, 64u, 65u, 0xffffu, 0x10000u, 0x80000000u, ~0u}) {
    r.select_queue(queue);
    check(r.queue_size_max() == 0 && !r.is_queue_enabled());
    check(r.staged() == queue_layout{} && r.area(queue_area::device) == 0);
    const actions none = refused(error::invalid_queue_index);
    check(r.stage_size(64) == none && r.stage_area(queue_area::driver, 1, lower) == none);
    check(r.enable_queue() == none && r.enable_queue({64, 0, 0x400, 0x500}) == none);
    check(r.reset_queue() == none && r.disable_queue() == none);
    check(r.notify(queue) == none);
    check(r.process(static_cast<std::uint16_t>(queue < 0x10000 ? queue : 9), 1) == none);
  }
  r.select_queue(1);
  check(r.queue_size_max() == 0 && m.set_up(1).failure == error::queue_unavailable);
  check(m.set_up(0).failure == error::none && r.write_status(15).failure == error::none);
  check(r.notify(3) == refused(error::invalid_queue_index));
  check(r.process(2, 1) == refused(error::invalid_queue_index)); // not enabled
  check(m.device.wrongs == 0 && m.device.processed == 0);
};
BOTH("a queue that does not exist is refused in every register (RT-3)", queue_index)

constexpr auto frozen = [](auto check) {
  machine m;
  m.negotiate();
  auto& r = m.registers;
  check(m.set_up(0) == actions{} && r.is_queue_enabled());
  const queue_layout before = r.queues()[0];
  for (int live = 0; live < 2; ++live) {
    check(r.stage_size(8) == refused(error::wrong_state));
    for (const auto area : {queue_area::descriptor, queue_area::driver, queue_area::device})
      check(r.stage_area(area, 0x40, lower) == refused(error::wrong_state));
    check(r.enable_queue() == refused(error::wrong_state));
    check(r.enable_queue({8, 0, 0x80, 0x100}) == refused(error::wrong_state));
    check(r.queues()[0] == before && r.staged() == before);
    (void)r.write_status(15);
  }
  check(m.device.activations == 1 && m.device.queues[0] == before && m.device.wrongs == 0);
  check(m.set_up(2).failure == error::wrong_state); // live: no further one
};
BOTH("a queue's geometry is frozen while it is enabled (RT-12)", frozen)

constexpr auto taken_back = [](auto check) {
  machine m;
  check(m.start() == actions{});
  auto& r = m.registers;
  check(r.reset_queue() == refused(error::not_negotiated) && r.is_queue_enabled());
  check(r.disable_queue() == actions{} && !r.is_queue_enabled());
  check(m.device.queues[0].size == 0 && m.device.queue_resets == 1);
  check(r.process(0, 1) == refused(error::invalid_queue_index) && m.device.processed == 0);
  check(r.staged().size == 64); // what was staged stays
  check(r.stage_size(32) == actions{} && r.enable_queue() == actions{});
  check(m.device.queues[0] == queue_layout{32, 0x100, 0x600, 0x800});

  machine reset;
  (void)reset.start({feature::version_1, feature::ring_reset});
  auto& s = reset.registers;
  check(s.reset_queue() == actions{} && !s.is_queue_enabled() && s.staged() == queue_layout{});
  reset.device.enable_answer = refused(error::not_guest_memory);
  check(reset.set_up(0).failure == error::not_guest_memory && !s.is_queue_enabled());
  reset.device.enable_answer = {.notify_queues = 1};
  check(reset.set_up(0, 16) == actions{.notify_queues = 1});
  check(reset.device.queues[0].size == 16 && s.interrupt_status() == interrupt_reason::used_buffer);
  check(m.device.wrongs == 0 && reset.device.wrongs == 0);
};
BOTH("a queue is taken from a live device and given back, with RING_RESET and without", taken_back)

constexpr auto notifications = [](auto check) {
  machine m;
  m.negotiate();
  (void)m.set_up(0);
  check(m.registers.notify(0) == actions{}); // looked at when the driver is ready
  m.device.activate_answer = {.more_work = 1};
  check(m.registers.write_status(15) == actions{.more_work = 1});
  check(m.registers.notify(0) == actions{.more_work = 1});
  check(m.registers.notify(2) == actions{.more_work = 4});
  check(m.registers.notify(0x10000) == refused(error::invalid_queue_index));

  machine with_data;
  (void)with_data.start({feature::version_1, feature::notification_data});
  check(with_data.registers.notify(0x8005'0002) == actions{.more_work = 4});
  check(with_data.registers.notify(0x8005'0003) == refused(error::invalid_queue_index));
};
BOTH("a notification names the queue to process, in its lower half with NOTIFICATION_DATA (NT-1)",
     notifications)

constexpr auto interrupts = [](auto check) {
  machine m;
  (void)m.start();
  auto& r = m.registers;
  check(r.process(0, 9) == actions{} && r.interrupt_status() == 0);
  check(m.device.last_queue == 0 && m.device.last_budget == 9);
  m.device.process_answer = {.notify_queues = 1};
  check(r.process(0, 1).notify_queues == 1 &&
        r.interrupt_status() == interrupt_reason::used_buffer);
  check(r.carry_out({.config_changed = true}).config_changed);
  check(r.interrupt_status() == 3);
  r.acknowledge(0xffff'fff0);
  check(r.interrupt_status() == 3);
  r.acknowledge(interrupt_reason::used_buffer);
  check(r.interrupt_status() == interrupt_reason::config_change);
  check(r.take_interrupt_status() == interrupt_reason::config_change && r.interrupt_status() == 0);
  check(r.carry_out({.needs_reset = true, .failure = error::chain_loops}).config_changed);
  check(r.interrupt_status() == interrupt_reason::config_change && r.status() == 79); // ST-7, PCI-7
  check(r.write_status(0) == actions{} && r.interrupt_status() == 0 && r.status() == 0);
};
BOTH("each reason to interrupt shows until it is acknowledged, taken or reset (PCI-7)", interrupts)

constexpr auto late = [](auto check) {
  machine m;
  (void)m.start();
  (void)m.registers.write_status(0);
  (void)m.registers.carry_out({.notify_queues = 1, .config_changed = true, .needs_reset = true});
  check(m.registers.interrupt_status() == 0 && m.registers.status() == 0);
};
BOTH("what was due before a reset reaches no driver after it", late)

constexpr auto config_access = [](auto check) {
  machine m;
  (void)m.device.config.set32(0, 0x03020100);
  (void)m.device.config.set32(8, 0x0b0a0908);
  auto& r = m.registers;
  check(r.read_config(0, 1) == 0 && r.read_config(1, 2) == 0x0201 &&
        r.read_config(8, 4) == 0x0b0a0908);
  check(r.write_config(4, 8, 0xffff'ffff'0706'0504) == actions{}); // what is not the driver's stays
  check(r.read_config(0, 8) == 0x0706'0504'0302'0100 &&
        r.read_config(3, 8) == 0x0a09'0807'0605'0403);
  check(r.write_config(6, 1, 0xee) == actions{} && r.read_config(4, 4) == 0x07ee'0504);
  const std::uint64_t offsets[] = {0,
                                   4,
                                   5,
                                   8,
                                   9,
                                   10,
                                   11,
                                   12,
                                   13,
                                   0xffff'fff8,
                                   0xffff'ffff,
                                   0x1'0000'0000,
                                   0x1'0000'0004,
                                   ~std::uint64_t{7},
                                   ~std::uint64_t{0}};
  for (const std::uint64_t offset : offsets)
    for (const unsigned width : {1u, 2u, 4u, 8u}) {
      const bool is_inside = offset <= 12 && width <= 12 - offset;
      check((r.read_config(offset, width) == registers_type::all_ones(width)) == !is_inside);
      check(r.write_config(offset, width, 0).failure ==
            (is_inside ? error::none : error::config_out_of_range));
      (void)r.write_config(4, 4, 0x0706'0504);
    }
  for (const unsigned width : {0u, 3u, 5u, 6u, 7u, 9u, 16u, 256u, ~0u}) {
    check(!registers_type::is_width(width));
    check(r.read_config(0, width) == registers_type::all_ones(width));
    check(r.write_config(4, width, 0) == refused(error::config_out_of_range));
  }
  check(r.read_config(4, 4) == 0x0706'0504 && m.device.wrongs == 0);
};
BOTH("a configuration access that passes the end is refused at every width (RT-11)", config_access)

constexpr auto config_changes = [](auto check) {
  machine m;
  (void)m.start();
  auto& r = m.registers;
  const std::uint32_t before = r.config_generation();
  (void)m.device.config.set32(0, 5);
  check(r.config_generation() != before);
  m.device.write_answer = {.notify_queues = 4};
  check(r.write_config(4, 4, 1) == actions{.notify_queues = 4});
  check(r.interrupt_status() == interrupt_reason::used_buffer);
  m.device.write_answer = refused(error::not_negotiated);
  check(r.write_config(4, 4, 2) == refused(error::not_negotiated));
};
BOTH("the generation is the device's, and so is the answer to a write of the configuration",
     config_changes)

constexpr auto status = [](auto check) {
  machine m;
  auto& r = m.registers;
  check(r.write_status(4) == refused(error::status_out_of_order) && r.status() == 0);
  m.negotiate();
  (void)m.set_up(0);
  m.device.activate_answer = refused(error::not_guest_memory);
  check(r.write_status(15) == refused(error::not_guest_memory) && r.status() == 11 && !r.is_live());
  m.device.activate_answer = {.notify_queues = 1, .more_work = 1};
  check(r.write_status(15) == actions{.notify_queues = 1, .more_work = 1} && r.is_live());
  check(r.interrupt_status() == interrupt_reason::used_buffer && r.device_id() == 77);
  r.select_queue(2);
  check(r.write_status(0) == actions{} && m.device.resets == 1 && !r.is_live());
  check(r.state() == ballast::device_registers_state{}); // PCI-2, PCI-3
};
BOTH("a reset clears every register; an activation says what is due (PCI-2, PCI-3, MM-3)", status)

constexpr auto goes_on = [](auto check) {
  machine m;
  (void)m.start({feature::version_1, feature::ring_reset});
  auto& r = m.registers;
  (void)r.carry_out({.config_changed = true});
  r.select_device_features(1);
  r.select_driver_features(1);
  r.select_queue(2);
  const auto saved = r.state();
  check(saved.transport.status == 15 && saved.queue_select == 2 && saved.interrupt_status == 2);

  // Another process: the same device, other registers.
  registers_type next(m.device, m.ram, {feature::sr_iov});
  check(!(next.state() == saved));
  next.restore(saved);
  check(next.state() == saved && next.is_live() && next.status() == 15);
  check(next.device_features() == 0x145 && next.driver_features() == 0x101);
  check(next.queues()[0] == m.device.queues[0] && next.interrupt_status() == 2);
  check(next.process(0, 3) == actions{} && m.device.processed == 1 && m.device.activations == 1);
  next.select_queue(0);
  check(next.stage_size(8) == refused(error::wrong_state));
  check(next.reset_queue() == actions{} && m.device.queue_resets == 1);
  // A queue that was reset when the state was saved can be given back.
  registers_type last(m.device, m.ram, {feature::sr_iov});
  last.restore(next.state());
  check(last.enable_queue({32, 0, 0x400, 0x500}) == actions{} && m.device.queues[0].size == 32);
  check(m.device.wrongs == 0 && m.device.resets == 0);
};
BOTH("registers go on from what was saved, without touching the device", goes_on)

} // namespace
