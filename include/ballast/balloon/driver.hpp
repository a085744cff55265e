// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/driver_options.hpp>
#include <ballast/balloon/hint_queue.hpp>
#include <ballast/balloon/inflation.hpp>
#include <ballast/balloon/page_source.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/reporting_driver.hpp>
#include <ballast/balloon/request_queue.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/balloon/statistics_driver.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/negotiation.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace ballast::balloon {

/// A guest that offers pages and nothing else.
struct no_sources {};

/// What a guest may offer beside pages for the balloon: statistics, free pages to report, free
/// pages to hint; each of them is a feature that the driver accepts. One that offers none of it
/// says so with `no_sources`; a member of one of their names that does not fit is refused.
template <class S, std::endian E>
concept driver_sources =
    (statistics_source<S, E> || reporting_source<S> || hinting_source<S> ||
     std::same_as<S, no_sources>) &&
    (statistics_source<S, E> || !requires(S& s, statistics_writer<E>& to) { s.write(to); }) &&
    (reporting_source<S> || !requires(S& s, std::span<buffer> to) { s.take_reportable(to); }) &&
    (hinting_source<S> || !requires(S& s) { s.hint_blocks(); });

/// The balloon driver.
///
///     balloon::driver driver(memory, transport, pages, sources, base, options);
///     carry_out(driver.start());                  // negotiates, up to DRIVER_OK
///     on a configuration change:   carry_out(driver.on_config_change());
///     on a used notification:      carry_out(driver.step()); // where both came: the former alone
///
/// Each call does what can be done without waiting and returns what the caller must do: notify
/// queues, call `step` again (`more_work`). One buffer of up to 256 PFNs is under way at a time, as
/// in Linux, and no page of it is used before the device returned it, however long that takes.
/// Which features are accepted follows from what `P` and `Sources` have; what they don't have takes
/// no code. Every call from one thread at a time.
/// Spec: "Traditional Memory Balloon Device / Device Operation".
template <guest_memory M, driver_transport T, page_source P, class Sources,
          std::uint32_t QueueSize = 16, std::endian E = std::endian::little>
  requires driver_sources<Sources, E>
class driver {
  static constexpr bool gives_statistics = statistics_source<Sources, E>;
  static constexpr bool reports_pages = reporting_source<Sources>;
  static constexpr bool hints_pages = hinting_source<Sources>;
  static constexpr bool poisons = poisons_pages<P>;

  static constexpr feature_set supported_features() noexcept {
    feature_set can{feature::must_tell_host,       feature::deflate_on_oom,
                    ballast::feature::event_idx,   ballast::feature::in_order,
                    ballast::feature::ring_packed, ballast::feature::version_1};
    if (gives_statistics) can.set(feature::stats_vq);
    if (hints_pages) can.set(feature::free_page_hint);
    if (poisons) can.set(feature::page_poison);
    if (reports_pages) can.set(feature::page_reporting);
    return can;
  }

 public:
  /// What the driver can do; anything else in `driver_options::accepted` is left out.
  static constexpr feature_set supported = supported_features();
  static constexpr std::uint32_t statistics_bytes = statistics_buffer_bytes<E>;
  static constexpr std::uint32_t array_bytes = array_pfns_max * sizeof(std::uint32_t);

  /// Bytes of guest memory, from `base` on, that the driver keeps its rings and buffers in.
  static constexpr std::uint64_t memory_bytes =
      2 * request_queue_bytes(QueueSize, array_bytes, queue_alignment_of<T>()) +
      (gives_statistics ? request_queue_bytes(QueueSize, statistics_bytes, queue_alignment_of<T>())
                        : 0) +
      (hints_pages ? request_queue_bytes(QueueSize, hint_queue_bytes, queue_alignment_of<T>())
                   : 0) +
      (reports_pages ? request_queue_bytes(report_ranges_max, 0, queue_alignment_of<T>()) : 0);

  /// `base`: 16-aligned, with `memory_bytes` of guest memory in one piece behind it that never go
  /// into the balloon.
  constexpr driver(M& memory, T& transport, P& pages, Sources& sources, guest_address base,
                   const driver_options& options = {}) noexcept
      : memory_(&memory), transport_(&transport), sources_(&sources), base_(base),
        options_(options), inflation_(pages), hinting_(sources) {}

  driver(const driver&) = delete;
  driver& operator=(const driver&) = delete;

