// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_rings.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// The driver's side of a packed virtqueue, in the byte order `E`: the members, their errors and
/// their use are those of `split_driver`; the size needs to be no power of two.
///
/// The device is not trusted: buffer ids, lengths and where chains lie are private, nothing that
/// was written is read back, and each word the device writes is read once. A device that breaks a
/// rule breaks the queue: `cause()` says which, until the next `start`.
/// Every call is bounded and never waits. One thread at a time.
/// Spec: "Packed Virtqueues".
template <guest_memory M, std::endian E = std::endian::little> class packed_driver {
 public:
  /// `slots` must outlive the queue; its size bounds the queue size.
  constexpr explicit packed_driver(std::span<driver_slot> slots) noexcept : slots_(slots) {}

  /// Begins a new life: forgets what was in flight, initialises the ring in memory, attaches.
  /// `tables` are used for chains of two buffers and more where INDIRECT_DESC is in `features`.
  /// `first_index` counts descriptors from the beginning of the ring's life, where both wrap
  /// counters are 1 (0 on real devices).
  /// Errors: `invalid_queue_size`, `storage_too_small`, the memory's, `memory_lost`; the queue is
  /// detached then.
  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0,
                               const indirect_tables& tables = {}) noexcept {
    forget();
    if (const auto mapped = map(memory, layout, features, tables); !mapped) return mapped;
    // For writing, this once: this structure is the device's from then on.
    auto device_event = memory.window(layout.device_area, packed::event_size,
                                      packed::event_alignment, access::write);
    if (!device_event) {
      detach();
      return device_event.error();
    }
    size_ = free_ = layout.size;
    const ring_place first = ring_place::behind(first_index, size_);
    next_available_ = published_ = next_used_ = first;
    added_ = published_chains_ = returned_ = unasked_ = 0;
    staged_ = {};
    run_ = {};
    cause_ = refusal_ = error::none;
    first_free_ = 0;
    for (std::uint32_t i = 0; i != size_; ++i)
      slots_[i] = {.next = static_cast<std::uint16_t>(i + 1 == size_ ? 0 : i + 1)};
    // Every descriptor looks used in the round before: neither available nor used in this one.
    ring_place at = first;
    for (std::uint32_t i = 0; i != size_; ++i, at.advance(1, size_))
      put_rest(rings_.table, at.index, packed::pack<E>(0, at.used_flags ^ ring_place::both),
               order::relaxed);
    put_event({first.word(), wanted_flags()});
    device_event->template store<std::uint32_t>(0, 0, order::relaxed);
    if (memory.good()) return {};
    detach();
    return error::memory_lost;
  }

  /// Takes up the queue again where `detach` left it; it may lie elsewhere, of the same size and
  /// with the features of `start`.
  /// Errors: `already_attached`, `invalid_queue_size`, the memory's.
  constexpr result<void> attach(M& memory, const queue_layout& layout, const feature_set& features,
                                const indirect_tables& tables = {}) noexcept {
    if (is_attached()) return error::already_attached;
    if (layout.size != size() || size() == 0) return error::invalid_queue_size;
    return map(memory, layout, features, tables);
  }

  /// Lets go of the memory and keeps the places, what is in flight and the cause.
  constexpr void detach() noexcept {
    memory_ = nullptr;
    refusal_ = error::not_attached;
  }

  [[nodiscard]] constexpr bool is_attached() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr std::uint32_t free_descriptors() const noexcept { return free_; }
  /// Chains the device has not returned yet, staged ones included.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept { return added_ - returned_; }
  /// Which bound the device broke; `error::none` while the queue works.
  [[nodiscard]] constexpr error cause() const noexcept { return cause_; }

  /// Stages a chain: the buffers the device reads, then those it writes. `token` comes back with
  /// the chain. Where it fails nothing changes.
  /// Errors: `queue_full`, `empty_chain`, `chain_too_long`, `chain_bytes_overflow`,
  /// `not_attached`, `memory_lost`, the cause of a broken queue.
  [[gnu::always_inline]] constexpr result<void> add(std::span<const buffer> readable,
                                                    std::span<const buffer> writable,
                                                    std::uint64_t token) noexcept {
    if (readable.size() + writable.size() != 1) return add_chain(readable, writable, token);
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    if (free_ == 0) [[unlikely]]
      return error::queue_full;
    if (!memory_->good()) return error::memory_lost;
    const bool is_writable = readable.empty();
    const auto next = [&] {
      return single_buffer{is_writable ? writable[0] : readable[0], is_writable, token};
    };
    if (is_in_order_)
      put_each<true>(1, next);
    else
      put_each<false>(1, next);
    return {};
  }

  /// Stages up to `count` chains of one buffer each, as `next() -> single_buffer` gives them; how
  /// many there was room for. Errors: as `add`, without `queue_full`.
  template <class Next>
  [[gnu::always_inline]] constexpr result<std::uint32_t> add_each(std::uint32_t count,
                                                                  Next&& next) noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    if (!memory_->good()) return error::memory_lost;
    if (count > free_) count = free_;
    if (count == 0) return count;
    if (is_in_order_)
      put_each<true>(count, next);
    else
      put_each<false>(count, next);
    return count;
  }

  /// Makes all staged chains available to the device.
  /// Ordering: one release store of the flags of the first of them, which was not written yet; it
  /// is paired with the device's acquire load of those flags.
  constexpr void publish() noexcept {
    if (is_attached() && staged_.is_there) unasked_ = put_staged();
  }

  /// Whether the device wants an available buffer notification for what was published since the
  /// last call.
  /// Ordering: one full fence between the flags and the load of the device's event suppression
  /// structure; pairs with the one in the device's `enable_notifications`.
  /// Spec: "Driver and Device Event Suppression".
  [[nodiscard]] constexpr bool should_notify() noexcept {
    return unasked_ != 0 && is_attached() && is_event_wanted(unasked_);
  }

  /// `publish`, then `should_notify`.
  [[nodiscard]] [[gnu::always_inline]] constexpr bool publish_and_ask() noexcept {
    if (!is_attached() || !staged_.is_there) [[unlikely]]
      return should_notify();
    const std::uint32_t steps = put_staged();
    return is_event_wanted(steps);
  }

  /// What an available buffer notification carries under NOTIFICATION_DATA; `id` is the queue's
  /// index, or under NOTIF_CONFIG_DATA what the device gave for the queue.
  /// Spec: "Driver notifications".
  [[nodiscard]] constexpr std::uint32_t notification_data(std::uint16_t id) const noexcept {
    return id | std::uint32_t{published_.word()} << 16;
  }

  /// The next chain the device returned; its descriptors are free again.
  /// Ordering: an acquire load of the flags of the next descriptor.
  /// Errors: `queue_empty`, `not_attached`, `memory_lost`; these break the queue:
  /// `used_id_out_of_range`, `used_id_not_in_flight`.
  [[nodiscard]] [[gnu::always_inline]] constexpr result<used_buffer> pop_used() noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    used_buffer popped;
    std::uint32_t count = 0;
    const auto keep = [&](const used_buffer& b) { popped = b; };
    error failure = error::none;
    if (is_in_order_) [[unlikely]]
      failure = take_each<true>(1, count, keep);
    else
      failure = take_each<false>(1, count, keep);
    if (failure != error::none) return failure;
    return popped;
  }

  /// Takes up to `budget` returned chains and hands each to `handle(const used_buffer&)`; how many.
  /// The handler leaves this queue alone.
  /// Ordering, errors: as `pop_used`, without `queue_empty`; what was handed out before stays so.
  template <class Handler>
  [[gnu::always_inline]] constexpr result<std::uint32_t> reclaim(std::uint32_t budget,
                                                                 Handler&& handle) noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    if (budget == 0) return budget;
    std::uint32_t count = 0;
    error failure = error::none;
    if (is_in_order_)
      failure = take_each<true>(budget, count, handle);
    else
      failure = take_each<false>(budget, count, handle);
    if (failure != error::none && failure != error::queue_empty) return failure;
    return count;
  }

  /// Hands every chain that the device still has, staged ones included, back to its owner:
  /// `handle(token)`, in no order. For a queue that was reset (RING_RESET) or a device that is
  /// gone; the queue is detached and wants a `start`.
  template <class Handler> constexpr void drain(Handler&& handle) noexcept {
    detach();
    for (std::uint32_t i = 0; i < size(); ++i) {
      if (slots_[i].descriptors == 0) continue;
      slots_[i].descriptors = 0;
      handle(slots_[i].token);
    }
    forget();
  }

  /// Asks for a used buffer notification of the next returned chain; true where one is already
  /// there, which is then not notified: pop again before sleeping. False for a broken queue.
  /// Ordering: one full fence between the event suppression structure and the load of the flags of
  /// the next descriptor; pairs with the one in the device's `should_notify`.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    if (refusal_ != error::none) return false;
    put_event({next_used_.word(), wanted_flags()});
    memory_->fence();
    const auto rest = rings_.table.template load<std::uint64_t>(
        packed::descriptor_rest(next_used_.index), order::relaxed);
    return memory_->good() && (run_.is_there || next_used_.is_used(packed::pair_of<E>(rest)));
  }

  /// Says that notifications are not needed now: a hint, the device may notify all the same.
  /// With EVENT_IDX the place that was asked for is simply left behind.
  constexpr void disable_notifications() noexcept {
    if (is_attached() && !has_event_index_) put_event({0, packed::event_disable});
  }

  /// What `restore` needs; `slots` gets the first `size()` slots.
  /// Errors: `wrong_state` (never started, or something is staged: publish), `buffer_too_small`.
  [[nodiscard]] constexpr result<driver_queue_state>
  save(std::span<driver_slot> slots) const noexcept {
    if (size() == 0 || staged_.is_there) return error::wrong_state;
    if (slots.size() < size()) return error::buffer_too_small;
    for (std::uint32_t i = 0; i != size_; ++i) slots[i] = slots_[i];
    return driver_queue_state{.is_packed = true,
                              .size = size(),
                              .next_available = next_available_.word(),
                              .next_used = next_used_.word(),
                              .unasked = unasked_,
                              .run_end =
                                  run_.is_there ? static_cast<std::uint16_t>(run_.last) : no_run,
                              .run_length = run_.length,
                              .first_free = first_free_,
                              .cause = cause_};
  }

  /// Takes up a queue that was saved; the ring in memory is as it was.
  /// Errors: `state_version`, `state_invalid`, `already_attached`, those of `attach`; nothing
  /// changes.
  constexpr result<void> restore(M& memory, const queue_layout& layout, const feature_set& features,
                                 const driver_queue_state& state,
                                 std::span<const driver_slot> slots,
                                 const indirect_tables& tables = {}) noexcept {
    if (is_attached()) return error::already_attached;
    if (state.version != driver_queue_state::current_version) return error::state_version;
    const auto chains = check_state(state, slots, features.test(feature::in_order));
    if (!chains || state.size != layout.size) return error::state_invalid;
    if (const auto mapped = map(memory, layout, features, tables); !mapped) return mapped;
    size_ = state.size;
    next_used_ = ring_place::of(state.next_used);
    next_available_ = published_ = ring_place::of(state.next_available);
    free_ = size_ - entries_between(next_used_, next_available_, size_);
    added_ = published_chains_ = *chains;
    returned_ = 0;
    unasked_ = state.unasked;
    staged_ = {};
    run_ = {.length = state.run_length, .last = state.run_end, .is_there = state.run_end != no_run};
    first_free_ = state.first_free;
    cause_ = refusal_ = state.cause;
    for (std::uint32_t i = 0; i != size_; ++i) {
      slots_[i] = slots[i];
      slots_[i].position = 0; // none is staged, or looks so
    }
    return {};
  }

 private:
  static constexpr std::uint16_t no_run = 0xffff;

  /// There is nothing to attach to until a `start`.
  constexpr void forget() noexcept {
    detach();
    returned_ = published_chains_ = added_;
    size_ = free_ = unasked_ = 0;
    staged_ = {};
  }

  /// The first descriptor that is staged. It is written last, when the rest can be seen.
  struct held_back {
    std::uint64_t word = 0;
    std::uint32_t index = 0;
    bool is_there = false;
  };

  /// Under IN_ORDER: what the used descriptor read last stands for.
  struct in_order_run {
    std::uint32_t length = 0; ///< of its last chain
    std::uint32_t last = 0;   ///< that chain's id
    bool is_there = false;    ///< not all of it was taken
  };

  /// What stays the same over a batch.
  struct view {
    window_of<M> table;
    driver_slot* slots = nullptr;
    std::uint32_t size = 0;
    bool has_staged = false;
  };

  constexpr result<void> map(M& memory, const queue_layout& layout, const feature_set& features,
                             const indirect_tables& tables) noexcept {
    const auto rings = map_packed_rings(memory, layout, queue_side::driver, slots_.size());
    if (!rings) return rings.error();
    indirect_ = features.test(feature::indirect_desc) ? tables : indirect_tables{};
    if (indirect_.entries != 0) {
      const auto window = memory.window(indirect_.address, indirect_.bytes(layout.size),
                                        packed::descriptor_ring_alignment, access::write);
      if (!window) return window.error();
      indirect_window_ = *window;
    }
    rings_ = *rings;
    has_event_index_ = features.test(feature::event_idx);
    is_in_order_ = features.test(feature::in_order);
    memory_ = &memory;
    refusal_ = cause_;
    return {};
  }

  [[gnu::cold, gnu::noinline]] constexpr error broken(error why) noexcept {
    return refusal_ = cause_ = why;
  }

  /// Makes all that was staged visible; the entries published since the device was last asked.
  [[gnu::always_inline]] constexpr std::uint32_t put_staged() noexcept {
    put_rest(rings_.table, staged_.index, staged_.word, order::release);
    staged_.is_there = false;
    const std::uint32_t steps = unasked_ + entries_between(published_, next_available_, size_);
    published_ = next_available_;
    published_chains_ = added_;
    return unasked(steps);
  }

  /// Whether the device waits for one of the last `steps` entries that were published.
  [[gnu::always_inline]] constexpr bool is_event_wanted(std::uint32_t steps) noexcept {
    unasked_ = 0;
    memory_->fence();
    return is_event_due<E>(rings_.device_event.template load<std::uint32_t>(0, order::relaxed),
                           has_event_index_, published_, steps, size_);
  }

  [[nodiscard]] constexpr std::uint16_t wanted_flags() const noexcept {
    return has_event_index_ ? packed::event_descriptor : packed::event_enable;
  }
  constexpr void put_event(packed::event_fields event) noexcept {
    rings_.driver_event.template store<std::uint32_t>(0, packed::pack_event<E>(event),
                                                      order::relaxed);
  }
  [[gnu::always_inline]] static constexpr void put_rest(window_of<M>& table, std::size_t index,
                                                        std::uint64_t word, order o) noexcept {
    table.template store<std::uint64_t>(packed::descriptor_rest(index), word, o);
  }
  [[gnu::always_inline]] static constexpr void put_address(window_of<M>& table, std::size_t index,
                                                           guest_address address) noexcept {
    table.template store<std::uint64_t>(packed::descriptor_address(index), to_order<E>(address),
                                        order::plain);
  }

  /// Writes a descriptor of the ring, or holds it back where it is the first that is staged.
  [[gnu::always_inline]] static constexpr void put_descriptor(view& ring, const ring_place& at,
                                                              held_back& staged, const buffer& data,
                                                              std::uint16_t id,
                                                              unsigned flags) noexcept {
    put_address(ring.table, at.index, data.address);
    const auto word =
        packed::pack<E>(data.length, id | packed::in_pair(flags) | at.available_flags());
    if (staged.is_there) [[likely]]
      put_rest(ring.table, at.index, word, order::relaxed);
    else
      staged = {word, at.index, true};
  }

  template <bool IsInOrder, class Next>
  [[gnu::always_inline]] constexpr void put_each(std::uint32_t count, Next&& next) noexcept {
    // In locals: members would be reloaded after every store to the ring.
    view ring{rings_.table, slots_.data(), size_};
    ring_place at = next_available_;
    held_back staged = staged_;
    std::uint16_t first_free = first_free_;
    std::uint32_t position = added_;
    for (const std::uint32_t end = position + count; position != end; ++position) {
      const single_buffer chain = next();
      // In order, the entry itself is an id that no other chain has.
      const auto id = IsInOrder ? static_cast<std::uint16_t>(at.index) : first_free;
      driver_slot& slot = ring.slots[id];
      if constexpr (!IsInOrder) first_free = slot.next;
      slot.token = chain.token;
      slot.writable = chain.is_writable ? chain.data.length : 0;
      slot.descriptors = 1;
      slot.position = position;
      put_descriptor(ring, at, staged, chain.data, id, chain.is_writable ? packed::flag_write : 0u);
      at.advance(1, ring.size);
    }
    next_available_ = at;
    staged_ = staged;
    first_free_ = first_free;
    added_ = position;
    free_ -= count;
  }

  /// `add` of any chain but a single buffer.
  [[gnu::noinline]] constexpr result<void> add_chain(std::span<const buffer> readable,
                                                     std::span<const buffer> writable,
                                                     std::uint64_t token) noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    const std::uint64_t count = readable.size() + writable.size();
    if (count == 0) return error::empty_chain;
    if (count > size()) return error::chain_too_long;
    const bool is_indirect = count <= indirect_.entries;
    const std::uint32_t needed = is_indirect ? 1 : static_cast<std::uint32_t>(count);
    if (free_ < needed) return error::queue_full;
    const std::uint64_t writable_bytes = total_bytes(writable);
    if (total_bytes(readable) + writable_bytes > 0xffff'ffff) return error::chain_bytes_overflow;
    if (!memory_->good()) return error::memory_lost;

    const auto id = is_in_order_ ? static_cast<std::uint16_t>(next_available_.index) : first_free_;
    driver_slot& slot = slots_[id];
    if (!is_in_order_) first_free_ = slot.next;
    slot.token = token;
    slot.writable = static_cast<std::uint32_t>(writable_bytes);
    slot.descriptors = needed;
    slot.position = added_;
    view ring{rings_.table, slots_.data(), size_};
    if (is_indirect) {
      const std::size_t first = std::size_t{id} * indirect_.entries;
      std::size_t at = first;
      const auto put = [&](const buffer& b, std::uint16_t flags) {
        put_address(indirect_window_, at, b.address);
        indirect_window_.template store<std::uint64_t>(
            packed::descriptor_rest(at++), packed::pack<E>({b.length, 0, flags}), order::plain);
      };
      for (const buffer& b : readable) put(b, 0);
      for (const buffer& b : writable) put(b, packed::flag_write);
      const buffer table{indirect_.address + packed::descriptor_address(first),
                         static_cast<std::uint32_t>(packed::descriptor_address(count))};
      put_descriptor(ring, next_available_, staged_, table, id, packed::flag_indirect);
      next_available_.advance(1, size_);
    } else {
      std::uint64_t left = count;
      const auto put = [&](const buffer& b, unsigned flags) {
        if (--left != 0) flags |= packed::flag_next;
        put_descriptor(ring, next_available_, staged_, b, id, flags);
        next_available_.advance(1, size_);
      };
      for (const buffer& b : readable) put(b, 0);
      for (const buffer& b : writable) put(b, packed::flag_write);
    }
    free_ -= needed;
    ++added_;
    return {};
  }

  /// Takes up to `budget` chains; why it ended.
  template <bool IsInOrder, class Handler>
  [[gnu::always_inline]] constexpr error take_each(std::uint32_t budget, std::uint32_t& count,
                                                   Handler& handle) noexcept {
    // In locals: members would be reloaded after every atomic access.
    const view ring{rings_.table, slots_.data(), size_, added_ != published_chains_};
    ring_place at = next_used_;
    std::uint16_t first_free = first_free_;
    std::uint32_t left = budget;
    in_order_run run;
    if constexpr (IsInOrder) run = run_;
    error failure = error::none;
    do {
      if constexpr (IsInOrder)
        failure = take_oldest(ring, at, run, handle);
      else
        failure = take_any(ring, at, first_free, handle);
    } while (failure == error::none && --left != 0);
    if constexpr (IsInOrder) run_ = run;
    free_ += entries_between(next_used_, at, size_);
    next_used_ = at;
    first_free_ = first_free;
    count = budget - left;
    returned_ += count;
    return failure;
  }

  /// Takes the chain that the next used descriptor names; chains come back in any order.
  template <class Handler>
  [[gnu::always_inline]] constexpr error
  take_any(const view& ring, ring_place& at, std::uint16_t& first_free, Handler& handle) noexcept {
    used_descriptor used;
    if (const error e = read_used(ring, at, used); e != error::none) return e;
    driver_slot& slot = ring.slots[used.id];
    slot.next = first_free;
    first_free = static_cast<std::uint16_t>(used.id);
    give_back(ring, slot, at, used.length, handle);
    return error::none;
  }

  /// Takes the oldest chain: a used descriptor stands for all up to the one it names.
  template <class Handler>
  [[gnu::always_inline]] constexpr error take_oldest(const view& ring, ring_place& at,
                                                     in_order_run& run, Handler& handle) noexcept {
    if (!run.is_there) {
      used_descriptor used;
      if (const error e = read_used(ring, at, used); e != error::none) return e;
      run = {used.length, used.id, true};
    }
    driver_slot& slot = ring.slots[at.index];
    // Those that are skipped were written in full.
    const bool is_last = at.index == run.last;
    run.is_there = !is_last;
    give_back(ring, slot, at, is_last ? run.length : slot.writable, handle);
    return error::none;
  }

  struct used_descriptor {
    std::uint32_t id = 0;
    std::uint32_t length = 0;
  };

  /// Reads the next used descriptor, once, if there is one; the chain it names is in flight.
  [[gnu::always_inline]] constexpr error read_used(const view& ring, const ring_place& at,
                                                   used_descriptor& used) noexcept {
    const auto rest =
        ring.table.template load<std::uint64_t>(packed::descriptor_rest(at.index), order::acquire);
    if (!memory_->good()) return error::memory_lost;
    const std::uint32_t pair = packed::pair_of<E>(rest);
    if (!at.is_used(pair)) return error::queue_empty;
    used = {pair & 0xffff, packed::length_of<E>(rest)};
    if (used.id >= ring.size) [[unlikely]]
      return broken(error::used_id_out_of_range);
    const driver_slot& slot = ring.slots[used.id];
    if (slot.descriptors == 0 || (ring.has_staged && is_staged(slot))) [[unlikely]]
      return broken(error::used_id_not_in_flight);
    return error::none;
  }

  /// The device can't know what is staged only.
  [[nodiscard]] constexpr bool is_staged(const driver_slot& slot) const noexcept {
    return slot.position - published_chains_ < added_ - published_chains_;
  }

  template <class Handler>
  [[gnu::always_inline]] static constexpr void give_back(const view& ring, driver_slot& slot,
                                                         ring_place& at, std::uint32_t length,
                                                         Handler& handle) noexcept {
    at.advance(slot.descriptors, ring.size);
    slot.descriptors = 0;
    handle(used_buffer{slot.token, length < slot.writable ? length : slot.writable});
  }

  /// Whether a saved state fits together; then how many chains are in flight. Each id is that of
  /// one chain or in the free list, once.
  [[nodiscard]] constexpr result<std::uint32_t> check_state(const driver_queue_state& state,
                                                            std::span<const driver_slot> slots,
                                                            bool is_in_order) const noexcept {
    const std::uint32_t size = state.size;
    const auto available = ring_place::of(state.next_available);
    const auto used = ring_place::of(state.next_used);
    if (!state.is_packed || !packed::is_valid_size(size) || slots.size() < size ||
        available.index >= size || used.index >= size || state.unasked > unasked_max ||
        !is_cause(state.cause))
      return error::state_invalid;
    const std::uint32_t in_flight = entries_between(used, available, size);
    std::uint64_t descriptors = 0;
    std::uint32_t chains = 0;
    for (std::uint32_t id = 0; id != size; ++id) {
      descriptors += slots[id].descriptors;
      chains += slots[id].descriptors != 0;
    }
    if (in_flight > size || descriptors != in_flight) return error::state_invalid;
    if (!is_in_order) {
      std::uint32_t seen[max_queue_size / 32]{};
      std::uint32_t id = state.first_free;
      for (std::uint32_t n = chains; n != size; ++n, id = slots[id].next) {
        if (id >= size || slots[id].descriptors != 0 || ((seen[id / 32] >> (id % 32)) & 1) != 0)
          return error::state_invalid;
        seen[id / 32] |= 1u << (id % 32);
      }
      return state.run_end == no_run ? result<std::uint32_t>(chains) : error::state_invalid;
    }
    // The chains lie one behind the other, and the run ends with one of them.
    ring_place at = used;
    bool has_end = state.run_end == no_run;
    for (std::uint32_t n = 0; n != chains; ++n) {
      if (slots[at.index].descriptors == 0) return error::state_invalid;
      has_end = has_end || at.index == state.run_end;
      at.advance(slots[at.index].descriptors, size);
    }
    return has_end ? result<std::uint32_t>(chains) : error::state_invalid;
  }

  std::span<driver_slot> slots_;
  M* memory_ = nullptr;
  packed_rings<M> rings_;
  window_of<M> indirect_window_;
  indirect_tables indirect_;
  std::uint32_t size_ = 0;    ///< entries
  std::uint32_t free_ = 0;    ///< descriptors
  ring_place next_available_; ///< where the next chain goes
  ring_place published_;      ///< what the device can see
  ring_place next_used_;      ///< the next used descriptor to read
  held_back staged_;
  // Chains are counted through 32 bits.
  std::uint32_t added_ = 0;
  std::uint32_t published_chains_ = 0; ///< of those
  std::uint32_t returned_ = 0;
  std::uint32_t unasked_ = 0; ///< entries published since the last `should_notify`
  in_order_run run_;
  std::uint16_t first_free_ = 0; ///< id
  error cause_ = error::none;
  error refusal_ = error::not_attached; ///< why nothing can be added or taken
  bool has_event_index_ = false;
  bool is_in_order_ = false;
};

} // namespace ballast
