// Memory accesses whose position is an argument: the same kernel can be right and wrong.
#include "device/copy.h"
#include "device/mma.h"
#include "device/thread.h"
#include "kernels.h"

namespace {

using namespace conan_fast;

// `offset` is in bytes; one thread.
__global__ void cp_async_16_at(const float* in, int offset) {
  cp_async_16(dynamic_shared_memory(), offset, in, true);
  cp_async_commit();
  cp_async_wait<0>();
}

__global__ void cp_async_4_at(const float* in, int offset) {
  cp_async_4(dynamic_shared_memory(), offset, in, true);
  cp_async_commit();
  cp_async_wait<0>();
}

__global__ void cp_async_from(const float* in, int index) {
  cp_async_16(dynamic_shared_memory(), 0, in + index, true);
  cp_async_commit();
  cp_async_wait<0>();
}

// The 32 rows of 4 matrices, one after another from `offset` on.
__global__ void ldmatrix_at(unsigned* out, int offset) {
  uint32_t registers[4];
  ldmatrix<4, false>(registers, dynamic_shared_memory(), offset + lane_index() * 16);
  for (int m = 0; m < 4; ++m) out[lane_index() * 4 + m] = registers[m];
}

__global__ void ldmatrix_transposed_at(unsigned* out, int offset) {
  uint32_t registers[2];
  ldmatrix<2, true>(registers, dynamic_shared_memory(), offset + lane_index() % 16 * 16);
  for (int m = 0; m < 2; ++m) out[lane_index() * 2 + m] = registers[m];
}

__global__ void store_shared(int index) { reinterpret_cast<float*>(dynamic_shared_memory())[index] = 1; }

__global__ void load_shared(float* out, int index) {
  out[0] = reinterpret_cast<const float*>(dynamic_shared_memory())[index];
}

__global__ void store_global(float* out, int index) { out[index] = 1; }

__global__ void load_global(const float* in, float* out, int index) { out[0] = in[index]; }

// An array of one thread. The compiler does not know the index.
__global__ void load_local(float* out, int index) {
  float values[4];
  for (int i = 0; i < 4; ++i) values[i] = out[i];
  __syncthreads();
  out[0] = values[index];
}

}  // namespace

void add_bounds_kernels(Kernels& kernels) {
  kernels.add("cp.async 16 at", cp_async_16_at);
  kernels.add("cp.async 4 at", cp_async_4_at);
  kernels.add("cp.async from", cp_async_from);
  kernels.add("ldmatrix at", ldmatrix_at);
  kernels.add("ldmatrix transposed at", ldmatrix_transposed_at);
  kernels.add("store shared", store_shared);
  kernels.add("load shared", load_shared);
  kernels.add("store global", store_global);
  kernels.add("load global", load_global);
  kernels.add("load local", load_local);
}
