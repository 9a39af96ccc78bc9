// Scalar arithmetic that rounds alike in C++ and CUDA: what both compile is written once.
//
// Files that use it are compiled without contraction of a * b + c (-ffp-contract=off, -fmad=false);
// `fused` asks for it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define FASTSSL_HD __host__ __device__
#else
#define FASTSSL_HD
#endif

namespace fastssl {
namespace {

#ifdef __CUDACC__
FASTSSL_HD inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
FASTSSL_HD inline double fused(double a, double b, double c) { return fma(a, b, c); }
FASTSSL_HD inline float floor_of(float x) { return floorf(x); }
FASTSSL_HD inline double floor_of(double x) { return floor(x); }
FASTSSL_HD inline float round_even(float x) { return rintf(x); }
FASTSSL_HD inline double round_even(double x) { return rint(x); }
FASTSSL_HD inline double square_root(double x) { return sqrt(x); }
FASTSSL_HD inline float square_root(float x) { return sqrtf(x); }
#else
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float floor_of(float x) { return __builtin_floorf(x); }
inline double floor_of(double x) { return __builtin_floor(x); }
inline float round_even(float x) { return __builtin_rintf(x); }
inline double round_even(double x) { return __builtin_rint(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }
inline float square_root(float x) { return __builtin_sqrtf(x); }
#endif

// Of numbers, or of the lanes of vectors; NaN in `a` stays, and in `b` is ignored.
template <typename T>
FASTSSL_HD inline T least(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
FASTSSL_HD inline T greatest(T a, T b) {
  return b > a ? b : a;
}

// e^x with the same bits everywhere: libraries differ in the last one. |x| counts up to 700.
FASTSSL_HD inline double portable_exp(double x) {
  x = least(greatest(x, -700.0), 700.0);
  const double k = round_even(x * 1.4426950408889634);
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double factorial[14] = {1};
  for (int n = 1; n < 14; ++n) factorial[n] = factorial[n - 1] * n;
  double p = 1 / factorial[13];
  for (int n = 12; n >= 0; --n) p = p * r + 1 / factorial[n];
  double power = 1;
  for (double n = k; n > 0; --n) power *= 2;
  for (double n = k; n < 0; ++n) power *= 0.5;
  return p * power;
}

// The same for one number and for a vector of them (common/simd.h adds those).
template <class V>
struct Math;
template <>
struct Math<float> {
  FASTSSL_HD static float set(float x) { return x; }
  FASTSSL_HD static float fused(float a, float b, float c) { return ::fastssl::fused(a, b, c); }
  FASTSSL_HD static float floor(float x) { return floor_of(x); }
};
template <>
struct Math<double> {
  FASTSSL_HD static double set(double x) { return x; }
  FASTSSL_HD static double floor(double x) { return floor_of(x); }
  FASTSSL_HD static double single(double x) { return double(float(x)); }
};

}  // namespace
}  // namespace fastssl
