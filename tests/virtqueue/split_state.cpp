// SPDX-License-Identifier: BSD-3-Clause
// Queues that are saved and restored, detached and attached, drained, and chains given back
// unserved.
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include "support/failing_memory.hpp"
#include "support/queue_life.hpp"
#include "support/scripted_device.hpp"
#include "support/scripted_driver.hpp"

#include <array>
#include <initializer_list>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
using ballast::driver_slot;
using ballast::error;
using ballast::feature_set;
using ballast::guest_address;
using ballast::held_head;
using ballast_test::ring_places;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr guest_address base = 0x6'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set in_order{ballast::feature::in_order};

constexpr std::uint16_t flag_write = 2;

/// Numbers to go through, without a cast each.
template <std::uint16_t... n> constexpr std::array<std::uint16_t, sizeof...(n)> u16{n...};

constexpr ring_places places{8, base + 0x100, base + 0xa2, base + 0x0c};
constexpr ballast::queue_layout layout{8, places.table, places.available, places.used};
using ram_type = ballast::array_memory<0x400>;

// ---- both sides at every moment of random lives, beside a twin that is not interrupted

template <std::uint32_t N> using life_ram = ballast::array_memory<64 * N + 128 + N * 3 * 16>;

enum class moved : std::uint8_t { driver, device, both };

template <std::uint32_t N, std::endian E = little>
constexpr void twins(auto check, std::uint32_t steps, const feature_set& features, moved which,
                     std::uint64_t seed) {
  life_ram<N> ram(base), twin_ram(base);
  const auto at = ballast::split::place(base, N);
  const ballast_test::life_plan plan{.features = features,
                                     .layout = at.layout,
                                     .tables = {(at.end + 15) & ~std::uint64_t{15}, 3},
                                     .first_index = static_cast<std::uint16_t>(0xfff0 + seed),
                                     .seed = seed};
  ballast_test::queue_life<N, E, life_ram<N>, life_ram<N>> life(ram, ram, plan);
  ballast_test::queue_life<N, E, life_ram<N>, life_ram<N>> twin(twin_ram, twin_ram, plan);
  std::uint32_t differences = 0;
  for (std::uint32_t i = 0; i < steps; ++i) {
    life.step();
    twin.step();
    if (which != moved::device) life.move_driver();
    if (which != moved::driver) life.move_device();
    differences += life.facts() != twin.facts();
    if (i % 16 != 0) continue;
    for (std::size_t k = 0; k < ram.size(); ++k)
      differences += ram.bytes()[k] != twin_ram.bytes()[k];
  }
  life.finish();
  twin.finish();
  check(twin.wrong() == 0);
  check(life.wrong() == 0);
  check(differences == 0 && life.facts() == twin.facts());
  check(life.returned() == twin.returned() && life.returned() > steps / 100);
  check(life.moves() > steps / 4);
}

constexpr feature_set some_features(std::uint32_t bits) {
  feature_set features;
  if ((bits & 1) != 0) features.set(ballast::feature::event_idx);
  if ((bits & 2) != 0) features.set(ballast::feature::indirect_desc);
  if ((bits & 4) != 0) features.set(ballast::feature::in_order);
  return features;
}

constexpr auto device_twins = [](auto check) {
  twins<4>(check, 40, some_features(0), moved::device, 1);
  twins<4, big>(check, 40, some_features(3), moved::device, 2);
  twins<4>(check, 40, some_features(7), moved::device, 3);
};
BOTH("RT-6 a device that is saved and restored at every moment goes on as if nothing happened",
     device_twins)

TEST_CASE("RT-6 the device saved at every moment of long random lives, beside a twin") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    for (std::uint64_t seed = 1; seed < 8; ++seed) {
      twins<1>(check, 300, some_features(bits), moved::device, seed);
      twins<8>(check, 1500, some_features(bits), moved::device, seed);
      twins<32, big>(check, 1500, some_features(bits), moved::device, seed);
    }
}

// Run-time tests, so that the rest can be seen while one of them fails.
TEST_CASE(
    "RT-6 a driver that is saved and restored at every moment goes on as if nothing happened") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    twins<4>(check, 60, some_features(bits), moved::driver, 1);
}

TEST_CASE("RT-6 the driver saved at every moment of long random lives, beside a twin") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    for (std::uint64_t seed = 1; seed < 8; ++seed) {
      twins<1>(check, 300, some_features(bits), moved::driver, seed);
      twins<8>(check, 1500, some_features(bits), moved::driver, seed);
      twins<32, big>(check, 1500, some_features(bits), moved::both, seed);
    }
}

// ---- device: state

/// A device's queue of 8 and a scripted driver that wrote descriptor i as 10 * i writable bytes.
struct device_bench {
  ram_type ram{base};
  ballast_test::scripted_driver driver;
  ballast::device_queue_storage<8> storage;
  ballast::split_device<ram_type> queue{storage};

  constexpr explicit device_bench(const feature_set& features = no_features,
                                  std::uint16_t first = 0)
      : driver({ram.bytes(), base, little}, places, first) {
    driver.make_available();
    ballast_test::raw_words(ram.bytes(), base, little).put(places.used + 2, 2, first);
    for (std::uint32_t i = 0; i < 8; ++i) driver.descriptor(i, {0x1000 * i, 10 * i, flag_write, 0});
    started = queue.start(ram, layout, features, first).has_value();
  }
  device_bench(const device_bench&) = delete;

