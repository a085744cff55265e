#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/interop/linux_mmio.sh DIRECTORY
#
# Linux's balloon driver, virtio core, virtio-mmio transport and rings (drivers/virtio/
# virtio_balloon.c, virtio.c, virtio_mmio.c, virtio_ring.c) in one process with our balloon device
# behind our mmio registers, version 2 and 1: builds linux_mmio.cpp and linux_mmio_chains.cpp and runs
# them, a line for each check.
#
# DIRECTORY is one that linux_rings.sh was run for: the sources are in DIRECTORY/linux. They are
# GPL-2.0: what is built here is for testing, not for passing on. What they want of the rest of a
# kernel is ours: linux_kernel.c, linux_stubs/kernel_parts.h. Exits with 77, which means "skipped",
# if there are no sources.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }
[ -n "${1-}" ] || { print_help "$0" >&2; exit 2; }

here=$root/tests/interop
directory=$(cd "$1" && pwd) || exit
tree=$directory/linux parts=$directory/mmio
if [ ! -r "$tree/drivers/virtio/virtio_mmio.c" ]; then
  echo "Linux's virtio_mmio.c is not there: run linux_rings.sh first"
  exit 77
fi
rm -rf "$parts"
mkdir -p "$parts/linux" "$parts/uapi/linux"

# The real headers of virtio instead of those of tools/virtio, which know of no transport.
for header in linux/virtio.h linux/virtio_config.h \
  uapi/linux/virtio_ids.h uapi/linux/virtio_mmio.h uapi/linux/virtio_balloon.h; do
  ln -s "$tree/include/$header" "$parts/$header"
done
echo '#include <uapi/linux/virtio_balloon.h>' > "$parts/linux/virtio_balloon.h"
# What they declare is in kernel_parts.h.
for header in acpi balloon_compaction completion delay device highmem idr interrupt io mm \
  mod_devicetable mutex of oom page_reporting platform_device pm swap virtio_anchor wait workqueue; do
  echo '#pragma once' > "$parts/linux/$header.h"
done

# Without the first two options an address is cut to 32 bits.
compile() {
  gcc -std=gnu11 -O2 -g -w -pthread -U_FORTIFY_SOURCE \
    -Werror=implicit-function-declaration -Werror=incompatible-pointer-types \
    -fno-strict-overflow -fno-strict-aliasing -fno-common \
    -DCONFIG_ARCH_DMA_ADDR_T_64BIT=1 -DCONFIG_PHYS_ADDR_T_64BIT=1 -DCONFIG_VM_EVENT_COUNTERS=1 \
    -DCONFIG_HUGETLB_PAGE=1 -DCONFIG_BALLOON_COMPACTION=1 -DCONFIG_PM_SLEEP=1 \
    -include "$tree/include/linux/kconfig.h" -include "$here/linux_stubs/missing.h" \
    -include "$here/linux_stubs/kernel_parts.h" -I "$here" \
    -I "$parts" -I "$tree/tools/virtio" -I "$tree/tools/include" -idirafter "$here/linux_stubs" \
    -c "$1" -o "$parts/$(basename "$1" .c).o"
}

build_all() {
  cd "$tree/tools/virtio" || return # its generated/autoconf.h is found from here
  local source
  for source in "$tree"/drivers/virtio/virtio{,_mmio,_balloon,_ring}.c "$here/linux_kernel.c"; do
    compile "$source" || return
  done
  local program
  for program in linux_mmio linux_mmio_chains; do
    g++ -std=c++20 -O2 -g -Wall -Wextra -Werror -I "$root/include" -I "$root/tests" \
      "$here/$program.cpp" "$parts"/*.o -o "$parts/$program" || return
  done
}

say "building Linux's balloon ..."
if ! build_all >&2; then
  fail "Linux's mmio" "does not build, see above"
  exit 1
fi
status=0
timeout 120 "$parts/linux_mmio" || status=1
timeout 120 "$parts/linux_mmio_chains" || status=1
exit $status
