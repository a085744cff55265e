// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace qemu {

namespace base64 {

inline constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The value of a digit; -1 for another character.
[[nodiscard]] constexpr int value_of(char c) noexcept {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/// RFC 4648.
[[nodiscard]] inline std::string encode(std::span<const std::byte> bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t three = 0;
    for (std::size_t k = 0; k < 3; ++k)
      three =
          three << 8 | (i + k < bytes.size() ? std::to_integer<std::uint32_t>(bytes[i + k]) : 0);
    for (std::size_t k = 0; k < 4; ++k)
      text += i + k <= bytes.size() ? digits[three >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

/// Whether `text` is exactly `to.size()` bytes, which `to` holds then.
[[nodiscard]] inline bool decode(std::string_view text, std::span<std::byte> to) noexcept {
  if (text.size() != (to.size() + 2) / 3 * 4) return false;
  std::uint32_t bits = 0;
  unsigned count = 0;
  std::size_t written = 0;
  for (std::size_t i = 0; written < to.size(); ++i) {
    const int digit = value_of(text[i]);
    if (digit < 0) return false;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    to[written++] = static_cast<std::byte>(bits >> count);
  }
  return true;
}

} // namespace base64

} // namespace qemu
