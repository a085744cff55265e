// SPDX-License-Identifier: BSD-3-Clause
// The packed device over longer lives: chains that are kept, given back and returned in any order
// or under IN_ORDER, queues that are saved and restored, memory that is watched, and what of the
// regression list asks for more than single calls.
#include <ballast/virtqueue/packed_device.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/dirty_memory.hpp>

#include "support/failing_memory.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_packed_driver.hpp"

#include <array>
#include <initializer_list>
#include <memory>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
using ballast::error;
using ballast::feature_set;
using ballast::guest_address;
using ballast::held_head;
using ballast_test::event_kind;
using ballast_test::packed_part;
using ballast_test::packed_places;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr guest_address base = 0x6'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set in_order{ballast::feature::in_order};

constexpr std::uint16_t flag_write = 2, flag_indirect = 4;

/// Numbers to go through, without a cast each.
template <std::uint16_t... n> constexpr std::array<std::uint16_t, sizeof...(n)> u16{n...};

constexpr packed_places places(std::uint32_t size) {
  return {size, base + 0x10, base + 16 * size + 0x14, base + 0x04};
}
/// Behind the parts there is a table of four entries for each id.
constexpr guest_address table_of(std::uint32_t size, std::uint32_t id) {
  return base + 16 * size + 0x18 + 64ull * id;
}
constexpr std::size_t ram_size(std::uint32_t size) { return 80 * size + 0x18; }
constexpr ballast::queue_layout layout_of(const packed_places& at) {
  return {at.size, at.ring, at.driver_event, at.device_event};
}
using ram_type = ballast::array_memory<ram_size(7)>;
constexpr ballast::queue_layout layout = layout_of(places(7));

constexpr auto use_all = [](const chain&) { return ballast::used(); };
/// Answers that every chain was written in full.
constexpr auto in_full = [](const chain& c) {
  return ballast::used(static_cast<std::uint32_t>(total_bytes(c.writable())));
};

// ---- long lives against a naive model

