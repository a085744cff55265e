// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/mmio_device.hpp>

#include "balloon_parts.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// A balloon behind mmio registers whose guest is the input: it accesses any offset at any width,
// writes what it likes into memory, between the calls and while the device looks. What may never
// happen does not, and at the end a driver that keeps the rules finds a device that works.

namespace {

using namespace ballast_fuzz;
using namespace ballast;
namespace at = mmio_register;

class scenario {
 public:
  explicit scenario(input& in) : in_(in) {
    const auto how = in_.number<std::uint16_t>();
    version_ = (how & 1) != 0 ? mmio_version::legacy : mmio_version::modern;
    balloon::device_options options;
    options.offered = {feature::event_idx, feature::indirect_desc, feature::in_order,
                       feature::ring_packed, feature::ring_reset};
    for (unsigned bit = 0; bit < 6; ++bit)
      if ((how >> (bit + 1) & 1) != 0) options.offered.set(bit);
    options.numbering = numbering_ = static_cast<balloon::queue_numbering>((how >> 7) % 3);
    options.buffer_pfns_max = 64;
    options.target_pages_max = 1000;
    host_.ram = &ram_;
    host_.is_one_batch = false;
    device_ = std::make_unique<device_type>(host_, options);
    begin_process();
  }

  void run() {
    start();
    for (int step = 0; step < 400 && !in_.empty(); ++step) {
      step_once();
      check();
    }
    serve_an_honest_driver();
  }

 private:
  using device_type = balloon::device<page_memory, full_host, 16>;
  using bus_type = mmio_device<device_type, page_memory>;
  static constexpr std::uint32_t queues_max = 5;
  /// Of a call that handles so many buffers: the rings, what a chain of them is, the PFNs.
  static constexpr std::uint64_t work_of(std::uint64_t budget) { return 64 + (budget + 1) * 4700; }

  /// A process that serves the device: with the registers as they were, if there were any.
  void begin_process() {
    memories_.push_back(std::make_unique<page_memory>(ram_, std::endian::little));
    auto next = std::make_unique<bus_type>(*device_, *memories_.back(), version_);
    if (bus_) next->restore(bus_->state());
    require(!bus_ || next->state() == bus_->state(), "what is saved is all that there is");
    bus_ = std::move(next);
  }

  void step_once() {
    switch (in_.below(20)) {
    case 0:
    case 1:
    case 2: write_anything(); break;
    case 3:
    case 4:
    case 5:
    case 6: write_register(); break;
    case 7: read_anything(); break;
    case 8:
    case 9:
    case 10: process(); break;
    case 11:
      ram_.poke(ram_.address_from(in_) + in_.below(8), in_.number<std::uint64_t>(),
                std::size_t{1} << in_.below(4));
      break;
    case 12: poke_ring(); break;
    case 13:
    case 14:
    case 15: offer(); break;
    case 16: plan_changes(in_, ram_); break;
    case 17: ask(); break;
    case 18:
      if (in_.below(4) == 0) begin_process();
      break;
    default:
      if (in_.below(4) == 0) start();
    }
  }

  // The registers.

  void write(std::uint64_t offset, unsigned width, std::uint64_t value) {
    begin_call();
    const auto before = bus_->state();
    const actions due = bus_->write(offset, width, value);
    const bool is_word = width == 4;
    const bool is_status = is_word && offset == at::status;
    const bool is_queue = is_word && (offset == at::queue_ready || offset == at::queue_reset ||
                                      offset == at::queue_pfn);
    require(is_status || is_queue || (ram_.accesses == 0 && host_.calls.empty()),
            "no other register touches memory");
    require(ram_.accesses <= 5 * work_of(4), "the work of a write is bounded");
    take(due);
    if (due.failure == error::register_access || due.failure == error::config_out_of_range)
      require(bus_->state() == before, "what is no register changes none");
    for (std::size_t i = 0; i < bus_->queues().size(); ++i) {
      const queue_layout& was = before.registers.transport.queues[i];
      const queue_layout& now = bus_->queues()[i];
      const bool may_go = now.size == 0 && (is_status || is_queue);
      require(was.size == 0 || now == was || may_go, "a ready queue keeps its geometry");
      require(was.size != 0 || now.size == 0 || is_queue, "and gets ready by being told to");
      require(now.size <= 16, "it has no more entries than it may");
    }
    if (is_status && static_cast<std::uint32_t>(value) == 0) {
      for (const queue_layout& q : bus_->queues()) require(q.size == 0, "a reset takes the queues");
      require(bus_->read(at::interrupt_status, 4) == 0 && bus_->read(at::status, 4) == 0,
              "a reset is complete");
    }
  }

