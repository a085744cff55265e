// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstdint>
#include <span>

namespace ballast {

/// What a driver remembers of one descriptor; never shared with the device.
struct driver_slot {
  std::uint64_t token = 0;       ///< of the chain that starts here
  std::uint32_t writable = 0;    ///< bytes the device may write to that chain
  std::uint16_t next = 0;        ///< in the free list, and along a chain
  std::uint16_t last = 0;        ///< the last descriptor of that chain
  std::uint16_t descriptors = 0; ///< of that chain; 0: no chain in flight starts here
};

/// A chain the device returned.
struct used_buffer {
  std::uint64_t token = 0;
  /// Bytes the device says it wrote, at most what it was allowed to write.
  std::uint32_t length = 0;
};

/// The driver's side of a split virtqueue, in the byte order `E`.
///
///     std::array<driver_slot, 256> slots;
///     split_driver<my_memory> queue(slots);
///     queue.start(memory, layout, features);
///     queue.add(readable, writable, token);      // stages
///     queue.publish();                           // one release store for all that is staged
///     if (queue.should_notify()) ...;            // the caller rings
///     while (auto used = queue.pop_used()) ...;  // used->token, used->length
///
/// The device is not trusted: the free list and the lengths are private, nothing that was written
/// is read back, and each word the device writes is read once. A device that breaks a rule breaks
/// the queue: `cause()` says which, until the next `start`.
/// Every call is bounded and never waits. One thread at a time.
/// Spec: "Split Virtqueues".
template <guest_memory M, std::endian E = std::endian::little> class split_driver {
 public:
  /// `slots` must outlive the queue; its size bounds the queue size.
  constexpr explicit split_driver(std::span<driver_slot> slots) noexcept : slots_(slots) {}

  /// Begins a new life: forgets what was in flight, initialises the rings in memory, attaches.
  /// `first_index` is where both indices begin (0 on real devices).
  /// Errors: `invalid_queue_size`, `storage_too_small`, the memory's; the queue is detached then.
  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0) noexcept {
    detach();
    if (!split::is_valid_size(layout.size)) return error::invalid_queue_size;
    if (layout.size > slots_.size()) return error::storage_too_small;
    auto used = memory.window(layout.device_area, split::used_ring_bytes(layout.size),
                              split::used_ring_alignment, access::write);
    if (!used) return used.error();
    if (const auto mapped = map(memory, layout, features); !mapped) return mapped;
    size_ = layout.size;
    next_available_ = published_ = notified_ = next_used_ = first_index;
    cause_ = error::none;
    in_flight_ = 0;
    free_ = size_;
    first_free_ = 0;
    for (std::uint32_t i = 0; i < size_; ++i)
      slots_[i] = {.next = static_cast<std::uint16_t>(i + 1 == size_ ? 0 : i + 1)};
    const auto index = to_order<E>(first_index);
    available_.template store<std::uint16_t>(split::available_flags, 0, order::relaxed);
    available_.template store<std::uint16_t>(split::available_index, index, order::relaxed);
    available_.template store<std::uint16_t>(split::used_event(size_), index, order::relaxed);
    used->template store<std::uint16_t>(split::used_flags, 0, order::relaxed);
    used->template store<std::uint16_t>(split::used_index, index, order::relaxed);
    used->template store<std::uint16_t>(split::available_event(size_), index, order::relaxed);
    return {};
  }

  /// Takes up the queue again where `detach` left it; it may lie elsewhere, of the same size.
  /// Errors: `already_attached`, `invalid_queue_size`, the memory's.
  constexpr result<void> attach(M& memory, const queue_layout& layout,
                                const feature_set& features) noexcept {
    if (is_attached()) return error::already_attached;
    if (layout.size != size_ || size_ == 0) return error::invalid_queue_size;
    return map(memory, layout, features);
  }

  /// Lets go of the memory and keeps the indices, what is in flight and the cause.
  constexpr void detach() noexcept { memory_ = nullptr; }

  [[nodiscard]] constexpr bool is_attached() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr std::uint32_t free_descriptors() const noexcept { return free_; }
  /// Chains the device has not returned yet, staged ones included.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept { return in_flight_; }
  /// Which bound the device broke; `error::none` while the queue works.
  [[nodiscard]] constexpr error cause() const noexcept { return cause_; }

