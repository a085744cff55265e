// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "../qemu/qmp.hpp"
#include "guest.hpp"
#include "machine.hpp"
#include "session.hpp"
#include "steps.hpp"

#include <ballast/balloon/protocol.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace qtest_driver {

/// A migration, to nowhere, that does not send what is hinted to it. The machine runs again
/// afterwards.
template <class S> void hint(S& s) {
  bool is_ready = s.contents().randomise(place::in_use, place::in_use_bytes) &&
                  s.contents().randomise(place::hinted, place::hint_count * place::hint_bytes);
  const std::uint64_t elsewhere =
      s.contents().count_used(machine::ram_begin, place::hinted) +
      s.contents().count_used(place::hinted + place::hint_count * place::hint_bytes,
                              machine::ram_bytes);
  const std::uint64_t hinted = place::hint_count * place::hint_bytes / balloon::page_size;

  // What is in use lies in front of what is hinted, and takes seconds: until the hints have come.
  const auto set_speed = [&](std::uint64_t bytes_per_second) {
    return bool(
        s.monitor().command("migrate-set-parameters", {{"max-bandwidth", bytes_per_second}}));
  };
  is_ready = is_ready && set_speed(1 << 20);
  const auto begin = qemu::clock::now();
  const auto said = s.monitor().command("migrate", {{"uri", "exec:cat > /dev/null"}});
  std::uint32_t id = 0;
  const bool came = is_ready && said && s.serve_until([&] {
    const std::uint32_t now = s.config(offsetof(balloon::config, free_page_hint_cmd_id));
    if (now >= balloon::command_id::first) id = now;
    return s.sources().is_hint_over();
  }) && set_speed(1 << 30);
  s.check(came, "hints free pages to a migration",
          std::to_string(s.sources().hinted()) + " blocks of 4 MiB, command id " + hex(id) +
              said.trailer());

  qemu::json migration;
  const bool ended = s.serve_until([&] {
    migration = s.monitor().command("query-migrate").value;
    const std::string status = qemu::text_in(migration, "status");
    return (status == "completed" && s.sources().released() == place::hint_count) ||
           status == "failed";
  });
  const std::uint32_t last = s.config(offsetof(balloon::config, free_page_hint_cmd_id));
  s.check(ended && s.sources().released() == place::hint_count && last == balloon::command_id::done,
          "the end of the migration gives hinted pages back",
          qemu::text_in(migration, "status") + " after " + text_since(begin) + ", command id " +
              hex(last) + ", " + std::to_string(s.sources().released()) + " blocks");

  // Beside the RAM looked at there are its first MiB, the firmware and QEMU's own tables.
  const std::uint64_t sent = qemu::number_in(qemu::object_in(migration, "ram"), "normal");
  s.check(sent >= place::in_use_bytes / balloon::page_size && sent <= elsewhere + hinted / 8,
          "the migration does not send hinted pages",
          std::to_string(sent) + " pages sent as they are; " + std::to_string(elsewhere) +
              " pages with contents, and " + std::to_string(hinted) + " that are hinted");

  const auto resumed = s.monitor().command("cont");
  const auto status = s.monitor().command("query-status");
  s.check(resumed && status && qemu::text_in(status.value, "status") == "running",
          "the machine runs on", qemu::text_in(status.value, "status") + resumed.trailer());
}

} // namespace qtest_driver
