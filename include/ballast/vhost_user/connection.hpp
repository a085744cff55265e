// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/message.hpp>
#include <ballast/vhost_user/protocol.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <span>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

namespace ballast::vhost_user {

/// One end of a Unix socket that carries messages and file descriptors. Never waits. Hosted.
class connection {
 public:
  connection() noexcept = default;
  explicit connection(file socket) noexcept : socket_(std::move(socket)) {}

  [[nodiscard]] bool is_open() const noexcept { return socket_.is_open(); }
  [[nodiscard]] int get() const noexcept { return socket_.get(); }
  void close() noexcept {
    next();
    socket_.close();
  }

  /// Reads on; true where a whole message is there now. Errors: `connection_closed`,
  /// `message_files` (more than any message has), those of `check_header`.
  [[nodiscard]] result<bool> receive() noexcept {
    while (received_ < needed()) {
      const result<std::size_t> got = receive_bytes(needed() - received_);
      if (!got) return got.error();
      if (*got == 0) return false;
      received_ += *got;
      if (received_ != sizeof(message_header)) continue;
      if (const auto checked = check_header(header()); !checked) return checked.error();
    }
    return true;
  }

  /// What was read of the message so far: all of it after `receive`.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return std::span(bytes_).first(received_);
  }
  [[nodiscard]] std::span<file> files() noexcept { return std::span(files_).first(file_count_); }
  /// Done with the message; what is left of its files closes.
  void next() noexcept {
    for (file& f : files()) f.close();
    received_ = file_count_ = 0;
  }

  /// Sends a message. Errors: `connection_closed`, `connection_stalled`.
  [[nodiscard]] result<void> send(std::uint32_t request, std::uint32_t flags,
                                  std::span<const std::byte> payload,
                                  int descriptor = -1) noexcept {
    std::byte out[sizeof(message_header) + payload_max];
    write_as(out, 0, message_header{request, flags, static_cast<std::uint32_t>(payload.size())});
    if (!payload.empty()) std::memcpy(out + sizeof(message_header), payload.data(), payload.size());
    iovec data{out, sizeof(message_header) + payload.size()};
    msghdr about{};
    about.msg_iov = &data;
    about.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
    if (descriptor >= 0) {
      about.msg_control = control;
      about.msg_controllen = sizeof(control);
      cmsghdr* const c = CMSG_FIRSTHDR(&about);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(c), &descriptor, sizeof(int));
    }
    ssize_t sent = 0;
    do sent = sendmsg(socket_.get(), &about, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    if (sent == static_cast<ssize_t>(data.iov_len)) return {};
    return sent >= 0 || errno == EAGAIN ? error::connection_stalled : error::connection_closed;
  }

 private:
  [[nodiscard]] message_header header() const noexcept {
    return read_as<message_header>(std::span(bytes_), 0);
  }
  [[nodiscard]] std::size_t needed() const noexcept {
    if (received_ < sizeof(message_header)) return sizeof(message_header);
    return sizeof(message_header) + header().size;
  }

  /// 0: nothing is there now.
  [[nodiscard]] result<std::size_t> receive_bytes(std::size_t count) noexcept {
    iovec data{bytes_ + received_, count};
    msghdr about{};
    about.msg_iov = &data;
    about.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(memory_slots_max * sizeof(int))];
    about.msg_control = control;
    about.msg_controllen = sizeof(control);
    ssize_t got = 0;
    do got = recvmsg(socket_.get(), &about, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return std::size_t{0};
      return error::connection_closed;
    }
    bool has_room = (about.msg_flags & MSG_CTRUNC) == 0;
    for (cmsghdr* c = CMSG_FIRSTHDR(&about); c != nullptr; c = CMSG_NXTHDR(&about, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      for (std::size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
        int descriptor = -1;
        std::memcpy(&descriptor, reinterpret_cast<const char*>(c) + at, sizeof(int));
        file received(descriptor);
        // Notifications never wait, whatever its sender made of it. Memory does not mind.
        if (const int flags = fcntl(descriptor, F_GETFL); flags >= 0)
          (void)fcntl(descriptor, F_SETFL, flags | O_NONBLOCK);
        if (file_count_ < memory_slots_max)
          files_[file_count_++] = std::move(received);
        else
          has_room = false;
      }
    }
    if (!has_room) return error::message_files;
    if (got == 0) return error::connection_closed;
    return static_cast<std::size_t>(got);
  }

  file socket_;
  file files_[memory_slots_max];
  std::size_t file_count_ = 0;
  std::size_t received_ = 0;
  std::byte bytes_[sizeof(message_header) + payload_max];
};

} // namespace ballast::vhost_user
