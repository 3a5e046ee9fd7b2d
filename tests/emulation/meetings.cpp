// Kernels whose threads wait for each other, some of them for ever.
#include "device/mma.h"
#include "device/thread.h"
#include "kernels.h"

// A wrapper of bar.sync that records the place of the call, as __syncthreads does.
#define NAMED_BARRIER(id, threads) emulation::named_barrier(id, threads, __FILE__, __LINE__)

namespace {

using namespace conan_fast;

constexpr unsigned kAll = 0xffffffffu;

// ---- Collectives that not all lanes reach

struct Mma {
  static __device__ void run() {
    float d[4] = {};
    const uint32_t a[4] = {};
    mma_m16n8k16<Bf16>(d, a, 0, 0);
  }
};

struct Ldmatrix {
  static __device__ void run() {
    uint32_t out[4];
    ldmatrix<4, false>(out, dynamic_shared_memory(), lane_index() * 16);
  }
};

struct LdmatrixTransposed {
  static __device__ void run() {
    uint32_t out[4];
    ldmatrix<4, true>(out, dynamic_shared_memory(), lane_index() * 16);
  }
};

struct LdmatrixOfTwo {
  static __device__ void run() {
    uint32_t out[2];
    ldmatrix<2, false>(out, dynamic_shared_memory(), lane_index() % 16 * 16);
  }
};

struct Fp16Mma {
  static __device__ void run() {
    float d[4] = {};
    const uint32_t a[4] = {};
    mma_m16n8k16<Fp16>(d, a, 0, 0);
  }
};

struct ShuffleXor {
  static __device__ void run() { __shfl_xor_sync(kAll, lane_index(), 1); }
};

struct ShuffleDown {
  static __device__ void run() { __shfl_down_sync(kAll, lane_index(), 1); }
};

struct Ballot {
  static __device__ void run() { __ballot_sync(kAll, 1); }
};

struct Exit {};

// Lanes below `lanes` come to First, the others to Second, or they leave the kernel.
template <class First, class Second>
__global__ void split(int lanes) {
  if (lane_index() < lanes) {
    First::run();
  } else if constexpr (std::is_same_v<Second, Exit>) {
    return;
  } else {
    Second::run();
  }
  __syncthreads();
}

// Lanes below `lanes` come to a collective, the others wait for the block.
template <class Collective>
__global__ void skip(int lanes) {
  if (lane_index() < lanes) Collective::run();
  __syncthreads();
}

// Lanes below `lanes` name `first` as the lanes that take part, the others `second`.
__global__ void masks(int lanes, unsigned first, unsigned second) {
  __shfl_xor_sync(lane_index() < lanes ? first : second, 1.0f, 1);
}

// Lanes below `lanes` get the value of lane `source`, after the others have left the kernel.
__global__ void shuffle_after_exit(int* out, int lanes, int source) {
  const int lane = lane_index();
  if (lane < lanes) out[lane] = __shfl_sync(kAll, 100 + lane, source);
}

// ---- Barriers of the block

__global__ void one_barrier_in_two_branches(int lanes) {
  if (lane_index() < lanes) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// Warp 0 runs `more` rounds more than the others, which have exited by then.
__global__ void barriers_of_those_left(int* out, int rounds, int more) {
  if (warp_index() == 0) rounds += more;
  for (int round = 0; round < rounds; ++round) __syncthreads();
  out[thread_index()] = rounds;
}

// Warp 0 waits for the block, the others at a barrier of `threads` threads.
__global__ void two_kinds_of_barrier(int threads) {
  if (warp_index() == 0) {
    __syncthreads();
  } else {
    NAMED_BARRIER(3, threads);
  }
}

// ---- Named barriers

// Pairs of warps exchange values, each pair at its own barrier: warps 2p and 2p + 1 at barrier 1 + p.
__global__ void exchange_in_pairs(const float* in, float* out, int rounds, int threads) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory());
  const int i = thread_index(), barrier = 1 + warp_index() / 2;
  float value = in[i];
  for (int round = 0; round < rounds; ++round) {
    shared[i] = value;
    NAMED_BARRIER(barrier, threads);
    value = shared[i ^ 32];
    NAMED_BARRIER(barrier, threads);
  }
  out[i] = value;
}

__global__ void named_barrier_of(int id, int threads) { NAMED_BARRIER(id, threads); }

__global__ void warps_count_differently(int first, int others) { NAMED_BARRIER(1, warp_index() == 0 ? first : others); }

// Both warps pass two barriers: in the same order, or crossed.
template <bool kCrossed>
__global__ void two_barriers() {
  const bool other_way = kCrossed && warp_index() == 1;
  NAMED_BARRIER(other_way ? 2 : 1, 64);
  NAMED_BARRIER(other_way ? 1 : 2, 64);
}

__global__ void trap_in(int block, int thread) {
  if (blockIdx.x == static_cast<unsigned>(block) && thread_index() == thread) __trap();
}

}  // namespace

void add_meeting_kernels(Kernels& kernels) {
  kernels.add("mma or exit", split<Mma, Exit>);
  kernels.add("ldmatrix or exit", split<Ldmatrix, Exit>);
  kernels.add("mma or ldmatrix", split<Mma, Ldmatrix>);
  kernels.add("ldmatrix or ldmatrix.trans", split<Ldmatrix, LdmatrixTransposed>);
  kernels.add("ldmatrix.x4 or .x2", split<Ldmatrix, LdmatrixOfTwo>);
  kernels.add("bf16 mma or fp16 mma", split<Mma, Fp16Mma>);
  kernels.add("shuffle xor or down", split<ShuffleXor, ShuffleDown>);
  kernels.add("shuffle or ballot", split<ShuffleXor, Ballot>);
  kernels.add("mma or nothing", skip<Mma>);
  kernels.add("ldmatrix or nothing", skip<Ldmatrix>);
  kernels.add("shuffle or nothing", skip<ShuffleXor>);
  kernels.add("masks", masks);
  kernels.add("shuffle after exit", shuffle_after_exit);

  kernels.add("one barrier in two branches", one_barrier_in_two_branches);
  kernels.add("barriers of those left", barriers_of_those_left);
  kernels.add("two kinds of barrier", two_kinds_of_barrier);
  kernels.add("exchange in pairs", exchange_in_pairs);
  kernels.add("named barrier of", named_barrier_of);
  kernels.add("warps count differently", warps_count_differently);
  kernels.add("two barriers", two_barriers<false>);
  kernels.add("two barriers, crossed", two_barriers<true>);
  kernels.add("trap in", trap_in);
}
