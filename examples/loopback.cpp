// SPDX-License-Identifier: BSD-3-Clause
//
// A balloon device and a balloon driver that share guest memory in one process: the whole data
// path, with real pages, a real virtqueue between two threads, and real statistics. --help explains
// the options; the parts are in loopback/.

#include "loopback/back_end.hpp"
#include "loopback/doorbell.hpp"
#include "loopback/free_blocks.hpp"
#include "loopback/guest.hpp"
#include "loopback/guest_pages.hpp"
#include "loopback/guest_ram.hpp"
#include "loopback/host.hpp"
#include "loopback/machine.hpp"
#include "loopback/options.hpp"
#include "loopback/page_words.hpp"
#include "loopback/progress.hpp"
#include "loopback/report.hpp"
#include "loopback/signals.hpp"
#include "loopback/text.hpp"
#include "loopback/vmm.hpp"

#include <ballast/balloon/pressure.hpp>
#include <ballast/balloon/protocol.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

using namespace loopback;
using ballast::balloon::page_size;

/// What went wrong; the run ends with an error if anything did.
class complaints {
 public:
  void add(const std::string& what) {
    std::fprintf(stderr, "loopback: %s\n", what.c_str());
    ++count_;
  }
  void add_if(bool is_wrong, const std::string& what) {
    if (is_wrong) add(what);
  }
  [[nodiscard]] bool are_none() const { return count_ == 0; }

 private:
  int count_ = 0;
};

void touch(guest_pages& pages, const free_blocks& blocks) {
  progress bar("touching ", pages.count());
  for (std::size_t i = 0; i < pages.count();) {
    pages.fill(i);
    bar.show(++i);
  }
  blocks.poison();
}

/// From an empty balloon to one of the target's size, with statistics before and after.
ending inflate(machine& both, const guest_ram& ram, report& to) {
  if (const ending e = both.start(); e != ending::done) return e;
  to.agreed = both.agreed();
  if (const ending e = both.read_statistics(to.before); e != ending::done) return e;

  const auto pages = static_cast<std::uint32_t>(to.target_bytes / page_size);
  const auto begin = monotonic::now();
  {
    progress bar("inflating", pages);
    const ending e = both.resize(pages, [&](std::uint32_t actual) { bar.show(actual); });
    if (e != ending::done) return e;
  }
  const std::chrono::duration<double> took = monotonic::now() - begin;
  to.pages_per_second = pages == 0 ? 0 : static_cast<std::uint64_t>(pages / took.count());
  to.actual_pages = both.actual();
  to.resident_after = resident_bytes(ram).value_or(0);

  // A verdict needs a window: at least a second from the first statistics.
  const auto since = std::chrono::nanoseconds(nanoseconds_now() - to.before.received_at);
  if (const ending e = both.serve_for(std::chrono::seconds(1) - since); e != ending::done) return e;
  if (const ending e = both.read_statistics(to.after); e != ending::done) return e;
  to.verdict = classify(ballast::balloon::rule_set::total, to.before, to.after, to.window());
  return ending::done;
}

ending deflate(machine& both, std::uint32_t pages) {
  progress bar("deflating", pages);
  return both.resize(0, [&](std::uint32_t actual) { bar.show(pages - std::min(actual, pages)); });
}

void check_agreed(const negotiated& found, const options& chosen, complaints& wrong) {
  wrong.add_if(!found.is_all_offered, "the driver did not accept every feature that was offered");
  wrong.add_if(found.is_packed != chosen.is_packed, "the queues have the other format");
  wrong.add_if(found.is_in_order != chosen.is_in_order, "IN_ORDER is not as it was asked for");
  wrong.add_if(found.queue_size != chosen.queue_size,
               "the queues have " + std::to_string(found.queue_size) + " entries");
  wrong.add_if(found.poison != chosen.poison().value_or(0), "the device has another poison");
}

void check_fall(std::int64_t fell, std::uint64_t expected, std::uint64_t tolerance,
                const char* what, complaints& wrong) {
  wrong.add_if(std::abs(fell - static_cast<std::int64_t>(expected)) >
                   static_cast<std::int64_t>(tolerance),
               "the resident memory fell by " + std::to_string(fell) + " bytes, not by the " +
                   std::to_string(expected) + what);
}

