// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/device_config.hpp>
#include <ballast/balloon/device_host.hpp>
#include <ballast/balloon/device_options.hpp>
#include <ballast/balloon/device_work.hpp>
#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/shared_value.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// A device at rest, beside its queues: plain values, for `save` and `restore`. To be kept where
/// they outlive the process; with what its transport knows, and the positions of its queues, a
/// device in another process goes on.
struct device_state {
  static constexpr std::uint32_t current_version = 1;
  std::uint32_t version = current_version;
  std::uint32_t target = 0; ///< pages of 4096 bytes
  std::uint32_t actual = 0; ///< pages of 4096 bytes
  std::uint32_t poison = 0;
  std::uint32_t config_generation = 0;
  std::uint32_t epoch = 0; ///< of `snapshot`
  hint_device_state hinting;
  bool has_actual = false;            ///< the driver has written it since the reset
  bool is_statistics_pending = false; ///< the driver was asked and has not answered

  friend constexpr bool operator==(const device_state&, const device_state&) noexcept = default;
};

/// The balloon device: a `device_model`, and a `resumable_device_model`.
///
///     balloon::device<mapped_memory, my_host> device(host, {.target_pages_max = pages});
///     device.set_target(pages);          // -> actions: the configuration changed
///     device.process(queue, budget);     // -> actions: notify the driver
///     device.take_events();              // what came of it
///     device.request_statistics();       // the reply comes through process(); then:
///     if (auto s = device.take_statistics(now)) ...;
///     device.start_hinting();            // each page that is free in the guest: host.hint()
///
/// Holds its queues' storage (up to `QueueSize` entries each), so it stays where it is.
/// `set_target`, `target`, `actual`, `take_events` and configuration reads may come from any
/// thread; the rest from one at a time. Spec: "Traditional Memory Balloon Device".
template <guest_memory M, page_host Host, std::uint32_t QueueSize = 128,
          std::endian E = std::endian::little>
class device {
 public:
  /// What the device can do; anything else in `device_options::offered` is left out.
  static constexpr feature_set supported = [] {
    feature_set can{feature::must_tell_host,         feature::stats_vq,
                    feature::deflate_on_oom,         feature::page_poison,
                    feature::page_reporting,         ballast::feature::event_idx,
                    ballast::feature::indirect_desc, ballast::feature::in_order,
                    ballast::feature::ring_reset,    ballast::feature::ring_packed,
                    ballast::feature::version_1};
    if (takes_hints<Host>) can.set(feature::free_page_hint);
    return can;
  }();

  constexpr explicit device(Host& host, const device_options& options = {}) noexcept
      : options_(in_force(options)), config_(options_), work_(host, options_, config_, counters_) {}

  device(const device&) = delete;
  device& operator=(const device&) = delete;

  // What the VMM asks for.

  /// Sets the wanted size of the balloon, in pages of 4096 bytes.
  /// Errors: `target_too_large`.
  constexpr actions set_target(std::uint32_t pages) noexcept {
    if (pages > options_.target_pages_max) return refused(error::target_too_large);
    if (!config_.set_target(pages) || is_active_.load() == 0) return {};
    if (config_.is_target_reached()) config_.note(event::reached);
    return {.config_changed = true};
  }
  [[nodiscard]] constexpr std::uint32_t target() const noexcept { return config_.target(); }
  /// The size of the balloon as the driver last wrote it, in pages of 4096 bytes.
  [[nodiscard]] constexpr std::uint32_t actual() const noexcept { return config_.actual(); }
  /// Whether the balloon has the size that was asked for, as far as the guest's pages allow. How
  /// long to wait for it: `adjustment`.
  [[nodiscard]] constexpr bool is_target_reached() const noexcept {
    return config_.is_target_reached();
  }

  /// Asks the driver for statistics, by returning the buffer it left with the device.
  /// Errors: `not_negotiated`, `no_statistics_buffer` (none yet, or a request is pending),
  /// `memory_lost` (then the device needs a reset).
  constexpr actions request_statistics() noexcept {
    return work_.has(feature::stats_vq) ? work_.request_statistics()
                                        : refused(error::not_negotiated);
  }
  [[nodiscard]] constexpr bool is_statistics_pending() const noexcept {
    return work_.statistics().is_pending();
  }
  /// Gives up waiting: the reply, when it comes after all, is stale (`is_solicited` is false).
  /// Errors: `no_request_pending`.
  constexpr result<void> abandon_statistics() noexcept { return work_.statistics().abandon(); }
  /// The statistics that came since the last call, stamped with the caller's time `now` in
  /// nanoseconds. Errors: `queue_empty` (none came).
  [[nodiscard]] constexpr result<snapshot> take_statistics(std::uint64_t now) noexcept {
    return work_.statistics().take(now);
  }

