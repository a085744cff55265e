// SPDX-License-Identifier: BSD-3-Clause
// Both sides of a packed virtqueue over the same memory.
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include "support/changing_memory.hpp"
#include "support/checked_memory.hpp"
#include "support/failing_memory.hpp"
#include "support/queue_life.hpp"
#include "support/recording_memory.hpp"
#include "support/tiny_segments.hpp"

#include <array>
#include <memory>

using ballast::buffer;
using ballast::chain;
using ballast::chain_id;
using ballast::error;
using ballast::feature_set;
using ballast::guest_address;

namespace {

constexpr std::endian little = std::endian::little;
constexpr std::endian big = std::endian::big;
constexpr guest_address base = 0x5'0000'0000;
constexpr feature_set no_features{};
constexpr feature_set event_index{ballast::feature::event_idx};
constexpr feature_set in_order{ballast::feature::in_order};
constexpr feature_set in_order_events{ballast::feature::in_order, ballast::feature::event_idx};

/// Ring parts from `base`, then an area of `area_bytes` for each chain in flight.
constexpr std::uint32_t area_bytes = 64;
template <std::uint32_t N> constexpr std::uint32_t ring_bytes = (16 * N + 71) / 64 * 64;
template <std::uint32_t N>
using ram_type = ballast::array_memory<ring_bytes<N> + (N + 1) * area_bytes>;
template <std::uint32_t N> constexpr ballast::queue_layout layout() {
  return ballast::packed::place(base, N).layout;
}

/// What came of an exchange. Equal outcomes: both sides saw the same, in the same order.
struct outcome {
  error driver = error::none; ///< the first error other than empty and full
  error device = error::none;
  std::uint32_t added = 0;
  std::uint32_t handled = 0;  ///< chains the device's handler saw
  std::uint32_t returned = 0; ///< tokens the driver got back
  std::uint32_t in_flight = 0;
  std::uint32_t wrong = 0; ///< tokens twice or unknown, payload that differs
  std::uint64_t facts = 0xcbf2'9ce4'8422'2325;

  constexpr void fact(std::uint64_t v) { facts = (facts ^ v) * 0x100'0000'01b3; }
  friend constexpr bool operator==(const outcome&, const outcome&) noexcept = default;

