// SPDX-License-Identifier: BSD-3-Clause
// The split engine under relacy; ring_test.hpp says how.
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "ring_test.hpp"

namespace {

using namespace relacy_test;

struct split_format {
  using driver = split_driver<relacy_memory>;
  using device = split_device<relacy_memory>;

  static constexpr const char* name = "split";
  static bool is_valid_size(std::uint32_t size) { return split::is_valid_size(size); }
  static placement place(std::uint32_t size) { return split::place(0, size); }
  // The indices cross their 16-bit wrap in every scenario.
  static std::uint16_t first_index(std::uint32_t) { return 65534; }
  static void add_ring(memory_map& to, const queue_layout& at) { to.add_split_ring(at); }

  static constexpr trap traps[] = {
      {"half of a descriptor's word", "another width"},
      {"a descriptor's word across two", "another width"},
      {"two words in one load", "another width"},
      {"a plain load of an index", "another width, offset or class"},
      {"an atomic load of a ring entry", "another width, offset or class"},
      {"a store through a window for reading", "a window for reading"},
      {"a load with order release", "a load with order release"},
      {"a payload copy over the ring", "leaves the payload"},
      {"a descriptor that was never written", "UNINITIALIZED"},
  };
  static constexpr int trap_count = sizeof traps / sizeof traps[0];

  static void spring(int which, relacy_memory& memory) {
    const auto table = *memory.window(layout.descriptor_area, 16, 16, access::write);
    const auto available = *memory.window(layout.driver_area, 6, 2, access::read);
    const auto used_ring = *memory.window(layout.device_area, 6, 4, access::read);
    auto for_reading = available;
    std::byte bytes[4]{};
    switch (which) {
    case 0: (void)table.load<std::uint32_t>(split::descriptor_rest(0), order::plain); break;
    case 1: (void)table.load<std::uint64_t>(4, order::plain); break;
    case 2: (void)used_ring.load<std::uint32_t>(split::used_flags, order::relaxed); break;
    case 3: (void)available.load<std::uint16_t>(split::available_index, order::plain); break;
    case 4: (void)available.load<std::uint16_t>(split::available_entry(0), order::relaxed); break;
    case 5: for_reading.store<std::uint16_t>(split::available_flags, 0, order::relaxed); break;
    case 6: (void)available.load<std::uint16_t>(split::available_index, order::release); break;
    case 7: (void)memory.read(layout.driver_area, bytes); break;
    case 8: (void)table.load<std::uint64_t>(split::descriptor_rest(0), order::plain); break;
    }
  }
};

} // namespace

int main(int count, char** arguments) { return run_program<split_format>(count, arguments); }
