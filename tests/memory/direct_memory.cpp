// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/memory/direct_memory.hpp>

#include "support/check.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

using namespace ballast;

static_assert(guest_memory<direct_memory>);
static_assert(std::is_empty_v<direct_memory>);
static_assert(sizeof(direct_memory::window_type) == sizeof(void*));
static_assert(std::is_trivially_copyable_v<direct_memory::window_type>);

struct page {
  alignas(16) std::byte bytes[64]{};

  guest_address address(std::size_t offset = 0) {
    return reinterpret_cast<std::uintptr_t>(bytes + offset);
  }
  template <class T> T at(std::size_t offset) const {
    T value;
    std::memcpy(&value, bytes + offset, sizeof value);
    return value;
  }
};

TEST_CASE("an address is a pointer: words of every width and order lie where it points") {
  page p;
  direct_memory ram;
  auto w = *ram.window(p.address(16), 32, 16, access::write);
  for (const order o : {order::plain, order::relaxed, order::acquire, order::release}) {
    const auto salt = static_cast<std::uint16_t>(1 + static_cast<int>(o));
    w.store<std::uint64_t>(8, 0x0123456789ab0000 + salt, o);
    w.store<std::uint32_t>(4, 0x89ab0000 + salt, o);
    w.store<std::uint16_t>(2, salt, o);
    CHECK(w.load<std::uint64_t>(8, o) == 0x0123456789ab0000 + salt);
    CHECK(w.load<std::uint32_t>(4, o) == 0x89ab0000 + salt);
    CHECK(w.load<std::uint16_t>(2, o) == salt);
    CHECK(p.at<std::uint64_t>(24) == 0x0123456789ab0000 + salt);
    CHECK(p.at<std::uint32_t>(20) == 0x89ab0000 + salt);
    CHECK(p.at<std::uint16_t>(18) == salt);
    CHECK(p.at<std::uint16_t>(16) == 0);
    CHECK(p.at<std::uint64_t>(32) == 0);
  }
  CHECK(ram.good());
  ram.fence();
}

TEST_CASE("RT-14: null and ranges that wrap are refused") {
  direct_memory ram;
  std::array<std::byte, 4> copy{};
  const auto refused = [&](guest_address a, std::uint64_t n) {
    CHECK(ram.window(a, n, 1, access::read).error() == error::not_guest_memory);
    CHECK(ram.segment(a, n, access::read).size == 0);
    CHECK(ram.segment(a, n, access::write).data == nullptr);
  };
  refused(0, 4);
  refused(0, 0);
  refused(UINTPTR_MAX - 3, 5);
  refused(UINTPTR_MAX, 1);
  refused(4096, UINT64_MAX);
  refused(4096, UINT64_MAX - 4095);
  refused(UINT64_MAX - 1, 4);
  CHECK(!ram.read(0, copy));
  CHECK(!ram.write(0, copy));
  CHECK(!ram.read(UINTPTR_MAX - 2, copy));
  CHECK(!ram.write(UINTPTR_MAX - 2, copy));
}

TEST_CASE("a direct window starts at a multiple of its alignment") {
  page p;
  direct_memory ram;
  for (const std::size_t to : {2u, 4u, 8u, 16u}) {
    CHECK(ram.window(p.address(to), 8, to, access::write).has_value());
    CHECK(ram.window(p.address(to / 2), 8, to, access::write).error() == error::misaligned);
    CHECK(ram.window(p.address(1), 8, to, access::write).error() == error::misaligned);
  }
  CHECK(ram.window(p.address(1), 8, 1, access::write).has_value());
}

TEST_CASE("a direct segment is the whole range") {
  page p;
  direct_memory ram;
  const memory_segment s = ram.segment(p.address(3), 17, access::write);
  CHECK(s.data == p.bytes + 3);
  CHECK(s.size == 17);
}

TEST_CASE("direct read and write copy at every address; zero bytes need no memory") {
  page p;
  direct_memory ram;
  const std::array<std::byte, 3> from{std::byte{1}, std::byte{2}, std::byte{3}};
  CHECK(ram.write(p.address(61), from));
  std::array<std::byte, 4> to{};
  CHECK(ram.read(p.address(60), to));
  CHECK(to == std::array<std::byte, 4>{std::byte{0}, std::byte{1}, std::byte{2}, std::byte{3}});
  CHECK(ram.read(0, {}));
  CHECK(ram.write(0, {}));
}

} // namespace
