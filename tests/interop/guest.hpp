// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// A Linux guest in QEMU (TCG) as tests/interop/guest_images.sh makes it: runs lines in its shell.

#include "../../examples/qemu/process.hpp"
#include "../../examples/qemu/qtest.hpp"
#include "../../examples/qemu/socket.hpp"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace interop {

struct guest_options {
  std::string kernel;    ///< the directory with vmlinuz and initramfs
  std::string directory; ///< for its console's log
  unsigned memory = 640; ///< MiB
  std::string kernel_options = {};
  bool is_proxied = true;             ///< slot 5 has a device that another process serves
  std::vector<std::string> more = {}; ///< options of QEMU
};

/// Started with the object, ends with it and with this process.
class guest {
 public:
  explicit guest(const guest_options& options);

  /// Our end of the proxy's socket.
  [[nodiscard]] qemu::descriptor take_proxy() { return std::move(proxy_); }
  /// Our end of QEMU's monitor.
  [[nodiscard]] qemu::descriptor take_monitor() { return std::move(monitor_); }

  /// Starts a line of the shell; `has_answered` says when it has ended.
  void run(const std::string& line);
  [[nodiscard]] bool has_answered();
  /// Whether the shell is there; asked before the first line.
  [[nodiscard]] bool is_ready();
  /// To wait for: something came from the shell.
  [[nodiscard]] int shell() const { return shell_.get(); }
  /// What the line printed, and its exit status.
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] int status() const { return status_.value_or(-1); }

  /// Interrupts, as the device would raise them: MSI-X is a write to memory.
  void send_message(std::uint64_t address, std::uint32_t data) {
    qtest_->write<std::uint32_t>(address, data);
  }
  /// Slot 5's INTA is pin 10 of the I/O APIC, as SeaBIOS wires it.
  void set_line(bool is_raised) { qtest_->set_irq_in("ioapic", "unnamed-gpio-in", 10, is_raised); }

  /// What the kernel said.
  [[nodiscard]] std::string console() const;
  /// QEMU.
  [[nodiscard]] pid_t id() const { return process_.id(); }
  /// Whether QEMU ends by itself in time.
  [[nodiscard]] bool ends(qemu::milliseconds time) { return process_.wait(time).has_value(); }
  /// Why QEMU cannot be used, if so.
  [[nodiscard]] std::string error() const;

 private:
  void receive();

  std::string log_;
  qemu::descriptor proxy_, shell_, monitor_;
  std::optional<qemu::qtest> qtest_;
  qemu::process process_;
  std::string text_;
  std::optional<int> status_;
};

/// The lines "NAME VALUE" and "NAME: VALUE kB", as in /proc/vmstat and /proc/meminfo; kB in bytes.
[[nodiscard]] std::map<std::string, std::uint64_t> parse_numbers(const std::string& text);

} // namespace interop
