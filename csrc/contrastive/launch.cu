#include "contrastive/launch.h"

#include <stdexcept>
#include <type_traits>

#include "contrastive/combine.cuh"
#include "contrastive/finish_gradient.cuh"
#include "contrastive/gradient_weights.cuh"
#include "contrastive/prefix_norms.cuh"
#include "contrastive/private_negatives.cuh"
#include "contrastive/product_scores.cuh"
#include "contrastive/sm80_scores.cuh"
#include "device/launch.h"

namespace conan_fast {
namespace {

template <class Function>
void for_element(Element element, Function&& function) {
  switch (element) {
    case Element::kBf16: return function(Bf16());
    case Element::kFp16: return function(Fp16());
    case Element::kFp32: return function(Fp32());
  }
}

// Gradients are float32, or bf16 for bf16 features.
template <class Function>
void for_elements(Element element, Element out, Function&& function) {
  for_element(element, [&](auto format) {
    if (out == Element::kFp32) return function(format, Fp32());
    if constexpr (std::is_same_v<decltype(format), Bf16>) return function(format, Bf16());
    throw std::invalid_argument("gradients must be float32, or bfloat16 for bfloat16 features");
  });
}

unsigned blocks_of(int64_t work, int per_block) { return static_cast<unsigned>((work + per_block - 1) / per_block); }

}  // namespace

void launch_prefix_norms(const Vectors& vectors, const Prefixes& prefixes, float* out, Element element,
                         const LaunchTarget& target) {
  for_element(element, [&](auto format) {
    launch(prefix_norms<decltype(format)>, dim3(blocks_of(vectors.norm_stride, kNormThreads / kWarpSize)), kNormThreads,
           0, target, vectors, prefixes, out);
  });
}

void launch_scores(const ScoreParams& params, Element element, const LaunchTarget& target) {
  // Rows are the fast dimension: the queries of a chunk stay in the L2 cache while candidates pass by.
  dim3 grid(blocks_of(params.queries.rows, kTile), blocks_of(params.candidates.rows, kTile));
  for_element(element, [&](auto format) {
    using Format = decltype(format);
    if constexpr (std::is_same_v<Format, Fp32>) {
      const unsigned blocks =
          blocks_of(params.queries.rows * (params.weight_stride / kSegment), kProductThreads / kWarpSize);
      launch(product_scores, dim3(blocks), kProductThreads, 0, target, params);
    } else {
      auto* kernel = params.weights != nullptr ? sm80_scores<Format, true> : sm80_scores<Format, false>;
      launch(kernel, grid, Sm80Scores::kThreads, Sm80Scores::kSharedBytes, target, params);
    }
  });
}

void launch_combine(const CombineParams& params, const LaunchTarget& target) {
  int64_t lines = static_cast<int64_t>(params.prefixes.count) * params.rows;
  launch(combine_partials, dim3(blocks_of(lines, kCombineThreads / kWarpSize)), kCombineThreads, 0, target, params);
}

void launch_gradient_weights(const WeightParams& params, Element element, const LaunchTarget& target) {
  int64_t groups = (params.queries.rows + kGroupRows - 1) / kGroupRows;
  dim3 grid(blocks_of(groups * (params.weight_stride / kTile), kWeightThreads / kWarpSize));
  for_element(element, [&](auto format) {
    launch(gradient_weights<decltype(format)>, grid, kWeightThreads, gradient_weights_bytes(params.prefixes.count),
           target, params);
  });
}

void launch_finish_gradient(const FinishParams& params, Element element, Element out, const LaunchTarget& target) {
  for_elements(element, out, [&](auto format, auto kept) {
    launch(finish_gradient<decltype(format), decltype(kept)>, dim3(params.vectors.rows), kFinishThreads, 0, target,
           params);
  });
}

void launch_private_scores(const PrivateParams& params, Element element, const LaunchTarget& target) {
  int64_t pairs = static_cast<int64_t>(params.queries.rows) * params.count;
  for_element(element, [&](auto format) {
    launch(private_scores<decltype(format)>, dim3(blocks_of(pairs, kPrivateThreads / kWarpSize)), kPrivateThreads, 0,
           target, params);
  });
}

void launch_private_gradients(const PrivateParams& params, Element element, Element out, const LaunchTarget& target) {
  for_elements(element, out, [&](auto format, auto kept) {
    launch(private_gradients<decltype(format), decltype(kept)>, dim3(params.queries.rows), kPrivateThreads, 0, target,
           params);
  });
}

std::vector<LaunchShape> contrastive_launch_shapes() {
  return {{"prefix_norms", kNormThreads, 0},
          {"sm80_scores", Sm80Scores::kThreads, Sm80Scores::kSharedBytes},
          {"product_scores", kProductThreads, 0},
          {"combine_partials", kCombineThreads, 0},
          {"gradient_weights", kWeightThreads, gradient_weights_bytes(kMaxPrefixes)},
          {"finish_gradient", kFinishThreads, 0},
          {"private_scores", kPrivateThreads, 0},
          {"private_gradients", kPrivateThreads, 0}};
}

}  // namespace conan_fast
