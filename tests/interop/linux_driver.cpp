// SPDX-License-Identifier: BSD-3-Clause
// Linux's driver, virtio_ring.c, against our virtqueue_device over mapped_memory, in both formats.

#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtqueue/virtqueue.hpp>

#include "linux_ring.h"
#include "traffic.hpp"

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace {

using namespace interop;

// Linux's driver puts every chain of two buffers and more into a table, of any length. A chain
// longer than the ring is forbidden all the same ("Indirect Descriptors") and breaks our queue, so
// the traffic has none.
constexpr bool has_tables_for_all = true;

class linux_side {
 public:
  explicit linux_side(const configuration& of) : size_(of.size) {
    if (of.is_packed) {
      driver_.reset(linux_driver_create_packed(of.size, of.has_event_index, of.has_indirect));
      return;
    }
    ring_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes(of.size))));
    std::memset(ring_.get(), 0, bytes(of.size));
    driver_.reset(linux_driver_create(of.size, of.has_event_index, of.has_indirect, ring_.get()));
  }

  [[nodiscard]] ballast::queue_layout layout() const {
    std::uint64_t areas[3];
    linux_driver_areas(driver_.get(), areas);
    return {size_, areas[0], areas[1], areas[2]};
  }

  bool add(std::uint32_t id, const chain_record& made) {
    linux_buffer buffers[most_buffers];
    const std::uint32_t count = made.readable + made.writable;
    for (std::uint32_t i = 0; i < count; ++i)
      buffers[i] = {pointer(made.buffers[i].address), made.buffers[i].length};
    return linux_driver_add(driver_.get(), buffers, made.readable, made.writable, token(id)) == 0;
  }
  void publish() {} // add did
  bool should_notify() { return linux_driver_kick_prepare(driver_.get()) != 0; }
  bool get(std::uint32_t& id, std::uint32_t& length) {
    const void* got = linux_driver_get_buf(driver_.get(), &length);
    if (got == nullptr) return false;
    id = static_cast<std::uint32_t>(address_of(got) - 1);
    return true;
  }
  bool interrupt() { return linux_driver_interrupt(driver_.get()) != 0; }
  void disable() { linux_driver_disable_cb(driver_.get()); }
  bool enable(random_source& random) {
    if (random.one_in(3)) return linux_driver_enable_cb_delayed(driver_.get()) == 0;
    return linux_driver_enable_cb(driver_.get()) == 0;
  }
  [[nodiscard]] std::string complaint(bool is_idle) const {
    if (linux_driver_is_broken(driver_.get())) return "broken";
    if (is_idle && linux_driver_free_descriptors(driver_.get()) != size_)
      return "descriptors are missing";
    return {};
  }

 private:
  struct deleter {
    void operator()(std::byte* ring) const noexcept { std::free(ring); }
    void operator()(linux_driver* driver) const noexcept { linux_driver_destroy(driver); }
  };

  static std::size_t bytes(std::uint32_t size) {
    return (linux_driver_ring_bytes(size) + 4095) / 4096 * 4096;
  }
  // Linux takes no null pointer.
  static void* token(std::uint32_t id) { return pointer(std::uint64_t{id} + 1); }

  std::uint32_t size_;
  std::unique_ptr<std::byte, deleter> ring_;
  std::unique_ptr<linux_driver, deleter> driver_;
};

class our_side {
 public:
  static constexpr bool writes_on_receipt = false;

  struct view {
    ballast::mapped_memory& memory;
    const ballast::chain& of;
    ballast::buffer_reader<ballast::mapped_memory> reader{memory, of.readable()};

    // The epoch in the upper half.
    [[nodiscard]] std::uint64_t handle() const {
      return of.id().head | std::uint64_t{of.id().epoch} << 32;
    }
    [[nodiscard]] auto readable() const { return of.readable(); }
    [[nodiscard]] auto writable() const { return of.writable(); }
    std::size_t read(std::span<std::byte> to) {
      const auto done = reader.read(to);
      return done ? *done : to.size();
    }
    bool write(std::span<const std::byte> from) { return write_to(memory, of.writable(), from); }
  };

  our_side(const configuration& of, const ballast::queue_layout& layout)
      : memory_(*ballast::mapped_memory::over(process)) {
    ballast::feature_set features{ballast::feature::version_1};
    if (of.has_event_index) features.set(ballast::feature::event_idx);
    if (of.has_indirect) features.set(ballast::feature::indirect_desc);
    if (of.is_packed) features.set(ballast::feature::ring_packed);
    start_ = queue_.start(memory_, layout, features).error();
  }

  template <class Receive>
  std::uint32_t take(std::uint32_t budget, random_source& random, Receive&& receive) {
    const auto handle = [&](const ballast::chain& popped) {
      view seen{memory_, popped};
      const verdict answer = receive(seen);
      return answer.is_kept ? ballast::keep() : ballast::used(answer.length);
    };
    if (random.one_in(2)) {
      const auto done = queue_.consume(budget, handle);
      return done ? done->chains : 0;
    }
    if (random.one_in(2)) {
      const auto done = queue_.consume_one(handle);
      return done ? done->chains : 0;
    }
    std::uint32_t taken = 0;
    for (; taken < budget; ++taken) {
      const auto popped = queue_.pop_available();
      if (!popped) break;
      view seen{memory_, *popped};
      const verdict answer = receive(seen);
      if (!answer.is_kept && !queue_.push_used(popped->id(), answer.length)) break;
    }
    return taken;
  }
  bool give_back(const chain_record& kept, std::span<const std::byte> response) {
    const ballast::chain_id id{static_cast<std::uint16_t>(kept.handle),
                               static_cast<std::uint32_t>(kept.handle >> 32)};
    return write_to(memory_, kept.writable_part(), response) &&
           queue_.push_used(id, kept.used_length).has_value();
  }
  void publish() { queue_.publish(); }
  bool should_notify() { return queue_.should_notify(); }
  void disable() { queue_.disable_notifications(); }
  bool enable() { return queue_.enable_notifications(); }
  [[nodiscard]] std::string complaint(bool is_idle) const {
    if (start_ != ballast::error::none) return ballast::name(start_);
    if (queue_.cause() != ballast::error::none) return ballast::name(queue_.cause());
    if (is_idle && queue_.in_flight() != 0) return "chains are still in flight";
    return {};
  }

 private:
  static bool write_to(ballast::mapped_memory& memory, std::span<const ballast::buffer> buffers,
                       std::span<const std::byte> from) {
    for (const ballast::buffer& b : buffers) {
      const std::size_t n = std::min<std::size_t>(b.length, from.size());
      if (!memory.write(b.address, from.first(n))) return false;
      from = from.subspan(n);
    }
    return from.empty();
  }

  // All of it but the first page: Linux's indirect tables come from the heap.
  static inline const ballast::memory_region process[] = {{4096, pointer(4096), 1ull << 47}};

  ballast::mapped_memory memory_;
  ballast::device_queue_storage<most_chains> storage_;
  ballast::virtqueue_device<ballast::mapped_memory> queue_{storage_};
  ballast::error start_ = ballast::error::none;
};

bool run(const configuration& of, std::uint64_t chains, std::uint64_t seed) {
  linux_side driver(of);
  our_side device(of, driver.layout());
  exchange traffic(of, driver.layout(), chains, seed, driver, device);
  return report("Linux's driver", of, chains, traffic);
}

} // namespace

int main(int argc, char** argv) {
  return run_all("Linux's driver", true, has_tables_for_all, argc, argv, run);
}
