// SPDX-License-Identifier: BSD-3-Clause
//
// Every way in which a host, the device's half of free page hinting, a queue, the driver's half and
// a guest can take turns, over few ids and blocks: breadth first, each state once.
#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/hint_driver.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast::balloon;

namespace {

constexpr std::uint32_t block_count = 2;
constexpr std::uint32_t queue_size = 3;
constexpr unsigned block_order = 10;

enum class place : std::uint8_t { free, used_by_guest, hinted };

struct source {
  std::array<place, block_count> at{};
  std::uint8_t released = 0; ///< since the test looked last; a bit per block
  bool is_wrong = false;     ///< released what was not taken

  result<guest_address> take(unsigned order) noexcept {
    is_wrong |= order != block_order;
    for (std::uint32_t i = 0; i < block_count; ++i) {
      if (at[i] != place::free) continue;
      at[i] = place::hinted;
      return guest_address{i} << (pfn_shift + block_order);
    }
    return error::queue_empty;
  }
  void release(guest_address address, unsigned order) noexcept {
    const std::uint64_t i = address >> (pfn_shift + block_order);
    is_wrong |= order != block_order || at[i] != place::hinted;
    at[i] = place::free;
    released = static_cast<std::uint8_t>(released | 1u << i);
  }
  [[nodiscard]] std::uint8_t hinted() const {
    std::uint8_t blocks = 0;
    for (std::uint32_t i = 0; i < block_count; ++i)
      if (at[i] == place::hinted) blocks = static_cast<std::uint8_t>(blocks | 1u << i);
    return blocks;
  }
};

/// A buffer in the queue.
struct entry {
  std::uint32_t token = 0;
  std::uint32_t id = 0; ///< of a command; of a STOP and of a block, the id of their round
  std::uint8_t block = 0;
  bool is_command = false;
  bool is_stop = false;
  /// Sent by a driver that read the id after it was issued, and the host has done nothing since
  /// that ends the round: only such a hint may count.
  bool is_fresh = false;
};

template <class T> struct fifo {
  std::array<T, queue_size> at{};
  std::uint32_t count = 0;

  void push(const T& value) { at[count++] = value; }
  T pop() {
    const T first = at[0];
    for (std::uint32_t i = 1; i < count; ++i) at[i - 1] = at[i];
    at[--count] = {};
    return first;
  }
};

// Machines with a mistake each.

/// Shows an id again when it asks again after STOP: one that the driver has not taken up yet, as
/// far as the device knows, or one that it has.
template <bool IsTakenUp> class device_that_reuses_ids : public hint_device {
 public:
  explicit device_that_reuses_ids(const hint_device_options& options)
      : hint_device(options), first_(options.first_id) {}
  result<void> start() {
    const hint_device_state was = save();
    if (state() == hint_state::stop && was.open_ids != 0 && was.is_oldest_taken_up == IsTakenUp &&
        was.id > first_)
      (void)restore({.id = was.id - 1, .has_asked = true});
    return hint_device::start();
  }

 private:
  std::uint32_t first_;
};

/// Shows STOP in place of a DONE, as QEMU's free_page_stop does.
class device_that_stops_after_done : public hint_device {
 public:
  using hint_device::hint_device;
  result<void> start() {
    is_stopped_ = false;
    return hint_device::start();
  }
  bool stop() {
    if (state() != hint_state::done) return hint_device::stop();
    is_stopped_ = true;
    return true;
  }
  std::uint32_t command_id() const {
    return is_stopped_ ? command_id::stop : hint_device::command_id();
  }

 private:
  bool is_stopped_ = false;
};

/// Shows DONE and tells nobody.
class device_that_hides_done : public hint_device {
 public:
  using hint_device::hint_device;
  bool done() { return hint_device::done() && false; }
};

/// Remembers the last value of the configuration only, and looks at it when it has time.
class driver_that_forgets_done : public hint_driver<source> {
 public:
  using hint_driver<source>::hint_driver;
  void on_config(std::uint32_t id) {
    id_ = id;
    has_id_ = 1;
  }
  hint_step step(std::uint32_t free) {
    if (has_id_ != 0) hint_driver<source>::on_config(id_);
    has_id_ = 0;
    return hint_driver<source>::step(free);
  }
  void reset() {
    has_id_ = id_ = 0;
    hint_driver<source>::reset();
  }

