// SPDX-License-Identifier: BSD-3-Clause
//
// A balloon device in a VMM: that is main(). Above it is what stands in for a guest.

#include <ballast/ballast.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <sys/mman.h>

using namespace ballast;

namespace {

// README
struct host { // takes memory back from the guest
  std::byte* ram = nullptr;
  bool discard(guest_address address, std::uint64_t size) noexcept {
    return madvise(ram + address, size, MADV_DONTNEED) == 0;
  }
};

// end
struct guest { // gives away one page after the other
  std::uint32_t next_free = 16;
  std::size_t take_free(std::span<std::uint32_t> to) noexcept {
    for (std::uint32_t& pfn : to) pfn = next_free++;
    return to.size();
  }
  void store(std::span<const std::uint32_t>) noexcept {}
  std::size_t take_stored(std::span<std::uint32_t>) noexcept { return 0; }
  void release(std::span<const std::uint32_t>) noexcept {}
  void write(balloon::statistics_writer<std::endian::little>&) noexcept {}
};

void carry_out(actions due, auto& driver, auto& transport) {
  for (;; due = driver.step()) {
    for (std::uint16_t queue = 0; queue < balloon::queue_kind_count; ++queue)
      if (due.notifies(queue)) transport.notify(queue);
    if (due.more_work == 0) return;
  }
}

} // namespace

int main() {
  constexpr std::uint64_t size = 64 << 20;
  void* const ram = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (ram == MAP_FAILED) return 1;
  // README
  const memory_region region{0, static_cast<std::byte*>(ram), size};
  mapped_memory memory = *mapped_memory::over({&region, 1});

  host back_end{region.data};
  balloon::device<mapped_memory, host> device(back_end, {.target_pages_max = size / 4096});
  in_process_transport transport(device, memory); // a VMM has PCI or MMIO here
  // end

  guest pages;
  balloon::driver<mapped_memory, decltype(transport), guest, guest> driver(memory, transport, pages,
                                                                           pages, 0);
  carry_out(driver.start(), driver, transport);

  // README

  actions due = device.set_target(4096); // 16 MiB
  while (due.failure == error::none && (due.config_changed || due.notify_queues != 0)) {
    // What is an interrupt in a VMM.
    carry_out(due.config_changed ? driver.on_config_change() : driver.step(), driver, transport);
    due = transport.take_actions();
    for (std::uint64_t queues = due.more_work | transport.take_notified(); queues != 0;) {
      const auto queue = static_cast<std::uint16_t>(std::countr_zero(queues));
      const actions done = transport.process(queue, 64);
      queues = (queues & (queues - 1)) | done.more_work;
      due |= done;
    }
  }
  // end
  std::printf("%u pages are in the balloon\n", device.actual());
  return device.actual() == device.target() ? 0 : 1;
}