  /// Resets the device and brings it to DRIVER_OK, with the poison value written and the statistics
  /// buffer in place. A balloon from before is over with the reset: its pages are released.
  /// Errors: the memory's (for `memory_bytes` at `base`), those of `negotiate`; with FAILED set:
  /// `queue_unavailable`, `queue_too_small`, the queues', the transport's.
  constexpr actions start() noexcept {
    if (const auto own = memory_->window(base_, memory_bytes, 16, access::write); !own)
      return refused(own.error());
    refusal_ = error::wrong_state;
    const auto negotiated =
        negotiate(*transport_, {.device_id = device_id,
                                .supported = accepted_features(options_, supported),
                                .required = {},
                                .dependencies = dependencies_of(options_)});
    if (!negotiated) return refused(negotiated.error());
    drain();
    features_ = *negotiated;
    inflation_.begin(features_, options_);
    actions due;
    if (const auto ready = set_up(due); !ready) {
      set_failed(*transport_);
      return refused(ready.error());
    }
    if (const auto ok = set_driver_ok(*transport_); !ok) return refused(ok.error());
    refusal_ = error::none;
    write_actual();
    if constexpr (gives_statistics)
      if (has(feature::stats_vq)) statistics_.queue().notify_if_due(due); // not before DRIVER_OK
    return due |= on_config_change();
  }

  /// Resets the device and gives every page back: the end of the balloon, until the next `start`.
  /// Errors: `reset_incomplete`: the device may still touch pages, so none came back; call again.
  [[nodiscard]] constexpr result<void> stop(std::uint32_t reset_attempts = 1'000'000) noexcept {
    refusal_ = error::wrong_state;
    const auto reset = reset_device(*transport_, reset_attempts);
    if (reset) drain();
    return reset;
  }

  /// The device is gone (surprise removal): gives every page back and touches nothing of it.
  constexpr void remove() noexcept {
    refusal_ = error::wrong_state;
    drain();
  }

  /// The time, in ticks of the caller's: what `waiting_since` and `driver_options::retry` go by.
  constexpr void set_time(std::uint64_t now) noexcept { now_ = now; }

  /// Reads the target, and the hinting command, and moves towards them.
  /// Errors: `wrong_state` (not started, or FAILED), `device_needs_reset`, `config_unstable`, and
  /// those of `step`.
  constexpr actions on_config_change() noexcept {
    if (refusal_ != error::none) return refused_again();
    if ((transport_->status() & status::needs_reset) != 0)
      return give_up({.needs_reset = true, .failure = error::device_needs_reset});
    const auto target = read_field(offsetof(config, num_pages));
    if (!target) return refused(target.error());
    inflation_.set_target(*target);
    if constexpr (hints_pages)
      if (has(feature::free_page_hint)) {
        const auto id = read_field(offsetof(config, free_page_hint_cmd_id));
        if (!id) return refused(id.error());
        hinting_.hints().on_config(*id);
      }
    return step();
  }

  /// Takes up what the device returned and sends what is due next; `budget` bounds the rounds.
  /// With nothing to do it asks for notifications. `needs_reset` and the reason in `failure` where
  /// the device broke a queue: nothing of it is touched then until the next `start`.
  constexpr actions step(std::uint32_t budget = 64) noexcept {
    if (refusal_ != error::none) return refused_again();
    actions due;
    for (; budget != 0; --budget) {
      const bool has_worked = take_up(due);
      if (due.failure != error::none) return give_up(due);
      const bool has_sent = inflation_.adjust(now_, due);
      if (due.failure != error::none) return give_up(due);
      if (!has_sent && !has_worked && !enable_notifications()) return due;
    }
    due.more_work |= 1;
    return due;
  }

  /// Gives at least `pages` back to a guest that is out of memory, if the balloon has as many,
  /// whatever the target is, and does not inflate again before the next configuration change. The
  /// first buffer is sent at once; the rest follow as the device returns them.
  /// Errors: `not_negotiated` (DEFLATE_ON_OOM), `wrong_state`, `queue_full` (a deflation is under
  /// way: pages are coming), `queue_empty` (nothing in the balloon, or `pages` is 0).
  constexpr actions deflate_on_oom(std::uint32_t pages) noexcept {
    if (!has(feature::deflate_on_oom)) return refused(error::not_negotiated);
    if (refusal_ != error::none) return refused_again();
    if (inflation_.is_deflating()) return refused(error::queue_full);
    actions due;
    if (inflation_.deflate_on_oom(pages, now_, due)) return due;
    return due.failure != error::none ? give_up(due) : refused(error::queue_empty);
  }

