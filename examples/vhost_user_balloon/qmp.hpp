// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "qmp_input.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistic_table.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/version.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vhost_user_balloon {

using json = nlohmann::ordered_json;

/// A QMP answer that says why not. `kind` is one of QMP's error classes.
struct qmp_error {
  const char* kind = "GenericError";
  std::string text;
};

/// A command's arguments, taken out by name. The first that is wrong is the error.
class qmp_arguments {
 public:
  explicit qmp_arguments(const json& all) : all_(&all) {}

  [[nodiscard]] bool has(const char* name) const { return all_->contains(name); }
  [[nodiscard]] const json* any(const char* name) {
    known_.emplace_back(name);
    const auto found = all_->find(name);
    if (found != all_->end()) return &*found;
    fail("Parameter '" + std::string(name) + "' is missing");
    return nullptr;
  }
  [[nodiscard]] std::string string(const char* name) {
    const json* const value = any(name);
    if (value == nullptr) return {};
    if (const auto* const text = value->get_ptr<const std::string*>()) return *text;
    fail(wrong_type(name, "string"));
    return {};
  }
  [[nodiscard]] std::int64_t integer(const char* name) {
    const json* const value = any(name);
    if (value == nullptr) return 0;
    if (const auto n = integer_of(*value)) return *n;
    fail(wrong_type(name, "integer"));
    return 0;
  }
  /// Why they are not right; empty where they are. Call it behind the last one.
  [[nodiscard]] const std::string& check() {
    for (const auto& [name, value] : all_->items())
      if (std::find(known_.begin(), known_.end(), name) == known_.end())
        fail("Parameter '" + name + "' is unexpected");
    return error_;
  }

  [[nodiscard]] static std::optional<std::int64_t> integer_of(const json& value) {
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (!value.is_number_integer()) return std::nullopt;
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > most) return std::nullopt;
    return value.get<std::int64_t>();
  }
  [[nodiscard]] static std::string wrong_type(const std::string& name, const char* expected) {
    return "Invalid parameter type for '" + name + "', expected: " + expected;
  }

 private:
  void fail(std::string why) {
    if (error_.empty()) error_ = std::move(why);
  }

  const json* all_;
  std::vector<std::string> known_;
  std::string error_;
};

