// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/packed_device.hpp>

#include "device_scenario.hpp"
#include "hostile_memory.hpp"
#include "packed_words.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>

namespace {

using namespace ballast_fuzz;
using namespace ballast;

/// The driver of a packed queue, and what there is to read in its ring. A step is a descriptor.
template <std::endian E> class packed_peer {
 public:
  using queue = packed_device<hostile_memory, E>;
  static constexpr bool is_packed = true;

  explicit packed_peer(device_model& model) noexcept : m(model) {}

  [[nodiscard]] static bool can_map(hostile_memory& memory, const queue_layout& at) {
    return packed::is_valid_size(at.size) &&
           memory.window(at.descriptor_area, 16 * at.size, 16, access::write) &&
           memory.window(at.driver_area, 4, 4, access::read) &&
           memory.window(at.device_area, 4, 4, access::write);
  }

  // Places in saved states.

  [[nodiscard]] std::uint32_t first_step(std::uint16_t first) const noexcept {
    return packed_first_step(m.size) + first;
  }
  [[nodiscard]] std::uint32_t step(std::uint16_t place) const noexcept {
    return packed_step(place, m.size);
  }
  [[nodiscard]] std::uint16_t place(std::uint32_t step) const noexcept {
    return packed_place(step, m.size);
  }
  [[nodiscard]] static bool is_between(const device_queue_state& state, std::uint32_t kept) {
    return is_packed_state(state) && packed_place(packed_step(state.next_used, state.size) + kept,
                                                  state.size) == state.next_available;
  }
  [[nodiscard]] std::uint16_t corrupt(std::uint16_t place) {
    return corrupt_place(m.in, place, m.size);
  }
  void corrupt(held_head& held) {
    const std::uint8_t how = m.in.byte();
    const std::uint32_t value = how < 0xf0 ? how / 2 % 16u : m.in.number<std::uint16_t>();
    ((how & 1) != 0 ? held.head : held.descriptors) = static_cast<std::uint16_t>(value);
  }

  // The life of a queue.

  void begin() {
    offered_ = m.next_available;
    used_.clear();
    for (std::uint32_t i = 0; i < m.size; ++i) write_rest(offered_ + i, 0, 0, 0);
  }
  void restored(bool is_driver_there) {
    used_.clear();
    if (is_driver_there) offered_ = m.next_available;
  }
  static void begin_call() noexcept {}

  // The driver.

  void write_descriptor() {
    if (m.size == 0) return;
    const std::uint8_t how = m.in.byte();
    const std::uint32_t at = offered_ + how % 4u;
    write_address(at, m.ram.address_from(m.in));
    write_rest(at, m.length_from(), m.in.below(m.size + 1),
               (how / 4u % 8) | (how < 0xc0   ? available_flags(at)
                                 : how < 0xe0 ? 0u
                                              : 0x8080u));
  }

  void write_available() {
    if (m.size == 0) return;
    const std::uint8_t how = m.in.byte();
    if (how < 0x60) {
      offer_one();
    } else if (how < 0x80) {
      offered_ = m.next_available;
    } else if (how < 0x88) {
      offered_ += how % 8u;
    } else if (how < 0x90) { // as it was in the round before
      write_rest(m.next_available, 0, 0, available_flags(m.next_available) ^ 0x8080u);
    } else if (how < 0xf0) {
      write_event({place(m.published + m.in.byte() - 64u),
                   static_cast<std::uint16_t>(how < 0xd8 ? 2 : how % 4u)});
    } else {
      write_event({m.in.number<std::uint16_t>(), m.in.byte()});
    }
  }

  /// A single buffer.
  void offer_one() {
    const std::uint8_t how = m.in.byte();
    write_address(offered_, m.ram.address_from(m.in));
    write_rest(offered_, m.length_from(), free_id(), (how & 2u) | available_flags(offered_));
    ++offered_;
  }

  /// The one that the device looks for.
  void offer_next() {
    offered_ = m.next_available;
    offer_one();
  }

  /// A chain as it should be, perhaps where the ring is full, or with an id that is in flight.
  void offer() {
    if (m.size == 0) return;
    const std::uint8_t how = m.in.byte();
    const std::uint32_t count = 1 + how % 4u, writable = m.in.below(5);
    if (how < 0xf0 && offered_ + count - m.published > m.size) return;
    const std::uint32_t id = free_id();
    for (std::uint32_t i = count; i-- != 0;) {
      const unsigned flags = (i + 1 == count ? 0u : packed::flag_next) |
                             (i + writable >= count ? packed::flag_write : 0u);
      write_address(offered_ + i, m.ram.address_from(m.in));
      write_rest(offered_ + i, m.length_from(), id, flags | available_flags(offered_ + i));
    }
    offered_ += count;
  }

  /// An indirect table as it should be, or nearly, and a chain that is in it.
  void write_table() {
    if (m.size == 0) return;
    const guest_address table = m.ram.address_from(m.in) + m.in.below(3);
    const std::uint32_t count = 1 + m.in.below(5), writable = m.in.below(5);
    for (std::uint32_t i = 0; i < count; ++i) {
      m.ram.poke(table + 16 * i, to_order<E>(m.ram.address_from(m.in)));
      const unsigned flags = (m.in.byte() & 0xfdu) | (i + writable >= count ? 2u : 0u);
      m.ram.poke(table + 16 * i + 8,
                 packed::pack<E>(packed::descriptor_fields{m.length_from(), m.in.byte(),
                                                           static_cast<std::uint16_t>(flags)}));
    }
    write_address(offered_, table);
    write_rest(offered_, 16 * count, free_id(), packed::flag_indirect | available_flags(offered_));
    ++offered_;
  }

  /// The driver takes back what it offered.
  void take_back() {
    if (m.size == 0) return;
    offered_ = m.next_available + m.in.below(3);
    write_rest(offered_, 0, 0, available_flags(offered_) ^ 0x8080u);
  }

  // Popping.

  /// Whether there is another chain, as the loaded words say.
  [[nodiscard]] error look(bool& is_there) {
    is_there = is_available(take_rest(m.next_available));
    return error::none;
  }

  /// What they say of the next chain. Rules are checked in the order in which one comes to them.
  [[nodiscard]] reading next_chain() {
    reading r;
    auto d = take_rest(m.next_available);
    if (!is_available(d)) {
      r.failure = error::queue_empty;
      return r;
    }
    std::uint64_t address = take_address(m.next_available);
    if ((d.flags & packed::flag_indirect) != 0) {
      read_table(address, d, r);
    } else {
      while (r.append({address, d.length}, (d.flags & packed::flag_write) != 0, m.size) &&
             (d.flags & packed::flag_next) != 0) {
        if (r.descriptors == m.size) {
          r.failure = error::chain_loops;
          break;
        }
        address = take_address(m.next_available + r.descriptors);
        d = take_rest(m.next_available + r.descriptors++);
        if ((d.flags & packed::flag_indirect) == 0) continue;
        r.failure = error::indirect_in_chain;
        break;
      }
    }
    r.head = d.id;
    if (r.failure == error::none) r.failure = check(r);
    return r;
  }

  // Returning.

  /// The first chain that is returned is held back, the others are written as they come, or one
  /// for several of them.
  void check_returned() {
    const std::size_t count = m.returned.size() - m.checked;
    require(m.ram.stores.size() <= count, "each chain is returned once");
    m.checked = m.returned.size();
    for (const stored_word& s : m.ram.stores) {
      require(s.how == ballast::order::relaxed, "nothing is published early");
      note_used(s);
    }
  }

  void check_published(bool is_sound) {
    if (!is_sound) return used_.clear();
    require(!m.ram.stores.empty() && m.ram.stores.back().how == ballast::order::release,
            "publishing ends with a release store");
    require(m.ram.stores.size() <= (m.is_in_order ? 2u : 1u), "and is one store");
    const auto first = index(m.published);
    if (m.can_decode) require(!used_.contains(first), "nothing is seen before it is published");
    for (const stored_word& s : m.ram.stores) note_used(s);
    if (m.can_decode) decode();
    used_.clear();
  }

  // Notifications.

  void check_asked(bool answer, std::uint32_t old, std::uint32_t now) {
    check_due<E>(m.ram.take<std::uint32_t>(m.layout.driver_area), m.has_event_index, answer, old,
                 now, m.size);
  }
  [[nodiscard]] bool is_enabled(const stored_word& s) const {
    return is_event<E>(s, m.layout.device_area, place(m.next_available),
                       m.has_event_index ? packed::event_descriptor : packed::event_enable);
  }
  [[nodiscard]] bool is_disabled(const stored_word& s) const {
    return is_event<E>(s, m.layout.device_area, 0, packed::event_disable);
  }

 private:
  [[nodiscard]] std::uint32_t index(std::uint32_t step) const noexcept { return step % m.size; }
  [[nodiscard]] unsigned available_flags(std::uint32_t step) const noexcept {
    return packed_available_flags(step, m.size);
  }

  void write_address(std::uint32_t step, guest_address address) {
    m.ram.poke(m.layout.descriptor_area + 16 * index(step), to_order<E>(address));
  }
  void write_rest(std::uint32_t step, std::uint32_t length, std::uint32_t id, unsigned flags) {
    m.ram.poke(m.layout.descriptor_area + 16 * index(step) + 8,
               packed::pack<E>(packed::descriptor_fields{length, static_cast<std::uint16_t>(id),
                                                         static_cast<std::uint16_t>(flags)}));
  }
  void write_event(packed::event_fields event) {
    m.ram.poke(m.layout.driver_area, packed::pack_event<E>(event));
  }
  /// Mostly one that is not in flight.
  [[nodiscard]] std::uint32_t free_id() {
    const std::uint8_t how = m.in.byte();
    std::uint32_t id = how % (m.size + 1);
    if (how >= 0xe0) return id;
    id %= m.size;
    for (std::uint32_t n = 0; n < m.size && is_with_device(id); ++n) id = (id + 1) % m.size;
    return id;
  }
  [[nodiscard]] bool is_with_device(std::uint32_t id) const {
    for (const returned_chain& r : m.returned)
      if (r.head == id) return true;
    return m.held.contains(static_cast<std::uint16_t>(id));
  }

  [[nodiscard]] packed::descriptor_fields take_rest(std::uint32_t step) {
    return packed::unpack<E>(
        m.ram.take<std::uint64_t>(m.layout.descriptor_area + 16 * index(step) + 8));
  }
  [[nodiscard]] std::uint64_t take_address(std::uint32_t step) {
    return to_order<E>(m.ram.take<std::uint64_t>(m.layout.descriptor_area + 16 * index(step)));
  }
  [[nodiscard]] bool is_available(const packed::descriptor_fields& d) const noexcept {
    return (d.flags & 0x8080u) == available_flags(m.next_available);
  }

  void read_table(guest_address table, const packed::descriptor_fields& d, reading& r) {
    if (!m.has_indirect) return void(r.failure = error::indirect_not_negotiated);
    if ((d.flags & packed::flag_next) != 0) return void(r.failure = error::indirect_with_next);
    if (d.length == 0 || d.length % 16 != 0) return void(r.failure = error::indirect_length);
    if (table + (d.length - 1) < table) return void(r.failure = error::indirect_outside);
    for (std::uint64_t at = 0; at != d.length && r.failure == error::none; at += 16) {
      const loaded_bytes* raw = m.ram.take_bytes(table + at, 16);
      if (raw == nullptr) {
        require(!m.is_memory(table + at, 16), "every descriptor of a table is read");
        return void(r.failure = error::indirect_outside);
      }
      std::uint64_t words[2];
      std::memcpy(words, raw->bytes.data(), 16);
      const auto f = packed::unpack<E>(words[1]);
      if (!r.append({to_order<E>(words[0]), f.length}, (f.flags & packed::flag_write) != 0, m.size))
        return;
    }
  }

  /// Whether a chain can be there, beside those that are held.
  [[nodiscard]] error check(const reading& r) const {
    if (r.is_too_long()) return error::chain_bytes_overflow;
    if (r.head >= m.size) return error::head_out_of_range;
    std::uint32_t held = 0;
    for (const auto& [head, chain] : m.held) held += chain.descriptors;
    if (held + r.descriptors > m.size) return error::descriptors_overrun;
    return m.held.contains(static_cast<std::uint16_t>(r.head)) ? error::head_in_flight
                                                               : error::none;
  }

  void note_used(const stored_word& s) {
    const std::uint64_t offset = s.address - m.layout.descriptor_area;
    require(offset < 16 * std::uint64_t{m.size} && offset % 16 == 8 && s.width == 8,
            "a used descriptor is one word of the ring");
    used_[static_cast<std::uint32_t>(offset / 16)] = packed::unpack<E>(s.value);
  }

  /// What a driver makes of the used descriptors is what was returned; each chain once.
  void decode() {
    for (std::size_t i = 0; i < m.returned.size(); ++i) {
      const std::uint32_t at = m.returned[i].at;
      const auto found = used_.find(index(at));
      require(found != used_.end(), "a used descriptor lies where its first chain lay");
      const packed::descriptor_fields d = found->second;
      used_.erase(found);
      require((d.flags & 0x8080u) == packed_used_flags(at, m.size), "it is used in this round");
      while (m.returned[i].head != d.id) {
        require(m.is_in_order && m.returned[i].is_full,
                "chains that are skipped were written in full");
        require(++i < m.returned.size(), "a used descriptor names a chain that was returned");
      }
      const returned_chain& r = m.returned[i];
      const unsigned written = d.flags & 0x7f7fu;
      require(d.length == r.length && (written == 0 || written == packed::flag_write) &&
                  (r.length != 0 || written == 0) &&
                  (r.length == 0 || !r.has_writable || written != 0),
              "a used descriptor says what was written");
    }
    require(used_.empty(), "nothing else is written");
  }

  device_model& m;
  std::uint32_t offered_ = 0;                               ///< where the driver goes on
  std::map<std::uint32_t, packed::descriptor_fields> used_; ///< by index, since the last publish
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run_device<packed_peer>(input({data, size}));
  return 0;
}
