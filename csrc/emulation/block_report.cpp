// Error texts: which threads wait where.
#include <cstring>

#include "emulation/block.h"
#include "emulation/cuda_names.h"

namespace emulation {
namespace {

std::string triple(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

std::string file_and_line(BarrierCall call) {
  const char* slash = std::strrchr(call.file, '/');
  return std::string(slash == nullptr ? call.file : slash + 1) + ":" + std::to_string(call.line);
}

// "lane 3", "lanes 0-15", "lanes 0, 2, 4-7"
std::string list(Lanes lanes) {
  std::string text;
  for (int first = 0; first < kWarpSize; ++first) {
    if ((lanes >> first & 1) == 0) continue;
    int last = first;
    while (last + 1 < kWarpSize && (lanes >> (last + 1) & 1) != 0) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(first);
    if (last > first) text += "-" + std::to_string(last);
    first = last;
  }
  return ((lanes & (lanes - 1)) == 0 ? "lane " : "lanes ") + text;
}

}  // namespace

std::string Block::where() const {
  return "block " + triple(blockIdx) + ", thread " + triple(current_->index) + " (warp " +
         std::to_string(rank_ / kWarpSize) + ", lane " + std::to_string(rank_ % kWarpSize) + ")";
}

std::string Block::place(int w, int lane) const {
  const int rank = w * kWarpSize + lane;
  const Warp& warp = warps_[static_cast<size_t>(w)];
  if (rank >= thread_count_) return "";
  if ((warp.exited >> lane & 1) != 0) return "exited";
  for (int m = 0; m < warp.meeting_count; ++m) {
    const Meeting& meeting = warp.meetings[static_cast<size_t>(m)];
    if ((meeting.arrived >> lane & 1) != 0) return std::string("at ") + meeting.name;
  }
  for (size_t id = 0; id < barriers_.size(); ++id) {
    const Barrier& barrier = barriers_[id];
    if ((barrier.lanes[static_cast<size_t>(w)] >> lane & 1) == 0) continue;
    const std::string call = " (" + file_and_line(threads_[static_cast<size_t>(rank)].barrier_call) + ")";
    if (barrier.expected == 0) return "at __syncthreads" + call;
    return "at named barrier " + std::to_string(id) + " with " + std::to_string(barrier.arrived) + " of " +
           std::to_string(barrier.expected) + " threads" + call;
  }
  return "running";
}

// "warp 0 waits at __syncthreads (a.cuh:12)" or "warp 1 lanes 0-15 at mma, lanes 16-31 at __shfl_sync"
std::string Block::places(int w) const {
  std::vector<std::pair<std::string, Lanes>> groups;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const std::string here = place(w, lane);
    if (here.empty()) continue;
    auto group = groups.begin();
    while (group != groups.end() && group->first != here) ++group;
    if (group == groups.end()) group = groups.insert(group, {here, 0});
    group->second |= 1u << lane;
  }
  std::string text = "warp " + std::to_string(w);
  if (groups.size() == 1) return text + (groups[0].first.rfind("at ", 0) == 0 ? " waits " : " ") + groups[0].first;
  for (size_t g = 0; g < groups.size(); ++g) {
    text += (g == 0 ? " " : ", ") + list(groups[g].second) + " " + groups[g].first;
  }
  return text;
}

std::string Block::deadlock() const {
  std::string text = "deadlock in block " + triple(blockIdx) + ": ";
  for (int w = 0; w < warp_count_; ++w) text += (w == 0 ? "" : ", ") + places(w);
  return text;
}

}  // namespace emulation