  void take(const actions& due) {
    require(((due.notify_queues | due.more_work) & ~std::uint64_t{0x1f}) == 0,
            "there are 5 queues");
    require((due.notify_queues == 0 && !due.config_changed) || bus_->is_interrupting(),
            "what the driver is to be told interrupts");
    require(!due.needs_reset || due.failure != error::none, "a need for a reset has a reason");
    due_ |= due.more_work;
  }

  void write_anything() {
    const std::uint64_t offset = in_.below(8) == 7 ? in_.number<std::uint64_t>() : in_.below(0x128);
    const std::uint8_t how = in_.byte();
    const unsigned width = how < 0xf0 ? 1u << how % 4 : how;
    write(offset, width, in_.flag() ? in_.byte() : in_.number<std::uint64_t>());
  }
  void write_register() {
    static constexpr std::uint32_t offsets[] = {at::device_features_select,
                                                at::driver_features,
                                                at::driver_features_select,
                                                at::guest_page_size,
                                                at::queue_select,
                                                at::queue_size,
                                                at::queue_align,
                                                at::queue_pfn,
                                                at::queue_ready,
                                                at::queue_notify,
                                                at::interrupt_acknowledge,
                                                at::status,
                                                at::queue_descriptor_low,
                                                at::queue_driver_low,
                                                at::queue_device_low,
                                                at::queue_reset,
                                                at::config + 4,
                                                at::config + 12};
    std::uint64_t value = in_.byte();
    if (value >= 0xe0)
      value = in_.number<std::uint32_t>();
    else if (value >= 0xc0)
      value = 0x1000 + 16 * in_.below(0x200);
    else if (value >= 0x80)
      value = std::uint64_t{1} << (value & 31);
    write(offsets[in_.below(static_cast<std::uint32_t>(std::size(offsets)))], 4, value);
  }
  void read_anything() {
    const std::uint64_t offset = in_.below(8) == 7 ? in_.number<std::uint64_t>() : in_.below(0x128);
    const unsigned width = in_.below(4) == 3 ? in_.byte() : 1u << in_.below(4);
    begin_call();
    const std::uint64_t value = bus_->read(offset, width);
    require(width >= 8 || value >> (8 * width) == 0, "a value is no wider than its access");
    require(ram_.accesses == 0, "reading a register touches no memory");
  }

  void process() {
    const std::uint8_t how = in_.byte();
    std::uint16_t queue = how < 0xf8 ? how % 6 : in_.number<std::uint16_t>();
    if (due_ != 0 && how < 0x80) queue = static_cast<std::uint16_t>(std::countr_zero(due_));
    if (queue < 64) due_ &= ~(std::uint64_t{1} << queue);
    const std::uint32_t budget = in_.below(12);
    const bool is_ready = queue < bus_->queues().size() && bus_->queues()[queue].size != 0;
    const bool is_live = bus_->is_live();
    begin_call();
    const actions due = bus_->process(queue, budget);
    require((is_live && is_ready) || (ram_.accesses == 0 && host_.calls.empty()),
            "a queue that is not ready is not touched");
    require(ram_.accesses <= work_of(budget), "the work of a call is bounded");
    require(!is_live || is_ready || due == refused(error::invalid_queue_index), "it is refused");
    take(due);
  }

