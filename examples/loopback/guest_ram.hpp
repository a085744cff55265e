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

[[nodiscard]] inline std::uint64_t host_page_size() noexcept {
  return static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}
[[nodiscard]] inline std::uint64_t round_up(std::uint64_t n, std::uint64_t to) noexcept {
  return (n + to - 1) / to * to;
}

/// The guest's memory, from guest address 0 on: an anonymous private mapping of this process. Also
/// the device's back end, which takes pages away from it.
class guest_ram {
 public:
  explicit guest_ram(std::uint64_t size) noexcept
      : guard_(host_page_size()), whole_size_(round_up(size, guard_) + 2 * guard_) {
    // A page without access before and behind: the kernel can't merge the mapping with another.
    void* whole = mmap(nullptr, whole_size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) return;
    whole_ = static_cast<std::byte*>(whole);
    std::byte* start = whole_ + guard_;
    if (mprotect(start, whole_size_ - 2 * guard_, PROT_READ | PROT_WRITE) != 0) return;
    // Pages come and go one by one. Fails only on kernels that have no huge pages.
    (void)madvise(start, whole_size_ - 2 * guard_, MADV_NOHUGEPAGE);
    region_ = {.address = 0, .data = start, .size = size};
  }
  ~guest_ram() {
    if (whole_ != nullptr) munmap(whole_, whole_size_);
  }
  guest_ram(const guest_ram&) = delete;
  guest_ram& operator=(const guest_ram&) = delete;

  [[nodiscard]] bool is_mapped() const noexcept { return region_.data != nullptr; }
  [[nodiscard]] std::byte* data() const noexcept { return region_.data; }
  [[nodiscard]] std::uint64_t size() const noexcept { return region_.size; }
  /// Each thread takes its own: an accessor serves one.
  [[nodiscard]] ballast::mapped_memory accessor() const noexcept {
    return *ballast::mapped_memory::over({&region_, 1});
  }

  /// The balloon's back end: gives pages back to the kernel. They read as zeros from here on.
  bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    return madvise(region_.data + address, size, MADV_DONTNEED) == 0;
  }

 private:
  std::uint64_t guard_;
  std::uint64_t whole_size_;
  std::byte* whole_ = nullptr;
  ballast::memory_region region_;
};

} // namespace loopback
