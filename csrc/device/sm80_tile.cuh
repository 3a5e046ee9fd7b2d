// Tiles in shared memory and a warp's matrix products of them, by mma.m16n8k16.
#pragma once

#include "device/copy.h"
#include "device/mma.h"
#include "device/thread.h"

namespace conan_fast {

// [kRows][kColumns] 16-bit elements in chunks of 16 bytes. ldmatrix reads a chunk of 8 successive rows at a time;
// without bank conflicts these are in 8 different groups of 4 banks. Rows of an odd multiple of 2^n chunks start in 8 /
// 2^n different groups (n <= 3); XOR of the chunk's n low bits with row bits makes them 8. So a row of head_dim 112
// takes 112 elements without padding to 128: 14 chunks, one bit flipped every 4 rows.
template <int kRows_, int kColumns_>
struct SharedTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kChunks = kColumns / 8;
  static_assert(kColumns % 16 == 0);
  static constexpr int kFlippedBits = kChunks % 8 == 0 ? 3 : kChunks % 4 == 0 ? 2 : 1;
  static constexpr int kBytes = kRows * kColumns * 2;

  static constexpr int kRowBytes = kColumns * 2, kFlipMask = (1 << kFlippedBits) - 1;

  static __device__ int flip(int row) { return (row >> (3 - kFlippedBits)) & kFlipMask; }
  static __device__ int offset(int row, int chunk) { return row * kRowBytes + (chunk ^ flip(row)) * 16; }
};

// The offset of chunk (row + lane_row, chunk + lane_chunk) in one register, at most one XOR and an immediate of the
// instruction that uses it. row (a multiple of 8) and chunk (even) are compile-time constants; lane_chunk is 0 or 1, or
// chunk is 0.
template <class Tile>
struct LaneOffset {
  int base;

  __device__ LaneOffset(int lane_row, int lane_chunk) : base(Tile::offset(lane_row, lane_chunk)) {}
  __device__ int at(int row, int chunk) const {
    return (base ^ ((chunk & Tile::kFlipMask) * 16)) + row * Tile::kRowBytes + (chunk & ~Tile::kFlipMask) * 16;
  }
};

// Starts copying rows 0..kRows - 1 of `source` to a tile. Rows from valid_rows on, and chunks of 8 columns from
// valid_chunks on, become zero. 4, 8 or 16 threads per row (2 of 16 idle at head_dim 112), so that addresses advance by
// a constant.
template <class Tile, int kThreads>
__device__ inline void load_rows(unsigned char* tile, const uint16_t* source, int64_t row_stride, int valid_rows,
                                 int valid_chunks = Tile::kChunks) {
  constexpr int kThreadsPerRow = Tile::kChunks <= 4 ? 4 : Tile::kChunks <= 8 ? 8 : 16;
  constexpr int kRowsAtOnce = kThreads / kThreadsPerRow;
  static_assert(Tile::kChunks <= 16 && Tile::kRows % kRowsAtOnce == 0);
  const int thread = thread_index(), chunk = thread % kThreadsPerRow, first = thread / kThreadsPerRow;
  if (chunk >= Tile::kChunks) return;
  const LaneOffset<Tile> to(first, chunk);
  const uint16_t* place = source + first * row_stride + chunk * 8;  // computed but not read past the end
#pragma unroll
  for (int i = 0; i < Tile::kRows / kRowsAtOnce; ++i) {
    cp_async_16(tile, to.at(i * kRowsAtOnce, 0), place, first + i * kRowsAtOnce < valid_rows && chunk < valid_chunks);
    place += kRowsAtOnce * row_stride;
  }
}

