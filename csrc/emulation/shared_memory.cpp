#include "emulation/shared_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "emulation/sanitizer.h"

namespace emulation {
namespace {

constexpr size_t kAlignment = 1024;

constexpr size_t kCanaryBytes = EMULATION_ASAN ? 0 : 1024;
static_assert(kCanaryBytes % kAlignment == 0, "the memory itself keeps the alignment");

// A value that neither fresh memory nor a kernel's results are likely to have.
constexpr unsigned char kCanary = 0xa5;

// The index of the first byte that is not the canary, or `count`.
size_t first_wrong(const char* bytes, size_t count) {
  size_t i = 0;
  while (i < count && static_cast<unsigned char>(bytes[i]) == kCanary) ++i;
  return i;
}

}  // namespace

SharedMemory::SharedMemory(size_t bytes) : bytes_(bytes) {
  void* allocation = nullptr;
  if (posix_memalign(&allocation, kAlignment, bytes + 2 * kCanaryBytes) != 0) throw std::bad_alloc();
  allocation_ = static_cast<char*>(allocation);
  data_ = allocation_ + kCanaryBytes;
}

SharedMemory::~SharedMemory() { std::free(allocation_); }

void SharedMemory::fill() {
  std::memset(allocation_, kCanary, kCanaryBytes);
  std::memset(data_, 0xff, bytes_);
  std::memset(data_ + bytes_, kCanary, kCanaryBytes);
}

std::string SharedMemory::problem(const void* pointer, size_t bytes, size_t alignment) const {
  // As integers: comparison of pointers into different objects is undefined.
  const auto begin = reinterpret_cast<uintptr_t>(data_), at = reinterpret_cast<uintptr_t>(pointer);
  if (at < begin || at > begin + bytes_ || bytes > begin + bytes_ - at) {
    const auto offset = static_cast<int64_t>(at - begin);
    const bool near = offset > -(int64_t{1} << 30) && offset < (int64_t{1} << 30);
    const std::string range = std::to_string(offset) + ", " + std::to_string(offset + static_cast<int64_t>(bytes));
    return (near ? "bytes [" + range + ")" : std::string("an address")) + " outside of the " + std::to_string(bytes_) +
           " bytes of dynamic shared memory";
  }
  if ((at - begin) % alignment != 0) {
    return "offset " + std::to_string(at - begin) + " in shared memory is not a multiple of " +
           std::to_string(alignment);
  }
  return {};
}

std::string SharedMemory::overwritten() const {
  const size_t before = first_wrong(allocation_, kCanaryBytes);
  if (before < kCanaryBytes) return "byte -" + std::to_string(kCanaryBytes - before) + ", before the start,";
  const size_t after = first_wrong(data_ + bytes_, kCanaryBytes);
  if (after < kCanaryBytes)
    return "byte " + std::to_string(bytes_ + after) + ", past the end of " + std::to_string(bytes_) + ",";
  return {};
}

}  // namespace emulation
