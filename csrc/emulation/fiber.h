// A stack that a host thread can switch to: the machine-dependent part of the scheduler.
#pragma once

#include <csetjmp>
#include <cstddef>

namespace emulation {

class Fiber {
 public:
  static constexpr size_t kStackBytes =
      256 * 1024;  // enough for a few KB of local arrays at -O0 under AddressSanitizer

  // Represents the stack of the calling thread.
  Fiber() = default;
  // A new stack, on which entry(argument) will run. entry must not return; it ends with a switch to another fiber.
  // `number` differs among the fibers of a block.
  Fiber(int number, void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry again. Destructors of objects on its stack do not run; device code has
  // none. Cheap, so that a host thread reuses its stacks for all blocks and launches.
  void rewind();

  // Switches from the running fiber `from` to `to`. Returns after a switch back to `from`.
  static void switch_to(Fiber& from, Fiber& to);

 private:
  static void first_entry(unsigned high, unsigned low);
  void arrived(Fiber* from);

  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* mapping_ = nullptr;  // a guard page, then the stack
  const void* bottom_ = nullptr;
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's, for its use-after-return check
  bool at_start_ = false;
  std::jmp_buf start_;
  std::jmp_buf here_;
};

}  // namespace emulation
