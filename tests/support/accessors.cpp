// SPDX-License-Identifier: BSD-3-Clause
// The accessors that tests look through must themselves catch what they are for.
#include "support/changing_memory.hpp"
#include "support/checked_memory.hpp"
#include "support/failing_memory.hpp"
#include "support/recording_memory.hpp"
#include "support/tiny_segments.hpp"

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
using namespace ballast_test;

using ram_type = array_memory<512>;
static_assert(guest_memory<checked_memory<ram_type, 512>>);
static_assert(guest_memory<failing_memory<ram_type>>);
static_assert(guest_memory<changing_memory<ram_type>>);
static_assert(guest_memory<tiny_segments<ram_type>>);
static_assert(guest_memory<recording_memory<ram_type, 16>>);
static_assert(guest_memory<checked_memory<changing_memory<failing_memory<ram_type>>, 512>>);

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr bool same_text(const char* a, const char* b) {
  if (a == nullptr || b == nullptr) return a == b;
  while (*a != '\0' && *a == *b) ++a, ++b;
  return *a == *b;
}

// ---- checked_memory ----

constexpr auto passes_through = [](auto check) {
  ram_type ram(0x1000);
  access_record<512> record(0x1000);
  checked_memory seen(ram, record);
  auto w = *seen.window(0x1010, 64, 8, access::write);
  w.template store<u64>(8, 0x1122334455667788, order::plain);
  check((*ram.window(0x1018, 8, 8, access::read)).template load<u64>(0, order::plain) ==
        0x1122334455667788);
  check(w.template load<u64>(8, order::plain) == 0x1122334455667788);
  check(seen.window(0, 8, 8, access::read).error() == error::not_guest_memory);
  check(seen.window(0x1001, 8, 8, access::read).error() == error::misaligned);
  check(seen.segment(0x1100, 9, access::read).size == 9 && seen.good());
  check(!record.fault() && record.words() == 1);
  check(record.at(0x1018) == word_class{8, false} && record.at(0x1019) == word_class{});
};
BOTH("checked memory hands accesses on and enters the words", passes_through)

// Makes one access after a plain 32-bit store at offset 4, and says what the record found wrong.
template <class F> constexpr const char* found_after(F access_again) {
  ram_type ram;
  access_record<256> record;
  checked_memory one_side(ram, record), other_side(ram, record);
  auto a = *one_side.window(0, 512, 8, access::write);
  a.template store<u32>(4, 1, order::plain);
  auto b = *other_side.window(0, 512, 8, access::write);
  access_again(b, other_side);
  return record.fault().what;
}

constexpr auto faults = [](auto check) {
  const auto finds = [&](const char* text, auto access_again) {
    check(same_text(found_after(access_again), text));
  };
  const char* const widths = "word used with two widths";
  const char* const classes = "word used plain and atomic";
  finds(nullptr, [](auto& w, auto&) { (void)w.template load<u32>(4, order::plain); });
  finds(nullptr, [](auto& w, auto&) { w.template store<u32>(4, 2, order::plain); });
  finds(nullptr, [](auto& w, auto&) { w.template store<u16>(2, 2, order::release); });
  finds(widths, [](auto& w, auto&) { (void)w.template load<u16>(4, order::plain); });
  finds(widths, [](auto& w, auto&) { (void)w.template load<u16>(6, order::plain); });
  finds(widths, [](auto& w, auto&) { (void)w.template load<u64>(0, order::plain); });
  finds(widths, [](auto& w, auto&) { w.template store<u16>(4, 2, order::release); });
  finds(classes, [](auto& w, auto&) { (void)w.template load<u32>(4, order::acquire); });
  finds(classes, [](auto& w, auto&) { (void)w.template load<u32>(4, order::relaxed); });
  finds(classes, [](auto& w, auto&) { w.template store<u32>(4, 2, order::release); });
  finds("misaligned word", [](auto& w, auto&) { (void)w.template load<u32>(10, order::plain); });
  finds("misaligned word", [](auto& w, auto&) { w.template store<u64>(20, 2, order::plain); });
  finds("misaligned word", [](auto& w, auto&) { (void)w.template load<u16>(3, order::relaxed); });
  finds("word outside of the record",
        [](auto& w, auto&) { (void)w.template load<u16>(256, order::plain); });
  finds("load with order release",
        [](auto& w, auto&) { (void)w.template load<u32>(4, order::release); });
  finds("store with order acquire",
        [](auto& w, auto&) { w.template store<u32>(4, 2, order::acquire); });
  finds("payload copy touches a ring word", [](auto&, auto& memory) {
    std::byte copy[2]{};
    (void)memory.read(7, copy);
  });
  finds("payload copy touches a ring word", [](auto&, auto& memory) {
    const std::byte copy[2]{};
    (void)memory.write(3, copy);
  });
  finds(nullptr, [](auto&, auto& memory) {
    std::byte copy[4]{};
    (void)memory.read(0, copy);
    (void)memory.write(8, copy);
  });
};
BOTH("a word used by either side with another width, class, alignment or order is a fault", faults)

