// The gradient of a vector from its GEMM result: subtracts the norm's part, scales, converts the dtype.
#pragma once

#include "contrastive/elements.cuh"
#include "contrastive/params.h"
#include "device/thread.h"

namespace conan_fast {

constexpr int kFinishThreads = 128, kFinishChunks = kMaxFeatures / 8 / kFinishThreads;

// out = (product scale - x norm_part) row_scale; columns past the last prefix become 0. One block per row, which reads
// the whole row before it writes, so `out` may be the memory of `product`, in either dtype.
template <class Format, class Out>
__global__ void __launch_bounds__(kFinishThreads) finish_gradient(const __grid_constant__ FinishParams p) {
  const int64_t row = blockIdx.x;
  const float scale = *p.scale, row_scale = p.row_scale == nullptr ? 1.0f : p.row_scale[row];
  const auto* vector = static_cast<const typename Elements<Format>::Type*>(p.vectors.data) + row * p.vectors.stride;
  auto* out = static_cast<typename Elements<Out>::Type*>(p.out) + row * p.out_stride;
  float grad[kFinishChunks][8] = {};
#pragma unroll
  for (int i = 0; i < kFinishChunks; ++i) {
    const int chunk = thread_index() + i * kFinishThreads, m = p.prefixes.of_column(chunk * 8);
    if (chunk >= p.chunks || m >= p.prefixes.count) continue;
    float x[8];
    Elements<Fp32>::load8(p.product + row * p.product_stride + chunk * 8, grad[i]);
    Elements<Format>::load8(vector + chunk * 8, x);
    const float norm_part = p.norm_part[m * p.norm_part_stride + row];
#pragma unroll
    for (int c = 0; c < 8; ++c) grad[i][c] = fmaf(grad[i][c], scale, -x[c] * norm_part) * row_scale;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kFinishChunks; ++i) {
    const int chunk = thread_index() + i * kFinishThreads;
    if (chunk < p.chunks) Elements<Out>::store8(out + chunk * 8, grad[i]);
  }
}

}  // namespace conan_fast
