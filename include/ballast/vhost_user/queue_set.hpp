// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/vhost_user/device_rings.hpp>
#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/memory_table.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace ballast::vhost_user {

/// A queue as its front end set it up.
struct queue_setup {
  ring_description ring;
  file available, used, failed; ///< notifications
  bool is_polled = false;       ///< there is no file, by intent
  bool is_enabled = false;      ///< by a message
  bool is_stopped = false;      ///< until it is set up or notified again
  bool is_notified = false;     ///< and not looked at since
};

/// The queues of a front end, and when each begins: as soon as it is set up, enabled, and notified;
/// or, since a driver that has nothing to do notifies nobody, once all that are set up could be.
/// Part of `back_end`. Hosted. Spec: "Ring states".
template <class Device, std::uint32_t QueueSize, std::uint16_t Queues, std::endian E>
class queue_set {
 public:
  queue_set(Device& served, memory_table& table) noexcept
      : device_(&served), rings_(served, table) {}

  [[nodiscard]] queue_setup& operator[](std::size_t i) noexcept { return queues_[i]; }
  [[nodiscard]] const queue_setup& operator[](std::size_t i) const noexcept { return queues_[i]; }
  [[nodiscard]] std::span<const queue_setup, Queues> all() const noexcept { return queues_; }
  [[nodiscard]] const auto& rings() const noexcept { return rings_; }
  /// How often the first queues began.
  [[nodiscard]] std::uint64_t activations() const noexcept { return activations_; }

  // What was negotiated.

  /// Whether queues wait for a message that enables them. Where bit 30 is not accepted with the
  /// features, none of them does.
  [[nodiscard]] bool has_enabling() const noexcept { return has_enabling_; }
  /// Another driver: what was set up for the one before is not the device's any more.
  [[nodiscard]] actions set_features(const feature_set& accepted, bool has_enabling) noexcept {
    actions due;
    for (std::uint16_t i = 0; i < Queues; ++i) due |= take(i);
    features_ = accepted;
    has_enabling_ = has_enabling;
    return due;
  }
  [[nodiscard]] const feature_set& features() const noexcept { return features_; }
  void set_in_band(bool is_in_band) noexcept { is_in_band_ = is_in_band; }
  void set_in_flight(std::span<std::byte> bytes, std::uint32_t queues,
                     std::uint32_t size) noexcept {
    rings_.set_in_flight(bytes, queues, size);
  }

