// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/statistics.hpp>

#include "support/check.hpp"

namespace {

using namespace ballast::balloon;
using enum std::endian;

constexpr auto tag_of(std::uint32_t number) { return static_cast<statistic_tag>(number); }

// A buffer that is put together without the library.
struct buffer {
  std::byte bytes[512]{};
  std::size_t size = 0;

  constexpr void put(std::uint64_t value, std::size_t width, std::endian order) {
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t shift = 8 * (order == little ? i : width - 1 - i);
      bytes[size++] = static_cast<std::byte>((value >> shift) & 0xff);
    }
  }
  constexpr void entry(std::uint32_t tag, std::uint64_t value, std::endian order = little) {
    put(tag, 2, order);
    put(value, 8, order);
  }
  constexpr std::span<const std::byte> span() const { return std::span(bytes).first(size); }
};

// A value of eight different bytes for each tag, so that a byte out of place shows.
constexpr std::uint64_t value_of(std::uint32_t tag) {
  return 0x1122334455667700u + 0x0101010101010101 * tag;
}

// In which order Linux reports, by version and configuration.
constexpr std::uint8_t linux_full[] = {0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 8, 9, 4, 5, 6, 7};
constexpr std::uint8_t linux_no_hugetlb[] = {0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 4, 5, 6, 7};
constexpr std::uint8_t linux_before_6_12[] = {0, 1, 2, 3, 8, 9, 4, 5, 6, 7};
constexpr std::uint8_t linux_before_hugetlb[] = {0, 1, 2, 3, 4, 5, 6, 7};
constexpr std::uint8_t linux_no_events[] = {4, 5, 6, 7};

constexpr buffer linux_buffer(std::span<const std::uint8_t> tags, std::endian order = little) {
  buffer b;
  for (const std::uint8_t tag : tags) b.entry(tag, value_of(tag), order);
  return b;
}

constexpr auto one_entry = [](auto check) {
  constexpr unsigned char wire[] = {0x0a, 0x00, 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01};
  std::byte bytes[10]{};
  for (std::size_t i = 0; i < 10; ++i) bytes[i] = static_cast<std::byte>(wire[i]);
  snapshot s;
  check(parse_statistics<little>(bytes, s) == parse_report{.entries = 1});
  check(s.has(statistic_tag::oom_kills));
  check(s.value(statistic_tag::oom_kills) == 0x0102030405060708);

  // The same bytes in the other order: tag 0x0a00, which nobody knows.
  const parse_report swapped = parse_statistics<big>(bytes, s);
  check(swapped.entries == 1 && swapped.unknown == 1);
  check(!s.has(statistic_tag::oom_kills));
  check(s.unknown().size() == 1);
  check(s.unknown()[0] == unknown_statistic{0x0a00, 0x0807060504030201});
};
BOTH("an entry is a 2-byte tag and an 8-byte value, ten bytes without padding", one_entry)

constexpr auto golden_buffers = [](auto check) {
  const auto decodes = [&](std::span<const std::uint8_t> tags, std::size_t size) {
    const buffer b = linux_buffer(tags);
    check(b.size == size);
    snapshot s;
    parse_report report = parse_statistics<little>(b.span(), s);
    check(report == parse_report{.entries = static_cast<std::uint32_t>(tags.size())});
    snapshot native_to_another;
    report = parse_statistics<big>(linux_buffer(tags, big).span(), native_to_another);
    check(report == parse_report{.entries = static_cast<std::uint32_t>(tags.size())});
    check(s == native_to_another);
    for (std::uint32_t tag = 0; tag < statistic_count; ++tag) {
      bool was_sent = false;
      for (const std::uint8_t sent : tags) was_sent = was_sent || sent == tag;
      check(s.has(tag_of(tag)) == was_sent);
      check(s.value_or(tag_of(tag), 7) == (was_sent ? value_of(tag) : 7));
    }
  };
  decodes(linux_full, 160);
  decodes(linux_no_hugetlb, 140);
  decodes(linux_before_6_12, 100);
  decodes(linux_before_hugetlb, 80);
  decodes(linux_no_events, 40);
};
BOTH("the buffers of Linux decode: 160, 140, 100, 80 and 40 bytes, in either byte order",
     golden_buffers)

