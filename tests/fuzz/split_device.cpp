// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/split_device.hpp>

#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

// The device's side of a split queue whose driver is the input: it writes what it likes into guest
// memory, between the device's calls and between two of its loads. Beside it runs a model, which
// works out from the words that the engine loaded what it must have answered.

namespace {

using namespace ballast_fuzz;
using namespace ballast;

template <std::endian E> class scenario {
 public:
  template <std::uint32_t N>
  scenario(input& in, device_queue_storage<N>& storage) noexcept
      : in_(in), queue_(storage), storage_(N) {
    memories_.emplace_back(ram_);
    memory_ = &memories_.back();
  }

  void run() {
    start();
    for (int step = 0; step < 400 && !in_.empty(); ++step) {
      ram_.begin_call();
      step_once();
      require(queue_.is_attached() == is_attached_, "attached is what start to detach made it");
      require(queue_.size() == size_, "the size is that of the last start");
      require(queue_.cause() == cause_, "the first cause stays until the next start");
      require(queue_.in_flight() == held_.size(), "in flight is what was popped, not returned");
    }
    return_all();
  }

 private:
  struct held_chain {
    chain_id id;
    std::uint64_t serial = 0; ///< in the order they were popped
    std::uint64_t writable_bytes = not_full;
  };
  struct popped_chain {
    std::uint16_t head = 0;
    std::uint64_t serial = 0;
  };
  struct returned_chain {
    std::uint32_t head = 0;
    std::uint32_t length = 0;
    bool is_full = false; ///< the driver may be left to think that all was written
  };
  /// What the words say that the engine loaded of the next chain.
  struct reading {
    error failure = error::none;
    std::uint32_t head = 0;
    std::vector<buffer> buffers;
    std::uint32_t readable = 0;
  };
  struct saved_queue {
    device_queue_state state;
    std::vector<held_head> heads;
  };
  static constexpr std::uint64_t not_full = UINT64_MAX;

  /// What the queue is attached to, or was.
  hostile_memory& memory() noexcept { return *memory_; }
  [[nodiscard]] bool is_usable() const noexcept { return is_attached_ && cause_ == error::none; }

  void step_once() {
    switch (in_.below(24)) {
    case 0: start(); break;
    case 1: write_descriptor(); break;
    case 2: write_available(); break;
    case 3: offer(); break;
    case 4: offer(); break;
    case 5: write_anything(); break;
    case 6: plan_changes(in_, ram_); break;
    case 7: pop(); break;
    case 8: pop(); break;
    case 9: consume(false); break;
    case 10: consume(false); break;
    case 11: consume(true); break;
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
    case 22: write_table(); break;
    default: rare(); break;
    }
  }

  // The driver.

  void write_descriptor() {
    const split::descriptor_fields fields{length_from(), static_cast<std::uint16_t>(in_.below(8)),
                                          static_cast<std::uint16_t>(in_.below(size_ + 1))};
    write_descriptor_at(layout_.descriptor_area + 16 * in_.below(size_), ram_.address_from(in_),
                        fields);
  }

  void write_descriptor_at(guest_address at, guest_address address,
                           split::descriptor_fields fields) {
    ram_.poke(at, to_order<E>(address));
    ram_.poke(at + 8, split::pack<E>(fields));
  }

  std::uint32_t length_from() {
    const std::uint8_t b = in_.byte();
    return b < 0xf0 ? 16u * (b % 17) : in_.number<std::uint32_t>();
  }

  void write_entry(std::uint32_t at, std::uint32_t head) {
    ram_.poke(layout_.driver_area + split::available_entry(at & (size_ - 1)),
              to_order<E>(static_cast<std::uint16_t>(head)));
  }
  void write_index(std::uint32_t index) {
    driver_index_ = static_cast<std::uint16_t>(index);
    ram_.poke(layout_.driver_area + split::available_index, to_order<E>(driver_index_));
  }

  void write_available() {
    const std::uint8_t how = in_.byte();
    if (how < 0x80)
      write_entry(driver_index_ + how % 4, in_.below(size_ + 1));
    else if (how < 0xf0)
      write_index(driver_index_ + how % 8);
    else if (how < 0xf8)
      write_index(in_.number<std::uint16_t>());
    else if (how < 0xfc) // flags
      ram_.poke(layout_.driver_area, in_.number<std::uint16_t>());
    else
      ram_.poke(layout_.driver_area + split::used_event(size_),
                to_order<E>(static_cast<std::uint16_t>(published_ + in_.byte())));
  }

  /// A chain as it should be, perhaps of descriptors that are in use.
  void offer() {
    if (size_ == 0) return;
    const std::uint32_t head = in_.below(size_), count = 1 + in_.below(4), writable = in_.below(5);
    for (std::uint32_t i = 0; i < count; ++i) {
      const bool is_last = i + 1 == count;
      const unsigned flags =
          (is_last ? 0u : split::flag_next) | (i + writable >= count ? split::flag_write : 0u);
      write_descriptor_at(layout_.descriptor_area + 16 * ((head + i) % size_),
                          ram_.address_from(in_),
                          {length_from(), static_cast<std::uint16_t>(flags),
                           static_cast<std::uint16_t>((head + i + 1) % size_)});
    }
    write_entry(driver_index_, head);
    write_index(driver_index_ + 1u);
  }

  /// An indirect table as it should be, or nearly, and a chain that is in it.
  void write_table() {
    if (size_ == 0) return;
    const guest_address at = ram_.address_from(in_) + in_.below(3);
    const std::uint32_t head = in_.below(size_), count = 1 + in_.below(5), writable = in_.below(5);
    for (std::uint32_t i = 0; i < count; ++i) {
      const unsigned flags = (i + 1 == count ? 0u : split::flag_next) |
                             (i + writable >= count ? split::flag_write : 0u);
      write_descriptor_at(
          at + 16 * i, ram_.address_from(in_),
          {length_from(), static_cast<std::uint16_t>(flags), static_cast<std::uint16_t>(i + 1)});
    }
    write_descriptor_at(layout_.descriptor_area + 16 * head, at,
                        {16 * count, split::flag_indirect, 0});
    write_entry(driver_index_, head);
    write_index(driver_index_ + 1u);
  }

  void write_anything() {
    const guest_address at = ram_.address_from(in_) + in_.below(8);
    ram_.poke(at, in_.number<std::uint64_t>(), std::size_t{1} << in_.below(4));
  }

  // The life of a queue.

  [[nodiscard]] bool can_map(const queue_layout& at) {
    hostile_memory& m = good_memory();
    return split::is_valid_size(at.size) && at.size <= storage_ &&
           m.window(at.descriptor_area, 16 * at.size, 16, access::read) &&
           m.window(at.driver_area, 6 + 2 * at.size, 2, access::read) &&
           m.window(at.device_area, 6 + 8 * at.size, 4, access::write);
  }

  void forget() noexcept {
    for (const auto& [head, chain] : held_) stale_.push_back(chain.id);
    while (stale_.size() > 8) stale_.pop_front();
    is_attached_ = false;
    size_ = next_available_ = next_used_ = published_ = notified_ = 0;
    cause_ = error::none;
    held_.clear();
    recent_.clear();
    returned_.clear();
    can_decode_ = true;
  }

  /// Memory to attach to: the same, or another where that was lost.
  hostile_memory& good_memory() {
    if (!memories_.back().good()) memories_.emplace_back(ram_);
    return memories_.back();
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
    const bool is_possible = can_map(at);
    const auto started = queue_.start(memory, at, features_, first);
    require(started.has_value() == is_possible, "start fails where the queue is not memory");
    require(ram_.words.empty() && ram_.stores.empty(), "start of a device touches no ring");
    forget();
    if (!started) return;
    memory_ = &memory;
    is_attached_ = true;
    layout_ = at;
    size_ = at.size;
    next_available_ = next_used_ = published_ = notified_ = first;
    write_index(first);
    used_ring_.assign(size_, {});
  }

  void attach() {
    switch (in_.below(4)) {
    case 0:
      queue_.detach();
      is_attached_ = false;
      return;
    case 1:
      queue_.reset();
      forget();
      return;
    default: break;
    }
    if (in_.flag()) {
      queue_.detach();
      is_attached_ = false;
    }
    hostile_memory& memory = good_memory();
    queue_layout at = layout_;
    if (in_.flag()) {
      at = layout_from(in_, ram_);
      if (in_.flag()) at.size = size_;
    }
    const bool is_possible = !is_attached_ && size_ != 0 && at.size == size_ && can_map(at);
    const auto attached = queue_.attach(memory, at, features_);
    require(attached.has_value() == is_possible, "attach wants a detached queue of the same size");
    if (!attached) return;
    memory_ = &memory;
    is_attached_ = true;
    layout_ = at;
  }

  void save() {
    std::vector<held_head> heads(in_.flag() ? held_.size() : in_.below(size_ + 1));
    const auto state = queue_.save(heads);
    const bool is_state_right = size_ != 0 && published_ == next_used_;
    require(state.has_value() == (is_state_right && heads.size() >= held_.size()),
            "a queue is saved where nothing is staged");
    if (!state) return;
    heads.resize(held_.size());
    check_saved(heads);
    require(state->size == size_ && state->cause == cause_ &&
                state->next_available == static_cast<std::uint16_t>(next_available_) &&
                state->next_used == static_cast<std::uint16_t>(next_used_) &&
                state->unasked == unasked(next_used_ - notified_),
            "a saved state is the queue's");
    saved_ = {*state, heads};
  }

  void check_saved(const std::vector<held_head>& heads) const {
    std::uint64_t last = 0;
    std::map<std::uint16_t, int> seen;
    for (const auto [head, descriptors] : heads) {
      const auto found = held_.find(head);
      require(found != held_.end() && ++seen[head] == 1, "the heads in flight are saved once");
      if (!is_in_order_) continue;
      require(found->second.serial >= last, "IN_ORDER: heads are saved in their order");
      last = found->second.serial;
    }
  }

  void restore() {
    saved_queue from = saved_;
    queue_layout at = layout_;
    const std::uint8_t how = in_.byte();
    if ((how & 1) != 0) at.size = saved_.state.size;
    if ((how & 2) != 0) at = layout_from(in_, ram_);
    if ((how & 4) != 0 && !from.heads.empty())
      from.heads[in_.below(static_cast<std::uint32_t>(from.heads.size()))].head = in_.byte();
    if ((how & 8) != 0) from.state.next_available = in_.number<std::uint16_t>();
    if ((how & 16) != 0) from.state.next_used = in_.number<std::uint16_t>();
    if ((how & 32) != 0) from.state.unasked = in_.number<std::uint32_t>() % 65540;
    if ((how & 64) != 0) from.state.cause = static_cast<error>(in_.byte());
    if ((how & 128) != 0) from.state.version = in_.byte();
    hostile_memory& memory = good_memory();

    bool is_valid = from.state.version == 1 && from.state.size == at.size && can_map(at) &&
                    is_cause(from.state.cause) && from.state.unasked <= 65536;
    const auto kept = static_cast<std::uint16_t>(from.state.next_available - from.state.next_used);
    is_valid = is_valid && kept <= at.size && kept == from.heads.size();
    std::map<std::uint16_t, int> seen;
    for (const auto [head, descriptors] : from.heads)
      is_valid = is_valid && head < at.size && ++seen[head] == 1;
    const auto restored = queue_.restore(memory, at, features_, from.state, from.heads);
    require(restored.has_value() == is_valid, "only a state that fits together is restored");
    if (!restored) return;
    memory_ = &memory;
    forget();
    is_attached_ = true;
    layout_ = at;
    size_ = at.size;
    next_used_ = published_ = from.state.next_used;
    next_available_ = next_used_ + kept;
    notified_ = next_used_ - from.state.unasked;
    cause_ = from.state.cause;
    used_ring_.assign(size_, {});
    for (const auto [head, descriptors] : from.heads) {
      const auto id = queue_.held_chain(head);
      require(id.has_value() && id->head == head, "what a restored queue holds has an id");
      held_[head] = {*id, ++serial_, not_full};
    }
    if (in_.flag()) write_index(next_available_);
  }

  void rare() {
    switch (in_.below(4)) {
    case 0: {
      memory().lose();
      break;
    }
    case 1: {
      const auto why = static_cast<error>(64 + in_.below(24));
      queue_.fail(why);
      if (cause_ == error::none) cause_ = why;
      break;
    }
    case 2:
      queue_.disable_notifications();
      if (is_attached_ && !has_event_index_) {
        require(ram_.stores.size() == 1 && is_store(0, split::used_flags, split::no_notify),
                "flags say that notifications are not needed");
      } else {
        require(ram_.stores.empty(), "with EVENT_IDX the flags stay 0");
      }
      break;
    default: // The driver takes back what it offered.
      write_index(next_available_ + in_.below(3));
      break;
    }
  }

  // Popping.

  /// What the loaded words say of how many chains are available.
  [[nodiscard]] error read_pending(std::uint32_t& pending) {
    const auto index = to_order<E>(
        ram_.template take<std::uint16_t>(layout_.driver_area + split::available_index));
    pending = static_cast<std::uint16_t>(index - next_available_);
    return pending > size_ ? error::available_index_jump : error::none;
  }

  /// What they say of the next chain. Rules are checked in the order in which one comes to them.
  [[nodiscard]] reading read_chain() {
    reading r;
    r.head = to_order<E>(ram_.template take<std::uint16_t>(
        layout_.driver_area + split::available_entry(next_available_ & (size_ - 1))));
    if (r.head >= size_) return r.failure = error::head_out_of_range, r;
    if (held_.contains(static_cast<std::uint16_t>(r.head)))
      return r.failure = error::head_in_flight, r;
    std::uint32_t index = r.head, entries = size_;
    guest_address table = 0;
    bool is_in_table = false;
    std::uint64_t sum = 0;
    while (true) {
      std::uint64_t address = 0, rest = 0;
      if (is_in_table) {
        const loaded_bytes* raw = ram_.take_bytes(table + std::uint64_t{16} * index, 16);
        if (raw == nullptr) {
          // Refused, or not asked for because memory ends there.
          require(!is_memory(table + std::uint64_t{16} * index, 16),
                  "every descriptor of a table is read");
          return r.failure = error::indirect_outside, r;
        }
        std::memcpy(&address, raw->bytes.data(), 8);
        std::memcpy(&rest, raw->bytes.data() + 8, 8);
      } else {
        const guest_address at = layout_.descriptor_area + std::uint64_t{16} * index;
        address = ram_.template take<std::uint64_t>(at);
        rest = ram_.template take<std::uint64_t>(at + 8);
      }
      address = to_order<E>(address);
      const auto f = split::unpack<E>(rest);
      if ((f.flags & split::flag_indirect) != 0) {
        if (!has_indirect_) return r.failure = error::indirect_not_negotiated, r;
        if (is_in_table) return r.failure = error::indirect_nested, r;
        if ((f.flags & split::flag_next) != 0) return r.failure = error::indirect_with_next, r;
        if (f.length == 0 || f.length % 16 != 0) return r.failure = error::indirect_length, r;
        if (address + (f.length - 1) < address) return r.failure = error::indirect_outside, r;
        is_in_table = true;
        table = address;
        entries = f.length / 16;
        index = 0;
        continue;
      }
      if (r.buffers.size() == size_) return r.failure = error::chain_loops, r;
      const bool is_readable = (f.flags & split::flag_write) == 0;
      if (is_readable && r.readable != r.buffers.size())
        return r.failure = error::readable_after_writable, r;
      r.readable += is_readable ? 1 : 0;
      r.buffers.push_back({address, f.length});
      sum += f.length;
      if ((f.flags & split::flag_next) == 0) break;
      if (f.next >= entries) return r.failure = error::next_out_of_range, r;
      index = f.next;
    }
    if (sum > std::uint64_t{1} << 32) r.failure = error::chain_bytes_overflow;
    return r;
  }

  [[nodiscard]] bool is_memory(guest_address address, std::uint64_t size) const {
    for (std::uint64_t i = 0; i < size; ++i)
      if (address + i < address || ram_.find(address + i) == nullptr) return false;
    return true;
  }

  void check_chain(const chain& c, const reading& expected) {
    require(expected.failure == error::none, "a chain that breaks a rule is not handed out");
    require(c.id().head == expected.head, "a chain has the head that the driver made available");
    require(std::find(stale_.begin(), stale_.end(), c.id()) == stale_.end(),
            "an id of an earlier life does not come back");
    require(held_.empty() || held_.begin()->second.id.epoch == c.id().epoch,
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
    ram_.is_quiet = true;
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
        const guest_ram::region* r = ram_.find(b.address + i);
        require(r != nullptr, "only memory is read");
        require(r->data[b.address + i - r->address] == got[at], "the bytes are those of memory");
      }
    require(at == got.size(), "no more bytes come than the buffers have");
    if (has_failed && memory().good())
      require(!std::all_of(c.readable().begin(), c.readable().end(),
                           [&](const buffer& b) { return is_memory(b.address, b.length); }),
              "a buffer is readable where it is all memory");
    ram_.is_quiet = false;
  }

  static std::uint64_t writable_bytes(const reading& r) {
    return total_bytes(std::span(r.buffers).subspan(r.readable));
  }

  void hold(const chain_id& id, std::uint64_t bytes) {
    held_[id.head] = {id, ++serial_, bytes};
    recent_.push_back({id.head, serial_});
    ++next_available_;
  }

  /// Checks an answer that no chain came with.
  void check_failure(error answer, error expected) {
    if (!memory().good()) return require(answer == error::memory_lost, "lost memory is reported");
    require(answer == expected, "the error names the rule that was broken");
    if (cause_ == error::none && expected != error::queue_empty) cause_ = expected;
  }

  /// How much a call may do for one chain: a queue of `size` has no longer one.
  [[nodiscard]] std::uint64_t chain_bound() const noexcept { return 8 + 3 * std::uint64_t{size_}; }

  void pop() {
    const auto popped = queue_.pop_available();
    require(ram_.stores.empty(), "popping stores nothing");
    require(ram_.accesses <= 1 + chain_bound(), "popping is bounded by the queue size");
    if (!is_usable()) {
      require(popped.error() == (is_attached_ ? cause_ : error::not_attached),
              "a queue that is broken or detached pops nothing");
      return require(ram_.words.empty(), "a broken queue is not read");
    }
    if (!memory().good()) return check_failure(popped.error(), error::memory_lost);
    std::uint32_t pending = 0;
    if (const error e = read_pending(pending); e != error::none)
      return check_failure(popped.error(), e);
    if (pending == 0) return check_failure(popped.error(), error::queue_empty);
    const reading r = read_chain();
    if (!popped) return check_failure(popped.error(), r.failure);
    check_chain(*popped, r);
    require(ram_.is_all_taken(), "each word is loaded once");
    hold(popped->id(), writable_bytes(r));
  }

  void consume(bool is_one) {
    const bool was_usable = is_usable() && memory().good();
    const std::uint32_t budget = is_one ? 1 : in_.below(size_ + 3);
    const std::uint8_t answers = in_.byte();
    std::uint32_t pending = 0, handled = 0;
    bool is_early = false;
    const std::size_t first_returned = returned_.size();
    const auto handle = [&](const chain& c) {
      require(was_usable && memory().good(), "a handler sees no chain of a queue that is broken");
      if (handled++ == 0)
        require(read_pending(pending) == error::none && pending != 0,
                "only new chains are handled");
      require(handled <= budget && handled <= pending && !is_early, "the budget is kept");
      const reading r = read_chain();
      check_chain(c, r);
      const std::uint64_t bytes = writable_bytes(r);
      const bool is_kept = (answers >> (handled % 8) & 1) != 0;
      std::uint32_t length = static_cast<std::uint32_t>(bytes);
      if ((answers & 0x11) == 0x10) length = in_.byte();
      is_early = !is_kept && is_in_order_ && !held_.empty();
      if (is_kept || is_early)
        hold(c.id(), bytes);
      else
        give_back(c.id(), length, length == bytes, true);
      return is_kept ? keep() : used(length);
    };
    const auto done = is_one ? queue_.consume_one(handle) : queue_.consume(budget, handle);
    require(ram_.accesses <= 1 + (std::uint64_t{handled} + 1) * chain_bound(),
            "consuming is bounded by budget and queue size");
    check_returned(first_returned);
    if (!is_attached_) return require(done.error() == error::not_attached, "detached: no chain");
    if (!was_usable && cause_ != error::none)
      return require(done.error() == cause_ && ram_.words.empty(), "broken: no chain");
    if (!memory().good())
      return require(done.error() == error::memory_lost ||
                         (handled != 0 && (done || done.error() == error::used_out_of_order)),
                     "lost memory is reported");
    if (handled == 0) {
      if (const error e = read_pending(pending); e != error::none)
        return check_failure(done.error(), e);
    }
    if (is_early)
      return require(done.error() == error::used_out_of_order, "IN_ORDER: an older one is kept");
    const std::uint32_t count = std::min(pending, budget);
    if (handled != count) {
      const reading r = read_chain();
      require(r.failure != error::none, "consuming stops early only where a rule was broken");
      return check_failure(done.error(), r.failure);
    }
    require(done.has_value() && done->chains == handled && done->has_more == (pending > count),
            "consuming says what it did");
    require(ram_.is_all_taken(), "each word is loaded once");
  }

  // Returning.

  void give_back(const chain_id& id, std::uint32_t length, bool is_full, bool is_at_once) {
    // A driver that offers again what it has not got back can't tell which of the two it gets.
    for (const returned_chain& r : returned_)
      if (r.head == id.head) can_decode_ = false;
    returned_.push_back({id.head, length, is_full});
    ++next_used_;
    if (!is_at_once) return;
    ++next_available_;
    recent_.clear();
  }

  [[nodiscard]] bool is_store(std::size_t i, std::size_t offset, std::uint32_t value) const {
    const stored_word& s = ram_.stores[i];
    if (s.address != layout_.device_area + offset) return false;
    if (s.width == 2) return s.value == to_order<E>(static_cast<std::uint16_t>(value));
    return s.width == 4 && s.value == to_order<E>(value);
  }

  /// Notes the used elements that were stored, and without IN_ORDER checks them: those of
  /// `returned_` from `first` on, in their places, and nothing else.
  void check_returned(std::size_t first) {
    for (const stored_word& s : ram_.stores) {
      const std::uint64_t offset = s.address - layout_.device_area;
      if (s.width != 4) continue;
      require(offset >= 4 && offset < 4 + 8 * std::uint64_t{size_},
              "used elements lie in the ring");
      returned_chain& entry = used_ring_[(offset - 4) / 8];
      const auto value = to_order<E>(static_cast<std::uint32_t>(s.value));
      ((offset - 4) % 8 == 0 ? entry.head : entry.length) = value;
    }
    if (is_in_order_) return;
    const std::size_t count = returned_.size() - first;
    require(ram_.stores.size() == 2 * count, "each chain is returned once");
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t at = next_used_ - static_cast<std::uint32_t>(count - i);
      const std::size_t entry = at & (size_ - 1);
      require(is_store(2 * i, split::used_id(entry), returned_[first + i].head) &&
                  is_store(2 * i + 1, split::used_length(entry), returned_[first + i].length),
              "a used element names its chain and the length that was given");
    }
  }

