// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "witness_device.hpp" // by its name alone: the fuzz targets have no -Itests

#include <ballast/memory/array_memory.hpp>
#include <ballast/transport/pci_device.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace ballast_test {

/// A PCI function whose guest may do anything, and what may never come of it: `wrongs` stays 0.
///
///     watched_function f({.is_transitional = true});
///     for (...) f.do_something(source);            // below(n): a number, random or of an input
///     if (f.wrongs != 0 || !f.start()) ...         // and a driver that keeps the rules gets on
class watched_function {
  using ram_type = ballast::array_memory<16>;

 public:
  /// Of a type that has a legacy interface, with queues that have no power of two.
  struct device_type : witness_device<ram_type> {
    [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return 5; }
    [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) const noexcept {
      return queue == 1 ? 0 : 100;
    }
  };
  using function_type = ballast::pci_device<device_type, ram_type>;

  constexpr explicit watched_function(const ballast::pci_device_options& options)
      : function(device, ram, options), is_transitional_(options.is_transitional) {}
  watched_function(const watched_function&) = delete;
  watched_function& operator=(const watched_function&) = delete;

  device_type device;
  ram_type ram;
  function_type function;
  std::uint32_t wrongs = 0;
  std::uint32_t raised = 0; ///< interrupts

  constexpr void write(unsigned bar, std::uint64_t offset, unsigned width, std::uint64_t value) {
    begin();
    const auto before = function.state();
    const ballast::actions due = function.write(bar, offset, width, value);
    if (due.failure == ballast::error::register_access) expect(function.state() == before);
    finish(due);
  }
  constexpr void write_config_space(std::uint32_t offset, unsigned width, std::uint32_t value) {
    begin();
    finish(function.write_config_space(offset, width, value));
  }
  constexpr void read(unsigned bar, std::uint64_t offset, unsigned width) {
    namespace c = ballast::pci::common_cfg;
    begin();
    const std::uint64_t got = function.read(bar, offset, width);
    if (width < 8 && (width & (width - 1)) == 0 && width != 0) expect(got >> (8 * width) == 0);
    if (bar == function_type::modern_bar) {
      if (offset == c::config_generation && width == 1) see_generation(got);
      if (offset == c::queue_size && width == 2)
        expect(got == 0 || std::has_single_bit(got) ||
               function.accepted().test(ballast::feature::ring_packed));
    }
    finish({});
  }
  constexpr void read_config_space(std::uint32_t offset, unsigned width) {
    begin();
    (void)function.read_config_space(offset, width);
    finish({});
  }
  constexpr void process(std::uint16_t queue) {
    const bool is_due =
        function.is_live() && queue < device_type::count && function.queues()[queue].size != 0;
    begin();
    const std::uint32_t processed = device.processed;
    const ballast::actions due = function.process(queue, 4);
    expect(device.processed == processed + is_due);
    finish(due);
  }
  /// The host changes a field, or the device says something by itself.
  constexpr void happen(const ballast::actions& what, std::uint32_t value) {
    begin();
    if (what.config_changed) (void)device.config.set32(0, value);
    finish(function.carry_out(what));
  }
  /// Another function goes on with the device; maybe from a state that was never anyone's.
  constexpr void restore(const ballast::pci_device_state& state) {
    function.restore(state);
    has_generation_ = false;
    check();
  }

  /// What a driver does that keeps the rules; whether the device is live then.
  constexpr bool start() {
    device.activate_answer = device.enable_answer = {};
    function.reset();
    has_generation_ = false;
    const bool is_legacy = is_transitional_ && device.resets % 2 != 0;
    if (is_legacy)
      start_legacy();
    else
      start_modern();
    const std::uint32_t size = is_legacy ? 64 : 16;
    return function.is_live() && function.queues()[0].size == size &&
           function.queues()[2].size == size;
  }

