// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/inflation.hpp>

#include "support/check.hpp"
#include "support/open_device.hpp"
#include "support/watched_pages.hpp"

#include <ballast/memory/array_memory.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
using ballast_test::watched_pages;
namespace bits = balloon::feature;
using ram_type = array_memory<2 * 4096>;

/// The two queues with a device behind them that works only when a test lets it.
template <class Pages> struct bench {
  using inflation_type = balloon::inflation<ram_type, Pages, 4, std::endian::little>;

  ram_type ram;
  ballast_test::open_device<ram_type> device{ram};
  Pages pages;
  inflation_type balloon{pages};
  actions due{};

  constexpr explicit bench(const Pages& from, const balloon::driver_options& options = {},
                           const feature_set& negotiated = {})
      : pages(from) {
    begin(options, negotiated);
  }
  constexpr void begin(const balloon::driver_options& options, const feature_set& negotiated) {
    guest_address at = 0;
    constexpr std::uint32_t bytes = inflation_type::queue::array_bytes;
    (void)balloon.inflateq().start(ram, device, 0, 1, at, bytes, {}, 0);
    (void)balloon.deflateq().start(ram, device, 1, 1, at, bytes, {}, 0);
    balloon.begin(negotiated, options);
  }
  /// What `driver::step` does; how many buffers were sent or came back.
  constexpr int step(std::uint64_t now = 0) {
    int n = 0;
    for (bool has_worked = true; has_worked;) {
      has_worked = balloon.take_up(now, due);
      n += has_worked;
      const bool has_sent = balloon.adjust(now, due);
      n += has_sent;
      has_worked |= has_sent;
    }
    return n;
  }
  constexpr void settle(std::uint64_t now = 0) {
    do (void)step(now);
    while (device.serve_pages());
  }
};

constexpr auto moves = [](auto check) {
  bench<watched_pages<8>> b(watched_pages<8>(16, 8));
  b.balloon.set_target(5);
  check(b.step() == 1);
  check(b.balloon.actual() == 0 && !b.balloon.is_idle());
  check(b.step() == 0); // nothing is sent beside it
  check(b.device.serve(0));
  check(b.step() == 1);
  check(b.balloon.actual() == 5 && b.pages.stored() == 5 && b.balloon.is_idle());
  b.balloon.set_target(2);
  check(b.step() == 1);
  check(b.device.take(0).readable == 0 && b.device.serve(1));
  check(b.step() == 1);
  check(b.balloon.actual() == 2 && b.pages.stored() == 2 && b.pages.free() == 6);
  check(b.pages.wrong() == 0 && b.due.failure == error::none);
};
BOTH("BDRV-4, BDRV-5, BDRV-12, BDRV-13: a block is in the balloon between its two acks", moves)

constexpr auto at_target = [](auto check) {
  bench<watched_pages<8>> b(watched_pages<8>(16, 8));
  check(b.step() == 0 && b.pages.free_calls == 0); // 0 wanted, 0 there
  b.balloon.set_target(3);
  b.settle();
  b.balloon.set_target(3);
  const std::uint32_t calls = b.pages.free_calls;
  check(b.step() == 0 && b.pages.free_calls == calls && b.pages.stored() == 3);
};
BOTH("BDRV-6, BDRV-7: at its target a balloon neither takes pages nor gives any", at_target)

constexpr auto no_asking = [](auto check) {
  bench<watched_pages<8>> b(watched_pages<8>(16, 4));
  b.balloon.set_target(8);
  (void)b.step();
  check(b.pages.free_calls == 1);
  for (int i = 0; i < 5; ++i) check(b.step() == 0);
  check(b.pages.free_calls == 1); // the buffer is still out
  b.balloon.set_target(6);
  check(b.step() == 0 && b.pages.free_calls == 1);
  check(b.device.serve(0));
  check(b.step() == 1);
  check(b.pages.free_calls > 1 && b.pages.wrong() == 0); // now that it came back
};
BOTH("Linux c7cdff0e8647: no page is asked for while a buffer is under way", no_asking)

