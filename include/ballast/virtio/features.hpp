// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace ballast {

/// The feature bits of the ring and the transport; those of a device type are with the device.
/// Spec: "Reserved Feature Bits", "Legacy Interface: Reserved Feature Bits".
namespace feature {

inline constexpr unsigned notify_on_empty = 24; ///< legacy only
inline constexpr unsigned any_layout = 27;      ///< legacy only
inline constexpr unsigned indirect_desc = 28;
inline constexpr unsigned event_idx = 29;
inline constexpr unsigned version_1 = 32;
inline constexpr unsigned access_platform = 33;
inline constexpr unsigned ring_packed = 34;
inline constexpr unsigned in_order = 35;
inline constexpr unsigned order_platform = 36;
inline constexpr unsigned sr_iov = 37;
inline constexpr unsigned notification_data = 38;
inline constexpr unsigned notif_config_data = 39;
inline constexpr unsigned ring_reset = 40;
inline constexpr unsigned admin_vq = 41;
inline constexpr unsigned suspend = 43;

/// The specification's name of a ring or transport bit; null for any other bit.
[[nodiscard]] constexpr const char* name(unsigned bit) noexcept {
  switch (bit) {
  case notify_on_empty: return "VIRTIO_F_NOTIFY_ON_EMPTY";
  case any_layout: return "VIRTIO_F_ANY_LAYOUT";
  case indirect_desc: return "VIRTIO_F_INDIRECT_DESC";
  case event_idx: return "VIRTIO_F_EVENT_IDX";
  case version_1: return "VIRTIO_F_VERSION_1";
  case access_platform: return "VIRTIO_F_ACCESS_PLATFORM";
  case ring_packed: return "VIRTIO_F_RING_PACKED";
  case in_order: return "VIRTIO_F_IN_ORDER";
  case order_platform: return "VIRTIO_F_ORDER_PLATFORM";
  case sr_iov: return "VIRTIO_F_SR_IOV";
  case notification_data: return "VIRTIO_F_NOTIFICATION_DATA";
  case notif_config_data: return "VIRTIO_F_NOTIF_CONFIG_DATA";
  case ring_reset: return "VIRTIO_F_RING_RESET";
  case admin_vq: return "VIRTIO_F_ADMIN_VQ";
  case suspend: return "VIRTIO_F_SUSPEND";
  default: return nullptr;
  }
}

/// Whether the specification gives the bit to a device type or a name: a driver never accepts any
/// other, whoever offers it (bit 30 among them).
/// Spec: "Feature Bits" (0 to 23, 41, 42 and 50 to 127 are the device type's).
[[nodiscard]] constexpr bool is_defined(unsigned bit) noexcept {
  return bit <= 23 || bit == 42 || (bit >= 50 && bit <= 127) || name(bit) != nullptr;
}

} // namespace feature

/// A set of feature bits 0 to 255; a bit beyond is never in it and setting one does nothing.
class feature_set {
 public:
  static constexpr unsigned capacity = 256;

  constexpr feature_set() noexcept = default;
  constexpr feature_set(std::initializer_list<unsigned> bits) noexcept {
    for (const unsigned bit : bits) set(bit);
  }

  [[nodiscard]] constexpr bool test(unsigned bit) const noexcept {
    return bit < capacity && ((words_[bit / 64] >> (bit % 64)) & 1) != 0;
  }
  constexpr void set(unsigned bit) noexcept {
    if (bit < capacity) words_[bit / 64] |= std::uint64_t{1} << (bit % 64);
  }
  constexpr void clear(unsigned bit) noexcept {
    if (bit < capacity) words_[bit / 64] &= ~(std::uint64_t{1} << (bit % 64));
  }
  [[nodiscard]] constexpr feature_set with(unsigned bit) const noexcept {
    feature_set copy = *this;
    copy.set(bit);
    return copy;
  }
  [[nodiscard]] constexpr feature_set without(unsigned bit) const noexcept {
    feature_set copy = *this;
    copy.clear(bit);
    return copy;
  }

