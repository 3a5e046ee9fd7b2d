// The dynamic shared memory of a launch; its blocks use it one after another.
#pragma once

#include <cstddef>
#include <string>

namespace emulation {

class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  char* data() const { return data_; }
  size_t size() const { return bytes_; }

  // Before each block.
  void fill();

  // What is wrong with [pointer, pointer + bytes), or an empty string.
  std::string problem(const void* pointer, size_t bytes, size_t alignment) const;

  // After each block: where the bytes around the memory were overwritten, or an empty string. AddressSanitizer, which
  // guards them itself, reports the access instead.
  std::string overwritten() const;

 private:
  size_t bytes_;
  char* allocation_;
  char* data_;
};

}  // namespace emulation
