// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/in_flight_region.hpp>
#include <ballast/vhost_user/protocol.hpp>

#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <span>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace ballast::vhost_user {

/// The file in which the chains that a device holds are noted. The back end makes it, the front end
/// keeps it and gives it to the next one. Part of `back_end`. Hosted.
class in_flight_file {
 public:
  /// Makes a new one for so many queues of so many entries, and takes it up. `area` gets its size.
  /// Errors: `in_flight_invalid` (no queue, or no entries), `system_call_failed`.
  [[nodiscard]] result<file> make(in_flight_area& area, bool is_packed) noexcept {
    if (area.queues == 0 || area.queue_size == 0) return error::in_flight_invalid;
    area.offset = 0;
    area.size = area.queues * in_flight::region_bytes(area.queue_size, is_packed);
    file made(memfd_create("ballast-in-flight", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!made.is_open() || ftruncate(made.get(), static_cast<off_t>(area.size)) != 0 ||
        fcntl(made.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
      return error::system_call_failed;
    if (const auto taken = take(made, area); !taken) return taken.error();
    return made;
  }

  /// Takes up one that there is already.
  /// Errors: `in_flight_invalid` (no queue, or it cannot lie there), those of `file_mapping`.
  [[nodiscard]] result<void> take(const file& from, const in_flight_area& area) noexcept {
    constexpr std::uint64_t size_max = std::uint64_t{1} << 32;
    if (area.queues == 0 || area.queue_size == 0 || area.size == 0 || area.size > size_max ||
        area.offset > size_max || area.offset % in_flight::region_alignment != 0)
      return error::in_flight_invalid;
    auto mapping = file_mapping::of(from, area.offset + area.size);
    if (!mapping) return mapping.error();
    mapping_ = std::move(*mapping);
    area_ = area;
    return {};
  }

  void close() noexcept {
    mapping_ = {};
    area_ = {};
  }

  /// Empty: there is none.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return mapping_.bytes().subspan(static_cast<std::size_t>(area_.offset));
  }
  [[nodiscard]] const in_flight_area& area() const noexcept { return area_; }

 private:
  file_mapping mapping_;
  in_flight_area area_;
};

} // namespace ballast::vhost_user
