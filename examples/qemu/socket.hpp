// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// Linux's descriptors and sockets, as far as one needs them to talk to QEMU.

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace qemu {

using clock = std::chrono::steady_clock;
using milliseconds = std::chrono::milliseconds;

/// Closes what it owns.
class descriptor {
 public:
  descriptor() noexcept = default;
  explicit descriptor(int fd) noexcept : fd_(fd) {}
  descriptor(descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~descriptor() { close(); }

  void close() noexcept {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_ = -1;
};

/// A connection between this process and one that it starts.
struct socket_pair {
  descriptor ours;
  descriptor theirs; ///< to be closed once the other process has it

  /// Not open where that fails: errno says why.
  [[nodiscard]] static socket_pair make() noexcept {
    int fds[2] = {-1, -1};
    (void)socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
    return {descriptor(fds[0]), descriptor(fds[1])};
  }
};

/// A connection to a socket in the file system; not open where there is none.
[[nodiscard]] inline descriptor connect_to(const std::string& path) noexcept {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return {};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  descriptor made(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return {};
  return made;
}

/// Text in lines over a stream socket. What was lost once stays lost.
class line_socket {
 public:
  explicit line_socket(descriptor socket) noexcept : socket_(std::move(socket)) {
    if (!socket_.is_open()) error_ = "there is no connection";
  }

  [[nodiscard]] bool is_open() const noexcept { return error_.empty(); }
  /// Why it was lost, in one line; empty while it is open.
  [[nodiscard]] const std::string& error() const noexcept { return error_; }
  /// To wait for, beside other things; look for a line that came already first: `receive({})`.
  [[nodiscard]] int fd() const noexcept { return socket_.get(); }

  /// Sends all of `text`; false where the connection is lost.
  bool send(std::string_view text) noexcept {
    while (is_open() && !text.empty()) {
      const ssize_t n = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (n >= 0)
        text.remove_prefix(static_cast<std::size_t>(n));
      else if (errno != EINTR)
        lose(std::strerror(errno));
    }
    return is_open();
  }

  /// The next line, without its end; nothing where none came in time, or the connection is lost.
  [[nodiscard]] std::optional<std::string> receive(milliseconds time) noexcept {
    const auto until = clock::now() + time;
    for (;;) {
      // Only the new part of the buffer can hold an end that was not seen before.
      const std::size_t end = received_.find('\n', searched_);
      if (end != std::string::npos) {
        std::string line = received_.substr(0, end);
        received_.erase(0, end + 1);
        searched_ = 0;
        if (!line.empty() && line.back() == '\r') line.pop_back();
        return line;
      }
      searched_ = received_.size();
      if (!is_open() || !wait(until)) return std::nullopt;
      char part[65536];
      const ssize_t n = ::recv(socket_.get(), part, sizeof(part), 0);
      if (n > 0)
        received_.append(part, static_cast<std::size_t>(n));
      else if (n == 0)
        lose("the other side closed the connection");
      else if (errno != EINTR)
        lose(std::strerror(errno));
    }
  }

  /// Gives the connection up.
  void lose(const std::string& why) noexcept {
    if (is_open()) error_ = why;
    socket_.close();
  }

 private:
  /// Whether there is something to receive, or the connection ended.
  [[nodiscard]] bool wait(clock::time_point until) const noexcept {
    for (;;) {
      const auto left = std::chrono::ceil<milliseconds>(until - clock::now()).count();
      pollfd one{socket_.get(), POLLIN, 0};
      const int ready = ::poll(&one, 1, left > 0 ? static_cast<int>(left) : 0);
      if (ready > 0) return true;
      if (ready == 0 || errno != EINTR) return false;
    }
  }

  descriptor socket_;
  std::string received_;
  std::size_t searched_ = 0; ///< bytes of it that hold no end of a line
  std::string error_;
};

} // namespace qemu
