# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# Sourced: the headers, and which of them are for hosted programs only.

# Not in the umbrella, not compiled with -ffreestanding.
hosted_headers='^(memory/mapped_memory\.hpp|(host|vhost_user)/.*)$'

all_headers() { (cd "$root/include/ballast" && find . -name '*.hpp' | sed 's|^\./||' | sort); }
core_headers() { all_headers | grep -vE "$hosted_headers"; }
