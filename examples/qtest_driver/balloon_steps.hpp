// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "../qemu/qmp.hpp"
#include "guest.hpp"
#include "machine.hpp"
#include "session.hpp"
#include "steps.hpp"

#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/result.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/features.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace qtest_driver {

/// What driver and device are to agree on. QEMU offers no MUST_TELL_HOST.
[[nodiscard]] inline ballast::feature_set expected_features(const options& chosen, bool is_whole) {
  ballast::feature_set wanted{balloon::feature::stats_vq, balloon::feature::deflate_on_oom,
                              balloon::feature::page_reporting};
  if (is_whole) wanted.set(balloon::feature::page_poison);
  if (is_whole) wanted.set(balloon::feature::free_page_hint);
  if (!chosen.is_legacy()) wanted.set(ballast::feature::version_1);
  if (chosen.has_event_idx) wanted.set(ballast::feature::event_idx);
  if (chosen.is_packed) wanted.set(ballast::feature::ring_packed);
  return wanted;
}

/// Resets and starts the device; whether there is a driver at work then.
template <class S> bool start(S& s) {
  s.start();
  const ballast::feature_set& agreed = s.driver().negotiated_features();
  const std::uint8_t status = s.device().status();
  const bool is_live = (status & (ballast::status::driver_ok | ballast::status::failed |
                                  ballast::status::needs_reset)) == ballast::status::driver_ok;
  const std::uint64_t bits = std::uint64_t{agreed.word32(1)} << 32 | agreed.word32(0);
  const bool is_started = s.check(
      s.failure() == ballast::error::none && is_live &&
          agreed == expected_features(s.chosen(), s.is_whole()),
      "negotiates and starts",
      "features " + hex(bits) + ", status " + hex(status) +
          (s.failure() == ballast::error::none ? "" : std::string(": ") + name(s.failure())));
  if (is_started && s.is_whole()) {
    const std::uint32_t value = s.config(offsetof(balloon::config, poison_val));
    s.check(value == S::poison_value, "poison_val holds the driver's poison", hex(value));
  }
  return is_started;
}

/// Whether QEMU shows everything that it can of the buffer of that round, what is missing as
/// missing; `seen` is for the step.
template <class S> bool shows_statistics(S& s, std::uint32_t round, std::string& seen) {
  const auto answer =
      s.monitor().command("qom-get", {{"path", s.path()}, {"property", "guest-stats"}});
  const qemu::json shown = qemu::object_in(answer.value, "stats");
  std::size_t right = 0, wrong = 0;
  for (const balloon::statistic_info& row : balloon::statistic_table) {
    if (!shown.contains(row.qemu_key)) continue; // a tag that is younger than QEMU
    const std::uint64_t value = row.tag == guest_sources::missing
                                    ? balloon::not_reported
                                    : guest_sources::value_of(row.tag, round);
    ++(qemu::number_in(shown, row.qemu_key) == value ? right : wrong);
  }
  seen = "buffer " + std::to_string(round) + ": " + std::to_string(right) + " values right and " +
         std::to_string(wrong) + " wrong " + answer.error;
  return wrong == 0 && right >= 10; // QEMU 7.2 knows ten
}

/// Sets how often QEMU asks for statistics. It does so at once for the first time.
template <class S> void poll_statistics(S& s, int seconds) {
  const auto said = s.monitor().command(
      "qom-set",
      {{"path", s.path()}, {"property", "guest-stats-polling-interval"}, {"value", seconds}});
  if (!said) s.check(false, "QEMU asks for statistics", said.error);
}

/// Waits for QEMU to ask for statistics, and looks at what it shows then.
template <class S> void give_statistics(S& s, const std::string& name) {
  const std::uint32_t before = s.sources().rounds();
  const bool came = s.serve_until([&] { return s.sources().rounds() != before; });
  std::string seen;
  const bool shows = shows_statistics(s, s.sources().rounds(), seen);
  s.check(came && shows, name, seen);
}

/// What the monitor says about a balloon of so many pages.
template <class S> void check_shown(S& s, std::uint32_t pages) {
  const std::uint64_t left = machine::ram_bytes - balloon::bytes_of(pages);
  const auto answer = s.monitor().command("query-balloon");
  const std::uint64_t shown = qemu::number_in(answer.value, "actual");
  s.check(shown == left,
          pages == 0 ? "QEMU shows that the balloon is empty" : "QEMU shows the balloon's size",
          std::to_string(shown) + " bytes are left" + answer.trailer());
}

/// The last event since they were forgotten; QEMU sends one a second, with what is so by then.
template <class S> void check_event(S& s, std::uint32_t pages) {
  const std::uint64_t left = machine::ram_bytes - balloon::bytes_of(pages);
  std::uint64_t last = 0;
  while (last != left) {
    const auto event = s.monitor().wait_for_event("BALLOON_CHANGE", qemu::milliseconds(3000));
    if (!event) break;
    last = qemu::number_in(qemu::object_in(*event, "data"), "actual");
  }
  s.check(last == left, "QEMU tells of the change", "BALLOON_CHANGE " + std::to_string(last));
}

/// The balloon to `pages`, and what became of their memory.
template <class S> void inflate(S& s, std::uint32_t pages) {
  const std::uint32_t span = pages / 7 * 8 + 8; // every eighth page is a neighbour
  s.pages().touch(span);
  const auto begin = qemu::clock::now();
  const bool came = s.set_target(pages);
  s.check(came && s.pages().stored() == pages, "inflates",
          std::to_string(s.driver().actual()) + " pages in " + text_since(begin));
  const std::size_t full = s.pages().not_empty();
  s.check(full == 0, "inflated pages read as zero",
          std::to_string(s.pages().stored() - full) + " of " + std::to_string(s.pages().stored()));
  std::size_t wrong = 0;
  const std::size_t neighbours = s.pages().neighbours(span, wrong);
  s.check(wrong == 0 && neighbours >= span / 8, "the pages between them are untouched",
          std::to_string(neighbours - wrong) + " of " + std::to_string(neighbours));
  check_shown(s, pages);
}

