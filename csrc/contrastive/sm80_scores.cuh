// Scores of all Matryoshka prefixes in one GEMM, for 16-bit features on Ampere and newer.
//
// A block has a tile of 128 queries x 128 candidates, 64 x 64 in each of its 4 warps, whose dot products stay in
// registers. The loop over the dims stops at the end of each prefix, where the accumulators are the dot products over
// x[:d], and folds their scores into the sums of that prefix. So all prefixes cost one GEMM over the longest.
//
// Two blocks share an SM (64 KB of shared memory, at most 256 registers per thread): one folds while the other
// multiplies. 64 x 64 is the largest tile whose 128 accumulators leave registers for the 16 scores of a row.
#pragma once

#include "contrastive/elements.cuh"
#include "contrastive/params.h"
#include "device/sm80_tile.cuh"
#include "device/warp.h"

namespace conan_fast {

struct Sm80Scores {
  static constexpr int kThreads = 128, kDepth = 32, kStages = 4;
  using Tile = SharedTile<kTile, kDepth>;
  static constexpr int kStageBytes = 2 * Tile::kBytes;  // queries, candidates
  static constexpr int kSharedBytes = kStages * kStageBytes;
};

// Steps of kDepth over the dims that do not cross from one prefix to the next.
struct DepthWalk {
  int column = 0, prefix = 0;

  __device__ bool done(const Prefixes& prefixes) const { return prefix >= prefixes.count; }
  __device__ int chunks(const Prefixes& prefixes) const { return (prefixes.dims[prefix] - column) / 8; }
  // Returns whether the step was the last of its prefix.
  __device__ bool advance(const Prefixes& prefixes) {
    column += Sm80Scores::kDepth;
    if (column < prefixes.dims[prefix]) return false;
    column = prefixes.dims[prefix++];
    return true;
  }
};

// The rows and columns of a warp's 64 x 64 dot products.
struct ScoreTile {
  int row, column;     // the first ones
  uint32_t masked[4];  // a bit per score of a thread, 16 per row: 1 for a masked candidate

  // Whether the diagonal through column `first` of the tile's first row meets the tile.
  __device__ bool meets_diagonal(int first) const { return first < column + 64 && first + 64 > column; }
};

// A lane has 16 columns of row 16 m + 8 half + lane / 4 of a warp's tile.
constexpr int kColumnsOfLane = 16;

// Masks columns past the last candidate, and candidates with the id of the row's own positive that are not it.
__device__ inline void find_masked(const ScoreParams& p, ScoreTile& tile) {
  const int lane = lane_index();
  const bool compare = p.queries.ids != nullptr && p.candidates.ids != nullptr;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    uint32_t bits = 0;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row + 16 * m + 8 * half + lane / 4;
      const bool ids = compare && row < p.queries.rows;
      const int64_t id = ids ? p.queries.ids[row] : 0;
#pragma unroll 1
      for (int i = 0; i < kColumnsOfLane; ++i) {
        const int column = tile.column + i / 2 * 8 + lane % 4 * 2 + i % 2;
        bool out = column >= p.candidates.rows;
        if (ids && !out) out = p.candidates.ids[column] == id && column != p.own_column + row;
        bits |= static_cast<uint32_t>(out) << (half * kColumnsOfLane + i);
      }
    }
    tile.masked[m] = bits;
  }
}

// Writes the score of the row's own positive to `own` if it is in one of the lane's columns.
__device__ inline void store_own(const ScoreParams& p, const ScoreTile& tile, const float (&scores)[kColumnsOfLane],
                                 int row, int lane, float* own) {
#pragma unroll
  for (int i = 0; i < kColumnsOfLane; ++i) {
    const int column = tile.column + i / 2 * 8 + lane % 4 * 2 + i % 2;
    if (column == p.own_column + row && column < p.candidates.rows) *own = scores[i];
  }
}

// Bit i of `masked` masks scores[i].
__device__ inline void apply_mask(float (&scores)[kColumnsOfLane], uint32_t masked) {
#pragma unroll
  for (int i = 0; i < kColumnsOfLane; ++i) {
    if (masked >> i & 1) scores[i] = kMasked;
  }
}

