// Vector loads and stores of features in 16 or 32 bits.
#pragma once

#include "device/numeric.h"

namespace conan_fast {

struct Fp32 {};

// Weights are stored times kWeightScale. fp16 has its full precision down to 2^-14 only: with weights up to 2^15 that
// is 2^-29 of the largest.
template <class Format>
struct Elements {
  using Type = uint16_t;
  static constexpr float kWeightScale = std::is_same_v<Format, Fp16> ? 32768.0f : 1.0f;

  static __device__ void load4(const Type* place, float (&x)[4]) {
    const uint2 packed = *reinterpret_cast<const uint2*>(place);
    const float2 low = Format::unpack(packed.x), high = Format::unpack(packed.y);
    x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
  }
  static __device__ void store4(Type* place, const float (&x)[4]) {
    *reinterpret_cast<uint2*>(place) = make_uint2(Format::pack(x[0], x[1]), Format::pack(x[2], x[3]));
  }
  static __device__ void load8(const Type* place, float (&x)[8]) {
    const uint4 packed = *reinterpret_cast<const uint4*>(place);
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Format::unpack(words[i]);
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
  }
  static __device__ void store8(Type* place, const float (&x)[8]) {
    *reinterpret_cast<uint4*>(place) = make_uint4(Format::pack(x[0], x[1]), Format::pack(x[2], x[3]),
                                                  Format::pack(x[4], x[5]), Format::pack(x[6], x[7]));
  }
};

template <>
struct Elements<Fp32> {
  using Type = float;
  static constexpr float kWeightScale = 1.0f;

  static __device__ void load4(const Type* place, float (&x)[4]) {
    const float4 four = *reinterpret_cast<const float4*>(place);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  }
  static __device__ void store4(Type* place, const float (&x)[4]) {
    *reinterpret_cast<float4*>(place) = make_float4(x[0], x[1], x[2], x[3]);
  }
  static __device__ void load8(const Type* place, float (&x)[8]) {
    const float4 low = reinterpret_cast<const float4*>(place)[0], high = reinterpret_cast<const float4*>(place)[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  }
  static __device__ void store8(Type* place, const float (&x)[8]) {
    reinterpret_cast<float4*>(place)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(place)[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
};

}  // namespace conan_fast
