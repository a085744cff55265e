// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/device_registers.hpp>
#include <ballast/transport/msix.hpp>
#include <ballast/transport/pci.hpp>
#include <ballast/transport/pci_config_space.hpp>
#include <ballast/transport/pci_function_space.hpp>
#include <ballast/transport/pci_registers.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstdint>
#include <span>

namespace ballast {

struct pci_device_options {
  /// A legacy interface too: BAR 0 in I/O space, the PCI device id of the type's legacy device,
  /// revision 0. Without effect for a type that has no such id.
  bool is_transitional = false;
  bool has_msix = true;
  /// At most `msix_vectors_max`; 0: one for each queue and one for the configuration.
  unsigned msix_vectors = 0;
  std::uint16_t vendor_id = pci::virtio_vendor_id;
  std::uint16_t subsystem_vendor_id = pci::virtio_vendor_id;
  /// 0: the device type's where it is transitional (legacy drivers know it by that), else 0x1100.
  std::uint16_t subsystem_id = 0;
  std::uint32_t class_code = 0x00ff00; ///< unclassified, as QEMU's balloon
};

/// What is to be raised now.
struct pci_interrupts {
  std::uint64_t vectors = 0; ///< bit n: send MSI-X message n, once
  bool line = false;         ///< the level of INTx from now on

  friend constexpr bool operator==(const pci_interrupts&, const pci_interrupts&) noexcept = default;
};

/// A whole function, for whoever saves a device or goes on after its process has died.
struct pci_device_state {
  pci_registers_state registers;
  pci_config_space_state config;

  friend constexpr bool operator==(const pci_device_state&,
                                   const pci_device_state&) noexcept = default;
};

/// A virtio device on a PCI bus, without the bus: a configuration space and BARs as register banks,
/// interrupts as data.
///
///     pci_device function(device, ram, {.is_transitional = true}); // both outlive it
///     actions due = function.write(bar, offset, width, value);     // or write_config_space
///     due = function.process(queue, budget);              // for each queue in due.more_work
///     due = function.carry_out(device.set_target(pages)); // each call on the device itself
///     const auto raise = function.interrupts(due);        // after each of these, and reads: {}
///
/// Without `carry_out` neither the ISR nor NEEDS_RESET shows what the device itself asked for. A
/// `failure` of a guest's write is the guest's mistake: count it and go on.
///
/// BAR 0: the legacy interface, in I/O space. BAR 1: MSI-X table and pending bits. BAR 4: the
/// structures, each on a page of 4096 bytes. All are of 32 bits. The decode bits of the command
/// register count for `find_bar` alone; bus mastering is the caller's.
///
/// Ordering: as `device_registers`; `interrupts` is serialised with the rest.
/// Spec: "Virtio Over PCI Bus".
template <class Device, guest_memory M>
  requires device_model<Device, M>
class pci_device {
  using registers = pci_registers<Device, M>;

 public:
  static constexpr unsigned legacy_bar = pci_layout::legacy_bar;
  static constexpr unsigned msix_bar = pci_layout::msix_bar;
  static constexpr unsigned modern_bar = pci_layout::modern_bar;

  constexpr pci_device(Device& device, M& memory, const pci_device_options& options = {}) noexcept
      : registers_(device, memory, vector_count(device, options)),
        is_transitional_(options.is_transitional && pci::transitional_id(device.device_id()) != 0),
        space_(identity(device, options, is_transitional_),
               {.config_bytes = device.config_size(),
                .queues = registers_.queue_count(),
                .msix_vectors = registers_.msix().vectors(),
                .is_transitional = is_transitional_}) {}

  // Configuration space.

  /// `width`: 1, 2 or 4 bytes, inside of the 256; else all ones.
  constexpr std::uint32_t read_config_space(std::uint32_t offset, unsigned width) noexcept {
    if (space_.is_window(offset, width)) read_window();
    const std::uint32_t asks = is_asking() ? pci::header::status_interrupt : 0;
    space_.bytes().set(pci::header::status, 2, pci::header::status_capabilities | asks);
    return space_.bytes().read(offset, width);
  }