  template <class Source> constexpr void do_something(Source& source) {
    constexpr std::uint64_t values[] = {0,          1,       2,          3,          4,
                                        7,          9,       15,         64,         100,
                                        0x8000,     0xc000,  0xffff,     0x10000,    0x80000000,
                                        0xffffffff, 1 << 12, 0xfe000000, 1ull << 32, ~0ull};
    constexpr unsigned widths[] = {1, 2, 4, 8, 0, 3};
    namespace c = ballast::pci::common_cfg;
    const auto value = [&] { return values[source.below(20)]; };
    switch (source.below(16)) {
    case 0: // a register of the common configuration, as it is to be accessed
    case 1:
    case 2:
    case 3: {
      const std::uint32_t at = source.below(32) * 2;
      const unsigned natural = c::width_at(at);
      const bool is_status = at == c::device_status;
      if (is_status && source.below(4) != 0) return advance();
      return write(4, at, natural == 0 ? 2 : natural == 8 ? 4 : natural, value());
    }
    case 4: return write(4, c::queue_select, 2, source.below(4));
    case 5:
      if (source.below(4) == 0) return write(4, c::queue_reset, 2, 1);
      return notify(source.below(4));
    case 6: return write(4, source.below(0x4100), widths[source.below(6)], value());
    case 7:
      return read(4, source.below(2) != 0 ? source.below(64) : source.below(0x4100),
                  widths[source.below(6)]);
    case 8:
      return write(1, source.below(2) != 0 ? source.below(16) * 4 : source.below(0x900),
                   widths[source.below(6)], value());
    case 9: return write(0, source.below(40), widths[source.below(4)], value());
    case 10: return read(source.below(7), source.below(0x1100), widths[source.below(6)]);
    case 11:
      return write_config_space(source.below(260), widths[source.below(6)],
                                static_cast<std::uint32_t>(value()));
    case 12: return read_config_space(source.below(260), widths[source.below(6)]);
    case 13: return process(static_cast<std::uint16_t>(source.below(4)));
    case 14: return set_answers(source.below(8), source.below(8));
    default:
      return happen({.notify_queues = source.below(8),
                     .config_changed = source.below(2) != 0,
                     .needs_reset = source.below(32) == 1},
                    source.below(256));
    }
  }

 private:
  using state_type = ballast::pci_device_state;

  constexpr void expect(bool is_right) { wrongs += !is_right; }

  constexpr void begin() {
    for (std::size_t i = 0; i < queues_.size(); ++i) queues_[i] = function.queues()[i];
    resets_ = device.resets;
    queue_resets_ = device.queue_resets;
  }
  constexpr void finish(const ballast::actions& due) {
    expect((due.more_work | due.notify_queues) < 8);
    for (std::size_t i = 0; i < queues_.size(); ++i) { // RT-12
      const ballast::queue_layout& now = function.queues()[i];
      const bool is_taken = now.size == 0 && (device.resets != resets_ || !function.is_live() ||
                                              device.queue_resets != queue_resets_);
      expect(queues_[i].size == 0 || now == queues_[i] || is_taken);
      expect(now.size <= 100 && (i != 1 || now.size == 0));
    }
    raise(due);
    check();
  }

  /// What `interrupts` says is what the tables say.
  constexpr void raise(const ballast::actions& due) {
    const state_type now = function.state();
    const unsigned vectors = function.msix_vectors();
    const std::uint32_t control = message_control();
    std::uint64_t asked = now.registers.msix.pending, masked = 0;
    const auto ask = [&](std::uint16_t vector) {
      if (vector < vectors) asked |= std::uint64_t{1} << vector;
    };
    for (unsigned queue = 0; queue < 3; ++queue)
      if (due.notifies(queue)) ask(now.registers.queue_msix_vectors[queue]);
    if (due.config_changed) ask(now.registers.config_msix_vector);
    for (unsigned vector = 0; vector < vectors; ++vector)
      if (now.registers.msix.entries[vector].is_masked) masked |= std::uint64_t{1} << vector;
    if ((control & 0x4000) != 0) masked = ~std::uint64_t{0};
    if ((control & 0x8000) == 0) asked = 0;

    const ballast::pci_interrupts to_raise = function.interrupts(due);
    expect(to_raise.vectors == (asked & ~masked));
    expect(function.state().registers.msix.pending == (asked & masked));
    const std::uint8_t isr = function.state().registers.device.interrupt_status;
    // PCI-7; before DRIVER_OK there is nobody to tell.
    const bool is_told = (now.registers.device.transport.status & 4) != 0;
    expect(isr < 4 && (!due.config_changed || !is_told || (isr & 2) != 0));
    const bool is_disabled = (function.config_space().get(4, 2) & 0x400) != 0;
    expect(to_raise.line == ((control & 0x8000) == 0 && isr != 0 && !is_disabled));
    raised += to_raise.line || to_raise.vectors != 0;
  }
  [[nodiscard]] constexpr std::uint32_t message_control() const {
    const auto& space = function.config_space();
    for (std::uint32_t at = space.get(0x34, 1); at != 0; at = space.get(at + 1, 1))
      if (space.get(at, 1) == 0x11) return space.get(at + 2, 2);
    return 0;
  }

