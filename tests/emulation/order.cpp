// Kernels whose results depend on the order of the threads if a barrier or a wait is missing, and kernels that record
// the order.
#include "device/copy.h"
#include "device/thread.h"
#include "kernels.h"

namespace {

using namespace conan_fast;

// ---- Barriers

enum class Barriers { kAll, kNotAfterWriting, kNotBeforeOverwriting };

// Each round moves every value by 33 places, into another warp and another lane.
template <Barriers kBarriers>
__global__ void rotate(const float* in, float* out, int rounds) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory());
  const int i = thread_index(), from = (i + 33) % blockDim.x;
  float value = in[i];
  for (int round = 0; round < rounds; ++round) {
    shared[i] = value;
    if constexpr (kBarriers != Barriers::kNotAfterWriting) __syncthreads();
    value = shared[from];
    if constexpr (kBarriers != Barriers::kNotBeforeOverwriting) __syncthreads();
  }
  out[i] = value;
}

// The same among the lanes of one warp.
template <Barriers kBarriers>
__global__ void rotate_lanes(const float* in, float* out, int rounds) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory());
  const int lane = lane_index();
  float value = in[lane];
  for (int round = 0; round < rounds; ++round) {
    shared[lane] = value;
    if constexpr (kBarriers != Barriers::kNotAfterWriting) __syncwarp();
    value = shared[(lane + 5) % 32];
    if constexpr (kBarriers != Barriers::kNotBeforeOverwriting) __syncwarp();
  }
  out[lane] = value;
}

// The sum of each row, one row after another, through static shared memory.
template <Barriers kBarriers>
__global__ void row_sums(const float* in, float* out, int rows) {
  __shared__ float of_warps[32];
  for (int row = 0; row < rows; ++row) {
    float sum = in[row * blockDim.x + thread_index()];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane_index() == 0) of_warps[warp_index()] = sum;
    if constexpr (kBarriers != Barriers::kNotAfterWriting) __syncthreads();
    if (thread_index() == 0) {
      float all = 0;
      for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) all += of_warps[warp];
      out[row] = all;
    }
    if constexpr (kBarriers != Barriers::kNotBeforeOverwriting) __syncthreads();
  }
}

// ---- Asynchronous copies

enum class Copies {
  kRight,
  kNoWait,
  kWaitLeavesTooMany,
  kFirstCommitMissing,
  kNoBarrierAfterWait,
  kBarrierBeforeWait,
  kNoBarrierBeforeCopy,
  kNoCommit,    // not even the wait at the end covers them
  kNeverWaited  // nor is there a wait at the end
};

// Tiles of 16 bytes for each thread through two buffers: tile t is copied while tile t - 1 is read, in reverse order.
template <Copies kCopies>
__global__ void copy_tiles(const float* in, float* out, int tiles) {
  unsigned char* shared = dynamic_shared_memory();
  const int threads = blockDim.x, i = thread_index(), tile_floats = 4 * threads;
  const auto copy_tile = [&](int tile) {
    cp_async_16(shared, (tile % 2 * threads + i) * 16, in + tile * tile_floats + i * 4, true);
  };
  copy_tile(0);
  if constexpr (kCopies != Copies::kFirstCommitMissing && kCopies != Copies::kNoCommit) cp_async_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) copy_tile(tile + 1);
    // The last commit closes an empty group, because the wait counts groups.
    if constexpr (kCopies != Copies::kNoCommit) cp_async_commit();
    if constexpr (kCopies == Copies::kBarrierBeforeWait) __syncthreads();
    if constexpr (kCopies == Copies::kWaitLeavesTooMany) {
      cp_async_wait<2>();
    } else if constexpr (kCopies != Copies::kNoWait && kCopies != Copies::kNeverWaited) {
      cp_async_wait<1>();
    }
    if constexpr (kCopies != Copies::kNoBarrierAfterWait && kCopies != Copies::kBarrierBeforeWait) __syncthreads();
    const auto* read = reinterpret_cast<const float*>(shared + (tile % 2 * threads + threads - 1 - i) * 16);
    for (int k = 0; k < 4; ++k) out[tile * tile_floats + i * 4 + k] = read[k];
    if constexpr (kCopies != Copies::kNoBarrierBeforeCopy) __syncthreads();
  }
  if constexpr (kCopies != Copies::kNeverWaited) cp_async_wait<0>();
}

