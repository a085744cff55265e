// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/negotiation.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// Where a driver gets pages of 4096 bytes from and where they go: the guest's allocator.
///
/// - `take_free(pfns)`: fills in pages that nothing uses; how many (0: none to be had now).
/// - `store(pfns)`: these are in the balloon now; not to be touched.
/// - `take_stored(pfns)`: picks pages out of the balloon to give back to the guest; how many.
/// - `release(pfns)`: these may be used again; their contents are undefined.
template <class P>
concept page_source =
    requires(P& p, std::span<std::uint32_t> to, std::span<const std::uint32_t> from) {
      { p.take_free(to) } noexcept -> std::same_as<std::size_t>;
      { p.store(from) } noexcept;
      { p.take_stored(to) } noexcept -> std::same_as<std::size_t>;
      { p.release(from) } noexcept;
    };

/// Where a driver gets its statistics from: `write(writer)` adds the ones it has, the same subset
/// every time.
template <class S, std::endian E>
concept statistics_source = requires(S& s, statistics_writer<E>& to) {
  { s.write(to) } noexcept;
};

struct driver_options {
  /// Features to accept where they are offered; VERSION_1 always is.
  feature_set accepted{feature::must_tell_host, feature::stats_vq, ballast::feature::event_idx};
  queue_numbering numbering = queue_numbering::by_negotiated;
  /// Without MUST_TELL_HOST: let pages be used before the device returned the deflate buffer.
  bool reuses_before_acknowledged = false;
  /// Where the ring indices begin: 0 for every real device. For tests near the wrap.
  std::uint16_t first_index = 0;
};

/// The balloon driver.
///
///     balloon::driver driver(memory, transport, pages, statistics, base, options);
///     carry_out(driver.start());                  // negotiates, up to DRIVER_OK
///     on a configuration change:   carry_out(driver.on_config_change());
///     on a used notification:      carry_out(driver.step());
///
/// Each call does what can be done without waiting and returns what the caller must do: notify
/// queues, call `step` again (`more_work`). One buffer of up to 256 PFNs is under way at a time, as
/// in Linux. Every call from one thread at a time.
/// Spec: "Traditional Memory Balloon Device / Device Operation".
template <guest_memory M, driver_transport T, page_source P, class S, std::uint32_t QueueSize = 16,
          std::endian E = std::endian::little>
  requires statistics_source<S, E>
class driver {
 public:
  /// What the driver can do; anything else in `driver_options::accepted` is left out.
  static constexpr feature_set supported{feature::must_tell_host,    feature::stats_vq,
                                         feature::deflate_on_oom,    ballast::feature::event_idx,
                                         ballast::feature::in_order, ballast::feature::version_1};
  /// Room for more entries than there are tags.
  static constexpr std::uint32_t statistics_bytes = 40 * sizeof(statistic<E>);
  static constexpr std::uint32_t array_bytes = array_pfns_max * sizeof(std::uint32_t);

  /// Bytes of guest memory, from `base` on, that the driver keeps its rings and buffers in.
  static constexpr std::uint64_t memory_bytes =
      3 * ((split::place(0, QueueSize).end + 15) / 16 * 16) + 2 * array_bytes + statistics_bytes;

  /// `base`: 16-aligned, with `memory_bytes` of guest memory in one piece behind it that never go
  /// into the balloon.
  constexpr driver(M& memory, T& transport, P& pages, S& source, guest_address base,
                   const driver_options& options = {}) noexcept
      : memory_(&memory), transport_(&transport), pages_(&pages), source_(&source), base_(base),
        options_(options) {}

  driver(const driver&) = delete;
  driver& operator=(const driver&) = delete;

