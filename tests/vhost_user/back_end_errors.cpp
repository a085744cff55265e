// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/back_end.hpp>

#include <doctest/doctest.h>
#include <support/vhost_user_front_end.hpp>

#include <ballast/balloon/device.hpp>
#include <ballast/endian.hpp>

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

// What a front end may do wrong, in its messages and behind them: it ends its connection at most.
namespace {

using namespace ballast;
using ballast_test::front_end;
using ballast_test::request;
namespace vu = ballast::vhost_user;

struct host {
  bool discard(guest_address, std::uint64_t) noexcept { return true; }
};
using device_type = balloon::device<vu::device_memory<64>, host, 64>;

struct fixture {
  explicit fixture(const balloon::device_options& chosen = options()) : device(back, chosen) {
    guest.features = {feature::version_1, balloon::feature::stats_vq};
    guest.protocol = vu::protocol_feature::all;
    guest.serve = [this] { settle(); };
    connect();
  }
  void connect() { end.connect(guest.connect()); }
  void settle() {
    for (int i = 0; i < 8; ++i)
      if (const auto served = end.run_once(0); !served) closed_for = served.error();
  }
  /// Whether the next front end gets what it wants.
  [[nodiscard]] bool serves_the_next() {
    connect();
    if (!guest.negotiate() || !guest.make_queues() || !guest.start()) return false;
    const buffer data{front_end::ram_at + 0x20000, 4};
    if (!guest.queues[0]->driver.add({&data, 1}, {}, 9)) return false;
    guest.queues[0]->driver.publish();
    guest.queues[0]->notify();
    settle();
    const auto used = guest.queues[0]->driver.pop_used();
    return used && used->token == 9 && device.target() == 77;
  }

  static balloon::device_options options() {
    return {.offered = {balloon::feature::stats_vq, feature::ring_packed}};
  }

