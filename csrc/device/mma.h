// A warp's matrix product on the tensor core, and the loads of its operands.
//
// The elements (row, column) in each lane = 4 * g + t (g 0..7, t 0..3):
//   A [16 x 16]  a[0] (g, 2t..2t+1)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
//   B [16 x 8]   b[0] (2t..2t+1, g)  b[1] (2t + 8.., g)
//   C, D [16 x 8]  [0], [1] (g, 2t..2t+1)  [2], [3] (g + 8, 2t..2t+1)
#pragma once

#include <algorithm>
#include <type_traits>

#include "device/numeric.h"

namespace conan_fast {

#if defined(CONAN_FAST_EMULATED)
namespace emulated_mma {

struct Operands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <class Format>
void multiply(void* const lanes[32]) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Operands*>(lanes[lane]);
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      float2 pair = Format::unpack(mine.a[i]);
      a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1)] = pair.x;
      a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + 1] = pair.y;
    }
    for (int i = 0; i < 2; ++i) {
      float2 pair = Format::unpack(mine.b[i]);
      b[2 * t + 8 * i][g] = pair.x;
      b[2 * t + 8 * i + 1][g] = pair.y;
    }
  }
  emulation::count_matrix_product();
  float sum[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<const Operands*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) d[i] += sum[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
  }
}

struct MatrixLoad {
  const void* row;  // 16 bytes, at the address from this lane
  uint32_t* out;
};

// Passes over shared memory, beyond the first, to read 8 rows of 16 bytes. Different rows in the same of the 8 groups
// of 4 banks take a pass each; lanes that read the same row share a pass.
inline int bank_conflicts(const void* const (&rows)[8]) {
  unsigned groups = 0;
  for (const void* row : rows) groups |= 1u << (reinterpret_cast<uintptr_t>(row) / 16 % 8);
  if (groups == 0xff) return 0;
  int passes[8] = {}, most = 1;
  for (int i = 0; i < 8; ++i) {
    if (std::find(rows, rows + i, rows[i]) != rows + i) continue;
    most = std::max(most, ++passes[reinterpret_cast<uintptr_t>(rows[i]) / 16 % 8]);
  }
  return most - 1;
}

template <int kMatrices, bool kTransposed>
void load(void* const lanes[32]) {
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    uint16_t rows[8][8];
    const void* places[8];
    for (int i = 0; i < 8; ++i) {
      places[i] = static_cast<const MatrixLoad*>(lanes[8 * matrix + i])->row;
      std::memcpy(rows[i], places[i], 16);
    }
    if (const int extra = bank_conflicts(places)) emulation::count_bank_conflicts(extra);
    for (int lane = 0; lane < 32; ++lane) {
      int g = lane / 4, t = lane % 4;
      uint32_t low = kTransposed ? rows[2 * t][g] : rows[g][2 * t];
      uint32_t high = kTransposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
      static_cast<const MatrixLoad*>(lanes[lane])->out[matrix] = low | high << 16;
    }
  }
}

}  // namespace emulated_mma
#endif

// mma.sync.aligned.m16n8k16.row.col.f32.{bf16,f16}.{bf16,f16}.f32: d += a b
template <class Format>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(CONAN_FAST_EMULATED)
  uint32_t b[2] = {b0, b1};
  emulated_mma::Operands mine{d, a, b};
  constexpr const char* kName = std::is_same_v<Format, Bf16> ? "mma.m16n8k16.bf16" : "mma.m16n8k16.f16";
  emulation::warp_collective(kName, &mine, emulated_mma::multiply<Format>);
#else
  if constexpr (std::is_same_v<Format, Bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// ldmatrix.sync.aligned.m8n8.x{2,4}[.trans].shared.b16: lane 8 m + i gives the address of row i of matrix m;
// register m then holds elements (g, 2t..2t+1) of matrix m, or (2t..2t+1, g) with .trans. The address is start +
// offset, added in 32 bits, which takes half the registers of a generic pointer.
template <int kMatrices, bool kTransposed>
__device__ inline void ldmatrix(uint32_t (&out)[kMatrices], const unsigned char* start, int offset) {
  static_assert(kMatrices == 2 || kMatrices == 4);
#if defined(CONAN_FAST_EMULATED)
  const unsigned char* row = start + offset;
  constexpr const char* kName = kMatrices == 4 ? (kTransposed ? "ldmatrix.x4.trans" : "ldmatrix.x4")
                                               : (kTransposed ? "ldmatrix.x2.trans" : "ldmatrix.x2");
  emulation::check_shared(row, 16, 16, kName);
  emulated_mma::MatrixLoad mine{row, out};
  emulation::warp_collective(kName, &mine, emulated_mma::load<kMatrices, kTransposed>);
#else
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(start)) + offset;
  if constexpr (kMatrices == 4 && !kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (!kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(address)
                 : "memory");
  }
#endif
}

}  // namespace conan_fast
