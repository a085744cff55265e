// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/version.hpp>

#include <doctest/doctest.h>

#include <string>

TEST_CASE("the version for #if is the one of the build file") {
  CHECK(std::to_string(BALLAST_VERSION_MAJOR) + "." + std::to_string(BALLAST_VERSION_MINOR) + "." +
            std::to_string(BALLAST_VERSION_PATCH) ==
        BALLAST_MESON_VERSION);
}
