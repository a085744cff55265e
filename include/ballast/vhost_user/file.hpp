// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace ballast::vhost_user {

/// A file descriptor that closes with its owner. Hosted.
class file {
 public:
  constexpr file() noexcept = default;
  constexpr explicit file(int descriptor) noexcept : descriptor_(descriptor) {}
  constexpr file(file&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  file& operator=(file&& other) noexcept {
    if (this != &other) {
      close();
      descriptor_ = std::exchange(other.descriptor_, -1);
    }
    return *this;
  }
  ~file() { close(); }

  [[nodiscard]] constexpr bool is_open() const noexcept { return descriptor_ >= 0; }
  /// -1 where there is none.
  [[nodiscard]] constexpr int get() const noexcept { return descriptor_; }

  void close() noexcept {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }

 private:
  int descriptor_ = -1;
};

/// The first bytes of a file, shared with whoever else maps it. Hosted.
class file_mapping {
 public:
  constexpr file_mapping() noexcept = default;
  constexpr file_mapping(file_mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)),
        whole_(std::exchange(other.whole_, 0)) {}
  file_mapping& operator=(file_mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(whole_, other.whole_);
    return *this;
  }
  ~file_mapping() {
    if (data_ != nullptr) munmap(data_, whole_);
  }

  /// Maps the first `size` bytes. A file that is cut short afterwards ends the process that uses
  /// them: whoever shares one is trusted not to (a memfd can be sealed against it).
  /// Errors: `file_too_small` (they are not all there), `system_call_failed`.
  [[nodiscard]] static result<file_mapping> of(const file& from, std::uint64_t size) noexcept {
    struct stat about{};
    if (fstat(from.get(), &about) != 0) return error::system_call_failed;
    if (S_ISREG(about.st_mode) && static_cast<std::uint64_t>(about.st_size) < size)
      return error::file_too_small;
    // Huge pages are unmapped whole or not at all.
    const auto page = static_cast<std::uint64_t>(about.st_blksize > 0 ? about.st_blksize : 1);
    const auto whole = static_cast<std::size_t>((size + page - 1) / page * page);
    void* const at =
        mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, from.get(), 0);
    if (at == MAP_FAILED) return error::system_call_failed;
    file_mapping made;
    made.data_ = at;
    made.size_ = static_cast<std::size_t>(size);
    made.whole_ = whole;
    return made;
  }

  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return {static_cast<std::byte*>(data_), size_};
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t whole_ = 0; ///< with what is left of the last page
};

} // namespace ballast::vhost_user
