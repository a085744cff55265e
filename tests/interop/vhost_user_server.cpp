// SPDX-License-Identifier: BSD-3-Clause
// Our balloon device for Linux's balloon driver, in a guest that tests/interop/uml.sh starts.
//
//     vhost_user_server SCENARIO SOCKET CONSOLE COMMANDS
//
// Waits for the guest at SOCKET. Lines written to the pipe COMMANDS run in the guest, what they
// print comes to the file CONSOLE. Prints a line for each check.

#include "vhost_user_server.hpp"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

namespace {

using namespace ballast::balloon;
using interop::vhost_user_server;
namespace vhost_user = ballast::vhost_user;

constexpr int boot_time = 20'000, patience = 15'000; // milliseconds
constexpr std::uint64_t mebibyte = 1 << 20;

class scenario {
 public:
  scenario(std::string name, char** arguments, const device_options& options,
           const vhost_user::back_end_options& protocol)
      : name_(std::move(name)), socket_(arguments[0]), console_(arguments[1]),
        commands_(arguments[2]), server_(options, protocol) {}

  bool check(const char* what, bool holds, const std::string& otherwise = {}) {
    std::printf("%s %s: %s%s%s\n", holds ? "ok  " : "FAIL", name_.c_str(), what,
                holds || otherwise.empty() ? "" : ": ", holds ? "" : otherwise.c_str());
    std::fflush(stdout);
    has_failed_ |= !holds;
    return holds;
  }
  bool check_equal(const char* what, std::uint64_t found, std::uint64_t expected) {
    return check(what, found == expected,
                 std::to_string(found) + " and not " + std::to_string(expected));
  }

  /// Up to the first notification, and what it must find.
  bool boots(std::uint16_t queues, bool is_quiet = false,
             const ballast::feature_set& dropped = {}) {
    const auto is_up = [&] { return server_.is_running() && (is_quiet || notifications() != 0); };
    if (!check("the guest connects", server_.accept(socket_, boot_time)) ||
        !check("the driver starts", server_.run_until(is_up, boot_time)))
      return false;
    if (is_quiet) {
      ask("true");
      check("a driver with nothing to do notifies nobody", notifications() == 0);
    }
    const ballast::feature_set offered = device().offered_features();
    check("Linux accepts every feature that is offered, but for those it cannot use",
          device().negotiated_features() == offered - dropped);
    check("it sets up the queues of these features, numbered without gaps",
          server_.has_queues(queues));
    check_equal("they begin together", server_.activations(), 1);
    return check("the memory table describes most of the guest's memory",
                 ram().size() > guest_size / 2 && ram().size() <= guest_size);
  }
  /// Of available buffers, so far.
  [[nodiscard]] std::uint64_t notifications() const {
    std::uint64_t count = 0;
    for (const std::uint64_t of_queue : server_.counters().available_notifications)
      count += of_queue;
    return count;
  }

  /// What a command prints in the guest, which the device serves meanwhile.
  std::string ask(const std::string& command) {
    const std::string end = "<done " + std::to_string(++commands_sent_) + ">";
    const std::size_t from = console().size();
    std::ofstream(commands_) << command << "; echo '" << end << "'\n" << std::flush;
    const bool has_ended =
        server_.run_until([&] { return console().find(end, from) != std::string::npos; }, patience);
    if (!has_ended) check("the guest runs a command", false, command);
    const std::string all = console();
    return all.substr(from, all.find(end, from) - from);
  }
  std::uint64_t ask_number(const std::string& command) {
    return std::strtoull(ask(command).c_str(), nullptr, 10);
  }
  std::uint64_t total_memory() {
    return ask_number("awk '/MemTotal/ {print $2 * 1024}' /proc/meminfo");
  }
  std::uint64_t vmstat(const std::string& name) {
    return ask_number("awk '$1 == \"" + name + "\" {print $2}' /proc/vmstat");
  }

