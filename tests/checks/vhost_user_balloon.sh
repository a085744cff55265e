#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/vhost_user_balloon.sh DIRECTORY
#
# The daemon examples/vhost_user_balloon, as built in DIRECTORY, as its users meet it: options,
# commands, control socket, and guests that come, die and go; these are processes with our driver.
# And Linux itself, through examples/run real-guest, if its packages are installed.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }
built=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ ! -x "$built/vhost_user_balloon" ]; then
  skip "vhost_user_balloon" "it is not built: the package nlohmann-json3-dev is not installed"
elif g++ -std=c++20 -O1 -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror \
  -I "$root/include" "$root/tests/checks/vhost_user_front_end.cpp" -o "$scratch/front_end" >&2; then
  count_script "vhost_user_balloon" timeout 300 python3 "$root/tests/checks/vhost_user_balloon.py" \
    "$built/vhost_user_balloon" "$scratch/front_end" "$scratch"
else
  fail "vhost_user_balloon" "its front end does not build, see above"
fi

# The demo looks at the guest's memory itself; what people see is looked at here.
# demo LINE -- OPTION...: with these options that line comes, too.
demo() {
  local line option=$1
  shift 2
  timeout 300 "$root/examples/run" real-guest --demo "$@" > "$scratch/demo" 2> "$scratch/errors" < /dev/null ||
    { echo "exit status $?"; tail -n 20 "$scratch/demo" "$scratch/errors"; }
  for line in "$option" "the driver runs, with .*STATS_VQ" "^statistics: balloon 0 B, .*total [0-9.]+ MiB" \
    "^pressure: +[a-z]+, rule [A-Z0-9]+ \([a-z_]+\), because of" "^> target 64M" \
    "^balloon: 64.0 MiB, as asked for" "^ +total-memory +[0-9]+ bytes" \
    "64.0 MiB of 64.0 MiB; [0-9.]+ MiB given back" "^balloon: 0 B, as asked for" "rose again"; do
    grep -qE -- "$line" "$scratch/demo" || echo "no line: $line"
  done
}
if is_installed user-mode-linux && is_installed busybox-static && is_installed nlohmann-json3-dev; then
  check "examples/run real-guest --demo" demo "rose again" --
  # Linux drops the last of these, as it does not fill its free pages.
  check "examples/run real-guest --demo --hint --report --poison" \
    demo "^hinting: [0-9.]+ MiB are free" -- --hint --report --poison
else
  skip "examples/run real-guest --demo" \
    "user-mode-linux, busybox-static or nlohmann-json3-dev is not installed"
fi
bad_options() {
  local bad
  for bad in "--memory" "--memory 1K" "--memory 63M" "--memory 2G" "--memory xM"; do
    # shellcheck disable=SC2086 # several words
    "$root/examples/run" real-guest $bad > "$scratch/out" 2> "$scratch/err" < /dev/null
    [ $? -eq 2 ] && [ ! -s "$scratch/out" ] && [ "$(wc -l < "$scratch/err")" -eq 1 ] || echo "$bad"
  done
}
check "examples/run real-guest: bad options get one line and exit status 2" bad_options
help() {
  "$root/examples/run" real-guest --help | grep -q 'vhost_user_balloon --socket' || echo "not the daemon's"
}
check "examples/run real-guest --help" help
[ "$failed" -eq 0 ]
