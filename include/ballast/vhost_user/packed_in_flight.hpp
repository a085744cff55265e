// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/in_flight_region.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_rings.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

namespace ballast::vhost_user {

/// `split_in_flight` for a packed queue.
///
/// It sees every word of the descriptor ring: `load` for each that is read, `stage` for a used
/// descriptor that is written while others before it are not visible yet, `publish` around the
/// store that shows them all. What is held when the queue resumes is read again from the region, at
/// the places behind the last used descriptor: in the ring, others may have been written there.
/// Spec: "Inflight I/O tracking" (packed virtqueue).
template <memory_window W, std::uint32_t N> class packed_in_flight {
 public:
  /// Takes up a region; a new one for a queue whose next used descriptor goes to `fresh`.
  /// `ring_word(i)`: the second word of descriptor i as it lies in the ring. Where the queue goes
  /// on, both to use and to pop. Errors: `in_flight_invalid`, `storage_too_small`.
  template <class RingWord>
  [[nodiscard]] constexpr result<ring_place> resume(W region, std::uint32_t size, ring_place fresh,
                                                    RingWord&& ring_word) noexcept {
    region_ = in_flight::fields<W>(region);
    size_ = size;
    held_descriptors_ = popped_ = staged_ = 0;
    state_ = reading::nothing;
    counter_ = 0;
    if (size > N) return error::storage_too_small;
    const auto version = get<std::uint16_t>(in_flight::version);
    if (version == 0) {
      begin(fresh);
      return fresh;
    }
    if (version != in_flight::region_version || get<std::uint64_t>(in_flight::features) != 0 ||
        get<std::uint16_t>(in_flight::entries) < size)
      return error::in_flight_invalid;
    places at = unpack(get<std::uint64_t>(format::used));
    const auto settled = get<std::uint16_t>(format::old_free_head);
    free_ = get<std::uint16_t>(format::free_head);
    if (at.used.index >= size || at.settled.index >= size) return error::in_flight_invalid;
    if (!(at.used == at.settled) &&
        !at.settled.is_available(packed::pair_of<little>(ring_word(at.settled.index)))) {
      // The batch was published; whether that was noted here is not known.
      std::uint32_t steps = 0;
      for (std::uint16_t e = free_; e != settled; e = get<std::uint16_t>(format::next(e))) {
        if (e >= size || steps++ == size) return error::in_flight_invalid;
        set<std::uint16_t>(format::held(e), 0);
      }
      at.settled = at.used;
    } else {
      free_ = settled;
      if (settled < size) set<std::uint16_t>(format::held(settled), 0); // not read in full
    }
    put_free_heads();
    used_ = first_ = next_ = at.settled;
    set<std::uint64_t>(format::used, pack({used_, used_}));
    if (!find_held()) return error::in_flight_invalid;
    put_free_list();
    return used_;
  }

  /// The word at `offset` of the ring is read and is `found`; what to go on with.
  [[nodiscard]] constexpr std::uint64_t load(std::size_t offset, std::uint64_t found,
                                             order o) noexcept {
    const auto index = static_cast<std::uint32_t>(offset / packed::descriptor_size);
    const bool is_address = offset % packed::descriptor_size == 0;
    if (index >= size_) return found;
    if (const std::uint32_t at = steps_to(index); at < held_descriptors_)
      return of_held(at, is_address, o);
    if (is_address) {
      put_address(index, found);
      return found;
    }
    const auto fields = packed::unpack<little>(found);
    const bool is_first = state_ == reading::nothing && o == order::acquire &&
                          index == next_.index &&
                          next_.is_available(packed::pair_of<little>(found));
    if (is_first || is_next_of_chain(index)) take(fields, is_first);
    return found;
  }

  /// A used descriptor is written that the driver does not look at yet.
  constexpr void stage(std::uint64_t word) noexcept {
    const std::uint16_t id = packed::unpack<little>(word).id;
    if (id < size_ && staged_ < N) batch_[staged_++] = entry_of_[id];
  }

  /// `store` writes the used descriptor `word`, and with it those that were staged can be seen.
  template <class Store> constexpr void publish(std::uint64_t word, Store&& store) noexcept {
    stage(word);
    const ring_place settled = used_;
    for (std::uint32_t i = 0; i < staged_; ++i) {
      const std::uint16_t e = batch_[i];
      put_next(last_[e], free_);
      free_ = e;
      used_.advance(count_[e], size_);
    }
    set<std::uint16_t>(format::free_head, free_);
    set<std::uint64_t>(format::used, pack({used_, settled}));
    store();
    in_flight::store_barrier();
    for (std::uint32_t i = 0; i < staged_; ++i) set<std::uint16_t>(format::held(batch_[i]), 0);
    staged_ = 0;
    put_free_heads();
    set<std::uint64_t>(format::used, pack({used_, used_}));
  }

 private:
  static constexpr std::endian little = std::endian::little; // RING_PACKED needs VERSION_1
  struct format {
    static constexpr std::size_t free_head = in_flight::packed::free_head;
    static constexpr std::size_t old_free_head = in_flight::packed::old_free_head;
    static constexpr std::size_t used = in_flight::packed::used;
    static constexpr std::size_t held(std::size_t i) noexcept { return in_flight::packed::held(i); }
    static constexpr std::size_t next(std::size_t i) noexcept { return in_flight::packed::next(i); }
  };

  enum class reading : std::uint8_t { nothing, single, chain };

  struct places {
    ring_place used, settled;
  };
  struct raw_places {
    std::uint16_t used, settled;
    std::uint8_t used_wrap, settled_wrap;
    std::uint8_t padding[2];
  };
  static_assert(sizeof(raw_places) == sizeof(std::uint64_t));
  [[nodiscard]] static constexpr std::uint64_t pack(const places& at) noexcept {
    return std::bit_cast<std::uint64_t>(raw_places{static_cast<std::uint16_t>(at.used.index),
                                                   static_cast<std::uint16_t>(at.settled.index),
                                                   at.used.used_flags != 0,
                                                   at.settled.used_flags != 0,
                                                   {}});
  }
  [[nodiscard]] static constexpr places unpack(std::uint64_t word) noexcept {
    const auto raw = std::bit_cast<raw_places>(word);
    return {{raw.used, raw.used_wrap != 0 ? ring_place::both : 0},
            {raw.settled, raw.settled_wrap != 0 ? ring_place::both : 0}};
  }

  template <class T> [[nodiscard]] constexpr T get(std::size_t offset) const noexcept {
    return region_.template get<T>(offset);
  }
  template <class T> constexpr void set(std::size_t offset, std::type_identity_t<T> to) noexcept {
    region_.template set<T>(offset, to);
  }
  constexpr void put_next(std::uint16_t e, std::uint16_t next) noexcept {
    links_[e] = next;
    set<std::uint16_t>(format::next(e), next);
  }
  /// Both as one: no reader finds a chain half taken.
  constexpr void put_free_heads() noexcept {
    struct both {
      std::uint16_t free, settled;
    };
    set<std::uint32_t>(format::free_head, std::bit_cast<std::uint32_t>(both{free_, free_}));
  }

  constexpr void begin(ring_place fresh) noexcept {
    set<std::uint64_t>(in_flight::features, 0);
    set<std::uint16_t>(in_flight::entries, static_cast<std::uint16_t>(size_));
    for (std::uint32_t i = 0; i < size_; ++i) {
      set<std::uint16_t>(format::held(i), 0);
      is_free_[i] = true;
    }
    put_free_list();
    first_ = next_ = used_ = fresh;
    set<std::uint64_t>(format::used, pack({used_, used_}));
    set<std::uint16_t>(in_flight::version, in_flight::region_version);
  }

  /// Links all entries that no chain has; the end of the list is `size_`.
  constexpr void put_free_list() noexcept {
    free_ = static_cast<std::uint16_t>(size_);
    for (std::uint32_t i = size_; i-- != 0;)
      if (is_free_[i]) {
        put_next(static_cast<std::uint16_t>(i), free_);
        free_ = static_cast<std::uint16_t>(i);
      }
    put_free_heads();
  }

  /// Finds the chains that were held, in the order they were popped in, and their descriptors.
  [[nodiscard]] constexpr bool find_held() noexcept {
    std::uint32_t heads = 0;
    for (std::uint32_t i = 0; i < size_; ++i) {
      is_free_[i] = true;
      if ((get<std::uint16_t>(format::held(i)) & in_flight::is_held) == 0) continue;
      const auto mine = get<std::uint64_t>(in_flight::packed::counter(i));
      if (mine >= counter_) counter_ = mine + 1;
      std::uint32_t at = heads++;
      for (; at != 0 && get<std::uint64_t>(in_flight::packed::counter(batch_[at - 1])) > mine; --at)
        batch_[at] = batch_[at - 1];
      batch_[at] = static_cast<std::uint16_t>(i);
    }
    for (std::uint32_t i = 0; i < heads; ++i)
      if (!take_over(batch_[i])) return false;
    return true;
  }

  /// One of them, whose entries are a list. Whether it can be.
  [[nodiscard]] constexpr bool take_over(std::uint16_t head) noexcept {
    const auto count = get<std::uint16_t>(in_flight::packed::count(head));
    std::uint16_t e = head;
    std::uint16_t last = head;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (e >= size_ || !is_free_[e]) return false;
      is_free_[e] = false;
      order_[held_descriptors_++] = last = e;
      e = get<std::uint16_t>(format::next(e));
      links_[last] = e;
    }
    const auto id = get<std::uint16_t>(in_flight::packed::id(last));
    if (count == 0 || id >= size_) return false;
    entry_of_[id] = head;
    last_[head] = last;
    count_[head] = count;
    return true;
  }