  /// Resets the device and brings it to DRIVER_OK, with the statistics buffer in place. A balloon
  /// from before is over with the reset: its pages are released.
  /// Errors: the memory's (for `memory_bytes` at `base`), those of `negotiate`; with FAILED set:
  /// `queue_unavailable`, the queues'.
  constexpr actions start() noexcept {
    if (const auto own = memory_->window(base_, memory_bytes, 16, access::write); !own)
      return refused(own.error());
    is_live_ = false;
    const auto negotiated = negotiate(
        *transport_,
        {.device_id = device_id, .supported = options_.accepted & supported, .required = {}});
    if (!negotiated) return refused(negotiated.error());
    release_all();
    features_ = *negotiated;
    actions due;
    if (const auto ready = set_up_queues(due); !ready) {
      set_failed(*transport_);
      return refused(ready.error());
    }
    if (const auto ok = set_driver_ok(*transport_); !ok) return refused(ok.error());
    is_live_ = true;
    write_actual(0);
    if (has_statistics()) notify_if_due(statistics_, due); // not before DRIVER_OK
    return due |= on_config_change();
  }

  /// Reads the target and moves towards it.
  /// Errors: `wrong_state` (not started, or FAILED), `device_needs_reset`, `config_unstable`, and
  /// those of `step`.
  constexpr actions on_config_change() noexcept {
    if (!is_live_) return refused(error::wrong_state);
    if ((transport_->status() & status::needs_reset) != 0)
      return {.needs_reset = true, .failure = error::device_needs_reset};
    std::byte raw[sizeof(le32)]{};
    if (const auto read = read_config_consistent(*transport_, offsetof(config, num_pages), raw);
        !read)
      return refused(read.error());
    target_ = std::bit_cast<le32>(raw);
    is_holding_ = false;
    return step();
  }

  /// Takes up what the device returned and sends what is due next; `budget` bounds the rounds.
  /// With nothing to do it asks for notifications. `needs_reset` and the reason in `failure` where
  /// the device broke a queue.
  constexpr actions step(std::uint32_t budget = 64) noexcept {
    if (!is_live_) return refused(error::wrong_state);
    actions due;
    for (; budget != 0; --budget) {
      const bool has_worked = take_up(due);
      if (due.failure != error::none) return due;
      if (adjust(due) || has_worked) continue;
      if (due.failure != error::none || !enable_notifications()) return due;
    }
    due.more_work |= 1;
    return due;
  }

  /// Gives at most `pages` back to a guest that is out of memory, whatever the target is, and does
  /// not inflate again before the next configuration change.
  /// Errors: `not_negotiated` (DEFLATE_ON_OOM), `wrong_state`, `queue_full` (a deflation is under
  /// way), `queue_empty` (nothing in the balloon).
  constexpr actions deflate_on_oom(std::uint32_t pages) noexcept {
    if (!features_.test(feature::deflate_on_oom)) return refused(error::not_negotiated);
    if (!is_live_) return refused(error::wrong_state);
    if (deflating_.count != 0) return refused(error::queue_full);
    actions due;
    if (deflate(pages, due))
      is_holding_ = true;
    else if (due.failure == error::none)
      return refused(error::queue_empty);
    return due;
  }

  /// The size of the balloon, as last written to the configuration space.
  [[nodiscard]] constexpr std::uint32_t actual() const noexcept { return actual_; }
  [[nodiscard]] constexpr std::uint32_t target() const noexcept { return target_; }
  /// Nothing under way and nothing to do; or no page was to be had: call `step` again later.
  [[nodiscard]] constexpr bool is_idle() const noexcept {
    return inflating_.count == 0 && deflating_.count == 0;
  }
  [[nodiscard]] constexpr const feature_set& negotiated_features() const noexcept {
    return features_;
  }

 private:
  /// The pages of the buffer that is under way. Private: the array in guest memory is the device's
  /// to scribble on.
  struct batch {
    std::uint32_t pfns[array_pfns_max]{};
    std::uint32_t count = 0;
    bool is_released = false; ///< these may be used again already

    [[nodiscard]] constexpr std::span<const std::uint32_t> pages() const noexcept {
      return std::span(pfns).first(count);
    }
  };

  struct queue {
    split_driver<M, E> ring;
    guest_address data = 0; ///< its buffer
    std::uint16_t index = 0;
    constexpr explicit queue(std::span<driver_slot> slots) noexcept : ring(slots) {}
  };