  /// Whether all of it went right.
  [[nodiscard]] constexpr bool is_clean(std::uint32_t chains) const {
    return driver == error::none && device == error::none && added == chains && handled == chains &&
           returned == chains && in_flight == 0 && wrong == 0;
  }
  /// Whether every chain that was added is accounted for, whatever went wrong.
  [[nodiscard]] constexpr bool is_accounted() const { return added == returned + in_flight; }
};

struct plan {
  std::uint32_t chains = 0;
  std::uint16_t first_index = 0;
  feature_set features{};
  std::uint32_t budget = 1000;
  std::uint32_t keeps = 0; ///< 0: the handler returns all; k: all but each k-th
};

constexpr std::byte request_byte(std::uint32_t number, std::uint32_t i) {
  return i < 4 ? static_cast<std::byte>(number >> (8 * i) & 0xff)
               : static_cast<std::byte>(number * 3 + i * 7);
}
constexpr std::byte reply_byte(std::uint32_t number, std::uint32_t i) {
  return static_cast<std::byte>(number * 5 + i * 11 + 1);
}

/// Sends `p.chains` chains of 1 to N buffers through the queue: each carries a request, which the
/// device checks, and room for a reply, which the driver checks. The driver reaches memory through
/// `a`, the device through `b`. Chains that are kept go back in descending order of their ids.
template <std::uint32_t N, std::endian E, class A, class B>
constexpr outcome exchange(A& a, B& b, const plan& p) {
  outcome o;
  std::array<ballast::driver_slot, N> slots{};
  ballast::device_queue_storage<N> storage;
  ballast::packed_driver<A, E> driver(slots);
  ballast::packed_device<B, E> device(storage);
  o.driver = driver.start(a, layout<N>(), p.features, p.first_index).error();
  if (o.driver == error::none)
    o.device = device.start(b, layout<N>(), p.features, p.first_index).error();
  if (o.driver != error::none || o.device != error::none) return o;

  struct request {
    std::uint32_t number = 0;
    std::uint32_t reply = 0; ///< bytes of room
    bool is_open = false;
  };
  std::array<request, N> requests{}; // by area
  std::array<chain_id, N> kept{};
  std::uint32_t kept_count = 0;

  const auto add = [&] {
    std::uint32_t area = 0;
    while (area < N && requests[area].is_open) ++area;
    if (area == N) return error::queue_full;
    const std::uint32_t count = 1 + o.added % N;
    const std::uint32_t readable = (count + 1) / 2;
    const guest_address at = base + ring_bytes<N> + area * area_bytes;
    // 9 to 13 readable bytes, 4 of them the number, cut differently each time; a reply of 5.
    const std::uint32_t length = 9 + o.added % 5;
    std::array<buffer, N> buffers{};
    std::uint32_t left = length;
    for (std::uint32_t i = 0; i < readable; ++i) {
      const std::uint32_t piece = i + 1 == readable ? left : (o.added + i) % (left + 1);
      buffers[i] = {at + length - left, piece};
      left -= piece;
    }
    const std::uint32_t reply = count > readable ? 5 : 0;
    left = reply;
    for (std::uint32_t i = readable; i < count; ++i) {
      const std::uint32_t piece = i + 1 == count ? left : (o.added + i) % (left + 1);
      buffers[i] = {at + 32 + reply - left, piece};
      left -= piece;
    }
    std::array<std::byte, 16> bytes{};
    for (std::uint32_t i = 0; i < length; ++i) bytes[i] = request_byte(o.added, i);
    if (!a.write(at, std::span(bytes).first(length))) return error::not_guest_memory;
    const auto all = std::span<const buffer>(buffers).first(count);
    // The token names the area; its upper half is there to be kept whole.
    const auto done =
        driver.add(all.first(readable), all.subspan(readable), std::uint64_t{o.added} << 32 | area);
    if (done) requests[area] = {o.added++, reply, true};
    return done.error();
  };

  const auto handle = [&](const chain& c) {
    const std::uint32_t nth = o.handled++;
    ballast::buffer_reader<B> reader(b, c.readable());
    std::array<std::byte, 16> bytes{};
    const auto length = reader.read(bytes);
    o.fact(static_cast<std::uint64_t>(length.error()));
    o.fact(*length);
    std::uint32_t number = 0;
    for (std::uint32_t i = 0; i < 4; ++i) number |= static_cast<std::uint32_t>(bytes[i]) << (8 * i);
    for (std::uint32_t i = 0; i < *length; ++i) {
      o.fact(static_cast<std::uint64_t>(bytes[i]));
      o.wrong += bytes[i] != request_byte(number, i);
    }
    std::uint32_t written = 0;
    for (const buffer& to : c.writable())
      for (std::uint32_t i = 0; i < to.length && written < 8; ++i) {
        const std::byte one[] = {reply_byte(number, written)};
        if (!b.write(to.address + i, one)) break;
        ++written;
      }
    if (p.keeps != 0 && nth % p.keeps == 0 && kept_count < N) {
      kept[kept_count++] = c.id();
      return ballast::keep();
    }
    return ballast::used(p.keeps != 0 ? written + 100 : written); // more than there is: clamped
  };

  const auto serve = [&] {
    const auto done = device.consume(p.budget, handle);
    if (!done && o.device == error::none) o.device = done.error();
    while (kept_count != 0) { // the highest id first
      std::uint32_t highest = 0;
      for (std::uint32_t i = 0; i < kept_count; ++i)
        if (kept[i].head > kept[highest].head) highest = i;
      const auto pushed = device.push_used(kept[highest], 5);
      if (!pushed && o.device == error::none) o.device = pushed.error();
      kept[highest] = kept[--kept_count];
    }
    device.publish();
    o.fact(device.should_notify());
  };

  const auto reclaim = [&] {
    while (true) {
      const auto used = driver.pop_used();
      if (used.error() == error::queue_empty) return;
      if (!used) {
        if (o.driver == error::none) o.driver = used.error();
        return;
      }
      ++o.returned;
      o.fact(used->token);
      o.fact(used->length);
      const auto area = static_cast<std::uint32_t>(used->token);
      if (area >= N || !requests[area].is_open || requests[area].number != used->token >> 32) {
        ++o.wrong;
        continue;
      }
      requests[area].is_open = false;
      o.wrong += used->length > requests[area].reply;
      std::array<std::byte, 5> bytes{};
      if (!a.read(base + ring_bytes<N> + area * area_bytes + 32,
                  std::span(bytes).first(used->length)))
        ++o.wrong;
      for (std::uint32_t i = 0; i < used->length; ++i)
        o.wrong += bytes[i] != reply_byte(requests[area].number, i);
    }
  };

  for (std::uint32_t idle = 0; idle < 2 && o.driver == error::none;) {
    const std::uint32_t before = o.added + o.handled + o.returned;
    // Fill the queue, publish in two halves; then the device, until nothing is left to do.
    for (bool is_full = false; !is_full && o.added < p.chains;) {
      const error e = add();
      is_full = e != error::none;
      if (is_full && e != error::queue_full && o.driver == error::none) o.driver = e;
      if (o.added % 3 == 0) driver.publish();
    }
    driver.publish();
    o.fact(driver.should_notify());
    device.disable_notifications();
    serve();
    o.fact(device.enable_notifications());
    driver.disable_notifications();
    reclaim();
    o.fact(driver.enable_notifications());
    // Twice, since a word that changed may have hidden something the first time.
    idle = o.added + o.handled + o.returned == before ? idle + 1 : 0;
  }
  o.in_flight = driver.in_flight();
  if (driver.free_descriptors() > N || (o.in_flight == 0) != (driver.free_descriptors() == N))
    ++o.wrong;
  return o;
}

template <std::uint32_t N, std::endian E = little> constexpr outcome plain_exchange(const plan& p) {
  ram_type<N> ram(base);
  auto other = &ram;
  return exchange<N, E>(ram, *other, p);
}

// ---- whole exchanges

// Entries, and with them both wrap counters, go round: a queue of N begins at each kind of place.
template <std::uint32_t N, std::endian E> constexpr void over_the_wrap(auto check) {
  for (const feature_set& features : {no_features, in_order_events})
    for (const std::uint32_t first : {0u, N - 1, N, 2 * N - 1, 0xffffu})
      check(
          plain_exchange<N, E>(
              {.chains = 8, .first_index = static_cast<std::uint16_t>(first), .features = features})
              .is_clean(8));
}
constexpr auto wrap_of_1 = [](auto check) { over_the_wrap<1, little>(check); };
constexpr auto wrap_of_2 = [](auto check) { over_the_wrap<2, big>(check); };
constexpr auto wrap_of_3 = [](auto check) { over_the_wrap<3, little>(check); };
constexpr auto wrap_of_3_big = [](auto check) { over_the_wrap<3, big>(check); };
constexpr auto wrap_of_7 = [](auto check) { over_the_wrap<7, little>(check); };
BOTH("PK-2 RT-19 a whole exchange over both wrap counters, queue of 1", wrap_of_1)
BOTH("PK-2 RT-19 a whole exchange over both wrap counters, queue of 2, big-endian", wrap_of_2)
BOTH("PK-2 RT-19 a whole exchange over both wrap counters, queue of 3", wrap_of_3)
BOTH("PK-2 RT-19 a whole exchange over both wrap counters, queue of 3, big-endian", wrap_of_3_big)
BOTH("PK-2 RT-19 a whole exchange over both wrap counters, queue of 7", wrap_of_7)

constexpr auto budgets = [](auto check) {
  for (std::uint32_t budget : {1u, 2u, 3u})
    check(plain_exchange<5>({.chains = 14, .first_index = 65530, .budget = budget}).is_clean(14));
  const outcome none = plain_exchange<5>({.chains = 14, .budget = 0});
  check(none.handled == 0 && none.returned == 0 && none.wrong == 0 && none.is_accounted());
  check(none.in_flight != 0 && none.driver == error::none && none.device == error::none);
};
BOTH("RT-9 whatever the budget, every chain goes through once, and none with a budget of 0",
     budgets)

constexpr auto kept_ones = [](auto check) {
  for (std::uint32_t every : {1u, 2u, 3u})
    check(plain_exchange<5>({.chains = 14, .first_index = 65530, .keeps = every}).is_clean(14));
};
BOTH("RT-8 chains that a handler keeps go back in another order, each once", kept_ones)

template <std::uint32_t N, std::endian E> bool goes_round(std::uint32_t chains) {
  for (const feature_set& features : {no_features, event_index, in_order, in_order_events})
    for (std::uint32_t keeps : {0u, 3u}) {
      if (keeps != 0 && features.test(ballast::feature::in_order)) continue;
      const auto ram = std::make_unique<ram_type<N>>(base);
      if (!exchange<N, E>(*ram, *ram, {.chains = chains, .features = features, .keeps = keeps})
               .is_clean(chains))
        return false;
    }
  return true;
}
TEST_CASE("RT-19 many rounds of rings of all kinds of sizes, every payload checked") {
  CHECK(goes_round<1, little>(20000));
  CHECK(goes_round<2, little>(20000));
  CHECK(goes_round<3, big>(20000));
  CHECK(goes_round<7, little>(20000));
  CHECK(goes_round<16, big>(20000));
  CHECK(goes_round<100, little>(20000));
  CHECK(goes_round<256, little>(20000));
}

TEST_CASE("RT-19 a whole exchange through a queue of 32768") {
  // Chains as long as the exchange makes them would take hours; single ones show the wrap.
  using memory_type = ballast::array_memory<16 * 32768 + 64>;
  const auto ram = std::make_unique<memory_type>(base);
  const auto slots = std::make_unique<std::array<ballast::driver_slot, 32768>>();
  const auto storage = std::make_unique<ballast::device_queue_storage<32768>>();
  for (const feature_set& features : {no_features, in_order_events}) {
    ballast::packed_driver<memory_type> driver(*slots);
    ballast::packed_device<memory_type> device(*storage);
    const auto at = ballast::packed::place(base, 32768).layout;
    REQUIRE(driver.start(*ram, at, features, 32000).has_value());
    REQUIRE(device.start(*ram, at, features, 32000).has_value());
    std::uint64_t added = 0, handled = 0, returned = 0, wrong = 0;
    const std::uint32_t batches[] = {1000, 32768, 32768, 5, 32767, 1};
    for (const std::uint32_t batch : batches) {
      const auto done = driver.add_each(batch, [&] {
        const std::uint64_t t = added++;
        return ballast::single_buffer{{t, static_cast<std::uint32_t>(t)}, t % 3 != 0, t};
      });
      CHECK(*done == batch);
      CHECK(driver.publish_and_ask());
      const auto served = device.consume(40000, [&](const chain& c) {
        const bool is_writable = handled % 3 != 0;
        const auto all = is_writable ? c.writable() : c.readable();
        wrong += all.size() != 1 || all[0] != buffer{handled, static_cast<std::uint32_t>(handled)};
        return ballast::used(static_cast<std::uint32_t>(is_writable ? handled++ : handled++ * 0));
      });
      CHECK(served->chains == batch);
      CHECK(device.publish_and_ask());
      const auto back = driver.reclaim(40000, [&](const ballast::used_buffer& used) {
        wrong += used.token != returned || used.length != (returned % 3 != 0 ? returned : 0);
        ++returned;
      });
      CHECK(*back == batch);
      CHECK(driver.free_descriptors() == 32768);
      (void)driver.enable_notifications();
      (void)device.enable_notifications();
    }
    CHECK(wrong == 0);
    CHECK(returned == 1000 + 32768 + 32768 + 5 + 32767 + 1);
  }
}

constexpr auto any_order = [](auto check) {
  // All orders in which a device can return four chains that it kept.
  for (std::uint32_t order = 0; order < 24; ++order) {
    ram_type<4> ram(base);
    std::array<ballast::driver_slot, 4> slots{};
    ballast::device_queue_storage<4> storage;
    ballast::packed_driver<ram_type<4>> driver(slots);
    ballast::packed_device<ram_type<4>> device(storage);
    check(driver.start(ram, layout<4>(), no_features, 65534).has_value());
    check(device.start(ram, layout<4>(), no_features, 65534).has_value());
    std::array<chain_id, 4> ids{};
    std::uint32_t count = 0;
    for (std::uint32_t token = 0; token < 4; ++token) {
      const buffer b[] = {{0, 100}};
      check(driver.add({}, b, token).has_value());
    }
    driver.publish();
    const auto done = device.consume(4, [&](const chain& c) {
      ids[count++] = c.id();
      return ballast::keep();
    });
    check(done.has_value() && count == 4 && device.in_flight() == 4);
    std::uint32_t left = 4, rest = order;
    std::array<std::uint32_t, 4> tokens{0, 1, 2, 3}, returned{};
    while (left != 0) {
      const std::uint32_t n = rest % left;
      rest /= left;
      check(device.push_used(ids[tokens[n]], tokens[n]).has_value());
      returned[4 - left] = tokens[n];
      for (std::uint32_t i = n; i + 1 < left; ++i) tokens[i] = tokens[i + 1];
      --left;
    }
    device.publish();
    for (std::uint32_t i = 0; i < 4; ++i) {
      const auto used = driver.pop_used();
      check(used.has_value() && used->token == returned[i] && used->length == returned[i]);
    }
    check(driver.free_descriptors() == 4 && device.in_flight() == 0);
    const buffer whole[] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}}; // the free list is whole again
    check(driver.add(whole, {}, 9).has_value());
    driver.publish();
    const auto popped = device.pop_available();
    check(popped.has_value() && popped->readable().size() == 4);
    for (std::uint32_t i = 0; i < 4; ++i) check(popped->readable()[i] == whole[i]);
  }
};
BOTH("RT-8 chains that were kept go back in every order there is", any_order)

