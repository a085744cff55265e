# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# Sourced, in tests/.

# "file|title" for every test; a title may be cut over lines.
titles() {
  find . -name '*.cpp' | sed 's|^\./||' | sort | while read -r file; do
    sed -zE 's/\n(BOTH|TEST_CASE)\([[:space:]]+"/\n\1("/g; s/"[[:space:]]*\n[[:space:]]*"//g' "$file" |
      sed -nE "s/^(BOTH|TEST_CASE)\(\"([^\"]*)\".*/${file//\//\\/}|\2/p"
  done
}
