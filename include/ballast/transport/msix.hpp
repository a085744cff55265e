// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/transport/pci.hpp>

#include <cstdint>

namespace ballast {

/// What a message-signalled interrupt writes where.
struct msix_message {
  std::uint64_t address = 0;
  std::uint32_t data = 0;

  friend constexpr bool operator==(const msix_message&, const msix_message&) noexcept = default;
};

/// MSI-X vectors that a function can have: a bit of a mask for each.
inline constexpr unsigned msix_vectors_max = 64;

/// The MSI-X table and the pending bits, for whoever saves a device.
struct msix_state {
  struct entry {
    msix_message message;
    bool is_masked = true;

    friend constexpr bool operator==(const entry&, const entry&) noexcept = default;
  };
  entry entries[msix_vectors_max]{};
  std::uint64_t pending = 0; ///< bit n: vector n

  friend constexpr bool operator==(const msix_state&, const msix_state&) noexcept = default;
};

/// MSI-X as data: the table, the pending bits, and which messages are due.
///
///     msix_table msix(6);
///     msix.raise(2);                        // an event of the device
///     for (auto due = msix.take_due(); ...) // what to send now; what is masked stays pending
///
/// Sends nothing: the caller writes `message(n).data` to `message(n).address`.
/// Source: PCI Local Bus Specification 3.0, 6.8.2 (MSI-X capability and table structures).
class msix_table {
 public:
  static constexpr std::uint32_t entry_size = 16;

  /// `vectors`: at most `msix_vectors_max`.
  constexpr explicit msix_table(unsigned vectors) noexcept
      : vectors_(vectors < msix_vectors_max ? vectors : msix_vectors_max) {}

  [[nodiscard]] constexpr unsigned vectors() const noexcept { return vectors_; }
  /// Bytes of the table.
  [[nodiscard]] constexpr std::uint32_t table_size() const noexcept {
    return vectors_ * entry_size;
  }

  /// Message control was written: bits `enable` and `function_mask`. Disabled, nothing is pending.
  constexpr void set_control(std::uint16_t message_control) noexcept {
    is_enabled_ = (message_control & pci::msix_cap::enable) != 0;
    is_function_masked_ = (message_control & pci::msix_cap::function_mask) != 0;
    if (!is_enabled_) state_.pending = 0;
  }
  [[nodiscard]] constexpr bool is_enabled() const noexcept { return is_enabled_; }

  /// Reads the table at 4 or 8 bytes, aligned.
  /// Errors: `register_access`: another width, or not all of it is table.
  [[nodiscard]] constexpr result<std::uint64_t> read(std::uint64_t offset,
                                                     unsigned width) const noexcept {
    if (!is_access(offset, width, table_size())) return error::register_access;
    std::uint64_t value = word(offset);
    if (width == 8) value |= std::uint64_t{word(offset + 4)} << 32;
    return value;
  }

  /// Writes the table as `read` reads it. An entry that was pending and is unmasked becomes due.
  /// Errors: `register_access`; nothing was written.
  [[nodiscard]] constexpr result<void> write(std::uint64_t offset, unsigned width,
                                             std::uint64_t value) noexcept {
    if (!is_access(offset, width, table_size())) return error::register_access;
    set_word(offset, static_cast<std::uint32_t>(value));
    if (width == 8) set_word(offset + 4, static_cast<std::uint32_t>(value >> 32));
    return {};
  }

  /// Reads the array of pending bits at 4 or 8 bytes, aligned; 64 of them, whatever `vectors`.
  /// Errors: `register_access`.
  [[nodiscard]] constexpr result<std::uint64_t> read_pending(std::uint64_t offset,
                                                             unsigned width) const noexcept {
    if (!is_access(offset, width, 8)) return error::register_access;
    const std::uint64_t from = state_.pending >> (8 * offset);
    return width == 8 ? from : from & 0xffff'ffff;
  }

  /// An event asks for the message of `vector`; of none where there is no such vector
  /// (`pci::no_vector` among them), or where MSI-X is not enabled.
  constexpr void raise(std::uint16_t vector) noexcept {
    if (is_enabled_ && vector < vectors_) state_.pending |= std::uint64_t{1} << vector;
  }

  /// The messages to send now (bit n: vector n), which are no longer pending. Masked ones stay so.
  constexpr std::uint64_t take_due() noexcept {
    if (!is_enabled_ || is_function_masked_) return 0;
    std::uint64_t due = 0;
    for (unsigned vector = 0; vector < vectors_; ++vector)
      if (!state_.entries[vector].is_masked) due |= state_.pending & (std::uint64_t{1} << vector);
    state_.pending &= ~due;
    return due;
  }

  /// Forgets what is pending: the device was reset, and so are its events.
  constexpr void clear_pending() noexcept { state_.pending = 0; }

  /// An empty one where there is no such vector.
  [[nodiscard]] constexpr msix_message message(unsigned vector) const noexcept {
    return vector < vectors_ ? state_.entries[vector].message : msix_message{};
  }

  [[nodiscard]] constexpr const msix_state& state() const noexcept { return state_; }
  /// `set_control` is the caller's, before this.
  constexpr void restore(const msix_state& saved) noexcept {
    state_ = saved;
    if (vectors_ < msix_vectors_max) state_.pending &= (std::uint64_t{1} << vectors_) - 1;
    if (!is_enabled_) state_.pending = 0;
  }

 private:
  [[nodiscard]] static constexpr bool is_access(std::uint64_t offset, unsigned width,
                                                std::uint32_t size) noexcept {
    return (width == 4 || width == 8) && offset % width == 0 && offset < size; // of whole words
  }

  [[nodiscard]] constexpr std::uint32_t word(std::uint64_t offset) const noexcept {
    const msix_state::entry& entry = state_.entries[offset / entry_size];
    switch (offset % entry_size) {
    case 0: return static_cast<std::uint32_t>(entry.message.address);
    case 4: return static_cast<std::uint32_t>(entry.message.address >> 32);
    case 8: return entry.message.data;
    default: return entry.is_masked ? 1 : 0; // vector control: its other bits are reserved
    }
  }

  constexpr void set_word(std::uint64_t offset, std::uint32_t value) noexcept {
    msix_state::entry& entry = state_.entries[offset / entry_size];
    std::uint64_t& address = entry.message.address;
    switch (offset % entry_size) {
    case 0: address = (address & ~std::uint64_t{0xffff'ffff}) | (value & ~3u); break;
    case 4: address = (address & 0xffff'ffff) | std::uint64_t{value} << 32; break;
    case 8: entry.message.data = value; break;
    default: entry.is_masked = (value & 1) != 0; break;
    }
  }

  unsigned vectors_;
  bool is_enabled_ = false;
  bool is_function_masked_ = false;
  msix_state state_;
};

} // namespace ballast
