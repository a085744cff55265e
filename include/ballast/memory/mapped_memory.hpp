// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/fence.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace ballast {

/// Guest memory [address, address + size) that lies at `data` in this process.
struct memory_region {
  guest_address address = 0;
  std::byte* data = nullptr;
  std::uint64_t size = 0; ///< bytes
  bool is_writable = true;
};

/// Guest memory made of regions that are mapped into this process, with holes between them: the
/// memory of a VMM or a vhost-user back end.
///
///     memory_region regions[] = {{0, low, low_size}, {0x1'0000'0000, high, high_size}};
///     auto ram = mapped_memory::over(regions);   // an error if they overlap or are misplaced
///
/// The regions are the caller's and outlive every copy. Nothing a guest can name leads outside of
/// them, and a write to a read-only region is an error, never a fault. An object serves one thread
/// (it remembers the last region it hit); give each thread a copy. Hosted.
class mapped_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    explicit window_type(std::byte* start) noexcept : start_(start) {}

    // Flattened: an order that std::atomic_ref gets at run time would be taken for the strongest.
    template <wire_integer T>
    [[nodiscard]] [[gnu::always_inline, gnu::flatten]] T load(std::size_t offset,
                                                              order o) const noexcept {
      T& at = *reinterpret_cast<T*>(start_ + offset);
      if (o == order::acquire) return std::atomic_ref(at).load(std::memory_order_acquire);
      if (is_race_checked && o == order::plain) return at;
      return std::atomic_ref(at).load(std::memory_order_relaxed);
    }

    template <wire_integer T>
    [[gnu::always_inline, gnu::flatten]] void store(std::size_t offset, T value, order o) noexcept {
      T& at = *reinterpret_cast<T*>(start_ + offset);
      if (o == order::release)
        std::atomic_ref(at).store(value, std::memory_order_release);
      else if (is_race_checked && o == order::plain)
        at = value;
      else
        std::atomic_ref(at).store(value, std::memory_order_relaxed);
    }

   private:
    static_assert(__atomic_always_lock_free(8, nullptr),
                  "ring words need lock-free 64-bit atomics");

    std::byte* start_ = nullptr;
  };

  /// No memory: every access fails.
  constexpr mapped_memory() noexcept = default;

  /// Memory made of `regions`, in ascending order of their addresses.
  ///
  /// Errors: `regions_overlap` (or not in order), `region_misplaced`: the guest and the host base
  /// differ modulo 16 (a ring aligned in the guest must be aligned here), the guest or host range
  /// wraps, or there is no host memory.
  [[nodiscard]] static result<mapped_memory> over(std::span<const memory_region> regions) noexcept {
    for (std::size_t i = 0; i < regions.size(); ++i) {
      const memory_region& r = regions[i];
      const auto host = reinterpret_cast<std::uintptr_t>(r.data);
      if (r.data == nullptr || (r.address - host) % 16 != 0 || wraps(r.address, r.size) ||
          r.size > UINTPTR_MAX - host)
        return error::region_misplaced;
      if (i == 0) continue;
      const memory_region& before = regions[i - 1];
      if (r.address < before.address || r.address - before.address < before.size)
        return error::regions_overlap;
    }
    mapped_memory made;
    made.regions_ = regions;
    return made;
  }

  [[nodiscard]] std::span<const memory_region> regions() const noexcept { return regions_; }

  /// A window within one region. `alignment` is a power of two, at most 16.
  ///
  /// Errors: `not_guest_memory`, `access_not_allowed`, `misaligned`.
  [[nodiscard]] result<window_type> window(guest_address address, std::uint64_t size,
                                           std::size_t alignment, access kind) noexcept {
    if (!find(address) || size > last_.size - (address - last_.address))
      return error::not_guest_memory;
    if (kind == access::write && !last_.is_writable) return error::access_not_allowed;
    if ((address & (alignment - 1)) != 0) return error::misaligned;
    return window_type(last_.data + (address - last_.address));
  }

  /// Stays within one region; size 0 also where the range wraps.
  [[nodiscard]] memory_segment segment(guest_address address, std::uint64_t size,
                                       access kind) noexcept {
    const std::uint64_t offset = address - last_.address;
    if (offset < last_.size && size <= last_.size - offset &&
        (kind == access::read || last_.is_writable)) [[likely]]
      return {last_.data + offset, size};
    return find_segment(address, size, kind);
  }

  /// Copies across regions that adjoin; if false, nothing was copied. Zero bytes need no memory:
  /// true.
  [[nodiscard]] [[gnu::always_inline]] bool read(guest_address address,
                                                 std::span<std::byte> to) noexcept {
    const memory_segment from = segment(address, to.size(), access::read);
    if (from.size != to.size()) [[unlikely]]
      return read_pieces(address, to);
    if (!to.empty()) std::memcpy(to.data(), from.data, to.size());
    return true;
  }

  /// Like `read`, into regions that are all writable.
  [[nodiscard]] bool write(guest_address address, std::span<const std::byte> from) noexcept {
    if (!covers(address, from.size(), access::write)) return false;
    while (!from.empty()) {
      const memory_segment to = segment(address, from.size(), access::write);
      const auto n = static_cast<std::size_t>(to.size);
      std::memcpy(to.data, from.data(), n);
      address += n;
      from = from.subspan(n);
    }
    return true;
  }

  [[nodiscard]] static constexpr bool good() noexcept { return true; }
  static void fence() noexcept { full_fence(); }

 private:
  // Ends are exclusive and must be representable: nothing reaches the last byte of 2^64.
  [[nodiscard]] static constexpr bool wraps(guest_address address, std::uint64_t size) noexcept {
    return size > UINT64_MAX - address;
  }

  // Makes the region that holds `address` the last one.
  [[nodiscard]] bool find(guest_address address) noexcept {
    if (address - last_.address < last_.size) return true;
    for (const memory_region& r : regions_) {
      if (address - r.address < r.size) {
        last_ = r;
        return true;
      }
    }
    return false;
  }

  // Apart from `segment`, so that a hit stays a few instructions wherever it is inlined.
  [[gnu::noinline]] memory_segment find_segment(guest_address address, std::uint64_t size,
                                                access kind) noexcept {
    if (wraps(address, size) || !find(address) || (kind == access::write && !last_.is_writable))
      return {};
    const std::uint64_t left = last_.size - (address - last_.address);
    return {last_.data + (address - last_.address), size < left ? size : left};
  }

  [[gnu::noinline]] bool read_pieces(guest_address address, std::span<std::byte> to) noexcept {
    if (!covers(address, to.size(), access::read)) return false;
    while (!to.empty()) {
      const memory_segment from = segment(address, to.size(), access::read);
      const auto n = static_cast<std::size_t>(from.size);
      std::memcpy(to.data(), from.data, n);
      address += n;
      to = to.subspan(n);
    }
    return true;
  }

  [[nodiscard]] bool covers(guest_address address, std::uint64_t size, access kind) noexcept {
    while (size != 0) {
      const std::uint64_t found = segment(address, size, kind).size;
      if (found == 0) return false;
      address += found;
      size -= found;
    }
    return true;
  }

  std::span<const memory_region> regions_;
  memory_region last_; // a copy: one load less per access; no memory at first
};

} // namespace ballast
