// The cp.async copies of one thread that have not arrived.
#pragma once

#include <cstddef>
#include <vector>

namespace emulation {

class AsyncCopies {
 public:
  void issue(void* shared, const void* global, int bytes, int valid_bytes);
  void commit();
  void wait(int groups_left);

  bool pending() const { return first_ < copies_.size(); }
  void clear();

 private:
  struct Copy {
    void* shared;
    const void* global;
    int bytes, valid_bytes;
    int group;
  };

  std::vector<Copy> copies_;
  size_t first_ = 0;    // the oldest copy that has not arrived
  int open_group_ = 0;  // the group of the copies until the next commit
};

}  // namespace emulation
