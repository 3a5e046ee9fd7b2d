// The Python module: checks every argument, then launches kernels. Compiled for the GPU (conan_fast._C) and for the CPU
// emulation (conan_fast._emulated); both have the same functions for tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "attention/bindings.h"
#include "contrastive/bindings.h"
#include "contrastive/launch.h"
#include "device/runtime.h"

#if defined(CONAN_FAST_EMULATED)
#include "emulation/emulation.h"
#endif

namespace py = pybind11;

namespace conan_fast {
namespace {

void bind_devices(py::module_& module) {
  // For the build's report, by kernel.
  py::dict threads, bytes;
  for (const auto& kernels : {attention_launch_shapes(), contrastive_launch_shapes()}) {
    for (const LaunchShape& shape : kernels) {
      threads[py::str(shape.kernel)] = shape.threads;
      bytes[py::str(shape.kernel)] = shape.shared_bytes;
    }
  }
  module.attr("threads_per_block") = threads;
  module.attr("dynamic_shared_bytes") = bytes;
  module.def(
      "device",
      [](int index) {
        const Device device = device_of(index);
        return py::dict(py::arg("capability") = device.capability,
                        py::arg("shared_memory_per_block") = device.shared_memory_per_block,
                        py::arg("shared_memory_per_sm") = device.shared_memory_per_sm);
      },
      py::arg("index"), "What launchers know of a GPU: compute capability (90 is 9.0), shared memory limits in bytes.");
}

#if defined(CONAN_FAST_EMULATED)
void bind_backend(py::module_& module) {
  module.def("set_seed", &emulation::set_seed, py::arg("seed"), "Seed of the order in which warps and blocks run.");
  module.def(
      "set_shared_memory_limit", [](int bytes) { emulated_device = device_with_shared_memory(bytes); },
      py::arg("bytes"),
      "Shared memory per block of the emulated GPU: 227 KB on 9.0, 163 KB on 8.0, 99 KB on 8.6, 8.9 and 12.x.");
  module.def(
      "bank_conflicts", [] { return emulation::statistics().bank_conflicts; },
      "Bank conflicts of ldmatrix in this process so far.");
  module.def(
      "matrix_products", [] { return emulation::statistics().matrix_products; },
      "mma.m16n8k16 instructions (4,096 FLOP each) of all warps in this process so far.");
}
#else
void bind_backend(py::module_& module) {
  module.def(
      "driver_version",
      [] {
        int version = 0;
        check_cuda(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
        return version;
      },
      "Newest CUDA version that the driver supports: 13000 is 13.0; 0 without a driver.");
  module.def("runtime_version", [] { return CUDART_VERSION; }, "CUDA version that the kernels were compiled with.");
}
#endif

}  // namespace
}  // namespace conan_fast

PYBIND11_MODULE(CONAN_FAST_MODULE, module) {
  module.doc() = "Kernels of conan_fast. Tensors are passed as DLPack capsules, streams as integers.";
  conan_fast::bind_devices(module);
  conan_fast::bind_attention(module);
  conan_fast::bind_contrastive(module);
  conan_fast::bind_backend(module);
}
