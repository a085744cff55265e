// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/mmio_driver.hpp>

#include <support/check.hpp>
#include <support/mmio_rules.hpp>
#include <support/witness_device.hpp>

#include <ballast/memory/array_memory.hpp>
#include <ballast/transport/mmio_device.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/negotiation.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using ballast::error;
using ballast::feature_set;
using ballast::mmio_version;
using ballast::queue_layout;
namespace at = ballast::mmio_register;
namespace feature = ballast::feature;

using memory = ballast::array_memory<16>;
using device_type = ballast_test::witness_device<memory>;
using bus_type = ballast::mmio_device<device_type, memory>;
using rules_type = ballast_test::mmio_rules<bus_type>;
using driver_type = ballast::mmio_driver<rules_type::region>;
static_assert(ballast::driver_transport<driver_type>);

struct machine {
  device_type device;
  memory ram;
  bus_type bus;
  rules_type rules{bus};
  driver_type driver{rules.access()};

  constexpr explicit machine(mmio_version version = mmio_version::modern)
      : bus(device, ram, version) {
    rules.config_bytes = device_type::config_bytes;
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  constexpr bool negotiate(const feature_set& supported) {
    ballast::driver_requirements wants;
    wants.device_id = 77;
    wants.supported = supported;
    return ballast::negotiate(driver, wants).has_value();
  }
  constexpr bool is_right() const { return rules.wrongs == 0 && device.wrongs == 0; }
};

/// Registers that read what a test put there, and remember the stores: 4 bytes each, or a byte.
struct fake_registers {
  struct access {
    std::uint64_t offset = 0;
    std::uint32_t width = 0;
    std::uint64_t value = 0;
    friend constexpr bool operator==(const access&, const access&) = default;
  };
  std::array<std::uint8_t, 0x200> bytes{};
  std::array<access, 64> stores{}, loads{};
  std::size_t store_count = 0, load_count = 0;
  std::uint32_t changing = 0; ///< a byte that is another for so many reads

