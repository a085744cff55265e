// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/memory/dirty_memory.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>

#include "support/failing_memory.hpp"
#include "support/queue_life.hpp"
#include "support/recording_memory.hpp"

#include <array>
#include <concepts>

using ballast::error;
using ballast::guest_address;
using ballast_test::event_kind;

namespace {

constexpr guest_address base = 0x4'0000'0000;

/// One mark per byte.
template <std::size_t Size> struct byte_log {
  std::array<bool, Size> is_dirty{};
  std::uint32_t calls = 0;
  std::uint32_t outside = 0;

  constexpr void mark(guest_address address, std::uint64_t size) noexcept {
    ++calls;
    for (std::uint64_t i = 0; i < size; ++i)
      if (address + i >= base && address + i - base < Size)
        is_dirty[address + i - base] = true;
      else
        ++outside;
  }
  [[nodiscard]] constexpr std::size_t count() const noexcept {
    std::size_t n = 0;
    for (const bool is : is_dirty) n += is;
    return n;
  }
};

// ---- the concept

struct throwing_log {
  void mark(guest_address, std::uint64_t);
};
struct one_argument {
  void mark(guest_address) noexcept;
};
struct const_log {
  void mark(guest_address, std::uint64_t) const noexcept;
};
struct of_other_words {
  bool mark(long, long) noexcept;
};
static_assert(ballast::dirty_log<byte_log<4>>);
static_assert(ballast::dirty_log<const_log>);
static_assert(ballast::dirty_log<of_other_words>); // what it returns does not matter
static_assert(!ballast::dirty_log<const byte_log<4>>);
static_assert(!ballast::dirty_log<throwing_log>);
static_assert(!ballast::dirty_log<one_argument>);
static_assert(!ballast::dirty_log<int>);

using small_ram = ballast::array_memory<64>;
using small_dirty = ballast::dirty_memory<small_ram, byte_log<64>>;
static_assert(ballast::guest_memory<small_dirty>);
static_assert(ballast::guest_memory<ballast::dirty_memory<small_dirty, byte_log<64>>>);
static_assert(std::copyable<small_dirty>);

// ---- what is marked

constexpr auto marks = [](auto check) {
  small_ram ram(base);
  byte_log<64> log;
  small_dirty memory(ram, log);
  auto window = memory.window(base + 8, 32, 8, ballast::access::write);
  check(window.has_value() && log.calls == 0);
  const auto is_marked = [&](std::size_t from, std::size_t to) {
    bool is = true;
    for (std::size_t i = 0; i < 64; ++i) is = is && log.is_dirty[i] == (i >= from && i < to);
    log.is_dirty = {};
    return is;
  };
  window->store<std::uint16_t>(2, 1, ballast::order::relaxed);
  check(is_marked(10, 12));
  window->store<std::uint32_t>(4, 1, ballast::order::plain);
  check(is_marked(12, 16));
  window->store<std::uint64_t>(24, 0, ballast::order::release); // 0 over 0: written all the same
  check(is_marked(32, 40));
  check(window->load<std::uint16_t>(2, ballast::order::acquire) == 1);
  check(window->load<std::uint32_t>(4, ballast::order::plain) == 1);
  std::byte bytes[3] = {};
  check(memory.read(base, bytes) && is_marked(0, 0));
  check(memory.write(base + 61, bytes) && is_marked(61, 64));
  const auto copy = memory.window(base, 64, 1, ballast::access::write); // over the first
  auto second = *copy;
  second.store<std::uint16_t>(0, 7, ballast::order::plain);
  check(is_marked(0, 2));
  small_dirty same = memory; // copies share the log
  check(same.write(base + 5, bytes) && is_marked(5, 8));
  check(log.outside == 0);
};
BOTH("every store and every copy to memory is marked, with its bytes, and nothing else", marks)

constexpr auto refused = [](auto check) {
  small_ram ram(base);
  byte_log<64> log;
  small_dirty memory(ram, log);
  std::byte bytes[4] = {};
  check(!memory.write(base + 61, bytes) && !memory.write(base - 1, bytes));
  check(memory.write(base, {}) && memory.write(0, {}));
  check(memory.window(base + 1, 8, 2, ballast::access::write).error() == error::misaligned);
  check(memory.window(base + 60, 8, 2, ballast::access::write).error() == error::not_guest_memory);
  const auto piece = memory.segment(base + 60, 100, ballast::access::write);
  check(piece.size == 4 && piece.data == ram.bytes().data() + 60);
  check(memory.good());
  memory.fence();
  check(log.calls == 0); // nothing was written
  ballast_test::failure_plan plan{.lose_at = 1};
  ballast_test::failing_memory<small_ram> lost(ram, plan);
  ballast::dirty_memory<ballast_test::failing_memory<small_ram>, byte_log<64>> gone(lost, log);
  check(!gone.write(base, bytes) && !gone.good() && log.calls == 0);
};
BOTH("RT-14: what is refused marks nothing, nor does a copy of no bytes", refused)

// ---- the whole of an exchange

template <std::uint32_t N> using life_ram = ballast::array_memory<64 * N + 128 + N * 3 * 16>;

/// After each step of a random life: every byte of memory that changed is in the log of the side
/// that may have changed it.
template <std::uint32_t N, std::endian E = std::endian::little>
constexpr void complete(auto check, std::uint32_t steps, const ballast::feature_set& features,
                        std::uint64_t seed) {
  using ram_type = life_ram<N>;
  using log_type = byte_log<sizeof(ram_type)>;
  using memory_type = ballast::dirty_memory<ram_type, log_type>;
  ram_type ram(base), before(base);
  log_type driver_log, device_log;
  memory_type a(ram, driver_log), b(ram, device_log);
  const auto at = ballast::split::place(base, N);
  ballast_test::queue_life<N, E, memory_type, memory_type> life(
      a, b,
      {.features = features,
       .layout = at.layout,
       .tables = {(at.end + 15) & ~std::uint64_t{15}, 3},
       .first_index = 0xfffd,
       .seed = seed});
  const guest_address used = at.layout.device_area;
  std::size_t missing = 0, foreign = 0;
  const auto compare = [&] {
    for (std::size_t i = 0; i < ram.size(); ++i) {
      if (ram.bytes()[i] != before.bytes()[i])
        missing += !driver_log.is_dirty[i] && !device_log.is_dirty[i];
      before.bytes()[i] = ram.bytes()[i];
    }
  };
  compare();
  driver_log = {}; // start writes the used ring too
  device_log = {};
  for (std::uint32_t i = 0; i < steps; ++i) {
    life.step();
    if (i % 16 == 15) compare();
  }
  life.finish();
  compare();
  // Each side writes its own parts only.
  for (std::size_t i = 0; i < ram.size(); ++i) {
    const bool is_used_ring = base + i >= used && base + i < used + 6 + 8 * N;
    foreign += is_used_ring ? driver_log.is_dirty[i] : device_log.is_dirty[i];
  }
  check(life.wrong() == 0 && life.returned() > 0);
  check(missing == 0);
  check(foreign == 0);
  check(driver_log.outside == 0 && device_log.outside == 0);
  check(driver_log.count() > 0 && device_log.count() > 0);
}

constexpr ballast::feature_set features(std::uint32_t bits) {
  ballast::feature_set set;
  if ((bits & 1) != 0) set.set(ballast::feature::event_idx);
  if ((bits & 2) != 0) set.set(ballast::feature::indirect_desc);
  if ((bits & 4) != 0) set.set(ballast::feature::in_order);
  return set;
}

constexpr auto is_complete = [](auto check) { complete<2>(check, 32, features(0), 1); };
BOTH("every byte that an exchange changes is in the log: rings, indices and event words",
     is_complete)
constexpr auto is_complete_big = [](auto check) {
  complete<2, std::endian::big>(check, 32, features(7), 2);
};
BOTH("... with tables, events, in order and big-endian too", is_complete_big)

TEST_CASE("the log is complete over long random exchanges, with tables, events and in order") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    for (std::uint64_t seed = 1; seed < 6; ++seed) {
      complete<1>(check, 400, features(bits), seed);
      complete<8>(check, 1000, features(bits), seed);
      complete<16, std::endian::big>(check, 1000, features(bits), seed);
    }
}

