// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/split_device.hpp>

#include "device_scenario.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using namespace ballast_fuzz;
using namespace ballast;

/// The driver of a split queue, and what there is to read in its rings.
template <std::endian E> class split_peer {
 public:
  using queue = split_device<hostile_memory, E>;
  static constexpr bool is_packed = false;

  explicit split_peer(device_model& model) noexcept : m(model) {}

  [[nodiscard]] static bool can_map(hostile_memory& memory, const queue_layout& at) {
    return split::is_valid_size(at.size) &&
           memory.window(at.descriptor_area, 16 * at.size, 16, access::read) &&
           memory.window(at.driver_area, 6 + 2 * at.size, 2, access::read) &&
           memory.window(at.device_area, 6 + 8 * at.size, 4, access::write);
  }

  // Places in saved states.

  [[nodiscard]] static std::uint32_t first_step(std::uint16_t first) noexcept { return first; }
  [[nodiscard]] static std::uint32_t step(std::uint16_t place) noexcept { return place; }
  [[nodiscard]] static std::uint16_t place(std::uint32_t step) noexcept {
    return static_cast<std::uint16_t>(step);
  }
  [[nodiscard]] static bool is_between(const device_queue_state& state, std::uint32_t kept) {
    return static_cast<std::uint16_t>(state.next_available - state.next_used) == kept;
  }
  [[nodiscard]] std::uint16_t corrupt(std::uint16_t) { return m.in.number<std::uint16_t>(); }
  void corrupt(held_head& held) { held.head = m.in.byte(); }

  // The life of a queue.

  void begin() {
    write_index(m.next_available);
    used_ring_.assign(m.size, {});
  }
  void restored(bool is_in_memory) {
    used_ring_.assign(m.size, {});
    if (is_in_memory) write_index(m.next_available);
  }
  void begin_call() noexcept { is_index_known_ = false; }

  // The driver.

  void write_descriptor() {
    const split::descriptor_fields fields{m.length_from(),
                                          static_cast<std::uint16_t>(m.in.below(8)),
                                          static_cast<std::uint16_t>(m.in.below(m.size + 1))};
    write_descriptor_at(m.layout.descriptor_area + 16 * m.in.below(m.size),
                        m.ram.address_from(m.in), fields);
  }

  void write_available() {
    const std::uint8_t how = m.in.byte();
    if (how < 0x80)
      write_entry(driver_index_ + how % 4, m.in.below(m.size + 1));
    else if (how < 0xf0)
      write_index(driver_index_ + how % 8);
    else if (how < 0xf8)
      write_index(m.in.number<std::uint16_t>());
    else if (how < 0xfc) // flags
      m.ram.poke(m.layout.driver_area, m.in.number<std::uint16_t>());
    else
      m.ram.poke(m.layout.driver_area + split::used_event(m.size),
                 to_order<E>(static_cast<std::uint16_t>(m.published + m.in.byte())));
  }

  /// A chain as it should be, perhaps of descriptors that are in use.
  void offer() {
    if (m.size == 0) return;
    const std::uint32_t head = m.in.below(m.size), count = 1 + m.in.below(4),
                        writable = m.in.below(5);
    for (std::uint32_t i = 0; i < count; ++i) {
      const bool is_last = i + 1 == count;
      const unsigned flags =
          (is_last ? 0u : split::flag_next) | (i + writable >= count ? split::flag_write : 0u);
      write_descriptor_at(m.layout.descriptor_area + 16 * ((head + i) % m.size),
                          m.ram.address_from(m.in),
                          {m.length_from(), static_cast<std::uint16_t>(flags),
                           static_cast<std::uint16_t>((head + i + 1) % m.size)});
    }
    write_entry(driver_index_, head);
    write_index(driver_index_ + 1u);
  }

  /// An indirect table as it should be, or nearly, and a chain that is in it.
  void write_table() {
    if (m.size == 0) return;
    const guest_address at = m.ram.address_from(m.in) + m.in.below(3);
    const std::uint32_t head = m.in.below(m.size), count = 1 + m.in.below(5),
                        writable = m.in.below(5);
    for (std::uint32_t i = 0; i < count; ++i) {
      const unsigned flags = (i + 1 == count ? 0u : split::flag_next) |
                             (i + writable >= count ? split::flag_write : 0u);
      write_descriptor_at(
          at + 16 * i, m.ram.address_from(m.in),
          {m.length_from(), static_cast<std::uint16_t>(flags), static_cast<std::uint16_t>(i + 1)});
    }
    write_descriptor_at(m.layout.descriptor_area + 16 * head, at,
                        {16 * count, split::flag_indirect, 0});
    write_entry(driver_index_, head);
    write_index(driver_index_ + 1u);
  }

  /// The driver takes back what it offered.
  void take_back() { write_index(m.next_available + m.in.below(3)); }

  // Popping.

  /// Whether there is another chain, as the loaded words say.
  [[nodiscard]] error look(bool& is_there) {
    if (!is_index_known_) {
      is_index_known_ = true;
      index_ =
          to_order<E>(m.ram.take<std::uint16_t>(m.layout.driver_area + split::available_index));
      const auto pending = static_cast<std::uint16_t>(index_ - m.next_available);
      if (pending > m.size) return error::available_index_jump;
    }
    is_there = static_cast<std::uint16_t>(index_ - m.next_available) != 0;
    return error::none;
  }

  [[nodiscard]] reading next_chain() {
    reading r;
    bool is_there = false;
    r.failure = look(is_there);
    if (r.failure == error::none && !is_there) r.failure = error::queue_empty;
    if (r.failure == error::none) read_chain(r);
    return r;
  }

  // Returning.

  /// Notes the used elements that were stored, and without IN_ORDER checks them: those of
  /// `m.returned` from `first` on, in their places, and nothing else.
  void check_returned() {
    for (const stored_word& s : m.ram.stores) {
      const std::uint64_t offset = s.address - m.layout.device_area;
      if (s.width != 4) continue;
      require(offset >= 4 && offset < 4 + 8 * std::uint64_t{m.size},
              "used elements lie in the ring");
      used_element& entry = used_ring_[(offset - 4) / 8];
      const auto value = to_order<E>(static_cast<std::uint32_t>(s.value));
      ((offset - 4) % 8 == 0 ? entry.head : entry.length) = value;
    }
    if (m.is_in_order) return;
    const std::size_t count = m.returned.size() - m.checked;
    require(m.ram.stores.size() == 2 * count, "each chain is returned once");
    for (std::size_t i = 0; i < count; ++i) {
      const returned_chain& r = m.returned[m.checked++];
      const std::size_t entry = r.at & (m.size - 1);
      require(is_store(m.ram.stores[2 * i], split::used_id(entry), r.head) &&
                  is_store(m.ram.stores[2 * i + 1], split::used_length(entry), r.length),
              "a used element names its chain and the length that was given");
    }
  }

  void check_published(bool) {
    require(!m.ram.stores.empty() &&
                is_store(m.ram.stores.back(), split::used_index, place(m.next_used)) &&
                m.ram.stores.back().how == order::release,
            "publishing ends with a release store of the index");
    require(m.ram.stores.size() <= (m.is_in_order ? 3u : 1u), "and is one store");
    m.ram.stores.pop_back();
    check_returned();
    if (m.is_in_order && m.can_decode) decode_runs();
  }

  // Notifications.

  void check_asked(bool answer, std::uint32_t old, std::uint32_t now) {
    if (m.has_event_index) {
      const auto event =
          to_order<E>(m.ram.take<std::uint16_t>(m.layout.driver_area + split::used_event(m.size)));
      require(answer == (static_cast<std::uint16_t>(event - old) < now - old),
              "a driver is notified where its event lies in what was published");
    } else {
      const auto flags =
          to_order<E>(m.ram.take<std::uint16_t>(m.layout.driver_area + split::available_flags));
      require(answer == ((flags & split::no_interrupt) == 0), "a driver is notified as flags say");
    }
  }
  [[nodiscard]] bool is_enabled(const stored_word& s) const {
    return m.has_event_index ? is_store(s, split::available_event(m.size), place(m.next_available))
                             : is_store(s, split::used_flags, 0);
  }
  [[nodiscard]] bool is_disabled(const stored_word& s) const {
    return is_store(s, split::used_flags, split::no_notify);
  }

 private:
  struct used_element {
    std::uint32_t head = 0;
    std::uint32_t length = 0;
  };

  void write_descriptor_at(guest_address at, guest_address address,
                           split::descriptor_fields fields) {
    m.ram.poke(at, to_order<E>(address));
    m.ram.poke(at + 8, split::pack<E>(fields));
  }

  void write_entry(std::uint32_t at, std::uint32_t head) {
    m.ram.poke(m.layout.driver_area + split::available_entry(at & (m.size - 1)),
               to_order<E>(static_cast<std::uint16_t>(head)));
  }

  void write_index(std::uint32_t index) {
    driver_index_ = static_cast<std::uint16_t>(index);
    m.ram.poke(m.layout.driver_area + split::available_index, to_order<E>(driver_index_));
  }

  /// What they say of the next chain. Rules are checked in the order in which one comes to them.
  void read_chain(reading& r) {
    r.head = to_order<E>(m.ram.take<std::uint16_t>(
        m.layout.driver_area + split::available_entry(m.next_available & (m.size - 1))));
    if (r.head >= m.size) return void(r.failure = error::head_out_of_range);
    if (m.held.contains(static_cast<std::uint16_t>(r.head)))
      return void(r.failure = error::head_in_flight);
    std::uint32_t index = r.head, entries = m.size;
    guest_address table = 0;
    bool is_in_table = false;
    while (true) {
      std::uint64_t address = 0, rest = 0;
      if (is_in_table) {
        const loaded_bytes* raw = m.ram.take_bytes(table + std::uint64_t{16} * index, 16);
        if (raw == nullptr) {
          // Refused, or not asked for because memory ends there.
          require(!m.is_memory(table + std::uint64_t{16} * index, 16),
                  "every descriptor of a table is read");
          return void(r.failure = error::indirect_outside);
        }
        std::memcpy(&address, raw->bytes.data(), 8);
        std::memcpy(&rest, raw->bytes.data() + 8, 8);
      } else {
        const guest_address at = m.layout.descriptor_area + std::uint64_t{16} * index;
        address = m.ram.take<std::uint64_t>(at);
        rest = m.ram.take<std::uint64_t>(at + 8);
      }
      address = to_order<E>(address);
      const auto f = split::unpack<E>(rest);
      if ((f.flags & split::flag_indirect) != 0) {
        if (!m.has_indirect) return void(r.failure = error::indirect_not_negotiated);
        if (is_in_table) return void(r.failure = error::indirect_nested);
        if ((f.flags & split::flag_next) != 0) return void(r.failure = error::indirect_with_next);
        if (f.length == 0 || f.length % 16 != 0) return void(r.failure = error::indirect_length);
        if (address + (f.length - 1) < address) return void(r.failure = error::indirect_outside);
        is_in_table = true;
        table = address;
        entries = f.length / 16;
        index = 0;
        continue;
      }
      if (!r.append({address, f.length}, (f.flags & split::flag_write) != 0, m.size)) return;
      if ((f.flags & split::flag_next) == 0) break;
      if (f.next >= entries) return void(r.failure = error::next_out_of_range);
      index = f.next;
    }
    if (r.is_too_long()) r.failure = error::chain_bytes_overflow;
  }

  [[nodiscard]] bool is_store(const stored_word& s, std::size_t offset, std::uint32_t value) const {
    if (s.address != m.layout.device_area + offset) return false;
    if (s.width == 2) return s.value == to_order<E>(static_cast<std::uint16_t>(value));
    return s.width == 4 && s.value == to_order<E>(value);
  }

  /// IN_ORDER: what a driver makes of the used ring is what was returned; each head once.
  void decode_runs() const {
    for (std::size_t i = 0; i < m.returned.size(); ++i) {
      const used_element& element =
          used_ring_[(m.published + static_cast<std::uint32_t>(i)) & (m.size - 1)];
      while (m.returned[i].head != element.head) {
        require(m.returned[i].is_full, "chains that are skipped were written in full");
        require(++i < m.returned.size(), "a used element names a chain that was returned");
      }
      require(m.returned[i].length == element.length, "a run ends with the length of its last");
    }
  }

  device_model& m;
  std::uint16_t driver_index_ = 0;
  bool is_index_known_ = false; ///< in this call
  std::uint16_t index_ = 0;
  std::vector<used_element> used_ring_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run_device<split_peer>(input({data, size}));
  return 0;
}
