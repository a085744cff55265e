// SPDX-License-Identifier: BSD-3-Clause
// Our balloon device, on virtio-pci, for an unmodified Linux in QEMU.
//
//     guest_test NAME KERNEL DIRECTORY FORMAT INTERRUPTS TRANSPORT SCENARIO...
//
// KERNEL: a directory as tests/interop/guest_images.sh makes it. DIRECTORY: for logs. The rest as
// in tests/interop/guests.sh, which runs this. One guest boots and goes through the scenarios.
// Prints a line for each check.

#include "guest_scenario.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace {

using namespace ballast::balloon;
using interop::mebibyte;
using interop::scenario;
namespace ring = ballast::feature;

const ballast::feature_set everything{feature::stats_vq, feature::free_page_hint,
                                      feature::page_poison, ring::event_idx};

/// What Linux accepts of it.
ballast::feature_set expected(const scenario& s, ballast::feature_set offered, bool is_poisoning) {
  if (!is_poisoning) offered.clear(feature::page_poison);
  if (s.is_legacy()) offered.clear(ring::version_1);
  return offered;
}

/// The driver is there; nothing is in the balloon yet.
void run_probe(scenario& s, bool is_poisoning, const std::string& interrupts) {
  s.about("probe");
  auto& device = s.device();
  const auto offered = device.offered_features();
  s.check("Linux accepts every feature it can use",
          device.negotiated_features() == expected(s, offered, is_poisoning));
  s.check_equal("sysfs shows them",
                static_cast<unsigned>(s.run("cat /sys/bus/virtio/devices/virtio0/features")), 0);
  std::string bits = s.text();
  if (!bits.empty()) bits.pop_back();
  const auto shown = ballast::parse_features(bits);
  s.check("as the device sees them", shown && *shown == device.negotiated_features(), bits);
  const bool is_transitional = s.server().bus().read_config_space(2, 2) == 0x1002;
  s.run("cd /sys/bus/pci/devices/0000:00:05.0; cat vendor device class; cd /");
  s.check("so does PCI's: a balloon",
          s.text() ==
              std::string("0x1af4\n") + (is_transitional ? "0x1002" : "0x1045") + "\n0x00ff00\n",
          s.text());
  s.check_equal("the guest drives it in the way that was asked for",
                device.negotiated_features().test(ring::version_1), !s.is_legacy());
  s.about(interrupts == "msi-x" ? "msi-x" : "intx");
  const std::uint64_t before =
      s.ask_number("awk '/virtio0/ {sum += $2} END {print sum + 0}' /proc/interrupts");
  for (int i = 0; i < 20; ++i) (void)s.statistics();
  const std::uint64_t after =
      s.ask_number("awk '/virtio0/ {sum += $2} END {print sum + 0}' /proc/interrupts");
  s.check("each notification interrupts the guest", after >= before + 20,
          std::to_string(after - before));
  s.run("grep virtio0 /proc/interrupts");
  const bool has_messages = s.text().find("PCI-MSI") != std::string::npos;
  const auto& counted = s.server().counted();
  if (interrupts == "msi-x") {
    s.check("by messages", has_messages && counted.messages >= after && counted.line_rises == 0,
            s.text());
    s.check("a vector for each queue",
            s.text().find("virtio0-inflate") != std::string::npos &&
                s.text().find("virtio0-config") != std::string::npos,
            s.text());
  } else {
    s.check("by the line", !has_messages && counted.messages == 0 && counted.line_rises >= after,
            s.text());
  }
}

using numbers = std::map<std::string, std::uint64_t>;

/// A tag and what the guest says of it, in bytes or events.
struct origin {
  statistic_tag tag;
  std::uint64_t (*value)(numbers& of);
};
std::uint64_t stalls(numbers& n) {
  std::uint64_t sum = 0;
  for (const auto& [name, value] : n)
    if (name.starts_with("allocstall_")) sum += value;
  return sum;
}
constexpr origin counters_of_linux[] = {
    {statistic_tag::swap_in, [](numbers& n) { return n["pswpin"] * 4096; }},
    {statistic_tag::swap_out, [](numbers& n) { return n["pswpout"] * 4096; }},
    {statistic_tag::major_faults, [](numbers& n) { return n["pgmajfault"]; }},
    {statistic_tag::minor_faults, [](numbers& n) { return n["pgfault"]; }},
    {statistic_tag::hugetlb_allocations, [](numbers& n) { return n["htlb_buddy_alloc_success"]; }},
    {statistic_tag::hugetlb_failures, [](numbers& n) { return n["htlb_buddy_alloc_fail"]; }},
    {statistic_tag::oom_kills, [](numbers& n) { return n["oom_kill"]; }},
    {statistic_tag::alloc_stalls, stalls},
    {statistic_tag::async_scans, [](numbers& n) { return n["pgscan_kswapd"] * 4096; }},
    {statistic_tag::direct_scans, [](numbers& n) { return n["pgscan_direct"] * 4096; }},
    {statistic_tag::async_reclaims, [](numbers& n) { return n["pgsteal_kswapd"] * 4096; }},
    {statistic_tag::direct_reclaims, [](numbers& n) { return n["pgsteal_direct"] * 4096; }},
};

