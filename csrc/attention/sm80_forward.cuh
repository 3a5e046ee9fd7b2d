// Soft-masked attention, forward, for Ampere and newer: mma.m16n8k16 and cp.async.
//
// A block has 128 query rows of one head, 32 in each of its 4 warps, and loops over the keys in tiles of 64. With 32
// rows a warp reads 75 bytes of shared memory per tensor-core cycle, with 16 rows 128 bytes, which is the hardware
// limit. K and V have one buffer each: V is copied while K is used, the next K while V is used.
#pragma once

#include "attention/tile_place.cuh"
#include "device/sm80_tile.cuh"
#include "device/warp.h"

namespace conan_fast {

template <int kHeadDim_>
struct Sm80Forward {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = 128, kKeys = 64;
  static constexpr int kThreads = 128;
  static_assert(kThreads >= kRows);
  static constexpr int kWarpRows = kRows / (kThreads / kWarpSize), kM = kWarpRows / 16;
  using QTile = SharedTile<kRows, kHeadDim>;
  using KTile = SharedTile<kKeys, kHeadDim>;

  static constexpr int kQ = 0, kK = kQ + QTile::kBytes, kV = kK + KTile::kBytes;
  static constexpr int kKeyBias = kV + KTile::kBytes, kRowBias = kKeyBias + kKeys * 4;
  // In shared memory, read where it is used, to lower register pressure (in registers: 20 to 100 bytes spilled at
  // head_dim 128).
  struct BlockInfo {
    TilePlace place;
    int kv_head;
    SoftMask mask;
  };
  static constexpr int kInfo = kRowBias + kRows * 4, kSharedBytes = kInfo + static_cast<int>(sizeof(BlockInfo));
};

// Starts copying a tile of K or V.
template <class Plan>
__device__ inline void load_keys(const Rows& rows, const TilePlace& place, int kv_head, int tile, unsigned char* to) {
  const int first = tile * Plan::kKeys;
  load_rows<typename Plan::KTile, Plan::kThreads>(to, rows.at(place.batch, place.first_token + first, kv_head),
                                                  rows.token_stride, place.length - first);
}

// Adds log M / scale above the diagonal to the scores of a warp's rows, and masks the keys past the end. log M / scale
// is key_bias + row_bias; row_bias is 0 if M depends on the column, else key_bias is 0.
template <class Plan>
__device__ inline void mask_scores(float (&scores)[Plan::kM][Plan::kKeys / 8][4], const SoftMask& mask, int first_row,
                                   int first_key, int length, const float* key_bias, const float* row_bias) {
  const int lane = lane_index(), last_key = first_key + Plan::kKeys - 1;
  const bool whole = last_key < length, by_column = mask.depends_on_column();
  if (whole && (last_key <= first_row || (by_column && mask.saturated(last_key)))) return;  // M = 1
  if (whole && first_key > first_row + Plan::kWarpRows - 1 && by_column) {
#pragma unroll
    for (int n = 0; n < Plan::kKeys / 8; ++n) {
      const float2 bias = *reinterpret_cast<const float2*>(key_bias + 8 * n + lane % 4 * 2);
#pragma unroll
      for (int m = 0; m < Plan::kM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][n][i] += i % 2 == 0 ? bias.x : bias.y;
      }
    }
    return;
  }
#pragma unroll
  for (int m = 0; m < Plan::kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * m + 8 * half + lane / 4;
      const float bias = row_bias[row];
      const int below = first_row + row - first_key;  // the tile's last column that is not above the diagonal
#pragma unroll
      for (int n = 0; n < Plan::kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * n + lane % 4 * 2 + c;
          float& score = scores[m][n][2 * half + c];
          if (column > below) score += bias + key_bias[column];
          if (first_key + column >= length) score = -INFINITY;
        }
      }
    }
  }
}

// One step of the online softmax: scores become weights exp(scale (score - largest)), and earlier sums are rescaled to
// the new maximum.
template <int kM, int kN, int kOut>
__device__ inline void softmax_step(float (&scores)[kM][kN][4], float (&largest)[kM][2], float (&total)[kM][2],
                                    float (&out)[kM][kOut][4], float scale_log2) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = largest[m][half];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
      }
      maximum = quad_max(maximum);
      // With all scores -inf so far, any finite reference will do; -inf - -inf would be NaN.
      float reference = maximum == -INFINITY ? 0.0f : maximum * scale_log2;
      float shrink = fast_exp2(largest[m][half] * scale_log2 - reference);
      largest[m][half] = maximum;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[m][n][i] = fast_exp2(fmaf(scores[m][n][i], scale_log2, -reference));
          sum += scores[m][n][i];
        }
      }
      total[m][half] = total[m][half] * shrink + sum;
#pragma unroll
      for (int n = 0; n < kOut; ++n) {
        out[m][n][2 * half] *= shrink;
        out[m][n][2 * half + 1] *= shrink;
      }
    }
  }
}

