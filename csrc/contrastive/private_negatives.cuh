// Hard negatives that are candidates of their own query only. No two queries share one, so there is no GEMM. Forward
// and backward read each negative once and are memory bound.
#pragma once

#include "contrastive/elements.cuh"
#include "contrastive/params.h"
#include "contrastive/prefix_norms.cuh"

namespace conan_fast {

constexpr int kPrivateThreads = 128;

// Scores and inverse norms; equal ids mask a negative. One warp per pair of query and negative.
template <class Format>
__global__ void __launch_bounds__(kPrivateThreads) private_scores(const __grid_constant__ PrivateParams p) {
  using Type = typename Elements<Format>::Type;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * (kPrivateThreads / kWarpSize) + warp_index();
  const int64_t pairs = static_cast<int64_t>(p.queries.rows) * p.count, row = pair / p.count;
  if (pair >= pairs) return;
  const int lane = lane_index();
  const Type* query = static_cast<const Type*>(p.queries.data) + row * p.queries.stride;
  const Type* negative = static_cast<const Type*>(p.negatives.data) + pair * p.negatives.stride;
  const bool masked =
      p.queries.ids != nullptr && p.negatives.ids != nullptr && p.queries.ids[row] == p.negatives.ids[pair];
  const float scale = p.temperature == nullptr ? 1.0f : kLog2E / *p.temperature;
  float dot = 0.0f, squared = 0.0f;
  for (int m = 0, low = 0; m < p.prefixes.count; low = p.prefixes.dims[m], ++m) {
    float dot_part = 0.0f, squared_part = 0.0f;
    for (int column = low + lane * 8; column < p.prefixes.dims[m]; column += kWarpSize * 8) {
      float q[8], c[8];
      Elements<Format>::load8(query + column, q);
      Elements<Format>::load8(negative + column, c);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        dot_part = fmaf(q[i], c[i], dot_part);
        squared_part = fmaf(c[i], c[i], squared_part);
      }
    }
    dot += warp_sum(dot_part);
    squared += warp_sum(squared_part);
    if (lane != 0) continue;
    const float norm = inverse_norm(squared);
    const float query_norm = p.queries.inverse_norms[m * p.queries.norm_stride + row];
    p.scores[m * pairs + pair] = masked ? kMasked : dot * query_norm * norm * scale;
    if (p.inverse_norms != nullptr) p.inverse_norms[m * pairs + pair] = norm;
  }
}

// Gradients of a row's negatives; adds their part to the query's `product`. One block per row.
template <class Format, class Out>
__global__ void __launch_bounds__(kPrivateThreads) private_gradients(const __grid_constant__ PrivateParams p) {
  using Type = typename Elements<Format>::Type;
  const int64_t row = blockIdx.x, pairs = static_cast<int64_t>(p.queries.rows) * p.count;
  const float scale = *p.scale;
  const Type* query = static_cast<const Type*>(p.queries.data) + row * p.queries.stride;
  for (int chunk = thread_index(); chunk < p.chunks; chunk += kPrivateThreads) {
    const int m = p.prefixes.of_column(chunk * 8);
    const bool inside = m < p.prefixes.count;
    float q[8] = {}, product[8] = {};
    if (inside) {
      Elements<Format>::load8(query + chunk * 8, q);
      Elements<Fp32>::load8(p.product + row * p.product_stride + chunk * 8, product);
    }
    for (int64_t pair = row * p.count; pair < (row + 1) * p.count; ++pair) {
      float grad[8] = {};
      if (inside) {
        float c[8];
        Elements<Format>::load8(static_cast<const Type*>(p.negatives.data) + pair * p.negatives.stride + chunk * 8, c);
        const float weight = p.weights[m * pairs + pair], norm_part = p.norm_part[m * pairs + pair];
        const float row_scale = p.row_scale == nullptr ? 1.0f : p.row_scale[pair];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          grad[i] = fmaf(weight * scale, q[i], -norm_part * c[i]) * row_scale;
          product[i] = fmaf(weight, c[i], product[i]);
        }
      }
      Elements<Out>::store8(static_cast<typename Elements<Out>::Type*>(p.out) + pair * p.out_stride + chunk * 8, grad);
    }
    if (inside) Elements<Fp32>::store8(p.product + row * p.product_stride + chunk * 8, product);
  }
}

}  // namespace conan_fast
