// SPDX-License-Identifier: BSD-3-Clause
// Not a test program: tests/codegen.sh compiles it and reads the assembly. The name of a function
// says what it must become: one load or one store, and one byte swap if it says "swapped".
#include <ballast/endian.hpp>
#include <ballast/memory/direct_memory.hpp>
#include <ballast/memory/mapped_memory.hpp>

#include <bit>
#include <cstdint>

using namespace ballast;

namespace {
constexpr std::endian native = std::endian::native;
constexpr std::endian foreign =
    native == std::endian::little ? std::endian::big : std::endian::little;
template <class T> using native_word = word<T, native>;
template <class T> using foreign_word = word<T, foreign>;
} // namespace

// The bytes that a member at an odd offset has: the wire types have alignment 1.
extern "C" {

std::uint16_t load_word_16(const char* at) {
  return *reinterpret_cast<const native_word<std::uint16_t>*>(at + 3);
}
std::uint32_t load_word_32(const char* at) {
  return *reinterpret_cast<const native_word<std::uint32_t>*>(at + 3);
}
std::uint64_t load_word_64(const char* at) {
  return *reinterpret_cast<const native_word<std::uint64_t>*>(at + 3);
}
std::uint16_t load_swapped_word_16(const char* at) {
  return *reinterpret_cast<const foreign_word<std::uint16_t>*>(at + 3);
}
std::uint32_t load_swapped_word_32(const char* at) {
  return *reinterpret_cast<const foreign_word<std::uint32_t>*>(at + 3);
}
std::uint64_t load_swapped_word_64(const char* at) {
  return *reinterpret_cast<const foreign_word<std::uint64_t>*>(at + 3);
}
void store_word_16(char* at, std::uint16_t value) {
  *reinterpret_cast<native_word<std::uint16_t>*>(at + 3) = value;
}
void store_word_32(char* at, std::uint32_t value) {
  *reinterpret_cast<native_word<std::uint32_t>*>(at + 3) = value;
}
void store_word_64(char* at, std::uint64_t value) {
  *reinterpret_cast<native_word<std::uint64_t>*>(at + 3) = value;
}
void store_swapped_word_16(char* at, std::uint16_t value) {
  *reinterpret_cast<foreign_word<std::uint16_t>*>(at + 3) = value;
}
void store_swapped_word_32(char* at, std::uint32_t value) {
  *reinterpret_cast<foreign_word<std::uint32_t>*>(at + 3) = value;
}
void store_swapped_word_64(char* at, std::uint64_t value) {
  *reinterpret_cast<foreign_word<std::uint64_t>*>(at + 3) = value;
}

// Ring words: every order that the rings use is free on x86-64.
std::uint16_t load_mapped_acquire_16(mapped_memory::window_type w) {
  return w.load<std::uint16_t>(2, order::acquire);
}
std::uint32_t load_mapped_plain_32(mapped_memory::window_type w) {
  return w.load<std::uint32_t>(4, order::plain);
}
std::uint64_t load_mapped_plain_64(mapped_memory::window_type w) {
  return w.load<std::uint64_t>(8, order::plain);
}
std::uint64_t load_mapped_acquire_64(mapped_memory::window_type w) {
  return w.load<std::uint64_t>(8, order::acquire);
}
void store_mapped_release_16(mapped_memory::window_type w, std::uint16_t value) {
  w.store<std::uint16_t>(2, value, order::release);
}
void store_mapped_plain_32(mapped_memory::window_type w, std::uint32_t value) {
  w.store<std::uint32_t>(4, value, order::plain);
}
void store_mapped_plain_64(mapped_memory::window_type w, std::uint64_t value) {
  w.store<std::uint64_t>(8, value, order::plain);
}
void store_mapped_release_64(mapped_memory::window_type w, std::uint64_t value) {
  w.store<std::uint64_t>(8, value, order::release);
}
std::uint16_t load_direct_acquire_16(direct_memory::window_type w) {
  return w.load<std::uint16_t>(2, order::acquire);
}
std::uint32_t load_direct_plain_32(direct_memory::window_type w) {
  return w.load<std::uint32_t>(4, order::plain);
}
std::uint64_t load_direct_plain_64(direct_memory::window_type w) {
  return w.load<std::uint64_t>(8, order::plain);
}
void store_direct_release_16(direct_memory::window_type w, std::uint16_t value) {
  w.store<std::uint16_t>(2, value, order::release);
}
void store_direct_plain_32(direct_memory::window_type w, std::uint32_t value) {
  w.store<std::uint32_t>(4, value, order::plain);
}
void store_direct_release_64(direct_memory::window_type w, std::uint64_t value) {
  w.store<std::uint64_t>(8, value, order::release);
}
}
