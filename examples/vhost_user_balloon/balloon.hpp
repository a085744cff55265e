// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "host.hpp"
#include "options.hpp"
#include "report.hpp"
#include "text.hpp"

#include <ballast/balloon/adjustment.hpp>
#include <ballast/balloon/device.hpp>
#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/pressure.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/endian.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/back_end.hpp>
#include <ballast/vhost_user/memory_table.hpp>
#include <ballast/virtio/actions.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <utility>

namespace vhost_user_balloon {

[[nodiscard]] inline std::uint64_t nanoseconds_now() noexcept {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::nanoseconds(now).count());
}

/// The largest queue that a front end may make; Linux's virtio_uml wants 256.
inline constexpr std::uint32_t queue_entries_max = 256;

/// The device that is served.
class balloon_device
    : public ballast::balloon::device<ballast::vhost_user::device_memory<queue_entries_max>, host,
                                      queue_entries_max> {
 public:
  using device::device;

  /// A driver that begins anew has an empty balloon, which Linux writes only once it changes.
  void reset() noexcept {
    device::reset();
    constexpr std::array<std::byte, sizeof(ballast::le32)> nothing{};
    (void)write_config(offsetof(ballast::balloon::config, actual), nothing);
  }
};

/// The balloon of whichever guest is there: the device, what is wanted of it, and what it says.
///
/// What the front end is to be told collects in `take_due()`.
class balloon {
 public:
  static constexpr std::uint32_t queue_size_max = queue_entries_max;
  using device_type = balloon_device;

  balloon(const options& chosen, const report& to)
      : offered_(chosen.offered()), report_(&to), device_(host_, {.offered = chosen.offered()}),
        limits_{.without_progress = chosen.patience * second}, change_(limits_),
        statistics_interval_(chosen.statistics_interval) {
    due_ |= device_.set_target(chosen.target_pages);
  }
  balloon(const balloon&) = delete;
  balloon& operator=(const balloon&) = delete;

  [[nodiscard]] device_type& device() noexcept { return device_; }
  /// For the front end to change.
  [[nodiscard]] ballast::vhost_user::memory_table& memory() noexcept { return memory_; }

  // What people and managers ask for.

  /// Sizes beyond the guest's memory are left out: the guest would run out of memory for nothing.
  void set_target(std::uint32_t pages) {
    const std::uint64_t bytes = ballast::balloon::bytes_of(pages);
    if (guest_memory_ != 0 && bytes > guest_memory_)
      return report_->complain("target " + human_size(bytes) + ": the guest has only " +
                               human_size(guest_memory_));
    due_ |= device_.set_target(pages);
    if (is_running_) begin_change();
  }

  /// Statistics as soon as the guest can, all of them.
  void ask_statistics() {
    if (!is_running_) return report_->complain("stats: there is no guest");
    is_table_wanted_ = true;
    if (!device_.is_statistics_pending()) request_statistics();
  }

  void start_hinting() {
    if (!can_hint()) return;
    (void)host_.take_hinted();
    refuse("hint start", device_.start_hinting());
  }
  void stop_hinting() {
    if (can_hint()) refuse("hint stop", device_.finish_hinting());
  }

  void quit() noexcept { is_ending_ = true; }

  // What they may know. Sizes are in bytes, except for pages of 4096.

  [[nodiscard]] std::uint64_t guest_memory() const noexcept { return guest_memory_; }
  [[nodiscard]] std::uint32_t actual_pages() const noexcept { return device_.actual(); }
  [[nodiscard]] const ballast::balloon::snapshot& statistics() const noexcept { return latest_; }
  [[nodiscard]] std::int64_t statistics_time() const noexcept { return statistics_time_; }
  [[nodiscard]] std::uint32_t statistics_interval() const noexcept { return statistics_interval_; }
  void set_statistics_interval(std::uint32_t seconds) noexcept {
    statistics_interval_ = seconds;
    next_request_ = nanoseconds_now();
  }
  [[nodiscard]] bool offers(unsigned bit) const noexcept { return offered_.test(bit); }
  [[nodiscard]] bool is_running() const noexcept { return is_running_; }
  [[nodiscard]] bool is_ending() const noexcept { return is_ending_; }

  // What comes from the front end.

  void on_connect() const { report_->say("connected", "a front end has connected"); }

  /// `why`: `connection_closed` where it just went.
  void on_disconnect(ballast::error why) {
    note_running(false);
    look_at_memory();
    const bool has_failed = why != ballast::error::none && why != ballast::error::connection_closed;
    report_->say("disconnected", {{"reason", has_failed ? json(name(why)) : json()}},
                 "the front end has gone" +
                     (has_failed ? std::string(": ") + name(why) : std::string()));
  }

