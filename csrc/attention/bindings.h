// The attention functions of the Python module.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "device/runtime.h"

namespace conan_fast {

void bind_attention(pybind11::module_& module);

std::vector<LaunchShape> attention_launch_shapes();  // of all kernels

}  // namespace conan_fast
