// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/driver_transport.hpp>

#include <support/check.hpp>

// What models driver_transport and what doesn't: each negative case differs from `complete` in one
// member that is missing, returns something else, or isn't noexcept.
namespace {

using ballast::driver_transport;
using ballast::feature_set;
using ballast::queue_layout;
using ballast::result;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using bytes = std::span<std::byte>;
using const_bytes = std::span<const std::byte>;

struct complete {
  u32 device_id() noexcept { return 1; }
  feature_set device_features() noexcept { return {}; }
  void set_driver_features(const feature_set&) noexcept {}
  u8 status() noexcept { return 0; }
  void set_status(u8) noexcept {}
  u32 queue_size_max(u16) noexcept { return 8; }
  result<void> set_up_queue(u16, const queue_layout&) noexcept { return {}; }
  result<void> reset_queue(u16) noexcept { return {}; }
  u32 config_generation() noexcept { return 0; }
  result<void> read_config(u32, bytes) noexcept { return {}; }
  result<void> write_config(u32, const_bytes) noexcept { return {}; }
  void notify(u16) noexcept {}
};
static_assert(driver_transport<complete>);

// Reading registers may be const, and a write may say more than it must.
struct richer : complete {
  u8 status() const noexcept { return 0; }
  bool set_status(u8) noexcept { return true; }
  bool notify(u16) noexcept { return true; }
};
static_assert(driver_transport<richer>);

static_assert(!driver_transport<int>);
struct nothing {};
static_assert(!driver_transport<nothing>);
static_assert(!driver_transport<const complete>);

template <class T> constexpr bool rejected = std::derived_from<T, complete> && !driver_transport<T>;

namespace missing {
// clang-format off
struct id : complete { u32 device_id() noexcept = delete; };
struct offered : complete { feature_set device_features() noexcept = delete; };
struct accepted : complete { void set_driver_features(const feature_set&) noexcept = delete; };
struct reads_status : complete { u8 status() noexcept = delete; };
struct sets_status : complete { void set_status(u8) noexcept = delete; };
struct size_max : complete { u32 queue_size_max(u16) noexcept = delete; };
struct set_up : complete { result<void> set_up_queue(u16, const queue_layout&) noexcept = delete; };
struct reset_one : complete { result<void> reset_queue(u16) noexcept = delete; };
struct generation : complete { u32 config_generation() noexcept = delete; };
struct read : complete { result<void> read_config(u32, bytes) noexcept = delete; };
struct write : complete { result<void> write_config(u32, const_bytes) noexcept = delete; };
struct notification : complete { void notify(u16) noexcept = delete; };
// clang-format on
static_assert(rejected<id> && rejected<offered> && rejected<accepted> && rejected<reads_status>);
static_assert(rejected<sets_status> && rejected<size_max> && rejected<set_up> &&
              rejected<reset_one>);
static_assert(rejected<generation> && rejected<read> && rejected<write> && rejected<notification>);
} // namespace missing

namespace other_result {
// clang-format off
struct id : complete { u16 device_id() noexcept { return 1; } };
struct offered : complete { std::uint64_t device_features() noexcept { return 0; } };
struct reads_status : complete { u32 status() noexcept { return 0; } };
struct size_max : complete { u16 queue_size_max(u16) noexcept { return 8; } };
struct set_up : complete { bool set_up_queue(u16, const queue_layout&) noexcept { return true; } };
struct generation : complete { u8 config_generation() noexcept { return 0; } };
struct read : complete { void read_config(u32, bytes) noexcept {} };
struct write : complete { bool write_config(u32, const_bytes) noexcept { return true; } };
// clang-format on
static_assert(rejected<id> && rejected<offered> && rejected<reads_status>);
static_assert(rejected<size_max> && rejected<set_up> && rejected<generation>);
static_assert(rejected<read> && rejected<write>);
} // namespace other_result

namespace may_throw {
// clang-format off
struct id : complete { u32 device_id() { return 1; } };
struct offered : complete { feature_set device_features() { return {}; } };
struct accepted : complete { void set_driver_features(const feature_set&) {} };
struct reads_status : complete { u8 status() { return 0; } };
struct sets_status : complete { void set_status(u8) {} };
struct size_max : complete { u32 queue_size_max(u16) { return 8; } };
struct set_up : complete { result<void> set_up_queue(u16, const queue_layout&) { return {}; } };
struct generation : complete { u32 config_generation() { return 0; } };
struct read : complete { result<void> read_config(u32, bytes) { return {}; } };
struct write : complete { result<void> write_config(u32, const_bytes) { return {}; } };
struct notification : complete { void notify(u16) {} };
// clang-format on
static_assert(rejected<id> && rejected<offered> && rejected<accepted> && rejected<reads_status>);
static_assert(rejected<sets_status> && rejected<size_max> && rejected<set_up>);
static_assert(rejected<generation> && rejected<read> && rejected<write> && rejected<notification>);
} // namespace may_throw

TEST_CASE("a driver transport lacks no member, and each returns what it must without throwing") {
  CHECK(driver_transport<complete>);
  CHECK(!driver_transport<nothing>);
}

} // namespace