  constexpr void set(std::uint32_t offset, std::uint32_t value) {
    for (unsigned i = 0; i < 4; ++i) bytes[offset + i] = static_cast<std::uint8_t>(value >> 8 * i);
  }
};
struct fake_region {
  fake_registers* of;
  template <ballast::wire_integer T> constexpr T load(std::uint64_t offset) noexcept {
    std::uint64_t value = 0;
    if (offset >= 0x100 && of->changing != 0) {
      --of->changing;
      ++of->bytes[0x100];
    }
    for (std::size_t i = sizeof(T); i-- > 0;)
      value = value << 8 | of->bytes[static_cast<std::size_t>(offset) + i];
    if (of->load_count < 64) of->loads[of->load_count++] = {offset, sizeof(T), 0};
    return static_cast<T>(value);
  }
  template <ballast::wire_integer T> constexpr void store(std::uint64_t offset, T value) noexcept {
    if (of->store_count < 64) of->stores[of->store_count++] = {offset, sizeof(T), value};
  }
};
using fake_driver = ballast::mmio_driver<fake_region>;

constexpr auto identity = [](auto check) {
  fake_registers r;
  r.set(at::device_id, 5);
  for (const std::uint32_t magic : {0u, 0x74726975u, 0x76697274u, ~0u})
    for (const std::uint32_t version : {1u, 2u}) {
      r.set(at::magic_value, magic);
      r.set(at::version, version);
      fake_driver none({&r});
      check(none.check().error() == error::wrong_device_id && none.device_id() == 0);
    }
  r.set(at::magic_value, 0x74726976);
  for (const std::uint32_t version : {0u, 3u, ~0u}) {
    r.set(at::version, version);
    fake_driver unknown({&r});
    check(unknown.check().error() == error::wrong_device_id && !unknown.is_legacy());
  }
  r.set(at::version, 2);
  check(fake_driver({&r}).check().has_value() && !fake_driver({&r}).is_legacy());
  r.set(at::version, 1);
  r.set(at::vendor_id, 0x1234);
  check(fake_driver({&r}).is_legacy() && fake_driver({&r}).vendor_id() == 0x1234);
  check(fake_driver({&r}).device_id() == 5);
  r.set(at::device_id, 0); // a place without a device
  check(fake_driver({&r}).check().error() == error::wrong_device_id);
  check(r.store_count == 0);
};
BOTH("what is no mmio device, or of no known version, is ignored (MM-1)", identity)

constexpr auto whole_way = [](auto check) {
  machine m;
  check(m.driver.check().has_value() && !m.driver.is_legacy());
  check(m.negotiate({1, feature::event_idx}));
  check(m.bus.accepted() == feature_set{1, feature::event_idx, feature::version_1});
  check(m.driver.queue_size_max(0) == 128 && m.driver.queue_size_max(1) == 0);
  const queue_layout at{64, 0x1'2345'6780, 0x2'0000'0002, 0x3'0000'0004};
  check(m.driver.set_up_queue(2, at).has_value() && m.bus.queues()[2] == at);
  check(m.driver.set_up_queue(2, at).error() == error::wrong_state);
  check(m.driver.set_up_queue(1, at).error() == error::queue_unavailable);
  check(m.driver.set_up_queue(9, at).error() == error::queue_unavailable);
  for (const std::uint32_t size : {0u, 129u, ~0u})
    check(m.driver.set_up_queue(0, {size, 0, 0x800, 0x900}).error() == error::invalid_queue_size);
  check(m.driver.set_up_queue(0, {63, 0, 0x800, 0x900}).error() == error::wrong_state); // refused
  check(ballast::set_driver_ok(m.driver).has_value() && m.device.queues[2] == at);
  m.rules.due = {};
  m.driver.notify(2);
  check(m.rules.due.more_work == 4);
  check(m.driver.set_up_queue(0, at).error() == error::wrong_state); // live: not taken
  check(ballast::reset_device(m.driver, 1).has_value() && m.device.resets == 2);
  check(m.is_right());
};
BOTH("a driver sets a device up, its accesses all as they must be (MM-6)", whole_way)

constexpr auto interrupts = [](auto check) {
  machine m;
  check(m.negotiate({}) && ballast::set_driver_ok(m.driver).has_value());
  check(m.driver.interrupt_status() == 0);
  (void)m.bus.carry_out({.notify_queues = 1, .config_changed = true});
  check(m.driver.interrupt_status() == 3 && m.bus.is_interrupting());
  m.driver.acknowledge(ballast::interrupt_reason::used_buffer);
  check(m.driver.interrupt_status() == ballast::interrupt_reason::config_change);
  m.driver.acknowledge(~0u); // undefined bits are not written
  check(!m.bus.is_interrupting() && m.is_right());

  fake_registers r;
  r.set(at::interrupt_status, 0xffff'fffe);
  check(fake_driver({&r}).interrupt_status() == 2); // undefined bits are ignored
};
BOTH("interrupts are told apart and acknowledged, without undefined bits (MM-2, MM-6)", interrupts)

constexpr auto taken_back = [](auto check) {
  machine m;
  const queue_layout at{64, 0x1000, 0x1400, 0x1500};
  check(m.negotiate({feature::ring_reset}) && m.driver.set_up_queue(0, at).has_value());
  check(m.driver.set_up_queue(2, at).has_value());
  check(m.driver.stop_queue(2).has_value() && m.bus.queues()[2].size == 0);
  check(ballast::set_driver_ok(m.driver).has_value());
  check(m.driver.reset_queue(0).has_value() && m.device.queues[0].size == 0);
  check(m.driver.set_up_queue(0, {32, 0x2000, 0x2200, 0x2300}).has_value()); // VR-5, VR-6
  check(m.device.queues[0].size == 32);

  machine without;
  check(without.negotiate({}) && without.driver.set_up_queue(0, at).has_value());
  check(without.driver.reset_queue(0).error() == error::not_negotiated);
  check(without.driver.stop_queue(0).has_value() && m.is_right() && without.is_right());
};
BOTH("a queue is taken back: 0 is written and read back (MM-6, VR-3)", taken_back)

constexpr auto stuck = [](auto check) {
  fake_registers r;
  r.set(at::magic_value, 0x74726976);
  r.set(at::version, 2);
  r.set(at::queue_ready, 1);
  fake_driver driver({&r}, {.attempts = 5});
  driver.set_driver_features({feature::ring_reset});
  r.store_count = r.load_count = 0;
  check(driver.stop_queue(3).error() == error::reset_incomplete && r.load_count == 5);
  check(r.stores[0] == fake_registers::access{at::queue_select, 4, 3});
  check(r.stores[1] == fake_registers::access{at::queue_ready, 4, 0});
  // A device that offers RING_RESET and has no such register still has the queue.
  check(driver.reset_queue(0).error() == error::reset_incomplete);
  check(r.stores[3] == fake_registers::access{at::queue_reset, 4, 1});
  r.set(at::queue_ready, 0);
  r.set(at::queue_reset, 1);
  check(driver.reset_queue(0).error() == error::reset_incomplete); // under way
  r.set(at::queue_reset, 0);
  check(driver.reset_queue(0).has_value());

  fake_registers old; // and one that does not take a queue
  old.set(at::magic_value, 0x74726976);
  old.set(at::version, 1);
  old.set(at::queue_size_max, 64);
  const auto whole = ballast::split::place_legacy(0x5000, 64, 4096)->layout;
  check(fake_driver({&old}).set_up_queue(0, whole).error() == error::wrong_state);
};
BOTH("a device that does not give a queue back is waited for so long and no longer", stuck)

constexpr auto config_widths = [](auto check) {
  using access = fake_registers::access;
  fake_registers r;
  r.set(at::magic_value, 0x74726976);
  r.set(at::version, 2);
  for (std::uint8_t i = 0; i < 0x80; ++i) r.bytes[0x100 + i] = i;
  fake_driver driver({&r});
  std::array<std::byte, 16> raw{};
  const auto read = [&](std::uint32_t offset, std::size_t size,
                        std::initializer_list<access> want) {
    r.load_count = 0;
    bool is_right = driver.read_config(offset, std::span(raw).first(size)).has_value();
    for (std::size_t i = 0; i < size; ++i)
      is_right = is_right && std::to_integer<std::uint32_t>(raw[i]) == offset + i;
    std::size_t n = 0;
    for (const access& a : want) is_right = is_right && r.loads[n++] == a;
    check(is_right && r.load_count == n);
  };
  read(0, 1, {{0x100, 1, 0}});
  read(7, 1, {{0x107, 1, 0}});
  read(2, 2, {{0x102, 2, 0}});
  read(12, 4, {{0x10c, 4, 0}});
  read(8, 8, {{0x108, 4, 0}, {0x10c, 4, 0}}); // a 64-bit field: two halves
  read(5, 6, {{0x105, 1, 0}, {0x106, 2, 0}, {0x108, 2, 0}, {0x10a, 1, 0}});
  read(3, 0, {});

  r.store_count = 0;
  const std::array<std::byte, 5> value{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                                       std::byte{5}};
  check(driver.write_config(4, std::span(value).first(4)).has_value());
  check(driver.write_config(2, value).has_value());
  const access stores[] = {
      {0x104, 4, 0x04030201}, {0x102, 2, 0x0201}, {0x104, 2, 0x0403}, {0x106, 1, 5}};
  check(r.store_count == 4);
  for (std::size_t i = 0; i < 4; ++i) check(r.stores[i] == stores[i]);
};
BOTH("configuration fields are accessed at their width, 64-bit ones in halves (MM-6)",
     config_widths)

constexpr auto config_bounds = [](auto check) {
  fake_registers r;
  r.set(at::magic_value, 0x74726976);
  r.set(at::version, 2);
  std::array<std::byte, 16> raw{};
  const std::uint32_t offsets[] = {0u,           0xf0u,        0xf1u,       0xfcu,
                                   0xffu,        0x100u,       0x101u,      0x7fff'ffffu,
                                   0xffff'fefcu, 0xffff'ff00u, 0xffff'ffffu};
  for (const std::uint32_t offset : offsets)
    for (const std::size_t size : {1u, 2u, 4u, 8u, 16u}) {
      fake_driver driver({&r});
      const error expected =
          std::uint64_t{offset} + size <= 0x100 ? error::none : error::config_out_of_range;
      check(driver.read_config(offset, std::span(raw).first(size)).error() == expected);
      check(driver.write_config(offset, std::span(raw).first(size)).error() == expected);
    }
  fake_driver tiny({&r}, {.region_bytes = 0x80});
  check(tiny.read_config(0, std::span(raw).first(1)).error() == error::config_out_of_range);
  check(tiny.read_config(0, {}).has_value());
  fake_driver four({&r}, {.region_bytes = 0x104});
  check(four.read_config(0, std::span(raw).first(4)).has_value());
  check(four.write_config(1, std::span(raw).first(4)).error() == error::config_out_of_range);
};
BOTH("what passes the region is not accessed (RT-11)", config_bounds)

constexpr auto generation = [](auto check) {
  machine m;
  (void)m.device.config.set32(0, 0x01020304);
  std::array<std::byte, 4> raw{};
  check(m.driver.config_generation() == m.device.config.generation());
  check(ballast::read_config_consistent(m.driver, 0, raw).has_value() && raw[0] == std::byte{4});
  (void)m.device.config.set32(0, 0x01020305);
  check(m.driver.config_generation() == m.device.config.generation() && m.is_right());

  fake_registers r; // legacy: read until it reads the same twice (CF-5)
  r.set(at::magic_value, 0x74726976);
  r.set(at::version, 1);
  fake_driver old({&r});
  std::array<std::byte, 8> two{};
  check(old.config_generation() == 0);
  r.changing = 5;
  check(old.read_config(0, two).has_value() && r.changing == 0 && two[0] == std::byte{5});
  r.changing = 1000;
  check(old.read_config(0, two).error() == error::config_unstable);
  r.changing = 1000;
  check(old.read_config(0, std::span(two).first(4)).has_value() && r.changing == 999); // one access
};
BOTH("fields that belong together are read by generation, of a legacy device twice (MM-4, CF-5)",
     generation)

constexpr auto legacy = [](auto check) {
  machine m(mmio_version::legacy);
  check(m.driver.is_legacy() && m.negotiate({1, feature::ring_packed}));
  check(m.bus.accepted() == feature_set{1}); // no VERSION_1: none of the upper ones
  const auto whole = ballast::split::place_legacy(0x5000, 64, 4096)->layout;
  check(m.driver.set_up_queue(0, whole).has_value() && m.bus.queues()[0] == whole);
  check(m.bus.read(at::queue_pfn, 4) == 5 && m.bus.state().guest_page_size == 4096);
  check(m.driver.set_up_queue(0, whole).error() == error::wrong_state);
  // One after the other as well, where some alignment gives that.
  const auto close = ballast::split::place(0x8030, 64).layout;
  check(m.driver.set_up_queue(2, close).has_value() && m.bus.queues()[2] == close);
  check(m.driver.stop_queue(2).has_value() && m.bus.queues()[2].size == 0);
  const auto refusal = [&m](const queue_layout& at) {
    return m.driver.set_up_queue(2, at).error();
  };
  check(refusal({64, 0x8000, 0x8400, 0x8600}) == error::none);
  check(m.driver.stop_queue(2).has_value());
  check(refusal({64, 0x8000, 0x8410, 0x9000}) == error::misaligned);
  check(refusal({64, 0x8000, 0x8400, 0x8488}) == error::none); // directly behind
  check(m.driver.stop_queue(2).has_value());
  check(refusal({64, 0x8000, 0x8400, 0x8500 + 8}) == error::misaligned);
  check(refusal({64, 0x8008, 0x8408, 0x9000}) == error::misaligned);
  // Two entries: the used ring is 4 bytes farther than where QEMU computes it to be.
  check(refusal(ballast::split::place(0x8000, 2).layout) == error::misaligned);
  check(refusal({63, 0x8000, 0x8400, 0x9000}) == error::invalid_queue_size);
  check(refusal({0, 0x8000, 0x8400, 0x9000}) == error::invalid_queue_size);
  check(refusal(ballast::split::place_legacy(0, 64, 4096)->layout) == error::page_out_of_range);
  const std::uint64_t far = std::uint64_t{1} << 44;
  check(refusal(ballast::split::place_legacy(far, 64, 4096)->layout) == error::page_out_of_range);
  check(refusal(ballast::split::place_legacy(far - 4096, 64, 4096)->layout) == error::none);
  check(m.driver.reset_queue(0).error() == error::not_negotiated);
  check(ballast::set_driver_ok(m.driver).has_value() && m.device.queues[0] == whole);
  check(m.is_right());
};
BOTH("a legacy device gets a page, a size and an alignment that give the layout", legacy)

} // namespace
