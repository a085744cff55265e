// SPDX-License-Identifier: BSD-3-Clause
// Stands in for Linux's header of this name: annotations that only its own checkers read.
#pragma once
#define __must_hold(lock)
#define __acquires(lock)
#define __cond_acquires(lock)
#define __releases(lock)
#define __acquire(lock) ((void)0)
#define __release(lock) ((void)0)
#define __cond_lock(lock, condition) (condition)
