// The arithmetic of each semantics for one sample, one pixel, one thread of a team.
#pragma once

#include "augment/augment.h"
#include "augment/filter.h"
#include "augment/pixel_pillow.h"
#include "augment/steps.h"
#include "common/team.h"

namespace fastssl {
namespace augment {
namespace {

// Whole levels without the slow conversion instructions: the low mantissa bits of 2^23 + x are x,
// and adding 2^23 rounds half to even.
FASTSSL_TEAM inline float level(uint8_t x) {
#ifdef __CUDA_ARCH__
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

// Sample is what the view holds between stages, Work what is summed, Real what weights come from.
struct FloatSums {
  using Work = float;
  using Real = float;
  FASTSSL_TEAM static float weight(float w) { return w; }
  FASTSSL_TEAM static float add(float sum, float x, float w) { return fused(x, w, sum); }
  FASTSSL_TEAM static float between_passes(float sum) { return sum; }
};

template <Semantics semantics>
struct Rules;

template <>
struct Rules<Semantics::kTvUint8> : FloatSums {
  using Sample = uint8_t;
  static constexpr bool kLevels = true, kPillow = false;
  FASTSSL_TEAM static float rounded(float sum) {
    return (clamped<float>(sum, 255.0f) + 0x1p23f) - 0x1p23f;
  }
};

template <>
struct Rules<Semantics::kTvFloat> : FloatSums {
  using Sample = float;
  static constexpr bool kLevels = false, kPillow = false;
  FASTSSL_TEAM static float rounded(float sum) { return sum; }
};

template <>
struct Rules<Semantics::kPil> {
  using Sample = uint8_t;
  using Work = int32_t;
  using Real = double;
  static constexpr bool kLevels = true, kPillow = true;
  FASTSSL_TEAM static int32_t weight(double w) { return pillow_weight(w); }
  FASTSSL_TEAM static int32_t add(int32_t sum, int32_t x, int32_t w) { return sum + x * w; }
  FASTSSL_TEAM static int32_t between_passes(int32_t sum) {
    const int32_t x = (sum + (1 << (kPillowBits - 1))) >> kPillowBits;
    return least(greatest(x, 0), 255);
  }
  FASTSSL_TEAM static float rounded(int32_t sum) { return float(between_passes(sum)); }
};

// A sample of the image, in the type of the sums.
template <class R>
FASTSSL_TEAM inline typename R::Work load_sample(const uint8_t* from) {
#ifdef __CUDA_ARCH__
  const uint8_t x = __ldg(from);
#else
  const uint8_t x = *from;
#endif
  if (R::kPillow) return typename R::Work(x);
  return typename R::Work(R::kLevels ? level(x) : level(x) * float(1.0 / 255.0));
}

template <class R>
FASTSSL_TEAM inline typename R::Work load_sample(const float* from) {
#ifdef __CUDA_ARCH__
  const float x = __ldg(from);
#else
  const float x = *from;
#endif
  // torchvision's conversion of float to uint8
  return typename R::Work(R::kLevels ? floor_of(clamped<float>(x, 1.0f) * 255.999f) : x);
}

template <Semantics semantics>
struct Colors {
  static constexpr bool kLevels = Rules<semantics>::kLevels, kPillow = Rules<semantics>::kPillow;

  FASTSSL_TEAM static float gray(const Pixel<float>& p) {
    return kPillow ? pillow_luma<float>(p) : luma<kLevels, float>(p);
  }

  FASTSSL_TEAM static float mean(double sum, double count) {
    return kPillow ? float(floor_of(sum / count + 0.5)) : float(sum) / float(count);
  }

  FASTSSL_TEAM static float blended(float x, float other, const Step& s) {
    return kPillow ? pillow_blend<float>(x, other, s.factor)
                   : blend<kLevels, float>(x, other, s.factor, s.rest);
  }

  FASTSSL_TEAM static Pixel<float> hue(const Pixel<float>& p, float turn) {
    if (!kPillow) return turn_hue<kLevels, float>(p, turn);
    const Pixel<double> q = pillow_turn_hue<double>({p.r, p.g, p.b}, pillow_turn(turn));
    return {float(q.r), float(q.g), float(q.b)};
  }

  // Steps [begin, end) on one pixel.
  FASTSSL_TEAM static Pixel<float> run(Pixel<float> p, const Steps& steps, int32_t begin,
                                       int32_t end, float mean) {
    for (int32_t i = begin; i < end; ++i) {
      const Step s = steps.step[i];
      if (s.kind == kHue) {
        p = hue(p, s.factor);
        continue;
      }
      if (s.kind == kBrightness && !kPillow) {
        p = {brighten<kLevels, float>(p.r, s.factor), brighten<kLevels, float>(p.g, s.factor),
             brighten<kLevels, float>(p.b, s.factor)};
        continue;
      }
      const float other = s.kind == kContrast ? mean : s.kind == kBrightness ? 0 : gray(p);
      if (s.kind == kGray) {
        p = {other, other, other};
      } else {
        p = {blended(p.r, other, s), blended(p.g, other, s), blended(p.b, other, s)};
      }
    }
    return p;
  }
};

// Gray levels are summed as integers: exact, in whatever order. Fractions in units of 2^-36.
template <Semantics semantics>
FASTSSL_TEAM inline int64_t summand(float gray) {
  if (Rules<semantics>::kLevels) return int32_t(gray);
  return int64_t(least(greatest(gray, -8.0f), 8.0f) * 0x1p36f);
}

template <Semantics semantics>
FASTSSL_TEAM inline double of_summands(int64_t sum) {
  return Rules<semantics>::kLevels ? double(sum) : double(sum) * 0x1p-36;
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
