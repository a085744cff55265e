// SPDX-License-Identifier: BSD-3-Clause
// What the regression list asks of both sides together, or of neither header alone.
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "support/check.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/in_process_transport.hpp>

#include "support/balloon_parts.hpp"
#include "support/scripted_device.hpp"
#include "support/scripted_driver.hpp"

#include <array>
#include <cstdint>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
using ballast::error;
using ballast::feature_set;
using ballast::guest_address;
using ballast_test::ring_places;

namespace {

constexpr std::endian little = std::endian::little;
constexpr guest_address base = 0x3'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr std::uint16_t flag_write = 2;

constexpr ring_places places{8, base + 0x100, base + 0xa2, base + 0x0c};
constexpr ballast::queue_layout layout{8, places.table, places.available, places.used};
using ram_type = ballast::array_memory<0x400>;

// ---- somebody runs inside of an access

/// What runs inside of every access; never inside of itself.
struct nested {
  void (*run)(void*) noexcept = nullptr;
  void* with = nullptr;
  bool* is_inside = nullptr;
  std::uint64_t calls = 0;

  void operator()() noexcept {
    if (run == nullptr || *is_inside) return;
    *is_inside = true;
    ++calls;
    run(with);
    *is_inside = false;
  }
};

/// Another accessor that lets something run before and after each access, as memory does where an
/// access traps. Refers to both.
template <ballast::guest_memory M> class nesting_memory {
 public:
  class window_type {
   public:
    window_type() noexcept = default;
    window_type(ballast::window_of<M> inner, nested* inside) noexcept
        : inner_(inner), inside_(inside) {}

    template <ballast::wire_integer T>
    [[nodiscard]] T load(std::size_t offset, ballast::order o) const noexcept {
      (*inside_)();
      const T value = inner_.template load<T>(offset, o);
      (*inside_)();
      return value;
    }
    template <ballast::wire_integer T>
    void store(std::size_t offset, T value, ballast::order o) noexcept {
      (*inside_)();
      inner_.template store<T>(offset, value, o);
      (*inside_)();
    }

   private:
    ballast::window_of<M> inner_{};
    nested* inside_ = nullptr;
  };

  nesting_memory(M& inner, nested& inside) noexcept : inner_(&inner), inside_(&inside) {}

  [[nodiscard]] ballast::result<window_type> window(guest_address address, std::uint64_t size,
                                                    std::size_t alignment,
                                                    ballast::access kind) noexcept {
    const auto inner = inner_->window(address, size, alignment, kind);
    if (!inner) return inner.error();
    return window_type(*inner, inside_);
  }
  [[nodiscard]] ballast::memory_segment segment(guest_address address, std::uint64_t size,
                                                ballast::access kind) noexcept {
    (*inside_)();
    return inner_->segment(address, size, kind);
  }
  [[nodiscard]] bool read(guest_address address, std::span<std::byte> to) noexcept {
    (*inside_)();
    return inner_->read(address, to);
  }
  [[nodiscard]] bool write(guest_address address, std::span<const std::byte> from) noexcept {
    (*inside_)();
    return inner_->write(address, from);
  }
  [[nodiscard]] bool good() noexcept { return inner_->good(); }
  void fence() noexcept {
    (*inside_)();
    inner_->fence();
  }

 private:
  M* inner_;
  nested* inside_;
};

/// Both sides; each access of one lets the other do all it can.
struct nested_sides {
  using memory_type = nesting_memory<ram_type>;

  ram_type ram{base};
  bool is_inside = false;
  nested at_driver{[](void* s) noexcept { static_cast<nested_sides*>(s)->serve(); }, this,
                   &is_inside};
  nested at_device{[](void* s) noexcept { static_cast<nested_sides*>(s)->send(); }, this,
                   &is_inside};
  memory_type driver_memory{ram, at_driver};
  memory_type device_memory{ram, at_device};
  std::array<ballast::driver_slot, 8> slots{};
  ballast::device_queue_storage<8> storage;
  ballast::split_driver<memory_type> driver{slots};
  ballast::split_device<memory_type> device{storage};
  std::uint64_t added = 0, handled = 0, returned = 0, wrong = 0;

  explicit nested_sides(const feature_set& features) {
    is_inside = true;
    wrong += !driver.start(driver_memory, layout, features).has_value();
    wrong += !device.start(device_memory, layout, features).has_value();
    is_inside = false;
  }
  nested_sides(const nested_sides&) = delete;

