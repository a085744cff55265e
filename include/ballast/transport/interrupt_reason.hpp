// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace ballast {

/// Why a device interrupts its driver: the bits of InterruptStatus (mmio) and of the ISR (pci).
namespace interrupt_reason {

inline constexpr std::uint8_t used_buffer = 1;
inline constexpr std::uint8_t config_change = 2;

} // namespace interrupt_reason

} // namespace ballast
