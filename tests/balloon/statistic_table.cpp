// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/statistic_table.hpp>

#include "support/check.hpp"

#include <string_view>

namespace {

using namespace ballast::balloon;
using ballast::error;
using std::string_view_literals::operator""sv;

constexpr bool same(const char* a, const char* b) {
  return a == nullptr || b == nullptr ? a == b : std::string_view(a) == b;
}

// What the table would be with one more tag, to show that nothing depends on there being sixteen.
struct seventeen_rows {
  statistic_info at[statistic_count + 1];

  constexpr seventeen_rows() : at{} {
    for (std::size_t i = 0; i < statistic_count; ++i) at[i] = statistic_table[i];
    at[statistic_count] = {statistic_tag::count,   "VIRTIO_BALLOON_S_NEW", nullptr, "new-figures",
                           "stat-new-figures",     "new_figures",          nullptr, 0,
                           statistic_unit::events, statistic_kind::gauge};
  }
};
constexpr seventeen_rows seventeen;

constexpr auto tags_have_their_numbers = [](auto check) {
  check(statistic_count == 16);
  check(static_cast<int>(statistic_tag::swap_in) == 0);
  check(static_cast<int>(statistic_tag::swap_out) == 1);
  check(static_cast<int>(statistic_tag::major_faults) == 2);
  check(static_cast<int>(statistic_tag::minor_faults) == 3);
  check(static_cast<int>(statistic_tag::free_memory) == 4);
  check(static_cast<int>(statistic_tag::total_memory) == 5);
  check(static_cast<int>(statistic_tag::available_memory) == 6);
  check(static_cast<int>(statistic_tag::disk_caches) == 7);
  check(static_cast<int>(statistic_tag::hugetlb_allocations) == 8);
  check(static_cast<int>(statistic_tag::hugetlb_failures) == 9);
  check(static_cast<int>(statistic_tag::oom_kills) == 10);
  check(static_cast<int>(statistic_tag::alloc_stalls) == 11);
  check(static_cast<int>(statistic_tag::async_scans) == 12);
  check(static_cast<int>(statistic_tag::direct_scans) == 13);
  check(static_cast<int>(statistic_tag::async_reclaims) == 14);
  check(static_cast<int>(statistic_tag::direct_reclaims) == 15);
};
BOTH("tags have the numbers of the wire", tags_have_their_numbers)

constexpr auto keys = [](auto check) {
  // Written out again, by another route: QEMU's keys, Firecracker's, libvirt's, its divisor.
  struct {
    const char* qemu;
    const char* firecracker;
    const char* libvirt;
    unsigned scale;
  } const expected[] = {
      {"stat-swap-in", "swap_in", "swap_in", 1024},
      {"stat-swap-out", "swap_out", "swap_out", 1024},
      {"stat-major-faults", "major_faults", "major_fault", 1},
      {"stat-minor-faults", "minor_faults", "minor_fault", 1},
      {"stat-free-memory", "free_memory", "unused", 1024},
      {"stat-total-memory", "total_memory", "available", 1024},
      {"stat-available-memory", "available_memory", "usable", 1024},
      {"stat-disk-caches", "disk_caches", "disk_caches", 1024},
      {"stat-htlb-pgalloc", "hugetlb_allocations", "hugetlb_pgalloc", 1},
      {"stat-htlb-pgfail", "hugetlb_failures", "hugetlb_pgfail", 1},
      {"stat-oom-kills", "oom_kill", nullptr, 0},
      {"stat-alloc-stalls", "alloc_stall", nullptr, 0},
      {"stat-async-scans", "async_scan", nullptr, 0},
      {"stat-direct-scans", "direct_scan", nullptr, 0},
      {"stat-async-reclaims", "async_reclaim", nullptr, 0},
      {"stat-direct-reclaims", "direct_reclaim", nullptr, 0},
  };
  for (std::size_t i = 0; i < statistic_count; ++i) {
    check(same(statistic_table[i].qemu_key, expected[i].qemu));
    check(same(statistic_table[i].firecracker_key, expected[i].firecracker));
    check(same(statistic_table[i].libvirt_key, expected[i].libvirt));
    check(statistic_table[i].libvirt_scale == expected[i].scale);
  }
};
BOTH("every tag has the keys of QEMU, Firecracker and libvirt", keys)

constexpr auto names_follow_rules = [](auto check) {
  for (const statistic_info& row : statistic_table) {
    check(std::string_view(row.identifier).substr(0, 17) == "VIRTIO_BALLOON_S_"sv);
    check(std::string_view(row.name).size() <= statistic_name_max);
    // QEMU's keys are the names with a prefix, but for two.
    const bool is_hugetlb =
        row.tag == statistic_tag::hugetlb_allocations || row.tag == statistic_tag::hugetlb_failures;
    check((std::string_view(row.qemu_key).substr(5) == row.name) != is_hugetlb);
    check((row.libvirt_key == nullptr) == (row.libvirt_scale == 0));
    // libvirt shows bytes in KiB and events as they are.
    if (row.libvirt_key != nullptr)
      check(row.libvirt_scale == (row.unit == statistic_unit::bytes ? 1024 : 1));
  }
};
BOTH("names follow the rules they seem to follow, with their exceptions", names_follow_rules)

constexpr auto kinds_and_units = [](auto check) {
  for (std::size_t i = 0; i < statistic_count; ++i) {
    const statistic_info& row = statistic_table[i];
    check((row.kind == statistic_kind::gauge) == (i >= 4 && i <= 7));
    const bool is_events = i == 2 || i == 3 || (i >= 8 && i <= 11);
    check((row.unit == statistic_unit::events) == is_events);
  }
};
BOTH("tags 4 to 7 are gauges; faults, hugetlb pages, kills and stalls are events", kinds_and_units)

constexpr auto look_up_by_tag = [](auto check) {
  for (std::uint32_t tag = 0; tag < 65536; tag += tag < 70 ? 1 : 997) {
    const auto* row = find_statistic(static_cast<statistic_tag>(tag));
    check(tag < 16 ? row == &statistic_table[tag] : row == nullptr);
  }
  check(find_statistic(static_cast<statistic_tag>(65535)) == nullptr);
  check(find_statistic(statistic_tag::count) == nullptr);
};
BOTH("a tag that the table does not have has no row", look_up_by_tag)

constexpr auto look_up_by_name = [](auto check) {
  for (const statistic_info& row : statistic_table) {
    check(find_statistic(row.identifier) == &row);
    check(find_statistic(row.name) == &row);
    check(find_statistic(row.qemu_key) == &row);
    check(find_statistic(row.firecracker_key) == &row);
  }
  check(find_statistic("VIRTIO_BALLOON_S_SCAN_ASYNC")->tag == statistic_tag::async_scans);
  check(find_statistic("VIRTIO_BALLOON_S_SCAN_DIRECT")->tag == statistic_tag::direct_scans);
  check(find_statistic("VIRTIO_BALLOON_S_RECLAIM_ASYNC")->tag == statistic_tag::async_reclaims);
  check(find_statistic("VIRTIO_BALLOON_S_RECLAIM_DIRECT")->tag == statistic_tag::direct_reclaims);

  const char text[] = {'s', 'w', 'a', 'p', '-', 'i', 'n', '!'}; // does not end in a zero
  check(find_statistic(std::span(text, 7))->tag == statistic_tag::swap_in);
  check(find_statistic(std::span(text, 8)) == nullptr);
  check(find_statistic(std::span(text, 6)) == nullptr);
  check(find_statistic(std::span(text, 0)) == nullptr);
  check(find_statistic("swap-out"sv)->tag == statistic_tag::swap_out);
  check(find_statistic("swap-in\0"sv) == nullptr); // a zero is no end there
  check(find_statistic("") == nullptr);
  check(find_statistic("available") == nullptr); // libvirt's, and not what it says
  check(find_statistic("SWAP-IN") == nullptr);
  check(find_statistic(static_cast<const char*>(nullptr)) == nullptr);
};
BOTH("a row is found by each of its names, and by nothing else", look_up_by_name)

constexpr auto names_are_unique = [](auto check) {
  const auto names_of = [](const statistic_info& row, const char*(&to)[5]) {
    to[0] = row.identifier;
    to[1] = row.older_identifier;
    to[2] = row.name;
    to[3] = row.qemu_key;
    to[4] = row.firecracker_key;
  };
  for (const statistic_info& a : statistic_table)
    for (const statistic_info& b : statistic_table) {
      const char* of_a[5]{};
      const char* of_b[5]{};
      names_of(a, of_a);
      names_of(b, of_b);
      for (const char* x : of_a)
        for (const char* y : of_b)
          if (&a != &b && x != nullptr && y != nullptr)
            check(!(x[0] == y[0] && std::string_view(x) == y));
    }
};
BOTH("no two tags share a name", names_are_unique)

constexpr auto older_names = [](auto check) {
  for (const statistic_info& row : statistic_table)
    check((row.older_identifier != nullptr) == (row.tag >= statistic_tag::async_scans));
};
BOTH("the four tags of scanning and reclaiming had another identifier once", older_names)

inline constexpr auto qemu_like = names_with_prefix("stat-");

constexpr auto prefixed_names = [](auto check) {
  check(statistic_names.size() == statistic_count && qemu_like.size() == statistic_count);
  for (std::size_t i = 0; i < statistic_count; ++i) {
    check(same(statistic_names[i], statistic_table[i].name));
    check(std::string_view(qemu_like[i]).substr(0, 5) == "stat-"sv);
    check(std::string_view(qemu_like[i]).substr(5) == statistic_table[i].name);
  }
  check(same(qemu_like[15], "stat-direct-reclaims"));
  check(statistic_names[16] == nullptr && qemu_like[16] == nullptr);
  check(statistic_names[SIZE_MAX] == nullptr);
};
BOTH("an array of names with any prefix is made at compile time and answers beyond its end",
     prefixed_names)

constexpr auto written_names = [](auto check) {
  const statistic_info& row = statistic_table[0];
  char text[16] = {};
  for (char& c : text) c = '#';
  check(*write_name(row, "x_", text) == 9);
  check(std::string_view(text) == "x_swap-in"sv);
  check(text[10] == '#');
  check(*write_name(row, "", text) == 7);
  check(std::string_view(text) == "swap-in"sv);

  char exact[8] = {};
  check(write_name(row, "", exact).has_value() && exact[7] == '\0');
  char small[7] = {'#', '#', '#', '#', '#', '#', '#'};
  check(write_name(row, "", small).error() == error::buffer_too_small);
  check(small[0] == '#' && small[6] == '#');
  check(write_name(row, "x", exact).error() == error::buffer_too_small);
  check(write_name(row, "", {}).error() == error::buffer_too_small);
};
BOTH("a name is written whole with its zero or not at all", written_names)

constexpr auto density = [](auto check) {
  check(is_dense(statistic_table));
  check(is_dense(seventeen.at));
  check(is_dense({}));
  // A row out of place, twice, or without a name.
  statistic_info rows[] = {statistic_table[0], statistic_table[1], statistic_table[2]};
  check(is_dense(rows));
  rows[1].tag = statistic_tag::major_faults;
  check(!is_dense(rows));
  rows[1] = statistic_table[0];
  check(!is_dense(rows));
  for (const char* statistic_info::* member :
       {&statistic_info::identifier, &statistic_info::name, &statistic_info::qemu_key,
        &statistic_info::firecracker_key}) {
    rows[1] = statistic_table[1];
    rows[1].*member = nullptr;
    check(!is_dense(rows));
  }
};
BOTH("a table with a hole, a row twice or a row without a name is not dense", density)

inline constexpr auto seventeen_names = names_with_prefix("my-", seventeen.at);

constexpr auto one_more_tag = [](auto check) {
  check(seventeen_names.size() == 17);
  for (std::size_t i = 0; i < statistic_count; ++i)
    check(std::string_view(seventeen_names[i]).substr(3) == statistic_names[i]);
  check(same(seventeen_names[16], "my-new-figures"));
  check(seventeen_names[17] == nullptr);
  check(find_statistic(statistic_tag::count, seventeen.at) == &seventeen.at[16]);
  check(find_statistic(static_cast<statistic_tag>(17), seventeen.at) == nullptr);
  check(find_statistic("stat-new-figures", seventeen.at) == &seventeen.at[16]);
  check(find_statistic("stat-new-figures") == nullptr);
  // A user's array that is sized by the library has an entry for every tag, none of them empty.
  const char* mine[seventeen_names.size()] = {};
  for (std::size_t i = 0; i < std::size(mine); ++i) mine[i] = seventeen_names[i];
  for (const char* name : mine) check(name != nullptr && *name != '\0');
};
BOTH("a seventeenth tag breaks no table, no look-up and no array of names", one_more_tag)

TEST_CASE("the names are there at run time, whatever index comes from outside") {
  std::size_t right = 0;
  for (std::size_t i = 0; i < 65536; ++i)
    right += (statistic_names[i] != nullptr) == (i < statistic_count);
  CHECK(right == 65536);
}

} // namespace