/// And back to nothing.
template <class S> void deflate(S& s) {
  const std::uint32_t pages = s.driver().actual();
  const auto begin = qemu::clock::now();
  const bool came = s.set_target(0);
  const std::string took = text_since(begin);
  std::size_t wrong = 0;
  const std::size_t released = s.pages().released(s.is_whole(), S::poison_value, wrong);
  s.check(came && released == pages && wrong == 0 && s.pages().lost() == 0,
          s.is_whole() ? "deflates; what comes back is poisoned, and holds data again"
                       : "deflates; what comes back holds data again",
          std::to_string(released) + " pages in " + took + ", " + std::to_string(wrong) + " wrong");
  check_shown(s, 0);
}

/// With nothing to do there are no interrupts; but statistics may be asked for meanwhile.
template <class S> void check_quiet(S& s) {
  const unsigned before = s.interrupted();
  unsigned looks = 0;
  (void)s.serve_until([&] { return ++looks > 20; });
  const unsigned since = s.interrupted() - before;
  s.check(since < 4, "interrupts are acknowledged",
          std::to_string(before) + ", and then " + std::to_string(since) + " in 20 looks");
}

/// A guest that is short of memory takes pages back, until QEMU says something again.
template <class S> void run_out_of_memory(S& s) {
  const std::uint32_t pages = s.driver().actual();
  s.carry_out(s.driver().deflate_on_oom(300));
  const bool came =
      s.serve_until([&] { return s.driver().actual() == pages - 300 && s.driver().is_idle(); });
  const std::size_t released = s.pages().forget_released();
  const std::uint64_t left = qemu::number_in(s.monitor().command("query-balloon").value, "actual");
  const std::uint32_t fewer = s.driver().actual();
  const bool back = s.set_target(pages);
  s.check(came && released == 300 && back && s.driver().target() == pages &&
              left == machine::ram_bytes - balloon::bytes_of(fewer),
          "takes pages back when it is out of memory, and inflates again at the next change",
          std::to_string(fewer) + " pages, then " + std::to_string(s.driver().actual()));
}

/// Reported memory is given back, unless it has to hold its poison.
template <class S> void report(S& s) {
  constexpr auto first = static_cast<std::uint32_t>(place::reported >> balloon::pfn_shift);
  constexpr std::uint32_t count = 3 * place::report_bytes / balloon::page_size, stride = 16;
  const auto filled = s.contents().repeated(S::poison_value);
  for (std::uint32_t pfn = first; pfn < first + count; pfn += stride)
    (void)s.contents().write(pfn, filled);
  s.carry_out(s.driver().report());
  std::size_t ranges = 0;
  const bool came = s.serve_until([&] { return (ranges += s.sources().take_reported()) == 3; });
  std::uint32_t kept = 0;
  for (std::uint32_t pfn = first; pfn < first + count; pfn += stride)
    kept += s.contents().holds(pfn, filled);
  const std::uint64_t used =
      s.contents().count_used(place::reported, place::reported + balloon::bytes_of(count));
  s.check(came && used == kept && kept == (s.is_whole() ? count / stride : 0),
          s.is_whole() ? "reports; poisoned memory stays" : "reports; the memory is given back",
          std::to_string(ranges) + " ranges; of " + std::to_string(count / stride) +
              " pages with contents " + std::to_string(kept) + " are kept");
}

/// The target is QEMU's, and outlives a reset: `pages`, which `stop` left.
template <class S> void check_target(S& s, std::uint32_t pages) {
  const bool came = s.serve_until([&] { return s.driver().actual() == pages; });
  s.check(came && s.pages().not_empty() == 0, "the target from before the reset is reached",
          std::to_string(s.driver().actual()) + " pages");
}

/// The end of the balloon, while it has 100 pages: with the reset all of them come back.
template <class S> void stop(S& s) {
  s.pages().touch(160);
  const bool came = s.set_target(100) && s.pages().stored() == 100;
  const auto stopped = s.driver().stop();
  std::size_t wrong = 0;
  const std::size_t released = s.pages().released(s.is_whole(), S::poison_value, wrong);
  const std::uint8_t status = s.device().status();
  const std::uint32_t poison = s.config(offsetof(balloon::config, poison_val));
  s.check(came && stopped && released == 100 && wrong == 0 && s.pages().lost() == 0 &&
              status == 0 && poison == 0,
          "a reset gives the pages back and clears poison_val",
          std::to_string(released) + " pages, status " + hex(status) + ", poison_val " +
              hex(poison));
}

/// The memory goes away under a driver with 100 pages in the balloon; `end` does that.
template <class S, class End> void lose_memory(S& s, End end) {
  const bool came = s.serve_until([&] { return s.driver().actual() == 100; });
  end();
  s.carry_out(s.driver().on_config_change());
  const ballast::error why = s.failure();
  s.driver().remove();
  const std::size_t released = s.pages().forget_released();
  s.check(came && why == ballast::error::memory_lost && !s.memory().good() && released == 100 &&
              s.pages().lost() == 0,
          "the driver sees that the memory is gone, and gives up",
          std::string(name(why)) + ", " + std::to_string(released) + " pages came back");
}

} // namespace qtest_driver
