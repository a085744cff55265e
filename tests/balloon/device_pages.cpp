// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device_pages.hpp>

#include "support/balloon_parts.hpp"
#include "support/check.hpp"
#include "support/tiny_segments.hpp"

#include <ballast/endian.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <set>
#include <span>
#include <sys/mman.h>
#include <vector>

namespace {

using namespace ballast;
using ballast_test::full_host;
using ballast_test::page_bits;
using ballast_test::test_host;

constexpr std::uint32_t kib = 1u << 10, mib = 1u << 20, gib = 1u << 30;

/// What a device does with pages, without its queues: the buffers lie in the first page of memory.
template <class Host = test_host, class Ram = array_memory<16 * 4096>,
          std::endian E = std::endian::little>
struct bench {
  Ram ram;
  Host host;
  balloon::device_counters counters;
  balloon::device_pages<Ram, Host, E> pages;

  constexpr explicit bench(const balloon::device_options& options, bool is_told = false,
                           std::uint32_t poison = 0, guest_address base = 0)
      : ram(base), pages(host, options, counters) {
    pages.start(ram, is_told, poison);
  }

  /// A buffer of PFNs.
  constexpr buffer array(std::initializer_list<std::uint32_t> pfns) {
    std::size_t i = 0;
    for (const std::uint32_t pfn : pfns) {
      const word<std::uint32_t, E> raw(pfn);
      const auto bytes = std::bit_cast<std::array<std::byte, 4>>(raw);
      for (const std::byte b : bytes) ram.bytes()[i++] = b;
    }
    return {ram.base(), static_cast<std::uint32_t>(i)};
  }
  constexpr error inflate(std::initializer_list<std::uint32_t> pfns) {
    const buffer b = array(pfns);
    return pages.inflate(chain({}, &b, 1, 0));
  }
  constexpr error deflate(std::initializer_list<std::uint32_t> pfns) {
    const buffer b = array(pfns);
    return pages.deflate(chain({}, &b, 1, 0));
  }
  /// One buffer each, returned at once.
  constexpr void inflate_and_return(std::initializer_list<std::uint32_t> pfns) {
    (void)inflate(pfns);
    pages.finish_inflate();
  }
  constexpr void deflate_and_return(std::initializer_list<std::uint32_t> pfns) {
    (void)deflate(pfns);
    pages.finish_deflate();
  }
  constexpr std::uint32_t report(std::initializer_list<buffer> ranges) {
    return pages.report(chain({}, ranges.begin(), 0, static_cast<std::uint32_t>(ranges.size())));
  }
  constexpr void hint(std::initializer_list<buffer> ranges, bool is_accepting = true) {
    pages.hint(chain({}, ranges.begin(), 0, static_cast<std::uint32_t>(ranges.size())),
               is_accepting);
  }
};

/// Options for host pages of 16 KiB with a tracker in it.
struct tracked {
  balloon::host_page_storage<64, 16 * kib> storage;
  balloon::host_page_tracker tracker =
      *balloon::host_page_tracker::over(storage, {0, 64}, 16 * kib);
  balloon::device_options options{.host_page_size = 16 * kib, .tracker = &tracker};
};

// inflateq and deflateq

constexpr auto early = [](auto check) {
  bench<> b({});
  check(b.inflate({4, 5, 9}) == error::none);
  check(b.host.discarded == page_bits({4, 5})); // a range that ended; the last one waits for more
  b.pages.finish_inflate();
  check(b.host.discarded == page_bits({4, 5, 9}));
  check(b.counters.inflate_count == 1 && b.counters.inflated_pages == 3);
};
BOTH("BDEV-2: a page is discarded once its PFN was seen, before the buffer is returned", early)

constexpr auto joined = [](auto check) {
  tracked t;
  bench<> b(t.options, true);
  b.inflate_and_return({4, 6, 5});
  check(b.host.calls == 0 && t.tracker.held_pages() == 3);
  b.inflate_and_return({7});
  check(b.host.discarded == page_bits({4, 5, 6, 7}) && b.host.calls == 1);
  check(b.counters.inflated_pages == 4 && b.counters.partial_pages == 0);
  // Interleaved, over buffers: both are whole with the last two pages, in one go.
  b.inflate_and_return({8, 12, 9, 13});
  b.inflate_and_return({10, 14});
  b.inflate_and_return({15, 11});
  check(b.host.discarded == page_bits({4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}));
  check(b.host.calls == 2);
};
BOTH("RT-33 BDEV-3: with MUST_TELL_HOST a host page becomes whole over buffers, in any order",
     joined)

constexpr auto silent = [](auto check) {
  tracked t;
  bench<> b(t.options, false);
  b.inflate_and_return({4, 6, 5});
  check(t.tracker.held_pages() == 0 && b.counters.partial_pages == 3);
  b.inflate_and_return({7}); // 4 to 6 may be in use again, silently
  check(b.host.calls == 0 && b.counters.partial_pages == 4);
  // In buffers that are returned together, in any order.
  check(b.inflate({4, 9, 6}) == error::none);
  check(b.inflate({7, 8, 5}) == error::none);
  b.pages.finish_inflate();
  check(b.host.discarded == page_bits({4, 5, 6, 7}) && b.host.calls == 1);
  check(b.counters.inflated_pages == 4 && b.counters.partial_pages == 6);
  check(t.tracker.held_pages() == 0);
};
BOTH("RT-33 BDEV-2: without MUST_TELL_HOST a host page becomes whole only in what is returned "
     "together",
     silent)

constexpr auto reused = [](auto check) {
  tracked t;
  bench<> b(t.options, false);
  b.inflate_and_return({4, 5, 6}); // three of four
  // The guest uses page 5 again and does not say so, as it may.
  b.inflate_and_return({7});
  check(b.host.calls == 0);
  bench<> told(t.options, true);
  told.inflate_and_return({4, 5, 6});
  told.deflate_and_return({5}); // it has to say so
  told.inflate_and_return({7});
  check(told.host.calls == 0);
};
BOTH("RT-59: a page that the guest uses again does not go with its host page", reused)

constexpr auto deflated = [](auto check) {
  tracked t;
  bench<> b(t.options, true);
  b.inflate_and_return({4, 5, 6, 7, 8, 9, 10});
  check(b.host.discarded == page_bits({4, 5, 6, 7}) && b.host.provided == 0);
  b.deflate_and_return({9}); // of a host page that was never given back
  check(b.host.provided == 0 && b.counters.deflated_pages == 1);
  b.deflate_and_return({6, 5});
  check(b.host.provided == page_bits({4, 5, 6, 7})); // in use again
  check(b.host.discarded == 0 && b.host.calls == 1);
  b.inflate_and_return({11});
  check(b.host.calls == 1); // 9 is in use
  b.inflate_and_return({9});
  check((b.host.discarded & page_bits({8, 9, 10, 11})) == page_bits({8, 9, 10, 11}));
  b.inflate_and_return({5});
  check((b.host.discarded & page_bits({4, 5, 6, 7})) == 0);
  b.inflate_and_return({6});
  check((b.host.discarded & page_bits({4, 5, 6, 7})) == page_bits({4, 5, 6, 7}));
  check(b.counters.deflate_count == 2);
};
BOTH("RT-33: deflated in between, a page keeps its host page until it is inflated again", deflated)

constexpr auto silent_deflation = [](auto check) {
  tracked t;
  bench<> b(t.options, false);
  b.deflate_and_return({7, 6, 5, 4, 9}); // a courtesy: nothing is remembered to go by
  check(b.host.provided == page_bits({4, 5, 6, 7}));
  check(b.counters.deflated_pages == 5 && b.counters.deflate_count == 1);
};
BOTH("without MUST_TELL_HOST whole host pages that are deflated in a row are provided",
     silent_deflation)

constexpr auto twice = [](auto check) {
  tracked t;
  bench<> b(t.options, true);
  b.inflate_and_return({4, 4, 5, 5, 6, 6, 4});
  check(b.host.calls == 0);
  b.inflate_and_return({7, 7, 4});
  check(b.host.calls == 1 && b.counters.inflated_pages == 4);
};
BOTH("RT-33: a page that is inflated twice counts once", twice)

constexpr auto unread_deflation = [](auto check) {
  tracked t;
  bench<> b(t.options, true);
  b.inflate_and_return({4, 5, 6});
  // The array can't be read to its end, but the buffer goes back: 6 may be among the rest.
  const buffer cut[] = {b.array({5}), {0x10'0000, 4}};
  check(b.pages.deflate(chain({}, cut, 2, 0)) == error::not_guest_memory);
  b.pages.finish_deflate();
  check(t.tracker.held_pages() == 0);
  b.inflate_and_return({7, 5});
  check(b.host.calls == 0);

  t.options.buffer_pfns_max = 1;
  bench<> small(t.options, true);
  for (const std::uint32_t pfn : {4u, 5u, 6u}) small.inflate_and_return({pfn});
  check(small.deflate({4, 5}) == error::none);
  small.pages.finish_deflate();
  check(t.tracker.held_pages() == 0 && small.counters.oversized_buffers == 1);
};
BOTH("RT-33: what is deflated in a part of an array that is not looked at is not remembered",
     unread_deflation)

constexpr auto outside = [](auto check) {
  tracked t;
  bench<> b(t.options, true); // memory ends behind page 15
  b.inflate_and_return({14, 15, 16, 17, 0xffff'ffff});
  check(b.counters.bad_pages == 3 && t.tracker.held_pages() == 2);
  b.inflate_and_return({12, 13});
  check(b.host.discarded == page_bits({12, 13, 14, 15}));
  b.deflate_and_return({17});
  check(b.counters.bad_pages == 4);
};
BOTH("RT-33: pages outside guest memory are none of a host page", outside)

constexpr auto offset_base = [](auto check) {
  // 16 pages from page 6 on: of the host pages 1 (4 to 7) and 5 (20 to 23) only half is memory.
  tracked t;
  bench<> b(t.options, true, 0, 6 * 4096);
  for (std::uint32_t pfn = 4; pfn < 24; ++pfn) b.inflate_and_return({pfn});
  check(b.host.discarded == page_bits({8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
  check(b.counters.bad_pages == 4);
  bench<> untracked({.host_page_size = 16 * kib}, true, 0, 6 * 4096);
  untracked.inflate_and_return({6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21});
  check(untracked.host.discarded == b.host.discarded);
  check(untracked.counters.partial_pages == 4);
};
BOTH("RT-33: memory that begins within a host page gives its whole host pages", offset_base)

constexpr auto untracked_part = [](auto check) {
  balloon::host_page_storage<8, 16 * kib> storage;
  auto tracker = *balloon::host_page_tracker::over(storage, {4, 8}, 16 * kib);
  bench<> b({.host_page_size = 16 * kib, .tracker = &tracker}, true);
  b.inflate_and_return({4, 5, 6, 7, 12, 13, 14, 15}); // 12 to 15 are not in the tracker's guest
  check(b.host.discarded == page_bits({4, 5, 6, 7}));
  check(b.counters.partial_pages == 4);
};
BOTH("memory that the tracker was not made for is kept, and counted", untracked_part)

constexpr auto forgotten = [](auto check) {
  tracked t;
  bench<> b(t.options, true);
  b.inflate_and_return({4, 5, 6});
  b.pages.forget();
  b.inflate_and_return({7});
  check(b.host.calls == 0);
  b.inflate_and_return({4, 5});
  b.pages.move_to(b.ram); // mapped anew
  b.inflate_and_return({6, 7});
  check(b.host.calls == 0);
  b.inflate_and_return({4, 5});
  check(b.host.calls == 1);
  b.inflate_and_return({8, 9, 10});
  b.pages.start(b.ram, true, 0); // another driver
  b.inflate_and_return({11});
  check(b.host.calls == 1);
};
BOTH("RT-33: no host page becomes whole by pages from before a reset or a new mapping", forgotten)

constexpr auto in_pieces = [](auto check) {
  using ram_type = array_memory<16 * 4096>;
  using tiny = ballast_test::tiny_segments<ram_type>;
  ram_type ram;
  tiny pieces(ram, 8 * kib); // a border in each host page
  tracked t;
  test_host host;
  balloon::device_counters counters;
  balloon::device_pages<tiny, test_host, std::endian::little> pages(host, t.options, counters);
  pages.start(pieces, true, 0);
  for (std::uint8_t i = 0; i < 4; ++i) ram.bytes()[4u * i] = std::byte(4 + i);
  const buffer b{0, 16};
  check(pages.inflate(chain({}, &b, 1, 0)) == error::none);
  pages.finish_inflate();
  check(host.calls == 0 && counters.partial_pages == 4 && counters.bad_pages == 0);
};
BOTH("RT-33: a host page that lies over two pieces of memory is not one page of the host",
     in_pieces)

// What comes back from a Linux guest.

/// Guest memory of any size that is only mapped, and a host that adds up.
class large_guest {
 public:
  explicit large_guest(std::uint64_t size) : size_(size) {
    void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(at != MAP_FAILED);
    region_ = {0, static_cast<std::byte*>(at), size};
    memory = *mapped_memory::over({&region_, 1});
  }
  ~large_guest() { munmap(region_.data, size_); }
  large_guest(const large_guest&) = delete;
  large_guest& operator=(const large_guest&) = delete;

  mapped_memory memory;

 private:
  std::uint64_t size_;
  memory_region region_;
};

struct adding_host {
  std::uint64_t bytes = 0;
  std::uint32_t misaligned = 0;
  std::uint32_t page = 4096;
  bool discard(guest_address address, std::uint64_t size) noexcept {
    bytes += size;
    misaligned += address % page != 0 || size % page != 0 || size == 0;
    return true;
  }
};

/// What came back, in bytes, of `pfns` inflated as Linux does it: buffers of 256 pages, and the
/// next one when the one before was returned.
std::uint64_t given_back(std::span<const std::uint32_t> pfns, std::uint32_t host_page, bool is_told,
                         bool has_tracker = true) {
  constexpr std::uint64_t guest_size = 3 * std::uint64_t{gib};
  large_guest guest(guest_size);
  const balloon::page_range all{0, guest_size / 4096};
  std::vector<std::uint32_t> storage(
      static_cast<std::size_t>(balloon::host_page_tracker::storage_size(all, host_page)));
  auto tracker = *balloon::host_page_tracker::over(storage, all, host_page);
  adding_host host{.page = host_page};
  const balloon::device_options options{.host_page_size = host_page,
                                        .tracker = has_tracker ? &tracker : nullptr};
  balloon::device_counters counters;
  balloon::device_pages<mapped_memory, adding_host, std::endian::little> pages(host, options,
                                                                               counters);
  pages.start(guest.memory, is_told, 0);
  while (!pfns.empty()) {
    const auto some = pfns.first(std::min<std::size_t>(pfns.size(), 256));
    const std::vector<le32> array(some.begin(), some.end());
    REQUIRE(guest.memory.write(0, std::as_bytes(std::span(array))));
    const buffer b{0, static_cast<std::uint32_t>(4 * some.size())};
    REQUIRE(pages.inflate(chain({}, &b, 1, 0)) == error::none);
    pages.finish_inflate();
    pfns = pfns.subspan(some.size());
  }
  CHECK(host.misaligned == 0);
  CHECK(host.bytes == counters.inflated_pages * 4096);
  return host.bytes;
}

/// `count` pages down from `top`, as a stack of free pages hands them out.
std::vector<std::uint32_t> downward(std::uint32_t top, std::uint32_t count) {
  std::vector<std::uint32_t> pfns(count);
  for (std::uint32_t& pfn : pfns) pfn = top--;
  return pfns;
}

TEST_CASE("without MUST_TELL_HOST a Linux guest that gives 4 MiB in order gives back all of it in "
          "host pages of up to 64 KiB, and nothing of 2 MiB pages") {
  const auto pfns = downward(5119, 1024);
  for (const bool has_tracker : {false, true}) {
    CHECK(given_back(pfns, 4 * kib, false, has_tracker) == 4 * mib);
    CHECK(given_back(pfns, 16 * kib, false, has_tracker) == 4 * mib);
    CHECK(given_back(pfns, 64 * kib, false, has_tracker) == 4 * mib);
    CHECK(given_back(pfns, 1 * mib, false, has_tracker) == 4 * mib); // a buffer is one just so
    CHECK(given_back(pfns, 2 * mib, false, has_tracker) == 0);
    CHECK(given_back(pfns, 1 * gib, false, has_tracker) == 0);
  }
}

TEST_CASE("with MUST_TELL_HOST and a tracker a Linux guest gives back all of its 2 MiB pages too") {
  const auto pfns = downward(5119, 1024);
  for (const std::uint32_t size : {4 * kib, 16 * kib, 64 * kib, 2 * mib})
    CHECK(given_back(pfns, size, true) == 4 * mib);
  CHECK(given_back(pfns, 1 * gib, true) == 0);        // 4 MiB of it
  CHECK(given_back(pfns, 2 * mib, true, false) == 0); // nor without a tracker
  CHECK(given_back(downward(524287, 262144), gib, true) == gib);
}

TEST_CASE("buffers that begin within a host page lose one each without MUST_TELL_HOST") {
  const auto pfns = downward(5118, 1024); // 4095 to 5118
  CHECK(given_back(pfns, 4 * kib, false) == 4 * mib);
  CHECK(given_back(pfns, 16 * kib, false) == 4 * 63 * 16 * kib);
  CHECK(given_back(pfns, 64 * kib, false) == 4 * 15 * 64 * kib);
  CHECK(given_back(pfns, 16 * kib, true) ==
        255 * 16 * kib); // the first and the last are half there
  CHECK(given_back(pfns, 64 * kib, true) == 63 * 64 * kib);
  CHECK(given_back(pfns, 2 * mib, true) == 2 * mib);
}

TEST_CASE("pages in random order: all comes back with MUST_TELL_HOST, next to nothing without") {
  auto pfns = downward(5119, 1024);
  std::shuffle(pfns.begin(), pfns.end(), std::mt19937(3));
  CHECK(given_back(pfns, 4 * kib, false) == 4 * mib);
  // Of 256 host pages of four pages those that lie in one buffer, a quarter of all.
  std::uint64_t whole = 0;
  for (std::size_t at = 0; at < pfns.size(); at += 256) {
    std::vector<std::uint32_t> counts(256);
    for (std::size_t i = at; i < at + 256; ++i) whole += ++counts[pfns[i] / 4 - 1024] == 4;
  }
  CHECK(whole < 8);
  CHECK(given_back(pfns, 16 * kib, false) == whole * 16 * kib);
  CHECK(given_back(pfns, 16 * kib, false, false) == 0); // no four of them in a row
  CHECK(given_back(pfns, 64 * kib, false) == 0);
  for (const std::uint32_t size : {16 * kib, 64 * kib, 2 * mib})
    CHECK(given_back(pfns, size, true) == 4 * mib);
}

/// A host that knows which pages may go, and sees that no other goes and none stays.
struct judging_host {
  const std::set<std::uint32_t>* may_go = nullptr;
  std::set<std::uint32_t> gone;
  std::uint32_t wrong = 0;
  bool discard(guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t pfn = address >> 12; pfn < (address + size) >> 12; ++pfn) {
      wrong += may_go->count(static_cast<std::uint32_t>(pfn)) == 0;
      gone.insert(static_cast<std::uint32_t>(pfn));
    }
    return true;
  }
  void provide(guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t pfn = address >> 12; pfn < (address + size) >> 12; ++pfn)
      wrong += gone.erase(static_cast<std::uint32_t>(pfn)) == 0;
  }
};

/// Random buffers, batches and deflations over memory with a hole and borders within host pages.
void against_a_model(std::uint32_t host_page, bool is_told, std::uint32_t seed) {
  const std::uint32_t pages_in_host_page = host_page / 4096;
  large_guest guest(2048 * 4096);
  std::byte* const start = guest.memory.regions()[0].data;
  // 0 to 1022 and 1027 to 2046.
  const memory_region regions[] = {{0, start, 1023 * 4096},
                                   {1027 * 4096, start + 1027 * 4096, 1020 * 4096}};
  auto memory = *mapped_memory::over(regions);
  const auto is_memory = [](std::uint32_t pfn) {
    return pfn < 1023 || (pfn >= 1027 && pfn < 2047);
  };
  const balloon::page_range all{0, 2047};
  std::vector<std::uint32_t> storage(
      static_cast<std::size_t>(balloon::host_page_tracker::storage_size(all, host_page)));
  auto tracker = *balloon::host_page_tracker::over(storage, all, host_page);
  const balloon::device_options options{.host_page_size = host_page, .tracker = &tracker};
  std::set<std::uint32_t> may_go;
  judging_host host{.may_go = &may_go, .gone = {}};
  balloon::device_counters counters;
  balloon::device_pages<mapped_memory, judging_host, std::endian::little> pages(host, options,
                                                                                counters);
  pages.start(memory, is_told, 0);

  std::mt19937 random(seed);
  const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  std::uint64_t went = 0;
  for (int batch = 0; batch < 60; ++batch) {
    const bool is_inflation = below(4) != 0;
    if (!is_told) may_go.clear(), host.gone.clear();
    std::uint32_t at = below(2048);
    for (std::uint32_t buffers = 1 + below(4); buffers != 0; --buffers) {
      std::vector<le32> array(1 + below(256));
      const bool goes_down = below(2) == 0;
      for (le32& entry : array) {
        at = below(16) == 0 ? below(2100) : at + (goes_down ? UINT32_MAX : 1);
        entry = at;
        if (is_inflation && is_memory(at))
          may_go.insert(at);
        else if (!is_inflation)
          may_go.erase(at);
      }
      REQUIRE(memory.write(0, std::as_bytes(std::span(array))));
      const buffer b{0, static_cast<std::uint32_t>(4 * array.size())};
      REQUIRE((is_inflation ? pages.inflate(chain({}, &b, 1, 0))
                            : pages.deflate(chain({}, &b, 1, 0))) == error::none);
    }
    is_inflation ? pages.finish_inflate() : pages.finish_deflate();
    if (!is_inflation && !is_told) { // `provide` follows the runs then
      host.wrong = 0;
      continue;
    }
    REQUIRE(host.wrong == 0);
    std::set<std::uint32_t> whole;
    for (std::uint32_t first = 0; first < 2048; first += pages_in_host_page) {
      std::uint32_t there = 0;
      for (std::uint32_t i = 0; i < pages_in_host_page; ++i) there += may_go.count(first + i) != 0;
      if (there != pages_in_host_page) continue;
      for (std::uint32_t i = 0; i < pages_in_host_page; ++i) whole.insert(first + i);
    }
    REQUIRE(host.gone == whole);
    went += whole.size();
  }
  CHECK(went > 0);
}

TEST_CASE("RT-33: over random buffers exactly the whole host pages that may go are gone") {
  for (const std::uint32_t host_page : {4 * kib, 16 * kib, 64 * kib, 256 * kib})
    for (std::uint32_t seed = 0; seed < 10; ++seed) {
      CAPTURE(host_page);
      CAPTURE(seed);
      against_a_model(host_page, true, seed);
      if (host_page <= 64 * kib) against_a_model(host_page, false, seed);
    }
}

// reporting_vq

constexpr std::uint64_t page(std::uint64_t n) { return n * 4096; }

constexpr auto reported = [](auto check) {
  bench<full_host> b({});
  check(b.report({{page(4), 8192}, {page(9), 4096}}) == 0); // RT-44
  check(b.host.discarded == page_bits({4, 5, 9}) && b.host.calls == 2);
  check(b.counters.free_page_report_count == 2 && b.counters.free_page_report_fails == 0);
  check(b.counters.free_page_report_freed == 3 * 4096);
};
BOTH("BDEV-13 RT-44: reported memory is discarded before the buffer is returned, with length 0",
     reported)

constexpr auto sums = [](auto check) {
  bench<full_host> b({.reporting_used_length = balloon::reported_length::bytes});
  check(b.report({{page(4), 8192}, {page(9), 4096}}) == 3 * 4096);
  check(b.report({{page(4), 0xffff'f000}, {page(4), 0x2000}}) == UINT32_MAX); // not 0x1000
  check(b.report({}) == 0);
};
BOTH("RT-44: a used length of what was reported is a policy, and does not overflow", sums)

constexpr auto reported_outside = [](auto check) {
  bench<full_host> b({}); // memory ends behind page 15
  (void)b.report({{page(14), page(4) & 0xffff'ffff}, {page(16), 4096}, {page(3), 4096}});
  check(b.host.discarded == page_bits({14, 15, 3}));
  check(b.counters.free_page_report_fails == 2);
  check(b.counters.free_page_report_freed == 3 * 4096);
  (void)b.report({{0xffff'ffff'ffff'f000, 0x1000}, {0xffff'ffff'ffff'f000, 0xffff'ffff}});
  (void)b.report({{page(4), 0}, {page(4), 4095}, {page(4) + 1, 4096}}); // no whole page
  check(b.counters.free_page_report_fails == 7);
  check(b.host.calls == 2);
};
BOTH("RT-45: of a range beyond guest memory only what lies inside goes, the rest is counted",
     reported_outside)

constexpr auto reported_in_part = [](auto check) {
  bench<full_host> b({.host_page_size = 16 * kib});
  (void)b.report({{page(5), 11 * 4096}, {page(4), 3 * 4096}});
  check(b.host.discarded == page_bits({8, 9, 10, 11, 12, 13, 14, 15}) && b.host.calls == 1);
  check(b.counters.free_page_report_fails == 0); // rounding is no fault
  (void)b.report({{page(4) - 1, 4 * 4096 + 2}});
  check((b.host.discarded & page_bits({4, 5, 6, 7, 3})) == page_bits({4, 5, 6, 7}));
};
BOTH("RT-45: only whole host pages of a reported range are discarded", reported_in_part)

constexpr auto failed_report = [](auto check) {
  bench<full_host> b({});
  b.host.fails = true;
  (void)b.report({{page(4), 4096}});
  check(b.counters.free_page_report_fails == 1 && b.counters.free_page_report_freed == 0);
};
BOTH("a discard of reported memory that fails is counted", failed_report)

constexpr auto readable_report = [](auto check) {
  bench<full_host> b({});
  const buffer both[] = {b.array({5, 6}), {page(4), 4096}};
  check(b.pages.report(chain({}, both, 1, 1)) == 0);
  check(b.host.discarded == page_bits({4})); // pages 5 and 6 are no list of PFNs here
  check(b.counters.misplaced_buffers == 1);
};
BOTH("RT-47: a reported range is an address, and a readable buffer no list of pages",
     readable_report)

/// Counts how often it was asked for a piece.
struct counting_memory : array_memory<16 * 4096> {
  std::uint64_t asked = 0;
  constexpr memory_segment segment(guest_address a, std::uint64_t n, ballast::access k) noexcept {
    ++asked;
    return array_memory<16 * 4096>::segment(a, n, k);
  }
  constexpr explicit counting_memory(guest_address base) : array_memory<16 * 4096>(base) {}
};

constexpr auto bounded = [](auto check) {
  bench<full_host, counting_memory> b({});
  (void)b.report({{page(14), 0xffff'f000}, {page(1u << 20), 0xffff'f000}});
  b.hint({{page(14), 0xffff'f000}, {page(1u << 20), 0xffff'f000}});
  check(b.ram.asked == 6); // two pieces and a hole, or a hole
  check(b.counters.free_page_report_fails == 2 && b.counters.free_page_hint_fails == 2);
};
BOTH("RT-9: a range of 4 GiB outside memory is as much work as a small one", bounded)

// Page poison.

struct no_fill { // as full_host, but for that
  std::uint64_t discarded = 0;
  constexpr bool discard(guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t p = address >> 12; p < (address + size) >> 12; ++p)
      discarded |= std::uint64_t{1} << p;
    return true;
  }
};

constexpr auto poisoned = [](auto check) {
  bench<no_fill> b({}, false, 0xaaaa'aaaa);
  check(b.report({{page(4), 4096}, {page(6), 4096}}) == 0);
  check(b.host.discarded == 0 && b.counters.poisoned_ranges == 2);
  check(b.counters.free_page_report_freed == 0 && b.counters.free_page_report_fails == 0);
  b.inflate_and_return({4}); // what is in the balloon may hold anything
  check(b.host.discarded == page_bits({4}));
  bench<no_fill> zero({}, false, 0); // POISON, and free pages are 0: as the discarded ones are
  (void)zero.report({{page(4), 4096}});
  check(zero.host.discarded == page_bits({4}) && zero.counters.poisoned_ranges == 0);
};
BOTH("BDEV-14: reported pages are discarded only if they would read as the poison", poisoned)

constexpr auto filled = [](auto check) {
  bench<full_host> b({.host_page_size = 16 * kib}, false, 0xaaaa'aaaa);
  (void)b.report({{page(4), 6 * 4096}});
  check(b.host.filled == page_bits({4, 5, 6, 7}) && b.host.pattern == 0xaaaa'aaaa);
  check(b.host.discarded == 0 && b.counters.free_page_report_freed == 4 * 4096);
  b.host.fails = true;
  (void)b.report({{page(8), 4 * 4096}});
  check(b.counters.free_page_report_fails == 1);
};
BOTH("BDEV-12 BDEV-14: a host that can fill pages with the poison takes them", filled)

constexpr auto kept = [](auto check) {
  for (const std::uint32_t poison : {0u, 0xaaaa'aaaau}) {
    bench<full_host> b({}, false, poison);
    b.pages.keep_reported();
    (void)b.report({{page(4), 2 * 4096}, {page(8), 4096}});
    check(b.host.discarded == 0 && b.host.filled == 0 && b.counters.poisoned_ranges == 2);
    check(b.counters.free_page_report_freed == 0);
    b.inflate_and_return({5});
    check(b.host.discarded == page_bits({5}));
    b.pages.start(b.ram, false, poison); // whose beginning was seen
    (void)b.report({{page(8), 4096}});
    check((b.host.discarded | b.host.filled) == page_bits({5, 8}));
    check(b.counters.poisoned_ranges == 2);
  }
};
BOTH("BDEV-14: of a driver whose poison is not known reported pages are kept", kept)

// free_page_vq

constexpr auto hinted = [](auto check) {
  bench<full_host> b({.host_page_size = 16 * kib});
  b.hint({{page(5), 2 * 4096}, {page(9), 4096}});
  check(b.host.hinted == page_bits({5, 6, 9})); // pages of the guest: nothing is discarded
  check(b.host.discarded == 0 && b.counters.free_page_hint_count == 2);
  check(b.counters.free_page_hint_freed == 3 * 4096);
  b.hint({{page(15), 2 * 4096}, {page(99), 4096}});
  check(b.host.hinted == page_bits({5, 6, 9, 15}) && b.counters.free_page_hint_fails == 2);
  b.host.fails = true;
  b.hint({{page(5), 4096}});
  check(b.counters.free_page_hint_fails == 3 && b.counters.free_page_hint_freed == 4 * 4096);
};
BOTH("BDEV-9: hinted pages go to the host as they are; ranges outside memory are counted", hinted)

constexpr auto not_asked = [](auto check) {
  bench<full_host> b({});
  b.hint({{page(5), 4096}, {page(6), 4096}}, false);
  check(b.host.calls == 0 && b.host.asked == 0);
  check(b.counters.ignored_hints == 2 && b.counters.free_page_hint_count == 0);
  b.hint({}); // a command alone
  check(b.host.asked == 0);
};
BOTH("BDEV-8: pages that nobody asked for are no hints", not_asked)

// Inhibited discards.

constexpr auto inhibited = [](auto check) {
  tracked t;
  bench<full_host> b(t.options, true);
  b.inflate_and_return({4, 5, 6});
  b.host.is_inhibited = true;
  b.inflate_and_return({7});
  check(b.report({{page(8), 4 * 4096}}) == 0);
  b.hint({{page(8), 4096}});
  check(b.host.calls == 0 && b.counters.inhibited_buffers == 3);
  check(b.counters.inflate_count == 2 && b.counters.free_page_report_freed == 0);
  b.deflate_and_return({5}); // not a discard: it is remembered
  b.host.is_inhibited = false;
  b.inflate_and_return({7});
  check(b.host.calls == 0);
  b.inflate_and_return({5});
  check(b.host.discarded == page_bits({4, 5, 6, 7}));
  (void)b.report({{page(8), 4096}, {page(8), 4 * 4096}});
  check(b.host.asked == 7); // once a buffer, for whatever is in it
};
BOTH("discards are inhibited buffer by buffer, and counted", inhibited)

constexpr auto big_endian = [](auto check) {
  bench<test_host, array_memory<16 * 4096>, std::endian::big> b({});
  b.inflate_and_return({4, 5});
  check(b.host.discarded == page_bits({4, 5}));
};
BOTH("PFNs have the byte order of the rings", big_endian)

constexpr auto four_bytes = [](auto check) {
  bench<> b({});
  b.inflate_and_return({4, 0, 5, 0}); // of eight bytes each they would be 4 and 5 alone
  check(b.host.discarded == page_bits({0, 4, 5}) && b.counters.bad_pages == 0);
  b.inflate_and_return({4 << 12}); // an address is no PFN
  check(b.counters.bad_pages == 1);
};
BOTH("RT-52: a PFN is 4 bytes and counts pages of 4096 bytes", four_bytes)

} // namespace
