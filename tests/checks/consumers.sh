#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Usage: tests/checks/consumers.sh
#
# Uses the library from a scratch project in the three ways there are: as a Meson subproject, and
# installed, through pkg-config and through CMake's find_package.

. "$(dirname "$0")/../../.ci/common.sh"
[ "${1-}" != --help ] || { print_help "$0"; exit; }

scratch=$root/.build/consumers
prefix=$scratch/prefix
log=$scratch/log
version=$(sed -n "s/^ *version: '\([0-9.]*\)'.*/\1/p" "$root/meson.build" | head -n 1)
rm -rf "$scratch"
mkdir -p "$scratch"

# project NAME: a project directory with one program that uses the umbrella.
project() {
  mkdir -p "$scratch/$1"
  cat > "$scratch/$1/main.cpp" << 'END'
#include <ballast/ballast.hpp>

int main() { return sizeof(ballast::le32) == 4 ? BALLAST_VERSION_MAJOR : 1; }
END
  cd "$scratch/$1" || exit
}

meson_subproject() {
  project subproject
  mkdir -p subprojects/ballast
  tar -C "$root" -c --exclude=./.build --exclude=./.git . | tar -C subprojects/ballast -x || return
  cat > meson.build << 'END'
project('consumer', 'cpp', default_options: ['cpp_std=c++20', 'warning_level=3', 'werror=true'])
executable('consumer', 'main.cpp', dependencies: dependency('ballast', fallback: 'ballast'))
END
  meson setup build && ninja -C build && build/consumer || return
  # The library's own tests, examples and benches are no business of its users.
  [ "$(meson introspect --targets build | tr ',' '\n' | grep -c '"filename":')" -eq 1 ]
}

install() {
  meson setup --prefix "$prefix" "$scratch/install" "$root" &&
    meson install -C "$scratch/install" --no-rebuild
}

with_pkg_config() {
  project pkg_config
  export PKG_CONFIG_PATH=$prefix/share/pkgconfig
  [ "$(pkg-config --modversion ballast)" = "$version" ] || return
  # shellcheck disable=SC2046
  g++ -std=c++20 -Wall -Werror main.cpp $(pkg-config --cflags --libs ballast) -o consumer &&
    ./consumer
}

# An installed tree may be moved.
with_cmake() {
  project cmake
  mv "$prefix" "$prefix.moved" || return
  cat > CMakeLists.txt << 'END'
cmake_minimum_required(VERSION 3.16)
project(consumer CXX)
find_package(ballast ${WANTED} REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE ballast::ballast)
END
  cmake -G Ninja -S . -B build -DWANTED="$version" -DCMAKE_PREFIX_PATH="$prefix.moved" &&
    ninja -C build && build/consumer || return
  ! cmake -G Ninja -S . -B other -DWANTED=99.0 -DCMAKE_PREFIX_PATH="$prefix.moved"
}

# try NAME FUNCTION: a check that shows what was printed only when it failed.
try() {
  if ("$2") > "$log" 2>&1; then
    ok "$1"
  else
    fail "$1" "$(tail -n 30 "$log")"
  fi
}

try "used as a Meson subproject" meson_subproject
try "installs" install
try "used through pkg-config" with_pkg_config
try "used through CMake's find_package" with_cmake
[ "$failed" -eq 0 ]
