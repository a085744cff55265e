// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/register_region.hpp>

#include <support/byte_region.hpp>
#include <support/check.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using ballast::access_width;
using registers_type = ballast_test::byte_registers<64>;
using region_type = ballast_test::byte_region<64>;
using access = registers_type::access;

static_assert(ballast::register_region<region_type>);
struct no_bytes {
  template <class T>
    requires(sizeof(T) > 1)
  T load(std::uint64_t) noexcept;
  template <class T> void store(std::uint64_t, T) noexcept;
};
static_assert(!ballast::register_region<no_bytes>);
struct read_only {
  template <class T> T load(std::uint64_t) noexcept;
};
static_assert(!ballast::register_region<read_only>);
struct that_throws {
  template <class T> T load(std::uint64_t);
  template <class T> void store(std::uint64_t, T);
};
static_assert(!ballast::register_region<that_throws>);

constexpr auto widths = [](auto check) {
  constexpr unsigned expected[4][5] = {
      {1, 1, 2, 2, 4}, {1, 1, 1, 1, 1}, {1, 1, 2, 2, 2}, {1, 1, 1, 1, 1}};
  for (std::uint64_t offset = 0; offset < 12; ++offset)
    for (std::size_t size = 1; size < 9; ++size)
      check(access_width(offset, size) == expected[offset % 4][size < 4 ? size : 4]);
};
BOTH("an access is as wide as it is aligned and as there is left", widths)

constexpr auto fields = [](auto check) {
  registers_type registers;
  region_type region{&registers};
  for (std::uint32_t i = 0; i < 64; ++i) registers.bytes[i] = static_cast<std::uint8_t>(i);
  std::array<std::byte, 13> bytes{};
  ballast::read_fields(region, 20, 2, bytes); // bytes 2 to 14 of what begins at 20
  for (std::size_t i = 0; i < bytes.size(); ++i) check(bytes[i] == std::byte(22 + i));
  const access expected[] = {
      {22, 2, 0x1716}, {24, 4, 0x1b1a1918}, {28, 4, 0x1f1e1d1c}, {32, 2, 0x2120}, {34, 1, 0x22}};
  check(registers.load_count == 5 && registers.outside == 0);
  for (std::size_t i = 0; i < 5; ++i) check(registers.loads[i] == expected[i]);

  for (std::byte& byte : bytes) byte ^= std::byte{0xff};
  ballast::write_fields(region, 20, 2, bytes);
  check(registers.store_count == 5 && registers.bytes[21] == 21 && registers.bytes[35] == 35);
  for (std::size_t i = 0; i < 5; ++i)
    check(registers.stores[i].offset == expected[i].offset &&
          registers.stores[i].width == expected[i].width);
  for (std::uint32_t i = 22; i < 35; ++i) check(registers.bytes[i] == (i ^ 0xff));

  ballast::read_fields(region, 0, 4, {});
  ballast::write_fields(region, 0, 4, {});
  check(registers.load_count == 5 && registers.store_count == 5);
};
BOTH("fields are read and written each at its width, the bytes in their order", fields)

} // namespace
