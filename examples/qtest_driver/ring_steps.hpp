// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "bare_queue.hpp"
#include "guest.hpp"
#include "session.hpp"
#include "steps.hpp"

#include <ballast/balloon/request_queue.hpp>
#include <ballast/result.hpp>
#include <ballast/transport/device_registers.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <chrono>
#include <cstdint>
#include <string>

namespace qtest_driver {

/// Whether the device says that it needs a reset, and interrupts to say so; `seen` is for a step.
template <class T> bool needs_reset(T& device, interrupts<T>& inbox, std::string& seen) {
  unsigned why = 0;
  std::uint8_t status = 0;
  const auto until = qemu::clock::now() + std::chrono::seconds(2);
  do {
    why |= inbox.wait(qemu::milliseconds(2));
    status = device.status();
  } while (((status & ballast::status::needs_reset) == 0 ||
            (why & ballast::interrupt_reason::config_change) == 0) &&
           qemu::clock::now() < until);
  seen = "status " + hex(status) + ", interrupts " + hex(why);
  return (status & ballast::status::needs_reset) != 0 &&
         (why & ballast::interrupt_reason::config_change) != 0;
}

/// A ring that makes no sense: a device of version 1 says so, a legacy one can't and falls silent.
/// A reset heals it. `breaks` writes to the ring.
template <class Q, class Break>
void break_ring(Q& queue, const options& chosen, const std::string& what, Break breaks, steps& to) {
  const auto started = queue.start(Q::size_max);
  breaks();
  queue.device().notify(0);
  std::string seen;
  const bool is_noticed = chosen.is_legacy() ? !queue.is_used(qemu::milliseconds(20))
                                             : needs_reset(queue.device(), queue.inbox(), seen);
  if (chosen.is_legacy()) seen = "status " + hex(queue.device().status()) + ", nothing returned";
  const auto again = queue.start(Q::size_max);
  const bool is_healed = again && queue.inflate_one();
  to.check(started && is_noticed && is_healed, "is broken by " + what + ", and healed by a reset",
           seen + (is_healed ? "; then a buffer is returned" : "; then no buffer is returned: ") +
               (again ? "" : name(again.error())));
}

template <class Q> void break_rings(Q& queue, const options& chosen, steps& to) {
  if (chosen.is_packed) {
    namespace f = ballast::packed;
    break_ring(
        queue, chosen, "a buffer of no bytes",
        [&] { queue.store_descriptor(0, f::descriptor_fields{.flags = f::flag_available}); }, to);
    break_ring(
        queue, chosen, "a chain longer than the ring",
        [&] {
          for (std::uint32_t i = 0; i < queue.layout().size; ++i)
            queue.store_descriptor(
                i, f::descriptor_fields{.length = 4, .flags = f::flag_available | f::flag_next});
        },
        to);
    return;
  }
  using fields = ballast::split::descriptor_fields;
  break_ring(
      queue, chosen, "a buffer of no bytes",
      [&] {
        queue.store_descriptor(0, fields{});
        queue.store_available(0, 1);
      },
      to);
  break_ring(
      queue, chosen, "a chain that loops",
      [&] {
        queue.store_descriptor(0,
                               fields{.length = 4, .flags = ballast::split::flag_next, .next = 0});
        queue.store_available(0, 1);
      },
      to);
  break_ring(queue, chosen, "a head beyond the table", [&] { queue.store_available(999, 1); }, to);
}

/// An index beyond what a queue can hold: QEMU 7.2 does not look, and returns more than it was
/// given. The driver's ring does.
template <class Q> void jump_ahead(Q& queue, steps& to) {
  const auto started = queue.start(Q::size_max);
  const bool before = queue.inflate_one();
  queue.store_available(0, 900);
  queue.device().notify(0);
  const bool is_taken = queue.is_used(std::chrono::seconds(2));
  const ballast::error cause = queue.cause();
  const auto again = queue.start(Q::size_max);
  to.check(started && before && !is_taken && cause == ballast::error::used_index_jump && again &&
               queue.inflate_one(),
           "takes an index too far ahead; the driver notices, and a reset heals it", name(cause));
}

/// A queue is taken from the live device, with a buffer in it, and given back with half the size.
template <class Q> void reset_ring(Q& queue, steps& to) {
  const auto started = queue.start(Q::size_max, true);
  if (!to.check(started.has_value(), "negotiates RING_RESET", name(started.error()))) return;
  const bool before = queue.inflate_one();
  const bool is_quiet = !queue.inflate_one(false);
  const std::uint32_t size = queue.layout().size;
  const auto reset = queue.device().reset_queue(0);
  const auto again = queue.set_up(size / 2);
  const bool after = again && queue.inflate_one();
  const std::uint8_t status = queue.device().status();
  to.check(before && is_quiet && reset && after && queue.layout().size == size / 2 &&
               (status & ballast::status::needs_reset) == 0,
           "a queue is reset and used again",
           std::to_string(size) + " entries, then " + std::to_string(queue.layout().size) +
               ", status " + hex(status) + ": " + name(reset ? again.error() : reset.error()));
}

/// The driver's own ring, broken behind its back: it gives up, and starts again.
template <class S> void break_ring_of_driver(S& s) {
  namespace f = ballast::split;
  namespace p = ballast::packed;
  const ballast::feature_set& agreed = s.driver().negotiated_features();
  const auto at = balloon::place_request_queue(place::queues, s.device().queue_size_max(0),
                                               S::driver_type::array_bytes, agreed)
                      .layout;
  const auto write = [&](ballast::guest_address to, auto value) {
    const auto raw = ballast::to_order<std::endian::little>(value);
    (void)s.memory().write(to, std::as_bytes(std::span(&raw, 1)));
  };
  if (s.chosen().is_packed) { // buffers of no bytes, wherever the device looks next
    for (std::uint32_t i = 0; i < at.size; ++i)
      write(at.descriptor_area + p::descriptor_rest(i), std::uint64_t{p::flag_available} << 48);
  } else { // a head that is none
    ballast::le16 index = 0;
    (void)s.memory().read(at.driver_area + f::available_index,
                          std::as_writable_bytes(std::span(&index, 1)));
    write(at.driver_area + f::available_entry(index % at.size), std::uint16_t{0xffff});
    write(at.driver_area + f::available_index, static_cast<std::uint16_t>(index + 1));
  }
  s.device().notify(0);
  const bool gave_up =
      !s.serve_until([] { return false; }) && s.failure() == ballast::error::device_needs_reset;
  const std::string why = name(s.failure());
  const std::uint32_t pages = s.driver().actual();
  s.start();
  const std::size_t released = s.pages().forget_released();
  const bool works = s.serve_until([&] { return s.driver().actual() == s.driver().target(); });
  s.check(gave_up && works && released == pages && s.pages().lost() == 0,
          "the driver sees a broken device, and starts it again",
          why + "; " + std::to_string(released) + " pages came back; then " +
              std::to_string(s.driver().actual()) + " are in the balloon, " + name(s.failure()));
}

} // namespace qtest_driver
