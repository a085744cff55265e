// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "../qemu/qtest.hpp"
#include "../qemu/socket.hpp"

#include <chrono>
#include <cstdint>
#include <thread>

namespace qtest_driver {

/// How the driver learns that its device interrupts: by looking at its register all the time; or by
/// its line, as it comes in at the interrupt controller, and then that register.
template <class Device> class interrupts {
 public:
  interrupts(Device& device, qemu::qtest& cpu, bool has_line) noexcept
      : device_(&device), cpu_(&cpu), has_line_(has_line) {
    if (has_line) cpu.intercept_in("ioapic");
  }

  /// Why it interrupts, as the ISR status says: bit 0, buffers were used; bit 1, the configuration
  /// changed. 0 where it did not in time.
  [[nodiscard]] std::uint8_t wait(qemu::milliseconds time) noexcept {
    const auto until = qemu::clock::now() + time;
    do {
      if (has_line_) look_at_line(is_raised_ ? qemu::milliseconds(0) : time);
      if (has_line_ && !is_raised_) continue;
      if (const std::uint8_t why = take()) return why;
      if (!has_line_) std::this_thread::sleep_for(std::chrono::microseconds(50));
    } while (cpu_->is_open() && qemu::clock::now() < until);
    return 0;
  }

  /// How often the line was raised; it is down now if `is_raised` is false.
  [[nodiscard]] unsigned raised() const noexcept { return raised_; }
  [[nodiscard]] unsigned line() const noexcept { return line_; }
  [[nodiscard]] bool is_raised() noexcept {
    while (look_at_line({})) {
    }
    return is_raised_;
  }

 private:
  static constexpr unsigned first_pci_line = 16; ///< below are those of the machine's own devices

  /// Takes up one change of a line, if there is one in time.
  bool look_at_line(qemu::milliseconds time) noexcept {
    const auto change = cpu_->take_interrupt(time);
    if (change && change->number >= first_pci_line) {
      line_ = change->number;
      is_raised_ = change->is_raised;
      raised_ += change->is_raised;
    }
    return change.has_value();
  }

  std::uint8_t take() noexcept {
    if constexpr (requires { device_->take_isr(); }) {
      return device_->take_isr();
    } else {
      const auto why = static_cast<std::uint8_t>(device_->interrupt_status());
      if (why != 0) device_->acknowledge(why);
      return why;
    }
  }

  Device* device_;
  qemu::qtest* cpu_;
  bool has_line_;
  bool is_raised_ = false;
  unsigned line_ = 0, raised_ = 0;
};

} // namespace qtest_driver
