// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/virtio/actions.hpp>

#include <cstdint>

namespace ballast_test {

/// The registers of a device in the same process, as a `register_region`; what the accesses ask for
/// is collected for the device's side.
template <class Bus> struct bus_region {
  Bus* bus = nullptr;
  ballast::actions* due = nullptr;

  template <ballast::wire_integer T> constexpr T load(std::uint64_t offset) noexcept {
    return static_cast<T>(bus->read(offset, sizeof(T)));
  }
  template <ballast::wire_integer T> constexpr void store(std::uint64_t offset, T value) noexcept {
    *due |= bus->write(offset, sizeof(T), value);
  }
};

} // namespace ballast_test
