// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/back_end.hpp>

#include <doctest/doctest.h>
#include <support/vhost_user_front_end.hpp>

#include <ballast/balloon/device.hpp>
#include <ballast/endian.hpp>

#include <csignal>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <new>
#include <span>
#include <type_traits>

// The process that serves a device is killed while it holds buffers; another one goes on with what
// the front end kept. Each buffer comes back exactly once.

namespace {

using namespace ballast;
using ballast_test::front_end;
using ballast_test::request;
namespace vu = ballast::vhost_user;
namespace ring = ballast::feature;
using memory_type = vu::device_memory<256>;

constexpr std::uint16_t inflateq = 0, statsq = 2;

/// What outlives a process: what a supervisor would keep in a file.
struct kept {
  balloon::device_state state;
  bool has_state = false;
  std::uint32_t discards = 0;  ///< so far, of all processes
  std::uint32_t blocks_at = 0; ///< the discard that never ends; 0: all do
  std::uint32_t held = 0;      ///< by the device that keeps chains
};

template <class T> struct shared {
  shared() {
    void* const at =
        mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    value = new (at) T();
  }
  shared(const shared&) = delete;
  shared& operator=(const shared&) = delete;
  ~shared() { munmap(value, sizeof(T)); }
  T* value;
  [[nodiscard]] volatile T& look() const { return *value; }
};

/// A process that does what a function does.
class process {
 public:
  template <class Do> explicit process(Do&& what) : id_(fork()) {
    if (id_ != 0) return;
    what();
    _exit(0);
  }
  process(const process&) = delete;
  process& operator=(const process&) = delete;
  ~process() { (void)kill_it(); }

  /// Whether it had to be killed.
  bool kill_it() {
    if (id_ <= 0) return false;
    int how = 0;
    ::kill(id_, SIGKILL);
    waitpid(id_, &how, 0);
    id_ = 0;
    return WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL;
  }

 private:
  pid_t id_;
};

template <class Done> bool comes_true(Done&& done, int milliseconds = 4000) {
  for (int i = 0; i < milliseconds; ++i) {
    if (done()) return true;
    usleep(1000);
  }
  return done();
}

/// Serves until the front end goes; a byte of `commands` is for `obey`.
template <class Device, class Obey, class After>
void serve(Device& device, vu::memory_table& table, vu::file socket, int commands, Obey&& obey,
           After&& after) {
  vu::back_end<Device> end(device, table);
  end.connect(std::move(socket));
  while (end.is_connected()) {
    std::array<pollfd, vu::back_end<Device>::watched_max + 1> polled{};
    const std::size_t n =
        end.watch(std::span(polled).template first<vu::back_end<Device>::watched_max>());
    polled[n] = {commands, POLLIN, 0};
    poll(polled.data(), n + 1, end.has_work() ? 0 : -1);
    char command = 0;
    if ((polled[n].revents & POLLIN) != 0 && read(commands, &command, 1) == 1)
      end.perform(obey(command));
    (void)end.serve(std::span(polled).first(n));
    after();
  }
}

/// A front end whose back ends come and go.
struct scene {
  explicit scene(const feature_set& features) {
    guest.features = features;
    (void)!pipe2(commands.data(), O_CLOEXEC);
  }
  ~scene() {
    for (const int fd : commands) close(fd);
  }
  scene(const scene&) = delete;
  scene& operator=(const scene&) = delete;

  /// With a new back end at the other end; a new file of chains in flight at first.
  [[nodiscard]] bool begins() {
    if (!guest.negotiate() || !guest.make_queues()) return false;
    auto shared = guest.ask(request::get_in_flight, vu::in_flight_area{0, 0, 3, 16, 0});
    area = shared.as<vu::in_flight_area>();
    in_flight = std::move(shared.descriptor);
    return in_flight.is_open() && goes_on({});
  }
  [[nodiscard]] bool goes_on(std::array<std::uint32_t, 3> bases) {
    return guest.acknowledged(request::set_in_flight, {in_flight.get()}, area) == 0 &&
           guest.start(bases);
  }
  void command(char what) const { (void)!write(commands[1], &what, 1); }

