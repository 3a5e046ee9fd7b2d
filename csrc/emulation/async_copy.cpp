#include "emulation/async_copy.h"

#include <cstring>

namespace emulation {

void AsyncCopies::issue(void* shared, const void* global, int bytes, int valid_bytes) {
  std::memset(shared, 0xff, static_cast<size_t>(bytes));
  copies_.push_back({shared, global, bytes, valid_bytes, open_group_});
}

void AsyncCopies::commit() { ++open_group_; }

void AsyncCopies::wait(int groups_left) {
  for (; first_ < copies_.size() && copies_[first_].group < open_group_ - groups_left; ++first_) {
    const Copy& copy = copies_[first_];
    const auto valid_bytes = static_cast<size_t>(copy.valid_bytes);
    if (valid_bytes > 0) std::memcpy(copy.shared, copy.global, valid_bytes);  // global may be null if nothing is valid
    std::memset(static_cast<char*>(copy.shared) + valid_bytes, 0, static_cast<size_t>(copy.bytes) - valid_bytes);
  }
  // A pipeline may never drain, so arrived copies are erased once they are the larger part.
  if (2 * first_ >= copies_.size()) {
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(first_));
    first_ = 0;
  }
}

void AsyncCopies::clear() {
  copies_.clear();
  first_ = 0;
  open_group_ = 0;
}

}  // namespace emulation
