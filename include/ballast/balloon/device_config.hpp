// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/adjustment.hpp>
#include <ballast/balloon/device_options.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/endian.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/config_space.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/shared_value.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// The configuration space of a device, who may write what of it when, and the events that come of
/// it. Part of `device`.
///
/// Any thread may read, set the target, and note or take events; the caller serialises the rest.
/// Spec: "Device configuration layout", "Page Poison".
class device_config {
 public:
  /// Of `device_events`.
  struct event {
    static constexpr std::uint32_t actual = 1, reached = 2, statistics = 4, hinting = 8;
  };

  constexpr explicit device_config(const device_options& options) noexcept
      : guest_page_size_max_(options.guest_page_size_max),
        has_poison_(options.offered.test(feature::page_poison)) {
    space_.set_visible_size(config_size(options.offered));
    reset();
  }

  [[nodiscard]] constexpr std::uint32_t target() const noexcept {
    return space_.get32(offsetof(config, num_pages));
  }
  /// As the driver wrote it last, up to the most significant byte: a legacy driver writes one byte
  /// after the other. Spec: "Legacy Interface: Memory Balloon Device Operation".
  [[nodiscard]] constexpr std::uint32_t actual() const noexcept { return actual_.load(); }
  /// `actual`, if the driver has written it since the reset; else 0.
  [[nodiscard]] constexpr std::uint32_t actual_of_driver() const noexcept {
    return has_actual_ ? actual() : 0;
  }
  [[nodiscard]] constexpr bool is_target_reached() const noexcept {
    return balloon::is_target_reached(actual(), target(), guest_page_size_max_);
  }
  [[nodiscard]] constexpr std::uint32_t poison() const noexcept {
    return space_.get32(offsetof(config, poison_val));
  }

  /// Whether the driver is to be told.
  constexpr bool set_target(std::uint32_t pages) noexcept {
    return space_.set32(offsetof(config, num_pages), pages);
  }
  constexpr void show_command_id(std::uint32_t id) noexcept {
    (void)space_.set32(offsetof(config, free_page_hint_cmd_id), id);
  }

  // The driver's side.

  constexpr result<void> read(std::uint32_t offset, std::span<std::byte> to) const noexcept {
    return space_.read(offset, to);
  }
  [[nodiscard]] constexpr std::uint32_t generation() const noexcept {
    return space_.generation() + generation_base_.load();
  }

  /// Writes what is the driver's and leaves the rest. Errors: `config_out_of_range`.
  constexpr result<void> write(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    const std::uint32_t before = actual();
    if (const auto written = space_.write(offset, from); !written) return written.error();
    constexpr std::uint32_t begin = offsetof(config, actual), end = begin + sizeof(le32);
    if (offset < end && offset + from.size() >= end) {
      has_actual_ = true;
      actual_.store(space_.get32(begin));
    }
    if (actual() != before) note(event::actual | (is_target_reached() ? event::reached : 0));
    return {};
  }

  /// The driver is live: what its free pages hold is fixed, and 0 where that was not negotiated.
  constexpr void activate(const feature_set& negotiated) noexcept {
    space_.forbid_writes(poison_field);
    if (!negotiated.test(feature::page_poison)) (void)space_.set32(offsetof(config, poison_val), 0);
  }

  /// Another driver may come: the target stays, and `actual` until it is written.
  constexpr void reset() noexcept {
    (void)space_.set32(offsetof(config, poison_val), 0);
    if (has_poison_) space_.allow_writes(poison_field);
    has_actual_ = is_poison_known_ = false;
  }

  /// Whether the driver has written `actual` since the reset.
  [[nodiscard]] constexpr bool has_actual() const noexcept { return has_actual_; }

  /// Whether a resumed device knows what free pages hold: its own driver began here, or `restore`
  /// said so.
  [[nodiscard]] constexpr bool is_poison_known() const noexcept { return is_poison_known_; }
  constexpr void know_poison() noexcept { is_poison_known_ = true; }

  /// What another device left: the fields, and where the generation was. No event.
  constexpr void restore(std::uint32_t target, std::uint32_t actual, bool has_actual,
                         std::uint32_t poison, std::uint32_t generation) noexcept {
    (void)space_.set32(offsetof(config, num_pages), target);
    (void)space_.set32(offsetof(config, actual), actual);
    actual_.store(actual);
    (void)space_.set32(offsetof(config, poison_val), poison);
    has_actual_ = has_actual;
    is_poison_known_ = true;
    generation_base_.store(generation - space_.generation());
  }

  // What changed.

  constexpr void note(std::uint32_t events) noexcept { (void)events_.fetch_or(events); }

  constexpr device_events take_events() noexcept {
    const std::uint32_t bits = events_.exchange(0);
    return {.actual_changed = (bits & event::actual) != 0,
            .target_reached = (bits & event::reached) != 0,
            .statistics_arrived = (bits & event::statistics) != 0,
            .hinting_changed = (bits & event::hinting) != 0};
  }

 private:
  static constexpr config_field poison_field{offsetof(config, poison_val), sizeof(le32)};

  config_space<sizeof(config)> space_{{offsetof(config, actual), sizeof(le32)}};
  shared_value<std::uint32_t> actual_;
  shared_value<std::uint32_t> generation_base_;
  shared_value<std::uint32_t> events_;
  std::uint32_t guest_page_size_max_;
  bool has_poison_;
  bool has_actual_ = false;
  bool is_poison_known_ = false;
};

} // namespace ballast::balloon
