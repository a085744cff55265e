// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/page_ranges.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/config_space.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/shared_value.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_device.hpp>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// The host's side of the balloon: takes memory back and provides it again.
///
/// - `discard(address, size)`: the guest does not need the contents; false where it failed. Called
///   before the driver is told that the buffer was used, never after.
/// - optional `provide(address, size)`: the guest is about to use the pages again.
///
/// Addresses are guest-physical, whole host pages, and all of it guest memory that may be written.
template <class H>
concept page_host = requires(H& h, guest_address address, std::uint64_t size) {
  { h.discard(address, size) } noexcept -> std::same_as<bool>;
};

struct device_options {
  /// Balloon features to offer; with those of the ring. VERSION_1 is always offered.
  feature_set offered{feature::stats_vq, ballast::feature::event_idx};
  queue_numbering numbering = queue_numbering::by_offered;
  /// The most pages that a target may have: the guest's memory, in pages of 4096 bytes.
  std::uint32_t target_pages_max = balloon_pages_max;
  /// The host's page size in bytes, rounded up to a power of two of at least 4096. Where it is
  /// larger than that, MUST_TELL_HOST is offered too, and guest and host addresses must be the same
  /// modulo it.
  std::uint32_t host_page_size = page_size;
  /// Refuse a driver that does not accept MUST_TELL_HOST. Spec: "Feature bits" (device, MAY).
  bool requires_must_tell_host = false;
  /// PFNs looked at in one buffer; more than Linux (256) and Windows (1024) send. The rest of a
  /// larger buffer is counted and passed over, the buffer is returned all the same.
  std::uint32_t buffer_pfns_max = 2048;
  /// Where the ring indices begin at activation: 0 for every real driver. For tests near the wrap.
  std::uint16_t first_index = 0;
};

/// What the device did since it was constructed.
struct device_counters {
  std::uint64_t inflated_pages = 0;       ///< given to `discard`, whether it worked or not
  std::uint64_t deflated_pages = 0;       ///< taken back by the driver
  std::uint64_t bad_pages = 0;            ///< PFNs outside writable guest memory
  std::uint64_t partial_pages = 0;        ///< inflated, but the host page is larger
  std::uint64_t discard_failures = 0;     ///< calls of `discard` that failed
  std::uint64_t trailing_bytes = 0;       ///< of PFN arrays, less than a PFN
  std::uint64_t oversized_buffers = 0;    ///< beyond `buffer_pfns_max`
  std::uint64_t statistics_buffers = 0;   ///< parsed
  std::uint64_t duplicate_statistics = 0; ///< a second buffer before the first was returned
};

/// The balloon device: a `device_model`.
///
///     balloon::device<mapped_memory, my_host> device(host, {.target_pages_max = pages});
///     device.set_target(pages);          // -> actions: the configuration changed
///     device.process(queue, budget);     // -> actions: notify the driver
///     device.request_statistics();       // the reply comes through process(); then:
///     if (auto s = device.take_statistics(now)) ...;
///
/// Holds its queues' storage (up to `QueueSize` entries each), so it stays where it is.
/// `set_target`, `target`, `actual` and configuration reads may come from any thread; the rest from
/// one at a time. Spec: "Traditional Memory Balloon Device".
template <guest_memory M, page_host Host, std::uint32_t QueueSize = 128,
          std::endian E = std::endian::little>
class device {
 public:
  /// What the device can do; anything else in `device_options::offered` is left out.
  static constexpr feature_set supported{
      feature::must_tell_host,         feature::stats_vq,
      feature::deflate_on_oom,         ballast::feature::event_idx,
      ballast::feature::indirect_desc, ballast::feature::in_order,
      ballast::feature::ring_reset,    ballast::feature::version_1};

  constexpr explicit device(Host& host, const device_options& options = {}) noexcept
      : host_(&host), options_(options) {
    options_.host_page_size =
        std::bit_ceil(options.host_page_size < page_size ? page_size : options.host_page_size);
    config_.set_visible_size(balloon::config_size(offered(options)));
  }

  device(const device&) = delete;
  device& operator=(const device&) = delete;

