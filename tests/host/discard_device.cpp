// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/host/discard.hpp>

#include "support/host_memory.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/page_ranges.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast::host;
using namespace ballast_test;

const bool emulated = is_emulated();

constexpr guest_address memory_at = 0x1'0000'0000, rings_at = 0x10000;
constexpr std::uint32_t first_pfn = memory_at >> balloon::pfn_shift;
constexpr std::uint32_t queue_size = 16;

/// The back end, with a look at the used ring whenever something is given back.
struct watched_host {
  bool discard(guest_address address, std::uint64_t size) noexcept {
    return back_end->discard(address, size);
  }
  void provide(guest_address address, std::uint64_t size) noexcept {
    back_end->provide(address, size);
  }
  bool flush() noexcept {
    const bool is_done = back_end->flush();
    ++flushes;
    if (used_index == nullptr) return is_done; // the activation
    std::uint16_t index = 0;
    std::memcpy(&index, used_index, sizeof(index));
    was_published = was_published || index != published_before;
    return is_done;
  }

  discarder* back_end;
  const std::byte* used_index = nullptr;
  std::uint16_t published_before = 0;
  std::uint32_t flushes = 0;
  bool was_published = false;
};

/// A device over real memory, and the bare inflate queue of a driver.
struct machine {
  machine() {
    REQUIRE(back_end.start(regions).has_value());
    const feature_set features{feature::version_1};
    const auto inflate = split::place(rings_at, queue_size);
    const auto deflate = split::place(inflate.end, queue_size);
    const queue_layout layouts[] = {inflate.layout, deflate.layout};
    REQUIRE(queues[0].start(ram, layouts[0], features).has_value());
    REQUIRE(queues[1].start(ram, layouts[1], features).has_value());
    REQUIRE(device.activate(features, layouts, ram).failure == error::none);
    watched.used_index = rings.data() + (inflate.layout.device_area - rings_at) + 2;
    watched.flushes = 0;
    memory.fill();
  }

  /// Makes a buffer with these pages of the balloon's memory available.
  void send(std::size_t queue, std::span<const std::uint32_t> pages) {
    std::vector<std::uint32_t> pfns;
    for (const std::uint32_t p : pages) pfns.push_back(first_pfn + p);
    const auto bytes = std::as_bytes(std::span(pfns));
    REQUIRE(ram.write(data_at, bytes));
    const buffer one{data_at, static_cast<std::uint32_t>(bytes.size())};
    REQUIRE(queues[queue].add(std::span(&one, 1), {}, 0).has_value());
    queues[queue].publish();
    data_at += bytes.size();
  }

  guarded_mapping rings{16 * 4096, MAP_PRIVATE};
  guarded_mapping memory{256 * 4096, MAP_PRIVATE};
  memory_region regions[2] = {{rings_at, rings.data(), rings.size()},
                              {memory_at, memory.data(), memory.size()}};
  mapped_memory ram = *mapped_memory::over(regions);
  discard_storage<64, 2> storage;
  discarder back_end{storage};
  watched_host watched{&back_end};
  balloon::device<mapped_memory, watched_host, queue_size> device{watched};
  std::array<std::array<driver_slot, queue_size>, 2> slots{};
  std::array<split_driver<mapped_memory>, 2> queues{split_driver<mapped_memory>(slots[0]),
                                                    split_driver<mapped_memory>(slots[1])};
  guest_address data_at = rings_at + 4 * 4096;
};

TEST_CASE("the device has memory given back before it returns the buffers" *
          doctest::skip(emulated || page != 4096)) {
  machine m;
  // Two lists of pages that the guest took from in turn, over three buffers.
  for (std::uint32_t i = 0; i < 3; ++i) {
    std::vector<std::uint32_t> pages;
    for (std::uint32_t p = 8 * i; p < 8 * i + 8; ++p) {
      pages.push_back(p);
      pages.push_back(200 - p);
    }
    m.send(0, pages);
  }
  CHECK(m.device.process(0, 8).failure == error::none);
  CHECK(m.watched.flushes > 0);
  CHECK(!m.watched.was_published);
  CHECK(m.memory.resident_bytes() == (256 - 48) * page);
  CHECK(m.memory.is_zero(0, 24 * page));
  CHECK(m.memory.is(0x5a, 24 * page, (177 - 24) * page));
  CHECK(m.memory.is_zero(177 * page, 24 * page));
  CHECK(m.back_end.counters().given_ranges == 48);
  CHECK(m.back_end.counters().merged_ranges == 2); // of all three buffers
  for (int i = 0; i < 3; ++i) CHECK(m.queues[0].pop_used().has_value());
  CHECK(m.device.counters().inflated_pages == 48);
  CHECK(m.device.counters().discard_failures == 0);
}

