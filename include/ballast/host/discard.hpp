// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/host/mapping.hpp>
#include <ballast/host/vectored_advice.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

namespace ballast::host {

struct discard_options {
  /// Punch holes into files other than memfds and huge pages: their contents are lost, for every
  /// process. Only for a file that is there to be the guest's memory.
  bool punches_files = false;
  /// Put anonymous memory in the place of pages that are mapped privately from a file (a snapshot,
  /// for example), which else would show the file's contents again. The file stays as it is; each
  /// hole is a mapping of its own, of which a process has 65530 (vm.max_map_count), and without
  /// the advice and the memory policy that were given for the region.
  bool replaces_private_files = false;
  /// Have the pages there, and not only their addresses, when the guest takes them back.
  bool populates = false;
  /// Use process_madvise where it works. False: a call for each range.
  bool uses_vectors = true;
  /// Use MADV_POPULATE_WRITE where it works. False: as on a kernel that lacks it (before 5.14).
  bool uses_populate_write = true;
};

/// What was done since the start.
struct discard_counters {
  std::uint64_t given_ranges = 0;     ///< of `discard`, without those that were refused
  std::uint64_t merged_ranges = 0;    ///< what was left of them, as the kernel got them
  std::uint64_t system_calls = 0;     ///< to give memory back
  std::uint64_t discarded_bytes = 0;  ///< given back
  std::uint64_t failed_ranges = 0;    ///< merged ones that the kernel did not take back
  std::uint64_t refused_ranges = 0;   ///< no memory of one region, or no whole pages
  std::uint64_t populated_bytes = 0;  ///< made present for the guest
  std::uint64_t failed_populates = 0; ///< left to be made present when the guest touches them
};

/// Why memory was not given back.
struct discard_failure {
  error why = error::none;
  int system_error = 0;      ///< errno, where `why` is `system_call_failed`
  std::uint64_t address = 0; ///< guest address where it was refused, host address otherwise
  std::uint64_t size = 0;    ///< bytes
};

/// How the memory of a mapping is given back.
enum class discard_way : std::uint8_t {
  none,       ///< read-only: never
  dont_need,  ///< MADV_DONTNEED: private memory
  punch_hole, ///< MADV_REMOVE: a hole in the file behind it, with the size kept
  replace,    ///< anonymous memory is mapped in its place
};

/// A region of guest memory, and what was found out about it.
struct discard_region {
  memory_region memory;
  mapping found;
  discard_way way = discard_way::none;
};

/// Memory for a `discarder`: ranges that wait to be given back, and guest memory's regions.
///
/// `Ranges`: as many as PFNs that join no others may come in one batch; where they are more, they
/// are given back earlier.
template <std::uint32_t Ranges = 4096, std::uint32_t Regions = 16> struct discard_storage {
  static_assert(Ranges != 0);
  iovec ranges[Ranges];
  discard_region regions[Regions];
};

/// The back end of a balloon device on Linux: gives guest memory back to the host's kernel.
///
///     host::discard_storage<> storage;
///     host::discarder back_end(storage);
///     if (const auto r = back_end.start(ram.regions()); !r) fail(name(r.error()));
///     balloon::device<mapped_memory, host::discarder> device(
///         back_end, {.host_page_size = back_end.page_size()});
///
/// Finds out what each region is and does what gives its pages back, so that they read as zeros:
/// anonymous memory is dropped, a memfd, shared huge pages and, where it is allowed, a file get a
/// hole. (The hole is made through the mapping, so that it is the right file at the right offset.)
/// Discarded ranges are collected, joined across all buffers of a batch in whichever order they
/// came, and given back by `flush`, which the device calls before it returns the buffers.
/// The regions stay mapped until the next `start`. One thread at a time. Hosted; Linux.
class discarder {
 public:
  /// `storage` must outlive it and stay where it is.
  template <std::uint32_t Ranges, std::uint32_t Regions>
  explicit discarder(discard_storage<Ranges, Regions>& storage) noexcept
      : pending_(storage.ranges), room_(storage.regions) {}
  discarder(const discarder&) = delete;
  discarder& operator=(const discarder&) = delete;

