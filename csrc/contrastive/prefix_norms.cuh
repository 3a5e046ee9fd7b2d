// 1 / |x[:d]| of every vector and prefix. One warp per vector; each element is read once.
#pragma once

#include "contrastive/elements.cuh"
#include "contrastive/params.h"
#include "device/thread.h"
#include "device/warp.h"

namespace conan_fast {

constexpr int kNormThreads = 128;

// 0 for a zero vector, which makes its cosine with any vector 0.
__device__ inline float inverse_norm(float squared) { return squared == 0.0f ? 0.0f : 1.0f / sqrtf(squared); }

// Writes [prefixes][norm_stride], 0 for padding rows.
template <class Format>
__global__ void __launch_bounds__(kNormThreads)
    prefix_norms(const __grid_constant__ Vectors vectors, const __grid_constant__ Prefixes prefixes, float* out) {
  using Type = typename Elements<Format>::Type;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kNormThreads / kWarpSize) + warp_index();
  if (row >= vectors.norm_stride) return;
  const Type* x = static_cast<const Type*>(vectors.data) + row * vectors.stride;
  const int lane = lane_index();
  float squared = 0.0f;
  for (int m = 0, low = 0; m < prefixes.count; low = prefixes.dims[m], ++m) {
    float part = 0.0f;
    for (int column = low + lane * 8; row < vectors.rows && column < prefixes.dims[m]; column += kWarpSize * 8) {
      float elements[8];
      Elements<Format>::load8(x + column, elements);
#pragma unroll
      for (float element : elements) part = fmaf(element, element, part);
    }
    squared += warp_sum(part);
    if (lane == 0) out[m * vectors.norm_stride + row] = inverse_norm(squared);
  }
}

}  // namespace conan_fast
