// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/ballast.hpp>

// Before anything else is included: what the umbrella must not cost its users (libstdc++'s guards).
#if defined(_GLIBCXX_STRING) || defined(_GLIBCXX_STRING_VIEW) || defined(_GLIBCXX_OPTIONAL) ||     \
    defined(_GLIBCXX_ATOMIC) || defined(_GLIBCXX_ALGORITHM) || defined(_GLIBCXX_VECTOR) ||         \
    defined(_GLIBCXX_RANGES) || defined(_GLIBCXX_IOSTREAM) || defined(_GLIBCXX_FUNCTIONAL) ||      \
    defined(_GLIBCXX_MEMORY)
#error "the umbrella drags in a heavy standard header"
#endif

#include <doctest/doctest.h>

TEST_CASE("the umbrella brings the version and the layers") {
  CHECK(BALLAST_VERSION_MAJOR + BALLAST_VERSION_MINOR + BALLAST_VERSION_PATCH > 0);
  CHECK(sizeof(ballast::le32) == 4);
}
