// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vhost_user_balloon {

/// One message of a QMP client, or why it is none.
struct qmp_message {
  std::string text;            ///< perhaps JSON
  const char* error = nullptr; ///< null: none
};

/// Cuts what a client sends into messages.
///
/// One ends with its line, or with the last of its braces: managers send "{...}\r\n", "{...}\n" or
/// "{...}" alone. Whatever comes, at most `message_max` bytes of it are kept.
class qmp_input {
 public:
  static constexpr std::size_t message_max = 64 << 10;
  static constexpr std::size_t depth_max = 64; ///< of objects and arrays in each other

  /// What is whole after these bytes.
  [[nodiscard]] std::vector<qmp_message> feed(std::string_view bytes) {
    std::vector<qmp_message> whole;
    for (const char c : bytes) {
      if (c == '\n') {
        if (!is_skipping_ && !is_blank()) whole.push_back({std::exchange(text_, {})});
        begin_anew();
        continue;
      }
      if (is_skipping_) continue;
      if (text_.size() == message_max || (is_opening(c) && depth_ == depth_max)) {
        whole.push_back({{},
                         depth_ == depth_max ? "JSON parse error, nesting too deep"
                                             : "JSON parse error, message too long"});
        begin_anew();
        is_skipping_ = true; // the rest of its line
        continue;
      }
      text_ += c;
      if (!track(c)) continue;
      whole.push_back({std::exchange(text_, {})});
      begin_anew();
    }
    return whole;
  }

 private:
  void begin_anew() noexcept {
    text_.clear();
    depth_ = 0;
    is_skipping_ = is_string_ = is_escaped_ = false;
  }

  [[nodiscard]] bool is_blank() const noexcept {
    return text_.find_first_not_of(" \t\r") == std::string::npos;
  }
  [[nodiscard]] bool is_opening(char c) const noexcept {
    return !is_string_ && (c == '{' || c == '[');
  }

  /// Whether the outermost brace closes with `c`.
  [[nodiscard]] bool track(char c) noexcept {
    if (is_string_) {
      if (is_escaped_)
        is_escaped_ = false;
      else if (c == '\\')
        is_escaped_ = true;
      else
        is_string_ = c != '"';
      return false;
    }
    is_string_ = c == '"';
    if (is_opening(c)) ++depth_;
    if ((c != '}' && c != ']') || depth_ == 0) return false;
    return --depth_ == 0;
  }

  std::string text_;
  std::size_t depth_ = 0;
  bool is_skipping_ = false, is_string_ = false, is_escaped_ = false;
};

} // namespace vhost_user_balloon