  /// Asks for free pages, under a new id: a round of a migration. They come through `process` to
  /// the host's `hint`. Errors: `not_negotiated`, `wrong_state` (all ids are out).
  constexpr actions start_hinting() noexcept {
    return work_.has(feature::free_page_hint) ? work_.start_hinting()
                                              : refused(error::not_negotiated);
  }
  /// Wants no hints for now: the driver keeps the hinted pages, another round may follow.
  /// Errors: `not_negotiated`.
  constexpr actions stop_hinting() noexcept {
    return work_.has(feature::free_page_hint) ? work_.stop_hinting()
                                              : refused(error::not_negotiated);
  }
  /// Has no use for hints any more: the driver may use the hinted pages again.
  /// Errors: `not_negotiated`.
  constexpr actions finish_hinting() noexcept {
    return work_.has(feature::free_page_hint) ? work_.finish_hinting()
                                              : refused(error::not_negotiated);
  }
  /// Where hinting is, and what came from the driver.
  [[nodiscard]] constexpr const hint_device& hinting() const noexcept { return work_.hinting(); }

  /// What changed since the last call.
  constexpr device_events take_events() noexcept { return config_.take_events(); }
  [[nodiscard]] constexpr const device_counters& counters() const noexcept { return counters_; }
  [[nodiscard]] constexpr const feature_set& negotiated_features() const noexcept {
    return work_.queues().negotiated();
  }
  /// What the driver said free pages hold; 0 without PAGE_POISON. Fixed while the driver is live.
  [[nodiscard]] constexpr std::uint32_t poison() const noexcept { return config_.poison(); }

