// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/request_queue.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/actions.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// The inflateq or the deflateq of a driver, and the blocks that are under way there.
///
/// The list of them is private: the array in guest memory is the device's to scribble on.
/// Spec: "Traditional Memory Balloon Device / Device Operation"; Linux: tell_host().
template <guest_memory M, std::endian E, std::uint32_t BlockPages>
class page_queue : public request_queue<M, E> {
 public:
  using request_queue<M, E>::request_queue;
  static constexpr std::uint32_t array_bytes = array_pfns_max * sizeof(std::uint32_t);

  /// Where to put the blocks for the next buffer: as many as `pages` need and a buffer holds.
  [[nodiscard]] constexpr std::span<std::uint32_t> room(std::uint32_t pages) noexcept {
    const std::uint32_t wanted = pages / BlockPages + (pages % BlockPages != 0);
    return std::span(blocks_).first(wanted < blocks_max ? wanted : blocks_max);
  }

  /// Sends the first `count` blocks of what was put there; false: `due` says why not, and they stay
  /// here as if they were sent.
  constexpr bool send_blocks(std::size_t count, std::uint64_t now, actions& due) noexcept {
    count_ = static_cast<std::uint32_t>(count < blocks_max ? count : blocks_max);
    struct pfn_bytes {
      std::byte at[sizeof(std::uint32_t)];
    };
    std::byte array[array_bytes]{};
    std::uint32_t bytes = 0;
    for (const std::uint32_t block : blocks())
      for (std::uint32_t page = 0; page < BlockPages; ++page)
        for (const std::byte b : std::bit_cast<pfn_bytes>(word<std::uint32_t, E>(block + page)).at)
          array[bytes++] = b;
    if (!this->send_copy(std::span(array).first(bytes), now, due)) return false;
    this->notify_if_due(due);
    return true;
  }

  /// What was sent and not forgotten.
  [[nodiscard]] constexpr std::span<const std::uint32_t> blocks() const noexcept {
    return std::span(blocks_).first(count_);
  }
  [[nodiscard]] constexpr std::uint32_t pages() const noexcept { return count_ * BlockPages; }
  constexpr void forget() noexcept { count_ = 0; }

 private:
  static constexpr std::uint32_t blocks_max = array_pfns_max / BlockPages;

  std::uint32_t blocks_[blocks_max]{};
  std::uint32_t count_ = 0;
};

} // namespace ballast::balloon
