// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "host.hpp"
#include "text.hpp"

#include <ballast/balloon/protocol.hpp>

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <getopt.h>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace loopback {

inline constexpr const char* help_text = R"(Usage: loopback [OPTION...]

A balloon driver and a balloon device in one process: two threads, and between them a virtqueue in
memory they share. The balloon is inflated, the device gives its pages back to the kernel; then it
is deflated and every page is looked at.

  --memory SIZE  guest memory, all of it touched before the start (default: 1G)
  --target SIZE  how large the balloon gets (default: half of the guest memory)
  --json         one JSON object alone on standard output; everything else on standard error
  --help, -h     this text

SIZE is a number of bytes, or of KiB, MiB or GiB with a K, M or G behind it: a multiple of 4096.
SIGINT and SIGTERM (Ctrl-C) deflate the balloon, then the program ends by that signal.

The JSON object: memory_bytes, target_bytes, resident_before_bytes, resident_after_bytes,
actual_pages (of 4096 bytes, at the target), pages_per_second, statistics {name: value, in bytes or
events since boot}, verdict {level, rule, because, rates {name: per second}}.

Exit status: 0 the resident memory fell by the size of the balloon, and every page came back usable;
1 it did not; 2 a bad option, or a size that is not possible on this machine.
)";

struct options {
  std::uint64_t memory = std::uint64_t{1} << 30; ///< bytes
  std::uint64_t target = 0;                      ///< bytes
  bool is_json = false;
};

[[noreturn]] inline void usage_error(const std::string& why) {
  std::fprintf(stderr, "loopback: %s\n", why.c_str());
  std::exit(2);
}

/// Bytes; nothing where `text` is no size, or more than 64 bits.
[[nodiscard]] inline std::optional<std::uint64_t> parse_size(std::string_view text) noexcept {
  std::uint64_t n = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (failed != std::errc{}) return std::nullopt;
  const std::string_view unit(end, text.data() + text.size());
  const unsigned shift = unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : 0;
  if ((shift == 0 && !unit.empty()) || n > UINT64_MAX >> shift) return std::nullopt;
  return n << shift;
}

[[nodiscard]] inline std::uint64_t size_argument(const char* option, const char* text) {
  const auto size = parse_size(text);
  const std::string argument = std::string(option) + " " + text;
  if (!size)
    usage_error(argument + ": not a size below 2^64 in bytes, or with K, M or G behind it");
  if (*size % ballast::balloon::page_size != 0) usage_error(argument + ": not a multiple of 4096");
  return *size;
}

/// Whether these sizes are possible; `kept` bytes of the guest's memory never go into the balloon.
inline void check_sizes(const options& chosen, std::uint64_t kept) {
  const memory_bound bound = available_memory();
  const std::string memory = "--memory " + exact_size(chosen.memory);
  if (chosen.memory > bound.bytes)
    usage_error(memory + ": more than the " + exact_size(bound.bytes) + " " + bound.what);
  if (chosen.memory < kept)
    usage_error(memory + ": the driver needs " + exact_size(kept) + " for its queues");
  if (chosen.target > chosen.memory - kept)
    usage_error("--target " + exact_size(chosen.target) + ": more than " +
                exact_size(chosen.memory - kept) + ", which is " + memory + " less the " +
                exact_size(kept) + " of the driver's queues");
}

/// The command line. Does not come back from --help, nor from an error: exit status 2.
[[nodiscard]] inline options parse_options(int count, char** arguments, std::uint64_t kept) {
  static const option known[] = {{"memory", required_argument, nullptr, 'm'},
                                 {"target", required_argument, nullptr, 't'},
                                 {"json", no_argument, nullptr, 'j'},
                                 {"help", no_argument, nullptr, 'h'},
                                 {}};
  static char own_name[] = "loopback";
  if (count > 0) arguments[0] = own_name; // for getopt's messages
  options chosen;
  std::optional<std::uint64_t> target;
  for (int found = 0; (found = getopt_long(count, arguments, "h", known, nullptr)) != -1;) {
    switch (found) {
    case 'm': chosen.memory = size_argument("--memory", optarg); break;
    case 't': target = size_argument("--target", optarg); break;
    case 'j': chosen.is_json = true; break;
    case 'h': std::exit(std::fputs(help_text, stdout) < 0 || std::fflush(stdout) != 0 ? 1 : 0);
    default: std::exit(2); // getopt_long has said why, in one line
    }
  }
  if (optind < count) usage_error(std::string(arguments[optind]) + ": not an option; see --help");
  const std::uint64_t half = chosen.memory / 2 / host_page_size() * host_page_size();
  chosen.target = target.value_or(half);
  check_sizes(chosen, kept);
  return chosen;
}

} // namespace loopback