  /// Moves what is in the balloon from one block to another, which is free and taken already: for a
  /// guest that wants the old one's neighbourhood in one piece. Inflates the new block, calls
  /// `replace`, deflates the old one and releases it; the size stays the same and is not written.
  /// Errors: `wrong_state`, `queue_full` (a block is under way), those of `step`.
  /// Linux: virtballoon_migratepage().
  constexpr actions migrate(std::uint32_t from, std::uint32_t to) noexcept
    requires moves_pages<P>
  {
    if (refusal_ != error::none) return refused_again();
    if (!is_idle()) return refused(error::queue_full);
    actions due;
    return inflation_.move(from, to, now_, due) ? due : give_up(due);
  }

  /// Reports free pages, where the source has any worth it. When to is the caller's to decide;
  /// Linux waits 2 s after pages became free. Errors: `wrong_state`, `not_negotiated`
  /// (PAGE_REPORTING), `queue_full` (a report is under way).
  constexpr actions report() noexcept
    requires reporting_source<Sources>
  {
    if (refusal_ != error::none) return refused_again();
    if (!has(feature::page_reporting)) return refused(error::not_negotiated);
    if (reporting_.queue().is_under_way()) return refused(error::queue_full);
    actions due;
    (void)reporting_.report(*sources_, now_, due);
    return due.failure == error::none ? due : give_up(due);
  }

  /// Takes up to `count` hinted blocks back for a guest that is short of memory; how many.
  constexpr std::uint32_t reclaim_hinted(std::uint32_t count) noexcept
    requires hinting_source<Sources>
  {
    return hinting_.hints().reclaim(count);
  }

  /// The size of the balloon, as last written to the configuration space.
  [[nodiscard]] constexpr std::uint32_t actual() const noexcept { return actual_; }
  /// What the driver moves to: the wanted size, rounded up to whole blocks.
  [[nodiscard]] constexpr std::uint32_t target() const noexcept { return inflation_.target(); }
  /// No page is under way to or from the balloon and nothing to do; or no page was to be had: call
  /// `step` again later.
  [[nodiscard]] constexpr bool is_idle() const noexcept { return inflation_.is_idle(); }
  /// Since when the device has had the oldest buffer of pages or of a report, by `set_time`.
  /// Whether that is too long is the caller's to decide, and what to do about it: `start` and
  /// `stop` reset the device. Errors: `queue_empty` (it has none).
  [[nodiscard]] constexpr result<std::uint64_t> waiting_since() const noexcept {
    result<std::uint64_t> oldest = error::queue_empty;
    const auto look = [&](const request_queue<M, E>& queue) {
      if (queue.is_under_way() && (!oldest || now_ - queue.sent_at() > now_ - *oldest))
        oldest = queue.sent_at();
    };
    look(inflation_.inflateq());
    look(inflation_.deflateq());
    if constexpr (reports_pages) look(reporting_.queue());
    return oldest;
  }
  /// When to call `step` because no page was to be had, by `driver_options::retry`; before, it does
  /// not ask for one. Errors: `queue_empty` (no such time).
  [[nodiscard]] constexpr result<std::uint64_t> next_attempt() const noexcept {
    if (!inflation_.retry().is_waiting()) return error::queue_empty;
    return inflation_.retry().next();
  }
  [[nodiscard]] constexpr const feature_set& negotiated_features() const noexcept {
    return features_;
  }

 private:
  [[nodiscard]] constexpr bool has(unsigned feature) const noexcept {
    return features_.test(feature);
  }

  /// Refused for the reason that the driver gave up for, or because it was not started.
  [[nodiscard]] constexpr actions refused_again() const noexcept {
    return {.needs_reset = refusal_ != error::wrong_state, .failure = refusal_};
  }

  /// Lets go of the device. It may still touch pages, so they stay where they are until a reset.
  constexpr actions give_up(const actions& due) noexcept {
    refusal_ = due.failure;
    return due;
  }

