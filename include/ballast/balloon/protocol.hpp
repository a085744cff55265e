// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ballast::balloon {

/// Spec: "Traditional Memory Balloon Device".
inline constexpr std::uint32_t device_id = 5;

/// Not to be mixed with `ballast::feature`, the bits of the ring and the transport: with both
/// namespaces used, write `balloon::feature`. Spec: "Traditional Memory Balloon Device / Feature
/// bits".
namespace feature {

inline constexpr unsigned must_tell_host = 0; ///< deflated pages wait for the device
inline constexpr unsigned stats_vq = 1;       ///< statsq
inline constexpr unsigned deflate_on_oom = 2; ///< the driver may take pages back when out of memory
inline constexpr unsigned free_page_hint = 3; ///< free_page_vq, free_page_hint_cmd_id
inline constexpr unsigned page_poison = 4;    ///< poison_val
inline constexpr unsigned page_reporting = 5; ///< reporting_vq; Linux says REPORTING
// Bit 6 has no name: more than one proposal claims it.

/// The specification's name of a balloon feature bit; null for any other bit.
[[nodiscard]] constexpr const char* name(unsigned bit) noexcept {
  switch (bit) {
  case must_tell_host: return "VIRTIO_BALLOON_F_MUST_TELL_HOST";
  case stats_vq: return "VIRTIO_BALLOON_F_STATS_VQ";
  case deflate_on_oom: return "VIRTIO_BALLOON_F_DEFLATE_ON_OOM";
  case free_page_hint: return "VIRTIO_BALLOON_F_FREE_PAGE_HINT";
  case page_poison: return "VIRTIO_BALLOON_F_PAGE_POISON";
  case page_reporting: return "VIRTIO_BALLOON_F_PAGE_REPORTING";
  default: return nullptr;
  }
}

/// The name in Linux's header, which differs for `page_reporting`; null for any other bit.
[[nodiscard]] constexpr const char* linux_name(unsigned bit) noexcept {
  return bit == page_reporting ? "VIRTIO_BALLOON_F_REPORTING" : name(bit);
}

} // namespace feature

/// The configuration space. Little-endian always, for legacy drivers too, unlike every other
/// device. Spec: "Device configuration layout"; Linux: struct virtio_balloon_config.
struct config {
  le32 num_pages; ///< of the device: the wanted balloon size, pages of 4096 bytes
  le32 actual;    ///< of the driver: the balloon size, pages of 4096 bytes
  union {
    le32 free_page_hint_cmd_id;   ///< of the device: `command_id`
    le32 free_page_report_cmd_id; ///< what that was called before
  };
  le32 poison_val; ///< of the driver, before DRIVER_OK: what free pages are filled with

  constexpr config() noexcept : free_page_hint_cmd_id() {}
};
static_assert(sizeof(config) == 16 && alignof(config) == 1);
static_assert(std::is_trivially_copyable_v<config> && std::is_standard_layout_v<config>);
static_assert(offsetof(config, num_pages) == 0);
static_assert(offsetof(config, actual) == 4);
static_assert(offsetof(config, free_page_hint_cmd_id) == 8);
static_assert(offsetof(config, free_page_report_cmd_id) == 8);
static_assert(offsetof(config, poison_val) == 12);

/// How many bytes of `config` a device shows that offers these features: up to the last field
/// that one of them adds. The device in QEMU does the same; others show more, so a driver reads
/// with "at least".
[[nodiscard]] constexpr std::uint32_t config_size(const feature_set& offered) noexcept {
  if (offered.test(feature::page_poison)) return 16;
  return offered.test(feature::free_page_hint) ? 12 : 8;
}

/// Whether a driver may write the byte at `offset` of the configuration space: those of `actual`,
/// and those of `poison_val` once PAGE_POISON is negotiated. A write elsewhere changes nothing.
[[nodiscard]] constexpr bool is_driver_writable(std::uint32_t offset,
                                                const feature_set& negotiated) noexcept {
  if (offset >= offsetof(config, poison_val))
    return offset < sizeof(config) && negotiated.test(feature::page_poison);
  return offset >= offsetof(config, actual) && offset < offsetof(config, free_page_hint_cmd_id);
}

/// What `free_page_hint_cmd_id` says. Spec: "Free Page Hinting".
namespace command_id {

inline constexpr std::uint32_t stop = 0;  ///< stop hinting, keep the hinted pages
inline constexpr std::uint32_t done = 1;  ///< the hinted pages may be used again
inline constexpr std::uint32_t first = 2; ///< from here on: the id of a round to start

/// The id after `id`, over the end to `first`: never `stop` nor `done`.
[[nodiscard]] constexpr std::uint32_t next(std::uint32_t id) noexcept {
  return id < first || id == UINT32_MAX ? first : id + 1;
}

} // namespace command_id

/// Balloon pages are 4096 bytes, whatever the pages of guest and host are.
/// Linux: VIRTIO_BALLOON_PFN_SHIFT.
inline constexpr unsigned pfn_shift = 12;
inline constexpr std::uint32_t page_size = 1u << pfn_shift;

/// The most PFNs that Linux puts into one buffer (others send more).
/// Linux: VIRTIO_BALLOON_ARRAY_PFNS_MAX.
inline constexpr std::uint32_t array_pfns_max = 256;

/// The most pages that a balloon holds: all that have a PFN but one, 16 TiB - 4 KiB.
inline constexpr std::uint32_t balloon_pages_max = UINT32_MAX;

