// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/driver_options.hpp>
#include <ballast/balloon/page_queue.hpp>
#include <ballast/balloon/page_source.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/retry_timer.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/driver_queue.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// What moves a driver's balloon to its target, over the inflateq and the deflateq: one buffer is
/// under way at a time, and nothing waits. `balloon::driver` owns one and writes `actual`.
///
/// Between a block's `take_free` and its `store` or `release` the device may have it; between its
/// `take_stored` and its `release` too, where MUST_TELL_HOST is negotiated. Blocks are stored only
/// once the device returned their buffer, so that none is deflated before.
/// Spec: "Traditional Memory Balloon Device / Device Operation". Linux: fill_balloon(),
/// leak_balloon(), update_balloon_size_func().
template <guest_memory M, page_source P, std::uint32_t QueueSize, std::endian E> class inflation {
 public:
  static constexpr std::uint32_t block_pages = block_pages_of<P>();
  using queue = page_queue<M, E, block_pages>;

  constexpr explicit inflation(P& pages) noexcept : pages_(&pages) {}
  inflation(const inflation&) = delete;
  inflation& operator=(const inflation&) = delete;

  [[nodiscard]] constexpr queue& inflateq() noexcept { return inflate_; }
  [[nodiscard]] constexpr queue& deflateq() noexcept { return deflate_; }
  [[nodiscard]] constexpr const queue& inflateq() const noexcept { return inflate_; }
  [[nodiscard]] constexpr const queue& deflateq() const noexcept { return deflate_; }

  /// The terms of a new balloon, which is empty.
  constexpr void begin(const feature_set& negotiated, const driver_options& options) noexcept {
    releases_early_ =
        options.reuses_before_acknowledged && !negotiated.test(feature::must_tell_host);
    if constexpr (poisons_pages<P>) {
      has_poison_ = negotiated.test(feature::page_poison);
      poison_ = options.poison_value;
    }
    retry_delays_ = options.retry;
    actual_ = 0;
  }

  constexpr void set_target(std::uint32_t pages) noexcept {
    target_ = round_target(pages, block_pages);
    is_holding_ = false;
    retry_.reset();
  }

  [[nodiscard]] constexpr std::uint32_t target() const noexcept { return target_; }
  [[nodiscard]] constexpr std::uint32_t actual() const noexcept { return actual_; }
  [[nodiscard]] constexpr bool is_idle() const noexcept {
    return inflate_.pages() == 0 && deflate_.pages() == 0;
  }
  /// A guest out of memory was told that pages are coming, or a block is moved.
  [[nodiscard]] constexpr bool is_deflating() const noexcept {
    return deflate_.pages() != 0 || is_moving_;
  }
  [[nodiscard]] constexpr const retry_timer& retry() const noexcept { return retry_; }

  /// Handles what the device returned; whether there was anything.
  constexpr bool take_up(std::uint64_t now, actions& due) noexcept {
    const bool has_inflated = inflate_.has_returned(due);
    if (has_inflated) inflated(now, due);
    const bool has_deflated = deflate_.has_returned(due);
    if (has_deflated) deflated();
    return has_inflated || has_deflated;
  }

  /// Starts the next buffer that is due; whether there was one to send.
  constexpr bool adjust(std::uint64_t now, actions& due) noexcept {
    if (!is_idle()) return false;
    const std::uint32_t over = actual_ > target_ ? actual_ - target_ : 0;
    if (over != 0 || wanted_back_ != 0) {
      const std::uint32_t sent = deflate(over > wanted_back_ ? over : wanted_back_, now, due);
      wanted_back_ = sent < wanted_back_ && sent != 0 ? wanted_back_ - sent : 0;
      return sent != 0;
    }
    if (actual_ == target_ || is_holding_ || !retry_.is_due(now)) return false;
    const std::size_t got = pages_->take_free(inflate_.room(target_ - actual_));
    if (got == 0) {
      retry_.failed(now, retry_delays_);
      return false;
    }
    retry_.reset();
    return inflate_.send_blocks(got, now, due);
  }

  /// Sends at least `pages` back, whatever the target is, or the first buffer of them; false where
  /// there are none, or `due` says why not. Nothing is to be on its way out.
  constexpr bool deflate_on_oom(std::uint32_t pages, std::uint64_t now, actions& due) noexcept {
    const std::uint32_t sent = deflate(pages, now, due);
    if (sent == 0) return false;
    is_holding_ = true;
    wanted_back_ = sent < pages ? pages - sent : 0;
    return true;
  }

  /// Sends `to` and then `from` back; false: `due` says why not. Nothing is to be under way.
  constexpr bool move(std::uint32_t from, std::uint32_t to, std::uint64_t now,
                      actions& due) noexcept {
    inflate_.room(block_pages)[0] = to;
    deflate_.room(block_pages)[0] = from;
    is_moving_ = true;
    return inflate_.send_blocks(1, now, due);
  }

  /// Nothing is in the balloon of a device that was reset or is gone: releases every block.
  constexpr void drain() noexcept {
    inflate_.detach();
    deflate_.detach();
    release(inflate_.blocks());
    if (!is_released_) release(deflate_.blocks());
    inflate_.forget();
    deflate_.forget();
    for (std::size_t n = 1; n != 0;) { // through the room for the next buffer
      const auto to = inflate_.room(array_pfns_max);
      n = pages_->take_stored(to);
      release(to.first(n));
    }
    is_moving_ = false;
    wanted_back_ = 0;
  }

 private:
  constexpr void inflated(std::uint64_t now, actions& due) noexcept {
    const auto blocks = inflate_.blocks();
    const std::uint32_t pages = inflate_.pages();
    inflate_.forget();
    if constexpr (moves_pages<P>)
      if (is_moving_) {
        pages_->replace(deflate_.room(block_pages)[0], blocks[0]);
        (void)send_deflation(1, now, due);
        return;
      }
    pages_->store(blocks);
    actual_ += pages;
  }

  constexpr void deflated() noexcept {
    if (!is_released_) release(deflate_.blocks());
    if (!is_moving_) actual_ -= deflate_.pages();
    deflate_.forget();
    is_moving_ = false;
  }

  /// How many pages were sent.
  constexpr std::uint32_t deflate(std::uint32_t pages, std::uint64_t now, actions& due) noexcept {
    const std::size_t got = pages_->take_stored(deflate_.room(pages));
    return got != 0 && send_deflation(got, now, due) ? deflate_.pages() : 0;
  }

  constexpr bool send_deflation(std::size_t blocks, std::uint64_t now, actions& due) noexcept {
    is_released_ = false;
    if (!deflate_.send_blocks(blocks, now, due)) return false;
    if (releases_early_) {
      release(deflate_.blocks());
      is_released_ = true;
    }
    return true;
  }

  constexpr void release(std::span<const std::uint32_t> blocks) noexcept {
    if constexpr (poisons_pages<P>)
      if (has_poison_) pages_->poison(blocks, poison_);
    pages_->release(blocks);
  }

  P* pages_;
  driver_slot inflate_slots_[QueueSize]{};
  driver_slot deflate_slots_[QueueSize]{};
  queue inflate_{inflate_slots_};
  queue deflate_{deflate_slots_};
  retry_timer retry_;
  retry_delays retry_delays_;
  std::uint32_t target_ = 0;
  std::uint32_t actual_ = 0;
  std::uint32_t wanted_back_ = 0; ///< pages that a guest out of memory still waits for
  std::uint32_t poison_ = 0;
  bool has_poison_ = false;
  bool releases_early_ = false;
  bool is_holding_ = false;  ///< gave pages back when out of memory: no inflating for now
  bool is_moving_ = false;   ///< the buffers under way leave the size as it is
  bool is_released_ = false; ///< what is being deflated may be used again already
};

} // namespace ballast::balloon
