// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "balloon_parts.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/protocol.hpp>
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
#include <set>
#include <utility>
#include <vector>

// The free_page_vq: commands of any size and value, cut anywhere and changed while they are read,
// with ranges in any buffer; between them the VMM starts, stops and finishes rounds. A naive model
// keeps the list of the ids that the driver may still use, and knows which ranges are hints.

namespace {

using namespace ballast_fuzz;
using namespace ballast;
using balloon::hint_state;

template <std::endian E> class scenario {
 public:
  explicit scenario(input& in) : in_(in) {
    balloon::device_options options{.offered = {balloon::feature::free_page_hint,
                                                feature::event_idx, feature::indirect_desc,
                                                feature::in_order, feature::ring_packed}};
    const std::uint8_t how = in_.byte();
    if ((how & 1) != 0) options.offered.set(balloon::feature::stats_vq);
    if ((how & 2) != 0) options.numbering = balloon::queue_numbering::fixed;
    constexpr std::uint32_t firsts[] = {0, 2, 0x80000000, 0xffffffff, 0xfffffffe, 0xfffffffd};
    options.hinting.first_id = firsts[in_.below(6)];
    first_ = std::max(options.hinting.first_id, balloon::command_id::first);
    options.hinting.hides_started_id = hides_ = (how & 4) != 0;
    options.hinting.needs_reset_if_malformed = is_strict_ = (how & 8) != 0;
    m_.build(options, 4096);
  }

  void run() {
    activate();
    for (int step = 0; step < 300 && !in_.empty(); ++step) {
      step_once();
      check_state();
    }
    activate();
    check_state();
  }

 private:
  using machine = balloon_machine<full_host, E>;

  void step_once() {
    m_.begin_call(false);
    switch (in_.below(14)) {
    case 0: start(); break;
    case 1: start(); break;
    case 2: expect_shown(m_.device->stop_hinting(), [&] { stop(); }); break;
    case 3: expect_shown(m_.device->finish_hinting(), [&] { state_ = hint_state::done; }); break;
    case 4: send_command(); break;
    case 5: send_command(); break;
    case 6: send_command(); break;
    case 7: send_ranges(); break;
    case 8: send_ranges(); break;
    case 9: process(); break;
    case 10: process(); break;
    case 11: change_payload(in_, m_.ram); break;
    case 12:
      m_.host.allowed = in_.byte();
      m_.host.successful = in_.byte();
      break;
    default:
      switch (in_.below(4)) {
      case 0: activate(); break;
      case 1: reset_queue(); break;
      case 2: enable_queue(); break;
      default: require(m_.move_memory() || !is_enabled_, "queues are attached again"); break;
      }
    }
  }

  // The model.

  void stop() {
    if (state_ != hint_state::done) state_ = hint_state::stop;
  }
  void end_round() {
    if (state_ == hint_state::start) state_ = hint_state::stop;
  }

  void command(std::uint32_t id) {
    const auto found = std::find(open_.begin(), open_.end(), id);
    if (id == balloon::command_id::stop) {
      if (is_taken_up_) open_.pop_front();
      is_taken_up_ = false;
      end_round();
    } else if (found == open_.end()) {
      if (id != newest_) end_round();
    } else if (!is_taken_up_ || found != open_.begin()) {
      open_.erase(open_.begin(), found);
      is_taken_up_ = true;
      if (id != newest_ || state_ != hint_state::requested) return;
      state_ = hint_state::start;
      ++rounds_;
    }
  }

  [[nodiscard]] std::uint32_t shown() const {
    switch (state_) {
    case hint_state::requested: return newest_;
    case hint_state::start: return hides_ ? balloon::command_id::stop : newest_;
    case hint_state::done: return balloon::command_id::done;
    case hint_state::stop: break;
    }
    return balloon::command_id::stop;
  }

  void check_state() {
    std::array<std::byte, 4> bytes{};
    require(m_.device->read_config(8, bytes).has_value(), "the id is there where it is offered");
    std::uint32_t seen = 0;
    for (std::size_t i = 0; i < 4; ++i) seen |= std::to_integer<std::uint32_t>(bytes[i]) << 8 * i;
    require(seen == shown(), "the driver sees the id of the round, STOP or DONE");
    require(m_.device->hinting().state() == state_, "the state is the model's");
    require(m_.device->hinting().counters().rounds == rounds_, "rounds are counted");
    require(m_.device->take_events().hinting_changed == (state_ != noted_) || has_moved_,
            "a change of the state is an event");
    noted_ = state_;
    has_moved_ = false;
  }

  // What the VMM does.

  template <class Do> void expect_shown(const actions& due, Do&& change) {
    const std::uint32_t before = shown();
    const bool was_hidden = hides_ && state_ == hint_state::start;
    change();
    require(due.failure == error::none, "hints that were negotiated can be asked for");
    require(due.config_changed ==
                (before != shown() || (was_hidden && state_ != hint_state::start)),
            "the driver is told where it sees another id");
    require(m_.ram.accesses == 0, "that touches no memory");
  }

  void start() {
    const std::uint64_t ids = std::uint64_t{UINT32_MAX} - first_ + 1;
    const actions due = m_.device->start_hinting();
    if (open_.size() == ids) return require(due.failure == error::wrong_state, "all ids are out");
    require(due.failure == error::none && due.config_changed, "a round begins");
    const std::uint32_t id = m_.device->hinting().command_id();
    require(id >= first_ && id >= 2, "an id is neither STOP nor DONE");
    require(std::find(open_.begin(), open_.end(), id) == open_.end(),
            "an id that the driver may still use is not used again");
    require(ids == 1 || id != newest_, "a round has an id of its own");
    newest_ = id;
    open_.push_back(id);
    state_ = hint_state::requested;
  }

  void activate() {
    if (state_ != hint_state::stop) has_moved_ = true;
    const feature_set wanted =
        ring_features(in_).with(balloon::feature::free_page_hint).with(balloon::feature::stats_vq);
    require(m_.activate(wanted, queue_size_from(in_, wanted)).failure == error::none,
            "a driver that keeps the rules is accepted");
    open_.clear();
    is_taken_up_ = is_broken_ = false;
    is_enabled_ = true;
    state_ = hint_state::stop;
  }

  void reset_queue() {
    m_.ram.changes.clear();
    (void)m_.device->reset_queue(m_.index_of(queue_kind::free_page));
    m_.layouts[static_cast<std::size_t>(queue_kind::free_page)] = {};
    m_.of(queue_kind::free_page).queue.detach();
    is_enabled_ = false;
    stop();
  }
  void enable_queue() {
    if (is_enabled_) reset_queue();
    m_.ram.changes.clear();
    const auto at = m_.set_up(queue_kind::free_page, queue_size_from(in_, m_.negotiated));
    m_.begin_call(false);
    const std::uint16_t index = m_.index_of(queue_kind::free_page);
    require(m_.device->enable_queue(index, at).failure == error::none, "the queue is back");
    m_.layouts[static_cast<std::size_t>(queue_kind::free_page)] = at;
    is_enabled_ = true;
    is_broken_ = false;
  }

  // What the driver does.

  void send_command() {
    const std::uint8_t how = in_.byte();
    std::uint32_t id = shown();
    if (how >= 0xe0)
      id = in_.number<std::uint32_t>();
    else if (how >= 0x80)
      id = how % 4 == 0 ? 1 : how % 4 == 1 ? newest_ - 1 : how % 4 == 2 ? newest_ : newest_ + 1;
    else if (how >= 0x50)
      id = balloon::command_id::stop;
    const guest_address at = 0x1a00 + 4u * in_.below(0x580);
    m_.ram.poke(at, to_order<E>(id));
    std::vector<buffer> readable;
    switch (in_.below(8)) {
    case 0: readable = {{at, 1}, {at + 1, 3}}; break;
    case 1: readable = {{at, 0}, {at, 2}, {at + 2, 2}}; break;
    case 2: readable = buffers_from(in_, m_.ram, 3); break;
    case 3: readable = {{payload_from(in_, m_.ram), 4}}; break;
    default: readable = {{at, 4}}; break;
    }
    std::vector<buffer> writable;
    if (in_.byte() > 0xd0) writable = buffers_from(in_, m_.ram, 2);
    if (readable.empty() && writable.empty()) return;
    m_.send(queue_kind::free_page, std::move(readable), std::move(writable));
  }

  void send_ranges() {
    std::vector<buffer> writable = buffers_from(in_, m_.ram, 4);
    if (writable.empty()) writable.push_back({0x10000, 0x3000});
    m_.send(queue_kind::free_page, {}, std::move(writable));
  }

  struct expectation {
    std::multiset<std::uint64_t> pages;
    std::uint64_t ranges = 0, ignored = 0, fails = 0, malformed = 0;
    std::size_t asked = 0;
  };

  void add_range(expectation& e, const buffer& b) {
    if (b.length > UINT64_MAX - b.address) {
      ++e.fails;
      return;
    }
    std::uint64_t page = b.address / 4096 + (b.address % 4096 != 0);
    const std::uint64_t end = (b.address + b.length) / 4096;
    bool is_bad = page >= end;
    for (; page < end && !is_bad; ++page) {
      is_bad = !is_whole_page(m_.ram, page * 4096);
      if (!is_bad) e.pages.insert(page);
    }
    e.fails += is_bad;
  }

  /// What one buffer does; false where it breaks the queue.
  bool take(expectation& e, const typename machine::sent_chain& c) {
    if (!c.readable.empty()) {
      std::vector<std::byte> bytes;
      if (total_bytes(c.readable) == 4) bytes = m_.bytes_read(c, 4, 4);
      if (bytes.size() == 4) {
        std::uint32_t raw = 0;
        std::memcpy(&raw, bytes.data(), 4);
        command(to_order<E>(raw));
      } else {
        ++e.malformed;
        end_round();
        if (is_strict_) return false;
      }
    }
    if (c.writable.empty()) return true;
    if (state_ != hint_state::start) {
      e.ignored += c.writable.size();
      return true;
    }
    e.ranges += c.writable.size();
    require(e.asked < m_.host.answers.size(), "the host is asked before each buffer of hints");
    if (!m_.host.answers[e.asked++]) return true;
    for (const buffer& b : c.writable) add_range(e, b);
    return true;
  }

  void process() {
    const std::uint32_t budget = in_.below(20), before = shown();
    const balloon::device_counters old = m_.device->counters();
    const std::uint64_t malformed = m_.device->hinting().counters().malformed_commands;
    const std::deque<typename machine::sent_chain> sent = m_.of(queue_kind::free_page).sent;
    const actions due = m_.process(queue_kind::free_page, budget);
    const balloon::device_counters& now = m_.device->counters();
    if (!is_enabled_) return require(due.failure == error::invalid_queue_index, "it is gone");
    if (!m_.is_memory_good()) {
      require(due.needs_reset, "lost memory is reported");
      rounds_ = m_.device->hinting().counters().rounds;
      has_moved_ = true;
      return activate();
    }
    const bool was_broken = is_broken_;
    std::size_t count = was_broken ? 0 : std::min<std::size_t>(budget, sent.size());
    expectation e;
    m_.begin_copies();
    const hint_state began_in = state_;
    for (std::size_t i = 0; i < count && !is_broken_; ++i) {
      is_broken_ = !take(e, sent[i]);
      has_moved_ = has_moved_ || state_ != began_in;
    }
    require(m_.are_copies_over(), "each command is read once, and nothing else");
    require(m_.device->hinting().counters().malformed_commands - malformed == e.malformed,
            "commands of another size are counted");
    require((budget == 0 || !is_broken_) == (due.failure == error::none) &&
                due.needs_reset == (due.failure != error::none),
            "only a malformed command breaks the queue, where that was asked for");
    if (before != shown() && !hides_) require(due.config_changed, "the driver is told of its id");

    std::uint64_t freed = 0, failures = 0;
    for (const auto& c : m_.host.calls) {
      require(c.act == host_act::hint, "a hint is a hint: nothing is taken back");
      (c.is_good ? freed : failures) += c.is_good ? c.size : 1;
    }
    require(m_.host.pages(host_act::hint) == e.pages, "exactly the pages of the round are hints");
    require(now.free_page_hint_freed - old.free_page_hint_freed == freed, "bytes are counted");
    const std::uint64_t fails = now.free_page_hint_fails - old.free_page_hint_fails;
    require(fails >= e.fails && fails <= e.fails + failures, "bad ranges are counted");
    require(now.free_page_hint_count - old.free_page_hint_count == e.ranges &&
                now.ignored_hints - old.ignored_hints == e.ignored,
            "ranges are counted");
    require(m_.ram.accesses <= 16 + (count + 1) * (64 + 16 * 32), "work is bounded");
    const std::uint32_t back =
        m_.take_returned(queue_kind::free_page, [](const auto&, std::uint32_t length) {
          require(length == 0, "nothing was written to a buffer");
        });
    require(back == count, "each buffer comes back, whatever it was");
  }

  input& in_;
  machine m_;
  std::uint32_t first_ = 2; ///< id
  bool hides_ = false;
  bool is_strict_ = false;
  bool is_enabled_ = false;
  bool is_broken_ = false;

  hint_state state_ = hint_state::stop;
  hint_state noted_ = hint_state::stop;
  bool has_moved_ = false; ///< perhaps to another state and back
  std::uint32_t newest_ = 0;
  std::deque<std::uint32_t> open_; ///< ids that the driver may still use, as they were issued
  bool is_taken_up_ = false;       ///< the first of them
  std::uint64_t rounds_ = 0;
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
