// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/in_flight_memory.hpp>

#include <support/check.hpp>

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

// A device dies between any two of its stores, and another goes on: each chain that the driver made
// available comes back exactly once, whatever the order.

namespace {

using namespace ballast;
using namespace ballast::vhost_user;

/// Stores that are still carried out: behind the last one, the process is dead.
struct life {
  std::uint32_t stores_left = UINT32_MAX;
  std::uint32_t stores = 0;
  [[nodiscard]] constexpr bool is_over() const { return stores_left == 0; }
  constexpr bool store() {
    ++stores;
    if (stores_left == 0) return false;
    if (stores_left != UINT32_MAX) --stores_left;
    return true;
  }
};

using ram_type = array_memory<16384>;

/// The memory of a process that may be dead: what it stores then goes nowhere.
class mortal_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(ram_type::window_type window, life& of) noexcept
        : window_(window), life_(&of) {}
    template <wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, order o) const noexcept {
      return window_.template load<T>(offset, o);
    }
    template <wire_integer T> constexpr void store(std::size_t offset, T value, order o) noexcept {
      if (life_->store()) window_.template store<T>(offset, value, o);
    }

   private:
    ram_type::window_type window_;
    life* life_ = nullptr;
  };

  constexpr mortal_memory(ram_type& ram, life& of) noexcept : ram_(&ram), life_(&of) {}
  [[nodiscard]] constexpr result<window_type>
  window(guest_address a, std::uint64_t n, std::size_t alignment, ballast::access k) noexcept {
    const auto w = ram_->window(a, n, alignment, k);
    if (!w) return w.error();
    return window_type(*w, *life_);
  }
  constexpr memory_segment segment(guest_address a, std::uint64_t n, ballast::access k) noexcept {
    return ram_->segment(a, n, k);
  }
  constexpr bool read(guest_address a, std::span<std::byte> to) noexcept {
    return ram_->read(a, to);
  }
  constexpr bool write(guest_address a, std::span<const std::byte> from) noexcept {
    return ram_->write(a, from);
  }
  static constexpr bool good() noexcept { return true; }
  static constexpr void fence() noexcept {}

 private:
  ram_type* ram_;
  life* life_;
};

constexpr std::uint32_t size = 8;
constexpr guest_address ring_at = 0, region_at = 2048, region_bytes = 512, buffers_at = 4096;

using memory_type = in_flight_memory<mortal_memory, mortal_memory::window_type, size>;

/// A driver that counts how often each of its chains came back.
struct counting_driver {
  std::array<driver_slot, size> slots{};
  virtqueue_driver<ram_type> queue{slots};
  std::array<std::uint8_t, 64> returned{};
  std::uint32_t added = 0;
  bool is_broken = false;

  constexpr void add(std::uint32_t buffers) {
    std::array<buffer, 3> parts{};
    for (std::uint32_t i = 0; i < buffers; ++i)
      parts[i] = {buffers_at + 64 * added + 16 * i, 8 + added};
    if (queue.add(std::span(parts).first(buffers), {}, added)) ++added;
    queue.publish();
  }
  constexpr void reclaim() {
    while (true) {
      const auto used = queue.pop_used();
      if (!used) {
        is_broken |= used.error() != error::queue_empty;
        return;
      }
      ++returned[used->token];
    }
  }
  [[nodiscard]] constexpr bool has_each_once() const {
    for (std::uint32_t i = 0; i < returned.size(); ++i)
      if (returned[i] != (i < added ? 1 : 0)) return false;
    return !is_broken;
  }
};

/// The chain's token, which its buffers say.
constexpr std::uint32_t token_of(const chain& c) {
  return static_cast<std::uint32_t>((c.readable()[0].address - buffers_at) / 64);
}
constexpr bool is_whole(const chain& c, std::uint32_t buffers) {
  if (c.readable().size() != buffers) return false;
  for (std::uint32_t i = 0; i < buffers; ++i)
    if (c.readable()[i].address != buffers_at + 64 * token_of(c) + 16 * i ||
        c.readable()[i].length != 8 + token_of(c))
      return false;
  return true;
}
constexpr std::uint32_t buffers_of(std::uint32_t token) { return token % 3 == 2 ? 2 : 1; }

/// One process that serves the queue.
struct serving {
  life alive;
  std::array<memory_type::log_type, 1> logs{};
  device_queue_storage<size> storage{};
  virtqueue_device<memory_type> queue{storage};
  memory_type memory;
  result<device_queue_state> at = error::none;

  constexpr serving(ram_type& ram, const queue_layout& layout, const feature_set& features,
                    std::uint32_t stores_left)
      : alive{stores_left}, memory(mortal_memory(ram, alive), logs) {
    mortal_memory plain(ram, alive);
    const auto region = plain.window(region_at, region_bytes, 64, ballast::access::write);
    at = logs[0].resume(*region, plain, layout, features.test(feature::ring_packed), 0x8000);
    if (at) (void)queue.restore(memory, layout, features, *at, {});
  }
  serving(const serving&) = delete;
  serving& operator=(const serving&) = delete;
};

struct held_chain_of {
  chain_id id;
  std::uint32_t token = 0;
};

