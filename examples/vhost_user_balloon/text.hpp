// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace vhost_user_balloon {

/// A number of bytes, or of KiB, MiB or GiB with a K, M or G behind it; nothing where `text` is no
/// such size, or more than 64 bits.
[[nodiscard]] inline std::optional<std::uint64_t> parse_size(std::string_view text) noexcept {
  std::uint64_t n = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (failed != std::errc{}) return std::nullopt;
  const std::string_view unit(end, text.data() + text.size());
  const unsigned shift = unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : 0;
  if ((shift == 0 && !unit.empty()) || n > UINT64_MAX >> shift) return std::nullopt;
  return n << shift;
}

/// A number up to `most`, and nothing behind it.
[[nodiscard]] inline std::optional<std::uint32_t> parse_number(std::string_view text,
                                                               std::uint32_t most) noexcept {
  std::uint32_t n = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (failed != std::errc{} || end != text.data() + text.size() || n > most) return std::nullopt;
  return n;
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

/// A time for people: 0.25 s.
[[nodiscard]] inline std::string human_seconds(std::uint64_t nanoseconds) {
  char text[32];
  (void)std::snprintf(text, sizeof(text), "%.2f s", static_cast<double>(nanoseconds) / 1e9);
  return text;
}

} // namespace vhost_user_balloon
