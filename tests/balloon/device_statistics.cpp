// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device_statistics.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
using balloon::statistic_tag;

using ram_type = array_memory<64>;

/// A queue that remembers what was returned, or refuses to.
struct one_queue {
  std::uint16_t returned[4]{};
  std::uint32_t count = 0;
  error refusal = error::none;
  constexpr result<void> push_used(chain_id id, std::uint32_t length) noexcept {
    if (refusal != error::none) return refusal;
    returned[count++] = static_cast<std::uint16_t>(id.head + length);
    return {};
  }
};

constexpr error read(balloon::device_statistics& s, statistic_tag tag, std::uint64_t value,
                     std::uint32_t bytes = 10) {
  ram_type ram;
  const auto raw = std::bit_cast<std::array<std::byte, 10>>(
      balloon::statistic<std::endian::little>{static_cast<std::uint16_t>(tag), value});
  (void)ram.write(0, raw);
  const buffer b{0, bytes};
  balloon::snapshot fresh;
  fresh.epoch = 3;
  return s.read<std::endian::little>(ram, {&b, 1}, fresh).error();
}

constexpr auto cycle = [](auto check) {
  balloon::device_statistics s;
  one_queue q;
  check(s.request(q).error() == error::no_statistics_buffer);
  check(!*s.hold(q, {5, 0}) && q.count == 0);
  check(read(s, statistic_tag::free_memory, 9) == error::none);
  check(!s.is_pending());
  const auto first = s.take(77);
  check(first && first->received_at == 77 && first->epoch == 3 && !first->is_solicited);
  check(first->value(statistic_tag::free_memory) == 9);
  check(s.take(78).error() == error::queue_empty);
  check(s.request(q).has_value() && q.count == 1 && q.returned[0] == 5);
  check(s.is_pending() && s.request(q).error() == error::no_statistics_buffer);
  check(!*s.hold(q, {6, 0}));
  check(read(s, statistic_tag::free_memory, 10) == error::none && s.take(0)->is_solicited);
};
BOTH("a buffer is held, returned to ask, and its reply taken once", cycle)

constexpr auto second_buffer = [](auto check) {
  balloon::device_statistics s;
  one_queue q;
  (void)s.hold(q, {5, 0});
  check(*s.hold(q, {6, 0}) && q.count == 1 && q.returned[0] == 5);
  q.refusal = error::used_out_of_order;
  check(s.hold(q, {7, 0}).error() == error::used_out_of_order);
  check(s.request(q).error() == error::used_out_of_order && !s.is_pending());
  q.refusal = error::none;
  check(s.request(q).has_value() && q.returned[1] == 7); // the newest is the one that is held
};
BOTH("RT-35: of two buffers the older goes back, and what fails there changes nothing",
     second_buffer)

constexpr auto late = [](auto check) {
  balloon::device_statistics s;
  one_queue q;
  check(s.abandon().error() == error::no_request_pending);
  (void)s.hold(q, {5, 0});
  (void)s.request(q);
  check(s.abandon().has_value() && !s.is_pending());
  (void)s.hold(q, {5, 0});
  check(read(s, statistic_tag::free_memory, 1) == error::none && !s.take(0)->is_solicited);
};
BOTH("RT-49: a reply to an abandoned request is not one", late)

constexpr auto unreadable = [](auto check) {
  balloon::device_statistics s;
  check(read(s, statistic_tag::free_memory, 1) == error::none);
  check(read(s, statistic_tag::free_memory, 2, 65) == error::not_guest_memory);
  check(s.take(0)->value(statistic_tag::free_memory) == 1); // of the buffer before
};
BOTH("RT-42: a buffer that can't be read to its end gives nothing", unreadable)

constexpr auto taken_away = [](auto check) {
  balloon::device_statistics s;
  one_queue q;
  (void)s.hold(q, {5, 0});
  check(read(s, statistic_tag::free_memory, 1) == error::none);
  s.drop_buffer();
  check(s.request(q).error() == error::no_statistics_buffer && s.take(0).has_value());
  (void)s.hold(q, {5, 0});
  (void)s.request(q);
  check(read(s, statistic_tag::free_memory, 1) == error::none);
  s.reset();
  check(!s.is_pending() && !s.take(0));
};
BOTH("RT-26: with its queue the buffer is gone, with a reset the snapshot too", taken_away)

constexpr auto rewound = [](auto check) {
  balloon::device_statistics s;
  one_queue q;
  (void)s.hold(q, {5, 0});
  (void)s.request(q);
  s.rewind(); // the request is still under way
  check(s.is_pending());
  (void)s.hold(q, {6, 0});
  s.rewind(); // that buffer will come again, and is not returned before
  check(s.request(q).error() == error::no_statistics_buffer);
  check(*s.hold(q, {6, 0}) == false && q.returned[0] == 5);
  balloon::device_statistics other;
  other.restore(true);
  check(other.is_pending() && !other.take(0));
  check(read(other, statistic_tag::free_memory, 1) == error::none && other.take(0)->is_solicited);
  other.restore(false);
  check(!other.is_pending());
};
BOTH("a queue that goes on elsewhere brings its buffer once more, and the answer to a request",
     rewound)

} // namespace
