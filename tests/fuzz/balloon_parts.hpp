// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

namespace ballast_fuzz {

using ballast::actions;
using ballast::buffer;
using ballast::error;
using ballast::feature_set;
using ballast::balloon::queue_kind;

struct memory_region {
  guest_address address = 0;
  std::uint64_t size = 0;
  bool is_writable = true; ///< by the device
};

/// Memory beside that of `guest_ram`, which can't be pointed at: its words are ascending PFNs, from
/// the one it begins at. Regions that meet inside a page, at a page and at a host page; read-only
/// ones; host pages of 2 MiB; the last PFN, and pages behind it; the end of the address space.
inline constexpr memory_region bare_regions[] = {
    {0x3200, 0x2600, true},          {0x5800, 0x2800, true},
    {0x8000, 0x1000, true},          {0x9000, 0x1000, false},
    {0x10000, 0x20000, true},        {0x30000, 0x10000, true},
    {0x40800, 0x2400, true},         {0x4000'0000, 0x80'0000, true},
    {0xfff'ffff'e000, 0x4000, true}, {0xffff'ffff'ffff'd000, 0x2000, true},
};

/// The region of either kind that holds the byte; of size 0 if none.
[[nodiscard]] inline memory_region region_at(const guest_ram& ram, guest_address address) noexcept {
  for (const memory_region& r : bare_regions)
    if (address - r.address < r.size) return r;
  const guest_ram::region* r = ram.find(address);
  return r == nullptr ? memory_region{} : memory_region{r->address, r->size, r->is_writable};
}

/// Whether all bytes of a page are memory that the device may write.
[[nodiscard]] inline bool is_whole_page(const guest_ram& ram, guest_address page) noexcept {
  for (std::uint64_t done = 0; done < 4096;) {
    const memory_region r = region_at(ram, page + done);
    if (r.size == 0 || !r.is_writable) return false;
    done += r.size - (page + done - r.address);
  }
  return true;
}

/// Whether a page of the host's is all such memory, and no region begins at a page inside it.
[[nodiscard]] inline bool is_host_page(const guest_ram& ram, guest_address address,
                                       std::uint64_t unit) noexcept {
  for (std::uint64_t done = 0; done < unit; done += 4096) {
    const guest_address page = address + done;
    if (!is_whole_page(ram, page)) return false;
    if (done != 0 && region_at(ram, page).address == page) return false;
  }
  return true;
}

/// `hostile_memory` with the bare regions.
class page_memory {
 public:
  page_memory(guest_ram& ram, std::endian e) noexcept : ram_(&ram), inner_(ram), endian_(e) {}

  [[nodiscard]] auto window(guest_address address, std::uint64_t size, std::size_t alignment,
                            ballast::access kind) noexcept {
    return inner_.window(address, size, alignment, kind);
  }
  [[nodiscard]] ballast::memory_segment segment(guest_address address, std::uint64_t size,
                                                ballast::access kind) noexcept {
    const memory_region* r = bare(address);
    if (r == nullptr) return inner_.segment(address, size, kind);
    ++ram_->accesses;
    if (!good() || (kind == ballast::access::write && !r->is_writable)) return {};
    return {nullptr, std::min(size, r->size - (address - r->address))};
  }
  [[nodiscard]] bool read(guest_address address, std::span<std::byte> to) noexcept {
    bool is_bare = false;
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (address + i < address || region_at(*ram_, address + i).size == 0) return false;
      is_bare |= bare(address + i) != nullptr;
    }
    if (!is_bare) return inner_.read(address, to);
    if (!good()) return false;
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = byte_at(address + i);
    ram_->copies.push_back({address, {to.begin(), to.end()}});
    ++ram_->accesses;
    return true;
  }
  [[nodiscard]] bool write(guest_address, std::span<const std::byte>) noexcept {
    require(false, "a balloon device writes to no buffer");
    return false;
  }
  [[nodiscard]] bool good() const noexcept { return inner_.good(); }
  void lose() noexcept { inner_.lose(); }
  static void fence() noexcept {}

 private:
  [[nodiscard]] static const memory_region* bare(guest_address address) noexcept {
    for (const memory_region& r : bare_regions)
      if (address - r.address < r.size) return &r;
    return nullptr;
  }
  [[nodiscard]] std::byte byte_at(guest_address address) const noexcept {
    const memory_region* r = bare(address);
    if (r == nullptr) {
      const guest_ram::region* backed = ram_->find(address);
      return backed->data[address - backed->address];
    }
    const std::uint64_t offset = address - r->address;
    const std::uint64_t word = (r->address >> 12) + offset / 4;
    const std::uint64_t at = endian_ == std::endian::little ? offset % 4 : 3 - offset % 4;
    return static_cast<std::byte>(word >> (8 * at));
  }

  guest_ram* ram_;
  hostile_memory inner_;
  std::endian endian_;
};
static_assert(ballast::guest_memory<page_memory>);

enum class host_act : std::uint8_t { discard, provide, fill, hint };

/// What a host was asked to do; checks what holds for all of it.
struct host_log {
  struct call {
    host_act act;
    guest_address address = 0;
    std::uint64_t size = 0;
    std::uint32_t pattern = 0;
    bool is_good = true;
  };

