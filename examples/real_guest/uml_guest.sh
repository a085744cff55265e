# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# Sourced, after .ci/common.sh: a guest of Debian's User-Mode Linux, a Linux kernel that is a process.
# Its virtio devices are vhost-user devices, so its balloon can be ours. It has busybox, and runs the
# lines that come through its console.

uml_kernel=/usr/bin/linux.uml

# find_uml: sets uml_module to the balloon's driver; or prints what is missing, and fails.
find_uml() {
  uml_module=$(find /usr/lib/uml/modules -name virtio_balloon.ko 2> /dev/null | sort -V | tail -n 1)
  [ -x "$uml_kernel" ] && [ -n "$uml_module" ] || { echo "the package user-mode-linux is not installed"; return 1; }
  [ -x /bin/busybox ] || { echo "the package busybox-static is not installed"; return 1; }
}

# make_uml_files DIRECTORY: in it, "initramfs", and "ptrace.so" for processors that UML does not know.
make_uml_files() {
  mkdir -p "$1/root"/{bin,dev,proc,sys,tmp} || return
  cp /bin/busybox "$1/root/bin/" && cp "$uml_module" "$1/root/virtio_balloon.ko" || return
  cat > "$1/root/init" << 'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o size=50m tmpfs /tmp
stty raw -echo
insmod /virtio_balloon.ko
while read -r line; do eval "$line"; done
INIT
  chmod +x "$1/root/init"
  (cd "$1/root" && find . | /bin/busybox cpio -o -H newc) > "$1/initramfs" 2> /dev/null || return
  gcc -O2 -Wall -Wextra -Werror -shared -fPIC "$root/tests/interop/uml_ptrace.c" -o "$1/ptrace.so" >&2
}

# uml_memory_directory MEBIBYTES DIRECTORY: where the guest's memory, a file, is to be: a tmpfs if
# there is one with that much room, else the directory.
uml_memory_directory() {
  local free
  free=$(df -m --output=avail /dev/shm 2> /dev/null | tail -n 1)
  if [ -w /dev/shm ] && [ "${free:-0}" -gt "$1" ] 2> /dev/null; then echo /dev/shm; else echo "$2"; fi
}

# run_uml MEBIBYTES SOCKET FILES DIRECTORY: becomes the guest, with the console as standard input and
# output. FILES: of make_uml_files; DIRECTORY: for the guest's own.
run_uml() {
  local memory
  memory=$(uml_memory_directory "$1" "$4")
  LD_PRELOAD=$3/ptrace.so TMPDIR=$memory exec "$uml_kernel" "mem=$1M" initrd="$3/initramfs" \
    virtio_uml.device="$2:5" con=null con0=fd:0,fd:1 panic=-1 uml_dir="$4"
}

# It is several processes; the first makes a session of its own for them as it starts.
is_uml_running() { kill -0 -- "-$1" 2> /dev/null || kill -0 "$1" 2> /dev/null; }
kill_uml() { kill -KILL -- "-$1" 2> /dev/null || kill -KILL "$1" 2> /dev/null; }
