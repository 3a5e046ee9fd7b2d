// Soft-masked attention, backward: dK, dV and the sum of dQ, for Ampere and newer.
//
// A block has a tile of keys of one K/V head, 16 keys per warp, and loops over the query rows of all query heads that
// share the K/V head, 64 rows per step. Scores are computed transposed, S^T = K Q^T, so that the accumulators P^T and
// dS^T are the left operands of the next GEMMs, dV += P^T dO and dK += dS^T Q, without a pass through shared memory.
// Unless M depends on the query, the mask is one bias per accumulator row. dQ = dS K is a sum over keys, so over warps
// and blocks: dS passes through shared memory, dQ is added to global memory by fp32 atomics.
#pragma once

#include "attention/tile_place.cuh"
#include "device/atomic.h"
#include "device/sm80_tile.cuh"

namespace conan_fast {

// kKeys 128 with two buffers for Q and dO needs up to 145 KB of shared memory. kKeys 64 with one buffer fits in the 99
// KB of compute capability 8.6, 8.9 and 12.x.
template <int kHeadDim_, int kKeys_, int kStages_>
struct Sm80Backward {
  static constexpr int kHeadDim = kHeadDim_, kKeys = kKeys_, kStages = kStages_;
  static constexpr int kRows = 64;  // query rows per step
  static constexpr int kWarps = kKeys / 16, kThreads = kWarps * kWarpSize;
  using KTile = SharedTile<kKeys, kHeadDim>;
  using QTile = SharedTile<kRows, kHeadDim>;
  using DsTile = SharedTile<kKeys, kRows>;  // dS^T
  // dQ [64 x head_dim]: split among 4 warps by rows and 1 or 2 by columns.
  static constexpr int kColumnParts = kWarps / 4, kDqTiles = kHeadDim / 8 / kColumnParts;
  static_assert(kDqTiles * kColumnParts * 8 == kHeadDim && kStages <= 2);
  // dP^T is computed in two halves where dK and dV leave too few registers (whole: 16 to 56 bytes spilled).
  static constexpr int kDpParts = kHeadDim > 96 ? 2 : 1;

  static constexpr int kK = 0, kV = kK + KTile::kBytes, kDs = kV + KTile::kBytes;
  static constexpr int kStage = kDs + DsTile::kBytes;  // the first of kStages
  static constexpr int kStageQ = 0, kStageGradOut = QTile::kBytes, kStageLogsumexp = 2 * QTile::kBytes;
  static constexpr int kStageDelta = kStageLogsumexp + kRows * 4, kStageBytes = kStageDelta + kRows * 4;
  // TilePlace in shared memory, read where it is used, to lower register pressure (in registers: 8 bytes spilled at
  // head_dim 128 with 64 keys).
  static constexpr int kPlace = kStage + kStages * kStageBytes;
  static constexpr int kSharedBytes = kPlace + static_cast<int>(sizeof(TilePlace));
};

// Starts copying the block's K and V.
template <class Plan>
__device__ inline void load_keys_and_values(const AttentionParams& p, const TilePlace& place, int kv_head,
                                            unsigned char* shared) {
  const int token = place.first_token + place.begin, rows = place.length - place.begin;
  load_rows<typename Plan::KTile, Plan::kThreads>(shared + Plan::kK, p.k.at(place.batch, token, kv_head),
                                                  p.k.token_stride, rows);
  load_rows<typename Plan::KTile, Plan::kThreads>(shared + Plan::kV, p.v.at(place.batch, token, kv_head),
                                                  p.v.token_stride, rows);
}

// Starts copying 64 query rows of one head: Q, dO, logsumexp, delta.
template <class Plan>
__device__ inline void load_queries(const AttentionParams& p, const TilePlace& place, int head, int first_row,
                                    unsigned char* stage) {
  int rows = place.length - first_row, token = place.first_token + first_row;
  load_rows<typename Plan::QTile, Plan::kThreads>(stage + Plan::kStageQ, p.q.at(place.batch, token, head),
                                                  p.q.token_stride, rows);
  load_rows<typename Plan::QTile, Plan::kThreads>(stage + Plan::kStageGradOut, p.grad_out.at(place.batch, token, head),
                                                  p.grad_out.token_stride, rows);
  int row = thread_index() % Plan::kRows;
  int64_t index = static_cast<int64_t>(place.batch * p.heads + head) * p.tokens + token + (row < rows ? row : 0);
  int part = thread_index() / Plan::kRows;
  if (part == 0) cp_async_4(stage, Plan::kStageLogsumexp + row * 4, p.logsumexp + index, row < rows);
  if (part == 1) cp_async_4(stage, Plan::kStageDelta + row * 4, p.delta + index, row < rows);
}

// P^T from S^T, in place: weights exp(scale s - logsumexp) M of 16 keys (rows) and 64 queries (columns).
template <int kN>
__device__ inline void weights_from_scores(float (&scores)[1][kN][4], const SoftMask& mask, int first_key,
                                           int first_row, int length, const float* logsumexp, float scale_log2) {
  const int lane = lane_index(), last_row = first_row + 8 * kN - 1, last_key = first_key + 15;
  const bool whole = last_key < length && last_row < length;
  const bool below = last_key <= first_row, above = first_key > last_row && !mask.depends_on_row();
  if (whole && (below || above)) {  // one bias per row: 0 or log2 M
    float bias[2] = {0.0f, 0.0f};
    if (above) {
      bias[0] = mask.column_bias(first_key + lane / 4);
      bias[1] = mask.column_bias(first_key + lane / 4 + 8);
    }
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const float2 reference = *reinterpret_cast<const float2*>(logsumexp + 8 * n + lane % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float exponent = fmaf(i % 2 == 0 ? reference.x : reference.y, -kLog2E, bias[i / 2]);
        scores[0][n][i] = fast_exp2(fmaf(scores[0][n][i], scale_log2, exponent));
      }
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = 8 * n + lane % 4 * 2 + c, i = first_row + column;
      const float reference = logsumexp[column] * kLog2E;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = first_key + 8 * half + lane / 4;
        float bias = j > i ? mask.bias(i, j) : 0.0f;
        float& score = scores[0][n][2 * half + c];
        score = fast_exp2(fmaf(score, scale_log2, bias - reference));
        if (i >= length || j >= length) score = 0.0f;
      }
    }
  }
}

