// SPDX-License-Identifier: BSD-3-Clause
// What does it save that a page source hands out spans? A page goes into the balloon and comes out
// again; the allocator takes a lock, as a kernel's does: once for a span, or once for each page, or
// the driver asks for one page and sends it. Both sides are there, the device's host does nothing.

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/driver.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtio/in_process_transport.hpp>

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace {

using namespace ballast;

constexpr std::uint32_t page_count = 4096;

/// Pages as a stack behind a lock; out of line, as an allocator is.
class locked_stack {
 public:
  [[gnu::noinline]] std::size_t pop(std::span<std::uint32_t> to) noexcept {
    lock();
    std::size_t n = 0;
    while (n < to.size() && count_ != 0) to[n++] = pfns_[--count_];
    unlock();
    return n;
  }
  [[gnu::noinline]] void push(std::span<const std::uint32_t> from) noexcept {
    lock();
    for (const std::uint32_t pfn : from) pfns_[count_++] = pfn;
    unlock();
  }

 private:
  void lock() noexcept {
    while (__atomic_exchange_n(&is_locked_, true, __ATOMIC_ACQUIRE)) {
    }
  }
  void unlock() noexcept { __atomic_store_n(&is_locked_, false, __ATOMIC_RELEASE); }

  std::uint32_t pfns_[page_count]{};
  std::size_t count_ = 0;
  bool is_locked_ = false;
};

/// How many pages change hands in a call, and how many go into a buffer.
enum class by { spans, pages, buffers_of_one };

template <by How> struct source {
  locked_stack free, stored;

  std::size_t take_free(std::span<std::uint32_t> to) noexcept { return take(free, to); }
  void store(std::span<const std::uint32_t> from) noexcept { put(stored, from); }
  std::size_t take_stored(std::span<std::uint32_t> to) noexcept { return take(stored, to); }
  void release(std::span<const std::uint32_t> from) noexcept { put(free, from); }

 private:
  static std::size_t take(locked_stack& from, std::span<std::uint32_t> to) noexcept {
    if constexpr (How == by::spans) return from.pop(to);
    if constexpr (How == by::buffers_of_one) return from.pop(to.first(1));
    std::size_t n = 0;
    while (n < to.size() && from.pop(to.subspan(n, 1)) != 0) ++n;
    return n;
  }
  static void put(locked_stack& to, std::span<const std::uint32_t> from) noexcept {
    if constexpr (How == by::pages)
      for (std::size_t i = 0; i < from.size(); ++i) to.push(from.subspan(i, 1));
    else
      to.push(from);
  }
};

struct host {
  bool discard(guest_address, std::uint64_t) noexcept { return true; }
};

template <by How> struct machine {
  using device_type = balloon::device<mapped_memory, host>;
  using transport_type = in_process_transport<device_type, mapped_memory>;
  static constexpr std::size_t ram_bytes = std::size_t{page_count + 16} * 4096;

  struct alignas(4096) bytes {
    std::byte at[ram_bytes];
  };
  std::unique_ptr<bytes> memory = std::make_unique<bytes>();
  const memory_region region{0, memory->at, ram_bytes};
  mapped_memory ram = *mapped_memory::over({&region, 1});
  host back_end;
  device_type device{back_end};
  transport_type transport{device, ram};
  source<How> pages;
  balloon::no_sources none;
  balloon::driver<mapped_memory, transport_type, source<How>, balloon::no_sources> driver{
      ram, transport, pages, none, 0};

  machine() {
    for (std::uint32_t i = 0; i < page_count; ++i) {
      const std::uint32_t pfn = page_count + 15 - i;
      pages.free.push({&pfn, 1});
    }
    run(driver.start());
  }

  void run(actions due) noexcept {
    while (due.notify_queues != 0 || due.more_work != 0) {
      for (std::uint16_t queue = 0; queue < 2; ++queue)
        if (due.notifies(queue)) (void)transport.process(queue, 64);
      due = driver.step();
    }
  }
  /// All pages go in and come out again; whether they did.
  bool round() noexcept {
    (void)device.set_target(page_count);
    run(driver.on_config_change());
    const bool is_full = device.actual() == page_count;
    (void)device.set_target(0);
    run(driver.on_config_change());
    return is_full && device.actual() == 0;
  }
};

template <by How> void balloon_round(benchmark::State& state) {
  const auto m = std::make_unique<machine<How>>();
  for ([[maybe_unused]] auto _ : state)
    if (!m->round()) state.SkipWithError("the balloon missed its target");
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(page_count));
  state.SetLabel("page");
}

BENCHMARK(balloon_round<by::spans>)->Name("in and out of the balloon, spans of pages");
BENCHMARK(balloon_round<by::pages>)->Name("in and out of the balloon, page by page");
BENCHMARK(balloon_round<by::buffers_of_one>)->Name("in and out of the balloon, one page a buffer");

/// The allocator alone.
template <by How> void allocator_round(benchmark::State& state) {
  const auto pages = std::make_unique<source<How>>();
  for (std::uint32_t pfn = 0; pfn < page_count; ++pfn) pages->free.push({&pfn, 1});
  std::uint32_t taken[256];
  for ([[maybe_unused]] auto _ : state) {
    if (pages->take_free(taken) != 256) state.SkipWithError("pages were lost");
    benchmark::DoNotOptimize(taken);
    pages->release(taken);
  }
  state.SetItemsProcessed(state.iterations() * 256);
  state.SetLabel("page");
}

BENCHMARK(allocator_round<by::spans>)->Name("256 pages taken and released, a span");
BENCHMARK(allocator_round<by::pages>)->Name("256 pages taken and released, page by page");

} // namespace
