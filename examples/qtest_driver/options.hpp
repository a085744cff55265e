// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <getopt.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace qtest_driver {

inline constexpr char help_text[] =
    R"(usage: qtest_driver [OPTION]...

Drives the virtio-balloon device of QEMU with Ballast's balloon driver, from outside: QEMU's
processor sleeps, and this program does what a guest would do, over QEMU's qtest socket. Negotiates;
inflates, deflates, gives statistics, hints free pages to a migration, reports them; resets; and
breaks the rings to see the device notice. Prints a line for each step and what was seen.

  --transport NAME  mmio (default), mmio-legacy, pci, or pci-legacy: the legacy interface of a
                    transitional device
  --packed          packed queues, not split ones
  --no-event-idx    without VIRTIO_F_EVENT_IDX
  --memory HOW      shared (default): guest memory is mapped here; socket: each access to it is a
                    request to QEMU
  --intx            PCI: wait for the interrupt line INTA#, as the interrupt controller sees it,
                    and do not poll the ISR status
  --qemu PATH       the program to start (default qemu-system-x86_64)
  --json            print one JSON object: qemu (its version), transport, queue_format, event_idx,
                    memory, steps [{name, passed, seen}], passed and failed (how many)
  --help, -h        this text

Exit status: 0 all was as it should be; 1 it was not; 2 a bad option; 3 QEMU can't be started.
)";

enum class transport { mmio, mmio_legacy, pci, pci_legacy };

[[nodiscard]] constexpr const char* name(transport which) noexcept {
  switch (which) {
  case transport::mmio: return "mmio";
  case transport::mmio_legacy: return "mmio-legacy";
  case transport::pci: return "pci";
  case transport::pci_legacy: return "pci-legacy";
  }
  return "";
}

struct options {
  transport bus = transport::mmio;
  bool is_packed = false;
  bool has_event_idx = true;
  bool shares_memory = true;
  bool has_line = false;
  bool is_json = false;
  std::string program = "qemu-system-x86_64";

  [[nodiscard]] bool is_mmio() const noexcept {
    return bus == transport::mmio || bus == transport::mmio_legacy;
  }
  [[nodiscard]] bool is_legacy() const noexcept {
    return bus == transport::mmio_legacy || bus == transport::pci_legacy;
  }
  /// What tells one run from another.
  [[nodiscard]] std::string text() const {
    return std::string(name(bus)) + (is_packed ? ", packed" : ", split") +
           (has_event_idx ? "" : ", no event index") + (has_line ? ", INTx" : "") +
           (shares_memory ? ", shared memory" : ", memory over the socket");
  }
};

[[noreturn]] inline void usage_error(const std::string& why) {
  std::fprintf(stderr, "qtest_driver: %s\n", why.c_str());
  std::exit(2);
}

[[nodiscard]] inline transport transport_argument(std::string_view text) {
  for (const transport t :
       {transport::mmio, transport::mmio_legacy, transport::pci, transport::pci_legacy})
    if (text == name(t)) return t;
  usage_error("--transport " + std::string(text) + ": not mmio, mmio-legacy, pci or pci-legacy");
}

[[nodiscard]] inline bool memory_argument(std::string_view text) {
  if (text != "shared" && text != "socket")
    usage_error("--memory " + std::string(text) + ": neither shared nor socket");
  return text == "shared";
}

/// The command line. Does not come back from --help, nor from an error.
[[nodiscard]] inline options parse_options(int count, char** arguments) {
  static const option known[] = {{"transport", required_argument, nullptr, 't'},
                                 {"packed", no_argument, nullptr, 'p'},
                                 {"no-event-idx", no_argument, nullptr, 'e'},
                                 {"memory", required_argument, nullptr, 'm'},
                                 {"intx", no_argument, nullptr, 'i'},
                                 {"qemu", required_argument, nullptr, 'q'},
                                 {"json", no_argument, nullptr, 'j'},
                                 {"help", no_argument, nullptr, 'h'},
                                 {}};
  static char own_name[] = "qtest_driver";
  if (count > 0) arguments[0] = own_name; // for getopt's messages
  options chosen;
  for (int found = 0; (found = getopt_long(count, arguments, "h", known, nullptr)) != -1;) {
    switch (found) {
    case 't': chosen.bus = transport_argument(optarg); break;
    case 'p': chosen.is_packed = true; break;
    case 'e': chosen.has_event_idx = false; break;
    case 'm': chosen.shares_memory = memory_argument(optarg); break;
    case 'i': chosen.has_line = true; break;
    case 'q': chosen.program = optarg; break;
    case 'j': chosen.is_json = true; break;
    case 'h': std::exit(std::fputs(help_text, stdout) < 0 || std::fflush(stdout) != 0 ? 1 : 0);
    default: std::exit(2); // getopt_long has said why, in one line
    }
  }
  if (optind < count) usage_error(std::string(arguments[optind]) + ": not an option; see --help");
  if (chosen.is_packed && chosen.is_legacy())
    usage_error("--packed: a legacy device has split queues only");
  if (chosen.has_line && chosen.is_mmio()) usage_error("--intx: only with a PCI transport");
  return chosen;
}

} // namespace qtest_driver
