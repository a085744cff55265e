// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/memory/guest_memory.hpp>

#include "support/check.hpp"

#include <ballast/endian.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace {

using namespace ballast;

// One window and one accessor that can each have a single flaw: with none they model the concepts,
// so it is the flaw that a refusal is about.
enum class flaw {
  none,
  // of a window
  lacks_16,
  lacks_32,
  lacks_64,
  load_throws,
  load_of_a_writable_window_only,
  load_is_wider,
  lacks_load,
  store_throws,
  lacks_store,
  // of an accessor
  lacks_window,
  window_throws,
  window_is_no_result,
  window_without_error,
  lacks_segment,
  segment_throws,
  segment_is_a_length,
  lacks_read,
  read_throws,
  read_returns_nothing,
  lacks_write,
  write_throws,
  write_returns_a_count,
  lacks_good,
  good_throws,
  good_returns_an_int,
  lacks_fence,
  fence_throws,
};

template <flaw F, class T>
concept has_width =
    (F != flaw::lacks_16 || sizeof(T) != 2) && (F != flaw::lacks_32 || sizeof(T) != 4) &&
    (F != flaw::lacks_64 || sizeof(T) != 8);

template <flaw F> struct some_window {
  template <wire_integer T>
    requires(has_width<F, T> && F != flaw::lacks_load && F != flaw::load_of_a_writable_window_only)
  auto load(std::uint32_t, order) const noexcept(F != flaw::load_throws)
      -> std::conditional_t<F == flaw::load_is_wider, std::uint64_t, T> {
    return {};
  }
  template <wire_integer T>
    requires(F == flaw::load_of_a_writable_window_only)
  T load(std::uint32_t, order) noexcept {
    return {};
  }
  template <wire_integer T>
    requires(has_width<F, T> && F != flaw::lacks_store)
  void store(std::uint32_t, T, order) noexcept(F != flaw::store_throws) {}
};

struct window_without_default : some_window<flaw::none> {
  explicit window_without_default(int) noexcept {}
};
struct window_without_copy : some_window<flaw::none> {
  window_without_copy() noexcept = default;
  window_without_copy(window_without_copy&&) noexcept = default;
  window_without_copy& operator=(window_without_copy&&) noexcept = default;
};

static_assert(memory_window<some_window<flaw::none>>);
static_assert(!memory_window<some_window<flaw::lacks_16>>);
static_assert(!memory_window<some_window<flaw::lacks_32>>);
static_assert(!memory_window<some_window<flaw::lacks_64>>);
static_assert(!memory_window<some_window<flaw::lacks_load>>);
static_assert(!memory_window<some_window<flaw::load_throws>>);
static_assert(!memory_window<some_window<flaw::load_of_a_writable_window_only>>);
static_assert(!memory_window<some_window<flaw::load_is_wider>>);
static_assert(!memory_window<some_window<flaw::lacks_store>>);
static_assert(!memory_window<some_window<flaw::store_throws>>);
static_assert(!memory_window<window_without_default>);
static_assert(!memory_window<window_without_copy>);
static_assert(!memory_window<void*> && !memory_window<int>);

// A window that is more: the concept asks for a minimum.
struct checked_window : some_window<flaw::none> {
  int extra = 0;
};
static_assert(memory_window<checked_window>);

template <flaw F, class Window = some_window<F>> struct some_memory {
  auto window(guest_address, std::uint64_t, std::size_t,
              ballast::access) noexcept(F != flaw::window_throws)
    requires(F != flaw::lacks_window)
  {
    if constexpr (F == flaw::window_is_no_result)
      return Window{};
    else if constexpr (F == flaw::window_without_error)
      return static_cast<Window*>(nullptr);
    else
      return result<Window>(error::not_guest_memory);
  }
  auto segment(guest_address, std::uint64_t, ballast::access) noexcept(F != flaw::segment_throws)
    requires(F != flaw::lacks_segment)
  {
    return std::conditional_t<F == flaw::segment_is_a_length, std::uint64_t, memory_segment>{};
  }
  auto read(guest_address, std::span<std::byte>) noexcept(F != flaw::read_throws)
    requires(F != flaw::lacks_read)
  {
    if constexpr (F != flaw::read_returns_nothing) return false;
  }
  auto write(guest_address, std::span<const std::byte>) noexcept(F != flaw::write_throws)
    requires(F != flaw::lacks_write)
  {
    return std::conditional_t<F == flaw::write_returns_a_count, std::size_t, bool>{};
  }
  auto good() noexcept(F != flaw::good_throws)
    requires(F != flaw::lacks_good)
  {
    return std::conditional_t<F == flaw::good_returns_an_int, int, bool>{};
  }
  void fence() noexcept(F != flaw::fence_throws)
    requires(F != flaw::lacks_fence)
  {}
};

static_assert(guest_memory<some_memory<flaw::none>>);
static_assert(guest_memory<some_memory<flaw::none, checked_window>>);
static_assert(std::same_as<window_of<some_memory<flaw::none>>, some_window<flaw::none>>);

static_assert(!guest_memory<some_memory<flaw::lacks_64>>);
static_assert(!guest_memory<some_memory<flaw::load_throws>>);
static_assert(!guest_memory<some_memory<flaw::none, window_without_copy>>);
static_assert(!guest_memory<some_memory<flaw::lacks_window>>);
static_assert(!guest_memory<some_memory<flaw::window_throws>>);
static_assert(!guest_memory<some_memory<flaw::window_is_no_result>>);
static_assert(!guest_memory<some_memory<flaw::window_without_error>>);
static_assert(!guest_memory<some_memory<flaw::lacks_segment>>);
static_assert(!guest_memory<some_memory<flaw::segment_throws>>);
static_assert(!guest_memory<some_memory<flaw::segment_is_a_length>>);
static_assert(!guest_memory<some_memory<flaw::lacks_read>>);
static_assert(!guest_memory<some_memory<flaw::read_throws>>);
static_assert(!guest_memory<some_memory<flaw::read_returns_nothing>>);
static_assert(!guest_memory<some_memory<flaw::lacks_write>>);
static_assert(!guest_memory<some_memory<flaw::write_throws>>);
static_assert(!guest_memory<some_memory<flaw::write_returns_a_count>>);
static_assert(!guest_memory<some_memory<flaw::lacks_good>>);
static_assert(!guest_memory<some_memory<flaw::good_throws>>);
static_assert(!guest_memory<some_memory<flaw::good_returns_an_int>>);
static_assert(!guest_memory<some_memory<flaw::lacks_fence>>);
static_assert(!guest_memory<some_memory<flaw::fence_throws>>);
static_assert(!guest_memory<some_window<flaw::none>> && !guest_memory<int>);

constexpr auto no_segment = [](auto check) {
  const memory_segment none;
  check(none.data == nullptr && none.size == 0);
};
BOTH("a new segment is no memory", no_segment)

} // namespace
