// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <cstdint>

namespace ballast {

/// How far behind the last check of notifications may lie in a saved state: beyond a whole round of
/// the ring every notification is due.
inline constexpr std::uint32_t unasked_max = 65536;
[[nodiscard]] constexpr std::uint32_t unasked(std::uint32_t steps) noexcept {
  return steps < unasked_max ? steps : unasked_max;
}

/// Whether `e` can have broken a queue that was saved; `error::none`: it works.
[[nodiscard]] constexpr bool is_cause(error e) noexcept {
  return is_known(e) && e != error::queue_empty && e != error::queue_full;
}

} // namespace ballast