// ---- every word as the layout says

/// What `packed::word_at` says of an address.
[[nodiscard]] constexpr auto words_of(const ballast::queue_layout& at) noexcept {
  return [at](guest_address address) noexcept {
    namespace packed = ballast::packed;
    const auto word = [&](packed::part p, guest_address start) {
      return packed::word_at(p, at.size, static_cast<std::uint32_t>(address - start));
    };
    if (address >= at.device_area) return word(packed::part::device_event, at.device_area);
    if (address >= at.driver_area) return word(packed::part::driver_event, at.driver_area);
    return word(packed::part::descriptor_ring, at.descriptor_area);
  };
}

template <std::uint32_t N, std::endian E>
constexpr void words_are_right(auto check, const plan& p) {
  ram_type<N> ram(base);
  ballast_test::access_record<ram_type<N>::size()> record(base);
  ballast_test::checked_memory driver_ram(ram, record), device_ram(ram, record);
  check(exchange<N, E>(driver_ram, device_ram, p).is_clean(p.chains));
  check(!record.fault());
  check(!record.double_fetch());
  check(!record.compare(words_of(layout<N>())));
  check(record.words() == 2 * N + 2); // all there are
}
constexpr auto words = [](auto check) {
  words_are_right<3, little>(check, {.chains = 7, .first_index = 5, .features = in_order_events});
  words_are_right<2, big>(check, {.chains = 5, .first_index = 1});
};
BOTH("PK-1 RT-15 both sides use every word with the width and class of the layout, each once",
     words)