  // What the VMM asks for.

  /// Sets the wanted size of the balloon, in pages of 4096 bytes.
  /// Errors: `target_too_large`.
  constexpr actions set_target(std::uint32_t pages) noexcept {
    if (pages > options_.target_pages_max) return refused(error::target_too_large);
    const bool is_changed = config_.set32(offsetof(config, num_pages), pages);
    return {.config_changed = is_changed && is_active_.load() != 0};
  }
  [[nodiscard]] constexpr std::uint32_t target() const noexcept {
    return config_.get32(offsetof(config, num_pages));
  }
  /// The size of the balloon as the driver last wrote it, in pages of 4096 bytes.
  [[nodiscard]] constexpr std::uint32_t actual() const noexcept {
    return config_.get32(offsetof(config, actual));
  }

  /// Asks the driver for statistics, by returning the buffer it left with the device.
  /// Errors: `not_negotiated`, `no_statistics_buffer` (none yet, or a request is pending),
  /// `memory_lost` (then the device needs a reset).
  constexpr actions request_statistics() noexcept {
    if (!negotiated_.test(feature::stats_vq)) return refused(error::not_negotiated);
    if (!has_statistics_buffer_) return refused(error::no_statistics_buffer);
    if (const auto returned = statistics_.push_used(statistics_buffer_, 0); !returned)
      return returned.error() == error::memory_lost ? failed(error::memory_lost)
                                                    : refused(returned.error());
    has_statistics_buffer_ = false;
    is_statistics_pending_ = true;
    statistics_.publish();
    return checked(notify_if_due(queue_kind::statistics));
  }
  [[nodiscard]] constexpr bool is_statistics_pending() const noexcept {
    return is_statistics_pending_;
  }
  /// Gives up waiting: the reply, when it comes after all, is stale (`is_solicited` is false).
  /// Errors: `no_request_pending`.
  constexpr result<void> abandon_statistics() noexcept {
    if (!is_statistics_pending_) return error::no_request_pending;
    is_statistics_pending_ = false;
    return {};
  }
  /// The statistics that came since the last call, stamped with the caller's time `now` in
  /// nanoseconds. Errors: `queue_empty` (none came).
  [[nodiscard]] constexpr result<snapshot> take_statistics(std::uint64_t now) noexcept {
    if (!has_snapshot_) return error::queue_empty;
    has_snapshot_ = false;
    snapshot_.received_at = now;
    return snapshot_;
  }

  [[nodiscard]] constexpr const device_counters& counters() const noexcept { return counters_; }
  [[nodiscard]] constexpr const feature_set& negotiated_features() const noexcept {
    return negotiated_;
  }

  // device_model

