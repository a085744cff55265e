// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "balloon_parts.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/page_ranges.hpp>
#include <ballast/endian.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <set>
#include <vector>

// The inflateq and the deflateq: arrays of PFNs that may say anything, lie anywhere and change
// while they are read. From the words that were read a naive model works out which pages the host
// must have been given, which it must not, and what was counted.

namespace {

using namespace ballast_fuzz;
using namespace ballast;
using balloon::host_page_tracker;

constexpr balloon::page_range guests[] = {
    {0, 0x60}, {3, 0x4e}, {0x40000, 0x800}, {0x3ff01, 0x901}, {0xffffffe0, 0x20}};

template <class Host, std::endian E> class scenario {
 public:
  explicit scenario(input& in) : in_(in) {
    balloon::device_options options{.offered = {balloon::feature::must_tell_host,
                                                feature::event_idx, feature::indirect_desc,
                                                feature::in_order, feature::ring_packed}};
    constexpr std::uint32_t sizes[] = {0, 4096, 8192, 16384, 65536, 2u << 20, 1u << 30, 5000};
    const std::uint32_t asked = sizes[in_.below(8)];
    unit_ = asked == 5000 ? 8192 : std::max<std::uint64_t>(asked, 4096);
    pages_ = static_cast<std::uint32_t>(unit_ / 4096);
    options.host_page_size = asked;
    const std::uint32_t which = in_.below(8);
    if (which < std::size(guests)) {
      guest_ = guests[which];
      storage_.resize(static_cast<std::size_t>(host_page_tracker::storage_size(guest_, asked)));
      tracker_ = *host_page_tracker::over(storage_, guest_, asked);
      options.tracker = &tracker_;
      options.host_page_size = 123; // the tracker's counts
      is_tracked_ = true;
    }
    constexpr std::uint32_t limits[] = {2048, 64, 65, 3, 0, 1000};
    options.buffer_pfns_max = limit_ = limits[in_.below(6)];
    m_.build(options, unit_);
  }

  void run() {
    activate();
    for (int step = 0; step < 300 && !in_.empty(); ++step) step_once();
    activate();
    require(m_.is_live, "the target survives");
  }

 private:
  using machine = balloon_machine<Host, E>;
  using page_set = std::set<std::uint64_t>;

  /// What the device read of one buffer.
  struct reading {
    std::vector<std::uint32_t> pfns;
    std::uint64_t trailing = 0;
    bool is_failed = false; ///< it could not be read to its end
    bool is_cut = false;    ///< longer than the limit
  };

  void step_once() {
    switch (in_.below(12)) {
    case 0: write_pfns(); break;
    case 1: write_pfns(); break;
    case 2: send(queue_kind::inflate); break;
    case 3: send(queue_kind::inflate); break;
    case 4: send(queue_kind::deflate); break;
    case 5: process(queue_kind::inflate); break;
    case 6: process(queue_kind::inflate); break;
    case 7: process(queue_kind::deflate); break;
    case 8: change_payload(in_, m_.ram); break;
    case 9:
      m_.host.allowed = in_.byte();
      m_.host.successful = in_.byte();
      break;
    case 10: reset_queue(); break;
    default:
      switch (in_.below(4)) {
      case 0: activate(); break;
      case 1:
        if (m_.is_live) require(m_.move_memory(), "queues that worked are attached again");
        held_.clear();
        break;
      default: write_pfns(); break;
      }
    }
  }

  void activate() {
    feature_set wanted = ring_features(in_);
    is_told_ = in_.flag();
    if (is_told_) wanted.set(balloon::feature::must_tell_host);
    (void)m_.activate(wanted, queue_size_from(in_, wanted));
    require(m_.is_live, "a driver that keeps the rules is accepted");
    require(m_.host.calls.empty(), "nothing happens without a buffer");
    held_.clear();
    is_broken_[0] = is_broken_[1] = false;
  }

  /// A run of PFNs into the payload area, upward, downward or the same one again.
  void write_pfns() {
    constexpr std::uint32_t bases[] = {0,    4,       5,       0x10,       0x20,
                                       0x31, 0x40000, 0x401ff, 0xfffffff0, 0xffffffff};
    const std::uint32_t base = bases[in_.below(10)] + in_.below(64);
    const std::uint32_t step = in_.below(4) - 1u, count = 1 + in_.below(200);
    const guest_address to = 0x1a00 + 4u * in_.below(0x580);
    for (std::uint32_t i = 0; i < count; ++i) m_.ram.poke(to + 4 * i, to_order<E>(base + i * step));
  }

  void send(queue_kind kind) {
    std::vector<buffer> readable = buffers_from(in_, m_.ram, 4), writable;
    if (readable.empty() || in_.byte() > 0xf8) writable.push_back({0x2000, 64});
    m_.send(kind, readable, writable);
  }

  void reset_queue() {
    const queue_kind kind = in_.flag() ? queue_kind::inflate : queue_kind::deflate;
    const auto at = m_.set_up(kind, queue_size_from(in_, m_.negotiated));
    m_.ram.changes.clear();
    m_.begin_call(true);
    (void)m_.device->reset_queue(m_.index_of(kind));
    const bool is_good = m_.device->enable_queue(m_.index_of(kind), at).failure == error::none;
    m_.layouts[static_cast<std::size_t>(kind)] = at;
    is_broken_[kind == queue_kind::deflate] = !is_good;
    held_.clear();
    if (!is_good) activate();
  }

  [[nodiscard]] reading read_of(const typename machine::sent_chain& c) {
    reading r;
    const std::uint64_t total = total_bytes(c.readable);
    const std::vector<std::byte> bytes = m_.bytes_read(c, 256, std::uint64_t{limit_} * 4 + 4);
    std::size_t whole = bytes.size();
    const bool is_stopped = bytes.size() % 256 == 0 && bytes.size() / 4 > limit_;
    r.is_failed = bytes.size() < total && !is_stopped;
    if (r.is_failed) whole = whole / 256 * 256; // what was read of a piece before that is lost
    r.is_cut = whole / 4 > limit_;
    if (!r.is_cut && !r.is_failed) r.trailing = whole % 4;
    for (std::size_t i = 0; i + 4 <= whole && r.pfns.size() < limit_; i += 4) {
      std::uint32_t raw = 0;
      std::memcpy(&raw, bytes.data() + i, 4);
      r.pfns.push_back(to_order<E>(raw));
    }
    return r;
  }

  void process(queue_kind kind) {
    const bool is_inflate = kind == queue_kind::inflate;
    const std::uint32_t budget = in_.below(20);
    const balloon::device_counters old = m_.device->counters();
    const std::deque<typename machine::sent_chain> sent = m_.of(kind).sent;
    const bool was_broken = is_broken_[!is_inflate];
    const actions due = m_.process(kind, budget);
    const balloon::device_counters& now = m_.device->counters();
    const std::uint64_t count =
        is_inflate ? now.inflate_count - old.inflate_count : now.deflate_count - old.deflate_count;
    require(count <= budget && count <= sent.size(), "the budget is kept");
    require(m_.ram.accesses <=
                16 + (count + 1) * (256 + 6 * (std::uint64_t{limit_} + 64)) + held_.size(),
            "a call's work is bounded by its budget");
    if (was_broken) require(count == 0, "a broken queue is left alone");

    // What was read, buffer by buffer.
    m_.begin_copies();
    std::vector<std::uint32_t> pfns; // of all buffers
    std::uint64_t trailing = 0, cut = 0, inhibited = 0;
    bool is_failed = false, is_forgotten = false;
    for (std::size_t i = 0; i < count; ++i) {
      require(!is_failed, "what comes behind a buffer that can't be read is not looked at");
      if (is_inflate && i < m_.host.answers.size() && !m_.host.answers[i]) {
        ++inhibited;
        continue;
      }
      const reading r = read_of(sent[i]);
      pfns.insert(pfns.end(), r.pfns.begin(), r.pfns.end());
      trailing += r.trailing;
      cut += r.is_cut;
      is_failed = r.is_failed;
      is_forgotten = is_forgotten || r.is_failed || r.is_cut;
    }
    require(m_.are_copies_over(), "each byte is read once, and none beyond the limit");
    if (!m_.is_memory_good()) return after_loss(due);
    require(is_failed || was_broken || due.failure == error::none, "failures have a reason");
    require(!is_failed || (due.needs_reset && (due.failure == error::not_guest_memory)),
            "an array that is no memory breaks the queue");
    if (is_failed) is_broken_[!is_inflate] = true;
    require(now.trailing_bytes - old.trailing_bytes == trailing &&
                now.oversized_buffers - old.oversized_buffers == cut &&
                now.inhibited_buffers - old.inhibited_buffers == inhibited,
            "what is odd about buffers is counted");

    if (is_inflate)
      check_inflated(pfns, old, now);
    else
      check_deflated(pfns, is_forgotten, old, now);

    const std::uint32_t back = m_.take_returned(kind, [&](const auto&, std::uint32_t length) {
      require(length == 0, "nothing was written to a buffer");
    });
    require(was_broken || is_failed ? back >= count : back == count, "each buffer comes back");
    if (!was_broken && !is_failed)
      require(back == std::min<std::size_t>(budget, sent.size()), "as many as the budget allows");
  }

  /// The driver begins anew, with memory that works.
  void after_loss(const actions& due) {
    require(due.needs_reset, "lost memory is reported");
    activate();
  }

  [[nodiscard]] bool covers(std::uint32_t pfn) const noexcept {
    return pfn >= guest_.first && pfn - guest_.first < guest_.count;
  }
  [[nodiscard]] bool is_good_page(std::uint32_t pfn) const {
    return is_whole_page(m_.ram, guest_address{pfn} * 4096);
  }
  [[nodiscard]] bool is_good_host_page(std::uint64_t number) const {
    return is_host_page(m_.ram, number * unit_, unit_);
  }
  /// Host pages all of whose pages are in there.
  [[nodiscard]] page_set whole_of(const page_set& pages) const {
    page_set whole;
    std::uint64_t last = UINT64_MAX, run = 0;
    for (const std::uint64_t page : pages) {
      run = page == last + 1 && page % pages_ != 0 ? run + 1 : page % pages_ == 0;
      last = page;
      if (run == pages_) whole.insert(page / pages_);
    }
    return whole;
  }
  [[nodiscard]] page_set in_pages(const page_set& host_pages) const {
    page_set pages;
    for (const std::uint64_t h : host_pages)
      for (std::uint64_t i = 0; i < pages_; ++i) pages.insert(h * pages_ + i);
    return pages;
  }

  void check_inflated(const std::vector<std::uint32_t>& pfns, const balloon::device_counters& old,
                      const balloon::device_counters& now) {
    const auto calls = m_.host.pages(host_act::discard);
    const page_set given(calls.begin(), calls.end());
    require(m_.host.calls.empty() || m_.host.calls.back().act == host_act::discard,
            "inflating only discards");
    page_set good, bad;
    for (const std::uint32_t pfn : pfns) (is_good_page(pfn) ? good : bad).insert(pfn);
    page_set expected;
    const page_set was_whole = whole_of(held_);
    if (is_tracked_)
      for (const std::uint64_t page : good)
        if (covers(static_cast<std::uint32_t>(page))) held_.insert(page);
    const page_set is_whole = is_tracked_ ? whole_of(held_) : whole_of(good);
    for (const std::uint64_t h : is_whole)
      if (!was_whole.contains(h) && is_good_host_page(h)) expected.insert(h);
    expected = in_pages(expected);
    if (is_tracked_ || pages_ == 1)
      require(given == expected, "what is discarded are the host pages that became whole");
    else
      require(std::includes(expected.begin(), expected.end(), given.begin(), given.end()),
              "what is discarded are host pages whose pages were all named");
    if (is_tracked_) require(calls.size() == given.size(), "no page is discarded twice");
    require(now.inflated_pages - old.inflated_pages == calls.size(),
            "what is discarded is counted");
    const auto failures = std::count_if(m_.host.calls.begin(), m_.host.calls.end(),
                                        [](const auto& c) { return !c.is_good; });
    require(now.discard_failures - old.discard_failures == static_cast<std::uint64_t>(failures),
            "failures are counted");
    const std::uint64_t bad_pages = now.bad_pages - old.bad_pages;
    const std::uint64_t partial = now.partial_pages - old.partial_pages;
    require(bad_pages >= bad.size() && bad_pages <= pfns.size() + is_whole.size() * pages_,
            "pages that are no memory are counted");
    if (!is_tracked_) {
      const std::uint64_t all = calls.size() + bad_pages + partial;
      require(all >= good.size() + bad.size() && all <= pfns.size(), "each page is counted once");
    } else if (!is_told_) {
      require(partial >= held_.size() - whole_of(held_).size() * pages_,
              "pages that are lost to the host are counted");
    }
    require(tracker_.held_pages() == (is_told_ ? held_.size() : 0), "the tracker has the pages");
    if (!is_told_) held_.clear();
    require(tracker_.partial_pages() == held_.size() - whole_of(held_).size() * pages_,
            "and knows which host pages are whole");
  }

  void check_deflated(const std::vector<std::uint32_t>& pfns, bool is_forgotten,
                      const balloon::device_counters& old, const balloon::device_counters& now) {
    const auto calls = m_.host.pages(host_act::provide);
    const page_set given(calls.begin(), calls.end());
    require(m_.host.calls.empty() || m_.host.calls.back().act == host_act::provide,
            "deflating only provides");
    page_set good;
    std::uint64_t good_count = 0;
    for (const std::uint32_t pfn : pfns) {
      if (!is_good_page(pfn)) continue;
      good.insert(pfn);
      ++good_count;
    }
    page_set expected;
    if (is_tracked_ && is_told_) {
      const page_set was_whole = whole_of(held_);
      for (const std::uint32_t pfn : pfns) held_.erase(pfn);
      const page_set is_whole = whole_of(held_);
      for (const std::uint64_t h : was_whole)
        if (!is_whole.contains(h) && is_good_host_page(h)) expected.insert(h);
    } else {
      for (const std::uint64_t h : whole_of(good))
        if (is_good_host_page(h)) expected.insert(h);
    }
    expected = in_pages(expected);
    if (balloon::provides_pages<Host>) {
      const bool is_exact = pages_ == 1 || (is_tracked_ && is_told_);
      if (is_exact && !is_forgotten)
        require(given == expected, "what is provided are the host pages that are not whole now");
      else
        require(std::includes(expected.begin(), expected.end(), given.begin(), given.end()),
                "what is provided was named");
    }
    const std::uint64_t deflated = now.deflated_pages - old.deflated_pages;
    require(deflated >= good.size() && deflated <= good_count, "deflated pages are counted");
    if (is_forgotten) held_.clear();
    require(tracker_.held_pages() == held_.size(), "only the deflated pages are forgotten");
    require(tracker_.partial_pages() == held_.size() - whole_of(held_).size() * pages_,
            "and host pages are whole or not as before");
    for (const std::uint32_t pfn : pfns) require(!tracker_.contains(pfn), "they are forgotten");
  }

  input& in_;
  machine m_;
  std::vector<std::uint32_t> storage_;
  host_page_tracker tracker_;
  balloon::page_range guest_;
  std::uint64_t unit_ = 4096;
  std::uint32_t pages_ = 1; ///< in a host page
  std::uint32_t limit_ = 0;
  bool is_tracked_ = false;
  bool is_told_ = false;
  bool is_broken_[2] = {}; ///< inflateq, deflateq
  page_set held_;          ///< inflated, as far as the device may remember
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  input in({data, size});
  switch (in.below(3)) {
  case 0: scenario<full_host, std::endian::little>(in).run(); break;
  case 1: scenario<full_host, std::endian::big>(in).run(); break;
  default: scenario<plain_host, std::endian::little>(in).run(); break;
  }
  return 0;
}
