// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/message.hpp>

#include <support/check.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
using namespace ballast::vhost_user;
namespace feature = ballast::vhost_user::protocol_feature;

/// A message of these parts, and how it is understood.
struct made {
  std::array<std::byte, 400> bytes{};
  std::size_t end = sizeof(message_header);

  template <class... Parts> constexpr explicit made(request what, const Parts&... parts) {
    ((write_as(std::span(bytes), end, parts), end += sizeof(parts)), ...);
    head({static_cast<std::uint32_t>(what), message_header::version,
          static_cast<std::uint32_t>(end - sizeof(message_header))});
  }
  constexpr void head(const message_header& h) { write_as(std::span(bytes), 0, h); }
  [[nodiscard]] constexpr result<message> read(std::size_t files = 0,
                                               std::uint64_t protocol = feature::all) const {
    return decode(std::span(bytes).first(end), files, protocol);
  }
};
template <class... Parts>
constexpr error error_of(request what, std::size_t files, const Parts&... parts) {
  return made(what, parts...).read(files).error();
}

constexpr auto plain = [](auto check) {
  for (const request what :
       {request::get_features, request::set_owner, request::reset_owner,
        request::get_protocol_features, request::get_queue_count, request::reset_device,
        request::get_memory_slots, request::get_status}) {
    const auto m = made(what).read();
    check(m && m->what == what && !m->needs_reply);
    check(error_of(what, 0, std::uint8_t{}) == error::message_size);
    check(error_of(what, 1) == error::message_files);
  }
  check(made(request::set_back_end_channel).read(1).has_value());
  check(error_of(request::set_back_end_channel, 0) == error::message_files);
  check(error_of(request::set_back_end_channel, 2) == error::message_files);
  for (const request what :
       {request::set_features, request::set_protocol_features, request::set_status}) {
    const auto m = made(what, std::uint64_t{0x1234'5678'9abc}).read();
    check(m && m->value == 0x1234'5678'9abc);
    check(error_of(what, 0, std::uint32_t{}) == error::message_size);
  }
};
BOTH("requests without a payload, or with a number", plain)

