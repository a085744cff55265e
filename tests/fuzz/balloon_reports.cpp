// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "balloon_parts.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/endian.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <set>
#include <span>
#include <utility>
#include <vector>

// The reporting_vq: ranges that may be anything, with every poison and with hosts that can fill and
// that can't. A naive model goes through each range page by page.

namespace {

using namespace ballast_fuzz;
using namespace ballast;

template <class Host, std::endian E> class scenario {
 public:
  explicit scenario(input& in) : in_(in) {
    balloon::device_options options{.offered = {balloon::feature::page_reporting,
                                                feature::event_idx, feature::indirect_desc,
                                                feature::in_order, feature::ring_packed}};
    const std::uint8_t how = in_.byte();
    if ((how & 1) != 0) options.offered.set(balloon::feature::page_poison);
    if ((how & 2) != 0) options.offered.set(balloon::feature::stats_vq);
    if ((how & 4) != 0) options.numbering = balloon::queue_numbering::fixed;
    if ((how & 8) != 0) options.reporting_used_length = balloon::reported_length::bytes;
    is_length_bytes_ = (how & 8) != 0;
    constexpr std::uint32_t sizes[] = {4096, 4096, 16384, 65536, 2u << 20};
    options.host_page_size = sizes[in_.below(5)];
    unit_ = options.host_page_size;
    m_.build(options, unit_);
  }

  void run() {
    activate();
    for (int step = 0; step < 300 && !in_.empty(); ++step) step_once();
    activate();
  }

 private:
  using machine = balloon_machine<Host, E>;

  struct expectation {
    std::multiset<std::uint64_t> pages; ///< of each range on its own
    std::uint64_t fails = 0, ranges = 0, poisoned = 0, misplaced = 0;
  };

  void step_once() {
    switch (in_.below(10)) {
    case 0: send(); break;
    case 1: send(); break;
    case 2: send(); break;
    case 3: process(); break;
    case 4: process(); break;
    case 5: write_poison(); break;
    case 6: change_payload(in_, m_.ram); break;
    case 7:
      m_.host.allowed = in_.byte();
      m_.host.successful = in_.byte();
      break;
    case 8:
      if (in_.below(4) == 0) activate();
      break;
    default: require(m_.move_memory(), "queues that worked are attached again"); break;
    }
  }

  /// What a live driver writes there changes nothing.
  void write_poison() {
    std::array<std::byte, 4> bytes{};
    for (std::byte& b : bytes) b = std::byte{in_.byte()};
    (void)m_.device->write_config(12, bytes);
    require(m_.device->poison() == poison_, "the poison of a live driver is fixed");
  }

  void activate() {
    feature_set wanted = ring_features(in_).with(balloon::feature::page_reporting);
    wanted.set(balloon::feature::stats_vq);
    wanted.set(balloon::feature::must_tell_host);
    const bool has_poison = in_.flag();
    if (has_poison) wanted.set(balloon::feature::page_poison);
    std::array<std::byte, 4> bytes{};
    const std::uint8_t value = in_.byte();
    if (value < 0xc0) bytes[value % 4] = std::byte(value / 4);
    std::uint32_t little = 0;
    for (std::size_t i = 0; i < 4; ++i)
      little |= std::to_integer<std::uint32_t>(bytes[i]) << (8 * i);
    const std::uint32_t size = queue_size_from(in_, wanted);
    const actions due = m_.activate(wanted, size, [&](auto& device) {
      const bool is_there = device.offered_features().test(balloon::feature::page_poison);
      require((device.write_config(12, bytes).failure == error::none) == is_there,
              "poison_val is there where PAGE_POISON is offered");
    });
    require(due.failure == error::none, "a driver that keeps the rules is accepted");
    poison_ = m_.negotiated.test(balloon::feature::page_poison) ? little : 0;
    require(m_.device->poison() == poison_, "the poison is what was written before DRIVER_OK");
  }

  void send() {
    std::vector<buffer> readable, writable = buffers_from(in_, m_.ram, 6);
    if (writable.empty() || in_.byte() > 0xf0) readable = buffers_from(in_, m_.ram, 2);
    if (readable.empty() && writable.empty()) return;
    m_.send(queue_kind::reporting, std::move(readable), std::move(writable));
  }

  /// Page by page up to the first that is no memory; of these, whole host pages.
  void add_range(expectation& e, const buffer& b) {
    ++e.ranges;
    if (poison_ != 0 && !balloon::fills_pages<Host>) {
      ++e.poisoned;
      return;
    }
    const bool is_over = b.length > UINT64_MAX - b.address;
    std::uint64_t page = b.address / 4096 + (b.address % 4096 != 0);
    const std::uint64_t end = is_over ? 0 : (b.address + b.length) / 4096;
    bool is_bad = page >= end;
    std::vector<std::uint64_t> pages;
    for (; page < end; ++page) {
      if (!is_whole_page(m_.ram, page * 4096)) {
        is_bad = true;
        break;
      }
      pages.push_back(page);
    }
    const std::uint64_t in_unit = unit_ / 4096;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      if (pages[i] % in_unit != 0 || pages.size() - i < in_unit) continue;
      if (!is_host_page(m_.ram, pages[i] * 4096, unit_)) continue;
      for (std::uint64_t k = 0; k < in_unit; ++k) e.pages.insert(pages[i] + k);
    }
    e.fails += is_bad;
  }

