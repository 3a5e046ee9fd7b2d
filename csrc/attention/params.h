// The arguments of the attention kernels. Pointers are to device memory; strides count elements; the stride within a
// row of head_dim elements is 1.
#pragma once

#include <cstdint>

#include "device/platform.h"
#include "soft_mask.h"

namespace conan_fast {

// A tensor [batch, tokens, heads, head_dim] of 16-bit elements; batch is 1 for packed batches.
struct Rows {
  uint16_t* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;

  __device__ uint16_t* at(int batch, int token, int head) const {
    return data + batch * batch_stride + token * token_stride + head * head_stride;
  }
};

// A tile of a sequence of a packed batch. schedule_tiles writes it, block blockIdx.x of the next kernels reads it.
struct alignas(16) ScheduledTile {
  int first_token, length, tile, unused;  // length 0: no tile
};

// What the kernel that follows schedule_tiles writes, one of the two or both. data is null for an absent one.
struct ScheduledOutputs {
  Rows first, second;           // [tokens, heads, head_dim]
  float* statistics = nullptr;  // [heads, tokens]
  int heads = 0, head_dim = 0;
};

struct AttentionParams {
  Rows q, k, v, out;
  float* logsumexp = nullptr;  // [batch, heads, tokens], natural logarithm
  int batch = 0, tokens = 0, heads = 0, kv_heads = 0;
  float scale = 0;
  float alpha = 0;
  const float* alpha_pointer = nullptr;  // if not null, used in place of alpha
  Saturation saturation = Saturation::kKey;
  // Packed batches only.
  const int* cu_seqlens = nullptr;
  int sequences = 0, max_seqlen = 0;
  ScheduledTile* schedule = nullptr;  // room for schedule_slots(tokens, sequences) tiles
  // Backward only.
  Rows grad_out, dq, dk, dv;  // dq: null if it is not needed or summed in dq_sum; dk and dv: null if not needed
  float* delta = nullptr;     // [batch, heads, tokens]: rowsum(grad_out * out)
  float* dq_sum = nullptr;    // [batch, tokens, heads, head_dim], zeros: dq / scale is added, with dk and dv; or null
};

// The smallest tile that any kernel schedules.
constexpr int kSmallestTile = 64;

// An upper bound of the sum of ceil(length / kSmallestTile) over all sequences.
constexpr int64_t schedule_slots(int64_t tokens, int64_t sequences) { return tokens / kSmallestTile + sequences; }

}  // namespace conan_fast
