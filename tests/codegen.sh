#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Compiles tests/codegen/word.cpp at -O2 and checks that every function in it became what its name
# says: one load or one store, one byte swap if it says "swapped", and besides them at most a move
# between registers (to swap the value to be stored in a copy; a 16-bit swap is a rotation).
#
#     tests/codegen.sh [compiler]      default: $CXX, or g++; prints one line for each function
#
# Exit status: 0 all are so, 1 one is not, 77 the target is not x86-64 (nothing was checked),
# 99 the compiler failed.

compiler=${1:-${CXX:-g++}}
here=$(dirname "$0")

case $($compiler -dumpmachine) in
x86_64-* | amd64-*) ;;
*)
  echo "codegen: only x86-64 assembly is understood; skipped"
  exit 77
  ;;
esac

assembly=$($compiler -std=c++20 -O2 -S -o - -I"$here/../include" -fno-asynchronous-unwind-tables \
  -fno-stack-protector -fcf-protection=none -fomit-frame-pointer "$here/codegen/word.cpp") || exit 99

printf '%s\n' "$assembly" | awk -v compiler="$compiler" '
  function finish(    is_load, swaps_due, ok) {
    if (function_name == "") return
    ++functions
    is_load = function_name ~ /^load_/
    swaps_due = function_name ~ /_swapped_/ ? 1 : 0
    ok = loads == is_load && stores == !is_load && swaps == swaps_due && others == 0 &&
         moves <= swaps_due && returns == 1
    printf "%-4s %-28s%s\n", ok ? "ok" : "FAIL", function_name, text
    if (!ok) ++failures
    function_name = ""
  }
  { sub(/[#;].*/, "") }                                    # comments
  /^(load|store)_[a-z0-9_]+:/ {
    finish()
    function_name = $1
    sub(/:.*/, "", function_name)
    text = ""
    loads = stores = swaps = moves = returns = others = 0
    next
  }
  function_name == "" || /^[ \t]*\./ || /^[^ \t]/ || NF == 0 { next }   # directives and labels
  {
    operation = $1
    operands = $0
    sub(/^[ \t]*[a-z0-9]+[ \t]*/, "", operands)
    gsub(/[ \t]/, "", operands)
    text = text "  " operation " " operands ";"
    if (operation ~ /^ret/) { ++returns; finish() }
    else if (operation ~ /^movbe/) { ++swaps; if (operands ~ /\)$/) ++stores; else ++loads }
    else if (operation ~ /^mov/ && operands ~ /\)$/) ++stores
    else if (operation ~ /^mov/ && operands ~ /\(.*\),/) ++loads
    else if (operation ~ /^mov/) ++moves
    else if (operands ~ /\(/) ++others
    else if (operation ~ /^bswap/) ++swaps
    else if (operation ~ /^ro[lr]/ && operands ~ /^\$8,/) ++swaps
    else ++others
  }
  END {
    finish()
    if (functions != 26) { print "FAIL found " functions + 0 " functions, not 26"; ++failures }
    printf "%s: %d functions, %d wrong\n", compiler, functions, failures
    exit failures > 0
  }'
