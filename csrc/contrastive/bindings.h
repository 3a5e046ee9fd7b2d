// The contrastive functions of the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace conan_fast {

void bind_contrastive(pybind11::module_& module);

}  // namespace conan_fast
