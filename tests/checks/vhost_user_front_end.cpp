// SPDX-License-Identifier: BSD-3-Clause
// A guest with our balloon driver, for checks of a vhost-user balloon device that is a process.
//
//     vhost_user_front_end SOCKET MEBIBYTES
//
// Answers each line of standard input with a line:
//
//   begin     connects driver and device           "ok", or what failed
//   touch     writes to every page that is free    "ok"
//   balloon   pages in the balloon                 a number
//   file      bytes the guest's memory takes up    a number
//   zeros     pages of the balloon that are not    a number
//   stress    from now on: stalls, direct scans    "ok"
//   kill      ... and processes out of memory
//   settle N  until the balloon has N pages        "ok", or how many it has after 10 s
//   oom N     takes N pages back                   "ok", or what failed
//   stop      the driver goes                      "ok"
//   raw HEX   sends these bytes                    "closed", or "open" after 0.5 s
//   die       ends without a word
//
// Ends with its input, or with "gone" when the device goes.

#include <ballast/balloon/driver.hpp>

#include "vhost_user_front_end.hpp"

#include <ballast/balloon/statistic_table.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <poll.h>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace checks;
namespace balloon = ballast::balloon;

struct page_stack {
  std::vector<std::uint32_t> pfns;
  std::size_t pop(std::span<std::uint32_t> to) noexcept {
    std::size_t n = 0;
    for (; n < to.size() && !pfns.empty(); pfns.pop_back()) to[n++] = pfns.back();
    return n;
  }
  void push(std::span<const std::uint32_t> from) {
    pfns.insert(pfns.end(), from.begin(), from.end());
  }
};

/// The guest's memory manager.
struct manager {
  page_stack free, ballooned;
  std::uint64_t stressed = 0, killed = 0; ///< how many statistics ago, at most
  bool is_stressed = false, is_killing = false;

  std::size_t take_free(std::span<std::uint32_t> to) noexcept { return free.pop(to); }
  void store(std::span<const std::uint32_t> from) noexcept { ballooned.push(from); }
  std::size_t take_stored(std::span<std::uint32_t> to) noexcept { return ballooned.pop(to); }
  void release(std::span<const std::uint32_t> from) noexcept { free.push(from); }

  /// All tags: that of number i is i + 1 millions, and what stress adds.
  void write(balloon::statistics_writer<std::endian::little>& to) noexcept {
    using enum balloon::statistic_tag;
    stressed += is_stressed;
    killed += is_killing;
    for (const auto& row : balloon::statistic_table) {
      std::uint64_t value = (static_cast<std::uint64_t>(row.tag) + 1) * 1'000'000;
      if (row.tag == oom_kills) value += killed;
      if (row.tag == alloc_stalls) value += 1000 * stressed;
      if (row.tag == direct_scans) value += (std::uint64_t{1} << 30) * stressed;
      if (row.tag == direct_reclaims) value += (std::uint64_t{1} << 20) * stressed;
      (void)to.add(row.tag, value);
    }
  }
};

class guest {
 public:
  using driver = balloon::driver<ballast::mapped_memory, front_end, manager, manager, 256>;

  guest(const char* path, std::uint64_t size)
      : ram_(size), memory_(ram_.accessor()), transport_(path, ram_),
        driver_(memory_, transport_, pages_, pages_, 0,
                {.accepted = driver::supported, .finds_numbering = false}) {
    const auto first = static_cast<std::uint32_t>(driver::memory_bytes / balloon::page_size + 1);
    for (auto pfn = static_cast<std::uint32_t>(size / balloon::page_size); pfn-- > first;)
      pages_.free.pfns.push_back(pfn);
  }

  [[nodiscard]] bool is_connected() const { return transport_.is_connected(); }

  /// Waits for a line, or for so long, and does what the device wants meanwhile. Whether a line is
  /// there; the program ends with the device.
  bool wait(bool is_for_line, int milliseconds) {
    std::vector<pollfd> fds{{transport_.socket(), POLLIN, 0},
                            {transport_.channel(), POLLIN, 0},
                            {is_for_line ? 0 : -1, POLLIN, 0}};
    for (std::size_t i = 0; i < front_end::queues_max; ++i)
      fds.push_back({transport_.used(i), POLLIN, 0});
    (void)poll(fds.data(), fds.size(), milliseconds);
    if (fds[0].revents != 0) {
      std::cout << "gone" << std::endl;
      std::_Exit(3);
    }
    if (fds[1].revents != 0) {
      std::array<std::byte, 12> told{};
      if (::read(transport_.channel(), told.data(), told.size()) == 12)
        carry_out(driver_.on_config_change());
    }
    for (std::size_t i = 3; i < fds.size(); ++i) {
      eventfd_t count = 0;
      if (fds[i].revents != 0 && eventfd_read(fds[i].fd, &count) == 0) carry_out(driver_.step());
    }
    return fds[2].revents != 0;
  }

