// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"

#include <ballast/host/mapping.hpp>

#include <algorithm>
#include <cstdint>
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

/// What counts the guest's pages in /proc/self/smaps: huge pages are in none of the other counters.
[[nodiscard]] inline const char* resident_counter(const guest_ram& ram) noexcept {
  return ram.is_huge() ? "Private_Hugetlb" : "Rss";
}
/// The resident bytes of the guest's mapping, as the kernel counts them there.
[[nodiscard]] inline std::optional<std::uint64_t> resident_bytes(const guest_ram& ram) noexcept {
  const auto found = ballast::host::find_mapping(ram.data(), ram.size());
  if (!found) return std::nullopt;
  return ram.is_huge() ? found->hugetlb_bytes : found->resident_bytes;
}

/// Why so many bytes of huge pages can't be had, and what root can do about it.
[[nodiscard]] inline std::string missing_huge_pages(std::uint64_t bytes) {
  const std::string directory = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const auto read = [&](const char* name) {
    std::uint64_t n = 0;
    std::ifstream(directory + name) >> n;
    return n;
  };
  const std::uint64_t needed = bytes / huge_page_size;
  const std::uint64_t free = read("free_hugepages") - read("resv_hugepages");
  const std::uint64_t total = read("nr_hugepages") + needed - std::min(free, needed);
  return "it needs " + std::to_string(needed) + " free huge pages of 2M, and there are " +
         std::to_string(free) + "; as root: echo " + std::to_string(total) + " > " + directory +
         "nr_hugepages";
}

} // namespace loopback
