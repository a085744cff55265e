// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

namespace loopback {

/// What one side sleeps on and the other rings: an eventfd.
class doorbell {
 public:
  doorbell() noexcept : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~doorbell() {
    if (is_open()) close(fd_);
  }
  doorbell(const doorbell&) = delete;
  doorbell& operator=(const doorbell&) = delete;

  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int fd() const noexcept { return fd_; }

  void ring() noexcept { (void)eventfd_write(fd_, 1); }
  /// Whether it rang since the last call.
  bool take() noexcept {
    eventfd_t rings = 0;
    return eventfd_read(fd_, &rings) == 0;
  }

 private:
  int fd_;
};

/// All the ways in which the two sides wake each other.
struct doorbells {
  doorbell available; ///< guest to VMM: available buffer notifications
  doorbell registers; ///< guest to VMM: the guest wrote a register, or gave up
  doorbell used;      ///< VMM to guest: used buffer notifications
  doorbell config;    ///< VMM to guest: configuration change notifications
  doorbell report;    ///< to the guest: it has free memory that is worth a report
  doorbell stop;      ///< VMM to guest: shut down

  [[nodiscard]] bool are_open() const noexcept {
    return available.is_open() && registers.is_open() && used.is_open() && config.is_open() &&
           report.is_open() && stop.is_open();
  }
};

} // namespace loopback
