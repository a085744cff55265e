#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/headers.sh [COMPILER...]
#
# Each header compiles alone and twice in a row, without exceptions and RTTI, with warnings as
# errors; the freestanding ones with -ffreestanding too; two translation units that include all of
# them link. Without arguments for g++.

. "$(dirname "$0")/../../.ci/common.sh"
. "$root/tests/checks/headers_list.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

flags="-std=c++20 -fno-exceptions -fno-rtti -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion
  -Wshadow -Werror -x c++"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# compile_alone COMPILER FLAG HEADER...
compile_alone() {
  local compiler=$1 flag=$2
  shift 2
  # shellcheck disable=SC2016
  printf '%s\n' "$@" | COMPILER=$compiler FLAGS="$flags $flag" INCLUDE=$root/include \
    xargs -P "$(nproc)" -I HEADER bash -c '
      printf "#include <ballast/%s>\n" "$1" "$1" |
        "$COMPILER" $FLAGS -I "$INCLUDE" -fsyntax-only - || echo "$1 does not compile"' - HEADER
}

# Two translation units with everything: a function that is not inline is defined twice.
link_twice() {
  local compiler=$1 part object
  for part in 1 2; do
    {
      all_headers | sed 's|.*|#include <ballast/&>|'
      [ $part = 1 ] && echo 'int main() {}'
    } > "$scratch/part_$part.cpp"
    object=$scratch/part_$part.o
    # shellcheck disable=SC2086
    "$compiler" $flags -I "$root/include" -c "$scratch/part_$part.cpp" -o "$object" || return
  done
  "$compiler" "$scratch/part_1.o" "$scratch/part_2.o" -o "$scratch/both"
}

# shellcheck disable=SC2046
for compiler in "${@:-g++}"; do
  check "headers alone and twice ($compiler)" \
    compile_alone "$compiler" "" $(all_headers)
  check "headers with -ffreestanding ($compiler)" \
    compile_alone "$compiler" -ffreestanding $(core_headers)
  check "two translation units link ($compiler)" link_twice "$compiler"
done
[ "$failed" -eq 0 ]
