// Launching a kernel, on the GPU or in the emulation.
#pragma once

#include "device/platform.h"
#include "device/runtime.h"

namespace conan_fast {

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, const LaunchTarget& target,
            Parameters... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(CONAN_FAST_EMULATED)
  (void)target;
  emulation::launch(kernel, grid, dim3(threads), shared_bytes, arguments...);
#else
  if (shared_bytes > 48 * 1024) {  // beyond the default a kernel has to opt in
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
               "cudaFuncSetAttribute");
  }
  void* pointers[] = {&arguments...};
  const auto stream = static_cast<cudaStream_t>(target.stream);
  check_cuda(cudaLaunchKernel(kernel, grid, dim3(threads), pointers, shared_bytes, stream), "kernel launch");
#endif
}

}  // namespace conan_fast
