// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/negotiation.hpp>

#include <support/check.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace {

using ballast::driver_requirements;
using ballast::error;
using ballast::feature_set;
using ballast::result;

/// A device as the driver sees it: plays what it is told to and remembers what was written.
struct scripted_transport {
  feature_set offered{1, 29, 32};
  bool takes_features = true;
  bool takes_driver_ok = true;
  std::uint32_t reads_until_reset = 0;
  std::uint8_t breaks_at = 0; // NEEDS_RESET appears with this status bit
  std::uint32_t unstable_reads = 0;
  bool has_config = true;

  std::array<std::uint8_t, 16> written{};
  std::size_t writes = 0;
  feature_set accepted{};
  std::size_t accepted_at = 0; // after so many status writes
  std::uint32_t features_written = 0;
  std::uint8_t bits = 0;
  std::uint32_t generation = 0;
  std::uint32_t config_reads = 0;
  std::uint32_t status_reads = 0;

  constexpr std::uint32_t device_id() noexcept { return 5; }
  constexpr feature_set device_features() noexcept { return offered; }
  constexpr void set_driver_features(const feature_set& f) noexcept {
    accepted = f;
    accepted_at = writes;
    ++features_written;
  }
  constexpr std::uint8_t status() noexcept {
    ++status_reads;
    if (reads_until_reset > 0) {
      --reads_until_reset;
      return 0xff;
    }
    return bits;
  }
  constexpr void set_status(std::uint8_t now) noexcept {
    if (writes < written.size()) written[writes] = now;
    ++writes;
    std::uint8_t kept = now;
    if (!takes_features) kept &= 0xf7;
    if (!takes_driver_ok) kept &= 0xfb;
    if ((now & breaks_at) != 0) kept |= 64;
    bits = kept;
  }
  constexpr std::uint32_t queue_size_max(std::uint16_t) noexcept { return 0; }
  constexpr result<void> reset_queue(std::uint16_t) noexcept { return {}; }
  constexpr result<void> set_up_queue(std::uint16_t, const ballast::queue_layout&) noexcept {
    return {};
  }
  constexpr std::uint32_t config_generation() noexcept { return generation; }
  constexpr result<void> read_config(std::uint32_t, std::span<std::byte> to) noexcept {
    if (!has_config) return error::config_out_of_range;
    ++config_reads;
    for (std::byte& b : to) b = static_cast<std::byte>(config_reads);
    if (unstable_reads > 0) {
      --unstable_reads;
      ++generation;
    }
    return {};
  }
  constexpr result<void> write_config(std::uint32_t, std::span<const std::byte>) noexcept {
    return {};
  }
  constexpr void notify(std::uint16_t) noexcept {}

  constexpr bool wrote(std::initializer_list<int> expected) const {
    if (writes != expected.size()) return false;
    std::size_t i = 0;
    for (const int value : expected)
      if (written[i++] != value) return false;
    return true;
  }
};
static_assert(ballast::driver_transport<scripted_transport>);

constexpr driver_requirements wants(const feature_set& supported,
                                    const feature_set& required = {}) {
  driver_requirements r;
  r.device_id = 5;
  r.supported = supported;
  r.required = required;
  r.reset_attempts = 10;
  return r;
}

constexpr auto modern = [](auto check) {
  scripted_transport t;
  const auto accepted = ballast::negotiate(t, wants({1, 2, 29, 32}));
  check(accepted && *accepted == feature_set{1, 29, 32});
  check(t.accepted == feature_set{1, 29, 32} && t.features_written == 1);
  check(t.wrote({0, 1, 3, 11}));
  check(t.accepted_at == 3); // between DRIVER and FEATURES_OK
  check(ballast::set_driver_ok(t).has_value());
  check(t.wrote({0, 1, 3, 11, 15}));
};
BOTH("the steps come in the specification's order (IN-1, ST-1, ST-2, RT-27)", modern)

constexpr auto subset = [](auto check) {
  scripted_transport t;
  t.offered = {1, 2, 5, 29, 32};
  const auto accepted = ballast::negotiate(t, wants({2, 3, 28, 32}));
  check(accepted && *accepted == feature_set{2, 32});
};
BOTH("only what is offered and supported is accepted (FT-1)", subset)

constexpr auto version_1 = [](auto check) {
  scripted_transport t;
  const auto accepted = ballast::negotiate(t, wants({1}));
  check(accepted && *accepted == feature_set{1, 32});
};
BOTH("VERSION_1 is accepted whenever it is offered (RF-1)", version_1)

constexpr auto undefined = [](auto check) {
  scripted_transport t;
  feature_set all;
  for (unsigned bit = 0; bit < feature_set::capacity; ++bit) all.set(bit);
  t.offered = all;
  const auto accepted = ballast::negotiate(t, wants(all));
  check(accepted.has_value());
  for (const unsigned bit : {25u, 26u, 30u, 31u, 44u, 49u, 128u, 255u})
    check(!accepted->test(bit) && !t.accepted.test(bit));
  check(accepted->test(0) && accepted->test(23) && accepted->test(50) && accepted->test(127));
};
BOTH("undefined bits are never accepted (FT-3)", undefined)

