// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/memory/mapped_memory.hpp>

#include "support/check.hpp"

#include <ballast/virtqueue/layout.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <thread>
#include <type_traits>

namespace {

using namespace ballast;

static_assert(guest_memory<mapped_memory>);
static_assert(std::is_trivially_copyable_v<mapped_memory>);
static_assert(sizeof(mapped_memory::window_type) == sizeof(void*));

constexpr std::uint64_t most = UINT64_MAX;
constexpr guest_address top = most - 15; // the end of the last region

// Five regions: `low` and `next` adjoin in the guest and lie apart in the host, `rom` adjoins
// `next` and cannot be written, a hole follows, then `high`, and `last` 16 bytes below 2^64.
struct machine {
  alignas(16) std::byte bytes[5][64]{};
  memory_region regions[5] = {{0x1000, bytes[3], 64},
                              {0x1040, bytes[1], 64},
                              {0x1080, bytes[4], 64, false},
                              {0x100000000, bytes[0], 64},
                              {top - 64, bytes[2], 64}};
  std::byte* low = bytes[3];
  std::byte* next = bytes[1];
  std::byte* rom = bytes[4];
  std::byte* high = bytes[0];
  std::byte* last = bytes[2];
  mapped_memory ram = *mapped_memory::over(regions);

  machine() = default;
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  bool is_untouched() const {
    for (const auto& region : bytes)
      for (const std::byte b : region)
        if (b != std::byte{0}) return false;
    return true;
  }
};

std::array<std::byte, 256> count_up() {
  std::array<std::byte, 256> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i + 1);
  return bytes;
}

TEST_CASE("regions in order are accepted, with and without holes") {
  machine m;
  CHECK(mapped_memory::over(m.regions).has_value());
  CHECK(mapped_memory::over(m.regions)->regions().size() == 5);
  CHECK(mapped_memory::over(std::span(m.regions).first(1)).has_value());
  CHECK(mapped_memory::over({}).has_value());
  m.regions[1].size = 0; // not a region at all, but no harm
  CHECK(mapped_memory::over(m.regions).has_value());
}

TEST_CASE("regions that overlap or are not in order are refused") {
  machine m;
  m.regions[0].size = 65;
  CHECK(mapped_memory::over(m.regions).error() == error::regions_overlap);
  m.regions[0].size = 64;
  std::swap(m.regions[2], m.regions[3]);
  CHECK(mapped_memory::over(m.regions).error() == error::regions_overlap);
  m.regions[3] = m.regions[2];
  CHECK(mapped_memory::over(m.regions).error() == error::regions_overlap);
}

TEST_CASE("regions whose guest and host bases differ modulo 16 are refused") {
  alignas(16) std::byte bytes[64]{};
  for (std::uint64_t guest = 0; guest < 32; ++guest)
    for (std::uint64_t host = 0; host < 32; ++host) {
      const memory_region r[] = {{0x1000 + guest, bytes + host, 32}};
      const bool is_congruent = guest % 16 == host % 16;
      CHECK(mapped_memory::over(r).error() ==
            (is_congruent ? error::none : error::region_misplaced));
    }
}

TEST_CASE("RT-14: regions that wrap or have no host memory are refused") {
  alignas(16) std::byte bytes[64]{};
  const auto refusal = [&](memory_region r) {
    return mapped_memory::over(std::span<const memory_region>(&r, 1)).error();
  };
  CHECK(refusal({top - 64, bytes, 64}) == error::none);
  CHECK(refusal({most - 63, bytes, 64}) == error::region_misplaced); // its end would be 2^64
  CHECK(refusal({most - 47, bytes, 64}) == error::region_misplaced);
  CHECK(refusal({0x1000, bytes, most}) == error::region_misplaced);
  CHECK(refusal({0, bytes, most}) == error::region_misplaced); // wraps in the host only
  CHECK(refusal({0x1000, nullptr, 64}) == error::region_misplaced);
}

TEST_CASE("words of every width and order lie in the region that holds their address") {
  machine m;
  auto w = *m.ram.window(0x1050, 32, 16, access::write);
  for (const order o : {order::plain, order::relaxed, order::acquire, order::release}) {
    const auto salt = static_cast<std::uint16_t>(1 + static_cast<int>(o));
    w.store<std::uint64_t>(8, 0x0123456789ab0000 + salt, o);
    w.store<std::uint32_t>(4, 0x89ab0000 + salt, o);
    w.store<std::uint16_t>(2, salt, o);
    CHECK(w.load<std::uint64_t>(8, o) == 0x0123456789ab0000 + salt);
    CHECK(w.load<std::uint32_t>(4, o) == 0x89ab0000 + salt);
    CHECK(w.load<std::uint16_t>(2, o) == salt);
    std::uint64_t lies = 0;
    std::memcpy(&lies, m.next + 0x18, 8);
    CHECK(lies == 0x0123456789ab0000 + salt);
    CHECK(m.next[0x10] == std::byte{0});
    CHECK(m.next[0x20] == std::byte{0});
  }
  CHECK(m.ram.good());
  m.ram.fence();
}

