// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// The memory of a guest in QEMU as our device's host: takes pages out of the files behind it, and
// knows which of them are in the balloon.

#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "../../examples/qemu/socket.hpp"
#include "kept_state.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace interop {

class guest_ram {
 public:
  struct piece {
    std::uint64_t address, size, offset;
    friend bool operator==(const piece&, const piece&) = default;
  };
  static constexpr std::uint32_t pfns_max = kept_state::pfns_max; ///< guests of up to 4 GiB

  guest_ram() : own_(pfns_max / 8), balloon_(own_.data()) {}
  guest_ram(const guest_ram&) = delete;
  guest_ram& operator=(const guest_ram&) = delete;
  ~guest_ram() { unmap(); }

  /// Notes the balloon's pages there, and goes on with those that are.
  void keep_at(kept_state& state) {
    kept_ = &state;
    balloon_ = state.balloon;
    pages_ = count();
  }

  /// Whether it is another memory than what is mapped.
  [[nodiscard]] bool differs(std::span<const piece> pieces,
                             std::span<const qemu::descriptor> files) const {
    return !std::ranges::equal(pieces, pieces_) || numbers_of(files) != numbers_of(files_);
  }
  bool map(std::span<const piece> pieces, std::vector<qemu::descriptor>& files) {
    unmap();
    for (std::size_t i = 0; i < pieces.size() && i < files.size(); ++i) {
      const std::size_t size = pieces[i].size + pieces[i].offset;
      void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, files[i].get(), 0);
      if (at == MAP_FAILED) return false;
      mappings_.push_back({static_cast<std::byte*>(at), size});
      regions_.push_back({.address = pieces[i].address,
                          .data = static_cast<std::byte*>(at) + pieces[i].offset,
                          .size = pieces[i].size});
    }
    pieces_.assign(pieces.begin(), pieces.end());
    files_ = std::move(files);
    const auto made = ballast::mapped_memory::over(regions_);
    if (made) memory_ = *made;
    return made.has_value() && regions_.size() == pieces.size();
  }
  [[nodiscard]] ballast::mapped_memory& memory() { return memory_; }

  // The balloon's host.

  bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    const std::size_t i = piece_of(address);
    if (i == pieces_.size() || size > pieces_[i].size - (address - pieces_[i].address))
      return false;
    if (is_tracking_)
      each_page(address, size, [&](std::uint32_t pfn) {
        if (kept_ != nullptr) kept_->pass(moment::discard);
        inflated_twice_ += is_inflated(pfn);
        pages_ += !is_inflated(pfn);
        balloon_[pfn / 8] = static_cast<unsigned char>(balloon_[pfn / 8] | 1u << pfn % 8);
      });
    return fallocate(files_[i].get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(address - pieces_[i].address + pieces_[i].offset),
                     static_cast<off_t>(size)) == 0;
  }
  void provide(ballast::guest_address address, std::uint64_t size) noexcept {
    if (!is_tracking_) return;
    each_page(address, size, [&](std::uint32_t pfn) {
      not_inflated_ += !is_inflated(pfn);
      pages_ -= is_inflated(pfn);
      balloon_[pfn / 8] = static_cast<unsigned char>(balloon_[pfn / 8] & ~(1u << pfn % 8));
    });
  }
  bool hint(ballast::guest_address, std::uint64_t size) noexcept {
    hinted_ += size;
    return true;
  }

  /// Reported pages are discarded too, as often as they like, and are none of the balloon's.
  void track(bool is_on) { is_tracking_ = is_on; }
  [[nodiscard]] std::uint64_t hinted() const { return hinted_; } ///< bytes
  /// Of the balloon.
  [[nodiscard]] std::uint32_t pages() const { return pages_; }
  [[nodiscard]] bool is_inflated(std::uint32_t pfn) const {
    return pfn < pfns_max && (balloon_[pfn / 8] >> pfn % 8 & 1) != 0;
  }
  [[nodiscard]] std::uint32_t count() const {
    std::uint32_t n = 0;
    for (std::uint32_t i = 0; i < pfns_max / 8; ++i)
      n += static_cast<std::uint32_t>(std::popcount(balloon_[i]));
    return n;
  }
  [[nodiscard]] std::uint64_t inflated_twice() const { return inflated_twice_; }
  [[nodiscard]] std::uint64_t deflated_unknown() const { return not_inflated_; }

  /// Bytes that the files take up.
  [[nodiscard]] std::uint64_t allocated() const {
    std::vector<std::pair<dev_t, ino_t>> seen;
    std::uint64_t bytes = 0;
    for (const qemu::descriptor& file : files_) {
      struct stat about{};
      if (fstat(file.get(), &about) != 0 ||
          std::ranges::find(seen, std::pair(about.st_dev, about.st_ino)) != seen.end())
        continue;
      seen.emplace_back(about.st_dev, about.st_ino);
      bytes += static_cast<std::uint64_t>(about.st_blocks) * 512;
    }
    return bytes;
  }
  /// How many pages of the balloon the files still hold.
  [[nodiscard]] std::uint32_t kept_pages() const {
    std::uint32_t kept = 0;
    for (std::uint32_t pfn = 0; pfn < pfns_max; ++pfn) {
      if (!is_inflated(pfn)) continue;
      const place at = place_of(pfn);
      kept += at.fd < 0 || lseek(at.fd, at.offset, SEEK_DATA) == at.offset;
    }
    return kept;
  }
  /// How many pages of the balloon read as anything but zero.
  [[nodiscard]] std::uint32_t pages_not_zero() const {
    std::uint32_t found = 0;
    std::vector<char> page(ballast::balloon::page_size);
    for (std::uint32_t pfn = 0; pfn < pfns_max; ++pfn) {
      if (!is_inflated(pfn)) continue;
      const place at = place_of(pfn);
      found +=
          pread(at.fd, page.data(), page.size(), at.offset) != static_cast<ssize_t>(page.size()) ||
          std::ranges::any_of(page, [](char c) { return c != 0; });
    }
    return found;
  }

 private:
  struct place {
    int fd;
    off_t offset;
  };
  [[nodiscard]] place place_of(std::uint32_t pfn) const {
    const std::uint64_t address = ballast::balloon::address_of(pfn);
    const std::size_t i = piece_of(address);
    if (i == pieces_.size()) return {-1, 0};
    return {files_[i].get(), static_cast<off_t>(address - pieces_[i].address + pieces_[i].offset)};
  }
  [[nodiscard]] std::size_t piece_of(ballast::guest_address address) const {
    std::size_t i = 0;
    while (i < pieces_.size() && address - pieces_[i].address >= pieces_[i].size) ++i;
    return i;
  }
  template <class Do> static void each_page(std::uint64_t address, std::uint64_t size, Do&& what) {
    for (std::uint64_t pfn = address / ballast::balloon::page_size;
         pfn < (address + size) / ballast::balloon::page_size && pfn < pfns_max; ++pfn)
      what(static_cast<std::uint32_t>(pfn));
  }
  [[nodiscard]] static std::vector<ino_t> numbers_of(std::span<const qemu::descriptor> files) {
    std::vector<ino_t> numbers;
    for (const qemu::descriptor& file : files) {
      struct stat about{};
      numbers.push_back(fstat(file.get(), &about) == 0 ? about.st_ino : 0);
    }
    return numbers;
  }
  void unmap() {
    for (const auto& mapping : mappings_) munmap(mapping.data(), mapping.size());
    mappings_.clear();
    regions_.clear();
  }

  std::vector<piece> pieces_;
  std::vector<qemu::descriptor> files_;
  std::vector<std::span<std::byte>> mappings_;
  std::vector<ballast::memory_region> regions_;
  ballast::mapped_memory memory_;
  std::vector<unsigned char> own_;
  unsigned char* balloon_;
  kept_state* kept_ = nullptr;
  std::uint32_t pages_ = 0;
  std::uint64_t inflated_twice_ = 0, not_inflated_ = 0, hinted_ = 0;
  bool is_tracking_ = true;
};

} // namespace interop
