// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_legacy_driver.hpp>

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
using ballast::queue_layout;
using ballast::refused;
namespace legacy = ballast::pci::legacy;
namespace pci = ballast::pci;

using ram_type = ballast::array_memory<16>;
struct device_type : ballast_test::witness_device<ram_type> {
  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return 5; }
};
using function_type = ballast::pci_device<device_type, ram_type>;
using driver_type = ballast::pci_legacy_driver<ballast_test::pci_bar_region<function_type>>;
static_assert(ballast::driver_transport<driver_type>);

constexpr queue_layout place(std::uint32_t page, std::uint32_t size = 128) {
  return ballast::split::place_legacy(std::uint64_t{page} * 4096, size, 4096)->layout;
}

/// A transitional device of this process and its legacy driver.
struct machine {
  device_type device;
  ram_type ram;
  function_type function{device, ram, {.is_transitional = true}};
  actions due;
  driver_type driver;

  constexpr explicit machine(bool has_msix = false)
      : driver({&function, &due, 0, 0}, 5,
               {.bar_bytes = static_cast<std::uint32_t>(function.bar_size(0)),
                .is_msix_enabled = has_msix}) {
    if (has_msix) ballast_test::enable_msix(function, 4);
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  constexpr bool negotiate() {
    const auto done =
        ballast::negotiate(driver, {.device_id = 5, .supported = {1, 29, 34}, .required = {}});
    return done && *done == feature_set{1, 29};
  }
  constexpr std::uint64_t get(std::uint64_t offset, unsigned width) {
    return function.read(0, offset, width);
  }
  constexpr actions put(std::uint64_t offset, unsigned width, std::uint64_t value) {
    return function.write(0, offset, width, value);
  }
};

constexpr auto whole_way = [](auto check) {
  machine m;
  check(m.driver.device_features() == feature_set{1, 29}); // of the first 32 no more
  check(m.negotiate() && m.driver.status() == 3);          // IN-6: no FEATURES_OK
  check(m.driver.queue_size_max(0) == 128 && m.driver.queue_size_max(1) == 0);
  check(m.driver.set_up_queue(0, place(0x10)).has_value());
  check(m.driver.set_up_queue(2, place(0xffff'ffff)).has_value()); // the last page there is
  check(ballast::set_driver_ok(m.driver).has_value() && m.driver.status() == 7);
  check(m.device.queues[0] == place(0x10) && m.device.queues[0].device_area == 0x1'1000);
  check(m.device.queues[2].descriptor_area == 0xfff'ffff'f000);
  check(m.device.features == feature_set{1, 29});
  m.driver.notify(2);
  check(m.due == actions{.more_work = 4} && m.device.wrongs == 0);
  (void)m.function.carry_out({.notify_queues = 1, .config_changed = true});
  check(m.function.is_interrupting() && m.driver.take_isr() == 3 && m.driver.take_isr() == 0);
  check(!m.function.is_interrupting());
  check(m.driver.reset_queue(0).error() == error::not_negotiated);
  m.driver.set_status(0);
  check(m.driver.status() == 0 && m.get(legacy::queue_address, 4) == 0);
};
BOTH("a legacy driver sets a transitional device up", whole_way)

constexpr auto refusals = [](auto check) {
  machine m;
  check(m.negotiate());
  const auto why = [&](std::uint16_t queue, const queue_layout& at) {
    return m.driver.set_up_queue(queue, at).error();
  };
  check(why(64, place(1)) == error::invalid_queue_index);
  check(why(1, place(1)) == error::queue_unavailable && why(3, place(1)) != error::none);
  for (const std::uint32_t size : {1u, 64u, 256u})
    check(why(0, place(1, size)) == error::invalid_queue_size);
  check(why(0, {}) == error::invalid_queue_size);
  queue_layout modern = place(1);
  modern.device_area -= 4;
  check(why(0, modern) == error::misaligned);
  modern = place(1);
  modern.descriptor_area += 16;
  check(why(0, modern) == error::misaligned);
  check(why(0, place(0)) == error::page_out_of_range);
  check(why(0, ballast::split::place_legacy(1ull << 44, 128, 4096)->layout) ==
        error::page_out_of_range);
  check(m.due.failure == error::none); // the device was not asked
  check(why(0, place(1)) == error::none && why(0, place(2)) == error::wrong_state);
  machine early;
  check(early.driver.set_up_queue(0, place(1)).error() == error::wrong_state); // not taken
};
BOTH("RT-12: what a legacy device can't have is refused, and what it has is frozen", refusals)

constexpr auto header = [](auto check) {
  machine m;
  check(m.get(legacy::device_features, 4) == (1u << 29 | 2));
  for (const std::uint64_t offset : {0u, 12u, 19u}) {
    const unsigned width = legacy::width_at(offset, false);
    check(m.put(offset, width, ~0u) == refused(error::register_access));
  }
  check(m.put(legacy::driver_features, 4, 2) == actions{});
  check(m.get(legacy::driver_features, 4) == 2);
  // The modern interface's selections stand by themselves.
  (void)m.function.write(4, 0, 4, 1);
  (void)m.function.write(4, 8, 4, 1);
  check(m.get(legacy::device_features, 4) == (1u << 29 | 2) && m.function.read(4, 0, 4) == 1);
  check(m.put(legacy::driver_features, 4, 1u << 29) == actions{});
  check(m.function.read(4, 8, 4) == 1 && m.function.read(4, 12, 4) == 0);
  check(m.get(legacy::driver_features, 4) == 1u << 29);
  check(m.put(legacy::queue_size, 2, 64) == refused(error::register_access)); // fixed
  check(m.get(legacy::queue_size, 2) == 128);
  for (const std::uint32_t queue : {3u, 64u, 0xffffu}) {
    (void)m.put(legacy::queue_select, 2, queue);
    check(m.get(legacy::queue_select, 2) == queue && m.get(legacy::queue_size, 2) == 0);
    check(m.get(legacy::queue_address, 4) == 0);
    check(m.put(legacy::queue_address, 4, 1) == refused(error::invalid_queue_index));
    check(m.put(legacy::queue_address, 4, 0) == refused(error::invalid_queue_index));
    check(m.put(legacy::queue_notify, 2, queue) == refused(error::invalid_queue_index));
  }
  (void)m.put(legacy::queue_select, 2, 1);
  check(m.put(legacy::queue_address, 4, 1) == refused(error::queue_unavailable));
  check(m.get(legacy::queue_notify, 2) == 0 && m.device.wrongs == 0);
};
BOTH("RT-3: the legacy registers, and queues that do not exist", header)

constexpr auto moved = [](auto check) {
  machine m;
  (void)m.device.config.set32(0, 0x1122'3344);
  check(m.get(20, 4) == 0x1122'3344 && m.get(24, 4) == 0);
  ballast_test::enable_msix(m.function, 4);
  check(m.get(24, 4) == 0x1122'3344 && m.get(20, 2) == 0xffff && m.get(22, 2) == 0xffff);
  check(m.put(20, 2, 3) == actions{} && m.get(20, 2) == 3);
  check(m.put(22, 2, 9) == actions{} && m.get(22, 2) == 0xffff); // the device has no such one

  machine with(true);
  check(with.negotiate());
  with.driver.use_config_vector(0);
  with.driver.use_queue_vector(0, 2);
  check(with.driver.set_up_queue(0, place(1)).has_value());
  with.driver.use_queue_vector(2, 4);
  check(with.driver.set_up_queue(2, place(4)).error() == error::vector_unavailable);
  check(ballast::set_driver_ok(with.driver).has_value());
  check(with.function.interrupts({.notify_queues = 5, .config_changed = true}).vectors == 5);
  std::array<std::byte, 4> field{};
  (void)with.device.config.set32(8, 0x0403'0201);
  check(with.driver.read_config(8, field).has_value());
  check(field == std::array{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}});
};
BOTH("with MSI-X two registers come in, and the configuration moves", moved)

constexpr auto before_features = [](auto check) {
  machine m;
  m.driver.set_status(1);
  m.driver.set_status(3);
  const std::array value{std::byte{9}, std::byte{8}, std::byte{7}, std::byte{6}};
  check(m.driver.write_config(4, value).has_value() && m.due.failure == error::none);
  check(m.device.config.get32(4) == 0x0607'0809);
  check(m.put(20 + 5, 1, 0x55) == actions{} && m.device.config.get32(4) == 0x0607'5509);
};
BOTH("IN-7: configuration is written before the features, a byte at a time too", before_features)

constexpr auto bounds = [](auto check) {
  for (const bool has_msix : {false, true}) {
    machine m(has_msix);
    const std::uint64_t config = legacy::config(has_msix);
    for (unsigned width = 0; width <= 9; ++width)
      for (std::uint64_t offset = 0; offset < 72; ++offset) {
        const bool is_width = width == 1 || width == 2 || width == 4 || width == 8;
        const bool is_config = is_width && offset >= config && offset + width <= config + 12;
        const bool is_there = is_config || legacy::width_at(offset, has_msix) == width;
        const std::uint64_t ones = width < 8 && is_width ? (1ull << 8 * width) - 1 : ~0ull;
        const std::uint64_t got = m.get(offset, width);
        if (width == 0 || !is_there) check(got == ones || width == 0);
        if (!is_there) check(m.put(offset, width, 0).failure != error::none);
      }
    for (const std::uint64_t offset : {~0ull, ~0ull - 3, 1ull << 32, (1ull << 32) + 20}) {
      check(m.get(offset, 4) == 0xffff'ffff && m.put(offset, 4, 0).failure != error::none);
      check(m.get(offset, 1) == 0xff && m.put(offset, 8, 0).failure != error::none);
    }
    std::array<std::byte, 64> to{};
    for (const std::uint32_t offset : {0u, 1u, 40u, 44u, 45u, ~0u, ~0u - 63})
      for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4}, to.size()}) {
        const bool is_inside = offset + std::uint64_t{size} <= 64 - config;
        check((m.driver.read_config(offset, std::span(to).first(size)).error() ==
               error::config_out_of_range) == !is_inside);
        if (!is_inside)
          check(m.driver.write_config(offset, std::span(to).first(size)).error() ==
                error::config_out_of_range);
      }
    check(m.device.wrongs == 0);
  }
};
BOTH("RT-11: every width and every overflow of the legacy BAR", bounds)

constexpr auto page_zero = [](auto check) {
  machine m;
  check(m.negotiate() && m.driver.set_up_queue(0, place(1)).has_value());
  check(m.get(legacy::queue_address, 4) == 1);
  check(m.put(legacy::queue_address, 4, 0) == actions{} && m.get(legacy::queue_address, 4) == 0);
  check(m.driver.set_up_queue(0, place(2)).has_value());
  check(ballast::set_driver_ok(m.driver).has_value() && m.device.queues[0] == place(2));
  check(m.put(legacy::queue_address, 4, 0) == actions{} && m.device.queue_resets == 1);
  check(m.put(legacy::queue_address, 4, 7) == actions{} && m.device.queues[0] == place(7));
  check(m.device.wrongs == 0);
};
BOTH("page 0 takes a queue back", page_zero)

constexpr auto stable = [](auto check) {
  ballast_test::byte_registers<64> bytes;
  using region = ballast_test::byte_region<64>;
  ballast::pci_legacy_driver<region> driver({&bytes}, 5, {.bar_bytes = 64});
  std::array<std::byte, 8> to{};
  check(driver.config_generation() == 0);
  check(driver.read_config(0, std::span(to).first(4)).has_value() && bytes.load_count == 1);
  check(driver.read_config(0, to).has_value() && bytes.load_count == 5); // two fields: twice
  bytes.added_after_load = 1;
  check(driver.read_config(0, to).error() == error::config_unstable);
  check(driver.read_config(0, std::span(to).first(4)).has_value());
  check(bytes.outside == 0 && bytes.store_count == 0);
  ballast::pci_legacy_driver<region> none({&bytes}, 5, {.bar_bytes = 8});
  check(none.read_config(0, {}).has_value());
  check(none.read_config(0, to).error() == error::config_out_of_range);
};
BOTH("CF-5: without a generation, fields that belong together are read until they agree", stable)

} // namespace
