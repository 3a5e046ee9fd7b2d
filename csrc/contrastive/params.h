// What the contrastive kernels are told, and the words they share.
//
// Scores are cosine / temperature in units of log 2, so that weights are powers of two: s^d_ij for query row i,
// candidate column j and Matryoshka prefix d. A launch works on one block: some rows of queries and one range of
// candidates. Tensors per prefix, row and column are [prefixes][rows][padded columns]; columns are padded to kTile.
#pragma once

#include <cstdint>

#include "device/platform.h"

namespace conan_fast {

constexpr int kTile = 128;          // columns and rows of a block's tile of scores
constexpr int kSegment = 64;        // columns that share a maximum, see Partials
constexpr int kGroupRows = 32;      // rows that share a line of column sums, see gradient_weights
constexpr int kMaxPrefixes = 32;    // for which gradient_weights takes 64 KB of shared memory
constexpr int kMaxFeatures = 8192;  // numbers in a vector: what a block of finish_gradient holds in registers
constexpr int kNoOwn = -(1 << 30);  // own_column of a block without the rows' own positives

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
// Of a candidate that is left out, in place of -inf: its weight is 0 as well, and 0 times it is 0, not NaN.
constexpr float kMasked = -1e30f;

// Rising numbers of dimensions, multiples of 16.
struct Prefixes {
  int count = 0;
  int dims[kMaxPrefixes] = {};

  int last() const { return dims[count - 1]; }

  // The prefix whose last part (from the dims before it on) has this column; count if it lies past all of them.
  __device__ int of_column(int column) const {
    int m = 0;
    while (m < count && column >= dims[m]) ++m;
    return m;
  }
};

// Vectors, one a row, with stride 1 inside a row and rows aligned to 16 bytes.
struct Vectors {
  const void* data = nullptr;
  int64_t stride = 0;  // elements
  int rows = 0;
  const float* inverse_norms = nullptr;  // [prefixes][norm_stride]; 0 for a zero vector; see prefix_norms
  int64_t norm_stride = 0;
  const int64_t* ids = nullptr;  // [rows]; null: no two are the same
};

// Of each segment of kSegment columns of a row: the reference r that its weights are relative to, and the sums of
// 2^(s - r) and of 2^(s - r) s. [prefixes][rows][stride].
struct Partials {
  float *reference = nullptr, *sum = nullptr, *weighted = nullptr;
  int stride = 0, first = 0;  // first: where this block's segments begin

  __device__ int64_t at(int prefix, int rows, int row, int segment) const {
    return (static_cast<int64_t>(prefix) * rows + row) * stride + first + segment;
  }
  __device__ void store(int64_t index, float row_reference, float row_sum, float row_weighted) const {
    reference[index] = row_reference, sum[index] = row_sum, weighted[index] = row_weighted;
  }
};

struct ScoreParams {
  Vectors queries, candidates;
  Prefixes prefixes;
  const float* temperature = nullptr;
  int own_column = kNoOwn;           // of row 0's own positive; row i has own_column + i
  float* own = nullptr;              // [prefixes][rows]: the own positives' scores, written if they are in the block
  const float* logsumexp = nullptr;  // [prefixes][rows]: if given, it is the reference, else each segment's maximum
  Partials partials;
  void* weights = nullptr;  // [prefixes][rows][weight_stride]: 2^(s - reference); null: not wanted
  int64_t weight_stride = 0;
};

struct CombineParams {
  int rows = 0;
  Prefixes prefixes;
  Partials partials;             // all segments of all blocks
  const float* extra = nullptr;  // [prefixes][rows][extra_columns]: scores of candidates that only their row has
  int extra_columns = 0;
  bool known = false;          // whether logsumexp is given
  float* logsumexp = nullptr;  // [prefixes][rows], log 2 units
  float* mean = nullptr;       // [prefixes][rows]: sum_j 2^(s - logsumexp) s, natural units
};

struct WeightParams {
  Vectors queries, candidates;  // their norms
  Prefixes prefixes;
  float factors[kMaxPrefixes] = {};  // w_d
  int own_column = kNoOwn;
  const float *own = nullptr, *logsumexp = nullptr;  // [prefixes][rows]
  Partials partials;
  const float* scale = nullptr;  // null: 1
  void* weights = nullptr;       // in: as scores leave them, out: H_m scale
  int64_t weight_stride = 0;
  float* column_sums = nullptr;  // [groups of kGroupRows rows][prefixes][weight_stride]
};

struct FinishParams {
  const float* product = nullptr;  // [rows][product_stride]
  int64_t product_stride = 0;
  Vectors vectors;
  Prefixes prefixes;
  const float* norm_part = nullptr;  // [prefixes][norm_part_stride]
  int64_t norm_part_stride = 0;
  const float* scale = nullptr;      // one number
  const float* row_scale = nullptr;  // [rows]; null: 1
  void* out = nullptr;               // [rows][out_stride], whole chunks of 8
  int64_t out_stride = 0;
  int chunks = 0;  // of 8 columns
};

struct PrivateParams {
  Vectors queries;
  Vectors negatives;  // [rows, count], one after another; no norms
  int count = 0;      // of a row
  Prefixes prefixes;
  const float* temperature = nullptr;  // null: plain cosines are wanted in place of scores
  float* scores = nullptr;             // [prefixes][rows][count]
  float* inverse_norms = nullptr;      // like scores
  // Backward.
  const float *weights = nullptr, *norm_part = nullptr;  // like scores: H_m, and the factor of the vector itself
  const float* scale = nullptr;
  const float* row_scale = nullptr;  // [rows * count]
  float* product = nullptr;          // [rows][product_stride]: of the queries, added to
  int64_t product_stride = 0;
  void* out = nullptr;  // [rows * count][out_stride]
  int64_t out_stride = 0;
  int chunks = 0;
};

}  // namespace conan_fast
