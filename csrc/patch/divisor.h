// Division by a number that a whole launch shares: a product and a shift instead of some twenty
// instructions. T. Granlund, P. Montgomery, "Division by invariant integers using multiplication",
// 1994.
#pragma once

#include "common/portable.h"

namespace fastssl {
namespace patch {

// Of numbers in [0, 2^31) by one in [1, 2^31).
struct Divisor {
  int32_t number;
  uint32_t multiplier;  // ceil(2^(31 + shift) / number)
  int32_t shift;        // ceil(log2(number))

  FASTSSL_HD int32_t quotient(int32_t x) const {
    return int32_t(uint32_t(uint64_t(uint32_t(x) * 2) * multiplier >> 32) >> shift);
  }
};

inline Divisor divisor_of(int32_t number) {
  int32_t shift = 0;
  while (int64_t(1) << shift < number) ++shift;
  const uint64_t power = uint64_t(1) << (31 + shift);
  return {number, uint32_t((power + uint64_t(number) - 1) / uint64_t(number)), shift};
}

// Rows that samples have `each` of.
struct RowDivisor {
  Divisor divisor;
  int64_t each;
  bool fits;  // `each` is less than 2^31

  FASTSSL_HD int64_t sample(int64_t row) const {
    if (fits && row < int64_t(1) << 31) return divisor.quotient(int32_t(row));
    return row / each;
  }
};

inline RowDivisor row_divisor(int64_t each) {
  const bool fits = 0 < each && each < int64_t(1) << 31;
  return {divisor_of(fits ? int32_t(each) : 1), each, fits};
}

}  // namespace patch
}  // namespace fastssl
