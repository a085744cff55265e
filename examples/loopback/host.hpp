// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace loopback {

/// The number behind `name` in a file of lines "name number".
[[nodiscard]] inline std::optional<std::uint64_t> read_number(const std::string& path,
                                                              const std::string& name) {
  std::ifstream file(path);
  std::string found;
  for (std::uint64_t n = 0; file >> found >> n;) {
    if (found == name) return n;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

/// How much memory a guest may have, and what says so.
struct memory_bound {
  std::uint64_t bytes = UINT64_MAX;
  const char* what = "";
};

/// What the control groups of this process leave it; a container's limit is one. (Version 2.)
[[nodiscard]] inline memory_bound control_group_memory() {
  memory_bound bound;
  std::ifstream own("/proc/self/cgroup");
  for (std::string line; std::getline(own, line);) {
    if (!line.starts_with("0::/")) continue;
    // The group, and every one it is in.
    for (std::string group = line.substr(3); !group.empty();
         group.resize(group == "/" ? 0 : std::max<std::size_t>(group.rfind('/'), 1))) {
      const std::string directory = "/sys/fs/cgroup" + group;
      std::uint64_t limit = 0;
      if (!(std::ifstream(directory + "/memory.max") >> limit)) continue; // none, or "max"
      const std::uint64_t used = read_number(directory + "/memory.stat", "anon").value_or(0);
      const std::uint64_t left = limit - std::min(used, limit);
      if (left < bound.bytes) bound = {left, "that the control group's memory.max leaves"};
    }
  }
  return bound;
}

/// What this machine can give without swapping or killing.
[[nodiscard]] inline memory_bound available_memory() {
  memory_bound bound = control_group_memory();
  const auto available = read_number("/proc/meminfo", "MemAvailable:");
  if (available && *available * 1024 < bound.bytes)
    bound = {*available * 1024, "of MemAvailable in /proc/meminfo"};
  return bound;
}

/// The resident bytes of the guest's mapping, as the kernel counts them: the Rss of it (of all its
/// parts, should it have been split) in /proc/self/smaps.
[[nodiscard]] inline std::optional<std::uint64_t> resident_bytes(const guest_ram& ram) {
  const auto begin = reinterpret_cast<std::uintptr_t>(ram.data());
  const std::uintptr_t end = begin + round_up(ram.size(), host_page_size());
  std::ifstream file("/proc/self/smaps");
  std::optional<std::uint64_t> sum;
  bool is_guest = false;
  for (std::string line; std::getline(file, line);) {
    unsigned long from = 0, to = 0, kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2)
      is_guest = from >= begin && to <= end;
    else if (is_guest && std::sscanf(line.c_str(), "Rss: %lu kB", &kib) == 1)
      sum = sum.value_or(0) + kib * 1024;
  }
  return sum;
}

} // namespace loopback
