// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "free_blocks.hpp"
#include "guest_ram.hpp"
#include "host.hpp"
#include "text.hpp"

#include <ballast/balloon/protocol.hpp>

#include <bit>
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

A balloon driver and a balloon device in one process: two threads, and between them virtqueues in
memory they share. The balloon is inflated, the device gives its pages back to the kernel; then it
is deflated and every page is looked at.

  --memory SIZE   guest memory, all of it touched before the start (default: 1G)
  --target SIZE   how large the balloon gets (default: half of the guest memory)
  --packed        packed rings (default: split rings)
  --queue-size N  entries of each queue, 1 to 1024 (default: 128); without --packed a power of two.
                  --hint needs 2 of them, --report 32
  --in-order      the device returns buffers in the order they came in
  --hint          free page hinting, once the balloon has its size: what the guest hints, a
                  migration would not send
  --report        free page reporting, after that: the host takes back what the guest reports
  --poison        the guest's free pages hold 0xaa, before and after: the driver poisons what comes
                  back from the balloon, and what is reported is left alone
  --hugetlb       guest memory of huge pages of 2M, which come back as a whole once every page in
                  them is in the balloon; SIZE is a multiple of 2M then
  --json          one JSON object alone on standard output; everything else on standard error
  --help, -h      this text

SIZE is a number of bytes, or of KiB, MiB or GiB with a K, M or G behind it: a multiple of 4096.
SIGINT and SIGTERM (Ctrl-C) deflate the balloon, then the program ends by that signal. What is hinted
and reported is every other block of 2 MiB behind the balloon's pages; those between are in use.

The JSON object: memory_bytes, target_bytes, queue_format (split or packed), queue_size, in_order
(true or false), resident_counter (of /proc/self/smaps: Rss, or Private_Hugetlb for huge pages),
resident_before_bytes, resident_after_bytes (at the target), actual_pages (of 4096 bytes, at the
target), pages_per_second, statistics {name: value, in bytes or events since boot}, verdict {level,
rule, because, rates {name: per second}}. And, each with its option:
hint {free_bytes (that the guest has), hinted_bytes, dirty_before_bytes, dirty_after_bytes (to send)},
report {reported_bytes, given_back_bytes, left_alone_bytes, resident_before_bytes,
resident_after_bytes}, poison {value (of 4 bytes), poisoned_bytes (by the driver)}.

Exit status: 0 the resident memory fell by the size of the balloon and what was reported, what was
hinted and nothing else need not be sent, and every page came back usable, or with its poison; 1 it
was not so; 2 a bad option, or a size that is not possible on this machine.
)";

/// The most entries that --queue-size may ask for.
inline constexpr std::uint32_t queue_size_bound = 1024;

struct options {
  std::uint64_t memory = std::uint64_t{1} << 30; ///< bytes
  std::uint64_t target = 0;                      ///< bytes
  std::uint64_t kept = 0;                        ///< bytes at the start, for the driver's queues
  std::uint32_t queue_size = 128;
  bool is_packed = false;
  bool is_in_order = false;
  bool is_hinting = false;
  bool is_reporting = false;
  bool is_poisoned = false;
  bool is_huge = false;
  bool is_json = false;

