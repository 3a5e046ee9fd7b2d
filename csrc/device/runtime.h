// The host's calls of the CUDA runtime, with the emulation's stand-ins.
#pragma once

#include <stdexcept>
#include <string>

#if !defined(CONAN_FAST_EMULATED)
#include <cuda_runtime.h>
#endif

namespace conan_fast {

using Stream = void*;  // a cudaStream_t

// How a kernel is started, for the build's report.
struct LaunchShape {
  std::string kernel;  // "sm80_forward<112>": name and numbers among its template arguments
  int threads;         // of a block
  int shared_bytes;    // dynamic shared memory of a block
};

#if defined(CONAN_FAST_EMULATED)
constexpr int kDeviceType = 1;  // DLPack: CPU
inline int emulated_shared_memory_limit = 227 * 1024;

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  int shared_memory_limit() const { return emulated_shared_memory_limit; }
};
#else
constexpr int kDeviceType = 2;  // DLPack: CUDA

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a device the current one, and gives back the one before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device_ != before_) check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (device_ != before_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  // Bytes of shared memory that one block can have.
  int shared_memory_limit() const {
    int bytes = 0;
    check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_),
               "cudaDeviceGetAttribute");
    return bytes;
  }

 private:
  int device_, before_ = 0;
};
#endif

}  // namespace conan_fast