TEST_CASE("PK-1 RT-15 every word of larger rings, over the wrap") {
  const auto check = ballast_test::run_time_check{};
  for (std::uint32_t keeps : {0u, 2u})
    for (const feature_set& features : {no_features, event_index, in_order}) {
      if (keeps != 0 && features.test(ballast::feature::in_order)) continue;
      words_are_right<1, little>(check, {500, 65000, features, 1000, keeps});
      words_are_right<7, big>(check, {3000, 65000, features, 5, keeps});
      words_are_right<64, little>(check, {3000, 65000, features, 50, keeps});
      words_are_right<100, big>(check, {3000, 65000, features, 50, keeps});
    }
}

TEST_CASE("both sides need no pointer into memory and no long segment") {
  ram_type<7> ram(base);
  ballast_test::tiny_segments a(ram, 1, true), b(ram, 3, true);
  CHECK(exchange<7, little>(a, b, {.chains = 100}).is_clean(100));
}

// ---- memory that fails

/// For every access of one side: from it on memory is lost to that side.
template <std::uint32_t N> constexpr void loses_memory(auto check, const plan& p, bool is_driver) {
  for (std::uint64_t n = 1;; ++n) {
    ram_type<N> ram(base);
    ballast_test::failure_plan of_driver{.lose_at = is_driver ? n : 0, .garbage = n * 0x5555};
    ballast_test::failure_plan of_device{.lose_at = is_driver ? 0 : n, .garbage = n * 0x5555};
    ballast_test::failing_memory a(ram, of_driver), b(ram, of_device);
    const outcome o = exchange<N, little>(a, b, p);
    check(o.is_accounted());
    if (!of_driver.is_lost && !of_device.is_lost) {
      check(o.is_clean(p.chains));
      break;
    }
    if (is_driver && o.added == 0) continue; // lost in start: the rings were never initialised
    const error of_it = is_driver ? o.driver : o.device;
    const error of_other = is_driver ? o.device : o.driver;
    // not_guest_memory: the test's own payload write. none: nothing was asked after the loss.
    check(of_it == error::memory_lost || of_it == error::not_guest_memory || of_it == error::none);
    check(of_other == error::none); // a side that falls silent has broken no rule
    check(o.returned <= o.handled && o.handled <= o.added);
  }
}
constexpr auto losses = [](auto check) {
  loses_memory<2>(check, {.chains = 2, .first_index = 3}, true);
  loses_memory<2>(check, {.chains = 2, .first_index = 1, .features = in_order}, false);
};
BOTH("RT-14 whichever access of a side finds memory lost, nothing is made up or broken", losses)

