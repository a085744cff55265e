// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_rings.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// What a device's queue of up to `N` entries needs, owned by the caller.
template <std::uint32_t N> struct device_queue_storage {
  buffer buffers[N]{};                      ///< of the chain popped last
  std::uint16_t popped[N]{};                ///< by ring entry: the head popped there and kept
  std::uint32_t in_flight[(N + 31) / 32]{}; ///< one bit per head that is kept
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

/// A device's queue at rest, beside the heads it holds: plain values, for `save` and `restore`.
struct split_device_state {
  static constexpr std::uint32_t current_version = 1;
  std::uint32_t version = current_version;
  std::uint32_t size = 0;           ///< entries
  std::uint16_t next_available = 0; ///< ring indices, modulo 2^16
  std::uint16_t next_used = 0;
  std::uint16_t notified = 0; ///< `next_used` when the driver was last asked whether to notify
  error cause = error::none;  ///< of a broken queue
};

/// The device's side of a split virtqueue, in the byte order `E`.
///
///     device_queue_storage<256> storage;
///     split_device<my_memory> queue(storage);
///     queue.start(memory, layout, features);
///     auto done = queue.consume(budget, [&](const chain& c) { ...; return used(length); });
///     if (queue.publish_and_ask()) ...;  // one release store for all; the caller interrupts
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
      : buffers_(storage.buffers), popped_(storage.popped), in_flight_(storage.in_flight) {}

  /// Begins a new life at `first_index` (0 on real devices): chains of the last one are stale.
  /// Errors: `invalid_queue_size`, `storage_too_small`, the memory's; the queue is detached then.
  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0) noexcept {
    reset();
    if (const auto mapped = map(memory, layout, features); !mapped) return mapped;
    mask_ = layout.size - 1;
    cursor_ = {first_index, first_index, first_index, {.start = first_index}};
    published_ = notified_ = first_index;
    return {};
  }

  /// Detaches and forgets everything. Returning a chain that was popped before is `stale_chain`.
  constexpr void reset() noexcept {
    detach();
    mask_ = no_size;
    cause_ = error::none;
    cursor_ = {};
    for (std::uint32_t& bits : in_flight_) bits = 0;
    ++epoch_;
  }

  /// Takes up the queue again where `detach` left it; it may lie elsewhere, of the same size.
  /// Errors: `already_attached`, `invalid_queue_size`, the memory's.
  constexpr result<void> attach(M& memory, const queue_layout& layout,
                                const feature_set& features) noexcept {
    if (is_attached()) return error::already_attached;
    if (layout.size != size() || size() == 0) return error::invalid_queue_size;
    return map(memory, layout, features);
  }

  /// Lets go of the memory and keeps indices, what is in flight and the cause. To be called before
  /// the memory map changes.
  constexpr void detach() noexcept { memory_ = nullptr; }

  [[nodiscard]] constexpr bool is_attached() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return mask_ + 1; }
  /// Chains that were popped and not returned yet.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept { return cursor_.held(); }
  /// Which bound the driver broke; `error::none` while the queue works.
  [[nodiscard]] constexpr error cause() const noexcept { return cause_; }

  /// The next chain the driver made available.
  /// Ordering: an acquire load of the available index.
  /// Errors: `queue_empty`, `not_attached`, `memory_lost`; these break the queue:
  /// `available_index_jump`, `head_out_of_range`, `head_in_flight`, `next_out_of_range`,
  /// `chain_loops`, `readable_after_writable`, `chain_bytes_overflow`, `indirect_not_negotiated`,
  /// `indirect_with_next`, `indirect_nested`, `indirect_length`, `indirect_outside`.
  [[nodiscard]] constexpr result<chain> pop_available() noexcept {
    const auto pending = look();
    if (!pending) return pending.error();
    if (*pending == 0) return error::queue_empty;
    const view ring{rings_, mask_, epoch_};
    std::uint32_t head = 0;
    if (const error e = read_head(ring, cursor_, head); e != error::none) return e;
    const auto address =
        rings_.table.template load<std::uint64_t>(split::descriptor_address(head), order::plain);
    const auto rest =
        rings_.table.template load<std::uint64_t>(split::descriptor_rest(head), order::plain);
    if (!memory_->good()) return error::memory_lost;
    chain popped;
    const chain_id id{static_cast<std::uint16_t>(head), epoch_};
    if (const error e = read_rest(id, address, rest, popped); e != error::none) return e;
    keep(cursor_.next_available++, head);
    return popped;
  }

  /// Pops up to `budget` chains and hands each to `handle(const chain&) -> disposition`. What it
  /// answers `used` is staged at once: visible to the driver after `publish`, so that whatever
  /// must happen before that can be done for the whole batch. The handler leaves this queue alone.
  /// Errors: as `pop_available`, without `queue_empty`; `used_out_of_order` (IN_ORDER: an earlier
  /// chain is kept; this one is kept as well). What was handed out before stays staged or kept.
  template <class Handler>
  [[gnu::always_inline]] constexpr result<consumed> consume(std::uint32_t budget,
                                                            Handler&& handle) noexcept {
    const auto pending = look();
    if (!pending) return pending.error();
    const std::uint32_t count = *pending < budget ? *pending : budget;
    // In locals: members would be reloaded after every store to the ring.
    view ring{rings_, mask_, epoch_};
    cursor at = cursor_;
    error failure = error::none;
    const std::uint32_t end = at.next_available + count;
    if (is_in_order_)
      while (at.next_available != end && failure == error::none)
        failure = serve<true>(ring, at, handle);
    else
      while (at.next_available != end && failure == error::none)
        failure = serve<false>(ring, at, handle);
    const std::uint32_t done = at.next_available - cursor_.next_available;
    cursor_ = at;
    if (failure != error::none) return failure;
    return consumed{done, *pending > count};
  }

  /// `consume` with a budget of 1, without what a loop costs: for one chain at a time.
  template <class Handler>
  [[gnu::always_inline]] constexpr result<consumed> consume_one(Handler&& handle) noexcept {
    const auto pending = look();
    if (!pending) return pending.error();
    if (*pending == 0) return consumed{};
    view ring{rings_, mask_, epoch_};
    cursor at = cursor_;
    const error failure =
        is_in_order_ ? serve<true>(ring, at, handle) : serve<false>(ring, at, handle);
    cursor_ = at;
    if (failure != error::none) return failure;
    return consumed{1, *pending > 1};
  }

  /// Stages a chain for return; `length` bytes of its device-writable buffers were written.
  /// Errors: `stale_chain`, `chain_not_in_flight`, `not_attached`, `memory_lost`,
  /// `used_out_of_order` (IN_ORDER: another chain is older); nothing changes.
  constexpr result<void> push_used(chain_id id, std::uint32_t length) noexcept {
    if (!is_attached()) return error::not_attached;
    if (id.epoch != epoch_) return error::stale_chain;
    if (!holds(id.head)) return error::chain_not_in_flight;
    if (is_in_order_ && popped_[cursor_.next_used & mask_] != id.head)
      return error::used_out_of_order;
    if (!memory_->good()) return error::memory_lost;
    clear(id.head);
    view ring{rings_, mask_, epoch_};
    if (is_in_order_)
      extend_run(ring, cursor_, id.head, length, false);
    else
      put_used(ring, cursor_.next_used, id.head, length);
    ++cursor_.next_used;
    return {};
  }

  /// Gives the last `count` popped chains back unserved: they are popped again next time.
  /// Errors: `chain_not_in_flight` (one of them was returned); nothing changes.
  constexpr result<void> unpop(std::uint32_t count) noexcept {
    if (count > cursor_.next_available - cursor_.floor) return error::chain_not_in_flight;
    std::uint32_t at = cursor_.next_available;
    for (const std::uint32_t end = at - count; at != end; --at) {
      const std::uint16_t head = popped_[(at - 1) & mask_];
      if (!holds(head)) break;
      clear(head);
    }
    if (cursor_.next_available - at == count) {
      cursor_.next_available = at;
      return {};
    }
    for (; at != cursor_.next_available; ++at) mark(popped_[at & mask_]);
    return error::chain_not_in_flight;
  }

  /// The id of a chain that is in flight, for one who has only its head: after `restore`.
  /// Errors: `chain_not_in_flight`.
  [[nodiscard]] constexpr result<chain_id> held_chain(std::uint16_t head) const noexcept {
    if (!holds(head)) return error::chain_not_in_flight;
    return chain_id{head, epoch_};
  }

  /// Breaks the queue for a reason that the device found in a chain.
  constexpr void fail(error why) noexcept { broken(why); }

  /// Makes all staged chains visible to the driver. Everything the device did to their buffers must
  /// be done before.
  /// Ordering: one release store of the used index, paired with the driver's acquire load.
  constexpr void publish() noexcept {
    if (!is_attached() || published_ == cursor_.next_used) return;
    if (is_in_order_) {
      view ring{rings_, mask_, epoch_};
      end_run(ring, cursor_);
    }
    published_ = cursor_.next_used;
    rings_.used.template store<std::uint16_t>(
        split::used_index, to_order<E>(static_cast<std::uint16_t>(published_)), order::release);
  }

  /// Whether the driver wants a used buffer notification for what was published since the last
  /// call.
  /// Ordering: one full fence between the index store and the load of the driver's event word;
  /// pairs with the one in the driver's `enable_notifications`.
  /// Spec: "Used Buffer Notification Suppression".
  [[nodiscard]] constexpr bool should_notify() noexcept {
    const std::uint32_t old = notified_, now = published_;
    if (old == now || !is_attached()) return false;
    notified_ = now;
    memory_->fence();
    if (has_event_index_)
      return need_event_since(to_order<E>(rings_.available.template load<std::uint16_t>(
                                  split::used_event(size()), order::relaxed)),
                              now, old);
    const auto flags = to_order<E>(
        rings_.available.template load<std::uint16_t>(split::available_flags, order::relaxed));
    return (flags & split::no_interrupt) == 0;
  }

  /// `publish`, then `should_notify`.
  [[nodiscard]] [[gnu::always_inline]] constexpr bool publish_and_ask() noexcept {
    publish();
    return should_notify();
  }

  /// Asks for an available buffer notification of the next chain; true where one is already there,
  /// which is then not notified: consume again before sleeping. False for a broken queue.
  /// Ordering: one full fence between the event word and the load of the available index; pairs
  /// with the one in the driver's `should_notify`.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    if (!is_attached() || cause_ != error::none) return false;
    const auto next = to_order<E>(static_cast<std::uint16_t>(cursor_.next_available));
    if (has_event_index_)
      rings_.used.template store<std::uint16_t>(split::available_event(size()), next,
                                                order::relaxed);
    else
      rings_.used.template store<std::uint16_t>(split::used_flags, 0, order::relaxed);
    memory_->fence();
    const auto index =
        rings_.available.template load<std::uint16_t>(split::available_index, order::relaxed);
    return index != next && memory_->good();
  }

  /// Says that notifications are not needed now: a hint, the driver may notify all the same.
  /// With EVENT_IDX the flags stay 0 and the event word is simply left behind.
  constexpr void disable_notifications() noexcept {
    if (!is_attached() || has_event_index_) return;
    rings_.used.template store<std::uint16_t>(split::used_flags, to_order<E>(split::no_notify),
                                              order::relaxed);
  }

  /// What `restore` needs; `held` gets the heads of the chains in flight, `in_flight()` of them.
  /// Errors: `wrong_state` (never started, or something is staged: publish), `buffer_too_small`.
  [[nodiscard]] constexpr result<split_device_state>
  save(std::span<std::uint16_t> held) const noexcept {
    if (size() == 0 || published_ != cursor_.next_used) return error::wrong_state;
    if (held.size() < in_flight()) return error::buffer_too_small;
    std::uint32_t n = 0;
    if (is_in_order_)
      for (; n != in_flight(); ++n) held[n] = popped_[(cursor_.next_used + n) & mask_];
    else
      for (std::uint32_t head = 0; head <= mask_; ++head)
        if (holds(head)) held[n++] = static_cast<std::uint16_t>(head);
    return split_device_state{.size = size(),
                              .next_available = static_cast<std::uint16_t>(cursor_.next_available),
                              .next_used = static_cast<std::uint16_t>(cursor_.next_used),
                              .notified = static_cast<std::uint16_t>(notified_),
                              .cause = cause_};
  }

  /// Begins a new life where another queue was saved; `held_chain` gives the ids of what it held.
  /// Errors: `state_version`, `state_invalid`, those of `start`; nothing changes.
  constexpr result<void> restore(M& memory, const queue_layout& layout, const feature_set& features,
                                 const split_device_state& state,
                                 std::span<const std::uint16_t> held) noexcept {
    if (state.version != split_device_state::current_version) return error::state_version;
    const auto kept = static_cast<std::uint16_t>(state.next_available - state.next_used);
    if (state.size != layout.size || kept > layout.size || held.size() != kept ||
        !is_known(state.cause))
      return error::state_invalid;
    for (std::size_t i = 0; i < held.size(); ++i) {
      if (held[i] >= layout.size) return error::state_invalid;
      for (std::size_t k = 0; k < i; ++k)
        if (held[k] == held[i]) return error::state_invalid;
    }
    if (const auto rings = map_rings(memory, layout, queue_side::device, buffers_.size()); !rings)
      return rings.error();
    (void)start(memory, layout, features, state.next_used);
    notified_ -= static_cast<std::uint16_t>(state.next_used - state.notified);
    cause_ = state.cause;
    for (const std::uint16_t head : held) keep(cursor_.next_available++, head);
    cursor_.floor = cursor_.next_available; // where they lie in the ring is not known any more
    return {};
  }

 private:
  static constexpr std::uint32_t no_size = 0xffff'ffff;

  /// A descriptor as it was read: its two words, each loaded once.
  struct descriptor {
    buffer data;
    std::uint16_t flags = 0;
    std::uint16_t next = 0;

    [[gnu::always_inline]] constexpr descriptor(std::uint64_t address,
                                                std::uint64_t rest) noexcept {
      const auto fields = split::unpack<E>(rest);
      data = {to_order<E>(address), fields.length};
      flags = fields.flags & (split::flag_next | split::flag_write | split::flag_indirect);
      next = fields.next;
    }
  };

  /// Chains returned in a row under IN_ORDER. One used element stands for all of them: it names the
  /// last, and a driver takes those before it for written in full.
  struct in_order_run {
    std::uint32_t start = 0; ///< where the element goes
    std::uint32_t length = 0;
    std::uint32_t head = 0;
    bool is_full = false; ///< the last was written in full too: another may follow
  };

  /// Where the device is. Indices count up through 32 bits, memory holds their low 16: a 16-bit
  /// store to the ring could alias a 16-bit member and would force a reload.
  struct cursor {
    std::uint32_t next_available = 0; ///< the next ring entry to read
    std::uint32_t next_used = 0;      ///< where the next used element goes
    std::uint32_t floor = 0;          ///< behind the last chain that was used at once
    in_order_run run;

    /// Every chain that was popped is either kept or used.
    [[nodiscard]] constexpr std::uint32_t held() const noexcept {
      return next_available - next_used;
    }
  };

  /// What stays the same over a batch.
  struct view {
    split_rings<M> rings;
    std::uint32_t mask = 0;
    std::uint32_t epoch = 0;
  };

  constexpr result<void> map(M& memory, const queue_layout& layout,
                             const feature_set& features) noexcept {
    const auto rings = map_rings(memory, layout, queue_side::device, buffers_.size());
    if (!rings) return rings.error();
    rings_ = *rings;
    has_event_index_ = features.test(feature::event_idx);
    has_indirect_ = features.test(feature::indirect_desc);
    is_in_order_ = features.test(feature::in_order);
    memory_ = &memory;
    return {};
  }

  constexpr error broken(error why) noexcept {
    if (cause_ == error::none) cause_ = why;
    return why;
  }

  /// How many chains the driver made available that were not popped yet.
  [[gnu::always_inline]] constexpr result<std::uint32_t> look() noexcept {
    if (!is_attached()) return error::not_attached;
    if (cause_ != error::none) return cause_;
    const auto index = to_order<E>(
        rings_.available.template load<std::uint16_t>(split::available_index, order::acquire));
    if (!memory_->good()) return error::memory_lost;
    const std::uint32_t pending = static_cast<std::uint16_t>(index - cursor_.next_available);
    if (pending > size()) return broken(error::available_index_jump);
    return pending;
  }

  /// Pops one chain, has it handled, and stages or keeps it.
  template <bool IsInOrder, class Handler>
  [[gnu::always_inline]] constexpr error serve(view& ring, cursor& at, Handler& handle) noexcept {
    std::uint32_t head = 0;
    if (const error e = read_head(ring, at, head); e != error::none) return e;
    const auto address = ring.rings.table.template load<std::uint64_t>(
        split::descriptor_address(head), order::plain);
    const auto rest =
        ring.rings.table.template load<std::uint64_t>(split::descriptor_rest(head), order::plain);
    if (!memory_->good()) return error::memory_lost;
    const descriptor first(address, rest);
    const chain_id id{static_cast<std::uint16_t>(head), ring.epoch};
    disposition answer;
    std::uint64_t writable_bytes = 0;
    // A single buffer, the usual case, takes no detour over the storage.
    if (first.flags == 0) {
      answer = handle(chain(id, &first.data, 1, 0));
    } else if (first.flags == split::flag_write) {
      answer = handle(chain(id, &first.data, 0, 1));
      writable_bytes = first.data.length;
    } else {
      chain popped;
      if (const error e = read_rest(id, address, rest, popped); e != error::none) return e;
      answer = handle(static_cast<const chain&>(popped));
      if constexpr (IsInOrder) writable_bytes = total_bytes(popped.writable());
    }
    const bool is_early = IsInOrder && at.held() != 0;
    if (!answer.is_used || is_early) {
      keep(at.next_available++, head);
      return answer.is_used ? error::used_out_of_order : error::none;
    }
    if constexpr (IsInOrder)
      extend_run(ring, at, head, answer.length, answer.length == writable_bytes);
    else
      put_used(ring, at.next_used, head, answer.length);
    ++at.next_used;
    at.floor = ++at.next_available;
    return error::none;
  }

  /// Reads and checks the next ring entry.
  [[gnu::always_inline]] constexpr error read_head(const view& ring, const cursor& at,
                                                   std::uint32_t& head) noexcept {
    head = to_order<E>(ring.rings.available.template load<std::uint16_t>(
        split::available_entry(at.next_available & ring.mask), order::plain));
    if (!memory_->good()) return error::memory_lost;
    if (head > ring.mask) return broken(error::head_out_of_range);
    if (at.held() != 0 && holds(head)) return broken(error::head_in_flight);
    return error::none;
  }

  /// Reads and checks a chain whose first descriptor has these words, into the storage; each
  /// descriptor once. The chain may end in one indirect table, which may lie anywhere, unaligned.
  /// Bounded by the queue size, as the driver's chains are.
  [[gnu::noinline]] constexpr error read_rest(chain_id id, std::uint64_t address,
                                              std::uint64_t rest, chain& popped) noexcept {
    std::uint32_t count = 0, readable = 0, entries = size();
    std::uint64_t bytes = 0;
    guest_address table = 0;
    bool is_in_table = false;
    while (true) {
      const descriptor d(address, rest);
      std::uint32_t index = d.next;
      if ((d.flags & split::flag_indirect) != 0) {
        if (!has_indirect_) return broken(error::indirect_not_negotiated);
        if (is_in_table) return broken(error::indirect_nested);
        if ((d.flags & split::flag_next) != 0) return broken(error::indirect_with_next);
        if (d.data.length == 0 || d.data.length % split::descriptor_size != 0)
          return broken(error::indirect_length);
        table = d.data.address;
        if (table + (d.data.length - 1) < table) return broken(error::indirect_outside);
        entries = d.data.length / split::descriptor_size;
        is_in_table = true;
        index = 0;
      } else {
        if (count == size()) return broken(error::chain_loops);
        if ((d.flags & split::flag_write) == 0 && readable++ != count)
          return broken(error::readable_after_writable);
        buffers_[count++] = d.data;
        bytes += d.data.length;
        if ((d.flags & split::flag_next) == 0) break;
        if (index >= entries) return broken(error::next_out_of_range);
      }
      if (is_in_table) {
        struct table_entry {
          std::byte at[split::descriptor_size];
        };
        struct two_words {
          std::uint64_t address, rest;
        };
        table_entry raw{};
        if (!memory_->read(table + split::descriptor_address(index), raw.at))
          return memory_->good() ? broken(error::indirect_outside) : error::memory_lost;
        const auto words = std::bit_cast<two_words>(raw);
        address = words.address;
        rest = words.rest;
      } else {
        address = rings_.table.template load<std::uint64_t>(split::descriptor_address(index),
                                                            order::plain);
        rest =
            rings_.table.template load<std::uint64_t>(split::descriptor_rest(index), order::plain);
      }
      if (!memory_->good()) return error::memory_lost;
    }
    if (bytes > 1ull << 32) return broken(error::chain_bytes_overflow);
    popped = chain(id, buffers_.data(), readable, count - readable);
    return error::none;
  }

  /// Adds a chain to the run that one used element stands for.
  [[gnu::always_inline]] static constexpr void extend_run(view& ring, cursor& at,
                                                          std::uint32_t head, std::uint32_t length,
                                                          bool is_full) noexcept {
    if (at.run.start != at.next_used && !at.run.is_full) end_run(ring, at);
    at.run.head = head;
    at.run.length = length;
    at.run.is_full = is_full;
  }

  /// Writes the element of the run, if there is one.
  [[gnu::always_inline]] static constexpr void end_run(view& ring, cursor& at) noexcept {
    if (at.run.start != at.next_used) put_used(ring, at.run.start, at.run.head, at.run.length);
    at.run.start = at.next_used;
  }

  [[gnu::always_inline]] static constexpr void
  put_used(view& ring, std::uint32_t at, std::uint32_t head, std::uint32_t length) noexcept {
    const std::uint32_t entry = at & ring.mask;
    ring.rings.used.template store<std::uint32_t>(split::used_id(entry), to_order<E>(head),
                                                  order::plain);
    ring.rings.used.template store<std::uint32_t>(split::used_length(entry), to_order<E>(length),
                                                  order::plain);
  }

  [[nodiscard]] constexpr bool holds(std::uint32_t head) const noexcept {
    return head <= mask_ && ((in_flight_[head / 32] >> (head % 32)) & 1) != 0;
  }
  constexpr void mark(std::uint32_t head) noexcept { in_flight_[head / 32] |= 1u << (head % 32); }
  constexpr void clear(std::uint32_t head) noexcept {
    in_flight_[head / 32] &= ~(1u << (head % 32));
  }
  constexpr void keep(std::uint32_t at, std::uint32_t head) noexcept {
    mark(head);
    popped_[at & mask_] = static_cast<std::uint16_t>(head);
  }

  std::span<buffer> buffers_;
  std::span<std::uint16_t> popped_;
  std::span<std::uint32_t> in_flight_;
  M* memory_ = nullptr;
  split_rings<M> rings_;
  std::uint32_t mask_ = no_size; ///< the queue size less one
  cursor cursor_;
  std::uint32_t published_ = 0; ///< what the driver can see
  std::uint32_t notified_ = 0;  ///< `published_` at the last `should_notify`
  std::uint32_t epoch_ = 0;
  error cause_ = error::none;
  bool has_event_index_ = false;
  bool has_indirect_ = false;
  bool is_in_order_ = false;
};

} // namespace ballast
