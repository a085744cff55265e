// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/mmio_device.hpp>

#include <support/check.hpp>
#include <support/witness_device.hpp>

#include <ballast/memory/array_memory.hpp>

#include <cstdint>

namespace {

using ballast::actions;
using ballast::error;
using ballast::feature_set;
using ballast::mmio_version;
using ballast::queue_layout;
using ballast::refused;
namespace at = ballast::mmio_register;
namespace feature = ballast::feature;

using memory = ballast::array_memory<4096>;
using device_type = ballast_test::witness_device<memory>;
using bus_type = ballast::mmio_device<device_type, memory>;

/// A device, and what its driver does to the registers.
struct machine {
  device_type device;
  memory ram;
  bus_type bus;

  constexpr explicit machine(mmio_version version = mmio_version::modern)
      : bus(device, ram, version) {}
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  constexpr std::uint32_t get(std::uint64_t offset) {
    return static_cast<std::uint32_t>(bus.read(offset, 4));
  }
  constexpr actions put(std::uint64_t offset, std::uint64_t value) {
    return bus.write(offset, 4, value);
  }
  constexpr void negotiate(const feature_set& accepted) {
    (void)put(at::status, 1);
    (void)put(at::status, 3);
    for (std::uint32_t word = 0; word < 2; ++word) {
      (void)put(at::driver_features_select, word);
      (void)put(at::driver_features, accepted.word32(word));
    }
    if (!bus.is_legacy()) (void)put(at::status, 11);
  }
  constexpr actions set_up(std::uint32_t queue, std::uint32_t size = 64) {
    actions due = put(at::queue_select, queue);
    due |= put(at::queue_size, size);
    if (bus.is_legacy()) {
      due |= put(at::guest_page_size, 256);
      due |= put(at::queue_align, 256);
      due |= put(at::queue_pfn, queue + 1);
      return due;
    }
    due |= put(at::queue_descriptor_low, 0x2000'0100);
    due |= put(at::queue_descriptor_high, 0x1);
    due |= put(at::queue_driver_low, 0x2000'0600);
    due |= put(at::queue_driver_high, 0x2);
    due |= put(at::queue_device_low, 0x2000'0800);
    due |= put(at::queue_device_high, 0x3);
    due |= put(at::queue_ready, 1);
    return due;
  }
  constexpr actions start(const feature_set& accepted = {feature::version_1}) {
    negotiate(accepted);
    (void)set_up(0);
    return put(at::status, bus.is_legacy() ? 7 : 15);
  }
};

constexpr auto identity = [](auto check) {
  machine m, old(mmio_version::legacy);
  check(m.get(0x000) == 0x74726976 && m.get(0x004) == 2 && m.get(0x008) == 77);
  check(old.get(0x000) == 0x74726976 && old.get(0x004) == 1 && old.get(0x008) == 77);
  check(m.get(0x00c) == bus_type::vendor_id && old.get(0x00c) == bus_type::vendor_id);
  for (const std::uint32_t offset :
       {0x000u, 0x004u, 0x008u, 0x00cu, 0x010u, 0x034u, 0x060u, 0x0b0u, 0x0fcu})
    check(m.put(offset, 1) == refused(error::register_access));
  check(m.device.wrongs == 0 && m.bus.state() == ballast::mmio_device_state{});
};
BOTH("magic value, version and identity can be read and not written (MM-1)", identity)

constexpr auto whole_way = [](auto check) {
  machine m;
  (void)m.put(at::device_features_select, 0);
  check(m.get(at::device_features) == (1u << 1 | 1u << 29));
  (void)m.put(at::device_features_select, 1);
  check(m.get(at::device_features) == (1u | 1u << 2 | 1u << 6 | 1u << 8));
  (void)m.put(at::device_features_select, 2);
  check(m.get(at::device_features) == 0);
  m.negotiate({1, feature::version_1});
  check(m.get(at::status) == 11 && m.bus.accepted() == feature_set{1, feature::version_1});
  (void)m.put(at::queue_select, 2);
  check(m.get(at::queue_size_max) == 128 && m.get(at::queue_ready) == 0);
  check(m.set_up(2) == actions{} && m.get(at::queue_ready) == 1);
  m.device.activate_answer = {.more_work = 4};
  check(m.put(at::status, 15) == actions{.more_work = 4} && m.bus.is_live());
  check(m.device.queues[2] == queue_layout{64, 0x1'2000'0100, 0x2'2000'0600, 0x3'2000'0800});
  check(m.bus.queues()[2] == m.device.queues[2] && m.bus.queues()[0].size == 0);
  check(m.put(at::queue_notify, 2) == actions{.more_work = 4});
  m.device.process_answer = {.notify_queues = 4};
  check(m.bus.process(2, 5).notify_queues == 4 && m.device.last_budget == 5);
  check(m.bus.is_interrupting() && m.get(at::interrupt_status) == 1);
  check(m.device.wrongs == 0);
};
BOTH("a driver brings the device up by its registers", whole_way)

constexpr auto interrupts = [](auto check) {
  machine m;
  (void)m.start();
  check(!m.bus.is_interrupting() && m.get(at::interrupt_status) == 0);
  (void)m.bus.carry_out({.config_changed = true});
  check(m.bus.is_interrupting() && m.get(at::interrupt_status) == 2);
  (void)m.bus.carry_out({.notify_queues = 1});
  check(m.get(at::interrupt_status) == 3);
  check(m.put(at::interrupt_acknowledge, 0xffff'fffd) == actions{});
  check(m.get(at::interrupt_status) == 2 && m.bus.is_interrupting()); // not all is dealt with
  (void)m.put(at::interrupt_acknowledge, 2);
  check(m.get(at::interrupt_status) == 0 && !m.bus.is_interrupting());
};
BOTH("an interrupt's reason shows from when it came until it is acknowledged (MM-2)", interrupts)

constexpr auto reset = [](auto check) {
  machine m;
  (void)m.start();
  (void)m.set_up(2);
  (void)m.bus.carry_out({.notify_queues = 1, .config_changed = true});
  check(m.put(at::status, 0) == actions{} && m.device.resets == 1);
  check(m.get(at::status) == 0 && m.get(at::interrupt_status) == 0 && !m.bus.is_interrupting());
  for (std::uint32_t queue = 0; queue < 4; ++queue) {
    (void)m.put(at::queue_select, queue);
    check(m.get(at::queue_ready) == 0 && m.get(at::queue_reset) == 0);
  }
  (void)m.put(at::queue_select, 0);
  check(m.bus.accepted().empty() && m.bus.state() == ballast::mmio_device_state{});
  check(m.put(at::queue_notify, 0) == actions{} && m.bus.process(0, 1) == actions{});
  check(m.start() == actions{} && m.device.activations == 2 && m.device.wrongs == 0);

  check(m.put(at::status, 0x100) == refused(error::register_access)); // no reset, cut to a byte
  check(m.get(at::status) == 15);
};
BOTH("a reset clears InterruptStatus and every QueueReady (MM-3)", reset)

constexpr auto generation = [](auto check) {
  machine m;
  const std::uint32_t before = m.get(at::config_generation);
  check(m.get(at::config_generation) == before);
  (void)m.device.config.set32(0, 7);
  check(m.get(at::config_generation) != before);
};
BOTH("the generation changes with the configuration (MM-4)", generation)

constexpr auto not_ready = [](auto check) {
  machine m;
  m.negotiate({feature::version_1, feature::ring_reset});
  (void)m.set_up(0);
  (void)m.set_up(2);
  (void)m.put(at::status, 15);
  check(m.put(at::queue_ready, 0) == actions{} && m.get(at::queue_ready) == 0); // queue 2
  check(m.device.queues[2].size == 0);
  (void)m.put(at::queue_notify, 2);
  check(m.bus.process(2, 1) == refused(error::invalid_queue_index) && m.device.processed == 0);
  check(m.put(at::queue_ready, 1) == actions{} && m.get(at::queue_ready) == 1);
  check(m.bus.process(2, 1) == actions{} && m.device.processed == 1);

  check(m.put(at::queue_reset, 1) == actions{}); // VR-1, over at once
  check(m.get(at::queue_reset) == 0 && m.get(at::queue_ready) == 0);
  check(m.device.queues[2].size == 0 && m.device.queues[0].size == 64);
  check(m.set_up(2, 16) == actions{} && m.device.queues[2].size == 16); // VR-5
  check(m.get(at::queue_reset) == 0 && m.device.wrongs == 0);

  for (const std::uint32_t value : {2u, 3u, 0x80000001u, ~0u})
    check(m.put(at::queue_ready, value) == refused(error::register_access));
  for (const std::uint32_t value : {0u, 2u, ~0u})
    check(m.put(at::queue_reset, value) == refused(error::register_access));
  check(m.get(at::queue_ready) == 1);

  machine without;
  (void)without.start();
  check(without.put(at::queue_reset, 1) == refused(error::not_negotiated));
  check(without.get(at::queue_ready) == 1 && without.device.queue_resets == 0);
};
BOTH("a queue that is not ready is not touched (MM-5)", not_ready)

constexpr auto queue_index = [](auto check) {
  for (const mmio_version version : {mmio_version::modern, mmio_version::legacy}) {
    machine m(version);
    (void)m.start(version == mmio_version::legacy ? feature_set{1}
                                                  : feature_set{feature::version_1});
    for (const std::uint32_t queue : {3u, 63u, 64u, 0xffffu, 0x10000u, 0x80000000u, ~0u}) {
      const actions none = refused(error::invalid_queue_index);
      check(m.put(at::queue_notify, queue) == none);
      check(m.put(at::queue_select, queue) == actions{} && m.get(at::queue_size_max) == 0);
      check(m.get(at::queue_ready) == 0 && m.get(at::queue_pfn) == 0);
      check(m.put(at::queue_size, 64) == none);
      if (version == mmio_version::legacy) {
        check(m.put(at::queue_align, 64) == none && m.put(at::queue_pfn, 0) == none);
        check(m.put(at::queue_pfn, 1) == none);
      } else {
        check(m.put(at::queue_ready, 1) == none && m.put(at::queue_ready, 0) == none);
        check(m.put(at::queue_reset, 1) == none && m.put(at::queue_device_high, 0) == none);
      }
    }
    check(m.device.processed == 0 && m.device.wrongs == 0);
  }
};
BOTH("a queue that does not exist is refused in every register and notification (RT-3)",
     queue_index)

constexpr auto frozen = [](auto check) {
  machine m;
  (void)m.start();
  const queue_layout before = m.bus.queues()[0];
  for (const std::uint32_t offset :
       {at::queue_size, at::queue_descriptor_low, at::queue_descriptor_high, at::queue_driver_low,
        at::queue_driver_high, at::queue_device_low, at::queue_device_high, at::queue_ready})
    check(m.put(offset, 1) == refused(error::wrong_state));
  check(m.bus.queues()[0] == before && m.device.queues[0] == before);

  machine old(mmio_version::legacy);
  (void)old.start({1});
  const queue_layout legacy = old.bus.queues()[0];
  check(legacy.size == 64 && old.get(at::queue_pfn) == 1);
  for (const std::uint32_t offset : {at::queue_size, at::queue_align, at::queue_pfn})
    check(old.put(offset, 16).failure == error::wrong_state);
  (void)old.put(at::guest_page_size, 1024);
  check(old.get(at::queue_pfn) == 1 && old.device.queues[0] == legacy); // what it was set up with
  check(m.device.wrongs == 0 && old.device.wrongs == 0);
};
BOTH("a queue's registers are frozen while it is ready (RT-12)", frozen)

constexpr auto widths = [](auto check) {
  machine m;
  (void)m.start();
  const auto before = m.bus.state();
  for (std::uint32_t offset = 0; offset < at::config; ++offset)
    for (const unsigned width : {0u, 1u, 2u, 3u, 4u, 5u, 8u, 16u, ~0u}) {
      if (width == 4 && offset % 4 == 0) continue;
      check(m.bus.read(offset, width) == 0);
      check(m.bus.write(offset, width, ~std::uint64_t{0}) == refused(error::register_access));
    }
  check(m.bus.state() == before && m.device.resets == 0);
  check(m.bus.read(at::config - 2, 4) == 0); // half of it would be configuration
};
BOTH("registers are accessed with 4 bytes at a multiple of 4, or nothing happens", widths)

constexpr auto holes = [](auto check) {
  for (const mmio_version version : {mmio_version::modern, mmio_version::legacy}) {
    machine m(version);
    const auto before = m.bus.state();
    for (const std::uint32_t offset : {0x018u, 0x01cu, 0x02cu, 0x048u, 0x04cu, 0x054u, 0x068u,
                                       0x074u, 0x088u, 0x098u, 0x0a8u, 0x0c4u, 0x0f8u}) {
      check(m.get(offset) == 0 && m.put(offset, 1) == refused(error::register_access));
    }
    // What can only be written reads 0.
    for (const std::uint32_t offset : {0x014u, 0x020u, 0x024u, 0x028u, 0x030u, 0x038u, 0x03cu,
                                       0x050u, 0x064u, 0x080u, 0x084u, 0x090u, 0x0a4u, 0x0acu})
      check(m.get(offset) == 0);
    // What the other version has.
    if (version == mmio_version::modern)
      for (const std::uint32_t offset : {at::guest_page_size, at::queue_align, at::queue_pfn})
        check(m.get(offset) == 0 && m.put(offset, 16) == refused(error::register_access));
    else
      for (std::uint32_t offset = at::queue_descriptor_low; offset < at::config; offset += 4)
        if (offset < at::shm_select || offset > at::shm_base_high)
          check(m.get(offset) == 0 && m.put(offset, 1) == refused(error::register_access));
    for (const std::uint32_t id : {0u, 1u, 255u}) {
      check(m.put(at::shm_select, id) == actions{});
      for (std::uint32_t offset = at::shm_length_low; offset <= at::shm_base_high; offset += 4)
        check(m.get(offset) == 0xffff'ffff && m.put(offset, 0) == refused(error::register_access));
    }
    check(m.bus.state() == before);
  }
};
BOTH("where there is no register nothing happens, and no shared memory is found", holes)

constexpr auto config_access = [](auto check) {
  machine m;
  (void)m.device.config.set32(0, 0x03020100);
  (void)m.device.config.set32(4, 0x07060504);
  (void)m.device.config.set32(8, 0x0b0a0908);
  for (unsigned offset = 0; offset < 16; ++offset)
    for (const unsigned width : {1u, 2u, 4u, 8u}) {
      std::uint64_t expected = 0;
      for (unsigned i = width; i-- > 0;) expected = expected << 8 | (offset + i);
      const bool is_inside = offset + width <= 12;
      if (!is_inside) expected = ~std::uint64_t{0} >> (64 - 8 * width);
      check(m.bus.read(at::config + offset, width) == expected);
      const actions wrote = m.bus.write(at::config + offset, width, expected);
      check(wrote.failure == (is_inside ? error::none : error::config_out_of_range));
    }
  for (const std::uint64_t offset :
       {std::uint64_t{0x1000}, std::uint64_t{0xffff'ffff}, std::uint64_t{0x1'0000'0000},
        std::uint64_t{0x1'0000'0100}, ~std::uint64_t{0} - 3, ~std::uint64_t{0}})
    for (const unsigned width : {1u, 2u, 4u, 8u}) {
      check(m.bus.read(offset, width) == ~std::uint64_t{0} >> (64 - 8 * width));
      check(m.bus.write(offset, width, 0) == refused(error::config_out_of_range));
    }
  check(m.bus.read(at::config, 3) == 0xff'ffff && m.bus.read(at::config, 0) == 0);
  check(m.bus.write(at::config, 3, 0) == refused(error::config_out_of_range));
  check(m.bus.read(at::config + 4, 8) == 0x0b0a'0908'0706'0504 && m.device.wrongs == 0);
};
BOTH("the configuration is accessed at every width and offset, and not beyond its end (RT-11)",
     config_access)

constexpr auto legacy = [](auto check) {
  machine m(mmio_version::legacy);
  check(m.get(at::device_features) == (1u << 1 | 1u << 29));
  for (const std::uint32_t word : {1u, 2u, 7u}) {
    (void)m.put(at::device_features_select, word);
    check(m.get(at::device_features) == 0); // no VERSION_1, no packed rings
  }
  (void)m.put(at::status, 3);
  (void)m.put(at::queue_select, 0);
  (void)m.put(at::queue_size, 64);
  (void)m.put(at::queue_align, 4096);
  check(m.put(at::queue_pfn, 5) == refused(error::wrong_state)); // of what size is a page?
  for (const std::uint32_t size : {0u, 3u, 4097u, ~0u})
    check(m.put(at::guest_page_size, size) == refused(error::register_access));
  check(m.put(at::guest_page_size, 4096) == actions{});
  // Linux writes it in virtio_mmio_probe(), before register_virtio_device() resets the device.
  check(m.put(at::status, 0) == actions{} && m.bus.state().guest_page_size == 4096);
  (void)m.put(at::status, 3);
  check(m.put(at::queue_pfn, 5) == refused(error::invalid_queue_size)); // the reset took the rest
  (void)m.put(at::queue_size, 64);
  check(m.put(at::queue_pfn, 5) == refused(error::misaligned) && m.get(at::queue_pfn) == 0);
  (void)m.put(at::queue_align, 4096);
  check(m.put(at::queue_pfn, 0x10'0005) == actions{} && m.get(at::queue_pfn) == 0x10'0005);
  check(m.bus.queues()[0] == ballast::split::place_legacy(0x1'0000'5000, 64, 4096)->layout);
  check(m.put(at::queue_pfn, 0) == actions{} && m.get(at::queue_pfn) == 0);
  check(m.put(at::queue_pfn, 6) == actions{} && m.put(at::status, 7) == actions{});
  check(m.device.queues[0].descriptor_area == 0x6000 && m.get(at::status) == 7);
  check(m.put(at::status, 0) == actions{} && m.get(at::queue_pfn) == 0 && m.device.wrongs == 0);
};
BOTH("a legacy queue is a page, a size and an alignment; the page size survives a reset", legacy)

constexpr auto values = [](auto check) {
  machine m;
  check(m.put(at::status, 0xabc'0000'0001) == actions{} && m.get(at::status) == 1); // 4 bytes count
  (void)m.put(at::status, 3);
  m.negotiate({feature::version_1});
  check(m.set_up(0, 129).failure == error::invalid_queue_size && m.get(at::queue_ready) == 0);
  check(m.set_up(0, 0).failure == error::invalid_queue_size);
  check(m.set_up(0, 63).failure == error::invalid_queue_size);
  check(m.set_up(1).failure == error::queue_unavailable);
  check(m.set_up(0, 128).failure == error::none && m.get(at::queue_ready) == 1);
};
BOTH("a queue that can't be as it is written does not get ready", values)

constexpr auto notification_data = [](auto check) {
  machine m;
  (void)m.start({feature::version_1, feature::notification_data});
  check(m.put(at::queue_notify, 0x1234'0000) == actions{.more_work = 1});
  check(m.put(at::queue_notify, 0x1234'0005) == refused(error::invalid_queue_index));
};
BOTH("with NOTIFICATION_DATA the queue is in the lower half (NT-1)", notification_data)

constexpr auto goes_on = [](auto check) {
  machine m(mmio_version::legacy);
  (void)m.start({1});
  (void)m.bus.carry_out({.config_changed = true});
  const auto saved = m.bus.state();
  bus_type next(m.device, m.ram, mmio_version::legacy);
  next.restore(saved);
  check(next.state() == saved && next.is_interrupting() && next.is_live());
  check(next.read(at::queue_pfn, 4) == 1 && saved.guest_page_size == 256);
  check(next.process(0, 1) == actions{} && m.device.processed == 1 && m.device.resets == 0);
};
BOTH("registers go on from what was saved", goes_on)

} // namespace
