// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <concepts>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// Where a driver gets free blocks to hint from and where they go: the guest's allocator. A block
/// of order n is 2^n pages of 4096 bytes in one piece.
///
/// - `take(order)`: a block that nothing uses; an error where there is none to be had now.
/// - `release(address, order)`: the block may be used again. Its contents are undefined, whatever
///   was in it before: initialise what must have a value (BDRV-31).
///
/// Neither may wait, nor take memory from elsewhere: hinting is to find what is free anyway.
template <class S>
concept hint_source = requires(S& s, guest_address address, unsigned order) {
  { s.take(order) } noexcept -> std::same_as<result<guest_address>>;
  { s.release(address, order) } noexcept;
};

/// When a hinted block may go back to the guest before the device says DONE.
enum class hint_release : std::uint8_t {
  /// Once the device returned its buffer: right for every device, also one that discards memory.
  when_used,
  /// At any time, as in Linux: right for a device that applies a hint to a dirty bitmap, which the
  /// guest's next write sets again.
  early,
};

struct hint_driver_options {
  std::uint8_t order = 10;     ///< of the blocks to take, at most 19: 4 MiB, as in Linux on x86
  std::uint8_t order_min = 10; ///< where there are none: blocks down to this
  hint_release release = hint_release::when_used;
};

/// What the caller of `hint_driver::step` does now.
enum class hint_duty : std::uint8_t {
  none,    ///< nothing, until the next event
  again,   ///< nothing; call `step` again
  command, ///< add a buffer of 4 bytes for the device to read: `id`
  block,   ///< add a buffer for the device to write: `bytes` at `address`
};

struct hint_step {
  hint_duty duty = hint_duty::none;
  std::uint32_t id = 0;
  std::uint32_t bytes = 0;
  std::uint32_t token = 0; ///< comes back in `on_used`
  guest_address address = 0;
};

/// What a `hint_driver` remembers of one block.
struct hint_block {
  guest_address address = 0;
  std::uint32_t next = 0;
  std::uint16_t order = 0;
  bool is_held = false;      ///< not released
  bool is_in_flight = false; ///< its buffer is with the device
};

