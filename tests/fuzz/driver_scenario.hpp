// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <span>
#include <utility>
#include <vector>

// The driver's side of a queue whose device is the input: it writes what it likes into the shared
// memory, between the driver's calls and between two of its loads. Beside it runs a model, which
// works out from the words that the engine loaded what it must have answered, and from those that
// it stored what a device would see. What differs between the formats is in split_driver.cpp and
// packed_driver.cpp.

namespace ballast_fuzz {

using namespace ballast;

struct added_chain {
  std::uint64_t token = 0;
  std::uint32_t writable = 0;
  std::uint32_t position = 0;           ///< the step at which it was added
  std::uint32_t descriptors = 0;        ///< of the ring
  std::vector<std::uint32_t> entries{}; ///< split: which
};
/// By head (split) or buffer id (packed).
using added_chains = std::map<std::uint32_t, added_chain>;

/// A chain as it was given.
struct staged_chain {
  added_chain chain;
  std::vector<buffer> buffers;
  std::size_t readable = 0;
  bool is_indirect = false;
  indirect_tables tables{};
};
enum class area { descriptors, driver, tables };

/// What a driver's queue should be in. Steps are counted on through 32 bits: index steps (split),
/// descriptors (packed).
struct driver_model {
  input& in;
  std::uint32_t storage;
  guest_ram ram{};
  queue_layout layout{};
  indirect_tables tables{};
  feature_set features{};
  bool has_event_index = false;
  bool has_indirect = false;
  bool is_in_order = false;
  bool is_attached = false;
  std::uint32_t size = 0;
  std::uint32_t next_available = 0;
  std::uint32_t published = 0;
  std::uint32_t notified = 0;
  std::uint32_t next_used = 0;
  error cause = error::none;
  added_chains chains{};
  std::vector<staged_chain> staged{}; ///< packed: their ids are not known yet
  /// What was written, by area and offset: what a device sees that changed nothing.
  std::map<std::pair<area, guest_address>, stored_word> shadow{};

