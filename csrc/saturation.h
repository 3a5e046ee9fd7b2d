// Which index the soft mask's weight depends on (conan_fast/soft_mask.py says what each means). Host code needs no more
// of it.
#pragma once

namespace conan_fast {

enum class Saturation : int { kKey = 0, kQuery = 1, kUniform = 2 };

}  // namespace conan_fast