  void push_used() {
    chain_id id{static_cast<std::uint16_t>(in_.byte()), 0};
    const std::uint8_t which = in_.byte();
    const auto pick = [&](std::size_t n) { return static_cast<std::ptrdiff_t>(which % n); };
    if (which >= 0xf0 && !stale_.empty())
      id = stale_[static_cast<std::size_t>(pick(stale_.size()))];
    else if (which >= 0xe0 && !held_.empty())
      id.epoch = held_.begin()->second.id.epoch;
    else if (!held_.empty())
      id = std::next(held_.begin(), is_in_order_ && which < 0xc0 ? oldest() : pick(held_.size()))
               ->second.id;
    const auto length = in_.number<std::uint16_t>();
    return_one(id, length);
  }

  [[nodiscard]] std::ptrdiff_t oldest() const {
    const auto is_older = [](const auto& a, const auto& b) {
      return a.second.serial < b.second.serial;
    };
    return std::distance(held_.begin(), std::min_element(held_.begin(), held_.end(), is_older));
  }

  void return_one(chain_id id, std::uint32_t length) {
    const auto found = held_.find(id.head);
    const bool is_held = found != held_.end() && found->second.id == id;
    const bool is_turn = !is_in_order_ || (is_held && found == std::next(held_.begin(), oldest()));
    const auto pushed = queue_.push_used(id, length);
    require(ram_.words.empty(), "returning a chain loads nothing");
    require(pushed.has_value() == (is_attached_ && is_held && is_turn && memory().good()),
            "exactly what is held can be returned");
    if (!pushed) {
      require(ram_.stores.empty(), "nothing changes where returning fails");
      if (is_attached_ && memory().good() && is_held)
        require(pushed.error() == error::used_out_of_order, "IN_ORDER: the oldest goes first");
      if (is_attached_ && std::find(stale_.begin(), stale_.end(), id) != stale_.end())
        require(pushed.error() == error::stale_chain, "an id of an earlier life is stale");
      return;
    }
    const std::size_t first = returned_.size();
    give_back(id, length, false, false);
    held_.erase(found);
    check_returned(first);
  }

