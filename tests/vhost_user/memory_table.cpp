// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/memory_table.hpp>

#include <doctest/doctest.h>

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace {

using namespace ballast;
using namespace ballast::vhost_user;

file make(std::uint64_t size) {
  file made(memfd_create("ram", MFD_CLOEXEC));
  REQUIRE(ftruncate(made.get(), static_cast<off_t>(size)) == 0);
  return made;
}

constexpr region_description low{0x1000, 0x2000, 0x70001000, 0};
constexpr region_description high{0x10'0000, 0x1000, 0x50000000, 0x1000};

TEST_CASE("regions are kept in the order of their addresses, whichever came first") {
  memory_table table;
  CHECK(table.regions().empty());
  const auto before = table.generation();
  REQUIRE(table.add(high, make(0x2000)));
  REQUIRE(table.add(low, make(0x2000)));
  CHECK(table.generation() != before);
  REQUIRE(table.regions().size() == 2);
  CHECK(table.regions()[0].address == 0x1000);
  CHECK(table.regions()[1].size == 0x1000);
  auto ram = table.memory();
  const std::array some{std::byte{1}, std::byte{2}};
  CHECK(ram.write(0x2ffe, some));
  CHECK(!ram.write(0x2fff, some)); // a hole behind it
  CHECK(ram.write(0x10'0000, some));
  // ... which lies at the region's offset in its file.
  std::array<std::byte, 2> there{};
  REQUIRE(table.find(0x10'0000) != nullptr);
  CHECK(pread(table.find(0x10'0000)->source.get(), there.data(), 2, 0x1000) == 2);
  CHECK(there == some);
  CHECK(table.find(0x10'0fff)->offset_of(0x10'0fff) == 0x1fff);
  CHECK(table.find(0x10'1000) == nullptr);
  CHECK(table.find(0xfff) == nullptr);
}

TEST_CASE("addresses of the front end's process are guest addresses here") {
  memory_table table;
  REQUIRE(table.add(low, make(0x2000)));
  REQUIRE(table.add(high, make(0x2000)));
  CHECK(*table.guest_address_of(0x70001000) == 0x1000);
  CHECK(*table.guest_address_of(0x70002fff) == 0x2fff);
  CHECK(*table.guest_address_of(0x50000010) == 0x10'0010);
  CHECK(table.guest_address_of(0x70003000).error() == error::not_guest_memory);
  CHECK(table.guest_address_of(0).error() == error::not_guest_memory);
}

TEST_CASE("a region that cannot be is refused and changes nothing") {
  memory_table table;
  REQUIRE(table.add(low, make(0x2000)));
  CHECK(table.add({0x2000, 0x1000, 0, 0}, make(0x1000)).error() == error::regions_overlap);
  CHECK(table.add({0, 0x1001, 0, 0}, make(0x2000)).error() == error::regions_overlap);
  CHECK(table.add({0x9000, 0x1000, 0, 8}, make(0x2000)).error() == error::region_misplaced);
  CHECK(table.add({0x9000, 0x1001, 0, 0x1000}, make(0x2000)).error() == error::file_too_small);
  CHECK(table.regions().size() == 1);
  for (std::uint64_t i = 1; i < memory_slots_max; ++i)
    REQUIRE(table.add({0x10000 * i, 0x1000, 0, 0}, make(0x1000)));
  CHECK(table.add({0x1000'0000, 0x1000, 0, 0}, make(0x1000)).error() == error::memory_slots_full);
}

TEST_CASE("a region is removed by its description, whatever its file's offset") {
  memory_table table;
  REQUIRE(table.add(low, make(0x2000)));
  REQUIRE(table.add(high, make(0x2000)));
  region_description other = low;
  other.user_address += 0x1000;
  CHECK(table.remove(other).error() == error::region_unknown);
  CHECK(table.regions().size() == 2);
  other = low;
  other.file_offset = 5;
  REQUIRE(table.remove(other));
  REQUIRE(table.regions().size() == 1);
  CHECK(table.regions()[0].address == high.guest_address);
  CHECK(table.remove(low).error() == error::region_unknown);
}

TEST_CASE("a table takes over another one's regions") {
  memory_table table, next;
  REQUIRE(table.add(low, make(0x2000)));
  REQUIRE(next.add(high, make(0x2000)));
  const std::byte* const at = next.regions()[0].data;
  table.take(next);
  REQUIRE(table.regions().size() == 1);
  CHECK(table.regions()[0].data == at);
  CHECK(next.regions().empty());
  table.clear();
  CHECK(table.regions().empty());
  CHECK(table.find(high.guest_address) == nullptr);
}

} // namespace
