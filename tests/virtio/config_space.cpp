// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/config_space.hpp>

#include <support/check.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace {

using ballast::config_space;
using ballast::error;

template <class... T> constexpr std::array<std::byte, sizeof...(T)> bytes(T... values) {
  return {static_cast<std::byte>(values)...};
}

template <std::size_t N> constexpr auto filled(std::byte with) {
  std::array<std::byte, N> a{};
  for (std::byte& b : a) b = with;
  return a;
}

constexpr auto little_endian = [](auto check) {
  config_space<16> config;
  check(config.set32(4, 0x0403'0201));
  std::array<std::byte, 16> all{};
  check(config.read(0, all).has_value());
  check(all == bytes(0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0));
  check(config.get32(4) == 0x0403'0201 && config.get32(0) == 0);
};
BOTH("the device's fields lie little-endian on every machine", little_endian)

constexpr auto every_range = [](auto check) {
  config_space<12> config;
  for (std::uint32_t i = 0; i < 3; ++i)
    (void)config.set32(4 * i, (4 * i + 1) * 0x01010101u + 0x03020100u);
  for (std::uint32_t offset = 0; offset <= 12; ++offset)
    for (std::size_t n = 0; n <= 12 - offset; ++n) {
      std::array<std::byte, 12> to{};
      check(config.read(offset, std::span(to).first(n)).has_value());
      for (std::size_t i = 0; i < 12; ++i)
        check(to[i] == static_cast<std::byte>(i < n ? offset + i + 1 : 0));
    }
};
BOTH("any range reads its bytes and no others", every_range)

constexpr auto writes_own_fields = [](auto check) {
  config_space<16> config{{4, 4}, {12, 4}};
  (void)config.set32(0, 0x11111111);
  (void)config.set32(8, 0x22222222);
  const auto done = config.write(0, filled<16>(std::byte{0xee}));
  check(done && done->is_changed && done->has_read_only);
  check(config.get32(0) == 0x11111111);
  check(config.get32(4) == 0xeeeeeeee);
  check(config.get32(8) == 0x22222222);
  check(config.get32(12) == 0xeeeeeeee);
};
BOTH("a driver's write reaches its own fields and leaves the others", writes_own_fields)

constexpr auto bytewise = [](auto check) {
  config_space<8> config{{4, 4}};
  (void)config.set32(4, 0xaabbccdd);
  check(config.write(5, bytes(0x11)).has_value());
  check(config.get32(4) == 0xaabb11dd);
  check(config.write(6, bytes(0x33, 0x44)).has_value());
  check(config.get32(4) == 0x443311dd);
  const auto half = config.write(2, bytes(1, 2, 3, 4));
  check(half && half->is_changed && half->has_read_only);
  check(config.get32(0) == 0 && config.get32(4) == 0x44330403);
};
BOTH("a driver's write is merged byte by byte", bytewise)

constexpr auto reports = [](auto check) {
  config_space<8> config{{4, 2}};
  auto done = config.write(0, bytes(1, 2, 3, 4));
  check(done && !done->is_changed && done->has_read_only);
  done = config.write(4, bytes(0, 0));
  check(done && !done->is_changed && !done->has_read_only);
  done = config.write(4, bytes(0, 1));
  check(done && done->is_changed && !done->has_read_only);
  done = config.write(4, bytes(0, 1));
  check(done && !done->is_changed);
  done = config.write(6, bytes(9));
  check(done && !done->is_changed && done->has_read_only && config.get32(4) == 0x100);
  done = config.write(3, std::span<const std::byte>{});
  check(done && !done->is_changed && !done->has_read_only);
};
BOTH("a write says whether it changed anything and touched what is not the driver's", reports)

constexpr auto masks = [](auto check) {
  config_space<16> config;
  check(!config.write(12, bytes(1, 1, 1, 1))->is_changed);
  config.allow_writes({12, 4});
  check(config.write(12, bytes(1, 1, 1, 1))->is_changed);
  config.forbid_writes({13, 2});
  check(config.write(12, bytes(2, 2, 2, 2))->is_changed);
  check(config.get32(12) == 0x02010102);
  // A field that passes the end is cut there.
  config.allow_writes({15, 100});
  config.allow_writes({16, 4});
  config.allow_writes({~0u, ~0u});
  config.allow_writes({0, ~0u});
  check(config.write(0, filled<16>(std::byte{7}))->has_read_only == false);
};
BOTH("what the driver may write can follow the negotiated features", masks)

constexpr auto bounds = [](auto check) {
  config_space<16> config{{0, 16}};
  auto buffer = filled<32>(std::byte{0x55});
  const std::span<std::byte> all(buffer);
  for (const std::size_t n : {0u, 1u, 2u, 4u, 8u, 16u, 17u, 32u})
    for (const std::uint32_t offset :
         {0u, 1u, 8u, 12u, 15u, 16u, 17u, 0x7fff'ffffu, 0xffff'fff0u, 0xffff'fffcu, ~0u}) {
      const bool fits = std::uint64_t{offset} + n <= 16;
      check(config.write(offset, all.first(n)).error() ==
            (fits ? error::none : error::config_out_of_range));
      auto to = filled<32>(std::byte{0x66});
      check(config.read(offset, std::span(to).first(n)).error() ==
            (fits ? error::none : error::config_out_of_range));
      if (!fits) check(to == filled<32>(std::byte{0x66}));
    }
};
BOTH("offset + length is checked without overflow at every width (RT-11)", bounds)

constexpr auto out_of_range_writes_nothing = [](auto check) {
  config_space<8> config{{0, 8}};
  check(config.write(4, bytes(1, 2, 3, 4, 5)).error() == error::config_out_of_range);
  check(config.get32(4) == 0);
};
BOTH("a write that passes the end writes nothing", out_of_range_writes_nothing)

constexpr auto visible = [](auto check) {
  config_space<16> config{{4, 4}, {12, 4}};
  check(config.visible_size() == 16);
  config.set_visible_size(8);
  check(config.visible_size() == 8);
  std::array<std::byte, 4> to{};
  check(config.read(4, to).has_value());
  check(config.read(8, to).error() == error::config_out_of_range);
  check(config.read(6, to).error() == error::config_out_of_range);
  check(config.write(12, to).error() == error::config_out_of_range);
  check(config.set32(12, 9) && config.get32(12) == 9); // the device's own business
  config.set_visible_size(1000);
  check(config.visible_size() == 16);
  config.set_visible_size(0);
  check(config.read(0, to).error() == error::config_out_of_range);
  check(config.read(0, std::span<std::byte>{}).has_value());
};
BOTH("only the visible bytes are there for the driver", visible)

constexpr auto generation = [](auto check) {
  config_space<8> config{{4, 4}};
  const std::uint32_t first = config.generation();
  check(config.set32(0, 5));
  const std::uint32_t second = config.generation();
  check(second != first);
  check(!config.set32(0, 5));
  check(config.generation() == second);
  check(config.write(4, bytes(1, 2, 3, 4)).has_value());
  check(config.generation() == second); // the driver knows what it wrote
  check(config.set32(4, 0) && config.generation() != second);
};
BOTH("the generation changes when the device changed a field, and only then", generation)

constexpr auto odd_offsets = [](auto check) {
  config_space<6> config;
  for (const std::uint32_t offset : {1u, 2u, 3u, 5u, 8u, ~0u, ~3u}) {
    check(!config.set32(offset, 7));
    check(config.get32(offset) == 0);
  }
  check(config.generation() == 0);
  check(config.set32(4, 0x1234));
  std::array<std::byte, 2> to{};
  check(config.read(4, to).has_value() && to == bytes(0x34, 0x12));
};
BOTH("a field that is misplaced is not there", odd_offsets)

TEST_CASE("two fields read between equal generations are one state, and no field is torn") {
  config_space<8> config;
  ballast::shared_value<std::uint32_t> looks;
  ballast::shared_value<std::uint32_t> is_done;
  std::thread device([&] {
    while (looks.load() == 0) std::this_thread::yield(); // the driver is looking
    for (std::uint32_t i = 1; i <= 20'000; ++i) {
      config.set32(0, i * 0x10001); // both halves equal: a torn read shows
      config.set32(4, i * 0x10001);
    }
    is_done.store(1);
  });
  std::uint32_t failed = 0;
  std::uint32_t torn = 0;
  std::uint32_t mixed = 0;
  while (is_done.load() == 0) {
    const std::uint32_t before = config.generation();
    std::array<std::byte, 8> to{};
    failed += !config.read(0, to);
    const std::uint32_t after = config.generation();
    std::uint32_t field[2]{};
    for (std::size_t i = 0; i < 8; ++i)
      field[i / 4] |= std::to_integer<std::uint32_t>(to[i]) << (8 * (i % 4));
    for (const std::uint32_t f : field) torn += f % 0x10001 != 0;
    // The second field follows the first at once: it is the same or one behind.
    if (before == after) mixed += (field[0] - field[1]) / 0x10001 > 1;
    looks.fetch_add(1);
  }
  device.join();
  CHECK(failed == 0);
  CHECK(torn == 0);
  CHECK(mixed == 0);
}

} // namespace
