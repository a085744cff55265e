// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

namespace ballast_fuzz {

using ballast::guest_address;

/// A word that the engine loaded, with the value it got, in the memory's byte order.
struct loaded_word {
  guest_address address = 0;
  std::size_t width = 0;
  std::uint64_t value = 0;
  bool is_taken = false; ///< a model has accounted for it
};

struct stored_word {
  guest_address address = 0;
  std::size_t width = 0;
  std::uint64_t value = 0;
  ballast::order how = ballast::order::plain;
};

/// Bytes that the engine copied.
struct loaded_bytes {
  guest_address address = 0;
  std::vector<std::byte> bytes;
  bool is_taken = false;
};

/// What the peer does after so many loads of the engine from now, between two of them.
struct change {
  std::uint32_t loads = 0;
  bool is_loss = false; ///< memory is lost instead
  guest_address address = 0;
  std::uint64_t value = 0;
  std::size_t width = 0;
};

/// The memory that the engine shares with its peer, the input: four regions with holes between
/// them, each a block of the heap of exactly its size, so that AddressSanitizer sees a byte too
/// far. Keeps what the engine loaded and stored since `begin_call`.
class guest_ram {
 public:
  struct region {
    guest_address address = 0;
    std::uint64_t size = 0;
    bool is_writable = true; ///< by the engine; the peer writes everywhere
    std::unique_ptr<std::byte[]> data;
  };

  guest_ram() {
    add(0x1000, 0x2000, true);
    add(0x3000, 0x200, false); // adjoins the one before
    add(0x1'0000'0000, 0x900, true);
    add(0xffff'ffff'ffff'f000, 0x7f0, true);
  }

  [[nodiscard]] const std::vector<region>& regions() const noexcept { return regions_; }

  /// The region that holds the first byte; null if none.
  [[nodiscard]] const region* find(guest_address address) const noexcept {
    for (const region& r : regions_)
      if (address - r.address < r.size) return &r;
    return nullptr;
  }

  /// The peer writes; what is no memory is left out.
  void poke(guest_address address, std::uint64_t value, std::size_t width) noexcept {
    std::byte bytes[sizeof(value)];
    std::memcpy(bytes, &value, sizeof(bytes));
    for (std::size_t i = 0; i < width; ++i)
      if (const region* r = find(address + i)) r->data[address + i - r->address] = bytes[i];
  }
  template <class T> void poke(guest_address address, T value) noexcept {
    std::uint64_t raw = 0;
    std::memcpy(&raw, &value, sizeof(value));
    poke(address, raw, sizeof(value));
  }

  /// An address from the input: mostly memory or near its end.
  [[nodiscard]] guest_address address_from(input& in) const noexcept {
    const std::uint32_t which = in.below(8);
    if (which == 7) return in.number<std::uint64_t>();
    const region& r = regions_[which < 4 ? 0 : which - 3];
    return r.address + 8 * in.below(static_cast<std::uint32_t>(r.size / 8 + 4));
  }

  // What the engine does.

  void begin_call() noexcept {
    words.clear();
    copies.clear();
    stores.clear();
    accesses = 0;
  }

  /// The value of the first load of this word that was not taken yet. The engine used a word that
  /// it did not load if there is none.
  template <class T> [[nodiscard]] T take(guest_address address) noexcept {
    for (loaded_word& w : words) {
      if (w.is_taken || w.address != address || w.width != sizeof(T)) continue;
      w.is_taken = true;
      T value;
      std::memcpy(&value, &w.value, sizeof(value));
      return value;
    }
    require(false, "the engine loads each word whose value it uses");
    return 0;
  }

  /// The same for bytes; null if there are none.
  [[nodiscard]] const loaded_bytes* take_bytes(guest_address address, std::size_t size) noexcept {
    for (loaded_bytes& c : copies) {
      if (c.is_taken || c.address != address || c.bytes.size() != size) continue;
      c.is_taken = true;
      return &c;
    }
    return nullptr;
  }

  /// Whether the engine loaded nothing but what was taken: nothing twice.
  [[nodiscard]] bool is_all_taken() const noexcept {
    const auto taken = [](const auto& l) { return l.is_taken; };
    return std::all_of(words.begin(), words.end(), taken) &&
           std::all_of(copies.begin(), copies.end(), taken);
  }

  std::vector<loaded_word> words;
  std::vector<loaded_bytes> copies;
  std::vector<stored_word> stores;
  std::uint64_t accesses = 0; ///< of any kind

  // What the peer does meanwhile.

  std::vector<change> changes;    ///< at most a few
  std::uint64_t flipped_bits = 0; ///< of each plain word, right after it was loaded
  bool is_quiet = false;          ///< the target's own accesses: nothing is kept, nothing changes

 private:
  void add(guest_address address, std::uint64_t size, bool is_writable) {
    regions_.push_back({address, size, is_writable, std::make_unique<std::byte[]>(size)});
  }

  std::vector<region> regions_;
};

/// The accessor over a `guest_ram`. A window is checked at every access: within its bounds,
/// aligned, stored to only where that was asked for. Once lost, loads give noise.
class hostile_memory {
 public:
  class window_type {
   public:
    window_type() noexcept = default;
    window_type(hostile_memory& memory, std::byte* data, guest_address address, std::uint64_t size,
                ballast::access kind) noexcept
        : memory_(&memory), data_(data), address_(address), size_(size), kind_(kind) {}

