// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

// The device's side of a queue whose driver is the input: it writes what it likes into guest
// memory, between the device's calls and between two of its loads. Beside it runs a model, which
// works out from the words that the engine loaded what it must have answered. What differs between
// the formats is in split_device.cpp and packed_device.cpp.

namespace ballast_fuzz {

using namespace ballast;

struct held_chain {
  chain_id id;
  std::uint64_t serial = 0; ///< in the order they were popped
  std::uint64_t writable_bytes = 0;
  std::uint32_t descriptors = 1; ///< packed: of the ring
};
struct popped_chain {
  std::uint16_t head = 0;
  std::uint64_t serial = 0;
};
struct returned_chain {
  std::uint32_t head = 0;
  std::uint32_t length = 0;
  bool is_full = false; ///< the driver may be left to think that all was written
  bool has_writable = true;
  std::uint32_t at = 0; ///< the step at which it is returned
  std::uint32_t descriptors = 1;
};
/// What the words say that the engine loaded of the next chain.
struct reading {
  error failure = error::none;
  std::uint32_t head = 0;
  std::vector<buffer> buffers;
  std::uint32_t readable = 0;
  std::uint32_t descriptors = 1;

  /// Adds a buffer, as far as the rules allow.
  [[nodiscard]] bool append(const buffer& b, bool is_writable, std::uint32_t size) {
    if (buffers.size() == size)
      failure = error::chain_loops;
    else if (!is_writable && readable++ != buffers.size())
      failure = error::readable_after_writable;
    else
      buffers.push_back(b);
    return failure == error::none;
  }
  /// The same for the whole chain.
  [[nodiscard]] bool is_too_long() const { return total_bytes(buffers) > std::uint64_t{1} << 32; }
};

/// What a device's queue should be in. Steps are counted on through 32 bits: index steps (split),
/// descriptors (packed).
struct device_model {
  input& in;
  std::uint32_t storage;
  guest_ram ram{};
  queue_layout layout{};
  feature_set features{};
  bool has_event_index = false;
  bool has_indirect = false;
  bool is_in_order = false;
  bool is_attached = false;
  std::uint32_t size = 0;
  std::uint32_t next_available = 0;
  std::uint32_t next_used = 0;
  std::uint32_t published = 0;
  std::uint32_t notified = 0;
  error cause = error::none;
  std::map<std::uint16_t, held_chain> held{};
  std::vector<returned_chain> returned{}; ///< and not published yet
  std::size_t checked = 0;                ///< of them
  bool can_decode = true;                 ///< a driver can tell what was returned
  bool can_count = true;                  ///< a device can tell how much it published

