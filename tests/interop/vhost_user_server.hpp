// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// A balloon device for one guest of another process, over vhost-user.

#include <ballast/balloon/device.hpp>
#include <ballast/vhost_user/back_end.hpp>
#include <ballast/vhost_user/listener.hpp>

#include "shared_ram.hpp"

#include <poll.h>

#include <bit>
#include <chrono>
#include <cstdint>

namespace interop {

namespace vhost_user = ballast::vhost_user;

/// virtio_uml makes rings of 256 entries, whatever the device would like.
class vhost_user_server {
 public:
  using device_type = ballast::balloon::device<vhost_user::device_memory<256>, shared_ram, 256>;

  vhost_user_server(const ballast::balloon::device_options& options,
                    const vhost_user::back_end_options& protocol)
      : device_(ram_, options), back_end_(device_, table_, protocol) {}

  /// Waits at the socket for the guest.
  bool accept(const char* path, int milliseconds) {
    vhost_user::listener listener;
    if (!listener.open(path)) return false;
    pollfd ready{listener.get(), POLLIN, 0};
    if (poll(&ready, 1, milliseconds) == 1) back_end_.connect(listener.accept());
    return back_end_.is_connected();
  }

  /// Serves until `is_done()`; false if it did not come true in time or the guest has gone.
  template <class Condition> bool run_until(Condition is_done, int milliseconds) {
    using clock = std::chrono::steady_clock;
    const auto end = clock::now() + std::chrono::milliseconds(milliseconds);
    while (!is_done()) {
      if (clock::now() > end) return is_done();
      const auto served = back_end_.run_once(5); // the condition may be about something else
      if (!served) closed_for_ = served.error();
      if (!served) return is_done();
    }
    return true;
  }

  /// Does what an entry point of the device asked for.
  void perform(const ballast::actions& due) { back_end_.perform(due); }

  device_type& device() { return device_; }
  shared_ram& ram() { return ram_; }
  [[nodiscard]] const vhost_user::back_end_counters& counters() const {
    return back_end_.counters();
  }
  [[nodiscard]] const auto& back_end() const { return back_end_; }
  [[nodiscard]] bool is_running() const { return back_end_.running() != 0; }
  /// Whether the device has the first so many queues, and no other.
  [[nodiscard]] bool has_queues(unsigned count) const {
    return back_end_.running() == (std::uint64_t{1} << count) - 1;
  }
  /// How often a driver made the device run.
  [[nodiscard]] std::uint64_t activations() const { return back_end_.activations(); }
  /// The last call that the device refused; none in a good run.
  [[nodiscard]] ballast::error failure() const { return back_end_.failure(); }
  /// Why the connection ended.
  [[nodiscard]] ballast::error closed_for() const { return closed_for_; }

 private:
  vhost_user::memory_table table_;
  shared_ram ram_{table_};
  device_type device_;
  vhost_user::back_end<device_type> back_end_;
  ballast::error closed_for_ = ballast::error::none;
};

} // namespace interop