  void offer(std::uint16_t queue, std::span<const std::byte> bytes, std::uint64_t token) {
    const guest_address at = front_end::ram_at + 0x20000 + 64 * token;
    (void)guest.ram().write(at, bytes);
    const buffer data{at, static_cast<std::uint32_t>(bytes.size())};
    REQUIRE(guest.queues[queue]->driver.add({&data, 1}, {}, token));
    guest.queues[queue]->driver.publish();
  }
  void offer_page(std::uint32_t pfn, std::uint64_t token) {
    const le32 pfns[1] = {le32(pfn)};
    offer(inflateq, std::as_bytes(std::span(pfns)), token);
  }
  void notify(std::uint16_t queue) { guest.queues[queue]->notify(); }

  /// Counts what came back, by token.
  void reclaim(std::uint16_t queue) {
    while (const auto used = guest.queues[queue]->driver.pop_used()) ++returned[used->token];
  }
  [[nodiscard]] bool comes_back(std::uint16_t queue, std::uint64_t token) {
    return comes_true([&] {
      reclaim(queue);
      return returned[token] == 1;
    });
  }

  front_end guest;
  vu::file in_flight;
  vu::in_flight_area area;
  std::array<int, 2> commands{};
  std::map<std::uint64_t, int> returned;
};

/// Stops for ever at one of its pages.
struct blocking_host {
  kept* of;
  bool discard(guest_address, std::uint64_t) noexcept {
    if (++of->discards == of->blocks_at)
      while (true) pause();
    return true;
  }
};

using balloon_type = balloon::device<memory_type, blocking_host, 256>;

void serve_balloon(kept& keep, vu::file socket, int commands) {
  vu::memory_table table;
  blocking_host host{&keep};
  balloon::device_options options;
  options.offered = {balloon::feature::stats_vq, ring::event_idx, ring::ring_packed};
  balloon_type device(host, options);
  if (keep.has_state && !device.restore(keep.state)) return;
  serve(
      device, table, std::move(socket), commands,
      [&](char command) {
        return command == 't' ? device.set_target(1000) : device.request_statistics();
      },
      [&] {
        keep.state = device.save();
        keep.has_state = true;
      });
}

constexpr std::array formats = {
    feature_set{ring::version_1, balloon::feature::stats_vq},
    feature_set{ring::version_1, balloon::feature::stats_vq, ring::event_idx},
    feature_set{ring::version_1, balloon::feature::stats_vq, ring::ring_packed},
    feature_set{ring::version_1, balloon::feature::stats_vq, ring::ring_packed, ring::event_idx}};

TEST_CASE("killed with the statistics buffer and three others: each is returned exactly once") {
  for (const feature_set& features : formats) {
    const shared<kept> keep;
    scene s(features);
    vu::file socket = s.guest.connect();
    process first([&] {
      s.guest.close();
      serve_balloon(*keep.value, std::move(socket), s.commands[0]);
    });
    socket.close();
    REQUIRE(s.begins());

    // Some traffic, so that nothing is where it began.
    constexpr std::uint32_t pfn = front_end::ram_at / 4096 + 64;
    for (std::uint32_t i = 0; i < 20; ++i) {
      s.offer_page(pfn + 2 * i, 100 + i);
      s.notify(inflateq);
      REQUIRE(s.comes_back(inflateq, 100 + i));
    }
    const std::array<std::byte, 10> statistics{std::byte{4}, std::byte{}, std::byte{9}};
    s.offer(statsq, statistics, 1);
    s.notify(statsq);
    s.command('t');
    REQUIRE(comes_true([&] { return keep.look().state.target == 1000; }));

    // Three at once: at the last page of them it stops, before any is returned.
    keep.look().blocks_at = keep.look().discards + 3;
    for (std::uint32_t i = 0; i < 3; ++i) s.offer_page(pfn + 64 + 2 * i, 10 + i);
    s.notify(inflateq);
    REQUIRE(comes_true([&] { return keep.look().discards == keep.look().blocks_at; }));
    CHECK(first.kill_it());
    for (const std::uint16_t q : {inflateq, statsq}) s.reclaim(q);
    for (const std::uint64_t token : {1u, 10u, 11u, 12u}) CHECK(s.returned[token] == 0);
    // The driver goes on meanwhile.
    s.offer_page(pfn + 80, 13);
    s.notify(inflateq);

    keep.look().blocks_at = 0;
    vu::file again = s.guest.connect();
    process second([&] {
      s.guest.close();
      serve_balloon(*keep.value, std::move(again), s.commands[0]);
    });
    again.close();
    REQUIRE(s.guest.negotiate());
    // A front end without a better idea says what the used index is, or nothing.
    const bool is_packed = features.test(ring::ring_packed);
    REQUIRE(s.goes_on({is_packed ? 0u : 20u, 0, 0}));
    for (const std::uint64_t token : {10u, 11u, 12u, 13u}) CHECK(s.comes_back(inflateq, token));
    const auto config = s.guest.ask(request::get_config, vu::config_access{0, 4, 0}, le32(0));
    CHECK(vu::read_as<le32>(config.payload, sizeof(vu::config_access)) == 1000);
    s.reclaim(statsq);
    CHECK(s.returned[1] == 0); // it is held, until it is asked for
    s.command('s');
    CHECK(s.comes_back(statsq, 1));

    // And it works on.
    for (std::uint32_t i = 0; i < 20; ++i) {
      s.offer_page(pfn + 2 * i, 200 + i);
      s.notify(inflateq);
      REQUIRE(s.comes_back(inflateq, 200 + i));
    }
    CHECK(second.kill_it());
    for (const std::uint16_t q : {inflateq, statsq}) s.reclaim(q);
    for (const auto& back : s.returned) {
      INFO("token ", back.first);
      CHECK(back.second == 1);
    }
    CHECK(s.returned.size() == 20 + 1 + 4 + 20);
  }
}

/// A device of one queue that keeps every chain, and returns the second of those it has when told.
class keeping_device {
 public:
  explicit keeping_device(kept& keep) : keep_(&keep) {}

