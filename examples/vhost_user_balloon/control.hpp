// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "listening.hpp"
#include "poll_set.hpp"
#include "qmp.hpp"
#include "qmp_input.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <list>
#include <poll.h>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <utility>

namespace vhost_user_balloon {

/// The socket of managers: any number of clients, each at its own pace.
template <class Balloon> class control {
 public:
  static constexpr std::size_t clients_max = 32;
  /// What a client may leave unread before it is let go.
  static constexpr std::size_t backlog_max = 1 << 20;

  explicit control(Balloon& balloon) noexcept : balloon_(&balloon) {}

  /// Why it can't be had; empty where it can.
  [[nodiscard]] std::string open(const std::string& path) { return listen_at(socket_, path); }

  void add_to(poll_set& polled) const {
    if (const int left = rest_.left(); left != 0)
      polled.sleep_at_most(left);
    else if (clients_.size() < clients_max)
      polled.add(socket_.get(), POLLIN);
    for (const client& c : clients_)
      polled.add(c.socket.get(), static_cast<short>(c.unsent.empty() ? POLLIN : POLLIN | POLLOUT));
  }

  void serve(const poll_set& polled) {
    for (client& c : clients_) {
      const short ready = polled.ready(c.socket.get());
      if ((ready & (POLLIN | POLLHUP | POLLERR)) != 0) receive(c);
      if ((ready & POLLOUT) != 0) send(c);
    }
    remove_gone();
    if (polled.ready(socket_.get()) == 0) return;
    file accepted = socket_.accept();
    if (!accepted.is_open()) return rest_.begin();
    clients_.emplace_back(std::move(accepted), qmp_session<Balloon>(*balloon_));
    say(clients_.back(), qmp_session<Balloon>::greeting());
    remove_gone();
  }

  /// To every client that has negotiated.
  void tell(const json& event) {
    for (client& c : clients_)
      if (c.session.is_negotiated()) say(c, event);
  }

 private:
  struct client {
    client(file accepted, qmp_session<Balloon> begun) noexcept
        : socket(std::move(accepted)), session(std::move(begun)) {}

    file socket;
    qmp_session<Balloon> session;
    qmp_input input;
    std::string unsent;
    bool is_gone = false;
  };

  void receive(client& from) {
    char piece[4096];
    const ssize_t got = recv(from.socket.get(), piece, sizeof(piece), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      from.is_gone = true;
      return;
    }
    for (const qmp_message& m :
         from.input.feed(std::string_view(piece, static_cast<std::size_t>(got))))
      say(from, from.session.answer(m));
  }

  void say(client& to, const json& what) {
    to.unsent += what.dump(-1, ' ', false, json::error_handler_t::replace) + "\r\n";
    send(to);
  }

  static void send(client& to) {
    if (to.is_gone || to.unsent.empty()) return;
    const ssize_t sent =
        ::send(to.socket.get(), to.unsent.data(), to.unsent.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
      to.is_gone = errno != EAGAIN && errno != EINTR;
    else
      to.unsent.erase(0, static_cast<std::size_t>(sent));
    to.is_gone |= to.unsent.size() > backlog_max;
  }

  void remove_gone() {
    if (clients_.remove_if([](const client& c) { return c.is_gone; }) != 0) rest_.end();
  }

  Balloon* balloon_;
  ballast::vhost_user::listener socket_;
  accept_rest rest_;
  std::list<client> clients_;
};

} // namespace vhost_user_balloon
