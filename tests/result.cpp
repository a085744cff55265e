// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/result.hpp>

#include "support/check.hpp"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>

namespace {

using ballast::error;
using ballast::name;
using ballast::result;

constexpr bool same_text(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) ++a, ++b;
  return *a == *b;
}

constexpr error error_of(std::uint32_t number) { return static_cast<error>(number); }

// Every error with its number. Numbers never change; a new error is entered here, too.
struct entry {
  error e;
  std::uint16_t number;
};
constexpr entry table[] = {
    {error::none, 0},
    {error::queue_empty, 1},
    {error::queue_full, 2},
    {error::not_attached, 16},
    {error::already_attached, 17},
    {error::invalid_queue_size, 18},
    {error::storage_too_small, 19},
    {error::invalid_queue_index, 20},
    {error::stale_chain, 21},
    {error::chain_not_in_flight, 22},
    {error::empty_chain, 23},
    {error::chain_too_long, 24},
    {error::target_too_large, 25},
    {error::no_request_pending, 26},
    {error::no_statistics_buffer, 27},
    {error::not_negotiated, 28},
    {error::wrong_state, 29},
    {error::buffer_too_small, 30},
    {error::state_version, 32},
    {error::state_invalid, 33},
    {error::not_guest_memory, 48},
    {error::access_not_allowed, 49},
    {error::misaligned, 50},
    {error::memory_lost, 51},
    {error::region_misplaced, 52},
    {error::regions_overlap, 53},
    {error::available_index_jump, 64},
    {error::used_index_jump, 65},
    {error::head_out_of_range, 66},
    {error::head_in_flight, 67},
    {error::next_out_of_range, 68},
    {error::chain_loops, 69},
    {error::readable_after_writable, 70},
    {error::indirect_not_negotiated, 71},
    {error::chain_bytes_overflow, 73},
    {error::used_id_out_of_range, 74},
    {error::used_id_not_in_flight, 75},
    {error::used_out_of_order, 76},
    {error::indirect_with_next, 77},
    {error::indirect_nested, 78},
    {error::indirect_length, 79},
    {error::indirect_outside, 80},
    {error::descriptors_overrun, 81},
    {error::indirect_in_chain, 82},
    {error::feature_text_length, 96},
    {error::feature_text_character, 97},
    {error::feature_beyond_set, 98},
    {error::feature_not_offered, 99},
    {error::feature_dependency, 100},
    {error::features_rejected, 101},
    {error::status_bit_cleared, 102},
    {error::status_out_of_order, 103},
    {error::status_after_failed, 104},
    {error::config_out_of_range, 105},
    {error::config_unstable, 107},
    {error::device_needs_reset, 108},
    {error::queue_unavailable, 109},
    {error::wrong_device_id, 111},
    {error::reset_incomplete, 112},
    {error::status_bit_of_device, 113},
    {error::queue_too_small, 114},
    {error::register_access, 115},
    {error::vector_unavailable, 116},
    {error::capability_missing, 117},
    {error::page_out_of_range, 128},
    {error::hint_command_malformed, 129},
    {error::mapping_unreadable, 160},
    {error::not_mapped, 161},
    {error::mapping_mixed, 162},
    {error::mapping_locked, 163},
    {error::mapping_unsupported, 164},
    {error::file_not_allowed, 165},
    {error::system_call_failed, 166},
    {error::message_unknown, 192},
    {error::message_flags, 193},
    {error::message_size, 194},
    {error::message_files, 195},
    {error::message_value, 196},
    {error::connection_closed, 197},
    {error::connection_stalled, 198},
    {error::file_too_small, 199},
    {error::memory_slots_full, 200},
    {error::region_unknown, 201},
    {error::in_flight_invalid, 202},
};

constexpr auto numbers = [](auto check) {
  for (const entry& at : table) {
    check(static_cast<std::uint16_t>(at.e) == at.number);
    check(is_known(at.e));
  }
};
BOTH("the number of every error is the published one", numbers)

constexpr auto completeness = [](auto check) {
  for (std::uint32_t n = 0; n < 256; ++n) {
    bool is_listed = false;
    for (const entry& at : table) is_listed = is_listed || at.number == n;
    check(is_known(error_of(n)) == is_listed);
  }
};
BOTH("an error has a name exactly if it is in the table", completeness)

constexpr auto names = [](auto check) {
  const char* known[std::size(table)]{};
  for (std::size_t i = 0; i < std::size(table); ++i) {
    known[i] = name(table[i].e);
    check(known[i] != nullptr && *known[i] != '\0');
    for (std::size_t k = 0; k < i; ++k) check(!same_text(known[i], known[k]));
  }
};
BOTH("every error has a name of its own", names)

constexpr auto form = [](auto check) {
  for (const entry& at : table) {
    const char* end = name(at.e);
    while (*end != '\0') ++end;
    check(end[-1] != '.' && end[-1] != ' ');
  }
};
BOTH("no name ends in a full stop", form)

constexpr auto unknown = [](auto check) {
  check(same_text(name(error_of(255)), "unknown error"));
  check(same_text(name(error_of(65535)), "unknown error"));
};
BOTH("a number that is no error has a name, too", unknown)

constexpr auto has_value = [](auto check) {
  const result<int> r = 7;
  check(r.has_value() && r && *r == 7 && r.error() == error::none);
  result<int> writable = 1;
  *writable = 2;
  check(*writable == 2);
};
BOTH("a result with a value has no error", has_value)

constexpr auto has_error = [](auto check) {
  const result<int> r = error::queue_empty;
  check(!r.has_value() && !r && r.error() == error::queue_empty && *r == 0);
};
BOTH("a result with an error has a default value", has_error)

struct pair {
  int first = 1;
  int second = 2;
};

constexpr auto reaches = [](auto check) {
  result<pair> r = pair{3, 4};
  r->second = 5;
  check(r->first == 3 && (*r).second == 5);
  const result<pair> none = error::queue_full;
  check(none->first == 1 && none->second == 2);
};
BOTH("the arrow reaches into the value", reaches)

constexpr auto without_value = [](auto check) {
  const result<void> fine;
  check(fine.has_value() && fine && fine.error() == error::none);
  const result<void> bad = error::misaligned;
  check(!bad.has_value() && !bad && bad.error() == error::misaligned);
  const result<void> no_error = error::none;
  check(no_error.has_value());
};
BOTH("a result without a value type is an error or none", without_value)

static_assert(std::is_trivially_copyable_v<result<std::uint32_t>>);
static_assert(std::is_trivially_copyable_v<result<void>>);
static_assert(sizeof(result<std::uint64_t>) == 16 && sizeof(result<void>) == sizeof(error));
static_assert(!std::is_convertible_v<result<int>, bool> &&
              !std::is_convertible_v<result<void>, bool>);
static_assert(std::is_same_v<std::underlying_type_t<error>, std::uint16_t>);

} // namespace
