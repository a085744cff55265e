// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/statistics.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// The buffer of the statsq that a device holds until the next request, and what came in it. Part
/// of `device`. Spec: "Memory Statistics".
class device_statistics {
 public:
  /// Stages the held buffer for return, which asks the driver for statistics.
  /// Errors: `no_statistics_buffer` (none yet, or a request is pending), the queue's.
  template <class Queue> constexpr result<void> request(Queue& queue) noexcept {
    if (!has_buffer_) return error::no_statistics_buffer;
    if (const auto returned = queue.push_used(buffer_, 0); !returned) return returned;
    has_buffer_ = false;
    is_pending_ = true;
    return {};
  }

  [[nodiscard]] constexpr bool is_pending() const noexcept { return is_pending_; }

  /// Errors: `no_request_pending`.
  constexpr result<void> abandon() noexcept {
    if (!is_pending_) return error::no_request_pending;
    is_pending_ = false;
    return {};
  }

  /// Errors: `queue_empty` (none came since the last call).
  [[nodiscard]] constexpr result<snapshot> take(std::uint64_t now) noexcept {
    if (!has_snapshot_) return error::queue_empty;
    has_snapshot_ = false;
    snapshot_.received_at = now;
    return snapshot_;
  }

  /// Holds a buffer; a driver may have one at a time, so one that was held goes back. Whether there
  /// was one. Errors: the queue's.
  template <class Queue>
  [[nodiscard]] constexpr result<bool> hold(Queue& queue, chain_id buffer) noexcept {
    const bool is_second = has_buffer_;
    const auto returned = is_second ? queue.push_used(buffer_, 0) : result<void>();
    buffer_ = buffer;
    has_buffer_ = true;
    if (!returned) return returned.error();
    return is_second;
  }

  /// Parses what came, into a snapshot that begins as `fresh`, with what the device knows.
  /// Errors: `not_guest_memory`, `memory_lost`: the last snapshot stays.
  template <std::endian E, guest_memory M>
  [[nodiscard]] constexpr result<void> read(M& memory, std::span<const buffer> buffers,
                                            snapshot fresh) noexcept {
    statistics_parser<E> parser(fresh);
    buffer_reader<M> reader(memory, buffers);
    std::byte chunk[160]{};
    while (true) {
      const auto read = reader.read(chunk);
      if (!read) return read.error();
      if (!parser.feed(std::span(chunk).first(*read)) || *read < sizeof(chunk)) break;
    }
    // A duplicate does not take the answer away from one who waits for it.
    fresh.is_solicited = is_pending_ || (has_snapshot_ && snapshot_.is_solicited);
    is_pending_ = false;
    snapshot_ = fresh;
    has_snapshot_ = true;
    return {};
  }

  /// The queue goes on elsewhere from before the held buffer, which will come once more.
  constexpr void rewind() noexcept { has_buffer_ = false; }
  /// As it was elsewhere: whether the driver was asked and has not answered.
  constexpr void restore(bool is_pending) noexcept {
    reset();
    is_pending_ = is_pending;
  }

  /// The queue is taken away: its buffers are not the device's any more.
  constexpr void drop_buffer() noexcept { has_buffer_ = is_pending_ = false; }

  constexpr void reset() noexcept {
    drop_buffer();
    has_snapshot_ = false;
  }

 private:
  chain_id buffer_;
  snapshot snapshot_;
  bool has_buffer_ = false;
  bool is_pending_ = false;
  bool has_snapshot_ = false;
};

} // namespace ballast::balloon