  vu::memory_table table;
  host back;
  device_type device;
  vu::back_end<device_type, 64, 4> end{
      device, table, {.protocol_features = vu::protocol_feature::all}};
  front_end guest;
  error closed_for = error::none;
};

struct malformed {
  std::uint32_t what;
  std::uint32_t flags;
  std::uint32_t said; ///< bytes of payload
  std::uint32_t sent;
  int files;
  error why;
};
constexpr std::uint32_t v = vu::message_header::version;
constexpr malformed malformed_ones[] = {
    {0, v, 0, 0, 0, error::message_unknown},        {6, v, 8, 8, 0, error::message_unknown},
    {99, v, 0, 0, 0, error::message_unknown},       {3, 0, 0, 0, 0, error::message_flags},
    {3, 2, 0, 0, 0, error::message_flags},          {3, v | 4, 0, 0, 0, error::message_flags},
    {3, v, 4, 4, 0, error::message_size},           {2, v, 4, 4, 0, error::message_size},
    {5, v, 0, 0, 0, error::message_size},           {8, v, 12, 12, 0, error::message_size},
    {9, v, 8, 8, 0, error::message_size},           {37, v, 32, 32, 1, error::message_size},
    {3, v, 0xffff'ffff, 0, 0, error::message_size}, {12, v, 8, 8, 0, error::message_files},
    {3, v, 0, 0, 2, error::message_files},          {21, v, 0, 0, 0, error::message_files},
    {32, v, 24, 24, 0, error::message_files},       {37, v, 40, 40, 1, error::message_value},
};

TEST_CASE("a malformed message closes its connection; the next front end is served") {
  for (const malformed& m : malformed_ones)
    for (const bool wants_reply : {false, true}) {
      INFO("request ", m.what, ", ", name(m.why));
      fixture f;
      (void)f.device.set_target(77);
      REQUIRE(f.guest.negotiate());
      std::array<std::byte, 64> bytes{};
      vu::write_as(bytes, 0, vu::message_header{m.what, m.flags | (wants_reply ? 8u : 0u), m.said});
      const int some = f.guest.ram_file().get();
      const auto message = std::span(bytes).first(12 + m.sent);
      if (m.files == 0) f.guest.send_bytes(message);
      if (m.files == 1) f.guest.send_bytes(message, {some});
      if (m.files == 2) f.guest.send_bytes(message, {some, some});
      CHECK(f.closed_for == m.why);
      CHECK(!f.end.is_connected());
      CHECK(f.end.counters().malformed == 1);
      // Whoever waits for a reply gets an error.
      const auto got = f.guest.receive(0);
      CHECK(got.is_there == wants_reply);
      if (got.is_there) {
        CHECK(got.head.request == m.what);
        CHECK(got.head.flags == (v | 4));
        CHECK(got.as<std::uint64_t>() != 0);
      }
      CHECK(f.guest.is_closed());
      CHECK(f.serves_the_next());
    }
}

TEST_CASE("malformed requests that have an answer of their own get one that says so") {
  fixture f;
  (void)f.device.set_target(77);
  REQUIRE(f.guest.negotiate());
  f.guest.send(request::get_config, 0, {}, vu::config_access{0, 1000, 0});
  auto got = f.guest.receive(0);
  CHECK(got.is_there);
  CHECK(got.payload.empty());
  CHECK(f.closed_for == error::message_value);
  f.connect();
  REQUIRE(f.guest.negotiate());
  f.guest.send(request::get_in_flight, 0, {}, std::uint64_t{0});
  got = f.guest.receive(0);
  CHECK(got.as<vu::in_flight_area>().size == 0);
  CHECK(f.closed_for == error::message_size);
  CHECK(f.serves_the_next());
}

TEST_CASE("before protocol features nothing that needs them is a message") {
  fixture f;
  f.guest.send(request::get_config, 0, {}, vu::config_access{0, 4, 0});
  CHECK(f.closed_for == error::not_negotiated);
}

TEST_CASE("a connection that ends in the middle of a message") {
  fixture f;
  (void)f.device.set_target(77);
  std::array<std::byte, 14> bytes{};
  vu::write_as(bytes, 0, vu::message_header{2, 1, 8});
  f.guest.send_bytes(bytes);
  CHECK(f.end.is_connected());
  f.guest.close();
  f.settle();
  CHECK(f.closed_for == error::connection_closed);
  CHECK(f.serves_the_next());
}

/// Sends a request that cannot be carried out: an error for who waits, the end for who does not.
template <class... Parts>
void check_refused(void (*prepare)(fixture&), error why, request what,
                   std::initializer_list<int> files, const Parts&... parts) {
  INFO("request ", static_cast<unsigned>(what), ", ", name(why));
  {
    fixture f;
    REQUIRE(f.guest.negotiate());
    if (prepare != nullptr) prepare(f);
    CHECK(f.guest.acknowledged(what, files, parts...) == 1);
    CHECK(f.end.is_connected());
    CHECK(f.end.counters().refused == 1);
    CHECK(f.end.counters().malformed == 0);
  }
  fixture f;
  (void)f.device.set_target(77);
  REQUIRE(f.guest.negotiate());
  if (prepare != nullptr) prepare(f);
  f.guest.send(what, 0, files, parts...);
  CHECK(f.closed_for == why);
  CHECK(f.serves_the_next());
}

void run_all(fixture& f) {
  REQUIRE(f.guest.make_queues());
  REQUIRE(f.guest.start());
  REQUIRE(f.end.running() == 7);
}

TEST_CASE("what is understood and cannot be carried out") {
  const vu::file some(memfd_create("some", MFD_CLOEXEC));
  REQUIRE(ftruncate(some.get(), 8192) == 0);
  const vu::file notification(eventfd(0, 0));
  const auto value = [](std::uint32_t queue, std::uint32_t to) {
    return vu::queue_value{queue, to};
  };

  // Queues.
  constexpr error size = error::invalid_queue_size, index = error::invalid_queue_index;
  check_refused(nullptr, size, request::set_queue_size, {}, value(0, 0));
  check_refused(nullptr, size, request::set_queue_size, {}, value(0, 65));
  check_refused(nullptr, size, request::set_queue_size, {}, value(0, 0x8000'0000));
  for (const std::uint32_t queue : {3u, 4u, 64u, 0xffff'ffffu}) {
    check_refused(nullptr, index, request::set_queue_size, {}, value(queue, 16));
    check_refused(nullptr, index, request::enable_queue, {}, value(queue, 1));
    check_refused(nullptr, index, request::notify_queue, {}, value(queue, 0));
  }
  check_refused(nullptr, index, request::set_available_file, {notification.get()},
                std::uint64_t{255});

  // Features.
  check_refused(nullptr, error::feature_not_offered, request::set_features, {},
                std::uint64_t{1} << 60);
  check_refused(nullptr, error::feature_dependency, request::set_features, {},
                std::uint64_t{1} << feature::ring_packed);
  check_refused(nullptr, error::feature_not_offered, request::set_protocol_features, {},
                vu::protocol_feature::all | 2);
  check_refused(nullptr, error::message_value, request::set_status, {}, std::uint64_t{256});

  // Memory.
  check_refused(run_all, error::file_too_small, request::add_memory_region, {some.get()},
                std::uint64_t{0}, vu::region_description{0x8000'0000, 8193, 0, 0});
  check_refused(run_all, error::regions_overlap, request::add_memory_region, {some.get()},
                std::uint64_t{0}, vu::region_description{front_end::ram_at, 8192, 0, 0});
  check_refused(run_all, error::region_unknown, request::remove_memory_region, {}, std::uint64_t{0},
                vu::region_description{0x8000'0000, 4096, 0, 0});
  check_refused(run_all, error::region_misplaced, request::set_memory_table, {some.get()},
                std::uint32_t{1}, std::uint32_t{0},
                vu::region_description{0x8000'0001, 4096, 0, 0});

  // Chains in flight.
  constexpr error invalid = error::in_flight_invalid;
  check_refused(nullptr, invalid, request::set_in_flight, {some.get()},
                vu::in_flight_area{8192, 0, 5, 64, 0});
  check_refused(nullptr, invalid, request::set_in_flight, {some.get()},
                vu::in_flight_area{8192, 0, 3, 65, 0});
  check_refused(nullptr, invalid, request::set_in_flight, {some.get()},
                vu::in_flight_area{8192, 1, 3, 16, 0});
  check_refused(nullptr, invalid, request::set_in_flight, {some.get()},
                vu::in_flight_area{UINT64_MAX, 64, 3, 16, 0});
  check_refused(nullptr, error::file_too_small, request::set_in_flight, {some.get()},
                vu::in_flight_area{8192, 64, 3, 16, 0});
  check_refused(run_all, error::wrong_state, request::set_in_flight, {some.get()},
                vu::in_flight_area{8192, 0, 3, 16, 0});
}

TEST_CASE("no area of chains in flight for more queues than there are, or running ones") {
  fixture f;
  REQUIRE(f.guest.negotiate());
  for (const vu::in_flight_area& area :
       {vu::in_flight_area{0, 0, 0, 16, 0}, vu::in_flight_area{0, 0, 5, 16, 0},
        vu::in_flight_area{0, 0, 3, 0, 0}, vu::in_flight_area{0, 0, 3, 65, 0}}) {
    const auto got = f.guest.ask(request::get_in_flight, area);
    CHECK(got.as<vu::in_flight_area>().size == 0);
    CHECK(!got.descriptor.is_open());
  }
  run_all(f);
  CHECK(f.guest.ask(request::get_in_flight, vu::in_flight_area{0, 0, 3, 16, 0})
            .as<vu::in_flight_area>()
            .size == 0);
  CHECK(f.end.is_connected());
}

TEST_CASE("an area of chains in flight that was scribbled over: an error, not a wild goose") {
  fixture f;
  (void)f.device.set_target(77);
  REQUIRE(f.guest.negotiate());
  REQUIRE(f.guest.make_queues());
  const vu::file area(memfd_create("area", MFD_CLOEXEC));
  REQUIRE(ftruncate(area.get(), 8192) == 0);
  const std::uint16_t version = 1;
  REQUIRE(pwrite(area.get(), &version, 2, 8) == 2); // of no entries
  REQUIRE(f.guest.acknowledged(request::set_in_flight, {area.get()},
                               vu::in_flight_area{8192, 0, 3, 16, 0}) == 0);
  CHECK(!f.guest.start());
  CHECK(f.end.running() == 0);
  f.guest.queues[0]->notify();
  f.settle();
  CHECK(f.closed_for == error::in_flight_invalid);
  CHECK(f.serves_the_next());
}

TEST_CASE("a notification of a queue that lies nowhere closes the connection") {
  fixture f;
  (void)f.device.set_target(77);
  REQUIRE(f.guest.negotiate());
  REQUIRE(f.guest.make_queues());
  for (std::uint16_t i = 0; i < 3; ++i) REQUIRE(f.guest.set_up(i));
  REQUIRE(f.guest.works(request::set_queue_addresses, vu::queue_addresses{0, 0, 16, 16, 16, 0}));
  REQUIRE(f.guest.begin(0));
  f.guest.queues[0]->notify();
  f.settle();
  CHECK(f.closed_for == error::not_guest_memory);
  CHECK(f.serves_the_next());
}

TEST_CASE("a file for notifications that is none, or whose other end went") {
  fixture f;
  (void)f.device.set_target(77);
  REQUIRE(f.guest.negotiate());
  run_all(f);
  int ends[2] = {-1, -1};
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  {
    const vu::file out(ends[0]), in(ends[1]);
    REQUIRE(f.guest.acknowledged(request::set_available_file, {out.get()}, std::uint64_t{1}) == 0);
  }
  f.settle(); // it hangs up
  std::array<pollfd, decltype(f.end)::watched_max> polled{};
  CHECK(f.end.watch(polled) == 3); // and is not waited for any more
  // Regular files are always ready; they end.
  const vu::file regular(memfd_create("regular", MFD_CLOEXEC));
  REQUIRE(f.guest.acknowledged(request::set_available_file, {regular.get()}, std::uint64_t{1}) ==
          0);
  f.settle();
  CHECK(f.end.watch(polled) == 3);
  CHECK(f.end.is_connected());
  CHECK(f.serves_the_next());
}

TEST_CASE("a front end that reads no replies is not waited for") {
  fixture f;
  (void)f.device.set_target(77);
  for (int i = 0; i < 100'000 && f.end.is_connected(); ++i)
    f.guest.send(request::get_features, 0, {});
  CHECK(f.closed_for == error::connection_stalled);
  CHECK(f.serves_the_next());
}

TEST_CASE("a front end that accepts no features gets no device that needs some") {
  for (const bool is_needed : {false, true}) {
    balloon::device_options chosen;
    chosen.offered = {balloon::feature::must_tell_host, balloon::feature::stats_vq};
    chosen.requires_must_tell_host = is_needed;
    fixture f(chosen);
    f.guest.features = {};
    f.guest.has_enabling = false;
    f.guest.send(request::set_protocol_features, 0, {}, vu::protocol_feature::reply_ack);
    REQUIRE(f.guest.share_memory());
    REQUIRE(f.guest.make_queues());
    CHECK(f.guest.start() == !is_needed);
    CHECK(f.end.running() == (is_needed ? 0 : 7));
    CHECK(f.end.counters().refused == (is_needed ? 1 : 0));
    CHECK(f.end.is_connected());
  }
}

TEST_CASE("a driver's write beyond the configuration closes nothing, answered or not") {
  fixture f;
  (void)f.device.set_target(77);
  const vu::config_access beyond{200, 4, 0};
  // The flag is without meaning where REPLY_ACK was not negotiated.
  f.guest.send(request::set_protocol_features, 0, {}, vu::protocol_feature::config);
  for (const std::uint32_t flags : {0u, vu::message_header::needs_reply})
    f.guest.send(request::set_config, flags, {}, beyond, le32(1));
  CHECK(f.end.counters().refused == 2);
  CHECK(f.end.is_connected());
  CHECK(!f.guest.receive(0).is_there);
  f.guest.send(request::set_protocol_features, 0, {},
               vu::protocol_feature::config | vu::protocol_feature::reply_ack);
  CHECK(f.guest.acknowledged(request::set_config, {}, beyond, le32(1)) == 1);
  CHECK(f.end.is_connected());
  CHECK(f.device.actual() == 0);
}

} // namespace
