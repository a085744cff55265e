// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/connection.hpp>

#include "support/host_memory.hpp"

#include <doctest/doctest.h>
#include <support/vhost_user_front_end.hpp>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace {

using namespace ballast;
using ballast_test::front_end;
using ballast_test::request;
namespace vu = ballast::vhost_user;

struct pair {
  front_end guest;
  vu::connection end{guest.connect()};
};

TEST_CASE("a message arrives in pieces, with its files") {
  pair p;
  CHECK(*p.end.receive() == false);
  std::array<std::byte, 20> bytes{};
  vu::write_as(bytes, 0, vu::message_header{12, 1, 8});
  vu::write_as(bytes, 12, std::uint64_t{3});
  const vu::file some(memfd_create("some", MFD_CLOEXEC));
  p.guest.send_bytes(std::span(bytes).first(5), {some.get()});
  CHECK(*p.end.receive() == false);
  p.guest.send_bytes(std::span(bytes).subspan(5, 10));
  CHECK(*p.end.receive() == false);
  p.guest.send_bytes(std::span(bytes).subspan(15));
  REQUIRE(*p.end.receive() == true);
  CHECK(p.end.bytes().size() == 20);
  CHECK(vu::read_as<std::uint64_t>(p.end.bytes(), 12) == 3);
  REQUIRE(p.end.files().size() == 1);
  const int taken = p.end.files()[0].get();
  CHECK(fcntl(taken, F_GETFD) == FD_CLOEXEC);
  p.end.next();
  CHECK(fcntl(taken, F_GETFD) == -1); // nobody took it
  CHECK(*p.end.receive() == false);
}

TEST_CASE("two messages in one piece are two messages") {
  pair p;
  std::array<std::byte, 24> bytes{};
  vu::write_as(bytes, 0, vu::message_header{3, 1, 0});
  vu::write_as(bytes, 12, vu::message_header{4, 1, 0});
  p.guest.send_bytes(bytes);
  for (const std::uint32_t what : {3u, 4u}) {
    REQUIRE(*p.end.receive() == true);
    CHECK(vu::read_as<vu::message_header>(p.end.bytes(), 0).request == what);
    p.end.next();
  }
  CHECK(*p.end.receive() == false);
}

TEST_CASE("a header that cannot be ends it, before anything is read behind it") {
  for (const auto& [head, why] :
       {std::pair{vu::message_header{3, 1, vu::payload_max + 1}, error::message_size},
        std::pair{vu::message_header{3, 1, 0xffff'ffff}, error::message_size},
        std::pair{vu::message_header{3, 2, 0}, error::message_flags},
        std::pair{vu::message_header{3, 1 | 4, 0}, error::message_flags}}) {
    pair p;
    std::array<std::byte, 12> bytes{};
    vu::write_as(bytes, 0, head);
    p.guest.send_bytes(bytes);
    CHECK(p.end.receive().error() == why);
    CHECK(p.end.bytes().size() == 12);
  }
}

TEST_CASE("more files than any message has are too many, and all close" *
          doctest::skip(ballast_test::is_emulated())) {
  pair p;
  std::array<std::byte, 12> bytes{};
  vu::write_as(bytes, 0, vu::message_header{5, 1, 0});
  const int f = p.guest.ram_file().get();
  const auto count = [] {
    int n = 0;
    for (int i = 0; i < 256; ++i) n += fcntl(i, F_GETFD) >= 0;
    return n;
  };
  const int before = count();
  p.guest.send_bytes(bytes, {f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f,
                             f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f});
  CHECK(p.end.receive().error() == error::message_files);
  p.end.next();
  CHECK(count() == before);
}

TEST_CASE("the end of a connection is an error, in the middle of a message too") {
  for (const std::size_t sent : {0u, 5u, 12u}) {
    pair p;
    std::array<std::byte, 12> bytes{};
    vu::write_as(bytes, 0, vu::message_header{2, 1, 8});
    if (sent != 0) p.guest.send_bytes(std::span(bytes).first(sent));
    CHECK(*p.end.receive() == false);
    p.guest.close();
    CHECK(p.end.receive().error() == error::connection_closed);
  }
  vu::connection none;
  CHECK(!none.is_open());
  CHECK(none.receive().error() == error::connection_closed);
}

TEST_CASE("what is sent arrives, with a file; nobody waits for one who does not read") {
  pair p;
  const std::array some{std::byte{1}, std::byte{2}};
  REQUIRE(p.end.send(31, 5, some, p.guest.ram_file().get()));
  auto got = p.guest.receive();
  REQUIRE(got.is_there);
  CHECK(got.head.request == 31);
  CHECK(got.head.flags == 5);
  CHECK(got.payload == std::vector<std::byte>{std::byte{1}, std::byte{2}});
  CHECK(got.descriptor.is_open());
  REQUIRE(p.end.send(1, 5, {}));
  CHECK(p.guest.receive().is_there);

  std::array<std::byte, vu::payload_max> much{};
  result<void> sent;
  for (int i = 0; i < 100'000 && sent; ++i) sent = p.end.send(1, 5, much);
  CHECK(sent.error() == error::connection_stalled);
  p.guest.close();
  CHECK(p.end.send(1, 5, some).error() == error::connection_closed);
}

TEST_CASE("no file that arrives blocks, whatever its sender made of it") {
  pair p;
  int ends[2] = {-1, -1};
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  const vu::file out(ends[0]), in(ends[1]), event(eventfd(0, EFD_CLOEXEC));
  std::array<std::byte, 12> bytes{};
  vu::write_as(bytes, 0, vu::message_header{5, 1, 0});
  p.guest.send_bytes(bytes, {out.get(), in.get(), event.get(), p.guest.ram_file().get()});
  REQUIRE(*p.end.receive() == true);
  REQUIRE(p.end.files().size() == 4);
  for (const vu::file& f : p.end.files()) CHECK((fcntl(f.get(), F_GETFL) & O_NONBLOCK) != 0);
  CHECK((fcntl(p.end.files()[1].get(), F_GETFL) & O_ACCMODE) == O_WRONLY);
  std::uint64_t count = 0;
  CHECK(read(p.end.files()[2].get(), &count, sizeof(count)) == -1); // and comes back
}

} // namespace
