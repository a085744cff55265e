// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

/// What the ring benches measure: the way of a buffer of 64 bytes to the device and back.
namespace bench {

inline constexpr std::uint32_t queue_size = 256;
inline constexpr std::uint32_t buffer_bytes = 64;

/// Keeps `value`, and all that lies in memory, from being optimised away: between two steps it also
/// keeps the compiler from merging what two programs would do.
template <class T> [[gnu::always_inline]] inline void keep(T& value) {
  asm volatile("" : "+m"(value)::"memory");
}

/// A guest with two regions and a hole between them, as a VMM maps it: the ring and the indirect
/// tables lie in the low one, half of the buffers in each.
struct two_regions {
  static constexpr ballast::guest_address low = 0x10'0000, high = 0x1'0000'0000;
  static constexpr std::uint32_t ring_bytes = 0x5000; // of them 0x3000 for the tables
  static constexpr std::uint32_t region_bytes = ring_bytes + queue_size * buffer_bytes;

  two_regions() noexcept {
    for (std::uint32_t i = 0; i < queue_size; ++i)
      buffers[i] = {(i < queue_size / 2 ? low : high) + ring_bytes + i * buffer_bytes,
                    buffer_bytes};
  }
  two_regions(const two_regions&) = delete;
  two_regions& operator=(const two_regions&) = delete;

  /// One table of three entries for each descriptor.
  [[nodiscard]] static constexpr ballast::indirect_tables tables() noexcept {
    return {low + 0x2000, 3};
  }

  alignas(4096) std::byte low_bytes[region_bytes]{};
  alignas(4096) std::byte high_bytes[region_bytes]{};
  ballast::memory_region regions[2] = {{low, low_bytes, region_bytes},
                                       {high, high_bytes, region_bytes}};
  ballast::buffer buffers[queue_size];
};

inline constexpr ballast::feature_set usual_features{ballast::feature::version_1,
                                                     ballast::feature::event_idx};

/// What a format of rings is to the harness: its two engines, and where its parts lie. What only
/// one side writes has cache lines of its own, as where Linux places the rings.
struct split_format {
  template <ballast::guest_memory M> using driver = ballast::split_driver<M>;
  template <ballast::guest_memory M> using device = ballast::split_device<M>;

  [[nodiscard]] static constexpr ballast::queue_layout layout() noexcept {
    constexpr ballast::guest_address low = two_regions::low;
    return {queue_size, low, low + 0x1000, low + 0x1400};
  }
};

struct packed_format {
  template <ballast::guest_memory M> using driver = ballast::packed_driver<M>;
  template <ballast::guest_memory M> using device = ballast::packed_device<M>;