[[nodiscard]] constexpr guest_address address_of(std::uint32_t pfn) noexcept {
  return guest_address{pfn} << pfn_shift;
}

/// The PFN of the page that `a` lies in.
/// Errors: page_out_of_range (at 16 TiB and above there are none).
[[nodiscard]] constexpr result<std::uint32_t> pfn_of(guest_address a) noexcept {
  if ((a >> pfn_shift) > UINT32_MAX) return error::page_out_of_range;
  return static_cast<std::uint32_t>(a >> pfn_shift);
}

[[nodiscard]] constexpr std::uint64_t bytes_of(std::uint32_t pages) noexcept {
  return std::uint64_t{pages} << pfn_shift;
}

/// The whole pages in `bytes`, for a target.
/// Errors: target_too_large (more than `balloon_pages_max`; not truncated).
[[nodiscard]] constexpr result<std::uint32_t> pages_in(std::uint64_t bytes) noexcept {
  if ((bytes >> pfn_shift) > balloon_pages_max) return error::target_too_large;
  return static_cast<std::uint32_t>(bytes >> pfn_shift);
}

/// The queues in the order of the specification's list. Spec: "Virtqueues".
enum class queue_kind : std::uint8_t { inflate, deflate, statistics, free_page, reporting };
inline constexpr std::uint16_t queue_kind_count = 5;

/// The specification's name; null for a value that is no queue.
[[nodiscard]] constexpr const char* name(queue_kind kind) noexcept {
  switch (kind) {
  case queue_kind::inflate: return "inflateq";
  case queue_kind::deflate: return "deflateq";
  case queue_kind::statistics: return "statsq";
  case queue_kind::free_page: return "free_page_vq";
  case queue_kind::reporting: return "reporting_vq";
  }
  return nullptr;
}

/// Whether a queue exists with these features.
[[nodiscard]] constexpr bool has_queue(queue_kind kind, const feature_set& features) noexcept {
  switch (kind) {
  case queue_kind::inflate:
  case queue_kind::deflate: return true;
  case queue_kind::statistics: return features.test(feature::stats_vq);
  case queue_kind::free_page: return features.test(feature::free_page_hint);
  case queue_kind::reporting: return features.test(feature::page_reporting);
  }
  return false;
}

/// The fewest entries with which Linux accepts a queue: its probe fails on less.
[[nodiscard]] constexpr std::uint32_t queue_size_min(queue_kind kind) noexcept {
  switch (kind) {
  case queue_kind::free_page: return 2;  // one descriptor stays free for the command
  case queue_kind::reporting: return 32; // Linux: PAGE_REPORTING_CAPACITY
  default: return 1;
  }
}

/// Which index a queue has where one before it in the list is missing: not agreed upon.
enum class queue_numbering : std::uint8_t {
  /// The place in the specification's list, with gaps. Spec: "Virtqueues"; few do it.
  fixed,
  /// The place among the queues whose feature the device offers: QEMU, Firecracker, Cloud
  /// Hypervisor, crosvm. (QEMU has its statsq always, but offers STATS_VQ always too.)
  by_offered,
  /// The place among the queues whose feature was negotiated: Linux, whose choice of features makes
  /// it agree with `by_offered`.
  by_negotiated,
};

/// The index of a queue.
/// Errors: not_negotiated (there is no such queue with these features).
[[nodiscard]] constexpr result<std::uint16_t> queue_index(queue_kind kind,
                                                          queue_numbering numbering,
                                                          const feature_set& offered,
                                                          const feature_set& negotiated) noexcept {
  if (!has_queue(kind, offered) || !has_queue(kind, negotiated)) return error::not_negotiated;
  const auto place = static_cast<std::uint16_t>(kind);
  if (numbering == queue_numbering::fixed) return place;
  std::uint16_t index = 0;
  for (std::uint16_t i = 0; i < place; ++i) {
    const auto earlier = static_cast<queue_kind>(i);
    const bool counts = has_queue(earlier, offered) && (numbering == queue_numbering::by_offered ||
                                                        has_queue(earlier, negotiated));
    index = static_cast<std::uint16_t>(index + counts);
  }
  return index;
}

/// Which queue an index stands for: the inverse of `queue_index`.
/// Errors: invalid_queue_index (no queue, or one that was not negotiated).
[[nodiscard]] constexpr result<queue_kind> queue_kind_of(std::uint16_t index,
                                                         queue_numbering numbering,
                                                         const feature_set& offered,
                                                         const feature_set& negotiated) noexcept {
  for (std::uint16_t i = 0; i < queue_kind_count; ++i) {
    const auto kind = static_cast<queue_kind>(i);
    const auto at = queue_index(kind, numbering, offered, negotiated);
    if (at && *at == index) return kind;
  }
  return error::invalid_queue_index;
}

/// How many indices a device has queues at: one more than the highest, gaps of `fixed` included.
/// What is not offered can't be negotiated, so this holds for every driver.
[[nodiscard]] constexpr std::uint16_t queue_count(queue_numbering numbering,
                                                  const feature_set& offered) noexcept {
  std::uint16_t count = 0;
  for (std::uint16_t i = 0; i < queue_kind_count; ++i) {
    const auto index = queue_index(static_cast<queue_kind>(i), numbering, offered, offered);
    if (index) count = static_cast<std::uint16_t>(*index + 1);
  }
  return count;
}

} // namespace ballast::balloon
