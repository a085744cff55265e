// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/statistic_table.hpp>
#include <ballast/endian.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace ballast::balloon {

/// One entry of a statistics buffer, in the byte order of the ring.
/// Spec: "Memory Statistics" (struct virtio_balloon_stat, 10 bytes; a buffer is a multiple of it,
/// not of 6 as the text says).
template <std::endian E> struct statistic {
  word<std::uint16_t, E> tag;
  word<std::uint64_t, E> value;
};
static_assert(sizeof(statistic<std::endian::little>) == 10);
static_assert(alignof(statistic<std::endian::little>) == 1);
static_assert(offsetof(statistic<std::endian::little>, tag) == 0);
static_assert(offsetof(statistic<std::endian::little>, value) == 2);

/// A tag that this library does not know, as it was received.
struct unknown_statistic {
  std::uint16_t tag = 0;
  std::uint64_t value = 0;

  friend constexpr bool operator==(const unknown_statistic&,
                                   const unknown_statistic&) noexcept = default;
};

/// The value by which QEMU marks what was not reported: never a value here.
inline constexpr std::uint64_t not_reported = UINT64_MAX;

/// One reply to a statistics request, and what the host knew when it came.
///
/// A tag has a value or is unset; an unset one is no number, neither 0 nor -1.
template <std::size_t Count> class basic_snapshot {
 public:
  static_assert(Count <= 64, "one bit each in present_");
  static constexpr std::size_t unknown_capacity = 8;

  std::uint64_t received_at = 0;  ///< nanoseconds of the caller's monotonic clock
  std::uint32_t epoch = 0;        ///< grows with every reset or restore of the device
  std::uint32_t actual_pages = 0; ///< balloon size, pages of 4096 bytes
  std::uint32_t target_pages = 0; ///< wanted balloon size, pages of 4096 bytes
  bool deflate_on_oom = false;    ///< DEFLATE_ON_OOM was negotiated
  bool is_solicited = false;      ///< replies to a request: not the first buffer, nor a stale one

  /// Whether the tag has a value; false for a tag beyond `Count`.
  [[nodiscard]] constexpr bool has(statistic_tag tag) const noexcept {
    return is_known(tag) && ((present_ >> index(tag)) & 1) != 0;
  }

  /// The value, or `otherwise` where it is unset.
  [[nodiscard]] constexpr std::uint64_t value_or(statistic_tag tag,
                                                 std::uint64_t otherwise) const noexcept {
    return has(tag) ? values_[index(tag)] : otherwise;
  }

  /// The value; 0 where it is unset: ask `has` first where that makes a difference.
  [[nodiscard]] constexpr std::uint64_t value(statistic_tag tag) const noexcept {
    return value_or(tag, 0);
  }

  /// Sets a value, or unsets it with `not_reported`. A tag beyond `Count` is kept as a raw pair,
  /// or counted as dropped where `unknown_capacity` others are kept already.
  constexpr void set(statistic_tag tag, std::uint64_t value) noexcept {
    if (!is_known(tag)) return set_unknown(static_cast<std::uint16_t>(tag), value);
    const std::uint64_t bit = std::uint64_t{1} << index(tag);
    const bool is_set = value != not_reported;
    present_ = is_set ? present_ | bit : present_ & ~bit;
    values_[index(tag)] = is_set ? value : 0;
  }

  /// The raw pairs of unknown tags in the order they came, each tag once.
  [[nodiscard]] constexpr std::span<const unknown_statistic> unknown() const noexcept {
    return std::span(unknown_).first(unknown_count_);
  }
  /// How many more there were than could be kept.
  [[nodiscard]] constexpr std::uint32_t unknown_dropped() const noexcept {
    return unknown_dropped_;
  }

  /// Unsets all values and forgets the raw pairs; what the host knew stays.
  constexpr void clear_values() noexcept {
    basic_snapshot cleared;
    cleared.received_at = received_at;
    cleared.epoch = epoch;
    cleared.actual_pages = actual_pages;
    cleared.target_pages = target_pages;
    cleared.deflate_on_oom = deflate_on_oom;
    cleared.is_solicited = is_solicited;
    *this = cleared;
  }

  [[nodiscard]] static constexpr bool is_known(statistic_tag tag) noexcept {
    return index(tag) < Count;
  }

  friend constexpr bool operator==(const basic_snapshot&, const basic_snapshot&) noexcept = default;

 private:
  [[nodiscard]] static constexpr std::size_t index(statistic_tag tag) noexcept {
    return static_cast<std::size_t>(tag);
  }

  constexpr void set_unknown(std::uint16_t tag, std::uint64_t value) noexcept {
    std::size_t i = 0;
    while (i < unknown_count_ && unknown_[i].tag != tag) ++i;
    if (i == unknown_capacity) {
      ++unknown_dropped_;
      return;
    }
    unknown_[i] = {tag, value};
    if (i == unknown_count_) ++unknown_count_;
  }

  std::uint64_t present_ = 0;
  std::uint64_t values_[Count]{};
  unknown_statistic unknown_[unknown_capacity]{};
  std::uint32_t unknown_count_ = 0;
  std::uint32_t unknown_dropped_ = 0;
};

