// SPDX-License-Identifier: BSD-3-Clause
// A guest that writes anything anywhere, in any order and width: the device behind the registers is
// called as it must be, an enabled queue keeps its geometry, and a reset cures everything.
#include <ballast/transport/mmio_device.hpp>

#include <support/check.hpp>
#include <support/witness_device.hpp>

#include <ballast/memory/array_memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

using ballast::actions;
using ballast::error;
using ballast::feature_set;
using ballast::mmio_version;
using ballast::queue_layout;
namespace at = ballast::mmio_register;
namespace feature = ballast::feature;

using memory = ballast::array_memory<16>;
using device_type = ballast_test::witness_device<memory>;
using bus_type = ballast::mmio_device<device_type, memory>;

struct random_source {
  std::uint64_t state;
  constexpr std::uint32_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<std::uint32_t>(state >> 16);
  }
  constexpr std::uint32_t below(std::uint32_t n) { return next() % n; }
};

struct machine {
  device_type device;
  memory ram;
  bus_type bus;
  std::array<queue_layout, device_type::count> before{};
  bool is_right = true;

  constexpr explicit machine(mmio_version version) : bus(device, ram, version) {}
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;

  constexpr void write(std::uint64_t offset, unsigned width, std::uint64_t value) {
    const std::uint32_t resets = device.resets, processed = device.processed;
    const std::uint32_t taken = device.queue_resets;
    const auto state = bus.state();
    const actions due = bus.write(offset, width, value);
    expect(device.processed == processed); // a write processes nothing by itself
    expect((due.more_work & ~std::uint64_t{7}) == 0 &&
           (due.notify_queues & ~std::uint64_t{7}) == 0);
    if (due.failure == error::register_access) expect(bus.state() == state);
    for (std::size_t i = 0; i < before.size(); ++i) {
      const queue_layout& now = bus.queues()[i];
      const bool is_taken = now.size == 0 && (device.resets != resets ||
                                              device.queue_resets != taken || !bus.is_live());
      expect(before[i].size == 0 || now == before[i] || is_taken); // RT-12
      expect(now.size <= device_type::size_max && (i != 1 || now.size == 0));
      before[i] = now;
    }
    check();
  }
  constexpr void process(std::uint16_t queue) {
    const bool is_due = bus.is_live() && queue < 3 && bus.queues()[queue].size != 0;
    const std::uint32_t processed = device.processed;
    const actions due = bus.process(queue, 4);
    expect(device.processed == processed + is_due); // MM-5
    expect(due.notify_queues == 0 || bus.is_interrupting());
    check();
  }
  constexpr void check() {
    expect(device.wrongs == 0);
    if (device.is_active)
      for (std::size_t i = 0; i < before.size(); ++i) expect(device.queues[i] == bus.queues()[i]);
    else if (bus.read(at::status, 4) == 0)
      expect(!device.is_active && !bus.is_interrupting());
    expect(bus.read(at::magic_value, 4) == 0x74726976 && bus.read(at::device_id, 4) == 77);
    expect((bus.read(at::interrupt_status, 4) & ~std::uint64_t{3}) == 0);
  }
  constexpr void expect(bool ok) { is_right = is_right && ok; }

  constexpr void put(std::uint32_t offset, std::uint32_t value) { write(offset, 4, value); }
  /// What a driver does that keeps the rules; whether the device is live then.
  constexpr bool start() {
    const bool is_legacy = bus.is_legacy();
    for (const std::uint32_t bits : {0u, 1u, 3u}) put(at::status, bits);
    put(at::driver_features_select, 1);
    put(at::driver_features, is_legacy ? 0 : 0x101);
    put(at::driver_features_select, 0);
    put(at::driver_features, 2);
    if (!is_legacy) put(at::status, 11);
    for (const std::uint32_t queue : {0u, 2u}) {
      put(at::queue_select, queue);
      put(at::queue_size, 16);
      if (is_legacy) {
        put(at::guest_page_size, 4096);
        put(at::queue_align, 4096);
        put(at::queue_pfn, 3 + queue);
      } else {
        put(at::queue_descriptor_low, 0x1000);
        put(at::queue_driver_low, 0x1200);
        put(at::queue_device_low, 0x1300);
        put(at::queue_ready, 1);
      }
    }
    put(at::status, is_legacy ? 7 : 15);
    return bus.is_live() && bus.queues()[0].size == 16 && bus.queues()[2].size == 16;
  }
};