constexpr auto first_fault = [](auto check) {
  ram_type ram;
  access_record<256> record;
  checked_memory seen(ram, record);
  auto w = *seen.window(0, 512, 8, access::write);
  w.template store<u64>(8, 1, order::plain);
  (void)w.template load<u16>(12, order::relaxed);
  (void)w.template load<u32>(2, order::plain);
  check(record.fault().address == 8);
  check(record.fault().before == word_class{8, false});
  check(record.fault().now == word_class{2, true});
};
BOTH("the record keeps the first fault with its word and both uses", first_fault)

constexpr auto double_fetches = [](auto check) {
  ram_type ram;
  access_record<256> record;
  checked_memory seen(ram, record);
  auto w = *seen.window(0, 256, 8, access::write);
  w.template store<u16>(0, 1, order::release);
  w.template store<u64>(8, 1, order::plain);
  for (int i = 0; i < 2; ++i) (void)w.template load<u16>(0, order::acquire); // polled by right
  (void)w.template load<u64>(8, order::plain);
  w.template store<u64>(8, 2, order::plain);
  (void)w.template load<u64>(8, order::plain);
  check(!record.double_fetch());
  (void)w.template load<u64>(8, order::plain);
  check(record.double_fetch() && record.double_fetch().address == 8 && !record.fault());
};
BOTH("a plain word loaded twice without a store in between is a double fetch", double_fetches)

constexpr auto layouts = [](auto check) {
  constexpr u32 size = 4;
  const auto first = split::place(0, size);
  const auto second = split::place(first.end, size);
  const std::array both{first.layout, second.layout};
  // Uses one word of the second queue and compares.
  const auto fits = [&](guest_address address, auto value, order o) {
    ram_type ram;
    access_record<512> record;
    checked_memory seen(ram, record);
    auto w = *seen.window(0, 512, 8, access::write);
    w.store(static_cast<u32>(address), value, o);
    check(!record.fault() && record.words() == 1);
    const access_fault wrong = record.compare(split_words(both));
    check(!wrong || wrong.address == address);
    return !wrong;
  };
  const queue_layout& at = second.layout;
  check(fits(at.descriptor_area + split::descriptor_rest(1), u64{1}, order::plain));
  check(!fits(at.descriptor_area + split::descriptor_rest(1), u32{1}, order::plain));
  check(!fits(at.descriptor_area + split::descriptor_rest(1), u64{1}, order::relaxed));
  check(fits(at.driver_area + split::available_index, u16{1}, order::release));
  check(!fits(at.driver_area + split::available_index, u16{1}, order::plain));
  check(fits(at.driver_area + split::available_entry(3), u16{1}, order::plain));
  check(fits(at.driver_area + split::used_event(size), u16{1}, order::relaxed));
  check(fits(at.device_area + split::used_id(3), u32{1}, order::plain));
  check(!fits(at.device_area + split::used_id(3), u16{1}, order::plain));
  check(fits(at.device_area + split::available_event(size), u16{1}, order::relaxed));
  check(fits(first.layout.device_area + split::used_flags, u16{1}, order::relaxed));
  check(!fits(504, u64{1}, order::plain)); // behind both queues
};
BOTH("a record agrees with the layout exactly if every word has the layout's class", layouts)

// ---- failing_memory ----

constexpr auto nth_fails = [](auto check) {
  std::uint64_t tries = 0;
  for (std::uint64_t n = 1;; ++n) {
    ram_type ram;
    failure_plan plan{.fail_at = n};
    failing_memory memory(ram, plan);
    std::byte copy[2]{std::byte{1}, std::byte{1}};
    check(memory.window(0, 8, 8, access::read).error() ==
          (n == 1 ? error::not_guest_memory : error::none));
    check((memory.segment(0, 8, access::read).size == 0) == (n == 2));
    check(memory.read(0, copy) == (n != 3));
    check((copy[0] == std::byte{1}) == (n == 3)); // untouched by the failure
    copy[0] = std::byte{5};
    check(memory.write(0, copy) == (n != 4));
    check((ram.bytes()[0] == std::byte{5}) == (n != 4));
    check(memory.good());
    ++tries;
    if (plan.fallible < n) break;
  }
  check(tries == 5); // each of the four, and the run that none fails
};
BOTH("failing memory fails the n-th fallible access only, and that one does nothing", nth_fails)

