// The soft mask M (paper section 3.2, eq. 3-4). M_ij = 1 for key j <= row i. Above the diagonal (j > i), with 0-based
// indices in a sequence of l tokens, M_ij is min(alpha l / (j + 1), 1) for kKey, min(alpha l / (i + 1), 1) for kQuery
// and alpha for kUniform. M depends on one index at most, so kernels add a bias per column or per row and no matrix.
#pragma once

#if defined(__CUDACC__) || defined(CONAN_FAST_EMULATED)
#include "device/numeric.h"
#endif

namespace conan_fast {

// In the order of SATURATIONS in conan_fast/attention/soft_mask.py.
enum class Saturation : int { kKey, kQuery, kUniform };

// The name in Python; null past the last enumerator.
constexpr const char* name_of(Saturation saturation) {
  switch (saturation) {
    case Saturation::kKey: return "key";
    case Saturation::kQuery: return "query";
    case Saturation::kUniform: return "uniform";
  }
  return nullptr;
}

#if defined(__CUDACC__) || defined(CONAN_FAST_EMULATED)
struct SoftMask {
  float alpha;
  float log2_alpha_length;  // kUniform: log2 alpha
  float first_below_one;    // indices below this one have M = 1
  Saturation saturation;

  // NaN in alpha_ counts as 0: the host cannot check an alpha that lies in GPU memory.
  __device__ SoftMask(float alpha_, int length, Saturation saturation_) : saturation(saturation_) {
    alpha = fminf(fmaxf(alpha_, 0.0f), 1.0f);
    float product = saturation == Saturation::kUniform ? alpha : alpha * static_cast<float>(length);
    log2_alpha_length = fast_log2(product);
    first_below_one = saturation == Saturation::kUniform ? (alpha < 1.0f ? 0.0f : 1e30f) : floorf(product);
    if (alpha >= 1.0f) first_below_one = 1e30f;
  }

  __device__ bool causal() const { return alpha == 0.0f; }
  __device__ bool depends_on_column() const { return saturation == Saturation::kKey; }
  __device__ bool depends_on_row() const { return saturation == Saturation::kQuery; }

  // log2 M above the diagonal: of a column if M does not depend on the row, of a row if M does not depend on the
  // column, and for every M.
  __device__ float column_bias(int j) const { return log2_weight(j); }
  __device__ float row_bias(int i) const { return log2_weight(i); }
  __device__ float bias(int i, int j) const { return log2_weight(depends_on_row() ? i : j); }

  // Whether M = 1 up to column `last`, if M depends on the column.
  __device__ bool saturated(int last) const { return static_cast<float>(last) < first_below_one; }

 private:
  __device__ float log2_weight(int index) const {
    if (saturation == Saturation::kUniform) return log2_alpha_length;
    return fminf(log2_alpha_length - fast_log2(static_cast<float>(index + 1)), 0.0f);
  }
};
#endif

}  // namespace conan_fast
