// SPDX-License-Identifier: BSD-3-Clause
// The device's five queues, with host pages of 16 KiB, on memory that fails, changes, or holds
// anything.
#include <ballast/balloon/device.hpp>

#include "support/changing_memory.hpp"
#include "support/check.hpp"
#include "support/failing_memory.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <random>
#include <span>

namespace {

using namespace ballast;
using namespace ballast_test;

// Rings in page 0, buffers in page 1; pages 4 to 15 are given away.
constexpr std::uint32_t page_count = 16;
constexpr guest_address data = 0x1000;
using ram_type = array_memory<page_count * 4096>;

constexpr std::uint16_t inflateq = 0, deflateq = 1, statsq = 2, free_page_vq = 3, reporting_vq = 4;

/// A host that checks what it is given, and keeps a log of it.
struct strict_host {
  std::uint32_t wrong = 0; ///< not whole pages of memory, or not of the host
  std::uint64_t discarded = 0, provided = 0, filled = 0, hinted = 0;

  constexpr bool discard(guest_address address, std::uint64_t size) noexcept {
    mark(discarded, address, size, 4 * 4096);
    return true;
  }
  constexpr void provide(guest_address address, std::uint64_t size) noexcept {
    mark(provided, address, size, 4 * 4096);
  }
  constexpr bool fill(guest_address address, std::uint64_t size, std::uint32_t) noexcept {
    mark(filled, address, size, 4 * 4096);
    return true;
  }
  constexpr bool hint(guest_address address, std::uint64_t size) noexcept {
    mark(hinted, address, size, 4096);
    return true;
  }

 private:
  constexpr void mark(std::uint64_t& pages, guest_address address, std::uint64_t size,
                      std::uint64_t unit) noexcept {
    const guest_address end = page_count * 4096;
    if (size == 0 || address % unit != 0 || size % unit != 0 || address > end ||
        size > end - address) {
      ++wrong;
      return;
    }
    for (std::uint64_t page = address / 4096; page < (address + size) / 4096; ++page)
      pages |= std::uint64_t{1} << page;
  }
};

struct outcome {
  error failure = error::none;
  std::uint64_t discarded = 0, provided = 0, filled = 0, hinted = 0;
  std::uint32_t returned = 0;    ///< buffers
  std::uint32_t with_length = 0; ///< of them, those with a used length other than 0
  std::uint64_t skipped = 0;     ///< pages and ranges that were counted as bad, or not as hints

