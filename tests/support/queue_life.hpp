// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/memory/guest_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

struct life_plan {
  ballast::feature_set features{};
  ballast::queue_layout layout{};
  ballast::indirect_tables tables{};
  std::uint16_t first_index = 0;
  std::uint64_t seed = 1;
};

/// The formats of a virtqueue, for tests that run over both.
struct split_format {
  template <ballast::guest_memory M, std::endian E> using driver = ballast::split_driver<M, E>;
  template <ballast::guest_memory M, std::endian E> using device = ballast::split_device<M, E>;
  [[nodiscard]] static constexpr ballast::placement place(ballast::guest_address base,
                                                          std::uint32_t size) noexcept {
    return ballast::split::place(base, size);
  }
};
struct packed_format {
  template <ballast::guest_memory M, std::endian E> using driver = ballast::packed_driver<M, E>;
  template <ballast::guest_memory M, std::endian E> using device = ballast::packed_device<M, E>;
  [[nodiscard]] static constexpr ballast::placement place(ballast::guest_address base,
                                                          std::uint32_t size) noexcept {
    return ballast::packed::place(base, size);
  }
};

/// Both sides of a virtqueue in one thread, each doing something at random, and a naive model that
/// says what must come of it; the same for both formats. Buffers are numbers only: no payload is
/// touched. At any time a side can be saved and taken up by another object.
///
///     queue_life<8, little, ram, ram> life(a, b, plan);
///     for (int i = 0; i < 1000; ++i) life.step();
///     check(life.wrong() == 0 && life.returned() > 0);
template <std::uint32_t N, std::endian E, ballast::guest_memory A, ballast::guest_memory B,
          class Format = split_format>
class queue_life {
 public:
  constexpr queue_life(A& a, B& b, const life_plan& plan) noexcept
      : a_(&a), b_(&b), plan_(plan), random_(plan.seed) {
    expect(driver().start(a, plan.layout, plan.features, plan.first_index, plan.tables).error());
    expect(device().start(b, plan.layout, plan.features, plan.first_index).error());
  }
  queue_life(const queue_life&) = delete;

  /// What differed from the model.
  [[nodiscard]] constexpr std::uint32_t wrong() const noexcept { return wrong_; }
  [[nodiscard]] constexpr std::uint64_t returned() const noexcept { return returned_; }
  /// A digest of everything either side answered.
  [[nodiscard]] constexpr std::uint64_t facts() const noexcept { return facts_; }
  /// A digest of the answers that are the same in either format: without ids, places in the ring
  /// and, under EVENT_IDX, whether to notify.
  [[nodiscard]] constexpr std::uint64_t common_facts() const noexcept { return common_facts_; }
  /// How often a side was saved and taken up.
  [[nodiscard]] constexpr std::uint32_t moves() const noexcept { return moves_; }

  [[nodiscard]] constexpr auto& driver() noexcept { return drivers_[driver_at_]; }
  [[nodiscard]] constexpr auto& device() noexcept { return devices_[device_at_]; }

  constexpr void step() noexcept {
    switch (below(10)) {
    case 0:
    case 1: add(); break;
    case 2: below(2) == 0 ? add() : add_each(); break;
    case 3:
      driver().publish();
      published_ = added_;
      break;
    case 4: consume(); break;
    case 5: pop(); break;
    case 6:
      for (std::uint32_t n = 1 + below(N); n != 0; --n) push();
      break;
    case 7: publish_used(); break;
    case 8: reclaim(); break;
    default: ask(); break;
    }
    const std::uint64_t at_driver = added_ - returned_;
    if (driver().in_flight() != at_driver || device().in_flight() != kept_count_) ++wrong_;
    if (driver().free_descriptors() != N - taken_) ++wrong_;
    if (driver().cause() != ballast::error::none || device().cause() != ballast::error::none)
      ++wrong_;
  }

