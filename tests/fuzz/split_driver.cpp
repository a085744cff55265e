// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/split_driver.hpp>

#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <set>
#include <span>
#include <vector>

// The driver's side of a split queue whose device is the input: it writes what it likes into the
// shared memory, between the driver's calls and between two of its loads. Beside it runs a model,
// which works out from the words that the engine loaded what it must have answered, and from those
// that it stored what a device would see.

namespace {

using namespace ballast_fuzz;
using namespace ballast;

template <std::endian E> class scenario {
 public:
  scenario(input& in, std::uint32_t storage)
      : in_(in), slots_(storage), queue_(slots_), storage_(storage) {
    memories_.emplace_back(ram_);
    memory_ = &memories_.back();
  }

  void run() {
    start();
    for (int step = 0; step < 400 && !in_.empty(); ++step) {
      ram_.begin_call();
      step_once();
      check_sums();
    }
    ram_.begin_call();
    drain();
    check_sums();
  }

 private:
  struct added_chain {
    std::uint64_t token = 0;
    std::uint32_t writable = 0;
    std::uint32_t position = 0;
    std::vector<std::uint32_t> descriptors; ///< of the ring
  };
  struct saved_queue {
    driver_queue_state state;
    std::vector<driver_slot> slots;
  };
  using chains = std::map<std::uint32_t, added_chain>; // by head

  [[nodiscard]] bool is_usable() const noexcept { return is_attached_ && cause_ == error::none; }
  hostile_memory& memory() noexcept { return *memory_; }

  void check_sums() const {
    require(queue_.is_attached() == is_attached_, "attached is what start to detach made it");
    require(queue_.size() == size_, "the size is that of the last start");
    require(queue_.cause() == cause_, "the first cause stays until the next start");
    require(queue_.in_flight() == chains_.size(), "in flight is what was added, not taken back");
    std::size_t used = 0;
    for (const auto& [head, chain] : chains_) used += chain.descriptors.size();
    require(queue_.free_descriptors() + used == size_, "free and in flight are all descriptors");
  }

  void step_once() {
    switch (in_.below(24)) {
    case 0: start(); break;
    case 1: write_used_element(); break;
    case 2: write_used_index(); break;
    case 3: return_one(); break;
    case 4: return_one(); break;
    case 5: return_one(); break;
    case 6: write_anything(); break;
    case 7: plan_changes(in_, ram_); break;
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

  // The device.

  void write_used_at(std::uint32_t at, std::uint32_t id, std::uint32_t length) {
    const std::uint32_t entry = at & (size_ - 1);
    ram_.poke(layout_.device_area + split::used_id(entry), to_order<E>(id));
    ram_.poke(layout_.device_area + split::used_length(entry), to_order<E>(length));
  }
  void set_used_index(std::uint32_t index) {
    device_index_ = static_cast<std::uint16_t>(index);
    ram_.poke(layout_.device_area + split::used_index, to_order<E>(device_index_));
  }

  std::uint32_t length_from() {
    const std::uint8_t b = in_.byte();
    return b < 0xf0 ? 16u * (b % 17) : in_.number<std::uint32_t>();
  }

  void write_used_element() {
    const std::uint32_t id = in_.byte() < 0xf0 ? in_.below(size_ + 1) : in_.number<std::uint32_t>();
    write_used_at(device_index_ + in_.below(4), id, length_from());
    if (in_.flag()) set_used_index(device_index_ + 1u);
  }

  void write_used_index() {
    const std::uint8_t how = in_.byte();
    if (how < 0xc0)
      set_used_index(device_index_ + how % 8);
    else if (how < 0xd0)
      set_used_index(next_used_);
    else if (how < 0xe0)
      set_used_index(published_);
    else if (how < 0xe8)
      set_used_index(in_.number<std::uint16_t>());
    else if (how < 0xf0) // flags
      ram_.poke(layout_.device_area, in_.number<std::uint16_t>());
    else
      ram_.poke(layout_.device_area + split::available_event(size_),
                to_order<E>(static_cast<std::uint16_t>(published_ - 1 + in_.byte() % 3)));
  }

  /// As a device should: one of the chains it has, under IN_ORDER mostly the oldest.
  void return_one() {
    if (chains_.empty()) return;
    const std::uint8_t which = in_.byte();
    auto found = std::next(chains_.begin(), static_cast<std::ptrdiff_t>(which % chains_.size()));
    if (is_in_order_ && which < 0x80) {
      const std::uint32_t wanted = which < 0x60 ? device_index_ : device_index_ + which % 4u;
      for (auto c = chains_.begin(); c != chains_.end(); ++c)
        if (static_cast<std::uint16_t>(c->second.position - wanted) == 0) found = c;
    }
    write_used_at(device_index_, found->first, length_from());
    const std::uint32_t run =
        is_in_order_ ? static_cast<std::uint16_t>(found->second.position - device_index_) : 0u;
    set_used_index(device_index_ + 1 + (run < size_ ? run : 0));
  }

  void write_anything() {
    const guest_address at = ram_.address_from(in_) + in_.below(8);
    ram_.poke(at, in_.number<std::uint64_t>(), std::size_t{1} << in_.below(4));
  }

  // The life of a queue.

  [[nodiscard]] hostile_memory& good_memory() {
    if (!memories_.back().good()) memories_.emplace_back(ram_);
    return memories_.back();
  }

  [[nodiscard]] bool can_map(const queue_layout& at, const indirect_tables& tables) {
    hostile_memory& m = good_memory();
    return split::is_valid_size(at.size) && at.size <= storage_ &&
           m.window(at.descriptor_area, 16 * at.size, 16, access::write) &&
           m.window(at.driver_area, 6 + 2 * at.size, 2, access::write) &&
           m.window(at.device_area, 6 + 8 * at.size, 4, access::read) &&
           (!has_indirect_ || tables.entries == 0 ||
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
                           {at.driver_area, 6 + std::uint64_t{2} * at.size},
                           {at.device_area, 6 + std::uint64_t{8} * at.size},
                           {tables.address, has_indirect_ ? tables.bytes(at.size) : 0}};
    for (const range& a : parts)
      for (const range& b : parts)
        if (&a != &b && b.address - a.address < a.size && b.size != 0) return true;
    return false;
  }

  void adopt(const queue_layout& at, const indirect_tables& tables, hostile_memory& memory) {
    is_attached_ = true;
    layout_ = at;
    tables_ = tables;
    memory_ = &memory;
  }

  indirect_tables tables_from() {
    indirect_tables tables;
    const std::uint8_t how = in_.byte();
    tables.entries = how < 0xf0 ? how % 6u : in_.number<std::uint32_t>();
    tables.address = how < 0x80 ? 0x1'0000'0000 : ram_.address_from(in_);
    return tables;
  }

  void start() {
    const std::uint8_t bits = in_.byte();
    has_event_index_ = (bits & 1) != 0;
    has_indirect_ = (bits & 2) != 0;
    is_in_order_ = (bits & 4) != 0;
    features_ = {feature::version_1};
    if (has_event_index_) features_.set(feature::event_idx);
    if (has_indirect_) features_.set(feature::indirect_desc);
    if (is_in_order_) features_.set(feature::in_order);
    hostile_memory& memory = good_memory();
    const queue_layout at = layout_from(in_, ram_);
    const std::uint16_t first = (bits & 8) != 0 ? in_.number<std::uint16_t>() : std::uint16_t{0};
    const indirect_tables tables = has_indirect_ ? tables_from() : indirect_tables{};
    if (is_overlapping(at, tables)) return drain();
    const bool is_possible =
        can_map(at, tables) &&
        memory.window(at.device_area, 6 + 8 * at.size, 4, access::write).has_value();
    const auto started = queue_.start(memory, at, features_, first, tables);
    require(started.has_value() == is_possible, "start fails where the queue is not memory");
    require(ram_.words.empty(), "start loads nothing");
    is_attached_ = false;
    if (!started) {
      // Whether the last life can go on depends on its features, so it does not.
      drain();
      return;
    }
    adopt(at, tables, memory);
    size_ = at.size;
    next_available_ = next_used_ = published_ = notified_ = run_end_ = first;
    run_length_ = 0;
    cause_ = error::none;
    chains_.clear();
    device_index_ = first;
    shadow_.clear();
  }

  void attach() {
    if (in_.below(4) == 0 || in_.flag()) {
      queue_.detach();
      is_attached_ = false;
      if (in_.flag()) return;
    }
    hostile_memory& memory = good_memory();
    queue_layout at = layout_;
    indirect_tables tables = tables_;
    if (in_.flag()) {
      at = layout_from(in_, ram_);
      if (in_.flag()) at.size = size_;
      if (in_.flag()) tables = tables_from();
    }
    if (is_overlapping(at, tables)) return;
    const bool is_possible = !is_attached_ && size_ != 0 && at.size == size_ && can_map(at, tables);
    const auto attached = queue_.attach(memory, at, features_, tables);
    require(attached.has_value() == is_possible, "attach wants a detached queue of the same size");
    require(ram_.accesses == 0, "attaching touches no ring");
    if (attached) adopt(at, tables, memory);
  }

  void drain() {
    std::map<std::uint64_t, int> left;
    for (const auto& [head, chain] : chains_) ++left[chain.token];
    std::size_t count = 0;
    queue_.drain([&](std::uint64_t token) {
      require(left[token]-- > 0, "draining hands back what was added, once");
      ++count;
    });
    require(count == chains_.size(), "draining hands back everything");
    chains_.clear();
    is_attached_ = false;
    size_ = 0;
    next_used_ = published_ = notified_ = next_available_;
  }

  void save() {
    std::vector<driver_slot> slots(in_.flag() ? size_ : in_.below(size_ + 1));
    const auto state = queue_.save(slots);
    const bool is_possible = size_ != 0 && published_ == next_available_ && slots.size() >= size_;
    require(state.has_value() == is_possible, "a queue is saved where nothing is staged");
    if (!state) return;
    require(state->size == size_ && state->cause == cause_ &&
                state->next_available == static_cast<std::uint16_t>(next_available_) &&
                state->next_used == static_cast<std::uint16_t>(next_used_) &&
                state->unasked == unasked(published_ - notified_),
            "a saved state is the queue's");
    saved_ = {*state, slots};
    if (in_.flag()) return;
    // What is saved can be restored at once, and is the same.
    queue_.detach();
    is_attached_ = false;
    if (!can_map(layout_, tables_)) return;
    hostile_memory& memory = good_memory();
    require(queue_.restore(memory, layout_, features_, *state, slots, tables_).has_value(),
            "what was saved can be restored");
    adopt(layout_, tables_, memory);
  }

  void restore() {
    saved_queue from = saved_;
    const std::uint8_t how = in_.byte();
    const auto mutate_slot = [&] {
      if (from.slots.empty()) return;
      driver_slot& slot = from.slots[in_.below(static_cast<std::uint32_t>(from.slots.size()))];
      const std::uint8_t field = in_.byte();
      const auto value = static_cast<std::uint16_t>(field < 0xc0 ? in_.below(from.state.size + 1)
                                                                 : in_.number<std::uint16_t>());
      switch (field % 5) {
      case 0: slot.next = value; break;
      case 1: slot.last = value; break;
      case 2: slot.descriptors = value; break;
      case 3: slot.position = static_cast<std::uint16_t>(from.state.next_used + value); break;
      default: slot.writable = value; break;
      }
    };
    if ((how & 1) != 0) mutate_slot();
    if ((how & 2) != 0) mutate_slot();
    if ((how & 4) != 0) from.state.next_available = in_.number<std::uint16_t>();
    if ((how & 8) != 0) from.state.run_end = static_cast<std::uint16_t>(next_used_ + in_.byte());
    if ((how & 16) != 0) from.state.first_free = in_.byte();
    if ((how & 32) != 0) from.state.oldest = in_.byte();
    if ((how & 64) != 0) from.state.cause = static_cast<error>(in_.byte());
    if ((how & 128) != 0) from.state.unasked = in_.number<std::uint32_t>() % 65540;
    queue_.detach();
    is_attached_ = false;
    hostile_memory& memory = good_memory();
    queue_layout at = layout_;
    at.size = from.state.size;
    if (is_overlapping(at, tables_)) return;
    const auto restored = queue_.restore(memory, at, features_, from.state, from.slots, tables_);
    require(ram_.accesses == 0, "restoring touches no ring");
    if (!restored) return;
    require(can_map(at, tables_), "a queue is restored only in memory");
    adopt(at, tables_, memory);
    size_ = at.size;
    const driver_queue_state& s = from.state;
    next_used_ = s.next_used;
    const auto after = [&](std::uint16_t index) {
      return next_used_ + static_cast<std::uint16_t>(index - s.next_used);
    };
    next_available_ = published_ = after(s.next_available);
    notified_ = published_ - s.unasked;
    run_end_ = after(s.run_end);
    run_length_ = s.run_length;
    cause_ = s.cause;
    chains_.clear();
    std::set<std::uint32_t> seen;
    for (std::uint32_t head = 0; head < size_; ++head) {
      const driver_slot& slot = from.slots[head];
      if (slot.descriptors == 0) continue;
      // Without IN_ORDER the position does not matter any more: nothing is staged.
      const std::uint32_t position =
          is_in_order_ ? after(static_cast<std::uint16_t>(slot.position)) : published_ - 1;
      added_chain chain{slot.token, slot.writable, position, {head}};
      for (std::uint32_t i = 1; i < slot.descriptors; ++i)
        chain.descriptors.push_back(from.slots[chain.descriptors.back()].next);
      for (const std::uint32_t d : chain.descriptors)
        require(d < size_ && seen.insert(d).second, "each descriptor is in one chain");
      chains_[head] = chain;
    }
    require(chains_.size() == next_available_ - next_used_, "as many chains as the indices say");
    if (in_.flag()) set_used_index(next_used_);
  }

  void rare() {
    switch (in_.below(4)) {
    case 0: memory().lose(); break;
    case 1: drain(); break;
    case 2:
      queue_.disable_notifications();
      if (is_attached_ && !has_event_index_) {
        require(ram_.stores.size() == 1 && is_store(0, layout_.driver_area, split::no_interrupt),
                "flags say that notifications are not needed");
      } else {
        require(ram_.stores.empty(), "with EVENT_IDX the flags stay 0");
      }
      break;
    default:
      require(queue_.notification_data(5) ==
                  (5u | static_cast<std::uint32_t>(static_cast<std::uint16_t>(published_)) << 16),
              "notification data are the index of the queue and of the ring");
      break;
    }
  }

  // Adding.

  [[nodiscard]] bool is_store(std::size_t i, guest_address address, std::uint16_t value) const {
    const stored_word& s = ram_.stores[i];
    return s.address == address && s.width == 2 && s.value == to_order<E>(value);
  }

  [[nodiscard]] std::uint32_t free_descriptors() const {
    std::size_t used = 0;
    for (const auto& [head, chain] : chains_) used += chain.descriptors.size();
    return size_ - static_cast<std::uint32_t>(used);
  }

  buffer buffer_from() { return {ram_.address_from(in_), length_from()}; }

  /// Takes what was stored into the shadow: what a device sees that did not change it.
  void take_stores() {
    for (const stored_word& s : ram_.stores) {
      const bool is_table = is_in(s, layout_.descriptor_area, 16 * std::uint64_t{size_});
      const bool is_ring = is_in(s, layout_.driver_area, 6 + 2 * std::uint64_t{size_});
      const bool is_indirect = has_indirect_ && is_in(s, tables_.address, tables_.bytes(size_));
      require(is_table || is_ring || is_indirect, "a driver writes only what is the driver's");
      shadow_[{s.address, s.width}] = s.value;
    }
  }
  [[nodiscard]] static bool is_in(const stored_word& s, guest_address at, std::uint64_t size) {
    return s.address - at < size && s.width <= size - (s.address - at);
  }

  template <class T> [[nodiscard]] T seen_by_device(guest_address address) {
    const auto found = shadow_.find({address, sizeof(T)});
    require(found != shadow_.end(), "every word of a chain is written");
    return to_order<E>(static_cast<T>(found->second));
  }

  /// A device that reads the ring entry at `position` finds exactly these buffers.
  void check_chain(std::uint32_t position, std::span<const buffer> readable,
                   std::span<const buffer> writable, std::uint64_t token) {
    std::vector<buffer> all(readable.begin(), readable.end());
    all.insert(all.end(), writable.begin(), writable.end());
    const std::uint32_t head = seen_by_device<std::uint16_t>(
        layout_.driver_area + split::available_entry(position & (size_ - 1)));
    added_chain chain{token, static_cast<std::uint32_t>(total_bytes(writable)), position, {}};
    const bool is_indirect = has_indirect_ && all.size() > 1 && all.size() <= tables_.entries;
    guest_address table = layout_.descriptor_area;
    std::uint32_t index = head, entries = size_;
    if (is_indirect) {
      require(head < size_, "a head is below the queue size");
      chain.descriptors.push_back(head);
      const auto f = read_fields(table + 16 * head);
      require(f.flags == split::flag_indirect && f.length == 16 * all.size(),
              "an indirect table has one descriptor a buffer");
      table = seen_by_device<std::uint64_t>(table + 16 * head);
      require(table >= tables_.address &&
                  table - tables_.address <= tables_.bytes(size_) - f.length,
              "an indirect table lies where it may");
      index = 0;
      entries = static_cast<std::uint32_t>(all.size());
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      require(index < entries, "a chain stays in its table");
      if (!is_indirect) chain.descriptors.push_back(index);
      const guest_address at = table + 16 * index;
      const auto f = read_fields(at);
      require(buffer{seen_by_device<std::uint64_t>(at), f.length} == all[i],
              "each buffer is written as it was given");
      const unsigned flags = (i + 1 == all.size() ? 0u : split::flag_next) |
                             (i < readable.size() ? 0u : split::flag_write);
      require(f.flags == flags, "flags say what may be written and where the chain ends");
      index = f.next;
    }
    for (const auto& [other, in_flight] : chains_)
      for (const std::uint32_t d : in_flight.descriptors)
        require(std::find(chain.descriptors.begin(), chain.descriptors.end(), d) ==
                    chain.descriptors.end(),
                "no descriptor is in two chains");
    chains_[head] = chain;
  }

  [[nodiscard]] split::descriptor_fields read_fields(guest_address at) {
    const auto found = shadow_.find({at + 8, 8});
    require(found != shadow_.end(), "every word of a chain is written");
    return split::unpack<E>(found->second);
  }

  void add() {
    const std::uint8_t how = in_.byte();
    const std::uint32_t limit = how < 0xe0 ? 4 : size_ + 2;
    std::vector<buffer> readable(how < 0xe0 ? how % 4 : in_.below(limit)),
        writable(how < 0xe0 ? how / 4 % 4 : in_.below(limit));
    const buffer last = buffer_from();
    for (buffer& b : readable) b = readable.size() < 4 ? buffer_from() : last;
    for (buffer& b : writable) b = writable.size() < 4 ? buffer_from() : last;
    const std::uint64_t token = ++token_;
    const std::size_t count = readable.size() + writable.size();
    const bool is_indirect = has_indirect_ && count > 1 && count <= tables_.entries;
    const bool is_possible = is_usable() && memory().good() && count != 0 && count <= size_ &&
                             (is_indirect ? 1 : count) <= free_descriptors() &&
                             total_bytes(readable) + total_bytes(writable) <= UINT32_MAX;
    const auto added = queue_.add(readable, writable, token);
    require(added.has_value() == is_possible, "a chain is added where there is room");
    require(ram_.words.empty(), "adding loads nothing");
    // Free descriptors are the driver's own: a chain that turns out too long may be written there.
    if (!added)
      return require(ram_.stores.empty() || added.error() == error::chain_bytes_overflow,
                     "nothing changes where adding fails");
    require(ram_.accesses <= 3 + 2 * count, "adding is bounded by the chain");
    take_stores();
    check_chain(next_available_++, readable, writable, token);
  }

  void add_each() {
    std::vector<single_buffer> given(in_.below(size_ + 3));
    const buffer first = buffer_from();
    const std::uint8_t writable = in_.byte();
    for (std::size_t i = 0; i < given.size(); ++i)
      given[i] = {{first.address + 16 * i, first.length}, (writable >> (i % 8) & 1) != 0, ++token_};
    const std::size_t expected = std::min<std::size_t>(free_descriptors(), given.size());
    std::size_t asked = 0;
    const auto added =
        queue_.add_each(static_cast<std::uint32_t>(given.size()), [&] { return given[asked++]; });
    require(ram_.words.empty(), "adding loads nothing");
    require(added.has_value() == (is_usable() && memory().good()), "a working queue takes chains");
    if (!added) return require(asked == 0 && ram_.stores.empty(), "nothing changes otherwise");
    require(*added == expected && asked == expected, "as many are added as there is room for");
    require(ram_.accesses == 3 * expected, "adding is bounded by what is added");
    take_stores();
    for (std::size_t i = 0; i < expected; ++i) {
      const std::span<const buffer> one(&given[i].data, 1), none;
      const bool is_writable = given[i].is_writable;
      check_chain(next_available_++, is_writable ? none : one, is_writable ? one : none,
                  given[i].token);
    }
  }

  void publish() {
    const bool is_due = is_attached_ && published_ != next_available_;
    queue_.publish();
    require(ram_.words.empty(), "publishing loads nothing");
    if (!is_due) return require(ram_.stores.empty(), "there is nothing to publish");
    published_ = next_available_;
    require(ram_.stores.size() == 1 &&
                is_store(0, layout_.driver_area + split::available_index,
                         static_cast<std::uint16_t>(published_)) &&
                ram_.stores[0].how == order::release,
            "publishing is one release store of the index");
  }

  void ask() {
    const std::uint32_t old = notified_, now = published_;
    const bool answer = queue_.should_notify();
    require(ram_.stores.empty() && ram_.accesses <= 1, "asking is one load");
    if (!is_attached_) return require(!answer, "nobody is notified while detached");
    notified_ = now;
    if (old == now) return require(!answer, "nobody is notified of nothing");
    if (has_event_index_) {
      const auto event = to_order<E>(
          ram_.template take<std::uint16_t>(layout_.device_area + split::available_event(size_)));
      require(answer == (static_cast<std::uint16_t>(event - old) < now - old),
              "a device is notified where its event lies in what was published");
    } else {
      const auto flags =
          to_order<E>(ram_.template take<std::uint16_t>(layout_.device_area + split::used_flags));
      require(answer == ((flags & split::no_notify) == 0), "a device is notified as flags say");
    }
  }

  void enable() {
    const bool has_more = queue_.enable_notifications();
    if (!is_usable()) {
      require(!has_more && ram_.accesses == 0, "broken: nothing is enabled");
      return;
    }
    const auto next = static_cast<std::uint16_t>(next_used_);
    const guest_address word =
        layout_.driver_area +
        (has_event_index_ ? split::used_event(size_) : std::size_t{split::available_flags});
    require(ram_.stores.size() == 1 &&
                is_store(0, word, has_event_index_ ? next : std::uint16_t{0}),
            "the device is asked to notify");
    const auto index =
        to_order<E>(ram_.template take<std::uint16_t>(layout_.device_area + split::used_index));
    require(has_more == (index != next && memory().good()), "what is there already is said");
  }

  // Taking back.

  [[nodiscard]] error read_returned(std::uint32_t& returned) {
    const auto index =
        to_order<E>(ram_.template take<std::uint16_t>(layout_.device_area + split::used_index));
    returned = static_cast<std::uint16_t>(index - next_used_);
    return returned > published_ - next_used_ ? error::used_index_jump : error::none;
  }

  /// What the loaded words say of the next returned chain, `left` of which are there; takes it
  /// from the model.
  [[nodiscard]] error take_next(std::uint32_t left, added_chain& taken, std::uint32_t& length) {
    typename chains::iterator found;
    if (!is_in_order_ || next_used_ == run_end_) {
      const guest_address ring = layout_.device_area;
      const std::uint32_t entry = next_used_ & (size_ - 1);
      const auto id = to_order<E>(ram_.template take<std::uint32_t>(ring + split::used_id(entry)));
      length = to_order<E>(ram_.template take<std::uint32_t>(ring + split::used_length(entry)));
      if (id >= size_) return error::used_id_out_of_range;
      found = chains_.find(id);
      if (found == chains_.end()) return error::used_id_not_in_flight;
      const std::uint32_t distance = found->second.position - next_used_;
      if (!is_in_order_) {
        if (is_staged(found->second)) return error::used_id_not_in_flight;
      } else {
        if (distance >= left) return error::used_out_of_order;
        run_end_ = next_used_ + distance + 1;
        run_length_ = length;
      }
    }
    if (is_in_order_) {
      found = std::find_if(chains_.begin(), chains_.end(),
                           [&](const auto& c) { return c.second.position == next_used_; });
      require(found != chains_.end(), "IN_ORDER: each position has its chain");
      length = next_used_ + 1 == run_end_ ? run_length_ : found->second.writable;
    }
    taken = found->second;
    length = std::min(length, taken.writable);
    chains_.erase(found);
    ++next_used_;
    return error::none;
  }

  /// Chains come back in any order, so what is older than `published_` may still be in flight.
  [[nodiscard]] bool is_staged(const added_chain& c) const {
    return static_cast<std::int32_t>(c.position - published_) >= 0;
  }

  void check_failure(error answer, error expected) {
    if (!memory().good()) return require(answer == error::memory_lost, "lost memory is reported");
    require(answer == expected, "the error names the rule that was broken");
    if (expected != error::queue_empty) cause_ = expected;
  }

  void pop() {
    const auto popped = queue_.pop_used();
    require(ram_.stores.empty() && ram_.accesses <= 3, "taking back is three loads");
    if (!is_usable()) {
      require(popped.error() == (is_attached_ ? cause_ : error::not_attached) && ram_.words.empty(),
              "a queue that is broken or detached gives nothing");
      return;
    }
    if (!memory().good()) return check_failure(popped.error(), error::memory_lost);
    std::uint32_t returned = 0;
    if (const error e = read_returned(returned); e != error::none)
      return check_failure(popped.error(), e);
    if (returned == 0) return check_failure(popped.error(), error::queue_empty);
    added_chain chain;
    std::uint32_t length = 0;
    const error e = take_next(returned, chain, length);
    require(ram_.is_all_taken(), "each word is loaded once");
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
    const bool was_usable = is_usable() && memory().good();
    const std::uint32_t budget = in_.below(size_ + 3);
    std::uint32_t returned = 0, count = 0;
    const auto done = queue_.reclaim(budget, [&](const used_buffer& got) {
      require(was_usable && memory().good(), "a broken queue gives nothing");
      if (count == 0) require(read_returned(returned) == error::none, "only what was returned");
      require(count < returned && count < budget, "the budget is kept");
      added_chain chain;
      std::uint32_t length = 0;
      const error e = take_next(returned - count++, chain, length);
      check_taken(got, e, chain, length);
    });
    require(ram_.stores.empty() && ram_.accesses <= 1 + 2 * (std::uint64_t{count} + 1),
            "taking back is bounded by the budget");
    if (!is_usable()) {
      require(done.error() == (is_attached_ ? cause_ : error::not_attached) && ram_.words.empty(),
              "a queue that is broken or detached gives nothing");
      return;
    }
    if (!memory().good()) {
      // Lost after the last word that was needed is noticed by the next call.
      return require(done.error() == error::memory_lost || (done && *done == count && is_in_order_),
                     "lost memory is reported");
    }
    if (count == 0) {
      if (const error e = read_returned(returned); e != error::none)
        return check_failure(done.error(), e);
    }
    const std::uint32_t expected = std::min(returned, budget);
    if (count != expected) {
      added_chain chain;
      std::uint32_t length = 0;
      const error e = take_next(returned - count, chain, length);
      require(e != error::none, "it stops early only where a rule was broken");
      return check_failure(done.error(), e);
    }
    require(done.has_value() && *done == count, "it says how many it took");
    require(ram_.is_all_taken(), "each word is loaded once");
  }

  input& in_;
  guest_ram ram_;
  std::deque<hostile_memory> memories_; ///< all but the last are lost
  hostile_memory* memory_ = nullptr;
  std::vector<driver_slot> slots_;
  split_driver<hostile_memory, E> queue_;
  std::uint32_t storage_;

  queue_layout layout_;
  indirect_tables tables_;
  feature_set features_;
  bool has_event_index_ = false;
  bool has_indirect_ = false;
  bool is_in_order_ = false;
  std::uint16_t device_index_ = 0;

  bool is_attached_ = false;
  std::uint32_t size_ = 0;
  std::uint32_t next_available_ = 0;
  std::uint32_t published_ = 0;
  std::uint32_t notified_ = 0;
  std::uint32_t next_used_ = 0;
  std::uint32_t run_end_ = 0;
  std::uint32_t run_length_ = 0;
  error cause_ = error::none;
  chains chains_;
  std::uint64_t token_ = 0;
  std::map<std::pair<guest_address, std::size_t>, std::uint64_t> shadow_;
  saved_queue saved_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  input in({data, size});
  const std::uint8_t how = in.byte();
  const std::uint32_t storage = how % 8 < 5 ? 64 : 1u + how % 32;
  if ((how & 0x80) != 0)
    scenario<std::endian::big>(in, storage).run();
  else
    scenario<std::endian::little>(in, storage).run();
  return 0;
}
