#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/rt_table.sh [--titles]
#
# The regression list: RT-1 to RT-27 and RT-60, which known bugs of virtqueues stand for, against
# both sides of both formats. A cell is the number of tests that have the id in their title, or "n/a"
# with a reason from tests/rt_not_applicable.txt. Exit status 1 where a cell has neither, or where a
# line of that file is not needed. --titles prints the titles too.

. "$(dirname "$0")/../.ci/common.sh"
. "$root/tests/titles.sh"
case ${1-} in
  "" | --titles) ;;
  *) print_help "$0"; exit ;;
esac
cd "$root/tests" || exit

ids=(RT-{1..27} RT-60)

# Which side a test is about: the file says so, or the title, or both run in it.
sides_of() { # FILE TITLE
  case $1 in
    */split_device.cpp | */packed_device.cpp | virtqueue/packed_regressions.cpp) echo device; return ;;
    balloon/device.cpp | virtio/device_*) echo device; return ;;
    virtio/config_space.cpp | virtqueue/chain.cpp) echo device; return ;; # a driver has neither
    */split_driver.cpp | */packed_driver.cpp | balloon/driver.cpp | virtio/driver_* | virtio/negotiation.cpp)
      echo driver
      return
      ;;
    memory/*) echo device driver; return ;; # both reach memory through it
    virtqueue/*_loopback.cpp | virtqueue/*_threads.cpp | virtqueue/*_rings.cpp)
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

# Which formats: the file or the title says so. What lies below the rings (memory, chains, what the
# transport guards) is the same for both.
formats_of() { # FILE TITLE
  case $1 in
    virtqueue/split_*) echo split; return ;;
    virtqueue/packed_*) echo packed; return ;;
    memory/* | virtio/* | virtqueue/chain.cpp) echo split packed; return ;;
  esac
  case $2 in
    *"both formats"* | *"either format"* | *split*packed* | *packed*split*) echo split packed ;;
    *packed*) echo packed ;;
    *) echo split ;;
  esac
}

declare -A count found reason
while IFS='|' read -r file title; do
  for id in "${ids[@]}"; do
    [[ $title =~ (^|[^A-Za-z0-9])$id([^0-9b]|$) ]] || continue
    for format in $(formats_of "$file" "$title"); do
      for side in $(sides_of "$file" "$title"); do
        key=$id,$format,$side
        count[$key]=$((${count[$key]:-0} + 1))
        found[$key]+="    $format $side: $file: $title"$'\n'
      done
    done
  done
done < <(titles)

status=0
while read -r id format side text; do
  case $id in "" | \#*) continue ;; esac
  case $format in
    split | packed) formats=$format ;;
    both) formats="split packed" ;;
    *) formats= ;;
  esac
  if [[ " ${ids[*]} " != *" $id "* ]] || [ -z "$formats" ] || [ -z "$text" ] ||
    [[ $side != device && $side != driver ]]; then
    say "rt_not_applicable.txt: \"$id $format $side $text\" is not" \
      '"ID split|packed|both device|driver REASON"'
    status=1
    continue
  fi
  for one in $formats; do
    if [ -n "${count[$id,$one,$side]-}" ]; then
      say "rt_not_applicable.txt: $id $one $side has a test"
      status=1
    fi
    reason[$id,$one,$side]=$text
  done
done < rt_not_applicable.txt

# A reason is printed below its row, so that the row stays narrow.
cell() { # KEY
  if [ -n "${count[$1]-}" ]; then
    echo "${count[$1]}"
  elif [ -n "${reason[$1]-}" ]; then
    echo "n/a"
  else
    echo "-- no test --"
  fi
}

columns=("split,device" "split,driver" "packed,device" "packed,driver")
printf '%-6s' id
for column in "${columns[@]}"; do printf ' | %-13s' "${column/,/ }"; done
echo
for id in "${ids[@]}"; do
  printf '%-6s' "$id"
  for column in "${columns[@]}"; do
    text=$(cell "$id,$column")
    printf ' | %-13s' "$text"
    [ "$text" = "-- no test --" ] && status=1
  done
  echo
  for side in device driver; do
    for format in split packed; do
      text=${reason[$id,$format,$side]-}
      [ -n "$text" ] || continue
      [ "$format,$text" = "packed,${reason[$id,split,$side]-}" ] || echo "    n/a: $side $text"
    done
  done
  [ "${1-}" = --titles ] || continue
  for column in "${columns[@]}"; do printf '%s' "${found[$id,$column]-}"; done
done
exit $status
