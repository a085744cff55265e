// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/in_flight_region.hpp>

#include <cstddef>
#include <cstdint>

namespace ballast::vhost_user {

/// The chains that a device holds of one split queue of up to `N` entries, noted such that another
/// process can go on after this one was killed at any point: each chain is returned exactly once,
/// in whichever order they were returned.
///
/// It sees what the queue does: `pop` for each entry of the available ring that is read, `use` for
/// each used element, `publish` around the store of the used index. What is held when the queue
/// resumes is popped again, in the order of the first time: the queue starts at its used index, and
/// `pop` answers with those heads instead of what the ring has there, which may be other chains by
/// then. The region is shared with the front end: nothing in it is trusted.
/// Spec: "Inflight I/O tracking" (split virtqueue).
template <memory_window W, std::uint32_t N> class split_in_flight {
 public:
  /// Takes up a region, a new one too; `used_index` is that of the used ring. How many chains were
  /// held. Errors: `in_flight_invalid`.
  [[nodiscard]] constexpr result<std::uint32_t> resume(W region, std::uint32_t size,
                                                       std::uint16_t used_index) noexcept {
    region_ = in_flight::fields<W>(region);
    size_ = size;
    first_ = next_ = used_index;
    count_ = staged_ = 0;
    counter_ = 0;
    if (size > N) return error::storage_too_small;
    const auto version = get<std::uint16_t>(in_flight::version);
    if (version == 0) {
      begin(used_index);
      return std::uint32_t{0};
    }
    if (version != in_flight::region_version || get<std::uint64_t>(in_flight::features) != 0 ||
        get<std::uint16_t>(in_flight::entries) < size)
      return error::in_flight_invalid;
    // What was published last is known from the ring; whether it was noted here is not.
    const auto settled = get<std::uint16_t>(format::used_index);
    const std::uint32_t batch = static_cast<std::uint16_t>(used_index - settled);
    if (batch > size || !settle(batch, used_index)) return error::in_flight_invalid;
    for (std::uint32_t head = 0; head < size; ++head)
      if (is_held(head)) put_in_order(static_cast<std::uint16_t>(head));
    return count_;
  }

  /// An entry of the available ring is read, and is `found`: the head to go on with.
  [[nodiscard]] constexpr std::uint16_t pop(std::uint32_t entry, std::uint16_t found) noexcept {
    // A queue may go back by some entries, and reads them once more.
    const std::uint32_t back = (next_ - entry) & (size_ - 1);
    const std::uint32_t position = next_ - back;
    if (back == 0) ++next_;
    // Beyond a round nothing goes back: indices that wrap must not find these again.
    if (next_ - first_ > count_ + size_) count_ = 0;
    if (position - first_ < count_) return order_[position - first_];
    if (back == 0 && found < size_) hold(found);
    return found;
  }

  /// A used element is written.
  constexpr void use(std::uint32_t head) noexcept {
    if (head >= size_) return;
    set<std::uint16_t>(format::next(head), get<std::uint16_t>(format::last_used_head));
    set<std::uint16_t>(format::last_used_head, static_cast<std::uint16_t>(head));
    ++staged_;
  }

  /// `store` makes the used elements visible, up to `used_index`.
  template <class Store> constexpr void publish(std::uint16_t used_index, Store&& store) noexcept {
    in_flight::store_barrier();
    store();
    in_flight::store_barrier();
    (void)settle(staged_, used_index);
    staged_ = 0;
  }

 private:
  struct format {
    static constexpr std::size_t last_used_head = in_flight::split::last_used_head;
    static constexpr std::size_t used_index = in_flight::split::used_index;
    static constexpr std::size_t next(std::size_t i) noexcept { return in_flight::split::next(i); }
    static constexpr std::size_t held(std::size_t i) noexcept { return in_flight::split::held(i); }
    static constexpr std::size_t counter(std::size_t i) noexcept {
      return in_flight::split::counter(i);
    }
  };

  template <class T> [[nodiscard]] constexpr T get(std::size_t offset) const noexcept {
    return region_.template get<T>(offset);
  }
  template <class T> constexpr void set(std::size_t offset, std::type_identity_t<T> to) noexcept {
    region_.template set<T>(offset, to);
  }

  [[nodiscard]] constexpr bool is_held(std::uint32_t head) const noexcept {
    return (get<std::uint16_t>(format::held(head)) & in_flight::is_held) != 0;
  }

  constexpr void begin(std::uint16_t used_index) noexcept {
    set<std::uint64_t>(in_flight::features, 0);
    set<std::uint16_t>(in_flight::entries, static_cast<std::uint16_t>(size_));
    set<std::uint16_t>(format::last_used_head, 0);
    set<std::uint16_t>(format::used_index, used_index);
    for (std::uint32_t head = 0; head < size_; ++head) set<std::uint16_t>(format::held(head), 0);
    set<std::uint16_t>(in_flight::version, in_flight::region_version);
  }

  constexpr void hold(std::uint16_t head) noexcept {
    set<std::uint64_t>(format::counter(head), counter_++);
    set<std::uint16_t>(format::held(head), in_flight::is_held);
  }

  /// The last `batch` used chains are not held any more. False where they are no such list.
  [[nodiscard]] constexpr bool settle(std::uint32_t batch, std::uint16_t used_index) noexcept {
    auto head = get<std::uint16_t>(format::last_used_head);
    for (; batch != 0; --batch) {
      if (head >= size_) return false;
      set<std::uint16_t>(format::held(head), 0);
      head = get<std::uint16_t>(format::next(head));
    }
    set<std::uint16_t>(format::used_index, used_index);
    return true;
  }

  constexpr void put_in_order(std::uint16_t head) noexcept {
    const auto mine = get<std::uint64_t>(format::counter(head));
    if (mine >= counter_) counter_ = mine + 1;
    std::uint32_t at = count_++;
    for (; at != 0 && get<std::uint64_t>(format::counter(order_[at - 1])) > mine; --at)
      order_[at] = order_[at - 1];
    order_[at] = head;
  }

  in_flight::fields<W> region_;
  std::uint32_t size_ = 0;   ///< entries
  std::uint32_t first_ = 0;  ///< place in the available ring where the chains that were held begin
  std::uint32_t count_ = 0;  ///< how many of them
  std::uint32_t next_ = 0;   ///< place that was not read yet
  std::uint32_t staged_ = 0; ///< used elements since the index was published
  std::uint64_t counter_ = 0;
  std::uint16_t order_[N]{}; ///< heads that were held
};

} // namespace ballast::vhost_user
