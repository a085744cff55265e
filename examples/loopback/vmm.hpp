// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "back_end.hpp"
#include "doorbell.hpp"
#include "guest_ram.hpp"
#include "options.hpp"
#include "registers.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/page_ranges.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/features.hpp>

#include <chrono>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <optional>
#include <poll.h>
#include <vector>

namespace loopback {

using monotonic = std::chrono::steady_clock;

[[nodiscard]] inline std::uint64_t nanoseconds_now() noexcept {
  const auto now = monotonic::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::nanoseconds(now).count());
}

/// How waiting for the guest ended.
enum class ending : std::uint8_t { done, nothing_happened, interrupted, failed };

/// What driver and device have agreed on.
struct negotiated {
  bool is_all_offered = false; ///< the driver accepted every feature it was offered
  bool is_packed = false;
  bool is_in_order = false;
  std::uint32_t queue_size = 0;
  std::uint32_t poison = 0; ///< what free pages hold
};

/// The VMM: owns the device, and on its thread serves the queues and says how large the balloon is
/// to be.
class vmm {
 public:
  /// `signals`: a signalfd, whose signals interrupt any waiting.
  vmm(const guest_ram& ram, back_end& host, doorbells& bells, int signals, const options& chosen)
      : memory_(ram.accessor()), host_(&host), bells_(&bells), signals_(signals),
        tracker_(track(inflated_, ram, host)),
        device_(host, {.offered = offered(chosen),
                       .target_pages_max = *ballast::balloon::pages_in(ram.size()),
                       .host_page_size = host.page_size(),
                       .tracker = inflated_.empty() ? nullptr : &tracker_}),
        registers_(device_, memory_, bells, chosen.queue_size) {}
  vmm(const vmm&) = delete;
  vmm& operator=(const vmm&) = delete;

  [[nodiscard]] registers& driver_side() noexcept { return registers_; }

  void set_target(std::uint32_t pages) noexcept {
    carry_out(registers_.carry_out(device_.set_target(pages)));
  }
  [[nodiscard]] std::uint32_t actual() const noexcept { return device_.actual(); }

  void request_statistics() noexcept {
    const std::scoped_lock hold(registers_.lock());
    carry_out(registers_.carry_out(device_.request_statistics()));
  }
  /// The reply to a request, once it is there.
  [[nodiscard]] std::optional<ballast::balloon::snapshot> take_reply() noexcept {
    const std::scoped_lock hold(registers_.lock());
    const auto taken = device_.take_statistics(nanoseconds_now());
    // The first statistics come without having been asked for.
    if (!taken || !taken->is_solicited) return std::nullopt;
    return *taken;
  }

  /// A migration begins, and the guest is asked for what is free.
  void start_hinting() noexcept {
    const std::scoped_lock hold(registers_.lock());
    host_->mark_all_dirty();
    carry_out(registers_.carry_out(device_.start_hinting()));
  }
  void finish_hinting() noexcept {
    const std::scoped_lock hold(registers_.lock());
    carry_out(registers_.carry_out(device_.finish_hinting()));
  }
  /// Whether the round is not at its end.
  [[nodiscard]] bool is_hinting() noexcept {
    const std::scoped_lock hold(registers_.lock());
    return device_.hinting().state() != ballast::balloon::hint_state::stop;
  }

  [[nodiscard]] negotiated agreed() noexcept {
    const std::uint32_t queue_size = registers_.queue_size();
    const std::scoped_lock hold(registers_.lock());
    const ballast::feature_set& accepted = device_.negotiated_features();
    return {.is_all_offered = accepted == device_.offered_features(),
            .is_packed = accepted.test(ballast::feature::ring_packed),
            .is_in_order = accepted.test(ballast::feature::in_order),
            .queue_size = queue_size,
            .poison = device_.poison()};
  }
  [[nodiscard]] bool is_driver_ready() const noexcept {
    return (registers_.status() & ballast::status::driver_ok) != 0;
  }
  [[nodiscard]] ballast::balloon::device_counters counters() noexcept {
    const std::scoped_lock hold(registers_.lock());
    return device_.counters();
  }
  /// Why the device or a request failed.
  [[nodiscard]] ballast::error failure() const noexcept { return failure_; }

