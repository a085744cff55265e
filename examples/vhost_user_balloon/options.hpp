// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "text.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/virtio/features.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <getopt.h>
#include <limits>
#include <string>
#include <sys/un.h>

namespace vhost_user_balloon {

inline constexpr const char* help_text = R"(Usage: vhost_user_balloon --socket PATH [OPTION...]

Serves a balloon device over vhost-user, to one guest after the other: waits at a Unix socket for a
VMM (the front end), gives back to this machine what the guest puts into the balloon, and asks for
statistics, out of which come verdicts on the memory pressure in the guest.

  --socket PATH       where front ends connect
  --target SIZE       how large the balloon is to be (default: 0)
  --stats-interval S  seconds from one request for statistics to the next; 0: none (default: 5)
  --hint              offer free page hinting: see the command hint
  --report            offer free page reporting: what the guest has free goes to this machine at once
  --poison            offer page poison: of a guest that fills free pages with a pattern, what it
                      reports is left alone
  --deflate-on-oom    a guest without memory may take pages out of the balloon
  --must-tell-host    the guest waits for this device before it uses what it takes out
  --packed            offer packed rings too, which most drivers then take
  --patience S        seconds without progress after which a target counts as given up: it is
                      reported, and the guest goes on trying; 0: never (default: 30)
  --control PATH      a socket that speaks QMP, to several clients at once: qmp_capabilities,
                      query-balloon, balloon, qom-list, qom-get and qom-set of
                      /machine/peripheral/balloon0 (guest-stats, guest-stats-polling-interval),
                      query-status, query-version, query-commands, quit; an event BALLOON_CHANGE
                      for each change. As in QEMU, "balloon" says how much memory stays
  --json              on standard output one JSON object a line; its member "event" says what it is
  --help, -h          this text; also what comes without any argument

SIZE is a number of bytes, or of KiB, MiB or GiB with a K, M or G behind it: a multiple of 4096.

Commands on standard input, which may end without an effect:
  target SIZE         how large the balloon is to be; of the guest's memory, not what is left of it
  stats               ask for statistics now, and print all of them
  hint start | stop   ask for the free pages (a migration would not send them); want no more of them
  quit                end; so do SIGINT and SIGTERM
  help                the commands

A file at PATH that is a socket nobody listens at is replaced, and removed at the end. The balloon
keeps its target when a front end goes, for the next one.

Exit status: 0 it was asked to end; 1 a socket can't be had; 2 a bad option.
)";

inline constexpr const char* commands_text =
    "target SIZE, stats, hint start, hint stop, quit, help; SIZE like 512M";

struct options {
  std::string socket;
  std::string control;                   ///< empty: none
  std::uint32_t target_pages = 0;        ///< of 4096 bytes
  std::uint32_t statistics_interval = 5; ///< seconds; 0: none
  std::uint32_t patience = 30;           ///< seconds; 0: for ever
  bool is_hinting = false;
  bool is_reporting = false;
  bool is_poisoning = false;
  bool is_deflating_on_oom = false;
  bool must_tell_host = false;
  bool is_packed = false;
  bool is_json = false;

  [[nodiscard]] ballast::feature_set offered() const noexcept {
    using namespace ballast::balloon;
    ballast::feature_set all{feature::stats_vq, ballast::feature::event_idx,
                             ballast::feature::indirect_desc};
    if (is_hinting) all.set(feature::free_page_hint);
    if (is_reporting) all.set(feature::page_reporting);
    if (is_poisoning) all.set(feature::page_poison);
    if (is_deflating_on_oom) all.set(feature::deflate_on_oom);
    if (must_tell_host) all.set(feature::must_tell_host);
    if (is_packed) all.set(ballast::feature::ring_packed);
    return all;
  }
};

[[noreturn]] inline void usage_error(const std::string& why) {
  (void)std::fprintf(stderr, "vhost_user_balloon: %s\n", why.c_str());
  std::exit(2);
}