TEST_CASE("RT-14 memory lost at every access of longer exchanges") {
  const auto check = ballast_test::run_time_check{};
  for (const feature_set& features : {no_features, event_index, in_order})
    for (bool is_driver : {false, true}) {
      loses_memory<5>(check, {20, 65530, features, 1000, 0}, is_driver);
      if (features.test(ballast::feature::in_order)) continue;
      loses_memory<5>(check, {20, 65530, features, 2, 2}, is_driver);
    }
}

/// For every window, read and write of both sides: it fails once.
template <std::uint32_t N> constexpr void fails_once(auto check, const plan& p, bool is_driver) {
  for (std::uint64_t n = 1;; ++n) {
    ram_type<N> ram(base);
    ballast_test::failure_plan of_driver{.fail_at = is_driver ? n : 0};
    ballast_test::failure_plan of_device{.fail_at = is_driver ? 0 : n};
    ballast_test::failing_memory a(ram, of_driver), b(ram, of_device);
    const outcome o = exchange<N, little>(a, b, p);
    check(o.is_accounted());
    const std::uint64_t calls = is_driver ? of_driver.fallible : of_device.fallible;
    if (calls < n) {
      check(o.is_clean(p.chains));
      break;
    }
    if (o.driver != error::none || o.device != error::none) {
      // A start that failed, or the driver's own write of a request.
      check(o.driver == error::not_guest_memory || o.device == error::not_guest_memory);
    } else {
      // A payload that could not be read or written is the handler's affair: its chain goes back.
      check(o.added == p.chains && o.returned == p.chains && o.in_flight == 0);
    }
  }
}
constexpr auto failures = [](auto check) {
  fails_once<2>(check, {.chains = 3, .first_index = 65535}, true);
  fails_once<2>(check, {.chains = 3, .first_index = 65535}, false);
};
BOTH("RT-8 RT-14 whichever access fails once, every chain is returned once", failures)

TEST_CASE("RT-8 RT-14 every access of longer exchanges fails once") {
  const auto check = ballast_test::run_time_check{};
  for (std::uint32_t keeps : {0u, 2u})
    for (bool is_driver : {false, true})
      fails_once<7>(check, {40, 65530, event_index, 1000, keeps}, is_driver);
}

// ---- memory that changes

/// How the k-th load of a side sees its word changed.
struct peer_plan {
  std::uint64_t change_load = 0; ///< counting from 1; 0: never
  std::uint64_t mask = 0;
  bool stays = false; ///< the changed word is in memory; otherwise only this load gives it

  std::uint64_t loads = 0;
  guest_address changed_at = 0; ///< until the word is stored again
  bool is_loaded_again = false; ///< by either side, without a store in between
};

/// Memory in front of a peer that writes one word, just before a load, for good or for that load.
template <class M> class peer_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(ballast::window_of<M> inner, guest_address start, peer_plan* mine,
                          peer_plan* other) noexcept
        : inner_(inner), start_(start), mine_(mine), other_(other) {}

    template <ballast::wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, ballast::order o) const noexcept {
      const T value = inner_.template load<T>(offset, o);
      // Both sides write and read these words: the other may be the one that sees the change.
      if (mine_->changed_at == start_ + offset) mine_->is_loaded_again = true;
      if (other_->changed_at == start_ + offset) other_->is_loaded_again = true;
      if (++mine_->loads != mine_->change_load) return value;
      const auto mask = static_cast<T>(mine_->mask); // of the word as the ring has it
      const auto changed = static_cast<T>(value ^ ballast::to_order<little>(mask));
      mine_->changed_at = start_ + offset;
      if (mine_->stays) {
        auto peer = inner_;
        peer.template store<T>(offset, changed, o);
      }
      return changed;
    }

    template <ballast::wire_integer T>
    constexpr void store(std::size_t offset, T value, ballast::order o) noexcept {
      inner_.template store<T>(offset, value, o);
      if (mine_->changed_at == start_ + offset) mine_->changed_at = 0;
      if (other_->changed_at == start_ + offset) other_->changed_at = 0;
    }

   private:
    ballast::window_of<M> inner_{};
    guest_address start_ = 0;
    peer_plan* mine_ = nullptr;
    peer_plan* other_ = nullptr;
  };

  constexpr peer_memory(M& inner, peer_plan& mine, peer_plan& other) noexcept
      : inner_(&inner), mine_(&mine), other_(&other) {}

  [[nodiscard]] constexpr ballast::result<window_type> window(guest_address address,
                                                              std::uint64_t size,
                                                              std::size_t alignment,
                                                              ballast::access kind) noexcept {
    const auto inner = inner_->window(address, size, alignment, kind);
    if (!inner) return inner.error();
    return window_type(*inner, address, mine_, other_);
  }
  [[nodiscard]] constexpr ballast::memory_segment segment(guest_address address, std::uint64_t size,
                                                          ballast::access kind) noexcept {
    return inner_->segment(address, size, kind);
  }
  [[nodiscard]] constexpr bool read(guest_address address, std::span<std::byte> to) noexcept {
    return inner_->read(address, to);
  }
  [[nodiscard]] constexpr bool write(guest_address address,
                                     std::span<const std::byte> from) noexcept {
    return inner_->write(address, from);
  }
  [[nodiscard]] constexpr bool good() noexcept { return inner_->good(); }
  constexpr void fence() noexcept { inner_->fence(); }

 private:
  M* inner_;
  peer_plan* mine_;
  peer_plan* other_;
};

struct changed_run {
  outcome result;
  peer_plan plan; ///< of the side whose load was changed
};

