// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "socket.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace qemu {

/// What to start, and what it keeps of ours.
struct launch {
  std::vector<std::string> arguments = {}; ///< the program first; looked for in PATH
  std::vector<int> passed = {};            ///< descriptors it has too, under the same numbers
  int input = -1;                          ///< its standard input; -1: there is none
  int output = -1;                         ///< its standard output; -1: dropped
};

/// A program that runs beside this one, in a session of its own, and ends with it: also when this
/// process is killed. (More exactly, with the thread that started it: Linux, PR_SET_PDEATHSIG.)
class process {
 public:
  process() noexcept = default;
  process(process&& other) noexcept
      : id_(std::exchange(other.id_, -1)), status_(other.status_),
        errors_(std::move(other.errors_)), error_(std::move(other.error_)) {}
  process& operator=(process&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(status_, other.status_);
    std::swap(errors_, other.errors_);
    std::swap(error_, other.error_);
    return *this;
  }
  ~process() { kill(); }

  /// Starts it. Where that fails `error` says why.
  [[nodiscard]] static process start(launch what) {
    process made;
    made.errors_ = descriptor(memfd_create("errors", MFD_CLOEXEC));
    int report[2] = {-1, -1};
    if (!made.errors_.is_open() || pipe2(report, O_CLOEXEC) != 0) {
      made.error_ = std::strerror(errno);
      return made;
    }
    const descriptor from_child(report[0]);
    descriptor to_parent(report[1]);

    std::vector<char*> arguments; // made before the fork: after it there is no heap
    arguments.reserve(what.arguments.size() + 1);
    for (std::string& one : what.arguments) arguments.push_back(one.data());
    arguments.push_back(nullptr);
    const pid_t parent = getpid();
    made.id_ = fork();
    if (made.id_ == 0)
      run_child(what, arguments.data(), made.errors_.get(), to_parent.get(), parent);
    if (made.id_ < 0) {
      made.error_ = std::strerror(errno);
      return made;
    }
    to_parent.close();
    int failed = 0; // nothing comes where the program was started: the pipe closes
    if (read(from_child.get(), &failed, sizeof(failed)) == sizeof(failed)) {
      made.kill();
      made.error_ = what.arguments.at(0) + ": " + std::strerror(failed);
    }
    return made;
  }

  /// Why it was not started, in one line; empty if it was.
  [[nodiscard]] const std::string& error() const noexcept { return error_; }

  [[nodiscard]] pid_t id() const noexcept { return id_; }

  [[nodiscard]] bool is_running() noexcept { return id_ > 0 && !wait(milliseconds(0)); }

  /// The status it ended with, as of waitpid(2); nothing where it did not end in time.
  [[nodiscard]] std::optional<int> wait(milliseconds time) noexcept {
    const auto until = clock::now() + time;
    while (!status_ && id_ > 0) {
      int status = 0;
      const pid_t ended = waitpid(id_, &status, WNOHANG);
      if (ended == id_)
        status_ = status;
      else if (ended < 0 && errno != EINTR)
        status_ = -1; // somebody else has waited for it
      else if (clock::now() >= until)
        break;
      else
        std::this_thread::sleep_for(milliseconds(1));
    }
    return status_;
  }

  /// Ends it, and what it started, with SIGKILL; returns when it is gone.
  void kill() noexcept {
    if (id_ > 0 && !status_) {
      if (::kill(-id_, SIGKILL) != 0) ::kill(id_, SIGKILL);
      (void)wait(std::chrono::minutes(1));
    }
  }

  /// The end of what it wrote to its standard error.
  [[nodiscard]] std::string errors(std::size_t bytes_max = 4096) const {
    const off_t end = lseek(errors_.get(), 0, SEEK_END);
    const std::size_t n = end <= 0 ? 0 : std::min(static_cast<std::size_t>(end), bytes_max);
    std::string text(n, '\0');
    const ssize_t got = pread(errors_.get(), text.data(), n, end - static_cast<off_t>(n));
    text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  }

 private:
  /// Only calls that are allowed between fork and exec.
  [[noreturn]] static void run_child(const launch& what, char* const* arguments, int errors,
                                     int report, pid_t parent) noexcept {
    (void)setsid();
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1); // it ended before it could take us along
    const int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    const int input = what.input < 0 ? nothing : what.input;
    const int output = what.output < 0 ? nothing : what.output;
    bool is_ready = input >= 0 && output >= 0 && dup2(input, STDIN_FILENO) >= 0 &&
                    dup2(output, STDOUT_FILENO) >= 0 && dup2(errors, STDERR_FILENO) >= 0;
    for (const int fd : what.passed) is_ready = is_ready && fcntl(fd, F_SETFD, 0) == 0;
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, nullptr);
    if (is_ready) execvp(arguments[0], arguments);
    const int why = errno;
    (void)!write(report, &why, sizeof(why));
    _exit(127);
  }

  pid_t id_ = -1;
  std::optional<int> status_;
  descriptor errors_;
  std::string error_;
};

} // namespace qemu
