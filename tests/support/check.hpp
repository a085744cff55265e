// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <doctest/doctest.h>

/// Runs one scenario twice: in a constant expression and at run time.
///
///     constexpr auto adds = [](auto check) { check(1 + 1 == 2); };
///     BOTH("adds", adds)
///
/// A failing check in a constant expression is a compile error whose notes name the line. Builds
/// that are about run time only, as those with sanitizers are, leave out the constant expression
/// (BALLAST_TEST_RUN_TIME_ONLY): each compiler has evaluated it in another suite.
namespace ballast_test {

inline void a_check_failed_in_a_constant_expression() {}

struct constant_check {
  constexpr void operator()(bool ok) const {
    if (!ok) a_check_failed_in_a_constant_expression(); // not constexpr, on purpose
  }
};

struct run_time_check {
  // The builtins: std::source_location needs a newer clang than 14.
  void operator()(bool ok, const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    INFO(file, ":", line);
    CHECK(ok);
  }
};

} // namespace ballast_test

#ifdef BALLAST_TEST_RUN_TIME_ONLY
#define BOTH(title, scenario)                                                                      \
  TEST_CASE(title) { scenario(ballast_test::run_time_check{}); }
#else
#define BOTH(title, scenario)                                                                      \
  static_assert((scenario(ballast_test::constant_check{}), true));                                 \
  TEST_CASE(title) { scenario(ballast_test::run_time_check{}); }
#endif