template <std::uint32_t N>
constexpr changed_run run_changed(const plan& p, bool is_driver, const peer_plan& change) {
  ram_type<N> ram(base);
  peer_plan of_driver, of_device;
  (is_driver ? of_driver : of_device) = change;
  peer_memory a(ram, of_driver, of_device), b(ram, of_device, of_driver);
  changed_run r;
  r.result = exchange<N, little>(a, b, p);
  r.plan = is_driver ? of_driver : of_device;
  return r;
}

struct comparison {
  std::uint64_t made = 0;
  std::uint64_t not_made = 0; ///< words that are polled, or that a broken chain visits twice
};

/// For every load of a side, up to `limit`: changed for that one load it must give what it gives
/// changed for good, for only the one load may count.
template <std::uint32_t N>
constexpr comparison changes_once(auto check, const plan& p, bool is_driver, std::uint64_t mask,
                                  std::uint64_t limit) {
  comparison n;
  for (std::uint64_t k = 1; k <= limit; ++k) {
    const peer_plan once{.change_load = k, .mask = mask};
    const peer_plan for_good{.change_load = k, .mask = mask, .stays = true};
    const changed_run a = run_changed<N>(p, is_driver, once);
    if (a.plan.loads < k) break;
    check(a.result.is_accounted() && a.result.in_flight <= N);
    check(a.result.returned <= a.result.added && a.result.handled <= a.result.added + N);
    const changed_run b = run_changed<N>(p, is_driver, for_good);
    check(b.result.is_accounted());
    if (a.plan.is_loaded_again || b.plan.is_loaded_again) {
      ++n.not_made;
    } else {
      ++n.made;
      check(a.result == b.result);
    }
  }
  return n;
}

constexpr auto changes = [](auto check) {
  const plan p{.chains = 2, .first_index = 1};
  check(changes_once<2>(check, p, false, 0x1, 20).made >= 3);
  check(changes_once<2>(check, p, true, 0x1, 20).made >= 2);
};
BOTH("RT-15 a word that changes after its one load changes nothing more", changes)

TEST_CASE("RT-15 every load of longer exchanges sees a change, with several masks") {
  const auto check = ballast_test::run_time_check{};
  for (const feature_set& features : {no_features, event_index})
    for (bool is_driver : {false, true}) {
      comparison sum;
      for (std::uint64_t mask :
           {0x1ull, 0x2ull, 0x3ull, 0x4ull, 0x8000ull, 0xffffull, 0x8000'0000ull, 0x1'0000'0000ull,
            0x2'0000'0000ull, 0x4'0000'0000ull, 0x1'0000'0000'0000ull, 0x8000'0000'0000'0000ull,
            ~0ull})
        for (std::uint32_t keeps : {0u, 2u}) {
          const auto n =
              changes_once<5>(check, {15, 65530, features, 3, keeps}, is_driver, mask, ~0ull);
          sum.made += n.made;
          sum.not_made += n.not_made;
        }
      // A driver loads one word of a chain, a device all of them.
      CHECK(sum.made > (is_driver ? 300 : 1000));
      CHECK(sum.made > sum.not_made / 4);
    }
}

template <std::uint32_t N>
constexpr void rewrites_once_read(auto check, const plan& p, std::uint64_t mask) {
  ram_type<N> ram(base);
  const outcome honest = exchange<N, little>(ram, ram, p);
  check(honest.is_clean(p.chains));
  for (bool is_driver : {false, true}) {
    ram_type<N> other(base);
    ballast_test::change_plan none;
    ballast_test::change_plan all{.mask = mask, .rewrites_words = true, .rewrites_payload = true};
    ballast_test::changing_memory a(other, is_driver ? all : none),
        b(other, is_driver ? none : all);
    check(exchange<N, little>(a, b, p) == honest);
  }
}
constexpr auto rewrites = [](auto check) {
  rewrites_once_read<3>(check, {.chains = 6, .first_index = 5}, ~0ull);
};
BOTH("RT-15 a peer that overwrites every word as soon as it was read changes nothing", rewrites)

