#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/style.sh
#
# The format of every source, and clang-tidy over every header and example. Version 19 of both:
# clang-format 14 garbles requires-expressions.

. "$(dirname "$0")/../../.ci/common.sh"
. "$root/tests/checks/headers_list.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }
cd "$root" || exit

format() {
  find include tests bench examples \( -name '*.hpp' -o -name '*.cpp' \) -print0 |
    xargs -0 -P "$(nproc)" -n 8 clang-format-19 --dry-run --Werror 2>&1 |
    sed -n 's/:.* error: .*/ is not formatted/p' | sort -u
}

# tidy HEADER_FILTER SOURCE
tidy() {
  clang-tidy-19 --quiet --header-filter="$1" "$2" -- -std=c++20 -Iinclude 2> /dev/null | grep ' error: '
  [ "${PIPESTATUS[0]}" -eq 0 ]
}

tidy_headers() {
  mkdir -p .build/tidy
  all_headers | sed 's|.*|#include <ballast/&>|' > .build/tidy/headers.cpp
  tidy include/ballast/ .build/tidy/headers.cpp
}

check "clang-format" format
check "clang-tidy: headers" tidy_headers
for source in examples/*.cpp; do
  check "clang-tidy: $source" tidy /examples/ "$source"
done
[ "$failed" -eq 0 ]