  /// What there is to do between FEATURES_OK and DRIVER_OK.
  constexpr result<void> set_up(actions& due) noexcept {
    guest_address at = base_;
    const auto start = [&](request_queue<M, E>& queue, queue_kind kind,
                           std::uint32_t bytes) -> result<void> {
      const auto index = index_of(kind);
      if (!index) return index.error();
      return queue.start(*memory_, *transport_, *index, queue_size_min(kind), at, bytes, features_,
                         options_.first_index);
    };
    auto ready = start(inflation_.inflateq(), queue_kind::inflate, array_bytes);
    if (ready) ready = start(inflation_.deflateq(), queue_kind::deflate, array_bytes);
    if constexpr (gives_statistics)
      if (ready && has(feature::stats_vq)) {
        ready = start(statistics_.queue(), queue_kind::statistics, statistics_bytes);
        if (ready) statistics_.send(*sources_, now_, due);
      }
    if constexpr (hints_pages)
      if (ready && has(feature::free_page_hint))
        ready = start(hinting_.queue(), queue_kind::free_page, hint_queue_bytes);
    if constexpr (reports_pages)
      if (ready && has(feature::page_reporting))
        ready = start(reporting_.queue(), queue_kind::reporting, 0);
    if constexpr (poisons)
      if (ready && has(feature::page_poison))
        ready = write_field(offsetof(config, poison_val), options_.poison_value);
    return ready ? result<void>(due.failure) : ready;
  }

  [[nodiscard]] constexpr result<std::uint16_t> index_of(queue_kind kind) noexcept {
    if constexpr (hints_pages || reports_pages)
      if (kind > queue_kind::statistics) {
        const feature_set offered = transport_->device_features();
        queue_numbering numbering = options_.numbering;
        if (options_.finds_numbering)
          numbering = find_numbering(*transport_, numbering, offered, features_);
        return queue_index(kind, numbering, offered, features_);
      }
    return static_cast<std::uint16_t>(kind); // at the same place in every numbering
  }

  /// The device was reset or is gone: what it had comes back.
  constexpr void drain() noexcept {
    inflation_.drain();
    if constexpr (gives_statistics) statistics_.queue().detach();
    if constexpr (hints_pages) hinting_.drain();
    if constexpr (reports_pages) reporting_.drain(*sources_);
  }

  /// Handles what the device returned; whether there was anything.
  constexpr bool take_up(actions& due) noexcept {
    bool has_worked = inflation_.take_up(now_, due);
    if (inflation_.actual() != actual_) write_actual();
    if constexpr (gives_statistics)
      if (has(feature::stats_vq)) has_worked |= statistics_.take_up(*sources_, now_, due);
    if constexpr (hints_pages)
      if (has(feature::free_page_hint)) has_worked |= hinting_.step(*memory_, due);
    if constexpr (reports_pages)
      if (has(feature::page_reporting)) has_worked |= reporting_.take_up(*sources_, due);
    return has_worked;
  }

  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    bool has_returned = inflation_.inflateq().enable_notifications();
    has_returned |= inflation_.deflateq().enable_notifications();
    if constexpr (gives_statistics) has_returned |= statistics_.queue().enable_notifications();
    if constexpr (hints_pages) has_returned |= hinting_.queue().enable_notifications();
    if constexpr (reports_pages) has_returned |= reporting_.queue().enable_notifications();
    return has_returned;
  }

  constexpr void write_actual() noexcept {
    actual_ = inflation_.actual();
    (void)write_field(offsetof(config, actual), actual_);
  }

  struct raw_field {
    std::byte at[sizeof(le32)]{};
  };

  [[nodiscard]] constexpr result<std::uint32_t> read_field(std::uint32_t offset) noexcept {
    raw_field raw;
    if (const auto read = read_config_consistent(*transport_, offset, raw.at); !read)
      return read.error();
    return std::uint32_t{std::bit_cast<le32>(raw)};
  }
  constexpr result<void> write_field(std::uint32_t offset, std::uint32_t value) noexcept {
    const auto raw = std::bit_cast<raw_field>(le32(value));
    return transport_->write_config(offset, raw.at);
  }

  /// Stands where a part is that the guest does not have.
  template <int> struct nothing {
    constexpr explicit nothing(auto&...) noexcept {}
  };

  M* memory_;
  T* transport_;
  Sources* sources_;
  guest_address base_;
  driver_options options_;
  feature_set features_;
  inflation<M, P, QueueSize, E> inflation_;
  [[no_unique_address]] std::conditional_t<gives_statistics, statistics_driver<M, QueueSize, E>,
                                           nothing<0>> statistics_;
  [[no_unique_address]] std::conditional_t<reports_pages, reporting_driver<M, E>, nothing<1>>
      reporting_;
  [[no_unique_address]] std::conditional_t<hints_pages, hint_queue<M, Sources, QueueSize, E>,
                                           nothing<2>> hinting_;
  std::uint64_t now_ = 0;
  std::uint32_t actual_ = 0;           ///< as written
  error refusal_ = error::wrong_state; ///< why nothing is done; none from DRIVER_OK on
};

} // namespace ballast::balloon
