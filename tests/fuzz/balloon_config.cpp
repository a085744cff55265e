// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/device.hpp>

#include "balloon_parts.hpp"
#include "hostile_memory.hpp"
#include "target.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/features.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// The configuration space: reads and writes of any offset and width, by a driver before and after
// DRIVER_OK, while the VMM moves the target and the rounds of hinting. Beside it a plain array of
// bytes, of which the driver changes what is its own.

namespace {

using namespace ballast_fuzz;
using namespace ballast;

constexpr std::uint32_t num_pages = 0, actual = 4, command = 8, poison = 12;

class scenario {
 public:
  explicit scenario(input& in) : in_(in) {
    balloon::device_options options{.offered = {balloon::feature::stats_vq}};
    const std::uint8_t how = in_.byte();
    if ((how & 1) != 0) options.offered.set(balloon::feature::free_page_hint);
    if ((how & 2) != 0) options.offered.set(balloon::feature::page_poison);
    options.hinting.hides_started_id = (how & 4) != 0;
    constexpr std::uint32_t page_sizes[] = {4096, 16384, 65536, 0};
    options.guest_page_size_max = guest_page_max_ = page_sizes[in_.below(4)];
    constexpr std::uint32_t maxima[] = {UINT32_MAX, 0, 1000, 0x80000000};
    options.target_pages_max = target_max_ = maxima[in_.below(4)];
    m_.build(options, 4096);
    size_ = (how & 2) != 0 ? 16 : (how & 1) != 0 ? 12 : 8;
    has_poison_ = (how & 2) != 0;
    has_hints_ = (how & 1) != 0;
  }

  void run() {
    for (int step = 0; step < 400 && !in_.empty(); ++step) {
      step_once();
      check();
    }
    m_.device->reset();
    on_reset();
    check();
  }

 private:
  using machine = balloon_machine<full_host>;

  [[nodiscard]] std::uint32_t word(std::uint32_t at) const {
    std::uint32_t value = 0;
    for (std::uint32_t i = 0; i < 4; ++i)
      value |= std::to_integer<std::uint32_t>(bytes_[at + i]) << 8 * i;
    return value;
  }
  void set_word(std::uint32_t at, std::uint32_t value) {
    for (std::uint32_t i = 0; i < 4; ++i) bytes_[at + i] = static_cast<std::byte>(value >> 8 * i);
  }

  void step_once() {
    m_.begin_call(false);
    switch (in_.below(12)) {
    case 0: write(); break;
    case 1: write(); break;
    case 2: write(); break;
    case 3: read(); break;
    case 4: set_target(); break;
    case 5: set_target(); break;
    case 6: activate(); break;
    case 7:
      m_.device->reset();
      on_reset();
      break;
    case 8: hint(m_.device->start_hinting()); break;
    case 9: hint(m_.device->stop_hinting()); break;
    case 10: hint(m_.device->finish_hinting()); break;
    default: fail_to_activate(); break;
    }
    require(m_.host.calls.empty(), "the configuration does nothing to memory");
  }

  /// What the array says is what everyone sees.
  void check() {
    std::array<std::byte, 16> all{};
    require(m_.device->config_size() == size_, "the size does not change");
    require(m_.device->read_config(0, std::span(all).first(size_)).has_value(), "all is readable");
    require(std::equal(all.begin(), all.begin() + size_, bytes_.begin()),
            "read-only fields change by the device alone, the driver's by the driver");
    require(m_.device->target() == word(num_pages) && m_.device->actual() == balloon_,
            "the VMM sees the sizes");
    require(m_.device->poison() == word(poison), "and the poison");
    require(m_.device->is_target_reached() == is_reached(), "and whether the target is reached");
    require(word(command) != 0 || m_.device->hinting().command_id() == 0, "the id is hinting's");
    // Whoever reads between two changes finds another generation.
    require(!is_changed_by_device_ || m_.device->config_generation() != generation_,
            "a change by the device moves the generation");
    require(is_changed_by_device_ || m_.device->config_generation() == generation_,
            "nothing else does");
    generation_ = m_.device->config_generation();
    is_changed_by_device_ = false;
  }

  [[nodiscard]] bool is_reached() const {
    for (const std::uint64_t pages : {1u, 4u, 16u}) {
      if (pages != 1 && pages * 4096 > guest_page_max_) continue;
      std::uint64_t target = word(num_pages);
      while (target % pages != 0) ++target;
      if (target == balloon_) return true;
    }
    return false;
  }

  void device_sets(std::uint32_t at, std::uint32_t value) {
    is_changed_by_device_ |= word(at) != value;
    set_word(at, value);
  }

  [[nodiscard]] std::uint32_t offset_from() {
    const std::uint8_t how = in_.byte();
    return how < 0xf0 ? how % 20 : in_.number<std::uint32_t>() | 0xffff'fff0u;
  }
  [[nodiscard]] bool is_visible(std::uint32_t offset, std::size_t count) const {
    return std::uint64_t{offset} + count <= size_;
  }

