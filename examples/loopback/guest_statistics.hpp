// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"

#include <ballast/balloon/statistics.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>

namespace loopback {

/// The statistics of this machine: the driver's `statistics_source`. The same values in the same
/// order as Linux's driver sends, from where the kernel shows them in /proc; what this kernel does
/// not have is left out. Linux: update_balloon_stats().
class guest_statistics {
 public:
  void write(ballast::balloon::statistics_writer<std::endian::little>& to) noexcept {
    reading now[std::size(sources)];
    read("/proc/vmstat", now);
    read("/proc/meminfo", now);
    for (std::size_t i = 0; i < std::size(sources); ++i)
      if (now[i].is_there) (void)to.add(sources[i].tag, now[i].value); // there is room for all tags
  }

 private:
  using tags = ballast::balloon::statistic_tag;
  enum class unit : std::uint8_t { events, pages, kib };

  struct source {
    ballast::balloon::statistic_tag tag;
    const char* name;
    unit in;
  };
  static constexpr source sources[] = {
      {tags::swap_in, "pswpin", unit::pages},
      {tags::swap_out, "pswpout", unit::pages},
      {tags::major_faults, "pgmajfault", unit::events},
      {tags::minor_faults, "pgfault", unit::events}, // all of them, the major ones too
      {tags::oom_kills, "oom_kill", unit::events},
      {tags::alloc_stalls, "allocstall", unit::events},
      {tags::async_scans, "pgscan_kswapd", unit::pages},
      {tags::direct_scans, "pgscan_direct", unit::pages},
      {tags::async_reclaims, "pgsteal_kswapd", unit::pages},
      {tags::direct_reclaims, "pgsteal_direct", unit::pages},
      {tags::hugetlb_allocations, "htlb_buddy_alloc_success", unit::events},
      {tags::hugetlb_failures, "htlb_buddy_alloc_fail", unit::events},
      {tags::free_memory, "MemFree:", unit::kib},
      {tags::total_memory, "MemTotal:", unit::kib},
      {tags::available_memory, "MemAvailable:", unit::kib},
      {tags::disk_caches, "nr_file_pages", unit::pages},
  };

  struct reading {
    bool is_there = false;
    std::uint64_t value = 0;
  };

  [[nodiscard]] static std::uint64_t scale(unit in) noexcept {
    if (in == unit::pages) return host_page_size();
    return in == unit::kib ? 1024 : 1;
  }

  /// Each line of these files is a name and a number, and a unit perhaps.
  static void read(const char* path, reading (&to)[std::size(sources)]) {
    std::ifstream file(path);
    std::string name;
    for (std::uint64_t n = 0; file >> name >> n;) {
      file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
      // There is one for each zone: the sum of them counts.
      if (name.starts_with("allocstall_")) name = "allocstall";
      for (std::size_t i = 0; i < std::size(sources); ++i)
        if (name == sources[i].name) to[i] = {true, to[i].value + n * scale(sources[i].in)};
    }
  }
};

} // namespace loopback
