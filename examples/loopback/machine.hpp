// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "back_end.hpp"
#include "doorbell.hpp"
#include "guest.hpp"
#include "guest_pages.hpp"
#include "guest_ram.hpp"
#include "options.hpp"
#include "signals.hpp"
#include "vmm.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/result.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

namespace loopback {

/// A VMM and its guest while both run, each on its thread; this one is the VMM's.
class machine {
 public:
  machine(const guest_ram& ram, back_end& host, guest_pages& pages, guest_sources& sources,
          doorbells& bells, signals& inbox, const options& chosen)
      : bells_(&bells), signals_(&inbox), vmm_(ram, host, bells, inbox.fd(), chosen),
        guest_(ram, vmm_.driver_side(), pages, sources, bells, chosen),
        thread_([this] { guest_.run(); }) {}
  ~machine() {
    bells_->stop.ring();
    thread_.join();
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  /// Until the driver is ready.
  ending start() {
    return vmm_.serve_until([&] { return vmm_.is_driver_ready(); });
  }

  /// Until the balloon has so many pages; `show` is given how many it has meanwhile.
  template <class Show> ending resize(std::uint32_t pages, Show show) {
    vmm_.set_target(pages);
    return vmm_.serve_until([&] {
      const std::uint32_t actual = vmm_.actual();
      show(actual);
      return actual == pages;
    });
  }

  /// Asks the driver for its statistics.
  ending read_statistics(ballast::balloon::snapshot& to) {
    std::optional<ballast::balloon::snapshot> reply;
    vmm_.request_statistics();
    const ending e = vmm_.serve_until([&] { return (reply = vmm_.take_reply()).has_value(); });
    if (reply) to = *reply;
    return e;
  }

  /// A round of free page hinting: until the guest has no more, and may use its pages again.
  ending hint() {
    vmm_.start_hinting();
    const ending e = vmm_.serve_until([&] { return !vmm_.is_hinting(); });
    if (e == ending::done) vmm_.finish_hinting();
    return e;
  }

  /// Until the guest has reported all of its free blocks.
  ending report() {
    bells_->report.ring();
    return vmm_.serve_until([&] { return guest_.has_reported(); });
  }

  ending serve_for(monotonic::duration time) { return vmm_.serve_for(time); }

  [[nodiscard]] std::uint32_t actual() const { return vmm_.actual(); }
  /// What the two sides have agreed on.
  [[nodiscard]] negotiated agreed() { return vmm_.agreed(); }
  [[nodiscard]] ballast::balloon::device_counters counters() { return vmm_.counters(); }

  /// Gives the guest all of its memory back, because a signal asked to end.
  void interrupt() {
    signal_ = signals_->take();
    signals_->let_through(); // a second one does not wait
    (void)resize(0, [](std::uint32_t) {});
  }
  /// The number of that signal, or 0.
  [[nodiscard]] int signal() const { return signal_; }

  /// Why it did not end with `ending::done`.
  [[nodiscard]] std::string reason(ending e) {
    const std::string size = std::to_string(vmm_.actual()) + " pages in the balloon";
    if (e == ending::interrupted) return "interrupted; now there are " + size;
    if (e == ending::nothing_happened)
      return "lost notification: nothing happened for 10 s, with " + size;
    if (vmm_.failure() != ballast::error::none)
      return std::string("the device failed: ") + name(vmm_.failure());
    return std::string("the driver failed: ") + name(guest_.failure());
  }

 private:
  doorbells* bells_;
  signals* signals_;
  vmm vmm_;
  guest guest_;
  int signal_ = 0;
  std::thread thread_;
};

} // namespace loopback