  /// What the VMM wants of the device.
  void ask() {
    begin_call();
    actions due;
    switch (in_.below(6)) {
    case 0:
      target_ = in_.below(1001);
      due = device_->set_target(target_);
      break;
    case 1: due = device_->request_statistics(); break;
    case 2: due = device_->start_hinting(); break;
    case 3: due = device_->stop_hinting(); break;
    case 4: due = device_->finish_hinting(); break;
    default: (void)device_->take_statistics(1);
    }
    bool is_ready = false; // the one queue that is touched unasked
    const auto statistics = queue_index(queue_kind::statistics, numbering_,
                                        device_->offered_features(), bus_->accepted());
    if (statistics) is_ready = bus_->queues()[*statistics].size != 0;
    require(is_ready || !bus_->is_live() || ram_.accesses == 0,
            "without the queue there is no memory to touch");
    take(bus_->carry_out(due));
  }

  void check() {
    require(device_->target() == target_, "the target is the VMM's");
    require(bus_->read(at::magic_value, 4) == mmio_magic && bus_->read(at::device_id, 4) == 5,
            "a device stays what it is");
    require(bus_->read(at::interrupt_status, 4) <= 3, "there are two reasons to interrupt");
    require(bus_->is_interrupting() == (bus_->read(at::interrupt_status, 4) != 0),
            "the line follows them");
    const std::uint64_t status = bus_->read(at::status, 4);
    require(!bus_->is_live() || (status & 4) != 0, "nothing is live before DRIVER_OK");
    require(status != 0 || device_->negotiated_features().empty(),
            "a reset device has no features");
    require(!bus_->is_live() || device_->negotiated_features() == bus_->accepted(),
            "a live device has the features that were accepted");
    require(version_ == mmio_version::modern || !bus_->accepted().test(feature::version_1) ||
                (status & 4) == 0,
            "a legacy device has no features of others");
  }

  void begin_call() {
    ram_.begin_call();
    host_.begin_call();
  }

  // The driver.

  [[nodiscard]] std::uint64_t peek(guest_address address, std::size_t width) const {
    std::uint64_t value = 0;
    for (std::size_t i = width; i-- > 0;) {
      const guest_ram::region* r = ram_.find(address + i);
      const std::uint64_t byte =
          r == nullptr ? 0 : std::to_integer<std::uint64_t>(r->data[address + i - r->address]);
      value = value << 8 | byte;
    }
    return value;
  }

  void poke_ring() {
    if (bus_->queues().empty()) return;
    const queue_layout& q =
        bus_->queues()[in_.below(static_cast<std::uint32_t>(bus_->queues().size()))];
    const guest_address areas[] = {q.descriptor_area, q.driver_area, q.device_area};
    ram_.poke(areas[in_.below(3)] + 2u * in_.below(80), in_.number<std::uint64_t>(),
              std::size_t{1} << in_.below(4));
  }

  /// A chain that is as it should be, of one buffer of the input's.
  void offer() {
    const std::uint32_t queue = in_.below(queues_max);
    const bool is_writable = queue >= 3 && in_.flag();
    const guest_address to = payload_from(in_, ram_);
    const std::uint32_t length = 4u * in_.byte();
    for (std::uint32_t i = 0; i < 4; ++i) ram_.poke(0x1a00 + 4 * i, in_.byte(), 4);
    offer(queue, {to, length}, is_writable);
  }
  void offer(std::uint32_t queue, const buffer& b, bool is_writable) {
    if (queue >= bus_->queues().size() || bus_->queues()[queue].size == 0) return;
    const queue_layout& q = bus_->queues()[queue];
    const std::uint16_t flags = is_writable ? split::flag_write : 0;
    if (bus_->accepted().test(feature::ring_packed)) {
      const std::uint32_t n = sent_[queue]++;
      const guest_address to = q.descriptor_area + 16 * (n % q.size);
      const bool wrap = n / q.size % 2 == 0;
      const unsigned both = wrap ? packed::flag_available : packed::flag_used;
      ram_.poke(to, b.address, 8);
      ram_.poke(to + 8,
                b.length | std::uint64_t{n % q.size} << 32 | std::uint64_t{flags | both} << 48, 8);
    } else {
      const auto index = static_cast<std::uint16_t>(peek(q.driver_area + 2, 2));
      const std::uint32_t n = index % q.size;
      ram_.poke(q.descriptor_area + 16 * n, b.address, 8);
      ram_.poke(q.descriptor_area + 16 * n + 8, b.length | std::uint64_t{flags} << 32, 8);
      ram_.poke(q.driver_area + 4 + 2 * n, n, 2);
      ram_.poke(q.driver_area + 2, std::uint16_t(index + 1u), 2);
    }
    if (in_.flag()) write(at::queue_notify, 4, queue);
  }

