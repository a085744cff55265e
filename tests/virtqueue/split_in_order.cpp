// SPDX-License-Identifier: BSD-3-Clause
// Both sides of a split virtqueue under VIRTIO_F_IN_ORDER.
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include "support/queue_life.hpp"
#include "support/recording_memory.hpp"
#include "support/scripted_device.hpp"
#include "support/scripted_driver.hpp"

#include <array>
#include <initializer_list>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
using ballast::error;
using ballast::feature_set;
using ballast_test::event_kind;
using ballast_test::ring_places;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr ballast::guest_address base = 0x6'0000'0000;
constexpr feature_set in_order{ballast::feature::in_order};

constexpr std::uint16_t flag_next = 1, flag_write = 2;

constexpr ring_places places{8, base + 0x100, base + 0xa2, base + 0x0c};
constexpr ballast::queue_layout layout{8, places.table, places.available, places.used};
using ram_type = ballast::array_memory<0x400>;

/// A device's queue of 8 and a scripted driver that wrote descriptor i as 10 * i writable bytes.
template <std::endian E = little> struct device_bench {
  using memory_type = ballast_test::recording_memory<ram_type, 400>;

  ram_type ram{base};
  ballast_test::event_log<400> log;
  memory_type memory{ram, log};
  ballast_test::scripted_driver driver;
  ballast::device_queue_storage<8> storage;
  ballast::split_device<memory_type, E> queue{storage};

  constexpr explicit device_bench(std::uint16_t first = 0, const feature_set& features = in_order)
      : driver({ram.bytes(), base, E}, places, first) {
    driver.make_available();
    ballast_test::raw_words(ram.bytes(), base, E).put(places.used + 2, 2, first);
    for (std::uint32_t i = 0; i < 8; ++i) driver.descriptor(i, {0x1000 * i, 10 * i, flag_write, 0});
    started = queue.start(memory, layout, features, first).has_value();
  }
  device_bench(const device_bench&) = delete;

  constexpr void offer(std::initializer_list<std::uint16_t> heads) {
    for (const std::uint16_t head : heads) driver.stage(head);
    driver.make_available();
  }
  /// Used elements written since the log was cleared.
  [[nodiscard]] constexpr std::size_t elements() const {
    std::size_t n = 0;
    for (std::size_t i = 0; i < log.size(); ++i)
      n += log[i].kind == event_kind::store && log[i].size == 4;
    return n / 2;
  }
  [[nodiscard]] constexpr bool has_used(std::uint32_t at, std::uint32_t id,
                                        std::uint32_t length) const {
    return driver.used_id(at % 8) == id && driver.used_length(at % 8) == length;
  }

  bool started = false;
};

/// Answers that every chain was written in full.
constexpr auto in_full = [](const chain& c) {
  return ballast::used(static_cast<std::uint32_t>(total_bytes(c.writable())));
};

// ---- device

template <std::endian E> constexpr void one_element(auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{0xfffd}}) {
    device_bench<E> b(first);
    check(b.started);
    b.offer({3, 1, 0, 7, 2});
    b.log.clear();
    const auto done = b.queue.consume(8, in_full);
    check(done && done->chains == 5 && !done->has_more);
    check(b.driver.used_index() == first && b.elements() == 0);
    b.queue.publish();
    check(b.driver.used_index() == static_cast<std::uint16_t>(first + 5));
    // One element, where the first of the batch would have been; it names the last.
    check(b.elements() == 1 && b.has_used(first, 2, 20));
    check(b.log.count(event_kind::store) == 3 && b.log.lost() == 0);
    b.queue.publish();
    check(b.log.count(event_kind::store) == 3);

    b.offer({6, 5}); // the next batch goes behind the five
    b.log.clear();
    check(b.queue.consume(8, in_full).has_value());
    b.queue.publish();
    check(b.elements() == 1 && b.has_used(first + 5u, 5, 50));
    check(b.driver.used_index() == static_cast<std::uint16_t>(first + 7));
  }
}
constexpr auto one_per_batch = [](auto check) {
  one_element<little>(check);
  one_element<big>(check);
};
BOTH("SP-18 RT-19 the device writes one used element per batch, with the id of the last",
     one_per_batch)