  [[nodiscard]] constexpr bool has_statistics() const noexcept {
    return features_.test(feature::stats_vq);
  }

  constexpr result<void> set_up_queues(actions& due) noexcept {
    guest_address at = base_;
    const auto set_up = [&](queue& q, queue_kind kind, std::uint32_t data_bytes) -> result<void> {
      const auto index =
          queue_index(kind, options_.numbering, transport_->device_features(), features_);
      if (!index) return index.error();
      q.index = *index;
      const std::uint32_t max = transport_->queue_size_max(q.index);
      if (max == 0) return error::queue_unavailable;
      const auto where = split::place(at, std::bit_floor(max < QueueSize ? max : QueueSize));
      q.data = align16(where.end);
      at = align16(q.data + data_bytes);
      if (const auto started =
              q.ring.start(*memory_, where.layout, features_, options_.first_index);
          !started)
        return started;
      return transport_->set_up_queue(q.index, where.layout);
    };
    if (const auto r = set_up(inflate_, queue_kind::inflate, array_bytes); !r) return r;
    if (const auto r = set_up(deflate_, queue_kind::deflate, array_bytes); !r) return r;
    if (!has_statistics()) return {};
    if (const auto r = set_up(statistics_, queue_kind::statistics, statistics_bytes); !r) return r;
    fill_statistics(due);
    return due.failure;
  }

  [[nodiscard]] static constexpr std::uint64_t align16(std::uint64_t n) noexcept {
    return (n + 15) & ~std::uint64_t{15};
  }

  /// Nothing is in the balloon of a device that was reset.
  constexpr void release_all() noexcept {
    pages_->release(inflating_.pages());
    if (!deflating_.is_released) pages_->release(deflating_.pages());
    inflating_.count = deflating_.count = 0;
    batch stored;
    do {
      stored.count = static_cast<std::uint32_t>(pages_->take_stored(stored.pfns));
      pages_->release(stored.pages());
    } while (stored.count != 0);
    is_holding_ = false;
    inflate_.ring.detach();
    deflate_.ring.detach();
    statistics_.ring.detach();
  }

  constexpr void notify_if_due(queue& q, actions& due) noexcept {
    if (q.ring.should_notify()) due.notify_queues |= std::uint64_t{1} << q.index;
  }

  /// Makes `bytes` of the queue's buffer available.
  constexpr void send(queue& q, std::uint32_t bytes, actions& due) noexcept {
    const buffer data{q.data, bytes};
    if (const auto added = q.ring.add({&data, 1}, {}, 0); !added) {
      due |= {.needs_reset = true, .failure = added.error()};
      return;
    }
    q.ring.publish();
  }

  /// Whether the device returned the buffer of `q`.
  [[nodiscard]] constexpr bool has_returned(queue& q, actions& due) noexcept {
    if (!q.ring.is_attached()) return false;
    const auto used = q.ring.pop_used();
    if (!used && used.error() != error::queue_empty)
      due |= {.needs_reset = true, .failure = used.error()};
    return used.has_value();
  }

  /// Handles what the device returned; whether there was anything.
  constexpr bool take_up(actions& due) noexcept {
    bool has_worked = false;
    // Every queue is looked at, the idle ones too: a device that returns what it was not given
    // breaks its queue there, instead of keeping us awake.
    if (has_returned(inflate_, due)) {
      pages_->store(inflating_.pages());
      write_actual(actual_ + inflating_.count);
      inflating_.count = 0;
      has_worked = true;
    }
    if (has_returned(deflate_, due)) {
      if (!deflating_.is_released) pages_->release(deflating_.pages());
      write_actual(actual_ - deflating_.count);
      deflating_.count = 0;
      has_worked = true;
    }
    if (has_statistics() && has_returned(statistics_, due)) {
      fill_statistics(due);
      notify_if_due(statistics_, due);
      has_worked = true;
    }
    return has_worked;
  }

  /// Starts the next buffer towards the target; whether there was one to send.
  constexpr bool adjust(actions& due) noexcept {
    if (!is_idle()) return false;
    if (actual_ > target_) return deflate(actual_ - target_, due);
    if (actual_ < target_ && !is_holding_) return inflate(target_ - actual_, due);
    return false;
  }

