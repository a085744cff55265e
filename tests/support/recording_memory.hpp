// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

enum class event_kind : std::uint8_t { load, store, window, segment, read, write, fence, mark };

struct memory_event {
  event_kind kind = event_kind::mark;
  ballast::order order = ballast::order::plain; ///< of a load or store
  ballast::guest_address address = 0;           ///< of a mark: what the test gave
  std::uint64_t size = 0;                       ///< bytes
  std::uint64_t value = 0; ///< loaded or stored, as a little-endian ring has it

  friend constexpr bool operator==(const memory_event&, const memory_event&) noexcept = default;
};

/// What happened in which order, over all accessors and back ends that a test lets write into it.
///
///     log.mark(page);                                     // in the host back end's discard
///     check(log.find(event_kind::mark, page) <
///           log.find(event_kind::store, used_index_address));
template <std::size_t Capacity> class event_log {
 public:
  static constexpr std::size_t npos = static_cast<std::size_t>(-1);

  [[nodiscard]] constexpr std::size_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr const memory_event& operator[](std::size_t i) const noexcept {
    return events_[i];
  }

  /// Events that found no room; a test that looks for what did not happen wants 0 here.
  [[nodiscard]] constexpr std::size_t lost() const noexcept { return lost_; }

  /// The index of the first such event from `from` on, or `npos`.
  [[nodiscard]] constexpr std::size_t find(event_kind kind, ballast::guest_address address,
                                           std::size_t from = 0) const noexcept {
    for (std::size_t i = from; i < size_; ++i)
      if (events_[i].kind == kind && events_[i].address == address) return i;
    return npos;
  }

  [[nodiscard]] constexpr std::size_t count(event_kind kind) const noexcept {
    std::size_t n = 0;
    for (std::size_t i = 0; i < size_; ++i) n += events_[i].kind == kind;
    return n;
  }

  /// Enters something that happened outside of guest memory.
  constexpr void mark(std::uint64_t what) noexcept { add({.address = what}); }

  constexpr void add(const memory_event& e) noexcept {
    if (size_ < Capacity)
      events_[size_++] = e;
    else
      ++lost_;
  }

  constexpr void clear() noexcept { size_ = lost_ = 0; }

 private:
  memory_event events_[Capacity]{};
  std::size_t size_ = 0;
  std::size_t lost_ = 0;
};

/// Another accessor that enters every access into a log. Refers to both; copies share them.
template <ballast::guest_memory M, std::size_t Capacity> class recording_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(ballast::window_of<M> inner, event_log<Capacity>* log,
                          ballast::guest_address start) noexcept
        : inner_(inner), log_(log), start_(start) {}

    template <ballast::wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, ballast::order o) const noexcept {
      const T value = inner_.template load<T>(offset, o);
      log_->add({event_kind::load, o, start_ + offset, sizeof(T), number(value)});
      return value;
    }

    template <ballast::wire_integer T>
    constexpr void store(std::size_t offset, T value, ballast::order o) noexcept {
      log_->add({event_kind::store, o, start_ + offset, sizeof(T), number(value)});
      inner_.template store<T>(offset, value, o);
    }

   private:
    template <class T> static constexpr T number(T value) noexcept {
      return ballast::to_order<std::endian::little>(value);
    }

    ballast::window_of<M> inner_{};
    event_log<Capacity>* log_ = nullptr;
    ballast::guest_address start_ = 0;
  };

  constexpr recording_memory(M& inner, event_log<Capacity>& log) noexcept
      : inner_(&inner), log_(&log) {}

  [[nodiscard]] constexpr ballast::result<window_type> window(ballast::guest_address address,
                                                              std::uint64_t size,
                                                              std::size_t alignment,
                                                              ballast::access kind) noexcept {
    log_->add({.kind = event_kind::window, .address = address, .size = size});
    const auto inner = inner_->window(address, size, alignment, kind);
    if (!inner) return inner.error();
    return window_type(*inner, log_, address);
  }

  [[nodiscard]] constexpr ballast::memory_segment
  segment(ballast::guest_address address, std::uint64_t size, ballast::access kind) noexcept {
    log_->add({.kind = event_kind::segment, .address = address, .size = size});
    return inner_->segment(address, size, kind);
  }

  [[nodiscard]] constexpr bool read(ballast::guest_address address,
                                    std::span<std::byte> to) noexcept {
    log_->add({.kind = event_kind::read, .address = address, .size = to.size()});
    return inner_->read(address, to);
  }

  [[nodiscard]] constexpr bool write(ballast::guest_address address,
                                     std::span<const std::byte> from) noexcept {
    log_->add({.kind = event_kind::write, .address = address, .size = from.size()});
    return inner_->write(address, from);
  }

  [[nodiscard]] constexpr bool good() noexcept { return inner_->good(); }

  constexpr void fence() noexcept {
    log_->add({.kind = event_kind::fence});
    inner_->fence();
  }

 private:
  M* inner_;
  event_log<Capacity>* log_;
};

} // namespace ballast_test