  /// Serves the device until `is_done()`, which is asked whenever something has happened.
  template <class Condition> ending serve_until(Condition is_done) noexcept {
    for (unsigned quiet = 0; quiet < patience;) {
      if (has_failed()) return ending::failed;
      if (is_done()) return ending::done;
      const ending e = serve(std::chrono::seconds(1));
      if (e == ending::interrupted) return e;
      quiet = e == ending::nothing_happened ? quiet + 1 : 0;
    }
    return ending::nothing_happened;
  }

  /// Serves the device for so long.
  ending serve_for(monotonic::duration time) noexcept {
    const auto end = monotonic::now() + time;
    while (monotonic::now() < end) {
      if (has_failed()) return ending::failed;
      if (serve(end - monotonic::now()) == ending::interrupted) return ending::interrupted;
    }
    return ending::done;
  }

 private:
  // Seconds without any event after which a notification was lost: one by one, since all of them
  // would be over at once for a process that was stopped meanwhile.
  static constexpr unsigned patience = 10;
  static constexpr std::uint32_t budget = 64; // buffers at a time, then it is another queue's turn

  [[nodiscard]] static ballast::feature_set offered(const options& chosen) noexcept {
    using namespace ballast::balloon;
    ballast::feature_set all{feature::stats_vq, feature::deflate_on_oom,
                             ballast::feature::event_idx};
    if (chosen.is_packed) all.set(ballast::feature::ring_packed);
    if (chosen.is_in_order) all.set(ballast::feature::in_order);
    if (chosen.is_hinting) all.set(feature::free_page_hint);
    if (chosen.is_reporting) all.set(feature::page_reporting);
    if (chosen.poison()) all.set(feature::page_poison);
    return all;
  }

  /// Where a page of the host is many of the balloon's: which of them are inflated.
  [[nodiscard]] static ballast::balloon::host_page_tracker
  track(std::vector<std::uint32_t>& storage, const guest_ram& ram, const back_end& host) {
    using namespace ballast::balloon;
    if (host.page_size() == page_size) return {};
    const page_range all{0, *pages_in(ram.size())};
    storage.resize(
        static_cast<std::size_t>(host_page_tracker::storage_size(all, host.page_size())));
    return *host_page_tracker::over(storage, all, host.page_size());
  }

  /// Sleeps until something happens, or for so long, and deals with it.
  ending serve(monotonic::duration longest) noexcept {
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(longest);
    pollfd fds[] = {{bells_->available.fd(), POLLIN, 0},
                    {bells_->registers.fd(), POLLIN, 0},
                    {signals_, POLLIN, 0}};
    if (poll(fds, std::size(fds), static_cast<int>(wait.count())) == 0)
      return ending::nothing_happened;
    if (fds[2].revents != 0) return ending::interrupted;
    std::uint64_t queues = 0;
    if (bells_->registers.take()) {
      const std::scoped_lock hold(registers_.lock());
      auto due = registers_.take_actions();
      // A register write that was refused is the guest's own affair.
      if (!due.needs_reset) due.failure = ballast::error::none;
      carry_out(due);
      queues = due.more_work;
    }
    if (bells_->available.take()) queues |= registers_.take_notified();
    process(queues);
    return ending::done;
  }

  void process(std::uint64_t queues) noexcept {
    for (unsigned queue = 0; queues != 0; queue = (queue + 1) % 64) {
      const std::uint64_t bit = std::uint64_t{1} << queue;
      if ((queues & bit) == 0) continue;
      const std::scoped_lock hold(registers_.lock());
      const auto due = registers_.process(static_cast<std::uint16_t>(queue), budget);
      queues = (queues & ~bit) | due.more_work;
      carry_out(due);
    }
  }

  void carry_out(const ballast::actions& due) noexcept {
    if (due.notify_queues != 0) bells_->used.ring();
    if (due.config_changed) bells_->config.ring();
    if (failure_ == ballast::error::none) failure_ = due.failure;
  }

  [[nodiscard]] bool has_failed() const noexcept {
    return failure_ != ballast::error::none || (registers_.status() & ballast::status::failed) != 0;
  }

  ballast::mapped_memory memory_;
  back_end* host_;
  doorbells* bells_;
  int signals_;
  std::vector<std::uint32_t> inflated_; ///< the tracker's; empty: there is no use for one
  ballast::balloon::host_page_tracker tracker_;
  balloon_device device_;
  registers registers_;
  ballast::error failure_ = ballast::error::none;
};

} // namespace loopback
