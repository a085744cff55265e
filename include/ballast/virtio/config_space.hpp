// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/virtio/shared_value.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace ballast {

/// A field of a configuration space, in bytes.
struct config_field {
  std::uint32_t offset = 0;
  std::uint32_t width = 0;
};

/// What a driver's configuration write did.
struct config_write {
  bool is_changed = false;    ///< a byte has another value than before
  bool has_read_only = false; ///< it also touched bytes that are not the driver's; they were kept
};

/// `Size` bytes of device-specific configuration, little-endian on every machine.
///
///     config_space<16> config{{4, 4}};        // the driver may write bytes 4 to 7
///     if (config.set32(0, pages)) ...         // the device changes a field: tell the driver
///
/// The bytes live in 32-bit words that are read and written whole, so an aligned field of up to 32
/// bits is never torn, whichever threads look. A driver's write is merged bytewise into the bytes
/// that are its own and ignored elsewhere.
///
/// Ordering: any thread may read and use `set32`; the caller serialises the rest. The generation
/// moves *after* the word it stands for (release), and a driver reads it before and after the
/// words (acquire). Then equal generations mean a state that existed: had the driver seen the
/// second of two changes made since its first look, it would also see the generation of the first.
/// A driver that saw a new word but not yet its generation holds that newer state, and retries once
/// too often later. Moved *before* the word, a driver could keep the old word with the final
/// generation for ever. Each word changes by itself: a 64-bit field would need more than this.
/// Spec: "Device Configuration Space".
template <std::uint32_t Size> class config_space {
 public:
  /// `writable`: the driver's fields. All `Size` bytes are visible.
  constexpr explicit config_space(std::initializer_list<config_field> writable = {}) noexcept {
    for (const config_field& field : writable) allow_writes(field);
  }

  /// Bytes that the driver can see; those behind are as if absent.
  [[nodiscard]] constexpr std::uint32_t visible_size() const noexcept { return visible_; }
  /// Shows the first `bytes` (at most `Size`); a function of the offered features.
  constexpr void set_visible_size(std::uint32_t bytes) noexcept {
    visible_ = bytes < Size ? bytes : Size;
  }

  constexpr void allow_writes(config_field field) noexcept { set_mask(field, 0xff); }
  constexpr void forbid_writes(config_field field) noexcept { set_mask(field, 0); }

  /// The driver reads `to.size()` bytes at `offset`.
  /// Errors: `config_out_of_range`; `to` is as it was.
  [[nodiscard]] constexpr result<void> read(std::uint32_t offset,
                                            std::span<std::byte> to) const noexcept {
    if (!is_visible(offset, to.size())) return error::config_out_of_range;
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < to.size(); ++i) {
      const std::size_t at = offset + i;
      if (i == 0 || at % 4 == 0)
        word = words_[at / 4].load(); // once for each word: what is read of it is of one moment
      to[i] = static_cast<std::byte>(word >> (8 * (at % 4)));
    }
    return {};
  }

  /// The driver writes `from` at `offset`; the generation stays.
  /// Errors: `config_out_of_range`; nothing was written.
  [[nodiscard]] constexpr result<config_write> write(std::uint32_t offset,
                                                     std::span<const std::byte> from) noexcept {
    if (!is_visible(offset, from.size())) return error::config_out_of_range;
    config_write done;
    std::size_t i = 0;
    while (i < from.size()) {
      const std::size_t index = (offset + i) / 4;
      std::uint32_t value = 0;
      std::uint32_t touched = 0;
      for (; i < from.size() && (offset + i) / 4 == index; ++i) {
        const std::size_t shift = 8 * ((offset + i) % 4);
        value |= std::to_integer<std::uint32_t>(from[i]) << shift;
        touched |= 0xffu << shift;
      }
      const std::uint32_t mask = touched & writable_[index];
      if (mask != touched) done.has_read_only = true;
      if (((words_[index].load() ^ value) & mask) == 0) continue;
      words_[index].merge(value, mask);
      done.is_changed = true;
    }
    return done;
  }

  /// The device reads the field at `offset`, a multiple of 4 (else, and beyond `Size`: 0).
  [[nodiscard]] constexpr std::uint32_t get32(std::uint32_t offset) const noexcept {
    return is_word(offset) ? words_[offset / 4].load() : 0;
  }

  /// The device changes the field at `offset`, a multiple of 4, visible or not. Whether it has
  /// another value now: then the generation moved, and the driver is to be told.
  constexpr bool set32(std::uint32_t offset, std::uint32_t value) noexcept {
    if (!is_word(offset) || words_[offset / 4].exchange(value) == value) return false;
    generation_.fetch_add(1);
    return true;
  }

  /// Changes whenever the device changed a field; transports show as many bits as they have.
  [[nodiscard]] constexpr std::uint32_t generation() const noexcept { return generation_.load(); }

 private:
  [[nodiscard]] constexpr bool is_visible(std::uint32_t offset, std::size_t size) const noexcept {
    return offset <= visible_ && size <= visible_ - offset;
  }
  [[nodiscard]] static constexpr bool is_word(std::uint32_t offset) noexcept {
    return offset % 4 == 0 && offset < Size;
  }

  constexpr void set_mask(config_field field, std::uint32_t mask) noexcept {
    for (std::uint32_t i = 0; i < field.width && field.offset < Size - i; ++i) {
      const std::uint32_t at = field.offset + i;
      const std::uint32_t shift = 8 * (at % 4);
      writable_[at / 4] = (writable_[at / 4] & ~(0xffu << shift)) | (mask << shift);
    }
  }

  static_assert(Size > 0 && Size <= 4096, "a configuration space of 1 to 4096 bytes");
  static constexpr std::uint32_t word_count = (Size + 3) / 4;
  shared_value<std::uint32_t> words_[word_count]{};
  std::uint32_t writable_[word_count]{}; // ones in the bytes that the driver may write
  std::uint32_t visible_ = Size;
  shared_value<std::uint32_t> generation_;
};

} // namespace ballast
