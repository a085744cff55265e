// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

/// What a back end notes about the chains it holds, in a file that the front end keeps: offsets and
/// widths of every field, in bytes from the start of a queue's region. Fields are in the byte order
/// of the machine. Spec: "Inflight I/O tracking".
namespace ballast::vhost_user::in_flight {

/// Regions of queues follow each other, each a multiple of this.
inline constexpr std::uint64_t region_alignment = 64;
inline constexpr std::uint16_t region_version = 1;

// Both formats. A version of 0 is a region that nobody has used yet.
inline constexpr std::size_t features = 0; ///< 64 bits; none are known
inline constexpr std::size_t version = 8;  ///< 16 bits
inline constexpr std::size_t entries = 10; ///< 16 bits

/// The first byte of an entry, 1 while its chain is held; the second is nobody's.
inline constexpr std::uint16_t is_held = to_order<std::endian::little>(std::uint16_t{1});

namespace split {
inline constexpr std::size_t last_used_head = 12; ///< the batch of used chains as a list
inline constexpr std::size_t used_index = 14;     ///< as of the last batch that is settled
inline constexpr std::size_t header_size = 16, entry_size = 16;
// One entry for each head.
[[nodiscard]] constexpr std::size_t held(std::size_t i) noexcept { return 16 + 16 * i; }
[[nodiscard]] constexpr std::size_t next(std::size_t i) noexcept { return 22 + 16 * i; }
[[nodiscard]] constexpr std::size_t counter(std::size_t i) noexcept { return 24 + 16 * i; }
} // namespace split

namespace packed {
inline constexpr std::size_t free_head = 12;     ///< 16 bits, and 16 of the settled one
inline constexpr std::size_t old_free_head = 14; //
/// 64 bits: index of the next used descriptor, the settled one, a byte each for their wrap
/// counters. Written as one, so that they are never torn.
inline constexpr std::size_t used = 16;
inline constexpr std::size_t header_size = 32, entry_size = 32;
// One entry for each descriptor of the ring, taken from a list of free ones.
[[nodiscard]] constexpr std::size_t held(std::size_t i) noexcept { return 32 + 32 * i; }
[[nodiscard]] constexpr std::size_t next(std::size_t i) noexcept { return 34 + 32 * i; }
[[nodiscard]] constexpr std::size_t last(std::size_t i) noexcept { return 36 + 32 * i; }
[[nodiscard]] constexpr std::size_t count(std::size_t i) noexcept { return 38 + 32 * i; }
[[nodiscard]] constexpr std::size_t counter(std::size_t i) noexcept { return 40 + 32 * i; }
[[nodiscard]] constexpr std::size_t id(std::size_t i) noexcept { return 48 + 32 * i; }
[[nodiscard]] constexpr std::size_t flags(std::size_t i) noexcept { return 50 + 32 * i; }
[[nodiscard]] constexpr std::size_t length(std::size_t i) noexcept { return 52 + 32 * i; }
[[nodiscard]] constexpr std::size_t address(std::size_t i) noexcept { return 56 + 32 * i; }
} // namespace packed

/// Bytes of the region of a queue of `size` entries, a multiple of the alignment.
[[nodiscard]] constexpr std::uint64_t region_bytes(std::uint32_t size, bool is_packed) noexcept {
  const std::uint64_t bytes = is_packed
                                  ? packed::header_size + std::uint64_t{packed::entry_size} * size
                                  : split::header_size + std::uint64_t{split::entry_size} * size;
  return (bytes + region_alignment - 1) & ~(region_alignment - 1);
}

/// The process may end between any two stores, and what it had stored by then is what the next one
/// finds: keeps the compiler from exchanging them. The processor finishes them in either case.
constexpr void store_barrier() noexcept {
  if (!std::is_constant_evaluated()) std::atomic_signal_fence(std::memory_order_seq_cst);
}

/// A region's fields through a window of shared memory.
template <memory_window W> class fields {
 public:
  constexpr fields() noexcept = default;
  constexpr explicit fields(W window) noexcept : window_(window) {}

  template <class T> [[nodiscard]] constexpr T get(std::size_t offset) const noexcept {
    return window_.template load<T>(offset, order::relaxed);
  }
  /// Stores are seen in the order of their calls.
  template <class T> constexpr void set(std::size_t offset, std::type_identity_t<T> to) noexcept {
    window_.template store<T>(offset, to, order::release);
    store_barrier();
  }

 private:
  W window_{};
};

} // namespace ballast::vhost_user::in_flight