  guest_ram* ram = nullptr;
  std::uint64_t unit = 4096;      ///< bytes of a host page
  bool is_one_batch = true;       ///< the call publishes once
  std::uint8_t allowed = 0xff;    ///< the answers of `discard_allowed`, in turn
  std::uint8_t successful = 0xff; ///< of the others

  std::vector<call> calls;   ///< since `begin_call`
  std::vector<bool> answers; ///< of `discard_allowed`
  bool is_unflushed = false;

  void begin_call() noexcept {
    calls.clear();
    answers.clear();
  }
  [[nodiscard]] bool is_published() const noexcept {
    return std::any_of(ram->stores.begin(), ram->stores.end(),
                       [](const stored_word& s) { return s.how == ballast::order::release; });
  }
  /// The pages that were `act`ed on, each of them as often as that was.
  [[nodiscard]] std::multiset<std::uint64_t> pages(host_act act) const {
    std::multiset<std::uint64_t> all;
    for (const call& c : calls)
      for (std::uint64_t i = 0; c.act == act && i < c.size; i += 4096)
        all.insert((c.address + i) / 4096);
    return all;
  }

  bool note(host_act act, guest_address address, std::uint64_t size, std::uint32_t pattern) {
    const std::uint64_t whole = act == host_act::hint ? 4096 : unit;
    require(size != 0 && address % whole == 0 && size % whole == 0, "the host gets whole pages");
    require(size <= std::uint64_t{1} << 32, "no more than a buffer names");
    for (std::uint64_t i = 0; i < size; i += 4096)
      require(is_whole_page(*ram, address + i), "the host gets writable memory of the guest");
    if (act != host_act::provide)
      require(answers.empty() || std::find(answers.begin(), answers.end(), true) != answers.end(),
              "nothing is taken back while that is inhibited");
    if (is_one_batch)
      require(!is_published(), "pages are dealt with before the buffer is returned");
    const bool is_good = (successful >> (calls.size() % 8) & 1) != 0;
    calls.push_back({act, address, size, pattern, is_good});
    is_unflushed = true;
    return is_good;
  }
};

/// A host that can do no more than it has to.
struct plain_host : host_log {
  bool discard(guest_address address, std::uint64_t size) noexcept {
    const bool is_good = note(host_act::discard, address, size, 0);
    is_unflushed = false;
    return is_good;
  }
};

/// A host with everything a host may have.
struct full_host : host_log {
  bool discard(guest_address address, std::uint64_t size) noexcept {
    return note(host_act::discard, address, size, 0);
  }
  void provide(guest_address address, std::uint64_t size) noexcept {
    (void)note(host_act::provide, address, size, 0);
  }
  bool fill(guest_address address, std::uint64_t size, std::uint32_t pattern) noexcept {
    return note(host_act::fill, address, size, pattern);
  }
  bool hint(guest_address address, std::uint64_t size) noexcept {
    return note(host_act::hint, address, size, 0);
  }
  bool discard_allowed() noexcept {
    answers.push_back((allowed >> (answers.size() % 8) & 1) != 0);
    return answers.back();
  }
  bool flush() noexcept {
    if (is_one_batch)
      require(!is_published(), "what was collected is flushed before it is returned");
    is_unflushed = false;
    return true;
  }
};

/// A device, its driver's side of the queues, and memory between them that the input changes while
/// the device looks. The rings are as they should be; what lies in buffers is the input's.
template <class Host, std::endian E = std::endian::little> class balloon_machine {
 public:
  static constexpr std::uint32_t queue_size_max = 16;
  using device_type = ballast::balloon::device<page_memory, Host, queue_size_max, E>;

  /// A buffer chain that the device has.
  struct sent_chain {
    std::uint64_t token = 0;
    std::vector<buffer> readable, writable;
  };
  struct driver_side {
    explicit driver_side() noexcept : queue(slots) {}
    std::array<ballast::driver_slot, queue_size_max> slots;
    ballast::virtqueue_driver<hostile_memory, E> queue;
    std::deque<sent_chain> sent; ///< not returned yet
  };

  guest_ram ram;
  Host host;
  std::unique_ptr<device_type> device;
  feature_set negotiated;
  std::array<ballast::queue_layout, ballast::balloon::queue_kind_count> layouts{};
  std::array<driver_side, ballast::balloon::queue_kind_count> drivers; ///< by kind
  ballast::balloon::queue_numbering numbering = {};
  std::uint16_t first_index = 0; ///< of the queues at activation
  bool is_live = false;

  balloon_machine() { host.ram = &ram; }

  void build(const ballast::balloon::device_options& options, std::uint64_t unit) {
    host.unit = unit;
    numbering = options.numbering;
    first_index = options.first_index;
    device = std::make_unique<device_type>(host, options);
    if (options.host_page_size > 4096)
      require(device->offered_features().test(ballast::balloon::feature::must_tell_host),
              "a device of larger host pages asks to be told");
  }

  [[nodiscard]] driver_side& of(queue_kind kind) noexcept {
    return drivers[static_cast<std::size_t>(kind)];
  }
  [[nodiscard]] std::uint16_t index_of(queue_kind kind) const noexcept {
    const auto at = queue_index(kind, numbering, device->offered_features(), negotiated);
    return at ? *at : std::uint16_t{99};
  }
  [[nodiscard]] bool has(queue_kind kind) const noexcept {
    return has_queue(kind, device->offered_features()) && has_queue(kind, negotiated);
  }
  [[nodiscard]] page_memory& memory() {
    if (memories_.empty() || !memories_.back().good()) memories_.emplace_back(ram, E);
    return memories_.back();
  }
  [[nodiscard]] bool is_memory_good() const noexcept {
    return memories_.empty() || memories_.back().good();
  }

  void begin_call(bool is_one_batch) noexcept {
    ram.begin_call();
    host.begin_call();
    host.is_one_batch = is_one_batch;
  }

  /// Places the queue and has the driver begin there.
  [[nodiscard]] ballast::queue_layout set_up(queue_kind kind, std::uint32_t size,
                                             std::uint16_t first = 0) {
    const auto number = static_cast<std::uint32_t>(kind);
    const auto at = ballast::place_queue(0x1000 + 0x200u * number, size, negotiated).layout;
    for (std::uint32_t i = 0; i < 0x200; i += 8) ram.poke(0x1000 + 0x200u * number + i, 0, 8);
    ram.is_quiet = true;
    driver_side& side = of(kind);
    side.sent.clear();
    require(side.queue.start(driver_memory_, at, negotiated, first).has_value(),
            "the driver's side begins");
    ram.is_quiet = false;
    return at;
  }

  actions activate(const feature_set& wanted, std::uint32_t size) {
    return activate(wanted, size, [](device_type&) {});
  }
  /// A driver with these features, or those of them that are offered, from reset to DRIVER_OK;
  /// `before(device)` is called in between.
  template <class Before>
  actions activate(const feature_set& wanted, std::uint32_t size, Before&& before) {
    namespace feature = ballast::feature;
    device->reset();
    ram.changes.clear();
    is_live = false;
    negotiated = (wanted & device->offered_features()).with(feature::version_1);
    layouts = {};
    std::array<ballast::queue_layout, ballast::balloon::queue_kind_count> by_index{};
    for (std::size_t i = 0; i < layouts.size(); ++i) {
      if (!has(static_cast<queue_kind>(i))) continue;
      layouts[i] = set_up(static_cast<queue_kind>(i), size, first_index);
      by_index[index_of(static_cast<queue_kind>(i))] = layouts[i];
    }
    before(*device);
    page_memory& m = memory();
    begin_call(false);
    const actions due = device->activate(negotiated, by_index, m);
    is_live = due.failure == error::none;
    return due;
  }

  /// The other half of `activate`: where the memory map changed.
  [[nodiscard]] bool move_memory() {
    device->detach();
    std::array<ballast::queue_layout, ballast::balloon::queue_kind_count> by_index{};
    for (std::size_t i = 0; i < layouts.size(); ++i)
      if (layouts[i].size != 0) by_index[index_of(static_cast<queue_kind>(i))] = layouts[i];
    begin_call(true);
    const actions due = device->attach(by_index, memory());
    require(host.calls.empty() && ram.stores.empty(), "moving memory does nothing to it");
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < by_index.size(); ++i)
      if (by_index[i].size != 0) bits |= std::uint64_t{1} << i;
    require(due.failure != error::none || due.more_work == bits, "all queues are to be looked at");
    return due.failure == error::none;
  }

