// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "socket.hpp"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>

namespace qemu {

using json = nlohmann::json;

/// What a command returned, or why it did not.
struct qmp_answer {
  json value;
  std::string error; ///< one line; empty if there is a value

  explicit operator bool() const noexcept { return error.empty(); }
  /// The error behind something else in a line; nothing without one.
  [[nodiscard]] std::string trailer() const { return error.empty() ? error : ": " + error; }
};

/// The member `name` of an object, as text; empty where there is no such text.
[[nodiscard]] inline std::string text_in(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// The member `name` of an object, as a number; `otherwise` where there is none.
[[nodiscard]] inline std::uint64_t number_in(const json& object, const char* name,
                                             std::uint64_t otherwise = 0) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_unsigned() ? found->get<std::uint64_t>()
                                                              : otherwise;
}

/// The member `name` of an object, as an object; an empty one where there is none.
[[nodiscard]] inline json object_in(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_object() ? *found : json::object();
}

/// QEMU's monitor protocol: commands that are answered, and events that come on their own.
///
///     qmp monitor(std::move(socket));
///     if (auto answer = monitor.command("balloon", {{"value", 64 << 20}}); !answer) ...
///
/// QEMU: docs/interop/qmp-spec.txt.
class qmp {
 public:
  /// Waits for the greeting, and begins. Where that fails `error` says why.
  explicit qmp(descriptor socket) : lines_(std::move(socket)) {
    const auto greeting = receive(patience);
    if (greeting && !greeting->contains("QMP")) lines_.lose("not QMP: " + greeting->dump());
    if (const auto begun = command("qmp_capabilities"); !begun) lines_.lose(begun.error);
  }

  [[nodiscard]] bool is_open() const noexcept { return lines_.is_open(); }
  /// Why the connection was lost, in one line.
  [[nodiscard]] const std::string& error() const noexcept { return lines_.error(); }
  /// To wait for, beside other things; then `receive_events`.
  [[nodiscard]] int fd() const noexcept { return lines_.fd(); }

  qmp_answer command(const std::string& name, const json& arguments = json::object()) {
    const json request{{"execute", name}, {"arguments", arguments}, {"id", ++last_id_}};
    if (!lines_.send(request.dump() + '\n')) return {{}, name + ": " + error()};
    const auto until = clock::now() + patience;
    for (;;) {
      const auto answer = receive(std::chrono::ceil<milliseconds>(until - clock::now()));
      if (!answer) {
        lines_.lose("no answer to " + name);
        return {{}, name + ": " + error()};
      }
      if (take_if_event(*answer) || number_in(*answer, "id") != last_id_) continue;
      if (const auto failed = answer->find("error"); failed != answer->end())
        return {{}, name + ": " + text_in(*failed, "class") + ": " + text_in(*failed, "desc")};
      const auto value = answer->find("return");
      return {value == answer->end() ? json() : *value, {}};
    }
  }

  /// The next event that came, of a name or of any; nothing where there is none up to now.
  [[nodiscard]] std::optional<json> take_event(const std::string& name = {}) {
    receive_events();
    for (auto at = events_.begin(); at != events_.end(); ++at) {
      if (!name.empty() && text_in(*at, "event") != name) continue;
      json found = std::move(*at);
      events_.erase(at);
      return found;
    }
    return std::nullopt;
  }
  /// The next event of a name, or nothing where none comes in time.
  [[nodiscard]] std::optional<json> wait_for_event(const std::string& name, milliseconds time) {
    const auto until = clock::now() + time;
    for (;;) {
      if (auto found = take_event(name)) return found;
      if (!is_open() || clock::now() >= until) return std::nullopt;
      if (const auto line = receive(std::chrono::ceil<milliseconds>(until - clock::now())))
        (void)take_if_event(*line);
    }
  }
  /// Takes up what came; without waiting.
  void receive_events() {
    while (const auto line = receive(milliseconds(0))) (void)take_if_event(*line);
  }
  void forget_events() {
    receive_events();
    events_.clear();
  }

 private:
  static constexpr milliseconds patience{20'000};

  [[nodiscard]] std::optional<json> receive(milliseconds time) {
    const auto line = lines_.receive(time);
    if (!line) return std::nullopt;
    json parsed = json::parse(*line, nullptr, false);
    if (parsed.is_object()) return parsed;
    lines_.lose("not a JSON object: " + line->substr(0, 200));
    return std::nullopt;
  }

  [[nodiscard]] bool take_if_event(const json& line) {
    const bool is_event = line.contains("event");
    if (is_event) events_.push_back(line);
    return is_event;
  }

  line_socket lines_;
  std::deque<json> events_;
  std::uint64_t last_id_ = 0;
};

} // namespace qemu
