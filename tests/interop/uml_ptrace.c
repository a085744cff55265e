// SPDX-License-Identifier: BSD-3-Clause
// ptrace() for User-Mode Linux before 6.13 on processors with more state than it knows, to be
// preloaded. Its buffer for the extended registers has 2696 bytes; the kernel below takes a
// process' state only whole, and with AMX that is some 11000. So what is set is filled up here,
// without the components that lie beyond what UML keeps.

#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { peek_first = 1, peek_last = 3, get_register_set = 0x4204, set_register_set = 0x4205 };
enum { extended_state = 0x202, components_offset = 512, state_max = 1 << 16 };

static unsigned char state[state_max] __attribute__((aligned(64))); // UML is one thread

static long call(long request, long pid, long address, void* data) {
  return syscall(SYS_ptrace, request, pid, address, data);
}

/// The components of the extended state that end within `size` bytes; the first two always do.
static uint64_t components_within(size_t size) {
  uint64_t fitting = 3;
  for (unsigned i = 2; i < 63; ++i) {
    unsigned length = 0, offset = 0, flags = 0, reserved = 0;
    __cpuid_count(0xd, i, length, offset, flags, reserved);
    if (length != 0 && offset != 0 && offset + length <= size) fitting |= UINT64_C(1) << i;
  }
  return fitting;
}

static long set_extended_state(long pid, const struct iovec* from) {
  struct iovec whole = {state, sizeof(state)};
  if (call(get_register_set, pid, extended_state, &whole) != 0 || from->iov_len >= whole.iov_len)
    return call(set_register_set, pid, extended_state, (void*)from);
  memset(state, 0, whole.iov_len);
  memcpy(state, from->iov_base, from->iov_len);
  uint64_t components = 0;
  memcpy(&components, state + components_offset, sizeof(components));
  components &= components_within(from->iov_len);
  memcpy(state + components_offset, &components, sizeof(components));
  return call(set_register_set, pid, extended_state, &whole);
}

long ptrace(int request, ...) {
  va_list arguments;
  va_start(arguments, request);
  const long pid = va_arg(arguments, int);
  const long address = va_arg(arguments, long);
  void* const data = va_arg(arguments, void*);
  va_end(arguments);
  if (request == set_register_set && address == extended_state)
    return set_extended_state(pid, data);
  if (request < peek_first || request > peek_last) return call(request, pid, address, data);
  long value = 0; // the library's peek returns it, the system call stores it
  if (call(request, pid, address, &value) < 0) return -1;
  errno = 0;
  return value;
}