  /// Sends everything through and takes it back.
  constexpr void finish() noexcept {
    driver().publish();
    published_ = added_;
    for (std::uint32_t i = 0; i < 3 * N + 3 && (popped_ != published_ || kept_count_ != 0); ++i) {
      pop();
      while (kept_count_ != 0) push();
    }
    publish_used();
    expect(driver().reclaim(N, [&](const ballast::used_buffer& used) { take(used); }).error());
    if (driver().in_flight() != 0 || driver().free_descriptors() != N || added_ != returned_)
      ++wrong_;
  }

  /// Whether the sides can be saved: nothing is staged.
  [[nodiscard]] constexpr bool is_driver_at_rest() const noexcept { return published_ == added_; }
  [[nodiscard]] constexpr bool is_device_at_rest() const noexcept { return staged_ == 0; }

  /// Saves the driver, lets a fresh one go on.
  constexpr void move_driver() noexcept {
    std::array<ballast::driver_slot, N> saved{};
    const auto state = driver().save(saved);
    if (!is_driver_at_rest()) {
      if (state.error() != ballast::error::wrong_state) ++wrong_;
      return;
    }
    expect(state.error());
    driver().detach();
    driver_at_ ^= 1;
    driver().detach();
    for (ballast::driver_slot& slot : slots_[driver_at_]) slot = {.token = 99, .descriptors = 7};
    expect(
        driver().restore(*a_, plan_.layout, plan_.features, *state, saved, plan_.tables).error());
    ++moves_;
  }

  constexpr void move_device() noexcept {
    std::array<ballast::held_head, N> held{};
    const auto state = device().save(held);
    if (!is_device_at_rest()) {
      if (state.error() != ballast::error::wrong_state) ++wrong_;
      return;
    }
    expect(state.error());
    const std::uint32_t count = device().in_flight();
    device().detach();
    device_at_ ^= 1;
    storages_[device_at_] = {};
    expect(device()
               .restore(*b_, plan_.layout, plan_.features, *state,
                        std::span<const ballast::held_head>(held).first(count))
               .error());
    ++moves_;
  }

 private:
  enum class stage : std::uint8_t { none, added, popped, staged, visible };

  struct record {
    std::array<ballast::buffer, N> buffers{};
    std::uint32_t readable = 0;
    std::uint32_t count = 0;
    std::uint32_t writable_bytes = 0;
    std::uint32_t descriptors = 0;
    std::uint32_t answer = 0;
    std::uint16_t head = 0;
    stage at = stage::none;
  };

  struct random_numbers {
    std::uint64_t state = 1;

    constexpr explicit random_numbers(std::uint64_t seed) noexcept : state(seed) {}
    constexpr std::uint32_t below(std::uint32_t n) noexcept {
      state = state * 6364136223846793005u + 1442695040888963407u;
      return static_cast<std::uint32_t>((state >> 33) % n);
    }
  };

  constexpr std::uint32_t below(std::uint32_t n) noexcept { return random_.below(n); }
  /// Enters an answer that depends on the format; `common_fact` one that must not.
  constexpr void fact(std::uint64_t v) noexcept { facts_ = (facts_ ^ v) * 0x100'0000'01b3; }
  constexpr void common_fact(std::uint64_t v) noexcept {
    fact(v);
    common_facts_ = (common_facts_ ^ v) * 0x100'0000'01b3;
  }
  constexpr void expect(ballast::error e) noexcept {
    if (e != ballast::error::none) ++wrong_;
  }
  [[nodiscard]] constexpr bool is_in_order() const noexcept {
    return plan_.features.test(ballast::feature::in_order);
  }

  /// N where all are taken.
  [[nodiscard]] constexpr std::uint32_t find_token() const noexcept {
    std::uint32_t token = 0;
    while (token < N && records_[token].at != stage::none) ++token;
    return token;
  }

  constexpr void enter(std::uint32_t token, const record& made) noexcept {
    taken_ += made.descriptors;
    records_[token] = made;
    order_[added_++ % N] = token;
  }

