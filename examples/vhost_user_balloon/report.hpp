// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "text.hpp"

#include <ballast/balloon/pressure.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistic_table.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/virtio/features.hpp>

#include <nlohmann/json.hpp>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace vhost_user_balloon {

using json = nlohmann::ordered_json;

/// Says what happens, on standard output: as text, or as JSON objects.
class report {
 public:
  explicit report(bool is_json) noexcept : is_json_(is_json) {}

  /// `text`: a line or more without the last line's end; empty: nothing for people.
  void say(const char* event, const json& members, const std::string& text) const {
    if (is_json_) {
      json out{{"event", event}};
      out.update(members);
      print(out.dump(-1, ' ', false, json::error_handler_t::replace));
    } else if (!text.empty()) {
      print(text);
    }
  }
  void say(const char* event, const std::string& text) const { say(event, json::object(), text); }

  /// What went wrong; the program goes on.
  void complain(const std::string& text) const {
    if (is_json_) return say("error", {{"message", text}}, {});
    (void)std::fprintf(stderr, "vhost_user_balloon: %s\n", text.c_str());
  }

 private:
  // Whoever read it may have gone; the guest is served all the same.
  static void print(const std::string& line) {
    (void)std::puts(line.c_str());
    (void)std::fflush(stdout);
  }

  bool is_json_;
};

/// The names of features, without what all of them begin with: "STATS_VQ, EVENT_IDX".
[[nodiscard]] inline std::string names_of(const ballast::feature_set& set) {
  std::string all;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if (!set.test(bit)) continue;
    const char* const known = ballast::balloon::feature::name(bit) != nullptr
                                  ? ballast::balloon::feature::name(bit)
                                  : ballast::feature::name(bit);
    std::string name = known != nullptr ? known : "bit " + std::to_string(bit);
    if (const auto at = name.find("_F_"); at != std::string::npos) name.erase(0, at + 3);
    all += (all.empty() ? "" : ", ") + name;
  }
  return all.empty() ? "none" : all;
}

[[nodiscard]] inline json statistics_json(const ballast::balloon::snapshot& s) {
  json values = json::object(), others = json::object();
  for (const auto& row : ballast::balloon::statistic_table)
    if (s.has(row.tag)) values[row.name] = s.value(row.tag);
  for (const auto& other : s.unknown()) others[std::to_string(other.tag)] = other.value;
  return {{"statistics", std::move(values)},
          {"unknown", std::move(others)},
          {"actual_bytes", ballast::balloon::bytes_of(s.actual_pages)},
          {"target_bytes", ballast::balloon::bytes_of(s.target_pages)}};
}

/// The gauges in one line.
[[nodiscard]] inline std::string statistics_line(const ballast::balloon::snapshot& s) {
  std::string line =
      "statistics: balloon " + human_size(ballast::balloon::bytes_of(s.actual_pages));
  for (const auto& row : ballast::balloon::statistic_table)
    if (row.kind == ballast::balloon::statistic_kind::gauge && s.has(row.tag)) {
      std::string what = row.name;
      if (const auto at = what.find("-memory"); at != std::string::npos) what.erase(at);
      line += ", " + what + " " + human_size(s.value(row.tag));
    }
  return line;
}

/// All of them, a line each; with what counters did in the verdict's window.
[[nodiscard]] inline std::string statistics_table(const ballast::balloon::snapshot& s,
                                                  const ballast::balloon::verdict& v) {
  char line[120];
  (void)std::snprintf(line, sizeof(line), "%-22s %18s %17s %12s", "statistics", "value", "",
                      "per second");
  std::string all = line;
  for (const auto& row : ballast::balloon::statistic_table) {
    const bool is_bytes = row.unit == ballast::balloon::statistic_unit::bytes;
    const ballast::balloon::change rate = v.rates[row.tag];
    if (s.has(row.tag))
      (void)std::snprintf(line, sizeof(line), "\n  %-20s %18" PRIu64 " %-6s %10s %12s", row.name,
                          s.value(row.tag), is_bytes ? "bytes" : "events",
                          is_bytes ? human_size(s.value(row.tag)).c_str() : "",
                          rate.is_known() ? std::to_string(rate.per_second).c_str() : "");
    else
      (void)std::snprintf(line, sizeof(line), "\n  %-20s %18s", row.name, "not sent");
    all += line;
  }
  for (const auto& other : s.unknown()) {
    (void)std::snprintf(line, sizeof(line), "\n  tag %-16u %18" PRIu64, unsigned{other.tag},
                        other.value);
    all += line;
  }
  return all;
}

[[nodiscard]] inline std::string cause_of(const ballast::balloon::verdict& v) {
  const bool has_cause = v.because.what != ballast::balloon::cause::kind::nothing;
  return has_cause ? name(v.because) : "";
}

[[nodiscard]] inline json verdict_json(const ballast::balloon::verdict& v, std::uint64_t window) {
  json rates = json::object();
  for (const auto& row : ballast::balloon::statistic_table)
    if (v.rates[row.tag].is_known()) rates[row.name] = v.rates[row.tag].per_second;
  const std::string cause = cause_of(v);
  return {{"level", is_unknown(v.rule) ? "unknown" : name(v.level)},
          {"rule", id(v.rule)},
          {"name", name(v.rule)},
          {"because", cause.empty() ? json() : json(cause)},
          {"window_seconds", static_cast<double>(window) / 1e9},
          {"degraded", v.is_degraded},
          {"self_inflicted", v.is_self_inflicted},
          {"rates", std::move(rates)}};
}

[[nodiscard]] inline std::string verdict_line(const ballast::balloon::verdict& v,
                                              std::uint64_t window) {
  const std::string cause = cause_of(v);
  std::string line = "pressure:   " + std::string(is_unknown(v.rule) ? "unknown" : name(v.level)) +
                     ", rule " + id(v.rule) + " (" + name(v.rule) + "), because of " +
                     (cause.empty() ? "nothing" : cause) + ", in " + human_seconds(window);
  if (v.is_self_inflicted) line += "; the balloon grew";
  return line;
}

} // namespace vhost_user_balloon