TEST_CASE("RT-15 overwritten at once, with several masks") {
  const auto check = ballast_test::run_time_check{};
  for (std::uint64_t mask : {0x1ull, 0x8000ull, 0x7'0000'0000ull, 0x8000'0000'0000'0000ull, ~0ull})
    for (std::uint32_t keeps : {0u, 2u}) {
      rewrites_once_read<5>(check, {200, 65400, no_features, 1000, keeps}, mask);
      rewrites_once_read<16>(check, {200, 65400, event_index, 3, keeps}, mask);
    }
}

// ---- notifications, one call at a time

/// Both sides sleep when they have nothing to do and are woken by should_notify alone. Calls of
/// both take turns at random; true if no chain was left behind by two sleepers.
template <std::uint32_t N>
constexpr bool nobody_oversleeps(const feature_set& features, std::uint64_t seed,
                                 std::uint32_t chains) {
  ram_type<N> ram(base);
  std::array<ballast::driver_slot, N> slots{};
  ballast::device_queue_storage<N> storage;
  ballast::packed_driver<ram_type<N>> driver(slots);
  ballast::packed_device<ram_type<N>> device(storage);
  if (!driver.start(ram, layout<N>(), features, 65530)) return false;
  if (!device.start(ram, layout<N>(), features, 65530)) return false;
  std::uint64_t state = seed;
  const auto coin = [&](std::uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>((state >> 33) % n);
  };
  enum class doing { work, publish, notify, ask, sleep };
  doing a = doing::work, b = doing::work;
  bool is_a_woken = false, is_b_woken = false;
  std::uint32_t added = 0, returned = 0;
  while (returned != chains) {
    if (a == doing::sleep && is_a_woken)
      a = doing::work, is_a_woken = false, driver.disable_notifications();
    if (b == doing::sleep && is_b_woken)
      b = doing::work, is_b_woken = false, device.disable_notifications();
    if (a == doing::sleep && b == doing::sleep) return false;
    if (b == doing::sleep || (a != doing::sleep && coin(2) == 0)) {
      switch (a) {
      case doing::work: {
        const buffer one[] = {{0, 1}};
        for (std::uint32_t n = coin(N + 1); n != 0 && added < chains; --n)
          if (driver.add(one, {}, added)) ++added;
        while (driver.pop_used()) ++returned;
        a = doing::publish;
        break;
      }
      case doing::publish:
        driver.publish();
        a = doing::notify;
        break;
      case doing::notify:
        if (driver.should_notify()) is_b_woken = true;
        // It sleeps only where chains are with the device.
        a = driver.in_flight() == 0 || coin(3) == 0 ? doing::work : doing::ask;
        break;
      default: a = driver.enable_notifications() ? doing::work : doing::sleep; break;
      }
    } else {
      switch (b) {
      case doing::work: {
        const auto done = device.consume(1 + coin(N), [](const chain&) { return ballast::used(); });
        if (!done) return false;
        b = doing::publish;
        break;
      }
      case doing::publish:
        device.publish();
        b = doing::notify;
        break;
      case doing::notify:
        if (device.should_notify()) is_a_woken = true;
        b = coin(3) == 0 ? doing::work : doing::ask;
        break;
      default: b = device.enable_notifications() ? doing::work : doing::sleep; break;
      }
    }
  }
  return true;
}

constexpr auto wakes = [](auto check) {
  check(nobody_oversleeps<2>(no_features, 1, 20));
  check(nobody_oversleeps<3>(in_order_events, 2, 20));
};
BOTH("RT-25 a side that sleeps is woken, in a constant expression too", wakes)

TEST_CASE("RT-25 a side that sleeps is woken, over random turns of both") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed)
    for (const feature_set& features : {no_features, event_index, in_order, in_order_events}) {
      CHECK(nobody_oversleeps<1>(features, seed, 1000));
      CHECK(nobody_oversleeps<2>(features, seed, 1000));
      CHECK(nobody_oversleeps<3>(features, seed, 1000));
      CHECK(nobody_oversleeps<7>(features, seed, 1000));
      CHECK(nobody_oversleeps<16>(features, seed, 1000));
    }
  CHECK(nobody_oversleeps<3>(event_index, 99, 200000));
}

// ---- what happens in which order

constexpr auto orders = [](auto check) {
  using ballast_test::event_kind;
  using ballast_test::event_log;
  ram_type<4> ram(base);
  event_log<400> log;
  ballast_test::recording_memory a(ram, log), b(ram, log);
  // The last of two chains carries a reply.
  check(exchange<4, little>(a, b, {.chains = 2}).is_clean(2));
  check(log.lost() == 0);
  const auto at = layout<4>();
  const guest_address first_flags = at.descriptor_area + 8;
  std::size_t published = 0, acquired = 0, returned = 0, reclaimed = 0;
  for (std::size_t i = 0; i < log.size(); ++i) {
    const auto& e = log[i];
    const bool is_release = e.kind == event_kind::store && e.order == ballast::order::release;
    const bool is_acquire = e.kind == event_kind::load && e.order == ballast::order::acquire;
    // Releases are of a batch's first descriptor alone, acquires of descriptors' second words.
    if (is_release) check(e.address == first_flags && returned == 0);
    if (is_acquire) check(e.address < at.driver_area && e.address % 16 == 8);
    if (is_release) (published == 0 ? published : returned) = i;
    if (!is_acquire || e.address != first_flags) continue;
    if (returned != 0 && reclaimed == 0) reclaimed = i;
    if (returned == 0 && published != 0 && acquired == 0) acquired = i;
  }
  check(published != 0 && published < acquired && acquired < returned && returned < reclaimed);
  const guest_address payload = base + ring_bytes<4>;
  const std::size_t end = log.size();
  for (std::size_t i = 0; i < end; ++i) {
    const auto& e = log[i];
    if (e.address < payload) {
      // P1 before P2; P6 and P7 between P5 and P8.
      if (e.kind == event_kind::store && e.order == ballast::order::plain) check(i < published);
      if (e.kind == event_kind::load && e.order == ballast::order::plain)
        check(acquired < i && i < returned);
      continue;
    }
    // Payload: requests before P2, all of the device between P5 and P8, replies read after P10.
    if (e.kind == event_kind::write) check(i < published || (acquired < i && i < returned));
    if (e.kind == event_kind::read) check((acquired < i && i < returned) || reclaimed < i);
  }
};
BOTH("PK-5 PK-11 RT-18 payload and descriptors lie between the release and the acquire that hand "
     "them over",
     orders)

// ---- each side inside of every access of the other

/// Runs what it was given, but not inside of itself.
struct nested {
  void (*run)(void*) noexcept = nullptr;
  void* with = nullptr;
  bool* is_inside = nullptr;
  std::uint64_t calls = 0;

  void operator()() noexcept {
    if (*is_inside) return;
    *is_inside = true;
    ++calls;
    run(with);
    *is_inside = false;
  }
};

