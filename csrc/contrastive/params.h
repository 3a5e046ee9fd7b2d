// The arguments of the contrastive kernels.
//
// A score s^d_ij, of query row i, candidate column j and Matryoshka prefix d, is cosine / temperature in units of log
// 2: weights are powers of two. A launch has some rows of queries and one range of candidates. Tensors per prefix, row
// and column are [prefixes][rows][padded columns]; columns are padded to kTile.
#pragma once

#include <cstdint>

#include "device/platform.h"

namespace conan_fast {

constexpr int kTile = 128;          // columns and rows of a block's tile of scores
constexpr int kSegment = 64;        // columns per entry of Partials
constexpr int kGroupRows = 32;      // rows per entry of column_sums, see gradient_weights
constexpr int kMaxPrefixes = 32;    // gradient_weights then needs 64 KB of shared memory
constexpr int kMaxFeatures = 8192;  // elements of a vector, as many as a block of finish_gradient has in registers
constexpr int kNoOwn = -(1 << 30);  // own_column if the rows' own positives are not among the candidates

constexpr float kLn2 = 0.6931471805599453f;
// The score of a masked candidate: like -inf it has weight 0, but 0 times it is 0 and not NaN.
constexpr float kMasked = -1e30f;

// Matryoshka dims in rising order, multiples of 16.
struct Prefixes {
  int count = 0;
  int dims[kMaxPrefixes] = {};

  int last() const { return dims[count - 1]; }

  // The first prefix that includes this column; count if none does.
  __device__ int of_column(int column) const {
    int m = 0;
    while (m < count && column >= dims[m]) ++m;
    return m;
  }
};

// [rows, features], with stride 1 within a row and rows aligned to 16 bytes.
struct Vectors {
  const void* data = nullptr;
  int64_t stride = 0;  // elements
  int rows = 0;
  const float* inverse_norms = nullptr;  // [prefixes][norm_stride]; 0 for a zero vector; see prefix_norms
  int64_t norm_stride = 0;
  const int64_t* ids = nullptr;  // [rows]; null: all differ
};

// Partial sums over segments of kSegment columns: the reference r of a segment's weights, the sum of 2^(s - r) and the
// sum of 2^(s - r) s. [prefixes][rows][stride].
struct Partials {
  float *reference = nullptr, *sum = nullptr, *weighted = nullptr;
  int stride = 0, first = 0;  // first: the first segment of this launch

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
  int own_column = kNoOwn;           // the column of row 0's own positive; row i's is own_column + i
  float* own = nullptr;              // [prefixes][rows]: scores of the own positives that are among the candidates
  const float* logsumexp = nullptr;  // [prefixes][rows]: the references; null: each segment's maximum
  Partials partials;
  void* weights = nullptr;  // [prefixes][rows][weight_stride]: 2^(s - reference); null: not stored
  int64_t weight_stride = 0;
};

struct CombineParams {
  int rows = 0;
  Prefixes prefixes;
  Partials partials;             // all segments of all launches
  const float* extra = nullptr;  // [prefixes][rows][extra_columns]: scores of a row's private candidates
  int extra_columns = 0;
  bool known = false;          // whether logsumexp is an input
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
  void* weights = nullptr;       // in: as launch_scores writes them, out: H_m scale
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
  const float* scale = nullptr;      // 0-dim
  const float* row_scale = nullptr;  // [rows]; null: 1
  void* out = nullptr;               // [rows][out_stride], whole chunks of 8
  int64_t out_stride = 0;
  int chunks = 0;  // of 8 columns
};

struct PrivateParams {
  Vectors queries;
  Vectors negatives;  // [rows * count, features], without norms
  int count = 0;      // negatives of a row
  Prefixes prefixes;
  const float* temperature = nullptr;  // null: `scores` gets cosines
  float* scores = nullptr;             // [prefixes][rows][count]
  float* inverse_norms = nullptr;      // like scores
  // Backward.
  const float *weights = nullptr, *norm_part = nullptr;  // like scores: H_m, the factor of the vector itself
  const float* scale = nullptr;
  const float* row_scale = nullptr;  // [rows * count]
  float* product = nullptr;          // [rows][product_stride]: the queries' GEMM result, added to
  int64_t product_stride = 0;
  void* out = nullptr;  // [rows * count][out_stride]
  int64_t out_stride = 0;
  int chunks = 0;
};

}  // namespace conan_fast
