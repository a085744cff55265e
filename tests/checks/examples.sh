#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/examples.sh DIRECTORY
#
# Runs every example, as built in DIRECTORY, and the main job through examples/run.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }
built=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# status WANTED COMMAND...
status() {
  local wanted=$1 got
  shift
  timeout 300 "$@" > "$scratch/out" 2> "$scratch/err" < /dev/null
  got=$?
  [ $got -eq "$wanted" ] || { echo "exit status $got"; tail -n 20 "$scratch/err"; }
}

# Standard output is one JSON object and nothing else.
json() {
  status 0 "$root/examples/run" --json
  cat > "$scratch/json.cmake" << 'END'
file(READ out text)
string(JSON type TYPE "${text}")
if(NOT type STREQUAL "OBJECT")
  message(FATAL_ERROR "not one JSON object: ${text}")
endif()
END
  (cd "$scratch" && cmake -P json.cmake)
}

help() {
  status 0 "$root/examples/run" --help
  grep -q . "$scratch/out" || echo "prints nothing"
}

# A user who is not root, on a machine without the packages.
packages_missing() {
  mkdir "$scratch/bin"
  printf '#!/bin/sh\nexit 1\n' > "$scratch/bin/dpkg-query"
  printf '#!/bin/sh\necho 1000\n' > "$scratch/bin/id"
  chmod +x "$scratch/bin/"*
  PATH=$scratch/bin:$PATH status 1 "$root/examples/run"
  [ "$(grep -c 'apt-get install .*g++' "$scratch/err")" -eq 1 ] || echo "does not print the line to run"
}

for source in "$root"/examples/*.cpp; do
  name=$(basename "$source" .cpp)
  check "example $name" status 0 "$built/$name"
done
check "examples/run" status 0 "$root/examples/run"
check "examples/run --json prints one JSON object" json
check "examples/run --no-such-option exits with 2" status 2 "$root/examples/run" --no-such-option
check "examples/run --help" help
check "examples/run without the packages, not as root, prints the line to run" packages_missing
[ "$failed" -eq 0 ]
