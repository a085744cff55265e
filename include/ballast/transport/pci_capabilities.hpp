// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/transport/pci.hpp>
#include <ballast/transport/register_region.hpp>

#include <cstdint>

namespace ballast {

/// Where a structure of a virtio device lies.
struct pci_structure {
  unsigned bar = 0;
  std::uint32_t offset = 0; ///< bytes from the start of the BAR
  std::uint32_t length = 0; ///< bytes; 0: there is no such structure

  friend constexpr bool operator==(const pci_structure&, const pci_structure&) noexcept = default;
};

/// What a driver finds in the configuration space of a device that is not only a legacy one.
struct pci_structures {
  pci_structure common, notify, isr, device;
  std::uint32_t notify_off_multiplier = 0;
  std::uint32_t pci_cfg = 0; ///< place of the configuration access capability; 0: none
  std::uint32_t msix = 0;    ///< place of the MSI-X capability; 0: none
  unsigned msix_vectors = 0;
};

/// The type of the virtio device behind a configuration space (a `register_region`), transitional
/// ones among them. Errors: `wrong_device_id`: it is no virtio device.
/// Spec: "PCI Device Discovery".
template <register_region R>
[[nodiscard]] constexpr result<std::uint32_t> find_pci_device_type(R& space) noexcept {
  if (space.template load<std::uint16_t>(pci::header::vendor_id) != pci::virtio_vendor_id)
    return error::wrong_device_id;
  const std::uint16_t id = space.template load<std::uint16_t>(pci::header::device_id);
  if (id < pci::transitional_id_min || id > pci::id_max) return error::wrong_device_id;
  if (id >= pci::modern_id_min) return static_cast<std::uint32_t>(id - pci::modern_id_min);
  return std::uint32_t{space.template load<std::uint16_t>(pci::header::subsystem_id)};
}

/// Whether the device has a legacy interface, in BAR 0, which must be in I/O space.
/// Spec: "Legacy Interfaces: A Note on PCI Device Discovery".
template <register_region R> [[nodiscard]] constexpr bool has_pci_legacy(R& space) noexcept {
  const std::uint16_t id = space.template load<std::uint16_t>(pci::header::device_id);
  return space.template load<std::uint16_t>(pci::header::vendor_id) == pci::virtio_vendor_id &&
         id >= pci::transitional_id_min && id < pci::modern_id_min &&
         space.template load<std::uint8_t>(pci::header::revision_id) ==
             pci::transitional_revision &&
         (space.template load<std::uint32_t>(pci::header::base_address) & pci::bar_is_io) != 0;
}

/// Walks the capabilities of a configuration space (a `register_region` of 256 bytes): the first
/// structure of each type. Reserved types and BARs are passed over, as are structures that do not
/// end below 2^32 or are not aligned (common 4, notifications 2). A list that never ends ends.
/// Errors: `capability_missing`: without common configuration, notifications or ISR, or with one
/// that is too short: a legacy device, or none that a driver can use.
/// Spec: "Virtio Structure PCI Capabilities".
template <register_region R>
[[nodiscard]] constexpr result<pci_structures> find_pci_structures(R& space) noexcept {
  namespace c = pci::cap;
  constexpr std::uint32_t space_size = 256;
  pci_structures found;
  if ((space.template load<std::uint16_t>(pci::header::status) &
       pci::header::status_capabilities) == 0)
    return error::capability_missing;

  std::uint32_t at = space.template load<std::uint8_t>(pci::header::capabilities_pointer) & ~3u;
  for (unsigned left = (space_size - pci::header::end) / 4; left > 0; --left) {
    if (at < pci::header::end) break;
    const std::uint8_t id = space.template load<std::uint8_t>(at);
    const std::uint8_t length = space.template load<std::uint8_t>(at + c::cap_len);
    if (id == pci::capability_msix && found.msix == 0 && at + pci::msix_cap::size <= space_size) {
      found.msix = at;
      found.msix_vectors =
          (space.template load<std::uint16_t>(at + pci::msix_cap::message_control) &
           pci::msix_cap::table_size_mask) +
          1u;
    }
    if (id == pci::capability_vendor && length >= c::size && at + length <= space_size) {
      const std::uint8_t type = space.template load<std::uint8_t>(at + c::cfg_type);
      const pci_structure here{space.template load<std::uint8_t>(at + c::bar),
                               space.template load<std::uint32_t>(at + c::offset),
                               space.template load<std::uint32_t>(at + c::length)};
      const bool is_mapped =
          here.bar < pci::bar_count && here.length != 0 && here.offset <= UINT32_MAX - here.length;
      const bool has_more = length >= c::size + 4;
      const auto is_first = [&](const pci_structure& known) {
        return is_mapped && known.length == 0;
      };
      switch (static_cast<pci::cfg_type>(type)) {
      case pci::cfg_type::common:
        if (here.offset % 4 == 0 && is_first(found.common)) found.common = here;
        break;
      case pci::cfg_type::notify:
        if (has_more && here.offset % 2 == 0 && is_first(found.notify)) {
          found.notify = here;
          found.notify_off_multiplier =
              space.template load<std::uint32_t>(at + c::notify_off_multiplier);
        }
        break;
      case pci::cfg_type::isr:
        if (is_first(found.isr)) found.isr = here;
        break;
      case pci::cfg_type::device:
        if (is_first(found.device)) found.device = here;
        break;
      case pci::cfg_type::pci_cfg:
        if (has_more && found.pci_cfg == 0) found.pci_cfg = at;
        break;
      }
    }
    at = space.template load<std::uint8_t>(at + c::cap_next) & ~3u;
  }
  if (found.common.length < pci::common_cfg::size_min || found.notify.length < 2 ||
      found.isr.length == 0)
    return error::capability_missing;
  return found;
}

} // namespace ballast
