// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

/// What the specification of virtio over PCI lays down: ids, capabilities, registers and where they
/// are. Names as there. Spec: "Virtio Over PCI Bus".
namespace ballast::pci {

/// Spec: "PCI Device Discovery".
inline constexpr std::uint16_t virtio_vendor_id = 0x1af4;
inline constexpr std::uint16_t transitional_id_min = 0x1000;
inline constexpr std::uint16_t modern_id_min = 0x1040;
inline constexpr std::uint16_t id_max = 0x107f;
inline constexpr std::uint8_t transitional_revision = 0;
inline constexpr std::uint8_t modern_revision = 1;

/// The PCI device id of a device of type `device_id` that has no legacy interface.
[[nodiscard]] constexpr std::uint16_t modern_id(std::uint32_t device_id) noexcept {
  return static_cast<std::uint16_t>(modern_id_min + device_id);
}

/// The PCI device id of a transitional device; 0 for a type that has none.
[[nodiscard]] constexpr std::uint16_t transitional_id(std::uint32_t device_id) noexcept {
  switch (device_id) {
  case 1: return 0x1000; // network card
  case 2: return 0x1001; // block device
  case 3: return 0x1003; // console
  case 4: return 0x1005; // entropy source
  case 5: return 0x1002; // traditional memory balloon
  case 8: return 0x1004; // SCSI host
  case 9: return 0x1009; // 9P transport
  default: return 0;
  }
}

/// Of config_msix_vector and queue_msix_vector: no interrupt.
inline constexpr std::uint16_t no_vector = 0xffff;

/// The header of a configuration space of type 0: offsets and bits.
namespace header {

inline constexpr std::uint32_t vendor_id = 0x00;
inline constexpr std::uint32_t device_id = 0x02;
inline constexpr std::uint32_t command = 0x04;
inline constexpr std::uint32_t status = 0x06;
inline constexpr std::uint32_t revision_id = 0x08;
inline constexpr std::uint32_t class_code = 0x09; ///< three bytes
inline constexpr std::uint32_t base_address = 0x10;
inline constexpr std::uint32_t subsystem_vendor_id = 0x2c;
inline constexpr std::uint32_t subsystem_id = 0x2e;
inline constexpr std::uint32_t capabilities_pointer = 0x34;
inline constexpr std::uint32_t interrupt_line = 0x3c;
inline constexpr std::uint32_t interrupt_pin = 0x3d;
inline constexpr std::uint32_t end = 0x40;

inline constexpr std::uint16_t command_io = 1 << 0;
inline constexpr std::uint16_t command_memory = 1 << 1;
inline constexpr std::uint16_t command_bus_master = 1 << 2;
inline constexpr std::uint16_t command_interrupt_disable = 1 << 10;
inline constexpr std::uint16_t status_interrupt = 1 << 3;
inline constexpr std::uint16_t status_capabilities = 1 << 4;

} // namespace header

inline constexpr unsigned bar_count = 6;
inline constexpr std::uint32_t bar_is_io = 1;
inline constexpr std::uint32_t bar_is_64_bit = 4;

inline constexpr std::uint8_t capability_vendor = 0x09;
inline constexpr std::uint8_t capability_msix = 0x11;

/// The types of virtio structures. Spec: "Virtio Structure PCI Capabilities" (cfg_type).
enum class cfg_type : std::uint8_t { common = 1, notify = 2, isr = 3, device = 4, pci_cfg = 5 };

/// struct virtio_pci_cap: offsets from the start of the capability.
namespace cap {

inline constexpr std::uint32_t cap_vndr = 0;
inline constexpr std::uint32_t cap_next = 1;
inline constexpr std::uint32_t cap_len = 2;
inline constexpr std::uint32_t cfg_type = 3;
inline constexpr std::uint32_t bar = 4;
inline constexpr std::uint32_t id = 5;
inline constexpr std::uint32_t offset = 8;
inline constexpr std::uint32_t length = 12;
inline constexpr std::uint32_t size = 16;
inline constexpr std::uint32_t notify_off_multiplier = 16; ///< behind a notification capability
inline constexpr std::uint32_t pci_cfg_data = 16;          ///< behind a PCI configuration access

} // namespace cap

/// The MSI-X capability: offsets from its start, and the bits of message control.
namespace msix_cap {

inline constexpr std::uint32_t message_control = 2;
inline constexpr std::uint32_t table = 4; ///< offset; bits 0 to 2: BAR
inline constexpr std::uint32_t pending_bits = 8;
inline constexpr std::uint32_t size = 12;
inline constexpr std::uint16_t table_size_mask = 0x7ff; ///< vectors less one
inline constexpr std::uint16_t function_mask = 1 << 14;
inline constexpr std::uint16_t enable = 1 << 15;

} // namespace msix_cap

/// struct virtio_pci_common_cfg: offsets. Spec: "Common configuration structure layout".
namespace common_cfg {

inline constexpr std::uint32_t device_feature_select = 0;
inline constexpr std::uint32_t device_feature = 4;
inline constexpr std::uint32_t driver_feature_select = 8;
inline constexpr std::uint32_t driver_feature = 12;
inline constexpr std::uint32_t config_msix_vector = 16;
inline constexpr std::uint32_t num_queues = 18;
inline constexpr std::uint32_t device_status = 20;
inline constexpr std::uint32_t config_generation = 21;
inline constexpr std::uint32_t queue_select = 22;
inline constexpr std::uint32_t queue_size = 24;
inline constexpr std::uint32_t queue_msix_vector = 26;
inline constexpr std::uint32_t queue_enable = 28;
inline constexpr std::uint32_t queue_notify_off = 30;
inline constexpr std::uint32_t queue_desc = 32;
inline constexpr std::uint32_t queue_driver = 40;
inline constexpr std::uint32_t queue_device = 48;
inline constexpr std::uint32_t queue_notify_data = 56;
inline constexpr std::uint32_t queue_reset = 58;
inline constexpr std::uint32_t admin_queue_index = 60;
inline constexpr std::uint32_t admin_queue_num = 62;
inline constexpr std::uint32_t size = 64;
/// What there is without RING_RESET and later fields: as much as a driver may rely on.
inline constexpr std::uint32_t size_min = 56;

/// The width of the field that begins at `offset`; 0 where none does.
[[nodiscard]] constexpr unsigned width_at(std::uint64_t offset) noexcept {
  switch (offset) {
  case device_feature_select:
  case device_feature:
  case driver_feature_select:
  case driver_feature: return 4;
  case device_status:
  case config_generation: return 1;
  case queue_desc:
  case queue_driver:
  case queue_device: return 8;
  default:
    return offset >= size || offset % 2 != 0 || (offset >= 4 && offset < 16 && offset % 4 != 0) ||
                   offset < 4 || (offset > queue_desc && offset < queue_notify_data)
               ? 0
               : 2;
  }
}

/// Whether an access has the width of a field, or is a half of a 64-bit one.
/// Spec: "PCI Device Layout".
[[nodiscard]] constexpr bool is_access(std::uint64_t offset, unsigned width) noexcept {
  if (width == 4 && offset >= queue_desc && offset < queue_notify_data) return offset % 4 == 0;
  return width != 0 && width == width_at(offset);
}

} // namespace common_cfg

/// The registers of the legacy interface at the start of BAR 0: offsets. The device-specific
/// configuration follows them.
/// Spec: "Legacy Interfaces: A Note on PCI Device Layout".
namespace legacy {

inline constexpr std::uint32_t device_features = 0;
inline constexpr std::uint32_t driver_features = 4;
inline constexpr std::uint32_t queue_address = 8; ///< page frame number
inline constexpr std::uint32_t queue_size = 12;
inline constexpr std::uint32_t queue_select = 14;
inline constexpr std::uint32_t queue_notify = 16;
inline constexpr std::uint32_t device_status = 18;
inline constexpr std::uint32_t isr_status = 19;
inline constexpr std::uint32_t config_msix_vector = 20; ///< with MSI-X enabled, and the next, too
inline constexpr std::uint32_t queue_msix_vector = 22;

inline constexpr std::uint32_t queue_alignment = 4096; ///< and the size of a page

/// Where the device-specific configuration begins: it moves when MSI-X is enabled.
[[nodiscard]] constexpr std::uint32_t config(bool is_msix_enabled) noexcept {
  return is_msix_enabled ? 24 : 20;
}

/// The width of the field of the header that begins at `offset`; 0 where none does.
[[nodiscard]] constexpr unsigned width_at(std::uint64_t offset, bool is_msix_enabled) noexcept {
  if (offset >= config(is_msix_enabled)) return 0;
  switch (offset) {
  case device_features:
  case driver_features:
  case queue_address: return 4;
  case device_status:
  case isr_status: return 1;
  default: return offset < queue_size || offset % 2 != 0 ? 0 : 2;
  }
}

} // namespace legacy

} // namespace ballast::pci
