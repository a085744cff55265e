// SPDX-License-Identifier: BSD-3-Clause
// Random chains of Linux's virtqueues over Linux's virtio-mmio transport: two queues behind our
// registers, in both formats, with and without tables and event index, version 2 and 1. Each side
// runs only when it was told to, by QueueNotify or the interrupt line: one that is lost is a stall.

#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include "linux_kernel.h"
#include "linux_machine.hpp"
#include "traffic.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using interop::random_source;

constexpr std::uint32_t size_max = 256;

struct configuration {
  std::uint32_t size = 64;
  bool is_packed = false;
  bool has_event_index = false;
  bool has_indirect = false;
  bool has_notification_data = false;
  mmio_version version = mmio_version::modern;
};

/// The sum of a chain's readable bytes goes into its writable ones: each is `sum + i`.
[[nodiscard]] std::uint8_t answer(std::uint32_t sum, std::size_t i) {
  return static_cast<std::uint8_t>(sum + i);
}

/// Two queues whose chains are answered, some of them later and in another order.
class answering_device {
 public:
  answering_device(const configuration& how, std::uint64_t seed) : how_(how), random_(seed) {}

  std::uint64_t chains = 0, kept = 0;
  error failure = error::none;

  [[nodiscard]] std::uint32_t device_id() const noexcept { return linux_chain_device; }
  [[nodiscard]] feature_set offered_features() const noexcept {
    feature_set offered{feature::version_1, feature::in_order, feature::ring_reset};
    if (how_.is_packed) offered.set(feature::ring_packed);
    if (how_.has_event_index) offered.set(feature::event_idx);
    if (how_.has_indirect) offered.set(feature::indirect_desc);
    if (how_.has_notification_data) offered.set(feature::notification_data);
    return offered;
  }
  [[nodiscard]] result<void> check_features(const feature_set&) const noexcept { return {}; }
  [[nodiscard]] std::uint16_t queue_count() const noexcept { return linux_chain_queues; }
  [[nodiscard]] std::uint32_t queue_size_max(std::uint16_t) const noexcept { return how_.size; }
  [[nodiscard]] std::uint32_t config_size() const noexcept { return 0; }
  [[nodiscard]] result<void> read_config(std::uint32_t, std::span<std::byte>) const noexcept {
    return error::config_out_of_range;
  }
  [[nodiscard]] std::uint32_t config_generation() const noexcept { return 0; }
  actions write_config(std::uint32_t, std::span<const std::byte>) noexcept {
    return refused(error::config_out_of_range);
  }
  actions activate(const feature_set& features, std::span<const queue_layout> layouts,
                   mapped_memory& memory) noexcept {
    memory_ = &memory;
    for (std::size_t i = 0; i < layouts.size(); ++i)
      if (const auto done = sides_[i].queue.start(memory, layouts[i], features); !done)
        return {.needs_reset = true, .failure = done.error()};
    return {.more_work = 3};
  }
  actions process(std::uint16_t index, std::uint32_t budget) noexcept {
    side& s = sides_[index];
    s.queue.disable_notifications();
    std::uint32_t taken = 0;
    for (; taken < budget; ++taken) {
      const auto popped = s.queue.pop_available();
      if (!popped) break;
      receive(s, *popped);
    }
    while (!s.kept.empty() && random_.one_in(3)) give_back(s);
    actions due = publish(index);
    if (s.queue.cause() != error::none)
      return {.needs_reset = true, .failure = failure = s.queue.cause()};
    if (taken == budget || s.queue.enable_notifications())
      due.more_work = std::uint64_t{1} << index;
    return due;
  }
  /// Gives some back that were kept: what a device does whose backend has finished.
  actions finish() noexcept {
    actions due;
    for (std::uint16_t i = 0; i < linux_chain_queues; ++i) {
      while (!sides_[i].kept.empty() && !random_.one_in(4)) give_back(sides_[i]);
      due |= publish(i);
    }
    return due;
  }
  actions reset_queue(std::uint16_t index) noexcept {
    sides_[index].queue.detach();
    sides_[index].kept.clear();
    return {};
  }
  actions enable_queue(std::uint16_t, const queue_layout&) noexcept { return {}; }
  void reset() noexcept {
    for (side& s : sides_) {
      s.queue.reset();
      s.kept.clear();
    }
  }
  [[nodiscard]] bool is_holding() const noexcept {
    return std::ranges::any_of(sides_, [](const side& s) { return !s.kept.empty(); });
  }

 private:
  struct kept_chain {
    chain_id id;
    std::vector<buffer> writable;
    std::uint32_t sum = 0;
  };
  struct side {
    device_queue_storage<size_max> storage;
    virtqueue_device<mapped_memory> queue{storage};
    std::deque<kept_chain> kept{};
  };