/// All 16 tags, or 10 of Linux 6.1, beside /proc/vmstat and /proc/meminfo.
void run_statistics(scenario& s) {
  using enum statistic_tag;
  const unsigned tags = s.is_6_1() ? 10 : 16;
  s.about("statistics-" + std::to_string(tags));
  const auto has_all = [&](const snapshot& of) {
    bool is_right = of.unknown().empty() && of.unknown_dropped() == 0;
    for (std::uint16_t i = 0; i < statistic_count; ++i)
      is_right &= of.has(static_cast<statistic_tag>(i)) == (i < tags);
    return is_right;
  };
  bool is_answered = true;
  for (int i = 0; i < 50; ++i) {
    const snapshot one = s.statistics();
    is_answered &= has_all(one) && one.is_solicited;
  }
  s.check("50 requests are answered, each with " + std::to_string(tags) + " tags", is_answered);

  numbers before = s.counters();
  const snapshot now = s.statistics();
  numbers after = s.counters();
  s.check("the guest's numbers can be read", before.size() > 100 && after.contains("MemFree"));
  for (const origin& one : counters_of_linux) {
    if (!now.has(one.tag)) continue;
    const std::uint64_t low = one.value(before), high = one.value(after);
    s.check(std::string(statistic_table[static_cast<std::size_t>(one.tag)].name) +
                " is between what /proc/vmstat says before and after",
            low <= now.value(one.tag) && now.value(one.tag) <= high,
            std::to_string(low) + ", " + std::to_string(now.value(one.tag)) + ", " +
                std::to_string(high));
  }
  s.check_equal("the total is MemTotal", now.value(total_memory), after["MemTotal"]);
  s.check_near("free memory is MemFree", now.value(free_memory), after["MemFree"], 2 * mebibyte);
  s.check_near("available memory is MemAvailable", now.value(available_memory),
               after["MemAvailable"], 2 * mebibyte);
  s.check_near("caches are nr_file_pages", now.value(disk_caches), after["nr_file_pages"] * 4096,
               mebibyte / 4);
}

/// Up and down, and what both sides have of it.
void run_inflate(scenario& s) {
  using enum statistic_tag;
  s.about("inflate");
  constexpr std::uint32_t pages = 50'000;
  s.check_equal("a program uses most of the memory",
                static_cast<unsigned>(s.hog(s.memory("MemAvailable") * 9 / 10)), 0);
  const std::uint64_t full = s.ram().allocated();
  numbers before = s.counters();
  const auto& counted = s.device().counters();
  const std::uint64_t inflated_before = counted.inflated_pages,
                      deflated_before = counted.deflated_pages;
  s.set_target(pages);
  s.check_settles("the balloon reaches a target of 195 MiB", pages);
  s.check_equal("each page once", counted.inflated_pages - inflated_before, pages);
  s.check_equal("the host holds none of its pages", s.ram().kept_pages(), 0);
  s.check_equal("all of them read as zero", s.ram().pages_not_zero(), 0);
  const std::uint64_t left = s.ram().allocated();
  s.check_near("as much memory came back", full - left, bytes_of(pages), bytes_of(pages) / 10);
  numbers inflated = s.counters();
  s.check_equal("MemTotal is less by as much", before["MemTotal"] - inflated["MemTotal"],
                bytes_of(pages));
  s.check_near("MemFree too", before["MemFree"] - inflated["MemFree"], bytes_of(pages),
               4 * mebibyte);
  s.check_equal("the statistics' total too", s.statistics().value(total_memory),
                inflated["MemTotal"]);
  s.check_equal("they come with the balloon's size", s.statistics().actual_pages, pages);
  s.check_equal("a program uses most of what is left",
                static_cast<unsigned>(s.hog(s.memory("MemAvailable") * 8 / 10)), 0);
  s.check_equal("which leaves the balloon alone", s.ram().kept_pages(), 0);

  s.about("deflate");
  s.set_target(pages / 2 + 1);
  s.check_settles("a part of it deflates", pages / 2 + 1);
  s.set_target(0);
  s.check_settles("all of it deflates", 0);
  s.check_equal("as many pages as were inflated", counted.deflated_pages - deflated_before,
                counted.inflated_pages - inflated_before);
  numbers after = s.counters();
  s.check_equal("MemTotal is as before", after["MemTotal"], before["MemTotal"]);
  s.check_near("MemFree too", after["MemFree"], before["MemFree"], 4 * mebibyte);
  s.check_equal("a program uses the memory again",
                static_cast<unsigned>(s.hog(s.memory("MemAvailable") * 9 / 10)), 0);
  s.check_near("and the host has it again", s.ram().allocated(), full, 16 * mebibyte);
}

