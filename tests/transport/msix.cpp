// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/msix.hpp>

#include <support/check.hpp>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace {

using ballast::error;
using ballast::msix_message;
using ballast::msix_table;
namespace cap = ballast::pci::msix_cap;

static_assert(std::is_trivially_copyable_v<ballast::msix_state>);

/// A table whose vectors are unmasked, with messages that tell them apart.
constexpr msix_table enabled(unsigned vectors) {
  msix_table table(vectors);
  table.set_control(cap::enable);
  for (unsigned i = 0; i < vectors; ++i) {
    (void)table.write(16 * i, 8, 0x1'fee0'0000 + 0x10 * i);
    (void)table.write(16 * i + 8, 4, 0x4000 + i);
    (void)table.write(16 * i + 12, 4, 0);
  }
  return table;
}

constexpr auto starts_masked = [](auto check) {
  msix_table table(3);
  check(table.vectors() == 3 && table.table_size() == 48 && !table.is_enabled());
  for (std::uint64_t at = 0; at < 48; at += 4)
    check(*table.read(at, 4) == (at % 16 == 12 ? 1u : 0u));
  table.set_control(cap::enable);
  table.raise(1);
  check(table.take_due() == 0 && *table.read_pending(0, 8) == 2);
  check(msix_table(0).table_size() == 0 && msix_table(1000).vectors() == 64);
};
BOTH("every vector of a new table is masked", starts_masked)

constexpr auto reads_back = [](auto check) {
  msix_table table(2);
  check(table.write(16, 4, 0xfee0'1003).has_value()); // the two low bits are none
  check(table.write(20, 4, 0x2).has_value());
  check(table.write(24, 4, 0x4041).has_value());
  check(table.write(28, 4, 0xffff'fffe).has_value()); // reserved bits stay 0
  check(*table.read(16, 4) == 0xfee0'1000 && *table.read(20, 4) == 2);
  check(*table.read(24, 4) == 0x4041 && *table.read(28, 4) == 0);
  check(*table.read(16, 8) == 0x2'fee0'1000 && *table.read(24, 8) == 0x4041);
  check((table.message(1) == msix_message{0x2'fee0'1000, 0x4041}));
  check(table.write(0, 8, 0x7'0000'0ff4).has_value());
  check(table.write(8, 8, 0x1'0000'0055).has_value());
  check((table.message(0) == msix_message{0x7'0000'0ff4, 0x55}));
  check(*table.read(8, 8) == 0x1'0000'0055 && *table.read(12, 4) == 1);
  check(table.message(2) == msix_message{} && table.message(~0u) == msix_message{});
};
BOTH("the table is read and written in words of 4 and 8 bytes", reads_back)

constexpr auto widths = [](auto check) {
  msix_table table = enabled(2);
  const auto before = table.state();
  for (unsigned width = 0; width <= 9; ++width)
    for (std::uint64_t at = 0; at < 40; ++at) {
      const bool is_there = (width == 4 || width == 8) && at % width == 0 && at + width <= 32;
      const auto got = table.read(at, width);
      check(got.has_value() == is_there && (is_there || got.error() == error::register_access));
      if (!is_there) check(table.write(at, width, ~0ull).error() == error::register_access);
      const bool is_pending = (width == 4 || width == 8) && at % width == 0 && at + width <= 8;
      check(table.read_pending(at, width).has_value() == is_pending);
    }
  for (const std::uint64_t at : {~0ull, ~0ull - 3, ~0ull - 7, 1ull << 32, (1ull << 63) + 8}) {
    check(table.read(at, 4).error() == error::register_access);
    check(table.write(at, 8, 0).error() == error::register_access);
    check(table.read_pending(at, 4).error() == error::register_access);
  }
  check(table.state() == before);
  check(msix_table(0).read(0, 4).error() == error::register_access);
};
BOTH("any other width, place or overflow of the table is refused (RT-11)", widths)

constexpr auto due = [](auto check) {
  msix_table table = enabled(4);
  table.raise(0);
  table.raise(3);
  table.raise(3);
  check(table.take_due() == 0b1001); // once, however often it was asked for
  check(table.take_due() == 0 && *table.read_pending(0, 8) == 0);
};
BOTH("an unmasked vector is due at once, and once", due)

constexpr auto no_such = [](auto check) {
  msix_table table = enabled(4);
  for (const unsigned vector : {4u, 63u, 64u, 0x7ffu, 0xfffeu, 0xffffu})
    table.raise(static_cast<std::uint16_t>(vector));
  check(table.take_due() == 0 && *table.read_pending(0, 8) == 0);
  msix_table largest = enabled(64);
  largest.raise(63);
  largest.raise(0);
  check(largest.take_due() == 0x8000'0000'0000'0001);
};
BOTH("PCI-8: NO_VECTOR and vectors that are not there interrupt nobody", no_such)

constexpr auto masks = [](auto check) {
  msix_table table = enabled(2);
  (void)table.write(28, 4, 1);
  table.raise(0);
  table.raise(1);
  check(table.take_due() == 1 && *table.read_pending(0, 4) == 2 && *table.read_pending(4, 4) == 0);
  (void)table.write(24, 4, 0x77); // its message may change meanwhile
  check(table.take_due() == 0);
  (void)table.write(28, 4, 0);
  check(table.take_due() == 2 && table.message(1).data == 0x77);
  check(*table.read_pending(0, 8) == 0 && table.take_due() == 0);
};
BOTH("a masked vector is pending, and due when it is unmasked", masks)

constexpr auto function_mask = [](auto check) {
  msix_table table = enabled(2);
  table.set_control(cap::enable | cap::function_mask);
  (void)table.write(28, 4, 1);
  table.raise(0);
  table.raise(1);
  check(table.take_due() == 0 && *table.read_pending(0, 8) == 3);
  table.set_control(cap::enable);
  check(table.take_due() == 1 && *table.read_pending(0, 8) == 2); // the vector's mask still holds
};
BOTH("the function's mask holds every vector back", function_mask)

constexpr auto disabled = [](auto check) {
  msix_table table = enabled(2);
  (void)table.write(12, 4, 1);
  table.raise(0);
  table.set_control(0);
  check(!table.is_enabled() && *table.read_pending(0, 8) == 0);
  table.raise(1);
  check(table.take_due() == 0);
  table.set_control(cap::enable);
  (void)table.write(12, 4, 0);
  check(table.take_due() == 0);
  table.raise(1);
  table.clear_pending();
  check(table.take_due() == 0);
};
BOTH("nothing is pending while MSI-X is not enabled, or after a reset", disabled)

constexpr auto goes_on = [](auto check) {
  msix_table table = enabled(3);
  (void)table.write(28, 4, 1);
  table.raise(1);
  msix_table other(3);
  other.set_control(cap::enable);
  other.restore(table.state());
  check(other.state() == table.state() && other.message(2) == table.message(2));
  (void)other.write(28, 4, 0);
  check(other.take_due() == 2);

  auto strange = table.state();
  strange.pending = ~0ull;
  msix_table few(3);
  few.set_control(cap::enable);
  few.restore(strange);
  check(*few.read_pending(0, 8) == 7); // none that it does not have
  few.set_control(0);
  few.restore(strange);
  few.set_control(cap::enable);
  check(few.take_due() == 0 && *few.read_pending(0, 8) == 0); // it was not enabled then
};
BOTH("a table goes on from what was saved", goes_on)

} // namespace
