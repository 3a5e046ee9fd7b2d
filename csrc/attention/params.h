// What the attention kernels are told. Pointers are on the device; strides count elements; token rows have stride 1
// inside.
#pragma once

#include <cstdint>

#include "device/platform.h"
#include "soft_mask.h"

namespace conan_fast {

// A tensor [batch, tokens, heads, head_dim] of 16-bit elements; packed batches have one entry in `batch`.
struct Rows {
  uint16_t* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;

  __device__ uint16_t* at(int batch, int token, int head) const {
    return data + batch * batch_stride + token * token_stride + head * head_stride;
  }
};

// One tile of one sequence, for packed batches: written by the scheduling kernel, read by block blockIdx.x.
struct alignas(16) ScheduledTile {
  int first_token, length, tile, unused;  // length 0: nothing to do
};

struct AttentionParams {
  Rows q, k, v, out;
  float* logsumexp = nullptr;  // [batch, heads, tokens], natural logarithm
  int batch = 0, tokens = 0, heads = 0, kv_heads = 0;
  float scale = 0;
  float alpha = 0;
  const float* alpha_pointer = nullptr;  // where not null, used in place of alpha
  Saturation saturation = Saturation::kKey;
  // Packed batches only.
  const int* cu_seqlens = nullptr;
  int sequences = 0, max_seqlen = 0;
  ScheduledTile* schedule = nullptr;  // room for schedule_slots(tokens, sequences) tiles
  // Backward only.
  Rows grad_out, dq, dk, dv;
  float* delta = nullptr;  // [batch, heads, tokens]: rowsum(grad_out * out)
  float* dq_sum =
      nullptr;  // [batch, tokens, heads, head_dim] zeros: dq / scale is added here; null: dq is written itself
};

// The smallest tile that any kernel schedules.
constexpr int kSmallestTile = 64;

// sum of ceil(length / kSmallestTile) over sequences is at most this.
constexpr int64_t schedule_slots(int64_t tokens, int64_t sequences) { return tokens / kSmallestTile + sequences; }

}  // namespace conan_fast
