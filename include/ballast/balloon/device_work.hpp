// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/device_config.hpp>
#include <ballast/balloon/device_host.hpp>
#include <ballast/balloon/device_options.hpp>
#include <ballast/balloon/device_pages.hpp>
#include <ballast/balloon/device_queues.hpp>
#include <ballast/balloon/device_statistics.hpp>
#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// A device's work on its five queues, and what it remembers between two buffers. Part of `device`,
/// which says when there is anything to do.
template <guest_memory M, page_host Host, std::uint32_t QueueSize, std::endian E>
class device_work {
 public:
  /// `options`: those in force.
  constexpr device_work(Host& host, const device_options& options, device_config& config,
                        device_counters& counters) noexcept
      : config_(&config), counters_(&counters), queues_(options), pages_(host, options, counters),
        hinting_(options.hinting) {}

  [[nodiscard]] constexpr const device_queues<M, QueueSize, E>& queues() const noexcept {
    return queues_;
  }
  [[nodiscard]] constexpr device_statistics& statistics() noexcept { return statistics_; }
  [[nodiscard]] constexpr const device_statistics& statistics() const noexcept {
    return statistics_;
  }
  [[nodiscard]] constexpr const hint_device& hinting() const noexcept { return hinting_; }
  [[nodiscard]] constexpr bool has(unsigned feature) const noexcept {
    return queues_.negotiated().test(feature);
  }

  // Life.

  /// The driver is live. Errors: the queues'; then none of them is.
  constexpr result<void> start(M& memory, std::span<const queue_layout> layouts,
                               const feature_set& negotiated) noexcept {
    if (const auto started = queues_.start(memory, layouts, negotiated); !started) {
      queues_.reset();
      return started;
    }
    memory_ = &memory;
    config_->activate(negotiated);
    config_->know_poison();
    pages_.start(memory, negotiated.test(feature::must_tell_host), config_->poison());
    return {};
  }
  /// `start`, with each queue at its position; or, while detached, all of them anew. What was held
  /// comes once more. Errors: the queues'; then none of them is.
  constexpr result<void> resume(M& memory, std::span<const queue_layout> layouts,
                                const feature_set& negotiated,
                                std::span<const device_queue_state> positions) noexcept {
    statistics_.rewind();
    if (const auto started = queues_.resume(memory, layouts, negotiated, positions); !started) {
      queues_.reset();
      return started;
    }
    memory_ = &memory;
    config_->activate(negotiated);
    pages_.start(memory, negotiated.test(feature::must_tell_host), config_->poison());
    if (negotiated.test(feature::page_poison) && !config_->is_poison_known())
      pages_.keep_reported();
    return {};
  }
  [[nodiscard]] constexpr bool is_detached() const noexcept { return memory_ == nullptr; }

  [[nodiscard]] constexpr std::uint32_t epoch() const noexcept { return epoch_; }
  /// As it was elsewhere. Errors: `state_version`, `state_invalid`; nothing changes.
  constexpr result<void> restore(const hint_device_state& hinting, bool is_statistics_pending,
                                 std::uint32_t epoch) noexcept {
    if (const auto restored = hinting_.restore(hinting); !restored) return restored;
    (void)show_command_id(true);
    statistics_.restore(is_statistics_pending);
    epoch_ = epoch;
    return {};
  }

  constexpr void detach() noexcept {
    queues_.detach();
    pages_.forget();
    memory_ = nullptr;
  }
  /// Errors: `already_attached` (nothing changes), the queues'; what is not attached is not
  /// processed.
  constexpr actions attach(M& memory, std::span<const queue_layout> layouts) noexcept {
    if (!is_detached()) return refused(error::already_attached);
    memory_ = &memory;
    pages_.move_to(memory);
    if (const auto attached = queues_.attach(memory, layouts); !attached)
      return refused(attached.error());
    // What was made available and perhaps notified meanwhile.
    return {.more_work = queues_.attached()};
  }
  constexpr void reset() noexcept {
    queues_.reset();
    config_->reset();
    pages_.forget();
    statistics_.reset();
    hinting_.reset();
    (void)show_command_id(false);
    memory_ = nullptr;
    ++epoch_;
  }

