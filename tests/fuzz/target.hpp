// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

/// What every target defines, and libFuzzer or replay.cpp calls with each input.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace ballast_fuzz {

/// Ends the run as a finding where something does not hold.
inline void require(bool holds, const char* what, int line = __builtin_LINE()) {
  if (holds) return;
  std::fprintf(stderr, "line %d: it does not hold that %s\n", line, what);
  std::abort();
}

/// Reads the input from its start; zeros behind its end, so that every input means something.
class input {
 public:
  explicit input(std::span<const std::uint8_t> bytes) noexcept : bytes_(bytes) {}

  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }

  std::uint8_t byte() noexcept {
    if (bytes_.empty()) return 0;
    const std::uint8_t first = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return first;
  }

  /// An unsigned integer, little-endian on every machine.
  template <class T> T number() noexcept {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) value |= std::uint64_t{byte()} << (8 * i);
    return static_cast<T>(value);
  }

  /// 0 to `limit` - 1 of one byte, or of two where that is not enough; 0 for a limit of 0.
  std::uint32_t below(std::uint32_t limit) noexcept {
    if (limit == 0) return 0;
    return limit <= 256 ? byte() % limit : number<std::uint16_t>() % limit;
  }

  bool flag() noexcept { return (byte() & 1) != 0; }

 private:
  std::span<const std::uint8_t> bytes_;
};

} // namespace ballast_fuzz