  void write() {
    const std::uint32_t offset = offset_from();
    std::vector<std::byte> from(in_.below(18));
    for (std::byte& b : from) b = std::byte{in_.byte()};
    (void)m_.device->take_events();
    const std::uint32_t before = balloon_;
    const actions due = m_.device->write_config(offset, from);
    if (!is_visible(offset, from.size()))
      return require(due == refused(error::config_out_of_range), "no write passes the end");
    require(due == actions{}, "a write asks for nothing");
    for (std::size_t i = 0; i < from.size(); ++i) {
      const std::size_t at = offset + i;
      const bool is_poison = at >= poison && has_poison_ && !is_live_;
      if ((at >= actual && at < command) || is_poison) bytes_[at] = from[i];
      if (at == command - 1) balloon_ = word(actual); // its most significant byte
    }
    const balloon::device_events events = m_.device->take_events();
    require(events.actual_changed == (before != balloon_), "another size is an event");
    require(events.target_reached == (before != balloon_ && is_reached()),
            "and so is the size that was wanted");
  }

  void read() {
    const std::uint32_t offset = offset_from();
    std::vector<std::byte> to(in_.below(18), std::byte{0x5a});
    const auto done = m_.device->read_config(offset, to);
    require(done.has_value() == is_visible(offset, to.size()), "no read passes the end");
    for (std::size_t i = 0; i < to.size(); ++i)
      require(to[i] == (done ? bytes_[offset + i] : std::byte{0x5a}), "a read gives what is there");
  }

  void set_target() {
    const std::uint8_t how = in_.byte();
    std::uint32_t pages = in_.number<std::uint16_t>();
    if (how >= 0xc0) pages = in_.number<std::uint32_t>();
    if (how < 0x40) pages = balloon_ - how % 20;
    (void)m_.device->take_events();
    const actions due = m_.device->set_target(pages);
    if (pages > target_max_)
      return require(due == refused(error::target_too_large), "no target passes the maximum");
    const bool is_changed = pages != word(num_pages);
    device_sets(num_pages, pages);
    require(due.failure == error::none && due.config_changed == (is_changed && is_live_),
            "a live driver is told of another target");
    require(m_.device->take_events().target_reached == (is_changed && is_live_ && is_reached()),
            "a target that is reached already is an event");
  }

  void activate() {
    feature_set wanted = ring_features(in_);
    const std::uint8_t how = in_.byte();
    for (unsigned bit = 0; bit < 6; ++bit)
      if ((how >> bit & 1) != 0) wanted.set(bit);
    if (in_.flag()) {
      wanted = wanted & m_.device->offered_features();
      const actions due = m_.device->activate(wanted, m_.layouts, m_.memory());
      if (is_live_) return require(due == refused(error::wrong_state), "it is active");
      require(due.failure == error::none, "a device without queues is one all the same");
      m_.negotiated = wanted;
    } else {
      on_reset();
      require(m_.activate(wanted, 4, [](auto&) {}).failure == error::none, "a driver is accepted");
    }
    m_.layouts = {};
    is_live_ = true;
    if (!m_.negotiated.test(balloon::feature::page_poison)) device_sets(poison, 0);
  }

  /// Nothing of a driver that does not get there stays.
  void fail_to_activate() {
    if (is_live_) return;
    const queue_layout nowhere[] = {{.size = 4, .descriptor_area = 0x7777'0000}};
    const actions due = m_.device->activate(feature_set{}, nowhere, m_.memory());
    require(due.needs_reset && due.failure != error::none, "a queue that is no memory is refused");
  }

  void on_reset() {
    device_sets(poison, 0);
    device_sets(command, 0);
    is_live_ = false;
  }

  void hint(const actions& due) {
    const bool is_possible =
        is_live_ && has_hints_ && m_.negotiated.test(balloon::feature::free_page_hint);
    if (!is_possible) return require(due == refused(error::not_negotiated), "no hints without it");
    require(due.failure == error::none, "there is always another id");
    const std::uint32_t id = m_.device->hinting().command_id();
    require(due.config_changed == (id != word(command)), "the driver is told of another id");
    device_sets(command, id);
  }

  input& in_;
  machine m_;
  std::array<std::byte, 16> bytes_{};
  std::uint32_t balloon_ = 0; ///< the size that counts
  std::uint32_t size_ = 0;
  std::uint32_t guest_page_max_ = 0;
  std::uint32_t target_max_ = 0;
  std::uint32_t generation_ = 0;
  bool is_changed_by_device_ = false;
  bool has_poison_ = false;
  bool has_hints_ = false;
  bool is_live_ = false;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  input in({data, size});
  scenario(in).run();
  return 0;
}