  constexpr bool inflate(std::uint32_t pages, actions& due) noexcept {
    const std::uint32_t n = pages < array_pfns_max ? pages : array_pfns_max;
    const std::size_t got = pages_->take_free(std::span(inflating_.pfns).first(n));
    inflating_.count = static_cast<std::uint32_t>(got);
    return got != 0 && send_pages(inflate_, inflating_, due);
  }

  constexpr bool deflate(std::uint32_t pages, actions& due) noexcept {
    const std::uint32_t n = pages < array_pfns_max ? pages : array_pfns_max;
    const std::size_t got = pages_->take_stored(std::span(deflating_.pfns).first(n));
    deflating_.count = static_cast<std::uint32_t>(got);
    deflating_.is_released = false;
    if (got == 0 || !send_pages(deflate_, deflating_, due)) return false;
    if (releases_early()) {
      pages_->release(deflating_.pages());
      deflating_.is_released = true;
    }
    return true;
  }

  [[nodiscard]] constexpr bool releases_early() const noexcept {
    return options_.reuses_before_acknowledged && !features_.test(feature::must_tell_host);
  }

  constexpr bool send_pages(queue& q, const batch& pages, actions& due) noexcept {
    struct pfn_bytes {
      std::byte at[sizeof(std::uint32_t)];
    };
    std::byte array[array_bytes]{};
    std::uint32_t bytes = 0;
    for (const std::uint32_t pfn : pages.pages())
      for (const std::byte b : std::bit_cast<pfn_bytes>(word<std::uint32_t, E>(pfn)).at)
        array[bytes++] = b;
    if (!memory_->write(q.data, std::span(array).first(bytes))) {
      due |= {.needs_reset = true, .failure = error::memory_lost};
      return false;
    }
    send(q, bytes, due);
    notify_if_due(q, due);
    return due.failure == error::none;
  }

  constexpr void fill_statistics(actions& due) noexcept {
    std::byte entries[statistics_bytes]{};
    statistics_writer<E> writer(entries);
    source_->write(writer);
    // An empty buffer would break many a device: send what Windows sends before it has values.
    if (writer.size() == 0) (void)writer.add(static_cast<statistic_tag>(UINT16_MAX), not_reported);
    const auto bytes = static_cast<std::uint32_t>(writer.size());
    if (!memory_->write(statistics_.data, std::span(entries).first(bytes))) {
      due |= {.needs_reset = true, .failure = error::memory_lost};
      return;
    }
    send(statistics_, bytes, due);
  }

  constexpr void write_actual(std::uint32_t pages) noexcept {
    actual_ = pages;
    const auto raw = std::bit_cast<raw_field>(le32(pages));
    (void)transport_->write_config(offsetof(config, actual), raw.at);
  }

  [[nodiscard]] constexpr bool enable_notifications() noexcept {
    bool has_returned = inflate_.ring.enable_notifications();
    has_returned |= deflate_.ring.enable_notifications();
    if (has_statistics()) has_returned |= statistics_.ring.enable_notifications();
    return has_returned;
  }

  struct raw_field {
    std::byte at[sizeof(le32)];
  };

  M* memory_;
  T* transport_;
  P* pages_;
  S* source_;
  guest_address base_;
  driver_options options_;
  feature_set features_;
  driver_slot inflate_slots_[QueueSize]{};
  driver_slot deflate_slots_[QueueSize]{};
  driver_slot statistics_slots_[QueueSize]{};
  queue inflate_{inflate_slots_};
  queue deflate_{deflate_slots_};
  queue statistics_{statistics_slots_};
  batch inflating_;
  batch deflating_;
  std::uint32_t target_ = 0;
  std::uint32_t actual_ = 0;
  bool is_live_ = false;    ///< from DRIVER_OK to the next start
  bool is_holding_ = false; ///< gave pages back when out of memory: no inflating for now
};

} // namespace ballast::balloon
