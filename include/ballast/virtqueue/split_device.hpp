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

/// What a device's queue of up to `N` entries needs, owned by the caller.
template <std::uint32_t N> struct device_queue_storage {
  buffer buffers[N]{};                      ///< of the chain popped last
  std::uint32_t in_flight[(N + 31) / 32]{}; ///< one bit per head that was popped and not returned
};

/// What a handler answers about a chain it was given.
struct disposition {
  bool is_used = false;
  std::uint32_t length = 0; ///< bytes written to the chain
};
/// Return the chain now; the device wrote `length` bytes to it.
[[nodiscard]] constexpr disposition used(std::uint32_t length = 0) noexcept {
  return {true, length};
}
/// The handler keeps the chain's id and returns it later with `push_used`.
[[nodiscard]] constexpr disposition keep() noexcept { return {}; }

/// What `consume` did.
struct consumed {
  std::uint32_t chains = 0;
  bool has_more = false; ///< the budget ran out first
};

/// The device's side of a split virtqueue, in the byte order `E`.
///
///     device_queue_storage<256> storage;
///     split_device<my_memory> queue(storage);
///     queue.start(memory, layout, features);
///     auto done = queue.consume(budget, [&](const chain& c) { ...; return used(length); });
///     queue.publish();                  // one release store for all that was used
///     if (queue.should_notify()) ...;   // the caller interrupts
///
/// The driver is not trusted: every word is read once, a chain's structure is checked before it is
/// handed out and is private from then on. A driver that breaks a rule breaks the queue: nothing
/// more is popped and `cause()` says which, until the next `start`; chains that were popped before
/// can still be returned. Buffer addresses are checked where they are accessed.
/// Every call is bounded and never waits. One thread at a time.
/// Spec: "Split Virtqueues".
template <guest_memory M, std::endian E = std::endian::little> class split_device {
 public:
  /// `storage` must outlive the queue and stay where it is.
  template <std::uint32_t N>
  constexpr explicit split_device(device_queue_storage<N>& storage) noexcept
      : buffers_(storage.buffers), in_flight_(storage.in_flight) {}

  /// Begins a new life at `first_index` (0 on real devices): chains of the last one are stale.
  /// Errors: `invalid_queue_size`, `storage_too_small`, the memory's; the queue is detached then.
  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0) noexcept {
    reset();
    if (!split::is_valid_size(layout.size)) return error::invalid_queue_size;
    if (layout.size > buffers_.size()) return error::storage_too_small;
    if (const auto mapped = map(memory, layout, features); !mapped) return mapped;
    size_ = layout.size;
    next_available_ = seen_ = next_used_ = published_ = notified_ = first_index;
    return {};
  }

  /// Detaches and forgets everything. Returning a chain that was popped before is `stale_chain`.
  constexpr void reset() noexcept {
    detach();
    size_ = 0;
    cause_ = error::none;
    held_ = 0;
    for (std::uint32_t& bits : in_flight_) bits = 0;
    ++epoch_;
  }

  /// Takes up the queue again where `detach` left it; it may lie elsewhere, of the same size.
  /// Errors: `already_attached`, `invalid_queue_size`, the memory's.
  constexpr result<void> attach(M& memory, const queue_layout& layout,
                                const feature_set& features) noexcept {
    if (is_attached()) return error::already_attached;
    if (layout.size != size_ || size_ == 0) return error::invalid_queue_size;
    return map(memory, layout, features);
  }

  /// Lets go of the memory and keeps indices, what is in flight and the cause. To be called before
  /// the memory map changes.
  constexpr void detach() noexcept { memory_ = nullptr; }

  [[nodiscard]] constexpr bool is_attached() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return size_; }
  /// Chains that were popped and not returned yet.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept { return held_; }
  /// Which bound the driver broke; `error::none` while the queue works.
  [[nodiscard]] constexpr error cause() const noexcept { return cause_; }

  /// The next chain the driver made available.
  /// Ordering: an acquire load of the available index.
  /// Errors: `queue_empty`, `not_attached`, `memory_lost`; `available_index_jump`,
  /// `head_out_of_range`, `head_in_flight`, `next_out_of_range`, `chain_loops`,
  /// `readable_after_writable`, `indirect_not_negotiated`, `chain_bytes_overflow` break the queue.
  [[nodiscard]] constexpr result<chain> pop_available() noexcept {
    if (const error e = usable(); e != error::none) return e;
    if (seen_ == next_available_)
      if (const error e = look(); e != error::none) return e;
    if (seen_ == next_available_) return error::queue_empty;
    chain popped;
    if (const error e = read_chain(next_available_, popped); e != error::none) return e;
    ++next_available_;
    take(popped.id().head);
    return popped;
  }

  /// Pops up to `budget` chains and hands each to `handle(const chain&) -> disposition`. What it
  /// answers `used` is staged at once: visible to the driver after `publish`, so that whatever
  /// must happen before that can be done for the whole batch. The handler leaves this queue alone.
  /// Errors: as `pop_available`, without `queue_empty`; the chains handed out before stay valid,
  /// staged or kept.
  template <class Handler>
  constexpr result<consumed> consume(std::uint32_t budget, Handler&& handle) noexcept {
    if (const error e = usable(); e != error::none) return e;
    if (const error e = look(); e != error::none) return e;
    const std::uint32_t pending = seen_ - next_available_;
    const std::uint32_t count = pending < budget ? pending : budget;
    // In locals: members would be reloaded after every store to the ring.
    std::uint32_t at = next_available_, used_at = next_used_;
    error failure = error::none;
    for (const std::uint32_t end = at + count; at != end; ++at) {
      chain popped;
      failure = read_chain(at, popped);
      if (failure != error::none) break;
      const std::uint16_t head = popped.id().head;
      const disposition answer = handle(static_cast<const chain&>(popped));
      if (answer.is_used)
        put_used(used_at++, head, answer.length);
      else
        take(head);
    }
    const std::uint32_t done = at - next_available_;
    next_available_ = at;
    next_used_ = used_at;
    if (failure != error::none) return failure;
    return consumed{done, pending > count};
  }

  /// Stages a chain for return; `length` bytes of its device-writable buffers were written.
  /// Errors: `stale_chain`, `chain_not_in_flight`, `not_attached`, `memory_lost`; nothing changes.
  constexpr result<void> push_used(chain_id id, std::uint32_t length) noexcept {
    if (!is_attached()) return error::not_attached;
    if (id.epoch != epoch_) return error::stale_chain;
    if (id.head >= size_ || !is_in_flight(id.head)) return error::chain_not_in_flight;
    if (!memory_->good()) return error::memory_lost;
    in_flight_[id.head / 32] &= ~(1u << (id.head % 32));
    --held_;
    put_used(next_used_++, id.head, length);
    return {};
  }

  /// Breaks the queue for a reason that the device found in a chain.
  constexpr void fail(error why) noexcept { broken(why); }

  /// Makes all staged chains visible to the driver. Everything the device did to their buffers must
  /// be done before.
  /// Ordering: one release store of the used index, paired with the driver's acquire load.
  constexpr void publish() noexcept {
    if (!is_attached() || published_ == next_used_) return;
    published_ = next_used_;
    used_.template store<std::uint16_t>(
        split::used_index, to_order<E>(static_cast<std::uint16_t>(published_)), order::release);
  }

  /// Whether the driver wants a used buffer notification for what was published since the last
  /// call.
  /// Ordering: one full fence between the index store and the load of the driver's event word;
  /// pairs with the one in the driver's `enable_notifications`.
  /// Spec: "Used Buffer Notification Suppression".
  [[nodiscard]] constexpr bool should_notify() noexcept {
    if (!is_attached()) return false;
    const std::uint32_t old = notified_;
    if (old == published_) return false;
    notified_ = published_;
    memory_->fence();
    if (!has_event_index_) {
      const auto flags = to_order<E>(
          available_.template load<std::uint16_t>(split::available_flags, order::relaxed));
      return (flags & split::no_interrupt) == 0;
    }
    const auto event = to_order<E>(
        available_.template load<std::uint16_t>(split::used_event(size_), order::relaxed));
    if (published_ - old > 0xffff) return true; // the 16-bit comparison would miss a whole round
    return need_event(event, static_cast<std::uint16_t>(published_),
                      static_cast<std::uint16_t>(old));
  }

  /// Asks for an available buffer notification of the next chain; true where one is already there,
  /// which is then not notified: consume again before sleeping.
  /// Ordering: one full fence between the event word and the load of the available index; pairs
  /// with the one in the driver's `should_notify`.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    if (!is_attached()) return false;
    if (has_event_index_)
      used_.template store<std::uint16_t>(split::available_event(size_),
                                          to_order<E>(static_cast<std::uint16_t>(next_available_)),
                                          order::relaxed);
    else
      used_.template store<std::uint16_t>(split::used_flags, 0, order::relaxed);
    memory_->fence();
    const auto index = to_order<E>(
        available_.template load<std::uint16_t>(split::available_index, order::relaxed));
    return index != static_cast<std::uint16_t>(next_available_);
  }

  /// Says that notifications are not needed now: a hint, the driver may notify all the same.
  /// With EVENT_IDX the flags stay 0 and the event word is simply left behind.
  constexpr void disable_notifications() noexcept {
    if (!is_attached() || has_event_index_) return;
    used_.template store<std::uint16_t>(split::used_flags, to_order<E>(split::no_notify),
                                        order::relaxed);
  }

 private:
  constexpr result<void> map(M& memory, const queue_layout& layout,
                             const feature_set& features) noexcept {
    const auto table =
        memory.window(layout.descriptor_area, split::descriptor_table_bytes(layout.size),
                      split::descriptor_table_alignment, access::read);
    if (!table) return table.error();
    const auto available =
        memory.window(layout.driver_area, split::available_ring_bytes(layout.size),
                      split::available_ring_alignment, access::read);
    if (!available) return available.error();
    const auto used = memory.window(layout.device_area, split::used_ring_bytes(layout.size),
                                    split::used_ring_alignment, access::write);
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

  constexpr error broken(error why) noexcept {
    if (cause_ == error::none) cause_ = why;
    return why;
  }

  /// Reads how far the driver has come.
  constexpr error look() noexcept {
    const auto index = to_order<E>(
        available_.template load<std::uint16_t>(split::available_index, order::acquire));
    if (!memory_->good()) return error::memory_lost;
    const auto pending = static_cast<std::uint16_t>(index - next_available_);
    if (pending > size_) return broken(error::available_index_jump);
    seen_ = next_available_ + pending;
    return error::none;
  }

  /// Reads and checks the chain at ring position `at`: the entry and each descriptor once.
  constexpr error read_chain(std::uint32_t at, chain& popped) noexcept {
    const std::uint32_t size = size_;
    const std::uint16_t head = to_order<E>(available_.template load<std::uint16_t>(
        split::available_entry(at & (size - 1)), order::plain));
    if (!memory_->good()) return error::memory_lost;
    if (head >= size) return broken(error::head_out_of_range);
    if (is_in_flight(head)) return broken(error::head_in_flight);

    std::uint32_t count = 0, readable = 0, index = head;
    std::uint64_t bytes = 0;
    while (true) {
      const std::uint64_t address = to_order<E>(
          table_.template load<std::uint64_t>(split::descriptor_address(index), order::plain));
      const auto fields = split::unpack<E>(
          table_.template load<std::uint64_t>(split::descriptor_rest(index), order::plain));
      if (!memory_->good()) return error::memory_lost;
      if ((fields.flags & split::flag_indirect) != 0) return broken(error::indirect_not_negotiated);
      buffers_[count] = {address, fields.length};
      bytes += fields.length;
      if ((fields.flags & split::flag_write) == 0) {
        if (readable != count) return broken(error::readable_after_writable);
        ++readable;
      }
      ++count;
      if ((fields.flags & split::flag_next) == 0) break;
      if (count == size) return broken(error::chain_loops);
      if (fields.next >= size) return broken(error::next_out_of_range);
      index = fields.next;
    }
    if (bytes > 1ull << 32) return broken(error::chain_bytes_overflow);
    popped = chain({head, epoch_}, buffers_.data(), readable, count - readable);
    return error::none;
  }

  [[nodiscard]] constexpr bool is_in_flight(std::uint16_t head) const noexcept {
    return ((in_flight_[head / 32] >> (head % 32)) & 1) != 0;
  }

  constexpr void take(std::uint16_t head) noexcept {
    in_flight_[head / 32] |= 1u << (head % 32);
    ++held_;
  }

  constexpr void put_used(std::uint32_t at, std::uint16_t head, std::uint32_t length) noexcept {
    const std::uint32_t entry = at & (size_ - 1);
    used_.template store<std::uint32_t>(split::used_id(entry), to_order<E>(std::uint32_t{head}),
                                        order::plain);
    used_.template store<std::uint32_t>(split::used_length(entry), to_order<E>(length),
                                        order::plain);
  }

  std::span<buffer> buffers_;
  std::span<std::uint32_t> in_flight_;
  M* memory_ = nullptr;
  window_of<M> table_;
  window_of<M> available_;
  window_of<M> used_;
  // Indices count up through 32 bits; memory holds their low 16. 32 bits, since a 16-bit ring store
  // could alias a 16-bit member and would force a reload.
  std::uint32_t size_ = 0;
  std::uint32_t next_available_ = 0; ///< the next ring entry to read
  std::uint32_t seen_ = 0;           ///< how far the driver had come when last looked
  std::uint32_t next_used_ = 0;      ///< where the next used element goes
  std::uint32_t published_ = 0;      ///< what the driver can see
  std::uint32_t notified_ = 0;       ///< `published_` at the last `should_notify`
  std::uint32_t held_ = 0;
  std::uint32_t epoch_ = 0;
  error cause_ = error::none;
  bool has_event_index_ = false;
};

} // namespace ballast
