# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# Sourced by every script: packages, build trees, and the counting of checks.

set -uo pipefail
export LC_ALL=C
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What `meson setup` needs, and what single suites need on top.
basic_packages=(g++ meson ninja-build pkg-config cmake doctest-dev libbenchmark-dev linux-libc-dev)
clang_packages=(clang-14 clang-19)
style_packages=(clang-19 clang-format-19 clang-tidy-19)
kernel_packages=(linux-source-6.12)
relacy_packages=(relacy-dev)
cross_packages=(g++-s390x-linux-gnu g++-aarch64-linux-gnu qemu-user-static)
uml_packages=(user-mode-linux busybox-static)
# The guests' kernels are only unpacked, see tests/interop/guest_images.sh.
guest_packages=(qemu-system-x86 seabios gcc busybox-static cpio xz-utils nlohmann-json3-dev)
peer_packages=(libatomic-queue-dev gnuplot-nox python3)
fuzz_packages=(clang-19 libclang-rt-19-dev)

say() { printf '%s\n' "$*" >&2; }

# The comment at the top of a script is its help.
print_help() { sed -n '/^# Usage/,/^[^#]/{s/^# \{0,1\}//p}' "$1"; }

is_installed() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2> /dev/null)" = installed ]
}

# need_packages NAME...: installs what is missing when root; otherwise prints the line to run and exits 1.
need_packages() {
  if ! command -v dpkg-query > /dev/null; then
    say "no dpkg here: assuming that these are installed: $*"
    return
  fi
  local name missing=()
  for name; do
    is_installed "$name" || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    say "packages are missing; as root, run:"
    say "apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}"
    exit 1
  fi
  say "installing ${missing[*]} ..."
  export DEBIAN_FRONTEND=noninteractive
  apt-get --quiet update < /dev/null >&2 || say "apt-get update failed; trying with the lists there are"
  apt-get --quiet --yes -o DPkg::Lock::Timeout=120 install --no-install-recommends \
    "${missing[@]}" < /dev/null >&2 || { say "installing failed"; exit 1; }
}

# configure NAME [OPTION...]: a Meson tree in .build/NAME, for the compiler in CXX (g++). Set up anew
# when the options are not those of the last time.
configure() {
  local tree=$root/.build/$1 options
  shift
  options="${CXX:=g++} $*"
  [ -f "$tree/build.ninja" ] && [ "$(cat "$tree/options" 2> /dev/null)" = "$options" ] && return
  say "configuring ${tree#"$root/"} ..."
  rm -rf "$tree"
  CXX=$CXX meson setup --werror -Db_colorout=auto "$@" "$tree" "$root" < /dev/null >&2 || return
  printf '%s\n' "$options" > "$tree/options"
}

# build NAME [TARGET...]
build() {
  local tree=$root/.build/$1 quiet=--quiet
  [ -t 2 ] && quiet=
  say "building ${tree#"$root/"} ..."
  shift
  ninja -C "$tree" -k 0 ${quiet:+"$quiet"} "$@" < /dev/null >&2
}

# The tree of the examples and benches.
configure_release() { CXX=g++ configure release -Doptimization=2 -Ddebug=false; }

# --- checks: one line each, and a sum at the end

passed=0 failed=0 skipped=0

ok() {
  passed=$((passed + 1))
  printf 'ok   %s\n' "$1"
}
fail() { # NAME REASON
  failed=$((failed + 1))
  printf 'FAIL %s: %s\n' "$1" "${2//$'\n'/$'\n     '}"
}
skip() { # NAME REASON
  skipped=$((skipped + 1))
  printf 'skip %s: %s\n' "$1" "$2"
}

# check NAME COMMAND...: passes when the command prints nothing and exits with 0; what it prints is
# the reason why not.
check() {
  local name=$1 output status
  shift
  output=$("$@" 2>&1)
  status=$?
  if [ $status -eq 0 ] && [ -z "$output" ]; then
    ok "$name"
  else
    fail "$name" "${output:-exit status $status}"
  fi
}

# A file that gets the lines of every script that is counted; none where empty.
checks_log=

# count_script NAME COMMAND...: counts the ok/FAIL/skip lines of a script. One that prints none of
# them is itself one check: 0 is ok, 77 is skip, and its last line is the reason.
count_script() {
  local name=$1 log status failed_before=$failed lines
  shift
  log=$(mktemp)
  "$@" < /dev/null | tee "$log"
  status=${PIPESTATUS[0]}
  [ -z "$checks_log" ] || cat "$log" >> "$checks_log"
  lines=$(grep -c -E '^(ok|FAIL|skip) ' "$log")
  passed=$((passed + $(grep -c '^ok ' "$log")))
  failed=$((failed + $(grep -c '^FAIL ' "$log")))
  skipped=$((skipped + $(grep -c '^skip ' "$log")))
  if [ "$status" -eq 77 ] && [ "$lines" -eq 0 ]; then
    skip "$name" "$(tail -n 1 "$log")"
  elif [ "$status" -ne 0 ] && [ "$failed" -eq "$failed_before" ]; then
    fail "$name" "exit status $status"
  elif [ "$lines" -eq 0 ]; then
    ok "$name"
  fi
  rm -f "$log"
}

# count_doctest NAME COMMAND...: counts the cases of a doctest program.
count_doctest() {
  local name=$1 log status cases
  shift
  log=$(mktemp)
  say "running $name ..."
  timeout 300 "$@" < /dev/null > "$log" 2>&1
  status=$?
  cases=$(sed -n 's/^\[doctest\] test cases: *//p' "$log" | tr -dc '0-9|\n')
  if [ -z "$cases" ]; then
    tail -n 50 "$log"
    fail "$name" "ended without a result, exit status $status"
  else
    local total good bad left_out
    IFS='|' read -r total good bad left_out <<< "$cases"
    passed=$((passed + good)) failed=$((failed + bad))
    if [ "$status" -eq 0 ]; then
      printf 'ok   %s: %d cases\n' "$name" "$good"
    else
      cat "$log"
      printf 'FAIL %s: %d of %d cases\n' "$name" "$bad" "$total"
      # A sanitizer or a crash at exit fails no case.
      [ "$bad" -gt 0 ] || failed=$((failed + 1))
    fi
    [ "${left_out:-0}" -eq 0 ] || skip "$name" "$left_out cases are marked with doctest::skip"
  fi
  rm -f "$log"
}

print_sum() {
  local tail=
  [ $skipped -eq 0 ] || tail=", $skipped skipped"
  printf '%d passed, %d failed%s\n' $passed $failed "$tail"
  [ $failed -eq 0 ]
}
