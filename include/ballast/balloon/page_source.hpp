// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// A page source of a guest whose free pages hold a known value. See `page_source`.
template <class P>
concept poisons_pages = requires(P& p, std::span<const std::uint32_t> blocks, std::uint32_t value) {
  { p.poison(blocks, value) } noexcept;
};

/// A page source that moves what is in the balloon. See `page_source`.
template <class P>
concept moves_pages = requires(P& p, std::uint32_t block) {
  { p.replace(block, block) } noexcept;
};

/// Where a driver gets blocks of memory from and where they go: the guest's allocator.
///
/// A block is a page of the guest: `block_pages` pages of 4096 bytes, named by the PFN of the first
/// of them. Whole spans of blocks change hands, so that an allocator takes its lock once for up to
/// 256 of them.
/// - `take_free(blocks)`: fills in blocks that nothing uses; how many (0: none to be had now). Not
///   called while a buffer of the inflateq or the deflateq is under way; it may call
///   `driver::deflate_on_oom`, as an allocator does that runs out of memory.
/// - `store(blocks)`: these are in the balloon now; not to be touched.
/// - `take_stored(blocks)`: picks blocks out of the balloon to give back to the guest; how many.
/// - `release(blocks)`: these may be used again. Their contents are undefined, unless `poison` was
///   called for them.
/// - optional `poison(blocks, value)`: fills them with the value, four bytes each; called right
///   before `release` where PAGE_POISON is negotiated, which is not accepted without this.
///   Spec: "Page Poison" (driver requirements); "Feature bits" (driver, SHOULD).
/// - optional `replace(old_block, new_block)`: the new one is in the balloon from now on, the old
///   one is on its way out and comes with `release`; for `driver::migrate`.
/// - optional `block_pages`, static: 1, 2, 4 ... 256; 1 where it is missing.
///
/// All are noexcept. A member of one of these names that does not fit is refused.
/// Linux: balloon_page_alloc() and balloon_page_enqueue(), which take one page at a time.
template <class P>
concept page_source =
    requires(P& p, std::span<std::uint32_t> to, std::span<const std::uint32_t> from) {
      { p.take_free(to) } noexcept -> std::same_as<std::size_t>;
      { p.store(from) } noexcept;
      { p.take_stored(to) } noexcept -> std::same_as<std::size_t>;
      { p.release(from) } noexcept;
    } &&
    (poisons_pages<P> || !requires(P& p, std::span<const std::uint32_t> blocks,
                                   std::uint32_t value) { p.poison(blocks, value); }) &&
    (moves_pages<P> || !requires(P& p, std::uint32_t block) { p.replace(block, block); });

/// Pages of 4096 bytes in a block of `P`.
template <page_source P> [[nodiscard]] constexpr std::uint32_t block_pages_of() noexcept {
  if constexpr (requires { P::block_pages; }) {
    static_assert(std::has_single_bit(static_cast<std::uint32_t>(P::block_pages)) &&
                      P::block_pages <= array_pfns_max,
                  "a block is 1, 2, 4 ... 256 pages of 4096 bytes");
    return P::block_pages;
  } else {
    return 1;
  }
}

/// The target of a guest whose balloon grows and shrinks by whole blocks: `pages` rounded up, so
/// that it is reached, and left alone then. Where that has no 32 bits, as many blocks as have.
/// `block_pages`: a power of two.
/// Linux: towards_target(), where the last 15 values come out as 0 for pages of 64 KiB.
[[nodiscard]] constexpr std::uint32_t round_target(std::uint32_t pages,
                                                   std::uint32_t block_pages) noexcept {
  const std::uint32_t below = pages & ~(block_pages - 1);
  const std::uint32_t largest = balloon_pages_max & ~(block_pages - 1);
  return below == pages || below == largest ? below : below + block_pages;
}

} // namespace ballast::balloon
