// SPDX-License-Identifier: BSD-3-Clause
// The process that serves the device is killed while the guest uses it, and another one goes on.
#include "guest_scenario.hpp"
#include "supervisor.hpp"

#include <cstring>
#include <utility>

namespace interop {

using namespace ballast::balloon;

namespace {

class resume_scenario : public checks {
 public:
  resume_scenario(const set_up& from, const std::string& name)
      : checks(name), is_6_1_(from.kernel.ends_with("/6.1")), guest_(guest_of(from)),
        supervisor_(guest_, device_of(from, {feature::stats_vq, feature::must_tell_host,
                                             ballast::feature::event_idx})) {
    about("resume");
  }

  void run_all() {
    if (!check("the guest boots", run_until([&] { return guest_.is_ready(); }, boot_time),
               guest_.error()) ||
        !check_equal("the driver loads", static_cast<unsigned>(run("insmod $balloon")), 0))
      return;
    const auto is_live = [&] {
      return supervisor_.state().has_any() && supervisor_.state().last().is_live;
    };
    run("dmesg | grep -i -E 'virtio|00:05|balloon'");
    if (!check("it starts", run_until(is_live, 10'000), guest_.text())) return;
    settle("the balloon inflates before anything dies", 1000);
    check_equal("nothing has died", supervisor_.deaths(), 0);

    using enum moment;
    constexpr std::pair<moment, const char*> moments[] = {
        {discard, "between two pages of a buffer"},
        {published, "with the buffers returned and the driver not told"},
        {saved, "with an access done and not answered"},
        {request, "with an access not done"},
    };
    for (const auto& [at, what] : moments)
      if (!die_at(at, what)) return;
    die_anywhere();
    ask_statistics();

    settle("the balloon deflates at the end", 0);
    check_equal("a program uses the memory", static_cast<unsigned>(run("hog 250")), 0);
    check_equal("the last worker refused nothing", supervisor_.state().failure, 0);
    run("dmesg");
    check_messages(*this, guest_.text());
    guest_.run("poweroff -f");
    run_until([] { return false; }, 20'000); // until QEMU closes its socket
    check("it powers off", guest_.ends(qemu::milliseconds(5000)));
  }

 private:
  template <class Condition> bool run_until(Condition is_done, int milliseconds = 20'000) {
    return supervisor_.run_until(is_done, milliseconds);
  }
  int run(const std::string& line) {
    guest_.run(line);
    return run_until([&] { return guest_.has_answered(); }) ? guest_.status() : -1;
  }
  bool settle(const std::string& what, std::uint32_t pages) {
    supervisor_.set_target(pages);
    const bool has_settled =
        run_until([&] { return supervisor_.actual() == pages && supervisor_.pages() == pages; });
    return check(what, has_settled,
                 "the driver says " + std::to_string(supervisor_.actual()) +
                     " pages, the device has " + std::to_string(supervisor_.pages()));
  }
  std::uint64_t total_memory() {
    run("cat /proc/meminfo");
    return parse_numbers(guest_.text())["MemTotal"];
  }

  /// Up and down, and each worker dies after it has passed `at` a few times.
  bool die_at(moment at, const std::string& what) {
    constexpr std::uint32_t pages = 30'000;
    constexpr unsigned times = 20;
    const std::uint64_t total = total_memory(), deaths = supervisor_.deaths();
    const std::uint32_t before = supervisor_.actual();
    std::uint32_t number = 12345;
    unsigned armed = 0;
    const auto goes_on = [&](std::uint32_t to) {
      supervisor_.set_target(to);
      return run_until([&] {
        kept_state& state = supervisor_.state();
        if (armed < times && state.dies_at == moment::none) {
          number = number * 1664525 + 1013904223;
          state.dies_after = 1 + (number >> 16) % (at == moment::discard ? 2000 : 20);
          state.dies_at = at;
          ++armed;
        }
        return supervisor_.actual() == to && supervisor_.pages() == to;
      });
    };
    bool is_good = true;
    for (int round = 0; is_good && round < 12 && (round < 2 || armed < times); ++round)
      is_good =
          goes_on(pages) && total_memory() == total - bytes_of(pages - before) && goes_on(before);
    supervisor_.state().dies_at = moment::none;
    const std::uint64_t died = supervisor_.deaths() - deaths;
    check("killed " + std::to_string(died) + " times " + what + ", the device goes on", is_good,
          "the driver says " + std::to_string(supervisor_.actual()) + " pages, the device has " +
              std::to_string(supervisor_.pages()));
    check("it did die, at least 15 times", died >= 15, std::to_string(died));
    return is_good && check_equal("MemTotal is as before", total_memory(), total);
  }

  /// Killed from outside, at any time.
  void die_anywhere() {
    constexpr unsigned times = 60;
    const std::uint64_t deaths = supervisor_.deaths();
    std::uint32_t number = 99;
    for (unsigned i = 0; i < times; ++i) {
      number = number * 1664525 + 1013904223;
      supervisor_.set_target(number >> 17);
      run_until([] { return false; }, static_cast<int>(number >> 8 & 15));
      const std::uint64_t now = supervisor_.deaths();
      supervisor_.kill_worker();
      run_until([&] { return supervisor_.deaths() != now; });
    }
    check_equal("killed 60 times from outside", supervisor_.deaths() - deaths, times);
    settle("the balloon has the last target's size", 20'000);
    settle("and deflates", 1000);
  }

  /// The driver's one buffer stays with the device over any number of deaths.
  void ask_statistics() {
    int good = 0;
    for (int i = 0; i < 5; ++i) {
      const std::uint64_t deaths = supervisor_.deaths();
      const std::uint64_t answers = supervisor_.state().statistics;
      supervisor_.kill_worker();
      run_until([&] { return supervisor_.deaths() != deaths; });
      supervisor_.request_statistics();
      const bool is_answered =
          run_until([&] { return supervisor_.state().statistics != answers; }, 5000);
      snapshot got;
      std::memcpy(&got, supervisor_.state().snapshot, sizeof(got));
      good += is_answered && got.value(statistic_tag::total_memory) == total_memory() &&
              got.has(statistic_tag::oom_kills) == !is_6_1_;
    }
    check_equal("the statistics buffer is used by whoever is there", static_cast<unsigned>(good),
                5);
  }

  bool is_6_1_;
  guest guest_;
  supervisor supervisor_;
};

} // namespace

bool run_resume(const set_up& from, const std::string& name) {
  resume_scenario s(from, name);
  s.run_all();
  return !s.has_failed();
}

} // namespace interop
