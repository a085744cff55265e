// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/mapped_memory.hpp>
#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/message.hpp>
#include <ballast/vhost_user/protocol.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

/// A front end of vhost-user that does what a test says, with a guest whose memory is a memfd, and
/// the driver's side of its queues.
namespace ballast_test {

namespace vu = ballast::vhost_user;
using vu::request;

/// The driver's side of a queue, and its notifications.
class front_end_queue {
 public:
  static constexpr std::uint32_t size = 16;

  [[nodiscard]] bool start(ballast::mapped_memory& ram, ballast::guest_address at,
                           const ballast::feature_set& features) {
    layout = ballast::place_queue(at, size, features).layout;
    available = vu::file(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    used = vu::file(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    return driver.start(ram, layout, features).has_value();
  }

  void notify() const {
    const std::uint64_t one = 1;
    (void)!write(available.get(), &one, sizeof(one));
  }
  /// How often the device notified since the last call.
  [[nodiscard]] std::uint64_t take_notifications() const {
    std::uint64_t count = 0;
    return read(used.get(), &count, sizeof(count)) == sizeof(count) ? count : 0;
  }

  ballast::queue_layout layout;
  vu::file available, used;
  std::array<ballast::driver_slot, size> slots{};
  ballast::virtqueue_driver<ballast::mapped_memory> driver{slots};
};

/// What came back.
struct front_end_reply {
  vu::message_header head;
  std::vector<std::byte> payload;
  vu::file descriptor;
  bool is_there = false;

  template <class T> [[nodiscard]] T as() const {
    T value{};
    if (payload.size() >= sizeof(T)) std::memcpy(&value, payload.data(), sizeof(T));
    return value;
  }
};

class front_end {
 public:
  static constexpr ballast::guest_address ram_at = 0x10'0000;
  static constexpr std::uint64_t ram_bytes = 1 << 20;
  static constexpr std::uint64_t user_at = 0x7000'0000'0000;
  static constexpr std::uint16_t queue_count = 3;

  front_end() : ram_file_(make_ram()) {
    if (auto made = vu::file_mapping::of(ram_file_, ram_bytes)) mapping_ = std::move(*made);
    regions_[0] = {.address = ram_at, .data = mapping_.bytes().data(), .size = ram_bytes};
    ram_ = *ballast::mapped_memory::over(regions_);
  }

  /// The other end of a new connection.
  [[nodiscard]] vu::file connect() {
    int ends[2] = {-1, -1};
    (void)!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
    socket_ = vu::file(ends[0]);
    return vu::file(ends[1]);
  }
  void close() { socket_.close(); }
  [[nodiscard]] int socket() const { return socket_.get(); }

  /// Runs the back end, where that is in this process.
  std::function<void()> serve = [] {};

  void send_bytes(std::span<const std::byte> bytes, std::initializer_list<int> descriptors = {}) {
    std::array<std::byte, 512> data{};
    std::memcpy(data.data(), bytes.data(), bytes.size());
    iovec part{data.data(), bytes.size()};
    msghdr about{};
    about.msg_iov = &part;
    about.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(40 * sizeof(int))]{};
    if (descriptors.size() != 0) {
      about.msg_control = control;
      about.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
      cmsghdr* const c = CMSG_FIRSTHDR(&about);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
      std::memcpy(CMSG_DATA(c), descriptors.begin(), descriptors.size() * sizeof(int));
    }
    (void)!sendmsg(socket_.get(), &about, MSG_NOSIGNAL);
    serve();
  }

  /// A message of these parts, one after the other.
  template <class... Parts>
  void send(request what, std::uint32_t flags, std::initializer_list<int> descriptors,
            const Parts&... parts) {
    std::array<std::byte, 512> bytes{};
    std::size_t end = sizeof(vu::message_header);
    [[maybe_unused]] const auto put = [&](const auto& part) {
      std::memcpy(bytes.data() + end, &part, sizeof(part));
      end += sizeof(part);
    };
    (put(parts), ...);
    const vu::message_header head{static_cast<std::uint32_t>(what),
                                  vu::message_header::version | flags,
                                  static_cast<std::uint32_t>(end - sizeof(vu::message_header))};
    std::memcpy(bytes.data(), &head, sizeof(head));
    send_bytes(std::span(bytes).first(end), descriptors);
  }

  /// The next message from the back end; waits for it.
  [[nodiscard]] front_end_reply receive(int milliseconds = 2000) {
    front_end_reply got;
    pollfd ready{socket_.get(), POLLIN, 0};
    if (poll(&ready, 1, milliseconds) != 1) return got;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
    iovec part{&got.head, sizeof(got.head)};
    msghdr about{};
    about.msg_iov = &part;
    about.msg_iovlen = 1;
    about.msg_control = control;
    about.msg_controllen = sizeof(control);
    if (recvmsg(socket_.get(), &about, MSG_CMSG_CLOEXEC | MSG_WAITALL) != sizeof(got.head))
      return got;
    if (const cmsghdr* const c = CMSG_FIRSTHDR(&about); c != nullptr) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(c), sizeof(descriptor));
      got.descriptor = vu::file(descriptor);
    }
    got.payload.resize(got.head.size);
    got.is_there = got.head.size == 0 || recv(socket_.get(), got.payload.data(), got.head.size,
                                              MSG_WAITALL) == static_cast<ssize_t>(got.head.size);
    return got;
  }

