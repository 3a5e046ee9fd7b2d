// The 16-bit formats with their packed conversions, and exp2 and log2 of the special function unit.
#pragma once

#include <cmath>
#include <cstring>

#include "device/platform.h"

namespace conan_fast {

constexpr float kLog2E = 1.4426950408889634f;

#if defined(CONAN_FAST_EMULATED)
namespace emulated_formats {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t bf16_from_float(float value) {
  uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float bf16_to_float(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

inline uint16_t fp16_from_float(float value) {
  uint32_t bits = to_bits(value);
  uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // from 65520 on: infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded value in the last bits
    uint32_t shifted = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    return static_cast<uint16_t>(sign | shifted);
  }
  uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

inline float fp16_to_float(uint16_t bits) {
  uint32_t sign = (bits & 0x8000u) << 16;
  uint32_t exponent = (bits >> 10) & 31u;
  uint32_t fraction = bits & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) return from_bits(sign | to_bits(static_cast<float>(fraction) * 0x1p-24f));
  return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// .ftz: subnormal inputs and results are zeros of the same sign.
inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

}  // namespace emulated_formats
#endif

// Element formats. A 32-bit register holds two elements, the one of lower index in the lower half.
struct Bf16 {
  // cvt.rn.bf16x2.f32
  static __device__ inline uint32_t pack(float low, float high) {
#if defined(CONAN_FAST_EMULATED)
    using emulated_formats::bf16_from_float;
    return bf16_from_float(low) | static_cast<uint32_t>(bf16_from_float(high)) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
  }
  // bf16 is the upper half of an fp32
  static __device__ inline float2 unpack(uint32_t packed) {
#if defined(CONAN_FAST_EMULATED)
    using emulated_formats::bf16_to_float;
    return make_float2(bf16_to_float(packed & 0xffffu), bf16_to_float(packed >> 16));
#else
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
#endif
  }
};

struct Fp16 {
  // cvt.rn.f16x2.f32
  static __device__ inline uint32_t pack(float low, float high) {
#if defined(CONAN_FAST_EMULATED)
    using emulated_formats::fp16_from_float;
    return fp16_from_float(low) | static_cast<uint32_t>(fp16_from_float(high)) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
  }
  // cvt.f32.f16, twice
  static __device__ inline float2 unpack(uint32_t packed) {
#if defined(CONAN_FAST_EMULATED)
    using emulated_formats::fp16_to_float;
    return make_float2(fp16_to_float(packed & 0xffffu), fp16_to_float(packed >> 16));
#else
    float low, high;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high)
        : "r"(packed));
    return make_float2(low, high);
#endif
  }
};

// ex2.approx.ftz.f32: 2^x, relative error 2^-22; 2^-inf = 0.
__device__ inline float fast_exp2(float x) {
#if defined(CONAN_FAST_EMULATED)
  return emulated_formats::flushed(std::exp2(x));
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// lg2.approx.ftz.f32: log2 x, absolute error 2^-22 near 1; log2 0 = -inf.
__device__ inline float fast_log2(float x) {
#if defined(CONAN_FAST_EMULATED)
  return std::log2(emulated_formats::flushed(x));
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace conan_fast
