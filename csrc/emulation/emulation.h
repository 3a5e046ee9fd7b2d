// A CUDA launch on the CPU: every CUDA thread is a fiber of the calling thread. This header is for the wrappers in
// csrc/device and for host code; kernels use the CUDA names of cuda_names.h.
//
// The scheduler runs one randomly chosen warp as far ahead as it can before it chooses another, and the lanes of a warp
// in random order between two collectives, so that a missing barrier changes results. A seed determines the order.
//
// launch() throws a KernelError for every mistake that it detects. The next launch is not affected.
//
// Limits: a thread that spins until another thread writes a value hangs, since fibers do not preempt each other. Blocks
// run one after another, so blocks that wait for each other hang as well. Static __shared__ memory keeps the values of
// the previous block; only dynamic shared memory is filled with NaN before each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "emulation/vector_types.h"

namespace emulation {

struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws a KernelError whose text starts with the running block, thread, warp and lane.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// All 32 lanes of the warp wait for each other here. The last one to arrive calls combine (unless nullptr) with the
// `mine` of all lanes, then all continue. `name` is the PTX instruction or CUDA name: lanes that meet under different
// names are the error "divergent collective". A lane that has exited is an error, as for .sync.aligned instructions.
void warp_collective(const char* name, void* mine, void (*combine)(void* const lanes[32]));

// The same for the lanes in `mask`, which must include the calling one. As in __shfl_sync and the like, lanes that have
// exited do not count; combine gets nullptr for them and for lanes outside of the mask.
void masked_collective(const char* name, unsigned mask, void* mine, void (*combine)(void* const lanes[32]));

// __syncthreads, which is barrier 0: waits for all threads of the block that have not exited.
void block_barrier(const char* file, int line);

// bar.sync id, threads: waits until `threads` threads (a multiple of 32) have arrived.
void named_barrier(int id, int threads, const char* file, int line);

// The running block's, aligned to 1024 bytes. At the start of a block every byte is 0xFF: NaN in bf16, fp16 and fp32.
void* dynamic_shared_memory();

// Throws a KernelError naming `what` if [pointer, pointer + bytes) is not inside the block's dynamic shared memory or
// not aligned to `alignment`.
void check_shared(const void* pointer, size_t bytes, size_t alignment, const char* what);

// cp.async of 4, 8 or 16 bytes into dynamic shared memory; the last bytes - valid_bytes are zero. Fills the destination
// with 0xFF. The wait that covers the group reads the source and writes the data. So both a read that is too early and
// a copy into a buffer that is still in use change results.
void cp_async(void* shared, const void* global, int bytes, int valid_bytes);
void cp_async_commit();
// Waits until at most `groups_left` of this thread's committed groups are pending.
void cp_async_wait(int groups_left);

// For wrappers that know the addresses of all lanes: `extra` passes over shared memory beyond the first.
void count_bank_conflicts(int extra);
// A warp's matrix product on a tensor core.
void count_matrix_product();

// Sums over the finished launches of the process; `statistics() = {}` resets them.
struct Statistics {
  long launches, blocks, collectives, bank_conflicts, matrix_products;
};
Statistics& statistics();

// The scheduling seed of all later launches of the process. Each launch starts from it.
void set_seed(uint64_t seed);

// The thread's linear index in its block (x fastest), its lane and its warp.
int thread_rank();
inline int lane_rank() { return thread_rank() % 32; }
inline int warp_rank() { return thread_rank() / 32; }

// Calls run(arguments) once per thread.
void launch_erased(void (*run)(const void* arguments), const void* arguments, dim3 grid, dim3 block,
                   size_t shared_bytes);

// kernel<<<grid, block, shared_bytes>>>(args...), synchronous.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument for each parameter of the kernel");
  // Each thread gets its own copies, as on the device.
  auto call = [kernel, args...] { kernel(static_cast<P>(args)...); };
  launch_erased([](const void* arguments) { (*static_cast<const decltype(call)*>(arguments))(); }, &call, grid, block,
                shared_bytes);
}

}  // namespace emulation