  constexpr void offer(std::initializer_list<std::uint16_t> heads) {
    for (const std::uint16_t head : heads) driver.stage(head);
    driver.make_available();
  }
  constexpr bool pops(std::uint16_t head) {
    const auto popped = queue.pop_available();
    return popped && popped->id().head == head && popped->writable().size() == 1 &&
           popped->writable()[0] == buffer{0x1000u * head, 10u * head};
  }
  constexpr error push(std::uint16_t head, std::uint32_t length = 0) {
    const auto id = queue.held_chain(head);
    return id ? queue.push_used(*id, length).error() : id.error();
  }

  bool started = false;
};

constexpr auto device_saves = [](auto check) {
  device_bench b(no_features, 0xfffe);
  b.offer({5, 1, 7, 2});
  check(b.pops(5) && b.pops(1) && b.pops(7));
  check(b.push(1, 3) == error::none);
  std::array<held_head, 8> held{};
  check(b.queue.save(held).error() == error::wrong_state); // staged
  b.queue.publish();
  check(b.queue.save(std::span(held).first(1)).error() == error::buffer_too_small);
  check(held[0] == held_head{});
  const auto state = b.queue.save(held);
  check(state.has_value() && state->version == 1 && state->size == 8);
  check(state->next_available == 1 && state->next_used == 0xffff && state->unasked == 1);
  check(state->cause == error::none);
  check(held[0].head == 5 && held[1].head == 7 && held[2] == held_head{});
  b.queue.detach(); // detached it can be saved as well
  check(b.queue.save(held).has_value());
  b.queue.reset();
  check(b.queue.save(held).error() == error::wrong_state);

  ballast::device_queue_storage<8> storage;
  ballast::split_device<ram_type> fresh(storage);
  check(fresh.save(held).error() == error::wrong_state);
  const auto both = std::span<const held_head>(held).first(2);
  check(fresh.restore(b.ram, layout, no_features, *state, both).has_value());
  check(fresh.in_flight() == 2 && fresh.size() == 8 && fresh.is_attached());
  check(fresh.held_chain(1).error() == error::chain_not_in_flight);
  check(fresh.held_chain(8).error() == error::chain_not_in_flight);
  check(fresh.held_chain(0xffff).error() == error::chain_not_in_flight);
  check(fresh.should_notify()); // of the one that was published before
  check(fresh.unpop(1).error() == error::chain_not_in_flight); // where it lay is not known
  const auto popped = fresh.pop_available();
  check(popped && popped->id().head == 2);
  check(fresh.unpop(2).error() == error::chain_not_in_flight);
  check(fresh.unpop(1).has_value() && fresh.in_flight() == 2);
  check(fresh.push_used(*fresh.held_chain(7), 70).has_value());
  check(fresh.push_used(*fresh.held_chain(5), 50).has_value());
  fresh.publish();
  check(b.driver.used_index() == 1 && b.driver.used_id(7) == 7 && b.driver.used_id(0) == 5);

  // A broken queue stays broken, and what it holds still goes back.
  device_bench c;
  c.offer({3});
  check(c.pops(3));
  c.queue.fail(error::not_guest_memory);
  const auto broken = c.queue.save(held);
  check(broken && broken->cause == error::not_guest_memory && held[0].head == 3);
  check(c.queue
            .restore(c.ram, layout, no_features, *broken, std::span<const held_head>(held).first(1))
            .has_value());
  check(c.queue.cause() == error::not_guest_memory);
  check(c.queue.pop_available().error() == error::not_guest_memory);
  check(c.push(3) == error::none);
};
BOTH("RT-36 a device's state is plain values; held_chain gives the ids of what it held",
     device_saves)