/// What a driver might write, and what it would not.
constexpr std::uint64_t values[] = {0,
                                    1,
                                    2,
                                    3,
                                    7,
                                    11,
                                    15,
                                    0x10,
                                    0x40,
                                    0x80,
                                    0x1000,
                                    0x80000000,
                                    0xffffffff,
                                    0x1'0000'0000,
                                    ~std::uint64_t{0}};
constexpr unsigned widths[] = {1, 2, 4, 8};

/// Mostly what has an effect: else nothing is ever live.
constexpr void do_something(machine& m, random_source& random) {
  const std::uint32_t what = random.below(64);
  if (what == 0) (void)m.start();
  if (what < 8) return m.process(static_cast<std::uint16_t>(random.below(5)));
  if (what == 8)
    m.device.process_answer = {.notify_queues = random.below(8),
                               .needs_reset = random.below(8) == 0};
  if (what == 9)
    m.device.activate_answer.failure = random.below(4) == 0 ? error::misaligned : error::none;
  if (what == 10)
    m.device.enable_answer.failure = random.below(2) == 0 ? error::misaligned : error::none;
  if (what < 16) m.put(at::queue_select, random.below(4));
  const bool is_any = what < 40;
  const std::uint32_t offset = is_any ? random.below(0x121) : random.below(0x31) * 4;
  if (offset == at::status && random.below(4) != 0) return; // or everything is FAILED
  m.write(offset, is_any ? widths[random.below(4)] : 4, values[random.below(std::size(values))]);
}

constexpr auto short_run = [](auto check) {
  for (const mmio_version version : {mmio_version::modern, mmio_version::legacy}) {
    machine m(version);
    random_source random{88172645463325252};
    check(m.start());
    for (int i = 0; i < 60; ++i) do_something(m, random);
    check(m.is_right);
  }
};
BOTH("some writes that make no sense, in a constant expression too (RT-3, RT-12)", short_run)

TEST_CASE("every offset, width and value in any order breaks nothing (MM-5, RT-3, RT-11, RT-12)") {
  std::vector<std::array<std::uint64_t, 3>> all;
  for (std::uint64_t offset = 0; offset <= 0x120; ++offset)
    for (const unsigned width : widths)
      for (const std::uint64_t value : values) all.push_back({offset, width, value});
  for (const mmio_version version : {mmio_version::modern, mmio_version::legacy})
    for (std::uint64_t seed = 1; seed <= 12; ++seed) {
      machine m(version);
      random_source random{seed * 0x9e3779b97f4a7c15};
      for (std::size_t i = all.size(); i > 1; --i)
        std::swap(all[i - 1], all[random.below(static_cast<std::uint32_t>(i))]);
      for (const auto& [offset, width, value] : all) {
        if (random.below(64) == 0) m.expect(m.start());
        m.write(offset, static_cast<unsigned>(width), value);
        if (random.below(8) == 0) m.process(static_cast<std::uint16_t>(random.below(4)));
      }
      m.expect(m.start()); // alive after a reset
      INFO("seed ", seed);
      REQUIRE(m.is_right);
    }
}

TEST_CASE("a million accesses of a guest that almost knows what it does break nothing") {
  std::uint32_t activations = 0, taken = 0, processed = 0;
  for (const mmio_version version : {mmio_version::modern, mmio_version::legacy})
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
      machine m(version);
      random_source random{seed * 0x2545f4914f6cdd1d};
      for (int i = 0; i < 10'000; ++i) do_something(m, random);
      m.device.activate_answer = {};
      m.expect(m.start());
      INFO("seed ", seed);
      REQUIRE(m.is_right);
      activations += m.device.activations;
      taken += m.device.queue_resets;
      processed += m.device.processed;
    }
  CHECK(activations > 1000); // it was not all refused
  CHECK(taken > 100);
  CHECK(processed > 1000);
}

} // namespace
