// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/packed_in_flight.hpp>
#include <ballast/vhost_user/split_in_flight.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_rings.hpp>
#include <ballast/virtqueue/queue_state.hpp>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::vhost_user {

/// What a queue of up to `N` entries holds, in a region of windows `W`, whichever its format.
template <memory_window W, std::uint32_t N, std::endian E> class queue_log {
 public:
  /// Which part of a queue a window lies over, of those that say something.
  enum class part : std::uint8_t { none, available_ring, used_ring, descriptor_ring };

  [[nodiscard]] constexpr bool is_on() const noexcept { return is_on_; }
  constexpr void stop() noexcept { is_on_ = false; }

  /// Takes up a region, a new one too, of a queue that lies there; where the queue goes on. `fresh`
  /// counts where the region is new. Errors: `in_flight_invalid`, `storage_too_small`, the
  /// memory's; then it stays off.
  template <guest_memory M>
  [[nodiscard]] constexpr result<device_queue_state>
  resume(W region, M& memory, const queue_layout& layout, bool is_packed,
         std::uint16_t fresh) noexcept {
    is_on_ = false;
    is_packed_ = is_packed;
    if (!(is_packed ? packed::is_valid_size(layout.size) : split::is_valid_size(layout.size)))
      return error::invalid_queue_size;
    place(layout);
    device_queue_state state;
    state.is_packed = is_packed;
    state.size = layout.size;
    state.unasked = unasked_max;
    if (is_packed) {
      const auto ring =
          memory.window(layout.descriptor_area, packed::descriptor_ring_bytes(layout.size),
                        packed::descriptor_ring_alignment, access::write);
      if (!ring) return ring.error();
      const auto word = [&](std::uint32_t i) {
        return ring->template load<std::uint64_t>(packed::descriptor_rest(i), order::acquire);
      };
      const auto at = packed_.resume(region, layout.size, ring_place::of(fresh), word);
      if (!at) return at.error();
      state.next_used = at->word();
    } else {
      const auto used = memory.window(layout.device_area, split::used_ring_bytes(layout.size),
                                      split::used_ring_alignment, access::write);
      if (!used) return used.error();
      const auto index =
          to_order<E>(used->template load<std::uint16_t>(split::used_index, order::acquire));
      if (const auto held = split_.resume(region, layout.size, index); !held) return held.error();
      state.next_used = index;
    }
    state.next_available = state.next_used;
    is_on_ = true;
    return state;
  }

  /// The queue lies there now.
  constexpr void place(const queue_layout& layout) noexcept { layout_ = layout; }

  [[nodiscard]] constexpr part part_at(guest_address address) const noexcept {
    if (!is_on_) return part::none;
    if (is_packed_) return address == layout_.descriptor_area ? part::descriptor_ring : part::none;
    if (address == layout_.driver_area) return part::available_ring;
    return address == layout_.device_area ? part::used_ring : part::none;
  }

  template <wire_integer T>
  [[nodiscard]] constexpr T load(part p, std::size_t offset, T found, order o) noexcept {
    if constexpr (std::same_as<T, std::uint64_t>) {
      if (p == part::descriptor_ring) return packed_.load(offset, found, o);
    } else if constexpr (std::same_as<T, std::uint16_t>) {
      if (p != part::available_ring || offset < split::available_entry(0) ||
          offset >= split::used_event(layout_.size))
        return found;
      const auto entry = static_cast<std::uint32_t>((offset - split::available_entry(0)) / 2);
      return to_order<E>(split_.pop(entry, to_order<E>(found)));
    }
    return found;
  }

  /// `store` does it.
  template <wire_integer T, class Store>
  constexpr void store(part p, std::size_t offset, T value, order o, Store&& store) noexcept {
    if constexpr (std::same_as<T, std::uint64_t>) {
      if (p == part::descriptor_ring && offset % packed::descriptor_size != 0) {
        if (o == order::release) return packed_.publish(value, store);
        packed_.stage(value);
      }
    } else if constexpr (std::same_as<T, std::uint32_t>) {
      if (p == part::used_ring && offset % 8 == split::used_id(0)) split_.use(to_order<E>(value));
    } else {
      if (p == part::used_ring && offset == split::used_index)
        return split_.publish(to_order<E>(value), store);
    }
    store();
  }

 private:
  queue_layout layout_;
  bool is_on_ = false;
  bool is_packed_ = false;
  split_in_flight<W, N> split_;
  packed_in_flight<W, N> packed_;
};

/// Another memory policy that notes which chains a device holds, where the front end keeps it: then
/// another process goes on with them after this one was killed. The device's engine is as ever; by
/// the words of the rings that it reads and writes the logs see what it does.
///
///     queue_log<window_of<M>, 256, std::endian::little> logs[queues];
///     auto state = logs[0].resume(region, ram, layout, is_packed, 0);
///     in_flight_memory memory(ram, std::span(logs));
///     device.resume(features, layouts, memory, {&*state, 1});
///
/// A log that is off costs a comparison for each access to a ring. Not for IN_ORDER, where a device
/// leaves used elements out.
template <guest_memory M, memory_window W, std::uint32_t N, std::endian E = std::endian::little>
class in_flight_memory {
 public:
  using log_type = queue_log<W, N, E>;

  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(window_of<M> window, log_type* log, typename log_type::part part) noexcept
        : window_(window), log_(log), part_(part) {}

    template <wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, order o) const noexcept {
      const T found = window_.template load<T>(offset, o);
      return log_ == nullptr ? found : log_->template load<T>(part_, offset, found, o);
    }
    template <wire_integer T> constexpr void store(std::size_t offset, T value, order o) noexcept {
      if (log_ == nullptr) return window_.template store<T>(offset, value, o);
      log_->template store<T>(part_, offset, value, o,
                              [&] { window_.template store<T>(offset, value, o); });
    }

   private:
    window_of<M> window_;
    log_type* log_ = nullptr;
    typename log_type::part part_ = log_type::part::none;
  };

  constexpr in_flight_memory(M memory, std::span<log_type> logs) noexcept
      : memory_(memory), logs_(logs) {}

  [[nodiscard]] constexpr result<window_type> window(guest_address address, std::uint64_t size,
                                                     std::size_t alignment, access k) noexcept {
    const auto window = memory_.window(address, size, alignment, k);
    if (!window) return window.error();
    for (log_type& log : logs_)
      if (const auto part = log.part_at(address); part != log_type::part::none)
        return window_type(*window, &log, part);
    return window_type(*window, nullptr, log_type::part::none);
  }
  [[nodiscard]] constexpr memory_segment segment(guest_address address, std::uint64_t size,
                                                 access k) noexcept {
    return memory_.segment(address, size, k);
  }
  [[nodiscard]] constexpr bool read(guest_address address, std::span<std::byte> to) noexcept {
    return memory_.read(address, to);
  }
  [[nodiscard]] constexpr bool write(guest_address address,
                                     std::span<const std::byte> from) noexcept {
    return memory_.write(address, from);
  }
  [[nodiscard]] constexpr bool good() noexcept { return memory_.good(); }
  constexpr void fence() noexcept { memory_.fence(); }

 private:
  M memory_;
  std::span<log_type> logs_;
};

} // namespace ballast::vhost_user