TEST_CASE("nothing waits once the device has returned the buffers" *
          doctest::skip(emulated || page != 4096)) {
  machine m;
  for (std::uint32_t i = 0; i < 40; ++i) {
    const std::uint32_t pages[] = {5 * i, 5 * i + 2};
    m.watched.published_before = static_cast<std::uint16_t>(i);
    m.send(0, pages);
    CHECK(m.device.process(0, 8).failure == error::none);
    CHECK(m.queues[0].pop_used().has_value());
    CHECK(m.memory.resident_bytes() == (256 - 2 * (i + 1)) * page);
    if (i % 15 == 14) m.data_at = rings_at + 4 * 4096;
  }
  CHECK(!m.watched.was_published);
  m.memory.fill(7); // the guest has them all back
  CHECK(m.back_end.flush());
  CHECK(m.memory.is(7, 0, 256 * page));
}

TEST_CASE("memory that the kernel does not take back is counted, and the buffer is returned" *
          doctest::skip(emulated || page != 4096)) {
  machine m;
  REQUIRE(lock_memory(m.memory.data() + 9 * page, page));
  const std::uint32_t pages[] = {1, 9, 17};
  m.send(0, pages);
  CHECK(m.device.process(0, 8).failure == error::none);
  CHECK(m.queues[0].pop_used().has_value());
  CHECK(m.device.counters().discard_failures == 1);
  CHECK(m.back_end.counters().failed_ranges == 1);
  CHECK(m.memory.resident_bytes() == 254 * page);
}

// As Linux sends them: a buffer of 256 pages at a time, which is half of a huge page.
TEST_CASE("a huge page of 2 MiB is returned once the second half of it is inflated "
          "[needs root or free huge pages]" *
          doctest::skip(emulated || page != 4096 || !has_huge_pages(4))) {
  const reserved_huge_pages reserved(4);
  const guarded_mapping rings(16 * 4096, MAP_PRIVATE);
  const owned_file file(make_memfd(4 * huge_page, MFD_HUGETLB | unsigned{huge_2m & ~MAP_HUGETLB}));
  const guarded_mapping memory(4 * huge_page, MAP_SHARED | huge_2m, file.get());
  REQUIRE(memory.data() != nullptr);
  memory.fill();
  const memory_region regions[] = {{rings_at, rings.data(), rings.size()},
                                   {memory_at, memory.data(), memory.size()}};
  auto ram = *mapped_memory::over(regions);
  discard_storage<64, 2> storage;
  discarder back_end(storage);
  REQUIRE(back_end.start(regions).has_value());
  CHECK(back_end.page_size() == huge_page);

  const balloon::page_range all{first_pfn, 4 * 512};
  std::vector<std::uint32_t> words(static_cast<std::size_t>(
      balloon::host_page_tracker::storage_size(all, back_end.page_size())));
  auto tracker = *balloon::host_page_tracker::over(words, all, back_end.page_size());
  balloon::device<mapped_memory, discarder, queue_size> device(
      back_end, {.host_page_size = back_end.page_size(), .tracker = &tracker});
  const feature_set features{feature::version_1, balloon::feature::must_tell_host};
  const queue_layout layouts[] = {split::place(rings_at, queue_size).layout,
                                  split::place(rings_at + 4096, queue_size).layout};
  std::array<driver_slot, queue_size> slots;
  split_driver<mapped_memory> queue(slots);
  REQUIRE(queue.start(ram, layouts[0], features).has_value());
  REQUIRE(device.activate(features, layouts, ram).failure == error::none);

  std::uint64_t halves = 0;
  for (const std::uint32_t half : {3u, 0u, 7u, 2u, 5u, 6u}) { // 3 and 2, 7 and 6 make one
    std::array<std::uint32_t, 256> pfns{};
    for (std::uint32_t i = 0; i < 256; ++i) pfns[i] = first_pfn + half * 256 + 255 - i;
    REQUIRE(ram.write(rings_at + 8192, std::as_bytes(std::span(pfns))));
    const buffer one{rings_at + 8192, 1024};
    REQUIRE(queue.add(std::span(&one, 1), {}, 0).has_value());
    queue.publish();
    CHECK(device.process(0, 8).failure == error::none);
    CHECK(queue.pop_used().has_value());
    ++halves;
    const std::uint64_t returned = halves < 4 ? 0 : halves < 6 ? 1 : 2;
    CHECK(memory.hugetlb_bytes() == (4 - returned) * huge_page);
    CHECK(file.allocated_bytes() == (4 - returned) * huge_page);
  }
  CHECK(back_end.counters().refused_ranges == 0);
  CHECK(memory.is(0x5a, 0, huge_page));
  CHECK(memory.is(0x5a, 2 * huge_page, huge_page));
  CHECK(memory.is_zero(huge_page, huge_page));
  CHECK(memory.is_zero(3 * huge_page, huge_page));
}

} // namespace
