// SPDX-License-Identifier: BSD-3-Clause
//
// A simulator brings memory of its own: here one that counts every access. The class `traced_ram`
// is all that it takes; the engine is the same as on mapped RAM.

#include <ballast/ballast.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <vector>

using namespace ballast;

namespace {

class traced_ram {
 public:
  struct window_type { // a piece of memory with a ring in it
    traced_ram* ram = nullptr;
    guest_address start = 0;
    template <class T> T load(std::size_t offset, order) const noexcept {
      T value{};
      ++ram->loads;
      std::memcpy(&value, &ram->bytes[start + offset], sizeof value);
      return value;
    }
    template <class T> void store(std::size_t offset, T value, order) noexcept {
      ++ram->stores;
      std::memcpy(&ram->bytes[start + offset], &value, sizeof value);
    }
  };

  result<window_type> window(guest_address a, std::uint64_t n, std::size_t to, access) noexcept {
    if (!holds(a, n)) return error::not_guest_memory;
    if (a % to != 0) return error::misaligned;
    return window_type{this, a};
  }
  memory_segment segment(guest_address a, std::uint64_t n, access) noexcept {
    return holds(a, n) ? memory_segment{&bytes[a], n} : memory_segment{};
  }
  bool read(guest_address a, std::span<std::byte> to) noexcept {
    if (!holds(a, to.size())) return false;
    std::memcpy(to.data(), &bytes[a], to.size());
    return true;
  }
  bool write(guest_address a, std::span<const std::byte> from) noexcept {
    if (!holds(a, from.size())) return false;
    std::memcpy(&bytes[a], from.data(), from.size());
    return true;
  }
  bool good() noexcept { return true; }
  void fence() noexcept { ++fences; } // one thread: there is nothing to order

  bool holds(guest_address a, std::uint64_t n) const noexcept {
    return a < bytes.size() && n <= bytes.size() - a;
  }
  std::vector<std::byte> bytes = std::vector<std::byte>(65536);
  unsigned loads = 0, stores = 0, fences = 0;
};
static_assert(guest_memory<traced_ram>);

} // namespace

int main() {
  traced_ram ram;
  const queue_layout layout = split::place(0, 64).layout;
  const feature_set features{feature::version_1, feature::event_idx};
  std::array<driver_slot, 64> slots{};
  device_queue_storage<64> storage;
  split_driver<traced_ram> driver(slots);
  split_device<traced_ram> device(storage);
  if (!driver.start(ram, layout, features) || !device.start(ram, layout, features)) return 1;
  ram.loads = ram.stores = ram.fences = 0;

  unsigned returned = 0;
  for (unsigned round = 0; round < 100; ++round) {
    for (std::uint64_t i = 0; i < 32; ++i) {
      const buffer b{0x8000 + 64 * i, 64};
      if (!driver.add({&b, 1}, {}, i)) return 1;
    }
    (void)driver.publish_and_ask();
    (void)device.consume(32, [](const chain&) { return used(); });
    (void)device.publish_and_ask();
    while (driver.pop_used()) ++returned;
  }
  std::printf("%u buffers there and back: %.2f loads, %.2f stores, %.2f fences each\n", returned,
              ram.loads / 3200.0, ram.stores / 3200.0, ram.fences / 3200.0);
  return returned == 3200 ? 0 : 1;
}
