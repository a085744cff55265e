// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/back_end.hpp>

#include "support/host_memory.hpp"

#include <doctest/doctest.h>
#include <support/vhost_user_front_end.hpp>

#include <ballast/balloon/device.hpp>
#include <ballast/endian.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <span>

namespace {

using namespace ballast;
using ballast_test::front_end;
using ballast_test::request;
namespace vu = ballast::vhost_user;
namespace ring = ballast::feature;

/// Remembers what was discarded.
struct counting_host {
  std::set<guest_address> pages;
  bool discard(guest_address at, std::uint64_t size) noexcept {
    for (std::uint64_t i = 0; i < size; i += balloon::page_size) pages.insert(at + i);
    return true;
  }
  void provide(guest_address at, std::uint64_t size) noexcept {
    for (std::uint64_t i = 0; i < size; i += balloon::page_size) pages.erase(at + i);
  }
};

using device_type = balloon::device<vu::device_memory<256>, counting_host, 256>;
constexpr std::uint16_t inflateq = 0, deflateq = 1, statsq = 2;

/// Both ends in one process.
struct fixture {
  explicit fixture(const feature_set& features = {ring::version_1},
                   std::uint64_t protocol = vu::protocol_feature::all &
                                            ~vu::protocol_feature::in_band,
                   const balloon::device_options& chosen = options())
      : device(host, chosen), end(device, table, {.protocol_features = vu::protocol_feature::all}) {
    guest.features = features.with(balloon::feature::stats_vq);
    guest.protocol = protocol;
    guest.serve = [this] { settle(); };
    connect();
  }

  void connect() { end.connect(guest.connect()); }
  void settle() {
    for (int i = 0; i < 10; ++i)
      if (const auto served = end.run_once(0); !served) closed_for = served.error();
  }
  [[nodiscard]] bool starts() {
    return guest.negotiate() && guest.make_queues() && guest.start() && end.running() == 7;
  }

  /// The driver offers buffers of 2 PFNs, of pages from `first` on.
  void inflate(std::uint32_t first, std::uint64_t token) {
    const guest_address at = front_end::ram_at + 0x20000 + 64 * token;
    const le32 pfns[2] = {le32(first), le32(first + 1)};
    (void)guest.ram().write(at, std::as_bytes(std::span(pfns)));
    const buffer data{at, sizeof(pfns)};
    (void)guest.queues[inflateq]->driver.enable_notifications();
    REQUIRE(guest.queues[inflateq]->driver.add({&data, 1}, {}, token));
    guest.queues[inflateq]->driver.publish();
    guest.queues[inflateq]->notify();
    settle();
  }
  /// The driver leaves its statistics, with that much free memory.
  void leave_statistics(std::uint64_t free) {
    const guest_address at = front_end::ram_at + 0x30000;
    std::array<std::byte, 10> bytes{};
    bytes[0] = std::byte{4};
    for (unsigned i = 0; i < 8; ++i) bytes[2 + i] = static_cast<std::byte>(free >> (8 * i));
    (void)guest.ram().write(at, bytes);
    const buffer data{at, bytes.size()};
    REQUIRE(guest.queues[statsq]->driver.add({&data, 1}, {}, 5));
    guest.queues[statsq]->driver.publish();
    guest.queues[statsq]->notify();
    settle();
  }
  [[nodiscard]] std::uint64_t free_memory() {
    const auto got = device.take_statistics(0);
    return got ? got->value(balloon::statistic_tag::free_memory) : 0;
  }
  [[nodiscard]] bool comes_back(std::uint16_t queue, std::uint64_t token) {
    const auto used = guest.queues[queue]->driver.pop_used();
    return used && used->token == token;
  }

  static balloon::device_options options() {
    balloon::device_options o;
    o.offered = {balloon::feature::stats_vq, ring::event_idx, ring::ring_packed, ring::in_order,
                 ring::indirect_desc};
    return o;
  }

