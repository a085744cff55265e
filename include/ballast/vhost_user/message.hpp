// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/vhost_user/protocol.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast::vhost_user {

/// Reads a `T` as it lies in a message.
template <class T>
[[nodiscard]] constexpr T read_as(std::span<const std::byte> from, std::size_t offset) noexcept {
  struct raw {
    std::byte at[sizeof(T)];
  };
  raw bytes{};
  for (std::size_t i = 0; i < sizeof(T); ++i) bytes.at[i] = from[offset + i];
  return std::bit_cast<T>(bytes);
}

/// Writes `value` as it lies in a message.
template <class T>
constexpr void write_as(std::span<std::byte> to, std::size_t offset, const T& value) noexcept {
  struct raw {
    std::byte at[sizeof(T)];
  };
  const auto bytes = std::bit_cast<raw>(value);
  for (std::size_t i = 0; i < sizeof(T); ++i) to[offset + i] = bytes.at[i];
}

/// A request whose form was checked: sizes, counts, and what can never be right. Whether it can be
/// carried out now is the session's to say. Which members count depends on `what`.
struct message {
  request what = request::get_features;
  bool needs_reply = false;  ///< the sender waits for one, where replies were negotiated
  std::uint32_t queue = 0;   ///< of all requests about one
  std::uint64_t value = 0;   ///< features, size, base, status, 1 to enable
  bool has_file = false;     ///< of a queue's notifications
  queue_addresses addresses; ///< set_queue_addresses
  config_access config;      ///< get_config, set_config
  in_flight_area in_flight;  ///< get_in_flight, set_in_flight
  std::uint32_t regions = 0; ///< of memory: how many
  /// Configuration, or regions.
  std::span<const std::byte> data;

  [[nodiscard]] constexpr region_description region(std::uint32_t i) const noexcept {
    return read_as<region_description>(data, i * sizeof(region_description));
  }
};

/// Whether the front end waits for an answer of its own to `what`, besides an acknowledgement.
[[nodiscard]] constexpr bool has_answer(request what) noexcept {
  switch (what) {
  case request::get_features:
  case request::get_queue_base:
  case request::get_protocol_features:
  case request::get_queue_count:
  case request::get_config:
  case request::get_in_flight:
  case request::get_memory_slots:
  case request::get_status: return true;
  default: return false;
  }
}

/// The protocol feature that has to be negotiated before `what`; 0: none.
[[nodiscard]] constexpr std::uint64_t feature_of(request what) noexcept {
  switch (what) {
  case request::set_back_end_channel: return protocol_feature::back_end_channel;
  case request::get_config:
  case request::set_config: return protocol_feature::config;
  case request::get_in_flight:
  case request::set_in_flight: return protocol_feature::in_flight;
  case request::reset_device: return protocol_feature::reset_device;
  case request::notify_queue: return protocol_feature::in_band;
  case request::get_memory_slots:
  case request::add_memory_region:
  case request::remove_memory_region: return protocol_feature::memory_slots;
  case request::set_status:
  case request::get_status: return protocol_feature::status;
  default: return 0;
  }
}

/// Whether a header begins a message that can be read: of a known version, no longer than any.
/// Errors: `message_flags`, `message_size`.
[[nodiscard]] constexpr result<void> check_header(const message_header& head) noexcept {
  if ((head.flags & message_header::version_mask) != message_header::version ||
      (head.flags & message_header::reply) != 0)
    return error::message_flags;
  if (head.size > payload_max) return error::message_size;
  return {};
}

