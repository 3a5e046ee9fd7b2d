// The index of the thread in its block.
#pragma once

#include "device/platform.h"

namespace conan_fast {

// threadIdx.x of a one-dimensional block (mov.u32 %tid.x), read anew in each call: offsets, rows and columns that
// follow from it are then recomputed where they are used and not kept in registers throughout a loop.
__device__ inline int thread_index() {
#if defined(CONAN_FAST_EMULATED)
  return static_cast<int>(threadIdx.x);
#else
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  __builtin_assume(index >= 0 && index < 1024);
  return index;
#endif
}

__device__ inline int lane_index() { return thread_index() % kWarpSize; }
__device__ inline int warp_index() { return thread_index() / kWarpSize; }

}  // namespace conan_fast
