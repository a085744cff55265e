#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/interop/guest_images.sh [KERNEL...]
#
# Linux guests for QEMU from Debian's packages, none of which is installed: for each KERNEL, by
# default all of them, .build/guests/KERNEL with
#
#   vmlinuz     as it is in the newest package of its kind that apt knows
#   initramfs   busybox, the virtio modules, guest_hog.c, and an init that runs the lines which
#               come through the second serial port
#   package     the package's name and version
#
#   6.1         linux-image-6.1...-cloud-amd64-unsigned, 26 MB to download
#   6.12        linux-image-6.12...-cloud-amd64-unsigned, 34 MB
#   6.12-full   linux-image-6.12...-amd64-unsigned, 107 MB: with page poisoning
#
# What is there already is made again only if apt knows a newer package or the recipe changed. Needs
# no root. Exits with 77, which means "skipped", and the reason, if something is missing.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

unable() { say "$1"; echo "$1"; exit 77; }

directory=$root/.build/guests
[ $# -gt 0 ] || set -- 6.1 6.12 6.12-full

for tool in apt-get dpkg-deb depmod cpio xz gcc; do
  command -v "$tool" > /dev/null || PATH=$PATH:/usr/sbin:/sbin
  command -v "$tool" > /dev/null || unable "$tool is missing (packages apt, dpkg, kmod, cpio, xz-utils, gcc)"
done
[ -x /bin/busybox ] && ! ldd /bin/busybox > /dev/null 2>&1 || unable "the package busybox-static is not installed"

# newest KERNEL: the package's name. Names carry the ABI's number, which changes with each update.
newest() {
  local version=${1%-full} kind=-cloud ending found
  [ "$version" = "$1" ] || kind=
  for ending in -unsigned ''; do
    found=$(apt-cache search --names-only "^linux-image-${version//./\\.}\.[0-9].*$kind-amd64$ending\$" |
      awk '{print $1}' | { [ "$kind" ] && cat || grep -v -E -- '-(cloud|rt)-'; } | sort -V | tail -n 1)
    [ -z "$found" ] || { echo "$found"; return; }
  done
  return 1
}

# candidate KERNEL: "NAME VERSION" of what apt would download
candidate() {
  local name version
  name=$(newest "$1") || return
  version=$(apt-cache policy "$name" | sed -n 's/^ *Candidate: *//p')
  [ "$version" ] && [ "$version" != '(none)' ] && echo "$name $version"
}

# unpack PACKAGE DIRECTORY: the kernel, and its virtio modules with the order to load them in
unpack() {
  local release module
  dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --wildcards './boot/vmlinuz-*' \
    '*/lib/modules/*/kernel/drivers/virtio/*' '*/lib/modules/*/modules.builtin*' \
    '*/lib/modules/*/modules.order' 2> /dev/null
  [ ! -d "$2/usr/lib/modules" ] || [ -d "$2/lib" ] || ln -s usr/lib "$2/lib"
  release=$(basename "$2"/lib/modules/*)
  mv "$2/boot/vmlinuz-$release" "$2/vmlinuz" && depmod -b "$2" "$release" || return
  mkdir "$2/modules"
  # Each module's line of modules.dep names what it needs, the first to be loaded last.
  for module in virtio_pci virtio_balloon; do
    awk -v name="/$module.ko" 'index($1, name) { sub(":", ""); for (i = NF; i > 0; --i) print $i }' \
      "$2/lib/modules/$release/modules.dep"
  done | awk '!seen[$0]++' > "$2/order"
  grep -q virtio_balloon "$2/order" || return
  while read -r module; do
    case $module in *.xz) xz -dc ;; *) cat ;; esac < "$2/lib/modules/$release/$module" \
      > "$2/modules/$(basename "$module" .xz)" || return
    basename "$module" .xz >> "$2/modules/order"
  done < "$2/order"
}

# make_initramfs DIRECTORY
make_initramfs() {
  rm -rf "$1/root"
  mkdir -p "$1/root"/{bin,dev,proc,sys,tmp} && cp /bin/busybox "$1/root/bin/" &&
    cp -r "$1/modules" "$1/root/" || return
  gcc -O1 -Wall -Wextra -Werror -static "$root/tests/interop/guest_hog.c" -o "$1/root/bin/hog" || return
  cat > "$1/root/init" << 'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in $(grep -v virtio_balloon /modules/order); do
  case $module in virtio_pci.ko) options=$(grep -o 'force_legacy=1' /proc/cmdline) ;; *) options= ;; esac
  insmod /modules/$module $options
done
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
stty raw -echo
balloon=/modules/virtio_balloon.ko
echo '<ready>'
while read -r line; do
  eval "$line"
  echo "<done $?>"
done
INIT
  chmod +x "$1/root/init"
  (cd "$1/root" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 > "$1/initramfs" || return
  rm -rf "$1/root"
}

# download_kernel KERNEL: again only if there is a newer one
download_kernel() {
  local guest=$directory/$1 new=$directory/$1.new wanted have
  have=
  [ ! -d "$guest/modules" ] || have=$(cat "$guest/package" 2> /dev/null)
  wanted=$(candidate "$1")
  if [ -z "$wanted" ] && [ -z "$have" ] && [ "$(id -u)" -eq 0 ]; then
    say "apt knows no package for Linux $1: updating its lists ..."
    apt-get --quiet update < /dev/null >&2
    wanted=$(candidate "$1")
  fi
  [ "$wanted" ] || [ "$have" ] || unable "apt knows no package for Linux $1 (as root: apt-get update)"
  [ "${wanted:-$have}" != "$have" ] || return 0

  rm -rf "$new"
  mkdir -p "$new/download" || unable "cannot write to $directory"
  say "downloading ${wanted/ /, version } ..."
  # As root, apt reads as another user, who must be allowed to write here.
  [ "$(id -u)" -ne 0 ] || chown _apt "$new/download" 2> /dev/null
  if ! (cd "$new/download" && apt-get --quiet --quiet download "${wanted/ /=}" < /dev/null >&2); then
    rm -rf "$new"
    [ "$have" ] || unable "apt cannot download ${wanted%% *}"
    say "apt cannot download ${wanted%% *}: Linux $1 stays as it is, $have"
    return 0
  fi
  say "unpacking Linux $1 ..."
  unpack "$new"/download/*.deb "$new" ||
    { say "the package ${wanted%% *} is not as expected"; exit 1; }
  (cd "$new" && rm -rf download boot lib usr order)
  printf '%s\n' "$wanted" > "$new/package"
  rm -rf "$guest"
  mv "$new" "$guest"
}

# make_guest KERNEL
make_guest() {
  local guest=$directory/$1 recipe
  download_kernel "$1"
  recipe=$(cat "$0" "$root/tests/interop/guest_hog.c" /bin/busybox | cksum)
  [ "$(cat "$guest/recipe" 2> /dev/null)" != "$recipe" ] || return 0
  make_initramfs "$guest" || { say "no initramfs for Linux $1"; exit 1; }
  printf '%s\n' "$recipe" > "$guest/recipe"
}

for kernel; do
  case $kernel in
    6.1 | 6.12 | 6.12-full) make_guest "$kernel" || exit ;;
    *) say "no guest is called $kernel"; exit 2 ;;
  esac
done