  [[nodiscard]] bool is_memory(guest_address address, std::uint64_t bytes) const {
    for (std::uint64_t i = 0; i < bytes; ++i)
      if (address + i < address || ram.find(address + i) == nullptr) return false;
    return true;
  }
  [[nodiscard]] std::uint32_t length_from() {
    const std::uint8_t b = in.byte();
    return b < 0xf0 ? 16u * (b % 17) : in.number<std::uint32_t>();
  }
};

/// Runs the engine of a format; `Peer` is its driver, and reads its rings.
template <class Peer> class device_scenario {
 public:
  template <std::uint32_t N>
  device_scenario(input& in, device_queue_storage<N>& storage) noexcept
      : m_{in, N}, peer_(m_), queue_(storage) {
    memories_.emplace_back(m_.ram);
    memory_ = &memories_.back();
  }

  void run() {
    start();
    for (int step = 0; step < 400 && !m_.in.empty(); ++step) {
      m_.ram.begin_call();
      peer_.begin_call();
      step_once();
      require(queue_.is_attached() == m_.is_attached, "attached is what start to detach made it");
      require(queue_.size() == m_.size, "the size is that of the last start");
      require(queue_.cause() == m_.cause, "the first cause stays until the next start");
      require(queue_.in_flight() == m_.held.size(), "in flight is what was popped, not returned");
    }
    return_all();
  }

 private:
  struct saved_queue {
    device_queue_state state;
    std::vector<held_head> heads;
  };

  /// What the queue is attached to, or was.
  hostile_memory& memory() noexcept { return *memory_; }
  [[nodiscard]] bool is_usable() const noexcept {
    return m_.is_attached && m_.cause == error::none;
  }

  void step_once() {
    switch (m_.in.below(24)) {
    case 0: start(); break;
    case 1: peer_.write_descriptor(); break;
    case 2: peer_.write_available(); break;
    case 3: peer_.offer(); break;
    case 4: peer_.offer(); break;
    case 5: write_anything(); break;
    case 6: plan_changes(m_.in, m_.ram); break;
    case 7: pop(); break;
    case 8: pop(); break;
    case 9: consume(); break;
    case 10: consume(); break;
    case 11: consume(1, m_.in.byte()); break;
    case 12: push_used(); break;
    case 13: push_used(); break;
    case 14: publish(); break;
    case 15: ask(); break;
    case 16: enable(); break;
    case 17: unpop(); break;
    case 18: attach(); break;
    case 19: save(); break;
    case 20: restore(); break;
    case 21: find_held(); break;
    case 22: peer_.write_table(); break;
    default: rare(); break;
    }
  }

  void write_anything() {
    const guest_address at = m_.ram.address_from(m_.in) + m_.in.below(8);
    m_.ram.poke(at, m_.in.number<std::uint64_t>(), std::size_t{1} << m_.in.below(4));
  }

  // The life of a queue.

  [[nodiscard]] bool can_map(const queue_layout& at) {
    return at.size <= m_.storage && Peer::can_map(good_memory(), at);
  }

  void forget() noexcept {
    for (const auto& [head, chain] : m_.held) stale_.push_back(chain.id);
    while (stale_.size() > 8) stale_.pop_front();
    m_.is_attached = false;
    m_.size = m_.next_available = m_.next_used = m_.published = m_.notified = 0;
    m_.cause = error::none;
    m_.held.clear();
    recent_.clear();
    m_.returned.clear();
    m_.checked = 0;
    m_.can_decode = m_.can_count = true;
  }

  /// Memory to attach to: the same, or another where that was lost.
  hostile_memory& good_memory() {
    if (!memories_.back().good()) memories_.emplace_back(m_.ram);
    return memories_.back();
  }

  void start() {
    const std::uint8_t bits = m_.in.byte();
    m_.has_event_index = (bits & 1) != 0;
    m_.has_indirect = (bits & 2) != 0;
    m_.is_in_order = (bits & 4) != 0;
    m_.features = {feature::version_1};
    if (Peer::is_packed) m_.features.set(feature::ring_packed);
    if (m_.has_event_index) m_.features.set(feature::event_idx);
    if (m_.has_indirect) m_.features.set(feature::indirect_desc);
    if (m_.is_in_order) m_.features.set(feature::in_order);
    hostile_memory& memory = good_memory();
    const queue_layout at = layout_from(m_.in, m_.ram, Peer::is_packed);
    const std::uint16_t first = (bits & 8) != 0 ? m_.in.number<std::uint16_t>() : std::uint16_t{0};
    const bool is_possible = can_map(at);
    const auto started = queue_.start(memory, at, m_.features, first);
    require(started.has_value() == is_possible, "start fails where the queue is not memory");
    require(m_.ram.words.empty() && m_.ram.stores.empty(), "start of a device touches no ring");
    forget();
    if (!started) return;
    adopt(at, memory);
    m_.next_available = m_.next_used = m_.published = m_.notified = peer_.first_step(first);
    peer_.begin();
  }

  void adopt(const queue_layout& at, hostile_memory& memory) {
    memory_ = &memory;
    m_.is_attached = true;
    m_.layout = at;
    m_.size = at.size;
  }

  void attach() {
    switch (m_.in.below(4)) {
    case 0:
      queue_.detach();
      m_.is_attached = false;
      return;
    case 1:
      queue_.reset();
      forget();
      return;
    default: break;
    }
    if (m_.in.flag()) {
      queue_.detach();
      m_.is_attached = false;
    }
    hostile_memory& memory = good_memory();
    queue_layout at = m_.layout;
    if (m_.in.flag()) {
      at = layout_from(m_.in, m_.ram, Peer::is_packed);
      if (m_.in.flag()) at.size = m_.size;
    }
    const bool is_possible = !m_.is_attached && m_.size != 0 && at.size == m_.size && can_map(at);
    const auto attached = queue_.attach(memory, at, m_.features);
    require(attached.has_value() == is_possible, "attach wants a detached queue of the same size");
    if (!attached) return;
    adopt(at, memory);
  }

  void save() {
    std::vector<held_head> heads(m_.in.flag() ? m_.held.size() : m_.in.below(m_.size + 1));
    const auto state = queue_.save(heads);
    const bool is_state_right = m_.size != 0 && m_.published == m_.next_used;
    if (is_overrun()) return;
    require(state.has_value() == (is_state_right && heads.size() >= m_.held.size()),
            "a queue is saved where nothing is staged");
    if (!state) return;
    heads.resize(m_.held.size());
    check_saved(heads);
    require(state->is_packed == Peer::is_packed && state->size == m_.size &&
                state->cause == m_.cause &&
                state->next_available == peer_.place(m_.next_available) &&
                state->next_used == peer_.place(m_.next_used) &&
                (!m_.can_count || state->unasked == unasked(m_.next_used - m_.notified)),
            "a saved state is the queue's");
    saved_ = {*state, heads};
  }

  void check_saved(const std::vector<held_head>& heads) const {
    std::uint64_t last = 0;
    std::map<std::uint16_t, int> seen;
    for (const auto [head, descriptors] : heads) {
      const auto found = m_.held.find(head);
      require(found != m_.held.end() && ++seen[head] == 1 &&
                  (!Peer::is_packed || found->second.descriptors == descriptors),
              "the heads in flight are saved once");
      if (!m_.is_in_order) continue;
      require(found->second.serial >= last, "IN_ORDER: heads are saved in their order");
      last = found->second.serial;
    }
  }

  /// How many descriptors, or index steps, a saved chain takes.
  [[nodiscard]] static std::uint32_t takes(std::uint32_t descriptors) noexcept {
    return Peer::is_packed ? descriptors : 1;
  }

  void restore() {
    saved_queue from = saved_;
    queue_layout at = m_.layout;
    const std::uint8_t how = m_.in.byte();
    if ((how & 1) != 0) at.size = saved_.state.size;
    if ((how & 2) != 0) at = layout_from(m_.in, m_.ram, Peer::is_packed);
    if ((how & 4) != 0 && !from.heads.empty())
      peer_.corrupt(from.heads[m_.in.below(static_cast<std::uint32_t>(from.heads.size()))]);
    if ((how & 8) != 0) from.state.next_available = peer_.corrupt(from.state.next_available);
    if ((how & 16) != 0) from.state.next_used = peer_.corrupt(from.state.next_used);
    if ((how & 32) != 0) from.state.unasked = m_.in.number<std::uint32_t>() % 65540;
    if ((how & 64) != 0) from.state.cause = static_cast<error>(m_.in.byte());
    if ((how & 128) != 0) from.state.version = m_.in.byte();
    hostile_memory& memory = good_memory();

    bool is_valid = from.state.version == 1 && from.state.is_packed == Peer::is_packed &&
                    from.state.size == at.size && can_map(at) && is_cause(from.state.cause) &&
                    from.state.unasked <= 65536;
    std::uint32_t kept = 0;
    std::map<std::uint16_t, int> seen;
    for (const auto [head, descriptors] : from.heads) {
      is_valid = is_valid && head < at.size && ++seen[head] == 1 && takes(descriptors) != 0;
      kept += takes(descriptors);
    }
    is_valid = is_valid && kept <= at.size && peer_.is_between(from.state, kept);
    const auto restored = queue_.restore(memory, at, m_.features, from.state, from.heads);
    require(restored.has_value() == is_valid, "only a state that fits together is restored");
    require(m_.ram.words.empty() && m_.ram.stores.empty(), "restoring touches no ring");
    if (!restored) return;
    forget();
    adopt(at, memory);
    m_.next_used = m_.published = peer_.step(from.state.next_used);
    m_.next_available = m_.next_used + kept;
    m_.notified = m_.next_used - from.state.unasked;
    m_.cause = from.state.cause;
    for (const auto [head, descriptors] : from.heads) {
      const auto id = queue_.held_chain(head);
      require(id.has_value() && id->head == head, "what a restored queue holds has an id");
      // Nothing is known of what may be written to it.
      m_.held[head] = {*id, ++serial_, 1, takes(descriptors)};
    }
    peer_.restored(m_.in.flag());
  }

  void rare() {
    switch (m_.in.below(4)) {
    case 0: memory().lose(); break;
    case 1: {
      const auto why = static_cast<error>(64 + m_.in.below(24));
      queue_.fail(why);
      if (m_.cause == error::none) m_.cause = why;
      break;
    }
    case 2:
      queue_.disable_notifications();
      if (m_.is_attached && !m_.has_event_index)
        require(m_.ram.stores.size() == 1 && peer_.is_disabled(m_.ram.stores[0]),
                "flags say that notifications are not needed");
      else
        require(m_.ram.stores.empty(), "with EVENT_IDX the flags stay 0");
      break;
    default:
      if constexpr (Peer::is_packed)
        if (m_.in.flag()) return go_round();
      peer_.take_back();
      break;
    }
  }

  /// Some chains of one buffer, each returned at once: places repeat after two rounds.
  void go_round() {
    for (std::uint32_t n = m_.in.below(4 * m_.size); n != 0 && is_usable(); --n) {
      m_.ram.begin_call();
      peer_.offer_next();
      consume(1, 0);
      m_.ram.begin_call();
      publish();
    }
  }

  // Popping.

  void check_chain(const chain& c, const reading& expected) {
    require(expected.failure == error::none, "a chain that breaks a rule is not handed out");
    require(c.id().head == expected.head, "a chain has the head that the driver made available");
    require(std::find(stale_.begin(), stale_.end(), c.id()) == stale_.end(),
            "an id of an earlier life does not come back");
    require(m_.held.empty() || m_.held.begin()->second.id.epoch == c.id().epoch,
            "a life has one epoch");
    require(c.readable().size() == expected.readable &&
                c.writable().size() == expected.buffers.size() - expected.readable,
            "a chain has the buffers that the driver gave it");
    for (std::size_t i = 0; i < expected.buffers.size(); ++i)
      require((i < expected.readable ? c.readable()[i] : c.writable()[i - expected.readable]) ==
                  expected.buffers[i],
              "each buffer is what was read of it, once");
    if ((expected.head & 3) == 0) read_payload(c);
  }

  /// The buffers as one run of bytes, as far as memory goes.
  void read_payload(const chain& c) {
    m_.ram.is_quiet = true;
    buffer_reader<hostile_memory> reader(memory(), c.readable());
    std::vector<std::byte> got;
    std::byte piece[24];
    bool has_failed = false;
    while (got.size() < 240) {
      const auto read = reader.read(std::span(piece).first(1 + got.size() % 24));
      if (!read) {
        has_failed = true;
        break;
      }
      got.insert(got.end(), piece, piece + *read);
      if (*read < 1 + got.size() % 24 && *read == 0) break;
    }
    std::size_t at = 0;
    for (const buffer& b : c.readable())
      for (std::uint64_t i = 0; i < b.length && at < got.size(); ++i, ++at) {
        const guest_ram::region* r = m_.ram.find(b.address + i);
        require(r != nullptr, "only memory is read");
        require(r->data[b.address + i - r->address] == got[at], "the bytes are those of memory");
      }
    require(at == got.size(), "no more bytes come than the buffers have");
    if (has_failed && memory().good())
      require(!std::all_of(c.readable().begin(), c.readable().end(),
                           [&](const buffer& b) { return m_.is_memory(b.address, b.length); }),
              "a buffer is readable where it is all memory");
    m_.ram.is_quiet = false;
  }

  static std::uint64_t writable_bytes(const reading& r) {
    return total_bytes(std::span(r.buffers).subspan(r.readable));
  }

  void hold(const chain_id& id, const reading& r) {
    m_.held[id.head] = {id, ++serial_, writable_bytes(r), r.descriptors};
    recent_.push_back({id.head, serial_});
    m_.next_available += r.descriptors;
  }

  /// Checks an answer that no chain came with.
  void check_failure(error answer, error expected) {
    if (!memory().good()) return require(answer == error::memory_lost, "lost memory is reported");
    require(answer == expected, "the error names the rule that was broken");
    if (m_.cause == error::none && expected != error::queue_empty) m_.cause = expected;
  }

  /// How much a call may do for one chain: a queue of `size` has no longer one.
  [[nodiscard]] std::uint64_t chain_bound() const noexcept {
    return 8 + 3 * std::uint64_t{m_.size};
  }

  void pop() {
    const auto popped = queue_.pop_available();
    require(m_.ram.stores.empty(), "popping stores nothing");
    require(m_.ram.accesses <= 1 + chain_bound(), "popping is bounded by the queue size");
    if (!is_usable()) {
      require(popped.error() == (m_.is_attached ? m_.cause : error::not_attached),
              "a queue that is broken or detached pops nothing");
      return require(m_.ram.words.empty(), "a broken queue is not read");
    }
    if (!memory().good()) return check_failure(popped.error(), error::memory_lost);
    const reading r = peer_.next_chain();
    if (!popped) return check_failure(popped.error(), r.failure);
    check_chain(*popped, r);
    require(m_.ram.is_all_taken(), "each word is loaded once");
    hold(popped->id(), r);
  }

  void consume() {
    const std::uint32_t budget = m_.in.below(m_.size + 3);
    consume(budget, m_.in.byte());
  }

  /// Of `answers` each bit keeps a chain; the others are returned.
  void consume(std::uint32_t budget, std::uint8_t answers) {
    const bool was_usable = is_usable() && memory().good();
    std::uint32_t handled = 0;
    bool is_early = false;
    const auto handle = [&](const chain& c) {
      require(was_usable && memory().good(), "a handler sees no chain of a queue that is broken");
      require(handled++ < budget && !is_early, "the budget is kept");
      const reading r = peer_.next_chain();
      check_chain(c, r);
      const std::uint64_t bytes = writable_bytes(r);
      const bool is_kept = (answers >> (handled % 8) & 1) != 0;
      std::uint32_t length = static_cast<std::uint32_t>(bytes);
      if ((answers & 0x11) == 0x10) length = m_.in.byte();
      is_early = !is_kept && m_.is_in_order && !m_.held.empty();
      if (is_kept || is_early) {
        hold(c.id(), r);
      } else {
        give_back(c.id(), length, length == bytes, !c.writable().empty(), r.descriptors);
        m_.next_available += r.descriptors;
        recent_.clear();
      }
      return is_kept ? keep() : used(length);
    };
    const auto done = budget == 1 ? queue_.consume_one(handle) : queue_.consume(budget, handle);
    require(m_.ram.accesses <= 1 + (std::uint64_t{handled} + 1) * chain_bound(),
            "consuming is bounded by budget and queue size");
    peer_.check_returned();
    if (!m_.is_attached) return require(done.error() == error::not_attached, "detached: no chain");
    if (!was_usable && m_.cause != error::none)
      return require(done.error() == m_.cause && m_.ram.words.empty(), "broken: no chain");
    if (!memory().good())
      return require(done.error() == error::memory_lost ||
                         (handled != 0 && (done || done.error() == error::used_out_of_order)),
                     "lost memory is reported");
    if (is_early)
      return require(done.error() == error::used_out_of_order, "IN_ORDER: an older one is kept");
    bool has_more = false;
    if (handled < budget) {
      const reading r = peer_.next_chain();
      require(r.failure != error::none, "consuming stops early only where a rule was broken");
      if (r.failure != error::queue_empty) return check_failure(done.error(), r.failure);
    } else if (const error e = peer_.look(has_more); e != error::none) {
      return check_failure(done.error(), e);
    }
    require(done.has_value() && done->chains == handled && done->has_more == has_more,
            "consuming says what it did");
    require(m_.ram.is_all_taken(), "each word is loaded once");
  }

  // Returning.

  /// A driver that offers entries again that it has not got back has itself to blame: places in a
  /// packed ring repeat after two rounds.
  [[nodiscard]] bool is_overrun() const noexcept {
    return Peer::is_packed && m_.next_used - m_.published > m_.size;
  }

  void give_back(const chain_id& id, std::uint32_t length, bool is_full, bool has_writable,
                 std::uint32_t descriptors) {
    // A driver that offers again what it has not got back can't tell which of the two it gets.
    for (const returned_chain& r : m_.returned)
      if (r.head == id.head) m_.can_decode = false;
    m_.returned.push_back({id.head, length, is_full, has_writable, m_.next_used, descriptors});
    m_.next_used += descriptors;
    if (is_overrun()) m_.can_decode = m_.can_count = false;
  }

  void push_used() {
    chain_id id{static_cast<std::uint16_t>(m_.in.byte()), 0};
    const std::uint8_t which = m_.in.byte();
    const auto pick = [&](std::size_t n) { return static_cast<std::ptrdiff_t>(which % n); };
    if (which >= 0xf0 && !stale_.empty())
      id = stale_[static_cast<std::size_t>(pick(stale_.size()))];
    else if (which >= 0xe0 && !m_.held.empty())
      id.epoch = m_.held.begin()->second.id.epoch;
    else if (!m_.held.empty())
      id = std::next(m_.held.begin(),
                     m_.is_in_order && which < 0xc0 ? oldest() : pick(m_.held.size()))
               ->second.id;
    const auto length = m_.in.number<std::uint16_t>();
    return_one(id, length);
  }

  [[nodiscard]] std::ptrdiff_t oldest() const {
    const auto is_older = [](const auto& a, const auto& b) {
      return a.second.serial < b.second.serial;
    };
    return std::distance(m_.held.begin(),
                         std::min_element(m_.held.begin(), m_.held.end(), is_older));
  }

  void return_one(chain_id id, std::uint32_t length) {
    const auto found = m_.held.find(id.head);
    const bool is_held = found != m_.held.end() && found->second.id == id;
    const bool is_turn =
        !m_.is_in_order || (is_held && found == std::next(m_.held.begin(), oldest()));
    const auto pushed = queue_.push_used(id, length);
    require(m_.ram.words.empty(), "returning a chain loads nothing");
    require(pushed.has_value() == (m_.is_attached && is_held && is_turn && memory().good()),
            "exactly what is held can be returned");
    if (!pushed) {
      require(m_.ram.stores.empty(), "nothing changes where returning fails");
      if (m_.is_attached && memory().good() && is_held)
        require(pushed.error() == error::used_out_of_order, "IN_ORDER: the oldest goes first");
      if (m_.is_attached && std::find(stale_.begin(), stale_.end(), id) != stale_.end())
        require(pushed.error() == error::stale_chain, "an id of an earlier life is stale");
      return;
    }
    // Whether a handler that returns it later wrote all of it is not asked.
    give_back(id, length, false, found->second.writable_bytes != 0, found->second.descriptors);
    m_.held.erase(found);
    peer_.check_returned();
  }

  void publish() {
    if constexpr (Peer::is_packed)
      if (m_.in.flag()) return publish_and_ask();
    queue_.publish();
    require(m_.ram.words.empty(), "publishing loads nothing");
    check_published();
  }

  void publish_and_ask() {
    const bool answer = queue_.publish_and_ask();
    require(m_.ram.words.size() <= 1, "asking is one load");
    check_published();
    check_asked(answer);
  }

  void check_published() {
    if (!m_.is_attached || m_.published == m_.next_used)
      return require(m_.ram.stores.empty(), "there is nothing to publish");
    peer_.check_published(!is_overrun());
    m_.published = m_.next_used;
    m_.returned.clear();
    m_.checked = 0;
    m_.can_decode = true;
  }

  void ask() {
    const bool answer = queue_.should_notify();
    require(m_.ram.stores.empty() && m_.ram.accesses <= 1, "asking is one load");
    check_asked(answer);
  }

  void check_asked(bool answer) {
    const std::uint32_t old = m_.notified, now = m_.published;
    if (!m_.is_attached) return require(!answer, "nobody is notified while detached");
    m_.notified = now;
    if (!std::exchange(m_.can_count, !is_overrun())) return;
    if (old == now) return require(!answer, "nobody is notified of nothing");
    peer_.check_asked(answer, old, now);
  }

  void enable() {
    const bool has_more = queue_.enable_notifications();
    if (!is_usable()) {
      require(!has_more && m_.ram.words.empty() && m_.ram.stores.empty(),
              "broken: nothing is enabled");
      return;
    }
    require(m_.ram.stores.size() == 1 && peer_.is_enabled(m_.ram.stores[0]),
            "the driver is asked to notify");
    bool is_there = false;
    if (!memory().good()) return require(!has_more, "lost memory has no more");
    const error e = peer_.look(is_there);
    require(has_more == (is_there || e != error::none), "what is there already is said");
    require(m_.ram.is_all_taken(), "each word is loaded once");
  }

  void unpop() {
    const std::uint8_t how = m_.in.byte();
    const std::uint32_t count = how < 0xf8 ? how % (m_.size + 2u) : m_.in.number<std::uint32_t>();
    bool is_possible = count <= recent_.size();
    for (std::size_t i = 0; is_possible && i < count; ++i) {
      const popped_chain& p = recent_[recent_.size() - 1 - i];
      const auto found = m_.held.find(p.head);
      is_possible = found != m_.held.end() && found->second.serial == p.serial;
    }
    const auto given = queue_.unpop(count);
    require(m_.ram.accesses == 0, "giving back touches no memory");
    require(given.has_value() == is_possible, "chains are given back where all are held");
    if (!given) return;
    for (std::uint32_t i = 0; i < count; ++i) {
      m_.next_available -= m_.held[recent_.back().head].descriptors;
      m_.held.erase(recent_.back().head);
      recent_.pop_back();
    }
  }

  void find_held() {
    const auto head = m_.in.number<std::uint16_t>();
    const std::uint16_t candidates[] = {head, static_cast<std::uint16_t>(head % 64)};
    for (const std::uint16_t h : candidates) {
      const auto id = queue_.held_chain(h);
      const auto found = m_.held.find(h);
      require(id.has_value() == (found != m_.held.end()), "exactly what is held has an id");
      if (id) require(*id == found->second.id, "the id is the one it was popped with");
    }
  }

  /// At the end every chain that is still held goes back, whatever happened before.
  void return_all() {
    m_.ram.changes.clear();
    if (m_.size == 0) return;
    if (!memory().good() || !m_.is_attached) {
      queue_.detach();
      if (!can_map(m_.layout)) return;
      memory_ = &good_memory();
      require(queue_.attach(*memory_, m_.layout, m_.features).has_value(), "it is attached again");
      m_.is_attached = true;
    }
    while (!m_.held.empty()) {
      m_.ram.begin_call();
      return_one(std::next(m_.held.begin(), m_.is_in_order ? oldest() : 0)->second.id, 0);
    }
    m_.ram.begin_call();
    publish();
    require(queue_.in_flight() == 0, "nothing stays in flight");
  }

  device_model m_;
  Peer peer_;
  std::deque<hostile_memory> memories_; ///< all but the last are lost
  hostile_memory* memory_ = nullptr;
  typename Peer::queue queue_;
  std::uint64_t serial_ = 0;
  std::vector<popped_chain> recent_; ///< since one was used at once
  std::deque<chain_id> stale_;
  saved_queue saved_;
};

/// Runs an input with an engine whose storage is of the size that the input says.
template <template <std::endian> class Peer> void run_device(input in) {
  const auto run_with = [&]<std::uint32_t N, std::endian E>() {
    const auto storage = std::make_unique<device_queue_storage<N>>();
    device_scenario<Peer<E>>(in, *storage).run();
  };
  switch (in.below(4)) {
  case 0: return run_with.template operator()<256, std::endian::little>();
  case 1: return run_with.template operator()<256, std::endian::big>();
  case 2: return run_with.template operator()<8, std::endian::little>();
  default: return run_with.template operator()<33, std::endian::little>();
  }
}

} // namespace ballast_fuzz
