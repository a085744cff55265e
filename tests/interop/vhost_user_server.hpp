// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// The device's end of one vhost-user connection for the tests of this directory: as much of the
// protocol as Linux's virtio_uml speaks, and no more. It trusts its peer.

#include <ballast/balloon/device.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include "shared_ram.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

namespace interop {

/// Serves one balloon device. virtio_uml makes rings of 256 entries, whatever the device would
/// like.
class vhost_user_server {
 public:
  static constexpr std::uint16_t queues_max = 8;
  using device_type = ballast::balloon::device<ballast::mapped_memory, shared_ram, 256>;

  explicit vhost_user_server(const ballast::balloon::device_options& options)
      : device_(ram_, options) {}

  /// Waits at the socket for the guest.
  bool accept(const char* path, int milliseconds) {
    const descriptor listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    if (std::strlen(path) >= sizeof(name.sun_path)) return false;
    std::strcpy(name.sun_path, path);
    if (bind(listener.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)) != 0 ||
        listen(listener.get(), 1) != 0)
      return false;
    pollfd ready{listener.get(), POLLIN, 0};
    if (poll(&ready, 1, milliseconds) == 1)
      connection_ = descriptor(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    return connection_.get() >= 0;
  }

  /// Serves until `is_done()`; false if it did not come true in time or the guest has gone.
  template <class Condition> bool run_until(Condition is_done, int milliseconds) {
    using clock = std::chrono::steady_clock;
    const auto end = clock::now() + std::chrono::milliseconds(milliseconds);
    while (!is_done()) {
      if (clock::now() > end || !run_once()) return is_done();
    }
    return true;
  }

  /// Does what an entry point of the device asked for.
  void perform(ballast::actions due) {
    while (true) {
      if (due.failure != ballast::error::none) failure_ = due.failure;
      if (due.config_changed) tell_config_changed();
      for (std::uint16_t i = 0; i < queues_max; ++i) {
        if (!due.notifies(i)) continue;
        ++queues_[i].used_notifications;
        const std::uint64_t one = 1;
        is_connected_ &= ::write(queues_[i].call.get(), &one, sizeof(one)) == sizeof(one);
      }
      if (due.more_work == 0) return;
      ballast::actions more;
      for (std::uint16_t i = 0; i < queues_max; ++i)
        if (((due.more_work >> i) & 1) != 0) more |= device_.process(i, budget);
      due = more;
    }
  }

  /// No message says DRIVER_OK: the first notification counts, by then all queues are set up. A
  /// driver that has nothing to do sends none: then this is for whoever wants something of it.
  void activate() {
    std::array<ballast::queue_layout, queues_max> layouts;
    for (std::size_t q = 0; q < queues_max; ++q) layouts[q] = queues_[q].layout;
    is_active_ = true;
    ++activations_;
    perform(device_.activate(accepted_, layouts, ram_.memory()));
  }

  struct queue {
    ballast::queue_layout layout;
    descriptor kick, call;
    bool is_enabled = false;
    std::uint64_t kicks = 0, used_notifications = 0;
  };

  device_type& device() { return device_; }
  shared_ram& ram() { return ram_; }
  [[nodiscard]] const queue& queue_at(std::uint16_t i) const { return queues_[i]; }
  [[nodiscard]] bool is_active() const { return is_active_; }
  [[nodiscard]] unsigned activations() const { return activations_; }
  /// The queue whose notification began the last activation.
  [[nodiscard]] std::uint16_t first_notified() const { return first_notified_; }
  [[nodiscard]] std::uint64_t config_changes() const { return config_changes_; }
  /// The last call that the device refused, the last request that failed; none in a good run.
  [[nodiscard]] ballast::error failure() const { return failure_; }