 private:
  std::uint32_t id_ = 0;
  std::uint32_t has_id_ = 0;
};

/// Releases a block on DONE though the device has its buffer.
class driver_that_does_not_wait : public hint_driver<source> {
 public:
  driver_that_does_not_wait(source& from, std::span<hint_block> blocks, hint_driver_options options)
      : hint_driver<source>(from, blocks, (options.release = hint_release::early, options)) {}
};

struct model_options {
  hint_release release = hint_release::when_used;
  std::uint32_t ids = 2; ///< from here to the wrap, and again
  bool hides_started_id = false;
};

enum class action : std::uint8_t {
  host_starts,
  host_stops,
  host_is_done,
  config_is_read,
  driver_steps,
  driver_takes_used,
  device_takes_buffer,
  device_returns_buffer,
  guest_reclaims,
  guest_allocates,
  guest_frees,
  device_is_reset,
  device_is_restored,
  count
};

constexpr const char* name(action a) {
  constexpr const char* names[] = {
      "host starts",       "host stops",        "host is done",          "config is read",
      "driver steps",      "driver takes used", "device takes a buffer", "device returns it",
      "guest reclaims",    "guest allocates",   "guest frees",           "device is reset",
      "device is restored"};
  return names[static_cast<std::size_t>(a)];
}

/// A hash of words, for bytes that all count.
class digest {
 public:
  template <class T> void add(const T& value) {
    static_assert(std::has_unique_object_representations_v<T>, "no padding: it would be hashed");
    std::array<unsigned char, (sizeof(T) + 7) / 8 * 8> bytes{};
    std::memcpy(bytes.data(), &value, sizeof(T));
    for (std::size_t i = 0; i < bytes.size(); i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, &bytes[i], 8);
      value_ = (value_ ^ word) * 0x9e3779b97f4a7c15u;
      value_ ^= value_ >> 32;
    }
  }
  [[nodiscard]] std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0x243f6a8885a308d3u;
};

