#include "emulation/block.h"

#include <cstring>

#include "emulation/cuda_names.h"
#include "emulation/emulation.h"

namespace emulation {
namespace {

bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

}  // namespace

void Block::run(Launch& launch, uint3 index) {
  launch_ = &launch;
  blockIdx = index;
  start_threads();
  int first = 0;
  choose_next(first);
  enter(first);
  Fiber::switch_to(host_, *current_->fiber);
  // Returns here when a thread has found an error or no thread can run.
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  if (alive_ > 0) throw KernelError(deadlock());
  ++launch.blocks;
}

void Block::start_threads() {
  const dim3 shape = launch_->block;
  thread_count_ = alive_ = static_cast<int>(shape.x * shape.y * shape.z);
  while (static_cast<int>(threads_.size()) < thread_count_) {
    threads_.emplace_back();
    threads_.back().fiber = std::make_unique<Fiber>(static_cast<int>(threads_.size()), &Block::thread_main, this);
  }
  int rank = 0;
  for (unsigned z = 0; z < shape.z; ++z) {
    for (unsigned y = 0; y < shape.y; ++y) {
      for (unsigned x = 0; x < shape.x; ++x, ++rank) {
        Thread& thread = threads_[static_cast<size_t>(rank)];
        thread.index = {x, y, z};
        thread.copies.clear();
        thread.fiber->rewind();
      }
    }
  }
  warp_count_ = (thread_count_ + kWarpSize - 1) / kWarpSize;
  for (int w = 0; w < warp_count_; ++w) {
    const int lanes = std::min(kWarpSize, thread_count_ - w * kWarpSize);
    Warp& warp = warps_[static_cast<size_t>(w)];
    warp.ready = kAllLanes >> (kWarpSize - lanes);
    warp.exited = ~warp.ready;  // absent lanes count as exited
    warp.meeting_count = 0;
  }
  ready_warps_ = kAllLanes >> (kMaxWarps - warp_count_);
  moving_warp_ = -1;
  barriers_.fill(Barrier{});
}

void Block::thread_main(void* argument) {
  Block& block = *static_cast<Block*>(argument);
  try {
    block.launch_->run(block.launch_->arguments);
    block.exit_thread();
  } catch (...) {
    block.error_ = std::current_exception();
  }
  // Outside of the handler: the C++ runtime counts active handlers per host thread, not per fiber.
  if (block.error_) Fiber::switch_to(*block.current_->fiber, block.host_);
  block.give_way();
}

void Block::exit_thread() {
  if (current_->copies.pending()) fail("cp.async never waited for: the thread exits with copies under way");
  Warp& warp = warps_[static_cast<size_t>(rank_ / kWarpSize)];
  const Lanes me = 1u << (rank_ % kWarpSize);
  warp.ready &= ~me;
  warp.exited |= me;
  --alive_;
  for (int m = warp.meeting_count - 1; m >= 0; --m) {
    const Meeting& meeting = warp.meetings[static_cast<size_t>(m)];
    if ((meeting.mask & me) == 0) continue;
    if (meeting.all_must_live) {
      fail("divergent collective: the thread exits, others wait for it: %s", places(rank_ / kWarpSize).c_str());
    }
    if ((meeting.mask & ~warp.exited & ~meeting.arrived) == 0) complete(warp, m);
  }
  Barrier& barrier = barriers_[0];
  if (barrier.arrived > 0 && barrier.expected == 0 && barrier.arrived == alive_) release(barrier);
}

void Block::meet(const char* name, Lanes mask, bool all_must_live, void* mine, Combine combine) {
  const int lane = rank_ % kWarpSize;
  const Lanes me = 1u << lane;
  Warp& warp = warps_[static_cast<size_t>(rank_ / kWarpSize)];
  if ((mask & me) == 0) fail("%s: the lane is not in its own mask 0x%08x", name, mask);
  if (all_must_live && (mask & warp.exited) != 0) {
    fail("divergent collective: %s needs lane %d, which has exited", name, __builtin_ctz(mask & warp.exited));
  }
  int mine_is = -1;
  for (int m = 0; m < warp.meeting_count; ++m) {
    const Meeting& meeting = warp.meetings[static_cast<size_t>(m)];
    if (meeting.mask == mask && meeting.combine == combine && same(meeting.name, name)) {
      mine_is = m;
    } else if ((meeting.mask & me) != 0 && (mask & meeting.arrived) != 0) {
      // Each waits for the other. If only one did, the other's lanes could still arrive here.
      fail("divergent collective: the lane comes to %s (mask 0x%08x), the others are at: %s", name, mask,
           places(rank_ / kWarpSize).c_str());
    }
  }
  if (mine_is < 0) {
    mine_is = warp.meeting_count++;
    warp.meetings[static_cast<size_t>(mine_is)] = {name, mask, 0, all_must_live, combine};
  }
  Meeting& meeting = warp.meetings[static_cast<size_t>(mine_is)];
  meeting.arrived |= me;
  warp.brought[static_cast<size_t>(lane)] = mine;
  if ((mask & ~warp.exited & ~meeting.arrived) == 0) {
    complete(warp, mine_is);
    return;
  }
  warp.ready &= ~me;
  give_way();
}

void Block::complete(Warp& warp, int index) {
  ++launch_->collectives;
  const Meeting meeting = warp.meetings[static_cast<size_t>(index)];
  warp.meetings[static_cast<size_t>(index)] = warp.meetings[static_cast<size_t>(--warp.meeting_count)];
  warp.ready |= meeting.arrived;
  if (meeting.combine == nullptr) return;
  void* lanes[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    lanes[lane] = (meeting.arrived >> lane & 1) != 0 ? warp.brought[static_cast<size_t>(lane)] : nullptr;
  }
  meeting.combine(lanes);
}

void Block::wait_at_barrier(int id, int expected, BarrierCall call) {
  const size_t w = static_cast<size_t>(rank_ / kWarpSize);
  const Lanes me = 1u << (rank_ % kWarpSize);
  Barrier& barrier = barriers_[static_cast<size_t>(id)];
  if (barrier.arrived == 0) barrier.expected = expected;
  if (barrier.expected != expected) {
    fail("barrier %d at %s:%d: the thread comes with another thread count than those that wait there", id, call.file,
         call.line);
  }
  if (barrier.lanes[w] != 0) {
    const int other = static_cast<int>(w) * kWarpSize + __builtin_ctz(barrier.lanes[w]);
    const BarrierCall theirs = threads_[static_cast<size_t>(other)].barrier_call;
    if (theirs.line != call.line || !same(theirs.file, call.file)) {
      fail("divergent barrier: the lane comes to %s:%d, the others are at: %s", call.file, call.line,
           places(static_cast<int>(w)).c_str());
    }
  }
  current_->barrier_call = call;
  barrier.lanes[w] |= me;
  warps_[w].ready &= ~me;
  if (++barrier.arrived == (expected == 0 ? alive_ : expected)) release(barrier);
  give_way();
}

void Block::release(Barrier& barrier) {
  for (size_t w = 0; w < static_cast<size_t>(warp_count_); ++w) {
    warps_[w].ready |= barrier.lanes[w];
    if (barrier.lanes[w] != 0) ready_warps_ |= 1u << w;
  }
  barrier = Barrier{};
  moving_warp_ = -1;  // any warp may be the first to pass the barrier
}

// Switches to another thread, or to the host if no thread can run. Returns when the scheduler chooses this thread.
void Block::give_way() {
  Fiber& mine = *current_->fiber;
  const int me = rank_;
  int next = 0;
  if (!choose_next(next)) {
    Fiber::switch_to(mine, host_);
  } else if (next != me) {
    enter(next);
    Fiber::switch_to(mine, *current_->fiber);
  }
}

bool Block::choose_next(int& rank) {
  while (moving_warp_ < 0 || warps_[static_cast<size_t>(moving_warp_)].ready == 0) {
    if (moving_warp_ >= 0) ready_warps_ &= ~(1u << moving_warp_);
    moving_warp_ = -1;
    if (ready_warps_ == 0) return false;
    moving_warp_ = launch_->random.bit_of(ready_warps_);
  }
  rank = moving_warp_ * kWarpSize + launch_->random.bit_of(warps_[static_cast<size_t>(moving_warp_)].ready);
  return true;
}

void Block::enter(int rank) {
  rank_ = rank;
  current_ = &threads_[static_cast<size_t>(rank)];
  threadIdx = current_->index;
}

}  // namespace emulation
