// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// The driver's end of one vhost-user connection: as much of a front end as our driver needs.

#include <ballast/memory/mapped_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/vhost_user/protocol.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace checks {

namespace vhost_user = ballast::vhost_user;

/// Guest memory that can be shared: a memfd, from guest address 0 on.
class shared_memory {
 public:
  explicit shared_memory(std::uint64_t size)
      : file_(memfd_create("guest", MFD_CLOEXEC)), region_{.size = size} {
    if (ftruncate(file_, static_cast<off_t>(size)) != 0) return;
    void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (at != MAP_FAILED) region_.data = static_cast<std::byte*>(at);
  }

  [[nodiscard]] bool is_mapped() const { return region_.data != nullptr; }
  [[nodiscard]] int file() const { return file_; }
  [[nodiscard]] std::byte* data() const { return region_.data; }
  [[nodiscard]] std::uint64_t size() const { return region_.size; }
  [[nodiscard]] ballast::mapped_memory accessor() const {
    return *ballast::mapped_memory::over({&region_, 1});
  }
  /// Bytes that the file takes up.
  [[nodiscard]] std::uint64_t allocated() const {
    struct stat about{};
    return fstat(file_, &about) == 0 ? static_cast<std::uint64_t>(about.st_blocks) * 512 : 0;
  }

 private:
  int file_;
  ballast::memory_region region_;
};

/// A `driver_transport` over vhost-user. What fails is `is_connected()`, and the driver sees zeros.
class front_end {
 public:
  static constexpr std::uint16_t queues_max = 5;
  static constexpr std::uint32_t queue_size = 256;

  front_end(const char* path, const shared_memory& ram) : ram_(&ram) {
    socket_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strncpy(name.sun_path, path, sizeof(name.sun_path) - 1);
    is_connected_ = connect(socket_, reinterpret_cast<sockaddr*>(&name), sizeof(name)) == 0;
    for (int& bell : used_) bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (int& bell : available_) bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  }

  /// Says hello. Without it nothing was sent yet.
  void begin() {
    using namespace vhost_user;
    tell(request::set_owner);
    (void)ask(request::get_features);
    constexpr std::uint64_t wanted =
        protocol_feature::reply_ack | protocol_feature::back_end_channel | protocol_feature::config;
    const std::uint64_t protocol = ask(request::get_protocol_features);
    is_connected_ = is_connected_ && (protocol & wanted) == wanted;
    tell(request::set_protocol_features, wanted);
    has_replies_ = true;
    std::array<int, 2> channel{-1, -1};
    is_connected_ = is_connected_ && socketpair(AF_UNIX, SOCK_STREAM, 0, channel.data()) == 0;
    tell(request::set_back_end_channel, {}, channel[1]);
    (void)close(channel[1]);
    channel_ = channel[0];
  }

  [[nodiscard]] bool is_connected() const { return is_connected_; }
  [[nodiscard]] int socket() const { return socket_; }
  /// Where the device says that the configuration changed.
  [[nodiscard]] int channel() const { return channel_; }
  [[nodiscard]] int used(std::size_t queue) const { return used_[queue]; }
  /// Whatever bytes, in the place of a message.
  void send_raw(std::span<const std::byte> bytes) {
    is_connected_ &= ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
                     static_cast<ssize_t>(bytes.size());
  }

  // driver_transport

  [[nodiscard]] std::uint32_t device_id() const noexcept { return 5; }
  [[nodiscard]] ballast::feature_set device_features() noexcept {
    const std::uint64_t bits =
        ask(vhost_user::request::get_features) & ~vhost_user::has_protocol_features;
    ballast::feature_set set;
    set.set_word32(0, static_cast<std::uint32_t>(bits));
    set.set_word32(1, static_cast<std::uint32_t>(bits >> 32));
    return set;
  }
  void set_driver_features(const ballast::feature_set& f) noexcept {
    tell(vhost_user::request::set_features,
         f.word32(0) | std::uint64_t{f.word32(1)} << 32 | vhost_user::has_protocol_features);
  }
  [[nodiscard]] std::uint8_t status() const noexcept { return status_; }
  void set_status(std::uint8_t bits) noexcept {
    const bool was_live = (status_ & ballast::status::driver_ok) != 0;
    const bool is_live = (bits & ballast::status::driver_ok) != 0;
    status_ = bits;
    if (is_live && !was_live) set_live();
    if (was_live && !is_live) enable_queues(0);
  }
  [[nodiscard]] std::uint32_t queue_size_max(std::uint16_t) const noexcept { return queue_size; }
  [[nodiscard]] ballast::result<void> set_up_queue(std::uint16_t queue,
                                                   const ballast::queue_layout& at) noexcept {
    layouts_[queue] = at;
    return {};
  }
  [[nodiscard]] ballast::result<void> reset_queue(std::uint16_t) const noexcept {
    return ballast::error::not_negotiated;
  }
  [[nodiscard]] std::uint32_t config_generation() const noexcept { return 0; }
  [[nodiscard]] ballast::result<void> read_config(std::uint32_t offset,
                                                  std::span<std::byte> to) noexcept {
    message m{.head = {.request = number(vhost_user::request::get_config)}};
    const auto size = static_cast<std::uint32_t>(to.size());
    m.add(vhost_user::config_access{.offset = offset, .size = size});
    m.add_bytes(to);
    if (!send(m, -1) || !receive(m) || m.head.size < sizeof(vhost_user::config_access) + to.size())
      return ballast::error::config_out_of_range;
    std::memcpy(to.data(), m.payload.data() + sizeof(vhost_user::config_access), to.size());
    return {};
  }
  [[nodiscard]] ballast::result<void> write_config(std::uint32_t offset,
                                                   std::span<const std::byte> from) noexcept {
    message m{.head = {.request = number(vhost_user::request::set_config)}};
    const auto size = static_cast<std::uint32_t>(from.size());
    m.add(vhost_user::config_access{.offset = offset, .size = size});
    m.add_bytes(from);
    finish(m, -1);
    return {};
  }
  void notify(std::uint16_t queue) noexcept { (void)eventfd_write(available_[queue], 1); }