  [[nodiscard]] constexpr bool is_next_of_chain(std::uint32_t index) const noexcept {
    return state_ == reading::chain && index == (next_.index + taken_) % size_;
  }

  /// How far behind the place where the queue resumed a descriptor is that may be read now: not
  /// more than a round before the next one, or in the chain that is being read.
  [[nodiscard]] constexpr std::uint32_t steps_to(std::uint32_t index) const noexcept {
    if (popped_ >= held_descriptors_ + size_) return UINT32_MAX; // nothing goes back that far
    if (is_next_of_chain(index)) return popped_ + taken_;
    const std::uint32_t steps = (index + size_ - first_.index) % size_;
    return steps + (popped_ > steps ? (popped_ - steps) / size_ * size_ : 0);
  }

  /// A word of a descriptor that was held.
  constexpr std::uint64_t of_held(std::uint32_t at, bool is_address, order o) noexcept {
    const std::uint16_t e = order_[at];
    if (is_address) return to_order<little>(get<std::uint64_t>(in_flight::packed::address(e)));
    ring_place place = first_;
    place.advance(at, size_);
    const auto kept = get<std::uint16_t>(in_flight::packed::flags(e));
    constexpr auto others =
        static_cast<std::uint16_t>(~(packed::flag_available | packed::flag_used));
    if (o == order::acquire && at == popped_) {
      popped_ += count_[e];
      next_ = first_;
      next_.advance(popped_, size_);
    }
    return packed::pack<little>(get<std::uint32_t>(in_flight::packed::length(e)),
                                get<std::uint16_t>(in_flight::packed::id(e)) |
                                    place.available_flags() |
                                    packed::in_pair(static_cast<unsigned>(kept & others)));
  }
  /// Enters the next descriptor of a chain; the first one begins it.
  constexpr void take(packed::descriptor_fields fields, bool is_first) noexcept {
    if (is_first) {
      chain_ = tail_ = free_;
      taken_ = 0;
    } else {
      tail_ = links_[tail_];
    }
    if (tail_ >= size_) { // the ring has no more: the queue is about to break
      state_ = reading::nothing;
      return;
    }
    ++taken_;
    set<std::uint16_t>(in_flight::packed::id(tail_), fields.id);
    set<std::uint16_t>(in_flight::packed::flags(tail_), fields.flags);
    set<std::uint32_t>(in_flight::packed::length(tail_), fields.length);
    const bool has_next =
        (fields.flags & (packed::flag_next | packed::flag_indirect)) == packed::flag_next;
    last_id_ = fields.id;
    if (is_first) {
      state_ = has_next ? reading::chain : reading::single; // its address comes behind this word
      return;
    }
    set<std::uint64_t>(in_flight::packed::address(tail_), address_);
    if (!has_next) finish();
  }