/// The guest moves pages of its balloon: one inflates, another deflates.
void run_compaction(scenario& s) {
  s.about("compaction");
  constexpr std::uint32_t pages = 40'000;
  s.set_target(pages);
  s.check_settles("the balloon inflates", pages);
  const std::uint64_t before = s.device().counters().inflated_pages;
  const std::uint64_t moved_before = s.counters()["balloon_migrate"];
  // Holes in low memory, to be filled from the balloon.
  s.run("for i in 1 2 3; do hog 60; echo 1 > /proc/sys/vm/compact_memory; done");
  s.check_settles("it keeps its size when the guest compacts its memory", pages);
  const std::uint64_t moved = s.counters()["balloon_migrate"] - moved_before;
  s.check("pages of the balloon moved", moved != 0);
  s.check_equal("each was inflated in its new place", s.device().counters().inflated_pages - before,
                moved);
  s.check_equal("the host holds none of the new ones", s.ram().kept_pages(), 0);
  s.set_target(0);
  s.check_settles("it deflates", 0);
}

/// A round of hints, as in a migration.
void run_hinting(scenario& s) {
  s.about("hinting");
  const auto& hinting = s.device().hinting();
  for (int round = 1; round <= 2; ++round) {
    const std::string which = "round " + std::to_string(round) + ": ";
    const std::uint64_t free = s.memory("MemFree"), hinted = s.ram().hinted();
    const std::uint64_t rounds = hinting.counters().rounds;
    s.server().perform(s.device().start_hinting());
    const auto has_ended = [&] {
      return hinting.counters().rounds > rounds && hinting.state() == hint_state::stop;
    };
    s.check(which + "the driver takes up the id and ends with STOP", s.run_until(has_ended));
    const std::uint64_t came = s.ram().hinted() - hinted;
    // Linux hints blocks of 4 MiB, and 2 MiB of each queue's entries stay.
    s.check_near(which + "most of what is free came", came, free, free / 5);
    const std::uint64_t held = s.memory("MemFree");
    s.check(which + "the guest keeps it meanwhile", held + came / 2 < free,
            std::to_string(held) + " of " + std::to_string(free));
    s.server().perform(s.device().finish_hinting());
    std::uint64_t again = 0;
    for (int i = 0; i < 50 && again + 8 * mebibyte < free; ++i) again = s.memory("MemFree");
    s.check_near(which + "after DONE it is free again", again, free, 8 * mebibyte);
  }
  s.check_equal("no id came that was not expected",
                hinting.counters().stale_commands + hinting.counters().malformed_commands, 0);
}

/// What the guest frees goes back without being asked for.
void run_reporting(scenario& s) {
  s.about("reporting");
  s.ram().track(false);
  if (!s.replug({feature::stats_vq, feature::page_reporting, ring::event_idx})) return;
  const auto& counted = s.device().counters();
  constexpr std::uint64_t size = 200 * mebibyte;
  std::uint64_t reported = 0;
  const auto is_reported = [&] {
    return counted.free_page_report_freed >= reported + size * 3 / 4;
  };
  // What was reported to another device is not reported again before it was in use.
  s.check_equal("a program uses 200 MiB", static_cast<unsigned>(s.hog(size)), 0);
  s.check("what it freed is reported", s.run_until(is_reported));
  reported = counted.free_page_report_freed;
  const std::uint64_t before = s.ram().allocated();
  s.check_equal("it uses them again", static_cast<unsigned>(s.hog(size)), 0);
  s.check("what it freed is reported again", s.run_until(is_reported));
  s.check("and comes back", s.run_until([&] { return s.ram().allocated() < before + size / 4; }),
          std::to_string(before) + " and " + std::to_string(s.ram().allocated()));
  s.check_equal("by reports alone", counted.inflated_pages, 0);
  s.check_equal("a program uses it again", static_cast<unsigned>(s.hog(size)), 0);
  s.replug(everything);
  s.ram().track(true);
}