  constexpr void add_each() noexcept {
    const std::uint32_t wanted = below(N + 2);
    const std::uint32_t room = N - taken_;
    std::uint32_t calls = 0;
    const auto next = [&] {
      ++calls;
      const std::uint32_t token = find_token();
      record made;
      made.count = made.descriptors = 1;
      made.readable = below(2);
      made.buffers[0] = {std::uint64_t{below(1u << 31)} << 20, below(1000)};
      made.writable_bytes = made.readable == 0 ? made.buffers[0].length : 0;
      made.at = stage::added;
      if (token == N)
        ++wrong_;
      else
        enter(token, made);
      return ballast::single_buffer{made.buffers[0], made.readable == 0, token + 1000};
    };
    const auto done = driver().add_each(wanted, next);
    common_fact(*done);
    if (!done || *done != calls || calls != (wanted < room ? wanted : room)) ++wrong_;
  }

  constexpr void add() noexcept {
    const std::uint32_t token = find_token();
    record made;
    made.count = 1 + (below(3) == 0 ? below(N) : below(N < 3 ? N : 3));
    made.readable = below(made.count + 1);
    for (std::uint32_t i = 0; i < made.count; ++i) {
      made.buffers[i] = {std::uint64_t{below(1u << 31)} << 20, below(1000)};
      if (i >= made.readable) made.writable_bytes += made.buffers[i].length;
    }
    const bool is_indirect = plan_.features.test(ballast::feature::indirect_desc) &&
                             made.count > 1 && made.count <= plan_.tables.entries;
    made.descriptors = is_indirect ? 1 : made.count;
    made.at = stage::added;
    const auto all = std::span<const ballast::buffer>(made.buffers).first(made.count);
    const auto done =
        driver().add(all.first(made.readable), all.subspan(made.readable), token + 1000);
    common_fact(static_cast<std::uint64_t>(done.error()));
    const bool has_room = made.descriptors <= N - taken_;
    if (done.error() != (has_room ? ballast::error::none : ballast::error::queue_full)) ++wrong_;
    if (done && token != N) enter(token, made);
  }

  /// A chain that the device got: the oldest that was published and not popped.
  constexpr std::uint32_t got(const ballast::chain& c) noexcept {
    if (popped_ == published_) {
      ++wrong_;
      return 0;
    }
    const std::uint32_t token = order_[popped_++ % N];
    record& r = records_[token];
    if (r.at != stage::added || c.readable().size() != r.readable ||
        c.readable().size() + c.writable().size() != r.count)
      ++wrong_;
    else
      for (std::uint32_t i = 0; i < r.count; ++i)
        if ((i < r.readable ? c.readable()[i] : c.writable()[i - r.readable]) != r.buffers[i])
          ++wrong_;
    r.head = c.id().head;
    r.at = stage::popped;
    fact(r.head);
    return token;
  }
  constexpr std::uint32_t answer(record& r) noexcept {
    r.at = stage::staged;
    ++staged_;
    const std::uint32_t which = below(4);
    r.answer = which == 0   ? 0
               : which == 1 ? below(r.writable_bytes + 1)
               : which == 2 ? r.writable_bytes
                            : r.writable_bytes + below(2);
    return r.answer;
  }

  constexpr void consume() noexcept {
    const std::uint32_t budget = below(N + 2);
    const std::uint64_t pending = published_ - popped_;
    const std::uint64_t before = popped_;
    const auto handle = [&](const ballast::chain& c) {
      const std::uint32_t token = got(c);
      const bool must_keep = is_in_order() && kept_count_ != 0;
      if (must_keep || below(4) == 0) {
        kept_[kept_count_++] = token;
        return ballast::keep();
      }
      return ballast::used(answer(records_[token]));
    };
    const auto done = budget == 1 ? device().consume_one(handle) : device().consume(budget, handle);
    expect(done.error());
    const std::uint64_t count = pending < budget ? pending : budget;
    if (done->chains != count || popped_ - before != count || done->has_more != (pending > count))
      ++wrong_;
  }

  constexpr void pop() noexcept {
    const bool is_there = published_ != popped_;
    const auto c = device().pop_available();
    if (c.error() != (is_there ? ballast::error::none : ballast::error::queue_empty)) ++wrong_;
    if (c) kept_[kept_count_++] = got(*c);
  }