  constexpr actions reset_queue(queue_kind kind) noexcept {
    queues_[kind].reset();
    return forget_held(kind);
  }
  /// Errors: the queue's.
  constexpr actions enable_queue(queue_kind kind, const queue_layout& layout,
                                 std::uint32_t budget) noexcept {
    if (is_detached()) return refused(error::not_attached);
    actions due;
    // A round that the driver has not taken up yet may begin in the new queue.
    if (kind != queue_kind::free_page || hinting_.is_accepting()) due = forget_held(kind);
    const auto started = queues_[kind].start(*memory_, layout, queues_.negotiated());
    return due |= started ? process(kind, budget) : refused(started.error());
  }

  // Work.

  /// Errors: `invalid_queue_index` (not attached); with the need for a reset, the queue's.
  constexpr actions process(queue_kind kind, std::uint32_t budget) noexcept {
    if (!queues_[kind].is_attached()) return refused(error::invalid_queue_index);
    return kind == queue_kind::statistics ? process_statistics(budget)
                                          : process_pages(kind, budget);
  }

  constexpr actions request_statistics() noexcept {
    auto& statsq = queues_[queue_kind::statistics];
    if (const auto r = statistics_.request(statsq); !r)
      return r.error() == error::memory_lost ? failed(error::memory_lost) : refused(r.error());
    statsq.publish();
    return checked(queues_.notify_if_due(queue_kind::statistics));
  }

  constexpr actions start_hinting() noexcept {
    if (const auto started = hinting_.start(); !started) return refused(started.error());
    return show_command_id(true);
  }
  constexpr actions stop_hinting() noexcept { return show_command_id(hinting_.stop()); }
  constexpr actions finish_hinting() noexcept { return show_command_id(hinting_.done()); }

  [[nodiscard]] constexpr actions failed(error why) noexcept {
    ++counters_->event_fails;
    return {.needs_reset = true, .failure = why};
  }

 private:
  using event = device_config::event;

  /// What was published while memory was lost went nowhere: the driver waits for it.
  [[nodiscard]] constexpr actions checked(actions due) noexcept {
    return memory_->good() ? due : due |= failed(error::memory_lost);
  }

  /// The chains of a queue that is taken away are not the device's any more.
  constexpr actions forget_held(queue_kind kind) noexcept {
    if (kind == queue_kind::inflate || kind == queue_kind::deflate) pages_.forget();
    if (kind == queue_kind::statistics) statistics_.drop_buffer();
    // What comes in the next queue is of no round.
    return kind == queue_kind::free_page ? stop_hinting() : actions{};
  }

  /// After each step of `hinting_`; `is_changed`: the driver is to be told.
  constexpr actions show_command_id(bool is_changed) noexcept {
    config_->show_command_id(hinting_.command_id());
    if (hinting_.state() != noted_state_) config_->note(event::hinting);
    noted_state_ = hinting_.state();
    return {.config_changed = is_changed};
  }

  constexpr actions process_pages(queue_kind kind, std::uint32_t budget) noexcept {
    auto& from = queues_[kind];
    actions due;
    from.disable_notifications();
    while (budget != 0) {
      error payload = error::none;
      const auto done = from.consume(budget, [&](const chain& c) {
        return used(payload == error::none ? handle(kind, c, due, payload) : 0);
      });
      // Every page is dealt with before its buffer is returned.
      if (kind == queue_kind::inflate) pages_.finish_inflate();
      if (kind == queue_kind::deflate) pages_.finish_deflate();
      pages_.flush();
      from.publish();
      due |= queues_.notify_if_due(kind);
      if (payload != error::none) from.fail(payload);
      if (!done || from.cause() != error::none)
        return due |= failed(from.cause() != error::none ? from.cause() : done.error());
      if (!from.enable_notifications()) return checked(due);
      // A driver that moves its index to and fro costs a budget too.
      budget -= done->chains == 0 ? 1 : done->chains;
    }
    due.more_work |= queues_.bit_of(kind);
    return due;
  }

