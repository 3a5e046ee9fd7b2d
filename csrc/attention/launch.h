// Host functions that start the attention kernels. Arguments have been checked by the caller.
#pragma once

#include <vector>

#include "attention/params.h"
#include "device/runtime.h"
#include "element.h"

namespace conan_fast {

// Compiled once per head_dim, see launch.cu. Elements are kBf16 or kFp16.
template <int kHeadDim>
void launch_attention_forward(const AttentionParams& params, Element element, Stream stream);

// Writes dk and dv, and dq_sum if it is given, dq if not.
template <int kHeadDim>
void launch_attention_backward(const AttentionParams& params, Element element, int shared_memory_limit, Stream stream);

template <int kHeadDim>
std::vector<LaunchShape> attention_launch_shapes();
std::vector<LaunchShape> common_launch_shapes();  // of the kernels that do not depend on the head_dim

// For packed batches, before the kernels that read the schedule; returns how many tile slots they are to be started
// for.
int launch_schedule(const AttentionParams& params, int tile_rows, Stream stream);
void launch_row_delta(const AttentionParams& params, Element element, int head_dim, Stream stream);

}  // namespace conan_fast