constexpr auto nothing_at_all = [](auto check) {
  snapshot s;
  check(parse_statistics<little>({}, s) == parse_report{});
  check(s == snapshot{});
  for (std::uint32_t tag = 0; tag < 20; ++tag)
    check(!s.has(tag_of(tag)) && s.value(tag_of(tag)) == 0 && s.value_or(tag_of(tag), 5) == 5);
  check(s.unknown().empty() && s.unknown_dropped() == 0);
};
BOTH("an empty buffer is an answer without values", nothing_at_all)

constexpr auto unset_values = [](auto check) {
  snapshot s;
  s.set(statistic_tag::swap_in, 0);
  check(s.has(statistic_tag::swap_in)); // 0 is a value
  check(!s.has(statistic_tag::swap_out));
  s.set(statistic_tag::swap_in, not_reported - 1);
  check(s.value(statistic_tag::swap_in) == not_reported - 1);
  s.set(statistic_tag::swap_in, not_reported);
  check(!s.has(statistic_tag::swap_in));
  check(s == snapshot{});

  buffer b;
  b.entry(4, not_reported);
  b.entry(5, 99);
  check(parse_statistics<little>(b.span(), s) == parse_report{.entries = 2});
  check(!s.has(statistic_tag::free_memory) && s.value(statistic_tag::total_memory) == 99);
};
BOTH("a value of 2^64 - 1 means that there is none, and is never a number", unset_values)

constexpr auto missing_tags = [](auto check) {
  snapshot s;
  parse_statistics<little>(linux_buffer(linux_full).span(), s);
  check(s.has(statistic_tag::oom_kills) && s.has(statistic_tag::free_memory));
  s.set(tag_of(40), 1);
  parse_statistics<little>(linux_buffer(linux_no_events).span(), s);
  check(!s.has(statistic_tag::oom_kills) && s.has(statistic_tag::free_memory));
  check(s.unknown().empty());
};
BOTH("RT-41: what a reply does not hold is unset, whatever the one before held", missing_tags)

constexpr auto unknown_tags = [](auto check) {
  buffer b;
  b.entry(0, 1);
  b.entry(16, 160);
  b.entry(1, 2);
  b.entry(65534, 5);
  b.entry(0x8000, not_reported); // of an unknown tag nobody knows that this is no value
  b.entry(2, 3);
  snapshot s;
  check(parse_statistics<little>(b.span(), s) == parse_report{.entries = 6, .unknown = 3});
  check(s.value(tag_of(0)) == 1 && s.value(tag_of(1)) == 2 && s.value(tag_of(2)) == 3);
  check(s.unknown().size() == 3 && s.unknown_dropped() == 0);
  check(s.unknown()[0] == unknown_statistic{16, 160});
  check(s.unknown()[1] == unknown_statistic{65534, 5});
  check(s.unknown()[2] == unknown_statistic{0x8000, not_reported});
  check(!s.has(tag_of(16)) && s.value_or(tag_of(16), 3) == 3);
};
BOTH("RT-37: unknown tags are kept as they came and disturb no other", unknown_tags)

constexpr auto many_unknown_tags = [](auto check) {
  buffer b;
  for (std::uint32_t tag = 100; tag < 111; ++tag) b.entry(tag, tag);
  b.entry(103, 7); // kept already: its value changes
  b.entry(110, 7); // dropped, and dropped again
  b.entry(5, 4096);
  snapshot s;
  check(parse_statistics<little>(b.span(), s) ==
        parse_report{.entries = 14, .unknown = 13, .duplicates = 1});
  check(s.unknown().size() == 8 && s.unknown_dropped() == 4);
  check(s.unknown()[0] == unknown_statistic{100, 100});
  check(s.unknown()[3] == unknown_statistic{103, 7});
  check(s.unknown()[7] == unknown_statistic{107, 107});
  check(s.value(statistic_tag::total_memory) == 4096);
};
BOTH("of many unknown tags eight are kept and the rest is counted", many_unknown_tags)

