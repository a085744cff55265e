// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/in_flight_memory.hpp>
#include <ballast/vhost_user/in_flight_region.hpp>
#include <ballast/vhost_user/memory_table.hpp>
#include <ballast/vhost_user/message.hpp>
#include <ballast/vhost_user/protocol.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_rings.hpp>
#include <ballast/virtqueue/resumable_device.hpp>
#include <ballast/virtqueue/split_rings.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::vhost_user {

/// The memory policy of a device that is served over vhost-user, with queues of up to `QueueSize`
/// entries: guest memory that is mapped here, and the log of the chains that the device holds.
template <std::uint32_t QueueSize, std::endian E = std::endian::little>
using device_memory = in_flight_memory<mapped_memory, mapped_memory::window_type, QueueSize, E>;

/// A queue as a front end describes it, before the device has it.
struct ring_description {
  std::uint32_t size = 0; ///< entries; 0: not told yet
  queue_addresses addresses;
  bool has_addresses = false;
  std::uint32_t base = 0; ///< split: next available; packed: that, and next used in the upper half
  bool is_own_base = false; ///< this back end said so when the queue stopped
};

/// Which queues a device has, and where they are: gives them to it, takes them away, and keeps them
/// over changes of the memory. Part of `back_end`, which says when. Hosted.
template <class Device, std::uint32_t QueueSize, std::uint16_t Queues, std::endian E>
  requires device_model<Device, device_memory<QueueSize, E>>
class device_rings {
 public:
  using memory_type = device_memory<QueueSize, E>;
  static constexpr bool is_resumable = resumable_device_model<Device, memory_type>;

  device_rings(Device& served, memory_table& table) noexcept : device_(&served), table_(&table) {}
  device_rings(const device_rings&) = delete;
  device_rings& operator=(const device_rings&) = delete;

  /// Bit n: the device has queue n.
  [[nodiscard]] std::uint64_t given() const noexcept { return given_; }
  [[nodiscard]] bool has(std::uint32_t queue) const noexcept { return (given_ >> queue & 1) != 0; }
  /// Whether the device may touch its queues.
  [[nodiscard]] bool is_attached() const noexcept { return given_ != 0 && !is_detached_; }

  /// The area where the chains that are held are noted; an empty one: nowhere.
  void set_in_flight(std::span<std::byte> bytes, std::uint32_t queues,
                     std::uint32_t size) noexcept {
    area_ = bytes;
    area_queues_ = queues;
    area_size_ = size;
  }