constexpr auto queues = [](auto check) {
  for (const request what :
       {request::set_queue_size, request::set_queue_base, request::get_queue_base,
        request::enable_queue, request::notify_queue}) {
    const auto m = made(what, queue_value{7, 0x8001'8000}).read();
    check(m && m->queue == 7 && m->value == 0x8001'8000);
    check(error_of(what, 0, std::uint32_t{}) == error::message_size);
    check(error_of(what, 0, queue_value{}, std::uint8_t{}) == error::message_size);
  }
  const queue_addresses at{3, 0, 1, 2, 3, 4};
  const auto m = made(request::set_queue_addresses, at).read();
  check(m && m->queue == 3 && m->addresses == at);
  check(error_of(request::set_queue_addresses, 0, queue_value{}) == error::message_size);
};
BOTH("requests about a queue", queues)

constexpr auto files = [](auto check) {
  for (const request what :
       {request::set_available_file, request::set_used_file, request::set_error_file}) {
    const auto with = made(what, std::uint64_t{5}).read(1);
    check(with && with->queue == 5 && with->has_file);
    const auto without = made(what, 5 | no_file).read(0);
    check(without && without->queue == 5 && !without->has_file);
    check(error_of(what, 0, std::uint64_t{5}) == error::message_files);
    check(error_of(what, 2, std::uint64_t{5}) == error::message_files);
    check(error_of(what, 1, 5 | no_file) == error::message_files);
    check(error_of(what, 1, std::uint64_t{0x200}) == error::message_value);
    check(error_of(what, 1, std::uint32_t{5}) == error::message_size);
  }
};
BOTH("files of notifications: one, or it is said that there is none", files)

constexpr region_description some{0x1000, 0x2000, 0x7000'0000, 0x3000};

constexpr auto memory = [](auto check) {
  const std::uint32_t one = 1, two = 2, none = 0;
  const region_description other{0x9000, 0x1000, 0x9000'0000, 0};
  const made table(request::set_memory_table, two, none, some, other);
  const auto m = table.read(2);
  check(m && m->regions == 2 && m->region(0) == some && m->region(1) == other);
  // Linux sends room for two, and one in it.
  const made padded(request::set_memory_table, one, none, some, region_description{});
  const auto p = padded.read(1);
  check(p && p->regions == 1 && p->region(0) == some);
  check(made(request::set_memory_table, none, none).read(0).has_value());
  check(error_of(request::set_memory_table, 2, two, none, some) == error::message_size);
  check(error_of(request::set_memory_table, 1, one, none, some, one) == error::message_size);
  check(error_of(request::set_memory_table, 0, one) == error::message_size);
  check(error_of(request::set_memory_table, 1, two, none, some, some) == error::message_files);
  check(error_of(request::set_memory_table, 0, std::uint32_t{33}, none) == error::message_value);
  check(error_of(request::set_memory_table, 0, 0xffff'ffffu, none) == error::message_value);

  const std::uint64_t padding = 0;
  const made single(request::add_memory_region, padding, some);
  const auto added = single.read(1);
  check(added && added->regions == 1 && added->region(0) == some);
  check(error_of(request::add_memory_region, 0, padding, some) == error::message_files);
  check(error_of(request::add_memory_region, 1, some) == error::message_size);
  check(made(request::remove_memory_region, padding, some).read(0).has_value());
  check(made(request::remove_memory_region, padding, some).read(1).has_value()); // some send it
  check(error_of(request::remove_memory_region, 2, padding, some) == error::message_files);
};
BOTH("memory tables and single regions", memory)

constexpr auto bad_regions = [](auto check) {
  const auto with = [](auto change) {
    region_description r = some;
    change(r);
    return error_of(request::add_memory_region, 1, std::uint64_t{0}, r);
  };
  check(with([](auto&) {}) == error::none);
  check(with([](auto& r) { r.size = 0; }) == error::message_value);
  check(with([](auto& r) { r.size = UINT64_MAX; }) == error::message_value);
  check(with([](auto& r) { r.file_offset = UINT64_MAX - 0x1000; }) == error::message_value);
  check(with([](auto& r) { r.file_offset = std::uint64_t{1} << 63; }) == error::message_value);
  check(with([](auto& r) { r.guest_address = UINT64_MAX - 0x2000; }) == error::none);
  check(with([](auto& r) { r.guest_address = UINT64_MAX - 0x1fff; }) == error::message_value);
  check(with([](auto& r) { r.user_address = UINT64_MAX - 0x1fff; }) == error::message_value);
};
BOTH("regions that wrap, or are empty", bad_regions)

constexpr auto config = [](auto check) {
  const auto m = made(request::set_config, config_access{4, 4, 1}, std::uint32_t{9}).read();
  check(m && m->config.offset == 4 && m->config.flags == 1 && m->data.size() == 4);
  check(error_of(request::set_config, 0, config_access{4, 8, 0}, 9u) == error::message_size);
  check(error_of(request::set_config, 0, config_access{4, 2, 0}, 9u) == error::message_size);
  check(error_of(request::set_config, 0, 9u) == error::message_size);
  check(error_of(request::set_config, 0, config_access{0, 257, 0}) == error::message_value);
  check(made(request::get_config, config_access{0, 4, 0}, 0u).read().has_value());
  check(made(request::get_config, config_access{0, 256, 0}).read().has_value()); // without room
  check(error_of(request::get_config, 0, config_access{0, 2, 0}, 0u) == error::message_size);
  check(error_of(request::get_config, 0, config_access{0, UINT32_MAX, 0}) == error::message_value);
};
BOTH("accesses of the configuration carry as much as they say", config)

constexpr auto in_flight = [](auto check) {
  const in_flight_area area{4096, 64, 3, 256, 0};
  const auto m = made(request::set_in_flight, area).read(1);
  check(m && m->in_flight.size == 4096 && m->in_flight.queues == 3 &&
        m->in_flight.queue_size == 256);
  made shorter(request::get_in_flight, area);
  shorter.end -= 4; // without the padding
  shorter.head({static_cast<std::uint32_t>(request::get_in_flight), message_header::version, 20});
  const auto s = shorter.read();
  check(s && s->in_flight.queue_size == 256 && s->data.size() == 20);
  check(error_of(request::set_in_flight, 0, area) == error::message_files);
  check(error_of(request::get_in_flight, 1, area) == error::message_files);
  check(error_of(request::get_in_flight, 0, std::uint64_t{}) == error::message_size);
};
BOTH("the area of chains in flight, with and without padding", in_flight)

constexpr auto headers = [](auto check) {
  made m(request::set_owner);
  const auto with_flags = [&](std::uint32_t flags) {
    m.head({3, flags, 0});
    return m.read();
  };
  check(with_flags(1 | 8).has_value() && with_flags(1 | 8)->needs_reply);
  check(with_flags(0).error() == error::message_flags);
  check(with_flags(2).error() == error::message_flags);
  check(with_flags(1 | 4).error() == error::message_flags); // a reply
  m.head({3, 1, payload_max + 1});
  check(m.read().error() == error::message_size);
  m.head({3, 1, 4}); // more than is there
  check(m.read().error() == error::message_size);
  check(decode(std::span(m.bytes).first(11), 0, 0).error() == error::message_size);
  check(decode({}, 0, 0).error() == error::message_size);
  for (const std::uint32_t what : {0u, 6u, 7u, 19u, 20u, 22u, 23u, 26u, 33u, 41u, 0xffff'ffffu})
    check(made(static_cast<request>(what)).read().error() == error::message_unknown);
};
BOTH("a version, a size and a request that are known", headers)

constexpr auto negotiated = [](auto check) {
  constexpr request gated[] = {
      request::set_back_end_channel, request::get_config,       request::set_config,
      request::get_in_flight,        request::set_in_flight,    request::reset_device,
      request::notify_queue,         request::get_memory_slots, request::add_memory_region,
      request::remove_memory_region, request::set_status,       request::get_status};
  for (const request what : gated) {
    const std::uint64_t needed = feature_of(what);
    check(needed != 0 && (needed & (needed - 1)) == 0);
    check(made(what).read(0, feature::all & ~needed).error() == error::not_negotiated);
    check(made(what).read(0, needed).error() != error::not_negotiated);
  }
  check(made(request::get_features).read(0, 0).has_value());
};
BOTH("what needs a protocol feature is refused without it", negotiated)

} // namespace
