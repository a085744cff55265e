// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/in_process_transport.hpp>

#include <support/check.hpp>

#include <ballast/memory/array_memory.hpp>
#include <ballast/virtio/config_space.hpp>
#include <ballast/virtio/negotiation.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace {

using ballast::actions;
using ballast::error;
using ballast::feature_set;
using ballast::queue_layout;
using ballast::result;
namespace status = ballast::status;

using memory = ballast::array_memory<4096>;

/// A device that answers what it is told to and remembers how it was called.
struct scripted_device {
  feature_set offered{1, 29, 32, 34};
  std::uint16_t queues = 3;
  error check_answer = error::none;
  actions activate_answer{};
  actions process_answer{};
  actions write_answer{};

  unsigned activations = 0;
  unsigned resets = 0;
  unsigned queue_resets = 0;
  actions enable_answer{};
  unsigned processed = 0;
  std::uint16_t last_queue = 0;
  std::uint32_t last_budget = 0;
  feature_set active_features{};
  std::array<std::uint32_t, 4> active_sizes{};
  std::size_t active_queues = 0;
  const memory* active_memory = nullptr;
  ballast::config_space<8> config{{4, 4}};

  constexpr std::uint32_t device_id() const noexcept { return 77; }
  constexpr feature_set offered_features() const noexcept { return offered; }
  constexpr result<void> check_features(const feature_set&) const noexcept { return check_answer; }
  constexpr std::uint16_t queue_count() const noexcept { return queues; }
  constexpr std::uint32_t queue_size_max(std::uint16_t queue) const noexcept {
    return queue == 1 ? 0 : 128; // queue 1 is not available
  }
  constexpr std::uint32_t config_size() const noexcept { return 8; }
  constexpr result<void> read_config(std::uint32_t offset, std::span<std::byte> to) const noexcept {
    return config.read(offset, to);
  }
  constexpr std::uint32_t config_generation() const noexcept { return config.generation(); }
  constexpr actions write_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    (void)config.write(offset, from);
    return write_answer;
  }
  constexpr actions activate(const feature_set& features, std::span<const queue_layout> layouts,
                             memory& ram) noexcept {
    ++activations;
    active_features = features;
    active_queues = layouts.size();
    for (std::size_t i = 0; i < layouts.size() && i < active_sizes.size(); ++i)
      active_sizes[i] = layouts[i].size;
    active_memory = &ram;
    return activate_answer;
  }
  constexpr actions process(std::uint16_t queue, std::uint32_t budget) noexcept {
    ++processed;
    last_queue = queue;
    last_budget = budget;
    return process_answer;
  }
  constexpr actions reset_queue(std::uint16_t queue) noexcept {
    ++queue_resets;
    last_queue = queue;
    return {};
  }
  constexpr actions enable_queue(std::uint16_t queue, const queue_layout& layout) noexcept {
    if (enable_answer.failure == error::none) active_sizes[queue] = layout.size;
    return enable_answer;
  }
  constexpr void reset() noexcept { ++resets; }
};

using transport = ballast::in_process_transport<scripted_device, memory>;
static_assert(ballast::device_model<scripted_device, memory>);
static_assert(ballast::driver_transport<transport>);

constexpr queue_layout layout(std::uint32_t size) { return {size, 0, 1024, 2048}; }

/// A device, its memory and the transport between, taken to some status.
struct machine {
  scripted_device device;
  memory ram;
  transport bus{device, ram};