  void serve() noexcept {
    (void)device.enable_notifications();
    const auto done = device.consume(3, [&](const chain& c) {
      wrong += c.writable().size() != 1 || c.writable()[0].address != handled;
      ++handled;
      return ballast::used(static_cast<std::uint32_t>(handled % 64));
    });
    wrong += !done.has_value();
    (void)device.publish_and_ask();
  }
  void send() noexcept {
    for (int i = 0; i < 2; ++i) {
      const buffer b[] = {{added, 64}};
      if (!driver.add({}, b, added)) break;
      ++added;
    }
    (void)driver.publish_and_ask();
    while (const auto used = driver.pop_used()) {
      wrong += used->token != returned || used->length != (returned + 1) % 64;
      ++returned;
    }
    (void)driver.enable_notifications();
  }
};

TEST_CASE("RT-7 the driver runs inside of every access of the device, and the other way round") {
  for (const feature_set& features : {no_features, event_index}) {
    nested_sides s(features);
    for (int i = 0; i < 300; ++i) {
      s.send();
      s.serve();
    }
    CHECK(s.wrong == 0);
    CHECK(s.driver.cause() == error::none);
    CHECK(s.device.cause() == error::none);
    CHECK(s.at_driver.calls > 1000);
    CHECK(s.at_device.calls > 1000);
    CHECK(s.returned > 300);
    CHECK(s.added - s.returned == s.driver.in_flight());
  }
}

TEST_CASE(
    "RT-7 a notification out of an access of the device is remembered, and nothing is done twice") {
  // As where a driver's buffer lies on the notification register: the device's copy of it notifies.
  using inner_type = ballast::array_memory<16 * 4096>;
  using memory_type = nesting_memory<inner_type>;
  using device_type = ballast::balloon::device<memory_type, ballast_test::test_host, 8>;
  using transport_type = ballast::in_process_transport<device_type, memory_type>;
  inner_type ram;
  bool is_inside = false;
  nested inside{nullptr, nullptr, &is_inside};
  memory_type memory(ram, inside);
  ballast_test::test_host host;
  device_type device(host);
  transport_type transport(device, memory);
  inside.with = &transport;
  inside.run = [](void* t) noexcept { static_cast<transport_type*>(t)->notify(0); };

  const feature_set accepted{ballast::feature::version_1};
  transport.set_status(1);
  transport.set_status(3);
  transport.set_driver_features(accepted);
  transport.set_status(11);
  std::array<ballast::driver_slot, 8> slots{};
  ballast::split_driver<inner_type> driver(slots);
  for (std::uint16_t q = 0; q < 2; ++q) {
    const auto at = ballast::split::place(q * 0x200u, 8).layout;
    REQUIRE(transport.set_up_queue(q, at).has_value());
    if (q == 0) REQUIRE(driver.start(ram, at, accepted).has_value());
  }
  transport.set_status(15);
  (void)transport.take_actions();
  (void)transport.take_notified();

  const std::array<std::byte, 8> pfns{std::byte{5}, {}, {}, {}, std::byte{9}, {}, {}, {}};
  REQUIRE(ram.write(0x2000, pfns));
  const buffer b[] = {{0x2000, 8}};
  REQUIRE(driver.add(b, {}, 1).has_value());
  driver.publish();
  inside.calls = 0;
  const auto done = transport.process(0, 8);
  CHECK(inside.calls > 3);
  CHECK(done.failure == error::none);
  CHECK(done.notify_queues == 1);
  CHECK(host.discarded == (1u << 5 | 1u << 9));
  CHECK(host.calls == 2);
  CHECK(device.counters().inflated_pages == 2);
  CHECK(transport.take_notified() == 1); // for the loop to look again, later
  CHECK(transport.process(0, 8).notify_queues == 0);
  CHECK(host.calls == 2);
  CHECK(driver.pop_used()->token == 1);
  CHECK(driver.pop_used().error() == error::queue_empty);
}

// ---- single entries of the list

constexpr auto no_bytes = [](auto check) {
  ram_type ram(base);
  ballast_test::scripted_device device({ram.bytes(), base, little}, places);
  std::array<ballast::driver_slot, 8> slots{};
  ballast::split_driver<ram_type> driver(slots);
  check(driver.start(ram, layout, no_features).has_value());
  const buffer none[] = {{0, 0}, {~0ull, 0}, {7, 0}};
  const std::span<const buffer> all(none);
  check(driver.add(all.first(1), {}, 1).has_value() && driver.add({}, all.first(1), 2).has_value());
  check(driver.add(all.first(1), all.subspan(1), 3).has_value());
  check(driver.free_descriptors() == 3);
  driver.publish();
  for (std::uint32_t n = 0; n < 3; ++n) {
    device.give_back(static_cast<std::uint32_t>(device.available_entry(n)), 99);
    const auto used = driver.pop_used();
    check(used && used->token == n + 1 && used->length == 0);
  }
  check(driver.free_descriptors() == 8);
};
BOTH("RT-1 the driver's buffers of no bytes come back, with no bytes whatever was said", no_bytes)

constexpr auto never_more = [](auto check) {
  // Without waiting for any to come back: never more heads than entries, and none twice.
  ram_type ram(base);
  const ballast_test::scripted_device device({ram.bytes(), base, little}, places);
  std::array<ballast::driver_slot, 8> slots{};
  ballast::split_driver<ram_type> driver(slots);
  check(driver.start(ram, layout, no_features).has_value());
  const buffer one[] = {{0, 1}};
  std::uint32_t added = 0;
  for (std::uint32_t i = 0; i < 20; ++i) {
    const auto done = driver.add(one, {}, i);
    added += done.has_value();
    check(done.error() == (i < 8 ? error::none : error::queue_full));
    driver.publish();
  }
  check(added == 8 && driver.in_flight() == 8 && device.available_index() == 8);
  std::uint32_t heads = 0;
  for (std::uint32_t n = 0; n < 8; ++n) heads |= 1u << device.available_entry(n);
  check(heads == 0xff);
};
BOTH("RT-2 the driver never has more heads in flight than the queue has", never_more)

TEST_CASE(
    "RT-10 RT-9 whatever the tables hold, a device's chain has 1 to `size` buffers, or none") {
  std::uint64_t state = 3;
  const auto next = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  };
  std::uint32_t popped = 0, broken = 0, longest = 0;
  for (int life = 0; life < 20'000; ++life) {
    ram_type ram(base);
    ballast_test::raw_words words(ram.bytes(), base, little);
    ballast_test::scripted_driver driver(words, places);
    for (std::uint32_t i = 0; i < 8 + 32; ++i) { // the table of the queue, and tables behind
      const guest_address at = i < 8 ? places.table + 16 * i : base + 0x200 + 16 * (i - 8);
      words.put(at, 8, base + 0x200 + next() % 0x200);
      words.put(at + 8, 4, next() % 4 == 0 ? next() : 16 * (next() % 12));
      words.put(at + 12, 2, next() % 8 & (next() % 4 == 0 ? 7 : next() % 2 == 0 ? 5 : 1));
      words.put(at + 14, 2, next() % 9);
    }
    ballast::device_queue_storage<8> storage;
    ballast::split_device<ram_type> queue(storage);
    REQUIRE(queue.start(ram, layout, feature_set{ballast::feature::indirect_desc}).has_value());
    for (std::uint32_t n = 0; n < 8; ++n) driver.stage(static_cast<std::uint16_t>(n));
    driver.make_available();
    for (int n = 0; n < 9; ++n) {
      const auto c = queue.pop_available();
      if (!c) {
        broken += queue.cause() != error::none;
        CHECK((queue.cause() != error::none) == (c.error() != error::queue_empty));
        break;
      }
      const std::size_t count = c->readable().size() + c->writable().size();
      if (count < 1 || count > 8) FAIL("a chain of ", count);
      longest = count > longest ? static_cast<std::uint32_t>(count) : longest;
      ++popped;
    }
  }
  CHECK(popped > 1000);
  CHECK(broken > 1000);
  CHECK(longest > 4);
}

