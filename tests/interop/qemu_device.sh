#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/interop/qemu_device.sh [NAME...]
#
# Our balloon driver on a device that is not ours: QEMU's virtio-balloon, which
# examples/qtest_driver drives over QEMU's qtest socket. Prints a line for each check, and the sum to
# standard error. As root, it runs as nobody.
#
#   mmio mmio-packed mmio-legacy pci pci-packed pci-no-event-idx pci-intx pci-legacy
#       with guest memory that both processes have mapped
#   mmio-socket mmio-packed-socket mmio-legacy-socket pci-packed-socket pci-legacy-socket
#       where each access to guest memory is a request to QEMU (the others, too, with -socket)
#   options
#       the example's own: what it says with --json, and which options it refuses
#
# Exits with 77, which means "skipped", if the packages qemu-system-x86 and nlohmann-json3-dev are
# missing.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

unable() { say "$1"; echo "$1"; exit 77; }
command -v qemu-system-x86_64 > /dev/null || unable "the package qemu-system-x86 is not installed"
[ -f /usr/include/nlohmann/json.hpp ] || unable "the package nlohmann-json3-dev is not installed"

work=$(mktemp -d)
export TMPDIR=$work
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

compile() {
  g++ -std=c++20 -O1 -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror \
    -I "$root/include" "$root/examples/qtest_driver.cpp" -o "$work/qtest_driver"
}

driver() { timeout -s KILL 60 "${as_user[@]}" "$work/qtest_driver" "$@" < /dev/null; }

# What is seen with --json is one object, in which as many steps passed as it says.
is_whole() {
  local steps
  driver --json > "$work/json" || return
  head -n 1 "$work/json" | grep -q '^{$' && tail -n 1 "$work/json" | grep -q '^}$' || return
  steps=$(grep -c '"passed": true,$' "$work/json")
  [ "$steps" -gt 20 ] && grep -q "^  \"passed\": $steps,\$" "$work/json" &&
    grep -q '^  "failed": 0,$' "$work/json" && grep -q '^  "transport": "mmio"$' "$work/json"
}

# refuses OPTION...: one line to standard error, and exit status 2.
refuses() {
  local said status
  said=$(driver "$@" 2>&1 > /dev/null)
  status=$?
  [ $status -eq 2 ] && [ "$(grep -c . <<< "$said")" -eq 1 ] || echo "exit status $status: $said"
}

options() {
  check "qtest_driver --json" is_whole
  check "qtest_driver refuses what is no transport" refuses --transport isa
  check "qtest_driver refuses packed queues of a legacy device" \
    refuses --transport pci-legacy --packed
  check "qtest_driver refuses INTx without PCI" refuses --intx
  check "qtest_driver refuses an argument" refuses pci
  check "qtest_driver says that there is no such QEMU" no_qemu
}
no_qemu() {
  local said status
  said=$(driver --qemu /nowhere/qemu 2>&1)
  status=$?
  [ $status -eq 3 ] && grep -q '^qtest_driver: /nowhere/qemu: No such file' <<< "$said" ||
    echo "exit status $status: $said"
}

# run NAME: the lines of one run.
run() {
  local arguments=()
  [ "$1" != options ] || { options; return; }
  case $1 in
    mmio-legacy*) arguments=(--transport mmio-legacy) ;;
    mmio*) arguments=(--transport mmio) ;;
    pci-legacy*) arguments=(--transport pci-legacy) ;;
    pci*) arguments=(--transport pci) ;;
    *) echo "FAIL QEMU's device, $1: no such run"; return 1 ;;
  esac
  case $1 in *-packed*) arguments+=(--packed) ;; esac
  case $1 in *-no-event-idx*) arguments+=(--no-event-idx) ;; esac
  case $1 in *-intx*) arguments+=(--intx) ;; esac
  case $1 in *-socket) arguments+=(--memory socket) ;; esac
  driver "${arguments[@]}"
}

# The runs sleep most of their time: five at once.
start() {
  local name=$1
  (
    run "$name" > "$work/$name.log" 2> "$work/$name.errors"
    echo $? > "$work/$name.status"
  ) &
}
finish() {
  cat "$work/$1.log"
  cat "$work/$1.errors" >&2
  return "$(cat "$work/$1.status")"
}

say "building the driver ..."
compile >&2 || { fail "QEMU's device" "the driver does not build, see above"; exit 1; }
as_user=() user=65534
if [ "$(id -u)" -eq 0 ] && setpriv --reuid=$user --regid=$user --clear-groups true 2> /dev/null; then
  as_user=(setpriv --reuid=$user --regid=$user --clear-groups)
  chown -R "$user:$user" "$work"
fi

if [ $# -eq 0 ]; then
  set -- mmio mmio-packed mmio-legacy pci pci-packed pci-no-event-idx pci-intx pci-legacy \
    mmio-socket mmio-packed-socket mmio-legacy-socket pci-packed-socket pci-legacy-socket options
fi
say "running QEMU ..."
for name; do
  while [ "$(jobs -r | wc -l)" -ge 5 ]; do wait -n; done
  start "$name"
done
wait
for name; do
  count_script "QEMU's device, $name" finish "$name"
done
print_sum >&2
