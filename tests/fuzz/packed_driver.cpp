// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/packed_driver.hpp>

#include "driver_scenario.hpp"
#include "hostile_memory.hpp"
#include "packed_words.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <set>
#include <span>
#include <vector>

namespace {

using namespace ballast_fuzz;
using namespace ballast;

/// The device of a packed queue, and what there is to read in its ring. A step is a descriptor.
template <std::endian E> class packed_peer {
 public:
  using queue = packed_driver<hostile_memory, E>;
  static constexpr bool is_packed = true;

  explicit packed_peer(driver_model& model) noexcept : m(model) {}

  [[nodiscard]] static std::uint64_t driver_area_bytes(std::uint64_t) { return 4; }
  [[nodiscard]] static std::uint64_t device_area_bytes(std::uint64_t) { return 4; }
  [[nodiscard]] static bool can_map(hostile_memory& memory, const queue_layout& at) {
    return packed::is_valid_size(at.size) &&
           memory.window(at.descriptor_area, 16 * at.size, 16, access::write) &&
           memory.window(at.driver_area, 4, 4, access::write) &&
           memory.window(at.device_area, 4, 4, access::read);
  }

  // Places in saved states.

  [[nodiscard]] std::uint32_t first_step(std::uint16_t first) const noexcept {
    return packed_first_step(m.size) + first;
  }
  [[nodiscard]] std::uint16_t place(std::uint32_t step) const noexcept {
    return packed_place(step, m.size);
  }

  void corrupt(driver_queue_state& state, std::vector<driver_slot>& slots, std::uint8_t how) {
    if ((how & 1) != 0) corrupt_slot(state, slots);
    if ((how & 2) != 0) corrupt_slot(state, slots);
    if ((how & 4) != 0)
      state.next_available = corrupt_place(m.in, state.next_available, state.size);
    if ((how & 8) != 0) state.run_end = m.in.byte();
    if ((how & 16) != 0) state.first_free = m.in.byte();
    if ((how & 32) != 0) state.next_used = corrupt_place(m.in, state.next_used, state.size);
    if ((how & 64) != 0) state.cause = static_cast<error>(m.in.byte());
    if ((how & 128) != 0) state.unasked = m.in.number<std::uint32_t>() % 65540;
  }

  // The life of a queue.

  /// In a ring that was begun nothing is available, and nothing is used.
  void begin() {
    has_run_ = false;
    returned_at_ = m.next_used;
    returned_.clear();
    std::set<guest_address> cleared;
    for (const stored_word& s : m.ram.stores) {
      const std::uint64_t offset = s.address - m.layout.descriptor_area;
      if (offset < 16 * std::uint64_t{m.size} && offset % 16 == 8 && s.width == 8) {
        const auto index = static_cast<std::uint32_t>(offset / 16);
        std::uint32_t step = m.next_used;
        while (step % m.size != index) ++step;
        const unsigned flags = packed::unpack<E>(s.value).flags & 0x8080u;
        require(flags != packed_available_flags(step, m.size) &&
                    flags != packed_used_flags(step, m.size),
                "a ring begins with nothing in it");
        cleared.insert(offset);
      } else {
        require(is_event<E>(s, m.layout.device_area, 0, 0) || is_enabled(s),
                "and both sides want notifications");
      }
    }
    require(cleared.size() == m.size && m.ram.stores.size() == m.size + 2,
            "the whole ring is written, once");
  }

  void restored(const driver_queue_state& s, const std::vector<driver_slot>& slots) {
    require(is_packed_state(s) && s.is_packed, "the places are entries of the ring");
    m.next_used = packed_step(s.next_used, m.size);
    std::uint64_t used = 0;
    for (std::uint32_t id = 0; id < m.size; ++id) {
      const driver_slot& slot = slots[id];
      if (slot.descriptors == 0) continue;
      used += slot.descriptors;
      m.chains[id] = {slot.token, slot.writable, 0, slot.descriptors, {}};
    }
    require(used <= m.size, "no more descriptors are in flight than there are");
    m.next_available = m.published = m.next_used + static_cast<std::uint32_t>(used);
    require(place(m.next_available) == s.next_available, "as many as the places say");
    has_run_ = s.run_end != 0xffff;
    run_id_ = s.run_end;
    run_length_ = s.run_length;
    require(!has_run_ || (m.is_in_order && m.chains.contains(run_id_)), "a run has an end");
    for (std::uint32_t at = m.next_used; m.is_in_order && at != m.next_available;) {
      const auto found = m.chains.find(at % m.size);
      require(found != m.chains.end(), "IN_ORDER: one chain lies behind the other");
      found->second.position = at;
      at += found->second.descriptors;
    }
    returned_.clear();
    returned_at_ = m.next_used;
  }

  /// Each table belongs to an id, so they stay of one size.
  [[nodiscard]] indirect_tables attached_tables(const indirect_tables& tables) const {
    return {tables.address, m.tables.entries};
  }

  // The device.

  void write_used_element() {
    if (m.size == 0) return;
    const std::uint8_t how = m.in.byte();
    const std::uint32_t id = how < 0xf0 ? m.in.below(m.size + 1) : m.in.number<std::uint16_t>();
    const std::uint32_t at = (how & 4) != 0 ? m.next_used : returned_at_;
    const unsigned flags =
        how % 4 == 3 ? m.in.number<std::uint16_t>() : packed_used_flags(at, m.size) | (how % 4u);
    write_rest(at, m.length_from(), id, flags);
    if ((how & 8) != 0) returned_at_ = at + 1;
  }

  /// What the device asks for, or where it goes on.
  void write_used_index() {
    if (m.size == 0) return;
    const std::uint8_t how = m.in.byte();
    if (how < 0x40)
      returned_at_ = m.next_used + how % 4u;
    else if (how < 0xf0)
      write_event({place(m.published + m.in.byte() - 64u),
                   static_cast<std::uint16_t>(how < 0xc0 ? 2 : how % 4u)});
    else
      write_event({m.in.number<std::uint16_t>(), m.in.byte()});
  }

  /// As a device should: one of the chains it has, under IN_ORDER mostly the oldest.
  void return_one() {
    if (m.chains.empty()) return;
    const std::uint8_t which = m.in.byte();
    auto found = std::next(m.chains.begin(), static_cast<std::ptrdiff_t>(which % m.chains.size()));
    for (std::size_t n = 0; which < 0xf0 && n < m.chains.size(); ++n) {
      if (!returned_.contains(found->first)) break;
      if (++found == m.chains.end()) found = m.chains.begin();
    }
    std::uint32_t passed = found->second.descriptors;
    if (m.is_in_order && which < 0xe0) { // some of the oldest at once
      for (std::uint32_t n = 0, at = returned_at_; n <= which % 3u; ++n) {
        const auto next = m.find_at(at);
        if (next == m.chains.end()) break;
        found = next;
        returned_.insert(next->first);
        at += next->second.descriptors;
        passed = at - returned_at_;
      }
    }
    returned_.insert(found->first);
    write_rest(returned_at_, m.length_from(), found->first,
               packed_used_flags(returned_at_, m.size) | (which & packed::flag_write));
    returned_at_ += passed;
  }

  // Adding.

  /// What a device would find is checked when it may look.
  void check_added(std::span<const buffer> readable, std::span<const buffer> writable,
                   std::uint64_t token) {
    staged_chain s;
    s.buffers.assign(readable.begin(), readable.end());
    s.buffers.insert(s.buffers.end(), writable.begin(), writable.end());
    s.readable = readable.size();
    s.is_indirect = m.is_indirect(s.buffers.size());
    s.tables = m.tables;
    const auto count = s.is_indirect ? 1u : static_cast<std::uint32_t>(s.buffers.size());
    s.chain = {
        token, static_cast<std::uint32_t>(total_bytes(writable)), m.next_available, count, {}};
    m.next_available += count;
    m.staged.push_back(s);
    for (const stored_word& w : m.ram.stores)
      require(w.address != m.layout.descriptor_area + 16 * (m.published % m.size) + 8 &&
                  w.how != ballast::order::release,
              "the first descriptor is written last");
  }

  /// A device that reads on finds exactly the chains that were staged.
  void check_published(const stored_word& first) {
    require(first.address == m.layout.descriptor_area + 16 * (m.published % m.size) + 8,
            "it is the first descriptor that is published");
    for (const staged_chain& s : m.staged) {
      const std::uint32_t id = s.is_indirect ? check_table(s) : check_chain(s);
      require(id < m.size, "a buffer id is below the queue size");
      require(m.chains.emplace(id, s.chain).second, "no id is that of two chains");
    }
    m.staged.clear();
  }

  // Notifications.

  void check_asked(bool answer, std::uint32_t old, std::uint32_t now) {
    check_due<E>(m.ram.take<std::uint32_t>(m.layout.device_area), m.has_event_index, answer, old,
                 now, m.size);
  }
  [[nodiscard]] bool is_enabled(const stored_word& s) const {
    return is_event<E>(s, m.layout.driver_area, place(m.next_used),
                       m.has_event_index ? packed::event_descriptor : packed::event_enable);
  }
  [[nodiscard]] bool is_disabled(const stored_word& s) const {
    return is_event<E>(s, m.layout.driver_area, 0, packed::event_disable);
  }

  // Taking back.

  [[nodiscard]] bool look() {
    const bool is_there = is_used(take_rest());
    return has_run_ || is_there;
  }

  /// Whether there is one that needs no more of the memory.
  [[nodiscard]] bool has_run() const noexcept { return has_run_; }
  static void begin_taking() noexcept {}
  [[nodiscard]] static error end_taking() noexcept { return error::none; }

  /// What the loaded words say of the next returned chain; takes it from the model.
  [[nodiscard]] error take_next(added_chain& taken, std::uint32_t& length) {
    added_chains::iterator found;
    if (!has_run_) {
      const auto d = take_rest();
      if (!is_used(d)) return error::queue_empty;
      if (d.id >= m.size) return error::used_id_out_of_range;
      found = m.chains.find(d.id); // one that is staged can't be known
      if (found == m.chains.end()) return error::used_id_not_in_flight;
      run_id_ = d.id;
      run_length_ = d.length;
    }
    if (m.is_in_order) {
      found = m.find_at(m.next_used);
      require(found != m.chains.end(), "IN_ORDER: each place has its chain");
      has_run_ = found->first != run_id_;
    }
    taken = found->second;
    length = std::min(has_run_ ? taken.writable : run_length_, taken.writable);
    m.next_used += taken.descriptors;
    returned_.erase(found->first);
    m.chains.erase(found);
    return error::none;
  }

 private:
  void corrupt_slot(const driver_queue_state& state, std::vector<driver_slot>& slots) {
    if (slots.empty()) return;
    driver_slot& slot = slots[m.in.below(static_cast<std::uint32_t>(slots.size()))];
    const std::uint8_t field = m.in.byte();
    const std::uint32_t value =
        field < 0xc0 ? m.in.below(state.size + 1) : m.in.number<std::uint32_t>();
    switch (field % 3) {
    case 0: slot.next = static_cast<std::uint16_t>(value); break;
    case 1: slot.descriptors = value; break;
    default: slot.writable = value; break;
    }
  }

  void write_rest(std::uint32_t step, std::uint32_t length, std::uint32_t id, unsigned flags) {
    m.ram.poke(m.layout.descriptor_area + 16 * (step % m.size) + 8,
               packed::pack<E>(packed::descriptor_fields{length, static_cast<std::uint16_t>(id),
                                                         static_cast<std::uint16_t>(flags)}));
  }
  void write_event(packed::event_fields event) {
    m.ram.poke(m.layout.device_area, packed::pack_event<E>(event));
  }

  [[nodiscard]] packed::descriptor_fields take_rest() {
    return packed::unpack<E>(
        m.ram.take<std::uint64_t>(m.layout.descriptor_area + 16 * (m.next_used % m.size) + 8));
  }
  [[nodiscard]] bool is_used(const packed::descriptor_fields& d) const noexcept {
    return (d.flags & 0x8080u) == packed_used_flags(m.next_used, m.size);
  }

  /// The id of a chain in the ring, every descriptor of which is available in its round.
  [[nodiscard]] std::uint32_t check_chain(const staged_chain& s) const {
    std::uint32_t id = 0;
    for (std::uint32_t i = 0; i < s.chain.descriptors; ++i) {
      const std::uint32_t step = s.chain.position + i;
      const auto d = check_buffer(s, i, area::descriptors, 16 * (step % m.size));
      const unsigned flags = (i + 1 == s.chain.descriptors ? 0u : packed::flag_next) |
                             (i < s.readable ? 0u : packed::flag_write) |
                             packed_available_flags(step, m.size);
      require(d.flags == flags, "flags say what may be written, whose it is, where the chain ends");
      id = d.id; // that of the last counts
    }
    return id;
  }

  [[nodiscard]] std::uint32_t check_table(const staged_chain& s) const {
    const std::uint64_t at = 16 * (s.chain.position % m.size);
    const auto d = read_fields(area::descriptors, at);
    require(d.flags == (packed::flag_indirect | packed_available_flags(s.chain.position, m.size)) &&
                d.length == 16 * s.buffers.size(),
            "an indirect table has one descriptor a buffer");
    const std::uint64_t table =
        to_order<E>(m.seen_by_device<std::uint64_t>(area::descriptors, at)) - s.tables.address;
    require(table == std::uint64_t{16} * d.id * s.tables.entries, "each id has its own table");
    for (std::uint32_t i = 0; i < s.buffers.size(); ++i)
      require(check_buffer(s, i, area::tables, table + 16 * i).flags ==
                  (i < s.readable ? 0u : packed::flag_write),
              "in a table only WRITE counts");
    return d.id;
  }

  [[nodiscard]] packed::descriptor_fields check_buffer(const staged_chain& s, std::uint32_t i,
                                                       area part, std::uint64_t at) const {
    const auto d = read_fields(part, at);
    const auto address = to_order<E>(m.seen_by_device<std::uint64_t>(part, at));
    require(buffer{address, d.length} == s.buffers[i], "each buffer is written as it was given");
    return d;
  }
  [[nodiscard]] packed::descriptor_fields read_fields(area part, std::uint64_t at) const {
    return packed::unpack<E>(m.seen_by_device<std::uint64_t>(part, at + 8));
  }

  driver_model& m;
  std::uint32_t returned_at_ = 0;    ///< where the device goes on
  std::set<std::uint32_t> returned_; ///< ids that it returned and the driver did not take yet
  bool has_run_ = false;             ///< the last used descriptor stands for more
  std::uint32_t run_id_ = 0;
  std::uint32_t run_length_ = 0;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run_driver<packed_peer>(input({data, size}));
  return 0;
}