  vu::memory_table table;
  counting_host host;
  device_type device;
  vu::back_end<device_type> end;
  front_end guest;
  error closed_for = error::none;
};

constexpr std::array formats = {feature_set{ring::version_1},
                                feature_set{ring::version_1, ring::event_idx},
                                feature_set{ring::version_1, ring::ring_packed},
                                feature_set{ring::version_1, ring::ring_packed, ring::event_idx}};
constexpr guest_address page(std::uint32_t pfn) { return std::uint64_t{pfn} * 4096; }
constexpr std::uint32_t first_pfn = front_end::ram_at / 4096 + 64;

TEST_CASE("what is offered: the device's features, but for those that nobody carries out") {
  fixture f;
  const std::uint64_t offered = f.guest.ask_number(request::get_features);
  CHECK((offered & vu::has_protocol_features) != 0);
  CHECK((offered >> ring::ring_packed & 1) == 1);
  CHECK((offered >> ring::event_idx & 1) == 1);
  CHECK((offered >> balloon::feature::stats_vq & 1) == 1);
  CHECK((offered >> ring::in_order & 1) == 0); // not with a log of chains in flight
  CHECK(f.guest.ask_number(request::get_protocol_features) == vu::protocol_feature::all);
  CHECK(f.guest.ask_number(request::get_queue_count) == 3);
}

TEST_CASE("a driver that notifies nobody is served once all its queues are enabled") {
  for (const feature_set& features : formats) {
    fixture f(features);
    REQUIRE(f.guest.negotiate());
    REQUIRE(f.guest.make_queues());
    for (const std::uint16_t i : {inflateq, deflateq, statsq}) REQUIRE(f.guest.set_up(i));
    for (const std::uint16_t i : {inflateq, deflateq}) {
      REQUIRE(f.guest.begin(i));
      CHECK(f.end.running() == 0);
    }
    REQUIRE(f.guest.begin(statsq));
    CHECK(f.end.running() == 7);
    CHECK(f.end.activations() == 1);
    CHECK(f.device.negotiated_features() == f.guest.features);
  }
}

TEST_CASE("the first notification begins what can begin, the rest follows") {
  fixture f;
  REQUIRE(f.guest.negotiate());
  REQUIRE(f.guest.make_queues());
  for (const std::uint16_t i : {inflateq, deflateq, statsq}) REQUIRE(f.guest.set_up(i));
  f.guest.queues[inflateq]->notify();
  f.settle();
  CHECK(f.end.running() == 0); // nobody has its file yet
  REQUIRE(f.guest.begin(inflateq));
  f.settle();
  CHECK(f.end.running() == 1);
  f.inflate(first_pfn, 1);
  CHECK(f.host.pages == std::set{page(first_pfn), page(first_pfn + 1)});
  REQUIRE(f.guest.begin(deflateq));
  CHECK(f.end.running() == 3);
  REQUIRE(f.guest.begin(statsq));
  f.leave_statistics(77);
  CHECK(f.free_memory() == 77);
  CHECK(f.end.activations() == 1);
}

TEST_CASE("without bit 30 nothing is enabled: files for all notifications, or a notification") {
  for (const bool is_notified : {false, true}) {
    fixture f;
    f.guest.has_enabling = false;
    REQUIRE(f.guest.negotiate());
    REQUIRE(f.guest.make_queues());
    for (const std::uint16_t i : {inflateq, deflateq, statsq}) REQUIRE(f.guest.set_up(i));
    if (is_notified) {
      f.guest.queues[deflateq]->notify();
      REQUIRE(f.guest.begin(deflateq));
      f.settle();
      CHECK(f.end.running() == 2);
    }
    for (const std::uint16_t i : {inflateq, deflateq, statsq}) REQUIRE(f.guest.begin(i));
    CHECK(f.end.running() == 7);
  }
}

TEST_CASE("pages are discarded, buffers come back, the driver is notified" *
          doctest::skip(ballast_test::is_emulated())) {
  for (const feature_set& features : formats) {
    fixture f(features);
    REQUIRE(f.starts());
    for (std::uint32_t n = 0; n < 40; ++n) { // more than a round
      f.inflate(first_pfn + 2 * n, n);
      CHECK(f.comes_back(inflateq, n));
      CHECK(f.guest.queues[inflateq]->take_notifications() == 1);
    }
    CHECK(f.host.pages.size() == 80);
    CHECK(f.end.failure() == error::none);
  }
}

TEST_CASE("the configuration is read and written; beyond its end is an error, and no more") {
  fixture f;
  REQUIRE(f.starts());
  (void)f.device.set_target(1234);
  const auto got = f.guest.ask(request::get_config, vu::config_access{0, 8, 0}, std::uint64_t{0});
  CHECK(got.payload.size() == 20);
  std::uint32_t pages = 0;
  std::memcpy(&pages, got.payload.data() + sizeof(vu::config_access), 4);
  CHECK(to_order<std::endian::little>(pages) == 1234);
  CHECK(f.guest.works(request::set_config, vu::config_access{4, 4, 0}, le32(55)));
  CHECK(f.device.actual() == 55);
  CHECK(f.guest.ask(request::get_config, vu::config_access{200, 8, 0}, std::uint64_t{0})
            .payload.empty());
  CHECK(!f.guest.works(request::set_config, vu::config_access{200, 4, 0}, le32(55)));
  f.guest.send(request::set_config, 0, {}, vu::config_access{200, 4, 0}, le32(55));
  CHECK(f.end.is_connected());
}

TEST_CASE("a pipe is told of a configuration change by one message, of used buffers by 8 bytes") {
  fixture f;
  REQUIRE(f.guest.negotiate());
  REQUIRE(f.guest.make_queues());
  int channel[2], used[2];
  REQUIRE(pipe2(channel, O_NONBLOCK | O_CLOEXEC) == 0);
  REQUIRE(pipe2(used, O_NONBLOCK | O_CLOEXEC) == 0);
  const vu::file channel_out(channel[0]), channel_in(channel[1]), out(used[0]), in(used[1]);
  REQUIRE(f.guest.acknowledged(request::set_back_end_channel, {channel[1]}) == 0);
  REQUIRE(f.guest.start());
  REQUIRE(f.guest.acknowledged(request::set_used_file, {used[1]}, std::uint64_t{inflateq}) == 0);
  f.end.perform(f.device.set_target(9));
  std::array<std::byte, 64> bytes{};
  CHECK(read(channel[0], bytes.data(), bytes.size()) == 12);
  const auto told = vu::read_as<vu::message_header>(bytes, 0);
  CHECK(told.request == 2);
  CHECK(told.flags == vu::message_header::version); // nobody replies there
  CHECK(told.size == 0);
  CHECK(f.end.counters().config_changes == 1);
  f.inflate(first_pfn, 1);
  CHECK(read(used[0], bytes.data(), bytes.size()) == 8);

  // A pipe that is full: the change is told as soon as there is room.
  const std::array<std::byte, 4096> filling{};
  while (write(channel[1], filling.data(), filling.size()) > 0) {
  }
  f.end.perform(f.device.set_target(10));
  CHECK(f.end.counters().config_changes == 1);
  CHECK(f.end.has_work());
  std::array<std::byte, 65536> drain{};
  CHECK(read(channel[0], drain.data(), drain.size()) > 0);
  f.settle();
  CHECK(f.end.counters().config_changes == 2);
  CHECK(!f.end.has_work());
}

TEST_CASE("notifications in-band: messages in both directions, and files where there are some") {
  fixture f({ring::version_1}, vu::protocol_feature::all);
  int channel[2];
  REQUIRE(pipe2(channel, O_NONBLOCK | O_CLOEXEC) == 0);
  const vu::file out(channel[0]), in(channel[1]);
  REQUIRE(f.guest.negotiate());
  REQUIRE(f.guest.acknowledged(request::set_back_end_channel, {channel[1]}) == 0);
  REQUIRE(f.guest.make_queues());
  for (const std::uint16_t i : {inflateq, deflateq, statsq}) {
    REQUIRE(f.guest.set_up(i));
    REQUIRE(f.guest.acknowledged(request::set_used_file, {}, i | vu::no_file) == 0);
  }
  for (const std::uint32_t i : {0u, 1u, 2u})
    REQUIRE(f.guest.works(request::enable_queue, vu::queue_value{i, 1}));
  CHECK(f.end.running() == 7);
  f.inflate(first_pfn, 1); // notifies a file that nobody has
  CHECK(!f.comes_back(inflateq, 1));
  CHECK(f.guest.works(request::notify_queue, vu::queue_value{inflateq, 0}));
  CHECK(f.comes_back(inflateq, 1));
  std::array<std::byte, 64> bytes{};
  CHECK(read(channel[0], bytes.data(), bytes.size()) == 20);
  CHECK(vu::read_as<vu::message_header>(bytes, 0).request == 4);
  CHECK(vu::read_as<vu::queue_value>(bytes, 12).queue == inflateq);
}

TEST_CASE("in-band needs acknowledgements and a channel, or the connection closes") {
  fixture f;
  f.guest.send(request::set_protocol_features, 0, {}, vu::protocol_feature::in_band);
  CHECK(f.closed_for == error::feature_dependency);
  CHECK(f.guest.is_closed());
}

TEST_CASE("a queue stops before the chain it holds, and goes on with it") {
  for (const feature_set& features : formats) {
    fixture f(features);
    REQUIRE(f.starts());
    f.leave_statistics(11);
    CHECK(f.free_memory() == 11);
    f.end.perform(f.device.request_statistics());
    CHECK(f.comes_back(statsq, 5));
    f.leave_statistics(12); // held now, behind one that came back
    f.inflate(first_pfn, 1);
    CHECK(f.comes_back(inflateq, 1));
    std::array<std::uint32_t, 3> bases{};
    for (const std::uint32_t i : {0u, 1u, 2u})
      bases[i] =
          f.guest.ask(request::get_queue_base, vu::queue_value{i, 0}).as<vu::queue_value>().value;
    const bool is_packed = features.test(ring::ring_packed);
    const std::uint32_t one = is_packed ? 0x8001'8001 : 1;
    CHECK(bases == std::array<std::uint32_t, 3>{one, is_packed ? 0x8000'8000 : 0, one});
    CHECK(f.end.running() == 0);
    f.inflate(first_pfn + 2, 2);
    CHECK(!f.comes_back(inflateq, 2));
    (void)f.device.set_target(3);

    REQUIRE(f.guest.start(bases));
    f.settle();
    CHECK(f.end.running() == 7);
    CHECK(f.comes_back(inflateq, 2));
    CHECK(!f.comes_back(statsq, 5));
    CHECK(f.free_memory() == 12);
    f.end.perform(f.device.request_statistics());
    CHECK(f.comes_back(statsq, 5));
    CHECK(!f.comes_back(statsq, 5));
    CHECK(f.device.target() == 3);
  }
}

TEST_CASE("one queue stops and goes on while the others work") {
  for (const feature_set& features : formats) {
    fixture f(features);
    REQUIRE(f.starts());
    for (std::uint32_t n = 0; n < 5; ++n) {
      f.inflate(first_pfn + 2 * n, n);
      CHECK(f.comes_back(inflateq, n));
    }
    f.leave_statistics(1);
    const auto base = f.guest.ask(request::get_queue_base, vu::queue_value{inflateq, 0})
                          .as<vu::queue_value>()
                          .value;
    CHECK(f.end.running() == 6);
    f.end.perform(f.device.request_statistics());
    CHECK(f.comes_back(statsq, 5));
    REQUIRE(f.guest.set_up(inflateq, base));
    REQUIRE(f.guest.begin(inflateq));
    CHECK(f.end.running() == 7);
    f.inflate(first_pfn + 20, 6);
    CHECK(f.comes_back(inflateq, 6));
    f.leave_statistics(2);
    f.end.perform(f.device.request_statistics());
    CHECK(f.comes_back(statsq, 5));
    CHECK(f.end.activations() == 1);
  }
}

TEST_CASE("a queue may be told again where it is, and move, while the device runs") {
  for (const feature_set& features : formats) {
    fixture f(features);
    REQUIRE(f.starts());
    for (std::uint32_t n = 0; n < 20; ++n) {
      f.inflate(first_pfn, n);
      CHECK(f.comes_back(inflateq, n));
    }
    f.leave_statistics(1);
    const queue_layout at = f.guest.queues[statsq]->layout;
    vu::queue_addresses to{statsq,
                           0,
                           front_end::user_of(at.descriptor_area),
                           front_end::user_of(at.device_area),
                           front_end::user_of(at.driver_area),
                           0};
    REQUIRE(f.guest.works(request::set_queue_addresses, to));
    CHECK(f.end.running() == 7);
    // The same ring, by another address.
    constexpr std::uint64_t other = 0x6000'0000'0000;
    REQUIRE(f.guest.acknowledged(request::set_memory_table,
                                 {f.guest.ram_file().get(), f.guest.ram_file().get()},
                                 std::uint32_t{2}, std::uint32_t{0},
                                 vu::region_description{front_end::ram_at, front_end::ram_bytes,
                                                        front_end::user_at, 0},
                                 vu::region_description{front_end::ram_at + 0x1000'0000,
                                                        front_end::ram_bytes, other, 0}) == 0);
    for (std::uint64_t* const part : {&to.descriptor_area, &to.device_area, &to.driver_area})
      *part += other - front_end::user_at;
    REQUIRE(f.guest.works(request::set_queue_addresses, to));
    CHECK(f.end.running() == 7);
    CHECK(!f.comes_back(statsq, 5));
    f.end.perform(f.device.request_statistics());
    CHECK(f.comes_back(statsq, 5));
    f.inflate(first_pfn, 1);
    CHECK(f.comes_back(inflateq, 1));
  }
}

TEST_CASE("disabled queues are not looked at, and nothing is lost") {
  fixture f;
  REQUIRE(f.starts());
  f.leave_statistics(1);
  for (const std::uint32_t i : {0u, 1u, 2u})
    REQUIRE(f.guest.works(request::enable_queue, vu::queue_value{i, 0}));
  CHECK(f.end.running() == 0);
  f.inflate(first_pfn, 1);
  CHECK(!f.comes_back(inflateq, 1));
  CHECK(f.device.request_statistics().failure == error::not_attached);
  REQUIRE(f.guest.works(request::enable_queue, vu::queue_value{inflateq, 1}));
  f.settle();
  CHECK(f.comes_back(inflateq, 1));
  CHECK(f.end.running() == 1);
}

TEST_CASE("the memory changes while the device runs: it holds what it held") {
  for (const feature_set& features : formats) {
    fixture f(features);
    REQUIRE(f.starts());
    f.leave_statistics(5);
    f.inflate(first_pfn, 1);
    const auto generation = f.table.generation();
    const vu::file more(memfd_create("more", MFD_CLOEXEC));
    REQUIRE(ftruncate(more.get(), 8192) == 0);
    const std::byte* const before = f.table.find(front_end::ram_at)->data();
    REQUIRE(f.guest.acknowledged(request::set_memory_table, {more.get(), f.guest.ram_file().get()},
                                 std::uint32_t{2}, std::uint32_t{0},
                                 vu::region_description{0x8000'0000, 4096, 0x1000, 4096},
                                 vu::region_description{front_end::ram_at, front_end::ram_bytes,
                                                        front_end::user_at, 0}) == 0);
    CHECK(f.table.generation() != generation);
    CHECK(f.table.regions().size() == 2);
    CHECK(f.table.regions()[0].address == front_end::ram_at); // in order
    CHECK(f.table.find(front_end::ram_at)->data() != before);
    CHECK(f.table.find(0x8000'0fff)->offset_of(0x8000'0fff) == 8191);
    CHECK(f.comes_back(inflateq, 1));
    f.inflate(first_pfn + 2, 2);
    CHECK(f.comes_back(inflateq, 2));
    f.end.perform(f.device.request_statistics());
    CHECK(f.comes_back(statsq, 5));
  }
}

TEST_CASE("memory without the rings: the driver is gone, another one is served") {
  fixture f;
  REQUIRE(f.starts());
  // The rings' addresses are those of a region that is not there any more.
  CHECK(f.guest.acknowledged(request::set_memory_table, {f.guest.ram_file().get()},
                             std::uint32_t{1}, std::uint32_t{0},
                             vu::region_description{0, 4096, 0x1000, 0}) == 1);
  CHECK(f.end.running() == 0);
  f.connect();
  REQUIRE(f.starts());
  f.inflate(first_pfn, 1);
  CHECK(f.comes_back(inflateq, 1));
}

TEST_CASE("regions are added and removed one by one while the device runs") {
  fixture f;
  REQUIRE(f.starts());
  CHECK(f.guest.ask_number(request::get_memory_slots) == vu::memory_slots_max);
  const vu::file more(memfd_create("more", MFD_CLOEXEC));
  REQUIRE(ftruncate(more.get(), 8192) == 0);
  const vu::region_description second{0x8000'0000, 8192, 0x5000'0000, 0};
  REQUIRE(f.guest.acknowledged(request::add_memory_region, {more.get()}, std::uint64_t{0},
                               second) == 0);
  CHECK(f.table.regions().size() == 2);
  CHECK(f.guest.acknowledged(request::add_memory_region, {more.get()}, std::uint64_t{0}, second) ==
        1); // it is there
  f.inflate(first_pfn, 1);
  CHECK(f.comes_back(inflateq, 1));
  REQUIRE(f.guest.acknowledged(request::remove_memory_region, {}, std::uint64_t{0}, second) == 0);
  CHECK(f.guest.acknowledged(request::remove_memory_region, {more.get()}, std::uint64_t{0},
                             second) == 1);
  CHECK(f.table.regions().size() == 1);
  f.inflate(first_pfn + 2, 2);
  CHECK(f.comes_back(inflateq, 2));
}

TEST_CASE("a reset by message or by status: the next driver begins anew, the target stays") {
  for (const bool is_status : {false, true}) {
    fixture f;
    (void)f.device.set_target(42);
    REQUIRE(f.guest.negotiate());
    (void)f.guest.ask(request::get_in_flight, vu::in_flight_area{0, 0, 3, 16, 0});
    REQUIRE(f.starts());
    f.leave_statistics(1);
    f.inflate(first_pfn, 1);
    if (is_status) {
      CHECK(f.guest.works(request::set_status, std::uint64_t{15}));
      CHECK(f.guest.ask_number(request::get_status) == 15);
      CHECK(f.guest.works(request::set_status, std::uint64_t{0}));
      CHECK(f.guest.ask_number(request::get_status) == 0);
    } else {
      CHECK(f.guest.works(request::reset_device));
    }
    CHECK(f.end.running() == 0);
    REQUIRE(f.starts());
    f.inflate(first_pfn, 1);
    CHECK(f.comes_back(inflateq, 1));
    CHECK(f.end.activations() == 2);
    CHECK(f.device.target() == 42);
  }
}

TEST_CASE("a device that broke says so in its status and by the error notification") {
  fixture f;
  REQUIRE(f.starts());
  const vu::file failed(eventfd(0, EFD_NONBLOCK));
  REQUIRE(f.guest.acknowledged(request::set_error_file, {failed.get()}, std::uint64_t{inflateq}) ==
          0);
  const auto index =
      *f.guest.ram().window(f.guest.queues[inflateq]->layout.driver_area, 4, 2, access::write);
  auto w = index;
  w.store<std::uint16_t>(split::available_index, 1000, order::release);
  f.guest.queues[inflateq]->notify();
  f.settle();
  CHECK(f.end.failure() == error::available_index_jump);
  CHECK((f.guest.ask_number(request::get_status) & 64) != 0);
  std::uint64_t count = 0;
  CHECK(read(failed.get(), &count, sizeof(count)) == 8);
  CHECK(f.end.is_connected());
}

TEST_CASE("a front end that comes back with the chains in flight: each returns once" *
          doctest::skip(ballast_test::is_emulated())) {
  for (const feature_set& features : formats) {
    fixture f(features);
    REQUIRE(f.guest.negotiate());
    REQUIRE(f.guest.make_queues());
    auto shared = f.guest.ask(request::get_in_flight, vu::in_flight_area{0, 0, 3, 16, 0});
    const auto area = shared.as<vu::in_flight_area>();
    REQUIRE(shared.descriptor.is_open());
    CHECK(area.size == 3 * vu::in_flight::region_bytes(16, features.test(ring::ring_packed)));
    REQUIRE(f.guest.acknowledged(request::set_in_flight, {shared.descriptor.get()}, area) == 0);
    REQUIRE(f.guest.start());
    for (std::uint32_t n = 0; n < 20; ++n) f.inflate(first_pfn, n), (void)f.comes_back(inflateq, n);
    f.leave_statistics(3);
    f.guest.close();
    f.settle();
    CHECK(f.closed_for == error::connection_closed);
    CHECK(f.end.running() == 0);
    f.connect();
    REQUIRE(f.guest.negotiate());
    REQUIRE(f.guest.acknowledged(request::set_in_flight, {shared.descriptor.get()}, area) == 0);
    const bool is_packed = features.test(ring::ring_packed);
    (void)f.guest.queues[inflateq]->take_notifications();
    REQUIRE(f.guest.start({is_packed ? 0u : 20u, 0, 0}));
    CHECK(f.end.running() == 7);
    // What was returned last may not have been notified.
    CHECK(f.guest.queues[inflateq]->take_notifications() == 1);
    f.inflate(first_pfn, 7);
    CHECK(f.comes_back(inflateq, 7));
    f.end.perform(f.device.request_statistics());
    CHECK(f.comes_back(statsq, 5));
    CHECK(!f.comes_back(statsq, 5));
    CHECK(f.end.failure() == error::none);
  }
}

/// A driver whose free pages hold a poison, and which reports them.
struct poison_fixture : fixture {
  poison_fixture()
      : fixture({}, vu::protocol_feature::all & ~vu::protocol_feature::in_band,
                {.offered = offered}) {
    guest.features = offered.with(ring::version_1);
  }
  static constexpr feature_set offered{balloon::feature::page_poison,
                                       balloon::feature::page_reporting};
  static constexpr std::uint16_t reporting_vq = 2; // there is no statsq

  [[nodiscard]] bool poison(std::uint32_t value) {
    return guest.works(request::set_config, vu::config_access{12, 4, 0}, le32(value));
  }
  void report(std::uint64_t token) {
    const buffer data{front_end::ram_at + 0x40000, 4096};
    REQUIRE(guest.queues[reporting_vq]->driver.add({}, {&data, 1}, token));
    guest.queues[reporting_vq]->driver.publish();
    guest.queues[reporting_vq]->notify();
    settle();
    CHECK(comes_back(reporting_vq, token));
  }
};

TEST_CASE(
    "BDEV-14: the poison is written before the queues begin, and outlives the reset of that") {
  poison_fixture f;
  REQUIRE(f.guest.negotiate());
  REQUIRE(f.poison(0xaaaa'aaaa));
  REQUIRE(f.guest.make_queues());
  REQUIRE(f.guest.start());
  REQUIRE(f.end.running() == 7);
  CHECK(f.device.poison() == 0xaaaa'aaaa);
  f.report(1);
  CHECK(f.host.pages.empty());
  CHECK(f.device.counters().poisoned_ranges == 1);
  REQUIRE(f.poison(0)); // too late
  CHECK(f.device.poison() == 0xaaaa'aaaa);

  // The guest reboots; its next driver has another poison, or none.
  for (const std::uint32_t next : {0x5555'5555u, 0u}) {
    for (const std::uint32_t i : {0u, 1u, 2u})
      REQUIRE(f.guest.ask(request::get_queue_base, vu::queue_value{i, 0}).is_there);
    REQUIRE(f.poison(next));
    REQUIRE(f.guest.make_queues());
    REQUIRE(f.guest.start());
    REQUIRE(f.end.running() == 7);
    CHECK(f.device.poison() == next);
    f.report(2);
    CHECK(f.host.pages.size() == (next == 0 ? 1 : 0));
  }
}

TEST_CASE("queues that are polled go on after GET_FEATURES: nobody would notify them") {
  fixture f;
  f.guest.has_enabling = false;
  REQUIRE(f.guest.negotiate());
  REQUIRE(f.guest.make_queues());
  for (const std::uint16_t i : {inflateq, deflateq, statsq}) {
    REQUIRE(f.guest.set_up(i));
    REQUIRE(f.guest.acknowledged(request::set_available_file, {}, i | vu::no_file) == 0);
  }
  CHECK(f.end.running() == 7);
  f.inflate(first_pfn, 1);
  CHECK(f.comes_back(inflateq, 1));
  CHECK(f.guest.ask_number(request::get_features) != 0);
  f.inflate(first_pfn + 2, 2);
  CHECK(f.comes_back(inflateq, 2));
  CHECK(f.host.pages.size() == 4);
}

} // namespace