constexpr auto fails_on = [](auto check) {
  ram_type ram;
  failure_plan plan{
      .fail_at = 2, .fails_from_then = true, .window_error = error::access_not_allowed};
  failing_memory memory(ram, plan);
  std::byte copy[1]{};
  check(memory.read(0, copy) && !memory.read(0, copy) && !memory.write(0, copy));
  check(memory.window(0, 8, 8, access::write).error() == error::access_not_allowed);
  check(memory.good());
};
BOTH("failing memory can fail from the n-th access on, with a given error", fails_on)

constexpr auto loses = [](auto check) {
  for (std::uint64_t n = 1; n <= 5; ++n) {
    ram_type ram;
    (*ram.window(0, 8, 8, access::write)).template store<u16>(0, 7, order::plain);
    failure_plan plan{.lose_at = n, .garbage = 0xabcdef};
    failing_memory memory(ram, plan);
    const auto window = memory.window(0, 8, 8, access::write); // access 1
    check(window.error() == (n == 1 ? error::memory_lost : error::none));
    check(memory.good() == (n > 1));
    if (!window) continue;
    auto w = *window;
    check(w.template load<u16>(0, order::acquire) == (n == 2 ? 0xcdef : 7));
    w.template store<u16>(2, 9, order::release); // access 3
    check((ram.bytes()[2] == ram.bytes()[3]) == (n <= 3));
    check(w.template load<u16>(0, order::acquire) == (n <= 4 ? 0xcdef : 7));
    std::byte copy[1]{};
    check(!memory.read(0, copy) && !memory.write(0, copy)); // access 5 at the latest
    check(memory.segment(0, 1, access::read).size == 0);
    check(memory.window(0, 8, 8, access::read).error() == error::memory_lost);
    check(!memory.good());
  }
};
BOTH("memory lost at the n-th access stays lost: loads give garbage, nothing is stored", loses)

/// A number as a little-endian ring holds it.
template <class T> constexpr T ring(T n) { return ballast::to_order<std::endian::little>(n); }

// ---- changing_memory ----

constexpr auto kth_changes = [](auto check) {
  for (std::uint64_t k = 1; k <= 4; ++k) {
    ram_type ram;
    change_plan plan{.change_load = k, .mask = 0x8001};
    changing_memory memory(ram, plan);
    auto w = *memory.window(0, 64, 8, access::write);
    w.template store<u16>(0, ring(u16{2}), order::plain);
    w.template store<u64>(8, ring(u64{4}), order::plain);
    check(w.template load<u16>(0, order::plain) == ring(k == 1 ? u16{0x8003} : u16{2}));
    check(w.template load<u16>(0, order::acquire) == ring(k == 2 ? u16{0x8003} : u16{2}));
    check(w.template load<u64>(8, order::plain) == ring(k == 3 ? u64{0x8005} : u64{4}));
    check(plan.loads == 3);
    check((*ram.window(0, 8, 8, access::read)).template load<u16>(0, order::plain) == ring(u16{2}));
  }
};
BOTH("changing memory changes the k-th load only, and memory not at all", kth_changes)

constexpr auto replaces = [](auto check) {
  ram_type ram;
  change_plan plan{.change_load = 1, .is_replaced = true, .replacement = 0xffff0005};
  changing_memory memory(ram, plan);
  auto w = *memory.window(0, 64, 8, access::write);
  check(w.template load<u16>(0, order::plain) == ring(u16{5}));
  check(w.template load<u16>(0, order::plain) == 0);
};
BOTH("changing memory can replace the word", replaces)

constexpr auto kth_read = [](auto check) {
  ram_type ram;
  change_plan plan{.change_read = 2, .mask = 0x0201, .read_offset = 1};
  changing_memory memory(ram, plan);
  std::array<std::byte, 4> copy{};
  check(memory.read(0, copy) && copy == std::array<std::byte, 4>{});
  check(memory.read(0, copy) &&
        copy == std::array{std::byte{0}, std::byte{1}, std::byte{2}, std::byte{0}});
  check(memory.read(0, copy) && copy == std::array<std::byte, 4>{});
  check(!memory.read(512, copy) && plan.reads == 3);
};
BOTH("changing memory changes the k-th payload read only", kth_read)

