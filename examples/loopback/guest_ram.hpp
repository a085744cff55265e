// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <sys/mman.h>
#include <unistd.h>

namespace loopback {

/// Of the huge pages that --hugetlb takes, and of what the guest reports and hints.
inline constexpr std::uint64_t huge_page_size = 2u << 20;

[[nodiscard]] inline std::uint64_t host_page_size() noexcept {
  return static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}
[[nodiscard]] constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) noexcept {
  return (n + to - 1) / to * to;
}

/// The guest's memory, from guest address 0 on: an anonymous private mapping of this process.
class guest_ram {
 public:
  /// `page_size`: of this machine, or `huge_page_size`.
  guest_ram(std::uint64_t size, std::uint64_t page_size) noexcept
      : page_size_(page_size), whole_size_(round_up(size, page_size) + 3 * page_size) {
    // Memory without access before and behind: the kernel can't merge the mapping with another.
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void* whole = mmap(nullptr, whole_size_, PROT_NONE, flags | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED) return;
    whole_ = static_cast<std::byte*>(whole);
    const auto begin = reinterpret_cast<std::uintptr_t>(whole);
    std::byte* start = whole_ + (round_up(begin + page_size, page_size) - begin);
    constexpr int huge_2m = MAP_HUGETLB | 21 << 26; // Linux: MAP_HUGE_2MB
    if (mmap(start, round_up(size, page_size), PROT_READ | PROT_WRITE,
             flags | MAP_FIXED | (is_huge() ? huge_2m : 0), -1, 0) == MAP_FAILED)
      return;
    // Pages come and go one by one. Fails only where there are no transparent huge pages.
    if (!is_huge()) (void)madvise(start, round_up(size, page_size), MADV_NOHUGEPAGE);
    region_ = {.address = 0, .data = start, .size = size};
  }
  ~guest_ram() {
    if (whole_ != nullptr) munmap(whole_, whole_size_);
  }
  guest_ram(const guest_ram&) = delete;
  guest_ram& operator=(const guest_ram&) = delete;

  [[nodiscard]] bool is_mapped() const noexcept { return region_.data != nullptr; }
  [[nodiscard]] bool is_huge() const noexcept { return page_size_ != host_page_size(); }
  [[nodiscard]] std::byte* data() const noexcept { return region_.data; }
  [[nodiscard]] std::uint64_t size() const noexcept { return region_.size; }
  [[nodiscard]] std::span<const ballast::memory_region> regions() const noexcept {
    return {&region_, 1};
  }
  /// Each thread takes its own: an accessor serves one.
  [[nodiscard]] ballast::mapped_memory accessor() const noexcept {
    return *ballast::mapped_memory::over(regions());
  }

 private:
  std::uint64_t page_size_;
  std::uint64_t whole_size_;
  std::byte* whole_ = nullptr;
  ballast::memory_region region_;
};

} // namespace loopback
