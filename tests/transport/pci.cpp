// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci.hpp>

#include <support/check.hpp>

#include <cstdint>
#include <initializer_list>

namespace {

namespace pci = ballast::pci;

constexpr auto ids = [](auto check) {
  check(pci::modern_id(5) == 0x1045 && pci::transitional_id(5) == 0x1002);
  check(pci::transitional_id(1) == 0x1000 && pci::transitional_id(2) == 0x1001);
  check(pci::transitional_id(3) == 0x1003 && pci::transitional_id(8) == 0x1004);
  check(pci::transitional_id(4) == 0x1005 && pci::transitional_id(9) == 0x1009);
  for (const std::uint32_t type : {0u, 6u, 7u, 10u, 13u, 16u, 77u})
    check(pci::transitional_id(type) == 0);
};
BOTH("the device ids of the specification", ids)

/// A character for each byte of the structure: the width of the field that begins there.
constexpr char common_widths[] = "4...4...4...4..."
                                 "2.2.112.2.2.2.2."
                                 "8.......8......."
                                 "8.......2.2.2.2.";

constexpr auto common_fields = [](auto check) {
  for (std::uint32_t at = 0; at < pci::common_cfg::size; ++at) {
    const char shown = common_widths[at];
    const unsigned width = shown == '.' ? 0 : static_cast<unsigned>(shown - '0');
    check(pci::common_cfg::width_at(at) == width);
    for (unsigned access = 0; access <= 9; ++access) {
      const bool is_half = access == 4 && at >= 32 && at < 56 && at % 4 == 0;
      check(pci::common_cfg::is_access(at, access) == (is_half || (width != 0 && access == width)));
    }
  }
  for (const std::uint64_t beyond : {64ull, 65ull, 66ull, 0xffffull, 1ull << 32, ~0ull})
    check(pci::common_cfg::width_at(beyond) == 0 && !pci::common_cfg::is_access(beyond, 4));
};
BOTH("a field of the common configuration is accessed at its width, a long one by halves too",
     common_fields)

constexpr char legacy_widths[] = "4...4...4..."
                                 "2.2.2.112.2.";

constexpr auto legacy_fields = [](auto check) {
  check(pci::legacy::config(false) == 20 && pci::legacy::config(true) == 24);
  for (const bool is_msix : {false, true})
    for (std::uint32_t at = 0; at < 32; ++at) {
      const char shown = at < pci::legacy::config(is_msix) ? legacy_widths[at] : '.';
      check(pci::legacy::width_at(at, is_msix) ==
            (shown == '.' ? 0 : static_cast<unsigned>(shown - '0')));
    }
  check(pci::legacy::width_at(~0ull, true) == 0);
};
BOTH("the legacy header has two more fields with MSI-X, and the configuration moves", legacy_fields)

} // namespace
