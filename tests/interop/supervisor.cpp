// SPDX-License-Identifier: BSD-3-Clause
#include "supervisor.hpp"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>

namespace interop {

supervisor::supervisor(guest& linux, const pci_proxy::options& options)
    : linux_(&linux), options_(options), qemu_(linux.take_proxy()), state_(kept_state::make()) {
  if (state_ == nullptr) std::abort();
  start_worker();
}

pci_proxy_message supervisor::message_of(command what, std::uint64_t address, std::uint64_t value) {
  pci_proxy_message made;
  const pci_proxy_message::bar_access access{address, value, 0, 0};
  made.head = {what, 0, sizeof(access)};
  std::memcpy(made.payload.data(), &access, sizeof(access));
  return made;
}

void supervisor::start_worker() {
  auto sockets = qemu::socket_pair::make();
  const pid_t parent = getpid();
  id_ = fork();
  if (id_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    worker_.close();
    sockets.ours.close();
    work(std::move(sockets.theirs));
  }
  worker_ = std::move(sockets.ours);
  // What a worker finds: the memory, the target of now, and the request that is not answered.
  if (memory_) (void)send(worker_.get(), *memory_);
  (void)send(worker_.get(), message_of(set_target_to, 0, target_));
  if (pending_) (void)send(worker_.get(), *pending_);
}

/// The other process.
void supervisor::work(qemu::descriptor socket) {
  const int to = socket.get();
  pci_proxy device(
      std::move(socket),
      {.send_message =
           [&](std::uint64_t address, std::uint32_t data) {
             (void)send(to, message_of(send_interrupt, address, data));
           },
       .set_line =
           [&](bool is_raised) { (void)send(to, message_of(set_line, 0, is_raised ? 1 : 0)); }},
      options_);
  device.on_other([&](const pci_proxy_message& got) {
    const auto value = got.as<pci_proxy_message::bar_access>().value;
    if (got.head.command == set_target_to)
      device.perform(device.device().set_target(static_cast<std::uint32_t>(value)));
    if (got.head.command == ask_statistics) device.perform(device.device().request_statistics());
  });
  if (!device.keep_at(*state_)) _exit(3);
  std::uint64_t inflated = 0;
  while (device.run_once({}, 1000)) {
    const std::uint64_t now = device.device().counters().inflated_pages;
    state_->inflated += now - inflated;
    inflated = now;
    if (const auto got = device.device().take_statistics(0); got && got->is_solicited) {
      std::memcpy(state_->snapshot, &*got, sizeof(*got));
      ++state_->statistics;
    }
  }
  _exit(0);
}

bool supervisor::run_once(int other, int milliseconds) {
  // One request at a time: the next one is QEMU's business until this one is answered.
  std::array<pollfd, 3> ready{
      {{worker_.get(), POLLIN, 0}, {pending_ ? -1 : qemu_.get(), POLLIN, 0}, {other, POLLIN, 0}}};
  if (poll(ready.data(), ready.size(), milliseconds) <= 0) return true;
  if (ready[0].revents != 0) take_from_worker();
  return ready[1].revents == 0 || take_from_qemu();
}

bool supervisor::take_from_qemu() {
  pci_proxy_message got;
  if (!receive(qemu_.get(), got)) return false;
  (void)send(worker_.get(), got); // should it be dead, the next one gets it
  if (got.head.command == pci_proxy_message::sync_memory)
    memory_ = std::move(got);
  else if (got.wants_reply())
    pending_ = std::move(got);
  return true;
}

void supervisor::take_from_worker() {
  pci_proxy_message got;
  if (!receive(worker_.get(), got)) return bury();
  const auto access = got.as<pci_proxy_message::bar_access>();
  switch (got.head.command) {
  case pci_proxy_message::reply:
    ++replies_;
    pending_.reset();
    (void)send(qemu_.get(), got);
    break;
  case send_interrupt:
    linux_->send_message(access.address, static_cast<std::uint32_t>(access.value));
    break;
  case set_line: linux_->set_line(access.value != 0); break;
  default: break;
  }
}

/// All that it said has been read.
void supervisor::bury() {
  waitpid(id_, nullptr, 0);
  ++deaths_;
  if (pending_) ++deaths_in_request_;
  // What it did and could not say any more must not be done again.
  if (pending_ && state_->has_any() && state_->last().replies > replies_) {
    ++replies_;
    pending_.reset();
    (void)send(qemu_.get(), pci_proxy_message::reply_of(state_->last().reply));
  }
  start_worker();
}

void supervisor::end_worker() {
  if (id_ <= 0) return;
  kill(id_, SIGKILL);
  waitpid(id_, nullptr, 0);
  id_ = -1;
}

void supervisor::kill_worker() { kill(id_, SIGKILL); }

void supervisor::set_target(std::uint32_t pages) {
  target_ = pages;
  (void)send(worker_.get(), message_of(set_target_to, 0, pages));
}

void supervisor::request_statistics() {
  (void)send(worker_.get(), message_of(ask_statistics, 0, 0));
}

std::uint32_t supervisor::pages() const {
  std::uint32_t n = 0;
  for (const unsigned char bits : state_->balloon)
    n += static_cast<std::uint32_t>(std::popcount(bits));
  return n;
}

} // namespace interop
