// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <type_traits>

namespace ballast {

/// What went wrong, and which bound was broken. The numbers are stable: logs and saved state may
/// keep them. New ones are appended inside their group; a missing number is never used again.
enum class error : std::uint16_t {
  none = 0,

  // Not faults: there is nothing to hand out now, or no room; look again after a notification.
  queue_empty = 1,
  queue_full = 2,

  // The caller's mistakes.
  not_attached = 16,         ///< the queue or device has no memory yet
  already_attached = 17,     ///< detach first
  invalid_queue_size = 18,   ///< zero, above 32768, or (split) no power of two
  storage_too_small = 19,    ///< the caller's storage holds fewer entries than the queue
  invalid_queue_index = 20,  ///< no such queue, or not an enabled one
  stale_chain = 21,          ///< a chain of an epoch before the last reset
  chain_not_in_flight = 22,  ///< returned twice, or never popped
  empty_chain = 23,          ///< a chain needs at least one buffer
  chain_too_long = 24,       ///< more buffers than the queue has descriptors
  target_too_large = 25,     ///< more pages than guest memory or 2^32 - 1
  no_request_pending = 26,   ///< no statistics request is under way
  no_statistics_buffer = 27, ///< the driver has not made a statistics buffer available
  not_negotiated = 28,       ///< needs a feature that was not negotiated
  wrong_state = 29,          ///< not in this device status
  buffer_too_small = 30,     ///< the caller's span or buffer cannot hold it
  state_version = 32,        ///< saved by a version that is not known
  state_invalid = 33, ///< a saved state that does not fit together, or does not fit the queue

  // Memory.
  not_guest_memory = 48,   ///< the range is not all guest memory
  access_not_allowed = 49, ///< guest memory, but not writable
  misaligned = 50,         ///< not aligned as its words need
  memory_lost = 51,        ///< the accessor failed for good (`good()` is false)
  region_misplaced = 52,   ///< host and guest base of a region differ modulo 16, or it wraps
  regions_overlap = 53,    ///< two regions cover the same guest address, or are not in order

  // The other side broke the ring: the queue is broken until reset.
  available_index_jump = 64,    ///< avail.idx moved by more than the queue size
  used_index_jump = 65,         ///< used.idx moved by more than is in flight
  head_out_of_range = 66,       ///< an available head or buffer id is not below the queue size
  head_in_flight = 67,          ///< a head or id was made available twice without being returned
  next_out_of_range = 68,       ///< a descriptor's next is not below the queue size
  chain_loops = 69,             ///< a chain has more descriptors than the queue
  readable_after_writable = 70, ///< a device-readable buffer follows a device-writable one
  indirect_not_negotiated = 71, ///< INDIRECT without the feature
  chain_bytes_overflow = 73,    ///< a chain describes more than 2^32 bytes (driver: 2^32 - 1)
  used_id_out_of_range = 74,    ///< a used id is not below the queue size
  used_id_not_in_flight = 75,   ///< a used id is not that of a chain in flight
  used_out_of_order = 76,       ///< IN_ORDER: a chain is used before an older one
  indirect_with_next = 77,      ///< a descriptor has both INDIRECT and NEXT
  indirect_nested = 78,         ///< INDIRECT inside of an indirect table
  indirect_length = 79,         ///< an indirect table of no bytes, or not of whole descriptors
  indirect_outside = 80,        ///< an indirect table that is not all guest memory
  descriptors_overrun = 81,     ///< packed: more descriptors are available than the queue has
  indirect_in_chain = 82,       ///< packed: INDIRECT behind another descriptor of a chain

  // Features, status and configuration.
  feature_text_length = 96,    ///< a features text that is empty or has too many bits
  feature_text_character = 97, ///< a character that is neither 0 nor 1
  feature_beyond_set = 98,     ///< a 1 beyond the 256 bits of a feature_set
  feature_not_offered = 99,    ///< accepted without having been offered
  feature_dependency = 100,    ///< needs a feature that is not in the set
  features_rejected = 101,     ///< the device did not set FEATURES_OK
  status_bit_cleared = 102,    ///< a status bit was cleared other than by reset
  status_out_of_order = 103,   ///< a status bit before the ones it follows
  status_after_failed = 104,   ///< FAILED is set: only a reset is allowed
  config_out_of_range = 105,   ///< offset + length passes the configuration space
  config_unstable = 107,       ///< the generation kept changing
  device_needs_reset = 108,    ///< DEVICE_NEEDS_RESET is set
  queue_unavailable = 109,     ///< the transport says the queue's maximum size is 0
  wrong_device_id = 111,       ///< another type of device than the driver's
  reset_incomplete = 112,      ///< the status did not read 0 in the attempts allowed
  status_bit_of_device = 113,  ///< the driver set a status bit that only the device sets
  queue_too_small = 114,       ///< the device's queue has fewer entries than the driver needs
  register_access = 115,    ///< no register that can be accessed so: its offset, width, direction
  vector_unavailable = 116, ///< the device has not taken an MSI-X vector
  capability_missing = 117, ///< no PCI capability of a structure that the driver needs