  /// Does what a buffer is for; the length to return it with. `why` breaks the queue.
  constexpr std::uint32_t handle(queue_kind kind, const chain& c, actions& due,
                                 error& why) noexcept {
    switch (kind) {
    case queue_kind::inflate: why = pages_.inflate(c); break;
    case queue_kind::deflate: why = pages_.deflate(c); break;
    case queue_kind::reporting: return pages_.report(c);
    case queue_kind::free_page:
      if (!c.readable().empty()) why = take_command(c, due);
      if (why == error::none) pages_.hint(c, hinting_.is_accepting());
      break;
    case queue_kind::statistics: break;
    }
    return 0;
  }

  /// The readable part of a buffer of the free_page_vq: an id of 4 bytes, however they are cut.
  constexpr error take_command(const chain& c, actions& due) noexcept {
    struct id_bytes {
      std::byte at[hint_device::command_bytes];
    };
    id_bytes raw{};
    result<std::size_t> read = std::size_t{0};
    if (total_bytes(c.readable()) == sizeof(raw))
      read = buffer_reader<M>(*memory_, c.readable()).read(raw.at);
    if (read.error() == error::memory_lost) return error::memory_lost;
    if (*read != sizeof(raw)) {
      // Nobody knows under which id the next pages come.
      if (hinting_.is_accepting()) due |= show_command_id(hinting_.stop());
      return hinting_.on_malformed() ? error::hint_command_malformed : error::none;
    }
    const hint_command done = hinting_.on_command(std::bit_cast<word<std::uint32_t, E>>(raw));
    due |= show_command_id(done.is_config_changed);
    return error::none;
  }

  constexpr actions process_statistics(std::uint32_t budget) noexcept {
    auto& statsq = queues_[queue_kind::statistics];
    actions due;
    statsq.disable_notifications();
    for (; budget != 0; --budget) {
      const auto popped = statsq.pop_available();
      if (popped) keep_statistics(*popped);
      statsq.publish();
      due |= queues_.notify_if_due(queue_kind::statistics);
      if (statsq.cause() != error::none) return due |= failed(statsq.cause());
      if (!popped && popped.error() != error::queue_empty) return due |= failed(popped.error());
      if (!statsq.enable_notifications()) return checked(due);
    }
    due.more_work |= queues_.bit_of(queue_kind::statistics);
    return due;
  }

  /// Reads a buffer and holds it until the next request.
  constexpr void keep_statistics(const chain& c) noexcept {
    auto& statsq = queues_[queue_kind::statistics];
    const auto second = statistics_.hold(statsq, c.id());
    if (!second) statsq.fail(second.error());
    counters_->duplicate_statistics += *second;
    snapshot fresh;
    fresh.epoch = epoch_;
    fresh.actual_pages = config_->actual_of_driver();
    fresh.target_pages = config_->target();
    fresh.deflate_on_oom = has(feature::deflate_on_oom);
    if (const auto read = statistics_.template read<E>(*memory_, c.readable(), fresh); !read) {
      ++counters_->stats_update_fails;
      statsq.fail(read.error());
      return;
    }
    ++counters_->statistics_buffers;
    config_->note(event::statistics);
  }

  device_config* config_;
  device_counters* counters_;
  M* memory_ = nullptr;
  device_queues<M, QueueSize, E> queues_;
  device_pages<M, Host, E> pages_;
  device_statistics statistics_;
  hint_device hinting_;
  hint_state noted_state_ = hint_state::stop;
  std::uint32_t epoch_ = 0;
};

} // namespace ballast::balloon
