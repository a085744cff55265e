// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "balloon_parts.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/balloon/statistics.hpp>
#include <ballast/endian.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <utility>
#include <vector>

// The statsq: entries in any order, cut anywhere, too many, repeated, unknown, changed while they
// are read; buffers that come without a request, several at once, or that are no memory. A naive
// parser reads the same bytes, and a naive model knows which buffer the device holds.

namespace {

using namespace ballast_fuzz;
using namespace ballast;
using balloon::statistic_tag;

constexpr std::uint32_t entry_bytes = 10, entries_max = 256;

template <std::endian E> class scenario {
 public:
  explicit scenario(input& in) : in_(in) {
    balloon::device_options options{.offered = {balloon::feature::stats_vq,
                                                balloon::feature::deflate_on_oom,
                                                feature::event_idx, feature::indirect_desc,
                                                feature::in_order, feature::ring_packed}};
    m_.build(options, 4096);
  }

  void run() {
    activate();
    for (int step = 0; step < 300 && !in_.empty(); ++step) {
      step_once();
      require(m_.device->is_statistics_pending() == is_pending_, "pending is what was asked for");
    }
    activate();
  }

 private:
  using machine = balloon_machine<full_host, E>;

  struct expectation {
    bool is_there = false; ///< and was not taken
    std::map<std::uint16_t, std::uint64_t> known;
    std::vector<balloon::unknown_statistic> unknown;
    std::uint32_t dropped = 0;
    std::uint32_t actual = 0, target = 0;
    bool is_solicited = false;
  };

  void step_once() {
    m_.begin_call(true);
    switch (in_.below(14)) {
    case 0: write_entries(); break;
    case 1: write_entries(); break;
    case 2: write_entries(); break;
    case 3: send(); break;
    case 4: send(); break;
    case 5: process(); break;
    case 6: process(); break;
    case 7: request(); break;
    case 8: request(); break;
    case 9: take(); break;
    case 10:
      require(m_.device->abandon_statistics().has_value() == is_pending_, "what pends is given up");
      is_pending_ = false;
      break;
    case 11: change_payload(in_, m_.ram); break;
    case 12: write_sizes(); break;
    default:
      switch (in_.below(4)) {
      case 0: activate(); break;
      case 1: reset_queue(); break;
      default: require(m_.move_memory(), "queues that worked are attached again"); break;
      }
    }
  }

  void activate() {
    const feature_set wanted = ring_features(in_).with(balloon::feature::stats_vq);
    has_oom_ = in_.flag();
    require(m_.activate(has_oom_ ? wanted.with(balloon::feature::deflate_on_oom) : wanted,
                        queue_size_from(in_, wanted))
                    .failure == error::none,
            "a driver that keeps the rules is accepted");
    held_ = 0;
    is_pending_ = is_broken_ = has_written_ = false;
    expected_ = {};
  }

  void reset_queue() {
    m_.ram.changes.clear();
    const std::uint16_t index = m_.index_of(queue_kind::statistics);
    require(m_.device->reset_queue(index).failure == error::none, "a queue can be reset");
    require(m_.device->request_statistics().failure == error::no_statistics_buffer, "it is gone");
    const auto at = m_.set_up(queue_kind::statistics, queue_size_from(in_, m_.negotiated));
    require(m_.device->enable_queue(index, at).failure == error::none, "the queue is back");
    m_.layouts[static_cast<std::size_t>(queue_kind::statistics)] = at;
    held_ = 0;
    is_pending_ = is_broken_ = false;
  }

  void write_entries() {
    guest_address to = 0x1a00 + 2u * in_.below(0xb00);
    const std::uint32_t count = 1 + in_.below(12);
    for (std::uint32_t i = 0; i < count; ++i, to += entry_bytes) {
      const std::uint8_t how = in_.byte();
      const std::uint16_t tag = how < 0xe0 ? how % 28 : how < 0xf0 ? 0xffff : in_.byte() * 257;
      const std::uint64_t value = (how & 0x40) != 0 ? UINT64_MAX : in_.number<std::uint32_t>();
      m_.ram.poke(to, to_order<E>(tag));
      m_.ram.poke(to + 2, to_order<E>(value));
    }
  }

  void send() {
    std::vector<buffer> readable, writable;
    if (in_.byte() < 0xa0)
      readable = {{0x1a00 + 2u * in_.below(0xb00), entry_bytes * in_.below(20)}};
    else
      readable = buffers_from(in_, m_.ram, 4);
    if (readable.empty()) writable.push_back({0x2000, 10});
    m_.send(queue_kind::statistics, std::move(readable), std::move(writable));
  }

  void write_sizes() {
    (void)m_.device->set_target(in_.number<std::uint16_t>());
    if (in_.flag()) return;
    const std::array<std::byte, 1> byte{std::byte{in_.byte()}};
    const std::uint32_t at = in_.below(4);
    require(m_.device->write_config(4 + at, byte).failure == error::none, "it is there");
    has_written_ |= at == 3; // the most significant byte
  }

  // The naive parser.

  void parse(const std::vector<std::byte>& bytes) {
    const bool is_answer = is_pending_ || (expected_.is_there && expected_.is_solicited);
    expected_ = {};
    expected_.is_there = true;
    expected_.is_solicited = is_answer;
    expected_.actual = has_written_ ? m_.device->actual() : 0;
    expected_.target = m_.device->target();
    for (std::size_t i = 0; i < entries_max && (i + 1) * entry_bytes <= bytes.size(); ++i) {
      std::uint16_t tag = 0;
      std::uint64_t value = 0;
      std::memcpy(&tag, bytes.data() + i * entry_bytes, sizeof(tag));
      std::memcpy(&value, bytes.data() + i * entry_bytes + 2, sizeof(value));
      tag = to_order<E>(tag);
      value = to_order<E>(value);
      if (tag == 0xffff && value == UINT64_MAX) continue;
      if (tag < balloon::statistic_count)
        expected_.known[tag] = value;
      else
        add_unknown({tag, value});
    }
  }

  void add_unknown(const balloon::unknown_statistic& s) {
    const auto found = std::find_if(expected_.unknown.begin(), expected_.unknown.end(),
                                    [&](const auto& earlier) { return earlier.tag == s.tag; });
    if (found != expected_.unknown.end())
      found->value = s.value;
    else if (expected_.unknown.size() == balloon::snapshot::unknown_capacity)
      ++expected_.dropped;
    else
      expected_.unknown.push_back(s);
  }

  void take() {
    const auto now = in_.number<std::uint64_t>();
    const auto s = m_.device->take_statistics(now);
    require(s.has_value() == expected_.is_there, "statistics are there once");
    if (!s) return;
    for (std::uint16_t tag = 0; tag < balloon::statistic_count; ++tag) {
      const auto found = expected_.known.find(tag);
      const bool is_set = found != expected_.known.end() && found->second != UINT64_MAX;
      require(s->has(statistic_tag{tag}) == is_set, "what was reported is set, the rest is not");
      require(s->value_or(statistic_tag{tag}, 7) == (is_set ? found->second : 7),
              "the value that came last counts");
    }
    require(!s->has(statistic_tag{balloon::statistic_count}), "there are no more");
    require(std::equal(s->unknown().begin(), s->unknown().end(), expected_.unknown.begin(),
                       expected_.unknown.end()),
            "unknown ones are kept as they came");
    require(s->unknown_dropped() == expected_.dropped, "or counted");
    require(s->received_at == now && s->actual_pages == expected_.actual &&
                s->target_pages == expected_.target && s->deflate_on_oom == has_oom_,
            "a snapshot says what the device knew");
    require(s->is_solicited == expected_.is_solicited, "and whether it was asked for");
    require(s->epoch >= epoch_, "epochs grow");
    epoch_ = s->epoch;
    expected_.is_there = false;
  }

  void request() {
    const bool is_good = m_.is_memory_good();
    const actions due = m_.device->request_statistics();
    require(m_.host.calls.empty() && m_.ram.copies.empty(), "a request reads no buffer");
    if (held_ == 0) return require(due == refused(error::no_statistics_buffer), "none is there");
    if (!is_good || !m_.is_memory_good()) {
      require(due.needs_reset && due.failure == error::memory_lost, "lost memory is reported");
      return activate();
    }
    require(due.failure == error::none, "the held buffer is the request");
    const std::uint32_t back = m_.take_returned(
        queue_kind::statistics, [&](const typename machine::sent_chain& c, std::uint32_t length) {
          require(c.token == held_ && length == 0, "the held buffer goes back, with nothing in it");
        });
    require(back == 1, "and no other");
    held_ = 0;
    is_pending_ = true;
  }

  void process() {
    const std::uint32_t budget = in_.below(20);
    const balloon::device_counters old = m_.device->counters();
    const std::deque<typename machine::sent_chain> sent = m_.of(queue_kind::statistics).sent;
    (void)m_.device->take_events();
    const actions due = m_.process(queue_kind::statistics, budget);
    const balloon::device_counters& now = m_.device->counters();
    require(m_.host.calls.empty(), "statistics do nothing to the host's memory");
    const std::uint64_t parsed = now.statistics_buffers - old.statistics_buffers;
    const std::uint64_t failed = now.stats_update_fails - old.stats_update_fails;
    require(parsed + failed <= budget && failed <= 1, "the budget is kept");
    require(m_.ram.accesses <= 16 + (std::uint64_t{budget} + 1) * (128 + 2560), "work is bounded");
    if (!m_.is_memory_good()) {
      require(due.needs_reset, "lost memory is reported");
      return activate();
    }
    const std::size_t first = held_ != 0 ? 1 : 0; // that one is the oldest that was sent
    std::size_t count = is_broken_ ? 0 : std::min<std::size_t>(budget, sent.size() - first);
    std::uint64_t good = 0, duplicates = 0;
    std::vector<std::uint64_t> back;
    m_.begin_copies();
    for (std::size_t i = 0; i < count; ++i) {
      const auto& c = sent[first + i];
      if (held_ != 0) {
        ++duplicates;
        back.push_back(held_);
      }
      held_ = c.token;
      const auto bytes = m_.bytes_read(c, 160, entries_max * entry_bytes);
      if (bytes.size() <
          std::min<std::uint64_t>(total_bytes(c.readable), entries_max * entry_bytes)) {
        is_broken_ = true;
        count = i + 1;
        require(failed == 1 && due.failure == error::not_guest_memory, "a bad buffer is reported");
        break;
      }
      ++good;
      parse(bytes);
      is_pending_ = false;
    }
    require(m_.are_copies_over(), "each byte is read once, and none beyond the limit");
    require(parsed == good && now.duplicate_statistics - old.duplicate_statistics == duplicates,
            "buffers are counted");
    require(m_.device->take_events().statistics_arrived == (good != 0), "their coming is an event");
    require(due.needs_reset == (is_broken_ && budget != 0), "only a bad buffer breaks the queue");
    std::size_t next = 0;
    m_.take_returned(queue_kind::statistics,
                     [&](const typename machine::sent_chain& c, std::uint32_t length) {
                       require(next < back.size() && c.token == back[next++] && length == 0,
                               "a second buffer sends the first back, and nothing else does");
                     });
    require(next == back.size(), "each of them");
  }

  input& in_;
  machine m_;
  bool has_oom_ = false;
  std::uint64_t held_ = 0; ///< token
  bool is_pending_ = false;
  bool is_broken_ = false;
  bool has_written_ = false; ///< the driver, its size
  std::uint32_t epoch_ = 0;
  expectation expected_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  input in({data, size});
  if (in.flag())
    scenario<std::endian::big>(in).run();
  else
    scenario<std::endian::little>(in).run();
  return 0;
}