  void process() {
    const std::uint32_t budget = in_.below(20);
    const balloon::device_counters old = m_.device->counters();
    const std::deque<typename machine::sent_chain> sent = m_.of(queue_kind::reporting).sent;
    const actions due = m_.process(queue_kind::reporting, budget);
    const balloon::device_counters& now = m_.device->counters();
    if (!m_.is_memory_good()) {
      require(due.needs_reset, "lost memory is reported");
      return activate();
    }
    require(due.failure == error::none, "nothing in a report breaks the queue");
    require(m_.ram.copies.empty(), "a report is never read");
    const std::size_t count = std::min<std::size_t>(budget, sent.size());

    expectation e;
    for (std::size_t i = 0; i < count; ++i) {
      e.misplaced += sent[i].readable.size();
      if (balloon::inhibits_discards<Host> && !m_.host.answers.at(i)) {
        e.ranges += sent[i].writable.size();
        continue;
      }
      for (const buffer& b : sent[i].writable) add_range(e, b);
    }
    const host_act act = poison_ == 0 ? host_act::discard : host_act::fill;
    std::uint64_t freed = 0, failures = 0;
    for (const auto& c : m_.host.calls) {
      require(c.act == act && c.pattern == poison_, "free pages hold the poison afterwards");
      (c.is_good ? freed : failures) += c.is_good ? c.size : 1;
    }
    require(m_.host.pages(act) == e.pages, "exactly the whole host pages of a report are taken");
    require(now.free_page_report_freed - old.free_page_report_freed == freed, "bytes are counted");
    const std::uint64_t fails = now.free_page_report_fails - old.free_page_report_fails;
    require(fails >= e.fails && fails <= e.fails + failures, "bad ranges are counted");
    require(now.free_page_report_count - old.free_page_report_count == e.ranges &&
                now.poisoned_ranges - old.poisoned_ranges == e.poisoned &&
                now.misplaced_buffers - old.misplaced_buffers == e.misplaced,
            "ranges are counted");
    require(now.discard_failures == old.discard_failures && now.bad_pages == old.bad_pages,
            "reports are not counted as inflated pages");
    // Memory has fewer than 32 pieces; beyond them the work does not depend on lengths.
    require(m_.ram.accesses <= 16 + (count + 1) * (64 + 16 * 32), "work is bounded");

    std::size_t next = 0;
    const std::uint32_t back = m_.take_returned(
        queue_kind::reporting, [&](const typename machine::sent_chain& c, std::uint32_t length) {
          require(c.token == sent[next++].token, "buffers come back in their order");
          const std::uint64_t bytes = is_length_bytes_ ? total_bytes(c.writable) : 0;
          require(length == std::min<std::uint64_t>(bytes, UINT32_MAX),
                  "the used length is what the option says");
        });
    require(back == count, "as many buffers come back as the budget allows");
  }

  input& in_;
  machine m_;
  std::uint64_t unit_ = 4096;
  std::uint32_t poison_ = 0;
  bool is_length_bytes_ = false;
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
