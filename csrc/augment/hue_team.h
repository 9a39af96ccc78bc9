// pixel.h's turn_hue for whole levels, to the bit and without slow paths: divisors are at least
// 1/255, so that no quotient needs the care that a division in general does.
#pragma once

#include "augment/quad_team.h"

namespace fastssl {
namespace augment {
namespace {

// 1 / x within two units in the last place or less.
FASTSSL_TEAM inline float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return fmaf(y, fmaf(-x, y, 1.0f), y);
#else
  return 1 / x;
#endif
}

// a / b with b's reciprocal: correctly rounded for all that levels can be.
// (tests/ops/test_augment_hue.py tries them all)
FASTSSL_TEAM inline float quotient(float a, float b, float inverse) {
  const float q = a * inverse;
  return fused(fused(-b, q, a), inverse, q);
}

FASTSSL_TEAM inline float higher(float a, float b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);
#else
  return greatest(a, b);
#endif
}
FASTSSL_TEAM inline float lower(float a, float b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#else
  return least(a, b);
#endif
}

FASTSSL_TEAM inline Pixel<float> turn_levels(const Pixel<float>& p, float turn) {
  const float unit = float(1.0 / 255.0);
  const float r = p.r * unit, g = p.g * unit, b = p.b * unit;
  const float most = higher(higher(r, g), b), range = most - lower(lower(r, g), b);
  // Where these differ from what they divide by in pixel.h, what is divided is zero.
  const float value = higher(most, unit), spread = higher(range, 1e-3f);
  const float by_spread = reciprocal(spread);
  const float s = quotient(range, value, reciprocal(value));
  const bool red = most == r, green = most == g;
  const float first = quotient(most - (red ? b : green ? r : g), spread, by_spread);
  const float second = quotient(most - (red ? g : green ? b : r), spread, by_spread);
  float h = (first + (red ? 0.0f : green ? 2.0f : 4.0f)) - second;
  h = h * float(1.0 / 6.0) + 1.0f;
  h = h >= 1.0f ? h - 1.0f : h;
  h = h + turn;
  h = h < 0.0f ? h + 1.0f : h;
  h = h >= 1.0f ? h - 1.0f : h;

  const float h6 = h * 6.0f, sector = floor_of_level(h6), f = h6 - sector;
  const float sf = s * f, rest = 1.0f - s;
  const float v = most, w = bounded(rest * v, 1.0f);
  // Of the sector's two slopes, the one that it has: down in odd sectors, up in even ones.
#ifdef __CUDA_ARCH__
  const uint32_t one = 1u << (__float_as_uint(sector + 0x1p23f) & 7u);
#else
  const uint32_t one = 1u << int32_t(sector);
#endif
  const auto among = [one](uint32_t sectors) { return (one & sectors) != 0; };
  const float slope = bounded((among(0b101010) ? 1.0f - sf : sf + rest) * v, 1.0f);
  const float out[3] = {among(0b1100001)   ? v
                        : among(0b0010010) ? slope
                                           : w,  // 6 is 0 again
                        among(0b0000110)   ? v
                        : among(0b1001001) ? slope
                                           : w,
                        among(0b0011000)   ? v
                        : among(0b0100100) ? slope
                                           : w};
  return {floor_of_level(out[0] * 255.999f), floor_of_level(out[1] * 255.999f),
          floor_of_level(out[2] * 255.999f)};
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