template <class Device, class Driver> class model {
 public:
  explicit model(const model_options& options)
      : device(device_options(options)),
        driver(from, blocks, {block_order, block_order, options.release}), options_(options) {}

  /// Does it, where it is possible now.
  bool apply(action a) {
    const bool is_done = perform(a);
    look_at_releases();
    return is_done;
  }

  /// Nothing new happens, and everybody goes on until there is nothing left to do.
  void settle() {
    for (int i = 0; i < 400; ++i) {
      bool is_busy = is_told && apply(action::config_is_read);
      is_busy |= apply(action::device_takes_buffer);
      is_busy |= apply(action::device_returns_buffer);
      is_busy |= apply(action::driver_takes_used);
      is_busy |= apply(action::driver_steps);
      if (!is_busy) return check_settled();
    }
    fail("never comes to rest");
  }

  [[nodiscard]] std::uint64_t hash() const {
    digest d;
    const hint_device_state s = device.save();
    d.add(std::array<std::uint32_t, 4>{device.command_id(), s.id, s.open_ids,
                                       s.is_oldest_taken_up | unsigned{s.has_asked} << 1 |
                                           static_cast<unsigned>(device.state()) << 2});
    d.add(driver);
    d.add(blocks);
    d.add(from);
    d.add(available.at);
    d.add(used.at);
    d.add(in_hand);
    d.add(std::array<std::uint32_t, 5>{
        available.count, used.count, owed, unstopped,
        has_in_hand | unsigned{is_told} << 1 | unsigned{is_read_fresh} << 2 |
            unsigned{is_round_fresh} << 3 | unsigned{is_done_due} << 4});
    return d.value();
  }

  const char* violation = nullptr;

 private:
  [[nodiscard]] static hint_device_options device_options(const model_options& options) {
    return {.first_id = UINT32_MAX - options.ids + 1, .hides_started_id = options.hides_started_id};
  }

  void fail(const char* what) {
    if (violation == nullptr) violation = what;
  }
  void expect(bool ok, const char* what) {
    if (!ok) fail(what);
  }

  [[nodiscard]] std::uint32_t bit_of(std::uint32_t id) const {
    return 1u << (id - (UINT32_MAX - options_.ids + 1));
  }
  [[nodiscard]] std::uint32_t free_descriptors() const {
    return queue_size - available.count - has_in_hand - used.count;
  }

  bool perform(action a) {
    switch (a) {
    case action::host_starts: return host_starts();
    case action::host_stops: is_told |= device.stop(); return nothing_is_fresh();
    case action::host_is_done:
      is_told |= device.done();
      is_done_due = true;
      return nothing_is_fresh();
    case action::config_is_read: return read_config();
    case action::driver_steps: return driver_steps();
    case action::driver_takes_used:
      if (used.count == 0) return false;
      driver.on_used(used.pop());
      return true;
    case action::device_takes_buffer: return device_takes();
    case action::device_returns_buffer:
      if (!has_in_hand) return false;
      used.push(in_hand.token);
      in_hand = {};
      has_in_hand = false;
      return true;
    case action::guest_reclaims: return driver.reclaim(1) != 0;
    case action::guest_allocates: return move_one(place::free, place::used_by_guest);
    case action::guest_frees: return move_one(place::used_by_guest, place::free);
    case action::device_is_reset: return reset();
    case action::device_is_restored: return restore();
    case action::count: break;
    }
    return false;
  }

  /// Whatever is under way was for something that is over.
  bool nothing_is_fresh() {
    for (entry& e : available.at) e.is_fresh = false;
    in_hand.is_fresh = is_read_fresh = is_round_fresh = false;
    return true;
  }

  bool host_starts() {
    if (!device.start()) return false;
    const std::uint32_t id = device.command_id();
    expect(id >= UINT32_MAX - options_.ids + 1, "an id that is none");
    expect((unstopped & bit_of(id)) == 0, "an id was reused before the driver's STOP");
    is_told = true;
    is_done_due = false;
    return nothing_is_fresh();
  }

  bool read_config() {
    const std::uint32_t id = device.command_id();
    driver.on_config(id);
    is_told = false;
    is_read_fresh = id >= command_id::first;
    if (id == command_id::done) owed = from.hinted();
    return true;
  }

  bool driver_steps() {
    const hint_step s = driver.step(free_descriptors());
    if (s.duty == hint_duty::none) return false;
    if (s.duty == hint_duty::again) return true;
    expect(free_descriptors() != 0, "no descriptor is free");
    if (violation != nullptr) return true;
    entry e{.token = s.token, .id = s.id, .is_command = s.duty == hint_duty::command};
    if (!e.is_command) {
      expect(free_descriptors() >= 2, "no descriptor is left for the STOP");
      e.block = static_cast<std::uint8_t>(s.address >> (pfn_shift + block_order));
    }
    if (e.is_command && s.id >= command_id::first) {
      is_round_fresh = is_read_fresh;
      unstopped |= bit_of(s.id);
    } else {
      e.id = driver.active_id();
      e.is_stop = e.is_command;
    }
    e.is_fresh = is_round_fresh && !e.is_stop;
    available.push(e);
    return true;
  }

  bool device_takes() {
    if (has_in_hand || available.count == 0) return false;
    in_hand = available.pop();
    has_in_hand = true;
    if (in_hand.is_command) {
      const hint_command did = device.on_command(in_hand.is_stop ? command_id::stop : in_hand.id);
      is_told |= did.is_config_changed;
      expect(did.event != hint_event::duplicate, "an id was sent twice");
      if (in_hand.is_stop) unstopped &= ~bit_of(in_hand.id);
    } else if (device.is_accepting()) {
      expect(in_hand.is_fresh, "a hint counted under an id that is not current");
    }
    return true;
  }

  bool move_one(place a, place b) {
    for (place& p : from.at) {
      if (p != a) continue;
      p = b;
      return true;
    }
    return false;
  }

  bool reset() {
    device.reset();
    available = {};
    used = {};
    in_hand = {};
    has_in_hand = is_done_due = is_told = false;
    unstopped = 0;
    nothing_is_fresh();
    driver.reset();
    expect(from.hinted() == 0 && driver.held_blocks() == 0, "a block is lost after a reset");
    expect(driver.in_flight() == 0, "a buffer is waited for that is gone");
    return read_config();
  }

  bool restore() {
    Device other(device_options(options_));
    expect(other.restore(device.save()).has_value(), "a saved state is refused");
    device = other;
    is_told = true;
    is_done_due = device.command_id() == command_id::done;
    return nothing_is_fresh();
  }

  void look_at_releases() {
    const auto released = std::exchange(from.released, std::uint8_t{0});
    owed = owed & ~std::uint32_t{released};
    expect(!from.is_wrong, "a block was released that was not taken");
    if (released == 0 || options_.release != hint_release::when_used) return;
    const auto is_released = [&](const entry& e) {
      return !e.is_command && ((released >> e.block) & 1) != 0;
    };
    bool is_with_device = has_in_hand && is_released(in_hand);
    for (std::uint32_t i = 0; i < available.count; ++i)
      is_with_device |= is_released(available.at[i]);
    expect(!is_with_device, "the guest got a block that the device may act on");
  }

  void check_settled() {
    expect(driver.in_flight() == 0 && available.count == 0, "a buffer is never returned");
    expect(owed == 0, "a block was kept though the driver has seen DONE");
    if (is_done_due) {
      expect(driver.held_blocks() == 0 && from.hinted() == 0, "DONE never reached the driver");
    }
    if (device.state() == hint_state::requested)
      expect(device.command_id() == driver.active_id(), "an id was never taken up");
    if (device.state() == hint_state::start) expect(false, "a round never ends");
  }

 public:
  Device device;
  Driver driver;

 private:
  source from;
  std::array<hint_block, block_count + 1> blocks{};
  fifo<entry> available;
  fifo<std::uint32_t> used;
  entry in_hand;
  bool has_in_hand = false;
  bool is_told = false; ///< a configuration change notification is due, or under way
  bool is_read_fresh = false;
  bool is_round_fresh = false;
  bool is_done_due = false;    ///< the host said DONE, and nothing since
  std::uint32_t owed = 0;      ///< blocks that were held when the driver read DONE
  std::uint32_t unstopped = 0; ///< ids that the driver used and has not ended with a STOP
  model_options options_;
};

