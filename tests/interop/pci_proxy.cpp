// SPDX-License-Identifier: BSD-3-Clause
#include "pci_proxy.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

namespace interop {

using window_type = ballast::mapped_memory::window_type;

pci_proxy_message pci_proxy_message::reply_of(std::uint64_t value) {
  pci_proxy_message made;
  made.head = {reply, 0, sizeof(value)};
  std::memcpy(made.payload.data(), &value, sizeof(value));
  return made;
}

bool receive(int connection, pci_proxy_message& to) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(pci_proxy_message::regions_max * sizeof(int))>
      control{};
  iovec head{&to.head, sizeof(to.head)};
  msghdr about{};
  about.msg_iov = &head;
  about.msg_iovlen = 1;
  about.msg_control = control.data();
  about.msg_controllen = control.size();
  if (recvmsg(connection, &about, MSG_CMSG_CLOEXEC | MSG_WAITALL) != sizeof(to.head)) return false;
  for (cmsghdr* c = CMSG_FIRSTHDR(&about); c != nullptr; c = CMSG_NXTHDR(&about, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    for (std::size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
      to.files.emplace_back(fd);
    }
  }
  const std::size_t size = to.head.size;
  return size <= to.payload.size() &&
         (size == 0 ||
          recv(connection, to.payload.data(), size, MSG_WAITALL) == static_cast<ssize_t>(size));
}

bool send(int connection, const pci_proxy_message& message) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(pci_proxy_message::regions_max * sizeof(int))>
      control{};
  std::array<iovec, 2> parts{{
      {const_cast<pci_proxy_message::header*>(&message.head), sizeof(message.head)},
      {const_cast<std::byte*>(message.payload.data()), message.head.size},
  }};
  msghdr about{};
  about.msg_iov = parts.data();
  about.msg_iovlen = parts.size();
  if (!message.files.empty()) {
    about.msg_control = control.data();
    about.msg_controllen = CMSG_SPACE(message.files.size() * sizeof(int));
    cmsghdr* c = CMSG_FIRSTHDR(&about);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(message.files.size() * sizeof(int));
    for (std::size_t i = 0; i < message.files.size(); ++i) {
      const int fd = message.files[i].get();
      std::memcpy(CMSG_DATA(c) + i * sizeof(fd), &fd, sizeof(fd));
    }
  }
  const std::size_t all = sizeof(message.head) + message.head.size;
  return sendmsg(connection, &about, MSG_NOSIGNAL) == static_cast<ssize_t>(all);
}

bool pci_proxy::run_once(std::span<const int> others, int milliseconds) {
  std::vector<pollfd> ready{{connection_.get(), POLLIN, 0}};
  for (const int fd : others) ready.push_back({fd, POLLIN, 0});
  if (poll(ready.data(), ready.size(), milliseconds) > 0 && ready[0].revents != 0) {
    pci_proxy_message got;
    is_connected_ &= receive(connection_.get(), got) && handle(got);
  }
  return is_connected_;
}

void pci_proxy::carry_out(ballast::actions due) {
  while (true) {
    if (due.failure != ballast::error::none) failure_ = due.failure;
    interrupt(due);
    if (due.more_work == 0) break;
    ballast::actions more;
    for (std::uint16_t i = 0; i < 64; ++i)
      if (((due.more_work >> i) & 1) != 0) more |= bus_->process(i, budget);
    if (kept_ != nullptr && more.notify_queues != 0) kept_->pass(moment::published);
    due = more;
  }
  save();
}

bool pci_proxy::answer(std::uint64_t value) {
  ++replies_;
  last_reply_ = value;
  save();
  if (kept_ != nullptr) kept_->pass(moment::saved);
  return send(connection_.get(), pci_proxy_message::reply_of(value));
}

void pci_proxy::save() {
  if (kept_ == nullptr || is_to_resume_) return;
  kept_->failure = static_cast<std::uint32_t>(failure_);
  kept_->keep({replies_, last_reply_, bus_->is_live(), bus_->state(), device_->save()});
}

ballast::result<void> pci_proxy::keep_at(kept_state& state) {
  kept_ = &state;
  ram_.keep_at(state);
  if (!state.has_any()) return {};
  const kept_state::half& last = state.last();
  replies_ = last.replies;
  last_reply_ = last.reply;
  if (const auto restored = device_->restore(last.device); !restored) return restored;
  bus_->restore(last.bus);
  is_line_raised_.reset();
  is_to_resume_ = bus_->is_live();
  return {};
}

