// SPDX-License-Identifier: BSD-3-Clause
// Packed queues that are saved and restored at every moment; drivers that are saved, drained, reset
// and moved.
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include "support/failing_memory.hpp"
#include "support/queue_life.hpp"
#include "support/scripted_packed_device.hpp"

#include <array>

using ballast::buffer;
using ballast::chain;
using ballast::driver_slot;
using ballast::error;
using ballast::feature_set;
using ballast::guest_address;
using ballast_test::scripted_packed_device;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr guest_address base = 0x6'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set in_order{ballast::feature::in_order};

/// Numbers to go through, without a cast each.
template <std::uint16_t... n> constexpr std::array<std::uint16_t, sizeof...(n)> u16{n...};

constexpr std::uint32_t size = 7;
constexpr ballast::queue_layout layout{size, base + 0x30, base + 0x0c, base + 0x14};
using ram_type = ballast::array_memory<0x30 + 16 * size>;

// ---- both sides at every moment of random lives, beside a twin that is not interrupted

template <std::uint32_t N> using life_ram = ballast::array_memory<64 * N + 128 + N * 3 * 16>;

enum class moved : std::uint8_t { driver, device, both };

template <std::uint32_t N, std::endian E = little>
constexpr void twins(auto check, std::uint32_t steps, const feature_set& features, moved which,
                     std::uint64_t seed) {
  life_ram<N> ram(base), twin_ram(base);
  const auto at = ballast::packed::place(base, N);
  const ballast_test::life_plan plan{.features = features,
                                     .layout = at.layout,
                                     .tables = {(at.end + 15) & ~std::uint64_t{15}, 3},
                                     .first_index = static_cast<std::uint16_t>(2 * N - 3 + seed),
                                     .seed = seed};
  using life_type =
      ballast_test::queue_life<N, E, life_ram<N>, life_ram<N>, ballast_test::packed_format>;
  life_type life(ram, ram, plan), twin(twin_ram, twin_ram, plan);
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

constexpr auto short_twins = [](auto check) {
  twins<3>(check, 40, some_features(0), moved::driver, 1);
  twins<5, big>(check, 40, some_features(3), moved::driver, 2);
  twins<3>(check, 40, some_features(7), moved::both, 3);
  twins<5>(check, 40, some_features(4), moved::device, 4);
};
BOTH("RT-6 RT-36 driver and device saved and restored at every moment go on as if nothing happened",
     short_twins)

TEST_CASE("RT-6 driver and device saved at every moment of long random lives, beside a twin") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    for (std::uint64_t seed = 1; seed < 6; ++seed)
      for (const moved which : {moved::driver, moved::device, moved::both}) {
        twins<1>(check, 300, some_features(bits), which, seed);
        twins<3, big>(check, 500, some_features(bits), which, seed);
        twins<7>(check, 1000, some_features(bits), which, seed);
        twins<32, big>(check, 1000, some_features(bits), which, seed);
        twins<100>(check, 600, some_features(bits), which, seed);
      }
}

// ---- driver: state

struct driver_bench {
  ram_type ram{base};
  scripted_packed_device device;
  std::array<driver_slot, size> slots{};
  ballast::packed_driver<ram_type> queue{slots};

  constexpr explicit driver_bench(const feature_set& features = no_features,
                                  std::uint16_t first = 0)
      : device({ram.bytes(), base, little}, layout, first) {
    started = queue.start(ram, layout, features, first).has_value();
  }
  driver_bench(const driver_bench&) = delete;

  constexpr bool add(std::uint64_t token, std::uint32_t buffers = 1) {
    std::array<buffer, size> all{};
    for (buffer& b : all) b = {0x1000 * token, 16};
    return queue.add({}, std::span<const buffer>(all).first(buffers), token).has_value();
  }
  constexpr bool offer(std::uint64_t token, std::uint32_t buffers = 1) {
    const bool is_added = add(token, buffers);
    queue.publish();
    return is_added;
  }
  constexpr void turn_around(std::uint32_t length = 0) { device.give_back(device.take(), length); }
  constexpr bool pops(std::uint64_t token) {
    const auto used = queue.pop_used();
    return used && used->token == token;
  }