/// Hashes of the states that were seen.
class visited {
 public:
  bool add(std::uint64_t hash) {
    if (count_ * 2 >= table_.size()) grow();
    return put(hash | 1);
  }
  [[nodiscard]] std::size_t count() const { return count_; }

 private:
  bool put(std::uint64_t hash) {
    for (std::size_t i = hash >> 20;; ++i) {
      std::uint64_t& at = table_[i & (table_.size() - 1)];
      if (at == hash) return false;
      if (at != 0) continue;
      at = hash;
      ++count_;
      return true;
    }
  }
  void grow() {
    std::vector<std::uint64_t> old(table_.size() * 2);
    old.swap(table_);
    count_ = 0;
    for (const std::uint64_t hash : old)
      if (hash != 0) put(hash);
  }

  std::vector<std::uint64_t> table_ = std::vector<std::uint64_t>(1 << 16);
  std::size_t count_ = 0;
};

struct finding {
  const char* violation = nullptr;
  std::string path;
  std::size_t states = 0;
  unsigned depth = 0;       ///< actions from the first state to the last one that was new
  bool is_complete = false; ///< there are no further states
};

/// Looks at all states within `depth` actions of the first.
template <class Device, class Driver> finding search(const model_options& options, unsigned depth) {
  using world = model<Device, Driver>;
  static_assert(std::is_trivially_copyable_v<world>);
  struct step {
    std::uint32_t parent;
    action taken;
  };
  finding found;
  std::vector<step> steps{{0, action::count}};
  // The driver points into its world, so each one is worked on in the same place.
  const auto now = std::make_unique<world>(options);
  std::vector<std::array<std::byte, sizeof(world)>> level(1), next;
  std::vector<std::uint32_t> numbers{0}, next_numbers;
  const auto load = [&](const auto& bytes) {
    std::memcpy(static_cast<void*>(now.get()), bytes.data(), sizeof(world));
  };
  std::memcpy(level[0].data(), static_cast<const void*>(now.get()), sizeof(world));
  visited seen;
  seen.add(now->hash());
  while (!level.empty() && found.depth < depth) {
    for (std::size_t i = 0; i < level.size() && found.violation == nullptr; ++i) {
      for (unsigned a = 0; a < static_cast<unsigned>(action::count); ++a) {
        load(level[i]);
        if (!now->apply(static_cast<action>(a))) continue;
        if (now->violation == nullptr && !seen.add(now->hash())) continue;
        steps.push_back({numbers[i], static_cast<action>(a)});
        std::array<std::byte, sizeof(world)> bytes;
        std::memcpy(bytes.data(), static_cast<const void*>(now.get()), sizeof(world));
        if (now->violation == nullptr) now->settle();
        if (now->violation != nullptr) {
          found.violation = now->violation;
          for (std::uint32_t at = static_cast<std::uint32_t>(steps.size() - 1); at != 0;
               at = steps[at].parent)
            found.path = std::string(name(steps[at].taken)) + "; " + found.path;
          break;
        }
        next.push_back(bytes);
        next_numbers.push_back(static_cast<std::uint32_t>(steps.size() - 1));
      }
    }
    if (found.violation != nullptr) break;
    level.swap(next);
    numbers.swap(next_numbers);
    next.clear();
    next_numbers.clear();
    if (!level.empty()) ++found.depth;
  }
  found.states = seen.count();
  found.is_complete = found.violation == nullptr && level.empty();
  return found;
}

