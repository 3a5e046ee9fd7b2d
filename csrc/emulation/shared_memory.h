// The dynamic shared memory of a launch, which its blocks use one after another.
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

  // Fills it with 0xFF; called before each block.
  void fill();

  // The error text for an access to [pointer, pointer + bytes), or an empty string.
  std::string problem(const void* pointer, size_t bytes, size_t alignment) const;

  // Called after each block: where bytes around the memory were overwritten, or an empty string. Under AddressSanitizer
  // always empty: it reports the access itself.
  std::string overwritten() const;

 private:
  size_t bytes_;
  char* allocation_;
  char* data_;
};

}  // namespace emulation
