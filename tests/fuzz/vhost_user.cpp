// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/vhost_user/back_end.hpp>

#include "../support/vhost_user_front_end.hpp"
#include "target.hpp"

#include <ballast/balloon/device.hpp>
#include <ballast/endian.hpp>

#include <csignal>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

// A back end whose front end is the input: messages of every kind and none, with files that are
// something else, notifications at any time, a guest that scribbles over its rings and a log of
// chains in flight that is not what it was. Whatever came, the next front end is served.

namespace {

using namespace ballast_fuzz;
using namespace ballast;
using ballast_test::front_end;
using ballast_test::request;
namespace vu = ballast::vhost_user;

/// Knows the memory that the device may name.
struct checking_host {
  const vu::memory_table* table;
  bool discard(guest_address at, std::uint64_t size) noexcept {
    const auto* const region = table->find(at);
    require(region != nullptr, "only guest memory is discarded");
    require(size <= region->about.size - (at - region->about.guest_address),
            "what is discarded is in one region");
    return true;
  }
};

using device_type = balloon::device<vu::device_memory<64>, checking_host, 64>;
using back_end_type = vu::back_end<device_type, 64, 4>;

class scenario {
 public:
  explicit scenario(input& in)
      : in_(in), how_(in.byte()), host_{&table_}, device_(host_, options()),
        end_(device_, table_, {.protocol_features = vu::protocol_feature::all, .budget = 8}) {
    area_file_ = vu::file(memfd_create("area", MFD_CLOEXEC));
    (void)!ftruncate(area_file_.get(), area_bytes);
    if (auto made = vu::file_mapping::of(area_file_, area_bytes)) area_ = std::move(*made);
    other_[0] = vu::file(eventfd(0, EFD_CLOEXEC));
    other_[1] = vu::file(open("/dev/null", O_RDWR | O_CLOEXEC));
    other_[2] = vu::file(memfd_create("short", MFD_CLOEXEC));
    (void)!ftruncate(other_[2].get(), 4096);
    begin(guest_);
    if ((how_ & 2) != 0) (void)start(guest_);
  }

  void run() {
    for (int steps = 0; steps < 100 && !in_.empty(); ++steps) {
      step();
      settle();
      drain();
    }
    // And nothing else happened.
    front_end fresh;
    begin(fresh);
    require(start(fresh), "the next front end is served");
    const guest_address at = front_end::ram_at + 0x20000;
    const le32 pfns[1] = {le32(front_end::ram_at / 4096 + 100)};
    (void)fresh.ram().write(at, std::as_bytes(std::span(pfns)));
    const buffer data{at, sizeof(pfns)};
    auto& queue = *fresh.queues[0];
    require(queue.driver.add({&data, 1}, {}, 7).has_value(), "its driver adds a buffer");
    queue.driver.publish();
    queue.notify();
    settle();
    const auto used = queue.driver.pop_used();
    require(used && used->token == 7, "its buffer comes back");
  }

 private:
  static constexpr std::uint32_t area_bytes = 16384;

  [[nodiscard]] balloon::device_options options() const {
    balloon::device_options o;
    o.offered = {balloon::feature::stats_vq, feature::event_idx, feature::ring_packed,
                 feature::indirect_desc};
    return o;
  }

  void begin(front_end& guest) {
    guest.features = {feature::version_1, balloon::feature::stats_vq};
    if ((how_ & 1) != 0) guest.features.set(feature::ring_packed);
    if ((how_ & 4) != 0) guest.features.set(feature::event_idx);
    guest.has_enabling = (how_ & 8) == 0;
    guest.protocol = (how_ & 16) != 0 ? vu::protocol_feature::all
                                      : vu::protocol_feature::all & ~vu::protocol_feature::in_band;
    guest.serve = [this] { settle(); };
    end_.connect(guest.connect());
  }
  [[nodiscard]] bool start(front_end& guest) {
    if (!guest.negotiate() || !guest.make_queues()) return false;
    if ((how_ & 32) != 0) {
      const vu::in_flight_area area{area_bytes, 0, 3, 16, 0};
      if (&guest != &guest_) std::memset(area_.bytes().data(), 0, area_bytes);
      if (guest.acknowledged(request::set_in_flight, {area_file_.get()}, area) != 0) return false;
    }
    return guest.start();
  }

  void settle() {
    for (int i = 0; i < 4; ++i) (void)end_.run_once(0);
  }
  void drain() {
    std::array<char, 4096> bytes{};
    while (recv(guest_.socket(), bytes.data(), bytes.size(), MSG_DONTWAIT) > 0) {
    }
  }

  void step() {
    switch (in_.below(12)) {
    case 0: {
      std::array<std::byte, 64> bytes{};
      const std::uint32_t count = in_.below(65);
      for (std::uint32_t i = 0; i < count; ++i) bytes[i] = std::byte{in_.byte()};
      send(std::span(bytes).first(count), in_.below(3));
      return;
    }
    case 1:
      if (const auto& q = guest_.queues[in_.below(3)]; q != nullptr) q->notify();
      return;
    case 2: end_.perform(device_.set_target(in_.number<std::uint16_t>())); return;
    case 3: end_.perform(device_.request_statistics()); return;
    case 4: { // the guest writes where its rings are
      const std::uint32_t at = 0x4000 + in_.below(0x4000 * 3 / 16) * 16u;
      std::array<std::byte, 16> bytes{};
      const std::uint32_t count = 1 + in_.below(16);
      for (std::uint32_t i = 0; i < count; ++i) bytes[i] = std::byte{in_.byte()};
      (void)guest_.ram().write(front_end::ram_at + at, std::span(bytes).first(count));
      return;
    }
    case 5: { // the front end writes what only the back end does
      const std::uint32_t at = in_.below(area_bytes);
      area_.bytes()[at] = std::byte{in_.byte()};
      return;
    }
    case 6:
      guest_.close();
      settle();
      begin(guest_);
      if (in_.flag()) {
        (void)guest_.negotiate();
        if ((how_ & 32) != 0)
          (void)guest_.acknowledged(request::set_in_flight, {area_file_.get()},
                                    vu::in_flight_area{area_bytes, 0, 3, 16, 0});
        if (guest_.queues[2] != nullptr) (void)guest_.start({number(), number(), number()});
      }
      return;
    default: message(); return;
    }
  }