  void publish() {
    const bool is_due = is_attached_ && published_ != next_used_;
    queue_.publish();
    require(ram_.words.empty(), "publishing loads nothing");
    if (!is_due) return require(ram_.stores.empty(), "there is nothing to publish");
    require(!ram_.stores.empty() &&
                is_store(ram_.stores.size() - 1, split::used_index,
                         static_cast<std::uint16_t>(next_used_)) &&
                ram_.stores.back().how == order::release,
            "publishing ends with a release store of the index");
    require(ram_.stores.size() <= (is_in_order_ ? 3u : 1u), "and is one store");
    if (is_in_order_) {
      const stored_word index = ram_.stores.back();
      ram_.stores.pop_back();
      check_returned(returned_.size());
      ram_.stores.push_back(index);
      if (can_decode_) decode_runs();
    }
    published_ = next_used_;
    returned_.clear();
    can_decode_ = true;
  }

  /// IN_ORDER: what a driver makes of the used ring is what was returned; each head once.
  void decode_runs() const {
    for (std::size_t i = 0; i < returned_.size(); ++i) {
      const returned_chain& element =
          used_ring_[(published_ + static_cast<std::uint32_t>(i)) & (size_ - 1)];
      while (returned_[i].head != element.head) {
        require(returned_[i].is_full, "chains that are skipped were written in full");
        require(++i < returned_.size(), "a used element names a chain that was returned");
      }
      require(returned_[i].length == element.length, "a run ends with the length of its last");
    }
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
          ram_.template take<std::uint16_t>(layout_.driver_area + split::used_event(size_)));
      require(answer == (static_cast<std::uint16_t>(event - old) < now - old),
              "a driver is notified where its event lies in what was published");
    } else {
      const auto flags = to_order<E>(
          ram_.template take<std::uint16_t>(layout_.driver_area + split::available_flags));
      require(answer == ((flags & split::no_interrupt) == 0), "a driver is notified as flags say");
    }
  }

  void enable() {
    const bool has_more = queue_.enable_notifications();
    if (!is_usable()) {
      require(!has_more && ram_.words.empty() && ram_.stores.empty(), "broken: nothing is enabled");
      return;
    }
    const auto next = static_cast<std::uint16_t>(next_available_);
    require(ram_.stores.size() == 1 &&
                (has_event_index_ ? is_store(0, split::available_event(size_), next)
                                  : is_store(0, split::used_flags, 0)),
            "the driver is asked to notify");
    const auto index = to_order<E>(
        ram_.template take<std::uint16_t>(layout_.driver_area + split::available_index));
    require(has_more == (index != next && memory().good()), "what is there already is said");
  }

  void unpop() {
    const std::uint8_t how = in_.byte();
    const std::uint32_t count = how < 0xf8 ? how % (size_ + 2u) : in_.number<std::uint32_t>();
    bool is_possible = count <= recent_.size();
    for (std::size_t i = 0; is_possible && i < count; ++i) {
      const popped_chain& p = recent_[recent_.size() - 1 - i];
      const auto found = held_.find(p.head);
      is_possible = found != held_.end() && found->second.serial == p.serial;
    }
    const auto given = queue_.unpop(count);
    require(ram_.accesses == 0, "giving back touches no memory");
    require(given.has_value() == is_possible, "chains are given back where all are held");
    if (!given) return;
    for (std::uint32_t i = 0; i < count; ++i) {
      held_.erase(recent_.back().head);
      recent_.pop_back();
    }
    next_available_ -= count;
  }

  void find_held() {
    const auto head = in_.number<std::uint16_t>();
    const std::uint16_t candidates[] = {head, static_cast<std::uint16_t>(head % 64)};
    for (const std::uint16_t h : candidates) {
      const auto id = queue_.held_chain(h);
      const auto found = held_.find(h);
      require(id.has_value() == (found != held_.end()), "exactly what is held has an id");
      if (id) require(*id == found->second.id, "the id is the one it was popped with");
    }
  }

  /// At the end every chain that is still held goes back, whatever happened before.
  void return_all() {
    ram_.changes.clear();
    if (size_ == 0) return;
    if (!memory().good() || !is_attached_) {
      queue_.detach();
      if (!can_map(layout_)) return;
      memory_ = &good_memory();
      require(queue_.attach(*memory_, layout_, features_).has_value(), "it is attached again");
      is_attached_ = true;
    }
    while (!held_.empty()) {
      ram_.begin_call();
      return_one(std::next(held_.begin(), is_in_order_ ? oldest() : 0)->second.id, 0);
    }
    ram_.begin_call();
    publish();
    require(queue_.in_flight() == 0, "nothing stays in flight");
  }

  input& in_;
  guest_ram ram_;
  std::deque<hostile_memory> memories_; ///< all but the last are lost
  hostile_memory* memory_ = nullptr;
  split_device<hostile_memory, E> queue_;
  std::uint32_t storage_;

  queue_layout layout_;
  feature_set features_;
  bool has_event_index_ = false;
  bool has_indirect_ = false;
  bool is_in_order_ = false;
  std::uint16_t driver_index_ = 0;

  bool is_attached_ = false;
  std::uint32_t size_ = 0;
  std::uint32_t next_available_ = 0;
  std::uint32_t next_used_ = 0;
  std::uint32_t published_ = 0;
  std::uint32_t notified_ = 0;
  error cause_ = error::none;
  std::uint64_t serial_ = 0;
  std::map<std::uint16_t, held_chain> held_;
  std::vector<popped_chain> recent_;     ///< since one was used at once
  std::vector<returned_chain> returned_; ///< and not published yet
  std::vector<returned_chain> used_ring_;
  bool can_decode_ = true;
  std::deque<chain_id> stale_;
  saved_queue saved_;
};

template <std::endian E, std::uint32_t N> void run_with(input& in) {
  const auto storage = std::make_unique<device_queue_storage<N>>();
  scenario<E>(in, *storage).run();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  input in({data, size});
  switch (in.below(4)) {
  case 0: run_with<std::endian::little, 256>(in); break;
  case 1: run_with<std::endian::big, 256>(in); break;
  case 2: run_with<std::endian::little, 8>(in); break;
  default: run_with<std::endian::little, 33>(in); break;
  }
  return 0;
}