  /// The driver makes a chain available; false where there is no room.
  bool send(queue_kind kind, std::vector<buffer> readable, std::vector<buffer> writable) {
    driver_side& side = of(kind);
    if (!side.queue.is_attached()) return false;
    ram.is_quiet = true;
    const bool is_sent = side.queue.add(readable, writable, ++token_).has_value();
    if (is_sent) {
      side.queue.publish();
      side.sent.push_back({token_, std::move(readable), std::move(writable)});
    }
    ram.is_quiet = false;
    return is_sent;
  }

  [[nodiscard]] actions process(queue_kind kind, std::uint32_t budget) {
    begin_call(true);
    const actions due = device->process(index_of(kind), budget);
    require(!host.is_unflushed, "what was collected is flushed");
    require(!due.needs_reset || due.failure != error::none, "a need for a reset has a reason");
    require((due.notify_queues & ~(std::uint64_t{1} << index_of(kind))) == 0,
            "only that queue is notified");
    return due;
  }

  /// The driver takes what came back: `each(chain, length)`; how many.
  template <class Each> std::uint32_t take_returned(queue_kind kind, Each&& each) {
    driver_side& side = of(kind);
    std::uint32_t count = 0;
    ram.is_quiet = true;
    for (;; ++count) {
      const auto back = side.queue.pop_used();
      if (!back) {
        require(back.error() == error::queue_empty, "the device returns only what it was given");
        break;
      }
      const auto found = std::find_if(side.sent.begin(), side.sent.end(),
                                      [&](const auto& s) { return s.token == back->token; });
      require(found != side.sent.end(), "a chain comes back once");
      each(*found, back->length);
      side.sent.erase(found);
    }
    ram.is_quiet = false;
    return count;
  }

