// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"

#include <ballast/balloon/statistics.hpp>

#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

namespace loopback {

/// The statistics of this machine: the driver's `statistics_source`. The same values in the same
/// order as Linux's driver sends, from what the kernel shows of them in /proc. A counter that this
/// kernel does not have is left out. Linux: update_balloon_stats().
class guest_statistics {
 public:
  void write(ballast::balloon::statistics_writer<std::endian::little>& to) noexcept {
    using tag = ballast::balloon::statistic_tag;
    read_vmstat();
    read_meminfo();
    add(to, tag::swap_in, swap_in_);
    add(to, tag::swap_out, swap_out_);
    add(to, tag::major_faults, major_faults_);
    add(to, tag::minor_faults, faults_);
    add(to, tag::oom_kills, oom_kills_);
    add(to, tag::alloc_stalls, alloc_stalls_);
    add(to, tag::async_scans, async_scans_);
    add(to, tag::direct_scans, direct_scans_);
    add(to, tag::async_reclaims, async_reclaims_);
    add(to, tag::direct_reclaims, direct_reclaims_);
    add(to, tag::hugetlb_allocations, hugetlb_allocations_);
    add(to, tag::hugetlb_failures, hugetlb_failures_);
    add(to, tag::free_memory, free_memory_);
    add(to, tag::total_memory, total_memory_);
    add(to, tag::available_memory, available_memory_);
    add(to, tag::disk_caches, disk_caches_);
  }

 private:
  using value = std::uint64_t;
  static constexpr value missing = ballast::balloon::not_reported;

  static void add(ballast::balloon::statistics_writer<std::endian::little>& to,
                  ballast::balloon::statistic_tag tag, value v) noexcept {
    if (v != missing) (void)to.add(tag, v); // the driver's buffer has room for all tags
  }

  void read_vmstat() {
    const value page = host_page_size();
    alloc_stalls_ = missing;
    std::ifstream file("/proc/vmstat");
    std::string name;
    for (value n = 0; file >> name >> n;) {
      if (name == "pswpin") swap_in_ = n * page;
      if (name == "pswpout") swap_out_ = n * page;
      if (name == "pgmajfault") major_faults_ = n;
      if (name == "pgfault") faults_ = n; // all of them, the major ones too
      if (name == "oom_kill") oom_kills_ = n;
      if (name.starts_with("allocstall")) // one for each zone
        alloc_stalls_ = alloc_stalls_ == missing ? n : alloc_stalls_ + n;
      if (name == "pgscan_kswapd") async_scans_ = n * page;
      if (name == "pgscan_direct") direct_scans_ = n * page;
      if (name == "pgsteal_kswapd") async_reclaims_ = n * page;
      if (name == "pgsteal_direct") direct_reclaims_ = n * page;
      if (name == "htlb_buddy_alloc_success") hugetlb_allocations_ = n;
      if (name == "htlb_buddy_alloc_fail") hugetlb_failures_ = n;
      if (name == "nr_file_pages") disk_caches_ = n * page;
    }
  }

  void read_meminfo() {
    std::ifstream file("/proc/meminfo");
    std::string name;
    for (value kib = 0; file >> name >> kib;) {
      if (name == "MemFree:") free_memory_ = kib * 1024;
      if (name == "MemTotal:") total_memory_ = kib * 1024;
      if (name == "MemAvailable:") available_memory_ = kib * 1024;
      file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
  }

  value swap_in_ = missing;
  value swap_out_ = missing;
  value major_faults_ = missing;
  value faults_ = missing;
  value oom_kills_ = missing;
  value alloc_stalls_ = missing;
  value async_scans_ = missing;
  value direct_scans_ = missing;
  value async_reclaims_ = missing;
  value direct_reclaims_ = missing;
  value hugetlb_allocations_ = missing;
  value hugetlb_failures_ = missing;
  value free_memory_ = missing;
  value total_memory_ = missing;
  value available_memory_ = missing;
  value disk_caches_ = missing;
};

} // namespace loopback
