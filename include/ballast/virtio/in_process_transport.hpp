// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/shared_value.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// Queues that a transport can have: a bit of `actions` for each.
inline constexpr std::uint16_t transport_queues_max = 64;

/// What a transport remembers of its driver: for whoever saves a device, or goes on after the
/// process that served it has died.
struct transport_state {
  std::uint8_t status = 0;
  feature_set driver_features;
  queue_layout queues[transport_queues_max]{}; ///< size 0: not enabled
  bool is_reset[transport_queues_max]{};       ///< taken from the live device, not given back yet

  friend constexpr bool operator==(const transport_state&,
                                   const transport_state&) noexcept = default;
};

/// Joins a driver and a device of one process, without a bus: for simulators, tests and benches,
/// and the pattern of a transport.
///
///     in_process_transport transport(device, ram);      // both outlive it
///     auto accepted = negotiate(transport, {...});      // the driver's side
///     for (auto queues = transport.take_notified(); ...) // the device's side, a loop
///       apply(transport.process(queue, budget));        // the caller notifies the driver
///
/// Keeps the driver to the rules, as a transport of a guest must. A write of a register that breaks
/// one does nothing, and `take_actions().failure` says which.
/// A legacy driver's use of a queue before DRIVER_OK waits until then.
///
/// Ordering: any thread may call `notify`, `take_notified`, `status`, `config_generation`,
/// `read_config`, and the members about identity, offers and queue limits. The caller serialises
/// the rest, both sides together, as a VMM's lock around a device's registers and its loop does.
template <class Device, guest_memory M>
  requires device_model<Device, M>
class in_process_transport {
 public:
  static constexpr std::uint16_t max_queues = transport_queues_max;

  /// Features that change how the two sides talk and that this transport does not carry out; they
  /// are never offered. Spec: "Feature Bits".
  static constexpr feature_set unsupported_features{feature::sr_iov, feature::notification_data,
                                                    feature::notif_config_data, feature::admin_vq,
                                                    feature::suspend};

  /// `unsupported`: for a transport built on this one that carries out more of them, or less.
  constexpr in_process_transport(Device& device, M& memory,
                                 const feature_set& unsupported = unsupported_features) noexcept
      : device_(&device), memory_(&memory), unsupported_(unsupported) {}
  // A copy would be a second set of registers of one device.
  in_process_transport(const in_process_transport&) = delete;
  in_process_transport& operator=(const in_process_transport&) = delete;

