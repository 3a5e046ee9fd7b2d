// The functions of emulation.h, by the running block.
#include "emulation/emulation.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation/block.h"
#include "emulation/cuda_names.h"
#include "emulation/shared_memory.h"

namespace emulation {
namespace {

constexpr size_t kMaxSharedBytes = 227 * 1024;  // per block, on sm_90

std::atomic<uint64_t> seed{0};
std::mutex statistics_mutex;
thread_local Block* running = nullptr;

Block& block() {
  if (running == nullptr) throw KernelError("emulation: called outside of a kernel");
  return *running;
}

struct Running {
  explicit Running(Block& block) { running = &block; }
  ~Running() { running = nullptr; }
};

// Reused for its fibers.
Block& block_of_this_thread() {
  static thread_local std::unique_ptr<Block> block;
  if (!block) block = std::make_unique<Block>();
  return *block;
}

std::string text(dim3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

void check_configuration(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > kMaxThreads) {
    throw KernelError("launch: block " + text(block) + " is empty or has more than 1024 threads");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw KernelError("launch: grid " + text(grid) + " is empty or too large");
  }
  if (shared_bytes > kMaxSharedBytes) {
    throw KernelError("launch: " + std::to_string(shared_bytes) + " bytes of dynamic shared memory, at most " +
                      std::to_string(kMaxSharedBytes) + " are available");
  }
}

// The linear indices of the grid's blocks in random order.
std::vector<uint32_t> block_order(dim3 grid, Random& random) {
  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  if (count > 0xffffffffu) throw KernelError("launch: grid " + text(grid) + " has too many blocks for the emulation");
  std::vector<uint32_t> order(count);
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t j = random.below(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  return order;
}

}  // namespace

void fail(const char* format, ...) {
  char message[2048];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  throw KernelError((running == nullptr ? "" : running->where() + ": ") + message);
}

void warp_collective(const char* name, void* mine, void (*combine)(void* const lanes[32])) {
  block().meet(name, kAllLanes, true, mine, combine);
}

void masked_collective(const char* name, unsigned mask, void* mine, void (*combine)(void* const lanes[32])) {
  block().meet(name, mask, false, mine, combine);
}

void block_barrier(const char* file, int line) { block().wait_at_barrier(0, 0, {file, line}); }

void named_barrier(int id, int threads, const char* file, int line) {
  const dim3 shape = block().launch().block;
  const int available = static_cast<int>(shape.x * shape.y * shape.z);
  if (id < 0 || id >= kNamedBarriers) fail("named barrier %d at %s:%d: there are barriers 0 to 15", id, file, line);
  if (threads <= 0 || threads % kWarpSize != 0 || threads > (available + kWarpSize - 1) / kWarpSize * kWarpSize) {
    fail("named barrier %d at %s:%d: %d threads are not a multiple of 32 that the block of %d has", id, file, line,
         threads, available);
  }
  block().wait_at_barrier(id, threads, {file, line});
}

void* dynamic_shared_memory() { return block().launch().shared->data(); }

void check_shared(const void* pointer, size_t bytes, size_t alignment, const char* what) {
  const std::string problem = block().launch().shared->problem(pointer, bytes, alignment);
  if (!problem.empty()) fail("%s: %s", what, problem.c_str());
}

void cp_async(void* shared, const void* global, int bytes, int valid_bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async: %d bytes, not 4, 8 or 16", bytes);
  if (valid_bytes < 0 || valid_bytes > bytes) fail("cp.async: %d valid bytes of %d", valid_bytes, bytes);
  if (reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(bytes) != 0) {
    fail("cp.async: global address %p is not a multiple of %d", global, bytes);
  }
  check_shared(shared, static_cast<size_t>(bytes), static_cast<size_t>(bytes), "cp.async");
  block().copies().issue(shared, global, bytes, valid_bytes);
}

void cp_async_commit() { block().copies().commit(); }

void cp_async_wait(int groups_left) {
  if (groups_left < 0) fail("cp.async.wait_group: %d groups", groups_left);
  block().copies().wait(groups_left);
}

void count_bank_conflicts(int extra) { block().launch().bank_conflicts += extra; }
void count_matrix_product() { ++block().launch().matrix_products; }

Statistics& statistics() {
  static Statistics sums{};
  return sums;
}

void set_seed(uint64_t value) { seed = value; }

int thread_rank() { return block().rank(); }

void launch_erased(void (*run)(const void* arguments), const void* arguments, dim3 grid, dim3 block,
                   size_t shared_bytes) {
  if (running != nullptr) fail("launch: a kernel cannot launch another");
  check_configuration(grid, block, shared_bytes);
  SharedMemory shared(shared_bytes);
  Block::Launch launch{run, arguments, grid, block, &shared, Random(seed)};
  Block& runner = block_of_this_thread();
  const Running scope(runner);
  gridDim = grid;
  blockDim = block;
  for (const uint32_t number : block_order(grid, launch.random)) {
    const uint3 index{number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    shared.fill();
    runner.run(launch, index);
    const std::string overwritten = shared.overwritten();
    if (!overwritten.empty()) {
      throw KernelError("block " + text(index) + ": " + overwritten + " of dynamic shared memory was overwritten");
    }
  }
  const std::lock_guard<std::mutex> lock(statistics_mutex);
  Statistics& sums = statistics();
  sums.launches += 1;
  sums.blocks += launch.blocks;
  sums.collectives += launch.collectives;
  sums.bank_conflicts += launch.bank_conflicts;
  sums.matrix_products += launch.matrix_products;
}

}  // namespace emulation
