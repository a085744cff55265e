// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/vhost_user/file.hpp>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <sys/socket.h>
#include <sys/stat.h>
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

  /// Begins to listen. A socket that nobody listens at any more is replaced; another file is not.
  /// Errors: `buffer_too_small` (the path is longer than an address can be), `system_call_failed`
  /// (`errno` is EADDRINUSE where there is such a file, or somebody listens).
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
        stat(path, &made_) != 0 || listen(made.get(), backlog) != 0)
      return error::system_call_failed;
    socket_ = static_cast<file&&>(made);
    address_ = address;
    return {};
  }

  /// Stops listening and removes the socket, if it is still this one.
  void close() noexcept {
    if (!socket_.is_open()) return;
    socket_.close();
    struct stat now{};
    if (lstat(address_.sun_path, &now) == 0 && now.st_dev == made_.st_dev &&
        now.st_ino == made_.st_ino)
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
    struct stat there{};
    // Of a file that is no socket connect() says the same.
    if (lstat(address.sun_path, &there) != 0 || !S_ISSOCK(there.st_mode)) return false;
    const file probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    return probe.is_open() &&
           connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
               0 &&
           errno == ECONNREFUSED;
  }

  static constexpr int backlog = 16; ///< who may wait at a time

  file socket_;
  sockaddr_un address_{};
  struct stat made_{};
};

} // namespace ballast::vhost_user
