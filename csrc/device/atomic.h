// Atomic sums in global memory.
#pragma once

#include "device/platform.h"

namespace conan_fast {

// red.global.add.v2.f32 on Hopper and newer, else red.global.add.f32 twice. `address` must be aligned to 8.
__device__ inline void atomic_add_pair(float* address, float first, float second) {
#if !defined(CONAN_FAST_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float2*>(address), make_float2(first, second));
#else
  atomicAdd(address, first);
  atomicAdd(address + 1, second);
#endif
}

}  // namespace conan_fast
