// Reductions over lanes: the 4 that share a row of an mma accumulator, or all 32.
#pragma once

#include "device/platform.h"

namespace conan_fast {

// Over the lanes 4g..4g+3 (shfl.sync.bfly). Each of them gets the result.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Over the warp. Each lane gets the result.
__device__ inline float warp_max(float x) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

__device__ inline float warp_sum(float x) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

}  // namespace conan_fast