// Adds dQ of 64 rows from this block's keys to global memory. dS^T [keys, rows] and K are in shared memory.
template <class Format, class Plan>
__device__ inline void add_dq(const AttentionParams& p, const TilePlace& place, int head, int first_row,
                              const unsigned char* ds, const unsigned char* k) {
  int lane = lane_index();
  int row = warp_index() % 4 * 16, column_tile = warp_index() / 4 * Plan::kDqTiles;
  float dq[1][Plan::kDqTiles][4] = {};
#pragma unroll
  for (int step = 0; step < Plan::kKeys / 16; ++step) {
    uint32_t left[1][4];
    int key = 16 * step + lane % 8 + lane / 16 * 8;
    ldmatrix<4, true>(left[0], ds, Plan::DsTile::offset(key, row / 8 + lane / 8 % 2));
    multiply_step<Format, typename Plan::KTile>(dq, left, k, 16 * step, column_tile);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int i = first_row + row + 8 * half + lane / 4;
    if (i >= place.length) continue;
    int64_t token = static_cast<int64_t>(place.batch) * p.tokens + place.first_token + i;
    float* target = p.dq_sum + (token * p.heads + head) * Plan::kHeadDim + 8 * column_tile + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Plan::kDqTiles; ++n)
      atomic_add_pair(target + 8 * n, dq[0][n][2 * half], dq[0][n][2 * half + 1]);
  }
}

// dS^T from P^T, in place: weights times (dP^T - delta), dP^T = V dO^T. `stage` holds dO and delta.
template <class Format, class Plan>
__device__ inline void score_gradients(float (&weights)[1][Plan::kRows / 8][4], const unsigned char* v,
                                       const unsigned char* stage) {
  const auto* delta = reinterpret_cast<const float*>(stage + Plan::kStageDelta);
#pragma unroll
  for (int part = 0; part < Plan::kDpParts; ++part) {
    constexpr int kN = Plan::kRows / 8 / Plan::kDpParts;
    float dp[1][kN][4] = {};
    multiply_by_transposed<Format, typename Plan::KTile, typename Plan::QTile>(
        dp, v, warp_index() * 16, stage + Plan::kStageGradOut, part * 8 * kN);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      float2 row = *reinterpret_cast<const float2*>(delta + 8 * (part * kN + n) + lane_index() % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[0][part * kN + n][i] *= dp[0][n][i] - (i % 2 == 0 ? row.x : row.y);
    }
  }
}

// Writes a warp's 16 rows of dS^T to shared memory, rounded to 16 bits.
template <class Format, class Plan>
__device__ inline void store_score_gradients(const float (&ds)[1][Plan::kRows / 8][4], unsigned char* tile) {
#pragma unroll
  for (int n = 0; n < Plan::kRows / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int key = warp_index() * 16 + 8 * half + lane_index() / 4;
      auto* pair = reinterpret_cast<uint32_t*>(tile + Plan::DsTile::offset(key, n)) + lane_index() % 4;
      *pair = Format::pack(ds[0][n][2 * half], ds[0][n][2 * half + 1]);
    }
  }
}

