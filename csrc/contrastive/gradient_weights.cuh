// The operands H_m of the gradient GEMMs from the weights of all prefixes, and the candidates' part of the norms.
//
// With P^d = 2^(s - logsumexp), minus 1 at the own positive, and G^d = w_d P^d:
//   H_m = sum over d >= m of G^d / (|q|_d |c|_d), for the columns that prefix m adds
//   column_sums^d_j = sum_i G^d_ij s^d_ij
// The factors 1 / queries (both) and 1 / temperature (H_m) are applied later. The kernel is memory bound: it reads and
// writes each weight once, in place.
#pragma once

#include "contrastive/elements.cuh"
#include "contrastive/params.h"
#include "device/thread.h"

namespace conan_fast {

constexpr int kWeightThreads = 128;

// Bytes of shared memory: sums of each warp's kTile columns.
constexpr int gradient_weights_bytes(int prefixes) {
  return kWeightThreads / kWarpSize * prefixes * kTile * static_cast<int>(sizeof(float));
}

// Writes the sums of a lane's 4 columns over a group of rows.
__device__ inline void store_column_sums(const WeightParams& p, int group, int column, const float* sums) {
  for (int m = 0; m < p.prefixes.count; ++m) {
    float* out = p.column_sums + (static_cast<int64_t>(group) * p.prefixes.count + m) * p.weight_stride + column;
    *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(sums + m * kTile);
  }
}

// One warp per group of rows and kTile columns, 4 in each lane.
template <class Format>
__global__ void __launch_bounds__(kWeightThreads) gradient_weights(const __grid_constant__ WeightParams p) {
  using Type = typename Elements<Format>::Type;
  constexpr int kAtOnce = 8;  // rows with loads in flight at the same time
  constexpr float kScale = Elements<Format>::kWeightScale;
  const int lane = lane_index(), rows = p.queries.rows;
  const int tiles = static_cast<int>(p.weight_stride / kTile);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kWeightThreads / kWarpSize) + warp_index();
  const int group = static_cast<int>(index / tiles), column = static_cast<int>(index % tiles) * kTile + 4 * lane;
  const int last_row = min(rows, (group + 1) * kGroupRows);
  // Each lane uses its own 4 columns, so no synchronisation is needed.
  float* sums = reinterpret_cast<float*>(dynamic_shared_memory()) + warp_index() * p.prefixes.count * kTile + 4 * lane;
  const float scale = p.scale == nullptr ? 1.0f : *p.scale;
  for (int m = 0; m < p.prefixes.count; ++m) *reinterpret_cast<float4*>(sums + m * kTile) = make_float4(0, 0, 0, 0);

  for (int first = group * kGroupRows; first < last_row; first += kAtOnce) {
    float total[kAtOnce][4] = {};  // H_m
    for (int m = p.prefixes.count - 1; m >= 0; --m) {
      auto place = [&](int row) {
        return static_cast<Type*>(p.weights) + (static_cast<int64_t>(m) * rows + row) * p.weight_stride + column;
      };
      float weights[kAtOnce][4] = {};
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r < last_row) Elements<Format>::load4(place(first + r), weights[r]);
      }
      float norms[4], weighted[4] = {};
      Elements<Fp32>::load4(p.candidates.inverse_norms + m * p.candidates.norm_stride + column, norms);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const int row = first + r;
        if (row >= last_row) continue;
        const int64_t line = static_cast<int64_t>(m) * rows + row;
        const float reference = p.partials.reference[p.partials.at(m, rows, row, column / kSegment)];
        const float factor = fast_exp2(reference - p.logsumexp[line]) / kScale;
        const float row_norm = p.queries.inverse_norms[m * p.queries.norm_stride + row];
        float out[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float stored = weights[r][c];
          // A weight that was stored as 0 contributes 0, whatever its score.
          float weight = stored * factor, score = stored == 0.0f ? 0.0f : fast_log2(stored / kScale) + reference;
          if (column + c == p.own_column + row) {
            score = p.own[line];
            weight = fast_exp2(score - p.logsumexp[line]) - 1.0f;  // a rounded weight minus 1 could lose all bits
          }
          weight *= p.factors[m];
          weighted[c] = fmaf(weight, score * kLn2, weighted[c]);
          total[r][c] = fmaf(weight * row_norm, norms[c], total[r][c]);
          out[c] = total[r][c] * scale;
        }
        Elements<Format>::store4(place(row), out);
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[m * kTile + c] += weighted[c];
    }
  }
  if (group * kGroupRows < rows) store_column_sums(p, group, column, sums);  // else a warp past the last group
}

}  // namespace conan_fast
