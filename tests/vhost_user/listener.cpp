// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/listener.hpp>

#include <doctest/doctest.h>

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

using ballast::error;
using namespace ballast::vhost_user;

struct place {
  place() {
    std::string name = std::filesystem::temp_directory_path() / "ballast-XXXXXX";
    path = mkdtemp(name.data());
    socket = path + "/socket";
  }
  ~place() { std::filesystem::remove_all(path); }
  place(const place&) = delete;
  place& operator=(const place&) = delete;
  [[nodiscard]] file connect() const {
    file f(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, socket.c_str());
    if (::connect(f.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) f.close();
    return f;
  }
  std::string path, socket;
};

TEST_CASE("a front end connects, and nobody waits for one who does not") {
  const place at;
  listener l;
  CHECK(!l.is_open());
  REQUIRE(l.open(at.socket.c_str()));
  CHECK(!l.accept().is_open());
  const file mine = at.connect();
  REQUIRE(mine.is_open());
  const file theirs = l.accept();
  REQUIRE(theirs.is_open());
  CHECK(write(mine.get(), "x", 1) == 1);
  char got = 0;
  CHECK(read(theirs.get(), &got, 1) == 1);
  CHECK(got == 'x');
}

TEST_CASE("the socket goes with the listener; one that nobody listens at is replaced") {
  const place at;
  {
    listener l;
    REQUIRE(l.open(at.socket.c_str()));
    CHECK(std::filesystem::exists(at.socket));
    listener second;
    CHECK(second.open(at.socket.c_str()).error() == error::system_call_failed); // it is in use
    CHECK(at.connect().is_open());
  }
  CHECK(!std::filesystem::exists(at.socket));
  { // as a process leaves it that was killed
    const file left(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, at.socket.c_str());
    REQUIRE(bind(left.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  }
  CHECK(std::filesystem::exists(at.socket));
  listener l;
  REQUIRE(l.open(at.socket.c_str()));
  CHECK(at.connect().is_open());
}

TEST_CASE("a file that is no socket stays, and so does the socket of somebody else") {
  const place at;
  std::ofstream(at.socket) << "kept";
  listener l;
  CHECK(l.open(at.socket.c_str()).error() == error::system_call_failed);
  CHECK(std::filesystem::is_regular_file(at.socket));
  std::filesystem::remove(at.socket);
  REQUIRE(l.open(at.socket.c_str()));
  std::filesystem::rename(at.socket, at.socket + ".old"); // its number is not given to the next one
  listener other;
  REQUIRE(other.open(at.socket.c_str()));
  l.close();
  CHECK(at.connect().is_open());
}

TEST_CASE("a path that is too long, or leads nowhere") {
  listener l;
  CHECK(l.open(std::string(200, 'x').c_str()).error() == error::buffer_too_small);
  CHECK(l.open("/nowhere/at/all").error() == error::system_call_failed);
  CHECK(!l.is_open());
}

} // namespace
