// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstdint>

namespace ballast {

/// What the Version register says.
enum class mmio_version : std::uint32_t { legacy = 1, modern = 2 };

/// What MagicValue reads: "virt", little-endian.
inline constexpr std::uint32_t mmio_magic = 0x74726976;

/// The offsets of the registers, in bytes. All but the configuration are 32 bits wide and accessed
/// so; R is read only, W write only. The comments have the specification's names.
/// Spec: "MMIO Device Register Layout", "Virtio Over MMIO / Legacy interface".
namespace mmio_register {

inline constexpr std::uint32_t magic_value = 0x000;            ///< MagicValue, R
inline constexpr std::uint32_t version = 0x004;                ///< Version, R
inline constexpr std::uint32_t device_id = 0x008;              ///< DeviceID, R
inline constexpr std::uint32_t vendor_id = 0x00c;              ///< VendorID, R
inline constexpr std::uint32_t device_features = 0x010;        ///< DeviceFeatures, HostFeatures; R
inline constexpr std::uint32_t device_features_select = 0x014; ///< DeviceFeaturesSel, W
inline constexpr std::uint32_t driver_features = 0x020;        ///< DriverFeatures, GuestFeatures; W
inline constexpr std::uint32_t driver_features_select = 0x024; ///< DriverFeaturesSel, W
inline constexpr std::uint32_t guest_page_size = 0x028;        ///< GuestPageSize, W; legacy
inline constexpr std::uint32_t queue_select = 0x030;           ///< QueueSel, W
inline constexpr std::uint32_t queue_size_max = 0x034;         ///< QueueSizeMax, QueueNumMax; R
inline constexpr std::uint32_t queue_size = 0x038;             ///< QueueSize, QueueNum; W
inline constexpr std::uint32_t queue_align = 0x03c;            ///< QueueAlign, W; legacy
inline constexpr std::uint32_t queue_pfn = 0x040;              ///< QueuePFN; legacy
inline constexpr std::uint32_t queue_ready = 0x044;            ///< QueueReady; modern
inline constexpr std::uint32_t queue_notify = 0x050;           ///< QueueNotify, W
inline constexpr std::uint32_t interrupt_status = 0x060;       ///< InterruptStatus, R
inline constexpr std::uint32_t interrupt_acknowledge = 0x064;  ///< InterruptACK, W
inline constexpr std::uint32_t status = 0x070;                 ///< Status
// From here to ConfigGeneration: modern.
inline constexpr std::uint32_t queue_descriptor_low = 0x080;  ///< QueueDescLow, W
inline constexpr std::uint32_t queue_descriptor_high = 0x084; ///< QueueDescHigh, W
inline constexpr std::uint32_t queue_driver_low = 0x090;      ///< QueueDriverLow, W
inline constexpr std::uint32_t queue_driver_high = 0x094;     ///< QueueDriverHigh, W
inline constexpr std::uint32_t queue_device_low = 0x0a0;      ///< QueueDeviceLow, W
inline constexpr std::uint32_t queue_device_high = 0x0a4;     ///< QueueDeviceHigh, W
inline constexpr std::uint32_t shm_select = 0x0ac;            ///< SHMSel, W
inline constexpr std::uint32_t shm_length_low = 0x0b0;        ///< SHMLenLow, R
inline constexpr std::uint32_t shm_length_high = 0x0b4;       ///< SHMLenHigh, R
inline constexpr std::uint32_t shm_base_low = 0x0b8;          ///< SHMBaseLow, R
inline constexpr std::uint32_t shm_base_high = 0x0bc;         ///< SHMBaseHigh, R
inline constexpr std::uint32_t queue_reset = 0x0c0;           ///< QueueReset
inline constexpr std::uint32_t config_generation = 0x0fc;     ///< ConfigGeneration, R
inline constexpr std::uint32_t config = 0x100;                ///< Config: its fields at their width

} // namespace mmio_register

/// The bytes that device trees and emulators give a device: registers and 256 of configuration.
inline constexpr std::uint32_t mmio_region_bytes = 0x200;

/// Where the areas of a legacy queue are that begins at `base`, its used ring at a multiple of
/// `alignment`. A guest that knows less than `split::place_legacy` asks for may lay them out so.
/// Errors: `invalid_queue_size`, `misaligned`: `base` is no multiple of 16, or `alignment` no power
/// of two of 4 and more. Spec: "Legacy Interfaces: A Note on Virtqueue Layout". Linux:
/// vring_init().
[[nodiscard]] constexpr result<queue_layout>
mmio_legacy_layout(guest_address base, std::uint32_t size, std::uint64_t alignment) noexcept {
  if (!split::is_valid_size(size)) return error::invalid_queue_size;
  if (base % split::descriptor_table_alignment != 0 || alignment < split::used_ring_alignment ||
      !std::has_single_bit(alignment))
    return error::misaligned;
  queue_layout at{.size = size, .descriptor_area = base};
  at.driver_area = base + split::descriptor_table_bytes(size);
  const guest_address end = at.driver_area + split::available_ring_bytes(size);
  at.device_area = (end + alignment - 1) & ~(alignment - 1);
  return at;
}

} // namespace ballast
