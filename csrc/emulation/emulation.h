// A CUDA launch on the CPU: every CUDA thread is a fiber of the calling thread. This header is for the wrappers in
// csrc/device and for host code; kernels see the CUDA names of cuda_names.h.
//
// The scheduler runs one randomly chosen warp as far ahead as it can before another moves, and the lanes of a warp in
// random order between two collectives, so that a missing barrier changes results. Everything follows from one seed.
//
// Every mistake that is noticed comes out of launch() as a KernelError; the next launch is not affected by it.
//
// What it cannot show: a thread that spins on a value which another thread is to write never gives way, so it hangs;
// blocks run one after another, so blocks that wait for each other hang, too; static __shared__ memory keeps the
// previous block's values, where dynamic shared memory is filled with NaN before each block.
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

// Throws a KernelError that starts with the block, thread, warp and lane that runs.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// All 32 lanes of the warp meet here. The last one to arrive calls combine (nullptr: nothing to do) with what each lane
// brought, then all go on. `name` is the PTX instruction or CUDA name: lanes that meet under different names are the
// error "divergent collective". A lane that has exited is an error, as for the .sync.aligned instructions.
void warp_collective(const char* name, void* mine, void (*combine)(void* const lanes[32]));

// The same for the lanes in `mask`, which must include the calling one. As for __shfl_sync and its kin, lanes that have
// exited are not waited for; combine sees nullptr for them and for lanes outside of the mask.
void masked_collective(const char* name, unsigned mask, void* mine, void (*combine)(void* const lanes[32]));

// __syncthreads, which is barrier 0: waits for all threads of the block that have not exited.
void block_barrier(const char* file, int line);

// bar.sync id, threads: waits until `threads` threads (a multiple of 32) have come.
void named_barrier(int id, int threads, const char* file, int line);

// Of the running block, aligned to 1024 bytes. Blocks start with every byte 0xFF: NaN in bf16, fp16 and fp32.
void* dynamic_shared_memory();

// Throws a KernelError naming `what` if [pointer, pointer + bytes) is not inside the block's dynamic shared memory or
// not aligned to `alignment`.
void check_shared(const void* pointer, size_t bytes, size_t alignment, const char* what);

// cp.async of 4, 8 or 16 bytes into dynamic shared memory, of which the last bytes - valid_bytes are zero filled. The
// destination is poisoned with 0xFF here and the data arrive, read at that moment, in the wait that covers their group:
// a read that comes too early, and a write into a buffer that is still being read, both show.
void cp_async(void* shared, const void* global, int bytes, int valid_bytes);
void cp_async_commit();
// Until at most `groups_left` of this thread's committed groups are pending.
void cp_async_wait(int groups_left);

// For wrappers that know which addresses their lanes read: `extra` more passes over shared memory than one.
void count_bank_conflicts(int extra);
// A warp's product on a tensor core.
void count_matrix_product();

// Sums over the finished launches of the process; `statistics() = {}` starts anew.
struct Statistics {
  long launches, blocks, collectives, bank_conflicts, matrix_products;
};
Statistics& statistics();

// Scheduling seed of later launches of the process. Each of them starts from it, whatever ran before.
void set_seed(uint64_t seed);

// Position in the block, x first, and what follows from it.
int thread_rank();
inline int lane_rank() { return thread_rank() % 32; }
inline int warp_rank() { return thread_rank() / 32; }

// run(arguments) once for each thread.
void launch_erased(void (*run)(const void* arguments), const void* arguments, dim3 grid, dim3 block,
                   size_t shared_bytes);

// kernel<<<grid, block, shared_bytes>>>(args...), finished when it returns.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument for each parameter of the kernel");
  // A thread gets copies of its own, as on the device.
  auto call = [kernel, args...] { kernel(static_cast<P>(args)...); };
  launch_erased([](const void* arguments) { (*static_cast<const decltype(call)*>(arguments))(); }, &call, grid, block,
                shared_bytes);
}

}  // namespace emulation
