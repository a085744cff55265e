// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/endian.hpp>

#include "support/check.hpp"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

using namespace ballast;
using std::endian;

static_assert(wire_integer<std::uint8_t> && wire_integer<std::uint16_t>);
static_assert(wire_integer<std::uint32_t> && wire_integer<std::uint64_t>);
static_assert(!wire_integer<std::int32_t> && !wire_integer<bool> && !wire_integer<char>);
static_assert(!wire_integer<const std::uint16_t> && !wire_integer<std::uint16_t&>);

template <class W, class T>
constexpr bool is_wire_word =
    sizeof(W) == sizeof(T) && alignof(W) == 1 && std::is_trivially_copyable_v<W> &&
    std::is_standard_layout_v<W> && std::is_same_v<typename W::value_type, T>;
static_assert(is_wire_word<word<std::uint8_t, endian::little>, std::uint8_t>);
static_assert(is_wire_word<le16, std::uint16_t> && is_wire_word<be16, std::uint16_t>);
static_assert(is_wire_word<le32, std::uint32_t> && is_wire_word<be32, std::uint32_t>);
static_assert(is_wire_word<le64, std::uint64_t> && is_wire_word<be64, std::uint64_t>);
static_assert(le32::order == endian::little && be32::order == endian::big);

// A structure as the specification writes one, with members at odd offsets.
struct wire {
  word<std::uint8_t, endian::little> kind;
  le16 tag;
  le64 value;
  be32 network;
  be16 port;
};
static_assert(sizeof(wire) == 17 && alignof(wire) == 1);
static_assert(offsetof(wire, tag) == 1 && offsetof(wire, value) == 3 &&
              offsetof(wire, network) == 11 && offsetof(wire, port) == 15);

template <class W> constexpr bool lies_as(W w, const std::array<unsigned char, sizeof(W)>& bytes) {
  return std::bit_cast<std::array<unsigned char, sizeof(W)>>(w) == bytes;
}

constexpr auto swaps = [](auto check) {
  check(byte_swap(std::uint8_t{0x12}) == 0x12);
  check(byte_swap(std::uint16_t{0x1234}) == 0x3412);
  check(byte_swap(std::uint32_t{0x12345678}) == 0x78563412);
  check(byte_swap(std::uint64_t{0x0123456789abcdef}) == 0xefcdab8967452301);
};
BOTH("byte_swap reverses the bytes of every width", swaps)

constexpr auto converts = [](auto check) {
  const auto both_ways = [&](auto value) {
    check(to_order<endian::native>(value) == value);
    check(to_order<endian::little>(to_order<endian::little>(value)) == value);
    check(to_order<endian::big>(to_order<endian::big>(value)) == value);
    check(to_order<endian::big>(value) == byte_swap(to_order<endian::little>(value)));
  };
  both_ways(std::uint8_t{0x80});
  both_ways(std::uint16_t{0x8001});
  both_ways(std::uint32_t{0x80000002});
  both_ways(std::uint64_t{0x8000000000000003});
};
BOTH("to_order is its own inverse, and nothing for the order of this machine", converts)

constexpr auto lies = [](auto check) {
  check(lies_as(word<std::uint8_t, endian::big>(0xfe), {0xfe}));
  check(lies_as(le16(0x1234), {0x34, 0x12}));
  check(lies_as(be16(0x1234), {0x12, 0x34}));
  check(lies_as(le32(0x12345678), {0x78, 0x56, 0x34, 0x12}));
  check(lies_as(be32(0x12345678), {0x12, 0x34, 0x56, 0x78}));
  check(lies_as(le64(0x0123456789abcdef), {0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01}));
  check(lies_as(be64(0x0123456789abcdef), {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}));
};
BOTH("a word's bytes lie in its order on every machine", lies)

constexpr auto reads = [](auto check) {
  check(std::bit_cast<le16>(std::array<unsigned char, 2>{0x01, 0x80}) == 0x8001);
  check(std::bit_cast<be16>(std::array<unsigned char, 2>{0x01, 0x80}) == 0x0180);
  check(std::bit_cast<le32>(std::array<unsigned char, 4>{1, 2, 3, 0xff}) == 0xff030201);
  check(std::bit_cast<be32>(std::array<unsigned char, 4>{0xff, 3, 2, 1}) == 0xff030201);
  check(std::bit_cast<le64>(std::array<unsigned char, 8>{1, 0, 0, 0, 0, 0, 0, 0x80}) ==
        0x8000000000000001);
  check(std::bit_cast<be64>(std::array<unsigned char, 8>{0x80, 0, 0, 0, 0, 0, 0, 1}) ==
        0x8000000000000001);
};
BOTH("a word reads what its bytes say", reads)

constexpr auto values = [](auto check) {
  check(le16{} == 0 && be64{} == 0);
  le32 w;
  w = 0xffffffff;
  check(w == 0xffffffff);
  const std::uint32_t out = w;
  check(out == 0xffffffff);
  be32 other = w + 2u; // wraps as its value type does
  check(other == 1 && w > other);
  other = static_cast<std::uint32_t>(w);
  check(other == w);
  const be32 copy = other;
  check(copy == 0xffffffff);
};
BOTH("reading, comparing and assigning convert; a new word is 0", values)

constexpr auto structures = [](auto check) {
  const wire made{1, 0x0203, 0x0405060708090a0b, 0x0c0d0e0f, 0x1011};
  const std::array<unsigned char, 17> bytes{1, 3, 2,    0xb,  0xa,  9,    8,    7,   6,
                                            5, 4, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11};
  check(std::bit_cast<std::array<unsigned char, 17>>(made) == bytes);
  const auto back = std::bit_cast<wire>(bytes);
  check(back.kind == 1 && back.tag == 0x0203 && back.value == 0x0405060708090a0b);
  check(back.network == 0x0c0d0e0f && back.port == 0x1011);
};
BOTH("a wire structure has no padding and the bytes of its members in order", structures)

TEST_CASE("a word can be read and written at every address") {
  unsigned char bytes[32] = {};
  for (std::size_t at = 0; at < 16; ++at) {
    const le64 in = 0x1122334455667700 + at;
    std::memcpy(bytes + at, &in, sizeof in);
    le64 out;
    std::memcpy(&out, bytes + at, sizeof out);
    CHECK(out == 0x1122334455667700 + at);
    CHECK(bytes[at] == at);
    CHECK(bytes[at + 7] == 0x11);
  }
}

} // namespace
