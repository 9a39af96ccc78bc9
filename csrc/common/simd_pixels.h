// Rows of uint8 samples, transposition, and the arithmetic of portable.h on vectors. As simd.h,
// only for files that are compiled once per instruction set.
#pragma once

#include "common/half.h"
#include "common/simd.h"

namespace fastssl {
namespace {

// Rows of uint8 to and from rows of wider numbers. Loops, because compilers find the instructions
// for them, but not for conversions of single vectors.
template <typename T>
inline void widen(const uint8_t* from, int64_t step, int64_t count, T* to) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = T(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = T(from[i * step]);
  }
}

// Whole numbers from 0 to 255.
template <typename T>
inline void narrow(const T* from, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = uint8_t(int32_t(from[i]));
}

// As to_bfloat16. Whole vectors of `from` are rounded in place, and then packed, as narrow does.
inline void narrow_to_bfloat16(float* from, int64_t count, uint16_t* to) {
  using U = Vec<uint32_t>;
  for (int64_t i = 0; i < count; i += kLanes<float>) {
    const Vec<float> x = load<float>(from + i);
    const U bits = (U)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const U kept = (bits >> 16) | 0x40;
    store<float>(from + i, (Vec<float>)(x == x ? rounded : kept));
  }
  for (int64_t i = 0; i < count; ++i) to[i] = uint16_t(float_to_bits(from[i]));
}

// Half to even, for |x| < 2^22.
inline Vec<float> round_even(Vec<float> x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

template <>
struct Math<Vec<float>> {
  static Vec<float> set(float x) { return broadcast<float>(x); }

  // Rounds once, also where the processor has no such instruction.
  static Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
    return __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4);
#elif defined(__FMA__)
    typedef float Half __attribute__((vector_size(32)));
    constexpr int kHalves = FASTSSL_VECTOR_BYTES / 32;
    Half x[kHalves], y[kHalves], z[kHalves];
    __builtin_memcpy(x, &a, sizeof a);
    __builtin_memcpy(y, &b, sizeof b);
    __builtin_memcpy(z, &c, sizeof c);
    for (int i = 0; i < kHalves; ++i) z[i] = __builtin_ia32_vfmaddps256(x[i], y[i], z[i]);
    __builtin_memcpy(&c, z, sizeof c);
    return c;
#else
    typedef double Wide __attribute__((vector_size(2 * FASTSSL_VECTOR_BYTES)));
    const Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
    return __builtin_convertvector(product + __builtin_convertvector(c, Wide), Vec<float>);
#endif
  }

  // For 0 <= x < 2^31.
  static Vec<float> floor(Vec<float> x) {
    return __builtin_convertvector(__builtin_convertvector(x, Vec<int32_t>), Vec<float>);
  }
};

template <>
struct Math<Vec<double>> {
  static Vec<double> set(double x) { return broadcast<double>(x); }
  static Vec<double> floor(Vec<double> x) {
    typedef int32_t Narrow __attribute__((vector_size(FASTSSL_VECTOR_BYTES / 2)));
    return __builtin_convertvector(__builtin_convertvector(x, Narrow), Vec<double>);
  }
  static Vec<double> single(Vec<double> x) {
    typedef float Narrow __attribute__((vector_size(FASTSSL_VECTOR_BYTES / 2)));
    return __builtin_convertvector(__builtin_convertvector(x, Narrow), Vec<double>);
  }
};

// a0 b0 a1 b1 ... of the first and of the second half of two vectors.
template <class V>
inline V interleave_low(V a, V b) {
#if FASTSSL_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif FASTSSL_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
template <class V>
inline V interleave_high(V a, V b) {
#if FASTSSL_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
#elif FASTSSL_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// A square of lanes: row i, column j goes to row j, column i. log2(lanes) perfect shuffles.
template <class V, int lanes>
inline void transpose(V (&rows)[lanes]) {
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
    V mixed[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i) {
      mixed[2 * i] = interleave_low(rows[i], rows[i + lanes / 2]);
      mixed[2 * i + 1] = interleave_high(rows[i], rows[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = mixed[i];
  }
}

}  // namespace
}  // namespace fastssl