  constexpr void check() {
    expect(device.wrongs == 0);
    if (function.is_live())
      for (std::size_t i = 0; i < queues_.size(); ++i)
        expect(device.queues[i] == function.queues()[i]);
    else if (function.status() == 0)
      expect(!device.is_active);
    expect(function.config_space().get(0, 4) == (is_transitional_ ? 0x1002'1af4u : 0x1045'1af4u));
    expect(function.is_msix_enabled() == ((message_control() & 0x8000) != 0));
  }

  /// PCI-1: another number, if the configuration has changed since it was read last.
  constexpr void see_generation(std::uint64_t now) {
    const std::uint32_t changes = device.config.generation();
    if (has_generation_) expect((now == generation_) == (changes == changes_));
    has_generation_ = true;
    generation_ = now;
    changes_ = changes;
  }

  constexpr void set_answers(std::uint32_t what, std::uint32_t how) {
    device.process_answer = {.notify_queues = how, .needs_reset = what == 7};
    device.activate_answer.failure = what == 6 ? ballast::error::misaligned : ballast::error::none;
    device.enable_answer.failure = what == 5 ? ballast::error::misaligned : ballast::error::none;
  }
  constexpr void notify(std::uint32_t queue) { write(4, 0x3000 + 4 * queue, 2, queue); }
  /// The next step of an initialisation.
  constexpr void advance() {
    const std::uint8_t now = function.status();
    const unsigned next = now == 0 ? 1 : now == 1 ? 3 : now == 3 ? 11 : now == 11 ? 15 : 0;
    write(4, 20, 1, next);
  }

  constexpr void start_modern() {
    namespace c = ballast::pci::common_cfg;
    for (const unsigned bits : {1u, 3u}) write(4, c::device_status, 1, bits);
    write(4, c::driver_feature_select, 4, 1);
    write(4, c::driver_feature, 4, 0x101); // VERSION_1, RING_RESET
    write(4, c::device_status, 1, 11);
    for (const unsigned queue : {0u, 2u}) {
      write(4, c::queue_select, 2, queue);
      write(4, c::queue_size, 2, 16);
      write(4, c::queue_desc, 8, 0x1000);
      write(4, c::queue_enable, 2, 1);
    }
    write(4, c::device_status, 1, 15);
  }
  constexpr void start_legacy() {
    namespace l = ballast::pci::legacy;
    for (const unsigned bits : {1u, 3u}) write(0, l::device_status, 1, bits);
    write(0, l::driver_features, 4, 2);
    for (const unsigned queue : {0u, 2u}) {
      write(0, l::queue_select, 2, queue);
      write(0, l::queue_address, 4, 1 + queue);
    }
    write(0, l::device_status, 1, 7);
  }

  std::array<ballast::queue_layout, device_type::count> queues_{};
  std::uint32_t resets_ = 0, queue_resets_ = 0;
  bool is_transitional_;
  bool has_generation_ = false;
  std::uint64_t generation_ = 0;
  std::uint32_t changes_ = 0;
};

} // namespace ballast_test