  std::string answer(const std::string& line) {
    std::istringstream words(line);
    std::string what, argument;
    words >> what >> argument;
    if (what == "begin") return begin();
    if (what == "touch") {
      for (const std::uint32_t pfn : pages_.free.pfns)
        std::memset(ram_.data() + balloon::address_of(pfn), 1, balloon::page_size);
      return "ok";
    }
    if (what == "balloon") return std::to_string(pages_.ballooned.pfns.size());
    if (what == "file") return std::to_string(ram_.allocated());
    if (what == "zeros") return std::to_string(not_zero());
    if (what == "stress") return pages_.is_stressed = true, "ok";
    if (what == "kill") return pages_.is_killing = true, "ok";
    if (what == "settle") return settle(std::strtoull(argument.c_str(), nullptr, 10));
    if (what == "oom") return deflate(std::strtoull(argument.c_str(), nullptr, 10));
    if (what == "stop") return driver_.stop().has_value() ? "ok" : "not stopped";
    if (what == "raw") return send_raw(argument);
    if (what == "die") std::_Exit(0);
    return "what?";
  }

 private:
  std::string begin() {
    transport_.begin();
    carry_out(driver_.start());
    if (!transport_.is_connected()) return "the device refused something";
    return failure_ == ballast::error::none ? "ok" : name(failure_);
  }

  void carry_out(ballast::actions due) {
    while (true) {
      for (std::uint16_t queue = 0; queue < balloon::queue_kind_count; ++queue)
        if (due.notifies(queue)) transport_.notify(queue);
      failure_ = due.failure;
      if (due.failure != ballast::error::none || due.more_work == 0) return;
      due = driver_.step();
    }
  }

  std::string deflate(std::size_t pages) {
    const ballast::actions due = driver_.deflate_on_oom(static_cast<std::uint32_t>(pages));
    if (due.failure != ballast::error::none) return name(due.failure);
    const std::size_t before = driver_.actual();
    carry_out(due);
    return settle(before - pages);
  }

  std::string settle(std::size_t pages) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    const auto is_there = [&] {
      return pages_.ballooned.pfns.size() == pages && driver_.actual() == pages;
    };
    while (!is_there() && std::chrono::steady_clock::now() < end) (void)wait(false, 100);
    return is_there() ? "ok" : std::to_string(driver_.actual());
  }

  /// Read from the file: through the mapping, a hole would be filled.
  [[nodiscard]] std::size_t not_zero() const {
    std::size_t count = 0;
    const std::vector<std::byte> zeros(balloon::page_size);
    std::vector<std::byte> page(balloon::page_size, std::byte{1});
    for (const std::uint32_t pfn : pages_.ballooned.pfns) {
      const auto at = static_cast<off_t>(balloon::address_of(pfn));
      const bool is_read =
          pread(ram_.file(), page.data(), page.size(), at) == static_cast<ssize_t>(page.size());
      count += !is_read || page != zeros;
    }
    return count;
  }

  std::string send_raw(const std::string& hex) {
    std::vector<std::byte> bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
      bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    transport_.send_raw(bytes);
    std::array<char, 4096> rest{};
    pollfd ready{transport_.socket(), POLLIN, 0};
    while (poll(&ready, 1, 500) == 1)
      if (recv(transport_.socket(), rest.data(), rest.size(), 0) <= 0) return "closed";
    return "open";
  }

  shared_memory ram_;
  ballast::mapped_memory memory_;
  front_end transport_;
  manager pages_;
  driver driver_;
  ballast::error failure_ = ballast::error::none;
};

} // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  static guest one(arguments[1], std::strtoull(arguments[2], nullptr, 10) << 20);
  if (!one.is_connected()) {
    std::cout << "no device at " << arguments[1] << std::endl;
    return 1;
  }
  // Not std::getline: what it would read ahead, poll() does not see.
  std::string line;
  while (true) {
    if (!one.wait(true, -1)) continue;
    char c = 0;
    if (::read(0, &c, 1) != 1) return 0;
    if (c != '\n') {
      line += c;
      continue;
    }
    std::cout << one.answer(line) << std::endl;
    line.clear();
  }
}
