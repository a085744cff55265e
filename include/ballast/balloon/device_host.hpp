// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/page_ranges.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/guest_memory.hpp>

#include <concepts>
#include <cstdint>

namespace ballast::balloon {

/// A host that has `hint`. See `page_host`.
template <class H>
concept takes_hints = requires(H& h, guest_address address, std::uint64_t size) {
  { h.hint(address, size) } noexcept -> std::same_as<bool>;
};

/// A host that has `fill`. See `page_host`.
template <class H>
concept fills_pages =
    requires(H& h, guest_address address, std::uint64_t size, std::uint32_t pattern) {
      { h.fill(address, size, pattern) } noexcept -> std::same_as<bool>;
    };

/// A host that has `discard_allowed`. See `page_host`.
template <class H>
concept inhibits_discards = requires(H& h) {
  { h.discard_allowed() } noexcept -> std::same_as<bool>;
};

/// A host that has `flush`. See `page_host`.
template <class H>
concept flushes_discards = requires(H& h) {
  { h.flush() } noexcept -> std::same_as<bool>;
};

/// A host that has `provide`. See `page_host`.
template <class H>
concept provides_pages = requires(H& h, guest_address address, std::uint64_t size) {
  { h.provide(address, size) } noexcept;
};

/// The host's side of the balloon: takes memory back and provides it again.
///
/// - `discard(address, size) -> bool`: the guest does not need the contents; false where it failed.
///   Called before the driver is told that the buffer was used, never after. Of reported pages with
///   PAGE_POISON (and a poison of 0) the memory has to read as 0 afterwards.
/// - optional `flush() -> bool`: for a host whose `discard` only collects ranges; now they are to
/// be
///   taken back. Called behind the last page of a batch of buffers, before these are returned.
/// - optional `provide(address, size)`: the guest is about to use the pages again.
/// - optional `fill(address, size, pattern) -> bool`: takes reported memory back such that it reads
///   as the 32-bit `pattern`, the guest's poison. Without it such memory is left alone. What it
///   costs is the range's size, which the guest chooses: the budget of `process` counts buffers.
/// - optional `hint(address, size) -> bool`: the contents don't matter until the guest writes
///   there again, which may have happened already (`hint_device`). Whole pages of 4096 bytes. It is
///   what makes a device offer FREE_PAGE_HINT.
/// - optional `discard_allowed() -> bool`: false while memory has to stay where it is (passed
///   through to hardware, migration, a snapshot being taken). Asked once for each buffer before its
///   pages are looked at; buffers are returned all the same. QEMU: virtio_balloon_inhibited().
///
/// All are noexcept. Addresses are guest-physical and all of it guest memory that may be written;
/// whole host pages except for `hint`. A member of one of these names that does not fit is refused.
template <class H>
concept page_host =
    requires(H& h, guest_address address, std::uint64_t size) {
      { h.discard(address, size) } noexcept -> std::same_as<bool>;
    } &&
    (provides_pages<H> ||
     !requires(H& h, guest_address address, std::uint64_t size) { h.provide(address, size); }) &&
    (takes_hints<H> ||
     !requires(H& h, guest_address address, std::uint64_t size) { h.hint(address, size); }) &&
    (fills_pages<H> || !requires(H& h, guest_address address, std::uint64_t size,
                                 std::uint32_t pattern) { h.fill(address, size, pattern); }) &&
    (flushes_discards<H> || !requires(H& h) { h.flush(); }) &&
    (inhibits_discards<H> || !requires(H& h) { h.discard_allowed(); });

/// Bytes of whole pages at `at`, a page's address, that lie in one piece of writable memory, or in
/// as many pieces as it takes to end with a page; at most `left`, a multiple of `page_size`.
template <guest_memory M>
[[nodiscard]] constexpr std::uint64_t page_piece(M& memory, guest_address at,
                                                 std::uint64_t left) noexcept {
  std::uint64_t size = 0;
  do {
    const std::uint64_t more = memory.segment(at + size, left - size, access::write).size;
    if (more == 0) break;
    size += more < left - size ? more : left - size;
  } while (size < left && size % page_size != 0);
  return size & ~std::uint64_t{page_size - 1};
}

} // namespace ballast::balloon