// kBytes for each thread, zeros from thread `valid` on, whose addresses are past the end and never read.
template <int kBytes>
__global__ void copy_valid(const float* in, float* out, int valid) {
  unsigned char* shared = dynamic_shared_memory();
  const int i = thread_index(), floats = kBytes / 4;
  if constexpr (kBytes == 16) cp_async_16(shared, i * 16, in + i * 4, i < valid);
  if constexpr (kBytes == 4) cp_async_4(shared, i * 4, in + i, i < valid);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int k = 0; k < floats; ++k) out[i * floats + k] = reinterpret_cast<const float*>(shared)[i * floats + k];
}

// Writes over what it copied, before or after the copy has arrived.
template <bool kWaitsFirst>
__global__ void copy_then_clear(float* in, float* out) {
  unsigned char* shared = dynamic_shared_memory();
  const int i = thread_index();
  cp_async_4(shared, i * 4, in + i, true);
  cp_async_commit();
  if constexpr (kWaitsFirst) cp_async_wait<0>();
  in[i] = 0;
  cp_async_wait<0>();
  out[i] = reinterpret_cast<const float*>(shared)[i];
}

// ---- The order itself

// Each warp records its number `entries` times, with a collective in between.
__global__ void warp_order(unsigned* count, int* order, int entries) {
  for (int entry = 0; entry < entries; ++entry) {
    if (lane_index() == 0) order[atomicAdd(count, 1u)] = warp_index();
    __syncwarp();
  }
}

// The same with a barrier of the block in between.
__global__ void warp_order_between_barriers(unsigned* count, int* order, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    if (lane_index() == 0) order[atomicAdd(count, 1u)] = warp_index();
    __syncthreads();
  }
}

__global__ void lane_order(unsigned* count, int* order, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    order[atomicAdd(count, 1u)] = lane_index();
    __syncwarp();
  }
}

__global__ void block_order(unsigned* count, int* order) {
  if (thread_index() == 0) order[atomicAdd(count, 1u)] = blockIdx.x;
}

}  // namespace

void add_order_kernels(Kernels& kernels) {
  kernels.add("rotate", rotate<Barriers::kAll>);
  kernels.add("rotate, no barrier after writing", rotate<Barriers::kNotAfterWriting>);
  kernels.add("rotate, no barrier before overwriting", rotate<Barriers::kNotBeforeOverwriting>);
  kernels.add("rotate lanes", rotate_lanes<Barriers::kAll>);
  kernels.add("rotate lanes, no barrier after writing", rotate_lanes<Barriers::kNotAfterWriting>);
  kernels.add("rotate lanes, no barrier before overwriting", rotate_lanes<Barriers::kNotBeforeOverwriting>);
  kernels.add("row sums", row_sums<Barriers::kAll>);
  kernels.add("row sums, no barrier after writing", row_sums<Barriers::kNotAfterWriting>);
  kernels.add("row sums, no barrier before overwriting", row_sums<Barriers::kNotBeforeOverwriting>);

  kernels.add("copy tiles", copy_tiles<Copies::kRight>);
  kernels.add("copy tiles, no wait", copy_tiles<Copies::kNoWait>);
  kernels.add("copy tiles, wait leaves too many", copy_tiles<Copies::kWaitLeavesTooMany>);
  kernels.add("copy tiles, first commit missing", copy_tiles<Copies::kFirstCommitMissing>);
  kernels.add("copy tiles, no barrier after wait", copy_tiles<Copies::kNoBarrierAfterWait>);
  kernels.add("copy tiles, barrier before wait", copy_tiles<Copies::kBarrierBeforeWait>);
  kernels.add("copy tiles, no barrier before copy", copy_tiles<Copies::kNoBarrierBeforeCopy>);
  kernels.add("copy tiles, no commit", copy_tiles<Copies::kNoCommit>);
  kernels.add("copy tiles, never waited", copy_tiles<Copies::kNeverWaited>);
  kernels.add("copy valid 16", copy_valid<16>);
  kernels.add("copy valid 4", copy_valid<4>);
  kernels.add("copy, then clear", copy_then_clear<true>);
  kernels.add("copy, clear too early", copy_then_clear<false>);

  kernels.add("warp order", warp_order);
  kernels.add("warp order between barriers", warp_order_between_barriers);
  kernels.add("lane order", lane_order);
  kernels.add("block order", block_order);
}
