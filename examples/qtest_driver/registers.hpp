// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "../qemu/qtest.hpp"

#include <ballast/endian.hpp>
#include <ballast/transport/register_region.hpp>

#include <cstdint>

namespace qtest_driver {

/// Registers in the machine's physical memory. The system calls of a request order it behind what
/// was stored to shared memory before.
struct memory_registers {
  qemu::qtest* cpu = nullptr;
  std::uint64_t base = 0;

  template <ballast::wire_integer T> [[nodiscard]] T load(std::uint64_t offset) const noexcept {
    return cpu->read<T>(base + offset);
  }
  template <ballast::wire_integer T> void store(std::uint64_t offset, T value) const noexcept {
    cpu->write<T>(base + offset, value);
  }
};
static_assert(ballast::register_region<memory_registers>);

/// Registers at ports.
struct port_registers {
  qemu::qtest* cpu = nullptr;
  std::uint16_t base = 0;

  template <ballast::wire_integer T> [[nodiscard]] T load(std::uint64_t offset) const noexcept {
    return cpu->in<T>(static_cast<std::uint16_t>(base + offset));
  }
  template <ballast::wire_integer T> void store(std::uint64_t offset, T value) const noexcept {
    cpu->out<T>(static_cast<std::uint16_t>(base + offset), value);
  }
};
static_assert(ballast::register_region<port_registers>);

} // namespace qtest_driver
