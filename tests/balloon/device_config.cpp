// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device_config.hpp>

#include "support/check.hpp"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>

namespace {

using namespace ballast;
using balloon::device_config;
using balloon::device_events;

constexpr balloon::device_options offering(const feature_set& offered) {
  balloon::device_options options;
  options.offered = offered;
  return options;
}
constexpr feature_set all{balloon::feature::free_page_hint, balloon::feature::page_poison};

constexpr error put(device_config& c, std::uint32_t offset, std::uint32_t value) {
  return c.write(offset, std::bit_cast<std::array<std::byte, 4>>(le32(value))).error();
}
constexpr std::uint32_t get(const device_config& c, std::uint32_t offset) {
  std::array<std::byte, 4> raw{};
  return c.read(offset, raw) ? std::bit_cast<le32>(raw) : le32(UINT32_MAX);
}

constexpr auto directions = [](auto check) {
  device_config c(offering(all));
  check(c.set_target(7) && !c.set_target(7));
  c.show_command_id(9);
  for (const std::uint32_t offset : {0u, 4u, 8u, 12u}) check(put(c, offset, 5) == error::none);
  check(c.target() == 7 && c.actual() == 5 && c.poison() == 5);
  check(get(c, 0) == 7 && get(c, 4) == 5 && get(c, 8) == 9 && get(c, 12) == 5);
  check(put(c, 13, 5) == error::config_out_of_range);
};
BOTH("RT-40: each field is written by the side it belongs to", directions)

constexpr auto sizes = [](auto check) {
  device_config small(offering({balloon::feature::stats_vq}));
  check(put(small, 8, 1) == error::config_out_of_range && get(small, 4) == 0);
  device_config middle(offering({balloon::feature::free_page_hint}));
  check(put(middle, 8, 1) == error::none && put(middle, 12, 1) == error::config_out_of_range);
  small.show_command_id(5); // not visible, and no harm
  check(get(small, 8) == UINT32_MAX);
};
BOTH("RT-32: no more is shown than what is offered needs", sizes)

constexpr auto poison = [](auto check) {
  device_config c(offering(all));
  check(put(c, 12, 0xaaaa'aaaa) == error::none);
  c.activate(all);
  check(put(c, 12, 1) == error::none && c.poison() == 0xaaaa'aaaa); // kept
  check(put(c, 4, 1) == error::none && c.actual() == 1);
  c.reset();
  check(c.poison() == 0 && put(c, 12, 1) == error::none && c.poison() == 1);
  c.activate({balloon::feature::free_page_hint}); // not negotiated
  check(c.poison() == 0 && put(c, 12, 1) == error::none && c.poison() == 0);
};
BOTH("BDRV-35 BDRV-36: the poison is written before DRIVER_OK or not at all", poison)

constexpr auto lives = [](auto check) {
  device_config c(offering(all));
  (void)c.set_target(7);
  check(c.actual_of_driver() == 0);
  (void)put(c, 4, 6);
  check(c.actual_of_driver() == 6);
  c.reset();
  check(c.target() == 7 && c.actual() == 6); // as it was written last
  check(c.actual_of_driver() == 0);
  (void)put(c, 4, 6);
  check(c.actual_of_driver() == 6);
  const auto generation = c.generation();
  check(c.set_target(8) && c.generation() != generation);
};
BOTH("RT-54: the target survives a reset; the size is known when the driver wrote it", lives)

constexpr auto noted = [](auto check) {
  device_config c(offering(all));
  (void)c.set_target(100);
  check(c.take_events() == device_events{});
  (void)put(c, 4, 50);
  c.note(device_config::event::hinting);
  check(c.take_events() == device_events{.actual_changed = true, .hinting_changed = true});
  check(c.take_events() == device_events{});
  (void)put(c, 4, 112); // 100 rounded up to 64 KiB
  check(c.take_events() == device_events{.actual_changed = true, .target_reached = true});
  check(c.is_target_reached());
  c.note(device_config::event::statistics);
  check(c.take_events() == device_events{.statistics_arrived = true});
};
BOTH("RT-55: events add up until they are taken, once", noted)

constexpr auto bytewise = [](auto check) {
  device_config c(offering(all));
  (void)c.set_target(0x100);
  (void)put(c, 4, 0x1ff);
  (void)c.take_events();
  const std::array<std::byte, 4> bytes{std::byte{0x00}, std::byte{0x02}, std::byte{0},
                                       std::byte{0}};
  for (std::uint32_t i = 0; i < 4; ++i) {
    check(c.actual() == 0x1ff && c.take_events() == device_events{});
    check(c.write(4 + i, std::span(bytes).subspan(i, 1)).has_value());
  }
  check(c.actual() == 0x200 && c.take_events() == device_events{.actual_changed = true});
};
BOTH("BLEG-6: the size counts when its most significant byte is written", bytewise)

TEST_CASE("no event is lost between a thread that writes and one that looks") {
  device_config c(offering(all));
  std::thread driver([&] {
    for (std::uint32_t i = 1; i <= 20000; ++i) (void)put(c, 4, i);
  });
  (void)c.set_target(20000);
  std::uint32_t seen = 0;
  bool is_reached = false;
  while (!is_reached) {
    const device_events e = c.take_events();
    if (e.actual_changed) seen = c.actual();
    is_reached = e.target_reached || (e.actual_changed && c.is_target_reached());
  }
  driver.join();
  CHECK(seen > 0);
  CHECK(c.actual() == 20000);
  (void)c.take_events();
  CHECK(c.take_events() == device_events{});
}

constexpr auto restored = [](auto check) {
  device_config c(offering(all));
  (void)put(c, 4, 5);
  check(c.has_actual());
  (void)c.take_events();
  c.restore(100, 70, false, 0xaa, 1000);
  check(c.target() == 100 && c.actual() == 70 && c.poison() == 0xaa && c.generation() == 1000);
  check(!c.has_actual() && c.actual_of_driver() == 0 && c.take_events() == device_events{});
  // From there on it counts as ever.
  (void)c.set_target(101);
  check(c.generation() == 1001);
  c.restore(1, 1, true, 0, 3);
  check(c.generation() == 3 && c.actual_of_driver() == 1);
};
BOTH("a saved configuration is there with its generation, and is no event", restored)

constexpr auto knows = [](auto check) {
  device_config c(offering(all));
  check(!c.is_poison_known());
  c.activate(all);
  check(!c.is_poison_known()); // of a device that goes on, too
  c.know_poison();
  check(c.is_poison_known());
  c.reset();
  check(!c.is_poison_known());
  c.restore(0, 0, false, 0, 0);
  check(c.is_poison_known());
};
BOTH("the poison is known from a driver's beginning, or from what another device left", knows)

} // namespace