  static std::uint32_t device_id() noexcept { return 77; }
  static feature_set offered_features() noexcept {
    return {ring::version_1, ring::event_idx, ring::ring_packed};
  }
  static result<void> check_features(const feature_set&) noexcept { return {}; }
  static std::uint16_t queue_count() noexcept { return 1; }
  static std::uint32_t queue_size_max(std::uint16_t) noexcept { return 16; }
  static std::uint32_t config_size() noexcept { return 0; }
  static result<void> read_config(std::uint32_t, std::span<std::byte>) noexcept {
    return error::config_out_of_range;
  }
  static std::uint32_t config_generation() noexcept { return 0; }
  static actions write_config(std::uint32_t, std::span<const std::byte>) noexcept { return {}; }

  actions activate(const feature_set& f, std::span<const queue_layout> queues,
                   memory_type& memory) noexcept {
    count_ = 0;
    if (const auto started = queue_.start(memory, queues[0], f); !started)
      return refused(started.error());
    return process(0, 64);
  }
  actions resume(const feature_set& f, std::span<const queue_layout> queues, memory_type& memory,
                 std::span<const device_queue_state> positions) noexcept {
    count_ = 0;
    if (const auto restored = queue_.restore(memory, queues[0], f, positions[0], {}); !restored)
      return refused(restored.error());
    return process(0, 64);
  }
  actions process(std::uint16_t, std::uint32_t) noexcept {
    while (const auto c = queue_.pop_available()) held_[count_++] = c->id();
    keep_->held = count_;
    (void)queue_.enable_notifications();
    return {};
  }
  actions give_back() noexcept {
    if (count_ == 0) return {};
    const std::uint32_t which = count_ > 1 ? 1 : 0;
    (void)queue_.push_used(held_[which], 0);
    for (std::uint32_t i = which; i + 1 < count_; ++i) held_[i] = held_[i + 1];
    --count_;
    queue_.publish();
    keep_->held = count_;
    return {.notify_queues = queue_.should_notify() ? 1u : 0u};
  }
  actions reset_queue(std::uint16_t) noexcept {
    queue_.reset();
    return {};
  }
  actions enable_queue(std::uint16_t, const queue_layout&) noexcept {
    return refused(error::wrong_state);
  }
  void reset() noexcept { queue_.reset(); }
  void detach() noexcept { queue_.detach(); }
  actions attach(std::span<const queue_layout>, memory_type&) noexcept {
    return refused(error::wrong_state);
  }
  /// What it holds does not lie behind each other: there is no place to go on from.
  result<device_queue_state> queue_state(std::uint16_t) const noexcept {
    return error::wrong_state;
  }

