// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_rings.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

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
      : buffers_(storage.buffers), popped_(storage.popped), in_flight_(storage.in_flight),
        lives_(&storage.lives) {}

  /// Begins a new life at `first_index` (0 on real devices): chains of the last one are stale.
  /// Errors: `invalid_queue_size`, `storage_too_small`, the memory's; the queue is detached then.
  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0) noexcept {
    reset();
    const auto rings = map_rings(memory, layout, queue_side::device, buffers_.size());
    if (!rings) return rings.error();
    begin(memory, *rings, features, layout.size, first_index);
    return {};
  }

  /// Detaches and forgets everything. Returning a chain that was popped before is `stale_chain`.
  constexpr void reset() noexcept {
    detach();
    size_ = mask_ = 0;
    cause_ = error::none;
    next_available_ = next_used_ = 0;
    kept_from_ = kept_to_ = 0;
    for (std::uint32_t& bits : in_flight_) bits = 0;
    epoch_ = ++*lives_;
  }

  /// Takes up the queue again where `detach` left it; it may lie elsewhere, of the same size and
  /// with the features of `start`.
  /// Errors: `already_attached`, `invalid_queue_size`, the memory's.
  constexpr result<void> attach(M& memory, const queue_layout& layout,
                                const feature_set& features) noexcept {
    if (is_attached()) return error::already_attached;
    if (layout.size != size() || size() == 0) return error::invalid_queue_size;
    const auto rings = map_rings(memory, layout, queue_side::device, buffers_.size());
    if (!rings) return rings.error();
    connect(memory, *rings, features);
    return {};
  }

  /// Lets go of the memory and keeps indices, what is in flight and the cause. To be called before
  /// the memory map changes.
  constexpr void detach() noexcept {
    memory_ = nullptr;
    event_offset_ = 0;
    refusal_ = error::not_attached;
  }

  [[nodiscard]] constexpr bool is_attached() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return size_; }
  /// Chains that were popped and not returned yet.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept {
    return next_available_ - next_used_;
  }
  /// Which bound the driver broke; `error::none` while the queue works.
  [[nodiscard]] constexpr error cause() const noexcept { return cause_; }

  /// The next chain the driver made available.
  /// Ordering: an acquire load of the available index.
  /// Errors: `queue_empty`, `not_attached`, `memory_lost`; these break the queue:
  /// `available_index_jump`, `head_out_of_range`, `head_in_flight`, `next_out_of_range`,
  /// `chain_loops`, `readable_after_writable`, `chain_bytes_overflow`, `indirect_not_negotiated`,
  /// `indirect_with_next`, `indirect_nested`, `indirect_length`, `indirect_outside`.
  [[nodiscard]] constexpr result<chain> pop_available() noexcept {
    const view ring{rings_, mask_};
    const cursor at{next_available_, next_used_};
    const auto pending = look(ring, at);
    if (!pending) return pending.error();
    if (*pending == 0) [[unlikely]]
      return error::queue_empty;
    std::uint16_t head = 0;
    two_words words;
    if (const error e = read_first(ring, at, head, words); e != error::none) return e;
    chain popped;
    if (const error e = read_rest(head, words, popped); e != error::none) return e;
    keep(next_available_++, head);
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
    // In locals: members would be reloaded after every atomic access and every store to the ring.
    view ring{rings_, mask_};
    cursor at{next_available_, next_used_};
    const auto pending = look(ring, at);
    if (!pending) return pending.error();
    const std::uint32_t count = *pending < budget ? *pending : budget;
    if (count == 0) return consumed{0, *pending != 0};
    error failure = error::none;
    if (is_in_order_)
      failure = serve<true>(ring, at, count, handle);
    else
      failure = serve<false>(ring, at, count, handle);
    if (failure != error::none) return failure;
    return consumed{count, *pending > count};
  }

  /// `consume` with a budget of 1, without what a loop costs: for one chain at a time.
  template <class Handler>
  [[gnu::always_inline]] constexpr result<consumed> consume_one(Handler&& handle) noexcept {
    // In locals: members would be reloaded after every atomic access and every store to the ring.
    view ring{rings_, mask_};
    cursor at{next_available_, next_used_};
    const auto pending = look(ring, at);
    if (!pending) return pending.error();
    if (*pending == 0) [[unlikely]]
      return consumed{};
    error failure = error::none;
    if (is_in_order_) [[unlikely]]
      failure = serve<true>(ring, at, 1, handle);
    else
      failure = serve<false>(ring, at, 1, handle);
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
    if (is_in_order_ && popped_[next_used_ & mask_] != id.head) return error::used_out_of_order;
    if (!memory_->good()) return error::memory_lost;
    clear(id.head);
    view ring{rings_, mask_};
    if (is_in_order_)
      extend_run(ring, next_used_, run_, id.head, length, false);
    else
      put_used(ring, next_used_, id.head, length);
    ++next_used_;
    return {};
  }

  /// Gives the last `count` popped chains back unserved: they are popped again next time.
  /// Errors: `chain_not_in_flight` (one of them was returned); nothing changes.
  constexpr result<void> unpop(std::uint32_t count) noexcept {
    if (count == 0) return {};
    const std::uint32_t kept = kept_to_ == next_available_ ? kept_to_ - kept_from_ : 0;
    if (count > kept) return error::chain_not_in_flight;
    std::uint32_t at = next_available_;
    for (const std::uint32_t end = at - count; at != end; --at) {
      const std::uint16_t head = popped_[(at - 1) & mask_];
      if (!holds(head)) break;
      clear(head);
    }
    if (next_available_ - at == count) {
      next_available_ = kept_to_ = at;
      return {};
    }
    for (; at != next_available_; ++at) mark(popped_[at & mask_]);
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
    if (!is_attached() || published_ == next_used_) return;
    if (is_in_order_) {
      view ring{rings_, mask_};
      end_run(ring, next_used_, run_);
    }
    put_index(next_used_);
  }

  /// Whether the driver wants a used buffer notification for what was published since the last
  /// call.
  /// Ordering: one full fence between the index store and the load of the driver's event word;
  /// pairs with the one in the driver's `enable_notifications`.
  /// Spec: "Used Buffer Notification Suppression".
  [[nodiscard]] constexpr bool should_notify() noexcept {
    const std::uint32_t old = notified_, now = published_;
    if (old == now || !is_attached()) return false;
    if (has_event_index_) return is_event_wanted(split::used_event(size_), old, now);
    notified_ = now;
    memory_->fence();
    const auto flags = to_order<E>(
        rings_.available.template load<std::uint16_t>(split::available_flags, order::relaxed));
    return (flags & split::no_interrupt) == 0;
  }

  /// `publish`, then `should_notify`.
  [[nodiscard]] [[gnu::always_inline]] constexpr bool publish_and_ask() noexcept {
    if (event_offset_ == 0) [[unlikely]] {
      publish();
      return should_notify();
    }
    // Whatever was not published was not asked about either, so one look serves both.
    const std::uint32_t old = notified_, now = next_used_;
    if (old == now) [[unlikely]]
      return false;
    put_index(now);
    return is_event_wanted(event_offset_, old, now);
  }

  /// Asks for an available buffer notification of the next chain; true where one is already there,
  /// which is then not notified: consume again before sleeping. False for a broken queue.
  /// Ordering: one full fence between the event word and the load of the available index; pairs
  /// with the one in the driver's `should_notify`.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    if (!is_attached() || cause_ != error::none) return false;
    const auto next = to_order<E>(static_cast<std::uint16_t>(next_available_));
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
  [[nodiscard]] constexpr result<device_queue_state>
  save(std::span<held_head> held) const noexcept {
    if (size() == 0 || published_ != next_used_) return error::wrong_state;
    if (held.size() < in_flight()) return error::buffer_too_small;
    std::uint32_t n = 0;
    if (is_in_order_)
      for (; n != in_flight(); ++n) held[n] = {popped_[(next_used_ + n) & mask_], 1};
    else
      for (std::uint32_t head = 0; head < size_; ++head)
        if (holds(head)) held[n++] = {static_cast<std::uint16_t>(head), 1};
    return device_queue_state{.size = size(),
                              .next_available = static_cast<std::uint16_t>(next_available_),
                              .next_used = static_cast<std::uint16_t>(next_used_),
                              .unasked = unasked(published_ - notified_),
                              .cause = cause_};
  }

  /// Begins a new life where another queue was saved; `held_chain` gives the ids of what it held.
  /// Errors: `state_version`, `state_invalid`, those of `start`; nothing changes.
  constexpr result<void> restore(M& memory, const queue_layout& layout, const feature_set& features,
                                 const device_queue_state& state,
                                 std::span<const held_head> held) noexcept {
    if (state.version != device_queue_state::current_version) return error::state_version;
    const auto kept = static_cast<std::uint16_t>(state.next_available - state.next_used);
    if (state.is_packed || state.size != layout.size || kept > layout.size || held.size() != kept ||
        state.unasked > unasked_max || !is_cause(state.cause))
      return error::state_invalid;
    if (!are_distinct_heads(held, layout.size)) return error::state_invalid;
    const auto rings = map_rings(memory, layout, queue_side::device, buffers_.size());
    if (!rings) return rings.error();
    reset();
    begin(memory, *rings, features, layout.size, state.next_used);
    notified_ -= state.unasked;
    if (state.cause != error::none) broken(state.cause);
    for (const held_head h : held) keep(next_available_++, h.head);
    kept_from_ = kept_to_; // where they lie in the ring is not known any more
    return {};
  }

 private:
  static constexpr std::uint16_t known_flags =
      split::flag_next | split::flag_write | split::flag_indirect;

  /// The two words of a descriptor as they lie in memory, each loaded once.
  struct two_words {
    std::uint64_t address = 0, rest = 0;
  };

  struct descriptor {
    buffer data;
    std::uint16_t flags = 0;
    std::uint16_t next = 0;

    [[gnu::always_inline]] constexpr explicit descriptor(const two_words& words) noexcept {
      const auto fields = split::unpack<E>(words.rest);
      data = {to_order<E>(words.address), fields.length};
      flags = fields.flags & known_flags;
      next = fields.next;
    }
  };

  /// Chains returned in a row under IN_ORDER. One used element stands for all of them: it names the
  /// last, and a driver takes those before it for written in full.
  struct in_order_run {
    std::uint32_t start = 0; ///< where the element goes
    std::uint32_t length = 0;
    std::uint16_t head = 0;
    bool is_full = false; ///< the last was written in full too: another may follow
  };

  /// Where the device is. Indices count up through 32 bits, memory holds their low 16: a 16-bit
  /// store to the ring could alias a 16-bit member and would force a reload.
  struct cursor {
    std::uint32_t next_available = 0; ///< the next ring entry to read
    std::uint32_t next_used = 0;      ///< where the next used element goes

    /// Every chain that was popped is either kept or used.
    [[nodiscard]] constexpr std::uint32_t held() const noexcept {
      return next_available - next_used;
    }
  };

  /// What stays the same over a batch.
  struct view {
    split_rings<M> rings;
    std::uint32_t mask = 0;
  };

  constexpr void connect(M& memory, const split_rings<M>& rings,
                         const feature_set& features) noexcept {
    rings_ = rings;
    has_event_index_ = features.test(feature::event_idx);
    has_indirect_ = features.test(feature::indirect_desc);
    is_in_order_ = features.test(feature::in_order);
    event_offset_ = has_event_index_ && !is_in_order_ ? split::used_event(size_) : 0;
    memory_ = &memory;
    refusal_ = cause_;
  }

  constexpr void begin(M& memory, const split_rings<M>& rings, const feature_set& features,
                       std::uint32_t size, std::uint16_t first_index) noexcept {
    size_ = size;
    mask_ = size - 1;
    next_available_ = next_used_ = published_ = notified_ = first_index;
    run_ = {.start = first_index};
    kept_from_ = kept_to_ = first_index;
    connect(memory, rings, features);
  }

  [[gnu::cold, gnu::noinline]] constexpr error broken(error why) noexcept {
    if (cause_ == error::none) cause_ = why;
    if (is_attached()) refusal_ = cause_;
    return why;
  }

  /// How many chains the driver made available that were not popped yet.
  [[gnu::always_inline]] constexpr result<std::uint32_t> look(const view& ring,
                                                              const cursor& at) noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    const auto index = to_order<E>(
        ring.rings.available.template load<std::uint16_t>(split::available_index, order::acquire));
    if (!memory_->good()) return error::memory_lost;
    const std::uint32_t pending = static_cast<std::uint16_t>(index - at.next_available);
    if (pending > size_) [[unlikely]]
      return broken(error::available_index_jump);
    return pending;
  }

  /// Makes all that was staged visible: up to `now`.
  [[gnu::always_inline]] constexpr void put_index(std::uint32_t now) noexcept {
    published_ = now;
    rings_.used.template store<std::uint16_t>(
        split::used_index, to_order<E>(static_cast<std::uint16_t>(now)), order::release);
  }

  /// Whether the other side's event word lies between what it was last asked about and `now`.
  [[gnu::always_inline]] constexpr bool is_event_wanted(std::size_t offset, std::uint32_t old,
                                                        std::uint32_t now) noexcept {
    notified_ = now;
    memory_->fence();
    const auto event =
        to_order<E>(rings_.available.template load<std::uint16_t>(offset, order::relaxed));
    return need_event_since(event, now, old);
  }

  /// Pops `count` chains, has each handled, and stages or keeps it.
  template <bool IsInOrder, class Handler>
  [[gnu::always_inline]] constexpr error serve(view& ring, cursor& at, std::uint32_t count,
                                               Handler& handle) noexcept {
    in_order_run run;
    if constexpr (IsInOrder) run = run_;
    error failure = error::none;
    const std::uint32_t end = at.next_available + count;
    do failure = serve_next<IsInOrder>(ring, at, run, handle);
    while (failure == error::none && at.next_available != end);
    if constexpr (IsInOrder) run_ = run;
    next_available_ = at.next_available;
    next_used_ = at.next_used;
    return failure;
  }

  template <bool IsInOrder, class Handler>
  [[gnu::always_inline]] constexpr error serve_next(view& ring, cursor& at, in_order_run& run,
                                                    Handler& handle) noexcept {
    std::uint16_t head = 0;
    two_words words;
    if (const error e = read_first(ring, at, head, words); e != error::none) return e;
    const descriptor first(words);
    disposition answer;
    std::uint64_t writable_bytes = 0;
    // A single buffer, the usual case, takes no detour over the storage.
    if ((words.rest & split::pack<E>({0, known_flags, 0})) == 0) [[likely]] {
      answer = handle(chain({head, epoch_}, &first.data, 1, 0));
    } else if (first.flags == split::flag_write) {
      answer = handle(chain({head, epoch_}, &first.data, 0, 1));
      writable_bytes = first.data.length;
    } else {
      chain popped;
      if (const error e = read_rest(head, words, popped); e != error::none) return e;
      answer = handle(static_cast<const chain&>(popped));
      if constexpr (IsInOrder) writable_bytes = total_bytes(popped.writable());
    }
    const bool is_early = IsInOrder && at.held() != 0;
    if (!answer.is_used || is_early) {
      keep(at.next_available++, head);
      return answer.is_used ? error::used_out_of_order : error::none;
    }
    if constexpr (IsInOrder)
      extend_run(ring, at.next_used, run, head, answer.length, answer.length == writable_bytes);
    else
      put_used(ring, at.next_used, head, answer.length);
    ++at.next_used;
    ++at.next_available;
    return error::none;
  }

  /// Reads and checks the next ring entry, and reads the descriptor it names.
  [[gnu::always_inline]] constexpr error
  read_first(const view& ring, const cursor& at, std::uint16_t& head, two_words& words) noexcept {
    head = to_order<E>(ring.rings.available.template load<std::uint16_t>(
        split::available_entry(at.next_available & ring.mask), order::plain));
    if (!memory_->good()) return error::memory_lost;
    if (head > ring.mask) return broken(error::head_out_of_range);
    if (at.held() != 0 && holds(head)) return broken(error::head_in_flight);
    words = read_words(ring.rings.table, head);
    if (!memory_->good()) return error::memory_lost;
    return error::none;
  }

  [[gnu::always_inline]] static constexpr two_words read_words(const window_of<M>& table,
                                                               std::size_t i) noexcept {
    return {table.template load<std::uint64_t>(split::descriptor_address(i), order::plain),
            table.template load<std::uint64_t>(split::descriptor_rest(i), order::plain)};
  }

  /// Reads and checks a chain whose first descriptor has these words, into the storage; each
  /// descriptor once. Bounded by the queue size, as the driver's chains are.
  [[gnu::noinline]] constexpr error read_rest(std::uint16_t head, two_words words,
                                              chain& popped) noexcept {
    const window_of<M> table = rings_.table;
    const std::uint32_t size = size_;
    chain_progress to;
    descriptor d(words);
    while ((d.flags & split::flag_indirect) == 0) {
      if (const error e = append(d, size, to); e != error::none) return broken(e);
      if ((d.flags & split::flag_next) == 0) return finish(head, to, popped);
      if (d.next >= size) return broken(error::next_out_of_range);
      d = descriptor(read_words(table, d.next));
      if (!memory_->good()) return error::memory_lost;
    }
    if (const error e = read_table(d, to); e != error::none) return e;
    return finish(head, to, popped);
  }

  /// Reads the indirect table that a chain may end in; it may lie anywhere, unaligned.
  [[gnu::noinline]] constexpr error read_table(descriptor d, chain_progress& to) noexcept {
    if (!has_indirect_) return broken(error::indirect_not_negotiated);
    if ((d.flags & split::flag_next) != 0) return broken(error::indirect_with_next);
    const guest_address table = d.data.address;
    const std::uint32_t length = d.data.length, size = size_;
    if (length == 0 || length % split::descriptor_size != 0) return broken(error::indirect_length);
    if (table + (length - 1) < table) return broken(error::indirect_outside);
    chain_progress sum = to;
    std::uint32_t index = 0;
    do {
      struct entry {
        std::byte at[split::descriptor_size];
      };
      entry raw{};
      if (!memory_->read(table + split::descriptor_address(index), raw.at))
        return memory_->good() ? broken(error::indirect_outside) : error::memory_lost;
      if (!memory_->good()) return error::memory_lost;
      d = descriptor(std::bit_cast<two_words>(raw));
      if ((d.flags & split::flag_indirect) != 0) return broken(error::indirect_nested);
      if (const error e = append(d, size, sum); e != error::none) return broken(e);
      index = d.next;
      if ((d.flags & split::flag_next) != 0 && index >= length / split::descriptor_size)
        return broken(error::next_out_of_range);
    } while ((d.flags & split::flag_next) != 0);
    to = sum;
    return error::none;
  }

  [[gnu::always_inline]] constexpr error append(const descriptor& d, std::uint32_t size,
                                                chain_progress& to) noexcept {
    return to.append(d.data, (d.flags & split::flag_write) != 0, buffers_.data(), size);
  }

  [[gnu::always_inline]] constexpr error finish(std::uint16_t head, const chain_progress& to,
                                                chain& popped) noexcept {
    if (to.is_too_long()) return broken(error::chain_bytes_overflow);
    popped = to.finish({head, epoch_}, buffers_.data());
    return error::none;
  }

  /// Adds a chain to the run that one used element stands for.
  [[gnu::always_inline]] static constexpr void extend_run(view& ring, std::uint32_t at,
                                                          in_order_run& run, std::uint16_t head,
                                                          std::uint32_t length,
                                                          bool is_full) noexcept {
    if (!run.is_full) end_run(ring, at, run);
    run.head = head;
    run.length = length;
    run.is_full = is_full;
  }

  /// Writes the element of the run, if there is one.
  [[gnu::always_inline]] static constexpr void end_run(view& ring, std::uint32_t at,
                                                       in_order_run& run) noexcept {
    if (run.start != at) put_used(ring, run.start, run.head, run.length);
    run.start = at;
  }

  [[gnu::always_inline]] static constexpr void
  put_used(view& ring, std::uint32_t at, std::uint16_t head, std::uint32_t length) noexcept {
    const std::uint32_t entry = at & ring.mask;
    ring.rings.used.template store<std::uint32_t>(split::used_id(entry),
                                                  to_order<E>(std::uint32_t{head}), order::plain);
    ring.rings.used.template store<std::uint32_t>(split::used_length(entry), to_order<E>(length),
                                                  order::plain);
  }

  [[nodiscard]] constexpr bool holds(std::uint32_t head) const noexcept {
    return head < size() && ((in_flight_[head / 32] >> (head % 32)) & 1) != 0;
  }
  constexpr void mark(std::uint32_t head) noexcept { in_flight_[head / 32] |= 1u << (head % 32); }
  constexpr void clear(std::uint32_t head) noexcept {
    in_flight_[head / 32] &= ~(1u << (head % 32));
  }
  [[gnu::noinline]] constexpr void keep(std::uint32_t at, std::uint16_t head) noexcept {
    mark(head);
    popped_[at & mask_] = head;
    if (kept_to_ != at) kept_from_ = at;
    kept_to_ = at + 1;
  }

  std::span<buffer> buffers_;
  std::span<std::uint16_t> popped_;
  std::span<std::uint32_t> in_flight_;
  std::uint32_t* lives_;
  M* memory_ = nullptr;
  /// Of the driver's event word; 0: detached, or publishing takes more than a store and a look.
  std::size_t event_offset_ = 0;
  split_rings<M> rings_;
  std::uint32_t size_ = 0;           ///< entries
  std::uint32_t mask_ = 0;           ///< the queue size less one
  std::uint32_t next_available_ = 0; ///< the next ring entry to read
  std::uint32_t next_used_ = 0;      ///< where the next used element goes
  std::uint32_t published_ = 0;      ///< what the driver can see
  std::uint32_t notified_ = 0;       ///< `published_` at the last `should_notify`
  std::uint32_t epoch_ = 0;
  in_order_run run_;
  std::uint32_t kept_from_ = 0; ///< chains kept in a row last: what `unpop` may give back
  std::uint32_t kept_to_ = 0;
  error cause_ = error::none;
  error refusal_ = error::not_attached; ///< why nothing can be popped
  bool has_event_index_ = false;
  bool has_indirect_ = false;
  bool is_in_order_ = false;
};

} // namespace ballast
