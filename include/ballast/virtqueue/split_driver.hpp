// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_rings.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// The driver's side of a split virtqueue, in the byte order `E`.
///
///     std::array<driver_slot, 256> slots;
///     split_driver<my_memory> queue(slots);
///     queue.start(memory, layout, features);
///     queue.add(readable, writable, token);      // stages
///     if (queue.publish_and_ask()) ...;          // one release store for all; the caller rings
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
  /// `tables` are used for chains of two buffers and more where INDIRECT_DESC is in `features`.
  /// `first_index` is where both indices begin (0 on real devices).
  /// Errors: `invalid_queue_size`, `storage_too_small`, the memory's, `memory_lost`; the queue is
  /// detached then, and has no size.
  constexpr result<void> start(M& memory, const queue_layout& layout, const feature_set& features,
                               std::uint16_t first_index = 0,
                               const indirect_tables& tables = {}) noexcept {
    forget();
    if (const auto mapped = map(memory, layout, features, tables); !mapped) return mapped;
    // For writing, this once: the used ring is the device's from then on.
    auto used = memory.window(layout.device_area, split::used_ring_bytes(layout.size),
                              split::used_ring_alignment, access::write);
    if (!used) {
      detach();
      return used.error();
    }
    mask_ = layout.size - 1;
    next_available_ = published_ = notified_ = next_used_ = first_index;
    run_.end = first_index;
    cause_ = refusal_ = error::none;
    limit_ = layout.size;
    first_free_ = run_.oldest = 0;
    for (std::uint32_t i = 0; i <= mask_; ++i)
      slots_[i] = {.next = static_cast<std::uint16_t>((i + 1) & mask_)};
    const auto index = to_order<E>(first_index);
    auto& available = rings_.available;
    available.template store<std::uint16_t>(split::available_flags, 0, order::relaxed);
    available.template store<std::uint16_t>(split::available_index, index, order::relaxed);
    available.template store<std::uint16_t>(split::used_event(size()), index, order::relaxed);
    used->template store<std::uint16_t>(split::used_flags, 0, order::relaxed);
    used->template store<std::uint16_t>(split::used_index, index, order::relaxed);
    used->template store<std::uint16_t>(split::available_event(size()), index, order::relaxed);
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

  /// Lets go of the memory and keeps the indices, what is in flight and the cause.
  constexpr void detach() noexcept {
    memory_ = nullptr;
    event_offset_ = 0;
    refusal_ = error::not_attached;
  }

  [[nodiscard]] constexpr bool is_attached() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return mask_ + 1; }
  [[nodiscard]] constexpr std::uint32_t free_descriptors() const noexcept {
    return limit_ - in_flight();
  }
  /// Chains the device has not returned yet, staged ones included.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept {
    return next_available_ - next_used_;
  }
  /// Which bound the device broke; `error::none` while the queue works.
  [[nodiscard]] constexpr error cause() const noexcept { return cause_; }

  /// Stages a chain: the buffers the device reads, then those it writes. `token` comes back with
  /// the chain. Where it fails nothing changes but what lies in free descriptors.
  /// Errors: `queue_full`, `empty_chain`, `chain_too_long`, `chain_bytes_overflow`,
  /// `not_attached`, `memory_lost`, the cause of a broken queue.
  [[gnu::always_inline]] constexpr result<void> add(std::span<const buffer> readable,
                                                    std::span<const buffer> writable,
                                                    std::uint64_t token) noexcept {
    if (readable.size() + writable.size() != 1) return add_chain(readable, writable, token);
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    if (free_descriptors() == 0) [[unlikely]]
      return error::queue_full;
    if (!memory_->good()) return error::memory_lost;
    const bool is_writable = readable.empty();
    const single_buffer chain{is_writable ? writable[0] : readable[0], is_writable, token};
    view ring{rings_, slots_.data(), mask_};
    const std::uint32_t at = next_available_++;
    first_free_ = put_single(ring, at, first_free_, chain);
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
    if (count > free_descriptors()) count = free_descriptors();
    if (count == 0) return count;
    // In locals: members would be reloaded after every store to the ring.
    view ring{rings_, slots_.data(), mask_};
    std::uint32_t at = next_available_;
    std::uint16_t head = first_free_;
    for (const std::uint32_t end = at + count; at != end; ++at)
      head = put_single(ring, at, head, next());
    next_available_ = at;
    first_free_ = head;
    return count;
  }

  /// Makes all staged chains available to the device.
  /// Ordering: one release store of the available index, paired with the device's acquire load.
  constexpr void publish() noexcept {
    if (is_attached() && published_ != next_available_) put_index(next_available_);
  }

  /// Whether the device wants an available buffer notification for what was published since the
  /// last call.
  /// Ordering: one full fence between the index store and the load of the device's event word;
  /// pairs with the one in the device's `enable_notifications`.
  /// Spec: "Available Buffer Notification Suppression".
  [[nodiscard]] constexpr bool should_notify() noexcept {
    const std::uint32_t old = notified_, now = published_;
    if (old == now || !is_attached()) return false;
    if (event_offset_ != 0) return is_event_wanted(old, now);
    notified_ = now;
    memory_->fence();
    const auto flags =
        to_order<E>(rings_.used.template load<std::uint16_t>(split::used_flags, order::relaxed));
    return (flags & split::no_notify) == 0;
  }

  /// `publish`, then `should_notify`.
  [[nodiscard]] [[gnu::always_inline]] constexpr bool publish_and_ask() noexcept {
    if (event_offset_ == 0) [[unlikely]] { // also where it is detached
      publish();
      return should_notify();
    }
    // Whatever was not published was not asked about either, so one look serves both.
    const std::uint32_t old = notified_, now = next_available_;
    if (old == now) [[unlikely]]
      return false;
    put_index(now);
    return is_event_wanted(old, now);
  }

  /// What an available buffer notification carries under NOTIFICATION_DATA; `id` is the queue's
  /// index, or under NOTIF_CONFIG_DATA what the device gave for the queue.
  /// Spec: "Driver notifications".
  [[nodiscard]] constexpr std::uint32_t notification_data(std::uint16_t id) const noexcept {
    return id | (published_ & 0xffff) << 16;
  }

  /// The next chain the device returned; its descriptors are free again.
  /// Ordering: an acquire load of the used index.
  /// Errors: `queue_empty`, `not_attached`, `memory_lost`; these break the queue:
  /// `used_index_jump`, `used_id_out_of_range`, `used_id_not_in_flight`, `used_out_of_order`.
  [[nodiscard]] [[gnu::always_inline]] constexpr result<used_buffer> pop_used() noexcept {
    // In locals: members would be reloaded after every atomic access and every store to the ring.
    const view ring{rings_, slots_.data(), mask_};
    const std::uint32_t at = next_used_;
    const auto returned = look(ring, at);
    if (!returned) return returned.error();
    if (*returned == 0) [[unlikely]]
      return error::queue_empty;
    if (is_in_order_) [[unlikely]] {
      used_buffer oldest;
      if (const error e = pop_oldest(*returned, oldest); e != error::none) return e;
      return oldest;
    }
    used_buffer popped;
    const auto keep = [&](const used_buffer& b) { popped = b; };
    if (const error e = take(ring, at, 1, keep); e != error::none) return e;
    return popped;
  }

  /// Takes up to `budget` returned chains and hands each to `handle(const used_buffer&)`; how many.
  /// The handler leaves this queue alone.
  /// Ordering, errors: as `pop_used`, without `queue_empty`; what was handed out before stays so.
  template <class Handler>
  [[gnu::always_inline]] constexpr result<std::uint32_t> reclaim(std::uint32_t budget,
                                                                 Handler&& handle) noexcept {
    // In locals: members would be reloaded after every atomic access and every store to the ring.
    const view ring{rings_, slots_.data(), mask_};
    const std::uint32_t at = next_used_;
    const auto returned = look(ring, at);
    if (!returned) return returned.error();
    const std::uint32_t count = *returned < budget ? *returned : budget;
    if (count == 0) return 0u;
    error failure = error::none;
    if (is_in_order_)
      failure = take_in_order(count, *returned, handle);
    else
      failure = take(ring, at, count, handle);
    if (failure != error::none) return failure;
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
  /// Ordering: one full fence between the event word and the load of the used index; pairs with the
  /// one in the device's `should_notify`.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    if (refusal_ != error::none) return false;
    const auto next = to_order<E>(static_cast<std::uint16_t>(next_used_));
    if (event_offset_ != 0)
      rings_.available.template store<std::uint16_t>(split::used_event(size()), next,
                                                     order::relaxed);
    else
      rings_.available.template store<std::uint16_t>(split::available_flags, 0, order::relaxed);
    memory_->fence();
    const auto index = rings_.used.template load<std::uint16_t>(split::used_index, order::relaxed);
    return index != next && memory_->good();
  }

  /// Says that notifications are not needed now: a hint, the device may notify all the same.
  /// With EVENT_IDX the flags stay 0 and the event word is simply left behind.
  constexpr void disable_notifications() noexcept {
    if (!is_attached() || event_offset_ != 0) return;
    rings_.available.template store<std::uint16_t>(
        split::available_flags, to_order<E>(split::no_interrupt), order::relaxed);
  }

  /// What `restore` needs; `slots` gets the first `size()` slots.
  /// Errors: `wrong_state` (never started, or something is staged: publish), `buffer_too_small`.
  [[nodiscard]] constexpr result<driver_queue_state>
  save(std::span<driver_slot> slots) const noexcept {
    if (size() == 0 || published_ != next_available_) return error::wrong_state;
    if (slots.size() < size()) return error::buffer_too_small;
    for (std::uint32_t i = 0; i <= mask_; ++i) slots[i] = slots_[i];
    return driver_queue_state{.size = size(),
                              .next_available = static_cast<std::uint16_t>(next_available_),
                              .next_used = static_cast<std::uint16_t>(next_used_),
                              .unasked = unasked(published_ - notified_),
                              .run_end = static_cast<std::uint16_t>(run_.end),
                              .run_length = run_.length,
                              .first_free = first_free_,
                              .oldest = run_.oldest,
                              .cause = cause_};
  }

  /// Takes up a queue that was saved; the rings in memory are as they were.
  /// Errors: `state_version`, `state_invalid`, `already_attached`, those of `attach`; nothing
  /// changes.
  constexpr result<void> restore(M& memory, const queue_layout& layout, const feature_set& features,
                                 const driver_queue_state& state,
                                 std::span<const driver_slot> slots,
                                 const indirect_tables& tables = {}) noexcept {
    if (is_attached()) return error::already_attached;
    if (state.version != driver_queue_state::current_version) return error::state_version;
    const auto limit = check_state(state, slots, features.test(feature::in_order));
    if (!limit || state.size != layout.size) return error::state_invalid;
    if (const auto mapped = map(memory, layout, features, tables); !mapped) return mapped;
    mask_ = state.size - 1;
    next_used_ = state.next_used;
    const auto after = [&](std::uint16_t index) {
      return next_used_ + static_cast<std::uint16_t>(index - state.next_used);
    };
    next_available_ = published_ = after(state.next_available);
    notified_ = published_ - state.unasked;
    run_.end = after(state.run_end);
    run_.length = state.run_length;
    first_free_ = state.first_free;
    run_.oldest = state.oldest;
    cause_ = refusal_ = state.cause;
    limit_ = *limit;
    // Positions count on from where the indices begin now; none may look staged.
    const std::uint32_t last = next_available_ - 1;
    for (std::uint32_t i = 0; i <= mask_; ++i) {
      slots_[i] = slots[i];
      slots_[i].position = last - static_cast<std::uint16_t>(last - slots[i].position);
    }
    return {};
  }

 private:
  static constexpr std::uint32_t no_size = 0xffff'ffff;

  /// There is nothing to attach to until a `start`.
  constexpr void forget() noexcept {
    detach();
    next_used_ = published_ = notified_ = next_available_;
    mask_ = no_size;
    limit_ = 0;
  }

  constexpr result<void> map(M& memory, const queue_layout& layout, const feature_set& features,
                             const indirect_tables& tables) noexcept {
    const auto rings = map_rings(memory, layout, queue_side::driver, slots_.size());
    if (!rings) return rings.error();
    indirect_ = features.test(feature::indirect_desc) ? tables : indirect_tables{};
    if (indirect_.entries != 0) {
      const auto window = memory.window(indirect_.address, indirect_.bytes(layout.size),
                                        split::descriptor_table_alignment, access::write);
      if (!window) return window.error();
      indirect_window_ = *window;
    }
    rings_ = *rings;
    event_offset_ = features.test(feature::event_idx) ? split::available_event(layout.size) : 0;
    is_in_order_ = features.test(feature::in_order);
    memory_ = &memory;
    refusal_ = cause_;
    return {};
  }

  [[gnu::cold, gnu::noinline]] constexpr error broken(error why) noexcept {
    return refusal_ = cause_ = why;
  }

  /// Makes all that was staged visible: up to `now`.
  [[gnu::always_inline]] constexpr void put_index(std::uint32_t now) noexcept {
    published_ = now;
    rings_.available.template store<std::uint16_t>(
        split::available_index, to_order<E>(static_cast<std::uint16_t>(now)), order::release);
  }

  /// Whether the other side's event word lies between what it was last asked about and `now`.
  [[gnu::always_inline]] constexpr bool is_event_wanted(std::uint32_t old,
                                                        std::uint32_t now) noexcept {
    notified_ = now;
    memory_->fence();
    const auto event =
        to_order<E>(rings_.used.template load<std::uint16_t>(event_offset_, order::relaxed));
    return need_event_since(event, now, old);
  }

  /// Under IN_ORDER: what the used element read last stands for.
  struct in_order_run {
    std::uint32_t end = 0;    ///< behind its last chain
    std::uint32_t length = 0; ///< of that chain
    std::uint16_t oldest = 0; ///< the head that comes back next
  };

  /// What stays the same over a batch.
  struct view {
    split_rings<M> rings;
    driver_slot* slots = nullptr;
    std::uint32_t mask = 0;
  };

  /// Puts a chain of one buffer into the free descriptor `head`; the next free one.
  [[gnu::always_inline]] static constexpr std::uint16_t
  put_single(view& ring, std::uint32_t at, std::uint16_t head,
             const single_buffer& chain) noexcept {
    driver_slot& slot = ring.slots[head];
    const std::uint16_t next = slot.next;
    slot.token = chain.token;
    slot.writable = chain.is_writable ? chain.data.length : 0;
    slot.descriptors = 1;
    slot.position = at;
    put_descriptor(ring.rings.table, head, chain.data, chain.is_writable ? split::flag_write : 0u,
                   0);
    put_available(ring, at, head);
    return next;
  }

  [[gnu::always_inline]] static constexpr void put_available(view& ring, std::uint32_t at,
                                                             std::uint16_t head) noexcept {
    ring.rings.available.template store<std::uint16_t>(split::available_entry(at & ring.mask),
                                                       to_order<E>(head), order::plain);
  }

  [[gnu::always_inline]] static constexpr void put_descriptor(window_of<M>& table, std::size_t i,
                                                              const buffer& data, unsigned flags,
                                                              std::uint16_t next) noexcept {
    table.template store<std::uint64_t>(split::descriptor_address(i), to_order<E>(data.address),
                                        order::plain);
    table.template store<std::uint64_t>(
        split::descriptor_rest(i),
        split::pack<E>({data.length, static_cast<std::uint16_t>(flags), next}), order::plain);
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
    if (free_descriptors() < (is_indirect ? 1 : count)) return error::queue_full;
    const std::uint64_t writable_bytes = total_bytes(writable);
    if (total_bytes(readable) + writable_bytes > 0xffff'ffff) return error::chain_bytes_overflow;
    if (!memory_->good()) return error::memory_lost;

    const auto head = first_free_;
    driver_slot& slot = slots_[head];
    slot.token = token;
    slot.writable = static_cast<std::uint32_t>(writable_bytes);
    slot.position = next_available_;
    if (is_indirect) {
      const std::size_t first = std::size_t{head} * indirect_.entries;
      std::uint16_t i = 0;
      link(readable, writable, [&](const buffer& b, unsigned flags) {
        put_descriptor(indirect_window_, first + i, b, flags,
                       (flags & split::flag_next) != 0 ? static_cast<std::uint16_t>(i + 1) : 0);
        ++i;
      });
      const buffer table{indirect_.address + split::descriptor_address(first),
                         static_cast<std::uint32_t>(split::descriptor_address(count))};
      put_descriptor(rings_.table, head, table, split::flag_indirect, 0);
      slot.last = head;
      slot.descriptors = 1;
      first_free_ = slot.next;
    } else {
      std::uint16_t at = head;
      link(readable, writable, [&](const buffer& b, unsigned flags) {
        slot.last = at;
        const std::uint16_t next = slots_[at].next;
        put_descriptor(rings_.table, at, b, flags, (flags & split::flag_next) != 0 ? next : 0);
        at = next;
      });
      slot.descriptors = static_cast<std::uint32_t>(count);
      first_free_ = at;
    }
    limit_ -= slot.descriptors - 1;
    view ring{rings_, slots_.data(), mask_};
    put_available(ring, next_available_, head);
    ++next_available_;
    return {};
  }

  /// Gives `put` each buffer of a chain with its flags, in order.
  template <class Put>
  static constexpr void link(std::span<const buffer> readable, std::span<const buffer> writable,
                             Put&& put) noexcept {
    std::size_t left = readable.size() + writable.size();
    for (const buffer& b : readable) put(b, --left != 0 ? split::flag_next : 0u);
    for (const buffer& b : writable)
      put(b, (--left != 0 ? split::flag_next : 0u) | split::flag_write);
  }

  /// How many chains the device returned that were not taken back yet.
  [[gnu::always_inline]] constexpr result<std::uint32_t> look(const view& ring,
                                                              std::uint32_t at) noexcept {
    if (refusal_ != error::none) [[unlikely]]
      return refusal_;
    const auto index = to_order<E>(
        ring.rings.used.template load<std::uint16_t>(split::used_index, order::acquire));
    if (!memory_->good()) return error::memory_lost;
    const std::uint32_t returned = static_cast<std::uint16_t>(index - at);
    // What is staged but not published can't have been returned either.
    if (returned > published_ - at) [[unlikely]]
      return broken(error::used_index_jump);
    return returned;
  }

  struct used_element {
    std::uint32_t id = 0;
    std::uint32_t length = 0;
  };

  /// Reads the used element at `at`, once.
  [[gnu::always_inline]] constexpr error read_used(const view& ring, std::uint32_t at,
                                                   used_element& used) noexcept {
    const std::uint32_t entry = at & ring.mask;
    used.id = to_order<E>(
        ring.rings.used.template load<std::uint32_t>(split::used_id(entry), order::plain));
    used.length = to_order<E>(
        ring.rings.used.template load<std::uint32_t>(split::used_length(entry), order::plain));
    if (!memory_->good()) return error::memory_lost;
    if (used.id > ring.mask) return broken(error::used_id_out_of_range);
    return error::none;
  }

  /// Takes `count` chains, which come back in any order.
  template <class Handler>
  [[gnu::always_inline]] constexpr error take(const view& ring, std::uint32_t at,
                                              std::uint32_t count, Handler& handle) noexcept {
    const std::uint32_t published = published_, staged = next_available_ - published;
    std::uint16_t first_free = first_free_;
    error failure = error::none;
    const std::uint32_t end = at + count;
    do failure = take_any(ring, at, published, staged, first_free, handle);
    while (failure == error::none && ++at != end);
    next_used_ = at;
    first_free_ = first_free;
    return failure;
  }

  /// Apart, so that it takes no registers from the usual case.
  [[gnu::noinline]] constexpr error pop_oldest(std::uint32_t returned,
                                               used_buffer& popped) noexcept {
    const auto keep = [&](const used_buffer& b) { popped = b; };
    return take_in_order(1, returned, keep);
  }

  /// Takes the `count` oldest chains of the `returned` ones.
  template <class Handler>
  [[gnu::always_inline]] constexpr error take_in_order(std::uint32_t count, std::uint32_t returned,
                                                       Handler& handle) noexcept {
    const view ring{rings_, slots_.data(), mask_};
    std::uint32_t at = next_used_;
    in_order_run run = run_;
    error failure = error::none;
    const std::uint32_t end = at + count, last = at + returned;
    do failure = take_oldest(ring, at, last, run, handle);
    while (failure == error::none && ++at != end);
    next_used_ = at;
    run_ = run;
    return failure;
  }

  /// Takes the chain that the next used element names; chains come back in any order.
  template <class Handler>
  [[gnu::always_inline]] constexpr error
  take_any(const view& ring, std::uint32_t at, std::uint32_t published, std::uint32_t staged,
           std::uint16_t& first_free, Handler& handle) noexcept {
    used_element used;
    if (const error e = read_used(ring, at, used); e != error::none) return e;
    driver_slot& slot = ring.slots[used.id];
    // The device can't know what is staged only. A chain may be out while any number go round.
    if (staged != 0 && slot.position - published < staged)
      return broken(error::used_id_not_in_flight);
    if (slot.descriptors == 1) [[likely]] {
      slot.next = first_free;
    } else {
      if (slot.descriptors == 0) return broken(error::used_id_not_in_flight);
      // The chain's own links are still in the slots: it goes to the free list in one piece.
      ring.slots[slot.last].next = first_free;
      limit_ += slot.descriptors - 1;
    }
    first_free = static_cast<std::uint16_t>(used.id);
    give_back(slot, used.length, handle);
    return error::none;
  }

  /// Takes the oldest chain: a used element stands for all up to the one it names.
  template <class Handler>
  [[gnu::always_inline]] constexpr error take_oldest(const view& ring, std::uint32_t at,
                                                     std::uint32_t end, in_order_run& run,
                                                     Handler& handle) noexcept {
    if (at == run.end) {
      used_element used;
      if (const error e = read_used(ring, at, used); e != error::none) return e;
      const driver_slot& named = ring.slots[used.id];
      if (named.descriptors == 0) return broken(error::used_id_not_in_flight);
      const std::uint32_t chains = static_cast<std::uint16_t>(named.position - at) + 1u;
      if (chains > end - at) return broken(error::used_out_of_order);
      run.end = at + chains;
      run.length = used.length;
    }
    driver_slot& slot = ring.slots[run.oldest];
    // Those that are skipped were written in full.
    const std::uint32_t length = at + 1 == run.end ? run.length : slot.writable;
    run.oldest = slot.next;
    if (slot.descriptors != 1) [[unlikely]] {
      run.oldest = ring.slots[slot.last].next;
      limit_ += slot.descriptors - 1;
    }
    give_back(slot, length, handle);
    return error::none;
  }

  template <class Handler>
  [[gnu::always_inline]] static constexpr void give_back(driver_slot& slot, std::uint32_t length,
                                                         Handler& handle) noexcept {
    slot.descriptors = 0;
    handle(used_buffer{slot.token, length < slot.writable ? length : slot.writable});
  }

  /// Whether a saved state fits together; then the limit. Each descriptor is in
  /// one chain or in the free list, once.
  [[nodiscard]] constexpr result<std::uint32_t> check_state(const driver_queue_state& state,
                                                            std::span<const driver_slot> slots,
                                                            bool is_in_order) const noexcept {
    const std::uint32_t size = state.size;
    const auto since = [&](std::uint32_t index) {
      return static_cast<std::uint16_t>(index - state.next_used);
    };
    const std::uint32_t in_flight = since(state.next_available);
    if (state.is_packed || !split::is_valid_size(size) || slots.size() < size || in_flight > size ||
        (is_in_order && since(state.run_end) > in_flight) || state.unasked > unasked_max ||
        !is_cause(state.cause))
      return error::state_invalid;

    std::uint32_t seen[max_queue_size / 32]{};
    const auto is_new = [&](std::uint32_t i) {
      if (i >= size || ((seen[i / 32] >> (i % 32)) & 1) != 0) return false;
      seen[i / 32] |= 1u << (i % 32);
      return true;
    };
    std::uint32_t used = 0, chains = 0;
    for (std::uint32_t head = 0; head < size; ++head) {
      if (slots[head].descriptors == 0) continue;
      ++chains;
      used += slots[head].descriptors;
      std::uint32_t last = head;
      bool is_good = used <= size && is_new(head);
      for (std::uint32_t n = slots[head].descriptors; is_good && --n != 0;) {
        last = slots[last].next;
        is_good = is_new(last) && slots[last].descriptors == 0;
      }
      if (!is_good || (last != head && last != slots[head].last)) return error::state_invalid;
    }
    std::uint32_t at = state.first_free;
    for (std::uint32_t n = used; n != size; ++n, at = slots[at].next)
      if (!is_new(at)) return error::state_invalid;
    if (chains != in_flight) return error::state_invalid;
    if (!is_in_order) return size - used + chains;
    const auto next_of = [&](std::uint32_t i) {
      return slots[slots[i].descriptors == 1 ? i : slots[i].last].next;
    };
    std::uint32_t head = state.oldest; // the chains lie one behind the other
    for (std::uint32_t n = 0; n != in_flight; ++n, head = next_of(head))
      if (head >= size || slots[head].descriptors == 0 || since(slots[head].position) != n)
        return error::state_invalid;
    // ... and the free ones behind them, all round.
    if (head != state.first_free || at != state.oldest) return error::state_invalid;
    return size - used + chains;
  }

  std::span<driver_slot> slots_;
  M* memory_ = nullptr;
  std::size_t event_offset_ = 0; ///< of the other side's event word; 0: its flags count
  split_rings<M> rings_;
  window_of<M> indirect_window_;
  indirect_tables indirect_;
  // Indices count up through 32 bits, memory holds their low 16: a 16-bit store to the ring could
  // alias a 16-bit member and would force a reload.
  std::uint32_t mask_ = no_size;     ///< the queue size less one
  std::uint32_t next_available_ = 0; ///< where the next chain goes
  std::uint32_t published_ = 0;      ///< what the device can see
  std::uint32_t notified_ = 0;       ///< `published_` at the last `should_notify`
  std::uint32_t next_used_ = 0;      ///< the next used element to read
  std::uint32_t limit_ = 0;          ///< chains that fit, if more were of one descriptor
  std::uint16_t first_free_ = 0;
  in_order_run run_;
  error cause_ = error::none;
  error refusal_ = error::not_attached; ///< why nothing can be added or taken
  bool is_in_order_ = false;
};

} // namespace ballast
