// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/split_in_flight.hpp>

#include <support/check.hpp>

#include <ballast/memory/array_memory.hpp>

#include <cstdint>

namespace {

using namespace ballast;
namespace in_flight = ballast::vhost_user::in_flight;
namespace format = ballast::vhost_user::in_flight::split;

using ram_type = array_memory<256>;
using window = ram_type::window_type;
using log_type = vhost_user::split_in_flight<window, 8>;

struct region {
  ram_type ram;
  constexpr window at() { return *ram.window(0, 256, 64, access::write); }
  template <class T> constexpr T get(std::size_t offset) {
    return at().template load<T>(offset, order::plain);
  }
  template <class T> constexpr void set(std::size_t offset, T to) {
    at().template store<T>(offset, to, order::plain);
  }
  constexpr bool is_held(std::size_t head) {
    return ram.bytes()[format::held(head)] == std::byte{1};
  }
};

constexpr auto notes = [](auto check) {
  region r;
  log_type log;
  check(*log.resume(r.at(), 8, 0) == 0);
  check(r.get<std::uint16_t>(in_flight::version) == 1);
  check(r.get<std::uint16_t>(in_flight::entries) == 8);
  // As the specification has it, step by step.
  check(log.pop(0, 5) == 5 && log.pop(1, 2) == 2 && log.pop(2, 7) == 7);
  check(r.is_held(5) && r.is_held(2) && r.is_held(7) && !r.is_held(0));
  check(r.get<std::uint64_t>(format::counter(5)) < r.get<std::uint64_t>(format::counter(2)));
  check(r.get<std::uint64_t>(format::counter(2)) < r.get<std::uint64_t>(format::counter(7)));
  log.use(2);
  log.use(5);
  check(r.get<std::uint16_t>(format::last_used_head) == 5);
  check(r.get<std::uint16_t>(format::next(5)) == 2);
  check(r.is_held(2) && r.is_held(5));
  bool is_stored = false;
  log.publish(2, [&] {
    check(r.is_held(2) && r.get<std::uint16_t>(format::used_index) == 0); // not before
    is_stored = true;
  });
  check(is_stored && !r.is_held(2) && !r.is_held(5) && r.is_held(7));
  check(r.get<std::uint16_t>(format::used_index) == 2);
};
BOTH("what is held is noted, and what was published is not held", notes)

constexpr auto again = [](auto check) {
  region r;
  log_type first;
  (void)*first.resume(r.at(), 8, 0);
  for (std::uint16_t i = 0; i < 4; ++i) (void)first.pop(i, static_cast<std::uint16_t>(7 - i));
  first.use(6);
  first.publish(1, [] {});
  // Held: 7, 5, 4, in this order; the ring has other chains there by now.
  log_type second;
  check(*second.resume(r.at(), 8, 1) == 3);
  check(second.pop(1, 6) == 7 && second.pop(2, 5) == 5 && second.pop(3, 4) == 4);
  check(second.pop(4, 6) == 6 && r.is_held(6)); // from here on it is the ring
  // A queue that goes back reads them again.
  check(second.pop(3, 0) == 4 && second.pop(4, 6) == 6 && second.pop(5, 1) == 1);
};
BOTH("what was held is popped first, in the order of the first time", again)

constexpr auto wraps = [](auto check) {
  // Behind a whole round of the index nothing is popped twice.
  region r;
  log_type first;
  (void)*first.resume(r.at(), 8, 0xfffe);
  check(first.pop(6, 3) == 3);
  log_type log;
  check(*log.resume(r.at(), 8, 0xfffe) == 1);
  check(log.pop(6, 0) == 3);
  std::uint16_t used = 0xfffe;
  log.use(3);
  log.publish(++used, [] {});
  for (std::uint32_t n = 0xffff; n != 0xffff + 40; ++n) {
    check(log.pop(n & 7, n & 7) == (n & 7));
    log.use(n & 7);
    log.publish(++used, [] {});
  }
  check(*log.resume(r.at(), 8, used) == 0);
};
BOTH("positions wrap, and what was held is held once", wraps)

constexpr auto settles = [](auto check) {
  // Killed between the store of the used index and its note.
  region r;
  log_type first;
  (void)*first.resume(r.at(), 8, 10);
  for (std::uint16_t i = 0; i < 3; ++i) (void)first.pop((10u + i) & 7, i);
  first.use(1);
  first.use(2);
  log_type second;
  check(*second.resume(r.at(), 8, 12) == 1); // the ring says that they were published
  check(second.pop(4, 7) == 0);
  check(!r.is_held(1) && !r.is_held(2) && r.get<std::uint16_t>(format::used_index) == 12);
};
BOTH("a batch that was published and not noted is settled by the ring", settles)

constexpr auto bad = [](auto check) {
  const auto error_with = [](auto change, std::uint16_t used = 0) {
    region r;
    log_type log;
    (void)*log.resume(r.at(), 8, 0);
    (void)log.pop(0, 3);
    log.use(3);
    change(r);
    return log.resume(r.at(), 8, used).error();
  };
  check(error_with([](region&) {}) == error::none);
  check(error_with([](region&) {}, 1) == error::none);
  constexpr error invalid = error::in_flight_invalid;
  check(error_with([](region&) {}, 9) == invalid); // more than the queue can have published
  check(error_with([](region&) {}, 0xffff) == invalid);
  check(error_with([](region& r) { r.set<std::uint16_t>(in_flight::version, 2); }) == invalid);
  check(error_with([](region& r) { r.set<std::uint64_t>(in_flight::features, 1); }) == invalid);
  check(error_with([](region& r) { r.set<std::uint16_t>(in_flight::entries, 7); }) == invalid);
  check(error_with([](region& r) { r.set<std::uint16_t>(format::last_used_head, 8); }, 1) ==
        invalid);
  region r;
  log_type log;
  check(log.resume(r.at(), 16, 0).error() == error::storage_too_small);
  check(*log.resume(r.at(), 8, 0) == 0);
  // A driver or a device that breaks the rules is the queue's affair.
  check(log.pop(0, 9) == 9);
  log.use(9);
  log.publish(1, [] {});
};
BOTH("a region that does not fit together, or the ring, is refused", bad)

} // namespace
