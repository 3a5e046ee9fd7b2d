// A stack of its own that a host thread can go on with: all that the scheduler needs from the machine.
#pragma once

#include <csetjmp>
#include <cstddef>

namespace emulation {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;  // a few KB of local arrays at -O0 under AddressSanitizer fit well

  // Stands for the stack on which the calling thread runs.
  Fiber() = default;
  // A stack on which entry(argument) will run. entry must never return: it ends by switching elsewhere. `number` tells
  // fibers that take turns apart.
  Fiber(int number, void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber starts its entry anew. What was on its stack is dropped without running destructors,
  // which device code does not have. Cheap, so that stacks are made once for all blocks and launches of a host thread.
  void rewind();

  // Leaves the running fiber `from` for `to`. Returns when something switches back to `from`.
  static void switch_to(Fiber& from, Fiber& to);

 private:
  static void first_entry(unsigned high, unsigned low);
  void arrived(Fiber* from);

  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* mapping_ = nullptr;  // a guard page, then the stack
  const void* bottom_ = nullptr;
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's, for what it finds after a function's return
  bool at_start_ = false;
  std::jmp_buf start_;
  std::jmp_buf here_;
};

}  // namespace emulation
