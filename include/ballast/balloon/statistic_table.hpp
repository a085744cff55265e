// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace ballast::balloon {

/// What a driver reports about its memory. Values are totals since boot (counters) or what holds
/// now (gauges): `statistic_table` says which, and in which unit.
/// Spec: "Memory Statistics Tags" (0 to 9); Linux: VIRTIO_BALLOON_S_* (all of them).
enum class statistic_tag : std::uint16_t {
  swap_in,
  swap_out,
  major_faults,
  minor_faults,
  free_memory,
  total_memory,
  available_memory,
  disk_caches,
  hugetlb_allocations,
  hugetlb_failures,
  oom_kills,
  alloc_stalls,
  async_scans,
  direct_scans,
  async_reclaims,
  direct_reclaims,
  count, ///< not a tag: how many there are; a new tag goes before it and gets a row in the table
};

/// How many tags this library knows. Linux: VIRTIO_BALLOON_S_NR.
///
/// It grows with the protocol. Size arrays by it and never by a number, and go from a tag off the
/// wire to an index only through functions of this file: they answer for tags beyond the table.
inline constexpr std::size_t statistic_count = static_cast<std::size_t>(statistic_tag::count);

enum class statistic_unit : std::uint8_t { bytes, events };
enum class statistic_kind : std::uint8_t {
  counter, ///< only grows, until the guest boots again
  gauge,
};

/// One tag under every name it goes by.
struct statistic_info {
  statistic_tag tag;
  const char* identifier;       ///< of Linux's header
  const char* older_identifier; ///< what the commit that added it says, where it differs, or null
  const char* name;             ///< in VIRTIO_BALLOON_S_NAMES
  const char* qemu_key;         ///< in the guest-stats property
  const char* firecracker_key;  ///< in GET /balloon/statistics
  const char* libvirt_key;      ///< in `virsh dommemstat`; null where libvirt has none
  std::uint16_t libvirt_scale;  ///< libvirt's figure is the value divided by this; 0 without a key
  statistic_unit unit;
  statistic_kind kind;
};

/// THE table: row i describes tag i.
///
/// Beware of three names. libvirt's `available` is the total, its `usable` what is available.
/// Linux counts every fault, the major ones too, as minor. Linux shrinks the total by the balloon
/// unless DEFLATE_ON_OOM was negotiated.
inline constexpr statistic_info statistic_table[] = {
    {statistic_tag::swap_in, "VIRTIO_BALLOON_S_SWAP_IN", nullptr, "swap-in", "stat-swap-in",
     "swap_in", "swap_in", 1024, statistic_unit::bytes, statistic_kind::counter},
    {statistic_tag::swap_out, "VIRTIO_BALLOON_S_SWAP_OUT", nullptr, "swap-out", "stat-swap-out",
     "swap_out", "swap_out", 1024, statistic_unit::bytes, statistic_kind::counter},
    {statistic_tag::major_faults, "VIRTIO_BALLOON_S_MAJFLT", nullptr, "major-faults",
     "stat-major-faults", "major_faults", "major_fault", 1, statistic_unit::events,
     statistic_kind::counter},
    {statistic_tag::minor_faults, "VIRTIO_BALLOON_S_MINFLT", nullptr, "minor-faults",
     "stat-minor-faults", "minor_faults", "minor_fault", 1, statistic_unit::events,
     statistic_kind::counter},
    {statistic_tag::free_memory, "VIRTIO_BALLOON_S_MEMFREE", nullptr, "free-memory",
     "stat-free-memory", "free_memory", "unused", 1024, statistic_unit::bytes,
     statistic_kind::gauge},
    {statistic_tag::total_memory, "VIRTIO_BALLOON_S_MEMTOT", nullptr, "total-memory",
     "stat-total-memory", "total_memory", "available", 1024, statistic_unit::bytes,
     statistic_kind::gauge},
    {statistic_tag::available_memory, "VIRTIO_BALLOON_S_AVAIL", nullptr, "available-memory",
     "stat-available-memory", "available_memory", "usable", 1024, statistic_unit::bytes,
     statistic_kind::gauge},
    {statistic_tag::disk_caches, "VIRTIO_BALLOON_S_CACHES", nullptr, "disk-caches",
     "stat-disk-caches", "disk_caches", "disk_caches", 1024, statistic_unit::bytes,
     statistic_kind::gauge},
    {statistic_tag::hugetlb_allocations, "VIRTIO_BALLOON_S_HTLB_PGALLOC", nullptr,
     "hugetlb-allocations", "stat-htlb-pgalloc", "hugetlb_allocations", "hugetlb_pgalloc", 1,
     statistic_unit::events, statistic_kind::counter},
    {statistic_tag::hugetlb_failures, "VIRTIO_BALLOON_S_HTLB_PGFAIL", nullptr, "hugetlb-failures",
     "stat-htlb-pgfail", "hugetlb_failures", "hugetlb_pgfail", 1, statistic_unit::events,
     statistic_kind::counter},
    {statistic_tag::oom_kills, "VIRTIO_BALLOON_S_OOM_KILL", nullptr, "oom-kills", "stat-oom-kills",
     "oom_kill", nullptr, 0, statistic_unit::events, statistic_kind::counter},
    {statistic_tag::alloc_stalls, "VIRTIO_BALLOON_S_ALLOC_STALL", nullptr, "alloc-stalls",
     "stat-alloc-stalls", "alloc_stall", nullptr, 0, statistic_unit::events,
     statistic_kind::counter},
    {statistic_tag::async_scans, "VIRTIO_BALLOON_S_ASYNC_SCAN", "VIRTIO_BALLOON_S_SCAN_ASYNC",
     "async-scans", "stat-async-scans", "async_scan", nullptr, 0, statistic_unit::bytes,
     statistic_kind::counter},
    {statistic_tag::direct_scans, "VIRTIO_BALLOON_S_DIRECT_SCAN", "VIRTIO_BALLOON_S_SCAN_DIRECT",
     "direct-scans", "stat-direct-scans", "direct_scan", nullptr, 0, statistic_unit::bytes,
     statistic_kind::counter},
    {statistic_tag::async_reclaims, "VIRTIO_BALLOON_S_ASYNC_RECLAIM",
     "VIRTIO_BALLOON_S_RECLAIM_ASYNC", "async-reclaims", "stat-async-reclaims", "async_reclaim",
     nullptr, 0, statistic_unit::bytes, statistic_kind::counter},
    {statistic_tag::direct_reclaims, "VIRTIO_BALLOON_S_DIRECT_RECLAIM",
     "VIRTIO_BALLOON_S_RECLAIM_DIRECT", "direct-reclaims", "stat-direct-reclaims", "direct_reclaim",
     nullptr, 0, statistic_unit::bytes, statistic_kind::counter},
};

