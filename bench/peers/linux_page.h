// SPDX-License-Identifier: BSD-3-Clause
// Included before everything else: in the kernel the size of a page is a constant, where Linux's
// tools/virtio asks the C library for each buffer.
#include <linux/kernel.h>
#undef PAGE_SIZE
#define PAGE_SIZE 4096