  /// Finds out what the regions are and what the kernel can do; begins anew. Where it fails there
  /// is no memory, `failure()` has the region.
  ///
  /// Errors: `storage_too_small`, `misaligned` (guest and host base differ modulo the page size),
  /// `file_not_allowed` (see the options), `mapping_locked`, `mapping_unsupported`,
  /// `access_not_allowed` (mapped read-only), those of `find_mapping`.
  result<void> start(std::span<const memory_region> regions,
                     const discard_options& options = {}) noexcept {
    count_ = 0;
    regions_ = {};
    last_ = nullptr;
    counters_ = {};
    failure_ = {};
    options_ = options;
    page_size_ = static_cast<std::uint32_t>(sysconf(_SC_PAGESIZE));
    if (regions.size() > room_.size()) return error::storage_too_small;
    for (std::size_t i = 0; i < regions.size(); ++i) {
      const error e = look_at(regions[i], room_[i]);
      if (e == error::none) continue;
      failure_ = {e, e == error::mapping_unreadable ? errno : 0, regions[i].address,
                  regions[i].size};
      return e;
    }
    regions_ = room_.first(regions.size());
    for (const discard_region& r : regions_)
      page_size_ = std::max(page_size_, static_cast<std::uint32_t>(r.found.page_size));
    vectors_.forget();
    has_vectors_[0] = options.uses_vectors && vectors_.probe(MADV_DONTNEED);
    has_vectors_[1] = options.uses_vectors && vectors_.probe(MADV_REMOVE);
    has_populate_write_ = options.populates && options.uses_populate_write && can_populate();
    return {};
  }

  /// Takes note of memory to be given back: whole host pages of one region. False where it is not
  /// that, or where the storage was full and what was in it could not be given back.
  [[nodiscard]] bool discard(guest_address address, std::uint64_t size) noexcept {
    if (size == 0) return true;
    const discard_region* const r = find(address, size);
    if (r == nullptr) return refuse(error::not_guest_memory, address, size);
    if (r->way == discard_way::none) return refuse(error::access_not_allowed, address, size);
    const std::uint64_t offset = address - r->memory.address;
    const auto begin = reinterpret_cast<std::uintptr_t>(r->memory.data) + offset;
    if (((begin | size) & (r->found.page_size - 1)) != 0)
      return refuse(error::misaligned, address,
                    size); // the kernel would do nothing, and not say so
    ++counters_.given_ranges;
    return add(r->way, {r->memory.data + offset, static_cast<std::size_t>(size)});
  }

  /// Gives back what waits. False where some of it was not taken: `failure()`.
  bool flush() noexcept {
    if (count_ == 0) return true;
    if (count_ > 1) merge();
    counters_.merged_ranges += count_;
    const std::uint64_t failed_before = counters_.failed_ranges;
    for (std::size_t at = 0; at < count_;) at += give_back(pending_.subspan(at, count_ - at));
    count_ = 0;
    return counters_.failed_ranges == failed_before;
  }

  /// The guest takes pages back. Where it was asked for they are made present, which costs what the
  /// guest's first access costs otherwise; where that fails, the first access does it.
  void provide(guest_address address, std::uint64_t size) noexcept {
    (void)flush(); // nothing that waits may be lost after the guest has it
    if (!options_.populates || size == 0) return;
    const discard_region* const r = find(address, size);
    if (r == nullptr || r->way == discard_way::none) {
      ++counters_.failed_populates;
      return;
    }
    std::byte* const data = r->memory.data + (address - r->memory.address);
    if (has_populate_write_ ? madvise(data, size, populate_write) == 0 : touch(*r, data, size)) {
      counters_.populated_bytes += size;
    } else {
      ++counters_.failed_populates;
      failure_ = {error::system_call_failed, errno, address, size};
    }
  }