  /// Whether the back end closed the connection.
  [[nodiscard]] bool is_closed() {
    pollfd ready{socket_.get(), POLLIN, 0};
    char byte = 0;
    return poll(&ready, 1, 0) == 1 && recv(socket_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0;
  }

  /// Asks for what has an answer of its own.
  template <class... Parts> [[nodiscard]] front_end_reply ask(request what, const Parts&... parts) {
    send(what, 0, {}, parts...);
    return receive();
  }
  [[nodiscard]] std::uint64_t ask_number(request what) { return ask(what).as<std::uint64_t>(); }

  /// Sends what has none, and waits for an acknowledgement; 0: it worked.
  template <class... Parts>
  [[nodiscard]] std::uint64_t acknowledged(request what, std::initializer_list<int> descriptors,
                                           const Parts&... parts) {
    send(what, vu::message_header::needs_reply, descriptors, parts...);
    const front_end_reply got = receive();
    return got.is_there && got.payload.size() == 8 ? got.as<std::uint64_t>() : UINT64_MAX;
  }
  template <class... Parts> [[nodiscard]] bool works(request what, const Parts&... parts) {
    return acknowledged(what, {}, parts...) == 0;
  }

  // What front ends do.

  std::uint64_t protocol = vu::protocol_feature::all & ~vu::protocol_feature::in_band;
  ballast::feature_set features{ballast::feature::version_1};
  bool has_enabling = true;

  /// Features and memory.
  [[nodiscard]] bool negotiate() {
    send(request::set_protocol_features, 0, {}, protocol);
    send(request::set_owner, 0, {});
    const std::uint64_t bits = features.word32(0) | std::uint64_t{features.word32(1)} << 32 |
                               (has_enabling ? vu::has_protocol_features : 0);
    return works(request::set_features, bits) && share_memory();
  }
  [[nodiscard]] bool share_memory() {
    return acknowledged(request::set_memory_table, {ram_file_.get()}, std::uint32_t{1},
                        std::uint32_t{0},
                        vu::region_description{ram_at, ram_bytes, user_at, 0}) == 0;
  }

  /// New queues for a driver that begins.
  [[nodiscard]] bool make_queues() {
    for (std::uint16_t i = 0; i < queue_count; ++i) {
      queues[i] = std::make_unique<front_end_queue>();
      const ballast::guest_address at = ram_at + 0x4000u * (i + 1u);
      std::memset(mapping_.bytes().data() + (at - ram_at), 0, 0x4000);
      if (!queues[i]->start(ram_, at, features)) return false;
    }
    return true;
  }
  [[nodiscard]] bool set_up(std::uint16_t i, std::uint32_t base = 0) {
    const ballast::queue_layout& at = queues[i]->layout;
    const vu::queue_addresses addresses{.queue = i,
                                        .flags = 0,
                                        .descriptor_area = user_of(at.descriptor_area),
                                        .device_area = user_of(at.device_area),
                                        .driver_area = user_of(at.driver_area),
                                        .log = 0};
    return works(request::set_queue_size, vu::queue_value{i, at.size}) &&
           works(request::set_queue_base, vu::queue_value{i, base}) &&
           works(request::set_queue_addresses, addresses) &&
           acknowledged(request::set_used_file, {queues[i]->used.get()}, std::uint64_t{i}) == 0;
  }
  [[nodiscard]] bool begin(std::uint16_t i) {
    if (acknowledged(request::set_available_file, {queues[i]->available.get()}, std::uint64_t{i}) !=
        0)
      return false;
    return !has_enabling || works(request::enable_queue, vu::queue_value{i, 1});
  }
  /// All of that, for queues that begin at their bases.
  [[nodiscard]] bool start(std::array<std::uint32_t, queue_count> bases = {}) {
    for (std::uint16_t i = 0; i < queue_count; ++i)
      if (!set_up(i, bases[i])) return false;
    for (std::uint16_t i = 0; i < queue_count; ++i)
      if (!begin(i)) return false;
    return true;
  }

  [[nodiscard]] static std::uint64_t user_of(ballast::guest_address at) {
    return at - ram_at + user_at;
  }
  [[nodiscard]] ballast::mapped_memory& ram() { return ram_; }
  [[nodiscard]] const vu::file& ram_file() const { return ram_file_; }

  std::array<std::unique_ptr<front_end_queue>, queue_count> queues;

 private:
  static vu::file make_ram() {
    vu::file made(memfd_create("guest", MFD_CLOEXEC));
    (void)!ftruncate(made.get(), static_cast<off_t>(ram_bytes));
    return made;
  }

  vu::file ram_file_, socket_;
  vu::file_mapping mapping_;
  std::array<ballast::memory_region, 1> regions_{};
  ballast::mapped_memory ram_;
};

} // namespace ballast_test
