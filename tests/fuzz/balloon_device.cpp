// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "balloon_parts.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/endian.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

// A whole device whose driver is the input: it writes what it likes into rings and buffers, between
// the calls and while the device looks, and its transport calls the device in any order, with
// queues anywhere. What may never happen does not, and at the end a driver that keeps the rules
// finds a device that works.

namespace {

using namespace ballast_fuzz;
using namespace ballast;

template <class Host, std::endian E> class scenario {
 public:
  explicit scenario(input& in) : in_(in) {
    balloon::device_options options;
    const auto how = in_.number<std::uint16_t>();
    options.offered = balloon_features(how).with(feature::event_idx).with(feature::indirect_desc);
    for (const unsigned bit : {feature::in_order, feature::ring_packed, feature::ring_reset})
      options.offered.set(bit);
    options.numbering = static_cast<balloon::queue_numbering>((how >> 6) % 3);
    constexpr std::uint32_t sizes[] = {4096, 16384, 65536, 2u << 20};
    unit_ = options.host_page_size = sizes[(how >> 8) % 4];
    if ((how & 1 << 10) != 0) {
      const balloon::page_range guest{3, 0x4e};
      storage_.resize(static_cast<std::size_t>(
          balloon::host_page_tracker::storage_size(guest, options.host_page_size)));
      tracker_ = *balloon::host_page_tracker::over(storage_, guest, options.host_page_size);
      options.tracker = &tracker_;
    }
    options.requires_must_tell_host = (how & 1 << 11) != 0 && (how & 1) != 0;
    options.buffer_pfns_max = pfns_max_ = (how & 1 << 12) != 0 ? 20 : 2048;
    options.hinting.first_id = (how & 1 << 13) != 0 ? 0xfffffffe : 0x80000000;
    options.hinting.needs_reset_if_malformed = (how & 1 << 14) != 0;
    options.first_index = (how & 1 << 15) != 0 ? 0xfffd : 0;
    options.target_pages_max = 1000;
    m_.build(options, unit_);
    numbering_ = options.numbering;
  }

  void run() {
    activate();
    for (int step = 0; step < 300 && !in_.empty(); ++step) {
      m_.begin_call(false);
      work_ = 16;
      step_once();
      check();
    }
    serve_an_honest_driver();
  }

 private:
  using machine = balloon_machine<Host, E>;

  [[nodiscard]] static feature_set balloon_features(unsigned bits) {
    feature_set all;
    for (unsigned bit = 0; bit < 6; ++bit)
      if ((bits >> bit & 1) != 0) all.set(bit);
    return all;
  }

  void step_once() {
    switch (in_.below(20)) {
    case 0: write_ring(); break;
    case 1: write_ring(); break;
    case 2: write_anything(); break;
    case 3: plan_changes(in_, m_.ram); break;
    case 4: send(); break;
    case 5: send(); break;
    case 6: send(); break;
    case 7: write_payload(); break;
    case 8: process(); break;
    case 9: process(); break;
    case 10: process(); break;
    case 11: process(); break;
    case 12: write_config(); break;
    case 13: ask(); break;
    case 14: ask(); break;
    case 15:
      m_.host.allowed = in_.byte();
      m_.host.successful = in_.byte();
      break;
    case 16: reset_queue(); break;
    case 17: move(); break;
    default:
      if (in_.below(8) == 0) activate();
    }
  }

  /// What never happens, whatever was done.
  void check() {
    auto& device = *m_.device;
    require(device.target() == target_, "the target is the VMM's");
    require(device.poison() == 0 || device.offered_features().test(balloon::feature::page_poison),
            "there is a poison only where that is offered");
    require(is_active_ || device.negotiated_features().empty(), "a reset device has no features");
    const std::uint32_t id = device.hinting().command_id();
    require(id <= 1 || id >= 0x80000000, "an id is one that hinting gives");
    const balloon::device_counters& now = device.counters();
    require(now.event_fails == failures_, "what needs no reset is not counted as one");
    require(tracker_.partial_pages() <= tracker_.held_pages(), "the tracker fits together");
  }

  /// After each call: `bits`, the queues that may be meant; how many of them may have failed.
  void take(const actions& due, std::uint64_t bits, std::uint64_t failures_max = 1) {
    require(m_.ram.accesses <= work_, "the work of a call is bounded");
    require(((due.notify_queues | due.more_work) & ~bits) == 0, "no other queue is named");
    require(!due.needs_reset || due.failure != error::none, "a need for a reset has a reason");
    const std::uint64_t failures = m_.device->counters().event_fails - failures_;
    require((failures != 0) == due.needs_reset && failures <= failures_max,
            "a need for a reset is counted");
    failures_ += failures;
  }
  void only(std::initializer_list<host_act> allowed) const {
    for (const auto& c : m_.host.calls)
      require(std::find(allowed.begin(), allowed.end(), c.act) != allowed.end(),
              "a queue does to memory what it is for");
  }

  // The driver.

  [[nodiscard]] queue_kind kind_from() { return static_cast<queue_kind>(in_.below(5)); }

  void send() {
    const queue_kind kind = kind_from();
    std::vector<buffer> readable = buffers_from(in_, m_.ram, 3), writable;
    if (kind >= queue_kind::free_page || readable.empty()) {
      writable = buffers_from(in_, m_.ram, 4);
      if (kind == queue_kind::reporting && in_.byte() < 0xf0) readable.clear();
    }
    if (readable.empty() && writable.empty()) return;
    m_.send(kind, std::move(readable), std::move(writable));
  }

  void write_payload() {
    const guest_address to = 0x1a00 + 4u * in_.below(0x580);
    const std::uint32_t count = 1 + in_.below(40), step = in_.below(3) - 1u;
    std::uint32_t value = in_.byte() < 0xc0 ? in_.byte() : in_.number<std::uint32_t>();
    if (in_.below(8) == 7) value = m_.device->hinting().command_id();
    for (std::uint32_t i = 0; i < count; ++i, value += step)
      m_.ram.poke(to + 4 * i, to_order<E>(value));
  }

  void write_ring() {
    const queue_layout& at = m_.layouts[in_.below(5)];
    const guest_address areas[] = {at.descriptor_area, at.driver_area, at.device_area};
    const guest_address to = areas[in_.below(3)] + 2u * in_.below(at.size * 8 + 8);
    m_.ram.poke(to, in_.number<std::uint64_t>(), std::size_t{1} << in_.below(4));
  }
  void write_anything() {
    const guest_address at = m_.ram.address_from(in_) + in_.below(8);
    m_.ram.poke(at, in_.number<std::uint64_t>(), std::size_t{1} << in_.below(4));
  }

  void write_config() {
    std::array<std::byte, 4> bytes{};
    for (std::byte& b : bytes) b = std::byte{in_.byte()};
    take(m_.device->write_config(in_.below(20), bytes), 0);
    (void)m_.device->read_config(in_.below(20), bytes);
    only({});
    require(m_.ram.accesses == 0, "the configuration is not in guest memory");
  }

  // The transport.

  [[nodiscard]] queue_layout layout_anywhere() {
    if (in_.below(3) == 0)
      return layout_from(in_, m_.ram, m_.negotiated.test(feature::ring_packed));
    const std::uint32_t size = 1 + in_.below(20);
    const guest_address at = 0x1000 + 0x100u * in_.below(24);
    return place_queue(at, in_.flag() ? std::bit_floor(size) : size, m_.negotiated).layout;
  }

  /// A driver that sets its queues up well, or nearly, or that has others.
  void activate() {
    feature_set wanted = ring_features(in_);
    const std::uint8_t bits = in_.byte();
    for (unsigned bit = 0; bit < 6; ++bit)
      if ((bits >> bit & 1) != 0) wanted.set(bit);
    m_.device->reset();
    check_reset();
    m_.ram.changes.clear();
    m_.ram.flipped_bits = 0;
    m_.negotiated = (wanted & m_.device->offered_features()).with(feature::version_1);
    if (!m_.device->check_features(m_.negotiated)) return; // the transport does not go on
    std::array<queue_layout, 6> by_index{};
    const bool is_hostile = in_.below(4) == 0;
    const std::uint32_t size = queue_size_from(in_, wanted);
    m_.layouts = {};
    for (std::uint32_t i = 0; i < m_.layouts.size(); ++i) {
      const auto kind = static_cast<queue_kind>(i);
      m_.of(kind).queue.detach();
      if (!m_.has(kind) || (is_hostile && in_.flag())) continue;
      m_.layouts[i] = m_.set_up(kind, size, m_.first_index);
      if (is_hostile && in_.below(4) == 0) m_.layouts[i] = layout_anywhere();
      by_index[m_.index_of(kind)] = m_.layouts[i];
    }
    if (is_hostile) plan_changes(in_, m_.ram);
    page_memory& memory = m_.memory();
    m_.begin_call(false);
    work_ = 5 * work_of(4); // each queue is looked at
    const actions due = m_.device->activate(m_.negotiated, by_index, memory);
    take(due, 0x1f, 5);
    const bool is_started = m_.device->negotiated_features() == m_.negotiated;
    require(is_started || due.needs_reset, "a device that does not begin says so");
    is_active_ = is_started;
    if (!is_hostile) require(is_started, "a driver that keeps the rules is accepted");
  }

  void check_reset() {
    is_active_ = false;
    auto& device = *m_.device;
    require(device.hinting().command_id() == 0 && device.poison() == 0 &&
                !device.is_statistics_pending() && tracker_.held_pages() == 0,
            "nothing of a driver outlives it");
    const actions due = device.process(0, 1);
    require(due == refused(error::wrong_state), "a device that is reset does nothing");
  }

  void process() {
    const std::uint8_t how = in_.byte();
    const std::uint16_t index = how < 0xf8 ? how % 6 : in_.number<std::uint16_t>();
    const std::uint32_t budget = in_.below(12);
    const balloon::device_counters old = m_.device->counters();
    work_ = work_of(budget);
    const auto kind =
        queue_kind_of(index, numbering_, m_.device->offered_features(), m_.negotiated);
    const actions due = m_.device->process(index, budget);
    take(due, index < 64 ? std::uint64_t{1} << index : 0);
    require(!m_.host.is_unflushed, "what was collected is flushed");
    if (!is_active_) return require(due == refused(error::wrong_state), "it is not active");
    if (!kind) return require(due == refused(error::invalid_queue_index), "there is no such queue");
    const std::uint32_t poison = m_.device->poison();
    switch (*kind) {
    case queue_kind::inflate: only({host_act::discard}); break;
    case queue_kind::deflate: only({host_act::provide}); break;
    case queue_kind::statistics: only({}); break;
    case queue_kind::free_page: only({host_act::hint}); break;
    case queue_kind::reporting:
      only({poison == 0 ? host_act::discard : host_act::fill});
      for (const auto& c : m_.host.calls)
        require(c.pattern == poison, "free pages hold the poison afterwards");
      break;
    }
    check_pages(*kind);
    check_returned(*kind, old, budget);
  }

  /// How much work a call may be: the rings, what a chain of them is, the PFNs of a buffer.
  [[nodiscard]] std::uint64_t work_of(std::uint64_t budget) const {
    return 64 + (budget + 1) * (4096 + 8 * std::uint64_t{pfns_max_});
  }

  /// Without a tracker that remembers, inflating touches what was read in this call.
  void check_pages(queue_kind kind) {
    if (kind != queue_kind::inflate && kind != queue_kind::deflate) return;
    const bool is_told = m_.negotiated.test(balloon::feature::must_tell_host);
    if (is_told && !storage_.empty()) return;
    std::vector<std::byte> bytes;
    for (const loaded_bytes& c : m_.ram.copies)
      bytes.insert(bytes.end(), c.bytes.begin(), c.bytes.end());
    std::set<std::uint64_t> named;
    for (std::size_t i = 0; i + 4 <= bytes.size(); ++i) {
      std::uint32_t raw = 0; // at any place: buffers are cut anywhere, and have tables between them
      for (std::size_t k = 0; k < 4; ++k)
        raw |= std::to_integer<std::uint32_t>(bytes[i + k])
               << 8 * (E == std::endian::little ? k : 3 - k);
      named.insert(raw);
    }
    for (const auto& c : m_.host.calls)
      for (std::uint64_t i = 0; i < c.size; i += 4096)
        require(named.contains((c.address + i) / 4096), "only pages that were named are touched");
  }

  /// Split queues without IN_ORDER: as many used elements as buffers that were dealt with.
  void check_returned(queue_kind kind, const balloon::device_counters& old, std::uint32_t budget) {
    if (m_.negotiated.test(feature::ring_packed)) return;
    const queue_layout& at = m_.layouts[static_cast<std::size_t>(kind)];
    std::uint64_t elements = 0;
    for (const stored_word& s : m_.ram.stores) {
      const std::uint64_t offset = s.address - at.device_area;
      require(offset < 6 + 8 * std::uint64_t{at.size}, "a device writes to its used ring alone");
      elements += s.width == 4 && offset % 8 == 4;
    }
    require(elements <= budget, "no more buffers come back than the budget allows");
    if (m_.negotiated.test(feature::in_order)) return;
    const balloon::device_counters& now = m_.device->counters();
    if (kind == queue_kind::inflate)
      require(now.inflate_count - old.inflate_count <= elements, "each buffer comes back");
    if (kind == queue_kind::deflate)
      require(now.deflate_count - old.deflate_count <= elements, "each buffer comes back");
    if (kind == queue_kind::statistics)
      require(now.duplicate_statistics - old.duplicate_statistics <= elements,
              "one buffer is held, no more");
  }

  void reset_queue() {
    const queue_kind kind = kind_from();
    const std::uint16_t index = m_.has(kind) ? m_.index_of(kind) : std::uint16_t{7};
    work_ = work_of(4);
    if (in_.flag()) {
      const actions due = m_.device->reset_queue(index);
      take(due, 0);
      only({});
      require(m_.ram.accesses == 0, "a queue that is reset is not touched any more");
      if (is_active_ && m_.has(kind) && m_.layouts[static_cast<std::size_t>(kind)].size != 0)
        require(m_.device->process(index, 1) == refused(error::invalid_queue_index), "it is gone");
      m_.begin_call(false);
      if (in_.flag()) return;
    }
    if (is_active_ && !m_.is_memory_good()) return; // `attach` comes first
    const bool is_well = in_.flag() && m_.has(kind);
    const queue_layout at =
        is_well ? m_.set_up(kind, queue_size_from(in_, m_.negotiated)) : layout_anywhere();
    m_.begin_call(false);
    const actions due = m_.device->enable_queue(index, at);
    take(due, index < 64 ? std::uint64_t{1} << index : 0);
    if (!is_active_ || !m_.has(kind))
      return require(due.failure != error::none && !due.needs_reset, "there is no such queue");
    m_.layouts[static_cast<std::size_t>(kind)] = at;
  }

  void move() {
    if (in_.flag()) {
      m_.device->detach();
      require(tracker_.held_pages() == 0, "host pages are forgotten where the map changes");
      if (in_.flag()) {
        for (std::uint16_t i = 0; i < 5; ++i)
          require(m_.device->process(i, 4).failure != error::none, "detached: nothing is done");
        require(m_.ram.accesses == 0 && m_.host.calls.empty(), "and memory is not touched");
      }
    }
    std::array<queue_layout, 6> by_index{};
    for (std::size_t i = 0; i < m_.layouts.size(); ++i)
      if (m_.has(static_cast<queue_kind>(i)))
        by_index[m_.index_of(static_cast<queue_kind>(i))] = m_.layouts[i];
    if (in_.below(8) == 7) by_index[in_.below(6)] = layout_anywhere();
    const actions due = m_.device->attach(by_index, m_.memory());
    take(due, 0x1f);
    require(is_active_ || due == refused(error::wrong_state), "it has to be active");
    require(m_.host.calls.empty() && m_.ram.stores.empty(), "moving memory does nothing to it");
    if (due.failure == error::wrong_state || due.failure == error::already_attached) return;
    for (std::size_t i = 0; i < m_.layouts.size(); ++i) { // where the queues are now
      const auto kind = static_cast<queue_kind>(i);
      if (m_.has(kind) && by_index[m_.index_of(kind)].size != 0)
        m_.layouts[i] = by_index[m_.index_of(kind)];
    }
  }

  // The VMM.

  void ask() {
    auto& device = *m_.device;
    actions due;
    switch (in_.below(8)) {
    case 0: {
      const std::uint32_t pages = in_.byte() * 5u;
      due = device.set_target(pages);
      if (pages <= 1000) target_ = pages;
      break;
    }
    case 1: due = device.request_statistics(); break;
    case 2: due = device.request_statistics(); break;
    case 3: due = device.start_hinting(); break;
    case 4: due = device.start_hinting(); break;
    case 5: due = in_.flag() ? device.stop_hinting() : device.finish_hinting(); break;
    case 6: (void)device.take_statistics(1); break;
    default: (void)device.abandon_statistics(); break;
    }
    take(due, m_.has(queue_kind::statistics)
                  ? std::uint64_t{1} << m_.index_of(queue_kind::statistics)
                  : 0);
    only({});
    (void)device.take_events();
  }

  /// At the end: pages are inflated, deflated and reported, statistics come, in every queue there
  /// is.
  void serve_an_honest_driver() {
    m_.host.allowed = m_.host.successful = 0xff;
    m_.ram.flipped_bits = 0;
    const feature_set wanted =
        ring_features(in_) | balloon_features(0x3f & ~(1u << balloon::feature::page_poison));
    require(m_.activate(wanted, 8).failure == error::none, "a driver is accepted");
    const bool is_large = unit_ > 65536;
    for (std::uint32_t i = 0; i < 16; ++i) m_.ram.poke(0x1a00 + 4 * i, to_order<E>(0x20 + i));
    const buffer array{0x1a00, 64};
    const std::size_t expected = is_large || pfns_max_ < 16 ? 0 : 16;
    serve(queue_kind::inflate, {array}, {}, host_act::discard, expected);
    serve(queue_kind::deflate, {array}, {}, host_act::provide,
          balloon::provides_pages<Host> ? expected : 0);
    if (m_.has(queue_kind::reporting))
      serve(queue_kind::reporting, {}, {{0x4000'0000, 0x40'0000}}, host_act::discard, 1024);
    if (m_.has(queue_kind::statistics)) {
      m_.send(queue_kind::statistics, {{0x1a00, 20}}, {});
      const actions due = m_.process(queue_kind::statistics, 2);
      require(due.failure == error::none, "statistics are read");
      require(m_.device->take_statistics(1).has_value(), "statistics come");
      require(m_.device->request_statistics().failure == error::none, "and are asked for");
      require(m_.take_returned(queue_kind::statistics, [](const auto&, auto) {}) == 1, "once");
    }
    if (m_.has(queue_kind::free_page)) {
      require(m_.device->start_hinting().config_changed, "hints are asked for");
      m_.ram.poke(0x1a00, to_order<E>(m_.device->hinting().command_id()));
      serve(queue_kind::free_page, {{0x1a00, 4}}, {{0x10000, 0x4000}}, host_act::hint, 4);
    }
    require(m_.device->target() == target_, "the target stayed");
  }

  void serve(queue_kind kind, std::vector<buffer> readable, std::vector<buffer> writable,
             host_act act, std::size_t pages) {
    require(m_.send(kind, std::move(readable), std::move(writable)), "there is room");
    require(m_.process(kind, 4).failure == error::none, "an honest driver is served");
    require(m_.host.pages(act).size() == pages, "the host gets its pages");
    require(m_.take_returned(kind, [](const auto&, auto) {}) == 1, "the buffer comes back");
  }

  input& in_;
  machine m_;
  std::vector<std::uint32_t> storage_;
  balloon::host_page_tracker tracker_;
  balloon::queue_numbering numbering_ = {};
  std::uint64_t unit_ = 4096;
  std::uint32_t pfns_max_ = 0;
  std::uint32_t target_ = 0;
  std::uint64_t failures_ = 0;
  std::uint64_t work_ = 0; ///< accesses that the last call may have taken
  bool is_active_ = false;
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
