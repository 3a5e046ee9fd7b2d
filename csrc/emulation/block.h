// The running block: where each of its threads is, and which one runs next.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "emulation/async_copy.h"
#include "emulation/fiber.h"
#include "emulation/random.h"
#include "emulation/vector_types.h"

namespace emulation {

class SharedMemory;

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kNamedBarriers = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

using Lanes = uint32_t;  // one bit per lane of a warp
using Combine = void (*)(void* const lanes[kWarpSize]);

struct BarrierCall {
  const char* file;
  int line;
};

struct Thread {
  std::unique_ptr<Fiber> fiber;
  uint3 index{0, 0, 0};
  AsyncCopies copies;
  BarrierCall barrier_call{nullptr, 0};  // while it waits at a barrier
};

// Lanes that wait for each other in a collective. A warp has several if lanes in different branches wait.
struct Meeting {
  const char* name;
  Lanes mask, arrived;
  bool all_must_live;
  Combine combine;
};

struct Warp {
  Lanes ready = 0, exited = 0;
  int meeting_count = 0;
  std::array<Meeting, kWarpSize> meetings;
  std::array<void*, kWarpSize> brought;  // to the meetings
};

struct Barrier {
  int arrived = 0;   // threads
  int expected = 0;  // 0: every thread of the block that has not exited
  std::array<Lanes, kMaxWarps> lanes{};
};

// Each host thread has one Block, which it reuses for all launches to keep the fibers.
class Block {
 public:
  Block() = default;

  struct Launch {
    void (*run)(const void*);
    const void* arguments;
    dim3 grid, block;
    SharedMemory* shared;
    Random random;
    long blocks = 0, collectives = 0, bank_conflicts = 0, matrix_products = 0;
  };

  // Runs the block at blockIdx `index` to its end, or throws.
  void run(Launch& launch, uint3 index);

  // ---- Called by the running thread
  void meet(const char* name, Lanes mask, bool all_must_live, void* mine, Combine combine);
  void wait_at_barrier(int id, int expected, BarrierCall call);
  AsyncCopies& copies() { return current_->copies; }
  Launch& launch() { return *launch_; }
  int rank() const { return rank_; }
  // "block (0,0,0), thread (3,0,0) (warp 0, lane 3)"
  std::string where() const;

 private:
  static void thread_main(void* block);
  void start_threads();
  void exit_thread();
  void complete(Warp& warp, int meeting);
  void release(Barrier& barrier);
  void give_way();
  bool choose_next(int& rank);
  void enter(int rank);
  // block_report.cpp
  std::string deadlock() const;
  std::string places(int warp) const;
  std::string place(int warp, int lane) const;

  Launch* launch_ = nullptr;
  int thread_count_ = 0, warp_count_ = 0;
  int alive_ = 0;  // threads that have not exited
  int rank_ = 0;   // of the running thread
  Thread* current_ = nullptr;
  int moving_warp_ = -1;  // the warp that runs as far ahead as it can
  uint32_t ready_warps_ = 0;
  std::array<Warp, kMaxWarps> warps_;
  std::array<Barrier, kNamedBarriers> barriers_;
  std::vector<Thread> threads_;
  Fiber host_;
  std::exception_ptr error_;
};

}  // namespace emulation
