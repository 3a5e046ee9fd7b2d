// Tensor core instructions and the loads that feed them.
#include "device/copy.h"
#include "device/mma.h"
#include "device/thread.h"
#include "kernels.h"

namespace {

using namespace conan_fast;

// d += a b, `times` times. The registers come in order: 4 of a, 2 of b and 4 of d for each lane.
template <class Format>
__global__ void multiply(const unsigned* a, const unsigned* b, float* d, int times) {
  const int lane = lane_index();
  uint32_t mine[4];
  float sum[4];
  for (int i = 0; i < 4; ++i) mine[i] = a[4 * lane + i];
  for (int i = 0; i < 4; ++i) sum[i] = d[4 * lane + i];
  for (int time = 0; time < times; ++time) mma_m16n8k16<Format>(sum, mine, b[2 * lane], b[2 * lane + 1]);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum[i];
}

// Matrices of 8 x 8, stored in `in` row after row of 16 bytes. In shared memory a row takes `pitch` bytes. With
// `swizzle` 7, the chunk of 16 bytes depends on the row.
template <int kMatrices, bool kTransposed>
__global__ void load_matrices(const uint16_t* in, unsigned* out, int pitch, int swizzle) {
  unsigned char* shared = dynamic_shared_memory();
  const int lane = lane_index(), row = lane % (8 * kMatrices);
  const int offset = row * pitch + 16 * (row & swizzle);
  auto* elements = reinterpret_cast<uint16_t*>(shared + offset);
  for (int i = 0; i < 8; ++i) elements[i] = in[8 * row + i];
  __syncwarp();
  uint32_t registers[kMatrices];
  ldmatrix<kMatrices, kTransposed>(registers, shared, offset);
  for (int m = 0; m < kMatrices; ++m) out[kMatrices * lane + m] = registers[m];
}

// C [64 x 32] = A [64 x 32] B [32 x 32] by 4 warps with 16 rows each, as in a real kernel: A and B go to shared memory
// in rows of 80 bytes (free of bank conflicts), then A is loaded by ldmatrix and B by ldmatrix.trans.
__global__ void tile_product(const uint16_t* a, const uint16_t* b, float* c) {
  constexpr int kPitch = 80, kBStart = 64 * kPitch;
  unsigned char* shared = dynamic_shared_memory();
  for (int i = thread_index(); i < (64 + 32) * 4; i += blockDim.x) {  // chunks of 16 bytes, 4 a row; B follows A
    const int row = i / 4, chunk = i % 4;
    const uint16_t* from = row < 64 ? a + row * 32 : b + (row - 64) * 32;
    cp_async_16(shared, row * kPitch + chunk * 16, from + chunk * 8, true);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const int lane = lane_index(), first_row = warp_index() * 16;
  float sum[4][4] = {};
  for (int k = 0; k < 32; k += 16) {
    uint32_t rows[4];
    ldmatrix<4, false>(rows, shared, (first_row + lane % 16) * kPitch + (k + lane / 16 * 8) * 2);
    for (int n = 0; n < 4; ++n) {
      uint32_t columns[2];
      ldmatrix<2, true>(columns, shared, kBStart + (k + lane % 16) * kPitch + n * 16);
      mma_m16n8k16<Fp16>(sum[n], rows, columns[0], columns[1]);
    }
  }
  for (int n = 0; n < 4; ++n) {
    for (int i = 0; i < 4; ++i) c[(first_row + lane / 4 + i / 2 * 8) * 32 + n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
  }
}

}  // namespace

void add_matrix_kernels(Kernels& kernels) {
  kernels.add("multiply bfloat16", multiply<Bf16>);
  kernels.add("multiply float16", multiply<Fp16>);
  kernels.add("load 2 matrices", load_matrices<2, false>);
  kernels.add("load 4 matrices", load_matrices<4, false>);
  kernels.add("load 2 matrices, transposed", load_matrices<2, true>);
  kernels.add("load 4 matrices, transposed", load_matrices<4, true>);
  kernels.add("tile gemm", tile_product);
}