  /// Bits 32 x `select` to 32 x `select` + 31, as the transports' registers show them; 0 beyond.
  /// Spec: "Common configuration structure layout" (device_feature_select).
  [[nodiscard]] constexpr std::uint32_t word32(std::uint32_t select) const noexcept {
    if (select >= capacity / 32) return 0;
    return static_cast<std::uint32_t>(words_[select / 2] >> (32 * (select % 2)));
  }
  constexpr void set_word32(std::uint32_t select, std::uint32_t value) noexcept {
    if (select >= capacity / 32) return;
    const unsigned shift = 32 * (select % 2);
    std::uint64_t& at = words_[select / 2];
    at = (at & ~(std::uint64_t{0xffff'ffff} << shift)) | (std::uint64_t{value} << shift);
  }

  [[nodiscard]] constexpr bool empty() const noexcept { return *this == feature_set{}; }
  [[nodiscard]] constexpr unsigned count() const noexcept {
    unsigned n = 0;
    for (const std::uint64_t at : words_) n += static_cast<unsigned>(std::popcount(at));
    return n;
  }
  /// The highest bit of the set; -1 if it is empty.
  [[nodiscard]] constexpr int highest() const noexcept {
    for (unsigned i = word_count; i-- > 0;)
      if (words_[i] != 0) return static_cast<int>(64 * i) + 63 - std::countl_zero(words_[i]);
    return -1;
  }
  [[nodiscard]] constexpr bool is_subset_of(const feature_set& other) const noexcept {
    return (*this - other).empty();
  }

  [[nodiscard]] friend constexpr feature_set operator|(const feature_set& a,
                                                       const feature_set& b) noexcept {
    feature_set c;
    for (unsigned i = 0; i < word_count; ++i) c.words_[i] = a.words_[i] | b.words_[i];
    return c;
  }
  [[nodiscard]] friend constexpr feature_set operator&(const feature_set& a,
                                                       const feature_set& b) noexcept {
    feature_set c;
    for (unsigned i = 0; i < word_count; ++i) c.words_[i] = a.words_[i] & b.words_[i];
    return c;
  }
  /// The bits of `a` that are not in `b`.
  [[nodiscard]] friend constexpr feature_set operator-(const feature_set& a,
                                                       const feature_set& b) noexcept {
    feature_set c;
    for (unsigned i = 0; i < word_count; ++i) c.words_[i] = a.words_[i] & ~b.words_[i];
    return c;
  }
  friend constexpr bool operator==(const feature_set&, const feature_set&) noexcept = default;

 private:
  static constexpr unsigned word_count = capacity / 64;
  std::uint64_t words_[word_count]{};
};

/// The set that a Linux guest shows in `/sys/bus/virtio/devices/virtio*/features`: character i is
/// bit i. Any length (64 and 128 occur) and unknown bits; one newline at the end is allowed.
/// Errors: `feature_text_length` (empty), `feature_text_character`, `feature_beyond_set` (a 1
/// beyond bit 255; zeros there are fine).
/// Linux: features_show().
[[nodiscard]] constexpr result<feature_set> parse_features(std::span<const char> text) noexcept {
  if (!text.empty() && text.back() == '\n') text = text.first(text.size() - 1);
  if (text.empty()) return error::feature_text_length;
  feature_set set;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '0') continue;
    if (text[i] != '1') return error::feature_text_character;
    if (i >= feature_set::capacity) return error::feature_beyond_set;
    set.set(static_cast<unsigned>(i));
  }
  return set;
}

/// Writes `set` as Linux's sysfs does, one character a bit from bit 0; `to.size()` is the width (64
/// or 128 on Linux). No newline and no NUL.
/// Errors: `buffer_too_small`: a bit of the set lies beyond the width, or the width is 0; nothing
/// was written.
[[nodiscard]] constexpr result<void> format_features(const feature_set& set,
                                                     std::span<char> to) noexcept {
  if (to.empty() || (!set.empty() && static_cast<std::size_t>(set.highest()) >= to.size()))
    return error::buffer_too_small;
  for (std::size_t i = 0; i < to.size(); ++i)
    to[i] = i < feature_set::capacity && set.test(static_cast<unsigned>(i)) ? '1' : '0';
  return {};
}

/// `feature` may be offered or accepted only together with `needs`.
struct feature_dependency {
  unsigned feature = 0;
  unsigned needs = 0;
};

/// The dependencies among ring and transport bits. The specification writes none of them down as
/// such; they follow from bits 32 to 63 being out of reach of the legacy interface, which is what
/// is used where VERSION_1 is not accepted.
/// Spec: "Legacy Interfaces: A Note on PCI Device Layout", "Legacy Interface: A Note on Feature
/// Bits".
inline constexpr feature_dependency ring_feature_dependencies[] = {
    {feature::access_platform, feature::version_1},
    {feature::ring_packed, feature::version_1},
    {feature::in_order, feature::version_1},
    {feature::order_platform, feature::version_1},
    {feature::sr_iov, feature::version_1},
    {feature::notification_data, feature::version_1},
    {feature::notif_config_data, feature::version_1},
    {feature::ring_reset, feature::version_1},
    {feature::admin_vq, feature::version_1},
    {feature::suspend, feature::version_1},
};

/// The first line of `table` that `set` breaks; null if it keeps them all.
[[nodiscard]] constexpr const feature_dependency*
missing_dependency(const feature_set& set, std::span<const feature_dependency> table) noexcept {
  for (const feature_dependency& line : table)
    if (set.test(line.feature) && !set.test(line.needs)) return &line;
  return nullptr;
}

/// `set` without the features whose dependencies it lacks, and without those that need these.
[[nodiscard]] constexpr feature_set
drop_unmet_dependencies(feature_set set, std::span<const feature_dependency> table) noexcept {
  while (const feature_dependency* line = missing_dependency(set, table)) set.clear(line->feature);
  return set;
}

/// Whether a driver may accept `accepted` where `offered` was offered.
/// Errors: `feature_not_offered`, `feature_dependency`.
/// Spec: "Feature Bits" (driver requirements).
[[nodiscard]] constexpr result<void>
check_accepted(const feature_set& offered, const feature_set& accepted,
               std::span<const feature_dependency> dependencies) noexcept {
  if (!accepted.is_subset_of(offered)) return error::feature_not_offered;
  if (missing_dependency(accepted, dependencies) != nullptr) return error::feature_dependency;
  return {};
}

} // namespace ballast
