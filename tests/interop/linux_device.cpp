// SPDX-License-Identifier: BSD-3-Clause
// Our split_driver over direct_memory against Linux's device, vringh.c.

#include <ballast/memory/direct_memory.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include "linux_ring.h"
#include "traffic.hpp"

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace {

using namespace interop;

// Chains of more buffers lie in the ring even where tables are in use.
constexpr std::uint32_t table_entries = most_buffers / 2;

class our_side {
 public:
  explicit our_side(const configuration& of)
      : ring_(ring_bytes(of.size)),
        tables_(of.has_indirect ? std::size_t{of.size} * table_entries : 0) {
    // Linux's vringh wants no more than the parts' own alignment, and gets no more.
    const std::uint64_t base = (address_of(ring_.data()) + 31) / 32 * 32 + 16;
    layout_ = ballast::split::place(base, of.size).layout;
    ballast::feature_set features{ballast::feature::version_1};
    if (of.has_event_index) features.set(ballast::feature::event_idx);
    if (of.has_indirect) features.set(ballast::feature::indirect_desc);
    start_ = queue_
                 .start(memory_, layout_, features, 0,
                        {address_of(tables_.data()), of.has_indirect ? table_entries : 0})
                 .error();
  }

  [[nodiscard]] const ballast::queue_layout& layout() const { return layout_; }

  bool add(std::uint32_t id, const chain_record& made) {
    return queue_.add(made.readable_part(), made.writable_part(), id).has_value();
  }
  void publish() { queue_.publish(); }
  bool should_notify() { return queue_.should_notify(); }
  bool get(std::uint32_t& id, std::uint32_t& length) {
    const auto got = queue_.pop_used();
    if (!got) return false;
    id = static_cast<std::uint32_t>(got->token);
    length = got->length;
    return true;
  }
  bool interrupt() { return true; }
  void disable() { queue_.disable_notifications(); }
  bool enable(random_source&) { return queue_.enable_notifications(); }
  [[nodiscard]] std::string complaint(bool is_idle) const {
    if (start_ != ballast::error::none) return ballast::name(start_);
    if (queue_.cause() != ballast::error::none) return ballast::name(queue_.cause());
    if (is_idle && (queue_.in_flight() != 0 || queue_.free_descriptors() != queue_.size()))
      return "descriptors are missing";
    return {};
  }

 private:
  static std::size_t ring_bytes(std::uint32_t size) {
    return static_cast<std::size_t>(ballast::split::place(0, size).end) + 64;
  }

  struct alignas(ballast::split::descriptor_table_alignment) table_entry {
    std::array<std::byte, ballast::split::descriptor_size> bytes;
  };

  std::vector<std::byte> ring_;
  std::vector<table_entry> tables_;
  ballast::queue_layout layout_;
  ballast::direct_memory memory_;
  std::array<ballast::driver_slot, most_chains> slots_;
  ballast::split_driver<ballast::direct_memory> queue_{slots_};
  ballast::error start_ = ballast::error::none;
};

class linux_side {
 public:
  static constexpr bool writes_on_receipt = true; // vringh can only write to the newest chain

  struct view {
    linux_device* device;
    std::uint16_t head = 0;
    std::array<ballast::buffer, most_buffers> buffers{};
    std::uint32_t readable_count = 0, writable_count = 0;

    [[nodiscard]] std::uint64_t handle() const { return head; }
    [[nodiscard]] auto readable() const { return std::span(buffers).first(readable_count); }
    [[nodiscard]] auto writable() const {
      return std::span(buffers).subspan(readable_count, writable_count);
    }
    std::size_t read(std::span<std::byte> to) {
      return static_cast<std::size_t>(linux_device_pull(device, to.data(), to.size()));
    }
    bool write(std::span<const std::byte> from) {
      return linux_device_push(device, from.data(), from.size()) ==
             static_cast<std::ptrdiff_t>(from.size());
    }
  };

  linux_side(const configuration& of, const ballast::queue_layout& layout) {
    const std::uint64_t areas[] = {layout.descriptor_area, layout.driver_area, layout.device_area};
    device_.reset(linux_device_create(of.size, of.has_event_index, of.has_indirect, areas));
  }

  template <class Receive>
  std::uint32_t take(std::uint32_t budget, random_source&, Receive&& receive) {
    std::uint32_t taken = 0;
    for (; taken < budget; ++taken) {
      view seen{device_.get()};
      linux_buffer buffers[most_buffers];
      const int found = linux_device_getdesc(device_.get(), &seen.head, buffers, most_buffers,
                                             &seen.readable_count, &seen.writable_count);
      if (found == 0) break;
      if (found < 0 || seen.readable_count + seen.writable_count > most_buffers) {
        complaint_ = "vringh refused a chain: " + std::to_string(found);
        break;
      }
      for (std::uint32_t i = 0; i < seen.readable_count + seen.writable_count; ++i)
        seen.buffers[i] = {address_of(buffers[i].address), buffers[i].length};
      const verdict answer = receive(seen);
      if (!answer.is_kept) complete(seen.head, answer.length);
    }
    return taken;
  }
  bool give_back(const chain_record& kept, std::span<const std::byte>) {
    complete(static_cast<std::uint16_t>(kept.handle), kept.used_length);
    return true;
  }
  void publish() {} // vringh_complete_kern() did
  bool should_notify() { return linux_device_need_notify(device_.get()) == 1; }
  void disable() { linux_device_notify_disable(device_.get()); }
  bool enable() { return linux_device_notify_enable(device_.get()) == 0; }
  [[nodiscard]] std::string complaint(bool) const { return complaint_; }

 private:
  struct deleter {
    void operator()(linux_device* device) const noexcept { linux_device_destroy(device); }
  };

  void complete(std::uint16_t head, std::uint32_t length) {
    if (linux_device_complete(device_.get(), head, length) != 0)
      complaint_ = "vringh_complete_kern failed";
  }

  std::unique_ptr<linux_device, deleter> device_;
  std::string complaint_;
};

bool run(const configuration& of, std::uint64_t chains, std::uint64_t seed) {
  our_side driver(of);
  linux_side device(of, driver.layout());
  exchange traffic(of, driver.layout(), chains, seed, driver, device);
  return report("Linux's device", of, chains, traffic);
}

} // namespace

int main(int argc, char** argv) {
  return run_all("Linux's device", false, false, argc, argv, run); // vringh has no packed rings
}
