// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

namespace ballast::host {

/// Gives the kernel one piece of advice on many ranges of this process in one call, where it can.
///
///     vectored_advice vectors;
///     if (vectors.probe(MADV_DONTNEED)) done = vectors.advise(ranges, MADV_DONTNEED);
///
/// Kernels before 6.13 take no destructive advice in that way, and a system call filter may forbid
/// it: so it is tried out, on memory of its own. Linux: process_madvise.
class vectored_advice {
 public:
  /// Ranges of one call. Linux: UIO_MAXIOV.
  static constexpr std::size_t ranges_max = 1024;
  /// Bytes of one call, far enough below what the kernel cuts it off at, in the middle of a page as
  /// large as 1 GiB. Linux: MAX_RW_COUNT.
  static constexpr std::uint64_t bytes_max = std::uint64_t{1} << 30;

  vectored_advice() noexcept = default;
  ~vectored_advice() { forget(); }
  vectored_advice(const vectored_advice&) = delete;
  vectored_advice& operator=(const vectored_advice&) = delete;

  /// Whether `advice`, MADV_DONTNEED or MADV_REMOVE, has its effect on several ranges at once.
  /// `has_self`: false does as on a kernel where a process cannot be named without a file.
  [[nodiscard]] bool probe(int advice, bool has_self = true) noexcept {
    if ((has_self || self_ != own_thread) && try_out(self_, advice)) return true;
    if (process_fd_ >= 0) return false;
    process_fd_ = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
    self_ = process_fd_;
    return process_fd_ >= 0 && try_out(self_, advice);
  }

  /// Forgets what was found out.
  void forget() noexcept {
    if (process_fd_ >= 0) close(process_fd_);
    process_fd_ = -1;
    self_ = own_thread;
  }

  /// How many bytes were done, from the first range on; -1 where that was not one. At most
  /// `ranges_max` ranges and `bytes_max` bytes. (In a fork of the process that probed it may fail:
  /// the kernel gives no such advice to a parent.)
  [[nodiscard]] std::int64_t advise(std::span<const iovec> ranges, int advice) const noexcept {
    return call(self_, ranges, advice);
  }

 private:
  static constexpr int own_thread = -10000; // PIDFD_SELF, since 6.14

  [[nodiscard]] static std::int64_t call(int self, std::span<const iovec> ranges,
                                         int advice) noexcept {
    return syscall(SYS_process_madvise, self, ranges.data(), ranges.size(), advice, 0U);
  }

  /// Advises on two pages, which read as zeros afterwards where it works.
  [[nodiscard]] static bool try_out(int self, int advice) noexcept {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const int kind = advice == MADV_REMOVE ? MAP_SHARED : MAP_PRIVATE;
    void* const at = mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return false;
    auto* const bytes = static_cast<volatile unsigned char*>(at);
    bytes[0] = 1;
    bytes[page] = 1;
    auto* const first = static_cast<std::byte*>(at);
    const iovec ranges[] = {{first, page}, {first + page, page}};
    const bool works = call(self, ranges, advice) == static_cast<std::int64_t>(2 * page) &&
                       bytes[0] == 0 && bytes[page] == 0;
    munmap(at, 2 * page);
    return works;
  }

  int self_ = own_thread;
  int process_fd_ = -1;
};

} // namespace ballast::host
