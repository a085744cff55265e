// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "text.hpp"
#include "vmm.hpp"

#include <ballast/balloon/pressure.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistic_table.hpp>
#include <ballast/balloon/statistics.hpp>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace loopback {

/// A round of free page hinting, in bytes.
struct hint_report {
  std::uint64_t free = 0;         ///< that the guest has
  std::uint64_t hinted = 0;       ///< as the device has counted
  std::uint64_t dirty_before = 0; ///< to be sent
  std::uint64_t dirty_after = 0;
};

/// Free page reporting, in bytes.
struct reporting_report {
  std::uint64_t free = 0;       ///< that the guest has
  std::uint64_t reported = 0;   ///< that came back from the device
  std::uint64_t given_back = 0; ///< by the device, to the host
  std::uint64_t resident_before = 0;
  std::uint64_t resident_after = 0;

  [[nodiscard]] std::uint64_t left_alone() const noexcept { return reported - given_back; }
  [[nodiscard]] std::int64_t fell_by() const noexcept {
    return static_cast<std::int64_t>(resident_before - resident_after);
  }
};

/// What a run found out, up to where the balloon had its size.
struct report {
  std::uint64_t memory_bytes = 0;
  std::uint64_t target_bytes = 0;
  negotiated agreed = {};
  const char* resident_counter = "";
  std::uint64_t resident_before = 0; ///< bytes
  std::uint64_t resident_after = 0;  ///< bytes
  std::uint32_t actual_pages = 0;
  std::uint64_t pages_per_second = 0;
  ballast::balloon::snapshot before = {};
  ballast::balloon::snapshot after = {};
  ballast::balloon::verdict verdict = {};
  std::optional<hint_report> hinting = {};
  std::optional<reporting_report> reporting = {};
  std::optional<std::uint64_t> poisoned = {}; ///< bytes, by the driver

  /// Whether the balloon got as far as its size.
  [[nodiscard]] bool is_inflated() const noexcept { return after.received_at != 0; }
  [[nodiscard]] std::uint64_t window() const noexcept { ///< nanoseconds
    return after.received_at - before.received_at;
  }
  [[nodiscard]] const char* queue_format() const noexcept {
    return agreed.is_packed ? "packed" : "split";
  }
};

/// Prints `"name": number` for each, with commas between them.
class json_numbers {
 public:
  void add(const char* name, std::uint64_t value) {
    std::printf("%s\"%s\": %" PRIu64, is_first_ ? "" : ", ", name, value);
    is_first_ = false;
  }

 private:
  bool is_first_ = true;
};

/// What options added: `, "name": {...}` for each.
inline void print_json_parts(const report& r) {
  if (r.hinting) {
    std::printf(", \"hint\": {");
    json_numbers numbers;
    numbers.add("free_bytes", r.hinting->free);
    numbers.add("hinted_bytes", r.hinting->hinted);
    numbers.add("dirty_before_bytes", r.hinting->dirty_before);
    numbers.add("dirty_after_bytes", r.hinting->dirty_after);
    std::printf("}");
  }
  if (r.reporting) {
    std::printf(", \"report\": {");
    json_numbers numbers;
    numbers.add("reported_bytes", r.reporting->reported);
    numbers.add("given_back_bytes", r.reporting->given_back);
    numbers.add("left_alone_bytes", r.reporting->left_alone());
    numbers.add("resident_before_bytes", r.reporting->resident_before);
    numbers.add("resident_after_bytes", r.reporting->resident_after);
    std::printf("}");
  }
  if (r.poisoned) {
    std::printf(", \"poison\": {");
    json_numbers numbers;
    numbers.add("value", r.agreed.poison);
    numbers.add("poisoned_bytes", *r.poisoned);
    std::printf("}");
  }
}

