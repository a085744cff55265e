// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/driver_registers.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// Does to a device what Linux 6.12 does, in its order (drivers/virtio/virtio_balloon.c): numbers
/// queues by what was negotiated, notifies the statsq before DRIVER_OK, has one buffer of up to 256
/// PFNs under way, waits for it for ever, writes `actual` after each; the pages in the balloon are
/// a stack, so they come out in descending order. Where the driver would sleep it returns. Without
/// hints and reports.
template <ballast::guest_memory M, class T> class linux_driver {
 public:
  static constexpr std::uint32_t array_pfns = 256; // VIRTIO_BALLOON_ARRAY_PFNS_MAX

  struct setting {
    std::uint32_t page_size = 4096; ///< PAGE_SIZE
    std::uint32_t first_pfn = 0;    ///< free pages from here on
    std::uint32_t pages = 0;        ///< so many, of PAGE_SIZE
    bool is_poisoned = false;       ///< page_poison=1: page_poisoning_enabled_static()
  };

  constexpr linux_driver(M& memory, T& transport, const setting& how) noexcept
      : memory_(&memory), transport_(&transport), how_(how), registers_(transport, 0) {}
  linux_driver(const linux_driver&) = delete;
  linux_driver& operator=(const linux_driver&) = delete;

  /// virtballoon_probe(); whether it worked.
  constexpr bool probe() noexcept {
    namespace bits = ballast::balloon::feature;
    features_ = registers_.begin({bits::must_tell_host, bits::stats_vq, bits::deflate_on_oom,
                                  bits::page_poison, ballast::feature::event_idx});
    if (!how_.is_poisoned) features_.clear(bits::page_poison); // virtballoon_validate()
    if (!registers_.accept(features_)) return false;
    if (!init_vqs()) return false;
    if (features_.test(bits::page_poison)) registers_.write_field(12, 0xaaaaaaaa);
    registers_.driver_ok(); // virtio_device_ready()
    if (towards_target() != 0) work();
    return true;
  }

  /// virtballoon_changed(), and the work it queues.
  constexpr void config_changed() noexcept {
    is_held_up_ = false;
    work();
  }

  /// A used buffer notification.
  constexpr void interrupt() noexcept {
    if (features_.test(ballast::balloon::feature::stats_vq) && registers_.get_buf(statistics_))
      stats_handle_request();
    work();
  }

  /// virtballoon_oom_notify(): up to 256 pages, whatever the target is.
  constexpr void out_of_memory() noexcept {
    if (waits_for_ == nothing && leak_balloon(array_pfns)) is_held_up_ = true;
  }

  /// virtballoon_migratepage() of the page pushed last; `actual` is not written.
  constexpr bool migrate_page() noexcept {
    if (waits_for_ != nothing || in_balloon_ == 0 || free_ == how_.pages) return false;
    const std::uint32_t new_page = alloc_page();
    leaving_ = balloon_[in_balloon_ - 1];
    balloon_[in_balloon_ - 1] = new_page;
    set_page_pfns(0, new_page);
    tell_host(0, pages_per_page());
    waits_for_ = migrated_in;
    return true;
  }

  [[nodiscard]] constexpr bool is_idle() const noexcept { return waits_for_ == nothing; }
  /// vb->num_pages, in pages of 4096 bytes.
  [[nodiscard]] constexpr std::uint32_t num_pages() const noexcept {
    return in_balloon_ * pages_per_page();
  }
  [[nodiscard]] constexpr const ballast::feature_set& features() const noexcept {
    return features_;
  }
  /// The queues to notify that the driver asked for before DRIVER_OK, and since.
  [[nodiscard]] constexpr std::uint64_t early_notifications() const noexcept { return early_; }

 private:
  enum what : std::uint8_t { nothing, inflated, deflated, migrated_in, migrated_out };
  static constexpr std::uint32_t pages_max = 2048;

  [[nodiscard]] constexpr std::uint32_t pages_per_page() const noexcept {
    return how_.page_size / 4096;
  }

  constexpr bool init_vqs() noexcept {
    namespace bits = ballast::balloon::feature;
    std::uint16_t index = 0; // find_vqs() counts only the queues it is asked for
    const auto find_vq = [&](auto& ring) { return registers_.find_queue(*memory_, ring, index++); };
    if (!find_vq(inflate_) || !find_vq(deflate_)) return false;
    if (features_.test(bits::stats_vq)) {
      const std::uint16_t stats = index;
      if (!find_vq(statistics_)) return false;
      update_balloon_stats();
      if (statistics_.publish_and_ask()) {
        transport_->notify(stats); // virtqueue_kick(), before DRIVER_OK
        early_ |= std::uint64_t{1} << stats;
      }
    }
    return true;
  }

  constexpr void update_balloon_stats() noexcept {
    using ballast::balloon::statistic_tag;
    std::byte bytes[160]{};
    ballast::balloon::statistics_writer<std::endian::little> writer(bytes);
    ++answers_;
    for (std::uint16_t tag = 0; tag < 16; ++tag)
      (void)writer.add(static_cast<statistic_tag>(tag), 4096u * answers_ + tag);
    const ballast::guest_address at = registers_.data() + 2048;
    (void)memory_->write(at, bytes);
    const ballast::buffer data{at, sizeof(bytes)};
    (void)statistics_.add({&data, 1}, {}, 0);
  }
  constexpr void stats_handle_request() noexcept {
    update_balloon_stats();
    if (statistics_.publish_and_ask()) transport_->notify(2);
  }

  /// The pages that are missing, of 4096 bytes; below 0: that are too many.
  constexpr std::int64_t towards_target() noexcept {
    const std::uint32_t target = registers_.read_field(0);
    const std::uint32_t per_page = pages_per_page();
    return std::int64_t{(target + per_page - 1) & ~(per_page - 1)} - std::int64_t{num_pages()};
  }

  /// update_balloon_size_func(), up to where it would sleep.
  constexpr void work() noexcept {
    while (true) {
      if (waits_for_ != nothing && !take_up()) return; // wait_event(): for ever
      const std::int64_t diff = towards_target();
      if (diff == 0 || is_held_up_) return;
      if (diff > 0 ? !fill_balloon(static_cast<std::uint32_t>(diff))
                   : !leak_balloon(static_cast<std::uint32_t>(-diff)))
        return;
    }
  }

  constexpr bool take_up() noexcept {
    auto& queue = waits_for_ == inflated || waits_for_ == migrated_in ? inflate_ : deflate_;
    if (!registers_.get_buf(queue)) return false;
    const what was = waits_for_;
    waits_for_ = nothing;
    if (was == migrated_in) {
      set_page_pfns(0, leaving_);
      tell_host(1, pages_per_page());
      waits_for_ = migrated_out;
      return take_up();
    }
    if (was != migrated_out) registers_.write_field(4, num_pages()); // update_balloon_size()
    return true;
  }

  constexpr bool fill_balloon(std::uint32_t num) noexcept {
    const std::uint32_t n = num < array_pfns ? num : array_pfns;
    std::uint32_t filled = 0;
    for (; filled < n && free_ < how_.pages; filled += pages_per_page()) {
      const std::uint32_t page = alloc_page();
      set_page_pfns(filled, page);
      balloon_[in_balloon_++] = page; // balloon_page_enqueue()
    }
    if (filled == 0) return false; // "Out of puff! Can't get pages"
    tell_host(0, filled);
    waits_for_ = inflated;
    return true;
  }

  constexpr bool leak_balloon(std::uint32_t num) noexcept {
    const std::uint32_t n = num < array_pfns ? num : array_pfns;
    std::uint32_t taken = 0;
    for (; taken < n && in_balloon_ != 0; taken += pages_per_page())
      set_page_pfns(taken, balloon_[--in_balloon_]); // the one pushed last
    if (taken == 0) return false;
    tell_host(1, taken);
    waits_for_ = deflated;
    return true;
  }

  constexpr std::uint32_t alloc_page() noexcept {
    return how_.first_pfn + free_++ * pages_per_page();
  }

  constexpr void set_page_pfns(std::uint32_t at, std::uint32_t page) noexcept {
    for (std::uint32_t i = 0; i < pages_per_page(); ++i)
      registers_.template put<std::uint32_t>(*memory_, 4 * (at + i), page + i);
  }

  constexpr void tell_host(std::uint16_t index, std::uint32_t pfns) noexcept {
    auto& queue = index == 0 ? inflate_ : deflate_;
    const ballast::buffer data{registers_.data(), pfns * 4};
    (void)queue.add({&data, 1}, {}, 0);
    if (queue.publish_and_ask()) transport_->notify(index);
  }

  M* memory_;
  T* transport_;
  setting how_;
  driver_registers<T> registers_;
  ballast::feature_set features_;
  std::array<ballast::driver_slot, 3 * driver_registers<T>::queue_size> slots_{};
  ballast::split_driver<M> inflate_{registers_.slots(slots_, 0)};
  ballast::split_driver<M> deflate_{registers_.slots(slots_, 1)};
  ballast::split_driver<M> statistics_{registers_.slots(slots_, 2)};
  std::array<std::uint32_t, pages_max> balloon_{};
  std::uint32_t in_balloon_ = 0;
  std::uint32_t free_ = 0; ///< pages that were allocated
  std::uint32_t leaving_ = 0;
  std::uint32_t answers_ = 0;
  std::uint64_t early_ = 0;
  what waits_for_ = nothing;
  bool is_held_up_ = false; ///< was out of memory: no filling before the next change
};

} // namespace ballast_test
