// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

namespace ballast {

/// A guest-physical address, or a bus address where the platform translates.
using guest_address = std::uint64_t;

/// The order of one access to a ring word.
///
/// `plain` says that ownership already protects the word (an acquire or release of another word
/// hands it over); the other three are accesses to words that both sides touch at any time.
/// A word is always accessed plain or never: virtqueue/layout.hpp lists which.
enum class order : std::uint8_t { plain, relaxed, acquire, release };

/// What is to be done to memory; `write` includes reading it.
enum class access : std::uint8_t { read, write };

/// The longest contiguous piece of a range; `data` is null where memory cannot be pointed at
/// (a socket), and `size` is 0 where the first byte is not such memory.
struct memory_segment {
  std::byte* data = nullptr;
  std::uint64_t size = 0; ///< bytes
};

/// A piece of guest memory that a ring lives in, checked once when it was obtained.
///
/// Offsets are in bytes from its start and are not checked again. Values are the memory's bytes in
/// this machine's order; the rings convert. Cheap to copy; valid until the queue is detached.
template <class W>
concept memory_window = std::copyable<W> && std::default_initializable<W> &&
                        requires(W w, const W c, std::size_t offset, std::uint16_t v16,
                                 std::uint32_t v32, std::uint64_t v64) {
                          {
                            c.template load<std::uint16_t>(offset, order::acquire)
                          } noexcept -> std::same_as<std::uint16_t>;
                          {
                            c.template load<std::uint32_t>(offset, order::plain)
                          } noexcept -> std::same_as<std::uint32_t>;
                          {
                            c.template load<std::uint64_t>(offset, order::plain)
                          } noexcept -> std::same_as<std::uint64_t>;
                          { w.template store<std::uint16_t>(offset, v16, order::release) } noexcept;
                          { w.template store<std::uint32_t>(offset, v32, order::plain) } noexcept;
                          { w.template store<std::uint64_t>(offset, v64, order::plain) } noexcept;
                        };

/// The window type of a memory policy.
template <class M>
using window_of = std::remove_cvref_t<decltype(*std::declval<M&>().window(
    guest_address{}, std::uint64_t{}, std::size_t{}, access::read))>;

/// How the engine reaches guest memory, and in which order: the one policy everything runs on.
///
/// - `window(a, n, alignment, access)`: a result; a window over [a, a+n), or an error.
/// - `segment(a, n, access)`: the longest contiguous piece at the start of [a, a+n).
/// - `read`, `write`: copy payload; false where not all of the range is such memory, and then
///   nothing was written. They may tear against the other side: validate after the copy.
/// - `good()`: false for ever once memory was lost (socket, unplug). Loads may then give anything.
/// - `fence()`: orders every earlier store before every later load (a full barrier).
///
/// One accessor object serves one thread at a time (it may hold a cache); copies are cheap.
template <class M>
concept guest_memory =
    memory_window<window_of<M>> &&
    requires(M& m, guest_address a, std::uint64_t n, std::size_t alignment, access k,
             std::span<std::byte> to, std::span<const std::byte> from) {
      { m.window(a, n, alignment, k) } noexcept;
      { m.window(a, n, alignment, k).error() } noexcept -> std::same_as<error>;
      { m.segment(a, n, k) } noexcept -> std::same_as<memory_segment>;
      { m.read(a, to) } noexcept -> std::same_as<bool>;
      { m.write(a, from) } noexcept -> std::same_as<bool>;
      { m.good() } noexcept -> std::same_as<bool>;
      { m.fence() } noexcept;
    };

} // namespace ballast
