#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: bench/peers/build.sh DIRECTORY
#
# Builds a program for each ring that ./bench/run peers compares, in DIRECTORY: ours, Linux's and
# ringtest's from the source package of Linux (GPL-2.0: the programs are for measuring, not for
# passing on), and the two bounds. Prints their names, in the order of the table.

. "$(dirname "$0")/../../.ci/common.sh"
case ${1-} in
  --help) print_help "$0"; exit ;;
  '') print_help "$0"; exit 2 ;;
esac
programs=$1
peers=$root/bench/peers
tree=$root/.build/linux-rings
flags=(-O2 -I "$root/include")

# Unpacks what is needed of Linux, once; what it compiles is for the tests.
"$root/tests/interop/linux_rings.sh" "$tree" >&2 || exit
tree=$tree/linux
linux=(-std=gnu11 -O2 -w -pthread -U_FORTIFY_SOURCE -fno-strict-overflow -fno-strict-aliasing
  -fno-common -DCONFIG_ARCH_DMA_ADDR_T_64BIT=1 -DCONFIG_PHYS_ADDR_T_64BIT=1
  -include "$tree/include/linux/kconfig.h" -include "$root/tests/interop/linux_stubs/missing.h"
  -include "$peers/linux_page.h" -I "$tree/tools/virtio" -I "$tree/tools/include"
  -idirafter "$root/tests/interop/linux_stubs" -I "$peers")

# kernel NAME SOURCE [OPTION...]: an object of Linux's code
kernel() {
  local name=$1 source=$2
  shift 2
  (cd "$tree/tools/virtio" && gcc "${linux[@]}" "$@" -c "$source" -o "$programs/$name.o")
}

# object NAME SOURCE [OPTION...]: an object of ours
object() {
  local name=$1 source=$2
  shift 2
  g++ -std=c++20 "${flags[@]}" "$@" -c "$peers/$source" -o "$programs/$name.o"
}

# peer NAME OBJECT...: a program
peer() {
  local name=$1
  shift
  g++ -pthread "$programs/main.o" "${@/#/$programs/}" -o "$programs/$name" || return
  echo "$name"
}

ours() { # NAME FORMAT [OPTION...]
  local name=$1 format=$2
  shift 2
  object "$name" ballast.cpp -DPEER_FORMAT="$format" "$@" && peer "$name" "$name.o"
}

ringtest() { # NAME FILE
  gcc -std=gnu11 -O2 -w -I "$peers" -DPEER_RING="\"$tree/tools/virtio/ringtest/$2\"" \
    -c "$peers/ringtest.c" -o "$programs/$1.o" && peer "$1" "$1.o"
}

set -e
mkdir -p "$programs"
programs=$(cd "$programs" && pwd)
object main main.cpp
ours ballast_split split_format
ours ballast_split_in_order split_format -DPEER_IN_ORDER
ours ballast_packed packed_format
ours ballast_packed_in_order packed_format -DPEER_IN_ORDER
kernel virtio_ring "$tree/drivers/virtio/virtio_ring.c"
kernel vringh "$tree/drivers/vhost/vringh.c"
kernel linux_driver_split "$peers/linux_driver.c"
kernel linux_driver_packed "$peers/linux_driver.c" -DPEER_PACKED
kernel linux_device "$peers/linux_device.c"
object ballast_device ballast_device.cpp -DPEER_FORMAT=packed_format
peer linux_split linux_driver_split.o linux_device.o virtio_ring.o vringh.o
peer linux_packed linux_driver_packed.o ballast_device.o virtio_ring.o
ringtest ringtest_ring ring.c
ringtest ringtest_0_9 virtio_ring_0_9.c
ringtest ringtest_inorder virtio_ring_inorder.c
ringtest ringtest_poll virtio_ring_poll.c
object two_queues two_queues.cpp
peer two_queues two_queues.o
object atomic_queue atomic_queue.cpp
peer atomic_queue atomic_queue.o
