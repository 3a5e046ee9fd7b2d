// One kernel for each built-in function of the emulation. The results are compared with CUDA's documentation.
#include "device/atomic.h"
#include "device/numeric.h"
#include "device/thread.h"
#include "device/warp.h"
#include "kernels.h"

namespace {

using namespace conan_fast;

constexpr unsigned kAll = 0xffffffffu;

// ---- Indices of a thread

// 12 integers for each thread, in the order of blocks and threads, x first.
__global__ void indices(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned rank = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  unsigned* mine = out + 12 * (block * blockDim.x * blockDim.y * blockDim.z + rank);
  __syncthreads();  // other threads run in between
  const unsigned values[12] = {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z,
                               gridDim.x,  gridDim.y,  gridDim.z,  blockDim.x,  blockDim.y,  blockDim.z};
  for (int i = 0; i < 12; ++i) mine[i] = values[i];
}

__global__ void thread_wrappers(int* out) {
  out[3 * threadIdx.x] = thread_index();
  out[3 * threadIdx.x + 1] = warp_index();
  out[3 * threadIdx.x + 2] = lane_index();
}

// ---- Exchange in a warp

// Rows of 32: __shfl_sync, __shfl_xor_sync, __shfl_up_sync, __shfl_down_sync, all with the argument of the lane.
template <class T>
__global__ void shuffles(const T* in, T* out, const int* arguments, int width) {
  const int lane = lane_index(), argument = arguments[lane];
  out[lane] = __shfl_sync(kAll, in[lane], argument, width);
  out[32 + lane] = __shfl_xor_sync(kAll, in[lane], argument, width);
  out[64 + lane] = __shfl_up_sync(kAll, in[lane], static_cast<unsigned>(argument), width);
  out[96 + lane] = __shfl_down_sync(kAll, in[lane], static_cast<unsigned>(argument), width);
}

// The two halves of the warp do not wait for each other.
__global__ void shuffle_in_halves(const int* in, int* out) {
  const int lane = lane_index();
  if (lane < 16) {
    out[lane] = __shfl_xor_sync(0x0000ffffu, in[lane], 1);
  } else {
    const int once = __shfl_xor_sync(0xffff0000u, in[lane], 1);
    out[lane] = __shfl_xor_sync(0xffff0000u, once, 2);
  }
}

// Rows of 32: ballot, any, all, among the lanes of `mask`.
__global__ void votes(const int* predicates, unsigned* out, unsigned mask) {
  const int lane = lane_index();
  if ((mask >> lane & 1) == 0) return;
  out[lane] = __ballot_sync(mask, predicates[lane]);
  out[32 + lane] = __any_sync(mask, predicates[lane]);
  out[64 + lane] = __all_sync(mask, predicates[lane]);
}

// Rows of 32: quad_max, quad_sum.
__global__ void quads(const float* in, float* out) {
  const int lane = lane_index();
  out[lane] = quad_max(in[lane]);
  out[32 + lane] = quad_sum(in[lane]);
}

// ---- Memory

__global__ void integer_atomics(const int* in, int* out, int* old) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  old[i] = atomicAdd(&out[0], 1);
  atomicAdd(&out[1], in[i]);
  atomicMax(&out[2], in[i]);
  atomicMin(&out[3], in[i]);
  atomicExch(&out[4], in[i]);
  for (int seen = out[5]; !(seen & 1 << i % 31);) {  // an atomic or, by compare and swap
    const int before = atomicCAS(&out[5], seen, seen | 1 << i % 31);
    if (before == seen) break;
    seen = before;
  }
}

__global__ void unsigned_atomics(const unsigned* in, unsigned* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&out[0], in[i]);
  atomicMax(&out[1], in[i]);
  atomicMin(&out[2], in[i]);
}

__global__ void float_atomics(const float* in, float* out, double* out_double) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&out[0], in[i]);
  atomic_add_pair(&out[2], in[i], -in[i]);
  atomicAdd(out_double, static_cast<double>(in[i]));
}

// Reads shared memory when a block starts, then overwrites it.
__global__ void fresh_shared_memory(float* out, unsigned* aligned) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared_memory());
  out[blockIdx.x * blockDim.x + thread_index()] = shared[thread_index()];
  shared[thread_index()] = 1;
  if (thread_index() == 0) aligned[blockIdx.x] = reinterpret_cast<uintptr_t>(shared) % 1024 == 0;
}

// Two arrays of one kernel, used at the same time.
__global__ void static_shared_memory(const int* in, int* out) {
  __shared__ int forward[64], backward[64];
  forward[thread_index()] = in[thread_index()];
  backward[63 - thread_index()] = in[thread_index()];
  __syncthreads();
  out[thread_index()] = 1000 * forward[63 - thread_index()] + backward[thread_index()];
}

// ---- Number formats

template <class Format>
__global__ void pack(const float* in, unsigned* out, int count) {
  for (int i = thread_index(); i < count; i += blockDim.x) out[i] = Format::pack(in[2 * i], in[2 * i + 1]);
}

template <class Format>
__global__ void unpack(const unsigned* in, float* out, int count) {
  for (int i = thread_index(); i < count; i += blockDim.x) {
    const float2 pair = Format::unpack(in[i]);
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

__global__ void exp2_log2(const float* in, float* exp2, float* log2, int count) {
  for (int i = thread_index(); i < count; i += blockDim.x) {
    exp2[i] = fast_exp2(in[i]);
    log2[i] = fast_log2(in[i]);
  }
}

}  // namespace

void add_function_kernels(Kernels& kernels) {
  kernels.add("indices", indices);
  kernels.add("thread wrappers", thread_wrappers);
  kernels.add("shuffles of int", shuffles<int>);
  kernels.add("shuffles of float", shuffles<float>);
  kernels.add("shuffles of double", shuffles<double>);
  kernels.add("shuffle in halves", shuffle_in_halves);
  kernels.add("votes", votes);
  kernels.add("quads", quads);
  kernels.add("integer atomics", integer_atomics);
  kernels.add("unsigned atomics", unsigned_atomics);
  kernels.add("float atomics", float_atomics);
  kernels.add("fresh shared memory", fresh_shared_memory);
  kernels.add("static shared memory", static_shared_memory);
  kernels.add("pack bfloat16", pack<Bf16>);
  kernels.add("pack float16", pack<Fp16>);
  kernels.add("unpack bfloat16", unpack<Bf16>);
  kernels.add("unpack float16", unpack<Fp16>);
  kernels.add("exp2 and log2", exp2_log2);
}
