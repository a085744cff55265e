#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/examples.sh DIRECTORY
#
# Runs every example, as built in DIRECTORY, and the main job through examples/run.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }
built=$1
scratch=$(mktemp -d)
huge_pages=/sys/kernel/mm/hugepages/hugepages-2048kB
huge_pages_before=
end() {
  [ -z "$huge_pages_before" ] || echo "$huge_pages_before" > $huge_pages/nr_hugepages
  rm -rf "$scratch"
}
trap end EXIT

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

# shows OPTION... -- MEMBER=VALUE... -- LINE...: a small loopback's JSON object has these members
# (a.b: b in a) with these values, each a regular expression; MEMBER~VALUE: within 2 %. Its text has
# these lines: regular expressions too, where a blank stands for any number of them.
shows() {
  local arguments=() members=() line
  for (( ; $# > 0; )); do [ "$1" = -- ] && break; arguments+=("$1"); shift; done
  shift
  for (( ; $# > 0; )); do [ "$1" = -- ] && break; members+=("$1"); shift; done
  shift
  status 0 "$built/loopback" --json --memory 64M ${arguments[@]+"${arguments[@]}"}
  cat > "$scratch/shows.cmake" << 'END'
file(READ out text)
foreach(wanted ${members})
  string(REGEX MATCH "^([a-z_.]+)([=~])(.*)$" parts "${wanted}")
  set(value "${CMAKE_MATCH_3}")
  set(how "${CMAKE_MATCH_2}")
  string(REPLACE "." ";" path "${CMAKE_MATCH_1}")
  string(JSON found GET "${text}" ${path})
  if(how STREQUAL "=")
    if(NOT found MATCHES "^${value}$")
      message(FATAL_ERROR "${wanted}: it is ${found}")
    endif()
  else()
    math(EXPR off "100 * (${found} - ${value})")
    math(EXPR most "2 * ${value}")
    if(off GREATER most OR off LESS -${most})
      message(FATAL_ERROR "${wanted}: it is ${found}")
    endif()
  endif()
endforeach()
END
  (cd "$scratch" && cmake -D "members=$(IFS=';'; echo "${members[*]}")" -P shows.cmake)
  status 0 "$built/loopback" --memory 64M ${arguments[@]+"${arguments[@]}"}
  for line; do
    [ "$line" = -- ] || grep -qE "^ *${line// / +}$" "$scratch/out" || echo "no line: $line"
  done
}

# So many free huge pages of 2 MiB, if they are there or this is root; `end` gives them back.
has_huge_pages() {
  [ -r $huge_pages/free_hugepages ] || return
  local missing=$(($1 - $(cat $huge_pages/free_hugepages) + $(cat $huge_pages/resv_hugepages)))
  [ $missing -gt 0 ] || return 0
  [ -w $huge_pages/nr_hugepages ] || return
  huge_pages_before=$(cat $huge_pages/nr_hugepages)
  echo $((huge_pages_before + missing)) 2> /dev/null > $huge_pages/nr_hugepages
  [ $(($(cat $huge_pages/free_hugepages) - $(cat $huge_pages/resv_hugepages))) -ge "$1" ]
}

# Bad options and impossible sizes: one line on standard error, nothing on standard output, status 2.
usage_errors() {
  local arguments
  for arguments in --no-such-option "--memory 3K" "--memory x" "--memory 64M --target 65M" \
    "--memory 64M --target 64M" "--memory 1000000G" "--memory" stray "--target -1" \
    "--queue-size x" "--queue-size 0" "--queue-size 7" "--packed --queue-size 1025" \
    "--packed --queue-size 7x" "--hint --queue-size 1" "--packed --report --queue-size 31" \
    "--memory 64M --hint --target 63M" "--memory 64M --report --target 63M" \
    "--hugetlb --memory 63M" "--hugetlb --target 4K" "--hugetlb --memory 1000000G"; do
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
rate="pages_per_second=[1-9][0-9]*"
free=16777216 half=33554432 # bytes
inflated=(resident_counter=Rss resident_before_bytes~67108864 "resident_after_bytes~$half"
  actual_pages=8192 "$rate")
check "loopback" shows -- "${inflated[@]}" queue_format=split queue_size=128 in_order=OFF -- \
  "queues split 128 entries" "all 8192 pages were empty .*"
check "loopback --packed --queue-size 7" shows --packed --queue-size 7 -- "${inflated[@]}" \
  queue_format=packed queue_size=7 in_order=OFF -- "queues packed 7 entries"
check "loopback --packed --in-order" shows --packed --in-order -- "${inflated[@]}" \
  queue_format=packed queue_size=128 in_order=ON -- "queues packed 128 entries, in order"
check "loopback --in-order" shows --in-order -- "${inflated[@]}" \
  queue_format=split queue_size=128 in_order=ON -- "queues split 128 entries, in order"
check "loopback --hint" shows --hint -- "${inflated[@]}" hint.free_bytes=$free \
  hint.hinted_bytes=$free hint.dirty_before_bytes=67108864 hint.dirty_after_bytes=50331648 -- \
  "hinted 16.0 MiB $free bytes" "to send before 64.0 MiB 67108864 bytes" \
  "to send after 48.0 MiB 50331648 bytes"
check "loopback --report" shows --report -- "${inflated[@]}" report.reported_bytes=$free \
  report.given_back_bytes=$free report.left_alone_bytes=0 report.resident_before_bytes~$half \
  report.resident_after_bytes~$free -- "reported 16.0 MiB $free bytes" \
  "given back 16.0 MiB $free bytes" "left alone 0 B 0 bytes"
check "loopback --report --poison" shows --report --poison -- "${inflated[@]}" \
  report.reported_bytes=$free report.given_back_bytes=0 report.left_alone_bytes=$free \
  report.resident_before_bytes~$half report.resident_after_bytes~$half \
  poison.value=2863311530 poison.poisoned_bytes=$half -- "given back 0 B 0 bytes" \
  "left alone 16.0 MiB $free bytes" "free pages hold 0xaaaaaaaa" \
  "poisoned by the driver 32.0 MiB $half bytes" "all 8192 pages were poisoned .*"
check "loopback with all options together" shows --packed --queue-size 100 --in-order --hint \
  --report --poison -- "${inflated[@]}" queue_size=100 hint.hinted_bytes=$free \
  report.left_alone_bytes=$free -- "queues packed 100 entries, in order"
name="loopback --hugetlb"
if has_huge_pages 32; then
  check "$name" shows --hugetlb --report -- resident_counter=Private_Hugetlb actual_pages=8192 \
    resident_before_bytes=67108864 resident_after_bytes=$half report.given_back_bytes=$free \
    report.resident_after_bytes=$free "$rate" -- \
    "resident memory of the guest \\(Private_Hugetlb\\)" "before 64.0 MiB 67108864 bytes" \
    "after 32.0 MiB $half bytes"
else
  skip "$name" "needs root or 32 free huge pages of 2 MiB"
fi
# What the hints are for: far less is sent, nothing is lost, and the guest has its memory back soon,
# unless DONE comes late.
migration_saves() {
  "$built/migration" --json | python3 -c '
import json, sys
runs = {run["name"]: run for run in json.load(sys.stdin)["runs"]}
none, held, late = runs["none"], runs["held"], runs["DONE delayed"]
assert none["bytes_hinted"] == 0, none
for run in list(runs.values())[1:]:
    assert run["bytes_sent"] < none["bytes_sent"] and run["bytes_hinted"] > 0, run
    assert run["rounds"] <= none["rounds"] and run["pages_lost"] == 0, run
assert runs["released early"]["blocks_reclaimed_early"] > 0, runs
assert late["held_milliseconds"] >= 200 > held["held_milliseconds"], late
'
}
check "migration: hints save most of what is sent, a late DONE keeps memory" migration_saves
migration_draws() {
  "$built/migration" --memory 64M --svg "$scratch/migration.svg" > /dev/null &&
    grep -q '<svg' "$scratch/migration.svg" || echo "no picture"
}
if is_installed gnuplot-nox; then check "migration --svg" migration_draws; else
  skip "migration --svg" "the package gnuplot-nox is not installed"
fi
check "bad options and sizes get one line and exit status 2" usage_errors
check "examples/run --no-such-option exits with 2" status 2 "$root/examples/run" --no-such-option
check "examples/run --help" help
check "examples/run without the packages, not as root, prints the line to run" packages_missing
[ "$failed" -eq 0 ]