  /// A fresh reply to a request; one without values if none comes.
  snapshot statistics() {
    const ballast::actions due = device().request_statistics();
    server_.perform(due);
    ballast::result<snapshot> got = ballast::error::queue_empty;
    server_.run_until(
        [&] {
          got = device().take_statistics(0);
          return got.has_value();
        },
        patience);
    return got ? *got : snapshot{};
  }

  void set_target(std::uint32_t pages) { server_.perform(device().set_target(pages)); }
  bool settles_at(std::uint32_t pages) {
    return server_.run_until(
        [&] { return device().actual() == pages && ram().balloon().size() == pages; }, patience);
  }
  bool check_settles(const char* what, std::uint32_t pages) {
    return check(what, settles_at(pages),
                 "the driver says " + std::to_string(device().actual()) +
                     " pages, the device has " + std::to_string(ram().balloon().size()));
  }

  /// Writes some 40 MiB, most of what is free, and reads them back.
  bool uses_memory() {
    return ask("for i in $(seq 22); do cp /bin/busybox /tmp/$i; done; md5sum /bin/busybox /tmp/* | "
               "cut -c 1-32 | uniq -c | wc -l; ls /tmp | wc -l; rm /tmp/*") == "1\n22\n";
  }

  void check_clean() {
    const device_counters& counted = device().counters();
    check_equal("no page was bad", counted.bad_pages, 0);
    check_equal("every page was discarded", counted.discard_failures + counted.partial_pages, 0);
    check_equal("every buffer was whole", counted.trailing_bytes + counted.oversized_buffers, 0);
    check_equal("no page was inflated twice", ram().inflated_twice(), 0);
    check_equal("no page was deflated that was not inflated", ram().deflated_unknown(), 0);
    check("nothing failed", server_.failure() == ballast::error::none,
          ballast::name(server_.failure()));
    check_equal("no message was refused", server_.counters().refused, 0);
    std::ofstream(commands_) << "poweroff -f\n" << std::flush;
    const auto never = [] { return false; };
    server_.run_until(never, patience); // until the guest has gone
    check("the connection ends with the guest",
          server_.closed_for() == ballast::error::connection_closed,
          ballast::name(server_.closed_for()));
    check_equal("no message was malformed", server_.counters().malformed, 0);
    // Before that, a busy machine makes Linux warn of its own self-tests.
    const std::string all = console();
    const std::size_t start = all.find("Run /init");
    const std::string said = start == std::string::npos ? all : all.substr(start);
    for (const std::string bad :
         {"WARNING:", "BUG:", "Call Trace", "Out of puff", "Kernel panic"}) {
      const std::size_t at = said.find(bad);
      check(("the guest does not say " + bad).c_str(), at == std::string::npos,
            at == std::string::npos ? "" : said.substr(at, 200));
    }
  }

  vhost_user_server& server() { return server_; }
  vhost_user_server::device_type& device() { return server_.device(); }
  interop::shared_ram& ram() { return server_.ram(); }
  [[nodiscard]] bool has_failed() const { return has_failed_; }

  static constexpr std::uint64_t guest_size = 96 * mebibyte; // of uml.sh

