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
#include <bit>
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
class watching_host {
  // First: clang 14 wants a template's body before the constant expression that needs it.
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

 public:
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
    if (!result_.has_failed() &&
        driver_.negotiated_features().test(balloon::feature::deflate_on_oom))
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
    return !needs_reset_ || driver_.on_config_change().failure != error::none;
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
      needs_reset_ |= of_device.needs_reset;
      if (result_.has_failed()) return;
      for (std::uint16_t q = 0; q < 3; ++q)
        if (of_driver.notifies(q)) transport_.notify(q);
      const std::uint64_t queues = transport_.take_notified() | of_device.more_work;
      const bool is_for_driver =
          of_device.notify_queues != 0 || of_driver.more_work != 0 || of_device.config_changed;
      if (queues == 0 && !is_for_driver) return take_statistics();
      actions next;
      if (is_for_driver)
        next = of_device.config_changed ? driver_.on_config_change() : driver_.step();
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
  bool needs_reset_ = false; ///< the device said so
  device_type device_;
  transport_type transport_;
  balloon::driver<DriverMemory, transport_type, balloon_pages, test_statistics, 4> driver_;
};

/// Where a changed address leads: numbers of pages that the balloon does not own.
constexpr void put_decoys(ram_type& ram) {
  for (std::uint32_t i = 0; i < 16; ++i) ram.bytes()[4096 + 4 * i] = std::byte{first_page + 2};
}

enum class side { driver, device };

/// A machine of which one side sees the memory through `Wrapped`.
template <side S, class Wrapped>
struct machine_of : machine<std::conditional_t<S == side::driver, Wrapped, ram_type>,
                            std::conditional_t<S == side::driver, ram_type, Wrapped>> {
  constexpr machine_of(Wrapped& wrapped, ram_type& ram, const setting& how) noexcept
      : machine_of::machine(pick < S == side::driver > (wrapped, ram),
                            pick < S == side::device > (wrapped, ram), how) {}

 private:
  template <bool IsWrapped> static constexpr auto& pick(Wrapped& wrapped, ram_type& ram) noexcept {
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
  outcome is = m.run();
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

constexpr auto fails_a_little = [](auto check) {
  check(fails_well<side::driver>(check, by_events, {.fail_at = 6}));
  check(fails_well<side::device>(check, by_events, {.lose_at = 40}));
};
BOTH("a failed access of the driver, and a device that loses its memory", fails_a_little)

// ---- memory that changes ----

constexpr std::uint64_t masks[] = {1,          2,          4,          0x1000,     0x8000,
                                   1u << 31,   1ull << 32, 2ull << 32, 4ull << 32, 7ull << 32,
                                   1ull << 48, 1ull << 63, ~0ull};

/// Every word is loaded once and every payload copied once: that each is another as soon as it was
/// read makes no difference.
template <side S> constexpr void reads_once(auto check, const setting& how, std::uint64_t mask) {
  using wrapped = changing_memory<ram_type>;
  ram_type ram(base);
  put_decoys(ram);
  change_plan plan{.mask = mask, .rewrites_words = true, .rewrites_payload = true};
  wrapped memory(ram, plan);
  machine_of<S, wrapped> m(memory, ram, how);
  check(m.run() == honest_run(how));
  check(plan.loads > 50);
  check((plan.reads != 0) == (S == side::device)); // a driver reads back nothing that it wrote
}

template <side S> void changes_behind_every_read() {
  for (const setting& how : settings)
    for (const std::uint64_t mask : masks) {
      CAPTURE(mask);
      reads_once<S>(run_time_check{}, how, mask);
    }
}

TEST_CASE("what the driver changes after the device read it makes no difference") {
  changes_behind_every_read<side::device>();
}
TEST_CASE("what the device changes after the driver read it makes no difference") {
  changes_behind_every_read<side::driver>();
}

constexpr auto changes_a_little = [](auto check) {
  reads_once<side::device>(check, by_events, ~0ull);
};
BOTH("the device reads each word and each payload once", changes_a_little)

/// The peer really writes the changed word, right before its `at`-th load.
struct poke_plan {
  std::uint64_t at = 0;
  std::uint64_t mask = 0;
  std::uint64_t loads = 0;
  order how = order::plain; ///< of that load
};

template <guest_memory M> class poked_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(window_of<M> inner, poke_plan* plan) noexcept
        : inner_(inner), plan_(plan) {}

    template <wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, order o) const noexcept {
      if (++plan_->loads == plan_->at) {
        plan_->how = o;
        auto peer = inner_;
        const T now = peer.template load<T>(offset, order::relaxed);
        // Of the word as a little-endian ring has it.
        const T mask = ballast::to_order<std::endian::little>(static_cast<T>(plan_->mask));
        peer.template store<T>(offset, static_cast<T>(now ^ mask), order::relaxed);
      }
      return inner_.template load<T>(offset, o);
    }
    template <wire_integer T> constexpr void store(std::size_t offset, T value, order o) noexcept {
      inner_.template store<T>(offset, value, o);
    }

   private:
    window_of<M> inner_{};
    poke_plan* plan_ = nullptr;
  };

  constexpr poked_memory(M& inner, poke_plan& plan) noexcept : inner_(&inner), plan_(&plan) {}

  [[nodiscard]] constexpr result<window_type> window(guest_address address, std::uint64_t size,
                                                     std::size_t alignment,
                                                     ballast::access kind) noexcept {
    const auto inner = inner_->window(address, size, alignment, kind);
    if (!inner) return inner.error();
    return window_type(*inner, plan_);
  }
  [[nodiscard]] constexpr memory_segment segment(guest_address address, std::uint64_t size,
                                                 ballast::access kind) noexcept {
    return inner_->segment(address, size, kind);
  }
  [[nodiscard]] constexpr bool read(guest_address address, std::span<std::byte> to) noexcept {
    return inner_->read(address, to);
  }
  [[nodiscard]] constexpr bool write(guest_address address,
                                     std::span<const std::byte> from) noexcept {
    return inner_->write(address, from);
  }
  [[nodiscard]] constexpr bool good() noexcept { return inner_->good(); }
  constexpr void fence() noexcept { inner_->fence(); }

 private:
  M* inner_;
  poke_plan* plan_;
};

