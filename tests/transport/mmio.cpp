// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/mmio.hpp>

#include <support/check.hpp>

#include <cstdint>

namespace {

using ballast::error;
using ballast::mmio_legacy_layout;
using ballast::queue_layout;
namespace split = ballast::split;

constexpr auto placed = [](auto check) {
  for (std::uint32_t size = 1; size <= 32768; size *= 2)
    for (const std::uint32_t alignment : {16u, 64u, 4096u, 65536u}) {
      const auto whole = split::place_legacy(0x10000, size, alignment);
      const auto at = mmio_legacy_layout(0x10000, size, alignment);
      check(at && whole && *at == whole->layout);
    }
  // Not all the alignment of the whole: a page of 256 bytes, a used ring at a multiple of 4096.
  check(*mmio_legacy_layout(0x1100, 4, 4096) == queue_layout{4, 0x1100, 0x1140, 0x2000});
  check(*mmio_legacy_layout(0x1110, 4, 4) == queue_layout{4, 0x1110, 0x1150, 0x1160});
  // The last page that a register can name, and the largest of pages.
  const std::uint64_t last = 0xffff'ffffull << 31;
  check(mmio_legacy_layout(last, 32768, 1u << 31)->device_area == last + (1u << 31));
};
BOTH("a legacy queue's areas follow from its page, size and alignment", placed)

constexpr auto refusals = [](auto check) {
  for (const std::uint32_t size : {0u, 3u, 65536u, ~0u})
    check(mmio_legacy_layout(4096, size, 4096).error() == error::invalid_queue_size);
  for (const std::uint64_t alignment : {0u, 1u, 2u, 3u, 6u, 4095u, 0xffff'ffffu})
    check(mmio_legacy_layout(4096, 4, alignment).error() == error::misaligned);
  for (const std::uint64_t base : {1u, 8u, 4097u})
    check(mmio_legacy_layout(base, 4, 4096).error() == error::misaligned);
};
BOTH("what no ring can be is refused", refusals)

} // namespace