/// The driver's half of free page hinting: what to send when, and which blocks are held. Never
/// waits, touches no queue; the caller moves what it says over free_page_vq.
///
///     hint_driver<my_allocator> hints(allocator, blocks);
///     hints.on_config(free_page_hint_cmd_id);       // DRIVER_OK, each configuration change
///     while (auto used = ring.pop_used()) hints.on_used(used->token);
///     for (budget) {
///       const hint_step next = hints.step(ring.free_descriptors());
///       if (next.duty == hint_duty::none) break;
///       if (next.duty == hint_duty::command)         // one of two places: for STOP and for ids
///         ring.add({write next.id as 4 bytes}, {}, next.token);
///       if (next.duty == hint_duty::block)
///         ring.add({}, {{next.address, next.bytes}}, next.token);
///     }
///     ring.publish(), notify if wanted; while in_flight() is not 0, used buffers are events too
///
/// One command with an id and one STOP are in flight at most, so two places of 4 bytes will do. One
/// descriptor is kept free for the STOP: a queue of two is large enough. A round also ends where
/// `blocks` has no room for another block.
/// Hinted pages lose their contents from the moment they are taken.
/// Spec: "Free Page Hinting". Linux: virtio_balloon_report_free_page.
template <hint_source S> class hint_driver {
 public:
  /// Tokens of commands; those of blocks are below.
  static constexpr std::uint32_t stop_token = UINT32_MAX;
  static constexpr std::uint32_t id_token = UINT32_MAX - 1;

  /// `blocks` outlives the driver: room for as many as are held at a time.
  constexpr hint_driver(S& source, std::span<hint_block> blocks,
                        const hint_driver_options& options = {}) noexcept
      : source_(&source), blocks_(blocks), options_(options) {
    if (options_.order > order_max) options_.order = order_max;
  }

  /// What `free_page_hint_cmd_id` shows now. The same id again changes nothing.
  constexpr void on_config(std::uint32_t id) noexcept {
    wanted_ = id;
    if (id == command_id::done) is_releasing_ = true;
    if (is_hinting_ && id != active_) end_round();
  }

  /// The device returned the buffer with this token.
  constexpr void on_used(std::uint32_t token) noexcept {
    if (token == stop_token) {
      is_stop_in_flight_ = false;
    } else if (token == id_token) {
      is_id_in_flight_ = false;
    } else if (token < fresh_ && blocks_[token].is_in_flight) {
      hint_block& block = blocks_[token];
      block.is_in_flight = false;
      --blocks_in_flight_;
      if (!block.is_held)
        push(free_, token);
      else if (options_.release == hint_release::when_used)
        push(releasable_, token);
    }
  }

  /// What to do next, with so many free descriptors in the queue.
  [[nodiscard]] constexpr hint_step step(std::uint32_t free_descriptors) noexcept {
    if (owes_stop_ && !is_stop_in_flight_ && free_descriptors != 0) {
      owes_stop_ = false;
      is_stop_in_flight_ = true;
      return {.duty = hint_duty::command, .id = command_id::stop, .token = stop_token};
    }
    if (is_releasing_) {
      if (release_one()) return {.duty = hint_duty::again};
      if (held_ == 0) is_releasing_ = false;
    }
    if (owes_stop_ || is_releasing_) return {};
    if (is_hinting_) return free_descriptors < 2 ? hint_step{} : take_block();
    if (wanted_ < command_id::first || wanted_ == active_) return {};
    if (is_id_in_flight_ || free_descriptors == 0) return {};
    active_ = wanted_;
    is_hinting_ = is_id_in_flight_ = true;
    order_ = options_.order;
    return {.duty = hint_duty::command, .id = active_, .token = id_token};
  }

  /// Gives up to `count` hinted blocks back to a guest that is short of memory, whatever the device
  /// wants; how many. Initialise them: until DONE the device may still change what is not written
  /// (BDRV-32).
  constexpr std::uint32_t reclaim(std::uint32_t count) noexcept {
    std::uint32_t released = 0;
    while (released != count && release_one()) ++released;
    return released;
  }

  /// The device was reset, so the queue is gone with what was in flight: releases every block
  /// and clears `blocks`.
  constexpr void reset() noexcept {
    for (std::uint32_t i = 0; i < fresh_; ++i) {
      if (blocks_[i].is_held) source_->release(blocks_[i].address, blocks_[i].order);
      blocks_[i] = {};
    }
    *this = hint_driver(*source_, blocks_, options_);
  }

  /// In a round: its id was sent, its STOP is not due.
  [[nodiscard]] constexpr bool is_hinting() const noexcept { return is_hinting_; }
  /// The id sent last; `command_id::stop` before the first.
  [[nodiscard]] constexpr std::uint32_t active_id() const noexcept { return active_; }
  [[nodiscard]] constexpr std::uint32_t held_blocks() const noexcept { return held_; }
  /// Buffers that are with the device.
  [[nodiscard]] constexpr std::uint32_t in_flight() const noexcept {
    return blocks_in_flight_ + is_id_in_flight_ + is_stop_in_flight_;
  }

 private:
  static constexpr std::uint8_t order_max = 19; // 2^31 bytes; a buffer's length has 32 bits
  static constexpr std::uint32_t none = UINT32_MAX;

  /// The device is told with a STOP, always: it can't use the id again before that.
  constexpr void end_round() noexcept {
    is_hinting_ = false;
    owes_stop_ = true;
  }

  constexpr hint_step take_block() noexcept {
    const bool has_room = free_ != none || fresh_ < blocks_.size();
    result<guest_address> taken = error::queue_full;
    while (has_room && !(taken = source_->take(order_)) && order_ > options_.order_min) --order_;
    if (!taken) {
      end_round();
      return {.duty = hint_duty::again};
    }
    const std::uint32_t token = free_ != none ? pop(free_) : fresh_++;
    blocks_[token] = {.address = *taken,
                      .order = static_cast<std::uint16_t>(order_),
                      .is_held = true,
                      .is_in_flight = true};
    ++held_;
    ++blocks_in_flight_;
    if (options_.release == hint_release::early) push(releasable_, token);
    return {
        .duty = hint_duty::block, .bytes = page_size << order_, .token = token, .address = *taken};
  }

  /// Releases a block that may be; whether there was one.
  constexpr bool release_one() noexcept {
    if (releasable_ == none) return false;
    const std::uint32_t token = pop(releasable_);
    hint_block& block = blocks_[token];
    block.is_held = false;
    --held_;
    source_->release(block.address, block.order);
    if (!block.is_in_flight) push(free_, token);
    return true;
  }

  constexpr void push(std::uint32_t& list, std::uint32_t token) noexcept {
    blocks_[token].next = list;
    list = token;
  }
  constexpr std::uint32_t pop(std::uint32_t& list) noexcept {
    const std::uint32_t token = list;
    list = blocks_[token].next;
    return token;
  }

  S* source_;
  std::span<hint_block> blocks_;
  std::uint32_t fresh_ = 0; ///< blocks from here on were never used
  std::uint32_t free_ = none;
  std::uint32_t releasable_ = none; ///< held, and the guest may have them back
  std::uint32_t held_ = 0;
  std::uint32_t blocks_in_flight_ = 0;
  std::uint32_t wanted_ = command_id::stop; ///< what the configuration showed last
  std::uint32_t active_ = command_id::stop;
  unsigned order_ = 0; ///< of the blocks that this round takes
  hint_driver_options options_;
  bool is_hinting_ = false;
  bool owes_stop_ = false;
  bool is_releasing_ = false; ///< DONE was seen, and blocks from before it are held
  bool is_id_in_flight_ = false;
  bool is_stop_in_flight_ = false;
};

} // namespace ballast::balloon