  /// Looks whether the guest's memory is another one.
  void look_at_memory() {
    if (generation_ == memory_.generation()) return;
    generation_ = memory_.generation();
    guest_memory_ = 0;
    for (const auto& r : memory_.regions()) guest_memory_ += r.size;
    (void)host_.look();
    if (guest_memory_ == 0) return;
    report_->say("memory", {{"bytes", guest_memory_}, {"regions", memory_.regions().size()}},
                 "guest memory: " + human_size(guest_memory_));
    if (host_.state() != ballast::error::none)
      report_->complain(std::string("it can't be given back: ") + name(host_.state()));
    if (host_.page_size() > ballast::balloon::page_size)
      report_->complain("it is made of pages of " + human_size(host_.page_size()) +
                        ": single pages of 4096 bytes in them can't be given back");
    if (ballast::balloon::bytes_of(device_.target()) > guest_memory_)
      report_->complain("the target is larger than that; the guest will give what it can");
  }

  /// Whether a driver uses the device now.
  void note_running(bool is_running) {
    if (is_running == is_running_) return;
    is_running_ = is_running;
    if (!is_running) return forget_guest();
    const auto& accepted = device_.negotiated_features();
    json bits = json::array();
    for (unsigned bit = 0; bit < 64; ++bit)
      if (accepted.test(bit)) bits.push_back(bit);
    report_->say("running", {{"features", std::move(bits)}},
                 "the driver runs, with " + names_of(accepted));
    next_request_ = nanoseconds_now() + second; // it may have left statistics already
    begin_change();
  }

  /// Looks at what has come of all that. Whether the balloon has another size.
  [[nodiscard]] bool look() {
    const auto events = device_.take_events();
    const std::uint64_t now = nanoseconds_now();
    if (events.statistics_arrived)
      if (const auto s = device_.take_statistics(now)) on_statistics(*s);
    if (events.hinting_changed) on_hinting();
    if (events.actual_changed)
      report_->say("balloon",
                   {{"actual_bytes", ballast::balloon::bytes_of(device_.actual())},
                    {"target_bytes", ballast::balloon::bytes_of(device_.target())}},
                   {});
    update_change(now);
    return events.actual_changed;
  }

  /// Does what is due by the clock.
  void tick() {
    const std::uint64_t now = nanoseconds_now();
    update_change(now);
    if (!is_running_ || statistics_interval_ == 0 || now < next_request_) return;
    next_request_ = now + statistics_interval_ * second;
    if (!device_.is_statistics_pending()) return request_statistics();
    report_->say("no_answer", "statistics: the guest has not answered the last request yet");
  }

  /// Milliseconds until `tick` has something to do; -1: never.
  [[nodiscard]] int time_to_tick() const noexcept {
    if (!is_running_) return -1;
    std::uint64_t next = statistics_interval_ != 0 ? next_request_ : UINT64_MAX;
    const std::uint64_t now = nanoseconds_now();
    if (change_.state() == ballast::balloon::adjustment_state::under_way)
      next = std::min(next, now + second);
    if (next == UINT64_MAX) return -1;
    constexpr std::uint64_t day = 86'400'000;
    return next <= now ? 0 : static_cast<int>(std::min((next - now) / 1'000'000 + 1, day));
  }

  /// What the front end is to be told, since the last call.
  [[nodiscard]] ballast::actions take_due() noexcept {
    return std::exchange(due_, ballast::actions{});
  }

 private:
  static constexpr std::uint64_t second = 1'000'000'000; // nanoseconds

  [[nodiscard]] bool can_hint() const {
    if (!is_running_) report_->complain("hint: there is no guest");
    return is_running_;
  }

  /// Carries out what was asked for, or says why the device refused it.
  void refuse(const char* what, const ballast::actions& answer) {
    if (answer.failure != ballast::error::none && !answer.needs_reset)
      return report_->complain(std::string(what) + ": " + name(answer.failure));
    due_ |= answer;
  }

  void request_statistics() { refuse("statistics", device_.request_statistics()); }

  void begin_change() {
    change_began_ = nanoseconds_now();
    last_actual_ = device_.actual();
    change_ = ballast::balloon::adjustment(limits_);
    (void)change_.begin(device_.target(), last_actual_, change_began_);
    if (change_.state() == ballast::balloon::adjustment_state::reached) return;
    report_->say("adjusting",
                 {{"actual_bytes", ballast::balloon::bytes_of(last_actual_)},
                  {"target_bytes", ballast::balloon::bytes_of(device_.target())}},
                 "balloon: from " + human_size(ballast::balloon::bytes_of(last_actual_)) + " to " +
                     human_size(ballast::balloon::bytes_of(device_.target())) + " ...");
  }

