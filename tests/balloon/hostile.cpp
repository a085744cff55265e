// SPDX-License-Identifier: BSD-3-Clause
// A whole balloon, device and driver, on memory that fails, changes, or comes in little pieces.
#include <ballast/balloon/device.hpp>
#include <ballast/balloon/driver.hpp>

#include "support/balloon_parts.hpp"
#include "support/changing_memory.hpp"
#include "support/check.hpp"
#include "support/checked_memory.hpp"
#include "support/failing_memory.hpp"
#include "support/tiny_segments.hpp"

#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtio/in_process_transport.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>

namespace {

using namespace ballast;
using namespace ballast_test;

// 16 pages of memory: rings and buffers in the first, a decoy array in the second, 12 pages for the
// balloon at the end.
constexpr std::uint32_t first_page = 64, page_count = 16, first_balloon = 4;
constexpr guest_address base = first_page * 4096;
using ram_type = array_memory<page_count * 4096>;

/// A guest's allocator that knows where each page is; `wrong` counts what was not its to give.
template <std::uint32_t Count> class owned_pages {
 public:
  constexpr explicit owned_pages(std::uint32_t first) noexcept : first_(first) {}

  constexpr std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    return take(state::free, to);
  }
  constexpr void store(std::span<const std::uint32_t> from) noexcept { put(state::stored, from); }
  constexpr std::size_t take_stored(std::span<std::uint32_t> to) noexcept {
    return take(state::stored, to);
  }
  constexpr void release(std::span<const std::uint32_t> from) noexcept { put(state::free, from); }

  [[nodiscard]] constexpr std::uint32_t free() const noexcept { return count(state::free); }
  [[nodiscard]] constexpr std::uint32_t stored() const noexcept { return count(state::stored); }
  [[nodiscard]] constexpr std::uint32_t wrong() const noexcept { return wrong_; }
  [[nodiscard]] constexpr bool is_free(std::uint32_t pfn) const noexcept {
    return owns(pfn) && pages_[pfn - first_] == state::free;
  }
  [[nodiscard]] constexpr bool is_stored(std::uint32_t pfn) const noexcept {
    return owns(pfn) && pages_[pfn - first_] == state::stored;
  }
  [[nodiscard]] constexpr bool owns(std::uint32_t pfn) const noexcept {
    return pfn >= first_ && pfn - first_ < Count;
  }

 private:
  enum class state : std::uint8_t { free, lent, stored };

  constexpr std::size_t take(state from, std::span<std::uint32_t> to) noexcept {
    std::size_t n = 0;
    for (std::uint32_t i = 0; i < Count && n < to.size(); ++i) {
      if (pages_[i] != from) continue;
      pages_[i] = state::lent;
      to[n++] = first_ + i;
    }
    return n;
  }
  constexpr void put(state to, std::span<const std::uint32_t> from) noexcept {
    for (const std::uint32_t pfn : from) {
      if (!owns(pfn) || pages_[pfn - first_] != state::lent)
        ++wrong_;
      else
        pages_[pfn - first_] = to;
    }
  }
  [[nodiscard]] constexpr std::uint32_t count(state s) const noexcept {
    std::uint32_t n = 0;
    for (const state page : pages_) n += page == s;
    return n;
  }

  std::uint32_t first_;
  state pages_[Count]{};
  std::uint32_t wrong_ = 0;
};

using balloon_pages = owned_pages<page_count - first_balloon>;

/// A host that writes down which page went when, however the calls were cut.
struct watching_host {
  const balloon_pages* pages = nullptr;
  std::uint64_t log = 0;        ///< of every page, in order
  std::uint32_t discarded = 0;  ///< bit n: page n of the memory, now
  std::uint32_t misplaced = 0;  ///< calls that were not whole pages of the memory
  std::uint32_t not_driver = 0; ///< discarded pages that are none of the balloon's
  std::uint32_t in_use = 0;     ///< discarded pages that the guest may use