// Writes a warp's 16 rows of dV and dK. The buffer for both is the warp's rows of V, which no other warp reads.
template <class Format, class Plan>
__device__ inline void store_key_gradients(const AttentionParams& p, const TilePlace& place,
                                           const float (&dk)[1][Plan::kHeadDim / 8][4],
                                           const float (&dv)[1][Plan::kHeadDim / 8][4], unsigned char* v) {
  const int warp_key = warp_index() * 16, token = place.first_token + place.begin + warp_key;
  const int kv_head = static_cast<int>(blockIdx.y), rows = place.length - place.begin - warp_key;
  const float one[1][2] = {{1.0f, 1.0f}}, scale[1][2] = {{p.scale, p.scale}};
  store_rows<Format, typename Plan::KTile>(dv, one, v, warp_key, p.dv.at(place.batch, token, kv_head),
                                           p.dv.token_stride, rows);
  __syncwarp();
  store_rows<Format, typename Plan::KTile>(dk, scale, v, warp_key, p.dk.at(place.batch, token, kv_head),
                                           p.dk.token_stride, rows);
}

template <class Format, int kHeadDim, int kKeys, int kStages>
__global__ void __launch_bounds__(Sm80Backward<kHeadDim, kKeys, kStages>::kThreads)
    sm80_backward(const __grid_constant__ AttentionParams p) {
  using Plan = Sm80Backward<kHeadDim, kKeys, kStages>;
  const TilePlace place = tile_place<kKeys>(p);
  if (place.begin >= place.length) return;
  const int length = place.length, kv_head = static_cast<int>(blockIdx.y), group = p.heads / p.kv_heads;
  const SoftMask mask = soft_mask_of(p, length);
  const float scale_log2 = p.scale * kLog2E;

  unsigned char* shared = dynamic_shared_memory();
  unsigned char* k = shared + Plan::kK;
  unsigned char* v = shared + Plan::kV;
  unsigned char* ds = shared + Plan::kDs;
  auto& shared_place = *reinterpret_cast<TilePlace*>(shared + Plan::kPlace);
  if (thread_index() == 0) shared_place = place;
  load_keys_and_values<Plan>(p, place, kv_head, shared);
  // The steps: all query tiles of the first head of the group, then of the next head.
  const int begin = mask.causal() ? place.begin / Plan::kRows * Plan::kRows : 0, last_head = (kv_head + 1) * group - 1;
  int head = kv_head * group, first_row = begin, stage_offset = Plan::kStage;
  load_queries<Plan>(p, place, head, first_row, shared + stage_offset);
  cp_async_commit();

  auto warp_key = [] { return warp_index() * 16; };
  float dk[1][kHeadDim / 8][4] = {}, dv[1][kHeadDim / 8][4] = {};
  while (head <= last_head) {
    const unsigned char* stage = shared + stage_offset;
    if constexpr (kStages > 1) stage_offset = 2 * Plan::kStage + Plan::kStageBytes - stage_offset;
    const bool last_of_head = first_row + Plan::kRows >= length;
    const int next_head = last_of_head ? head + 1 : head, next_row = last_of_head ? begin : first_row + Plan::kRows;
    auto load_next = [&] {
      if (next_head <= last_head) load_queries<Plan>(p, shared_place, next_head, next_row, shared + stage_offset);
      cp_async_commit();
    };
    cp_async_wait<0>();
    __syncthreads();  // this step's queries are visible to all; the previous step is done with dS and its buffer
    if (kStages > 1) load_next();

    float weights[1][Plan::kRows / 8][4] = {};
    multiply_by_transposed<Format, typename Plan::KTile, typename Plan::QTile>(weights, k, warp_key(),
                                                                               stage + Plan::kStageQ, 0);
    weights_from_scores(weights, mask, place.begin + warp_key(), first_row, length,
                        reinterpret_cast<const float*>(stage + Plan::kStageLogsumexp), scale_log2);
    multiply_registers<Format, typename Plan::QTile>(dv, weights, stage + Plan::kStageGradOut);
    score_gradients<Format, Plan>(weights, v, stage);
    if (p.dq_sum != nullptr) store_score_gradients<Format, Plan>(weights, ds);
    multiply_registers<Format, typename Plan::QTile>(dk, weights, stage + Plan::kStageQ);
    __syncthreads();  // dS is visible to all; all have read Q and dO
    if (kStages == 1) load_next();
    if (p.dq_sum != nullptr) add_dq<Format, Plan>(p, shared_place, head, first_row, ds, k);
    head = next_head;
    first_row = next_row;
  }
  store_key_gradients<Format, Plan>(p, place, dk, dv, v);
}

}  // namespace conan_fast
