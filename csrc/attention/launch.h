// Host functions that launch the attention kernels. The caller has checked the arguments.
#pragma once

#include <vector>

#include "attention/params.h"
#include "device/runtime.h"
#include "element.h"

namespace conan_fast {

// Templates are compiled once per head_dim, see launch.cu. Elements are kBf16 or kFp16.
template <int kHeadDim>
void launch_attention_forward(const AttentionParams& params, Element element, const LaunchTarget& target);

// Writes delta, and dq or dk and dv or all of them: those that are not null.
template <int kHeadDim>
void launch_attention_backward(const AttentionParams& params, Element element, const LaunchTarget& target);

template <int kHeadDim>
std::vector<LaunchShape> attention_launch_shapes();
std::vector<LaunchShape> common_launch_shapes();  // of the kernels that do not depend on the head_dim

// For packed batches, before a kernel that reads the schedule. Returns the number of tile slots, that kernel's grid.
// Clears the rows of the kernel's outputs that no sequence has.
int launch_schedule(const AttentionParams& params, int tile_rows, const ScheduledOutputs& outputs,
                    const LaunchTarget& target);
void launch_row_delta(const AttentionParams& params, Element element, int head_dim, const LaunchTarget& target);

}  // namespace conan_fast
