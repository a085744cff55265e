// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

/// One buffer of a chain: `length` bytes at `address`. The address is not checked until the
/// buffer is accessed.
struct buffer {
  guest_address address = 0;
  std::uint32_t length = 0;

  friend constexpr bool operator==(const buffer&, const buffer&) noexcept = default;
};

/// What a device returns a chain by: all that has to be kept of a chain that is returned later.
struct chain_id {
  std::uint16_t head = 0;
  std::uint32_t epoch = 0; ///< the queue's epoch when the chain was popped

  friend constexpr bool operator==(const chain_id&, const chain_id&) noexcept = default;
};

/// A chain of buffers as the device got it: the device-readable ones, then the device-writable
/// ones. Its structure was checked and each descriptor read exactly once; the driver can't change
/// it any more. Its buffers are valid until the next chain is popped from the same queue; those of
/// a chain that a handler was given, until the handler returns.
class chain {
 public:
  constexpr chain() noexcept = default;
  constexpr chain(chain_id id, const buffer* first, std::uint32_t readable,
                  std::uint32_t writable) noexcept
      : first_(first), readable_(readable), writable_(writable), id_(id) {}

  [[nodiscard]] constexpr chain_id id() const noexcept { return id_; }
  [[nodiscard]] constexpr std::span<const buffer> readable() const noexcept {
    return {first_, readable_};
  }
  [[nodiscard]] constexpr std::span<const buffer> writable() const noexcept {
    return {first_ + readable_, writable_};
  }

 private:
  const buffer* first_ = nullptr;
  std::uint32_t readable_ = 0;
  std::uint32_t writable_ = 0;
  chain_id id_;
};

/// The sum of the lengths, in bytes. Spec: "The Virtqueue Descriptor Table" bounds a chain to 2^32.
[[nodiscard]] constexpr std::uint64_t total_bytes(std::span<const buffer> buffers) noexcept {
  std::uint64_t sum = 0;
  for (const buffer& b : buffers) sum += b.length;
  return sum;
}

/// Hands out where buffers lie, without copying: `sink(memory_segment)` for each piece that can be
/// pointed at, in order. Bytes handed out; buffers of no bytes give no piece.
/// Errors: `not_guest_memory`, `access_not_allowed`: a buffer is not all memory that allows `k`, or
/// can't be pointed at; `memory_lost`. The pieces before were handed out.
template <guest_memory M, class Sink>
[[nodiscard]] constexpr result<std::uint64_t>
for_each_segment(M& memory, std::span<const buffer> buffers, access k, Sink&& sink) noexcept {
  std::uint64_t done = 0;
  for (const buffer& b : buffers) {
    std::uint64_t at = b.address, left = b.length;
    while (left != 0) {
      const memory_segment piece = memory.segment(at, left, k);
      if (piece.size == 0 || piece.data == nullptr) {
        if (!memory.good()) return error::memory_lost;
        const bool is_readable = memory.segment(at, left, access::read).size != 0;
        return is_readable ? error::access_not_allowed : error::not_guest_memory;
      }
      const std::uint64_t size = piece.size < left ? piece.size : left;
      sink(memory_segment{piece.data, size});
      at += size;
      left -= size;
      done += size;
    }
  }
  return done;
}

/// Reads buffers as one run of bytes: a device may not depend on how the driver cut it.
/// Spec: "Message Framing".
template <guest_memory M> class buffer_reader {
 public:
  constexpr buffer_reader(M& memory, std::span<const buffer> buffers) noexcept
      : memory_(&memory), buffers_(buffers) {}

  /// Copies the next `to.size()` bytes; fewer only at the end, 0 behind it.
  /// Errors: `not_guest_memory` where a buffer leaves guest memory: never taken for the end.
  [[nodiscard]] constexpr result<std::size_t> read(std::span<std::byte> to) noexcept {
    std::size_t done = 0;
    while (done < to.size() && !buffers_.empty()) {
      const buffer& from = buffers_.front();
      const std::uint64_t left = from.length - offset_;
      const std::uint64_t room = to.size() - done;
      const auto n = static_cast<std::uint32_t>(left < room ? left : room);
      if (n != 0 && !memory_->read(from.address + offset_, to.subspan(done, n)))
        return memory_->good() ? error::not_guest_memory : error::memory_lost;
      done += n;
      offset_ += n;
      if (offset_ == from.length) {
        buffers_ = buffers_.subspan(1);
        offset_ = 0;
      }
    }
    return done;
  }

 private:
  M* memory_;
  std::span<const buffer> buffers_;
  std::uint32_t offset_ = 0;
};

} // namespace ballast