  friend constexpr bool operator==(const outcome&, const outcome&) noexcept = default;
};

constexpr feature_set everything{balloon::feature::must_tell_host, balloon::feature::stats_vq,
                                 balloon::feature::free_page_hint, balloon::feature::page_poison,
                                 balloon::feature::page_reporting, feature::event_idx,
                                 feature::indirect_desc,           feature::version_1};

/// A device on memory of any kind, and a driver's queues on memory that is what it is.
template <class M> class machine {
 public:
  constexpr machine(ram_type& of_driver, M& of_device) noexcept
      : ram_(of_driver), memory_(of_device),
        device_(host, {.offered = everything, .tracker = &tracker_}) {}

  /// Something of everything, until the device needs a reset.
  constexpr outcome run() noexcept {
    start();
    note(device_.start_hinting());
    command(device_.hinting().command_id());
    send(free_page_vq, {}, {{page(4), 4096}, {page(6), 8192}});
    process(free_page_vq);
    send(reporting_vq, {}, {{page(8), 4 * 4096}, {page(5), 4096}});
    process(reporting_vq);
    pfns(inflateq, {12, 13, 14});
    pfns(inflateq, {15});
    process(inflateq);
    pfns(deflateq, {13});
    process(deflateq);
    pfns(inflateq, {4, 5, 6});
    process(inflateq);
    pfns(deflateq, {5});
    process(deflateq);
    pfns(inflateq, {7}); // 5 is in use
    process(inflateq);
    send(statsq, {{page(2), 20}}, {});
    process(statsq);
    if (result_.failure == error::none) note(device_.request_statistics());
    process(statsq);
    command(0);
    send(free_page_vq, {}, {{page(9), 4096}}); // too late
    process(free_page_vq);
    return facts();
  }

  constexpr void start() noexcept {
    device_.reset();
    result_ = {};
    for (std::uint16_t i = 0; i < 5; ++i) {
      layouts_[i] = split::place(i * 0x200u, 8).layout;
      for (guest_address at = i * 0x200u; at < (i + 1) * 0x200u; ++at)
        ram_.bytes()[at] = std::byte{0};
      (void)queues_[i].start(ram_, layouts_[i], everything);
    }
    note(device_.activate(everything, layouts_, memory_));
  }

  constexpr void note(const actions& due) noexcept {
    if (result_.failure == error::none) result_.failure = due.failure;
  }
  constexpr outcome facts() noexcept {
    result_.discarded = host.discarded;
    result_.provided = host.provided;
    result_.filled = host.filled;
    result_.hinted = host.hinted;
    const auto& c = device_.counters();
    result_.skipped = c.bad_pages + c.free_page_report_fails + c.free_page_hint_fails +
                      c.ignored_hints + device_.hinting().counters().malformed_commands;
    return result_;
  }
  [[nodiscard]] constexpr auto& device() noexcept { return device_; }
  [[nodiscard]] constexpr auto& layouts() noexcept { return layouts_; }

  strict_host host;

 private:
  static constexpr guest_address page(std::uint64_t n) noexcept { return n * 4096; }

  constexpr void send(std::uint16_t queue, std::initializer_list<buffer> readable,
                      std::initializer_list<buffer> writable) noexcept {
    if (result_.failure != error::none) return;
    (void)queues_[queue].add(std::span(readable.begin(), readable.size()),
                             std::span(writable.begin(), writable.size()), 0);
    queues_[queue].publish();
  }
  constexpr void pfns(std::uint16_t queue, std::initializer_list<std::uint32_t> pages) noexcept {
    const guest_address start = at_;
    for (const std::uint32_t pfn : pages) put(pfn);
    send(queue, {{start, static_cast<std::uint32_t>(at_ - start)}}, {});
  }
  constexpr void command(std::uint32_t id) noexcept {
    const guest_address start = at_;
    put(id);
    send(free_page_vq, {{start, 1}, {start + 1, 3}}, {});
  }
  constexpr void put(std::uint32_t value) noexcept {
    const auto raw = std::bit_cast<std::array<std::byte, 4>>(le32(value));
    (void)ram_.write(at_, raw);
    at_ += 4; // each buffer is used once: it may have been overwritten since
  }
  constexpr void process(std::uint16_t queue) noexcept {
    if (result_.failure != error::none) return;
    note(device_.process(queue, 16));
    for (auto used = queues_[queue].pop_used(); used; used = queues_[queue].pop_used()) {
      ++result_.returned;
      result_.with_length += used->length != 0;
    }
  }

  ram_type& ram_;
  M& memory_;
  balloon::host_page_storage<page_count, 16384> storage_;
  balloon::host_page_tracker tracker_ =
      *balloon::host_page_tracker::over(storage_, {0, page_count}, 16384);
  balloon::device<M, strict_host, 8> device_;
  std::array<std::array<driver_slot, 8>, 5> slots_{};
  std::array<split_driver<ram_type>, 5> queues_{
      split_driver<ram_type>(slots_[0]), split_driver<ram_type>(slots_[1]),
      split_driver<ram_type>(slots_[2]), split_driver<ram_type>(slots_[3]),
      split_driver<ram_type>(slots_[4])};
  std::array<queue_layout, 5> layouts_{};
  guest_address at_ = data;
  outcome result_;
};

constexpr outcome honest_run() noexcept {
  ram_type ram;
  return machine<ram_type>(ram, ram).run();
}

constexpr auto honest = [](auto check) {
  const outcome is = honest_run();
  check(is.failure == error::none && is.returned == 12 && is.with_length == 0);
  check(is.discarded == 0xff00 && is.provided == 0xf000); // reported 8 to 11, inflated 12 to 15
  check(is.hinted == 0xd0 && is.filled == 0);
  check(is.skipped == 1); // the hint after STOP; a page of less than a host page is no fault
};
BOTH("RT-44: the honest run of all queues, which the others are held against", honest)

/// One run on memory that fails as `plan` says; whether it got that far.
constexpr bool fails_well(auto check, failure_plan plan) {
  using wrapped = failing_memory<ram_type>;
  const std::uint64_t lose_at = plan.lose_at, fail_at = plan.fail_at;
  ram_type ram;
  wrapped memory(ram, plan);
  machine<wrapped> m(ram, memory);
  const outcome is = m.run(), should_be = honest_run();
  const bool has_come = lose_at != 0 ? plan.accesses >= lose_at : plan.fallible >= fail_at;
  check(m.host.wrong == 0 && is.with_length == 0);
  // Nothing that the honest run does not do, whatever fails.
  check((is.discarded & ~should_be.discarded) == 0 && (is.hinted & ~should_be.hinted) == 0);
  if (is.failure == error::none) {
    check(is.returned == should_be.returned);
    check(is.skipped > should_be.skipped || is == should_be); // counted, if it makes a difference
  }
  plan = {};
  m.start();
  check(m.facts().failure == error::none);
  return has_come;
}

TEST_CASE(
    "RT-30: each access of the device fails once: it says so, or counts what it passed over") {
  std::uint64_t n = 1;
  for (bool has_come = true; has_come; ++n) {
    CAPTURE(n);
    has_come = fails_well(run_time_check{}, {.fail_at = n});
  }
  CHECK(n > 20);
}
TEST_CASE("RT-30: the device loses its memory at each access: it says so") {
  std::uint64_t n = 1;
  for (bool has_come = true; has_come; ++n) {
    CAPTURE(n);
    has_come = fails_well(run_time_check{}, {.lose_at = n});
    (void)fails_well(run_time_check{}, {.lose_at = n, .garbage = ~std::uint64_t{0}});
  }
  CHECK(n > 100);
}
constexpr auto fails_a_little = [](auto check) {
  check(fails_well(check, {.fail_at = 17}));
  check(fails_well(check, {.lose_at = 60}));
};
BOTH("... in a constant expression", fails_a_little)

constexpr auto read_once = [](auto check) {
  for (const std::uint64_t mask : {std::uint64_t{1}, ~std::uint64_t{0}}) {
    ram_type ram;
    change_plan plan{.mask = mask, .rewrites_words = true, .rewrites_payload = true};
    changing_memory<ram_type> memory(ram, plan);
    machine<changing_memory<ram_type>> m(ram, memory);
    check(m.run() == honest_run());
    check(plan.reads >= 9);
  }
};
BOTH("RT-15: arrays, commands and ranges are read once: what the driver changes then is nothing",
     read_once)

TEST_CASE("RT-30: queues full of random descriptors: only whole pages of memory are touched") {
  std::mt19937_64 random(11);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  std::uint64_t touched = 0, refused_queues = 0;
  for (int round = 0; round < 3000; ++round) {
    const auto ram = std::make_unique<ram_type>();
    const auto m = std::make_unique<machine<ram_type>>(*ram, *ram);
    m->start();
    (void)m->device().start_hinting();
    const auto put = [&](guest_address at, auto value) {
      const auto raw = std::bit_cast<std::array<std::byte, sizeof(value)>>(value);
      (void)ram->write(at, raw);
    };
    for (std::uint16_t i = 0; i < 512; ++i) // buffers: PFNs, ids, statistics
      put(data + 4u * i, le32(static_cast<std::uint32_t>(below(4) == 0 ? random() : below(20))));
    put(data, le32(m->device().hinting().command_id()));
    for (std::uint16_t q = 0; q < 5; ++q) {
      const queue_layout& at = m->layouts()[q];
      for (std::uint32_t i = 0; i < 8; ++i) {
        const bool is_range = below(2) == 0;
        put(at.descriptor_area + 16 * i, le64(below(10) == 0 ? random()
                                              : is_range     ? below(20) * 4096
                                                             : data + below(512)));
        put(at.descriptor_area + 16 * i + 8,
            le32(static_cast<std::uint32_t>(below(20) == 0  ? random()
                                            : is_range      ? below(9) * 4096
                                            : below(3) == 0 ? 4
                                                            : below(64))));
        const bool has_next = below(4) == 0;
        put(at.descriptor_area + 16 * i + 12,
            le16(static_cast<std::uint16_t>((has_next ? 1 : 0) | (is_range ? 2 : 0) |
                                            (below(30) == 0 ? 4 : 0))));
        put(at.descriptor_area + 16 * i + 14, le16(static_cast<std::uint16_t>(below(9))));
        put(at.driver_area + 4 + 2 * i,
            le16(static_cast<std::uint16_t>(below(40) == 0 ? below(65536) : i)));
      }
      put(at.driver_area + 2, le16(static_cast<std::uint16_t>(below(10) == 0 ? below(20) : 8)));
    }
    for (int i = 0; i < 8; ++i) {
      const actions done = m->device().process(static_cast<std::uint16_t>(below(5)), 3);
      refused_queues += done.needs_reset;
      REQUIRE(done.needs_reset == (done.failure != error::none));
      REQUIRE(m->host.wrong == 0);
    }
    touched += m->host.discarded != 0;
    touched += m->host.hinted != 0;
    m->start();
    REQUIRE(m->facts().failure == error::none);
  }
  CHECK(touched > 500);
  CHECK(refused_queues > 500);
}

} // namespace
