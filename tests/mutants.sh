#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/mutants.sh [HEADER...]
#
# Is each memory order of the engine needed? Takes every order::acquire and order::release (to
# relaxed) and every call of fence() (away) in the library's headers, outside of memory/ and of
# vhost_user/ (a killed process, not another thread, tests its orders), one at a
# time in a copy of the tree, and runs the relacy programs on it: one that finds no fault in 2000
# random schedules of each scenario leaves a survivor. HEADER... limits it to those, as in
# virtqueue/split_driver.hpp. SCHEDULES=N in the environment: another number.
#
# A mutant that cannot be told from the original is listed in tests/mutants_equivalent.txt with its
# reason, and counted apart. Prints a line for each mutant and ends with "mutants caught: N of N".

. "$(dirname "$0")/../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

schedules=${SCHEDULES:-2000}
trees=$root/.build/mutants
equivalents=$root/tests/mutants_equivalent.txt
compile=("${CXX:-g++}" -std=c++20 -O0)
jobs=$(nproc)

# mutable_orders FILE: "LINE COLUMN LENGTH FUNCTION KIND" for each; the function's name and the kind
# say which it is when lines move. Comments are left alone.
mutable_orders() {
  awk '
    { code = $0; sub(/\/\/.*/, "", code) }
    # The name of a function: in front of the first parenthesis of a declaration in a class or namespace.
    code ~ /^(  )?[a-z\[][^(]*[a-z_0-9]\(/ && code !~ /^ *(return|if|for|while|switch)/ {
      name = code
      sub(/\(.*/, "", name)
      sub(/.*[^a-z_0-9]/, "", name)
    }
    {
      at = 0
      while (match(code, /order::(acquire|release)|[a-z_0-9]+(->|\.)fence\(\)/)) {
        found = substr(code, RSTART, RLENGTH)
        kind = found ~ /fence/ ? "fence" : substr(found, 8)
        if (++seen[name " " kind] > 1) kind = kind "-" seen[name " " kind]
        print FNR, at + RSTART, RLENGTH, name, kind
        at += RSTART + RLENGTH - 1
        code = substr(code, RSTART + RLENGTH)
      }
      # What the pattern above did not take.
      if (code ~ /fence *\(|using enum .*order|acq_rel|seq_cst/) print FNR, 0, 0, "unknown", "unknown"
    }' "$1"
}

# mutate FILE LINE COLUMN LENGTH REPLACEMENT
mutate() {
  awk -v line="$2" -v column="$3" -v size="$4" -v text="$5" '
    FNR == line { $0 = substr($0, 1, column - 1) text substr($0, column + size) }
    { print }' "$1" > "$1.new" && mv "$1.new" "$1"
}

# build_and_run PROGRAM INCLUDE BINARY: exit status 0 no fault found, 1 a fault, 2 it did not work.
build_and_run() {
  local status
  "${compile[@]}" -I "$2" -I "$root/tests" "$1" -o "$3" > "$3.log" 2>&1 || return 2
  timeout 300 "$3" random "$schedules" > "$3.log" 2> /dev/null
  status=$?
  if [ $status -eq 1 ] && grep -q '^FAIL' "$3.log"; then return 1; fi
  [ $status -eq 0 ] || { echo "exit status $status" >> "$3.log"; return 2; }
}

# try NUMBER HEADER LINE COLUMN LENGTH FUNCTION KIND: writes "caught WHY", "survived WHY" or "broken WHY".
try() {
  local tree=$trees/$1 to program name
  mkdir -p "$tree"
  cp -r "$root/include" "$tree/"
  case $7 in fence*) to='static_cast<void>(0)' ;; *) to=order::relaxed ;; esac
  mutate "$tree/include/ballast/$2" "$3" "$4" "$5" "$to"
  if cmp -s "$root/include/ballast/$2" "$tree/include/ballast/$2"; then
    echo "broken nothing was changed" > "$tree/result"
    return
  fi
  echo "survived no relacy program includes it" > "$tree/result"
  for program in "${programs[@]}"; do
    name=$(basename "$program" .cpp)
    grep -q "/ballast/$2" "$trees/$name.d" || continue
    build_and_run "$program" "$tree/include" "$tree/$name"
    case $? in
      0) echo "survived $schedules schedules of each scenario" > "$tree/result" ;;
      1) sed -n 's/^FAIL relacy: /caught /p' "$tree/$name.log" > "$tree/result"; return ;;
      *) echo "broken $(grep -m 1 -E 'error|status' "$tree/$name.log")" > "$tree/result"; return ;;
    esac
  done
}

