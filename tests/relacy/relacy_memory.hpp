// SPDX-License-Identifier: BSD-3-Clause
// Guest memory of relacy's variables: the engine itself runs under the memory-model checker.
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

// Behind every other header: it defines new, delete, free and assert as macros.
#include <relacy/relacy.hpp>

namespace ballast_test {

/// What lies at which address of a small guest memory that begins at address 0: the words of a ring
/// as layout.hpp lists them, indirect tables of such words, and payload bytes. Everything else is a
/// hole.
class memory_map {
 public:
  static constexpr std::size_t bytes = 512;
  static constexpr std::uint16_t no_cell = 0xffff;

  struct place {
    ballast::word_class word{};   ///< of the word that starts here
    bool is_payload = false;      ///< one byte of payload
    bool is_table_entry = false;  ///< a descriptor of an indirect table starts here
    std::uint16_t cell = no_cell; ///< which variable stands for it
    const char* name = "hole";    ///< for relacy's history
  };

  /// The words at [address, address + size), as `word_at(offset)` says.
  template <class F>
  void add_ring(ballast::guest_address address, std::uint32_t size, F word_at, const char* name) {
    for (std::uint32_t offset = 0; offset < size; ++offset) {
      const ballast::word_class word = word_at(offset);
      if (word.width == 0) continue;
      const auto cell = word.is_atomic ? atomics_++ : plains_++;
      places_[address + offset] = {.word = word, .cell = cell, .name = name};
    }
  }

  void add_split_ring(const ballast::queue_layout& at) {
    namespace split = ballast::split;
    const auto add = [&](split::part part, ballast::guest_address start, std::uint32_t size,
                         const char* name) {
      add_ring(
          start, size, [&](std::uint32_t offset) { return split::word_at(part, at.size, offset); },
          name);
    };
    add(split::part::descriptor_table, at.descriptor_area, split::descriptor_table_bytes(at.size),
        "descriptor table");
    add(split::part::available_ring, at.driver_area, split::available_ring_bytes(at.size),
        "available entry");
    add(split::part::used_ring, at.device_area, split::used_ring_bytes(at.size), "used element");
    places_[at.driver_area + split::available_flags].name = "available flags";
    places_[at.driver_area + split::available_index].name = "available index";
    places_[at.driver_area + split::used_event(at.size)].name = "used event";
    places_[at.device_area + split::used_flags].name = "used flags";
    places_[at.device_area + split::used_index].name = "used index";
    places_[at.device_area + split::available_event(at.size)].name = "available event";
  }

  void add_packed_ring(const ballast::queue_layout& at) {
    namespace packed = ballast::packed;
    const auto add = [&](packed::part part, ballast::guest_address start, std::uint32_t size,
                         const char* name) {
      add_ring(
          start, size, [&](std::uint32_t offset) { return packed::word_at(part, at.size, offset); },
          name);
    };
    add(packed::part::descriptor_ring, at.descriptor_area, packed::descriptor_ring_bytes(at.size),
        "descriptor ring");
    add(packed::part::driver_event, at.driver_area, packed::event_size, "driver event");
    add(packed::part::device_event, at.device_area, packed::event_size, "device event");
  }

  /// Indirect tables of `entries` descriptors in all, one behind the other.
  void add_tables(ballast::guest_address address, std::uint32_t entries) {
    namespace split = ballast::split;
    add_ring(
        address, split::descriptor_table_bytes(entries),
        [&](std::uint32_t offset) {
          return split::word_at(split::part::descriptor_table, entries, offset);
        },
        "indirect table");
    for (std::uint32_t i = 0; i < entries; ++i)
      places_[address + split::descriptor_address(i)].is_table_entry = true;
  }

  void add_payload(ballast::guest_address address, std::uint32_t size, const char* name) {
    for (std::uint32_t i = 0; i < size; ++i)
      places_[address + i] = {
          .is_payload = true, .cell = static_cast<std::uint16_t>(plains_++), .name = name};
  }

