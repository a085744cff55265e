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

# Standard output is one JSON object and nothing else; it has its members, and says that the resident
# set fell by the target within 2 % or 2 MiB.
json() {
  status 0 "$root/examples/run" --json --memory 1G --target 256M
  cat > "$scratch/json.cmake" << 'END'
file(READ out text)
foreach(member memory_bytes target_bytes resident_before_bytes resident_after_bytes actual_pages
        pages_per_second)
  string(JSON ${member} GET "${text}" ${member})
  if(NOT ${member} MATCHES "^[0-9]+$")
    message(FATAL_ERROR "${member} is no number: ${${member}}")
  endif()
endforeach()
foreach(member free-memory total-memory minor-faults)
  string(JSON value GET "${text}" statistics ${member})
endforeach()
string(JSON level GET "${text}" verdict level)
string(JSON rule GET "${text}" verdict rule)
string(JSON because GET "${text}" verdict because)
string(JSON rates GET "${text}" verdict rates minor-faults)
if(NOT level MATCHES "^(none|low|medium|high|critical)$")
  message(FATAL_ERROR "no level: ${level}")
endif()
math(EXPR fell "${resident_before_bytes} - ${resident_after_bytes} - 268435456")
if(fell LESS -5368709 OR fell GREATER 5368709)
  message(FATAL_ERROR "the resident set fell by 256 MiB and ${fell} bytes")
endif()
if(NOT memory_bytes EQUAL 1073741824 OR NOT target_bytes EQUAL 268435456 OR
   NOT actual_pages EQUAL 65536)
  message(FATAL_ERROR "not what was asked for: ${text}")
endif()
END
  (cd "$scratch" && cmake -P json.cmake)
}

# Bad options and impossible sizes: one line on standard error, nothing on standard output, status 2.
usage_errors() {
  local arguments
  for arguments in --no-such-option "--memory 3K" "--memory x" "--memory 64M --target 65M" \
    "--memory 64M --target 64M" "--memory 1000000G" "--memory" stray "--target -1"; do
    # shellcheck disable=SC2086 # several words
    status 2 "$built/loopback" $arguments
    [ ! -s "$scratch/out" ] && [ "$(wc -l < "$scratch/err")" -eq 1 ] ||
      echo "$arguments: not one line of standard error alone"
  done
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
check "examples/run --json --memory 1G --target 256M" json
check "bad options and sizes get one line and exit status 2" usage_errors
check "examples/run --no-such-option exits with 2" status 2 "$root/examples/run" --no-such-option
check "examples/run --help" help
check "examples/run without the packages, not as root, prints the line to run" packages_missing
[ "$failed" -eq 0 ]