  // The driver's side: models driver_transport.

  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return device_->device_id(); }

  [[nodiscard]] constexpr feature_set device_features() const noexcept {
    return device_->offered_features() - unsupported_;
  }

  /// Refused: `wrong_state` after FEATURES_OK.
  constexpr void set_driver_features(const feature_set& accepted) noexcept {
    if (status_.is_accepting_features())
      state_.driver_features = accepted;
    else
      pending_ |= refused(error::wrong_state);
  }

  [[nodiscard]] constexpr std::uint8_t status() const noexcept { return status_.read(); }

  /// Resets, checks features or activates the device as the bits say.
  /// Refused: what `device_status::write`, `check_accepted` and the device say.
  constexpr void set_status(std::uint8_t bits) noexcept {
    const auto step = status_.write(bits, state_.driver_features);
    if (!step) {
      pending_ |= refused(step.error());
      return;
    }
    switch (*step) {
    case status_step::none: break;
    case status_step::reset: reset(); break;
    case status_step::check_features:
      if (are_features_accepted()) status_.confirm(*step);
      break;
    case status_step::activate:
      // A legacy driver's features are checked only here: it has no FEATURES_OK.
      if (are_features_accepted()) activate();
      break;
    }
  }

  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) const noexcept {
    return queue < queue_count() ? device_->queue_size_max(queue) : 0;
  }

  /// Errors: `wrong_state` (before the features are agreed, once the device is live, or a second
  /// time: an enabled queue keeps its geometry until the reset), `invalid_queue_index`,
  /// `queue_unavailable`, `invalid_queue_size`.
  [[nodiscard]] constexpr result<void> set_up_queue(std::uint16_t queue,
                                                    const queue_layout& layout) noexcept {
    if (queue >= queue_count()) return error::invalid_queue_index;
    const bool is_again = status_.is_live() && state_.is_reset[queue];
    if ((!is_again && !status_.is_accepting_queues(state_.driver_features)) ||
        state_.queues[queue].size != 0)
      return error::wrong_state;
    const std::uint32_t size_max = queue_size_max(queue);
    if (size_max == 0) return error::queue_unavailable;
    if (layout.size == 0 || layout.size > size_max || layout.size > max_queue_size)
      return error::invalid_queue_size;
    if (!state_.driver_features.test(feature::ring_packed) && !std::has_single_bit(layout.size))
      return error::invalid_queue_size;
    if (is_again) {
      const actions done = carry_out(device_->enable_queue(queue, layout));
      pending_ |= done;
      if (done.failure != error::none) return done.failure;
      state_.is_reset[queue] = false;
    }
    state_.queues[queue] = layout;
    return {};
  }

  /// Takes a queue from the live device; `set_up_queue` gives it back.
  /// Errors: `not_negotiated` (RING_RESET), `wrong_state`, `invalid_queue_index` (no such queue, or
  /// not one that is enabled). Spec: "Virtqueue Reset".
  [[nodiscard]] constexpr result<void> reset_queue(std::uint16_t queue) noexcept {
    if (!state_.driver_features.test(feature::ring_reset)) return error::not_negotiated;
    if (!status_.is_live()) return error::wrong_state;
    if (queue >= queue_count() || state_.queues[queue].size == 0) return error::invalid_queue_index;
    pending_ |= carry_out(device_->reset_queue(queue));
    state_.queues[queue] = {};
    state_.is_reset[queue] = true;
    return {};
  }

  /// Takes a queue back, without RING_RESET: what a driver's "not ready" does. From a live device
  /// it is taken at once; `set_up_queue` gives it back. A queue that is not enabled stays so.
  /// Errors: `invalid_queue_index`.
  [[nodiscard]] constexpr result<void> disable_queue(std::uint16_t queue) noexcept {
    if (queue >= queue_count()) return error::invalid_queue_index;
    if (state_.queues[queue].size == 0) return {};
    // A broken device too: it may be asked for something.
    if ((status_.read() & status::driver_ok) != 0) {
      pending_ |= carry_out(device_->reset_queue(queue));
      state_.is_reset[queue] = true;
    }
    state_.queues[queue] = {};
    return {};
  }

  [[nodiscard]] constexpr std::uint32_t config_generation() const noexcept {
    return device_->config_generation();
  }

  /// Allowed in every status. Errors: `config_out_of_range`; what the device says.
  [[nodiscard]] constexpr result<void> read_config(std::uint32_t offset,
                                                   std::span<std::byte> to) const noexcept {
    if (!is_config(offset, to.size())) return error::config_out_of_range;
    return static_cast<const Device*>(device_)->read_config(offset, to);
  }

  /// Errors: `config_out_of_range`, `wrong_state` (during negotiation), what the device says.
  [[nodiscard]] constexpr result<void> write_config(std::uint32_t offset,
                                                    std::span<const std::byte> from) noexcept {
    if (!is_config(offset, from.size())) return error::config_out_of_range;
    if (!status_.is_accepting_config(state_.driver_features)) return error::wrong_state;
    actions done = carry_out(device_->write_config(offset, from));
    const error failure = done.failure;
    if (!done.needs_reset)
      done.failure = error::none; // the driver is told; the VMM has nothing to do about it
    pending_ |= done;
    return failure;
  }

  /// Remembers that the driver made buffers available; no such queue is no queue.
  constexpr void notify(std::uint16_t queue) noexcept {
    if (queue < queue_count()) notified_.fetch_or(std::uint64_t{1} << queue);
  }

  // The device's side: the loop of whoever runs it.

  /// The queues (bit n: queue n) notified since the last call.
  [[nodiscard]] constexpr std::uint64_t take_notified() noexcept { return notified_.exchange(0); }

  /// What became due through the driver's writes of registers since the last call.
  constexpr actions take_actions() noexcept {
    const actions due = pending_;
    pending_ = {};
    return due;
  }

  /// Handles at most `budget` buffers of a queue; nothing unless the device is live.
  /// Refused: `invalid_queue_index`: no such queue, or not one that was set up.
  constexpr actions process(std::uint16_t queue, std::uint32_t budget) noexcept {
    if (queue >= queue_count()) return refused(error::invalid_queue_index);
    if (!status_.is_live()) return {};
    if (state_.queues[queue].size == 0) return refused(error::invalid_queue_index);
    return carry_out(device_->process(queue, budget));
  }

  /// Sets NEEDS_RESET where `due` asks for it, and gives what is left for the caller to do. For
  /// actions of calls that the owner of the device made on it directly; `process` has done it.
  constexpr actions carry_out(actions due) noexcept {
    if (due.needs_reset && status_.set_needs_reset()) due.config_changed = true;
    return due;
  }

  [[nodiscard]] constexpr bool is_live() const noexcept { return status_.is_live(); }
  /// What the driver has set up so far; size 0: not enabled.
  [[nodiscard]] constexpr std::span<const queue_layout> queues() const noexcept {
    return {state_.queues, queue_count()};
  }
  [[nodiscard]] constexpr transport_state state() const noexcept {
    transport_state now = state_;
    now.status = status_.read();
    return now;
  }
  /// Goes on from a state that was this transport's. The device is not touched: whoever calls this
  /// lets it go on too.
  constexpr void restore(const transport_state& saved) noexcept {
    state_ = saved;
    status_.restore(saved.status);
  }

  /// What the driver has accepted so far.
  [[nodiscard]] constexpr const feature_set& driver_features() const noexcept {
    return state_.driver_features;
  }

 private:
  [[nodiscard]] constexpr std::uint16_t queue_count() const noexcept {
    const std::uint16_t n = device_->queue_count();
    return n < max_queues ? n : max_queues;
  }

  [[nodiscard]] constexpr bool is_config(std::uint32_t offset, std::size_t size) const noexcept {
    const std::uint32_t end = device_->config_size();
    return offset <= end && size <= end - offset;
  }

  constexpr bool are_features_accepted() noexcept {
    result<void> checked =
        check_accepted(device_features(), state_.driver_features, ring_feature_dependencies);
    if (checked) checked = device_->check_features(state_.driver_features);
    pending_ |= refused(checked.error());
    return checked.has_value();
  }

  constexpr void activate() noexcept {
    const std::span<const queue_layout> queues(state_.queues, queue_count());
    const actions done = device_->activate(state_.driver_features, queues, *memory_);
    // Refused, the device did nothing: DRIVER_OK stays clear and the driver sees it. A device that
    // broke while it activated is live and needs a reset.
    if (done.failure == error::none || done.needs_reset) status_.confirm(status_step::activate);
    pending_ |= carry_out(done);
  }

  constexpr void reset() noexcept {
    device_->reset();
    state_ = {};
    pending_ = {};
    (void)notified_.exchange(0);
    // Last: a status of 0 says that nothing is notified and no queue is touched any more.
    status_.confirm(status_step::reset);
  }

  Device* device_;
  M* memory_;
  feature_set unsupported_;
  device_status status_;
  transport_state state_; ///< but for the status, which other threads read
  shared_value<std::uint64_t> notified_;
  actions pending_;
};

} // namespace ballast