/// What came of changed words, over all runs.
struct tally {
  std::uint32_t plain = 0, atomic = 0;
  std::uint32_t errors = 0, honest = 0, others = 0;
};

/// One load sees another value than all others. A plain word belongs to the reader then and is
/// loaded once: all is as if the peer had written that value. Atomic words are polled: as if it
/// had, or as if nothing was, or a failure; and pages are discarded that the driver named, never
/// others.
template <side S>
bool takes_one_value(const setting& how, const outcome& honest_is, std::uint64_t k,
                     std::uint64_t mask, tally& t) {
  const run_time_check check;
  poke_plan poke{.at = k, .mask = mask};
  ram_type poked_ram(base);
  put_decoys(poked_ram);
  poked_memory<ram_type> poked(poked_ram, poke);
  machine_of<S, poked_memory<ram_type>> other(poked, poked_ram, how);
  const outcome written = other.run();

  change_plan plan{.change_load = k, .mask = mask};
  ram_type ram(base);
  put_decoys(ram);
  changing_memory<ram_type> memory(ram, plan);
  machine_of<S, changing_memory<ram_type>> m(memory, ram, how);
  const outcome is = m.run();
  const bool has_come = plan.loads >= k;

  check(!m.is_endless());
  check(m.host().misplaced == 0 && other.host().misplaced == 0);
  check(m.is_driver_told());
  if (poke.how == order::plain) {
    // A chain that leads back to itself names its words again.
    check(is == written || written.of_device == error::chain_loops);
  } else {
    check(is.has_failed() || is == honest_is || is == written);
    check(m.host().not_driver == 0);
  }
  if (has_come) {
    ++(poke.how == order::plain ? t.plain : t.atomic);
    ++(is.has_failed() ? t.errors : is == honest_is ? t.honest : t.others);
  }
  plan = {};
  check(m.is_whole_after_restart());
  return has_come;
}

