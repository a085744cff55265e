// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/transport/pci.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// What a PCI function says it is.
struct pci_identity {
  std::uint16_t vendor_id = 0;
  std::uint16_t device_id = 0;
  std::uint16_t subsystem_vendor_id = 0;
  std::uint16_t subsystem_id = 0;
  std::uint32_t class_code = 0; ///< 24 bits: base class, subclass, interface
  std::uint8_t revision_id = 0;
  std::uint8_t interrupt_pin = 0; ///< 1: INTA#; 0: none
};

/// Where an absolute address lies.
struct bar_access {
  unsigned bar = 0;
  std::uint64_t offset = 0; ///< bytes from the start of the BAR

  friend constexpr bool operator==(const bar_access&, const bar_access&) noexcept = default;
};

/// The bytes of a configuration space, for whoever saves a device.
struct pci_config_space_state {
  std::uint8_t bytes[256]{};

  friend constexpr bool operator==(const pci_config_space_state&,
                                   const pci_config_space_state&) noexcept = default;
};

/// A configuration space of type 0 as data: 256 bytes, each bit of which the driver may write or
/// not, with BARs of 32 bits in memory and I/O space and a list of capabilities.
///
///     pci_config_space space({.vendor_id = 0x1af4, .device_id = 0x1045, .revision_id = 1});
///     space.set_bar(1, 0x1000, false);
///     const auto at = space.add_capability(pci::capability_msix, pci::msix_cap::size);
///
/// Writes have no effect of their own: what is to come of one is its owner's, who looks at the
/// bytes. Any access of 1, 2 or 4 bytes inside of the 256 is allowed.
/// Source: PCI Local Bus Specification 3.0, 6.1 (configuration space organization) and 6.2.5.1
/// (address maps).
class pci_config_space {
 public:
  static constexpr std::uint32_t size = 256;

  constexpr explicit pci_config_space(const pci_identity& identity) noexcept {
    namespace h = pci::header;
    set(h::vendor_id, 2, identity.vendor_id);
    set(h::device_id, 2, identity.device_id);
    set(h::status, 2, h::status_capabilities);
    set(h::revision_id, 1, identity.revision_id);
    set(h::class_code, 3, identity.class_code);
    set(h::subsystem_vendor_id, 2, identity.subsystem_vendor_id);
    set(h::subsystem_id, 2, identity.subsystem_id);
    set(h::interrupt_pin, 1, identity.interrupt_pin);
    allow_writes(h::interrupt_line, 1, 0xff);
    allow_writes(h::command, 2, h::command_bus_master | h::command_interrupt_disable);
  }

  // Set-up, before it is used.

  /// `bytes`: a power of two, at least 16 in memory and 4 in I/O space.
  constexpr void set_bar(unsigned bar, std::uint32_t bytes, bool is_io) noexcept {
    const std::uint32_t at = pci::header::base_address + 4 * bar;
    if (is_io) set(at, 4, pci::bar_is_io);
    allow_writes(at, 4, 0u - bytes);
    allow_writes(pci::header::command, 2,
                 is_io ? pci::header::command_io : pci::header::command_memory);
  }

  /// Appends a capability of `length` bytes, id and pointer to the next one among them; its place,
  /// or 0 where the list is full.
  constexpr std::uint32_t add_capability(std::uint8_t id, std::uint32_t length) noexcept {
    const std::uint32_t at = capabilities_end_;
    if (length < 2 || length > size - at) return 0;
    set(at, 1, id);
    set(last_pointer_, 1, at);
    last_pointer_ = at + 1;
    capabilities_end_ = (at + length + 3) & ~3u;
    return at;
  }

  /// Lets the driver write the bits of `mask`.
  constexpr void allow_writes(std::uint32_t offset, unsigned width, std::uint32_t mask) noexcept {
    for (unsigned i = 0; i < width; ++i)
      writable_[offset + i] = static_cast<std::uint8_t>(writable_[offset + i] | mask >> (8 * i));
  }

  // The device's side.

  /// `width`: 1 to 4 bytes, inside of the 256.
  [[nodiscard]] constexpr std::uint32_t get(std::uint32_t offset, unsigned width) const noexcept {
    std::uint32_t value = 0;
    for (unsigned i = 0; i < width; ++i)
      value |= static_cast<std::uint32_t>(state_.bytes[offset + i]) << (8 * i);
    return value;
  }
  constexpr void set(std::uint32_t offset, unsigned width, std::uint32_t value) noexcept {
    for (unsigned i = 0; i < width; ++i)
      state_.bytes[offset + i] = static_cast<std::uint8_t>(value >> (8 * i));
  }
  [[nodiscard]] constexpr bool has_command(std::uint16_t bits) const noexcept {
    return (get(pci::header::command, 2) & bits) == bits;
  }

