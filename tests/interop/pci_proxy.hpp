// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// The device's end of QEMU's x-pci-proxy-dev: a PCI function that another process serves. QEMU
// sends what the guest does to its configuration space and BARs over a socket, with files for the
// guest's memory. It trusts its peer. The protocol is QEMU's own: docs/devel/multi-process.rst and
// include/hw/remote/mpqemu-link.h say what it is.

#include <ballast/balloon/device.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/transport/pci_device.hpp>
#include <ballast/vhost_user/in_flight_memory.hpp>

#include "../../examples/qemu/socket.hpp"
#include "guest_ram.hpp"

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace interop {

/// Bytes of a message, the same in both directions, and the files that come with it.
struct pci_proxy_message {
  enum command : std::int32_t {
    sync_memory = 0, ///< the guest's memory: all of it, each time. No reply.
    reply = 1,
    write_config = 2,
    read_config = 3,
    write_bar = 4,
    read_bar = 5,
    set_interrupt_file = 6, ///< of use with KVM only. No reply.
    reset = 7,
    first_other = 100, ///< from here on they are not QEMU's
  };
  static constexpr std::size_t regions_max = 8;
  struct header {
    std::int32_t command;
    std::int32_t padding;
    std::uint64_t size;
  };
  struct memory_table {
    std::array<std::uint64_t, regions_max> address, size, offset;
  };
  struct config_access {
    std::uint32_t offset, value;
    std::int32_t width;
  };
  struct bar_access {
    std::uint64_t address, value;
    std::uint32_t width;
    std::uint8_t is_memory; ///< not I/O ports
  };

  header head{};
  std::array<std::byte, sizeof(memory_table)> payload{};
  std::vector<qemu::descriptor> files;

  template <class T> [[nodiscard]] T as() const {
    T value;
    __builtin_memcpy(&value, payload.data(), sizeof(T));
    return value;
  }
  [[nodiscard]] bool wants_reply() const {
    return head.command != sync_memory && head.command != set_interrupt_file;
  }
  [[nodiscard]] static pci_proxy_message reply_of(std::uint64_t value);
};

/// False when the other end has gone, or sends what is no message.
[[nodiscard]] bool receive(int connection, pci_proxy_message& to);
[[nodiscard]] bool send(int connection, const pci_proxy_message& message);

/// How interrupts get to the guest: QEMU wires the proxy's only with KVM.
struct interrupt_wires {
  std::function<void(std::uint64_t address, std::uint32_t data)> send_message; ///< MSI-X
  std::function<void(bool is_raised)> set_line;                                ///< INTx
};

/// Serves one balloon device.
class pci_proxy {
 public:
  /// Notes which chains are held, if there is a `kept_state`.
  using memory_type = ballast::vhost_user::in_flight_memory<
      ballast::mapped_memory, ballast::mapped_memory::window_type, kept_state::queue_size>;
  using device_type = ballast::balloon::device<memory_type, guest_ram, kept_state::queue_size>;
  using bus_type = ballast::pci_device<device_type, memory_type>;

  struct options {
    ballast::balloon::device_options device;
    ballast::pci_device_options bus;
  };

  pci_proxy(qemu::descriptor connection, interrupt_wires wires, const options& made_of)
      : connection_(std::move(connection)), wires_(std::move(wires)) {
    plug(made_of);
  }

  /// Another device in the same slot: for the guest one that was pulled out and put in again. Its
  /// BARs have to be as large as before: QEMU asks for them once.
  void plug(const options& made_of) {
    bus_.reset();
    device_.emplace(ram_, made_of.device);
    bus_.emplace(*device_, memory_, made_of.bus);
  }

  /// Keeps there what another process needs to go on; goes on if there is something. The memory
  /// comes later, then its queues begin where they were.
  /// Errors: the device's.
  [[nodiscard]] ballast::result<void> keep_at(kept_state& state);
  void save();
  /// What comes with a command of `first_other` and above.
  void on_other(std::function<void(const pci_proxy_message&)> what) { on_other_ = std::move(what); }

  /// Waits for a message, or for something to read from one of the other files, and handles it.
  /// False when QEMU has gone.
  bool run_once(std::span<const int> others, int milliseconds);

  /// Serves until `is_done()`; false if it did not come true in time or QEMU has gone.
  template <class Condition> bool run_until(Condition is_done, int milliseconds) {
    using clock = std::chrono::steady_clock;
    const auto end = clock::now() + std::chrono::milliseconds(milliseconds);
    while (!is_done()) {
      if (clock::now() > end || !run_once(watched_, 20)) return is_done();
    }
    return true;
  }
  /// Files that `run_until` looks at its condition for.
  void watch(std::vector<int> files) { watched_ = std::move(files); }

  /// Does what a call of the device asked for.
  void perform(const ballast::actions& due) { carry_out(bus_->carry_out(due)); }

  device_type& device() { return *device_; }
  bus_type& bus() { return *bus_; }
  guest_ram& ram() { return ram_; }
  [[nodiscard]] bool is_connected() const { return is_connected_; }
  /// The last call that the device refused, the last request that failed; none in a good run.
  [[nodiscard]] ballast::error failure() const { return failure_; }

  struct counters {
    std::uint64_t config_accesses = 0, bar_accesses = 0;
    std::uint64_t notifications = 0; ///< of the driver: accesses that make a queue be processed
    std::uint64_t messages = 0;      ///< MSI-X
    std::uint64_t line_rises = 0;    ///< INTx
    std::uint64_t memory_tables = 0; ///< that said something new
    std::uint64_t resets = 0;        ///< of the machine
    std::uint64_t unclaimed = 0;     ///< accesses of no BAR
  };
  [[nodiscard]] const counters& counted() const { return counted_; }

 private:
  static constexpr std::uint32_t budget = 64; ///< buffers

  bool handle(pci_proxy_message& got);
  bool handle_bar(const pci_proxy_message& got);
  bool answer(std::uint64_t value);
  bool take_memory(pci_proxy_message& got);
  void follow_queues();
  void resume();
  void carry_out(ballast::actions due);
  void interrupt(const ballast::actions& due);

  qemu::descriptor connection_;
  interrupt_wires wires_;
  guest_ram ram_;
  std::array<memory_type::log_type, kept_state::queues> logs_;
  memory_type memory_{ballast::mapped_memory(), logs_};
  std::optional<device_type> device_;
  std::optional<bus_type> bus_;
  std::vector<int> watched_;
  std::function<void(const pci_proxy_message&)> on_other_;
  kept_state* kept_ = nullptr;
  std::uint64_t replies_ = 0, last_reply_ = 0;
  counters counted_;
  ballast::error failure_ = ballast::error::none;
  std::optional<bool> is_line_raised_ = false; ///< none: somebody was there before
  bool is_to_resume_ = false;
  bool is_connected_ = true;
};

} // namespace interop