/// Whether nothing is wrong; says how much was looked at.
bool holds(const char* what, const model_options& options, unsigned depth) {
  const auto found = search<hint_device, hint_driver<source>>(options, depth);
  const std::string extent = found.is_complete ? ", all there are" : "";
  MESSAGE(std::string(what), ", ", options.ids, " ids",
          std::string(options.hides_started_id ? " hidden" : ""), ": ", found.states,
          " states, up to ", found.depth, " actions deep", extent);
  if (found.violation != nullptr) MESSAGE(std::string(found.violation), ": ", found.path);
  return found.violation == nullptr && (found.is_complete || found.depth == depth);
}

/// What is found wrong with a mistake in one of the machines.
template <class Device, class Driver> std::string flaw(const model_options& options) {
  const auto found = search<Device, Driver>(options, 16);
  if (found.violation == nullptr) return "nothing";
  MESSAGE(found.states, " states: ", std::string(found.violation), ": ", found.path);
  return found.violation;
}

constexpr unsigned whole = UINT32_MAX;

TEST_CASE("BDEV-7 BDEV-8 BDEV-10 BDEV-11 BDRV-26 BDRV-30 BDRV-33 RT-36 in every state that device, "
          "driver, host, guest and queue can reach, blocks held until used") {
  CHECK(holds("held until used", {hint_release::when_used, 2, false}, whole));
  CHECK(holds("held until used", {hint_release::when_used, 2, true}, whole));
  CHECK(holds("held until used", {hint_release::when_used, 3, false}, 20));
}

TEST_CASE("BDEV-7 BDEV-8 BDEV-10 BDEV-11 BDRV-26 BDRV-33 RT-36 in every state within 20 actions, "
          "blocks released early") {
  CHECK(holds("released early", {hint_release::early, 2, false}, 20));
  CHECK(holds("released early", {hint_release::early, 2, true}, 20));
  CHECK(holds("released early", {hint_release::early, 3, false}, 20));
}

TEST_CASE("the search finds an id that is used again before the driver's STOP") {
  for (const hint_release release : {hint_release::when_used, hint_release::early}) {
    CHECK(flaw<device_that_reuses_ids<true>, hint_driver<source>>({release, 3, false}) ==
          "an id was reused before the driver's STOP");
    CHECK(flaw<device_that_reuses_ids<false>, hint_driver<source>>({release, 3, false}) ==
          "a hint counted under an id that is not current"); // by what it leads to
  }
}

TEST_CASE("the search finds a DONE that is lost") {
  for (const hint_release release : {hint_release::when_used, hint_release::early}) {
    const model_options options{release, 2, false};
    CHECK(flaw<device_that_stops_after_done, hint_driver<source>>(options) ==
          "DONE never reached the driver");
    CHECK(flaw<device_that_hides_done, hint_driver<source>>(options) ==
          "DONE never reached the driver");
    CHECK(flaw<hint_device, driver_that_forgets_done>(options) ==
          "a block was kept though the driver has seen DONE");
  }
}

TEST_CASE("the search finds a block that is released while the device may act on it") {
  CHECK(flaw<hint_device, driver_that_does_not_wait>({hint_release::when_used, 2, false}) ==
        "the guest got a block that the device may act on");
  CHECK(flaw<hint_device, hint_driver<source>>({hint_release::when_used, 2, false}) == "nothing");
}

} // namespace
