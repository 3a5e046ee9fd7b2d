// Scores of all Matryoshka prefixes of float32 features, from library GEMMs: one over the dims that each prefix adds.
#pragma once

#include "contrastive/params.h"
#include "device/numeric.h"
#include "device/thread.h"
#include "device/warp.h"

namespace conan_fast {

constexpr int kProductThreads = 128;

// One warp per segment of a row. `weights` holds the dot products on entry, 2^(s - reference) on exit, in float32.
__global__ void __launch_bounds__(kProductThreads) product_scores(const __grid_constant__ ScoreParams p) {
  const int segments = static_cast<int>(p.weight_stride / kSegment), lane = lane_index(), rows = p.queries.rows;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kProductThreads / kWarpSize) + warp_index();
  if (index >= static_cast<int64_t>(rows) * segments) return;
  const int row = static_cast<int>(index / segments), segment = static_cast<int>(index % segments);
  const int column = segment * kSegment + 2 * lane, own_column = p.own_column + row;
  const bool compare = p.queries.ids != nullptr && p.candidates.ids != nullptr;
  bool masked[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    masked[c] = column + c >= p.candidates.rows ||
                (compare && column + c != own_column && p.candidates.ids[column + c] == p.queries.ids[row]);
  }
  const float scale = kLog2E / *p.temperature;
  float dots[2] = {};
  for (int m = 0; m < p.prefixes.count; ++m) {
    const int64_t line = static_cast<int64_t>(m) * rows + row;
    float2* place = reinterpret_cast<float2*>(static_cast<float*>(p.weights) + line * p.weight_stride + column);
    const float2 products = *place;  // undefined past the last candidate
    const float row_scale = p.queries.inverse_norms[m * p.queries.norm_stride + row] * scale;
    float scores[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      dots[c] += c == 0 ? products.x : products.y;
      const float norm = p.candidates.inverse_norms[m * p.candidates.norm_stride + column + c];
      scores[c] = masked[c] ? kMasked : dots[c] * row_scale * norm;
      if (column + c == own_column && own_column < p.candidates.rows) p.own[line] = scores[c];
    }
    float reference = warp_max(fmaxf(scores[0], scores[1]));
    if (p.logsumexp != nullptr) reference = p.logsumexp[line];
    const float shift = reference == kMasked ? 0.0f : reference;
    const float first = fast_exp2(scores[0] - shift), second = fast_exp2(scores[1] - shift);
    *place = make_float2(first, second);
    const float sum = warp_sum(first + second), weighted = warp_sum(fmaf(first, scores[0], second * scores[1]));
    if (lane == 0) p.partials.store(p.partials.at(m, rows, row, segment), reference, sum, weighted);
  }
}

}  // namespace conan_fast
