// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

namespace ballast::host {

/// What memory of this process is made of; that decides how it is given back.
enum class mapping_kind : std::uint8_t {
  anonymous,       ///< private, without a file
  shared_memory,   ///< a memfd, System V shared memory, or shared and without a file
  hugetlb_private, ///< huge pages, private
  hugetlb_shared,  ///< huge pages of a memfd or of hugetlbfs
  file_shared,     ///< any other file, one in a tmpfs as well: it may be somebody's data
  file_private,    ///< a private mapping of a file, of a memfd as well
  device,          ///< memory of a device, which no page stands behind
};

[[nodiscard]] constexpr const char* name(mapping_kind kind) noexcept {
  switch (kind) {
  case mapping_kind::anonymous: return "anonymous private memory";
  case mapping_kind::shared_memory: return "shared memory";
  case mapping_kind::hugetlb_private: return "private huge pages";
  case mapping_kind::hugetlb_shared: return "shared huge pages";
  case mapping_kind::file_shared: return "a shared file";
  case mapping_kind::file_private: return "a private mapping of a file";
  case mapping_kind::device: return "device memory";
  }
  return "unknown";
}

/// What the kernel says of a range of this process's memory.
struct mapping {
  mapping_kind kind = mapping_kind::device;
  bool is_writable = false;
  bool is_locked = false;           ///< by mlock: it cannot be given back
  std::uint64_t page_size = 0;      ///< bytes; of the pages it is made of: 2 MiB for huge pages
  std::uint64_t resident_bytes = 0; ///< Rss of all mappings touched; huge pages are not in it
  std::uint64_t hugetlb_bytes = 0;  ///< of huge pages, which are in nothing else
};

/// Which device the files of memfd_create, System V shared memory and shared anonymous memory are
/// on: one inside the kernel, where nothing else is. 0 where there is no memfd.
[[nodiscard]] inline dev_t shared_memory_device() noexcept {
  constexpr unsigned noexec_seal = 8; // some systems insist on it, older ones do not know it
  int file = memfd_create("ballast-probe", MFD_CLOEXEC | noexec_seal);
  if (file < 0) file = memfd_create("ballast-probe", MFD_CLOEXEC);
  if (file < 0) return 0;
  struct stat about{};
  const dev_t device = fstat(file, &about) == 0 ? about.st_dev : 0;
  close(file);
  return device;
}

/// Reads the kernel's table of this process's mappings, without the heap.
class mapping_table {
 public:
  struct entry {
    std::uintptr_t begin = 0, end = 0;
    bool is_file = false, is_shared = false, is_huge = false, is_device = false;
    dev_t device = 0; ///< of the file
    mapping facts;    ///< all but the kind
  };

  explicit mapping_table(const char* path) noexcept : file_(open(path, O_RDONLY | O_CLOEXEC)) {}
  ~mapping_table() {
    if (file_ >= 0) close(file_);
  }
  mapping_table(const mapping_table&) = delete;
  mapping_table& operator=(const mapping_table&) = delete;

  [[nodiscard]] bool is_open() const noexcept { return file_ >= 0; }

  /// Reads the next mapping; false at the end, and at what is no such table.
  [[nodiscard]] bool next(entry& e) noexcept {
    e = {};
    if (!next_line() || !read_head(e)) return false;
    while (next_line()) {
      if (is_key("Rss:")) {
        e.facts.resident_bytes = number();
      } else if (is_key("Private_Hugetlb:") || is_key("Shared_Hugetlb:")) {
        e.facts.hugetlb_bytes += number();
      } else if (is_key("KernelPageSize:")) {
        e.facts.page_size = number();
      } else if (is_key("VmFlags:")) { // the last line of each
        e.is_huge = has_flag(" ht");
        e.is_device = has_flag(" io") || has_flag(" pf");
        e.facts.is_locked = has_flag(" lo");
        return e.facts.page_size != 0;
      }
    }
    return false;
  }

 private:
  /// The next line in `line_`, cut behind what is of interest: a path may be as long as it likes.
  [[nodiscard]] bool next_line() noexcept {
    std::size_t length = 0;
    while (at_ != end_ || refill()) {
      const char c = chunk_[at_++];
      if (c == '\n') break;
      if (length < sizeof(line_) - 1) line_[length++] = c;
    }
    line_[length] = '\0';
    return length != 0; // the table has no empty lines
  }

