// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// Both sides of an engine under relacy, each in a thread that goes to sleep whenever it has nothing
// to do. A missing acquire or release is a reported race, a missing fence a deadlock: the other
// side slept through it.
//
//     PROGRAM list [search]                the scenarios, or those that can be searched
//     PROGRAM traps                        the accessor traps what it should
//     PROGRAM random SCHEDULES [NAME...]   random schedules of each scenario
//     PROGRAM search [NAME...]             every schedule of the small ones, within their bounds
//
// One line for each scenario; exit status 1 if one failed, with the schedule on standard error.
//
// What bounds it, besides the sizes: a random schedule's load can give one of the last three values
// of an atomic word, a searched one's one of the last two. A searched schedule takes the processor
// from a thread that could go on at most so many times as its line says.

#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ostream>
#include <streambuf>

#include "relacy_memory.hpp"

namespace relacy_test {

using namespace ballast;
using ballast_test::doorbell;
using ballast_test::memory_map;
using ballast_test::relacy_memory;
using ballast_test::relacy_ram;

inline constexpr std::uint32_t largest_queue = 4;
inline constexpr std::uint32_t most_chains = 8;

// --- what is run

enum class adding {
  one,        ///< `add`, then `publish` and `should_notify` for all
  publishing, ///< `add` and `publish` each, then `should_notify` for all
  each,       ///< `add_each`, of single buffers, then `publish_and_ask`
};
enum class taking {
  batch,    ///< `consume`, then `publish` and `should_notify`
  one,      ///< `consume_one`, then `publish_and_ask`
  popped,   ///< `pop_available` and `push_used`
  kept,     ///< `consume` and keep, then `push_used` in order
  reversed, ///< `consume` and keep, then `push_used` the last one first
};
enum class reclaiming {
  one,   ///< `pop_used`
  batch, ///< `reclaim`
};

struct scenario {
  const char* name;
  feature_set features;
  std::uint32_t size;       ///< of the queue
  std::uint32_t chains;     ///< until both sides are done
  std::uint32_t batch = 1;  ///< chains the driver stages before it publishes, or reclaims at once
  std::uint32_t budget = 8; ///< chains the device takes before it publishes
  adding adds = adding::one;
  taking takes = taking::batch;
  reclaiming reclaims = reclaiming::one;
  std::uint32_t table_entries = 0; ///< of the driver's indirect tables
  bool writes_less = false;        ///< the device fills not every writable buffer
  bool is_searched = false;        ///< every schedule is tried, too
  int preemptions = no_bound;      ///< of a searched schedule, at most