  /// Refused: `register_access`; through the configuration access capability what `write` says.
  constexpr actions write_config_space(std::uint32_t offset, unsigned width,
                                       std::uint32_t value) noexcept {
    if (space_.is_window(offset, width)) return write_window(offset, width, value);
    const auto done = space_.bytes().write(offset, width, value);
    take_msix_control();
    return refused(done.error());
  }

  [[nodiscard]] constexpr const pci_config_space& config_space() const noexcept {
    return space_.bytes();
  }

  // The BARs.

  [[nodiscard]] constexpr std::uint64_t bar_size(unsigned bar) const noexcept {
    return space_.bytes().bar_size(bar);
  }
  [[nodiscard]] constexpr std::uint64_t bar_address(unsigned bar) const noexcept {
    return space_.bytes().bar_address(bar);
  }
  [[nodiscard]] constexpr bool is_bar_io(unsigned bar) const noexcept {
    return space_.bytes().is_bar_io(bar);
  }
  /// For a VMM that is told absolute addresses. Errors: `register_access`: no BAR claims it.
  [[nodiscard]] constexpr result<bar_access> find_bar(std::uint64_t address,
                                                      bool is_memory) const noexcept {
    return space_.bytes().find_bar(address, is_memory);
  }

  /// `width`: 1, 2, 4 or 8 bytes. All ones where there is no such register.
  constexpr std::uint64_t read(unsigned bar, std::uint64_t offset, unsigned width) noexcept {
    if (!is_width(width)) return ~std::uint64_t{0};
    if (bar == modern_bar) return read_modern(offset, width);
    if (bar == legacy_bar && is_transitional_) return registers_.read_legacy(offset, width);
    if (bar == msix_bar) {
      const auto found =
          offset < pci_layout::pending_bits
              ? registers_.msix().read(offset, width)
              : registers_.msix().read_pending(offset - pci_layout::pending_bits, width);
      if (found) return *found;
    }
    return all_ones(width);
  }

  /// Writes the low `width` bytes of `value`. `more_work` names the queues to process.
  /// Refused, and nothing is done: `register_access` (no such register, or not to be written at
  /// this width); what `pci_registers` says.
  constexpr actions write(unsigned bar, std::uint64_t offset, unsigned width,
                          std::uint64_t value) noexcept {
    if (!is_width(width)) return refused(error::register_access);
    value &= all_ones(width);
    if (bar == modern_bar) return write_modern(offset, width, value);
    if (bar == legacy_bar && is_transitional_) return registers_.write_legacy(offset, width, value);
    if (bar == msix_bar) return refused(registers_.msix().write(offset, width, value).error());
    return refused(error::register_access);
  }

  // The device's side.

  /// Handles at most `budget` buffers of a queue. Refused: `invalid_queue_index`.
  constexpr actions process(std::uint16_t queue, std::uint32_t budget) noexcept {
    return registers_.process(queue, budget);
  }
  /// For what the owner of the device called on it directly.
  constexpr actions carry_out(const actions& due) noexcept { return registers_.carry_out(due); }

  /// What to raise for `due`, and for messages that were pending and have been unmasked. One
  /// interrupt may stand for several events. The ISR says why before this says to raise anything.
  /// `due`: what the other members returned since the last call, each once; twice sends a message
  /// twice. Only `notify_queues` and `config_changed` count.
  constexpr pci_interrupts interrupts(const actions& due) noexcept {
    const std::uint64_t vectors = registers_.take_messages(due);
    return {.vectors = vectors, .line = is_interrupting()};
  }
  /// The level of INTx.
  [[nodiscard]] constexpr bool is_interrupting() const noexcept {
    return is_asking() && !space_.bytes().has_command(pci::header::command_interrupt_disable);
  }
  [[nodiscard]] constexpr bool is_msix_enabled() const noexcept {
    return registers_.msix().is_enabled();
  }
  [[nodiscard]] constexpr unsigned msix_vectors() const noexcept {
    return registers_.msix().vectors();
  }
  [[nodiscard]] constexpr msix_message message(unsigned vector) const noexcept {
    return registers_.msix().message(vector);
  }
  [[nodiscard]] constexpr bool is_bus_master() const noexcept {
    return space_.bytes().has_command(pci::header::command_bus_master);
  }

