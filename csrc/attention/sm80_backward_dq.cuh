// Soft-masked attention, backward: dQ alone, deterministic. With sm80_backward, which then skips dQ, that makes 7 GEMMs
// in place of 5: 1.4 times the work.
//
// A block has 64 query rows of one head, 16 per warp, and loops over the keys in tiles of 64. The accumulators of dS
// are the left operand of dQ += dS K.
#pragma once

#include "attention/tile_place.cuh"
#include "device/sm80_tile.cuh"

namespace conan_fast {

template <int kHeadDim_>
struct Sm80BackwardDq {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = 64, kKeys = 64, kThreads = 128;
  using Tile = SharedTile<64, kHeadDim>;
  static constexpr int kQ = 0, kGradOut = Tile::kBytes, kK = 2 * Tile::kBytes, kV = 3 * Tile::kBytes;
  static constexpr int kSharedBytes = 4 * Tile::kBytes;
};

// P from S, in place: weights exp(scale s - logsumexp) M of 16 queries (rows) and 8 kN keys (columns).
template <int kN>
__device__ inline void weights_of_rows(float (&scores)[1][kN][4], const SoftMask& mask, int first_row, int first_key,
                                       int length, const float (&logsumexp)[2], float scale_log2) {
  const int lane = lane_index(), last_key = first_key + 8 * kN - 1;
  const bool whole = last_key < length, by_column = mask.depends_on_column();
  const bool below = whole && last_key <= first_row, above = whole && first_key > first_row + 15;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int j = first_key + 8 * n + lane % 4 * 2 + c;
      const float column_bias = below || !by_column ? 0.0f : mask.column_bias(j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = first_row + 8 * half + lane / 4;
        float bias = by_column ? column_bias : mask.row_bias(i);
        if (below || (!above && j <= i)) bias = 0.0f;
        float& score = scores[0][n][2 * half + c];
        score = fast_exp2(fmaf(score, scale_log2, bias - logsumexp[half]));
        if (j >= length) score = 0.0f;
      }
    }
  }
}

// dS from P, in place: weights times (dP - delta), dP = dO V^T.
template <class Format, class Plan>
__device__ inline void score_gradients_of_rows(float (&weights)[1][Plan::kKeys / 8][4], const float (&delta)[2],
                                               const unsigned char* shared, int warp_row) {
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    constexpr int kN = Plan::kKeys / 16;
    float dp[1][kN][4] = {};
    multiply_by_transposed<Format, typename Plan::Tile, typename Plan::Tile>(dp, shared + Plan::kGradOut, warp_row,
                                                                             shared + Plan::kV, part * 8 * kN);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[0][part * kN + n][i] *= dp[0][n][i] - delta[i / 2];
    }
  }
}

template <class Format, int kHeadDim>
__global__ void __launch_bounds__(Sm80BackwardDq<kHeadDim>::kThreads)
    sm80_backward_dq(const __grid_constant__ AttentionParams p) {
  using Plan = Sm80BackwardDq<kHeadDim>;
  using Tile = typename Plan::Tile;
  const TilePlace place = tile_place<Plan::kRows>(p);
  if (place.begin >= place.length) return;
  const int length = place.length, head = static_cast<int>(blockIdx.y), kv_head = head / (p.heads / p.kv_heads);
  const SoftMask mask = soft_mask_of(p, length);
  const float scale_log2 = p.scale * kLog2E;

  unsigned char* shared = dynamic_shared_memory();
  const int first_token = place.first_token + place.begin;
  auto load_keys = [&](int tile) {
    int first = tile * Plan::kKeys, token = place.first_token + first;
    load_rows<Tile, Plan::kThreads>(shared + Plan::kK, p.k.at(place.batch, token, kv_head), p.k.token_stride,
                                    length - first);
    load_rows<Tile, Plan::kThreads>(shared + Plan::kV, p.v.at(place.batch, token, kv_head), p.v.token_stride,
                                    length - first);
  };
  load_rows<Tile, Plan::kThreads>(shared + Plan::kQ, p.q.at(place.batch, first_token, head), p.q.token_stride,
                                  length - place.begin);
  load_rows<Tile, Plan::kThreads>(shared + Plan::kGradOut, p.grad_out.at(place.batch, first_token, head),
                                  p.grad_out.token_stride, length - place.begin);
  load_keys(0);
  cp_async_commit();

  const int lane = lane_index(), warp_row = warp_index() * 16, first_row = place.begin + warp_row;
  float logsumexp[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = first_row + 8 * half + lane / 4;
    int64_t line = static_cast<int64_t>(place.batch * p.heads + head) * p.tokens + place.first_token;
    logsumexp[half] = row < length ? p.logsumexp[line + row] * kLog2E : INFINITY;  // rows past the end get weights 0
    delta[half] = row < length ? p.delta[line + row] : 0.0f;
  }

  const int keys = mask.causal() ? min(place.begin + Plan::kRows, length) : length;
  const int tiles = (keys + Plan::kKeys - 1) / Plan::kKeys;
  float dq[1][kHeadDim / 8][4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const int first_key = tile * Plan::kKeys, last_key = first_key + Plan::kKeys - 1;
    cp_async_wait<0>();
    __syncthreads();  // K and V (and Q and dO) are visible to all
    float weights[1][Plan::kKeys / 8][4] = {};
    multiply_by_transposed<Format, Tile, Tile>(weights, shared + Plan::kQ, warp_row, shared + Plan::kK, 0);
    weights_of_rows(weights, mask, first_row, first_key, length, logsumexp, scale_log2);
    score_gradients_of_rows<Format, Plan>(weights, delta, shared, warp_row);
    multiply_registers<Format, Tile>(dq, weights, shared + Plan::kK);
    __syncthreads();  // all have read K and V
    if (tile + 1 < tiles) load_keys(tile + 1);
    cp_async_commit();
  }
  const float scale[1][2] = {{p.scale, p.scale}};
  store_rows<Format, Tile>(dq, scale, shared + Plan::kQ, warp_row, p.dq.at(place.batch, first_token + warp_row, head),
                           p.dq.token_stride, length - first_row);
}

}  // namespace conan_fast
