// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// The host of a balloon device whose guest another process runs: punches the pages out of the files
// that it shares.

#include <ballast/balloon/protocol.hpp>
#include <ballast/vhost_user/memory_table.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <set>

namespace interop {

/// `allocated()` says what came back.
class shared_ram {
 public:
  explicit shared_ram(const ballast::vhost_user::memory_table& table) : table_(&table) {}
  shared_ram(const shared_ram&) = delete;
  shared_ram& operator=(const shared_ram&) = delete;

  bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t at = address; is_tracking_ && at < address + size;
         at += ballast::balloon::page_size)
      if (!balloon_.insert(at).second) ++inflated_twice_;
    const auto* const region = table_->find(address);
    if (region == nullptr || size > region->about.size - (address - region->about.guest_address))
      return false;
    return fallocate(region->source.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(region->offset_of(address)), static_cast<off_t>(size)) == 0;
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

  /// Bytes of guest memory.
  [[nodiscard]] std::uint64_t size() const {
    std::uint64_t bytes = 0;
    for (const auto& region : table_->regions()) bytes += region.size;
    return bytes;
  }
  /// Bytes that the files take up.
  [[nodiscard]] std::uint64_t allocated() const {
    std::uint64_t bytes = 0;
    struct stat about{};
    for (const auto& region : table_->regions())
      if (fstat(table_->find(region.address)->source.get(), &about) == 0)
        bytes += static_cast<std::uint64_t>(about.st_blocks) * 512;
    return bytes;
  }
  /// How many pages of the balloon the files still hold.
  [[nodiscard]] std::size_t kept_pages() const {
    std::size_t kept = 0;
    for (const ballast::guest_address address : balloon_) {
      const auto* const region = table_->find(address);
      if (region == nullptr) continue;
      const auto offset = static_cast<off_t>(region->offset_of(address));
      kept += lseek(region->source.get(), offset, SEEK_DATA) == offset;
    }
    return kept;
  }

 private:
  const ballast::vhost_user::memory_table* table_;
  std::set<ballast::guest_address> balloon_;
  std::uint64_t inflated_twice_ = 0, not_inflated_ = 0, hinted_ = 0;
  bool is_tracking_ = true;
};

} // namespace interop