constexpr auto device_corrupted = [](auto check) {
  device_bench b;
  b.offer({5, 1, 7, 2});
  check(b.pops(5) && b.pops(1) && b.pops(7) && b.push(1, 3) == error::none);
  b.queue.publish();
  std::array<held_head, 8> held{};
  const auto state = b.queue.save(held);
  check(state.has_value());
  const chain_id kept = *b.queue.held_chain(7);
  const auto before = b.ram;

  const auto refused = [&](auto corrupt, std::size_t count = 2,
                           const ballast::queue_layout& at = layout) {
    auto wrong = *state;
    auto heads = held;
    corrupt(wrong, heads);
    const error why =
        b.queue
            .restore(b.ram, at, no_features, wrong, std::span<const held_head>(heads).first(count))
            .error();
    // Nothing changed, and the chains of this life are not stale.
    const bool is_unchanged = b.queue.is_attached() && b.queue.in_flight() == 2 &&
                              b.queue.size() == 8 && b.queue.held_chain(7) &&
                              *b.queue.held_chain(7) == kept && b.queue.held_chain(5) &&
                              !b.queue.held_chain(1) && b.queue.cause() == error::none;
    return is_unchanged ? why : error::none;
  };
  using state_type = ballast::device_queue_state;
  using heads_type = std::array<held_head, 8>;
  for (const std::uint32_t version : {0u, 2u, 0x100u, 0xffff'ffffu})
    check(refused([&](state_type& s, heads_type&) { s.version = version; }) ==
          error::state_version);
  for (const std::uint32_t size : {0u, 4u, 7u, 16u, 0x1'0008u})
    check(refused([&](state_type& s, heads_type&) { s.size = size; }) == error::state_invalid);
  // As many heads as there are between the indices, no more than entries.
  for (const std::uint16_t index : u16<0, 1, 2, 4, 9, 10, 0xffff>)
    check(refused([&](state_type& s, heads_type&) { s.next_available = index; }) ==
          error::state_invalid);
  for (const std::uint16_t index : u16<0, 2, 3, 4, 0xffff, 0x8001>)
    check(refused([&](state_type& s, heads_type&) { s.next_used = index; }) ==
          error::state_invalid);
  for (const std::size_t count : {0u, 1u, 3u, 8u})
    check(refused([](state_type&, heads_type&) {}, count) == error::state_invalid);
  for (const std::uint16_t head : u16<8, 0x105, 0xffff>)
    check(refused([&](state_type&, heads_type& h) { h[1].head = head; }) == error::state_invalid);
  check(refused([](state_type&, heads_type& h) { h[0] = h[1]; }) == error::state_invalid);
  for (const std::uint16_t cause : u16<3, 63, 999, 0xffff>)
    check(refused([&](state_type& s, heads_type&) { s.cause = static_cast<error>(cause); }) ==
          error::state_invalid);
  // Where it is to live.
  auto at = layout;
  at.size = 4;
  check(refused([](state_type&, heads_type&) {}, 2, at) == error::state_invalid);
  check(refused([](state_type& s, heads_type&) { s.size = 4; }, 2, at) == error::state_invalid);
  at = layout;
  at.size = 16; // fits the state, not the storage
  check(refused([](state_type& s, heads_type&) { s.size = 16; }, 2, at) ==
        error::storage_too_small);
  at = layout;
  at.device_area += 2;
  check(refused([](state_type&, heads_type&) {}, 2, at) == error::misaligned);
  at.device_area = 0;
  check(refused([](state_type&, heads_type&) {}, 2, at) == error::not_guest_memory);
  auto now = before;
  for (std::size_t i = 0; i < b.ram.size(); ++i) check(now.bytes()[i] == b.ram.bytes()[i]);
  check(b.queue.push_used(kept, 1).has_value());
  check(
      b.queue.restore(b.ram, layout, no_features, *state, std::span<const held_head>(held).first(2))
          .has_value());
  check(b.queue.push_used(kept, 1).error() == error::stale_chain);
};
BOTH("RT-6 a device refuses each field of a state that is wrong, and nothing changes",
     device_corrupted)

constexpr auto device_index_jump = [](auto check) {
  // The state fits together; the index in memory is another matter, found where it is read.
  for (const std::uint16_t index : u16<8, 9, 0xffff>) {
    device_bench b;
    const auto state = b.queue.save({});
    b.driver.available_index(index);
    check(b.queue.restore(b.ram, layout, no_features, *state, {}).has_value());
    check(b.queue.consume(0, [](const chain&) { return ballast::used(); }).error() ==
          (index == 8 ? error::none : error::available_index_jump));
  }
};
BOTH("RT-6 RT-21 a device restored where the available index jumped is broken", device_index_jump)

TEST_CASE("RT-6 RT-14 a device whose memory fails during restore is not attached, and says so") {
  device_bench b;
  b.offer({5, 1});
  REQUIRE(b.pops(5));
  std::array<held_head, 8> held{};
  const auto state = b.queue.save(held);
  for (std::uint64_t n = 1;; ++n) {
    ballast_test::failure_plan plan{.fail_at = n};
    ballast_test::failing_memory<ram_type> memory(b.ram, plan);
    ballast::device_queue_storage<8> storage;
    ballast::split_device<ballast_test::failing_memory<ram_type>> queue(storage);
    const auto done = queue.restore(memory, layout, no_features, *state,
                                    std::span<const held_head>(held).first(1));
    if (plan.fallible < n) {
      CHECK(done.has_value());
      break;
    }
    CAPTURE(n);
    CHECK(done.error() == error::not_guest_memory);
    CHECK(!queue.is_attached());
    CHECK(queue.in_flight() == 0);
  }
}

TEST_CASE("RT-25 a device saved after a whole round of the index still owes its notification") {
  for (const std::uint32_t chains : {1u, 0xffffu, 0x1'0000u}) {
    CAPTURE(chains);
    device_bench b(event_index);
    for (std::uint32_t i = 0; i < chains; ++i) {
      b.offer({static_cast<std::uint16_t>(i % 8)});
      (void)b.queue.consume_one([](const chain&) { return ballast::used(); });
      b.queue.publish();
    }
    b.driver.used_event(static_cast<std::uint16_t>(chains - 1));
    const auto state = b.queue.save({});
    REQUIRE(b.queue.restore(b.ram, layout, event_index, *state, {}).has_value());
    CHECK(b.queue.should_notify());
  }
}

// ---- device: unpop

constexpr auto gives_back = [](auto check) {
  for (const bool is_in_order : {false, true}) {
    device_bench b(is_in_order ? in_order : no_features, 0xfffe);
    b.offer({5, 1, 7, 2});
    check(b.queue.unpop(0).has_value());
    check(b.queue.unpop(1).error() == error::chain_not_in_flight);
    check(b.pops(5) && b.pops(1) && b.pops(7));
    const chain_id gone = *b.queue.held_chain(7);
    check(b.queue.unpop(4).error() == error::chain_not_in_flight);
    check(b.queue.unpop(0xffff'ffff).error() == error::chain_not_in_flight);
    check(b.queue.in_flight() == 3);
    check(b.queue.unpop(2).has_value() && b.queue.in_flight() == 1);
    check(b.queue.push_used(gone, 0).error() == error::chain_not_in_flight);
    check(b.queue.held_chain(1).error() == error::chain_not_in_flight && b.queue.held_chain(5));
    check(b.queue.enable_notifications()); // they are there
    check(b.pops(1) && b.pops(7) && b.pops(2));
    check(b.queue.pop_available().error() == error::queue_empty);
    check(b.queue.unpop(4).has_value() && b.queue.in_flight() == 0);
    const auto all = b.queue.consume(9, [](const chain&) { return ballast::used(); });
    check(all && all->chains == 4);
    b.queue.publish();
    check(b.driver.used_index() == 2 && b.queue.in_flight() == 0);
    check(b.queue.unpop(1).error() == error::chain_not_in_flight); // they went back
  }
};
BOTH("RT-8 a device gives the last chains back unserved and pops them again", gives_back)

constexpr auto unpop_and_push = [](auto check) {
  // Across push_used: an older one does not matter, a newer one ends what can be given back.
  device_bench b;
  b.offer({5, 1, 7, 2});
  check(b.pops(5) && b.pops(1) && b.pops(7) && b.pops(2));
  check(b.push(5) == error::none); // the oldest
  check(b.queue.unpop(4).error() == error::chain_not_in_flight && b.queue.in_flight() == 3);
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 2);
  check(b.push(7) == error::none); // the newest of those that are left
  check(b.queue.unpop(1).error() == error::chain_not_in_flight);
  check(b.queue.unpop(2).error() == error::chain_not_in_flight);
  check(b.queue.held_chain(1).has_value() && b.queue.in_flight() == 1);
  check(b.pops(2));
  check(b.queue.unpop(2).error() == error::chain_not_in_flight && b.queue.in_flight() == 2);
  check(b.queue.unpop(1).has_value() && b.pops(2));
  check(b.push(1) == error::none && b.push(2) == error::none && b.queue.in_flight() == 0);
  b.queue.publish();
  check(b.driver.used_index() == 4);
  // The driver's heads come again: an older entry of the same head is not taken for this one.
  b.offer({5, 5});
  check(b.pops(5) && b.push(5) == error::none && b.pops(5));
  check(b.queue.unpop(2).error() == error::chain_not_in_flight);
  check(b.queue.in_flight() == 1 && b.queue.held_chain(5).has_value());
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 0 && b.pops(5));
};
BOTH("RT-8 a device's unpop across push_used of older and newer chains", unpop_and_push)

constexpr auto unpop_and_consume = [](auto check) {
  device_bench b;
  b.offer({5, 1, 7, 2});
  check(b.pops(5));
  check(b.queue
            .consume(
                2,
                [](const chain& c) { return c.id().head == 1 ? ballast::used() : ballast::keep(); })
            ->chains == 2);
  // 5 kept, 1 used at once, 7 kept: no further back than to the one that was used.
  check(b.queue.in_flight() == 2);
  check(b.queue.unpop(2).error() == error::chain_not_in_flight);
  check(b.queue.unpop(3).error() == error::chain_not_in_flight && b.queue.in_flight() == 2);
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 1);
  check(b.queue.unpop(1).error() == error::chain_not_in_flight);
  check(b.pops(7) && b.pops(2) && b.queue.unpop(2).has_value());
  check(b.queue.consume(9, [](const chain&) { return ballast::used(); })->chains == 2);
  check(b.push(5) == error::none);
  b.queue.publish();
  check(b.driver.used_index() == 4);
  // A broken queue gives back too, detached as well.
  b.offer({0, 9});
  check(b.pops(0) && b.queue.pop_available().error() == error::head_out_of_range);
  b.queue.detach();
  check(b.queue.unpop(1).has_value() && b.queue.in_flight() == 0);
  ballast::device_queue_storage<8> storage;
  ballast::split_device<ram_type> never(storage);
  check(never.unpop(0).has_value() && never.unpop(1).error() == error::chain_not_in_flight);
};
BOTH("RT-8 a device's unpop goes back to the last chain that was used at once", unpop_and_consume)

TEST_CASE(
    "RT-8 a device pops, gives back, returns and consumes at random, as a naive model has it") {
  std::uint64_t state = 11;
  const auto below = [&](std::uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>((state >> 33) % n);
  };
  device_bench b;
  enum class at : std::uint8_t { driver, offered, popped };
  std::array<at, 8> where{};
  std::array<std::uint16_t, 16> fifo{}; // of ring entries, by index
  std::array<bool, 16> is_held{};
  std::uint32_t offered = 0, popped = 0, floor = 0;
  std::uint32_t wrong = 0, given_back = 0;
  for (int step = 0; step < 200'000 && wrong == 0; ++step) {
    switch (below(5)) {
    case 0: {
      const auto head = static_cast<std::uint16_t>(below(8));
      if (where[head] != at::driver) break;
      where[head] = at::offered;
      fifo[offered++ % 16] = head;
      b.offer({head});
      break;
    }
    case 1: {
      const auto got = b.queue.pop_available();
      if (got.has_value() != (popped != offered)) ++wrong;
      if (!got) break;
      wrong += got->id().head != fifo[popped % 16];
      is_held[popped++ % 16] = true;
      where[got->id().head] = at::popped;
      break;
    }
    case 2: {
      const auto head = static_cast<std::uint16_t>(below(8));
      const error e = b.push(head);
      wrong += (e == error::none) != (where[head] == at::popped);
      if (e != error::none) break;
      where[head] = at::driver;
      for (std::uint32_t i = popped; i-- != 0 && popped - i <= 16;)
        if (fifo[i % 16] == head) {
          is_held[i % 16] = false;
          break;
        }
      b.queue.publish();
      break;
    }
    case 3: {
      const std::uint32_t count = below(4);
      bool is_possible = count <= popped - floor;
      for (std::uint32_t i = 0; i < count && is_possible; ++i)
        is_possible = is_held[(popped - 1 - i) % 16];
      wrong += b.queue.unpop(count).has_value() != is_possible;
      if (!is_possible) break;
      for (std::uint32_t i = 0; i < count; ++i) {
        --popped;
        where[fifo[popped % 16]] = at::offered;
        is_held[popped % 16] = false;
        ++given_back;
      }
      break;
    }
    default: {
      const bool keeps = below(2) == 0;
      const auto done = b.queue.consume_one(
          [&](const chain&) { return keeps ? ballast::keep() : ballast::used(); });
      wrong += !done || done->chains != (popped != offered);
      if (popped == offered) break;
      const std::uint16_t head = fifo[popped % 16];
      is_held[popped++ % 16] = keeps;
      where[head] = keeps ? at::popped : at::driver;
      if (!keeps) floor = popped;
      b.queue.publish();
      break;
    }
    }
    std::uint32_t held = 0;
    for (const at w : where) held += w == at::popped;
    wrong += held != b.queue.in_flight() || b.queue.cause() != error::none;
  }
  CHECK(wrong == 0);
  CHECK(given_back > 1000);
}

// ---- driver: state

struct driver_bench {
  ram_type ram{base};
  ballast_test::scripted_device device;
  std::array<driver_slot, 8> slots{};
  ballast::split_driver<ram_type> queue{slots};

  constexpr explicit driver_bench(const feature_set& features = no_features,
                                  std::uint16_t first = 0)
      : device({ram.bytes(), base, little}, places, first) {
    started = queue.start(ram, layout, features, first).has_value();
  }
  driver_bench(const driver_bench&) = delete;

  constexpr bool add(std::uint64_t token, std::uint32_t buffers = 1) {
    std::array<buffer, 8> all{};
    for (buffer& b : all) b = {0x1000 * token, 16};
    return queue.add({}, std::span<const buffer>(all).first(buffers), token).has_value();
  }
  constexpr bool offer(std::uint64_t token, std::uint32_t buffers = 1) {
    const bool is_added = add(token, buffers);
    queue.publish();
    return is_added;
  }
  constexpr void give_back(std::uint32_t n, std::uint32_t length = 0) {
    device.give_back(static_cast<std::uint32_t>(device.available_entry(n % 8)), length);
  }
  constexpr bool pops(std::uint64_t token) {
    const auto used = queue.pop_used();
    return used && used->token == token;
  }

  bool started = false;
};

/// Two chains in flight (tokens 2 and 3, of 1 and 2 buffers), others went back before, and the
/// device has given 2 back.
template <class Bench> constexpr bool lives(Bench& b) {
  const bool is_done = b.offer(1) && b.offer(2) && b.offer(3, 2);
  b.give_back(0);
  const bool is_back = b.pops(1);
  b.give_back(1, 5);
  return is_done && is_back;
}

TEST_CASE("RT-36 RT-6 a driver's state is plain values, and is taken up after chains went back") {
  for (const bool is_in_order : {false, true}) {
    CAPTURE(is_in_order);
    const feature_set features = is_in_order ? in_order : no_features;
    driver_bench b(features);
    REQUIRE(lives(b));
    std::array<driver_slot, 8> saved{};
    CHECK(b.queue.save(std::span(saved).first(7)).error() == error::buffer_too_small);
    CHECK(b.add(9));
    CHECK(b.queue.save(saved).error() == error::wrong_state); // staged
    b.queue.publish();
    const auto state = b.queue.save(saved);
    REQUIRE(state.has_value());
    CHECK(state->version == 1);
    CHECK(state->size == 8);
    CHECK(state->next_available == 4);
    CHECK(state->next_used == 1);
    CHECK(state->unasked == 4);
    CHECK(state->cause == error::none);

    std::array<driver_slot, 8> slots{};
    ballast::split_driver<ram_type> fresh(slots);
    CHECK(fresh.save(saved).error() == error::wrong_state);
    const auto done = fresh.restore(b.ram, layout, features, *state, saved);
    CHECK(done.error() == error::none);
    if (!done) continue;
    CHECK(fresh.in_flight() == 3);
    CHECK(fresh.free_descriptors() == 4);
    CHECK(fresh.restore(b.ram, layout, features, *state, saved).error() == error::already_attached);
    const auto used = fresh.pop_used();
    CHECK(used.has_value());
    CHECK(used->token == 2);
    CHECK(used->length == 5);
    CHECK(fresh.notification_data(7) == 0x0004'0007);
    CHECK(fresh.should_notify());
    b.give_back(2);
    b.give_back(3);
    CHECK(fresh.pop_used()->token == 3);
    CHECK(fresh.pop_used()->token == 9);
    CHECK(fresh.free_descriptors() == 8);
  }
}

TEST_CASE("RT-6 a driver is taken up while a chain is out that later ones have passed") {
  driver_bench b;
  REQUIRE(b.offer(1));
  REQUIRE(b.offer(2));
  b.give_back(1);
  REQUIRE(b.pops(2)); // 1 is older and still out
  std::array<driver_slot, 8> saved{}, slots{};
  const auto state = b.queue.save(saved);
  REQUIRE(state.has_value());
  ballast::split_driver<ram_type> fresh(slots);
  CHECK(fresh.restore(b.ram, layout, no_features, *state, saved).error() == error::none);
  b.give_back(0, 3);
  const auto used = fresh.pop_used();
  CHECK(used.has_value());
  CHECK(used->token == 1);
  CHECK(used->length == 3);
}

template <class Corrupt>
constexpr error refused(const feature_set& features, Corrupt&& corrupt,
                        const ballast::queue_layout& at = layout, std::size_t count = 8) {
  driver_bench b(features);
  // No chain went back yet: that is the simplest state there is, and good in any mode.
  if (!b.offer(1) || !b.offer(2, 3) || !b.offer(3, 2)) return error::none;
  std::array<driver_slot, 8> saved{};
  auto state = b.queue.save(saved);
  if (!state) return error::none;
  ballast::split_driver<ram_type> fresh(b.slots); // on the slots of the one that was saved
  b.queue.detach();
  if (!fresh.restore(b.ram, layout, features, *state, saved)) return error::wrong_state;
  fresh.detach();
  corrupt(*state, saved);
  const auto before = b.slots;
  const error why =
      fresh.restore(b.ram, at, features, *state, std::span<const driver_slot>(saved).first(count))
          .error();
  // Nothing changed: it is where it was.
  for (std::size_t i = 0; i < 8; ++i)
    if (before[i].token != b.slots[i].token || before[i].next != b.slots[i].next ||
        before[i].descriptors != b.slots[i].descriptors)
      return error::none;
  if (why != error::none && (fresh.is_attached() || fresh.size() != 8 || fresh.in_flight() != 3 ||
                             fresh.free_descriptors() != 2))
    return error::none;
  if (why != error::none) {
    if (!fresh.attach(b.ram, layout, features)) return error::none;
    b.give_back(0);
    const auto used = fresh.pop_used();
    if (!used || used->token != 1) return error::none;
  }
  return why;
}

constexpr auto driver_corrupted = [](auto check) {
  using state_type = ballast::driver_queue_state;
  using slots_type = std::array<driver_slot, 8>;
  const auto is_invalid = [&](auto corrupt) {
    const auto both = [&](state_type& s, slots_type& t) { corrupt(s, t); };
    check(refused(no_features, both) == error::state_invalid);
    check(refused(in_order, both) == error::state_invalid);
  };
  for (const std::uint32_t version : {0u, 2u, 0xffff'ffffu})
    check(refused(no_features, [&](state_type& s, slots_type&) { s.version = version; }) ==
          error::state_version);
  for (const std::uint32_t size : {0u, 4u, 7u, 16u, 0x8000'0008u, 0xffff'ffffu})
    is_invalid([&](state_type& s, slots_type&) { s.size = size; });
  for (const std::uint16_t index : u16<0, 2, 4, 8, 9, 0xffff>) // 3 chains, so 3
    is_invalid([&](state_type& s, slots_type&) { s.next_available = index; });
  for (const std::uint16_t index : u16<1, 4, 0xffff, 0x8000>)
    is_invalid([&](state_type& s, slots_type&) { s.next_used = index; });
  for (const std::uint16_t cause : u16<3, 999, 0xffff>)
    is_invalid([&](state_type& s, slots_type&) { s.cause = static_cast<error>(cause); });
  // The free list is 6, 7; the chains are 0; 1, 2, 3; 4, 5.
  for (const std::uint16_t free : u16<0, 1, 3, 5, 7, 8, 0xffff>)
    is_invalid([&](state_type& s, slots_type&) { s.first_free = free; });
  for (const std::uint16_t next : u16<0, 2, 6, 8, 0xffff>)
    is_invalid([&](state_type&, slots_type& t) { t[6].next = next; });
  for (const std::uint16_t next : u16<0, 1, 3, 4, 7, 8, 0xffff>)
    is_invalid([&](state_type&, slots_type& t) { t[1].next = next; });
  for (const std::uint16_t last : u16<0, 1, 2, 4, 8, 0xffff>)
    is_invalid([&](state_type&, slots_type& t) { t[1].last = last; });
  for (const std::uint16_t count : u16<0, 1, 2, 4, 8, 9, 0xffff>)
    is_invalid([&](state_type&, slots_type& t) { t[1].descriptors = count; });
  for (const std::uint32_t inner : {2u, 3u, 5u, 6u, 7u})
    is_invalid([&](state_type&, slots_type& t) { t[inner].descriptors = 1; });
  for (const std::uint16_t head : u16<0, 2, 4, 5, 6, 8, 0xffff>) // only in order it says anything
    if (head != 0)
      check(refused(in_order, [&](state_type& s, slots_type&) { s.oldest = head; }) ==
            error::state_invalid);
  for (const std::uint16_t position : u16<0, 2, 3, 9, 0xffff>)
    check(refused(in_order, [&](state_type&, slots_type& t) { t[1].position = position; }) ==
          error::state_invalid);
  // In order the chains lie one behind the other, and the free ones behind the last.
  for (const std::uint16_t next : u16<0, 2, 4, 6, 8, 0xffff>)
    check(refused(in_order, [&](state_type&, slots_type& t) { t[0].next = next; }) ==
          error::state_invalid);
  for (const std::uint16_t next : u16<0, 1, 5, 7, 8, 0xffff>)
    check(refused(in_order, [&](state_type&, slots_type& t) { t[5].next = next; }) ==
          error::state_invalid);
  for (const std::uint16_t end : u16<4, 9, 0xffff>)
    check(refused(in_order, [&](state_type& s, slots_type&) { s.run_end = end; }) ==
          error::state_invalid);
  for (const std::size_t count : {0u, 4u, 7u})
    check(refused(
              no_features, [](state_type&, slots_type&) {}, layout, count) == error::state_invalid);
  auto at = layout;
  at.size = 4;
  check(refused(no_features, [](state_type&, slots_type&) {}, at) == error::state_invalid);
  at = layout;
  at.driver_area += 1;
  check(refused(no_features, [](state_type&, slots_type&) {}, at) == error::misaligned);
  at.driver_area = 0;
  check(refused(no_features, [](state_type&, slots_type&) {}, at) == error::not_guest_memory);
};
BOTH("RT-6 a driver refuses each field of a state that is wrong, and nothing changes",
     driver_corrupted)

constexpr auto driver_empty = [](auto check) {
  // Without a chain any descriptor can be the first free one, but in order it is the oldest too.
  driver_bench b(in_order);
  std::array<driver_slot, 8> saved{};
  auto state = b.queue.save(saved);
  b.queue.detach();
  check(b.queue.restore(b.ram, layout, in_order, *state, saved).has_value());
  b.queue.detach();
  state->first_free = 3;
  check(b.queue.restore(b.ram, layout, in_order, *state, saved).error() == error::state_invalid);
  state->oldest = 3;
  check(b.queue.restore(b.ram, layout, in_order, *state, saved).has_value());
};
BOTH("RT-6 a driver's state of an empty queue in order", driver_empty)

constexpr auto driver_storage = [](auto check) {
  driver_bench b;
  std::array<driver_slot, 8> saved{};
  const auto state = b.queue.save(saved);
  std::array<driver_slot, 4> few{};
  ballast::split_driver<ram_type> small(few);
  check(small.restore(b.ram, layout, no_features, *state, saved).error() ==
        error::storage_too_small);
  check(!small.is_attached() && small.size() == 0);
};
BOTH("RT-6 a driver with fewer slots than the state refuses it", driver_storage)

TEST_CASE("RT-6 a driver survives every corrupted byte of a state: refused, or sound") {
  driver_bench b(in_order);
  REQUIRE(b.offer(1));
  REQUIRE(b.offer(2, 3));
  std::array<driver_slot, 8> saved{};
  const auto state = b.queue.save(saved);
  std::uint32_t taken = 0;
  for (std::size_t i = 0; i < 8; ++i)
    for (std::uint32_t bit = 0; bit < 16; ++bit)
      for (int field = 0; field < 4; ++field)
        for (const feature_set& features : {no_features, in_order}) {
          auto wrong = saved;
          driver_slot& s = wrong[i];
          if (field == 3) {
            s.position ^= 1u << bit; // its low 16 bits count
          } else if (field == 2) {
            s.descriptors ^= 1u << bit;
          } else {
            std::uint16_t& word = field == 0 ? s.next : s.last;
            word = static_cast<std::uint16_t>(word ^ (1u << bit));
          }
          std::array<driver_slot, 8> slots{};
          ballast::split_driver<ram_type> queue(slots);
          ram_type ram = b.ram;
          const auto done = queue.restore(ram, layout, features, *state, wrong);
          if (!done) {
            CHECK(done.error() == error::state_invalid);
            continue;
          }
          ++taken;
          // Sound: as many chains fit as there are free descriptors, each token comes back once.
          const std::uint32_t free = queue.free_descriptors();
          const buffer one[] = {{0, 1}};
          for (std::uint32_t n = 0; n < free; ++n) CHECK(queue.add(one, {}, 100 + n).has_value());
          CHECK(queue.add(one, {}, 0).error() == error::queue_full);
          std::uint32_t tokens = 0;
          queue.drain([&](std::uint64_t) { ++tokens; });
          CHECK(tokens == free + 2);
        }
  CHECK(taken > 0);
}

TEST_CASE("RT-25 a driver saved after a whole round of the index still owes its notification") {
  for (const std::uint32_t chains : {1u, 0xffffu, 0x1'0000u}) {
    CAPTURE(chains);
    driver_bench b(feature_set{ballast::feature::event_idx, ballast::feature::in_order});
    for (std::uint32_t i = 0; i < chains; ++i) {
      REQUIRE(b.offer(i));
      b.give_back(i);
      REQUIRE(b.pops(i));
    }
    b.device.available_event(static_cast<std::uint16_t>(chains - 1));
    std::array<driver_slot, 8> saved{};
    const auto state = b.queue.save(saved);
    b.queue.detach();
    REQUIRE(b.queue
                .restore(b.ram, layout,
                         feature_set{ballast::feature::event_idx, ballast::feature::in_order},
                         *state, saved)
                .has_value());
    CHECK(b.queue.should_notify());
  }
}

// ---- driver: drain, notification data

constexpr auto drains = [](auto check) {
  for (const bool is_broken : {false, true}) {
    driver_bench b(no_features, 0xfffd);
    check(b.offer(1) && b.offer(2, 3) && b.offer(3) && b.add(4, 2)); // 4 is staged
    b.device.give_back(static_cast<std::uint32_t>(b.device.available_entry(0xfffd % 8)), 0);
    check(b.pops(1));
    b.device.give_back(static_cast<std::uint32_t>(b.device.available_entry(0xffff % 8)), 0);
    if (is_broken) {
      b.device.used_index(0x100);
      check(b.queue.pop_used().error() == error::used_index_jump);
    }
    // 3 was given back but not popped: nobody has it yet, so it comes here.
    std::uint32_t seen = 0;
    const auto before = b.ram;
    b.queue.drain([&](std::uint64_t token) {
      check((seen >> token & 1) == 0);
      seen |= 1u << token;
      check(!b.add(9)); // the queue is not there any more
    });
    check(seen == 0b11100);
    check(!b.queue.is_attached() && b.queue.in_flight() == 0 && b.queue.size() == 0);
    check(b.queue.free_descriptors() == 0 && b.queue.pop_used().error() == error::not_attached);
    b.queue.drain([&](std::uint64_t) { check(false); });
    auto copy = before;
    for (std::size_t i = 0; i < b.ram.size(); ++i) check(copy.bytes()[i] == b.ram.bytes()[i]);
    check(b.queue.attach(b.ram, layout, no_features).error() == error::invalid_queue_size);
    std::array<driver_slot, 8> saved{};
    check(b.queue.save(saved).error() == error::wrong_state);
    check(b.queue.start(b.ram, layout, no_features).has_value());
    check(b.queue.free_descriptors() == 8 && b.add(7, 8));
    std::uint32_t again = 0;
    b.queue.detach(); // detached, as a device that is gone
    b.queue.drain([&](std::uint64_t token) { again += token == 7; });
    check(again == 1);
  }
  std::array<driver_slot, 8> slots{};
  ballast::split_driver<ram_type> never(slots);
  never.drain([&](std::uint64_t) { check(false); });
};
BOTH("RT-8 RT-60 a driver whose queue was reset drains: each token exactly once, staged ones too",
     drains)

constexpr auto notification_data = [](auto check) {
  driver_bench b(no_features, 0xfffe);
  check(b.queue.notification_data(0x1234) == 0xfffe'1234);
  check(b.add(1));
  check(b.queue.notification_data(0) == 0xfffe'0000); // staged: not there yet
  b.queue.publish();
  check(b.queue.notification_data(0xffff) == 0xffff'ffff);
  check(b.offer(2));
  check(b.queue.notification_data(5) == 0x0000'0005); // over the wrap
  check(b.offer(3));
  check(b.queue.notification_data(5) == 0x0001'0005);
};
BOTH("RT-19 notification_data is the index behind what was published, above the queue's id",
     notification_data)

// ---- moved rings

constexpr auto moved_rings = [](auto check) {
  // Each part for itself to another place, while chains are in flight, over and over.
  ballast::array_memory<0x1000> ram(base);
  std::array<driver_slot, 8> slots{};
  ballast::device_queue_storage<8> storage;
  ballast::split_driver<ballast::array_memory<0x1000>> driver(slots);
  ballast::split_device<ballast::array_memory<0x1000>> device(storage);
  ballast::queue_layout at = layout;
  check(driver.start(ram, at, event_index, 0xfff8).has_value());
  check(device.start(ram, at, event_index, 0xfff8).has_value());
  std::uint64_t added = 0, returned = 0;
  for (std::uint32_t round = 0; round < 6; ++round) {
    const auto b = std::array<buffer, 2>{buffer{0x10 * added, 1}, {0x20 * added, 2}};
    for (int n = 0; n < 2; ++n)
      check(driver.add(std::span(b).first(1), std::span(b).subspan(1), added++).has_value());
    driver.publish();
    check(device.consume(1, [](const chain&) { return ballast::used(1); }).has_value());
    const auto held = device.pop_available();
    check(held.has_value());
    driver.detach();
    device.detach();
    const auto move = [&](guest_address& part, std::uint32_t bytes, guest_address to) {
      for (std::uint32_t i = 0; i < bytes; ++i) {
        ram.bytes()[to - base + i] = ram.bytes()[part - base + i];
        ram.bytes()[part - base + i] = std::byte{0xee};
      }
      part = to;
    };
    const guest_address up = base + 0x400 * (1 + round % 2);
    move(at.descriptor_area, 128, up + 0x200);
    move(at.driver_area, 22, up + 0x102);
    move(at.device_area, 70, up + 0x4);
    check(driver.attach(ram, at, event_index).has_value());
    check(device.attach(ram, at, event_index).has_value());
    check(device.push_used(held->id(), 2).has_value());
    device.publish();
    for (int n = 0; n < 2; ++n) {
      const auto used = driver.pop_used();
      check(used && used->token == returned && used->length == returned % 2 + 1);
      ++returned;
    }
  }
  check(driver.free_descriptors() == 8 && device.in_flight() == 0);
};
BOTH("RT-19 driver and device detach and attach with each part of the rings moved", moved_rings)

} // namespace
