// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <getopt.h>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace migration {

inline constexpr const char* help_text = R"(Usage: migration [OPTION...]

A simulated pre-copy migration of a guest that writes to its memory all the while, with and without
free page hints. Device, driver and queue are real, and so is the memory; the link is not: it carries
1 MiB each millisecond. Half of the guest's memory is in use; it also allocates and frees some.

The rows: without hints; with hints, where the guest holds what it hinted until the device returned
the buffer; with hints that the guest may take back at once ("early"); and with a DONE that comes
200 ms late.

  --memory SIZE      memory of the guest (default: 256M); a multiple of 1M, 16M at least
  --dirty-rate SIZE  what the guest writes to, each second (default: 256M), in pages of 4096 bytes
  --seed NUMBER      of the random numbers (default: 1)
  --svg FILE         also draw what there is to send and what is hinted, over time (with gnuplot)
  --json             one JSON object alone on standard output
  --help, -h         this text

SIZE is a number of bytes, or of KiB, MiB or GiB with a K, M or G behind it.

The JSON object: memory_bytes, dirty_bytes_per_second, seed, runs [{name, bytes_sent, rounds,
milliseconds, downtime_milliseconds, bytes_hinted (not sent because of a hint), ignored_hints (they
came too late), blocks_reclaimed (hinted, and taken back before DONE), blocks_reclaimed_early (before
the device had looked), blocks_denied, held_milliseconds (from the end of the migration until the
guest has all blocks back), pages_lost}].

Exit status: 0 all memory that the guest uses is the same on both sides; 1 it is not, or a file can't
be written; 2 a bad option.
)";

struct options {
  std::uint64_t memory = std::uint64_t{256} << 20;     ///< bytes
  std::uint64_t dirty_rate = std::uint64_t{256} << 20; ///< bytes each second
  std::uint64_t seed = 1;
  std::string svg; ///< a file; empty: none
  bool is_json = false;
};

[[noreturn]] inline void usage_error(const std::string& why) {
  std::fprintf(stderr, "migration: %s\n", why.c_str());
  std::exit(2);
}

/// Nothing where `text` is no number, or more than 64 bits.
[[nodiscard]] inline std::optional<std::uint64_t> parse_number(std::string_view text,
                                                               bool has_unit) noexcept {
  std::uint64_t n = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (failed != std::errc{}) return std::nullopt;
  const std::string_view unit(end, text.data() + text.size());
  const unsigned shift = unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : 0;
  if ((shift == 0 && !unit.empty()) || (shift != 0 && !has_unit)) return std::nullopt;
  if (n > UINT64_MAX >> shift) return std::nullopt;
  return n << shift;
}

[[nodiscard]] inline std::uint64_t number_argument(const std::string& option, const char* text,
                                                   bool has_unit) {
  const auto n = parse_number(text, has_unit);
  if (!n) usage_error(option + " " + text + ": not a number below 2^64");
  return *n;
}

/// The command line. Does not come back from --help, nor from an error: exit status 2.
[[nodiscard]] inline options parse_options(int count, char** arguments) {
  static const option known[] = {{"memory", required_argument, nullptr, 'm'},
                                 {"dirty-rate", required_argument, nullptr, 'd'},
                                 {"seed", required_argument, nullptr, 's'},
                                 {"svg", required_argument, nullptr, 'g'},
                                 {"json", no_argument, nullptr, 'j'},
                                 {"help", no_argument, nullptr, 'h'},
                                 {}};
  static char own_name[] = "migration";
  if (count > 0) arguments[0] = own_name; // for getopt's messages
  options chosen;
  for (int found = 0; (found = getopt_long(count, arguments, "h", known, nullptr)) != -1;) {
    switch (found) {
    case 'm': chosen.memory = number_argument("--memory", optarg, true); break;
    case 'd': chosen.dirty_rate = number_argument("--dirty-rate", optarg, true); break;
    case 's': chosen.seed = number_argument("--seed", optarg, false); break;
    case 'g': chosen.svg = optarg; break;
    case 'j': chosen.is_json = true; break;
    case 'h': std::exit(std::fputs(help_text, stdout) < 0 || std::fflush(stdout) != 0 ? 1 : 0);
    default: std::exit(2); // getopt_long has said why, in one line
    }
  }
  if (optind < count) usage_error(std::string(arguments[optind]) + ": not an option; see --help");
  constexpr std::uint64_t mebi = 1 << 20;
  if (chosen.memory % mebi != 0 || chosen.memory < 16 * mebi || chosen.memory > 16384 * mebi)
    usage_error("--memory: a multiple of 1M from 16M to 16G");
  // As fast as the link, and the guest would never be done.
  if (chosen.dirty_rate > 512 * mebi) usage_error("--dirty-rate: at most 512M");
  return chosen;
}

} // namespace migration
