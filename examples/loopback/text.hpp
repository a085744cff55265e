// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace loopback {

/// A size as the options take it, exactly: 512M, 65532K.
[[nodiscard]] inline std::string exact_size(std::uint64_t bytes) {
  const char* units[] = {"", "K", "M", "G"};
  unsigned i = 0;
  for (; i < 3 && bytes != 0 && bytes % 1024 == 0; ++i) bytes /= 1024;
  return std::to_string(bytes) + units[i];
}

/// A size for people: 512.0 MiB.
[[nodiscard]] inline std::string human_size(std::uint64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  unsigned i = 0;
  // What would be rounded up to 1024.0 is one of the next unit.
  for (; value >= 1023.95 && i < 6; ++i) value /= 1024;
  char text[32];
  (void)std::snprintf(text, sizeof(text), i == 0 ? "%.0f %s" : "%.1f %s", value, units[i]);
  return text;
}

} // namespace loopback