/// What QMP's commands say of and do to a balloon, the part that managers use, in QEMU's words.
///
/// `Balloon`: `guest_memory()` (bytes; 0: no guest yet), `actual_pages()`, `set_target(pages)`,
/// `statistics()`, `statistics_time()` (seconds since 1970), `statistics_interval()`,
/// `set_statistics_interval(seconds)`, `offers(bit)`, `is_running()`, `quit()`.
/// QEMU: "QEMU QMP Reference Manual"; "Virtio balloon memory statistics".
template <class Balloon> class qmp_session {
 public:
  explicit qmp_session(Balloon& balloon) noexcept : balloon_(&balloon) {}

  [[nodiscard]] static json greeting() {
    return {{"QMP", {{"version", version()}, {"capabilities", json::array()}}}};
  }

  /// Whether the client has said that it knows what it talks to; before that it gets no events.
  [[nodiscard]] bool is_negotiated() const noexcept { return is_negotiated_; }

  [[nodiscard]] json answer(const qmp_message& message) {
    if (message.error != nullptr) return failure({.text = message.error}, nullptr);
    const json in = json::parse(message.text, nullptr, false);
    if (in.is_discarded()) return failure({.text = "JSON parse error"}, nullptr);
    if (!in.is_object()) return failure({.text = "QMP input must be a JSON object"}, nullptr);
    const auto id = in.find("id");
    const json* const has_id = id != in.end() ? &*id : nullptr;

    error_.reset();
    json value = execute(in);
    if (error_) return failure(*error_, has_id);
    json out{{"return", std::move(value)}};
    if (has_id != nullptr) out["id"] = *has_id;
    return out;
  }

 private:
  using arguments = qmp_arguments;
  static constexpr const char* device_path = "/machine/peripheral/balloon0";
  static constexpr const char* device_type = "virtio-balloon-device";

  struct command {
    const char* name;
    json (qmp_session::*run)(arguments);
  };
  /// All of them. A function, since the class is whole in its body only.
  [[nodiscard]] static std::span<const command> commands() noexcept {
    using self = qmp_session;
    static constexpr command all[] = {
        {"qmp_capabilities", &self::qmp_capabilities},
        {"query-balloon", &self::query_balloon},
        {"balloon", &self::balloon},
        {"qom-list", &self::qom_list},
        {"qom-get", &self::qom_get},
        {"qom-set", &self::qom_set},
        {"query-status", &self::query_status},
        {"query-version", &self::query_version},
        {"query-commands", &self::query_commands},
        {"quit", &self::quit},
    };
    return all;
  }

  [[nodiscard]] static json version() {
    return {{"qemu",
             {{"micro", BALLAST_VERSION_PATCH},
              {"minor", BALLAST_VERSION_MINOR},
              {"major", BALLAST_VERSION_MAJOR}}},
            {"package", "Ballast"}};
  }

  [[nodiscard]] static json failure(const qmp_error& why, const json* id) {
    json out{{"error", {{"class", why.kind}, {"desc", why.text}}}};
    if (id != nullptr) out["id"] = *id;
    return out;
  }

  json fail(std::string why, const char* kind = "GenericError") {
    error_ = qmp_error{.kind = kind, .text = std::move(why)};
    return {};
  }

  json execute(const json& in) {
    const json none = json::object();
    const json* given = &none;
    const std::string* name = nullptr;
    for (const auto& [member, value] : in.items()) {
      const std::string what = "QMP input member '" + member + "' ";
      if (member == "execute") {
        name = value.template get_ptr<const std::string*>();
        if (name == nullptr) return fail(what + "must be a string");
      } else if (member == "arguments") {
        given = &value;
        if (!value.is_object()) return fail(what + "must be an object");
      } else if (member != "id") {
        return fail(what + "is unexpected");
      }
    }
    if (name == nullptr) return fail("QMP input lacks member 'execute'");
    return execute(*name, *given);
  }

  json execute(const std::string& name, const json& given) {
    const auto all = commands();
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const command& c) { return name == c.name; });
    const bool is_handshake = name == "qmp_capabilities";
    if (!is_negotiated_ && !is_handshake)
      return fail("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound");
    if (is_negotiated_ && is_handshake)
      return fail("Capabilities negotiation is already complete, command ignored",
                  "CommandNotFound");
    if (found == all.end())
      return fail("The command " + name + " has not been found", "CommandNotFound");
    return (this->*found->run)(arguments(given));
  }

  /// Whether all arguments were right; if not, that is the answer.
  bool accepts(arguments& given) {
    if (const std::string& why = given.check(); !why.empty()) {
      fail(why);
      return false;
    }
    return true;
  }

  json qmp_capabilities(arguments given) {
    // There is none to enable, but a client may say so.
    if (given.has("enable") && *given.any("enable") != json::array())
      return fail("Invalid parameter type for 'enable', expected: an empty array");
    if (!accepts(given)) return {};
    is_negotiated_ = true;
    return json::object();
  }

  json query_balloon(arguments given) {
    if (!accepts(given)) return {};
    if (balloon_->guest_memory() == 0) return no_balloon();
    return {{"actual", actual_bytes(*balloon_)}};
  }

  json balloon(arguments given) {
    const std::int64_t value = given.integer("value");
    if (!accepts(given)) return {};
    const std::uint64_t memory = balloon_->guest_memory();
    if (memory == 0) return no_balloon();
    if (value <= 0) return fail("Parameter 'target' expects a size");
    const std::uint64_t left = std::min(static_cast<std::uint64_t>(value), memory);
    const auto pages = ballast::balloon::pages_in(memory - left);
    balloon_->set_target(pages ? *pages : ballast::balloon::balloon_pages_max);
    return json::object();
  }
  json no_balloon() { return fail("No balloon device has been activated", "DeviceNotActive"); }

  json qom_list(arguments given) {
    const std::string path = given.string("path");
    if (!accepts(given)) return {};
    const json type = property("type", "string");
    if (path == "/" || path.empty()) return {type, property("machine", "child<machine>")};
    if (path == "/machine" || path == "machine")
      return {type, property("peripheral", "child<container>"),
              property("peripheral-anon", "child<container>")};
    if (path == "/machine/peripheral")
      return {type, property("balloon0", "child<" + std::string(device_type) + ">")};
    if (path == "/machine/peripheral-anon") return json::array({type});
    if (!is_device(path)) return no_device(path);
    return {type,
            property("guest-stats", "guest statistics"),
            property("guest-stats-polling-interval", "int"),
            property("deflate-on-oom", "bool"),
            property("free-page-hint", "bool"),
            property("free-page-reporting", "bool"),
            property("page-poison", "bool")};
  }
  [[nodiscard]] static json property(const char* name, const std::string& type) {
    return {{"name", name}, {"type", type}};
  }
  // A path that does not begin with "/" names an object anywhere, if it is the only one.
  [[nodiscard]] static bool is_device(const std::string& path) {
    return path == device_path || path == "balloon0" || path == "peripheral/balloon0";
  }
  json no_device(const std::string& path) {
    return fail("Device '" + path + "' not found", "DeviceNotFound");
  }
  json no_property(const std::string& name, const char* what) {
    return fail("Property '" + std::string(device_type) + "." + name + "' " + what);
  }

  json qom_get(arguments given) {
    namespace feature = ballast::balloon::feature;
    const std::string path = given.string("path"), name = given.string("property");
    if (!accepts(given)) return {};
    if (!is_device(path)) return no_device(path);
    if (name == "type") return device_type;
    if (name == "guest-stats") return guest_statistics();
    if (name == "guest-stats-polling-interval") return balloon_->statistics_interval();
    if (name == "deflate-on-oom") return balloon_->offers(feature::deflate_on_oom);
    if (name == "free-page-hint") return balloon_->offers(feature::free_page_hint);
    if (name == "free-page-reporting") return balloon_->offers(feature::page_reporting);
    if (name == "page-poison") return balloon_->offers(feature::page_poison);
    return no_property(name, "not found");
  }

  /// All the tags there are; what the guest did not report is -1, as the unsigned number of 64 bits
  /// that QEMU sends for it.
  [[nodiscard]] json guest_statistics() const {
    json values = json::object();
    const ballast::balloon::snapshot& s = balloon_->statistics();
    for (const auto& row : ballast::balloon::statistic_table)
      values[row.qemu_key] = s.value_or(row.tag, ballast::balloon::not_reported);
    return {{"stats", std::move(values)}, {"last-update", balloon_->statistics_time()}};
  }

  json qom_set(arguments given) {
    const std::string path = given.string("path"), name = given.string("property");
    const json* const value = given.any("value");
    if (!accepts(given)) return {};
    if (!is_device(path)) return no_device(path);
    if (name != "guest-stats-polling-interval") {
      const bool is_there = is_readable(name);
      return no_property(name, is_there ? "is not writable" : "not found");
    }
    const auto seconds = arguments::integer_of(*value);
    if (!seconds) return fail(arguments::wrong_type(name, "integer"));
    if (*seconds < 0) return fail("timer value must be greater than zero");
    if (*seconds > std::numeric_limits<std::uint32_t>::max()) return fail("timer value is too big");
    balloon_->set_statistics_interval(static_cast<std::uint32_t>(*seconds));
    return json::object();
  }
  [[nodiscard]] static bool is_readable(std::string_view name) {
    for (const char* known : {"type", "guest-stats", "deflate-on-oom", "free-page-hint",
                              "free-page-reporting", "page-poison"})
      if (name == known) return true;
    return false;
  }

  json query_status(arguments given) {
    if (!accepts(given)) return {};
    const bool is_running = balloon_->is_running();
    return {{"running", is_running},
            {"singlestep", false},
            {"status", is_running ? "running" : "prelaunch"}};
  }

  json query_version(arguments given) { return accepts(given) ? version() : json(); }

  json query_commands(arguments given) {
    if (!accepts(given)) return {};
    json all = json::array();
    for (const command& c : commands()) all.push_back({{"name", c.name}});
    return all;
  }

  json quit(arguments given) {
    if (!accepts(given)) return {};
    balloon_->quit();
    return json::object();
  }

  Balloon* balloon_;
  bool is_negotiated_ = false;
  std::optional<qmp_error> error_;
};

/// How much of the guest's memory is not in the balloon, in bytes: QEMU's "actual".
template <class Balloon> [[nodiscard]] std::uint64_t actual_bytes(const Balloon& balloon) {
  const std::uint64_t memory = balloon.guest_memory();
  return memory - std::min(memory, ballast::balloon::bytes_of(balloon.actual_pages()));
}

/// An event with its time.
[[nodiscard]] inline json qmp_event(const char* name, json data) {
  timespec now{};
  (void)clock_gettime(CLOCK_REALTIME, &now);
  return {{"timestamp", {{"seconds", now.tv_sec}, {"microseconds", now.tv_nsec / 1000}}},
          {"event", name},
          {"data", std::move(data)}};
}

} // namespace vhost_user_balloon
