// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/protocol.hpp>

#include "support/check.hpp"

#include <string_view>

namespace {

using namespace ballast::balloon;
using ballast::error;
using ballast::feature_set;
using std::string_view_literals::operator""sv;

constexpr auto features_have_names = [](auto check) {
  check(device_id == 5);
  check(feature::name(0) == "VIRTIO_BALLOON_F_MUST_TELL_HOST"sv);
  check(feature::name(1) == "VIRTIO_BALLOON_F_STATS_VQ"sv);
  check(feature::name(2) == "VIRTIO_BALLOON_F_DEFLATE_ON_OOM"sv);
  check(feature::name(3) == "VIRTIO_BALLOON_F_FREE_PAGE_HINT"sv);
  check(feature::name(4) == "VIRTIO_BALLOON_F_PAGE_POISON"sv);
  check(feature::name(5) == "VIRTIO_BALLOON_F_PAGE_REPORTING"sv);
  for (unsigned bit = 0; bit < 5; ++bit)
    check(feature::linux_name(bit) == std::string_view(feature::name(bit)));
  check(feature::linux_name(5) == "VIRTIO_BALLOON_F_REPORTING"sv);
  for (unsigned bit = 6; bit < 300; ++bit)
    check(feature::name(bit) == nullptr && feature::linux_name(bit) == nullptr);
};
BOTH("features have the specification's names and Linux's; bit 6 and above have none",
     features_have_names)

constexpr auto configuration_starts_empty = [](auto check) {
  constexpr config empty;
  check(empty.num_pages == 0 && empty.actual == 0);
  check(empty.free_page_hint_cmd_id == 0 && empty.poison_val == 0);
  config c;
  c.num_pages = 0x01020304;
  check(c.num_pages == 0x01020304 && c.actual == 0);
  c.free_page_hint_cmd_id = 0x80000001;
  check(c.num_pages == 0x01020304 && c.free_page_hint_cmd_id == 0x80000001);
};
BOTH("a configuration is zero at first and holds what is assigned", configuration_starts_empty)

TEST_CASE("the configuration is little-endian bytes at fixed offsets") {
  config c;
  c.num_pages = 0x04030201;
  c.actual = 0x08070605;
  c.free_page_hint_cmd_id = 0x0c0b0a09;
  c.poison_val = 0x100f0e0d;
  const auto* bytes = reinterpret_cast<const unsigned char*>(&c);
  for (unsigned i = 0; i < 16; ++i) CHECK(bytes[i] == i + 1);
  CHECK(c.free_page_report_cmd_id == 0x0c0b0a09); // the older name is the same field
}

constexpr auto configuration_sizes = [](auto check) {
  // Every subset of the features that exist, and a bit without a name.
  for (unsigned bits = 0; bits < 128; ++bits) {
    feature_set offered;
    for (unsigned bit = 0; bit < 7; ++bit)
      if (((bits >> bit) & 1) != 0) offered.set(bit);
    const bool has_hint = (bits & 0x08) != 0;
    const bool has_poison = (bits & 0x10) != 0;
    check(config_size(offered) == (has_poison ? 16u : has_hint ? 12u : 8u));
  }
};
BOTH("RT-32: the size shown is 8, 12 with hints, 16 with poison", configuration_sizes)

constexpr auto writable_fields = [](auto check) {
  for (std::uint32_t at = 0; at < 40; ++at) {
    const bool is_actual = at >= 4 && at < 8;
    const bool is_poison = at >= 12 && at < 16;
    check(is_driver_writable(at, {}) == is_actual);
    check(is_driver_writable(at, {0, 1, 2, 3, 5, 6, 32}) == is_actual);
    check(is_driver_writable(at, {feature::page_poison}) == (is_actual || is_poison));
  }
  check(!is_driver_writable(UINT32_MAX, {feature::page_poison}));
};
BOTH("RT-40: a driver writes `actual`, and with PAGE_POISON `poison_val`, and nothing else",
     writable_fields)

constexpr auto command_ids = [](auto check) {
  check(command_id::stop == 0 && command_id::done == 1 && command_id::first == 2);
  check(command_id::next(0) == 2);
  check(command_id::next(1) == 2);
  check(command_id::next(2) == 3);
  check(command_id::next(0x80000000) == 0x80000001);
  check(command_id::next(0xfffffffe) == 0xffffffff);
  check(command_id::next(0xffffffff) == 2);
};
BOTH("the next command id is never stop nor done, over the end too", command_ids)

constexpr auto page_numbers = [](auto check) {
  check(pfn_shift == 12 && page_size == 4096 && array_pfns_max == 256);
  check(address_of(0) == 0);
  check(address_of(1) == 4096);
  check(address_of(0xffffffff) == 0xffffffff000);
  check(*pfn_of(0) == 0 && pfn_of(0).has_value());
  check(*pfn_of(4095) == 0);
  check(*pfn_of(4096) == 1);
  check(*pfn_of(0xfffffffffff) == 0xffffffff);
  check(pfn_of(0x100000000000).error() == error::page_out_of_range);
  check(pfn_of(UINT64_MAX).error() == error::page_out_of_range);
  for (unsigned bit = 0; bit < 32; ++bit) check(*pfn_of(address_of(1u << bit)) == 1u << bit);
};
BOTH("a PFN and an address convert; from 16 TiB on there is no PFN", page_numbers)

constexpr auto balloon_sizes = [](auto check) {
  check(balloon_pages_max == 0xffffffff);
  check(bytes_of(0) == 0);
  check(bytes_of(balloon_pages_max) == (std::uint64_t{16} << 40) - 4096);
  check(*pages_in(0) == 0 && pages_in(0).has_value());
  check(*pages_in(4095) == 0);
  check(*pages_in(8191) == 1);
  check(*pages_in((std::uint64_t{16} << 40) - 1) == balloon_pages_max);
  check(pages_in(std::uint64_t{16} << 40).error() == error::target_too_large);
  check(pages_in(UINT64_MAX).error() == error::target_too_large);
};
BOTH("a size in bytes becomes whole pages, and is refused rather than truncated", balloon_sizes)

constexpr auto queues_have_names = [](auto check) {
  check(name(queue_kind::inflate) == "inflateq"sv);
  check(name(queue_kind::deflate) == "deflateq"sv);
  check(name(queue_kind::statistics) == "statsq"sv);
  check(name(queue_kind::free_page) == "free_page_vq"sv);
  check(name(queue_kind::reporting) == "reporting_vq"sv);
  check(name(static_cast<queue_kind>(5)) == nullptr);
  check(!has_queue(static_cast<queue_kind>(5), {0, 1, 2, 3, 4, 5}));
  check(queue_size_min(queue_kind::inflate) == 1 && queue_size_min(queue_kind::statistics) == 1);
  check(queue_size_min(queue_kind::free_page) == 2);
  check(queue_size_min(queue_kind::reporting) == 32);
};
BOTH("queues have the specification's names, and sizes that Linux accepts", queues_have_names)

// Where statsq, free_page_vq and reporting_vq are, `-` for nowhere, for every set of features
// offered and negotiated: S stands for STATS_VQ, H for FREE_PAGE_HINT, R for PAGE_REPORTING.
struct matrix_row {
  std::string_view offered;
  std::string_view negotiated;
  std::string_view fixed;
  std::string_view by_offered;
  std::string_view by_negotiated;
};
constexpr matrix_row matrix[] = {
    {"", "", "---", "---", "---"},       {"S", "", "---", "---", "---"},
    {"S", "S", "2--", "2--", "2--"},     {"H", "", "---", "---", "---"},
    {"H", "H", "-3-", "-2-", "-2-"},     {"R", "", "---", "---", "---"},
    {"R", "R", "--4", "--2", "--2"},     {"SH", "", "---", "---", "---"},
    {"SH", "S", "2--", "2--", "2--"},    {"SH", "H", "-3-", "-3-", "-2-"},
    {"SH", "SH", "23-", "23-", "23-"},   {"SR", "", "---", "---", "---"},
    {"SR", "S", "2--", "2--", "2--"},    {"SR", "R", "--4", "--3", "--2"},
    {"SR", "SR", "2-4", "2-3", "2-3"},   {"HR", "", "---", "---", "---"},
    {"HR", "H", "-3-", "-2-", "-2-"},    {"HR", "R", "--4", "--3", "--2"},
    {"HR", "HR", "-34", "-23", "-23"},   {"SHR", "", "---", "---", "---"},
    {"SHR", "S", "2--", "2--", "2--"},   {"SHR", "H", "-3-", "-3-", "-2-"},
    {"SHR", "R", "--4", "--4", "--2"},   {"SHR", "SH", "23-", "23-", "23-"},
    {"SHR", "SR", "2-4", "2-4", "2-3"},  {"SHR", "HR", "-34", "-34", "-23"},
    {"SHR", "SHR", "234", "234", "234"},
};
static_assert(std::size(matrix) == 27); // 3^3: not offered, offered, negotiated

constexpr feature_set features_of(std::string_view letters) {
  // Features without a queue of their own change nothing.
  feature_set features{feature::must_tell_host, feature::deflate_on_oom, feature::page_poison, 32};
  for (const char c : letters)
    features.set(c == 'S'   ? feature::stats_vq
                 : c == 'H' ? feature::free_page_hint
                            : feature::page_reporting);
  return features;
}

constexpr auto every_queue_index = [](auto check) {
  for (const matrix_row& row : matrix) {
    const feature_set offered = features_of(row.offered);
    const feature_set negotiated = features_of(row.negotiated);
    const std::string_view expected[] = {row.fixed, row.by_offered, row.by_negotiated};
    for (std::size_t n = 0; n < 3; ++n) {
      const auto numbering = static_cast<queue_numbering>(n);
      check(*queue_index(queue_kind::inflate, numbering, offered, negotiated) == 0);
      check(*queue_index(queue_kind::deflate, numbering, offered, negotiated) == 1);
      queue_kind kinds[8]{};
      bool is_used[8] = {true, true};
      kinds[1] = queue_kind::deflate;
      for (std::size_t q = 0; q < 3; ++q) {
        const auto kind = static_cast<queue_kind>(2 + q);
        const auto index = queue_index(kind, numbering, offered, negotiated);
        if (expected[n][q] == '-') {
          check(index.error() == error::not_negotiated);
          continue;
        }
        const auto at = static_cast<std::size_t>(expected[n][q] - '0');
        check(index.has_value() && *index == at);
        kinds[at] = kind;
        is_used[at] = true;
      }
      for (std::uint16_t at = 0; at < 8; ++at) {
        const auto kind = queue_kind_of(at, numbering, offered, negotiated);
        check(is_used[at] ? kind.has_value() && *kind == kinds[at]
                          : kind.error() == error::invalid_queue_index);
      }
    }
  }
};
BOTH("RT-48: every queue has the index of the matrix, and every index its queue, in all numberings",
     every_queue_index)

constexpr auto worked_rows = [](auto check) {
  const auto at = [](queue_kind kind, queue_numbering numbering, std::string_view offered,
                     std::string_view negotiated) {
    return *queue_index(kind, numbering, features_of(offered), features_of(negotiated));
  };
  constexpr auto fixed = queue_numbering::fixed;
  constexpr auto by_offered = queue_numbering::by_offered;
  constexpr auto by_negotiated = queue_numbering::by_negotiated;
  constexpr auto hint = queue_kind::free_page;
  constexpr auto reporting = queue_kind::reporting;
  for (const auto numbering : {fixed, by_offered, by_negotiated}) {
    check(at(hint, numbering, "SHR", "SHR") == 3);
    check(at(reporting, numbering, "SHR", "SHR") == 4);
  }
  check(at(reporting, fixed, "SR", "SR") == 4);
  check(at(reporting, by_offered, "SR", "SR") == 3);
  check(at(reporting, by_negotiated, "SR", "SR") == 3);
  check(at(reporting, fixed, "R", "R") == 4);
  check(at(reporting, by_offered, "R", "R") == 2);
  check(at(reporting, by_negotiated, "R", "R") == 2);
  check(at(hint, fixed, "H", "H") == 3);
  check(at(hint, by_offered, "H", "H") == 2);
  check(at(hint, by_negotiated, "H", "H") == 2);
  // The two compressed numberings part where a driver skips a feature in the middle.
  check(at(reporting, fixed, "SHR", "SR") == 4);
  check(at(reporting, by_offered, "SHR", "SR") == 4);
  check(at(reporting, by_negotiated, "SHR", "SR") == 3);
  check(at(reporting, fixed, "SR", "R") == 4);
  check(at(reporting, by_offered, "SR", "R") == 3);
  check(at(reporting, by_negotiated, "SR", "R") == 2);
};
BOTH("RT-48: reporting and hinting are where the known devices and drivers expect them",
     worked_rows)

constexpr auto negotiated_but_not_offered = [](auto check) {
  for (const auto numbering :
       {queue_numbering::fixed, queue_numbering::by_offered, queue_numbering::by_negotiated}) {
    check(queue_index(queue_kind::statistics, numbering, {}, {feature::stats_vq}).error() ==
          error::not_negotiated);
    // Nor does it move the queues behind it.
    const feature_set offered{feature::page_reporting};
    check(queue_index(queue_kind::reporting, numbering, offered, offered.with(feature::stats_vq))
              .has_value());
    check(
        *queue_index(queue_kind::reporting, numbering, offered, offered.with(feature::stats_vq)) ==
        (numbering == queue_numbering::fixed ? 4 : 2));
  }
};
BOTH("a queue that was not offered has no index, whatever was accepted", negotiated_but_not_offered)

constexpr auto queue_counts = [](auto check) {
  struct {
    std::string_view offered;
    std::uint16_t fixed;
    std::uint16_t compressed;
  } const rows[] = {{"", 2, 2},   {"S", 3, 3},  {"H", 4, 3},  {"R", 5, 3},
                    {"SH", 4, 4}, {"SR", 5, 4}, {"HR", 5, 4}, {"SHR", 5, 5}};
  for (const auto& row : rows) {
    const feature_set offered = features_of(row.offered);
    check(queue_count(queue_numbering::fixed, offered) == row.fixed);
    check(queue_count(queue_numbering::by_offered, offered) == row.compressed);
    check(queue_count(queue_numbering::by_negotiated, offered) == row.compressed);
  }
};
BOTH("a device has as many indices as its highest queue needs", queue_counts)

} // namespace