  bool started = false;
};

constexpr std::uint16_t place(std::uint32_t entry, bool wrap) {
  return static_cast<std::uint16_t>(entry | (wrap ? 0x8000u : 0u));
}

constexpr auto saves = [](auto check) {
  for (const feature_set& features : {no_features, in_order})
    for (std::uint16_t first = 0; first < 2 * size; ++first) {
      driver_bench b(features, first);
      check(b.offer(1) && b.offer(2, 2) && b.offer(3));
      b.turn_around();
      check(b.pops(1));
      b.turn_around(5); // 2, not popped yet
      std::array<driver_slot, size> saved{};
      check(b.queue.save(std::span(saved).first(size - 1)).error() == error::buffer_too_small);
      check(b.add(9));
      check(b.queue.save(saved).error() == error::wrong_state); // staged
      b.queue.publish();
      const auto state = b.queue.save(saved);
      check(state.has_value() && state->version == 1 && state->is_packed && state->size == size);
      check(state->next_available == place((first + 5) % size, (first + 5) / size % 2 == 0));
      check(state->next_used == place((first + 1) % size, (first + 1) / size % 2 == 0));
      check(state->unasked == 5 && state->cause == error::none && state->run_end == 0xffff);
      b.queue.detach(); // detached it can be saved as well
      check(b.queue.save(saved).has_value());

      std::array<driver_slot, size> slots{};
      ballast::packed_driver<ram_type> fresh(slots);
      check(fresh.save(saved).error() == error::wrong_state); // never started
      check(fresh.restore(b.ram, layout, features, *state, saved).has_value());
      check(fresh.in_flight() == 3 && fresh.free_descriptors() == size - 4);
      check(fresh.restore(b.ram, layout, features, *state, saved).error() ==
            error::already_attached);
      check(fresh.notification_data(7) == (std::uint32_t{state->next_available} << 16 | 7));
      const auto used = fresh.pop_used();
      check(used && used->token == 2 && used->length == 5);
      check(fresh.should_notify());
      check(!fresh.should_notify());
      b.turn_around();
      b.turn_around();
      check(fresh.pop_used()->token == 3 && fresh.pop_used()->token == 9);
      check(fresh.free_descriptors() == size && fresh.in_flight() == 0);
      check(fresh.pop_used().error() == error::queue_empty);
    }
};
BOTH("RT-36 RT-6 PK-2 a driver's state is plain values with the wrap bits, and is taken up again",
     saves)

constexpr auto passed = [](auto check) {
  // A chain is out that later ones have passed.
  for (std::uint16_t first = 0; first < 2 * size; ++first) {
    driver_bench b(no_features, first);
    check(b.offer(1, 3) && b.offer(2));
    const auto one = b.device.take();
    b.turn_around();
    check(b.pops(2));
    std::array<driver_slot, size> saved{}, slots{};
    const auto state = b.queue.save(saved);
    check(state.has_value());
    ballast::packed_driver<ram_type> fresh(slots);
    check(fresh.restore(b.ram, layout, no_features, *state, saved).has_value());
    const buffer four[] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}};
    check(fresh.free_descriptors() == 4 && fresh.add(four, {}, 3).has_value());
    check(fresh.add({}, std::span<const buffer>(four).first(1), 4).error() == error::queue_full);
    b.device.give_back(one, 3); // the new one is staged: it is told from the old one
    const auto used = fresh.pop_used();
    check(used && used->token == 1 && used->length == 3);
    fresh.publish();
    const auto three = b.device.take();
    check(three.descriptors == 4);
    b.device.give_back(three, 0);
    check(fresh.pop_used()->token == 3 && fresh.free_descriptors() == size);
  }
};
BOTH("RT-6 a driver is taken up while a chain is out that later ones have passed", passed)

