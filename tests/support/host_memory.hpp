// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/host/mapping.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

/// Memory of every kind a VMM may have, and how much of it is in use.
namespace ballast_test {

inline constexpr std::uint64_t huge_page = 2u << 20;
/// mmap: huge pages of that size. Linux: MAP_HUGE_2MB.
inline constexpr int huge_2m = MAP_HUGETLB | (21 << 26);
inline const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));

/// mlock and munlock themselves: the sanitizers' do nothing.
[[nodiscard]] inline bool lock_memory(void* data, std::uint64_t size) noexcept {
  return syscall(SYS_mlock, data, size) == 0;
}
[[nodiscard]] inline bool unlock_memory(void* data, std::uint64_t size) noexcept {
  return syscall(SYS_munlock, data, size) == 0;
}

/// An open file, closed at the end.
class owned_file {
 public:
  explicit owned_file(int number) noexcept : number_(number) {}
  ~owned_file() {
    if (number_ >= 0) close(number_);
  }
  owned_file(const owned_file&) = delete;
  owned_file& operator=(const owned_file&) = delete;

  [[nodiscard]] int get() const noexcept { return number_; }
  [[nodiscard]] std::uint64_t allocated_bytes() const noexcept {
    return static_cast<std::uint64_t>(about().st_blocks) * 512;
  }
  [[nodiscard]] std::uint64_t size() const noexcept {
    return static_cast<std::uint64_t>(about().st_size);
  }

 private:
  [[nodiscard]] struct stat about() const noexcept {
    struct stat found{};
    (void)fstat(number_, &found);
    return found;
  }

  int number_;
};

[[nodiscard]] inline int make_memfd(std::uint64_t size, unsigned flags = 0) noexcept {
  const int file = memfd_create("guest", MFD_CLOEXEC | flags);
  return file >= 0 && ftruncate(file, static_cast<off_t>(size)) == 0 ? file : -1;
}

/// A file on the disk, with each byte written, that is gone at the end.
[[nodiscard]] inline int make_disk_file(std::uint64_t size, char fill) {
  std::FILE* const made = std::tmpfile();
  if (made == nullptr) return -1;
  const int file = dup(fileno(made));
  std::fclose(made);
  const std::vector<char> bytes(static_cast<std::size_t>(size), fill);
  const bool is_written = write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(size);
  return is_written && fsync(file) == 0 ? file : -1;
}

/// A mapping with memory without access on both sides, so that none other is counted with it.
class guarded_mapping {
 public:
  guarded_mapping(std::uint64_t size, int flags, int file = -1,
                  int protection = PROT_READ | PROT_WRITE) noexcept
      : size_(size), whole_size_(size + 3 * huge_page) {
    void* const whole =
        mmap(nullptr, whole_size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED) return;
    whole_ = static_cast<std::byte*>(whole);
    const auto begin = reinterpret_cast<std::uintptr_t>(whole_) + huge_page;
    std::byte* const start = whole_ + huge_page + (huge_page - begin % huge_page) % huge_page;
    const int all = flags | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
    if (mmap(start, size, protection, all, file, 0) == MAP_FAILED) return;
    data_ = start;
    if ((flags & MAP_HUGETLB) == 0) (void)madvise(data_, size, MADV_NOHUGEPAGE);
  }
  ~guarded_mapping() {
    if (whole_ != nullptr) munmap(whole_, whole_size_);
  }
  guarded_mapping(const guarded_mapping&) = delete;
  guarded_mapping& operator=(const guarded_mapping&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  void fill(int value = 0x5a) const noexcept { std::memset(data_, value, size_); }
  /// Whether each byte of the range is `value`.
  [[nodiscard]] bool is(int value, std::uint64_t offset, std::uint64_t size) const noexcept {
    for (std::uint64_t i = offset; i < offset + size; ++i)
      if (data_[i] != static_cast<std::byte>(value)) return false;
    return true;
  }
  [[nodiscard]] bool is_zero(std::uint64_t offset, std::uint64_t size) const noexcept {
    return is(0, offset, size);
  }

  /// Rss of the mapping, of all its parts.
  [[nodiscard]] std::uint64_t resident_bytes() const noexcept {
    return sum(&ballast::host::mapping::resident_bytes);
  }
  [[nodiscard]] std::uint64_t hugetlb_bytes() const noexcept {
    return sum(&ballast::host::mapping::hugetlb_bytes);
  }
  /// Pages that are in memory, whether this process has looked at them or not.
  [[nodiscard]] std::uint64_t in_core_bytes() const {
    std::vector<unsigned char> is_in(static_cast<std::size_t>(size_ / page));
    if (mincore(data_, size_, is_in.data()) != 0) return UINT64_MAX;
    std::uint64_t bytes = 0;
    for (const unsigned char one : is_in) bytes += (one & 1) != 0 ? page : 0;
    return bytes;
  }

 private:
  [[nodiscard]] std::uint64_t sum(std::uint64_t ballast::host::mapping::* of) const noexcept {
    ballast::host::mapping_table table("/proc/self/smaps");
    const auto begin = reinterpret_cast<std::uintptr_t>(data_);
    std::uint64_t bytes = 0;
    for (ballast::host::mapping_table::entry e; table.next(e);)
      if (e.begin >= begin && e.end <= begin + size_) bytes += e.facts.*of;
    return bytes;
  }

  std::uint64_t size_;
  std::uint64_t whole_size_;
  std::byte* whole_ = nullptr;
  std::byte* data_ = nullptr;
};

/// Huge pages of 2 MiB that are there while it lives; the machine's number is restored.
class reserved_huge_pages {
 public:
  explicit reserved_huge_pages(std::uint64_t pages) : before_(read("nr_hugepages")) {
    const std::uint64_t free = free_pages();
    if (free >= pages) return;
    write(before_ + pages - free);
    has_reserved_ = true;
  }
  ~reserved_huge_pages() {
    if (has_reserved_) write(before_);
  }
  reserved_huge_pages(const reserved_huge_pages&) = delete;
  reserved_huge_pages& operator=(const reserved_huge_pages&) = delete;

  [[nodiscard]] static std::uint64_t free_pages() { return read("free_hugepages"); }

 private:
  [[nodiscard]] static std::string path(const char* name) {
    return std::string("/sys/kernel/mm/hugepages/hugepages-2048kB/") + name;
  }
  [[nodiscard]] static std::uint64_t read(const char* name) {
    std::uint64_t number = 0;
    std::ifstream(path(name)) >> number;
    return number;
  }
  static void write(std::uint64_t number) { std::ofstream(path("nr_hugepages")) << number << '\n'; }

  std::uint64_t before_;
  bool has_reserved_ = false;
};

/// Whether so many huge pages can be had here: they are free, or this is root and there is memory.
[[nodiscard]] inline bool has_huge_pages(std::uint64_t pages) {
  const reserved_huge_pages reserved(pages);
  return reserved_huge_pages::free_pages() >= pages;
}

/// Whether Linux itself runs this program. An emulator of another machine may not carry out what
/// these tests are about; on x86 there is none, so that nothing is passed over there.
[[nodiscard]] inline bool is_emulated() {
#if defined(__x86_64__)
  return false;
#else
  const guarded_mapping probe(page, MAP_SHARED);
  probe.fill();
  const bool is_known = ballast::host::find_mapping(probe.data(), page).has_value();
  return !is_known || madvise(probe.data(), page, MADV_REMOVE) != 0 || !probe.is_zero(0, page);
#endif
}

} // namespace ballast_test
