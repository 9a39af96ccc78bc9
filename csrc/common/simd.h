// Vectors of the instruction set a file is compiled for. Included only by kernel files that are
// compiled once per instruction set: everything has internal linkage, and nothing here may come
// from the standard library's templates (the linker could keep a copy made with wider registers).
#pragma once

#include <stdint.h>

#include "common/portable.h"

#if !defined(FASTSSL_VECTOR_BYTES)
#if defined(__AVX512F__)
#define FASTSSL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTSSL_VECTOR_BYTES 32
#else
#define FASTSSL_VECTOR_BYTES 16
#endif
#endif

namespace fastssl {
namespace {

template <typename T>
struct SimdTypes;
template <>
struct SimdTypes<float> {
  typedef float Vector __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
};
template <>
struct SimdTypes<double> {
  typedef double Vector __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
};

template <>
struct SimdTypes<int32_t> {
  typedef int32_t Vector __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
};
template <>
struct SimdTypes<uint32_t> {
  typedef uint32_t Vector __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(FASTSSL_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename SimdTypes<T>::Vector;
template <typename T>
constexpr int kLanes = FASTSSL_VECTOR_BYTES / sizeof(T);

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <typename T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

// As many consecutive elements as fit a vector of doubles, widened.
template <typename T>
inline Vec<double> load_double(const T* from) {
  typedef T Narrow __attribute__((vector_size(kLanes<double> * sizeof(T))));
  Narrow v;
  __builtin_memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, Vec<double>);
}

template <typename T>
inline void store_double(T* to, Vec<double> wide) {
  typedef T Narrow __attribute__((vector_size(kLanes<double> * sizeof(T))));
  const Narrow v = __builtin_convertvector(wide, Narrow);
  __builtin_memcpy(to, &v, sizeof v);
}

// Both comparisons are false for NaN in `x`, which therefore stays.
template <typename T>
inline Vec<T> at_least(Vec<T> x, Vec<T> low) {
  return x < low ? low : x;
}

template <typename T>
inline T lane_sum(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < kLanes<T>; ++i) total += v[i];
  return total;
}

// 2^f on [-1/2, 1/2] by interpolation at Chebyshev nodes: relative error 2.5e-9 and 4.2e-18.
// kShift rounds to the nearest integer in the low mantissa bits, with the exponent bias added.
template <typename T>
struct Exp2Table;
template <>
struct Exp2Table<float> {
  static constexpr float kShift = 0x1.8p23f + 127;
  static constexpr int kMantissa = 23;
  static constexpr float kLowest = -127;
  static constexpr float kCoefficients[] = {1.0f,
                                            6.931472067e-1f,
                                            2.402265092e-1f,
                                            5.550327227e-2f,
                                            9.618056679e-3f,
                                            1.340042818e-3f,
                                            1.546144470e-4f};
};
template <>
struct Exp2Table<double> {
  static constexpr double kShift = 0x1.8p52 + 1023;
  static constexpr int kMantissa = 52;
  static constexpr double kLowest = -1023;
  static constexpr double kCoefficients[] = {
      1.0,
      0.6931471805599453,
      0.24022650695910158,
      0.055504108664821625,
      0.009618129107587256,
      0.001333355814640647,
      0.00015403530463724353,
      1.5252733841556773e-05,
      1.3215432535912375e-06,
      1.0178057087733941e-07,
      7.074194297288521e-09,
      4.4558179083360645e-10,
  };
};

// x = 2^x for kLowest <= x < 128 (1024): no branch, no table. kLowest itself gives exactly zero,
// NaN stays NaN. Below kLowest the result is meaningless: clamp with `exp2_or_zero` where x may go
// there.
//
// `count` vectors advance in lockstep: one polynomial is a chain of dependent steps, and the few
// dozen waiting instructions that a core can look ahead over hold only a few chains.
template <typename T, int count>
inline void exp2_in_range(Vec<T> (&x)[count]) {
  using Table = Exp2Table<T>;
  constexpr int degree = sizeof(Table::kCoefficients) / sizeof(T) - 1;
  Vec<T> shifted[count], p[count];
#pragma GCC unroll 16
  for (int n = 0; n < count; ++n) {
    shifted[n] = x[n] + Table::kShift;
    x[n] -= shifted[n] - Table::kShift;
    p[n] = x[n] * Table::kCoefficients[degree] + Table::kCoefficients[degree - 1];
  }
#pragma GCC unroll 16
  for (int i = degree - 2; i >= 0; --i) {
#pragma GCC unroll 16
    for (int n = 0; n < count; ++n) p[n] = p[n] * x[n] + Table::kCoefficients[i];
  }
#pragma GCC unroll 16
  for (int n = 0; n < count; ++n) {
    const auto scale = ((typename SimdTypes<T>::Bits)shifted[n]) << Table::kMantissa;
    x[n] = p[n] * (Vec<T>)scale;
  }
}

template <typename T, int count>
inline void exp2_or_zero(Vec<T> (&x)[count]) {
#pragma GCC unroll 16
  for (int n = 0; n < count; ++n) x[n] = at_least<T>(x[n], broadcast<T>(Exp2Table<T>::kLowest));
  exp2_in_range<T>(x);
}

}  // namespace
}  // namespace fastssl
