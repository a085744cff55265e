#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/rt_table.sh [--titles]
#
# The regression list: RT-1 to RT-27 and RT-60, which known bugs of virtqueues stand for, against
# both sides. A cell is the number of tests that have the id in their title, or "n/a" with a reason
# from tests/rt_not_applicable.txt. Exit status 1 where a cell has neither, or where a line of that
# file is not needed. --titles prints the titles too.

. "$(dirname "$0")/../.ci/common.sh"
case ${1-} in
  "" | --titles) ;;
  *) print_help "$0"; exit ;;
esac
cd "$root/tests" || exit

ids=(RT-{1..27} RT-60)

# "file|title" for every test; a title may be cut over lines.
titles() {
  find . -name '*.cpp' | sed 's|^\./||' | sort | while read -r file; do
    sed -zE 's/\n(BOTH|TEST_CASE)\([[:space:]]+"/\n\1("/g; s/"[[:space:]]*\n[[:space:]]*"//g' "$file" |
      sed -nE "s/^(BOTH|TEST_CASE)\(\"([^\"]*)\".*/${file//\//\\/}|\2/p"
  done
}

# Which side a test is about: the file says so, or the title, or both run in it.
sides_of() { # FILE TITLE
  case $1 in
    */split_device.cpp | balloon/device.cpp | virtio/device_*) echo device; return ;;
    virtio/config_space.cpp | virtqueue/chain.cpp) echo device; return ;; # a driver has neither
    */split_driver.cpp | balloon/driver.cpp | virtio/driver_* | virtio/negotiation.cpp)
      echo driver
      return
      ;;
    memory/*) echo device driver; return ;; # both reach memory through it
    virtqueue/split_loopback.cpp | virtqueue/split_threads.cpp | virtqueue/split_rings.cpp)
      echo device driver
      return
      ;;
  esac
  case $2 in
    *"both sides"*) echo device driver; return ;;
    *device*driver* | *driver*device*) echo device driver; return ;;
    *device*) echo device ;;
    *driver*) echo driver ;;
    *)
      case $1 in
        virtio/in_process_transport.cpp) echo device ;; # the transport is the device's guard
        virtqueue/layout.cpp) echo device driver ;;
      esac
      ;;
  esac
}

declare -A count found reason
while IFS='|' read -r file title; do
  for id in "${ids[@]}"; do
    [[ $title =~ (^|[^A-Za-z0-9])$id([^0-9b]|$) ]] || continue
    for side in $(sides_of "$file" "$title"); do
      count[$id,$side]=$((${count[$id,$side]:-0} + 1))
      found[$id,$side]+="    $side: $file: $title"$'\n'
    done
  done
done < <(titles)

status=0
while read -r id side text; do
  case $id in "" | \#*) continue ;; esac
  if [[ " ${ids[*]} " != *" $id "* ]] || [[ $side != device && $side != driver ]] || [ -z "$text" ]; then
    say "rt_not_applicable.txt: \"$id $side $text\" is not \"ID device|driver REASON\""
    status=1
  elif [ -n "${count[$id,$side]-}" ]; then
    say "rt_not_applicable.txt: $id $side has a test"
    status=1
  fi
  reason[$id,$side]=$text
done < rt_not_applicable.txt

cell() { # ID SIDE
  if [ -n "${count[$1,$2]-}" ]; then
    echo "${count[$1,$2]}"
  elif [ -n "${reason[$1,$2]-}" ]; then
    echo "n/a: ${reason[$1,$2]}"
  else
    echo "-- no test --"
  fi
}

printf '%-6s | %-6s | %s\n' id device driver
for id in "${ids[@]}"; do
  device=$(cell "$id" device) driver=$(cell "$id" driver)
  printf '%-6s | %-6s | %s\n' "$id" "$device" "$driver"
  if [ "${1-}" = --titles ]; then printf '%s' "${found[$id,device]-}" "${found[$id,driver]-}"; fi
  case $device$driver in *"-- no test --"*) status=1 ;; esac
done
exit $status