template <class M> class nesting_memory {
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
  using memory_type = nesting_memory<ram_type<7>>;

  ram_type<7> ram{base};
  bool is_inside = false;
  nested at_driver{[](void* s) noexcept { static_cast<nested_sides*>(s)->serve(); }, this,
                   &is_inside};
  nested at_device{[](void* s) noexcept { static_cast<nested_sides*>(s)->send(); }, this,
                   &is_inside};
  memory_type driver_memory{ram, at_driver};
  memory_type device_memory{ram, at_device};
  std::array<ballast::driver_slot, 7> slots{};
  ballast::device_queue_storage<7> storage;
  ballast::packed_driver<memory_type> driver{slots};
  ballast::packed_device<memory_type> device{storage};
  std::uint64_t added = 0, handled = 0, returned = 0, wrong = 0;

  explicit nested_sides(const feature_set& features) {
    is_inside = true;
    wrong += !driver.start(driver_memory, layout<7>(), features).has_value();
    wrong += !device.start(device_memory, layout<7>(), features).has_value();
    is_inside = false;
  }
  nested_sides(const nested_sides&) = delete;

  void serve() noexcept {
    (void)device.enable_notifications();
    const auto done = device.consume(3, [&](const chain& c) {
      wrong += c.writable().empty() || c.writable()[0].address != handled;
      ++handled;
      return ballast::used(static_cast<std::uint32_t>(handled % 64));
    });
    wrong += !done.has_value();
    (void)device.publish_and_ask();
  }
  void send() noexcept {
    for (int i = 0; i < 2; ++i) {
      const buffer b[] = {{added, 64}, {added, 0}};
      if (!driver.add({}, std::span<const buffer>(b).first(1 + added % 2), added)) break;
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
  for (const feature_set& features : {no_features, event_index, in_order}) {
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

// ---- random lives, in either format

constexpr feature_set some_features(std::uint32_t bits) {
  feature_set features;
  if ((bits & 1) != 0) features.set(ballast::feature::event_idx);
  if ((bits & 2) != 0) features.set(ballast::feature::indirect_desc);
  if ((bits & 4) != 0) features.set(ballast::feature::in_order);
  return features;
}

template <std::uint32_t N> using life_ram = ballast::array_memory<64 * N + 128 + N * 3 * 16>;

/// What came of a life: the digest of what may not depend on the format.
struct life_end {
  std::uint64_t facts = 0;
  std::uint64_t returned = 0;

  friend constexpr bool operator==(const life_end&, const life_end&) noexcept = default;
};

template <std::uint32_t N, std::endian E, class Format>
constexpr life_end live(auto check, std::uint32_t steps, const feature_set& features,
                        std::uint32_t first, std::uint64_t seed, std::uint32_t table_entries = 3) {
  life_ram<N> ram(base);
  const auto at = Format::place(base, N);
  const ballast_test::life_plan plan{.features = features,
                                     .layout = at.layout,
                                     .tables = {(at.end + 15) & ~std::uint64_t{15}, table_entries},
                                     .first_index = static_cast<std::uint16_t>(first),
                                     .seed = seed};
  ballast_test::queue_life<N, E, life_ram<N>, life_ram<N>, Format> life(ram, ram, plan);
  for (std::uint32_t i = 0; i < steps; ++i) life.step();
  life.finish();
  check(life.wrong() == 0);
  check(life.returned() > steps / 100);
  return {life.common_facts(), life.returned()};
}

using ballast_test::packed_format;
using ballast_test::split_format;

constexpr auto lives = [](auto check) {
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    live<3, little, packed_format>(check, 40, some_features(bits), 3 + bits % 4, 1 + bits);
  live<5, big, packed_format>(check, 60, some_features(7), 9, 7);
};
BOTH("RT-8 RT-19 random lives of both sides near both wraps, with all features", lives)

constexpr auto same_lives = [](auto check) {
  for (const std::uint32_t bits : {0u, 3u, 4u, 7u})
    check(live<4, little, packed_format>(check, 50, some_features(bits), 7, 5 + bits) ==
          live<4, little, split_format>(check, 50, some_features(bits), 0xfff0, 5 + bits));
};
BOTH("either format gives the same answers where the format does not matter", same_lives)

TEST_CASE("RT-8 RT-19 long random lives of driver and device, as a naive model has them") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    for (std::uint64_t seed = 1; seed < 12; ++seed) {
      const feature_set features = some_features(bits);
      const auto first = static_cast<std::uint32_t>(seed);
      live<1, little, packed_format>(check, 500, features, first, seed);
      live<2, little, packed_format>(check, 500, features, first, seed);
      live<3, big, packed_format>(check, 1000, features, first, seed);
      live<7, little, packed_format>(check, 2000, features, 5 + first, seed);
      live<8, big, packed_format>(check, 2000, features, 65535 - first, seed);
      live<64, little, packed_format>(check, 4000, features, 120 + first, seed);
      live<100, little, packed_format>(check, 4000, features, 190 + first, seed);
    }
  live<7, little, packed_format>(check, 1'000'000, some_features(7), 0, 5);
  live<16, little, packed_format>(check, 1'000'000, some_features(3), 0, 6);
}

TEST_CASE("either format gives the same answers over long lives of all sizes and features") {
  const ballast_test::run_time_check check;
  for (std::uint32_t bits = 0; bits < 8; ++bits)
    for (std::uint64_t seed = 1; seed < 8; ++seed) {
      const auto same = [&]<std::uint32_t N, std::endian E>(std::uint32_t steps) {
        const feature_set features = some_features(bits);
        const auto a = live<N, E, packed_format>(check, steps, features, 2 * N - 1, seed);
        const auto b = live<N, E, split_format>(check, steps, features, 0xffff, seed);
        CHECK(a.facts == b.facts);
        CHECK(a.returned == b.returned);
      };
      same.template operator()<1, little>(300);
      same.template operator()<2, little>(500);
      same.template operator()<8, big>(2000);
      same.template operator()<64, little>(3000);
    }
}

} // namespace
