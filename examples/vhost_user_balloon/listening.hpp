// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/listener.hpp>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>

namespace vhost_user_balloon {

using ballast::vhost_user::file;

/// Why it can't listen there; empty where it can.
[[nodiscard]] inline std::string listen_at(ballast::vhost_user::listener& socket,
                                           const std::string& path) {
  const auto opened = socket.open(path.c_str());
  if (opened) return {};
  if (opened.error() == ballast::error::system_call_failed)
    return path + ": " +
           (errno == EADDRINUSE ? "another process listens there, or it is no socket"
                                : std::strerror(errno));
  return path + ": " + ballast::name(opened.error());
}

/// A rest after an accept that failed: whoever waits still waits, so that the socket stays readable
/// for as long as this process has no file to spare.
class accept_rest {
 public:
  void begin() noexcept { end_ = clock::now() + std::chrono::seconds(1); }
  void end() noexcept { end_ = {}; }
  /// Milliseconds; 0: it is over.
  [[nodiscard]] int left() const noexcept {
    const auto now = clock::now();
    if (now >= end_) return 0;
    return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(end_ - now).count());
  }

 private:
  using clock = std::chrono::steady_clock;
  clock::time_point end_{};
};

} // namespace vhost_user_balloon