/// A kernel that writes a pattern to free pages says which, and its reported pages keep it.
void run_poison(scenario& s) {
  s.about("poison");
  s.check("PAGE_POISON is negotiated", s.device().negotiated_features().test(feature::page_poison));
  s.check_equal("the pattern is 0xaaaaaaaa", s.device().poison(), 0xaaaaaaaa);
  s.ram().track(false);
  if (!s.replug(
          {feature::stats_vq, feature::page_poison, feature::page_reporting, ring::event_idx}))
    return;
  const auto& counted = s.device().counters();
  s.check_equal("again", s.device().poison(), 0xaaaaaaaa);
  s.check_equal("a program uses 100 MiB", static_cast<unsigned>(s.hog(100 * mebibyte)), 0);
  s.check("memory is reported", s.run_until([&] { return counted.poisoned_ranges >= 10; }));
  s.check_equal("it keeps its pattern: none is taken", counted.free_page_report_freed, 0);
  s.check_equal("a program uses 100 MiB again", static_cast<unsigned>(s.hog(100 * mebibyte)), 0);
  s.replug(everything);
  s.ram().track(true);
}

/// The driver unloaded and loaded again.
void run_cycles(scenario& s) {
  s.about("rebind");
  constexpr int cycles = 10;
  int good = 0;
  for (int i = 0; i < cycles; ++i) {
    const auto pages = static_cast<std::uint32_t>(2000 + 100 * i);
    s.set_target(pages);
    bool is_good = s.settles_at(pages);
    is_good &= s.run("rmmod virtio_balloon") == 0;
    is_good &= !s.server().bus().is_live() && s.ram().pages() == 0 && s.device().actual() == 0;
    is_good &= s.run("insmod $balloon") == 0;
    is_good &= s.settles_at(pages) && s.device().target() == pages;
    good += is_good;
  }
  s.check_equal("unloaded it gives all back, loaded again it inflates to the target: 10 times",
                static_cast<unsigned>(good), cycles);
  s.check("and leaves a statistics buffer", s.statistics().is_solicited);
  s.set_target(0);
  s.check_settles("it deflates", 0);
  s.replug(everything);
}

/// Fewer features: the queues that are left move up.
void run_numbering(scenario& s) {
  s.about("numbering");
  if (!s.replug({feature::must_tell_host})) return;
  s.check("it tells the host and has no other queues",
          s.device().negotiated_features().test(feature::must_tell_host) &&
              std::ranges::count_if(s.server().bus().queues(),
                                    [](const auto& q) { return q.size != 0; }) == 2);
  s.set_target(3000);
  s.check_settles("without an event index it inflates", 3000);
  s.set_target(0);
  s.check_settles("it deflates, and waits for the device before it uses the pages", 0);

  if (!s.replug({feature::free_page_hint, ring::event_idx})) return;
  s.server().perform(s.device().start_hinting());
  const auto& hinting = s.device().hinting();
  s.check("without statistics hints come at queue 2", s.run_until([&] {
    return hinting.counters().rounds == 1 && hinting.state() == hint_state::stop &&
           s.device().counters().free_page_hint_count != 0;
  }));
  s.server().perform(s.device().finish_hinting());

  s.ram().track(false);
  if (!s.replug({feature::page_reporting, ring::event_idx})) return;
  s.check("without both reports do", s.run_until([&] {
    return s.device().counters().free_page_report_freed > 100 * mebibyte;
  }));
  s.replug(everything);
  s.ram().track(true);
}

