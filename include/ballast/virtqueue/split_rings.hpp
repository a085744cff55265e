// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace ballast {

/// Windows over the three parts of a split virtqueue, each checked once.
template <guest_memory M> struct split_rings {
  window_of<M> table;     ///< descriptor table
  window_of<M> available; ///< available ring
  window_of<M> used;      ///< used ring
};

/// The windows as one side may use them: each part is written by one side only.
/// Errors: `invalid_queue_size`, `storage_too_small` (fewer entries than the queue has), the
/// memory's.
template <guest_memory M>
[[nodiscard]] constexpr result<split_rings<M>>
map_rings(M& memory, const queue_layout& layout, queue_side side, std::size_t storage) noexcept {
  if (!split::is_valid_size(layout.size)) return error::invalid_queue_size;
  if (layout.size > storage) return error::storage_too_small;
  const access drivers = side == queue_side::driver ? access::write : access::read;
  const access devices = side == queue_side::device ? access::write : access::read;
  const auto table =
      memory.window(layout.descriptor_area, split::descriptor_table_bytes(layout.size),
                    split::descriptor_table_alignment, drivers);
  if (!table) return table.error();
  const auto available = memory.window(layout.driver_area, split::available_ring_bytes(layout.size),
                                       split::available_ring_alignment, drivers);
  if (!available) return available.error();
  const auto used = memory.window(layout.device_area, split::used_ring_bytes(layout.size),
                                  split::used_ring_alignment, devices);
  if (!used) return used.error();
  return split_rings<M>{*table, *available, *used};
}

} // namespace ballast
