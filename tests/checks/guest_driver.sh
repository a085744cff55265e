#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/guest_driver.sh [COMPILER...]
#
# Links examples/guest_driver.cpp without a C library, a start-up file or a compiler's run-time
# library: nothing may be undefined. What comes out is a program of its own, which runs here and
# exits with 0 if its balloon went where it should; one that is told a wrong target exits with 1.
# Without arguments for g++.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

flags="-std=c++20 -ffreestanding -nostdlib -static -fno-exceptions -fno-rtti -Wall -Wextra -Wpedantic
  -Wconversion -Wsign-conversion -Wshadow -Werror"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# freestanding COMPILER LEVEL
freestanding() {
  # shellcheck disable=SC2086
  "$1" $flags "$2" -I "$root/include" "$root/examples/guest_driver.cpp" -o "$scratch/kernel" || return
  nm --undefined-only "$scratch/kernel"
  timeout 60 "$scratch/kernel"
}

# The exit status says something: with a device that takes one page less it is 1.
fails_where_it_should() {
  local status
  mkdir -p "$scratch/examples"
  cp -r "$root/examples/guest_driver" "$root/examples/guest_driver.cpp" "$scratch/examples"
  sed -i 's/raise(device_.set_target(pages))/raise(device_.set_target(pages \& ~1u))/' \
    "$scratch/examples/guest_driver/machine.hpp"
  sed -i 's/700u, 100u/701u, 100u/' "$scratch/examples/guest_driver.cpp"
  # shellcheck disable=SC2086
  "$1" $flags -O2 -I "$root/include" "$scratch/examples/guest_driver.cpp" -o "$scratch/other" || return
  timeout 60 "$scratch/other"
  status=$?
  [ $status -eq 1 ] || echo "exit status $status"
}

case $(uname -m) in
  x86_64) ;;
  aarch64) flags+=" -mno-outline-atomics" ;; # else they are functions of the run-time library
  *)
    skip "guest_driver freestanding" "no start-up code for $(uname -m)"
    exit
    ;;
esac
for compiler in "${@:-g++}"; do
  for level in -O0 -Os -O2 -O3; do
    check "guest_driver freestanding, -nostdlib $level ($compiler)" freestanding "$compiler" "$level"
  done
  check "guest_driver fails where it should ($compiler)" fails_where_it_should "$compiler"
done
[ "$failed" -eq 0 ]