  constexpr explicit machine(std::uint8_t to = 0, const feature_set& accepted = {1, 32}) {
    if (to == 0) return;
    bus.set_status(status::acknowledge);
    bus.set_status(status::acknowledge | status::driver);
    bus.set_driver_features(accepted);
    if ((to & status::features_ok) != 0)
      bus.set_status(status::acknowledge | status::driver | status::features_ok);
    if ((to & status::driver_ok) != 0) {
      (void)bus.set_up_queue(0, layout(64));
      bus.set_status(to);
    }
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;
};

constexpr std::array<std::byte, 4> four{};

constexpr auto whole_way = [](auto check) {
  machine m;
  ballast::driver_requirements wants;
  wants.device_id = 77;
  wants.supported = {1, 2, 32};
  const auto accepted = ballast::negotiate(m.bus, wants);
  check(accepted && *accepted == feature_set{1, 32});
  check(m.device.resets == 1 && m.device.activations == 0);
  check(m.bus.queue_size_max(0) == 128);
  check(m.bus.set_up_queue(0, layout(64)).has_value());
  check(m.bus.set_up_queue(2, layout(128)).has_value());
  check(ballast::set_driver_ok(m.bus).has_value());
  check(m.bus.status() == 15);
  check(m.device.activations == 1 && m.device.active_features == feature_set{1, 32});
  check(m.device.active_queues == 3);
  check(m.device.active_sizes == std::array<std::uint32_t, 4>{64, 0, 128, 0});
  check(m.device.active_memory == &m.ram);
  check(m.bus.driver_features() == feature_set{1, 32});
  check(m.bus.take_actions() == actions{});
  m.bus.notify(2);
  check(m.bus.take_notified() == 4 && m.bus.take_notified() == 0);
  m.device.process_answer = {.notify_queues = 4, .more_work = 4};
  check(m.bus.process(2, 9) == actions{.notify_queues = 4, .more_work = 4});
  check(m.device.processed == 1 && m.device.last_queue == 2 && m.device.last_budget == 9);
};
BOTH("a driver's initialisation activates the device with its queues and features (IN-1)",
     whole_way)

constexpr auto not_before_driver_ok = [](auto check) {
  machine m(11);
  check(m.bus.set_up_queue(0, layout(64)).has_value());
  m.bus.notify(0);
  check(m.bus.process(0, 100) == actions{});
  check(m.device.processed == 0);
  m.bus.set_status(15);
  check(m.bus.take_notified() == 1); // what was notified early is not lost
  (void)m.bus.process(0, 100);
  check(m.device.processed == 1);
};
BOTH("nothing is processed before DRIVER_OK (ST-5)", not_before_driver_ok)

constexpr auto queue_index = [](auto check) {
  machine m(15);
  for (const std::uint16_t queue : {std::uint16_t{3}, std::uint16_t{63}, std::uint16_t{64},
                                    std::uint16_t{65}, std::uint16_t{0xffff}}) {
    m.bus.notify(queue);
    check(m.bus.take_notified() == 0);
    check(m.bus.process(queue, 1) == ballast::refused(error::invalid_queue_index));
    check(m.bus.queue_size_max(queue) == 0);
  }
  check(m.bus.process(2, 1) == ballast::refused(error::invalid_queue_index)); // not set up
  check(m.device.processed == 0);
  machine n(11);
  check(n.bus.set_up_queue(3, layout(64)).error() == error::invalid_queue_index);
  check(n.bus.set_up_queue(0xffff, layout(64)).error() == error::invalid_queue_index);
};
BOTH("a queue that does not exist is refused everywhere (RT-3)", queue_index)

constexpr auto many_queues = [](auto check) {
  machine m;
  m.device.queues = 1000;
  m.bus.notify(63);
  m.bus.notify(64);
  check(m.bus.take_notified() == std::uint64_t{1} << 63);
  check(m.bus.queue_size_max(63) == 128 && m.bus.queue_size_max(64) == 0);
};
BOTH("a device of more than 64 queues has the first 64", many_queues)

constexpr auto queue_sizes = [](auto check) {
  machine m(11);
  const auto set_up = [&m](std::uint32_t size) { return m.bus.set_up_queue(0, layout(size)); };
  for (const std::uint32_t size : {0u, 3u, 96u, 127u, 129u, 256u, 0x8000'0000u, ~0u})
    check(set_up(size).error() == error::invalid_queue_size);
  check(m.bus.set_up_queue(1, layout(64)).error() == error::queue_unavailable);
  check(set_up(128).has_value());

  machine packed(11, {32, 34});
  check(packed.bus.set_up_queue(0, layout(0)).error() == error::invalid_queue_size);
  check(packed.bus.set_up_queue(0, layout(129)).error() == error::invalid_queue_size);
  check(packed.bus.set_up_queue(0, layout(97)).has_value());
};
BOTH("a queue's size is checked, a power of two unless packed (RT-12)", queue_sizes)

constexpr auto frozen = [](auto check) {
  machine m(15);
  check(m.device.active_sizes[0] == 64);
  check(m.bus.set_up_queue(0, layout(128)).error() == error::wrong_state);
  check(m.bus.set_up_queue(2, layout(128)).error() == error::wrong_state);
  machine n(11);
  check(n.bus.set_up_queue(0, layout(64)).has_value());
  check(n.bus.set_up_queue(0, layout(128)).error() == error::wrong_state);
  n.bus.set_status(15);
  check(n.device.active_sizes[0] == 64);
  machine early(3);
  check(early.bus.set_up_queue(0, layout(64)).error() == error::wrong_state);
  machine none;
  check(none.bus.set_up_queue(0, layout(64)).error() == error::wrong_state);
};
BOTH("a queue's geometry is frozen once it is enabled (RT-12)", frozen)

constexpr auto ring_reset = [](auto check) {
  machine m(15, {1, 32});
  check(m.bus.reset_queue(0).error() == error::not_negotiated);
  machine r;
  r.device.offered.set(40);
  r.bus.set_status(status::acknowledge);
  r.bus.set_status(status::acknowledge | status::driver);
  r.bus.set_driver_features({32, 40});
  r.bus.set_status(11);
  check(r.bus.set_up_queue(0, layout(64)).has_value());
  check(r.bus.reset_queue(0).error() == error::wrong_state); // not live yet
  r.bus.set_status(15);
  check(r.bus.reset_queue(2).error() == error::invalid_queue_index); // was never set up
  check(r.bus.reset_queue(3).error() == error::invalid_queue_index);
  check(r.bus.reset_queue(0).has_value() && r.device.queue_resets == 1);
  check(r.bus.reset_queue(0).error() == error::invalid_queue_index); // not twice
  // VR-1: a queue that was reset is not processed, whoever notified it.
  check(r.bus.process(0, 1).failure == error::invalid_queue_index && r.device.processed == 0);
  check(r.bus.set_up_queue(2, layout(64)).error() == error::wrong_state);
  check(r.bus.set_up_queue(0, layout(96)).error() == error::invalid_queue_size);
  r.device.enable_answer = ballast::refused(error::not_guest_memory);
  check(r.bus.set_up_queue(0, layout(128)).error() == error::not_guest_memory);
  r.device.enable_answer = {.notify_queues = 1};
  check(r.bus.set_up_queue(0, layout(128)).has_value()); // VR-5: another size
  check(r.device.active_sizes[0] == 128);
  (void)r.bus.take_actions();
  check(r.bus.set_up_queue(0, layout(64)).error() == error::wrong_state);
  check(r.bus.process(0, 1).failure == error::none && r.device.processed == 1);
};
BOTH("a queue can be reset and given back while the device is live (VR-1, VR-5, VR-6)", ring_reset)

constexpr auto twice = [](auto check) {
  machine m(15);
  m.bus.set_status(15);
  m.bus.set_status(15);
  check(m.device.activations == 1);
  check(m.bus.take_actions() == actions{});
};
BOTH("a second DRIVER_OK does not activate again (RT-27)", twice)

constexpr auto illegal_status = [](auto check) {
  machine m(3);
  m.bus.set_status(7); // VERSION_1 was accepted, FEATURES_OK left out
  check(m.bus.status() == 3 && m.device.activations == 0);
  check(m.bus.take_actions().failure == error::status_out_of_order);
  m.bus.set_status(1);
  check(m.bus.take_actions().failure == error::status_bit_cleared);
  m.bus.set_status(67);
  check(m.bus.take_actions().failure == error::status_bit_of_device);
  m.bus.set_status(131);
  m.bus.set_status(11);
  check(m.bus.take_actions().failure == error::status_after_failed);
  check(m.bus.status() == 131 && m.device.resets == 0);
};
BOTH("an illegal status write changes nothing and is reported (RT-27)", illegal_status)

constexpr auto features = [](auto check) {
  machine extra(11, {1, 2, 32}); // 2 is not on offer
  check(extra.bus.status() == 3);
  check(extra.bus.take_actions().failure == error::feature_not_offered);
  machine lonely(11, {34});
  check(lonely.bus.status() == 3);
  check(lonely.bus.take_actions().failure == error::feature_dependency);

  machine picky(3);
  picky.device.check_answer = error::not_negotiated;
  picky.bus.set_status(11);
  check(picky.bus.status() == 3);
  check(picky.bus.take_actions().failure == error::not_negotiated);
  picky.device.check_answer = error::none;
  picky.bus.set_status(11);
  check(picky.bus.status() == 11);
};
BOTH("FEATURES_OK stays clear where the device can't work with the features (FT-7)", features)

constexpr auto late_features = [](auto check) {
  machine m(11);
  m.bus.set_driver_features({1, 29, 32});
  check(m.bus.driver_features() == feature_set{1, 32});
  check(m.bus.take_actions().failure == error::wrong_state);
  m.bus.set_status(15);
  m.bus.set_driver_features({});
  check(m.bus.driver_features() == feature_set{1, 32});
  check(m.device.active_features == feature_set{1, 32});
};
BOTH("features can't change after FEATURES_OK (IN-3)", late_features)

constexpr auto transport_features = [](auto check) {
  machine m;
  m.device.offered = {1, 32, 34, 37, 38, 39, 40, 41, 43};
  check(m.bus.device_features() == feature_set{1, 32, 34, 40});
  machine forced(3, {32, 43});
  forced.device.offered = {32, 43};
  forced.bus.set_status(11);
  check(forced.bus.status() == 3);
};
BOTH("features that the transport does not carry out are not offered (FT-8)", transport_features)

constexpr auto again = [](auto check) {
  machine m(15);
  for (int i = 0; i < 3; ++i) {
    ballast::driver_requirements wants;
    wants.device_id = 77;
    wants.supported = {1, 32};
    check(ballast::negotiate(m.bus, wants).has_value());
    check(m.bus.set_up_queue(0, layout(32)).has_value());
    check(ballast::set_driver_ok(m.bus).has_value());
  }
  check(m.device.activations == 4 && m.device.resets == 3);
};
BOTH("the same features are agreed on again after a reset (FT-9)", again)

constexpr auto reset = [](auto check) {
  machine m(15);
  m.bus.notify(0);
  m.device.write_answer = {.notify_queues = 1, .config_changed = true};
  check(m.bus.write_config(4, four).has_value());
  m.bus.set_status(0);
  check(m.bus.status() == 0 && m.device.resets == 1);
  check(m.bus.take_notified() == 0);
  check(m.bus.take_actions() == actions{}); // nothing of before is notified any more
  check(m.bus.driver_features().empty());
  check(m.bus.process(0, 1) == actions{} && m.device.processed == 0);
  // The queues are forgotten too: a new driver sets up its own.
  m.bus.set_status(3);
  m.bus.set_driver_features({32});
  m.bus.set_status(11);
  check(m.bus.set_up_queue(2, layout(16)).has_value());
  m.bus.set_status(15);
  check(m.device.active_sizes == std::array<std::uint32_t, 4>{0, 0, 16, 0});
};
BOTH("a reset forgets queues, features and notifications (RS-1, RS-2)", reset)

constexpr auto needs_reset = [](auto check) {
  machine m(15);
  m.device.process_answer = {
      .notify_queues = 1, .needs_reset = true, .failure = error::chain_loops};
  const actions due = m.bus.process(0, 1);
  check(due.needs_reset && due.config_changed && due.failure == error::chain_loops);
  check(m.bus.status() == 79);
  check(m.bus.process(0, 1) == actions{} && m.device.processed == 1);
  // Later ones are no further news.
  check(!m.bus.carry_out({.needs_reset = true}).config_changed);
  m.bus.set_status(0);
  check(m.bus.status() == 0);
};
BOTH("a device that can't go on sets NEEDS_RESET and tells the driver once (ST-6, ST-7)",
     needs_reset)

constexpr auto needs_reset_early = [](auto check) {
  machine m(11);
  check(!m.bus.carry_out({.needs_reset = true}).config_changed);
  check(m.bus.status() == 75);
  m.bus.set_status(15);
  check(m.device.activations == 0);
  check(m.bus.take_actions().failure == error::device_needs_reset);
};
BOTH("before DRIVER_OK NEEDS_RESET is set without a notification (ST-7)", needs_reset_early)

constexpr auto activation_fails = [](auto check) {
  machine refuses(11);
  refuses.device.activate_answer = ballast::refused(error::not_guest_memory);
  refuses.bus.set_status(15);
  check(refuses.bus.status() == 11);
  check(refuses.bus.take_actions() == ballast::refused(error::not_guest_memory));

  machine breaks(11);
  breaks.device.activate_answer = {.needs_reset = true, .failure = error::head_out_of_range};
  breaks.bus.set_status(15);
  check(breaks.bus.status() == 79);
  const actions due = breaks.bus.take_actions();
  check(due.config_changed && due.needs_reset && due.failure == error::head_out_of_range);
};
BOTH("an activation that is refused leaves DRIVER_OK clear; one that breaks needs a reset",
     activation_fails)

constexpr auto activation_actions = [](auto check) {
  machine m(11);
  m.device.activate_answer = {.notify_queues = 5, .more_work = 1};
  m.bus.set_status(15);
  check(m.bus.take_actions() == actions{.notify_queues = 5, .more_work = 1});
  check(m.bus.take_actions() == actions{});
};
BOTH("what an activation asks for waits for the loop", activation_actions)

constexpr auto config_writes = [](auto check) {
  std::array<std::byte, 4> value{};
  value[0] = std::byte{7};
  machine m(3);
  check(m.bus.write_config(4, value).error() == error::wrong_state); // IN-2
  check(m.device.config.get32(4) == 0);
  m.bus.set_status(11);
  check(m.bus.write_config(4, value).has_value());
  check(m.device.config.get32(4) == 7);
  m.bus.set_status(15);
  value[0] = std::byte{8};
  m.device.write_answer = {.notify_queues = 1};
  check(m.bus.write_config(4, value).has_value());
  check(m.device.config.get32(4) == 8);
  check(m.bus.take_actions() == actions{.notify_queues = 1});
  m.device.write_answer = ballast::refused(error::not_negotiated);
  check(m.bus.write_config(4, value).error() == error::not_negotiated);
  check(m.bus.take_actions() == actions{});
  m.device.write_answer = {.needs_reset = true, .failure = error::memory_lost};
  check(m.bus.write_config(4, value).error() == error::memory_lost);
  check(m.bus.take_actions().config_changed && m.bus.status() == 79);

  machine early; // has accepted nothing: may be a legacy driver
  check(early.bus.write_config(4, value).has_value());
  machine failed(3);
  failed.bus.set_status(131);
  check(failed.bus.write_config(4, value).error() == error::wrong_state);
};
BOTH("configuration is written outside negotiation, by a legacy driver always (IN-2, IN-7)",
     config_writes)

constexpr auto config_reads = [](auto check) {
  for (const std::uint8_t at :
       {std::uint8_t{0}, std::uint8_t{3}, std::uint8_t{11}, std::uint8_t{15}}) {
    machine m(at);
    (void)m.device.config.set32(0, 0x01020304);
    std::array<std::byte, 4> to{};
    check(ballast::read_config_consistent(m.bus, 0, to).has_value());
    check(to[0] == std::byte{4} && to[3] == std::byte{1});
    check(m.bus.config_generation() == 1);
  }
};
BOTH("configuration is readable in every status (CF-4)", config_reads)

constexpr auto config_bounds = [](auto check) {
  machine m(15);
  std::array<std::byte, 16> buffer{};
  for (const std::uint32_t offset : {0u, 4u, 5u, 8u, 9u, 0xffff'fff8u, 0xffff'ffffu})
    for (const std::size_t n : {0u, 1u, 2u, 4u, 8u, 9u, 16u}) {
      const error expected =
          std::uint64_t{offset} + n <= 8 ? error::none : error::config_out_of_range;
      check(m.bus.read_config(offset, std::span(buffer).first(n)).error() == expected);
      check(m.bus.write_config(offset, std::span(buffer).first(n)).error() == expected);
    }
};
BOTH("a configuration access that passes the end is refused at every width (RT-11)", config_bounds)

constexpr auto legacy = [](auto check) {
  machine m(3, {1}); // no VERSION_1
  check(m.bus.set_up_queue(0, layout(64)).has_value());
  m.bus.set_status(7);
  check(m.bus.status() == 7 && m.device.activations == 1);
  check(m.device.active_features == feature_set{1});

  machine greedy(3, {1, 2}); // 2 is not on offer, and there is no FEATURES_OK to say so
  greedy.bus.set_status(7);
  check(greedy.bus.status() == 3 && greedy.device.activations == 0);
  check(greedy.bus.take_actions().failure == error::feature_not_offered);

  machine modern_only(3, {1});
  modern_only.device.check_answer = error::not_negotiated;
  modern_only.bus.set_status(7);
  check(modern_only.bus.status() == 3 && modern_only.device.activations == 0);
};
BOTH("a legacy driver's features are checked when it activates (IN-6, FT-10, RF-4)", legacy)

constexpr auto left_out = [](auto check) {
  scripted_device device;
  device.offered = {1, 2, 32, 37, 38, 40};
  memory ram;
  transport bus(device, ram, {2, 37});
  check(bus.device_features() == feature_set{1, 32, 38, 40});
  bus.set_status(3);
  bus.set_driver_features({2, 32}); // what is left out can't be accepted either
  bus.set_status(11);
  check(bus.status() == 3 && bus.take_actions().failure == error::feature_not_offered);
  transport all(device, ram, {});
  check(all.device_features() == device.offered);
};
BOTH("a transport built on this one says which features it leaves out (FT-8)", left_out)

constexpr auto disabled = [](auto check) {
  machine m(11);
  check(m.bus.disable_queue(0).has_value()); // one that is not enabled stays so
  check(m.bus.disable_queue(3).error() == error::invalid_queue_index);
  check(m.bus.disable_queue(0xffff).error() == error::invalid_queue_index);
  check(m.bus.set_up_queue(0, layout(64)).has_value());
  check(m.bus.set_up_queue(2, layout(32)).has_value());
  check(m.bus.disable_queue(0).has_value() && m.bus.queues()[0] == queue_layout{});
  check(m.device.queue_resets == 0); // the device has not seen it yet
  check(m.bus.set_up_queue(0, layout(128)).has_value());
  m.bus.set_status(15);
  check(m.device.active_sizes == std::array<std::uint32_t, 4>{128, 0, 32, 0});

  check(m.bus.disable_queue(2).has_value());
  check(m.device.queue_resets == 1 && m.device.last_queue == 2);
  check(m.bus.disable_queue(2).has_value() && m.device.queue_resets == 1); // not twice
  check(m.bus.process(2, 1).failure == error::invalid_queue_index && m.device.processed == 0);
  check(m.bus.process(0, 1) == actions{} && m.device.processed == 1); // the other one goes on
  check(m.bus.set_up_queue(2, layout(16)).has_value() && m.device.active_sizes[2] == 16);
  check(m.bus.set_up_queue(2, layout(8)).error() == error::wrong_state);

  check(m.bus.disable_queue(2).has_value());
  m.bus.set_status(0);
  m.bus.set_status(3);
  m.bus.set_driver_features({32});
  m.bus.set_status(11);
  m.bus.set_status(15);
  check(m.bus.set_up_queue(2, layout(16)).error() == error::wrong_state); // forgotten by the reset
};
BOTH("a driver that says not ready has its queue back at once, without RING_RESET (MM-5)", disabled)

constexpr auto saved = [](auto check) {
  machine m(15, {1, 32});
  (void)m.bus.disable_queue(0);
  const ballast::transport_state state = m.bus.state();
  check(state.status == 15 && state.driver_features == feature_set{1, 32} && state.is_reset[0]);

  transport next(m.device, m.ram);
  check(!(next.state() == state) && next.process(0, 1) == actions{});
  next.restore(state);
  check(next.state() == state && next.is_live() && next.status() == 15);
  check(next.driver_features() == feature_set{1, 32});
  check(m.device.activations == 1 && m.device.resets == 0); // it was not touched
  next.set_driver_features({});
  check(next.take_actions().failure == error::wrong_state);
  check(next.set_up_queue(2, layout(64)).error() == error::wrong_state);
  check(next.set_up_queue(0, layout(32)).has_value() && m.device.active_sizes[0] == 32);
  check(next.process(0, 7) == actions{} && m.device.last_budget == 7);
  check(next.queues()[0].size == 32 && next.queues().size() == 3);

  transport early(m.device, m.ram);
  early.restore({.status = 11, .driver_features = {32}, .queues = {layout(16)}, .is_reset = {}});
  check(early.set_up_queue(0, layout(64)).error() == error::wrong_state); // it has that one
  check(early.set_up_queue(2, layout(64)).has_value());
  early.set_status(15);
  check(m.device.active_sizes == std::array<std::uint32_t, 4>{16, 0, 64, 0});
};
BOTH("a transport goes on from what was saved, without touching the device", saved)

TEST_CASE("notifications from several threads are each seen") {
  machine m(15);
  m.device.queues = 64;
  constexpr unsigned rounds = 10'000;
  unsigned seen[2]{};
  // Each thread waits until its bit was taken, so every notification counts
  ballast::shared_value<std::uint32_t> taken[2];
  const auto driver = [&](std::uint16_t queue) {
    for (std::uint32_t i = 0; i < rounds; ++i) {
      m.bus.notify(queue);
      while (taken[queue].load() <= i) std::this_thread::yield();
    }
  };
  std::thread a(driver, std::uint16_t{0});
  std::thread b(driver, std::uint16_t{1});
  while (seen[0] < rounds || seen[1] < rounds) {
    const std::uint64_t queues = m.bus.take_notified();
    CHECK((queues & ~std::uint64_t{3}) == 0);
    for (unsigned i = 0; i < 2; ++i)
      if ((queues >> i & 1) != 0) {
        ++seen[i];
        taken[i].fetch_add(1);
      }
    if (queues == 0) std::this_thread::yield();
  }
  a.join();
  b.join();
  CHECK(seen[0] == rounds);
  CHECK(seen[1] == rounds);
  CHECK(m.bus.take_notified() == 0);
}

} // namespace