/// Why `text` is no size of a balloon; empty, and `pages` set, where it is one.
[[nodiscard]] inline std::string read_target(const std::string& text, std::uint32_t& pages) {
  const auto size = parse_size(text);
  if (!size) return text + ": not a size below 2^64 in bytes, or with K, M or G behind it";
  if (*size % ballast::balloon::page_size != 0) return text + ": not a multiple of 4096";
  const auto found = ballast::balloon::pages_in(*size);
  if (!found) return text + ": more than a balloon holds, 16 TiB";
  pages = *found;
  return {};
}

[[nodiscard]] inline std::string path_argument(const char* option, const char* text) {
  std::string path = text;
  const std::string what = std::string(option) + " " + path;
  if (path.empty()) usage_error(what + ": not a path");
  if (path.size() >= sizeof(sockaddr_un::sun_path))
    usage_error(what + ": longer than the " + std::to_string(sizeof(sockaddr_un::sun_path) - 1) +
                " bytes of a socket's path");
  return path;
}

[[nodiscard]] inline std::uint32_t seconds_argument(const char* option, const char* text) {
  const auto seconds = parse_number(text, std::numeric_limits<std::uint32_t>::max());
  if (!seconds)
    usage_error(std::string(option) + " " + text + ": not a number of seconds below 2^32");
  return *seconds;
}

/// The command line. Does not come back from --help, nor from an error: exit status 2.
[[nodiscard]] inline options parse_options(int count, char** arguments) {
  static const option known[] = {{"socket", required_argument, nullptr, 's'},
                                 {"target", required_argument, nullptr, 't'},
                                 {"stats-interval", required_argument, nullptr, 'i'},
                                 {"hint", no_argument, nullptr, 'f'},
                                 {"report", no_argument, nullptr, 'r'},
                                 {"poison", no_argument, nullptr, 'o'},
                                 {"deflate-on-oom", no_argument, nullptr, 'd'},
                                 {"must-tell-host", no_argument, nullptr, 'm'},
                                 {"packed", no_argument, nullptr, 'p'},
                                 {"patience", required_argument, nullptr, 'w'},
                                 {"control", required_argument, nullptr, 'c'},
                                 {"json", no_argument, nullptr, 'j'},
                                 {"help", no_argument, nullptr, 'h'},
                                 {}};
  static char own_name[] = "vhost_user_balloon";
  if (count > 0) arguments[0] = own_name; // for getopt's messages
  const auto help = [] {
    std::exit(std::fputs(help_text, stdout) < 0 || std::fflush(stdout) != 0 ? 1 : 0);
  };
  if (count <= 1) help();
  options chosen;
  for (int found = 0; (found = getopt_long(count, arguments, "h", known, nullptr)) != -1;) {
    switch (found) {
    case 's': chosen.socket = path_argument("--socket", optarg); break;
    case 't':
      if (const auto why = read_target(optarg, chosen.target_pages); !why.empty())
        usage_error("--target " + why);
      break;
    case 'i': chosen.statistics_interval = seconds_argument("--stats-interval", optarg); break;
    case 'f': chosen.is_hinting = true; break;
    case 'r': chosen.is_reporting = true; break;
    case 'o': chosen.is_poisoning = true; break;
    case 'd': chosen.is_deflating_on_oom = true; break;
    case 'm': chosen.must_tell_host = true; break;
    case 'p': chosen.is_packed = true; break;
    case 'w': chosen.patience = seconds_argument("--patience", optarg); break;
    case 'c': chosen.control = path_argument("--control", optarg); break;
    case 'j': chosen.is_json = true; break;
    case 'h': help(); break;
    default: std::exit(2); // getopt_long has said why, in one line
    }
  }
  if (optind < count) usage_error(std::string(arguments[optind]) + ": not an option; see --help");
  if (chosen.socket.empty()) usage_error("--socket PATH is missing; see --help");
  if (chosen.socket == chosen.control) usage_error("--control: the same path as --socket");
  return chosen;
}

} // namespace vhost_user_balloon
