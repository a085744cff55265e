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
guest_packages=(qemu-system-x86 seabios gcc kmod busybox-static cpio xz-utils nlohmann-json3-dev)
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

# count_doctest NAME COMMAND...: counts the cases of a doctest program, which runs in parts, as many at
# a time as there are CPUs.
count_doctest() {
  local name=$1 logs total part=0 parts=16 bad left_out status=0 one
  shift
  say "running $name ..."
  total=$("$@" --count < /dev/null 2> /dev/null | tr -dc '0-9')
  [ "${total:-0}" -ge $parts ] || parts=1
  logs=$(mktemp -d)
  for ((part = 0; part < parts; ++part)); do
    printf '%d %d %d\n' $part $((total * part / parts + 1)) $((total * (part + 1) / parts))
  done | xargs -P "$(nproc)" -L 1 bash -c '
    logs=$1 part=${*: -3:1} first=${*: -2:1} last=${*: -1:1}
    timeout 300 "${@:2:$#-4}" --first="$first" --last="$last" < /dev/null > "$logs/$part" 2>&1
    echo $? > "$logs/$part.status"' count_doctest "$logs" "$@"
  bad=0 left_out=0
  for ((part = 0; part < parts; ++part)); do
    one=$(sed -n 's/^\[doctest\] test cases: *//p' "$logs/$part" | tr -dc '0-9|\n')
    if [ "$(cat "$logs/$part.status")" -eq 0 ] && [ -n "$one" ]; then
      left_out=$(cut -d '|' -f 4 <<< "$one") # of all, in each part
      continue
    fi
    tail -n 1000 "$logs/$part"
    one=$(cut -d '|' -f 3 <<< "$one")
    # A crash or a sanitizer at exit fails no case.
    bad=$((bad + (${one:-0} > 0 ? ${one:-0} : 1)))
    status=1
  done
  if [ -z "$total" ] || [ $status -ne 0 ]; then
    printf 'FAIL %s: %d of %d cases\n' "$name" "$bad" "$total"
    failed=$((failed + (bad > 0 ? bad : 1)))
  else
    printf 'ok   %s: %d cases\n' "$name" "$total"
  fi
  [ "${total:-0}" -lt "$bad" ] || passed=$((passed + total - bad))
  [ "${left_out:-0}" -eq 0 ] || skip "$name" "$left_out cases are marked with doctest::skip"
  rm -rf "$logs"
}

print_sum() {
  local tail=
  [ $skipped -eq 0 ] || tail=", $skipped skipped"
  printf '%d passed, %d failed%s\n' $passed $failed "$tail"
  [ $failed -eq 0 ]
}