constexpr auto partly = [](auto check) {
  // A driver takes those before the one that is named for written in full, so whatever was not
  // ends a run: its length arrives.
  const std::uint32_t full[] = {10, 20, 30, 40, 50};
  for (std::uint32_t which = 0; which < 32; ++which)
    for (std::uint32_t said : {0u, 9u, 60u}) {
      device_bench<> b(0xfffe);
      b.offer({1, 2, 3, 4, 5});
      b.log.clear();
      std::uint32_t n = 0;
      const auto length = [&](std::uint32_t i) { return (which >> i & 1) != 0 ? said : full[i]; };
      check(
          b.queue.consume(8, [&](const chain&) { return ballast::used(length(n++)); }).has_value());
      b.queue.publish();
      check(b.driver.used_index() == 3);
      std::size_t elements = 0;
      for (std::uint32_t i = 0, start = 0; i < 5; ++i)
        if (i == 4 || length(i) != full[i]) {
          check(b.has_used(0xfffe + start, i + 1, length(i)));
          start = i + 1;
          ++elements;
        }
      check(b.elements() == elements);
    }
};
BOTH("SP-18 a chain that was not written in full ends a run", partly)

constexpr auto chains_of_several = [](auto check) {
  device_bench<> b;
  b.driver.descriptor(0, {0, 100, flag_next, 1});
  b.driver.descriptor(1, {0, 30, flag_next | flag_write, 2});
  b.driver.descriptor(2, {0, 12, flag_write, 0});
  b.driver.descriptor(3, {0, 100, flag_next, 4}); // nothing to write: 0 is in full
  b.driver.descriptor(4, {0, 5, 0, 0});
  b.driver.descriptor(5, {0, 100, 0, 0});
  b.driver.descriptor(6, {0, 0xffff'ffff, flag_next | flag_write, 7});
  b.driver.descriptor(7, {0, 1, flag_write, 0}); // 2^32 bytes: no length says so
  b.offer({0, 3, 5, 6});
  b.log.clear();
  check(b.queue.consume(8, [&](const chain& c) { return ballast::used(c.id().head == 0 ? 42 : 0); })
            .has_value());
  b.queue.publish();
  check(b.elements() == 1 && b.has_used(0, 6, 0));

  b.offer({6, 0, 3});
  b.log.clear();
  check(b.queue.consume(8, [](const chain&) { return ballast::used(0); }).has_value());
  b.queue.publish();
  // 2^32 bytes cut to 32 bits would be 0, and 0 is not in full; nor is it for the second.
  check(b.elements() == 3 && b.has_used(4, 6, 0) && b.has_used(5, 0, 0) && b.has_used(6, 3, 0));
};
BOTH("SP-18 in full means all writable bytes of a chain, of 2^32 too", chains_of_several)

constexpr auto budgets = [](auto check) {
  device_bench<> b;
  b.offer({1, 2, 3, 4, 5, 6});
  b.log.clear();
  const auto two = b.queue.consume(2, in_full);
  check(two && two->chains == 2 && two->has_more);
  const auto one = b.queue.consume_one(in_full);
  check(one && one->chains == 1 && one->has_more);
  check(b.queue.consume(0, in_full)->has_more);
  check(b.elements() == 0);
  b.queue.publish(); // one run over three calls
  check(b.elements() == 1 && b.has_used(0, 3, 30) && b.driver.used_index() == 3);
  check(b.queue.consume(8, in_full)->chains == 3);
  b.queue.publish();
  check(b.elements() == 2 && b.has_used(3, 6, 60) && b.driver.used_index() == 6);
};
BOTH("RT-9 a budget cuts no run: it ends with publish", budgets)

constexpr auto keeps = [](auto check) {
  device_bench<> b;
  b.offer({4, 2, 6});
  std::uint32_t calls = 0;
  const auto keep_first = [&](const chain& c) {
    return calls++ == 0 ? ballast::keep() : in_full(c);
  };
  // The first is kept, so the second may not go back now; nothing is lost, it is kept too.
  check(b.queue.consume(8, keep_first).error() == error::used_out_of_order);
  check(calls == 2 && b.queue.in_flight() == 2 && b.queue.cause() == error::none);
  const auto first = b.queue.held_chain(4), second = b.queue.held_chain(2);
  check(first && second && b.queue.held_chain(6).error() == error::chain_not_in_flight);
  check(b.queue.consume_one(in_full).error() == error::used_out_of_order);
  check(calls == 2 && b.queue.in_flight() == 3);
  const auto third = b.queue.held_chain(6);
  check(b.queue.push_used(*second, 0).error() == error::used_out_of_order);
  check(b.queue.push_used(*third, 0).error() == error::used_out_of_order);
  check(b.queue.in_flight() == 3);
  b.queue.publish();
  check(b.driver.used_index() == 0);

  b.log.clear();
  check(b.queue.push_used(*first, 40).has_value());
  check(b.queue.push_used(*third, 0).error() == error::used_out_of_order);
  check(b.queue.push_used(*first, 40).error() == error::chain_not_in_flight);
  check(b.queue.push_used(*second, 7).has_value());
  b.queue.publish();
  check(b.driver.used_index() == 2);
  check(b.queue.push_used(*third, 60).has_value());
  b.queue.publish();
  check(b.driver.used_index() == 3 && b.queue.in_flight() == 0);
  check(b.has_used(0, 4, 40) && b.has_used(1, 2, 7) && b.has_used(2, 6, 60));
  b.offer({4});
  check(b.queue.consume(8, in_full)->chains == 1); // all in order again
};
BOTH("SP-18 RT-8 keep and push_used go in order, or say used_out_of_order and change nothing",
     keeps)

constexpr auto run_then_kept = [](auto check) {
  // A run that is under way, then a chain returned later: it follows the run.
  device_bench<> b;
  b.offer({1, 2, 3});
  b.log.clear();
  std::uint32_t calls = 0;
  check(b.queue
            .consume(8, [&](const chain& c) { return ++calls == 3 ? ballast::keep() : in_full(c); })
            .has_value());
  check(b.queue.in_flight() == 1);
  check(b.queue.push_used(*b.queue.held_chain(3), 5).has_value());
  b.queue.publish();
  check(b.driver.used_index() == 3);
  // The two before were written in full, so the third may stand for them, or two elements may.
  check(b.has_used(0, 3, 5) || (b.has_used(0, 2, 20) && b.has_used(2, 3, 5)));

  // A driver that breaks a rule: what was returned before still goes back.
  b.offer({1, 2, 9});
  check(b.queue.consume(8, in_full).error() == error::head_out_of_range);
  b.queue.publish();
  check(b.driver.used_index() == 5 && b.has_used(3, 2, 20));
};
BOTH("RT-8 SP-18 a device's chain that is returned late joins the run, and a broken queue ends it",
     run_then_kept)

constexpr auto moves = [](auto check) {
  // A run that is staged survives detach and attach.
  device_bench<> b(0xffff);
  b.offer({1, 2});
  check(b.queue.consume(8, in_full).has_value());
  b.queue.detach();
  b.queue.publish();
  check(b.driver.used_index() == 0xffff);
  check(b.queue.attach(b.memory, layout, in_order).has_value());
  b.queue.publish();
  check(b.driver.used_index() == 1 && b.has_used(0xffff, 2, 20));
  b.offer({3});
  check(b.queue.consume(8, in_full).has_value());
  check(
      b.queue.start(b.memory, layout, in_order, b.driver.next()).has_value()); // staged: forgotten
  b.log.clear();
  b.queue.publish();
  check(b.log.size() == 0);
};
BOTH("a run that is staged survives detach, and no start", moves)

// ---- driver

/// A driver's queue of 8 and a scripted device.
template <std::endian E = little> struct driver_bench {
  ram_type ram{base};
  ballast_test::scripted_device device;
  std::array<ballast::driver_slot, 8> slots{};
  ballast::split_driver<ram_type, E> queue{slots};

  constexpr explicit driver_bench(std::uint16_t first = 0)
      : device({ram.bytes(), base, E}, places, first), first_(first) {
    started = queue.start(ram, layout, in_order, first).has_value();
  }
  driver_bench(const driver_bench&) = delete;

  /// Chains of `buffers` writable buffers of 16 bytes each; tokens count on.
  constexpr bool add(std::uint32_t chains, std::uint32_t buffers = 1) {
    std::array<buffer, 8> all{};
    for (buffer& b : all) b = {0x1000, 16};
    bool is_added = true;
    for (std::uint32_t i = 0; i < chains; ++i)
      is_added = is_added &&
                 queue.add({}, std::span<const buffer>(all).first(buffers), next_++).has_value();
    return is_added;
  }
  constexpr bool offer(std::uint32_t chains, std::uint32_t buffers = 1) {
    const bool is_added = add(chains, buffers);
    queue.publish();
    return is_added;
  }
  /// The head of the n-th chain.
  [[nodiscard]] constexpr std::uint32_t head(std::uint32_t n) const {
    return static_cast<std::uint32_t>(device.available_entry((first_ + n) % 8));
  }
  /// One element for `count` chains, that names the n-th.
  constexpr void give_back(std::uint32_t n, std::uint32_t length, std::uint16_t count) {
    device.used_element(index() % 8, head(n), length);
    used_ = static_cast<std::uint16_t>(used_ + count);
    device.used_index(index());
  }
  [[nodiscard]] constexpr std::uint16_t index() const {
    return static_cast<std::uint16_t>(first_ + used_);
  }
  constexpr bool pops(std::uint64_t token, std::uint32_t length) {
    const auto used = queue.pop_used();
    return used && used->token == token && used->length == length;
  }

  bool started = false;

 private:
  std::uint16_t first_;
  std::uint16_t used_ = 0;
  std::uint64_t next_ = 0;
};

template <std::endian E> constexpr void pops_runs(auto check) {
  for (std::uint16_t first : {std::uint16_t{0}, std::uint16_t{0xfffc}}) {
    driver_bench<E> b(first);
    check(b.started && b.offer(5));
    b.give_back(2, 9, 3);
    check(b.pops(0, 16) && b.pops(1, 16) && b.pops(2, 9)); // skipped: written in full
    check(b.queue.pop_used().error() == error::queue_empty);
    check(b.queue.in_flight() == 2 && b.queue.free_descriptors() == 6);
    check(b.offer(6) && b.queue.free_descriptors() == 0);
    b.give_back(3, 0, 1);
    b.give_back(10, 77, 7); // clamped to what was writable
    check(b.pops(3, 0));
    for (std::uint64_t token = 4; token < 11; ++token) check(b.pops(token, 16));
    check(b.queue.pop_used().error() == error::queue_empty);
    check(b.queue.in_flight() == 0 && b.queue.free_descriptors() == 8);
    check(b.offer(1, 8)); // the free list is whole
  }
}
constexpr auto pops = [](auto check) {
  pops_runs<little>(check);
  pops_runs<big>(check);
};
BOTH("SP-18 RT-19 the driver pops in order; the skipped were written in full", pops)

constexpr auto reclaims = [](auto check) {
  driver_bench<> b(0xfffe);
  check(b.offer(3, 2));
  b.give_back(2, 5, 3);
  std::uint64_t seen = 0;
  const auto take = [&](const ballast::used_buffer& used) {
    check(used.token == seen && used.length == (seen == 2 ? 5 : 32));
    ++seen;
  };
  check(*b.queue.reclaim(1, take) == 1); // a budget inside of a run
  check(b.queue.in_flight() == 2 && b.queue.free_descriptors() == 4);
  check(*b.queue.reclaim(0, take) == 0);
  check(b.queue.enable_notifications()); // there are more
  check(b.queue.pop_used()->token == 1);
  ++seen;
  check(*b.queue.reclaim(9, take) == 1 && seen == 3);
  check(!b.queue.enable_notifications());
};
BOTH("RT-9 the driver's budget may end inside of a run", reclaims)

constexpr auto next_is_sequential = [](auto check) {
  // SP-8: x + 1, and 0 behind the last entry of the table.
  driver_bench<> b;
  for (std::uint32_t round = 0; round < 9; ++round) {
    const std::uint32_t count = round % 3 + 1;
    check(b.offer(1, count));
    std::uint64_t at = b.head(round);
    for (std::uint32_t i = 0; i + 1 < count; ++i) {
      const auto d = b.device.descriptor(at);
      check(d.next == (at == 7 ? 0 : at + 1));
      at = d.next;
    }
    b.give_back(round, 0, 1);
    check(b.queue.pop_used()->token == round);
  }
};
BOTH("SP-8 SP-9 the driver's chains take descriptors one after the other", next_is_sequential)

template <class F> constexpr error hostile(F&& act) {
  driver_bench<> b(0xfffd);
  (void)b.offer(4, 1); // tokens 0 to 3
  b.give_back(0, 0, 1);
  if (!b.pops(0, 0)) return error::none;
  (void)b.add(1); // staged, not published
  act(b);
  error first = error::none;
  std::uint32_t popped = 0;
  while (first == error::none && popped < 8) {
    const auto used = b.queue.pop_used();
    popped += used.has_value();
    first = used.error();
  }
  // Broken for good, and nothing was made up.
  if (first != error::queue_empty &&
      (b.queue.cause() != first || b.queue.pop_used().error() != first ||
       b.queue.reclaim(9, [](const ballast::used_buffer&) {}).error() != first))
    return error::none;
  if (b.queue.in_flight() != 4 - popped) return error::none;
  return first;
}

constexpr auto hostiles = [](auto check) {
  using bench = driver_bench<>;
  const auto names = [](std::uint32_t id, std::uint16_t count) {
    return [=](bench& b) {
      b.device.used_element(b.index() % 8, id, 3);
      b.device.used_index(static_cast<std::uint16_t>(b.index() + count));
    };
  };
  // Heads in the order they were added: 0, 1, 2, 3 and 4, which is staged; 0 is back.
  check(hostile(names(1, 1)) == error::queue_empty);
  check(hostile(names(3, 3)) == error::queue_empty);
  check(hostile(names(0, 1)) == error::used_id_not_in_flight); // a second time
  check(hostile(names(5, 1)) == error::used_id_not_in_flight); // never
  check(hostile(names(7, 3)) == error::used_id_not_in_flight);
  for (std::uint32_t id : {8u, 0x1'0001u, 0x8000'0001u, 0xffff'ffffu})
    check(hostile(names(id, 1)) == error::used_id_out_of_range);
  check(hostile(names(2, 1)) == error::used_out_of_order); // the index stands for one chain
  check(hostile(names(3, 2)) == error::used_out_of_order);
  check(hostile(names(4, 1)) == error::used_out_of_order); // staged
  check(hostile(names(4, 3)) == error::used_out_of_order);
  check(hostile(names(1, 4)) == error::used_index_jump); // more than was published
  check(hostile(names(4, 4)) == error::used_index_jump);
  check(hostile(names(1, 0xffff)) == error::used_index_jump);
  // A run of one, then an element that names an older chain.
  check(hostile([&](bench& b) {
          names(1, 1)(b);
          b.device.used_element((b.index() + 1u) % 8, 1, 3);
          b.device.used_index(static_cast<std::uint16_t>(b.index() + 2));
        }) == error::used_id_not_in_flight);
};

constexpr auto goes_back = [](auto check) {
  driver_bench<> b;
  check(b.offer(4));
  b.give_back(3, 1, 4);
  check(b.pops(0, 16) && b.pops(1, 16));
  b.device.used_index(1); // behind what was taken
  check(b.queue.pop_used().error() == error::used_index_jump);
  check(b.queue.cause() == error::used_index_jump && b.queue.in_flight() == 2);

  driver_bench<> c; // back, but not behind: what was promised stands, in its time
  check(c.offer(4));
  c.give_back(3, 1, 4);
  check(c.pops(0, 16));
  c.device.used_index(2);
  c.device.used_element(2, 0xffff'ffff, 0);
  check(c.pops(1, 16));
  check(c.queue.pop_used().error() == error::queue_empty);
  c.device.used_index(4);
  check(c.pops(2, 16) && c.pops(3, 1));
};

constexpr auto drains = [](auto check) {
  // In the middle of a run: every token comes back once all the same.
  driver_bench<> b;
  check(b.offer(4) && b.add(2));
  b.give_back(2, 3, 3);
  check(b.pops(0, 16));
  std::uint64_t seen = 0;
  b.queue.drain([&](std::uint64_t token) {
    check((seen >> token & 1) == 0);
    seen |= std::uint64_t{1} << token;
  });
  check(seen == 0b111110);
};
BOTH("RT-8 the driver drains inside of a run: each token once", drains)
BOTH("RT-21 a device's used index that goes back inside of a run", goes_back)

constexpr auto hostile_ids = [](auto check) { hostiles(check); };
BOTH("RT-13 RT-16 RT-21 SP-18 a device that breaks the order breaks the driver's queue",
     hostile_ids)

// ---- both sides, at random

template <std::uint32_t N> using life_ram = ballast::array_memory<64 * N + 128 + N * 3 * 16>;

template <std::uint32_t N, std::endian E = little>
constexpr void lives(auto check, std::uint32_t steps, const feature_set& features,
                     std::uint64_t seed) {
  life_ram<N> ram(base);
  const auto at = ballast::split::place(base, N);
  const ballast_test::life_plan plan{.features = features,
                                     .layout = at.layout,
                                     .tables = {(at.end + 15) & ~std::uint64_t{15}, 3},
                                     .first_index = static_cast<std::uint16_t>(0xfff0 + seed),
                                     .seed = seed};
  ballast_test::queue_life<N, E, life_ram<N>, life_ram<N>> life(ram, ram, plan);
  for (std::uint32_t i = 0; i < steps; ++i) life.step();
  life.finish();
  check(life.wrong() == 0);
  check(life.returned() > steps / 100);
}

constexpr feature_set with(std::uint32_t bits) {
  feature_set features = in_order;
  if ((bits & 1) != 0) features.set(ballast::feature::event_idx);
  if ((bits & 2) != 0) features.set(ballast::feature::indirect_desc);
  return features;
}

constexpr auto short_lives = [](auto check) {
  for (std::uint32_t bits = 0; bits < 4; ++bits) lives<4>(check, 60, with(bits), 1 + bits);
  lives<4, big>(check, 60, with(3), 7);
};
BOTH("SP-18 random lives of both sides, combined with EVENT_IDX and indirect tables", short_lives)

TEST_CASE("SP-18 RT-8 RT-19 long random lives of driver and device, as a naive model has them") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 4; ++bits)
    for (std::uint64_t seed = 1; seed < 20; ++seed) {
      lives<1>(check, 500, with(bits), seed);
      lives<2>(check, 500, with(bits), seed);
      lives<8>(check, 2000, with(bits), seed);
      lives<64>(check, 5000, with(bits), seed);
      lives<8, big>(check, 1000, with(bits), seed);
    }
  lives<16>(check, 1'500'000, with(3), 5); // more than once round the index
}

} // namespace
