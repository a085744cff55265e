// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/device_host.hpp>
#include <ballast/balloon/device_options.hpp>
#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/page_ranges.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::balloon {

/// What a device does with the pages that a driver names. One function for each queue, which gets
/// a buffer before it is returned; the buffers of one batch end with a `finish`, before they are
/// published. Part of `device`.
///
/// PFN arrays are payload: one that can't be read is an error, which breaks the queue. Ranges of
/// reporting and hinting are only addresses: bad ones are counted and passed over.
template <guest_memory M, page_host Host, std::endian E> class device_pages {
 public:
  constexpr device_pages(Host& host, const device_options& options,
                         device_counters& counters) noexcept
      : host_(&host), counters_(&counters), tracker_(options.tracker),
        host_pages_(options.host_page_size >> pfn_shift), pfns_max_(options.buffer_pfns_max),
        length_(options.reporting_used_length) {}

  /// The driver is live. `is_told`: it says when it takes pages back (MUST_TELL_HOST). `poison`:
  /// what free pages have to keep holding where PAGE_POISON is negotiated, else 0.
  constexpr void start(M& memory, bool is_told, std::uint32_t poison) noexcept {
    forget();
    memory_ = &memory;
    is_told_ = is_told;
    poison_ = poison;
    keeps_reported_ = false;
  }
  /// What free pages hold is not known: reported ones stay as they are, until the next `start`.
  constexpr void keep_reported() noexcept { keeps_reported_ = true; }
  /// The same guest's memory, mapped anew.
  constexpr void move_to(M& memory) noexcept {
    forget();
    memory_ = &memory;
  }
  /// Nothing is known of the balloon's pages any more: no host page becomes whole through older
  /// ones.
  constexpr void forget() noexcept {
    if (tracker_ != nullptr) tracker_->forget();
  }

  /// A buffer of the inflateq. Errors: why the array can't be read.
  [[nodiscard]] constexpr error inflate(const chain& c) noexcept {
    ++counters_->inflate_count;
    if (is_inhibited()) return error::none;
    return read_pfns(c, [&](page_range range) { inflate_range(range); }).error();
  }
  constexpr void finish_inflate() noexcept {
    ranges_.finish([&](page_range range) { inflate_range(range); });
    whole_.finish([&](page_range host_pages) { discard_whole(host_pages); });
    if (tracker_ == nullptr || is_told_) return;
    // From here on the guest may use the pages again without a word.
    counters_->partial_pages += tracker_->partial_pages();
    tracker_->forget();
  }

  /// A buffer of the deflateq. Errors: why the array can't be read.
  [[nodiscard]] constexpr error deflate(const chain& c) noexcept {
    ++counters_->deflate_count;
    const auto all = read_pfns(c, [&](page_range range) { deflate_range(range); });
    // The buffer goes back, and with it pages that were not looked at.
    if (!all || !*all) forget();
    return all.error();
  }
  constexpr void finish_deflate() noexcept {
    ranges_.finish([&](page_range range) { deflate_range(range); });
    whole_.finish([&](page_range host_pages) { provide_whole(host_pages); });
  }

  /// A buffer of the reporting_vq; the used length to return it with. Its memory may be changed
  /// only until then. Spec: "Free Page Reporting".
  [[nodiscard]] constexpr std::uint32_t report(const chain& c) noexcept {
    counters_->misplaced_buffers += c.readable().size();
    counters_->free_page_report_count += c.writable().size();
    if (!is_inhibited())
      for (const buffer& b : c.writable()) report_range({b.address, b.length});
    if (length_ == reported_length::zero) return 0;
    const std::uint64_t bytes = total_bytes(c.writable());
    return bytes < UINT32_MAX ? static_cast<std::uint32_t>(bytes) : UINT32_MAX;
  }

  /// The ranges of a buffer of the free_page_vq. Spec: "Free Page Hinting".
  constexpr void hint(const chain& c, bool is_accepting) noexcept {
    if (c.writable().empty()) return;
    if (!is_accepting) {
      counters_->ignored_hints += c.writable().size();
      return;
    }
    counters_->free_page_hint_count += c.writable().size();
    if (is_inhibited()) return;
    for (const buffer& b : c.writable()) hint_range({b.address, b.length});
  }

  /// Behind the last buffer of a batch of any queue.
  constexpr void flush() noexcept {
    if constexpr (flushes_discards<Host>)
      if (!host_->flush()) ++counters_->discard_failures;
  }

 private:
  [[nodiscard]] constexpr bool is_inhibited() noexcept {
    if constexpr (inhibits_discards<Host>)
      if (!host_->discard_allowed()) {
        ++counters_->inhibited_buffers;
        return true;
      }
    return false;
  }

  /// Adds the PFNs of one buffer, however it is cut, to `ranges_`; whether that was all of them.
  template <class Sink> constexpr result<bool> read_pfns(const chain& c, Sink&& sink) noexcept {
    constexpr std::size_t chunk_size = 256;
    buffer_reader<M> reader(*memory_, c.readable());
    for (std::uint32_t seen = 0;;) {
      struct pfn_bytes {
        std::byte at[4];
      };
      std::byte chunk[chunk_size]{};
      const auto read = reader.read(chunk);
      if (!read) return read.error();
      const std::size_t whole = *read - *read % sizeof(pfn_bytes);
      for (std::size_t i = 0; i < whole; i += sizeof(pfn_bytes)) {
        if (seen++ == pfns_max_) {
          ++counters_->oversized_buffers;
          return false;
        }
        const pfn_bytes raw{chunk[i], chunk[i + 1], chunk[i + 2], chunk[i + 3]};
        ranges_.add(std::bit_cast<word<std::uint32_t, E>>(raw), sink);
      }
      counters_->trailing_bytes += *read - whole;
      if (*read < chunk_size) return true;
    }
  }

  /// Hands out the pieces of guest memory in `range`: `sink(page_range)`. The pages that are none.
  template <class Sink>
  constexpr std::uint64_t for_each_piece(page_range range, Sink&& sink) noexcept {
    std::uint64_t at = range.first, left = range.count, bad = 0;
    while (left != 0) {
      const auto first = static_cast<std::uint32_t>(at);
      const std::uint64_t pages =
          page_piece(*memory_, address_of(first), left << pfn_shift) >> pfn_shift;
      if (pages != 0)
        sink(page_range{first, pages});
      else
        ++bad;
      at += pages != 0 ? pages : 1;
      left -= pages != 0 ? pages : 1;
    }
    return bad;
  }

  constexpr void inflate_range(page_range range) noexcept {
    counters_->bad_pages += for_each_piece(range, [&](page_range piece) {
      if (tracker_ == nullptr)
        discard(piece);
      else
        track(piece);
    });
  }

  /// Pages of guest memory, on their way to `discard` as soon as their host page is whole.
  constexpr void track(page_range piece) noexcept {
    for (std::uint64_t i = 0; i < piece.count; ++i) {
      const auto pfn = static_cast<std::uint32_t>(piece.first + i);
      if (!tracker_->covers(pfn)) ++counters_->partial_pages;
      if (!tracker_->insert(pfn)) continue;
      whole_.add(tracker_->host_page_of(pfn), [&](page_range h) { discard_whole(h); });
    }
  }

  constexpr void discard_whole(page_range host_pages) noexcept {
    // Again piece by piece: a host page that lies over two of them is no page of the host.
    counters_->bad_pages +=
        for_each_piece(tracker_->pages_of(host_pages), [&](page_range p) { discard(p); });
  }

  constexpr void discard(page_range piece) noexcept {
    const page_range whole = whole_host_pages(piece, host_pages_);
    counters_->inflated_pages += whole.count;
    counters_->partial_pages += piece.count - whole.count;
    if (whole.count != 0 && !host_->discard(address_of(whole.first), whole.count << pfn_shift))
      ++counters_->discard_failures;
  }

  constexpr void deflate_range(page_range range) noexcept {
    const bool is_tracked = tracker_ != nullptr && is_told_;
    // First, and whether it is memory or not: what is deflated is not remembered any more.
    if (is_tracked)
      for (std::uint64_t i = 0; i < range.count; ++i) {
        const auto pfn = static_cast<std::uint32_t>(range.first + i);
        if (!tracker_->erase(pfn)) continue;
        whole_.add(tracker_->host_page_of(pfn), [&](page_range h) { provide_whole(h); });
      }
    counters_->bad_pages += for_each_piece(range, [&](page_range piece) {
      counters_->deflated_pages += piece.count;
      if (!is_tracked) provide(piece);
    });
  }

  constexpr void provide_whole(page_range host_pages) noexcept {
    counters_->bad_pages +=
        for_each_piece(tracker_->pages_of(host_pages), [&](page_range p) { provide(p); });
  }

  constexpr void provide(page_range piece) noexcept {
    if constexpr (provides_pages<Host>) {
      const page_range whole = whole_host_pages(piece, host_pages_);
      if (whole.count != 0) host_->provide(address_of(whole.first), whole.count << pfn_shift);
    }
  }

  /// Hands out the whole pages in `range` as far as it is guest memory: `sink(address_range)`.
  /// Whether there was one and that was all. What is behind the first gap is not looked for: that
  /// would be as much work as the driver likes.
  template <class Sink>
  constexpr bool for_each_whole_piece(address_range range, Sink&& sink) noexcept {
    address_range left = whole_pages(range, page_size);
    if (left.size == 0) return false;
    while (left.size != 0) {
      const std::uint64_t size = page_piece(*memory_, left.address, left.size);
      if (size == 0) return false;
      sink(address_range{left.address, size});
      left = {left.address + size, left.size - size};
    }
    return true;
  }

  constexpr void report_range(address_range range) noexcept {
    if (keeps_reported_ || (poison_ != 0 && !fills_pages<Host>)) {
      ++counters_->poisoned_ranges;
      return;
    }
    bool is_good = true;
    const bool is_memory = for_each_whole_piece(range, [&](address_range piece) {
      const address_range whole = whole_pages(piece, std::uint64_t{host_pages_} << pfn_shift);
      if (whole.size == 0) return;
      if (give_back(whole))
        counters_->free_page_report_freed += whole.size;
      else
        is_good = false;
    });
    if (!is_memory || !is_good) ++counters_->free_page_report_fails;
  }

  /// Takes reported memory, which has to read as the poison afterwards.
  [[nodiscard]] constexpr bool give_back(address_range whole) noexcept {
    if constexpr (fills_pages<Host>)
      if (poison_ != 0) return host_->fill(whole.address, whole.size, poison_);
    return host_->discard(whole.address, whole.size);
  }

  constexpr void hint_range(address_range range) noexcept {
    if constexpr (takes_hints<Host>) {
      bool is_good = true;
      const bool is_memory = for_each_whole_piece(range, [&](address_range piece) {
        if (host_->hint(piece.address, piece.size))
          counters_->free_page_hint_freed += piece.size;
        else
          is_good = false;
      });
      if (!is_memory || !is_good) ++counters_->free_page_hint_fails;
    }
  }

  Host* host_;
  device_counters* counters_;
  host_page_tracker* tracker_;
  M* memory_ = nullptr;
  page_range_builder ranges_; ///< the batch's pages
  page_range_builder whole_;  ///< the batch's host pages: numbers of those, not of pages
  std::uint32_t host_pages_;  ///< pages in a host page
  std::uint32_t pfns_max_;
  std::uint32_t poison_ = 0;
  bool keeps_reported_ = false;
  reported_length length_;
  bool is_told_ = false;
};

} // namespace ballast::balloon
