// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// The ring that a balloon driver's queues are made of.
template <guest_memory M, std::endian E> using driver_ring = virtqueue_driver<M, E>;

/// The first multiple of 16 that is not below `n`.
[[nodiscard]] constexpr std::uint64_t align16(std::uint64_t n) noexcept {
  return (n + 15) & ~std::uint64_t{15};
}

/// Where a driver's queue lies: its rings, and then its buffer.
struct request_queue_place {
  queue_layout layout;
  guest_address data = 0;
  guest_address end = 0; ///< 16-aligned
};

/// What a transport wants of the places of queues: an alignment where they lie as the legacy
/// interface says, and have all the entries that the device gives them; 0 where neither is so.
/// Spec: "Legacy Interfaces: A Note on Virtqueue Layout".
template <driver_transport T> [[nodiscard]] constexpr std::uint32_t queue_alignment_of() noexcept {
  if constexpr (requires { T::queue_alignment; })
    return T::queue_alignment;
  else
    return 0;
}

/// The places of a queue of up to `entries_max` entries, in the format that `features` say, with
/// `data_bytes` of buffer; from `at` on, which is 16-aligned. With an `alignment` as the legacy
/// interface has it, of exactly `entries_max` entries, which is a power of two.
[[nodiscard]] constexpr request_queue_place
place_request_queue(guest_address at, std::uint32_t entries_max, std::uint32_t data_bytes,
                    const feature_set& features, std::uint32_t alignment = 0) noexcept {
  if (alignment != 0) {
    const guest_address begin = (at + alignment - 1) & ~(guest_address{alignment} - 1);
    const auto rings = split::place_legacy(begin, entries_max, alignment);
    return {rings->layout, rings->end, align16(rings->end + data_bytes)};
  }
  const bool is_packed = features.test(ballast::feature::ring_packed);
  const auto rings =
      place_queue(at, is_packed ? entries_max : std::bit_floor(entries_max), features);
  const guest_address data = align16(rings.end);
  return {rings.layout, data, align16(data + data_bytes)};
}

/// Bytes of guest memory that such a queue takes at most, in either format, wherever it begins.
[[nodiscard]] constexpr std::uint64_t request_queue_bytes(std::uint32_t entries_max,
                                                          std::uint32_t data_bytes,
                                                          std::uint32_t alignment = 0) noexcept {
  if (alignment != 0)
    return place_request_queue(16, std::bit_floor(entries_max), data_bytes, {}, alignment).end - 16;
  const std::uint64_t split = place_request_queue(0, entries_max, data_bytes, {}).end;
  const std::uint64_t packed =
      place_request_queue(0, entries_max, data_bytes, {ballast::feature::ring_packed}).end;
  return split > packed ? split : packed;
}

/// A driver's queue that has one request under way at most, as all of the balloon's have. What is
/// sent stays with the device until the device returns it: no time that passes changes that.
template <guest_memory M, std::endian E> class request_queue {
 public:
  /// `slots` must outlive the queue; its size bounds the queue size.
  constexpr explicit request_queue(std::span<driver_slot> slots) noexcept
      : ring_(slots), entries_max_(static_cast<std::uint32_t>(slots.size())) {}

  /// Sets the queue up at `at`, which moves on behind it.
  /// Errors: `queue_unavailable`, `queue_too_small` (the device has fewer than `entries_min`),
  /// `storage_too_small` (a transport that leaves no choice: the device has more than there are
  /// slots), the ring's, the transport's.
  template <driver_transport T>
  constexpr result<void>
  start(M& memory, T& transport, std::uint16_t index, std::uint32_t entries_min, guest_address& at,
        std::uint32_t data_bytes, const feature_set& features, std::uint16_t first_index) noexcept {
    const std::uint32_t max = transport.queue_size_max(index);
    if (max == 0) return error::queue_unavailable;
    if (max < entries_min) return error::queue_too_small;
    constexpr std::uint32_t alignment = queue_alignment_of<T>();
    if (alignment != 0 && max > entries_max_) return error::storage_too_small;
    if (alignment != 0 && !split::is_valid_size(max)) return error::invalid_queue_size;
    const auto where = place_request_queue(at, max < entries_max_ ? max : entries_max_, data_bytes,
                                           features, alignment);
    if (const auto started = ring_.start(memory, where.layout, features, first_index); !started)
      return started;
    memory_ = &memory;
    data_ = where.data;
    at = where.end;
    index_ = index;
    return transport.set_up_queue(index, where.layout);
  }

  constexpr void detach() noexcept {
    ring_.detach();
    is_under_way_ = false;
  }

  /// Makes a copy of `bytes` available, which the device reads; false: `due` says why not.
  constexpr bool send_copy(std::span<const std::byte> bytes, std::uint64_t now,
                           actions& due) noexcept {
    if (!memory_->write(data_, bytes)) {
      due |= {.needs_reset = true, .failure = error::memory_lost};
      return false;
    }
    const buffer data{data_, static_cast<std::uint32_t>(bytes.size())};
    return publish(ring_.add({&data, 1}, {}, 0), now, due);
  }

  /// Makes a chain available; false: `due` says why not. `now` is kept for `sent_at`.
  constexpr bool send(std::span<const buffer> readable, std::span<const buffer> writable,
                      std::uint64_t now, actions& due) noexcept {
    return publish(ring_.add(readable, writable, 0), now, due);
  }

  /// Asks for a notification of what was sent, where the device wants one.
  constexpr void notify_if_due(actions& due) noexcept {
    if (ring_.should_notify()) due.notify_queues |= std::uint64_t{1} << index_;
  }

  /// Whether the device returned the request. To be asked of an idle queue too: a device that
  /// returns what it was not given breaks its queue there, instead of keeping us awake.
  [[nodiscard]] constexpr bool has_returned(actions& due) noexcept {
    const auto used = ring_.pop_used();
    if (!used) {
      if (used.error() != error::queue_empty) due |= {.needs_reset = true, .failure = used.error()};
      return false;
    }
    is_under_way_ = false;
    return true;
  }

  /// Asks for a notification of the next return; whether there is one already.
  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    return ring_.enable_notifications();
  }

  /// For a queue with more than one chain under way: its owner keeps account.
  [[nodiscard]] constexpr driver_ring<M, E>& ring() noexcept { return ring_; }
  /// Where its buffer lies.
  [[nodiscard]] constexpr guest_address data() const noexcept { return data_; }

  [[nodiscard]] constexpr bool is_under_way() const noexcept { return is_under_way_; }
  /// The time given with what was sent last.
  [[nodiscard]] constexpr std::uint64_t sent_at() const noexcept { return sent_at_; }

 private:
  constexpr bool publish(const result<void>& added, std::uint64_t now, actions& due) noexcept {
    if (!added) {
      due |= {.needs_reset = true, .failure = added.error()};
      return false;
    }
    ring_.publish();
    sent_at_ = now;
    is_under_way_ = true;
    return true;
  }

  driver_ring<M, E> ring_;
  M* memory_ = nullptr;
  guest_address data_ = 0;
  std::uint64_t sent_at_ = 0;
  std::uint32_t entries_max_;
  std::uint16_t index_ = 0;
  bool is_under_way_ = false;
};

} // namespace ballast::balloon