  void start() {
    const std::uint16_t wanted = in_.number<std::uint16_t>();
    start(wanted, in_.below(8) == 7 ? in_.byte() : 0);
  }
  /// The initialisation; with `but` one write of it is left out.
  void start(std::uint16_t wanted, std::uint32_t but) {
    std::uint32_t n = 0;
    const auto put = [&](std::uint32_t offset, std::uint64_t value) {
      if (++n != but) write(offset, 4, value);
    };
    const bool is_legacy = version_ == mmio_version::legacy;
    put(at::status, 0);
    put(at::status, 1);
    put(at::status, 3);
    feature_set accepted{feature::version_1};
    for (unsigned bit = 0; bit < 6; ++bit)
      if ((wanted >> bit & 1) != 0) accepted.set(bit);
    const unsigned rings[] = {feature::event_idx, feature::indirect_desc, feature::in_order,
                              feature::ring_packed, feature::ring_reset};
    for (unsigned i = 0; i < std::size(rings); ++i)
      if ((wanted >> (6 + i) & 1) != 0) accepted.set(rings[i]);
    for (std::uint32_t word = 0; word < 2; ++word) {
      put(at::device_features_select, word);
      const std::uint64_t offered = bus_->read(at::device_features, 4);
      put(at::driver_features_select, word);
      put(at::driver_features, accepted.word32(word) & offered);
    }
    if (!is_legacy) put(at::status, 11);
    sent_ = {};
    for (std::uint32_t queue = 0; queue < queues_max; ++queue) {
      const guest_address base = 0x1000 + 0x200 * queue;
      for (std::uint32_t i = 0; i < 0x200; i += 8) ram_.poke(base + i, 0, 8);
      put(at::queue_select, queue);
      put(at::queue_size, 8);
      if (is_legacy) {
        put(at::guest_page_size, 0x200);
        put(at::queue_align, 0x100);
        put(at::queue_pfn, base / 0x200);
      } else {
        const auto where = place_queue(base, 8, bus_->accepted()).layout;
        put(at::queue_descriptor_low, where.descriptor_area);
        put(at::queue_driver_low, where.driver_area);
        put(at::queue_device_low, where.device_area);
        put(at::queue_ready, 1);
      }
    }
    put(at::status, is_legacy ? 7 : 15);
  }

  void serve_an_honest_driver() {
    ram_.changes.clear();
    ram_.flipped_bits = 0;
    host_.allowed = host_.successful = 0xff;
    begin_process(); // its memory may be lost
    for (const std::uint16_t wanted : {std::uint16_t{0x82}, std::uint16_t{0x242}}) {
      start(wanted, 0);
      require(bus_->is_live() && bus_->queues()[0].size == 8, "a driver is accepted");
      for (std::uint32_t i = 0; i < 8; ++i) ram_.poke(0x1a00 + 4 * i, 0x20 + i, 4);
      offer(0, {0x1a00, 32}, false);
      begin_call();
      take(bus_->process(0, 4));
      std::uint64_t bytes = 0;
      for (const auto& call : host_.calls) bytes += call.size;
      require(bytes == 8 * 4096, "the host gets its pages");
      require(bus_->is_interrupting(), "the buffer comes back");
    }
  }

  input& in_;
  mmio_version version_ = mmio_version::modern;
  balloon::queue_numbering numbering_ = {};
  guest_ram ram_;
  full_host host_;

  std::unique_ptr<device_type> device_;
  std::vector<std::unique_ptr<page_memory>> memories_; ///< all but the last may be lost
  std::unique_ptr<bus_type> bus_;
  std::array<std::uint32_t, queues_max> sent_{};
  std::uint64_t due_ = 0;
  std::uint32_t target_ = 0;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  input in({data, size});
  scenario(in).run();
  return 0;
}
