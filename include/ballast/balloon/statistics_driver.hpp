// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/request_queue.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtqueue/driver_queue.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// Where a driver gets its statistics from: `write(writer)` adds the ones it has, in any order, the
/// same subset every time.
template <class S, std::endian E>
concept statistics_source = requires(S& s, statistics_writer<E>& to) {
  { s.write(to) } noexcept;
};

/// Bytes of a driver's statistics buffer: room for more entries than there are tags.
template <std::endian E>
inline constexpr std::uint32_t statistics_buffer_bytes = 40 * sizeof(statistic<E>);

/// The statsq, driver side: one buffer, which the device keeps until it wants a new one.
/// Spec: "Memory Statistics" (driver requirements). Linux: stats_handle_request().
template <guest_memory M, std::uint32_t QueueSize, std::endian E> class statistics_driver {
 public:
  constexpr statistics_driver() noexcept = default;
  statistics_driver(const statistics_driver&) = delete;
  statistics_driver& operator=(const statistics_driver&) = delete;

  [[nodiscard]] constexpr request_queue<M, E>& queue() noexcept { return queue_; }

  /// Fills the buffer and makes it available, without a notification: the first comes before
  /// DRIVER_OK. Where it fails `due` says why.
  template <statistics_source<E> S>
  constexpr void send(S& source, std::uint64_t now, actions& due) noexcept {
    std::byte entries[statistics_buffer_bytes<E>]{};
    statistics_writer<E> writer(entries);
    source.write(writer);
    // An empty buffer would break many a device: send what Windows sends before it has values.
    if (writer.size() == 0) (void)writer.add(static_cast<statistic_tag>(UINT16_MAX), not_reported);
    (void)queue_.send_copy(std::span(entries).first(writer.size()), now, due);
  }

  /// Fills the buffer anew where the device returned it; whether it did.
  template <statistics_source<E> S>
  constexpr bool take_up(S& source, std::uint64_t now, actions& due) noexcept {
    if (!queue_.has_returned(due)) return false;
    send(source, now, due);
    queue_.notify_if_due(due);
    return true;
  }

 private:
  driver_slot slots_[QueueSize]{};
  request_queue<M, E> queue_{slots_};
};

} // namespace ballast::balloon