  [[nodiscard]] constexpr bool is_live() const noexcept { return registers_.device().is_live(); }
  [[nodiscard]] constexpr std::uint8_t status() const noexcept {
    return registers_.device().status();
  }
  [[nodiscard]] constexpr const feature_set& accepted() const noexcept {
    return registers_.device().accepted();
  }
  /// What the driver has set up; size 0: not enabled.
  [[nodiscard]] constexpr std::span<const queue_layout> queues() const noexcept {
    return registers_.device().queues();
  }

  /// A reset of the function, or of its bus: device, BARs, command register and MSI-X.
  constexpr void reset() noexcept {
    (void)registers_.write_status(0);
    space_.bytes().reset();
    take_msix_control();
    registers_.msix().restore({});
  }

  [[nodiscard]] constexpr pci_device_state state() const noexcept {
    return {registers_.state(), space_.bytes().state()};
  }
  /// Goes on from the state of a function of the same options. The device is not touched: whoever
  /// calls this lets it go on too.
  constexpr void restore(const pci_device_state& saved) noexcept {
    space_.bytes().restore(saved.config);
    take_msix_control();
    registers_.restore(saved.registers);
  }

 private:
  [[nodiscard]] static constexpr bool is_width(unsigned width) noexcept {
    return device_registers<Device, M>::is_width(width);
  }
  [[nodiscard]] static constexpr std::uint64_t all_ones(unsigned width) noexcept {
    return device_registers<Device, M>::all_ones(width);
  }

  // Construction.

  [[nodiscard]] static constexpr unsigned vector_count(const Device& device,
                                                       const pci_device_options& options) noexcept {
    if (!options.has_msix) return 0;
    return options.msix_vectors != 0 ? options.msix_vectors : device.queue_count() + 1u;
  }
  [[nodiscard]] static constexpr pci_identity
  identity(const Device& device, const pci_device_options& options, bool is_transitional) noexcept {
    const std::uint32_t type = device.device_id();
    const std::uint32_t own = is_transitional ? type : 0x1100; // Spec: "PCI Device Discovery"
    return {.vendor_id = options.vendor_id,
            .device_id = is_transitional ? pci::transitional_id(type) : pci::modern_id(type),
            .subsystem_vendor_id = options.subsystem_vendor_id,
            .subsystem_id =
                options.subsystem_id != 0 ? options.subsystem_id : static_cast<std::uint16_t>(own),
            .class_code = options.class_code,
            .revision_id = is_transitional ? pci::transitional_revision : pci::modern_revision,
            .interrupt_pin = 1};
  }

  constexpr void take_msix_control() noexcept {
    registers_.msix().set_control(space_.message_control());
  }
  /// Interrupt Status, which the command register does not mask.
  [[nodiscard]] constexpr bool is_asking() const noexcept {
    return !is_msix_enabled() && registers_.device().interrupt_status() != 0;
  }

  // The structures of BAR 4.

  constexpr std::uint64_t read_modern(std::uint64_t offset, unsigned width) noexcept {
    const std::uint64_t at = offset % 0x1000;
    switch (offset - at) {
    case pci_layout::common: return registers_.read_common(at, width);
    case pci_layout::isr: return registers_.read_isr(at, width);
    case pci_layout::device: return registers_.read_config(at, width);
    default: return all_ones(width); // notifications are written only
    }
  }
  constexpr actions write_modern(std::uint64_t offset, unsigned width,
                                 std::uint64_t value) noexcept {
    const std::uint64_t at = offset % 0x1000;
    switch (offset - at) {
    case pci_layout::common: return registers_.write_common(at, width, value);
    case pci_layout::device: return registers_.write_config(at, width, value);
    case pci_layout::notify: return registers_.notify(at, width, value);
    default: return refused(error::register_access);
    }
  }

  // The window into the BARs; an access of no bytes does nothing.

  constexpr void read_window() noexcept {
    const auto [bar, offset, length] = space_.window();
    const std::uint64_t value = read(bar, offset, length);
    space_.set_window_data(length, static_cast<std::uint32_t>(value));
  }
  constexpr actions write_window(std::uint32_t offset, unsigned width,
                                 std::uint32_t value) noexcept {
    (void)space_.bytes().write(offset, width, value);
    const auto window = space_.window();
    return write(window.bar, window.offset, window.length, space_.window_data());
  }

  registers registers_;
  bool is_transitional_;
  pci_function_space space_;
};

} // namespace ballast
