// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/mapped_memory.hpp>
#include <ballast/transport/mmio_device.hpp>

#include "linux_kernel.h"
#include "support/mmio_rules.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

namespace interop {

/// A machine for Linux in this process: RAM, and a device of ours behind mmio registers with an
/// interrupt line. The device runs, and Linux is interrupted, in `step`: while Linux waits, or when
/// the test says so.
template <class Device> class linux_machine {
 public:
  static constexpr std::size_t ram_bytes = 64u << 20;
  using bus_type = ballast::mmio_device<Device, ballast::mapped_memory>;

  /// `make(ram)` gives the device.
  template <class Make>
  linux_machine(std::string name, ballast::mmio_version version, Make&& make)
      : name(std::move(name)),
        ram(static_cast<std::byte*>(std::aligned_alloc(4u << 20, ram_bytes))),
        device(make(ram.get())), bus(*device, memory_, version) {
    std::memset(ram.get(), 0, ram_bytes);
    linux_boot(&hardware_, ram.get(), ram_bytes);
  }
  linux_machine(const linux_machine&) = delete;
  linux_machine& operator=(const linux_machine&) = delete;

  struct freed {
    void operator()(std::byte* p) const noexcept { std::free(p); }
  };
  std::string name;
  std::unique_ptr<std::byte, freed> ram;

 private:
  ballast::memory_region region_{linux_ram_begin, ram.get(), ram_bytes};
  ballast::mapped_memory memory_{*ballast::mapped_memory::over({&region_, 1})};

 public:
  std::unique_ptr<Device> device;
  bus_type bus;
  ballast_test::mmio_rules<bus_type> rules{bus};
  std::uint64_t notifications = 0, interrupts = 0, lost_interrupts = 0, refusals = 0;
  bool is_right = true;

  /// The device's loop and the interrupt line; whether anything moved.
  bool step() {
    const std::uint64_t queues = rules.due.more_work;
    rules.due = {};
    for (std::uint16_t queue = 0; queue < device->queue_count(); ++queue)
      if ((queues >> queue & 1) != 0) rules.due |= bus.process(queue, 8);
    count_refusal();
    if (!bus.is_interrupting()) return queues != 0;
    ++interrupts;
    lost_interrupts += linux_interrupt() == 0;
    return true;
  }
  /// Until neither the device nor Linux has anything to do.
  void settle() {
    for (int i = 0; i < 1'000'000; ++i)
      if (!step() && linux_work() == 0) return;
    check(false, "the machine comes to rest");
  }
  /// For what was called on the device itself.
  void carry_out(const ballast::actions& due) { rules.due |= bus.carry_out(due); }

  void check(bool holds, const char* what) {
    if (holds) return;
    std::printf("FAIL Linux's mmio, %s: %s\n", name.c_str(), what);
    is_right = false;
  }

 private:
  static std::uint64_t read(void* context, std::uint64_t offset, unsigned width) {
    auto& self = *static_cast<linux_machine*>(context);
    if constexpr (requires { self.device->before_read(self, offset); })
      self.device->before_read(self, offset);
    auto region = self.rules.access();
    if (width == 1) return region.template load<std::uint8_t>(offset);
    if (width == 2) return region.template load<std::uint16_t>(offset);
    return region.template load<std::uint32_t>(offset);
  }
  static void write(void* context, std::uint64_t offset, unsigned width, std::uint64_t value) {
    auto& self = *static_cast<linux_machine*>(context);
    auto region = self.rules.access();
    self.notifications += offset == ballast::mmio_register::queue_notify;
    if (width == 1)
      region.store(offset, static_cast<std::uint8_t>(value));
    else if (width == 2)
      region.store(offset, static_cast<std::uint16_t>(value));
    else
      region.store(offset, static_cast<std::uint32_t>(value));
    self.count_refusal();
  }
  static int wait(void* context) { return static_cast<linux_machine*>(context)->step() ? 1 : 0; }

  void count_refusal() {
    refusals += rules.due.failure != ballast::error::none;
    rules.due.failure = ballast::error::none;
  }

  linux_hardware hardware_{this, read, write, wait};
};

} // namespace interop
