// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/hint_driver.hpp>
#include <ballast/balloon/request_queue.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/driver_queue.hpp>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// A hint source that has room to remember what it hinted, too: `hint_blocks()`, the same every
/// time; and, optional, `hint_options()`.
template <class S>
concept hinting_source = hint_source<S> && requires(S& s) {
  { s.hint_blocks() } noexcept -> std::same_as<std::span<hint_block>>;
};

/// Bytes behind the ring of a `hint_queue`.
inline constexpr std::uint32_t hint_queue_bytes = 2 * sizeof(std::uint32_t);

/// The free_page_vq, driver side: carries what a `hint_driver` says. Its two places of 4 bytes, for
/// an id and for a STOP, are behind its ring.
/// Spec: "Free Page Hinting" (driver requirements).
template <guest_memory M, class S, std::uint32_t QueueSize, std::endian E> class hint_queue {
  static_assert(hinting_source<S>);

 public:
  constexpr explicit hint_queue(S& source) noexcept
      : hints_(source, source.hint_blocks(), options(source)) {}
  hint_queue(const hint_queue&) = delete;
  hint_queue& operator=(const hint_queue&) = delete;

  [[nodiscard]] constexpr request_queue<M, E>& queue() noexcept { return queue_; }
  [[nodiscard]] constexpr hint_driver<S>& hints() noexcept { return hints_; }
  [[nodiscard]] constexpr const hint_driver<S>& hints() const noexcept { return hints_; }

  /// Takes up what the device returned and sends what is due, both up to a batch; whether there was
  /// anything to do.
  constexpr bool step(M& memory, actions& due) noexcept {
    bool has_worked = false;
    for (std::uint32_t n = 0; n < batch; ++n) {
      const auto used = queue_.ring().pop_used();
      if (!used) {
        if (used.error() != error::queue_empty)
          due |= {.needs_reset = true, .failure = used.error()};
        break;
      }
      hints_.on_used(static_cast<std::uint32_t>(used->token));
      has_worked = true;
    }
    for (std::uint32_t n = 0; n < batch && due.failure == error::none; ++n) {
      const hint_step next = hints_.step(queue_.ring().free_descriptors());
      if (next.duty == hint_duty::none) break;
      has_worked = true;
      if (next.duty != hint_duty::again) send(memory, next, due);
    }
    if (has_worked) {
      queue_.ring().publish();
      queue_.notify_if_due(due);
    }
    return has_worked;
  }

  /// The device is reset or gone.
  constexpr void drain() noexcept {
    queue_.detach();
    hints_.reset();
  }

 private:
  static constexpr std::uint32_t batch = 32;

  static constexpr hint_driver_options options(S& source) noexcept {
    if constexpr (requires { hint_driver_options(source.hint_options()); })
      return source.hint_options();
    else
      return {};
  }

  constexpr void send(M& memory, const hint_step& next, actions& due) noexcept {
    buffer data{next.address, next.bytes};
    const bool is_command = next.duty == hint_duty::command;
    if (is_command) {
      struct id_bytes {
        std::byte at[sizeof(std::uint32_t)];
      };
      const auto raw = std::bit_cast<id_bytes>(word<std::uint32_t, E>(next.id));
      const bool is_stop = next.token == hint_driver<S>::stop_token;
      data = {queue_.data() + (is_stop ? sizeof(raw) : 0), sizeof(raw)};
      if (!memory.write(data.address, raw.at)) {
        due |= {.needs_reset = true, .failure = error::memory_lost};
        return;
      }
    }
    const std::span<const buffer> one(&data, 1), none;
    const auto added =
        queue_.ring().add(is_command ? one : none, is_command ? none : one, next.token);
    if (!added) due |= {.needs_reset = true, .failure = added.error()};
  }

  driver_slot slots_[QueueSize]{};
  request_queue<M, E> queue_{slots_};
  hint_driver<S> hints_;
};

} // namespace ballast::balloon
