// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/chain.hpp>

#include "support/check.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "support/changing_memory.hpp"
#include "support/failing_memory.hpp"
#include "support/tiny_segments.hpp"

#include <array>
#include <initializer_list>

using ballast::buffer;
using ballast::buffer_reader;
using ballast::chain;
using ballast::error;

namespace {

constexpr ballast::guest_address base = 0x7'0000'0100;
constexpr std::size_t ram_size = 512;
using ram_type = ballast::array_memory<ram_size>;

constexpr auto chains = [](auto check) {
  const chain none;
  check(none.readable().empty() && none.writable().empty());
  check(none.id() == ballast::chain_id{});

  const buffer buffers[] = {{1, 10}, {2, 20}, {3, 30}};
  const ballast::chain_id id{.head = 7, .epoch = 0x1'0001};
  for (std::uint32_t readable = 0; readable <= 3; ++readable) {
    const chain c(id, buffers, readable, 3 - readable);
    check(c.id() == id);
    check(c.readable().size() == readable && c.writable().size() == 3 - readable);
    for (std::uint32_t i = 0; i < 3; ++i)
      check((i < readable ? c.readable()[i] : c.writable()[i - readable]) == buffers[i]);
  }
  check(ballast::chain_id{.head = 7, .epoch = 1} != ballast::chain_id{.head = 7, .epoch = 2});
  check(ballast::chain_id{.head = 6, .epoch = 1} != ballast::chain_id{.head = 7, .epoch = 1});
};
BOTH("a chain hands out its readable buffers, then its writable ones", chains)

constexpr auto totals = [](auto check) {
  check(ballast::total_bytes({}) == 0);
  const buffer buffers[] = {{0, 0xffff'ffff}, {~0ull, 0xffff'ffff}, {5, 0}, {6, 3}};
  check(ballast::total_bytes(buffers) == 0x2'0000'0001);
};
BOTH("total_bytes does not wrap at 32 bits", totals)

/// Byte i of the text every test reads.
constexpr std::byte text(std::size_t i) noexcept { return static_cast<std::byte>(0x40 + 7 * i); }

/// A text of `length` bytes cut where `cuts` has a bit: its pieces lie apart and in descending
/// order in memory; with `with_empty` there are buffers of no bytes in between, which point
/// outside.
struct framing {
  std::array<buffer, 40> buffers{};
  std::size_t count = 0;

  constexpr void put(buffer b) noexcept { buffers[count++] = b; }
  constexpr std::span<const buffer> span() const noexcept { return {buffers.data(), count}; }
};

constexpr framing cut(ram_type& ram, std::uint32_t length, std::uint32_t cuts, bool with_empty) {
  framing made;
  ballast::guest_address at = base + ram_size;
  for (std::uint32_t from = 0; from < length;) {
    std::uint32_t to = from + 1;
    while (to < length && (cuts >> (to - 1) & 1) == 0) ++to;
    at -= to - from;
    for (std::uint32_t i = from; i < to; ++i) {
      const std::byte one[] = {text(i)};
      if (!ram.write(at + i - from, one)) made.count = 99; // out of bounds: can't go on
    }
    if (with_empty) made.put({0, 0});
    made.put({at, to - from});
    if (with_empty) made.put({~0ull, 0});
    at -= 3;
    from = to;
  }
  return made;
}

/// Whether reading `length` bytes in steps of `step` gives the text, then the end, again and again.
template <class M>
constexpr bool reads_text(M& memory, std::span<const buffer> buffers, std::size_t length,
                          std::size_t step) {
  buffer_reader<M> reader(memory, buffers);
  std::array<std::byte, 40> to{};
  std::size_t done = 0;
  for (bool is_end = false; !is_end;) {
    to.fill(std::byte{0xee});
    const auto n = reader.read(std::span(to).first(step));
    if (!n || *n > step || done + *n > length) return false;
    for (std::size_t i = 0; i < *n; ++i)
      if (to[i] != text(done + i)) return false;
    for (std::size_t i = *n; i < to.size(); ++i)
      if (to[i] != std::byte{0xee}) return false;
    done += *n;
    is_end = *n < step; // short only at the end
  }
  for (int again = 0; again < 2; ++again) {
    const auto n = reader.read(std::span(to).first(step));
    if (!n || *n != 0) return false;
  }
  return done == length;
}

constexpr auto framings = [](auto check) {
  for (std::uint32_t cuts : {0u, 1u, 16u, 21u, 31u})
    for (bool with_empty : {false, true})
      for (std::size_t step : {std::size_t{1}, std::size_t{2}, std::size_t{4}, std::size_t{7}}) {
        ram_type ram(base);
        const framing f = cut(ram, 6, cuts, with_empty);
        check(reads_text(ram, f.span(), 6, step));
      }
};
BOTH("SP-4 RT-1 RT-17 a reader gives the same bytes however they are cut", framings)

TEST_CASE("SP-4 RT-17 every cut of 11 bytes, read in steps of every size") {
  std::size_t wrong = 0;
  for (std::uint32_t cuts = 0; cuts < 1u << 10; ++cuts)
    for (bool with_empty : {false, true}) {
      ram_type ram(base);
      const framing f = cut(ram, 11, cuts, with_empty);
      ballast_test::tiny_segments<ram_type> tiny(ram, 1);
      ballast_test::tiny_segments<ram_type> hidden(ram, 2, true);
      for (std::size_t step = 1; step <= 13; ++step) {
        wrong += !reads_text(ram, f.span(), 11, step);
        wrong += !reads_text(tiny, f.span(), 11, step);
        wrong += !reads_text(hidden, f.span(), 11, step);
      }
    }
  CHECK(wrong == 0);
}

constexpr auto empty = [](auto check) {
  ram_type ram(base);
  std::array<std::byte, 4> to{};
  buffer_reader<ram_type> nothing(ram, {});
  check(nothing.read(to).has_value() && *nothing.read(to) == 0);

  const buffer no_bytes[] = {{base, 0}, {0, 0}, {~0ull, 0}}; // none is accessed
  buffer_reader<ram_type> zero(ram, no_bytes);
  check(zero.read(to).has_value() && *zero.read(to) == 0);

  const framing f = cut(ram, 5, 2, true);
  buffer_reader<ram_type> reader(ram, f.span());
  for (int i = 0; i < 3; ++i) {
    const auto n = reader.read(std::span(to).first(0)); // asks for nothing, moves nothing
    check(n.has_value() && *n == 0);
  }
  const auto n = reader.read(to);
  check(n.has_value() && *n == 4 && to[0] == text(0) && to[3] == text(3));
};
BOTH("RT-1 buffers and reads of no bytes read nothing and touch no memory", empty)

constexpr auto outside = [](auto check) {
  const ballast::guest_address end = base + ram_size;
  const buffer bad[] = {
      {base - 1, 2}, {base - 1, 1},  {end - 1, 2},         {end, 1},           {0, 1},
      {~0ull, 1},    {~0ull - 1, 4}, {base, ram_size + 1}, {base, 0xffff'ffff}};
  for (const buffer& b : bad)
    for (std::size_t before = 0; before < 3; ++before) {
      ram_type ram(base);
      std::array<buffer, 4> buffers{};
      for (std::size_t i = 0; i < before; ++i) buffers[i] = {base + 8 * i, 2};
      buffers[before] = b;
      buffers[before + 1] = {base, 2}; // a good one behind it is never reached
      buffer_reader<ram_type> reader(ram, std::span(buffers).first(before + 2));
      std::array<std::byte, ram_size + 16> to{};
      for (std::size_t i = 0; i < before; ++i) {
        const auto good = reader.read(std::span(to).first(2));
        check(good.has_value() && *good == 2);
      }
      for (int again = 0; again < 3; ++again)
        check(reader.read(to).error() == error::not_guest_memory);
    }
};
BOTH("RT-14 a buffer outside memory is an error for ever, never the end", outside)

constexpr auto in_one_go = [](auto check) {
  ram_type ram(base);
  const buffer buffers[] = {{base, 4}, {base - 8, 4}, {base + 8, 4}};
  buffer_reader<ram_type> reader(ram, buffers);
  std::array<std::byte, 12> to{};
  check(reader.read(to).error() == error::not_guest_memory);
  check(reader.read(to).error() == error::not_guest_memory);
  check(reader.read(std::span(to).first(1)).error() == error::not_guest_memory);
};
BOTH("RT-14 a read that runs into a bad buffer is an error, not a short count", in_one_go)

constexpr auto partly = [](auto check) {
  // Byte by byte what lies in memory can be read, and what does not can't.
  ram_type ram(base);
  const buffer last[] = {{base + ram_size - 2, 4}};
  buffer_reader<ram_type> reader(ram, last);
  std::array<std::byte, 1> one{};
  check(reader.read(one).has_value() && reader.read(one).has_value());
  check(reader.read(one).error() == error::not_guest_memory);
  check(reader.read(one).error() == error::not_guest_memory);

  // At the very end of the address space.
  ballast::array_memory<16> top(0ull - 16);
  const buffer wraps[] = {{0ull - 2, 4}};
  buffer_reader<ballast::array_memory<16>> top_reader(top, wraps);
  check(top_reader.read(one).has_value() && top_reader.read(one).has_value());
  check(top_reader.read(one).error() == error::not_guest_memory);
};
BOTH("RT-14 a buffer that leaves memory, or wraps, is an error where it does", partly)

constexpr auto failures = [](auto check) {
  for (std::uint64_t n = 1;; ++n) {
    ram_type ram(base);
    const framing f = cut(ram, 6, 5, true);
    ballast_test::failure_plan plan{.fail_at = n};
    ballast_test::failing_memory<ram_type> memory(ram, plan);
    buffer_reader<ballast_test::failing_memory<ram_type>> reader(memory, f.span());
    std::array<std::byte, 6> to{};
    const auto read = reader.read(to);
    if (plan.fallible < n) {
      check(read.has_value() && *read == 6);
      check(n == 4); // three buffers have bytes
      break;
    }
    check(read.error() == error::not_guest_memory);
  }
  for (std::uint64_t n = 1; n <= 3; ++n) {
    ram_type ram(base);
    const framing f = cut(ram, 6, 5, true);
    ballast_test::failure_plan plan{.lose_at = n};
    ballast_test::failing_memory<ram_type> memory(ram, plan);
    buffer_reader<ballast_test::failing_memory<ram_type>> reader(memory, f.span());
    std::array<std::byte, 6> to{};
    check(reader.read(to).error() == error::memory_lost);
    check(reader.read(to).error() == error::memory_lost);
  }
};
BOTH("RT-14 whichever access fails, the read is an error and names what failed", failures)

constexpr auto fetched_once = [](auto check) {
  for (std::size_t step : {std::size_t{1}, std::size_t{4}, std::size_t{7}}) {
    ram_type ram(base);
    const framing f = cut(ram, 6, 5, true);
    ballast_test::change_plan plan{.mask = ~0ull, .rewrites_payload = true};
    ballast_test::changing_memory<ram_type> memory(ram, plan);
    check(reads_text(memory, f.span(), 6, step));
  }
};
BOTH("RT-15 a reader copies each byte once", fetched_once)

// ---- for_each_segment

constexpr auto segments = [](auto check) {
  ram_type ram(base);
  const buffer buffers[] = {{base + 4, 10}, {~0ull, 0}, {base + 500, 12}, {base, 1}};
  for (std::uint64_t longest : {1u, 3u, 7u, 512u})
    for (const auto k : {ballast::access::read, ballast::access::write}) {
      ballast_test::tiny_segments<ram_type> tiny(ram, longest);
      std::array<std::uint8_t, ram_size> seen{};
      std::uint64_t bytes = 0, pieces = 0, at = 4;
      const auto done =
          ballast::for_each_segment(tiny, buffers, k, [&](const ballast::memory_segment& piece) {
            check(piece.data != nullptr && piece.size != 0 && piece.size <= longest);
            // In order, without a gap: 4 to 14, 500 to 512, 0.
            if (at == 14) at = 500;
            if (at == 512) at = 0;
            check(piece.data == ram.bytes().data() + at);
            for (std::uint64_t i = 0; i < piece.size; ++i) ++seen[at++];
            bytes += piece.size;
            ++pieces;
          });
      check(done && *done == 23 && bytes == 23);
      check(pieces == (9 + longest) / longest + (11 + longest) / longest + 1);
      for (std::size_t i = 0; i < ram_size; ++i)
        check(seen[i] == ((i >= 4 && i < 14) || i >= 500 || i == 0 ? 1 : 0));
    }
  check(*ballast::for_each_segment(ram, {}, ballast::access::read,
                                   [&](const ballast::memory_segment&) { check(false); }) == 0);
};
BOTH("RT-1 RT-14 segments cover a device's buffers in order, however small the pieces", segments)

constexpr auto segments_outside = [](auto check) {
  ram_type ram(base);
  struct bad {
    buffer data;
    std::uint64_t before; // bytes handed out of it
  };
  for (const bad& b : {bad{{base + 500, 13}, 12}, bad{{base + 512, 1}, 0}, bad{{0, 1}, 0},
                       bad{{base - 1, 4}, 0}, bad{{~0ull, 2}, 0}, bad{{base, 0xffff'ffff}, 512}})
    for (const auto k : {ballast::access::read, ballast::access::write}) {
      const buffer buffers[] = {{base, 7}, b.data, {base, 1}};
      std::uint64_t bytes = 0;
      const auto done = ballast::for_each_segment(
          ram, buffers, k, [&](const ballast::memory_segment& piece) { bytes += piece.size; });
      check(done.error() == error::not_guest_memory && bytes == 7 + b.before);
    }
};
BOTH("RT-14 a device's buffer that leaves memory is an error where it does", segments_outside)

constexpr auto segments_hidden = [](auto check) {
  // Memory that can't be pointed at is no place to hand out, and says so; so is memory that is
  // lost.
  ram_type ram(base);
  const buffer buffers[] = {{base, 8}};
  const auto none = [&](const ballast::memory_segment&) { check(false); };
  for (const auto k : {ballast::access::read, ballast::access::write}) {
    ballast_test::tiny_segments<ram_type> hidden(ram, 8, true);
    check(ballast::for_each_segment(hidden, buffers, k, none).error() == error::access_not_allowed);
    const buffer nowhere[] = {{0, 8}};
    check(ballast::for_each_segment(hidden, nowhere, k, none).error() == error::not_guest_memory);
    ballast_test::failure_plan plan{.lose_at = 1};
    ballast_test::failing_memory<ram_type> lost(ram, plan);
    check(ballast::for_each_segment(lost, buffers, k, none).error() == error::memory_lost);
  }
  // Lost in the middle: the pieces before were handed out.
  ballast_test::tiny_segments<ram_type> tiny(ram, 2);
  ballast_test::failure_plan plan{.lose_at = 3};
  ballast_test::failing_memory<ballast_test::tiny_segments<ram_type>> lost(tiny, plan);
  std::uint64_t bytes = 0;
  check(
      ballast::for_each_segment(lost, buffers, ballast::access::read,
                                [&](const ballast::memory_segment& piece) { bytes += piece.size; })
          .error() == error::memory_lost);
  check(bytes == 4);
};
BOTH("RT-14 segments of a device's memory that can't be pointed at, or is lost", segments_hidden)

TEST_CASE("RT-14 a device's segments over regions, holes and read-only memory") {
  alignas(4096) static std::array<std::byte, 3 * 4096> host{};
  // The first two follow one another in the guest and not in the host; the third is read-only and
  // follows the second in both.
  const std::array<ballast::memory_region, 3> regions{
      {{base & ~0xfffull, host.data() + 4096, 4096, true},
       {(base & ~0xfffull) + 4096, host.data(), 4096, true},
       {(base & ~0xfffull) + 8192, host.data() + 8192, 4096, false}}};
  auto ram = ballast::mapped_memory::over(regions);
  REQUIRE(ram.has_value());
  const ballast::guest_address start = base & ~0xfffull;
  const auto walk = [&](std::initializer_list<buffer> buffers, ballast::access k,
                        std::uint64_t& bytes) {
    bytes = 0;
    return ballast::for_each_segment(*ram, std::span(buffers.begin(), buffers.size()), k,
                                     [&](const ballast::memory_segment& piece) {
                                       bytes += piece.size;
                                       CHECK(piece.data >= host.data());
                                       CHECK(piece.data + piece.size <= host.data() + host.size());
                                     });
  };
  std::uint64_t bytes = 0;
  const auto all = walk({{start, 12288}}, ballast::access::read, bytes);
  CHECK(all.error() == error::none);
  CHECK(*all == 12288);
  CHECK(bytes == 12288);
  CHECK(walk({{start + 4000, 5000}}, ballast::access::write, bytes).error() ==
        error::access_not_allowed);
  CHECK(bytes == 4192); // up to the read-only region
  CHECK(walk({{start + 8192, 1}}, ballast::access::write, bytes).error() ==
        error::access_not_allowed);
  CHECK(walk({{start + 4000, 4192}}, ballast::access::write, bytes).error() == error::none);
  CHECK(walk({{start + 12000, 300}}, ballast::access::read, bytes).error() ==
        error::not_guest_memory);
  CHECK(bytes == 288);
  CHECK(walk({{start + 12288, 1}}, ballast::access::write, bytes).error() ==
        error::not_guest_memory);
}

} // namespace
