// Each row's logsumexp and mean score from the partial sums of its segments. One warp per row and prefix.
#pragma once

#include "contrastive/params.h"
#include "device/numeric.h"
#include "device/thread.h"
#include "device/warp.h"

namespace conan_fast {

constexpr int kCombineThreads = 128;

__global__ void __launch_bounds__(kCombineThreads) combine_partials(const __grid_constant__ CombineParams p) {
  const int64_t line = static_cast<int64_t>(blockIdx.x) * (kCombineThreads / kWarpSize) + warp_index();
  if (line >= static_cast<int64_t>(p.prefixes.count) * p.rows) return;
  const int lane = lane_index();
  const int64_t start = line * p.partials.stride, extra_start = line * p.extra_columns;

  float reference = kMasked;
  if (p.known) {
    reference = p.logsumexp[line];
  } else {
    for (int i = lane; i < p.partials.stride; i += kWarpSize) {
      reference = fmaxf(reference, p.partials.reference[start + i]);
    }
    for (int i = lane; i < p.extra_columns; i += kWarpSize) reference = fmaxf(reference, p.extra[extra_start + i]);
    reference = warp_max(reference);
  }
  float sum = 0.0f, weighted = 0.0f;
  for (int i = lane; i < p.partials.stride; i += kWarpSize) {
    const float factor = fast_exp2(p.partials.reference[start + i] - reference);
    sum = fmaf(p.partials.sum[start + i], factor, sum);
    weighted = fmaf(p.partials.weighted[start + i], factor, weighted);
  }
  for (int i = lane; i < p.extra_columns; i += kWarpSize) {
    const float score = p.extra[extra_start + i], weight = fast_exp2(score - reference);
    sum += weight;
    weighted = fmaf(weight, score, weighted);
  }
  sum = warp_sum(sum);
  weighted = warp_sum(weighted);
  if (lane != 0) return;
  if (p.known) {
    p.mean[line] = weighted * kLn2;
  } else {
    p.logsumexp[line] = reference + fast_log2(sum);
    p.mean[line] = weighted / sum * kLn2;
  }
}

}  // namespace conan_fast