 private:
  struct message {
    vhost_user::message_header head;
    std::array<std::byte, 512> payload{};

    void add_bytes(std::span<const std::byte> bytes) {
      std::memcpy(payload.data() + head.size, bytes.data(), bytes.size());
      head.size += static_cast<std::uint32_t>(bytes.size());
    }
    template <class T> void add(const T& value) { add_bytes(std::as_bytes(std::span(&value, 1))); }
  };

  [[nodiscard]] static std::uint32_t number(vhost_user::request r) {
    return static_cast<std::uint32_t>(r);
  }

  void set_live() {
    using namespace vhost_user;
    message table{.head = {.request = number(request::set_memory_table)}};
    table.add(std::uint64_t{1}); // a region, and padding
    table.add(region_description{
        .guest_address = 0, .size = ram_->size(), .user_address = user_base, .file_offset = 0});
    finish(table, ram_->file());
    for (std::uint32_t i = 0; i < queues_max; ++i) {
      const ballast::queue_layout& at = layouts_[i];
      if (at.size == 0) continue;
      tell(request::set_queue_size, queue_value{i, at.size});
      tell(request::set_queue_base, queue_value{i, 0});
      tell(request::set_queue_addresses,
           queue_addresses{.queue = i,
                           .flags = 0,
                           .descriptor_area = at.descriptor_area + user_base,
                           .device_area = at.device_area + user_base,
                           .driver_area = at.driver_area + user_base,
                           .log = 0});
      tell(request::set_used_file, std::uint64_t{i}, used_[i]);
      tell(request::set_available_file, std::uint64_t{i}, available_[i]);
    }
    enable_queues(1);
  }

  void enable_queues(std::uint32_t is_on) {
    for (std::uint32_t i = 0; i < queues_max; ++i)
      if (layouts_[i].size != 0)
        tell(vhost_user::request::enable_queue, vhost_user::queue_value{i, is_on});
  }

  /// Sends what has no answer but whether it worked.
  void finish(message& m, int fd) {
    if (has_replies_) m.head.flags |= vhost_user::message_header::needs_reply;
    std::uint64_t refused = 0;
    if (!send(m, fd) || !has_replies_) return;
    is_connected_ = receive(m) && m.head.size == sizeof(refused);
    std::memcpy(&refused, m.payload.data(), sizeof(refused));
    is_connected_ &= refused == 0;
  }
  void tell(vhost_user::request what) {
    message m{.head = {.request = number(what)}};
    finish(m, -1);
  }
  struct no_payload {};
  void tell(vhost_user::request what, no_payload, int fd) {
    message m{.head = {.request = number(what)}};
    finish(m, fd);
  }
  template <class T> void tell(vhost_user::request what, const T& value, int fd = -1) {
    message m{.head = {.request = number(what)}};
    m.add(value);
    finish(m, fd);
  }
  std::uint64_t ask(vhost_user::request what) {
    message m{.head = {.request = number(what)}};
    std::uint64_t value = 0;
    if (send(m, -1) && receive(m) && m.head.size == sizeof(value))
      std::memcpy(&value, m.payload.data(), sizeof(value));
    return value;
  }

  [[nodiscard]] bool send(message& m, int fd) {
    if (!is_connected_) return false;
    m.head.flags |= vhost_user::message_header::version;
    std::array<iovec, 2> parts{{{&m.head, sizeof(m.head)}, {m.payload.data(), m.head.size}}};
    msghdr about{};
    about.msg_iov = parts.data();
    about.msg_iovlen = parts.size();
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> files{};
    if (fd >= 0) {
      about.msg_control = files.data();
      about.msg_controllen = files.size();
      cmsghdr* const c = CMSG_FIRSTHDR(&about);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    return is_connected_ = sendmsg(socket_, &about, MSG_NOSIGNAL) ==
                           static_cast<ssize_t>(sizeof(m.head) + m.head.size);
  }

  [[nodiscard]] bool receive(message& m) {
    return is_connected_ = receive(&m.head, sizeof(m.head)) && m.head.size <= m.payload.size() &&
                           receive(m.payload.data(), m.head.size);
  }
  [[nodiscard]] bool receive(void* to, std::size_t size) const {
    return size == 0 || recv(socket_, to, size, MSG_WAITALL) == static_cast<ssize_t>(size);
  }

  // The front end's own addresses are not the guest's.
  static constexpr std::uint64_t user_base = std::uint64_t{1} << 40;

  const shared_memory* ram_;
  int socket_ = -1, channel_ = -1;
  std::array<int, queues_max> used_{}, available_{};
  std::array<ballast::queue_layout, queues_max> layouts_{};
  std::uint8_t status_ = 0;
  bool is_connected_ = false, has_replies_ = false;
};

} // namespace checks
