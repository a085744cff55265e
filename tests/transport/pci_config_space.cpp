// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_config_space.hpp>

#include <support/check.hpp>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace {

using ballast::bar_access;
using ballast::error;
using ballast::pci_config_space;
namespace header = ballast::pci::header;

static_assert(std::is_trivially_copyable_v<ballast::pci_config_space_state>);
static_assert(sizeof(ballast::pci_config_space_state) == 256);

constexpr pci_config_space make() {
  pci_config_space space({.vendor_id = 0x1af4,
                          .device_id = 0x1002,
                          .subsystem_vendor_id = 0x1af5,
                          .subsystem_id = 5,
                          .class_code = 0x05'12'ff,
                          .revision_id = 7,
                          .interrupt_pin = 1});
  space.set_bar(0, 64, true);
  space.set_bar(4, 0x4000, false);
  return space;
}

constexpr auto identity = [](auto check) {
  pci_config_space space = make();
  check(space.read(0x00, 4) == 0x1002'1af4 && space.read(0x00, 2) == 0x1af4);
  check(space.read(0x02, 2) == 0x1002 && space.read(0x03, 1) == 0x10);
  check(space.read(0x08, 4) == 0x0512'ff07 && space.read(0x0a, 2) == 0x0512);
  check(space.read(0x2c, 4) == 0x0005'1af5 && space.read(0x3c, 4) == 0x0000'0100);
  check(space.read(0x0e, 1) == 0); // a single function, type 0
  check(space.read(0x04, 4) == 0x0010'0000);
  for (const std::uint32_t at : {0x00u, 0x08u, 0x0cu, 0x28u, 0x2cu, 0x30u, 0x34u, 0x38u}) {
    const std::uint32_t before = space.read(at, 4);
    check(space.write(at, 4, ~before).has_value() && space.read(at, 4) == before);
  }
};
BOTH("identity is read and not written", identity)

constexpr auto command = [](auto check) {
  pci_config_space space = make();
  check(space.write(0x04, 2, 0xffff).has_value() && space.read(0x04, 2) == 0x0407);
  check(space.write(0x04, 4, 0xffff'0002).has_value() && space.read(0x04, 4) == 0x0010'0002);
  check(space.has_command(header::command_memory) && !space.has_command(header::command_io));
  check(space.write(0x3c, 2, 0xff0b).has_value() && space.read(0x3c, 2) == 0x010b);

  pci_config_space without({.vendor_id = 1});
  check(without.write(0x04, 2, 0xffff).has_value() && without.read(0x04, 2) == 0x0404);
};
BOTH("of the command register the bits can be written that mean something", command)

constexpr auto sizing = [](auto check) {
  pci_config_space space = make();
  check(space.bar_size(0) == 64 && space.is_bar_io(0) && space.bar_size(4) == 0x4000);
  check(!space.is_bar_io(4));
  check(space.write(0x10, 4, 0xffff'ffff).has_value() && space.read(0x10, 4) == 0xffff'ffc1);
  check(space.write(0x20, 4, 0xffff'ffff).has_value() && space.read(0x20, 4) == 0xffff'c000);
  for (const unsigned bar : {1u, 2u, 3u, 5u}) {
    check(space.write(0x10 + 4 * bar, 4, 0xffff'ffff).has_value());
    check(space.read(0x10 + 4 * bar, 4) == 0 && space.bar_size(bar) == 0);
  }
  check(space.write(0x10, 4, 0xc04f).has_value() && space.read(0x10, 4) == 0xc041);
  check(space.write(0x20, 4, 0xfebf'7fff).has_value() && space.read(0x20, 4) == 0xfebf'4000);
  check(space.bar_address(0) == 0xc040 && space.bar_address(4) == 0xfebf'4000);
  for (const unsigned bar : {6u, 7u, 60u, ~0u})
    check(space.bar_size(bar) == 0 && space.bar_address(bar) == 0 && !space.is_bar_io(bar));
};
BOTH("a BAR says its size and kind when all ones are written", sizing)

constexpr auto decoding = [](auto check) {
  pci_config_space space = make();
  (void)space.write(0x10, 4, 0xc040);
  (void)space.write(0x20, 4, 0xfebf'4000);
  check(space.find_bar(0xc040, false).error() == error::register_access); // not enabled
  (void)space.write(0x04, 2, 1);
  check((*space.find_bar(0xc040, false) == bar_access{0, 0}));
  check((*space.find_bar(0xc07f, false) == bar_access{0, 63}));
  check(!space.find_bar(0xc03f, false) && !space.find_bar(0xc080, false));
  check(!space.find_bar(0xfebf'4000, true) && !space.find_bar(0xc040, true));
  (void)space.write(0x04, 2, 2);
  check((*space.find_bar(0xfebf'7fff, true) == bar_access{4, 0x3fff}));
  check(!space.find_bar(0xfebf'8000, true) && !space.find_bar(0xfebf'3fff, true));
  check(!space.find_bar(0xfebf'4000, false) && !space.find_bar(0x1'febf'4000, true));
  (void)space.write(0x20, 4, 0);
  check(!space.find_bar(0, true) && !space.find_bar(0x10, true)); // at 0: nowhere
  (void)space.write(0x20, 4, 0xffff'ffff); // sized, at the end of the address space
  check((*space.find_bar(0xffff'ffff, true) == bar_access{4, 0x3fff}));
  check(!space.find_bar(0x1'0000'0000, true));
};
BOTH("an address belongs to the BAR that claims it, if its space is enabled", decoding)

constexpr auto widths = [](auto check) {
  pci_config_space space = make();
  const auto before = space.state();
  for (unsigned width = 0; width <= 9; ++width)
    for (std::uint32_t at = 240; at < 264; ++at) {
      const bool is_there = (width == 1 || width == 2 || width == 4) && at + width <= 256;
      check(space.read(at, width) == (is_there ? 0u : 0xffff'ffffu));
      check(space.write(at, width, 0xffff'ffff).error() ==
            (is_there ? error::none : error::register_access));
    }
  for (const std::uint32_t at : {0xffff'ffffu, 0xffff'fffcu, 0x8000'0000u, 0x1000u})
    check(space.read(at, 4) == 0xffff'ffff && !space.write(at, 2, 0) && !space.write(at, 1, 0));
  check(space.state() == before);
};
BOTH("any other width and any overflow of the 256 bytes reads ones and writes nothing (RT-11)",
     widths)

constexpr auto capabilities = [](auto check) {
  pci_config_space space = make();
  check(space.read(0x34, 1) == 0);
  check(space.add_capability(9, 17) == 0x40 && space.read(0x34, 1) == 0x40);
  check(space.add_capability(0x11, 12) == 0x54); // words are kept whole
  check(space.read(0x40, 2) == 0x5409 && space.read(0x54, 2) == 0x0011);
  check(space.add_capability(9, 1) == 0 && space.add_capability(9, 0xa1) == 0);
  check(space.add_capability(9, ~0u) == 0);
  check(space.add_capability(9, 0xa0) == 0x60 && space.add_capability(9, 2) == 0); // full
  check(space.read(0x55, 1) == 0x60 && space.read(0x61, 1) == 0);
};
BOTH("capabilities are a list, which ends where the space does", capabilities)

constexpr auto masks = [](auto check) {
  pci_config_space space = make();
  const std::uint32_t at = space.add_capability(0x11, 12);
  space.set(at + 2, 2, 0x0005);
  space.allow_writes(at + 2, 2, 0xc000);
  check(space.write(at, 4, 0xffff'ffff).has_value() && space.read(at, 4) == 0xc005'0011);
  check(space.write(at + 3, 1, 0x40).has_value() && space.read(at + 2, 2) == 0x4005);
  check(space.write(at + 2, 2, 0).has_value() && space.read(at + 2, 2) == 0x0005);
};
BOTH("a write changes the bits that are the driver's, at any width", masks)

constexpr auto goes_on = [](auto check) {
  pci_config_space space = make(), other = make();
  (void)space.write(0x04, 2, 7);
  (void)space.write(0x20, 4, 0xfebf'4000);
  other.restore(space.state());
  check(other.state() == space.state() && other.bar_address(4) == 0xfebf'4000);
  other.reset();
  check(other.state() == make().state());

  ballast::pci_config_space_state strange{};
  for (std::uint8_t& byte : strange.bytes) byte = 0xff;
  other.restore(strange);
  check(other.read(0, 4) == 0x1002'1af4 && other.read(0x10, 4) == 0xffff'ffc1);
  check(other.read(0x34, 4) == 0 && other.read(0xfc, 4) == 0);
};
BOTH("a configuration space goes on from the driver's bits of what was saved", goes_on)

} // namespace
