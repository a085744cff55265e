#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Unpacks the virtio headers of Linux 6.12 for tests/balloon/uapi.cpp.
set -eu

usage() {
  cat <<'END'
usage: tests/uapi_6.12.sh DIRECTORY [ARCHIVE]

Writes the virtio headers of Linux 6.12's user-space interface into DIRECTORY/linux (a build
directory, never the source tree), from ARCHIVE or /usr/src/linux-source-6.12.tar.xz (Debian package
linux-source-6.12). What they include besides comes from the system's linux-libc-dev.

The test is then compiled a second time, against them:

  c++ ... -isystem DIRECTORY -DBALLAST_TEST_UAPI_TAGS=16 tests/balloon/uapi.cpp

BALLAST_TEST_UAPI_TAGS makes it fail to compile if other headers are found first.
Exits with 77, which Meson takes for "skipped", if there is no archive.
END
}

case ${1-} in
-h | --help) usage; exit 0 ;;
'') usage >&2; exit 2 ;;
esac
directory=$1
archive=${2-/usr/src/linux-source-6.12.tar.xz}
headers='virtio_balloon virtio_config virtio_ids virtio_ring virtio_types'

if [ ! -r "$archive" ]; then
  echo "no $archive: install linux-source-6.12" >&2
  exit 77
fi

mkdir -p "$directory/linux"
is_complete=yes
for header in $headers; do
  [ -n "$(find "$directory/linux/$header.h" -newer "$archive" 2>/dev/null)" ] || is_complete=no
done
[ $is_complete = no ] || exit 0

unpacked=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$unpacked"' EXIT
trap 'exit 1' HUP INT TERM
members=
for header in $headers; do
  members="$members linux-source-6.12/include/uapi/linux/$header.h"
done
# Each member once: tar then stops reading the archive after the last of them.
# shellcheck disable=SC2086
tar -C "$unpacked" --occurrence=1 -xf "$archive" $members

# What the kernel's scripts/headers_install.sh does to a header before user space sees it.
# (It also drops what is for __KERNEL__, which is not defined anyway.)
for header in $headers; do
  sed -E \
    -e 's/([[:space:](])(__user|__force|__iomem)[[:space:]]/\1/g' \
    -e 's/__attribute_const__([[:space:]]|$)/\1/g' \
    -e '/^#include <linux\/compiler(|_types).h>/d' \
    -e 's/(^|[^a-zA-Z0-9])__packed([^a-zA-Z0-9_]|$)/\1__attribute__((packed))\2/g' \
    -e 's/(^|[[:space:](])(inline|asm|volatile)([[:space:](]|$)/\1__\2__\3/g' \
    -e 's@#(ifndef|define|endif[[:space:]]*/[*])[[:space:]]*_UAPI@#\1 @' \
    "$unpacked/linux-source-6.12/include/uapi/linux/$header.h" >"$unpacked/$header.h"
  mv "$unpacked/$header.h" "$directory/linux/$header.h"
done
