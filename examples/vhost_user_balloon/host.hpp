// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/host/discard.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/memory_table.hpp>
#include <ballast/vhost_user/protocol.hpp>

#include <cstdint>
#include <utility>

namespace vhost_user_balloon {

/// The device's host, a `page_host`: gives the guest's pages back to the kernel, out of whatever
/// memory the front end shares.
class host {
 public:
  explicit host(const ballast::vhost_user::memory_table& memory) noexcept : memory_(&memory) {}
  host(const host&) = delete;
  host& operator=(const host&) = delete;

  /// Looks at the memory, if it is another one; whether it is.
  bool look() noexcept {
    if (generation_ == memory_->generation()) return false;
    generation_ = memory_->generation();
    // The files are there to be this guest's memory: a front end shares nothing else.
    state_ = discarder_.start(memory_->regions(), {.punches_files = true}).error();
    return true;
  }

  /// Why this memory can't be given back.
  [[nodiscard]] ballast::error state() const noexcept { return state_; }
  /// Of the pages that the memory is made of, the largest; bytes.
  [[nodiscard]] std::uint32_t page_size() const noexcept { return discarder_.page_size(); }
  /// Since the memory is what it is.
  [[nodiscard]] const ballast::host::discard_counters& counters() const noexcept {
    return discarder_.counters();
  }

  bool discard(ballast::guest_address address, std::uint64_t size) noexcept {
    (void)look();
    return discarder_.discard(address, size);
  }
  bool flush() noexcept { return discarder_.flush(); }
  void provide(ballast::guest_address address, std::uint64_t size) noexcept {
    (void)look();
    discarder_.provide(address, size);
  }
  /// Nobody migrates here: what is free is counted, and stays.
  bool hint(ballast::guest_address, std::uint64_t size) noexcept {
    hinted_ += size;
    return true;
  }

  /// Bytes hinted since the last call.
  [[nodiscard]] std::uint64_t take_hinted() noexcept { return std::exchange(hinted_, 0); }

 private:
  static constexpr std::uint32_t ranges_max = 4096;

  const ballast::vhost_user::memory_table* memory_;
  std::uint64_t generation_ = 0;
  ballast::host::discard_storage<ranges_max, ballast::vhost_user::memory_slots_max> storage_;
  ballast::host::discarder discarder_{storage_};
  ballast::error state_ = ballast::error::none;
  std::uint64_t hinted_ = 0;
};

} // namespace vhost_user_balloon
