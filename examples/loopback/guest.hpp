// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "doorbell.hpp"
#include "free_blocks.hpp"
#include "guest_pages.hpp"
#include "guest_ram.hpp"
#include "guest_statistics.hpp"
#include "options.hpp"
#include "registers.hpp"

#include <ballast/balloon/driver.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/negotiation.hpp>

#include <atomic>
#include <cstdint>
#include <iterator>
#include <poll.h>

namespace loopback {

/// What the guest offers beside pages for the balloon.
struct guest_sources : guest_statistics, free_blocks {
  using free_blocks::free_blocks;
};

/// The guest: what runs on its thread is the driver, which sleeps between interrupts.
class guest {
 public:
  using driver = ballast::balloon::driver<ballast::mapped_memory, registers, guest_pages,
                                          guest_sources, queue_size_bound>;

  guest(const guest_ram& ram, registers& device, guest_pages& pages, guest_sources& sources,
        doorbells& bells, const options& chosen) noexcept
      : memory_(ram.accessor()), device_(&device), sources_(&sources), bells_(&bells),
        driver_(memory_, device, pages, sources, 0,
                {.accepted = driver::supported,
                 .has_poison = chosen.poison().has_value(),
                 .poison_value = chosen.poison().value_or(0)}) {}
  guest(const guest&) = delete;
  guest& operator=(const guest&) = delete;

  /// Until `bells.stop` rings; the device is reset then. Or until something fails: FAILED is set.
  void run() noexcept {
    carry_out(driver_.start());
    while (failure() == ballast::error::none) {
      pollfd fds[] = {{bells_->config.fd(), POLLIN, 0},
                      {bells_->used.fd(), POLLIN, 0},
                      {bells_->report.fd(), POLLIN, 0},
                      {bells_->stop.fd(), POLLIN, 0}};
      (void)poll(fds, std::size(fds), -1);
      if (bells_->stop.take()) return device_->set_status(0);
      // Asked first: with it comes what was rung before it.
      is_reporting_ = bells_->report.take() || is_reporting_;
      if (bells_->config.take()) carry_out(driver_.on_config_change());
      if (bells_->used.take()) carry_out(driver_.step());
      if (is_reporting_) report();
    }
    ballast::set_failed(*device_);
  }

  /// Why the driver gave up; from any thread.
  [[nodiscard]] ballast::error failure() const noexcept { return failure_.load(); }

  /// Whether all free blocks were reported; from any thread.
  [[nodiscard]] bool has_reported() const noexcept { return has_reported_.load(); }

 private:
  /// One report after the other; the VMM's side is told of the end.
  void report() noexcept {
    if (sources_->is_report_under_way()) return;
    if (sources_->has_reportable()) return carry_out(driver_.report());
    is_reporting_ = false;
    has_reported_.store(true);
    bells_->registers.ring();
  }

  void carry_out(ballast::actions due) noexcept {
    while (true) {
      for (std::uint16_t queue = 0; queue < ballast::balloon::queue_kind_count; ++queue)
        if (due.notifies(queue)) device_->notify(queue);
      if (due.failure != ballast::error::none) {
        failure_.store(due.failure);
        return;
      }
      if (due.more_work == 0) return;
      due = driver_.step();
    }
  }

  ballast::mapped_memory memory_;
  registers* device_;
  guest_sources* sources_;
  doorbells* bells_;
  driver driver_;
  bool is_reporting_ = false;
  std::atomic<bool> has_reported_{false};
  std::atomic<ballast::error> failure_{ballast::error::none};
};

} // namespace loopback
