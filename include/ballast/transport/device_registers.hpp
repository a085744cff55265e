// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/interrupt_reason.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/in_process_transport.hpp>
#include <ballast/virtio/shared_value.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// The addresses of a queue that a driver writes, one register or two halves each.
enum class queue_area : std::uint8_t { descriptor, driver, device };

/// What the registers hold, for whoever saves a device or goes on after its process has died.
struct device_registers_state {
  transport_state transport;
  queue_layout staged[transport_queues_max]{};
  std::uint32_t device_feature_select = 0, driver_feature_select = 0, queue_select = 0;
  std::uint8_t interrupt_status = 0;

  friend constexpr bool operator==(const device_registers_state&,
                                   const device_registers_state&) noexcept = default;
};

/// The registers that virtio-mmio and virtio-pci have in common, at whatever offsets they are.
///
/// Decodes nothing: `mmio_device` and `pci_device` do. The rules of status, features and queues are
/// those of `in_process_transport`. What a queue's registers hold is staged until the queue is
/// enabled; from then on its geometry is frozen, until it is reset.
/// Ordering: `status`, `is_live`, `interrupt_status`, `take_interrupt_status`, `acknowledge` and
/// reads of the configuration may come from any thread, as far as the device allows; the caller
/// serialises the rest, `process` and `carry_out` among it. Spec: "Virtio Over PCI Bus", "Virtio
/// Over MMIO".
template <class Device, guest_memory M>
  requires device_model<Device, M>
