// What is known of a GPU before a kernel is launched on it. Launchers choose kernels by it.
#pragma once

#include <stdexcept>
#include <string>

#if !defined(CONAN_FAST_EMULATED)
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#endif

namespace conan_fast {

struct Device {
  int capability;               // compute capability, 10 * major + minor: 90 for Hopper
  int shared_memory_per_block;  // bytes, the limit that kernels can opt in to
  int shared_memory_per_sm;     // bytes
};

#if defined(CONAN_FAST_EMULATED)
constexpr int kDeviceType = 1;  // DLPack: CPU

// The GPU with this limit of shared memory per block. The runtime reserves 1 KB of an SM's shared memory per block.
inline Device device_with_shared_memory(int bytes) {
  return {bytes >= 227 * 1024 ? 90 : bytes >= 163 * 1024 ? 80 : 86, bytes, bytes + 1024};
}

inline Device emulated_device = device_with_shared_memory(227 * 1024);

inline Device device_of(int) { return emulated_device; }
#else
constexpr int kDeviceType = 2;  // DLPack: CUDA

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Queries each GPU once, without synchronising.
inline Device device_of(int index) {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = devices.find(index); found != devices.end()) return found->second;
  const auto attribute = [index](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
    return value;
  };
  const int major = attribute(cudaDevAttrComputeCapabilityMajor), minor = attribute(cudaDevAttrComputeCapabilityMinor);
  return devices[index] = {10 * major + minor, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                           attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}
#endif

}  // namespace conan_fast