void pci_proxy::resume() {
  std::array<ballast::device_queue_state, kept_state::queues> positions{};
  const bool is_packed = bus_->accepted().test(ballast::feature::ring_packed);
  for (std::size_t i = 0; i < bus_->queues().size(); ++i) {
    const ballast::queue_layout& layout = bus_->queues()[i];
    if (layout.size == 0) continue;
    const auto at =
        logs_[i].resume(window_type(kept_->in_flight[i]), ram_.memory(), layout, is_packed, 0);
    if (at)
      positions[i] = *at;
    else
      failure_ = at.error();
  }
  is_to_resume_ = false;
  ++kept_->resumed;
  perform(device_->resume(bus_->accepted(), bus_->queues(), memory_, positions));
}

// The log of a queue has to be there before the device is.
void pci_proxy::follow_queues() {
  if (kept_ == nullptr || bus_->is_live()) return;
  const bool is_packed = bus_->accepted().test(ballast::feature::ring_packed);
  for (std::size_t i = 0; i < bus_->queues().size() && i < logs_.size(); ++i) {
    const ballast::queue_layout& layout = bus_->queues()[i];
    if ((layout.size != 0) == logs_[i].is_on()) continue;
    logs_[i].stop();
    std::memset(kept_->in_flight[i], 0, sizeof(kept_->in_flight[i]));
    if (layout.size == 0) continue;
    const auto at = logs_[i].resume(window_type(kept_->in_flight[i]), ram_.memory(), layout,
                                    is_packed, is_packed ? 0x8000 : 0);
    if (!at) failure_ = at.error();
  }
}

void pci_proxy::interrupt(const ballast::actions& due) {
  const ballast::pci_interrupts now = bus_->interrupts(due);
  for (unsigned vector = 0; vector < 64; ++vector) {
    if (((now.vectors >> vector) & 1) == 0) continue;
    const ballast::msix_message message = bus_->message(vector);
    ++counted_.messages;
    wires_.send_message(message.address, message.data);
  }
  if (is_line_raised_ == now.line) return;
  is_line_raised_ = now.line;
  counted_.line_rises += now.line;
  wires_.set_line(now.line);
}

bool pci_proxy::handle(pci_proxy_message& got) {
  using message = pci_proxy_message;
  if (kept_ != nullptr && got.wants_reply()) kept_->pass(moment::request);
  switch (got.head.command) {
  case message::sync_memory: return take_memory(got);
  case message::set_interrupt_file: return true;
  case message::reset:
    ++counted_.resets;
    bus_->reset();
    interrupt({});
    return answer(0);
  case message::write_config: {
    const auto access = got.as<message::config_access>();
    ++counted_.config_accesses;
    const ballast::actions due =
        bus_->write_config_space(access.offset, static_cast<unsigned>(access.width), access.value);
    if (!answer(0)) return false;
    carry_out(due);
    return true;
  }
  case message::read_config: {
    const auto access = got.as<message::config_access>();
    ++counted_.config_accesses;
    return answer(bus_->read_config_space(access.offset, static_cast<unsigned>(access.width)));
  }
  case message::write_bar:
  case message::read_bar: return handle_bar(got);
  default:
    if (got.head.command < message::first_other || !on_other_) return false;
    on_other_(got);
    return true;
  }
}

bool pci_proxy::handle_bar(const pci_proxy_message& got) {
  const auto access = got.as<pci_proxy_message::bar_access>();
  const bool is_read = got.head.command == pci_proxy_message::read_bar;
  const auto bar = bus_->find_bar(access.address, access.is_memory != 0);
  ++counted_.bar_accesses;
  if (!bar) {
    ++counted_.unclaimed;
    return answer(is_read ? UINT64_MAX : 0);
  }
  if (is_read) {
    const std::uint64_t value = bus_->read(bar->bar, bar->offset, access.width);
    // Reading the ISR lowers the line, and the guest has to see that before the value.
    interrupt({});
    return answer(value);
  }
  const ballast::actions due = bus_->write(bar->bar, bar->offset, access.width, access.value);
  counted_.notifications += due.more_work != 0;
  follow_queues();
  // The guest goes on while the queue is processed.
  if (!answer(0)) return false;
  carry_out(due);
  return true;
}

// QEMU sends the table whenever a region of any kind comes or goes, the memory's or not.
bool pci_proxy::take_memory(pci_proxy_message& got) {
  const auto table = got.as<pci_proxy_message::memory_table>();
  std::vector<guest_ram::piece> pieces;
  for (std::size_t i = 0; i < got.files.size(); ++i)
    pieces.push_back({table.address[i], table.size[i], table.offset[i]});
  if (!ram_.differs(pieces, got.files)) return true;
  ++counted_.memory_tables;
  const bool is_live = bus_->is_live();
  if (is_live && !is_to_resume_) device_->detach();
  if (!ram_.map(pieces, got.files)) return false;
  memory_ = memory_type(ram_.memory(), logs_);
  if (is_to_resume_)
    resume();
  else if (is_live)
    perform(device_->attach(bus_->queues(), memory_));
  return true;
}

} // namespace interop
