// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/pci_capabilities.hpp>

#include <support/byte_region.hpp>
#include <support/check.hpp>

#include <cstdint>
#include <initializer_list>

namespace {

using ballast::error;
using ballast::find_pci_device_type;
using ballast::find_pci_structures;
using ballast::has_pci_legacy;
using ballast::pci_structure;

using registers_type = ballast_test::byte_registers<256>;
using region_type = ballast_test::byte_region<256>;

/// A configuration space whose capabilities are where a test puts them.
struct space {
  registers_type registers;
  region_type region{&registers};
  std::uint32_t last = 0x34;

  constexpr space() { put(6, 2, 0x10); }
  space(const space&) = delete;
  space& operator=(const space&) = delete;

  constexpr void put(std::uint32_t offset, unsigned width, std::uint64_t value) {
    registers.put(offset, width, value);
  }
  constexpr void link(std::uint32_t place, std::uint8_t id) {
    put(last, 1, place);
    put(place, 1, id);
    last = place + 1;
  }
  constexpr void add(std::uint32_t place, std::uint8_t type, std::uint8_t bytes, std::uint8_t bar,
                     std::uint32_t offset, std::uint32_t length) {
    link(place, 9);
    put(place + 2, 1, bytes);
    put(place + 3, 1, type);
    put(place + 4, 1, bar);
    put(place + 8, 4, offset);
    put(place + 12, 4, length);
  }
  /// What every device has.
  constexpr void add_needed() {
    add(0x40, 1, 16, 4, 0, 0x1000);
    add(0x50, 3, 16, 4, 0x1000, 0x1000);
    add(0x60, 2, 20, 2, 0x3000, 0x1000);
    put(0x70, 4, 8);
  }
  constexpr error why() { return find_pci_structures(region).error(); }
};

constexpr auto identity = [](auto check) {
  space s;
  const auto is = [&](std::uint32_t vendor, std::uint32_t device) {
    s.put(0, 2, vendor);
    s.put(2, 2, device);
    return find_pci_device_type(s.region);
  };
  s.put(0x2e, 2, 5);
  s.put(0x10, 4, 0xc001);
  check(*is(0x1af4, 0x1045) == 5 && *is(0x1af4, 0x1041) == 1 && *is(0x1af4, 0x107f) == 63);
  check(!has_pci_legacy(s.region));
  check(*is(0x1af4, 0x1002) == 5 && has_pci_legacy(s.region));
  for (const std::uint32_t id : {0u, 0x0fffu, 0x1080u, 0xffffu})
    check(is(0x1af4, id).error() == error::wrong_device_id && !has_pci_legacy(s.region));
  check(is(0x1af5, 0x1045).error() == error::wrong_device_id);
  check(is(0x8086, 0x1002).error() == error::wrong_device_id && !has_pci_legacy(s.region));
  check(is(0x1af4, 0x1002).has_value());
  s.put(8, 1, 1); // a revision that no legacy driver takes
  check(!has_pci_legacy(s.region));
  s.put(8, 1, 0);
  s.put(0x10, 4, 0xc000); // in memory
  check(!has_pci_legacy(s.region));
};
BOTH("a virtio device is known by its ids, and a legacy one by its revision and BAR 0", identity)

constexpr auto finds = [](auto check) {
  space s;
  s.add_needed();
  s.add(0x74, 4, 16, 4, 0x2000, 0x10);
  s.add(0x84, 5, 20, 0, 0, 0);
  s.link(0x98, 0x11);
  s.put(0x9a, 2, 0xc005);
  const auto found = find_pci_structures(s.region);
  check(found.has_value() && found->common == pci_structure{4, 0, 0x1000});
  check(found->isr == pci_structure{4, 0x1000, 0x1000});
  check(found->notify == pci_structure{2, 0x3000, 0x1000} && found->notify_off_multiplier == 8);
  check(found->device == pci_structure{4, 0x2000, 0x10});
  check(found->msix == 0x98 && found->msix_vectors == 6 && s.registers.outside == 0);
  check(s.registers.store_count == 0); // it only looks
};
BOTH("the structures are found wherever they are", finds)

constexpr auto first_of_each = [](auto check) {
  space s;
  s.add(0x74, 1, 16, 6, 0, 64);     // a reserved BAR
  s.add(0x84, 1, 16, 255, 0, 64);   // another
  s.add(0x94, 99, 16, 4, 0, 64);    // a reserved type
  s.add(0xa4, 2, 16, 4, 0, 64);     // notifications without their multiplier
  s.add(0xb4, 1, 12, 4, 0, 64);     // too short to be one
  s.add(0xc4, 1, 16, 4, 0x4000, 0); // of nothing
  s.link(0xd4, 0x05);               // not virtio's
  s.add_needed();
  s.add(0xd8, 1, 40, 1, 0x777, 0x99); // a second one, longer than it must be
  const auto found = find_pci_structures(s.region);
  check(found.has_value() && found->common == pci_structure{4, 0, 0x1000});
  check(found->notify.bar == 2 && found->device.length == 0 && found->msix == 0);
};
BOTH("reserved ones are passed over, and the first of each type counts", first_of_each)

constexpr auto misplaced = [](auto check) {
  space s;
  s.add(0x74, 1, 16, 4, 2, 64);             // its registers of 4 bytes would not be aligned
  s.add(0x84, 2, 20, 2, 0x3001, 0x1000);    // nor what is written to notify
  s.add(0x98, 3, 16, 4, 0xffff'f000, 4096); // up to 2^32
  s.add(0xa8, 4, 16, 4, 0xffff'fff0, 0x20); // beyond
  s.add(0xb8, 1, 16, 4, 0xffff'fffc, 64);
  s.add_needed();
  s.add(0xc8, 4, 16, 4, 0xffff'fffd, 2); // odd, and as far as it goes
  const auto found = find_pci_structures(s.region);
  check(found.has_value() && found->common == pci_structure{4, 0, 0x1000});
  check(found->notify == pci_structure{2, 0x3000, 0x1000});
  check(found->isr == pci_structure{4, 0x1000, 0x1000});
  check(found->device == pci_structure{4, 0xffff'fffd, 2});
};
BOTH("structures that are not aligned, or do not end below 2^32, are passed over", misplaced)

constexpr auto missing = [](auto check) {
  check(space().why() == error::capability_missing);
  for (const std::uint32_t place : {0x40u, 0x50u, 0x60u}) {
    space s;
    s.add_needed();
    s.put(place + 3, 1, 77);
    check(s.why() == error::capability_missing);
    s.put(place + 3, 1, place == 0x40 ? 1 : place == 0x50 ? 3 : 2);
    check(s.why() == error::none);
  }
  space common_short, notify_short, no_list;
  common_short.add_needed();
  common_short.put(0x4c, 4, 55);
  check(common_short.why() == error::capability_missing);
  common_short.put(0x4c, 4, 56);
  check(common_short.why() == error::none);
  notify_short.add_needed();
  notify_short.put(0x6c, 4, 1);
  check(notify_short.why() == error::capability_missing);
  no_list.add_needed();
  no_list.put(6, 2, 0);
  check(no_list.why() == error::capability_missing);
};
BOTH("a device without a structure that is needed, or with too short a one, is none", missing)

constexpr auto endless = [](auto check) {
  space circle;
  circle.add_needed();
  circle.put(circle.last, 1, 0x40);
  check(circle.why() == error::none);
  space itself;
  itself.link(0x40, 9);
  itself.put(0x41, 1, 0x40);
  check(itself.why() == error::capability_missing);
  space low; // pointers into the header end the list, their two low bits are reserved
  low.add_needed();
  low.put(low.last, 1, 0x3c);
  low.put(0x34, 1, 0x43);
  check(low.why() == error::none);
  for (std::uint32_t value = 0; value < 256; ++value) { // at the end of the space, of any length
    space edge;
    edge.link(0xfc, 9);
    edge.put(0xfe, 1, value);
    edge.put(0xff, 1, 1);
    check(edge.why() == error::capability_missing && edge.registers.outside == 0);
    edge.put(0xfc, 1, 0x11);
    check(edge.why() == error::capability_missing && edge.registers.outside == 0);
  }
};
BOTH("RT-11: a list that never ends, or passes the end of the space, does no harm", endless)

} // namespace