/// One object on standard output. All names are the library's: none needs an escape.
inline void print_json(const report& r) {
  json_numbers numbers;
  std::printf("{");
  numbers.add("memory_bytes", r.memory_bytes);
  numbers.add("target_bytes", r.target_bytes);
  numbers.add("queue_size", r.agreed.queue_size);
  numbers.add("resident_before_bytes", r.resident_before);
  numbers.add("resident_after_bytes", r.resident_after);
  numbers.add("actual_pages", r.actual_pages);
  numbers.add("pages_per_second", r.pages_per_second);
  std::printf(", \"queue_format\": \"%s\", \"in_order\": %s, \"resident_counter\": \"%s\"",
              r.queue_format(), r.agreed.is_in_order ? "true" : "false", r.resident_counter);

  std::printf(", \"statistics\": {");
  json_numbers statistics;
  for (const auto& row : ballast::balloon::statistic_table)
    if (r.after.has(row.tag)) statistics.add(row.name, r.after.value(row.tag));

  const ballast::balloon::verdict& v = r.verdict;
  const bool has_cause = v.because.what != ballast::balloon::cause::kind::nothing;
  const std::string because = has_cause ? std::string("\"") + name(v.because) + "\"" : "null";
  std::printf("}, \"verdict\": {\"level\": \"%s\", \"rule\": \"%s\", \"because\": %s, \"rates\": {",
              name(v.level), id(v.rule), because.c_str());
  json_numbers rates;
  for (const auto& row : ballast::balloon::statistic_table)
    if (v.rates[row.tag].is_known()) rates.add(row.name, v.rates[row.tag].per_second);
  std::printf("}}");
  print_json_parts(r);
  std::printf("}\n");
}

inline void print_size(const char* what, std::uint64_t bytes) {
  std::printf("  %-22s %12s %16" PRIu64 " bytes\n", what, human_size(bytes).c_str(), bytes);
}

inline void print_statistics(const report& r) {
  std::printf("\n%-22s %18s %17s %12s\n", "statistics", "value", "", "per second");
  for (const auto& row : ballast::balloon::statistic_table) {
    if (!r.after.has(row.tag)) continue;
    const std::uint64_t value = r.after.value(row.tag);
    const bool is_bytes = row.unit == ballast::balloon::statistic_unit::bytes;
    const ballast::balloon::change rate = r.verdict.rates[row.tag];
    std::printf("  %-20s %18" PRIu64 " %-6s %10s %12s\n", row.name, value,
                is_bytes ? "bytes" : "events", is_bytes ? human_size(value).c_str() : "",
                rate.is_known() ? std::to_string(rate.per_second).c_str() : "");
  }
}

inline void print_verdict(const report& r) {
  const ballast::balloon::verdict& v = r.verdict;
  std::printf("\nmemory pressure in a window of %.2f s: %s\n",
              static_cast<double>(r.window()) / 1e9,
              is_unknown(v.rule) ? "unknown" : name(v.level));
  std::printf("  rule                   %s (%s)\n", id(v.rule), name(v.rule));
  const bool has_cause = v.because.what != ballast::balloon::cause::kind::nothing;
  std::printf("  because of             %s\n",
              has_cause ? name(v.because) : "nothing: no stall, scan or kill");
  std::printf("  self-inflicted         %s\n",
              v.is_self_inflicted ? "yes: the balloon grew in this window" : "no");
  if (v.is_degraded)
    std::printf("  degraded               yes: this kernel lacks counters that decide\n");
}

inline void print_parts(const report& r) {
  if (r.hinting) {
    std::printf("\nfree page hinting\n");
    print_size("free", r.hinting->free);
    print_size("hinted", r.hinting->hinted);
    print_size("to send before", r.hinting->dirty_before);
    print_size("to send after", r.hinting->dirty_after);
  }
  if (r.reporting) {
    std::printf("\nfree page reporting\n");
    print_size("reported", r.reporting->reported);
    print_size("given back", r.reporting->given_back);
    print_size("left alone", r.reporting->left_alone());
    print_size("resident before", r.reporting->resident_before);
    print_size("resident after", r.reporting->resident_after);
  }
  if (r.poisoned) {
    std::printf("\npage poison\n");
    std::printf("  %-22s %12s 0x%08" PRIx32 "\n", "free pages hold", "", r.agreed.poison);
    print_size("poisoned by the driver", *r.poisoned);
  }
}

inline void print_text(const report& r) {
  std::printf("\nresident memory of the guest (%s)\n", r.resident_counter);
  print_size("before", r.resident_before);
  print_size("after", r.resident_after);
  std::printf("\nballoon\n");
  print_size("target", r.target_bytes);
  print_size("actual", ballast::balloon::bytes_of(r.actual_pages));
  std::printf("  %-22s %12s %16" PRIu64 " pages per second\n", "inflated at",
              (human_size(r.pages_per_second * ballast::balloon::page_size) + "/s").c_str(),
              r.pages_per_second);
  std::printf("  %-22s %12s %16" PRIu32 " entries%s\n", "queues", r.queue_format(),
              r.agreed.queue_size, r.agreed.is_in_order ? ", in order" : "");
  print_parts(r);
  print_statistics(r);
  print_verdict(r);
}

} // namespace loopback
