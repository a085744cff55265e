// SPDX-License-Identifier: BSD-3-Clause
// The driver of a packed virtqueue under VIRTIO_F_IN_ORDER, and both sides together.
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include "support/failing_memory.hpp"
#include "support/scripted_packed_device.hpp"

#include <array>

using ballast::buffer;
using ballast::chain;
using ballast::error;
using ballast::feature_set;
using ballast_test::scripted_packed_device;
using event = scripted_packed_device::event;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr ballast::guest_address base = 0x6'0000'0000;
constexpr feature_set in_order{ballast::feature::in_order};
constexpr feature_set in_order_events{ballast::feature::in_order, ballast::feature::event_idx};

constexpr std::uint32_t size = 7;
constexpr ballast::queue_layout layout{size, base + 0x30, base + 0x0c, base + 0x14};
using ram_type = ballast::array_memory<0x100>;

/// A driver's queue of 7 and a scripted device.
template <std::endian E = little> struct driver_bench {
  ram_type ram{base};
  scripted_packed_device device;
  std::array<ballast::driver_slot, size> slots{};
  ballast::packed_driver<ram_type, E> queue{slots};

  constexpr explicit driver_bench(std::uint16_t first = 0, const feature_set& features = in_order)
      : device({ram.bytes(), base, E}, layout, first) {
    started = queue.start(ram, layout, features, first).has_value();
  }
  driver_bench(const driver_bench&) = delete;

  /// Chains of `buffers` writable buffers of 16 bytes each; tokens count on.
  constexpr bool add(std::uint32_t chains, std::uint32_t buffers = 1) {
    std::array<buffer, size> all{};
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
  /// One used descriptor for the next `count` chains, that names the last of them.
  constexpr bool give_back(std::uint32_t length, std::uint32_t count) {
    std::uint32_t descriptors = 0;
    scripted_packed_device::taken last{};
    for (std::uint32_t i = 0; i < count; ++i) {
      last = device.take();
      descriptors += last.descriptors;
      if (last.descriptors == 0) return false;
    }
    device.give_back(last.id, length, descriptors);
    return true;
  }
  constexpr bool pops(std::uint64_t token, std::uint32_t length) {
    const auto used = queue.pop_used();
    return used && used->token == token && used->length == length;
  }

  bool started = false;

 private:
  std::uint64_t next_ = 0;
};

template <std::endian E> constexpr void pops_runs(auto check) {
  for (std::uint16_t first = 0; first < 2 * size; ++first) {
    driver_bench<E> b(first);
    check(b.started && b.offer(5));
    check(b.give_back(9, 3));
    check(b.pops(0, 16) && b.pops(1, 16) && b.pops(2, 9)); // skipped: written in full
    check(b.queue.pop_used().error() == error::queue_empty);
    check(b.queue.in_flight() == 2 && b.queue.free_descriptors() == 5);
    check(b.offer(5) && b.queue.free_descriptors() == 0);
    check(b.give_back(0, 1));
    check(b.give_back(77, 6)); // clamped to what was writable
    check(b.pops(3, 0));
    for (std::uint64_t token = 4; token < 10; ++token) check(b.pops(token, 16));
    check(b.queue.pop_used().error() == error::queue_empty);
    check(b.queue.in_flight() == 0 && b.queue.free_descriptors() == size);
    check(b.device.next_used() == b.device.next_available());
    check(b.offer(1, size)); // all of them are free
  }
}
constexpr auto pops = [](auto check) { pops_runs<little>(check); };
constexpr auto pops_big = [](auto check) { pops_runs<big>(check); };
BOTH("PK-15 RT-19 a used descriptor stands for a batch: those before the last were written in full",
     pops)
BOTH("PK-15 RT-19 the same in a big-endian ring", pops_big)

constexpr auto chains_of_several = [](auto check) {
  // The next used descriptor lies behind all descriptors of the batch, over the end of the ring.
  for (std::uint16_t first = 0; first < 2 * size; ++first) {
    driver_bench<> b(first);
    check(b.add(1, 3) && b.add(1) && b.offer(1, 2)); // tokens 0, 1, 2
    check(b.give_back(5, 2));
    check(b.give_back(31, 1));
    check(b.pops(0, 48) && b.queue.free_descriptors() == 4);
    check(b.pops(1, 5) && b.queue.free_descriptors() == 5);
    check(b.pops(2, 31) && b.queue.free_descriptors() == size);
    const buffer readable[] = {{1, 100}, {2, 100}};
    const buffer writable[] = {{3, 7}};
    check(b.queue.add(readable, writable, 50).has_value()); // skipped: its writable bytes only
    check(b.queue.add(readable, {}, 51).has_value() && b.offer(1));
    check(b.give_back(1, 3));
    check(b.pops(50, 7) && b.pops(51, 0) && b.pops(3, 1));
    check(b.queue.free_descriptors() == size && b.queue.in_flight() == 0);
  }
};
BOTH("PK-14 PK-15 RT-19 a batch of chains of several descriptors is skipped as a whole",
     chains_of_several)

constexpr auto interleaved = [](auto check) {
  // Chains are added and published while a run is taken.
  for (std::uint16_t first = 0; first < 2 * size; ++first) {
    driver_bench<> b(first);
    check(b.offer(4)); // 0 to 3
    check(b.give_back(3, 4));
    check(b.pops(0, 16) && b.pops(1, 16));
    check(b.offer(1, 4)); // 4
    check(b.add(1));      // 5, staged: fills the ring
    check(b.queue.free_descriptors() == 0 && !b.add(1));
    check(b.give_back(9, 1)); // 4 goes back behind the run
    check(b.pops(2, 16));
    check(b.queue.free_descriptors() == 1);
    check(*b.queue.add_each(5, [] { return ballast::single_buffer{{7, 8}, true, 77}; }) == 1);
    check(b.pops(3, 3) && b.pops(4, 9));
    check(b.queue.pop_used().error() == error::queue_empty);
    b.queue.publish();
    check(b.give_back(6, 2));
    check(b.pops(5, 16) && b.pops(77, 6));
    check(b.queue.free_descriptors() == size && b.queue.in_flight() == 0);
  }
};
BOTH("PK-15 RT-19 a run is taken while chains are added, staged and given back behind it",
     interleaved)

constexpr auto reclaims = [](auto check) {
  driver_bench<> b(5, in_order_events);
  check(b.offer(3, 2));
  check(b.give_back(5, 3));
  std::uint64_t seen = 0;
  const auto take = [&](const ballast::used_buffer& used) {
    check(used.token == seen && used.length == (seen == 2 ? 5 : 32));
    ++seen;
  };
  check(*b.queue.reclaim(1, take) == 1); // a budget inside of a run
  check(b.queue.in_flight() == 2 && b.queue.free_descriptors() == 3);
  check(*b.queue.reclaim(0, take) == 0);
  check(b.queue.enable_notifications()); // there are more
  check(b.pops(1, 32));
  ++seen;
  check(b.queue.enable_notifications());
  check(*b.queue.reclaim(9, take) == 1 && seen == 3);
  check(!b.queue.enable_notifications());
  check(b.device.driver_event() == event{(5 + 6) % size, false, 2});
  // Over two runs and into a third.
  check(b.offer(6));
  check(b.give_back(16, 2) && b.give_back(16, 2) && b.give_back(16, 2));
  const auto count = [&](const ballast::used_buffer& used) { check(used.token == seen++); };
  check(*b.queue.reclaim(5, count) == 5 && b.queue.enable_notifications());
  check(*b.queue.reclaim(5, count) == 1 && seen == 9 && !b.queue.enable_notifications());
};
BOTH("RT-9 the driver's budget may end inside of a run; the rest is still there", reclaims)

constexpr auto different_ids = [](auto check) {
  // A chain's id is the entry it begins at: no two chains have the same, however they come back.
  driver_bench<> b(3);
  for (std::uint32_t round = 0; round < 20; ++round) {
    const std::uint32_t count = round % 3 + 1;
    check(b.offer(1, count) && b.offer(1, count));
    const auto one = b.device.take(), two = b.device.take();
    check(one.id != two.id && one.id < size && two.id < size);
    b.device.give_back(two.id, 1, 2 * count);
    check(b.pops(2 * round, 16 * count) && b.pops(2 * round + 1, 1));
  }
};
BOTH("the driver's ids in order are all different while they are in flight", different_ids)

constexpr auto memory_goes = [](auto check) {
  // Lost in the middle of a run: what it stands for is known, so nothing more has to be read.
  using memory_type = ballast_test::failing_memory<ram_type>;
  ram_type ram(base);
  ballast_test::failure_plan plan{.garbage = ~0ull};
  memory_type memory(ram, plan);
  scripted_packed_device device({ram.bytes(), base, little}, layout);
  std::array<ballast::driver_slot, size> slots{};
  ballast::packed_driver<memory_type> queue(slots);
  check(queue.start(memory, layout, in_order).has_value());
  const buffer b[] = {{0, 16}};
  for (std::uint64_t token = 0; token < 3; ++token) check(queue.add({}, b, token).has_value());
  queue.publish();
  (void)device.take();
  device.give_back(device.take().id, 2, 2);
  check(queue.pop_used()->token == 0);
  plan.lose_at = plan.accesses + 1;
  const auto second = queue.pop_used();
  check(second ? second->token == 1 && second->length == 2 : second.error() == error::memory_lost);
  check(queue.pop_used().error() == error::memory_lost);
  check(queue.cause() == error::none && queue.in_flight() == (second ? 1 : 2));
  std::uint32_t drained = 0;
  queue.drain([&](std::uint64_t) { ++drained; });
  check(drained == (second ? 1 : 2));
};
BOTH("RT-14 the driver's memory is lost in the middle of a run", memory_goes)

// ---- hostile devices

/// Tokens 0 to 3 of one descriptor each, of which 0 came back, and a staged one; then `act`. Why
/// the queue then says no.
template <class F> constexpr error hostile(std::uint16_t first, F&& act) {
  driver_bench<> b(first);
  (void)b.offer(4);
  const std::uint32_t ids[] = {b.device.at(first % size).id, b.device.at((first + 1) % size).id,
                               b.device.at((first + 2) % size).id,
                               b.device.at((first + 3) % size).id, (first + 4u) % size};
  b.device.give_back(ids[0], 0);
  if (!b.pops(0, 0)) return error::none;
  (void)b.add(1);
  act(b, ids);
  error why = error::none;
  std::uint32_t popped = 0;
  while (why == error::none && popped < 8) {
    const auto used = b.queue.pop_used();
    popped += used.has_value();
    why = used.error();
  }
  // Broken for good, and nothing was made up.
  if (why != error::queue_empty &&
      (b.queue.cause() != why || b.queue.pop_used().error() != why ||
       b.queue.reclaim(9, [](const ballast::used_buffer&) {}).error() != why ||
       b.queue.enable_notifications()))
    return error::none;
  if (b.queue.in_flight() != 4 - popped) return error::none;
  return why;
}

constexpr auto hostiles = [](auto check) {
  using bench = driver_bench<>;
  for (std::uint16_t first = 0; first < 2 * size; ++first) {
    const auto names = [&](std::uint32_t n) {
      return hostile(first, [&](bench& b, const std::uint32_t* id) { //
        b.device.put_used(id[n], 3, 2);
      });
    };
    check(names(0) == error::used_id_not_in_flight); // a second time
    for (std::uint32_t n : {1u, 2u, 3u}) check(names(n) == error::queue_empty);
    check(names(4) == error::used_id_not_in_flight); // staged
    for (std::uint32_t id : {size, size + 1, 0x8000u, 0xffffu})
      check(hostile(first, [&](bench& b, const std::uint32_t*) { b.device.put_used(id, 3, 2); }) ==
            error::used_id_out_of_range);
    for (std::uint32_t off : {5u, 6u}) // never used
      check(hostile(first, [&](bench& b, const std::uint32_t*) {
              b.device.put_used((first + off) % size, 3, 2);
            }) == error::used_id_not_in_flight);
    // A run, then a descriptor that names a chain of that run once more.
    for (std::uint32_t again : {0u, 1u, 2u, 4u})
      check(hostile(first, [&](bench& b, const std::uint32_t* id) {
              b.device.give_back(id[2], 3, 2);
              b.device.put_used(id[again], 3, 2);
            }) == error::used_id_not_in_flight);
    // Used descriptors inside of a run, where none belong: never looked at.
    check(hostile(first, [&](bench& b, const std::uint32_t* id) {
            b.device.give_back(id[3], 3);
            b.device.give_back(0xffff, 3);
            b.device.give_back(id[1], 3);
          }) == error::queue_empty);
  }
};
BOTH("RT-13 RT-16 RT-21 PK-15 a device that names a wrong chain breaks the driver's queue",
     hostiles)

constexpr auto second_thoughts = [](auto check) {
  // A device that takes back what it said in the middle of a run: what was promised stands.
  driver_bench<> b(4);
  check(b.offer(4));
  check(b.give_back(3, 4));
  check(b.pops(0, 16));
  for (std::uint32_t i = 0; i < size; ++i) b.device.put(i, {~0ull, 0xffff'ffff, 0xffff, 0});
  check(b.pops(1, 16));
  for (std::uint32_t i = 0; i < size; ++i) b.device.put(i, {~0ull, 0xffff'ffff, 0xffff, 0xffff});
  check(b.pops(2, 16) && b.pops(3, 3));
  check(b.queue.in_flight() == 0 && b.queue.cause() == error::none);
};
BOTH("RT-15 RT-21 the driver takes a run as it read it, whatever the device writes then",
     second_thoughts)

constexpr auto drains = [](auto check) {
  // In the middle of a run: every token comes back once all the same.
  driver_bench<> b(5);
  check(b.offer(2) && b.offer(1, 2) && b.add(2));
  check(b.give_back(3, 3));
  check(b.pops(0, 16));
  std::uint64_t seen = 0;
  b.queue.drain([&](std::uint64_t token) {
    check((seen >> token & 1) == 0);
    seen |= std::uint64_t{1} << token;
  });
  check(seen == 0b11110);
  check(b.queue.start(b.ram, layout, in_order).has_value()); // the run is forgotten
  b.device = scripted_packed_device({b.ram.bytes(), base, little}, layout);
  check(b.queue.pop_used().error() == error::queue_empty && b.offer(1));
  check(b.queue.pop_used().error() == error::queue_empty);
  check(b.give_back(1, 1) && b.pops(5, 1));
};
BOTH("RT-8 RT-60 the driver drains inside of a run, each token once, and starts anew", drains)

// ---- saved inside of a run

constexpr auto saves = [](auto check) {
  for (std::uint16_t first = 0; first < 2 * size; ++first)
    for (std::uint32_t before = 0; before < 4; ++before) {
      driver_bench<> b(first);
      check(b.offer(2) && b.offer(1, 2) && b.offer(2)); // tokens 0 to 4, 2 has two buffers
      check(b.give_back(3, 4));                         // a run of 0 to 3
      for (std::uint64_t token = 0; token < before; ++token)
        check(b.pops(token, token == 2 ? 32 : 16));
      std::array<ballast::driver_slot, size> saved{}, slots{};
      const auto state = b.queue.save(saved);
      check(state.has_value());
      const bool is_inside = before != 0;
      check((state->run_end != 0xffff) == is_inside);
      check(!is_inside || (state->run_end == (first + 4u) % size && state->run_length == 3));

      ballast::packed_driver<ram_type> fresh(slots);
      check(fresh.restore(b.ram, layout, in_order, *state, saved).has_value());
      check(fresh.in_flight() == 5 - before);
      check(fresh.enable_notifications());
      for (std::uint64_t token = before; token < 4; ++token) {
        const auto used = fresh.pop_used();
        check(used && used->token == token &&
              used->length == (token == 3   ? 3u
                               : token == 2 ? 32u
                                            : 16u));
      }
      check(fresh.pop_used().error() == error::queue_empty);
      const buffer one[] = {{0, 16}};
      check(fresh.add({}, one, 9).has_value());
      fresh.publish();
      check(b.give_back(8, 2));
      const auto four = fresh.pop_used(), nine = fresh.pop_used();
      check(four && four->token == 4 && four->length == 16);
      check(nine && nine->token == 9 && nine->length == 8);
      check(fresh.free_descriptors() == size && fresh.in_flight() == 0);
    }
};
BOTH("RT-6 RT-36 a driver is saved and taken up inside of a run", saves)

constexpr auto corrupted = [](auto check) {
  driver_bench<> b(5);
  check(b.offer(2) && b.offer(1, 2) && b.offer(1)); // at 5, 6, 0 and 1, 2
  check(b.give_back(3, 3));
  check(b.pops(0, 16));
  std::array<ballast::driver_slot, size> saved{};
  const auto good = b.queue.save(saved);
  check(good.has_value() && good->run_end == 0);
  b.queue.detach();
  const auto restore = [&](auto corrupt) {
    auto state = *good;
    auto slots = saved;
    corrupt(state, slots);
    const error e = b.queue.restore(b.ram, layout, in_order, state, slots).error();
    b.queue.detach();
    return e;
  };
  using state_type = ballast::driver_queue_state;
  using slots_type = std::array<ballast::driver_slot, size>;
  check(restore([](state_type&, slots_type&) {}) == error::none);
  for (std::uint32_t end = 0; end < 0x10000; end += end < 20 ? 1 : 0x1111)
    check(
        restore([&](state_type& s, slots_type&) { s.run_end = static_cast<std::uint16_t>(end); }) ==
        (end == 6 || end == 0 || end == 2 || end == 0xffff ? error::none : error::state_invalid));
  // Chains lie one behind the other, from the next used place to the next available one.
  for (std::uint32_t i = 0; i < size; ++i) {
    const std::uint32_t is = saved[i].descriptors;
    for (const std::uint32_t n : {0u, 1u, 2u, 3u, 4u, 8u, 0xffff'ffffu})
      if (n != is)
        check(restore([&](state_type&, slots_type& t) { t[i].descriptors = n; }) ==
              error::state_invalid);
  }
  check(restore([](state_type&, slots_type& t) { // the sum is right, the place is not
          t[6].descriptors = 0;
          t[5].descriptors = 1;
        }) == error::state_invalid);
  check(restore([](state_type&, slots_type& t) {
          t[6].descriptors = 2;
          t[0].descriptors = 1;
        }) == error::state_invalid);
  // Without a chain there is no run.
  driver_bench<> none;
  const auto empty = none.queue.save(saved);
  none.queue.detach();
  auto state = *empty;
  check(none.queue.restore(none.ram, layout, in_order, state, saved).has_value());
  none.queue.detach();
  state.run_end = 0;
  check(none.queue.restore(none.ram, layout, in_order, state, saved).error() ==
        error::state_invalid);
};
BOTH("RT-6 a driver refuses a run or chains that do not fit together", corrupted)

// ---- both sides: runs as the device makes them

constexpr auto together = [](auto check) {
  // Whatever the lengths and the batches, the driver hears all of them.
  for (std::uint32_t which = 0; which < 16; ++which)
    for (std::uint16_t first = 0; first < 2 * size; first = static_cast<std::uint16_t>(first + 3)) {
      ram_type ram(base);
      std::array<ballast::driver_slot, size> slots{};
      ballast::device_queue_storage<size> storage;
      ballast::packed_driver<ram_type> driver(slots);
      ballast::packed_device<ram_type> device(storage);
      check(driver.start(ram, layout, in_order, first).has_value());
      check(device.start(ram, layout, in_order, first).has_value());
      const buffer b[] = {{0, 10}, {0, 20}};
      std::uint64_t token = 0, returned = 0;
      const auto length = [&](std::uint64_t t) {
        const std::uint32_t full = t % 2 == 0 ? 10 : 30;
        return (which >> t % 4 & 1) != 0 ? full : static_cast<std::uint32_t>(t);
      };
      for (std::uint32_t round = 0; round < 3; ++round) {
        for (std::uint32_t n = 0; n < 4; ++n, ++token)
          check(driver.add({}, std::span<const buffer>(b).first(1 + token % 2), token).has_value());
        driver.publish();
        std::uint64_t served = returned;
        for (const std::uint32_t budget : {round + 1, 4u}) {
          check(
              device.consume(budget, [&](const chain&) { return ballast::used(length(served++)); })
                  .has_value());
          if (round == 1) device.publish();
        }
        device.publish();
        while (const auto used = driver.pop_used()) {
          check(used->token == returned && used->length == length(returned));
          ++returned;
        }
        check(returned == token && driver.free_descriptors() == size);
      }
      check(driver.cause() == error::none && device.cause() == error::none);
    }
};
BOTH("PK-15 both sides: every length arrives, however the device batches", together)

} // namespace
