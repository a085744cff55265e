// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/host/discard.hpp>

#include "support/host_memory.hpp"

#include <ballast/balloon/device.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <span>

namespace {

using namespace ballast;
using namespace ballast::host;
using namespace ballast_test;

static_assert(balloon::page_host<discarder>);
static_assert(!std::is_copy_constructible_v<discarder>);

const bool emulated = is_emulated();
const bool has_huge = !emulated && has_huge_pages(4);

constexpr guest_address base = 0x4000'0000; // of the guest's memory

/// A back end over one mapping.
struct machine {
  explicit machine(const guarded_mapping& m, const discard_options& options = {},
                   bool is_writable = true)
      : regions{{base, m.data(), m.size(), is_writable}},
        started(back_end.start(regions, options).error()) {}

  discard_storage<8, 2> storage;
  discarder back_end{storage};
  memory_region regions[1];
  error started;
};

TEST_CASE("anonymous memory comes back: Rss falls by what was discarded" *
          doctest::skip(emulated)) {
  const guarded_mapping m(64 * page, MAP_PRIVATE);
  machine b(m);
  REQUIRE(b.started == error::none);
  CHECK(b.back_end.regions()[0].way == discard_way::dont_need);
  CHECK(b.back_end.page_size() == page);
  m.fill();
  CHECK(m.resident_bytes() == 64 * page);
  CHECK(b.back_end.discard(base + 8 * page, 16 * page));
  CHECK(m.resident_bytes() == 64 * page); // waits
  CHECK(b.back_end.flush());
  CHECK(m.resident_bytes() == 48 * page);
  CHECK(m.is(0x5a, 0, 8 * page));
  CHECK(m.is_zero(8 * page, 16 * page));
  CHECK(m.is(0x5a, 24 * page, 40 * page));
  CHECK(b.back_end.counters().discarded_bytes == 16 * page);
}

TEST_CASE("a memfd gets a hole: its blocks are freed, which dropping the pages would not do" *
          doctest::skip(emulated)) {
  const owned_file file(make_memfd(64 * page));
  const guarded_mapping m(64 * page, MAP_SHARED, file.get());
  machine b(m);
  REQUIRE(b.started == error::none);
  CHECK(b.back_end.regions()[0].way == discard_way::punch_hole);
  m.fill();
  CHECK(file.allocated_bytes() == 64 * page);
  REQUIRE(madvise(m.data(), 64 * page, MADV_DONTNEED) == 0); // what Rss alone would be content with
  CHECK(m.resident_bytes() == 0);
  CHECK(file.allocated_bytes() == 64 * page);

  CHECK(b.back_end.discard(base + 8 * page, 16 * page));
  CHECK(b.back_end.flush());
  CHECK(file.allocated_bytes() == 48 * page);
  CHECK(file.size() == 64 * page);
  CHECK(m.is(0x5a, 0, 8 * page));
  CHECK(m.is_zero(8 * page, 16 * page));
  CHECK(m.is(0x5a, 24 * page, 40 * page));
}

TEST_CASE("the hole is at the mapping's offset in the file" * doctest::skip(emulated)) {
  const owned_file file(make_memfd(64 * page));
  const guarded_mapping whole(64 * page, MAP_SHARED, file.get());
  const guarded_mapping m(16 * page, MAP_PRIVATE);
  REQUIRE(mmap(m.data(), 16 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(),
               static_cast<off_t>(32 * page)) != MAP_FAILED);
  whole.fill();
  machine b(m);
  REQUIRE(b.started == error::none);
  CHECK(b.back_end.discard(base + page, 2 * page));
  CHECK(b.back_end.flush());
  CHECK(whole.is(0x5a, 0, 33 * page));
  CHECK(whole.is_zero(33 * page, 2 * page));
  CHECK(whole.is(0x5a, 35 * page, 29 * page));
}

TEST_CASE("shared memory without a file descriptor comes back" * doctest::skip(emulated)) {
  const guarded_mapping m(64 * page, MAP_SHARED);
  machine b(m);
  REQUIRE(b.started == error::none);
  m.fill();
  CHECK(m.in_core_bytes() == 64 * page);
  CHECK(b.back_end.discard(base, 32 * page));
  CHECK(b.back_end.flush());
  CHECK(m.in_core_bytes() == 32 * page);
  CHECK(m.is_zero(0, 32 * page));
  CHECK(m.is(0x5a, 32 * page, 32 * page));
}

TEST_CASE("a user's file is refused and untouched unless it was asked for" *
          doctest::skip(emulated)) {
  const owned_file file(make_disk_file(64 * page, 0x5a));
  REQUIRE(file.get() >= 0);
  const guarded_mapping m(64 * page, MAP_SHARED, file.get());
  const std::uint64_t before = file.allocated_bytes();
  CHECK(before >= 64 * page);
  {
    machine b(m);
    CHECK(b.started == error::file_not_allowed);
    CHECK(b.back_end.failure().why == error::file_not_allowed);
    CHECK(b.back_end.failure().address == base);
    CHECK(!b.back_end.discard(base, page));
    CHECK(b.back_end.flush());
    CHECK(m.is(0x5a, 0, 64 * page));
    CHECK(file.allocated_bytes() == before);
  }
  machine b(m, {.replaces_private_files = true}); // another permission does not do
  CHECK(b.started == error::file_not_allowed);

  machine allowed(m, {.punches_files = true});
  REQUIRE(allowed.started == error::none);
  CHECK(allowed.back_end.discard(base + 16 * page, 32 * page));
  CHECK(allowed.back_end.flush());
  CHECK(allowed.back_end.failure().why == error::none);
  CHECK(file.allocated_bytes() == before - 32 * page);
  CHECK(file.size() == 64 * page);
  CHECK(m.is(0x5a, 0, 16 * page));
  CHECK(m.is_zero(16 * page, 32 * page));
  CHECK(m.is(0x5a, 48 * page, 16 * page));
}

TEST_CASE("a private mapping of a file gives its pages back for zeros and leaves the file alone" *
          doctest::skip(emulated)) {
  const owned_file file(make_disk_file(64 * page, 0x11));
  REQUIRE(file.get() >= 0);
  const guarded_mapping m(64 * page, MAP_PRIVATE, file.get());
  const guarded_mapping other(64 * page, MAP_SHARED, file.get(), PROT_READ);
  {
    machine b(m, {.punches_files = true});
    CHECK(b.started == error::file_not_allowed);
  }
  machine b(m, {.replaces_private_files = true});
  REQUIRE(b.started == error::none);
  CHECK(b.back_end.regions()[0].way == discard_way::replace);
  m.fill();
  CHECK(m.resident_bytes() == 64 * page);
  CHECK(b.back_end.discard(base + 16 * page, 8 * page));
  CHECK(b.back_end.discard(base + 32 * page, 8 * page));
  CHECK(b.back_end.flush());
  CHECK(m.resident_bytes() == 48 * page);
  CHECK(m.is_zero(16 * page, 8 * page)); // not what the file has there
  CHECK(m.is_zero(32 * page, 8 * page));
  CHECK(m.is(0x5a, 0, 16 * page));
  CHECK(m.is(0x5a, 24 * page, 8 * page));
  CHECK(other.is(0x11, 0, 64 * page));
  // The guest takes a page back, writes it, and gives it away once more.
  std::memset(m.data() + 16 * page, 7, page);
  CHECK(b.back_end.discard(base + 16 * page, page));
  CHECK(b.back_end.flush());
  CHECK(m.is_zero(16 * page, page));
}

TEST_CASE("huge pages of a memfd are really returned [needs root or free huge pages]" *
          doctest::skip(!has_huge)) {
  const reserved_huge_pages reserved(4);
  const std::uint64_t free = reserved_huge_pages::free_pages();
  const owned_file file(make_memfd(4 * huge_page, MFD_HUGETLB | unsigned{huge_2m & ~MAP_HUGETLB}));
  const guarded_mapping m(4 * huge_page, MAP_SHARED | huge_2m, file.get());
  REQUIRE(m.data() != nullptr);
  machine b(m);
  REQUIRE(b.started == error::none);
  CHECK(b.back_end.regions()[0].way == discard_way::punch_hole);
  CHECK(b.back_end.page_size() == huge_page);
  m.fill();
  CHECK(m.hugetlb_bytes() == 4 * huge_page);
  CHECK(file.allocated_bytes() == 4 * huge_page);
  CHECK(reserved_huge_pages::free_pages() + 4 == free);
  CHECK(b.back_end.discard(base + huge_page, 2 * huge_page));
  CHECK(b.back_end.flush());
  CHECK(m.hugetlb_bytes() == 2 * huge_page);
  CHECK(file.allocated_bytes() == 2 * huge_page);
  CHECK(reserved_huge_pages::free_pages() + 2 == free);
  CHECK(m.is(0x5a, 0, huge_page));
  CHECK(m.is(0x5a, 3 * huge_page, huge_page));
  CHECK(m.is_zero(huge_page, 2 * huge_page));
}

TEST_CASE("private huge pages are really returned [needs root or free huge pages]" *
          doctest::skip(!has_huge)) {
  const reserved_huge_pages reserved(4);
  const std::uint64_t free = reserved_huge_pages::free_pages();
  const guarded_mapping m(4 * huge_page, MAP_PRIVATE | huge_2m);
  REQUIRE(m.data() != nullptr);
  machine b(m);
  REQUIRE(b.started == error::none);
  CHECK(b.back_end.regions()[0].way == discard_way::dont_need);
  m.fill();
  CHECK(m.hugetlb_bytes() == 4 * huge_page);
  CHECK(b.back_end.discard(base + huge_page, 2 * huge_page));
  CHECK(b.back_end.flush());
  CHECK(m.hugetlb_bytes() == 2 * huge_page);
  CHECK(reserved_huge_pages::free_pages() + 2 == free);
  CHECK(m.is(0x5a, 0, huge_page));
  CHECK(m.is(0x5a, 3 * huge_page, huge_page));
  CHECK(m.is_zero(huge_page, 2 * huge_page));
}

TEST_CASE("a part of a huge page is refused, for which the kernel would report success "
          "[needs root or free huge pages]" *
          doctest::skip(!has_huge)) {
  const reserved_huge_pages reserved(4);
  const guarded_mapping own(2 * huge_page, MAP_PRIVATE | huge_2m);
  const owned_file file(make_memfd(2 * huge_page, MFD_HUGETLB | unsigned{huge_2m & ~MAP_HUGETLB}));
  const guarded_mapping shared(2 * huge_page, MAP_SHARED | huge_2m, file.get());
  for (const guarded_mapping* const m : {&own, &shared}) {
    REQUIRE(m->data() != nullptr);
    m->fill();
    CHECK(madvise(m->data(), 4096, MADV_DONTNEED) == 0); // "done"
    CHECK(m->hugetlb_bytes() == 2 * huge_page);
    CHECK(m->is(0x5a, 0, 2 * huge_page));
    machine b(*m);
    REQUIRE(b.started == error::none);
    const auto refused = [&](guest_address address, std::uint64_t size) {
      CHECK(!b.back_end.discard(address, size));
      CHECK(b.back_end.failure().why == error::misaligned);
      CHECK(b.back_end.failure().address == address);
      CHECK(b.back_end.failure().size == size);
    };
    refused(base, 4096);
    refused(base, huge_page - 4096);
    refused(base, huge_page + 4096);
    refused(base + 4096, 4096);
    refused(base + 4096, huge_page);
    CHECK(b.back_end.flush());
    CHECK(b.back_end.counters().refused_ranges == 5);
    CHECK(b.back_end.counters().system_calls == 0);
    CHECK(m->is(0x5a, 0, 2 * huge_page));
    CHECK(b.back_end.discard(base, huge_page));
    CHECK(b.back_end.flush());
    CHECK(m->hugetlb_bytes() == huge_page);
  }
}

TEST_CASE("regions that cannot be given back are refused at the start" * doctest::skip(emulated)) {
  const guarded_mapping m(8 * page, MAP_PRIVATE);
  discard_storage<4, 1> storage;
  discarder back_end(storage);
  const auto refusal = [&](std::span<const memory_region> regions) {
    const error e = back_end.start(regions).error();
    CHECK(back_end.regions().empty());
    if (regions.size() == 1) CHECK(back_end.failure().why == e);
    CHECK(!back_end.discard(base, page));
    return e;
  };
  const memory_region two[] = {{base, m.data(), page}, {base + page, m.data() + page, page}};
  CHECK(refusal(two) == error::storage_too_small);
  const memory_region shifted[] = {{base + 16, m.data(), page}};
  CHECK(refusal(shifted) == error::misaligned);
  const memory_region guard[] = {{base, m.data() - page, page}};
  CHECK(refusal(guard) == error::access_not_allowed);
  const memory_region nothing[] = {{base, reinterpret_cast<std::byte*>(page), page}};
  CHECK(refusal(nothing) == error::not_mapped);
  REQUIRE(mprotect(m.data(), page, PROT_READ) == 0);
  const memory_region whole[] = {{base, m.data(), 8 * page}};
  CHECK(refusal(whole) == error::access_not_allowed);
  REQUIRE(mprotect(m.data(), page, PROT_READ | PROT_WRITE) == 0);
  REQUIRE(lock_memory(m.data() + page, page));
  CHECK(refusal(whole) == error::mapping_locked);
  REQUIRE(unlock_memory(m.data() + page, page));
  REQUIRE(mmap(m.data() + page, page, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
  CHECK(refusal(whole) == error::mapping_mixed);
  CHECK(back_end.start(std::span(two).first(1)).has_value());
  CHECK(back_end.failure().why == error::none);
}

TEST_CASE("memory of a device is refused" * doctest::skip(emulated)) {
  // The kernel's own page in every process: mapped, and no memory that could be given back.
  std::uintptr_t at = 0;
  mapping_table table("/proc/self/smaps");
  for (mapping_table::entry e; table.next(e);)
    if (e.is_device) at = e.begin;
  if (at == 0) {
    MESSAGE("no mapping of this kind in this process");
    return;
  }
  discard_storage<4, 1> storage;
  discarder back_end(storage);
  const memory_region region[] = {{base, reinterpret_cast<std::byte*>(at), page}};
  CHECK(back_end.start(region).error() == error::mapping_unsupported);
}

TEST_CASE("read-only guest memory is never discarded" * doctest::skip(emulated)) {
  const guarded_mapping m(4 * page, MAP_PRIVATE);
  m.fill();
  machine b(m, {}, false);
  REQUIRE(b.started == error::none);
  CHECK(!b.back_end.discard(base, page));
  CHECK(b.back_end.failure().why == error::access_not_allowed);
  CHECK(b.back_end.flush());
  CHECK(m.is(0x5a, 0, 4 * page));
}

TEST_CASE("only whole pages within one region are discarded" * doctest::skip(emulated)) {
  const guarded_mapping m(8 * page, MAP_PRIVATE);
  m.fill();
  discard_storage<4, 2> storage;
  discarder back_end(storage);
  const memory_region regions[] = {{base, m.data(), 4 * page},
                                   {base + 4 * page, m.data() + 4 * page, 4 * page}};
  REQUIRE(back_end.start(regions).has_value());
  const auto refused = [&](guest_address address, std::uint64_t size, error why) {
    CHECK(!back_end.discard(address, size));
    CHECK(back_end.failure().why == why);
  };
  refused(base - page, page, error::not_guest_memory);
  refused(base - page, 2 * page, error::not_guest_memory);
  refused(base + 3 * page, 2 * page, error::not_guest_memory); // two regions
  refused(base + 7 * page, 2 * page, error::not_guest_memory);
  refused(base + 8 * page, page, error::not_guest_memory);
  refused(base, UINT64_MAX, error::not_guest_memory);
  refused(UINT64_MAX, page, error::not_guest_memory);
  refused(base + 1, page, error::misaligned);
  refused(base, page - 1, error::misaligned);
  refused(base, 1, error::misaligned);
  CHECK(back_end.counters().refused_ranges == 10);
  CHECK(back_end.discard(base, 0));
  CHECK(back_end.flush());
  CHECK(back_end.counters().given_ranges == 0);
  CHECK(m.is(0x5a, 0, 8 * page));
}

// Ranges of single pages, as they are given; how many are left of them.
std::uint64_t merged(std::initializer_list<std::uint64_t> pages, const guarded_mapping& m) {
  m.fill();
  machine b(m);
  for (const std::uint64_t p : pages) CHECK(b.back_end.discard(base + p * page, page));
  CHECK(b.back_end.flush());
  for (std::uint64_t p = 0; p < m.size() / page; ++p) {
    bool is_given = false;
    for (const std::uint64_t given : pages) is_given = is_given || given == p;
    CHECK(m.is(is_given ? 0 : 0x5a, p * page, page));
  }
  CHECK(b.back_end.counters().given_ranges == pages.size());
  return b.back_end.counters().merged_ranges;
}

TEST_CASE("what adjoins or overlaps is joined, in whichever order it comes" *
          doctest::skip(emulated)) {
  const guarded_mapping m(16 * page, MAP_PRIVATE);
  CHECK(merged({0, 1, 2, 3}, m) == 1);
  CHECK(merged({3, 2, 1, 0}, m) == 1);
  CHECK(merged({4, 5, 6, 7, 0, 1, 2, 3}, m) == 1); // buffers in descending order
  CHECK(merged({0, 8, 1, 9, 2, 10}, m) == 2);      // two lists, taken from in turn
  CHECK(merged({5, 5, 5}, m) == 1);
  CHECK(merged({0, 2, 1, 3, 2}, m) == 1);
  CHECK(merged({0, 2, 4, 6}, m) == 4);
  CHECK(merged({15, 0}, m) == 2);
}

TEST_CASE("ranges inside of others are joined with them" * doctest::skip(emulated)) {
  const guarded_mapping m(16 * page, MAP_PRIVATE);
  m.fill();
  machine b(m);
  for (const auto& [first, count] : {std::pair{8, 2}, {0, 8}, {2, 1}, {4, 5}, {12, 1}})
    CHECK(b.back_end.discard(base + static_cast<unsigned>(first) * page,
                             static_cast<unsigned>(count) * page));
  CHECK(b.back_end.flush());
  CHECK(b.back_end.counters().merged_ranges == 2);
  CHECK(b.back_end.counters().discarded_bytes == 11 * page); // no byte twice
  CHECK(m.is_zero(0, 10 * page));
  CHECK(m.is(0x5a, 10 * page, 2 * page));
}

TEST_CASE("full storage is emptied early and nothing is lost" * doctest::skip(emulated)) {
  const guarded_mapping m(64 * page, MAP_PRIVATE);
  m.fill();
  machine b(m); // room for 8
  for (std::uint64_t p = 0; p < 64; p += 2) CHECK(b.back_end.discard(base + p * page, page));
  CHECK(m.resident_bytes() == 40 * page); // 8 wait
  CHECK(b.back_end.flush());
  CHECK(m.resident_bytes() == 32 * page);
  CHECK(b.back_end.counters().merged_ranges == 32);
  CHECK(b.back_end.counters().discarded_bytes == 32 * page);
}

TEST_CASE("several ranges go to the kernel in one call, or one by one, with the same effect" *
          doctest::skip(emulated)) {
  for (const int flags : {MAP_PRIVATE, MAP_SHARED})
    for (const bool uses_vectors : {true, false}) {
      const guarded_mapping m(16 * page, flags);
      m.fill();
      machine b(m, {.uses_vectors = uses_vectors});
      REQUIRE(b.started == error::none);
      const bool has_vectors = b.back_end.has_vectors(b.back_end.regions()[0].way);
      CHECK((uses_vectors || !has_vectors));
      for (std::uint64_t p = 0; p < 16; p += 2) CHECK(b.back_end.discard(base + p * page, page));
      CHECK(b.back_end.flush());
      CHECK(b.back_end.counters().system_calls == (has_vectors ? 1 : 8));
      CHECK(b.back_end.counters().discarded_bytes == 8 * page);
      for (std::uint64_t p = 0; p < 16; ++p) CHECK(m.is(p % 2 == 0 ? 0 : 0x5a, p * page, page));
    }
}

TEST_CASE("a range that fails leaves the others done, and errno is kept" *
          doctest::skip(emulated)) {
  for (const bool uses_vectors : {true, false})
    for (const std::uint64_t bad : {0u, 4u, 8u, 14u}) {
      const guarded_mapping m(16 * page, MAP_PRIVATE);
      m.fill();
      machine b(m, {.uses_vectors = uses_vectors});
      REQUIRE(lock_memory(m.data() + bad * page, page)); // only now
      for (std::uint64_t p = 0; p < 16; p += 2) CHECK(b.back_end.discard(base + p * page, page));
      CHECK(!b.back_end.flush());
      CHECK(b.back_end.failure().why == error::system_call_failed);
      CHECK(b.back_end.failure().system_error == EINVAL);
      CHECK(b.back_end.failure().address ==
            reinterpret_cast<std::uintptr_t>(m.data()) + bad * page);
      CHECK(b.back_end.failure().size == page);
      CHECK(b.back_end.counters().failed_ranges == 1);
      CHECK(b.back_end.counters().discarded_bytes == 7 * page);
      for (std::uint64_t p = 0; p < 16; ++p)
        CHECK(m.is(p % 2 == 0 && p != bad ? 0 : 0x5a, p * page, page));
      CHECK(b.back_end.flush()); // it is not tried for ever
    }
}

TEST_CASE("a failure while the storage is emptied early is not passed over" *
          doctest::skip(emulated)) {
  const guarded_mapping m(64 * page, MAP_PRIVATE);
  machine b(m); // room for 8
  m.fill();
  REQUIRE(lock_memory(m.data(), page));
  std::uint64_t failures = 0;
  for (std::uint64_t p = 0; p < 32; p += 2) failures += !b.back_end.discard(base + p * page, page);
  CHECK(failures == 1);
  CHECK(b.back_end.flush());
  CHECK(m.resident_bytes() == 49 * page);
}

TEST_CASE("more ranges and more bytes than one call takes are all done" * doctest::skip(emulated)) {
  constexpr std::uint64_t gib = std::uint64_t{1} << 30;
  const guarded_mapping m(8 * gib, MAP_PRIVATE | MAP_NORESERVE);
  REQUIRE(m.data() != nullptr);
  const auto storage = std::make_unique<discard_storage<4096, 1>>();
  discarder back_end(*storage);
  const memory_region region[] = {{base, m.data(), m.size()}};
  REQUIRE(back_end.start(region).has_value());
  // Two ranges of 3 GiB and 2500 of a page, with a page in use at every end.
  const auto use = [&](std::uint64_t at) { m.data()[at] = std::byte{1}; };
  for (const std::uint64_t at : {std::uint64_t{0}, gib, 2 * gib, 3 * gib - page, 4 * gib, 6 * gib})
    use(at);
  for (std::uint64_t i = 0; i < 2500; ++i) use(7 * gib + 2 * i * page);
  CHECK(m.resident_bytes() == 2506 * page);
  CHECK(back_end.discard(base + 4 * gib, 2 * gib + page));
  CHECK(back_end.discard(base, 3 * gib));
  for (std::uint64_t i = 2500; i-- > 0;)
    CHECK(back_end.discard(base + 7 * gib + 2 * i * page, page));
  CHECK(back_end.flush());
  CHECK(m.resident_bytes() == 0);
  CHECK(back_end.counters().merged_ranges == 2502);
  CHECK(back_end.counters().failed_ranges == 0);
  CHECK(back_end.counters().discarded_bytes == 5 * gib + 2501 * page);
  if (back_end.has_vectors(discard_way::dont_need)) CHECK(back_end.counters().system_calls == 5);
}

TEST_CASE("regions of different kinds, each in its own way" * doctest::skip(emulated)) {
  const guarded_mapping own(8 * page, MAP_PRIVATE);
  const owned_file file(make_memfd(8 * page));
  const guarded_mapping shared(8 * page, MAP_SHARED, file.get());
  own.fill();
  shared.fill();
  discard_storage<8, 2> storage;
  discarder back_end(storage);
  const memory_region regions[] = {{base, own.data(), own.size()},
                                   {2 * base, shared.data(), shared.size()}};
  REQUIRE(back_end.start(regions).has_value());
  for (std::uint64_t p = 0; p < 8; p += 4) {
    CHECK(back_end.discard(base + p * page, page));
    CHECK(back_end.discard(2 * base + p * page, 2 * page));
  }
  CHECK(back_end.flush());
  CHECK(own.resident_bytes() == 6 * page);
  CHECK(file.allocated_bytes() == 4 * page);
}

TEST_CASE("memory of two kinds that adjoins is never joined" * doctest::skip(emulated)) {
  const guarded_mapping m(8 * page, MAP_PRIVATE);
  const owned_file file(make_memfd(4 * page));
  REQUIRE(mmap(m.data() + 4 * page, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
               file.get(), 0) != MAP_FAILED);
  m.fill();
  discard_storage<8, 2> storage;
  discarder back_end(storage);
  const memory_region regions[] = {{base, m.data(), 4 * page},
                                   {base + 4 * page, m.data() + 4 * page, 4 * page}};
  REQUIRE(back_end.start(regions).has_value());
  for (std::uint64_t p = 2; p < 6; ++p) CHECK(back_end.discard(base + p * page, page));
  CHECK(back_end.flush());
  CHECK(file.allocated_bytes() == 2 * page);
  CHECK(back_end.counters().merged_ranges == 2);
  CHECK(m.is(0x5a, 0, 2 * page));
  CHECK(m.is_zero(2 * page, 4 * page));
  CHECK(m.is(0x5a, 6 * page, 2 * page));
}

TEST_CASE("a page that the guest takes back is not lost to a discard that waits" *
          doctest::skip(emulated)) {
  const guarded_mapping m(4 * page, MAP_PRIVATE);
  machine b(m);
  m.fill();
  CHECK(b.back_end.discard(base, page));
  b.back_end.provide(base, page);
  m.fill(1);
  CHECK(b.back_end.flush());
  CHECK(m.is(1, 0, 4 * page));
  CHECK(b.back_end.counters().populated_bytes == 0); // was not asked for
}

TEST_CASE("on deflate pages are made present where that is asked for" * doctest::skip(emulated)) {
  for (const int flags : {MAP_PRIVATE, MAP_SHARED})
    for (const bool uses_populate_write : {true, false}) {
      const guarded_mapping m(16 * page, flags);
      machine b(m, {.populates = true, .uses_populate_write = uses_populate_write});
      REQUIRE(b.started == error::none);
      m.data()[5 * page] = std::byte{9};
      b.back_end.provide(base + 4 * page, 8 * page);
      CHECK(m.data()[5 * page] == std::byte{9});
      // Without the kernel's help memory that may run out is left to the guest's first access.
      const bool is_done = b.back_end.has_populate_write() || flags == MAP_PRIVATE;
      CHECK((uses_populate_write || !b.back_end.has_populate_write()));
      CHECK(m.resident_bytes() == (is_done ? 8 : 1) * page);
      CHECK(b.back_end.counters().populated_bytes == (is_done ? 8 * page : 0));
      CHECK(b.back_end.counters().failed_populates == (is_done ? 0 : 1));
    }
}

TEST_CASE("pages that cannot be made present are left, and counted" * doctest::skip(emulated)) {
  const guarded_mapping m(16 * page, MAP_PRIVATE);
  machine b(m, {.populates = true});
  if (!b.back_end.has_populate_write()) {
    MESSAGE("this kernel has no MADV_POPULATE_WRITE");
    return;
  }
  b.back_end.provide(base - page, page); // no guest memory
  CHECK(b.back_end.counters().failed_populates == 1);
  REQUIRE(munmap(m.data() + 2 * page, page) == 0);
  b.back_end.provide(base, 4 * page);
  CHECK(b.back_end.counters().failed_populates == 2);
  CHECK(b.back_end.failure().why == error::system_call_failed);
  CHECK(b.back_end.failure().system_error == ENOMEM);
  b.back_end.provide(base + 4 * page, 0);
  CHECK(b.back_end.counters().failed_populates == 2);
}

TEST_CASE("a start forgets the life before it" * doctest::skip(emulated)) {
  const guarded_mapping m(4 * page, MAP_PRIVATE);
  machine b(m);
  m.fill();
  CHECK(b.back_end.discard(base, page));
  CHECK(!b.back_end.discard(0, page));
  REQUIRE(b.back_end.start(b.regions).has_value());
  CHECK(b.back_end.flush());
  CHECK(m.is(0x5a, 0, 4 * page));
  CHECK(b.back_end.counters().refused_ranges == 0);
  CHECK(b.back_end.failure().why == error::none);
}

} // namespace