// Folds the scores of prefix m, its scaled dot products, into its sums; stores the weights if kStore.
template <class Format, bool kStore>
__device__ inline void fold_scores(const ScoreParams& p, const ScoreTile& tile, const float (&dots)[4][8][4], int m,
                                   float scale) {
  const int lane = lane_index(), rows = p.queries.rows;
  const float* query_norms = p.queries.inverse_norms + m * p.queries.norm_stride;
  const float* candidate_norms = p.candidates.inverse_norms + m * p.candidates.norm_stride + tile.column;
  float column_scales[kColumnsOfLane];
#pragma unroll
  for (int i = 0; i < kColumnsOfLane; i += 2) {  // norms are padded to whole tiles with zeros
    const float2 pair = *reinterpret_cast<const float2*>(candidate_norms + i / 2 * 8 + lane % 4 * 2);
    column_scales[i] = pair.x, column_scales[i + 1] = pair.y;
  }
  const bool near_own = tile.meets_diagonal(p.own_column + tile.row);
#pragma unroll
  for (int half_row = 0; half_row < 8; ++half_row) {
    const int group = half_row / 2, half = half_row % 2;
    const int row = tile.row + 16 * group + 8 * half + lane / 4;
    const bool exists = row < rows;
    const float row_scale = exists ? query_norms[row] * scale : 0.0f;
    float scores[kColumnsOfLane], largest = kMasked;
#pragma unroll
    for (int i = 0; i < kColumnsOfLane; ++i) {
      scores[i] = dots[group][i / 2][2 * half + i % 2] * row_scale * column_scales[i];
    }
    const uint32_t masked = tile.masked[group] >> (half * kColumnsOfLane) & 0xffffu;
    if (masked != 0) apply_mask(scores, masked);  // rare
#pragma unroll
    for (int i = 0; i < kColumnsOfLane; ++i) largest = fmaxf(largest, scores[i]);
    const int64_t line = static_cast<int64_t>(m) * rows + row;
    if (near_own && exists) store_own(p, tile, scores, row, lane, p.own + line);
    float reference = quad_max(largest);
    if (p.logsumexp != nullptr) reference = exists ? p.logsumexp[line] : 0.0f;
    const float shift = reference == kMasked ? 0.0f : reference;  // all are masked: their weights are 0, not 1
    float sum = 0.0f, weighted = 0.0f;
    uint32_t packed[kColumnsOfLane / 2];
#pragma unroll
    for (int i = 0; i < kColumnsOfLane; i += 2) {
      const float first = fast_exp2(scores[i] - shift), second = fast_exp2(scores[i + 1] - shift);
      sum += first + second;
      weighted = fmaf(first, scores[i], fmaf(second, scores[i + 1], weighted));
      constexpr float kScale = Elements<Format>::kWeightScale;
      if constexpr (kStore) packed[i / 2] = Format::pack(first * kScale, second * kScale);
    }
    sum = quad_sum(sum), weighted = quad_sum(weighted);
    if (exists && lane % 4 == 0) {
      p.partials.store(p.partials.at(m, rows, row, tile.column / kSegment), reference, sum, weighted);
    }
    if constexpr (kStore) {
      uint16_t* out = static_cast<uint16_t*>(p.weights) + line * p.weight_stride + tile.column;
      const bool odd = lane % 2;
      // Neighbouring lanes exchange pairs, so that each has 4 adjacent columns and 4 lanes fill a 32-byte sector.
#pragma unroll
      for (int n = 0; n < kColumnsOfLane / 2; n += 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? packed[n] : packed[n + 1], 1);
        const uint2 four = odd ? make_uint2(other, packed[n + 1]) : make_uint2(packed[n], other);
        if (exists) *reinterpret_cast<uint2*>(out + (n + odd) * 8 + (lane & 2) * 2) = four;
      }
    }
  }
}

template <class Format, bool kStore>
__global__ void __launch_bounds__(Sm80Scores::kThreads, 2) sm80_scores(const __grid_constant__ ScoreParams p) {
  using Plan = Sm80Scores;
  using Tile = typename Plan::Tile;
  constexpr int kStages = Plan::kStages;
  unsigned char* shared = dynamic_shared_memory();
  const int first_row = static_cast<int>(blockIdx.x) * kTile, first_column = static_cast<int>(blockIdx.y) * kTile;
  const uint16_t* queries = static_cast<const uint16_t*>(p.queries.data) + first_row * p.queries.stride;
  const uint16_t* candidates = static_cast<const uint16_t*>(p.candidates.data) + first_column * p.candidates.stride;

  DepthWalk ahead, here;
  auto load_next = [&](int stage) {
    if (ahead.done(p.prefixes)) return;
    unsigned char* place = shared + stage * Plan::kStageBytes;
    const int chunks = ahead.chunks(p.prefixes);
    load_rows<Tile, Plan::kThreads>(place, queries + ahead.column, p.queries.stride, p.queries.rows - first_row,
                                    chunks);
    load_rows<Tile, Plan::kThreads>(place + Tile::kBytes, candidates + ahead.column, p.candidates.stride,
                                    p.candidates.rows - first_column, chunks);
    ahead.advance(p.prefixes);
  };
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) {
    load_next(stage);
    cp_async_commit();
  }

  const int warp_row = warp_index() / 2 * 64, warp_column = warp_index() % 2 * 64;
  ScoreTile tile{first_row + warp_row, first_column + warp_column, {}};
  find_masked(p, tile);
  const float scale = kLog2E / *p.temperature;
  float dots[4][8][4] = {};
  for (int step = 0; !here.done(p.prefixes); ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this step's vectors are visible to all; all have read those of the previous step
    load_next((step + kStages - 1) % kStages);
    cp_async_commit();
    const unsigned char* place = shared + step % kStages * Plan::kStageBytes;
    multiply_by_transposed<Format, Tile, Tile>(dots, place, warp_row, place + Tile::kBytes, warp_column);
    const int prefix = here.prefix;
    if (here.advance(p.prefixes)) fold_scores<Format, kStore>(p, tile, dots, prefix, scale);
  }
}

}  // namespace conan_fast
