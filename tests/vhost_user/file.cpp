// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/file.hpp>

#include "support/host_memory.hpp"

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <fstream>
#include <string>
#include <utility>

namespace {

using ballast::error;
using namespace ballast::vhost_user;

bool is_open(int descriptor) { return fcntl(descriptor, F_GETFD) >= 0; }

TEST_CASE("a file closes with its owner, and once") {
  const int raw = memfd_create("a", MFD_CLOEXEC);
  {
    file first(raw);
    CHECK(first.is_open());
    file second(std::move(first));
    CHECK(!first.is_open()); // NOLINT(bugprone-use-after-move)
    CHECK(second.get() == raw);
    file third;
    CHECK(third.get() == -1);
    third = std::move(second);
    CHECK(is_open(raw));
    file& same = third;
    third = std::move(same);
    CHECK(third.get() == raw);
  }
  CHECK(!is_open(raw));
}

TEST_CASE("another file takes the place of one that closes") {
  const int first = memfd_create("a", MFD_CLOEXEC);
  const int second = memfd_create("b", MFD_CLOEXEC);
  file f(first);
  f = file(second);
  CHECK(!is_open(first));
  CHECK(f.get() == second);
  f.close();
  CHECK(!is_open(second));
  CHECK(!f.is_open());
}

TEST_CASE("two mappings of a file are the same bytes") {
  const file f(memfd_create("a", MFD_CLOEXEC));
  REQUIRE(ftruncate(f.get(), 8192) == 0);
  auto one = file_mapping::of(f, 8192);
  const auto two = file_mapping::of(f, 100);
  REQUIRE(one);
  REQUIRE(two);
  CHECK(one->bytes().size() == 8192);
  CHECK(two->bytes().size() == 100);
  one->bytes()[99] = std::byte{7};
  CHECK(two->bytes()[99] == std::byte{7});
  file_mapping moved(std::move(*one));
  CHECK(one->bytes().empty());
  CHECK(moved.bytes()[99] == std::byte{7});
}

TEST_CASE("a file that is too small is not mapped, nor one that cannot be") {
  const file f(memfd_create("a", MFD_CLOEXEC));
  REQUIRE(ftruncate(f.get(), 4096) == 0);
  CHECK(file_mapping::of(f, 4097).error() == error::file_too_small);
  CHECK(file_mapping::of(f, 1ull << 62).error() == error::file_too_small);
  CHECK(file_mapping::of(file(), 1).error() == error::system_call_failed);
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  const file out(ends[0]), in(ends[1]);
  CHECK(file_mapping::of(out, 4096).error() == error::system_call_failed);
}

TEST_CASE("a part of a huge page is unmapped with the rest of it" *
          doctest::skip(ballast_test::is_emulated())) {
  const auto mappings = [] {
    std::ifstream all("/proc/self/maps");
    int huge = 0;
    for (std::string line; std::getline(all, line);)
      huge += line.find("memfd:huge_pages") != std::string::npos;
    return huge;
  };
  const file f(memfd_create("huge_pages", MFD_CLOEXEC | MFD_HUGETLB));
  if (!f.is_open() || ftruncate(f.get(), 2 << 20) != 0) {
    MESSAGE("this kernel has no huge pages of 2 MiB: not tried");
    return;
  }
  {
    const auto part = file_mapping::of(f, 4096); // not touched: none need be free
    REQUIRE(part);
    CHECK(part->bytes().size() == 4096);
    CHECK(mappings() == 1);
  }
  CHECK(mappings() == 0);
}

} // namespace
