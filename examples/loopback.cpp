// SPDX-License-Identifier: BSD-3-Clause
//
// A balloon device and a balloon driver that share guest memory in one process: the whole data
// path, with real pages, a real virtqueue between two threads, and real statistics. --help explains
// the options; the parts are in loopback/.

#include "loopback/doorbell.hpp"
#include "loopback/guest.hpp"
#include "loopback/guest_pages.hpp"
#include "loopback/guest_ram.hpp"
#include "loopback/host.hpp"
#include "loopback/machine.hpp"
#include "loopback/options.hpp"
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

void touch(guest_pages& pages) {
  progress bar("touching ", pages.count());
  for (std::size_t i = 0; i < pages.count();) {
    pages.fill(i);
    bar.show(++i);
  }
}

/// From an empty balloon to one of the target's size, with statistics before and after.
ending inflate(machine& both, const guest_ram& ram, report& to) {
  if (const ending e = both.start(); e != ending::done) return e;
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

void check_inflated(const report& r, complaints& wrong) {
  const std::uint64_t tolerance = std::max<std::uint64_t>(r.target_bytes / 50, 2 << 20);
  const auto fell = static_cast<std::int64_t>(r.resident_before - r.resident_after);
  const std::int64_t off = fell - static_cast<std::int64_t>(r.target_bytes);
  wrong.add_if(std::abs(off) > static_cast<std::int64_t>(tolerance),
               "the resident memory fell by " + std::to_string(fell) + " bytes, not by the " +
                   std::to_string(r.target_bytes) + " of the target");
  wrong.add_if(ballast::balloon::bytes_of(r.actual_pages) != r.target_bytes,
               "the balloon has " + std::to_string(r.actual_pages) + " pages, not the " +
                   std::to_string(r.target_bytes / page_size) + " of the target");
}

void check_device(const ballast::balloon::device_counters& did, complaints& wrong) {
  wrong.add_if(did.discard_failures != 0,
               "madvise failed " + std::to_string(did.discard_failures) + " times");
  wrong.add_if(did.bad_pages != 0,
               std::to_string(did.bad_pages) + " pages were not in guest memory");
}

void check_pages(const page_check& found, complaints& wrong) {
  const auto expect_none = [&](std::uint64_t pages, const char* what) {
    wrong.add_if(pages != 0, std::to_string(pages) + " pages " + what);
  };
  expect_none(found.damaged, "were never in the balloon, and lost their contents");
  expect_none(found.kept, "were in the balloon, and kept their contents");
  expect_none(found.unusable, "came back and don't hold what is written to them");
  expect_none(found.missing, "went into the balloon and did not come back");
  expect_none(found.misplaced, "were given back that were not in the balloon");
}

void flush_output(complaints& wrong) {
  if (std::fflush(stdout) != 0) wrong.add(std::string("standard output: ") + std::strerror(errno));
}

/// The balloon there and back. Whether it went all the way; what was not right is in `wrong`.
bool exercise(machine& both, const guest_ram& ram, const options& chosen, report& found,
              complaints& wrong) {
  ending e = inflate(both, ram, found);
  if (e == ending::done) {
    check_inflated(found, wrong);
    chosen.is_json ? print_json(found) : print_text(found);
    flush_output(wrong);
    e = deflate(both, found.actual_pages);
    check_device(both.counters(), wrong);
  }
  if (e == ending::interrupted) both.interrupt();
  if (e != ending::done) wrong.add(both.reason(e));
  return e == ending::done;
}

int run(const options& chosen) {
  guest_ram ram(chosen.memory);
  if (!ram.is_mapped())
    usage_error("--memory " + exact_size(chosen.memory) + ": " + std::strerror(errno));
  const std::uint64_t kept = guest::kept_bytes();
  guest_pages pages(ram, static_cast<std::uint32_t>(kept / page_size));
  std::memset(ram.data(), 0, kept);
  touch(pages);

  complaints wrong;
  report found{.memory_bytes = chosen.memory, .target_bytes = chosen.target};
  doorbells bells;
  signals inbox;
  const auto before = resident_bytes(ram);
  wrong.add_if(!bells.are_open() || !inbox.is_open(), "no eventfd or signalfd to be had");
  wrong.add_if(!before, "no Rss of the guest's memory in /proc/self/smaps");
  if (!wrong.are_none()) return 1;
  found.resident_before = before.value_or(0);

  bool is_complete = false;
  int signal = 0;
  {
    machine both(ram, pages, bells, inbox);
    is_complete = exercise(both, ram, chosen, found, wrong);
    signal = both.signal();
  }
  // The guest has its memory back: now end the way the signal wanted it.
  if (signal != 0) std::raise(signal);
  if (!is_complete) return 1;

  inbox.let_through();
  check_pages(pages.check(), wrong);
  if (!wrong.are_none()) return 1;
  std::FILE* const out = chosen.is_json ? stderr : stdout;
  std::fprintf(out, "\nall %" PRIu32 " pages were empty when they came back, and hold data again\n",
               found.actual_pages);
  std::fprintf(out, "resident memory of the guest is %s again\n",
               human_size(resident_bytes(ram).value_or(0)).c_str());
  flush_output(wrong);
  return wrong.are_none() ? 0 : 1;
}

} // namespace

int main(int count, char** arguments) {
  return run(loopback::parse_options(count, arguments, loopback::guest::kept_bytes()));
}
