// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/memory/array_memory.hpp>

#include "support/check.hpp"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace {

using namespace ballast;

static_assert(guest_memory<array_memory<1>> && guest_memory<array_memory<65536>>);
static_assert(array_memory<64>::size() == 64);

constexpr std::uint64_t most = UINT64_MAX;

constexpr auto starts = [](auto check) {
  array_memory<64> ram(0x1000);
  check(ram.base() == 0x1000 && ram.bytes().size() == 64 && ram.good());
  for (const std::byte b : ram.bytes()) check(b == std::byte{0});
  ram.fence();
};
BOTH("array memory starts at its base and as zeros", starts)

constexpr auto words = [](auto check) {
  array_memory<64> ram(0x1000);
  auto w = *ram.window(0x1010, 32, 8, access::write);
  w.template store<std::uint64_t>(8, 0x0123456789abcdef, order::plain);
  w.template store<std::uint32_t>(4, 0x89abcdef, order::relaxed);
  w.template store<std::uint16_t>(2, 0xcdef, order::release);
  check(w.template load<std::uint64_t>(8, order::plain) == 0x0123456789abcdef);
  check(w.template load<std::uint32_t>(4, order::relaxed) == 0x89abcdef);
  check(w.template load<std::uint16_t>(2, order::acquire) == 0xcdef);
  check(w.template load<std::uint16_t>(0, order::acquire) == 0);

  std::array<std::byte, 8> bytes{};
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = ram.bytes()[0x18 + i];
  check(std::bit_cast<std::uint64_t>(bytes) == 0x0123456789abcdef);
  check(ram.bytes()[0x17] != std::byte{0} && ram.bytes()[0x20] == std::byte{0});
};
BOTH("words of every width lie in this machine's order where the window says", words)

constexpr auto shared = [](auto check) {
  array_memory<16> ram;
  auto a = *ram.window(0, 16, 2, access::write);
  const auto b = *ram.window(4, 4, 2, access::read);
  a.template store<std::uint16_t>(6, 7, order::release);
  check(b.template load<std::uint16_t>(2, order::acquire) == 7);
};
BOTH("windows over the same bytes see the same words", shared)

constexpr auto bounds = [](auto check) {
  array_memory<64> ram(0x1000);
  const auto refused = [&](guest_address a, std::uint64_t n) {
    check(ram.window(a, n, 1, access::read).error() == error::not_guest_memory);
    std::array<std::byte, 65> copy{};
    if (n > copy.size()) return;
    copy[0] = std::byte{0x5a};
    check(!ram.write(a, std::span(copy).first(static_cast<std::size_t>(n))));
    check(!ram.read(a, std::span(copy).first(static_cast<std::size_t>(n))));
    check(copy[0] == std::byte{0x5a});
    for (const std::byte b : ram.bytes()) check(b == std::byte{0});
  };
  refused(0xfff, 1);
  refused(0xfff, 2);
  refused(0x1000, 65);
  refused(0x103f, 2);
  refused(0x1040, 1);
  refused(0, 1);
  refused(0x1020, most);
  refused(0x1001, most - 0x1000); // to the end of the address space
  refused(0x1010, most - 0x100f + 0x11);
  refused(most, 1);
  refused(most, 2);
  check(ram.window(0x1000, 64, 16, access::write).has_value());
  check(ram.window(0x103f, 1, 1, access::write).has_value());
};
BOTH("RT-14: what is not all inside is refused, and nothing is copied", bounds)

constexpr auto alignment = [](auto check) {
  array_memory<64> ram(0x1000);
  for (const std::size_t to : {2u, 4u, 8u, 16u}) {
    check(ram.window(0x1000 + to, 8, to, access::read).has_value());
    check(ram.window(0x1000 + to / 2, 8, to, access::read).error() == error::misaligned);
    check(ram.window(0x1001, 8, to, access::read).error() == error::misaligned);
  }
  check(ram.window(0x1001, 8, 1, access::read).has_value());
};
BOTH("a window starts at a multiple of its alignment", alignment)

constexpr auto segments = [](auto check) {
  array_memory<64> ram(0x1000);
  const auto is = [&](guest_address a, std::uint64_t n, std::size_t offset, std::uint64_t size) {
    const memory_segment s = ram.segment(a, n, access::write);
    check(s.data == ram.bytes().data() + offset && s.size == size);
  };
  is(0x1000, 64, 0, 64);
  is(0x1000, 65, 0, 64);
  is(0x1010, 8, 16, 8);
  is(0x103f, 8, 63, 1);
  is(0x1001, most, 1, 63);
  check(ram.segment(0xfff, 8, access::read).size == 0);
  check(ram.segment(0x1040, 8, access::read).size == 0);
  check(ram.segment(0x1041, 8, access::read).size == 0);
  check(ram.segment(0, 0x2000, access::read).size == 0);
  check(ram.segment(most, 1, access::read).data == nullptr);
};
BOTH("a segment is the longest piece inside", segments)

constexpr auto copies = [](auto check) {
  array_memory<16> ram(0x100);
  const std::array<std::byte, 3> from{std::byte{1}, std::byte{2}, std::byte{3}};
  check(ram.write(0x10d, from));
  std::array<std::byte, 4> to{};
  check(ram.read(0x10c, to));
  check(to == std::array<std::byte, 4>{std::byte{0}, std::byte{1}, std::byte{2}, std::byte{3}});
  check(!ram.write(0x10e, from));
  check(ram.bytes()[14] == std::byte{2}); // not even the part that fits
};
BOTH("read and write copy all or nothing", copies)

} // namespace
