// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest.hpp"
#include "page_bitmap.hpp"

#include <ballast/ballast.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace migration {

/// How a migration is done.
struct method {
  const char* name = "";
  bool has_hints = false;
  balloon::hint_release release = balloon::hint_release::when_used;
  std::uint64_t done_delay = 0; ///< ticks from the end of the migration to DONE
};

/// What came of it. A tick is a millisecond.
struct outcome {
  std::uint64_t pages_sent = 0;
  std::uint64_t rounds = 0;
  std::uint64_t ticks = 0;
  std::uint64_t downtime_ticks = 0;
  std::uint64_t pages_hinted = 0; ///< not sent because of a hint
  std::uint64_t ignored_hints = 0;
  std::uint64_t reclaimed = 0;       ///< blocks, before DONE
  std::uint64_t reclaimed_early = 0; ///< ... and before the device had looked
  std::uint64_t denied = 0;          ///< blocks that the guest wanted and could not have
  std::uint64_t held_ticks = 0;      ///< from the end until the guest had all blocks back
  std::uint64_t pages_lost = 0;      ///< used by the guest and not the same on both sides
  std::string failure;               ///< of the balloon, which must not be
  std::vector<std::size_t> pending;  ///< pages to send, at each tick of the migration
  std::vector<std::size_t> hinted;   ///< pages that the guest has not back, at each tick
};

/// The destination's memory, and which pages it still needs. Models `balloon::page_host`.
class destination {
 public:
  explicit destination(std::span<const std::byte> source)
      : source_(source), ram_(source.size()), needed_(source.size() / page_size) {}

  /// At most `count` pages in the order of their addresses; how many there were.
  std::size_t receive(std::size_t count) noexcept {
    std::size_t n = 0;
    const std::size_t end = source_.size() / page_size;
    for (; n < count; ++n) {
      at_ = needed_.next(at_);
      if (at_ == end) break;
      needed_.clear(at_);
      std::memcpy(&ram_[at_ * page_size], &source_[at_ * page_size], page_size);
    }
    return n;
  }
  /// The next round: what the guest wrote to in the meantime, too.
  void synchronise(page_bitmap& log) noexcept {
    needed_.take_over(log);
    at_ = 0;
  }
  page_bitmap& needed() noexcept { return needed_; }
  [[nodiscard]] bool has(std::size_t page) const noexcept {
    return std::memcmp(&ram_[page * page_size], &source_[page * page_size], page_size) == 0;
  }

  bool discard(guest_address, std::uint64_t) noexcept { return true; } // there is no balloon
  /// The guest has no use for the pages, or had none. What it writes after that is in the log, and
  /// is needed again from the next round on.
  bool hint(guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t at = 0; at < size; at += page_size)
      hinted_ += needed_.clear((address + at) / page_size);
    return true;
  }
  [[nodiscard]] std::uint64_t hinted() const noexcept { return hinted_; }

 private:
  std::span<const std::byte> source_;
  std::vector<std::byte> ram_;
  page_bitmap needed_;
  std::size_t at_ = 0;
  std::uint64_t hinted_ = 0;
};

/// One migration, in ticks of a millisecond.
class run {
 public:
  static constexpr std::size_t link_pages = 256;      ///< carried each tick: 1 MiB
  static constexpr std::size_t downtime_pages = 4096; ///< the guest may stand still for these
  static constexpr std::uint64_t rounds_max = 30;
  static constexpr std::uint32_t device_budget = 16; ///< buffers that the device looks at each tick
  static constexpr std::uint64_t burst_ticks = 25;   ///< from one burst of allocations to the next
  static constexpr std::size_t burst_blocks = 4;     ///< and half as many are freed

  run(const method& how, std::uint64_t memory, std::uint64_t dirty_rate, std::uint64_t seed)
      : how_(how), ram_(memory), log_(memory / page_size), to_(ram_),
        guest_(ram_, log_, how.release, seed), dirty_pages_(dirty_rate / page_size) {}
  run(const run&) = delete;
  run& operator=(const run&) = delete;

  outcome migrate() {
    carry_out(driver_.start());
    to_.needed().mark_all();
    do {
      ++result_.rounds;
      synchronise();
      do {
        tick(); // the guest answers while pages are sent
        ++result_.ticks;
        result_.pending.push_back(to_.needed().count() + log_.count());
      } while (send(link_pages) == link_pages && is_sound());
    } while (log_.count() > downtime_pages && result_.rounds < rounds_max && is_sound());

    // Guest and device stand still.
    if (how_.has_hints) (void)device_.stop_hinting(); // what is in the queue comes too late
    to_.synchronise(log_);
    while (const std::size_t sent = send(link_pages)) {
      ++result_.ticks;
      ++result_.downtime_ticks;
      if (sent < link_pages) break;
    }
    compare();
    result_.pages_hinted = to_.hinted();
    go_on();
    result_.ignored_hints = device_.counters().ignored_hints;
    result_.reclaimed_early = guest_.released_early();
    return std::move(result_);
  }

