// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <poll.h>
#include <vector>

namespace vhost_user_balloon {

/// What the program sleeps on, said anew before each sleep.
class poll_set {
 public:
  void clear() noexcept { all_.clear(); }
  void add(int fd, short events) {
    if (fd >= 0) all_.push_back({fd, events, 0});
  }

  /// Sleeps until something is ready, or for so many milliseconds; -1: for as long as it takes.
  void wait(int milliseconds) noexcept {
    if (poll(all_.data(), all_.size(), milliseconds) <= 0)
      for (pollfd& each : all_) each.revents = 0;
  }

  /// What is ready: POLLIN, POLLOUT, and POLLHUP and POLLERR unasked. 0 where `fd` was not added.
  [[nodiscard]] short ready(int fd) const noexcept {
    for (const pollfd& each : all_)
      if (each.fd == fd) return each.revents;
    return 0;
  }

 private:
  std::vector<pollfd> all_;
};

} // namespace vhost_user_balloon
