// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/protocol.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace ballast::vhost_user {

/// A region of guest memory: a piece of a file that is mapped here.
struct shared_region {
  region_description about;
  file source;
  file_mapping mapping;

  [[nodiscard]] std::byte* data() const noexcept {
    return mapping.bytes().data() + about.file_offset;
  }
  /// Where in the file an address of the region lies.
  [[nodiscard]] std::uint64_t offset_of(guest_address address) const noexcept {
    return address - about.guest_address + about.file_offset;
  }
};

/// The guest's memory as the front end shares it: regions of files, mapped into this process.
///
/// Part of a `back_end`, which changes it, and shared with the device's host, which gives memory
/// back: it looks at `generation()` before it uses what it knows of the regions. Hosted.
class memory_table {
 public:
  memory_table() noexcept = default;
  memory_table(const memory_table&) = delete;
  memory_table& operator=(const memory_table&) = delete;

  /// The regions in ascending order of their addresses.
  [[nodiscard]] std::span<const memory_region> regions() const noexcept {
    return std::span(regions_).first(count_);
  }
  /// Another one after each change.
  [[nodiscard]] std::uint64_t generation() const noexcept { return generation_; }

  /// The region with an address; null if there is none.
  [[nodiscard]] const shared_region* find(guest_address address) const noexcept {
    for (const shared_region& r : std::span(slots_).first(count_))
      if (address - r.about.guest_address < r.about.size) return &r;
    return nullptr;
  }

  /// What the front end calls `user_address`. Errors: `not_guest_memory`.
  [[nodiscard]] result<guest_address> guest_address_of(std::uint64_t user_address) const noexcept {
    for (const shared_region& r : std::span(slots_).first(count_))
      if (user_address - r.about.user_address < r.about.size)
        return user_address - r.about.user_address + r.about.guest_address;
    return error::not_guest_memory;
  }

  /// Valid until the next change.
  [[nodiscard]] mapped_memory memory() const noexcept { return *mapped_memory::over(regions()); }

  /// Maps one more region. Errors: `memory_slots_full`, `regions_overlap`, `region_misplaced`,
  /// those of `file_mapping`; nothing changes.
  [[nodiscard]] result<void> add(const region_description& about, file source) noexcept {
    if (count_ == memory_slots_max) return error::memory_slots_full;
    auto mapping = file_mapping::of(source, about.file_offset + about.size);
    if (!mapping) return mapping.error();
    std::uint32_t at = count_;
    for (; at != 0 && slots_[at - 1].about.guest_address > about.guest_address; --at)
      std::swap(slots_[at], slots_[at - 1]);
    slots_[at] = {about, std::move(source), std::move(*mapping)};
    ++count_;
    list();
    const auto checked = mapped_memory::over(regions());
    if (!checked) take_out(at);
    return checked.error();
  }

  /// Errors: `region_unknown` (all but its file must agree); nothing changes.
  [[nodiscard]] result<void> remove(const region_description& about) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      region_description mine = slots_[i].about;
      mine.file_offset = about.file_offset;
      if (!(mine == about)) continue;
      take_out(i);
      return {};
    }
    return error::region_unknown;
  }

  /// Takes over all regions of `other`.
  void take(memory_table& other) noexcept {
    clear();
    for (std::uint32_t i = 0; i < other.count_; ++i) slots_[i] = std::move(other.slots_[i]);
    count_ = std::exchange(other.count_, 0);
    list();
  }

  void clear() noexcept {
    for (shared_region& r : std::span(slots_).first(count_)) r = {};
    count_ = 0;
    list();
  }

 private:
  void take_out(std::uint32_t at) noexcept {
    for (; at + 1 < count_; ++at) slots_[at] = std::move(slots_[at + 1]);
    slots_[--count_] = {};
    list();
  }

  void list() noexcept {
    for (std::uint32_t i = 0; i < count_; ++i)
      regions_[i] = {.address = slots_[i].about.guest_address,
                     .data = slots_[i].data(),
                     .size = slots_[i].about.size};
    ++generation_;
  }

  shared_region slots_[memory_slots_max];
  memory_region regions_[memory_slots_max];
  std::uint32_t count_ = 0;
  std::uint64_t generation_ = 0;
};

} // namespace ballast::vhost_user
