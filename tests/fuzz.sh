#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/fuzz.sh [SECONDS] | replay | merge
#
# The targets of tests/fuzz. Prints a line for each.
#
#   SECONDS  each runs that long (20) under libFuzzer, as many at a time as there are processors;
#            cut short where all would take more than 5 minutes. A file that ends a target is kept in
#            .build/fuzz/found and named; where it showed a fault it becomes a file of the corpus.
#   replay   each with the files of its corpus, tests/fuzz/corpus/TARGET; no libFuzzer, g++
#   merge    adds to each corpus the few of the inputs that the runs so far kept that reach more code

. "$(dirname "$0")/../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

tree=$root/.build/fuzz
mkdir -p "$tree/found"
options=(-std=c++20 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS
  -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror -I "$root/include")

targets() {
  local source
  for source in "$root"/tests/fuzz/*.cpp; do
    case $source in */replay.cpp) ;; *) basename "$source" .cpp ;; esac
  done
}

# in_parallel FUNCTION ARGUMENT...: FUNCTION TARGET ARGUMENT... for each target; its exit status is
# 0 where all of theirs are.
in_parallel() {
  local running=0 status=0 target
  for target in $(targets); do
    [ $((running += 1)) -le "$(nproc)" ] || wait -n || status=1
    "$1" "$target" "${@:2}" &
  done
  while [ -n "$(jobs -pr)" ]; do wait -n || status=1; done
  return $status
}

build_replay() {
  # Not optimised: that would take g++ longer than the inputs take.
  g++ "${options[@]}" -fsanitize=address,undefined "$root/tests/fuzz/$1.cpp" \
    "$root/tests/fuzz/replay.cpp" -o "$tree/$1.replay"
}

replay() {
  local log=$tree/$1.replay.log
  if ! build_replay "$1" >&2; then
    fail "replay of $1" "does not build, see above"
  elif timeout 120 "$tree/$1.replay" "$root/tests/fuzz/corpus/$1" > "$log" 2>&1; then
    ok "replay of $1: $(tail -n 1 "$log")"
  else
    cat "$log" >&2
    fail "replay of $1" "$(grep -a "^$root/tests/fuzz/corpus/" "$log" | tail -n 1 | xargs -r basename)"
  fi
  [ "$failed" -eq 0 ]
}

build_fuzz() {
  clang++-19 "${options[@]}" -O1 -fsanitize=fuzzer,address,undefined "$root/tests/fuzz/$1.cpp" \
    -o "$tree/$1" || fail "fuzz $1" "does not build, see above"
  [ "$failed" -eq 0 ]
}

burn() {
  local target=$1 seconds=$2 log=$tree/$1.log
  mkdir -p "$tree/corpus/$target"
  if timeout $((seconds + 60)) "$tree/$target" -max_total_time="$seconds" -max_len=2048 -timeout=10 \
    -print_final_stats=1 -artifact_prefix="$tree/found/$target-" \
    "$tree/corpus/$target" "$root/tests/fuzz/corpus/$target" > "$log" 2>&1; then
    ok "fuzz $target: $(sum "$log") in $seconds s"
  else
    tail -n 60 "$log" >&2
    local found
    found=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    fail "fuzz $target" "${found:-no file was written, see $log}"
  fi
  [ "$failed" -eq 0 ]
}

# What a log says: executions, and how many of the places that could be reached were.
sum() {
  sed -n 's/.*number_of_executed_units: *\([0-9]*\)/\1 executions/p
    s/.*PC tables (\([0-9]*\) PCs).*/of \1 edges/p' "$1" | sort -n | paste -sd ' ' |
    sed "s/\(of .* edges\) \(.*\)/\2, $(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$1" | tail -n 1) \1/"
}

merge() {
  local corpus=$root/tests/fuzz/corpus/$1
  mkdir -p "$corpus" "$tree/corpus/$1"
  # By edges, not by how often, and the fewest files that reach them.
  "$tree/$1" -set_cover_merge=1 -use_counters=0 -max_len=2048 "$corpus" "$tree/corpus/$1" \
    > "$tree/$1.merge.log" 2>&1 || return
  say "$1: $(find "$corpus" -type f | wc -l) files"
}

case ${1-20} in
  replay) in_parallel replay ;;
  merge) in_parallel build_fuzz >&2 && in_parallel merge ;;
  *[!0-9]* | '') print_help "$0" >&2; exit 2 ;;
  *)
    count=$(targets | wc -l)
    rounds=$(((count + $(nproc) - 1) / $(nproc)))
    seconds=${1-20}
    [ $((seconds * rounds)) -le 300 ] || seconds=$((300 / rounds))
    say "building $count targets ..."
    in_parallel build_fuzz && in_parallel burn "$seconds"
    ;;
esac
