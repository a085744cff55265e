// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest.hpp"
#include "interrupts.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "page_contents.hpp"
#include "steps.hpp"

#include <ballast/balloon/driver.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/device_registers.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/negotiation.hpp>

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace qtest_driver {

namespace balloon = ballast::balloon;

/// The balloon driver at work on a device of QEMU. After `start` it does what it does because of
/// interrupts, and of nothing else.
template <ballast::guest_memory M, ballast::driver_transport T> class session {
 public:
  static constexpr std::uint32_t queue_size_max = 1024; ///< the longest queue of QEMU's device
  static constexpr std::uint32_t poison_value = 0xaaaa'aaaa;
  using driver_type = balloon::driver<M, T, guest_pages<M>, guest_sources, queue_size_max>;

  /// `is_whole`: with all that the driver can do, and free pages that hold the poison value as with
  /// Linux's page_poison=1; otherwise without poison, and it does not hint, though the device
  /// could.
  session(machine& host, M& memory, T& device, interrupts<T>& inbox, const options& chosen,
          bool is_whole, steps& to)
      : host_(&host), memory_(&memory), device_(&device), inbox_(&inbox), chosen_(&chosen),
        to_(&to), is_whole_(is_whole), contents_(memory), pages_(memory),
        driver_(memory, device, pages_, sources_, place::queues, how(chosen, is_whole)) {}
  session(const session&) = delete;
  session& operator=(const session&) = delete;

  // The driver.

  void start() { carry_out(driver_.start()); }

  /// Rings for what is due, and steps as often as the driver wants.
  void carry_out(ballast::actions due) {
    for (;; due = driver_.step()) {
      for (std::uint16_t queue = 0; queue < balloon::queue_kind_count; ++queue)
        if (due.notifies(queue)) device_->notify(queue);
      failure_ = due.failure;
      if (due.more_work == 0 || failure_ != ballast::error::none) return;
    }
  }

  /// Waits for interrupts and answers them, until `is_done`; false where the driver gave up, or it
  /// took too long.
  template <class Done> bool serve_until(Done is_done) {
    const auto until = qemu::clock::now() + std::chrono::seconds(10);
    while (!is_done()) {
      if (failure_ != ballast::error::none || qemu::clock::now() > until) return false;
      const std::uint8_t why = inbox_->wait(qemu::milliseconds(2));
      interrupted_ += why != 0;
      if ((why & ballast::interrupt_reason::config_change) != 0)
        carry_out(driver_.on_config_change());
      if ((why & ballast::interrupt_reason::used_buffer) != 0 && failure_ == ballast::error::none)
        carry_out(driver_.step());
    }
    return true;
  }

  /// How often there was an interrupt.
  [[nodiscard]] unsigned interrupted() const noexcept { return interrupted_; }
  /// Why the driver refused the last call, or gave up.
  [[nodiscard]] ballast::error failure() const noexcept { return failure_; }

  /// A field of the configuration space; 0 where it can't be read.
  [[nodiscard]] std::uint32_t config(std::uint32_t offset) {
    struct raw_field {
      std::byte at[sizeof(ballast::le32)]{};
    } raw;
    if (!read_config_consistent(*device_, offset, raw.at)) return 0;
    return std::uint32_t{std::bit_cast<ballast::le32>(raw)};
  }

  // QEMU.

  /// Has QEMU ask for a balloon of so many pages; whether the driver got there. QEMU's figure is
  /// what is left of the memory.
  bool set_target(std::uint32_t pages) {
    const auto said = host_->monitor().command(
        "balloon", {{"value", machine::ram_bytes - balloon::bytes_of(pages)}});
    return said && serve_until([&] { return driver_.actual() == pages && driver_.is_idle(); });
  }
  /// The device, for commands.
  [[nodiscard]] static std::string path() {
    return std::string("/machine/peripheral/") + machine::device_id;
  }

  /// A step; where not all is in use its name says so.
  bool check(bool holds, const std::string& name, const std::string& seen) {
    return to_->check(holds, is_whole_ ? name : name + ", without poison and hinting", seen);
  }

  [[nodiscard]] driver_type& driver() noexcept { return driver_; }
  [[nodiscard]] M& memory() noexcept { return *memory_; }
  [[nodiscard]] T& device() noexcept { return *device_; }
  [[nodiscard]] qemu::qmp& monitor() noexcept { return host_->monitor(); }
  [[nodiscard]] const options& chosen() const noexcept { return *chosen_; }
  [[nodiscard]] page_contents<M>& contents() noexcept { return contents_; }
  [[nodiscard]] guest_pages<M>& pages() noexcept { return pages_; }
  [[nodiscard]] guest_sources& sources() noexcept { return sources_; }
  [[nodiscard]] bool is_whole() const noexcept { return is_whole_; }

 private:
  static balloon::driver_options how(const options& chosen, bool is_whole) {
    balloon::driver_options options{.has_poison = is_whole, .poison_value = poison_value};
    options.accepted = driver_type::supported.without(ballast::feature::in_order);
    if (!is_whole) options.accepted.clear(balloon::feature::free_page_hint);
    if (!chosen.has_event_idx) options.accepted.clear(ballast::feature::event_idx);
    if (!chosen.is_packed) options.accepted.clear(ballast::feature::ring_packed);
    return options;
  }

  machine* host_;
  M* memory_;
  T* device_;
  interrupts<T>* inbox_;
  const options* chosen_;
  steps* to_;
  bool is_whole_;
  page_contents<M> contents_;
  guest_pages<M> pages_;
  guest_sources sources_;
  driver_type driver_;
  ballast::error failure_ = ballast::error::none;
  unsigned interrupted_ = 0;
};

/// A time as it is printed.
[[nodiscard]] inline std::string text_since(qemu::clock::time_point begin) {
  const auto took = std::chrono::round<qemu::milliseconds>(qemu::clock::now() - begin);
  return std::to_string(took.count()) + " ms";
}

} // namespace qtest_driver
