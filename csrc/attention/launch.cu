// The attention kernels of one head_dim, CONAN_FAST_HEAD_DIM: this file is compiled once for each, side by side.
#include "attention/launch.h"

#include "attention/sm80_backward.cuh"
#include "attention/sm80_backward_dq.cuh"
#include "attention/sm80_forward.cuh"
#include "device/launch.h"

namespace conan_fast {
namespace {

// One block per tile and head. Heads are the slow dimension: neighbouring blocks share keys and values in the L2 cache.
dim3 grid_of(const AttentionParams& params, int tile_rows, int heads, Stream stream) {
  int tiles = params.schedule != nullptr ? launch_schedule(params, tile_rows, stream)
                                         : params.batch * ((params.tokens + tile_rows - 1) / tile_rows);
  return dim3(tiles, heads);
}

template <class Plan>
void start(void (*kernel)(AttentionParams), const AttentionParams& params, int tile_rows, int heads, Stream stream) {
  launch(kernel, grid_of(params, tile_rows, heads, stream), Plan::kThreads, Plan::kSharedBytes, stream, params);
}

template <class Format, int kHeadDim, int kKeys, int kStages>
void start_backward(const AttentionParams& params, Stream stream) {
  start<Sm80Backward<kHeadDim, kKeys, kStages>>(sm80_backward<Format, kHeadDim, kKeys, kStages>, params, kKeys,
                                                params.kv_heads, stream);
}

template <class Format, int kHeadDim>
void backward(const AttentionParams& params, int shared_memory_limit, Stream stream) {
  if (Sm80Backward<kHeadDim, 128, 2>::kSharedBytes <= shared_memory_limit) {
    start_backward<Format, kHeadDim, 128, 2>(params, stream);
  } else {
    start_backward<Format, kHeadDim, 64, 1>(params, stream);
  }
  if (params.dq_sum == nullptr) {
    start<Sm80BackwardDq<kHeadDim>>(sm80_backward_dq<Format, kHeadDim>, params, Sm80BackwardDq<kHeadDim>::kRows,
                                    params.heads, stream);
  }
}

}  // namespace

template <>
void launch_attention_forward<CONAN_FAST_HEAD_DIM>(const AttentionParams& params, Element element, Stream stream) {
  using Plan = Sm80Forward<CONAN_FAST_HEAD_DIM>;
  auto* kernel =
      element == Element::kBf16 ? sm80_forward<Bf16, CONAN_FAST_HEAD_DIM> : sm80_forward<Fp16, CONAN_FAST_HEAD_DIM>;
  start<Plan>(kernel, params, Plan::kRows, params.heads, stream);
}

template <>
void launch_attention_backward<CONAN_FAST_HEAD_DIM>(const AttentionParams& params, Element element,
                                                    int shared_memory_limit, Stream stream) {
  launch_row_delta(params, element, CONAN_FAST_HEAD_DIM, stream);
  if (element == Element::kBf16) {
    backward<Bf16, CONAN_FAST_HEAD_DIM>(params, shared_memory_limit, stream);
  } else {
    backward<Fp16, CONAN_FAST_HEAD_DIM>(params, shared_memory_limit, stream);
  }
}

template <>
std::vector<LaunchShape> attention_launch_shapes<CONAN_FAST_HEAD_DIM>() {
  constexpr int kHeadDim = CONAN_FAST_HEAD_DIM;
  auto shape = [](const std::string& name, const std::string& more, auto plan) -> LaunchShape {
    return {name + "<" + std::to_string(kHeadDim) + more + ">", plan.kThreads, plan.kSharedBytes};
  };
  return {shape("sm80_forward", "", Sm80Forward<kHeadDim>()),
          shape("sm80_backward", ", 128, 2", Sm80Backward<kHeadDim, 128, 2>()),
          shape("sm80_backward", ", 64, 1", Sm80Backward<kHeadDim, 64, 1>()),
          shape("sm80_backward_dq", "", Sm80BackwardDq<kHeadDim>())};
}

}  // namespace conan_fast
