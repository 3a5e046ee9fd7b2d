// Launches the attention kernels that do not depend on the head_dim.
#include <algorithm>

#include "attention/launch.h"
#include "attention/prepare.cuh"
#include "device/launch.h"

namespace conan_fast {

int launch_schedule(const AttentionParams& params, int tile_rows, const ScheduledOutputs& outputs,
                    const LaunchTarget& target) {
  int64_t by_tokens = params.tokens / tile_rows + params.sequences;
  int64_t by_length = static_cast<int64_t>(params.sequences) * ((params.max_seqlen + tile_rows - 1) / tile_rows);
  int slots = static_cast<int>(std::min(by_tokens, by_length));
  const int blocks = 1 + (params.tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  launch(schedule_tiles, dim3(blocks), kScheduleThreads, kScheduleSharedBytes, target, params, tile_rows, slots,
         outputs);
  return slots;
}

std::vector<LaunchShape> common_launch_shapes() {
  return {{"schedule_tiles", kScheduleThreads, kScheduleSharedBytes}, {"row_delta", kDeltaThreads, 0}};
}

void launch_row_delta(const AttentionParams& params, Element element, int head_dim, const LaunchTarget& target) {
  constexpr int kRows = kDeltaThreads / kDeltaThreadsPerRow;
  int64_t rows = static_cast<int64_t>(params.batch) * params.tokens * params.heads;
  auto* kernel = element == Element::kBf16 ? row_delta<Bf16> : row_delta<Fp16>;
  launch(kernel, dim3(static_cast<unsigned>((rows + kRows - 1) / kRows)), kDeltaThreads, 0, target, params, head_dim);
}

}  // namespace conan_fast