  /// Stages a chain: the buffers the device reads, then those it writes. `token` comes back with
  /// the chain. Nothing changes where it fails.
  /// Errors: `queue_full`, `empty_chain`, `chain_too_long`, `chain_bytes_overflow`,
  /// `not_attached`, `memory_lost`, the cause of a broken queue.
  constexpr result<void> add(std::span<const buffer> readable, std::span<const buffer> writable,
                             std::uint64_t token) noexcept {
    if (const error e = usable(); e != error::none) return e;
    const std::uint64_t count = readable.size() + writable.size();
    if (count == 0) return error::empty_chain;
    if (count > size_) return error::chain_too_long;
    if (count > free_) return error::queue_full;
    const std::uint64_t writable_bytes = total_bytes(writable);
    if (total_bytes(readable) + writable_bytes > 0xffff'ffff) return error::chain_bytes_overflow;
    if (!memory_->good()) return error::memory_lost;

    const std::uint16_t head = first_free_;
    std::uint16_t at = head, last = head;
    std::uint64_t left = count;
    const auto put = [&](const buffer& b, std::uint16_t flags) {
      last = at;
      at = slots_[at].next;
      const bool has_next = --left != 0;
      if (has_next) flags = static_cast<std::uint16_t>(flags | split::flag_next);
      table_.template store<std::uint64_t>(split::descriptor_address(last), to_order<E>(b.address),
                                           order::plain);
      table_.template store<std::uint64_t>(
          split::descriptor_rest(last),
          split::pack<E>({b.length, flags, has_next ? at : std::uint16_t{0}}), order::plain);
    };
    for (const buffer& b : readable) put(b, 0);
    for (const buffer& b : writable) put(b, split::flag_write);

    driver_slot& slot = slots_[head];
    slot.token = token;
    slot.writable = static_cast<std::uint32_t>(writable_bytes);
    slot.last = last;
    slot.descriptors = static_cast<std::uint16_t>(count);
    first_free_ = at;
    free_ -= static_cast<std::uint32_t>(count);
    ++in_flight_;
    available_.template store<std::uint16_t>(split::available_entry(next_available_ & (size_ - 1)),
                                             to_order<E>(head), order::plain);
    ++next_available_;
    return {};
  }

  /// Makes all staged chains available to the device.
  /// Ordering: one release store of the available index, paired with the device's acquire load.
  constexpr void publish() noexcept {
    if (!is_attached() || published_ == next_available_) return;
    published_ = next_available_;
    available_.template store<std::uint16_t>(split::available_index,
                                             to_order<E>(static_cast<std::uint16_t>(published_)),
                                             order::release);
  }

  /// Whether the device wants an available buffer notification for what was published since the
  /// last call.
  /// Ordering: one full fence between the index store and the load of the device's event word;
  /// pairs with the one in the device's `enable_notifications`.
  /// Spec: "Available Buffer Notification Suppression".
  [[nodiscard]] constexpr bool should_notify() noexcept {
    if (!is_attached()) return false;
    const std::uint32_t old = notified_;
    if (old == published_) return false;
    notified_ = published_;
    memory_->fence();
    if (!has_event_index_) {
      const auto flags =
          to_order<E>(used_.template load<std::uint16_t>(split::used_flags, order::relaxed));
      return (flags & split::no_notify) == 0;
    }
    const auto event = to_order<E>(
        used_.template load<std::uint16_t>(split::available_event(size_), order::relaxed));
    if (published_ - old > 0xffff) return true; // the 16-bit comparison would miss a whole round
    return need_event(event, static_cast<std::uint16_t>(published_),
                      static_cast<std::uint16_t>(old));
  }

  /// The next chain the device returned; its descriptors are free again.
  /// Ordering: an acquire load of the used index.
  /// Errors: `queue_empty`, `not_attached`, `memory_lost`; `used_index_jump`,
  /// `used_id_out_of_range`, `used_id_not_in_flight` break the queue.
  [[nodiscard]] constexpr result<used_buffer> pop_used() noexcept {
    if (const error e = usable(); e != error::none) return e;
    const auto index =
        to_order<E>(used_.template load<std::uint16_t>(split::used_index, order::acquire));
    const auto returned = static_cast<std::uint16_t>(index - next_used_);
    if (!memory_->good()) return error::memory_lost;
    if (returned == 0) return error::queue_empty;
    // What is staged but not published can't have been returned either.
    if (returned > in_flight_ - (next_available_ - published_))
      return broken(error::used_index_jump);
    const std::uint32_t entry = next_used_ & (size_ - 1);
    const auto id =
        to_order<E>(used_.template load<std::uint32_t>(split::used_id(entry), order::plain));
    const auto length =
        to_order<E>(used_.template load<std::uint32_t>(split::used_length(entry), order::plain));
    if (!memory_->good()) return error::memory_lost;
    if (id >= size_) return broken(error::used_id_out_of_range);
    driver_slot& slot = slots_[id];
    if (slot.descriptors == 0) return broken(error::used_id_not_in_flight);

    // The chain's own links are still in the slots, so it goes back to the free list in one piece.
    slots_[slot.last].next = first_free_;
    first_free_ = static_cast<std::uint16_t>(id);
    free_ += slot.descriptors;
    slot.descriptors = 0;
    --in_flight_;
    ++next_used_;
    return used_buffer{slot.token, length < slot.writable ? length : slot.writable};
  }

  /// Asks for a used buffer notification of the next returned chain; true where one is already
  /// there, which is then not notified: pop again before sleeping.
  /// Ordering: one full fence between the event word and the load of the used index; pairs with the
  /// one in the device's `should_notify`.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    if (!is_attached()) return false;
    if (has_event_index_)
      available_.template store<std::uint16_t>(split::used_event(size_),
                                               to_order<E>(static_cast<std::uint16_t>(next_used_)),
                                               order::relaxed);
    else
      available_.template store<std::uint16_t>(split::available_flags, 0, order::relaxed);
    memory_->fence();
    const auto index =
        to_order<E>(used_.template load<std::uint16_t>(split::used_index, order::relaxed));
    return index != static_cast<std::uint16_t>(next_used_);
  }

