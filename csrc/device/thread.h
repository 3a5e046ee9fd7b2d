// Which thread of the block this is.
#pragma once

#include "device/platform.h"

namespace conan_fast {

// threadIdx.x of a one-dimensional block, read where it is asked for: what is made from it (places in tiles, rows,
// columns) is then made where it is used and not kept in registers all through a loop. On the GPU mov.u32 %tid.x.
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
