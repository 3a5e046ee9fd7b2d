// The functions that small_kernels.py calls. The kernels are in the other .cpp files here, right ones next to
// wrong ones.
#include "kernels.h"

#include <cstring>

namespace {

const Kernels& all_kernels() {
  static const Kernels kernels = [] {
    Kernels all;
    add_order_kernels(all);
    add_bounds_kernels(all);
    add_meeting_kernels(all);
    add_function_kernels(all);
    add_matrix_kernels(all);
    return all;
  }();
  return kernels;
}

enum Outcome { kFinished, kKernelError, kOtherError };

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// An Outcome; for an error its text is in `text`.
EXPORTED int run_kernel(const char* name, const unsigned grid[3], const unsigned block[3], size_t shared_bytes,
                        const Argument* arguments, size_t count, char* text, size_t text_bytes) {
  try {
    all_kernels().launch(name, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes,
                         arguments, count);
    return kFinished;
  } catch (const emulation::KernelError& error) {
    std::strncpy(text, error.what(), text_bytes - 1);
    return kKernelError;
  } catch (const std::exception& error) {
    std::strncpy(text, error.what(), text_bytes - 1);
    return kOtherError;
  }
}

EXPORTED void set_seed(uint64_t seed) { emulation::set_seed(seed); }

// launches, blocks, collectives, bank_conflicts
EXPORTED void statistics(int64_t sums[4]) {
  const emulation::Statistics all = emulation::statistics();
  sums[0] = all.launches;
  sums[1] = all.blocks;
  sums[2] = all.collectives;
  sums[3] = all.bank_conflicts;
}