  /// What the driver writes into the configuration before its queues begin outlives the reset that
  /// they begin with.
  void note_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    if (given_ != 0) return;
    for (std::size_t i = 0; i < from.size() && offset < config_bytes_max - i; ++i) {
      config_[offset + i] = from[i];
      is_written_[offset + i] = true;
    }
  }

  /// Gives queues to the device. `which`: all that are to begin now; if it has none yet, that
  /// activates it. A driver that was there before goes on where it was, which a position or a
  /// log of what was held shows; otherwise the device is reset first.
  /// Errors: the memory's, `invalid_queue_size`, `storage_too_small`, `state_invalid` (a position
  /// that cannot be), `in_flight_invalid`, `wrong_state` (a device that can't go on would have to),
  /// what the device says; then the device has no queue.
  [[nodiscard]] result<actions> start(std::uint64_t which, const feature_set& features,
                                      std::span<const ring_description> rings) noexcept {
    memory_ = memory_type(table_->memory(), logs_);
    features_ = features;
    bool is_resumed = false;
    for (std::uint16_t i = 0; i < Queues; ++i) {
      if ((which >> i & 1) == 0) continue;
      positions_[i] = {};
      const auto begun = begin(i, rings[i], is_resumed);
      if (!begun) return failed(begun.error());
    }
    return given_ == 0 ? start_device(which, is_resumed) : start_more(which, is_resumed);
  }

  /// Takes a queue from the device. Its base, as GET_VRING_BASE has it.
  /// Errors: `wrong_state` (a device that cannot tell).
  [[nodiscard]] result<std::uint32_t> stop(std::uint16_t queue, actions& due) noexcept {
    const auto base = position_of(queue);
    if (!base) return base;
    take(queue, due);
    return base;
  }
  /// Takes a queue from the device, wherever it is.
  void take(std::uint16_t queue, actions& due) noexcept {
    if (!has(queue)) return;
    due |= device_->reset_queue(queue);
    forget_log(queue);
    layouts_[queue] = {};
    given_ &= ~(std::uint64_t{1} << queue);
    if (given_ == 0) pause();
  }

  /// The device lets go of the memory and remembers its queues.
  void pause() noexcept {
    if constexpr (is_resumable) {
      if (is_active_ && !is_detached_) device_->detach();
    }
    is_detached_ = true;
  }
  /// ... and takes them up again. Errors: the device's.
  [[nodiscard]] result<actions> go_on() noexcept {
    if (given_ == 0 || !is_detached_) return actions{};
    is_detached_ = false;
    if constexpr (is_resumable) {
      const actions due = device_->attach(layouts_, memory_);
      if (is_refused(due)) return failed(due.failure);
      return due;
    }
    return actions{.more_work = given_};
  }

  /// The memory is another one now, and the queues lie where `rings` say. The device was paused
  /// for that; `goes_on`: and only for that.
  /// Errors: `not_guest_memory`, the device's; then the device has no queue.
  [[nodiscard]] result<actions> move(std::span<const ring_description> rings,
                                     bool goes_on) noexcept {
    memory_ = memory_type(table_->memory(), logs_);
    for (std::uint16_t i = 0; i < Queues; ++i) {
      if (!has(i)) continue;
      const auto at = locate(rings[i]);
      if (!at) return failed(at.error());
      layouts_[i] = *at;
      logs_[i].place(*at);
    }
    return goes_on ? go_on() : result<actions>(actions{});
  }

  /// The driver is gone, or may be: the device lets go of everything. It is not reset: if this
  /// driver comes back, it goes on.
  void disconnect() noexcept {
    pause();
    if constexpr (!is_resumable) device_->reset();
    forget();
  }
  /// The driver begins anew.
  void reset() noexcept {
    pause();
    device_->reset();
    is_active_ = false;
    for (std::byte& b : area_) b = std::byte{};
    forget();
  }

 private:
  using log_type = typename memory_type::log_type;

  /// The next start is from the queue's base alone.
  void forget_log(std::uint16_t queue) noexcept {
    logs_[queue].stop();
    const std::span<std::byte> bytes = region(queue);
    if (!bytes.empty()) write_as(bytes, in_flight::version, std::uint16_t{0});
  }

  void forget() noexcept {
    for (bool& is_written : is_written_) is_written = false;
    for (log_type& log : logs_) log.stop();
    for (queue_layout& layout : layouts_) layout = {};
    given_ = 0;
  }

  /// A device that broke over what it found in a ring has begun all the same.
  [[nodiscard]] static bool is_refused(const actions& due) noexcept {
    return due.failure != error::none && !due.needs_reset;
  }
  [[nodiscard]] error failed(error why) noexcept {
    disconnect();
    return why;
  }

  [[nodiscard]] result<queue_layout> locate(const ring_description& ring) const noexcept {
    const auto descriptors = table_->guest_address_of(ring.addresses.descriptor_area);
    const auto driver = table_->guest_address_of(ring.addresses.driver_area);
    const auto device = table_->guest_address_of(ring.addresses.device_area);
    if (!descriptors || !driver || !device) return error::not_guest_memory;
    const queue_layout at{ring.size, *descriptors, *driver, *device};
    // What the device would only break over.
    auto ram = table_->memory();
    const error e = is_packed() ? map_packed_rings(ram, at, queue_side::device, QueueSize).error()
                                : map_rings(ram, at, queue_side::device, QueueSize).error();
    if (e != error::none) return e;
    return at;
  }

  [[nodiscard]] bool is_packed() const noexcept { return features_.test(feature::ring_packed); }

  [[nodiscard]] std::span<std::byte> region(std::uint16_t queue) const noexcept {
    const std::uint64_t bytes = in_flight::region_bytes(area_size_, is_packed());
    if (queue >= area_queues_ || bytes * (queue + 1u) > area_.size()) return {};
    return area_.subspan(static_cast<std::size_t>(bytes * queue), static_cast<std::size_t>(bytes));
  }

  /// Finds out where a queue lies and where it goes on.
  [[nodiscard]] result<void> begin(std::uint16_t i, const ring_description& ring,
                                   bool& is_resumed) noexcept {
    const auto at = locate(ring);
    if (!at) return at.error();
    layouts_[i] = *at;
    auto ram = table_->memory();
    if (!area_.empty()) {
      const auto bytes = region(i);
      if (bytes.empty() || ring.size > area_size_) return error::in_flight_invalid;
      const bool is_used = read_as<std::uint16_t>(bytes, in_flight::version) != 0;
      const auto fresh = ring.base == 0 && !ring.is_own_base ? packed_start : ring.base >> 16;
      const auto state = logs_[i].resume(mapped_memory::window_type(bytes.data()), ram, *at,
                                         is_packed(), static_cast<std::uint16_t>(fresh));
      if (!state) return state.error();
      positions_[i] = *state;
      is_resumed |= is_used || !is_start(ring);
      return {};
    }
    if (is_start(ring)) return {};
    is_resumed = true;
    return find_position(ring, *at, ram, positions_[i]);
  }

  static constexpr std::uint16_t packed_start = 0x8000; // both wrap counters are 1 at first

  /// Whether a base is that of a queue that has not been used. Not every front end knows where a
  /// packed one begins: 0 means that too, unless it was the answer when the queue was stopped.
  [[nodiscard]] bool is_start(const ring_description& ring) const noexcept {
    return !ring.is_own_base &&
           (ring.base == 0 ||
            (is_packed() && ring.base == (packed_start | std::uint32_t{packed_start} << 16)));
  }

  /// Where a queue is without a log: what is between its used and its available position was
  /// popped by somebody and not returned, and is popped again.
  [[nodiscard]] result<void> find_position(const ring_description& ring, const queue_layout& at,
                                           mapped_memory& ram,
                                           device_queue_state& position) noexcept {
    const auto available = static_cast<std::uint16_t>(ring.base);
    position.is_packed = is_packed();
    position.size = ring.size;
    position.unasked = unasked_max;
    if (is_packed()) {
      position.next_used = static_cast<std::uint16_t>(ring.base >> 16);
      const auto from = ring_place::of(position.next_used), to = ring_place::of(available);
      if (from.index >= ring.size || to.index >= ring.size ||
          entries_between(from, to, ring.size) > ring.size)
        return error::state_invalid;
    } else {
      const auto used = ram.window(at.device_area, split::used_ring_bytes(at.size),
                                   split::used_ring_alignment, access::write);
      if (!used) return used.error();
      position.next_used =
          to_order<E>(used->template load<std::uint16_t>(split::used_index, order::acquire));
      if (static_cast<std::uint16_t>(available - position.next_used) > ring.size)
        return error::state_invalid;
    }
    position.next_available = position.next_used;
    return {};
  }

  [[nodiscard]] result<actions> start_device(std::uint64_t which, bool is_resumed) noexcept {
    for (std::uint16_t i = 0; i < Queues; ++i)
      if ((which >> i & 1) == 0) layouts_[i] = {};
    // A front end need not have said which it accepts.
    if (const auto checked = device_->check_features(features_); !checked)
      return failed(checked.error());
    given_ = which;
    is_detached_ = false;
    actions due;
    if (!is_resumed) {
      device_->reset();
      for (std::uint32_t i = 0; i < config_bytes_max; ++i)
        if (is_written_[i]) (void)device_->write_config(i, std::span(config_ + i, 1));
      due = device_->activate(features_, layouts_, memory_);
    } else if constexpr (is_resumable) {
      due = device_->resume(features_, layouts_, memory_, positions_);
    } else {
      due = refused(error::wrong_state);
    }
    is_active_ = !is_refused(due);
    if (!is_active_) return failed(due.failure);
    for (bool& is_written : is_written_) is_written = false;
    return due;
  }

  [[nodiscard]] result<actions> start_more(std::uint64_t which, bool is_resumed) noexcept {
    auto on = go_on();
    if (!on) return on;
    actions due = *on;
    if (!is_resumed) {
      for (std::uint16_t i = 0; i < Queues; ++i)
        if ((which >> i & 1) != 0) due |= device_->enable_queue(i, layouts_[i]);
    } else if constexpr (is_resumable) {
      // Only all of them together begin in their middle.
      for (std::uint16_t i = 0; i < Queues; ++i) {
        if (!has(i)) continue;
        const auto now = device_->queue_state(i);
        if (!now) return failed(now.error());
        positions_[i] = *now;
        if (!logs_[i].is_on()) continue;
        auto ram = table_->memory();
        const auto again = logs_[i].resume(mapped_memory::window_type(region(i).data()), ram,
                                           layouts_[i], is_packed(), now->next_used);
        if (!again) return failed(again.error());
      }
      device_->detach();
      due |= device_->resume(features_, layouts_, memory_, positions_);
    } else {
      due = refused(error::wrong_state);
    }
    if (is_refused(due)) return failed(due.failure);
    given_ |= which;
    return due;
  }

  [[nodiscard]] result<std::uint32_t> position_of(std::uint16_t queue) noexcept {
    if constexpr (is_resumable) {
      const auto now = device_->queue_state(queue);
      if (!now) return now.error();
      return now->is_packed ? now->next_available | std::uint32_t{now->next_used} << 16
                            : std::uint32_t{now->next_available};
    } else {
      if (is_packed()) return error::wrong_state;
      auto ram = table_->memory();
      const auto used =
          ram.window(layouts_[queue].device_area, split::used_ring_bytes(layouts_[queue].size),
                     split::used_ring_alignment, access::write);
      if (!used) return used.error();
      return std::uint32_t{
          to_order<E>(used->template load<std::uint16_t>(split::used_index, order::acquire))};
    }
  }

  Device* device_;
  memory_table* table_;
  std::span<std::byte> area_;
  std::uint32_t area_queues_ = 0;
  std::uint32_t area_size_ = 0; ///< entries of each queue
  feature_set features_;
  log_type logs_[Queues];
  memory_type memory_{mapped_memory(), logs_};
  queue_layout layouts_[Queues]{};
  device_queue_state positions_[Queues]{};
  std::byte config_[config_bytes_max];
  bool is_written_[config_bytes_max]{}; ///< of `config_`, while there was no queue
  std::uint64_t given_ = 0;
  bool is_active_ = false;
  bool is_detached_ = true;
};

} // namespace ballast::vhost_user