  /// What the device read of a chain: the bytes, one after the other, of the reads that it began
  /// with. It reads pieces of `piece`, and has enough at the end of one with `enough` bytes.
  [[nodiscard]] std::vector<std::byte> bytes_read(const sent_chain& c, std::size_t piece,
                                                  std::uint64_t enough) {
    std::vector<std::byte> bytes;
    std::uint64_t begin = 0;
    for (const buffer& b : c.readable) {
      while (bytes.size() < begin + b.length) {
        if (bytes.size() % piece == 0 && bytes.size() >= enough) return bytes;
        if (next_copy_ == ram.copies.size()) return bytes;
        const loaded_bytes& copy = ram.copies[next_copy_];
        if (copy.address != b.address + (bytes.size() - begin)) return bytes;
        bytes.insert(bytes.end(), copy.bytes.begin(), copy.bytes.end());
        ++next_copy_;
      }
      begin += b.length;
    }
    return bytes;
  }
  /// Before the first `bytes_read` of a call, and behind the last: each byte was read once.
  void begin_copies() noexcept { next_copy_ = 0; }
  [[nodiscard]] bool are_copies_over() const noexcept { return next_copy_ == ram.copies.size(); }

 private:
  std::deque<page_memory> memories_; ///< all but the last are lost
  hostile_memory driver_memory_{ram};
  std::uint64_t token_ = 0;
  std::size_t next_copy_ = 0;
};

