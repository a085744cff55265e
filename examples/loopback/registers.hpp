// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "back_end.hpp"
#include "doorbell.hpp"
#include "options.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/in_process_transport.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

namespace loopback {

using balloon_device = ballast::balloon::device<ballast::mapped_memory, back_end, queue_size_bound>;
using balloon_transport = ballast::in_process_transport<balloon_device, ballast::mapped_memory>;

/// The device's registers as both threads see them. The guest's writes and the VMM's work on the
/// device exclude each other; the virtqueues need no lock. After each write the VMM is told, as the
/// exit from a virtual machine would tell it.
class registers : public balloon_transport {
 public:
  /// `queue_size`: the most entries that the guest may give a queue.
  registers(balloon_device& device, ballast::mapped_memory& memory, doorbells& bells,
            std::uint32_t queue_size) noexcept
      : balloon_transport(device, memory), bells_(&bells), size_max_(queue_size) {}

  // The guest's side: a driver_transport.

  void set_driver_features(const ballast::feature_set& accepted) noexcept {
    const std::scoped_lock hold(lock_);
    balloon_transport::set_driver_features(accepted);
  }
  [[nodiscard]] std::uint32_t queue_size_max(std::uint16_t queue) const noexcept {
    return std::min(balloon_transport::queue_size_max(queue), size_max_);
  }
  [[nodiscard]] ballast::result<void> set_up_queue(std::uint16_t queue,
                                                   const ballast::queue_layout& layout) noexcept {
    const std::scoped_lock hold(lock_);
    if (queue == 0) size_ = layout.size;
    return balloon_transport::set_up_queue(queue, layout);
  }
  [[nodiscard]] ballast::result<void> reset_queue(std::uint16_t queue) noexcept {
    const std::scoped_lock hold(lock_);
    return balloon_transport::reset_queue(queue);
  }
  void set_status(std::uint8_t bits) noexcept {
    const std::scoped_lock hold(lock_);
    balloon_transport::set_status(bits);
    bells_->registers.ring();
  }
  [[nodiscard]] ballast::result<void> write_config(std::uint32_t offset,
                                                   std::span<const std::byte> from) noexcept {
    const std::scoped_lock hold(lock_);
    const auto written = balloon_transport::write_config(offset, from);
    bells_->registers.ring();
    return written;
  }
  void notify(std::uint16_t queue) noexcept {
    balloon_transport::notify(queue);
    bells_->available.ring();
  }

  /// Entries that the guest has given its first queue.
  [[nodiscard]] std::uint32_t queue_size() noexcept {
    const std::scoped_lock hold(lock_);
    return size_;
  }
  /// To be held by the VMM while it works on the device.
  [[nodiscard]] std::mutex& lock() noexcept { return lock_; }

 private:
  doorbells* bells_;
  std::uint32_t size_max_;
  std::uint32_t size_ = 0;
  std::mutex lock_;
};

} // namespace loopback
