#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/balloon_table.sh [--titles]
#
# What the specification demands of a balloon driver (BDRV-1 to 42) and a balloon device (BDEV-1 to
# 14), and what known bugs of balloons stand for (RT-30 to RT-59). For each id: the number of tests
# that have it in their title; or, from tests/balloon_untested.txt, where it is documented or why it
# waits. Exit status 1 where an id has neither, or where a line of that file is wrong or not needed.
# --titles prints the titles too.

. "$(dirname "$0")/../.ci/common.sh"
. "$root/tests/titles.sh"
case ${1-} in
  "" | --titles) ;;
  *) print_help "$0"; exit ;;
esac
cd "$root/tests" || exit

ids=(BDRV-{1..42} BDEV-{1..14} RT-{30..59})
status=0
declare -A count found instead

while IFS='|' read -r file title; do
  for id in $(grep -oE '(BDRV|BDEV|RT)-[0-9]+' <<< "$title" | sort -u); do
    count[$id]=$((${count[$id]:-0} + 1))
    found[$id]+="    $file: $title"$'\n'
  done
done < <(titles)

wrong() {
  say "balloon_untested.txt: $1"
  status=1
}
while read -r id how text; do
  case $id in "" | \#*) continue ;; esac
  [[ " ${ids[*]} " == *" $id "* ]] || wrong "there is no $id"
  [ -z "${count[$id]-}" ] || wrong "$id has a test"
  case $how in
    n/a) [ -n "$text" ] || wrong "$id: no reason" ;;
    documented)
      # "documented HEADER NAME": the doc comment of NAME says it, and names the id.
      read -r header name _ <<< "$text"
      awk -v id="$id" -v name="$name" '
        /^ *\/\/\// { if (index($0, id)) told = 1; next }
        told && $0 ~ "(^|[^a-z_])" name "([^a-z_]|$)" { found = 1 }
        !/^ *(template|requires)/ { told = 0 }
        END { exit !found }' "$root/include/ballast/$header" ||
        wrong "$id: no doc comment of $name in $header names it"
      text="at $name of $header"
      ;;
    *) wrong "$id: neither n/a nor documented" ;;
  esac
  instead[$id]="$how: $text"
done < balloon_untested.txt

for id in "${ids[@]}"; do
  if [ -n "${count[$id]-}" ]; then
    printf '%-8s %s tests\n' "$id" "${count[$id]}"
    [ "${1-}" != --titles ] || printf '%s' "${found[$id]}"
  elif [ -n "${instead[$id]-}" ]; then
    printf '%-8s %s\n' "$id" "${instead[$id]}"
  else
    printf '%-8s -- no test --\n' "$id"
    status=1
  fi
done
exit $status
