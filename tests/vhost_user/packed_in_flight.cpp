// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/packed_in_flight.hpp>

#include <support/check.hpp>

#include <ballast/memory/array_memory.hpp>

#include <array>
#include <cstdint>

namespace {

using namespace ballast;
namespace in_flight = ballast::vhost_user::in_flight;
namespace format = ballast::vhost_user::in_flight::packed;

using ram_type = array_memory<512>;
using window = ram_type::window_type;
using log_type = vhost_user::packed_in_flight<window, 8>;

/// A region, and a ring whose words a test reads and writes through the log.
struct scene {
  static constexpr std::uint32_t size = 8;
  ram_type ram;
  std::array<std::uint64_t, 2 * size> ring{};
  log_type log;
  ring_place next; ///< of the driver

  constexpr window at() { return *ram.window(0, 512, 64, access::write); }
  template <class T> constexpr T get(std::size_t offset) {
    return at().template load<T>(offset, order::plain);
  }
  template <class T> constexpr void set(std::size_t offset, T to) {
    at().template store<T>(offset, to, order::plain);
  }
  constexpr unsigned held() {
    unsigned n = 0;
    for (std::size_t i = 0; i < size; ++i)
      n += ram.bytes()[format::held(i)] == std::byte{1} ? 1u : 0u;
    return n;
  }

  constexpr result<ring_place> resume(std::uint32_t entries = size) {
    const auto word = [&](std::uint32_t i) { return ring[2 * i + 1]; };
    return log.resume(at(), entries, ring_place{}, word);
  }

  /// Of the buffer i of a chain, as the ring has it.
  static constexpr std::uint64_t address_word(std::uint16_t id, std::uint32_t i) {
    return ballast::to_order<std::endian::little>(std::uint64_t{0x1000} * id + i);
  }

  /// The driver makes a chain of so many buffers available.
  constexpr void offer(std::uint16_t id, std::uint32_t buffers = 1) {
    for (std::uint32_t i = 0; i < buffers; ++i) {
      ring[2 * next.index] = address_word(id, i);
      ring[2 * next.index + 1] = packed::pack<std::endian::little>(
          100u + i,
          id | next.available_flags() | packed::in_pair(i + 1 < buffers ? packed::flag_next : 0));
      next.advance(1, size);
    }
  }

