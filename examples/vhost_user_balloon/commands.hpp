// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "options.hpp"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <sstream>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

namespace vhost_user_balloon {

/// A line of standard input.
struct command {
  enum class kind : std::uint8_t {
    none,
    target,
    statistics,
    hint_start,
    hint_stop,
    quit,
    help,
    bad
  };

  kind what = kind::none;
  std::uint32_t pages = 0; ///< of `target`
  std::string why{};       ///< of `bad`
};

[[nodiscard]] inline command parse_command(const std::string& line) {
  std::istringstream text(line);
  std::vector<std::string> words;
  for (std::string word; text >> word;) words.push_back(std::move(word));
  if (words.empty()) return {};

  const auto bad = [](std::string why) {
    return command{.what = command::kind::bad, .why = std::move(why)};
  };
  const auto alone = [&](command::kind kind) {
    return words.size() == 1 ? command{.what = kind} : bad(words[0] + ": takes no argument");
  };
  if (words[0] == "stats") return alone(command::kind::statistics);
  if (words[0] == "quit") return alone(command::kind::quit);
  if (words[0] == "help") return alone(command::kind::help);
  if (words[0] == "hint") {
    if (words.size() == 2 && words[1] == "start") return {.what = command::kind::hint_start};
    if (words.size() == 2 && words[1] == "stop") return {.what = command::kind::hint_stop};
    return bad("hint: start or stop?");
  }
  if (words[0] == "target") {
    if (words.size() != 2) return bad("target: one SIZE, like 512M");
    command found{.what = command::kind::target};
    const std::string why = read_target(words[1], found.pages);
    return why.empty() ? found : bad("target " + why);
  }
  return bad(words[0].substr(0, 40) + ": not a command; there are " + commands_text);
}

/// Takes lines from a descriptor without ever waiting for one.
class line_input {
 public:
  static constexpr std::size_t line_max = 4096;

  explicit line_input(int fd) noexcept : fd_(fd) {}

  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int fd() const noexcept { return fd_; }

  /// Reads what poll() said is there: whole lines, the rest waits. A line that is too long is cut.
  [[nodiscard]] std::vector<std::string> take() {
    char piece[1024];
    const ssize_t got = ::read(fd_, piece, sizeof(piece));
    std::vector<std::string> lines;
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return lines;
    for (ssize_t i = 0; i < got; ++i) {
      if (piece[i] == '\n')
        lines.push_back(std::exchange(line_, {}));
      else if (line_.size() < line_max)
        line_ += piece[i];
    }
    if (got <= 0) {
      fd_ = -1; // its end, or the terminal has gone
      if (!line_.empty()) lines.push_back(std::exchange(line_, {}));
    }
    return lines;
  }

 private:
  int fd_;
  std::string line_;
};

} // namespace vhost_user_balloon