  static constexpr int no_bound = -1;
};

constexpr feature_set flags{feature::version_1};
constexpr feature_set event_index{feature::version_1, feature::event_idx};
constexpr feature_set in_order{feature::version_1, feature::in_order};
constexpr feature_set in_order_event_index{feature::version_1, feature::in_order,
                                           feature::event_idx};
constexpr feature_set indirect{feature::version_1, feature::indirect_desc};
constexpr feature_set indirect_event_index{feature::version_1, feature::indirect_desc,
                                           feature::event_idx};
constexpr feature_set indirect_in_order{feature::version_1, feature::indirect_desc,
                                        feature::in_order};
constexpr feature_set indirect_in_order_event_index{feature::version_1, feature::indirect_desc,
                                                    feature::in_order, feature::event_idx};
constexpr int no_bound = scenario::no_bound;

constexpr scenario small(const char* name, const feature_set& features, std::uint32_t size,
                         std::uint32_t chains, int preemptions, adding adds = adding::one) {
  return {.name = name,
          .features = features,
          .size = size,
          .chains = chains,
          .batch = adds == adding::each ? size : 1,
          .adds = adds,
          .table_entries = features.test(feature::indirect_desc) ? 2u : 0u,
          .is_searched = true,
          .preemptions = preemptions};
}

constexpr scenario scenarios[] = {
    {.name = "flags", .features = flags, .size = 2, .chains = 5},
    {.name = "flags, batches", .features = flags, .size = 4, .chains = 5, .batch = 2, .budget = 1},
    {.name = "EVENT_IDX", .features = event_index, .size = 2, .chains = 5},
    {.name = "EVENT_IDX, batches",
     .features = event_index,
     .size = 4,
     .chains = 5,
     .batch = 2,
     .budget = 1},
    {.name = "EVENT_IDX, several published per notification",
     .features = event_index,
     .size = 4,
     .chains = 5,
     .batch = 2,
     .budget = 2,
     .adds = adding::publishing},
    {.name = "EVENT_IDX, returned out of order",
     .features = event_index,
     .size = 4,
     .chains = 5,
     .batch = 2,
     .takes = taking::reversed},
    {.name = "EVENT_IDX, popped one by one",
     .features = event_index,
     .size = 2,
     .chains = 4,
     .takes = taking::popped},
    {.name = "flags, added, consumed and reclaimed by the batch calls",
     .features = flags,
     .size = 4,
     .chains = 6,
     .batch = 3,
     .adds = adding::each,
     .takes = taking::one,
     .reclaims = reclaiming::batch},
    {.name = "EVENT_IDX, added, consumed and reclaimed by the batch calls",
     .features = event_index,
     .size = 4,
     .chains = 6,
     .batch = 3,
     .adds = adding::each,
     .takes = taking::one,
     .reclaims = reclaiming::batch},
    // One used element stands for a batch; a short one ends it.
    {.name = "IN_ORDER, batches",
     .features = in_order,
     .size = 4,
     .chains = 6,
     .batch = 3,
     .reclaims = reclaiming::batch},
    {.name = "IN_ORDER, short ones end a batch",
     .features = in_order,
     .size = 4,
     .chains = 6,
     .batch = 3,
     .writes_less = true},
    {.name = "IN_ORDER, kept for a while",
     .features = in_order,
     .size = 4,
     .chains = 5,
     .batch = 2,
     .takes = taking::kept},
    {.name = "IN_ORDER, EVENT_IDX", .features = in_order_event_index, .size = 2, .chains = 5},
    {.name = "IN_ORDER, EVENT_IDX, batches",
     .features = in_order_event_index,
     .size = 4,
     .chains = 6,
     .batch = 3,
     .budget = 2,
     .writes_less = true},
    {.name = "IN_ORDER, EVENT_IDX, by the batch calls",
     .features = in_order_event_index,
     .size = 4,
     .chains = 6,
     .batch = 3,
     .adds = adding::each,
     .takes = taking::one,
     .reclaims = reclaiming::batch},
    // Chains of two buffers lie in a table, the others in the ring.
    {.name = "indirect", .features = indirect, .size = 2, .chains = 5, .table_entries = 2},
    {.name = "indirect, EVENT_IDX, returned out of order",
     .features = indirect_event_index,
     .size = 4,
     .chains = 5,
     .batch = 3,
     .takes = taking::reversed,
     .reclaims = reclaiming::batch,
     .table_entries = 3},
    {.name = "indirect, IN_ORDER",
     .features = indirect_in_order,
     .size = 2,
     .chains = 5,
     .batch = 2,
     .table_entries = 2},
    {.name = "indirect, IN_ORDER, EVENT_IDX, batches",
     .features = indirect_in_order_event_index,
     .size = 4,
     .chains = 6,
     .batch = 3,
     .budget = 2,
     .reclaims = reclaiming::batch,
     .table_entries = 2,
     .writes_less = true},
    // No power of two: packed only.
    {.name = "EVENT_IDX, three descriptors, returned out of order",
     .features = event_index,
     .size = 3,
     .chains = 6,
     .batch = 2,
     .takes = taking::reversed},
    {.name = "IN_ORDER, EVENT_IDX, three descriptors, batches",
     .features = in_order_event_index,
     .size = 3,
     .chains = 6,
     .batch = 3,
     .budget = 2,
     .reclaims = reclaiming::batch,
     .writes_less = true},
    // Small enough for every schedule.
    small("flags, one chain", flags, 1, 1, 8),
    small("EVENT_IDX, one chain", event_index, 1, 1, no_bound),
    small("flags, one descriptor", flags, 1, 3, 3),
    small("EVENT_IDX, one descriptor", event_index, 1, 3, 3),
    small("flags, two descriptors", flags, 2, 3, 3),
    small("EVENT_IDX, two descriptors", event_index, 2, 3, 4),
    small("IN_ORDER, two descriptors", in_order, 2, 3, 3, adding::each),
    small("IN_ORDER, EVENT_IDX, two descriptors", in_order_event_index, 2, 3, 4, adding::each),
    small("indirect, two descriptors", indirect, 2, 3, 3),
    small("indirect, IN_ORDER, EVENT_IDX, two descriptors", indirect_in_order_event_index, 2, 3, 3),
};

// Chains of one and of two descriptors, so that descriptors are reused in changing chains.
struct shape {
  bool is_readable;
  bool is_writable;
};
constexpr shape shape_of(const scenario& s, std::uint32_t chain) {
  if (s.size == 1 || s.adds == adding::each) return {chain % 2 == 0, chain % 2 != 0};
  // Where there are tables, two of them at a time.
  if (s.table_entries != 0) return {chain % 4 != 3, chain % 4 != 2};
  return {chain % 3 != 2, chain % 3 != 1};
}

/// How many bytes the device writes to a chain.
constexpr std::uint32_t used_length_of(const scenario& s, std::uint32_t chain) {
  return shape_of(s, chain).is_writable && !(s.writes_less && chain % 3 == 0);
}

// Behind the ring: indirect tables.
inline constexpr guest_address tables = 128;
// Behind them: for each slot a byte that the driver writes and one that the device writes.
inline constexpr guest_address payload = 320;
constexpr guest_address readable_byte(std::uint32_t slot) { return payload + 2 * slot; }
constexpr guest_address writable_byte(std::uint32_t slot) { return payload + 2 * slot + 1; }
constexpr std::uint8_t readable_value(std::uint32_t chain) {
  return static_cast<std::uint8_t>(16 + chain);
}
constexpr std::uint8_t writable_value(std::uint32_t chain) {
  return static_cast<std::uint8_t>(64 + chain);
}

// relacy makes one test object for each schedule and gives it nothing.
inline const scenario* current = nullptr;
inline queue_layout layout;
inline memory_map map;
inline int current_trap = -1;

/// Something that the accessor must trap, and what relacy then says.
struct trap {
  const char* name;
  const char* message;
};

inline constexpr trap table_traps[] = {
    {"half of an indirect table's word", "another width"},
    {"an atomic load of an indirect table's word", "another width, offset or class"},
    {"a copy of half a descriptor of an indirect table", "else than one descriptor"},
    {"a copy of two descriptors of an indirect table", "else than one descriptor"},
    {"a copy across two descriptors of an indirect table", "leaves the payload"},
    {"a copy into an indirect table", "leaves the payload"},
    {"a copy of an indirect table that was never written", "UNINITIALIZED"},
};
inline constexpr int table_trap_count = sizeof table_traps / sizeof table_traps[0];

inline void spring_table(int which, relacy_memory& memory) {
  const auto words = *memory.window(tables, 32, 16, access::write);
  std::byte descriptors[32]{};
  const std::span<std::byte> copied(descriptors);
  switch (which) {
  case 0: (void)words.load<std::uint32_t>(split::descriptor_rest(0), order::plain); break;
  case 1: (void)words.load<std::uint64_t>(0, order::relaxed); break;
  case 2: (void)memory.read(tables, copied.first(8)); break;
  case 3: (void)memory.read(tables, copied); break;
  case 4: (void)memory.read(tables + 8, copied.first(16)); break;
  case 5: (void)memory.write(tables, copied.first(16)); break;
  case 6: (void)memory.read(tables, copied.first(16)); break;
  }
}

// --- one schedule

/// A format: its two engines, where its ring lies and begins, its words, and what is trapped.
template <class Format> struct ring_test : rl::test_suite<ring_test<Format>, 2> {
  using driver_queue = typename Format::driver;
  using device_queue = typename Format::device;

  relacy_ram ram{map};
  relacy_memory driver_memory{ram};
  relacy_memory device_memory{ram};
  driver_slot slots[largest_queue]{};
  device_queue_storage<largest_queue> storage;
  driver_queue driver{slots};
  device_queue device{storage};
  doorbell driver_bell;
  doorbell device_bell;

  // Each side's own.
  std::uint32_t free_slots = 0;         // bits
  std::uint32_t slot_of[most_chains]{}; // of a chain in flight
  bool is_out[most_chains]{};
  std::uint32_t added = 0;
  std::uint32_t returned = 0;
  std::uint32_t served = 0;

  void before() {
    const std::uint16_t first_index = Format::first_index(current->size);
    RL_ASSERT(driver.start(driver_memory, layout, current->features, first_index,
                           indirect_tables{tables, current->table_entries}));
    RL_ASSERT(device.start(device_memory, layout, current->features, first_index));
    free_slots = (1u << current->size) - 1;
  }

  void thread(unsigned side) {
    if (current_trap >= 0) {
      if (side == 0) spring();
    } else if (side == 0) {
      drive();
    } else {
      serve();
    }
  }

  void after() {
    if (current_trap >= 0) return;
    RL_ASSERT(driver.in_flight() == 0 && driver.free_descriptors() == current->size);
    RL_ASSERT(device.in_flight() == 0);
    RL_ASSERT(driver.cause() == error::none && device.cause() == error::none);
  }

  // --- the driver's thread

  void put(guest_address address, std::uint8_t value) {
    const std::byte byte{value};
    RL_ASSERT(driver_memory.write(address, {&byte, 1}));
  }

  struct made_chain {
    buffer readable, writable;
    std::size_t readables, writables;
  };

  /// Makes chain number `added` ready.
  made_chain make() {
    const shape s = shape_of(*current, added);
    const auto slot = static_cast<std::uint32_t>(std::countr_zero(free_slots));
    free_slots &= free_slots - 1;
    slot_of[added] = slot;
    is_out[added] = true;
    if (s.is_readable) put(readable_byte(slot), readable_value(added));
    return {{readable_byte(slot), 1}, {writable_byte(slot), 1}, s.is_readable, s.is_writable};
  }

  [[nodiscard]] bool has_room() const {
    const shape s = shape_of(*current, added);
    const bool is_in_table = s.is_readable && s.is_writable && current->table_entries >= 2;
    const std::uint32_t needed =
        is_in_table ? 1 : std::uint32_t{s.is_readable} + std::uint32_t{s.is_writable};
    return driver.free_descriptors() >= needed;
  }

  /// Stages up to `batch` chains; how many.
  std::uint32_t add() {
    const std::uint32_t left = current->chains - added;
    const std::uint32_t most = current->batch < left ? current->batch : left;
    if (current->adds == adding::each) {
      const auto staged = driver.add_each(most, [&] {
        const made_chain c = make();
        const bool is_writable = c.writables != 0;
        return single_buffer{is_writable ? c.writable : c.readable, is_writable, added++};
      });
      RL_ASSERT(staged);
      return *staged;
    }
    std::uint32_t staged = 0;
    for (; staged != most && has_room(); ++staged) {
      const made_chain c = make();
      RL_ASSERT(driver.add({&c.readable, c.readables}, {&c.writable, c.writables}, added));
      ++added;
      if (current->adds == adding::publishing) driver.publish();
    }
    return staged;
  }

  void notify_device() {
    bool is_wanted = false;
    if (current->adds == adding::each) {
      is_wanted = driver.publish_and_ask();
    } else {
      driver.publish();
      is_wanted = driver.should_notify();
    }
    if (is_wanted) device_bell.ring();
  }

  void check(const used_buffer& used) {
    RL_ASSERT(used.token < added && is_out[used.token]);
    const auto chain = static_cast<std::uint32_t>(used.token);
    if (current->features.test(feature::in_order)) RL_ASSERT(chain == returned);
    is_out[chain] = false;
    RL_ASSERT(used.length == used_length_of(*current, chain));
    if (used.length != 0) {
      std::byte byte{};
      RL_ASSERT(driver_memory.read(writable_byte(slot_of[chain]), {&byte, 1}));
      RL_ASSERT(byte == std::byte{writable_value(chain)});
    }
    free_slots |= 1u << slot_of[chain];
    ++returned;
  }

  /// Whether there was one.
  bool reclaim() {
    if (current->reclaims == reclaiming::batch) {
      const auto done =
          driver.reclaim(current->batch, [&](const used_buffer& used) { check(used); });
      RL_ASSERT(done);
      return *done != 0;
    }
    const auto used = driver.pop_used();
    if (!used) {
      RL_ASSERT(used.error() == error::queue_empty);
      return false;
    }
    check(*used);
    return true;
  }

  void drive() {
    while (returned != current->chains) {
      driver.disable_notifications();
      while (add() != 0) notify_device();
      bool is_idle = true;
      while (reclaim()) is_idle = false;
      if (is_idle && !driver.enable_notifications()) driver_bell.wait();
    }
  }

  // --- the device's thread

  /// How many bytes were written.
  std::uint32_t handle(const chain& c) {
    const shape s = shape_of(*current, served);
    RL_ASSERT(c.readable().size() == s.is_readable && c.writable().size() == s.is_writable);
    std::byte bytes[2]{};
    const auto got = buffer_reader(device_memory, c.readable()).read(bytes);
    RL_ASSERT(got && *got == c.readable().size());
    if (s.is_readable) RL_ASSERT(bytes[0] == std::byte{readable_value(served)});
    const std::uint32_t length = used_length_of(*current, served);
    const std::byte answer{writable_value(served)};
    if (length != 0) RL_ASSERT(device_memory.write(c.writable()[0].address, {&answer, 1}));
    ++served;
    return length;
  }

  struct kept_chain {
    chain_id id;
    std::uint32_t length = 0;
  };

  /// How many chains were served and returned, not yet published.
  std::uint32_t take() {
    const auto serve_at_once = [&](const chain& c) { return used(handle(c)); };
    if (current->takes == taking::popped) {
      const auto popped = device.pop_available();
      if (!popped) {
        RL_ASSERT(popped.error() == error::queue_empty);
        return 0;
      }
      const std::uint32_t length = handle(*popped);
      RL_ASSERT(device.push_used(popped->id(), length));
      return 1;
    }
    if (current->takes == taking::batch || current->takes == taking::one) {
      const auto done = current->takes == taking::one
                            ? device.consume_one(serve_at_once)
                            : device.consume(current->budget, serve_at_once);
      RL_ASSERT(done);
      return done->chains;
    }
    kept_chain kept[largest_queue];
    std::uint32_t count = 0;
    const auto done = device.consume(current->budget, [&](const chain& c) {
      kept[count].id = c.id();
      kept[count++].length = handle(c);
      return keep();
    });
    RL_ASSERT(done);
    for (std::uint32_t i = 0; i != count; ++i) {
      const kept_chain& k = kept[current->takes == taking::reversed ? count - 1 - i : i];
      RL_ASSERT(device.push_used(k.id, k.length));
    }
    return done->chains;
  }

  bool publish() {
    if (current->takes == taking::one) return device.publish_and_ask();
    device.publish();
    return device.should_notify();
  }

  void serve() {
    std::uint32_t done = 0;
    while (done != current->chains) {
      device.disable_notifications();
      const std::uint32_t taken = take();
      done += taken;
      if (publish()) driver_bell.ring();
      if (taken == 0 && !device.enable_notifications()) device_bell.wait();
    }
  }

  void spring() {
    if (current_trap < Format::trap_count)
      Format::spring(current_trap, driver_memory);
    else
      spring_table(current_trap - Format::trap_count, driver_memory);
  }
};

// --- running

/// Keeps what relacy prints, for the case that a schedule fails. A string would be allocated by
/// relacy's operator new.
class kept_output : public std::streambuf {
 public:
  void clear() { setp(text_, text_ + sizeof text_); }
  bool contains(const char* what) {
    const auto length = static_cast<std::size_t>(pptr() - pbase());
    return memmem(text_, length, what, std::strlen(what)) != nullptr;
  }
  void print() const {
    std::fwrite(text_, 1, static_cast<std::size_t>(pptr() - pbase()), stderr);
    std::fflush(stderr);
  }

