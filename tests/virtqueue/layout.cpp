// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/layout.hpp>

#include "support/check.hpp"

#include <array>
#include <vector>

namespace packed = ballast::packed;
namespace split = ballast::split;
using split::part;

namespace {

constexpr auto offsets = [](auto check) {
  check(split::descriptor_size == 16);
  check(split::descriptor_address(0) == 0 && split::descriptor_rest(0) == 8);
  check(split::descriptor_address(1) == 16 && split::descriptor_rest(1) == 24);
  check(split::descriptor_address(5) == 80 && split::descriptor_rest(5) == 88);
  check(split::descriptor_address(32767) == 524272 && split::descriptor_rest(32767) == 524280);

  check(split::available_flags == 0 && split::available_index == 2);
  check(split::available_entry(0) == 4 && split::available_entry(1) == 6);
  check(split::available_entry(255) == 514 && split::available_entry(32767) == 65538);
  check(split::used_event(1) == 6 && split::used_event(256) == 516);
  check(split::used_event(32768) == 65540);

  check(split::used_flags == 0 && split::used_index == 2);
  check(split::used_id(0) == 4 && split::used_length(0) == 8);
  check(split::used_id(1) == 12 && split::used_length(1) == 16);
  check(split::used_id(255) == 2044 && split::used_length(255) == 2048);
  check(split::used_id(32767) == 262140 && split::used_length(32767) == 262144);
  check(split::available_event(1) == 12 && split::available_event(256) == 2052);
  check(split::available_event(32768) == 262148);
};
BOTH("SP-1 every offset of the split format is the specification's", offsets)

constexpr auto sizes = [](auto check) {
  check(ballast::max_queue_size == 32768);
  check(split::descriptor_table_alignment == 16);
  check(split::available_ring_alignment == 2);
  check(split::used_ring_alignment == 4);
  check(split::descriptor_table_bytes(1) == 16 && split::descriptor_table_bytes(256) == 4096);
  check(split::descriptor_table_bytes(32768) == 524288);
  check(split::available_ring_bytes(1) == 8 && split::available_ring_bytes(256) == 518);
  check(split::available_ring_bytes(32768) == 65542);
  check(split::used_ring_bytes(1) == 14 && split::used_ring_bytes(256) == 2054);
  check(split::used_ring_bytes(32768) == 262150);
  check(split::flag_next == 1 && split::flag_write == 2 && split::flag_indirect == 4);
  check(split::no_interrupt == 1 && split::no_notify == 1);
};
BOTH("SP-1 alignments, sizes and flags of the split format are the specification's", sizes)

constexpr auto valid_sizes = [](auto check) {
  std::uint32_t count = 0;
  for (std::uint32_t size = 0; size <= 1100; ++size) count += split::is_valid_size(size);
  check(count == 11);
  for (std::uint32_t size : {1u, 2u, 4u, 8u, 16u, 32u, 64u, 128u, 256u, 512u, 1024u, 2048u, 4096u,
                             8192u, 16384u, 32768u})
    check(split::is_valid_size(size));
  for (std::uint32_t size : {0u, 3u, 32767u, 32769u, 65536u, 0x8000'0000u, 0xffff'ffffu})
    check(!split::is_valid_size(size));
};
BOTH("RT-5 a queue size is a power of two from 1 to 32768", valid_sizes)

constexpr bool is_placed(std::uint64_t base, const ballast::queue_layout& layout,
                         std::uint64_t end) {
  const auto at = split::place(base, layout.size);
  return at.layout == layout && at.end == end;
}

constexpr auto placed = [](auto check) {
  check(is_placed(0, {256, 0, 4096, 4616}, 6670));
  check(is_placed(1, {1, 16, 32, 40}, 54));
  check(is_placed(0x1'0000'0008, {2, 0x1'0000'0010, 0x1'0000'0030, 0x1'0000'003c}, 0x1'0000'0052));
  check(is_placed(16, {32768, 16, 524304, 589848}, 851998));
};
BOTH("place gives these addresses", placed)

constexpr auto placed_anywhere = [](auto check) {
  for (std::uint32_t size = 1; size <= 32768; size *= 2)
    for (std::uint64_t base = 0; base < 40; ++base) {
      const auto [at, end] = split::place(base, size);
      check(at.size == size);
      check(at.descriptor_area >= base && at.descriptor_area - base < 16);
      check(at.descriptor_area % 16 == 0 && at.driver_area % 2 == 0 && at.device_area % 4 == 0);
      const std::uint64_t table_end = at.descriptor_area + 16 * size;
      check(at.driver_area >= table_end && at.driver_area - table_end < 2);
      const std::uint64_t available_end = at.driver_area + 6 + 2 * size;
      check(at.device_area >= available_end && at.device_area - available_end < 4);
      check(end == at.device_area + 6 + 8 * size);
    }
};
BOTH("SP-2 place aligns every part and wastes less than an alignment", placed_anywhere)

/// The words of a part, written down one after the other.
std::vector<ballast::word_class> words_of(part p, std::uint32_t size) {
  std::vector<ballast::word_class> words;
  const auto put = [&](std::size_t width, bool is_atomic) {
    words.push_back({static_cast<std::uint8_t>(width), is_atomic});
    words.resize(words.size() + width - 1);
  };
  if (p == part::descriptor_table) {
    for (std::uint32_t i = 0; i < 2 * size; ++i) put(8, false);
    return words;
  }
  put(2, true);
  put(2, true);
  if (p == part::available_ring)
    for (std::uint32_t i = 0; i < size; ++i) put(2, false);
  else
    for (std::uint32_t i = 0; i < 2 * size; ++i) put(4, false);
  put(2, true);
  return words;
}

TEST_CASE("word_at is every word of whole rings, and nothing behind them") {
  for (std::uint32_t size : {1u, 2u, 4u, 8u, 16u, 32u, 64u, 128u, 256u, 32768u})
    for (part p : {part::descriptor_table, part::available_ring, part::used_ring}) {
      const auto words = words_of(p, size);
      const std::uint32_t bytes = p == part::descriptor_table ? 16 * size
                                  : p == part::available_ring ? 6 + 2 * size
                                                              : 6 + 8 * size;
      REQUIRE(words.size() == bytes);
      std::size_t wrong = 0;
      for (std::uint32_t offset = 0; offset < bytes; ++offset)
        wrong += split::word_at(p, size, offset) != words[offset];
      for (std::uint32_t offset = bytes; offset < bytes + 64; ++offset)
        wrong += split::word_at(p, size, offset) != ballast::word_class{};
      wrong += split::word_at(p, size, 0xffff'fff8) != ballast::word_class{};
      CHECK(wrong == 0);
    }
}

constexpr auto tiles = [](auto check) {
  for (std::uint32_t size : {1u, 2u, 16u}) {
    const std::array<std::uint32_t, 3> bytes = {16 * size, 6 + 2 * size, 6 + 8 * size};
    for (std::uint32_t p = 0; p < 3; ++p) {
      std::uint32_t offset = 0;
      while (offset < bytes[p]) {
        const auto word = split::word_at(static_cast<part>(p), size, offset);
        check(word.width != 0 && offset % word.width == 0);
        for (std::uint32_t i = 1; i < word.width; ++i)
          check(split::word_at(static_cast<part>(p), size, offset + i).width == 0);
        offset += word.width;
      }
      check(offset == bytes[p]);
    }
  }
  check(split::word_at(static_cast<part>(7), 4, 0).width == 0);
};
BOTH("the words of word_at tile a part without gap or overlap, each aligned", tiles)

template <std::endian E> constexpr bool lies_as_specified() {
  struct bytes {
    unsigned char at[8];
  };
  const auto raw = std::bit_cast<bytes>(split::pack<E>({0x11223344, 0x5566, 0x7788}));
  const bytes little{{0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77}};
  const bytes big{{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88}};
  const bytes& expected = E == std::endian::little ? little : big;
  for (std::size_t i = 0; i < 8; ++i)
    if (raw.at[i] != expected.at[i]) return false;
  return true;
}

constexpr auto packs = [](auto check) {
  check(lies_as_specified<std::endian::little>());
  check(lies_as_specified<std::endian::big>());
};
BOTH("SP-1 length, flags and next lie in a descriptor in this order, in both byte orders", packs)

template <std::endian E> constexpr void round_trip(auto check) {
  for (std::uint32_t bit = 0; bit < 64; ++bit) {
    const std::uint64_t one = std::uint64_t{1} << bit;
    for (std::uint64_t word : {one, ~one, one - 1}) {
      const split::descriptor_fields f{static_cast<std::uint32_t>(word),
                                       static_cast<std::uint16_t>(word >> 32),
                                       static_cast<std::uint16_t>(word >> 48)};
      const auto back = split::unpack<E>(split::pack<E>(f));
      check(back.length == f.length && back.flags == f.flags && back.next == f.next);
      check(split::pack<E>(split::unpack<E>(word)) == word);
    }
  }
}
constexpr auto unpacks = [](auto check) {
  round_trip<std::endian::little>(check);
  round_trip<std::endian::big>(check);
};
BOTH("unpack undoes pack bit by bit, in both byte orders", unpacks)

/// Whether the walk from `old` to `now` steps over `event`: what need_event is short for.
constexpr bool passes(std::uint16_t event, std::uint16_t now, std::uint16_t old) {
  for (std::uint16_t at = old; at != now; ++at)
    if (at == event) return true;
  return false;
}

constexpr auto hand_cases = [](auto check) {
  check(!ballast::need_event(0, 0, 0)); // nothing was added
  check(!ballast::need_event(5, 5, 5));
  check(ballast::need_event(0, 1, 0)); // exactly the one asked for
  check(!ballast::need_event(1, 1, 0));
  check(ballast::need_event(1, 2, 1));
  check(ballast::need_event(2, 4, 0)); // in the middle of a batch
  check(ballast::need_event(3, 4, 0)); // its last
  check(!ballast::need_event(4, 4, 0));
  check(!ballast::need_event(0xffff, 4, 0));     // left behind
  check(ballast::need_event(0xffff, 0, 0xffff)); // over the wrap
  check(!ballast::need_event(0, 0, 0xffff));
  check(ballast::need_event(0, 1, 0xffff));
  check(ballast::need_event(0xfffe, 3, 0xfffe));
  check(ballast::need_event(2, 3, 0xfffe));
  check(!ballast::need_event(3, 3, 0xfffe));
  check(!ballast::need_event(0xfffd, 3, 0xfffe));
  check(ballast::need_event(1, 0, 1)); // a batch of 65535 passes all but one
  check(ballast::need_event(0xffff, 0, 1));
  check(!ballast::need_event(0, 0, 1));
};
BOTH("SP-15 SP-19 need_event in cases worked out by hand", hand_cases)

constexpr auto near_bases = [](auto check) {
  for (std::uint32_t old : {0u, 1u, 0x7ffeu, 0x8000u, 0xfff9u, 0xffffu})
    for (int batch = 0; batch < 9; ++batch)
      for (int event = -10; event < 20; ++event) {
        const auto from = static_cast<std::uint16_t>(old);
        const auto now = static_cast<std::uint16_t>(from + batch);
        const auto at = static_cast<std::uint16_t>(from + event);
        check(ballast::need_event(at, now, from) == passes(at, now, from));
      }
};
BOTH("SP-15 SP-19 need_event is true where the index passes the event, over the wrap", near_bases)

// The 2^32 pairs take seconds only where the code is optimised and nothing watches it.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr std::uint32_t stride = 251;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr std::uint32_t stride = 251;
#else
constexpr std::uint32_t stride = 1;
#endif
#else
constexpr std::uint32_t stride = 1;
#endif

// From 0 the indices that were passed are those below `now`. That stands for every base: adding
// the same number to all three changes neither side of the comparison (the case below).
TEST_CASE("SP-15 SP-19 need_event over all events and indices from one base") {
  std::uint64_t wrong = 0;
  for (std::uint32_t event = 0; event <= 0xffff; event += stride)
    for (std::uint32_t now = 0; now <= 0xffff; ++now)
      wrong += ballast::need_event(static_cast<std::uint16_t>(event),
                                   static_cast<std::uint16_t>(now), 0) != (event < now);
  CHECK(wrong == 0);
}

TEST_CASE("need_event is the same from every base") {
  std::uint64_t wrong = 0;
  for (std::uint32_t base = 0; base <= 0xffff; ++base)
    for (std::uint32_t event = base % 97; event <= 0xffff; event += 4099)
      for (std::uint32_t now = base % 89; now <= 0xffff; now += 4093)
        wrong += ballast::need_event(static_cast<std::uint16_t>(event + base),
                                     static_cast<std::uint16_t>(now + base),
                                     static_cast<std::uint16_t>(base)) != (event < now);
  CHECK(wrong == 0);
}

constexpr auto since_cases = [](auto check) {
  // Where the indices differ by less than a round it is need_event.
  for (std::uint32_t old : {0u, 1u, 0xfff9u, 0xffffu, 0x7'fffau, 0xffff'fffau})
    for (std::uint32_t batch = 0; batch < 9; ++batch)
      for (std::uint32_t event = 0; event < 30; ++event) {
        const auto at = static_cast<std::uint16_t>(old + event - 10);
        check(ballast::need_event_since(at, old + batch, old) ==
              ballast::need_event(at, static_cast<std::uint16_t>(old + batch),
                                  static_cast<std::uint16_t>(old)));
      }
  // A whole round passes every event, and so does every longer way; one less passes all but one.
  for (std::uint32_t old : {0u, 5u, 0xffff'0003u, 0xffff'ffffu})
    for (std::uint32_t event : {0u, 4u, 5u, 6u, 0xffffu}) {
      const auto at = static_cast<std::uint16_t>(event);
      for (std::uint32_t way : {0x1'0000u, 0x1'0001u, 0x2'0000u, 0x8000'0000u, 0xffff'0000u})
        check(ballast::need_event_since(at, old + way, old));
      const bool is_the_one = at == static_cast<std::uint16_t>(old + 0xffff);
      check(ballast::need_event_since(at, old + 0xffff, old) == !is_the_one);
      check(!ballast::need_event_since(at, old, old));
    }
};
BOTH("RT-25 need_event_since does not miss whole rounds", since_cases)

// ---- the contiguous layout of the legacy interface

constexpr auto legacy_numbers = [](auto check) {
  // Worked out by hand, as vring_size() of Linux has them: 256 entries take three pages, the used
  // ring begins with the third.
  struct expected {
    std::uint32_t size, alignment, available, used, bytes;
  };
  for (const expected& e :
       {expected{256, 4096, 4096, 8192, 12288}, expected{128, 4096, 2048, 4096, 8192},
        expected{1, 4096, 16, 4096, 8192}, expected{2, 16, 32, 48, 80},
        expected{4, 64, 64, 128, 192}, expected{1024, 4096, 16384, 20480, 32768},
        expected{32768, 4096, 524288, 593920, 860160}, expected{8, 65536, 128, 65536, 131072}})
    for (std::uint64_t pages : {0ull, 1ull, 0x12345ull}) {
      const ballast::guest_address base = pages * 65536;
      const auto got = split::place_legacy(base, e.size, e.alignment);
      check(got.has_value());
      check(got->layout == ballast::queue_layout{e.size, base, base + e.available, base + e.used});
      check(got->end == base + e.bytes);
    }
};
BOTH("SP-3 the legacy layout has the numbers of vring_size()", legacy_numbers)

TEST_CASE(
    "SP-3 the legacy layout of every size and alignment: nothing overlaps, the least padding") {
  for (std::uint32_t size = 1; size <= 32768; size *= 2)
    for (std::uint32_t alignment = 16; alignment != 0; alignment *= 2) {
      const ballast::guest_address base = std::uint64_t{alignment} * 3;
      const auto got = split::place_legacy(base, size, alignment);
      REQUIRE(got.has_value());
      const auto& at = got->layout;
      // The formula with a division instead of a mask.
      const std::uint64_t first = 16ull * size + 2 * (3ull + size);
      const std::uint64_t second = 2ull * 3 + 8ull * size;
      const std::uint64_t up = (first + alignment - 1) / alignment * alignment;
      CHECK(at.size == size);
      CHECK(at.descriptor_area == base);
      CHECK(at.driver_area == base + 16ull * size);
      CHECK(at.device_area == base + up);
      CHECK(got->end - base == up + (second + alignment - 1) / alignment * alignment);
    }
}

constexpr auto legacy_refused = [](auto check) {
  for (std::uint32_t size : {0u, 3u, 255u, 65536u, 0xffff'ffffu})
    check(split::place_legacy(4096, size, 4096).error() == ballast::error::invalid_queue_size);
  for (std::uint32_t alignment : {0u, 1u, 2u, 4u, 8u, 15u, 17u, 24u, 4095u, 4097u, 0xffff'ffffu})
    check(split::place_legacy(0, 8, alignment).error() == ballast::error::misaligned);
  for (ballast::guest_address base : {1ull, 16ull, 2048ull, 4095ull, 0x1'0000'0800ull, ~0ull})
    check(split::place_legacy(base, 8, 4096).error() == ballast::error::misaligned);
  check(split::place_legacy(2048, 8, 2048).has_value());
};
BOTH("RT-5 a legacy alignment of 0 or no power of two is an error, and so is the size",
     legacy_refused)

// ---- the packed format

constexpr auto packed_offsets = [](auto check) {
  check(packed::descriptor_size == 16 && packed::event_size == 4);
  check(packed::descriptor_ring_alignment == 16 && packed::event_alignment == 4);
  for (std::size_t i : {0u, 1u, 2u, 6u, 99u, 32767u}) {
    check(packed::descriptor_address(i) == 16 * i);
    check(packed::descriptor_rest(i) == 16 * i + 8);
  }
  check(packed::descriptor_ring_bytes(1) == 16 && packed::descriptor_ring_bytes(3) == 48);
  check(packed::descriptor_ring_bytes(32768) == 524288);
  check(packed::flag_next == 1 && packed::flag_write == 2 && packed::flag_indirect == 4);
  check(packed::flag_available == 0x80 && packed::flag_used == 0x8000);
  check(packed::event_enable == 0 && packed::event_disable == 1 && packed::event_descriptor == 2);
};
BOTH("PK-1 PK-16 offsets, alignments, sizes and flags of the packed format are the specification's",
     packed_offsets)

constexpr auto packed_valid_sizes = [](auto check) {
  for (std::uint32_t size = 1; size <= 300; ++size) check(packed::is_valid_size(size));
  for (std::uint32_t size : {1000u, 32766u, 32767u, 32768u}) check(packed::is_valid_size(size));
  for (std::uint32_t size : {0u, 32769u, 65535u, 65536u, 0x8000'0000u, 0xffff'ffffu})
    check(!packed::is_valid_size(size));
};
BOTH("RT-5 PK-1 a packed queue has any size from 1 to 32768", packed_valid_sizes)

constexpr auto packed_placed = [](auto check) {
  const auto is = [&](std::uint64_t base, const ballast::queue_layout& layout, std::uint64_t end) {
    const auto at = packed::place(base, layout.size);
    return at.layout == layout && at.end == end;
  };
  check(is(0, {3, 0, 48, 52}, 56));
  check(is(1, {1, 16, 32, 36}, 40));
  check(is(0x1'0000'000f, {100, 0x1'0000'0010, 0x1'0000'0650, 0x1'0000'0654}, 0x1'0000'0658));
  check(is(16, {32768, 16, 524304, 524308}, 524312));
  for (std::uint32_t size : {1u, 3u, 7u, 100u, 32768u})
    for (std::uint64_t base = 0; base < 40; ++base) {
      const auto [at, end] = packed::place(base, size);
      check(at.size == size && at.descriptor_area % 16 == 0);
      check(at.descriptor_area >= base && at.descriptor_area - base < 16);
      check(at.driver_area == at.descriptor_area + 16 * size && at.driver_area % 4 == 0);
      check(at.device_area == at.driver_area + 4 && end == at.device_area + 4);
    }
};
BOTH("PK-3 the packed place gives these addresses, each part aligned", packed_placed)

constexpr auto packed_word_classes = [](auto check) {
  using packed::part;
  for (std::uint32_t size : {1u, 3u, 7u, 100u}) {
    for (std::uint32_t offset = 0; offset < 16 * size + 64; ++offset) {
      ballast::word_class expected; // the address plain, the rest atomic
      if (offset < 16 * size && offset % 8 == 0) expected = {8, offset % 16 == 8};
      check(packed::word_at(part::descriptor_ring, size, offset) == expected);
    }
    for (part p : {part::driver_event, part::device_event})
      for (std::uint32_t offset = 0; offset < 64; ++offset) {
        const ballast::word_class expected =
            offset == 0 ? ballast::word_class{4, true} : ballast::word_class{};
        check(packed::word_at(p, size, offset) == expected);
      }
  }
  check(packed::word_at(part::descriptor_ring, 32768, 524272) == ballast::word_class{8, false});
  check(packed::word_at(part::descriptor_ring, 32768, 524280) == ballast::word_class{8, true});
  check(packed::word_at(part::descriptor_ring, 32768, 524288).width == 0);
  check(packed::word_at(part::descriptor_ring, 4, 0xffff'fff8).width == 0);
};
BOTH("every word of the packed format: addresses plain, what hands them over atomic",
     packed_word_classes)

template <std::endian E> constexpr bool packed_lies_as_specified() {
  struct bytes {
    unsigned char at[8];
  };
  struct event_bytes {
    unsigned char at[4];
  };
  constexpr bool is_little = E == std::endian::little;
  const auto raw = std::bit_cast<bytes>(packed::pack<E>({0x11223344, 0x5566, 0x7788}));
  const bytes expected = is_little ? bytes{{0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77}}
                                   : bytes{{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88}};
  const auto event = std::bit_cast<event_bytes>(packed::pack_event<E>({0x1122, 0x3344}));
  const event_bytes expected_event =
      is_little ? event_bytes{{0x22, 0x11, 0x44, 0x33}} : event_bytes{{0x11, 0x22, 0x33, 0x44}};
  bool is_right = true;
  for (std::size_t i = 0; i < 8; ++i) is_right = is_right && raw.at[i] == expected.at[i];
  for (std::size_t i = 0; i < 4; ++i) is_right = is_right && event.at[i] == expected_event.at[i];
  return is_right;
}
template <std::endian E> constexpr void packed_round_trip(auto check) {
  check(packed_lies_as_specified<E>());
  for (std::uint32_t bit = 0; bit < 64; ++bit) {
    const std::uint64_t one = std::uint64_t{1} << bit;
    for (std::uint64_t word : {one, ~one, one - 1}) {
      const packed::descriptor_fields f{static_cast<std::uint32_t>(word),
                                        static_cast<std::uint16_t>(word >> 32),
                                        static_cast<std::uint16_t>(word >> 48)};
      const auto back = packed::unpack<E>(packed::pack<E>(f));
      check(back.length == f.length && back.id == f.id && back.flags == f.flags);
      check(packed::pack<E>(packed::unpack<E>(word)) == word);
      check(packed::length_of<E>(packed::pack<E>(f)) == f.length);
      check(packed::pair_of<E>(packed::pack<E>(f)) == (f.id | packed::in_pair(f.flags)));
      const packed::event_fields e{f.id, f.flags};
      const auto again = packed::unpack_event<E>(packed::pack_event<E>(e));
      check(again.place == e.place && again.flags == e.flags);
    }
  }
}
constexpr auto packed_packs = [](auto check) {
  packed_round_trip<std::endian::little>(check);
  packed_round_trip<std::endian::big>(check);
};
BOTH("PK-1 PK-16 packed words lie as specified in both byte orders, and unpack undoes pack",
     packed_packs)

} // namespace