  /// Says that notifications are not needed now: a hint, the device may notify all the same.
  /// With EVENT_IDX the flags stay 0 and the event word is simply left behind.
  constexpr void disable_notifications() noexcept {
    if (!is_attached() || has_event_index_) return;
    available_.template store<std::uint16_t>(split::available_flags,
                                             to_order<E>(split::no_interrupt), order::relaxed);
  }

 private:
  constexpr result<void> map(M& memory, const queue_layout& layout,
                             const feature_set& features) noexcept {
    const auto table =
        memory.window(layout.descriptor_area, split::descriptor_table_bytes(layout.size),
                      split::descriptor_table_alignment, access::write);
    if (!table) return table.error();
    const auto available =
        memory.window(layout.driver_area, split::available_ring_bytes(layout.size),
                      split::available_ring_alignment, access::write);
    if (!available) return available.error();
    const auto used = memory.window(layout.device_area, split::used_ring_bytes(layout.size),
                                    split::used_ring_alignment, access::read);
    if (!used) return used.error();
    table_ = *table;
    available_ = *available;
    used_ = *used;
    has_event_index_ = features.test(feature::event_idx);
    memory_ = &memory;
    return {};
  }

  [[nodiscard]] constexpr error usable() const noexcept {
    return is_attached() ? cause_ : error::not_attached;
  }

  constexpr error broken(error why) noexcept { return cause_ = why; }

  std::span<driver_slot> slots_;
  M* memory_ = nullptr;
  window_of<M> table_;
  window_of<M> available_;
  window_of<M> used_;
  // Indices count up through 32 bits; memory holds their low 16. 32 bits, since a 16-bit ring store
  // could alias a 16-bit member and would force a reload.
  std::uint32_t size_ = 0;
  std::uint32_t next_available_ = 0; ///< where the next chain goes
  std::uint32_t published_ = 0;      ///< what the device can see
  std::uint32_t notified_ = 0;       ///< `published_` at the last `should_notify`
  std::uint32_t next_used_ = 0;      ///< the next used element to read
  std::uint32_t free_ = 0;
  std::uint32_t in_flight_ = 0;
  std::uint16_t first_free_ = 0;
  error cause_ = error::none;
  bool has_event_index_ = false;
};

} // namespace ballast