  [[nodiscard]] const place& at(ballast::guest_address address) const { return places_[address]; }
  [[nodiscard]] std::uint16_t atomics() const { return atomics_; }
  [[nodiscard]] std::uint16_t plains() const { return plains_; }

 private:
  place places_[bytes]{};
  std::uint16_t atomics_ = 0;
  std::uint16_t plains_ = 0;
};

/// Up to `N` relacy variables, of which a schedule pays for those that its map needs.
template <class T, std::size_t N> class relacy_cells {
 public:
  explicit relacy_cells(std::size_t count) : count_(count) {
    for (std::size_t i = 0; i < count_; ++i) std::construct_at(&(*this)[i]);
  }
  ~relacy_cells() {
    for (std::size_t i = 0; i < count_; ++i) std::destroy_at(&(*this)[i]);
  }
  T& operator[](std::size_t i) { return reinterpret_cast<T*>(storage_)[i]; }

 private:
  std::size_t count_;
  alignas(T) std::byte storage_[N * sizeof(T)];
};

/// The memory of one schedule: made when it begins. An atomic word is a relacy atomic, any other a
/// cell that relacy checks for races and for reads before the first write.
struct relacy_ram {
  explicit relacy_ram(const memory_map& m) : map(&m), atomics(m.atomics()), plains(m.plains()) {}

  const memory_map* map;
  relacy_cells<rl::atomic<std::uint64_t>, 16> atomics;
  relacy_cells<rl::var<std::uint64_t>, memory_map::bytes> plains;
};

/// One side's access to a `relacy_ram`. A word that is used with another width, offset or class
/// than layout.hpp says, an order that the access cannot have, a store through a window that was
/// asked for reading, and a copy that touches a ring word fail the test. An indirect table is
/// written in words through a window and copied out one whole descriptor at a time: both use the
/// same cells.
class relacy_memory {
 public:
  class window_type {
   public:
    window_type() noexcept = default;
    window_type(relacy_ram& ram, ballast::guest_address start, ballast::access kind) noexcept
        : ram_(&ram), start_(start), kind_(kind) {}

    template <class T> [[nodiscard]] T load(std::size_t offset, ballast::order o) const noexcept {
      const memory_map::place& at = checked(offset, sizeof(T), o);
      const rl::debug_info where = info(at, offset);
      switch (o) {
      case ballast::order::plain: return static_cast<T>(ram_->plains[at.cell](where).load());
      case ballast::order::relaxed:
        return static_cast<T>(ram_->atomics[at.cell].load(rl::mo_relaxed, where));
      case ballast::order::acquire:
        return static_cast<T>(ram_->atomics[at.cell].load(rl::mo_acquire, where));
      case ballast::order::release: break;
      }
      trap("a load with order release", where);
      return T{};
    }

    template <class T> void store(std::size_t offset, T value, ballast::order o) noexcept {
      const memory_map::place& at = checked(offset, sizeof(T), o);
      const rl::debug_info where = info(at, offset);
      if (kind_ != ballast::access::write) trap("a store through a window for reading", where);
      switch (o) {
      case ballast::order::plain: return ram_->plains[at.cell](where).store(value);
      case ballast::order::relaxed:
        return ram_->atomics[at.cell].store(value, rl::mo_relaxed, where);
      case ballast::order::release:
        return ram_->atomics[at.cell].store(value, rl::mo_release, where);
      case ballast::order::acquire: break;
      }
      trap("a store with order acquire", where);
    }

   private:
    const memory_map::place& checked(std::uint32_t offset, std::uint8_t width,
                                     ballast::order o) const noexcept {
      const memory_map::place& at = ram_->map->at(start_ + offset);
      const bool is_atomic = o != ballast::order::plain;
      if (at.word != ballast::word_class{width, is_atomic})
        trap("a ring word with another width, offset or class than its layout", info(at, offset));
      return at;
    }

    relacy_ram* ram_ = nullptr;
    ballast::guest_address start_ = 0;
    ballast::access kind_ = ballast::access::read;
  };

  explicit relacy_memory(relacy_ram& ram) noexcept : ram_(&ram) {}