constexpr auto rewrites = [](auto check) {
  ram_type ram;
  change_plan plan{.mask = 4, .rewrites_words = true, .rewrites_payload = true};
  changing_memory memory(ram, plan);
  auto w = *memory.window(0, 64, 8, access::write);
  w.template store<u32>(4, ring(u32{1}), order::plain);
  w.template store<u16>(0, ring(u16{1}), order::release);
  check(w.template load<u32>(4, order::plain) == ring(u32{1})); // a single fetch sees the truth
  check(w.template load<u32>(4, order::plain) == ring(u32{5})); // a second one does not
  w.template store<u32>(4, ring(u32{1}), order::plain);
  check(w.template load<u32>(4, order::plain) == ring(u32{1}));
  check(w.template load<u16>(0, order::acquire) == ring(u16{1}));
  check(w.template load<u16>(0, order::acquire) == ring(u16{1})); // polled by right
  std::array<std::byte, 1> copy{};
  check(memory.read(64, copy) && copy[0] == std::byte{0});
  check(memory.read(64, copy) && copy[0] == std::byte{4});
};
BOTH("rewriting memory tells a second fetch of a plain word or payload from a first", rewrites)

// ---- tiny_segments ----

constexpr auto tiny = [](auto check) {
  ram_type ram;
  for (std::uint64_t longest = 1; longest <= 3; ++longest) {
    tiny_segments memory(ram, longest);
    check(memory.segment(5, 100, access::read).size == longest);
    check(memory.segment(5, 1, access::read).size == 1);
    check(memory.segment(5, 100, access::write).data == ram.bytes().data() + 5);
    check(memory.segment(511, 100, access::read).size == 1);
    check(memory.segment(512, 100, access::read).size == 0);
    std::array<std::byte, 8> copy{};
    check(memory.read(0, copy) && memory.write(0, copy)); // these have no such limit
    check(memory.window(0, 64, 8, access::read).has_value() && memory.good());
  }
  tiny_segments hidden(ram, 64, true);
  check(hidden.segment(0, 100, access::read).size == 64);
  check(hidden.segment(0, 100, access::read).data == nullptr);
};
BOTH("tiny segments are at most so long, and can hide their pointers", tiny)

// ---- recording_memory ----

constexpr auto records = [](auto check) {
  ram_type ram(0x1000);
  event_log<8> log;
  recording_memory memory(ram, log);
  auto w = *memory.window(0x1010, 64, 8, access::write);
  w.template store<u32>(4, ring(u32{7}), order::plain);
  log.mark(99);
  w.template store<u16>(2, ring(u16{1}), order::release);
  memory.fence();
  check(w.template load<u16>(2, order::acquire) == ring(u16{1}));
  std::byte copy[3]{};
  check(memory.write(0x1100, copy) && memory.read(0x1100, copy));

  check(log.size() == 8 && log.lost() == 0);
  using enum event_kind;
  check(log[0] == memory_event{window, order::plain, 0x1010, 64, 0});
  check(log[1] == memory_event{store, order::plain, 0x1014, 4, 7});
  check(log[2] == memory_event{mark, order::plain, 99, 0, 0});
  check(log[3] == memory_event{store, order::release, 0x1012, 2, 1});
  check(log[4] == memory_event{fence, order::plain, 0, 0, 0});
  check(log[5] == memory_event{load, order::acquire, 0x1012, 2, 1});
  check(log[6] == memory_event{write, order::plain, 0x1100, 3, 0});
  check(log[7] == memory_event{read, order::plain, 0x1100, 3, 0});

  check(log.find(mark, 99) < log.find(store, 0x1012));
  check(log.find(store, 0x1012, 4) == log.npos && log.find(load, 0x1014) == log.npos);
  check(log.count(store) == 2 && log.count(segment) == 0);

  (void)memory.segment(0x1000, 1, access::read);
  check(log.size() == 8 && log.lost() == 1); // no room: said, not silent
  log.clear();
  (void)memory.segment(0x1000, 1, access::read);
  check(log.size() == 1 && log.lost() == 0 && log[0].kind == segment);
};
BOTH("recording memory logs every access in order, with its order and value", records)

} // namespace