/// Understands a request: the bytes of one message and how many file descriptors came with it.
/// Touches nothing else; `protocol` are the protocol features negotiated so far.
///
/// Errors: those of `check_header`, `message_unknown`, `not_negotiated`, `message_size`,
/// `message_files`, `message_value`.
[[nodiscard]] constexpr result<message> decode(std::span<const std::byte> bytes, std::size_t files,
                                               std::uint64_t protocol) noexcept {
  if (bytes.size() < sizeof(message_header)) return error::message_size;
  const auto head = read_as<message_header>(bytes, 0);
  if (const auto checked = check_header(head); !checked) return checked.error();
  const auto payload = bytes.subspan(sizeof(message_header));
  if (payload.size() != head.size) return error::message_size;

  message m;
  m.what = static_cast<request>(head.request);
  m.needs_reply = (head.flags & message_header::needs_reply) != 0;
  if (const std::uint64_t needed = feature_of(m.what); (protocol & needed) != needed)
    return error::not_negotiated;

  std::size_t files_due = 0;
  bool has_size = false;
  switch (m.what) {
  case request::get_features:
  case request::set_owner:
  case request::reset_owner:
  case request::get_protocol_features:
  case request::get_queue_count:
  case request::reset_device:
  case request::get_memory_slots:
  case request::get_status: has_size = payload.empty(); break;

  case request::set_back_end_channel:
    has_size = payload.empty();
    files_due = 1;
    break;

  case request::set_features:
  case request::set_protocol_features:
  case request::set_status:
    has_size = payload.size() == sizeof(std::uint64_t);
    if (has_size) m.value = read_as<std::uint64_t>(payload, 0);
    break;

  case request::set_queue_size:
  case request::set_queue_base:
  case request::get_queue_base:
  case request::enable_queue:
  case request::notify_queue:
    has_size = payload.size() == sizeof(queue_value);
    if (has_size) {
      const auto of_queue = read_as<queue_value>(payload, 0);
      m.queue = of_queue.queue;
      m.value = of_queue.value;
    }
    break;

  case request::set_available_file:
  case request::set_used_file:
  case request::set_error_file:
    has_size = payload.size() == sizeof(std::uint64_t);
    if (has_size) {
      const auto about = read_as<std::uint64_t>(payload, 0);
      if ((about & ~(file_queue_mask | no_file)) != 0) return error::message_value;
      m.queue = static_cast<std::uint32_t>(about & file_queue_mask);
      m.has_file = (about & no_file) == 0;
      files_due = m.has_file ? 1 : 0;
    }
    break;

  case request::set_queue_addresses:
    has_size = payload.size() == sizeof(queue_addresses);
    if (has_size) {
      m.addresses = read_as<queue_addresses>(payload, 0);
      m.queue = m.addresses.queue;
    }
    break;

  case request::set_memory_table: {
    constexpr std::size_t first = 2 * sizeof(std::uint32_t);
    if (payload.size() < first) break;
    m.regions = read_as<std::uint32_t>(payload, 0);
    if (m.regions > memory_slots_max) return error::message_value;
    m.data = payload.subspan(first);
    // Some send a table of a fixed length, with fewer regions in it.
    has_size = m.data.size() % sizeof(region_description) == 0 &&
               m.data.size() / sizeof(region_description) >= m.regions;
    files_due = m.regions;
    break;
  }

  case request::add_memory_region:
  case request::remove_memory_region:
    has_size = payload.size() == sizeof(std::uint64_t) + sizeof(region_description);
    if (has_size) m.data = payload.subspan(sizeof(std::uint64_t));
    m.regions = 1;
    // Some send the region's file to have it removed.
    files_due = m.what == request::add_memory_region ? 1 : files == 1 ? 1 : 0;
    break;

  case request::get_config:
  case request::set_config: {
    if (payload.size() < sizeof(config_access)) break;
    m.config = read_as<config_access>(payload, 0);
    if (m.config.size > config_bytes_max) return error::message_value;
    m.data = payload.subspan(sizeof(config_access));
    // Whoever reads need not send the room for it.
    has_size = m.data.size() == m.config.size ||
               (m.what == request::get_config && m.data.size() < m.config.size);
    break;
  }

  case request::get_in_flight:
  case request::set_in_flight: {
    has_size = payload.size() == sizeof(in_flight_area) ||
               payload.size() == in_flight_area::bytes_without_padding;
    if (!has_size) break;
    std::byte whole[sizeof(in_flight_area)]{};
    for (std::size_t i = 0; i < payload.size(); ++i) whole[i] = payload[i];
    m.in_flight = read_as<in_flight_area>(whole, 0);
    m.data = payload;
    files_due = m.what == request::set_in_flight ? 1 : 0;
    break;
  }

  default: return error::message_unknown;
  }
  if (!has_size) return error::message_size;
  if (files != files_due) return error::message_files;

  for (std::uint32_t i = 0; i < m.regions; ++i) {
    const region_description r = m.region(i);
    // Nothing reaches the last byte of 2^64, and a file ends before 2^63.
    constexpr std::uint64_t end_max = std::uint64_t{1} << 63;
    if (r.size == 0 || r.size > end_max || r.file_offset > end_max - r.size ||
        r.guest_address > UINT64_MAX - r.size || r.user_address > UINT64_MAX - r.size)
      return error::message_value;
  }
  return m;
}

} // namespace ballast::vhost_user
