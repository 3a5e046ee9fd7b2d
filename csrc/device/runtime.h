// Where and how the host launches kernels, on the GPU or in the emulation.
#pragma once

#include <cstdint>
#include <string>

#include "device/device.h"

namespace conan_fast {

using Stream = void*;  // a cudaStream_t

struct LaunchTarget {
  Device device;
  Stream stream;
};

// A kernel's block, for the build's report.
struct LaunchShape {
  std::string kernel;  // "sm80_forward<112>": the name with its integer template arguments
  int threads;         // of a block
  int shared_bytes;    // dynamic shared memory of a block
};

// Makes a device the current one, and restores the previous one at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
#if !defined(CONAN_FAST_EMULATED)
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device_ != previous_) check_cuda(cudaSetDevice(device_), "cudaSetDevice");
#endif
  }
  ~DeviceGuard() {
#if !defined(CONAN_FAST_EMULATED)
    if (device_ != previous_) cudaSetDevice(previous_);
#endif
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  LaunchTarget target(uintptr_t stream) const { return {device_of(device_), reinterpret_cast<Stream>(stream)}; }

 private:
  int device_, previous_ = 0;
};

}  // namespace conan_fast
