// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/vhost_user/file.hpp>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace ballast::vhost_user {

/// A Unix socket in the file system at which front ends connect. Hosted.
class listener {
 public:
  listener() noexcept = default;
  listener(const listener&) = delete;
  listener& operator=(const listener&) = delete;
  ~listener() { close(); }

  /// Begins to listen. A socket that nobody listens at any more is replaced.
  /// Errors: `buffer_too_small` (the path is longer than an address can be), `system_call_failed`.
  [[nodiscard]] result<void> open(const char* path) noexcept {
    close();
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::size_t length = std::strlen(path);
    if (length >= sizeof(address.sun_path)) return error::buffer_too_small;
    std::memcpy(address.sun_path, path, length);
    file made(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!made.is_open()) return error::system_call_failed;
    if (is_abandoned(address)) unlink(path);
    if (bind(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(made.get(), 1) != 0)
      return error::system_call_failed;
    socket_ = static_cast<file&&>(made);
    address_ = address;
    return {};
  }

  /// Stops listening and removes the socket.
  void close() noexcept {
    if (!socket_.is_open()) return;
    socket_.close();
    unlink(address_.sun_path);
  }

  [[nodiscard]] bool is_open() const noexcept { return socket_.is_open(); }
  /// Readable when somebody waits.
  [[nodiscard]] int get() const noexcept { return socket_.get(); }

  /// The next connection; not open if nobody waits.
  [[nodiscard]] file accept() noexcept {
    return file(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  }

 private:
  [[nodiscard]] static bool is_abandoned(const sockaddr_un& address) noexcept {
    const file probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    return probe.is_open() &&
           connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
               0 &&
           errno == ECONNREFUSED;
  }

  file socket_;
  sockaddr_un address_{};
};

} // namespace ballast::vhost_user