// sum[m][n] += A B^T over all columns, of rows a_row.. of A and rows b_row.. of B, both in shared memory.
template <class Format, class TileA, class TileB, int kM, int kN>
__device__ inline void multiply_by_transposed(float (&sum)[kM][kN][4], const unsigned char* a, int a_row,
                                              const unsigned char* b, int b_row) {
  static_assert(TileA::kColumns == TileB::kColumns && kN % 2 == 0);
  const int lane = lane_index();
  const LaneOffset<TileA> from_a(a_row + lane % 16, lane / 16);
  const LaneOffset<TileB> from_b(b_row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  // 128 columns take two rounds of 64: with all steps unrolled the compiler hoists so many loads that registers spill
  // (8 to 60 bytes in the forward kernel).
  constexpr int kSteps = TileA::kColumns / 16, kRounds = kSteps == 8 ? 2 : 1;
#pragma unroll 1
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int step = 0; step < kSteps / kRounds; ++step) {
      uint32_t left[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) ldmatrix<4, false>(left[m], a, from_a.at(16 * m, 2 * step) + round * 128);
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t right[4];
        ldmatrix<4, false>(right, b, from_b.at(8 * n, 2 * step) + round * 128);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_m16n8k16<Format>(sum[m][n], left[m], right[0], right[1]);
          mma_m16n8k16<Format>(sum[m][n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }
}

// sum[m][n] += A B, of 16 columns (k) of the left operand and 16 rows of B from b_row on, columns from 8 b_chunk on.
template <class Format, class TileB, int kM, int kN>
__device__ inline void multiply_step(float (&sum)[kM][kN][4], const uint32_t (&left)[kM][4], const unsigned char* b,
                                     int b_row, int b_chunk = 0) {
  const int lane = lane_index();
  const LaneOffset<TileB> from_b(lane % 16, lane / 16);
#pragma unroll
  for (int n = 0; n + 1 < kN; n += 2) {
    uint32_t right[4];
    // A run-time b_chunk may be odd (head_dim 112 in two halves of 7 chunks).
    int offset = b_chunk == 0 ? from_b.at(b_row, n) : TileB::offset(b_row + lane % 16, b_chunk + n + lane / 16);
    ldmatrix<4, true>(right, b, offset);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      mma_m16n8k16<Format>(sum[m][n], left[m], right[0], right[1]);
      mma_m16n8k16<Format>(sum[m][n + 1], left[m], right[2], right[3]);
    }
  }
  if constexpr (kN % 2 == 1) {
    uint32_t right[2];
    ldmatrix<2, true>(right, b, TileB::offset(b_row + lane % 16, b_chunk + kN - 1));
#pragma unroll
    for (int m = 0; m < kM; ++m) mma_m16n8k16<Format>(sum[m][kN - 1], left[m], right[0], right[1]);
  }
}

// sum[m][n] += left B, where `left` holds the accumulators of another matrix product, here rounded to 16 bits, and B
// has 8 kK rows.
//
// All of `left` is rounded first, and the columns of B are the outer loop: rounding in each step would keep up to 64
// fp32 registers alive (56 bytes spilled in the forward kernel at head_dim 128 on sm_90a). Four accumulators at a time,
// so that successive mma instructions are independent.
template <class Format, class TileB, int kM, int kK, int kN>
__device__ inline void multiply_registers(float (&sum)[kM][kN][4], const float (&left)[kM][kK][4],
                                          const unsigned char* b) {
  static_assert(kN % 2 == 0);
  uint32_t packed[kK / 2][kM][4];
#pragma unroll
  for (int step = 0; step < kK / 2; ++step) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&source)[4] = left[m][2 * step + i / 2];
        packed[step][m][i] = Format::pack(source[i % 2 * 2], source[i % 2 * 2 + 1]);
      }
    }
  }
  const int lane = lane_index();
  const LaneOffset<TileB> from_b(lane % 16, lane / 16);
  constexpr int kColumns = 4 / kM;
#pragma unroll
  for (int first = 0; first < kN; first += kColumns) {
#pragma unroll
    for (int step = 0; step < kK / 2; ++step) {
#pragma unroll
      for (int n = first; n < min(first + kColumns, kN); n += 2) {
        uint32_t right[4];
        ldmatrix<4, true>(right, b, from_b.at(16 * step, n));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_m16n8k16<Format>(sum[m][n], packed[step][m], right[0], right[1]);
          mma_m16n8k16<Format>(sum[m][n + 1], packed[step][m], right[2], right[3]);
        }
      }
    }
  }
}

// Writes a warp's 16 kM accumulator rows, times a factor per row half, to its rows of a tile, then from there in whole
// chunks to global memory, up to row valid_rows. No other warp may use these rows of the tile.
template <class Format, class Tile, int kM, int kN>
__device__ inline void store_rows(const float (&sum)[kM][kN][4], const float (&factor)[kM][2], unsigned char* tile,
                                  int tile_row, uint16_t* target, int64_t row_stride, int valid_rows) {
  static_assert(kN == Tile::kChunks);
  int lane = lane_index();
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int row = tile_row + 16 * m + 8 * half + lane / 4;
        auto* place = reinterpret_cast<uint32_t*>(tile + Tile::offset(row, n)) + lane % 4;
        *place = Format::pack(sum[m][n][2 * half] * factor[m][half], sum[m][n][2 * half + 1] * factor[m][half]);
      }
    }
  }
  __syncwarp();
  constexpr int kThreadsPerRow = Tile::kChunks <= 8 ? 8 : 16;
  int chunk = lane % kThreadsPerRow;
  if (chunk >= Tile::kChunks) return;
#pragma unroll
  for (int row = lane / kThreadsPerRow; row < 16 * kM; row += kWarpSize / kThreadsPerRow) {
    if (row < valid_rows) {
      const auto* place = reinterpret_cast<const uint4*>(tile + Tile::offset(tile_row + row, chunk));
      *reinterpret_cast<uint4*>(target + row * row_stride + chunk * 8) = *place;
    }
  }
}

}  // namespace conan_fast
