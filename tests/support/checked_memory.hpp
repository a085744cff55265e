// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/endian.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast_test {

/// What a record found wrong; `what` is null where nothing was.
struct access_fault {
  const char* what = nullptr;
  ballast::guest_address address = 0;
  ballast::word_class before; ///< how the word was used before, or should be used
  ballast::word_class now;

  constexpr explicit operator bool() const noexcept { return what != nullptr; }
};

/// Every ring word that was used through a `checked_memory`, by guest address: one record for all
/// accessors of a test, so that both sides are held to the same widths and classes.
///
///     access_record<4096> record;                  // covers [0, 4096)
///     checked_memory driver_ram(ram, record), device_ram(ram, record);
///     ...
///     check(!record.fault() && !record.double_fetch());
///     check(!record.compare(split_words(layouts)) && record.words() > 0);
template <std::size_t Bytes> class access_record {
 public:
  constexpr explicit access_record(ballast::guest_address base = 0) noexcept : base_(base) {}

  /// The first access with another width or class than before, misaligned, straddling, with an
  /// order that a load or store cannot have, or outside of the record.
  [[nodiscard]] constexpr const access_fault& fault() const noexcept { return fault_; }

  /// The first plain word that was loaded twice without a store in between. Not a fault by itself:
  /// means something only where every store of both sides goes through the record.
  [[nodiscard]] constexpr const access_fault& double_fetch() const noexcept {
    return double_fetch_;
  }

  /// How many different words were used.
  [[nodiscard]] constexpr std::size_t words() const noexcept { return words_; }

  /// How the word that starts at `address` was used; width 0 if it was not.
  [[nodiscard]] constexpr ballast::word_class at(ballast::guest_address address) const noexcept {
    return covers(address, 1) && bytes_[address - base_].position == 0
               ? bytes_[address - base_].used
               : ballast::word_class{};
  }

  /// The first recorded word that is not what `expected(address)` says.
  template <class F> [[nodiscard]] constexpr access_fault compare(F expected) const noexcept {
    for (std::size_t i = 0; i < Bytes; ++i) {
      if (bytes_[i].used.width == 0 || bytes_[i].position != 0) continue;
      const ballast::word_class is = expected(base_ + i);
      if (is != bytes_[i].used)
        return {"word differs from the layout", base_ + i, is, bytes_[i].used};
    }
    return {};
  }

  constexpr void load(ballast::guest_address address, std::uint8_t width,
                      ballast::order o) noexcept {
    const ballast::word_class now{width, o != ballast::order::plain};
    if (o == ballast::order::release) return fail("load with order release", address, {}, now);
    if (!use(address, now)) return;
    byte& first = bytes_[address - base_];
    if (first.is_loaded && !now.is_atomic && !double_fetch_)
      double_fetch_ = {"plain word loaded twice", address, first.used, now};
    first.is_loaded = true;
  }

  constexpr void store(ballast::guest_address address, std::uint8_t width,
                       ballast::order o) noexcept {
    const ballast::word_class now{width, o != ballast::order::plain};
    if (o == ballast::order::acquire) return fail("store with order acquire", address, {}, now);
    if (use(address, now)) bytes_[address - base_].is_loaded = false;
  }

  /// A payload copy, which must not touch what is known as a ring word.
  constexpr void copy(ballast::guest_address address, std::uint64_t size) noexcept {
    for (std::uint64_t i = 0; i < size; ++i)
      if (covers(address + i, 1) && bytes_[address + i - base_].used.width != 0)
        return fail("payload copy touches a ring word", address + i,
                    bytes_[address + i - base_].used, {});
  }

 private:
  struct byte {
    ballast::word_class used;
    std::uint8_t position = 0; ///< of this byte in its word
    bool is_loaded = false;    ///< since the last store; in the word's first byte
  };

  [[nodiscard]] constexpr bool covers(ballast::guest_address address,
                                      std::uint64_t size) const noexcept {
    return address >= base_ && address - base_ < Bytes && size <= Bytes - (address - base_);
  }

  constexpr void fail(const char* what, ballast::guest_address address, ballast::word_class before,
                      ballast::word_class now) noexcept {
    if (!fault_) fault_ = {what, address, before, now};
  }

  constexpr bool use(ballast::guest_address address, ballast::word_class now) noexcept {
    if (!covers(address, now.width))
      return fail("word outside of the record", address, {}, now), false;
    if (address % now.width != 0) return fail("misaligned word", address, {}, now), false;
    byte* const bytes = bytes_ + (address - base_);
    if (bytes[0].used == now && bytes[0].position == 0) return true;
    for (std::uint8_t i = 0; i < now.width; ++i) {
      if (bytes[i].used.width == 0) continue;
      const ballast::word_class before = bytes[i].used;
      const bool is_same_word = bytes[i].position == 0 && i == 0 && before.width == now.width;
      return fail(is_same_word ? "word used plain and atomic" : "word used with two widths",
                  address + i - bytes[i].position, before, now),
             false;
    }
    for (std::uint8_t i = 0; i < now.width; ++i) bytes[i] = {now, i, false};
    ++words_;
    return true;
  }

  ballast::guest_address base_;
  access_fault fault_;
  access_fault double_fetch_;
  std::size_t words_ = 0;
  byte bytes_[Bytes]{};
};