constexpr auto unknown_offered = [](auto check) {
  scripted_transport t;
  t.offered = {1, 6, 30, 32, 47, 99, 200};
  const auto accepted = ballast::negotiate(t, wants({1, 32}));
  check(accepted && *accepted == feature_set{1, 32});
  check((t.bits & 128) == 0);
};
BOTH("an unknown feature on offer is no reason to fail (FT-5)", unknown_offered)

constexpr auto dependencies = [](auto check) {
  constexpr ballast::feature_dependency table[] = {{6, 3}, {7, 6}};
  scripted_transport t;
  t.offered = {1, 6, 7, 32};
  driver_requirements r = wants({1, 3, 6, 7, 32});
  r.dependencies = table;
  const auto accepted = ballast::negotiate(t, r);
  check(accepted && *accepted == feature_set{1, 32});
};
BOTH("a feature whose dependency is not offered is not accepted (FT-2)", dependencies)

constexpr auto legacy = [](auto check) {
  scripted_transport t;
  t.offered = {1, 24, 27, 34}; // 34 can't be had without VERSION_1
  const auto accepted = ballast::negotiate(t, wants({1, 27, 32, 34}));
  check(accepted && *accepted == feature_set{1, 27});
  check(t.wrote({0, 1, 3}));
  check(ballast::set_driver_ok(t).has_value());
  check(t.wrote({0, 1, 3, 7}));
};
BOTH("a legacy device gets no FEATURES_OK (IN-6, FT-10)", legacy)

constexpr auto legacy_refused = [](auto check) {
  scripted_transport t;
  t.offered = {1};
  const auto accepted = ballast::negotiate(t, wants({1, 32}, {32}));
  check(accepted.error() == error::not_negotiated);
  check(t.wrote({0, 1, 3, 131}));
  check(t.features_written == 0);
};
BOTH("a missing required feature sets FAILED and stops (FT-4, IN-4)", legacy_refused)

constexpr auto rejected = [](auto check) {
  scripted_transport t;
  t.takes_features = false;
  check(ballast::negotiate(t, wants({1, 32})).error() == error::features_rejected);
  check(t.wrote({0, 1, 3, 11, 131}));
};
BOTH("features the device rejects set FAILED (IN-4)", rejected)

constexpr auto broken = [](auto check) {
  scripted_transport t;
  t.breaks_at = 8;
  check(ballast::negotiate(t, wants({1, 32})).error() == error::device_needs_reset);
  check((t.bits & 128) != 0);
};
BOTH("a device that breaks during negotiation is given up", broken)

constexpr auto other_device = [](auto check) {
  scripted_transport t;
  driver_requirements r = wants({1, 32});
  r.device_id = 4;
  check(ballast::negotiate(t, r).error() == error::wrong_device_id);
  check(t.writes == 0 && t.status_reads == 0);
};
BOTH("another type of device is not touched", other_device)

constexpr auto slow_reset = [](auto check) {
  scripted_transport t;
  t.reads_until_reset = 9;
  check(ballast::negotiate(t, wants({1, 32})).has_value());
  scripted_transport never;
  never.reads_until_reset = 1000;
  check(ballast::negotiate(never, wants({1, 32})).error() == error::reset_incomplete);
  check(never.status_reads == 10 && never.wrote({0}));
  scripted_transport once;
  check(ballast::reset_device(once, 0).error() == error::reset_incomplete);
  check(ballast::reset_device(once, 1).has_value());
};
BOTH("the reset is complete when the status reads 0, and waiting is bounded (RS-3)", slow_reset)

constexpr auto driver_ok_refused = [](auto check) {
  scripted_transport t;
  t.takes_driver_ok = false;
  check(ballast::negotiate(t, wants({1, 32})).has_value());
  check(ballast::set_driver_ok(t).error() == error::wrong_state);
  check((t.bits & 128) != 0);
  scripted_transport breaks;
  breaks.breaks_at = 4;
  check(ballast::negotiate(breaks, wants({1, 32})).has_value());
  check(ballast::set_driver_ok(breaks).error() == error::device_needs_reset);
  check((breaks.bits & 128) != 0);
};
BOTH("a device that does not go live is given up (IN-4)", driver_ok_refused)

constexpr auto consistent = [](auto check) {
  scripted_transport t;
  std::array<std::byte, 8> to{};
  check(ballast::read_config_consistent(t, 0, to).has_value());
  check(t.config_reads == 1);
  t.unstable_reads = 3;
  check(ballast::read_config_consistent(t, 0, to).has_value());
  check(t.config_reads == 5 && to[7] == std::byte{5}); // the last one counts
};
BOTH("configuration is read again until the generation stands still (CF-1)", consistent)

constexpr auto unstable = [](auto check) {
  scripted_transport t;
  std::array<std::byte, 8> to{};
  t.unstable_reads = 1000;
  check(ballast::read_config_consistent(t, 0, to, 7).error() == error::config_unstable);
  check(t.config_reads == 7);
  check(ballast::read_config_consistent(t, 0, to, 0).error() == error::config_unstable);
  t.has_config = false;
  check(ballast::read_config_consistent(t, 0, to).error() == error::config_out_of_range);
};
BOTH("a configuration that never stands still is an error after so many attempts", unstable)

} // namespace
