// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "balloon.hpp"
#include "listening.hpp"
#include "poll_set.hpp"
#include "report.hpp"

#include <ballast/result.hpp>
#include <ballast/vhost_user/back_end.hpp>
#include <ballast/virtio/actions.hpp>

#include <array>
#include <cstddef>
#include <poll.h>
#include <span>
#include <string>

namespace vhost_user_balloon {

/// The socket of VMMs: one at a time is served, another waits until that has gone.
class front_end {
 public:
  front_end(balloon& guest, const report& to) noexcept
      : guest_(&guest), report_(&to), engine_(guest.device(), guest.memory()) {}

  /// Why it can't be had; empty where it can.
  [[nodiscard]] std::string open(const std::string& path) { return listen_at(socket_, path); }

  void add_to(poll_set& polled) {
    if (!engine_.is_connected()) {
      if (const int left = rest_.left(); left != 0) return polled.sleep_at_most(left);
      return polled.add(socket_.get(), POLLIN);
    }
    watched_ = engine_.watch(polled_);
    for (const pollfd& each : std::span(polled_).first(watched_)) polled.add(each.fd, each.events);
  }
  /// Whether there is something to do without anything to wait for.
  [[nodiscard]] bool has_work() const noexcept { return engine_.has_work(); }

  void serve(const poll_set& polled) {
    if (engine_.is_connected())
      serve_connected(polled);
    else if (polled.ready(socket_.get()) != 0)
      connect();
  }

  /// Tells the driver what the device wants told.
  void carry_out(const ballast::actions& due) {
    engine_.perform(due);
    look();
  }

 private:
  using engine = ballast::vhost_user::back_end<balloon::device_type, balloon::queue_size_max>;

  void connect() {
    file accepted = socket_.accept();
    if (!accepted.is_open()) return rest_.begin();
    engine_.connect(std::move(accepted));
    guest_->on_connect();
  }

  void serve_connected(const poll_set& polled) {
    for (pollfd& each : std::span(polled_).first(watched_)) each.revents = polled.ready(each.fd);
    const auto served = engine_.serve(std::span(polled_).first(watched_));
    watched_ = 0;
    guest_->look_at_memory();
    guest_->note_running(engine_.running() != 0);
    look();
    if (!engine_.is_connected()) guest_->on_disconnect(served.error());
  }

  /// What the device refused, or can't go on after, is the driver's affair; people may like to
  /// know.
  void look() {
    if (engine_.failure() == failure_) return;
    failure_ = engine_.failure();
    report_->complain(std::string("the driver did what it may not: ") + name(failure_));
  }

  balloon* guest_;
  const report* report_;
  ballast::vhost_user::listener socket_;
  accept_rest rest_;
  engine engine_;
  std::array<pollfd, engine::watched_max> polled_{};
  std::size_t watched_ = 0; ///< of `polled_`
  ballast::error failure_ = ballast::error::none;
};

} // namespace vhost_user_balloon
