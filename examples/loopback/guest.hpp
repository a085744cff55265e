// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "doorbell.hpp"
#include "guest_pages.hpp"
#include "guest_ram.hpp"
#include "guest_statistics.hpp"
#include "registers.hpp"

#include <ballast/balloon/driver.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/negotiation.hpp>

#include <atomic>
#include <cstdint>
#include <iterator>
#include <poll.h>

namespace loopback {

/// The guest: what runs on its thread is the driver, which sleeps between interrupts.
class guest {
 public:
  using driver =
      ballast::balloon::driver<ballast::mapped_memory, registers, guest_pages, guest_statistics>;

  /// Bytes at the start of guest memory that the driver keeps for its queues: whole host pages.
  [[nodiscard]] static std::uint64_t kept_bytes() noexcept {
    return round_up(driver::memory_bytes, host_page_size());
  }

  guest(const guest_ram& ram, registers& device, guest_pages& pages, doorbells& bells) noexcept
      : memory_(ram.accessor()), device_(&device), bells_(&bells),
        driver_(memory_, device, pages, statistics_, 0, {.accepted = accepted}) {}
  guest(const guest&) = delete;
  guest& operator=(const guest&) = delete;

  /// Until `bells.stop` rings; the device is reset then. Or until something fails: FAILED is set.
  void run() noexcept {
    carry_out(driver_.start());
    while (failure() == ballast::error::none) {
      pollfd fds[] = {{bells_->config.fd(), POLLIN, 0},
                      {bells_->used.fd(), POLLIN, 0},
                      {bells_->stop.fd(), POLLIN, 0}};
      (void)poll(fds, std::size(fds), -1);
      if (bells_->stop.take()) return device_->set_status(0);
      if (bells_->config.take()) carry_out(driver_.on_config_change());
      if (bells_->used.take()) carry_out(driver_.step());
    }
    ballast::set_failed(*device_);
  }

  /// Why the driver gave up; from any thread.
  [[nodiscard]] ballast::error failure() const noexcept { return failure_.load(); }

 private:
  static constexpr ballast::feature_set accepted{
      ballast::balloon::feature::must_tell_host, ballast::balloon::feature::stats_vq,
      ballast::balloon::feature::deflate_on_oom, ballast::feature::event_idx};

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
  doorbells* bells_;
  guest_statistics statistics_;
  driver driver_;
  std::atomic<ballast::error> failure_{ballast::error::none};
};

} // namespace loopback
