// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device_queues.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace {

using namespace ballast;
using balloon::queue_kind;

using ram_type = array_memory<4096>;
template <std::uint32_t N>
using queues_of = balloon::device_queues<ram_type, N, std::endian::little>;

constexpr feature_set all{balloon::feature::stats_vq, balloon::feature::free_page_hint,
                          balloon::feature::page_reporting, feature::version_1};

constexpr balloon::device_options numbered(balloon::queue_numbering numbering) {
  balloon::device_options options;
  options.offered = all;
  options.numbering = numbering;
  return options;
}

constexpr auto sizes = [](auto check) {
  check(queues_of<1>::entries(queue_kind::inflate) == 1);
  check(queues_of<1>::entries(queue_kind::free_page) == 2);
  check(queues_of<1>::entries(queue_kind::reporting) == 32);
  check(queues_of<256>::entries(queue_kind::reporting) == 256);
  const queues_of<4> q(numbered(balloon::queue_numbering::by_offered));
  check(q.count() == 5 && q.size_max(0) == 4 && q.size_max(4) == 32 && q.size_max(5) == 0);
};
BOTH("RT-48: no queue is smaller than Linux takes it", sizes)

constexpr auto starts = [](auto check) {
  ram_type ram;
  queues_of<4> q(numbered(balloon::queue_numbering::by_negotiated));
  feature_set some = all;
  some.clear(balloon::feature::free_page_hint);
  std::array<queue_layout, 5> layouts{};
  for (std::size_t i = 0; i < 4; ++i) layouts[i] = split::place(i * 0x200, 4).layout;
  layouts[1] = {}; // the driver did not set it up
  check(q.start(ram, layouts, some).has_value() && q.negotiated() == some);
  check(q[queue_kind::inflate].is_attached() && !q[queue_kind::deflate].is_attached());
  check(q[queue_kind::statistics].is_attached() && !q[queue_kind::free_page].is_attached());
  check(q[queue_kind::reporting].is_attached());
  check(*q.kind_of(3) == queue_kind::reporting && q.bit_of(queue_kind::reporting) == 8);
  check(q.kind_of(4).error() == error::invalid_queue_index);
  q.detach();
  for (const queue_kind kind : q.kinds) check(!q[kind].is_attached());
  check(q.attach(ram, layouts).has_value() && q[queue_kind::reporting].is_attached());
  q.reset();
  check(!q[queue_kind::inflate].is_attached() && q.negotiated() == feature_set{});
};
BOTH("the queues that were set up begin, by the numbers that hold", starts)

constexpr auto fails = [](auto check) {
  ram_type ram;
  queues_of<4> q(numbered(balloon::queue_numbering::by_offered));
  std::array<queue_layout, 5> layouts{};
  layouts[0] = split::place(0, 8).layout; // 8 entries of at most 4
  check(q.start(ram, layouts, all).error() == error::storage_too_small);
  layouts[0] = split::place(0xfc0, 4).layout;
  check(q.start(ram, layouts, all).error() == error::not_guest_memory);
  check(q.attach(ram, layouts).has_value() && q.attached() == 0); // nothing was started
};
BOTH("a queue that can't begin says why", fails)

constexpr auto resumes = [](auto check) {
  ram_type ram;
  queues_of<4> q(numbered(balloon::queue_numbering::by_offered));
  std::array<queue_layout, 5> layouts{};
  layouts[0] = split::place(0, 4).layout;
  layouts[2] = split::place(0x200, 4).layout;
  std::array<device_queue_state, 1> at{};
  at[0].size = 4;
  at[0].next_available = at[0].next_used = 9;
  check(q.resume(ram, layouts, all, at).has_value());
  const auto first = q.state(queue_kind::inflate);
  check(first && first->next_available == 9 && first->next_used == 9 && first->size == 4);
  const auto third = q.state(queue_kind::statistics); // without a position it begins
  check(third && third->next_used == 0);
  check(q.state(queue_kind::deflate).error() == error::invalid_queue_index);
  q.detach();
  check(q.state(queue_kind::inflate)->next_used == 9);
  at[0].next_available = 10; // a chain that nobody can have back
  check(q.resume(ram, layouts, all, at).error() == error::state_invalid);
};
BOTH("queues go on at their positions, and say where they are", resumes)

} // namespace