  constexpr bool discard(guest_address address, std::uint64_t size) noexcept {
    each(address, size, [&](std::uint32_t page) {
      not_driver += !pages->owns(first_page + page);
      in_use += pages->is_free(first_page + page);
      discarded |= 1u << page;
      log = log * 1099511628211u + page + 1;
    });
    return true;
  }
  constexpr void provide(guest_address address, std::uint64_t size) noexcept {
    each(address, size, [&](std::uint32_t page) {
      discarded &= ~(1u << page);
      log = log * 1099511628211u + page + 101;
    });
  }

 private:
  template <class F>
  constexpr void each(guest_address address, std::uint64_t size, F page) noexcept {
    const guest_address end = base + page_count * 4096;
    if (address < base || address > end || size > end - address || size == 0 ||
        address % 4096 != 0 || size % 4096 != 0) {
      ++misplaced;
      return;
    }
    for (; size != 0; address += 4096, size -= 4096)
      page(static_cast<std::uint32_t>((address - base) >> 12));
  }
};

struct setting {
  feature_set features;
  bool reuses_early = false;
};
constexpr setting by_flags{{balloon::feature::must_tell_host, balloon::feature::stats_vq}};
constexpr setting by_events{{balloon::feature::must_tell_host, balloon::feature::stats_vq,
                             balloon::feature::deflate_on_oom, feature::event_idx}};
constexpr setting early_in_order{{balloon::feature::stats_vq, balloon::feature::deflate_on_oom,
                                  feature::event_idx, feature::in_order},
                                 true};
constexpr setting settings[] = {by_flags, by_events, early_in_order};

/// What came of a run; `log` is of all discards, provisions, statistics and refusals, in order.
struct outcome {
  error of_driver = error::none; ///< why a side gave up
  error of_device = error::none;
  bool is_idle = false; ///< the driver has every buffer back
  std::uint64_t log = 0;
  std::uint32_t discarded = 0, actual = 0, known_actual = 0, free = 0, stored = 0;
  std::uint64_t inflated = 0, deflated = 0, bad = 0, statistics = 0;

  [[nodiscard]] constexpr bool has_failed() const noexcept {
    return of_driver != error::none || of_device != error::none;
  }
  friend constexpr bool operator==(const outcome&, const outcome&) noexcept = default;
};

/// Passes a driver's calls on and remembers where its queues lie.
template <class T> struct watched_transport : T {
  using T::T;
  std::array<queue_layout, 3> layouts{};

  constexpr result<void> set_up_queue(std::uint16_t queue, const queue_layout& at) noexcept {
    if (queue < layouts.size()) layouts[queue] = at;
    return T::set_up_queue(queue, at);
  }
};