constexpr auto staged_after = [](auto check) {
  // A restored driver knows what is staged, too.
  for (const feature_set& features : {no_features, in_order}) {
    driver_bench b(features, 5);
    check(b.offer(1) && b.offer(2));
    std::array<driver_slot, size> saved{}, slots{};
    const auto state = b.queue.save(saved);
    ballast::packed_driver<ram_type> fresh(slots);
    check(fresh.restore(b.ram, layout, features, *state, saved).has_value());
    const buffer one[] = {{1, 1}};
    check(fresh.add({}, one, 3).has_value() && fresh.add({}, one, 4).has_value());
    std::uint32_t other = 0; // an id that is staged: neither of the two
    const std::uint32_t a = b.device.take().id, c = b.device.take().id;
    for (std::uint32_t id = 0; id < size; ++id)
      if (slots[id].descriptors != 0 && id != a && id != c) other = id;
    b.device.put_used(other, 0, 0);
    check(fresh.pop_used().error() == error::used_id_not_in_flight);
  }
};
BOTH("RT-13 RT-6 a driver that was restored still knows what is only staged", staged_after)

constexpr auto never_staged = [](auto check) {
  // Chains that were in flight when it was saved are none of those that are staged afterwards,
  // however many went round before.
  for (std::uint32_t rounds = 0; rounds < 12; ++rounds) {
    driver_bench b;
    for (std::uint32_t n = 0; n < rounds; ++n) {
      check(b.offer(100 + n));
      b.turn_around();
      check(b.pops(100 + n));
    }
    check(b.offer(1) && b.offer(2));
    std::array<driver_slot, size> saved{}, slots{};
    const auto state = b.queue.save(saved);
    ballast::packed_driver<ram_type> fresh(slots);
    check(fresh.restore(b.ram, layout, no_features, *state, saved).has_value());
    const buffer one[] = {{1, 1}};
    for (std::uint64_t token = 3; token < 3 + size - 2; ++token)
      check(fresh.add({}, one, token).has_value());
    b.turn_around();
    b.turn_around();
    check(fresh.pop_used()->token == 1 && fresh.pop_used()->token == 2);
    check(fresh.cause() == error::none);
  }
};
BOTH("RT-6 what a driver had in flight when it was saved is not taken for staged", never_staged)

constexpr auto saved_broken = [](auto check) {
  driver_bench b;
  check(b.offer(1));
  b.device.put_used(size, 0, 0);
  check(b.queue.pop_used().error() == error::used_id_out_of_range);
  std::array<driver_slot, size> saved{}, slots{};
  const auto state = b.queue.save(saved);
  check(state && state->cause == error::used_id_out_of_range);
  ballast::packed_driver<ram_type> fresh(slots);
  check(fresh.restore(b.ram, layout, no_features, *state, saved).has_value());
  const buffer one[] = {{1, 1}};
  check(fresh.cause() == error::used_id_out_of_range && fresh.in_flight() == 1);
  check(fresh.pop_used().error() == error::used_id_out_of_range);
  check(fresh.add(one, {}, 2).error() == error::used_id_out_of_range);
  fresh.detach();
  check(fresh.attach(b.ram, layout, no_features).has_value());
  check(fresh.add(one, {}, 2).error() == error::used_id_out_of_range);
  std::uint32_t tokens = 0;
  fresh.drain([&](std::uint64_t token) { tokens += token == 1; });
  check(tokens == 1);
};
BOTH("RT-6 a broken driver is saved and restored broken, and can be drained", saved_broken)