// ---- in which order

/// Enters marks beside the accesses, so that the order of both can be seen.
template <std::size_t Capacity> struct ordered_log {
  ballast_test::event_log<Capacity>* events = nullptr;

  constexpr void mark(guest_address address, std::uint64_t size) noexcept {
    events->add({.kind = event_kind::mark, .address = address, .size = size});
  }
};

constexpr auto ordered = [](auto check) {
  constexpr std::uint32_t N = 4;
  using ram_type = ballast::array_memory<0x400>;
  using recorded = ballast_test::recording_memory<ram_type, 300>;
  ram_type ram(base);
  ballast_test::event_log<300> events;
  recorded inner(ram, events);
  ordered_log<300> log{&events};
  using memory_type = ballast::dirty_memory<recorded, ordered_log<300>>;
  memory_type memory(inner, log);

  const auto layout = ballast::split::place(base, N).layout;
  std::array<ballast::driver_slot, N> slots{};
  ballast::device_queue_storage<N> storage;
  ballast::split_driver<memory_type> driver(slots);
  ballast::split_device<memory_type> device(storage);
  check(driver.start(memory, layout, {}).has_value());
  check(device.start(memory, layout, {}).has_value());
  const ballast::buffer buffers[] = {{base + 0x200, 16}, {base + 0x300, 16}};
  check(driver.add({}, buffers, 1).has_value());
  driver.publish();
  events.clear();
  const std::array<std::byte, 16> payload{std::byte{1}};
  check(device
            .consume(4,
                     [&](const ballast::chain& c) {
                       for (const ballast::buffer& b : c.writable())
                         check(memory.write(b.address, payload));
                       return ballast::used(32);
                     })
            .has_value());
  device.publish();
  check(events.lost() == 0);

  // Nothing is written without a mark that covers it, behind it; and before the used index is
  // stored everything else is marked.
  const guest_address index = layout.device_area + 2;
  const std::size_t published = events.find(event_kind::store, index);
  check(published != events.npos);
  std::size_t writes = 0;
  for (std::size_t i = 0; i < events.size(); ++i) {
    const auto& e = events[i];
    if (e.kind != event_kind::store && e.kind != event_kind::write) continue;
    ++writes;
    const std::size_t mark = events.find(event_kind::mark, e.address, i);
    check(mark != events.npos && events[mark].size == e.size);
    check(i == published || mark < published);
  }
  check(writes == 5); // two payloads, id, length, index
  check(events.find(event_kind::mark, index, published) == published + 1);
};
BOTH("RT-18: whatever an index publishes was written and marked before the index is stored",
     ordered)

constexpr auto seams = [](auto check) {
  // What is written through a segment is the caller's to mark: the log knows nothing of it.
  small_ram ram(base);
  byte_log<64> log;
  small_dirty memory(ram, log);
  const ballast::buffer buffers[] = {{base + 8, 8}};
  check(*ballast::for_each_segment(memory, buffers, ballast::access::write,
                                   [&](const ballast::memory_segment& piece) {
                                     for (std::uint64_t i = 0; i < piece.size; ++i)
                                       piece.data[i] = std::byte{1};
                                   }) == 8);
  check(log.calls == 0);
};
BOTH("what is written through a segment is not marked", seams)

} // namespace