using snapshot = basic_snapshot<statistic_count>;
static_assert(std::is_trivially_copyable_v<snapshot>);

/// What a buffer held. None of it is an error: a device ignores what it does not know.
struct parse_report {
  std::uint32_t entries = 0;    ///< whole entries, known or not, without fillers
  std::uint32_t unknown = 0;    ///< of these, the ones with an unknown tag
  std::uint32_t duplicates = 0; ///< of these, the ones whose tag is there already; the last counts
  std::uint32_t fillers = 0;    ///< all bits set: what Windows sends before it has values
  std::uint64_t trailing_bytes = 0; ///< at the end: less than an entry, or beyond the limit

  friend constexpr bool operator==(const parse_report&, const parse_report&) noexcept = default;
};

/// Reads statistics that come in pieces of any size, entries cut anywhere, into a snapshot.
///
///     statistics_parser<std::endian::little> parser(snapshot);
///     while (the chain has bytes) if (!parser.feed(piece)) break;
///     parse_report report = parser.report();
///
/// Tags may come in any order and any subset; one that does not come is unset, whatever it was
/// before. The work is bounded: at most `entries_max` entries are looked at.
/// Spec: "Memory Statistics" (device: unknown tags are ignored).
template <std::endian E, std::size_t Count = statistic_count> class statistics_parser {
 public:
  static constexpr std::uint32_t entries_max = 256;

  constexpr explicit statistics_parser(basic_snapshot<Count>& to) noexcept : to_(&to) {
    to.clear_values();
  }

  /// Reads on; false once the limit is reached: more would not be looked at.
  constexpr bool feed(std::span<const std::byte> bytes) noexcept {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (is_full()) {
        beyond_ += bytes.size() - i;
        break;
      }
      entry_.at[filled_++] = bytes[i];
      if (filled_ == sizeof(entry_)) {
        filled_ = 0;
        take(std::bit_cast<statistic<E>>(entry_));
      }
    }
    return !is_full();
  }

  /// What was read up to now.
  [[nodiscard]] constexpr parse_report report() const noexcept {
    parse_report r = report_;
    r.trailing_bytes = filled_ + beyond_;
    return r;
  }

 private:
  struct raw_entry {
    std::byte at[sizeof(statistic<E>)]{};
  };

  [[nodiscard]] constexpr bool is_full() const noexcept {
    return report_.entries + report_.fillers == entries_max;
  }

  constexpr void take(const statistic<E>& entry) noexcept {
    const std::uint16_t number = entry.tag;
    const std::uint64_t value = entry.value;
    if (number == UINT16_MAX && value == UINT64_MAX) {
      ++report_.fillers;
      return;
    }
    const auto tag = static_cast<statistic_tag>(number);
    ++report_.entries;
    if (basic_snapshot<Count>::is_known(tag)) {
      const std::uint64_t bit = std::uint64_t{1} << number;
      report_.duplicates += (seen_ & bit) != 0;
      seen_ |= bit;
    } else {
      ++report_.unknown;
      for (const unknown_statistic& earlier : to_->unknown())
        report_.duplicates += earlier.tag == number;
    }
    to_->set(tag, value);
  }

  basic_snapshot<Count>* to_;
  parse_report report_;
  std::uint64_t seen_ = 0; // not the snapshot's: a tag that came as `not_reported` came
  std::uint64_t beyond_ = 0;
  raw_entry entry_;
  std::size_t filled_ = 0;
};

/// Reads a whole buffer into a snapshot; see `statistics_parser`.
template <std::endian E, std::size_t Count>
constexpr parse_report parse_statistics(std::span<const std::byte> bytes,
                                        basic_snapshot<Count>& to) noexcept {
  statistics_parser<E, Count> parser(to);
  parser.feed(bytes);
  return parser.report();
}

/// Fills a statistics buffer, driver side.
template <std::endian E> class statistics_writer {
 public:
  constexpr explicit statistics_writer(std::span<std::byte> to) noexcept : to_(to) {}

  /// Appends an entry; false where there is no room for a whole one, and then nothing is written.
  [[nodiscard]] constexpr bool add(statistic_tag tag, std::uint64_t value) noexcept {
    if (to_.size() - written_ < sizeof(statistic<E>)) return false;
    struct raw_entry {
      std::byte at[sizeof(statistic<E>)];
    };
    const auto raw = std::bit_cast<raw_entry>(statistic<E>{static_cast<std::uint16_t>(tag), value});
    for (const std::byte b : raw.at) to_[written_++] = b;
    return true;
  }

  /// Bytes written: always a multiple of 10.
  [[nodiscard]] constexpr std::size_t size() const noexcept { return written_; }

 private:
  std::span<std::byte> to_;
  std::size_t written_ = 0;
};

} // namespace ballast::balloon
