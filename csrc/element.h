// The dtypes of the tensors of kernels, for the host.
#pragma once

namespace conan_fast {

enum class Element { kBf16, kFp16, kFp32 };

}  // namespace conan_fast
