// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// The memory of a guest that another process runs: files that it shares.

#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

namespace interop {

class descriptor {
 public:
  descriptor() noexcept = default;
  explicit descriptor(int fd) noexcept : fd_(fd) {}
  descriptor(descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_ = -1;
};

/// The guest's memory as its memory table describes it: one or more pieces of files. A balloon's
/// host too: punches the pages out of the file, so that `allocated()` says what came back.
class shared_ram {
 public:
  struct piece { // as in the message
    std::uint64_t address, size, user_address, offset;
  };

  shared_ram() = default;
  shared_ram(const shared_ram&) = delete;
  shared_ram& operator=(const shared_ram&) = delete;
  ~shared_ram() { unmap(); }

  bool map(std::span<const piece> pieces, std::vector<descriptor>& files) {
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
  [[nodiscard]] std::span<const piece> pieces() const { return pieces_; }

  /// Rings come with addresses of the driver's process.
  [[nodiscard]] ballast::guest_address guest_address_of(std::uint64_t user_address) const {
    for (const piece& p : pieces_)
      if (user_address - p.user_address < p.size) return user_address - p.user_address + p.address;
    return UINT64_MAX; // no guest memory
  }

  bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t at = address; is_tracking_ && at < address + size;
         at += ballast::balloon::page_size)
      if (!balloon_.insert(at).second) ++inflated_twice_;
    const std::size_t i = piece_of(address);
    if (i == pieces_.size() || size > pieces_[i].size - (address - pieces_[i].address))
      return false;
    return fallocate(files_[i].get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(address - pieces_[i].address + pieces_[i].offset),
                     static_cast<off_t>(size)) == 0;
  }
  void provide(ballast::guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t at = address; at < address + size; at += ballast::balloon::page_size)
      if (balloon_.erase(at) == 0) ++not_inflated_;
  }

  bool hint(ballast::guest_address, std::uint64_t size) noexcept {
    hinted_ += size;
    return true;
  }

  /// From now on discarded pages are not the balloon's: reported ones come as often as they like.
  void stop_tracking() { is_tracking_ = false; }
  /// Bytes.
  [[nodiscard]] std::uint64_t hinted() const { return hinted_; }

  /// The pages that are in the balloon now.
  [[nodiscard]] const std::set<ballast::guest_address>& balloon() const { return balloon_; }
  [[nodiscard]] std::uint64_t inflated_twice() const { return inflated_twice_; }
  [[nodiscard]] std::uint64_t deflated_unknown() const { return not_inflated_; }

  /// Bytes that the files take up.
  [[nodiscard]] std::uint64_t allocated() const {
    std::uint64_t bytes = 0;
    struct stat about{};
    for (const descriptor& file : files_)
      if (fstat(file.get(), &about) == 0)
        bytes += static_cast<std::uint64_t>(about.st_blocks) * 512;
    return bytes;
  }
  /// How many pages of the balloon the files still hold.
  [[nodiscard]] std::size_t kept_pages() const {
    std::size_t kept = 0;
    for (const ballast::guest_address address : balloon_) {
      const std::size_t i = piece_of(address);
      const auto offset = static_cast<off_t>(address - pieces_[i].address + pieces_[i].offset);
      kept += lseek(files_[i].get(), offset, SEEK_DATA) == offset;
    }
    return kept;
  }

 private:
  [[nodiscard]] std::size_t piece_of(ballast::guest_address address) const {
    std::size_t i = 0;
    while (i < pieces_.size() && address - pieces_[i].address >= pieces_[i].size) ++i;
    return i;
  }
  void unmap() {
    for (const auto& mapping : mappings_) munmap(mapping.data(), mapping.size());
    mappings_.clear();
    regions_.clear();
    balloon_.clear();
  }

  std::vector<piece> pieces_;
  std::vector<descriptor> files_;
  std::vector<std::span<std::byte>> mappings_;
  std::vector<ballast::memory_region> regions_;
  ballast::mapped_memory memory_;
  std::set<ballast::guest_address> balloon_;
  std::uint64_t inflated_twice_ = 0, not_inflated_ = 0, hinted_ = 0;
  bool is_tracking_ = true;
};

} // namespace interop