  [[nodiscard]] ballast::result<window_type> window(ballast::guest_address address,
                                                    std::uint64_t size, std::size_t alignment,
                                                    ballast::access kind) noexcept {
    if (address > memory_map::bytes || size > memory_map::bytes - address)
      return ballast::error::not_guest_memory;
    if (address % alignment != 0) return ballast::error::misaligned;
    return window_type(*ram_, address, kind);
  }

  [[nodiscard]] ballast::memory_segment segment(ballast::guest_address address, std::uint64_t size,
                                                ballast::access) noexcept {
    std::uint64_t n = 0;
    while (n < size && address + n < memory_map::bytes && ram_->map->at(address + n).is_payload)
      ++n;
    return {nullptr, n};
  }

  [[nodiscard]] bool read(ballast::guest_address address, std::span<std::byte> to) noexcept {
    if (address < memory_map::bytes && ram_->map->at(address).is_table_entry)
      return read_table_entry(address, to);
    if (!is_payload(address, to.size())) return false;
    for (std::size_t i = 0; i < to.size(); ++i) {
      const memory_map::place& at = ram_->map->at(address + i);
      to[i] = static_cast<std::byte>(ram_->plains[at.cell](info(at, address + i)).load());
    }
    return true;
  }

  [[nodiscard]] bool write(ballast::guest_address address,
                           std::span<const std::byte> from) noexcept {
    if (!is_payload(address, from.size())) return false;
    for (std::size_t i = 0; i < from.size(); ++i) {
      const memory_map::place& at = ram_->map->at(address + i);
      ram_->plains[at.cell](info(at, address + i)).store(static_cast<std::uint64_t>(from[i]));
    }
    return true;
  }

  [[nodiscard]] static bool good() noexcept { return true; }
  static void fence() noexcept { rl::atomic_thread_fence(rl::mo_seq_cst, rl::debug_info("fence")); }

 private:
  static void trap(const char* why, const rl::debug_info& where) noexcept {
    rl::ctx().fail_test(why, rl::test_result_user_assert_failed, where);
  }

  /// relacy's history shows it as "in NAME, (OFFSET)".
  static rl::debug_info info(const memory_map::place& at, std::uint64_t offset) noexcept {
    return {at.name, "", static_cast<unsigned>(offset)};
  }

  bool read_table_entry(ballast::guest_address address, std::span<std::byte> to) noexcept {
    std::uint64_t words[2]{};
    if (to.size() != sizeof words) {
      trap("a copy of something else than one descriptor", info(ram_->map->at(address), address));
      return false;
    }
    for (std::uint64_t i = 0; i < 2; ++i) {
      const memory_map::place& at = ram_->map->at(address + 8 * i);
      words[i] = ram_->plains[at.cell](info(at, address + 8 * i)).load();
    }
    std::memcpy(to.data(), words, sizeof words);
    return true;
  }

  bool is_payload(ballast::guest_address address, std::uint64_t size) const noexcept {
    for (std::uint64_t i = 0; i < size; ++i) {
      if (address + i >= memory_map::bytes) return false;
      const memory_map::place& at = ram_->map->at(address + i);
      if (!at.is_payload) {
        trap("a payload copy that leaves the payload", info(at, address + i));
        return false;
      }
    }
    return true;
  }

  relacy_ram* ram_;
};

static_assert(ballast::guest_memory<relacy_memory>);

/// A notification on its way to one side that may sleep. It is remembered until somebody waits, as
/// an eventfd does; it orders no memory access, which is less than any real one gives. When all
/// sleep, relacy reports a deadlock: a notification was lost.
class doorbell {
 public:
  void ring() {
    rl::context& c = rl::ctx();
    c.sched();
    is_rung_ = true;
    sleepers_.unpark_one(c, rl::debug_info("ring"));
  }

  void wait() {
    rl::context& c = rl::ctx();
    c.sched();
    while (!is_rung_) sleepers_.park_current(c, false, false, false, rl::debug_info("wait"));
    is_rung_ = false;
  }

 private:
  bool is_rung_ = false;
  rl::waitset<2> sleepers_;
};

} // namespace ballast_test
