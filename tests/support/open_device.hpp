// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// A chain as a device has it, with its buffers.
struct taken_chain {
  ballast::chain_id id;
  std::array<ballast::buffer, 32> buffers{};
  std::size_t readable = 0;
  std::size_t writable = 0;
};

/// A device and its transport that do nothing by themselves: a test says what is offered and what
/// comes back when, and reads what the driver did to the registers, in order. The queues are real
/// virtqueues.
template <ballast::guest_memory M, std::endian E = std::endian::little> class open_device {
 public:
  static constexpr std::uint16_t queue_count = 6;
  static constexpr std::uint32_t queue_size = 64;

  enum class what : std::uint8_t { status, features, set_up, config };
  struct event {
    what kind = what::status;
    std::uint32_t at = 0; ///< a queue's index, a field's offset
    std::uint64_t value = 0;
    friend constexpr bool operator==(const event&, const event&) = default;
  };

  constexpr explicit open_device(M& memory) noexcept : memory_(&memory) {}
  open_device(const open_device&) = delete;
  open_device& operator=(const open_device&) = delete;

  // What a test sets.
  ballast::feature_set offered{ballast::feature::version_1};
  std::array<std::uint32_t, queue_count> sizes{64, 64, 64, 64, 64, 64};
  std::uint32_t id = 5;
  bool is_gone = false;        ///< every access is a failure of the test
  bool is_reset_stuck = false; ///< the status never reads 0 again
  std::uint32_t accesses_when_gone = 0;
  bool refuses_config = false; ///< writes of the configuration fail

  constexpr void set_field(std::uint32_t offset, std::uint32_t value) noexcept {
    for (unsigned i = 0; i < 4; ++i)
      config_[offset + i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
    ++generation_;
  }
  [[nodiscard]] constexpr std::uint32_t field(std::uint32_t offset) const noexcept {
    std::uint32_t value = 0;
    for (unsigned i = 0; i < 4; ++i)
      value |= std::to_integer<std::uint32_t>(config_[offset + i]) << (8 * i);
    return value;
  }
  constexpr void set_needs_reset() noexcept { status_ |= ballast::status::needs_reset; }

  // driver_transport

  [[nodiscard]] constexpr std::uint32_t device_id() noexcept { return touched(), id; }
  [[nodiscard]] constexpr ballast::feature_set device_features() noexcept {
    return touched(), offered;
  }
  constexpr void set_driver_features(const ballast::feature_set& accepted) noexcept {
    touched();
    accepted_ = accepted;
    note({what::features, 0, accepted.word32(0)});
  }
  [[nodiscard]] constexpr std::uint8_t status() noexcept {
    touched();
    return is_reset_stuck ? static_cast<std::uint8_t>(status_ | 1) : status_;
  }
  constexpr void set_status(std::uint8_t bits) noexcept {
    touched();
    status_ = bits;
    note({what::status, 0, bits});
    if (bits != 0) return;
    for (auto& queue : queues_) queue.ring.reset();
    for (auto& at : layouts_) at = {};
    set_field(4, 0);
    set_field(12, 0); // as QEMU does: poison_val goes with the reset
  }
  [[nodiscard]] constexpr std::uint32_t queue_size_max(std::uint16_t queue) noexcept {
    touched();
    return queue < queue_count ? sizes[queue] : 0;
  }
  [[nodiscard]] constexpr ballast::result<void>
  set_up_queue(std::uint16_t queue, const ballast::queue_layout& layout) noexcept {
    touched();
    note({what::set_up, queue, layout.size});
    layouts_[queue] = layout;
    return queues_[queue].ring.start(*memory_, layout, accepted_);
  }
  [[nodiscard]] constexpr ballast::result<void> reset_queue(std::uint16_t) noexcept {
    touched();
    return ballast::error::not_negotiated;
  }
  [[nodiscard]] constexpr std::uint32_t config_generation() noexcept {
    return touched(), generation_;
  }
  [[nodiscard]] constexpr ballast::result<void> read_config(std::uint32_t offset,
                                                            std::span<std::byte> to) noexcept {
    touched();
    if (offset + to.size() > config_.size()) return ballast::error::config_out_of_range;
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = config_[offset + i];
    return {};
  }
  [[nodiscard]] constexpr ballast::result<void>
  write_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    touched();
    if (refuses_config || offset + from.size() > config_.size())
      return ballast::error::config_out_of_range;
    for (std::size_t i = 0; i < from.size(); ++i) config_[offset + i] = from[i];
    note({what::config, offset, field(offset & ~3u)});
    return {};
  }
  constexpr void notify(std::uint16_t) noexcept { touched(); }

  // The device's side.

  /// The next chain of a queue; none: `readable` and `writable` are 0.
  [[nodiscard]] constexpr taken_chain take(std::uint16_t queue) noexcept {
    taken_chain taken;
    const auto popped = queues_[queue].ring.pop_available();
    if (!popped) return taken;
    taken.id = popped->id();
    for (const ballast::buffer& b : popped->readable()) taken.buffers[taken.readable++] = b;
    for (const ballast::buffer& b : popped->writable())
      taken.buffers[taken.readable + taken.writable++] = b;
    return taken;
  }
  constexpr bool give_back(std::uint16_t queue, const taken_chain& chain,
                           std::uint32_t length = 0) noexcept {
    auto& ring = queues_[queue].ring;
    const auto pushed = ring.push_used(chain.id, length);
    ring.publish();
    return pushed.has_value();
  }
  /// Takes what is there and gives it back; whether there was anything.
  constexpr bool serve(std::uint16_t queue) noexcept {
    const taken_chain taken = take(queue);
    return taken.readable + taken.writable != 0 && give_back(queue, taken);
  }
  /// The same for the inflateq and the deflateq.
  constexpr bool serve_pages() noexcept {
    const bool has_inflated = serve(0), has_deflated = serve(1);
    return has_inflated || has_deflated;
  }
  [[nodiscard]] constexpr const ballast::queue_layout& layout(std::uint16_t queue) const noexcept {
    return layouts_[queue];
  }
  /// The `i`-th number of `T`'s width in a buffer.
  template <class T = std::uint32_t>
  [[nodiscard]] constexpr T number(const ballast::buffer& b, std::uint32_t i) noexcept {
    std::array<std::byte, sizeof(T)> raw{};
    (void)memory_->read(b.address + i * sizeof(T), raw);
    return std::bit_cast<ballast::word<T, E>>(raw);
  }

  // What the driver did to the registers.

  [[nodiscard]] constexpr const ballast::feature_set& accepted() const noexcept {
    return accepted_;
  }
  [[nodiscard]] constexpr std::span<const event> events() const noexcept {
    return std::span(events_).first(event_count_);
  }
  constexpr void forget_events() noexcept { event_count_ = 0; }
  /// Writes of the field at `offset` since the last `forget_events`.
  [[nodiscard]] constexpr std::uint32_t writes_of(std::uint32_t offset) const noexcept {
    std::uint32_t n = 0;
    for (const event& e : events()) n += e.kind == what::config && e.at == offset;
    return n;
  }
  /// Where the event is; a large number if it did not happen.
  [[nodiscard]] constexpr std::size_t place_of(const event& wanted) const noexcept {
    for (std::size_t i = 0; i < event_count_; ++i)
      if (events_[i] == wanted) return i;
    return SIZE_MAX;
  }
  static constexpr event driver_ok{what::status, 0, 15};
  static constexpr event features_ok{what::status, 0, 11};

 private:
  struct own_queue {
    ballast::device_queue_storage<queue_size> storage;
    ballast::virtqueue_device<M, E> ring{storage};
  };

  constexpr void touched() noexcept { accesses_when_gone += is_gone; }
  constexpr void note(const event& e) noexcept {
    if (event_count_ < events_.size()) events_[event_count_++] = e;
  }

  M* memory_;
  std::array<own_queue, queue_count> queues_{};
  std::array<ballast::queue_layout, queue_count> layouts_{};
  std::array<std::byte, 16> config_{};
  std::array<event, 64> events_{};
  std::size_t event_count_ = 0;
  ballast::feature_set accepted_;
  std::uint32_t generation_ = 0;
  std::uint8_t status_ = 0;
};

} // namespace ballast_test
