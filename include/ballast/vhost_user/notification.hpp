// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/message.hpp>
#include <ballast/vhost_user/protocol.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <poll.h>
#include <sys/types.h>
#include <unistd.h>
#include <utility>

namespace ballast::vhost_user {

/// Signals an eventfd, or a pipe: by exactly 8 bytes, as the other end reads them. False where it
/// is gone. One that is full has been signalled already. Never waits. Ignore SIGPIPE: the other end
/// of a pipe may close at any time.
inline bool signal(const file& to) noexcept {
  if (!to.is_open()) return true; // the other side polls
  pollfd ready{to.get(), POLLOUT, 0};
  (void)poll(&ready, 1, 0); // nothing is ready where it fails: EINTR, of a file that is full
  if ((ready.revents & (POLLERR | POLLNVAL)) != 0) return false;
  if ((ready.revents & POLLOUT) == 0) return true;
  const std::uint64_t one = 1;
  return write(to.get(), &one, sizeof(one)) == sizeof(one) || errno == EAGAIN;
}

/// Takes what was signalled; false where nothing will come any more.
inline bool take_signal(const file& from) noexcept {
  pollfd ready{from.get(), POLLIN, 0};
  if (poll(&ready, 1, 0) <= 0) return true;
  if ((ready.revents & POLLIN) == 0) return false;
  std::uint64_t count = 0;
  const ssize_t got = read(from.get(), &count, sizeof(count));
  return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

/// The channel over which a back end sends requests of its own: a socket, or with Linux's front end
/// a pipe that nobody answers at, so none of them asks for a reply. Never waits.
class back_end_channel {
 public:
  back_end_channel() noexcept = default;
  explicit back_end_channel(file to) noexcept : to_(std::move(to)) {}

  [[nodiscard]] bool is_open() const noexcept { return to_.is_open(); }
  void close() noexcept { to_.close(); }

  /// False where there is no room for it now; then it has not been sent. The channel closes where
  /// nobody is at its other end.
  template <class... Payload>
  [[nodiscard]] bool tell(back_end_request what, const Payload&... payload) noexcept {
    if (!to_.is_open()) return true;
    pollfd ready{to_.get(), POLLOUT, 0};
    (void)poll(&ready, 1, 0); // as in `signal`
    if ((ready.revents & (POLLERR | POLLNVAL)) != 0) {
      close();
      return true;
    }
    if ((ready.revents & POLLOUT) == 0) return false;
    constexpr std::size_t size = (sizeof(Payload) + ... + 0);
    std::byte out[sizeof(message_header) + size];
    write_as(out, 0,
             message_header{static_cast<std::uint32_t>(what), message_header::version,
                            static_cast<std::uint32_t>(size)});
    (write_as(out, sizeof(message_header), payload), ...);
    if (write(to_.get(), out, sizeof(out)) == static_cast<ssize_t>(sizeof(out))) return true;
    if (errno == EAGAIN) return false;
    close();
    return true;
  }

 private:
  file to_;
};

} // namespace ballast::vhost_user