  [[nodiscard]] bool refill() noexcept {
    const ssize_t got = read(file_, chunk_, sizeof(chunk_));
    at_ = 0;
    end_ = got > 0 ? static_cast<std::size_t>(got) : 0;
    return got > 0;
  }

  /// "begin-end rwxp offset major:minor inode path", all but the inode in hexadecimal.
  [[nodiscard]] bool read_head(entry& e) const noexcept {
    char* at = nullptr;
    e.begin = static_cast<std::uintptr_t>(std::strtoull(line_, &at, 16));
    if (*at != '-') return false;
    e.end = static_cast<std::uintptr_t>(std::strtoull(at + 1, &at, 16));
    if (std::strlen(at) < sizeof(" rwxp 0 0:0 0") - 1) return false;
    e.facts.is_writable = at[2] == 'w';
    e.is_shared = at[4] == 's';
    (void)std::strtoull(at + 5, &at, 16);
    const auto major_number = static_cast<unsigned>(std::strtoul(at, &at, 16));
    if (*at != ':') return false;
    const auto minor_number = static_cast<unsigned>(std::strtoul(at + 1, &at, 16));
    e.device = makedev(major_number, minor_number);
    // System V shared memory may have the inode 0.
    e.is_file = e.device != 0 || std::strtoull(at, nullptr, 10) != 0;
    return true;
  }

  [[nodiscard]] bool is_key(const char* key) const noexcept {
    return std::strncmp(line_, key, std::strlen(key)) == 0;
  }
  [[nodiscard]] bool has_flag(const char* flag) const noexcept {
    return std::strstr(line_, flag) != nullptr;
  }
  /// The bytes behind the key, which the table has in KiB.
  [[nodiscard]] std::uint64_t number() const noexcept {
    return std::strtoull(std::strchr(line_, ':') + 1, nullptr, 10) * 1024;
  }

  int file_;
  std::size_t at_ = 0, end_ = 0;
  char chunk_[4096];
  char line_[256];
};

[[nodiscard]] inline mapping_kind kind_of(const mapping_table::entry& e, dev_t shared) noexcept {
  if (e.is_device || (e.is_shared && !e.is_file)) return mapping_kind::device;
  if (e.is_huge) return e.is_shared ? mapping_kind::hugetlb_shared : mapping_kind::hugetlb_private;
  if (!e.is_file) return mapping_kind::anonymous;
  if (!e.is_shared) return mapping_kind::file_private;
  return shared != 0 && e.device == shared ? mapping_kind::shared_memory
                                           : mapping_kind::file_shared;
}

/// Finds out what [data, data + size) is, which may be several mappings of one kind.
///
/// From the mapping itself: a file descriptor would say what a file is, and neither whether it is
/// what lies there nor whether it is mapped privately. The kernel counts the pages for its table,
/// so ask once, and while a large guest has not touched much of its memory.
/// Errors: `mapping_unreadable`, `not_mapped` (not all of it), `mapping_mixed`.
/// Linux: show_smap.
[[nodiscard]] inline result<mapping>
find_mapping(const void* data, std::uint64_t size,
             const char* table_path = "/proc/self/smaps") noexcept {
  mapping_table table(table_path);
  if (!table.is_open()) return error::mapping_unreadable;
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  if (size == 0 || size > UINTPTR_MAX - begin) return error::not_mapped;
  const std::uintptr_t end = begin + size;
  const dev_t shared = shared_memory_device();

  mapping found;
  std::uintptr_t covered = begin; // up to here everything is mapped, and of one kind
  for (mapping_table::entry e; covered < end && table.next(e);) {
    if (e.end <= begin) continue;
    if (e.begin > covered) return error::not_mapped;
    e.facts.kind = kind_of(e, shared);
    if (covered == begin) {
      found = e.facts;
    } else {
      if (e.facts.kind != found.kind || e.facts.page_size != found.page_size)
        return error::mapping_mixed;
      found.is_writable = found.is_writable && e.facts.is_writable;
      found.is_locked = found.is_locked || e.facts.is_locked;
      found.resident_bytes += e.facts.resident_bytes;
      found.hugetlb_bytes += e.facts.hugetlb_bytes;
    }
    covered = e.end;
  }
  if (covered < end) return error::not_mapped;
  return found;
}

} // namespace ballast::host