template <side S> tally every_load_changes() {
  tally t;
  for (const setting& how : settings) {
    const outcome honest_is = honest_run(how);
    for (const std::uint64_t mask : masks) {
      CAPTURE(mask);
      bool has_come = true;
      for (std::uint64_t k = 1; has_come; ++k) {
        CAPTURE(k);
        has_come = takes_one_value<S>(how, honest_is, k, mask, t);
      }
    }
  }
  return t;
}

TEST_CASE("each load of the device sees a changed word: as if written so, or not, or a failure") {
  const tally t = every_load_changes<side::device>();
  CHECK(t.plain > 500);
  CHECK(t.atomic > 500);
  CHECK(t.errors > 500);
  CHECK(t.honest > 100);
  CHECK(t.others > 100);
}
TEST_CASE("each load of the driver sees a changed word: as if written so, or not, or a failure") {
  const tally t = every_load_changes<side::driver>();
  CHECK(t.plain > 500);
  CHECK(t.atomic > 500);
  CHECK(t.errors > 500);
  CHECK(t.honest > 100);
}

TEST_CASE("each payload the device reads is changed: nothing but whole pages of the memory goes") {
  std::uint32_t bad = 0;
  for (const setting& how : settings)
    for (const std::uint64_t mask : masks) {
      CAPTURE(mask);
      std::uint64_t n = 1;
      for (bool has_come = true; has_come; ++n) {
        CAPTURE(n);
        change_plan plan{.change_read = n, .mask = mask};
        ram_type ram(base);
        changing_memory<ram_type> memory(ram, plan);
        machine_of<side::device, changing_memory<ram_type>> m(memory, ram, how);
        const outcome is = m.run();
        has_come = plan.reads >= n;
        CHECK(!is.has_failed());
        CHECK(is.is_idle);
        CHECK(m.host().misplaced == 0);
        bad += is.bad != 0;
        plan = {};
        CHECK(m.is_whole_after_restart());
      }
      CHECK(n > 6);
    }
  CHECK(bad > 10);
}

// ---- memory in little pieces ----

constexpr void is_in_pieces(auto check, const setting& how, std::uint64_t longest,
                            bool hides_pointers) {
  using wrapped = tiny_segments<ram_type>;
  ram_type ram(base), other_ram(base);
  put_decoys(ram);
  put_decoys(other_ram);
  wrapped memory(ram, longest, hides_pointers), other(other_ram, longest, hides_pointers);
  machine_of<side::device, wrapped> device(memory, ram, how);
  check(device.run() == honest_run(how));
  machine_of<side::driver, wrapped> driver(other, other_ram, how);
  check(driver.run() == honest_run(how));
}

TEST_CASE("memory in little pieces, with or without pointers: no page is counted bad") {
  for (const setting& how : settings)
    for (const std::uint64_t longest : {1u, 7u, 4095u, 4096u, 4097u, 12288u})
      for (const bool hides_pointers : {false, true}) {
        CAPTURE(longest);
        CAPTURE(hides_pointers);
        is_in_pieces(run_time_check{}, how, longest, hides_pointers);
      }
}
constexpr auto a_few_pieces = [](auto check) { is_in_pieces(check, by_flags, 4095, true); };
BOTH("memory in pieces of 4095 bytes without pointers", a_few_pieces)

// ---- every ring word by its width and class ----

constexpr void is_as_laid_out(auto check, const setting& how) {
  using record_type = access_record<4096>;
  ram_type ram(base);
  put_decoys(ram);
  record_type record(base);
  checked_memory<ram_type, 4096> of_driver(ram, record), of_device(ram, record);
  machine<checked_memory<ram_type, 4096>, checked_memory<ram_type, 4096>> m(of_driver, of_device,
                                                                            how);
  check(m.run() == honest_run(how));
  check(!record.fault());
  check(!record.double_fetch());
  check(!record.compare(split_words(m.layouts())));
  check(record.words() > 30);
}

TEST_CASE("both sides use each ring word by its one width and class, and load it once") {
  for (const setting& how : settings) is_as_laid_out(run_time_check{}, how);
}
constexpr auto by_the_layout = [](auto check) { is_as_laid_out(check, by_events); };
BOTH("... in a constant expression", by_the_layout)

// ---- threads ----

constexpr std::uint32_t many = 300; // pages: more than one buffer holds