constexpr auto duplicates = [](auto check) {
  buffer b;
  b.entry(4, 1);
  b.entry(5, 2);
  b.entry(4, 3);
  b.entry(4, 4);
  snapshot s;
  check(parse_statistics<little>(b.span(), s) == parse_report{.entries = 4, .duplicates = 2});
  check(s.value(statistic_tag::free_memory) == 4);

  b = {};
  b.entry(4, 1);
  b.entry(4, not_reported);
  check(parse_statistics<little>(b.span(), s) == parse_report{.entries = 2, .duplicates = 1});
  check(!s.has(statistic_tag::free_memory));

  b = {};
  b.entry(4, not_reported);
  b.entry(4, 1);
  check(parse_statistics<little>(b.span(), s) == parse_report{.entries = 2, .duplicates = 1});
  check(s.value(statistic_tag::free_memory) == 1);

  // Not over two buffers: each starts afresh.
  check(parse_statistics<little>(b.span(), s).duplicates == 1);
};
BOTH("of a tag that comes twice the last entry counts, and the others are counted", duplicates)

constexpr auto partial_tail = [](auto check) {
  buffer b = linux_buffer(linux_no_events);
  for (std::size_t extra = 0; extra < 10; ++extra) {
    snapshot s;
    check(parse_statistics<little>(b.span(), s) ==
          parse_report{.entries = 4, .trailing_bytes = extra});
    check(s.value(statistic_tag::disk_caches) == value_of(7));
    check(!s.has(statistic_tag::swap_in) && s.unknown().empty());
    b.put(0, 1, little); // ten of these would be tag 0
  }
  snapshot s;
  check(parse_statistics<little>(b.span(), s) == parse_report{.entries = 5});
  check(s.has(statistic_tag::swap_in));
};
BOTH("RT-42: a tail of less than an entry is counted and not read", partial_tail)

constexpr auto fillers = [](auto check) {
  for (const bool is_big : {false, true}) {
    buffer b;
    for (unsigned i = 0; i < 10; ++i) b.entry(65535, not_reported);
    snapshot s;
    const auto report =
        is_big ? parse_statistics<big>(b.span(), s) : parse_statistics<little>(b.span(), s);
    check(report == parse_report{.fillers = 10});
    check(s == snapshot{});
  }
  // Another device's tag of that number is kept.
  buffer b;
  b.entry(65535, 123);
  b.entry(65535, not_reported);
  snapshot s;
  check(parse_statistics<little>(b.span(), s) ==
        parse_report{.entries = 1, .unknown = 1, .fillers = 1});
  check(s.unknown().size() == 1 && s.unknown()[0] == unknown_statistic{65535, 123});
};
BOTH("RT-50: entries with all bits set are no statistics; tag 65535 with a value is one", fillers)

constexpr auto backwards = [](auto check) {
  buffer before;
  before.entry(0, 1000);
  buffer after;
  after.entry(0, 10);
  snapshot a;
  snapshot b;
  parse_statistics<little>(before.span(), a);
  parse_statistics<little>(after.span(), b);
  check(a.value(statistic_tag::swap_in) == 1000 && b.value(statistic_tag::swap_in) == 10);
};
BOTH("RT-57: a counter that went backward is handed on as it came", backwards)

// What the pieces are: `first` bytes, then `step` at a time.
template <std::endian E>
constexpr bool same_in_pieces(const buffer& b, std::size_t first, std::size_t step) {
  snapshot whole;
  const parse_report report = parse_statistics<E>(b.span(), whole);
  snapshot pieces;
  pieces.set(statistic_tag::swap_out, 1); // gone with the first byte
  statistics_parser<E> parser(pieces);
  bool is_fine = parser.feed(b.span().first(first));
  for (std::size_t at = first; at < b.size; at += step) {
    const std::size_t n = step < b.size - at ? step : b.size - at;
    is_fine = is_fine && parser.feed({}) && parser.feed(b.span().subspan(at, n));
    is_fine = is_fine && parser.report().trailing_bytes == (at + n) % 10;
  }
  return is_fine && parser.report() == report && pieces == whole;
}