  /// Of the pages that guest memory is made of.
  [[nodiscard]] std::uint64_t page_size() const noexcept {
    return is_huge ? huge_page_size : host_page_size();
  }
  /// What free pages hold, if it matters. Linux: PAGE_POISON, 0xaa.
  [[nodiscard]] std::optional<std::uint32_t> poison() const noexcept {
    return is_poisoned ? std::optional<std::uint32_t>(0xaaaa'aaaa) : std::nullopt;
  }
  /// Where free memory begins that does not go into the balloon; at the end where none is wanted.
  [[nodiscard]] std::uint64_t free_begin() const noexcept {
    return is_hinting || is_reporting ? kept + target : memory;
  }
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

[[nodiscard]] inline std::uint32_t queue_size_argument(std::string_view text) {
  std::uint32_t n = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (failed != std::errc{} || end != text.data() + text.size() || n == 0 || n > queue_size_bound)
    usage_error("--queue-size " + std::string(text) + ": not a number from 1 to " +
                std::to_string(queue_size_bound));
  return n;
}

/// Whether these sizes are possible.
inline void check_sizes(const options& chosen) {
  const std::string memory = "--memory " + exact_size(chosen.memory);
  const std::string target = "--target " + exact_size(chosen.target);
  if (chosen.memory % chosen.page_size() != 0 && chosen.is_huge)
    usage_error(memory + ": not a multiple of 2M, as --hugetlb needs");
  if (chosen.target % chosen.page_size() != 0 && chosen.is_huge)
    usage_error(target + ": not a multiple of 2M, as --hugetlb needs");
  const memory_bound bound = available_memory();
  // Free huge pages are not available memory: mmap says whether there are enough.
  if (chosen.memory > bound.bytes && !chosen.is_huge)
    usage_error(memory + ": more than the " + exact_size(bound.bytes) + " " + bound.what);
  if (chosen.memory < chosen.kept)
    usage_error(memory + ": the driver needs " + exact_size(chosen.kept) + " for its queues");
  if (chosen.target > chosen.memory - chosen.kept)
    usage_error(target + ": more than " + exact_size(chosen.memory - chosen.kept) + ", which is " +
                memory + " less the " + exact_size(chosen.kept) + " of the driver's queues");
  if ((chosen.is_hinting || chosen.is_reporting) &&
      free_blocks::count(chosen.free_begin(), chosen.memory) == 0)
    usage_error(std::string(chosen.is_hinting ? "--hint" : "--report") + ": " + target + " of " +
                memory + " leaves no block of 2M free");
}

inline void check_queue_size(const options& chosen) {
  const std::string size = "--queue-size " + std::to_string(chosen.queue_size);
  if (!chosen.is_packed && !std::has_single_bit(chosen.queue_size))
    usage_error(size + ": a split ring has a power of two of entries; --packed takes any number");
  using namespace ballast::balloon;
  const auto check_minimum = [&](bool is_chosen, const char* option, queue_kind kind) {
    if (is_chosen && chosen.queue_size < queue_size_min(kind))
      usage_error(size + ": " + option + " needs " + std::to_string(queue_size_min(kind)));
  };
  check_minimum(chosen.is_hinting, "--hint", queue_kind::free_page);
  check_minimum(chosen.is_reporting, "--report", queue_kind::reporting);
}

/// The command line; the driver needs `driver_bytes` for its queues. Does not come back from
/// --help, nor from an error: exit status 2.
[[nodiscard]] inline options parse_options(int count, char** arguments,
                                           std::uint64_t driver_bytes) {
  static const option known[] = {
      {"memory", required_argument, nullptr, 'm'}, {"target", required_argument, nullptr, 't'},
      {"packed", no_argument, nullptr, 'p'},       {"queue-size", required_argument, nullptr, 'q'},
      {"in-order", no_argument, nullptr, 'i'},     {"hint", no_argument, nullptr, 'f'},
      {"report", no_argument, nullptr, 'r'},       {"poison", no_argument, nullptr, 'o'},
      {"hugetlb", no_argument, nullptr, 'g'},      {"json", no_argument, nullptr, 'j'},
      {"help", no_argument, nullptr, 'h'},         {}};
  static char own_name[] = "loopback";
  if (count > 0) arguments[0] = own_name; // for getopt's messages
  options chosen;
  std::optional<std::uint64_t> target;
  for (int found = 0; (found = getopt_long(count, arguments, "h", known, nullptr)) != -1;) {
    switch (found) {
    case 'm': chosen.memory = size_argument("--memory", optarg); break;
    case 't': target = size_argument("--target", optarg); break;
    case 'p': chosen.is_packed = true; break;
    case 'q': chosen.queue_size = queue_size_argument(optarg); break;
    case 'i': chosen.is_in_order = true; break;
    case 'f': chosen.is_hinting = true; break;
    case 'r': chosen.is_reporting = true; break;
    case 'o': chosen.is_poisoned = true; break;
    case 'g': chosen.is_huge = true; break;
    case 'j': chosen.is_json = true; break;
    case 'h': std::exit(std::fputs(help_text, stdout) < 0 || std::fflush(stdout) != 0 ? 1 : 0);
    default: std::exit(2); // getopt_long has said why, in one line
    }
  }
  if (optind < count) usage_error(std::string(arguments[optind]) + ": not an option; see --help");
  chosen.kept = round_up(driver_bytes, chosen.page_size());
  chosen.target = target.value_or(chosen.memory / 2 / chosen.page_size() * chosen.page_size());
  check_queue_size(chosen);
  check_sizes(chosen);
  return chosen;
}

} // namespace loopback