  /// The driver writes there.
  void note_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    // A driver that was only stopped writes nothing: this one is new.
    if (rings_.given() == 0)
      for (queue_setup& q : queues_) q.ring.is_own_base = false;
    rings_.note_config(offset, from);
  }

  // What runs.

  /// Bit n: queue n is with the device and enabled.
  [[nodiscard]] std::uint64_t running() const noexcept {
    std::uint64_t bits = 0;
    for (std::uint32_t i = 0; i < Queues; ++i)
      if (rings_.has(i) && is_enabled(queues_[i])) bits |= std::uint64_t{1} << i;
    return bits;
  }
  /// Those of them that nobody notifies.
  [[nodiscard]] std::uint64_t polled() const noexcept {
    std::uint64_t bits = 0;
    for (std::uint32_t i = 0; i < Queues; ++i)
      if (queues_[i].is_polled) bits |= std::uint64_t{1} << i;
    return bits & running();
  }

  /// Begins what can begin. `is_complete`: nothing more will be set up.
  [[nodiscard]] result<actions> start_ready(bool is_complete = false) noexcept {
    std::uint64_t set_up = 0, ready = 0;
    bool is_notified = false;
    for (std::uint32_t i = 0; i < Queues; ++i) {
      const queue_setup& q = queues_[i];
      if (rings_.has(i) || q.ring.size == 0 || !q.ring.has_addresses || q.is_stopped) continue;
      set_up |= std::uint64_t{1} << i;
      if (!is_enabled(q) || !(has_source(q) || is_complete)) continue;
      ready |= std::uint64_t{1} << i;
      is_notified |= q.is_notified;
    }
    if (ready == 0 || !(is_notified || ready == set_up || rings_.given() != 0)) return actions{};
    ring_description descriptions[Queues];
    describe(descriptions);
    if (rings_.given() == 0) ++activations_;
    auto due = rings_.start(ready, features_, descriptions);
    for (std::uint32_t i = 0; due && i < Queues; ++i)
      if ((ready >> i & 1) != 0) queues_[i].is_notified = queues_[i].ring.is_own_base = false;
    return due;
  }

  /// The driver made buffers available.
  [[nodiscard]] result<actions> take_notification(std::uint16_t i, std::uint32_t budget) noexcept {
    queue_setup& q = queues_[i];
    q.is_notified = true;
    q.is_stopped = false;
    // Where only messages notify, one that comes says that the driver has set up all it wants to.
    if (!rings_.has(i)) return start_ready(is_in_band_ && !has_enabling_);
    if (!is_enabled(q)) return actions{};
    auto due = rings_.go_on();
    if (due) *due |= process(i, budget);
    return due;
  }

  actions process(std::uint16_t i, std::uint32_t budget) noexcept {
    queues_[i].is_notified = false;
    return rings_.is_attached() ? device_->process(i, budget) : actions{};
  }

  [[nodiscard]] result<actions> enable(std::uint16_t i, bool is_on, std::uint32_t budget) noexcept {
    queues_[i].is_enabled = is_on;
    if (!rings_.has(i)) return is_on ? start_ready() : result<actions>(actions{});
    if (running() == 0) rings_.pause();
    if (!is_on || running() == 0) return actions{};
    auto due = rings_.go_on();
    if (due) *due |= process(i, budget);
    return due;
  }

  // What ends.

  /// A queue is set up anew: the device has to do without it.
  [[nodiscard]] actions take(std::uint16_t i) noexcept {
    queue_setup& q = queues_[i];
    q.is_stopped = false;
    actions due;
    if (!rings_.has(i)) return due;
    rings_.take(i, due);
    q.available.close(); // another one comes with what is set up now
    q.is_polled = q.is_notified = false;
    return due;
  }

  /// A queue lies there now; one that the device has goes on there. Errors: as `stop`, and those
  /// of a start.
  [[nodiscard]] result<actions> place(std::uint16_t i, const queue_addresses& to) noexcept {
    queue_setup& q = queues_[i];
    actions due;
    if (rings_.has(i) && !is_same_place(q.ring.addresses, to)) {
      const auto base = rings_.stop(i, due);
      if (!base) return base.error();
      q.ring.base = *base;
      q.ring.is_own_base = true;
    }
    q.ring.addresses = to;
    q.ring.has_addresses = true;
    q.is_stopped = false;
    auto started = start_ready();
    if (started) *started |= due;
    return started;
  }

  /// Stops a queue; its base is in its description then. Errors: see `device_rings::stop`.
  [[nodiscard]] result<actions> stop(std::uint16_t i) noexcept {
    queue_setup& q = queues_[i];
    actions due;
    if (rings_.has(i)) {
      const auto base = rings_.stop(i, due);
      if (!base) return base.error();
      q.ring.base = *base;
      q.ring.is_own_base = true;
    }
    q.available.close();
    q.is_polled = q.is_notified = false;
    q.is_stopped = true;
    return due;
  }

  /// The device does not look at the memory until it is notified.
  void pause() noexcept { rings_.pause(); }

  /// `change` changes the memory while the device does not look. Errors: `wrong_state` (it has
  /// queues and cannot let go of them), the change's, the queues'.
  template <class Change> [[nodiscard]] result<actions> while_detached(Change&& change) noexcept {
    if (rings_.given() != 0 && !rings_.is_resumable) return error::wrong_state;
    const bool was_attached = rings_.is_attached();
    rings_.pause();
    const error why = change();
    if (rings_.given() == 0 && why != error::none) return why;
    if (rings_.given() == 0) return actions{};
    ring_description descriptions[Queues];
    describe(descriptions);
    auto due = rings_.move(descriptions, was_attached);
    if (due && why != error::none) due->failure = why;
    return due;
  }

  void reset_device() noexcept {
    rings_.reset();
    for (queue_setup& q : queues_) {
      file used = std::move(q.used); // some are still listening there
      q = {};
      q.used = std::move(used);
    }
  }
  void disconnect() noexcept {
    rings_.disconnect();
    rings_.set_in_flight({}, 0, 0);
    for (queue_setup& q : queues_) q = {};
    features_ = {};
    has_enabling_ = is_in_band_ = false;
  }

 private:
  [[nodiscard]] static bool is_same_place(const queue_addresses& a,
                                          const queue_addresses& b) noexcept {
    return a.descriptor_area == b.descriptor_area && a.driver_area == b.driver_area &&
           a.device_area == b.device_area;
  }

  /// Without protocol features a queue is enabled from the start.
  [[nodiscard]] bool is_enabled(const queue_setup& q) const noexcept {
    return q.is_enabled || !has_enabling_;
  }
  /// Whether a notification can come, or came.
  [[nodiscard]] bool has_source(const queue_setup& q) const noexcept {
    return q.available.is_open() || q.is_polled || q.is_notified || (is_in_band_ && has_enabling_);
  }
  void describe(std::span<ring_description, Queues> to) const noexcept {
    for (std::uint32_t i = 0; i < Queues; ++i) to[i] = queues_[i].ring;
  }

  Device* device_;
  device_rings<Device, QueueSize, Queues, E> rings_;
  queue_setup queues_[Queues];
  feature_set features_;
  std::uint64_t activations_ = 0;
  bool has_enabling_ = false;
  bool is_in_band_ = false;
};

} // namespace ballast::vhost_user
