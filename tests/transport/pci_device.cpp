// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_device.hpp>

#include <support/check.hpp>
#include <support/witness_device.hpp>

#include <ballast/memory/array_memory.hpp>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace {

using ballast::actions;
using ballast::error;
using ballast::pci_device_options;
using ballast::pci_interrupts;
using ballast::refused;
namespace at = ballast::pci::common_cfg;
namespace cap = ballast::pci::cap;
namespace feature = ballast::feature;
namespace header = ballast::pci::header;
namespace pci = ballast::pci;

using ram_type = ballast::array_memory<4096>;
/// A device of a type that has a legacy interface.
struct device_type : ballast_test::witness_device<ram_type> {
  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return 5; }
};
using function_type = ballast::pci_device<device_type, ram_type>;
static_assert(std::is_trivially_copyable_v<ballast::pci_device_state>);
static_assert(!std::is_copy_constructible_v<function_type>);

constexpr unsigned modern = function_type::modern_bar;
constexpr unsigned msix = function_type::msix_bar;

struct machine {
  device_type device;
  ram_type ram;
  function_type function;

  constexpr explicit machine(const pci_device_options& options = {})
      : function(device, ram, options) {}
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  constexpr std::uint32_t config(std::uint32_t offset, unsigned width = 4) {
    return function.read_config_space(offset, width);
  }
  constexpr actions put(std::uint64_t offset, unsigned width, std::uint64_t value) {
    return function.write(modern, offset, width, value);
  }
  /// The place of the n-th capability with this id, and for virtio's own of this type.
  constexpr std::uint32_t find(std::uint8_t id, pci::cfg_type type = {}) {
    for (std::uint32_t place = config(0x34, 1); place != 0; place = config(place + 1, 1))
      if (config(place, 1) == id &&
          (id == pci::capability_msix || config(place + 3, 1) == static_cast<std::uint8_t>(type)))
        return place;
    return 0;
  }
  constexpr void start() {
    (void)put(at::device_status, 1, 1);
    (void)put(at::device_status, 1, 3);
    (void)put(at::driver_feature_select, 4, 1);
    (void)put(at::driver_feature, 4, 1);
    (void)put(at::device_status, 1, 11);
    for (const unsigned queue : {0u, 2u}) {
      (void)put(at::queue_select, 2, queue);
      (void)put(at::queue_enable, 2, 1);
    }
    (void)put(at::device_status, 1, 15);
  }
  /// Enables MSI-X: the configuration has vector 0, queue 0 vector 1, queue 2 none.
  constexpr void use_msix() {
    const std::uint32_t place = find(pci::capability_msix);
    (void)function.write_config_space(place + 2, 2, 0x8000);
    for (std::uint32_t i = 0; i < 4; ++i) {
      (void)function.write(msix, 16 * i, 8, 0xfee0'0000 + 16 * i);
      (void)function.write(msix, 16 * i + 8, 8, 0x40 + i); // and unmasked
    }
    (void)put(at::config_msix_vector, 2, 0);
    (void)put(at::queue_select, 2, 0);
    (void)put(at::queue_msix_vector, 2, 1);
  }
};

constexpr actions used(std::uint64_t queues) { return {.notify_queues = queues}; }
constexpr actions changed() { return {.config_changed = true}; }

constexpr auto identity = [](auto check) {
  machine m, old({.is_transitional = true}),
      own({.vendor_id = 0x1234,
           .subsystem_vendor_id = 0x5678,
           .subsystem_id = 0x9abc,
           .class_code = 0xff0000});
  check(m.config(0) == 0x1045'1af4 && m.config(8) == 0x00ff'0001 && m.config(0x2c) == 0x1100'1af4);
  check(old.config(0) == 0x1002'1af4 && old.config(8) == 0x00ff'0000);
  check(old.config(0x2c) == 0x0005'1af4 && m.config(0x3d, 1) == 1);
  check(own.config(0) == 0x1045'1234 && own.config(0x2c) == 0x9abc'5678);
  check(own.config(8) == 0xff00'0001);

  // 24 and 12 bytes, rounded up; in I/O space. A modern device has no such BAR.
  check(old.function.bar_size(0) == 64 && old.function.is_bar_io(0) && m.function.bar_size(0) == 0);
  for (machine* each : {&m, &old}) {
    check(each->function.bar_size(1) == 0x1000 && each->function.bar_size(4) == 0x4000);
    check(!each->function.is_bar_io(1) && !each->function.is_bar_io(4));
    check((each->config(0x14) & 0xf) == 0 && (each->config(0x20) & 0xf) == 0); // 32 bits
  }
  ballast_test::witness_device<ram_type> modern_only; // type 77
  ballast::pci_device other(modern_only, m.ram, {.is_transitional = true});
  check(other.read_config_space(0, 4) == 0x108d'1af4);
  check(other.bar_size(0) == 0);
};
BOTH("a function says what it is, and a transitional one what it was", identity)

constexpr auto capabilities = [](auto check) {
  machine m;
  struct structure {
    pci::cfg_type type;
    std::uint32_t bytes, bar, offset, length;
  };
  const structure expected[] = {{pci::cfg_type::common, 16, 4, 0, 64},
                                {pci::cfg_type::notify, 20, 4, 0x3000, 12},
                                {pci::cfg_type::isr, 16, 4, 0x1000, 1},
                                {pci::cfg_type::device, 16, 4, 0x2000, 12},
                                {pci::cfg_type::pci_cfg, 20, 0, 0, 0}};
  check((m.config(6, 2) & header::status_capabilities) != 0);
  for (const structure& s : expected) {
    const std::uint32_t place = m.find(pci::capability_vendor, s.type);
    check(place >= 0x40 && place % 4 == 0 && m.config(place + cap::cap_len, 1) == s.bytes);
    check(m.config(place + cap::bar, 1) == s.bar && m.config(place + cap::offset) == s.offset);
    check(m.config(place + cap::length) == s.length);
  }
  check(m.config(m.find(pci::capability_vendor, pci::cfg_type::notify) + 16) == 4);
  const std::uint32_t table = m.find(pci::capability_msix);
  check(m.config(table + 2, 2) == 3 && m.config(table + 4) == 1 && m.config(table + 8) == 0x801);
  check(m.function.write_config_space(table + 2, 2, 0xffff) == actions{});
  check(m.config(table + 2, 2) == 0xc003 && m.function.is_msix_enabled());

  machine without({.has_msix = false}), few({.msix_vectors = 2}), many({.msix_vectors = 2048});
  check(without.find(pci::capability_msix) == 0 && without.function.bar_size(1) == 0);
  check(without.put(at::config_msix_vector, 2, 0) == actions{});
  check(without.function.read(modern, at::config_msix_vector, 2) == 0xffff);
  check(few.function.msix_vectors() == 2 && many.function.msix_vectors() == 64);
};
BOTH("the capabilities lead to every structure", capabilities)

constexpr auto line = [](auto check) {
  machine m;
  m.start();
  check(m.function.interrupts({}) == pci_interrupts{} && (m.config(6, 2) & 8) == 0);
  m.device.process_answer = used(1);
  const actions due = m.function.process(0, 4);
  check(due.notify_queues == 1 && m.function.interrupts(due) == pci_interrupts{.line = true});
  check((m.config(6, 2) & 8) != 0);
  check(m.function.write_config_space(4, 2, header::command_interrupt_disable) == actions{});
  check(!m.function.interrupts({}).line && (m.config(6, 2) & 8) != 0);
  (void)m.function.write_config_space(4, 2, 0);
  (void)m.function.carry_out(changed());
  check(m.function.is_interrupting());
  check(m.function.read(modern, 0x1000, 2) == 0xffff && m.function.is_interrupting());
  check(m.function.read(modern, 0x1000, 1) == 3); // both, by one interrupt
  check(!m.function.interrupts({}).line && m.function.read(modern, 0x1000, 1) == 0);
  check((m.config(6, 2) & 8) == 0);
};
BOTH("PCI-7, PCI-8: the line is raised until the ISR is read, which says why and clears it", line)

constexpr auto reason_first = [](auto check) {
  machine m;
  m.start();
  (void)m.function.carry_out(changed()); // and `interrupts` has not been asked
  check(m.function.read(modern, 0x1000, 1) == 2);
  m.use_msix();
  const actions due = m.function.carry_out(changed());
  check(m.function.read(modern, 0x1000, 1) == 2 && m.function.interrupts(due).vectors == 1);
  (void)m.function.carry_out({.needs_reset = true}); // a change of the configuration, too
  check(m.function.read(modern, 0x1000, 1) == 2 && m.function.status() == 79);
};
BOTH("PCI-7: the ISR says that the configuration changed before anything is sent", reason_first)

constexpr auto messages = [](auto check) {
  machine m;
  m.start();
  m.use_msix();
  check(m.function.interrupts(used(1)) == pci_interrupts{.vectors = 2});
  check((m.function.message(1) == ballast::msix_message{0xfee0'0010, 0x41}));
  check(m.function.interrupts(changed()) == pci_interrupts{.vectors = 1});
  check(m.function.interrupts(used(4)) == pci_interrupts{}); // NO_VECTOR
  actions both = used(5);
  both.config_changed = true;
  check(m.function.interrupts(both).vectors == 3 && m.function.interrupts({}).vectors == 0);
  (void)m.put(at::config_msix_vector, 2, 1);
  check(m.function.interrupts(both).vectors == 2); // one for both
  (void)m.put(at::config_msix_vector, 2, 9);       // there is none
  check(m.function.interrupts(changed()).vectors == 0);
  (void)m.put(at::device_status, 1, 0);
  check(m.function.interrupts(both).vectors == 0); // unmapped
};
BOTH("PCI-8: a message for each event that has a vector, and NO_VECTOR is none", messages)

constexpr auto masked = [](auto check) {
  machine m;
  m.start();
  m.use_msix();
  (void)m.function.write(msix, 28, 4, 1);
  check(m.function.interrupts(used(1)).vectors == 0 && m.function.read(msix, 0x800, 8) == 2);
  check(m.function.interrupts(m.function.write(msix, 28, 4, 0)).vectors == 2);
  check(m.function.read(msix, 0x800, 4) == 0);
  const std::uint32_t control = m.find(pci::capability_msix) + 2;
  (void)m.function.write_config_space(control, 2, 0xc000);
  check(m.function.interrupts(used(1)).vectors == 0 && m.function.read(msix, 0x800, 8) == 2);
  check(m.function.interrupts(m.function.write_config_space(control, 2, 0x8000)).vectors == 2);
  (void)m.function.write(msix, 28, 4, 1);
  check(m.function.interrupts(used(1)).vectors == 0);
  (void)m.put(at::device_status, 1, 0); // forgets it
  check(m.function.interrupts(m.function.write(msix, 28, 4, 0)).vectors == 0);
};
BOTH("what is masked is pending, and sent once unmasked", masked)

constexpr auto turned_off = [](auto check) {
  machine m;
  m.start();
  m.use_msix();
  m.device.process_answer = used(1);
  check(m.function.interrupts(m.function.process(0, 4)) == pci_interrupts{.vectors = 2});
  (void)m.function.write_config_space(m.find(pci::capability_msix) + 2, 2, 0);
  check(m.function.interrupts({}) == pci_interrupts{}); // it was said by the message
  check(m.function.interrupts(m.function.process(0, 4)) == pci_interrupts{.line = true});
};
BOTH("with MSI-X turned off the line stands for what comes from then on", turned_off)

constexpr auto window = [](auto check) {
  machine m;
  const std::uint32_t place = m.find(pci::capability_vendor, pci::cfg_type::pci_cfg);
  const auto aim = [&](std::uint32_t bar, std::uint32_t offset, std::uint32_t length) {
    (void)m.function.write_config_space(place + cap::bar, 1, bar);
    (void)m.function.write_config_space(place + cap::offset, 4, offset);
    (void)m.function.write_config_space(place + cap::length, 4, length);
  };
  const std::uint32_t data = place + cap::pci_cfg_data;
  aim(4, at::num_queues, 2);
  check(m.config(data, 2) == 3 && m.config(place + cap::offset) == at::num_queues);
  aim(4, at::device_status, 1);
  check(m.function.write_config_space(data, 1, 1) == actions{} && m.function.status() == 1);
  check(m.function.write_config_space(data, 4, 0xffff'ff03) == actions{});
  check(m.function.status() == 3 && m.config(data, 1) == 3);
  aim(4, 0x2000, 4); // configuration, a byte at a time, each a whole access
  (void)m.device.config.set32(0, 0x1122'3344);
  check(m.config(data) == 0x1122'3344 && m.config(data + 1, 2) == 0x2233);
  aim(1, 12, 4);
  check(m.config(data) == 1 && m.function.write_config_space(data, 4, 0) == actions{});
  check(m.function.read(msix, 12, 4) == 0);
  m.start(); // before, nobody is told
  aim(4, 0x1000, 1);
  (void)m.function.carry_out(changed());
  check((m.config(data) & 0xff) == 2 && m.config(data, 1) == 0); // the ISR, cleared by that

  // What a driver must not ask for does nothing.
  m.device.config.set32(0, 0);
  for (const std::uint32_t length : {0u, 3u, 5u, 8u, 0x8000'0000u, ~0u}) {
    aim(4, 0, length);
    check(m.function.write_config_space(data, 4, 5) == refused(error::register_access));
    check(m.config(data) == 5); // as it was written
  }
  aim(4, 0x2001, 4);
  check(m.function.write_config_space(data, 4, 5) == refused(error::register_access));
  for (const std::uint32_t bar : {0u, 2u, 5u, 6u, 0xffu}) {
    aim(bar, 0, 4);
    check(m.config(data) == ~0u);
    check(m.function.write_config_space(data, 4, 5) == refused(error::register_access));
  }
  aim(4, 0xffff'fffc, 4);
  check(m.config(data) == ~0u && m.device.wrongs == 0);
};
BOTH("the configuration access capability is a window into the BARs", window)

constexpr auto addresses = [](auto check) {
  machine m({.is_transitional = true});
  (void)m.function.write_config_space(0x10, 4, 0xc000);
  (void)m.function.write_config_space(0x20, 4, 0xfe00'0000);
  check(!m.function.find_bar(0xfe00'3004, true) && !m.function.find_bar(0xc012, false));
  (void)m.function.write_config_space(4, 2, 7);
  check((*m.function.find_bar(0xfe00'3004, true) == ballast::bar_access{4, 0x3004}));
  check((*m.function.find_bar(0xc012, false) == ballast::bar_access{0, 18}));
  check(m.function.is_bus_master() && m.function.bar_address(4) == 0xfe00'0000);
  m.start();
  m.use_msix();
  m.function.reset();
  check(m.device.resets == 1 && m.function.status() == 0 && m.config(4, 2) == 0);
  check(m.function.bar_address(4) == 0 && !m.function.is_msix_enabled());
  check(m.function.read(msix, 28, 4) == 1 && m.function.message(1) == ballast::msix_message{});
};
BOTH("BARs are where the command register lets them be, until a reset", addresses)

constexpr auto goes_on = [](auto check) {
  machine a;
  a.start();
  a.use_msix();
  (void)a.function.write_config_space(0x20, 4, 0xfe00'0000);
  (void)a.function.write(msix, 28, 4, 1);
  check(a.function.interrupts(used(1)).vectors == 0); // pending
  (void)a.function.carry_out(changed());
  machine b;
  b.function.restore(a.function.state());
  check(b.function.state() == a.function.state() && b.function.is_live());
  check(b.function.bar_address(4) == 0xfe00'0000 && b.function.queues()[2].size == 128);
  check(b.function.read(modern, 0x1000, 1) == 2 && b.device.activations == 0);
  check(b.function.interrupts(b.function.write(msix, 28, 4, 0)).vectors == 2);
  check(b.function.message(1) == a.function.message(1));
};
BOTH("a function goes on from what was saved, with what is pending", goes_on)

} // namespace
