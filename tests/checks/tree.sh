#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/tree.sh
#
# Checks of the files themselves; nothing is compiled. Prints a line for each check.

. "$(dirname "$0")/../../.ci/common.sh"
. "$root/tests/checks/headers_list.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }
cd "$root" || exit

# Every file of the project.
files() { find . \( -path ./.git -o -path ./.build \) -prune -o -type f -print | sort; }

top_level() {
  local name
  for name in *; do
    case $name in
      include | tests | bench | examples | meson.build | README.md | LICENSE) ;;
      *) echo "$name does not belong there" ;;
    esac
  done
}

spdx() {
  local file
  while read -r file; do
    case $file in
      ./LICENSE | ./README.md | ./.gitignore) continue ;; # LICENSE is the licence itself
      ./tests/fuzz/corpus/*) continue ;;                  # inputs, byte for byte
      ./bench/results/*.json) continue ;;                 # written by bench/run
    esac
    head -n 3 "$file" | grep -q 'SPDX-License-Identifier: BSD-3-Clause' || echo "$file"
  done < <(files)
}

# The pattern is written so that it does not find itself.
no_own_paths() { files | tr '\n' '\0' | xargs -0 grep -nIE '/(wor[k]|hom[e])/'; true; }

layer_of() {
  case $1 in
    endian.hpp | result.hpp | version.hpp) echo 0 ;;
    memory/*) echo 1 ;;
    virtqueue/layout.hpp) echo 2 ;;
    virtio/*) echo 3 ;;
    virtqueue/*) echo 4 ;;
    balloon/*) echo 5 ;;
    transport/* | host/* | vhost_user/*) echo 6 ;;
    ballast.hpp) echo 9 ;;
    *) echo unknown ;;
  esac
}

# "header included" for every include of one of our headers
own_includes() {
  local header
  for header in $(all_headers); do
    sed -n "s|^ *# *include <ballast/\(.*\)>.*|$header \1|p" "include/ballast/$header"
  done
}

layers_go_down() {
  local header included
  for header in $(all_headers); do
    [ "$(layer_of "$header")" != unknown ] || echo "$header is in no layer"
  done
  while read -r header included; do
    [ "$(layer_of "$header")" -ge "$(layer_of "$included")" ] || echo "$header includes $included"
  done < <(own_includes)
  own_includes | tsort 2>&1 > /dev/null | sed 's/^tsort: -://' # it names the loops
  grep -n '^ *# *include "' -r include # <ballast/...> only
  true
}

umbrella_is_complete() {
  diff <(core_headers | grep -vx ballast.hpp) \
    <(sed -n 's|^#include <ballast/\(.*\)>.*|\1|p' include/ballast/ballast.hpp | sort) |
    sed -n 's/^</not included:/p; s/^>/not a freestanding header:/p'
}

one_test_file_per_header() {
  local header test first
  for header in $(all_headers); do
    test=tests/${header%.hpp}.cpp
    if [ -f "$test" ]; then
      first=$(sed -n 's/^ *# *include *//p' "$test" | head -n 1)
      [ "$first" = "<ballast/$header>" ] || echo "$test does not include <ballast/$header> first"
    else
      echo "$test is missing"
    fi
  done
}

# Programs of their own, which the build of the tests does not list.
own_programs='^(codegen|relacy|fuzz|interop|checks)/'

# Each source is named in the meson.build of its directory.
sources_are_listed() {
  local dir file
  for file in $(cd tests && find . -name '*.cpp' | sed 's|^\./||' | grep -vE "$own_programs"); do
    grep -q "'$file'" tests/meson.build || echo "tests/meson.build lacks $file"
  done
  for dir in examples bench; do
    for file in "$dir"/*.cpp; do
      file=$(basename "$file" .cpp)
      case $dir/$file in
        bench/size) continue ;;   # compiled by bench/run, never linked
        bench/guests) continue ;; # built by bench/guests.sh, of the interop tests' parts
      esac
      grep -q "'$file'" $dir/meson.build || echo "$dir/meson.build lacks $file"
    done
  done
}

version_is_one() {
  local built written
  built=$(sed -n "s/^ *version: '\([0-9.]*\)'.*/\1/p" meson.build | head -n 1)
  written=$(sed -n 's/^#define BALLAST_VERSION_[A-Z]* *//p' include/ballast/version.hpp | paste -sd .)
  [ "$built" = "$written" ] || echo "meson.build says $built, version.hpp $written"
}

# What the README shows of a file: what lies between "// README" and "// end", or all of it.
shown() {
  awk '/^ *\/\/ README$/ { found = inside = 1; next }
       /^ *\/\/ end$/ { inside = 0; next }
       inside { part = part $0 "\n" }
       { all = all $0 "\n" }
       END { printf "%s", found ? part : all }' "$1"
}

# A code block after <!-- file: PATH --> is the file PATH, to the letter.
readme_shows_the_files() {
  local path
  grep -c '<!-- file: ' README.md > /dev/null || echo "README.md shows no file"
  while read -r path; do
    if [ ! -f "$path" ]; then
      echo "README.md shows $path, which does not exist"
    elif ! awk -v marker="<!-- file: $path -->" '
        $0 == marker { armed = 1; next }
        armed && /^```/ { if (inside) exit; inside = 1; next }
        inside { print }' README.md | cmp -s - <(shown "$path"); then
      echo "README.md does not show $path as it is"
    fi
  done < <(sed -n 's/^<!-- file: \(.*\) -->$/\1/p' README.md)
}

# The figures of bench/results/peers.json, and nothing typed by hand.
readme_shows_the_peers() {
  python3 bench/peers/report.py check bench/results/peers.json bench/results/peers.svg README.md
}

check "top level holds only what belongs there" top_level
check "SPDX in every file" spdx
check "no path of somebody's machine" no_own_paths
check "includes go only down the layers" layers_go_down
check "the umbrella includes every freestanding header" umbrella_is_complete
check "each header has one test file, which includes it first" one_test_file_per_header
check "every source is in its meson.build" sources_are_listed
check "version.hpp agrees with meson.build" version_is_one
if [ -f README.md ]; then
  check "README shows the examples as they are" readme_shows_the_files
  check "README shows the recorded comparison with others" readme_shows_the_peers
else
  fail "README shows the examples as they are" "README.md is missing"
fi
[ "$failed" -eq 0 ]
