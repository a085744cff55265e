// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// What a device needs to go on in another process: a file that both have mapped.

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/transport/pci_device.hpp>
#include <ballast/vhost_user/in_flight_region.hpp>

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace interop {

/// Where a process that serves a device can be told to die.
enum class moment : std::uint32_t {
  none,
  request,   ///< it has a request of QEMU's and has done nothing about it
  saved,     ///< it has done it and has not answered
  discard,   ///< a page of a buffer was taken, the buffer was not returned
  published, ///< buffers were returned, the driver was not told
};

/// All zero at first.
struct kept_state {
  static constexpr std::uint16_t queues = 5;
  static constexpr std::uint32_t queue_size = 256;
  static constexpr std::uint32_t pfns_max = 1u << 20;

  /// Written as a whole, while the other one counts.
  struct half {
    std::uint64_t replies; ///< requests of QEMU's that were done
    std::uint64_t reply;   ///< to the last one
    bool is_live;
    ballast::pci_device_state bus;
    ballast::balloon::device_state device;
  };
  std::uint32_t current; ///< 0: there is none; otherwise `halves[current - 1]`
  alignas(half) std::byte halves[2][sizeof(half)];
  /// The chains that are held.
  alignas(64)
      std::byte in_flight[queues][ballast::vhost_user::in_flight::region_bytes(queue_size, true)];

  // For the test.
  unsigned char balloon[pfns_max / 8];
  std::uint64_t inflated;   ///< pages
  std::uint64_t resumed;    ///< times
  std::uint64_t statistics; ///< snapshots that were asked for
  alignas(ballast::balloon::snapshot) std::byte snapshot[sizeof(ballast::balloon::snapshot)];
  std::uint32_t failure; ///< of `ballast::error`
  moment dies_at;
  std::uint32_t dies_after; ///< passes of it

  [[nodiscard]] static kept_state* make() {
    const int fd = memfd_create("state", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, sizeof(kept_state)) != 0) return nullptr;
    void* at = mmap(nullptr, sizeof(kept_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return at == MAP_FAILED ? nullptr : static_cast<kept_state*>(at);
  }

  [[nodiscard]] bool has_any() const { return current != 0; }
  [[nodiscard]] const half& last() const {
    return *reinterpret_cast<const half*>(halves[current - 1]);
  }
  void keep(const half& now) {
    const std::uint32_t next = current == 1 ? 1 : 0;
    *reinterpret_cast<half*>(halves[next]) = now;
    std::atomic_ref(current).store(next + 1, std::memory_order_release);
  }

  void pass(moment m) {
    if (dies_at != m || --dies_after != 0) return;
    dies_at = moment::none;
    kill(getpid(), SIGKILL);
  }
};

} // namespace interop
