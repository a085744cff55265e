// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/split_driver.hpp>

#include "driver_scenario.hpp"
#include "hostile_memory.hpp"
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

/// The device of a split queue, and what there is to read in its rings.
template <std::endian E> class split_peer {
 public:
  using queue = split_driver<hostile_memory, E>;
  static constexpr bool is_packed = false;

  explicit split_peer(driver_model& model) noexcept : m(model) {}

  [[nodiscard]] static std::uint64_t driver_area_bytes(std::uint64_t size) { return 6 + 2 * size; }
  [[nodiscard]] static std::uint64_t device_area_bytes(std::uint64_t size) { return 6 + 8 * size; }
  [[nodiscard]] static bool can_map(hostile_memory& memory, const queue_layout& at) {
    return split::is_valid_size(at.size) &&
           memory.window(at.descriptor_area, 16 * at.size, 16, access::write) &&
           memory.window(at.driver_area, driver_area_bytes(at.size), 2, access::write) &&
           memory.window(at.device_area, device_area_bytes(at.size), 4, access::read);
  }

  // Places in saved states.

  [[nodiscard]] static std::uint32_t first_step(std::uint16_t first) noexcept { return first; }
  [[nodiscard]] static std::uint16_t place(std::uint32_t step) noexcept {
    return static_cast<std::uint16_t>(step);
  }

  void corrupt(driver_queue_state& state, std::vector<driver_slot>& slots, std::uint8_t how) {
    if ((how & 1) != 0) corrupt_slot(state, slots);
    if ((how & 2) != 0) corrupt_slot(state, slots);
    if ((how & 4) != 0) state.next_available = m.in.number<std::uint16_t>();
    if ((how & 8) != 0) state.run_end = static_cast<std::uint16_t>(m.next_used + m.in.byte());
    if ((how & 16) != 0) state.first_free = m.in.byte();
    if ((how & 32) != 0) state.oldest = m.in.byte();
    if ((how & 64) != 0) state.cause = static_cast<error>(m.in.byte());
    if ((how & 128) != 0) state.unasked = m.in.number<std::uint32_t>() % 65540;
  }

  // The life of a queue.

  void begin() {
    run_end_ = m.next_used;
    run_length_ = 0;
    device_index_ = static_cast<std::uint16_t>(m.next_used);
  }

  void restored(const driver_queue_state& s, const std::vector<driver_slot>& slots) {
    m.next_used = s.next_used;
    const auto after = [&](std::uint16_t index) {
      return m.next_used + static_cast<std::uint16_t>(index - s.next_used);
    };
    m.next_available = m.published = after(s.next_available);
    run_end_ = after(s.run_end);
    run_length_ = s.run_length;
    std::set<std::uint32_t> seen;
    for (std::uint32_t head = 0; head < m.size; ++head) {
      const driver_slot& slot = slots[head];
      if (slot.descriptors == 0) continue;
      // Without IN_ORDER the position does not matter any more: nothing is staged.
      const std::uint32_t position =
          m.is_in_order ? after(static_cast<std::uint16_t>(slot.position)) : m.published - 1;
      added_chain chain{slot.token, slot.writable, position, slot.descriptors, {head}};
      for (std::uint32_t i = 1; i < slot.descriptors; ++i)
        chain.entries.push_back(slots[chain.entries.back()].next);
      for (const std::uint32_t d : chain.entries)
        require(d < m.size && seen.insert(d).second, "each descriptor is in one chain");
      m.chains[head] = chain;
    }
    require(m.chains.size() == m.next_available - m.next_used, "as many chains as the indices say");
    if (m.in.flag()) set_used_index(m.next_used);
  }

  [[nodiscard]] static indirect_tables attached_tables(indirect_tables tables) { return tables; }

  // The device.

  void write_used_element() {
    const std::uint32_t id =
        m.in.byte() < 0xf0 ? m.in.below(m.size + 1) : m.in.number<std::uint32_t>();
    write_used_at(device_index_ + m.in.below(4), id, m.length_from());
    if (m.in.flag()) set_used_index(device_index_ + 1u);
  }

  void write_used_index() {
    const std::uint8_t how = m.in.byte();
    if (how < 0xc0)
      set_used_index(device_index_ + how % 8);
    else if (how < 0xd0)
      set_used_index(m.next_used);
    else if (how < 0xe0)
      set_used_index(m.published);
    else if (how < 0xe8)
      set_used_index(m.in.number<std::uint16_t>());
    else if (how < 0xf0) // flags
      m.ram.poke(m.layout.device_area, m.in.number<std::uint16_t>());
    else
      m.ram.poke(m.layout.device_area + split::available_event(m.size),
                 to_order<E>(static_cast<std::uint16_t>(m.published - 1 + m.in.byte() % 3)));
  }

  /// As a device should: one of the chains it has, under IN_ORDER mostly the oldest.
  void return_one() {
    if (m.chains.empty()) return;
    const std::uint8_t which = m.in.byte();
    auto found = std::next(m.chains.begin(), static_cast<std::ptrdiff_t>(which % m.chains.size()));
    if (m.is_in_order && which < 0x80) {
      const std::uint32_t wanted = which < 0x60 ? device_index_ : device_index_ + which % 4u;
      for (auto c = m.chains.begin(); c != m.chains.end(); ++c)
        if (static_cast<std::uint16_t>(c->second.position - wanted) == 0) found = c;
    }
    write_used_at(device_index_, found->first, m.length_from());
    const std::uint32_t run =
        m.is_in_order ? static_cast<std::uint16_t>(found->second.position - device_index_) : 0u;
    set_used_index(device_index_ + 1 + (run < m.size ? run : 0));
  }

  // Adding.

  /// A device that reads the next ring entry finds exactly these buffers.
  void check_added(std::span<const buffer> readable, std::span<const buffer> writable,
                   std::uint64_t token) {
    std::vector<buffer> all(readable.begin(), readable.end());
    all.insert(all.end(), writable.begin(), writable.end());
    const std::uint32_t position = m.next_available++;
    const std::uint32_t head = to_order<E>(m.seen_by_device<std::uint16_t>(
        area::driver, split::available_entry(position & (m.size - 1))));
    added_chain chain{token, static_cast<std::uint32_t>(total_bytes(writable)), position, 1, {}};
    const bool is_indirect = m.is_indirect(all.size());
    area table = area::descriptors;
    std::uint64_t first = 0;
    std::uint32_t index = head, entries = m.size;
    if (is_indirect) {
      require(head < m.size, "a head is below the queue size");
      chain.entries.push_back(head);
      const auto f = read_fields(table, 16 * head);
      require(f.flags == split::flag_indirect && f.length == 16 * all.size(),
              "an indirect table has one descriptor a buffer");
      first = read_address(table, 16 * head) - m.tables.address;
      require(first <= m.tables.bytes(m.size) - f.length, "an indirect table lies where it may");
      table = area::tables;
      index = 0;
      entries = static_cast<std::uint32_t>(all.size());
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      require(index < entries, "a chain stays in its table");
      if (!is_indirect) chain.entries.push_back(index);
      const auto f = read_fields(table, first + 16 * index);
      require(buffer{read_address(table, first + 16 * index), f.length} == all[i],
              "each buffer is written as it was given");
      const unsigned flags = (i + 1 == all.size() ? 0u : split::flag_next) |
                             (i < readable.size() ? 0u : split::flag_write);
      require(f.flags == flags, "flags say what may be written and where the chain ends");
      index = f.next;
    }
    chain.descriptors = static_cast<std::uint32_t>(chain.entries.size());
    for (const auto& [other, in_flight] : m.chains)
      for (const std::uint32_t d : in_flight.entries)
        require(std::find(chain.entries.begin(), chain.entries.end(), d) == chain.entries.end(),
                "no descriptor is in two chains");
    m.chains[head] = chain;
  }

  void check_published(const stored_word& s) const {
    require(is_store(s, m.layout.driver_area + split::available_index, place(m.next_available)),
            "it is the index that is published");
  }

  // Notifications.

  void check_asked(bool answer, std::uint32_t old, std::uint32_t now) {
    if (m.has_event_index) {
      const auto event = take16(split::available_event(m.size));
      require(answer == (static_cast<std::uint16_t>(event - old) < now - old),
              "a device is notified where its event lies in what was published");
    } else {
      require(answer == ((take16(split::used_flags) & split::no_notify) == 0),
              "a device is notified as flags say");
    }
  }
  [[nodiscard]] bool is_enabled(const stored_word& s) const {
    return m.has_event_index
               ? is_store(s, m.layout.driver_area + split::used_event(m.size), place(m.next_used))
               : is_store(s, m.layout.driver_area + split::available_flags, 0);
  }
  [[nodiscard]] bool is_disabled(const stored_word& s) const {
    return is_store(s, m.layout.driver_area + split::available_flags, split::no_interrupt);
  }

  // Taking back.

  [[nodiscard]] bool look() { return take16(split::used_index) != place(m.next_used); }

  /// Whether there is one that needs no more of the memory.
  [[nodiscard]] static bool has_run() noexcept { return false; }
  void begin_taking() noexcept { is_index_known_ = false; }
  [[nodiscard]] error end_taking() {
    if (is_index_known_) return error::none;
    is_index_known_ = true;
    index_ = take16(split::used_index);
    return left() > m.published - m.next_used ? error::used_index_jump : error::none;
  }

  /// What the loaded words say of the next returned chain; takes it from the model.
  [[nodiscard]] error take_next(added_chain& taken, std::uint32_t& length) {
    if (const error e = end_taking(); e != error::none) return e;
    if (left() == 0) return error::queue_empty;
    added_chains::iterator found;
    if (!m.is_in_order || m.next_used == run_end_) {
      const guest_address ring = m.layout.device_area;
      const std::uint32_t entry = m.next_used & (m.size - 1);
      const auto id = to_order<E>(m.ram.take<std::uint32_t>(ring + split::used_id(entry)));
      length = to_order<E>(m.ram.take<std::uint32_t>(ring + split::used_length(entry)));
      if (id >= m.size) return error::used_id_out_of_range;
      found = m.chains.find(id);
      if (found == m.chains.end()) return error::used_id_not_in_flight;
      const std::uint32_t distance = found->second.position - m.next_used;
      if (!m.is_in_order) {
        if (m.is_staged(found->second)) return error::used_id_not_in_flight;
      } else {
        if (distance >= left()) return error::used_out_of_order;
        run_end_ = m.next_used + distance + 1;
        run_length_ = length;
      }
    }
    if (m.is_in_order) {
      found = m.find_at(m.next_used);
      require(found != m.chains.end(), "IN_ORDER: each position has its chain");
      length = m.next_used + 1 == run_end_ ? run_length_ : found->second.writable;
    }
    taken = found->second;
    length = std::min(length, taken.writable);
    m.chains.erase(found);
    ++m.next_used;
    return error::none;
  }

 private:
  void corrupt_slot(const driver_queue_state& state, std::vector<driver_slot>& slots) {
    if (slots.empty()) return;
    driver_slot& slot = slots[m.in.below(static_cast<std::uint32_t>(slots.size()))];
    const std::uint8_t field = m.in.byte();
    const auto value = static_cast<std::uint16_t>(field < 0xc0 ? m.in.below(state.size + 1)
                                                               : m.in.number<std::uint16_t>());
    switch (field % 5) {
    case 0: slot.next = value; break;
    case 1: slot.last = value; break;
    case 2: slot.descriptors = value; break;
    case 3: slot.position = static_cast<std::uint16_t>(state.next_used + value); break;
    default: slot.writable = value; break;
    }
  }

  void write_used_at(std::uint32_t at, std::uint32_t id, std::uint32_t length) {
    const std::uint32_t entry = at & (m.size - 1);
    m.ram.poke(m.layout.device_area + split::used_id(entry), to_order<E>(id));
    m.ram.poke(m.layout.device_area + split::used_length(entry), to_order<E>(length));
  }
  void set_used_index(std::uint32_t index) {
    device_index_ = static_cast<std::uint16_t>(index);
    m.ram.poke(m.layout.device_area + split::used_index, to_order<E>(device_index_));
  }

  [[nodiscard]] static bool is_store(const stored_word& s, guest_address address,
                                     std::uint16_t value) {
    return s.address == address && s.width == 2 && s.value == to_order<E>(value);
  }
  [[nodiscard]] std::uint16_t take16(std::uint64_t offset) {
    return to_order<E>(m.ram.take<std::uint16_t>(m.layout.device_area + offset));
  }
  [[nodiscard]] std::uint64_t read_address(area table, std::uint64_t at) const {
    return to_order<E>(m.seen_by_device<std::uint64_t>(table, at));
  }
  [[nodiscard]] split::descriptor_fields read_fields(area table, std::uint64_t at) const {
    return split::unpack<E>(m.seen_by_device<std::uint64_t>(table, at + 8));
  }
  /// Returned and not taken back.
  [[nodiscard]] std::uint32_t left() const noexcept {
    return static_cast<std::uint16_t>(index_ - m.next_used);
  }

  driver_model& m;
  std::uint16_t device_index_ = 0;
  std::uint32_t run_end_ = 0;
  std::uint32_t run_length_ = 0;
  bool is_index_known_ = false; ///< in this call
  std::uint16_t index_ = 0;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run_driver<split_peer>(input({data, size}));
  return 0;
}
