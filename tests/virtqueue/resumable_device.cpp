// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtqueue/resumable_device.hpp>

#include <support/check.hpp>

#include <ballast/memory/array_memory.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

// What models resumable_device_model and what doesn't.
namespace {

using namespace ballast;
using memory = array_memory<64>;
using layouts = std::span<const queue_layout>;
using positions = std::span<const device_queue_state>;

struct device_without {
  std::uint32_t device_id() const noexcept { return 1; }
  feature_set offered_features() const noexcept { return {}; }
  result<void> check_features(const feature_set&) const noexcept { return {}; }
  std::uint16_t queue_count() const noexcept { return 1; }
  std::uint32_t queue_size_max(std::uint16_t) const noexcept { return 8; }
  std::uint32_t config_size() const noexcept { return 0; }
  result<void> read_config(std::uint32_t, std::span<std::byte>) const noexcept { return {}; }
  std::uint32_t config_generation() const noexcept { return 0; }
  actions write_config(std::uint32_t, std::span<const std::byte>) noexcept { return {}; }
  actions activate(const feature_set&, layouts, memory&) noexcept { return {}; }
  actions process(std::uint16_t, std::uint32_t) noexcept { return {}; }
  actions reset_queue(std::uint16_t) noexcept { return {}; }
  actions enable_queue(std::uint16_t, const queue_layout&) noexcept { return {}; }
  void reset() noexcept {}
};
static_assert(device_model<device_without, memory>);
static_assert(!resumable_device_model<device_without, memory>);

struct complete : device_without {
  result<device_queue_state> queue_state(std::uint16_t) const noexcept { return error::none; }
  void detach() noexcept {}
  actions attach(layouts, memory&) noexcept { return {}; }
  actions resume(const feature_set&, layouts, memory&, positions) noexcept { return {}; }
};
static_assert(resumable_device_model<complete, memory>);
static_assert(!resumable_device_model<complete, array_memory<8>>); // of one memory only

template <class D>
constexpr bool rejected =
    std::derived_from<D, complete> && device_model<D, memory> && !resumable_device_model<D, memory>;

// clang-format off
struct no_state : complete { result<device_queue_state> queue_state(std::uint16_t) const noexcept = delete; };
struct no_detach : complete { void detach() noexcept = delete; };
struct no_attach : complete { actions attach(layouts, memory&) noexcept = delete; };
struct no_resume : complete { actions resume(const feature_set&, layouts, memory&, positions) noexcept = delete; };
struct other_state : complete { device_queue_state queue_state(std::uint16_t) const noexcept { return {}; } };
struct other_attach : complete { void attach(layouts, memory&) noexcept {} };
struct other_resume : complete { result<void> resume(const feature_set&, layouts, memory&, positions) noexcept { return {}; } };
struct changing_state : complete { result<device_queue_state> queue_state(std::uint16_t) noexcept { return error::none; } };
struct throwing_state : complete { result<device_queue_state> queue_state(std::uint16_t) const { return error::none; } };
struct throwing_detach : complete { void detach() {} };
struct throwing_resume : complete { actions resume(const feature_set&, layouts, memory&, positions) { return {}; } };
// clang-format on
static_assert(rejected<no_state> && rejected<no_detach> && rejected<no_attach>);
static_assert(rejected<no_resume> && rejected<other_state> && rejected<other_attach>);
static_assert(rejected<other_resume> && rejected<changing_state> && rejected<throwing_state>);
static_assert(rejected<throwing_detach> && rejected<throwing_resume>);

TEST_CASE("a resumable device lacks no member, and each returns what it must without throwing") {
  CHECK(resumable_device_model<complete, memory>);
  CHECK(!resumable_device_model<device_without, memory>);
}

} // namespace
