// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/in_flight_region.hpp>

#include <support/check.hpp>

#include <ballast/memory/array_memory.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

namespace {

using namespace ballast;
namespace in_flight = ballast::vhost_user::in_flight;

// The structures of the specification, as a C compiler lays them out.
struct split_entry {
  std::uint8_t inflight, padding[5];
  std::uint16_t next;
  std::uint64_t counter;
};
struct split_region {
  std::uint64_t features;
  std::uint16_t version, desc_num, last_batch_head, used_idx;
  split_entry desc[1];
};
struct packed_entry {
  std::uint8_t inflight, padding;
  std::uint16_t next, last, num;
  std::uint64_t counter;
  std::uint16_t id, flags;
  std::uint32_t len;
  std::uint64_t addr;
};
struct packed_region {
  std::uint64_t features;
  std::uint16_t version, desc_num, free_head, old_free_head, used_idx, old_used_idx;
  std::uint8_t used_wrap_counter, old_used_wrap_counter, padding[7];
  packed_entry desc[1];
};

constexpr auto offsets = [](auto check) {
  check(offsetof(split_region, version) == in_flight::version);
  check(offsetof(split_region, desc_num) == in_flight::entries);
  check(offsetof(split_region, last_batch_head) == in_flight::split::last_used_head);
  check(offsetof(split_region, used_idx) == in_flight::split::used_index);
  check(offsetof(split_region, desc) == in_flight::split::header_size);
  check(sizeof(split_entry) == in_flight::split::entry_size);
  constexpr std::size_t split_2 = offsetof(split_region, desc) + 2 * sizeof(split_entry);
  check(split_2 + offsetof(split_entry, inflight) == in_flight::split::held(2));
  check(split_2 + offsetof(split_entry, next) == in_flight::split::next(2));
  check(split_2 + offsetof(split_entry, counter) == in_flight::split::counter(2));

  namespace packed = in_flight::packed;
  check(offsetof(packed_region, version) == in_flight::version);
  check(offsetof(packed_region, free_head) == packed::free_head);
  check(offsetof(packed_region, old_free_head) == packed::old_free_head);
  check(offsetof(packed_region, used_idx) == packed::used);
  check(offsetof(packed_region, old_used_wrap_counter) == packed::used + 5);
  check(offsetof(packed_region, desc) == packed::header_size);
  check(sizeof(packed_entry) == packed::entry_size);
  constexpr std::size_t packed_2 = offsetof(packed_region, desc) + 2 * sizeof(packed_entry);
  check(packed_2 == packed::held(2));
  check(packed_2 + offsetof(packed_entry, next) == packed::next(2));
  check(packed_2 + offsetof(packed_entry, last) == packed::last(2));
  check(packed_2 + offsetof(packed_entry, num) == packed::count(2));
  check(packed_2 + offsetof(packed_entry, counter) == packed::counter(2));
  check(packed_2 + offsetof(packed_entry, id) == packed::id(2));
  check(packed_2 + offsetof(packed_entry, flags) == packed::flags(2));
  check(packed_2 + offsetof(packed_entry, len) == packed::length(2));
  check(packed_2 + offsetof(packed_entry, addr) == packed::address(2));
};
BOTH("every field lies where the specification's structures have it", offsets)

constexpr auto sizes = [](auto check) {
  check(in_flight::region_bytes(1, false) == 64);
  check(in_flight::region_bytes(3, false) == 64);
  check(in_flight::region_bytes(4, false) == 128);
  check(in_flight::region_bytes(256, false) == 64 + 4096);
  check(in_flight::region_bytes(1, true) == 64);
  check(in_flight::region_bytes(256, true) == 64 + 8192);
  check(in_flight::region_bytes(32768, true) == 64 + (1 << 20));
};
BOTH("regions are multiples of 64 bytes", sizes)

constexpr auto fields = [](auto check) {
  array_memory<64> ram;
  in_flight::fields<array_memory<64>::window_type> f(*ram.window(0, 64, 8, access::write));
  f.set<std::uint16_t>(10, 0x1234);
  f.set<std::uint64_t>(16, 7);
  check(f.get<std::uint16_t>(10) == 0x1234 && f.get<std::uint64_t>(16) == 7);
  f.set<std::uint16_t>(0, in_flight::is_held);
  check(ram.bytes()[0] == std::byte{1} && ram.bytes()[1] == std::byte{0});
};
BOTH("a held entry has 1 in its first byte, on every machine", fields)

} // namespace
