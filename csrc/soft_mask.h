// The soft mask (paper section 3.2, eq. 3-4), as kernels see it. M_ij = 1 for j <= i; above the diagonal, with 0-based
// indices and a sequence of l tokens: min(alpha l / (j + 1), 1) for kKey, min(alpha l / (i + 1), 1) for kQuery, alpha
// for kUniform. It depends on one index only, so it is a vector per tile and never a matrix.
#pragma once

#include "device/numeric.h"
#include "saturation.h"

namespace conan_fast {

struct SoftMask {
  float alpha;
  float log2_alpha_length;  // kUniform: log2 alpha
  float first_below_one;    // indices below this one have M = 1
  Saturation saturation;

  // alpha is taken as 0 where it is NaN, so that no value of a tensor on the GPU can do harm.
  __device__ SoftMask(float alpha_, int length, Saturation saturation_) : saturation(saturation_) {
    alpha = fminf(fmaxf(alpha_, 0.0f), 1.0f);
    float product = saturation == Saturation::kUniform ? alpha : alpha * static_cast<float>(length);
    log2_alpha_length = fast_log2(product);
    first_below_one = saturation == Saturation::kUniform ? (alpha < 1.0f ? 0.0f : 1e30f) : floorf(product);
    if (alpha >= 1.0f) first_below_one = 1e30f;
  }

  __device__ bool causal() const { return alpha == 0.0f; }

  // log2 M above the diagonal in the row or column `index`, whichever M depends on (kUniform: any).
  __device__ float log2_weight(int index) const {
    if (saturation == Saturation::kUniform) return log2_alpha_length;
    return fminf(log2_alpha_length - fast_log2(static_cast<float>(index + 1)), 0.0f);
  }

  // Whether M = 1 for all indices up to `last`.
  __device__ bool saturated(int last) const { return static_cast<float>(last) < first_below_one; }
};

}  // namespace conan_fast
