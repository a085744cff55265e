#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: bench/guests.sh [--quick] [--json]
#
# End to end: how many pages a second, and GiB/s, a Linux 6.12 guest in QEMU (TCG) gives to its
# balloon and takes back, on our device behind x-pci-proxy-dev and on QEMU's own virtio-balloon-pci.
# The guests are alike but for that, run side by side and take turns; each time is from the target
# that was set to the driver's word that it is reached, and each time the memory did come back.
#
#   --quick   few pages and samples: shows that everything works
#   --json    prints a JSON array instead of the table

. "$(dirname "$0")/../.ci/common.sh"

for argument; do
  case $argument in
    --quick | --json) ;;
    --help) print_help "$0"; exit ;;
    *) print_help "$0" >&2; exit 2 ;;
  esac
done

need_packages g++ gcc kmod "${guest_packages[@]}"
"$root/tests/interop/guest_images.sh" 6.12 > /dev/null || exit 1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/ours" "$scratch/qemus"
say "building guests ..."
g++ -std=c++20 -O2 -I "$root/include" "$root/bench/guests.cpp" "$root/tests/interop/guest.cpp" \
  "$root/tests/interop/pci_proxy.cpp" -o "$scratch/guests" || exit 1
say "running guests on Linux $(uname -r), load $(cut -d ' ' -f 1-3 /proc/loadavg) ..."
"$scratch/guests" "$root/.build/guests/6.12" "$scratch" "$@"
