// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <csignal>
#include <sys/signalfd.h>
#include <unistd.h>

namespace loopback {

/// Keeps SIGINT and SIGTERM from ending the program, as a descriptor to poll instead. Threads that
/// are started later inherit that.
class signals {
 public:
  signals() noexcept {
    sigemptyset(&held_);
    for (const int number : {SIGINT, SIGTERM}) {
      struct sigaction now{};
      sigaction(number, nullptr, &now);
      if (now.sa_handler != SIG_IGN) sigaddset(&held_, number); // as under nohup
    }
    pthread_sigmask(SIG_BLOCK, &held_, nullptr);
    fd_ = signalfd(-1, &held_, SFD_CLOEXEC);
  }
  ~signals() {
    if (is_open()) close(fd_);
    let_through();
  }
  signals(const signals&) = delete;
  signals& operator=(const signals&) = delete;

  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int fd() const noexcept { return fd_; }

  /// From here on a signal ends the program; so does one that came and was not taken.
  void let_through() noexcept { pthread_sigmask(SIG_UNBLOCK, &held_, nullptr); }

  /// The number of the signal that came.
  [[nodiscard]] int take() const noexcept {
    signalfd_siginfo came{};
    return read(fd_, &came, sizeof(came)) == sizeof(came) ? static_cast<int>(came.ssi_signo)
                                                          : SIGINT;
  }

 private:
  sigset_t held_{};
  int fd_ = -1;
};

} // namespace loopback