  [[nodiscard]] constexpr std::uint32_t device_id() const noexcept { return balloon::device_id; }
  [[nodiscard]] constexpr feature_set offered_features() const noexcept {
    return offered(options_);
  }
  constexpr result<void> check_features(const feature_set& accepted) const noexcept {
    if (options_.requires_must_tell_host && !accepted.test(feature::must_tell_host))
      return error::features_rejected;
    return {};
  }
  [[nodiscard]] constexpr std::uint16_t queue_count() const noexcept {
    return balloon::queue_count(options_.numbering, offered_features());
  }
  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t index) const noexcept {
    const feature_set offers = offered_features();
    return queue_kind_of(index, options_.numbering, offers, offers) ? QueueSize : 0;
  }
  [[nodiscard]] constexpr std::uint32_t config_size() const noexcept {
    return balloon::config_size(offered_features());
  }
  constexpr result<void> read_config(std::uint32_t offset, std::span<std::byte> to) const noexcept {
    return config_.read(offset, to);
  }
  [[nodiscard]] constexpr std::uint32_t config_generation() const noexcept {
    return config_.generation();
  }
  constexpr actions write_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    const auto written = config_.write(offset, from);
    if (!written) return refused(written.error());
    constexpr std::uint32_t begin = offsetof(config, actual), end = begin + sizeof(le32);
    if (offset < end && offset + from.size() > begin) has_actual_ = true;
    return {};
  }

  constexpr actions activate(const feature_set& negotiated, std::span<const queue_layout> queues,
                             M& memory) noexcept {
    if (is_active_.load() != 0) return refused(error::wrong_state);
    negotiated_ = negotiated;
    for (std::uint16_t i = 0; i < queue_count() && i < queues.size(); ++i) {
      const auto kind = kind_of(i);
      if (!kind || queues[i].size == 0) continue;
      if (const auto started =
              queue_of(*kind).start(memory, queues[i], negotiated, options_.first_index);
          !started)
        return failed(started.error());
    }
    memory_ = &memory;
    is_active_.store(1);
    // Whatever was made available, and perhaps notified, before DRIVER_OK.
    actions due;
    for (std::uint16_t i = 0; i < queue_count() && i < queues.size(); ++i)
      if (queues[i].size != 0 && kind_of(i)) due |= process(i, activation_budget);
    return due;
  }

  /// Lets go of the memory, before its map changes; everything else stays. `attach` goes on.
  constexpr void detach() noexcept {
    inflate_.detach();
    deflate_.detach();
    statistics_.detach();
  }

  /// Goes on after `detach`; `queues` as at the activation. The memory may be another one.
  /// Errors: `wrong_state` (not active), the queues'; what is not attached is not processed.
  constexpr result<void> attach(std::span<const queue_layout> queues, M& memory) noexcept {
    if (is_active_.load() == 0) return error::wrong_state;
    memory_ = &memory;
    for (std::uint16_t i = 0; i < queue_count() && i < queues.size(); ++i) {
      const auto kind = kind_of(i);
      if (!kind || queues[i].size == 0) continue;
      if (const auto r = queue_of(*kind).attach(memory, queues[i], negotiated_); !r) return r;
    }
    return {};
  }

  constexpr actions process(std::uint16_t index, std::uint32_t budget) noexcept {
    if (is_active_.load() == 0) return refused(error::wrong_state);
    const auto kind = kind_of(index);
    if (!kind || !queue_of(*kind).is_attached()) return refused(error::invalid_queue_index);
    return *kind == queue_kind::statistics ? process_statistics(budget)
                                           : process_pages(*kind, budget);
  }

  constexpr actions reset_queue(std::uint16_t index) noexcept {
    const auto kind = kind_of(index);
    if (!kind) return refused(kind.error());
    queue_of(*kind).reset();
    forget_held(*kind);
    return {};
  }

  constexpr actions enable_queue(std::uint16_t index, const queue_layout& layout) noexcept {
    const auto kind = kind_of(index);
    if (!kind) return refused(kind.error());
    if (is_active_.load() == 0) return refused(error::wrong_state);
    forget_held(*kind);
    const auto started = queue_of(*kind).start(*memory_, layout, negotiated_);
    return started ? process(index, activation_budget) : refused(started.error());
  }

  constexpr void reset() noexcept {
    is_active_.store(0);
    inflate_.reset();
    deflate_.reset();
    statistics_.reset();
    negotiated_ = {};
    has_statistics_buffer_ = is_statistics_pending_ = has_snapshot_ = has_actual_ = false;
    memory_ = nullptr;
    ++epoch_;
  }

 private:
  using queue = split_device<M, E>;

  /// Buffers of each queue that are looked at while the driver writes DRIVER_OK; the rest is
  /// announced as `more_work`.
  static constexpr std::uint32_t activation_budget = 4;

  static constexpr feature_set offered(const device_options& options) noexcept {
    feature_set offers = (options.offered & supported).with(ballast::feature::version_1);
    if (options.host_page_size > page_size) offers = offers.with(feature::must_tell_host);
    return offers;
  }

  [[nodiscard]] constexpr result<queue_kind> kind_of(std::uint16_t index) const noexcept {
    return queue_kind_of(index, options_.numbering, offered_features(), negotiated_);
  }
  [[nodiscard]] constexpr queue& queue_of(queue_kind kind) noexcept {
    if (kind == queue_kind::inflate) return inflate_;
    return kind == queue_kind::deflate ? deflate_ : statistics_;
  }
  [[nodiscard]] constexpr std::uint64_t bit_of(queue_kind kind) const noexcept {
    const auto index = queue_index(kind, options_.numbering, offered_features(), negotiated_);
    return std::uint64_t{1} << *index;
  }

  [[nodiscard]] static constexpr actions failed(error why) noexcept {
    return {.needs_reset = true, .failure = why};
  }

  /// What was published while memory was lost went nowhere: the driver waits for it.
  [[nodiscard]] constexpr actions checked(actions due) noexcept {
    return memory_->good() ? due : due |= failed(error::memory_lost);
  }

  /// The chains of a queue that is taken away are not the device's any more.
  constexpr void forget_held(queue_kind kind) noexcept {
    if (kind == queue_kind::statistics) has_statistics_buffer_ = is_statistics_pending_ = false;
  }

  constexpr actions notify_if_due(queue_kind kind) noexcept {
    return {.notify_queues = queue_of(kind).should_notify() ? bit_of(kind) : 0};
  }

  constexpr actions process_pages(queue_kind kind, std::uint32_t budget) noexcept {
    queue& from = queue_of(kind);
    const auto sink = [&](page_range range) { apply(kind, range); };
    actions due;
    from.disable_notifications();
    while (budget != 0) {
      page_range_builder ranges;
      error payload = error::none;
      const auto done = from.consume(budget, [&](const chain& c) {
        if (payload == error::none) payload = read_pfns(c, ranges, sink);
        return used(0);
      });
      ranges.finish(sink); // every page is dealt with before its buffer is returned
      from.publish();
      due |= notify_if_due(kind);
      if (payload != error::none) from.fail(payload);
      if (!done || from.cause() != error::none)
        return due |= failed(from.cause() != error::none ? from.cause() : done.error());
      if (!from.enable_notifications()) return checked(due);
      // A driver that moves its index to and fro costs a budget too.
      budget -= done->chains == 0 ? 1 : done->chains;
    }
    due.more_work |= bit_of(kind);
    return due;
  }

  /// Adds the PFNs of one buffer, however it is cut, to `ranges`.
  template <class Sink>
  constexpr error read_pfns(const chain& c, page_range_builder& ranges, Sink& sink) noexcept {
    constexpr std::size_t chunk_size = 256;
    buffer_reader<M> reader(*memory_, c.readable());
    for (std::uint32_t seen = 0;;) {
      struct pfn_bytes {
        std::byte at[4];
      };
      std::byte chunk[chunk_size]{};
      const auto read = reader.read(chunk);
      if (!read) return read.error();
      const std::size_t whole = *read - *read % sizeof(pfn_bytes);
      for (std::size_t i = 0; i < whole; i += sizeof(pfn_bytes)) {
        if (seen++ == options_.buffer_pfns_max) {
          ++counters_.oversized_buffers;
          return error::none;
        }
        const pfn_bytes raw{chunk[i], chunk[i + 1], chunk[i + 2], chunk[i + 3]};
        ranges.add(std::bit_cast<word<std::uint32_t, E>>(raw), sink);
      }
      counters_.trailing_bytes += *read - whole;
      if (*read < chunk_size) return error::none;
    }
  }

  /// Hands the guest memory in `range` to the host, piece by piece, and counts what is none.
  constexpr void apply(queue_kind kind, page_range range) noexcept {
    guest_address at = address_of(range.first);
    std::uint64_t left = range.count << pfn_shift;
    while (left != 0) {
      const std::uint64_t size = piece_at(at, left);
      if (size != 0) apply_piece(kind, at, size);
      const std::uint64_t bad = size == 0 ? page_size : 0;
      counters_.bad_pages += bad >> pfn_shift;
      at += size + bad;
      left -= size + bad;
    }
  }

  /// Bytes of whole pages at `at` that lie in one piece of writable memory, or in as many as make
  /// up one page.
  [[nodiscard]] constexpr std::uint64_t piece_at(guest_address at, std::uint64_t left) noexcept {
    std::uint64_t size = 0;
    do {
      const std::uint64_t more = memory_->segment(at + size, left - size, access::write).size;
      if (more == 0) break;
      size += more < left - size ? more : left - size;
    } while (size < left && size % page_size != 0);
    return size & ~std::uint64_t{page_size - 1};
  }

  constexpr void apply_piece(queue_kind kind, guest_address address, std::uint64_t size) noexcept {
    const std::uint64_t pages = size >> pfn_shift;
    const page_range whole =
        whole_host_pages({static_cast<std::uint32_t>(address >> pfn_shift), pages},
                         options_.host_page_size >> pfn_shift);
    const std::uint64_t whole_size = whole.count << pfn_shift;
    if (kind == queue_kind::inflate) {
      counters_.inflated_pages += whole.count;
      counters_.partial_pages += pages - whole.count;
      if (whole.count != 0 && !host_->discard(address_of(whole.first), whole_size))
        ++counters_.discard_failures;
    } else {
      counters_.deflated_pages += pages;
      if constexpr (requires { host_->provide(address, size); })
        if (whole.count != 0) host_->provide(address_of(whole.first), whole_size);
    }
  }

  constexpr actions process_statistics(std::uint32_t budget) noexcept {
    actions due;
    statistics_.disable_notifications();
    for (; budget != 0; --budget) {
      const auto popped = statistics_.pop_available();
      if (popped) keep_statistics(*popped);
      statistics_.publish();
      due |= notify_if_due(queue_kind::statistics);
      if (statistics_.cause() != error::none) return due |= failed(statistics_.cause());
      if (!popped && popped.error() != error::queue_empty) return due |= failed(popped.error());
      if (!statistics_.enable_notifications()) return checked(due);
    }
    due.more_work |= bit_of(queue_kind::statistics);
    return due;
  }

  /// Reads a buffer and holds it until the next request.
  constexpr void keep_statistics(const chain& c) noexcept {
    if (has_statistics_buffer_) { // a driver may have one at a time: the older goes back
      ++counters_.duplicate_statistics;
      if (const auto r = statistics_.push_used(statistics_buffer_, 0); !r)
        statistics_.fail(r.error());
    }
    statistics_buffer_ = c.id();
    has_statistics_buffer_ = true;
    if (const error e = read_statistics(c); e != error::none) statistics_.fail(e);
  }

  constexpr error read_statistics(const chain& c) noexcept {
    snapshot fresh;
    statistics_parser<E> parser(fresh);
    buffer_reader<M> reader(*memory_, c.readable());
    std::byte chunk[160]{};
    while (true) {
      const auto read = reader.read(chunk);
      if (!read) return read.error();
      if (!parser.feed(std::span(chunk).first(*read)) || *read < sizeof(chunk)) break;
    }
    ++counters_.statistics_buffers;
    fresh.epoch = epoch_;
    fresh.actual_pages = has_actual_ ? actual() : 0;
    fresh.target_pages = target();
    fresh.deflate_on_oom = negotiated_.test(feature::deflate_on_oom);
    // A duplicate does not take the answer away from one who waits for it.
    fresh.is_solicited = is_statistics_pending_ || (has_snapshot_ && snapshot_.is_solicited);
    is_statistics_pending_ = false;
    snapshot_ = fresh;
    has_snapshot_ = true;
    return error::none;
  }

  Host* host_;
  device_options options_;
  config_space<sizeof(config)> config_{{offsetof(config, actual), sizeof(le32)}};
  M* memory_ = nullptr;
  feature_set negotiated_;
  shared_value<std::uint32_t> is_active_;

  device_queue_storage<QueueSize> inflate_storage_;
  device_queue_storage<QueueSize> deflate_storage_;
  device_queue_storage<QueueSize> statistics_storage_;
  queue inflate_{inflate_storage_};
  queue deflate_{deflate_storage_};
  queue statistics_{statistics_storage_};

  chain_id statistics_buffer_;
  snapshot snapshot_;
  device_counters counters_;
  std::uint32_t epoch_ = 0;
  bool has_statistics_buffer_ = false;
  bool is_statistics_pending_ = false;
  bool has_snapshot_ = false;
  bool has_actual_ = false; ///< the driver of this epoch has written `actual`
};

} // namespace ballast::balloon