 private:
  // The bits and numbers of the protocol. Spec: "Vhost-user Protocol".
  enum : std::uint64_t {
    protocol_features_bit = std::uint64_t{1} << 30,
    reply_ack = 1 << 3,
    backend_channel = 1 << 5,
    config_space = 1 << 9,
  };
  enum request : std::uint32_t {
    get_features = 1,
    set_features = 2,
    set_owner = 3,
    set_mem_table = 5,
    set_vring_num = 8,
    set_vring_addr = 9,
    set_vring_base = 10,
    set_vring_kick = 12,
    set_vring_call = 13,
    get_protocol_features = 15,
    set_protocol_features = 16,
    set_vring_enable = 18,
    set_backend_req_fd = 21,
    get_config = 24,
    set_config = 25,
  };
  enum : std::uint32_t { version = 1, is_reply = 4, needs_reply = 8, config_changed = 2 };
  struct header {
    std::uint32_t request, flags, size;
  };
  struct queue_state {
    std::uint32_t index, value;
  };
  struct queue_addresses {
    std::uint32_t index, flags;
    std::uint64_t descriptor_table, used_ring, available_ring, log;
  };
  struct config_header {
    std::uint32_t offset, size, flags;
  };
  struct message {
    header head{};
    std::array<std::byte, 512> payload{};
    std::vector<descriptor> files;

    template <class T> [[nodiscard]] T as() const {
      T value;
      std::memcpy(&value, payload.data(), sizeof(T));
      return value;
    }
  };

  static constexpr std::uint32_t budget = 64;

  bool run_once() {
    std::array<pollfd, queues_max + 1> ready{};
    ready[queues_max] = {connection_.get(), POLLIN, 0};
    for (std::size_t i = 0; i < queues_max; ++i) ready[i] = {queues_[i].kick.get(), POLLIN, 0};
    poll(ready.data(), ready.size(), 5); // the condition may be about something else
    if (ready[queues_max].revents != 0) {
      message got;
      is_connected_ &= receive(got) && handle(got);
      return is_connected_; // it may have replaced what is ready
    }
    for (std::uint16_t i = 0; i < queues_max; ++i)
      if ((ready[i].revents & POLLIN) != 0) take_kick(i);
    return is_connected_;
  }

  void take_kick(std::uint16_t i) {
    std::uint64_t count = 0;
    is_connected_ &= ::read(queues_[i].kick.get(), &count, sizeof(count)) == sizeof(count);
    ++queues_[i].kicks;
    if (is_active_) return perform(device_.process(i, budget));
    first_notified_ = i;
    activate();
  }

  // Never with "needs a reply": Linux's end of this channel only reads.
  void tell_config_changed() {
    const header told{config_changed, version, 0};
    ++config_changes_;
    is_connected_ &= ::write(backend_channel_.get(), &told, sizeof(told)) == sizeof(told);
  }

  bool receive(message& got) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(queues_max * sizeof(int))> control{};
    iovec head{&got.head, sizeof(got.head)};
    msghdr about{};
    about.msg_iov = &head;
    about.msg_iovlen = 1;
    about.msg_control = control.data();
    about.msg_controllen = control.size();
    if (recvmsg(connection_.get(), &about, MSG_CMSG_CLOEXEC | MSG_WAITALL) != sizeof(got.head))
      return false;
    for (cmsghdr* c = CMSG_FIRSTHDR(&about); c != nullptr; c = CMSG_NXTHDR(&about, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      for (std::size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
        got.files.emplace_back(fd);
      }
    }
    const std::size_t size = got.head.size;
    return size <= got.payload.size() &&
           (size == 0 || recv(connection_.get(), got.payload.data(), size, MSG_WAITALL) ==
                             static_cast<ssize_t>(size));
  }

  bool reply(const message& to, const void* payload, std::uint32_t size) {
    std::array<std::byte, sizeof(header) + sizeof(to.payload)> out{};
    const header head{to.head.request, version | is_reply, size};
    std::memcpy(out.data(), &head, sizeof(head));
    std::memcpy(out.data() + sizeof(head), payload, size);
    const std::size_t all = sizeof(head) + size;
    return send(connection_.get(), out.data(), all, MSG_NOSIGNAL) == static_cast<ssize_t>(all);
  }
  bool reply(const message& to, std::uint64_t value) { return reply(to, &value, sizeof(value)); }

  bool handle(message& got) {
    switch (got.head.request) {
    case get_features: return reply(got, offered());
    case get_protocol_features: return reply(got, reply_ack | backend_channel | config_space);
    case get_config: return reply_config(got);
    default: break;
    }
    const bool is_fine = change(got);
    if (!is_fine && failure_ == ballast::error::none) failure_ = ballast::error::wrong_state;
    return (got.head.flags & needs_reply) == 0 || reply(got, is_fine ? 0 : 1);
  }