  constexpr void push() noexcept {
    if (kept_count_ == 0) return;
    const std::uint32_t at = is_in_order() && below(4) != 0 ? 0 : below(kept_count_);
    const std::uint32_t token = kept_[at];
    record& r = records_[token];
    const auto id = device().held_chain(r.head);
    expect(id.error());
    if (is_in_order() && at != 0) {
      if (device().push_used(*id, 0).error() != ballast::error::used_out_of_order) ++wrong_;
      return;
    }
    expect(device().push_used(*id, answer(r)).error());
    if (device().held_chain(r.head).error() != ballast::error::chain_not_in_flight) ++wrong_;
    --kept_count_;
    for (std::uint32_t i = at; i < kept_count_; ++i) kept_[i] = kept_[i + 1];
  }

  constexpr void publish_used() noexcept {
    device().publish();
    staged_ = 0;
    for (record& r : records_)
      if (r.at == stage::staged) r.at = stage::visible;
  }

  constexpr void take(const ballast::used_buffer& used) noexcept {
    common_fact(used.token);
    common_fact(used.length);
    const std::uint64_t token = used.token - 1000;
    if (token >= N || records_[token].at != stage::visible) {
      ++wrong_;
      return;
    }
    if (is_in_order() && order_[returned_ % N] != token) ++wrong_;
    record& r = records_[token];
    if (used.length != (r.answer < r.writable_bytes ? r.answer : r.writable_bytes)) ++wrong_;
    taken_ -= r.descriptors;
    r.at = stage::none;
    ++returned_;
  }

  constexpr void reclaim() noexcept {
    std::uint32_t visible = 0;
    for (const record& r : records_) visible += r.at == stage::visible;
    if (below(2) == 0) {
      const auto used = driver().pop_used();
      if (used.error() != (visible != 0 ? ballast::error::none : ballast::error::queue_empty))
        ++wrong_;
      if (used) take(*used);
      return;
    }
    const std::uint32_t budget = below(N + 2);
    const auto done =
        driver().reclaim(budget, [&](const ballast::used_buffer& used) { take(used); });
    if (done.error() != ballast::error::none || *done != (visible < budget ? visible : budget))
      ++wrong_;
  }

  constexpr void ask() noexcept {
    switch (below(6)) {
    case 0: asked(driver().should_notify()); break;
    case 1: asked(device().should_notify()); break;
    case 2: common_fact(driver().enable_notifications()); break;
    case 3: common_fact(device().enable_notifications()); break;
    case 4: driver().disable_notifications(); break;
    default: device().disable_notifications(); break;
    }
    fact(driver().notification_data(3));
  }

  constexpr void asked(bool is_due) noexcept {
    if (plan_.features.test(ballast::feature::event_idx))
      fact(is_due); // a place that was left behind comes round again sooner in a packed ring
    else
      common_fact(is_due);
  }

  using driver_type = typename Format::template driver<A, E>;
  using device_type = typename Format::template device<B, E>;

  A* a_;
  B* b_;
  life_plan plan_;
  random_numbers random_;
  std::array<std::array<ballast::driver_slot, N>, 2> slots_{};
  std::array<ballast::device_queue_storage<N>, 2> storages_{};
  driver_type drivers_[2]{driver_type(slots_[0]), driver_type(slots_[1])};
  device_type devices_[2]{device_type(storages_[0]), device_type(storages_[1])};
  std::uint32_t driver_at_ = 0;
  std::uint32_t device_at_ = 0;
  std::array<record, N> records_{};
  std::array<std::uint32_t, N> order_{}; ///< tokens in the order they were added
  std::array<std::uint32_t, N> kept_{};  ///< tokens, oldest first
  std::uint64_t added_ = 0, published_ = 0, popped_ = 0, returned_ = 0;
  std::uint32_t kept_count_ = 0, staged_ = 0, taken_ = 0, wrong_ = 0, moves_ = 0;
  std::uint64_t facts_ = 0xcbf2'9ce4'8422'2325, common_facts_ = facts_;
};

} // namespace ballast_test