/// Pops what there is; false where a chain is not as it was made.
constexpr bool take_all(serving& by, std::array<held_chain_of, size>& held, std::uint32_t& count) {
  while (true) {
    const auto c = by.queue.pop_available();
    if (!c) return c.error() == error::queue_empty;
    if (!is_whole(*c, buffers_of(token_of(*c))) || count == size) return false;
    held[count++] = {c->id(), token_of(*c)};
  }
}

/// Serves for a while, returning chains out of order: every second one first, in batches of two.
constexpr bool serve(serving& by, counting_driver& driver, std::uint32_t rounds) {
  std::array<held_chain_of, size> held{};
  std::uint32_t count = 0;
  for (std::uint32_t round = 0; round < rounds; ++round) {
    if (!take_all(by, held, count)) return false;
    for (std::uint32_t n = 0; n < 2 && count > 1; ++n) {
      const std::uint32_t which = (round + n) % 2 == 0 ? 1 : 0;
      if (!by.queue.push_used(held[which].id, held[which].token)) return false;
      for (std::uint32_t i = which; i + 1 < count; ++i) held[i] = held[i + 1];
      --count;
    }
    by.queue.publish();
    // The driver lives on, whatever became of the device.
    driver.reclaim();
    if (driver.added < 30) driver.add(buffers_of(driver.added));
  }
  return true;
}

constexpr bool finish(serving& by, counting_driver& driver) {
  std::array<held_chain_of, size> held{};
  std::uint32_t count = 0;
  for (int n = 0; n < 4; ++n) {
    if (!take_all(by, held, count)) return false;
    for (; count != 0; --count)
      if (!by.queue.push_used(held[count - 1].id, held[count - 1].token)) return false;
    by.queue.publish();
    driver.reclaim();
  }
  return true;
}

struct outcome {
  bool is_right = false;
  std::uint32_t first_stores = 0; ///< that the first process would have made
  std::uint32_t second_stores = 0;
};

/// Three processes, of which the first two die after so many stores.
constexpr outcome three_lives(bool is_packed, std::uint32_t first, std::uint32_t second,
                              std::uint32_t rounds) {
  outcome done;
  ram_type ram;
  feature_set features{feature::version_1};
  if (is_packed) features.set(feature::ring_packed);
  const queue_layout layout = place_queue(ring_at, size, features).layout;
  counting_driver driver;
  if (!driver.queue.start(ram, layout, features)) return done;
  for (std::uint32_t i = 0; i < 5; ++i) driver.add(buffers_of(i));

  serving one(ram, layout, features, first);
  // What a dead process still sees says nothing.
  if ((!one.at || !serve(one, driver, rounds)) && !one.alive.is_over()) return done;
  done.first_stores = one.alive.stores;
  serving two(ram, layout, features, second);
  if ((!two.at || !serve(two, driver, rounds / 2)) && !two.alive.is_over()) return done;
  done.second_stores = two.alive.stores;
  serving three(ram, layout, features, UINT32_MAX);
  if (!three.at || !finish(three, driver)) return done;
  done.is_right = driver.has_each_once();
  return done;
}

constexpr auto one_death = [](auto check) {
  for (const bool is_packed : {false, true}) {
    check(three_lives(is_packed, 77, 60, 6).is_right);
    check(three_lives(is_packed, UINT32_MAX, UINT32_MAX, 6).is_right);
  }
};
BOTH("two processes that die leave every chain to the third", one_death)

TEST_CASE("a process may die between any two of its stores: each chain comes back exactly once") {
  for (const bool is_packed : {false, true}) {
    const std::uint32_t stores = three_lives(is_packed, UINT32_MAX, UINT32_MAX, 24).first_stores;
    CHECK(stores > 200);
    for (std::uint32_t i = 0; i < stores; ++i) {
      INFO("packed ", is_packed, ", store ", i);
      CHECK(three_lives(is_packed, i, UINT32_MAX, 24).is_right);
    }
  }
}

TEST_CASE("... the next one too, also while it takes up what the first has left") {
  for (const bool is_packed : {false, true})
    for (std::uint32_t first = 20; first < 320; first += 7) {
      const std::uint32_t stores = three_lives(is_packed, first, UINT32_MAX, 12).second_stores;
      for (std::uint32_t i = 0; i < stores; ++i) {
        INFO("packed ", is_packed, ", stores ", first, " and ", i);
        CHECK(three_lives(is_packed, first, i, 12).is_right);
      }
    }
}

constexpr auto logs_are_off = [](auto check) {
  // A memory without a log is the memory.
  ram_type ram;
  life alive;
  std::array<memory_type::log_type, 1> logs{};
  memory_type memory(mortal_memory(ram, alive), logs);
  auto w = memory.window(0, 64, 16, ballast::access::write);
  check(w.has_value());
  w->store<std::uint16_t>(2, 7, order::release);
  check(w->load<std::uint16_t>(2, order::acquire) == 7);
  check(alive.stores == 1);
  check(memory.window(16380, 8, 2, ballast::access::read).error() == error::not_guest_memory);
  check(memory.segment(0, 16, ballast::access::read).size == 16);
  std::byte bytes[2]{};
  check(memory.write(100, bytes) && memory.read(100, bytes) && memory.good());
};
BOTH("without a log it is the memory it is made of", logs_are_off)

static_assert(guest_memory<memory_type>);

} // namespace