TEST_CASE("RT-14: a window lies in one region or is refused") {
  machine m;
  const auto refused = [&](guest_address a, std::uint64_t n) {
    CHECK(m.ram.window(a, n, 1, access::read).error() == error::not_guest_memory);
    mapped_memory fresh = *mapped_memory::over(m.regions);
    CHECK(fresh.window(a, n, 1, access::read).error() == error::not_guest_memory);
  };
  CHECK(m.ram.window(0x1000, 64, 16, access::write).has_value());
  CHECK(m.ram.window(0x103f, 1, 1, access::write).has_value());
  refused(0xfff, 1);
  refused(0xfff, 2);
  refused(0x1000, 65); // both adjoining regions: guest memory, but not one piece
  refused(0x103f, 2);
  refused(0x10c0, 1); // the hole
  refused(0xffffffff, 2);
  refused(0x100000040, 1);
  refused(0x100000000, most);
  refused(most, 1);
  refused(top, 1);
  refused(top - 1, 2);
  refused(top - 1, 17 + 0x1001); // wraps into `low`
  CHECK(m.ram.window(top - 1, 1, 1, access::read).has_value());
}

TEST_CASE("RT-20: a ring of which only the event word lies in the next region is refused") {
  machine m;
  constexpr std::uint32_t size = 4;
  constexpr std::uint32_t used = split::used_ring_bytes(size);
  constexpr std::uint32_t available = split::available_ring_bytes(size);
  CHECK(m.ram.window(0x1040 - used + 2, used, 4, access::write).error() == error::not_guest_memory);
  CHECK(m.ram.window(0x1040 - available + 2, available, 2, access::read).error() ==
        error::not_guest_memory);
  CHECK(m.ram.window(0x1040 - available, available, 2, access::read).has_value());
  // At the end of memory: the word is in no region at all.
  CHECK(m.ram.window(0x100000040 - used + 2, used, 4, access::write).error() ==
        error::not_guest_memory);
}

TEST_CASE("a window starts at a multiple of its alignment, in the guest and in the host") {
  machine m;
  for (const std::size_t to : {2u, 4u, 8u, 16u}) {
    CHECK(m.ram.window(0x1000 + to, 8, to, access::read).has_value());
    CHECK(m.ram.window(0x1000 + to / 2, 8, to, access::read).error() == error::misaligned);
    CHECK(m.ram.window(0x1001, 8, to, access::read).error() == error::misaligned);
  }
  CHECK(m.ram.window(0x1001, 8, 1, access::read).has_value());
}

TEST_CASE("read-only memory can be read, and refuses to be written") {
  machine m;
  m.rom[8] = std::byte{7};
  const auto bytes = count_up();
  std::array<std::byte, 256> copy{};
  CHECK(m.ram.window(0x1080, 64, 16, access::write).error() == error::access_not_allowed);
  CHECK(m.ram.window(0x1080, 64, 16, access::read)->load<std::uint16_t>(8, order::plain) != 0);
  CHECK(m.ram.segment(0x1088, 1, access::write).size == 0);
  CHECK(m.ram.segment(0x1088, 1, access::read).data == m.rom + 8);
  CHECK(m.ram.segment(0x1088, 1, access::write).size == 0); // remembered now, and refused still
  CHECK(m.ram.read(0x1088, std::span(copy).first(1)));
  CHECK(copy[0] == std::byte{7});
  CHECK(!m.ram.write(0x1088, std::span(bytes).first(1)));
  // A write that starts in writable memory and ends in read-only memory changes nothing.
  CHECK(!m.ram.write(0x107f, std::span(bytes).first(2)));
  CHECK(m.next[63] == std::byte{0});
  CHECK(m.ram.segment(0x107f, 2, access::write).size == 1);
  m.rom[8] = std::byte{0};
  CHECK(m.is_untouched());
}

TEST_CASE("RT-14: a segment is the longest piece within one region") {
  machine m;
  const auto is = [&](guest_address a, std::uint64_t n, std::byte* data, std::uint64_t size) {
    mapped_memory fresh = *mapped_memory::over(m.regions);
    for (mapped_memory* ram : {&m.ram, &fresh, &fresh}) { // another region hit before, none, this
      const memory_segment s = ram->segment(a, n, access::read);
      CHECK(s.data == data);
      CHECK(s.size == size);
    }
  };
  is(0x1000, 64, m.low, 64);
  is(0x1000, 65, m.low, 64);
  is(0x103f, 1, m.low + 63, 1);
  is(0x103f, 2, m.low + 63, 1);
  is(0x1040, 200, m.next, 64);
  is(0x10bf, 2, m.rom + 63, 1);
  is(0x10c0, 1, nullptr, 0);
  is(0xfff, 2, nullptr, 0);
  is(0x100000000, 0x100000000, m.high, 64);
  is(top - 2, 17, m.last + 62, 2);
  is(top - 2, 18, nullptr, 0); // the range wraps
  is(0x1001, most - 0x1000, nullptr, 0);
  is(0x1001, most - 0x1001, m.low + 1, 63);
  is(most, 1, nullptr, 0);
}