  std::uint32_t number() {
    constexpr std::array<std::uint32_t, 12> usual = {0,      1,      2,      3,           16,  64,
                                                     0x8000, 0x8001, 0xffff, 0x8000'8000, 512, 8};
    const std::uint32_t which = in_.below(usual.size() + 1);
    return which < usual.size() ? usual[which] : in_.number<std::uint32_t>();
  }
  std::uint64_t address(std::uint64_t from) {
    return in_.flag() ? from + 0x4000u + in_.below(0x4000) * 16u : in_.number<std::uint64_t>();
  }

  void message() {
    const std::uint32_t what = in_.flag() ? 1 + in_.below(41) : in_.byte();
    std::array<std::byte, 12 + 96> bytes{};
    std::size_t end = sizeof(vu::message_header);
    const auto put = [&](const auto& part) {
      std::memcpy(bytes.data() + end, &part, sizeof(part));
      end += sizeof(part);
    };
    std::uint32_t files = 0;
    switch (static_cast<request>(what)) {
    case request::set_features:
    case request::set_protocol_features:
    case request::set_status: put(std::uint64_t{number()} | std::uint64_t{number()} << 32); break;
    case request::set_queue_size:
    case request::set_queue_base:
    case request::get_queue_base:
    case request::enable_queue:
    case request::notify_queue: put(vu::queue_value{in_.below(5), number()}); break;
    case request::set_available_file:
    case request::set_used_file:
    case request::set_error_file: {
      const bool is_there = in_.flag();
      put(std::uint64_t{in_.below(5)} | (is_there ? 0 : vu::no_file));
      files = is_there ? 1 : 0;
      break;
    }
    case request::set_back_end_channel: files = 1; break;
    case request::set_queue_addresses: {
      const std::uint32_t queue = in_.below(4);
      const std::uint64_t table = address(front_end::user_at), used = address(front_end::user_at),
                          available = address(front_end::user_at);
      put(vu::queue_addresses{queue, 0, table, used, available, 0});
      break;
    }
    case request::set_memory_table:
      files = in_.below(3);
      put(files);
      put(std::uint32_t{0});
      for (std::uint32_t i = 0; i < files; ++i) put(region());
      break;
    case request::add_memory_region:
    case request::remove_memory_region:
      put(std::uint64_t{0});
      put(region());
      files = static_cast<request>(what) == request::add_memory_region ? 1 : 0;
      break;
    case request::get_config:
    case request::set_config:
      put(vu::config_access{in_.below(32), 4, 0});
      put(number());
      break;
    case request::get_in_flight:
    case request::set_in_flight:
      put(vu::in_flight_area{in_.flag() ? area_bytes : in_.number<std::uint64_t>(),
                             in_.flag() ? 0u : number(), static_cast<std::uint16_t>(in_.below(6)),
                             static_cast<std::uint16_t>(number()), 0});
      files = static_cast<request>(what) == request::set_in_flight ? 1 : 0;
      break;
    default: break;
    }
    const std::uint8_t odd = in_.byte();
    if ((odd & 0xf0) == 0xf0) files = odd & 3;
    const auto size = static_cast<std::uint32_t>(end - sizeof(vu::message_header));
    const vu::message_header head{
        what, ((odd & 1) != 0 ? vu::message_header::needs_reply : 0u) | vu::message_header::version,
        (odd & 0xf0) == 0xe0 ? size + odd % 4 : size};
    std::memcpy(bytes.data(), &head, sizeof(head));
    send(std::span(bytes).first(end), files);
  }

  vu::region_description region() {
    if (in_.flag()) return {front_end::ram_at, front_end::ram_bytes, front_end::user_at, 0};
    return {address(front_end::ram_at), in_.flag() ? 4096 : in_.number<std::uint64_t>(),
            address(front_end::user_at), in_.flag() ? 0u : number()};
  }

  int some_file() {
    const std::uint32_t which = in_.below(6);
    if (which < 3) return other_[which].get();
    if (which == 3) return area_file_.get();
    if (which == 4 && guest_.queues[0] != nullptr) return guest_.queues[0]->available.get();
    return guest_.ram_file().get();
  }

  void send(std::span<const std::byte> bytes, std::uint32_t files) {
    // Understanding a message touches nothing, whatever it is.
    (void)vu::decode(bytes, files, vu::protocol_feature::all);
    const auto m = vu::decode(bytes, files, 0);
    require(!m || vu::feature_of(m->what) == 0, "what was not negotiated is no message");
    switch (files) {
    case 0: guest_.send_bytes(bytes); break;
    case 1: guest_.send_bytes(bytes, {some_file()}); break;
    case 2: guest_.send_bytes(bytes, {some_file(), some_file()}); break;
    default: guest_.send_bytes(bytes, {some_file(), some_file(), some_file()}); break;
    }
  }

  input& in_;
  std::uint8_t how_;
  vu::memory_table table_;
  checking_host host_;
  device_type device_;
  back_end_type end_;
  front_end guest_;
  vu::file area_file_;
  vu::file_mapping area_;
  std::array<vu::file, 3> other_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  signal(SIGPIPE, SIG_IGN);
  input in({data, size});
  scenario s(in);
  s.run();
  return 0;
}