    template <ballast::wire_integer T>
    [[nodiscard]] T load(std::size_t offset, ballast::order how) const noexcept {
      check(offset, sizeof(T));
      require(how != ballast::order::release, "a load is no release");
      T value;
      std::memcpy(&value, data_ + offset, sizeof(T));
      if (memory_->is_lost_) value = static_cast<T>(memory_->noise());
      std::uint64_t raw = 0;
      std::memcpy(&raw, &value, sizeof(T));
      memory_->ram_->words.push_back({address_ + offset, sizeof(T), raw});
      if (how == ballast::order::plain && memory_->ram_->flipped_bits != 0)
        memory_->ram_->poke(address_ + offset, raw ^ memory_->ram_->flipped_bits, sizeof(T));
      memory_->loaded();
      return value;
    }

    template <ballast::wire_integer T>
    void store(std::size_t offset, T value, ballast::order how) noexcept {
      check(offset, sizeof(T));
      require(how != ballast::order::acquire, "a store is no acquire");
      require(kind_ == ballast::access::write, "a window for reading is not written to");
      std::uint64_t raw = 0;
      std::memcpy(&raw, &value, sizeof(T));
      memory_->ram_->stores.push_back({address_ + offset, sizeof(T), raw, how});
      ++memory_->ram_->accesses;
      if (!memory_->is_lost_) std::memcpy(data_ + offset, &value, sizeof(T));
    }

   private:
    void check(std::size_t offset, std::size_t width) const noexcept {
      require(memory_ != nullptr, "only windows that were obtained are used");
      require(offset <= size_ && width <= size_ - offset, "no access leaves its window");
      require((address_ + offset) % width == 0, "every word is aligned");
    }

    hostile_memory* memory_ = nullptr;
    std::byte* data_ = nullptr;
    guest_address address_ = 0;
    std::uint64_t size_ = 0;
    ballast::access kind_ = ballast::access::read;
  };

  explicit hostile_memory(guest_ram& ram) noexcept : ram_(&ram) {}

  [[nodiscard]] ballast::result<window_type> window(guest_address address, std::uint64_t size,
                                                    std::size_t alignment,
                                                    ballast::access kind) noexcept {
    if (is_lost_) return ballast::error::memory_lost;
    const guest_ram::region* r = ram_->find(address);
    if (r == nullptr || size > r->size - (address - r->address))
      return ballast::error::not_guest_memory;
    if (kind == ballast::access::write && !r->is_writable)
      return ballast::error::access_not_allowed;
    if (address % alignment != 0) return ballast::error::misaligned;
    return window_type(*this, r->data.get() + (address - r->address), address, size, kind);
  }