/// Where payload may lie: behind the rings, or in the bare regions.
[[nodiscard]] inline guest_address payload_from(input& in, const guest_ram& ram) {
  const std::uint8_t where = in.byte();
  if (where < 0xa0) return 0x1a00 + 4u * in.below(0x580);
  if (where >= 0xf8) return ram.address_from(in);
  const memory_region& r = bare_regions[where % std::size(bare_regions)];
  const std::uint8_t offset = in.byte();
  if (offset < 0x40) return r.address + 4096u * offset;
  if (offset < 0x80) return r.address + r.size - 1024u * (offset - 0x40u);
  return r.address + 3u * (offset - 0x80u);
}

/// One to four buffers, of at most `length_max` bytes but for a few.
[[nodiscard]] inline std::vector<buffer> buffers_from(input& in, const guest_ram& ram,
                                                      std::uint32_t count_max) {
  std::vector<buffer> all(in.below(count_max + 1));
  for (buffer& b : all) {
    b.address = payload_from(in, ram);
    const std::uint8_t how = in.byte();
    if (how < 0x80)
      b.length = 4u * how;
    else if (how < 0xa0)
      b.length = how - 0x80u;
    else if (how < 0xf0)
      b.length = 1024u << (how % 16);
    else
      b.length = in.number<std::uint32_t>();
  }
  return all;
}

/// What the driver does to the payload behind the device's back; not to the rings.
inline void change_payload(input& in, guest_ram& ram) {
  std::erase_if(ram.changes, [](const change& c) { return c.loads == 0; });
  if (ram.changes.size() == 4) return;
  change c{.loads = 1u + in.byte()};
  c.is_loss = in.below(16) == 15;
  c.address = 0x1a00 + 4u * in.below(0x580);
  c.width = 4;
  c.value = in.number<std::uint32_t>();
  ram.changes.push_back(c);
}

/// Features of the ring, from the input.
[[nodiscard]] inline feature_set ring_features(input& in) {
  namespace feature = ballast::feature;
  const std::uint8_t bits = in.byte();
  feature_set all{feature::version_1};
  const unsigned choice[] = {feature::event_idx, feature::indirect_desc, feature::in_order,
                             feature::ring_packed, feature::ring_reset};
  for (unsigned i = 0; i < std::size(choice); ++i)
    if ((bits >> i & 1) != 0) all.set(choice[i]);
  return all;
}

[[nodiscard]] inline std::uint32_t queue_size_from(input& in, const feature_set& features) {
  if (features.test(ballast::feature::ring_packed)) return 2 + in.below(15);
  return 2u << in.below(4);
}

} // namespace ballast_fuzz