  // device_model

  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return balloon::device_id; }
  [[nodiscard]] constexpr feature_set offered_features() const noexcept { return options_.offered; }
  constexpr result<void> check_features(const feature_set& accepted) const noexcept {
    if (options_.requires_must_tell_host && !accepted.test(feature::must_tell_host))
      return error::features_rejected;
    return {};
  }
  [[nodiscard]] constexpr std::uint16_t queue_count() const noexcept {
    return work_.queues().count();
  }
  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t index) const noexcept {
    return work_.queues().size_max(index);
  }
  [[nodiscard]] constexpr std::uint32_t config_size() const noexcept {
    return balloon::config_size(options_.offered);
  }
  constexpr result<void> read_config(std::uint32_t offset, std::span<std::byte> to) const noexcept {
    return config_.read(offset, to);
  }
  [[nodiscard]] constexpr std::uint32_t config_generation() const noexcept {
    return config_.generation();
  }
  constexpr actions write_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    return refused(config_.write(offset, from).error());
  }

  constexpr actions activate(const feature_set& negotiated, std::span<const queue_layout> queues,
                             M& memory) noexcept {
    if (is_active_.load() != 0) return refused(error::wrong_state);
    if (const auto started = work_.start(memory, queues, negotiated); !started) {
      ++counters_.activate_fails;
      return work_.failed(started.error());
    }
    is_active_.store(1);
    return look_at(queues);
  }

  /// Lets go of the memory, before its map changes. Everything else stays, but for what was known
  /// of host pages that are inflated in part. `attach` goes on.
  constexpr void detach() noexcept { work_.detach(); }

  /// Goes on after `detach`; `queues` as at the activation, but for those that were reset since.
  /// The memory may be another one. All queues are to be processed then (`more_work`): what the
  /// driver made available meanwhile was not looked at.
  /// Errors: `wrong_state` (not active), `already_attached`, the queues'; what is not attached is
  /// not processed.
  constexpr actions attach(std::span<const queue_layout> queues, M& memory) noexcept {
    return is_active_.load() == 0 ? refused(error::wrong_state) : work_.attach(memory, queues);
  }

  /// Everything of the device that its driver knows, beside the queues.
  [[nodiscard]] constexpr device_state save() const noexcept {
    return {.target = config_.target(),
            .actual = config_.actual(),
            .poison = config_.poison(),
            .config_generation = config_.generation(),
            .epoch = work_.epoch(),
            .hinting = work_.hinting().save(),
            .has_actual = config_.has_actual(),
            .is_statistics_pending = work_.statistics().is_pending()};
  }

  /// Takes up what another device saved, before `resume`. Hints of before are of no use here: the
  /// driver is shown DONE, where it was asked for any. A target that was set meanwhile is to be set
  /// again. Errors: `wrong_state` (active), `state_version`, `state_invalid` (also: beyond what the
  /// options allow); nothing changes.
  constexpr result<void> restore(const device_state& from) noexcept {
    if (is_active_.load() != 0) return error::wrong_state;
    if (from.version != device_state::current_version) return error::state_version;
    if (from.target > options_.target_pages_max ||
        (from.poison != 0 && !options_.offered.test(feature::page_poison)))
      return error::state_invalid;
    const auto restored = work_.restore(from.hinting, from.is_statistics_pending, from.epoch);
    if (!restored) return restored;
    config_.restore(from.target, from.actual, from.has_actual, from.poison, from.config_generation);
    return {};
  }

  [[nodiscard]] constexpr result<device_queue_state>
  queue_state(std::uint16_t index) const noexcept {
    const auto kind = kind_of(index);
    return kind ? work_.queues().state(*kind) : kind.error();
  }

  /// `activate`, with each queue where another device, or this one before `detach`, left it. The
  /// driver is told that the configuration changed: it may have, while nobody was there to tell.
  /// Errors: `wrong_state` (active, and not detached); with the need for a reset, the queues'.
  constexpr actions resume(const feature_set& negotiated, std::span<const queue_layout> queues,
                           M& memory, std::span<const device_queue_state> positions) noexcept {
    if (is_active_.load() != 0 && !work_.is_detached()) return refused(error::wrong_state);
    if (const auto resumed = work_.resume(memory, queues, negotiated, positions); !resumed) {
      is_active_.store(0);
      ++counters_.activate_fails;
      return work_.failed(resumed.error());
    }
    is_active_.store(1);
    return look_at(queues) |= actions{.config_changed = true};
  }

  constexpr actions process(std::uint16_t index, std::uint32_t budget) noexcept {
    if (is_active_.load() == 0) return refused(error::wrong_state);
    const auto kind = kind_of(index);
    return kind ? work_.process(*kind, budget) : refused(kind.error());
  }

  constexpr actions reset_queue(std::uint16_t index) noexcept {
    const auto kind = kind_of(index);
    return kind ? work_.reset_queue(*kind) : refused(kind.error());
  }

  constexpr actions enable_queue(std::uint16_t index, const queue_layout& layout) noexcept {
    const auto kind = kind_of(index);
    if (!kind) return refused(kind.error());
    if (is_active_.load() == 0) return refused(error::wrong_state);
    return work_.enable_queue(*kind, layout, activation_budget);
  }

  /// The target stays, and the balloon's size as it was written last.
  constexpr void reset() noexcept {
    is_active_.store(0);
    work_.reset();
  }

 private:
  using event = device_config::event;

  /// Buffers of each queue that are looked at while the driver writes DRIVER_OK; the rest is
  /// announced as `more_work`.
  static constexpr std::uint32_t activation_budget = 4;

  /// Whatever was made available, and perhaps notified, before the device looked.
  constexpr actions look_at(std::span<const queue_layout> queues) noexcept {
    actions due;
    for (std::uint16_t i = 0; i < queue_count() && i < queues.size(); ++i)
      if (queues[i].size != 0 && kind_of(i)) due |= process(i, activation_budget);
    return due;
  }

  [[nodiscard]] constexpr result<queue_kind> kind_of(std::uint16_t index) const noexcept {
    return work_.queues().kind_of(index);
  }

  [[nodiscard]] static constexpr device_options in_force(device_options options) noexcept {
    options.host_page_size = options.tracker != nullptr ? options.tracker->host_page_size()
                                                        : host_page_size_of(options.host_page_size);
    options.offered = (options.offered & supported).with(ballast::feature::version_1);
    if (options.host_page_size > page_size)
      options.offered = options.offered.with(feature::must_tell_host);
    return options;
  }

  device_options options_;
  device_counters counters_;
  device_config config_;
  device_work<M, Host, QueueSize, E> work_;
  shared_value<std::uint32_t> is_active_;
};

} // namespace ballast::balloon