void check_inflated(const report& r, complaints& wrong) {
  check_fall(static_cast<std::int64_t>(r.resident_before - r.resident_after), r.target_bytes,
             std::max<std::uint64_t>(r.target_bytes / 50, 2 << 20), " of the target", wrong);
  wrong.add_if(ballast::balloon::bytes_of(r.actual_pages) != r.target_bytes,
               "the balloon has " + std::to_string(r.actual_pages) + " pages, not the " +
                   std::to_string(r.target_bytes / page_size) + " of the target");
}

void check_hinted(const hint_report& h, const back_end& host, const guest_sources& sources,
                  std::uint64_t memory_bytes, complaints& wrong) {
  wrong.add_if(h.hinted != h.free, std::to_string(h.hinted) + " bytes were hinted, not the " +
                                       std::to_string(h.free) + " that are free");
  std::uint64_t others = 0;
  for (std::uint32_t pfn = 0; pfn < memory_bytes / page_size; ++pfn)
    others += host.is_dirty(pfn) == sources.contains(pfn);
  wrong.add_if(others != 0,
               std::to_string(others) + " pages are free and to be sent, or in use and not");
}

void check_reported(const reporting_report& r, const options& chosen, complaints& wrong) {
  wrong.add_if(r.reported != r.free, std::to_string(r.reported) + " bytes were reported, not the " +
                                         std::to_string(r.free) + " that are free");
  const std::uint64_t expected = chosen.is_poisoned ? 0 : r.free;
  wrong.add_if(r.given_back != expected, std::to_string(r.given_back) +
                                             " bytes were given back, not " +
                                             std::to_string(expected));
  check_fall(r.fell_by(), expected, r.free / 50, " of the report", wrong);
}

void check_device(const ballast::balloon::device_counters& did,
                  const ballast::host::discard_counters& host, complaints& wrong) {
  wrong.add_if(did.discard_failures != 0,
               "giving memory back failed " + std::to_string(did.discard_failures) + " times");
  wrong.add_if(host.failed_populates != 0, "there are no free huge pages any more for the guest");
  wrong.add_if(did.partial_pages != 0,
               std::to_string(did.partial_pages) + " pages were no whole pages of the host");
  wrong.add_if(did.bad_pages != 0,
               std::to_string(did.bad_pages) + " pages were not in guest memory");
}

void check_pages(const page_check& found, complaints& wrong) {
  const auto expect_none = [&](std::uint64_t pages, const char* what) {
    wrong.add_if(pages != 0, std::to_string(pages) + " pages " + what);
  };
  expect_none(found.damaged, "were never given to the host, and lost their contents");
  expect_none(found.kept, "were given to the host, and kept their contents");
  expect_none(found.unpoisoned, "are free, and don't hold the poison");
  expect_none(found.unusable, "came back and don't hold what is written to them");
  expect_none(found.missing, "went to the driver and did not come back");
  expect_none(found.misplaced, "came back that the driver did not have");
}

void flush_output(complaints& wrong) {
  if (std::fflush(stdout) != 0) wrong.add(std::string("standard output: ") + std::strerror(errno));
}

/// What a guest and its host are made of.
struct parts {
  const options& chosen;
  const guest_ram& ram;
  const back_end& host;
  const guest_sources& sources;
};

/// What a migration would not have to send.
ending hint(machine& both, const parts& with, report& to, complaints& wrong) {
  if (const ending e = both.hint(); e != ending::done) return e;
  const hint_report h{.free = with.sources.bytes(),
                      .hinted = both.counters().free_page_hint_freed,
                      .dirty_before = to.memory_bytes,
                      .dirty_after = with.host.dirty_bytes()};
  check_hinted(h, with.host, with.sources, to.memory_bytes, wrong);
  to.hinting = h;
  return ending::done;
}

