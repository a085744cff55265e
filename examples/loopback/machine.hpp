// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "doorbell.hpp"
#include "guest.hpp"
#include "guest_pages.hpp"
#include "guest_ram.hpp"
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
  machine(guest_ram& ram, guest_pages& pages, doorbells& bells, signals& inbox)
      : bells_(&bells), signals_(&inbox), vmm_(ram, bells, inbox.fd()),
        guest_(ram, vmm_.driver_side(), pages, bells), thread_([this] { guest_.run(); }) {}
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

  ending serve_for(monotonic::duration time) { return vmm_.serve_for(time); }

  [[nodiscard]] std::uint32_t actual() const { return vmm_.actual(); }
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