  void receive(side& s, const chain& popped) {
    ++chains;
    std::uint32_t sum = 0;
    std::vector<std::byte> bytes;
    for (const buffer& b : popped.readable()) {
      bytes.resize(b.length);
      if (!memory_->read(b.address, bytes)) failure = error::not_guest_memory;
      for (const std::byte byte : bytes) sum = sum * 31 + std::to_integer<std::uint32_t>(byte);
    }
    s.kept.push_back({popped.id(), {popped.writable().begin(), popped.writable().end()}, sum});
    if (random_.one_in(4)) {
      ++kept;
      return;
    }
    std::swap(s.kept.back(), s.kept.front());
    give_back(s);
  }
  void give_back(side& s) {
    const std::size_t which = s.kept.size() > 1 && random_.one_in(2)
                                  ? random_.below(static_cast<std::uint32_t>(s.kept.size()))
                                  : 0;
    const kept_chain chain = s.kept[which];
    s.kept.erase(s.kept.begin() + static_cast<std::ptrdiff_t>(which));
    std::size_t written = 0;
    for (const buffer& b : chain.writable) {
      std::vector<std::byte> bytes(b.length);
      for (std::byte& byte : bytes) byte = std::byte{answer(chain.sum, written++)};
      if (!memory_->write(b.address, bytes)) failure = error::access_not_allowed;
    }
    if (const auto done = s.queue.push_used(chain.id, static_cast<std::uint32_t>(written)); !done)
      failure = done.error();
  }
  actions publish(std::uint16_t index) {
    actions due;
    virtqueue_device<mapped_memory>& queue = sides_[index].queue;
    if (!queue.is_attached()) return due;
    queue.publish();
    if (queue.should_notify()) due.notify_queues = std::uint64_t{1} << index;
    return due;
  }

  configuration how_;
  random_source random_;
  mapped_memory* memory_ = nullptr;
  std::array<side, linux_chain_queues> sides_;
};

/// What Linux's driver does: chains of up to 12 buffers, in slots of its own memory.
class traffic {
 public:
  static constexpr std::uint32_t most_buffers = 12, most_bytes = 300;

  traffic(const configuration& how, std::uint64_t seed)
      : how_(how), random_(seed), m_(title(how), how.version, [&](std::byte*) {
          return std::make_unique<answering_device>(how, seed + 1);
        }) {}

