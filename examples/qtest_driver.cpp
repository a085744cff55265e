// SPDX-License-Identifier: BSD-3-Clause
//
// Ballast's balloon driver on the balloon device of QEMU: a guest that is this program. --help
// explains the options; the parts are in qtest_driver/, and what speaks with QEMU in qemu/.

#include "qtest_driver/balloon_steps.hpp"
#include "qtest_driver/bare_queue.hpp"
#include "qtest_driver/hinting_steps.hpp"
#include "qtest_driver/interrupts.hpp"
#include "qtest_driver/machine.hpp"
#include "qtest_driver/options.hpp"
#include "qtest_driver/registers.hpp"
#include "qtest_driver/ring_steps.hpp"
#include "qtest_driver/session.hpp"
#include "qtest_driver/steps.hpp"

#include "qemu/pci_bus.hpp"
#include "qemu/qmp.hpp"
#include "qemu/qtest_memory.hpp"

#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/mmio_driver.hpp>
#include <ballast/transport/pci.hpp>
#include <ballast/transport/pci_capabilities.hpp>
#include <ballast/transport/pci_driver.hpp>
#include <ballast/transport/pci_legacy_driver.hpp>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <span>
#include <string>

namespace {

using namespace qtest_driver;

void end(machine& host, steps& to) {
  const auto status = host.end();
  to.check(status == 0, "QEMU ends", "status " + (status ? std::to_string(*status) : "none"));
}

/// All there is to do with a device, with guest memory reached in one way.
template <class M, class T>
void exercise(machine& host, M& memory, T& device, const options& chosen, steps& to) {
  interrupts inbox(device, host.cpu(), chosen.has_line);
  {
    session s(host, memory, device, inbox, chosen, true, to);
    if (!start(s)) return;
    poll_statistics(s, 1);
    give_statistics(s, "gives statistics");
    s.monitor().forget_events();
    inflate(s, 1000);
    check_event(s, 1000);
    check_quiet(s);
    run_out_of_memory(s);
    deflate(s);
    report(s);
    hint(s);
    give_statistics(s, "gives statistics every second");
    poll_statistics(s, 0);
    stop(s);
  }
  bare_queue queue(memory, device, inbox, chosen);
  break_rings(queue, chosen, to);
  if (!chosen.is_packed) jump_ahead(queue, to);
  if (chosen.bus == transport::pci) reset_ring(queue, to);
  {
    session s(host, memory, device, inbox, chosen, false, to);
    if (!start(s)) return;
    check_target(s, 100);
    inflate(s, 200);
    if (!chosen.is_legacy()) break_ring_of_driver(s);
    deflate(s);
    report(s);
    stop(s);
  }
  if (chosen.has_line)
    to.check(inbox.raised() > 10 && !inbox.is_raised(), "the interrupt line is raised and lowered",
             "input " + std::to_string(inbox.line()) + " of the I/O APIC, " +
                 std::to_string(inbox.raised()) + " times");

  if (chosen.shares_memory) return end(host, to);
  session s(host, memory, device, inbox, chosen, false, to);
  if (start(s)) lose_memory(s, [&] { end(host, to); });
}

template <class T> void exercise(machine& host, T& device, const options& chosen, steps& to) {
  if (chosen.shares_memory) {
    const ballast::memory_region region[] = {
        {.address = 0, .data = host.ram().data(), .size = host.ram().size()}};
    auto memory = ballast::mapped_memory::over(region);
    if (to.check(memory.has_value(), "guest memory is mapped", name(memory.error())))
      exercise(host, *memory, device, chosen, to);
  } else {
    qemu::qtest_memory memory(host.cpu(), machine::ram_begin, machine::ram_bytes);
    exercise(host, memory, device, chosen, to);
  }
}

/// The device of a machine "microvm": one of many places.
void exercise_mmio(machine& host, const options& chosen, steps& to) {
  for (std::uint64_t base = 0xfeb0'0000; base < 0xfeb0'3000; base += 0x200) {
    ballast::mmio_driver device(memory_registers{&host.cpu(), base});
    if (!device.check() || device.device_id() != balloon::device_id) continue;
    to.check(device.is_legacy() == chosen.is_legacy(), "there is a device", "at " + hex(base));
    return exercise(host, device, chosen, to);
  }
  to.check(false, "there is a device", "no balloon among the places of virtio-mmio");
}

/// The registers of a structure in the BARs.
memory_registers region(machine& host, std::span<const qemu::pci_bar> bars,
                        const ballast::pci_structure& at) {
  return {&host.cpu(), bars[at.bar].address + at.offset};
}

void exercise_pci(machine& host, const options& chosen, steps& to) {
  const std::uint16_t ids[] = {ballast::pci::modern_id(balloon::device_id),
                               ballast::pci::transitional_id(balloon::device_id)};
  auto function = qemu::find_pci_function(host.cpu(), ballast::pci::virtio_vendor_id, ids);
  if (!function) {
    to.check(false, "there is a device", "no balloon on bus 0");
    return;
  }
  const auto bars = qemu::assign_bars(*function, 0xc000, 0xe000'0000);
  const auto type = ballast::find_pci_device_type(*function);
  const bool is_legacy = ballast::has_pci_legacy(*function);
  const auto found = ballast::find_pci_structures(*function);
  to.check(type && *type == balloon::device_id && is_legacy == chosen.is_legacy() &&
               found.has_value(),
           "there is a device",
           "slot " + std::to_string(function->device()) + ", id " +
               hex(function->load<std::uint16_t>(ballast::pci::header::device_id)) + ", " +
               (found ? std::to_string(found->msix_vectors) + " vectors" : "no capabilities"));
  if (is_legacy) {
    const auto port = static_cast<std::uint16_t>(bars[0].address);
    const ballast::pci_legacy_driver_options bar{.bar_bytes =
                                                     static_cast<std::uint32_t>(bars[0].size)};
    ballast::pci_legacy_driver device(port_registers{&host.cpu(), port}, *type, bar);
    exercise(host, device, chosen, to);
  } else if (found) {
    const ballast::pci_regions<memory_registers> regions{
        region(host, bars, found->common), region(host, bars, found->notify),
        region(host, bars, found->isr), region(host, bars, found->device), *found};
    ballast::pci_driver device(regions, *type);
    exercise(host, device, chosen, to);
  }
}

int run(const options& chosen) {
  machine host(chosen);
  if (const std::string why = host.error(); !why.empty()) {
    std::fprintf(stderr, "qtest_driver: %s\n", why.c_str());
    return 3;
  }
  const auto answer = host.monitor().command("query-version");
  const qemu::json version = qemu::object_in(answer.value, "qemu");
  const std::string number = std::to_string(qemu::number_in(version, "major")) + '.' +
                             std::to_string(qemu::number_in(version, "minor"));
  steps to("QEMU " + number + ", " + chosen.text(), chosen.is_json);
  chosen.is_mmio() ? exercise_mmio(host, chosen, to) : exercise_pci(host, chosen, to);
  if (to.failed() != 0) std::fprintf(stderr, "qtest_driver: QEMU said: %s\n", host.said().c_str());
  if (chosen.is_json) {
    qemu::json object{{"qemu", number},
                      {"transport", name(chosen.bus)},
                      {"queue_format", chosen.is_packed ? "packed" : "split"},
                      {"event_idx", chosen.has_event_idx},
                      {"memory", chosen.shares_memory ? "shared" : "socket"}};
    to.add_to(object);
    std::puts(object.dump(2).c_str());
  }
  return std::fflush(stdout) == 0 && to.failed() == 0 ? 0 : 1;
}

} // namespace

int main(int count, char** arguments) try {
  return run(parse_options(count, arguments));
} catch (const std::exception& why) { // of the JSON library, or no memory
  std::fprintf(stderr, "qtest_driver: %s\n", why.what());
  return 1;
}
