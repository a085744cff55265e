// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_function_space.hpp>

#include <support/check.hpp>

#include <cstdint>
#include <initializer_list>

namespace {

using ballast::pci_config_space;
using ballast::pci_function_parts;
using ballast::pci_function_space;
namespace cap = ballast::pci::cap;
namespace pci = ballast::pci;

/// The place of a capability: MSI-X, or a structure of virtio's.
constexpr std::uint32_t find(const pci_config_space& space, std::uint8_t id,
                             pci::cfg_type type = {}) {
  for (std::uint32_t at = space.get(0x34, 1); at != 0; at = space.get(at + 1, 1))
    if (space.get(at, 1) == id &&
        (id == pci::capability_msix || space.get(at + 3, 1) == static_cast<std::uint8_t>(type)))
      return at;
  return 0;
}

constexpr pci_function_parts whole{
    .config_bytes = 16, .queues = 5, .msix_vectors = 6, .is_transitional = true};

constexpr auto structures = [](auto check) {
  pci_function_space function({}, whole);
  const pci_config_space& space = function.bytes();
  struct structure {
    pci::cfg_type type;
    std::uint32_t bytes, bar, offset, length;
  };
  for (const structure& s : {structure{pci::cfg_type::common, 16, 4, 0, 64},
                             structure{pci::cfg_type::isr, 16, 4, 0x1000, 1},
                             structure{pci::cfg_type::device, 16, 4, 0x2000, 16},
                             structure{pci::cfg_type::notify, 20, 4, 0x3000, 20},
                             structure{pci::cfg_type::pci_cfg, 20, 0, 0, 0}}) {
    const std::uint32_t at = find(space, pci::capability_vendor, s.type);
    check(at >= 0x40 && at % 4 == 0 && space.get(at + cap::cap_len, 1) == s.bytes);
    check(space.get(at + cap::bar, 1) == s.bar && space.get(at + cap::offset, 4) == s.offset);
    check(space.get(at + cap::length, 4) == s.length);
    if (s.type == pci::cfg_type::notify) check(space.get(at + cap::notify_off_multiplier, 4) == 4);
  }
  check(space.bar_size(0) == 64 && space.is_bar_io(0) && space.bar_size(1) == 0x1000);
  check(space.bar_size(4) == 0x4000 && !space.is_bar_io(1) && !space.is_bar_io(4));
  for (const unsigned bar : {2u, 3u, 5u}) check(space.bar_size(bar) == 0);

  pci_function_space largest({}, {.config_bytes = 4096, .queues = 64, .msix_vectors = 64});
  const auto place = [&](pci::cfg_type type) {
    return find(largest.bytes(), pci::capability_vendor, type);
  };
  check(largest.bytes().get(place(pci::cfg_type::notify) + cap::length, 4) == 256);
  check(largest.bytes().get(place(pci::cfg_type::device) + cap::length, 4) == 4096);
  check(largest.bytes().bar_size(0) == 0);
  pci_function_space least({}, {});
  check(find(least.bytes(), pci::capability_vendor, pci::cfg_type::device) == 0);
  check(least.bytes().bar_size(1) == 0 && least.message_control() == 0);
  const std::uint32_t notify = find(least.bytes(), pci::capability_vendor, pci::cfg_type::notify);
  check(least.bytes().get(notify + cap::length, 4) == 4);
};
BOTH("each part has its capability, and each BAR its size", structures)

constexpr auto msix = [](auto check) {
  pci_function_space function({}, whole);
  pci_config_space& space = function.bytes();
  const std::uint32_t at = find(space, pci::capability_msix);
  check(space.get(at + 4, 4) == 1 && space.get(at + 8, 4) == 0x801);
  check(function.message_control() == 5);
  check(space.write(at, 4, 0xffff'ffff).has_value() && function.message_control() == 0xc005);
  check(space.write(at + 4, 4, ~0u).has_value() && space.get(at + 4, 4) == 1);
};
BOTH("of MSI-X the driver writes the two bits of message control", msix)

constexpr auto window = [](auto check) {
  pci_function_space function({}, whole);
  pci_config_space& space = function.bytes();
  const std::uint32_t at = find(space, pci::capability_vendor, pci::cfg_type::pci_cfg);
  for (std::uint32_t offset = 0; offset < 256; ++offset)
    for (const unsigned width : {1u, 2u, 4u})
      check(function.is_window(offset, width) ==
            (offset + width > at + 16 && offset < at + 20 && offset + width <= 256));
  check(!function.is_window(at + 16, 3) && !function.is_window(at + 16, 8));
  check(function.window().length == 0);
  for (const std::uint32_t length : {0u, 1u, 2u, 3u, 4u, 5u, 8u, 0x100u, 0x8000'0000u, ~0u})
    for (std::uint32_t offset = 0x1000; offset < 0x1005; ++offset) {
      check(space.write(at + cap::bar, 1, 3).has_value());
      check(space.write(at + cap::offset, 4, offset).has_value());
      check(space.write(at + cap::length, 4, length).has_value());
      const auto [bar, from, bytes] = function.window();
      const bool is_allowed = (length == 1 || length == 2 || length == 4) && offset % length == 0;
      check(bar == 3 && from == offset && bytes == (is_allowed ? length : 0));
    }
  check(space.write(at + cap::pci_cfg_data, 4, 0x1122'3344).has_value());
  check(function.window_data() == 0x1122'3344);
  function.set_window_data(2, 0xffff'5566);
  check(function.window_data() == 0x1122'5566 && space.get(at + 20, 1) == pci::capability_msix);
};
BOTH("the window into the BARs is where its fields say, if that is allowed (RT-11)", window)

} // namespace
