// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_rings.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// The device's side of a packed virtqueue, in the byte order `E`: the members, their errors and
/// their use are those of `split_device`. A chain's `head` is its buffer id, below the queue size.
///
/// The driver is not trusted: every word is read once, a chain's structure is checked before it is
/// handed out and is private from then on. A driver that breaks a rule breaks the queue: nothing
/// more is popped and `cause()` says which, until the next `start`; chains that were popped before
/// can still be returned. Buffer addresses are checked where they are accessed.
/// Every call is bounded and never waits. One thread at a time.
/// Spec: "Packed Virtqueues".
template <guest_memory M, std::endian E = std::endian::little> class packed_device {
 public:
  /// `storage` must outlive the queue and stay where it is.
  template <std::uint32_t N>
  constexpr explicit packed_device(device_queue_storage<N>& storage) noexcept
      : buffers_(storage.buffers), popped_(storage.popped), descriptors_(storage.descriptors),
        in_flight_(storage.in_flight), lives_(&storage.lives) {}

  /// Begins a new life: chains of the last one are stale. `first_index` counts descriptors from the
  /// beginning of the ring's life, where both wrap counters are 1 (0 on real devices).
  /// Errors: `invalid_queue_size`, `storage_too_small`, the memory's; the queue is detached then.
  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0) noexcept {
    reset();
    const auto rings = map_packed_rings(memory, layout, queue_side::device, buffers_.size());
    if (!rings) return rings.error();
    const ring_place first = ring_place::behind(first_index, layout.size);
    begin(memory, *rings, features, layout.size, first, first);
    return {};
  }

  /// Detaches and forgets everything. Returning a chain that was popped before is `stale_chain`.
  constexpr void reset() noexcept {
    detach();
    size_ = 0;
    cause_ = error::none;
    next_available_ = next_used_ = published_ = {};
    forget_held();
    epoch_ = ++*lives_;
  }

  /// Takes up the queue again where `detach` left it; it may lie elsewhere, of the same size and
  /// with the features of `start`.
  /// Errors: `already_attached`, `invalid_queue_size`, the memory's.
  constexpr result<void> attach(M& memory, const queue_layout& layout,
                                const feature_set& features) noexcept {
    if (is_attached()) return error::already_attached;
    if (layout.size != size() || size() == 0) return error::invalid_queue_size;
    const auto rings = map_packed_rings(memory, layout, queue_side::device, buffers_.size());
    if (!rings) return rings.error();
    connect(memory, *rings, features);
    return {};
  }

  /// Lets go of the memory and keeps places, what is in flight and the cause. To be called before
  /// the memory map changes.
  constexpr void detach() noexcept {
    memory_ = nullptr;
    refusal_ = error::not_attached;
  }

  [[nodiscard]] constexpr bool is_attached() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return size_; }
  /// Chains that were popped and not returned yet.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept { return held_chains_; }
  /// Which bound the driver broke; `error::none` while the queue works.
  [[nodiscard]] constexpr error cause() const noexcept { return cause_; }

  /// The next chain the driver made available.
  /// Ordering: an acquire load of the flags of its first descriptor.
  /// Errors: `queue_empty`, `not_attached`, `memory_lost`; these break the queue:
  /// `head_out_of_range`, `head_in_flight`, `descriptors_overrun`, `chain_loops`,
  /// `readable_after_writable`, `chain_bytes_overflow`, `indirect_not_negotiated`,
  /// `indirect_with_next`, `indirect_in_chain`, `indirect_length`, `indirect_outside`.
  [[nodiscard]] constexpr result<chain> pop_available() noexcept {
    if (refusal_ != error::none) return refusal_;
    two_words first;
    if (const error e = read_first(rings_.table, next_available_, first); e != error::none)
      return e;
    popped_chain popped;
    if (const error e = read_rest(next_available_.index, first, popped); e != error::none) return e;
    keep(next_available_.index, popped.buffers.id().head, popped.descriptors, popped_count_++);
    next_available_.advance(popped.descriptors, size_);
    return popped.buffers;
  }

  /// Pops up to `budget` chains and hands each to `handle(const chain&) -> disposition`. What it
  /// answers `used` is staged at once: visible to the driver after `publish`, so that whatever
  /// must happen before that can be done for the whole batch. The handler leaves this queue alone.
  /// Errors: as `pop_available`, without `queue_empty`; `used_out_of_order` (IN_ORDER: an earlier
  /// chain is kept; this one is kept as well). What was handed out before stays staged or kept.
  template <class Handler>
  [[gnu::always_inline]] constexpr result<consumed> consume(std::uint32_t budget,
                                                            Handler&& handle) noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    consumed done;
    error failure = error::queue_empty;
    if (budget != 0) {
      if (is_in_order_)
        failure = serve<true>(budget, done.chains, handle);
      else
        failure = serve<false>(budget, done.chains, handle);
    }
    if (failure == error::none || budget == 0) {
      const auto more = has_available();
      if (!more) return more.error();
      done.has_more = *more;
    } else if (failure != error::queue_empty) {
      return failure;
    }
    return done;
  }

  /// `consume` with a budget of 1, without what a loop costs: for one chain at a time.
  template <class Handler>
  [[gnu::always_inline]] constexpr result<consumed> consume_one(Handler&& handle) noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    std::uint32_t served = 0;
    error failure = error::none;
    if (is_in_order_) [[unlikely]]
      failure = serve<true>(1, served, handle);
    else
      failure = serve<false>(1, served, handle);
    if (failure != error::none) [[unlikely]]
      return failure == error::queue_empty ? result<consumed>(consumed{}) : failure;
    const auto more = has_available();
    if (!more) return more.error();
    return consumed{1, *more};
  }

  /// Stages a chain for return; `length` bytes of its device-writable buffers were written.
  /// Errors: `stale_chain`, `chain_not_in_flight`, `not_attached`, `memory_lost`,
  /// `used_out_of_order` (IN_ORDER: another chain is older); nothing changes.
  constexpr result<void> push_used(chain_id id, std::uint32_t length) noexcept {
    if (!is_attached()) return error::not_attached;
    if (id.epoch != epoch_) return error::stale_chain;
    if (!holds(id.head)) return error::chain_not_in_flight;
    if (is_in_order_ && popped_[next_used_.index] != id.head) return error::used_out_of_order;
    if (!memory_->good()) return error::memory_lost;
    clear(id.head);
    if (is_in_order_)
      extend_run(rings_.table, next_used_, run_, staged_, id.head, length, false);
    else
      put_used(rings_.table, next_used_, staged_, id.head, length, length != 0);
    next_used_.advance(descriptors_[id.head], size_);
    return {};
  }

  /// Gives the last `count` popped chains back unserved: they are popped again next time.
  /// Errors: `chain_not_in_flight` (one of them was returned); nothing changes.
  constexpr result<void> unpop(std::uint32_t count) noexcept {
    if (count == 0) return {};
    if (count > (kept_to_ == popped_count_ ? kept_in_a_row_ : 0)) return error::chain_not_in_flight;
    ring_place at = next_available_;
    std::uint32_t left = count;
    for (; left != 0; --left) {
      ring_place last = at;
      last.retreat(1, size_);
      const std::uint16_t id = popped_[last.index];
      if (!holds(id)) break;
      clear(id);
      at.retreat(descriptors_[id], size_);
    }
    if (left == 0) {
      next_available_ = at;
      kept_to_ = popped_count_ -= count;
      kept_in_a_row_ -= count;
      return {};
    }
    while (at != next_available_) {
      const std::uint16_t id = popped_[at.index];
      mark(id);
      at.advance(descriptors_[id], size_);
    }
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
  /// Ordering: one release store of the flags of the first of them, which was not written yet; it
  /// is paired with the driver's acquire load of those flags.
  constexpr void publish() noexcept {
    if (!is_attached()) return;
    if (is_in_order_) end_run(rings_.table, next_used_, run_, staged_);
    if (staged_.is_there) unasked_ = put_staged();
  }

  /// Whether the driver wants a used buffer notification for what was published since the last
  /// call.
  /// Ordering: one full fence between the flags and the load of the driver's event suppression
  /// structure; pairs with the one in the driver's `enable_notifications`.
  /// Spec: "Driver and Device Event Suppression".
  [[nodiscard]] constexpr bool should_notify() noexcept {
    return unasked_ != 0 && is_attached() && is_event_wanted(unasked_);
  }

  /// `publish`, then `should_notify`.
  [[nodiscard]] [[gnu::always_inline]] constexpr bool publish_and_ask() noexcept {
    if (!is_attached()) [[unlikely]]
      return false;
    if (is_in_order_) end_run(rings_.table, next_used_, run_, staged_);
    if (!staged_.is_there) [[unlikely]]
      return should_notify();
    const std::uint32_t steps = put_staged();
    return is_event_wanted(steps);
  }

  /// Asks for an available buffer notification of the next chain; true where one is already there,
  /// which is then not notified: consume again before sleeping. False for a broken queue.
  /// Ordering: one full fence between the event suppression structure and the load of the flags of
  /// the next descriptor; pairs with the one in the driver's `should_notify`.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    if (refusal_ != error::none) return false;
    const auto flags = has_event_index_ ? packed::event_descriptor : packed::event_enable;
    put_event({next_available_.word(), flags});
    memory_->fence();
    const auto more = has_available();
    return more && *more;
  }

  /// Says that notifications are not needed now: a hint, the driver may notify all the same.
  /// With EVENT_IDX the place that was asked for is simply left behind.
  constexpr void disable_notifications() noexcept {
    if (is_attached() && !has_event_index_) put_event({0, packed::event_disable});
  }

  /// What `restore` needs; `held` gets the chains in flight, `in_flight()` of them.
  /// Errors: `wrong_state` (never started, or something is staged: publish), `buffer_too_small`.
  [[nodiscard]] constexpr result<device_queue_state>
  save(std::span<held_head> held) const noexcept {
    if (size() == 0 || published_ != next_used_) return error::wrong_state;
    if (held.size() < in_flight()) return error::buffer_too_small;
    std::uint32_t n = 0;
    ring_place at = next_used_;
    for (std::uint32_t i = 0; is_in_order_ && i != in_flight(); ++i) {
      held[n] = {popped_[at.index], descriptors_[popped_[at.index]]};
      at.advance(held[n++].descriptors, size_);
    }
    for (std::uint32_t id = 0; !is_in_order_ && id < size_; ++id)
      if (holds(id)) held[n++] = {static_cast<std::uint16_t>(id), descriptors_[id]};
    return device_queue_state{.is_packed = true,
                              .size = size(),
                              .next_available = next_available_.word(),
                              .next_used = next_used_.word(),
                              .unasked = unasked_,
                              .cause = cause_};
  }

  /// Begins a new life where another queue was saved; `held_chain` gives the ids of what it held.
  /// Errors: `state_version`, `state_invalid`, those of `start`; nothing changes.
  constexpr result<void> restore(M& memory, const queue_layout& layout, const feature_set& features,
                                 const device_queue_state& state,
                                 std::span<const held_head> held) noexcept {
    if (state.version != device_queue_state::current_version) return error::state_version;
    const auto available = ring_place::of(state.next_available);
    const auto used = ring_place::of(state.next_used);
    if (!state.is_packed || state.size != layout.size || available.index >= layout.size ||
        used.index >= layout.size || state.unasked > unasked_max || !is_cause(state.cause))
      return error::state_invalid;
    std::uint64_t descriptors = 0;
    for (const held_head& h : held) {
      descriptors += h.descriptors;
      if (h.descriptors == 0 || descriptors > layout.size) return error::state_invalid;
    }
    if (!are_distinct_heads(held, layout.size)) return error::state_invalid;
    if (descriptors != entries_between(used, available, layout.size)) return error::state_invalid;
    const auto rings = map_packed_rings(memory, layout, queue_side::device, buffers_.size());
    if (!rings) return rings.error();
    reset();
    begin(memory, *rings, features, layout.size, available, used);
    unasked_ = state.unasked;
    if (state.cause != error::none) broken(state.cause);
    ring_place at = used;
    for (const held_head h : held) {
      keep(at.index, h.head, h.descriptors, popped_count_++);
      at.advance(h.descriptors, size_);
    }
    kept_in_a_row_ = 0; // where they lie in the ring is not known any more
    return {};
  }

 private:
  static constexpr std::uint32_t write_flag = packed::in_pair(packed::flag_write);
  static constexpr std::uint32_t chain_flags =
      packed::in_pair(packed::flag_next | packed::flag_write | packed::flag_indirect);

  /// The two words of a descriptor as they lie in memory, each loaded once.
  struct two_words {
    std::uint64_t address = 0, rest = 0;
  };

  struct descriptor {
    buffer data;
    std::uint32_t pair = 0; ///< id and flags

    [[gnu::always_inline]] constexpr explicit descriptor(const two_words& words) noexcept
        : data{to_order<E>(words.address), packed::length_of<E>(words.rest)},
          pair(packed::pair_of<E>(words.rest)) {}

    [[nodiscard]] constexpr std::uint16_t id() const noexcept {
      return static_cast<std::uint16_t>(pair);
    }
    [[nodiscard]] constexpr bool has(std::uint16_t flag) const noexcept {
      return (pair & packed::in_pair(flag)) != 0;
    }
  };

  /// The first used descriptor that is staged. It is written last, when the rest can be seen.
  struct held_back {
    std::uint64_t word = 0;
    std::uint32_t index = 0;
    bool is_there = false;
  };

  /// Chains returned in a row under IN_ORDER. One used descriptor stands for all of them: it has
  /// the id of the last, and a driver takes those before it for written in full.
  struct in_order_run {
    ring_place start; ///< where the descriptor goes
    std::uint32_t length = 0;
    std::uint16_t id = 0;
    bool is_full = false; ///< the last was written in full too: another may follow
  };

  /// A batch of chains that is being served.
  struct batch {
    window_of<M> table;
    std::uint32_t size = 0;
    std::uint32_t epoch = 0;
    std::uint32_t held = 0; ///< descriptors of the chains that were popped and not returned
    ring_place available;   ///< the next descriptor to read
    held_back staged;
    in_order_run run;

    /// Every chain that was popped is either held or used.
    [[nodiscard]] [[gnu::always_inline]] constexpr ring_place next_used() const noexcept {
      ring_place to = available;
      if (held != 0) [[unlikely]]
        to.retreat(held, size);
      return to;
    }
  };

  struct popped_chain {
    chain buffers;
    std::uint32_t descriptors = 0; ///< of the ring
  };

  constexpr void connect(M& memory, const packed_rings<M>& rings,
                         const feature_set& features) noexcept {
    rings_ = rings;
    has_event_index_ = features.test(feature::event_idx);
    has_indirect_ = features.test(feature::indirect_desc);
    is_in_order_ = features.test(feature::in_order);
    memory_ = &memory;
    refusal_ = cause_;
  }

  constexpr void begin(M& memory, const packed_rings<M>& rings, const feature_set& features,
                       std::uint32_t size, ring_place available, ring_place used) noexcept {
    size_ = size;
    next_available_ = available;
    next_used_ = published_ = used;
    run_ = {.start = used};
    connect(memory, rings, features);
  }

  constexpr void forget_held() noexcept {
    held_chains_ = held_descriptors_ = kept_in_a_row_ = kept_to_ = popped_count_ = unasked_ = 0;
    staged_ = {};
    run_ = {};
    for (std::uint32_t& bits : in_flight_) bits = 0;
  }

  [[gnu::cold, gnu::noinline]] constexpr error broken(error why) noexcept {
    if (cause_ == error::none) cause_ = why;
    if (is_attached()) refusal_ = cause_;
    return why;
  }

  /// Makes all that was staged visible; the entries published since the driver was last asked.
  [[gnu::always_inline]] constexpr std::uint32_t put_staged() noexcept {
    rings_.table.template store<std::uint64_t>(packed::descriptor_rest(staged_.index), staged_.word,
                                               order::release);
    staged_.is_there = false;
    const std::uint32_t steps = unasked_ + entries_between(published_, next_used_, size_);
    published_ = next_used_;
    return unasked(steps);
  }

  /// Whether the driver waits for one of the last `steps` entries that were published.
  [[gnu::always_inline]] constexpr bool is_event_wanted(std::uint32_t steps) noexcept {
    unasked_ = 0;
    memory_->fence();
    return is_event_due<E>(rings_.driver_event.template load<std::uint32_t>(0, order::relaxed),
                           has_event_index_, published_, steps, size_);
  }

  constexpr void put_event(packed::event_fields event) noexcept {
    rings_.device_event.template store<std::uint32_t>(0, packed::pack_event<E>(event),
                                                      order::relaxed);
  }

  /// Whether the driver made the next chain available.
  [[nodiscard]] constexpr result<bool> has_available() noexcept {
    const auto rest = rings_.table.template load<std::uint64_t>(
        packed::descriptor_rest(next_available_.index), order::relaxed);
    if (!memory_->good()) return error::memory_lost;
    return next_available_.is_available(packed::pair_of<E>(rest));
  }

  /// Pops up to `budget` chains, has each handled, and stages or keeps it; why it ended.
  template <bool IsInOrder, class Handler>
  [[gnu::always_inline]] constexpr error serve(std::uint32_t budget, std::uint32_t& count,
                                               Handler& handle) noexcept {
    // In locals: members would be reloaded after every atomic access and every store to the ring.
    batch at{rings_.table, size_, epoch_, held_descriptors_, next_available_, staged_, {}};
    if constexpr (IsInOrder) at.run = run_;
    std::uint32_t served = 0;
    error failure = error::none;
    do failure = serve_next<IsInOrder>(at, served, handle);
    while (failure == error::none && ++served != budget);
    if constexpr (IsInOrder) run_ = at.run;
    next_available_ = at.available;
    next_used_ = at.next_used();
    staged_ = at.staged;
    if (failure == error::used_out_of_order) ++served; // kept
    popped_count_ += served;
    count = served;
    return failure;
  }

  template <bool IsInOrder, class Handler>
  [[gnu::always_inline]] constexpr error serve_next(batch& at, std::uint32_t served,
                                                    Handler& handle) noexcept {
    two_words words;
    if (const error e = read_first(at.table, at.available, words); e != error::none) return e;
    const descriptor first(words);
    std::uint16_t id = first.id();
    std::uint32_t descriptors = 1;
    std::uint64_t writable_bytes = 0;
    bool has_writable = true;
    disposition answer;
    // A single buffer, the usual case, takes no detour over the storage.
    if ((first.pair & chain_flags) == 0) [[likely]] {
      if (const error e = check(at.held, at.size, id, 1); e != error::none) return e;
      answer = handle(chain({id, at.epoch}, &first.data, 1, 0));
      has_writable = false;
    } else if ((first.pair & chain_flags) == write_flag) {
      if (const error e = check(at.held, at.size, id, 1); e != error::none) return e;
      answer = handle(chain({id, at.epoch}, &first.data, 0, 1));
      writable_bytes = first.data.length;
    } else {
      popped_chain popped;
      if (const error e = read_rest(at.available.index, words, popped); e != error::none) return e;
      id = popped.buffers.id().head;
      descriptors = popped.descriptors;
      answer = handle(static_cast<const chain&>(popped.buffers));
      if constexpr (IsInOrder) writable_bytes = total_bytes(popped.buffers.writable());
    }
    const bool is_early = IsInOrder && at.held != 0;
    if (!answer.is_used || is_early) {
      keep(at.available.index, id, descriptors, popped_count_ + served);
      at.held += descriptors;
      at.available.advance(descriptors, at.size);
      return answer.is_used ? error::used_out_of_order : error::none;
    }
    if constexpr (IsInOrder)
      extend_run(at.table, at.available, at.run, at.staged, id, answer.length,
                 answer.length == writable_bytes);
    else
      put_used(at.table, at.next_used(), at.staged, id, answer.length,
               has_writable && answer.length != 0);
    at.available.advance(descriptors, at.size);
    return error::none;
  }

  /// Reads the next descriptor, if the driver made it available.
  [[gnu::always_inline]] constexpr error read_first(const window_of<M>& table, const ring_place& at,
                                                    two_words& words) noexcept {
    words.rest =
        table.template load<std::uint64_t>(packed::descriptor_rest(at.index), order::acquire);
    if (!memory_->good()) return error::memory_lost;
    if (!at.is_available(packed::pair_of<E>(words.rest))) return error::queue_empty;
    words.address =
        table.template load<std::uint64_t>(packed::descriptor_address(at.index), order::plain);
    return memory_->good() ? error::none : error::memory_lost;
  }

  /// Whether a chain of that many descriptors with this id can be there while so many are held.
  [[gnu::always_inline]] constexpr error check(std::uint32_t held, std::uint32_t size,
                                               std::uint16_t id,
                                               std::uint32_t descriptors) noexcept {
    if (id >= size) [[unlikely]]
      return broken(error::head_out_of_range);
    if (held == 0) [[likely]]
      return error::none;
    if (held + descriptors > size) return broken(error::descriptors_overrun);
    if (holds(id)) return broken(error::head_in_flight);
    return error::none;
  }

  /// Reads and checks a chain of several buffers or in an indirect table, into the storage; each
  /// descriptor once. Bounded by the queue size, as the driver's chains are.
  [[gnu::noinline]] constexpr error read_rest(std::uint32_t index, two_words words,
                                              popped_chain& popped) noexcept {
    const window_of<M> table = rings_.table;
    const std::uint32_t size = size_;
    chain_progress to;
    popped.descriptors = 1;
    descriptor d(words);
    if (d.has(packed::flag_indirect)) {
      if (const error e = read_table(d, to); e != error::none) return e;
    } else {
      while (true) {
        if (const error e = append(d, to); e != error::none) return broken(e);
        if (!d.has(packed::flag_next)) break;
        if (popped.descriptors == size) return broken(error::chain_loops);
        if (++index == size) index = 0;
        d = descriptor(two_words{
            table.template load<std::uint64_t>(packed::descriptor_address(index), order::plain),
            table.template load<std::uint64_t>(packed::descriptor_rest(index), order::relaxed)});
        if (!memory_->good()) return error::memory_lost;
        if (d.has(packed::flag_indirect)) return broken(error::indirect_in_chain);
        ++popped.descriptors;
      }
    }
    if (to.is_too_long()) return broken(error::chain_bytes_overflow);
    if (const error e = check(held_descriptors_, size, d.id(), popped.descriptors);
        e != error::none)
      return e;
    popped.buffers = to.finish({d.id(), epoch_}, buffers_.data());
    return error::none;
  }

  /// Reads the indirect table that a descriptor refers to; it may lie anywhere, unaligned.
  [[gnu::noinline]] constexpr error read_table(const descriptor& d, chain_progress& to) noexcept {
    if (!has_indirect_) return broken(error::indirect_not_negotiated);
    if (d.has(packed::flag_next)) return broken(error::indirect_with_next);
    const guest_address table = d.data.address;
    const std::uint32_t length = d.data.length;
    if (length == 0 || length % packed::descriptor_size != 0) return broken(error::indirect_length);
    if (table + (length - 1) < table) return broken(error::indirect_outside);
    for (std::uint32_t at = 0; at != length; at += packed::descriptor_size) {
      struct entry {
        std::byte bytes[packed::descriptor_size];
      };
      entry raw{};
      if (!memory_->read(table + at, raw.bytes))
        return memory_->good() ? broken(error::indirect_outside) : error::memory_lost;
      if (!memory_->good()) return error::memory_lost;
      // Only WRITE counts here; the table's end is its length.
      if (const error e = append(descriptor(std::bit_cast<two_words>(raw)), to); e != error::none)
        return broken(e);
    }
    return error::none;
  }

  [[gnu::always_inline]] constexpr error append(const descriptor& d, chain_progress& to) noexcept {
    return to.append(d.data, d.has(packed::flag_write), buffers_.data(), size_);
  }

  /// Adds a chain to the run that one used descriptor stands for.
  [[gnu::always_inline]] static constexpr void extend_run(window_of<M>& table, ring_place at,
                                                          in_order_run& run, held_back& staged,
                                                          std::uint16_t id, std::uint32_t length,
                                                          bool is_full) noexcept {
    if (!run.is_full) end_run(table, at, run, staged);
    run.id = id;
    run.length = length;
    run.is_full = is_full;
  }

  /// Writes the descriptor of the run, if there is one.
  [[gnu::always_inline]] static constexpr void
  end_run(window_of<M>& table, ring_place at, in_order_run& run, held_back& staged) noexcept {
    if (run.start != at) put_used(table, run.start, staged, run.id, run.length, run.length != 0);
    run.start = at;
  }

  [[gnu::always_inline]] static constexpr void put_used(window_of<M>& table, ring_place at,
                                                        held_back& staged, std::uint16_t id,
                                                        std::uint32_t length,
                                                        bool is_written) noexcept {
    const auto word = packed::pack<E>(length, id | at.used_flags | (is_written ? write_flag : 0));
    if (staged.is_there) [[likely]]
      table.template store<std::uint64_t>(packed::descriptor_rest(at.index), word, order::relaxed);
    else
      staged = {word, at.index, true};
  }

  [[nodiscard]] constexpr bool holds(std::uint32_t id) const noexcept {
    return id < size() && ((in_flight_[id / 32] >> (id % 32)) & 1) != 0;
  }
  constexpr void mark(std::uint32_t id) noexcept {
    in_flight_[id / 32] |= 1u << (id % 32);
    ++held_chains_;
    held_descriptors_ += descriptors_[id];
  }
  constexpr void clear(std::uint32_t id) noexcept {
    in_flight_[id / 32] &= ~(1u << (id % 32));
    --held_chains_;
    held_descriptors_ -= descriptors_[id];
  }
  /// Notes a chain that was popped at the entry `index`, the `number`th of this life.
  [[gnu::noinline]] constexpr void keep(std::uint32_t index, std::uint16_t id,
                                        std::uint32_t descriptors, std::uint32_t number) noexcept {
    descriptors_[id] = static_cast<std::uint16_t>(descriptors);
    mark(id);
    if (kept_to_ != number) kept_in_a_row_ = 0;
    ++kept_in_a_row_;
    kept_to_ = number + 1;
    const std::uint32_t last = index + descriptors - 1;
    popped_[index] = popped_[last < size_ ? last : last - size_] = id; // found from either end
  }

  std::span<buffer> buffers_;
  std::span<std::uint16_t> popped_; ///< by ring entry, at a kept chain's first and last: its id
  std::span<std::uint16_t> descriptors_; ///< by id
  std::span<std::uint32_t> in_flight_;
  std::uint32_t* lives_;
  M* memory_ = nullptr;
  packed_rings<M> rings_;
  std::uint32_t size_ = 0;    ///< entries
  ring_place next_available_; ///< the next descriptor to read
  ring_place next_used_;      ///< where the next used descriptor goes
  ring_place published_;      ///< what the driver can see
  held_back staged_;
  in_order_run run_;
  std::uint32_t unasked_ = 0; ///< entries published since the last `should_notify`
  std::uint32_t epoch_ = 0;
  std::uint32_t held_chains_ = 0; ///< popped and not returned
  std::uint32_t held_descriptors_ = 0;
  // Chains are counted through 32 bits.
  std::uint32_t popped_count_ = 0;
  std::uint32_t kept_to_ = 0; ///< behind those kept in a row last: what `unpop` may give back
  std::uint32_t kept_in_a_row_ = 0;
  error cause_ = error::none;
  error refusal_ = error::not_attached; ///< why nothing can be popped
  bool has_event_index_ = false;
  bool has_indirect_ = false;
  bool is_in_order_ = false;
};

} // namespace ballast
