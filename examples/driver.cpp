// SPDX-License-Identifier: BSD-3-Clause
//
// A balloon driver in a guest: memory_manager and run_balloon(), over whatever leads to the device.
// What is below stands in for the device and its interrupts.

#include <ballast/ballast.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>

using namespace ballast;

namespace {

struct page_stack {
  std::uint32_t pfns[1024]{};
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

struct memory_manager { // where the driver gets its pages and its statistics from
  page_stack free, ballooned;
  std::size_t take_free(std::span<std::uint32_t> to) noexcept { return free.pop(to); }
  void store(std::span<const std::uint32_t> from) noexcept { ballooned.push(from); }
  std::size_t take_stored(std::span<std::uint32_t> to) noexcept { return ballooned.pop(to); }
  void release(std::span<const std::uint32_t> from) noexcept { free.push(from); }
  void write(balloon::statistics_writer<std::endian::little>& to) noexcept {
    (void)to.add(balloon::statistic_tag::free_memory, free.count * balloon::page_size);
  }
};

enum class interrupt { none, config, queue };

// README
/// `queues`: an address whose pages never go into the balloon.
template <class Memory, class Transport, class Wait>
error run_balloon(Memory& memory, Transport& transport, memory_manager& manager,
                  guest_address queues, Wait wait) {
  balloon::driver<Memory, Transport, memory_manager, memory_manager> driver(
      memory, transport, manager, manager, queues);
  for (actions due = driver.start();;) {
    for (std::uint16_t queue = 0; queue < balloon::queue_kind_count; ++queue)
      if (due.notifies(queue)) transport.notify(queue);
    if (due.failure != error::none) return due.failure;
    const interrupt came = due.more_work != 0 ? interrupt::queue : wait();
    if (came == interrupt::none) return error::none;
    due = came == interrupt::config ? driver.on_config_change() : driver.step();
  }
}
// end

struct host {
  bool discard(guest_address, std::uint64_t) noexcept { return true; }
};

} // namespace

int main() {
  static array_memory<64 * 4096> ram;
  memory_manager manager;
  for (std::uint32_t pfn = 1; pfn < 64; ++pfn) manager.free.push({&pfn, 1});

  host back_end;
  balloon::device<array_memory<64 * 4096>, host> device(back_end);
  in_process_transport transport(device, ram);
  const auto wait = [&] {
    actions due = device.set_target(32);
    due |= transport.take_actions();
    for (std::uint64_t queues = due.more_work | transport.take_notified(); queues != 0;) {
      const actions done =
          transport.process(static_cast<std::uint16_t>(std::countr_zero(queues)), 64);
      queues = (queues & (queues - 1)) | done.more_work;
      due |= done;
    }
    if (due.config_changed) return interrupt::config;
    return due.notify_queues != 0 ? interrupt::queue : interrupt::none;
  };
  const error failure = run_balloon(ram, transport, manager, 0, wait);
  std::printf("%zu pages are in the balloon: %s\n", manager.ballooned.count, name(failure));
  return failure == error::none && device.actual() == 32 ? 0 : 1;
}
