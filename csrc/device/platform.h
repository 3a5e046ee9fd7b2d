// The CUDA names, from CUDA or from the CPU emulation. Kernels include this header, never one of theirs.
#pragma once

#include <cstdint>

#if defined(CONAN_FAST_EMULATED)
#include "emulation/cuda_names.h"
#include "emulation/emulation.h"
#else
#include <cuda_runtime.h>
#endif

namespace conan_fast {

constexpr int kWarpSize = 32;

// extern __shared__: the block's dynamic shared memory, aligned to at least 16 bytes.
__device__ inline unsigned char* dynamic_shared_memory() {
#if defined(CONAN_FAST_EMULATED)
  return static_cast<unsigned char*>(emulation::dynamic_shared_memory());
#else
  extern __shared__ __align__(128) unsigned char conan_fast_dynamic_shared[];
  return conan_fast_dynamic_shared;
#endif
}

}  // namespace conan_fast