  constexpr void put_address(std::uint32_t index, std::uint64_t found) noexcept {
    if (state_ == reading::nothing) return;
    address_ = to_order<little>(found);
    if (index != next_.index) return; // its entry is not known before the word behind it is read
    set<std::uint64_t>(in_flight::packed::address(chain_), address_);
    if (state_ == reading::single) finish();
  }

  /// The chain has been read in full.
  constexpr void finish() noexcept {
    state_ = reading::nothing;
    set<std::uint16_t>(in_flight::packed::last(chain_), tail_);
    set<std::uint16_t>(in_flight::packed::count(chain_), static_cast<std::uint16_t>(taken_));
    set<std::uint64_t>(in_flight::packed::counter(chain_), counter_++);
    set<std::uint16_t>(format::held(chain_), in_flight::is_held);
    free_ = links_[tail_];
    put_free_heads();
    last_[chain_] = tail_;
    count_[chain_] = static_cast<std::uint16_t>(taken_);
    if (last_id_ < size_) entry_of_[last_id_] = chain_;
    next_.advance(taken_, size_);
    if (popped_ < held_descriptors_ + size_) popped_ += taken_;
  }

  in_flight::fields<W> region_;
  std::uint32_t size_ = 0;             ///< entries
  ring_place first_;                   ///< where the queue resumed
  ring_place next_;                    ///< where the chain begins that was not read yet
  ring_place used_;                    ///< where the next used descriptor goes
  std::uint32_t held_descriptors_ = 0; ///< of the chains that were held then
  std::uint32_t popped_ = 0;           ///< descriptors since then, up to a round beyond those
  std::uint32_t staged_ = 0;           ///< chains
  std::uint64_t counter_ = 0;
  reading state_ = reading::nothing;
  std::uint16_t free_ = 0;      ///< first free entry
  std::uint16_t chain_ = 0;     ///< first entry of the chain that is being read
  std::uint16_t tail_ = 0;      ///< last one of it so far
  std::uint32_t taken_ = 0;     ///< how many
  std::uint16_t last_id_ = 0;   //
  std::uint64_t address_ = 0;   //
  std::uint16_t order_[N]{};    ///< entries of the descriptors that were held
  std::uint16_t batch_[N]{};    ///< first entries of the chains that are staged
  std::uint16_t entry_of_[N]{}; ///< by buffer id: first entry of its chain
  std::uint16_t links_[N]{};    ///< by entry: the next one
  std::uint16_t last_[N]{};     ///< by first entry: the last one
  std::uint16_t count_[N]{};    ///< by first entry: how many
  bool is_free_[N]{};
};

} // namespace ballast::vhost_user