/// What `split::word_at` says of an address, over all of `layouts`; for `access_record::compare`.
[[nodiscard]] constexpr auto split_words(std::span<const ballast::queue_layout> layouts) noexcept {
  return [layouts](ballast::guest_address address) noexcept {
    namespace split = ballast::split;
    for (const ballast::queue_layout& at : layouts) {
      const auto in = [&](ballast::guest_address start, std::uint32_t bytes) {
        return address >= start && address - start < bytes;
      };
      const auto word = [&](split::part p, ballast::guest_address start) {
        return split::word_at(p, at.size, static_cast<std::uint32_t>(address - start));
      };
      if (in(at.descriptor_area, split::descriptor_table_bytes(at.size)))
        return word(split::part::descriptor_table, at.descriptor_area);
      if (in(at.driver_area, split::available_ring_bytes(at.size)))
        return word(split::part::available_ring, at.driver_area);
      if (in(at.device_area, split::used_ring_bytes(at.size)))
        return word(split::part::used_ring, at.device_area);
    }
    return ballast::word_class{};
  };
}

/// The same for `packed::word_at`.
[[nodiscard]] constexpr auto packed_words(std::span<const ballast::queue_layout> layouts) noexcept {
  return [layouts](ballast::guest_address address) noexcept {
    namespace packed = ballast::packed;
    for (const ballast::queue_layout& at : layouts) {
      const auto in = [&](ballast::guest_address start, std::uint32_t bytes) {
        return address >= start && address - start < bytes;
      };
      const auto word = [&](packed::part p, ballast::guest_address start) {
        return packed::word_at(p, at.size, static_cast<std::uint32_t>(address - start));
      };
      if (in(at.descriptor_area, packed::descriptor_ring_bytes(at.size)))
        return word(packed::part::descriptor_ring, at.descriptor_area);
      if (in(at.driver_area, packed::event_size))
        return word(packed::part::driver_event, at.driver_area);
      if (in(at.device_area, packed::event_size))
        return word(packed::part::device_event, at.device_area);
    }
    return ballast::word_class{};
  };
}

/// Another accessor, with every ring word that is used through it entered into a record. Accesses
/// that the record refuses are still made. Refers to both; copies share them.
template <ballast::guest_memory M, std::size_t Bytes> class checked_memory {
 public:
  class window_type {
   public:
    constexpr window_type() noexcept = default;
    constexpr window_type(ballast::window_of<M> inner, access_record<Bytes>* record,
                          ballast::guest_address start) noexcept
        : inner_(inner), record_(record), start_(start) {}

    template <ballast::wire_integer T>
    [[nodiscard]] constexpr T load(std::size_t offset, ballast::order o) const noexcept {
      record_->load(start_ + offset, sizeof(T), o);
      return inner_.template load<T>(offset, o);
    }

    template <ballast::wire_integer T>
    constexpr void store(std::size_t offset, T value, ballast::order o) noexcept {
      record_->store(start_ + offset, sizeof(T), o);
      inner_.template store<T>(offset, value, o);
    }

   private:
    ballast::window_of<M> inner_{};
    access_record<Bytes>* record_ = nullptr;
    ballast::guest_address start_ = 0;
  };

  constexpr checked_memory(M& inner, access_record<Bytes>& record) noexcept
      : inner_(&inner), record_(&record) {}

  [[nodiscard]] constexpr ballast::result<window_type> window(ballast::guest_address address,
                                                              std::uint64_t size,
                                                              std::size_t alignment,
                                                              ballast::access kind) noexcept {
    const auto inner = inner_->window(address, size, alignment, kind);
    if (!inner) return inner.error();
    return window_type(*inner, record_, address);
  }

  [[nodiscard]] constexpr ballast::memory_segment
  segment(ballast::guest_address address, std::uint64_t size, ballast::access kind) noexcept {
    return inner_->segment(address, size, kind);
  }

  [[nodiscard]] constexpr bool read(ballast::guest_address address,
                                    std::span<std::byte> to) noexcept {
    record_->copy(address, to.size());
    return inner_->read(address, to);
  }

  [[nodiscard]] constexpr bool write(ballast::guest_address address,
                                     std::span<const std::byte> from) noexcept {
    record_->copy(address, from.size());
    return inner_->write(address, from);
  }

  [[nodiscard]] constexpr bool good() noexcept { return inner_->good(); }
  constexpr void fence() noexcept { inner_->fence(); }

 private:
  M* inner_;
  access_record<Bytes>* record_;
};

} // namespace ballast_test
