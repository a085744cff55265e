// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <nlohmann/json.hpp>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace qtest_driver {

[[nodiscard]] inline std::string hex(std::uint64_t n) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%" PRIx64, n);
  return text;
}

/// What was checked, and how it went: a line each, or members of a JSON object.
class steps {
 public:
  /// `title` is what each line begins with.
  steps(std::string title, bool is_json) : title_(std::move(title)), is_json_(is_json) {}

  /// `name` says what is to hold, and `seen` what was there; whether it held.
  bool check(bool holds, const std::string& name, const std::string& seen) {
    ++(holds ? passed_ : failed_);
    list_.push_back({{"name", name}, {"passed", holds}, {"seen", seen}});
    if (is_json_) return holds;
    const std::string line = title_ + ": " + name;
    if (holds)
      std::printf("ok   %s (%s)\n", line.c_str(), seen.c_str());
    else
      std::printf("FAIL %s: %s\n", line.c_str(), seen.c_str());
    std::fflush(stdout);
    return holds;
  }

  [[nodiscard]] int failed() const noexcept { return failed_; }
  /// The members that stand for the steps, added to `object`.
  void add_to(nlohmann::json& object) const {
    object["steps"] = list_;
    object["passed"] = passed_;
    object["failed"] = failed_;
  }

 private:
  std::string title_;
  bool is_json_;
  nlohmann::json list_ = nlohmann::json::array();
  int passed_ = 0, failed_ = 0;
};

} // namespace qtest_driver