  [[nodiscard]] static constexpr ballast::queue_layout layout() noexcept {
    constexpr ballast::guest_address low = two_regions::low;
    return {queue_size, low, low + 0x1000, low + 0x1080};
  }
};

/// Either of them, chosen at run time by the features.
template <class Format> struct either_format {
  template <ballast::guest_memory M> using driver = ballast::virtqueue_driver<M>;
  template <ballast::guest_memory M> using device = ballast::virtqueue_device<M>;

  [[nodiscard]] static constexpr ballast::queue_layout layout() noexcept {
    return Format::layout();
  }
};

// The steps are inlined where they are used, so that the harness adds no calls to what is counted.

/// The driver of the ring. Apart from the device's memory by a cache line, since both may run at
/// once.
template <class Format> class alignas(128) driver_side {
 public:
  explicit driver_side(two_regions& guest,
                       const ballast::feature_set& features = usual_features) noexcept
      : buffers_(guest.buffers), memory_(*ballast::mapped_memory::over(guest.regions)) {
    if (!queue_.start(memory_, Format::layout(), features, 0, two_regions::tables())) ++failures;
  }

  /// Stages `batch` buffers that the device reads.
  [[gnu::always_inline]] void add(std::uint32_t batch) noexcept {
    std::uint32_t n = next_;
    if (batch == 1) {
      if (!queue_.add(buffers_.subspan(n % queue_size, 1), {}, n)) ++failures;
      ++n;
    } else {
      const auto done = queue_.add_each(batch, [&]() __attribute__((always_inline)) {
        const std::uint32_t i = n++;
        return ballast::single_buffer{buffers_[i % queue_size], false, i};
      });
      if (!done || *done != batch) ++failures;
    }
    next_ = n;
  }

  /// Adds `batch` chains of one buffer that the device reads and two that it writes.
  [[gnu::always_inline]] void add_chains(std::uint32_t batch) noexcept {
    for (std::uint32_t i = 0; i < batch; ++i) {
      const auto three = buffers_.subspan(next_ % (queue_size / 4) * 4, 3);
      if (!queue_.add(three.first(1), three.subspan(1), next_)) ++failures;
      ++next_;
    }
  }

  /// Takes back up to `batch` chains. How many there were.
  [[gnu::always_inline]] std::uint32_t reclaim(std::uint32_t batch) noexcept {
    if (batch == 1) {
      const auto used = queue_.pop_used();
      if (!used) return 0;
      sum_ += used->token + used->length;
      return 1;
    }
    const auto done =
        queue_.reclaim(batch, [this](const ballast::used_buffer& u)
                                  __attribute__((always_inline)) { sum_ += u.token + u.length; });
    if (!done) ++failures;
    return *done;
  }

  /// Takes back what has come and tells `handle(token)` of each.
  template <class Handle> std::uint32_t reclaim_each(Handle&& handle) noexcept {
    const auto done =
        queue_.reclaim(queue_size, [&](const ballast::used_buffer& u) { handle(u.token); });
    if (!done) ++failures;
    return *done;
  }

  void publish() noexcept { queue_.publish(); }
  [[gnu::always_inline]] void ask_whether_to_notify() noexcept {
    notifications += queue_.publish_and_ask();
  }
  [[nodiscard]] bool should_notify() noexcept { return queue_.publish_and_ask(); }
  /// Whether there is nothing to take back, and a notification will come when there is.
  [[nodiscard]] bool may_sleep() noexcept { return !queue_.enable_notifications(); }
  [[nodiscard]] std::uint32_t room() const noexcept { return queue_.free_descriptors(); }

  std::uint64_t notifications = 0;
  std::uint64_t failures = 0; ///< anything that a bench should not see

 private:
  std::span<const ballast::buffer> buffers_;
  ballast::mapped_memory memory_;
  std::array<ballast::driver_slot, queue_size> slots_;
  typename Format::template driver<ballast::mapped_memory> queue_{slots_};
  std::uint32_t next_ = 0;
  std::uint64_t sum_ = 0; // of what came back, so that it is looked at
};

/// What the device does with a buffer: takes it as it stands in the descriptor, or looks up where
/// it lies.
enum class access_by { address, pointer };

/// The device of the ring.
template <class Format, access_by By> class alignas(128) device_side {
 public:
  explicit device_side(two_regions& guest,
                       const ballast::feature_set& features = usual_features) noexcept
      : memory_(*ballast::mapped_memory::over(guest.regions)) {
    if (!queue_.start(memory_, Format::layout(), features)) ++failures;
  }

  /// Takes up to `batch` buffers and stages their return. How many there were.
  [[gnu::always_inline]] std::uint32_t consume(std::uint32_t batch) noexcept {
    const auto handle = [this](const ballast::chain& c) __attribute__((always_inline)) {
      if (c.readable().size() != 1) {
        ++failures;
        return ballast::keep();
      }
      take(c.readable().front(), ballast::access::read);
      return ballast::used(c.id().head);
    };
    const auto done = batch == 1 ? queue_.consume_one(handle) : queue_.consume(batch, handle);
    if (!done) ++failures;
    return done->chains;
  }

  /// The same for chains of any length, all of which are written in full: under IN_ORDER one used
  /// element may stand for several.
  [[gnu::always_inline]] std::uint32_t consume_chains(std::uint32_t batch) noexcept {
    const auto handle = [this](const ballast::chain& c) __attribute__((always_inline)) {
      std::uint32_t written = 0;
      for (const ballast::buffer& b : c.readable()) take(b, ballast::access::read);
      for (const ballast::buffer& b : c.writable()) {
        take(b, ballast::access::write);
        written += b.length;
      }
      return ballast::used(written);
    };
    const auto done = queue_.consume(batch, handle);
    if (!done) ++failures;
    return done->chains;
  }

  void publish() noexcept { queue_.publish(); }
  [[gnu::always_inline]] void ask_whether_to_notify() noexcept {
    notifications += queue_.publish_and_ask();
  }
  [[nodiscard]] bool should_notify() noexcept { return queue_.publish_and_ask(); }
  /// Whether nothing is available, and a notification will come when something is.
  [[nodiscard]] bool may_sleep() noexcept { return !queue_.enable_notifications(); }

  std::uint64_t notifications = 0;
  std::uint64_t failures = 0;

 private:
  [[gnu::always_inline]] void take(const ballast::buffer& b, ballast::access kind) noexcept {
    if constexpr (By == access_by::pointer) {
      const auto at = memory_.segment(b.address, b.length, kind);
      if (at.size != b.length) ++failures;
      sum_ += reinterpret_cast<std::uintptr_t>(at.data);
    } else {
      sum_ += b.address + b.length;
    }
  }

  ballast::mapped_memory memory_;
  ballast::device_queue_storage<queue_size> storage_;
  typename Format::template device<ballast::mapped_memory> queue_{storage_};
  std::uint64_t sum_ = 0;
};

/// `batch` buffers from the driver to the device and back, in one thread; each side asks once
/// whether to notify.
template <class Format, access_by By>
[[gnu::always_inline]] inline void round_trip(driver_side<Format>& driver,
                                              device_side<Format, By>& device,
                                              std::uint32_t batch) noexcept {
  driver.add(batch);
  driver.ask_whether_to_notify();
  keep(driver);
  if (device.consume(batch) != batch) ++device.failures;
  device.ask_whether_to_notify();
  keep(device);
  if (driver.reclaim(batch) != batch) ++driver.failures;
  keep(driver);
}

} // namespace bench
