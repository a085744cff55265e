// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/device_options.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <bit>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// The five queues of a device, of up to `QueueSize` entries each, with their storage; and which
/// index each of them has. Part of `device`.
template <guest_memory M, std::uint32_t QueueSize, std::endian E> class device_queues {
 public:
  using queue = virtqueue_device<M, E>;

  static constexpr queue_kind kinds[] = {queue_kind::inflate, queue_kind::deflate,
                                         queue_kind::statistics, queue_kind::free_page,
                                         queue_kind::reporting};
  static_assert(std::span(kinds).size() == queue_kind_count);

  /// Never less than Linux asks for, whatever `QueueSize` is.
  [[nodiscard]] static constexpr std::uint32_t entries(queue_kind kind) noexcept {
    return QueueSize < queue_size_min(kind) ? queue_size_min(kind) : QueueSize;
  }

  constexpr explicit device_queues(const device_options& options) noexcept
      : numbering_(options.numbering), offered_(options.offered),
        first_index_(options.first_index) {}
  device_queues(const device_queues&) = delete;
  device_queues& operator=(const device_queues&) = delete;

  [[nodiscard]] constexpr std::uint16_t count() const noexcept {
    return queue_count(numbering_, offered_);
  }
  /// 0: there is no such queue.
  [[nodiscard]] constexpr std::uint32_t size_max(std::uint16_t index) const noexcept {
    const auto kind = queue_kind_of(index, numbering_, offered_, offered_);
    return kind ? entries(*kind) : 0;
  }
  /// Errors: `invalid_queue_index` (no such queue, or not negotiated).
  [[nodiscard]] constexpr result<queue_kind> kind_of(std::uint16_t index) const noexcept {
    return queue_kind_of(index, numbering_, offered_, negotiated_);
  }
  [[nodiscard]] constexpr const feature_set& negotiated() const noexcept { return negotiated_; }

  [[nodiscard]] constexpr queue& operator[](queue_kind kind) noexcept { return of(*this, kind); }
  [[nodiscard]] constexpr const queue& operator[](queue_kind kind) const noexcept {
    return of(*this, kind);
  }

  /// The bit of a queue in the masks of `actions`.
  [[nodiscard]] constexpr std::uint64_t bit_of(queue_kind kind) const noexcept {
    const auto index = queue_index(kind, numbering_, offered_, negotiated_);
    return std::uint64_t{1} << *index;
  }
  /// What to do about what was published.
  constexpr actions notify_if_due(queue_kind kind) noexcept {
    return {.notify_queues = (*this)[kind].should_notify() ? bit_of(kind) : 0};
  }

  /// Begins with the queues that were set up (`layouts[i].size` is not 0).
  /// Errors: the queues'.
  constexpr result<void> start(M& memory, std::span<const queue_layout> layouts,
                               const feature_set& negotiated) noexcept {
    negotiated_ = negotiated;
    return each(layouts, [&](queue& q, std::uint16_t i) {
      return q.start(memory, layouts[i], negotiated_, first_index_);
    });
  }
  /// Begins with the queues that were set up, each at its position; at its start where that has no
  /// size. Errors: the queues'.
  constexpr result<void> resume(M& memory, std::span<const queue_layout> layouts,
                                const feature_set& negotiated,
                                std::span<const device_queue_state> positions) noexcept {
    reset();
    negotiated_ = negotiated;
    return each(layouts, [&](queue& q, std::uint16_t i) {
      return i < positions.size() && positions[i].size != 0
                 ? q.restore(memory, layouts[i], negotiated_, positions[i], {})
                 : q.start(memory, layouts[i], negotiated_, first_index_);
    });
  }
  /// Where a queue is, before the chain that is held. Of what is held there is one chain, and it
  /// was popped last: a statistics buffer. Errors: `invalid_queue_index` (never started).
  [[nodiscard]] constexpr result<device_queue_state> state(queue_kind kind) const noexcept {
    const queue& q = (*this)[kind];
    if (q.size() == 0) return error::invalid_queue_index;
    held_head held[1];
    auto now = q.save(held);
    if (now) now->next_available = now->next_used;
    return now;
  }
  /// Errors: the queues'.
  constexpr result<void> attach(M& memory, std::span<const queue_layout> layouts) noexcept {
    return each(layouts, [&](queue& q, std::uint16_t i) -> result<void> {
      if (q.size() == 0) return {}; // it was reset since
      return q.attach(memory, layouts[i], negotiated_);
    });
  }
  /// The bits of the queues that are attached.
  [[nodiscard]] constexpr std::uint64_t attached() noexcept {
    std::uint64_t bits = 0;
    for (const queue_kind kind : kinds)
      if ((*this)[kind].is_attached()) bits |= bit_of(kind);
    return bits;
  }
  constexpr void detach() noexcept {
    for (const queue_kind kind : kinds) (*this)[kind].detach();
  }
  constexpr void reset() noexcept {
    for (const queue_kind kind : kinds) (*this)[kind].reset();
    negotiated_ = {};
  }

 private:
  template <class Self>
  [[nodiscard]] static constexpr auto& of(Self& self, queue_kind kind) noexcept {
    switch (kind) {
    case queue_kind::inflate: return self.inflateq_;
    case queue_kind::deflate: return self.deflateq_;
    case queue_kind::statistics: break;
    case queue_kind::free_page: return self.free_page_vq_;
    case queue_kind::reporting: return self.reporting_vq_;
    }
    return self.statsq_;
  }

  template <class Do>
  constexpr result<void> each(std::span<const queue_layout> layouts, Do&& what) noexcept {
    for (std::uint16_t i = 0; i < count() && i < layouts.size(); ++i) {
      const auto kind = kind_of(i);
      if (!kind || layouts[i].size == 0) continue;
      if (const result<void> r = what((*this)[*kind], i); !r) return r;
    }
    return {};
  }

  queue_numbering numbering_;
  feature_set offered_;
  feature_set negotiated_;
  std::uint16_t first_index_;

  device_queue_storage<entries(queue_kind::inflate)> inflateq_storage_;
  device_queue_storage<entries(queue_kind::deflate)> deflateq_storage_;
  device_queue_storage<entries(queue_kind::statistics)> statsq_storage_;
  device_queue_storage<entries(queue_kind::free_page)> free_page_vq_storage_;
  device_queue_storage<entries(queue_kind::reporting)> reporting_vq_storage_;
  queue inflateq_{inflateq_storage_};
  queue deflateq_{deflateq_storage_};
  queue statsq_{statsq_storage_};
  queue free_page_vq_{free_page_vq_storage_};
  queue reporting_vq_{reporting_vq_storage_};
};

} // namespace ballast::balloon