constexpr auto reset_and_enabled = [](auto check) {
  // RING_RESET: taken, given again elsewhere and of another size, the old chain comes back late.
  ballast::array_memory<0x800> ram(base);
  ballast_test::scripted_driver driver({ram.bytes(), base, little}, places);
  for (std::uint32_t i = 0; i < 8; ++i) driver.descriptor(i, {0x1000 * i, 16, flag_write, 0});
  driver.offer(3);
  ballast::device_queue_storage<8> storage;
  ballast::split_device<ballast::array_memory<0x800>> queue(storage);
  check(queue.start(ram, layout, no_features).has_value());
  const auto old = queue.pop_available();
  check(old.has_value());
  const chain_id id = old->id();

  queue.reset();
  check(queue.push_used(id, 1).error() == error::not_attached);
  const ring_places again{4, base + 0x500, base + 0x4a2, base + 0x40c};
  ballast_test::scripted_driver second({ram.bytes(), base, little}, again);
  second.descriptor(3, {0x3000, 16, flag_write, 0});
  check(queue.start(ram, {4, again.table, again.available, again.used}, no_features).has_value());
  auto before = ram;
  const auto is_untouched = [&] {
    bool is = true;
    for (std::size_t i = 0; i < ram.size(); ++i) is = is && before.bytes()[i] == ram.bytes()[i];
    return is;
  };
  check(queue.push_used(id, 1).error() == error::stale_chain);
  queue.publish();
  check(!queue.should_notify() && is_untouched() && queue.in_flight() == 0);
  // The same head is in flight in the new life: it is not taken for the old one.
  second.offer(3);
  const auto now = queue.pop_available();
  check(now.has_value() && now->id().head == id.head);
  before = ram;
  check(queue.push_used(id, 1).error() == error::stale_chain);
  queue.publish();
  check(is_untouched() && queue.in_flight() == 1 && queue.cause() == error::none);
  check(queue.push_used(now->id(), 1).has_value());
  queue.publish();
  check(second.used_index() == 1 && second.used_id(0) == 3 && driver.used_index() == 0);
};
BOTH("RT-60 a chain of the device's that is returned after a queue reset is stale: nothing touched",
     reset_and_enabled)

} // namespace