/// Touches its pages as a guest does: under TSan a page that is discarded too late is a race.
class touched_pages : public owned_pages<many> {
 public:
  touched_pages(std::uint32_t first, std::span<std::byte> bytes) noexcept
      : owned_pages(first), bytes_(bytes) {}

  std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    const std::size_t n = owned_pages::take_free(to);
    touch(to.first(n));
    return n;
  }
  void store(std::span<const std::uint32_t> from) noexcept {
    owned_pages::store(from);
    for (const std::uint32_t pfn : from) kept_ += bytes_[(pfn - first_page) * 4096] != std::byte{0};
  }
  void release(std::span<const std::uint32_t> from) noexcept {
    owned_pages::release(from);
    touch(from);
  }

  /// Pages whose buffer came back before they were discarded.
  [[nodiscard]] std::uint32_t kept() const noexcept { return kept_; }

 private:
  void touch(std::span<const std::uint32_t> pfns) noexcept {
    for (const std::uint32_t pfn : pfns) bytes_[(pfn - first_page) * 4096] = std::byte{1};
  }

  std::span<std::byte> bytes_;
  std::uint32_t kept_ = 0;
};

struct zeroing_host {
  std::span<std::byte> memory;
  std::array<bool, many> is_discarded{};
  std::uint32_t outside = 0;

  bool discard(guest_address address, std::uint64_t size) noexcept {
    return each(address, size, true);
  }
  void provide(guest_address address, std::uint64_t size) noexcept { each(address, size, false); }

 private:
  bool each(guest_address address, std::uint64_t size, bool is_gone) noexcept {
    std::this_thread::yield(); // as slow as a system call: the driver looks meanwhile
    for (guest_address at = address; at < address + size; at += 4096) {
      const std::uint64_t page = (at - base) / 4096;
      if (page < first_balloon || page - first_balloon >= many) return ++outside, false;
      memory[page * 4096] = std::byte{0};
      is_discarded[page - first_balloon] = is_gone;
    }
    return true;
  }
};

/// What a transport asks of its caller: one at a time writes registers or runs the device.
template <class T> struct locked_transport : T {
  using T::T;
  std::mutex registers;

  void set_driver_features(const feature_set& accepted) noexcept {
    const std::lock_guard lock(registers);
    T::set_driver_features(accepted);
  }
  void set_status(std::uint8_t bits) noexcept {
    const std::lock_guard lock(registers);
    T::set_status(bits);
  }
  result<void> set_up_queue(std::uint16_t queue, const queue_layout& at) noexcept {
    const std::lock_guard lock(registers);
    return T::set_up_queue(queue, at);
  }
  result<void> reset_queue(std::uint16_t queue) noexcept {
    const std::lock_guard lock(registers);
    return T::reset_queue(queue);
  }
  result<void> write_config(std::uint32_t offset, std::span<const std::byte> from) noexcept {
    const std::lock_guard lock(registers);
    return T::write_config(offset, from);
  }
};

