// Host functions that launch the contrastive kernels. The caller has checked the arguments.
#pragma once

#include <vector>

#include "contrastive/params.h"
#include "device/runtime.h"
#include "element.h"

namespace conan_fast {

void launch_prefix_norms(const Vectors& vectors, const Prefixes& prefixes, float* out, Element element,
                         const LaunchTarget& target);

// Keeps the weights if params.weights is not null. kFp32: it holds the dot products of the dims that each prefix adds.
void launch_scores(const ScoreParams& params, Element element, const LaunchTarget& target);
void launch_combine(const CombineParams& params, const LaunchTarget& target);
void launch_gradient_weights(const WeightParams& params, Element element, const LaunchTarget& target);
// `out`: the dtype of the gradient, kBf16 or kFp32.
void launch_finish_gradient(const FinishParams& params, Element element, Element out, const LaunchTarget& target);
void launch_private_scores(const PrivateParams& params, Element element, const LaunchTarget& target);
void launch_private_gradients(const PrivateParams& params, Element element, Element out, const LaunchTarget& target);

std::vector<LaunchShape> contrastive_launch_shapes();

}  // namespace conan_fast