template <class DriverMemory, class DeviceMemory> class machine {
 public:
  using device_type = balloon::device<DeviceMemory, watching_host, 4>;
  using transport_type = watched_transport<in_process_transport<device_type, DeviceMemory>>;

  constexpr machine(DriverMemory& of_driver, DeviceMemory& of_device, const setting& how) noexcept
      : device_(host_, {.offered = how.features, .target_pages_max = page_count}),
        transport_(device_, of_device),
        driver_(of_driver, transport_, pages_, statistics_, base,
                {.accepted = how.features, .reuses_before_acknowledged = how.reuses_early}) {
    host_.pages = &pages_;
  }

  /// Everything a balloon does, until a side gives up.
  constexpr outcome run() noexcept {
    start();
    set_target(6);
    request_statistics();
    set_target(2);
    if (!result_.has_failed() && driver_.negotiated_features().test(balloon::feature::deflate_on_oom))
      settle(driver_.deflate_on_oom(1), {});
    set_target(9);
    request_statistics();
    set_target(0);
    set_target(3);
    return facts();
  }

  /// Looks at every queue once more, as at the next notification, however stray.
  constexpr outcome poll() noexcept {
    actions of_device;
    for (std::uint16_t q = 0; q < 3; ++q) of_device |= transport_.process(q, 4);
    settle(driver_.step(), of_device);
    return facts();
  }

  /// The guest's driver begins anew: every page is free or stored then, and the balloon works.
  constexpr bool is_whole_after_restart() noexcept {
    result_.of_driver = result_.of_device = error::none;
    (void)device_.set_target(0);
    start();
    const bool is_empty = pages_.stored() == 0 && pages_.free() == page_count - first_balloon;
    set_target(5);
    const outcome is = facts();
    return is_empty && !is.has_failed() && is.is_idle && is.actual == 5 && is.known_actual == 5 &&
           pages_.stored() == 5 && pages_.free() == page_count - first_balloon - 5 &&
           pages_.wrong() == 0;
  }

  [[nodiscard]] constexpr const watching_host& host() const noexcept { return host_; }
  [[nodiscard]] constexpr std::uint32_t torn() const noexcept { return torn_; }
  [[nodiscard]] constexpr bool is_endless() const noexcept { return is_endless_; }
  [[nodiscard]] constexpr std::span<const queue_layout> layouts() const noexcept {
    return transport_.layouts;
  }
  /// Whether a driver that asks learns that the device gave up.
  [[nodiscard]] constexpr bool is_driver_told() noexcept {
    return result_.of_device == error::none || driver_.on_config_change().failure != error::none;
  }

 private:
  constexpr void start() noexcept {
    const actions started = driver_.start();
    if (started.failure != error::none) result_.of_driver = started.failure;
    settle(started, {});
  }
  constexpr void set_target(std::uint32_t pages) noexcept {
    if (!result_.has_failed()) settle({}, device_.set_target(pages));
  }
  constexpr void request_statistics() noexcept {
    if (!result_.has_failed()) settle({}, transport_.carry_out(device_.request_statistics()));
  }

  /// Carries out what each side asks for until neither asks, or one gives up.
  constexpr void settle(actions of_driver, actions of_device) noexcept {
    for (int round = 0; round < 64; ++round) {
      of_device |= transport_.take_actions();
      note(of_driver, result_.of_driver);
      note(of_device, result_.of_device);
      if (result_.has_failed()) return;
      for (std::uint16_t q = 0; q < 3; ++q)
        if (of_driver.notifies(q)) transport_.notify(q);
      const std::uint64_t queues = transport_.take_notified() | of_device.more_work;
      const bool is_for_driver =
          of_device.notify_queues != 0 || of_driver.more_work != 0 || of_device.config_changed;
      if (queues == 0 && !is_for_driver) return take_statistics();
      actions next;
      if (is_for_driver) next = of_device.config_changed ? driver_.on_config_change() : driver_.step();
      of_device = {};
      for (std::uint16_t q = 0; q < 3; ++q)
        if (((queues >> q) & 1) != 0) of_device |= transport_.process(q, 4);
      of_driver = next;
    }
    is_endless_ = true;
  }

  constexpr void note(const actions& due, error& failure) noexcept {
    if (due.failure == error::none) return;
    // A refusal is an answer, not a failure; but one that an honest run does not get.
    if (!due.needs_reset && due.failure != error::memory_lost)
      host_.log = host_.log * 31 + static_cast<unsigned>(due.failure);
    else if (failure == error::none)
      failure = due.failure;
  }

  constexpr void take_statistics() noexcept {
    const auto s = device_.take_statistics(1);
    if (!s) return;
    const std::uint64_t faults = s->value(statistic_tag::minor_faults);
    const std::uint64_t total = s->value(statistic_tag::total_memory);
    torn_ += s->is_solicited && (faults != statistics_.asked || total != 1u << 20);
    host_.log = host_.log * 31 + faults * 4 + (total != 0 ? 2u : 0u) + s->is_solicited;
  }

  constexpr outcome facts() const noexcept {
    outcome is = result_;
    is.is_idle = driver_.is_idle();
    is.log = host_.log;
    is.discarded = host_.discarded;
    is.actual = driver_.actual();
    is.known_actual = device_.actual();
    is.free = pages_.free();
    is.stored = pages_.stored();
    is.inflated = device_.counters().inflated_pages;
    is.deflated = device_.counters().deflated_pages;
    is.bad = device_.counters().bad_pages;
    is.statistics = device_.counters().statistics_buffers;
    return is;
  }

  balloon_pages pages_{first_page + first_balloon};
  watching_host host_;
  test_statistics statistics_;
  outcome result_;
  std::uint32_t torn_ = 0;
  bool is_endless_ = false;
  device_type device_;
  transport_type transport_;
  balloon::driver<DriverMemory, transport_type, balloon_pages, test_statistics, 4> driver_;
};

