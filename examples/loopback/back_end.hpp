// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "guest_ram.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/host/discard.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace loopback {

/// The device's back end, a `page_host`: gives pages back to the kernel, and leaves out of a
/// migration what the guest hints.
class back_end {
 public:
  explicit back_end(const guest_ram& ram)
      : is_dirty_(static_cast<std::size_t>(ram.size() / ballast::balloon::page_size)),
        // Where others have taken the huge pages meanwhile, there is a count of that.
        state_(discarder_.start(ram.regions(), {.populates = ram.is_huge()}).error()) {}

  /// Why it can't give this memory back.
  [[nodiscard]] ballast::error state() const noexcept { return state_; }
  [[nodiscard]] std::uint32_t page_size() const noexcept { return discarder_.page_size(); }
  [[nodiscard]] const ballast::host::discard_counters& counters() const noexcept {
    return discarder_.counters();
  }

  bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    return discarder_.discard(address, size);
  }
  bool flush() noexcept { return discarder_.flush(); }
  void provide(ballast::guest_address address, std::uint64_t size) noexcept {
    discarder_.provide(address, size);
  }
  bool hint(ballast::guest_address address, std::uint64_t size) noexcept {
    constexpr std::uint64_t page = ballast::balloon::page_size;
    const auto first = is_dirty_.begin() + static_cast<std::ptrdiff_t>(address / page);
    std::fill(first, first + static_cast<std::ptrdiff_t>(size / page), false);
    return true;
  }

  /// A migration begins: all of the guest's memory is to be sent.
  void mark_all_dirty() noexcept { std::fill(is_dirty_.begin(), is_dirty_.end(), true); }
  [[nodiscard]] bool is_dirty(std::uint32_t pfn) const noexcept { return is_dirty_[pfn]; }
  /// What is to be sent.
  [[nodiscard]] std::uint64_t dirty_bytes() const noexcept {
    const auto pages = std::count(is_dirty_.begin(), is_dirty_.end(), true);
    return static_cast<std::uint64_t>(pages) * ballast::balloon::page_size;
  }

 private:
  ballast::host::discard_storage<> storage_;
  ballast::host::discarder discarder_{storage_};
  std::vector<bool> is_dirty_; ///< of each page, since the migration began
  ballast::error state_;
};

} // namespace loopback