/// What the host gets beside the balloon.
ending report_free(machine& both, const parts& with, report& to, complaints& wrong) {
  if (const ending e = both.report(); e != ending::done) return e;
  const reporting_report r{.free = with.sources.bytes(),
                           .reported = with.sources.reported_bytes(),
                           .given_back = both.counters().free_page_report_freed,
                           .resident_before = to.resident_after,
                           .resident_after = resident_bytes(with.ram).value_or(0)};
  check_reported(r, with.chosen, wrong);
  to.reporting = r;
  return ending::done;
}

/// The balloon there and back, and what the options add. Whether it went all the way; what was not
/// right is in `wrong`.
bool exercise(machine& both, const parts& with, report& found, complaints& wrong) {
  ending e = inflate(both, with.ram, found);
  if (e == ending::done) {
    check_agreed(found.agreed, with.chosen, wrong);
    check_inflated(found, wrong);
  }
  if (e == ending::done && with.chosen.is_hinting) e = hint(both, with, found, wrong);
  if (e == ending::done && with.chosen.is_reporting) e = report_free(both, with, found, wrong);
  if (e == ending::done) {
    e = deflate(both, found.actual_pages);
    check_device(both.counters(), with.host.counters(), wrong);
  }
  if (e == ending::interrupted) both.interrupt();
  if (e != ending::done) wrong.add(both.reason(e));
  return e == ending::done;
}

int run(const options& chosen) {
  const guest_ram ram(chosen.memory, chosen.page_size());
  if (!ram.is_mapped())
    usage_error("--memory " + exact_size(chosen.memory) + ": " +
                (chosen.is_huge ? missing_huge_pages(chosen.memory) : std::strerror(errno)));
  back_end host(ram);
  guest_sources sources(ram, chosen.free_begin(), chosen.poison());
  guest_pages pages(ram, static_cast<std::uint32_t>(chosen.kept / page_size), sources,
                    chosen.poison());
  std::memset(ram.data(), 0, chosen.kept);
  touch(pages, sources);

  complaints wrong;
  report found{.memory_bytes = chosen.memory,
               .target_bytes = chosen.target,
               .resident_counter = resident_counter(ram)};
  doorbells bells;
  signals inbox;
  const auto before = resident_bytes(ram);
  wrong.add_if(!bells.are_open() || !inbox.is_open(), "no eventfd or signalfd to be had");
  wrong.add_if(!before, "the guest's memory is not in /proc/self/smaps");
  if (host.state() != ballast::error::none)
    wrong.add(std::string("the guest's memory can't be given back: ") + name(host.state()));
  if (!wrong.are_none()) return 1;
  found.resident_before = before.value_or(0);

  bool is_complete = false;
  int signal = 0;
  {
    machine both(ram, host, pages, sources, bells, inbox, chosen);
    is_complete = exercise(both, {chosen, ram, host, sources}, found, wrong);
    signal = both.signal();
  }
  if (chosen.is_poisoned) {
    found.poisoned = pages.poisoned_bytes();
    wrong.add_if(is_complete && found.poisoned != found.target_bytes,
                 std::to_string(pages.poisoned_bytes()) + " bytes were poisoned");
  }
  if (found.is_inflated()) {
    chosen.is_json ? print_json(found) : print_text(found);
    flush_output(wrong);
  }
  // The guest has its memory back: now end the way the signal wanted it.
  if (signal != 0) std::raise(signal);
  if (!is_complete) return 1;

  inbox.let_through();
  page_check checked = pages.check();
  checked += sources.check();
  check_pages(checked, wrong);
  if (!wrong.are_none()) return 1;
  std::FILE* const out = chosen.is_json ? stderr : stdout;
  std::fprintf(out, "\nall %" PRIu32 " pages were %s when they came back, and hold data again\n",
               found.actual_pages, chosen.is_poisoned ? "poisoned" : "empty");
  std::fprintf(out, "resident memory of the guest is %s again\n",
               human_size(resident_bytes(ram).value_or(0)).c_str());
  flush_output(wrong);
  return wrong.are_none() ? 0 : 1;
}

} // namespace

int main(int count, char** arguments) {
  return run(loopback::parse_options(count, arguments, loopback::guest::driver::memory_bytes));
}
