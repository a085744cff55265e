// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// Random chains between any driver and any device of a virtqueue in this process, in one
// thread that interleaves the two at random. Notifications are followed exactly: a side that sleeps
// runs again only when the other one was told to notify it, so a lost notification is a stall.

#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace interop {

inline constexpr std::uint32_t most_buffers = 16; ///< in a chain
inline constexpr std::uint32_t most_bytes = 1024; ///< in a buffer
inline constexpr std::uint32_t most_padding = 15; ///< bytes before a buffer
inline constexpr std::uint64_t slot_bytes = most_buffers * (most_bytes + most_padding);
inline constexpr std::uint32_t most_chains = 1024; ///< in flight

[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58'476d'1ce4'e5b9;
  x = (x ^ (x >> 27)) * 0x94d0'49bb'1331'11eb;
  return x ^ (x >> 31);
}

/// splitmix64
class random_source {
 public:
  explicit random_source(std::uint64_t seed) noexcept : state_(seed) {}
  std::uint64_t bits() noexcept { return mixed(state_ += 0x9e37'79b9'7f4a'7c15); }
  std::uint32_t below(std::uint32_t bound) noexcept {
    return static_cast<std::uint32_t>(((bits() >> 32) * bound) >> 32);
  }
  bool one_in(std::uint32_t n) noexcept { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

struct configuration {
  std::uint32_t size = 0;
  bool has_event_index = false;
  bool has_indirect = false;
  bool is_packed = false;
  /// Whether the driver puts every chain of two buffers and more into an indirect table.
  bool has_tables_for_all = false;
};

/// The run of bytes that a chain with this key carries.
class payload {
 public:
  std::span<const std::byte> make(std::uint64_t key, std::uint64_t size) noexcept {
    for (std::uint64_t i = 0; i * 8 < size; ++i) words_[i] = mixed(key + i);
    return std::as_bytes(std::span(words_)).first(size);
  }

 private:
  std::array<std::uint64_t, most_buffers * most_bytes / 8> words_{};
};

/// A chain as the driver's side made it.
struct chain_record {
  enum class place : std::uint8_t { driver, ring, device, returned };

  std::array<ballast::buffer, most_buffers> buffers{}; ///< addresses are pointers
  std::uint32_t readable = 0;                          ///< buffers
  std::uint32_t writable = 0;
  std::uint64_t readable_bytes = 0;
  std::uint64_t writable_bytes = 0;
  std::uint64_t key = 0;
  std::uint64_t handle = 0; ///< by which the device returns it
  std::uint32_t used_length = 0;
  place at = place::driver;

  /// Of the ring, that it takes.
  [[nodiscard]] std::uint32_t descriptors(const configuration& of) const noexcept {
    return of.has_indirect && of.has_tables_for_all ? 1 : readable + writable;
  }
  [[nodiscard]] std::span<const ballast::buffer> readable_part() const noexcept {
    return std::span(buffers).first(readable);
  }
  [[nodiscard]] std::span<const ballast::buffer> writable_part() const noexcept {
    return std::span(buffers).subspan(readable, writable);
  }
};

[[nodiscard]] inline std::byte* pointer(std::uint64_t address) noexcept {
  return reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(address));
}
[[nodiscard]] inline std::uint64_t address_of(const void* at) noexcept {
  return reinterpret_cast<std::uintptr_t>(at);
}

/// What the harness answers about a chain that a device received.
struct verdict {
  bool is_kept = false;
  std::uint32_t length = 0; ///< written, if it is not kept
};

struct notification_count {
  std::uint64_t asked = 0;
  std::uint64_t sent = 0;
  std::uint64_t steps = 0; ///< of the index (split) or descriptors (packed), when asked last
};

/// Joins the two sides.
///
/// Driver: bool add(std::uint32_t id, const chain_record&)   false: the ring is full
///         void publish(), bool should_notify()
///         bool get(std::uint32_t& id, std::uint32_t& length)
///         bool interrupt()                                  whether to look for used chains
///         void disable(), bool enable(random_source&)       true: chains are waiting
///         std::string complaint(bool is_idle)               empty: none
/// Device: std::uint32_t take(std::uint32_t budget, random_source&, receive)
///           calls verdict receive(view): handle(), readable(), writable(), read(to), write(from)
///         bool give_back(const chain_record&, response)     false: refused
///         void publish(), bool should_notify(), void disable(), bool enable()
///         std::string complaint(bool is_idle)
template <class Driver, class Device> class exchange {
 public:
  exchange(const configuration& of, const ballast::queue_layout& layout, std::uint64_t chains,
           std::uint64_t seed, Driver& driver, Device& device)
      : of_(of), size_(of.size), layout_(layout), wanted_(chains), driver_(&driver),
        device_(&device), random_(mixed(seed) ^ mixed(of.size * 4 + of.has_event_index * 2u +
                                                      of.has_indirect + of.is_packed * (1u << 20))),
        records_(of.size), slots_(of.size * slot_bytes) {
    for (std::uint32_t id = of.size; id-- > 0;) free_.push_back(id);
  }

  /// Empty if every chain went there and back as it should.
  std::string run() {
    // Each chain takes a few steps; many times more mean that nothing moves any more.
    const std::uint64_t most_steps = 1'000'000 + wanted_ * 200;
    for (steps_ = 0; problem_.empty() && steps_ < most_steps; ++steps_) {
      if (is_draining_ && in_flight() == 0 && !driver_has_news_) is_draining_ = false;
      if (returned_ == wanted_ && !driver_has_news_ && !device_has_news_) {
        check_sides(true);
        return report();
      }
      step();
      if (steps_ % 64 == 0) check_sides(false);
    }
    fail("no end after so many steps");
    return report();
  }

  notification_count available_notifications, used_notifications;

 private:
  enum actor : std::uint8_t { submit, reap, consume, complete, actors };

  [[nodiscard]] std::uint64_t in_flight() const noexcept { return submitted_ - returned_; }

  void fail(const char* what) {
    if (problem_.empty()) problem_ = what;
  }

  void check_sides(bool is_idle) {
    if (std::string text = driver_->complaint(is_idle); !text.empty())
      fail(("the driver: " + text).c_str());
    if (std::string text = device_->complaint(is_idle); !text.empty())
      fail(("the device: " + text).c_str());
  }

  [[nodiscard]] std::string report() const {
    if (problem_.empty()) return {};
    return problem_ + "; step " + std::to_string(steps_) + ", submitted " +
           std::to_string(submitted_) + ", received " + std::to_string(received_) + ", returned " +
           std::to_string(returned_) + ", held by the device " + std::to_string(held_.size()) +
           ", driver " + (driver_is_awake_ ? "awake" : "asleep") + ", device " +
           (device_is_awake_ ? "awake" : "asleep");
  }

  [[nodiscard]] std::uint32_t steps(const chain_record& chain) const noexcept {
    return of_.is_packed ? chain.descriptors(of_) : 1;
  }

  [[nodiscard]] bool may_submit() const noexcept {
    return !is_full_ && !is_draining_ && submitted_ < wanted_ && !free_.empty();
  }

  void step() {
    // Now one side is faster and now the other: rings run full and run empty.
    if (steps_ % 256 == 0)
      for (std::uint32_t& weight : weights_) weight = random_.one_in(2) ? 1 : 8;
    const std::array<bool, actors> can_run = {
        may_submit() || driver_has_news_, driver_is_notified_ || driver_is_awake_,
        device_is_notified_ || device_is_awake_, !held_.empty() || device_has_news_};
    std::uint32_t sum = 0;
    for (std::uint32_t i = 0; i < actors; ++i)
      if (can_run[i]) sum += weights_[i];
    if (sum == 0) return fail("a notification was lost: chains are in flight and both sides sleep");
    std::uint32_t pick = random_.below(sum), chosen = 0;
    for (;; ++chosen) {
      if (!can_run[chosen]) continue;
      if (pick < weights_[chosen]) break;
      pick -= weights_[chosen];
    }
    if (chosen == submit) step_submit();
    if (chosen == reap) step_reap();
    if (chosen == consume) step_consume();
    if (chosen == complete) step_complete();
  }

  // Whether the other side, whose part of the ring is at `area`, asks for a notification now that
  // so many steps were made. Reads the ring for itself.
  bool is_wanted(std::uint64_t area, std::uint32_t split_event, std::uint64_t now,
                 notification_count& count) {
    const std::uint64_t old = std::exchange(count.steps, now);
    const bool wanted = of_.is_packed ? is_wanted_packed(area, old, now)
                                      : is_wanted_split(area, area + split_event, old, now);
    ++count.asked;
    if (wanted) ++count.sent;
    return wanted;
  }

  bool is_wanted_split(std::uint64_t flags_at, std::uint64_t event_at, std::uint64_t old,
                       std::uint64_t now) {
    const auto flags = at<std::uint16_t>(flags_at), event = at<std::uint16_t>(event_at);
    if (of_.has_event_index && flags != 0) fail("flags are not 0 in spite of the event index");
    if (!of_.has_event_index) return flags == 0;
    return static_cast<std::uint16_t>(event - old) < static_cast<std::uint16_t>(now - old);
  }

  // An event of this round or, where the wrap counter is another, of the one before.
  bool is_wanted_packed(std::uint64_t area, std::uint64_t old, std::uint64_t now) {
    const auto place = at<std::uint16_t>(area), flags = at<std::uint16_t>(area + 2);
    if (flags != 2) return flags == 0;
    if (!of_.has_event_index) fail("an event in spite of no event index");
    const std::uint64_t round = now / size_;
    const bool is_this_round = (place >> 15 != 0) == (round % 2 == 0);
    const std::uint64_t event =
        (round + 1) * size_ + (place & 0x7fffu) - (is_this_round ? 0 : size_);
    return event >= old + size_ && event < now + size_; // a round more: none is below zero
  }

  template <class T> static T at(std::uint64_t address) {
    T value{};
    std::memcpy(&value, pointer(address), sizeof value);
    return value;
  }

  // --- the driver's side

  void step_submit() {
    if (driver_has_news_ && (!may_submit() || random_.one_in(2))) return notify_device();
    std::uint32_t burst = 1 + random_.below(random_.one_in(16) ? size_ : 4);
    for (; burst != 0 && may_submit(); --burst) {
      const std::uint32_t id = free_.back();
      chain_record& made = records_[id];
      make_chain(made, slots_.data() + id * slot_bytes);
      if (!driver_->add(id, made)) {
        is_full_ = true;
        if (in_flight() == 0) fail("an empty ring refused a chain");
        break;
      }
      free_.pop_back();
      made.at = chain_record::place::ring;
      available_.push_back(id);
      ++submitted_;
      made_ += steps(made);
      driver_has_news_ = true;
    }
    is_draining_ = random_.one_in(32);
    if (random_.one_in(2)) driver_->publish();
    if (driver_has_news_ && random_.one_in(2)) notify_device();
  }

  void notify_device() {
    driver_->publish();
    driver_has_news_ = false;
    const bool is_due =
        is_wanted(layout_.device_area, 4 + 8 * size_, made_, available_notifications);
    if (driver_->should_notify() != is_due)
      fail(is_due ? "the driver did not notify" : "the driver notified unasked");
    if (is_due) device_is_notified_ = true;
  }

  void make_chain(chain_record& made, std::byte* at) {
    constexpr std::array<std::uint32_t, 8> bounds = {8, 16, 16, 64, 64, 64, 256, most_bytes};
    const std::uint32_t longest = std::min(size_, most_buffers);
    const std::uint32_t count =
        1 + random_.below(random_.one_in(2) ? longest : std::min(longest, 3u));
    const std::uint32_t bound = bounds[random_.below(bounds.size())];
    made.readable = random_.below(count + 1);
    made.writable = count - made.readable;
    made.key = random_.bits();
    made.readable_bytes = made.writable_bytes = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
      at += random_.below(most_padding + 1);
      // An empty buffer now and then.
      const std::uint32_t length = random_.one_in(64) ? 0 : 1 + random_.below(bound);
      made.buffers[i] = {address_of(at), length};
      (i < made.readable ? made.readable_bytes : made.writable_bytes) += length;
      at += length;
    }
    auto bytes = payload_.make(made.key, made.readable_bytes);
    for (const ballast::buffer& b : made.readable_part()) {
      std::memcpy(pointer(b.address), bytes.data(), b.length);
      bytes = bytes.subspan(b.length);
    }
    for (const ballast::buffer& b : made.writable_part())
      std::memset(pointer(b.address), static_cast<int>(made.key & 0xff), b.length);
  }

  void step_reap() {
    if (driver_is_notified_) {
      driver_is_notified_ = false;
      if (!driver_->interrupt()) return;
      driver_is_awake_ = true;
      if (random_.one_in(2)) driver_->disable();
    }
    if (random_.one_in(8)) return driver_sleeps();
    std::uint32_t budget = 1 + random_.below(random_.one_in(8) ? size_ : 4);
    for (; budget != 0; --budget) {
      std::uint32_t id = 0, length = 0;
      if (!driver_->get(id, length)) {
        if (random_.one_in(2)) driver_sleeps();
        return;
      }
      check_returned(id, length);
    }
  }

  void driver_sleeps() { driver_is_awake_ = driver_->enable(random_); }

  void check_returned(std::uint32_t id, std::uint32_t length) {
    if (id >= records_.size()) return fail("the driver returned a chain that nobody added");
    chain_record& got = records_[id];
    if (got.at != chain_record::place::returned)
      return fail("the driver returned a chain that the device did not return");
    if (length != got.used_length) return fail("the used length differs");
    auto bytes = payload_.make(~got.key, length);
    for (const ballast::buffer& b : got.writable_part()) {
      const auto* at = reinterpret_cast<const unsigned char*>(pointer(b.address));
      const std::size_t written = std::min<std::size_t>(bytes.size(), b.length);
      if (std::memcmp(at, bytes.data(), written) != 0)
        return fail("the payload that the device wrote differs");
      bytes = bytes.subspan(written);
      for (std::size_t i = written; i < b.length; ++i)
        if (at[i] != (got.key & 0xff)) return fail("the device wrote more than it said");
    }
    got.at = chain_record::place::driver;
    free_.push_back(id);
    is_full_ = false;
    ++returned_;
  }

  // --- the device's side

  void step_consume() {
    if (device_is_notified_) {
      device_is_notified_ = false;
      device_is_awake_ = true;
      if (random_.one_in(2)) device_->disable();
    }
    if (random_.one_in(8)) return device_sleeps();
    const std::uint32_t budget = 1 + random_.below(random_.one_in(8) ? size_ : 4);
    const std::uint32_t taken =
        device_->take(budget, random_, [this](auto& view) { return this->receive(view); });
    if (taken == 0 && random_.one_in(2)) return device_sleeps();
    device_publishes();
  }

  void device_sleeps() { device_is_awake_ = device_->enable(); }

  void step_complete() {
    std::uint32_t burst = held_.empty() ? 0 : 1 + random_.below(4);
    for (; burst != 0 && !held_.empty(); --burst) {
      const std::uint32_t at = random_.below(static_cast<std::uint32_t>(held_.size()));
      chain_record& r = records_[held_[at]];
      held_[at] = held_.back();
      held_.pop_back();
      r.at = chain_record::place::returned;
      ++completed_;
      used_ += steps(r);
      if (!device_->give_back(r, payload_.make(~r.key, r.used_length)))
        return fail("the device could not return a chain");
      device_has_news_ = true;
    }
    if (held_.empty() && device_has_news_ && random_.one_in(2)) return notify_driver();
    device_publishes();
  }

  void device_publishes() {
    if (!device_has_news_) return;
    if (random_.one_in(2)) device_->publish();
    if (random_.one_in(2)) notify_driver();
  }

  void notify_driver() {
    device_->publish();
    device_has_news_ = false;
    const bool is_due = is_wanted(layout_.driver_area, 4 + 2 * size_, used_, used_notifications);
    if (device_->should_notify() != is_due)
      fail(is_due ? "the device did not notify" : "the device notified unasked");
    if (is_due) driver_is_notified_ = true;
  }

  template <class View> verdict receive(View& view) {
    if (available_.empty()) {
      fail("the device got a chain that nobody added");
      return {};
    }
    const std::uint32_t id = available_.front();
    available_.pop_front();
    chain_record& r = records_[id];
    ++received_;
    if (!std::ranges::equal(view.readable(), r.readable_part()) ||
        !std::ranges::equal(view.writable(), r.writable_part()))
      fail("the chain that the device got is not the one that is next");
    // One byte more than there should be.
    const auto got = std::span(received_bytes_).first(r.readable_bytes + 1);
    if (view.read(got) != r.readable_bytes) fail("the readable part has another length");
    const auto expected = payload_.make(r.key, r.readable_bytes);
    if (std::memcmp(got.data(), expected.data(), expected.size()) != 0)
      fail("the payload that the driver wrote differs");

    const auto room = static_cast<std::uint32_t>(r.writable_bytes);
    r.used_length = random_.one_in(2) ? room : random_.below(room + 1);
    r.handle = view.handle();
    if (random_.one_in(3)) {
      r.at = chain_record::place::device;
      held_.push_back(id);
      if (Device::writes_on_receipt && !view.write(payload_.make(~r.key, r.used_length)))
        fail("the device could not write its response");
      return {.is_kept = true};
    }
    r.at = chain_record::place::returned;
    ++completed_;
    used_ += steps(r);
    device_has_news_ = true;
    if (!view.write(payload_.make(~r.key, r.used_length)))
      fail("the device could not write its response");
    return {.length = r.used_length};
  }

  configuration of_;
  std::uint32_t size_;
  ballast::queue_layout layout_;
  std::uint64_t wanted_; ///< chains
  Driver* driver_;
  Device* device_;
  random_source random_;
  std::vector<chain_record> records_; ///< by id
  std::vector<std::byte> slots_;      ///< the buffers, by id
  std::vector<std::uint32_t> free_;   ///< ids
  std::deque<std::uint32_t> available_;
  std::vector<std::uint32_t> held_;
  payload payload_;
  std::array<std::byte, most_buffers * most_bytes + 1> received_bytes_{};
  std::array<std::uint32_t, actors> weights_{1, 1, 1, 1};

  std::uint64_t steps_ = 0;
  std::uint64_t submitted_ = 0; ///< chains that the driver's side added
  std::uint64_t received_ = 0;  ///< that the device got
  std::uint64_t completed_ = 0; ///< that it returned
  std::uint64_t returned_ = 0;  ///< that the driver's side got back
  std::uint64_t made_ = 0;      ///< steps of the driver's place in the ring
  std::uint64_t used_ = 0;      ///< of the device's
  std::string problem_;
  bool is_full_ = false;     ///< until a chain comes back
  bool is_draining_ = false; ///< until all chains are back
  bool driver_has_news_ = false;
  bool device_has_news_ = false;
  bool driver_is_notified_ = false; ///< on its way
  bool device_is_notified_ = false;
  bool driver_is_awake_ = false;
  bool device_is_awake_ = false;
};

/// Prints the line of one configuration; whether it passed.
template <class Exchange>
bool report(const char* name, const configuration& of, std::uint64_t chains, Exchange& run) {
  const std::string problem = run.run();
  std::printf("%s %s, %s, size %u, event index %s, indirect %s: ",
              problem.empty() ? "ok  " : "FAIL", name, of.is_packed ? "packed" : "split", of.size,
              of.has_event_index ? "on" : "off", of.has_indirect ? "on" : "off");
  const notification_count &to_device = run.available_notifications,
                           &to_driver = run.used_notifications;
  if (problem.empty())
    std::printf("%llu chains, notifications %llu of %llu and back %llu of %llu\n",
                static_cast<unsigned long long>(chains),
                static_cast<unsigned long long>(to_device.sent),
                static_cast<unsigned long long>(to_device.asked),
                static_cast<unsigned long long>(to_driver.sent),
                static_cast<unsigned long long>(to_driver.asked));
  else
    std::printf("%s\n", problem.c_str());
  std::fflush(stdout);
  return problem.empty();
}

/// Runs every configuration, each the same whatever the others are. The arguments are the chains of
/// each, by default enough for an index to wrap three times, and the seed.
template <class Run>
int run_all(const char* name, bool has_packed, bool has_tables_for_all, int argc, char** argv,
            Run&& run) {
  const std::uint64_t chains = argc > 1 ? std::strtoull(argv[1], nullptr, 0) : 200'000;
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 1;
  if (argc > 3 || chains == 0) {
    std::fprintf(stderr, "usage: %s [CHAINS [SEED]]\n", argv[0]);
    return 2;
  }
  std::fprintf(stderr, "%s: seed %llu\n", name, static_cast<unsigned long long>(seed));
  constexpr std::uint32_t split_sizes[] = {2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  constexpr std::uint32_t packed_sizes[] = {1, 2, 3, 5, 7, 16, 100, 256, 1000, 1024};
  bool is_good = true;
  for (const bool is_packed : {false, true}) {
    if (is_packed && !has_packed) break;
    for (const bool has_indirect : {false, true})
      for (const bool has_event_index : {false, true})
        for (const std::uint32_t size : is_packed ? packed_sizes : split_sizes)
          is_good &=
              run(configuration{size, has_event_index, has_indirect, is_packed, has_tables_for_all},
                  chains, seed);
  }
  return is_good ? 0 : 1;
}

} // namespace interop