// Writes a warp's rows of O and their logsumexp. `tile`: the buffer, of which the warp uses its own rows.
template <class Format, class Plan>
__device__ inline void store_output(const AttentionParams& p, const TilePlace& place,
                                    const float (&out)[Plan::kM][Plan::kHeadDim / 8][4],
                                    const float (&largest)[Plan::kM][2], const float (&total)[Plan::kM][2],
                                    unsigned char* tile) {
  const int first_row = place.begin + warp_index() * Plan::kWarpRows, head = static_cast<int>(blockIdx.y);
  float factor[Plan::kM][2];
#pragma unroll
  for (int m = 0; m < Plan::kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = quad_sum(total[m][half]);
      factor[m][half] = 1.0f / sum;
      int row = first_row + 16 * m + 8 * half + lane_index() / 4;
      if (lane_index() % 4 == 0 && row < place.length) {
        int64_t line = static_cast<int64_t>(place.batch * p.heads + head) * p.tokens + place.first_token;
        p.logsumexp[line + row] = largest[m][half] * p.scale + logf(sum);
      }
    }
  }
  store_rows<Format, typename Plan::QTile>(out, factor, tile, warp_index() * Plan::kWarpRows,
                                           p.out.at(place.batch, place.first_token + first_row, head),
                                           p.out.token_stride, place.length - first_row);
}

template <class Format, int kHeadDim>
__global__ void __launch_bounds__(Sm80Forward<kHeadDim>::kThreads)
    sm80_forward(const __grid_constant__ AttentionParams p) {
  using Plan = Sm80Forward<kHeadDim>;
  constexpr int kM = Plan::kM;
  const TilePlace place = tile_place<Plan::kRows>(p);
  if (place.begin >= place.length) return;
  const int kv_head = static_cast<int>(blockIdx.y) / (p.heads / p.kv_heads);
  const SoftMask mask = soft_mask_of(p, place.length);
  const float scale_log2 = p.scale * kLog2E;

  unsigned char* shared = dynamic_shared_memory();
  auto& info = *reinterpret_cast<typename Plan::BlockInfo*>(shared + Plan::kInfo);
  if (thread_index() == 0) info = {place, kv_head, mask};
  auto* key_bias = reinterpret_cast<float*>(shared + Plan::kKeyBias);
  auto* row_bias = reinterpret_cast<float*>(shared + Plan::kRowBias);
  load_rows<typename Plan::QTile, Plan::kThreads>(
      shared + Plan::kQ, p.q.at(place.batch, place.first_token + place.begin, static_cast<int>(blockIdx.y)),
      p.q.token_stride, place.length - place.begin);
  load_keys<Plan>(p.k, place, kv_head, 0, shared + Plan::kK);
  cp_async_commit();

  if (const int row = thread_index(); row < Plan::kRows) {
    row_bias[row] = mask.depends_on_column() ? 0.0f : mask.row_bias(place.begin + row) / scale_log2;
  }

  auto warp_row = [] { return warp_index() * Plan::kWarpRows; };
  const int keys = mask.causal() ? min(place.begin + Plan::kRows, place.length) : place.length;
  const int tiles = (keys + Plan::kKeys - 1) / Plan::kKeys;
  float out[kM][kHeadDim / 8][4] = {}, total[kM][2] = {}, largest[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) largest[m][0] = largest[m][1] = -INFINITY;

  for (int tile = 0; tile < tiles; ++tile) {
    const int first_key = tile * Plan::kKeys;
    cp_async_wait<0>();
    __syncthreads();  // K (and Q, info, row_bias) are visible to all; all have read the previous V and key_bias
    load_keys<Plan>(p.v, info.place, info.kv_head, tile, shared + Plan::kV);
    cp_async_commit();
    if (const int key = thread_index(); key < Plan::kKeys) {
      const bool by_column = info.mask.depends_on_column();
      key_bias[key] = by_column ? info.mask.column_bias(first_key + key) / scale_log2 : 0.0f;
    }
    float scores[kM][Plan::kKeys / 8][4] = {};
    multiply_by_transposed<Format, typename Plan::QTile, typename Plan::KTile>(scores, shared + Plan::kQ, warp_row(),
                                                                               shared + Plan::kK, 0);
    cp_async_wait<0>();
    __syncthreads();  // V and key_bias are visible to all; all have read K
    if (tile + 1 < tiles) load_keys<Plan>(p.k, info.place, info.kv_head, tile + 1, shared + Plan::kK);
    cp_async_commit();
    mask_scores<Plan>(scores, info.mask, info.place.begin + warp_row(), first_key, info.place.length, key_bias,
                      row_bias + warp_row());
    softmax_step(scores, largest, total, out, scale_log2);
    multiply_registers<Format, typename Plan::KTile>(out, scores, shared + Plan::kV);
  }
  const TilePlace done = info.place;
  store_output<Format, Plan>(p, done, out, largest, total, shared + Plan::kQ);
}

}  // namespace conan_fast
