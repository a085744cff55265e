// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/pci_capabilities.hpp>
#include <ballast/transport/pci_driver.hpp>
#include <ballast/virtio/actions.hpp>

#include <cstdint>

namespace ballast_test {

/// Part of a BAR of a function in the same process, as a `register_region`; what the accesses ask
/// for is collected for the device's side. Where there is no such register, the bus says so.
template <class Function> struct pci_bar_region {
  Function* function = nullptr;
  ballast::actions* due = nullptr;
  unsigned bar = 0;
  std::uint64_t base = 0;

  template <ballast::wire_integer T> constexpr T load(std::uint64_t offset) noexcept {
    namespace common = ballast::pci::common_cfg;
    const std::uint64_t at = base + offset;
    if (bar == Function::modern_bar && at < common::size && !common::is_access(at, sizeof(T)))
      *due |= ballast::refused(ballast::error::register_access);
    return static_cast<T>(function->read(bar, at, sizeof(T)));
  }
  template <ballast::wire_integer T> constexpr void store(std::uint64_t offset, T value) noexcept {
    *due |= function->write(bar, base + offset, sizeof(T), value);
  }
};

/// Its configuration space.
template <class Function> struct pci_config_region {
  Function* function = nullptr;

  template <ballast::wire_integer T> constexpr T load(std::uint64_t offset) noexcept {
    return static_cast<T>(
        function->read_config_space(static_cast<std::uint32_t>(offset), sizeof(T)));
  }
  template <ballast::wire_integer T> constexpr void store(std::uint64_t offset, T value) noexcept {
    (void)function->write_config_space(static_cast<std::uint32_t>(offset), sizeof(T), value);
  }
};

/// What a driver finds by the function's capabilities.
template <class Function>
constexpr auto find_regions(Function& function, ballast::actions& due) noexcept {
  using region = pci_bar_region<Function>;
  pci_config_region<Function> space{&function};
  const auto found = ballast::find_pci_structures(space);
  const auto at = [&](const ballast::pci_structure& s) {
    return region{&function, &due, s.bar, s.offset};
  };
  return ballast::pci_regions<region>{at(found->common), at(found->notify), at(found->isr),
                                      at(found->device), *found};
}

/// Enables MSI-X with `vectors` messages that tell them apart, none masked.
template <class Function>
constexpr void enable_msix(Function& function, std::uint32_t vectors) noexcept {
  pci_config_region<Function> space{&function};
  const std::uint32_t place = ballast::find_pci_structures(space)->msix;
  space.store(place + ballast::pci::msix_cap::message_control, ballast::pci::msix_cap::enable);
  for (std::uint32_t i = 0; i < vectors; ++i) {
    (void)function.write(Function::msix_bar, 16 * i, 8, 0xfee0'0000 + 16 * i);
    (void)function.write(Function::msix_bar, 16 * i + 8, 8, 0x40 + i);
  }
}

} // namespace ballast_test
