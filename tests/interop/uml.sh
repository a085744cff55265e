#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/interop/uml.sh [SCENARIO...]
#
# Our balloon device for a real guest: Debian's User-Mode Linux 6.1 and its virtio_balloon, over
# vhost-user. Prints a line for each check, and the sum to standard error. As root, guest and device
# run as nobody.
#
#   whole           statistics, the balloon up and down, the driver unloaded and loaded again
#   packed          the same with packed queues
#   in-band         the same with notifications as messages
#   poison          a feature that Linux drops, and with it the enabling of queues
#   poison-in-band  the same with notifications as messages
#   early-target    a target from before the driver came; no statistics, no event index
#   numbering       hinting and reporting without statistics: the later queues move up
#   deflate-on-oom  a balloon that gives way to a program
#
# Exits with 77, which means "skipped", if the packages user-mode-linux and busybox-static are missing.

. "$(dirname "$0")/../../.ci/common.sh"
. "$root/examples/real_guest/uml_guest.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

memory=96 # MiB; vhost_user_server.cpp knows it too
unable() { say "$1"; echo "$1"; exit 77; }

reason=$(find_uml) || unable "$reason"
find_uml

work=$(mktemp -d)
export TMPDIR=$work
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

compile() {
  g++ -std=c++20 -O1 -g -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror \
    -I "$root/include" \
    "$root/tests/interop/vhost_user_server.cpp" -o "$work/vhost_user_server"
}

end_guest() { [ -z "$guest" ] || kill_uml "$guest"; }

# scenario NAME: one guest and one server. The server's checks are the output.
scenario() (
  directory=$work/$1
  mkdir "$directory" && mkfifo "$directory/commands" && : > "$directory/console" || exit
  [ ${#as_user[@]} -eq 0 ] || chown -R "$user:$user" "$directory"
  exec 3<> "$directory/commands"
  guest=
  trap end_guest EXIT
  trap 'exit 1' INT TERM

  timeout -s KILL 45 "${as_user[@]}" "$work/vhost_user_server" "$1" "$directory/socket" \
    "$directory/console" "$directory/commands" 3<&- &
  server=$!
  for ((i = 0; i < 100; ++i)); do
    [ ! -S "$directory/socket" ] || break
    sleep 0.05
  done
  "${as_user[@]}" env LD_PRELOAD="$work/ptrace.so" TMPDIR="$ram" \
    "$uml_kernel" "mem=${memory}M" initrd="$work/initramfs" \
    virtio_uml.device="$directory/socket:5" con=null con0=fd:0,fd:1 panic=-1 uml_dir="$directory" \
    <&3 > "$directory/console" 2>&1 3<&- &
  guest=$!
  exec 4> >(trap '' INT TERM && read -r _ || end_guest) # should this shell be killed
  wait $server
  status=$?

  for ((i = 0; i < 100; ++i)); do
    is_uml_running "$guest" || break
    sleep 0.05
  done
  if is_uml_running "$guest"; then
    echo "FAIL Linux 6.1, $1: the guest powers off"
    status=1
  else
    echo "ok   Linux 6.1, $1: the guest powers off"
  fi
  [ $status -eq 0 ] || tail -n 40 "$directory/console" >&2
  exit $status
)

say "building the server and the guest's files ..."
compile >&2 || { fail "User-Mode Linux" "the server does not build, see above"; exit 1; }
make_uml_files "$work" || { fail "User-Mode Linux" "no files for the guest"; exit 1; }

mkdir "$work/ram"
ram=$(uml_memory_directory "$memory" "$work/ram")

as_user=() user=65534
if [ "$(id -u)" -eq 0 ] && setpriv --reuid=$user --regid=$user --clear-groups true 2> /dev/null; then
  as_user=(setpriv --reuid=$user --regid=$user --clear-groups)
  chown -R "$user:$user" "$work"
fi

[ $# -gt 0 ] || set -- whole packed in-band poison poison-in-band early-target numbering deflate-on-oom
for name; do
  count_script "User-Mode Linux, $name" scenario "$name"
done
print_sum >&2
