// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/transport/msix.hpp>
#include <ballast/transport/pci.hpp>
#include <ballast/transport/pci_config_space.hpp>

#include <bit>
#include <cstdint>

namespace ballast {

/// Which BAR is what, and where the structures are in it: each on a page of 4096 bytes.
namespace pci_layout {

inline constexpr unsigned legacy_bar = 0; ///< in I/O space
inline constexpr unsigned msix_bar = 1;   ///< the table at 0
inline constexpr unsigned modern_bar = 4;
inline constexpr std::uint32_t modern_bytes = 0x4000;
inline constexpr std::uint32_t common = 0x0000;
inline constexpr std::uint32_t isr = 0x1000;
inline constexpr std::uint32_t device = 0x2000;
inline constexpr std::uint32_t notify = 0x3000;
inline constexpr std::uint32_t notify_off_multiplier = 4;
inline constexpr std::uint32_t msix_bytes = 0x1000;
inline constexpr std::uint32_t pending_bits = 0x800; ///< behind the largest table

} // namespace pci_layout

/// What a function of virtio has, as far as its configuration space says it.
struct pci_function_parts {
  std::uint32_t config_bytes = 0; ///< of device-specific configuration
  std::uint32_t queues = 0;
  unsigned msix_vectors = 0; ///< 0: no MSI-X
  bool is_transitional = false;
};

/// The configuration space of a virtio function: BARs, the capabilities that lead to the structures
/// in them, MSI-X, and the configuration access capability, a window into the BARs.
/// Spec: "Virtio Structure PCI Capabilities", "PCI configuration access capability".
class pci_function_space {
 public:
  constexpr pci_function_space(const pci_identity& identity,
                               const pci_function_parts& parts) noexcept
      : space_(identity) {
    using pci::cfg_type;
    add(cfg_type::common, pci_layout::common, pci::common_cfg::size);
    add(cfg_type::isr, pci_layout::isr, 1);
    if (parts.config_bytes != 0) add(cfg_type::device, pci_layout::device, parts.config_bytes);
    const std::uint32_t places =
        parts.queues != 0 ? parts.queues : 1; // the structure is never empty
    const std::uint32_t notify =
        add(cfg_type::notify, pci_layout::notify, places * pci_layout::notify_off_multiplier, 4);
    space_.set(notify + pci::cap::notify_off_multiplier, 4, pci_layout::notify_off_multiplier);
    space_.set_bar(pci_layout::modern_bar, pci_layout::modern_bytes, false);
    add_window();
    if (parts.msix_vectors != 0) add_msix(parts.msix_vectors);
    if (parts.is_transitional)
      space_.set_bar(pci_layout::legacy_bar,
                     std::bit_ceil(pci::legacy::config(true) + parts.config_bytes), true);
  }

  [[nodiscard]] constexpr pci_config_space& bytes() noexcept { return space_; }
  [[nodiscard]] constexpr const pci_config_space& bytes() const noexcept { return space_; }

  /// Message control of MSI-X; 0 where there is none.
  [[nodiscard]] constexpr std::uint16_t message_control() const noexcept {
    return msix_ == 0
               ? std::uint16_t{0}
               : static_cast<std::uint16_t>(space_.get(msix_ + pci::msix_cap::message_control, 2));
  }

  /// Whether an access is one of pci_cfg_data: then it is one of the BAR that `window` names.
  [[nodiscard]] constexpr bool is_window(std::uint32_t offset, unsigned width) const noexcept {
    return pci_config_space::touches(offset, width, window_ + pci::cap::pci_cfg_data, 4);
  }
  struct window_access {
    unsigned bar = 0;
    std::uint32_t offset = 0;
    unsigned length = 0; ///< 1, 2 or 4; 0 where the driver asks for what it must not ask for
  };
  [[nodiscard]] constexpr window_access window() const noexcept {
    const std::uint32_t offset = space_.get(window_ + pci::cap::offset, 4);
    const std::uint32_t length = space_.get(window_ + pci::cap::length, 4);
    const bool is_allowed = (length == 1 || length == 2 || length == 4) && offset % length == 0;
    return {space_.get(window_ + pci::cap::bar, 1), offset, is_allowed ? length : 0};
  }
  /// pci_cfg_data; what was read through the window is stored there.
  [[nodiscard]] constexpr std::uint32_t window_data() const noexcept {
    return space_.get(window_ + pci::cap::pci_cfg_data, 4);
  }
  constexpr void set_window_data(unsigned length, std::uint32_t value) noexcept {
    space_.set(window_ + pci::cap::pci_cfg_data, length, value);
  }

 private:
  constexpr std::uint32_t add(pci::cfg_type type, std::uint32_t offset, std::uint32_t length,
                              std::uint32_t more = 0) noexcept {
    const std::uint32_t bytes = pci::cap::size + more;
    const std::uint32_t at = space_.add_capability(pci::capability_vendor, bytes);
    space_.set(at + pci::cap::cap_len, 1, bytes);
    space_.set(at + pci::cap::cfg_type, 1, static_cast<std::uint32_t>(type));
    space_.set(at + pci::cap::bar, 1, pci_layout::modern_bar);
    space_.set(at + pci::cap::offset, 4, offset);
    space_.set(at + pci::cap::length, 4, length);
    return at;
  }
  constexpr void add_window() noexcept {
    window_ = add(pci::cfg_type::pci_cfg, 0, 0, 4);
    space_.set(window_ + pci::cap::bar, 1, 0);
    space_.allow_writes(window_ + pci::cap::bar, 1, 0xff);
    space_.allow_writes(window_ + pci::cap::offset, 4, 0xffff'ffff);
    space_.allow_writes(window_ + pci::cap::length, 4, 0xffff'ffff);
    space_.allow_writes(window_ + pci::cap::pci_cfg_data, 4, 0xffff'ffff);
  }
  constexpr void add_msix(unsigned vectors) noexcept {
    namespace m = pci::msix_cap;
    space_.set_bar(pci_layout::msix_bar, pci_layout::msix_bytes, false);
    msix_ = space_.add_capability(pci::capability_msix, m::size);
    space_.set(msix_ + m::message_control, 2, vectors - 1);
    space_.set(msix_ + m::table, 4, pci_layout::msix_bar);
    space_.set(msix_ + m::pending_bits, 4, pci_layout::pending_bits | pci_layout::msix_bar);
    space_.allow_writes(msix_ + m::message_control, 2, m::enable | m::function_mask);
  }

  static_assert(msix_vectors_max * msix_table::entry_size <= pci_layout::pending_bits);

  pci_config_space space_;
  std::uint32_t window_ = 0; ///< place of the configuration access capability
  std::uint32_t msix_ = 0;   ///< place of the MSI-X capability; 0: none
};

} // namespace ballast
