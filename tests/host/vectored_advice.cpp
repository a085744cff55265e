// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/host/vectored_advice.hpp>

#include "support/host_memory.hpp"

#include <doctest/doctest.h>

#include <array>
#include <sys/wait.h>

namespace {

using namespace ballast::host;
using namespace ballast_test;

const bool emulated = is_emulated();

std::array<iovec, 2> first_and_third(const guarded_mapping& m) {
  return {iovec{m.data(), page}, iovec{m.data() + 2 * page, page}};
}

// What the kernel does is asked of the kernel, apart from the class.
bool does_kernel_take(int advice, int flags) {
  const guarded_mapping m(3 * page, flags);
  m.fill();
  const int self = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  const auto ranges = first_and_third(m);
  const long done = syscall(SYS_process_madvise, self, ranges.data(), 2, advice, 0U);
  close(self);
  return done == static_cast<long>(2 * page) && m.is_zero(0, page);
}

TEST_CASE("the probe says what the kernel does, whichever way the process is named" *
          doctest::skip(emulated)) {
  for (const bool has_self : {true, false}) {
    vectored_advice vectors;
    CHECK(vectors.probe(MADV_DONTNEED, has_self) == does_kernel_take(MADV_DONTNEED, MAP_PRIVATE));
    CHECK(vectors.probe(MADV_REMOVE, has_self) == does_kernel_take(MADV_REMOVE, MAP_SHARED));
    CHECK(!vectors.probe(MADV_NORMAL, has_self)); // is taken, and gives nothing back
  }
}

TEST_CASE("several ranges are advised on in one call" * doctest::skip(emulated)) {
  vectored_advice vectors;
  if (!vectors.probe(MADV_DONTNEED)) {
    MESSAGE("this kernel takes no such advice of several ranges");
    return;
  }
  const guarded_mapping m(4 * page, MAP_PRIVATE);
  m.fill();
  CHECK(vectors.advise(first_and_third(m), MADV_DONTNEED) == static_cast<std::int64_t>(2 * page));
  CHECK(m.is_zero(0, page));
  CHECK(m.is(0x5a, page, page));
  CHECK(m.is_zero(2 * page, page));
  CHECK(m.resident_bytes() == 2 * page); // the zero page that was read does not count
  // It stops at the first range that fails.
  m.fill();
  REQUIRE(munmap(m.data() + 2 * page, page) == 0);
  CHECK(vectors.advise(first_and_third(m), MADV_DONTNEED) == static_cast<std::int64_t>(page));
  CHECK(vectors.advise(std::array{first_and_third(m)[1]}, MADV_DONTNEED) == -1);
}

TEST_CASE("a fork never takes memory of its parent" * doctest::skip(emulated)) {
  for (const bool has_self : {true, false}) {
    vectored_advice vectors;
    if (!vectors.probe(MADV_DONTNEED, has_self)) continue;
    const guarded_mapping m(3 * page, MAP_PRIVATE);
    m.fill();
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const bool is_refused = vectors.advise(first_and_third(m), MADV_DONTNEED) == -1;
      // Its own memory went, or nothing was done at all.
      _exit(is_refused == m.is(0x5a, 0, page) ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(m.is(0x5a, 0, 3 * page));
  }
}

} // namespace
