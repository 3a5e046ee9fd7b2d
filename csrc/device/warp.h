// Reductions among the lanes that share a row of an mma accumulator.
#pragma once

#include "device/platform.h"

namespace conan_fast {

// Over the 4 lanes 4g..4g+3 (shfl.sync.bfly); every one of them gets the result.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace conan_fast