 private:
  int_type overflow(int_type c) override { return traits_type::not_eof(c); } // drops the rest
  char text_[1 << 20];
};
inline kept_output output;
inline std::ostream output_stream(&output);

template <class Format> void set_up(const scenario& s) {
  current = &s;
  const placement at = Format::place(s.size);
  layout = at.layout;
  map = memory_map();
  Format::add_ring(map, layout);
  map.add_tables(tables, s.size * s.table_entries);
  map.add_payload(payload, 2 * s.size, "payload");
  if (at.end > tables || tables + split::descriptor_table_bytes(s.size * s.table_entries) > payload)
    std::abort();
}

inline rl::test_params parameters() {
  output.clear();
  rl::test_params p;
  p.output_stream = p.progress_stream = &output_stream;
  return p;
}

template <class Format> bool run(const scenario& s, const char* how, rl::test_params p) {
  set_up<Format>(s);
  const auto start = std::chrono::steady_clock::now();
  const bool is_ok = rl::simulate<ring_test<Format>>(p);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  // A search ends behind its last schedule, and so do random schedules.
  const auto schedules = static_cast<unsigned long long>(p.stop_iteration);
  if (is_ok) {
    std::printf("ok   relacy: %s ring, %s: size %u, %u chains: %llu %s, %.1f s\n", Format::name,
                s.name, s.size, s.chains, schedules, how, took.count());
  } else {
    output.print();
    std::printf("FAIL relacy: %s ring, %s: size %u, %u chains: %s in schedule %llu of the %s\n",
                Format::name, s.name, s.size, s.chains, rl::test_result_str(p.test_result),
                schedules, how);
  }
  std::fflush(stdout);
  return is_ok;
}

template <class Format> bool run_random(const scenario& s, unsigned long long schedules) {
  rl::test_params p = parameters();
  p.iteration_count = schedules;
  return run<Format>(s, "random schedules", p);
}

template <class Format> bool search(const scenario& s) {
  rl::test_params p = parameters();
  char how[80] = "schedules (all there are)";
  if (s.preemptions == no_bound) {
    p.search_type = rl::sched_full;
  } else {
    p.search_type = rl::sched_bound;
    p.context_bound = static_cast<unsigned>(s.preemptions);
    std::snprintf(how, sizeof how, "schedules (all with up to %d preemptions)", s.preemptions);
  }
  return run<Format>(s, how, p);
}

template <class Format> bool spring_traps() {
  bool is_ok = true;
  scenario s = scenarios[0];
  s.table_entries = 2;
  set_up<Format>(s);
  const int count = Format::trap_count + table_trap_count;
  for (current_trap = 0; current_trap < count; ++current_trap) {
    const trap& t = current_trap < Format::trap_count
                        ? Format::traps[current_trap]
                        : table_traps[current_trap - Format::trap_count];
    rl::test_params p = parameters();
    p.iteration_count = 1;
    const bool is_trapped = !rl::simulate<ring_test<Format>>(p) && output.contains(t.message);
    if (!is_trapped) output.print();
    std::printf("%s relacy: %s ring: the accessor traps %s%s\n", is_trapped ? "ok  " : "FAIL",
                Format::name, t.name, is_trapped ? "" : ": it does not");
    is_ok = is_ok && is_trapped;
  }
  current_trap = -1;
  return is_ok;
}

template <class Format> int run_program(int count, char** arguments) {
  const auto is = [&](int i, const char* what) {
    return i < count && std::strcmp(arguments[i], what) == 0;
  };
  const bool is_search = is(1, "search"), is_random = is(1, "random") && count > 2;
  const int first_name = is_random ? 3 : 2;
  if (is(1, "traps")) return spring_traps<Format>() ? 0 : 1;
  if (is(1, "list")) {
    for (const scenario& s : scenarios)
      if (Format::is_valid_size(s.size) && (!is(2, "search") || s.is_searched)) std::puts(s.name);
    return 0;
  }
  if (!is_random && !is_search) {
    std::fputs("usage: PROGRAM list [search] | traps | random SCHEDULES [NAME...] | "
               "search [NAME...]\n",
               stderr);
    return 2;
  }
  bool is_any = false;
  for (const scenario& s : scenarios) {
    bool is_asked = count == first_name;
    for (int i = first_name; i < count; ++i) is_asked = is_asked || is(i, s.name);
    if (!is_asked || !Format::is_valid_size(s.size) || (is_search && !s.is_searched)) continue;
    is_any = true;
    if (!(is_search ? search<Format>(s)
                    : run_random<Format>(s, std::strtoull(arguments[2], nullptr, 10))))
      return 1; // the first failure says enough
  }
  if (!is_any) std::fputs("no such scenario\n", stderr);
  return is_any ? 0 : 2;
}

} // namespace relacy_test
