// SPDX-License-Identifier: BSD-3-Clause
//
// A balloon driver of a small kernel, whole: identity-mapped memory, the registers of virtio-mmio,
// an interrupt. Freestanding, without a C library:
//   g++ -std=c++20 -Iinclude -O2 -ffreestanding -nostdlib -static -fno-exceptions -fno-rtti
//       examples/guest_driver.cpp          (on ARM also -mno-outline-atomics, as kernels have it)
// What it does is the same in a hosted program. guest_driver/machine.hpp stands in for the machine.

#include "guest_driver/machine.hpp"
#include "guest_driver/registers.hpp"

#include <ballast/balloon/driver.hpp>
#include <ballast/memory/direct_memory.hpp>
#include <ballast/virtio/actions.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

#if __STDC_HOSTED__
#include <cstdio>
#include <sys/mman.h>
#else
#include "guest_driver/freestanding.hpp"
#endif

using namespace ballast;

namespace {

constexpr std::uint32_t ram_pages = 1024;

// README
struct page_stack { // the kernel's allocator
  std::uint32_t pfns[ram_pages];
  std::size_t count = 0;
  std::size_t pop(std::span<std::uint32_t> to) noexcept {
    std::size_t n = 0;
    while (n < to.size() && count != 0) to[n++] = pfns[--count];
    return n;
  }
  void push(std::span<const std::uint32_t> from) noexcept {
    for (const std::uint32_t pfn : from) pfns[count++] = pfn;
  }
};

struct page_allocator { // what the driver wants of it
  page_stack free, ballooned;
  std::size_t take_free(std::span<std::uint32_t> to) noexcept { return free.pop(to); }
  void store(std::span<const std::uint32_t> from) noexcept { ballooned.push(from); }
  std::size_t take_stored(std::span<std::uint32_t> to) noexcept { return ballooned.pop(to); }
  void release(std::span<const std::uint32_t> from) noexcept { free.push(from); }
};

template <class Bus> class balloon_driver {
 public:
  balloon_driver(Bus& bus, page_allocator& pages, guest_address queues) noexcept
      : device_(bus), driver_(memory_, device_, pages, none_, queues) {}

  void start() noexcept { carry_out(driver_.start()); }
  void interrupt() noexcept {
    const bool has_config_changed = (device_.acknowledge_interrupt() & 2) != 0;
    carry_out(has_config_changed ? driver_.on_config_change() : driver_.step());
  }

 private:
  void carry_out(actions due) noexcept {
    for (;; due = driver_.step()) {
      for (std::uint16_t queue = 0; queue < balloon::queue_kind_count; ++queue)
        if (due.notifies(queue)) device_.notify(queue);
      if (due.more_work == 0) return;
    }
  }

  direct_memory memory_;
  guest_driver::registers<Bus> device_;
  balloon::no_sources none_;
  balloon::driver<direct_memory, decltype(device_), page_allocator, balloon::no_sources> driver_;
};
// end
template class balloon_driver<guest_driver::mmio>; // as a kernel has it

/// The balloon grows, shrinks and ends as it should; 0 if it did.
int run(std::uint64_t ram) noexcept {
  guest_driver::machine machine(ram_pages);
  page_allocator pages;
  constexpr std::uint32_t kept = 4; // for the queues
  const auto first = static_cast<std::uint32_t>(ram >> balloon::pfn_shift);
  for (std::uint32_t i = ram_pages; i-- > kept;) {
    const std::uint32_t pfn = first + i;
    pages.free.push({&pfn, 1});
  }
  balloon_driver driver(machine, pages, ram);
  driver.start();
  for (const std::uint32_t target : {700u, 100u, 900u, 0u}) {
    machine.set_target(target);
    while (machine.run()) driver.interrupt();
    if (machine.actual() != target || pages.ballooned.count != target ||
        machine.bytes_taken() != balloon::bytes_of(target))
      return 1;
  }
  return pages.free.count == ram_pages - kept ? 0 : 1;
}

} // namespace

#if __STDC_HOSTED__
int main() {
  // Below 16 TiB: the PFNs of virtio-balloon have 32 bits.
  constexpr std::size_t size = std::size_t{ram_pages} * balloon::page_size;
  void* const ram = mmap(reinterpret_cast<void*>(0x2000'0000), size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (ram == MAP_FAILED) return 1;
  const int failed = run(reinterpret_cast<std::uintptr_t>(ram));
  std::puts(failed == 0 ? "the balloon went to each target" : "the balloon missed a target");
  return failed;
}
#else
alignas(balloon::page_size) static std::byte ram[std::size_t{ram_pages} * balloon::page_size];
int guest_main() { return run(reinterpret_cast<std::uintptr_t>(ram)); }
#endif
