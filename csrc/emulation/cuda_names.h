// The CUDA names that kernels use, for the host compiler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation/emulation.h"
#include "emulation/vector_types.h"

// ---- Keywords. __restrict__ is a keyword of the host compiler. __noinline__ is missing: the standard library has an
// attribute of that name.
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A host thread runs one block at a time, so one copy per host thread is one copy per block.
#define __shared__ static thread_local

// ---- Built-in variables, set at every switch between fibers. All fibers of a launch belong to one host thread.
inline thread_local uint3 threadIdx{0, 0, 0};
inline thread_local uint3 blockIdx{0, 0, 0};
inline thread_local dim3 blockDim{1, 1, 1};
inline thread_local dim3 gridDim{1, 1, 1};
constexpr int warpSize = 32;

// ---- Barriers and fences. Fibers switch only where they wait, so memory accesses are in program order.
#define __syncthreads() ::emulation::block_barrier(__FILE__, __LINE__)

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation::masked_collective("__syncwarp", mask, nullptr, nullptr);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

[[noreturn]] inline void __trap() { emulation::fail("__trap()"); }

// ---- Data exchange between the lanes of a warp
namespace emulation {

struct Shuffle {
  uint64_t given, received;
  int source;  // lane
};

inline void exchange(void* const lanes[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    auto& mine = *static_cast<Shuffle*>(lanes[lane]);
    const auto* source = static_cast<const Shuffle*>(lanes[mine.source]);
    if (source == nullptr) fail("shuffle: lane %d reads from lane %d, which does not take part", lane, mine.source);
    mine.received = source->given;
  }
}

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source) {
  static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_trivially_copyable<T>::value, "32-bit and 64-bit types");
  Shuffle mine{0, 0, source};
  std::memcpy(&mine.given, &value, sizeof(T));
  masked_collective(name, mask, &mine, exchange);
  std::memcpy(&value, &mine.received, sizeof(T));
  return value;
}

struct Vote {
  unsigned predicate, ballot, voters;
};

inline void count_votes(void* const lanes[32]) {
  unsigned ballot = 0, voters = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    voters |= 1u << lane;
    ballot |= static_cast<Vote*>(lanes[lane])->predicate << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    static_cast<Vote*>(lanes[lane])->ballot = ballot;
    static_cast<Vote*>(lanes[lane])->voters = voters;
  }
}

inline Vote vote(const char* name, unsigned mask, int predicate) {
  Vote mine{predicate != 0, 0, 0};
  masked_collective(name, mask, &mine, count_votes);
  return mine;
}

}  // namespace emulation

// A width below 32 splits the warp into segments. A source outside of the lane's segment gives the lane's own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int segment = emulation::lane_rank() & ~(width - 1);
  return emulation::shuffle("__shfl_sync", mask, value, segment | (source & (width - 1)));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = emulation::lane_rank(), source = lane ^ lane_mask;
  return emulation::shuffle("__shfl_xor_sync", mask, value, source <= (lane | (width - 1)) ? source : lane);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulation::lane_rank(), source = lane + static_cast<int>(delta);
  return emulation::shuffle("__shfl_down_sync", mask, value, source <= (lane | (width - 1)) ? source : lane);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulation::lane_rank(), source = lane - static_cast<int>(delta);
  return emulation::shuffle("__shfl_up_sync", mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulation::vote("__ballot_sync", mask, predicate).ballot;
}

inline int __any_sync(unsigned mask, int predicate) {
  return emulation::vote("__any_sync", mask, predicate).ballot != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
  const emulation::Vote result = emulation::vote("__all_sync", mask, predicate);
  return result.ballot == result.voters;
}

// ---- Atomics: plain code, since fibers do not switch inside of them. All return the old value.
namespace emulation {

template <class T>
T replace(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}

}  // namespace emulation

inline float atomicAdd(float* address, float value) { return emulation::replace(address, *address + value); }
inline double atomicAdd(double* address, double value) { return emulation::replace(address, *address + value); }
inline unsigned atomicAdd(unsigned* address, unsigned value) { return emulation::replace(address, *address + value); }
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return emulation::replace(address, *address + value);
}
inline int atomicAdd(int* address, int value) {  // wraps around, as on the device
  return emulation::replace(address, static_cast<int>(static_cast<unsigned>(*address) + static_cast<unsigned>(value)));
}
inline int atomicMax(int* address, int value) { return emulation::replace(address, std::max(*address, value)); }
inline unsigned atomicMax(unsigned* address, unsigned value) {
  return emulation::replace(address, std::max(*address, value));
}
inline int atomicMin(int* address, int value) { return emulation::replace(address, std::min(*address, value)); }
inline unsigned atomicMin(unsigned* address, unsigned value) {
  return emulation::replace(address, std::min(*address, value));
}
inline int atomicExch(int* address, int value) { return emulation::replace(address, value); }
inline unsigned atomicExch(unsigned* address, unsigned value) { return emulation::replace(address, value); }
inline int atomicCAS(int* address, int expected, int value) {
  return emulation::replace(address, *address == expected ? value : *address);
}
inline unsigned atomicCAS(unsigned* address, unsigned expected, unsigned value) {
  return emulation::replace(address, *address == expected ? value : *address);
}

// ---- Bits and numbers
namespace emulation {

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

}  // namespace emulation

inline unsigned __float_as_uint(float value) { return emulation::bits_as<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return emulation::bits_as<float>(value); }
inline int __float_as_int(float value) { return emulation::bits_as<int>(value); }
inline float __int_as_float(int value) { return emulation::bits_as<float>(value); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
// Macros, since the C library has functions of these names.
#define __expf(value) std::exp(static_cast<float>(value))
#define __logf(value) std::log(static_cast<float>(value))
#define __log2f(value) std::log2(static_cast<float>(value))
inline float __fdividef(float a, float b) { return a / b; }

constexpr int min(int a, int b) { return b < a ? b : a; }
constexpr int max(int a, int b) { return a < b ? b : a; }
constexpr unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
constexpr unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
constexpr long long min(long long a, long long b) { return b < a ? b : a; }
constexpr long long max(long long a, long long b) { return a < b ? b : a; }
inline float min(float a, float b) { return std::fmin(a, b); }  // if one is NaN, the other
inline float max(float a, float b) { return std::fmax(a, b); }
