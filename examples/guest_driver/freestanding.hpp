// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// What a program needs that has neither a C library nor a kernel's start-up code: the functions
// that a compiler may call, and where it begins. It ends with Linux's exit, so that it can be run.

#include <cstddef>

extern "C" {

// The empty asm keeps the compiler from making a call of memcpy out of memcpy's own loop.
void* memcpy(void* to, const void* from, std::size_t size) {
  auto* const t = static_cast<unsigned char*>(to);
  const auto* const f = static_cast<const unsigned char*>(from);
  for (std::size_t i = 0; i < size; ++i) {
    t[i] = f[i];
    asm volatile("");
  }
  return to;
}
void* memmove(void* to, const void* from, std::size_t size) {
  auto* const t = static_cast<unsigned char*>(to);
  const auto* const f = static_cast<const unsigned char*>(from);
  if (t <= f) return memcpy(to, from, size);
  for (std::size_t i = size; i-- > 0;) {
    t[i] = f[i];
    asm volatile("");
  }
  return to;
}
void* memset(void* to, int value, std::size_t size) {
  auto* const t = static_cast<unsigned char*>(to);
  for (std::size_t i = 0; i < size; ++i) {
    t[i] = static_cast<unsigned char>(value);
    asm volatile("");
  }
  return to;
}
int memcmp(const void* a, const void* b, std::size_t size) {
  const auto* const x = static_cast<const unsigned char*>(a);
  const auto* const y = static_cast<const unsigned char*>(b);
  for (std::size_t i = 0; i < size; ++i)
    if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
  return 0;
}
std::size_t strlen(const char* text) {
  std::size_t n = 0;
  while (text[n] != 0) {
    ++n;
    asm volatile("");
  }
  return n;
}
// g++'s std::popcount where the machine has no such instruction for certain; else from libgcc.
int __popcountdi2(unsigned long value) {
  int n = 0;
  for (; value != 0; value &= value - 1) ++n;
  return n;
}

int guest_main();
}

#if defined(__x86_64__)
asm(".globl _start\n"
    "_start: xor %ebp, %ebp\n"
    "  and $-16, %rsp\n"
    "  call guest_main\n"
    "  mov %eax, %edi\n"
    "  mov $231, %eax\n" // exit_group
    "  syscall\n");
#elif defined(__aarch64__)
asm(".globl _start\n"
    "_start: bl guest_main\n"
    "  mov x8, #94\n" // exit_group
    "  svc #0\n");
#else
#error "how a program begins and ends on this machine is not known here"
#endif
