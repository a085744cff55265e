// SPDX-License-Identifier: BSD-3-Clause
// The packed engine under relacy; ring_test.hpp says how.
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>

#include "ring_test.hpp"

namespace {

using namespace relacy_test;

struct packed_format {
  using driver = packed_driver<relacy_memory>;
  using device = packed_device<relacy_memory>;

  static constexpr const char* name = "packed";
  static bool is_valid_size(std::uint32_t size) { return packed::is_valid_size(size); }
  static placement place(std::uint32_t size) { return packed::place(0, size); }
  // The first chain lies before the wrap from wrap counter 0 to 1.
  static std::uint16_t first_index(std::uint32_t size) {
    return static_cast<std::uint16_t>(2 * size - 1);
  }
  static void add_ring(memory_map& to, const queue_layout& at) { to.add_packed_ring(at); }

  static constexpr trap traps[] = {
      {"half of a descriptor's word", "another width"},
      {"the flags alone", "another width"},
      {"a plain load of length, id and flags", "another width, offset or class"},
      {"an atomic load of an address", "another width, offset or class"},
      {"half of an event suppression structure", "another width"},
      {"a plain load of an event suppression structure", "another width, offset or class"},
      {"a store through a window for reading", "a window for reading"},
      {"a load with order release", "a load with order release"},
      {"a payload copy over the ring", "leaves the payload"},
      {"an address that was never written", "UNINITIALIZED"},
  };
  static constexpr int trap_count = sizeof traps / sizeof traps[0];

  static void spring(int which, relacy_memory& memory) {
    const auto ring = *memory.window(layout.descriptor_area, 16, 16, access::write);
    const auto event = *memory.window(layout.device_area, 4, 4, access::read);
    auto for_reading = event;
    std::byte bytes[4]{};
    switch (which) {
    case 0: (void)ring.load<std::uint32_t>(packed::descriptor_address(0), order::plain); break;
    case 1: (void)ring.load<std::uint16_t>(14, order::acquire); break;
    case 2: (void)ring.load<std::uint64_t>(packed::descriptor_rest(0), order::plain); break;
    case 3: (void)ring.load<std::uint64_t>(packed::descriptor_address(0), order::relaxed); break;
    case 4: (void)event.load<std::uint16_t>(0, order::relaxed); break;
    case 5: (void)event.load<std::uint32_t>(0, order::plain); break;
    case 6: for_reading.store<std::uint32_t>(0, 0, order::relaxed); break;
    case 7: (void)event.load<std::uint32_t>(0, order::release); break;
    case 8: (void)memory.read(layout.descriptor_area, bytes); break;
    case 9: (void)ring.load<std::uint64_t>(packed::descriptor_address(0), order::plain); break;
    }
  }
};

} // namespace

int main(int count, char** arguments) { return run_program<packed_format>(count, arguments); }
