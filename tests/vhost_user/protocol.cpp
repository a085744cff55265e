// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/protocol.hpp>

#include <support/check.hpp>

namespace {

using namespace ballast::vhost_user;

// The numbers of the specification's lists; what is not there is not answered.
struct entry {
  request what;
  unsigned number;
};
constexpr entry requests[] = {
    {request::get_features, 1},
    {request::set_features, 2},
    {request::set_owner, 3},
    {request::reset_owner, 4},
    {request::set_memory_table, 5},
    {request::set_queue_size, 8},
    {request::set_queue_addresses, 9},
    {request::set_queue_base, 10},
    {request::get_queue_base, 11},
    {request::set_available_file, 12},
    {request::set_used_file, 13},
    {request::set_error_file, 14},
    {request::get_protocol_features, 15},
    {request::set_protocol_features, 16},
    {request::get_queue_count, 17},
    {request::enable_queue, 18},
    {request::set_back_end_channel, 21},
    {request::get_config, 24},
    {request::set_config, 25},
    {request::get_in_flight, 31},
    {request::set_in_flight, 32},
    {request::reset_device, 34},
    {request::notify_queue, 35},
    {request::get_memory_slots, 36},
    {request::add_memory_region, 37},
    {request::remove_memory_region, 38},
    {request::set_status, 39},
    {request::get_status, 40},
};

constexpr auto numbers = [](auto check) {
  for (const entry& e : requests) check(static_cast<unsigned>(e.what) == e.number);
  check(static_cast<unsigned>(back_end_request::config_changed) == 2);
  check(static_cast<unsigned>(back_end_request::notify_queue) == 4);
  check(static_cast<unsigned>(back_end_request::queue_error) == 5);
  check(has_protocol_features == 0x4000'0000);
  check(protocol_feature::all == 0x1f229); // bits 0, 3, 5, 9, 12 to 16
};
BOTH("requests and features have the numbers of the specification", numbers)

constexpr auto layouts = [](auto check) {
  check(offsetof(queue_addresses, descriptor_area) == 8);
  check(offsetof(queue_addresses, device_area) == 16); // used before available
  check(offsetof(queue_addresses, driver_area) == 24);
  check(offsetof(region_description, user_address) == 16);
  check(offsetof(in_flight_area, queues) == 16 && offsetof(in_flight_area, queue_size) == 18);
  check(payload_max >= 8 + 32 * memory_slots_max && payload_max >= 12 + config_bytes_max);
};
BOTH("payloads lie as the specification's tables say", layouts)

} // namespace
