// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "support/driver_registers.hpp"

#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace ballast_test {

/// Does to a device what the driver for Windows does (virtio-win, Balloon/sys): accepts STATS_VQ
/// only; sends the 8-byte page numbers of its memory lists as they are, up to 512 in a buffer of
/// 4096 bytes; a statistics buffer without values is all ones. It waits 1 s for a buffer, then goes
/// on as if it had come back: writes the next chunk over it and sends it again. Pages are freed
/// before the device is told.
template <ballast::guest_memory M, class T> class windows_driver {
 public:
  static constexpr std::uint32_t chunk_max = 512; // PAGE_SIZE / sizeof(PFN_NUMBER)
  static constexpr std::uint32_t statistics_bytes = 160;

  /// Its memory is from `base` on, its free pages from `first_pfn` on.
  constexpr windows_driver(M& memory, T& transport, ballast::guest_address base,
                           std::uint64_t first_pfn) noexcept
      : memory_(&memory), transport_(&transport), registers_(transport, base),
        next_pfn_(first_pfn) {}
  windows_driver(const windows_driver&) = delete;
  windows_driver& operator=(const windows_driver&) = delete;

  std::uint32_t timeouts = 0; ///< buffers it did not wait for
  std::uint32_t stray = 0;    ///< buffers that came back after that

  constexpr bool start() noexcept {
    const auto offered = registers_.begin({1, ballast::feature::event_idx});
    if (!registers_.accept(offered)) return false;
    if (!registers_.find_queue(*memory_, inflate_, 0)) return false;
    if (!registers_.find_queue(*memory_, deflate_, 1)) return false;
    has_statistics_ = offered.test(1);
    if (has_statistics_ && !registers_.find_queue(*memory_, statistics_, 2)) return false;
    registers_.driver_ok();
    if (has_statistics_) send_statistics();
    return true;
  }

  /// BalloonInflate or BalloonLeak: one chunk towards the target; false where there is no need.
  constexpr bool work() noexcept {
    const std::uint32_t target = registers_.read_field(0);
    if (target == num_pages_) return false;
    const bool is_more = target > num_pages_;
    const std::uint32_t diff = is_more ? target - num_pages_ : num_pages_ - target;
    const std::uint32_t n = diff < chunk_max ? diff : chunk_max;
    for (std::uint32_t i = 0; i < n; ++i)
      registers_.template put<std::uint64_t>(*memory_, 8 * i, is_more ? next_pfn_++ : --next_pfn_);
    num_pages_ = is_more ? num_pages_ + n : num_pages_ - n; // freed, before the host is told
    auto& queue = is_more ? inflate_ : deflate_;
    const ballast::buffer data{registers_.data(), 8 * n};
    if (!queue.add({&data, 1}, {}, 0)) return false;
    if (queue.publish_and_ask()) transport_->notify(is_more ? 0 : 1);
    registers_.write_field(4, num_pages_);
    is_waiting_ = true;
    return true;
  }

  /// The wait for the buffer ended: it came, or a second passed.
  constexpr void end_wait() noexcept {
    std::uint32_t came = 0;
    while (registers_.get_buf(inflate_)) ++came;
    while (registers_.get_buf(deflate_)) ++came;
    timeouts += is_waiting_ && came == 0;
    stray += came > 1 ? came - 1 : !is_waiting_ && came == 1;
    is_waiting_ = false;
  }

  /// The service has values: `tag` and its number, until there are other ones.
  constexpr void set_statistic(std::uint16_t tag, std::uint64_t value) noexcept {
    tag_ = tag;
    value_ = value;
  }
  /// A notification of the statsq.
  constexpr bool answer() noexcept {
    if (!registers_.get_buf(statistics_)) return false;
    send_statistics();
    return true;
  }

  [[nodiscard]] constexpr std::uint32_t num_pages() const noexcept { return num_pages_; }
  [[nodiscard]] constexpr std::uint32_t buffers_out() const noexcept {
    return inflate_.in_flight() + deflate_.in_flight();
  }

 private:
  constexpr void send_statistics() noexcept {
    constexpr std::uint64_t at = 4096;
    for (std::uint64_t i = 0; i < statistics_bytes; ++i) // RtlFillMemory(..., 0xff)
      registers_.template put<std::uint8_t>(*memory_, at + i, 0xff);
    if (tag_ != 0xffff) {
      registers_.template put<std::uint16_t>(*memory_, at, tag_);
      registers_.template put<std::uint64_t>(*memory_, at + 2, value_);
    }
    const ballast::buffer data{registers_.data() + at, statistics_bytes};
    (void)statistics_.add({&data, 1}, {}, 0);
    if (statistics_.publish_and_ask()) transport_->notify(2);
  }

  M* memory_;
  T* transport_;
  driver_registers<T> registers_;
  std::array<ballast::driver_slot, 3 * driver_registers<T>::queue_size> slots_{};
  ballast::split_driver<M> inflate_{registers_.slots(slots_, 0)};
  ballast::split_driver<M> deflate_{registers_.slots(slots_, 1)};
  ballast::split_driver<M> statistics_{registers_.slots(slots_, 2)};
  std::uint64_t next_pfn_;
  std::uint64_t value_ = 0;
  std::uint32_t num_pages_ = 0;
  std::uint16_t tag_ = 0xffff;
  bool has_statistics_ = false;
  bool is_waiting_ = false;
};

} // namespace ballast_test
