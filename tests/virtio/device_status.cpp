// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/device_status.hpp>

#include <support/check.hpp>

#include <cstdint>

namespace {

using ballast::device_status;
using ballast::error;
using ballast::feature_set;
using ballast::status_step;
namespace status = ballast::status;

constexpr feature_set modern{ballast::feature::version_1};
constexpr feature_set legacy{};

// The values of the specification's list.
static_assert(status::acknowledge == 1 && status::driver == 2 && status::driver_ok == 4);
static_assert(status::features_ok == 8 && status::suspend == 16 && status::needs_reset == 64);
static_assert(status::failed == 128);

/// Writes and confirms, as a transport does whose device agrees to everything.
constexpr error write(device_status& s, std::uint8_t bits, const feature_set& accepted = modern) {
  const auto step = s.write(bits, accepted);
  if (step) s.confirm(*step);
  return step.error();
}

constexpr device_status live() {
  device_status s;
  for (const int bits : {1, 3, 11, 15}) (void)write(s, static_cast<std::uint8_t>(bits));
  return s;
}

constexpr auto initialisation = [](auto check) {
  device_status s;
  const auto step = [&s](std::uint8_t bits) { return *s.write(bits, modern); };
  check(s.read() == 0 && !s.is_live());
  check(step(0) == status_step::reset);
  s.confirm(status_step::reset);
  check(step(1) == status_step::none && s.read() == 1);
  check(step(3) == status_step::none && s.read() == 3);
  check(step(11) == status_step::check_features && s.read() == 3);
  s.confirm(status_step::check_features);
  check(s.read() == 11 && !s.is_live());
  check(step(15) == status_step::activate && s.read() == 11);
  s.confirm(status_step::activate);
  check(s.read() == 15 && s.is_live());
};
BOTH("the initialisation goes through its steps, each visible when confirmed (ST-1, IN-1)",
     initialisation)

constexpr auto rejected_features = [](auto check) {
  device_status s;
  (void)write(s, 3);
  check(*s.write(11, modern) == status_step::check_features); // not confirmed
  check(s.read() == 3);
  check(s.write(15, modern).error() == error::status_out_of_order);
  check(s.read() == 3);
  check(s.is_accepting_features()); // another set may be tried
  check(write(s, 3 | 128) == error::none);
  check(s.read() == 131);
};
BOTH("features that the device rejects leave FEATURES_OK clear (FT-7)", rejected_features)

constexpr auto clearing = [](auto check) {
  device_status s = live();
  for (const int bits : {14, 13, 11, 7, 1, 4, 128, 143 - 4}) {
    check(s.write(static_cast<std::uint8_t>(bits), modern).error() == error::status_bit_cleared);
    check(s.read() == 15);
  }
  check(write(s, 0) == error::none);
  check(s.read() == 0);
};
BOTH("a bit is cleared by reset only (ST-2)", clearing)

constexpr auto after_failed = [](auto check) {
  device_status s = live();
  check(write(s, 15 | 128) == error::none);
  check(s.read() == 143 && !s.is_live());
  for (const int bits : {143, 15, 128, 1, 255})
    check(s.write(static_cast<std::uint8_t>(bits), modern).error() == error::status_after_failed);
  check(s.read() == 143);
  check(!s.is_accepting_features() && !s.is_accepting_config(modern));
  check(!s.is_accepting_queues(modern));
  check(write(s, 0) == error::none);
  check(s.read() == 0);
  check(write(s, 1) == error::none);
};
BOTH("after FAILED only a reset is allowed (ST-3)", after_failed)

constexpr auto failed_first = [](auto check) {
  device_status s;
  // Giving up together with other bits gives up, and does not activate anything.
  check(*s.write(128 | 15, modern) == status_step::none);
  check(s.read() == 128 && !s.is_live());
};
BOTH("FAILED wins over the bits written with it", failed_first)

constexpr auto out_of_order = [](auto check) {
  const auto from = [](std::uint8_t before, std::uint8_t bits, const feature_set& accepted) {
    device_status s;
    if (before != 0) (void)write(s, before, accepted);
    const std::uint8_t now = s.read();
    const error e = s.write(bits, accepted).error();
    return s.read() == now ? e : error::none;
  };
  check(from(0, 2, modern) == error::status_out_of_order);  // DRIVER before ACKNOWLEDGE
  check(from(1, 9, modern) == error::status_out_of_order);  // FEATURES_OK before DRIVER
  check(from(3, 7, modern) == error::status_out_of_order);  // DRIVER_OK before FEATURES_OK
  check(from(3, 15, modern) == error::status_out_of_order); // both, without reading back
  check(from(0, 15, modern) == error::status_out_of_order); //
  check(from(0, 4, legacy) == error::status_out_of_order);  // DRIVER_OK before DRIVER
  check(from(3, 15, legacy) == error::status_out_of_order); // no FEATURES_OK for legacy drivers
  check(from(0, 14, modern) == error::status_out_of_order);
};
BOTH("a bit before the ones it follows is refused (RT-27)", out_of_order)

constexpr auto merged_steps = [](auto check) {
  device_status s;
  check(write(s, 3) == error::none); // both at once: nothing is skipped
  check(s.read() == 3);
  device_status t;
  check(*t.write(11, modern) == status_step::check_features);
  check(t.read() == 3); // what needs no answer is in already
};
BOTH("ACKNOWLEDGE and DRIVER may come in one write", merged_steps)

constexpr auto twice = [](auto check) {
  device_status s = live();
  check(*s.write(15, modern) == status_step::none);
  check(s.read() == 15);
  device_status t;
  (void)write(t, 3);
  (void)write(t, 11);
  check(*t.write(11, modern) == status_step::none); // features are not checked twice either
};
BOTH("a second DRIVER_OK does not activate again (RT-27)", twice)

constexpr auto legacy_driver = [](auto check) {
  device_status s;
  check(s.is_accepting_config(legacy));
  check(*s.write(1, legacy) == status_step::none);
  check(*s.write(3, legacy) == status_step::none);
  check(s.is_accepting_queues(legacy));
  check(*s.write(7, legacy) == status_step::activate);
  s.confirm(status_step::activate);
  check(s.read() == 7 && s.is_live());
  check(!s.is_accepting_features());
  device_status at_once;
  check(*at_once.write(7, legacy) == status_step::activate);
};
BOTH("a legacy driver leaves FEATURES_OK out (IN-6, FT-10)", legacy_driver)

constexpr auto legacy_late_features_ok = [](auto check) {
  device_status s;
  (void)write(s, 7, legacy);
  check(s.write(15, legacy).error() == error::status_out_of_order);
  check(s.read() == 7);
};
BOTH("FEATURES_OK after DRIVER_OK is refused", legacy_late_features_ok)

constexpr auto windows = [](auto check) {
  device_status s;
  check(s.is_accepting_features() && !s.is_accepting_queues(modern));
  check(!s.is_accepting_config(modern)); // IN-2
  check(s.is_accepting_config(legacy));  // IN-7
  check(!s.is_accepting_queues(legacy)); // not before DRIVER
  (void)write(s, 3);
  check(s.is_accepting_features() && !s.is_accepting_queues(modern));
  check(!s.is_accepting_config(modern));
  (void)write(s, 11);
  check(!s.is_accepting_features()); // IN-3
  check(s.is_accepting_queues(modern) && s.is_accepting_config(modern));
  (void)write(s, 15);
  check(!s.is_accepting_features() && !s.is_accepting_queues(modern)); // RT-12
  check(s.is_accepting_config(modern));
};
BOTH("features, queues and configuration each have their time (IN-2, IN-3, IN-7, RT-12)", windows)

constexpr auto needs_reset = [](auto check) {
  device_status s = live();
  check(s.set_needs_reset()); // ST-7: a configuration change notification is due
  check(s.read() == 79 && !s.is_live());
  check(!s.set_needs_reset()); // but one is enough
  check(write(s, 79) == error::none);
  check(write(s, 15) == error::none); // a driver that had not seen it clears nothing
  check(s.read() == 79);
  check(write(s, 79 | 128) == error::none);
  check(write(s, 0) == error::none);
  check(s.read() == 0);
};
BOTH("NEEDS_RESET stays until the reset and is told once (ST-6, ST-7)", needs_reset)

constexpr auto needs_reset_early = [](auto check) {
  device_status s;
  (void)write(s, 3);
  check(!s.set_needs_reset()); // not before DRIVER_OK
  check(s.write(11, modern).error() == error::device_needs_reset);
  check(s.write(75, modern).error() == error::device_needs_reset);
  check(s.read() == 67);
  device_status t;
  (void)write(t, 11);
  t.confirm(status_step::check_features);
  check(!t.set_needs_reset());
  check(t.write(15, modern).error() == error::device_needs_reset);
  check(!t.is_live());
  check(write(t, 0) == error::none && !t.set_needs_reset());
  check(t.read() == 0); // what comes late is of before the reset
};
BOTH("a device that needs a reset can't be initialised further", needs_reset_early)

constexpr auto bit_of_device = [](auto check) {
  device_status s;
  check(s.write(64, modern).error() == error::status_bit_of_device);
  (void)write(s, 3);
  check(s.write(67, modern).error() == error::status_bit_of_device);
  check(s.read() == 3);
};
BOTH("the driver can't set NEEDS_RESET", bit_of_device)

constexpr auto undefined_bits = [](auto check) {
  device_status s;
  check(write(s, 1 | 16 | 32) == error::none);
  check(s.read() == 1);
  check(write(s, 16) == error::status_bit_cleared);
  check(write(s, 3) == error::none);
};
BOTH("undefined bits and SUSPEND are ignored (SU-5)", undefined_bits)

constexpr auto reset_order = [](auto check) {
  device_status s = live();
  check(*s.write(0, modern) == status_step::reset);
  check(s.read() == 15); // 0 is read only when the device was reset
  s.confirm(status_step::reset);
  check(s.read() == 0 && !s.is_live());
  check(*s.write(0, modern) == status_step::reset); // and again
};
BOTH("the status reads 0 when the reset is complete (RS-1, RS-2)", reset_order)

constexpr auto every_write = [](auto check) {
  // From every status a driver can reach, every byte: refused writes change nothing, nothing but 0
  // clears a bit, and the device is live only with its features agreed.
  const auto reach = [](unsigned n) {
    device_status s;
    const std::uint8_t steps[] = {1, 3, 11, 15};
    for (unsigned i = 0; i < n; ++i) (void)write(s, steps[i]);
    return s;
  };
  for (unsigned n = 0; n <= 4; ++n)
    for (unsigned bits = 0; bits < 256; ++bits) {
      device_status s = reach(n);
      const std::uint8_t before = s.read();
      const auto step = s.write(static_cast<std::uint8_t>(bits), modern);
      if (!step) check(s.read() == before);
      if (!step) continue;
      s.confirm(*step);
      const std::uint8_t after = s.read();
      check(bits == 0 ? after == 0 : (before & ~after) == 0);
      check((after & status::driver_ok) == 0 || (after & status::features_ok) != 0);
      check((after & ~(bits | before)) == 0);
      check((*step == status_step::activate) == ((after & ~before & status::driver_ok) != 0));
    }
};
BOTH("every byte written in every status keeps the rules", every_write)

} // namespace
