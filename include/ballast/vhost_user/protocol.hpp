// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>

/// The device's end of vhost-user: a device in a process of its own. Its driver's VMM, the front
/// end, connects over a Unix socket, shares its guest's memory and says where the rings lie.
///
/// What goes over the socket is in the byte order of the machine. Spec: "Vhost-user Protocol"; its
/// names of requests and bits are in the comments here.
namespace ballast::vhost_user {

/// Requests of a front end that this back end knows.
enum class request : std::uint32_t {
  get_features = 1,
  set_features = 2,
  set_owner = 3,
  reset_owner = 4,
  set_memory_table = 5,       ///< SET_MEM_TABLE
  set_queue_size = 8,         ///< SET_VRING_NUM
  set_queue_addresses = 9,    ///< SET_VRING_ADDR
  set_queue_base = 10,        ///< SET_VRING_BASE
  get_queue_base = 11,        ///< GET_VRING_BASE; stops the queue
  set_available_file = 12,    ///< SET_VRING_KICK: available buffer notifications
  set_used_file = 13,         ///< SET_VRING_CALL: used buffer notifications
  set_error_file = 14,        ///< SET_VRING_ERR
  get_protocol_features = 15, //
  set_protocol_features = 16, //
  get_queue_count = 17,       ///< GET_QUEUE_NUM
  enable_queue = 18,          ///< SET_VRING_ENABLE
  set_back_end_channel = 21,  ///< SET_BACKEND_REQ_FD, SET_SLAVE_REQ_FD
  get_config = 24,            //
  set_config = 25,            //
  get_in_flight = 31,         ///< GET_INFLIGHT_FD
  set_in_flight = 32,         ///< SET_INFLIGHT_FD
  reset_device = 34,          //
  notify_queue = 35,          ///< VRING_KICK, in-band
  get_memory_slots = 36,      ///< GET_MAX_MEM_SLOTS
  add_memory_region = 37,     ///< ADD_MEM_REG
  remove_memory_region = 38,  ///< REM_MEM_REG
  set_status = 39,            //
  get_status = 40,            //
};

/// Requests of a back end, over the channel that the front end gave it.
enum class back_end_request : std::uint32_t {
  config_changed = 2, ///< BACKEND_CONFIG_CHANGE_MSG
  notify_queue = 4,   ///< BACKEND_VRING_CALL: used buffers, in-band
  queue_error = 5,    ///< BACKEND_VRING_ERR
};

/// Bit 30 of the device's features: there are protocol features (VHOST_USER_F_PROTOCOL_FEATURES).
inline constexpr std::uint64_t has_protocol_features = std::uint64_t{1} << 30;

/// The bits of protocol features that this back end may offer.
namespace protocol_feature {
inline constexpr std::uint64_t queue_count = 1 << 0;      ///< MQ
inline constexpr std::uint64_t reply_ack = 1 << 3;        ///< REPLY_ACK
inline constexpr std::uint64_t back_end_channel = 1 << 5; ///< BACKEND_REQ, SLAVE_REQ
inline constexpr std::uint64_t config = 1 << 9;           ///< CONFIG
inline constexpr std::uint64_t in_flight = 1 << 12;       ///< INFLIGHT_SHMFD
inline constexpr std::uint64_t reset_device = 1 << 13;    ///< RESET_DEVICE
inline constexpr std::uint64_t in_band = 1 << 14;         ///< INBAND_NOTIFICATIONS
inline constexpr std::uint64_t memory_slots = 1 << 15;    ///< CONFIGURE_MEM_SLOTS
inline constexpr std::uint64_t status = 1 << 16;          ///< STATUS
inline constexpr std::uint64_t all = queue_count | reply_ack | back_end_channel | config |
                                     in_flight | reset_device | in_band | memory_slots | status;
} // namespace protocol_feature

/// What every message begins with; the payload follows.
struct message_header {
  std::uint32_t request = 0;
  std::uint32_t flags = 0;
  std::uint32_t size = 0; ///< bytes of payload

  static constexpr std::uint32_t version = 1, version_mask = 3, reply = 4, needs_reply = 8;
};
static_assert(sizeof(message_header) == 12);

/// Bytes of configuration in one message. QEMU: VHOST_USER_MAX_CONFIG_SIZE.
inline constexpr std::uint32_t config_bytes_max = 256;
/// Regions of memory at a time, and file descriptors in a message.
inline constexpr std::uint32_t memory_slots_max = 32;
/// Bytes of payload: a memory table with all slots.
inline constexpr std::uint32_t payload_max = 8 + 32 * memory_slots_max;

// Payloads, as they lie in a message.

struct queue_value {
  std::uint32_t queue = 0;
  std::uint32_t value = 0;
};
static_assert(sizeof(queue_value) == 8);

/// Where the front end's process sees the parts of a ring.
struct queue_addresses {
  std::uint32_t queue = 0;
  std::uint32_t flags = 0;
  std::uint64_t descriptor_area = 0;
  std::uint64_t device_area = 0; ///< used ring
  std::uint64_t driver_area = 0; ///< available ring
  std::uint64_t log = 0;

  friend constexpr bool operator==(const queue_addresses&,
                                   const queue_addresses&) noexcept = default;
};
static_assert(sizeof(queue_addresses) == 40);

/// A piece of a shared file that is guest memory.
struct region_description {
  std::uint64_t guest_address = 0;
  std::uint64_t size = 0;         ///< bytes
  std::uint64_t user_address = 0; ///< in the front end's process
  std::uint64_t file_offset = 0;  ///< bytes

  friend constexpr bool operator==(const region_description&,
                                   const region_description&) noexcept = default;
};
static_assert(sizeof(region_description) == 32);

struct config_access {
  std::uint32_t offset = 0;
  std::uint32_t size = 0; ///< bytes
  std::uint32_t flags = 0;
};
static_assert(sizeof(config_access) == 12);

/// The shared file that outlives a back end and says which chains it holds.
struct in_flight_area {
  std::uint64_t size = 0;   ///< bytes
  std::uint64_t offset = 0; ///< of the file
  std::uint16_t queues = 0;
  std::uint16_t queue_size = 0; ///< entries
  std::uint32_t padding = 0;    ///< some send it, some don't

  static constexpr std::uint32_t bytes_without_padding = 20;
};
static_assert(sizeof(in_flight_area) == 24);

/// In the payload of a message about a queue's file: there is none (VHOST_USER_VRING_NOFD_MASK).
inline constexpr std::uint64_t no_file = 1 << 8;
inline constexpr std::uint64_t file_queue_mask = 0xff;

} // namespace ballast::vhost_user