 private:
  [[nodiscard]] std::string console() const {
    std::ifstream file(console_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string name_;
  const char *socket_, *console_, *commands_;
  vhost_user_server server_;
  unsigned commands_sent_ = 0;
  bool has_failed_ = false;
};

/// Tags 0 to 7 and no other: 8 and 9 need huge pages, 10 to 15 Linux 6.12.
bool has_tags_of_6_1(const snapshot& s) {
  bool is_right = s.unknown().empty() && s.unknown_dropped() == 0;
  for (std::uint16_t i = 0; i < statistic_count; ++i)
    is_right &= s.has(static_cast<statistic_tag>(i)) == (i < 8);
  return is_right;
}

/// Statistics, the balloon up and down, the driver unloaded and loaded again.
void run_whole(scenario& s) {
  using enum statistic_tag;
  if (!s.boots(3)) return;
  s.check_equal("the first notification is statsq's",
                s.server().counters().available_notifications[2], s.notifications());
  s.check_equal("its buffer is found at once", s.device().counters().statistics_buffers, 1);
  const auto first = s.device().take_statistics(0);
  if (s.check("it has the tags that Linux 6.1 sends", first && has_tags_of_6_1(*first)))
    s.check("nobody asked for it", !first->is_solicited);
  s.check("the guest runs on", s.ask("cat /sys/bus/virtio/devices/virtio0/device") == "0x0005\n");
  s.check_equal("the buffer is held", s.server().counters().used_notifications[2], 0);

  bool is_answered = true, is_total_same = true, is_growing = true;
  snapshot before = s.statistics();
  for (int i = 0; i < 50; ++i) {
    const snapshot now = s.statistics();
    is_answered &= has_tags_of_6_1(now) && now.is_solicited;
    is_total_same &= now.value(total_memory) == before.value(total_memory);
    is_growing &= now.value(minor_faults) >= before.value(minor_faults);
    before = now;
  }
  s.check("50 requests are answered, each with all tags", is_answered);
  s.check("the total stays, minor faults only grow", is_total_same && is_growing);
  s.check_equal("one notification each", s.server().counters().used_notifications[2], 51);
  s.check_equal("one buffer each", s.device().counters().statistics_buffers, 52);
  s.check_equal("never two at a time", s.device().counters().duplicate_statistics, 0);

  const std::uint64_t faults_before = s.vmstat("pgfault");
  const snapshot now = s.statistics();
  const std::uint64_t faults_after = s.vmstat("pgfault");
  const std::uint64_t total = now.value(total_memory);
  s.check_equal("the total is /proc/meminfo's", total, s.total_memory());
  s.check("the total is most of mem=",
          total > scenario::guest_size / 2 && total < scenario::guest_size);
  s.check("minor faults are /proc/vmstat's",
          faults_before < now.value(minor_faults) && now.value(minor_faults) < faults_after);
  s.check_equal("major faults are /proc/vmstat's", now.value(major_faults), s.vmstat("pgmajfault"));
  s.check_equal("caches are /proc/vmstat's", now.value(disk_caches),
                s.vmstat("nr_file_pages") * 4096);
  s.check_equal("nothing is swapped", now.value(swap_in) + now.value(swap_out), 0);
  s.check("free and available are parts of the total",
          now.value(free_memory) > mebibyte && now.value(free_memory) < total &&
              now.value(available_memory) > mebibyte && now.value(available_memory) < total);

  s.check("the guest fills its memory", s.uses_memory());
  const std::uint64_t full = s.ram().allocated();
  constexpr std::uint32_t pages = 8192;
  s.set_target(pages);
  s.check_settles("the balloon reaches a target of 32 MiB", pages);
  s.check_equal("after one configuration change", s.server().counters().config_changes, 1);
  s.check_equal("each page once", s.device().counters().inflated_pages, pages);
  s.check_equal("the file holds none of its pages", s.ram().kept_pages(), 0);
  const std::uint64_t inflated = s.ram().allocated();
  s.check("at least 12 MiB came back", inflated + 12 * mebibyte <= full,
          std::to_string(full) + " bytes before and " + std::to_string(inflated) + " after");
  s.check_equal("the total is less by as much", s.statistics().value(total_memory),
                total - bytes_of(pages));
  s.check_equal("/proc/meminfo's too", s.total_memory(), total - bytes_of(pages));
  s.check_equal("the snapshot has the balloon's size", s.statistics().actual_pages, pages);

  // The guest may move a page of its balloon: one inflates, another deflates, `actual` stays.
  s.ask("echo 1 > /proc/sys/vm/compact_memory");
  s.check_settles("the balloon keeps its size when the guest compacts its memory", pages);
  s.check_equal("each page that moved was inflated", s.device().counters().inflated_pages,
                pages + s.vmstat("balloon_migrate"));
  s.check_equal("the file holds none of the new ones", s.ram().kept_pages(), 0);

  s.set_target(1000);
  s.check_settles("a part of it deflates", 1000);
  s.set_target(0);
  s.check_settles("all of it deflates", 0);
  s.check_equal("as many as were inflated", s.device().counters().deflated_pages,
                s.device().counters().inflated_pages);
  s.check_equal("the total is as before", s.statistics().value(total_memory), total);
  s.check("the guest uses its memory again", s.uses_memory());
  s.check("the file grows again", s.ram().allocated() >= inflated + 12 * mebibyte);
  s.check("a target as before changes nothing", s.device().set_target(0) == ballast::actions{});

  s.set_target(2000);
  s.check_settles("it inflates again", 2000);
  s.ask("rmmod virtio_balloon");
  s.check("unloading the driver disables its queues", !s.server().is_running());
  s.check_settles("it deflates first", 0);
  s.check_equal("the target stays", s.device().target(), 2000);
  const std::uint64_t changes = s.server().counters().config_changes;
  s.ask("insmod /virtio_balloon.ko");
  s.check_settles("loaded again, it inflates to the target", 2000);
  s.check_equal("without a word", s.server().counters().config_changes, changes);
  s.check_equal("in the second activation", s.server().activations(), 2);
  const auto again = s.device().take_statistics(0);
  s.check("and leaves a statistics buffer, of the next epoch",
          again && first && again->epoch == first->epoch + 1 && has_tags_of_6_1(*again));
  s.check("requests are answered again", s.statistics().is_solicited);
  s.set_target(0);
  s.check_settles("the balloon deflates at the end", 0);
}

/// A feature that Linux drops: it then forgets to accept the protocol's own bit, and enables no
/// queue.
void run_poison(scenario& s) {
  if (!s.boots(3, false, {feature::page_poison})) return;
  s.check("without the bit of protocol features", !s.server().back_end().has_enabling());
  s.check("the first buffer has statistics", s.device().take_statistics(0).has_value());
  s.check("requests are answered", s.statistics().is_solicited);
  s.set_target(500);
  s.check_settles("the balloon inflates", 500);
  s.ask("rmmod virtio_balloon");
  s.check("without the driver, its rings are left alone",
          s.device().request_statistics().failure == ballast::error::not_attached);
  s.ask("insmod /virtio_balloon.ko");
  s.check_settles("loaded again, it inflates to the target", 500);
  s.check_equal("in the second activation", s.server().activations(), 2);
  const auto again = s.device().take_statistics(0);
  s.check("it leaves a statistics buffer again", again && !again->is_solicited);
  s.check("requests are answered again", s.statistics().is_solicited);
  s.set_target(0);
  s.check_settles("the balloon deflates at the end", 0);
}

/// Two queues, no event index, and a target that was set before the driver came.
void run_early_target(scenario& s) {
  s.set_target(3000);
  if (!s.boots(2)) return;
  s.check("the first notification is inflateq's",
          s.server().counters().available_notifications[0] != 0);
  s.check_settles("it inflates to the target it finds", 3000);
  s.check_equal("without a word", s.server().counters().config_changes, 0);
  s.check("there are no statistics to ask for",
          s.device().request_statistics().failure == ballast::error::not_negotiated);
  s.set_target(0);
  s.check_settles("it deflates, telling the host", 0);
  s.check_equal("after one configuration change", s.server().counters().config_changes, 1);
}

/// Without a statsq the later queues move up: hints come at 2 and reports at 3.
void run_numbering(scenario& s) {
  s.ram().stop_tracking();
  if (!s.boots(4, true)) return;
  s.server().perform(s.device().start_hinting());
  const auto& counted = s.device().counters();
  const auto hinting_ends = [&] {
    return counted.free_page_hint_count != 0 && s.device().hinting().state() == hint_state::stop;
  };
  s.check("free pages are hinted, up to a stop", s.server().run_until(hinting_ends, patience));
  s.check_equal("all came as hints", s.ram().hinted(), counted.free_page_hint_freed);
  s.server().perform(s.device().finish_hinting());

  // Pieces of 64 KiB: with Linux's 4 MiB, it reports nothing unless 128 MiB are free.
  s.ask("echo 4 > /sys/module/page_reporting/parameters/page_reporting_order");
  s.check("the guest fills its memory", s.uses_memory());
  const std::uint64_t full = s.ram().allocated(), reported = counted.free_page_report_freed;
  const auto has_shrunk = [&] { return s.ram().allocated() + 12 * mebibyte <= full; };
  s.check("what it frees is reported, 12 MiB come back",
          s.server().run_until(has_shrunk, patience));
  s.check("by reports alone", counted.free_page_report_freed >= reported + 12 * mebibyte &&
                                  counted.inflated_pages == 0);
  s.check("the guest uses its memory again", s.uses_memory());
  s.check_equal("no hint and no report was bad",
                counted.ignored_hints + counted.free_page_hint_fails +
                    counted.free_page_report_fails + counted.misplaced_buffers,
                0);
}

/// A balloon that gives way when the guest has no memory left.
void run_deflate_on_oom(scenario& s) {
  using enum statistic_tag;
  if (!s.boots(3)) return;
  const std::uint64_t total = s.statistics().value(total_memory);
  constexpr std::uint32_t pages = 10'000;
  s.set_target(pages);
  s.check_settles("the balloon reaches a target of 39 MiB", pages);
  const snapshot inflated = s.statistics();
  s.check_equal("the total stays", inflated.value(total_memory), total);
  s.check("the snapshot says why", inflated.deflate_on_oom);
  const std::string hog = s.ask("dd if=/dev/zero of=/dev/null bs=40M count=1 2>&1; echo status $?");
  s.check("a program of 40 MiB lives", hog.find("status 0") != std::string::npos, hog);
  s.check("the driver took pages back", s.device().actual() < pages);
  s.check_settles("it said which", s.device().actual());
  s.set_target(0);
  s.check_settles("the rest deflates", 0);
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  namespace ring = ballast::feature;
  const std::string which = argv[1];
  device_options options;
  vhost_user::back_end_options protocol;
  void (*run)(scenario&) = nullptr;
  if (which == "whole") {
    run = run_whole;
    options.offered = {feature::stats_vq, ring::event_idx};
  } else if (which == "packed") {
    run = run_whole;
    options.offered = {feature::stats_vq, ring::event_idx, ring::ring_packed};
  } else if (which == "in-band") {
    run = run_whole;
    options.offered = {feature::stats_vq, ring::event_idx};
    protocol.protocol_features = vhost_user::protocol_feature::all;
  } else if (which == "poison" || which == "poison-in-band") {
    run = run_poison;
    options.offered = {feature::stats_vq, feature::page_poison, ring::event_idx};
    if (which == "poison-in-band") protocol.protocol_features = vhost_user::protocol_feature::all;
  } else if (which == "early-target") {
    run = run_early_target;
    options.offered = {feature::must_tell_host};
  } else if (which == "numbering") {
    run = run_numbering;
    options.offered = {feature::free_page_hint, feature::page_reporting, ring::event_idx};
  } else if (which == "deflate-on-oom") {
    run = run_deflate_on_oom;
    options.offered = {feature::must_tell_host, feature::stats_vq, feature::deflate_on_oom};
  } else {
    return 2;
  }
  signal(SIGPIPE, SIG_IGN); // pipes, whose other end the guest closes when it likes
  scenario s("Linux 6.1, " + which, argv + 2, options, protocol);
  run(s);
  s.check_clean();
  return s.has_failed() ? 1 : 0;
}
