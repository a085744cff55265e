// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/interrupt_reason.hpp>
#include <ballast/transport/mmio.hpp>
#include <ballast/transport/register_region.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

struct mmio_driver_options {
  /// Bytes of registers and configuration; what passes them is not accessed.
  std::uint32_t region_bytes = mmio_region_bytes;
  /// Reads of a register until a queue is to be taken back.
  std::uint32_t attempts = 1'000'000;
};

/// The driver's side of virtio-mmio, version 2 and the legacy version 1: a `driver_transport`.
///
///     mmio_driver transport(my_registers{base}); // a register_region
///     if (!transport.check()) return;            // no device here, or only a placeholder
///     balloon::driver driver(ram, transport, pages, ...);
///     // interrupt: what = transport.interrupt_status(); transport.acknowledge(what); driver...
///
/// A legacy device knows no places but those that base, size and an alignment give (`place_legacy`
/// with 4096, which always does): `set_up_queue` finds an alignment that gives what it is to set
/// up, and refuses what none gives.
/// Ordering: the region's. One thread at a time, but for `notify`, `interrupt_status` and
/// `acknowledge`. Spec: "Virtio Over MMIO". Linux: drivers/virtio/virtio_mmio.c.
template <register_region R> class mmio_driver {
 public:
  /// Reads which version it is.
  constexpr explicit mmio_driver(R region, const mmio_driver_options& options = {}) noexcept
      : region_(region), options_(options), magic_(load(mmio_register::magic_value)),
        version_(magic_ == mmio_magic ? load(mmio_register::version) : 0) {}

  /// Whether there is a device. Errors: `wrong_device_id`: no virtio-mmio registers, or of a
  /// version that is not known, or a place without a device.
  [[nodiscard]] constexpr result<void> check() noexcept {
    if (device_id() == 0) return error::wrong_device_id;
    return {};
  }
  [[nodiscard]] constexpr bool is_legacy() const noexcept {
    return version_ == static_cast<std::uint32_t>(mmio_version::legacy);
  }
  [[nodiscard]] constexpr std::uint32_t vendor_id() noexcept {
    return load(mmio_register::vendor_id);
  }

  // driver_transport

  /// 0: there is no device, see `check`.
  [[nodiscard]] constexpr std::uint32_t device_id() noexcept {
    const bool is_known =
        is_legacy() || version_ == static_cast<std::uint32_t>(mmio_version::modern);
    return is_known ? load(mmio_register::device_id) : 0;
  }

  /// The first 64, of a legacy device 32: of those behind, devices show anything.
  [[nodiscard]] constexpr feature_set device_features() noexcept {
    feature_set offered;
    for (std::uint32_t word = 0; word < feature_words(); ++word) {
      store(mmio_register::device_features_select, word);
      offered.set_word32(word, load(mmio_register::device_features));
    }
    return offered;
  }
  constexpr void set_driver_features(const feature_set& accepted) noexcept {
    for (std::uint32_t word = 0; word < feature_words(); ++word) {
      store(mmio_register::driver_features_select, word);
      store(mmio_register::driver_features, accepted.word32(word));
    }
    has_ring_reset_ = accepted.test(feature::ring_reset);
  }

  [[nodiscard]] constexpr std::uint8_t status() noexcept {
    return static_cast<std::uint8_t>(load(mmio_register::status));
  }
  constexpr void set_status(std::uint8_t bits) noexcept { store(mmio_register::status, bits); }

  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) noexcept {
    store(mmio_register::queue_select, queue);
    return load(mmio_register::queue_size_max);
  }

  /// Errors: `queue_unavailable`, `invalid_queue_size`, `wrong_state` (it is in use already, or the
  /// device did not take it); for a legacy device `misaligned` (see above), `page_out_of_range` (a
  /// queue at page 0, or behind 2^32 pages).
  [[nodiscard]] constexpr result<void> set_up_queue(std::uint16_t queue,
                                                    const queue_layout& layout) noexcept {
    const std::uint32_t size_max = queue_size_max(queue);
    if (size_max == 0) return error::queue_unavailable;
    if (layout.size == 0 || layout.size > size_max) return error::invalid_queue_size;
    if (load(in_use()) != 0) return error::wrong_state;
    return is_legacy() ? set_up_legacy(layout) : set_up_modern(layout);
  }

  /// Errors: `not_negotiated` (RING_RESET), `reset_incomplete`: the device still has the queue,
  /// call again, later if need be. Spec: "Virtqueue Reset".
  [[nodiscard]] constexpr result<void> reset_queue(std::uint16_t queue) noexcept {
    if (!has_ring_reset_) return error::not_negotiated;
    store(mmio_register::queue_select, queue);
    store(mmio_register::queue_reset, 1);
    for (std::uint32_t n = options_.attempts; n > 0; --n)
      // Ready as well: there are devices that offer RING_RESET and have no such register.
      if (load(mmio_register::queue_reset) == 0 && load(mmio_register::queue_ready) == 0) return {};
    return error::reset_incomplete;
  }

  /// Stops using a queue without RING_RESET: of a device that is not live, as a driver does that
  /// goes away. Errors: `reset_incomplete`: the device still has it.
  [[nodiscard]] constexpr result<void> stop_queue(std::uint16_t queue) noexcept {
    store(mmio_register::queue_select, queue);
    store(in_use(), 0);
    for (std::uint32_t n = options_.attempts; n > 0; --n)
      if (load(in_use()) == 0) return {};
    return error::reset_incomplete;
  }

  /// 0 for a legacy device, which has none.
  [[nodiscard]] constexpr std::uint32_t config_generation() noexcept {
    return is_legacy() ? 0 : load(mmio_register::config_generation);
  }

  /// In words of 4 bytes, and of 2 and 1 where the offset or the rest is none: a field by itself is
  /// accessed at its width. What takes several accesses belongs together if the generation stood
  /// still; of a legacy device it is read until it reads the same twice.
  /// Errors: `config_out_of_range`, `config_unstable` (legacy).
  [[nodiscard]] constexpr result<void> read_config(std::uint32_t offset,
                                                   std::span<std::byte> to) noexcept {
    if (!is_config(offset, to.size())) return error::config_out_of_range;
    if (is_legacy()) return read_stable_fields(region_, mmio_register::config, offset, to);
    read_fields(region_, mmio_register::config, offset, to);
    return {};
  }

  /// As `read_config`. Errors: `config_out_of_range`.
  [[nodiscard]] constexpr result<void> write_config(std::uint32_t offset,
                                                    std::span<const std::byte> from) noexcept {
    if (!is_config(offset, from.size())) return error::config_out_of_range;
    write_fields(region_, mmio_register::config, offset, from);
    return {};
  }

  constexpr void notify(std::uint16_t queue) noexcept { store(mmio_register::queue_notify, queue); }

  // Interrupts.

  /// Why the device interrupts: the bits of `interrupt_reason`; others are not looked at.
  [[nodiscard]] constexpr std::uint32_t interrupt_status() noexcept {
    return load(mmio_register::interrupt_status) & defined_interrupts;
  }
  /// What was read and is dealt with: before the queues are looked at, so that what comes meanwhile
  /// interrupts again.
  constexpr void acknowledge(std::uint32_t bits) noexcept {
    store(mmio_register::interrupt_acknowledge, bits & defined_interrupts);
  }

 private:
  static constexpr std::uint32_t defined_interrupts = 3;
  static constexpr std::uint32_t legacy_page_size = 4096;

  [[nodiscard]] constexpr std::uint32_t load(std::uint32_t offset) noexcept {
    return region_.template load<std::uint32_t>(offset);
  }
  constexpr void store(std::uint32_t offset, std::uint32_t value) noexcept {
    region_.template store<std::uint32_t>(offset, value);
  }
  constexpr void store_address(std::uint32_t low, guest_address address) noexcept {
    store(low, static_cast<std::uint32_t>(address));
    store(low + 4, static_cast<std::uint32_t>(address >> 32));
  }

  [[nodiscard]] constexpr std::uint32_t feature_words() const noexcept {
    return is_legacy() ? 1 : 2;
  }
  [[nodiscard]] constexpr std::uint32_t in_use() const noexcept {
    return is_legacy() ? mmio_register::queue_pfn : mmio_register::queue_ready;
  }

  constexpr result<void> set_up_modern(const queue_layout& layout) noexcept {
    store(mmio_register::queue_size, layout.size);
    store_address(mmio_register::queue_descriptor_low, layout.descriptor_area);
    store_address(mmio_register::queue_driver_low, layout.driver_area);
    store_address(mmio_register::queue_device_low, layout.device_area);
    store(mmio_register::queue_ready, 1);
    if (load(mmio_register::queue_ready) != 1) return error::wrong_state;
    return {};
  }

  constexpr result<void> set_up_legacy(const queue_layout& layout) noexcept {
    const auto alignment = alignment_of(layout);
    if (!alignment) return alignment.error();
    std::uint32_t page_size = legacy_page_size;
    while (layout.descriptor_area % page_size != 0) page_size /= 2;
    const guest_address pfn = layout.descriptor_area / page_size;
    if (pfn == 0 || pfn > UINT32_MAX) return error::page_out_of_range;
    store(mmio_register::guest_page_size, page_size);
    store(mmio_register::queue_size, layout.size);
    store(mmio_register::queue_align, *alignment);
    store(mmio_register::queue_pfn, static_cast<std::uint32_t>(pfn));
    if (load(mmio_register::queue_pfn) != pfn) return error::wrong_state;
    return {};
  }

  /// The largest alignment that gives this layout; the usual one is a page.
  [[nodiscard]] static constexpr result<std::uint32_t>
  alignment_of(const queue_layout& layout) noexcept {
    for (std::uint32_t to = legacy_page_size; to >= split::used_ring_alignment; to /= 2) {
      const auto at = mmio_legacy_layout(layout.descriptor_area, layout.size, to);
      if (!at) return at.error();
      // QEMU leaves the event index out of what it aligns.
      const guest_address event = at->driver_area + split::used_event(layout.size);
      if (*at == layout && (event + to - 1) / to * to == layout.device_area) return to;
    }
    return error::misaligned;
  }

  [[nodiscard]] constexpr bool is_config(std::uint32_t offset, std::size_t size) const noexcept {
    const std::uint32_t end = options_.region_bytes < mmio_register::config
                                  ? 0
                                  : options_.region_bytes - mmio_register::config;
    return offset <= end && size <= end - offset;
  }

  R region_;
  mmio_driver_options options_;
  std::uint32_t magic_;
  std::uint32_t version_;
  bool has_ring_reset_ = false;
};

} // namespace ballast