/// What restore says of a corrupted state; `none` also where something changed.
template <class Corrupt>
constexpr error refused(const feature_set& features, Corrupt&& corrupt,
                        const ballast::queue_layout& at = layout, std::size_t count = size) {
  driver_bench b(features, 5);
  // At 5; 6, 0, 1; and 2, 3. Entry 4 is free.
  if (!b.offer(1) || !b.offer(2, 3) || !b.offer(3, 2)) return error::none;
  std::array<driver_slot, size> saved{};
  auto state = b.queue.save(saved);
  if (!state) return error::none;
  b.queue.detach();
  auto& fresh = b.queue; // on the slots of the one that was saved
  if (!fresh.restore(b.ram, layout, features, *state, saved)) return error::wrong_state;
  fresh.detach();
  corrupt(*state, saved);
  const auto before = b.slots;
  const auto bytes = b.ram;
  const error why =
      fresh.restore(b.ram, at, features, *state, std::span<const driver_slot>(saved).first(count))
          .error();
  if (why == error::none) return why;
  // Nothing changed: it is where it was.
  auto copy = bytes;
  for (std::size_t i = 0; i < b.ram.size(); ++i)
    if (copy.bytes()[i] != b.ram.bytes()[i]) return error::none;
  for (std::size_t i = 0; i < size; ++i)
    if (before[i].token != b.slots[i].token || before[i].next != b.slots[i].next ||
        before[i].descriptors != b.slots[i].descriptors ||
        before[i].writable != b.slots[i].writable)
      return error::none;
  if (fresh.is_attached() || fresh.size() != size || fresh.in_flight() != 3 ||
      fresh.free_descriptors() != 1 || fresh.cause() != error::none)
    return error::none;
  if (!fresh.attach(b.ram, layout, features)) return error::none;
  for (const std::uint64_t token : {1u, 2u, 3u}) {
    b.turn_around();
    if (!b.pops(token)) return error::none;
  }
  return why;
}

using state_type = ballast::driver_queue_state;
using slots_type = std::array<driver_slot, size>;

