// SPDX-License-Identifier: BSD-3-Clause
#include "guest_scenario.hpp"

#include <cstdlib>

namespace interop {

using namespace ballast::balloon;

bool checks::check(const std::string& what, bool holds, const std::string& otherwise) {
  std::printf("%s %s, %s: %s%s%s\n", holds ? "ok  " : "FAIL", name_.c_str(), feature_.c_str(),
              what.c_str(), holds || otherwise.empty() ? "" : ": ", holds ? "" : otherwise.c_str());
  std::fflush(stdout);
  has_failed_ |= !holds;
  return holds;
}

bool checks::check_equal(const std::string& what, std::uint64_t found, std::uint64_t expected) {
  return check(what, found == expected,
               std::to_string(found) + " and not " + std::to_string(expected));
}

bool checks::check_near(const std::string& what, std::uint64_t found, std::uint64_t expected,
                        std::uint64_t tolerance) {
  const std::uint64_t apart = found < expected ? expected - found : found - expected;
  return check(what + " (within " + std::to_string(tolerance / 1024) + " KiB)", apart <= tolerance,
               std::to_string(found) + " and not about " + std::to_string(expected));
}

guest_options guest_of(const set_up& from) {
  guest_options made{.kernel = from.kernel,
                     .directory = from.directory,
                     .memory = from.memory,
                     .kernel_options = from.kernel_options};
  if (from.interrupts == "intx") made.kernel_options += " pci=nomsi";
  if (from.transport == "legacy") made.kernel_options += " virtio_pci.force_legacy=1";
  return made;
}

pci_proxy::options device_of(const set_up& from, ballast::feature_set balloon) {
  pci_proxy::options made;
  made.device.offered = balloon.with(feature::page_poison); // and with it BARs of one size
  made.device.numbering = queue_numbering::by_negotiated;   // as Linux has it
  if (from.is_packed) made.device.offered.set(ballast::feature::ring_packed);
  made.bus.has_msix = from.interrupts != "no-msi-x";
  made.bus.is_transitional = from.transport != "modern";
  return made;
}

void check_messages(checks& to, const std::string& said) {
  const auto times = [&](const std::string& what) {
    unsigned n = 0;
    for (std::size_t at = said.find(what); at != std::string::npos; at = said.find(what, at + 1))
      ++n;
    return n;
  };
  for (const std::string bad :
       {"WARNING:", "BUG:", "Out of puff", "is not a head", "pagealloc: memory corruption"})
    to.check("the guest does not say " + bad, times(bad) == 0,
             times(bad) == 0 ? "" : said.substr(said.find(bad), 400));
  to.check_equal("its only traces are of programs killed", times("Call Trace"),
                 times("invoked oom-killer"));
}

scenario::scenario(const set_up& from, std::string name)
    : checks(std::move(name)), set_up_(from), is_6_1_(from.kernel.ends_with("/6.1")),
      guest_(guest_of(from)),
      server_(guest_.take_proxy(),
              {.send_message = [this](std::uint64_t address,
                                      std::uint32_t data) { guest_.send_message(address, data); },
               .set_line = [this](bool is_raised) { guest_.set_line(is_raised); }},
              device_of(from, {})) {
  server_.watch({guest_.shell()});
}

bool scenario::boots(const ballast::feature_set& offered) {
  server_.plug(device_of(set_up_, offered));
  if (!check("the guest boots", run_until([&] { return guest_.is_ready(); }, boot_time),
             guest_.error()))
    return false;
  return check_equal("the driver loads", static_cast<unsigned>(run("insmod $balloon")), 0) &&
         check("it starts", run_until([&] { return server_.bus().is_live(); }), text()) &&
         // Freed pages that a CPU keeps for itself are not in MemFree: let that be few.
         check_equal(
             "it is set up",
             static_cast<unsigned>(run("echo 1000 > /proc/sys/vm/percpu_pagelist_high_fraction")),
             0);
}

bool scenario::replug(const ballast::feature_set& offered) {
  check_device();
  std::string before = about("rebind");
  run("echo 1 > /sys/bus/pci/devices/0000:00:05.0/remove");
  const bool has_gone = !server_.bus().is_live();
  run("ls /sys/bus/virtio/devices");
  check("taken from its bus, the device is reset", has_gone && text().empty(), text());
  server_.plug(device_of(set_up_, offered));
  run("echo 1 > /sys/bus/pci/rescan");
  const bool is_live = check("put in again, it is found and started",
                             run_until([&] { return server_.bus().is_live(); }), text());
  about(std::move(before));
  return is_live;
}

int scenario::run(const std::string& line) {
  guest_.run(line);
  return run_until([&] { return guest_.has_answered(); }) ? guest_.status() : -1;
}

std::uint64_t scenario::ask_number(const std::string& line) {
  run(line);
  return std::strtoull(text().c_str(), nullptr, 0);
}

std::map<std::string, std::uint64_t> scenario::counters() {
  run("cat /proc/vmstat /proc/meminfo");
  return parse_numbers(text());
}

snapshot scenario::statistics() {
  ballast::actions due;
  // A driver that has just started leaves its buffer a little later.
  run_until([&] {
    due = device().request_statistics();
    return due.failure != ballast::error::no_statistics_buffer;
  });
  server_.perform(due);
  ballast::result<snapshot> got = ballast::error::queue_empty;
  run_until([&] {
    got = device().take_statistics(0);
    return got && got->is_solicited;
  });
  return got ? *got : snapshot{};
}

bool scenario::settles_at(std::uint32_t pages) {
  return run_until([&] { return device().actual() == pages && ram().pages() == pages; });
}

bool scenario::check_settles(const std::string& what, std::uint32_t pages) {
  return check(what, settles_at(pages),
               "the driver says " + std::to_string(device().actual()) + " pages, the device has " +
                   std::to_string(ram().pages()));
}

void scenario::check_device() {
  std::string before = about("end");
  const device_counters& counted = device().counters();
  check_equal("no page was bad", counted.bad_pages, 0);
  check_equal("every page was discarded", counted.discard_failures + counted.partial_pages, 0);
  check_equal("every buffer was whole", counted.trailing_bytes + counted.oversized_buffers, 0);
  check_equal("no hint and no report was bad",
              counted.ignored_hints + counted.free_page_hint_fails +
                  counted.free_page_report_fails + counted.misplaced_buffers,
              0);
  check_equal("never two statistics buffers", counted.duplicate_statistics, 0);
  about(std::move(before));
}

void scenario::check_clean() {
  check_device();
  about("end");
  check_equal("no page was inflated twice", ram().inflated_twice(), 0);
  check_equal("no page was deflated that was not inflated", ram().deflated_unknown(), 0);
  check("nothing failed", server_.failure() == ballast::error::none,
        ballast::name(server_.failure()));
  check_equal("every access was one of the device's", server_.counted().unclaimed, 0);
  run("dmesg");
  check_messages(*this, text());
  guest_.run("poweroff -f");
  run_until([] { return false; }, 20'000); // until QEMU has gone
  check("it powers off", guest_.ends(qemu::milliseconds(5000)));
}

} // namespace interop
