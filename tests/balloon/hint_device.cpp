// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/balloon/hint_device.hpp>

#include "support/check.hpp"

#include <cstdint>

using namespace ballast;
using namespace ballast::balloon;

namespace {

using event = hint_event;

constexpr hint_command told(event e) { return {e, true}; }
constexpr hint_command untold(event e) { return {e, false}; }

constexpr auto a_round = [](auto check) {
  hint_device hints;
  check(hints.state() == hint_state::stop && hints.command_id() == command_id::stop);
  check(hints.start().has_value());
  check(hints.state() == hint_state::requested && hints.command_id() == 2);
  check(!hints.is_accepting());
  check(hints.on_command(2) == untold(event::started));
  check(hints.is_accepting() && hints.command_id() == 2);
  check(hints.on_command(command_id::stop) == told(event::ended));
  check(!hints.is_accepting() && hints.command_id() == command_id::stop);
  check(hints.done());
  check(hints.command_id() == command_id::done && hints.state() == hint_state::done);
  check(hints.counters().rounds == 1 && hints.counters().stale_commands == 0);
};
BOTH("the id is shown for the whole round, until the driver's STOP", a_round)

constexpr auto unasked = [](auto check) {
  hint_device hints;
  for (const std::uint32_t id : {2u, 3u, 1u, 0u, 0x80000000u, UINT32_MAX}) {
    check(hints.on_command(id) == untold(event::stale));
    check(!hints.is_accepting() && hints.command_id() == command_id::stop);
  }
  check(hints.counters().stale_commands == 6 && hints.counters().rounds == 0);
  // A driver that guesses the next id does not start it before it is asked.
  check(hints.start().has_value() && hints.command_id() == 2);
  check(!hints.is_accepting());
};
BOTH("RT-31: an id while nothing is asked for starts nothing; hints before any id do not count",
     unasked)

constexpr auto foreign_ids = [](auto check) {
  hint_device hints;
  check(hints.start().has_value() && hints.on_command(7) == untold(event::stale));
  check(hints.state() == hint_state::requested);
  check(hints.on_command(2).event == event::started);
  check(hints.on_command(3) == told(event::ended)); // not issued: what follows is not under id 2
  check(!hints.is_accepting() && hints.command_id() == command_id::stop);
  check(hints.on_command(command_id::stop) == untold(event::stale));

  check(hints.start().has_value() && hints.on_command(3).event == event::started);
  check(hints.on_command(command_id::done) == told(event::ended)); // a driver has no DONE to send
  check(!hints.is_accepting());
};
BOTH("BDEV-8 hints under an id that is not the current one do not count", foreign_ids)

constexpr auto several_rounds = [](auto check) {
  hint_device hints;
  check(hints.start().has_value() && hints.on_command(2).event == event::started);
  check(hints.stop() && hints.command_id() == command_id::stop && !hints.is_accepting());
  check(!hints.stop()); // as it was: nothing to tell
  check(hints.start().has_value() && hints.command_id() == 3);
  check(!hints.is_accepting());
  check(hints.on_command(command_id::stop) == untold(event::stale)); // of id 2
  check(hints.state() == hint_state::requested && hints.command_id() == 3);
  check(hints.on_command(3).event == event::started && hints.is_accepting());
  check(hints.done() && !hints.is_accepting());
  check(!hints.done());
};
BOTH("BDEV-6 STOP is shown while no hints can be used; a stale STOP does not end a newer round",
     several_rounds)

constexpr auto restarts = [](auto check) {
  hint_device hints;
  check(hints.start().has_value() && hints.command_id() == 2);
  check(hints.start().has_value() && hints.command_id() == 3); // 2 was never taken up
  check(hints.on_command(3).event == event::started);
  check(hints.start().has_value() && hints.command_id() == 4); // in the round of 3
  check(!hints.is_accepting());
  check(hints.stop() && hints.start().has_value() && hints.command_id() == 5);
  check(hints.done() && hints.start().has_value() && hints.command_id() == 6);
  check(hints.on_command(4) == untold(event::stale)); // read before, sent now
  check(!hints.is_accepting());
  check(hints.on_command(command_id::stop) == untold(event::stale));
  check(hints.on_command(6).event == event::started);
};
BOTH("BDEV-7 asking again before the driver's STOP takes a new id", restarts)

constexpr auto wraps = [](auto check) {
  for (const std::uint32_t first : {0u, 1u, 2u, 3u, 0x80000000u, UINT32_MAX}) {
    const std::uint32_t lowest = first < 2 ? 2 : first;
    hint_device hints({.first_id = first});
    check(hints.start().has_value() && hints.command_id() == lowest);
    check(hints.on_command(lowest).event == event::started);
    check(hints.on_command(command_id::stop).event == event::ended);
    check(hints.restore({.id = UINT32_MAX, .has_asked = true}).has_value());
    check(hints.start().has_value() && hints.command_id() == lowest);
    check(hints.on_command(UINT32_MAX).event ==
          (lowest == UINT32_MAX ? event::started : event::stale));
  }
};
BOTH("ids wrap from 0xFFFFFFFF to the first one: never STOP, never DONE", wraps)

constexpr auto small_id_space = [](auto check) {
  constexpr std::uint32_t a = UINT32_MAX - 1, b = UINT32_MAX;
  hint_device hints({.first_id = a});
  check(hints.start().has_value() && hints.start().has_value() && hints.command_id() == b);
  check(hints.start().error() == error::wrong_state); // a may be on its way
  check(hints.command_id() == b && hints.state() == hint_state::requested);
  check(hints.on_command(a) == untold(event::stale));
  check(hints.start().error() == error::wrong_state); // its STOP is missing
  check(hints.on_command(command_id::stop) == untold(event::stale));
  check(hints.start().has_value() && hints.command_id() == a);
  check(hints.start().error() == error::wrong_state);
  for (const std::uint32_t none : {a - 1, 2u, 1u}) { // ends nothing
    check(hints.on_command(none) == untold(event::stale));
    check(hints.on_command(command_id::stop) == untold(event::stale));
    check(hints.start().error() == error::wrong_state);
  }
  check(hints.on_command(b) == untold(event::stale)); // so a, of then, will not come any more
  check(hints.on_command(a).event == event::started); // without a STOP for b
  check(hints.start().has_value() && hints.command_id() == b);
  check(hints.on_command(command_id::stop) == untold(event::stale)); // of a
  check(hints.start().has_value() && hints.command_id() == a);
  hints.reset(); // nothing is on its way any more
  check(hints.start().has_value() && hints.command_id() == b);
};
BOTH("BDEV-7 an id is not used again, over the wrap, while the driver may still use it",
     small_id_space)

constexpr auto duplicates = [](auto check) {
  hint_device hints;
  check(hints.start().has_value() && hints.on_command(2).event == event::started);
  check(hints.on_command(2) == untold(event::duplicate));
  check(hints.is_accepting()); // still under the current id
  check(hints.on_command(command_id::stop).event == event::ended);
  check(hints.on_command(2) == untold(event::duplicate));
  check(!hints.is_accepting() && hints.counters().duplicate_commands == 2);

  check(hints.start().has_value() && hints.stop());
  check(hints.on_command(3) == untold(event::stale)); // the first one, too late
  check(hints.on_command(3) == untold(event::duplicate));
  check(!hints.is_accepting());
  check(hints.start().has_value());
  check(hints.on_command(3) == untold(event::stale)); // once more, but not the current one
  check(hints.counters().duplicate_commands == 3 && hints.counters().stale_commands == 2);
};
BOTH("BDRV-26 the current id once more is ignored and counted", duplicates)

constexpr auto done_stays = [](auto check) {
  hint_device hints;
  check(hints.start().has_value() && hints.on_command(2).event == event::started);
  check(hints.done() && hints.command_id() == command_id::done);
  check(!hints.stop() && hints.command_id() == command_id::done);
  check(!hints.is_accepting()); // BDEV-10
  check(hints.on_command(command_id::stop) == untold(event::stale));
  check(hints.command_id() == command_id::done);
  check(hints.start().has_value() && hints.command_id() == 3); // another migration
};
BOTH("BDEV-10 BDEV-11 DONE stays until the next id, and no hint counts after it", done_stays)

constexpr auto malformed = [](auto check) {
  hint_device counting;
  check(counting.start().has_value() && counting.on_command(2).event == event::started);
  check(!counting.on_malformed() && counting.is_accepting());
  check(counting.counters().malformed_commands == 1);
  hint_device strict({.needs_reset_if_malformed = true});
  check(strict.on_malformed() && strict.counters().malformed_commands == 1);
};
BOTH("BDRV-24 a command that is not 4 bytes is counted, or asks for a reset", malformed)

constexpr auto as_qemu = [](auto check) {
  hint_device hints({.first_id = 0x80000000, .hides_started_id = true});
  check(hints.start().has_value() && hints.command_id() == 0x80000000);
  // The field changes, but a notification of it would make the driver stop.
  check(hints.on_command(0x80000000) == untold(event::started));
  check(hints.command_id() == command_id::stop && hints.is_accepting());
  check(hints.on_command(command_id::stop) == untold(event::ended));
  check(hints.start().has_value() && hints.on_command(0x80000001).event == event::started);
  check(hints.stop()); // the field reads as before; the driver has to look all the same
  check(hints.command_id() == command_id::stop && !hints.is_accepting());
  check(hints.start().has_value() && hints.on_command(0x80000002).event == event::started);
  check(hints.done() && hints.command_id() == command_id::done);
};
BOTH("an option hides the id once it is taken up, as QEMU does", as_qemu)

constexpr auto resets = [](auto check) {
  hint_device hints;
  check(hints.start().has_value() && hints.on_command(2).event == event::started);
  hints.reset();
  check(hints.state() == hint_state::stop && hints.command_id() == command_id::stop);
  check(!hints.is_accepting());
  check(hints.on_command(2).event == event::duplicate && !hints.is_accepting());
  check(hints.on_command(command_id::stop) == untold(event::stale));
  check(hints.start().has_value() && hints.command_id() == 3); // the migration goes on
  check(hints.on_command(3).event == event::started);
};
BOTH("a device reset in a round forgets it; ids go on", resets)

constexpr auto restored = [](auto check) {
  hint_device first;
  check(first.start().has_value() && first.on_command(2).event == event::started);
  check(first.start().has_value()); // 3, while the driver is in the round of 2
  hint_device second;
  check(second.restore(first.save()).has_value());
  check(second.save() == first.save());
  check(second.command_id() == command_id::done && !second.is_accepting());
  check(second.on_command(command_id::stop) == untold(event::stale)); // what was in the queue
  check(second.on_command(3) == untold(event::stale) && !second.is_accepting());
  check(second.start().has_value() && second.command_id() == 4);
  check(second.on_command(4).event == event::started);

  hint_device unused, third;
  check(third.restore(unused.save()).has_value() && third.command_id() == command_id::stop);
  first.reset();
  check(third.restore(first.save()).has_value() && third.command_id() == command_id::stop);
  check(third.start().has_value() && third.command_id() == 4);
};
BOTH("RT-36 a restored device shows DONE to a driver that was asked, and its ids go on", restored)

constexpr auto restored_id_space = [](auto check) {
  constexpr std::uint32_t a = UINT32_MAX - 1, b = UINT32_MAX;
  hint_device first({.first_id = a}), second({.first_id = a});
  check(first.start().has_value() && first.on_command(a).event == event::started);
  check(first.start().has_value());
  check(second.restore(first.save()).has_value());
  check(second.start().error() == error::wrong_state); // a is in its round, b may come
  check(second.on_command(b).event == event::stale);   // and a is over
  check(second.start().has_value() && second.command_id() == a);
};
BOTH("RT-36 BDEV-7 a restored device knows which ids the driver may still use", restored_id_space)

constexpr auto bad_states = [](auto check) {
  const auto refuses = [&](const hint_device_state& bad, error why) {
    hint_device hints({.first_id = 0x80000000});
    check(hints.start().has_value());
    const hint_device_state before = hints.save();
    check(hints.restore(bad).error() == why);
    check(hints.save() == before && hints.state() == hint_state::requested);
  };
  constexpr std::uint32_t id = 0x80000005;
  refuses({.version = 0, .id = id, .has_asked = true}, error::state_version);
  refuses({.version = 2, .id = id, .has_asked = true}, error::state_version);
  refuses({.id = 1, .has_asked = true}, error::state_invalid);
  refuses({.id = 0x7fffffff, .has_asked = true}, error::state_invalid); // below the first
  refuses({.id = id, .open_ids = 0x80000001, .has_asked = true}, error::state_invalid);
  refuses({.id = 0, .open_ids = 1, .has_asked = true}, error::state_invalid);
  refuses({.id = id, .is_oldest_taken_up = true, .has_asked = true}, error::state_invalid);
  refuses({.id = 0, .has_asked = true}, error::state_invalid);
  refuses({.id = id, .open_ids = 1}, error::state_invalid);
  hint_device hints({.first_id = 0x80000000});
  check(hints.restore({.id = id, .open_ids = 0x80000000, .has_asked = true}).has_value());
  check(hints.start().error() == error::wrong_state);
};
BOTH("RT-36 a saved state that does not fit together is refused", bad_states)

} // namespace