  [[nodiscard]] std::uint64_t offered() const {
    const ballast::feature_set set = device_.offered_features();
    return set.word32(0) | std::uint64_t{set.word32(1)} << 32 | protocol_features_bit;
  }

  bool reply_config(const message& got) {
    const auto asked = got.as<config_header>();
    std::array<std::byte, sizeof(got.payload)> out{};
    if (asked.size > out.size() - sizeof(asked)) return false;
    std::memcpy(out.data(), &asked, sizeof(asked));
    const auto value = std::span(out).subspan(sizeof(asked), asked.size);
    const bool is_fine = device_.read_config(asked.offset, value).has_value();
    return reply(got, out.data(), is_fine ? sizeof(asked) + asked.size : 0);
  }

  /// A request that has no answer but whether it worked.
  bool change(message& got) {
    const auto state = got.as<queue_state>(); // of most requests
    const bool is_queue = state.index < queues_max;
    switch (got.head.request) {
    case set_owner:
    case set_protocol_features: return true;
    case set_features: return accept_features(got.as<std::uint64_t>());
    case set_mem_table: return map(got);
    case set_backend_req_fd:
      if (!got.files.empty()) backend_channel_ = std::move(got.files[0]);
      return true;
    case set_config: {
      const auto asked = got.as<config_header>();
      if (asked.size > got.payload.size() - sizeof(asked)) return false;
      perform(device_.write_config(asked.offset,
                                   std::span(got.payload).subspan(sizeof(asked), asked.size)));
      return true;
    }
    case set_vring_num:
      if (is_queue) queues_[state.index].layout.size = state.value;
      return is_queue &&
             state.value <= device_.queue_size_max(static_cast<std::uint16_t>(state.index));
    case set_vring_base: return is_queue && state.value == 0;
    case set_vring_addr: return is_queue && place(got.as<queue_addresses>());
    case set_vring_kick:
    case set_vring_call: {
      const std::uint64_t index = got.as<std::uint64_t>() & 0xff;
      if (index >= queues_max || got.files.empty()) return false;
      queue& q = queues_[index];
      (got.head.request == set_vring_kick ? q.kick : q.call) = std::move(got.files[0]);
      return true;
    }
    case set_vring_enable:
      if (is_queue) enable(queues_[state.index], state.value != 0);
      return is_queue;
    default: return false;
    }
  }

  bool accept_features(std::uint64_t bits) {
    bits &= ~protocol_features_bit;
    ballast::feature_set set;
    set.set_word32(0, static_cast<std::uint32_t>(bits));
    set.set_word32(1, static_cast<std::uint32_t>(bits >> 32));
    accepted_ = set;
    return ballast::check_accepted(device_.offered_features(), set,
                                   ballast::ring_feature_dependencies) &&
           device_.check_features(set);
  }

  bool map(message& got) {
    struct table {
      std::uint32_t count, padding;
      std::array<shared_ram::piece, queues_max> pieces;
    };
    const auto t = got.as<table>();
    return !is_active_ && t.count <= t.pieces.size() &&
           ram_.map(std::span(t.pieces).first(t.count), got.files);
  }

  bool place(const queue_addresses& at) {
    ballast::queue_layout& layout = queues_[at.index].layout;
    layout.descriptor_area = ram_.guest_address_of(at.descriptor_table);
    layout.driver_area = ram_.guest_address_of(at.available_ring);
    layout.device_area = ram_.guest_address_of(at.used_ring);
    return true;
  }

  // Reset is not told either: a driver that goes disables its queues. `call` stays open: Linux
  // still listens at its other end, and warns when that is closed.
  void enable(queue& q, bool is_on) {
    q.is_enabled = is_on;
    if (is_on) return;
    if (is_active_) device_.reset();
    is_active_ = false;
    q.kick = descriptor();
    q.layout = {};
  }

  shared_ram ram_;
  device_type device_;
  descriptor connection_, backend_channel_;
  std::array<queue, queues_max> queues_;
  ballast::feature_set accepted_;
  ballast::error failure_ = ballast::error::none;
  std::uint64_t config_changes_ = 0;
  unsigned activations_ = 0;
  std::uint16_t first_notified_ = queues_max;
  bool is_active_ = false;
  bool is_connected_ = true;
};

} // namespace interop
