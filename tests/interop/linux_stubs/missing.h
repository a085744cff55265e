// SPDX-License-Identifier: BSD-3-Clause
// What some releases of Linux's tools/virtio forget to define; included before everything else.
#define MODULE_DESCRIPTION(text) _Static_assert(1, "")
#define data_race(expression) (expression)

// Linux's kmalloc() is told to give zeroes and is malloc() here, which does not.
#include <stdlib.h>
#define malloc(size) calloc(1, size)