/// Targets that change faster than the driver follows.
void run_quick_targets(scenario& s) {
  s.about("inflate");
  std::uint32_t number = 1;
  for (int i = 0; i < 50; ++i) {
    number = number * 1664525 + 1013904223;
    s.set_target(number >> 16);
    s.run_until([] { return false; }, static_cast<int>(number >> 8 & 7));
  }
  s.set_target(12'345);
  s.check_settles("after 50 targets at once it has the last one's size", 12'345);
  s.check_equal("the host holds none of its pages", s.ram().kept_pages(), 0);
  s.set_target(0);
  s.check_settles("it deflates", 0);
}

/// 391 MiB in and out.
void run_many_pages(scenario& s) {
  s.about("inflate");
  constexpr std::uint32_t pages = 100'000;
  int good = 0;
  for (int i = 0; i < 10; ++i) {
    s.set_target(pages);
    bool is_good = s.settles_at(pages) && s.ram().kept_pages() == 0;
    s.set_target(0);
    is_good &= s.settles_at(0);
    good += is_good;
  }
  s.check_equal("100000 pages are inflated and deflated 10 times", static_cast<unsigned>(good), 10);
}

/// A program that needs more than is left: with DEFLATE_ON_OOM the balloon gives way, without it
/// the program is killed.
void run_oom(scenario& s) {
  using enum statistic_tag;
  for (const bool gives_way : {true, false}) {
    ballast::feature_set offered{feature::stats_vq, ring::event_idx};
    if (gives_way) offered.set(feature::deflate_on_oom);
    if (!s.replug(offered)) return;
    s.about("oom");
    numbers before = s.counters();
    const auto pages = static_cast<std::uint32_t>((before["MemAvailable"] - 80 * mebibyte) / 4096);
    s.set_target(pages);
    s.check_settles("the balloon leaves some 80 MiB", pages);
    s.check_equal(gives_way ? "MemTotal stays" : "MemTotal is less by it", s.memory("MemTotal"),
                  before["MemTotal"] - (gives_way ? 0 : bytes_of(pages)));
    const int status = s.hog(140 * mebibyte);
    if (gives_way) {
      s.check_equal("with DEFLATE_ON_OOM a program of 140 MiB lives", static_cast<unsigned>(status),
                    0);
      s.check("the driver took pages back", s.device().actual() < pages);
      s.check_settles("and said which", s.device().actual());
      s.check_equal("nobody was killed", s.counters()["oom_kill"], 0);
    } else {
      s.check_equal("without DEFLATE_ON_OOM it is killed", static_cast<unsigned>(status), 137);
      s.check_settles("the balloon stays", pages);
      s.check_equal("once", s.counters()["oom_kill"], 1);
      if (!s.is_6_1()) s.check_equal("the statistics say so", s.statistics().value(oom_kills), 1);
    }
    s.set_target(0);
    s.check_settles("the rest deflates", 0);
  }
  run_statistics(s); // of a guest that had no memory left
  s.replug(everything);
}

} // namespace

int main(int argc, char** argv) {
  if (argc < 8) return 2;
  const std::string name = argv[1];
  interop::set_up from{.kernel = argv[2],
                       .directory = argv[3],
                       .is_packed = argv[4] == std::string("packed"),
                       .interrupts = argv[5],
                       .transport = argv[6]};
  const std::vector<std::string> scenarios(argv + 7, argv + argc);
  const bool is_poisoning = std::ranges::find(scenarios, "poison") != scenarios.end();
  if (is_poisoning) from.kernel_options = "page_poison=1";

  if (std::ranges::find(scenarios, "many-pages") != scenarios.end()) from.memory = 640;
  if (scenarios[0] == "resume") return interop::run_resume(from, name) ? 0 : 1;

  scenario s(from, name);
  if (!s.boots(everything)) {
    std::fputs(s.linux().console().c_str(), stderr);
    return 1;
  }
  for (const std::string& one : scenarios) {
    const auto begin = std::chrono::steady_clock::now();
    if (one == "probe")
      run_probe(s, is_poisoning, from.interrupts);
    else if (one == "statistics")
      run_statistics(s);
    else if (one == "inflate")
      run_inflate(s);
    else if (one == "compaction")
      run_compaction(s);
    else if (one == "hinting")
      run_hinting(s);
    else if (one == "reporting")
      run_reporting(s);
    else if (one == "poison")
      run_poison(s);
    else if (one == "cycles")
      run_cycles(s);
    else if (one == "numbering")
      run_numbering(s);
    else if (one == "quick-targets")
      run_quick_targets(s);
    else if (one == "many-pages")
      run_many_pages(s);
    else if (one == "oom")
      run_oom(s);
    else
      return 2;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    std::fprintf(stderr, "%s: %s took %.1f s\n", name.c_str(), one.c_str(), took.count());
  }
  s.check_clean();
  return s.has_failed() ? 1 : 0;
}
