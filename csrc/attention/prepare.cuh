// The small kernels before attention: the tile schedule of a packed batch, its rows that no sequence has, and
// delta = rowsum(dO * O).
#pragma once

#include "attention/params.h"
#include "device/numeric.h"
#include "device/thread.h"

namespace conan_fast {

constexpr int kScheduleThreads = 1024;
constexpr int kTokensPerWarp = 8, kTokensPerBlock = kScheduleThreads / kWarpSize * kTokensPerWarp;
constexpr int kScheduleSharedBytes = (kScheduleThreads + kWarpSize) * 4;

struct TokenRange {
  int first, length;
};

// Sequence s of a packed batch. The host cannot check offsets in GPU memory without synchronising, so they are clamped
// here to the tokens of q.
__device__ inline TokenRange token_range(const AttentionParams& p, int s) {
  int first = min(max(p.cu_seqlens[s], 0), p.tokens);
  int end = min(max(p.cu_seqlens[s + 1], first), p.tokens);
  return {first, min(end - first, p.max_seqlen)};
}

// Whether the kernels write this token's rows. The search finds its sequence if the offsets rise. If they do not, it
// may miss it, and rows are cleared that the next kernel then writes.
__device__ inline bool in_sequence(const AttentionParams& p, int token) {
  int low = 0, high = p.sequences;
  if (token < p.cu_seqlens[low] || token >= p.cu_seqlens[high]) return false;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.cu_seqlens[middle] <= token ? low : high) = middle;
  }
  const TokenRange range = token_range(p, low);
  return token >= range.first && token < range.first + range.length;
}

// Sets the rows of tokens that no sequence has to 0: those past cu_seqlens[-1], as when a CUDA graph is replayed with
// fewer tokens, and those of a sequence past max_seqlen. A warp has kTokensPerWarp tokens. This reads log2(sequences)
// offsets per token. A memset of all outputs would write them twice: a quarter more memory traffic in the forward pass,
// where short sequences are limited by memory.
__device__ inline void clear_rows_of_no_sequence(const AttentionParams& p, const ScheduledOutputs& outputs, int block) {
  const int lane = lane_index(), first = (block * (kScheduleThreads / kWarpSize) + warp_index()) * kTokensPerWarp;
  const int own = first + lane % kTokensPerWarp, chunks = outputs.head_dim / 8;
  const int keep = own >= p.tokens || in_sequence(p, own) ? 1 : 0;
  for (int i = 0; i < kTokensPerWarp; ++i) {
    if (__shfl_sync(0xffffffffu, keep, i) != 0) continue;
    const int token = first + i;
    auto clear = [&](const Rows& rows) {
      if (rows.data == nullptr) return;
      for (int chunk = lane; chunk < outputs.heads * chunks; chunk += kWarpSize) {
        uint16_t* target = rows.at(0, token, chunk / chunks) + chunk % chunks * 8;
        *reinterpret_cast<uint4*>(target) = make_uint4(0, 0, 0, 0);
      }
    };
    clear(outputs.first);
    clear(outputs.second);
    if (outputs.statistics == nullptr) continue;
    for (int head = lane; head < outputs.heads; head += kWarpSize) {
      outputs.statistics[static_cast<int64_t>(head) * p.tokens + token] = 0.0f;
    }
  }
}

// Block 0 writes the tiles of all sequences to p.schedule, those of the longest sequences first, so that no long
// sequence starts last: a counting sort of the sequences by their number of tiles. The other blocks clear rows of the
// outputs.
__global__ void __launch_bounds__(kScheduleThreads)
    schedule_tiles(const __grid_constant__ AttentionParams p, int tile_rows, int slots,
                   const __grid_constant__ ScheduledOutputs outputs) {
  if (blockIdx.x > 0) {
    clear_rows_of_no_sequence(p, outputs, static_cast<int>(blockIdx.x) - 1);
    return;
  }
  auto* starts = reinterpret_cast<int*>(dynamic_shared_memory());  // by class: number of tiles, then the next free slot
  int* warp_totals = starts + kScheduleThreads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  auto tiles_of = [&](int s) { return (token_range(p, s).length + tile_rows - 1) / tile_rows; };
  auto class_of = [](int tiles) { return kScheduleThreads - 1 - min(tiles, kScheduleThreads - 1); };  // longest: 0

  starts[thread] = 0;
  for (int slot = thread; slot < slots; slot += kScheduleThreads) p.schedule[slot] = {0, 0, 0, 0};
  __syncthreads();
  for (int s = thread; s < p.sequences; s += kScheduleThreads) {
    int tiles = tiles_of(s);
    atomicAdd(&starts[class_of(tiles)], tiles);
  }
  __syncthreads();
  // Exclusive prefix sum over the classes: within each warp, then over warps.
  const int count = starts[thread];
  int sum = count;
  for (int step = 1; step < kWarpSize; step *= 2) {
    int before = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == kWarpSize - 1) warp_totals[warp] = sum;
  __syncthreads();
  int earlier = 0;
  for (int w = 0; w < warp; ++w) earlier += warp_totals[w];
  starts[thread] = earlier + sum - count;
  __syncthreads();
  for (int s = warp; s < p.sequences; s += kScheduleThreads / kWarpSize) {
    TokenRange range = token_range(p, s);
    int tiles = tiles_of(s), start = 0;
    if (lane == 0) start = atomicAdd(&starts[class_of(tiles)], tiles);
    start = __shfl_sync(0xffffffffu, start, 0);
    for (int i = lane; i < tiles; i += kWarpSize) {
      // Under a causal mask the last tiles have the most work, so they are first.
      if (start + i < slots) p.schedule[start + i] = {range.first, range.length, tiles - 1 - i, 0};
    }
  }
}

constexpr int kDeltaThreads = 256, kDeltaThreadsPerRow = 16;

// delta = rowsum(grad_out * out) for every token and head: 16 lanes per row, 8 elements each.
template <class Format>
__global__ void __launch_bounds__(kDeltaThreads) row_delta(const __grid_constant__ AttentionParams p, int head_dim) {
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kDeltaThreads / kDeltaThreadsPerRow) + threadIdx.x / kDeltaThreadsPerRow;
  const int chunk = static_cast<int>(threadIdx.x) % kDeltaThreadsPerRow;
  const bool exists = row < static_cast<int64_t>(p.batch) * p.tokens * p.heads;
  const int head = static_cast<int>(row % p.heads);
  const int token = static_cast<int>(row / p.heads % p.tokens), batch = static_cast<int>(row / p.heads / p.tokens);
  float sum = 0.0f;
  if (exists && chunk * 8 < head_dim) {
    const uint4 grad = *reinterpret_cast<const uint4*>(p.grad_out.at(batch, token, head) + chunk * 8);
    const uint4 out = *reinterpret_cast<const uint4*>(p.out.at(batch, token, head) + chunk * 8);
    auto add = [&](uint32_t a, uint32_t b) {
      float2 x = Format::unpack(a), y = Format::unpack(b);
      sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
    };
    add(grad.x, out.x);
    add(grad.y, out.y);
    add(grad.z, out.z);
    add(grad.w, out.w);
  }
  for (int step = kDeltaThreadsPerRow / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (exists && chunk == 0) p.delta[(static_cast<int64_t>(batch) * p.heads + head) * p.tokens + token] = sum;
}

}  // namespace conan_fast