/// Whether row i describes tag i and every row has its names.
[[nodiscard]] constexpr bool is_dense(std::span<const statistic_info> table) noexcept {
  for (std::size_t i = 0; i < table.size(); ++i) {
    const statistic_info& row = table[i];
    if (static_cast<std::size_t>(row.tag) != i || row.identifier == nullptr ||
        row.name == nullptr || row.qemu_key == nullptr || row.firecracker_key == nullptr)
      return false;
  }
  return true;
}
static_assert(std::size(statistic_table) == statistic_count, "a tag without a row, or the reverse");
static_assert(is_dense(statistic_table));

/// The row of a tag; null for one that `table` does not have, whatever its number.
[[nodiscard]] constexpr const statistic_info*
find_statistic(statistic_tag tag,
               std::span<const statistic_info> table = statistic_table) noexcept {
  const auto i = static_cast<std::size_t>(tag);
  return i < table.size() ? &table[i] : nullptr;
}

/// The row that goes by `text`: Linux's identifier or an older one, the name, QEMU's or
/// Firecracker's key; null where there is none. libvirt's keys are not looked at: its `available`
/// means the total.
[[nodiscard]] constexpr const statistic_info*
find_statistic(std::span<const char> text,
               std::span<const statistic_info> table = statistic_table) noexcept {
  const auto is = [text](const char* name) {
    if (name == nullptr) return false;
    for (const char c : text)
      if (*name == '\0' || *name++ != c) return false;
    return *name == '\0';
  };
  for (const statistic_info& row : table)
    if (is(row.identifier) || is(row.older_identifier) || is(row.name) || is(row.qemu_key) ||
        is(row.firecracker_key))
      return &row;
  return nullptr;
}

/// The same for text that ends in a zero; null stands for no text.
[[nodiscard]] constexpr const statistic_info*
find_statistic(const char* text, std::span<const statistic_info> table = statistic_table) noexcept {
  std::size_t n = 0;
  while (text != nullptr && text[n] != '\0') ++n;
  return find_statistic(std::span(text, n), table);
}

/// As many names as a table has rows, each with the same prefix; made at compile time.
/// `Size` is the room for one of them in bytes, with its ending zero.
template <std::size_t Count, std::size_t Size> class statistic_name_list {
 public:
  template <std::size_t N>
  consteval statistic_name_list(const statistic_info (&table)[Count],
                                const char (&prefix)[N]) noexcept {
    for (std::size_t i = 0; i < Count; ++i) {
      std::size_t to = 0;
      for (std::size_t from = 0; from + 1 < N; ++from) text_[i][to++] = prefix[from];
      for (const char* from = table[i].name; *from != '\0'; ++from) text_[i][to++] = *from;
    }
  }

  [[nodiscard]] static constexpr std::size_t size() noexcept { return Count; }

  /// The name of tag i; null where the table has no such tag.
  [[nodiscard]] constexpr const char* operator[](std::size_t i) const noexcept {
    return i < Count ? text_[i] : nullptr;
  }

 private:
  char text_[Count][Size]{};
};

/// The longest that a name may be, without an ending zero.
inline constexpr std::size_t statistic_name_max = 31;

/// The names of all tags with a prefix, for keys of an own making.
///
///     inline constexpr auto keys = names_with_prefix("guest_");  // keys[0] is "guest_swap-in"
///
/// Linux: VIRTIO_BALLOON_S_NAMES_WITH_PREFIX().
template <std::size_t N, std::size_t Count>
[[nodiscard]] consteval auto names_with_prefix(const char (&prefix)[N],
                                               const statistic_info (&table)[Count]) noexcept {
  return statistic_name_list<Count, N + statistic_name_max>(table, prefix);
}
template <std::size_t N>
[[nodiscard]] consteval auto names_with_prefix(const char (&prefix)[N]) noexcept {
  return names_with_prefix(prefix, statistic_table);
}

/// The names as they are. Linux: VIRTIO_BALLOON_S_NAMES.
inline constexpr auto statistic_names = names_with_prefix("");

/// Writes `prefix` and the name into `to`, with an ending zero. The length without that zero.
/// Errors: buffer_too_small (then `to` is unchanged).
[[nodiscard]] constexpr result<std::size_t>
write_name(const statistic_info& row, const char* prefix, std::span<char> to) noexcept {
  std::size_t length = 0;
  for (const char* part : {prefix, row.name})
    for (; *part != '\0'; ++part) ++length;
  if (length >= to.size()) return error::buffer_too_small;
  std::size_t i = 0;
  for (const char* part : {prefix, row.name})
    for (; *part != '\0'; ++part) to[i++] = *part;
  to[i] = '\0';
  return length;
}

} // namespace ballast::balloon
