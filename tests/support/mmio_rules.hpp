// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/transport/mmio.hpp>
#include <ballast/virtio/actions.hpp>

#include <cstdint>

namespace ballast_test {

/// The registers of an mmio device in the same process, which keep count of what a driver may not
/// do to them: MM-6. What the accesses ask for is collected in `due`. Copies of the region share
/// it. Spec: "MMIO Device Register Layout" (driver requirements).
template <class Bus> class mmio_rules {
 public:
  constexpr explicit mmio_rules(Bus& bus) noexcept : bus_(&bus) {}
  mmio_rules(const mmio_rules&) = delete;
  mmio_rules& operator=(const mmio_rules&) = delete;

  ballast::actions due{};
  std::uint32_t wrongs = 0;
  std::uint32_t accesses = 0;
  std::uint32_t config_bytes = 16; ///< of the device; accesses behind are wrong

  struct region {
    mmio_rules* rules = nullptr;
    template <ballast::wire_integer T> constexpr T load(std::uint64_t offset) noexcept {
      return static_cast<T>(rules->load(offset, sizeof(T)));
    }
    template <ballast::wire_integer T>
    constexpr void store(std::uint64_t offset, T value) noexcept {
      rules->store(offset, sizeof(T), value);
    }
  };
  [[nodiscard]] constexpr region access() noexcept { return {this}; }

 private:
  constexpr std::uint64_t load(std::uint64_t offset, unsigned width) noexcept {
    namespace at = ballast::mmio_register;
    ++accesses;
    switch (offset) {
    case at::magic_value:
    case at::version:
    case at::device_id:
    case at::vendor_id:
    case at::interrupt_status:
    case at::status:
    case at::shm_length_low:
    case at::shm_length_high:
    case at::queue_size_max: expect(true); break;
    case at::device_features: expect(has_device_select_); break;
    case at::queue_pfn: expect(is_legacy()); break;
    case at::queue_ready:
    case at::queue_reset:
    case at::config_generation: expect(!is_legacy()); break;
    default: expect(is_config(offset, width));
    }
    expect(is_config(offset, width) || (width == 4 && offset % 4 == 0));
    const std::uint64_t value = bus_->read(offset, width);
    if (offset == at::queue_size_max) size_max_ = value;
    return value;
  }

  constexpr void store(std::uint64_t offset, unsigned width, std::uint64_t value) noexcept {
    namespace at = ballast::mmio_register;
    ++accesses;
    switch (offset) {
    case at::status:
    case at::shm_select:
    case at::queue_notify: expect(true); break;
    case at::device_features_select: has_device_select_ = true; break;
    case at::driver_features_select: has_driver_select_ = true; break;
    case at::driver_features: expect(has_driver_select_); break;
    case at::interrupt_acknowledge: expect((value & ~std::uint64_t{3}) == 0); break;
    case at::queue_select:
      queue_ = value;
      size_max_ = 0;
      break;
    case at::queue_size: expect(value != 0 && value <= size_max_ && !is_in_use()); break;
    case at::queue_pfn: expect(is_legacy()); break;
    case at::queue_align: expect(is_legacy() && !is_in_use()); break;
    case at::guest_page_size: expect(is_legacy()); break;
    case at::queue_ready: expect(!is_legacy()); break;
    case at::queue_reset: expect(!is_legacy() && bus_->accepted().test(40)); break;
    case at::queue_descriptor_low:
    case at::queue_descriptor_high:
    case at::queue_driver_low:
    case at::queue_driver_high:
    case at::queue_device_low:
    case at::queue_device_high: expect(!is_legacy() && !is_in_use()); break;
    default: expect(is_config(offset, width));
    }
    expect(is_config(offset, width) || (width == 4 && offset % 4 == 0));
    due |= bus_->write(offset, width, value);
  }

  constexpr void expect(bool is_right) noexcept { wrongs += !is_right; }
  [[nodiscard]] constexpr bool is_legacy() const noexcept { return bus_->is_legacy(); }
  [[nodiscard]] constexpr bool is_in_use() const noexcept {
    return queue_ < bus_->queues().size() && bus_->queues()[queue_].size != 0;
  }
  [[nodiscard]] constexpr bool is_config(std::uint64_t offset, unsigned width) const noexcept {
    const std::uint64_t at = offset - ballast::mmio_register::config;
    return offset >= ballast::mmio_register::config && width <= 4 && at % width == 0 &&
           at + width <= config_bytes;
  }

  Bus* bus_;
  std::uint64_t queue_ = 0;
  std::uint64_t size_max_ = 0;
  bool has_device_select_ = false;
  bool has_driver_select_ = false;
};

} // namespace ballast_test