class device_registers {
 public:
  /// `unsupported`: features that the transport does not carry out, never offered.
  constexpr device_registers(Device& device, M& memory, const feature_set& unsupported) noexcept
      : device_(&device), rules_(device, memory, unsupported) {}

  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return rules_.device_id(); }
  [[nodiscard]] constexpr std::uint16_t queue_count() const noexcept {
    return device_->queue_count();
  }

  // Features, 32 bits at a time.

  constexpr void select_device_features(std::uint32_t word) noexcept {
    state_.device_feature_select = word;
  }
  constexpr void select_driver_features(std::uint32_t word) noexcept {
    state_.driver_feature_select = word;
  }
  [[nodiscard]] constexpr std::uint32_t device_feature_select() const noexcept {
    return state_.device_feature_select;
  }
  [[nodiscard]] constexpr std::uint32_t driver_feature_select() const noexcept {
    return state_.driver_feature_select;
  }
  /// Words past the 256 bits read 0.
  [[nodiscard]] constexpr std::uint32_t device_features() const noexcept {
    return rules_.device_features().word32(state_.device_feature_select);
  }
  [[nodiscard]] constexpr std::uint32_t driver_features() const noexcept {
    return rules_.driver_features().word32(state_.driver_feature_select);
  }
  /// Refused: `wrong_state` after FEATURES_OK.
  constexpr actions write_driver_features(std::uint32_t bits) noexcept {
    feature_set accepted = rules_.driver_features();
    accepted.set_word32(state_.driver_feature_select, bits);
    rules_.set_driver_features(accepted);
    return noted(rules_.take_actions());
  }
  [[nodiscard]] constexpr const feature_set& accepted() const noexcept {
    return rules_.driver_features();
  }

  // Status.

  [[nodiscard]] constexpr std::uint8_t status() const noexcept { return rules_.status(); }
  [[nodiscard]] constexpr bool is_live() const noexcept { return rules_.is_live(); }
  /// 0 resets everything here. Refused: what `in_process_transport::set_status` says.
  constexpr actions write_status(std::uint8_t bits) noexcept {
    rules_.set_status(bits);
    if (bits != 0) return noted(rules_.take_actions());
    state_ = {};
    (void)interrupt_status_.exchange(0);
    return {};
  }

  // The selected queue.

  constexpr void select_queue(std::uint32_t queue) noexcept { state_.queue_select = queue; }
  [[nodiscard]] constexpr std::uint32_t queue_select() const noexcept {
    return state_.queue_select;
  }
  /// Entries; 0 where there is no such queue.
  [[nodiscard]] constexpr std::uint32_t queue_size_max() const noexcept {
    return has_queue() ? rules_.queue_size_max(index()) : 0;
  }
  [[nodiscard]] constexpr bool is_queue_enabled() const noexcept {
    return has_queue() && rules_.queues()[index()].size != 0;
  }
  /// What was written to its registers; a size of 0: none was written.
  [[nodiscard]] constexpr queue_layout staged() const noexcept {
    return has_queue() ? state_.staged[index()] : queue_layout{};
  }
  /// Refused: `invalid_queue_index`, `wrong_state` (enabled: the geometry is frozen).
  constexpr actions stage_size(std::uint32_t entries) noexcept {
    if (const error e = refusal(); e != error::none) return refused(e);
    state_.staged[index()].size = entries;
    return {};
  }
  /// Changes the bits of `mask` in an address. Refused: as `stage_size`.
  constexpr actions stage_area(queue_area area, std::uint64_t value, std::uint64_t mask) noexcept {
    if (const error e = refusal(); e != error::none) return refused(e);
    guest_address& at = area_of(state_.staged[index()], area);
    at = (at & ~mask) | (value & mask);
    return {};
  }
  [[nodiscard]] constexpr std::uint64_t area(queue_area which) const noexcept {
    queue_layout now = staged();
    return area_of(now, which);
  }
  /// Enables the queue as it is staged. Refused: `invalid_queue_index`, what
  /// `in_process_transport::set_up_queue` says.
  constexpr actions enable_queue() noexcept {
    return has_queue() ? enable_queue(state_.staged[index()]) : refused(error::invalid_queue_index);
  }
  constexpr actions enable_queue(const queue_layout& layout) noexcept {
    if (!has_queue()) return refused(error::invalid_queue_index);
    const auto done = rules_.set_up_queue(index(), layout);
    return said(done);
  }
  /// Refused: what `in_process_transport::reset_queue` says. Its registers are as after a reset.
  constexpr actions reset_queue() noexcept {
    if (!has_queue()) return refused(error::invalid_queue_index);
    const auto done = rules_.reset_queue(index());
    if (done) state_.staged[index()] = {};
    return said(done);
  }
  /// The driver takes the queue back (QueueReady 0, legacy PFN 0); what is staged stays.
  constexpr actions disable_queue() noexcept {
    if (!has_queue()) return refused(error::invalid_queue_index);
    const auto done = rules_.disable_queue(index());
    return said(done);
  }

  /// An available buffer notification: `more_work` names the queue that is to be processed. `data`
  /// is what the driver wrote; its lower half is the queue, with NOTIFICATION_DATA too.
  /// Before DRIVER_OK nothing: what is available is looked at then.
  /// Refused: `invalid_queue_index`.
  constexpr actions notify(std::uint32_t data) noexcept {
    const std::uint32_t queue = accepted().test(feature::notification_data) ? data & 0xffff : data;
    if (queue >= queue_count() || queue >= transport_queues_max)
      return refused(error::invalid_queue_index);
    if (!is_live()) return {};
    return {.more_work = std::uint64_t{1} << queue};
  }

  /// As `in_process_transport::process`; what is due to the driver shows in the interrupt status.
  constexpr actions process(std::uint16_t queue, std::uint32_t budget) noexcept {
    return noted(rules_.process(queue, budget));
  }
  /// For what the owner of the device called on it directly.
  constexpr actions carry_out(const actions& due) noexcept { return noted(rules_.carry_out(due)); }

  // Configuration.

  [[nodiscard]] constexpr std::uint32_t config_generation() const noexcept {
    return rules_.config_generation();
  }
  /// `width`: 1, 2, 4 or 8 bytes, little-endian. All ones where it is not all configuration.
  [[nodiscard]] constexpr std::uint64_t read_config(std::uint64_t offset,
                                                    unsigned width) const noexcept {
    std::byte raw[8]{};
    std::uint64_t value = 0;
    if (!is_width(width) || offset > UINT32_MAX ||
        !rules_.read_config(static_cast<std::uint32_t>(offset), std::span(raw, width)))
      return all_ones(width);
    for (unsigned i = 0; i < width; ++i) value |= std::to_integer<std::uint64_t>(raw[i]) << (8 * i);
    return value;
  }
  /// Refused: `config_out_of_range`, what `in_process_transport::write_config` says.
  constexpr actions write_config(std::uint64_t offset, unsigned width,
                                 std::uint64_t value) noexcept {
    if (!is_width(width) || offset > UINT32_MAX) return refused(error::config_out_of_range);
    std::byte raw[8]{};
    for (unsigned i = 0; i < width; ++i) raw[i] = static_cast<std::byte>(value >> (8 * i));
    const auto done =
        rules_.write_config(static_cast<std::uint32_t>(offset), std::span(raw, width));
    return said(done);
  }

  // Interrupts.

  [[nodiscard]] constexpr std::uint8_t interrupt_status() const noexcept {
    return interrupt_status_.load();
  }
  /// Reading the ISR clears it.
  constexpr std::uint8_t take_interrupt_status() noexcept { return interrupt_status_.exchange(0); }
  constexpr void acknowledge(std::uint32_t bits) noexcept {
    interrupt_status_.merge(0, static_cast<std::uint8_t>(bits));
  }

  // Going on elsewhere.

  [[nodiscard]] constexpr device_registers_state state() const noexcept {
    device_registers_state now = state_;
    now.transport = rules_.state();
    now.interrupt_status = interrupt_status();
    return now;
  }
  /// The device is not touched.
  constexpr void restore(const device_registers_state& saved) noexcept {
    state_ = saved;
    rules_.restore(saved.transport);
    interrupt_status_.store(saved.interrupt_status);
  }
  [[nodiscard]] constexpr std::span<const queue_layout> queues() const noexcept {
    return rules_.queues();
  }

  [[nodiscard]] static constexpr bool is_width(unsigned width) noexcept {
    return width <= 8 && std::has_single_bit(width);
  }
  [[nodiscard]] static constexpr std::uint64_t all_ones(unsigned width) noexcept {
    return width >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * width)) - 1;
  }

 private:
  [[nodiscard]] constexpr bool has_queue() const noexcept {
    return state_.queue_select < queue_count() && state_.queue_select < transport_queues_max;
  }
  [[nodiscard]] constexpr std::uint16_t index() const noexcept {
    return static_cast<std::uint16_t>(state_.queue_select);
  }
  [[nodiscard]] constexpr error refusal() const noexcept {
    if (!has_queue()) return error::invalid_queue_index;
    return is_queue_enabled() ? error::wrong_state : error::none;
  }
  [[nodiscard]] static constexpr guest_address& area_of(queue_layout& layout,
                                                        queue_area which) noexcept {
    switch (which) {
    case queue_area::driver: return layout.driver_area;
    case queue_area::device: return layout.device_area;
    case queue_area::descriptor: break;
    }
    return layout.descriptor_area;
  }

  constexpr actions said(const result<void>& done) noexcept {
    actions due = noted(rules_.take_actions());
    if (due.failure == error::none) due.failure = done.error();
    return due;
  }
  /// Before the caller interrupts: the driver finds the reason.
  constexpr actions noted(const actions& due) noexcept {
    // Nobody is there to acknowledge it: what was due belongs to a driver before the reset.
    if ((status() & status::driver_ok) == 0) return due;
    std::uint8_t why = 0;
    if (due.notify_queues != 0) why |= interrupt_reason::used_buffer;
    if (due.config_changed) why |= interrupt_reason::config_change;
    if (why != 0) (void)interrupt_status_.fetch_or(why);
    return due;
  }

  Device* device_;
  in_process_transport<Device, M> rules_;
  device_registers_state state_; ///< but for the transport's part and the interrupt status
  shared_value<std::uint8_t> interrupt_status_;
};

} // namespace ballast