  bool run(std::uint64_t wanted) {
    m_.check(linux_plug() == 0 && linux_has_driver() != 0, "Linux takes the device");
    for (unsigned queue = 0; queue < linux_chain_queues; ++queue)
      m_.check(linux_chain_size(queue) == how_.size, "its queues are as large as ours");
    const bool has_tables = m_.bus.accepted().test(feature::indirect_desc);
    m_.check(has_tables == how_.has_indirect, "Linux takes indirect descriptors where offered");
    for (lane& l : lanes_) {
      l.slots.resize(how_.size);
      l.memory = static_cast<std::uint8_t*>(linux_memory(how_.size * slot_bytes));
      for (std::uint32_t i = how_.size; i-- > 0;) l.free.push_back(i);
    }
    std::uint64_t sent = 0;
    std::uint32_t idle = 0;
    while (m_.is_right && (sent < wanted || in_flight() != 0)) {
      bool has_moved = false;
      for (unsigned queue = 0; queue < linux_chain_queues; ++queue) {
        if (sent < wanted && random_.one_in(2)) sent += send(queue, has_moved);
        if (linux_chain_was_called(queue) != 0) has_moved = receive(queue) || has_moved;
      }
      if (random_.one_in(3)) has_moved = m_.step() || has_moved;
      if (m_.device->is_holding() && random_.one_in(8)) {
        m_.carry_out(m_.device->finish());
        has_moved = true;
      }
      idle = has_moved ? 0 : idle + 1;
      m_.check(idle < 10'000, "nothing stalls");
      m_.check(m_.device->failure == error::none, "the device finds nothing wrong");
    }
    for (unsigned queue = 0; queue < linux_chain_queues; ++queue) {
      m_.check(linux_chain_free_descriptors(queue) == how_.size, "every descriptor is free again");
      m_.check(linux_chain_is_broken(queue) == 0, "no queue is broken");
    }
    // vm_interrupt() calls none its own where the driver was there before it: no check of that.
    m_.check(m_.refusals == 0 && m_.rules.wrongs == 0, "registers are accessed as they should be");
    linux_unplug();
    m_.check(!m_.bus.is_live(), "without the driver the device is reset");
    const std::uint64_t chains = m_.device->chains;
    m_.check(chains == sent && m_.interrupts != 0 && m_.notifications < 2 * chains,
             "all were seen");
    if (m_.is_right)
      std::printf("ok   Linux's mmio, %s: %llu chains, %llu notifications, %llu interrupts\n",
                  m_.name.c_str(), static_cast<unsigned long long>(chains),
                  static_cast<unsigned long long>(m_.notifications),
                  static_cast<unsigned long long>(m_.interrupts));
    return m_.is_right;
  }

 private:
  static constexpr std::uint32_t slot_bytes = most_buffers * most_bytes;
  struct slot {
    std::array<linux_chain_buffer, most_buffers> buffers{};
    std::uint32_t readable = 0, writable = 0, sum = 0;
    bool is_sent = false;
  };
  struct lane {
    std::vector<slot> slots;
    std::vector<std::uint32_t> free;
    std::uint8_t* memory = nullptr;
  };

  static std::string title(const configuration& how) {
    std::string text = how.version == mmio_version::legacy ? "version 1" : "version 2";
    text += how.is_packed ? ", packed" : ", split";
    text += " of " + std::to_string(how.size);
    if (how.has_event_index) text += ", event index";
    if (how.has_indirect) text += ", tables";
    if (how.has_notification_data) text += ", notification data";
    return text;
  }
  [[nodiscard]] std::size_t in_flight() const {
    std::size_t n = 0;
    for (const lane& l : lanes_) n += l.slots.size() - l.free.size();
    return n;
  }

  /// Some chains, and then a notification; how many.
  std::uint64_t send(unsigned queue, bool& has_moved) {
    lane& l = lanes_[queue];
    std::uint64_t sent = 0;
    for (std::uint32_t n = random_.below(6); n-- > 0 && !l.free.empty(); ++sent) {
      const std::uint32_t id = l.free.back();
      if (!make(l, id)) break;
      slot& s = l.slots[id];
      // Linux takes no null pointer.
      const int done = linux_chain_add(queue, s.buffers.data(), s.readable, s.writable, &s);
      if (done == -ENOSPC) break;
      m_.check(done == 0, "a chain can be added");
      s.is_sent = true;
      l.free.pop_back();
    }
    if (sent != 0) {
      linux_chain_kick(queue);
      has_moved = true;
    }
    return sent;
  }

  bool make(lane& l, std::uint32_t id) {
    slot& s = l.slots[id];
    const std::uint32_t limit = std::min(most_buffers, how_.size);
    const std::uint32_t count = 1 + random_.below(limit);
    s.readable = random_.below(count + 1);
    s.writable = count - s.readable;
    s.sum = 0;
    std::uint8_t* at = l.memory + id * slot_bytes;
    for (std::uint32_t i = 0; i < count; ++i, at += most_bytes) {
      const std::uint32_t skipped = random_.below(8);
      s.buffers[i] = {at + skipped, 1 + random_.below(most_bytes - skipped)};
      auto* bytes = static_cast<std::uint8_t*>(s.buffers[i].address);
      for (std::uint32_t k = 0; k < s.buffers[i].length; ++k) {
        bytes[k] = static_cast<std::uint8_t>(random_.bits());
        if (i < s.readable) s.sum = s.sum * 31 + bytes[k];
      }
    }
    return true;
  }

  bool receive(unsigned queue) {
    lane& l = lanes_[queue];
    bool has_moved = false;
    const bool is_polling = random_.one_in(2);
    do {
      if (is_polling) linux_chain_disable_cb(queue);
      std::uint32_t length = 0;
      while (auto* s = static_cast<slot*>(linux_chain_get(queue, &length))) {
        has_moved = true;
        m_.check(s->is_sent, "a chain comes back once");
        s->is_sent = false;
        std::size_t written = 0;
        bool is_same = true;
        for (std::uint32_t i = s->readable; i < s->readable + s->writable; ++i) {
          const auto* bytes = static_cast<const std::uint8_t*>(s->buffers[i].address);
          for (std::uint32_t k = 0; k < s->buffers[i].length; ++k)
            is_same = is_same && bytes[k] == answer(s->sum, written++);
        }
        m_.check(is_same && length == written, "with the answer to it, all of it");
        l.free.push_back(static_cast<std::uint32_t>(s - l.slots.data()));
      }
    } while ((random_.one_in(4) ? linux_chain_enable_cb_delayed(queue)
                                : linux_chain_enable_cb(queue)) == 0);
    return has_moved;
  }

  configuration how_;
  random_source random_;
  interop::linux_machine<answering_device> m_;
  std::array<lane, linux_chain_queues> lanes_;
};

} // namespace

int main(int argc, char** argv) {
  const std::uint64_t chains = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20'000;
  bool is_right = true;
  std::uint64_t seed = 1;
  const auto run = [&](const configuration& how) {
    is_right = traffic(how, ++seed).run(chains) && is_right;
    std::fflush(stdout);
  };
  for (const std::uint32_t size : {2u, 16u, 256u})
    for (const unsigned bits : {0u, 1u, 2u, 3u}) {
      const bool has_event_index = (bits & 1) != 0, has_indirect = (bits & 2) != 0;
      run({size, false, has_event_index, has_indirect});
      run({size == 16 ? 13 : size, true, has_event_index, has_indirect}); // packed: any size
      run({size, false, has_event_index, has_indirect, false, mmio_version::legacy});
    }
  run({64, false, true, true, true});
  run({64, true, true, true, true});
  return is_right ? 0 : 1;
}