constexpr void corrupts(auto check, const feature_set& features) {
  const auto is_invalid = [&](auto corrupt) {
    check(refused(features, corrupt) == error::state_invalid);
  };
  for (const std::uint32_t version : {0u, 2u, 0xffff'ffffu})
    check(refused(features, [&](state_type& s, slots_type&) { s.version = version; }) ==
          error::state_version);
  is_invalid([](state_type& s, slots_type&) { s.is_packed = false; });
  for (const std::uint32_t wrong : {0u, 4u, 6u, 8u, 32769u, 0x1'0007u, 0xffff'ffffu})
    is_invalid([&](state_type& s, slots_type&) { s.size = wrong; });
  // Six descriptors from entry 5 with wrap counter 1 to entry 4 with wrap counter 0.
  for (const std::uint16_t index : u16<0, 1, 2, 3, 5, 6, 7, 0x7fff, 0xffff, 0x8000, 0x8004, 0x8005>)
    is_invalid([&](state_type& s, slots_type&) { s.next_available = index; });
  for (const std::uint16_t index : u16<0, 4, 5, 6, 7, 0x7fff, 0xffff, 0x8000, 0x8004, 0x8006>)
    is_invalid([&](state_type& s, slots_type&) { s.next_used = index; });
  for (const std::uint32_t unasked : {65537u, 0x1'0001u, 0xffff'ffffu})
    is_invalid([&](state_type& s, slots_type&) { s.unasked = unasked; });
  for (const std::uint16_t cause : u16<1, 2, 3, 999, 0xffff>)
    is_invalid([&](state_type& s, slots_type&) { s.cause = static_cast<error>(cause); });
  for (const std::size_t count : {0u, 1u, 6u})
    check(
        refused(features, [](state_type&, slots_type&) {}, layout, count) == error::state_invalid);
  auto at = layout;
  at.size = 6;
  check(refused(features, [](state_type&, slots_type&) {}, at) == error::state_invalid);
  at = layout;
  at.driver_area += 2;
  check(refused(features, [](state_type&, slots_type&) {}, at) == error::misaligned);
  at.driver_area = 0;
  check(refused(features, [](state_type&, slots_type&) {}, at) == error::not_guest_memory);
}
constexpr auto corrupted = [](auto check) { corrupts(check, no_features); };
BOTH("RT-6 a driver refuses each field of a state that is wrong, and nothing changes", corrupted)
constexpr auto corrupted_in_order = [](auto check) { corrupts(check, in_order); };
BOTH("RT-6 a driver in order refuses each field of a state that is wrong", corrupted_in_order)

constexpr auto corrupted_list = [](auto check) {
  // Without order: ids 0, 1 and 2 are taken, 3 to 6 are the free list.
  for (const std::uint16_t free : u16<0, 1, 2, 4, 7, 0x8003, 0xffff>)
    check(refused(no_features, [&](state_type& s, slots_type&) { s.first_free = free; }) ==
          error::state_invalid);
  for (const std::uint16_t next : u16<0, 2, 3, 4, 6, 7, 0xffff>)
    check(refused(no_features, [&](state_type&, slots_type& t) { t[4].next = next; }) ==
          error::state_invalid);
};
BOTH("RT-6 a driver refuses a free list of a state that does not fit together", corrupted_list)

constexpr auto corrupted_chains = [](auto check) {
  for (std::uint32_t id = 0; id < size; ++id)
    for (const std::uint32_t count : {0u, 1u, 2u, 3u, 8u, 0xffff'ffffu}) {
      const std::uint32_t is = id == 0 ? 1 : id == 1 ? 3 : id == 2 ? 2 : 0;
      if (count == is) continue;
      check(refused(no_features, [&](state_type&, slots_type& t) { t[id].descriptors = count; }) ==
            error::state_invalid);
    }
  for (std::uint32_t id = 0; id < size; ++id) // sums that overflow 32 bits
    check(refused(no_features, [&](state_type&, slots_type& t) {
            t[id].descriptors += 0x8000'0000u;
            t[(id + 1) % size].descriptors += 0x8000'0000u;
          }) == error::state_invalid);
  for (const std::uint16_t end : u16<0, 1, 5, 0x8000>)
    check(refused(no_features, [&](state_type& s, slots_type&) { s.run_end = end; }) ==
          error::state_invalid);
};
BOTH("RT-6 a driver refuses chains of a state that do not fit together", corrupted_chains)

constexpr auto driver_storage = [](auto check) {
  driver_bench b;
  std::array<driver_slot, size> saved{};
  const auto state = b.queue.save(saved);
  std::array<driver_slot, size - 1> few{};
  ballast::packed_driver<ram_type> small(few);
  check(small.restore(b.ram, layout, no_features, *state, saved).error() ==
        error::storage_too_small);
  check(!small.is_attached() && small.size() == 0);
};
BOTH("RT-6 a driver with fewer slots than the state refuses it", driver_storage)

constexpr auto memory_fails = [](auto check) {
  driver_bench b(no_features, 5);
  check(b.offer(1));
  std::array<driver_slot, size> saved{};
  const auto state = b.queue.save(saved);
  using memory_type = ballast_test::failing_memory<ram_type>;
  for (std::uint64_t n = 1;; ++n) {
    ballast_test::failure_plan plan{.fail_at = n, .window_error = error::access_not_allowed};
    memory_type memory(b.ram, plan);
    std::array<driver_slot, size> slots{};
    ballast::packed_driver<memory_type> queue(slots);
    const auto done = queue.restore(memory, layout, no_features, *state, saved);
    if (plan.fallible < n) {
      check(done.has_value() && n == 4);
      break;
    }
    check(done.error() == error::access_not_allowed);
    check(!queue.is_attached() && queue.in_flight() == 0 && queue.size() == 0);
  }
};
BOTH("RT-6 RT-14 a driver whose memory fails during restore is not attached, and says so",
     memory_fails)

TEST_CASE("RT-6 a driver survives every corrupted bit of a state: refused, or sound") {
  std::uint32_t taken = 0;
  for (const feature_set& features : {no_features, in_order}) {
    driver_bench b(features, 5);
    REQUIRE(b.offer(1));
    REQUIRE(b.offer(2, 3));
    std::array<driver_slot, size> saved{};
    const auto state = b.queue.save(saved);
    const auto tries = [&](const ballast::driver_queue_state& s, const slots_type& t) {
      std::array<driver_slot, size> slots{};
      ballast::packed_driver<ram_type> queue(slots);
      ram_type ram = b.ram;
      const auto done = queue.restore(ram, layout, features, s, t);
      if (!done) {
        CHECK((done.error() == error::state_invalid || done.error() == error::state_version));
        return;
      }
      ++taken;
      // Sound: as many chains fit as there are free descriptors, each token comes back once.
      if (queue.cause() != error::none) return;
      const std::uint32_t free = queue.free_descriptors(), before = queue.in_flight();
      CHECK(free <= size);
      const buffer one[] = {{0, 1}};
      for (std::uint32_t n = 0; n < free; ++n) CHECK(queue.add(one, {}, 100 + n).has_value());
      CHECK(queue.add(one, {}, 0).error() == error::queue_full);
      queue.publish();
      std::uint32_t tokens = 0;
      queue.drain([&](std::uint64_t) { ++tokens; });
      CHECK(tokens == free + before);
    };
    for (std::size_t i = 0; i < size; ++i)
      for (std::uint32_t bit = 0; bit < 32; ++bit)
        for (int field = 0; field < 5; ++field) {
          auto wrong = saved;
          driver_slot& s = wrong[i];
          switch (field) {
          case 0: s.next = static_cast<std::uint16_t>(s.next ^ (bit < 16 ? 1u << bit : 1u)); break;
          case 1: s.last = static_cast<std::uint16_t>(s.last ^ (bit < 16 ? 1u << bit : 1u)); break;
          case 2: s.descriptors ^= 1u << bit; break;
          case 3: s.position ^= 1u << bit; break;
          default: s.writable ^= 1u << bit; break;
          }
          tries(*state, wrong);
        }
    for (std::uint32_t bit = 0; bit < 16; ++bit)
      for (int field = 0; field < 8; ++field) {
        auto wrong = *state;
        const auto flip = [&](std::uint16_t& v) {
          v = static_cast<std::uint16_t>(v ^ (1u << bit));
        };
        switch (field) {
        case 0: flip(wrong.next_available); break;
        case 1: flip(wrong.next_used); break;
        case 2: flip(wrong.first_free); break;
        case 3: flip(wrong.oldest); break;
        case 4: flip(wrong.run_end); break;
        case 5: wrong.unasked ^= 1u << bit; break;
        case 6: wrong.size ^= 1u << bit; break;
        default: wrong.version ^= 1u << bit; break;
        }
        tries(wrong, saved);
      }
  }
  CHECK(taken > 100);
}

TEST_CASE("RT-25 a driver saved after whole rounds of the ring still owes its notification") {
  for (const std::uint32_t chains : {1u, 6u, 7u, 8u, 14u, 15u, 0xffffu, 0x1'0000u, 0x2'0001u}) {
    CAPTURE(chains);
    driver_bench b(event_index);
    for (std::uint32_t i = 0; i < chains; ++i) {
      REQUIRE(b.offer(i));
      b.turn_around();
      REQUIRE(b.pops(i));
    }
    const std::uint32_t asked = chains - 1; // the last of them
    b.device.device_event({asked % size, asked / size % 2 == 0, 2});
    std::array<driver_slot, size> saved{};
    const auto state = b.queue.save(saved);
    REQUIRE(state.has_value());
    CHECK(state->unasked == (chains < 0x1'0000 ? chains : 0x1'0000));
    b.queue.detach();
    REQUIRE(b.queue.restore(b.ram, layout, event_index, *state, saved).has_value());
    CHECK(b.queue.should_notify());
    CHECK(!b.queue.should_notify());
  }
}

// ---- driver: drain, reset of the queue

constexpr auto drains = [](auto check) {
  for (const feature_set& features : {no_features, in_order})
    for (const bool is_broken : {false, true}) {
      driver_bench b(features, 4);
      check(b.offer(1) && b.offer(2, 2) && b.offer(3) && b.add(4, 2)); // 4 is staged
      b.turn_around();
      check(b.pops(1));
      b.turn_around(); // 2 was given back and not popped: nobody has it yet, so it comes here
      if (is_broken) {
        b.device.put_used(0x1234, 0, 0);
        check(b.pops(2) && b.queue.pop_used().error() == error::used_id_out_of_range);
      }
      std::uint32_t seen = is_broken ? 0b100 : 0;
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
      b.queue.publish();
      check(!b.queue.should_notify());
      auto copy = before;
      for (std::size_t i = 0; i < b.ram.size(); ++i) check(copy.bytes()[i] == b.ram.bytes()[i]);
      check(b.queue.attach(b.ram, layout, features).error() == error::invalid_queue_size);
      std::array<driver_slot, size> saved{};
      check(b.queue.save(saved).error() == error::wrong_state);

      // Started anew, both wrap counters are 1 again, whatever lies in the ring.
      check(b.queue.start(b.ram, layout, features).has_value());
      check(b.queue.cause() == error::none && b.queue.notification_data(0) == 0x8000'0000);
      check(b.queue.pop_used().error() == error::queue_empty);
      b.device = scripted_packed_device({b.ram.bytes(), base, little}, layout);
      check(b.device.take().descriptors == 0);
      check(b.queue.free_descriptors() == size && b.offer(7, size));
      check(b.device.take().descriptors == size);
      std::uint32_t again = 0;
      b.queue.detach(); // detached, as a device that is gone
      b.queue.drain([&](std::uint64_t token) { again += token == 7; });
      check(again == 1);
    }
  std::array<driver_slot, size> slots{};
  ballast::packed_driver<ram_type> never(slots);
  never.drain([&](std::uint64_t) { check(false); });
};
BOTH("RT-8 RT-60 a driver whose queue was reset drains: each token exactly once, staged ones too",
     drains)

constexpr auto reset = [](auto check) {
  // Both sides reset the queue (RING_RESET) in the middle of everything, over and over, each time
  // at another size.
  ram_type ram(base);
  std::array<driver_slot, size> slots{};
  ballast::device_queue_storage<size> storage;
  ballast::packed_driver<ram_type> driver(slots);
  ballast::packed_device<ram_type> device(storage);
  std::uint64_t added = 0, returned = 0, drained = 0;
  for (std::uint32_t round = 0; round < 12; ++round) {
    auto at = layout;
    at.size = size - round % size;
    check(driver.start(ram, at, event_index).has_value());
    check(device.start(ram, at, event_index).has_value());
    const buffer b[] = {{added, 4}};
    for (std::uint32_t n = 0; n <= round % 5; ++n) added += driver.add({}, b, added).has_value();
    driver.publish();
    check(driver.should_notify());
    const auto done = device.consume(1 + round % 3, [](const chain&) { return ballast::used(4); });
    check(done.has_value());
    const auto held = device.pop_available();
    device.publish();
    if (round % 2 == 0)
      while (driver.pop_used()) ++returned;
    if (driver.add({}, b, added)) ++added; // staged
    device.reset();
    if (held) check(device.push_used(held->id(), 0).error() == error::not_attached);
    driver.drain([&](std::uint64_t) { ++drained; });
    check(added == returned + drained);
  }
  check(returned > 0 && drained > 0);
};
BOTH("RT-60 RT-26 driver and device start anew after each ring reset", reset)

// ---- moved rings

constexpr auto moved_rings = [](auto check) {
  // Each part for itself to another place, while chains are in flight, over and over.
  using big_ram = ballast::array_memory<0x1000>;
  for (const feature_set& features : {event_index, in_order}) {
    big_ram ram(base);
    std::array<driver_slot, size> slots{};
    ballast::device_queue_storage<size> storage;
    ballast::packed_driver<big_ram> driver(slots);
    ballast::packed_device<big_ram> device(storage);
    ballast::queue_layout at = layout;
    check(driver.start(ram, at, features, 11).has_value());
    check(device.start(ram, at, features, 11).has_value());
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
      move(at.descriptor_area, 16 * size, up + 0x210);
      move(at.driver_area, 4, up + 0x10c);
      move(at.device_area, 4, up + 0x4);
      check(driver.attach(ram, at, features).has_value());
      check(device.attach(ram, at, features).has_value());
      check(device.push_used(held->id(), 2).has_value());
      device.publish();
      for (int n = 0; n < 2; ++n) {
        const auto used = driver.pop_used();
        check(used && used->token == returned && used->length == returned % 2 + 1);
        ++returned;
      }
    }
    check(driver.free_descriptors() == size && device.in_flight() == 0);
  }
};
BOTH("RT-19 driver and device detach and attach with each part of the ring moved", moved_rings)

} // namespace
