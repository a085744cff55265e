// SPDX-License-Identifier: BSD-3-Clause
// Takes memory and uses it: what a guest does that needs more than it has. Runs in the guest.
//
//     hog MIB [SECONDS]
//
// Writes to each page, reads all of them back, holds them for some seconds and says so.

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char** argv) {
  const size_t page = 4096, size = argc > 1 ? strtoul(argv[1], NULL, 10) << 20 : 0;
  // More than there is may be asked for.
  volatile unsigned char* at =
      mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  size_t wrong = 0;
  if (size == 0 || at == MAP_FAILED) return 2;
  for (size_t i = 0; i < size; i += page) {
    wrong += at[i] != 0; // a fresh page
    at[i] = (unsigned char)(i / page % 251 + 1);
  }
  for (size_t i = 0; i < size; i += page) wrong += at[i] != i / page % 251 + 1;
  printf("touched %zu MiB, %zu pages wrong\n", size >> 20, wrong);
  fflush(stdout);
  if (argc > 2) sleep((unsigned)atoi(argv[2]));
  return wrong != 0;
}