/// An honest driver and a device that does something at random at each step, in one thread. The
/// model knows where each buffer id is, and counts places step by step.
template <std::uint32_t N, std::endian E> class packed_life {
 public:
  constexpr packed_life(const feature_set& features, std::uint16_t first, std::uint64_t seed)
      : driver_(words_, places(N), first), features_(features), random_(seed), available_(first),
        used_(first), asked_(first) {
    expect(queue().start(ram_, layout_of(places(N)), features, first).error());
  }
  packed_life(const packed_life&) = delete;

  [[nodiscard]] constexpr std::uint32_t wrong() const { return wrong_; }
  [[nodiscard]] constexpr std::uint64_t returned() const { return returned_; }
  [[nodiscard]] constexpr std::uint32_t moves() const { return moves_; }
  [[nodiscard]] constexpr std::uint32_t given_back() const { return given_back_; }

  constexpr void step() {
    switch (below(12)) {
    case 0:
    case 1:
    case 2:
    case 3: offer(); break;
    case 4: make_available(); break;
    case 5:
    case 6: consume(); break;
    case 7: pop(); break;
    case 8: push(); break;
    case 9: give_back(); break;
    case 10: publish(); break;
    default:
      if (below(4) != 0)
        ask();
      else
        move();
    }
    const std::uint64_t held_descriptors = available_ - used_step();
    std::uint32_t sum = 0;
    for (std::uint32_t i = 0; i < held_count_; ++i) sum += records_[held_[i]].descriptors;
    claim(queue().in_flight() == held_count_ && sum == held_descriptors);
    claim(queue().cause() == error::none);
    claim(staged_count_ == 0 || !driver_.is_used(used_));
  }

  /// Sends everything through and takes it back.
  constexpr void finish() {
    make_available();
    for (std::uint32_t i = 0; i < 4 * N + 4 && there_count_ + held_count_ != 0; ++i) {
      if (there_count_ != 0) pop();
      while (held_count_ != 0) return_held(0);
    }
    publish();
    claim(taken_ == 0 && offered_ == returned_ && queue().in_flight() == 0);
  }

 private:
  enum class where : std::uint8_t { driver, offered, there, held, returned };
  struct record {
    where at = where::driver;
    std::uint64_t seed = 0;
    std::uint32_t count = 0;
    std::uint32_t readable = 0;
    std::uint32_t writable_bytes = 0;
    std::uint32_t descriptors = 0;
    std::uint32_t answer = 0;
  };
  struct popped_once {
    std::uint16_t id = 0;
    bool is_held = false;
  };

  constexpr void claim(bool ok) { wrong_ += !ok; }
  constexpr void expect(error e) { claim(e == error::none); }
  constexpr std::uint32_t below(std::uint32_t n) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>((random_ >> 33) % n);
  }
  [[nodiscard]] constexpr auto& queue() { return devices_[at_]; }
  [[nodiscard]] constexpr bool has(std::uint32_t f) const { return features_.test(f); }
  [[nodiscard]] constexpr bool is_in_order() const { return has(ballast::feature::in_order); }
  /// The step behind everything that is staged.
  [[nodiscard]] constexpr std::uint64_t used_step() const {
    std::uint64_t at = used_;
    for (std::uint32_t i = 0; i < staged_count_; ++i) at += records_[staged_[i]].descriptors;
    return at;
  }
  [[nodiscard]] static constexpr buffer buffer_of(const record& r, std::uint32_t i) {
    return {r.seed * 8 + i, static_cast<std::uint32_t>((r.seed + i) % 50)};
  }

  constexpr void offer() {
    const auto id = static_cast<std::uint16_t>(below(N));
    record r;
    r.count = 1 + below(N < 4 ? N : 4);
    r.readable = below(r.count + 1);
    r.seed = ++offered_;
    const bool is_indirect = has(ballast::feature::indirect_desc) && below(3) == 0;
    r.descriptors = is_indirect ? 1 : r.count;
    if (records_[id].at != where::driver || r.descriptors > N - taken_) {
      --offered_;
      return;
    }
    r.at = where::offered;
    std::array<packed_part, 4> parts{};
    for (std::uint32_t i = 0; i < r.count; ++i) {
      const buffer b = buffer_of(r, i);
      parts[i] = {b.address, b.length, i < r.readable ? std::uint16_t{0} : flag_write};
      if (i >= r.readable) r.writable_bytes += b.length;
      if (!is_indirect) continue;
      const guest_address entry = table_of(N, id) + 16 * i;
      words_.put(entry, 8, parts[i].address);
      words_.put(entry + 8, 4, parts[i].length);
      words_.put(entry + 12, 2, 0xffff);
      words_.put(entry + 14, 2, parts[i].flags);
    }
    if (is_indirect) parts[0] = {table_of(N, id), 16 * r.count, flag_indirect};
    driver_.stage(std::span<const packed_part>(parts).first(r.descriptors), id);
    taken_ += r.descriptors;
    records_[id] = r;
    there_[(there_from_ + there_count_ + fresh_count_++) % N] = id;
  }
  constexpr void make_available() {
    driver_.make_available();
    for (; fresh_count_ != 0; --fresh_count_)
      records_[there_[(there_from_ + there_count_++) % N]].at = where::there;
  }

  /// A chain that the device got: the oldest that is there.
  constexpr std::uint16_t got(const chain& c) {
    const std::uint16_t id = there_[there_from_];
    record& r = records_[id];
    claim(there_count_ != 0 && r.at == where::there && c.id().head == id);
    claim(c.readable().size() == r.readable && c.writable().size() == r.count - r.readable);
    for (std::uint32_t i = 0; i < r.count && wrong_ == 0; ++i)
      claim((i < r.readable ? c.readable()[i] : c.writable()[i - r.readable]) == buffer_of(r, i));
    there_from_ = (there_from_ + 1) % N;
    --there_count_;
    available_ += r.descriptors;
    if (history_count_ == history_.size()) {
      for (std::uint32_t i = 0; i < N; ++i) history_[i] = history_[i + N];
      history_count_ = N;
    }
    history_[history_count_++] = {id, false};
    return id;
  }
  constexpr void hold(std::uint16_t id) {
    records_[id].at = where::held;
    held_[held_count_++] = id;
    history_[history_count_ - 1].is_held = true;
  }
  constexpr std::uint32_t answer(std::uint16_t id) {
    record& r = records_[id];
    const std::uint32_t which = below(3);
    r.answer = which == 0 ? 0 : which == 1 ? below(r.writable_bytes + 1) : r.writable_bytes;
    return r.answer;
  }
  constexpr void stage_used(std::uint16_t id) {
    records_[id].at = where::returned;
    staged_[staged_count_++] = id;
  }

  constexpr void consume() {
    const std::uint32_t budget = below(N + 2);
    const std::uint32_t was_there = there_count_;
    std::uint32_t count = 0;
    bool is_early = false;
    const auto done = queue().consume(budget, [&](const chain& c) {
      const std::uint16_t id = got(c);
      ++count;
      if (below(3) == 0) return hold(id), ballast::keep();
      if (is_in_order() && held_count_ != 0) {
        if (below(3) != 0) return hold(id), ballast::keep();
        is_early = true; // not yet: it is kept
        return hold(id), ballast::used(answer(id));
      }
      const std::uint32_t length = answer(id);
      stage_used(id);
      return ballast::used(length);
    });
    if (is_early) {
      claim(done.error() == error::used_out_of_order);
      return;
    }
    expect(done.error());
    const std::uint32_t expected = was_there < budget ? was_there : budget;
    claim(count == expected && done->chains == expected);
    claim(done->has_more == (was_there > budget));
  }
  constexpr void pop() {
    const bool is_there = there_count_ != 0;
    const auto popped = queue().pop_available();
    claim(popped.error() == (is_there ? error::none : error::queue_empty));
    if (popped) hold(got(*popped));
  }
  constexpr void return_held(std::uint32_t at) {
    const std::uint16_t id = held_[at];
    const auto found = queue().held_chain(id);
    expect(found.error());
    if (is_in_order() && at != 0) {
      claim(queue().push_used(*found, 0).error() == error::used_out_of_order);
      return;
    }
    expect(queue().push_used(*found, answer(id)).error());
    claim(queue().push_used(*found, 0).error() == error::chain_not_in_flight);
    stage_used(id);
    --held_count_;
    for (std::uint32_t i = at; i < held_count_; ++i) held_[i] = held_[i + 1];
    for (popped_once& p : history_)
      if (p.id == id) p.is_held = false;
  }
  constexpr void push() {
    if (held_count_ != 0) return_held(below(2) == 0 ? 0 : below(held_count_));
  }
  constexpr void give_back() {
    const std::uint32_t count = below(4);
    bool is_possible = count <= history_count_;
    for (std::uint32_t i = 0; i < count && is_possible; ++i)
      is_possible = history_[history_count_ - 1 - i].is_held;
    const auto done = queue().unpop(count);
    claim(done.error() == (is_possible ? error::none : error::chain_not_in_flight));
    if (!is_possible) return;
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint16_t id = history_[--history_count_].id;
      claim(queue().held_chain(id).error() == error::chain_not_in_flight);
      claim(held_[held_count_ - 1] == id); // the one popped last is the last of those held
      --held_count_;
      records_[id].at = where::there;
      available_ -= records_[id].descriptors;
      there_from_ = (there_from_ + N - 1) % N;
      there_[there_from_] = id;
      ++there_count_;
      ++given_back_;
    }
  }
  constexpr void publish() {
    queue().publish();
    for (std::uint32_t i = 0; i < staged_count_;) {
      // Under IN_ORDER one used descriptor stands for those before it, written in full.
      std::uint32_t last = i;
      if (is_in_order()) {
        const std::uint16_t named = driver_.descriptor(driver_.entry(used_)).id;
        while (last + 1 < staged_count_ && staged_[last] != named) ++last;
      }
      const record& r = records_[staged_[last]];
      claim(driver_.has_used(used_, staged_[last], r.answer));
      for (; i <= last; ++i) {
        record& one = records_[staged_[i]];
        claim(i == last || one.answer == one.writable_bytes);
        one.at = where::driver;
        used_ += one.descriptors;
        taken_ -= one.descriptors;
        ++returned_;
      }
    }
    staged_count_ = 0;
    claim(!driver_.is_used(used_));
  }
  constexpr void ask() {
    const auto raw_flags = static_cast<std::uint16_t>(below(4));
    const std::uint64_t event = used_ + 2 * N - below(3 * N);
    driver_.driver_event(driver_.word(event), raw_flags);
    const std::uint64_t steps = used_ - asked_;
    bool is_last = false, is_passed = false;
    for (std::uint64_t i = 1; i <= steps && i <= N; ++i)
      is_passed = is_passed || driver_.word(used_ - i) == driver_.word(event);
    is_last = driver_.word(used_) == driver_.word(event);
    const bool is_due = queue().should_notify();
    if (steps == 0 || raw_flags == 1)
      claim(!is_due);
    else if (raw_flags != 2 || !has(ballast::feature::event_idx))
      claim(is_due);
    else if (is_passed || is_last || steps <= N)
      claim(is_due == is_passed);
    asked_ = used_;
    if (below(2) == 0) {
      claim(queue().enable_notifications() == (there_count_ != 0));
      const bool has_events = has(ballast::feature::event_idx);
      claim(driver_.device_event_flags() == (has_events ? 2 : 0));
      if (has_events) claim(driver_.device_event_place() == driver_.word(available_));
    } else {
      queue().disable_notifications();
      if (!has(ballast::feature::event_idx)) claim(driver_.device_event_flags() == 1);
    }
  }
  /// Detaches and attaches, or lets another object go on from what was saved.
  constexpr void move() {
    if (below(2) == 0) {
      queue().detach();
      expect(queue().attach(ram_, layout_of(places(N)), features_).error());
      return;
    }
    std::array<held_head, N> held{};
    const auto state = queue().save(held);
    claim(state.error() == (staged_count_ == 0 ? error::none : error::wrong_state));
    if (!state) return;
    claim(state->is_packed && state->size == N && state->cause == error::none);
    claim(state->next_available == driver_.word(available_));
    claim(state->next_used == driver_.word(used_));
    claim(state->unasked == used_ - asked_);
    queue().detach();
    at_ ^= 1;
    storages_[at_].in_flight[0] = 0xffff'ffff; // whatever was there
    expect(queue()
               .restore(ram_, layout_of(places(N)), features_, *state,
                        std::span<const held_head>(held).first(held_count_))
               .error());
    history_count_ = 0; // what lay where is not known any more
    ++moves_;
  }

  ballast::array_memory<ram_size(N)> ram_{base};
  ballast_test::raw_words words_{ram_.bytes(), base, E};
  ballast_test::scripted_packed_driver driver_;
  std::array<ballast::device_queue_storage<N>, 2> storages_{};
  using device_type = ballast::packed_device<ballast::array_memory<ram_size(N)>, E>;
  device_type devices_[2]{device_type(storages_[0]), device_type(storages_[1])};
  std::uint32_t at_ = 0;
  feature_set features_;
  std::uint64_t random_;
  std::array<record, N> records_{};      ///< by id
  std::array<std::uint16_t, N> there_{}; ///< ids in the order they were offered
  std::uint32_t there_from_ = 0, there_count_ = 0, fresh_count_ = 0;
  std::array<std::uint16_t, N> held_{}; ///< oldest first
  std::array<std::uint16_t, N> staged_{};
  std::array<popped_once, 2 * N> history_{};
  std::uint32_t held_count_ = 0, staged_count_ = 0, history_count_ = 0, taken_ = 0;
  std::uint64_t available_, used_, asked_; ///< steps
  std::uint64_t offered_ = 0, returned_ = 0;
  std::uint32_t wrong_ = 0, moves_ = 0, given_back_ = 0;
};

constexpr feature_set some_features(std::uint32_t bits) {
  feature_set features;
  if ((bits & 1) != 0) features.set(ballast::feature::event_idx);
  if ((bits & 2) != 0) features.set(ballast::feature::indirect_desc);
  if ((bits & 4) != 0) features.set(ballast::feature::in_order);
  return features;
}

constexpr auto short_lives = [](auto check) {
  const auto live = [&]<std::uint32_t N, std::endian E>(std::uint32_t bits, std::uint16_t first) {
    packed_life<N, E> life(some_features(bits), first, 7 + bits);
    for (int i = 0; i < 60; ++i) life.step();
    life.finish();
    check(life.wrong() == 0);
    check(life.returned() != 0);
  };
  live.template operator()<1, little>(1, 1);
  live.template operator()<3, little>(2, 5);
  live.template operator()<3, big>(5, 2);
  live.template operator()<7, little>(7, 6);
};
BOTH("RT-8 RT-19 random lives of a packed device, as a naive model has them", short_lives)

