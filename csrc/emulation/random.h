// Random choices of the scheduler. A seed gives the same sequence with every compiler and C library.
#pragma once

#include <cstdint>

namespace emulation {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // splitmix64
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // In [0, count)
  uint32_t below(uint32_t count) { return static_cast<uint32_t>((next() >> 32) * count >> 32); }

  // The position of a random set bit of `bits`, which must not be 0.
  int bit_of(uint32_t bits) {
    // Bit counts over groups of 2, 4, 8 and 16 bits, then a binary search for the bit of the chosen rank. A table or a
    // loop over the set bits is slower; the next set bit from a random position on would favour bits after gaps.
    const uint32_t twos = bits - ((bits >> 1) & 0x55555555u);
    const uint32_t fours = (twos & 0x33333333u) + ((twos >> 2) & 0x33333333u);
    const uint32_t eights = (fours + (fours >> 4)) & 0x0f0f0f0fu;
    const uint32_t sums = eights * 0x01010101u;  // byte i: the count of set bits in bytes 0 to i
    uint32_t rank = below(sums >> 24), position = 0;
    const auto descend = [&](uint32_t count, uint32_t width) {
      const bool above = rank >= count;
      rank -= above ? count : 0;
      position += above ? width : 0;
    };
    descend((sums >> 8) & 0xff, 16);
    descend((eights >> position) & 0xff, 8);
    descend((fours >> position) & 0xf, 4);
    descend((twos >> position) & 0x3, 2);
    descend((bits >> position) & 0x1, 1);
    return static_cast<int>(position);
  }

 private:
  uint64_t state_;
};

}  // namespace emulation