  [[nodiscard]] ballast::memory_segment segment(guest_address address, std::uint64_t size,
                                                ballast::access kind) noexcept {
    ++ram_->accesses;
    const guest_ram::region* r = ram_->find(address);
    if (r == nullptr || is_lost_ || (kind == ballast::access::write && !r->is_writable)) return {};
    const std::uint64_t offset = address - r->address;
    return {r->data.get() + offset, std::min(size, r->size - offset)};
  }

  [[nodiscard]] bool read(guest_address address, std::span<std::byte> to) noexcept {
    if (!copy(address, to.size(), ballast::access::read,
              [&](std::byte* data, std::size_t done) { to[done] = *data; }))
      return false;
    if (!ram_->is_quiet) ram_->copies.push_back({address, {to.begin(), to.end()}});
    loaded();
    return true;
  }

  [[nodiscard]] bool write(guest_address address, std::span<const std::byte> from) noexcept {
    ++ram_->accesses;
    return copy(address, from.size(), ballast::access::write,
                [&](std::byte* data, std::size_t done) { *data = from[done]; });
  }

  [[nodiscard]] bool good() const noexcept { return !is_lost_; }
  void lose() noexcept { is_lost_ = true; }
  static void fence() noexcept {}

 private:
  template <class Each>
  bool copy(guest_address address, std::size_t size, ballast::access kind, Each&& each) noexcept {
    if (is_lost_ || size > UINT64_MAX - address) return false;
    for (std::size_t i = 0; i < size; ++i) {
      const guest_ram::region* r = ram_->find(address + i);
      if (r == nullptr || (kind == ballast::access::write && !r->is_writable)) return false;
    }
    for (std::size_t i = 0; i < size; ++i) {
      const guest_ram::region* r = ram_->find(address + i);
      each(&r->data[address + i - r->address], i);
    }
    return true;
  }

  std::uint64_t noise() noexcept {
    noise_ = noise_ * 6364136223846793005u + 1442695040888963407u;
    return noise_ >> 24;
  }

  /// The peer's turn after each load.
  void loaded() noexcept {
    if (ram_->is_quiet) return;
    ++ram_->accesses;
    for (change& c : ram_->changes) {
      if (c.loads == 0 || --c.loads != 0) continue;
      if (c.is_loss)
        is_lost_ = true;
      else
        ram_->poke(c.address, c.value, c.width);
    }
  }

  guest_ram* ram_;
  std::uint64_t noise_ = 1;
  bool is_lost_ = false;
};
static_assert(ballast::guest_memory<hostile_memory>);

/// A queue's layout from the input: mostly one that works.
[[nodiscard]] inline ballast::queue_layout layout_from(input& in, const guest_ram& ram,
                                                       bool is_packed) {
  const std::uint8_t how = in.byte();
  std::uint32_t size = 1u << (how % 9);
  if (is_packed) size = how < 0x80 ? 1u + how % 12 : 1u + 3u * (how % 0x60u);
  if (how >= 0xf0) size = in.number<std::uint32_t>();
  const std::uint32_t where = in.below(4);
  if (where != 3 && size <= 256) {
    const std::uint64_t base = 0x1000 + 16u * in.byte();
    return (is_packed ? ballast::packed::place(base, size) : ballast::split::place(base, size))
        .layout;
  }
  ballast::queue_layout at{.size = size};
  at.descriptor_area = ram.address_from(in);
  at.driver_area = ram.address_from(in);
  at.device_area = ram.address_from(in);
  return at;
}

/// What the peer does behind the engine's back, from the input.
inline void plan_changes(input& in, guest_ram& ram) {
  std::erase_if(ram.changes, [](const change& c) { return c.loads == 0; });
  switch (in.below(4)) {
  case 0: ram.flipped_bits = in.number<std::uint64_t>(); break;
  case 1: ram.flipped_bits = 0; break;
  default:
    if (ram.changes.size() == 4) break;
    change c{.loads = 1u + in.byte()};
    c.is_loss = in.below(8) == 7;
    c.address = ram.address_from(in);
    c.width = std::size_t{1} << in.below(4);
    c.value = in.number<std::uint64_t>();
    ram.changes.push_back(c);
  }
}

} // namespace ballast_fuzz
