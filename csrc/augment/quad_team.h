// Four neighbours in a row, what a thread of a team makes at once: a word of uint8 samples, 16
// bytes of float ones.
#pragma once

#include "augment/pixel.h"
#include "common/team.h"

namespace fastssl {
namespace augment {
namespace {

constexpr int32_t kQuad = 4;

template <class T>
struct alignas(kQuad * sizeof(T)) Quad {
  T x[kQuad];
};

FASTSSL_HD constexpr int32_t quads(int32_t count) { return (count + kQuad - 1) / kQuad; }

// Pixel `i` and what follows it in the view, `step` apart, of which `count` are there. Quads are
// stored at once where they lie `side` by side at a multiple of their size.
struct Spot {
  int64_t i, step;
  int32_t count;
  bool side;
};

// Whole levels without the slow conversion instructions: the low mantissa bits of 2^23 + x are x,
// and adding 2^23 rounds half to even.
FASTSSL_TEAM inline float level(uint8_t x) {
#if __CUDA_ARCH__ >= 900
  return float(uint32_t(x));  // quick since Hopper
#elif defined(__CUDA_ARCH__)
  return __uint_as_float(0x4B000000u | x) - 0x1p23f;
#else
  return float(x);
#endif
}
FASTSSL_TEAM inline float level(float x) { return x; }

FASTSSL_TEAM inline void put(uint8_t* to, float whole) {
#ifdef __CUDA_ARCH__
  *to = uint8_t(__float_as_uint(whole + 0x1p23f));
#else
  *to = uint8_t(whole);
#endif
}
FASTSSL_TEAM inline void put(float* to, float x) { *to = x; }

// Bytes of `low` (numbers 0 to 3) and `high` (4 to 7), each hexadecimal digit of `which` naming
// one.
FASTSSL_TEAM inline uint32_t bytes_of(uint32_t low, uint32_t high, uint32_t which) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, which);
#else
  const uint64_t both = uint64_t(high) << 32 | low;
  uint32_t out = 0;
  for (int k = 0; k < 4; ++k) out |= uint32_t(both >> (which >> 4 * k & 7) * 8 & 255) << 8 * k;
  return out;
#endif
}

FASTSSL_TEAM inline void levels_of(uint32_t word, float (&x)[kQuad]) {
  FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) {
#ifdef __CUDA_ARCH__
    x[k] = __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7540u + k)) - 0x1p23f;
#else
    x[k] = float(word >> 8 * k & 255);
#endif
  }
}

FASTSSL_TEAM inline uint32_t word_of(const float (&whole)[kQuad]) {
#ifdef __CUDA_ARCH__
  // Two levels fit a mantissa.
  const float low = fmaf(whole[1], 256.0f, whole[0] + 0x1p23f);
  const float high = fmaf(whole[3], 256.0f, whole[2] + 0x1p23f);
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x5410);
#else
  uint32_t word = 0;
  for (int k = 0; k < kQuad; ++k) word |= uint32_t(uint8_t(whole[k])) << 8 * k;
  return word;
#endif
}

// At addresses that are a multiple of a quad's size.
FASTSSL_TEAM inline void load_quad(const uint8_t* from, float (&x)[kQuad]) {
  levels_of(*reinterpret_cast<const uint32_t*>(from), x);
}
FASTSSL_TEAM inline void load_quad(const float* from, float (&x)[kQuad]) {
  const Quad<float> all = *reinterpret_cast<const Quad<float>*>(from);
  FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) x[k] = all.x[k];
}

FASTSSL_TEAM inline void put_quad(uint8_t* to, const float (&whole)[kQuad]) {
  *reinterpret_cast<uint32_t*>(to) = word_of(whole);
}
FASTSSL_TEAM inline void put_quad(float* to, const float (&x)[kQuad]) {
  *reinterpret_cast<Quad<float>*>(to) = {{x[0], x[1], x[2], x[3]}};
}

// For x >= 0 without the conversion units: 2^23 + x rounded down has no fraction.
FASTSSL_TEAM inline float floor_of_level(float x) {
#ifdef __CUDA_ARCH__
  return __fadd_rd(x, 0x1p23f) - 0x1p23f;
#else
  return floor_of(x);
#endif
}

// clamped() of what is not NaN.
FASTSSL_TEAM inline float bounded(float x, float bound) {
#ifdef __CUDA_ARCH__
  return bound == 1.0f ? __saturatef(x) : fminf(fmaxf(x, 0.0f), bound);
#else
  return clamped<float>(x, bound);
#endif
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