TEST_CASE("RT-14: read and write cross from one region into the next") {
  machine m;
  const auto bytes = count_up();
  CHECK(m.ram.write(0x1030, std::span(bytes).first(32)));
  CHECK(m.low[63] == std::byte{16});
  CHECK(m.next[0] == std::byte{17});
  CHECK(m.next[15] == std::byte{32});
  CHECK(m.next[16] == std::byte{0});
  std::memset(m.rom, 0x77, 64);
  std::array<std::byte, 0xc0> all{};
  CHECK(m.ram.read(0x1000, all));
  CHECK(std::memcmp(all.data(), m.low, 64) == 0);
  CHECK(std::memcmp(all.data() + 64, m.next, 64) == 0);
  CHECK(std::memcmp(all.data() + 128, m.rom, 64) == 0);
}

TEST_CASE("RT-14: a copy of which one byte is no memory copies nothing") {
  machine m;
  const auto bytes = count_up();
  const auto refused = [&](guest_address a, std::size_t n) {
    CHECK(!m.ram.write(a, std::span(bytes).first(n)));
    CHECK(m.is_untouched());
    auto copy = bytes;
    CHECK(!m.ram.read(a, std::span(copy).first(n)));
    CHECK(copy == bytes);
  };
  refused(0xfff, 2);
  refused(0x1000, 0xc1);
  refused(0x10bf, 2);
  refused(0x10c0, 1);
  refused(0xffffffff, 2);
  refused(0x10000003f, 2);
  refused(top - 1, 2);
  refused(top - 1, 100);
  refused(most, 1);
  refused(0, 16);
}

TEST_CASE("zero bytes need no memory") {
  machine m;
  for (const guest_address a : {guest_address{0}, guest_address{0x10c0}, most}) {
    CHECK(m.ram.read(a, {}));
    CHECK(m.ram.write(a, {}));
    CHECK(m.ram.segment(a, 0, access::read).size == 0);
  }
  CHECK(m.ram.write(0x1080, {}));
  CHECK(m.ram.segment(0x1000, 0, access::write).size == 0);
}

TEST_CASE("memory without regions is no memory") {
  mapped_memory none;
  mapped_memory empty = *mapped_memory::over({});
  std::array<std::byte, 1> byte{};
  for (mapped_memory* ram : {&none, &empty}) {
    CHECK(ram->window(0, 1, 1, access::read).error() == error::not_guest_memory);
    CHECK(ram->window(0, 0, 1, access::read).error() == error::not_guest_memory);
    CHECK(ram->segment(0, 1, access::read).size == 0);
    CHECK(!ram->read(0, byte));
    CHECK(!ram->write(0, byte));
  }
}

TEST_CASE("the region remembered from the last access never changes an answer") {
  machine m;
  const guest_address probes[] = {0xfff,  0x1000, 0x103f,      0x1040,      0x107f,  0x1080,
                                  0x10bf, 0x10c0, 0x100000000, 0x100000040, top - 1, most};
  for (const guest_address before : probes)
    for (const guest_address probe : probes)
      for (const ballast::access kind : {access::read, access::write})
        for (const std::uint64_t n : {1u, 2u, 65u}) {
          mapped_memory fresh = *mapped_memory::over(m.regions);
          mapped_memory used = fresh;
          (void)used.segment(before, 1, access::read);
          const memory_segment a = fresh.segment(probe, n, kind);
          const memory_segment b = used.segment(probe, n, kind);
          CHECK(a.data == b.data);
          CHECK(a.size == b.size);
          CHECK(fresh.window(probe, n, 2, kind).error() == used.window(probe, n, 2, kind).error());
        }
}

TEST_CASE("a release store hands plain words and payload over to another thread") {
  machine m;
  constexpr std::uint16_t rounds = 2000;
  const auto side = [&m](bool is_first) {
    mapped_memory ram = m.ram; // each thread its own copy
    auto w = *ram.window(0x1000, 64, 8, access::write);
    const std::uint32_t mine = is_first ? 0 : 2, theirs = is_first ? 2 : 0;
    std::uint64_t bad = 0;
    for (std::uint16_t i = 1; i <= rounds; ++i) {
      if (!is_first)
        while (w.load<std::uint16_t>(theirs, order::acquire) != i) std::this_thread::yield();
      std::array<std::byte, 8> payload{};
      (void)ram.read(0x1048, payload);
      const auto expected = static_cast<std::uint16_t>(2 * i - (is_first ? 2 : 1));
      bad += w.load<std::uint64_t>(8, order::plain) != expected;
      bad += payload[0] != static_cast<std::byte>(expected);
      const auto following = static_cast<std::uint16_t>(expected + 1);
      payload[0] = static_cast<std::byte>(following);
      (void)ram.write(0x1048, payload);
      w.store<std::uint64_t>(8, following, order::plain);
      w.store<std::uint16_t>(mine, i, order::release);
      if (is_first)
        while (w.load<std::uint16_t>(theirs, order::acquire) != i) std::this_thread::yield();
    }
    return bad;
  };
  std::uint64_t bad = 0;
  std::thread other([&] { bad = side(false); });
  CHECK(side(true) == 0);
  other.join();
  CHECK(bad == 0);
}

} // namespace
