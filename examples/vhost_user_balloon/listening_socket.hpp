// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/vhost_user/file.hpp>

#include <cerrno>
#include <cstring>
#include <string>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>

namespace vhost_user_balloon {

using ballast::vhost_user::file;

/// A Unix socket that others connect to; its file goes with it.
class listening_socket {
 public:
  listening_socket() noexcept = default;
  listening_socket(const listening_socket&) = delete;
  listening_socket& operator=(const listening_socket&) = delete;
  ~listening_socket() {
    struct stat now{};
    // Another process may have put its own there.
    if (socket_.is_open() && stat(path_.c_str(), &now) == 0 && now.st_ino == made_.st_ino &&
        now.st_dev == made_.st_dev)
      (void)unlink(path_.c_str());
  }

  /// Why it can't listen there; empty where it can.
  [[nodiscard]] std::string open(const std::string& path) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, path.c_str(), path.size() + 1); // its length was checked
    const auto* const address = reinterpret_cast<const sockaddr*>(&name);
    if (const std::string why = make_room(path, address, sizeof(name)); !why.empty()) return why;
    file made(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!made.is_open() || bind(made.get(), address, sizeof(name)) != 0 ||
        stat(path.c_str(), &made_) != 0 || listen(made.get(), 16) != 0)
      return path + ": " + std::strerror(errno);
    socket_ = std::move(made);
    path_ = path;
    return {};
  }

  [[nodiscard]] int fd() const noexcept { return socket_.get(); }
  /// Who waits; not open where nobody does any more.
  [[nodiscard]] file accept() const noexcept {
    return file(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  }

 private:
  /// Removes what an earlier process left there, if that is a socket and nobody listens at it.
  [[nodiscard]] static std::string make_room(const std::string& path, const sockaddr* address,
                                             socklen_t size) {
    struct stat there{};
    if (lstat(path.c_str(), &there) != 0) return {};
    if (!S_ISSOCK(there.st_mode)) return path + ": there is a file already, and no socket";
    const file probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (connect(probe.get(), address, size) == 0 || errno != ECONNREFUSED)
      return path + ": another process listens there";
    if (unlink(path.c_str()) != 0) return path + ": " + std::strerror(errno);
    return {};
  }

  file socket_;
  std::string path_;
  struct stat made_{};
};

} // namespace vhost_user_balloon