  /// The largest page of all regions, in bytes: `device_options::host_page_size`.
  [[nodiscard]] std::uint32_t page_size() const noexcept { return page_size_; }
  [[nodiscard]] std::span<const discard_region> regions() const noexcept { return regions_; }
  /// Whether several ranges of memory that is given back so go to the kernel in one call.
  [[nodiscard]] bool has_vectors(discard_way way) const noexcept {
    return (way == discard_way::dont_need && has_vectors_[0]) ||
           (way == discard_way::punch_hole && has_vectors_[1]);
  }
  [[nodiscard]] bool has_populate_write() const noexcept { return has_populate_write_; }
  [[nodiscard]] const discard_counters& counters() const noexcept { return counters_; }
  /// The last failure since the start.
  [[nodiscard]] const discard_failure& failure() const noexcept { return failure_; }

 private:
  static constexpr int populate_write = 23; // MADV_POPULATE_WRITE

  [[nodiscard]] error look_at(const memory_region& region, discard_region& r) const noexcept {
    r = {};
    r.memory = region;
    const auto found = find_mapping(region.data, region.size);
    if (!found) return found.error();
    r.found = *found;
    if (!region.is_writable) return error::none;
    switch (found->kind) {
    case mapping_kind::anonymous:
    case mapping_kind::hugetlb_private: r.way = discard_way::dont_need; break;
    case mapping_kind::shared_memory:
    case mapping_kind::hugetlb_shared: r.way = discard_way::punch_hole; break;
    case mapping_kind::file_shared:
      if (!options_.punches_files) return error::file_not_allowed;
      r.way = discard_way::punch_hole;
      break;
    case mapping_kind::file_private:
      if (!options_.replaces_private_files) return error::file_not_allowed;
      r.way = discard_way::replace;
      break;
    case mapping_kind::device: return error::mapping_unsupported;
    }
    if (found->is_locked) return error::mapping_locked;
    if (!found->is_writable) return error::access_not_allowed;
    const auto host = reinterpret_cast<std::uintptr_t>(region.data);
    if (((region.address ^ host) & (found->page_size - 1)) != 0) return error::misaligned;
    return error::none;
  }

  /// The region that all of the range lies in.
  [[nodiscard]] const discard_region* find(guest_address address, std::uint64_t size) noexcept {
    const auto holds = [&](const discard_region& r) {
      const std::uint64_t offset = address - r.memory.address;
      return offset < r.memory.size && size <= r.memory.size - offset;
    };
    if (last_ != nullptr && holds(*last_)) return last_;
    for (const discard_region& r : regions_)
      if (holds(r)) return last_ = &r;
    return nullptr;
  }

  [[nodiscard]] bool refuse(error why, guest_address address, std::uint64_t size) noexcept {
    ++counters_.refused_ranges;
    failure_ = {why, 0, address, size};
    return false;
  }

  [[nodiscard]] bool add(discard_way way, const iovec& range) noexcept {
    if (count_ != 0 && way == way_) {
      iovec& last = pending_[count_ - 1];
      if (end_of(last) == begin_of(range)) {
        last.iov_len += range.iov_len;
        return true;
      }
      if (end_of(range) == begin_of(last)) {
        last = {range.iov_base, last.iov_len + range.iov_len};
        return true;
      }
    }
    bool is_done = true;
    if (count_ == pending_.size() || way != way_) is_done = flush();
    way_ = way;
    pending_[count_++] = range;
    return is_done;
  }

  /// Joins what adjoins or overlaps.
  void merge() noexcept {
    const auto all = pending_.first(count_);
    const auto is_before = [](const iovec& a, const iovec& b) { return begin_of(a) < begin_of(b); };
    if (!std::is_sorted(all.begin(), all.end(), is_before))
      std::sort(all.begin(), all.end(), is_before);
    std::size_t last = 0;
    for (const iovec& next : all.subspan(1)) {
      if (begin_of(next) > end_of(all[last])) {
        all[++last] = next;
      } else if (end_of(next) > end_of(all[last])) {
        all[last].iov_len = end_of(next) - begin_of(all[last]);
      }
    }
    count_ = last + 1;
  }