constexpr buffer odd_buffer() {
  buffer b = linux_buffer(linux_full);
  b.entry(40, 1);
  b.entry(3, 2);
  b.entry(65535, not_reported);
  b.put(0x0102030405, 5, little);
  return b;
}

constexpr auto pieces = [](auto check) {
  const buffer b = odd_buffer();
  for (const std::size_t step : {1u, 3u, 7u, 10u, 64u}) check(same_in_pieces<little>(b, 0, step));
  for (const std::size_t first : {1u, 2u, 9u, 11u, 159u})
    check(same_in_pieces<little>(b, first, 1000));
};
BOTH("pieces of any size give what the whole gives", pieces)

TEST_CASE("every cut of a buffer into two, and every size of pieces, gives what the whole gives") {
  const buffer b = odd_buffer();
  for (std::size_t first = 0; first <= b.size; ++first) {
    CHECK(same_in_pieces<little>(b, first, 1000));
    CHECK(same_in_pieces<big>(b, first, 1000));
  }
  for (std::size_t step = 1; step <= b.size; ++step)
    for (std::size_t first = 0; first < 10; ++first) CHECK(same_in_pieces<little>(b, first, step));
}

constexpr auto limit = [](auto check) {
  constexpr std::uint32_t most = statistics_parser<little>::entries_max;
  snapshot s;
  statistics_parser<little> parser(s);
  buffer entry;
  entry.entry(0, 5);
  buffer filler;
  filler.entry(65535, not_reported);
  for (std::uint32_t i = 1; i < most; ++i)
    check(parser.feed(i % 2 == 0 ? filler.span() : entry.span()));
  buffer last;
  last.entry(1, 6);
  last.entry(2, 7);
  last.put(0, 3, little);
  check(!parser.feed(last.span()));
  check(!parser.feed(last.span()));
  check(!parser.feed({}));
  check(s.value(tag_of(1)) == 6 && !s.has(tag_of(2)));
  const parse_report report = parser.report();
  check(report.entries + report.fillers == most);
  check(report.trailing_bytes == 13 + 23);
};
BOTH("RT-34: no more than 256 entries are looked at, the rest is counted", limit)

