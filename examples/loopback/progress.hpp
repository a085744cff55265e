// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "text.hpp"

#include <ballast/balloon/protocol.hpp>

#include <cstdint>
#include <cstdio>
#include <string>
#include <unistd.h>

namespace loopback {

/// How far a job on pages is, on standard error: a bar on a terminal, elsewhere four plain lines.
class progress {
 public:
  progress(const char* what, std::uint64_t pages) noexcept
      : what_(what), pages_(pages), is_terminal_(isatty(STDERR_FILENO) == 1) {
    if (is_terminal_) show(0);
  }
  ~progress() {
    if (is_terminal_) std::fputc('\n', stderr);
  }
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  void show(std::uint64_t done) {
    const auto percent = static_cast<int>(pages_ == 0 ? 100 : 100 * done / pages_);
    const int step = is_terminal_ ? 1 : 25;
    if (percent / step == shown_ / step) return;
    shown_ = percent;
    constexpr std::uint64_t size = ballast::balloon::page_size;
    const std::string amount = human_size(done * size) + " of " + human_size(pages_ * size);
    if (is_terminal_) {
      char bar[] = "..............................";
      for (int i = 0; i < percent * 30 / 100; ++i) bar[i] = '#';
      std::fprintf(stderr, "\r%s [%s] %3d %%  %s   ", what_, bar, percent, amount.c_str());
    } else {
      std::fprintf(stderr, "%s: %d %%, %s\n", what_, percent, amount.c_str());
    }
  }

 private:
  const char* what_;
  std::uint64_t pages_;
  bool is_terminal_;
  int shown_ = is_terminal_ ? -1 : 0;
};

} // namespace loopback