 private:
  using memory_type = ballast::dirty_memory<ballast::mapped_memory, page_bitmap>;
  using device_type = balloon::device<memory_type, destination, 128>;
  using transport_type = ballast::in_process_transport<device_type, memory_type>;
  using driver_type = balloon::driver<memory_type, transport_type, guest, guest, 64>;

  static balloon::device_options device_options() noexcept {
    return {.offered = {balloon::feature::free_page_hint, ballast::feature::event_idx}};
  }

  [[nodiscard]] bool is_sound() const noexcept { return result_.failure.empty(); }

  void carry_out(ballast::actions due) {
    for (;; due = driver_.step()) {
      if (due.failure != ballast::error::none) result_.failure = ballast::name(due.failure);
      for (std::uint16_t queue = 0; queue < balloon::queue_kind_count; ++queue)
        if (due.notifies(queue)) transport_.notify(queue);
      if (due.more_work == 0) return;
    }
  }

  /// What the guest wrote to is needed again; hints of before are not wanted any more, as it may
  /// have written to those pages. Then new ones are.
  void synchronise() {
    if (how_.has_hints) is_config_changed_ |= device_.stop_hinting().config_changed;
    to_.synchronise(log_);
    if (!how_.has_hints) return;
    const ballast::actions asked = device_.start_hinting();
    is_config_changed_ |= asked.config_changed;
    if (asked.failure != ballast::error::none) result_.failure = ballast::name(asked.failure);
  }

  /// A millisecond of the guest, and of the device.
  void tick() {
    ++now_;
    carry_out(std::exchange(is_config_changed_, false) ? driver_.on_config_change()
                                                       : driver_.step());
    dirty_due_ += dirty_pages_;
    guest_.write(dirty_due_ / 1000);
    dirty_due_ %= 1000;
    if (now_ % burst_ticks == 6)
      for (std::size_t i = 0; i < burst_blocks; ++i) allocate();
    if (now_ % burst_ticks == burst_ticks - 1)
      for (std::size_t i = 0; i < burst_blocks / 2; ++i) guest_.free_one();
    serve();
    result_.hinted.push_back(guest_.hinted_blocks() * block_pages);
  }

  /// The guest wants a block: a free one, or one that it hinted.
  void allocate() {
    if (guest_.allocate()) return;
    const std::uint32_t reclaimed = driver_.reclaim_hinted(1);
    result_.reclaimed += reclaimed;
    if (!guest_.allocate()) ++result_.denied;
  }

  void serve() {
    queues_ |= transport_.take_notified();
    for (std::uint64_t queues = std::exchange(queues_, 0); queues != 0; queues &= queues - 1) {
      const auto queue = static_cast<std::uint16_t>(std::countr_zero(queues));
      const ballast::actions due = transport_.process(queue, device_budget);
      queues_ |= due.more_work;
      is_config_changed_ |= due.config_changed;
      if (due.failure != ballast::error::none) result_.failure = ballast::name(due.failure);
    }
  }

  std::size_t send(std::size_t pages) {
    const std::size_t sent = to_.receive(pages);
    result_.pages_sent += sent;
    return sent;
  }

  void compare() {
    for (std::size_t page = 0; page < ram_.size() / page_size; ++page)
      result_.pages_lost += guest_.owns(page) && !to_.has(page);
  }

  /// The guest runs on, at the destination, until it has back what it hinted.
  void go_on() {
    constexpr std::uint64_t ticks_max = 10'000;
    for (; is_sound(); ++result_.held_ticks) {
      if (how_.has_hints && result_.held_ticks == how_.done_delay)
        is_config_changed_ |= device_.finish_hinting().config_changed;
      if (result_.held_ticks >= how_.done_delay && guest_.hinted_blocks() == 0) return;
      if (result_.held_ticks == ticks_max) result_.failure = "hinted blocks did not come back";
      tick();
    }
  }

  method how_;
  std::vector<std::byte> ram_;
  page_bitmap log_; ///< what the guest, and the device, wrote to
  destination to_;
  guest guest_;
  ballast::memory_region region_{0, ram_.data(), ram_.size()};
  ballast::mapped_memory mapped_ = *ballast::mapped_memory::over({&region_, 1});
  memory_type memory_{mapped_, log_};
  device_type device_{to_, device_options()};
  transport_type transport_{device_, memory_};
  driver_type driver_{memory_, transport_, guest_, guest_, 0};
  static_assert(driver_type::memory_bytes <= block_bytes); // the guest's first block is for it

  outcome result_;
  std::uint64_t now_ = 0;
  std::uint64_t dirty_pages_; ///< each second
  std::uint64_t dirty_due_ = 0;
  std::uint64_t queues_ = 0;       ///< of the device, with work left
  bool is_config_changed_ = false; ///< and the guest has not looked yet
};

} // namespace migration
