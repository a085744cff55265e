// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/device_model.hpp>

#include <support/check.hpp>

#include <ballast/memory/array_memory.hpp>

// What models device_model and what doesn't: each negative case differs from `complete` in one
// member that is missing, returns something else, isn't noexcept, or isn't const where it must be.
namespace {

using ballast::actions;
using ballast::device_model;
using ballast::feature_set;
using ballast::queue_layout;
using ballast::result;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using memory = ballast::array_memory<64>;
using layouts = std::span<const queue_layout>;
using bytes = std::span<std::byte>;
using const_bytes = std::span<const std::byte>;

struct complete {
  u32 device_id() const noexcept { return 1; }
  feature_set offered_features() const noexcept { return {}; }
  result<void> check_features(const feature_set&) const noexcept { return {}; }
  u16 queue_count() const noexcept { return 1; }
  u32 queue_size_max(u16) const noexcept { return 8; }
  u32 config_size() const noexcept { return 0; }
  result<void> read_config(u32, bytes) const noexcept { return {}; }
  u32 config_generation() const noexcept { return 0; }
  actions write_config(u32, const_bytes) noexcept { return {}; }
  template <class M> actions activate(const feature_set&, layouts, M&) noexcept { return {}; }
  actions process(u16, u32) noexcept { return {}; }
  actions reset_queue(u16) noexcept { return {}; }
  actions enable_queue(u16, const queue_layout&) noexcept { return {}; }
  void reset() noexcept {}
};
static_assert(device_model<complete, memory>);

struct more_than_complete : complete {
  actions suspend() noexcept { return {}; }
};
static_assert(device_model<more_than_complete, memory>);

// Of one kind of memory only.
struct of_one_memory : complete {
  actions activate(const feature_set&, layouts, memory&) noexcept { return {}; }
};
static_assert(device_model<of_one_memory, memory>);
static_assert(!device_model<of_one_memory, ballast::array_memory<128>>);

static_assert(!device_model<complete, int>); // not a memory
static_assert(!device_model<int, memory>);
struct nothing {};
static_assert(!device_model<nothing, memory>);

template <class D>
constexpr bool rejected = std::derived_from<D, complete> && !device_model<D, memory>;

namespace missing {
// clang-format off
struct id : complete { u32 device_id() const noexcept = delete; };
struct offered : complete { feature_set offered_features() const noexcept = delete; };
struct check : complete { result<void> check_features(const feature_set&) const noexcept = delete; };
struct count : complete { u16 queue_count() const noexcept = delete; };
struct size_max : complete { u32 queue_size_max(u16) const noexcept = delete; };
struct size : complete { u32 config_size() const noexcept = delete; };
struct read : complete { result<void> read_config(u32, bytes) const noexcept = delete; };
struct generation : complete { u32 config_generation() const noexcept = delete; };
struct write : complete { actions write_config(u32, const_bytes) noexcept = delete; };
struct activation : complete { actions activate(const feature_set&, layouts, memory&) noexcept = delete; };
struct processing : complete { actions process(u16, u32) noexcept = delete; };
struct resetting : complete { void reset() noexcept = delete; };
struct queue_resetting : complete { actions reset_queue(u16) noexcept = delete; };
struct queue_enabling : complete { actions enable_queue(u16, const queue_layout&) noexcept = delete; };
// clang-format on
static_assert(rejected<id> && rejected<offered> && rejected<check> && rejected<count>);
static_assert(rejected<queue_resetting> && rejected<queue_enabling>);
static_assert(rejected<size_max> && rejected<size> && rejected<read>);
static_assert(rejected<generation> && rejected<write> && rejected<activation>);
static_assert(rejected<processing> && rejected<resetting>);
} // namespace missing

namespace other_result {
// clang-format off
struct id : complete { int device_id() const noexcept { return 1; } };
struct offered : complete { std::uint64_t offered_features() const noexcept { return 0; } };
struct check : complete { bool check_features(const feature_set&) const noexcept { return true; } };
struct count : complete { u32 queue_count() const noexcept { return 1; } };
struct size_max : complete { u16 queue_size_max(u16) const noexcept { return 8; } };
struct size : complete { std::size_t config_size() const noexcept { return 0; } };
struct read : complete { bool read_config(u32, bytes) const noexcept { return true; } };
struct generation : complete { std::uint8_t config_generation() const noexcept { return 0; } };
struct write : complete { void write_config(u32, const_bytes) noexcept {} };
struct activation : complete { void activate(const feature_set&, layouts, memory&) noexcept {} };
struct processing : complete { result<void> process(u16, u32) noexcept { return {}; } };
struct resetting : complete { actions reset() noexcept { return {}; } };
// clang-format on
static_assert(rejected<id> && rejected<offered> && rejected<check> && rejected<count>);
static_assert(rejected<size_max> && rejected<size> && rejected<read>);
static_assert(rejected<generation> && rejected<write> && rejected<activation>);
static_assert(rejected<processing> && rejected<resetting>);
} // namespace other_result

namespace may_throw {
// clang-format off
struct id : complete { u32 device_id() const { return 1; } };
struct offered : complete { feature_set offered_features() const { return {}; } };
struct check : complete { result<void> check_features(const feature_set&) const { return {}; } };
struct count : complete { u16 queue_count() const { return 1; } };
struct size_max : complete { u32 queue_size_max(u16) const { return 8; } };
struct size : complete { u32 config_size() const { return 0; } };
struct read : complete { result<void> read_config(u32, bytes) const { return {}; } };
struct generation : complete { u32 config_generation() const { return 0; } };
struct write : complete { actions write_config(u32, const_bytes) { return {}; } };
struct activation : complete { actions activate(const feature_set&, layouts, memory&) { return {}; } };
struct processing : complete { actions process(u16, u32) { return {}; } };
struct resetting : complete { void reset() {} };
// clang-format on
static_assert(rejected<id> && rejected<offered> && rejected<check> && rejected<count>);
static_assert(rejected<size_max> && rejected<size> && rejected<read>);
static_assert(rejected<generation> && rejected<write> && rejected<activation>);
static_assert(rejected<processing> && rejected<resetting>);
} // namespace may_throw

namespace not_const {
// clang-format off
struct id : complete { u32 device_id() noexcept { return 1; } };
struct offered : complete { feature_set offered_features() noexcept { return {}; } };
struct check : complete { result<void> check_features(const feature_set&) noexcept { return {}; } };
struct count : complete { u16 queue_count() noexcept { return 1; } };
struct size_max : complete { u32 queue_size_max(u16) noexcept { return 8; } };
struct size : complete { u32 config_size() noexcept { return 0; } };
struct read : complete { result<void> read_config(u32, bytes) noexcept { return {}; } };
struct generation : complete { u32 config_generation() noexcept { return 0; } };
// clang-format on
static_assert(rejected<id> && rejected<offered> && rejected<check> && rejected<count>);
static_assert(rejected<size_max> && rejected<size> && rejected<read>);
static_assert(rejected<generation>);
} // namespace not_const

TEST_CASE("a device model lacks no member, and each returns what it must without throwing") {
  CHECK(device_model<complete, memory>);
  CHECK(!device_model<nothing, memory>);
}

} // namespace
