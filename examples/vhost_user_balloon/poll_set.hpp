// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <poll.h>
#include <vector>

namespace vhost_user_balloon {

/// What the program sleeps on, said anew before each sleep.
class poll_set {
 public:
  void clear() noexcept {
    all_.clear();
    longest_ = -1;
  }
  void add(int fd, short events) {
    if (fd >= 0) all_.push_back({fd, events, 0});
  }

  /// The next sleep is over after so many milliseconds.
  void sleep_at_most(int milliseconds) noexcept {
    if (longest_ < 0 || milliseconds < longest_) longest_ = milliseconds;
  }

  /// Sleeps until something is ready, or for so many milliseconds; -1: for as long as it takes.
  void wait(int milliseconds) noexcept {
    if (longest_ >= 0 && (milliseconds < 0 || milliseconds > longest_)) milliseconds = longest_;
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
  int longest_ = -1; ///< milliseconds
};

} // namespace vhost_user_balloon
