// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_device.hpp>

#include "../support/byte_region.hpp"
#include "../support/watched_function.hpp"
#include "target.hpp"

#include <ballast/transport/pci_capabilities.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

// A PCI function whose guest is the input: it accesses configuration space and BARs as it likes,
// the host changes things meanwhile, and a process takes over from another. What may never happen
// does not, and at the end a driver that keeps the rules finds a device that works. And a driver
// that walks the capabilities of a device that is the input.

namespace {

using namespace ballast_fuzz;

/// Goes on from what was saved, with what the input makes of the parts that need not fit together.
void take_over(ballast_test::watched_function& f, input& in) {
  ballast::pci_device_state state = f.function.state();
  for (unsigned n = in.below(8); n > 0; --n) state.config.bytes[in.byte()] = in.byte();
  ballast::pci_registers_state& registers = state.registers;
  registers.config_generation = in.byte();
  if (in.flag()) registers.config_msix_vector = in.number<std::uint16_t>();
  if (in.flag()) registers.queue_msix_vectors[in.below(4)] = in.number<std::uint16_t>();
  if (in.flag()) registers.msix.pending = in.number<std::uint64_t>();
  if (in.flag()) registers.device.queue_select = in.number<std::uint32_t>();
  f.restore(state);
}

void serve(input& in) {
  const unsigned how = in.byte();
  ballast_test::watched_function f(
      {.is_transitional = (how & 1) != 0, .has_msix = (how & 2) == 0, .msix_vectors = how >> 2});
  require(f.start(), "a driver gets on with a new device");
  while (!in.empty() && f.wrongs == 0) {
    switch (in.byte() % 64) {
    case 0: take_over(f, in); break;
    case 1: require(f.start(), "a driver gets on after a reset of the function"); break;
    default: f.do_something(in); break;
    }
  }
  require(f.wrongs == 0, "the device is called as it must be, and interrupts are those asked for");
  require(f.start(), "a driver gets on at the end");
  require(f.wrongs == 0, "... as it must");
}

void walk(input& in) {
  ballast_test::byte_registers<256> bytes;
  for (std::size_t i = 0; i < bytes.bytes.size() && !in.empty(); ++i)
    bytes.bytes[(i + 0x34) % 256] = in.byte();
  bytes.bytes[6] |= 0x10; // there is a list
  ballast_test::byte_region<256> space{&bytes};
  const auto found = ballast::find_pci_structures(space);
  require(bytes.outside == 0, "the walk stays inside of the configuration space");
  require(bytes.store_count == 0, "it only looks");
  require(bytes.load_count < 1000, "it ends");
  if (!found) return;
  for (const auto* structure : {&found->common, &found->notify, &found->isr, &found->device})
    require(structure->bar < 6, "a structure has a BAR");
  require(found->common.length >= 56 && found->notify.length >= 2 && found->isr.length >= 1,
          "structures are as long as a driver needs");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 4096) return 0;
  input in({data, size});
  if (in.flag())
    walk(in);
  else
    serve(in);
  return 0;
}