# reason_of HEADER FUNCTION KIND: the rest of its line in the list of equivalents.
reason_of() {
  [ -f "$equivalents" ] || return 1
  awk -v header="$1" -v name="$2" -v kind="$3" '
    $1 == header && $2 == name && $3 == kind { $1 = $2 = $3 = ""; sub(/^ */, ""); print; found = 1 }
    END { exit !found }' "$equivalents"
}

rm -rf "$trees"
mkdir -p "$trees"
programs=("$root"/tests/relacy/*.cpp)

# A program that fails on the original would catch everything.
for program in "${programs[@]}"; do
  name=$(basename "$program" .cpp)
  "${compile[@]}" -MM -I "$root/include" -I "$root/tests" "$program" > "$trees/$name.d" || exit
  build_and_run "$program" "$root/include" "$trees/$name" ||
    { cat "$trees/$name.log"; fail "mutants" "tests/relacy/$name.cpp fails on the original"; exit 1; }
done

if [ $# -gt 0 ]; then headers=("$@"); else
  mapfile -t headers < <(cd "$root/include/ballast" && find . -name '*.hpp' | sed 's|^\./||' | grep -vE '^(memory|vhost_user)/' | sort)
fi
mutants=()
for header in "${headers[@]}"; do
  [ -f "$root/include/ballast/$header" ] || { say "there is no header $header"; exit 2; }
  while read -r where; do mutants+=("$header $where"); done < <(mutable_orders "$root/include/ballast/$header")
done
[ ${#mutants[@]} -gt 0 ] || { say "no memory order found"; exit 2; }

for i in "${!mutants[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  # shellcheck disable=SC2086 # the words of the line
  try "$i" ${mutants[$i]} &
done
wait

caught=0 counted=0 equivalent=0
for i in "${!mutants[@]}"; do
  read -r header line _ size name kind <<< "${mutants[$i]}"
  read -r outcome why < "$trees/$i/result"
  title="mutant: $header:$line $name without its $kind"
  if [ "$size" -eq 0 ]; then
    fail "mutant: $header:$line" "an order or fence that tests/mutants.sh does not understand"
    counted=$((counted + 1))
  elif reason=$(reason_of "$header" "$name" "$kind"); then
    equivalent=$((equivalent + 1))
    case $outcome in
      survived) ok "$title: equivalent: $reason" ;;
      *) fail "$title" "listed as equivalent, but $outcome: $why" ;;
    esac
  else
    counted=$((counted + 1))
    case $outcome in
      caught) caught=$((caught + 1)); ok "$title: caught: $why" ;;
      *) fail "$title" "$outcome: $why" ;;
    esac
  fi
done

# Entries of the list that stand for nothing; only when every header was looked at.
if [ $# -eq 0 ] && [ -f "$equivalents" ]; then
  while read -r header name kind _; do
    case $header in '' | '#'*) continue ;; esac
    printf '%s\n' "${mutants[@]}" | awk '{ print $1, $5, $6 }' | grep -qxF "$header $name $kind" ||
      fail "mutants_equivalent.txt" "there is no $kind in $name of $header"
  done < "$equivalents"
fi

[ "$equivalent" -eq 0 ] || echo "equivalent, not counted: $equivalent"
echo "mutants caught: $caught of $counted"
[ "$failed" -eq 0 ]