void three_threads(const feature_set& features, bool is_polling) {
  using device_type = balloon::device<mapped_memory, zeroing_host>;
  using transport_type = locked_transport<in_process_transport<device_type, mapped_memory>>;
  struct alignas(64) page {
    std::array<std::byte, 4096> bytes;
  };
  const auto host_pages = std::make_unique<page[]>(first_balloon + many);
  const std::span bytes(host_pages[0].bytes.data(), (first_balloon + many) * sizeof(page));
  const memory_region regions[] = {{base, bytes.data(), bytes.size()}};
  const auto ram = mapped_memory::over(regions);
  REQUIRE(ram.has_value());
  mapped_memory of_driver = *ram, of_device = *ram; // an object serves one thread

  zeroing_host host{bytes};
  touched_pages pages(first_page + first_balloon, bytes);
  test_statistics statistics;
  device_type device(host, {.offered = features, .target_pages_max = many});
  transport_type transport(device, of_device);
  balloon::driver<mapped_memory, transport_type, touched_pages, test_statistics> driver(
      of_driver, transport, pages, statistics, base, {.accepted = features});

  constexpr std::uint32_t last_target = 270, target_count = 200;
  std::atomic<bool> config_changed{false}, is_used{false}; // the driver's interrupts
  std::atomic<bool> is_last_set{false}, is_over{false};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  const auto is_late = [&] { return std::chrono::steady_clock::now() > deadline; };

  std::atomic<std::uint32_t> replies{0};
  std::uint32_t misread = 0;
  bool is_too_late = false;
  error of_the_device = error::none, of_the_driver = error::none;

  std::thread host_thread([&] { // the device's loop
    std::uint64_t queues = 0;
    for (std::uint32_t turn = 0; !is_over; ++turn) {
      actions due;
      {
        const std::lock_guard lock(transport.registers);
        due = transport.take_actions();
        queues |= transport.take_notified();
        for (std::uint16_t q = 0; q < 3; ++q)
          if (((queues >> q) & 1) != 0) due |= transport.process(q, 1);
        if (turn % 16 == 0) {
          const actions asked = device.request_statistics();
          due.notify_queues |= asked.notify_queues; // refused while one is pending
        }
        replies += device.take_statistics(turn).has_value();
      }
      queues = due.more_work;
      if (due.config_changed) config_changed = true;
      if (due.notify_queues != 0) is_used = true;
      if (due.failure != error::none) of_the_device = due.failure;
      if (queues == 0) std::this_thread::yield();
    }
  });
  std::thread guest_thread([&] { // the driver's
    actions due = driver.start();
    while (true) {
      for (std::uint16_t q = 0; q < 3; ++q)
        if (due.notifies(q)) transport.notify(q);
      if (due.failure != error::none) of_the_driver = due.failure;
      is_too_late = is_late();
      const bool is_there =
          is_last_set && replies > 2 && driver.actual() == last_target && driver.is_idle();
      if (is_there || is_too_late || due.failure != error::none) break;
      const bool is_awake = is_used.exchange(false) || due.more_work != 0 || is_polling;
      due = {};
      if (config_changed.exchange(false))
        due = driver.on_config_change();
      else if (is_awake)
        due = driver.step();
      if (due.notify_queues == 0) std::this_thread::yield();
    }
    is_over = true;
  });
  // This thread: the VMM's monitor, from before the driver is there.
  std::uint32_t random = 1;
  std::uint32_t generation = transport.config_generation();
  for (std::uint32_t i = 0; i < target_count; ++i) {
    random = random * 1664525 + 1013904223;
    const std::uint32_t target = i + 1 == target_count ? last_target : (random >> 16) % (many + 1);
    const bool is_changed = target != device.target();
    if (device.set_target(target).config_changed) config_changed = true;
    std::array<std::byte, 4> raw{};
    misread += !transport.read_config(offsetof(balloon::config, num_pages), raw);
    misread += std::bit_cast<le32>(raw) != target || device.target() != target;
    misread += device.actual() > many;
    misread += (transport.config_generation() != generation) != is_changed;
    generation = transport.config_generation();
    for (std::uint32_t pause = random >> 28; pause != 0; --pause) std::this_thread::yield();
  }
  is_last_set = true;
  guest_thread.join();
  host_thread.join();

  CHECK(of_the_driver == error::none);
  CHECK(of_the_device == error::none);
  CHECK(!is_too_late);
  CHECK(misread == 0);
  CHECK(driver.target() == last_target);
  CHECK(device.actual() == last_target);
  CHECK(pages.stored() == last_target);
  CHECK(pages.free() == many - last_target);
  CHECK(pages.wrong() == 0);
  CHECK(pages.kept() == 0);
  CHECK(host.outside == 0);
  CHECK(device.counters().bad_pages == 0);
  std::uint32_t differ = 0;
  for (std::uint32_t i = 0; i < many; ++i)
    differ += host.is_discarded[i] != pages.is_stored(first_page + first_balloon + i);
  CHECK(differ == 0);
}

TEST_CASE("targets are set while two threads inflate and deflate: the last one is reached") {
  for (const bool is_polling : {true, false}) {
    three_threads(by_flags.features, is_polling);
    three_threads(by_events.features, is_polling);
    three_threads(by_events.features.with(feature::in_order), is_polling);
  }
}

} // namespace