constexpr auto context_stays = [](auto check) {
  snapshot s;
  check(s.received_at == 0 && s.epoch == 0 && !s.is_solicited);
  s.received_at = 1'000'000'000;
  s.epoch = 3;
  s.actual_pages = 100;
  s.target_pages = 200;
  s.deflate_on_oom = true;
  s.is_solicited = true;
  parse_statistics<little>(linux_buffer(linux_full).span(), s);
  check(s.received_at == 1'000'000'000 && s.epoch == 3);
  check(s.actual_pages == 100 && s.target_pages == 200);
  check(s.deflate_on_oom && s.is_solicited);
  const snapshot copy = s;
  check(copy == s);
  s.clear_values();
  check(copy != s && !s.has(statistic_tag::swap_in) && s.epoch == 3 && s.received_at != 0);
};
BOTH("reading values leaves alone what the host noted down", context_stays)

// The claim that one more tag breaks nothing, for 16 and 17 by the same code.
constexpr auto either_count = []<std::size_t Count>(auto check, basic_snapshot<Count> s) {
  for (const std::uint32_t tag : {0u, 15u, 16u, 17u, 63u, 64u, 65u, 32768u, 65535u}) {
    const bool is_known = tag < Count;
    check(basic_snapshot<Count>::is_known(tag_of(tag)) == is_known);
    s = {};
    s.set(tag_of(tag), 77);
    check(s.has(tag_of(tag)) == is_known);
    check(s.value(tag_of(tag)) == (is_known ? 77 : 0));
    check(s.value_or(tag_of(tag), 5) == (is_known ? 77 : 5));
    check(s.unknown().size() == (is_known ? 0 : 1));
    buffer b;
    b.entry(tag, 78);
    b.entry(4, 79);
    const parse_report report = parse_statistics<little>(b.span(), s);
    check(report.entries == 2 && report.unknown == (is_known ? 0 : 1));
    check(s.value_or(tag_of(tag), 78) == 78 && s.value(statistic_tag::free_memory) == 79);
    if (!is_known)
      check(s.unknown().size() == 1 && s.unknown()[0].tag == tag && s.unknown()[0].value == 78);
  }
};
constexpr auto one_more_tag = [](auto check) {
  either_count(check, basic_snapshot<statistic_count>{});
  either_count(check, basic_snapshot<statistic_count + 1>{});
  // At the most a snapshot can have, and with hardly any.
  either_count(check, basic_snapshot<64>{});
  either_count(check, basic_snapshot<5>{});

  // An older reader keeps a newer driver's values, a newer reader misses an older driver's.
  buffer b = linux_buffer(linux_full);
  b.entry(16, 1600);
  basic_snapshot<16> older;
  basic_snapshot<17> newer;
  check(parse_statistics<little>(b.span(), older).unknown == 1);
  check(parse_statistics<little>(b.span(), newer).unknown == 0);
  check(older.unknown()[0] == unknown_statistic{16, 1600});
  check(newer.value(tag_of(16)) == 1600);
  for (std::uint32_t tag = 0; tag < 16; ++tag)
    check(older.value(tag_of(tag)) == newer.value(tag_of(tag)));
  parse_statistics<little>(linux_buffer(linux_full).span(), newer);
  check(!newer.has(tag_of(16)));
};
BOTH("RT-37: a seventeenth tag breaks no snapshot and no parser", one_more_tag)

TEST_CASE("no tag of all 65536 indexes anything it should not") {
  std::size_t right = 0;
  for (std::uint32_t tag = 0; tag < 65536; ++tag) {
    snapshot s;
    s.set(tag_of(tag), tag + 1);
    right += s.has(tag_of(tag)) == (tag < 16) && s.unknown().size() == (tag < 16 ? 0 : 1) &&
             s.value_or(tag_of(tag), 0) == (tag < 16 ? tag + 1 : 0);
  }
  CHECK(right == 65536);
}

constexpr auto writes_what_linux_writes = [](auto check) {
  const auto writes = [&]<std::endian E>(statistic<E>) {
    const buffer expected = linux_buffer(linux_full, E);
    std::byte bytes[165]{};
    statistics_writer<E> writer(bytes);
    check(writer.size() == 0);
    for (const std::uint8_t tag : linux_full) check(writer.add(tag_of(tag), value_of(tag)));
    check(writer.size() == 160);
    // Five bytes are left: not enough, and nothing of it is written.
    check(!writer.add(tag_of(1), not_reported) && writer.size() == 160);
    for (std::size_t i = 0; i < 165; ++i)
      check(bytes[i] == (i < 160 ? expected.bytes[i] : std::byte{}));
    snapshot s;
    check(parse_statistics<E>(std::span(bytes).first(writer.size()), s).entries == 16);
    check(s.value(tag_of(13)) == value_of(13));
  };
  writes(statistic<little>{});
  writes(statistic<big>{});

  statistics_writer<little> none({});
  check(!none.add(tag_of(0), 0) && none.size() == 0);
  std::byte exact[10]{};
  statistics_writer<little> one(exact);
  check(one.add(tag_of(0x1234), 1) && !one.add(tag_of(0), 0));
  check(exact[0] == std::byte{0x34} && exact[1] == std::byte{0x12} && exact[2] == std::byte{1});
};
BOTH("a writer puts entries byte for byte as Linux does, whole ones only", writes_what_linux_writes)

} // namespace
