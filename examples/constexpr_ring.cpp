// SPDX-License-Identifier: BSD-3-Clause
//
// A whole exchange over a virtqueue while compiling: what would leave memory, overflow or read
// something unset does not compile.

#include <ballast/ballast.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>

using namespace ballast;

namespace {

constexpr std::uint32_t queue_size = 4;
constexpr guest_address request = 0x800, response = 0x900;
using ram_type = array_memory<4096>;

/// The device: answers a request with its bytes in reverse.
constexpr disposition serve(ram_type& ram, const chain& c) {
  std::array<std::byte, 8> bytes{};
  const auto read = buffer_reader(ram, c.readable()).read(bytes);
  if (!read || c.writable().empty() || c.writable()[0].length < *read) return used(0);
  for (std::size_t i = 0; i < *read / 2; ++i) {
    const std::byte first = bytes[i];
    bytes[i] = bytes[*read - 1 - i];
    bytes[*read - 1 - i] = first;
  }
  const bool is_written = ram.write(c.writable()[0].address, std::span(bytes).first(*read));
  return used(is_written ? static_cast<std::uint32_t>(*read) : 0);
}

/// Sends "stressed" in two pieces, through an indirect table; what comes back.
constexpr std::array<char, 9> exchange() {
  ram_type ram;
  const queue_layout layout = split::place(0, queue_size).layout;
  const feature_set features{feature::version_1, feature::event_idx, feature::indirect_desc};
  std::array<driver_slot, queue_size> slots{};
  device_queue_storage<queue_size> storage;
  split_driver<ram_type> driver(slots);
  split_device<ram_type> device(storage);
  if (!driver.start(ram, layout, features, 65534, {.address = 0x400, .entries = 3})) return {};
  if (!device.start(ram, layout, features, 65534)) return {};

  const char text[] = "stressed";
  std::array<std::byte, 8> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(text[i]);
  std::array<char, 9> answer{};
  for (std::uint64_t round = 0; round < 3; ++round) { // over the wrap of the 16-bit index
    if (!ram.write(request, bytes)) return {};
    const buffer out[] = {{request, 3}, {request + 3, 5}}, in[] = {{response, 8}};
    if (!driver.add(out, in, round) || !driver.publish_and_ask()) return {};
    const auto done = device.consume(8, [&](const chain& c) { return serve(ram, c); });
    if (!done || done->chains != 1 || !device.publish_and_ask()) return {};
    if (device.enable_notifications()) return {};
    const auto returned = driver.pop_used();
    if (!returned || returned->token != round || returned->length != 8) return {};
    if (driver.enable_notifications()) return {};
    if (!ram.read(response, bytes)) return {};
    for (std::size_t i = 0; i < bytes.size(); ++i) answer[i] = static_cast<char>(bytes[i]);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(text[i]);
  }
  return answer;
}

constexpr std::array<char, 9> answer = exchange();
static_assert(answer[0] == 'd' && answer[1] == 'e' && answer[6] == 't' && answer[7] == 's');

} // namespace

int main() {
  std::printf("stressed, sent to a device while compiling, came back as %s\n", answer.data());
  return 0;
}