  /// Gives back the first of `ranges`, or as many as go into one call. How many it dealt with.
  [[nodiscard]] std::size_t give_back(std::span<iovec> ranges) noexcept {
    ++counters_.system_calls;
    const std::size_t together = has_vectors(way_) ? fit_together(ranges) : 1;
    if (together > 1) {
      std::int64_t done = vectors_.advise(ranges.first(together), advice());
      std::size_t whole = 0;
      for (; done > 0 && whole < together; ++whole) {
        const auto size = static_cast<std::int64_t>(ranges[whole].iov_len);
        if (done < size) break;
        done -= size;
        counters_.discarded_bytes += ranges[whole].iov_len;
      }
      // The one it stopped at is advised on by itself: that says why, and goes on where it can.
      if (whole != 0) return whole;
      ++counters_.system_calls;
    }
    const iovec& r = ranges.front();
    if (give_back_one(r)) {
      counters_.discarded_bytes += r.iov_len;
    } else {
      ++counters_.failed_ranges;
      failure_ = {error::system_call_failed, errno, begin_of(r), r.iov_len};
    }
    return 1;
  }

  [[nodiscard]] bool give_back_one(const iovec& r) const noexcept {
    if (way_ != discard_way::replace) return madvise(r.iov_base, r.iov_len, advice()) == 0;
    return mmap(r.iov_base, r.iov_len, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
  }

  [[nodiscard]] static std::size_t fit_together(std::span<const iovec> ranges) noexcept {
    std::uint64_t bytes = 0;
    const std::size_t most = std::min(ranges.size(), vectored_advice::ranges_max);
    for (std::size_t n = 0; n < most; ++n) {
      bytes += ranges[n].iov_len;
      if (bytes > vectored_advice::bytes_max) return n;
    }
    return most;
  }

  /// As populating, for private memory only: where other memory has run out, an access is a signal.
  [[nodiscard]] static bool touch(const discard_region& r, std::byte* data,
                                  std::uint64_t size) noexcept {
    if (r.found.kind != mapping_kind::anonymous) {
      errno = EOPNOTSUPP;
      return false;
    }
    // A page that is not there is zeros, and one that the guest has written to is there.
    for (std::uint64_t at = 0; at < size; at += r.found.page_size) {
      unsigned char zero = 0;
      const std::atomic_ref byte(*reinterpret_cast<unsigned char*>(data + at));
      (void)byte.compare_exchange_strong(zero, 0, std::memory_order_relaxed);
    }
    return true;
  }

  [[nodiscard]] static bool can_populate() noexcept {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const at =
        mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return false;
    const bool works = madvise(at, page, populate_write) == 0;
    munmap(at, page);
    return works;
  }

  [[nodiscard]] int advice() const noexcept {
    return way_ == discard_way::punch_hole ? MADV_REMOVE : MADV_DONTNEED;
  }
  [[nodiscard]] static std::uintptr_t begin_of(const iovec& r) noexcept {
    return reinterpret_cast<std::uintptr_t>(r.iov_base);
  }
  [[nodiscard]] static std::uintptr_t end_of(const iovec& r) noexcept {
    return begin_of(r) + r.iov_len;
  }

  std::span<iovec> pending_;
  std::span<discard_region> room_;
  std::span<const discard_region> regions_;
  const discard_region* last_ = nullptr;
  std::size_t count_ = 0; ///< of `pending_`, all of them for `way_`
  discard_way way_ = discard_way::none;
  bool has_vectors_[2] = {}; ///< for MADV_DONTNEED, for MADV_REMOVE
  bool has_populate_write_ = false;
  std::uint32_t page_size_ = 4096;
  discard_options options_;
  discard_counters counters_;
  discard_failure failure_;
  vectored_advice vectors_;
};

} // namespace ballast::host
