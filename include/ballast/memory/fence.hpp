// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace ballast {

/// Whether this translation unit is built with ThreadSanitizer. Then the plain words of mapped and
/// direct memory are ordinary accesses, so that a missing acquire or release is a reported race;
/// otherwise they are relaxed atomics, so that a hostile peer causes wrong values and no more.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool is_race_checked = true;
#elif defined(__has_feature)
inline constexpr bool is_race_checked = __has_feature(thread_sanitizer);
#else
inline constexpr bool is_race_checked = false;
#endif

/// Orders every earlier store before every later load, between CPUs that share coherent memory.
///
/// Spec: "Available Buffer Notification Suppression", "Used Buffer Notification Suppression";
/// Linux: smp_mb() in virtio_mb().
inline void full_fence() noexcept {
  // A locked add of 0 is a full barrier and half the price of the mfence that clang makes of the
  // C++ fence. It lies below the red zone, where nothing waits in a store buffer.
#if defined(__x86_64__)
  asm volatile("lock addl $0, -132(%%rsp)" ::: "memory", "cc");
#elif defined(__i386__)
  asm volatile("lock addl $0, -132(%%esp)" ::: "memory", "cc");
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

} // namespace ballast
