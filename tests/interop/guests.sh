#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/interop/guests.sh [LINE...]
#
# Our balloon device on virtio-pci for unmodified Linux guests in QEMU (TCG): the kernels of
# tests/interop/guest_images.sh, which downloads them. Prints a line for each check, and the sum to
# standard error. As root, guests and device run as nobody.
#
# Each guest is a line of the table below, by default all of them; LINE takes single ones by their
# number. Every two values of different columns meet, but for packed and legacy, which exclude each
# other.
#
#   kernel       6.1, 6.12: Debian's cloud kernels; 6.12-full: the other one, with page_poison=1
#                where the scenario poison wants it
#   interrupts   msi-x; intx: the guest does without MSI-X; no-msi-x: the device does
#   transport    modern; transitional: the driver may choose; legacy: virtio_pci.force_legacy=1
#
# Exits with 77, which means "skipped", if a package or a kernel is missing.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

lines=(
  # kernel, format, interrupts, transport, scenarios
  "6.12       packed  msi-x     modern        probe statistics inflate compaction hinting reporting cycles many-pages oom"
  "6.12       split   intx      legacy        probe inflate numbering reporting quick-targets oom"
  "6.1        split   msi-x     legacy        probe statistics inflate compaction hinting cycles oom"
  "6.1        packed  no-msi-x  modern        probe inflate numbering reporting quick-targets oom"
  "6.12-full  packed  intx      modern        probe statistics inflate poison hinting compaction"
  "6.12-full  split   msi-x     legacy        probe inflate quick-targets cycles"
  "6.12       split   msi-x     transitional  probe quick-targets many-pages"
  "6.12       packed  msi-x     modern        resume"
  "6.1        split   intx      legacy        resume"
)

unable() { say "$1"; echo "$1"; exit 77; }
command -v qemu-system-x86_64 > /dev/null || unable "the package qemu-system-x86 is not installed"
[ -d /usr/share/seabios ] || unable "the package seabios is not installed"
reason=$("$root/tests/interop/guest_images.sh")
status=$?
[ $status -ne 77 ] || unable "$reason"
[ $status -eq 0 ] || { fail "Linux guests" "no kernels, see above"; exit 1; }

work=$(mktemp -d)
export TMPDIR=$work
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

compile() {
  local name objects=()
  for name in pci_proxy supervisor guest guest_scenario guest_resume guest_test; do
    g++ -std=c++20 -O1 -g -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror \
      -I "$root/include" -c "$root/tests/interop/$name.cpp" -o "$work/$name.o" || return
    objects+=("$work/$name.o")
  done
  g++ "${objects[@]}" -o "$work/guest_test"
}

# guest NUMBER KERNEL FORMAT INTERRUPTS TRANSPORT SCENARIO...: one guest and one device. The device's
# checks are the output.
guest() (
  directory=$work/$1 kernel=$2 status=0
  name="Linux ${kernel%-full}, $3, $4, $5"
  [ "$kernel" = "${kernel%-full}" ] || name="Linux ${kernel%-full} (not cloud), $3, $4, $5"
  mkdir "$directory" || exit
  [ ${#as_user[@]} -eq 0 ] || chown "$user:$user" "$directory"
  timeout -s KILL 200 "${as_user[@]}" "$work/guest_test" "$name" "$work/kernels/$kernel" "$directory" \
    "${@:3}" || status=$?
  [ $status -eq 0 ] || tail -n 40 "$directory/console" >&2
  exit $status
)

say "building the device and its tests ..."
compile >&2 || { fail "Linux guests" "the tests do not build, see above"; exit 1; }
# nobody may not be allowed to look into the build directory.
mkdir "$work/kernels" && cp -r --reflink=auto "$root/.build/guests"/{6.1,6.12,6.12-full} "$work/kernels" ||
  { fail "Linux guests" "no place for the kernels"; exit 1; }

as_user=() user=65534
if [ "$(id -u)" -eq 0 ] && setpriv --reuid=$user --regid=$user --clear-groups true 2> /dev/null; then
  as_user=(setpriv --reuid=$user --regid=$user --clear-groups)
  chown -R "$user:$user" "$work"
fi

for ((number = 1; number <= ${#lines[@]}; ++number)); do
  [ $# -eq 0 ] || [[ " $* " == *" $number "* ]] || continue
  read -r -a line <<< "${lines[number - 1]}"
  say "guest $number of ${#lines[@]}: ${line[*]:0:4} ..."
  count_script "Linux guest $number" guest "$number" "${line[@]}"
done
print_sum >&2
