// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/driver_options.hpp>

#include "support/check.hpp"
#include "support/open_device.hpp"

#include <ballast/memory/array_memory.hpp>

#include <cstdint>
#include <initializer_list>

namespace {

using namespace ballast;
using balloon::driver_options;
using balloon::queue_kind;
using balloon::queue_numbering;
namespace bits = balloon::feature;

using ram_type = array_memory<4096>;
using device_type = ballast_test::open_device<ram_type>;

constexpr feature_set all{bits::must_tell_host, bits::stats_vq,       bits::free_page_hint,
                          bits::page_poison,    bits::page_reporting, feature::event_idx};

constexpr auto poison = [](auto check) {
  check(balloon::accepted_features({}, all) == all.without(bits::page_poison));
  check(balloon::accepted_features({.has_poison = true}, all) == all);
  check(balloon::accepted_features({.accepted = {bits::stats_vq}, .has_poison = true}, all) ==
        feature_set{bits::stats_vq});
  check(balloon::accepted_features({.has_poison = true}, {bits::page_poison}) ==
        feature_set{bits::page_poison});
  check(!balloon::accepted_features({}, all.with(bits::deflate_on_oom)).test(bits::deflate_on_oom));
};
BOTH("BDRV-2: a driver whose free pages hold no value accepts no PAGE_POISON", poison)

constexpr auto reporting = [](auto check) {
  const feature_set reports{bits::page_reporting};
  const feature_set both{bits::page_reporting, bits::page_poison};
  const auto with = balloon::dependencies_of({.has_poison = true}),
             without = balloon::dependencies_of({});
  check(drop_unmet_dependencies(reports, with).empty());
  check(drop_unmet_dependencies(both, with) == both);
  check(drop_unmet_dependencies(reports, without) == reports);
  // The others stay what they are.
  const feature_set legacy{feature::in_order, bits::page_reporting, bits::page_poison};
  check(drop_unmet_dependencies(legacy, with) == both);
  check(with.size() == without.size() + 1);
};
BOTH("BDRV-3: a driver with poison accepts no PAGE_REPORTING without PAGE_POISON", reporting)

/// Bits 0 to 2 of `mask` are the three queues that may be missing.
constexpr feature_set queues_of(unsigned mask) {
  feature_set f;
  const unsigned optional[] = {bits::stats_vq, bits::free_page_hint, bits::page_reporting};
  for (unsigned i = 0; i < 3; ++i)
    if ((mask >> i & 1) != 0) f.set(optional[i]);
  return f;
}

/// The queues of a device that numbers like this; what was negotiated counts for one kind only.
constexpr void lay_out(device_type& device, queue_numbering numbering, const feature_set& offered,
                       const feature_set& negotiated) {
  device.sizes = {};
  const feature_set& has = numbering == queue_numbering::by_negotiated ? negotiated : offered;
  for (std::uint16_t i = 0; i < balloon::queue_kind_count; ++i) {
    const auto at = queue_index(static_cast<queue_kind>(i), numbering, has, has);
    if (at) device.sizes[*at] = 64;
  }
}

/// How many of the pairs of what is offered and what is accepted lead to another queue than the
/// device's.
constexpr unsigned misses(queue_numbering of_device, queue_numbering otherwise) {
  ram_type ram;
  device_type device(ram);
  unsigned wrong = 0;
  for (unsigned offers = 0; offers < 8; ++offers)
    for (unsigned accepts = 0; accepts < 8; ++accepts) {
      const feature_set offered = queues_of(offers), negotiated = queues_of(accepts & offers);
      lay_out(device, of_device, offered, negotiated);
      const auto found = find_numbering(device, otherwise, offered, negotiated);
      for (std::uint16_t i = 0; i < balloon::queue_kind_count; ++i) {
        const auto kind = static_cast<queue_kind>(i);
        const auto at = queue_index(kind, found, offered, negotiated);
        const auto right = queue_index(kind, of_device, offered, negotiated);
        wrong += at.error() != right.error() || *at != *right;
      }
    }
  return wrong;
}

constexpr auto probe = [](auto check) {
  for (const auto otherwise :
       {queue_numbering::fixed, queue_numbering::by_offered, queue_numbering::by_negotiated}) {
    check(misses(queue_numbering::fixed, otherwise) == 0);
    check(misses(queue_numbering::by_offered, otherwise) == 0);
    check(misses(queue_numbering::by_negotiated, otherwise) == 0);
  }
};
BOTH("RT-48: a driver finds each queue of every device, for all it may offer and accept", probe)

constexpr auto by_hand = [](auto check) {
  ram_type ram;
  device_type device(ram);
  // Offered are STATS and REPORTING; the driver accepts REPORTING only.
  const feature_set offered = queues_of(5), negotiated = queues_of(4);
  const auto find = [&](queue_numbering otherwise) {
    return find_numbering(device, otherwise, offered, negotiated);
  };
  device.sizes = {64, 64, 64, 32, 0};
  check(find(queue_numbering::fixed) == queue_numbering::by_offered); // QEMU
  device.sizes = {64, 64, 64, 0, 32};
  check(find(queue_numbering::by_offered) == queue_numbering::fixed); // crosvm before 2025
  device.sizes = {64, 64, 32, 0, 0};
  check(find(queue_numbering::by_offered) == queue_numbering::by_negotiated);
  device.sizes = {64, 64, 64, 32, 64, 64}; // crosvm with two queues of its own
  check(find(queue_numbering::by_offered) == queue_numbering::by_offered);
  check(find(queue_numbering::fixed) == queue_numbering::fixed);
  device.sizes = {};
  check(find(queue_numbering::fixed) == queue_numbering::fixed);
};
BOTH("RT-48: a driver that can't find the numbering takes the one it was given", by_hand)

} // namespace
