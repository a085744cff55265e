// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/notification.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>

namespace {

using namespace ballast::vhost_user;

struct pipe_ends {
  pipe_ends() {
    signal(SIGPIPE, SIG_IGN);
    int ends[2] = {-1, -1};
    (void)!pipe2(ends, O_CLOEXEC | O_NONBLOCK);
    out = file(ends[0]);
    in = file(ends[1]);
  }
  file out, in;
};

TEST_CASE("an eventfd is signalled and taken, also one that blocks") {
  for (const int flags : {0, int{EFD_NONBLOCK}}) {
    const file f(eventfd(0, flags));
    CHECK(take_signal(f)); // nothing is there
    CHECK(ballast::vhost_user::signal(f));
    CHECK(ballast::vhost_user::signal(f));
    std::uint64_t count = 0;
    CHECK(read(f.get(), &count, sizeof(count)) == 8);
    CHECK(count == 2);
    CHECK(ballast::vhost_user::signal(f));
    CHECK(take_signal(f));
    CHECK(take_signal(f));
  }
  CHECK(ballast::vhost_user::signal(file())); // nobody wants to know
}

TEST_CASE("a pipe gets 8 bytes; one that is full has been told; one whose reader went is gone") {
  pipe_ends p;
  CHECK(ballast::vhost_user::signal(p.in));
  std::array<char, 65536> bytes{};
  CHECK(read(p.out.get(), bytes.data(), bytes.size()) == 8);
  while (write(p.in.get(), bytes.data(), 4096) > 0) {
  }
  CHECK(ballast::vhost_user::signal(p.in));
  p.out.close();
  CHECK(!ballast::vhost_user::signal(p.in));
}

TEST_CASE("a pipe whose writer went says no more") {
  pipe_ends p;
  CHECK(take_signal(p.out));
  CHECK(ballast::vhost_user::signal(p.in));
  p.in.close();
  CHECK(take_signal(p.out)); // what was there
  CHECK(!take_signal(p.out));
}

TEST_CASE("requests of the back end: a header, a payload, and no reply asked for") {
  pipe_ends p;
  back_end_channel channel(std::move(p.in));
  REQUIRE(channel.tell(back_end_request::config_changed));
  REQUIRE(channel.tell(back_end_request::notify_queue, queue_value{3, 0}));
  std::array<std::byte, 64> bytes{};
  REQUIRE(read(p.out.get(), bytes.data(), bytes.size()) == 12 + 20);
  const auto first = read_as<message_header>(bytes, 0), second = read_as<message_header>(bytes, 12);
  CHECK(first.request == 2);
  CHECK(first.flags == 1);
  CHECK(first.size == 0);
  CHECK(second.request == 4);
  CHECK(second.flags == 1);
  CHECK(second.size == 8);
  CHECK(read_as<queue_value>(bytes, 24).queue == 3);
}

TEST_CASE("a channel without room is not written to; one without a reader closes") {
  pipe_ends p;
  const std::array<char, 4096> filling{};
  while (write(p.in.get(), filling.data(), filling.size()) > 0) {
  }
  back_end_channel channel(std::move(p.in));
  CHECK(!channel.tell(back_end_request::config_changed));
  CHECK(channel.is_open());
  p.out.close();
  CHECK(channel.tell(back_end_request::config_changed)); // there is nobody to tell
  CHECK(!channel.is_open());
  CHECK(channel.tell(back_end_request::config_changed));
}

std::atomic<unsigned> handled{0};

/// Signals this thread, again and again, while it does something.
template <class Do> void while_interrupted(Do&& what) {
  struct sigaction before{}, counting{};
  counting.sa_handler = [](int) { ++handled; }; // and no SA_RESTART
  REQUIRE(sigaction(SIGUSR1, &counting, &before) == 0);
  handled = 0;
  std::atomic<bool> is_over{false};
  std::thread other([&is_over, whom = pthread_self()] {
    for (unsigned last = handled; !is_over; last = handled) {
      (void)pthread_kill(whom, SIGUSR1);
      while (!is_over && handled == last) std::this_thread::yield();
    }
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (handled < 5000 && std::chrono::steady_clock::now() < end)
    for (int i = 0; i < 100; ++i) what();
  is_over = true;
  other.join();
  (void)sigaction(SIGUSR1, &before, nullptr);
}

TEST_CASE("what is full and was interrupted is full, not gone") {
  const file full(eventfd(0, EFD_NONBLOCK));
  const std::uint64_t most = UINT64_MAX - 1;
  REQUIRE(write(full.get(), &most, sizeof(most)) == 8);
  pipe_ends p;
  const std::array<char, 4096> filling{};
  while (write(p.in.get(), filling.data(), filling.size()) > 0) {
  }
  back_end_channel channel(std::move(p.in));
  bool is_there = true, is_told = false;
  while_interrupted([&] {
    is_there &= ballast::vhost_user::signal(full);
    is_told |= channel.tell(back_end_request::config_changed);
  });
  CHECK(handled > 0);
  CHECK(is_there);
  CHECK(channel.is_open());
  CHECK(!is_told);
}

} // namespace
