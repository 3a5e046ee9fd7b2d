// Host functions that start the contrastive kernels. Arguments have been checked by the caller.
#pragma once

#include <vector>

#include "contrastive/params.h"
#include "device/runtime.h"
#include "element.h"

namespace conan_fast {

void launch_prefix_norms(const Vectors& vectors, const Prefixes& prefixes, float* out, Element element, Stream stream);

// 16-bit features; weights are kept where params.weights is given.
void launch_sm80_scores(const ScoreParams& params, Element element, Stream stream);
void launch_product_scores(const ScoreParams& params, Stream stream);
void launch_combine(const CombineParams& params, Stream stream);
void launch_gradient_weights(const WeightParams& params, Element element, Stream stream);
// `out`: the dtype of the gradient, kBf16 or kFp32.
void launch_finish_gradient(const FinishParams& params, Element element, Element out, Stream stream);
void launch_private_scores(const PrivateParams& params, Element element, Stream stream);
void launch_private_gradients(const PrivateParams& params, Element element, Element out, Stream stream);

std::vector<LaunchShape> contrastive_launch_shapes();

}  // namespace conan_fast
