// Launches the attention kernels of one head_dim, CONAN_FAST_HEAD_DIM. Compiled once per head_dim, in parallel.
#include "attention/launch.h"

#include "attention/sm80_backward.cuh"
#include "attention/sm80_backward_dq.cuh"
#include "attention/sm80_forward.cuh"
#include "device/launch.h"

namespace conan_fast {
namespace {

constexpr int kHeadDim = CONAN_FAST_HEAD_DIM;

// One block per tile and head. Heads are the slow dimension: neighbouring blocks share keys and values in the L2 cache.
template <class Plan>
void launch_tiles(void (*kernel)(AttentionParams), const AttentionParams& params, int tile_rows,
                  const ScheduledOutputs& outputs, const LaunchTarget& target) {
  const int tiles = params.cu_seqlens != nullptr ? launch_schedule(params, tile_rows, outputs, target)
                                                 : params.batch * ((params.tokens + tile_rows - 1) / tile_rows);
  launch(kernel, dim3(tiles, outputs.heads), Plan::kThreads, Plan::kSharedBytes, target, params);
}

template <class Format, int kKeys, int kStages>
void launch_backward(const AttentionParams& params, const LaunchTarget& target) {
  using Plan = Sm80Backward<kHeadDim, kKeys, kStages>;
  const ScheduledOutputs outputs = {params.dk, params.dv, nullptr, params.kv_heads, kHeadDim};
  launch_tiles<Plan>(sm80_backward<Format, kHeadDim, kKeys, kStages>, params, kKeys, outputs, target);
}

template <class Format>
void launch_backward(const AttentionParams& params, const LaunchTarget& target) {
  if (params.dk.data != nullptr) {
    if (Sm80Backward<kHeadDim, 128, 2>::kSharedBytes <= target.device.shared_memory_per_block) {
      launch_backward<Format, 128, 2>(params, target);
    } else {
      launch_backward<Format, 64, 1>(params, target);
    }
  }
  if (params.dq.data != nullptr) {
    using Plan = Sm80BackwardDq<kHeadDim>;
    const ScheduledOutputs outputs = {params.dq, {}, nullptr, params.heads, kHeadDim};
    launch_tiles<Plan>(sm80_backward_dq<Format, kHeadDim>, params, Plan::kRows, outputs, target);
  }
}

}  // namespace

template <>
void launch_attention_forward<kHeadDim>(const AttentionParams& params, Element element, const LaunchTarget& target) {
  using Plan = Sm80Forward<kHeadDim>;
  auto* kernel = element == Element::kBf16 ? sm80_forward<Bf16, kHeadDim> : sm80_forward<Fp16, kHeadDim>;
  const ScheduledOutputs outputs = {params.out, {}, params.logsumexp, params.heads, kHeadDim};
  launch_tiles<Plan>(kernel, params, Plan::kRows, outputs, target);
}

template <>
void launch_attention_backward<kHeadDim>(const AttentionParams& params, Element element, const LaunchTarget& target) {
  launch_row_delta(params, element, kHeadDim, target);
  if (element == Element::kBf16) {
    launch_backward<Bf16>(params, target);
  } else {
    launch_backward<Fp16>(params, target);
  }
}

template <>
std::vector<LaunchShape> attention_launch_shapes<kHeadDim>() {
  auto shape = [](const std::string& name, const std::string& more, auto plan) -> LaunchShape {
    return {name + "<" + std::to_string(kHeadDim) + more + ">", plan.kThreads, plan.kSharedBytes};
  };
  return {shape("sm80_forward", "", Sm80Forward<kHeadDim>()),
          shape("sm80_backward", ", 128, 2", Sm80Backward<kHeadDim, 128, 2>()),
          shape("sm80_backward", ", 64, 1", Sm80Backward<kHeadDim, 64, 1>()),
          shape("sm80_backward_dq", "", Sm80BackwardDq<kHeadDim>())};
}

}  // namespace conan_fast
