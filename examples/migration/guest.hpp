// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "page_bitmap.hpp"

#include <ballast/balloon/hint_driver.hpp>
#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

namespace migration {

namespace balloon = ballast::balloon;

inline constexpr unsigned block_order = 8; ///< the guest allocates, and hints, 1 MiB at a time
inline constexpr std::size_t block_pages = std::size_t{1} << block_order;
inline constexpr std::size_t block_bytes = block_pages * page_size;

/// splitmix64: the same numbers everywhere.
class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) noexcept : state_(seed) {}
  std::uint64_t next() noexcept {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  std::size_t below(std::size_t n) noexcept { return next() % n; }

 private:
  std::uint64_t state_;
};

/// A guest's memory, its allocator and what it does. Models `balloon::page_source` (it has no
/// balloon) and `balloon::hinting_source`.
class guest {
 public:
  /// `log`: where its writes are noted.
  guest(std::span<std::byte> ram, page_bitmap& log, balloon::hint_release release,
        std::uint64_t seed)
      : ram_(ram), log_(&log), random_(seed), owners_(ram.size() / block_bytes),
        remembered_(owners_.size()), release_(release) {
    owners_[0] = owner::driver;
    for (std::size_t i = 1; i < owners_.size(); ++i) free_.push_back(i);
    for (std::size_t i = free_.size(); i > 1; --i) std::swap(free_[i - 1], free_[random_.below(i)]);
    while (free_.size() > used_.size()) (void)allocate();
  }

  // The workload.

  /// Writes to `pages` pages of what it uses, most of them the same ones again and again.
  void write(std::size_t pages) noexcept {
    for (std::size_t i = 0; i < pages; ++i) {
      const std::size_t hot = used_.size() / 8 + 1;
      const std::size_t block = used_[random_.below(random_.below(8) != 0 ? hot : used_.size())];
      const std::size_t page = block * block_pages + random_.below(block_pages);
      store(page * page_size + random_.below(page_size / 8) * 8);
    }
  }

  /// Takes a free block and initialises all of it; false where there is none.
  bool allocate() {
    if (free_.empty()) return false;
    const std::size_t block = free_.back();
    free_.pop_back();
    owners_[block] = owner::workload;
    used_.push_back(block);
    for (std::size_t at = 0; at < block_bytes; at += page_size) {
      std::memset(&ram_[block * block_bytes + at], static_cast<int>(random_.next() & 0xff),
                  page_size);
      log_->mark(block * block_bytes + at, page_size);
    }
    return true;
  }

  void free_one() {
    const std::size_t i = random_.below(used_.size());
    owners_[used_[i]] = owner::nobody;
    free_.push_back(used_[i]);
    used_[i] = used_.back();
    used_.pop_back();
  }

  // balloon::page_source

  std::size_t take_free(std::span<std::uint32_t>) noexcept { return 0; }
  void store(std::span<const std::uint32_t>) noexcept {}
  std::size_t take_stored(std::span<std::uint32_t>) noexcept { return 0; }
  void release(std::span<const std::uint32_t>) noexcept {}

  // balloon::hinting_source

  std::span<balloon::hint_block> hint_blocks() noexcept { return remembered_; }
  balloon::hint_driver_options hint_options() const noexcept {
    return {.order = block_order, .order_min = block_order, .release = release_};
  }
  ballast::result<guest_address> take(unsigned) noexcept {
    if (free_.empty()) return ballast::error::queue_empty;
    const std::size_t block = free_.back();
    free_.pop_back();
    ++hinted_;
    return guest_address{block * block_bytes};
  }
  void release(guest_address address, unsigned) noexcept {
    free_.push_back(address / block_bytes); // there is room: it was there before
    --hinted_;
    released_early_ += is_with_device(address);
  }

  // What the check needs.

  [[nodiscard]] bool owns(std::size_t page) const noexcept {
    return owners_[page / block_pages] != owner::nobody;
  }
  [[nodiscard]] std::size_t hinted_blocks() const noexcept { return hinted_; }
  /// Blocks that came back while the device had not returned their buffers.
  [[nodiscard]] std::size_t released_early() const noexcept { return released_early_; }

 private:
  enum class owner : std::uint8_t { nobody, driver, workload };

  [[nodiscard]] bool is_with_device(guest_address address) const noexcept {
    if (release_ != balloon::hint_release::early) return false;
    for (const balloon::hint_block& b : remembered_)
      if (b.address == address && b.is_in_flight) return true;
    return false;
  }

  void store(std::size_t at) noexcept {
    const std::uint64_t value = random_.next();
    std::memcpy(&ram_[at], &value, sizeof(value));
    log_->mark(at, sizeof(value));
  }

  std::span<std::byte> ram_;
  page_bitmap* log_;
  random_numbers random_;
  std::vector<owner> owners_; ///< of each block
  std::vector<std::size_t> used_;
  std::vector<std::size_t> free_;
  std::vector<balloon::hint_block> remembered_;
  balloon::hint_release release_;
  std::size_t hinted_ = 0;
  std::size_t released_early_ = 0;
};

} // namespace migration