  constexpr std::uint64_t load(std::uint32_t i, bool is_address, order o) {
    const std::size_t offset =
        is_address ? packed::descriptor_address(i) : packed::descriptor_rest(i);
    return log.load(offset, ring[2 * i + (is_address ? 0 : 1)], o);
  }
  /// A device pops the chain at a place: its id, or 0xffff where it is not as it was offered.
  constexpr std::uint16_t pop(ring_place& from) {
    auto word = packed::unpack<std::endian::little>(load(from.index, false, order::acquire));
    if (!from.is_available(word.id | packed::in_pair(word.flags))) return 0xfffe;
    std::uint64_t address = load(from.index, true, order::plain);
    std::uint32_t count = 1;
    bool is_right = address == address_word(word.id, 0) && word.length == 100;
    from.advance(1, size);
    while ((word.flags & packed::flag_next) != 0 && count < size) {
      address = load(from.index, true, order::plain);
      word = packed::unpack<std::endian::little>(load(from.index, false, order::relaxed));
      is_right &= address == address_word(word.id, count) && word.length == 100 + count;
      from.advance(1, size);
      ++count;
    }
    return is_right ? word.id : 0xffff;
  }
  /// It returns one, of so many descriptors, at a place.
  constexpr void use(std::uint16_t id, std::uint32_t descriptors, ring_place& at_place,
                     bool is_last) {
    const auto word = packed::pack<std::endian::little>(0, id | at_place.used_flags);
    const std::uint32_t index = at_place.index;
    if (is_last) {
      log.publish(word, [&] { ring[2 * index + 1] = word; });
    } else {
      log.stage(word);
      ring[2 * index + 1] = word;
    }
    at_place.advance(descriptors, size);
  }
};

constexpr auto notes = [](auto check) {
  scene s;
  check(*s.resume() == ring_place{});
  check(s.get<std::uint16_t>(in_flight::version) == 1);
  s.offer(3);
  s.offer(4, 2);
  ring_place at;
  // Looking at what may be there is not popping it.
  (void)s.load(0, false, order::relaxed);
  check(s.held() == 0);
  check(s.pop(at) == 3 && s.pop(at) == 4 && s.held() == 2);
  check(s.get<std::uint16_t>(format::id(0)) == 3 &&
        s.get<std::uint64_t>(format::address(0)) == 0x3000);
  check(s.get<std::uint16_t>(format::count(1)) == 2 && s.get<std::uint16_t>(format::last(1)) == 2);
  check(s.get<std::uint64_t>(format::address(2)) == 0x4001);
  check(s.get<std::uint32_t>(format::length(2)) == 101);
  check(s.get<std::uint64_t>(format::counter(0)) < s.get<std::uint64_t>(format::counter(1)));
  check(s.get<std::uint16_t>(format::free_head) == 3);
  check(s.get<std::uint16_t>(format::old_free_head) == 3);
  check(s.pop(at) == 0xfffe && s.held() == 2); // nothing is there
  ring_place used;
  s.use(4, 2, used, true);
  check(s.held() == 1 && s.get<std::uint16_t>(format::free_head) == 1);
  check(s.get<std::uint16_t>(format::used) == 2 && s.get<std::uint16_t>(format::used + 2) == 2);
  check(s.get<std::uint16_t>(format::used + 4) == 0x0101); // both wrap counters
};
BOTH("what is held is noted with all its descriptors", notes)

constexpr auto again = [](auto check) {
  scene s;
  (void)*s.resume();
  s.offer(3, 2);
  s.offer(4);
  s.offer(5, 3);
  ring_place at, used;
  check(s.pop(at) == 3 && s.pop(at) == 4 && s.pop(at) == 5);
  s.use(4, 1, used, true); // over a descriptor of 3
  s.offer(6);
  const auto from = s.resume();
  check(from && *from == used);
  at = used;
  check(s.pop(at) == 3 && s.pop(at) == 5); // what the ring does not have any more
  check(s.pop(at) == 6 && s.held() == 3);
  check(at == s.next);
  // All the way round: nothing comes twice.
  s.use(6, 1, used, false);
  s.use(3, 2, used, false);
  s.use(5, 3, used, true);
  check(s.held() == 0 && used == at);
  for (std::uint16_t n = 0; n < 24; ++n) {
    s.offer(n % 8);
    check(s.pop(at) == n % 8);
    s.use(n % 8, 1, used, true);
  }
  check(*s.resume() == used);
};
BOTH("what was held is popped again, though the ring has others there", again)

constexpr auto settles = [](auto check) {
  // Killed on either side of the store that publishes.
  for (const bool is_published : {false, true}) {
    scene s;
    (void)*s.resume();
    s.offer(1);
    s.offer(2);
    s.offer(3);
    ring_place at, used;
    for (int i = 0; i < 3; ++i) (void)s.pop(at);
    scene before = s;
    s.use(2, 1, used, false);
    std::array<std::byte, 512> killed{};
    s.log.publish(packed::pack<std::endian::little>(0, 1u | ring_place{}.used_flags), [&] {
      for (std::size_t i = 0; i < killed.size(); ++i) killed[i] = s.ram.bytes()[i];
    });
    for (std::size_t i = 0; i < killed.size(); ++i) before.ram.bytes()[i] = killed[i];
    if (is_published)
      before.ring[1] = packed::pack<std::endian::little>(0, 2u | ring_place{}.used_flags);
    const auto from = before.resume();
    check(from && from->index == (is_published ? 2 : 0));
    check(before.held() == (is_published ? 1 : 3));
    ring_place place = *from;
    if (!is_published) check(before.pop(place) == 1 && before.pop(place) == 2);
    check(before.pop(place) == 3);
  }
};
BOTH("whether a batch was published, the ring says", settles)

constexpr auto half_taken = [](auto check) {
  // As the specification's steps leave it in the middle of a chain.
  scene s;
  (void)*s.resume();
  s.set<std::uint16_t>(format::held(0), in_flight::is_held);
  s.set<std::uint16_t>(format::count(0), 1);
  s.set<std::uint16_t>(format::free_head, 1);
  check(*s.resume() == ring_place{});
  check(s.held() == 0 && s.get<std::uint16_t>(format::free_head) == 0);
};
BOTH("a chain that was not read in full is not held", half_taken)

constexpr auto bad = [](auto check) {
  const auto error_with = [](auto change) {
    scene s;
    (void)*s.resume();
    s.offer(1, 2);
    ring_place at;
    (void)s.pop(at);
    change(s);
    return s.resume().error();
  };
  constexpr error invalid = error::in_flight_invalid;
  using u16 = std::uint16_t;
  check(error_with([](scene&) {}) == error::none);
  check(error_with([](scene& s) { s.set<u16>(in_flight::version, 2); }) == invalid);
  check(error_with([](scene& s) { s.set<std::uint64_t>(in_flight::features, 4); }) == invalid);
  check(error_with([](scene& s) { s.set<u16>(in_flight::entries, 7); }) == invalid);
  check(error_with([](scene& s) { s.set<u16>(format::used, 8); }) == invalid);
  check(error_with([](scene& s) { s.set<u16>(format::used + 2, 8); }) == invalid);
  check(error_with([](scene& s) { s.set<u16>(format::count(0), 0); }) == invalid);
  check(error_with([](scene& s) { s.set<u16>(format::count(0), 9); }) == invalid);
  check(error_with([](scene& s) { s.set<u16>(format::next(0), 0); }) == invalid); // a loop
  check(error_with([](scene& s) { s.set<u16>(format::next(0), 8); }) == invalid);
  check(error_with([](scene& s) { s.set<u16>(format::id(1), 8); }) == invalid);
  check(error_with([](scene& s) {
          s.set<u16>(format::held(1), in_flight::is_held); // two chains with one entry
          s.set<u16>(format::count(1), 1);
        }) == invalid);
  check(error_with([](scene& s) { // published, and the list of what was leads nowhere
          s.set<u16>(format::used, 2);
          s.ring[1] = packed::pack<std::endian::little>(0, 1u | ring_place{}.used_flags);
          s.set<u16>(format::free_head, 3);
          s.set<u16>(format::next(3), 3);
        }) == invalid);
  scene s;
  check(s.resume(16).error() == error::storage_too_small);
};
BOTH("a region that does not fit together, or the ring, is refused", bad)

} // namespace
