#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/relacy.sh [SCHEDULES]
#
# The queue engines under relacy, a checker of the C++ memory model: 1 000 000 random schedules of each
# scenario of tests/relacy, and every schedule of the small ones within the bounds that their lines
# state. Prints a line for each; a failed one's schedule goes to standard error.

. "$(dirname "$0")/../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

schedules=${1:-1000000}
tree=$root/.build/relacy
mkdir -p "$tree"

# each PROGRAM LIST ARGUMENT...: the program's scenarios, as many at a time as there are processors.
each() {
  local program=$1 list=$2
  shift 2
  # shellcheck disable=SC2086 # the empty list is no argument
  "$program" list $list | xargs -d '\n' -n 1 -P "$(nproc)" "$program" "$@"
}

status=0
for source in "$root"/tests/relacy/*.cpp; do
  program=$tree/$(basename "$source" .cpp)
  say "building ${program#"$root/"} ..."
  "${CXX:-g++}" -std=c++20 -O2 -Wall -Wextra -I "$root/include" -I "$root/tests" "$source" -o "$program" || exit
  "$program" traps || status=1
  each "$program" "" random "$schedules" || status=1
  each "$program" search search || status=1
done
exit $status
