// Asynchronous copies from global to shared memory, without a pass through registers.
#pragma once

#include "device/platform.h"

namespace conan_fast {

// cp.async.cg.shared.global [shared], [global], 16, valid ? 16 : 0: 16 bytes, zeros if not valid. The
// shared address is start + offset (see ldmatrix); both addresses must be aligned to 16. The data may be read after
// cp_async_wait and a barrier.
__device__ inline void cp_async_16(unsigned char* start, int offset, const void* global, bool valid) {
#if defined(CONAN_FAST_EMULATED)
  emulation::check_shared(start + offset, 16, 16, "cp.async");
  emulation::cp_async(start + offset, global, 16, valid ? 16 : 0);
#else
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(start)) + offset;
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// cp.async.ca.shared.global [shared], [global], 4, valid ? 4 : 0: the same for 4 bytes, aligned to 4.
__device__ inline void cp_async_4(unsigned char* start, int offset, const void* global, bool valid) {
#if defined(CONAN_FAST_EMULATED)
  emulation::check_shared(start + offset, 4, 4, "cp.async");
  emulation::cp_async(start + offset, global, 4, valid ? 4 : 0);
#else
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(start)) + offset;
  int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// cp.async.commit_group: closes the group of this thread's copies since the last commit.
__device__ inline void cp_async_commit() {
#if defined(CONAN_FAST_EMULATED)
  emulation::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// cp.async.wait_group kGroupsLeft: waits for this thread's copies, all groups but the last kGroupsLeft.
template <int kGroupsLeft>
__device__ inline void cp_async_wait() {
#if defined(CONAN_FAST_EMULATED)
  emulation::cp_async_wait(kGroupsLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

}  // namespace conan_fast