/// Where a changed address leads: numbers of pages that the balloon does not own.
constexpr void put_decoys(ram_type& ram) {
  for (std::uint32_t i = 0; i < 16; ++i) ram.bytes()[4096 + 4 * i] = std::byte{first_page + 2};
}

enum class side { driver, device };
constexpr side sides[] = {side::driver, side::device};

/// A machine of which one side sees the memory through `Wrapped`.
template <side S, class Wrapped>
struct machine_of : machine<std::conditional_t<S == side::driver, Wrapped, ram_type>,
                            std::conditional_t<S == side::driver, ram_type, Wrapped>> {
  constexpr machine_of(Wrapped& wrapped, ram_type& ram, const setting& how) noexcept
      : machine_of::machine(pick<S == side::driver>(wrapped, ram),
                            pick<S == side::device>(wrapped, ram), how) {}

 private:
  template <bool IsWrapped>
  static constexpr auto& pick(Wrapped& wrapped, ram_type& ram) noexcept {
    if constexpr (IsWrapped)
      return wrapped;
    else
      return ram;
  }
};

constexpr outcome honest_run(const setting& how) noexcept {
  ram_type ram(base);
  put_decoys(ram);
  return machine<ram_type, ram_type>(ram, ram, how).run();
}

constexpr auto honest = [](auto check) {
  const outcome is = honest_run(by_events);
  check(!is.has_failed() && is.is_idle && is.bad == 0 && is.statistics == 3);
  check(is.discarded == 0x70 && is.actual == 3 && is.known_actual == 3);
  check(is.free == 9 && is.stored == 3);
};
BOTH("the honest run, which the others are held against", honest)

// ---- memory that fails ----

/// One run on memory that fails as `plan` says; whether it got that far.
template <side S> constexpr bool fails_well(auto check, const setting& how, failure_plan plan) {
  using wrapped = failing_memory<ram_type>;
  const std::uint64_t lose_at = plan.lose_at, fail_at = plan.fail_at;
  ram_type ram(base);
  put_decoys(ram);
  wrapped memory(ram, plan);
  machine_of<S, wrapped> m(memory, ram, how);
  const outcome is = m.run();
  const outcome should_be = honest_run(how);
  const bool has_come = lose_at != 0 ? plan.accesses >= lose_at : plan.fallible >= fail_at;
  check(!m.is_endless());
  check(m.torn() == 0);
  check(m.host().misplaced == 0 && m.host().not_driver == 0 && m.host().in_use == 0);
  check(m.is_driver_told());
  if (!is.has_failed()) {
    check(is.is_idle);
    // A page that can't be looked up is passed over, and counted.
    check(is.inflated + is.deflated + is.bad == should_be.inflated + should_be.deflated);
    check(is.bad != 0 || is == should_be);
    check(is.bad == 0 || S == side::device);
  }
  plan = {};
  check(m.is_whole_after_restart());
  return has_come;
}

template <side S> void every_access_fails() {
  for (const setting& how : settings) {
    std::uint64_t n = 1;
    for (bool has_come = true; has_come; ++n) {
      CAPTURE(n);
      has_come = fails_well<S>(run_time_check{}, how, {.fail_at = n});
    }
    CHECK(n > 10);
  }
}
template <side S> void memory_is_lost_at_every_access() {
  for (const setting& how : settings) {
    std::uint64_t n = 1;
    for (bool has_come = true; has_come; ++n) {
      CAPTURE(n);
      has_come = fails_well<S>(run_time_check{}, how, {.lose_at = n});
      (void)fails_well<S>(run_time_check{}, how, {.lose_at = n, .garbage = ~std::uint64_t{0}});
    }
    CHECK(n > 100);
  }
}

TEST_CASE("each access of the driver fails once: it says so, and no page is lost") {
  every_access_fails<side::driver>();
}
TEST_CASE("each access of the device fails once: it says so or counts the page") {
  every_access_fails<side::device>();
}
TEST_CASE("the driver loses its memory at each access: it says so, and no page is lost") {
  memory_is_lost_at_every_access<side::driver>();
}
TEST_CASE("the device loses its memory at each access: it says so") {
  memory_is_lost_at_every_access<side::device>();
}

} // namespace