  // Balloon.
  page_out_of_range = 128,      ///< an address of 16 TiB or more has no PFN
  hint_command_malformed = 129, ///< a command of free page hinting that is not 4 bytes

  // Memory of the host, given back.
  mapping_unreadable = 160,  ///< the kernel's table of mappings cannot be read
  not_mapped = 161,          ///< not all of the range is mapped in this process
  mapping_mixed = 162,       ///< mappings of different kinds in one range
  mapping_locked = 163,      ///< locked by mlock: the memory is to stay
  mapping_unsupported = 164, ///< a kind of mapping whose memory cannot be given back
  file_not_allowed = 165,    ///< it would change a file that the caller did not give for it
  system_call_failed = 166,  ///< errno says why, and is kept

  // vhost-user.
  message_unknown = 192,    ///< a request that is not known, or not known to be answered
  message_flags = 193,      ///< another version, or a reply where a request is due
  message_size = 194,       ///< the payload has not the size that its request takes
  message_files = 195,      ///< not as many file descriptors as the request takes
  message_value = 196,      ///< a value in the payload that is never valid
  connection_closed = 197,  ///< the other side closed it, or it broke
  connection_stalled = 198, ///< the other side does not read what it is sent
  file_too_small = 199,     ///< a shared file ends before the memory it is said to hold
  memory_slots_full = 200,  ///< more regions of memory than there are slots
  region_unknown = 201,     ///< no region of memory as described
  in_flight_invalid = 202, ///< a region of chains in flight that does not fit together, or the ring
};

/// A short text for `e`, without a full stop; null for a number that is none of the enumerators.
[[nodiscard]] constexpr const char* find_name(error e) noexcept {
  switch (e) {
  case error::none: return "no error";
  case error::queue_empty: return "queue empty";
  case error::queue_full: return "queue full";
  case error::not_attached: return "not attached to memory";
  case error::already_attached: return "already attached";
  case error::invalid_queue_size: return "queue size is not a power of two in 1..32768";
  case error::storage_too_small: return "queue storage has fewer entries than the queue";
  case error::invalid_queue_index: return "no such queue";
  case error::stale_chain: return "chain of an epoch before the last reset";
  case error::chain_not_in_flight: return "chain is not in flight";
  case error::empty_chain: return "chain without a buffer";
  case error::chain_too_long: return "chain has more buffers than the queue has descriptors";
  case error::target_too_large: return "target is larger than allowed";
  case error::no_request_pending: return "no statistics request is pending";
  case error::no_statistics_buffer: return "driver has made no statistics buffer available";
  case error::not_negotiated: return "feature was not negotiated";
  case error::wrong_state: return "not allowed in this state";
  case error::buffer_too_small: return "buffer too small";
  case error::state_version: return "saved state has an unknown version";
  case error::state_invalid: return "saved state is not valid";
  case error::not_guest_memory: return "address range is not all guest memory";
  case error::access_not_allowed: return "guest memory is not writable there";
  case error::misaligned: return "address is misaligned";
  case error::memory_lost: return "guest memory was lost";
  case error::region_misplaced: return "region's host and guest base differ modulo 16, or it wraps";
  case error::regions_overlap: return "regions overlap or are not in ascending order";
  case error::available_index_jump: return "available index moved by more than the queue size";
  case error::used_index_jump: return "used index moved by more than is in flight";
  case error::head_out_of_range: return "available head or buffer id is not below the queue size";
  case error::head_in_flight: return "descriptor head or buffer id is already in flight";
  case error::next_out_of_range: return "descriptor next is not below the queue size";
  case error::chain_loops: return "descriptor chain is longer than the queue";
  case error::readable_after_writable: return "device-readable buffer after a device-writable one";
  case error::indirect_not_negotiated: return "indirect descriptor without the feature";
  case error::chain_bytes_overflow: return "descriptor chain describes more bytes than a chain may";
  case error::used_id_out_of_range: return "used id is not below the queue size";
  case error::used_id_not_in_flight: return "used id is not in flight";
  case error::used_out_of_order: return "chain used before an older one";
  case error::indirect_with_next: return "descriptor is both indirect and chained";
  case error::indirect_nested: return "indirect descriptor in an indirect table";
  case error::indirect_length: return "indirect table is not a number of descriptors";
  case error::indirect_outside: return "indirect table is not all guest memory";
  case error::descriptors_overrun: return "more descriptors available than the queue has";
  case error::indirect_in_chain: return "indirect descriptor behind another one of a chain";
  case error::feature_text_length: return "features text is empty";
  case error::feature_text_character: return "features text has a character other than 0 and 1";
  case error::feature_beyond_set: return "features text sets a bit beyond 255";
  case error::feature_not_offered: return "feature accepted but not offered";
  case error::feature_dependency: return "feature needs one that is not in the set";
  case error::features_rejected: return "device did not accept the features";
  case error::status_bit_cleared: return "status bit cleared without a reset";
  case error::status_out_of_order: return "status bit set before the ones it follows";
  case error::status_after_failed: return "status changed after FAILED without a reset";
  case error::config_out_of_range: return "configuration access passes the end";
  case error::config_unstable: return "configuration generation kept changing";
  case error::device_needs_reset: return "device needs reset";
  case error::queue_unavailable: return "queue is not available";
  case error::wrong_device_id: return "another type of device";
  case error::reset_incomplete: return "device did not finish its reset";
  case error::status_bit_of_device: return "status bit that only the device sets";
  case error::queue_too_small: return "queue has fewer entries than the driver needs";
  case error::register_access: return "no such register, or not to be accessed so";
  case error::vector_unavailable: return "device has not taken the MSI-X vector";
  case error::capability_missing: return "no PCI capability of a structure that is needed";
  case error::page_out_of_range: return "address has no page frame number";
  case error::hint_command_malformed: return "hinting command is not 4 bytes";
  case error::mapping_unreadable: return "table of mappings cannot be read";
  case error::not_mapped: return "address range is not all mapped";
  case error::mapping_mixed: return "mappings of different kinds in one range";
  case error::mapping_locked: return "memory is locked";
  case error::mapping_unsupported: return "memory of this mapping cannot be given back";
  case error::file_not_allowed: return "file was not given to be changed";
  case error::system_call_failed: return "system call failed";
  case error::message_unknown: return "unknown request";
  case error::message_flags: return "message has another version, or is no request";
  case error::message_size: return "message has a payload of the wrong size";
  case error::message_files: return "message has a wrong number of file descriptors";
  case error::message_value: return "message has a value that is not valid";
  case error::connection_closed: return "connection was closed";
  case error::connection_stalled: return "other side does not read what it is sent";
  case error::file_too_small: return "shared file ends before its memory";
  case error::memory_slots_full: return "more memory regions than slots";
  case error::region_unknown: return "no such memory region";
  case error::in_flight_invalid: return "shared state of chains in flight is not valid";
  }
  return nullptr;
}

/// As `find_name`, never null.
[[nodiscard]] constexpr const char* name(error e) noexcept {
  return find_name(e) == nullptr ? "unknown error" : find_name(e);
}

/// Whether `e` is one of the enumerators, where it was saved or came over a wire.
[[nodiscard]] constexpr bool is_known(error e) noexcept { return find_name(e) != nullptr; }

/// A value or the reason why there is none.
///
///     if (auto chain = queue.pop_available()) use(*chain); else log(name(chain.error()));
///
/// A plain struct rather than a variant: it stays in registers and works in constant expressions.
template <class T> class [[nodiscard]] result {
 public:
  constexpr result(T value) noexcept : value_(static_cast<T&&>(value)) {}
  constexpr result(ballast::error e) noexcept : error_(e) {}

  [[nodiscard]] constexpr bool has_value() const noexcept { return error_ == ballast::error::none; }
  constexpr explicit operator bool() const noexcept { return has_value(); }

  /// The value; a default-constructed one where there is an error.
  [[nodiscard]] constexpr T& operator*() noexcept { return value_; }
  [[nodiscard]] constexpr const T& operator*() const noexcept { return value_; }
  [[nodiscard]] constexpr T* operator->() noexcept { return &value_; }
  [[nodiscard]] constexpr const T* operator->() const noexcept { return &value_; }

  /// `error::none` where there is a value.
  [[nodiscard]] constexpr ballast::error error() const noexcept { return error_; }

 private:
  T value_{};
  ballast::error error_ = ballast::error::none;
};

template <> class [[nodiscard]] result<void> {
 public:
  constexpr result() noexcept = default;
  constexpr result(ballast::error e) noexcept : error_(e) {}

  [[nodiscard]] constexpr bool has_value() const noexcept { return error_ == ballast::error::none; }
  constexpr explicit operator bool() const noexcept { return has_value(); }
  [[nodiscard]] constexpr ballast::error error() const noexcept { return error_; }

 private:
  ballast::error error_ = ballast::error::none;
};

} // namespace ballast