constexpr auto back_off = [](auto check) {
  bench<watched_pages<8>> b(watched_pages<8>(16, 2), {.retry = {.first = 200, .longest = 400}});
  b.balloon.set_target(5);
  b.settle(1000);
  check(b.balloon.actual() == 2 && b.pages.free_calls == 2);
  check(b.balloon.retry().is_waiting() && b.balloon.retry().next() == 1200);
  check(b.step(1199) == 0 && b.pages.free_calls == 2);
  check(b.step(1200) == 0 && b.pages.free_calls == 3);
  check(b.balloon.retry().next() == 1600);
  b.balloon.set_target(6); // somebody wants something: try at once
  check(b.step(1201) == 0 && b.pages.free_calls == 4);
  check(b.balloon.retry().next() == 1401);
  b.pages.use_up();
  b.balloon.set_target(1); // giving back needs no waiting
  b.settle(1202);
  check(b.balloon.actual() == 1);
  b.balloon.set_target(2);
  b.settle(1203);
  check(b.balloon.actual() == 2 && !b.balloon.retry().is_waiting());
};
BOTH("where no page is to be had the next attempt waits, in the caller's ticks", back_off)

constexpr auto large_target = [](auto check) {
  bench<watched_pages<8, 16>> b(watched_pages<8, 16>(256, 8));
  for (const std::uint32_t wanted : {17u, 31u, 32u}) {
    b.balloon.set_target(wanted);
    b.settle();
    check(b.balloon.target() == 32 && b.balloon.actual() == 32 && b.pages.stored() == 2);
    check(b.step() == 0); // and stays there
  }
  b.balloon.set_target(16);
  b.settle();
  check(b.balloon.actual() == 16);
  b.balloon.set_target(1);
  b.settle();
  check(b.balloon.actual() == 16);
  b.balloon.set_target(0xffff'fff5); // all there is, not nothing
  b.settle();
  check(b.balloon.target() == 0xffff'fff0 && b.balloon.actual() == 128);
  check(b.pages.wrong() == 0);
};
BOTH("RT-55: a driver with pages of 64 KiB reaches its target and rests", large_target)

constexpr auto enough = [](auto check) {
  bench<watched_pages<8, 256>> b(watched_pages<8, 256>(256, 8));
  b.balloon.set_target(8 * 256);
  b.settle();
  check(b.pages.stored() == 8);
  check(b.balloon.deflate_on_oom(600, 0, b.due)); // three blocks, one buffer each
  check(b.balloon.is_deflating());
  b.settle();
  check(b.balloon.actual() == 5 * 256 && b.pages.free() == 3);
  check(b.step() == 0);       // and no inflating again by itself
  b.balloon.set_target(2048); // but with the next change of the target
  check(b.step() == 1);
  b.settle();
  check(b.pages.stored() == 8);
  check(b.balloon.deflate_on_oom(UINT32_MAX, 0, b.due)); // more than there is
  b.settle();
  check(b.pages.free() == 8 && b.balloon.actual() == 0);
  check(!b.balloon.deflate_on_oom(1, 0, b.due) && b.due.failure == error::none);
  b.balloon.set_target(256);
  b.settle();
  check(b.balloon.actual() == 256); // what was too much is forgotten
  check(b.pages.wrong() == 0);
};
BOTH("BDRV-8: a guest out of memory gets at least as many pages as it asked for", enough)

constexpr auto both_wants = [](auto check) {
  bench<watched_pages<8, 256>> b(watched_pages<8, 256>(256, 8));
  b.balloon.set_target(8 * 256);
  b.settle();
  check(b.balloon.deflate_on_oom(512, 0, b.due));
  b.balloon.set_target(256); // meanwhile the host gives back more
  b.settle();
  check(b.balloon.actual() == 256);
  b.balloon.set_target(8 * 256);
  b.settle();
  check(b.balloon.deflate_on_oom(1024, 0, b.due));
  b.balloon.set_target(7 * 256); // ... or less
  b.settle();
  check(b.balloon.actual() == 7 * 256); // four went out, then three came in
  check(b.pages.wrong() == 0);
};
BOTH("out of memory and a new target at once: the larger deflation counts", both_wants)

/// An allocator that runs out of memory inside of the driver's own request.
struct reentrant_pages : watched_pages<8> {
  using watched_pages<8>::watched_pages;
  bench<reentrant_pages>* driver = nullptr;
  bool was_granted = false;

  constexpr std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    const std::size_t n = watched_pages<8>::take_free(to.first(to.size() < 2 ? to.size() : 2));
    if (driver != nullptr && n < to.size())
      was_granted = driver->balloon.deflate_on_oom(1, 0, driver->due);
    return n;
  }
};

constexpr auto reentrant = [](auto check) {
  bench<reentrant_pages> b(reentrant_pages(16, 8));
  b.balloon.set_target(4);
  b.settle();
  check(b.balloon.actual() == 4);
  b.pages.driver = &b;
  b.balloon.set_target(7); // two are to be had; and one is wanted back meanwhile
  (void)b.step();
  check(b.pages.was_granted);
  b.pages.driver = nullptr;
  b.settle();
  check(b.balloon.actual() == 5 && b.pages.stored() == 5);
  check(b.pages.wrong() == 0 && b.due.failure == error::none);
};
BOTH("an allocator may ask for pages back while the driver asks it for some", reentrant)

constexpr auto migration = [](auto check) {
  bench<watched_pages<8>> b(watched_pages<8>(16, 8));
  b.balloon.set_target(3);
  b.settle();
  const std::uint32_t old_page = 18, new_page = b.pages.take_one();
  check(b.pages.place_of(old_page) == watched_pages<8>::place::stored);
  check(b.balloon.move(old_page, new_page, 0, b.due));
  const auto inflated = b.device.take(0);
  check(inflated.buffers[0].length == 4 && b.device.number(inflated.buffers[0], 0) == new_page);
  check(b.step() == 0 && b.device.take(1).readable == 0); // first the new one's ack
  check(b.device.give_back(0, inflated));
  check(b.step() == 1);
  check(b.pages.place_of(new_page) == watched_pages<8>::place::stored);
  check(b.pages.place_of(old_page) == watched_pages<8>::place::deflating); // not used yet
  check(b.balloon.actual() == 3 && b.balloon.is_deflating());
  const auto deflated = b.device.take(1);
  check(deflated.buffers[0].length == 4 && b.device.number(deflated.buffers[0], 0) == old_page);
  check(b.device.give_back(1, deflated));
  check(b.step() == 1);
  check(b.pages.place_of(old_page) == watched_pages<8>::place::free);
  check(b.balloon.actual() == 3 && b.balloon.is_idle() && !b.balloon.is_deflating());
  check(b.pages.wrong() == 0);
  b.balloon.set_target(0);
  b.settle();
  check(b.balloon.actual() == 0 && b.pages.free() == 8 && b.pages.wrong() == 0);
};
BOTH("a page is moved: the new one in, the old one out, the size stays", migration)

constexpr auto drains = [](auto check) {
  for (int acks = 0; acks < 6; ++acks) {
    bench<watched_pages<8>> b(watched_pages<8>(16, 8));
    b.pages.wants_poison = true;
    b.pages.poison_value = 0xaaaaaaaa;
    const balloon::driver_options options{.has_poison = true, .poison_value = 0xaaaaaaaa};
    b.begin(options, {bits::page_poison});
    b.balloon.set_target(3);
    int n = acks;
    const auto ack = [&](std::uint16_t queue) {
      if (n != 0 && b.device.serve(queue)) --n, (void)b.step();
    };
    (void)b.step();
    ack(0);
    if (b.balloon.is_idle()) (void)b.balloon.move(16, b.pages.take_one(), 0, b.due);
    ack(0);
    ack(1);
    if (b.balloon.is_idle()) (void)b.balloon.deflate_on_oom(2, 0, b.due);
    ack(1);
    b.balloon.drain();
    check(b.pages.free() == 8 && b.pages.wrong() == 0); // all of them, once, with their poison
    check(b.balloon.is_idle() && !b.balloon.is_deflating());
  }
};
BOTH("BDRV-34: wherever it stands every block comes back once, with its poison", drains)

constexpr auto early = [](auto check) {
  for (const bool must_tell : {false, true}) {
    bench<watched_pages<8>> b(watched_pages<8>(16, 8), {.reuses_before_acknowledged = true},
                              must_tell ? feature_set{bits::must_tell_host} : feature_set{});
    b.balloon.set_target(4);
    b.settle();
    b.balloon.set_target(0);
    check(b.step() == 1);
    check(b.pages.free() == (must_tell ? 4 : 8));
    check(b.balloon.actual() == 4 && !b.balloon.is_idle());
    b.balloon.drain(); // none comes back twice
    check(b.pages.free() == 8 && b.pages.wrong() == 0);
  }
};
BOTH("BDRV-10, BDRV-11: pages are used before the ack only if asked for and allowed", early)

TEST_CASE("BDRV-8: out of memory takes as many buffers as the pages need") {
  static bench<watched_pages<1024>> b(watched_pages<1024>(4096, 1024));
  b.balloon.set_target(1024);
  b.settle();
  REQUIRE(b.pages.stored() == 1024);
  CHECK(b.balloon.deflate_on_oom(600, 0, b.due));
  int buffers = 1;
  while (b.device.serve(1)) buffers += b.step() - 1;
  CHECK(buffers == 3);
  CHECK(b.balloon.actual() == 424);
  CHECK(b.pages.wrong() == 0);
}

} // namespace