  /// Back to what it was before the driver wrote anything, but for what `set` changed where the
  /// driver can't write.
  constexpr void reset() noexcept {
    for (std::uint32_t i = 0; i < size; ++i)
      state_.bytes[i] = static_cast<std::uint8_t>(state_.bytes[i] & ~writable_[i]);
  }

  // The driver's side.

  /// All ones of an access that is not all inside.
  [[nodiscard]] constexpr std::uint32_t read(std::uint32_t offset, unsigned width) const noexcept {
    return is_access(offset, width) ? get(offset, width) : 0xffff'ffff;
  }
  /// Bits that are not the driver's stay as they are. Errors: `register_access`: not all inside.
  [[nodiscard]] constexpr result<void> write(std::uint32_t offset, unsigned width,
                                             std::uint32_t value) noexcept {
    if (!is_access(offset, width)) return error::register_access;
    for (unsigned i = 0; i < width; ++i) merge(offset + i, value >> (8 * i));
    return {};
  }

  // Base addresses.

  /// In bytes; 0 where there is no such BAR.
  [[nodiscard]] constexpr std::uint32_t bar_size(unsigned bar) const noexcept {
    return 0u - bar_mask(bar);
  }
  [[nodiscard]] constexpr bool is_bar_io(unsigned bar) const noexcept {
    return bar < pci::bar_count &&
           (get(pci::header::base_address + 4 * bar, 1) & pci::bar_is_io) != 0;
  }
  [[nodiscard]] constexpr std::uint32_t bar_address(unsigned bar) const noexcept {
    return bar < pci::bar_count ? get(pci::header::base_address + 4 * bar, 4) & bar_mask(bar) : 0;
  }
  /// The BAR that claims an address; one at 0, or of a space that the command register does not
  /// enable, claims none. Errors: `register_access`.
  [[nodiscard]] constexpr result<bar_access> find_bar(std::uint64_t address,
                                                      bool is_memory) const noexcept {
    if (!has_command(is_memory ? pci::header::command_memory : pci::header::command_io))
      return error::register_access;
    for (unsigned bar = 0; bar < pci::bar_count; ++bar) {
      const std::uint64_t base = bar_address(bar);
      if (base != 0 && is_bar_io(bar) != is_memory && address >= base &&
          address - base < bar_size(bar))
        return bar_access{bar, address - base};
    }
    return error::register_access;
  }

  [[nodiscard]] constexpr const pci_config_space_state& state() const noexcept { return state_; }
  /// Takes the driver's bits alone.
  constexpr void restore(const pci_config_space_state& saved) noexcept {
    for (std::uint32_t i = 0; i < size; ++i) merge(i, saved.bytes[i]);
  }

  /// Whether an access touches one of `length` bytes at `at`.
  [[nodiscard]] static constexpr bool touches(std::uint32_t offset, unsigned width,
                                              std::uint32_t at, std::uint32_t length) noexcept {
    return is_access(offset, width) && offset < at + length && at < offset + width;
  }

 private:
  [[nodiscard]] static constexpr bool is_access(std::uint32_t offset, unsigned width) noexcept {
    return (width == 1 || width == 2 || width == 4) && offset < size && width <= size - offset;
  }
  constexpr void merge(std::uint32_t at, std::uint32_t value) noexcept {
    const std::uint32_t mask = writable_[at];
    state_.bytes[at] = static_cast<std::uint8_t>((state_.bytes[at] & ~mask) | (value & mask));
  }
  [[nodiscard]] constexpr std::uint32_t bar_mask(unsigned bar) const noexcept {
    std::uint32_t mask = 0;
    if (bar < pci::bar_count)
      for (unsigned i = 0; i < 4; ++i)
        mask |= static_cast<std::uint32_t>(writable_[pci::header::base_address + 4 * bar + i])
                << (8 * i);
    return mask;
  }

  pci_config_space_state state_;
  std::uint8_t writable_[size]{}; ///< ones in the bits that the driver may write
  std::uint32_t capabilities_end_ = pci::header::end;
  std::uint32_t last_pointer_ = pci::header::capabilities_pointer;
};

} // namespace ballast