  void update_change(std::uint64_t now) {
    using state = ballast::balloon::adjustment_state;
    if (!is_running_) return;
    const std::uint32_t actual = device_.actual();
    const state before = change_.state(), after = change_.update(actual, now);
    const std::uint64_t bytes = ballast::balloon::bytes_of(actual);
    const std::string took = " after " + human_seconds(now - change_began_);
    if (before == state::under_way && after == state::reached)
      report_->say("reached", {{"actual_bytes", bytes}, {"seconds", seconds(now)}},
                   "balloon: " + human_size(bytes) + ", as asked for," + took);
    else if (before == state::under_way && after == state::given_up)
      report_->say("given_up",
                   {{"actual_bytes", bytes},
                    {"missing_bytes", ballast::balloon::bytes_of(change_.missing_pages())},
                    {"seconds", seconds(now)}},
                   "balloon: " + human_size(bytes) + took + ", and no nearer than " +
                       human_size(ballast::balloon::bytes_of(change_.missing_pages())) +
                       " to what was asked for; the guest goes on trying");
    else if (before == after && after != state::under_way && actual != last_actual_)
      report_->say("moved", {{"actual_bytes", bytes}},
                   "balloon: the guest made it " + human_size(bytes));
    last_actual_ = actual;
  }
  [[nodiscard]] double seconds(std::uint64_t now) const noexcept {
    return static_cast<double>(now - change_began_) / 1e9;
  }

  void on_statistics(const ballast::balloon::snapshot& s) {
    latest_ = s;
    statistics_time_ = std::time(nullptr);
    ballast::balloon::verdict v;
    std::uint64_t window = 0;
    if (baseline_) {
      window = s.received_at - baseline_->received_at;
      v = classify(ballast::balloon::rule_set::total, *baseline_, s, window,
                   {.host_memory = guest_memory_}, levels_);
      levels_ = v.observed;
    }
    const bool is_table = std::exchange(is_table_wanted_, false);
    report_->say("statistics", statistics_json(s),
                 is_table ? statistics_table(s, v) : statistics_line(s));
    if (is_table) say_totals();
    if (baseline_)
      report_->say("verdict", verdict_json(v, window),
                   verdict_line(v, window) +
                       (is_table && v.is_degraded
                            ? "\n            (degraded: this kernel lacks counters that decide)"
                            : ""));
    if (v.rule != ballast::balloon::rule_id::window_too_short) baseline_ = s;
  }

  void say_totals() const {
    const auto& host = host_.counters();
    const auto& did = device_.counters();
    std::string text = "balloon:    " + human_size(ballast::balloon::bytes_of(device_.actual())) +
                       " of " + human_size(ballast::balloon::bytes_of(device_.target())) + "; " +
                       human_size(host.discarded_bytes) + " given back to this machine so far";
    if (offers(ballast::balloon::feature::page_reporting))
      text += ", " + human_size(did.free_page_report_freed) + " of that reported";
    report_->say("totals",
                 {{"actual_bytes", ballast::balloon::bytes_of(device_.actual())},
                  {"target_bytes", ballast::balloon::bytes_of(device_.target())},
                  {"given_back_bytes", host.discarded_bytes},
                  {"reported_bytes", did.free_page_report_freed},
                  {"failures", did.discard_failures + did.bad_pages + host.failed_ranges}},
                 text);
  }

  void on_hinting() {
    const auto state = device_.hinting().state();
    if (state != ballast::balloon::hint_state::stop) return;
    const std::uint64_t bytes = host_.take_hinted();
    report_->say("hinted", {{"bytes", bytes}},
                 "hinting: " + human_size(bytes) + " are free, which a migration would not send");
    // Nobody migrates, so the guest may have them back.
    due_ |= device_.finish_hinting();
  }

  /// What was known of a guest that is gone.
  void forget_guest() {
    change_ = ballast::balloon::adjustment(limits_);
    latest_ = {};
    statistics_time_ = 0;
    baseline_.reset();
    levels_ = {};
    is_table_wanted_ = false;
  }

  ballast::feature_set offered_;
  const report* report_;
  ballast::vhost_user::memory_table memory_;
  std::uint64_t generation_ = 0; ///< of it, as it was last seen
  host host_{memory_};
  device_type device_;
  ballast::balloon::adjustment_limits limits_; ///< nanoseconds
  ballast::balloon::adjustment change_;
  std::uint64_t change_began_ = 0;
  std::uint32_t last_actual_ = 0;
  std::uint64_t guest_memory_ = 0;

  ballast::balloon::snapshot latest_;
  std::int64_t statistics_time_ = 0; ///< seconds since 1970
  std::optional<ballast::balloon::snapshot> baseline_;
  ballast::balloon::levels levels_;
  std::uint32_t statistics_interval_; ///< seconds
  std::uint64_t next_request_ = 0;
  bool is_table_wanted_ = false;

  ballast::actions due_;
  bool is_running_ = false;
  bool is_ending_ = false;
};

} // namespace vhost_user_balloon
