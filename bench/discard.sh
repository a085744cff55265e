#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: bench/discard.sh [--quick] [--json]
#
# How fast memory comes back to the host: GiB/s of one madvise for each PFN (a), of the balloon
# device with host::discarder behind it (b), and of one madvise over everything, the limit (c); in
# ascending, descending and random order of the PFNs. Then one buffer at a time, as Linux's driver
# sends them, and transparent huge pages, each against the limit for such pages. Every figure is
# checked: the memory was all there before, and none is afterwards. Exits with 1 where (b) takes more
# than 1.3 times the limit in ascending or descending order.
#
#   --quick   little memory and few passes: shows that everything works, bounds nothing
#   --json    prints a JSON array instead of the table

. "$(dirname "$0")/../.ci/common.sh"

for argument; do
  case $argument in
    --quick | --json) ;;
    --help) print_help "$0"; exit ;;
    *) print_help "$0" >&2; exit 2 ;;
  esac
done

need_packages g++ linux-libc-dev
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
g++ -std=c++20 -O2 -I "$root/include" "$root/bench/discard.cpp" -o "$scratch/discard" || exit 1
say "running discard on Linux $(uname -r), load $(cut -d ' ' -f 1-3 /proc/loadavg) ..."
"$scratch/discard" "$@"
