#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Builds Linux's own ring code for the tests of this directory.
set -eu

usage() {
  cat <<'END'
usage: tests/interop/linux_rings.sh DIRECTORY [ARCHIVE]

Unpacks the few parts of Linux that are needed into DIRECTORY/linux (a build directory, never the
source tree), from ARCHIVE or the newest /usr/src/linux-source-6.12*.tar.xz (Debian package
linux-source-6.12), and builds DIRECTORY/liblinux_rings.a: drivers/virtio/virtio_ring.c (the driver)
and drivers/vhost/vringh.c (the device) behind tests/interop/linux_ring.h. They are GPL-2.0: a
program linked with them is for testing, not for passing on. What linux_mmio.sh needs is unpacked too.

Exits with 77, which means "skipped", if there is no archive.
END
}

case ${1-} in
-h | --help) usage; exit 0 ;;
'') usage >&2; exit 2 ;;
esac
mkdir -p "$1"
directory=$(cd "$1" && pwd)
archive=${2-$(find /usr/src -maxdepth 1 -name 'linux-source-6.12*.tar.xz' | sort -V | tail -n 1)}
here=$(cd "$(dirname "$0")" && pwd)
tree=$directory/linux

if [ ! -r "$archive" ]; then
  echo "no linux-source-6.12*.tar.xz in /usr/src: install linux-source-6.12" >&2
  exit 77
fi

# Unpacking takes most of the time: only when the archive is another than the last time.
id=$(stat -L -c '%n %s %Y with mmio' "$archive")
if [ "$(cat "$tree/unpacked" 2>/dev/null)" != "$id" ]; then
  rm -rf "$tree"
  mkdir -p "$tree"
  top=$(basename "$archive" .tar.xz)
  tar -C "$tree" --strip-components=1 -xf "$archive" \
    "$top/drivers/virtio/virtio_ring.c" "$top/drivers/vhost/vringh.c" \
    "$top/drivers/virtio/virtio.c" "$top/drivers/virtio/virtio_mmio.c" \
    "$top/drivers/virtio/virtio_balloon.c" \
    "$top/tools/virtio" "$top/tools/include" \
    "$top/include/linux" "$top/include/uapi/linux" "$top/include/asm-generic"
  echo "$id" >"$tree/unpacked"
fi

# Without the two options an address is cut to 32 bits.
compile() {
  gcc -std=gnu11 -O2 -g -w -pthread -U_FORTIFY_SOURCE \
    -fno-strict-overflow -fno-strict-aliasing -fno-common \
    -DCONFIG_ARCH_DMA_ADDR_T_64BIT=1 -DCONFIG_PHYS_ADDR_T_64BIT=1 \
    -include "$tree/include/linux/kconfig.h" -include "$here/linux_stubs/missing.h" \
    -I "$tree/tools/virtio" -I "$tree/tools/include" -idirafter "$here/linux_stubs" \
    -c "$1" -o "$directory/$(basename "$1" .c).o"
}
cd "$tree/tools/virtio" # its generated/autoconf.h is found from here
compile "$tree/drivers/virtio/virtio_ring.c"
compile "$tree/drivers/vhost/vringh.c"
compile "$here/linux_ring.c"
rm -f "$directory/liblinux_rings.a"
ar rcs "$directory/liblinux_rings.a" \
  "$directory/virtio_ring.o" "$directory/vringh.o" "$directory/linux_ring.o"