  [[nodiscard]] std::uint32_t length_from() {
    const std::uint8_t b = in.byte();
    return b < 0xf0 ? 16u * (b % 17) : in.number<std::uint32_t>();
  }
  /// In the memory's byte order.
  template <class T> [[nodiscard]] T seen_by_device(area part, guest_address offset) const {
    const auto found = shadow.find({part, offset});
    require(found != shadow.end() && found->second.width == sizeof(T),
            "every word of a chain is written");
    return static_cast<T>(found->second.value);
  }
  [[nodiscard]] bool is_staged(const added_chain& c) const noexcept {
    return static_cast<std::int32_t>(c.position - published) >= 0;
  }
  [[nodiscard]] bool is_indirect(std::size_t buffers) const noexcept {
    return has_indirect && buffers > 1 && buffers <= tables.entries;
  }
  /// The chain that was added at a step; IN_ORDER.
  [[nodiscard]] added_chains::iterator find_at(std::uint32_t position) {
    return std::find_if(chains.begin(), chains.end(),
                        [&](const auto& c) { return c.second.position == position; });
  }
};

/// Runs the engine of a format; `Peer` is its device, and reads its rings.
template <class Peer> class driver_scenario {
 public:
  driver_scenario(input& in, std::uint32_t storage)
      : m_{in, storage}, peer_(m_), slots_(storage), queue_(slots_) {
    memories_.emplace_back(m_.ram);
    memory_ = &memories_.back();
  }

  void run() {
    start();
    for (int step = 0; step < 400 && !m_.in.empty(); ++step) {
      m_.ram.begin_call();
      step_once();
      check_sums();
    }
    m_.ram.begin_call();
    drain();
    check_sums();
  }

 private:
  struct saved_queue {
    driver_queue_state state;
    std::vector<driver_slot> slots;
  };

  [[nodiscard]] bool is_usable() const noexcept {
    return m_.is_attached && m_.cause == error::none;
  }
  hostile_memory& memory() noexcept { return *memory_; }

  void check_sums() const {
    require(queue_.is_attached() == m_.is_attached, "attached is what start to detach made it");
    require(queue_.size() == m_.size, "the size is that of the last start");
    require(queue_.cause() == m_.cause, "the first cause stays until the next start");
    require(queue_.in_flight() == m_.chains.size() + m_.staged.size(),
            "in flight is what was added, not taken back");
    require(queue_.free_descriptors() == free_descriptors(),
            "free and in flight are all descriptors");
  }

  void step_once() {
    switch (m_.in.below(24)) {
    case 0: start(); break;
    case 1: peer_.write_used_element(); break;
    case 2: peer_.write_used_index(); break;
    case 3: peer_.return_one(); break;
    case 4: peer_.return_one(); break;
    case 5: peer_.return_one(); break;
    case 6: write_anything(); break;
    case 7: plan_changes(m_.in, m_.ram); break;
    case 8: add(); break;
    case 9: add(); break;
    case 10: add(); break;
    case 11: add_each(); break;
    case 12: publish(); break;
    case 13: publish(); break;
    case 14: ask(); break;
    case 15: pop(); break;
    case 16: pop(); break;
    case 17: reclaim(); break;
    case 18: reclaim(); break;
    case 19: enable(); break;
    case 20: attach(); break;
    case 21: save(); break;
    case 22: restore(); break;
    default: rare(); break;
    }
  }

  void write_anything() {
    const guest_address at = m_.ram.address_from(m_.in) + m_.in.below(8);
    m_.ram.poke(at, m_.in.number<std::uint64_t>(), std::size_t{1} << m_.in.below(4));
  }

  // The life of a queue.

  [[nodiscard]] hostile_memory& good_memory() {
    if (!memories_.back().good()) memories_.emplace_back(m_.ram);
    return memories_.back();
  }

  [[nodiscard]] bool can_map(const queue_layout& at, const indirect_tables& tables) {
    hostile_memory& m = good_memory();
    return at.size <= m_.storage && Peer::can_map(m, at) &&
           (!m_.has_indirect || tables.entries == 0 ||
            m.window(tables.address, tables.bytes(at.size), 16, access::write));
  }

  /// A driver that puts its parts on top of each other has itself to blame.
  [[nodiscard]] bool is_overlapping(const queue_layout& at, const indirect_tables& tables) {
    if (!can_map(at, tables)) return false; // refused
    struct range {
      guest_address address;
      std::uint64_t size;
    };
    const range parts[] = {{at.descriptor_area, std::uint64_t{16} * at.size},
                           {at.driver_area, Peer::driver_area_bytes(at.size)},
                           {at.device_area, Peer::device_area_bytes(at.size)},
                           {tables.address, m_.has_indirect ? tables.bytes(at.size) : 0}};
    for (const range& a : parts)
      for (const range& b : parts)
        if (&a != &b && b.address - a.address < a.size && b.size != 0) return true;
    return false;
  }

  void adopt(const queue_layout& at, const indirect_tables& tables, hostile_memory& memory) {
    m_.is_attached = true;
    m_.layout = at;
    m_.size = at.size;
    m_.tables = tables;
    memory_ = &memory;
  }

  indirect_tables tables_from() {
    indirect_tables tables;
    const std::uint8_t how = m_.in.byte();
    tables.entries = how < 0xf0 ? how % 6u : m_.in.number<std::uint32_t>();
    tables.address = how < 0x80 ? 0x1'0000'0000 : m_.ram.address_from(m_.in);
    return tables;
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
    const indirect_tables tables = m_.has_indirect ? tables_from() : indirect_tables{};
    if (is_overlapping(at, tables)) return drain();
    const bool is_possible =
        can_map(at, tables) &&
        memory.window(at.device_area, Peer::device_area_bytes(at.size), 4, access::write)
            .has_value();
    const auto started = queue_.start(memory, at, m_.features, first, tables);
    require(started.has_value() == is_possible, "start fails where the queue is not memory");
    require(m_.ram.words.empty(), "start loads nothing");
    m_.is_attached = false;
    if (!started) {
      // The last life is forgotten all the same.
      m_.chains.clear();
      m_.staged.clear();
      drain();
      return;
    }
    adopt(at, tables, memory);
    m_.next_available = m_.next_used = m_.published = m_.notified = peer_.first_step(first);
    m_.cause = error::none;
    m_.chains.clear();
    m_.staged.clear();
    m_.shadow.clear();
    peer_.begin();
  }

  void attach() {
    if (m_.in.below(4) == 0 || m_.in.flag()) {
      queue_.detach();
      m_.is_attached = false;
      if (m_.in.flag()) return;
    }
    hostile_memory& memory = good_memory();
    queue_layout at = m_.layout;
    indirect_tables tables = m_.tables;
    if (m_.in.flag()) {
      at = layout_from(m_.in, m_.ram, Peer::is_packed);
      if (m_.in.flag()) at.size = m_.size;
      if (m_.in.flag()) tables = peer_.attached_tables(tables_from());
    }
    if (is_overlapping(at, tables)) return;
    const bool is_possible =
        !m_.is_attached && m_.size != 0 && at.size == m_.size && can_map(at, tables);
    const auto attached = queue_.attach(memory, at, m_.features, tables);
    require(attached.has_value() == is_possible, "attach wants a detached queue of the same size");
    require(m_.ram.accesses == 0, "attaching touches no ring");
    if (attached) adopt(at, tables, memory);
  }

  void drain() {
    std::map<std::uint64_t, int> left;
    for (const auto& [head, chain] : m_.chains) ++left[chain.token];
    for (const staged_chain& s : m_.staged) ++left[s.chain.token];
    std::size_t count = 0;
    queue_.drain([&](std::uint64_t token) {
      require(left[token]-- > 0, "draining hands back what was added, once");
      ++count;
    });
    require(count == m_.chains.size() + m_.staged.size(), "draining hands back everything");
    m_.chains.clear();
    m_.staged.clear();
    m_.is_attached = false;
    m_.size = 0;
    m_.next_used = m_.published = m_.notified = m_.next_available;
  }

  void save() {
    std::vector<driver_slot> slots(m_.in.flag() ? m_.size : m_.in.below(m_.size + 1));
    const auto state = queue_.save(slots);
    const bool is_possible =
        m_.size != 0 && m_.published == m_.next_available && slots.size() >= m_.size;
    require(state.has_value() == is_possible, "a queue is saved where nothing is staged");
    if (!state) return;
    require(state->is_packed == Peer::is_packed && state->size == m_.size &&
                state->cause == m_.cause &&
                state->next_available == peer_.place(m_.next_available) &&
                state->next_used == peer_.place(m_.next_used) &&
                state->unasked == unasked(m_.published - m_.notified),
            "a saved state is the queue's");
    saved_ = {*state, slots};
    if (m_.in.flag()) return;
    // What is saved can be restored at once, and is the same.
    queue_.detach();
    m_.is_attached = false;
    if (!can_map(m_.layout, m_.tables)) return;
    hostile_memory& memory = good_memory();
    require(queue_.restore(memory, m_.layout, m_.features, *state, slots, m_.tables).has_value(),
            "what was saved can be restored");
    adopt(m_.layout, m_.tables, memory);
  }

  void restore() {
    saved_queue from = saved_;
    peer_.corrupt(from.state, from.slots, m_.in.byte());
    queue_.detach();
    m_.is_attached = false;
    hostile_memory& memory = good_memory();
    queue_layout at = m_.layout;
    at.size = from.state.size;
    if (is_overlapping(at, m_.tables)) return;
    const auto restored =
        queue_.restore(memory, at, m_.features, from.state, from.slots, m_.tables);
    require(m_.ram.accesses == 0, "restoring touches no ring");
    if (!restored) return;
    require(can_map(at, m_.tables), "a queue is restored only in memory");
    adopt(at, m_.tables, memory);
    m_.cause = from.state.cause;
    m_.chains.clear();
    m_.staged.clear();
    peer_.restored(from.state, from.slots);
    m_.notified = m_.published - from.state.unasked;
  }

  void rare() {
    switch (m_.in.below(4)) {
    case 0: memory().lose(); break;
    case 1: drain(); break;
    case 2:
      queue_.disable_notifications();
      if (m_.is_attached && !m_.has_event_index)
        require(m_.ram.stores.size() == 1 && peer_.is_disabled(m_.ram.stores[0]),
                "flags say that notifications are not needed");
      else
        require(m_.ram.stores.empty(), "with EVENT_IDX the flags stay 0");
      break;
    default:
      require(m_.size == 0 || queue_.notification_data(5) ==
                                  (5u | std::uint32_t{peer_.place(m_.published)} << 16),
              "notification data are the index of the queue and of the ring");
      break;
    }
  }

  // Adding.

  [[nodiscard]] std::uint32_t free_descriptors() const {
    std::uint32_t used = 0;
    for (const auto& [head, chain] : m_.chains) used += chain.descriptors;
    for (const staged_chain& s : m_.staged) used += s.chain.descriptors;
    require(used <= m_.size, "no more descriptors are in use than there are");
    return m_.size - used;
  }

  buffer buffer_from() { return {m_.ram.address_from(m_.in), m_.length_from()}; }

  /// Takes what was stored into the shadow.
  void take_stores() {
    const std::pair<guest_address, std::uint64_t> areas[] = {
        {m_.layout.descriptor_area, 16 * std::uint64_t{m_.size}},
        {m_.layout.driver_area, Peer::driver_area_bytes(m_.size)},
        {m_.tables.address, m_.has_indirect ? m_.tables.bytes(m_.size) : 0}};
    for (const stored_word& s : m_.ram.stores) {
      std::size_t i = 0;
      while (i < 3 && s.address - areas[i].first >= areas[i].second) ++i;
      require(i < 3 && s.width <= areas[i].second - (s.address - areas[i].first),
              "a driver writes only what is the driver's");
      m_.shadow[{static_cast<area>(i), s.address - areas[i].first}] = s;
    }
  }

  void add() {
    const std::uint8_t how = m_.in.byte();
    const std::uint32_t limit = how < 0xe0 ? 4 : m_.size + 2;
    std::vector<buffer> readable(how < 0xe0 ? how % 4 : m_.in.below(limit)),
        writable(how < 0xe0 ? how / 4 % 4 : m_.in.below(limit));
    const buffer last = buffer_from();
    for (buffer& b : readable) b = readable.size() < 4 ? buffer_from() : last;
    for (buffer& b : writable) b = writable.size() < 4 ? buffer_from() : last;
    const std::uint64_t token = ++token_;
    const std::size_t count = readable.size() + writable.size();
    const bool is_indirect = m_.is_indirect(count);
    const bool is_possible = is_usable() && memory().good() && count != 0 && count <= m_.size &&
                             (is_indirect ? 1 : count) <= free_descriptors() &&
                             total_bytes(readable) + total_bytes(writable) <= UINT32_MAX;
    const auto added = queue_.add(readable, writable, token);
    require(added.has_value() == is_possible, "a chain is added where there is room");
    require(m_.ram.words.empty(), "adding loads nothing");
    // Free descriptors are the driver's own: a chain that turns out too long may be written there.
    if (!added)
      return require(m_.ram.stores.empty() || added.error() == error::chain_bytes_overflow,
                     "nothing changes where adding fails");
    require(m_.ram.accesses <= 3 + 2 * count, "adding is bounded by the chain");
    take_stores();
    peer_.check_added(readable, writable, token);
  }

  void add_each() {
    std::vector<single_buffer> given(m_.in.below(m_.size + 3));
    const buffer first = buffer_from();
    const std::uint8_t writable = m_.in.byte();
    for (std::size_t i = 0; i < given.size(); ++i)
      given[i] = {{first.address + 16 * i, first.length}, (writable >> (i % 8) & 1) != 0, ++token_};
    const std::size_t expected = std::min<std::size_t>(free_descriptors(), given.size());
    std::size_t asked = 0;
    const auto added =
        queue_.add_each(static_cast<std::uint32_t>(given.size()), [&] { return given[asked++]; });
    require(m_.ram.words.empty(), "adding loads nothing");
    require(added.has_value() == (is_usable() && memory().good()), "a working queue takes chains");
    if (!added) return require(asked == 0 && m_.ram.stores.empty(), "nothing changes otherwise");
    require(*added == expected && asked == expected, "as many are added as there is room for");
    require(m_.ram.accesses <= 3 * expected, "adding is bounded by what is added");
    take_stores();
    for (std::size_t i = 0; i < expected; ++i) {
      const std::span<const buffer> one(&given[i].data, 1), none;
      const bool is_writable = given[i].is_writable;
      peer_.check_added(is_writable ? none : one, is_writable ? one : none, given[i].token);
    }
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
    if (!m_.is_attached || m_.published == m_.next_available)
      return require(m_.ram.stores.empty(), "there is nothing to publish");
    require(m_.ram.stores.size() == 1 && m_.ram.stores[0].how == ballast::order::release,
            "publishing is one release store");
    take_stores();
    peer_.check_published(m_.ram.stores[0]);
    m_.published = m_.next_available;
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
    if (old == now) return require(!answer, "nobody is notified of nothing");
    peer_.check_asked(answer, old, now);
  }

  void enable() {
    const bool has_more = queue_.enable_notifications();
    if (!is_usable()) {
      require(!has_more && m_.ram.accesses == 0, "broken: nothing is enabled");
      return;
    }
    require(m_.ram.stores.size() == 1 && peer_.is_enabled(m_.ram.stores[0]),
            "the device is asked to notify");
    require(has_more == (peer_.look() && memory().good()), "what is there already is said");
  }

  // Taking back.

  void check_failure(error answer, error expected) {
    if (!memory().good()) return require(answer == error::memory_lost, "lost memory is reported");
    require(answer == expected, "the error names the rule that was broken");
    if (expected != error::queue_empty) m_.cause = expected;
  }

  void pop() {
    const auto popped = queue_.pop_used();
    require(m_.ram.stores.empty() && m_.ram.accesses <= 3, "taking back is three loads");
    if (!is_usable()) {
      require(popped.error() == (m_.is_attached ? m_.cause : error::not_attached) &&
                  m_.ram.words.empty(),
              "a queue that is broken or detached gives nothing");
      return;
    }
    peer_.begin_taking();
    if (!memory().good() && !peer_.has_run())
      return check_failure(popped.error(), error::memory_lost);
    added_chain chain;
    std::uint32_t length = 0;
    const error e = peer_.take_next(chain, length);
    require(m_.ram.is_all_taken(), "each word is loaded once");
    if (!popped) return check_failure(popped.error(), e);
    check_taken(*popped, e, chain, length);
  }

  void check_taken(const used_buffer& got, error failure, const added_chain& chain,
                   std::uint32_t length) {
    require(failure == error::none, "what breaks a rule is not handed out");
    require(got.token == chain.token, "a chain comes back once, with its token");
    require(got.length == length, "the length is what was written, at most what could be");
  }

  void reclaim() {
    const bool was_usable = is_usable();
    const std::uint32_t budget = m_.in.below(m_.size + 3);
    std::uint32_t count = 0;
    peer_.begin_taking();
    const auto done = queue_.reclaim(budget, [&](const used_buffer& got) {
      require(was_usable && (memory().good() || peer_.has_run()), "a broken queue gives nothing");
      require(count++ < budget, "the budget is kept");
      added_chain chain;
      std::uint32_t length = 0;
      const error e = peer_.take_next(chain, length);
      check_taken(got, e, chain, length);
    });
    require(m_.ram.stores.empty() && m_.ram.accesses <= 1 + 2 * (std::uint64_t{count} + 1),
            "taking back is bounded by the budget");
    if (!is_usable()) {
      require(done.error() == (m_.is_attached ? m_.cause : error::not_attached) &&
                  m_.ram.words.empty(),
              "a queue that is broken or detached gives nothing");
      return;
    }
    if (!memory().good()) {
      // Lost after the last word that was needed is noticed by the next call.
      return require(done.error() == error::memory_lost ||
                         (done && *done == count && (m_.is_in_order || budget == 0)),
                     "lost memory is reported");
    }
    if (count != budget) {
      added_chain chain;
      std::uint32_t length = 0;
      const error e = peer_.take_next(chain, length);
      require(e != error::none, "it stops early only where a rule was broken");
      if (e != error::queue_empty) return check_failure(done.error(), e);
    } else if (const error e = peer_.end_taking(); e != error::none) {
      return check_failure(done.error(), e);
    }
    require(done.has_value() && *done == count, "it says how many it took");
    require(m_.ram.is_all_taken(), "each word is loaded once");
  }

  driver_model m_;
  Peer peer_;
  std::deque<hostile_memory> memories_; ///< all but the last are lost
  hostile_memory* memory_ = nullptr;
  std::vector<driver_slot> slots_;
  typename Peer::queue queue_;
  std::uint64_t token_ = 0;
  saved_queue saved_;
};

/// Runs an input with an engine whose storage is of the size that the input says.
template <template <std::endian> class Peer> void run_driver(input in) {
  const std::uint8_t how = in.byte();
  const std::uint32_t storage = how % 8 < 5 ? 64 : 1u + how % 32;
  if ((how & 0x80) != 0)
    driver_scenario<Peer<std::endian::big>>(in, storage).run();
  else
    driver_scenario<Peer<std::endian::little>>(in, storage).run();
}

} // namespace ballast_fuzz
