// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// What every ring is to the measurement (main.cpp): its two sides, each of which moves several
// buffers of 64 bytes in one call. Buffers are not touched. One program per ring.

#ifdef __cplusplus
extern "C" {
#endif

enum { peer_queue_size = 256, peer_buffer_bytes = 64 };

// Both return 0. The device starts last, and finds the areas of a virtqueue by peer_areas().
int driver_start(void);
int device_start(void);
// Descriptor area, driver area, device area; only where the halves are of different makers.
void peer_areas(unsigned long long areas[3]);

unsigned driver_room(void);
// There is room for them. `asks`: also asks whether to notify.
void driver_add(unsigned batch, int asks);
// Takes and returns up to `batch`; how many there were.
unsigned device_consume(unsigned batch, int asks);
// Takes back up to `batch`; how many there were.
unsigned driver_reclaim(unsigned batch);
// What should not have happened, on both sides.
unsigned long driver_failures(void);
unsigned long device_failures(void);

#ifdef __cplusplus
}
#endif
