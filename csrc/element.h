// The number formats of tensors that kernels take, as the host names them.
#pragma once

namespace conan_fast {

enum class Element { kBf16, kFp16, kFp32 };

}  // namespace conan_fast
