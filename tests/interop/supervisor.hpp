// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// A device that survives its process: this one keeps the sockets and the state, another one serves
// the device, and when that dies a third one goes on.

#include "guest.hpp"
#include "kept_state.hpp"
#include "pci_proxy.hpp"

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>

#include <sys/types.h>

namespace interop {

class supervisor {
 public:
  /// `linux`: the guest that the device is in.
  supervisor(guest& linux, const pci_proxy::options& options);
  supervisor(const supervisor&) = delete;
  supervisor& operator=(const supervisor&) = delete;
  ~supervisor() { end_worker(); }

  /// Passes on what comes, from either side; false when QEMU has gone.
  bool run_once(int other, int milliseconds);
  template <class Condition> bool run_until(Condition is_done, int milliseconds) {
    using clock = std::chrono::steady_clock;
    const auto end = clock::now() + std::chrono::milliseconds(milliseconds);
    while (!is_done()) {
      if (clock::now() > end || !run_once(linux_->shell(), 5)) return is_done();
    }
    return true;
  }

  void set_target(std::uint32_t pages);
  void request_statistics();

  /// Kills the worker, wherever it is.
  void kill_worker();
  [[nodiscard]] kept_state& state() { return *state_; }
  [[nodiscard]] std::uint32_t actual() const {
    return state_->has_any() ? state_->last().device.actual : 0;
  }
  /// Pages of the balloon, as the workers noted.
  [[nodiscard]] std::uint32_t pages() const;
  /// How many workers died.
  [[nodiscard]] std::uint64_t deaths() const { return deaths_; }
  /// Of them, in the middle of a request of QEMU's.
  [[nodiscard]] std::uint64_t deaths_in_request() const { return deaths_in_request_; }

 private:
  // What the two processes say to each other, beside QEMU's own messages.
  enum command : std::int32_t {
    send_interrupt = pci_proxy_message::first_other,
    set_line,
    set_target_to,
    ask_statistics,
  };
  [[nodiscard]] static pci_proxy_message message_of(command what, std::uint64_t address,
                                                    std::uint64_t value);

  void start_worker();
  void end_worker();
  [[noreturn]] void work(qemu::descriptor socket);
  bool take_from_qemu();
  void take_from_worker();
  void bury();

  guest* linux_;
  pci_proxy::options options_;
  qemu::descriptor qemu_, worker_;
  pid_t id_ = -1;
  kept_state* state_;
  std::optional<pci_proxy_message> memory_;  ///< the last table
  std::optional<pci_proxy_message> pending_; ///< QEMU waits for the answer
  std::uint64_t replies_ = 0;
  std::uint32_t target_ = 0;
  std::uint64_t deaths_ = 0, deaths_in_request_ = 0;
};

} // namespace interop