template <std::uint32_t N, std::endian E>
void lives_long(std::uint32_t bits, std::uint64_t seed, int steps) {
  const auto first = static_cast<std::uint16_t>(2 * N * 5 - seed % 7);
  const auto life = std::make_unique<packed_life<N, E>>(some_features(bits), first, seed);
  for (int i = 0; i < steps && life->wrong() == 0; ++i) life->step();
  life->finish();
  CAPTURE(N);
  CAPTURE(bits);
  CAPTURE(seed);
  CHECK(life->wrong() == 0);
  CHECK(life->returned() > static_cast<std::uint64_t>(steps) / 100);
  CHECK(life->moves() > 10);
  CHECK(life->given_back() > 10);
}
TEST_CASE("RT-6 RT-8 RT-19 RT-25 long random lives of a packed device: every feature, saved and "
          "restored at random, as a naive model has them") {
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      lives_long<1, little>(bits, seed, 10'000);
      lives_long<2, big>(bits, seed, 10'000);
      lives_long<3, little>(bits, seed, 20'000);
      lives_long<7, big>(bits, seed, 20'000);
      lives_long<8, little>(bits, seed, 20'000);
      lives_long<33, big>(bits, seed, 20'000);
      lives_long<100, little>(bits, seed, 20'000);
    }
}

// ---- a device's queue of 7 that is looked at closely

template <std::endian E = little> struct bench {
  using memory_type = ballast_test::recording_memory<ram_type, 256>;

  ram_type ram{base};
  ballast_test::event_log<256> log;
  memory_type memory{ram, log};
  ballast_test::scripted_packed_driver driver;
  ballast::device_queue_storage<7> storage;
  ballast::packed_device<memory_type, E> queue{storage};

  constexpr explicit bench(const feature_set& features = no_features, std::uint16_t first = 0)
      : driver({ram.bytes(), base, E}, places(7), first) {
    started = queue.start(memory, layout, features, first).has_value();
  }
  bench(const bench&) = delete;

  /// Makes 10 * id writable bytes at 0x1000 * id available for each id.
  constexpr void offer(std::initializer_list<std::uint16_t> ids) {
    for (const std::uint16_t id : ids) driver.offer({0x1000u * id, 10u * id, flag_write}, id);
  }
  constexpr bool pops(std::uint16_t id) {
    const auto popped = queue.pop_available();
    return popped && popped->id().head == id && popped->writable().size() == 1 &&
           popped->writable()[0] == buffer{0x1000u * id, 10u * id};
  }
  constexpr error push(std::uint16_t id, std::uint32_t length = 0) {
    const auto held = queue.held_chain(id);
    return held ? queue.push_used(*held, length).error() : held.error();
  }
  /// Used descriptors written since the log was cleared.
  [[nodiscard]] constexpr std::size_t written() const { return log.count(event_kind::store); }

  bool started = false;
};

// ---- state

constexpr auto saves = [](auto check) {
  bench b(no_features, 12); // wrap counters at 0, entry 5
  b.driver.offer({{0x5000, 50, flag_write}, {0x6000, 60, flag_write}}, 5);
  b.offer({1, 6, 2});
  check(b.queue.pop_available()->id().head == 5 && b.pops(1) && b.pops(6));
  check(b.push(1, 3) == error::none);
  std::array<held_head, 7> held{};
  check(b.queue.save(held).error() == error::wrong_state); // staged
  b.queue.publish();
  check(b.queue.save(std::span(held).first(1)).error() == error::buffer_too_small);
  check(held[0] == held_head{});
  const auto state = b.queue.save(held);
  check(state.has_value() && state->version == 1 && state->size == 7 && state->is_packed);
  check(state->next_available == (0x8000 | 2));                                       // step 16
  check(state->next_used == 6 && state->unasked == 1 && state->cause == error::none); // step 13
  check(held[0] == held_head{5, 2} && held[1] == held_head{6, 1} && held[2] == held_head{});
  b.queue.detach(); // detached it can be saved as well
  check(b.queue.save(held).has_value());
  b.queue.reset();
  check(b.queue.save(held).error() == error::wrong_state);

  ballast::device_queue_storage<7> storage;
  ballast::packed_device<bench<>::memory_type> fresh(storage);
  check(fresh.save(held).error() == error::wrong_state);
  const auto both = std::span<const held_head>(held).first(2);
  check(fresh.restore(b.memory, layout, no_features, *state, both).has_value());
  check(fresh.in_flight() == 2 && fresh.size() == 7 && fresh.is_attached());
  check(fresh.held_chain(1).error() == error::chain_not_in_flight);
  check(fresh.held_chain(7).error() == error::chain_not_in_flight);
  check(fresh.held_chain(0xffff).error() == error::chain_not_in_flight);
  check(fresh.should_notify()); // of the one that was published before
  check(!fresh.should_notify());
  check(fresh.unpop(1).error() == error::chain_not_in_flight); // where it lay is not known
  const auto popped = fresh.pop_available();
  check(popped && popped->id().head == 2);
  check(fresh.unpop(2).error() == error::chain_not_in_flight);
  check(fresh.unpop(1).has_value() && fresh.in_flight() == 2);
  check(fresh.push_used(*fresh.held_chain(6), 70).has_value());
  check(fresh.push_used(*fresh.held_chain(5), 50).has_value());
  fresh.publish();
  check(b.driver.has_used(13, 6, 70) && b.driver.has_used(14, 5, 50) && !b.driver.is_used(16));
  check(fresh.pop_available()->id().head == 2);

  // A broken queue stays broken, and what it holds still goes back.
  bench c;
  c.offer({3});
  check(c.pops(3));
  c.queue.fail(error::not_guest_memory);
  const auto broken = c.queue.save(held);
  check(broken && broken->cause == error::not_guest_memory && held[0] == held_head{3, 1});
  check(c.queue
            .restore(c.memory, layout, no_features, *broken,
                     std::span<const held_head>(held).first(1))
            .has_value());
  check(c.queue.cause() == error::not_guest_memory);
  check(c.queue.pop_available().error() == error::not_guest_memory);
  check(c.push(3) == error::none);
};
BOTH("RT-36 PK-2 a packed device's state is plain values with wrap bits; held_chain gives the ids",
     saves)

constexpr auto state_corners = [](auto check) {
  // All descriptors held, or none, at every place; both wrap counters.
  for (std::uint16_t first = 0; first < 14; ++first)
    for (bool is_full : {false, true}) {
      bench b(in_order, first);
      if (is_full) {
        const packed_part part{1, 1, flag_write};
        b.driver.offer({part, part, part}, 4);
        b.driver.offer({part, part, part, part}, 2);
        check(b.queue.pop_available().has_value() && b.queue.pop_available().has_value());
      }
      std::array<held_head, 7> held{};
      const auto state = b.queue.save(held);
      check(state && state->next_used == b.driver.word(first));
      check(state->next_available == b.driver.word(first + (is_full ? 7u : 0u)));
      const std::uint32_t count = is_full ? 2 : 0;
      const auto all = std::span<const held_head>(held).first(count);
      if (is_full) check(held[0] == held_head{4, 3} && held[1] == held_head{2, 4}); // oldest first
      // The wrong wrap counter is all the ring's difference.
      auto wrong = *state;
      wrong.next_used ^= 0x8000;
      check(b.queue.restore(b.memory, layout, in_order, wrong, all).error() ==
            error::state_invalid);
      check(b.queue.in_flight() == count);
      check(b.queue.restore(b.memory, layout, in_order, *state, all).has_value());
      check(b.queue.in_flight() == count);
      if (is_full) {
        check(b.push(2) == error::used_out_of_order);
        check(b.push(4, 5) == error::none && b.push(2, 6) == error::none);
        b.queue.publish();
        check(b.driver.has_used(first, 4, 5) && b.driver.has_used(first + 3u, 2, 6));
      }
      b.offer({6});
      check(b.pops(6));
    }
};
BOTH("RT-6 PK-2 a packed device is taken up at every place, with all descriptors held or none",
     state_corners)

constexpr auto corrupted = [](auto check) {
  bench b(no_features, 12);
  b.driver.offer({{0x5000, 50, flag_write}, {0x6000, 60, flag_write}}, 5);
  b.offer({1, 6, 2});
  check(b.queue.pop_available().has_value() && b.pops(1) && b.pops(6));
  check(b.push(1, 3) == error::none);
  b.queue.publish();
  std::array<held_head, 7> held{};
  const auto state = b.queue.save(held);
  check(state.has_value());
  const chain_id kept = *b.queue.held_chain(6);
  const auto before = b.ram;

  using state_type = ballast::device_queue_state;
  using heads_type = std::array<held_head, 7>;
  const auto refused = [&](auto corrupt, std::size_t count = 2,
                           const ballast::queue_layout& at = layout) {
    auto wrong = *state;
    auto heads = held;
    corrupt(wrong, heads);
    const error why = b.queue
                          .restore(b.memory, at, no_features, wrong,
                                   std::span<const held_head>(heads).first(count))
                          .error();
    // Nothing changed, and the chains of this life are not stale.
    const auto now = b.queue.save(heads);
    const bool is_unchanged = b.queue.is_attached() && b.queue.in_flight() == 2 && now &&
                              now->next_available == state->next_available &&
                              now->next_used == state->next_used && now->unasked == 1 &&
                              heads[0] == held[0] && heads[1] == held[1] &&
                              *b.queue.held_chain(6) == kept && b.queue.cause() == error::none;
    return is_unchanged ? why : error::none;
  };
  for (const std::uint32_t version : {0u, 2u, 0x100u, 0xffff'ffffu})
    check(refused([&](state_type& s, heads_type&) { s.version = version; }) ==
          error::state_version);
  check(refused([](state_type& s, heads_type&) { s.is_packed = false; }) == error::state_invalid);
  for (const std::uint32_t size : {0u, 4u, 6u, 8u, 16u, 0x1'0007u})
    check(refused([&](state_type& s, heads_type&) { s.size = size; }) == error::state_invalid);
  // Exactly as many descriptors as lie between the places, whatever the wrap counters say.
  std::uint32_t accepted = 0;
  for (std::uint32_t entry = 0; entry < 9; ++entry)
    for (std::uint32_t wrap : {0u, 0x8000u}) {
      const auto place = static_cast<std::uint16_t>(entry | wrap);
      if (place != state->next_available)
        check(refused([&](state_type& s, heads_type&) { s.next_available = place; }) ==
              error::state_invalid);
      if (place != state->next_used)
        check(refused([&](state_type& s, heads_type&) { s.next_used = place; }) ==
              error::state_invalid);
      accepted += place == state->next_available || place == state->next_used;
    }
  check(accepted == 2);
  for (const std::uint16_t place : u16<7, 8, 0x7fff, 0x8007, 0xffff>)
    check(refused([&](state_type& s, heads_type&) { s.next_available = s.next_used = place; }, 0) ==
          error::state_invalid);
  for (const std::size_t count : {0u, 1u, 3u, 7u})
    check(refused([](state_type&, heads_type&) {}, count) == error::state_invalid);
  for (const std::uint16_t head : u16<7, 8, 0x106, 0xffff>)
    check(refused([&](state_type&, heads_type& h) { h[1].head = head; }) == error::state_invalid);
  check(refused([](state_type&, heads_type& h) { h[0].head = h[1].head; }) == error::state_invalid);
  for (const std::uint16_t n : u16<0, 1, 3, 7, 8, 0xffff>)
    check(refused([&](state_type&, heads_type& h) { h[0].descriptors = n; }) ==
          error::state_invalid);
  check(refused([](state_type&, heads_type& h) {
          h[0].descriptors = 3; // the sum is right, and a chain has none
          h[1].descriptors = 0;
        }) == error::state_invalid);
  check(refused([](state_type&, heads_type& h) {
          h[0].descriptors = 0xffff; // 65538 is 3 - 1 round, cut to 16 bits
          h[1].descriptors = 4;
        }) == error::state_invalid);
  for (const std::uint32_t unasked : {65537u, 0xffff'ffffu})
    check(refused([&](state_type& s, heads_type&) { s.unasked = unasked; }) ==
          error::state_invalid);
  for (const std::uint16_t cause : u16<1, 2, 3, 63, 999, 0xffff>)
    check(refused([&](state_type& s, heads_type&) { s.cause = static_cast<error>(cause); }) ==
          error::state_invalid);
  // Where it is to live.
  auto at = layout;
  at.size = 6;
  check(refused([](state_type&, heads_type&) {}, 2, at) == error::state_invalid);
  at.size = 8; // fits the state, not the storage
  check(refused(
            [](state_type& s, heads_type&) {
              s.size = 8;
              s.next_available = 1;
              s.next_used = 6 | 0x8000;
            },
            2, at) == error::storage_too_small);
  at.size = 40000;
  check(refused(
            [](state_type& s, heads_type&) {
              s.size = 40000;
              s.next_available = 9;
            },
            2, at) == error::invalid_queue_size);
  at = layout;
  at.device_area += 2;
  check(refused([](state_type&, heads_type&) {}, 2, at) == error::misaligned);
  at.device_area = 0;
  check(refused([](state_type&, heads_type&) {}, 2, at) == error::not_guest_memory);
  auto now = before;
  for (std::size_t i = 0; i < b.ram.size(); ++i) check(now.bytes()[i] == b.ram.bytes()[i]);
  check(b.queue.push_used(kept, 1).has_value());
  check(
      b.queue
          .restore(b.memory, layout, no_features, *state, std::span<const held_head>(held).first(2))
          .has_value());
  check(b.queue.push_used(kept, 1).error() == error::stale_chain);
};
BOTH("RT-6 a packed device refuses each field of a state that is wrong, and nothing changes",
     corrupted)

TEST_CASE("RT-6 a packed device survives every corrupted byte of a state: refused, or sound") {
  std::uint32_t refused = 0, taken = 0, wrong = 0;
  for (std::uint32_t field = 0; field < 8; ++field)
    for (std::uint32_t bit = 0; bit < 32; ++bit) {
      bench b(event_index, 12);
      b.offer({5, 1, 6, 2});
      REQUIRE((b.pops(5) && b.pops(1) && b.pops(6) && b.push(1, 3) == error::none));
      b.queue.publish();
      std::array<held_head, 7> held{};
      auto state = *b.queue.save(held);
      const std::uint32_t flip = 1u << bit;
      const auto flip16 = static_cast<std::uint16_t>(flip);
      switch (field) {
      case 0: state.version ^= flip; break;
      case 1: state.size ^= flip; break;
      case 2: state.next_available ^= flip16; break;
      case 3: state.next_used ^= flip16; break;
      case 4: state.unasked ^= flip; break;
      case 5:
        state.cause = static_cast<error>(static_cast<std::uint16_t>(state.cause) ^ flip16);
        break;
      case 6: held[0].head ^= flip16; break;
      default: held[0].descriptors ^= flip16;
      }
      const auto done = b.queue.restore(b.memory, layout, event_index, state,
                                        std::span<const held_head>(held).first(2));
      if (!done) {
        ++refused;
        continue;
      }
      ++taken; // an id that was not held, notifications owed, a cause: can't be told from right
      wrong += b.queue.in_flight() != 2;
      for (std::uint16_t id = 0; id < 7; ++id)
        if (b.queue.held_chain(id)) wrong += b.push(id, 1) != error::none;
      wrong += b.queue.in_flight() != 0;
      b.queue.publish();
      (void)b.queue.should_notify();
      wrong += !b.driver.is_used(13) || !b.driver.is_used(14) || b.driver.is_used(15);
    }
  CHECK(wrong == 0);
  CHECK(refused > 100);
  CHECK(taken > 8);
}

TEST_CASE("RT-6 RT-14 a packed device's restore that any window refuses is an error, and the queue "
          "goes on as it was") {
  using memory_type = ballast_test::failing_memory<ram_type>;
  for (std::uint64_t n = 1;; ++n) {
    ram_type ram(base);
    ballast_test::scripted_packed_driver driver({ram.bytes(), base, little}, places(7));
    driver.offer({1, 1, 0}, 2);
    ballast_test::failure_plan plan{.window_error = error::access_not_allowed};
    memory_type memory(ram, plan);
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<memory_type> queue(storage);
    REQUIRE(queue.start(memory, layout, no_features).has_value());
    const chain_id id = queue.pop_available()->id();
    plan.fail_at = plan.fallible + n;
    const held_head held[] = {{1, 1}};
    const auto done = queue.restore(
        memory, layout, no_features,
        {.is_packed = true, .size = 7, .next_available = 0x8001, .next_used = 0x8000}, held);
    CHECK(queue.is_attached());
    CHECK(queue.in_flight() == 1);
    if (plan.fallible < plan.fail_at) {
      CHECK(n == 4);
      CHECK(done.has_value());
      CHECK(queue.held_chain(1).has_value());
      break;
    }
    CHECK(done.error() == error::access_not_allowed);
    CHECK(queue.push_used(id, 0).error() == error::none);
  }
}

TEST_CASE("RT-25 a packed device saved after whole rounds still owes its notification") {
  for (const std::uint32_t chains : {1u, 6u, 7u, 8u, 0xffffu, 0x1'0000u, 0x1'0001u}) {
    CAPTURE(chains);
    bench b(event_index);
    for (std::uint32_t i = 0; i < chains; ++i) {
      b.offer({static_cast<std::uint16_t>(i % 7)});
      (void)b.queue.consume_one(use_all);
      b.queue.publish();
    }
    b.driver.driver_event(b.driver.word(chains - 1), 2);
    const auto state = b.queue.save({});
    REQUIRE(state.has_value());
    CHECK(state->unasked == (chains < 0x1'0000 ? chains : 0x1'0000));
    REQUIRE(b.queue.restore(b.memory, layout, event_index, *state, {}).has_value());
    CHECK(b.queue.should_notify());
  }
}

// ---- unpop

constexpr auto gives_back = [](auto check) {
  for (const bool is_in_order : {false, true})
    for (std::uint16_t first : u16<0, 5, 12>) {
      bench b(is_in_order ? in_order : no_features, first);
      b.offer({5});
      b.driver.offer({{0x1000, 10, 0}, {0x2000, 20, flag_write}}, 1);
      b.driver.offer({{0, 1, 0}, {0, 2, 0}, {0, 3, 0}}, 6);
      b.offer({2});
      check(b.queue.unpop(0).has_value());
      check(b.queue.unpop(1).error() == error::chain_not_in_flight);
      for (std::uint16_t id : u16<5, 1, 6>) check(b.queue.pop_available()->id().head == id);
      const chain_id gone = *b.queue.held_chain(6);
      check(b.queue.unpop(4).error() == error::chain_not_in_flight);
      check(b.queue.unpop(0xffff'ffff).error() == error::chain_not_in_flight);
      check(b.queue.in_flight() == 3);
      check(b.queue.unpop(2).has_value() && b.queue.in_flight() == 1);
      check(b.queue.push_used(gone, 0).error() == error::chain_not_in_flight);
      check(b.queue.held_chain(1).error() == error::chain_not_in_flight && b.queue.held_chain(5));
      check(b.queue.enable_notifications()); // they are there
      for (std::uint16_t id : u16<1, 6, 2>) check(b.queue.pop_available()->id().head == id);
      check(b.queue.pop_available().error() == error::queue_empty);
      check(b.queue.unpop(4).has_value() && b.queue.in_flight() == 0);
      const auto all = b.queue.consume(9, use_all);
      check(all && all->chains == 4);
      b.queue.publish();
      check(b.queue.in_flight() == 0);
      check(b.queue.unpop(1).error() == error::chain_not_in_flight); // they went back
    }
};
BOTH("RT-8 a packed device gives the last chains back unserved and pops them again", gives_back)

constexpr auto unpop_and_push = [](auto check) {
  // Across push_used: an older one does not matter, a newer one ends what can be given back.
  bench b;
  b.offer({5, 1, 6, 2});
  check(b.pops(5) && b.pops(1) && b.pops(6) && b.pops(2));
  check(b.push(5) == error::none); // the oldest
  check(b.queue.unpop(4).error() == error::chain_not_in_flight && b.queue.in_flight() == 3);
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 2);
  check(b.push(6) == error::none); // the newest of those that are left
  check(b.queue.unpop(1).error() == error::chain_not_in_flight);
  check(b.queue.unpop(2).error() == error::chain_not_in_flight);
  check(b.queue.held_chain(1).has_value() && b.queue.in_flight() == 1);
  check(b.pops(2));
  check(b.queue.unpop(2).error() == error::chain_not_in_flight && b.queue.in_flight() == 2);
  check(b.queue.unpop(1).has_value() && b.pops(2));
  check(b.push(1) == error::none && b.push(2) == error::none && b.queue.in_flight() == 0);
  b.queue.publish();
  const std::uint32_t ids[] = {5, 6, 1, 2};
  for (std::uint32_t i = 0; i < 4; ++i) check(b.driver.has_used(i, ids[i], 0));
  // The driver's ids come again: an older entry of the same id is not taken for this one.
  b.offer({5, 5});
  check(b.pops(5) && b.push(5) == error::none && b.pops(5));
  check(b.queue.unpop(2).error() == error::chain_not_in_flight);
  check(b.queue.in_flight() == 1 && b.queue.held_chain(5).has_value());
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 0 && b.pops(5));
};
BOTH("RT-8 a packed device's unpop across push_used of older and newer chains", unpop_and_push)

constexpr auto unpop_and_consume = [](auto check) {
  bench b;
  b.offer({5, 1, 6, 2});
  check(b.pops(5));
  check(b.queue
            .consume(
                2,
                [](const chain& c) { return c.id().head == 1 ? ballast::used() : ballast::keep(); })
            ->chains == 2);
  // 5 kept, 1 used at once, 6 kept: no further back than to the one that was used.
  check(b.queue.in_flight() == 2);
  check(b.queue.unpop(2).error() == error::chain_not_in_flight);
  check(b.queue.unpop(3).error() == error::chain_not_in_flight && b.queue.in_flight() == 2);
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 1);
  check(b.queue.unpop(1).error() == error::chain_not_in_flight);
  check(b.pops(6) && b.pops(2) && b.queue.unpop(2).has_value());
  check(b.queue.consume(9, use_all)->chains == 2);
  check(b.push(5) == error::none);
  b.queue.publish();
  check(b.driver.is_used(3));
  // A broken queue gives back too, detached as well.
  b.offer({0, 9});
  check(b.pops(0) && b.queue.pop_available().error() == error::head_out_of_range);
  b.queue.detach();
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 0);
};
BOTH("RT-8 a packed device's unpop goes back to the last chain that was used at once",
     unpop_and_consume)

// The place behind a kept chain is the same again after two rounds.
TEST_CASE("RT-8 RT-19 a packed device's unpop never reaches over rounds of chains that were used") {
  for (std::uint32_t between = 1; between <= 28; ++between) {
    CAPTURE(between);
    bench b;
    b.offer({5});
    REQUIRE(b.pops(5)); // and kept all the time
    for (std::uint32_t i = 0; i < between; ++i) {
      b.offer({2});
      REQUIRE(b.queue.consume(1, use_all)->chains == 1);
      b.queue.publish();
    }
    CHECK(b.queue.unpop(1).error() == error::chain_not_in_flight); // the last one was used
    CHECK(b.queue.in_flight() == 1);
    b.offer({3});
    CHECK(b.pops(3));
    CHECK(b.queue.unpop(2).error() == error::chain_not_in_flight);
    CHECK(b.queue.in_flight() == 2);
    CHECK(b.queue.unpop(1).error() == error::none);
    CHECK(b.push(5) == error::none);
  }
}

// ---- IN_ORDER

template <std::endian E> constexpr void one_descriptor(auto check) {
  for (std::uint16_t first : u16<0, 4, 6, 11, 13>) {
    bench<E> b(in_order, first);
    check(b.started);
    b.offer({3, 1, 0, 6, 2});
    b.log.clear();
    const auto done = b.queue.consume(8, in_full);
    check(done && done->chains == 5 && !done->has_more);
    check(!b.driver.is_used(first) && b.written() == 0);
    b.queue.publish();
    // One used descriptor, where the first of the batch was; it names the last.
    check(b.written() == 1 && b.log.lost() == 0 && b.driver.has_used(first, 2, 20));
    for (std::uint32_t i = 1; i < 6; ++i) check(!b.driver.is_used(first + i));
    b.queue.publish();
    check(b.written() == 1);

    b.offer({6, 5}); // the next batch goes behind the five
    b.log.clear();
    check(b.queue.consume(8, in_full).has_value());
    b.queue.publish();
    check(b.written() == 1 && b.driver.has_used(first + 5u, 5, 50));
  }
}
constexpr auto one_per_batch = [](auto check) {
  one_descriptor<little>(check);
  one_descriptor<big>(check);
};
BOTH("PK-15 RT-19 a packed device under IN_ORDER writes one used descriptor per batch, at its "
     "first place",
     one_per_batch)

constexpr auto partly = [](auto check) {
  // A driver takes those before the one that is named for written in full, so whatever was not
  // ends a run: its length arrives.
  const std::uint32_t full[] = {10, 20, 30, 40, 50};
  for (std::uint32_t which = 0; which < 32; ++which)
    for (std::uint32_t said : {0u, 9u}) {
      bench b(in_order, 5);
      b.offer({1, 2, 3, 4, 5});
      b.log.clear();
      std::uint32_t n = 0;
      const auto length = [&](std::uint32_t i) { return (which >> i & 1) != 0 ? said : full[i]; };
      check(
          b.queue.consume(8, [&](const chain&) { return ballast::used(length(n++)); }).has_value());
      check(!b.driver.is_used(5));
      b.queue.publish();
      std::size_t descriptors = 0;
      for (std::uint32_t i = 0, start = 0; i < 5; ++i)
        if (i == 4 || length(i) != full[i]) {
          check(b.driver.has_used(5 + start, i + 1, length(i)));
          start = i + 1;
          ++descriptors;
        }
      check(b.written() == descriptors);
      // The first of them is written last, by the one release store.
      check(b.log[b.log.size() - 1].order == ballast::order::release);
      check(b.log[b.log.size() - 1].address == places(7).ring + 16 * 5 + 8);
    }
};
BOTH("PK-15 a chain that was not written in full ends a packed device's run", partly)

constexpr auto runs_of_chains = [](auto check) {
  bench b(in_order, 6);
  b.driver.offer({{0, 100, 0}, {0, 30, flag_write}, {0, 12, flag_write}}, 4);
  b.driver.offer({{0, 100, 0}, {0, 5, 0}}, 3); // nothing to write: 0 is in full
  b.driver.offer({0, 100, 0}, 5);
  b.log.clear();
  check(b.queue.consume(8, [](const chain& c) { return ballast::used(c.id().head == 4 ? 42 : 0); })
            .has_value());
  b.queue.publish();
  check(b.written() == 1 && b.driver.has_used(6, 5, 0));

  // 2^32 bytes cut to 32 bits would be 0, and 0 is not in full; nor is it for the third.
  b.driver.offer({{0, 0xffff'ffff, flag_write}, {0, 1, flag_write}}, 6);
  b.driver.offer({0, 7, 0}, 3);
  b.driver.offer({{0, 0, 0}, {0, 3, flag_write}}, 0);
  b.driver.offer({0, 9, 0}, 1);
  b.log.clear();
  check(b.queue.consume(8, [](const chain&) { return ballast::used(0); }).has_value());
  b.queue.publish();
  check(b.written() == 3);
  check(b.driver.has_used(12, 6, 0) && b.driver.has_used(14, 0, 0) && b.driver.has_used(17, 1, 0));
  check(!b.driver.is_used(15) && !b.driver.is_used(16) && !b.driver.is_used(18));
};
BOTH("PK-15 in full means all writable bytes of a packed chain, and a run skips all descriptors",
     runs_of_chains)

constexpr auto budgets = [](auto check) {
  bench b(in_order);
  b.offer({1, 2, 3, 4, 5, 6});
  b.log.clear();
  const auto two = b.queue.consume(2, in_full);
  check(two && two->chains == 2 && two->has_more);
  const auto one = b.queue.consume_one(in_full);
  check(one && one->chains == 1 && one->has_more);
  check(b.queue.consume(0, in_full)->has_more);
  check(b.written() == 0);
  b.queue.publish(); // one run over three calls
  check(b.written() == 1 && b.driver.has_used(0, 3, 30));
  check(b.queue.consume(8, in_full)->chains == 3);
  b.queue.publish();
  check(b.written() == 2 && b.driver.has_used(3, 6, 60));
};
BOTH("RT-9 PK-15 a budget cuts no run of a packed device: it ends with publish", budgets)

constexpr auto keeps = [](auto check) {
  bench b(in_order);
  b.offer({4, 2, 6});
  std::uint32_t calls = 0;
  const auto keep_first = [&](const chain& c) {
    return calls++ == 0 ? ballast::keep() : in_full(c);
  };
  // The first is kept, so the second may not go back now; nothing is lost, it is kept too.
  check(b.queue.consume(8, keep_first).error() == error::used_out_of_order);
  check(calls == 2 && b.queue.in_flight() == 2 && b.queue.cause() == error::none);
  check(b.queue.held_chain(6).error() == error::chain_not_in_flight);
  check(b.queue.consume_one(in_full).error() == error::used_out_of_order);
  check(calls == 2 && b.queue.in_flight() == 3);
  check(b.push(2) == error::used_out_of_order && b.push(6) == error::used_out_of_order);
  check(b.queue.in_flight() == 3);
  b.queue.publish();
  check(!b.driver.is_used(0));

  const chain_id first = *b.queue.held_chain(4);
  check(b.queue.push_used(first, 40).has_value());
  check(b.push(6) == error::used_out_of_order);
  check(b.queue.push_used(first, 40).error() == error::chain_not_in_flight);
  check(b.push(2, 7) == error::none);
  b.queue.publish();
  check(b.push(6, 60) == error::none);
  b.queue.publish();
  check(b.queue.in_flight() == 0);
  check(b.driver.has_used(0, 4, 40) && b.driver.has_used(1, 2, 7) && b.driver.has_used(2, 6, 60));
  b.offer({4});
  check(b.queue.consume(8, in_full)->chains == 1); // all in order again
};
BOTH("PK-15 RT-8 a packed device's keep and push_used go in order, or say used_out_of_order and "
     "change nothing",
     keeps)

constexpr auto run_then_kept = [](auto check) {
  // A run that is under way, then a chain returned later: it follows the run.
  bench b(in_order);
  b.offer({1, 2, 3});
  std::uint32_t calls = 0;
  check(b.queue
            .consume(8, [&](const chain& c) { return ++calls == 3 ? ballast::keep() : in_full(c); })
            .has_value());
  check(b.queue.in_flight() == 1 && b.push(3, 5) == error::none);
  b.queue.publish();
  // The two before were written in full, so the third may stand for them, or two may be written.
  check(b.driver.has_used(0, 3, 5) || (b.driver.has_used(0, 2, 20) && b.driver.has_used(2, 3, 5)));

  // A driver that breaks a rule: what was returned before still goes back.
  b.offer({1, 2, 9});
  check(b.queue.consume(8, in_full).error() == error::head_out_of_range);
  b.queue.publish();
  check(b.driver.has_used(3, 2, 20) && b.queue.in_flight() == 0);
};
BOTH("RT-8 PK-15 a packed device's chain that is returned late joins the run, and a broken queue "
     "ends it",
     run_then_kept)

constexpr auto run_moves = [](auto check) {
  // A run that is staged survives detach and attach.
  bench b(in_order, 6);
  b.offer({1, 2});
  check(b.queue.consume(8, in_full).has_value());
  b.queue.detach();
  b.queue.publish();
  check(!b.driver.is_used(6));
  check(b.queue.attach(b.memory, layout, in_order).has_value());
  b.queue.publish();
  check(b.driver.has_used(6, 2, 20));
  b.offer({3});
  check(b.queue.consume(8, in_full).has_value());
  std::array<held_head, 7> held{};
  check(b.queue.save(held).error() == error::wrong_state);
  check(b.queue.start(b.memory, layout, in_order, 9).has_value()); // staged: forgotten
  b.log.clear();
  b.queue.publish();
  check(b.log.size() == 0 && !b.queue.should_notify());
};
BOTH("PK-15 a packed device's run that is staged survives detach, and no start", run_moves)

// ---- dirty marking

/// One mark per byte; `is_marked_first` where a word that was published had not been marked yet.
struct byte_log {
  std::array<bool, ram_size(7)> is_dirty{};
  std::uint32_t outside = 0;

  constexpr void mark(guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t i = 0; i < size; ++i)
      if (address + i >= base && address + i - base < is_dirty.size())
        is_dirty[address + i - base] = true;
      else
        ++outside;
  }
};

constexpr auto dirty = [](auto check) {
  using memory_type = ballast::dirty_memory<ram_type, byte_log>;
  for (const feature_set& features : {no_features, event_index, in_order}) {
    ram_type ram(base);
    byte_log log;
    memory_type memory(ram, log);
    ballast_test::scripted_packed_driver driver({ram.bytes(), base, little}, places(7), 5);
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<memory_type> queue(storage);
    check(queue.start(memory, layout, features, 5).has_value());
    for (int round = 0; round < 3; ++round) {
      driver.offer({{1, 1, 0}, {2, 2, flag_write}}, 3);
      driver.offer({3, 3, flag_write}, 1);
      log = {};
      auto before = ram;
      check(queue.pop_available().has_value());
      for (bool is : log.is_dirty) check(!is); // reading marks nothing
      check(queue.push_used(*queue.held_chain(3), 1).has_value());
      check(queue.consume(9, [](const chain&) { return ballast::used(2); }).has_value());
      queue.publish();
      (void)queue.should_notify();
      (void)queue.enable_notifications();
      queue.disable_notifications();
      check(log.outside == 0);
      std::size_t changed = 0, marked = 0;
      for (std::size_t i = 0; i < ram.size(); ++i) {
        const bool is_changed = ram.bytes()[i] != before.bytes()[i];
        check(!is_changed || log.is_dirty[i]); // all that changed is in the log
        changed += is_changed;
        marked += log.is_dirty[i];
      }
      // Two used descriptors' words (IN_ORDER: the chain of push_used was not known to be in full)
      // and the event structure: nothing else.
      check(changed != 0 && marked == 8 + 8 + 4);
      for (std::uint32_t i = 0; i < 7; ++i)
        for (std::uint32_t k = 0; k < 8; ++k) check(!log.is_dirty[0x10 + 16 * i + k]); // addresses
    }
  }
};
BOTH("RT-18 everything a packed device writes is marked dirty, and nothing else", dirty)

/// Writes into the same log as the accessor below it.
struct marking_log {
  ballast_test::event_log<64>* events;
  constexpr void mark(guest_address address, std::uint64_t) noexcept { events->mark(address); }
};

constexpr auto dirty_order = [](auto check) {
  using recording_type = ballast_test::recording_memory<ram_type, 64>;
  using memory_type = ballast::dirty_memory<recording_type, marking_log>;
  ram_type ram(base);
  ballast_test::event_log<64> events;
  recording_type recording(ram, events);
  marking_log log{&events};
  memory_type memory(recording, log);
  ballast_test::scripted_packed_driver driver({ram.bytes(), base, little}, places(7));
  ballast::device_queue_storage<7> storage;
  ballast::packed_device<memory_type> queue(storage);
  check(queue.start(memory, layout, no_features).has_value());
  for (std::uint16_t id : u16<3, 1, 2>) driver.offer({1, 1, flag_write}, id);
  check(queue.consume(9, in_full)->chains == 3);
  queue.publish();
  const auto rest_of = [](std::uint64_t i) { return places(7).ring + 16 * i + 8; };
  const std::size_t published = events.find(event_kind::store, rest_of(0));
  check(published != events.npos && events[published].order == ballast::order::release);
  for (std::uint64_t i : {1u, 2u}) {
    const std::size_t marked = events.find(event_kind::mark, rest_of(i));
    check(events.find(event_kind::store, rest_of(i)) < marked && marked < published);
  }
  check(events.find(event_kind::mark, rest_of(0)) == published + 1 && events.lost() == 0);
};
BOTH("RT-18 what a packed device publishes was written and marked dirty before", dirty_order)

// ---- single entries of the list

/// Another accessor that lets something run before and after each access, as memory does where an
/// access traps. Refers to both.
struct nested {
  void (*run)(void*) noexcept = nullptr;
  void* with = nullptr;
  bool is_inside = false;
  std::uint64_t calls = 0;

  void operator()() noexcept {
    if (run == nullptr || is_inside) return;
    is_inside = true;
    ++calls;
    run(with);
    is_inside = false;
  }
};
class nesting_memory {
 public:
  class window_type {
   public:
    window_type() noexcept = default;
    window_type(ballast::window_of<ram_type> inner, nested* inside) noexcept
        : inner_(inner), inside_(inside) {}
    template <ballast::wire_integer T>
    [[nodiscard]] T load(std::size_t offset, ballast::order o) const noexcept {
      (*inside_)();
      const T value = inner_.load<T>(offset, o);
      (*inside_)();
      return value;
    }
    template <ballast::wire_integer T>
    void store(std::size_t offset, T value, ballast::order o) noexcept {
      (*inside_)();
      inner_.store<T>(offset, value, o);
      (*inside_)();
    }

   private:
    ballast::window_of<ram_type> inner_{};
    nested* inside_ = nullptr;
  };

  nesting_memory(ram_type& inner, nested& inside) noexcept : inner_(&inner), inside_(&inside) {}
  [[nodiscard]] ballast::result<window_type> window(guest_address address, std::uint64_t size,
                                                    std::size_t alignment,
                                                    ballast::access k) noexcept {
    const auto inner = inner_->window(address, size, alignment, k);
    if (!inner) return inner.error();
    return window_type(*inner, inside_);
  }
  [[nodiscard]] ballast::memory_segment segment(guest_address address, std::uint64_t size,
                                                ballast::access k) noexcept {
    return inner_->segment(address, size, k);
  }
  [[nodiscard]] bool read(guest_address address, std::span<std::byte> to) noexcept {
    (*inside_)();
    return inner_->read(address, to);
  }
  [[nodiscard]] bool write(guest_address address, std::span<const std::byte> from) noexcept {
    (*inside_)();
    return inner_->write(address, from);
  }
  [[nodiscard]] bool good() noexcept { return true; }
  void fence() noexcept { (*inside_)(); }

 private:
  ram_type* inner_;
  nested* inside_;
};

/// A driver that takes back and offers all it can whenever the device accesses memory.
struct busy_driver {
  ram_type ram{base};
  ballast_test::scripted_packed_driver script{{ram.bytes(), base, little}, places(7)};
  std::array<bool, 7> is_out{};
  std::array<std::uint64_t, 7> sent{};
  std::uint64_t offered = 0, returned = 0, used = 0, wrong = 0;
  std::uint32_t free = 7;

  void run() noexcept {
    while (free != 7 && script.is_used(used)) {
      const auto d = script.descriptor(script.entry(used));
      wrong += d.id >= 7 || !is_out[d.id % 7] || d.length != sent[d.id % 7] % 50 + 1;
      is_out[d.id % 7] = false;
      ++free;
      ++used;
      ++returned;
    }
    for (int i = 0; i < 2 && free != 0; ++i) {
      std::uint16_t id = 0;
      while (is_out[id]) ++id;
      is_out[id] = true;
      sent[id] = offered;
      script.offer({offered++, 64, flag_write}, id);
      --free;
    }
  }
};

TEST_CASE("RT-7 RT-8 a packed driver runs inside of every access of the device") {
  for (const feature_set& features : {no_features, event_index}) {
    busy_driver driver;
    nested inside{[](void* d) noexcept { static_cast<busy_driver*>(d)->run(); }, &driver};
    nesting_memory memory(driver.ram, inside);
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<nesting_memory> queue(storage);
    REQUIRE(queue.start(memory, layout, features).has_value());
    std::uint64_t handled = 0, wrong = 0;
    std::array<chain_id, 7> kept{};
    std::uint32_t kept_count = 0;
    for (int i = 0; i < 2000; ++i) {
      (void)queue.enable_notifications();
      const auto done = queue.consume(3, [&](const chain& c) {
        wrong += c.writable().size() != 1 || c.writable()[0].address != handled;
        const auto length = static_cast<std::uint32_t>(handled++ % 50 + 1);
        if (length % 5 == 0 && kept_count < 3) {
          kept[kept_count++] = c.id();
          return ballast::keep();
        }
        return ballast::used(length);
      });
      wrong += !done.has_value();
      if (i % 3 == 0)
        while (kept_count != 0) {
          const chain_id id = kept[--kept_count];
          wrong += !queue.push_used(id, static_cast<std::uint32_t>(driver.sent[id.head] % 50 + 1))
                        .has_value();
        }
      (void)queue.publish_and_ask();
    }
    CHECK(wrong == 0);
    CHECK(driver.wrong == 0);
    CHECK(queue.cause() == error::none);
    CHECK(inside.calls > 10'000);
    CHECK(driver.returned > 2000);
    CHECK(driver.offered - driver.returned == 7 - driver.free);
  }
}

TEST_CASE("RT-10 RT-9 RT-2 whatever a packed ring holds, a device's chain has 1 to `size` buffers, "
          "or none, and no more are in flight than the ring has descriptors") {
  std::uint64_t state = 3;
  const auto next = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  };
  std::uint32_t popped = 0, broken = 0, longest = 0, empty = 0, most = 0;
  for (int life = 0; life < 30'000; ++life) {
    ram_type ram(base);
    ballast_test::raw_words words(ram.bytes(), base, little);
    const bool wrap = life % 2 == 0;
    for (std::uint32_t i = 0; i < 7 + 28; ++i) { // the ring, and the tables behind
      const guest_address at = i < 7 ? places(7).ring + 16 * i : table_of(7, 0) + 16 * (i - 7);
      words.put(at, 8, next() % 8 == 0 ? next() : table_of(7, 0) + next() % 0x180);
      words.put(at + 8, 4, next() % 4 == 0 ? next() : 16 * (next() % 9));
      words.put(at + 12, 2, next() % (next() % 4 == 0 ? 9 : 7));
      const std::uint64_t chained = next() % 8 & (next() % 4 == 0 ? 7 : next() % 2 == 0 ? 5 : 1);
      const std::uint64_t owner = next() % 8 == 0 ? next() & 0x8080 : wrap ? 0x80 : 0x8000;
      words.put(at + 14, 2, chained | owner);
    }
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<ram_type> queue(storage);
    REQUIRE(queue
                .start(ram, layout, feature_set{ballast::feature::indirect_desc},
                       wrap ? std::uint16_t{0} : std::uint16_t{7})
                .has_value());
    for (int n = 0; n < 9; ++n) {
      const auto c = queue.pop_available();
      if (!c) {
        broken += queue.cause() != error::none;
        empty += c.error() == error::queue_empty;
        CHECK((queue.cause() != error::none) == (c.error() != error::queue_empty));
        break;
      }
      const std::size_t count = c->readable().size() + c->writable().size();
      if (count < 1 || count > 7 || c->id().head >= 7) FAIL("a chain of ", count);
      longest = count > longest ? static_cast<std::uint32_t>(count) : longest;
      most = queue.in_flight() > most ? queue.in_flight() : most;
      ++popped;
    }
    CHECK(queue.in_flight() <= 7);
    for (std::uint16_t id = 0; id < 7; ++id) // RT-8: whatever it was, it goes back
      if (const auto held = queue.held_chain(id)) CHECK(queue.push_used(*held, 0).has_value());
    CHECK(queue.in_flight() == 0);
    queue.publish();
  }
  CHECK(popped > 1000);
  CHECK(broken > 1000);
  CHECK(empty > 100);
  CHECK(longest > 4);
  CHECK(most > 4);
}

TEST_CASE(
    "RT-9 RT-10 a packed ring that a hostile driver rewrites all the time bounds every call") {
  // Under every access all flags change, so that there is always more; calls end all the same.
  struct hostile {
    ram_type* ram;
    std::uint64_t state = 5;
  };
  for (const bool is_in_order : {false, true}) {
    ram_type ram(base);
    hostile with{&ram};
    nested inside{[](void* p) noexcept {
                    auto& h = *static_cast<hostile*>(p);
                    ballast_test::raw_words words(h.ram->bytes(), base, little);
                    h.state = h.state * 6364136223846793005u + 1442695040888963407u;
                    const std::uint64_t r = h.state >> 33;
                    for (std::uint32_t i = 0; i < 7; ++i)
                      words.put(places(7).ring + 16 * i + 12, 4,
                                (r + i) % 7 | ((r >> 8) % 2 == 0 ? 0x80'0000u : 0x8000'0000u) |
                                    (r & 0x3'0000));
                  },
                  &with};
    nesting_memory memory(ram, inside);
    ballast::device_queue_storage<7> storage;
    ballast::packed_device<nesting_memory> queue(storage);
    std::uint64_t lives = 0, handled = 0;
    for (int i = 0; i < 3000; ++i) {
      if (!queue.is_attached() || queue.cause() != error::none) {
        REQUIRE(queue.start(memory, layout, is_in_order ? in_order : no_features).has_value());
        ++lives;
      }
      std::uint32_t count = 0;
      const auto done = queue.consume(20, [&](const chain& c) {
        ++count;
        return c.id().head % 3 == 0 && !is_in_order ? ballast::keep() : ballast::used(1);
      });
      handled += count;
      CHECK(count <= 20);
      CHECK(queue.in_flight() <= 7);
      if (done) CHECK(done->chains <= 20);
      if (i % 2 == 0) (void)queue.unpop(queue.in_flight());
      for (std::uint16_t id = 0; id < 7; ++id)
        if (const auto held = queue.held_chain(id)) (void)queue.push_used(*held, 0);
      (void)queue.publish_and_ask();
      (void)queue.enable_notifications();
    }
    CHECK(lives > 10);
    CHECK(handled > 1000);
  }
}

constexpr auto reset_and_enabled = [](auto check) {
  // RING_RESET: taken, given again elsewhere and of another size, the old chain comes back late.
  ballast::array_memory<0x200> ram(base);
  const packed_places first{7, base + 0x10, base + 0x84, base + 0x04};
  ballast_test::scripted_packed_driver driver({ram.bytes(), base, little}, first);
  driver.offer({0x3000, 16, flag_write}, 3);
  ballast::device_queue_storage<7> storage;
  ballast::packed_device<ballast::array_memory<0x200>> queue(storage);
  check(queue.start(ram, layout_of(first), no_features).has_value());
  const auto old = queue.pop_available();
  check(old.has_value());
  const chain_id id = old->id();

  queue.reset();
  check(queue.push_used(id, 1).error() == error::not_attached);
  const packed_places again{5, base + 0x110, base + 0x104, base + 0x108};
  ballast_test::scripted_packed_driver second({ram.bytes(), base, little}, again);
  check(queue.start(ram, layout_of(again), no_features).has_value());
  auto before = ram;
  const auto is_untouched = [&] {
    bool is = true;
    for (std::size_t i = 0; i < ram.size(); ++i) is = is && before.bytes()[i] == ram.bytes()[i];
    return is;
  };
  check(queue.push_used(id, 1).error() == error::stale_chain);
  queue.publish();
  check(!queue.should_notify() && is_untouched() && queue.in_flight() == 0);
  // The same id is in flight in the new life: it is not taken for the old one.
  second.offer({0x3000, 16, flag_write}, 3);
  const auto now = queue.pop_available();
  check(now.has_value() && now->id().head == id.head);
  before = ram;
  check(queue.push_used(id, 1).error() == error::stale_chain);
  queue.publish();
  check(is_untouched() && queue.in_flight() == 1 && queue.cause() == error::none);
  check(queue.push_used(now->id(), 1).has_value());
  queue.publish();
  check(second.has_used(0, 3, 1) && !driver.is_used(0));

  // Another object over the same storage: the chain of the first is stale there.
  ballast::packed_device<ballast::array_memory<0x200>> other(storage);
  check(other.start(ram, layout_of(again), no_features, 1).has_value());
  second.offer({0x3000, 16, flag_write}, 3);
  const auto there = other.pop_available();
  check(there.has_value() && other.push_used(now->id(), 1).error() == error::stale_chain);
};
BOTH("RT-60 a packed device's chain that is returned after a queue reset is stale: nothing touched",
     reset_and_enabled)

constexpr auto smaller = [](auto check) {
  // RT-26: what a life of 7 left in the storage means nothing in one of 3.
  bench b;
  b.offer({6, 5, 4, 3, 2, 1, 0});
  for (int i = 0; i < 7; ++i) check(b.queue.pop_available().has_value());
  packed_places at = places(7);
  at.size = 3;
  for (std::uint32_t i = 0; i < 7; ++i) b.driver.descriptor(i, {});
  check(b.queue.start(b.memory, layout_of(at), no_features, 2).has_value());
  check(b.queue.size() == 3 && b.queue.in_flight() == 0);
  for (std::uint16_t id = 0; id < 7; ++id)
    check(b.queue.held_chain(id).error() == error::chain_not_in_flight);
  check(b.queue.unpop(1).error() == error::chain_not_in_flight);
  ballast_test::scripted_packed_driver driver({b.ram.bytes(), base, little}, at, 2);
  driver.offer({{1, 1, 0}, {2, 2, 0}, {3, 3, 0}}, 2);
  check(b.queue.pop_available()->readable().size() == 3);
  check(b.push(2, 0) == error::none);
  b.queue.publish();
  check(driver.has_used(2, 2, 0));
};
BOTH("RT-26 a packed device's new life of another size knows nothing of the last", smaller)

} // namespace