 private:
  kept* keep_;
  device_queue_storage<16> storage_;
  virtqueue_device<memory_type> queue_{storage_};
  std::array<chain_id, 16> held_{};
  std::uint32_t count_ = 0;
};
static_assert(resumable_device_model<keeping_device, memory_type>);

TEST_CASE("killed again and again by a device that returns out of order: each once") {
  for (const feature_set& with_statistics : formats) {
    const shared<kept> keep;
    scene s(with_statistics.without(balloon::feature::stats_vq));
    std::uint64_t token = 0;
    const std::array<std::byte, 4> bytes{};
    bool is_first = true;
    for (int life = 0; life < 6; ++life) {
      vu::file socket = s.guest.connect();
      process serving([&] {
        s.guest.close();
        vu::memory_table table;
        keeping_device device(*keep.value);
        serve(
            device, table, std::move(socket), s.commands[0],
            [&](char) { return device.give_back(); }, [] {});
      });
      socket.close();
      const std::uint32_t before = keep.look().held;
      keep.look().held = 0;
      REQUIRE(s.guest.negotiate());
      if (is_first) {
        REQUIRE(s.guest.make_queues());
        auto made = s.guest.ask(request::get_in_flight, vu::in_flight_area{0, 0, 1, 16, 0});
        s.area = made.as<vu::in_flight_area>();
        s.in_flight = std::move(made.descriptor);
      }
      is_first = false;
      REQUIRE(s.guest.acknowledged(request::set_in_flight, {s.in_flight.get()}, s.area) == 0);
      const auto base = with_statistics.test(ring::ring_packed)
                            ? 0u
                            : static_cast<std::uint32_t>(s.returned.size());
      REQUIRE(s.guest.set_up(0, base));
      REQUIRE(s.guest.begin(0));
      // What the one before held, and no more.
      REQUIRE(comes_true([&] { return keep.look().held == before; }));

      for (int i = 0; i < 4; ++i) s.offer(0, bytes, token++);
      s.notify(0);
      REQUIRE(comes_true([&] { return keep.look().held == before + 4; }));
      for (std::uint32_t back = 0; back < (life == 5 ? before + 4 : 3); ++back) {
        const std::size_t so_far = s.returned.size();
        s.command('r');
        REQUIRE(comes_true([&] {
          s.reclaim(0);
          return s.returned.size() == so_far + 1;
        }));
      }
      CHECK(serving.kill_it());
    }
    s.reclaim(0);
    CHECK(s.returned.size() == token);
    for (const auto& [which, times] : s.returned) CHECK(times == 1);
  }
}

static_assert(std::is_trivially_copyable_v<balloon::device_state>);

} // namespace
