// SPDX-License-Identifier: BSD-3-Clause
//
// A balloon driver as a firmware or a small kernel has it: freestanding, over identity-mapped
// memory and a register bank. Not a program: how many bytes of code it takes is what is measured.

#include <ballast/balloon/driver.hpp>
#include <ballast/memory/direct_memory.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>

namespace {

using namespace ballast;

/// The registers of virtio-mmio; what lies behind them is not known here.
class registers {
 public:
  explicit registers(std::uintptr_t base) noexcept : base_(base) {}

  [[nodiscard]] std::uint32_t device_id() const noexcept { return get(0x008); }
  [[nodiscard]] feature_set device_features() noexcept {
    feature_set offered;
    for (std::uint32_t word = 0; word < 2; ++word) {
      put(0x014, word);
      const std::uint32_t bits = get(0x010);
      for (std::uint32_t bit = 0; bit < 32; ++bit)
        if (((bits >> bit) & 1) != 0) offered.set(word * 32 + bit);
    }
    return offered;
  }
  void set_driver_features(const feature_set& accepted) noexcept {
    for (std::uint32_t word = 0; word < 2; ++word) {
      std::uint32_t bits = 0;
      for (std::uint32_t bit = 0; bit < 32; ++bit)
        if (accepted.test(word * 32 + bit)) bits |= 1u << bit;
      put(0x024, word);
      put(0x020, bits);
    }
  }
  [[nodiscard]] std::uint8_t status() const noexcept {
    return static_cast<std::uint8_t>(get(0x070));
  }
  void set_status(std::uint8_t bits) noexcept { put(0x070, bits); }
  [[nodiscard]] std::uint32_t queue_size_max(std::uint16_t queue) noexcept {
    put(0x030, queue);
    return get(0x034);
  }
  [[nodiscard]] result<void> set_up_queue(std::uint16_t queue,
                                          const queue_layout& layout) noexcept {
    put(0x030, queue);
    put(0x038, layout.size);
    put_wide(0x080, layout.descriptor_area);
    put_wide(0x090, layout.driver_area);
    put_wide(0x0a0, layout.device_area);
    put(0x044, 1);
    return {};
  }
  [[nodiscard]] result<void> reset_queue(std::uint16_t queue) noexcept {
    put(0x030, queue);
    put(0x0c0, 1);
    return {};
  }
  [[nodiscard]] std::uint32_t config_generation() const noexcept { return get(0x0fc); }
  [[nodiscard]] result<void> read_config(std::uint32_t offset,
                                         std::span<std::byte> to) const noexcept {
    for (std::size_t i = 0; i + 4 <= to.size(); i += 4) {
      const std::uint32_t word = get(0x100 + offset + i);
      for (std::size_t k = 0; k < 4; ++k) to[i + k] = static_cast<std::byte>(word >> (8 * k));
    }
    return {};
  }
  [[nodiscard]] result<void> write_config(std::uint32_t offset,
                                          std::span<const std::byte> from) noexcept {
    for (std::size_t i = 0; i + 4 <= from.size(); i += 4) {
      std::uint32_t word = 0;
      for (std::size_t k = 0; k < 4; ++k)
        word |= std::to_integer<std::uint32_t>(from[i + k]) << (8 * k);
      put(0x100 + offset + i, word);
    }
    return {};
  }
  void notify(std::uint16_t queue) noexcept { put(0x050, queue); }

 private:
  [[nodiscard]] std::uint32_t get(std::uintptr_t at) const noexcept {
    return *reinterpret_cast<const volatile std::uint32_t*>(base_ + at);
  }
  void put(std::uintptr_t at, std::uint32_t value) noexcept {
    *reinterpret_cast<volatile std::uint32_t*>(base_ + at) = value;
  }
  void put_wide(std::uintptr_t at, std::uint64_t value) noexcept {
    put(at, static_cast<std::uint32_t>(value));
    put(at + 4, static_cast<std::uint32_t>(value >> 32));
  }

  std::uintptr_t base_;
};

/// The kernel's part: elsewhere, and not counted.
extern "C" {
std::size_t kernel_take_free(std::uint32_t* to, std::size_t count) noexcept;
void kernel_store(const std::uint32_t* from, std::size_t count) noexcept;
std::size_t kernel_take_stored(std::uint32_t* to, std::size_t count) noexcept;
void kernel_release(const std::uint32_t* from, std::size_t count) noexcept;
std::uint64_t kernel_free_bytes() noexcept;
}

struct kernel {
  static std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    return kernel_take_free(to.data(), to.size());
  }
  static void store(std::span<const std::uint32_t> from) noexcept {
    kernel_store(from.data(), from.size());
  }
  static std::size_t take_stored(std::span<std::uint32_t> to) noexcept {
    return kernel_take_stored(to.data(), to.size());
  }
  static void release(std::span<const std::uint32_t> from) noexcept {
    kernel_release(from.data(), from.size());
  }
  static void write(balloon::statistics_writer<std::endian::little>& to) noexcept {
    (void)to.add(balloon::statistic_tag::free_memory, kernel_free_bytes());
  }
};

/// The device found, and its driver.
struct device {
  device(std::uintptr_t base, guest_address queues) noexcept
      : transport(base), driver(memory, transport, pages, pages, queues) {}

  void carry_out(const actions& due) noexcept {
    for (std::uint16_t queue = 0; queue < balloon::queue_kind_count; ++queue)
      if (due.notifies(queue)) transport.notify(queue);
  }

  direct_memory memory;
  registers transport;
  kernel pages;
  balloon::driver<direct_memory, registers, kernel, kernel> driver;
};

alignas(device) std::byte storage[sizeof(device)];
device* found = nullptr;

} // namespace

// What such a kernel calls: all that the driver can do is in.
extern "C" {
void balloon_start(std::uintptr_t base, guest_address queues) noexcept;
void balloon_config_changed() noexcept;
void balloon_interrupt() noexcept;
void balloon_out_of_memory(std::uint32_t count) noexcept;
}

void balloon_start(std::uintptr_t base, guest_address queues) noexcept {
  found = new (storage) device(base, queues);
  found->carry_out(found->driver.start());
}
void balloon_config_changed() noexcept { found->carry_out(found->driver.on_config_change()); }
void balloon_interrupt() noexcept { found->carry_out(found->driver.step()); }
void balloon_out_of_memory(std::uint32_t count) noexcept {
  found->carry_out(found->driver.deflate_on_oom(count));
}
