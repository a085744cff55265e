// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "qtest.hpp"

#include <ballast/endian.hpp>
#include <ballast/transport/register_region.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <span>

namespace qemu {

/// One function of bus 0: its configuration space, over the ports 0xcf8 and 0xcfc; a
/// `ballast::register_region`. PCI Local Bus Specification 3.0, "Configuration Mechanism".
class pci_function {
 public:
  pci_function(qtest& cpu, unsigned device) noexcept : cpu_(&cpu), device_(device) {}

  [[nodiscard]] unsigned device() const noexcept { return device_; }

  template <ballast::wire_integer T> [[nodiscard]] T load(std::uint64_t offset) noexcept {
    select(offset);
    return cpu_->in<T>(static_cast<std::uint16_t>(0xcfc + offset % 4));
  }
  template <ballast::wire_integer T> void store(std::uint64_t offset, T value) noexcept {
    select(offset);
    cpu_->out<T>(static_cast<std::uint16_t>(0xcfc + offset % 4), value);
  }

 private:
  void select(std::uint64_t offset) noexcept {
    cpu_->out<std::uint32_t>(0xcf8, 0x8000'0000 | device_ << 11 |
                                        static_cast<std::uint32_t>(offset & 0xfc));
  }

  qtest* cpu_;
  unsigned device_;
};

static_assert(ballast::register_region<pci_function>);

/// The first device of bus 0 that has this vendor and one of these ids.
[[nodiscard]] inline std::optional<pci_function>
find_pci_function(qtest& cpu, std::uint16_t vendor, std::span<const std::uint16_t> ids) noexcept {
  for (unsigned device = 0; device < 32; ++device) {
    pci_function candidate(cpu, device);
    if (candidate.load<std::uint16_t>(0x00) != vendor) continue;
    const auto id = candidate.load<std::uint16_t>(0x02);
    for (const std::uint16_t wanted : ids)
      if (id == wanted) return candidate;
  }
  return std::nullopt;
}

/// What a base address register of a function stands for.
struct pci_bar {
  std::uint64_t address = 0;
  std::uint64_t size = 0; ///< bytes; 0: there is no such register
  bool is_io = false;
};

/// Puts the function's base address registers somewhere free, and lets it be reached and write to
/// memory: what a firmware would have done. `io` and `memory`: from where on there is room.
[[nodiscard]] inline std::array<pci_bar, 6> assign_bars(pci_function function, std::uint32_t io,
                                                        std::uint32_t memory) noexcept {
  constexpr std::uint32_t io_flag = 1, wide_flag = 4;
  std::array<pci_bar, 6> bars{};
  for (std::uint32_t i = 0; i < bars.size(); ++i) {
    const std::uint32_t at = 0x10 + 4 * i;
    function.store<std::uint32_t>(at, 0xffff'ffff);
    const auto sizing = function.load<std::uint32_t>(at);
    if (sizing == 0) continue;
    pci_bar& bar = bars[i];
    bar.is_io = (sizing & io_flag) != 0;
    const std::uint32_t size = ~(sizing & (bar.is_io ? ~3u : ~15u)) + 1;
    bar.size = bar.is_io ? size & 0xffff : size;
    std::uint32_t& next = bar.is_io ? io : memory;
    next = (next + size - 1) & ~(size - 1);
    bar.address = next;
    function.store<std::uint32_t>(at, next);
    next += size;
    if (!bar.is_io && (sizing & wide_flag) != 0) { // its upper half is the next register
      function.store<std::uint32_t>(at + 4, 0);
      ++i;
    }
  }
  function.store<std::uint16_t>(0x04, 7); // I/O, memory, bus master
  return bars;
}

} // namespace qemu
