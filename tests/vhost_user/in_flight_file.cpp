// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/in_flight_file.hpp>

#include <doctest/doctest.h>

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace {

using ballast::error;
using namespace ballast::vhost_user;

TEST_CASE("a new file has room for all queues, is empty, and keeps its size") {
  for (const bool is_packed : {false, true}) {
    in_flight_file f;
    CHECK(f.bytes().empty());
    in_flight_area area{77, 88, 3, 256, 0};
    const auto made = f.make(area, is_packed);
    REQUIRE(made);
    CHECK(area.offset == 0);
    CHECK(area.size == 3 * in_flight::region_bytes(256, is_packed));
    CHECK(f.bytes().size() == area.size);
    for (const std::byte b : f.bytes()) REQUIRE(b == std::byte{0});
    CHECK(ftruncate(made->get(), 64) != 0); // nobody cuts it short under us
    f.bytes()[5] = std::byte{9};
    in_flight_file next;
    REQUIRE(next.take(*made, area));
    CHECK(next.bytes()[5] == std::byte{9});
    CHECK(next.area().queues == 3);
    next.close();
    CHECK(next.bytes().empty());
    CHECK(next.area().queues == 0);
  }
}

TEST_CASE("an area that cannot be is refused, and what there was stays") {
  in_flight_file f;
  in_flight_area good{0, 0, 1, 16, 0};
  REQUIRE(f.make(good, false));
  in_flight_area none{0, 0, 0, 16, 0}, empty{0, 0, 1, 0, 0};
  CHECK(f.make(none, false).error() == error::in_flight_invalid);
  CHECK(f.make(empty, false).error() == error::in_flight_invalid);
  const file some(memfd_create("some", MFD_CLOEXEC));
  REQUIRE(ftruncate(some.get(), 4096) == 0);
  const auto with = [&](in_flight_area area) { return f.take(some, area).error(); };
  CHECK(with({0, 0, 1, 16, 0}) == error::in_flight_invalid);
  CHECK(with({4096, 8, 1, 16, 0}) == error::in_flight_invalid);
  CHECK(with({UINT64_MAX, 64, 1, 16, 0}) == error::in_flight_invalid);
  CHECK(with({64, UINT64_MAX - 63, 1, 16, 0}) == error::in_flight_invalid);
  CHECK(with({4096, 64, 1, 16, 0}) == error::file_too_small);
  CHECK(f.bytes().size() == good.size);
  CHECK(with({4032, 64, 1, 16, 0}) == error::none);
  CHECK(f.bytes().size() == 4032);
}

} // namespace
