// A switch takes 11 ns with _setjmp and _longjmp, and 250 ns with swapcontext, which makes a system call (x86-64, glibc
// 2.36, -O2). So ucontext only creates the stacks.
//
// With _FORTIFY_SOURCE, which some compilers define by default, _longjmp to another stack aborts the process. So the
// macro is undefined in this file, before the C library's headers.
#undef _FORTIFY_SOURCE

#include "emulation/fiber.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "emulation/sanitizer.h"

#if EMULATION_ASAN
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <stdexcept>
#define EMULATION_NO_ASAN __attribute__((no_sanitize("address")))
#else
#define EMULATION_NO_ASAN
#endif

namespace emulation {
namespace {

// The fiber that this host thread last switched from.
thread_local Fiber* left = nullptr;

#if EMULATION_ASAN

using Jump = void(std::jmp_buf, int);

// AddressSanitizer's _longjmp replaces the C library's and clears the red zones of the stack that it leaves, for
// programs that do not announce their fibers to it. This file does announce them, so it calls the C library's function.
Jump* find_jump() {
  void* library = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  void* function = library == nullptr ? nullptr : dlsym(library, "_longjmp");
  if (function == nullptr) throw std::runtime_error("the emulation under AddressSanitizer needs glibc");
  return reinterpret_cast<Jump*>(function);
}

EMULATION_NO_ASAN void jump(std::jmp_buf& target) {
  static Jump* const c_library_jump = find_jump();
  c_library_jump(target, 1);
}

#else

void jump(std::jmp_buf& target) { _longjmp(target, 1); }

#endif

}  // namespace

Fiber::Fiber(int number, void (*entry)(void*), void* argument) : entry_(entry), argument_(argument) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapping_ =
      mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);
  bottom_ = static_cast<char*>(mapping_) + page;
  // Stacks that end at the same offset in a page would compete for the same few lines of the L1 cache.
  stack_bytes_ = kStackBytes - static_cast<size_t>(number) * 320 % 4096;

  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = const_cast<void*>(bottom_);
  context.uc_stack.ss_size = stack_bytes_;
  context.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);  // makecontext passes only ints
  makecontext(&context, reinterpret_cast<void (*)()>(&Fiber::first_entry), 2, static_cast<unsigned>(self >> 32),
              static_cast<unsigned>(self));
  // first_entry sets start_ and jumps back to here_ at once.
  if (_setjmp(here_) == 0) setcontext(&context);
  at_start_ = true;
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
#if EMULATION_ASAN
  __asan_unpoison_memory_region(bottom_, kStackBytes);  // for the next mapping at this address
#endif
  munmap(mapping_, static_cast<size_t>(sysconf(_SC_PAGESIZE)) + kStackBytes);
}

EMULATION_NO_ASAN void Fiber::first_entry(unsigned high, unsigned low) {
  Fiber* const self = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
  if (_setjmp(self->start_) == 0) jump(self->here_);
  self->arrived(left);
  self->entry_(self->argument_);
}

void Fiber::rewind() {
  at_start_ = true;
#if EMULATION_ASAN
  __asan_unpoison_memory_region(bottom_, stack_bytes_);
#endif
}

EMULATION_NO_ASAN void Fiber::switch_to(Fiber& from, Fiber& to) {
  left = &from;
#if EMULATION_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.stack_bytes_);
#endif
  if (_setjmp(from.here_) == 0) {
    const bool at_start = to.at_start_;
    to.at_start_ = false;
    jump(at_start ? to.start_ : to.here_);
  }
  from.arrived(left);
}

EMULATION_NO_ASAN inline void Fiber::arrived([[maybe_unused]] Fiber* from) {
#if EMULATION_ASAN
  // Only now, after the switch, is the stack of a host thread known.
  __sanitizer_finish_switch_fiber(fake_stack_, &from->bottom_, &from->stack_bytes_);
#endif
}

}  // namespace emulation
